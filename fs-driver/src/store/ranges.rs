//! Interval locks: overlapping changes of one file happen in one order (invariant 5).

use std::collections::VecDeque;

use parking_lot::{Condvar, Mutex, MutexGuard};

/// The byte ranges of one file that are being changed right now.
#[derive(Debug, Default)]
pub struct RangeLocks {
    state: Mutex<State>,
    freed: Condvar,
    /// Held beside the one range of the file that may become all of it.
    widening: Mutex<()>,
}

type Range = (u64, u64);

#[derive(Debug, Default)]
struct State {
    held: Vec<Range>,
    /// Who waits, in the order in which they came, and the number of the next one.
    waiting: VecDeque<(u64, Range)>,
    next: u64,
}

/// Holds a range until dropped.
#[derive(Debug)]
pub struct RangeGuard<'a> {
    locks: &'a RangeLocks,
    range: Range,
}

/// Holds a range that may become the whole file.
#[derive(Debug)]
pub struct WideningGuard<'a> {
    range: RangeGuard<'a>,
    _one: MutexGuard<'a, ()>,
}

/// From the first byte to the last possible one.
const ALL: Range = (0, u64::MAX);

fn overlap(a: &Range, b: &Range) -> bool {
    a.0 < b.1 && b.0 < a.1
}

impl State {
    /// Whether nothing that overlaps is held, or waited for by the first `before` who wait.
    fn is_free(&self, range: &Range, before: usize) -> bool {
        let mut earlier = self.waiting.iter().take(before);
        !self.held.iter().any(|h| overlap(h, range)) && !earlier.any(|(_, w)| overlap(w, range))
    }
}

impl RangeLocks {
    /// Waits until nothing that overlaps `offset .. offset + length` is held, and holds it.
    /// A holder applies one op to the local store and never waits for the peer,
    /// so the wait is as long as the local disk takes. Who comes later waits for who came
    /// before: else the whole of a file that is written to all the time would never be had.
    /// So nobody may ask for a second range of a file that he holds one of.
    pub fn lock(&self, offset: u64, length: u64) -> RangeGuard<'_> {
        let range = (offset, offset.saturating_add(length.max(1)));
        let mut state = self.state.lock();
        if !state.is_free(&range, usize::MAX) {
            let ticket = state.next;
            state.next += 1;
            state.waiting.push_back((ticket, range));
            loop {
                self.freed.wait(&mut state);
                let at = state.waiting.iter().position(|(t, _)| *t == ticket);
                let at = at.unwrap_or_default();
                if state.is_free(&range, at) {
                    state.waiting.remove(at);
                    break;
                }
            }
        }
        state.held.push(range);
        RangeGuard { locks: self, range }
    }

    /// Holds the whole file, its size and attributes included.
    pub fn lock_all(&self) -> RangeGuard<'_> {
        self.lock(ALL.0, ALL.1)
    }

    /// As [`RangeLocks::lock`], for a range that may have to become the whole file. One of a
    /// file at a time: two would wait for each other.
    pub fn lock_to_widen(&self, offset: u64, length: u64) -> WideningGuard<'_> {
        let one = self.widening.lock();
        WideningGuard {
            range: self.lock(offset, length),
            _one: one,
        }
    }
}

impl WideningGuard<'_> {
    /// Holds the whole file from now on. Comes before all who wait: some of them wait for this
    /// range.
    pub fn widen(&mut self) {
        let own = &mut self.range;
        let mut state = own.locks.state.lock();
        if own.range == ALL {
            return;
        }
        let ticket = state.next;
        state.next += 1;
        state.waiting.push_front((ticket, ALL));
        while state.held.len() > 1 {
            own.locks.freed.wait(&mut state);
        }
        state.waiting.retain(|(t, _)| *t != ticket);
        state.held[0] = ALL;
        own.range = ALL;
    }
}

impl Drop for RangeGuard<'_> {
    fn drop(&mut self) {
        let mut state = self.locks.state.lock();
        if let Some(at) = state.held.iter().position(|h| *h == self.range) {
            state.held.swap_remove(at);
        }
        let waited_for = !state.waiting.is_empty();
        drop(state);
        if waited_for {
            self.locks.freed.notify_all();
        }
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

    fn until(locks: &RangeLocks, waiting: usize) {
        let begun = std::time::Instant::now();
        while locks.state.lock().waiting.len() < waiting {
            assert!(begun.elapsed().as_secs() < 60, "nobody waits");
            std::thread::yield_now();
        }
    }

    /// Two writers hand over so that one range is held at every moment.
    #[test]
    fn the_whole_file_is_had_although_its_ranges_are_never_all_free() {
        let locks = RangeLocks::default();
        let had = AtomicBool::new(false);
        std::thread::scope(|s| {
            let last = locks.lock(0, 4096);
            s.spawn(|| {
                let _whole = locks.lock_all();
                had.store(true, Ordering::SeqCst);
            });
            until(&locks, 1);
            // Who comes now waits behind it, and goes on when it has been had.
            let next = s.spawn(|| {
                let range = locks.lock(8192, 4096);
                assert!(had.load(Ordering::SeqCst));
                drop(range);
            });
            until(&locks, 2);
            drop(last);
            next.join().unwrap();
        });
        assert!(locks.state.lock().waiting.is_empty());
    }

    /// One who waits for the range that is held comes behind, although he was there before.
    #[test]
    fn a_range_that_becomes_the_whole_file_waits_for_its_holders_only() {
        let locks = RangeLocks::default();
        let widened = AtomicBool::new(false);
        std::thread::scope(|s| {
            let (mut range, other) = (locks.lock_to_widen(0, 4096), locks.lock(8192, 4096));
            let waits = s.spawn(|| {
                let _whole = locks.lock_all();
                assert!(widened.load(Ordering::SeqCst));
            });
            until(&locks, 1);
            s.spawn(|| {
                until(&locks, 2);
                assert!(!widened.load(Ordering::SeqCst));
                drop(other);
            });
            range.widen();
            widened.store(true, Ordering::SeqCst);
            assert_eq!(locks.state.lock().held, [ALL]);
            range.widen();
            let last = s.spawn(|| drop(locks.lock(1 << 40, 1)));
            until(&locks, 2);
            drop(range);
            waits.join().unwrap();
            last.join().unwrap();
        });
        assert!(locks.state.lock().waiting.is_empty() && locks.state.lock().held.is_empty());
    }

    #[test]
    fn who_does_not_overlap_overtakes_those_who_wait() {
        let locks = RangeLocks::default();
        std::thread::scope(|s| {
            let first = locks.lock(0, 4096);
            s.spawn(|| drop(locks.lock(0, 8192)));
            until(&locks, 1);
            drop(locks.lock(8192, 4096));
            drop(first);
        });
    }
}
