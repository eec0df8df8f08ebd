//! All processes of a node are killed, and the kernel of its machine lives: that is noticed by what
//! it says. Where the timeout is longer than anybody waits here, nothing else makes a node go on.

use std::net::TcpListener;
use std::time::Duration;

use harness::wait_until;

use crate::PATIENCE;
use crate::etcd::{before_it_runs, says};
use crate::stage::{Machine, Stage};

/// More than anybody waits.
const LONG: &str = "<heart timeout=\"600s\"/>";

/// What a node says of a peer without processes.
const GONE: &str = "its daemon and its driver have died";

/// What its driver says to the peer's when the controller has it let go of the connection.
const LET_GO: &str = "the controller knows that the peer is gone";

/// Longer than the silence of a moment, and until a driver that was let go would be noticed.
const A_WHILE: Duration = Duration::from_secs(3);

/// How long a daemon may take to call the peer's driver when the two are together, of which it
/// tells nothing. Who was not called before it dies is missed after the timeout only.
const CALLED: Duration = Duration::from_secs(1);

fn log(machine: &Machine) -> String {
    machine.must(&["log", "-m", "vm"])
}

/// What the driver of a machine said.
fn driver_log(machine: &Machine) -> String {
    std::fs::read_to_string(machine.home().join("log/vm/driver.log")).unwrap()
}

/// The primary serves and the secondary follows, whichever of the two it is; that is returned.
fn together(stage: &Stage) -> usize {
    let all = [&stage.a, &stage.b];
    let mut primary = None;
    let found = wait_until(PATIENCE, || {
        primary = (0..2).find(|n| all[*n].is("PRIM", "Ready") && all[1 - *n].is("SECOND", "Ready"));
        primary.is_some()
    });
    assert!(found, "{}", stage.a.log());
    all[primary.unwrap()].works();
    primary.unwrap()
}

/// The same, and each daemon has called the other one's driver.
fn acquainted(stage: &Stage) -> usize {
    let primary = together(stage);
    std::thread::sleep(CALLED);
    primary
}

fn machine(stage: &mut Stage, number: usize) -> &mut Machine {
    match number {
        0 => &mut stage.a,
        _ => &mut stage.b,
    }
}

#[test]
fn a_secondary_goes_on_without_a_timeout_when_all_processes_of_the_primarys_node_are_killed() {
    let (stage, _witness) = before_it_runs("2s", LONG);
    let mut stage = stage.run();
    // One of the two nodes dials, the other one listens; each is killed once.
    for dies in 0..2 {
        assert_eq!(acquainted(&stage), dies);
        machine(&mut stage, dies).kill_everything();
        let all = [&stage.a, &stage.b];
        let goes_on = all[1 - dies];
        goes_on.wait("ALONE", "Ready");
        says(goes_on, GONE);
        says(goes_on, "the witness lets this node go on");
        goes_on.assert_found_all_of(all[dies]);
        goes_on.works();
        machine(&mut stage, dies).start_daemon();
    }
    assert_eq!(together(&stage), 0);
    stage.assert_identical();
}

#[test]
fn a_primary_goes_on_without_a_timeout_when_all_processes_of_the_secondarys_node_are_killed() {
    let mut stage = Stage::with("isolation=\"alone\"", |_| LONG.into()).run();
    acquainted(&stage);
    stage.b.kill_everything();
    stage.a.wait("ALONE", "Ready");
    says(&stage.a, GONE);
    stage.a.works();
    stage.b.start_daemon();
    assert_eq!(together(&stage), 0);
    assert_eq!((stage.a.starts(), stage.b.starts()), (1, 0));
    stage.assert_identical();
}

#[test]
fn where_a_silent_peer_is_waited_for_one_without_processes_is_so_too() {
    let mut stage = Stage::with("isolation=\"wait\"", |_| LONG.into()).run();
    acquainted(&stage);
    stage.a.kill_everything();
    says(&stage.b, GONE);
    says(&stage.b, "isolated, and the configuration says to wait");
    stage.b.wait("WAIT", "NotReady");
    assert_eq!(stage.b.starts(), 0);
    stage.a.start_daemon();
    says(&stage.b, "heard again");
    together(&stage);
    stage.assert_identical();
}

#[test]
fn a_daemon_that_is_killed_alone_neither_moves_the_application_nor_costs_it_the_connection() {
    let mut stage = Stage::with("isolation=\"alone\"", |_| LONG.into()).run();
    for dies in 0..2 {
        machine(&mut stage, dies).kill_daemon();
        std::thread::sleep(A_WHILE);
        stage.a.works();
        let all = [&stage.a, &stage.b];
        let (state, other) = [("SECOND", all[1]), ("PRIM", all[0])][dies];
        assert!(other.is(state, "Ready"), "{}", other.log());
        assert!(!log(other).contains(GONE), "{}", other.log());
        machine(&mut stage, dies).start_daemon();
        assert_eq!(together(&stage), 0);
        for machine in [&stage.a, &stage.b] {
            assert!(!driver_log(machine).contains(LET_GO));
        }
    }
    assert_eq!((stage.a.starts(), stage.b.starts()), (1, 0));
    stage.assert_identical();
}

#[test]
fn a_driver_that_dies_after_its_daemon_is_noticed_then() {
    let mut stage = Stage::with("isolation=\"alone\"", |_| LONG.into()).run();
    stage.a.kill_daemon();
    std::thread::sleep(A_WHILE);
    assert!(!log(&stage.b).contains(GONE), "{}", stage.b.log());
    stage.a.works();
    stage.a.kill_everything();
    stage.b.wait("ALONE", "Ready");
    says(&stage.b, GONE);
    stage.b.assert_found_all_of(&stage.a);
    stage.a.start_daemon();
    assert_eq!(together(&stage), 1);
    stage.assert_identical();
}

#[test]
fn processes_that_are_killed_and_started_again_at_once_leave_one_that_serves() {
    let (stage, _witness) = before_it_runs("2s", LONG);
    let mut stage = stage.run();
    for _ in 0..4 {
        let primary = together(&stage);
        let dies = machine(&mut stage, primary);
        dies.kill_everything();
        let acked = dies.acked();
        dies.start_daemon();
        let serves = together(&stage);
        assert!([&stage.a, &stage.b][serves].found() >= acked);
    }
    stage.assert_identical();
}

#[test]
fn a_network_that_rejects_is_decided_as_one_that_is_silent() {
    let stage = Stage::with("isolation=\"wait\"", |_| LONG.into()).run();
    acquainted(&stage);
    stage.network.reject(1, false).unwrap();
    says(&stage.b, GONE);
    says(&stage.b, "isolated, and the configuration says to wait");
    stage.b.wait("WAIT", "NotReady");
    stage.network.accept(1, false).unwrap();
    assert_eq!(together(&stage), 0);
    assert_eq!((stage.a.starts(), stage.b.starts()), (1, 0));
    stage.assert_identical();
}

#[test]
fn of_nodes_whose_network_rejects_the_witness_lets_one_go_on() {
    let (stage, _witness) = before_it_runs("2s", LONG);
    let stage = stage.run();
    acquainted(&stage);
    stage.network.reject(1, false).unwrap();
    stage.b.wait("ALONE", "Ready");
    stage.b.assert_found_all_of(&stage.a);
    for _ in 0..3 {
        stage.b.works();
    }
    // A's was told nothing of its own since, though it may note late what it was told last.
    stage.b.assert_found_all_of(&stage.a);
    stage.network.accept(1, false).unwrap();
    assert_eq!(together(&stage), 1);
    stage.assert_identical();
}

#[test]
fn a_network_that_rejects_says_nothing_while_the_peer_is_heard_on_another_one() {
    let stage = Stage::with_two_networks_and("isolation=\"alone\"", LONG).run();
    stage.network.reject(1, false).unwrap();
    let lost = || stage.b.must(&["state"]).contains("lan net: lost");
    assert!(wait_until(PATIENCE, lost));
    std::thread::sleep(A_WHILE);
    stage.a.works();
    assert!(stage.a.is("PRIM", "Ready") && stage.b.is("SECOND", "Ready"));
    stage.network.accept(1, false).unwrap();
    let heard = || stage.b.must(&["state"]).contains("lan net: heartbeats");
    assert!(wait_until(PATIENCE, heard));
    // The drivers' network: their daemons talk it over on the other one.
    stage.network.reject(1, true).unwrap();
    stage.a.wait("ALONE", "Ready");
    stage.a.works();
    assert_ne!(stage.b.state()["state"], "ALONE");
    stage.network.accept(1, true).unwrap();
    assert_eq!(together(&stage), 0);
    for machine in [&stage.a, &stage.b] {
        assert!(!log(machine).contains(GONE), "{}", machine.log());
    }
    assert_eq!((stage.a.starts(), stage.b.starts()), (1, 0));
    stage.assert_identical();
}

/// Takes a port of a machine, as any process there can that comes first.
fn take(stage: &Stage, end: usize, port: u16) -> TcpListener {
    let namespace = stage.network.namespace(end).unwrap();
    let host = stage.network.address(end).ip();
    let taken = harness::inside(&namespace, move || TcpListener::bind((host, port)));
    taken.unwrap().unwrap()
}

#[test]
fn a_port_of_a_dead_daemon_that_another_process_takes_leaves_it_to_the_timeout() {
    let mut stage = Stage::running("isolation=\"alone\"");
    stage.a.kill_daemon();
    let _taken = take(&stage, 0, 4800);
    stage.a.works();
    stage.a.kill_driver();
    stage.b.wait("ALONE", "Ready");
    says(&stage.b, "no heartbeat on any network");
    assert!(!log(&stage.b).contains(GONE), "{}", stage.b.log());
    stage.b.assert_found_all_of(&stage.a);
}

#[test]
fn a_port_that_another_process_took_before_the_driver_says_nothing_of_it() {
    let stage = Stage::with("isolation=\"alone\"", |_| LONG.into());
    let taken = take(&stage, 0, stage.network.address(0).port());
    let mut stage = stage.run();
    stage.a.kill_daemon();
    drop(taken);
    std::thread::sleep(A_WHILE);
    stage.a.works();
    assert!(stage.b.is("SECOND", "Ready"), "{}", stage.b.log());
    assert!(!driver_log(&stage.a).contains(LET_GO));
    stage.a.start_daemon();
    assert_eq!(together(&stage), 0);
    assert_eq!((stage.a.starts(), stage.b.starts()), (1, 0));
    stage.assert_identical();
}

#[test]
fn a_module_that_is_stopped_before_its_daemon_has_not_died() {
    let mut stage = Stage::with("isolation=\"alone\"", |_| LONG.into()).run();
    stage.a.must(&["stop"]);
    stage.b.wait("ALONE", "Ready");
    stage.b.assert_found_all_of(&stage.a);
    stage.a.end_daemon();
    std::thread::sleep(A_WHILE);
    stage.b.works();
    assert!(!log(&stage.b).contains(GONE), "{}", stage.b.log());
}
