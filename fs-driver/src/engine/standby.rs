//! The secondary's side: applying what the primary sends, strictly in order.

mod foresight;
mod syncing;

use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use twinfold_protocol::handshake::{CopyState, Decision, Method, Which};
use twinfold_protocol::ids::{Epoch, FileId, Generation, ModuleId, Seq, SessionId};
use twinfold_protocol::marks::DirtyMap;
use twinfold_protocol::op::{Op, Payload, Stability};
use twinfold_protocol::primary::AckMode;
use twinfold_protocol::secondary::{Accepted, Secondary, needs_sync};
use twinfold_protocol::time::Timestamp;
use twinfold_protocol::wire::{Hello, Holds, OpStreamStart, Receipt, Violation, decode_op};

use self::foresight::Foresight;
use super::Engine;
use super::habit::Target;
use super::settle::touched_by;
use crate::archive::Reason;
use crate::state::Record;
use crate::store::{ApplyError, Store};

/// Objects whose times are only known from their ops, at most; then they are set at once.
const MAX_TIMES: usize = 65_536;

/// Files synced one by one in mode `disk`; more, or any change of a name, and the
/// whole file system is.
const MAX_SINGLE_SYNCS: usize = 16;

/// Why the secondary stops applying.
#[derive(Debug, thiserror::Error)]
pub enum StandbyError {
    /// The peer broke the protocol.
    #[error("the peer broke the protocol: {0}")]
    Violation(#[from] Violation),
    /// An op could not be applied.
    #[error(transparent)]
    Apply(#[from] ApplyError),
    /// A resync op could not be applied.
    #[error("{op}: {source}")]
    Put {
        /// Which op.
        op: &'static str,
        /// What the operating system said.
        source: io::Error,
    },
    /// The node is fenced.
    #[error("this node is fenced")]
    Fenced,
    /// No session has begun, or it was ended by a promotion.
    #[error("there is no session")]
    NoSession,
}

/// What the secondary holds of a session.
#[derive(Debug)]
pub struct Standby {
    machine: Secondary,
    module: ModuleId,
    generation: Generation,
    epoch: Epoch,
    /// Times by the primary's clock that its file system has not told exactly yet.
    times: HashMap<FileId, Timestamp>,
    /// Applied since the last checkpoint, and between it and the one before: what a
    /// primary that lost its page cache may lack.
    fresh: DirtyMap,
    older: DirtyMap,
    /// The intent segment begun at the last checkpoint.
    segment: Option<u64>,
    stable: Option<Stable>,
    foresight: Foresight,
    /// What the primary waits for.
    mode: AckMode,
    /// Something could not be done: the session is not resumed, nor this copy promoted.
    failed: bool,
    /// Syncs that had failed before the session began.
    failed_syncs: u64,
}

/// How a secondary has left.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Left {
    /// Its copy was up to date until then.
    pub(crate) was_current: bool,
    /// All that it had applied in the session is on its disk.
    pub(crate) flushed: bool,
}

#[derive(Debug, Default)]
struct Stable {
    files: HashSet<FileId>,
    names: bool,
    syncing: bool,
}

/// Something that has to reach the disk before a receipt is sent.
#[derive(Debug)]
pub(crate) struct SyncJob {
    session: SessionId,
    seq: Seq,
    what: SyncWhat,
}

/// What an applied op asks for.
#[derive(Debug)]
pub(crate) enum Due {
    /// Nothing but its place in the next receipt.
    Nothing,
    /// A sync.
    Sync(SyncJob),
    /// A receipt of its own, at once.
    Receipt(Receipt),
    /// One for a sync that is done already, behind that of the op.
    Synced(Receipt),
}

impl From<Option<SyncJob>> for Due {
    fn from(job: Option<SyncJob>) -> Due {
        job.map_or(Due::Nothing, Due::Sync)
    }
}

#[derive(Debug)]
enum SyncWhat {
    Object {
        file: FileId,
        data_only: bool,
    },
    /// One that nobody has asked for yet.
    Foreseen(Target),
    Checkpoint {
        retire: Option<u64>,
    },
    ResyncEnd {
        retire: Option<u64>,
    },
    Flush,
    TakeOver,
    Stable {
        files: Option<Vec<FileId>>,
    },
}

impl Standby {
    /// Whether the copy is still being brought up.
    pub fn is_syncing(&self) -> bool {
        self.machine.is_syncing()
    }

    /// Whether the copy was up to date for as long as the connection held.
    pub(super) fn is_current(&self) -> bool {
        !self.is_syncing() && !self.failed
    }

    /// Whether a flush of the store that succeeded means all of this session, when
    /// `failed_syncs` had failed by its end.
    pub(super) fn is_flushed(&self, failed_syncs: u64) -> bool {
        !self.failed && self.failed_syncs == failed_syncs
    }

    /// The session.
    pub fn session(&self) -> SessionId {
        self.machine.session()
    }

    /// The last op applied.
    pub fn applied(&self) -> Seq {
        self.machine.applied_seq()
    }

    /// Whether a sync that was foreseen is done.
    #[cfg(test)]
    pub(super) fn has_foreseen(&self) -> bool {
        self.foresight.has_ended()
    }

    /// As in any mode but `disk`.
    #[cfg(test)]
    pub(super) fn syncs_nothing_by_itself(&mut self) {
        self.stable = None;
    }

    /// Sets times nobody will tell exactly any more, and hands over the marks.
    pub(super) fn into_marks(self, store: &Store) -> DirtyMap {
        set_times(store, self.times);
        let mut marks = self.fresh;
        marks.unite(self.older);
        marks
    }
}

fn set_times(store: &Store, times: HashMap<FileId, Timestamp>) {
    for (file, time) in times {
        let set = store.object(file).and_then(|node| match node {
            Some(node) => store.set_times(&node, None, Some(time)),
            None => Ok(()),
        });
        if let Err(e) = set {
            tracing::warn!(%file, error = %e, "times cannot be set");
        }
    }
}

impl Engine {
    /// A session begins: from here on until its end this copy is not up to date, durably.
    pub(crate) fn standby_begin(
        &self,
        session: SessionId,
        decision: Decision,
        primary: &Hello,
    ) -> io::Result<()> {
        debug_assert!(matches!(
            decision,
            Decision::Resync {
                source: Which::Peer,
                method: Method::Marks | Method::Compare | Method::Everything
            }
        ));
        // What a broken session still does at its end must not touch this one's work.
        let _ending = self.ending.lock();
        if self.keeping.load(Ordering::Acquire) {
            return Err(io::Error::other("what this copy has is being kept"));
        }
        if let Some(reason) = self.fenced() {
            return Err(io::Error::other(format!("this node is fenced: {reason}")));
        }
        self.copy.update(|r| r.begin_resync(primary.epoch))?;
        self.spoiled.store(false, Ordering::Relaxed);
        self.store.forget_lent();
        self.counters.session_begins();
        self.store.begin_puts();
        *self.standby.lock() = Some(Standby {
            machine: Secondary::new(session),
            module: primary.copy.module,
            generation: primary.copy.current,
            epoch: primary.epoch,
            times: HashMap::new(),
            fresh: DirtyMap::default(),
            older: DirtyMap::default(),
            segment: None,
            stable: None,
            foresight: Foresight::default(),
            mode: AckMode::Memory,
            failed: false,
            failed_syncs: self.syncs.failed(),
        });
        Ok(())
    }

    /// Before a resync that overwrites what this copy may have and its source may not: keeps
    /// it, if that was not done when the copy was given up. Blocks for as long as that takes.
    pub(crate) fn keep_before_resync(
        &self,
        decision: Decision,
        source: &CopyState,
    ) -> io::Result<()> {
        let Decision::Resync { method, .. } = decision else {
            return Ok(());
        };
        let copy = self.copy.get().copy;
        let (reason, everything) = match (copy.given_up, source.forced) {
            (true, _) if method == Method::Compare => (Reason::GivenUp, true),
            // It had nothing that its peer did not have, when it was given up; but the peer may
            // have lost that. What was kept or waived then is done.
            (true, true) if method == Method::Marks => (Reason::Forced, false),
            // Acknowledged writes may be here that the source lost, or never had.
            (false, true) if copy.current.is_some() => (Reason::Forced, false),
            _ => return Ok(()),
        };
        {
            let _ending = self.ending.lock();
            self.keeping.store(true, Ordering::Release);
            *self.standby.lock() = None;
        }
        let kept = self.keep_copy(reason, everything);
        self.keeping.store(false, Ordering::Release);
        kept
    }

    /// The session this node could resume; `Err` when it is about to become primary. To
    /// say then that there is none would tell the primary that nobody can be promoted.
    pub(crate) fn standby_resume(&self) -> Result<Option<(SessionId, Seq)>, StandbyError> {
        let standby = self.standby.lock();
        if self.promoting.load(Ordering::Acquire) {
            return Err(StandbyError::NoSession);
        }
        let usable = standby.as_ref().filter(|s| !s.failed);
        Ok(usable.and_then(|s| s.machine.resumes_at()))
    }

    /// Whether this copy is up to date as far as the session goes that was broken off.
    pub(crate) fn standby_was_current(&self) -> bool {
        self.standby
            .lock()
            .as_ref()
            .is_some_and(Standby::is_current)
    }

    /// The primary has a session open that this process does not know: this copy is not up
    /// to date from now on, durably, so that nobody promotes it when the primary goes on.
    pub(crate) fn standby_forgot(&self) -> io::Result<()> {
        tracing::warn!(
            "the primary waits for a session that this node does not know any more; this copy \
             is to be resynced"
        );
        self.fall_behind()
    }

    /// This copy is not up to date from now on, durably. Where its own disk does not take
    /// that any more, it is still a copy that nobody makes primary without force: neither this
    /// run, which has lost the session, nor the next one, which finds a secondary's copy.
    pub(super) fn fall_behind(&self) -> io::Result<()> {
        self.copy.update(Record::fall_behind).inspect_err(|error| {
            self.spoiled.store(true, Ordering::Relaxed);
            self.changes.ring();
            self.fence("the copy's history cannot be written", error);
        })
    }

    /// What is in this copy before a resync.
    pub(crate) fn standby_holds(&self) -> io::Result<Holds> {
        if self.copy.get().copy.current.is_some() {
            return Ok(Holds::Objects);
        }
        if self.store.is_seed() {
            return Ok(Holds::Seed);
        }
        Ok(match self.store.is_empty()? {
            true => Holds::Nothing,
            false => Holds::Objects,
        })
    }

    /// The op stream begins.
    pub(crate) fn standby_start(&self, start: OpStreamStart) -> Result<(), StandbyError> {
        let mut standby = self.standby.lock();
        let standby = standby.as_mut().ok_or(StandbyError::NoSession)?;
        standby.machine.start(start)?;
        standby.mode = start.mode;
        if start.mode == AckMode::Disk {
            standby.stable.get_or_insert_default();
        }
        Ok(())
    }

    /// Decodes and applies one frame of the op stream.
    pub(crate) fn standby_apply(&self, frame: Payload) -> Result<Due, StandbyError> {
        if self.fenced.get().is_some() {
            return Err(StandbyError::Fenced);
        }
        let _inside = self.inside();
        let op = decode_op(frame)?;
        let mut standby = self.standby.lock();
        let standby = standby.as_mut().ok_or(StandbyError::NoSession)?;
        if standby.machine.accept(&op)? == Accepted::SyncAgain {
            return self.sync_job(standby, op.seq, &op.op, true).map(Due::from);
        }
        let old_size = match &op.op {
            Op::Truncate { file, .. } => self.size_of(*file),
            Op::PutObject { object, .. } => self.size_of(object.file),
            _ => 0,
        };
        self.standby_note(&op.op, old_size)?;
        if standby.machine.is_moving() {
            self.note_the_way(&op.op)?;
        }
        if op.op.is_resync() {
            self.store.put(&op.op).map_err(|source| StandbyError::Put {
                op: op.op.word(),
                source,
            })?;
        } else {
            self.store.apply(&op.op, standby.machine.is_moving())?;
            standby.fresh.mark_op(&op.op, old_size);
            standby.fresh.bound();
        }
        self.counters.applied(&op.op);
        standby.note_times(&self.store, &op.op, op.time);
        standby.machine.applied(op.seq);
        standby.note_stable(&op.op);
        if !matches!(op.op, Op::Sync { .. }) {
            standby.foresight.applied(&op.op);
        }
        match &op.op {
            Op::Verify { question } => {
                let (seq, found) = (op.seq, self.found(question));
                Ok(Due::Receipt(Receipt::Verified { seq, found }))
            }
            Op::Differs { question } => {
                // What cannot be noted is fenced, and told.
                self.note_differing(question)
                    .map_err(|_| StandbyError::Fenced)?;
                Ok(Due::Nothing)
            }
            Op::Sync { file, data_only } if self.is_foreseen(standby, *file, *data_only) => {
                Ok(Due::Synced(Receipt::Synced { seq: op.seq }))
            }
            op_ if needs_sync(op_) => self.sync_job(standby, op.seq, op_, false).map(Due::from),
            _ => Ok(Due::Nothing),
        }
    }

    /// The size of a file, 0 for one that is not here.
    fn size_of(&self, file: FileId) -> u64 {
        self.store.node(file).and_then(|n| n.size()).unwrap_or(0)
    }

    fn sync_job(
        &self,
        standby: &mut Standby,
        seq: Seq,
        op: &Op,
        again: bool,
    ) -> Result<Option<SyncJob>, StandbyError> {
        let what = match op {
            Op::Sync { file, data_only } => SyncWhat::Object {
                file: *file,
                data_only: *data_only,
            },
            Op::Write {
                file, stability, ..
            } => SyncWhat::Object {
                file: *file,
                data_only: *stability != Stability::Full,
            },
            Op::TakeOver => SyncWhat::TakeOver,
            Op::Flush => SyncWhat::Flush,
            // What it lets go of went when it came first; since then there is more to keep.
            Op::Checkpoint if again => SyncWhat::Checkpoint { retire: None },
            Op::ResyncEnd if again => SyncWhat::ResyncEnd { retire: None },
            Op::Checkpoint | Op::ResyncEnd => {
                // What a resync has moved is not what the application writes.
                let segment = match op {
                    Op::Checkpoint => self.intents.rotate_hot(),
                    _ => self.intents.rotate(),
                };
                let segment = segment.map_err(|e| self.log_failed(&e))?;
                // The primary begins a checkpoint only when the one before it has ended
                // on both nodes; so what came before that one may go.
                let retire = match segment {
                    Some(segment) => standby.segment.replace(segment),
                    None => None,
                };
                let fresh = std::mem::take(&mut standby.fresh);
                standby.older = fresh;
                match op {
                    Op::Checkpoint => SyncWhat::Checkpoint { retire },
                    _ => {
                        standby.machine.all_moved();
                        self.nothing_differs();
                        SyncWhat::ResyncEnd { retire }
                    }
                }
            }
            _ => return Ok(None),
        };
        Ok(Some(SyncJob {
            session: standby.session(),
            seq,
            what,
        }))
    }

    /// In mode `disk`: what to sync now, unless a sync runs.
    pub(crate) fn standby_stable_job(&self) -> Option<SyncJob> {
        let mut standby = self.standby.lock();
        let standby = standby.as_mut()?;
        let (session, seq) = (standby.session(), standby.applied());
        let stable = standby.stable.as_mut()?;
        if stable.syncing || (stable.files.is_empty() && !stable.names) {
            return None;
        }
        stable.syncing = true;
        let files: Vec<_> = stable.files.drain().collect();
        let names = std::mem::take(&mut stable.names);
        Some(SyncJob {
            session,
            seq,
            what: SyncWhat::Stable {
                files: (!names && files.len() <= MAX_SINGLE_SYNCS).then_some(files),
            },
        })
    }

    /// Whether the primary's application waits for each op, as far as is known here.
    pub(crate) fn standby_is_waited_for(&self) -> bool {
        let standby = self.standby.lock();
        let waits = |s: &Standby| s.mode != AckMode::Flush && !s.machine.is_syncing();
        standby.as_ref().is_some_and(waits)
    }

    /// What to tell the primary about progress, if there is anything new.
    pub(crate) fn standby_receipt(&self) -> Option<Receipt> {
        self.standby.lock().as_mut()?.machine.receipt()
    }

    /// This node leaves in order: its copy is on its disk, unless a sync of it failed, and,
    /// durably, not up to date any more, so that nobody promotes it while the primary goes on.
    pub(crate) fn standby_leave(
        self: &Arc<Self>,
        done: impl FnOnce(io::Result<Left>) + Send + 'static,
    ) {
        let engine = self.clone();
        self.jobs.run(move || {
            let standby = engine.standby.lock().take();
            let synced = engine.sync_store();
            if let Err(error) = &synced {
                tracing::error!(%error, "the store could not be flushed");
            }
            // One that runs beside this one may be told what this one was not.
            let failures = engine.syncs.settled();
            let left = match standby {
                Some(standby) => engine.fall_behind().map(|()| Left {
                    was_current: !standby.is_syncing(),
                    flushed: synced.is_ok() && standby.is_flushed(failures),
                }),
                None => Ok(Left {
                    was_current: false,
                    flushed: false,
                }),
            };
            done(left);
        });
    }

    /// A copy that was up to date until it left in order has nothing to tell: all it was
    /// changed by came from its primary, which noted it before, and is on this disk; what
    /// did not come is marked there. Whatever becomes of the primary now, its notes go only
    /// when it has flushed what they cover.
    pub(crate) fn standby_left(&self) {
        match self.intents.rotate() {
            Ok(segment) => self.retire(segment),
            Err(e) => self.fence("the intent log cannot be written", &e),
        }
    }

    /// This copy cannot go on: it is not up to date from now on.
    pub(crate) fn standby_failed(&self, error: &StandbyError) -> Option<Receipt> {
        let standby = self.standby.lock().take()?;
        let seq = standby.applied().next();
        tracing::error!(%error, %seq, "this copy is not up to date any more");
        self.set_trouble(Some(error.to_string()));
        // What cannot be noted is fenced, and told.
        let _ = self.fall_behind();
        Some(Receipt::Failed {
            seq,
            reason: error.to_string(),
        })
    }
}

/// What a sync was asked for in an earlier session says nothing about this one.
pub(super) fn of_session(
    standby: &mut Option<Standby>,
    session: SessionId,
) -> Result<&mut Standby, StandbyError> {
    standby
        .as_mut()
        .filter(|s| s.session() == session)
        .ok_or(StandbyError::NoSession)
}

impl Standby {
    fn note_times(&mut self, store: &Store, op: &Op, time: Timestamp) {
        match op {
            Op::Times { file, .. } => {
                self.times.remove(file);
            }
            Op::SetAttributes { file, change } if change.modified.is_some() => {
                self.times.remove(file);
            }
            op if op.is_resync() => {}
            op => touched_by(op, |file| {
                self.times.insert(file, time);
            }),
        }
        if self.times.len() > MAX_TIMES {
            set_times(store, std::mem::take(&mut self.times));
        }
    }

    fn note_stable(&mut self, op: &Op) {
        let Some(stable) = &mut self.stable else {
            return;
        };
        match op {
            Op::Write { file, .. }
            | Op::PutData { file, .. }
            | Op::Truncate { file, .. }
            | Op::Allocate { file, .. }
            | Op::CopyRange { to: file, .. } => {
                stable.files.insert(*file);
            }
            Op::Sync { .. }
            | Op::Checkpoint
            | Op::Verify { .. }
            | Op::Differs { .. }
            | Op::TakeOver
            | Op::ResyncEnd
            | Op::Flush
            | Op::Times { .. } => {
                // Nothing new to bring to the disk; the receipt must still move on.
                stable.files.insert(FileId::ROOT);
            }
            _ => stable.names = true,
        }
    }
}
