//! The primary's driver: changes under way, votes, actions, checkpoints.

use twinfold_protocol::handshake::Role;
use twinfold_protocol::ids::{FileId, Generation, Seq};
use twinfold_protocol::limits::MAX_OFFSET;
use twinfold_protocol::marks::{Intent, id_block, intents_of};
use twinfold_protocol::op::{Op, Stability};
use twinfold_protocol::primary::{Action, Link};
use twinfold_protocol::time::Timestamp;

use crate::bugs::Bug;
use crate::calls::Answer;
use crate::checker::Place;
use crate::disk::{Disk, Refusal};
use crate::fs::{Fs, payload};
use crate::net::Message;
use crate::takeover::Undone;
use crate::workload::{below_itself, held_by, named_by};
use crate::world::{MS, Step, World};

/// A change under way.
#[derive(Clone, Debug)]
pub(crate) struct Change {
    /// What is done.
    pub(crate) op: Op,
    /// Files it holds.
    pub(crate) locked: Vec<FileId>,
    /// Its place in the order, when the peer is waited for.
    pub(crate) seq: Option<Seq>,
    /// In which term of its node it began.
    pub(crate) term: u64,
    /// It has left the gate: its sync and its votes are all that is left.
    pub(crate) passed: bool,
    /// Nothing is done here any more: only the reply waits.
    pub(crate) applied: bool,
    /// The peer is asked to carry it out.
    pub(crate) away: bool,
    /// The peer's application asked for it, by this call.
    pub(crate) guest: Option<u64>,
}

impl Change {
    /// One that begins.
    pub(crate) fn new(op: Op, term: u64) -> Change {
        let passed = matches!(op, Op::Sync { .. });
        Change {
            op,
            locked: Vec::new(),
            seq: None,
            term,
            passed,
            applied: false,
            away: false,
            guest: None,
        }
    }
}

/// Where a change stands.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Stage {
    /// It takes its locks.
    Lock,
    /// Its intents are durable.
    Noted,
    /// It takes its place in the order.
    Place,
    /// It is applied here.
    Apply,
    /// A sync is done here.
    Synced,
}

impl World {
    /// A change goes on.
    pub(crate) fn change_step(&mut self, node: usize, id: u64, stage: Stage) {
        let change = self.nodes[node].changes.get(&id).filter(|c| !c.away);
        let Some(change) = change.cloned() else {
            return;
        };
        match stage {
            Stage::Lock => self.change_lock(node, id, &change.op),
            Stage::Noted => {
                self.note_intents(node, &change.op);
                self.soon(node, MS, Step::Change(id, Stage::Place));
            }
            Stage::Place => self.change_place(node, id, &change.op),
            Stage::Apply => self.change_apply(node, id, &change),
            Stage::Synced => {
                if let Op::Sync { file, .. } | Op::Write { file, .. } = change.op {
                    let mut done = self.sync_object(node, file);
                    // A failure that another's call met is this one's as well.
                    if change.guest.is_none() && self.nodes[node].disk.failed_before(file) {
                        done = Err(Refusal::Trouble("an earlier flush failed"));
                    }
                    // One that ended well after the disk had failed says nothing.
                    match (done, self.is_away(node)) {
                        (_, true) => self.moves(node, id),
                        (Ok(()), false) => self.vote(node, id),
                        (Err(_), false) => self.told_failed(node, id),
                    }
                }
            }
        }
    }

    fn writable(&self, node: usize) -> bool {
        self.nodes[node].role == Some(Role::Primary) && !self.nodes[node].closing
    }

    fn change_lock(&mut self, node: usize, id: u64, op: &Op) {
        if self.is_away(node) {
            return self.moves(node, id);
        }
        if !self.writable(node) {
            return self.refused(node, id);
        }
        if let Op::Sync { .. } = op {
            return self.soon(node, MS, Step::Change(id, Stage::Place));
        }
        let wanted = held_by(op);
        let locks = &mut self.nodes[node].locks;
        if wanted.iter().any(|f| locks.contains(f)) {
            return self.soon(node, MS, Step::Change(id, Stage::Lock));
        }
        locks.extend(wanted.iter().copied());
        if let Some(change) = self.nodes[node].changes.get_mut(&id) {
            change.locked = wanted;
        }
        if self.is_cold(node, op) && !self.has(Bug::NoIntents) && !self.has(Bug::LateIntents) {
            self.soon_disk(node, 4 * MS, Step::Change(id, Stage::Noted));
        } else {
            self.soon(node, MS / 4, Step::Change(id, Stage::Place));
        }
    }

    fn old_size(&self, node: usize, op: &Op) -> u64 {
        match op {
            Op::Truncate { file, .. } | Op::Allocate { file, .. } => {
                self.nodes[node].disk.fs.size(*file)
            }
            Op::PutObject { object, .. } => self.nodes[node].disk.fs.size(object.file),
            _ => 0,
        }
    }

    /// The intents of an op that are not durable yet.
    pub(crate) fn cold(&self, node: usize, op: &Op) -> Vec<Intent> {
        let Disk { log, fs, .. } = &self.nodes[node].disk;
        let is_new = |file: FileId| log.is_hot(id_block(file));
        let mut cold = Vec::new();
        intents_of(op, self.old_size(node, op), |intent| {
            let new = match intent {
                Intent::Extent { file, .. }
                | Intent::Attributes { file }
                | Intent::File { file } => is_new(file),
                _ => false,
            };
            if !new {
                cold.push(intent);
            }
        });
        // What a resync makes is noted as new.
        let made = |file: FileId| !is_new(file) && !fs.items.contains_key(&file);
        match op {
            Op::PutDirectory {
                directory, entries, ..
            } => {
                let objects = entries.iter().filter_map(|e| e.object.as_ref());
                let files = objects.map(|o| o.file).chain([*directory]);
                cold.extend(files.filter(|f| made(*f)).map(id_block));
            }
            Op::PutObject { object, .. } if made(object.file) => cold.push(id_block(object.file)),
            _ => {}
        }
        cold.retain(|intent| !log.is_hot(*intent));
        cold
    }

    fn is_cold(&self, node: usize, op: &Op) -> bool {
        !self.cold(node, op).is_empty()
    }

    /// Makes the intents of an op durable.
    pub(crate) fn note_intents(&mut self, node: usize, op: &Op) {
        let cold = self.cold(node, op);
        self.nodes[node].disk.note(cold);
    }

    pub(crate) fn refused(&mut self, node: usize, id: u64) {
        if let Some(change) = self.nodes[node].changes.remove(&id) {
            for file in change.locked {
                self.nodes[node].locks.remove(&file);
            }
            if let Some(number) = change.guest {
                self.answer(node, number, Answer::Failed);
            }
        }
    }

    /// A change that was not done here, because the disk has failed, is done by the peer. One
    /// of a visitor is not.
    fn moves(&mut self, node: usize, id: u64) {
        let guest = self.nodes[node].changes.get(&id).map(|c| c.guest);
        match guest {
            Some(None) => self.move_call(node, id),
            _ => self.told_failed(node, id),
        }
    }

    /// The change takes its place in the order; all but writes are applied at once.
    fn change_place(&mut self, node: usize, id: u64, op: &Op) {
        if self.nodes[node].role != Some(Role::Primary) {
            return self.refused(node, id);
        }
        if let Op::Sync { .. } = op {
            if self.is_away(node) {
                return self.moves(node, id);
            }
            self.submit(node, id, op.clone(), 0);
            return self.soon_disk(node, 5 * MS, Step::Change(id, Stage::Synced));
        }
        if let Op::Write { .. } = op {
            if self.nodes[node].disk.fs.items.contains_key(&held_by(op)[0]) {
                self.asked(node, id, op);
                self.submit(node, id, op.clone(), 0);
                if self.has(Bug::NoRangeLock) {
                    self.unlock(node, id);
                }
                return self.soon(node, 2 * MS, Step::Change(id, Stage::Apply));
            }
            return self.refused(node, id);
        }
        if let Op::CopyRange { from, to, .. } = op
            && !self.nodes[node].disk.fs.items.contains_key(from)
            && self.nodes[node].disk.fs.file(*to).is_some()
        {
            return self.copy_of_orphan(node, id, op);
        }
        let old_size = self.old_size(node, op);
        let before = self.nodes[node].disk.fs.clone();
        if below_itself(&before, op) {
            return self.refused(node, id);
        }
        match self.nodes[node].disk.apply(op) {
            Ok(()) => {}
            Err(why) if why.is_disk_failure() => return self.failed_here(node, id, op),
            Err(_) => return self.refused(node, id),
        }
        if self.nodes[node].disk.effects.is_dead() {
            return;
        }
        if self.has(Bug::LateIntents) {
            self.soon(node, 4 * MS, Step::Change(id, Stage::Noted));
        }
        self.keep_orphans(node, op, &before);
        self.asked(node, id, op);
        if self.has(Bug::TruncateNotShipped) && matches!(op, Op::Truncate { .. }) {
            self.unlock(node, id);
            return self.reply(node, id);
        }
        match op {
            Op::CopyRange {
                from,
                to,
                to_offset,
                length,
                ..
            } if !self.nodes[node].core.peer_can_copy(*from) => {
                let held = self.nodes[node].disk.fs.read(*to, *to_offset, *length);
                let contents = Op::Write {
                    file: *to,
                    offset: *to_offset,
                    stability: Stability::Mode,
                    clear_privileges: false,
                    data: payload(&held),
                };
                self.submit(node, id, contents, 0);
            }
            _ => self.submit(node, id, op.clone(), old_size),
        }
        self.unlock(node, id);
        self.vote(node, id);
    }

    /// The disk has failed a change that is applied here before it is shipped, and nobody
    /// knows whether it did a part of it.
    fn failed_here(&mut self, node: usize, id: u64, op: &Op) {
        let old_size = self.old_size(node, op);
        let undone = match op {
            Op::Truncate { file, .. } | Op::Allocate { file, .. } => {
                vec![Undone::Data(*file, 0, MAX_OFFSET)]
            }
            Op::CopyRange {
                to,
                to_offset,
                length,
                ..
            } => vec![Undone::Data(*to, *to_offset, *length)],
            _ => {
                let mut touched = named_by(op);
                touched.dedup();
                touched.into_iter().map(Undone::Object).collect()
            }
        };
        self.nodes[node].core.failed_here(op, old_size);
        if self.disk_failed_in(node, &undone) {
            return self.moves(node, id);
        }
        for undone in undone {
            if let Undone::Object(_) = undone {
                self.differs(node, undone);
            }
        }
        self.refused(node, id);
    }

    /// What lost its last name lasts as long as somebody has it open.
    fn keep_orphans(&mut self, node: usize, op: &Op, before: &Fs) {
        let n = &mut self.nodes[node];
        for file in held_by(op) {
            let used = |c: &Change| held_by(&c.op).contains(&file);
            if !n.disk.fs.items.contains_key(&file)
                && let Some(item) = before.items.get(&file)
                && n.changes.values().filter(|c| used(c)).count() > 1
            {
                n.orphans.insert(file, item.clone());
            }
        }
    }

    /// A copy out of a file whose last name went a moment ago: the peer does not have it any
    /// more, and gets what was copied.
    fn copy_of_orphan(&mut self, node: usize, id: u64, op: &Op) {
        let Op::CopyRange {
            from,
            from_offset,
            to,
            to_offset,
            length,
        } = op
        else {
            return;
        };
        let Some(item) = self.nodes[node].orphans.get(from) else {
            return self.refused(node, id);
        };
        let held = item.read(*from_offset, *length);
        let contents = Op::Write {
            file: *to,
            offset: *to_offset,
            stability: Stability::Mode,
            clear_privileges: false,
            data: payload(&held),
        };
        // A copy that fails half-way says how far it came; here it fails at once.
        let disk = &mut self.nodes[node].disk;
        if disk.broken {
            // The peer does not have its source: the application is told.
            self.disk_failed_in(node, &[Undone::Data(*to, *to_offset, *length)]);
            return self.refused(node, id);
        }
        if disk.full || disk.apply(&contents).is_err() {
            return self.refused(node, id);
        }
        self.stats.orphans += 1;
        self.asked(node, id, &contents);
        let shipped = match self.has(Bug::CopyOfNameless) {
            true => op.clone(),
            false => contents,
        };
        self.submit(node, id, shipped, 0);
        self.unlock(node, id);
        self.vote(node, id);
    }

    pub(crate) fn unlock(&mut self, node: usize, id: u64) {
        let n = &mut self.nodes[node];
        if let Some(change) = n.changes.get_mut(&id) {
            for file in std::mem::take(&mut change.locked) {
                n.locks.remove(&file);
            }
            change.passed = true;
        }
    }

    fn submit(&mut self, node: usize, id: u64, op: Op, old_size: u64) {
        self.note(|| format!("node {node} change {id}: {}", crate::secondary::brief(&op)));
        let seq = self.place(node, op, old_size);
        if let Some(change) = self.nodes[node].changes.get_mut(&id) {
            change.seq = seq;
        }
    }

    /// An op gets its number, if it gets one.
    fn place(&mut self, node: usize, op: Op, old_size: u64) -> Option<Seq> {
        let now = self.instant();
        let core = &mut self.nodes[node].core;
        let next = core.next_seq();
        let submitted = core.submit(now, Timestamp::default(), op.clone(), old_size);
        let shipped = (core.next_seq() != next).then_some(next);
        if let Err(e) = self.sequence[node].placed(&op, shipped) {
            let op = crate::secondary::brief(&op);
            self.fail(format!(
                "node {node} places {op}, which cannot be done: {e}"
            ));
        }
        self.ship(node);
        submitted.seq
    }

    /// An op of the driver's own, for which nobody waits.
    fn submit_unasked(&mut self, node: usize, op: Op, old_size: u64) {
        if let Some(seq) = self.place(node, op, old_size) {
            let now = self.instant();
            self.nodes[node].core.local_done(now, seq, 0);
        }
    }

    fn change_apply(&mut self, node: usize, id: u64, change: &Change) {
        let Op::Write {
            file,
            offset,
            data,
            stability,
            ..
        } = &change.op
        else {
            return;
        };
        let here = self.nodes[node].disk.apply(&change.op);
        if self.has(Bug::LateIntents) {
            self.note_intents(node, &change.op);
        }
        if here.is_ok() {
            self.unlock(node, id);
            if *stability == Stability::Mode {
                self.vote(node, id);
            } else {
                self.soon_disk(node, 5 * MS, Step::Change(id, Stage::Synced));
            }
            return;
        }
        // A part of it may be here.
        if self.is_for_the_application(node, id) {
            let size = self.nodes[node].disk.fs.size(*file);
            self.checker.asked(id, [(Place::Size(*file), size)]);
        }
        let range = Undone::Data(*file, *offset, data.len() as u64);
        if here.is_err_and(|why| why.is_disk_failure()) && self.disk_failed_in(node, &[range]) {
            // The peer has it, or will; whether that counts is known when it has taken over.
            return self.moves(node, id);
        }
        // It failed here: the peer gets what is here.
        if let (Some(seq), false) = (change.seq, self.has(Bug::NoUndo)) {
            let now = self.instant();
            self.nodes[node].core.local_done(now, seq, 0);
        }
        if self.nodes[node].disk.unreadable {
            self.differs(node, range);
        } else if !self.has(Bug::NoUndo) {
            let size = self.nodes[node].disk.fs.size(*file);
            let length = (data.len() as u64).min(size.saturating_sub(*offset));
            let held = self.nodes[node].disk.fs.read(*file, *offset, length);
            if !held.is_empty() {
                let op = Op::Write {
                    file: *file,
                    offset: *offset,
                    stability: Stability::Mode,
                    clear_privileges: false,
                    data: payload(&held),
                };
                self.submit_unasked(node, op, size);
            }
            let op = Op::Truncate {
                file: *file,
                size,
                clear_privileges: false,
            };
            self.submit_unasked(node, op, size);
        }
        self.refused(node, id);
        self.perform(node);
    }

    /// The local vote of a change.
    fn vote(&mut self, node: usize, id: u64) {
        let now = self.instant();
        let n = &mut self.nodes[node];
        let Some(change) = n.changes.get_mut(&id) else {
            return;
        };
        change.applied = true;
        let (seq, late) = (change.seq, change.term != n.term);
        let ready = match seq {
            None => Some(id),
            Some(_) if self.bug == Some(Bug::LocalSync) && matches!(change.op, Op::Sync { .. }) => {
                Some(id)
            }
            Some(seq) => n.core.local_done(now, seq, id),
        };
        if let Some(id) = ready {
            self.reply(node, id);
        } else if late && self.bug != Some(Bug::StaleVote) {
            // It came too late: the application gets an error.
            self.refused(node, id);
        }
    }

    /// Puts what is ready on the wire.
    pub(crate) fn ship(&mut self, node: usize) {
        let Some(id) = self.nodes[node].connection else {
            return;
        };
        while let Some(op) = self.nodes[node].core.next_op() {
            self.send(node, id, Message::Op(Box::new(op)));
        }
    }

    /// Sends replies and takes actions.
    pub(crate) fn perform(&mut self, node: usize) {
        let (mut replies, mut actions) = (Vec::new(), Vec::new());
        self.nodes[node].core.drain(&mut replies, &mut actions);
        for id in replies {
            self.reply(node, id);
        }
        for action in actions {
            self.act(node, action);
        }
    }

    fn act(&mut self, node: usize, action: Action) {
        self.note(|| format!("node {node}: {action:?}"));
        match action {
            Action::DropPeer { .. } => self.drop_connection(node),
            Action::AskToGoAlone { .. } => {
                if self.has(Bug::GoAloneUnasked) {
                    self.nodes[node].core.go_alone();
                    return self.perform(node);
                }
                if !self.habits.hold {
                    self.soon(node, 20 * MS, Step::AskWitness);
                }
            }
            // Whoever asks the witness looks first whether that is still needed.
            Action::AskNoMore => {}
            Action::MakeAlone => {
                self.stats.alone += 1;
                let generation = Generation(self.random_id());
                self.soon_disk(node, 5 * MS, Step::Alone(generation));
            }
            Action::PeerIsCurrent => {
                self.stats.resyncs += 1;
                if self.serving.is_some_and(|(n, _)| n == node) {
                    self.before_split.clear();
                }
                if let Some(session) = self.nodes[node].core.session() {
                    self.peer_ends_doubt(node, session);
                }
                let generation = self.nodes[node].disk.record.copy.current;
                self.soon_disk(node, 5 * MS, Step::PeerIsCurrent(generation));
            }
            Action::PeerTookOver => self.peer_took_over(node),
            Action::HeirIsLate => self.heir_is_late(node),
            Action::CheckpointDone => {
                self.stats.checkpoints += 1;
                if let Some(segment) = self.nodes[node].segment.take() {
                    self.notes_may_go(node, segment);
                }
            }
            Action::Verified { seq, found } => self.verified(node, seq, &found),
            Action::Unanswered { seq } => {
                self.nodes[node].verifying.remove(&seq);
            }
        }
    }

    /// The new generation is durable.
    pub(crate) fn alone(&mut self, node: usize, generation: Generation) {
        // One that was asked to take over could not, and said so.
        self.peer_cannot_take_over(node);
        self.nodes[node].disk.update(|r| r.go_alone(generation));
        let serves = self.serving == Some((node, self.nodes[node].life));
        if serves && !self.habits.witness {
            self.remember_before_split(node);
        }
        if self.nodes[node].core.link() == Link::Leaving {
            self.nodes[node].core.alone_is_durable();
        }
        self.perform(node);
    }

    /// Closes the connection to the peer.
    pub(crate) fn drop_connection(&mut self, node: usize) {
        if let Some(id) = self.nodes[node].connection.take() {
            self.close(id, node);
        }
    }

    /// Deadlines.
    pub(crate) fn tick(&mut self, node: usize) {
        self.soon(node, 60 * MS, Step::Tick);
        if self.nodes[node].role == Some(Role::Primary) {
            let now = self.instant();
            self.nodes[node].core.tick(now);
            self.perform(node);
            self.expire_calls(node);
        }
    }
}
