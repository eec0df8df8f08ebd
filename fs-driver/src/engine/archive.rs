//! Keeping what this copy has before it is overwritten: which of it, and when.

use std::collections::{HashMap, HashSet};
use std::io;

use twinfold_protocol::ids::FileId;
use twinfold_protocol::lifecycle::Archived;
use twinfold_protocol::limits;
use twinfold_protocol::marks::{Intent, Names};

use super::own::OwnChanges;
use super::{Engine, clock};
use crate::archive::{self, Object, Reason, Wanted};

/// Nothing is left out.
const ALL: (u64, u64) = (0, limits::MAX_OFFSET);

impl Engine {
    /// Keeps what this copy has changed by itself, or all of it where that is not known, in
    /// an archive that is complete and on the disk when this returns, and notes durably
    /// that it is. Nothing may change the copy meanwhile.
    pub(super) fn keep_copy(&self, reason: Reason, everything: bool) -> io::Result<()> {
        // Two at once would take each other's unfinished archive for left over.
        let _one = self.archiving.lock();
        let record = self.copy.get();
        let own = self.own_changes()?;
        let everything = everything || own.damaged;
        let enough = match record.archived {
            Archived::No => false,
            Archived::Changes => !everything,
            Archived::Everything | Archived::Waived => true,
        };
        if enough {
            return Ok(());
        }
        let wanted = match everything {
            true => Wanted {
                everything: true,
                ..Wanted::default()
            },
            false => self.wanted(&own)?,
        };
        let layout = self.store.layout();
        let now = clock::unix_seconds();
        if !wanted.is_empty() {
            let (name, about) =
                archive::keep(layout, layout.data(), &record.copy, reason, &wanted, now)?;
            tracing::warn!(
                name,
                files = about.files,
                bytes = about.bytes,
                "what this copy has is kept in an archive: `archive list` shows it"
            );
        }
        // It may take minutes. What a term as primary begun meanwhile changes is not in it.
        let mut same = false;
        self.copy.update(|r| {
            same = (r.copy.current, r.epoch) == (record.copy.current, record.epoch);
            if same {
                r.archived = match everything {
                    true => Archived::Everything,
                    false => Archived::Changes,
                };
            }
        })?;
        if !same {
            return Err(io::Error::other(
                "this copy became primary while it was being kept",
            ));
        }
        self.limit_archives();
        Ok(())
    }

    /// The copy is made the good one by force. Was that in the middle of a resync, then some
    /// objects wait aside for their names, which will never come: they are kept, and go.
    pub(super) fn keep_what_waits_aside(&self) {
        let kept = (|| {
            let layout = self.store.layout();
            if std::fs::read_dir(layout.aside())?.next().is_none() {
                return Ok(());
            }
            let (copy, now) = (self.copy.get().copy, clock::unix_seconds());
            let wanted = Wanted {
                everything: true,
                ..Wanted::default()
            };
            let aside = layout.aside();
            let (name, _) = archive::keep(layout, aside, &copy, Reason::Aside, &wanted, now)?;
            let objects = self.store.clear_aside(&HashSet::new())?;
            tracing::warn!(
                name,
                objects,
                "the resync of this copy was not finished; what had lost its name in it is kept in \
                 an archive"
            );
            io::Result::Ok(())
        })();
        if let Err(error) = kept {
            tracing::warn!(
                %error,
                "what lost its name in the unfinished resync of this copy cannot be kept; it waits \
                 in the directory `aside` until the next resync of this copy"
            );
        }
    }

    /// The resync that overwrites this copy ends: of what it removes, what this copy may have
    /// changed or named is kept. Returns the inodes that get a name in an archive.
    pub(super) fn keep_what_goes(&self) -> io::Result<HashSet<u64>> {
        match self.copy.get().archived {
            Archived::Changes => archive::keep_removed(self.store.layout()),
            Archived::No | Archived::Everything | Archived::Waived => Ok(HashSet::new()),
        }
    }

    /// It has ended.
    pub(super) fn nothing_more_goes(&self) {
        match archive::end_removed(self.store.layout()) {
            Ok(()) => self.limit_archives(),
            Err(error) => {
                tracing::warn!(%error, "an archive cannot tell what the resync removed");
            }
        }
    }

    fn wanted(&self, own: &OwnChanges) -> io::Result<Wanted> {
        let mut objects: HashMap<FileId, Object> = HashMap::new();
        let mut directories: HashMap<FileId, Names> = HashMap::new();
        for (file, marks) in own.marks.objects() {
            let object = objects.entry(file).or_default();
            object.new |= marks.unknown;
            object.attributes |= marks.attributes;
            object.ranges.extend(marks.blocks.spans(0));
        }
        for (directory, names) in own.marks.directories() {
            directories.insert(directory, names.clone());
        }
        for intent in &own.notes {
            match *intent {
                Intent::Extent { file, extent } => {
                    let range = (u64::from(extent) * limits::EXTENT, limits::EXTENT);
                    objects.entry(file).or_default().ranges.push(range);
                }
                Intent::Attributes { file } => objects.entry(file).or_default().attributes = true,
                Intent::File { file } => {
                    let object = objects.entry(file).or_default();
                    object.attributes = true;
                    object.ranges.push(ALL);
                }
                Intent::Directory { directory } => {
                    directories.insert(directory, Names::All);
                }
                Intent::NewIds { first } => {
                    for file in self.store.ids().present(first, limits::ID_BLOCK)? {
                        objects.entry(file).or_default().new = true;
                    }
                }
            }
        }
        let mut wanted = Wanted::default();
        for (file, mut object) in objects {
            object.file = file.0;
            object.all = object.ranges.contains(&ALL);
            object.ranges = joined(object.ranges);
            if let Some(inode) = self.store.inode(file)? {
                wanted.objects.insert(inode, object);
            }
        }
        for (directory, names) in directories {
            if let Some(inode) = self.store.inode(directory)? {
                wanted.directories.insert(inode, names);
            }
        }
        Ok(wanted)
    }

    /// Drops archives beyond the limits of the settings.
    pub fn limit_archives(&self) {
        let limits = archive::Limits {
            days: self.settings.archive_days,
            bytes: self.settings.archive_bytes,
        };
        match archive::enforce(self.store.layout(), limits, clock::unix_seconds()) {
            Ok(gone) => {
                for name in gone {
                    tracing::warn!(name, "an archive is beyond the limits and was dropped");
                }
            }
            Err(error) => {
                tracing::warn!(
                    error = format!("{error:#}"),
                    "old archives cannot be dropped"
                );
            }
        }
    }
}

/// Ranges in order, those that touch as one.
fn joined(mut ranges: Vec<(u64, u64)>) -> Vec<(u64, u64)> {
    ranges.sort_unstable();
    let mut all: Vec<(u64, u64)> = Vec::new();
    for (from, length) in ranges {
        match all.last_mut() {
            Some((start, last)) if from <= *start + *last => {
                *last = (*last).max(from.saturating_add(length) - *start);
            }
            _ => all.push((from, length)),
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use twinfold_protocol::attr::Kind;
    use twinfold_protocol::handshake::{CopyState, Decision, Method, Which};
    use twinfold_protocol::op::Name;

    use super::super::bed::{made, opened};
    use super::*;

    #[test]
    fn ranges_that_touch_are_one() {
        let ranges = vec![(8, 4), (0, 4), (4, 2), (20, 1), (9, 9)];
        assert_eq!(joined(ranges), [(0, 6), (8, 10), (20, 1)]);
    }

    /// Nothing was kept when it was given up, for its peer had all that it has; a peer that is
    /// made good by force may have lost that.
    #[test]
    fn a_copy_that_was_given_up_is_kept_before_it_follows_a_forced_one() {
        let resync = Decision::Resync {
            source: Which::Peer,
            method: Method::Marks,
        };
        for (forced, waived) in [(true, false), (true, true), (false, false)] {
            let (engine, _place) = opened(true);
            engine.start_primary(false).unwrap();
            let root = engine.store.node(FileId::ROOT).unwrap();
            let object = made(engine.new_id().0, Kind::Regular);
            let name = Name::new(b"only here").unwrap();
            engine.store.create(&root, &name, &object).unwrap();
            engine.core.lock().mark(|map| {
                map.mark_unknown(object.file);
                map.mark_name(FileId::ROOT, &name);
            });
            engine.demote().unwrap();
            engine.give_up(waived).unwrap();
            let source = CopyState {
                forced,
                ..CopyState::default()
            };
            let archive = engine.store.layout().archive();
            let kept = || std::fs::read_dir(&archive).map_or(0, Iterator::count);
            assert_eq!(kept(), 0);
            engine.keep_before_resync(resync, &source).unwrap();
            assert_eq!(kept() > 0, forced && !waived, "{forced} {waived}");
            engine.stop().unwrap();
        }
    }
}
