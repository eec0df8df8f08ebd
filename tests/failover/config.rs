//! Configuring both nodes from one of them, and commanding both.

use std::time::Duration;

use harness::wait_until;

use crate::PATIENCE;
use crate::stage::{Machine, Stage, executable};

fn xml(machine: &Machine) -> std::path::PathBuf {
    machine.home().join("etc/modules/vm/userconfig.xml")
}

fn edit(machine: &Machine, from: &str, to: &str) {
    let text = std::fs::read_to_string(xml(machine)).unwrap();
    assert!(text.contains(from), "{text}");
    std::fs::write(xml(machine), text.replace(from, to)).unwrap();
}

fn version(machine: &Machine) -> String {
    machine.must(&["confinfo", "-m", "vm"])
}

#[test]
fn a_configuration_is_applied_to_both_nodes_while_they_run_and_a_wrong_one_to_none() {
    let stage = Stage::running("maxloop=\"3\" isolation=\"wait\"");
    assert!(version(&stage.a).contains("nothing was applied"));
    edit(&stage.a, "maxloop=\"3\"", "maxloop=\"7\"");
    let bin = stage.a.home().join("etc/modules/vm/bin");
    executable(
        &bin.join("transition"),
        "#!/bin/sh\necho \"$1 $2\" >>\"$HOME_OF_TEST/transitions\"\n",
    );
    let told = stage.a.must(&["config", "-m", "vm"]);
    // What it promises is said by the command and in the log of both daemons.
    let note = "userconfig.xml:1:42: isolation=\"wait\": a node that does not hear";
    assert!(told.contains(note), "{told}");
    for machine in [&stage.a, &stage.b] {
        let log = std::fs::read_to_string(machine.home().join("daemon.log")).unwrap();
        assert!(log.contains(note), "{log}");
    }
    let first = version(&stage.a);
    assert!(first.contains("version 1"), "{first}");
    assert_eq!(first, version(&stage.b));
    let text = |machine: &Machine| std::fs::read_to_string(xml(machine)).unwrap();
    assert_eq!(text(&stage.a), text(&stage.b));
    stage.a.works();
    assert_eq!((stage.a.starts(), stage.b.starts()), (1, 0));

    // A mistake, and what cannot change now, reach neither node.
    edit(&stage.a, "maxloop=\"7\"", "maxlop=\"7\"");
    let (code, _, said) = stage.a.cli(&["config", "-m", "vm"]);
    assert_eq!(code, 1);
    assert!(said.contains("maxlop") && said.contains("on a"), "{said}");
    edit(&stage.a, "maxlop=\"7\"", "maxloop=\"7\"");
    edit(&stage.a, "HOME_OF_TEST%/vm", "HOME_OF_TEST%/other");
    let (code, _, said) = stage.a.cli(&["config", "-m", "vm"]);
    assert_eq!(code, 1, "{said}");
    edit(&stage.a, "HOME_OF_TEST%/other", "HOME_OF_TEST%/vm");
    assert_eq!(first, version(&stage.a));
    assert_eq!(first, version(&stage.b));

    // The other node runs the new script.
    stage.a.must(&["swap"]);
    stage.b.wait("PRIM", "Ready");
    stage.a.wait("SECOND", "Ready");
    let ran = |machine: &Machine| machine.home().join("transitions").exists();
    assert!(wait_until(PATIENCE, || ran(&stage.b)), "{}", stage.b.log());
    for n in 0..4 {
        let script = stage.b.home().join("etc/modules/vm/bin/poststop");
        executable(&script, &format!("#!/bin/sh\nexit {n}\n"));
        stage.b.must(&["config", "-m", "vm"]);
    }
    let last = version(&stage.a);
    assert!(
        last.contains("version 5") && last.contains("3, 4, 5"),
        "{last}"
    );
    assert_eq!(last, version(&stage.b));
    stage.b.works();
    stage.assert_identical();
}

#[test]
fn confcheck_names_what_the_daemon_refuses_in_the_same_words() {
    let mut stage = Stage::new("isolation=\"wait\"");
    edit(
        &stage.a,
        "<heart timeout=\"3s\"/>",
        "<heart timeout=\"3s\" port=\"8888\"><heartbeat name=\"dark\"/></heart>",
    );
    let file = xml(&stage.a).display().to_string();
    let (code, _, said) = stage.a.cli(&["confcheck", &file]);
    assert_eq!(code, 1, "{said}");
    // Where, and what.
    let of = |part: &str| {
        let line = said.lines().find(|line| line.contains(part));
        let line = line.unwrap_or_else(|| panic!("{part} is not in {said}"));
        let (_, rest) = line.split_once("userconfig.xml").unwrap();
        rest.to_owned()
    };
    let mistakes = [of("has no lan \"dark\""), of("port is not supported")];
    let (code, _, refused) = stage.a.cli(&["config", "-m", "vm"]);
    assert_eq!(code, 1);
    stage.a.kill_daemon();
    stage.a.start_daemon();
    let shown = stage.a.must(&["state"]);
    for mistake in mistakes {
        assert!(mistake.starts_with(":1:"), "{mistake}");
        assert!(refused.contains(&mistake), "{mistake}: {refused}");
        assert!(shown.contains(&mistake), "{mistake}: {shown}");
    }
    assert!(shown.contains("cannot be run"), "{shown}");
}

#[test]
fn nodes_with_different_configurations_are_not_started() {
    let mut stage = Stage::running("maxloop=\"3\" isolation=\"wait\"");
    stage.a.must(&["config", "-m", "vm"]);
    for machine in [&stage.b, &stage.a] {
        machine.must(&["stop"]);
        machine.wait("STOP", "NotReady");
    }
    // B comes back from a backup, as it were.
    stage.b.kill_everything();
    let silent =
        |expected: bool| move |stage: &Stage| stage.a.state()["peer"]["silent"] == expected;
    // What B said before it died is no more than it was then.
    assert!(
        wait_until(PATIENCE, || silent(true)(&stage)),
        "{}",
        stage.a.log()
    );
    let active = stage.b.home().join("lib/vm/config/active");
    let text = std::fs::read_to_string(&active).unwrap();
    let mut version: serde_json::Value = serde_json::from_str(&text).unwrap();
    version["hash"] = "0123456789abcdef".into();
    std::fs::write(&active, version.to_string()).unwrap();
    stage.b.start_daemon();
    assert!(
        wait_until(PATIENCE, || silent(false)(&stage)),
        "{}",
        stage.a.log()
    );
    let refused = || {
        let (code, _, said) = stage.a.cli(&["start"]);
        code == 1 && said.contains("different configurations")
    };
    assert!(wait_until(PATIENCE, refused), "{}", stage.a.log());
    edit(
        &stage.a,
        "<rfs>",
        "<rfs async=\"none\" reiallowedbw=\"2000\">",
    );
    stage.a.must(&["config", "-m", "vm"]);
    let started = || stage.a.cli(&["-H", "*", "start"]).0 == 0;
    assert!(wait_until(PATIENCE, started), "{}", stage.a.log());
    stage.a.wait("PRIM", "Ready");
    stage.b.wait("SECOND", "Ready");
    for machine in [&stage.a, &stage.b] {
        let settings = machine.data().parent().unwrap().join("state/module.toml");
        let settings = std::fs::read_to_string(settings).unwrap();
        assert!(settings.contains("ack = \"disk\""), "{settings}");
        assert!(settings.contains("resync_limit = 2048000"), "{settings}");
    }
    stage.assert_identical();
}

#[test]
fn either_node_commands_the_other_one_and_both() {
    let stage = Stage::running("isolation=\"wait\"");
    let shown = stage.a.must(&["-H", "b", "state"]);
    assert!(shown.starts_with("node b, peer a"), "{shown}");
    let both = stage.b.must(&["-H", "*", "state"]);
    assert!(
        both.contains("node a, peer b") && both.contains("node b, peer a"),
        "{both}"
    );
    let log = stage.b.must(&["-H", "*", "log", "-m", "vm"]);
    let times: Vec<_> = log.lines().filter_map(|l| l.split(' ').next()).collect();
    assert!(times.is_sorted(), "{log}");
    assert!(log.contains(" a vm ") && log.contains(" b vm "), "{log}");
    let figures = stage.b.must(&["-H", "a", "metrics"]);
    for line in [
        "twinfold_module_state{module=\"vm\",state=\"PRIM\"} 1",
        "twinfold_network_up{network=\"net\"} 1",
        "twinfold_dirty_bytes{module=\"vm\"} 0",
    ] {
        assert!(figures.lines().any(|l| l == line), "{line}: {figures}");
    }
    let into = stage.a.home().display().to_string();
    stage.a.must(&["-H", "*", "snapshot", "--into", &into]);
    for name in ["twinfold-a.zip", "twinfold-b.zip"] {
        let bytes = std::fs::read(stage.a.home().join(name)).unwrap();
        assert!(bytes.starts_with(b"PK"));
        let has = |what: &[u8]| bytes.windows(what.len()).any(|w| w == what);
        assert!(has(b"vm/log/events.log") && has(b"cluster.xml"));
        assert!(!has(b"node.key"));
    }
    let (code, _, said) = stage.a.cli(&["-H", "c", "state"]);
    assert!(code == 1 && said.contains("none of a and b"), "{said}");
    let (code, _, _) = stage.b.cli(&["-H", "a", "state", "-m", "vm"]);
    assert_eq!(code, 3, "PRIM");
    stage.b.must(&["-H", "a", "swap"]);
    stage.b.wait("PRIM", "Ready");
    stage.a.wait("SECOND", "Ready");
    stage.b.works();
    stage.a.must(&["-H", "*", "stop"]);
    for machine in [&stage.a, &stage.b] {
        machine.wait("STOP", "NotReady");
    }
    // Nothing runs any more, and the module is taken away from both.
    stage.b.must(&["deconfig", "-m", "vm"]);
    for machine in [&stage.a, &stage.b] {
        let state = machine.must(&["state", "--json"]);
        assert!(state.contains("\"modules\":[]"), "{state}");
        assert!(machine.data().join("count").exists(), "the data stay");
    }
}

#[test]
fn a_node_that_cannot_be_reached_is_not_configured_and_neither_is_the_other_one() {
    let mut stage = Stage::running("maxloop=\"3\" isolation=\"wait\"");
    stage.b.kill_daemon();
    edit(&stage.a, "maxloop=\"3\"", "maxloop=\"7\"");
    let (code, _, said) = stage.a.cli(&["config", "-m", "vm"]);
    assert!(code == 1 && said.contains("cannot be reached"), "{said}");
    assert!(version(&stage.a).contains("nothing was applied"));
    stage.b.start_daemon();
    stage.a.must(&["config", "-m", "vm"]);
    assert_eq!(version(&stage.a), version(&stage.b));
    stage.a.works();
}

/// How much was heard of the peer so far.
fn heard(machine: &Machine) -> u64 {
    let figures = machine.must(&["metrics"]);
    let name = "twinfold_network_heard_total{network=\"net\"} ";
    let line = figures.lines().find_map(|l| l.strip_prefix(name));
    line.unwrap_or_else(|| panic!("{figures}")).parse().unwrap()
}

/// Waits until a while comes in which the number of heartbeats is one of these.
fn beats(machine: &Machine, within: Duration, right: std::ops::RangeInclusive<u64>) {
    let mut counts = Vec::new();
    let found = wait_until(PATIENCE, || {
        let before = heard(machine);
        std::thread::sleep(within);
        counts.push(heard(machine) - before);
        counts.last().is_some_and(|count| right.contains(count))
    });
    assert!(found, "{counts:?} instead of {right:?}: {}", machine.log());
}

#[test]
fn nodes_beat_as_often_as_a_module_wants_and_otherwise_from_the_moment_it_does() {
    let heart = "<heart pulse=\"40ms\" timeout=\"3s\"/>";
    let stage = Stage::with("isolation=\"wait\"", |_| heart.into()).run();
    let within = Duration::from_secs(4);
    let both = [&stage.a, &stage.b];
    // Of a hundred; twenty where nobody wants another pulse.
    for machine in both {
        beats(machine, within, 50..=120);
    }
    edit(&stage.a, "pulse=\"40ms\"", "pulse=\"2s\"");
    edit(&stage.a, "timeout=\"3s\"", "timeout=\"8s\"");
    stage.a.must(&["config", "-m", "vm"]);
    // Of two.
    for machine in both {
        beats(machine, within, 1..=6);
    }
    // A rare pulse is not taken for a lost network, nor the peer for a silent one.
    let shown = stage.a.must(&["state"]);
    assert!(!shown.contains("lost"), "{shown}");
    stage.a.wait("PRIM", "Ready");
    stage.b.wait("SECOND", "Ready");
    let said = stage.a.must(&["log"]);
    assert!(!said.contains("no heartbeat"), "{said}");
    // And the line was not made anew all the time.
    let line = stage.a.log();
    assert!(!line.contains("the peer is silent"), "{line}");
    stage.a.works();
    assert_eq!((stage.a.starts(), stage.b.starts()), (1, 0));
    // Too short for the timeout, or for anybody: refused with the place, and applied nowhere.
    edit(&stage.a, "pulse=\"2s\"", "pulse=\"1ms\"");
    let (code, _, said) = stage.a.cli(&["config", "-m", "vm"]);
    assert_eq!(code, 1);
    assert!(
        said.contains("userconfig.xml:1:") && said.contains("too short"),
        "{said}"
    );
    edit(&stage.a, "pulse=\"1ms\"", "pulse=\"3s\"");
    let (code, _, said) = stage.a.cli(&["config", "-m", "vm"]);
    assert!(code == 1 && said.contains("less than 3 pulses"), "{said}");
    edit(&stage.a, "pulse=\"3s\"", "pulse=\"200ms\"");
    edit(&stage.a, "timeout=\"8s\"", "timeout=\"3s\"");
    stage.a.must(&["config", "-m", "vm"]);
    // They still find out.
    stage.network.cut().unwrap();
    let isolated = || stage.a.is("WAIT", "NotReady") && stage.b.is("WAIT", "NotReady");
    assert!(wait_until(PATIENCE, isolated), "{}", stage.a.log());
    stage.network.heal().unwrap();
    stage.a.wait("PRIM", "Ready");
    stage.b.wait("SECOND", "Ready");
    stage.assert_identical();
}

#[test]
fn nodes_whose_cluster_xml_differs_say_so_and_go_on() {
    let mut stage = Stage::running("isolation=\"wait\"");
    let both = |stage: &Stage, text: &str, there: bool| {
        let shown = |machine: &Machine| machine.must(&["state"]).contains(text) == there;
        let all = || shown(&stage.a) && shown(&stage.b);
        assert!(wait_until(PATIENCE, all), "{}", stage.a.must(&["state"]));
    };
    both(&stage, "cluster.xml", false);
    let file = stage.b.home().join("etc/cluster.xml");
    let right = std::fs::read_to_string(&file).unwrap();
    // Otherwise written, it says the same.
    std::fs::write(
        &file,
        right.replace("<lan name=", "\n <lan command=\"on\" name="),
    )
    .unwrap();
    stage.b.kill_daemon();
    stage.b.start_daemon();
    stage.b.wait("SECOND", "Ready");
    both(&stage, "lan net: heartbeats", true);
    both(&stage, "cluster.xml", false);
    // Nobody has these addresses.
    let more = "<lan name=\"spare\"><node name=\"a\" addr=\"10.99.0.1\"/>\
                <node name=\"b\" addr=\"10.99.0.2\"/></lan></lans>";
    std::fs::write(&file, right.replace("</lans>", more)).unwrap();
    stage.b.kill_daemon();
    stage.b.start_daemon();
    both(&stage, "cluster.xml is not the same here and on ", true);
    both(&stage, "make both equal", true);
    let (a, b) = (stage.a.must(&["state"]), stage.b.must(&["state"]));
    assert!(a.contains("on b (lan spare is only there)"), "{a}");
    assert!(b.contains("on a (lan spare is only here)"), "{b}");
    for machine in [&stage.a, &stage.b] {
        let noted = || machine.must(&["log"]).contains("lan spare is only");
        assert!(wait_until(PATIENCE, noted), "{}", machine.log());
    }
    stage.a.wait("PRIM", "Ready");
    stage.b.wait("SECOND", "Ready");
    stage.a.works();
    stage.a.must(&["swap"]);
    stage.b.wait("PRIM", "Ready");
    stage.a.wait("SECOND", "Ready");
    stage.b.assert_found_all_of(&stage.a);
    std::fs::write(&file, &right).unwrap();
    stage.b.kill_daemon();
    stage.b.start_daemon();
    both(&stage, "cluster.xml", false);
    let noted = || stage.a.must(&["log"]).contains("does not differ any more");
    assert!(wait_until(PATIENCE, noted), "{}", stage.a.log());
    stage.b.wait("PRIM", "Ready");
    stage.b.works();
    stage.assert_identical();
}

/// Bytes that no file system and no wire makes less of.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 1u64;
    let mut next = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (state >> 56) as u8
    };
    (0..length).map(|_| next()).collect()
}

#[test]
fn another_limit_of_a_resync_counts_while_it_runs() {
    let rfs = "<rfs reiallowedbw=\"100\"><replicated dir=\"%HOME_OF_TEST%/vm\"/></rfs>";
    let stage = Stage::with("isolation=\"wait\"", |_| rfs.into()).run();
    stage.a.must(&["config", "-m", "vm"]);
    stage.b.must(&["stop"]);
    stage.b.wait("STOP", "NotReady");
    stage.a.wait("ALONE", "Ready");
    // At 100 KB/s this takes far longer than anybody waits here.
    let length = 40 << 20;
    std::fs::write(stage.a.vm().join("file"), noise(length)).unwrap();
    stage.b.must(&["start"]);
    let slow = || stage.b.is("SECOND", "Transient") && stage.b.state()["percent"].is_u64();
    assert!(wait_until(PATIENCE, slow), "{}", stage.b.state());
    let drivers = [stage.a.driver(), stage.b.driver()];
    let percent = stage.b.state()["percent"].as_u64().unwrap();
    assert!(percent < 50, "{percent}");
    edit(&stage.a, " reiallowedbw=\"100\"", "");
    stage.a.must(&["config", "-m", "vm"]);
    stage.b.wait("SECOND", "Ready");
    assert_eq!([stage.a.driver(), stage.b.driver()], drivers);
    assert_eq!((stage.a.starts(), stage.b.starts()), (1, 0));
    stage.assert_identical();
}
