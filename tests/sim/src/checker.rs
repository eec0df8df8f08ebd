//! What the application knows: every change it asked for, in the order in which it
//! took place, and what it was told. It knows nothing of replication.
//!
//! Each place (a block, a name, a size, attributes) has a history of values. After a
//! failure the place must hold the last value that was promised, or a later one.

use std::collections::{BTreeMap, BTreeSet};

use twinfold_protocol::ids::FileId;
use twinfold_protocol::op::Name;

use crate::fs::{Body, Fs, Item};

/// How much the application was promised about a change.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Promise {
    /// Nothing yet.
    Asked,
    /// It was acknowledged.
    Acknowledged,
    /// It was synced afterwards.
    Synced,
}

/// A place that holds a value.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Place {
    /// A block of a file.
    Block(FileId, u32),
    /// Size of a file.
    Size(FileId),
    /// Attributes of an object.
    Mode(FileId),
    /// A name in a directory: 0, or the id it leads to.
    Name(FileId, Name),
}

impl Place {
    fn of(&self) -> FileId {
        match self {
            Place::Block(f, _) | Place::Size(f) | Place::Mode(f) | Place::Name(f, _) => *f,
        }
    }
}

#[derive(Clone, Debug)]
struct Entry {
    /// Which change.
    change: u64,
    value: u64,
    promise: Promise,
    /// When it was acknowledged, in acknowledgements.
    when: u64,
    /// A sync of it has failed: the disk never gets it, whatever memory shows.
    failed: bool,
}

/// The application's knowledge.
#[derive(Clone, Debug, Default)]
pub(crate) struct Checker {
    places: BTreeMap<Place, Vec<Entry>>,
    /// Changes that the node in use was seen not to have.
    lost: BTreeSet<u64>,
    /// Acknowledgements so far.
    told: u64,
    /// Syncs under way, and the acknowledgements before each.
    syncs: BTreeMap<u64, u64>,
    /// Changes that one node carried out for the other.
    carried_out: BTreeSet<u64>,
}

impl Checker {
    /// A change takes place: `places` get these values.
    pub(crate) fn asked(&mut self, change: u64, places: impl IntoIterator<Item = (Place, u64)>) {
        for (place, value) in places {
            self.places.entry(place).or_default().push(Entry {
                change,
                value,
                promise: Promise::Asked,
                when: u64::MAX,
                failed: false,
            });
        }
    }

    /// A change takes place on a node that is not in use any more.
    pub(crate) fn asked_elsewhere(&mut self, change: u64) {
        self.lost.insert(change);
    }

    /// Two nodes went on by themselves, and the application goes to the one that had
    /// everything when what was known was `before`. It may have later changes as well, for its
    /// resync may have ended unheard; they are promised no more.
    pub(crate) fn falls_back_to(&mut self, before: Checker) {
        let known = std::mem::replace(self, before);
        self.told = known.told;
        for (place, history) in known.places {
            let mine = self.places.entry(place).or_default();
            for entry in history {
                if mine
                    .iter()
                    .all(|e| (e.change, e.value) != (entry.change, entry.value))
                {
                    mine.push(Entry {
                        promise: Promise::Asked,
                        when: u64::MAX,
                        ..entry
                    });
                }
            }
        }
    }

    /// A change takes place on the node that carries out what the application asks another one
    /// for: it does so once.
    pub(crate) fn carried_out(&mut self, change: u64) -> Result<(), String> {
        match self.carried_out.insert(change) {
            true => Ok(()),
            false => Err(format!("change {change}, asked for once, is done twice")),
        }
    }

    /// Acknowledgements so far.
    pub(crate) fn told(&self) -> u64 {
        self.told
    }

    /// The application, which had been told of `before` changes when it asked, sees this.
    pub(crate) fn read(&self, place: &Place, found: u64, before: u64) -> Result<(), String> {
        let history = self.places.get(place).map_or(&[][..], |h| h);
        let from = history.iter().rposition(|e| e.when <= before);
        let allowed = history.get(from.unwrap_or(0)..).unwrap_or_default();
        let untouched = from.is_none() && found == 0;
        if untouched || allowed.iter().any(|e| e.value == found) {
            return Ok(());
        }
        let tail = history.get(history.len().saturating_sub(6)..);
        Err(format!(
            "{place:?} is read as {found}, but the application was told of {tail:?} (it had been \
             told {before} times)"
        ))
    }

    /// All known blocks of a file from `first` on.
    pub(crate) fn blocks_from(&self, file: FileId, first: u32) -> Vec<Place> {
        let range = Place::Block(file, first)..=Place::Block(file, u32::MAX);
        self.places.range(range).map(|(p, _)| p.clone()).collect()
    }

    /// The application was told that a change is done.
    pub(crate) fn acknowledged(&mut self, change: u64) -> Result<(), String> {
        self.told += 1;
        let told = self.told;
        for entry in self.places.values_mut().flatten() {
            if entry.change == change {
                entry.promise = entry.promise.max(Promise::Acknowledged);
                if !entry.failed {
                    entry.when = told;
                }
            }
        }
        if self.lost.contains(&change) {
            return Err(format!(
                "change {change} is acknowledged, but the node in use does not have it"
            ));
        }
        Ok(())
    }

    /// The application asks for a sync.
    pub(crate) fn asked_to_sync(&mut self, sync: u64) {
        self.syncs.insert(sync, self.told);
    }

    /// It was told that a sync of `file` is done: it covers what had been acknowledged
    /// when it was asked for, and the change itself that asked for it.
    pub(crate) fn synced(&mut self, sync: u64, file: FileId) {
        let before = self.syncs.remove(&sync).unwrap_or(0);
        for (place, history) in &mut self.places {
            for entry in history {
                let covered = place.of() == file && entry.when <= before;
                // Where another sync failed meanwhile, that one was told.
                let own = entry.change == sync && !entry.failed;
                if covered || own {
                    entry.promise = Promise::Synced;
                }
            }
        }
    }

    /// The application was told that a sync of `file` failed, and the disk will not get what
    /// these blocks held: no later sync says that it did, until they are written again.
    pub(crate) fn sync_failed(&mut self, file: FileId, blocks: impl IntoIterator<Item = u32>) {
        for block in blocks {
            let history = self.places.get_mut(&Place::Block(file, block));
            let entries = history.into_iter().flatten();
            let open = entries.filter(|e| e.promise != Promise::Synced);
            open.for_each(|e| (e.when, e.failed) = (u64::MAX, true));
        }
    }

    /// A sync of `file` is done: what had been acknowledged when it was asked for must be on
    /// this disk, or something later.
    pub(crate) fn on_disk(&self, sync: u64, file: FileId, disk: &Fs) -> Result<(), String> {
        let Some(before) = self.syncs.get(&sync) else {
            return Ok(());
        };
        let Some(item) = disk.items.get(&file) else {
            // It was removed meanwhile.
            return Ok(());
        };
        let held = every_place(&BTreeMap::from([(file, item.clone())]));
        for (place, history) in &self.places {
            if place.of() != file || matches!(place, Place::Name(..)) {
                continue;
            }
            let Some(from) = history.iter().rposition(|e| e.when <= *before) else {
                continue;
            };
            let found = held.get(place).copied().unwrap_or(0);
            let allowed = history.get(from..).unwrap_or_default();
            // A later write may have been under way when power went: half a block of it, or as
            // many blocks as the size then tells.
            let values = || allowed.iter().map(|e| e.value);
            let between = matches!(place, Place::Size(_))
                && (values().min() <= Some(found) && Some(found) <= values().max());
            let is_one = between || values().any(|v| v == found);
            if !is_one && !is_torn(place, found, allowed, false) {
                let first = allowed.first();
                return Err(format!(
                    "{place:?} is {found} on the disk, but a sync was acknowledged after {first:?}"
                ));
            }
        }
        Ok(())
    }

    /// The application looks at what a node shows it: everything promised at `level`
    /// must be there. From here on what it saw is what there is.
    pub(crate) fn look(&mut self, fs: &Fs, level: Promise) -> Result<(), String> {
        let reachable = fs.reachable();
        let mut seen = every_place(&reachable);
        let mut after = BTreeMap::new();
        for (place, history) in &self.places {
            // What has no name holds nothing; that its name was lost is found elsewhere.
            let there = reachable.contains_key(&place.of());
            if !there && !matches!(place, Place::Name(..)) {
                continue;
            }
            let found = seen.remove(place).unwrap_or(0);
            let from = history.iter().rposition(|e| e.promise >= level);
            let allowed = history.get(from.unwrap_or(0)..).unwrap_or_default();
            let at = allowed.iter().rposition(|e| e.value == found);
            // After a power cut a size may lie between: it is as long as its last block that is left.
            let between = level == Promise::Synced
                && matches!(place, Place::Size(_))
                && (allowed.len() > 1 || from.is_none());
            // Nobody knows what was there before the copy was made the good one by force.
            let unknown = level == Promise::Synced
                && from.is_none()
                && history.first().is_some_and(|e| e.change == 0);
            let untouched = from.is_none() && found == 0;
            let torn = level == Promise::Synced && is_torn(place, found, allowed, from.is_none());
            if torn {
                // Neither the old one nor the new one: it is what there is now.
            } else if at.is_none() && !between && !unknown && !untouched {
                let tail = history.get(history.len().saturating_sub(6)..);
                return Err(format!(
                    "{place:?} holds {found}, but the application was told of {tail:?} (looked at \
                     for what was {level:?})"
                ));
            }
            // What is newer than what was seen is not there.
            let newer = history
                .iter()
                .rposition(|e| e.value == found)
                .map_or(0, |at| at + 1);
            let newer = history.get(newer..).unwrap_or_default();
            self.lost.extend(newer.iter().map(|e| e.change));
            if there {
                after.insert(place.clone(), keep(history, found, self.told));
            }
        }
        for (place, value) in seen {
            after.insert(place, keep(&[], value, self.told));
        }
        self.places = after;
        Ok(())
    }
}

/// Whether a block is one half of what it may hold and one half of something else that it
/// may hold: it was being written when power went.
fn is_torn(place: &Place, found: u64, allowed: &[Entry], maybe_empty: bool) -> bool {
    let half = |shift: u32| {
        let of = |value: u64| value >> shift & 0xffff_ffff;
        (maybe_empty && of(found) == 0) || allowed.iter().any(|e| of(e.value) == of(found))
    };
    matches!(place, Place::Block(..)) && half(0) && half(32)
}

/// What is known of a place in which `found` was seen: that, and what a power cut may
/// still bring back, from the last synced value on.
fn keep(history: &[Entry], found: u64, told: u64) -> Vec<Entry> {
    let synced = history.iter().rposition(|e| e.promise == Promise::Synced);
    let mut kept = history
        .get(synced.unwrap_or(0)..)
        .unwrap_or_default()
        .to_vec();
    if let Some(at) = kept.iter().rposition(|e| e.value == found) {
        // What came after it is gone; it was never promised. Where it was taken back, a power
        // cut may still bring it.
        if let Some(mut seen) = kept.get(at).cloned()
            && at + 1 < kept.len()
        {
            seen.promise = Promise::Asked;
            kept.push(seen);
        }
    } else {
        kept.push(Entry {
            change: 0,
            value: found,
            promise: Promise::Asked,
            when: 0,
            failed: false,
        });
    }
    if let Some(last) = kept.last_mut() {
        last.promise = last.promise.max(Promise::Acknowledged);
        if !last.failed {
            last.when = last.when.min(told);
        }
    }
    kept
}

/// Every place that holds something other than 0.
fn every_place(items: &BTreeMap<FileId, Item>) -> BTreeMap<Place, u64> {
    let mut all = BTreeMap::new();
    for (id, item) in items {
        all.insert(Place::Mode(*id), item.mode.into());
        match &item.body {
            Body::File { blocks, size } => {
                all.insert(Place::Size(*id), *size);
                let block = |(b, value): (&u32, &u64)| (Place::Block(*id, *b), *value);
                all.extend(blocks.iter().map(block));
            }
            Body::Directory(names) => {
                let name = |(n, file): (&Name, &FileId)| (Place::Name(*id, n.clone()), file.0);
                all.extend(names.iter().map(name));
            }
        }
    }
    all
}
