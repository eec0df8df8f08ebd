//! A node's disk: what a killed process leaves, the less that a power cut leaves, and
//! what a disk refuses that is full or broken.
//!
//! The model is a journaling file system in ordered mode: changes of names, sizes and
//! attributes survive in order, up to any point; a block that was not synced survives,
//! is torn or does not, each for itself, whatever became of the others.
//!
//! Everything that leaves a trace counts as an effect ([`Effects`]), so that a node can
//! be stopped in front of any of them.

use std::collections::BTreeMap;

use twinfold_protocol::ids::FileId;
use twinfold_protocol::lifecycle::Record;
use twinfold_protocol::limits::BLOCK;
use twinfold_protocol::marks::Intent;
use twinfold_protocol::op::Op;

use crate::bugs::Bug;
use crate::effects::{Effects, Stop};
use crate::fs::{Fs, payload, values};
use crate::log::Log;
use crate::own::Saved;
use crate::rng::Rng;

/// The disk of one node.
#[derive(Clone, Debug, Default)]
pub(crate) struct Disk {
    /// As the running system sees it.
    pub(crate) fs: Fs,
    durable: Fs,
    /// What was done since, in order.
    pending: Vec<(Op, How)>,
    /// A session or a process has begun, and changed no name yet.
    begins: bool,
    /// Intents; each is synced before it counts.
    pub(crate) log: Log,
    /// The copy's record; each change is synced. Changed by [`Disk::update`] only.
    pub(crate) record: Record,
    /// Marks saved for the next run.
    pub(crate) saved: Saved,
    /// No room for data.
    pub(crate) full: bool,
    /// Changes and flushes of the store fail.
    pub(crate) broken: bool,
    /// What a sync takes longer than it should, in nanoseconds.
    pub(crate) slow: u64,
    /// What the node does to the outside.
    pub(crate) effects: Effects,
    /// A change of the record that power was cut in.
    torn: bool,
}

/// How an op is done.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct How {
    /// By the target of a resync.
    syncing: bool,
    /// As the first one of its process or session.
    begins: bool,
}

/// Why a disk does not do something.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Refusal {
    /// No space left, or an input or output error.
    Trouble(&'static str),
    /// The copy is not what the op expects.
    Drifted(String),
}

/// The file whose data an op changes, if it changes nothing else.
fn data_of(op: &Op) -> Option<FileId> {
    match op {
        Op::Write { file, .. }
        | Op::PutData { file, .. }
        | Op::PutHole { file, .. }
        | Op::Allocate { file, .. } => Some(*file),
        Op::CopyRange { to, .. } => Some(*to),
        _ => None,
    }
}

/// Where an op puts data, and what.
fn contents_of(op: &Op) -> Option<(FileId, u64, Vec<u64>)> {
    match op {
        Op::Write {
            file, offset, data, ..
        }
        | Op::PutData { file, offset, data } => Some((*file, *offset, values(data))),
        _ => None,
    }
}

fn perform(fs: &mut Fs, (op, how): (&Op, How)) -> Result<(), String> {
    if how.begins {
        fs.forget_listings();
    }
    if op.is_resync() {
        fs.put(op)
    } else if how.syncing {
        fs.apply_syncing(op)
    } else {
        fs.apply(op)
    }
}

fn put(file: FileId, offset: u64, value: u64) -> Op {
    Op::PutData {
        file,
        offset,
        data: payload(&[value]),
    }
}

impl Disk {
    /// Changes the file system.
    pub(crate) fn apply(&mut self, op: &Op) -> Result<(), Refusal> {
        self.apply_as(op, false)
    }

    /// The same, as the target of a resync if `syncing`.
    pub(crate) fn apply_as(&mut self, op: &Op, syncing: bool) -> Result<(), Refusal> {
        if !self.effects.next() {
            return Ok(());
        }
        if self.broken && !matches!(op, Op::Sync { .. } | Op::Checkpoint | Op::ResyncEnd) {
            self.apply_part(op);
            return Err(Refusal::Trouble("input/output error"));
        }
        if self.full && op.payload_len() > 0 {
            self.apply_part(op);
            return Err(Refusal::Trouble("no space left"));
        }
        if syncing && self.fs.waits(op) {
            return Err(Refusal::Trouble("a name is out of its place for now"));
        }
        let begins = data_of(op).is_none() && std::mem::take(&mut self.begins);
        let how = How { syncing, begins };
        perform(&mut self.fs, (op, how)).map_err(Refusal::Drifted)?;
        // A copy is what it copied, whatever becomes of its source.
        let op = match op {
            Op::CopyRange {
                to,
                to_offset,
                length,
                ..
            } => Op::PutData {
                file: *to,
                offset: *to_offset,
                data: payload(&self.fs.read(*to, *to_offset, *length)),
            },
            other => other.clone(),
        };
        self.pending.push((op, how));
        Ok(())
    }

    /// A write that fails may have written its first block.
    fn apply_part(&mut self, op: &Op) {
        if let Some((file, offset, values)) = contents_of(op)
            && let Some(first) = values.first()
            && values.len() > 1
            && self.fs.file(file).is_some()
        {
            let op = put(file, offset, *first);
            if perform(&mut self.fs, (&op, How::default())).is_ok() {
                self.pending.push((op, How::default()));
            }
        }
    }

    /// What a power cut would certainly leave.
    pub(crate) fn durable(&self) -> &Fs {
        &self.durable
    }

    /// Removes what is still aside.
    pub(crate) fn clear_aside(&mut self) {
        if self.effects.next() {
            self.fs.clear_aside();
            self.durable = self.fs.clone();
            self.pending.clear();
        }
    }

    /// A copy is made the good one: what a resync left aside has no place in it.
    pub(crate) fn settle_aside(&mut self) {
        if self.effects.next() {
            self.fs.settle_aside();
            self.durable.settle_aside();
        }
    }

    /// `syncfs(2)`.
    pub(crate) fn sync_all(&mut self) -> Result<(), Refusal> {
        if !self.effects.next() {
            return Ok(());
        }
        if self.broken {
            return Err(Refusal::Trouble("the flush failed"));
        }
        self.take_as_it_is();
        Ok(())
    }

    /// What is there is on the disk.
    pub(crate) fn take_as_it_is(&mut self) {
        self.durable = self.fs.clone();
        self.pending.clear();
    }

    /// `fsync(2)`: the data of `file`, and the journal with all before it.
    pub(crate) fn sync(&mut self, file: FileId) -> Result<(), Refusal> {
        if !self.effects.next() {
            return Ok(());
        }
        if self.broken {
            return Err(Refusal::Trouble("the flush failed"));
        }
        let all = std::mem::take(&mut self.pending);
        // Data goes before a later change of its file's size.
        let mut resized = BTreeMap::new();
        for (i, (op, _)) in all.iter().enumerate() {
            if let Some(file) = resizes(op) {
                resized.insert(file, i);
            }
        }
        for (i, (op, how)) in all.iter().enumerate() {
            let data = data_of(op);
            let followed = data.is_some_and(|f| resized.get(&f).is_some_and(|at| *at > i));
            if data.is_none() || data == Some(file) || followed {
                let _ = perform(&mut self.durable, (op, *how));
            } else {
                self.pending.push((op.clone(), *how));
            }
        }
        Ok(())
    }

    /// Changes the record, durably: all of it or nothing.
    pub(crate) fn update(&mut self, change: impl FnOnce(&mut Record)) {
        if self.effects.next() {
            change(&mut self.record);
        } else {
            self.torn |= self.effects.stopped() == Some(Stop::Power);
        }
    }

    /// Notes intents, durably.
    pub(crate) fn note(&mut self, intents: impl IntoIterator<Item = Intent>) {
        for intent in intents {
            if !self.effects.next() {
                return;
            }
            self.log.note(intent);
        }
    }

    /// Begins a new segment of notes.
    pub(crate) fn rotate(&mut self) -> u64 {
        if self.effects.next() {
            self.log.open();
        }
        self.log.current()
    }

    /// Drops the segments of notes before `segment`.
    pub(crate) fn retire(&mut self, segment: u64) {
        if self.effects.next() {
            self.log.retire(segment);
        }
    }

    /// A resync of this copy begins.
    pub(crate) fn begin_session(&mut self) {
        self.fs.forget_listings();
        self.begins = true;
    }

    /// The process is gone.
    pub(crate) fn kill(&mut self) {
        self.begin_session();
        self.effects.begin();
    }

    /// The machine is gone, and with it what was not synced.
    pub(crate) fn cut_power(&mut self, rng: &mut Rng, bug: Option<Bug>) {
        self.effects.begin();
        if std::mem::take(&mut self.torn) && bug == Some(Bug::TornRecord) {
            self.record = Record::default();
        }
        let all = std::mem::take(&mut self.pending);
        let journal = all.iter().filter(|(op, _)| data_of(op).is_none()).count() as u64;
        let mut left = rng.below(journal + 1);
        for (op, how) in &all {
            if let Some((file, offset, values)) = contents_of(op) {
                // What lay in a file that is not there is not there either.
                for (i, value) in values.into_iter().enumerate() {
                    let offset = offset + i as u64 * BLOCK;
                    let old = self.durable.read(file, offset, BLOCK).first().copied();
                    let kept = match rng.below(8) {
                        0..=3 => continue,
                        4 => torn(old.unwrap_or(0), value),
                        _ => value,
                    };
                    let _ = perform(
                        &mut self.durable,
                        (&put(file, offset, kept), How::default()),
                    );
                }
            } else if data_of(op).is_some() {
                if rng.one_in(2) {
                    let _ = perform(&mut self.durable, (op, *how));
                }
            } else if left > 0 {
                left -= 1;
                let _ = perform(&mut self.durable, (op, *how));
            }
        }
        self.fs = self.durable.clone();
        self.fs.forget_listings();
        self.durable.forget_listings();
    }
}

/// A block that was being written when power went: one half old, one half new.
fn torn(old: u64, new: u64) -> u64 {
    (old >> 32 << 32) | (new & u64::from(u32::MAX))
}

/// The file whose size an op that is no data changes.
fn resizes(op: &Op) -> Option<FileId> {
    match op {
        Op::Truncate { file, .. } => Some(*file),
        Op::PutObject { object, .. } => Some(object.file),
        _ => None,
    }
}
