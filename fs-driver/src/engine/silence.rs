//! Notices a store that does not answer: a disk that hangs instead of failing.
//!
//! The calls of the application that are inside the store are counted by when they began.
//! What hangs may still be carried out, and can neither be answered nor taken back; so
//! nothing is decided because of it. The operator is told.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use twinfold_protocol::time::Instant;

use super::{Engine, clock};

/// How long a call may be inside the store before that is told: longer than a sound disk
/// takes under any load, shorter than what an operator would look for first.
const TOLD_AFTER: Duration = Duration::from_secs(10);

/// Calls that are watched at once. One beyond that is not: if the store hangs, others do.
const WATCHED: usize = 64;

/// Since when the calls are under way that are inside the store.
#[derive(Debug)]
pub(super) struct Silence {
    /// Nanoseconds of the clock; 0: free.
    since: [AtomicU64; WATCHED],
    /// Where the next one looks for a place.
    next: AtomicU64,
    told: AtomicBool,
}

impl Default for Silence {
    fn default() -> Silence {
        Silence {
            since: [const { AtomicU64::new(0) }; WATCHED],
            next: AtomicU64::new(0),
            told: AtomicBool::new(false),
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

    /// For how long the oldest call has been inside, if that is too long.
    fn lasts(&self, now: Instant) -> Option<Duration> {
        let all = self.since.iter().map(|p| p.load(Ordering::Relaxed));
        let oldest = all.filter(|since| *since != 0).min()?;
        let lasts = now.since(Instant(oldest));
        (lasts >= TOLD_AFTER).then_some(lasts)
    }
}

impl Engine {
    /// A call enters the store; what it does there is over when the guard is dropped.
    pub(crate) fn inside(&self) -> Inside<'_> {
        self.silence.enter(clock::now())
    }

    /// For how many seconds the store has not answered, if that is too long.
    pub(super) fn silent_seconds(&self) -> Option<u64> {
        self.silence.lasts(clock::now()).map(|d| d.as_secs())
    }

    /// Says once that the store hangs, and once that it does not any more.
    pub(super) fn tell_silence(&self) {
        let lasts = self.silence.lasts(clock::now());
        let told = self.silence.told.swap(lasts.is_some(), Ordering::Relaxed);
        match lasts {
            Some(lasts) if !told => tracing::error!(
                "the store has not answered for {} s: its disk hangs. If it does not come back, end \
                 this node, and be it by its power, and run `promote` on the peer",
                lasts.as_secs()
            ),
            None if told => tracing::warn!("the store answers again"),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn the_oldest_call_inside_tells_for_how_long_nothing_is_answered() {
        let silence = Silence::default();
        assert_eq!(silence.lasts(Instant(100 * SECOND)), None);
        let first = silence.enter(Instant(SECOND));
        let second = silence.enter(Instant(2 * SECOND));
        assert_eq!(silence.lasts(Instant(10 * SECOND)), None);
        let lasts = |at| silence.lasts(Instant(at * SECOND)).map(|d| d.as_secs());
        assert_eq!(lasts(13), Some(12));
        drop(first);
        assert_eq!(lasts(13), Some(11));
        drop(second);
        assert_eq!(lasts(13), None);
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
