//! Syncs of the primary's own disk that are begun before they are asked for.
//!
//! Where the last syncs each came behind as many changes, to the same file, the next one begins
//! here as soon as the change before it is made, while that is still on its way to the peer and
//! its caller does not even know of it. It counts for a sync that is asked for only if no change
//! was under way when it began, and none has begun since. The peer does the same for its disk
//! (`standby/foresight.rs`).

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use twinfold_protocol::ids::FileId;

use super::Engine;
use super::habit::{Habit, Target};
use crate::store::Node;

/// How to answer who has asked for a sync.
type Tell = Box<dyn FnOnce(io::Result<()>) + Send>;

/// What has been done for the sync that is asked for next.
#[derive(Default)]
pub(super) struct Foresight {
    /// How many changes have begun when it is due; 0: none is foreseen.
    due: AtomicU64,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    habit: Habit,
    /// How many changes had begun when the last sync was asked for.
    changes_asked: u64,
    begun: Option<Begun>,
    /// One for which nobody had asked has failed: who asks next for that file is told. Of a write
    /// that failed the kernel will tell as well, if the file is not closed before, but not of a
    /// flush of the disk's own cache.
    untold: Option<(Arc<Node>, io::Error)>,
}

/// A sync that nobody has asked for.
struct Begun {
    target: Target,
    /// How many changes had begun since the driver started. No other one is begun behind as many.
    changes: u64,
    /// In an earlier term: it serves nobody.
    old: bool,
    ended: bool,
    /// A sync that was asked for beside it has failed: who asks knows.
    told: bool,
    tell: Option<Tell>,
}

/// What there is of a sync that is asked for.
pub(super) enum Asked {
    /// It has ended well.
    Done(Tell),
    /// It runs, and tells when it has ended.
    Runs,
    /// Nothing.
    Unforeseen(Tell),
}

impl Foresight {
    /// A sync is asked for, with so many changes begun.
    pub(super) fn asked(&self, target: Target, changes: u64, tell: Tell) -> Asked {
        let mut state = self.state.lock();
        // Whoever has it open keeps it as well; else nobody asks for it any more.
        let gone = state.untold.take_if(|(node, _)| node.is_orphan());
        // Two may ask at once, and come in another order.
        let since = changes.saturating_sub(state.changes_asked);
        state.habit.asked(target, since);
        state.changes_asked = state.changes_asked.max(changes);
        let due = match (state.habit.next(), &state.untold) {
            (Some((_, since)), None) if since > 0 => changes + since,
            _ => 0,
        };
        self.due.store(due, Ordering::Relaxed);
        let serves = |b: &Begun| !b.old && b.changes == changes && b.target.covers(target);
        let asked = match &mut state.begun {
            Some(begun) if serves(begun) && begun.ended => {
                state.begun = None;
                Asked::Done(tell)
            }
            Some(begun) if serves(begun) && begun.tell.is_none() => {
                begun.tell = Some(tell);
                Asked::Runs
            }
            _ => Asked::Unforeseen(tell),
        };
        drop(state);
        drop(gone);
        asked
    }

    /// Begins one that covers so many changes, if it is due behind a write to `file`.
    fn begin(&self, file: FileId, changes: u64) -> Option<Target> {
        let mut state = self.state.lock();
        let (target, since) = state.habit.next()?;
        let due = target.file == file && state.changes_asked + since == changes;
        let runs = state.begun.as_ref().is_some_and(|b| !b.ended);
        if !due || runs || state.untold.is_some() {
            return None;
        }
        state.begun = Some(Begun {
            target,
            changes,
            old: false,
            ended: false,
            told: false,
            tell: None,
        });
        Some(target)
    }

    /// One of `node` that was begun has ended, or was not done at all; returns who has asked for
    /// it meanwhile, and what to tell.
    fn ended(
        &self,
        changes: u64,
        node: &Arc<Node>,
        done: Option<io::Result<()>>,
    ) -> Option<(Tell, Option<io::Result<()>>)> {
        let mut state = self.state.lock();
        let begun = state.begun.take_if(|b| b.changes == changes && !b.ended)?;
        match (begun.tell, done) {
            (Some(tell), done) => return Some((tell, done)),
            (None, Some(Ok(()))) => {
                state.begun = Some(Begun {
                    ended: true,
                    tell: None,
                    ..begun
                });
            }
            (None, Some(Err(e))) if !begun.told => state.untold = Some((node.clone(), e)),
            // It is done when it is asked for.
            (None, _) => {}
        }
        None
    }

    /// One of `node` has failed, and there is nobody any more who would have heard of it.
    pub(super) fn keep_untold(&self, node: &Arc<Node>, error: io::Error) {
        self.state.lock().untold = Some((node.clone(), error));
    }

    /// What was begun in another term says nothing in this one: as a secondary, this node has
    /// changed what it was told to, and counted nothing.
    pub(super) fn forget(&self) {
        let mut state = self.state.lock();
        state.habit = Habit::default();
        self.due.store(0, Ordering::Relaxed);
        if let Some(begun) = &mut state.begun {
            begun.old = true;
        }
    }

    /// A sync of `file` that was asked for has ended so; returns what to tell.
    pub(super) fn told(&self, file: FileId, done: io::Result<()>) -> io::Result<()> {
        let mut state = self.state.lock();
        let untold = state.untold.take_if(|(node, _)| node.file() == file);
        if let (Some(begun), Err(_)) = (&mut state.begun, &done) {
            begun.told |= begun.target.file == file;
        }
        drop(state);
        done.and(untold.map_or(Ok(()), |(_, e)| Err(e)))
    }

    /// What syncs had lost before is there again.
    pub(super) fn made_good(&self) {
        self.state.lock().untold = None;
    }
}

/// A sync that nobody has asked for yet.
struct Foreseen {
    engine: Arc<Engine>,
    node: Arc<Node>,
    target: Target,
    changes: u64,
}

impl Foreseen {
    fn run(self) {
        let data_only = self.target.data_only;
        let done = self.engine.sync_ahead(&self.node, data_only);
        let Some((tell, done)) = self.ended(done) else {
            return;
        };
        tell(match done {
            // The kernel tells both descriptors, and who has asked is told once.
            Some(done) => self.engine.all_is_there(&self.node).and(done),
            None => self.engine.sync_file(&self.node, data_only),
        });
    }

    fn ended(&self, done: Option<io::Result<()>>) -> Option<(Tell, Option<io::Result<()>>)> {
        let foresight = &self.engine.foresight;
        foresight.ended(self.changes, &self.node, done)
    }
}

impl Drop for Foreseen {
    /// Whoever waits for it is told, however it ends.
    fn drop(&mut self) {
        if let Some((tell, _)) = self.ended(None) {
            tell(Err(io::Error::other("a sync was broken off")));
        }
    }
}

impl Engine {
    /// Whether a sync is likely to be asked for behind the change that has begun last.
    pub(super) fn is_sync_due(&self) -> bool {
        let due = self.foresight.due.load(Ordering::Relaxed);
        due != 0 && self.gate.begun() == due
    }

    /// Begins the sync that is likely to be asked for behind a write to `node` that is made, if
    /// no other change is under way; by one who is inside the gate. Another thread does it: it
    /// has a start, and this one takes the next call.
    pub(super) fn foresee(self: &Arc<Self>, node: &Arc<Node>) {
        let due = self.foresight.due.load(Ordering::Relaxed);
        if due == 0 || self.gate.begun_alone() != Some(due) {
            return;
        }
        if !self.syncs.is_quick() || self.has_parked() {
            return;
        }
        if let Some(target) = self.foresight.begin(node.file(), due) {
            let foreseen = Foreseen {
                engine: self.clone(),
                node: node.clone(),
                target,
                changes: due,
            };
            self.jobs.run(move || foreseen.run());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{self, Receiver};
    use std::time::{Duration, Instant};

    use bytes::Bytes;
    use twinfold_protocol::attr::Kind;
    use twinfold_protocol::ids::Epoch;
    use twinfold_protocol::marks::DirtyMap;
    use twinfold_protocol::op::{Name, Stability};

    use super::super::bed::{made, opened};
    use super::super::habit::ALIKE;
    use super::*;
    use crate::error::FsResult;

    const PATIENCE: Duration = Duration::from_secs(60);

    /// A primary without a peer, and a program that writes to a file of it and syncs.
    struct Program {
        engine: Arc<Engine>,
        file: Arc<Node>,
        _place: tempfile::TempDir,
    }

    impl Program {
        /// It has done so often, with as many writes each time; the next sync is foreseen.
        fn with_commits(writes: u64) -> Program {
            let (engine, place) = opened(true);
            engine.start_primary(false).unwrap();
            let root = engine.store.node(FileId::ROOT).unwrap();
            let object = made(engine.new_id().0, Kind::Regular);
            let name = Name::new(b"log").unwrap();
            let file = engine.store.create(&root, &name, &object).unwrap();
            let program = Program {
                engine,
                file,
                _place: place,
            };
            for _ in 0..=ALIKE {
                for _ in 0..writes {
                    program.write();
                }
                assert_eq!(program.begun(), None);
                program.synced().unwrap();
            }
            // This disk is quick, however busy.
            drop(program.engine.hold_syncs());
            program
        }

        fn write(&self) {
            let (tell, told) = mpsc::channel();
            let data = Bytes::from_static(b"x");
            let tell = move |r: FsResult<()>| tell.send(r).unwrap();
            let how = Stability::Mode;
            self.engine.write(&self.file, 0, data, how, false, tell);
            told.recv_timeout(PATIENCE).unwrap().unwrap();
        }

        fn sync(&self, data_only: bool) -> Receiver<FsResult<()>> {
            let (tell, told) = mpsc::channel();
            let tell = move |r: FsResult<()>| tell.send(r).unwrap();
            self.engine.sync(&self.file, data_only, true, tell);
            told
        }

        fn synced(&self) -> FsResult<()> {
            self.sync(true).recv_timeout(PATIENCE).unwrap()
        }

        /// Whether one was begun that nobody has asked for, and whether that has ended.
        fn begun(&self) -> Option<bool> {
            let state = self.engine.foresight.state.lock();
            state.begun.as_ref().map(|b| b.ended)
        }

        fn until(&self, what: impl Fn(&Program) -> bool) {
            let until = Instant::now() + PATIENCE;
            while !what(self) {
                assert!(Instant::now() < until);
                std::thread::sleep(Duration::from_millis(1));
            }
        }

        /// Writes, and waits until the sync that is foreseen behind that has ended.
        fn foresees(&self) {
            self.write();
            self.until(|p| p.begun() == Some(true));
        }

        /// One that is foreseen begins, which nobody does; returns what it is known by.
        fn begins(&self) -> u64 {
            let due = self.engine.gate.begun() + 1;
            drop(self.engine.gate.enter());
            self.engine.foresight.begin(self.file.file(), due).unwrap();
            due
        }

        /// It has ended.
        fn ends(&self, due: u64, done: Option<io::Result<()>>) -> Option<Tell> {
            let ended = self.engine.foresight.ended(due, &self.file, done);
            ended.map(|(tell, _)| tell)
        }

        /// How many syncs are done while this is.
        fn syncs(&self, during: impl FnOnce()) -> u64 {
            let before = self.engine.syncs_begun();
            during();
            self.engine.syncs_begun() - before
        }
    }

    #[test]
    fn a_sync_begins_before_it_is_asked_for_where_the_last_ones_were_alike() {
        let program = Program::with_commits(2);
        let syncs = program.syncs(|| {
            let held = program.engine.hold_syncs();
            program.write();
            assert_eq!(program.begun(), None, "one more is to come");
            program.write();
            program.until(|p| p.engine.runs_a_sync());
            let asked = program.sync(true);
            let early = asked.recv_timeout(Duration::from_millis(50));
            assert!(early.is_err(), "it still runs");
            drop(held);
            asked.recv_timeout(PATIENCE).unwrap().unwrap();
        });
        assert_eq!(syncs, 1);
    }

    #[test]
    fn what_has_ended_well_is_not_done_again_and_serves_once() {
        let program = Program::with_commits(1);
        program.foresees();
        assert_eq!(program.syncs(|| program.synced().unwrap()), 0);
        assert_eq!(program.syncs(|| program.synced().unwrap()), 1);
    }

    #[test]
    fn what_has_begun_since_is_not_taken_for_synced() {
        let program = Program::with_commits(1);
        program.foresees();
        program.write();
        assert_eq!(program.syncs(|| program.synced().unwrap()), 1);
        // While it runs.
        let program = Program::with_commits(1);
        let syncs = program.syncs(|| {
            let held = program.engine.hold_syncs();
            program.write();
            program.until(|p| p.engine.runs_a_sync());
            program.write();
            drop(held);
            program.synced().unwrap();
        });
        assert_eq!(syncs, 2);
        // Of the data alone, where all is asked for.
        let program = Program::with_commits(1);
        program.foresees();
        let full = || program.sync(false).recv_timeout(PATIENCE).unwrap().unwrap();
        assert_eq!(program.syncs(full), 1);
    }

    /// It has its place in the order, and may change the file after the sync has looked.
    #[test]
    fn nothing_is_foreseen_while_another_change_is_under_way() {
        for ends in [false, true] {
            let program = Program::with_commits(2);
            let other = program.engine.gate.enter();
            let other = (!ends).then_some(other);
            program.write();
            assert_eq!(program.begun().is_some(), ends);
            drop(other);
        }
    }

    #[test]
    fn nothing_is_foreseen_where_the_disk_is_slow_or_another_file_was_written() {
        let program = Program::with_commits(1);
        let root = program.engine.store.node(FileId::ROOT).unwrap();
        let due = program.engine.gate.begun() + 1;
        assert!(program.engine.foresight.begin(root.file(), due).is_none());
        program.engine.seems_slow();
        program.write();
        assert_eq!(program.begun(), None);
    }

    /// For want of memory.
    fn failed() -> Option<io::Result<()>> {
        Some(Err(io::Error::from_raw_os_error(12)))
    }

    /// The kernel tells each descriptor of a write that failed, and once: with the last one that
    /// has not been told yet its file would be closed, and one that is opened later knows nothing
    /// of it. Of a failed flush of the disk's cache it tells nobody else.
    #[test]
    fn one_that_fails_is_told_to_who_asks_next_for_that_file_which_stays_open_until_then() {
        let fails = |program: &Program| {
            let due = program.begins();
            assert!(program.ends(due, failed()).is_none());
        };
        let is_open = |program: &Program| {
            let state = program.engine.foresight.state.lock();
            let untold = state.untold.as_ref().map(|(node, _)| node.file());
            untold == Some(program.file.file())
        };
        let program = Program::with_commits(1);
        fails(&program);
        let root = program.engine.store.node(FileId::ROOT).unwrap();
        program.engine.sync_file(&root, true).unwrap();
        // Until then none is foreseen, which might fail as well.
        for _ in 0..4 {
            program.write();
            assert_eq!(program.begun(), None);
            assert!(is_open(&program));
        }
        assert!(program.synced().is_err());
        assert!(!is_open(&program));
        assert!(program.synced().is_ok());
        // There is nothing to tell any more.
        for failures in 0..2 {
            let program = Program::with_commits(1);
            fails(&program);
            program.engine.copy_is_made_good(failures);
            assert_eq!(is_open(&program), failures != 0, "one has failed since");
        }
        // Nor anybody.
        let program = Program::with_commits(1);
        fails(&program);
        let name = Name::new(b"log").unwrap();
        let root = program.engine.store.node(FileId::ROOT).unwrap();
        let file = program.file.clone();
        program.engine.store.unlink(&root, &name, file).unwrap();
        program.engine.sync(&root, true, true, |_| ());
        assert!(!is_open(&program));
    }

    #[test]
    fn one_that_fails_beside_one_that_failed_is_told_once() {
        for beside in [false, true] {
            let program = Program::with_commits(1);
            let due = program.begins();
            if beside {
                let file = program.file.file();
                let failed = failed().unwrap();
                program.engine.foresight.told(file, failed).unwrap_err();
            }
            assert!(program.ends(due, failed()).is_none());
            assert_eq!(program.synced().is_ok(), beside);
        }
    }

    #[test]
    fn one_that_could_not_be_done_says_nothing() {
        let program = Program::with_commits(1);
        let due = program.begins();
        assert!(program.ends(due, None).is_none());
        assert_eq!(program.syncs(|| program.synced().unwrap()), 1);
        // Asked for meanwhile.
        let due = program.begins();
        let syncs = program.syncs(|| {
            let asked = program.sync(true);
            assert!(asked.recv_timeout(Duration::from_millis(50)).is_err());
            let tell = program.ends(due, None).unwrap();
            tell(Ok(()));
            asked.recv_timeout(PATIENCE).unwrap().unwrap();
        });
        assert_eq!(syncs, 0, "it is left to who has begun it");
    }

    #[test]
    fn one_that_is_never_done_is_not_waited_for() {
        let program = Program::with_commits(1);
        program.engine.jobs.stop();
        program.write();
        assert_eq!(program.begun(), None);
        assert_eq!(program.syncs(|| program.synced().unwrap()), 1);
    }

    #[test]
    fn what_was_foreseen_in_another_term_is_forgotten() {
        let program = Program::with_commits(1);
        program.foresees();
        program.engine.begin_term(Epoch(7), DirtyMap::default());
        assert_eq!(program.syncs(|| program.synced().unwrap()), 1);
        program.write();
        assert_eq!(program.begun(), Some(true), "that is the old one");
        assert!(!program.engine.is_sync_due());
    }
}
