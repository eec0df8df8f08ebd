//! What one side had changed or renamed and the other side has removed.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use harness::{Node, Options, Pair, Role};

use crate::stage::{forget_how_it_began, give_up, list, options, show, split};

/// Nothing that is kept whole because it is small.
const LARGE: usize = 3 << 20;

fn large(of: u8) -> Vec<u8> {
    (0..LARGE).map(|n| (n / 7) as u8 ^ of).collect()
}

/// The only archive of a node: where its files are, and what the resync removed.
fn archive(node: &Node) -> (PathBuf, Option<PathBuf>) {
    let archives = list(node);
    assert_eq!(archives.len(), 1, "{archives:?}");
    let shown = show(node, archives[0]["name"].as_str().unwrap());
    let at = |key: &str| shown[key].as_str().map(PathBuf::from);
    (at("files").unwrap(), at("removed"))
}

/// What an archive has of a path, whole.
fn kept(node: &Node, path: &str) -> Option<Vec<u8>> {
    let (files, removed) = archive(node);
    removed
        .and_then(|removed| fs::read(removed.join(path)).ok())
        .or_else(|| fs::read(files.join(path)).ok())
}

/// Whether anything below a directory is marked as an object of a store.
fn has_ids(directory: &Path) -> bool {
    let output = Command::new("getfattr")
        .args(["-R", "-h", "-m", "trusted.twinfold"])
        .arg(directory)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    !output.stdout.is_empty()
}

#[test]
fn what_the_loser_renamed_or_changed_in_part_is_whole_in_the_archive_where_the_other_removed_it() {
    let mut pair = Pair::with(Options {
        populate: |root| {
            fs::create_dir_all(root.join("tree/inner")).unwrap();
            fs::write(root.join("tree/inner/leaf"), large(1)).unwrap();
            for (path, of) in [("named", 2), ("part", 3), ("theirs", 4), ("stays", 5)] {
                fs::write(root.join(path), large(of)).unwrap();
            }
        },
        ..options()
    });
    forget_how_it_began(&pair);
    split(&pair);
    for path in ["named", "part", "theirs"] {
        fs::remove_file(pair.on_a(path)).unwrap();
    }
    fs::remove_dir_all(pair.on_a("tree")).unwrap();
    fs::rename(pair.on_b("named"), pair.on_b("other")).unwrap();
    fs::rename(pair.on_b("stays"), pair.on_b("stayed")).unwrap();
    fs::rename(pair.on_b("tree"), pair.on_b("wood")).unwrap();
    let part = fs::File::options()
        .write(true)
        .open(pair.on_b("part"))
        .unwrap();
    part.write_all_at(&[0xb; 4096], 8192).unwrap();
    drop(part);
    pair.b.demote(false).unwrap();
    pair.b.stop().unwrap();
    pair.b.start(Role::Secondary).unwrap();
    give_up(&pair.b).unwrap();
    pair.assert_identical();

    let mut changed = large(3);
    changed[8192..8192 + 4096].fill(0xb);
    for (path, had) in [
        ("other", large(2)),
        ("wood/inner/leaf", large(1)),
        ("part", changed),
    ] {
        assert!(kept(&pair.b, path) == Some(had), "{path}");
    }
    assert_eq!(
        kept(&pair.b, "theirs"),
        None,
        "the loser has not changed it"
    );
    assert!(fs::read(pair.on_b("stays")).unwrap() == large(5));
    let (files, removed) = archive(&pair.b);
    let removed = removed.expect("something was removed");
    assert!(!removed.join("stayed").exists(), "it is in the folder");
    assert!(!has_ids(&files) && !has_ids(&removed));
    // What is in the archive is no object any more.
    for path in ["other", "part", "wood"] {
        fs::write(pair.on_a(path), path).unwrap();
    }
    pair.assert_identical();
    assert!(kept(&pair.b, "other") == Some(large(2)));
    pair.b.kill();
}

/// Only coarse notes are left of what it did: that names in a directory have changed.
#[test]
fn what_a_loser_renamed_before_it_was_killed_is_kept_where_the_other_removed_it() {
    let mut pair = Pair::with(Options {
        populate: |root| {
            fs::create_dir(root.join("d")).unwrap();
            fs::write(root.join("d/small"), "of both").unwrap();
            fs::write(root.join("d/large"), large(1)).unwrap();
        },
        ..options()
    });
    forget_how_it_began(&pair);
    split(&pair);
    for path in ["d/small", "d/large"] {
        fs::remove_file(pair.on_a(path)).unwrap();
        fs::rename(pair.on_b(path), pair.on_b(format!("{path}-renamed"))).unwrap();
    }
    pair.b.kill();
    pair.b.start(Role::Secondary).unwrap();
    give_up(&pair.b).unwrap();
    pair.assert_identical();
    assert!(kept(&pair.b, "d/small-renamed") == Some(b"of both".to_vec()));
    assert!(kept(&pair.b, "d/large-renamed") == Some(large(1)));
    pair.b.kill();
}
