//! Comparison before a resync, while the application and everything else go on.

use std::collections::VecDeque;

use twinfold_protocol::compare::{Answers, HASH, Held, Source};
use twinfold_protocol::handshake::Role;
use twinfold_protocol::ids::FileId;
use twinfold_protocol::limits::{self, BLOCK};
use twinfold_protocol::marks::{DirtyMap, Names};
use twinfold_protocol::op::Name;
use twinfold_protocol::primary::Primary;
use twinfold_protocol::wire::{CompareAnswer, CompareRequest, Hashes, MatchEntry};

use crate::fs::Fs;
use crate::world::{MS, Node, World};

/// The source's copy, and the target to be asked.
pub(crate) struct Here<'a> {
    pub(crate) world: &'a mut World,
    pub(crate) node: usize,
    pub(crate) life: u64,
    pub(crate) connection: u64,
    /// Questions after which the connection breaks.
    pub(crate) patience: u64,
    /// Questions under way, with what this node itself found when it asked.
    pub(crate) asked: VecDeque<(CompareRequest, Option<(u64, Hashes)>)>,
}

impl Here<'_> {
    fn fs(&self) -> &Fs {
        &self.world.nodes[self.node].disk.fs
    }

    fn held(&self, file: FileId) -> Option<Held> {
        self.fs().kind(file).map(|kind| Held {
            file,
            kind,
            size: self.fs().size(file),
        })
    }

    /// Waits for the changes that are under way: what one of them has marked may still be as it
    /// was before.
    pub(crate) fn wait_for_changes(&mut self) -> Result<(), ()> {
        let before = self.world.inside(self.node);
        while !before.is_disjoint(&self.world.inside(self.node)) {
            let next = self.world.now + 2 * MS;
            self.world.run(next);
            if !self.is_there() {
                return Err(());
            }
        }
        Ok(())
    }

    /// Whether somebody answers, as far as anybody knows.
    fn is_there(&self) -> bool {
        let world = &self.world;
        world.has_connection(self.node, self.connection)
            && world.nodes[self.node].life == self.life
            && world.nodes[self.node].role == Some(Role::Primary)
            && world.nodes.iter().all(|n| !n.frozen)
            && world.net.cut == [false; 2]
            && world.failure.is_none()
    }

    /// Nothing of a process that is gone.
    fn with_core(&mut self, change: impl FnOnce(&mut Primary<u64>)) {
        let node = &mut self.world.nodes[self.node];
        if node.life == self.life {
            change(&mut node.core);
        }
    }
}

fn hashes(node: &Node, file: FileId, offset: u64, blocks: u32) -> (u64, Vec<u8>) {
    let fs = &node.disk.fs;
    let size = fs.size(file);
    let end = size.min(offset + u64::from(blocks) * BLOCK);
    let values = fs.read(file, offset, end.saturating_sub(offset));
    let hash = |value: &u64| {
        let mut hash = [0; HASH];
        hash[..8].copy_from_slice(&value.to_le_bytes());
        hash
    };
    (size, values.iter().flat_map(hash).collect())
}

impl Source for Here<'_> {
    type Error = ();

    fn look(&mut self, file: FileId) -> Result<Option<Held>, ()> {
        Ok(self.held(file))
    }

    fn find(&mut self, directory: FileId, name: &Name) -> Result<Option<FileId>, ()> {
        let names = self.fs().names(directory);
        Ok(names.and_then(|n| n.get(name)).copied())
    }

    fn list(&mut self, directory: FileId) -> Result<Vec<Held>, ()> {
        let names = self.fs().names(directory);
        let files = names.into_iter().flat_map(|n| n.values());
        Ok(files.filter_map(|file| self.held(*file)).collect())
    }

    /// Nobody seeds a copy here.
    fn entries(&mut self, _directory: FileId) -> Result<Vec<MatchEntry>, ()> {
        Err(())
    }

    fn ids(&mut self, first: FileId) -> Result<Vec<FileId>, ()> {
        let last = FileId(first.0 + limits::ID_BLOCK - 1);
        let items = &self.fs().items;
        Ok(items.range(first..=last).map(|(id, _)| *id).collect())
    }

    fn ask(&mut self, request: CompareRequest) -> Result<(), ()> {
        self.patience = self.patience.checked_sub(1).ok_or(())?;
        if self.world.nodes[self.node].disk.unreadable {
            return Err(());
        }
        let mut mine = None;
        if let CompareRequest::Blocks {
            file,
            offset,
            blocks,
        } = &request
            && self.held(*file).is_some()
        {
            let node = &mut self.world.nodes[self.node];
            node.make_sure(*file);
            let (size, hashes) = hashes(node, *file, *offset, *blocks);
            mine = Some((size, hashes.into()));
        }
        self.asked.push_back((request, mine));
        Ok(())
    }

    /// The world goes on while a question and its answer are on their way.
    fn answer(&mut self) -> Result<Answers, ()> {
        let (request, mine) = self.asked.pop_front().ok_or(())?;
        let peer = 1 - self.node;
        let mut answer = None;
        for way in 0..2 {
            let world = &mut *self.world;
            let arrives = world.now + 20_000 + world.rng.below(world.net.delay.max(1));
            world.run(arrives);
            if !self.is_there() {
                return Err(());
            }
            if way == 0 {
                answer = answer_of(&mut self.world.nodes[peer], &request);
            }
        }
        let theirs = answer.ok_or(())?;
        Ok(Answers { theirs, mine })
    }

    fn unexpected(&mut self, _answer: &CompareAnswer) {}

    fn watch(&mut self, watch: bool) {
        self.with_core(|core| core.watch_moves(watch));
    }

    fn moved(&mut self) -> Vec<FileId> {
        let mut moved = Vec::new();
        self.with_core(|core| moved = core.take_moved());
        moved
    }

    fn named(&mut self, after: Option<FileId>) -> Option<(FileId, Names)> {
        let mut found = None;
        self.with_core(|core| {
            let next = core.dirty().next_directory(after);
            found = next.map(|(directory, names)| (directory, names.clone()));
        });
        found
    }

    fn mark(&mut self, change: impl FnOnce(&mut DirtyMap)) {
        self.with_core(|core| core.mark(change));
    }
}

/// The target's answer.
fn answer_of(target: &mut Node, request: &CompareRequest) -> Option<CompareAnswer> {
    if target.disk.unreadable {
        return None;
    }
    if let CompareRequest::Blocks { file, .. } = request {
        // What was not flushed may have failed to be; memory does not tell.
        target.disk.forget_cached(Some(*file));
    }
    let fs = &target.disk.fs;
    Some(match request {
        CompareRequest::Objects { files } => CompareAnswer::Present {
            present: files.iter().map(|f| fs.items.contains_key(f)).collect(),
        },
        CompareRequest::Blocks {
            file,
            offset,
            blocks,
        } => match fs.kind(*file) {
            None => CompareAnswer::Missing,
            Some(_) => {
                let (size, hashes) = hashes(target, *file, *offset, *blocks);
                CompareAnswer::Hashes {
                    size,
                    hashes: hashes.into(),
                }
            }
        },
        // Nobody seeds a copy here.
        CompareRequest::Match { .. } => return None,
    })
}
