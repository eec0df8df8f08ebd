//! Cut networks, with and without somebody who decides.

use std::path::{Path, PathBuf};
use std::time::Duration;

use harness::wait_until;

use crate::PATIENCE;
use crate::etcd::{says, with_etcd};
use crate::stage::{Machine, Stage};

fn shows(machine: &Machine, text: &str) {
    let shown = || machine.must(&["state"]).contains(text);
    assert!(wait_until(PATIENCE, shown), "{}", machine.must(&["state"]));
}

/// A file of this name, anywhere below a directory.
fn find(directory: &Path, name: &str) -> Option<PathBuf> {
    for entry in std::fs::read_dir(directory).ok()?.flatten() {
        let path = entry.path();
        if entry.file_name() == name {
            return Some(path);
        }
        if let Some(found) = find(&path, name) {
            return Some(found);
        }
    }
    None
}

#[test]
fn nodes_with_a_network_for_the_replication_keep_their_roles_when_the_other_one_is_cut() {
    let stage = Stage::with_two_networks("isolation=\"alone\"").run();
    stage.network.cut().unwrap();
    for machine in [&stage.a, &stage.b] {
        shows(machine, "lan net: lost");
        shows(machine, "lan replication: heartbeats");
    }
    // Longer than the timeout of the heartbeats.
    std::thread::sleep(Duration::from_secs(4));
    stage.a.works();
    assert!(stage.a.is("PRIM", "Ready") && stage.b.is("SECOND", "Ready"));
    stage.network.heal().unwrap();
    shows(&stage.b, "lan net: heartbeats");
    stage.a.works();
    assert_eq!((stage.a.starts(), stage.b.starts()), (1, 0));
    stage.assert_identical();
}

#[test]
fn nodes_without_their_network_for_the_replication_agree_which_one_goes_on() {
    let stage = Stage::with_two_networks("isolation=\"wait\"").run();
    stage.network.cut_second().unwrap();
    stage.a.wait("ALONE", "Ready");
    stage.a.works();
    assert_ne!(stage.b.state()["state"], "ALONE");
    let shown = stage.b.must(&["state"]);
    assert!(shown.contains("lan net: heartbeats"), "{shown}");
    stage.network.heal_second().unwrap();
    stage.b.wait("SECOND", "Ready");
    stage.a.wait("PRIM", "Ready");
    assert_eq!((stage.a.starts(), stage.b.starts()), (1, 0));
    stage.assert_identical();
}

#[test]
fn of_two_nodes_that_both_went_on_the_one_that_the_operator_names_follows_and_keeps_its_changes() {
    let stage = Stage::running("isolation=\"alone\"");
    let together = stage.a.acked();
    stage.network.cut().unwrap();
    stage.b.wait("ALONE", "Ready");
    stage.a.wait("ALONE", "Ready");
    assert!(stage.b.found() >= together);
    std::fs::write(stage.b.vm().join("only here"), "and nowhere else").unwrap();
    stage.a.works();
    stage.b.works();
    stage.network.heal().unwrap();
    // Nothing is merged, and nobody gives way, until the operator has said who does.
    for machine in [&stage.a, &stage.b] {
        shows(machine, "both nodes went on alone");
        machine.works();
        assert!(machine.is("ALONE", "Ready"));
    }
    let refused = stage.b.cli(&["second", "discard"]);
    assert!(
        refused.0 == 1 && refused.2.contains("stop it"),
        "{refused:?}"
    );
    // The drivers meet again and again; it is said once.
    let said = || {
        let log = stage.b.must(&["log", "-m", "vm"]);
        log.contains("both copies went on alone from")
    };
    assert!(wait_until(PATIENCE, said), "{}", stage.b.log());
    std::thread::sleep(Duration::from_secs(4));
    let log = stage.b.must(&["log", "-m", "vm"]);
    assert_eq!(
        log.matches("both copies went on alone from").count(),
        1,
        "{log}"
    );
    stage.b.must(&["stop"]);
    stage.b.wait("STOP", "NotReady");
    stage.b.must(&["second", "discard"]);
    stage.b.wait("SECOND", "Ready");
    stage.a.wait("PRIM", "Ready");
    stage.a.works();
    assert_eq!((stage.a.starts(), stage.b.starts()), (1, 1));
    assert!(!stage.a.vm().join("only here").exists());
    let archive = stage.b.data().parent().unwrap().join("archive");
    let kept = find(&archive, "only here").expect("it is in the archive");
    assert_eq!(std::fs::read(kept).unwrap(), b"and nowhere else");
    stage.assert_identical();
}

#[test]
fn separated_nodes_whose_witness_is_down_both_wait_until_it_answers() {
    let (stage, mut witness) = with_etcd();
    witness.stop();
    stage.network.cut().unwrap();
    for machine in [&stage.a, &stage.b] {
        says(machine, "the witness does not answer");
    }
    let held = stage.a.acked();
    std::thread::sleep(Duration::from_secs(2));
    assert!(stage.a.acked() <= held + 1, "it went on");
    assert_eq!(stage.b.starts(), 0);
    witness.start();
    let goes_on = |machine: &Machine| machine.is("ALONE", "Ready");
    let one = || goes_on(&stage.a) != goes_on(&stage.b);
    assert!(wait_until(PATIENCE, one), "{}", stage.a.log());
    let winner = [&stage.a, &stage.b].into_iter().find(|m| goes_on(m));
    let winner = winner.unwrap();
    winner.works();
    stage.network.heal().unwrap();
    winner.wait("PRIM", "Ready");
    let loser = [&stage.a, &stage.b]
        .into_iter()
        .find(|m| m.home() != winner.home());
    loser.unwrap().wait("SECOND", "Ready");
    winner.works();
    stage.assert_identical();
}
