//! How many pairs run at once in one test process: one for each processor, or a
//! single one for a test that needs the machine for itself.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

static TAKEN: Mutex<usize> = Mutex::new(0);
static FREED: Condvar = Condvar::new();

/// Slots held until dropped.
#[derive(Debug)]
pub(crate) struct Turn(usize);

fn slots() -> usize {
    std::thread::available_parallelism().map_or(2, |n| n.get().max(2))
}

fn taken() -> MutexGuard<'static, usize> {
    TAKEN.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Turn {
    /// Waits for one slot, or for all of them.
    pub(crate) fn wait(alone: bool) -> Turn {
        let wanted = if alone { slots() } else { 1 };
        let mut now = taken();
        while *now + wanted > slots() {
            now = FREED.wait(now).unwrap_or_else(PoisonError::into_inner);
        }
        *now += wanted;
        Turn(wanted)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        *taken() -= self.0;
        FREED.notify_all();
    }
}
