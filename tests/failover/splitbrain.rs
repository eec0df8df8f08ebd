//! Addresses outside decide, by echoes, which of two separated nodes goes on.

use std::fs::File;
use std::time::Duration;

use harness::{Network, wait_until};

use crate::PATIENCE;
use crate::stage::{Machine, Stage};

/// Two nodes that work, and a third machine that answers both; nobody has the other address.
fn with_witness() -> (Stage, File) {
    let ends = std::cell::Cell::new(0);
    let stage = Stage::with("", |_| {
        let end = ends.replace(ends.get() + 1);
        format!(
            "<check><splitbrain ident=\"router\" exec=\"ping\" arg=\"10.99.0.1,{}\"/></check>",
            Network::witness_address(end)
        )
    });
    let third = stage.network.witness().unwrap();
    (stage.run(), third)
}

fn says(machine: &Machine, text: &str) {
    let said = || machine.must(&["log", "-m", "vm"]).contains(text);
    assert!(wait_until(PATIENCE, said), "{}", machine.log());
}

#[test]
fn of_two_separated_nodes_the_one_that_reaches_the_witness_goes_on() {
    let (stage, third) = with_witness();
    stage.network.unreachable(&third, 0).unwrap();
    stage.network.cut().unwrap();
    stage.b.wait("ALONE", "Ready");
    stage.b.assert_found_all_of(&stage.a);
    stage.b.works();
    says(&stage.a, "the witness is not reached");
    stage.a.wait("WAIT", "NotReady");
    assert_eq!(stage.a.state()["resources"]["splitbrain.router"], "down");
    assert_eq!(stage.b.state()["resources"]["splitbrain.router"], "up");
    let held = stage.a.acked();
    for _ in 0..3 {
        stage.b.works();
    }
    assert_eq!(stage.a.acked(), held, "both went on");
    // It looks for the witness again and again, and shows that.
    stage.a.wait("WAIT", "NotReady");
    stage.network.heal().unwrap();
    stage.b.wait("PRIM", "Ready");
    stage.a.wait("SECOND", "Ready");
    stage.b.works();
    stage.assert_identical();
}

#[test]
fn who_follows_and_does_not_reach_the_witness_waits() {
    let (stage, third) = with_witness();
    stage.network.unreachable(&third, 1).unwrap();
    stage.network.cut().unwrap();
    stage.a.wait("ALONE", "Ready");
    stage.b.wait("WAIT", "NotReady");
    says(&stage.a, "so does the peer, if it lives");
    stage.a.works();
    assert_eq!(stage.a.starts(), 1);
    assert_eq!(stage.b.starts(), 0);
    stage.network.heal().unwrap();
    stage.b.wait("SECOND", "Ready");
    stage.a.wait("PRIM", "Ready");
    stage.assert_identical();
}

#[test]
fn a_node_that_reaches_nobody_holds_until_the_witness_is_back() {
    let (mut stage, third) = with_witness();
    stage.network.unreachable(&third, 0).unwrap();
    stage.b.kill_everything();
    says(&stage.a, "the witness is not reached");
    let held = stage.a.acked();
    std::thread::sleep(Duration::from_secs(2));
    assert!(stage.a.acked() <= held + 1, "it goes on");
    stage.network.reachable(&third, 0).unwrap();
    stage.a.wait("ALONE", "Ready");
    stage.a.works();
    stage.b.start_daemon();
    stage.b.wait("SECOND", "Ready");
    stage.assert_identical();
}
