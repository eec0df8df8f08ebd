//! The package's units, run by systemd.

use harness::{Scratch, wait_until};

use crate::root::Machine;
use crate::{PATIENCE, install, is, machines, pair, remove, run_module};

fn assert_application(machine: &Machine, was: &str) {
    let told = || machine.read("srv/application");
    let so = wait_until(PATIENCE, || told() == was);
    assert!(so, "{:?} and not {was:?}", told());
}

/// The daemon's process.
fn daemon(machine: &Machine) -> String {
    let shown = machine.must("systemctl show --property MainPID --value twinfold");
    shown.trim().to_owned()
}

#[test]
fn systemd_starts_the_modules_at_boot_stops_them_at_shutdown_and_a_daemon_that_ends_is_another_one()
{
    let scratch = Scratch::new();
    let (_network, [mut one, mut two]) = machines(&scratch);
    for machine in [&mut one, &mut two] {
        install(machine);
        machine.boot();
        // Nothing is to be run before there is a pair.
        let runs = machine.output("systemctl is-active twinfold").stdout;
        assert_eq!(runs, b"inactive\n");
    }
    pair(&one, &two);
    run_module(&one, &two, "systemctl start twinfold twinfold-modules");
    one.must("echo first >/srv/data/file");

    // The application and its folder are not the daemon's.
    let before = daemon(&one);
    one.must("systemctl restart twinfold");
    is(&one, "PRIM");
    let second = daemon(&one);
    assert_ne!(second, before);
    one.must(&format!("kill -9 {second}"));
    let another = || {
        let runs = one.output("systemctl is-active twinfold");
        runs.status.success() && daemon(&one) != second
    };
    assert!(wait_until(PATIENCE, another), "no daemon came");
    is(&one, "PRIM");
    is(&two, "SECOND");
    assert_application(&one, "started\n");

    // Its application stops as it should, and the other one's starts then and not later.
    one.shut_down();
    assert_eq!(one.read("srv/application"), "started\nstopped\n");
    is(&two, "ALONE");
    assert_application(&two, "started\n");
    let log = two.must("twinfold log -m data");
    assert!(log.contains("closed by peer"), "{log}");
    two.must("echo second >/srv/data/file");

    one.boot();
    is(&one, "SECOND");
    is(&two, "PRIM");
    one.must("grep second /srv/data/file");
    assert_eq!(one.read("srv/application"), "started\nstopped\n");

    // Taken away while it serves.
    remove(&two, "remove");
    assert_application(&two, "started\nstopped\n");
    let runs = two.output("systemctl is-active twinfold twinfold-modules");
    assert!(!runs.status.success(), "{runs:?}");
    is(&one, "ALONE");
    one.must("grep second /srv/data/file");
}
