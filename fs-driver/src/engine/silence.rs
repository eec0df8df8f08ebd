//! Notices a store that does not answer: a disk that hangs instead of failing, or one that
//! has more to do than it can.
//!
//! The calls of the application that are inside the store are counted by when they began.
//! What hangs may still be carried out, and can neither be answered nor taken back; so
//! nothing is decided because of it. The operator is told, and which of both it is.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use twinfold_protocol::time::Instant;

use super::{Engine, clock};

/// How long a call may be inside the store before that is told: longer than a sound disk
/// takes under any load, shorter than what an operator would look for first.
const TOLD_AFTER: Duration = Duration::from_secs(10);

/// How long a call may be inside before it is looked at what the disk does.
const LOOKED_AFTER: Duration = Duration::from_secs(1);

/// Calls that are watched at once. One beyond that is not: if the store hangs, others do.
const WATCHED: usize = 64;

/// Since when the calls are under way that are inside the store.
#[derive(Debug)]
pub(super) struct Silence {
    /// Nanoseconds of the clock; 0: free.
    since: [AtomicU64; WATCHED],
    /// Where the next one looks for a place.
    next: AtomicU64,
    disk: Mutex<Looked>,
}

/// What was seen of the disk while a call has been inside for long.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Looked {
    /// What it had done, and when that was seen first.
    done: Option<(u64, Instant)>,
    told: Option<Waits>,
}

/// What a call that has been inside for too long waits for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Waits {
    /// The disk does nothing, or nobody knows what it does.
    Hangs,
    /// The disk does other things first.
    Busy,
}

impl Default for Silence {
    fn default() -> Silence {
        Silence {
            since: [const { AtomicU64::new(0) }; WATCHED],
            next: AtomicU64::new(0),
            disk: Mutex::default(),
        }
    }
}

/// A call that is inside the store, until this is dropped.
#[derive(Debug)]
pub(crate) struct Inside<'a>(Option<&'a AtomicU64>);

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        if let Some(place) = self.0 {
            place.store(0, Ordering::Relaxed);
        }
    }
}

impl Silence {
    /// A call enters the store.
    pub(super) fn enter(&self, now: Instant) -> Inside<'_> {
        let next = self.next.fetch_add(1, Ordering::Relaxed) as usize;
        // A few places are tried: those that hang keep theirs.
        let found = (next..next + 4)
            .map(|n| &self.since[n % WATCHED])
            .find(|p| {
                let (free, taken) = (0, now.0);
                p.compare_exchange(free, taken, Ordering::Relaxed, Ordering::Relaxed)
                    .is_ok()
            });
        Inside(found)
    }

    /// For how long the oldest call has been inside.
    fn lasts(&self, now: Instant) -> Option<Duration> {
        let all = self.since.iter().map(|p| p.load(Ordering::Relaxed));
        let oldest = all.filter(|since| *since != 0).min()?;
        Some(now.since(Instant(oldest)))
    }

    /// Looks whether a call has been inside for too long, and what for; `done` is a number that
    /// changes when the disk does something, if that is known. Returns what is new.
    fn look(&self, now: Instant, done: impl FnOnce() -> Option<u64>) -> Option<Option<Waits>> {
        let lasts = self.lasts(now).unwrap_or_default();
        let mut looked = self.disk.lock();
        if lasts < LOOKED_AFTER {
            looked.done = None;
        } else if let Some(done) = done() {
            let since = match looked.done {
                // What it did before is not known: nothing since the call came.
                None => Instant(now.0 - lasts.as_nanos() as u64),
                Some((before, since)) if before == done => since,
                Some(_) => now,
            };
            looked.done = Some((done, since));
        }
        let works = looked
            .done
            .is_some_and(|(_, since)| now.since(since) < TOLD_AFTER);
        let waits = (lasts >= TOLD_AFTER).then_some(match works {
            true => Waits::Busy,
            false => Waits::Hangs,
        });
        (std::mem::replace(&mut looked.told, waits) != waits).then_some(waits)
    }
}

impl Engine {
    /// A call enters the store; what it does there is over when the guard is dropped.
    pub(crate) fn inside(&self) -> Inside<'_> {
        self.silence.enter(clock::now())
    }

    /// For how many seconds the store has not answered, if that is too long, and why.
    pub(super) fn silent_seconds(&self) -> Option<(Waits, u64)> {
        let lasts = self.silence.lasts(clock::now())?;
        let told = self.silence.disk.lock().told?;
        (lasts >= TOLD_AFTER).then_some((told, lasts.as_secs()))
    }

    /// A number that changes whenever the disk under the store has done something; None where
    /// that is not known.
    pub(crate) fn disk_has_done(&self) -> Option<u64> {
        self.disk.has_done()
    }

    /// Says once that the store hangs or is slow, and once that it is so no more.
    pub(super) fn tell_silence(&self) {
        let now = clock::now();
        let Some(new) = self.silence.look(now, || self.disk_has_done()) else {
            return;
        };
        let seconds = TOLD_AFTER.as_secs();
        match new {
            Some(Waits::Hangs) => tracing::error!(
                "the store has not answered for {seconds} s and more: its disk hangs. If it does not \
                 come back, end this node, and be it by its power, and run `promote` on the peer"
            ),
            Some(Waits::Busy) => tracing::warn!(
                "a call has waited for the store for {seconds} s and more: its disk works, and has \
                 more to do than it can. It has work of others as well, or it is too slow for this"
            ),
            None => tracing::warn!("the store answers again"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HANGS: Option<Option<Waits>> = Some(Some(Waits::Hangs));
    const BUSY: Option<Option<Waits>> = Some(Some(Waits::Busy));
    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn the_oldest_call_inside_tells_for_how_long_nothing_is_answered() {
        let silence = Silence::default();
        assert_eq!(silence.lasts(Instant(100 * SECOND)), None);
        let first = silence.enter(Instant(SECOND));
        let second = silence.enter(Instant(2 * SECOND));
        let lasts = |at| silence.lasts(Instant(at * SECOND)).map(|d| d.as_secs());
        assert_eq!(lasts(13), Some(12));
        drop(first);
        assert_eq!(lasts(13), Some(11));
        drop(second);
        assert_eq!(lasts(13), None);
    }

    #[test]
    fn a_disk_that_works_is_busy_and_one_that_does_not_hangs() {
        let silence = Silence::default();
        let look = |at, done| silence.look(Instant(at * SECOND), || done);
        assert_eq!(look(99, Some(0)), None);
        let call = silence.enter(Instant(100 * SECOND));
        // It does nothing at first, as far as anybody knows.
        assert_eq!(look(101, Some(7)), None);
        assert_eq!(look(109, Some(7)), None);
        assert_eq!(look(110, Some(7)), HANGS);
        assert_eq!(look(111, Some(7)), None, "told already");
        assert_eq!(look(112, Some(8)), BUSY);
        assert_eq!(look(121, Some(8)), None);
        assert_eq!(look(122, Some(8)), HANGS);
        drop(call);
        assert_eq!(look(123, Some(8)), Some(None));
        // What it did before the next call says nothing about that.
        let call = silence.enter(Instant(200 * SECOND));
        assert_eq!(look(201, Some(8)), None);
        assert_eq!(look(203, Some(9)), None);
        assert_eq!(look(210, Some(9)), BUSY);
        assert_eq!(look(213, Some(9)), HANGS);
        drop(call);
        assert_eq!(look(214, None), Some(None));
        // Nobody knows what it does.
        let _call = silence.enter(Instant(300 * SECOND));
        assert_eq!(look(309, None), None);
        assert_eq!(look(310, None), HANGS);
    }

    #[test]
    fn calls_that_hang_do_not_hinder_others() {
        let silence = Silence::default();
        let hang: Vec<_> = (0..2 * WATCHED)
            .map(|_| silence.enter(Instant(SECOND)))
            .collect();
        drop(silence.enter(Instant(2 * SECOND)));
        assert!(silence.lasts(Instant(20 * SECOND)).is_some());
        drop(hang);
        assert!(silence.lasts(Instant(20 * SECOND)).is_none());
    }
}
