//! What starts with a node, what stops with it, and what is remembered in between.

use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::time::Duration;

use harness::wait_until;

use crate::PATIENCE;
use crate::stage::{Machine, Stage, executable, kill, write};

fn with_syncdelta(service: &str, delta: &str) -> Stage {
    Stage::with(service, |_| {
        format!("<rfs syncdelta=\"{delta}\"><replicated dir=\"%HOME_OF_TEST%/vm\"/></rfs>")
    })
    .run()
}

#[test]
fn after_a_general_power_outage_the_former_roles_return() {
    let mut stage = Stage::running("boot=\"on\" boot_delay=\"1s\" isolation=\"alone\"");
    stage.a.must(&["swap"]);
    stage.b.wait("PRIM", "Ready");
    stage.a.wait("SECOND", "Ready");
    stage.b.works();
    let starts = (stage.a.starts(), stage.b.starts());
    stage.lose_power();
    stage.a.reboot();
    // It may not know better than the one that is not there yet.
    stage.a.wait("WAIT", "NotReady");
    stage.b.reboot();
    stage.b.wait("PRIM", "Ready");
    stage.a.wait("SECOND", "Ready");
    assert_eq!(
        (stage.a.starts(), stage.b.starts()),
        (starts.0, starts.1 + 1)
    );
    stage.b.works();
    stage.assert_identical();
}

#[test]
fn a_node_that_was_equal_a_short_time_ago_goes_on_alone_after_a_general_power_outage() {
    let mut stage = with_syncdelta("boot=\"on\" isolation=\"alone\"", "10m");
    stage.lose_power();
    stage.b.reboot();
    stage.b.wait("ALONE", "Ready");
    stage.b.assert_found_all_of(&stage.a);
    stage.b.works();
    stage.a.reboot();
    stage.a.wait("SECOND", "Ready");
    stage.b.wait("PRIM", "Ready");
    stage.assert_identical();
}

#[test]
fn a_node_that_was_equal_long_ago_waits_for_its_peer() {
    let mut stage = with_syncdelta("boot=\"on\" isolation=\"alone\"", "10m");
    stage.lose_power();
    stage.b.remembers("equal_at", 1_000_000_000.into());
    stage.b.reboot();
    let waits = || {
        let now = stage.b.state();
        now["state"] == "WAIT" && now["reason"].as_str().unwrap().contains("not up to date")
    };
    assert!(wait_until(PATIENCE, waits), "{}", stage.b.state());
    assert_eq!(stage.b.starts(), 0);
    stage.a.reboot();
    stage.a.wait("PRIM", "Ready");
    stage.b.wait("SECOND", "Ready");
    stage.assert_identical();
}

#[test]
fn a_node_that_is_shut_down_stops_its_modules_and_starts_again_what_ran() {
    let mut stage = Stage::running("boot=\"auto\" isolation=\"wait\"");
    stage.a.must(&["shutdown"]);
    stage.a.wait("STOP", "NotReady");
    assert_eq!(stage.a.driver(), None);
    stage.b.wait("ALONE", "Ready");
    stage.b.assert_found_all_of(&stage.a);
    stage.a.reboot();
    stage.a.wait("SECOND", "Ready");
    // What an operator has stopped stays stopped, and so does what shall not start.
    stage.a.must(&["stop"]);
    stage.a.wait("STOP", "NotReady");
    stage.a.reboot();
    assert!(stage.a.is("STOP", "NotReady"));
    stage.a.must(&["start"]);
    stage.a.wait("SECOND", "Ready");
    stage.a.must(&["boot", "off"]);
    stage.a.reboot();
    assert!(stage.a.is("STOP", "NotReady"));
    stage.a.must(&["boot", "on"]);
    stage.a.reboot();
    stage.a.wait("SECOND", "Ready");
    stage.b.works();
    stage.assert_identical();
}

/// Its daemon ends as soon as this is over, and then nobody is there who could tell the peer.
#[test]
fn a_node_that_is_shut_down_stays_until_a_slow_peer_has_taken_over() {
    let mut stage = Stage::running("boot=\"auto\" isolation=\"wait\"");
    kill(stage.b.daemon(), libc::SIGSTOP);
    std::thread::scope(|scope| {
        let shutdown = scope.spawn(|| stage.a.must(&["shutdown"]));
        // Less than the timeout of the heartbeats.
        std::thread::sleep(Duration::from_secs(1));
        let early = shutdown.is_finished();
        kill(stage.b.daemon(), libc::SIGCONT);
        assert!(!early, "it did not wait");
        shutdown.join().unwrap();
    });
    stage.a.kill_daemon();
    stage.b.wait("ALONE", "Ready");
    stage.b.assert_found_all_of(&stage.a);
    stage.a.start_daemon();
    stage.a.must(&["start"]);
    stage.a.wait("SECOND", "Ready");
    stage.assert_identical();
}

#[test]
fn a_node_that_is_shut_down_stops_who_is_needed_after_who_needs_it() {
    let check = "<check><module name=\"db\"/></check>";
    let mut stage = Stage::with("boot=\"auto\" isolation=\"wait\"", |_| check.into());
    stage.make_folders("db", 10);
    for machine in [&mut stage.a, &mut stage.b] {
        let db = "<safe><service isolation=\"wait\"><heart timeout=\"3s\"/><rfs>\
                  <replicated dir=\"%HOME_OF_TEST%/db\"/></rfs></service></safe>";
        write(&machine.home().join("etc/modules/db/userconfig.xml"), db);
        machine.kill_daemon();
        machine.start_daemon();
    }
    let db = |machine: &Machine, state: &str, status: &str| {
        let all = ["waitstate", "-m", "db", state, "--status", status];
        machine.must(&all);
    };
    stage.a.must(&["prim", "-m", "db"]);
    stage.b.must(&["second", "-m", "db"]);
    db(&stage.a, "PRIM", "Ready");
    db(&stage.b, "SECOND", "Ready");
    let stage = stage.run();
    // The application takes its time, and so do the last scripts.
    let last = stage.a.home().join("etc/modules/vm/bin/poststop");
    executable(&last, "#!/bin/sh\nsleep 1\ntouch \"$HOME_OF_TEST/last\"\n");
    let told = stage.a.must(&["shutdown"]);
    assert!(stage.a.home().join("last").exists(), "{told}");
    stage.a.wait("STOP", "NotReady");
    db(&stage.a, "STOP", "NotReady");
    let lines: Vec<_> = told.lines().collect();
    let right = [
        "vm: stopping",
        "vm: stopped (1 of 2)",
        "db: stopping",
        "db: stopped (2 of 2)",
    ];
    assert_eq!(lines, right);
    stage.b.wait("ALONE", "Ready");
    db(&stage.b, "ALONE", "Ready");
    stage.b.assert_found_all_of(&stage.a);
    stage.a.must(&["start", "-m", "db"]);
    stage.a.must(&["start", "-m", "vm"]);
    stage.a.wait("SECOND", "Ready");
    stage.b.works();
    stage.assert_identical();
}

#[test]
fn a_full_sync_finds_what_no_mark_tells_of() {
    let stage = Stage::running("isolation=\"wait\"");
    std::fs::write(stage.a.vm().join("file"), vec![1; 100_000]).unwrap();
    stage
        .a
        .must(&["fs", "checkpoint", &stage.a.vm().display().to_string()]);
    let wrong = stage.b.data().join("file");
    // The file is there before what is in it.
    let copied = || harness::read_quietly(&wrong).is_ok_and(|b| b == vec![1; 100_000]);
    assert!(wait_until(PATIENCE, copied), "{}", stage.b.log());
    let kept = std::fs::metadata(&wrong).unwrap().modified().unwrap();
    std::fs::write(&wrong, vec![2; 100_000]).unwrap();
    let file = std::fs::File::options().write(true).open(&wrong).unwrap();
    file.set_modified(kept).unwrap();
    // A plain resync has no reason to look there.
    stage.b.must(&["stop"]);
    stage.b.wait("STOP", "NotReady");
    stage.b.must(&["second"]);
    stage.b.wait("SECOND", "Ready");
    let found = || {
        // Without a trace of it: the access times are compared as well.
        let mut file = std::fs::File::options()
            .read(true)
            .custom_flags(libc::O_NOATIME)
            .open(&wrong)
            .unwrap();
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).unwrap();
        bytes
    };
    assert_eq!(found(), vec![2; 100_000]);
    let refused = stage.a.cli(&["second", "fullsync"]);
    assert_eq!(refused.0, 1, "{refused:?}");
    stage.b.must(&["second", "fullsync"]);
    let done = || stage.b.must(&["log"]).contains("everything is compared");
    assert!(wait_until(PATIENCE, done), "{}", stage.b.log());
    assert_eq!(found(), vec![1; 100_000]);
    assert_eq!(stage.a.starts(), 1);
    stage.assert_identical();
}

#[test]
fn an_application_that_cannot_be_started_here_goes_on_at_the_other_node_after_some_tries() {
    let stage = Stage::running("isolation=\"wait\" maxloop=\"2\"");
    let script = stage.a.home().join("etc/modules/vm/bin/start_prim");
    let right = std::fs::read_to_string(&script).unwrap();
    executable(
        &script,
        "#!/bin/sh\necho start >>\"$HOME_OF_TEST/starts\"\nexit 1\n",
    );
    stage.a.must(&["restart"]);
    stage.a.wait("STOP", "NotReady");
    assert!(stage.a.must(&["log"]).contains("maxloop"));
    assert_eq!(stage.a.starts(), 4, "once well, then three times");
    assert_eq!(stage.a.driver(), None);
    stage.b.wait("ALONE", "Ready");
    stage.b.assert_found_all_of(&stage.a);
    executable(&script, &right);
    stage.a.must(&["start"]);
    stage.a.wait("SECOND", "Ready");
    stage.b.works();
    stage.assert_identical();
}

/// Whether it may be taken for complete all the same is nothing that the drivers know.
#[test]
fn without_its_daemon_a_primary_does_not_go_on_because_its_peer_lost_its_power() {
    let mut stage = with_syncdelta("boot=\"on\" isolation=\"wait\"", "10m");
    stage.a.kill_daemon();
    stage.b.reboot();
    let driver_log = stage.a.home().join("log/vm/driver.log");
    let refused = || {
        let said = std::fs::read_to_string(&driver_log).unwrap_or_default();
        said.contains("the peer was refused")
    };
    assert!(wait_until(PATIENCE, refused), "{}", stage.a.log());
    let acked = stage.a.acked();
    std::thread::sleep(Duration::from_secs(2));
    assert!(stage.a.acked() <= acked + 1, "it has gone on");
    stage.a.start_daemon();
    stage.a.works();
    stage.b.wait("SECOND", "Ready");
    stage.a.wait("PRIM", "Ready");
    assert_eq!((stage.a.starts(), stage.b.starts()), (1, 0));
    stage.assert_identical();
}
