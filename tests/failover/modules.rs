//! Modules of two real daemons: roles, failover, and what survives what.

use std::time::Duration;

use harness::wait_until;

use crate::PATIENCE;
use crate::stage::{Machine, Stage, executable};

#[test]
fn two_nodes_take_their_roles_exchange_them_and_take_them_again_after_a_stop() {
    let stage = Stage::running("isolation=\"wait\"");
    assert_eq!(stage.b.starts(), 0);
    let before = stage.a.acked();
    stage.b.must(&["swap"]);
    stage.b.wait("PRIM", "Ready");
    stage.a.wait("SECOND", "Ready");
    stage.b.works();
    assert!(stage.b.found() >= before);
    stage.b.assert_found_all_of(&stage.a);

    for machine in [&stage.a, &stage.b] {
        machine.must(&["stop"]);
    }
    for machine in [&stage.b, &stage.a] {
        machine.wait("STOP", "NotReady");
        assert_eq!(machine.driver(), None);
    }
    for machine in [&stage.a, &stage.b] {
        machine.must(&["start"]);
    }
    stage.b.wait("PRIM", "Ready");
    stage.a.wait("SECOND", "Ready");
    assert_eq!((stage.a.starts(), stage.b.starts()), (1, 2));
    stage.assert_identical();
}

#[test]
fn the_application_of_a_primary_whose_driver_is_killed_goes_on_at_the_other_node() {
    let stage = Stage::running("isolation=\"wait\"");
    stage.a.kill_driver();
    // It may be PRIM again before anybody looks.
    let started = || stage.b.starts() == 1;
    assert!(wait_until(PATIENCE, started), "{}", stage.b.log());
    stage.b.assert_found_all_of(&stage.a);
    stage.b.works();
    // By itself.
    stage.a.wait("SECOND", "Ready");
    stage.b.wait("PRIM", "Ready");
    assert_eq!((stage.a.starts(), stage.b.starts()), (1, 1));
    stage.assert_identical();
}

#[test]
fn a_secondary_whose_driver_is_killed_returns_and_the_application_does_not_notice() {
    let stage = Stage::running("isolation=\"wait\"");
    let old = stage.b.driver().unwrap();
    stage.b.kill_driver();
    let returned =
        || stage.b.driver().is_some_and(|new| new != old) && stage.b.is("SECOND", "Ready");
    assert!(wait_until(PATIENCE, returned), "{}", stage.b.log());
    stage.a.wait("PRIM", "Ready");
    stage.a.works();
    assert_eq!(stage.a.starts(), 1);
    stage.assert_identical();
}

#[test]
fn a_daemon_that_is_killed_is_followed_by_one_that_takes_everything_over() {
    let mut stage = Stage::running("isolation=\"wait\"");
    let drivers = [stage.a.driver(), stage.b.driver()];
    stage.a.kill_daemon();
    stage.a.works();
    stage.b.kill_daemon();
    stage.a.works();
    stage.b.start_daemon();
    stage.a.start_daemon();
    stage.a.wait("PRIM", "Ready");
    stage.b.wait("SECOND", "Ready");
    stage.a.works();
    assert_eq!([stage.a.driver(), stage.b.driver()], drivers);
    assert_eq!((stage.a.starts(), stage.b.starts()), (1, 0));
    // And they still decide.
    stage.a.must(&["swap"]);
    stage.b.wait("PRIM", "Ready");
    stage.b.works();
    stage.b.assert_found_all_of(&stage.a);
    stage.assert_identical();
}

#[test]
fn a_daemon_that_takes_over_a_module_that_is_alone_tells_the_peer_when_that_starts() {
    let mut stage = Stage::running("isolation=\"alone\"");
    stage.b.kill_everything();
    stage.a.wait("ALONE", "Ready");
    stage.a.kill_daemon();
    stage.a.start_daemon();
    stage.a.wait("ALONE", "Ready");
    // Nothing happens there any more that would be told by itself.
    stage.b.start_daemon();
    stage.b.wait("SECOND", "Ready");
    stage.a.wait("PRIM", "Ready");
    assert_eq!((stage.a.starts(), stage.b.starts()), (1, 0));
    stage.assert_identical();
}

#[test]
fn a_node_whose_daemon_cannot_run_a_module_does_not_decide_for_it() {
    let mut stage = Stage::running("isolation=\"alone\"");
    let config = stage.a.home().join("etc/modules/vm/userconfig.xml");
    let good = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, "<safe").unwrap();
    stage.a.kill_daemon();
    stage.a.start_daemon();
    stage.a.kill_driver();
    stage.b.wait("ALONE", "Ready");
    stage.b.assert_found_all_of(&stage.a);
    stage.b.works();
    // As soon as it can.
    std::fs::write(&config, good).unwrap();
    let runs = || !stage.a.must(&["state"]).contains("cannot be run");
    assert!(wait_until(PATIENCE, runs), "{}", stage.a.log());
    stage.a.wait("SECOND", "Ready");
    stage.b.wait("PRIM", "Ready");
    stage.assert_identical();
}

#[test]
fn a_word_about_a_role_is_refused_where_it_cannot_be_followed_and_nothing_comes_of_it() {
    let stage = Stage::running("isolation=\"wait\"");
    let words = [
        (&stage.b, "prim"),
        (&stage.b, "primforce"),
        (&stage.a, "second"),
    ];
    for (machine, word) in words {
        let (code, _, told) = machine.cli(&[word]);
        assert!(code != 0 && told.contains("`swap`"), "{word}: {told}");
    }
    // What is so already is neither refused nor kept.
    stage.a.must(&["primforce"]);
    stage.b.must(&["second"]);
    stage.network.cut().unwrap();
    let isolated = || {
        let (a, b) = (stage.a.state(), stage.b.state());
        a["status"] == "Transient" && b["state"] == "WAIT"
    };
    assert!(wait_until(PATIENCE, isolated), "{}", stage.a.state());
    stage.network.heal().unwrap();
    stage.a.wait("PRIM", "Ready");
    stage.b.wait("SECOND", "Ready");
    assert_eq!((stage.a.starts(), stage.b.starts()), (1, 0));
    stage.assert_identical();
}

#[test]
fn isolated_nodes_that_shall_wait_hold_and_go_on_when_the_network_is_back() {
    let stage = Stage::running("isolation=\"wait\"");
    stage.network.cut().unwrap();
    let isolated = || {
        let waits = |machine: &Machine| machine.is("WAIT", "NotReady");
        waits(&stage.a) && waits(&stage.b)
    };
    assert!(wait_until(PATIENCE, isolated), "{}", stage.a.state());
    let held = stage.a.acked();
    assert_eq!(stage.b.starts(), 0);
    let shown = stage.a.must(&["state"]);
    assert!(shown.contains("lan net: lost"), "{shown}");
    stage.network.heal().unwrap();
    stage.a.wait("PRIM", "Ready");
    stage.b.wait("SECOND", "Ready");
    stage.a.works();
    assert!(stage.a.acked() >= held);
    assert_eq!((stage.a.starts(), stage.b.starts()), (1, 0));
    stage.assert_identical();
}

#[test]
fn the_other_node_goes_on_alone_after_a_power_outage_where_that_is_allowed() {
    let mut stage = Stage::running("isolation=\"alone\"");
    stage.a.kill_everything();
    stage.b.wait("ALONE", "Ready");
    stage.b.assert_found_all_of(&stage.a);
    stage.b.works();
    stage.a.start_daemon();
    stage.a.must(&["start"]);
    stage.a.wait("SECOND", "Ready");
    stage.b.wait("PRIM", "Ready");
    stage.assert_identical();
}

#[test]
fn a_forced_stop_ends_an_application_that_waits_for_an_answer() {
    let stage = Stage::running("isolation=\"wait\"");
    stage.network.cut().unwrap();
    let holds = || stage.a.is("WAIT", "NotReady");
    assert!(wait_until(PATIENCE, holds), "{}", stage.a.state());
    stage.a.must(&["forcestop"]);
    stage.a.wait("STOP", "NotReady");
    assert_eq!(stage.a.driver(), None);
    stage.network.heal().unwrap();
    stage.b.wait("ALONE", "Ready");
    stage.b.assert_found_all_of(&stage.a);
    stage.a.must(&["start"]);
    stage.a.wait("SECOND", "Ready");
    stage.b.works();
    stage.assert_identical();
}

#[test]
fn a_node_whose_copy_is_behind_serves_by_force_when_the_other_one_is_gone_which_then_follows() {
    let mut stage = Stage::running("isolation=\"wait\"");
    stage.b.must(&["stop"]);
    stage.b.wait("STOP", "NotReady");
    stage.a.wait("ALONE", "Ready");
    // Only A has what is written from here on.
    stage.a.works();
    let had = stage.a.acked();
    stage.a.works();
    stage.a.kill_everything();
    stage.b.must(&["start"]);
    stage.b.wait("WAIT", "NotReady");
    let shown = stage.b.must(&["state"]);
    assert!(shown.contains("not up to date"), "{shown}");
    let advice = || stage.b.must(&["state"]).contains("`primforce`");
    assert!(wait_until(PATIENCE, advice), "{}", stage.b.state());
    assert_eq!(stage.b.starts(), 0, "nothing but the word makes it serve");
    let (code, _, warned) = stage.b.cli(&["primforce"]);
    assert_eq!(code, 0, "{warned}");
    for part in [
        "WARNING",
        "The copy on b: not up to date",
        "Of a: ",
        "archive",
    ] {
        assert!(warned.contains(part), "{part:?} is not in {warned}");
    }
    stage.b.wait("ALONE", "Ready");
    stage.b.works();
    let found = stage.b.found();
    assert!(
        found < had,
        "{found} was found of {had} that only the other node had"
    );

    // What only A had goes into its archive.
    stage.a.start_daemon();
    stage.a.must(&["stop"]);
    stage.a.wait("STOP", "NotReady");
    stage.a.must(&["second", "discard"]);
    stage.a.wait("SECOND", "Ready");
    stage.b.wait("PRIM", "Ready");
    stage.b.works();
    let folder = stage.a.vm().display().to_string();
    let kept = stage.a.must(&["fs", "archive", "list", &folder]);
    assert!(!kept.is_empty(), "{}", stage.a.log());
    assert_eq!((stage.a.starts(), stage.b.starts()), (1, 1));
    stage.assert_identical();
}

/// A fence command that asks the test to cut the other machine's power, and waits.
const FENCE: &str = r#"#!/bin/sh
echo "$1" >"$HOME_OF_TEST/fence"
while [ ! -e "$HOME_OF_TEST/fenced" ]; do sleep 0.01; done
"#;

/// A fence command that cannot end anybody.
const NO_FENCE: &str = "#!/bin/sh\necho \"$1\" >>\"$HOME_OF_TEST/fence\"\nexit 1\n";

#[test]
fn a_frozen_primary_that_could_not_be_ended_goes_on_when_it_is_thawed() {
    let command = |home: &std::path::Path| home.join("fence.sh");
    let stage = Stage::with("", |home| {
        executable(&command(home), NO_FENCE);
        format!("<fence command=\"{}\"/>", command(home).display())
    })
    .run();
    stage.a.freeze(true);
    let asked = || stage.b.home().join("fence").exists();
    assert!(wait_until(PATIENCE, asked), "{}", stage.b.log());
    let told = || stage.b.must(&["log"]).contains("could not be ended");
    assert!(wait_until(PATIENCE, told), "{}", stage.b.log());
    assert_eq!(stage.b.starts(), 0);
    stage.a.freeze(false);
    stage.a.wait("PRIM", "Ready");
    stage.b.wait("SECOND", "Ready");
    stage.a.works();
    assert_eq!((stage.a.starts(), stage.b.starts()), (1, 0));
    stage.assert_identical();
}

#[test]
fn a_frozen_primary_is_ended_before_the_other_node_goes_on() {
    let command = |home: &std::path::Path| home.join("fence.sh");
    let mut stage = Stage::with("", |home| {
        executable(&command(home), FENCE);
        format!("<fence command=\"{}\"/>", command(home).display())
    })
    .run();
    stage.a.freeze(true);
    let asked = || stage.b.home().join("fence").exists();
    assert!(wait_until(PATIENCE, asked), "{}", stage.b.log());
    assert_eq!(stage.b.starts(), 0);
    // It is thawed in between: whoever ends it has the right all the same.
    stage.a.freeze(false);
    stage.a.kill_everything();
    std::fs::write(stage.b.home().join("fenced"), "").unwrap();
    stage.b.wait("ALONE", "Ready");
    stage.b.assert_found_all_of(&stage.a);
    stage.b.works();
    stage.a.start_daemon();
    stage.a.wait("SECOND", "Ready");
    stage.b.wait("PRIM", "Ready");
    stage.assert_identical();
}

#[test]
fn a_node_goes_on_without_a_silent_peer_only_when_that_has_been_ended() {
    let command = |home: &std::path::Path| home.join("fence.sh");
    let mut stage = Stage::with("", |home| {
        executable(&command(home), FENCE);
        format!("<fence command=\"{}\"/>", command(home).display())
    })
    .run();
    stage.network.cut().unwrap();
    // The script makes the file first and writes into it then.
    let asked = || std::fs::read_to_string(stage.b.home().join("fence")).unwrap_or_default();
    let whole = || asked().ends_with('\n');
    assert!(wait_until(PATIENCE, whole), "{}", stage.b.log());
    assert_eq!(asked(), "a\n");
    // However long it takes.
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(stage.b.starts(), 0);
    stage.a.kill_everything();
    std::fs::write(stage.b.home().join("fenced"), "").unwrap();
    stage.b.wait("ALONE", "Ready");
    stage.b.assert_found_all_of(&stage.a);
    stage.b.works();
    stage.network.heal().unwrap();
    stage.a.start_daemon();
    stage.a.wait("SECOND", "Ready");
    stage.b.wait("PRIM", "Ready");
    stage.assert_identical();
}
