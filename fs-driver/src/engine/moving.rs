//! Moving a file's marked blocks to the target of a resync: data as data, holes as holes
//! (invariant 6).

use std::sync::Arc;

use bytes::Bytes;
use twinfold_protocol::ids::SessionId;
use twinfold_protocol::limits;
use twinfold_protocol::marks::DirtyMap;
use twinfold_protocol::op::Op;

use super::resync::ResyncError;
use super::{Engine, clock};
use crate::store::Node;

/// Blocks of a piece of data.
fn blocks(bytes: usize) -> u32 {
    (bytes as u64 / limits::BLOCK) as u32
}

/// Blocks of the largest hole that is moved at once: a hole costs the same whatever its size,
/// but the marks are counted through.
const LARGEST_HOLE: u32 = 1 << 18;

/// What an op counts for beside its data, so that many small pieces share one look at the
/// window, but not too many.
const PIECE: usize = 4096;

impl Engine {
    /// Moves all marked blocks of a file. False when it has no name any more.
    pub(super) fn move_data(
        &self,
        session: SessionId,
        node: &Arc<Node>,
    ) -> Result<bool, ResyncError> {
        let file = node.file();
        self.make_sure_of_marked(node)?;
        loop {
            let piece = self.wait_for_window(session, limits::RESYNC_CHUNK)?;
            let mut budget = piece;
            while budget > 0 {
                // A run is looked at, locked, and then taken: writers elsewhere in the file
                // go on. Where that cannot be told (every block is marked, or those that are
                // lie beyond the end) the whole file is held for a moment.
                let seen = self.next_run(node, piece)?;
                let (_range, run) = match seen {
                    Some((offset, length)) => {
                        let range = node.ranges.lock(offset, length);
                        self.core.lock().take_range(file, offset, length);
                        (range, Some((offset, length)))
                    }
                    None => {
                        let whole = node.ranges.lock_all();
                        let size = node.size()?;
                        (whole, self.core.lock().take_run(file, blocks(piece), size))
                    }
                };
                if node.is_orphan() {
                    self.core.lock().object_is_gone(file);
                    return Ok(false);
                }
                let Some((offset, length)) = run else {
                    return Ok(true);
                };
                let mut at = offset;
                let put = self.put_run(session, node, piece, &mut at, offset + length);
                self.tracker.worked(clock::now(), at - offset);
                if at < offset + length {
                    let mut back = DirtyMap::default();
                    back.mark_data(file, at, offset + length - at);
                    self.core.lock().give_back(back);
                }
                budget = budget.saturating_sub(put? + PIECE);
            }
        }
    }

    /// The next run of marked blocks, of no more bytes than `piece`; a hole may be longer.
    fn next_run(&self, node: &Node, piece: usize) -> Result<Option<(u64, u64)>, ResyncError> {
        let size = node.size()?;
        let first = |most| self.core.lock().first_run(node.file(), most, size);
        let Some((offset, length)) = first(blocks(piece)) else {
            return Ok(None);
        };
        if length < piece as u64 {
            return Ok(Some((offset, length)));
        }
        let data = self.store.next_data(node, offset)?.unwrap_or(size);
        let hole = data.saturating_sub(offset) / limits::BLOCK * limits::BLOCK;
        if hole <= length {
            return Ok(Some((offset, length)));
        }
        let longer = first(LARGEST_HOLE);
        Ok(longer.map(|(offset, length)| (offset, length.min(hole))))
    }

    /// Moves what lies from `at` to `end`, up to `piece` bytes of data; `at` tells how far it
    /// came. Returns the bytes of data. The caller holds the range.
    fn put_run(
        &self,
        session: SessionId,
        node: &Node,
        piece: usize,
        at: &mut u64,
        end: u64,
    ) -> Result<usize, ResyncError> {
        let file = node.file();
        let mut moved = 0;
        while *at < end && moved < piece {
            let data = self.store.next_data(node, *at)?.unwrap_or(end).min(end);
            if data > *at {
                let hole = Op::PutHole {
                    file,
                    offset: *at,
                    length: data - *at,
                };
                self.put(session, hole)?;
                *at = data;
                continue;
            }
            let hole = self.store.seek(node, *at, false)?.min(end);
            let most = (piece - moved) as u64;
            let bytes = self
                .store
                .read_new(node, *at, (hole - *at).min(most) as usize)?;
            let n = bytes.len();
            if n == 0 {
                // It was cut meanwhile: there is nothing to differ any more.
                *at = end;
                break;
            }
            let data = Op::PutData {
                file,
                offset: *at,
                data: Bytes::from(bytes).into(),
            };
            self.put(session, data)?;
            *at += n as u64;
            moved += n;
        }
        Ok(moved)
    }
}
