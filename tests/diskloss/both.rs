//! Both disks: the application is told, and nobody pretends.

use harness::faulty::{ALL, Faults};
use harness::{Pair, Role};

use crate::app::App;
use crate::{PATIENCE, expect, lose_disk_a, pair, patient, write_known};

#[test]
fn without_a_peer_that_is_up_to_date_the_application_is_told() {
    let pair = pair();
    let app = App::start(&pair.a.mount());
    pair.disk_b().fail(Faults {
        writes: vec![ALL],
        ..Faults::default()
    });
    expect(&pair.a, "the loss of the peer", |s| s["link"] == "alone");
    app.go_on(5);
    let from = pair.a.log_text().len();
    pair.disk_a().fail(Faults::everything());
    app.fails();
    pair.a
        .expect_log(from, "there is no peer that is up to date");
    assert!(pair.a.status().unwrap()["disk_failure"].is_string());
    assert!(pair.a.status().unwrap()["swap"].is_null());
}

#[test]
fn a_peer_that_fails_as_it_takes_over_leaves_an_application_that_is_told() {
    let pair = pair();
    let app = App::start(&pair.a.mount());
    for disk in [pair.disk_a(), pair.disk_b()] {
        disk.fail(Faults {
            flushes: u64::MAX,
            ..Faults::default()
        });
    }
    app.fails();
    assert!(pair.a.status().unwrap()["swap"].is_null());
    assert_eq!(pair.b.status().unwrap()["serves_peer"], false);
}

#[test]
fn a_peer_whose_disk_takes_no_note_says_once_what_to_do() {
    let pair = pair();
    let app = App::start(&pair.a.mount());
    pair.disk_b().fail(Faults {
        writes: vec![ALL],
        flushes: u64::MAX,
        ..Faults::default()
    });
    expect(&pair.b, "the advice", |s| {
        s["trouble"].as_str().is_some_and(|t| t.contains("repair"))
    });
    expect(&pair.a, "the loss of the peer", |s| s["link"] == "alone");
    app.go_on(20);
    assert_eq!(pair.b.status().unwrap()["up_to_date"], false);
    // However often it comes.
    let reason = "cannot note that this copy is not up to date";
    let refused = || pair.a.log_text().matches(reason).count();
    assert!(harness::wait_until(PATIENCE, || refused() >= 3));
    let said = pair.b.log_text().matches(reason).count();
    assert_eq!(said, 1, "{}", pair.b.last_words());
    app.stop();
}

#[test]
fn a_peer_that_is_gone_when_it_is_asked_leaves_an_application_that_is_told() {
    let mut pair = Pair::with(patient());
    let known = write_known(&pair);
    let app = App::start(&pair.a.mount());
    pair.b.kill();
    let read = lose_disk_a(&pair);
    app.fails();
    assert!(read.join().unwrap().is_err());
    assert!(std::fs::read(pair.on_a("known")).is_err());
    assert!(pair.a.status().unwrap()["swap"].is_null());

    // Its copy is not given up for the one that failed.
    pair.b.start(Role::Secondary).unwrap();
    expect(&pair.b, "the advice", |s| {
        s["trouble"].as_str().is_some_and(|t| t.contains("promote"))
    });
    assert_eq!(pair.b.status().unwrap()["up_to_date"], true);
    pair.a.kill();
    pair.b.promote(true).unwrap();
    assert_eq!(std::fs::read(pair.on_b("known")).unwrap(), known);
}
