//! Changes that a primary had done and not shipped.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;

use harness::{Options, Pair};

use super::{bring_back, cut_off};

const MIB: u64 = 1 << 20;

fn pattern(n: u64) -> Vec<u8> {
    (0..4096u64).map(|i| (i * 31 + n * 7 + 1) as u8).collect()
}

/// A file with data at its beginning, in many far places, and at its end.
fn write_far_apart(path: &Path, size: u64) {
    let file = fs::File::create(path).unwrap();
    for n in 0..=size / (8 * MIB) {
        let at = (n * 8 * MIB).min(size - 4096);
        file.write_all_at(&pattern(n), at).unwrap();
    }
}

#[test]
fn a_removed_file_gets_its_contents_back() {
    let mut pair = Pair::new();
    fs::create_dir(pair.on_a("d")).unwrap();
    fs::write(pair.on_a("d/f"), pattern(1)).unwrap();
    fs::write(pair.on_a("d/empty"), b"").unwrap();
    cut_off(
        &mut pair,
        |mount| drop(fs::remove_file(mount.join("d/f"))),
        |store| !store.join("d/f").exists(),
    );
    bring_back(&mut pair);
    assert_eq!(fs::read(pair.on_a("d/f")).unwrap(), pattern(1));
    assert_eq!(fs::read(pair.on_b("d/f")).unwrap(), pattern(1));
}

#[test]
fn a_file_replaced_by_a_rename_gets_its_contents_back() {
    let mut pair = Pair::new();
    fs::write(pair.on_a("old"), pattern(1)).unwrap();
    fs::write(pair.on_a("new"), pattern(2)).unwrap();
    cut_off(
        &mut pair,
        |mount| drop(fs::rename(mount.join("new"), mount.join("old"))),
        |store| !store.join("new").exists(),
    );
    bring_back(&mut pair);
    assert_eq!(fs::read(pair.on_a("old")).unwrap(), pattern(1));
    assert_eq!(fs::read(pair.on_a("new")).unwrap(), pattern(2));
}

#[test]
fn a_tree_removed_by_many_hands_comes_back_whole() {
    // In mode `flush` removals run ahead of the frozen peer.
    let mut pair = Pair::with(Options {
        ack: "flush",
        ..Options::default()
    });
    for d in ["t", "t/u", "t/u/v"] {
        fs::create_dir(pair.on_a(d)).unwrap();
        for n in 0..5 {
            fs::write(pair.on_a(d).join(format!("f{n}")), pattern(n)).unwrap();
        }
        std::os::unix::fs::symlink("somewhere", pair.on_a(d).join("link")).unwrap();
    }
    cut_off(
        &mut pair,
        |mount| drop(fs::remove_dir_all(mount.join("t"))),
        |store| !store.join("t").exists(),
    );
    bring_back(&mut pair);
    for d in ["t", "t/u", "t/u/v"] {
        for n in 0..5 {
            let path = pair.on_a(d).join(format!("f{n}"));
            assert_eq!(fs::read(path).unwrap(), pattern(n));
        }
    }
}

#[test]
fn a_long_file_cut_to_nothing_is_whole_again() {
    let mut pair = Pair::new();
    const SIZE: u64 = 320 * MIB;
    write_far_apart(&pair.on_a("long"), SIZE);
    let expected = fs::read(pair.on_a("long")).unwrap();
    cut_off(
        &mut pair,
        |mount| drop(fs::File::create(mount.join("long"))),
        |store| fs::metadata(store.join("long")).unwrap().len() == 0,
    );
    bring_back(&mut pair);
    assert!(
        fs::read(pair.on_a("long")).unwrap() == expected,
        "the cut file differs from what it was"
    );
}

#[test]
fn a_shorter_file_cut_inside_is_whole_again() {
    let mut pair = Pair::new();
    const SIZE: u64 = 40 * MIB;
    write_far_apart(&pair.on_a("short"), SIZE);
    let expected = fs::read(pair.on_a("short")).unwrap();
    cut_off(
        &mut pair,
        |mount| {
            let file = fs::File::options().write(true).open(mount.join("short"));
            let _ = file.unwrap().set_len(5 * MIB + 77);
        },
        |store| fs::metadata(store.join("short")).unwrap().len() < SIZE,
    );
    bring_back(&mut pair);
    assert!(
        fs::read(pair.on_a("short")).unwrap() == expected,
        "the cut file differs from what it was"
    );
}

#[test]
fn what_was_made_and_never_shipped_is_gone() {
    let mut pair = Pair::new();
    fs::create_dir(pair.on_a("d")).unwrap();
    cut_off(
        &mut pair,
        |mount| drop(fs::create_dir(mount.join("d/new"))),
        |store| store.join("d/new").exists(),
    );
    bring_back(&mut pair);
    assert!(!pair.on_a("d/new").exists());
}

/// The notes of the node that returns cannot be read: everything is compared.
#[test]
fn a_damaged_intent_log_costs_a_comparison_and_no_data() {
    let mut pair = Pair::new();
    for n in 0..20 {
        fs::write(pair.on_a(format!("f{n}")), pattern(n)).unwrap();
    }
    pair.checkpoint();
    fs::write(pair.on_a("f3"), pattern(100)).unwrap();
    fs::write(pair.on_a("f4"), pattern(101)).unwrap();
    cut_off(
        &mut pair,
        |mount| drop(fs::write(mount.join("f7"), pattern(102))),
        |store| fs::read(store.join("f7")).unwrap() != pattern(7),
    );
    // Behind everybody's back, where no readable note tells of it.
    fs::write(pair.a.data().join("f11"), pattern(103)).unwrap();
    damage_the_log(&pair);
    bring_back(&mut pair);
    assert_eq!(fs::read(pair.on_a("f11")).unwrap(), pattern(11));
    assert_eq!(fs::read(pair.on_a("f7")).unwrap(), pattern(7));
}

/// Breaks the first record of every segment that has another one behind it.
fn damage_the_log(pair: &Pair) {
    let mut damaged = 0;
    for entry in fs::read_dir(pair.a.layout().state().join("intents")).unwrap() {
        let path = entry.unwrap().path();
        let mut bytes = fs::read(&path).unwrap();
        if bytes[32..64].iter().any(|b| *b != 0) {
            bytes[8] ^= 0x55;
            fs::write(&path, &bytes).unwrap();
            damaged += 1;
        }
    }
    assert!(damaged > 0, "no segment has two records");
}
