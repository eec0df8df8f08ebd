//! What one node's outage, its daemon's upgrade and exchanged roles are to an application that
//! writes without pause: nothing.

use crate::etcd::{says, with_etcd};
use crate::stage::Stage;

#[test]
fn the_application_goes_on_through_a_power_outage_of_the_secondary() {
    let mut stage = Stage::running("isolation=\"alone\"");
    stage.b.kill_everything();
    stage.a.wait("ALONE", "Ready");
    stage.a.works();
    stage.b.start_daemon();
    stage.b.wait("SECOND", "Ready");
    stage.a.wait("PRIM", "Ready");
    stage.a.works();
    assert_eq!((stage.a.starts(), stage.b.starts()), (1, 0));
    stage.assert_identical();
}

#[test]
fn roles_that_are_exchanged_again_and_again_lose_nothing_of_what_is_written_meanwhile() {
    let stage = Stage::running("isolation=\"wait\"");
    let nodes = [&stage.a, &stage.b];
    for n in 0..4 {
        let (from, to) = (nodes[n % 2], nodes[(n + 1) % 2]);
        // Whichever of the two is asked.
        nodes[n / 2].must(&["swap"]);
        to.wait("PRIM", "Ready");
        to.assert_found_all_of(from);
        from.wait("SECOND", "Ready");
        to.works();
    }
    assert_eq!((stage.a.starts(), stage.b.starts()), (3, 2));
    stage.assert_identical();
}

#[test]
fn an_upgrade_replaces_the_daemon_of_each_node_and_the_application_does_not_notice() {
    let mut stage = Stage::running("isolation=\"wait\"");
    let drivers = [stage.a.driver(), stage.b.driver()];
    for machine in [&mut stage.a, &mut stage.b] {
        machine.own_program();
        machine.end_daemon();
        machine.start_daemon();
    }
    stage.a.works();
    // The program is replaced while the old one runs, and a driver has to be started then.
    stage.b.replace_program();
    stage.b.kill_driver();
    stage.b.wait("SECOND", "Ready");
    stage.a.wait("PRIM", "Ready");
    stage.a.replace_program();
    for machine in [&mut stage.a, &mut stage.b] {
        machine.end_daemon();
        machine.start_daemon();
    }
    stage.a.wait("PRIM", "Ready");
    stage.b.wait("SECOND", "Ready");
    stage.a.works();
    assert_eq!(stage.a.driver(), drivers[0]);
    assert_ne!(stage.b.driver(), drivers[1]);
    assert_eq!((stage.a.starts(), stage.b.starts()), (1, 0));
    stage.assert_identical();
}

/// What a node says of a peer whose kernel tells that it has no processes any more.
const TOLD: &str = "its daemon and its driver have died";

/// A's machine loses its power: its kernel says nothing of it either, to nobody.
fn is_silent_from_now_on(stage: &mut Stage) {
    stage.a.freeze(true);
    stage.network.cut().unwrap();
    stage.a.kill_everything();
}

/// B goes on when A was silent for the timeout; and A follows when it is back.
fn goes_on_after_the_timeout(stage: Stage) {
    let mut stage = stage;
    stage.b.wait("ALONE", "Ready");
    says(&stage.b, "no heartbeat on any network");
    let log = stage.b.must(&["log", "-m", "vm"]);
    assert!(!log.contains(TOLD), "{log}");
    stage.b.assert_found_all_of(&stage.a);
    stage.b.works();
    stage.network.heal().unwrap();
    stage.a.reboot();
    stage.a.must(&["start"]);
    stage.a.wait("SECOND", "Ready");
    stage.b.wait("PRIM", "Ready");
    stage.b.works();
    assert_eq!((stage.a.starts(), stage.b.starts()), (1, 1));
    stage.assert_identical();
}

#[test]
fn a_power_outage_of_which_no_kernel_tells_is_decided_by_the_witness_after_the_timeout() {
    let (mut stage, witness) = with_etcd();
    is_silent_from_now_on(&mut stage);
    stage.network.unreachable(witness.network(), 0).unwrap();
    says(&stage.b, "the witness lets this node go on");
    goes_on_after_the_timeout(stage);
}

#[test]
fn a_power_outage_of_which_no_kernel_tells_is_survived_where_a_node_may_go_on_alone() {
    let mut stage = Stage::running("isolation=\"alone\"");
    is_silent_from_now_on(&mut stage);
    goes_on_after_the_timeout(stage);
}
