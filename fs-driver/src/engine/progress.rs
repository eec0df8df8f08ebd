//! How far a resync is: percent, rate, time left, on either node.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use serde::Serialize;
use twinfold_protocol::time::Instant;
use twinfold_protocol::wire::{Phase, Progress};

/// The rate is taken over about this long: long enough not to jump, short enough to
/// follow a change of the load.
const OVER: Duration = Duration::from_secs(10);

/// Between two samples of it.
const SAMPLE: Duration = Duration::from_millis(500);

/// The most that is shown before the end.
const ALMOST: f64 = 99.9;

/// A running resync, or the last one.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub struct ResyncStatus {
    /// `comparing`, `moving`, `flushing`, and `done` or `interrupted` afterwards.
    pub phase: &'static str,
    /// How much of the phase is done, 0 to 100.
    pub percent: f64,
    /// Bytes of file data that were found to be moved when the moving began.
    pub marked_bytes: u64,
    /// Bytes of file data moved so far.
    pub moved_bytes: u64,
    /// Bytes of file data that were compared.
    pub compared_bytes: u64,
    /// Bytes compared or moved in a second, of late.
    pub rate: f64,
    /// Seconds until the phase ends at this rate, if that can be said.
    pub seconds_left: Option<f64>,
}

/// Follows one resync after the other.
#[derive(Debug, Default)]
pub(super) struct Tracker {
    run: Mutex<Option<Run>>,
    begun: AtomicU64,
}

/// How far resyncs have come: it changes with what they do, and with nothing else.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Far {
    /// Resyncs that have begun.
    pub(super) begun: u64,
    /// The phase of the last one, what is done of it, and bytes moved.
    at: Option<(Phase, u64, u64)>,
}

#[derive(Debug)]
struct Run {
    phase: Phase,
    ended: Option<&'static str>,
    done: u64,
    total: u64,
    /// The most that was shown in this phase.
    shown: f64,
    marked: u64,
    moved: u64,
    compared: u64,
    /// When, what was done of the phase, and bytes of data.
    samples: VecDeque<(Instant, u64, u64)>,
}

impl Run {
    fn bytes(&self) -> u64 {
        match self.phase {
            Phase::Comparing => self.compared,
            _ => self.moved,
        }
    }

    fn enter(&mut self, now: Instant, phase: Phase) {
        self.phase = phase;
        (self.done, self.total, self.shown) = (0, 0, 0.0);
        self.samples = [(now, 0, self.bytes())].into();
    }

    fn sample(&mut self, now: Instant) {
        let last = self.samples.back().map_or(now, |s| s.0);
        if now.since(last) < SAMPLE {
            return;
        }
        self.samples.push_back((now, self.done, self.bytes()));
        while self.samples.len() > 2 && self.samples.get(1).is_some_and(|s| now.since(s.0) > OVER) {
            self.samples.pop_front();
        }
    }

    fn view(&mut self, now: Instant) -> ResyncStatus {
        let (phase, percent) = match (self.ended, self.phase) {
            (Some("done"), _) => ("done", 100.0),
            (Some(ended), _) => (ended, self.shown),
            (None, Phase::Comparing) => ("comparing", self.percent()),
            (None, Phase::Moving) => ("moving", self.percent()),
            (None, Phase::Flushing) => ("flushing", ALMOST),
        };
        self.shown = percent;
        let (mut rate, mut seconds_left) = (0.0, None);
        if let (Some((at, done, bytes)), None) = (self.samples.front(), self.ended) {
            let seconds = now.since(*at).as_secs_f64();
            if seconds > 0.0 {
                rate = self.bytes().saturating_sub(*bytes) as f64 / seconds;
                let speed = self.done.saturating_sub(*done) as f64 / seconds;
                let left = self.total.saturating_sub(self.done) as f64;
                if speed > 0.0 && self.phase != Phase::Flushing {
                    seconds_left = Some(left / speed);
                }
            }
        }
        ResyncStatus {
            phase,
            percent,
            marked_bytes: self.marked,
            moved_bytes: self.moved,
            compared_bytes: self.compared,
            rate,
            seconds_left,
        }
    }

    /// Never less than before, and never all before the end.
    fn percent(&self) -> f64 {
        let part = 100.0 * self.done as f64 / self.total.max(self.done).max(1) as f64;
        part.max(self.shown).min(ALMOST)
    }
}

impl Tracker {
    /// A resync begins.
    pub(super) fn begin(&self, now: Instant) {
        let mut run = Run {
            phase: Phase::Comparing,
            ended: None,
            done: 0,
            total: 0,
            shown: 0.0,
            marked: 0,
            moved: 0,
            compared: 0,
            samples: VecDeque::new(),
        };
        run.enter(now, Phase::Comparing);
        *self.run.lock() = Some(run);
        self.begun.fetch_add(1, Ordering::Relaxed);
    }

    fn change(&self, now: Instant, change: impl FnOnce(&mut Run)) {
        if let Some(run) = self.run.lock().as_mut().filter(|run| run.ended.is_none()) {
            change(run);
            run.sample(now);
        }
    }

    /// The comparison is so far.
    pub(super) fn compared(&self, now: Instant, done: u64, known: u64) {
        self.change(now, |run| {
            (run.done, run.total, run.compared) = (done, known, done);
        });
    }

    /// The moving begins: `marked` bytes of data, and `total` in all.
    pub(super) fn moves(&self, now: Instant, marked: u64, total: u64) {
        self.change(now, |run| {
            run.marked = marked;
            run.enter(now, Phase::Moving);
            run.total = total;
        });
    }

    /// So much more is done of the moving.
    pub(super) fn worked(&self, now: Instant, work: u64) {
        self.change(now, |run| run.done += work);
    }

    /// So many bytes of data are moved and applied in all.
    pub(super) fn moved(&self, now: Instant, moved: u64) {
        self.change(now, |run| run.moved = moved);
    }

    /// Everything is moved.
    pub(super) fn flushes(&self, now: Instant) {
        self.change(now, |run| run.enter(now, Phase::Flushing));
    }

    /// What the source says of its resync of this copy, and the bytes that arrived of it.
    pub(super) fn told(&self, now: Instant, told: Progress, moved: u64) {
        if self
            .run
            .lock()
            .as_ref()
            .is_none_or(|run| run.ended.is_some())
        {
            self.begin(now);
        }
        self.change(now, |run| {
            if run.phase != told.phase {
                run.enter(now, told.phase);
            }
            (run.done, run.total) = (told.done, told.total);
            run.moved = moved;
            if told.phase == Phase::Comparing {
                run.compared = told.done;
            }
        });
    }

    /// It has ended: with everything, or not.
    pub(super) fn ends(&self, complete: bool) {
        if let Some(run) = self.run.lock().as_mut().filter(|run| run.ended.is_none()) {
            run.ended = Some(if complete { "done" } else { "interrupted" });
        }
    }

    /// What to tell the target, while it runs.
    pub(super) fn to_tell(&self) -> Option<Progress> {
        let run = self.run.lock();
        let run = run.as_ref().filter(|run| run.ended.is_none())?;
        Some(Progress {
            phase: run.phase,
            done: run.done,
            total: run.total,
        })
    }

    /// For who waits for one to end.
    pub(super) fn far(&self) -> Far {
        let run = self.run.lock();
        Far {
            begun: self.begun.load(Ordering::Relaxed),
            at: run.as_ref().map(|run| (run.phase, run.done, run.moved)),
        }
    }

    /// For those who ask.
    pub(super) fn status(&self, now: Instant) -> Option<ResyncStatus> {
        self.run.lock().as_mut().map(|run| run.view(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Instant {
        Instant(1_000_000_000 + ms * 1_000_000)
    }

    #[test]
    fn percent_grows_and_is_never_all_before_the_end() {
        let tracker = Tracker::default();
        assert_eq!(tracker.status(at(0)), None);
        tracker.begin(at(0));
        let view = |ms| tracker.status(at(ms)).unwrap();
        let nothing = view(0);
        assert_eq!((nothing.phase, nothing.percent), ("comparing", 0.0));
        assert!(nothing.rate == 0.0 && nothing.seconds_left.is_none());
        let mut last = 0.0;
        // What there is to do comes to light as it is done.
        for (done, known) in [(10, 100), (50, 100), (50, 1000), (400, 1000), (1000, 1000)] {
            tracker.compared(at(done * 10), done, known);
            let percent = view(done * 10).percent;
            assert!((last..100.0).contains(&percent), "{percent} after {last}");
            last = percent;
        }
        tracker.moves(at(20_000), 600, 1000);
        assert_eq!(view(20_000).percent, 0.0);
        for n in 1..=25 {
            tracker.worked(at(20_000 + n * 1000), 40);
            tracker.moved(at(20_000 + n * 1000), n * 24);
        }
        let nearly = view(45_000);
        assert_eq!((nearly.phase, nearly.percent), ("moving", ALMOST));
        tracker.worked(at(46_000), 40);
        assert_eq!(view(46_000).percent, ALMOST, "more than was known");
        tracker.flushes(at(47_000));
        assert_eq!(
            (view(47_000).phase, view(47_000).percent),
            ("flushing", ALMOST)
        );
        tracker.ends(true);
        tracker.worked(at(48_000), 1);
        assert_eq!((view(48_000).phase, view(48_000).percent), ("done", 100.0));
        assert_eq!(tracker.to_tell(), None);
    }

    #[test]
    fn rate_and_time_left_follow_what_was_done_of_late() {
        let tracker = Tracker::default();
        tracker.begin(at(0));
        tracker.moves(at(0), 100_000, 100_000);
        // A hundred bytes a second for a while, then a thousand.
        for n in 1..=60 {
            tracker.moved(at(n * 1000), n * 100);
            tracker.worked(at(n * 1000), 100);
        }
        for n in 1..=20 {
            tracker.moved(at(60_000 + n * 1000), 6000 + n * 1000);
            tracker.worked(at(60_000 + n * 1000), 1000);
        }
        let status = tracker.status(at(80_000)).unwrap();
        assert!((status.rate - 1000.0).abs() < 1.0, "{}", status.rate);
        let left = status.seconds_left.unwrap();
        assert!((65.0..=75.0).contains(&left), "{left}");
        assert_eq!(status.percent, 26.0);
        let target = Tracker::default();
        target.told(at(0), tracker.to_tell().unwrap(), 5);
        let there = target.status(at(10)).unwrap();
        assert_eq!((there.phase, there.percent), ("moving", 26.0));
        target.ends(false);
        assert_eq!(target.status(at(10)).unwrap().phase, "interrupted");
    }
}
