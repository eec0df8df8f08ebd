//! What differs is found, named, and repaired.

use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::Path;
use std::time::{Duration, SystemTime};

use harness::faulty::Faults;
use harness::{Options, Pair, wait_until};
use rustix::fs::XattrFlags;

use super::{DIFFERED, INCOMPLETE, Range, assert_equal, findings, flip, without_a_trace};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

fn content(seed: u8, size: u64) -> Vec<u8> {
    (0..size).map(|i| (i / 7 % 251) as u8 ^ seed | 1).collect()
}

/// Files of all sorts, equal on both nodes.
fn populated() -> Pair {
    let pair = Pair::new();
    for d in ["d", "gone", "gone/below"] {
        fs::create_dir(pair.on_a(d)).unwrap();
    }
    for (n, f) in [
        "whole",
        "d/longer",
        "d/shorter",
        "mode",
        "owner",
        "time",
        "attribute",
        "d/missing",
        "linked",
        "gone/one",
        "gone/below/two",
        "replaced",
    ]
    .iter()
    .enumerate()
    {
        fs::write(pair.on_a(f), content(n as u8, MIB + 100)).unwrap();
    }
    symlink("here", pair.on_a("link")).unwrap();
    let sparse = File::create(pair.on_a("sparse")).unwrap();
    sparse.set_len(300 * MIB).unwrap();
    let set = |path: &str, value: &[u8]| {
        rustix::fs::setxattr(pair.on_a(path), "user.x", value, XattrFlags::empty()).unwrap();
    };
    set("attribute", b"value");
    pair.assert_identical();
    pair
}

/// Damages one store; a verify finds exactly `expected`, a repair moves it, and the next
/// verify finds nothing.
fn damaged(pair: &Pair, damage: impl FnOnce(), expected: &[(&str, &str, Range)]) {
    pair.wait_settled();
    damage();
    let mut expected: Vec<_> = expected
        .iter()
        .map(|(path, what, range)| ((*path).to_owned(), (*what).to_owned(), *range))
        .collect();
    expected.sort();
    let (code, found, said) = pair.a.verify(&[]).unwrap();
    assert_eq!(findings(&found), expected, "{said}");
    assert_eq!(code, DIFFERED);
    let status = pair.a.status().unwrap();
    assert!(
        status["differing_objects"].as_u64().unwrap() > 0,
        "{status}"
    );

    let (code, found, said) = pair.a.verify(&["--repair"]).unwrap();
    assert_eq!((code, findings(&found)), (DIFFERED, expected), "{said}");
    assert_eq!(found["status"]["state"], "done", "{found:#}");
    for finding in found["findings"].as_array().unwrap() {
        assert_eq!(finding["repaired"], true, "{found:#}");
    }
    assert_equal(&pair.a);
    assert_eq!(pair.a.status().unwrap()["differing_objects"], 0);
    pair.assert_identical();
}

#[test]
fn one_flipped_bit_in_either_store_is_named_and_repaired() {
    let pair = populated();
    let block = Some((5 * 4096, 4096));
    let flipped = [("/whole", "data", block)];
    damaged(
        &pair,
        || flip(&pair.b.data().join("whole"), 5 * 4096 + 17),
        &flipped,
    );
    let last = [("/whole", "data", Some((MIB, 100)))];
    damaged(
        &pair,
        || flip(&pair.b.data().join("whole"), MIB + 99),
        &last,
    );

    // The primary's copy is the right one by definition. (Its own mount may still have
    // the old bytes in the page cache.)
    flip(&pair.a.data().join("whole"), 5 * 4096 + 17);
    let (code, found, said) = pair.a.verify(&["--repair"]).unwrap();
    let expected = [("/whole".to_owned(), "data".to_owned(), block)];
    assert_eq!(
        (code, &findings(&found)[..]),
        (DIFFERED, &expected[..]),
        "{said}"
    );
    assert_equal(&pair.a);
    let stored = |node: &harness::Node| fs::read(node.data().join("whole")).unwrap();
    assert!(stored(&pair.a) == stored(&pair.b));
}

/// A repair would overwrite the good bytes; see the README.
#[test]
fn what_has_rotted_on_the_primary_is_brought_back_from_the_secondary() {
    let pair = populated();
    pair.wait_settled();
    let good = fs::read(pair.on_b("whole")).unwrap();
    flip(&pair.a.data().join("whole"), 5 * 4096 + 17);
    let (code, found, said) = pair.a.verify(&[]).unwrap();
    assert_eq!((code, findings(&found).len()), (DIFFERED, 1), "{said}");
    // The operator looks at both, and finds that of the secondary right.
    assert!(fs::read(pair.on_b("whole")).unwrap() == good);
    // By force: the kernel may still hold what was open before.
    pair.a.demote(true).unwrap();
    assert!(pair.b.promote(false).is_err(), "it is known to differ");
    pair.b.promote(true).unwrap();
    pair.wait_paired();
    for node in [&pair.a, &pair.b] {
        assert!(fs::read(node.data().join("whole")).unwrap() == good);
    }
    assert_equal(&pair.b);
    pair.assert_identical();
}

#[test]
fn a_repair_moves_what_differs_and_little_more() {
    let pair = populated();
    pair.wait_settled();
    pair.checkpoint();
    flip(&pair.b.data().join("whole"), 9);
    let (code, found, said) = pair.a.verify(&["--repair"]).unwrap();
    assert_eq!(code, DIFFERED, "{said}");
    assert_eq!(found["status"]["moved_bytes"], 4096, "{found:#}");
    assert_equal(&pair.a);
}

#[test]
fn data_in_a_hole_and_a_hole_in_data_are_found() {
    let pair = populated();
    let b = pair.b.data();
    let expected = [
        ("/sparse", "data", Some((123 * MIB, 4096))),
        ("/whole", "data", Some((256 * KIB, 64 * KIB))),
    ];
    let damage = || {
        flip(&b.join("sparse"), 123 * MIB + 5);
        without_a_trace(&b.join("whole"), |file| {
            rustix::fs::fallocate(
                file,
                rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE,
                256 * KIB,
                64 * KIB,
            )
            .unwrap();
        });
    };
    damaged(&pair, damage, &expected);
}

#[test]
fn sizes_modes_owners_times_and_attributes_are_compared() {
    let pair = populated();
    let b = pair.b.data();
    let set_len = |path: &str, size| without_a_trace(&b.join(path), |f| f.set_len(size).unwrap());
    let damage = || {
        set_len("d/longer", 2 * MIB);
        set_len("d/shorter", MIB - 4096);
        let mode = fs::Permissions::from_mode(0o4711);
        fs::set_permissions(b.join("mode"), mode).unwrap();
        chown(b.join("owner"), Some(7), Some(8)).unwrap();
        let past = SystemTime::UNIX_EPOCH + Duration::new(1_000_000_000, 5);
        File::open(b.join("time"))
            .unwrap()
            .set_modified(past)
            .unwrap();
        let set = |name: &str, value: &[u8]| {
            rustix::fs::setxattr(b.join("attribute"), name, value, XattrFlags::empty()).unwrap();
        };
        set("user.x", b"other");
        set("user.more", b"");
    };
    let expected = [
        ("/d/longer", "size", None),
        ("/d/shorter", "size", None),
        ("/d/shorter", "data", Some((MIB - 4096, 4096 + 100))),
        ("/mode", "mode", None),
        ("/owner", "uid", None),
        ("/owner", "gid", None),
        ("/time", "modified", None),
        ("/attribute", "xattr", None),
        ("/attribute", "xattr", None),
    ];
    damaged(&pair, damage, &expected);
}

/// A directory whose names are changed behind the mount gets another time.
fn names_changed(directory: &Path, change: impl FnOnce(&Path)) {
    let modified = fs::metadata(directory).unwrap().modified().unwrap();
    change(directory);
    File::open(directory)
        .unwrap()
        .set_modified(modified)
        .unwrap();
}

#[test]
fn missing_and_extra_names_are_found_on_the_secondary() {
    let pair = populated();
    let b = pair.b.data();
    let damage = || {
        names_changed(&b.join("d"), |d| {
            fs::remove_file(d.join("missing")).unwrap();
            fs::write(d.join("extra"), b"extra").unwrap();
            fs::hard_link(b.join("linked"), d.join("name")).unwrap();
        });
        names_changed(&b, |b| {
            fs::remove_dir_all(b.join("gone")).unwrap();
            fs::remove_file(b.join("link")).unwrap();
            symlink("there", b.join("link")).unwrap();
            fs::remove_file(b.join("replaced")).unwrap();
            fs::write(b.join("replaced"), content(9, 5000)).unwrap();
            fs::create_dir_all(b.join("foreign/deep")).unwrap();
            fs::write(b.join("foreign/deep/file"), b"foreign").unwrap();
        });
    };
    let expected = [
        ("/d/missing", "missing", None),
        ("/d/extra", "extra", None),
        ("/d/name", "extra", None),
        ("/gone", "missing", None),
        ("/gone/one", "missing", None),
        ("/gone/below", "missing", None),
        ("/gone/below/two", "missing", None),
        ("/link", "other", None),
        ("/link", "missing", None),
        ("/replaced", "other", None),
        ("/replaced", "missing", None),
        ("/foreign", "extra", None),
    ];
    damaged(&pair, damage, &expected);
}

#[test]
fn what_the_primary_lost_goes_from_the_secondary_too() {
    let pair = populated();
    let a = pair.a.data();
    let damage = || {
        names_changed(&a, |a| {
            fs::remove_file(a.join("whole")).unwrap();
            fs::remove_dir_all(a.join("gone")).unwrap();
            fs::hard_link(a.join("linked"), a.join("another")).unwrap();
        });
    };
    let expected = [
        ("/whole", "extra", None),
        ("/gone", "extra", None),
        ("/another", "missing", None),
    ];
    damaged(&pair, damage, &expected);
}

#[test]
fn what_came_into_the_primarys_store_behind_the_mount_is_named_and_left_alone() {
    let pair = populated();
    let store = pair.a.data();
    names_changed(&store, |a| fs::write(a.join("foreign"), b"x").unwrap());
    for options in [&[][..], &["--repair"]] {
        let (code, found, said) = pair.a.verify(options).unwrap();
        let expected = [("/foreign".to_owned(), "foreign".to_owned(), None)];
        assert_eq!(
            (code, &findings(&found)[..]),
            (DIFFERED, &expected[..]),
            "{said}"
        );
        assert_eq!(found["findings"][0]["repaired"], false);
    }
    names_changed(&store, |a| fs::remove_file(a.join("foreign")).unwrap());
    assert_equal(&pair.a);
}

#[test]
fn differences_are_found_under_load() {
    let pair = populated();
    let load = super::load::Load::begin(&pair.a.mount());
    flip(&pair.b.data().join("whole"), 40_000);
    fs::set_permissions(
        pair.b.data().join("mode"),
        fs::Permissions::from_mode(0o000),
    )
    .unwrap();
    let (code, found, said) = pair.a.verify(&["--repair"]).unwrap();
    let expected = [
        ("/mode".to_owned(), "mode".to_owned(), None),
        ("/whole".to_owned(), "data".to_owned(), Some((36_864, 4096))),
    ];
    assert_eq!(
        (code, &findings(&found)[..]),
        (DIFFERED, &expected[..]),
        "{said}"
    );
    assert_equal(&pair.a);
    drop(load);
    pair.assert_identical();
}

#[test]
fn a_copy_that_is_known_to_differ_is_not_promoted_nor_handed_over_to() {
    let mut pair = populated();
    flip(&pair.b.data().join("whole"), 40_000);
    assert_eq!(pair.a.verify(&[]).unwrap().0, DIFFERED);
    let told = || pair.b.status().is_ok_and(|s| s["differing_objects"] == 1);
    assert!(
        wait_until(Duration::from_secs(60), told),
        "{:?}",
        pair.b.status()
    );
    assert_eq!(pair.b.status().unwrap()["up_to_date"], false);
    let refused = format!("{:#}", pair.a.demote(false).unwrap_err());
    assert!(refused.contains("verify --repair"), "{refused}");
    // Not even the loss of the primary makes it a good copy.
    pair.a.kill();
    let refused = format!("{:#}", pair.b.promote(false).unwrap_err());
    assert!(refused.contains("differs from its primary's"), "{refused}");
    pair.a.start(harness::Role::Primary).unwrap();
    // The primary has forgotten; the secondary tells it.
    pair.assert_identical();
    assert_eq!(pair.b.status().unwrap()["up_to_date"], true);
    assert_equal(&pair.a);
}

#[test]
fn what_differs_is_not_forgotten_at_checkpoints_and_moved_when_the_secondary_returns() {
    let mut pair = populated();
    flip(&pair.b.data().join("whole"), 40_000);
    assert_eq!(pair.a.verify(&[]).unwrap().0, DIFFERED);
    for n in 0..3 {
        fs::write(pair.on_a("tick"), [n]).unwrap();
        pair.wait_settled();
        pair.checkpoint();
    }
    assert_eq!(pair.a.status().unwrap()["differing_objects"], 1);
    pair.b.stop().unwrap();
    pair.b.start(harness::Role::Secondary).unwrap();
    pair.assert_identical();
    assert_eq!(pair.a.status().unwrap()["differing_objects"], 0);
}

#[test]
fn a_place_that_cannot_be_read_is_named_with_its_node() {
    for (disks, place) in [
        ([Some(96 * MIB), None], "here"),
        ([None, Some(96 * MIB)], "secondary"),
    ] {
        let pair = Pair::with(Options {
            disks,
            ..Options::default()
        });
        fs::write(pair.on_a("file"), content(3, 2 * MIB)).unwrap();
        pair.wait_settled();
        pair.checkpoint();
        let (disk, node) = match disks[0] {
            Some(_) => (pair.disk_a(), &pair.a),
            None => (pair.disk_b(), &pair.b),
        };
        let path = node.data().join("file");
        let places = disk.places_of(&path).unwrap();
        // What is cached would be read from memory.
        let file = File::open(&path).unwrap();
        file.sync_all().unwrap();
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
        let middle = places[0].start + MIB + 300 * KIB;
        disk.fail(Faults::bad_place(middle, 4096));
        let (code, found, said) = pair.a.verify(&[]).unwrap();
        let unreadable = (
            "/file".to_owned(),
            "unreadable".to_owned(),
            Some((MIB + 256 * KIB, 256 * KIB)),
        );
        assert_eq!(
            (code, findings(&found)),
            (INCOMPLETE, vec![unreadable]),
            "{said}"
        );
        let text = found["findings"][0]["text"].as_str().unwrap();
        assert!(
            text.contains(place) && text.contains("os error 5"),
            "{text}"
        );
        disk.heal();
        assert_equal(&pair.a);
    }
}

#[test]
fn a_bit_that_turned_on_a_disk_is_found_although_memory_has_it_right() {
    for disks in [[Some(96 * MIB), None], [None, Some(96 * MIB)]] {
        let pair = Pair::with(Options {
            disks,
            ..Options::default()
        });
        fs::write(pair.on_a("file"), content(4, 2 * MIB)).unwrap();
        pair.wait_settled();
        pair.checkpoint();
        let (disk, node) = match disks[0] {
            Some(_) => (pair.disk_a(), &pair.a),
            None => (pair.disk_b(), &pair.b),
        };
        let path = node.data().join("file");
        let right = fs::read(&path).unwrap();
        let places = disk.places_of(&path).unwrap();
        disk.flip_bit(places[0].start + MIB + 300 * KIB).unwrap();
        assert!(fs::read(&path).unwrap() == right, "memory has it right");
        let (code, found, said) = pair.a.verify(&[]).unwrap();
        let differs = (
            "/file".to_owned(),
            "data".to_owned(),
            Some((MIB + 300 * KIB, 4 * KIB)),
        );
        assert_eq!(
            (code, findings(&found)),
            (DIFFERED, vec![differs]),
            "{said}"
        );
    }
}
