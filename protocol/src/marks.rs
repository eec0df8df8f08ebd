//! Dirty marks: what of a copy is known or suspected to differ from the other one.
//!
//! A file's unit of difference is a block of [`limits::BLOCK`] bytes, a
//! directory's is a name; both have attributes. Marks are set by ops and leave
//! the map only when what they name has been moved or compared (invariant 12).
//!
//! [`DirtyMap`] is exact and lives in memory; [`Intent`] is its coarse, durable
//! shadow, made before a node changes its own copy (invariant 1).

use std::collections::{BTreeMap, BTreeSet};

use roaring::RoaringBitmap;

use crate::ids::FileId;
use crate::limits;
use crate::op::{Name, Op};

/// A note, made durable before a node changes its own copy, that something may differ.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub enum Intent {
    /// Data of a file in the extent `extent * limits::EXTENT ..`.
    Extent {
        /// Which file.
        file: FileId,
        /// Which extent of it.
        extent: u32,
    },
    /// Attributes or extended attributes of an object.
    Attributes {
        /// Which object.
        file: FileId,
    },
    /// Names of a directory.
    Directory {
        /// Which directory.
        directory: FileId,
    },
    /// Everything about an object: a change that reaches over too many extents to name each.
    File {
        /// Which object.
        file: FileId,
    },
    /// Everything about the objects with the ids `first .. first + limits::ID_BLOCK`.
    NewIds {
        /// The first of them.
        first: FileId,
    },
}

/// Data marks of one file.
#[derive(Clone, PartialEq, Debug)]
pub enum Blocks {
    /// These blocks.
    Some(RoaringBitmap),
    /// Every block, whatever the size.
    All,
}

impl Default for Blocks {
    fn default() -> Blocks {
        Blocks::Some(RoaringBitmap::new())
    }
}

impl Blocks {
    /// Whether no block is marked.
    pub fn is_empty(&self) -> bool {
        matches!(self, Blocks::Some(map) if map.is_empty())
    }

    /// Marks the blocks that `offset .. offset + length` touches.
    pub fn mark(&mut self, offset: u64, length: u64) {
        let Blocks::Some(map) = self else { return };
        if length == 0 {
            return;
        }
        let first = offset / limits::BLOCK;
        let last = offset.saturating_add(length - 1) / limits::BLOCK;
        match (u32::try_from(first), u32::try_from(last)) {
            (Ok(first), Ok(last)) => {
                map.insert_range(first..=last);
            }
            // Files beyond 16 TiB: the mark cannot be told apart, so all of the file is suspect.
            _ => *self = Blocks::All,
        }
    }

    /// Takes the first run of marked blocks out of the marks: at most `most`
    /// blocks, none at or beyond byte `size`. Marks beyond the size are dropped:
    /// there is no data there to differ.
    pub fn take_run(&mut self, most: u32, size: u64) -> Option<(u64, u64)> {
        let end = size.div_ceil(limits::BLOCK);
        if let Blocks::All = self {
            let mut map = RoaringBitmap::new();
            let end = u32::try_from(end).unwrap_or(u32::MAX);
            map.insert_range(0..end);
            *self = Blocks::Some(map);
        }
        let Blocks::Some(map) = self else { return None };
        let first = map.min()?;
        if u64::from(first) >= end {
            map.clear();
            return None;
        }
        let mut last = first;
        for block in map.iter().skip(1).take(most.saturating_sub(1) as usize) {
            if block != last + 1 || u64::from(block) >= end {
                break;
            }
            last = block;
        }
        map.remove_range(first..=last);
        let offset = u64::from(first) * limits::BLOCK;
        let length = (u64::from(last) + 1) * limits::BLOCK - offset;
        Some((offset, length.min(size - offset)))
    }

    /// The marked byte ranges in order; runs with no more than `gap` unmarked blocks
    /// between them fall together. All blocks are one range without end.
    pub fn spans(&self, gap: u32) -> Vec<(u64, u64)> {
        let map = match self {
            Blocks::All => return vec![(0, limits::MAX_OFFSET)],
            Blocks::Some(map) => map,
        };
        let mut spans: Vec<(u64, u64)> = Vec::new();
        for block in map {
            let at = u64::from(block) * limits::BLOCK;
            match spans.last_mut() {
                Some((from, length))
                    if at - (*from + *length) <= u64::from(gap) * limits::BLOCK =>
                {
                    *length = at + limits::BLOCK - *from;
                }
                _ => spans.push((at, limits::BLOCK)),
            }
        }
        spans
    }

    fn unite(&mut self, other: Blocks) {
        match (&mut *self, other) {
            (Blocks::All, _) => {}
            (_, Blocks::All) => *self = Blocks::All,
            (Blocks::Some(mine), Blocks::Some(theirs)) => *mine |= theirs,
        }
    }

    /// Marked bytes in a file of `size` bytes.
    pub fn bytes(&self, size: u64) -> u64 {
        match self {
            Blocks::All => size,
            Blocks::Some(map) => (map.len() * limits::BLOCK).min(size),
        }
    }
}

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
}

impl DirtyMap {
    /// Whether nothing is marked.
    pub fn is_empty(&self) -> bool {
        self.objects.is_empty() && self.directories.is_empty()
    }

    /// Objects marked, and directories with marked names.
    pub fn counts(&self) -> (usize, usize) {
        (self.objects.len(), self.directories.len())
    }

    /// Marked blocks, in bytes; files marked from end to end count as nothing here.
    pub fn block_bytes(&self) -> u64 {
        self.objects
            .values()
            .map(|m| match &m.blocks {
                Blocks::Some(map) => map.len() * limits::BLOCK,
                Blocks::All => 0,
            })
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
        self.objects
            .entry(file)
            .or_default()
            .blocks
            .mark(offset, length);
    }

    /// Marks an object's attributes.
    pub fn mark_attributes(&mut self, file: FileId) {
        self.objects.entry(file).or_default().attributes = true;
    }

    /// Marks an object that the other copy may lack: all of it.
    pub fn mark_unknown(&mut self, file: FileId) {
        let marks = self.objects.entry(file).or_default();
        marks.unknown = true;
        marks.attributes = true;
        marks.blocks = Blocks::All;
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

    /// Marks a name.
    pub fn mark_name(&mut self, directory: FileId, name: &Name) {
        let names = self
            .directories
            .entry(directory)
            .or_insert_with(|| Names::Some(BTreeSet::new()));
        if let Names::Some(set) = names {
            if set.len() >= limits::MAX_MARKED_NAMES && !set.contains(name) {
                *names = Names::All;
            } else {
                set.insert(name.clone());
            }
        }
    }

    /// Marks every name of a directory.
    pub fn mark_directory(&mut self, directory: FileId) {
        self.directories.insert(directory, Names::All);
    }

    /// Drops everything about an object that exists no longer on the source: it
    /// leaves the other copy with its last name.
    pub fn forget(&mut self, file: FileId) {
        self.objects.remove(&file);
        self.directories.remove(&file);
    }

    /// Takes a directory's name marks out of the map.
    pub fn take_names(&mut self, directory: FileId) -> Option<Names> {
        self.directories.remove(&directory)
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
        let run = self.objects.get_mut(&file)?.blocks.take_run(most, size);
        self.drop_if_empty(file);
        run
    }

    fn drop_if_empty(&mut self, file: FileId) {
        if self.objects.get(&file).is_some_and(ObjectMarks::is_empty) {
            self.objects.remove(&file);
        }
    }

    /// Adds all marks of `other`.
    pub fn unite(&mut self, other: DirtyMap) {
        for (file, theirs) in other.objects {
            let mine = self.objects.entry(file).or_default();
            mine.attributes |= theirs.attributes;
            mine.unknown |= theirs.unknown;
            mine.blocks.unite(theirs.blocks);
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
            | Op::PutDirectory { .. }
            | Op::PutObject { .. }
            | Op::PutXattr { .. }
            | Op::PutData { .. }
            | Op::PutHole { .. }
            | Op::ResyncEnd => {}
        }
    }
}

/// The intents that must be durable on a node before it applies `op`. `old_size` is
/// the file's size before it, for ops that set the size.
pub fn intents_of(op: &Op, old_size: u64, mut put: impl FnMut(Intent)) {
    let mut extents = |file: FileId, offset: u64, length: u64| {
        if length == 0 {
            return;
        }
        let first = offset / limits::EXTENT;
        let last = offset.saturating_add(length - 1) / limits::EXTENT;
        if last - first >= limits::MAX_NOTED_EXTENTS || last > u64::from(u32::MAX) {
            return put(Intent::File { file });
        }
        for extent in first..=last {
            put(Intent::Extent {
                file,
                extent: extent as u32,
            });
        }
    };
    match op {
        Op::Write {
            file, offset, data, ..
        }
        | Op::PutData { file, offset, data } => extents(*file, *offset, data.len() as u64),
        Op::Truncate { file, size, .. } => {
            let (from, to) = (old_size.min(*size), old_size.max(*size));
            // All of it: what one node cut off, the other one may have to get back.
            extents(*file, from, to - from);
            put(Intent::Attributes { file: *file });
        }
        Op::Allocate {
            file,
            offset,
            length,
            ..
        } => {
            extents(*file, *offset, *length);
            put(Intent::Attributes { file: *file });
        }
        Op::PutHole {
            file,
            offset,
            length,
        } => extents(*file, *offset, *length),
        Op::CopyRange {
            to,
            to_offset,
            length,
            ..
        } => extents(*to, *to_offset, *length),
        Op::Create { parent, object, .. } => {
            put(Intent::Directory { directory: *parent });
            put(id_block(object.file));
        }
        Op::Link { parent, .. }
        | Op::Unlink { parent, .. }
        | Op::RemoveDirectory { parent, .. } => put(Intent::Directory { directory: *parent }),
        Op::Rename {
            parent, new_parent, ..
        } => {
            put(Intent::Directory { directory: *parent });
            put(Intent::Directory {
                directory: *new_parent,
            });
        }
        Op::SetAttributes { file, .. }
        | Op::SetXattr { file, .. }
        | Op::RemoveXattr { file, .. } => put(Intent::Attributes { file: *file }),
        Op::PutDirectory { directory, .. } => put(Intent::Directory {
            directory: *directory,
        }),
        Op::PutObject { object, .. } => {
            let (from, to) = (old_size.min(object.size), old_size.max(object.size));
            extents(object.file, from, to - from);
            put(Intent::Attributes { file: object.file });
        }
        Op::PutXattr { file, .. } => put(Intent::Attributes { file: *file }),
        Op::Times { .. } | Op::Sync { .. } | Op::Checkpoint | Op::ResyncEnd => {}
    }
}

/// The note that covers the creation of `file`.
pub fn id_block(file: FileId) -> Intent {
    let first = file.counter() / limits::ID_BLOCK * limits::ID_BLOCK;
    Intent::NewIds {
        first: FileId::new(file.epoch(), first),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const F: FileId = FileId(77);

    #[test]
    fn runs_come_out_in_order_cut_at_the_limit_and_at_the_end_of_the_file() {
        let mut blocks = Blocks::default();
        blocks.mark(4096 * 10, 4096 * 5);
        blocks.mark(1, 1);
        let size = 4096 * 12 + 5;
        assert_eq!(blocks.take_run(100, size), Some((0, 4096)));
        assert_eq!(blocks.take_run(2, size), Some((4096 * 10, 8192)));
        assert_eq!(blocks.take_run(2, size), Some((4096 * 12, 5)));
        assert_eq!(blocks.take_run(2, size), None);
        assert!(blocks.is_empty());
    }

    #[test]
    fn spans_bridge_small_gaps_only() {
        let mut blocks = Blocks::default();
        for block in [0, 1, 4, 100] {
            blocks.mark(block * 4096, 1);
        }
        let pages = |from: u64, count: u64| (from * 4096, count * 4096);
        assert_eq!(blocks.spans(2), [pages(0, 5), pages(100, 1)]);
        assert_eq!(blocks.spans(0), [pages(0, 2), pages(4, 1), pages(100, 1)]);
    }

    #[test]
    fn all_blocks_become_the_blocks_below_the_size() {
        let mut blocks = Blocks::All;
        assert_eq!(blocks.take_run(10, 4096 * 3), Some((0, 4096 * 3)));
        assert_eq!(blocks.take_run(10, 4096 * 3), None);
    }

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

    fn noted(op: &Op, old_size: u64) -> Vec<Intent> {
        let mut seen = Vec::new();
        intents_of(op, old_size, |i| seen.push(i));
        seen
    }

    #[test]
    fn a_cut_notes_all_that_is_cut_off() {
        let cut = |size| Op::Truncate {
            file: F,
            size,
            clear_privileges: false,
        };
        let extent = |extent| Intent::Extent { file: F, extent };
        assert_eq!(
            noted(&cut(limits::EXTENT), 3 * limits::EXTENT + 1),
            [
                extent(1),
                extent(2),
                extent(3),
                Intent::Attributes { file: F }
            ]
        );
        let many = (limits::MAX_NOTED_EXTENTS + 1) * limits::EXTENT;
        assert_eq!(
            noted(&cut(0), many),
            [Intent::File { file: F }, Intent::Attributes { file: F }]
        );
    }

    #[test]
    fn a_write_across_two_extents_notes_both() {
        let op = Op::PutHole {
            file: F,
            offset: limits::EXTENT - 1,
            length: 2,
        };
        assert_eq!(
            noted(&op, 0),
            [0, 1].map(|extent| Intent::Extent { file: F, extent })
        );
    }
}
