//! Comparison before a resync, while the application and everything else go on.

use twinfold_protocol::attr::Kind;
use twinfold_protocol::compare::{HASH, Source};
use twinfold_protocol::handshake::Role;
use twinfold_protocol::ids::FileId;
use twinfold_protocol::limits::{self, BLOCK};
use twinfold_protocol::marks::DirtyMap;
use twinfold_protocol::op::Name;
use twinfold_protocol::primary::Primary;
use twinfold_protocol::wire::{CompareAnswer, CompareRequest};

use crate::fs::Fs;
use crate::world::{Node, World};

/// The source's copy, and the target to be asked.
pub(crate) struct Here<'a> {
    pub(crate) world: &'a mut World,
    pub(crate) node: usize,
    pub(crate) life: u64,
    pub(crate) connection: u64,
    /// Questions after which the connection breaks.
    pub(crate) patience: u64,
}

impl Here<'_> {
    fn fs(&self) -> &Fs {
        &self.world.nodes[self.node].disk.fs
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

    fn kind(&mut self, file: FileId) -> Result<Option<Kind>, ()> {
        Ok(self.fs().kind(file))
    }

    fn size(&mut self, file: FileId) -> Result<u64, ()> {
        Ok(self.fs().size(file))
    }

    fn find(&mut self, directory: FileId, name: &Name) -> Result<Option<FileId>, ()> {
        let names = self.fs().names(directory);
        Ok(names.and_then(|n| n.get(name)).copied())
    }

    fn list(&mut self, directory: FileId) -> Result<Vec<FileId>, ()> {
        let names = self.fs().names(directory);
        Ok(names
            .map(|n| n.values().copied().collect())
            .unwrap_or_default())
    }

    fn ids(&mut self, first: FileId) -> Result<Vec<FileId>, ()> {
        let last = FileId(first.0 + limits::ID_BLOCK - 1);
        let items = &self.fs().items;
        Ok(items.range(first..=last).map(|(id, _)| *id).collect())
    }

    fn hashes(&mut self, file: FileId, offset: u64, blocks: u32) -> Result<(u64, Vec<u8>), ()> {
        Ok(hashes(&self.world.nodes[self.node], file, offset, blocks))
    }

    /// The world goes on while a question and its answer are on their way.
    fn ask(&mut self, request: CompareRequest) -> Result<CompareAnswer, ()> {
        self.patience = self.patience.checked_sub(1).ok_or(())?;
        let world = &mut *self.world;
        let peer = 1 - self.node;
        let mut answer = None;
        for way in 0..2 {
            let arrives = world.now + 20_000 + world.rng.below(world.net.delay.max(1));
            world.run(arrives);
            let there = world.has_connection(self.node, self.connection)
                && world.nodes[self.node].life == self.life
                && world.nodes[self.node].role == Some(Role::Primary)
                && world.nodes.iter().all(|n| !n.frozen)
                && world.net.cut == [false; 2]
                && world.failure.is_none();
            if !there {
                return Err(());
            }
            if way == 0 {
                answer = Some(answer_of(&world.nodes[peer], &request));
            }
        }
        answer.ok_or(())
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

    fn mark(&mut self, change: impl FnOnce(&mut DirtyMap)) {
        self.with_core(|core| core.mark(change));
    }
}

/// The target's answer.
fn answer_of(target: &Node, request: &CompareRequest) -> CompareAnswer {
    let fs = &target.disk.fs;
    match request {
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
    }
}
