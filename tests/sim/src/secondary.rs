//! The secondary's driver: applies ops in order, notes first, syncs when asked.

use twinfold_protocol::ids::{FileId, SessionId};
use twinfold_protocol::marks::{DirtyMap, Intent};
use twinfold_protocol::op::{Op, Sequenced, Stability};
use twinfold_protocol::primary::AckMode;
use twinfold_protocol::secondary::{Accepted, needs_sync};
use twinfold_protocol::verify::mark_question;
use twinfold_protocol::wire::{OpStreamStart, Receipt};

use crate::bugs::Bug;
use crate::disk::Refusal;
use crate::net::Message;
use crate::verify::found;
use crate::world::{MS, Step, SyncJob, World};

impl World {
    /// The op stream begins.
    pub(crate) fn standby_start(&mut self, node: usize, start: OpStreamStart) {
        if self.must_host(node) {
            // The session is over, and the primary does not know yet.
            return self.begin_hosting(node);
        }
        let Some(standby) = &mut self.nodes[node].standby else {
            return;
        };
        if let Err(e) = standby.machine.start(start) {
            return self.fail(format!("node {node} refuses the op stream: {e}"));
        }
        standby.stable = start.mode == AckMode::Disk;
    }

    /// An op arrives.
    pub(crate) fn standby_op(&mut self, node: usize, op: Sequenced) {
        if let Some(standby) = &mut self.nodes[node].standby {
            standby.inbox.push_back(op);
        }
        self.standby_wake(node);
    }

    fn standby_wake(&mut self, node: usize) {
        if let Some(standby) = &mut self.nodes[node].standby
            && !standby.busy
            && !standby.inbox.is_empty()
        {
            standby.busy = true;
            self.soon(node, MS / 10, Step::Next);
        }
    }

    /// The next op is taken up.
    pub(crate) fn standby_next(&mut self, node: usize) {
        let Some(standby) = &mut self.nodes[node].standby else {
            return;
        };
        standby.busy = false;
        if self.bug == Some(Bug::AnyOrder) {
            swap_heads(&mut standby.inbox, !standby.machine.is_syncing());
        }
        let Some(op) = standby.inbox.front().cloned() else {
            return;
        };
        match standby.machine.accept(&op) {
            Ok(Accepted::Apply) => {}
            Ok(Accepted::SyncAgain) => {
                standby.inbox.pop_front();
                self.sync_job(node, &op);
                return self.standby_wake(node);
            }
            Err(e) => return self.fail(format!("node {node} refuses an honest op: {e}")),
        }
        let moving = standby.machine.is_moving();
        let mut cold = self.cold(node, &op.op);
        if moving {
            let disk = &self.nodes[node].disk;
            let ways = disk.fs.in_the_way(&op.op).into_iter();
            let notes = ways.map(|directory| Intent::Directory { directory });
            cold.extend(notes.filter(|note| !disk.log.is_hot(*note)));
        }
        if cold.is_empty() || self.has(Bug::NoIntents) {
            return self.standby_apply(node, &op);
        }
        if let Some(standby) = &mut self.nodes[node].standby {
            standby.busy = true;
        }
        self.soon_disk(node, 3 * MS, Step::Noted(cold));
    }

    /// The notes for the op at the head of the queue are durable.
    pub(crate) fn standby_noted(&mut self, node: usize, intents: Vec<Intent>) {
        self.nodes[node].disk.note(intents);
        let Some(standby) = &mut self.nodes[node].standby else {
            return;
        };
        standby.busy = false;
        // A resumed connection may have emptied the queue: the op comes again.
        if standby.inbox.is_empty() {
            return;
        }
        standby.busy = true;
        self.soon(node, MS / 10, Step::Next);
    }

    fn standby_apply(&mut self, node: usize, op: &Sequenced) {
        self.note(|| format!("node {node} applies {}", brief(&op.op)));
        let n = &mut self.nodes[node];
        let old_size = match &op.op {
            Op::Truncate { file, .. } => n.disk.fs.size(*file),
            Op::PutObject { object, .. } => n.disk.fs.size(object.file),
            _ => 0,
        };
        let ignored = self.bug == Some(Bug::IgnoreHoles) && matches!(op.op, Op::PutHole { .. });
        let n = &mut self.nodes[node];
        let syncing = n.standby.as_ref().is_some_and(|s| s.machine.is_moving());
        n.half_resynced |= op.op.is_resync() && op.op != Op::ResyncEnd;
        let answer = match &op.op {
            Op::Verify { question } => Some(found(&n.disk.fs, question)),
            _ => None,
        };
        let applied = match ignored || answer.is_some() {
            true => Ok(()),
            false => n.disk.apply_as(&op.op, syncing),
        };
        match applied {
            Ok(()) => {}
            Err(Refusal::Trouble(why)) => return self.standby_failed(node, why),
            Err(Refusal::Drifted(why)) => {
                let connection = n.connection;
                return self.fail(format!(
                    "node {node} cannot apply {} on connection {connection:?}: {why}",
                    brief(&op.op)
                ));
            }
        }
        if n.disk.effects.is_dead() {
            return;
        }
        if self.bug == Some(Bug::WayLeftAside) {
            n.disk.fs.forget_lent();
        }
        if self.bug == Some(Bug::IdentityByPath)
            && let Op::PutDirectory { .. } = &op.op
        {
            self.nodes[node].disk.forget_contents(&op.op);
        }
        let n = &mut self.nodes[node];
        let Some(standby) = &mut n.standby else {
            return;
        };
        if !op.op.is_resync() {
            standby.fresh.mark_op(&op.op, old_size);
        }
        standby.machine.applied(op.seq);
        standby.inbox.pop_front();
        // A resync ends in vain, and is to be told so by its last flush.
        let in_vain = standby.machine.is_syncing() && n.disk.will_tell();
        let (session, fs) = (standby.machine.session(), &n.disk.fs);
        let fs = (!in_vain).then_some(fs);
        match self.sequence[1 - node].applied(session, op.seq, fs) {
            Ok(looked) => self.stats.prefixes += u64::from(looked),
            Err(e) => return self.fail(format!("node {node}: {e}")),
        }
        if let Op::Differs { question } = &op.op {
            let n = &mut self.nodes[node];
            mark_question(&mut n.differing, question);
            n.disk.update(|r| r.fall_behind());
        }
        if needs_sync(&op.op) {
            self.sync_job(node, op);
        }
        self.stable_job(node);
        self.tell(node);
        if let (Some(found), Some(id)) = (answer, self.nodes[node].connection) {
            let seq = op.seq;
            self.send(node, id, Message::Receipt(Receipt::Verified { seq, found }));
        }
        self.standby_wake(node);
    }

    /// In mode `disk`: syncs what is applied, unless a sync runs.
    fn stable_job(&mut self, node: usize) {
        let Some(standby) = &mut self.nodes[node].standby else {
            return;
        };
        if standby.stable && !standby.stable_syncing {
            standby.stable_syncing = true;
            let seq = standby.machine.applied_seq();
            let session = standby.machine.session();
            self.soon_disk(node, 4 * MS, Step::SyncDone(session, SyncJob::Stable(seq)));
        }
    }

    /// Sends the receipt that is due.
    fn tell(&mut self, node: usize) {
        let n = &mut self.nodes[node];
        if let (Some(standby), Some(id)) = (&mut n.standby, n.connection)
            && let Some(receipt) = standby.machine.receipt()
        {
            // Now and then its disk is busy, as far as it knows.
            let busy = standby.machine.applied_seq().0 % 16 == 5;
            self.send(node, id, Message::Receipt(receipt));
            if busy {
                self.send(node, id, Message::Receipt(Receipt::Busy));
            }
        }
    }

    fn sync_job(&mut self, node: usize, op: &Sequenced) {
        let n = &mut self.nodes[node];
        let Some(standby) = &mut n.standby else {
            return;
        };
        let session = standby.machine.session();
        let job = match &op.op {
            Op::Sync { file, .. } => SyncJob::Object(op.seq, *file),
            Op::Write {
                file, stability, ..
            } if *stability != Stability::Mode => SyncJob::Object(op.seq, *file),
            Op::Checkpoint | Op::ResyncEnd => {
                let segment = n.disk.rotate();
                let retire = standby.segment.replace(segment);
                standby.older = std::mem::take(&mut standby.fresh);
                match op.op {
                    Op::Checkpoint => SyncJob::Checkpoint(op.seq, retire),
                    _ => {
                        standby.machine.all_moved();
                        n.differing = DirtyMap::default();
                        SyncJob::End(op.seq, retire)
                    }
                }
            }
            Op::Flush => SyncJob::Flush(op.seq),
            Op::TakeOver => {
                if self.bug == Some(Bug::EarlyTakeOver) {
                    self.synced(node, op.seq);
                }
                SyncJob::TakeOver(op.seq)
            }
            _ => return,
        };
        self.soon_disk(node, 8 * MS, Step::SyncDone(session, job));
    }

    /// A sync is done.
    pub(crate) fn standby_synced(&mut self, node: usize, session: SessionId, job: SyncJob) {
        let now = self.nodes[node]
            .standby
            .as_ref()
            .map(|s| s.machine.session());
        if now != Some(session) {
            // What it is told is not told again.
            let _ = match job {
                SyncJob::Object(_, file) => self.sync_object(node, file),
                // It was asked for twice.
                SyncJob::TakeOver(seq) if self.nodes[node].takeover.hosting == Some(session) => {
                    return self.took_over(node, session, seq);
                }
                _ => self.sync_store(node),
            };
            return;
        }
        let flushed = match job {
            SyncJob::Object(_, file) => self.sync_object(node, file),
            SyncJob::End(..) => {
                self.nodes[node].disk.clear_aside();
                self.flush_session(node)
            }
            SyncJob::Checkpoint(..)
            | SyncJob::Flush(_)
            | SyncJob::Stable(_)
            | SyncJob::TakeOver(_) => self.flush_session(node),
        };
        if flushed.is_err() {
            // Whether or not anybody is there to be told.
            return self.standby_failed(node, "the flush failed");
        }
        match job {
            SyncJob::Object(seq, _) | SyncJob::Flush(seq) => self.synced(node, seq),
            SyncJob::Checkpoint(seq, retire) => {
                self.retire(node, retire);
                self.synced(node, seq);
            }
            SyncJob::End(seq, retire) => {
                self.end_resync(node);
                self.retire(node, retire);
                self.synced(node, seq);
            }
            SyncJob::Stable(seq) => {
                if let Some(standby) = &mut self.nodes[node].standby {
                    standby.machine.durable(seq);
                    standby.stable_syncing = false;
                    if standby.machine.applied_seq() > seq {
                        self.stable_job(node);
                    }
                }
                self.tell(node);
            }
            SyncJob::TakeOver(seq) => {
                self.take_over(node, session);
                self.took_over(node, session, seq);
            }
        }
    }

    /// Flushes the store for a session: everything that was changed in it is on the disk.
    fn flush_session(&mut self, node: usize) -> Result<(), Refusal> {
        self.sync_store(node)?;
        let n = &self.nodes[node];
        match n.standby.as_ref().map(|s| s.failed_syncs) == Some(n.failed_syncs) {
            true => Ok(()),
            false => Err(Refusal::Trouble("an earlier flush failed")),
        }
    }

    fn retire(&mut self, node: usize, segment: Option<u64>) {
        if let Some(segment) = segment {
            self.nodes[node].disk.retire(segment);
        }
    }

    fn end_resync(&mut self, node: usize) {
        let n = &mut self.nodes[node];
        if let Some(standby) = &mut n.standby {
            let (module, generation, epoch) = (standby.module, standby.generation, standby.epoch);
            let differs = !n.differing.is_empty();
            n.disk.update(|r| {
                r.end_resync(module, generation, epoch);
                if differs {
                    r.fall_behind();
                }
            });
            standby.machine.resync_ended();
            let ended = !n.disk.effects.is_dead();
            n.half_resynced &= !ended;
            // It has everything, and on its disk.
            n.lost_cache &= !ended;
            n.given_up &= !ended;
            // All that flushes had lost before was compared or moved.
            let lost = standby.failed_syncs != n.failed_syncs;
            n.lossy &= lost;
            n.doubtful &= lost;
            self.forget_own_marks(node);
        }
    }

    fn synced(&mut self, node: usize, seq: twinfold_protocol::ids::Seq) {
        if let Some(id) = self.nodes[node].connection {
            self.tell(node);
            self.send(node, id, Message::Receipt(Receipt::Synced { seq }));
        }
    }

    /// The primary asks this node to come again: it leaves in order, and dials.
    pub(crate) fn rejoin(&mut self, node: usize) {
        let Some(standby) = self.nodes[node].standby.take() else {
            return;
        };
        self.stats.rejoins += 1;
        let synced = self.sync_store(node).is_ok();
        let n = &mut self.nodes[node];
        let flushed = synced && standby.failed_syncs == n.failed_syncs;
        n.disk.update(|r| r.fall_behind());
        if let Some(id) = n.connection {
            self.send(node, id, Message::Leave { flushed });
        }
        self.drop_connection(node);
    }

    /// This copy cannot go on.
    fn standby_failed(&mut self, node: usize, reason: &str) {
        let Some(standby) = self.nodes[node].standby.take() else {
            return;
        };
        self.note(|| format!("node {node} fails: {reason}"));
        self.nodes[node].disk.update(|r| r.fall_behind());
        let receipt = Receipt::Failed {
            seq: standby.machine.applied_seq().next(),
            reason: reason.into(),
        };
        if let Some(id) = self.nodes[node].connection {
            self.send(node, id, Message::Receipt(receipt));
        }
        self.drop_connection(node);
    }
}

/// Planted bug: ops on different objects change places.
fn swap_heads(inbox: &mut std::collections::VecDeque<Sequenced>, follows: bool) {
    if let (true, [first, second, ..]) = (follows, inbox.make_contiguous())
        && let (Op::Write { file: a, .. }, Op::Write { file: b, .. }) = (&first.op, &second.op)
        && a != b
    {
        std::mem::swap(&mut first.op, &mut second.op);
    }
}

impl crate::disk::Disk {
    /// Planted bug: what is named by a listing is made anew.
    fn forget_contents(&mut self, op: &Op) {
        let Op::PutDirectory { entries, .. } = op else {
            return;
        };
        let files: Vec<FileId> = entries
            .iter()
            .filter_map(|e| e.object.as_ref().map(|o| o.file))
            .collect();
        for file in files {
            if self.fs.kind(file) == Some(twinfold_protocol::attr::Kind::Regular) {
                let _ = self.apply(&Op::Truncate {
                    file,
                    size: 0,
                    clear_privileges: false,
                });
            }
        }
    }
}

/// An op without its data.
pub(crate) fn brief(op: &Op) -> String {
    match op {
        Op::Write {
            file, offset, data, ..
        } => {
            format!(
                "write {file} at {} {:?}",
                offset / 4096,
                crate::fs::values(data)
            )
        }
        Op::PutData { file, offset, data } => {
            format!(
                "put {file} at {} {:?}",
                offset / 4096,
                crate::fs::values(data)
            )
        }
        Op::Create {
            parent,
            name,
            object,
        } => format!(
            "create {name} in {parent}: {:?} {}",
            object.kind, object.file
        ),
        other => format!("{other:?}"),
    }
}
