//! What an operator, or whoever writes configurations and scripts, may get wrong: it is said
//! clearly, and the application goes on.

use std::time::Duration;

use harness::wait_until;

use crate::PATIENCE;
use crate::stage::{Stage, executable};

/// Bytes of a file that is too long for a configuration.
const TOO_LONG: usize = 100 << 20;

#[test]
fn hostile_configurations_are_refused_with_a_reason_and_what_runs_goes_on() {
    let mut stage = Stage::running("isolation=\"wait\"");
    let path = stage.a.home().join("etc/modules/vm/userconfig.xml");
    let right = std::fs::read_to_string(&path).unwrap();
    let entities: String = (1..20)
        .map(|n| format!("<!ENTITY e{n} '&e{0};&e{0};&e{0};&e{0};'>", n - 1))
        .collect();
    let bomb = format!(
        "<!DOCTYPE safe [<!ENTITY e0 'x'>{entities}]>{}",
        right.replace("isolation=\"wait\"", "isolation=\"&e19;\"")
    );
    let fetched = format!(
        "<!DOCTYPE safe [<!ENTITY e SYSTEM 'file:///etc/shadow'>]>{}",
        right.replace("isolation=\"wait\"", "isolation=\"&e;\"")
    );
    let long = right.replace(
        "isolation=\"wait\"",
        &format!("isolation=\"{}\"", "x".repeat(TOO_LONG)),
    );
    let deep = "<safe>".repeat(100_000);
    let texts = [
        (bomb, "document type with declarations"),
        (fetched, "document type with declarations"),
        (long, "larger than"),
        (deep, "nested deeper"),
        (right.replace("</safe>", ""), "not closed"),
        (right.replace("isolation", "isolatoin"), "isolatoin"),
    ];
    for (text, reason) in &texts {
        std::fs::write(&path, text).unwrap();
        let (code, _, said) = stage.a.cli(&["config", "-m", "vm"]);
        assert!(code == 1 && said.contains(reason), "{reason}: {said}");
        assert!(said.len() < 10_000, "{reason}");
        let file = path.display().to_string();
        let (code, _, said) = stage.a.cli(&["confcheck", &file]);
        assert!(code == 1 && said.contains(reason), "{reason}: {said}");
    }
    stage.a.works();
    assert!(
        stage
            .a
            .must(&["confinfo", "-m", "vm"])
            .contains("nothing was applied")
    );
    std::fs::write(&path, right).unwrap();
    stage.a.must(&["config", "-m", "vm"]);
    // What is edited is not what runs: the daemon starts with what was applied.
    std::fs::write(&path, &texts[2].0).unwrap();
    stage.a.end_daemon();
    stage.a.start_daemon();
    stage.a.wait("PRIM", "Ready");
    stage.a.works();
    assert_eq!((stage.a.starts(), stage.b.starts()), (1, 0));
    stage.assert_identical();
}

#[test]
fn a_module_that_is_not_there_is_named_and_so_is_a_command_that_is_none() {
    let stage = Stage::new("");
    let (code, _, said) = stage.a.cli(&["start", "-m", "nothing"]);
    assert!(
        code == 1 && said.contains("no module \"nothing\""),
        "{said}"
    );
    for name in ["..", "a/b", "%2e%2e", ""] {
        let (code, _, said) = stage.a.cli(&["config", "-m", name]);
        assert!(code == 1 && !said.is_empty(), "{name}: {said}");
    }
    let (code, _, _) = stage.a.cli(&["explode"]);
    assert_eq!(code, 2);
}

/// Forks without end, floods its output, and hangs.
const WILD: &str = r#"#!/bin/sh
echo start >>"$HOME_OF_TEST/starts"
(n=0; while [ $n -lt 200 ]; do n=$((n + 1)); sleep 1000 & done)
yes "out of all bounds" &
echo $! >"$HOME_OF_TEST/wild.new" && mv "$HOME_OF_TEST/wild.new" "$HOME_OF_TEST/wild"
wait
"#;

#[test]
fn a_script_that_forks_floods_and_hangs_is_broken_off_by_a_forced_stop_and_fills_no_disk() {
    let stage = Stage::running("isolation=\"wait\"");
    let start = stage.a.home().join("etc/modules/vm/bin/start_prim");
    let right = std::fs::read_to_string(&start).unwrap();
    executable(&start, WILD);
    stage.a.must(&["restart"]);
    let wild = stage.a.home().join("wild");
    assert!(wait_until(PATIENCE, || wild.exists()), "{}", stage.a.log());
    // It floods for a while.
    std::thread::sleep(Duration::from_secs(2));
    let log = stage.a.home().join("log/vm/application.log");
    let length = std::fs::metadata(&log).unwrap().len();
    assert!(length < 1 << 30, "{length}");
    stage.a.must(&["forcestop"]);
    stage.a.wait("STOP", "NotReady");
    let length = std::fs::metadata(&log).unwrap().len();
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(std::fs::metadata(&log).unwrap().len(), length, "it goes on");
    assert!(
        stage
            .a
            .must(&["log"])
            .contains("broken off by a forced stop")
    );
    stage.b.wait("ALONE", "Ready");
    stage.b.assert_found_all_of(&stage.a);
    executable(&start, &right);
    stage.a.must(&["start"]);
    stage.a.wait("SECOND", "Ready");
    stage.b.works();
    stage.assert_identical();
}
