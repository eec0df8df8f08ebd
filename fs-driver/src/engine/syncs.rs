//! Syncs of the store: a failed one is remembered.
//!
//! The kernel tells of a write that it could not bring to the disk once, to whoever asks
//! first; asked again, it succeeds, with what was lost forgotten. So one sync that succeeds
//! means something only if no other one has failed since the changes in question were made:
//! not before it, nor beside it (invariants 2, 3 and 12).

use std::collections::BTreeSet;
use std::io;

use parking_lot::{Condvar, Mutex};
use twinfold_protocol::ids::SessionId;

use super::standby::of_session;
use super::{Engine, StandbyError};

/// The syncs that run, and how many have failed in this run of the driver.
#[derive(Debug, Default)]
pub(super) struct Syncs {
    state: Mutex<State>,
    ended: Condvar,
}

#[derive(Debug, Default)]
struct State {
    next: u64,
    running: BTreeSet<u64>,
    failed: u64,
    /// One has failed since this copy was last equal to another one.
    lossy: bool,
}

impl Syncs {
    /// Runs a sync.
    fn run(&self, sync: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        let number = {
            let mut state = self.state.lock();
            let number = state.next;
            state.next += 1;
            state.running.insert(number);
            number
        };
        let done = sync();
        let mut state = self.state.lock();
        state.running.remove(&number);
        if done.is_err() {
            state.failed += 1;
            state.lossy = true;
        }
        drop(state);
        self.ended.notify_all();
        done
    }

    /// How many have failed.
    pub(super) fn failed(&self) -> u64 {
        self.state.lock().failed
    }

    /// How many have failed when those that run now have ended: one of them may have been
    /// told what another one, that ended well, was not.
    pub(super) fn settled(&self) -> u64 {
        let mut state = self.state.lock();
        let end = state.next;
        while state.running.first().is_some_and(|first| *first < end) {
            self.ended.wait(&mut state);
        }
        state.failed
    }

    /// Whether this copy may have lost something that nobody has made good.
    pub(super) fn is_lossy(&self) -> bool {
        self.state.lock().lossy
    }

    /// Everything was compared or moved, and flushed, and none has failed beyond the first
    /// `failed` ones.
    fn made_good(&self, failed: u64) {
        let mut state = self.state.lock();
        state.lossy &= state.failed != failed;
    }
}

impl Engine {
    /// Flushes the store.
    pub(super) fn sync_store(&self) -> io::Result<()> {
        self.sync_counted(|| self.store.sync_all())
    }

    /// Runs a sync of the store or of a part of it, and remembers it when it fails.
    pub(super) fn sync_counted(&self, sync: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        self.syncs.run(sync)
    }

    /// Flushes the store for a session: everything that was changed in it is on the disk.
    pub(super) fn flush_session(&self, session: SessionId) -> Result<(), StandbyError> {
        let failed = |source| StandbyError::Put { op: "sync", source };
        self.sync_store().map_err(failed)?;
        let failures = self.syncs.settled();
        let mut standby = self.standby.lock();
        match of_session(&mut standby, session)?.is_flushed(failures) {
            true => Ok(()),
            false => Err(failed(io::Error::other(
                "an earlier sync of this copy has failed, and what it lost is not known",
            ))),
        }
    }

    /// The resync of this copy has ended: what syncs had lost before is there again.
    pub(super) fn copy_is_made_good(&self, failures: u64) {
        self.syncs.made_good(failures);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, mpsc};
    use std::time::Duration;

    use twinfold_protocol::handshake::{CopyState, Decision, Method, Role, Which};
    use twinfold_protocol::ids::{Epoch, Generation, ModuleId, Seq};
    use twinfold_protocol::op::Op;
    use twinfold_protocol::time::Timestamp;
    use twinfold_protocol::wire::{Account, Hello, OpStreamStart, Receipt, encode_op};

    use super::*;
    use crate::engine::Due;
    use crate::engine::bed::opened;
    use crate::engine::standby::Left;

    const PATIENCE: Duration = Duration::from_secs(60);

    /// A node with a copy of its own in a directory of its own.
    struct Bed {
        engine: Arc<Engine>,
        sessions: u64,
        _place: tempfile::TempDir,
    }

    impl Bed {
        fn new(good_copy: bool) -> Bed {
            let (engine, place) = opened(good_copy);
            Bed {
                engine,
                sessions: 0,
                _place: place,
            }
        }

        /// A secondary whose resync begins.
        fn target() -> Bed {
            let mut bed = Bed::new(false);
            bed.engine.start_secondary().unwrap();
            bed.begin();
            bed
        }

        /// A secondary that is up to date.
        fn current() -> Bed {
            let mut bed = Bed::target();
            assert!(matches!(bed.sync(Op::ResyncEnd), Ok(Some(_))));
            assert!(bed.up_to_date());
            bed
        }

        fn begin(&mut self) {
            self.sessions += 1;
            let session = SessionId(self.sessions.into());
            let primary = Hello {
                versions: Hello::VERSIONS,
                name: "vm".into(),
                role: Role::Primary,
                copy: CopyState {
                    module: ModuleId(5),
                    current: Generation(6),
                    up_to_date: true,
                    ..CopyState::default()
                },
                epoch: Epoch(9),
                resume: None,
                account: Account::default(),
            };
            let decision = Decision::Resync {
                source: Which::Peer,
                method: Method::Marks,
            };
            self.engine
                .standby_begin(session, decision, &primary)
                .unwrap();
            self.start(Seq(1));
        }

        /// The op stream begins, or goes on over the next connection.
        fn start(&self, first: Seq) {
            let start = OpStreamStart {
                session: SessionId(self.sessions.into()),
                first,
                stable: true,
            };
            self.engine.standby_start(start).unwrap();
        }

        /// Applies an op that asks for a sync, and waits for what comes of it.
        fn sync(&mut self, op: Op) -> Result<Option<Receipt>, StandbyError> {
            let seq = self
                .engine
                .standby
                .lock()
                .as_ref()
                .unwrap()
                .applied()
                .next();
            // Without the length in front.
            let frame = encode_op(seq, Timestamp::default(), &op)
                .to_bytes()
                .slice(4..);
            let Due::Sync(job) = self.engine.standby_apply(frame.into()).unwrap() else {
                panic!("no sync")
            };
            let (done, result) = mpsc::channel();
            self.engine.standby_sync(job, move |r| drop(done.send(r)));
            result.recv_timeout(PATIENCE).unwrap()
        }

        fn leave(&self) -> mpsc::Receiver<io::Result<Left>> {
            let (done, left) = mpsc::channel();
            self.engine.standby_leave(move |l| drop(done.send(l)));
            left
        }

        fn up_to_date(&self) -> bool {
            self.engine.copy().copy.up_to_date
        }

        fn fail(&self) {
            let lost = || Err(io::Error::from_raw_os_error(5));
            self.engine.sync_counted(lost).unwrap_err();
        }
    }

    #[test]
    fn a_secondary_whose_syncs_all_succeeded_leaves_flushed() {
        let bed = Bed::current();
        let left = bed.leave().recv_timeout(PATIENCE).unwrap().unwrap();
        assert!(left.flushed && left.was_current);
        assert!(!bed.up_to_date());
        bed.engine.stop().unwrap();
        assert!(bed.engine.copy().clean);
    }

    #[test]
    fn a_secondary_of_which_a_sync_failed_does_not_leave_flushed_although_the_next_one_succeeds() {
        let bed = Bed::current();
        bed.fail();
        let left = bed.leave().recv_timeout(PATIENCE).unwrap().unwrap();
        assert!(!left.flushed);
        assert!(!bed.up_to_date());
    }

    #[test]
    fn a_sync_that_fails_beside_the_last_one_counts() {
        let bed = Bed::current();
        let (begun, runs) = mpsc::channel();
        let (release, released) = mpsc::channel();
        let engine = bed.engine.clone();
        let beside = std::thread::spawn(move || {
            engine.sync_counted(|| {
                begun.send(()).unwrap();
                released.recv().unwrap();
                Err(io::Error::from_raw_os_error(5))
            })
        });
        runs.recv_timeout(PATIENCE).unwrap();
        let left = bed.leave();
        // The leave has flushed by then, or waits in its turn: it is not told before.
        let early = left.recv_timeout(Duration::from_millis(200));
        assert!(early.is_err(), "{early:?}");
        release.send(()).unwrap();
        assert!(!left.recv_timeout(PATIENCE).unwrap().unwrap().flushed);
        beside.join().unwrap().unwrap_err();
    }

    #[test]
    fn a_resync_does_not_end_well_when_a_sync_failed_since_it_began() {
        let mut bed = Bed::target();
        bed.fail();
        assert!(bed.sync(Op::ResyncEnd).is_err());
        assert!(!bed.up_to_date());
        assert!(bed.engine.standby_resume().unwrap().is_none());
        // The next one compares what the first one lost.
        bed.begin();
        assert!(matches!(bed.sync(Op::ResyncEnd), Ok(Some(_))));
        assert!(bed.up_to_date());
        assert!(!bed.engine.syncs.is_lossy());
    }

    #[test]
    fn a_checkpoint_is_not_confirmed_when_a_sync_beside_it_failed() {
        let mut bed = Bed::current();
        assert!(matches!(bed.sync(Op::Checkpoint), Ok(Some(_))));
        bed.fail();
        assert!(bed.sync(Op::Checkpoint).is_err());
        assert!(!bed.up_to_date());
    }

    /// In mode `disk`: the sync was asked for over a connection that is gone, and a writer
    /// with one write at a time sends nothing more before that one is acknowledged.
    #[test]
    fn what_a_sync_brought_to_the_disk_is_told_over_the_connection_that_there_is_then() {
        let bed = Bed::current();
        let engine = &bed.engine;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .unwrap();
        let woken = |patience| {
            let woken = async { tokio::time::timeout(patience, engine.synced.notified()).await };
            runtime.block_on(woken).is_ok()
        };
        // By the end of the resync.
        woken(Duration::ZERO);
        let job = engine.standby_stable_job().unwrap();
        assert!(engine.standby_receipt().is_some());
        bed.start(Seq(2));
        assert!(engine.standby_receipt().is_some(), "all is told again");
        engine.standby_sync(job, drop);
        assert!(woken(PATIENCE));
        assert_eq!(
            engine.standby_receipt(),
            Some(Receipt::Applied {
                applied: Seq(1),
                durable: Seq(1)
            })
        );
    }

    #[test]
    fn a_run_in_which_a_flush_failed_does_not_end_as_a_clean_one() {
        for fails in [false, true] {
            let bed = Bed::new(true);
            bed.engine.start_primary(false).unwrap();
            if fails {
                bed.fail();
            }
            bed.engine.stop().unwrap();
            assert_eq!(bed.engine.copy().clean, !fails);
        }
    }

    #[test]
    fn notes_stay_when_a_flush_failed() {
        for fails in [false, true] {
            let bed = Bed::new(true);
            bed.engine.start_primary(false).unwrap();
            let note = twinfold_protocol::marks::Intent::File {
                file: twinfold_protocol::ids::FileId::ROOT,
            };
            bed.engine.intents.ensure(&[note]).unwrap();
            if fails {
                bed.fail();
            }
            bed.engine.checkpoint();
            assert_eq!(bed.engine.intents.has_notes(), fails);
        }
    }
}
