//! Giving one copy up: what moves, and what is kept of the loser.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use harness::{Node, Options, Pair, Role};
use serde_json::Value;

use crate::stage::{
    PATIENCE, conflict, forget_how_it_began, give_up, list, options, said, show, split, wait_status,
};

const BLOCK: u64 = 4096;
const IMAGE: u64 = 1 << 30;

/// Pieces of the image that one side writes: less than 1 MiB.
const PIECES: u64 = 200;

fn block(number: u64, writer: u8) -> Vec<u8> {
    let byte = |i: u64| (i * 31 + number * 7) as u8 ^ writer;
    (0..BLOCK).map(byte).collect()
}

/// Where the pieces of a writer lie: all over the image, some of them where the other writes too.
fn places(writer: u64) -> impl Iterator<Item = u64> {
    (0..PIECES).map(move |n| (n * 1237 + (n % 2) * writer * 5) * BLOCK % IMAGE)
}

fn populate(root: &Path) {
    let image = fs::File::create(root.join("image")).unwrap();
    image.set_len(IMAGE).unwrap();
    for n in 0..64 {
        image.write_all_at(&block(n, 0), n * (IMAGE / 64)).unwrap();
    }
    for directory in ["kept", "gone-a", "gone-b", "deep", "deep/er"] {
        fs::create_dir(root.join(directory)).unwrap();
    }
    for n in 0..20 {
        fs::write(root.join(format!("kept/f{n}")), block(n, 1)).unwrap();
    }
    for path in [
        "gone-a/f",
        "gone-b/f",
        "deep/er/f",
        "move-a",
        "move-b",
        "attr-a",
        "attr-b",
    ] {
        fs::write(root.join(path), path).unwrap();
    }
}

/// What one of the two sides does after the split.
fn work(root: &Path, side: &str, writer: u8) {
    let image = fs::File::options()
        .write(true)
        .open(root.join("image"))
        .unwrap();
    for (n, at) in places(u64::from(writer)).enumerate() {
        image.write_all_at(&block(n as u64, writer), at).unwrap();
    }
    let own = |name: &str| root.join(format!("{name}-{side}"));
    fs::write(own("new"), format!("new on {side}")).unwrap();
    fs::hard_link(own("new"), root.join("kept").join(format!("link-{side}"))).unwrap();
    symlink("somewhere", own("symlink")).unwrap();
    fs::create_dir(own("tree")).unwrap();
    fs::write(own("tree").join("leaf"), vec![writer; 3 << 20]).unwrap();
    let fifo = Command::new("mkfifo").arg(own("fifo")).status().unwrap();
    assert!(fifo.success());
    fs::remove_dir_all(own("gone")).unwrap();
    fs::rename(own("move"), root.join(format!("deep/er/moved-{side}"))).unwrap();
    let attribute = Command::new("setfattr")
        .args(["-n", "user.side", "-v", side])
        .arg(own("attr"))
        .status()
        .unwrap();
    assert!(attribute.success());
    fs::write(root.join("kept/f3"), format!("f3 of {side}")).unwrap();
}

/// A copy of what a node has now, holes and all. Read through its mount: that leaves no
/// access times in the store.
fn snapshot(pair: &Pair, node: &Node, name: &str) -> PathBuf {
    let to = pair.beside(name);
    let copied = Command::new("cp")
        .args(["-a", "--sparse=always"])
        .args([node.mount(), to.clone()])
        .status()
        .unwrap();
    assert!(copied.success());
    to
}

/// How a large file is kept that was changed in part.
fn part_of(pair: &Pair) -> &'static str {
    fs::write(pair.beside("one"), "x").unwrap();
    let shared = Command::new("cp")
        .arg("--reflink=always")
        .args([pair.beside("one"), pair.beside("two")])
        .output()
        .unwrap();
    match shared.status.success() {
        true => "whole",
        false => "ranges",
    }
}

fn bytes_at(path: &Path, offset: u64, length: u64) -> Vec<u8> {
    let mut bytes = vec![0; length as usize];
    fs::File::open(path)
        .unwrap()
        .read_exact_at(&mut bytes, offset)
        .unwrap();
    bytes
}

/// The lines of an archive by path; fails the test where what is kept differs from what
/// the loser had.
fn checked(node: &Node, name: &str, had: &Path) -> BTreeMap<String, Value> {
    let shown = show(node, name);
    let files = PathBuf::from(shown["files"].as_str().unwrap());
    let mut lines = BTreeMap::new();
    for line in shown["lines"].as_array().unwrap() {
        let path = line["path"].as_str().unwrap();
        let (kept, was) = (files.join(path), had.join(path));
        if line["kept"] == "nothing" {
            assert!(!kept.exists() && !was.exists(), "{line}");
        } else {
            let (a, b) = (
                fs::symlink_metadata(&kept).unwrap(),
                fs::symlink_metadata(&was).unwrap(),
            );
            let of = |m: &fs::Metadata| (m.mode(), m.uid(), m.gid(), m.mtime(), m.mtime_nsec());
            assert_eq!(of(&a), of(&b), "{line}");
            if a.is_file() {
                assert_eq!(a.len(), b.len(), "{line}");
                if line["kept"] == "ranges" {
                    for range in line["ranges"].as_array().unwrap() {
                        let of = |n: usize| range[n].as_u64().unwrap();
                        let [mine, his] = [&kept, &was].map(|p| bytes_at(p, of(0), of(1)));
                        assert!(mine == his, "{line}: {range}");
                    }
                } else {
                    assert!(
                        fs::read(&kept).unwrap() == fs::read(&was).unwrap(),
                        "{line}"
                    );
                }
            }
        }
        lines.insert(path.to_owned(), line.clone());
    }
    lines
}

fn xattr(path: &Path) -> String {
    let output = Command::new("getfattr")
        .args(["--only-values", "-n", "user.side"])
        .arg(path)
        .output()
        .unwrap();
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn giving_up_moves_what_both_changed_and_keeps_what_the_loser_had() {
    let mut pair = Pair::with(Options {
        populate,
        ..options()
    });
    forget_how_it_began(&pair);
    split(&pair);
    work(&pair.a.mount(), "a", 2);
    work(&pair.b.mount(), "b", 3);
    conflict(&pair.b);
    pair.b.demote(false).unwrap();
    // The loser may go down and come back before it is given up.
    pair.b.kill();
    pair.b.start(Role::Secondary).unwrap();
    conflict(&pair.b);
    let had = snapshot(&pair, &pair.b, "had");
    give_up(&pair.b).unwrap();
    pair.assert_identical();

    // Both sides' pieces of the image, their leaves, and what is small.
    let received = pair.b.status().unwrap()["received_bytes"].as_u64().unwrap();
    let changed = 2 * PIECES * BLOCK + (3 << 20);
    assert!(
        received < changed + (1 << 20),
        "{received} bytes of {changed}"
    );
    assert!(
        received > changed / 2,
        "{received} bytes: what was compared?"
    );

    let archives = list(&pair.b);
    assert_eq!(archives.len(), 1, "{archives:?}");
    let name = archives[0]["name"].as_str().unwrap();
    let lines = checked(&pair.b, name, &had);
    let is = |path: &str, change: &str, kept: &str| {
        let line = &lines
            .get(path)
            .unwrap_or_else(|| panic!("{path}: {lines:?}"));
        let changes: Vec<_> = line["changes"].as_array().unwrap().iter().collect();
        assert!(changes.iter().any(|c| *c == change), "{line}");
        assert_eq!(line["kept"], kept, "{line}");
    };
    is("image", "data", part_of(&pair));
    is("tree-b", "new", "whole");
    is("tree-b/leaf", "new", "whole");
    is("symlink-b", "new", "whole");
    is("fifo-b", "new", "whole");
    is("attr-b", "attributes", "whole");
    is("kept/f3", "data", "whole");
    let links = ["new-b", "kept/link-b"].map(|p| lines[p]["kept"].clone());
    assert!(
        links.contains(&"whole".into()) && links.contains(&"linked".into()),
        "{links:?}"
    );
    // Every piece of the image that the loser wrote is kept, and not all of the image.
    let files = PathBuf::from(show(&pair.b, name)["files"].as_str().unwrap());
    for (n, at) in places(3).enumerate() {
        let kept = bytes_at(&files.join("image"), at, BLOCK);
        let last = places(3).skip(n + 1).any(|later| later == at);
        assert!(last || kept == block(n as u64, 3), "piece {n}");
    }
    assert_eq!(xattr(&files.join("attr-b")), "b");
    assert_eq!(
        fs::read_link(files.join("symlink-b")).unwrap(),
        Path::new("somewhere")
    );
    let links = ["new-b", "kept/link-b"].map(|p| fs::metadata(files.join(p)).unwrap().ino());
    assert_eq!(links[0], links[1]);
    assert!(!files.join("kept/f4").exists(), "nobody changed it");
    assert!(!files.join("new-a").exists(), "the loser never had it");
    pair.b.kill();
}

#[test]
fn a_kill_while_it_is_kept_or_overwritten_loses_nothing_of_the_loser() {
    let mut pair = Pair::with(options());
    fs::write(pair.on_a("common"), "both").unwrap();
    split(&pair);
    fs::write(pair.on_a("of-a"), vec![1; 9 << 20]).unwrap();
    for n in 0..24u8 {
        fs::write(pair.on_b(format!("of-b-{n}")), vec![n + 1; 8 << 20]).unwrap();
    }
    pair.b.demote(false).unwrap();
    let had = snapshot(&pair, &pair.b, "had");
    let archive = pair.b.layout().archive();
    // In the middle of keeping: nothing was overwritten, and nothing is given up.
    let part = || {
        let entries = fs::read_dir(&archive).into_iter().flatten().flatten();
        entries
            .map(|e| e.file_name().into_string().unwrap())
            .find(|n| n.ends_with(".part"))
    };
    let layout = pair.b.layout();
    let request = std::thread::spawn(move || {
        let request = fs_driver::control::Request::Discard {
            without_archive: false,
        };
        fs_driver::control::ask(&layout, request)
    });
    assert!(
        harness::wait_until(PATIENCE, || part().is_some()),
        "nothing is kept"
    );
    pair.b.kill();
    assert!(request.join().unwrap().is_err());
    assert!(part().is_some(), "it was killed too late to say anything");
    pair.b.start(Role::Secondary).unwrap();
    assert_eq!(part(), None, "half an archive stays");
    conflict(&pair.b);
    assert_eq!(pair.b.status().unwrap()["given_up"], false);
    let same = Command::new("diff")
        .args(["-r", "--no-dereference"])
        .args([&had, &pair.b.mount()])
        .status()
        .unwrap();
    assert!(same.success(), "the copy was changed before it was kept");

    // And in the middle of the resync that follows.
    give_up(&pair.b).unwrap();
    pair.b.kill();
    let archives = list(&pair.b);
    pair.b.start(Role::Secondary).unwrap();
    wait_status(&pair.b, "resynced", |s| {
        s["link"] == "syncing" || s["link"] == "paired"
    });
    pair.b.kill();
    pair.b.start(Role::Secondary).unwrap();
    pair.assert_identical();
    assert_eq!(pair.b.status().unwrap()["given_up"], false);
    assert!(pair.on_b("of-a").exists() && !pair.on_b("of-b-0").exists());
    assert_eq!(list(&pair.b), archives);
    assert_eq!(archives.len(), 1);
    let lines = checked(&pair.b, archives[0]["name"].as_str().unwrap(), &had);
    for n in 0..24 {
        assert_eq!(lines[&format!("of-b-{n}")]["kept"], "whole");
    }
    pair.b.kill();
}

/// The name under which it was removed says nothing any more where it has another one.
#[test]
fn what_one_side_removed_and_the_other_side_renamed_is_whole_again() {
    let mut pair = Pair::with(options());
    let made = |pair: &Pair, at: &str| {
        let root = pair.on_a(at);
        fs::create_dir_all(root.join("inner")).unwrap();
        fs::write(root.join("inner/file"), block(3, 3)).unwrap();
        fs::write(root.join("file"), block(4, 4)).unwrap();
    };
    made(&pair, "directory");
    made(&pair, "place/deep");
    fs::write(pair.on_a("alone"), block(5, 5)).unwrap();
    pair.assert_identical();
    // Nothing of this is in doubt any more.
    for _ in 0..3 {
        pair.wait_settled();
        pair.checkpoint();
    }
    split(&pair);
    fs::rename(pair.on_a("directory"), pair.on_a("other")).unwrap();
    fs::rename(pair.on_a("place/deep"), pair.on_a("deep")).unwrap();
    fs::rename(pair.on_a("alone"), pair.on_a("not-alone")).unwrap();
    fs::remove_dir_all(pair.on_b("directory")).unwrap();
    fs::rename(pair.on_b("place/deep/inner"), pair.on_b("inner")).unwrap();
    fs::remove_dir_all(pair.on_b("place")).unwrap();
    fs::remove_file(pair.on_b("alone")).unwrap();
    // Its marks tell, to the name, and no coarser notes.
    pair.b.demote(false).unwrap();
    pair.b.stop().unwrap();
    pair.b.start(Role::Secondary).unwrap();
    give_up(&pair.b).unwrap();
    pair.assert_identical();
    for (path, bytes) in [
        ("other/inner/file", block(3, 3)),
        ("deep/file", block(4, 4)),
        ("not-alone", block(5, 5)),
    ] {
        assert!(fs::read(pair.on_b(path)).unwrap() == bytes, "{path}");
    }
    pair.b.kill();
}

#[test]
fn without_room_for_the_archive_nothing_is_given_up_unasked() {
    let mut pair = Pair::with(Options {
        small_disk: Some(96 << 20),
        ..options()
    });
    fs::write(pair.on_a("common"), "both").unwrap();
    split(&pair);
    fs::write(pair.on_b("of-b"), "b").unwrap();
    fs::write(pair.on_a("of-a"), vec![7; 48 << 20]).unwrap();
    pair.a.demote(false).unwrap();
    let refused = format!("{:#}", give_up(&pair.a).unwrap_err());
    for part in ["needs", "free", "--without-archive", "not given up"] {
        assert!(refused.contains(part), "{refused}");
    }
    assert_eq!(pair.a.status().unwrap()["given_up"], false);
    assert_eq!(
        fs::read(pair.a.data().join("of-a")).unwrap().len(),
        48 << 20
    );
    assert!(list(&pair.a).is_empty());
    let mount = pair.a.mount().display().to_string();
    let arguments = ["resync", &mount, "--discard-this-copy", "--without-archive"];
    pair.a.run(&arguments).unwrap();
    pair.assert_identical();
    assert!(pair.on_a("of-b").exists() && !pair.on_a("of-a").exists());
    assert!(list(&pair.a).is_empty());
    pair.a.kill();
}

#[test]
fn archives_are_listed_limited_dropped_and_survive_the_folder() {
    let mut pair = Pair::with(Options {
        more: vec!["--archive-bytes".into(), "1".into()],
        ..options()
    });
    let lose = |pair: &Pair, name: &str| {
        split(pair);
        fs::write(pair.on_b(name), name).unwrap();
        pair.b.demote(false).unwrap();
        give_up(&pair.b).unwrap();
        pair.assert_identical();
        let all = list(&pair.b);
        assert_eq!(all.len(), 1, "{all:?}");
        all[0].clone()
    };
    let first = lose(&pair, "first");
    let second = lose(&pair, "second");
    assert_ne!(first["name"], second["name"]);
    assert_eq!(said(&pair.b, "beyond the limits and was dropped"), 1);
    assert!(!Path::new(first["files"].as_str().unwrap()).exists());
    let name = second["name"].as_str().unwrap();
    let mount = pair.b.mount().display().to_string();
    let text = pair.b.run(&["archive", "show", &mount, name]).unwrap();
    let line = text.lines().find(|line| line.ends_with("  second"));
    assert!(
        line.is_some_and(|l| l.starts_with("whole") && l.contains("new")),
        "{text}"
    );
    let read = fs::read(Path::new(second["files"].as_str().unwrap()).join("second"));
    assert_eq!(read.unwrap(), b"second");
    for wrong in ["../state", "nothing"] {
        let refused = pair.b.run(&["archive", "drop", &mount, wrong]).unwrap_err();
        assert!(
            format!("{refused:#}").contains("there is no archive"),
            "{refused:#}"
        );
    }
    // They outlive the folder, beside it.
    pair.b.stop().unwrap();
    let said = pair.b.run(&["deinit", &mount, "--force"]).unwrap();
    let beside = pair.beside("b/.vm.twinfold-archive");
    assert!(said.contains(&beside.display().to_string()), "{said}");
    assert!(beside.join(name).join("files/second").is_file());
    assert!(!pair.on_b("second").exists() && pair.b.mount().is_dir());
}

#[test]
fn an_archive_that_is_dropped_is_gone() {
    let mut pair = Pair::with(options());
    split(&pair);
    fs::write(pair.on_b("f"), "b").unwrap();
    pair.b.demote(false).unwrap();
    give_up(&pair.b).unwrap();
    pair.wait_paired();
    let all = list(&pair.b);
    let mount = pair.b.mount().display().to_string();
    let name = all[0]["name"].as_str().unwrap();
    pair.b.run(&["archive", "drop", &mount, name]).unwrap();
    assert!(list(&pair.b).is_empty());
    assert!(
        fs::read_dir(pair.b.layout().archive())
            .unwrap()
            .next()
            .is_none()
    );
    pair.b.kill();
}

#[test]
fn the_manifest_tells_to_the_block_and_to_the_name_what_was_changed() {
    let mut pair = Pair::with(Options {
        populate: |root| {
            fs::write(root.join("big"), vec![1; 8 << 20]).unwrap();
            for path in ["removed", "moved", "mode", "same"] {
                fs::write(root.join(path), path).unwrap();
            }
            fs::create_dir(root.join("d")).unwrap();
        },
        ..options()
    });
    forget_how_it_began(&pair);
    split(&pair);
    let big = fs::File::options()
        .write(true)
        .open(pair.on_b("big"))
        .unwrap();
    big.write_all_at(&[2; 10], 5 * BLOCK).unwrap();
    big.write_all_at(&[2; 2 * BLOCK as usize], 1 << 20).unwrap();
    drop(big);
    fs::remove_file(pair.on_b("removed")).unwrap();
    fs::rename(pair.on_b("moved"), pair.on_b("d/there")).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o640);
    fs::set_permissions(pair.on_b("mode"), mode).unwrap();
    pair.b.demote(false).unwrap();
    let had = snapshot(&pair, &pair.b, "had");
    // A stop in between, in order: the marks are exact after it all the same.
    pair.b.stop().unwrap();
    pair.b.start(Role::Secondary).unwrap();
    conflict(&pair.b);
    give_up(&pair.b).unwrap();
    pair.assert_identical();
    let archives = list(&pair.b);
    let lines = checked(&pair.b, archives[0]["name"].as_str().unwrap(), &had);
    let told: BTreeMap<_, _> = lines
        .iter()
        // What the test itself wrote before the split may not have been flushed everywhere.
        .filter(|(path, _)| *path != "tick")
        .map(|(path, line)| (path.as_str(), line["changes"].to_string()))
        .collect();
    let expected = [
        ("", r#"["attributes"]"#),
        ("big", r#"["data","attributes"]"#),
        ("d", r#"["attributes"]"#),
        ("d/there", r#"["named"]"#),
        ("mode", r#"["attributes"]"#),
        ("moved", r#"["removed"]"#),
        ("removed", r#"["removed"]"#),
    ];
    let expected = expected.map(|(path, changes)| (path, changes.to_owned()));
    assert_eq!(told, BTreeMap::from(expected));
    let ranges = serde_json::json!([[5 * BLOCK, BLOCK], [1 << 20, 2 * BLOCK]]);
    assert_eq!(lines["big"]["ranges"], ranges);
    assert_eq!(lines["big"]["kept"], part_of(&pair));
    pair.b.kill();
}

/// In the middle of a resync objects that lost their name wait aside for a new one. A copy
/// that is made good by force then will never hear of it.
#[test]
fn what_waits_aside_when_a_copy_is_made_good_by_force_is_kept() {
    let mut pair = Pair::with(options());
    fs::create_dir(pair.on_a("d")).unwrap();
    fs::write(pair.on_a("d/f"), "of both").unwrap();
    fs::write(pair.on_a("stays"), "too").unwrap();
    pair.wait_settled();
    let id = fs::metadata(pair.on_b("d")).unwrap().ino();
    pair.a.kill();
    pair.b.kill();
    let aside = pair.b.layout().aside();
    fs::rename(pair.b.data().join("d"), aside.join(format!("{id:016x}"))).unwrap();
    pair.b.start(Role::ForcedPrimary).unwrap();
    let archives = list(&pair.b);
    assert_eq!(archives.len(), 1, "{archives:?}");
    assert_eq!(archives[0]["about"]["reason"], "aside");
    let files = PathBuf::from(archives[0]["files"].as_str().unwrap());
    let kept = fs::read(files.join(format!("{id:016x}/f")));
    assert_eq!(kept.unwrap(), b"of both");
    assert!(fs::read_dir(&aside).unwrap().next().is_none());
    assert_eq!(fs::read(pair.on_b("stays")).unwrap(), b"too");
    pair.a.start(Role::Secondary).unwrap();
    pair.assert_identical();
    assert!(!pair.on_a("d").exists());
    pair.a.kill();
}

/// By force a copy is made good that lacks acknowledged writes of the other one. Nobody went
/// on twice, so the other one follows by itself; what it had is kept all the same.
#[test]
fn what_a_copy_had_that_follows_a_forced_one_is_kept() {
    let mut pair = Pair::with(options());
    fs::write(pair.on_a("f"), "old").unwrap();
    forget_how_it_began(&pair);
    fs::write(pair.on_a("f"), "newer").unwrap();
    fs::write(pair.on_a("lost"), "acknowledged").unwrap();
    pair.wait_settled();
    pair.a.kill();
    pair.b.kill();
    // As a power cut leaves it: what was not synced is gone from the disk of A.
    fs::write(pair.a.data().join("f"), "old").unwrap();
    fs::write(pair.a.data().join("lost"), "").unwrap();
    // A was secondary when it last ran, as far as it knows: only force makes it primary.
    pair.a.start(Role::Secondary).unwrap();
    pair.a.kill();
    pair.a.start(Role::ForcedPrimary).unwrap();
    pair.b.start(Role::Secondary).unwrap();
    pair.assert_identical();
    assert_eq!(fs::read(pair.on_b("f")).unwrap(), b"old");
    let archives = list(&pair.b);
    assert_eq!(archives.len(), 1, "{archives:?}");
    assert_eq!(archives[0]["about"]["reason"], "forced");
    let files = PathBuf::from(archives[0]["files"].as_str().unwrap());
    assert_eq!(fs::read(files.join("f")).unwrap(), b"newer");
    assert_eq!(fs::read(files.join("lost")).unwrap(), b"acknowledged");
    assert!(list(&pair.a).is_empty());
    pair.b.kill();
}
