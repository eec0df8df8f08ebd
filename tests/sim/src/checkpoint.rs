//! Checkpoints, periodic and by hand: both nodes flush, then notes and marks go.

use std::collections::BTreeSet;

use twinfold_protocol::handshake::Role;
use twinfold_protocol::primary::Link;
use twinfold_protocol::time::Timestamp;

use crate::bugs::Bug;
use crate::world::{CheckpointStage, MS, Step, World};

impl World {
    /// A checkpoint is due.
    pub(crate) fn checkpoint_periodic(&mut self, node: usize) {
        let every = if self.rng.one_in(3) { 100 } else { 700 };
        self.soon(node, every * MS, Step::Periodic);
        self.checkpoint(node);
    }

    /// Both nodes flush, unless there is nothing to flush: by itself or by hand.
    pub(crate) fn checkpoint(&mut self, node: usize) {
        let primary = self.nodes[node].role == Some(Role::Primary);
        self.checkpoint_alone(node);
        if primary && self.nodes[node].core.unflushed_counts() != (0, 0) {
            self.begin_checkpoint(node);
        }
    }

    /// Changes that have begun and not left the gate.
    pub(crate) fn inside(&self, node: usize) -> BTreeSet<u64> {
        let changes = self.nodes[node].changes.iter();
        let inside = changes.filter(|(_, c)| !c.passed);
        inside.map(|(id, _)| *id).collect()
    }

    /// Begins a checkpoint, unless one runs.
    pub(crate) fn begin_checkpoint(&mut self, node: usize) {
        let overlap = self.has(Bug::CheckpointsOverlap);
        let n = &mut self.nodes[node];
        let may = n.core.can_checkpoint() && !n.beginning;
        let may = may || (overlap && n.core.link() == Link::Paired);
        if !may {
            return;
        }
        n.beginning = true;
        // What was lost here is known by its notes alone: they stay.
        let segment = match n.lossy {
            true => None,
            false => Some(n.disk.rotate()),
        };
        if overlap {
            n.segment = segment;
        }
        if let (true, Some(segment)) = (self.has(Bug::EarlyRetire), segment) {
            self.nodes[node].disk.retire(segment);
        }
        let before = self.inside(node);
        let gather = CheckpointStage::Gather(segment, before);
        self.soon(node, 2 * MS, Step::Checkpoint(gather));
    }

    /// A checkpoint goes on.
    pub(crate) fn checkpoint_step(&mut self, node: usize, stage: CheckpointStage) {
        let (CheckpointStage::Gather(_, before)
        | CheckpointStage::Alone(_, before)
        | CheckpointStage::Flush(before)) = &stage;
        let now = self.inside(node);
        if before.iter().any(|id| now.contains(id)) {
            return self.soon(node, 2 * MS, Step::Checkpoint(stage));
        }
        match stage {
            CheckpointStage::Gather(segment, _) => {
                let at = self.instant();
                let n = &mut self.nodes[node];
                if !n.core.begin_checkpoint(at, Timestamp::default()) {
                    n.beginning = false;
                    return;
                }
                if self.bug != Some(Bug::CheckpointsOverlap) {
                    n.segment = segment;
                }
                self.ship(node);
                self.soon_disk(node, 4 * MS, Step::Checkpoint(CheckpointStage::Flush(now)));
            }
            CheckpointStage::Alone(segment, _) => self.save_alone(node, segment),
            CheckpointStage::Flush(_) => {
                self.nodes[node].beginning = false;
                // What a broken disk could not flush stays marked and noted.
                match self.sync_store(node) {
                    Ok(()) => self.nodes[node].core.checkpoint_flushed(),
                    Err(_) => {
                        self.nodes[node].core.checkpoint_failed();
                        self.nodes[node].ailing = !self.is_away(node);
                    }
                }
                self.perform(node);
            }
        }
    }
}
