//! Checkpoints: both nodes flush, then what was marked before is known to be on both
//! disks and need not be remembered any more (invariant 2).

use super::window::{Local, Vote};
use super::{Action, Link, Primary};
use crate::ids::Seq;
use crate::marks::DirtyMap;
use crate::op::Op;
use crate::time::{Instant, Timestamp};

/// A checkpoint that has begun.
#[derive(Debug, Clone, Copy)]
pub(super) struct Checkpoint {
    pub(super) seq: Seq,
    local: bool,
    pub(super) peer: bool,
}

impl<R> Primary<R> {
    /// Whether a checkpoint could begin now.
    pub fn can_checkpoint(&self) -> bool {
        self.link == Link::Paired && self.checkpoint.is_none()
    }

    /// Whether a checkpoint has begun and not ended.
    pub fn checkpoint_runs(&self) -> bool {
        self.checkpoint.is_some()
    }

    /// Begins a checkpoint: both nodes flush, then marks made before it are dropped.
    /// Does nothing unless paired and no other one runs. Returns whether one began:
    /// the driver then flushes the local copy and calls [`Primary::checkpoint_flushed`].
    pub fn begin_checkpoint(&mut self, now: Instant, time: Timestamp) -> bool {
        if !self.can_checkpoint() {
            return false;
        }
        self.rotate_marks();
        let seq = self.push(now, time, Op::Checkpoint, 0, Vote::Synced);
        self.settle_internal(seq);
        self.checkpoint = Some(Checkpoint {
            seq,
            local: false,
            peer: false,
        });
        true
    }

    pub(super) fn rotate_marks(&mut self) {
        let fresh = std::mem::take(&mut self.fresh);
        self.older.unite(fresh);
    }

    /// Nobody waits for this entry's reply.
    pub(super) fn settle_internal(&mut self, seq: Seq) {
        if let Some(entry) = self.window.get(seq) {
            entry.local = Local::Settled;
        }
    }

    /// The local copy has flushed everything before the running checkpoint.
    pub fn checkpoint_flushed(&mut self) {
        if let Some(checkpoint) = &mut self.checkpoint {
            checkpoint.local = true;
            self.checkpoint_progress();
        }
    }

    /// The local copy could not be flushed: the running checkpoint does not end as one, what
    /// was marked before it stays marked, and another one may begin.
    pub fn checkpoint_failed(&mut self) {
        self.checkpoint = None;
    }

    pub(super) fn checkpoint_progress(&mut self) {
        if self.checkpoint.is_some_and(|c| c.local && c.peer) {
            self.checkpoint = None;
            self.older = DirtyMap::default();
            self.actions.push(Action::CheckpointDone);
        }
    }
}
