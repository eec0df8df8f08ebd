//! A node's disk: what a killed process leaves, the less that a power cut leaves, and
//! what a disk refuses that is full or broken.
//!
//! The model is a journaling file system in ordered mode: changes of names, sizes and
//! attributes survive in order, up to any point; a block that was not synced survives,
//! is torn or does not, each for itself, whatever became of the others.
//!
//! A flush that fails forgets, as Linux does: what it could not bring to the disk counts as
//! written, reads show it, and the disk has what it had before. Each descriptor is told of it
//! once; after that a flush succeeds.
//!
//! Everything that leaves a trace counts as an effect ([`Effects`]), so that a node can
//! be stopped in front of any of them.

use std::collections::{BTreeMap, BTreeSet};

use twinfold_protocol::ids::{FileId, Generation};
use twinfold_protocol::lifecycle::Record;
use twinfold_protocol::limits::BLOCK;
use twinfold_protocol::marks::Intent;
use twinfold_protocol::op::{AllocateMode, Op};

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
    /// Flushes of the store fail; changes stay in memory, where they succeed.
    pub(crate) unflushable: bool,
    /// Reads of the store fail.
    pub(crate) unreadable: bool,
    /// The copy of this generation is condemned. Noted where the disk is not needed, and lost
    /// with the machine's power.
    condemned: Option<Generation>,
    /// Blocks that memory shows as written, and of which the disk may have older bytes.
    forgotten: BTreeSet<(FileId, u32)>,
    /// Files whose descriptors have not been told of a failed flush.
    untold: BTreeSet<FileId>,
    /// Files whose writers have not been.
    untold_to_writers: BTreeSet<FileId>,
    /// The whole file system's has not.
    untold_whole: bool,
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

/// The disk does not do what it is asked for.
const IO: Refusal = Refusal::Trouble("input/output error");

impl Refusal {
    /// Whether it tells of a disk that cannot be trusted any more.
    pub(crate) fn is_disk_failure(&self) -> bool {
        *self == IO
    }
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
        if self.broken
            && !matches!(
                op,
                Op::Sync { .. } | Op::Checkpoint | Op::ResyncEnd | Op::Flush
            )
        {
            self.apply_part(op);
            return Err(IO);
        }
        if self.unreadable && matches!(op, Op::CopyRange { .. }) {
            return Err(IO);
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
        if self.effects.next() && !self.fails_to_flush() {
            self.fs.clear_aside();
            self.flushed();
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
        if self.fails_to_flush() {
            self.forget(|_| true);
            self.untold_whole = false;
            return Err(Refusal::Trouble("the flush failed"));
        }
        self.flushed();
        match std::mem::take(&mut self.untold_whole) {
            true => Err(Refusal::Trouble("an earlier flush failed")),
            false => Ok(()),
        }
    }

    fn fails_to_flush(&self) -> bool {
        self.broken || self.unflushable
    }

    /// What is in memory is on the disk, but for what a flush forgot.
    fn flushed(&mut self) {
        let older = self.older();
        self.durable = self.fs.clone();
        self.pending.clear();
        for op in older {
            let _ = perform(&mut self.durable, (&op, How::default()));
        }
    }

    /// What the disk has, or will have, of the blocks that flushes forgot.
    fn older(&self) -> Vec<Op> {
        if self.forgotten.is_empty() {
            return Vec::new();
        }
        let mut disk = self.durable.clone();
        for (op, how) in &self.pending {
            let _ = perform(&mut disk, (op, *how));
        }
        let blocks = self.forgotten.iter();
        let blocks = blocks.map(|(file, block)| (*file, u64::from(*block) * BLOCK));
        let there = blocks.filter(|(file, offset)| *offset < self.fs.size(*file));
        let old = |(file, at)| {
            put(
                file,
                at,
                disk.read(file, at, BLOCK).first().map_or(0, |v| *v),
            )
        };
        there.map(old).collect()
    }

    /// A flush of these files fails: their blocks count as written. Who asked is told, and
    /// everybody else will be.
    fn forget(&mut self, which: impl Fn(FileId) -> bool) {
        self.untold_whole = true;
        for (op, _) in &mut self.pending {
            let Some((file, offset, values)) = contents_of(op).filter(|(f, ..)| which(*f)) else {
                continue;
            };
            let first = (offset / BLOCK) as u32;
            let end = first + values.len() as u32;
            self.forgotten
                .extend((first..end).map(|block| (file, block)));
            self.untold.insert(file);
            self.untold_to_writers.insert(file);
            // The file is as long as it was to be.
            *op = Op::Allocate {
                file,
                mode: AllocateMode::Allocate,
                offset,
                length: values.len() as u64 * BLOCK,
            };
        }
    }

    /// Whether data of a file was lost since its writer was told last, whoever else was: what an
    /// open file was told of failures is its own. Mirrors the driver's `Opening`.
    pub(crate) fn failed_before(&mut self, file: FileId) -> bool {
        self.untold_to_writers.remove(&file)
    }

    /// The application opens its files.
    pub(crate) fn files_are_opened(&mut self) {
        self.untold_to_writers.clear();
    }

    /// A flush has failed of which the next one of everything tells.
    pub(crate) fn will_tell(&self) -> bool {
        self.untold_whole
    }

    /// The blocks of a file that memory shows as written, and of which the disk may have older
    /// bytes.
    pub(crate) fn forgotten_of(&self, file: FileId) -> Vec<u32> {
        let blocks = self.forgotten.range((file, 0)..=(file, u32::MAX));
        blocks.map(|(_, block)| *block).collect()
    }

    /// What is in memory and not on the disk is written back, unasked, and fails.
    pub(crate) fn fail_to_write_back(&mut self) {
        self.forget(|_| true);
    }

    /// What memory shows of a file, and the disk may not have, is written once more.
    pub(crate) fn make_sure(&mut self, file: FileId) {
        for block in self.forgotten_of(file) {
            self.forgotten.remove(&(file, block));
            let at = u64::from(block) * BLOCK;
            if at < self.fs.size(file) {
                let value = self.fs.read(file, at, BLOCK).first().map_or(0, |v| *v);
                self.pending.push((put(file, at, value), How::default()));
            }
        }
    }

    /// Lets memory go of what counts as written, of one file or of all: what is read is what
    /// the disk has.
    pub(crate) fn forget_cached(&mut self, of: Option<FileId>) {
        let mut older = self.older();
        let of_it = |file: FileId| of.is_none_or(|of| of == file);
        older.retain(|op| data_of(op).is_some_and(of_it));
        for op in older {
            let _ = perform(&mut self.fs, (&op, How::default()));
        }
        self.forgotten.retain(|(file, _)| !of_it(*file));
    }

    /// What is there is on the disk.
    pub(crate) fn take_as_it_is(&mut self) {
        self.forget_cached(None);
        self.flushed();
    }

    /// `fsync(2)`: the data of `file`, and the journal with all before it.
    pub(crate) fn sync(&mut self, file: FileId) -> Result<(), Refusal> {
        if !self.effects.next() {
            return Ok(());
        }
        if self.fails_to_flush() {
            self.forget(|f| f == file);
            self.untold.remove(&file);
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
        match self.untold.remove(&file) {
            true => Err(Refusal::Trouble("an earlier flush failed")),
            false => Ok(()),
        }
    }

    /// Changes the record, durably: all of it or nothing.
    pub(crate) fn update(&mut self, change: impl FnOnce(&mut Record)) {
        if self.effects.next() {
            change(&mut self.record);
        } else {
            self.torn |= self.effects.stopped() == Some(Stop::Power);
        }
    }

    /// Notes that this copy is condemned.
    pub(crate) fn condemn(&mut self) {
        if self.effects.next() {
            self.condemned = Some(self.record.copy.current);
        }
    }

    /// It is not.
    pub(crate) fn pardon(&mut self) {
        if self.condemned.is_some() && self.effects.next() {
            self.condemned = None;
        }
    }

    /// Whether it is noted that this copy is condemned.
    pub(crate) fn is_condemned(&self) -> bool {
        self.condemned == Some(self.record.copy.current)
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
        self.condemned = None;
        self.fs = self.durable.clone();
        self.forgotten.clear();
        self.untold.clear();
        self.untold_to_writers.clear();
        self.untold_whole = false;
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

#[cfg(test)]
mod tests {
    // A test's helpers fail the test.
    #![allow(clippy::unwrap_used)]

    use twinfold_protocol::attr::Kind;
    use twinfold_protocol::op::{Listing, Name, Object, PutEntry, Stability};

    use super::*;

    const FILE: FileId = FileId(64);

    fn write(value: u64) -> Op {
        Op::Write {
            file: FILE,
            offset: 0,
            stability: Stability::Mode,
            clear_privileges: false,
            data: payload(&[value]),
        }
    }

    /// A disk with a file of one block, 1, that is flushed, and 2 in memory that is not.
    fn disk() -> Disk {
        let mut disk = Disk::default();
        let object = PutEntry {
            name: Name::new(b"file".as_slice()).unwrap(),
            object: Some(Object {
                file: FILE,
                kind: Kind::Regular,
                ..Fs::default().object(FileId::ROOT).unwrap()
            }),
        };
        disk.apply(&Op::PutDirectory {
            directory: FileId::ROOT,
            listing: Listing::Names,
            entries: vec![object],
        })
        .unwrap();
        disk.apply(&write(1)).unwrap();
        disk.sync_all().unwrap();
        disk.apply(&write(2)).unwrap();
        disk
    }

    #[test]
    fn a_failed_flush_is_told_once_to_each_descriptor_and_forgets_what_it_was_to_write() {
        let mut disk = disk();
        disk.unflushable = true;
        assert!(disk.sync_all().is_err());
        disk.unflushable = false;
        assert_eq!(disk.sync_all(), Ok(()));
        assert!(disk.sync(FILE).is_err());
        assert_eq!(disk.sync(FILE), Ok(()));
        assert_eq!(disk.fs.read(FILE, 0, BLOCK), [2]);
        assert_eq!(disk.durable.read(FILE, 0, BLOCK), [1]);
        disk.forget_cached(Some(FILE));
        assert_eq!(disk.fs.read(FILE, 0, BLOCK), [1]);
    }

    #[test]
    fn what_is_written_again_gets_to_the_disk() {
        let mut disk = disk();
        disk.unflushable = true;
        assert!(disk.sync(FILE).is_err());
        disk.unflushable = false;
        disk.apply(&write(3)).unwrap();
        disk.forget_cached(None);
        assert_eq!(disk.fs.read(FILE, 0, BLOCK), [3]);
        assert_eq!(disk.sync(FILE), Ok(()));
        assert_eq!(disk.durable.read(FILE, 0, BLOCK), [3]);
    }
}
