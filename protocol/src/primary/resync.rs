//! Bringing a peer up while the application works.
//!
//! Resync ops go into the same stream as live ops, so that the peer sees one order
//! and needs no other rule (invariant 10). The driver takes marks out of the map
//! under the lock over what they name, reads the source, and submits what it read;
//! a live op comes either before that, then what it did is in what was read, or
//! after it, then it is shipped behind it. A live op on something the peer does
//! not have yet is not shipped; it is marked instead. Marks only shrink as long
//! as nothing unshippable happens, and everything that has been moved is
//! shippable, so one pass ends under any load.

use super::{Link, Primary, Vote};
use crate::ids::{FileId, Seq};
use crate::limits;
use crate::marks::{DirtyMap, Names};
use crate::op::{Listing, Op, XattrMode};
use crate::time::{Instant, Timestamp};

/// What a resync has moved so far.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Progress {
    /// Bytes of file data moved and applied by the peer.
    pub moved_bytes: u64,
    /// Objects whose attributes were moved.
    pub moved_objects: u64,
    /// Names that were moved.
    pub moved_names: u64,
}

impl Progress {
    pub(super) fn acknowledged(&mut self, op: &Op) {
        match op {
            Op::PutData { data, .. } => self.moved_bytes += data.len() as u64,
            Op::PutObject { .. } => self.moved_objects += 1,
            Op::PutDirectory { entries, .. } => self.moved_names += entries.len() as u64,
            _ => {}
        }
    }
}

/// What a resync op moved stays marked until the peer has flushed it. `reach` is where the
/// marks of a file end that it cuts.
pub(super) fn mark_moved(map: &mut DirtyMap, op: &Op, reach: u64) {
    match op {
        Op::PutDirectory {
            directory,
            listing,
            entries,
        } => {
            map.mark_attributes(*directory);
            if *listing != Listing::Names {
                map.mark_directory(*directory);
            }
            for entry in entries {
                map.mark_name(*directory, &entry.name);
                if let Some(object) = &entry.object {
                    map.mark_unknown_attributes(object.file);
                }
            }
        }
        Op::PutObject { object, .. } => {
            map.mark_unknown_attributes(object.file);
            // Should the file grow again before the peer has cut it, what the peer has there
            // would come to light.
            map.mark_data(object.file, object.size, reach.saturating_sub(object.size));
        }
        Op::PutXattr { file, .. } => map.mark_attributes(*file),
        Op::PutData { file, offset, data } => map.mark_data(*file, *offset, data.len() as u64),
        Op::PutHole {
            file,
            offset,
            length,
        } => map.mark_data(*file, *offset, *length),
        _ => {}
    }
}

impl<R> Primary<R> {
    /// Changes the marks of what must be moved: what a comparison found.
    pub fn mark(&mut self, change: impl FnOnce(&mut DirtyMap)) {
        change(&mut self.dirty);
    }

    /// Whether the peer, as far as it has been brought up, can do this op and come
    /// to the same result.
    pub(super) fn can_ship(&self, op: &Op) -> bool {
        let known = |file: FileId| !self.dirty.object(file).is_some_and(|m| m.unknown);
        let same_attributes = |file: FileId| {
            let marks = self.dirty.object(file);
            !marks.is_some_and(|m| m.unknown || m.attributes)
        };
        let clean = |directory: FileId, name| {
            self.listing != Some(directory)
                && known(directory)
                && match self.dirty.names(directory) {
                    None => true,
                    Some(Names::All) => false,
                    Some(Names::Some(set)) => !set.contains(name),
                }
        };
        match op {
            Op::Write { file, .. }
            | Op::Truncate { file, .. }
            | Op::Allocate { file, .. }
            | Op::SetAttributes { file, .. }
            | Op::SetXattr {
                file,
                mode: XattrMode::Either,
                ..
            }
            | Op::Times { file, .. } => known(*file),
            // Whether it is there decides, and what the peer has there is not known yet.
            Op::SetXattr { file, .. } | Op::RemoveXattr { file, .. } => same_attributes(*file),
            // The peer copies from its own copy, so that must be right first.
            Op::CopyRange { from, to, .. } => self.dirty.object(*from).is_none() && known(*to),
            Op::Create { parent, name, .. } => clean(*parent, name),
            Op::Link { file, parent, name } => known(*file) && clean(*parent, name),
            Op::Unlink { parent, name, .. } => clean(*parent, name),
            Op::RemoveDirectory { parent, name, file } => {
                clean(*parent, name)
                    && self.listing != Some(*file)
                    && self.dirty.names(*file).is_none()
            }
            Op::Rename {
                parent,
                name,
                new_parent,
                new_name,
                replaced,
                ..
            } => {
                clean(*parent, name)
                    && clean(*new_parent, new_name)
                    && replaced
                        .is_none_or(|r| self.listing != Some(r) && self.dirty.names(r).is_none())
            }
            _ => true,
        }
    }

    /// What is made inherits from its directory, by the store of either node: the default
    /// ACL, the group. Where that is not moved yet, the peer's is an old one, so what was
    /// made there gets its own attributes moved as well. (Not shipping it instead would never
    /// end where names come all the time.)
    pub(super) fn mark_inherited(&mut self, op: &Op) {
        if let Op::Create { parent, object, .. } = op
            && self.dirty.object(*parent).is_some_and(|m| m.attributes)
        {
            self.dirty.mark_attributes(object.file);
        }
    }

    /// Whether the peer can copy out of `from` as this node does. Else the contents are
    /// to be sent: what is copied out of something marked would itself be marked, and
    /// copies back and forth would keep a resync from ending; and what is copied out of
    /// something that is found to differ would be another difference, without a mark.
    pub fn peer_can_copy(&self, from: FileId) -> bool {
        let same = |map: &DirtyMap| !map.is_everything() && map.object(from).is_none();
        match self.link {
            // Nobody copies there: what is marked is the target.
            Link::Alone => true,
            Link::Syncing => same(&self.dirty) && same(&self.suspect),
            _ => same(&self.differing) && same(&self.suspect),
        }
    }

    /// Whether the application has just changed something.
    fn is_busy(&self, now: Instant) -> bool {
        now.since(self.last_app_op) < limits::RESYNC_BUSY_FOR
    }

    /// Bytes of resync data that may be put in flight now.
    pub fn resync_room(&self, now: Instant) -> usize {
        let window = match self.is_busy(now) {
            true => limits::RESYNC_WINDOW_BUSY,
            false => self.flow.allowed(now).bytes.min(limits::RESYNC_WINDOW_IDLE),
        };
        match self.flushing.is_behind() {
            true => 0,
            false => window.saturating_sub(self.window.resync_bytes),
        }
    }

    /// Bytes of the largest piece of file data that an op of a resync may have now.
    pub fn resync_piece(&self, now: Instant) -> usize {
        let most = match self.is_busy(now) {
            true => limits::RESYNC_WINDOW_BUSY.min(limits::RESYNC_CHUNK),
            false => limits::RESYNC_CHUNK,
        };
        // A peer that takes long for one seems to make no progress meanwhile.
        most.min(self.flow.allowed(now).bytes / 8)
    }

    /// The next directory with marked names. Under the lock over its names, take
    /// them with [`Primary::take_names`].
    pub fn next_directory(&self) -> Option<FileId> {
        self.dirty.first_directory()
    }

    /// Takes a directory's marked names. After [`Names::All`] the directory counts
    /// as not yet there until the last part of its listing is submitted.
    pub fn take_names(&mut self, directory: FileId) -> Option<Names> {
        let names = self.dirty.take_names(directory)?;
        if names == Names::All {
            self.listing = Some(directory);
        }
        Some(names)
    }

    /// The next object with marks, after `after`.
    pub fn next_object(&self, after: Option<FileId>) -> Option<FileId> {
        match after {
            None => self.dirty.first_object(),
            Some(after) => self.dirty.object_after(after),
        }
    }

    /// Takes an object's attribute marks. Under the lock over the object.
    pub fn take_attributes(&mut self, file: FileId) -> bool {
        self.dirty.take_attributes(file)
    }

    /// The next run of an object's marked blocks, at most `most` blocks, below `size`, to be
    /// locked and then taken with [`Primary::take_range`]. Nothing where that cannot be told
    /// without taking it: see [`Primary::take_run`].
    pub fn first_run(&self, file: FileId, most: u32, size: u64) -> Option<(u64, u64)> {
        self.dirty.first_run(file, most, size)
    }

    /// Takes the marks of a range. Under the lock over it.
    pub fn take_range(&mut self, file: FileId, offset: u64, length: u64) {
        self.dirty.take_range(file, offset, length);
    }

    /// Takes the next run of an object's marked blocks, at most `most` blocks, below
    /// `size`. Under the lock over the object's data.
    pub fn take_run(&mut self, file: FileId, most: u32, size: u64) -> Option<(u64, u64)> {
        self.dirty.take_run(file, most, size)
    }

    /// Drops the marks of an object that is no more: it leaves the peer with its last name.
    pub fn object_is_gone(&mut self, file: FileId) {
        if self.listing == Some(file) {
            self.listing = None;
        }
        self.dirty.forget(file);
    }

    /// Puts marks back that were taken and could not be moved.
    pub fn give_back(&mut self, marks: DirtyMap) {
        self.dirty.unite(marks);
    }

    /// What was read from the source, in its place in the order. False when the
    /// peer is not being brought up any more; the marks are then as they were.
    pub fn submit_resync(&mut self, now: Instant, time: Timestamp, op: Op) -> bool {
        debug_assert!(op.is_resync() && op != Op::ResyncEnd);
        if self.link != Link::Syncing {
            mark_moved(&mut self.dirty, &op, 0);
            if self.listing.take().is_some()
                && let Op::PutDirectory { directory, .. } = &op
            {
                self.dirty.mark_directory(*directory);
            }
            return false;
        }
        // In its place in the window, like the size before a live op.
        let mut reach = 0;
        match &op {
            Op::PutDirectory {
                directory,
                listing,
                entries,
            } => {
                self.dirty.now_known(*directory);
                for entry in entries {
                    if let Some(object) = &entry.object {
                        self.dirty.now_known(object.file);
                    }
                }
                if let Listing::Whole { last: true, .. } = listing {
                    self.listing = None;
                }
            }
            Op::PutObject { object, .. } => {
                self.dirty.now_known(object.file);
                reach = self.dirty.reach(object.file);
            }
            _ => {}
        }
        self.push(now, time, op, reach, Vote::None);
        true
    }

    /// Whether nothing is left to move at this moment.
    pub fn is_moved(&self) -> bool {
        self.link == Link::Syncing && self.dirty.is_empty() && self.listing.is_none()
    }

    /// Nothing is left to move: ends the resync unless something was marked
    /// meanwhile. From here on the peer's vote counts.
    pub fn finish_resync(&mut self, now: Instant, time: Timestamp) -> Option<Seq> {
        if !self.is_moved() {
            return None;
        }
        self.rotate_marks();
        let end = self.push(now, time, Op::ResyncEnd, 0, Vote::Synced);
        self.settle_internal(end);
        self.link = Link::Finishing { end };
        Some(end)
    }

    /// What the running or last resync has moved.
    pub fn progress(&self) -> Progress {
        self.stats
    }
}
