//! Syncs of the store: a failed one is remembered.
//!
//! The kernel tells of a write that it could not bring to the disk once, to whoever asks
//! first; asked again, it succeeds, with what was lost forgotten. So one sync that succeeds
//! means something only if no other one has failed since the changes in question were made:
//! not before it, nor beside it (invariants 2, 3 and 12).

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use twinfold_protocol::ids::SessionId;

use super::standby::of_session;
use super::{Engine, StandbyError, clock};
use crate::state::{no_room, not_now};
use crate::store::Node;

/// A sync of one file that takes less is quick: handing it to another thread, and its end back,
/// takes a good part of that time.
const QUICK: Duration = Duration::from_millis(1);

/// The syncs that run, and how many have failed in this run of the driver.
#[derive(Debug, Default)]
pub(super) struct Syncs {
    state: Mutex<State>,
    ended: Condvar,
    /// What the last one of a file took, in nanoseconds.
    took: AtomicU64,
    /// For tests: no sync gets on while they hold it.
    #[cfg(test)]
    held: Mutex<()>,
}

#[derive(Debug, Default)]
struct State {
    next: u64,
    running: BTreeSet<u64>,
    failed: u64,
    /// One has failed since this copy was last equal to another one.
    lossy: bool,
    /// One may have failed in an earlier run, and the page cache is still the same.
    doubtful: bool,
}

impl State {
    fn count(&mut self, done: &io::Result<()>) {
        if let Err(e) = done
            && has_lost(e)
        {
            self.failed += 1;
            self.lossy = true;
        }
    }
}

impl Syncs {
    /// Of a run that may find what an earlier one has left in the page cache, if `doubtful`.
    pub(super) fn after(doubtful: bool) -> Syncs {
        let syncs = Syncs::default();
        syncs.state.lock().doubtful = doubtful;
        syncs
    }

    /// Runs a sync.
    fn run(&self, sync: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        let number = {
            let mut state = self.state.lock();
            let number = state.next;
            state.next += 1;
            state.running.insert(number);
            number
        };
        #[cfg(test)]
        drop(self.held.lock());
        let done = sync();
        let mut state = self.state.lock();
        state.running.remove(&number);
        state.count(&done);
        drop(state);
        self.ended.notify_all();
        done
    }

    /// Something was lost, although no sync here has met it.
    pub(super) fn count(&self, done: &io::Result<()>) {
        self.state.lock().count(done);
    }

    /// Whether a sync of a file is worth waiting for on the thread that is asked for it.
    pub(super) fn is_quick(&self) -> bool {
        self.took.load(Ordering::Relaxed) < QUICK.as_nanos() as u64
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

    /// Whether the page cache may show what the disk does not have.
    pub(super) fn is_doubtful(&self) -> bool {
        let state = self.state.lock();
        state.lossy || state.doubtful
    }

    /// Everything was compared or moved, and flushed; that counts if none has failed beyond the
    /// first `failed` ones.
    fn made_good(&self, failed: u64) -> bool {
        let mut state = self.state.lock();
        let good = state.failed == failed;
        if good {
            (state.lossy, state.doubtful) = (false, false);
        }
        good
    }
}

/// Whether a sync that failed so tells of something lost. A full disk is an answer to who asks
/// for room, but not to who was told before that there is some.
pub(super) fn has_lost(error: &io::Error) -> bool {
    no_room(error) || !not_now(error)
}

impl Engine {
    /// Flushes the store.
    pub(super) fn sync_store(&self) -> io::Result<()> {
        self.sync_counted(|| self.store.sync_all())
    }

    /// Runs a sync of the store or of a part of it, and remembers it when it fails. What it
    /// tells of is gone here, for whatever reason, and the peer may have it: so a primary makes
    /// a peer that can take over do so, else this copy would be the source of the next resync.
    pub(super) fn sync_counted(&self, sync: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        let done = self.syncs.run(sync);
        self.heed(done)
    }

    /// What a failed sync means for this node.
    fn heed(&self, done: io::Result<()>) -> io::Result<()> {
        done.inspect_err(|e| {
            if has_lost(e) {
                self.disk_failed("a flush of the store", e);
            }
        })
    }

    /// Syncs one file, for somebody who asks for it.
    pub(super) fn sync_file(&self, node: &Node, data_only: bool) -> io::Result<()> {
        let done = self.sync_timed(|| self.store.sync(node, data_only));
        self.told(node, done)
    }

    /// Syncs one file before somebody asks for it, unless it cannot be begun. Who asks then has
    /// to look [whether all is there](Engine::all_is_there).
    pub(super) fn sync_ahead(&self, node: &Arc<Node>, data_only: bool) -> Option<io::Result<()>> {
        let ahead = self.store.ahead(node).ok()?;
        Some(self.sync_timed(|| ahead.sync(data_only)))
    }

    /// Fails as a sync of this file would that finds nothing to write.
    pub(super) fn all_is_there(&self, node: &Node) -> io::Result<()> {
        let done = self.heed(self.failed_before(node));
        self.told(node, done)
    }

    /// What the kernel has not told yet who asks for syncs of this file.
    fn failed_before(&self, node: &Node) -> io::Result<()> {
        let done = self.store.failed_before(node);
        self.syncs.count(&done);
        done
    }

    /// The kernel has said what there is to say of this file to who asks for syncs of it;
    /// returns what to tell.
    fn told(&self, node: &Node, done: io::Result<()>) -> io::Result<()> {
        if done.is_err() {
            self.store.forget_ahead(node);
        }
        self.foresight.told(node.file(), done)
    }

    /// Whether the kernel knows of nothing lost of a file that was synced ahead, on a secondary.
    pub(super) fn standby_all_is_there(&self, node: &Node) -> bool {
        self.told(node, self.failed_before(node)).is_ok()
    }

    fn sync_timed(&self, sync: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        let began = clock::now();
        let done = self.sync_counted(sync);
        let took = clock::now().since(began).as_nanos() as u64;
        self.syncs.took.store(took, Ordering::Relaxed);
        done
    }

    /// Runs what syncs a file and then tells its caller: on this thread, which is one that may
    /// wait, where that is soon done.
    pub(super) fn run_sync_job(self: &Arc<Self>, job: impl FnOnce() + Send + 'static) {
        // Behind one that was parked others wait.
        match self.syncs.is_quick() && !self.has_parked() {
            true => self.jobs.run_here(job),
            false => self.jobs.run(job),
        }
    }

    #[cfg(test)]
    pub(super) fn hold_syncs(&self) -> parking_lot::MutexGuard<'_, ()> {
        self.syncs.took.store(0, Ordering::Relaxed);
        self.syncs.held.lock()
    }

    #[cfg(test)]
    pub(super) fn seems_slow(&self) {
        let took = QUICK.as_nanos() as u64;
        self.syncs.took.store(took, Ordering::Relaxed);
    }

    /// How many were begun.
    #[cfg(test)]
    pub(super) fn syncs_begun(&self) -> u64 {
        self.syncs.state.lock().next
    }

    #[cfg(test)]
    pub(super) fn runs_a_sync(&self) -> bool {
        !self.syncs.state.lock().running.is_empty()
    }

    /// Flushes the store for a session: everything that was changed in it is on the disk.
    pub(super) fn flush_session(&self, session: SessionId) -> Result<(), StandbyError> {
        let failed = |source| StandbyError::Put { op: "sync", source };
        self.sync_store().map_err(failed)?;
        self.fails_if_failed(session, self.syncs.settled())
    }

    /// A sync of some files has succeeded in a session. It means something if no other one has
    /// failed in it: two of one file share a descriptor, of which one is told.
    pub(super) fn none_failed(&self, session: SessionId) -> Result<(), StandbyError> {
        self.fails_if_failed(session, self.syncs.failed())
    }

    /// Fails if of `failures` syncs one is of this session.
    fn fails_if_failed(&self, session: SessionId, failures: u64) -> Result<(), StandbyError> {
        let mut standby = self.standby.lock();
        match of_session(&mut standby, session)?.is_flushed(failures) {
            true => Ok(()),
            false => Err(StandbyError::Put {
                op: "sync",
                source: io::Error::other(
                    "an earlier sync of this copy has failed, and what it lost is not known",
                ),
            }),
        }
    }

    /// A resync of this copy, or of the peer's from it, has ended: what syncs had lost before
    /// is there again.
    pub(super) fn copy_is_made_good(&self, failures: u64) {
        if self.syncs.made_good(failures) {
            self.foresight.made_good();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::{Duration, Instant};

    use twinfold_protocol::attr::Kind;
    use twinfold_protocol::ids::{FileId, Seq, SessionId};
    use twinfold_protocol::op::{Name, Op, Stability, XattrMode};
    use twinfold_protocol::time::Timestamp;
    use twinfold_protocol::wire::{Receipt, encode_op};

    use super::*;
    use crate::engine::Due;
    use crate::engine::bed::{Bed, PATIENCE, made, newest, opened, paired, shipped};
    use crate::error::FsResult;

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

    /// The flush of a checkpoint may take as long as the disk does.
    #[test]
    fn writes_are_answered_while_the_flush_of_a_checkpoint_hangs() {
        let (engine, _place) = opened(true);
        engine.start_primary(false).unwrap();
        let root = engine.store.node(FileId::ROOT).unwrap();
        let object = made(engine.new_id().0, Kind::Regular);
        let name = Name::new(b"image").unwrap();
        let file = engine.store.create(&root, &name, &object).unwrap();
        paired(&engine);
        let write = || {
            let (answer, answered) = mpsc::channel();
            let data = bytes::Bytes::from_static(&[7; 4096]);
            let tell = move |r: FsResult<()>| answer.send(r.is_ok()).unwrap();
            engine.write(&file, 0, data, Stability::Mode, false, tell);
            shipped(&engine);
            let (applied, durable) = (newest(&engine), Seq(0));
            engine
                .receipt(Receipt::Applied { applied, durable })
                .unwrap();
            answered.recv_timeout(PATIENCE)
        };
        assert_eq!(write(), Ok(true));
        std::thread::scope(|scope| {
            let hangs = engine.syncs.held.lock();
            let checkpoint = scope.spawn(|| engine.checkpoint());
            let until = Instant::now() + PATIENCE;
            while engine.syncs.state.lock().running.is_empty() {
                assert!(Instant::now() < until, "no checkpoint begins");
                std::thread::sleep(Duration::from_millis(1));
            }
            for _ in 0..3 {
                assert_eq!(write(), Ok(true));
            }
            assert!(!checkpoint.is_finished());
            drop(hangs);
        });
        engine
            .core
            .lock()
            .peer_lost(crate::engine::clock::now(), "the test ends");
    }

    /// Its primary would drop it for not applying anything.
    #[test]
    fn a_secondary_that_stops_applies_changes_as_long_as_its_disk_has_much_to_write() {
        let bed = Bed::current();
        let change = |n: usize| Op::SetXattr {
            file: FileId::ROOT,
            name: bytes::Bytes::from_static(b"user.a"),
            value: vec![b'x'; n].into(),
            mode: XattrMode::Either,
        };
        std::thread::scope(|scope| {
            let hangs = bed.engine.syncs.held.lock();
            let stop = scope.spawn(|| bed.engine.stop());
            let until = Instant::now() + PATIENCE;
            while bed.engine.syncs.state.lock().running.is_empty() {
                assert!(Instant::now() < until, "it does not flush");
                std::thread::sleep(Duration::from_millis(1));
            }
            for n in 0..3 {
                assert!(matches!(bed.apply(&change(n)), Ok(Due::Nothing)));
            }
            assert!(!stop.is_finished());
            drop(hangs);
            stop.join().unwrap().unwrap();
        });
    }

    /// The kernel has told another sync of what this one should have brought to the disk.
    #[test]
    fn no_sync_of_a_file_is_acknowledged_behind_one_that_has_failed() {
        let sync = || Op::Sync {
            file: FileId::ROOT,
            data_only: false,
        };
        let bed = Bed::current();
        assert!(matches!(bed.sync(sync()), Ok(Some(Receipt::Synced { .. }))));
        bed.fail();
        assert!(bed.sync(sync()).is_err());
    }

    #[test]
    fn only_syncs_of_files_that_have_been_quick_are_waited_for_where_they_are_asked_for() {
        let bed = Bed::current();
        let soon = |op: Op| match bed.apply(&op) {
            Ok(Due::Sync(job)) => bed.engine.is_soon_done(&job),
            other => panic!("{other:?}"),
        };
        let sync = || Op::Sync {
            file: FileId::ROOT,
            data_only: false,
        };
        assert!(soon(sync()));
        assert!(!soon(Op::Checkpoint));
        let took = |time: Duration| {
            let nanos = time.as_nanos() as u64;
            bed.engine.syncs.took.store(nanos, Ordering::Relaxed);
        };
        took(QUICK);
        assert!(!soon(sync()));
        took(QUICK / 2);
        assert!(soon(sync()));
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
    fn a_flush_on_the_way_says_whether_all_is_on_the_disk_and_ends_nothing() {
        let bed = Bed::target();
        assert!(matches!(bed.sync(Op::Flush), Ok(Some(_))));
        assert!(!bed.up_to_date());
        bed.fail();
        assert!(bed.sync(Op::Flush).is_err());
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
        let bed = Bed::current();
        assert!(matches!(bed.sync(Op::Checkpoint), Ok(Some(_))));
        bed.fail();
        assert!(bed.sync(Op::Checkpoint).is_err());
        assert!(!bed.up_to_date());
    }

    /// The connection broke before the primary heard of it. It has not flushed either, as far
    /// as is known here, so what it lacks after a power cut must still be told.
    #[test]
    fn a_checkpoint_that_comes_again_lets_go_of_nothing_more() {
        let bed = Bed::current();
        let frame = encode_op(Seq(2), Timestamp::default(), &Op::Checkpoint);
        let frame = frame.to_bytes().slice(4..);
        let segments = [1, 2].map(|file| {
            bed.start(Seq(2));
            let file = twinfold_protocol::ids::FileId(file);
            let note = twinfold_protocol::marks::Intent::File { file };
            bed.engine.intents.ensure(&[note]).unwrap();
            let due = bed.engine.standby_apply(frame.clone().into()).unwrap();
            assert!(matches!(due, Due::Sync(_)), "{due:?}");
            bed.engine.intents.next_segment()
        });
        assert_eq!(segments[0], segments[1]);
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
    fn a_primary_that_lost_something_in_a_flush_makes_its_peer_take_over_for_want_of_room_too() {
        let no_descriptor = || io::Error::from_raw_os_error(24);
        let cases: [(&dyn Fn() -> io::Error, bool); 4] = [
            (&|| io::ErrorKind::StorageFull.into(), true),
            (&|| io::ErrorKind::QuotaExceeded.into(), true),
            (&|| io::Error::from_raw_os_error(5), true),
            (&no_descriptor, false),
        ];
        for (error, lost) in cases {
            let bed = Bed::new(true);
            bed.engine.start_primary(false).unwrap();
            paired(&bed.engine);
            bed.engine.sync_counted(|| Err(error())).unwrap_err();
            assert_eq!(bed.engine.is_away(), lost, "{}", error());
        }
        // Nobody can: the application is told, as of any error.
        let bed = Bed::new(true);
        bed.engine.start_primary(false).unwrap();
        let full = || Err(io::ErrorKind::StorageFull.into());
        bed.engine.sync_counted(full).unwrap_err();
        assert!(!bed.engine.is_away() && bed.engine.fenced().is_none());
    }

    #[test]
    fn what_is_lost_while_the_peer_is_brought_up_makes_it_take_over_at_the_end() {
        for error in [
            io::ErrorKind::StorageFull.into(),
            io::Error::from_raw_os_error(5),
        ] {
            let bed = Bed::new(true);
            bed.engine.start_primary(false).unwrap();
            bed.engine.begin_in_doubt(SessionId(1));
            // Nobody can take over yet.
            bed.engine.sync_counted(|| Err(error)).unwrap_err();
            assert!(!bed.engine.is_away());
            paired(&bed.engine);
            bed.engine.peer_ends_doubt(SessionId(1));
            assert!(bed.engine.is_away());
        }
    }

    #[test]
    fn the_end_of_a_session_says_nothing_of_the_next_one() {
        let bed = Bed::new(true);
        bed.engine.start_primary(false).unwrap();
        bed.engine.begin_in_doubt(SessionId(1));
        bed.fail();
        bed.engine.begin_in_doubt(SessionId(2));
        bed.engine.peer_ends_doubt(SessionId(1));
        assert!(bed.engine.syncs.is_lossy() && !bed.engine.is_away());
        bed.engine.peer_ends_doubt(SessionId(2));
        assert!(!bed.engine.syncs.is_lossy());
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
            // What was used is noted anew at the first one.
            for _ in 0..2 {
                bed.engine.checkpoint();
                *bed.engine.alone_again.lock() = Default::default();
            }
            assert_eq!(bed.engine.intents.has_notes(), fails);
        }
    }
}
