//! A primary without a peer whose disk did not take some of a file's bytes: who wrote was
//! told, the disk is sound again, and the kernel shows bytes that the disk never got.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use harness::faulty::Faults;
use harness::{Pair, Role, read_quietly};

use crate::{expect, forget_pages_of, pair};

const LENGTH: usize = 1 << 20;

/// A is alone, and only its memory has the first half of a file as it was written last. Its disk
/// still does not take it.
fn written_in_memory() -> (Pair, PathBuf) {
    let mut pair = pair();
    let file = File::create(pair.on_a("file")).unwrap();
    file.write_all_at(&[1; LENGTH], 0).unwrap();
    file.sync_all().unwrap();
    pair.checkpoint();
    pair.b.stop().unwrap();
    expect(&pair.a, "the loss of the peer", |s| s["link"] == "alone");
    let copy = pair.a.data().join("file");
    pair.disk_a().fail(Faults {
        writes: pair.disk_a().places_of(&copy).unwrap(),
        ..Faults::default()
    });
    file.write_all_at(&[2; LENGTH / 2], 0).unwrap();
    file.sync_all().expect_err("the disk does not take it");
    assert!(read_quietly(&copy).unwrap()[..LENGTH / 2] == [2; LENGTH / 2]);
    (pair, copy)
}

/// Both disks have what the application saw all the time.
fn is_on_both_disks(pair: &Pair, copy: &PathBuf) {
    pair.wait_paired();
    pair.checkpoint();
    for copy in [copy, &pair.b.data().join("file")] {
        forget_pages_of(copy);
        let found = read_quietly(copy).unwrap();
        let expected = [[2; LENGTH / 2], [1; LENGTH / 2]].concat();
        assert!(found == expected, "{} has {}", copy.display(), found[0]);
    }
    pair.assert_identical();
    let status = pair.a.status().unwrap();
    assert!(status["swap"].is_null(), "{status}");
}

#[test]
fn what_only_its_memory_has_is_written_again_when_it_is_moved() {
    let (mut pair, copy) = written_in_memory();
    pair.disk_a().heal();
    pair.b.start(Role::Secondary).unwrap();
    is_on_both_disks(&pair, &copy);
}

#[test]
fn what_only_its_memory_has_is_written_again_when_it_is_compared_after_a_restart() {
    let (mut pair, copy) = written_in_memory();
    pair.disk_a().heal();
    pair.a.kill();
    pair.a.start(Role::Primary).unwrap();
    pair.b.start(Role::Secondary).unwrap();
    is_on_both_disks(&pair, &copy);
}

#[test]
fn what_only_its_memory_has_is_written_again_after_a_stop_in_order() {
    let (mut pair, copy) = written_in_memory();
    pair.disk_a().heal();
    for _ in 0..2 {
        pair.a.stop().unwrap();
        pair.a.start(Role::Primary).unwrap();
    }
    pair.b.start(Role::Secondary).unwrap();
    is_on_both_disks(&pair, &copy);
}

#[test]
fn what_a_disk_still_does_not_take_is_at_the_peer_that_takes_over_when_it_is_up_to_date() {
    let (mut pair, _) = written_in_memory();
    pair.b.start(Role::Secondary).unwrap();
    expect(&pair.a, "the takeover", |s| s["swap"] == "to-peer");
    let expected = [[2; LENGTH / 2], [1; LENGTH / 2]].concat();
    assert!(read_quietly(&pair.b.data().join("file")).unwrap() == expected);
    assert!(std::fs::read(pair.on_a("file")).unwrap() == expected);
}

/// Nobody has asked for a flush yet, so nobody knows; the peer has what was acknowledged.
#[test]
fn a_verify_does_not_repair_the_peer_from_a_disk_that_lost_a_write() {
    let pair = pair();
    let file = File::create(pair.on_a("file")).unwrap();
    file.write_all_at(&[1; LENGTH], 0).unwrap();
    file.sync_all().unwrap();
    let copy = pair.a.data().join("file");
    pair.disk_a().fail(Faults {
        writes: pair.disk_a().places_of(&copy).unwrap(),
        ..Faults::default()
    });
    file.write_all_at(&[2; LENGTH / 2], 0).unwrap();
    // As the kernel does it by itself sooner or later.
    let written_back = File::open(&copy).unwrap().sync_all();
    assert!(written_back.is_err(), "the disk does not take it");
    pair.disk_a().heal();
    let verified = pair.a.verify(&["--repair"]);
    expect(&pair.a, "the takeover", |s| s["swap"] == "to-peer");
    let kept = read_quietly(&pair.b.data().join("file")).unwrap();
    assert!(kept[..LENGTH / 2] == [2; LENGTH / 2], "{verified:?}");
}
