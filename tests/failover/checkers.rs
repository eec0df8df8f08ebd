//! Checkers, resources and the rules that follow from them, in modules of two real daemons.

use std::fs::File;
use std::net::TcpListener;
use std::time::Duration;

use harness::{Network, inside, run_ip, wait_until};

use crate::PATIENCE;
use crate::stage::{Machine, Stage, controller, executable, write};

fn says(machine: &Machine, text: &str) {
    let said = || machine.must(&["log", "-m", "vm"]).contains(text);
    assert!(wait_until(PATIENCE, said), "{text}: {}", machine.log());
}

/// Somebody who accepts connections in the namespace of a node.
fn listener(network: &Network, end: usize) -> TcpListener {
    let bind = || TcpListener::bind("127.0.0.1:7000").unwrap();
    inside(&network.namespace(end).unwrap(), bind).unwrap()
}

/// Kills the application of a machine.
fn kill_app(machine: &Machine) {
    let mark = format!("bin/app {}", machine.vm().display());
    let mut killed = false;
    for entry in std::fs::read_dir("/proc").unwrap() {
        let path = entry.unwrap().path();
        let line = std::fs::read(path.join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        let pid = path
            .file_name()
            .unwrap()
            .to_str()
            .and_then(|p| p.parse().ok());
        if let (true, Some(pid)) = (line.contains(&mark), pid) {
            // SAFETY: a system call on the process of this test's application.
            unsafe { libc::kill(pid, libc::SIGKILL) };
            killed = true;
        }
    }
    assert!(killed);
}

#[test]
fn a_port_that_is_down_restarts_the_application_and_in_the_end_moves_it() {
    let checks = "<check><tcp ident=\"web\"><to addr=\"127.0.0.1\" port=\"7000\" interval=\"1s\"/></tcp>\
                  </check><failover handle_time=\"300ms\"/>";
    let stage = Stage::with("isolation=\"wait\" maxloop=\"2\"", |_| checks.into());
    let (here, _there) = (listener(&stage.network, 0), listener(&stage.network, 1));
    let stage = stage.run();
    let up = || stage.a.state()["resources"]["tcp.web"] == "up";
    assert!(wait_until(PATIENCE, up), "{}", stage.a.log());
    assert_eq!(stage.a.starts(), 1);
    drop(here);
    stage.b.wait("ALONE", "Ready");
    stage.a.wait("STOP", "NotReady");
    assert_eq!(stage.a.starts(), 3, "{}", stage.a.log());
    says(
        &stage.a,
        "restart: the rule t_web (tcp.web: no connection to 127.0.0.1 port 7000",
    );
    says(&stage.a, "maxloop: 3 times");
    stage.b.assert_found_all_of(&stage.a);
    stage.b.works();
    // The operator repairs it, and nothing is counted against it any more.
    let _here = listener(&stage.network, 0);
    stage.a.must(&["start"]);
    stage.a.wait("SECOND", "Ready");
    stage.assert_identical();
}

#[test]
fn a_process_that_is_killed_is_started_again_without_waiting() {
    let stage = Stage::with("isolation=\"wait\"", |home| {
        format!(
            "<errd polltimer=\"1s\"><proc name=\"app\" argregex=\"bin/app {}/vm \" \
             action=\"restart\"/></errd>",
            home.display()
        )
    });
    let stage = stage.run();
    let up = || stage.a.state()["resources"]["proc.app"] == "up";
    assert!(wait_until(PATIENCE, up), "{}", stage.a.log());
    kill_app(&stage.a);
    let again = || stage.a.starts() == 2;
    assert!(wait_until(PATIENCE, again), "{}", stage.a.log());
    stage.a.works();
    stage.a.wait("PRIM", "Ready");
    says(&stage.a, "restart: the rule proc_app");
    stage.assert_identical();
}

#[test]
fn what_maxloop_counts_outlives_the_daemon_and_the_boot_until_the_operator_says_something() {
    let mut stage = Stage::with("isolation=\"wait\" maxloop=\"1\"", |home| {
        format!(
            "<errd polltimer=\"1s\"><proc name=\"app\" argregex=\"bin/app {}/vm \" \
             action=\"restart\"/></errd>",
            home.display()
        )
    })
    .run();
    let counted = |machine: &Machine| machine.memory()["loops"].as_array().unwrap().len();
    let is_up = |machine: &Machine| {
        let up = || machine.state()["resources"]["proc.app"] == "up";
        assert!(wait_until(PATIENCE, up), "{}", machine.log());
    };
    is_up(&stage.a);
    assert_eq!(counted(&stage.a), 0);
    kill_app(&stage.a);
    let again = || stage.a.starts() == 2 && stage.a.is("PRIM", "Ready");
    assert!(wait_until(PATIENCE, again), "{}", stage.a.log());
    is_up(&stage.a);
    assert_eq!(counted(&stage.a), 1);
    stage.a.kill_daemon();
    stage.a.start_daemon();
    stage.a.wait("PRIM", "Ready");
    is_up(&stage.a);
    kill_app(&stage.a);
    stage.b.wait("ALONE", "Ready");
    stage.a.wait("STOP", "NotReady");
    says(&stage.a, "maxloop: 2 times");
    assert_eq!((stage.a.starts(), stage.b.starts()), (2, 1));
    stage.b.assert_found_all_of(&stage.a);
    stage.a.reboot();
    assert!(stage.a.is("STOP", "NotReady"), "{}", stage.a.log());
    stage.a.must(&["shutdown"]);
    assert_eq!(counted(&stage.a), 2);
    stage.a.must(&["start"]);
    assert_eq!(counted(&stage.a), 0);
    stage.a.wait("SECOND", "Ready");
    stage.b.works();
    stage.assert_identical();
}

#[test]
fn an_application_that_is_killed_again_and_again_is_restarted_and_in_the_end_moves() {
    let stage = Stage::with("isolation=\"wait\" maxloop=\"2\"", |home| {
        format!(
            "<errd polltimer=\"1s\"><proc name=\"app\" argregex=\"bin/app {}/vm \" \
             action=\"restart\"/></errd><failover handle_time=\"300ms\"/>",
            home.display()
        )
    });
    let stage = stage.run();
    let up = |machine: &Machine| machine.state()["resources"]["proc.app"] == "up";
    for starts in 1..=3 {
        let runs = || stage.a.starts() == starts && up(&stage.a);
        assert!(wait_until(PATIENCE, runs), "{}", stage.a.log());
        stage.a.works();
        assert_eq!(stage.b.starts(), 0, "it is restarted where it is");
        kill_app(&stage.a);
    }
    stage.b.wait("ALONE", "Ready");
    stage.a.wait("STOP", "NotReady");
    says(&stage.a, "restart: the rule proc_app");
    says(&stage.a, "maxloop: 3 times");
    stage.b.assert_found_all_of(&stage.a);
    stage.b.works();
    assert_eq!((stage.a.starts(), stage.b.starts()), (3, 1));
    // What was killed there counts for nothing here.
    assert!(wait_until(PATIENCE, || up(&stage.b)), "{}", stage.b.log());
    stage.a.must(&["start"]);
    stage.a.wait("SECOND", "Ready");
    stage.b.wait("PRIM", "Ready");
    stage.assert_identical();
}

#[test]
fn a_checker_that_is_to_start_later_says_nothing_until_then() {
    // Processes that nobody has ever started.
    let checks = "<errd polltimer=\"1s\"><proc name=\"none-soon\" start_after=\"2s\" action=\"noaction\"/>\
                  <proc name=\"none-late\" start_after=\"1h\" action=\"restart\"/></errd>\
                  <failover handle_time=\"300ms\"/>";
    let stage = Stage::with("isolation=\"wait\"", |_| checks.into()).run();
    let resource = |name: &str| stage.a.state()["resources"][name].clone();
    let down = || resource("proc.none-soon") == "down";
    assert!(wait_until(PATIENCE, down), "{}", stage.a.log());
    for _ in 0..5 {
        stage.a.works();
    }
    assert_eq!(resource("proc.none-late"), "init");
    assert_eq!((stage.a.starts(), stage.b.starts()), (1, 0));
    stage.assert_identical();
}

#[test]
fn a_primary_without_its_public_interface_waits_while_the_other_serves() {
    let vip = "<vip><interface_list><interface name=\"public\"><real_interface>\
               <virtual_addr addr=\"10.80.0.100\"/></real_interface></interface>\
               </interface_list></vip><failover handle_time=\"300ms\"/>";
    let stage = Stage::with("isolation=\"wait\"", |_| vip.into());
    let _user = stage.network.public().unwrap();
    let stage = stage.run();
    let end = stage.network.namespace(0).unwrap();
    run_ip(&end, "link set public down").unwrap();
    stage.b.wait("ALONE", "Ready");
    stage.b.works();
    stage.a.wait("WAIT", "NotReady");
    let reason = stage.a.state()["reason"].to_string();
    assert!(reason.contains("interface_failure"), "{reason}");
    assert!(reason.contains("intf.public: public is down"), "{reason}");
    let told = || stage.b.state()["peer"]["state"] == "WAIT";
    assert!(wait_until(PATIENCE, told), "{}", stage.b.log());
    run_ip(&end, "link set public up").unwrap();
    stage.a.wait("SECOND", "Ready");
    stage.b.wait("PRIM", "Ready");
    assert_eq!((stage.a.starts(), stage.b.starts()), (1, 1));
    stage.assert_identical();
}

#[test]
fn without_the_built_in_rules_a_primary_whose_interface_is_down_goes_on() {
    let vip = "<vip><interface_list><interface name=\"public\"><real_interface>\
               <virtual_addr addr=\"10.80.0.100\"/></real_interface></interface>\
               </interface_list></vip><failover extends=\"no\" handle_time=\"300ms\"><![CDATA[\
               own: if (custom.word == down) then swap;]]></failover>";
    let stage = Stage::with("isolation=\"wait\"", |_| vip.into());
    let _user = stage.network.public().unwrap();
    let stage = stage.run();
    let end = stage.network.namespace(0).unwrap();
    run_ip(&end, "link set public down").unwrap();
    let down = || stage.a.state()["resources"]["intf.public"] == "down";
    assert!(wait_until(PATIENCE, down), "{}", stage.a.log());
    for _ in 0..5 {
        stage.a.works();
    }
    assert!(stage.a.is("PRIM", "Ready"), "{}", stage.a.log());
    // The operator's own rules hold.
    run_ip(&end, "link set public up").unwrap();
    stage.a.must(&["set", "-r", "custom.word", "-v", "down"]);
    stage.b.wait("PRIM", "Ready");
    says(&stage.a, "swap: the rule own");
    stage.a.wait("SECOND", "Ready");
    assert_eq!((stage.a.starts(), stage.b.starts()), (1, 1));
    stage.assert_identical();
}

#[test]
fn an_address_that_somebody_removes_moves_the_application() {
    let vip = "<vip><interface_list><interface name=\"public\" check=\"off\"><real_interface>\
               <virtual_addr addr=\"10.80.0.100\"/></real_interface></interface>\
               </interface_list></vip><failover handle_time=\"300ms\"/>";
    let stage = Stage::with("isolation=\"wait\"", |_| vip.into());
    let _user = stage.network.public().unwrap();
    let stage = stage.run();
    let end = stage.network.namespace(0).unwrap();
    run_ip(&end, "addr del 10.80.0.100/24 dev public").unwrap();
    stage.b.wait("PRIM", "Ready");
    stage.a.wait("SECOND", "Ready");
    says(&stage.a, "stopstart: the rule ip_failure");
    says(&stage.b, "10.80.0.100 is set on public");
    stage.assert_identical();
}

#[test]
fn what_is_set_by_hand_and_what_the_peer_says_of_itself_count_in_rules() {
    let rule = "<failover handle_time=\"300ms\"><![CDATA[\
                balance: if (custom.load == down && remote.custom.load == up) then swap;\
                ]]></failover>";
    let stage = Stage::with("isolation=\"wait\"", |_| rule.into()).run();
    let set = |machine: &Machine, state| {
        machine.must(&["set", "-r", "custom.load", "-v", state]);
    };
    set(&stage.a, "down");
    std::thread::sleep(Duration::from_secs(1));
    assert!(stage.a.is("PRIM", "Ready"), "{}", stage.a.log());
    set(&stage.b, "up");
    stage.b.wait("PRIM", "Ready");
    stage.a.wait("SECOND", "Ready");
    says(&stage.a, "swap: the rule balance");
    let (code, _, said) = stage.a.cli(&["set", "-r", "load", "-v", "up"]);
    assert!(code != 0 && said.contains("class.id"), "{said}");
    let (code, ..) = stage.a.cli(&["set", "-r", "a.b", "-v", "broken"]);
    assert_ne!(code, 0);
    stage.assert_identical();
}

/// A program that says `down` as long as a file is there.
fn program() -> String {
    format!(
        "#!/bin/sh\necho \"$*\" >>\"$HOME_OF_TEST/checked\"\nwhile :; do\n\
         [ -e \"$HOME_OF_TEST/bad\" ] && state=down || state=up\n\
         {} set -m \"$1\" -r \"$2\" -v $state\nsleep 0.3\ndone\n",
        controller().display()
    )
}

#[test]
fn a_program_of_the_operator_moves_the_application_unless_checkers_are_suspended() {
    let check = "<check><custom ident=\"own\" when=\"prim\" exec=\"look\" arg=\"more words\" \
                 action=\"stopstart\"/></check><failover handle_time=\"300ms\"/>";
    let stage = Stage::with("isolation=\"wait\"", |_| check.into());
    for machine in [&stage.a, &stage.b] {
        executable(&machine.home().join("etc/modules/vm/bin/look"), &program());
    }
    let mut stage = stage.run();
    let state = |machine: &Machine| machine.state()["resources"]["custom.own"].clone();
    let up = || state(&stage.a) == "up";
    assert!(wait_until(PATIENCE, up), "{}", stage.a.log());
    let checked = std::fs::read_to_string(stage.a.home().join("checked")).unwrap();
    assert_eq!(checked, "vm custom.own more words\n");
    // It ends with its daemon, and is started by the next one; the operator's word stays.
    stage.a.must(&["checker", "off"]);
    stage.a.kill_daemon();
    stage.a.start_daemon();
    stage.a.wait("PRIM", "Ready");
    std::fs::write(stage.a.home().join("bad"), "").unwrap();
    std::thread::sleep(Duration::from_secs(2));
    assert!(stage.a.is("PRIM", "Ready"), "{}", stage.a.log());
    assert_eq!((state(&stage.a) == "down", stage.a.starts()), (false, 1));
    stage.a.must(&["checker", "on"]);
    stage.b.wait("PRIM", "Ready");
    stage.a.wait("SECOND", "Ready");
    assert_eq!((stage.a.starts(), stage.b.starts()), (1, 1));
    stage.assert_identical();
}

#[test]
fn what_a_checkers_program_says_after_its_end_does_not_count() {
    let check = "<check><custom ident=\"own\" when=\"prim\" exec=\"look\" action=\"stopstart\"/>\
                 </check><failover handle_time=\"300ms\"/>";
    let stage = Stage::with("isolation=\"wait\"", |_| check.into());
    for machine in [&stage.a, &stage.b] {
        executable(&machine.home().join("etc/modules/vm/bin/look"), &program());
    }
    let stage = stage.run();
    let state = |machine: &Machine| machine.state()["resources"]["custom.own"].clone();
    assert!(wait_until(PATIENCE, || state(&stage.a) == "up"));
    let late = ["set", "-r", "custom.own", "-v", "down"];
    let (code, _, said) = stage.b.cli(&late);
    assert!(code != 0 && said.contains("in the state SECOND"), "{said}");
    stage.a.must(&["checker", "off"]);
    let (code, _, said) = stage.a.cli(&late);
    assert!(code != 0 && said.contains("suspended"), "{said}");
    stage.a.must(&["checker", "on"]);
    assert!(wait_until(PATIENCE, || state(&stage.a) == "up"));
    // Longer than a rule waits.
    std::thread::sleep(Duration::from_secs(1));
    assert!(stage.a.is("PRIM", "Ready") && stage.b.is("SECOND", "Ready"));
    assert!(state(&stage.b).is_null());
    assert_eq!((stage.a.starts(), stage.b.starts()), (1, 0));
    stage.assert_identical();
}

#[test]
fn a_module_runs_as_long_as_the_one_does_that_it_needs() {
    let check = "<check><module name=\"db\"/></check><failover handle_time=\"300ms\"/>";
    let mut stage = Stage::with("isolation=\"wait\"", |_| check.into());
    stage.make_folders("db", 10);
    for machine in [&mut stage.a, &mut stage.b] {
        let db = "<safe><service isolation=\"wait\"><heart timeout=\"3s\"/><rfs>\
                  <replicated dir=\"%HOME_OF_TEST%/db\"/></rfs></service></safe>";
        write(&machine.home().join("etc/modules/db/userconfig.xml"), db);
        machine.kill_daemon();
        machine.start_daemon();
    }
    let both = |a: &str, b: &str, module: &str| {
        stage.a.must(&[a, "-m", module]);
        stage.b.must(&[b, "-m", module]);
    };
    both("prim", "second", "vm");
    stage.a.wait("WAIT", "NotReady");
    let reason = stage.a.state()["reason"].to_string();
    assert!(reason.contains("module_failure"), "{reason}");
    // It is on the other node that it serves; that is enough.
    both("prim", "second", "db");
    stage.a.wait("PRIM", "Ready");
    stage.b.wait("SECOND", "Ready");
    stage
        .b
        .must(&["waitstate", "-m", "db", "SECOND", "--status", "Ready"]);
    stage.a.must(&["swap", "-m", "db"]);
    stage
        .b
        .must(&["waitstate", "-m", "db", "PRIM", "--status", "Ready"]);
    stage.a.works();
    both("stop", "stop", "db");
    stage.a.wait("WAIT", "NotReady");
    stage.b.wait("WAIT", "NotReady");
    both("start", "start", "db");
    let together = || {
        let serves =
            |one: &Machine, other: &Machine| one.is("PRIM", "Ready") && other.is("SECOND", "Ready");
        serves(&stage.a, &stage.b) || serves(&stage.b, &stage.a)
    };
    assert!(wait_until(PATIENCE, together), "{}", stage.a.log());
    stage.assert_identical();
}

/// Lets the user's machine answer, or not.
fn answers(user: &File, state: &str) {
    run_ip(user, &format!("link set lan {state}")).unwrap();
}

#[test]
fn a_module_starts_when_what_it_needs_is_there_whatever_becomes_of_its_daemon() {
    let check = "<check><ping ident=\"user\"><to addr=\"10.80.0.3\" interval=\"1s\" timeout=\"1s\"/>\
                 </ping></check>";
    let stage = Stage::with("isolation=\"wait\"", |_| check.into());
    let user = stage.network.public().unwrap();
    let mut stage = stage;
    answers(&user, "down");
    stage.a.must(&["prim"]);
    stage.b.must(&["second"]);
    stage.a.wait("WAIT", "NotReady");
    let reason = stage.a.state()["reason"].to_string();
    assert!(reason.contains("the rule p_user says to wait"), "{reason}");
    stage.a.kill_daemon();
    stage.a.start_daemon();
    stage.a.wait("WAIT", "NotReady");
    assert_eq!((stage.a.driver(), stage.a.starts()), (None, 0));
    answers(&user, "up");
    stage.a.wait("PRIM", "Ready");
    stage.b.wait("SECOND", "Ready");
    stage.a.works();
    stage.assert_identical();
}

#[test]
fn a_primary_that_reaches_an_address_no_more_while_it_runs_waits_and_the_other_serves() {
    let check = "<check><ping ident=\"user\"><to addr=\"10.80.0.3\" interval=\"1s\" timeout=\"1s\"/>\
                 </ping></check><failover handle_time=\"300ms\"/>";
    let stage = Stage::with("isolation=\"wait\"", |_| check.into());
    let user = stage.network.public().unwrap();
    let stage = stage.run();
    let up = |machine: &Machine| machine.state()["resources"]["ping.user"] == "up";
    for machine in [&stage.a, &stage.b] {
        assert!(wait_until(PATIENCE, || up(machine)), "{}", machine.log());
    }
    // The switch's port to A.
    run_ip(&user, "link set port0 down").unwrap();
    stage.b.wait("ALONE", "Ready");
    stage.a.wait("WAIT", "NotReady");
    says(
        &stage.a,
        "wait: the rule p_user (ping.user: 10.80.0.3 does not answer",
    );
    stage.b.assert_found_all_of(&stage.a);
    stage.b.works();
    run_ip(&user, "link set port0 up").unwrap();
    stage.a.wait("SECOND", "Ready");
    stage.b.wait("PRIM", "Ready");
    assert_eq!((stage.a.starts(), stage.b.starts()), (1, 1));
    stage.assert_identical();
}

#[test]
fn what_a_node_said_before_it_was_silent_counts_in_no_rule() {
    let rule = "<failover handle_time=\"300ms\"><![CDATA[\
                both: if (custom.room == down && remote.custom.room == down) then stop;\
                ]]></failover>";
    let mut stage = Stage::with("isolation=\"alone\"", |_| rule.into()).run();
    let set = |machine: &Machine, state| {
        machine.must(&["set", "-r", "custom.room", "-v", state]);
    };
    set(&stage.b, "down");
    let shown = || stage.b.state()["resources"]["custom.room"] == "down";
    assert!(wait_until(PATIENCE, shown));
    stage.b.kill_everything();
    stage.a.wait("ALONE", "Ready");
    set(&stage.a, "down");
    std::thread::sleep(Duration::from_secs(2));
    assert!(stage.a.is("ALONE", "Ready"), "{}", stage.a.log());
    // Both say so.
    stage.b.start_daemon();
    stage.b.wait("SECOND", "Ready");
    stage.a.wait("PRIM", "Ready");
    set(&stage.b, "down");
    stage.a.wait("STOP", "NotReady");
}
