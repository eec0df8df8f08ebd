//! Interval locks: overlapping changes of one file happen in one order (invariant 5).

use parking_lot::{Condvar, Mutex};

/// The byte ranges of one file that are being changed right now.
#[derive(Debug, Default)]
pub struct RangeLocks {
    held: Mutex<Vec<(u64, u64)>>,
    freed: Condvar,
}

/// Holds a range until dropped.
#[derive(Debug)]
pub struct RangeGuard<'a> {
    locks: &'a RangeLocks,
    range: (u64, u64),
}

impl RangeLocks {
    /// Waits until nothing that overlaps `offset .. offset + length` is held, and holds it.
    /// A holder applies one op to the local store and never waits for the peer,
    /// so the wait is as long as the local disk takes.
    pub fn lock(&self, offset: u64, length: u64) -> RangeGuard<'_> {
        let range = (offset, offset.saturating_add(length.max(1)));
        let mut held = self.held.lock();
        while held.iter().any(|h| h.0 < range.1 && range.0 < h.1) {
            self.freed.wait(&mut held);
        }
        held.push(range);
        RangeGuard { locks: self, range }
    }

    /// Holds the whole file, its size and attributes included.
    pub fn lock_all(&self) -> RangeGuard<'_> {
        self.lock(0, u64::MAX)
    }
}

impl Drop for RangeGuard<'_> {
    fn drop(&mut self) {
        let mut held = self.locks.held.lock();
        if let Some(at) = held.iter().position(|h| *h == self.range) {
            held.swap_remove(at);
        }
        drop(held);
        self.locks.freed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering};

    #[test]
    fn disjoint_ranges_do_not_wait_and_overlapping_ones_do() {
        let locks = RangeLocks::default();
        let first = locks.lock(0, 4096);
        let other = locks.lock(4096, 4096);
        let entered = AtomicBool::new(false);
        std::thread::scope(|s| {
            s.spawn(|| {
                let _both = locks.lock(4000, 200);
                entered.store(true, Ordering::SeqCst);
            });
            drop(other);
            assert!(!entered.load(Ordering::SeqCst));
            drop(first);
        });
        assert!(entered.load(Ordering::SeqCst));
    }
}
