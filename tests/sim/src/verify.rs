//! A verify while the application writes: what a question finds on the secondary, at its
//! place in the order, is what the primary had there.
//!
//! It has a generator of its own, so that a seed without it stays what it was.

use twinfold_protocol::compare::HASH;
use twinfold_protocol::handshake::Role;
use twinfold_protocol::ids::{FileId, Seq};
use twinfold_protocol::limits::BLOCK;
use twinfold_protocol::time::Timestamp;
use twinfold_protocol::verify::{Facts, Found, Lead, Question, differences};

use crate::bugs::Bug;
use crate::fs::Fs;
use crate::world::World;

/// Where a question of data begins.
const BLOCKS: [u64; 6] = [0, 2, 1022, 1024, 2049, 70_000];

impl World {
    /// Asks about something, unless it is being changed.
    pub(crate) fn verify_something(&mut self, node: usize) {
        let Some(rng) = &mut self.verify else { return };
        let (what, nth) = (rng.below(6), rng.next() as usize);
        let offset = rng.pick(&BLOCKS).map_or(0, |block| block * BLOCK);
        let length = rng.range(1, 5) * BLOCK;
        let n = &self.nodes[node];
        let asks = n.core.can_verify() && !self.is_away(node) && n.core.differing().is_empty();
        if n.role != Some(Role::Primary) || !asks {
            return;
        }
        // What has no name is not walked to: a forced copy keeps some of it.
        let objects: Vec<FileId> = n.disk.fs.reachable().into_keys().collect();
        let file = objects[nth % objects.len()];
        let names = n.disk.fs.names(file);
        let name = names.and_then(|names| names.keys().nth(what as usize));
        let question = match (n.disk.fs.file(file), name) {
            (Some(_), _) if what < 4 => Question::Data {
                file,
                offset,
                length,
            },
            (None, Some(name)) => Question::Name {
                directory: file,
                name: name.clone(),
            },
            _ => Question::Object { file },
        };
        if n.locks.contains(&file) && !self.has(Bug::VerifyUnlocked) {
            return;
        }
        let mine = found(&self.nodes[node].disk.fs, &question);
        let now = self.instant();
        let n = &mut self.nodes[node];
        let asked = n
            .core
            .submit_verify(now, Timestamp::default(), question.clone());
        if let Some(seq) = asked {
            n.verifying.insert(seq, (question, mine));
            self.ship(node);
        }
    }

    /// The peer's answer.
    pub(crate) fn verified(&mut self, node: usize, seq: Seq, theirs: &Found) {
        let Some((question, mine)) = self.nodes[node].verifying.remove(&seq) else {
            return self.fail(format!("node {node}: nobody asked question {seq}"));
        };
        self.stats.verified += 1;
        let differ = differences(&question, &mine, theirs, false);
        if differ.as_ref().is_none_or(|d| !d.is_empty()) {
            self.fail(format!(
                "node {node}: a verify reports what is no difference: {question:?}: {differ:?}"
            ));
        }
    }
}

/// What a node has of what a question names.
pub(crate) fn found(fs: &Fs, question: &Question) -> Found {
    match question {
        Question::Data {
            file,
            offset,
            length,
        } => match fs.file(*file) {
            None => Found::Missing,
            Some(_) => {
                let hash = |value: &u64| {
                    let mut hash = [0; HASH];
                    hash[..8].copy_from_slice(&value.to_le_bytes());
                    hash
                };
                let blocks = fs.read(*file, *offset, *length);
                let hashes: Vec<u8> = blocks.iter().flat_map(hash).collect();
                Found::Blocks(hashes.into())
            }
        },
        Question::Object { file } | Question::Listing { directory: file } => {
            match (fs.kind(*file), fs.items.get(file)) {
                (Some(kind), Some(item)) => Found::Object(Facts {
                    kind,
                    mode: item.mode,
                    uid: 0,
                    gid: 0,
                    size: fs.size(*file),
                    modified: Timestamp::default(),
                    target: [0; HASH],
                    xattrs: Vec::new(),
                }),
                _ => Found::Missing,
            }
        }
        Question::Name { directory, name } => {
            let leads = fs.names(*directory).and_then(|names| names.get(name));
            Found::Name(leads.map_or(Lead::Nothing, |file| Lead::Object(*file)))
        }
    }
}
