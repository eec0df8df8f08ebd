//! A node's disk: what a killed process leaves, and the less that a power cut leaves.
//!
//! The model is a journaling file system in ordered mode: changes of names, sizes and
//! attributes survive in order, up to any point; a block that was not synced survives or
//! not, each for itself.

use std::collections::{BTreeMap, BTreeSet};

use twinfold_protocol::ids::FileId;
use twinfold_protocol::lifecycle::Record;
use twinfold_protocol::marks::Intent;
use twinfold_protocol::op::Op;

use crate::fs::Fs;
use crate::rng::Rng;

/// The disk of one node.
#[derive(Clone, Debug, Default)]
pub(crate) struct Disk {
    /// As the running system sees it.
    pub(crate) fs: Fs,
    durable: Fs,
    /// What was done since, in order.
    pending: Vec<(Op, bool)>,
    /// Intents; each is synced before it counts.
    pub(crate) log: Log,
    /// The copy's record; each change is synced.
    pub(crate) record: Record,
    /// No room for data.
    pub(crate) full: bool,
}

/// The intent log.
#[derive(Clone, Debug, Default)]
pub(crate) struct Log {
    segments: BTreeMap<u64, BTreeSet<Intent>>,
    current: u64,
    hot: BTreeSet<Intent>,
    /// A record in the middle cannot be read.
    pub(crate) damaged: bool,
}

impl Log {
    /// The driver starts: a new segment.
    pub(crate) fn open(&mut self) {
        self.hot.clear();
        self.current += 1;
        self.segments.insert(self.current, BTreeSet::new());
    }

    /// Whether an intent is durable and not retired.
    pub(crate) fn is_hot(&self, intent: Intent) -> bool {
        self.hot.contains(&intent)
    }

    /// Notes an intent, durably.
    pub(crate) fn note(&mut self, intent: Intent) {
        self.hot.insert(intent);
        self.segments
            .entry(self.current)
            .or_default()
            .insert(intent);
    }

    /// Begins a new segment.
    pub(crate) fn rotate(&mut self) -> u64 {
        self.open();
        self.current
    }

    /// Drops the segments before `segment`.
    pub(crate) fn retire(&mut self, segment: u64) {
        self.segments.retain(|number, _| *number >= segment);
    }

    /// Everything noted and not retired.
    pub(crate) fn all(&self) -> BTreeSet<Intent> {
        self.segments.values().flatten().copied().collect()
    }

    /// Loses some notes and is known to have.
    pub(crate) fn damage(&mut self, rng: &mut Rng) {
        for segment in self.segments.values_mut() {
            segment.retain(|_| !rng.one_in(3));
        }
        self.damaged = true;
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

fn perform(fs: &mut Fs, (op, syncing): (&Op, bool)) -> Result<(), String> {
    if op.is_resync() {
        fs.put(op)
    } else if syncing {
        fs.apply_syncing(op)
    } else {
        fs.apply(op)
    }
}

impl Disk {
    /// Changes the file system.
    pub(crate) fn apply(&mut self, op: &Op) -> Result<(), String> {
        self.apply_as(op, false)
    }

    /// The same, as the target of a resync if `syncing`.
    pub(crate) fn apply_as(&mut self, op: &Op, syncing: bool) -> Result<(), String> {
        perform(&mut self.fs, (op, syncing))?;
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
                data: crate::fs::payload(&self.fs.read(*to, *to_offset, *length)),
            },
            other => other.clone(),
        };
        self.pending.push((op, syncing));
        Ok(())
    }

    /// Removes what is still aside.
    pub(crate) fn clear_aside(&mut self) {
        self.fs.clear_aside();
        self.sync_all();
    }

    /// `syncfs(2)`.
    pub(crate) fn sync_all(&mut self) {
        self.durable = self.fs.clone();
        self.pending.clear();
    }

    /// `fsync(2)`: the data of `file`, and the journal with all before it.
    pub(crate) fn sync(&mut self, file: FileId) {
        let all = std::mem::take(&mut self.pending);
        // Data goes before a later change of its file's size.
        let mut resized = BTreeMap::new();
        for (i, (op, _)) in all.iter().enumerate() {
            if let Some(file) = resizes(op) {
                resized.insert(file, i);
            }
        }
        for (i, (op, syncing)) in all.iter().enumerate() {
            let data = data_of(op);
            let followed = data.is_some_and(|f| resized.get(&f).is_some_and(|at| *at > i));
            if data.is_none() || data == Some(file) || followed {
                let _ = perform(&mut self.durable, (op, *syncing));
            } else {
                self.pending.push((op.clone(), *syncing));
            }
        }
    }

    /// The process is gone.
    pub(crate) fn kill(&mut self) {
        self.fs.forget_listings();
    }

    /// The machine is gone, and with it what was not synced.
    pub(crate) fn cut_power(&mut self, rng: &mut Rng) {
        let all = std::mem::take(&mut self.pending);
        let journal = all.iter().filter(|(op, _)| data_of(op).is_none()).count() as u64;
        let mut left = rng.below(journal + 1);
        for (op, syncing) in &all {
            if data_of(op).is_some() {
                if rng.one_in(2) {
                    // What lay in a file that is not there is not there either.
                    let _ = perform(&mut self.durable, (op, *syncing));
                }
            } else if left > 0 {
                left -= 1;
                let _ = perform(&mut self.durable, (op, *syncing));
            }
        }
        self.fs = self.durable.clone();
        self.fs.forget_listings();
        self.durable.forget_listings();
    }
}

/// The file whose size an op that is no data changes.
fn resizes(op: &Op) -> Option<FileId> {
    match op {
        Op::Truncate { file, .. } => Some(*file),
        Op::PutObject { object, .. } => Some(object.file),
        _ => None,
    }
}
