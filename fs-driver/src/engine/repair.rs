//! After a crash: the store is made fit for use before anything else is done with it.

use std::io;

use twinfold_protocol::attr::Kind;
use twinfold_protocol::ids::FileId;
use twinfold_protocol::marks::Intent;

use crate::state::Recovered;
use crate::store::Store;

/// Removes what was being made in a directory when the driver went down, and enters what
/// was made into the index. A directory may itself be one that the index has forgotten:
/// it is found once the one is repaired that holds it, whichever has the smaller id.
pub(super) fn repair(store: &Store, recovered: &Recovered) -> io::Result<()> {
    if recovered.damaged {
        // Nobody knows where something was made.
        store.rebuild_index("notes of what was being changed are lost")?;
    }
    let mut removed = store.repair_aside()?;
    let mut left: Vec<FileId> = recovered
        .intents
        .iter()
        .filter_map(|intent| match intent {
            Intent::Directory { directory } => Some(*directory),
            _ => None,
        })
        .collect();
    loop {
        let before = left.len();
        let mut missing = Vec::new();
        for directory in left {
            match store.object(directory)? {
                Some(node) if node.kind() == Kind::Directory => {
                    removed += store.repair_directory(&node)?;
                }
                Some(_) => {}
                None => missing.push(directory),
            }
        }
        if missing.is_empty() || missing.len() == before {
            break;
        }
        left = missing;
    }
    if removed > 0 {
        tracing::info!(removed, "objects that were never acknowledged were removed");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Layout;
    use crate::store::scratch as store;
    use std::collections::BTreeSet;
    use std::path::Path;
    use twinfold_protocol::ids::Epoch;
    use twinfold_protocol::op::{Listing, Name, NewObject, Object, Op, PutEntry, RenameMode};
    use twinfold_protocol::time::Timestamp;

    fn id(n: u64) -> FileId {
        FileId::new(Epoch(2), n)
    }

    fn name(text: &str) -> Name {
        Name::new(text.as_bytes()).unwrap()
    }

    fn new(file: FileId, kind: Kind) -> NewObject {
        NewObject {
            file,
            kind,
            target: bytes::Bytes::new(),
            mode: 0o700,
            umask: 0,
            uid: 0,
            gid: 0,
        }
    }

    /// root/outer(30)/inner(20)/deep(10)/file(40): made one by one and moved into each
    /// other, so that no order of ids is the order of the tree.
    fn tree(store: &Store) {
        let root = store.node(FileId::ROOT).unwrap();
        let make =
            |n: u64, text: &str, kind| store.create(&root, &name(text), &new(id(n), kind)).unwrap();
        let deep = make(10, "deep", Kind::Directory);
        let inner = make(20, "inner", Kind::Directory);
        let outer = make(30, "outer", Kind::Directory);
        make(40, "file", Kind::Regular);
        for (what, into) in [("file", &deep), ("deep", &inner), ("inner", &outer)] {
            store
                .rename(
                    &root,
                    &name(what),
                    into,
                    &name(what),
                    None,
                    RenameMode::Replace,
                )
                .unwrap();
        }
    }

    fn noted() -> Recovered {
        let directories = [FileId::ROOT, id(10), id(20), id(30)];
        Recovered {
            intents: directories
                .into_iter()
                .map(|directory| Intent::Directory { directory })
                .collect(),
            damaged: false,
        }
    }

    /// What a power cut leaves of entries that were not flushed: zeros.
    fn forget(place: &Path, files: &[u64]) {
        let path = place.join("state/index/00000002");
        let mut bytes = std::fs::read(&path).unwrap();
        for n in files {
            let at = 32 * (*n as usize + 1);
            bytes[at..at + 32].fill(0);
        }
        std::fs::write(path, bytes).unwrap();
    }

    const ALL: [u64; 4] = [10, 20, 30, 40];

    fn known(store: &Store) -> BTreeSet<u64> {
        ALL.into_iter()
            .filter(|n| store.object(id(*n)).unwrap().is_some())
            .collect()
    }

    fn objects_below(path: &Path) -> usize {
        std::fs::read_dir(path)
            .unwrap()
            .map(|entry| {
                let entry = entry.unwrap();
                match entry.file_type().unwrap().is_dir() {
                    true => 1 + objects_below(&entry.path()),
                    false => 1,
                }
            })
            .sum()
    }

    #[test]
    fn every_noted_directory_is_found_again_whatever_its_id_and_its_holder() {
        let (place, first) = store();
        tree(&first);
        drop(first);
        forget(place.path(), &ALL);
        let store = Store::open(Layout::new(place.path())).unwrap();
        assert!(known(&store).is_empty(), "the index has forgotten them");
        repair(&store, &noted()).unwrap();
        assert_eq!(known(&store), BTreeSet::from(ALL));
    }

    #[test]
    fn a_directory_that_the_index_forgot_is_never_made_twice_by_a_resync() {
        let (place, first) = store();
        tree(&first);
        drop(first);
        forget(place.path(), &ALL);
        let store = Store::open(Layout::new(place.path())).unwrap();
        repair(&store, &noted()).unwrap();
        let object = |n: u64, kind| Object {
            file: id(n),
            kind,
            target: bytes::Bytes::new(),
            mode: 0o700,
            uid: 0,
            gid: 0,
            size: 0,
            accessed: Timestamp::default(),
            modified: Timestamp::default(),
        };
        // As it comes: by id, the deepest first.
        for (directory, text, held) in [
            (id(10), "file", object(40, Kind::Regular)),
            (id(20), "deep", object(10, Kind::Directory)),
            (id(30), "inner", object(20, Kind::Directory)),
            (FileId::ROOT, "outer", object(30, Kind::Directory)),
        ] {
            let entries = vec![PutEntry {
                name: name(text),
                object: Some(held),
            }];
            let listing = Listing::Whole {
                first: true,
                last: true,
            };
            store
                .put(&Op::PutDirectory {
                    directory,
                    listing,
                    entries,
                })
                .unwrap();
        }
        assert_eq!(objects_below(&place.path().join("data")), 4);
        assert_eq!(objects_below(&place.path().join("aside")), 0);
    }

    #[test]
    fn an_index_that_is_lost_or_damaged_is_made_anew_from_the_tree() {
        let (place, first) = store();
        tree(&first);
        drop(first);
        let index = place.path().join("state/index");
        let again = || {
            let store = Store::open(Layout::new(place.path())).unwrap();
            assert_eq!(known(&store), BTreeSet::from(ALL));
        };
        std::fs::remove_dir_all(&index).unwrap();
        again();
        let path = index.join("00000002");
        let damage = |at: usize| {
            let mut bytes = std::fs::read(&path).unwrap();
            bytes[at] = 0xff;
            std::fs::write(&path, bytes).unwrap();
        };
        damage(3);
        again();
        // An entry, found when it is used.
        damage(32 * 21 + 9);
        again();
        std::fs::write(index.join("rebuild"), b"").unwrap();
        forget(place.path(), &ALL);
        again();
        assert!(!index.join("rebuild").exists());
        // The log of what was being changed is damaged.
        forget(place.path(), &ALL);
        let store = Store::open(Layout::new(place.path())).unwrap();
        let damaged = Recovered {
            damaged: true,
            ..Recovered::default()
        };
        repair(&store, &damaged).unwrap();
        assert_eq!(known(&store), BTreeSet::from(ALL));
    }

    #[test]
    fn looking_for_objects_leaves_no_trace_in_the_times_of_the_folder() {
        use std::time::{Duration, SystemTime};
        let (place, store) = store();
        drop(store);
        let data = place.path().join("data");
        // So old that a reader who leaves a trace does so here, whatever the mount's options.
        let old = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        let times = std::fs::FileTimes::new().set_accessed(old);
        std::fs::File::open(&data)
            .unwrap()
            .set_times(times)
            .unwrap();
        std::fs::remove_dir_all(place.path().join("state/index")).unwrap();
        let store = Store::open(Layout::new(place.path())).unwrap();
        repair(&store, &noted()).unwrap();
        store.rebuild_index("a test wants it").unwrap();
        let accessed = std::fs::metadata(&data).unwrap().accessed().unwrap();
        assert_eq!(accessed, old);
    }

    #[test]
    fn an_object_found_by_its_name_is_known_by_its_id_from_then_on() {
        let (place, first) = store();
        tree(&first);
        drop(first);
        forget(place.path(), &[30]);
        let store = Store::open(Layout::new(place.path())).unwrap();
        let root = store.node(FileId::ROOT).unwrap();
        store.lookup(&root, &name("outer")).unwrap();
        drop(store);
        let store = Store::open(Layout::new(place.path())).unwrap();
        assert!(store.object(id(30)).unwrap().is_some());
    }

    /// Somebody wrote into the directory of the store while the driver was not looking.
    fn foreign(place: &Path, directory: &str) {
        let at = place.join(directory);
        std::fs::create_dir_all(at.join("tree")).unwrap();
        std::fs::write(at.join("tree/file"), b"data").unwrap();
        std::fs::write(at.join("note"), b"data").unwrap();
    }

    #[test]
    fn a_resync_that_moved_a_foreign_directory_away_and_broke_off_lets_the_driver_start() {
        let (place, store) = store();
        tree(&store);
        foreign(place.path(), "aside/foreign-0");
        std::fs::create_dir(place.path().join("aside/0000020000000063")).unwrap();
        repair(&store, &noted()).unwrap();
        assert_eq!(
            store.clear_aside(&Default::default()).unwrap(),
            4,
            "without the half-made one"
        );
        assert_eq!(objects_below(&place.path().join("data")), 4);
    }

    #[test]
    fn what_came_behind_the_mount_with_data_is_not_taken_for_half_made() {
        let (place, store) = store();
        tree(&store);
        foreign(place.path(), "data/outer");
        let outer = place.path().join("data/outer");
        std::fs::write(outer.join("half-made"), b"").unwrap();
        std::fs::create_dir(outer.join("half-made too")).unwrap();
        repair(&store, &noted()).unwrap();
        let there = |name: &str| outer.join(name).exists();
        assert!(
            there("tree/file") && there("note"),
            "data that may be needed"
        );
        assert!(!there("half-made") && !there("half-made too"));
    }

    /// A copy with all attributes carries the ids of what was copied.
    fn copy_with_ids(from: &Path, to: &Path) {
        let done = std::process::Command::new("cp")
            .arg("-a")
            .args([from, to])
            .status();
        assert!(done.unwrap().success());
    }

    #[test]
    fn a_copy_made_behind_the_mount_never_takes_the_place_of_its_original() {
        let (place, store) = store();
        tree(&store);
        let data = place.path().join("data");
        copy_with_ids(&data.join("outer"), &data.join("copy"));
        copy_with_ids(&data.join("outer"), &place.path().join("aside/foreign-0"));
        let inodes = || ALL.map(|n| store.inode(id(n)).unwrap().unwrap());
        let before = inodes();
        drop(store);
        let again = || Store::open(Layout::new(place.path())).unwrap();
        let store = again();
        repair(&store, &noted()).unwrap();
        assert_eq!(ALL.map(|n| store.inode(id(n)).unwrap().unwrap()), before);
        drop(store);
        // What a resync moved away is no object of the store, not even when nothing else is.
        std::fs::remove_dir_all(data.join("copy")).unwrap();
        std::fs::remove_dir_all(place.path().join("state/index")).unwrap();
        let store = again();
        assert_eq!(ALL.map(|n| store.inode(id(n)).unwrap().unwrap()), before);
        std::fs::remove_dir_all(data.join("outer")).unwrap();
        store.rebuild_index("a test wants it").unwrap();
        drop(store);
        assert_eq!(known(&again()), BTreeSet::new());
    }
}
