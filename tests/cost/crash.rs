//! What a crash of the primary costs: a look at what was hot, and no more than what changed.

use std::path::Path;

use harness::{Node, Options, Role, wait_until};

use crate::stage::{PATIENCE, SMALL, Stage, is_paired, scatter, wait_link, write};

const IMAGE: &str = "image";

/// Bytes of an extent, of which a note tells.
const EXTENT: u64 = 4 << 20;

/// Extents of the image, all full of data.
const EXTENTS: u64 = 16;

/// Extents that are written, far apart: nothing is noted ahead.
const HOT: u64 = 3;

/// Pieces of 4 KiB that are written at a time.
const PIECES: u64 = 48;

fn populate(root: &Path) {
    write(&root.join(IMAGE), (EXTENTS * EXTENT) as usize, 1);
}

fn place(piece: u64) -> u64 {
    (piece % HOT * (EXTENTS / HOT) * EXTENT) / 4096 + piece * 7
}

fn change(node: &Node, seed: u64) {
    scatter(&node.mount().join(IMAGE), PIECES, place, seed << 32);
}

/// A pair with an image of which nobody knows more than that it is equal; then a few of its
/// extents are written.
fn stage() -> Stage {
    let stage = Stage::new(Options {
        populate,
        // No checkpoint comes in between, however slow the machine is.
        more: vec!["--checkpoint-s".into(), "3600".into()],
        // B shall not wait long for one that is dead.
        deadlines: [8_000, 45_000, 60_000],
        ..Options::default()
    });
    stage.rest();
    change(&stage.pair.a, 1);
    stage
}

fn received(node: &Node) -> u64 {
    node.status().unwrap()["received_bytes"].as_u64().unwrap()
}

/// The nodes are together again; `source` has brought what was missing, `moved` bytes.
fn only_what_was_hot(stage: &Stage, source: &Node, looks: u64, [moved, changed]: [u64; 2]) {
    let status = source.status().unwrap();
    let compared = status["resync"]["compared_bytes"].as_u64().unwrap();
    println!("{compared} bytes compared, {moved} moved, {changed} changed");
    assert!(moved <= changed, "{moved} bytes moved, {changed} changed");
    let hot = HOT * EXTENT;
    assert!(
        compared <= looks * hot + SMALL,
        "{compared} bytes compared, {hot} were hot"
    );
    // What was hot may differ: without a look at it the copies are not known to be equal.
    assert!(compared >= hot, "{compared} bytes compared, {hot} were hot");
    stage.pair.assert_identical();
}

fn wait_together(stage: &Stage) {
    let both = || is_paired(&stage.pair.a) && is_paired(&stage.pair.b);
    assert!(wait_until(PATIENCE, both), "{:?}", stage.pair);
}

#[test]
fn a_primary_that_is_killed_and_comes_back_has_only_what_was_hot_compared() {
    let mut stage = stage();
    stage.pair.a.kill();
    wait_link(&stage.pair.b, "waiting");
    let had = received(&stage.pair.b);
    stage.pair.a.start(Role::Primary).unwrap();
    wait_together(&stage);
    let moved = received(&stage.pair.b) - had;
    only_what_was_hot(&stage, &stage.pair.a, 1, [moved, PIECES * 4096]);
}

#[test]
fn a_primary_that_is_killed_and_replaced_has_only_what_was_hot_compared() {
    let mut stage = stage();
    stage.pair.a.kill();
    wait_link(&stage.pair.b, "waiting");
    stage.pair.b.promote(false).unwrap();
    change(&stage.pair.b, 2);
    stage.pair.a.start(Role::Secondary).unwrap();
    wait_together(&stage);
    let moved = received(&stage.pair.a);
    assert!(moved >= PIECES * 4096, "{moved} bytes moved");
    // What B applied last may not have been flushed by A: it is looked at as it is marked,
    // beside the extents that A had noted.
    only_what_was_hot(&stage, &stage.pair.b, 2, [moved, PIECES * 4096]);
}

#[test]
fn when_both_nodes_are_killed_only_what_was_hot_is_compared() {
    let mut stage = stage();
    stage.pair.a.kill();
    stage.pair.b.kill();
    stage.pair.a.start(Role::Primary).unwrap();
    let cost = stage.resync();
    // What was not acknowledged may be moved.
    only_what_was_hot(&stage, &stage.pair.a, 1, [cost.data, PIECES * 4096]);
    let hashes = HOT * EXTENT / 4096 * 200;
    assert!(cost.wire <= cost.data + hashes + SMALL, "{cost:?}");
}
