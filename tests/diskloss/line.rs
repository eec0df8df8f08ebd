//! The line between the nodes, while or after the peer takes over.

use std::fs;

use harness::faulty::Fate;
use harness::{Options, Pair, Role};

use crate::app::{self, App};
use crate::{expect, lose_disk_a, patient, write_known};

fn pair() -> Pair {
    Pair::with(Options {
        apart: true,
        ..patient()
    })
}

/// The application is swapped over, and the repaired node comes back.
fn swap_and_repair(pair: &mut Pair) {
    pair.b.promote(false).unwrap();
    pair.cut_power(0, |_, _| Fate::Kept);
    pair.a.start(Role::Secondary).unwrap();
    pair.wait_paired();
    pair.assert_identical();
}

#[test]
fn a_line_that_is_cut_as_the_peer_is_asked_is_waited_for() {
    let mut pair = pair();
    let known = write_known(&pair);
    let app = App::start(&pair.a.mount());
    pair.network().cut().unwrap();
    let read = lose_disk_a(&pair);
    expect(&pair.a, "the question", |s| s["link"] == "handing-over");
    pair.network().heal().unwrap();
    expect(&pair.a, "the takeover", |s| s["swap"] == "to-peer");
    assert_eq!(read.join().unwrap().unwrap(), known);
    app.go_on(40);
    let model = app.stop();
    app::check(&pair.a.mount(), &model);
    swap_and_repair(&mut pair);
    app::check(&pair.b.mount(), &model);
}

#[test]
fn a_line_that_comes_back_too_late_ends_in_a_takeover_all_the_same() {
    let mut pair = pair();
    let known = write_known(&pair);
    let app = App::start(&pair.a.mount());
    pair.network().cut().unwrap();
    let read = lose_disk_a(&pair);
    app.fails();
    assert!(read.join().unwrap().is_err());
    assert!(pair.a.status().unwrap()["swap"].is_null());
    pair.network().heal().unwrap();
    expect(&pair.a, "the takeover", |s| s["swap"] == "to-peer");
    expect(&pair.a, "the end of the trouble", |s| {
        s["trouble"].is_null()
    });
    goes_on(&pair, &known);
    swap_and_repair(&mut pair);
    assert_eq!(fs::read(pair.on_b("later")).unwrap(), known);
}

#[test]
fn a_line_that_is_cut_after_the_takeover_leaves_an_application_that_is_told() {
    let mut pair = pair();
    let known = write_known(&pair);
    let app = App::start(&pair.a.mount());
    let read = lose_disk_a(&pair);
    expect(&pair.a, "the takeover", |s| s["swap"] == "to-peer");
    app.go_on(20);
    assert_eq!(read.join().unwrap().unwrap(), known);
    pair.network().cut().unwrap();
    app.fails();
    assert!(fs::read(pair.on_a("known")).is_err());
    pair.network().heal().unwrap();
    goes_on(&pair, &known);
    swap_and_repair(&mut pair);
    assert_eq!(fs::read(pair.on_b("later")).unwrap(), known);
}

#[test]
fn a_line_that_is_cut_for_a_moment_after_the_takeover_is_not_noticed() {
    let mut pair = pair();
    write_known(&pair);
    let app = App::start(&pair.a.mount());
    let read = lose_disk_a(&pair);
    expect(&pair.a, "the takeover", |s| s["swap"] == "to-peer");
    app.go_on(20);
    pair.network().cut().unwrap();
    // Longer than it takes to be noticed, shorter than what calls wait.
    std::thread::sleep(std::time::Duration::from_secs(4));
    pair.network().heal().unwrap();
    app.go_on(40);
    let model = app.stop();
    read.join().unwrap().unwrap();
    swap_and_repair(&mut pair);
    app::check(&pair.b.mount(), &model);
}

/// It still flushes when nobody waits for its answer any more, and never will.
#[test]
fn a_peer_that_takes_over_when_the_failed_node_has_ended_can_be_promoted() {
    let mut pair = Pair::with(patient());
    let known = write_known(&pair);
    pair.disk_b().hold();
    let read = lose_disk_a(&pair);
    expect(&pair.a, "the question", |s| s["link"] == "handing-over");
    pair.a.kill();
    assert!(read.join().unwrap().is_err());
    expect(&pair.b, "the loss of the primary", |s| {
        s["link"] == "waiting"
    });
    pair.disk_b().release();
    expect(&pair.b, "the takeover", |s| s["role"] == "primary");
    pair.b.promote(false).unwrap();
    assert_eq!(fs::read(pair.on_b("known")).unwrap(), known);
    fs::write(pair.on_b("later"), &known).unwrap();
    pair.cut_power(0, |_, _| Fate::Kept);
    pair.a.start(Role::Secondary).unwrap();
    pair.wait_paired();
    pair.assert_identical();
}

/// What comes from now on is carried out by the peer.
fn goes_on(pair: &Pair, known: &[u8]) {
    let came = harness::wait_until(crate::PATIENCE, || fs::read(pair.on_a("known")).is_ok());
    assert!(came, "{}", pair.a.last_words());
    assert_eq!(fs::read(pair.on_a("known")).unwrap(), known);
    fs::write(pair.on_a("later"), known).unwrap();
    fs::File::open(pair.on_a("later"))
        .unwrap()
        .sync_all()
        .unwrap();
}
