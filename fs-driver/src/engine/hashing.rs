//! Hashes of a file's blocks, read in large pieces, holes not at all; and the target's
//! answers to a comparison.

use std::io;

use twinfold_protocol::attr::Kind;
use twinfold_protocol::compare::HASH;
use twinfold_protocol::ids::FileId;
use twinfold_protocol::limits;
use twinfold_protocol::marks::Intent;
use twinfold_protocol::wire::{CompareAnswer, CompareRequest, Hashes, MatchEntry};

use super::Engine;
use crate::store::{Node, Store};

/// Bytes read at once: the disk's own large pieces.
const PIECE: usize = 512 << 10;

/// Threads that hash at once on one node, at most.
const MOST_HASHERS: usize = 4;

const BLOCK: usize = limits::BLOCK as usize;

/// How many threads hash at once: half of the processors, for the application needs some.
pub(crate) fn hashers() -> usize {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    (processors / 2).clamp(1, MOST_HASHERS)
}

/// Hashes of blocks, and what they are of.
#[derive(Debug, Default)]
pub(super) struct Hashed {
    /// The file's size.
    pub(super) size: u64,
    /// The hashes.
    pub(super) hashes: Hashes,
    /// Bytes that were read for them.
    pub(super) read: u64,
}

/// Hashes of a file's blocks from `offset` on, a multiple of a block, at most `blocks` of
/// them, none beyond the end.
pub(super) fn hash_blocks(
    store: &Store,
    node: &Node,
    offset: u64,
    blocks: u32,
) -> io::Result<Hashed> {
    let size = node.size()?;
    let end = size.min(offset.saturating_add(u64::from(blocks) * limits::BLOCK));
    let mut hashes = Hashes::default();
    let mut buffer = Vec::new();
    let (mut at, mut read) = (offset, 0);
    while at < end {
        let data = store.next_data(node, at)?.unwrap_or(end).clamp(at, end);
        let whole = (data - at) / limits::BLOCK;
        if whole > 0 || data == end {
            // What is left of a last, short block is a hole as well.
            let skipped = match data == end {
                true => (end - at).div_ceil(limits::BLOCK),
                false => whole,
            };
            hashes.push_zeros(skipped as u32);
            at += skipped * limits::BLOCK;
            continue;
        }
        let hole = store.seek(node, data, false).unwrap_or(end).min(end);
        // At least a block, whatever the file system says of a file that changes.
        let stop = hole.max(at + 1).next_multiple_of(limits::BLOCK).min(end);
        while at < stop {
            let length = (PIECE as u64).min(stop - at) as usize;
            buffer.resize(length, 0);
            let n = store.read(node, at, &mut buffer)?;
            buffer[n..].fill(0);
            read += n as u64;
            buffer.chunks(BLOCK).for_each(|b| hashes.push(&hash(b)));
            at += length as u64;
        }
    }
    Ok(Hashed { size, hashes, read })
}

fn hash(block: &[u8]) -> [u8; HASH] {
    let mut out = [0; HASH];
    if !is_zero(block) {
        out.copy_from_slice(&blake3::hash(block).as_bytes()[..HASH]);
    }
    out
}

/// Compared in long words: most blocks of zeros are found by that alone.
fn is_zero(block: &[u8]) -> bool {
    let (words, rest) = block.as_chunks::<16>();
    rest.iter().all(|b| *b == 0) && words.iter().all(|w| u128::from_ne_bytes(*w) == 0)
}

impl Engine {
    /// The target's answer to a compare request.
    pub(crate) fn compare_answer(&self, request: CompareRequest) -> io::Result<CompareAnswer> {
        match request {
            CompareRequest::Objects { files } => {
                let present = files
                    .into_iter()
                    .map(|file| self.store.object(file).map(|node| node.is_some()))
                    .collect::<io::Result<_>>()?;
                Ok(CompareAnswer::Present { present })
            }
            CompareRequest::Blocks {
                file,
                offset,
                blocks,
            } => match self.store.object(file)? {
                None => Ok(CompareAnswer::Missing),
                Some(node) if node.kind() != Kind::Regular => Ok(CompareAnswer::Hashes {
                    size: 0,
                    hashes: Hashes::default(),
                }),
                Some(node) => {
                    // What was not flushed may have failed to be; memory does not tell.
                    let length = u64::from(blocks.max(1)) * limits::BLOCK;
                    self.store.forget_cached(&node, offset, length)?;
                    let found = hash_blocks(&self.store, &node, offset, blocks)?;
                    Ok(CompareAnswer::Hashes {
                        size: found.size,
                        hashes: found.hashes,
                    })
                }
            },
            CompareRequest::Match { directory, entries } => self.matched(directory, &entries),
        }
    }

    /// Gives objects of a seed the ids that their paths have on the source.
    fn matched(&self, directory: FileId, entries: &[MatchEntry]) -> io::Result<CompareAnswer> {
        let parent = match self.store.object(directory)? {
            Some(node) if node.kind() == Kind::Directory => node,
            _ => {
                let present = vec![false; entries.len()];
                return Ok(CompareAnswer::Present { present });
            }
        };
        // After a crash in between the index is put right for what is noted.
        self.intents.ensure(&[Intent::Directory { directory }])?;
        // Two names may lead to one object: one question after the other.
        let _one = self.matching.lock();
        let present = entries
            .iter()
            .map(|entry| self.store.match_entry(&parent, entry))
            .collect::<io::Result<_>>()?;
        Ok(CompareAnswer::Present { present })
    }
}
