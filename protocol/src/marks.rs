//! Dirty marks: what of a copy is known or suspected to differ from the other one.
//!
//! A file's unit of difference is a block of [`limits::BLOCK`] bytes, a
//! directory's is a name; both have attributes. Marks are set by ops and leave
//! the map only when what they name has been moved or compared (invariant 12).
//!
//! [`DirtyMap`] is exact and lives in memory; [`Intent`] is its coarse, durable
//! shadow, made before a node changes its own copy (invariant 1).

mod blocks;
mod notes;
mod pieces;

use std::collections::{BTreeMap, BTreeSet};

use crate::ids::FileId;
use crate::limits;
use crate::op::{Name, Op};

pub use blocks::Blocks;
pub use notes::{Intent, id_block, intents_of};
pub use pieces::{BadPiece, Cursor};

/// Marks of one object.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct ObjectMarks {
    /// Data that may differ.
    pub blocks: Blocks,
    /// Attributes, extended attributes or size may differ.
    pub attributes: bool,
    /// The other copy may lack the object altogether.
    pub unknown: bool,
}

impl ObjectMarks {
    fn is_empty(&self) -> bool {
        !self.attributes && !self.unknown && self.blocks.is_empty()
    }
}

/// Marks of one directory's names.
#[derive(Clone, PartialEq, Debug)]
pub enum Names {
    /// These names.
    Some(BTreeSet<Name>),
    /// Every name.
    All,
}

/// Everything that may differ.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct DirtyMap {
    objects: BTreeMap<FileId, ObjectMarks>,
    directories: BTreeMap<FileId, Names>,
    /// Names kept apart, in all directories.
    names: usize,
    /// Files whose marks need memory of their own.
    scattered: usize,
    /// More differs than is told apart.
    everything: bool,
}

impl DirtyMap {
    /// Whether nothing is marked.
    pub fn is_empty(&self) -> bool {
        self.objects.is_empty() && self.directories.is_empty() && !self.everything
    }

    /// Everything may differ: nothing is told apart any more.
    pub fn mark_everything(&mut self) {
        *self = DirtyMap {
            everything: true,
            ..DirtyMap::default()
        };
    }

    /// Whether everything may differ, whatever else is marked.
    pub fn is_everything(&self) -> bool {
        self.everything
    }

    /// Takes the mark on everything away: all is going to be compared. Returns whether it was there.
    pub fn take_everything(&mut self) -> bool {
        std::mem::take(&mut self.everything)
    }

    /// A map that has grown too large says no more than that everything may differ.
    pub fn bound(&mut self) {
        if self.objects.len().max(self.directories.len()) > limits::MAX_MARKED_OBJECTS {
            self.mark_everything();
        }
    }

    /// Objects marked, and directories with marked names.
    pub fn counts(&self) -> (usize, usize) {
        (self.objects.len(), self.directories.len())
    }

    /// Marked blocks, in bytes; files marked from end to end count as nothing here.
    pub fn block_bytes(&self) -> u64 {
        self.objects
            .values()
            .map(|m| m.blocks.count() * limits::BLOCK)
            .sum()
    }

    /// The marks of an object.
    pub fn object(&self, file: FileId) -> Option<&ObjectMarks> {
        self.objects.get(&file)
    }

    /// The marks of a directory's names.
    pub fn names(&self, directory: FileId) -> Option<&Names> {
        self.directories.get(&directory)
    }

    /// All marked objects.
    pub fn objects(&self) -> impl Iterator<Item = (FileId, &ObjectMarks)> {
        self.objects.iter().map(|(id, marks)| (*id, marks))
    }

    /// All directories with marked names.
    pub fn directories(&self) -> impl Iterator<Item = (FileId, &Names)> {
        self.directories.iter().map(|(id, names)| (*id, names))
    }

    /// The first marked object, to be worked on next.
    pub fn first_object(&self) -> Option<FileId> {
        self.objects.keys().next().copied()
    }

    /// The first directory with marked names.
    pub fn first_directory(&self) -> Option<FileId> {
        self.directories.keys().next().copied()
    }

    /// Marks a byte range of a file.
    pub fn mark_data(&mut self, file: FileId, offset: u64, length: u64) {
        if length > 0 {
            self.change_blocks(file, |blocks| blocks.mark(offset, length));
        }
    }

    fn unite_blocks(&mut self, file: FileId, theirs: Blocks) {
        self.change_blocks(file, |blocks| blocks.unite(theirs));
    }

    /// Changes the blocks of a file; where too many files have scattered ones, all of it
    /// is marked.
    fn change_blocks(&mut self, file: FileId, change: impl FnOnce(&mut Blocks)) {
        let blocks = &mut self.objects.entry(file).or_default().blocks;
        let before = blocks.is_scattered();
        change(blocks);
        match (before, blocks.is_scattered()) {
            (false, true) if self.scattered >= limits::MAX_SCATTERED_FILES => {
                *blocks = Blocks::all();
            }
            (false, true) => self.scattered += 1,
            (true, false) => self.scattered -= 1,
            _ => {}
        }
    }

    /// Marks an object's attributes.
    pub fn mark_attributes(&mut self, file: FileId) {
        self.objects.entry(file).or_default().attributes = true;
    }

    /// Marks an object that the other copy may lack: all of it.
    pub fn mark_unknown(&mut self, file: FileId) {
        self.unite_blocks(file, Blocks::all());
        self.mark_unknown_attributes(file);
    }

    /// Marks an object that was created on the other copy but is not provably on
    /// its disk: its existence and attributes, not its data.
    pub fn mark_unknown_attributes(&mut self, file: FileId) {
        let marks = self.objects.entry(file).or_default();
        marks.unknown = true;
        marks.attributes = true;
    }

    /// The first marked object after `file`.
    pub fn object_after(&self, file: FileId) -> Option<FileId> {
        use std::ops::Bound::{Excluded, Unbounded};
        self.objects
            .range((Excluded(file), Unbounded))
            .next()
            .map(|(id, _)| *id)
    }

    /// Marks a name; where too many are marked, all of its directory.
    pub fn mark_name(&mut self, directory: FileId, name: &Name) {
        let names = self
            .directories
            .entry(directory)
            .or_insert_with(|| Names::Some(BTreeSet::new()));
        let Names::Some(set) = names else { return };
        if set.contains(name) {
            return;
        }
        if set.len() >= limits::MAX_MARKED_NAMES || self.names >= limits::MAX_MARKED_NAMES_IN_ALL {
            return self.mark_directory(directory);
        }
        set.insert(name.clone());
        self.names += 1;
    }

    /// Marks every name of a directory.
    pub fn mark_directory(&mut self, directory: FileId) {
        self.take_names(directory);
        self.directories.insert(directory, Names::All);
    }

    /// Drops everything about an object that exists no longer on the source: it
    /// leaves the other copy with its last name.
    pub fn forget(&mut self, file: FileId) {
        if let Some(marks) = self.objects.remove(&file)
            && marks.blocks.is_scattered()
        {
            self.scattered -= 1;
        }
        self.take_names(file);
    }

    /// Takes a directory's name marks out of the map.
    pub fn take_names(&mut self, directory: FileId) -> Option<Names> {
        let names = self.directories.remove(&directory)?;
        if let Names::Some(set) = &names {
            self.names -= set.len();
        }
        Some(names)
    }

    /// Clears the attribute and "unknown" marks of an object; returns what they were.
    pub fn take_attributes(&mut self, file: FileId) -> Option<ObjectMarks> {
        let marks = self.objects.get_mut(&file)?;
        let was = ObjectMarks {
            blocks: Blocks::default(),
            attributes: marks.attributes,
            unknown: marks.unknown,
        };
        marks.attributes = false;
        marks.unknown = false;
        self.drop_if_empty(file);
        Some(was)
    }

    /// Clears only the "unknown" mark: the object was created there, its attributes may still differ.
    pub fn now_known(&mut self, file: FileId) {
        if let Some(marks) = self.objects.get_mut(&file) {
            marks.unknown = false;
        }
    }

    /// Takes the next run of a file's marked blocks out of the map, see [`Blocks::take_run`].
    pub fn take_run(&mut self, file: FileId, most: u32, size: u64) -> Option<(u64, u64)> {
        let blocks = &mut self.objects.get_mut(&file)?.blocks;
        let before = blocks.is_scattered();
        let run = blocks.take_run(most, size);
        if before && !blocks.is_scattered() {
            self.scattered -= 1;
        }
        self.drop_if_empty(file);
        run
    }

    /// The next run of a file's marked blocks, which stay marked, see [`Blocks::first_run`].
    pub fn first_run(&self, file: FileId, most: u32, size: u64) -> Option<(u64, u64)> {
        self.objects.get(&file)?.blocks.first_run(most, size)
    }

    /// Takes the marks of a range out of the map.
    pub fn take_range(&mut self, file: FileId, offset: u64, length: u64) {
        if self.objects.contains_key(&file) {
            self.change_blocks(file, |blocks| blocks.take(offset, length));
            self.drop_if_empty(file);
        }
    }

    fn drop_if_empty(&mut self, file: FileId) {
        if self.objects.get(&file).is_some_and(ObjectMarks::is_empty) {
            self.objects.remove(&file);
        }
    }

    /// Where the last marked block of a file ends; 0 when none is marked by itself.
    pub fn reach(&self, file: FileId) -> u64 {
        self.objects.get(&file).map_or(0, |m| m.blocks.reach())
    }

    /// Adds all marks of `other`.
    pub fn unite(&mut self, other: DirtyMap) {
        if self.everything || other.everything {
            return self.mark_everything();
        }
        for (file, theirs) in other.objects {
            self.unite_blocks(file, theirs.blocks);
            if let Some(mine) = self.objects.get_mut(&file) {
                mine.attributes |= theirs.attributes;
                mine.unknown |= theirs.unknown;
            }
        }
        for (directory, theirs) in other.directories {
            match theirs {
                Names::All => self.mark_directory(directory),
                Names::Some(set) => {
                    for name in &set {
                        self.mark_name(directory, name);
                    }
                }
            }
        }
    }

    /// Marks what an op changes. `old_size` is the file's size before the op, for
    /// ops that cut or zero (their effect reaches to it).
    pub fn mark_op(&mut self, op: &Op, old_size: u64) {
        if self.everything {
            return;
        }
        match op {
            Op::Write {
                file, offset, data, ..
            } => {
                self.mark_data(*file, *offset, data.len() as u64);
                // It may lie beyond the end, and take privileges away.
                self.mark_attributes(*file);
            }
            Op::Truncate { file, size, .. } => {
                self.mark_attributes(*file);
                let (from, to) = (old_size.min(*size), old_size.max(*size));
                // The last kept block is cut inside.
                let from = from / limits::BLOCK * limits::BLOCK;
                self.mark_data(*file, from, to - from);
            }
            Op::Allocate {
                file,
                offset,
                length,
                ..
            } => {
                self.mark_attributes(*file);
                self.mark_data(*file, *offset, *length);
            }
            Op::CopyRange {
                to,
                to_offset,
                length,
                ..
            } => {
                self.mark_data(*to, *to_offset, *length);
                self.mark_attributes(*to);
            }
            Op::Create {
                parent,
                name,
                object,
            } => {
                self.mark_name(*parent, name);
                self.mark_attributes(*parent);
                self.mark_unknown(object.file);
                if object.kind == crate::attr::Kind::Directory {
                    self.mark_directory(object.file);
                }
            }
            Op::Link { parent, name, .. } | Op::Unlink { parent, name, .. } => {
                self.mark_name(*parent, name);
                self.mark_attributes(*parent);
            }
            Op::RemoveDirectory { parent, name, file } => {
                self.mark_name(*parent, name);
                self.mark_attributes(*parent);
                self.forget(*file);
            }
            Op::Rename {
                parent,
                name,
                new_parent,
                new_name,
                ..
            } => {
                self.mark_name(*parent, name);
                self.mark_name(*new_parent, new_name);
                self.mark_attributes(*parent);
                self.mark_attributes(*new_parent);
            }
            Op::SetAttributes { file, .. }
            | Op::SetXattr { file, .. }
            | Op::RemoveXattr { file, .. }
            | Op::Times { file, .. } => self.mark_attributes(*file),
            Op::Sync { .. }
            | Op::Checkpoint
            | Op::Verify { .. }
            | Op::Differs { .. }
            | Op::TakeOver
            | Op::PutDirectory { .. }
            | Op::PutObject { .. }
            | Op::PutXattr { .. }
            | Op::PutData { .. }
            | Op::PutHole { .. }
            | Op::ResyncEnd => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const F: FileId = FileId(77);

    #[test]
    fn a_cut_marks_everything_up_to_the_old_end() {
        let mut map = DirtyMap::default();
        map.mark_op(
            &Op::Truncate {
                file: F,
                size: 5000,
                clear_privileges: false,
            },
            40_960,
        );
        assert!(map.object(F).unwrap().attributes);
        assert_eq!(map.take_run(F, 100, 40_960), Some((4096, 40_960 - 4096)));
    }

    #[test]
    fn many_names_collapse_to_the_whole_directory() {
        let mut map = DirtyMap::default();
        for i in 0..=limits::MAX_MARKED_NAMES {
            map.mark_name(F, &Name::new(format!("{i}").as_bytes()).unwrap());
        }
        assert_eq!(map.names(F), Some(&Names::All));
    }

    #[test]
    fn union_keeps_every_mark() {
        let mut a = DirtyMap::default();
        a.mark_data(F, 0, 1);
        let mut b = DirtyMap::default();
        b.mark_data(F, 8192, 1);
        b.mark_attributes(F);
        b.mark_name(FileId::ROOT, &Name::new(b"x").unwrap());
        a.unite(b);
        assert_eq!(a.take_run(F, 9, 1 << 20), Some((0, 4096)));
        assert_eq!(a.take_run(F, 9, 1 << 20), Some((8192, 4096)));
        assert!(a.object(F).unwrap().attributes);
        assert!(a.names(FileId::ROOT).is_some());
    }
}
