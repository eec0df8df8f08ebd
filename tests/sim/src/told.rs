//! What the application is told, and what the checker learns by it.

use twinfold_protocol::ids::FileId;
use twinfold_protocol::limits::BLOCK;
use twinfold_protocol::op::{Op, RenameMode, Stability};
use twinfold_protocol::primary::{AckMode, Link};

use crate::calls::Answer;
use crate::checker::Place;
use crate::world::World;

impl World {
    /// The application is told that a change failed.
    pub(crate) fn told_failed(&mut self, node: usize, id: u64) {
        let now = self.instant();
        let n = &mut self.nodes[node];
        let Some(change) = n.changes.get_mut(&id) else {
            return;
        };
        if let Some(seq) = change.seq.take() {
            n.core.local_done(now, seq, 0);
        }
        let (op, guest) = (&change.op, change.guest.is_some());
        // Also of one that was stopped meanwhile, to go on here or elsewhere: its call ends.
        let mine = self.serving.is_none_or(|s| s == (node, n.life));
        if let Some(file) = synced_by(op)
            && (guest || mine)
        {
            let lost = n.disk.forgotten_of(file);
            self.checker.sync_failed(file, lost);
        }
        self.refused(node, id);
    }

    fn is_guest(&self, node: usize, id: u64) -> bool {
        let change = self.nodes[node].changes.get(&id);
        change.is_some_and(|c| c.guest.is_some())
    }

    /// Whether a change is done for the application in use, here or through the other node.
    pub(crate) fn is_for_the_application(&self, node: usize, id: u64) -> bool {
        let elsewhere = self.serving.is_none_or(|(n, _)| n != node);
        let here = self.serving == Some((node, self.nodes[node].life));
        here || (elsewhere && self.is_guest(node, id))
    }

    /// The application sees what a block holds, and knows what had been acknowledged when it
    /// asked.
    pub(crate) fn seen(
        &mut self,
        node: usize,
        (file, block): (FileId, u32),
        found: u64,
        before: u64,
    ) {
        if self.serving != Some((node, self.nodes[node].life)) {
            return;
        }
        self.stats.reads += 1;
        let place = Place::Block(file, block);
        if let Err(e) = self.checker.read(&place, found, before) {
            self.fail(format!("node {node}: {e}"));
        }
    }

    /// The checker learns what a change does, in its place in the order.
    pub(crate) fn asked(&mut self, node: usize, id: u64, op: &Op) {
        let fs = &self.nodes[node].disk.fs;
        let mut places = Vec::new();
        match op {
            Op::Write {
                file, offset, data, ..
            } => {
                let first = (offset / BLOCK) as u32;
                for (i, value) in crate::fs::values(data).into_iter().enumerate() {
                    places.push((Place::Block(*file, first + i as u32), value));
                }
                let end = offset + data.len() as u64;
                places.push((Place::Size(*file), end.max(fs.size(*file))));
            }
            Op::CopyRange {
                to,
                to_offset,
                length,
                ..
            } => {
                let first = (to_offset / BLOCK) as u32;
                for (i, value) in fs.read(*to, *to_offset, *length).into_iter().enumerate() {
                    places.push((Place::Block(*to, first + i as u32), value));
                }
                places.push((Place::Size(*to), fs.size(*to)));
            }
            Op::Truncate { file, size, .. } => {
                let gone = self.checker.blocks_from(*file, (size / BLOCK) as u32);
                places.extend(gone.into_iter().map(|p| (p, 0)));
                places.push((Place::Size(*file), *size));
            }
            Op::Allocate {
                file,
                offset,
                length,
                ..
            } => {
                let first = (offset / BLOCK) as u32;
                let blocks = first..first + (length / BLOCK) as u32;
                places.extend(blocks.map(|b| (Place::Block(*file, b), 0)));
            }
            Op::Create {
                parent,
                name,
                object,
            } => {
                places.push((Place::Name(*parent, name.clone()), object.file.0));
                places.push((Place::Mode(object.file), object.mode.into()));
            }
            Op::Link { file, parent, name } => {
                places.push((Place::Name(*parent, name.clone()), file.0));
            }
            Op::Unlink { parent, name, .. } | Op::RemoveDirectory { parent, name, .. } => {
                places.push((Place::Name(*parent, name.clone()), 0));
            }
            Op::Rename {
                parent,
                name,
                file,
                new_parent,
                new_name,
                replaced,
                mode,
            } => {
                let moved = Some(*file) != *replaced;
                if moved {
                    let left = match mode {
                        RenameMode::Exchange => replaced.map_or(0, |f| f.0),
                        _ => 0,
                    };
                    places.push((Place::Name(*parent, name.clone()), left));
                    places.push((Place::Name(*new_parent, new_name.clone()), file.0));
                }
            }
            Op::SetAttributes { file, change } => {
                places.push((Place::Mode(*file), change.mode.unwrap_or_default().into()));
            }
            _ => {}
        }
        if self.is_guest(node, id)
            && let Err(e) = self.checker.carried_out(id)
        {
            return self.fail(format!("node {node}: {e}"));
        }
        if self.is_for_the_application(node, id) {
            self.checker.asked(id, places);
        } else {
            // The application has gone elsewhere: this can be promised to nobody.
            self.checker.asked_elsewhere(id);
        }
    }

    /// The application is told that a change is done.
    pub(crate) fn reply(&mut self, node: usize, id: u64) {
        let Some(change) = self.nodes[node].changes.remove(&id) else {
            return;
        };
        if let Some(number) = change.guest {
            return self.answer(node, number, Answer::Done);
        }
        if !self.nodes[node].disk.effects.next() {
            return;
        }
        if change.seq.is_some() && change.term != self.nodes[node].term {
            return self.fail(format!(
                "node {node}: change {id} of an earlier term is acknowledged: nobody knows whether \
                 the peer had it"
            ));
        }
        self.stats.acknowledged += 1;
        let synced = synced_by(&change.op);
        let told = self.checker.acknowledged(id);
        // In mode `flush` only what is synced is promised to be on the other node.
        let promised = self.config.mode != AckMode::Flush || synced.is_some();
        // The node in use has lost what was not on its disk, and another one that was frozen
        // meanwhile is heard only now: two nodes failed.
        let lost = self
            .serving
            .is_some_and(|(n, _)| n != node && self.nodes[n].serves_what_is_left);
        if let (Err(e), true) = (told, promised && !lost) {
            if self.habits.witness || self.serving.is_some_and(|(n, _)| n == node) {
                return self.fail(format!("node {node}: {e}; {:?} serves", self.serving));
            }
            // Nobody kept two nodes from going on: this one has a history of its own now. Not
            // for a sync that ends late: its change was given up with the copy.
            let n = &mut self.nodes[node];
            n.own_history |= change.term >= n.disowned;
        }
        // A sync on a node that is not in use any more says nothing about the one that is.
        if let Some(file) = synced
            && self.serving == Some((node, self.nodes[node].life))
        {
            // Both disks, unless this node is alone, or has none that counts any more.
            let link = self.nodes[node].core.link();
            let both = change.seq.is_some() && matches!(link, Link::Paired | Link::Yielded);
            let holders: &[usize] = match (change.away, both) {
                (true, _) => &[1 - node],
                (false, true) => &[node, 1 - node],
                (false, false) => &[node],
            };
            for &holder in holders {
                let disk = self.nodes[holder].disk.durable();
                if let Err(e) = self.checker.on_disk(id, file, disk) {
                    return self.fail(format!("node {holder}: {e}"));
                }
            }
            self.checker.synced(id, file);
        }
    }
}

/// The file that a change brings to the disks.
fn synced_by(op: &Op) -> Option<FileId> {
    match op {
        Op::Sync { file, .. } => Some(*file),
        Op::Write {
            file,
            stability: Stability::Full,
            ..
        } => Some(*file),
        _ => None,
    }
}
