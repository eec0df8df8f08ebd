//! Intents: coarse, durable notes of what may differ.

use super::DirtyMap;
use crate::ids::FileId;
use crate::limits;
use crate::op::Op;
use crate::verify::Question;

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

/// The intents that must be durable on a node before it applies `op`. `old_size` is
/// the file's size before it, for ops that set the size.
pub fn intents_of(op: &Op, old_size: u64, mut put: impl FnMut(Intent)) {
    let mut extents = |file, offset, length| extents_of(file, offset, length, &mut put);
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
        // No change, but neither node may forget it.
        Op::Differs { question } => match question {
            Question::Data {
                file,
                offset,
                length,
            } => extents(*file, *offset, *length),
            Question::Object { file } => put(Intent::Attributes { file: *file }),
            Question::Listing { directory } | Question::Name { directory, .. } => {
                put(Intent::Directory {
                    directory: *directory,
                });
            }
        },
        Op::Times { .. }
        | Op::Sync { .. }
        | Op::Checkpoint
        | Op::Verify { .. }
        | Op::TakeOver
        | Op::ResyncEnd
        | Op::Flush => {}
    }
}

/// The notes that stand for marks.
pub fn intents_of_marks(map: &DirtyMap, mut put: impl FnMut(Intent)) {
    for (file, marks) in map.objects() {
        if marks.attributes || marks.unknown {
            put(Intent::Attributes { file });
        }
        for (offset, length) in marks.blocks.spans(0) {
            extents_of(file, offset, length, &mut put);
        }
    }
    for (directory, _) in map.directories() {
        put(Intent::Directory { directory });
    }
}

/// The notes on a range of a file.
fn extents_of(file: FileId, offset: u64, length: u64, mut put: impl FnMut(Intent)) {
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

    fn noted(op: &Op, old_size: u64) -> Vec<Intent> {
        let mut seen = Vec::new();
        intents_of(op, old_size, |i| seen.push(i));
        seen
    }

    #[test]
    fn what_is_found_to_differ_is_noted_as_what_is_marked_for_it() {
        let mut map = DirtyMap::default();
        map.mark_data(F, limits::EXTENT + 5, limits::EXTENT);
        map.mark_directory(FileId::ROOT);
        map.mark_unknown(FileId(78));
        let mut seen = Vec::new();
        intents_of_marks(&map, |i| seen.push(i));
        let extent = |extent| Intent::Extent { file: F, extent };
        let file = FileId(78);
        let directory = FileId::ROOT;
        let all = [
            extent(1),
            extent(2),
            Intent::Attributes { file },
            Intent::File { file },
            Intent::Directory { directory },
        ];
        assert_eq!(seen, all);
        // The other node is told the question.
        let question = Question::Data {
            file: F,
            offset: 0,
            length: 4096,
        };
        assert_eq!(noted(&Op::Differs { question }, 0), [extent(0)]);
        let question = Question::Listing { directory };
        let noted = noted(&Op::Differs { question }, 0);
        assert_eq!(noted, [Intent::Directory { directory }]);
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
