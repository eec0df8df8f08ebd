//! `mirror`: systemd services in a folder. No systemd runs where the tests do; `systemctl` is a
//! stand-in that notes its calls and keeps the state of each service in a file.

use harness::wait_until;

use super::{NAME, becomes, running, said, wait};
use crate::PATIENCE;
use crate::stage::{Machine, executable, write};

const SYSTEMCTL: &str = r#"#!/bin/sh
units=$HOME_OF_TEST/units
[ "$1" = is-active ] || echo "$*" >>"$HOME_OF_TEST/systemctl"
for unit; do :; done
case $1 in
start) echo active >"$units/$unit" ;;
stop)
    [ ! -e "$units/$unit.stubborn" ] || exit 1
    echo inactive >"$units/$unit"
    ;;
kill) rm -f "$units/$unit.stubborn" ;;
is-active) cat "$units/$unit" ;;
is-enabled) exit 1 ;;
esac
"#;

/// What systemd was asked since the last look.
fn asked(machine: &Machine) -> Vec<String> {
    let path = machine.home().join("systemctl");
    let text = std::fs::read_to_string(&path).unwrap_or_default();
    std::fs::write(path, "").unwrap();
    let asked = text.lines().filter(|line| !line.starts_with("is-enabled"));
    asked.map(str::to_owned).collect()
}

#[test]
fn services_run_where_the_folder_serves_and_are_started_again_or_on_the_other_node() {
    let mut stage = running("mirror", &["SERVICES=one two"], &[], |stage| {
        for machine in [&stage.a, &stage.b] {
            write(&machine.home().join("units/one"), "inactive");
            write(&machine.home().join("units/two"), "inactive");
            executable(&machine.tools().join("systemctl"), SYSTEMCTL);
        }
    });
    let begun = ["stop two", "stop one", "start one", "start two"];
    assert_eq!(asked(&stage.a), begun);
    assert_eq!(asked(&stage.b), begun[..2]);
    becomes(&stage.a, "custom.services", "up");

    // One of them fails.
    write(&stage.a.home().join("units/two"), "failed");
    let active = || {
        let state = std::fs::read_to_string(stage.a.home().join("units/two")).unwrap();
        state == "active\n"
    };
    assert!(wait_until(PATIENCE, active), "{}", said(&stage.a));
    wait(&stage.a, "PRIM");
    assert_eq!(asked(&stage.a), begun);
    assert!(
        said(&stage.a).contains("two is failed"),
        "{}",
        said(&stage.a)
    );

    // The node goes.
    let folder = |machine: &Machine| machine.home().join(NAME);
    std::fs::write(folder(&stage.a).join("page"), "here").unwrap();
    stage.a.kill_everything();
    wait(&stage.b, "ALONE");
    assert_eq!(asked(&stage.b), begun[2..]);
    assert_eq!(
        std::fs::read(folder(&stage.b).join("page")).unwrap(),
        b"here"
    );
    stage.a.start_daemon();
    wait(&stage.a, "SECOND");
    wait(&stage.b, "PRIM");

    // One that does not stop in order is ended, and the other node has the services.
    write(&stage.b.home().join("units/two.stubborn"), "");
    asked(&stage.a);
    stage.b.must(&["swap", "-m", NAME]);
    wait(&stage.a, "PRIM");
    wait(&stage.b, "SECOND");
    let kill = "kill --signal=KILL";
    let ended = [
        "stop two".into(),
        "stop one".into(),
        format!("{kill} two"),
        "stop two".into(),
        format!("{kill} one"),
        "stop one".into(),
    ];
    assert_eq!(asked(&stage.b), ended);
    assert_eq!(asked(&stage.a), begun[2..]);
}
