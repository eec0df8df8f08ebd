//! What a node has changed in its own copy: saved exactly at the end of a run and of a
//! term, and at a checkpoint while it is alone, which then lets the notes go. Mirrors the
//! driver's order of effects.

use std::collections::BTreeSet;

use twinfold_protocol::handshake::Role;
use twinfold_protocol::lifecycle::MarksId;
use twinfold_protocol::marks::{DirtyMap, Intent};
use twinfold_protocol::primary::{Link, OwnMarks};

use crate::bugs::Bug;
use crate::disk::Disk;
use crate::world::{CheckpointStage, MS, Step, World};

/// The file of saved marks.
#[derive(Clone, Debug, Default)]
pub(crate) struct Saved {
    id: MarksId,
    /// Notes of the segments before this one are in the marks.
    segment: u64,
    own: OwnMarks,
    notes: BTreeSet<Intent>,
    /// It cannot be read.
    pub(crate) lost: bool,
}

impl Saved {
    fn is_empty(&self) -> bool {
        self.own.is_empty() && self.notes.is_empty()
    }
}

/// What was found when a driver starts.
pub(crate) struct Found {
    pub(crate) own: OwnMarks,
    pub(crate) notes: BTreeSet<Intent>,
    pub(crate) damaged: bool,
}

impl Disk {
    /// What is known of the node's own changes when its driver starts.
    pub(crate) fn find_own(&mut self) -> Found {
        let matters = self.record.copy.current.is_some();
        let usable = !self.saved.lost && self.record.trusts(self.saved.id).is_ok();
        let saved = match usable {
            true => self.saved.clone(),
            false => Saved::default(),
        };
        if usable {
            self.update(|r| r.marks_saved(saved.id.number));
        }
        self.log.retire(saved.segment);
        let mut notes = self.log.all();
        notes.extend(saved.notes);
        let mut damaged = matters && (!usable || self.log.is_damaged());
        let mut own = saved.own;
        for map in [&mut own.dirty, &mut own.suspect] {
            damaged |= map.take_everything();
        }
        Found {
            own,
            notes,
            damaged,
        }
    }

    /// Makes marks durable, then has the record name them.
    fn save_marks(&mut self, segment: Option<u64>, own: OwnMarks, notes: BTreeSet<Intent>) {
        let id = self.record.next_marks();
        if !self.effects.next() {
            return;
        }
        self.saved = Saved {
            id,
            segment: segment.unwrap_or(self.saved.segment),
            own,
            notes,
            lost: false,
        };
        self.update(|r| r.marks_saved(id.number));
    }
}

impl World {
    /// Whether a resync has marks in its hands.
    fn resyncs(&self, node: usize) -> bool {
        let n = &self.nodes[node];
        n.comparing || n.core.link() == Link::Syncing
    }

    /// The end of a term as primary: exact marks, which stand for the notes before `segment`.
    pub(crate) fn end_term(&mut self, node: usize, segment: u64) -> OwnMarks {
        let n = &mut self.nodes[node];
        let own = n.core.take_own_marks();
        let mut saved = own.clone();
        if n.damaged {
            saved.suspect = DirtyMap::default();
            saved.suspect.mark_everything();
        }
        // What was lost here is known by its notes alone.
        if !n.lossy {
            n.disk.save_marks(Some(segment), saved, n.recovered.clone());
        }
        own
    }

    /// This copy is equal to its source's.
    pub(crate) fn forget_own_marks(&mut self, node: usize) {
        let n = &mut self.nodes[node];
        n.own = OwnMarks::default();
        n.recovered.clear();
        n.damaged = false;
        if !n.disk.saved.is_empty() {
            n.disk
                .save_marks(None, OwnMarks::default(), BTreeSet::new());
        }
    }

    /// Both nodes have flushed what was noted before `segment`.
    pub(crate) fn notes_may_go(&mut self, node: usize, segment: u64) {
        let n = &mut self.nodes[node];
        if n.role != Some(Role::Primary) || n.lossy {
            return;
        }
        let own = OwnMarks {
            dirty: n.core.dirty().clone(),
            suspect: n.core.suspect().clone(),
        };
        let nothing = own.is_empty() && n.recovered.is_empty() && !n.damaged;
        if !nothing || !n.disk.saved.is_empty() {
            if n.damaged {
                return;
            }
            n.disk.save_marks(Some(segment), own, n.recovered.clone());
        }
        n.disk.retire(segment);
    }

    /// While this primary is alone: a checkpoint of its own.
    pub(crate) fn checkpoint_alone(&mut self, node: usize) {
        let n = &self.nodes[node];
        let alone = n.role == Some(Role::Primary) && n.core.link() == Link::Alone;
        if !alone || n.lossy || n.beginning || self.resyncs(node) || !n.disk.log.has_notes() {
            return;
        }
        let segment = self.nodes[node].disk.rotate();
        if self.has(Bug::NotesGoFirst) {
            self.nodes[node].disk.retire(segment);
        }
        let before = self.inside(node);
        let stage = CheckpointStage::Alone(segment, before);
        self.nodes[node].beginning = true;
        self.soon(node, 2 * MS, Step::Checkpoint(stage));
    }

    /// Every change noted before has been applied and marked.
    pub(crate) fn save_alone(&mut self, node: usize, segment: u64) {
        let n = &mut self.nodes[node];
        n.beginning = false;
        if n.core.link() != Link::Alone || n.comparing {
            return;
        }
        let own = OwnMarks {
            dirty: n.core.dirty().clone(),
            suspect: n.core.suspect().clone(),
        };
        let mut own = own;
        if n.damaged {
            own.suspect.mark_everything();
        }
        if self.sync_store(node).is_err() {
            return;
        }
        let n = &mut self.nodes[node];
        self.stats.alone_checkpoints += 1;
        n.disk.save_marks(Some(segment), own, n.recovered.clone());
        n.disk.retire(segment);
    }
}
