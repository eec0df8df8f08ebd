//! The disk of the primary.

use harness::faulty::{ALL, Fate, Faults};
use harness::{Pair, Role};

use crate::app::{self, App};
use crate::{expect, forget_pages, pair};

/// The application goes on over a fault of the primary's disk, is swapped to the peer,
/// and the repaired node comes back.
fn survives(name: &str, fault: impl Fn(&Pair) -> Faults) {
    let mut pair = pair();
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
