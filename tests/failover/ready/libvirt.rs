//! `kvm` with libvirt, whatever its guest does: `virsh` is a stand-in that notes its calls and
//! keeps the definition and the state of one machine in files.

use std::path::PathBuf;

use harness::wait_until;

use super::{NAME, becomes, running, said, wait};
use crate::PATIENCE;
use crate::stage::{Machine, executable, write};

const VIRSH: &str = r#"#!/bin/sh
cd "$HOME_OF_TEST/libvirt" || exit 1
case $1 in
uri | domstate | dumpxml | qemu-agent-command) ;;
*) echo "$*" >>calls ;;
esac
case $1 in
uri | autostart) ;;
define) cp "$2" xml && { [ -e state ] || echo "shut off" >state; } ;;
dumpxml) cat xml ;;
domstate) cat state ;;
start) echo "running (booted)" >state ;;
shutdown) [ -e deaf ] || echo "shut off (shutdown)" >state ;;
destroy) echo "shut off (destroyed)" >state ;;
save) echo memory >"$3" && echo "shut off (saved)" >state ;;
restore) [ -e "$3" ] && echo "paused (migrating)" >state ;;
resume) echo "running (unpaused)" >state ;;
qemu-agent-command) [ -e agent ] && : >answered ;;
*) exit 1 ;;
esac
"#;

fn own(machine: &Machine, name: &str) -> PathBuf {
    machine.home().join("libvirt").join(name)
}

fn read(path: PathBuf) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

/// What libvirt was told since the last look.
fn told(machine: &Machine) -> Vec<String> {
    let calls = own(machine, "calls");
    let text = read(calls.clone());
    std::fs::write(calls, "").unwrap();
    let folder = format!("{}/", machine.home().join(NAME).display());
    text.lines().map(|l| l.replace(&folder, "")).collect()
}

#[test]
fn a_machine_in_libvirt_moves_with_its_definition_and_is_stopped_whatever_its_guest_does() {
    let options = [
        "VIA=libvirt",
        "STOP_TIMEOUT=10s",
        "FORCE_STOP=save",
        "AGENT_TIMEOUT=20",
    ];
    let mut stage = running("kvm", &options, &[], |stage| {
        write(&stage.a.home().join(NAME).join("domain.xml"), "<domain/>");
        for machine in [&stage.a, &stage.b] {
            std::fs::create_dir(machine.home().join("libvirt")).unwrap();
            executable(&machine.tools().join("virsh"), VIRSH);
        }
    });
    let begun = [
        "define domain.xml",
        "autostart --disable db",
        "start --force-boot db",
    ];
    assert_eq!(told(&stage.a), begun);
    becomes(&stage.a, "custom.vm", "up");

    // Its operator changes the definition, and the node goes.
    write(&own(&stage.a, "xml"), "<domain>changed</domain>");
    let kept = || read(stage.a.home().join(NAME).join("domain.xml")).contains("changed");
    assert!(wait_until(PATIENCE, kept), "{}", said(&stage.a));
    stage.a.kill_everything();
    write(&own(&stage.a, "state"), "shut off (crashed)\n");
    wait(&stage.b, "ALONE");
    assert_eq!(told(&stage.b), begun);
    assert_eq!(read(own(&stage.b, "xml")), "<domain>changed</domain>");
    stage.a.start_daemon();
    wait(&stage.a, "SECOND");
    wait(&stage.b, "PRIM");

    // Its guest does not hear the power button: it is saved, and goes on where it was.
    write(&own(&stage.b, "deaf"), "");
    stage.b.must(&["swap", "-m", NAME]);
    wait(&stage.a, "PRIM");
    wait(&stage.b, "SECOND");
    assert_eq!(told(&stage.b), ["shutdown db", "save db saved.part"]);
    let resumed = ["restore --paused saved", "resume db"];
    assert_eq!(told(&stage.a), [&begun[..2], &resumed].concat());
    assert!(!stage.a.home().join(NAME).join("saved").exists());

    // The guest's agent has answered and does not any more.
    write(&own(&stage.a, "agent"), "");
    becomes(&stage.a, "custom.vm", "up");
    let answered = || own(&stage.a, "answered").exists();
    assert!(wait_until(PATIENCE, answered), "{}", said(&stage.a));
    std::fs::remove_file(own(&stage.a, "agent")).unwrap();
    let again = || read(own(&stage.a, "calls")).contains(begun[2]);
    assert!(wait_until(PATIENCE, again), "{}", said(&stage.a));
    assert_eq!(told(&stage.a), [&["shutdown db"][..], &begun].concat());
    assert!(said(&stage.a).contains("its agent is silent for 20 s"));
    wait(&stage.a, "PRIM");
}
