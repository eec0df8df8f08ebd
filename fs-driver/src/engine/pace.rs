//! A limit on the bytes a resync reads and moves in a second, so that it leaves room for
//! what else uses the disks and the network.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use twinfold_protocol::time::Instant;

/// What may be spent at once after a pause: it bounds bursts, and how long a change of the
/// limit takes to show.
const BURST: Duration = Duration::from_millis(100);

/// Bytes in a second. No limit until one is set.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// Zero: no limit.
    limit: AtomicU64,
    /// When all that was spent so far has been paid for.
    paid: Mutex<Instant>,
}

impl Pace {
    /// Sets the limit; none lifts it.
    pub(super) fn set(&self, limit: Option<u64>) {
        self.limit.store(limit.unwrap_or(0), Ordering::Relaxed);
        // A debt at the old limit may be years at the new one.
        *self.paid.lock() = Instant::default();
    }

    /// The limit, if there is one.
    pub(super) fn limit(&self) -> Option<u64> {
        Some(self.limit.load(Ordering::Relaxed)).filter(|limit| *limit > 0)
    }

    /// How long nothing more may be spent; zero if something may be now.
    pub(super) fn wait(&self, now: Instant) -> Duration {
        match self.limit() {
            None => Duration::ZERO,
            Some(_) => self.paid.lock().since(now),
        }
    }

    /// These bytes were read or moved.
    pub(super) fn spent(&self, now: Instant, bytes: u64) {
        let Some(limit) = self.limit() else { return };
        let cost = Duration::from_secs_f64(bytes as f64 / limit as f64);
        let mut paid = self.paid.lock();
        let from = match now.since(*paid) > BURST {
            true => Instant(now.0.saturating_sub(BURST.as_nanos() as u64)),
            false => *paid,
        };
        *paid = from.after(cost);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Spends pieces of `piece` bytes whenever that is allowed, for `time`.
    fn spend(pace: &Pace, from: Instant, time: Duration, piece: u64) -> u64 {
        let (mut now, mut bytes) = (from, 0);
        while now.since(from) < time {
            let wait = pace.wait(now);
            if wait.is_zero() {
                pace.spent(now, piece);
                bytes += piece;
            }
            now = now.after(wait.max(Duration::from_micros(50)));
        }
        bytes
    }

    #[test]
    fn what_is_spent_keeps_to_the_limit_also_after_a_pause_and_a_change() {
        let pace = Pace::default();
        let start = Instant(3_600_000_000_000);
        let second = Duration::from_secs(1);
        assert!(spend(&pace, start, second / 100, 4096) > 10 * 4096);
        pace.set(Some(1 << 20));
        for later in [0, 1, 100] {
            let bytes = spend(&pace, start.after(second * later), second, 64 << 10);
            let most = (1 << 20) + (1 << 20) / 10 + (128 << 10);
            assert!(((1 << 20) - (64 << 10)..=most).contains(&bytes), "{bytes}");
        }
        // A large debt is forgotten with the limit it was made under.
        pace.spent(start.after(second * 200), 1 << 40);
        pace.set(Some(8 << 20));
        let bytes = spend(&pace, start.after(second * 201), second, 64 << 10);
        assert!(bytes > 7 << 20, "{bytes}");
        pace.set(None);
        assert_eq!(pace.wait(start), Duration::ZERO);
    }
}
