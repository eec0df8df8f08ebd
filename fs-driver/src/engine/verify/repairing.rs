//! Repairing what a verify found: the secondary leaves, and comes back to a resync.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use twinfold_protocol::ids::SessionId;
use twinfold_protocol::primary::Link;
use twinfold_protocol::time::Instant;

use super::super::progress::Far;
use super::super::{Engine, clock};
use super::{LEASE, LOOK, Run, VerifyError, VerifyState};

/// How long a repair may make no progress before it is given up.
const REPAIR_STALL: Duration = Duration::from_secs(60);

/// How many resyncs may begin for it. A few may break off with their connections; who begins
/// more has a reason that stays.
const REPAIR_TRIES: u64 = 8;

/// What is waited for.
#[derive(Debug)]
struct Waiting {
    stall: Duration,
    begun: u64,
    seen: Far,
    since: Instant,
}

impl Waiting {
    fn new(now: Instant, stall: Duration, far: Far) -> Waiting {
        Waiting {
            stall,
            begun: far.begun,
            seen: far,
            since: now,
        }
    }

    /// Resyncs have come so far. Whatever else happens, what the application writes among it,
    /// is no progress.
    fn look(&mut self, now: Instant, far: Far) -> Result<(), VerifyError> {
        if self.seen != far {
            (self.seen, self.since) = (far, now);
        }
        let often = far.begun - self.begun > REPAIR_TRIES;
        match often || now.since(self.since) > self.stall {
            true => Err(VerifyError::NotRepaired),
            false => Ok(()),
        }
    }
}

impl Engine {
    /// Ends the session in order. The secondary's copy then is, durably, not up to date, and
    /// it comes back to a resync that moves what differs.
    pub(super) fn verify_repair(
        self: &Arc<Self>,
        run: &Run,
        session: SessionId,
    ) -> Result<(), VerifyError> {
        if self.core.lock().differing().is_empty() {
            return Ok(());
        }
        run.set(VerifyState::Repairing);
        self.verify.ask_to_rejoin(session);
        self.wait_for_repair(run, session, REPAIR_STALL + self.verify_patience())?;
        let mut report = run.report.lock();
        for finding in &mut report.findings {
            finding.repaired = !matches!(finding.what, "foreign" | "unreadable");
        }
        Ok(())
    }

    /// Until the nodes are paired in a later session than `session`.
    fn wait_for_repair(
        &self,
        run: &Run,
        session: SessionId,
        stall: Duration,
    ) -> Result<(), VerifyError> {
        let begun = clock::now();
        let mut waiting = Waiting::new(begun, stall, self.tracker.far());
        let mut left = false;
        loop {
            run.check()?;
            let (link, now, moved) = {
                let core = self.core.lock();
                (core.link(), core.session(), core.progress().moved_bytes)
            };
            if now == Some(session) {
                if clock::now().since(begun) > self.verify_patience() + LEASE {
                    *self.verify.rejoin.lock() = None;
                    return Err(VerifyError::NotLeft);
                }
            } else {
                if !left {
                    left = true;
                    waiting = Waiting::new(clock::now(), stall, waiting.seen);
                }
                run.moved.store(moved, Ordering::Relaxed);
                if link == Link::Paired {
                    return Ok(());
                }
                waiting.look(clock::now(), self.tracker.far())?;
            }
            std::thread::sleep(LOOK);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;
    use std::sync::mpsc;

    use twinfold_protocol::ids::FileId;

    use super::super::super::bed::{PATIENCE, opened};
    use super::super::VerifyOptions;
    use super::*;

    const STALL: Duration = Duration::from_secs(5);

    /// The peer does not come back, and the application never rests.
    #[test]
    fn a_repair_that_makes_no_progress_is_given_up_under_load_too() {
        let (engine, _place) = opened(true);
        engine.start_primary(false).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let (marking, ended) = (engine.clone(), stop.clone());
        let load = std::thread::spawn(move || {
            for n in 5000.. {
                if ended.load(Ordering::Relaxed) {
                    return;
                }
                let mark = |map: &mut twinfold_protocol::marks::DirtyMap| {
                    map.mark_attributes(FileId(n));
                };
                marking.core.lock().mark(mark);
                std::thread::sleep(Duration::from_millis(10));
            }
        });
        let (done, result) = mpsc::channel();
        let (waiting, run) = (
            engine.clone(),
            Arc::new(Run::new(1, VerifyOptions::default())),
        );
        let running = run.clone();
        std::thread::spawn(move || {
            let stall = Duration::from_millis(500);
            done.send(waiting.wait_for_repair(&running, SessionId(1), stall))
        });
        let waited = result.recv_timeout(PATIENCE / 2);
        run.cancelled.store(true, Ordering::Relaxed);
        stop.store(true, Ordering::Relaxed);
        load.join().unwrap();
        assert!(
            matches!(waited, Ok(Err(VerifyError::NotRepaired))),
            "{waited:?}"
        );
    }

    #[test]
    fn a_repair_may_take_as_long_as_it_makes_progress_but_not_begin_for_ever() {
        let tracker = super::super::super::progress::Tracker::default();
        let at = |s: u64| Instant(1_000_000_000 * s);
        let mut waiting = Waiting::new(at(0), STALL, tracker.far());
        tracker.begin(at(0));
        for n in 1..100 {
            tracker.compared(at(n * 4), n, 1000);
            waiting.look(at(n * 4), tracker.far()).unwrap();
        }
        tracker.moves(at(400), 1000, 1000);
        for n in 100..200 {
            tracker.moved(at(n * 4), n);
            waiting.look(at(n * 4), tracker.far()).unwrap();
        }
        assert!(waiting.look(at(802), tracker.far()).is_err());
        let mut waiting = Waiting::new(at(0), STALL, tracker.far());
        for n in 1..=REPAIR_TRIES {
            tracker.begin(at(n));
            waiting.look(at(n), tracker.far()).unwrap();
        }
        tracker.begin(at(9));
        assert!(waiting.look(at(9), tracker.far()).is_err());
    }
}
