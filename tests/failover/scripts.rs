//! What runs once, whichever daemon runs it.

use harness::wait_until;

use crate::PATIENCE;
use crate::stage::{Machine, START, STOP, Stage, executable};

/// A script that notes its call.
fn notes(machine: &Machine, script: &str) {
    let path = machine.home().join("etc/modules/vm/bin").join(script);
    let text = format!("#!/bin/sh\necho \"{script} $*\" >>\"$HOME_OF_TEST/notes\"\n");
    executable(&path, &text);
}

/// How often it was called.
fn calls(machine: &Machine, script: &str) -> usize {
    let text = std::fs::read_to_string(machine.home().join("notes")).unwrap_or_default();
    let of = |line: &&str| line.split(' ').next() == Some(script);
    text.lines().filter(of).count()
}

#[test]
fn what_a_node_that_follows_has_started_is_not_started_again_by_the_next_daemon() {
    let mut stage = Stage::new("isolation=\"wait\"");
    for machine in [&stage.a, &stage.b] {
        for script in ["start_both", "start_second", "stop_second", "stop_both"] {
            notes(machine, script);
        }
    }
    stage = stage.run();
    let began = |n| move |machine: &Machine| calls(machine, "start_second") == n;
    assert!(wait_until(PATIENCE, || began(1)(&stage.b)));
    // What has not ended before its daemon does is started again.
    let started = || stage.b.memory()["following"] == "up";
    assert!(wait_until(PATIENCE, started), "{}", stage.b.log());
    stage.b.kill_daemon();
    stage.b.start_daemon();
    stage.b.wait("SECOND", "Ready");
    stage.b.must(&["swap"]);
    stage.b.wait("PRIM", "Ready");
    stage.a.wait("SECOND", "Ready");
    assert!(wait_until(PATIENCE, || began(1)(&stage.a)));
    let counts = ["start_both", "start_second", "stop_second", "stop_both"]
        .map(|script| calls(&stage.b, script));
    assert_eq!(counts, [1, 1, 1, 0], "{}", stage.b.log());
    stage.assert_identical();
}

/// A stop that takes until the test says so.
const SLOW_STOP: &str = "#!/bin/sh
touch \"$HOME_OF_TEST/stopping\"
while [ ! -e \"$HOME_OF_TEST/go\" ]; do sleep 0.01; done
pid=$(cat \"$HOME_OF_TEST/app.pid\") || exit 0
kill \"$pid\" 2>/dev/null
while kill -0 \"$pid\" 2>/dev/null; do sleep 0.01; done
exit 0
";

#[test]
fn a_module_that_is_to_start_again_does_so_under_the_next_daemon_too() {
    let mut stage = Stage::running("isolation=\"wait\"");
    for machine in [&stage.a, &stage.b] {
        let script = machine.home().join("etc/modules/vm/bin/stop_prim");
        executable(&script, SLOW_STOP);
    }
    stage.a.must(&["stopstart"]);
    let stopping = stage.a.home().join("stopping");
    assert!(
        wait_until(PATIENCE, || stopping.exists()),
        "{}",
        stage.a.log()
    );
    stage.a.kill_daemon();
    std::fs::write(stage.a.home().join("go"), "").unwrap();
    std::fs::write(stage.b.home().join("go"), "").unwrap();
    stage.a.start_daemon();
    let back = || ["PRIM", "SECOND"].iter().any(|s| stage.a.is(s, "Ready"));
    assert!(wait_until(PATIENCE, back), "{}", stage.a.log());
    let both = || stage.a.starts() + stage.b.starts() >= 2;
    assert!(wait_until(PATIENCE, both), "{}", stage.b.log());
    stage.assert_identical();
}

/// As [`crate::stage::STOP`], and notes its call.
fn noted_stop() -> String {
    let text = "#!/bin/sh\necho \"stop_prim $*\" >>\"$HOME_OF_TEST/notes\"\n";
    crate::stage::STOP.replace("#!/bin/sh\n", text)
}

/// All calls that were noted.
fn noted(machine: &Machine) -> Vec<String> {
    let text = std::fs::read_to_string(machine.home().join("notes")).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

#[test]
fn a_module_that_stops_runs_its_last_scripts_in_order_and_once_whatever_fails() {
    let mut stage = Stage::new("isolation=\"wait\"");
    for machine in [&stage.a, &stage.b] {
        let bin = machine.home().join("etc/modules/vm/bin");
        executable(&bin.join("stop_prim"), &noted_stop());
        for script in ["start_both", "stop_both", "stop_second", "poststop"] {
            notes(machine, script);
        }
    }
    let fails = stage.b.home().join("etc/modules/vm/bin/stop_both");
    let text = std::fs::read_to_string(&fails).unwrap();
    executable(&fails, &format!("{text}exit 7\n"));
    stage = stage.run();
    assert_eq!(calls(&stage.a, "start_both"), 1);
    for machine in [&stage.b, &stage.a] {
        machine.must(&["stop"]);
        machine.wait("STOP", "NotReady");
        let over = || calls(machine, "poststop") > 0;
        assert!(wait_until(PATIENCE, over), "{}", machine.log());
    }
    // Nothing of it runs twice: not under the next daemon either.
    stage.a.end_daemon();
    stage.a.start_daemon();
    stage.a.wait("STOP", "NotReady");
    let mut of_a = noted(&stage.a);
    of_a.retain(|line| !line.starts_with("start_both"));
    assert_eq!(of_a[0].split(' ').next(), Some("stop_prim"), "{of_a:?}");
    assert_eq!(of_a[1].split(' ').next(), Some("stop_both"), "{of_a:?}");
    assert_eq!(of_a[2].split(' ').next(), Some("poststop"), "{of_a:?}");
    assert_eq!(of_a.len(), 3, "{of_a:?}");
    let of_b = noted(&stage.b);
    let names: Vec<_> = of_b.iter().filter_map(|l| l.split(' ').next()).collect();
    let right = [
        "start_both",
        "stop_second",
        "stop_both",
        "stop_both",
        "poststop",
    ];
    assert_eq!(names, right, "{of_b:?}");
    assert!(of_b[3].starts_with("stop_both force "), "{of_b:?}");
    let told = || stage.b.must(&["log"]).contains("stop_both ended with");
    assert!(wait_until(PATIENCE, told), "{}", stage.b.log());
    stage.a.must(&["start"]);
    stage.b.must(&["start"]);
    stage.a.wait("PRIM", "Ready");
    stage.b.wait("SECOND", "Ready");
    stage.assert_identical();
}

#[test]
fn a_module_whose_prestart_fails_stays_stopped_and_says_so() {
    let mut stage = Stage::new("isolation=\"wait\"");
    let script = stage.a.home().join("etc/modules/vm/bin/prestart");
    executable(&script, "#!/bin/sh\nexit 5\n");
    stage.a.must(&["prim"]);
    let told = |text: &str| stage.a.must(&["log"]).contains(text);
    let stays = || told("prestart failed: the module stays stopped");
    assert!(wait_until(PATIENCE, stays), "{}", stage.a.log());
    assert!(told("prestart ended with"), "{}", stage.a.log());
    assert!(stage.a.is("STOP", "NotReady"), "{}", stage.a.log());
    assert_eq!((stage.a.driver(), stage.a.starts()), (None, 0));
    stage.a.kill_daemon();
    stage.a.start_daemon();
    assert!(stage.a.is("STOP", "NotReady"), "{}", stage.a.log());
    assert_eq!((stage.a.driver(), stage.a.starts()), (None, 0));
    // The word was not kept: it is said again.
    executable(&script, "#!/bin/sh\nexit 0\n");
    let stage = stage.run();
    assert_eq!(stage.a.starts(), 1);
    stage.assert_identical();
}

#[test]
fn a_start_that_takes_too_long_is_ended_and_counts_as_failed() {
    let user = "<user starttimeout=\"1s\"/>";
    let stage = Stage::with("isolation=\"wait\" maxloop=\"0\"", |_| user.into()).run();
    let script = stage.a.home().join("etc/modules/vm/bin/start_prim");
    let right = std::fs::read_to_string(&script).unwrap();
    executable(&script, "#!/bin/sh\nexec sleep 1000\n");
    stage.a.must(&["restart"]);
    stage.a.wait("STOP", "NotReady");
    let told = stage.a.must(&["log"]);
    assert!(told.contains("did not end within 1 s"), "{told}");
    stage.b.wait("ALONE", "Ready");
    stage.b.assert_found_all_of(&stage.a);
    executable(&script, &right);
    stage.a.must(&["start"]);
    stage.a.wait("SECOND", "Ready");
    stage.b.works();
    stage.assert_identical();
}

/// A script that notes its call and then does what it is for.
fn notes_and(machine: &Machine, script: &str, text: &str) {
    let path = machine.home().join("etc/modules/vm/bin").join(script);
    let note = format!("#!/bin/sh\necho \"{script} $*\" >>\"$HOME_OF_TEST/notes\"");
    executable(&path, &text.replacen("#!/bin/sh", &note, 1));
}

#[test]
fn scripts_run_in_the_order_and_with_the_arguments_that_users_are_told() {
    let mut stage = Stage::new("isolation=\"wait\"");
    for machine in [&stage.a, &stage.b] {
        for script in [
            "prestart",
            "transition",
            "start_both",
            "start_second",
            "stop_second",
            "stop_both",
            "poststop",
        ] {
            notes(machine, script);
        }
        notes_and(machine, "start_prim", START);
        notes_and(machine, "stop_prim", STOP);
    }
    stage = stage.run();
    stage.a.must(&["swap"]);
    stage.b.wait("PRIM", "Ready");
    stage.a.wait("SECOND", "Ready");
    stage.b.must(&["restart"]);
    assert!(wait_until(PATIENCE, || stage.b.starts() == 2));
    stage.b.wait("PRIM", "Ready");
    for machine in [&stage.a, &stage.b] {
        machine.must(&["stop"]);
        machine.wait("STOP", "NotReady");
        let ended = || calls(machine, "poststop") == 1;
        assert!(wait_until(PATIENCE, ended), "{}", machine.log());
    }
    let expected = [
        "prestart transition start_both start_prim stop_prim transition start_second stop_second \
         stop_both poststop",
        "prestart transition start_both start_second stop_second transition start_prim stop_prim \
         transition start_prim stop_prim stop_both poststop",
    ];
    for (machine, expected) in [&stage.a, &stage.b].into_iter().zip(expected) {
        let text = std::fs::read_to_string(machine.home().join("notes")).unwrap();
        let names: Vec<_> = text.lines().filter_map(|l| l.split(' ').next()).collect();
        assert_eq!(names.join(" "), expected, "{text}");
        for line in text.lines() {
            let words: Vec<_> = line.split(' ').collect();
            let ends = words[0].starts_with("stop") || words[0] == "poststop";
            assert_eq!(words.len(), 4, "{line}");
            assert_eq!(words[3], if ends { "stop" } else { "start" }, "{line}");
        }
        for call in ["prestart STOP WAIT start", "start_prim ALONE ALONE start"] {
            assert!(text.lines().any(|line| line == call), "{call}: {text}");
        }
    }
}
