//! One pair for many tests of a process, which take turns.

use std::ops::Deref;
use std::sync::{Mutex, MutexGuard, Once, PoisonError};

use crate::pair::Pair;

static PAIR: Mutex<Option<Pair>> = Mutex::new(None);

/// The pair, for one test at a time.
#[derive(Debug)]
pub struct Shared(MutexGuard<'static, Option<Pair>>);

impl Deref for Shared {
    type Target = Pair;

    fn deref(&self) -> &Pair {
        self.0.as_ref().expect("the pair was started")
    }
}

/// Waits for the pair that the tests of this process share. The first one starts it;
/// one that finds it broken by the test before starts another.
pub fn shared() -> Shared {
    static AT_END: Once = Once::new();
    // A failed test leaves the pair to the next one.
    let mut pair = PAIR.lock().unwrap_or_else(PoisonError::into_inner);
    if !pair.as_ref().is_some_and(Pair::is_sound) {
        *pair = None;
        *pair = Some(Pair::new());
    }
    AT_END.call_once(|| {
        // SAFETY: the function takes nothing, returns nothing and does not unwind.
        unsafe { libc::atexit(remove) };
    });
    Shared(pair)
}

/// At the end of the process: a static is not dropped by itself.
extern "C" fn remove() {
    // A test that still holds it when the process ends has hung; the nodes die with
    // this process, and the next run removes their directory.
    if let Ok(mut pair) = PAIR.try_lock() {
        drop(pair.take());
    }
}
