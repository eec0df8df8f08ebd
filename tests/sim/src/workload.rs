//! What the application does: a mix of everything, on few objects, so that changes meet.

use twinfold_protocol::attr::Kind;
use twinfold_protocol::handshake::Role;
use twinfold_protocol::ids::FileId;
use twinfold_protocol::limits::BLOCK;
use twinfold_protocol::op::{
    AllocateMode, Change as Attributes, Name, NewObject, Op, RenameMode, Stability,
};

use crate::calls::Request;
use crate::fs::{Fs, payload};
use crate::primary::{Change, Stage};
use crate::takeover::Place;
use crate::world::{Event, MS, World};

const NAMES: [&str; 6] = ["a", "b", "c", "d", "e", "f"];
const BLOCKS: [u32; 8] = [0, 1, 2, 3, 1023, 1024, 2050, 70_000];

/// The words of everything the application does.
pub(crate) const KINDS: [&str; 11] = [
    "write", "truncate", "allocate", "setattr", "sync", "copy", "link", "rename", "unlink",
    "rmdir", "create",
];

/// Objects at most: more only take time.
const MAX_OBJECTS: usize = 14;

fn name(of: &str) -> Name {
    Name::new(of.as_bytes()).unwrap_or_else(|_| unreachable!("a constant name"))
}

impl World {
    /// The application asks the primary for something.
    pub(crate) fn client(&mut self) {
        let pause = if self.rng.one_in(20) { 60 * MS } else { 4 * MS };
        let next = self.now + 1 + self.rng.below(pause);
        self.at(next, Event::Client);
        let Some((node, life)) = self.used_by_the_application() else {
            return;
        };
        let n = &self.nodes[node];
        if self.quiet || !n.up || n.frozen || n.life != life || n.changes.len() > 40 {
            return;
        }
        self.verify_something(node);
        if self.rng.one_in(10) {
            return self.read_something(node);
        }
        let Some(op) = self.choose(node) else { return };
        let id = self.next_change;
        self.next_change += 1;
        self.stats.asked += 1;
        if self.less.skips(id, op.word()) {
            return;
        }
        let change = Change::new(op, self.nodes[node].term);
        if let Op::Sync { .. } = change.op {
            self.checker.asked_to_sync(id);
        }
        self.nodes[node].changes.insert(id, change);
        self.change_step(node, id, Stage::Lock);
    }

    /// The node that serves; now and then, where nobody prevents it, another primary
    /// whose application has not heard that it is not the only one.
    fn used_by_the_application(&mut self) -> Option<(usize, u64)> {
        let (node, life) = self.serving?;
        let peer = &self.nodes[1 - node];
        // One that has taken over has no mount to write to.
        let primary = peer.role == Some(Role::Primary) && peer.takeover.hosting.is_none();
        let second = primary && !self.habits.witness;
        Some(match second && self.rng.one_in(3) {
            true => (1 - node, peer.life),
            false => (node, life),
        })
    }

    /// The node whose copy the application sees.
    fn seen_by_the_application(&self, node: usize) -> usize {
        match self.nodes[node].takeover.place {
            Place::Peer(_) => 1 - node,
            _ => node,
        }
    }

    /// The application reads a block.
    fn read_something(&mut self, node: usize) {
        let fs = &self.nodes[self.seen_by_the_application(node)].disk.fs;
        let files: Vec<FileId> = fs.reachable().into_keys().collect();
        let files: Vec<FileId> = files
            .into_iter()
            .filter(|f| fs.file(*f).is_some())
            .collect();
        let Some(file) = self.rng.pick(&files).copied() else {
            return;
        };
        let block = self.rng.pick(&BLOCKS).copied().unwrap_or_default();
        let before = self.checker.told();
        let unreadable = self.nodes[node].disk.unreadable && !self.is_away(node);
        if unreadable {
            self.stats.failed_reads += 1;
            // Where nobody can take over, the application is told.
            self.disk_failed(node);
        }
        if self.is_away(node) {
            self.call(node, Request::Read(file, block, before));
        } else if !unreadable {
            let offset = u64::from(block) * BLOCK;
            let held = self.nodes[node].disk.fs.read(file, offset, BLOCK);
            if let Some(found) = held.first() {
                self.seen(node, (file, block), *found, before);
            }
        }
    }

    fn choose(&mut self, node: usize) -> Option<Op> {
        let fs = self.nodes[self.seen_by_the_application(node)]
            .disk
            .fs
            .clone();
        let reachable = fs.reachable();
        let files: Vec<FileId> = reachable
            .keys()
            .copied()
            .filter(|f| fs.kind(*f) == Some(Kind::Regular))
            .collect();
        let directories: Vec<FileId> = reachable
            .keys()
            .copied()
            .filter(|f| fs.kind(*f) == Some(Kind::Directory))
            .collect();
        let directory = *self.rng.pick(&directories)?;
        let free = name(self.rng.pick(&NAMES)?);
        let what = self.rng.below(20);
        if what < 4 || files.is_empty() {
            if reachable.len() >= MAX_OBJECTS {
                return None;
            }
            let n = &mut self.nodes[node];
            let file = FileId::new(n.epoch, n.next_id);
            n.next_id += 1;
            let kind = if what == 0 {
                Kind::Directory
            } else {
                Kind::Regular
            };
            return Some(Op::Create {
                parent: directory,
                name: free,
                object: NewObject {
                    file,
                    kind,
                    target: bytes::Bytes::new(),
                    mode: 0o600,
                    umask: 0,
                    uid: 0,
                    gid: 0,
                },
            });
        }
        let file = *self.rng.pick(&files)?;
        let block = u64::from(*self.rng.pick(&BLOCKS)?);
        let count = 1 + self.rng.below(2);
        Some(match what {
            4..=9 => {
                let number = |i| self.next_change * 8 + i;
                // Both halves alike: one that is torn shows.
                let values: Vec<u64> = (0..count).map(|i| number(i) << 32 | number(i)).collect();
                let stability = if self.rng.one_in(8) {
                    Stability::Full
                } else {
                    Stability::Mode
                };
                Op::Write {
                    file,
                    offset: block * BLOCK,
                    stability,
                    clear_privileges: false,
                    data: payload(&values),
                }
            }
            10 => Op::Truncate {
                file,
                size: block * BLOCK,
                clear_privileges: false,
            },
            11 => Op::Allocate {
                file,
                mode: AllocateMode::PunchHole,
                offset: block * BLOCK,
                length: count * BLOCK,
            },
            12 => Op::SetAttributes {
                file: *self.rng.pick(&[file, directory])?,
                change: Attributes {
                    mode: Some(self.rng.below(0o777) as u32),
                    ..Attributes::default()
                },
            },
            13 => Op::Sync {
                file: *self.rng.pick(&[file, directory])?,
                data_only: false,
            },
            14 => {
                let from = *self.rng.pick(&files)?;
                let from_block = u64::from(*self.rng.pick(&BLOCKS)?);
                if from == file || (from_block + count) * BLOCK > fs.size(from) {
                    return None;
                }
                Op::CopyRange {
                    from,
                    from_offset: from_block * BLOCK,
                    to: file,
                    to_offset: block * BLOCK,
                    length: count * BLOCK,
                }
            }
            15 => Op::Link {
                file,
                parent: directory,
                name: free,
            },
            16 | 17 => {
                let names = fs.names(directory)?;
                let all: Vec<_> = names.iter().collect();
                let (name, file) = self.rng.pick(&all)?;
                let (parent, name, file) = (directory, (*name).clone(), **file);
                if fs.kind(file) == Some(Kind::Directory) {
                    Op::RemoveDirectory { parent, name, file }
                } else {
                    Op::Unlink { parent, name, file }
                }
            }
            _ => {
                let all: Vec<_> = fs.names(directory)?.iter().collect();
                let (name, file) = self.rng.pick(&all)?;
                let new_parent = *self.rng.pick(&directories)?;
                let replaced = fs.names(new_parent)?.get(&free).copied();
                let exchange = replaced.is_some() && self.rng.one_in(3);
                Op::Rename {
                    parent: directory,
                    name: (*name).clone(),
                    file: **file,
                    new_parent,
                    new_name: free,
                    replaced,
                    mode: if exchange {
                        RenameMode::Exchange
                    } else {
                        RenameMode::Replace
                    },
                }
            }
        })
    }
}

/// The files whose contents an op changes, or that lose a name.
pub(crate) fn held_by(op: &Op) -> Vec<FileId> {
    match op {
        Op::Write { file, .. }
        | Op::Truncate { file, .. }
        | Op::Allocate { file, .. }
        | Op::Unlink { file, .. }
        | Op::RemoveDirectory { file, .. } => vec![*file],
        Op::CopyRange { from, to, .. } => vec![*from, *to],
        Op::Rename { replaced, .. } => replaced.iter().copied().collect(),
        _ => Vec::new(),
    }
}

/// The objects whose names or attributes an op changes.
pub(crate) fn named_by(op: &Op) -> Vec<FileId> {
    match op {
        Op::Create { parent, object, .. } => vec![*parent, object.file],
        Op::Link { parent, .. }
        | Op::Unlink { parent, .. }
        | Op::RemoveDirectory { parent, .. } => vec![*parent],
        Op::Rename {
            parent, new_parent, ..
        } => vec![*parent, *new_parent],
        Op::SetAttributes { file, .. } => vec![*file],
        _ => Vec::new(),
    }
}

/// Whether a rename would put a directory below itself.
pub(crate) fn below_itself(fs: &Fs, op: &Op) -> bool {
    match op {
        Op::Rename {
            file,
            parent,
            new_parent,
            replaced,
            mode,
            ..
        } => {
            let mixed = replaced.is_some_and(|r| fs.kind(r) != fs.kind(*file));
            fs.is_below(*new_parent, *file)
                || (*mode == RenameMode::Exchange
                    && replaced.is_some_and(|r| fs.is_below(*parent, r)))
                || (mixed && *mode != RenameMode::Exchange)
        }
        _ => false,
    }
}
