//! A large sparse image of which little changes.

use std::fs::File;
use std::os::unix::fs::MetadataExt;

use harness::{Options, Role};

use crate::stage::{Stage, number, scatter, wait_link, write};

const IMAGE: &str = "image";

/// Blocks of the image.
fn blocks() -> u64 {
    number("TWINFOLD_COST_GIB", 4) << 18
}

/// Pieces of 4 KiB that change.
fn pieces() -> u64 {
    number("TWINFOLD_COST_MIB", 4) << 8
}

/// Where the pieces lie: each in a block of its own, all over the image.
fn place(piece: u64) -> u64 {
    // The step is odd and the blocks are a power of two or have no such factor in common.
    piece * 104_729 % blocks()
}

/// A pair with an image in which some data lies, and both nodes have flushed it.
fn stage() -> Stage {
    let stage = Stage::new(Options::default());
    let image = stage.pair.on_a(IMAGE);
    let file = File::create(&image).unwrap();
    file.set_len(blocks() * 4096).unwrap();
    scatter(&image, pieces() / 2, place, 1);
    stage.rest();
    stage
}

fn same_image_without_the_holes_filled(stage: &Stage) {
    stage.pair.assert_identical();
    let [a, b] = [&stage.pair.a, &stage.pair.b]
        .map(|node| std::fs::metadata(node.data().join(IMAGE)).unwrap());
    assert_eq!(a.size(), blocks() * 4096);
    // Metadata blocks of the file system are in it: a little more or less.
    let (a, b) = (a.blocks() * 512, b.blocks() * 512);
    assert!(b <= a + a / 8 + (1 << 20), "{a} bytes on A, {b} on B");
}

#[test]
fn after_a_clean_stop_only_the_pieces_of_an_image_that_changed_are_moved() {
    let mut stage = stage();
    let cost = stage.away(|pair| scatter(&pair.on_a(IMAGE), pieces(), place, 1 << 32));
    println!("after a clean stop: {cost:?} for {} bytes", pieces() * 4096);
    cost.at_most(pieces() * 4096);
    assert_eq!(cost.data, pieces() * 4096);
    same_image_without_the_holes_filled(&stage);
}

#[test]
fn after_a_crash_of_the_primary_no_more_of_an_image_is_moved_than_changed() {
    let mut stage = stage();
    stage.stop_b();
    scatter(&stage.pair.on_a(IMAGE), pieces(), place, 1 << 32);
    stage.pair.a.kill();
    stage.pair.a.start(Role::Primary).unwrap();
    let cost = stage.resync();
    println!("after a crash: {cost:?} for {} bytes", pieces() * 4096);
    // What was hot is compared; its hashes travel, its data does not.
    assert_eq!(cost.data, pieces() * 4096);
    let hashes = pieces() * (4096 + 200);
    assert!(cost.wire <= hashes + hashes / 10 + (1 << 20), "{cost:?}");
    same_image_without_the_holes_filled(&stage);
}

#[test]
fn after_a_crash_of_the_secondary_what_it_has_is_not_moved_again() {
    let mut stage = stage();
    // It may not be on its disk yet, so it is compared.
    scatter(&stage.pair.on_a(IMAGE), pieces(), place, 1 << 32);
    stage.pair.wait_settled();
    stage.pair.b.kill();
    wait_link(&stage.pair.a, "alone");
    let cost = stage.resync();
    assert_eq!(cost.data, 0, "{cost:?}");
    same_image_without_the_holes_filled(&stage);
}

#[test]
fn holes_are_made_on_the_other_node_and_filled_there_as_well() {
    let mut stage = Stage::new(Options::default());
    write(&stage.pair.on_a("full"), 8 << 20, 1);
    File::create(stage.pair.on_a("empty"))
        .unwrap()
        .set_len(1 << 40)
        .unwrap();
    stage.rest();
    let cost = stage.away(|pair| {
        let punch = rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
        let full = File::options().write(true).open(pair.on_a("full")).unwrap();
        rustix::fs::fallocate(&full, punch, 1 << 20, 6 << 20).unwrap();
        scatter(&pair.on_a("empty"), 16, |n| n << 20, 9);
    });
    assert_eq!(cost.data, 16 * 4096, "{cost:?}");
    cost.at_most(16 * 4096);
    stage.pair.assert_identical();
    stage.pair.assert_same_space();
}

#[test]
fn a_file_that_is_cut_and_grows_again_has_no_old_data_in_it() {
    let mut stage = Stage::new(Options::default());
    write(&stage.pair.on_a("file"), 4 << 20, 1);
    stage.pair.wait_settled();
    let cost = stage.away(|pair| {
        let file = File::options().write(true).open(pair.on_a("file")).unwrap();
        file.set_len(5000).unwrap();
        file.set_len(3 << 20).unwrap();
    });
    // The block in which it was cut.
    cost.at_most(4096);
    stage.pair.assert_identical();
}
