//! What a configuration wishes: who serves, who does not take over by itself, who has to be ended.

use harness::wait_until;

use crate::PATIENCE;
use crate::stage::{Machine, Stage, executable};

#[test]
fn the_preferred_node_serves_as_soon_as_it_is_equal_again() {
    let mut stage = Stage::new("defaultprim=\"b\" isolation=\"alone\"");
    // Whose copy is the good one is another question.
    stage.a.must(&["prim"]);
    stage.b.must(&["second"]);
    let b_serves = |stage: &Stage| {
        stage.b.wait("PRIM", "Ready");
        stage.a.wait("SECOND", "Ready");
        stage.b.works();
        stage.b.assert_found_all_of(&stage.a);
    };
    b_serves(&stage);
    assert_eq!((stage.a.starts(), stage.b.starts()), (1, 1));
    // It is lost, and returns.
    stage.b.kill_everything();
    stage.a.wait("ALONE", "Ready");
    stage.a.assert_found_all_of(&stage.b);
    stage.a.works();
    stage.b.start_daemon();
    b_serves(&stage);
    assert_eq!((stage.a.starts(), stage.b.starts()), (2, 2));
    // It is stopped, and its copy is the older one when both start.
    stage.b.must(&["stop"]);
    stage.b.wait("STOP", "NotReady");
    stage.a.wait("ALONE", "Ready");
    stage.a.assert_found_all_of(&stage.b);
    stage.a.works();
    stage.a.must(&["stop"]);
    stage.a.wait("STOP", "NotReady");
    for machine in [&stage.b, &stage.a] {
        machine.must(&["start"]);
    }
    b_serves(&stage);
    assert_eq!(stage.b.starts(), 3);
    stage.assert_identical();
}

/// B waits for the operator, who has said that it does not take over by itself.
fn waits_for_the_operator(stage: &Stage) {
    let waits = || {
        let now = stage.b.state();
        now["state"] == "WAIT" && now["reason"].as_str().unwrap().contains("failover")
    };
    assert!(wait_until(PATIENCE, waits), "{}", stage.b.state());
    assert_eq!(stage.b.starts(), 0);
}

#[test]
fn without_failover_a_secondary_serves_when_the_operator_says_so_and_not_before() {
    let mut stage = Stage::running("failover=\"off\" isolation=\"alone\"");
    // Its driver died, or it is stopped in order: it serves again, and nobody else did.
    stage.a.kill_driver();
    let again = || stage.a.starts() == 2 && stage.a.is("PRIM", "Ready");
    assert!(wait_until(PATIENCE, again), "{}", stage.a.log());
    stage.b.wait("SECOND", "Ready");
    stage.a.must(&["stop"]);
    stage.a.wait("STOP", "NotReady");
    waits_for_the_operator(&stage);
    stage.a.must(&["start"]);
    stage.a.wait("PRIM", "Ready");
    stage.b.wait("SECOND", "Ready");
    assert_eq!((stage.a.starts(), stage.b.starts()), (3, 0));
    stage.a.works();
    // It is lost.
    stage.a.kill_everything();
    waits_for_the_operator(&stage);
    stage.b.must(&["prim"]);
    stage.b.wait("ALONE", "Ready");
    stage.b.assert_found_all_of(&stage.a);
    stage.b.works();
    stage.a.start_daemon();
    stage.a.wait("SECOND", "Ready");
    stage.b.wait("PRIM", "Ready");
    assert_eq!((stage.a.starts(), stage.b.starts()), (3, 1));
    stage.assert_identical();
}

/// A fence command that hangs, with all it has started, until it can do what it is asked for.
const HANGS: &str = r#"#!/bin/sh
echo $$ >>"$HOME_OF_TEST/fences"
[ -e "$HOME_OF_TEST/can" ] && exit 0
sleep 1000 &
echo $! >>"$HOME_OF_TEST/fences"
wait
"#;

#[test]
fn a_fence_command_that_hangs_is_ended_and_nobody_goes_on_until_one_succeeds() {
    let command = |home: &std::path::Path| home.join("fence.sh");
    let mut stage = Stage::with("", |home| {
        executable(&command(home), HANGS);
        let command = command(home).display().to_string();
        format!("<fence command=\"{command}\" timeout=\"2s\"/>")
    })
    .run();
    stage.a.freeze(true);
    let told = |machine: &Machine, text: &str| machine.must(&["log"]).contains(text);
    let ended = || told(&stage.b, "could not be ended") && told(&stage.b, "not end within 2 s");
    assert!(wait_until(PATIENCE, ended), "{}", stage.b.log());
    let fences = stage.b.home().join("fences");
    let began = || {
        let text = std::fs::read_to_string(&fences).unwrap_or_default();
        text.lines().map(str::to_owned).collect::<Vec<_>>()
    };
    // It is tried again.
    let count = began().len();
    let again = || began().len() >= count + 2;
    assert!(wait_until(PATIENCE, again), "{:?}", began());
    assert_eq!(stage.b.starts(), 0);
    assert_ne!(stage.b.state()["state"], "ALONE");
    stage.a.kill_everything();
    std::fs::write(stage.b.home().join("can"), "").unwrap();
    stage.b.wait("ALONE", "Ready");
    stage.b.assert_found_all_of(&stage.a);
    stage.b.works();
    // Nothing is left of those that hung.
    let all = began().join(" ");
    let look = format!("for p in {all}; do kill -0 $p 2>/dev/null && echo $p; done; true");
    let gone = || stage.b.inside(&look).is_empty();
    assert!(wait_until(PATIENCE, gone), "{}", stage.b.inside("ps ax"));
    stage.a.start_daemon();
    stage.a.wait("SECOND", "Ready");
    stage.b.wait("PRIM", "Ready");
    assert_eq!((stage.a.starts(), stage.b.starts()), (1, 1));
    stage.assert_identical();
}
