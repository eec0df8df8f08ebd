//! Dirty marks: what of a copy is known or suspected to differ from the other one.
//!
//! A file's unit of difference is a block of [`limits::BLOCK`] bytes, a
//! directory's is a name; both have attributes. Marks are set by ops and leave
//! the map only when what they name has been moved or compared (invariant 12).
//!
//! [`DirtyMap`] is exact and lives in memory; [`Intent`] is its coarse, durable
//! shadow, made before a node changes its own copy (invariant 1).

mod blocks;
mod flags;
mod notes;
mod pieces;

use std::collections::{BTreeMap, BTreeSet};

use crate::ids::FileId;
use crate::limits;
use crate::op::{Name, Op};

pub use blocks::Blocks;
pub(crate) use flags::Flags;
pub use notes::{Intent, id_block, intents_of, intents_of_marks};
pub use pieces::{BadPiece, Cursor};

/// Marks of one object.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct ObjectMarks<'a> {
    /// Data that may differ.
    pub blocks: &'a Blocks,
    /// Attributes, extended attributes or size may differ.
    pub attributes: bool,
    /// The other copy may lack the object altogether.
    pub unknown: bool,
}

/// Marks of one directory's names.
#[derive(Clone, PartialEq, Debug)]
pub enum Names {
    /// These names.
    Some(BTreeSet<Name>),
    /// Every name.
    All,
}

/// Flags of objects: their attributes are marked; the other copy may lack them; every block
/// is marked; some blocks are.
const ATTRIBUTES: usize = 0;
const UNKNOWN: usize = 1;
const WHOLE: usize = 2;
const PARTS: usize = 3;

static NO_BLOCKS: Blocks = Blocks::none();
static ALL_BLOCKS: Blocks = Blocks::all();
static ALL_NAMES: Names = Names::All;

/// Everything that may differ.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct DirtyMap {
    objects: Flags<4>,
    /// Of the objects with `PARTS`: which blocks, neither none nor all.
    blocks: BTreeMap<FileId, Blocks>,
    /// Directories of which every name is marked.
    listings: Flags<1>,
    /// Directories of which some names are: never a listing, nor empty.
    some_names: BTreeMap<FileId, Names>,
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
        self.objects.is_empty() && self.first_directory().is_none() && !self.everything
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
        let objects = self.objects.groups() + self.blocks.len();
        let directories = self.listings.groups() + self.some_names.len();
        if objects + directories > limits::MAX_MARKED_PLACES {
            self.mark_everything();
        }
    }

    /// Objects marked, and directories with marked names.
    pub fn counts(&self) -> (usize, usize) {
        let directories = self.listings.len() + self.some_names.len();
        (self.objects.len(), directories)
    }

    /// Objects that the other copy may lack.
    pub fn count_unknown(&self) -> usize {
        self.objects.count_of(UNKNOWN)
    }

    /// Objects of which every block is marked.
    pub fn whole(&self) -> impl Iterator<Item = FileId> {
        self.objects.with(WHOLE)
    }

    /// How many there are.
    pub fn count_whole(&self) -> usize {
        self.objects.count_of(WHOLE)
    }

    /// Marked blocks, in bytes; files marked from end to end count as nothing here.
    pub fn block_bytes(&self) -> u64 {
        let blocks = self.blocks.values().map(Blocks::count);
        blocks.sum::<u64>() * limits::BLOCK
    }

    /// The marks of an object.
    pub fn object(&self, file: FileId) -> Option<ObjectMarks<'_>> {
        let [attributes, unknown, whole, parts] = self.objects.of(file)?;
        let blocks = match (whole, parts) {
            (true, _) => &ALL_BLOCKS,
            (false, true) => self.blocks.get(&file).unwrap_or(&ALL_BLOCKS),
            (false, false) => &NO_BLOCKS,
        };
        Some(ObjectMarks {
            blocks,
            attributes,
            unknown,
        })
    }

    /// The marks of a directory's names.
    pub fn names(&self, directory: FileId) -> Option<&Names> {
        match self.listings.of(directory) {
            Some(_) => Some(&ALL_NAMES),
            None => self.some_names.get(&directory),
        }
    }

    /// All marked objects.
    pub fn objects(&self) -> impl Iterator<Item = (FileId, ObjectMarks<'_>)> {
        let marks = |file| self.object(file).map(|marks| (file, marks));
        self.objects.iter().filter_map(marks)
    }

    /// All directories with marked names.
    pub fn directories(&self) -> impl Iterator<Item = (FileId, &Names)> {
        let mut last = None;
        std::iter::from_fn(move || {
            let found = self.next_directory(last)?;
            last = Some(found.0);
            Some(found)
        })
    }

    /// The first directory with marked names from this one on.
    fn directory_from(&self, from: FileId) -> Option<(FileId, &Names)> {
        let some = self.some_names.range(from..).next();
        match (self.listings.next(from), some) {
            (Some(all), Some((some, _))) if all < *some => Some((all, &ALL_NAMES)),
            (Some(all), None) => Some((all, &ALL_NAMES)),
            (_, some) => some.map(|(directory, names)| (*directory, names)),
        }
    }

    /// The first directory with marked names behind `after`, or of all.
    pub fn next_directory(&self, after: Option<FileId>) -> Option<(FileId, &Names)> {
        match after {
            Some(last) => self.directory_from(FileId(last.0.checked_add(1)?)),
            None => self.directory_from(FileId(0)),
        }
    }

    /// The first marked object, to be worked on next.
    pub fn first_object(&self) -> Option<FileId> {
        self.objects.next(FileId(0))
    }

    /// The first directory with marked names.
    pub fn first_directory(&self) -> Option<FileId> {
        self.next_directory(None).map(|(directory, _)| directory)
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
    fn change_blocks<T>(&mut self, file: FileId, change: impl FnOnce(&mut Blocks) -> T) -> T {
        let [.., whole, parts] = self.objects.of(file).unwrap_or_default();
        let mut other = match whole {
            true => Blocks::all(),
            false => Blocks::none(),
        };
        let blocks = match parts {
            true => self.blocks.entry(file).or_default(),
            false => &mut other,
        };
        let before = blocks.is_scattered();
        let changed = change(blocks);
        match (before, blocks.is_scattered()) {
            (false, true) if self.scattered >= limits::MAX_SCATTERED_FILES => {
                *blocks = Blocks::all();
            }
            (false, true) => self.scattered += 1,
            (true, false) => self.scattered -= 1,
            _ => {}
        }
        let (is_all, is_none) = (blocks.is_all(), blocks.is_empty());
        if is_all || is_none {
            if parts {
                self.blocks.remove(&file);
            }
            self.objects.clear(file, &[WHOLE, PARTS]);
            if is_all {
                self.objects.set(file, WHOLE);
            }
        } else if !parts {
            self.blocks.insert(file, other);
            self.objects.clear(file, &[WHOLE]);
            self.objects.set(file, PARTS);
        }
        changed
    }

    /// Marks an object's attributes.
    pub fn mark_attributes(&mut self, file: FileId) {
        self.objects.set(file, ATTRIBUTES);
    }

    /// Marks an object that the other copy may lack: all of it.
    pub fn mark_unknown(&mut self, file: FileId) {
        self.unite_blocks(file, Blocks::all());
        self.mark_unknown_attributes(file);
    }

    /// Marks an object that was created on the other copy but is not provably on
    /// its disk: its existence and attributes, not its data.
    pub fn mark_unknown_attributes(&mut self, file: FileId) {
        self.objects.set(file, UNKNOWN);
        self.objects.set(file, ATTRIBUTES);
    }

    /// The first marked object after `file`.
    pub fn object_after(&self, file: FileId) -> Option<FileId> {
        self.objects.next(FileId(file.0.checked_add(1)?))
    }

    /// Marks a name; where too many are marked, all of its directory.
    pub fn mark_name(&mut self, directory: FileId, name: &Name) {
        if self.listings.of(directory).is_some() {
            return;
        }
        let names = self
            .some_names
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
        self.listings.set(directory, 0);
    }

    /// Drops everything about an object that exists no longer on the source: it
    /// leaves the other copy with its last name.
    pub fn forget(&mut self, file: FileId) {
        self.change_blocks(file, |blocks| *blocks = Blocks::none());
        self.objects.clear(file, &[ATTRIBUTES, UNKNOWN]);
        self.take_names(file);
    }

    /// Takes a directory's name marks out of the map.
    pub fn take_names(&mut self, directory: FileId) -> Option<Names> {
        if self.listings.of(directory).is_some() {
            self.listings.clear(directory, &[0]);
            return Some(Names::All);
        }
        let names = self.some_names.remove(&directory)?;
        if let Names::Some(set) = &names {
            self.names -= set.len();
        }
        Some(names)
    }

    /// Clears the attribute and "unknown" marks of an object; returns whether it had one.
    pub fn take_attributes(&mut self, file: FileId) -> bool {
        let had = self.object(file).is_some_and(|m| m.attributes || m.unknown);
        self.objects.clear(file, &[ATTRIBUTES, UNKNOWN]);
        had
    }

    /// Clears only the "unknown" mark: the object was created there, its attributes may still differ.
    pub fn now_known(&mut self, file: FileId) {
        self.objects.clear(file, &[UNKNOWN]);
    }

    /// Takes the next run of a file's marked blocks out of the map, see [`Blocks::take_run`].
    pub fn take_run(&mut self, file: FileId, most: u32, size: u64) -> Option<(u64, u64)> {
        self.change_blocks(file, |blocks| blocks.take_run(most, size))
    }

    /// The next run of a file's marked blocks, which stay marked, see [`Blocks::first_run`].
    pub fn first_run(&self, file: FileId, most: u32, size: u64) -> Option<(u64, u64)> {
        self.object(file)?.blocks.first_run(most, size)
    }

    /// Takes the marks of a range out of the map.
    pub fn take_range(&mut self, file: FileId, offset: u64, length: u64) {
        self.change_blocks(file, |blocks| blocks.take(offset, length));
    }

    /// Where the last marked block of a file ends; 0 when none is marked by itself.
    pub fn reach(&self, file: FileId) -> u64 {
        self.object(file).map_or(0, |m| m.blocks.reach())
    }

    /// Adds all marks of `other`.
    pub fn unite(&mut self, other: DirtyMap) {
        if self.everything || other.everything {
            return self.mark_everything();
        }
        if self.is_empty() {
            *self = other;
            return;
        }
        let is_whole = |file: &FileId| other.objects.of(*file).is_some_and(|f| f[WHOLE]);
        for file in self
            .blocks
            .keys()
            .copied()
            .filter(is_whole)
            .collect::<Vec<_>>()
        {
            self.unite_blocks(file, Blocks::all());
        }
        for (file, theirs) in other.blocks {
            self.unite_blocks(file, theirs);
        }
        // Which of the others have parts marked now is known.
        self.objects.unite(other.objects.without(PARTS));
        for directory in other.listings.iter() {
            self.mark_directory(directory);
        }
        for (directory, theirs) in other.some_names {
            if let Names::Some(set) = theirs {
                set.iter().for_each(|name| self.mark_name(directory, name));
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
            | Op::ResyncEnd
            | Op::Flush => {}
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

    #[test]
    fn a_file_is_marked_whole_or_in_parts_and_not_both_whatever_is_united_with_what() {
        let whole = |map: &mut DirtyMap| map.mark_data(F, 0, limits::MAX_OFFSET);
        let part = |map: &mut DirtyMap| map.mark_data(F, 4096, 1);
        let parts = |map: &mut DirtyMap| {
            map.mark_data(F, 4096, 1);
            map.mark_data(F, 409_600, 1);
        };
        let nothing = |map: &mut DirtyMap| map.mark_attributes(F);
        let marks: [&dyn Fn(&mut DirtyMap); 4] = [&whole, &part, &parts, &nothing];
        for (n, mine) in marks.iter().enumerate() {
            for (m, theirs) in marks.iter().enumerate() {
                let (mut map, mut other) = (DirtyMap::default(), DirtyMap::default());
                let mut both = DirtyMap::default();
                for map in [&mut map, &mut both] {
                    mine(map);
                }
                for map in [&mut other, &mut both] {
                    theirs(map);
                }
                map.unite(other);
                assert_eq!(map, both, "{n} and {m}");
                assert_eq!(map.object(F).unwrap().blocks.is_all(), n.min(m) == 0);
                assert_eq!(
                    map.scattered,
                    usize::from(n.min(m) > 0 && (n == 2 || m == 2))
                );
                assert_eq!(map.blocks.len(), usize::from(n.min(m) > 0 && n.min(m) < 3));
                map.forget(F);
                assert_eq!(map, DirtyMap::default());
            }
        }
    }

    #[test]
    fn directories_come_in_the_order_of_their_ids_whether_all_names_are_marked_or_some() {
        let mut map = DirtyMap::default();
        let x = Name::new(b"x").unwrap();
        for n in [3, 70, 5000] {
            map.mark_directory(FileId(n));
        }
        for n in [2, 70, 71, 6000] {
            map.mark_name(FileId(n), &x);
        }
        let mut seen: Vec<_> = map.directories().map(|(d, _)| d.0).collect();
        assert_eq!(seen, [2, 3, 70, 71, 5000, 6000]);
        assert_eq!(map.counts(), (0, 6));
        seen.clear();
        while let Some(directory) = map.first_directory() {
            map.take_names(directory);
            seen.push(directory.0);
        }
        assert_eq!(seen, [2, 3, 70, 71, 5000, 6000]);
        assert!(map.is_empty());
    }
}
