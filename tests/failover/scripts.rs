//! What runs once, whichever daemon runs it.

use harness::wait_until;

use crate::PATIENCE;
use crate::stage::{Machine, Stage, executable};

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
