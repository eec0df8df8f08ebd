//! A file system in memory: what a node's store holds. A block is a number.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use twinfold_protocol::attr::Kind;
use twinfold_protocol::ids::FileId;
use twinfold_protocol::limits::BLOCK;
use twinfold_protocol::op::{AllocateMode, Listing, Name, Object, Op, Payload, RenameMode};
use twinfold_protocol::time::Timestamp;

static ZEROS: [u8; BLOCK as usize] = [0; BLOCK as usize];

/// One object.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Item {
    /// Attributes, all in one number.
    pub(crate) mode: u32,
    /// What it holds.
    pub(crate) body: Body,
}

/// What an object holds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Body {
    /// Blocks other than zero, and the size in bytes (whole blocks).
    File {
        /// The blocks.
        blocks: BTreeMap<u32, u64>,
        /// The size.
        size: u64,
    },
    /// Names.
    Directory(BTreeMap<Name, FileId>),
}

impl Item {
    /// The blocks of a range, if it is a file.
    pub(crate) fn read(&self, offset: u64, length: u64) -> Vec<u64> {
        let Body::File { blocks, .. } = &self.body else {
            return Vec::new();
        };
        let first = block(offset);
        (first..first + (length / BLOCK) as u32)
            .map(|b| blocks.get(&b).copied().unwrap_or(0))
            .collect()
    }
}

/// All objects of a store.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Fs {
    /// By id.
    pub(crate) items: BTreeMap<FileId, Item>,
    /// Objects without a name during a resync.
    pub(crate) aside: BTreeSet<FileId>,
    /// Names a whole listing has named so far. Gone with the process.
    listings: BTreeMap<FileId, BTreeSet<Name>>,
    /// Directories taken out of their places, because what lies in them goes around them.
    /// Gone with the process.
    pub(crate) lent: BTreeMap<FileId, (FileId, Name)>,
}

impl Default for Fs {
    fn default() -> Fs {
        let root = Item {
            mode: 0o755,
            body: Body::Directory(BTreeMap::new()),
        };
        Fs {
            items: BTreeMap::from([(FileId::ROOT, root)]),
            aside: BTreeSet::new(),
            listings: BTreeMap::new(),
            lent: BTreeMap::new(),
        }
    }
}

/// The payload of blocks with these contents.
pub(crate) fn payload(values: &[u64]) -> Payload {
    let mut payload = Payload::default();
    for value in values {
        payload.push(Bytes::copy_from_slice(&value.to_le_bytes()));
        payload.push(Bytes::from_static(&ZEROS[8..]));
    }
    payload
}

/// The contents of the blocks of a payload.
pub(crate) fn values(payload: &Payload) -> Vec<u64> {
    let mut all = Vec::new();
    let mut at = 0;
    for chunk in payload.chunks() {
        if at % BLOCK as usize == 0
            && let Some(head) = chunk.first_chunk::<8>()
        {
            all.push(u64::from_le_bytes(*head));
        }
        at += chunk.len();
    }
    all
}

fn block(offset: u64) -> u32 {
    (offset / BLOCK) as u32
}

impl Fs {
    /// A file's blocks and size.
    pub(crate) fn file(&self, file: FileId) -> Option<(&BTreeMap<u32, u64>, u64)> {
        match &self.items.get(&file)?.body {
            Body::File { blocks, size } => Some((blocks, *size)),
            Body::Directory(_) => None,
        }
    }

    fn file_mut(&mut self, file: FileId) -> Result<(&mut BTreeMap<u32, u64>, &mut u64), String> {
        match self.items.get_mut(&file).map(|i| &mut i.body) {
            Some(Body::File { blocks, size }) => Ok((blocks, size)),
            _ => Err(format!("{file} is no file here")),
        }
    }

    /// A directory's names.
    pub(crate) fn names(&self, directory: FileId) -> Option<&BTreeMap<Name, FileId>> {
        match &self.items.get(&directory)?.body {
            Body::Directory(names) => Some(names),
            Body::File { .. } => None,
        }
    }

    pub(crate) fn names_mut(
        &mut self,
        directory: FileId,
    ) -> Result<&mut BTreeMap<Name, FileId>, String> {
        match self.items.get_mut(&directory).map(|i| &mut i.body) {
            Some(Body::Directory(names)) => Ok(names),
            _ => Err(format!("{directory} is no directory here")),
        }
    }

    /// What an object is, if it is here.
    pub(crate) fn kind(&self, file: FileId) -> Option<Kind> {
        Some(match self.items.get(&file)?.body {
            Body::File { .. } => Kind::Regular,
            Body::Directory(_) => Kind::Directory,
        })
    }

    /// Size of a file, 0 for anything else.
    pub(crate) fn size(&self, file: FileId) -> u64 {
        self.file(file).map_or(0, |(_, size)| size)
    }

    /// The blocks of a range of a file.
    pub(crate) fn read(&self, file: FileId, offset: u64, length: u64) -> Vec<u64> {
        let item = self.items.get(&file);
        item.map_or(Vec::new(), |item| item.read(offset, length))
    }

    /// How many names an object has, its place aside counted.
    pub(crate) fn links(&self, file: FileId) -> usize {
        let named = |item: &Item| match &item.body {
            Body::Directory(names) => names.values().filter(|f| **f == file).count(),
            Body::File { .. } => 0,
        };
        self.items.values().map(named).sum::<usize>() + usize::from(self.aside.contains(&file))
    }

    /// Removes an object that has no name any more, with what it holds.
    fn drop_if_nameless(&mut self, file: FileId) {
        if file != FileId::ROOT && self.links(file) == 0 {
            self.items.remove(&file);
        }
    }

    /// Whether `inner` is `outer` or lies below it.
    pub(crate) fn is_below(&self, inner: FileId, outer: FileId) -> bool {
        inner == outer
            || self
                .names(outer)
                .is_some_and(|names| names.values().any(|f| self.is_below(inner, *f)))
    }

    fn find(&self, parent: FileId, name: &Name) -> Result<Option<FileId>, String> {
        let names = self
            .names(parent)
            .ok_or(format!("{parent} is no directory"))?;
        Ok(names.get(name).copied())
    }

    fn expect(&self, parent: FileId, name: &Name, file: Option<FileId>) -> Result<(), String> {
        let found = self.find(parent, name)?;
        if found != file {
            return Err(format!(
                "{name} in {parent} leads to {found:?} here and to {file:?} on the primary"
            ));
        }
        Ok(())
    }

    /// Does what an op says while a resync runs: nothing that loses its last name goes,
    /// for another name of it may still come.
    pub(crate) fn apply_syncing(&mut self, op: &Op) -> Result<(), String> {
        let victim = match op {
            Op::Unlink { file, .. } => Some(*file),
            Op::Rename {
                replaced,
                file,
                mode,
                ..
            } if *mode == RenameMode::Replace => replaced.filter(|r| r != file),
            _ => None,
        };
        if let Some(victim) = victim
            && self.kind(victim) == Some(Kind::Regular)
        {
            self.aside.insert(victim);
        }
        self.apply(op)
    }

    /// Does what an op says; an error when this copy is not what the op expects.
    pub(crate) fn apply(&mut self, op: &Op) -> Result<(), String> {
        match op {
            Op::Write {
                file, offset, data, ..
            } => self.write(*file, *offset, &values(data)),
            Op::Truncate { file, size, .. } => {
                let (blocks, old) = self.file_mut(*file)?;
                *old = *size;
                blocks.retain(|b, _| u64::from(*b) * BLOCK < *size);
                Ok(())
            }
            Op::Allocate {
                file,
                mode,
                offset,
                length,
            } => {
                let (blocks, size) = self.file_mut(*file)?;
                if *mode == AllocateMode::PunchHole {
                    blocks.retain(|b, _| !(block(*offset)..block(offset + length)).contains(b));
                } else {
                    *size = (*size).max(offset + length);
                }
                Ok(())
            }
            Op::CopyRange {
                from,
                from_offset,
                to,
                to_offset,
                length,
            } => {
                self.file_mut(*from)?;
                let data = self.read(*from, *from_offset, *length);
                self.write(*to, *to_offset, &data)
            }
            Op::Create {
                parent,
                name,
                object,
            } => {
                self.expect(*parent, name, None)?;
                if self.items.contains_key(&object.file) {
                    return Err(format!("{} exists", object.file));
                }
                self.insert(object.file, object.kind, object.mode);
                self.names_mut(*parent)?.insert(name.clone(), object.file);
                Ok(())
            }
            Op::Link { file, parent, name } => {
                self.expect(*parent, name, None)?;
                self.file_mut(*file)?;
                self.names_mut(*parent)?.insert(name.clone(), *file);
                Ok(())
            }
            Op::Unlink { parent, name, file } | Op::RemoveDirectory { parent, name, file } => {
                self.expect(*parent, name, Some(*file))?;
                if self.names(*file).is_some_and(|n| !n.is_empty()) {
                    return Err(format!("{file} is not empty"));
                }
                self.names_mut(*parent)?.remove(name);
                self.drop_if_nameless(*file);
                Ok(())
            }
            Op::Rename {
                parent,
                name,
                file,
                new_parent,
                new_name,
                replaced,
                mode,
            } => {
                self.expect(*parent, name, Some(*file))?;
                self.expect(*new_parent, new_name, *replaced)?;
                if let Some(victim) = replaced
                    && *mode != RenameMode::Exchange
                    && self.names(*victim).is_some_and(|n| !n.is_empty())
                {
                    return Err(format!("{victim} is not empty"));
                }
                if *replaced == Some(*file) {
                    return Ok(());
                }
                let exchanged = replaced.filter(|_| *mode == RenameMode::Exchange);
                if self.is_below(*new_parent, *file)
                    || exchanged.is_some_and(|other| self.is_below(*parent, other))
                {
                    return Err(format!("{file} would lie below itself"));
                }
                self.names_mut(*parent)?.remove(name);
                self.names_mut(*new_parent)?.insert(new_name.clone(), *file);
                if let Some(victim) = replaced {
                    if *mode == RenameMode::Exchange {
                        self.names_mut(*parent)?.insert(name.clone(), *victim);
                    } else {
                        self.drop_if_nameless(*victim);
                    }
                }
                Ok(())
            }
            Op::SetAttributes { file, change } => {
                let item = self.items.get_mut(file);
                item.ok_or(format!("{file} is not here"))?.mode = change.mode.unwrap_or_default();
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn write(&mut self, file: FileId, offset: u64, data: &[u64]) -> Result<(), String> {
        let (blocks, size) = self.file_mut(file)?;
        for (i, value) in data.iter().enumerate() {
            let b = block(offset) + i as u32;
            if *value == 0 {
                blocks.remove(&b);
            } else {
                blocks.insert(b, *value);
            }
        }
        *size = (*size).max(offset + data.len() as u64 * BLOCK);
        Ok(())
    }

    fn insert(&mut self, file: FileId, kind: Kind, mode: u32) {
        let body = match kind {
            Kind::Directory => Body::Directory(BTreeMap::new()),
            _ => Body::File {
                blocks: BTreeMap::new(),
                size: 0,
            },
        };
        self.items.insert(file, Item { mode, body });
    }

    /// Does what a resync op says: the target's side.
    pub(crate) fn put(&mut self, op: &Op) -> Result<(), String> {
        match op {
            Op::PutDirectory {
                directory,
                listing,
                entries,
            } => {
                if !self.items.contains_key(directory) {
                    self.insert(*directory, Kind::Directory, 0o700);
                    self.aside.insert(*directory);
                }
                if let Listing::Whole { first: true, .. } = listing {
                    self.listings.insert(*directory, BTreeSet::new());
                }
                for entry in entries {
                    self.put_entry(*directory, &entry.name, entry.object.as_ref())?;
                    if let Some(seen) = self.listings.get_mut(directory) {
                        seen.insert(entry.name.clone());
                    }
                }
                if let Listing::Whole { last: true, .. } = listing {
                    let seen = self.listings.remove(directory).unwrap_or_default();
                    let here: Vec<_> = self.names_mut(*directory)?.keys().cloned().collect();
                    for name in here.into_iter().filter(|n| !seen.contains(n)) {
                        self.move_aside(*directory, &name)?;
                    }
                    self.told_of(*directory, |name| !seen.contains(name));
                }
                self.put_back();
                Ok(())
            }
            Op::ResyncEnd => self.all_in_place(),
            Op::PutObject { object, .. } => {
                if !self.items.contains_key(&object.file) {
                    self.insert(object.file, object.kind, object.mode);
                    self.aside.insert(object.file);
                }
                if self.kind(object.file) != Some(object.kind) {
                    return Err(format!("{} is something else here", object.file));
                }
                if object.kind == Kind::Regular {
                    self.apply(&Op::Truncate {
                        file: object.file,
                        size: object.size,
                        clear_privileges: false,
                    })?;
                }
                if let Some(item) = self.items.get_mut(&object.file) {
                    item.mode = object.mode;
                }
                Ok(())
            }
            Op::PutData { file, offset, data } => self.write(*file, *offset, &values(data)),
            Op::PutHole {
                file,
                offset,
                length,
            } => self.apply(&Op::Allocate {
                file: *file,
                mode: AllocateMode::PunchHole,
                offset: *offset,
                length: *length,
            }),
            _ => Ok(()),
        }
    }

    fn put_entry(
        &mut self,
        parent: FileId,
        name: &Name,
        wanted: Option<&Object>,
    ) -> Result<(), String> {
        self.told_of(parent, |told| told == name);
        let here = self.find(parent, name)?;
        if here == wanted.map(|o| o.file) {
            return Ok(());
        }
        if here.is_some() {
            self.move_aside(parent, name)?;
        }
        let Some(wanted) = wanted else { return Ok(()) };
        if !self.items.contains_key(&wanted.file) {
            self.insert(wanted.file, wanted.kind, wanted.mode);
        } else if self.kind(wanted.file) == Some(Kind::Directory) {
            self.make_way(parent, wanted.file);
            self.lent.remove(&wanted.file);
            // A directory has one name.
            if let Some((old, name)) = self.place_of(wanted.file) {
                self.names_mut(old)?.remove(&name);
            }
        }
        if self.is_below(parent, wanted.file) {
            return Err(format!("{} would lie below itself", wanted.file));
        }
        self.aside.remove(&wanted.file);
        self.names_mut(parent)?.insert(name.clone(), wanted.file);
        Ok(())
    }

    pub(crate) fn move_aside(&mut self, parent: FileId, name: &Name) -> Result<(), String> {
        if let Some(file) = self.names_mut(parent)?.remove(name) {
            self.aside.insert(file);
        }
        Ok(())
    }

    /// What is aside, or in a directory that is, and has a name as well loses its place there.
    pub(crate) fn settle_aside(&mut self) {
        self.put_back();
        self.lent.clear();
        for file in self.aside.clone() {
            self.settle_below(file);
            if self.links(file) > 1 {
                self.aside.remove(&file);
            }
        }
    }

    fn settle_below(&mut self, directory: FileId) {
        let Some(Body::Directory(names)) = self.items.get(&directory).map(|item| &item.body) else {
            return;
        };
        for (name, file) in names.clone() {
            self.settle_below(file);
            if self.file(file).is_some()
                && self.links(file) > 1
                && let Ok(names) = self.names_mut(directory)
            {
                names.remove(&name);
            }
        }
    }

    /// Removes what is still aside.
    pub(crate) fn clear_aside(&mut self) {
        for file in std::mem::take(&mut self.aside) {
            self.remove_tree(file);
        }
    }

    fn remove_tree(&mut self, file: FileId) {
        if self.links(file) > 0 {
            return;
        }
        if let Some(Item {
            body: Body::Directory(names),
            ..
        }) = self.items.remove(&file)
        {
            for child in names.into_values() {
                self.remove_tree(child);
            }
        }
    }

    /// A resync begins, or the process is gone, and with it what it kept in memory.
    pub(crate) fn forget_listings(&mut self) {
        self.listings.clear();
        self.forget_lent();
    }

    /// An object as resync sends it.
    pub(crate) fn object(&self, file: FileId) -> Option<Object> {
        Some(Object {
            file,
            kind: self.kind(file)?,
            target: Bytes::new(),
            mode: self.items.get(&file)?.mode,
            uid: 0,
            gid: 0,
            size: self.size(file),
            accessed: Timestamp::default(),
            modified: Timestamp::default(),
        })
    }

    /// Every object that can be reached by name, from the root.
    pub(crate) fn reachable(&self) -> BTreeMap<FileId, Item> {
        self.reachable_from([FileId::ROOT])
    }

    /// Every object that can be reached from the root or lies aside.
    pub(crate) fn kept(&self) -> BTreeMap<FileId, Item> {
        self.reachable_from(self.aside.iter().copied().chain([FileId::ROOT]))
    }

    fn reachable_from(&self, tops: impl IntoIterator<Item = FileId>) -> BTreeMap<FileId, Item> {
        let mut found = BTreeMap::new();
        let mut next: Vec<FileId> = tops.into_iter().collect();
        while let Some(file) = next.pop() {
            if let Some(item) = self.items.get(&file)
                && found.insert(file, item.clone()).is_none()
                && let Body::Directory(names) = &item.body
            {
                next.extend(names.values().copied());
            }
        }
        found
    }
}
