//! Comparing block by block: what is only suspected to differ is not moved.

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
                data_from = match self.store.seek(node, at, true) {
                    Ok(from) => from,
                    Err(e) if e.raw_os_error() == Some(libc::ENXIO) => u64::MAX,
                    Err(e) => return Err(e),
                };
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
        let node = match self.store.node(request.file) {
            Ok(node) => node,
            Err(e) if e.raw_os_error() == Some(libc::ESTALE) => return Ok(CompareAnswer::Missing),
            Err(e) => return Err(e),
        };
        if node.kind() != Kind::Regular {
            return Ok(CompareAnswer::Hashes {
                size: 0,
                hashes: Bytes::new(),
            });
        }
        let (size, hashes) = self.hashes(&node, request.offset, request.blocks)?;
        Ok(CompareAnswer::Hashes {
            size,
            hashes: hashes.into(),
        })
    }

    /// Turns what may differ into what does: marks in the map, exact to the block.
    /// This node goes on alone meanwhile, so whatever is written marks itself.
    pub(super) fn compare(
        &self,
        method: Method,
        suspects: impl IntoIterator<Item = Intent>,
        ask: &mut Ask,
    ) -> io::Result<()> {
        match method {
            Method::Everything => return self.mark_tree(true, ask),
            Method::Compare => return self.mark_tree(false, ask),
            Method::Marks => {}
        }
        for suspect in suspects {
            match suspect {
                Intent::Directory { directory } => self.core.lock().mark_directory(directory),
                Intent::Attributes { file } => self.core.lock().mark_attributes(file),
                Intent::NewIds { first } => {
                    for file in self.store.ids().present(first, limits::ID_BLOCK)? {
                        self.compare_file(file, ask)?;
                    }
                }
                Intent::Extent { file, extent } => {
                    let from = u64::from(extent) * limits::EXTENT;
                    self.core.lock().mark_attributes(file);
                    self.compare_range(file, from, limits::EXTENT, ask)?;
                }
            }
        }
        Ok(())
    }

    /// Compares what a lost peer may not have kept, as exactly as it is marked.
    pub(super) fn compare_marks(&self, marks: &DirtyMap, ask: &mut Ask) -> io::Result<()> {
        for (directory, names) in marks.directories() {
            let mut core = self.core.lock();
            match names {
                Names::All => core.mark_directory(directory),
                Names::Some(set) => {
                    let mut map = DirtyMap::default();
                    set.iter().for_each(|name| map.mark_name(directory, name));
                    core.give_back(map);
                }
            }
        }
        for (file, object) in marks.objects() {
            if object.unknown {
                self.compare_existence(file, ask)?;
            }
            if object.unknown || object.attributes {
                self.core.lock().mark_attributes(file);
            }
            for (offset, length) in object.blocks.spans(SPAN_GAP) {
                self.compare_range(file, offset, length, ask)?;
            }
        }
        Ok(())
    }

    fn compare_existence(&self, file: FileId, ask: &mut Ask) -> io::Result<()> {
        let request = CompareRequest {
            file,
            offset: 0,
            blocks: 0,
        };
        if ask(request)? == CompareAnswer::Missing {
            self.core.lock().mark_missing(file);
        }
        Ok(())
    }

    /// Everything about an object: whether the peer has it, its attributes, its data.
    fn compare_file(&self, file: FileId, ask: &mut Ask) -> io::Result<()> {
        let node = match self.store.node(file) {
            Ok(node) => node,
            Err(e) if e.raw_os_error() == Some(libc::ESTALE) => return Ok(()),
            Err(e) => return Err(e),
        };
        self.core.lock().mark_attributes(file);
        match node.kind() {
            Kind::Regular => self.compare_range(file, 0, node.size()?.max(1), ask),
            kind => {
                if kind == Kind::Directory {
                    self.core.lock().mark_directory(file);
                }
                self.compare_existence(file, ask)
            }
        }
    }

    fn compare_range(
        &self,
        file: FileId,
        offset: u64,
        length: u64,
        ask: &mut Ask,
    ) -> io::Result<()> {
        let node = match self.store.node(file) {
            Ok(node) if node.kind() == Kind::Regular => node,
            // Gone here: it goes there with its name.
            Ok(_) => return Ok(()),
            Err(e) if e.raw_os_error() == Some(libc::ESTALE) => return Ok(()),
            Err(e) => return Err(e),
        };
        let step = limits::MAX_COMPARE_BLOCKS as u64 * limits::BLOCK;
        let mut at = offset;
        while at < offset.saturating_add(length) {
            let span = step.min(offset + length - at);
            let blocks = span.div_ceil(limits::BLOCK) as u32;
            let request = CompareRequest {
                file,
                offset: at,
                blocks,
            };
            let theirs = match ask(request)? {
                CompareAnswer::Missing => {
                    self.core.lock().mark_missing(file);
                    return Ok(());
                }
                CompareAnswer::Hashes { hashes, .. } => hashes,
            };
            let (size, mine) = self.hashes(&node, at, blocks)?;
            let mut core = self.core.lock();
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

    /// Marks the whole tree: as missing on the peer, or as to be compared.
    fn mark_tree(&self, missing: bool, ask: &mut Ask) -> io::Result<()> {
        let mut directories = vec![FileId::ROOT];
        {
            let mut core = self.core.lock();
            core.mark_directory(FileId::ROOT);
        }
        while let Some(directory) = directories.pop() {
            let node = match self.store.node(directory) {
                Ok(node) => node,
                Err(e) if e.raw_os_error() == Some(libc::ESTALE) => continue,
                Err(e) => return Err(e),
            };
            for (_, entry) in self.store.list_all(&node)? {
                let file = entry.file();
                if entry.kind() == Kind::Directory {
                    directories.push(file);
                    self.core.lock().mark_directory(file);
                }
                if missing {
                    self.core.lock().mark_missing(file);
                } else {
                    self.compare_file(file, ask)?;
                }
            }
        }
        Ok(())
    }
}

fn hash(block: &[u8]) -> [u8; HASH] {
    let mut out = [0; HASH];
    if block.iter().any(|b| *b != 0) {
        out.copy_from_slice(&blake3::hash(block).as_bytes()[..HASH]);
    }
    out
}
