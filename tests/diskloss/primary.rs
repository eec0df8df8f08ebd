//! The disk of the primary.

use std::fs::File;
use std::os::unix::fs::FileExt;

use harness::faulty::{ALL, Fate, Faults};
use harness::{Options, Pair, Role};

use crate::app::{self, App};
use crate::{expect, forget_pages, options, pair, write_known};

/// The application goes on over a fault of the primary's disk, is swapped to the peer,
/// and the repaired node comes back.
fn survives(name: &str, fault: impl Fn(&Pair) -> Faults) {
    survives_in("memory", name, fault);
}

/// The same in one of the modes of acknowledgement.
fn survives_in(ack: &'static str, name: &str, fault: impl Fn(&Pair) -> Faults) {
    let mut pair = Pair::with(Options { ack, ..options() });
    let app = App::start(&pair.a.mount());
    let fault = fault(&pair);
    pair.disk_a().fail(fault);
    expect(&pair.a, "the takeover", |s| {
        // What the application has just written is in no need of the disk.
        forget_pages(&pair.a.data());
        s["swap"] == "to-peer"
    });
    expect(&pair.b, "the takeover", |s| s["swap"] == "to-this-node");
    // Calls of every kind are carried out by the peer.
    app.go_on(60);
    let status = pair.a.status().unwrap();
    assert_eq!(status["link"], "at-peer", "{name}");
    assert!(status["disk_failure"].is_string(), "{name}: {status}");
    assert_eq!(status["up_to_date"], false, "{name}");
    assert_eq!(pair.b.status().unwrap()["serves_peer"], true, "{name}");
    let model = app.stop();
    app::check(&pair.a.mount(), &model);

    // The swap.
    assert!(pair.a.promote(true).is_err(), "{name}");
    assert!(pair.a.demote(true).is_err(), "{name}");
    pair.b.promote(false).unwrap();
    app::check(&pair.b.mount(), &model);
    let stale = std::fs::read_dir(pair.a.mount().join("app")).map(|all| all.count());
    assert!(stale.is_err(), "{name}: two mounts on one copy: {stale:?}");
    let more = App::start_again(&pair.b.mount(), &model);

    // The node that failed: its disk is sound again, and has what reached it.
    pair.cut_power(0, |_, _| Fate::Kept);
    assert!(pair.a.start(Role::Primary).is_err(), "{name}");
    pair.a.kill();
    pair.a.expect_log(0, "this copy is not up to date");
    pair.a.start(Role::Secondary).unwrap();
    pair.wait_paired();
    let model = more.stop();
    pair.assert_identical();
    app::check(&pair.b.mount(), &model);
}

#[test]
fn every_read_fails() {
    survives("reads", |_| Faults {
        reads: vec![ALL],
        ..Faults::default()
    });
}

#[test]
fn every_write_fails() {
    survives("writes", |_| Faults {
        writes: vec![ALL],
        ..Faults::default()
    });
}

#[test]
fn one_flush_fails() {
    survives("a flush", |_| Faults {
        flushes: 1,
        ..Faults::default()
    });
}

#[test]
fn everything_fails() {
    survives("everything", |_| Faults::everything());
}

#[test]
fn everything_fails_in_mode_disk() {
    survives_in("disk", "everything, mode disk", |_| Faults::everything());
}

#[test]
fn one_flush_fails_in_mode_disk() {
    survives_in("disk", "a flush, mode disk", |_| Faults {
        flushes: 1,
        ..Faults::default()
    });
}

#[test]
fn everything_fails_in_mode_flush() {
    survives_in("flush", "everything, mode flush", |_| Faults::everything());
}

#[test]
fn every_write_fails_in_mode_flush() {
    survives_in("flush", "writes, mode flush", |_| Faults {
        writes: vec![ALL],
        ..Faults::default()
    });
}

#[test]
fn a_disk_that_hangs_is_told_and_goes_on_when_it_comes_back() {
    let pair = pair();
    let app = App::start(&pair.a.mount());
    let from = pair.a.log_text().len();
    pair.disk_a().hold();
    pair.a.expect_log(from, "its disk hangs");
    expect(&pair.a, "the silence", |s| s["store_silent_s"].is_u64());
    assert!(
        pair.a.status().unwrap()["swap"].is_null(),
        "it may come back"
    );
    pair.disk_a().release();
    pair.a.expect_log(from, "the store answers again");
    app.go_on(40);
    assert!(pair.a.status().unwrap()["store_silent_s"].is_null());
    let model = app.stop();
    pair.wait_paired();
    app::check(&pair.a.mount(), &model);
    pair.assert_identical();
}

#[test]
fn a_disk_that_hangs_for_ever_costs_its_node_and_no_write() {
    let mut pair = pair();
    let known = write_known(&pair);
    let app = App::start(&pair.a.mount());
    let from = pair.a.log_text().len();
    pair.disk_a().hold();
    pair.a.expect_log(from, "run `promote` on the peer");
    pair.cut_power(0, |_, _| Fate::Kept);
    app.fails();
    pair.b.promote(false).unwrap();
    assert_eq!(std::fs::read(pair.on_b("known")).unwrap(), known);
    pair.a.start(Role::Secondary).unwrap();
    pair.wait_paired();
    pair.assert_identical();
}

/// What gives the disk its room has no more of it. The application was told that the write is
/// done, nobody asks for a sync of the file, and the kernel takes the page for written.
#[test]
fn what_the_disk_has_no_room_for_when_it_is_flushed_is_not_lost_with_the_peers_copy() {
    const LENGTH: usize = 1 << 20;
    let pair = pair();
    let path = pair.on_a("file");
    let file = File::create_new(&path).unwrap();
    file.write_all_at(&[1; LENGTH], 0).unwrap();
    file.sync_all().unwrap();
    pair.checkpoint();
    let copy = pair.a.data().join("file");
    pair.disk_a().fail(Faults {
        writes: pair.disk_a().places_of(&copy).unwrap(),
        full: true,
        ..Faults::default()
    });
    file.write_all_at(&[2; LENGTH], 0).unwrap();
    pair.checkpoint();
    expect(&pair.a, "the takeover", |s| s["swap"] == "to-peer");
    assert!(std::fs::read(path).unwrap() == [2; LENGTH]);
    pair.b.promote(false).unwrap();
    assert!(std::fs::read(pair.on_b("file")).unwrap() == [2; LENGTH]);
}
