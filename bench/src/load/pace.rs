//! When a step begins: as soon as the last one has ended, or at its time.
//!
//! In an open loop a step has a time at which it should begin, whatever the ones before
//! do, and its latency counts from there. A system that stands still for a second so has
//! a second's worth of late steps in its distribution, as an application with users
//! would, and not one slow step among fast ones.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;
use hdrhistogram::Histogram;

use super::Measured;

/// An open loop that is behind may go on for this many times its length to catch up.
const PATIENCE: u32 = 2;

/// Sleeping is exact to about this much; the rest is waited for awake.
const AWAKE: Duration = Duration::from_micros(100);

/// Time since the beginning.
pub(super) trait Clock {
    fn now(&mut self) -> Duration;
    fn wait(&mut self, until: Duration);
}

/// The clock on the wall.
pub(super) struct Real(Instant);

impl Real {
    pub(super) fn new(begin: Instant) -> Real {
        Real(begin)
    }
}

impl Clock for Real {
    fn now(&mut self) -> Duration {
        self.0.elapsed()
    }

    fn wait(&mut self, until: Duration) {
        let left = until.saturating_sub(self.0.elapsed());
        if left > AWAKE {
            std::thread::sleep(left - AWAKE);
        }
        while self.0.elapsed() < until {
            std::hint::spin_loop();
        }
    }
}

/// The beginnings of the steps that all workers do together.
#[derive(Debug)]
pub(crate) struct Pace {
    rate: Option<f64>,
    time: Duration,
    /// Steps of the open loop that have been taken.
    taken: AtomicU64,
}

impl Pace {
    /// Without a rate a closed loop.
    pub(crate) fn new(rate: Option<f64>, time: Duration) -> Pace {
        Pace {
            rate,
            time,
            taken: AtomicU64::new(0),
        }
    }

    /// Steps that an open loop has.
    fn total(&self, rate: f64) -> u64 {
        (rate * self.time.as_secs_f64()).ceil() as u64
    }

    /// One worker's part.
    pub(super) fn drive(
        &self,
        clock: &mut impl Clock,
        stop: &AtomicBool,
        step: &mut dyn FnMut() -> Result<u64>,
    ) -> Result<Measured> {
        let mut part = Measured::nothing()?;
        while !stop.load(Ordering::Relaxed) {
            let now = clock.now();
            let begin = match self.rate {
                // A thread that the machine let begin too late has a step all the same.
                None if now >= self.time && part.ops > 0 => break,
                None => now,
                Some(_) if now >= self.time * PATIENCE => break,
                Some(rate) => {
                    let n = self.taken.fetch_add(1, Ordering::Relaxed);
                    if n >= self.total(rate) {
                        break;
                    }
                    let begin = Duration::from_secs_f64(n as f64 / rate);
                    clock.wait(begin);
                    begin
                }
            };
            let bytes = step()?;
            part.count(clock.now().saturating_sub(begin), bytes);
        }
        Ok(part)
    }

    /// The steps that nobody has taken when it is over at `seconds`: each has waited from
    /// its time until then, at least.
    pub(super) fn unserved(&self, seconds: f64, into: &mut Histogram<u64>) -> Result<u64> {
        let Some(rate) = self.rate else {
            return Ok(0);
        };
        let first = self.taken.load(Ordering::Relaxed);
        let total = self.total(rate);
        for n in first..total {
            let waited = (seconds - n as f64 / rate).max(1e-9);
            into.saturating_record((waited * 1e9) as u64);
        }
        Ok(total.saturating_sub(first))
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::rc::Rc;

    use super::*;

    /// A clock that moves when told.
    #[derive(Clone, Default)]
    struct Model(Rc<Cell<Duration>>);

    impl Clock for Model {
        fn now(&mut self) -> Duration {
            self.0.get()
        }

        fn wait(&mut self, until: Duration) {
            self.0.set(self.0.get().max(until));
        }
    }

    const RUN: Duration = Duration::from_secs(1);
    const USUAL: Duration = Duration::from_micros(100);

    /// A run of one worker, whose step number `slow` takes `stall` and all others 100 us.
    fn run(rate: Option<f64>, slow: u64, stall: Duration) -> (Measured, u64) {
        let pace = Pace::new(rate, RUN);
        let mut clock = Model::default();
        let (time, mut n) = (clock.0.clone(), 0);
        let mut step = || {
            n += 1;
            time.set(time.get() + if n == slow { stall } else { USUAL });
            Ok(1)
        };
        let mut part = pace
            .drive(&mut clock, &AtomicBool::new(false), &mut step)
            .unwrap();
        let end = clock.now().as_secs_f64();
        let unserved = pace.unserved(end, &mut part.latencies).unwrap();
        (part, unserved)
    }

    fn millis(part: &Measured, quantile: f64) -> u64 {
        part.latencies.value_at_quantile(quantile) / 1_000_000
    }

    #[test]
    fn an_open_loop_counts_what_had_to_wait_for_a_stall() {
        let stall = Duration::from_millis(200);
        let (open, unserved) = run(Some(1000.0), 100, stall);
        assert_eq!((open.ops, unserved), (1000, 0));
        // A fifth of the second was stalled: every step of it is late, not one.
        assert!(millis(&open, 0.9) > 50, "{}", millis(&open, 0.9));
        let (closed, _) = run(None, 100, stall);
        assert_eq!(millis(&closed, 0.999), 0);
    }

    #[test]
    fn an_open_loop_on_time_has_the_latency_of_its_steps() {
        let (open, unserved) = run(Some(1000.0), 0, USUAL);
        assert_eq!((open.ops, unserved), (1000, 0));
        let usual = USUAL.as_nanos() as u64;
        assert!(open.latencies.max() <= usual + usual / 100);
    }

    #[test]
    fn what_a_system_did_not_get_to_is_in_its_latencies() {
        // Twice what it can do, for longer than patience lasts.
        let (open, unserved) = run(Some(40_000.0), 0, USUAL);
        assert_eq!(open.ops + unserved, 40_000);
        assert!(unserved > 15_000);
        assert_eq!(open.latencies.len(), 40_000);
        assert!(millis(&open, 0.99) >= 990);
    }

    #[test]
    fn a_closed_loop_does_as_much_as_goes() {
        let (closed, unserved) = run(None, 0, USUAL);
        assert_eq!((closed.ops, unserved), (10_000, 0));
        assert_eq!(closed.bytes, 10_000);
    }

    #[test]
    fn a_worker_that_begins_too_late_does_one_step() {
        let mut clock = Model::default();
        clock.wait(2 * RUN);
        let pace = Pace::new(None, RUN);
        let never = AtomicBool::new(false);
        let part = pace.drive(&mut clock, &never, &mut || Ok(1)).unwrap();
        assert_eq!((part.ops, part.bytes), (1, 1));
    }
}
