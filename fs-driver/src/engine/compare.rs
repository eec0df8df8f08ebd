//! Comparing block by block: what is only suspected to differ is not moved.

use std::collections::HashSet;
use std::io;

use bytes::Bytes;
use twinfold_protocol::attr::Kind;
use twinfold_protocol::handshake::Method;
use twinfold_protocol::ids::FileId;
use twinfold_protocol::limits;
use twinfold_protocol::marks::{DirtyMap, Intent, Names};
use twinfold_protocol::wire::{CompareAnswer, CompareRequest};

use super::Engine;
use crate::store::Node;

/// Bytes of one block's hash: BLAKE3, cut to 128 bits.
const HASH: usize = 16;

/// Unmarked blocks between two marked ones that are compared along with them, rather
/// than asked for apart.
const SPAN_GAP: u32 = 32;

/// Asks the secondary for hashes. Blocks; fails when the connection is gone.
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

    /// Turns what may differ into what does: marks in the map, exact to the block.
    /// This node goes on alone meanwhile, so whatever is written marks itself.
    pub(super) fn compare(
        &self,
        method: Method,
        suspects: impl IntoIterator<Item = Intent>,
        marks: &DirtyMap,
        ask: &mut Ask,
    ) -> io::Result<()> {
        let mut comparison = Comparison {
            engine: self,
            ask,
            asked: Vec::new(),
            listed: HashSet::new(),
        };
        match method {
            Method::Everything => return comparison.tree(true),
            Method::Compare => return comparison.tree(false),
            Method::Marks => {}
        }
        for suspect in suspects {
            comparison.suspect(suspect)?;
        }
        comparison.marks(marks)?;
        comparison.ask_for_objects()
    }
}

/// A comparison under way.
struct Comparison<'a> {
    engine: &'a Engine,
    ask: &'a mut Ask,
    /// Objects the peer is to be asked for.
    asked: Vec<FileId>,
    /// Directories whose entries the peer is or was asked for.
    listed: HashSet<FileId>,
}

impl Comparison<'_> {
    fn suspect(&mut self, suspect: Intent) -> io::Result<()> {
        match suspect {
            Intent::Directory { directory } => self.directory(directory),
            Intent::Attributes { file } => {
                self.engine.core.lock().mark_attributes(file);
                Ok(())
            }
            Intent::File { file } => self.file(file),
            Intent::NewIds { first } => {
                for file in self.engine.store.ids().present(first, limits::ID_BLOCK)? {
                    self.file(file)?;
                }
                Ok(())
            }
            Intent::Extent { file, extent } => {
                let from = u64::from(extent) * limits::EXTENT;
                self.engine.core.lock().mark_attributes(file);
                self.range(file, from, limits::EXTENT)
            }
        }
    }

    /// What a lost peer may not have kept, as exactly as it is marked.
    fn marks(&mut self, marks: &DirtyMap) -> io::Result<()> {
        for (directory, names) in marks.directories() {
            let Names::Some(set) = names else {
                self.directory(directory)?;
                continue;
            };
            let mut map = DirtyMap::default();
            set.iter().for_each(|name| map.mark_name(directory, name));
            self.engine.core.lock().give_back(map);
            if let Some(node) = self.engine.store.object(directory)? {
                for name in set {
                    if let Some(entry) = self.engine.store.find(&node, name)? {
                        self.existence(entry.file())?;
                    }
                }
            }
        }
        for (file, object) in marks.objects() {
            if object.unknown {
                self.existence(file)?;
            }
            if object.unknown || object.attributes {
                self.engine.core.lock().mark_attributes(file);
            }
            for (offset, length) in object.blocks.spans(SPAN_GAP) {
                self.range(file, offset, length)?;
            }
        }
        Ok(())
    }

    /// The names of a directory may differ. What it holds may be missing there: one
    /// node may have removed what the other one kept.
    fn directory(&mut self, directory: FileId) -> io::Result<()> {
        self.engine.core.lock().mark_directory(directory);
        if !self.listed.insert(directory) {
            return Ok(());
        }
        if let Some(node) = self.engine.store.object(directory)?
            && node.kind() == Kind::Directory
        {
            for entry in self.engine.store.list_all(&node)? {
                self.existence(entry.1.file())?;
            }
        }
        Ok(())
    }

    /// The peer may lack an object; it is asked for a number of them at once.
    fn existence(&mut self, file: FileId) -> io::Result<()> {
        self.asked.push(file);
        if self.asked.len() >= limits::MAX_COMPARE_OBJECTS {
            return self.ask_for_objects();
        }
        Ok(())
    }

    fn ask_for_objects(&mut self) -> io::Result<()> {
        while !self.asked.is_empty() {
            let files = std::mem::take(&mut self.asked);
            let (now, later) = files.split_at(files.len().min(limits::MAX_COMPARE_OBJECTS));
            self.asked = later.to_vec();
            let answer = (self.ask)(CompareRequest::Objects {
                files: now.to_vec(),
            })?;
            let present = match answer {
                CompareAnswer::Present { present } if present.len() == now.len() => present,
                other => return Err(unexpected(&other)),
            };
            for (file, present) in now.iter().zip(present) {
                if !present {
                    self.missing(*file)?;
                }
            }
        }
        Ok(())
    }

    /// The peer has no such object: all of it is moved, and what it holds may be missing too.
    fn missing(&mut self, file: FileId) -> io::Result<()> {
        self.engine.core.lock().mark_missing(file);
        match self.engine.store.object(file)? {
            Some(node) if node.kind() == Kind::Directory => {
                self.engine.core.lock().mark_directory(file);
                if self.listed.insert(file) {
                    for entry in self.engine.store.list_all(&node)? {
                        self.asked.push(entry.1.file());
                    }
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Everything about an object: whether the peer has it, its attributes, its data.
    fn file(&mut self, file: FileId) -> io::Result<()> {
        let Some(node) = self.engine.store.object(file)? else {
            return Ok(());
        };
        self.engine.core.lock().mark_attributes(file);
        match node.kind() {
            Kind::Regular => self.range(file, 0, node.size()?.max(1)),
            Kind::Directory => {
                self.directory(file)?;
                self.existence(file)
            }
            _ => self.existence(file),
        }
    }

    fn range(&mut self, file: FileId, offset: u64, length: u64) -> io::Result<()> {
        // Gone here: it goes there with its name.
        let Some(node) = self.engine.store.object(file)? else {
            return Ok(());
        };
        if node.kind() != Kind::Regular {
            return Ok(());
        }
        let step = limits::MAX_COMPARE_BLOCKS as u64 * limits::BLOCK;
        let end = offset.saturating_add(length);
        let mut at = offset;
        while at < end {
            let span = step.min(end - at);
            let blocks = span.div_ceil(limits::BLOCK) as u32;
            let answer = (self.ask)(CompareRequest::Blocks {
                file,
                offset: at,
                blocks,
            })?;
            let theirs = match answer {
                CompareAnswer::Missing => return self.missing(file),
                CompareAnswer::Hashes { hashes, .. } => hashes,
                other => return Err(unexpected(&other)),
            };
            let (size, mine) = self.engine.hashes(&node, at, blocks)?;
            let mut core = self.engine.core.lock();
            for (i, hash) in mine.chunks_exact(HASH).enumerate() {
                if theirs.get(i * HASH..(i + 1) * HASH) != Some(hash) {
                    core.mark_compared(file, at + i as u64 * limits::BLOCK, 1);
                }
            }
            drop(core);
            if at + span >= size {
                break;
            }
            at += span;
        }
        Ok(())
    }

    /// The whole tree: as missing on the peer, or as to be compared.
    fn tree(&mut self, missing: bool) -> io::Result<()> {
        let mut directories = vec![FileId::ROOT];
        self.engine.core.lock().mark_directory(FileId::ROOT);
        while let Some(directory) = directories.pop() {
            let Some(node) = self.engine.store.object(directory)? else {
                continue;
            };
            for (_, entry) in self.engine.store.list_all(&node)? {
                let file = entry.file();
                let is_directory = entry.kind() == Kind::Directory;
                let mut core = self.engine.core.lock();
                if is_directory {
                    directories.push(file);
                    core.mark_directory(file);
                }
                if missing {
                    core.mark_missing(file);
                    continue;
                }
                core.mark_attributes(file);
                drop(core);
                if entry.kind() == Kind::Regular {
                    self.range(file, 0, entry.size()?.max(1))?;
                } else {
                    // Its entries are looked at anyway.
                    self.listed.insert(file);
                    self.existence(file)?;
                }
            }
        }
        self.ask_for_objects()
    }
}

fn unexpected(answer: &CompareAnswer) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("the peer's answer does not fit the question: {answer:?}"),
    )
}

fn hash(block: &[u8]) -> [u8; HASH] {
    let mut out = [0; HASH];
    if block.iter().any(|b| *b != 0) {
        out.copy_from_slice(&blake3::hash(block).as_bytes()[..HASH]);
    }
    out
}
