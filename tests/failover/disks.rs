//! A node that lives and whose disk does not work.

use harness::faulty::Faults;
use harness::wait_until;

use crate::PATIENCE;
use crate::etcd::says;
use crate::stage::Stage;

#[test]
fn the_application_moves_to_the_node_that_took_over_from_a_failed_disk() {
    let stage = Stage::with_disk(0, "isolation=\"wait\"", |_| String::new()).run();
    stage.disk().fail(Faults::everything());
    let started = || stage.b.starts() == 1;
    assert!(
        wait_until(PATIENCE, started),
        "{}{}",
        stage.a.log(),
        stage.b.log()
    );
    stage.b.assert_found_all_of(&stage.a);
    stage.b.wait("ALONE", "Ready");
    stage.b.works();
    assert_eq!(stage.a.starts(), 1);
}

#[test]
fn it_also_moves_when_the_node_with_the_failed_disk_is_lost_before() {
    let recent = "<rfs syncdelta=\"10m\"><replicated dir=\"%HOME_OF_TEST%/disk/vm\"/></rfs>";
    let service = "isolation=\"wait\" failover=\"off\"";
    let mut stage = Stage::with_disk(0, service, |_| recent.into()).run();
    let equal_at = || stage.a.memory()["equal_at"].as_u64();
    assert!(wait_until(PATIENCE, || equal_at() > Some(0)));
    stage.disk().fail(Faults::everything());
    says(&stage.b, "this node has the data");
    stage.a.works();
    // Should the disk come back with what was on it, that is not recent.
    assert!(wait_until(PATIENCE, || equal_at() == Some(0)));
    stage.a.kill_everything();
    // As long as the other one is taken to serve, this one follows it.
    stage.b.wait("WAIT", "NotReady");
    stage.b.must(&["prim"]);
    stage.b.wait("ALONE", "Ready");
    stage.b.assert_found_all_of(&stage.a);
    stage.b.works();
}

#[test]
fn a_peer_that_is_heard_while_its_disk_hangs_costs_a_timeout() {
    let stage = Stage::with_disk(1, "isolation=\"alone\"", |_| String::new()).run();
    stage.disk().hold();
    stage.a.wait("ALONE", "Ready");
    for _ in 0..3 {
        stage.a.works();
    }
    says(&stage.a, "was asked to give way, and does not answer");
    assert_eq!((stage.a.starts(), stage.b.starts()), (1, 0));
    stage.disk().release();
    stage.b.wait("SECOND", "Ready");
    stage.a.wait("PRIM", "Ready");
    stage.assert_identical();
}
