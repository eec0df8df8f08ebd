//! Finding what differs, before a resync: suspicions go in, exact marks come out.
//!
//! What notes and marks name may differ; it is compared, by existence and by hash,
//! so that only what does differ is moved (promise 6). What they do not name, but
//! one node may have removed or cut while it could not tell the other one, follows
//! from them: everything in a suspect directory is asked for.

use std::collections::HashSet;
use std::fmt::Debug;

use crate::attr::Kind;
use crate::handshake::Method;
use crate::ids::FileId;
use crate::limits;
use crate::marks::{DirtyMap, Intent, Names};
use crate::op::Name;
use crate::wire::{CompareAnswer, CompareRequest};

/// Bytes of one block's hash: BLAKE3, cut to 128 bits; zeros for a block of zeros.
pub const HASH: usize = 16;

/// Unmarked blocks between two marked ones that are compared along with them, rather
/// than asked for apart.
const SPAN_GAP: u32 = 32;

/// The source's copy, its marks, and the way to ask the target. Every method fails
/// when the store cannot be read or the target is gone.
pub trait Source {
    /// Why something could not be read or asked.
    type Error;

    /// What an object is, if it has a name here.
    fn kind(&mut self, file: FileId) -> Result<Option<Kind>, Self::Error>;
    /// Size of a file, in bytes.
    fn size(&mut self, file: FileId) -> Result<u64, Self::Error>;
    /// What a name leads to.
    fn find(&mut self, directory: FileId, name: &Name) -> Result<Option<FileId>, Self::Error>;
    /// What a directory holds.
    fn list(&mut self, directory: FileId) -> Result<Vec<FileId>, Self::Error>;
    /// Ids in `first .. first + limits::ID_BLOCK` that objects have.
    fn ids(&mut self, first: FileId) -> Result<Vec<FileId>, Self::Error>;
    /// The file's size, and hashes of its blocks from `offset` on, at most `blocks` of
    /// them, none beyond its end, [`HASH`] bytes each.
    fn hashes(
        &mut self,
        file: FileId,
        offset: u64,
        blocks: u32,
    ) -> Result<(u64, Vec<u8>), Self::Error>;
    /// Asks the target.
    fn ask(&mut self, request: CompareRequest) -> Result<CompareAnswer, Self::Error>;
    /// The target answered something else than it was asked.
    fn unexpected(&mut self, answer: &CompareAnswer) -> Self::Error;
    /// From now on what gets another name is remembered, or not any more.
    fn watch(&mut self, watch: bool);
    /// What got another name since the last call. Nothing is half-way while it is asked for.
    fn moved(&mut self) -> Vec<FileId>;
    /// Changes the marks of what must be moved.
    fn mark(&mut self, change: impl FnOnce(&mut DirtyMap));
}

/// Turns what may differ into marks of what does, exact to the block. The source goes
/// on alone meanwhile, so that what is written marks itself. `noted` are the intents of
/// both nodes, `marks` what the source knows of more exactly.
pub fn compare<S: Source>(
    source: &mut S,
    method: Method,
    noted: impl IntoIterator<Item = Intent>,
    marks: &DirtyMap,
) -> Result<(), S::Error> {
    let mut comparison = Comparison {
        source,
        method,
        asked: Vec::new(),
        listed: HashSet::new(),
        seen: HashSet::new(),
    };
    comparison.source.watch(true);
    let compared = comparison.all(noted, marks);
    comparison.source.watch(false);
    compared
}

struct Comparison<'a, S> {
    source: &'a mut S,
    method: Method,
    /// Objects the peer is to be asked for.
    asked: Vec<FileId>,
    /// Directories whose entries the peer is or was asked for.
    listed: HashSet<FileId>,
    /// Objects that were met in the tree, or because they moved: each is looked at once.
    seen: HashSet<FileId>,
}

impl<S: Debug> Debug for Comparison<'_, S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Comparison").finish_non_exhaustive()
    }
}

impl<S: Source> Comparison<'_, S> {
    fn all(
        &mut self,
        noted: impl IntoIterator<Item = Intent>,
        marks: &DirtyMap,
    ) -> Result<(), S::Error> {
        if self.method == Method::Marks {
            for intent in noted {
                self.intent(intent)?;
            }
            self.marks(marks)?;
        } else {
            self.source.mark(|map| {
                map.mark_directory(FileId::ROOT);
                map.mark_attributes(FileId::ROOT);
            });
            self.tree(FileId::ROOT)?;
        }
        loop {
            self.ask_for_objects()?;
            // What moves from a directory that was not listed yet to one that was is met in
            // neither.
            let moved = self.source.moved();
            if moved.is_empty() {
                return Ok(());
            }
            for file in moved {
                self.moved(file)?;
            }
        }
    }

    fn moved(&mut self, file: FileId) -> Result<(), S::Error> {
        if !self.seen.insert(file) {
            return Ok(());
        }
        match self.source.kind(file)? {
            None => Ok(()),
            Some(_) if self.method == Method::Marks => self.existence(file),
            Some(kind) => {
                self.found(file, kind)?;
                if kind == Kind::Directory && !self.listed.contains(&file) {
                    self.tree(file)?;
                }
                Ok(())
            }
        }
    }

    fn intent(&mut self, intent: Intent) -> Result<(), S::Error> {
        match intent {
            Intent::Directory { directory } => self.directory(directory),
            Intent::Attributes { file } => {
                self.source.mark(|map| map.mark_attributes(file));
                Ok(())
            }
            Intent::File { file } => self.file(file),
            Intent::NewIds { first } => {
                for file in self.source.ids(first)? {
                    self.file(file)?;
                }
                Ok(())
            }
            Intent::Extent { file, extent } => {
                let from = u64::from(extent) * limits::EXTENT;
                self.source.mark(|map| map.mark_attributes(file));
                self.range(file, from, limits::EXTENT)
            }
        }
    }

    /// What a lost peer may not have kept, as exactly as it is marked.
    fn marks(&mut self, marks: &DirtyMap) -> Result<(), S::Error> {
        for (directory, names) in marks.directories() {
            let Names::Some(set) = names else {
                self.directory(directory)?;
                continue;
            };
            self.source
                .mark(|map| set.iter().for_each(|name| map.mark_name(directory, name)));
            for name in set {
                if let Some(file) = self.source.find(directory, name)? {
                    self.existence(file)?;
                }
            }
        }
        for (file, object) in marks.objects() {
            if object.unknown {
                self.existence(file)?;
            }
            if object.unknown || object.attributes {
                self.source.mark(|map| map.mark_attributes(file));
            }
            for (offset, length) in object.blocks.spans(SPAN_GAP) {
                self.range(file, offset, length)?;
            }
        }
        Ok(())
    }

    /// The names of a directory may differ. What it holds may be missing there: one
    /// node may have removed what the other one kept.
    fn directory(&mut self, directory: FileId) -> Result<(), S::Error> {
        self.source.mark(|map| {
            map.mark_directory(directory);
            map.mark_attributes(directory);
        });
        if self.listed.insert(directory) && self.source.kind(directory)? == Some(Kind::Directory) {
            for file in self.source.list(directory)? {
                self.existence(file)?;
            }
        }
        Ok(())
    }

    /// The peer may lack an object; it is asked for a number of them at once.
    fn existence(&mut self, file: FileId) -> Result<(), S::Error> {
        self.asked.push(file);
        if self.asked.len() >= limits::MAX_COMPARE_OBJECTS {
            return self.ask_for_objects();
        }
        Ok(())
    }

    fn ask_for_objects(&mut self) -> Result<(), S::Error> {
        while !self.asked.is_empty() {
            let rest = self.asked.len().saturating_sub(limits::MAX_COMPARE_OBJECTS);
            let now = self.asked.split_off(rest);
            let answer = self
                .source
                .ask(CompareRequest::Objects { files: now.clone() })?;
            let present = match answer {
                CompareAnswer::Present { present } if present.len() == now.len() => present,
                other => return Err(self.source.unexpected(&other)),
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
    fn missing(&mut self, file: FileId) -> Result<(), S::Error> {
        self.source.mark(|map| map.mark_unknown(file));
        if self.source.kind(file)? == Some(Kind::Directory) {
            self.source.mark(|map| map.mark_directory(file));
            if self.listed.insert(file) {
                let held = self.source.list(file)?;
                self.asked.extend(held);
            }
        }
        Ok(())
    }

    /// Everything about an object: whether the peer has it, its attributes, its data.
    fn file(&mut self, file: FileId) -> Result<(), S::Error> {
        let Some(kind) = self.source.kind(file)? else {
            return Ok(());
        };
        self.source.mark(|map| map.mark_attributes(file));
        match kind {
            Kind::Regular => {
                let size = self.source.size(file)?;
                self.range(file, 0, size.max(1))
            }
            Kind::Directory => {
                self.directory(file)?;
                self.existence(file)
            }
            _ => self.existence(file),
        }
    }

    fn range(&mut self, file: FileId, offset: u64, length: u64) -> Result<(), S::Error> {
        // Gone here: it goes there with its name.
        if self.source.kind(file)? != Some(Kind::Regular) {
            return Ok(());
        }
        let step = limits::MAX_COMPARE_BLOCKS as u64 * limits::BLOCK;
        let end = offset.saturating_add(length);
        let mut at = offset;
        while at < end {
            let span = step.min(end - at);
            let blocks = span.div_ceil(limits::BLOCK) as u32;
            let answer = self.source.ask(CompareRequest::Blocks {
                file,
                offset: at,
                blocks,
            })?;
            let (their_size, theirs) = match answer {
                CompareAnswer::Missing => return self.missing(file),
                CompareAnswer::Hashes { size, hashes } => (size, hashes),
                other => return Err(self.source.unexpected(&other)),
            };
            let (size, mine) = self.source.hashes(file, at, blocks)?;
            self.source.mark(|map| {
                // Should the file grow again before the target is cut, what the target has
                // there now would come to light.
                map.mark_data(file, size, their_size.saturating_sub(size));
                for (i, hash) in mine.chunks_exact(HASH).enumerate() {
                    if theirs.get(i * HASH..(i + 1) * HASH) != Some(hash) {
                        map.mark_data(file, at + i as u64 * limits::BLOCK, 1);
                    }
                }
            });
            if at + span >= size {
                break;
            }
            at += span;
        }
        Ok(())
    }

    /// A whole tree: as missing on the peer, or as to be compared.
    fn tree(&mut self, top: FileId) -> Result<(), S::Error> {
        let mut directories = vec![top];
        while let Some(directory) = directories.pop() {
            // Its entries are looked at here.
            self.listed.insert(directory);
            if self.source.kind(directory)? != Some(Kind::Directory) {
                continue;
            }
            for file in self.source.list(directory)? {
                let Some(kind) = self.source.kind(file)? else {
                    continue;
                };
                if kind == Kind::Directory {
                    directories.push(file);
                }
                self.seen.insert(file);
                self.found(file, kind)?;
            }
        }
        Ok(())
    }

    /// An object in a tree that is looked at as a whole.
    fn found(&mut self, file: FileId, kind: Kind) -> Result<(), S::Error> {
        if kind == Kind::Directory {
            self.source.mark(|map| map.mark_directory(file));
        }
        if self.method == Method::Everything {
            self.source.mark(|map| map.mark_unknown(file));
            return Ok(());
        }
        self.source.mark(|map| map.mark_attributes(file));
        if kind == Kind::Regular {
            let size = self.source.size(file)?;
            self.range(file, 0, size.max(1))
        } else {
            self.existence(file)
        }
    }
}
