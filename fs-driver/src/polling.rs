//! Polling for a moment before the link's thread sleeps.
//!
//! A peer answers within some tens of microseconds, and to put a core to sleep and to wake it
//! again takes as long, in a virtual machine longer. So while an answer is expected soon, a task
//! keeps the link's thread awake: it looks at its sockets again and again instead of waiting
//! for them, as Linux does for its virtual processors
//! (Documentation/virt/kvm/halt-polling.rst). Whether that pays is learnt from the answers
//! before: where more than a third of them were slow it does not, and nobody polls.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::Notify;

use crate::engine::clock;

/// How long is polled for one answer at most; one that takes longer is slow. What Linux takes
/// for a virtual processor (`halt_poll_ns`).
const MOST: Duration = Duration::from_micros(200);

/// Points for answers that came soon are kept up to this; one that is slow costs two.
const MOST_POINTS: u64 = 8;

/// With as many it is polled.
const ENOUGH_POINTS: u64 = 4;

/// What is expected. Each is learnt for itself: where the peer is near and its disk is slow,
/// it pays for one of them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum What {
    /// The answer to a change, or the next one behind an answer.
    Change,
    /// That the peer has synced what this node has synced just now.
    Sync,
}

/// Whether an answer is expected, and for how long it is worth polling for.
#[derive(Debug)]
pub(crate) struct Polling {
    /// Since when, in nanoseconds of the clock, whose last bit tells what; 0: nothing is.
    expected: AtomicU64,
    /// What the answers before were worth, of each.
    points: [AtomicU64; 2],
    begins: Notify,
    /// Another core can do what is waited for.
    possible: bool,
    #[cfg(test)]
    looks: AtomicU64,
}

impl Polling {
    pub(crate) fn new() -> Polling {
        Polling {
            expected: AtomicU64::new(0),
            points: Default::default(),
            begins: Notify::new(),
            possible: std::thread::available_parallelism().is_ok_and(|cores| cores.get() > 1),
            #[cfg(test)]
            looks: AtomicU64::new(0),
        }
    }

    /// An answer is expected from now on, if none is already. Returns whether to [`begin`]
    /// when the question is on its way.
    ///
    /// [`begin`]: Polling::begin
    pub(crate) fn expect(&self, what: What) -> bool {
        let since = clock::now().0 & !1 | what as u64;
        let new = self
            .expected
            .compare_exchange(0, since, Ordering::Relaxed, Ordering::Relaxed);
        let worth = || self.points[what as usize].load(Ordering::Relaxed) >= ENOUGH_POINTS;
        new.is_ok() && self.possible && worth()
    }

    /// Has the link's thread poll for what is expected, if that has not come already.
    pub(crate) fn begin(&self) {
        self.begins.notify_one();
    }

    #[cfg(test)]
    pub(crate) fn expects(&self) -> bool {
        self.expected.load(Ordering::Relaxed) != 0
    }

    /// It has come.
    pub(crate) fn came(&self) {
        let since = self.expected.swap(0, Ordering::Relaxed);
        if since != 0 {
            let waited = clock::now().0.saturating_sub(since);
            let points = &self.points[(since & 1) as usize];
            points.store(
                after(points.load(Ordering::Relaxed), waited),
                Ordering::Relaxed,
            );
        }
    }

    /// Keeps the thread of the current runtime awake while an answer is expected soon.
    pub(crate) async fn run(&self) {
        loop {
            self.begins.notified().await;
            let since = self.expected.load(Ordering::Relaxed);
            if since == 0 {
                continue; // It has come.
            }
            let until = since.saturating_add(MOST.as_nanos() as u64);
            while self.expected.load(Ordering::Relaxed) == since && clock::now().0 < until {
                #[cfg(test)]
                self.looks.fetch_add(1, Ordering::Relaxed);
                // Whoever else has something to do on this core goes first.
                std::thread::yield_now();
                // The runtime looks at its sockets, without waiting, before it comes back here.
                tokio::task::yield_now().await;
            }
        }
    }
}

/// The points after an answer that took `waited` nanoseconds.
fn after(points: u64, waited: u64) -> u64 {
    match waited <= MOST.as_nanos() as u64 {
        true => (points + 1).min(MOST_POINTS),
        false => points.saturating_sub(2),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: u64 = MOST.as_nanos() as u64;
    const SLOW: u64 = SOON + 1;

    /// Whether it is polled after these answers, over and over.
    fn polls(answers: &[u64]) -> bool {
        let all = std::iter::repeat_n(answers, 100).flatten();
        all.fold(0, |points, waited| after(points, *waited)) >= ENOUGH_POINTS
    }

    #[test]
    fn it_pays_where_most_answers_come_soon() {
        assert!(polls(&[SOON]));
        assert!(!polls(&[SLOW]));
        assert!(polls(&[SLOW, SOON, SOON, SOON]));
        assert!(!polls(&[SOON, SLOW]));
        // A few answers tell whether that has changed.
        let later = |points, waited| (0..4).fold(points, |points, _| after(points, waited));
        assert!(later(0, SOON) >= ENOUGH_POINTS);
        assert!(later(MOST_POINTS, SLOW) < ENOUGH_POINTS);
    }

    #[test]
    fn only_while_an_answer_is_expected_soon_the_thread_is_kept_awake() {
        let polling = Polling {
            possible: true,
            ..Polling::new()
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .unwrap();
        // Longer than what is polled for.
        let a_while = || {
            let before = polling.looks.load(Ordering::Relaxed);
            let wait = async { tokio::time::timeout(10 * MOST, polling.run()).await };
            runtime.block_on(wait).unwrap_err();
            polling.looks.load(Ordering::Relaxed) - before
        };
        let trust = |points| polling.points[0].store(points, Ordering::Relaxed);
        trust(MOST_POINTS);
        assert_eq!(a_while(), 0, "nothing is expected");
        assert!(polling.expect(What::Change));
        assert!(!polling.expect(What::Change), "it is already");
        polling.begin();
        assert!(a_while() > 0);
        assert_eq!(a_while(), 0, "it is given up in time");
        polling.came();
        assert_eq!(polling.points[0].load(Ordering::Relaxed), MOST_POINTS - 2);
        assert!(polling.expect(What::Change));
        polling.came();
        polling.begin();
        assert_eq!(a_while(), 0, "it has come");
        trust(ENOUGH_POINTS - 1);
        assert!(!polling.expect(What::Change), "it will be slow");
        assert!(!polling.expect(What::Sync), "it is expected already");
        polling.came();
        // Nothing is known of the others.
        assert!(!polling.expect(What::Sync));
        polling.came();
        assert_eq!(polling.points[1].load(Ordering::Relaxed), 1);
        let alone = Polling {
            possible: false,
            ..Polling::new()
        };
        alone.points[0].store(MOST_POINTS, Ordering::Relaxed);
        assert!(
            !alone.expect(What::Change),
            "on one core nobody else gets on"
        );
    }
}
