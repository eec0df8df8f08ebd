//! Comparing before a resync: what [`twinfold_protocol::compare`] reads and asks,
//! and the target's answers.

use std::io;

use bytes::Bytes;
use twinfold_protocol::attr::Kind;
use twinfold_protocol::compare::{self, HASH, Source};
use twinfold_protocol::handshake::Method;
use twinfold_protocol::ids::FileId;
use twinfold_protocol::limits;
use twinfold_protocol::marks::{DirtyMap, Intent};
use twinfold_protocol::op::Name;
use twinfold_protocol::wire::{CompareAnswer, CompareRequest};

use super::Engine;
use crate::store::Node;

/// Asks the secondary. Blocks; fails when the connection is gone.
pub(crate) type Ask = Box<dyn FnMut(CompareRequest) -> io::Result<CompareAnswer> + Send>;

impl Engine {
    /// Hashes of a file's blocks from `offset` on, at most `blocks` of them, none
    /// beyond the end; and the file's size.
    fn hashes(&self, node: &Node, offset: u64, blocks: u32) -> io::Result<(u64, Vec<u8>)> {
        let size = node.size()?;
        let end = size.min(offset.saturating_add(u64::from(blocks) * limits::BLOCK));
        let mut hashes = Vec::new();
        let mut buffer = vec![0; limits::BLOCK as usize];
        let mut at = offset;
        let mut data_from = offset;
        while at < end {
            // Whole blocks in a hole need not be read.
            if data_from <= at {
                data_from = self.store.next_data(node, at)?.unwrap_or(u64::MAX);
            }
            let length = limits::BLOCK.min(end - at) as usize;
            if data_from >= at + limits::BLOCK {
                hashes.extend_from_slice(&[0; HASH]);
            } else {
                let n = self.store.read(node, at, &mut buffer[..length])?;
                buffer[n..length].fill(0);
                hashes.extend_from_slice(&hash(&buffer[..length]));
            }
            at += limits::BLOCK;
            if data_from < at {
                data_from = at;
            }
        }
        Ok((size, hashes))
    }

    /// The secondary's answer to a compare request.
    pub(crate) fn compare_answer(&self, request: CompareRequest) -> io::Result<CompareAnswer> {
        let (file, offset, blocks) = match request {
            CompareRequest::Objects { files } => {
                let present = files
                    .into_iter()
                    .map(|file| self.store.object(file).map(|node| node.is_some()))
                    .collect::<io::Result<_>>()?;
                return Ok(CompareAnswer::Present { present });
            }
            CompareRequest::Blocks {
                file,
                offset,
                blocks,
            } => (file, offset, blocks),
        };
        match self.store.object(file)? {
            None => Ok(CompareAnswer::Missing),
            Some(node) if node.kind() != Kind::Regular => Ok(CompareAnswer::Hashes {
                size: 0,
                hashes: Bytes::new(),
            }),
            Some(node) => {
                let (size, hashes) = self.hashes(&node, offset, blocks)?;
                Ok(CompareAnswer::Hashes {
                    size,
                    hashes: hashes.into(),
                })
            }
        }
    }

    /// Turns what may differ into marks of what does.
    pub(super) fn compare(
        &self,
        method: Method,
        noted: impl IntoIterator<Item = Intent>,
        marks: &DirtyMap,
        ask: &mut Ask,
    ) -> io::Result<()> {
        compare::compare(&mut Here { engine: self, ask }, method, noted, marks)
    }
}

/// This node's copy, as the source of a comparison.
struct Here<'a> {
    engine: &'a Engine,
    ask: &'a mut Ask,
}

impl Source for Here<'_> {
    type Error = io::Error;

    fn kind(&mut self, file: FileId) -> io::Result<Option<Kind>> {
        Ok(self.engine.store.object(file)?.map(|node| node.kind()))
    }

    fn size(&mut self, file: FileId) -> io::Result<u64> {
        match self.engine.store.object(file)? {
            Some(node) => node.size(),
            None => Ok(0),
        }
    }

    fn find(&mut self, directory: FileId, name: &Name) -> io::Result<Option<FileId>> {
        match self.engine.store.object(directory)? {
            Some(node) if node.kind() == Kind::Directory => {
                Ok(self.engine.store.find(&node, name)?.map(|n| n.file()))
            }
            _ => Ok(None),
        }
    }

    fn list(&mut self, directory: FileId) -> io::Result<Vec<FileId>> {
        match self.engine.store.object(directory)? {
            Some(node) => {
                let entries = self.engine.store.list_all(&node)?;
                Ok(entries.into_iter().map(|(_, node)| node.file()).collect())
            }
            None => Ok(Vec::new()),
        }
    }

    fn ids(&mut self, first: FileId) -> io::Result<Vec<FileId>> {
        self.engine.store.ids().present(first, limits::ID_BLOCK)
    }

    fn hashes(&mut self, file: FileId, offset: u64, blocks: u32) -> io::Result<(u64, Vec<u8>)> {
        match self.engine.store.object(file)? {
            Some(node) => self.engine.hashes(&node, offset, blocks),
            None => Ok((0, Vec::new())),
        }
    }

    fn ask(&mut self, request: CompareRequest) -> io::Result<CompareAnswer> {
        (self.ask)(request)
    }

    fn unexpected(&mut self, answer: &CompareAnswer) -> io::Error {
        io::Error::new(
            io::ErrorKind::InvalidData,
            format!("the peer's answer does not fit the question: {answer:?}"),
        )
    }

    fn watch(&mut self, watch: bool) {
        self.engine.core.lock().watch_moves(watch);
    }

    fn moved(&mut self) -> Vec<FileId> {
        // A rename is done in the store before it has its place.
        let _names = self.engine.names.lock();
        self.engine.core.lock().take_moved()
    }

    fn mark(&mut self, change: impl FnOnce(&mut DirtyMap)) {
        self.engine.core.lock().mark(change);
    }
}

fn hash(block: &[u8]) -> [u8; HASH] {
    let mut out = [0; HASH];
    if block.iter().any(|b| *b != 0) {
        out.copy_from_slice(&blake3::hash(block).as_bytes()[..HASH]);
    }
    out
}
