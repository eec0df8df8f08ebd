//! A first synchronisation with a copy of the data that came there by another way.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use harness::{Options, Role};

use crate::stage::{SMALL, Stage, limit, noise, wait_link, wait_status, write};

const FILE: usize = 1 << 20;

/// What both have.
fn common(root: &Path) {
    fs::create_dir_all(root.join("d/e")).unwrap();
    for (n, name) in ["a", "d/b", "d/e/c"].into_iter().enumerate() {
        write(&root.join(name), FILE, n as u64);
    }
    symlink("a", root.join("s")).unwrap();
    let sparse = File::create(root.join("sparse")).unwrap();
    sparse.set_len(1 << 30).unwrap();
    sparse.write_all_at(&noise(8192, 4), 77 << 20).unwrap();
}

fn on_source(root: &Path) {
    common(root);
    // Two files there, two names of one here; and the reverse.
    write(&root.join("two1"), FILE, 20);
    write(&root.join("two2"), FILE, 20);
    write(&root.join("one1"), FILE, 21);
    fs::hard_link(root.join("one1"), root.join("d/one2")).unwrap();
    // Other kinds under one name.
    write(&root.join("kind"), 100, 22);
    fs::create_dir(root.join("kind2")).unwrap();
    symlink("elsewhere", root.join("s2")).unwrap();
    fs::set_permissions(root.join("d/b"), fs::Permissions::from_mode(0o640)).unwrap();
    let file = File::options().write(true).open(root.join("a")).unwrap();
    file.write_all_at(&noise(4096, 50), 4096).unwrap();
}

fn on_target(root: &Path) {
    common(root);
    write(&root.join("two1"), FILE, 20);
    fs::hard_link(root.join("two1"), root.join("two2")).unwrap();
    write(&root.join("one1"), FILE, 21);
    write(&root.join("d/one2"), FILE, 21);
    fs::create_dir(root.join("kind")).unwrap();
    write(&root.join("kind/inside"), 100, 23);
    write(&root.join("kind2"), 100, 24);
    symlink("somewhere", root.join("s2")).unwrap();
    fs::create_dir_all(root.join("foreign/deep")).unwrap();
    write(&root.join("foreign/deep/file"), FILE, 25);
    // Longer and shorter than there.
    let longer = File::options().append(true).open(root.join("d/e/c"));
    std::io::Write::write_all(&mut longer.unwrap(), &noise(9000, 26)).unwrap();
}

#[test]
fn of_a_seed_only_what_differs_is_moved_and_the_rest_is_removed() {
    let mut stage = Stage::stopped(Options {
        populate: on_source,
        seed: Some(on_target),
        ..Options::default()
    });
    stage.pair.a.start(Role::Primary).unwrap();
    let cost = stage.resync();
    stage.pair.assert_identical();
    // The block in `a`, the second one of the files that were linked, and `kind`.
    cost.at_most(4096 + FILE as u64 + 4096);
    let store = stage.pair.b.data();
    assert!(!store.join("foreign").exists() && store.join("kind2").is_dir());
    let [one, two] = ["one1", "d/one2"].map(|n| fs::metadata(store.join(n)).unwrap().ino());
    assert_eq!(one, two);
    let [one, two] = ["two1", "two2"].map(|n| fs::metadata(store.join(n)).unwrap().ino());
    assert_ne!(one, two);
    // It is a copy as any other one from now on.
    stage.rest();
    let cost = stage.away(|pair| fs::rename(pair.on_a("d/b"), pair.on_a("b")).unwrap());
    cost.at_most(0);
    stage.pair.assert_identical();
}

#[test]
fn a_seed_is_no_copy_until_it_was_compared() {
    let mut stage = Stage::stopped(Options {
        seed: Some(common),
        ..Options::default()
    });
    assert!(stage.pair.b.start(Role::Primary).is_err());
    stage.pair.b.kill();
    stage.pair.b.start(Role::Secondary).unwrap();
    assert!(stage.pair.b.promote(false).is_err());
    assert!(stage.pair.b.promote(true).is_err());
    assert_eq!(stage.pair.b.status().unwrap()["up_to_date"], false);
}

fn large_on_source(root: &Path) {
    (0..8).for_each(|n| write(&root.join(format!("f{n}")), 2 << 20, n));
}

/// Half of the files are right, the others are not.
fn large_on_target(root: &Path) {
    (0..8).for_each(|n| write(&root.join(format!("f{n}")), 2 << 20, n * (n % 2)));
}

#[test]
fn seeding_that_breaks_off_goes_on() {
    let mut stage = Stage::stopped(Options {
        populate: large_on_source,
        seed: Some(large_on_target),
        ..Options::default()
    });
    stage.pair.a.start(Role::Primary).unwrap();
    limit(&stage.pair.a, Some(2 << 20));
    stage.pair.b.start(Role::Secondary).unwrap();
    let status = wait_status(&stage.pair.b, |s| {
        s["received_bytes"].as_u64().is_some_and(|n| n > 2 << 20)
    });
    let had = status["received_bytes"].as_u64().unwrap();
    stage.pair.b.kill();
    wait_link(&stage.pair.a, "alone");
    limit(&stage.pair.a, None);
    let cost = stage.resync();
    assert!(
        cost.data > 0 && cost.data <= (6 << 20) - had,
        "{cost:?}, had {had}"
    );
    assert!(cost.wire <= (6 << 20) + SMALL, "{cost:?}");
    stage.pair.assert_identical();
}
