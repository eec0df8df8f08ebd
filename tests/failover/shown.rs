//! What an operator sees: states that are watched, logs that are followed, a resync that runs.

use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use harness::{process, wait_until};

use crate::PATIENCE;
use crate::stage::{Machine, Stage, controller, executable};

/// A command that goes on until it is dropped, and what it has printed.
struct Going {
    child: Child,
    output: PathBuf,
}

impl Going {
    fn new(machine: &Machine, name: &str, arguments: &[&str]) -> Going {
        let output = machine.home().join(name);
        let mut command = Command::new(controller());
        command
            .arg("--home")
            .arg(machine.home())
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(File::create(&output).unwrap())
            .stderr(Stdio::inherit());
        Going {
            child: process::start(command).unwrap(),
            output,
        }
    }

    fn text(&self) -> String {
        std::fs::read_to_string(&self.output).unwrap()
    }

    fn shows(&self, what: &str) {
        let shown = wait_until(PATIENCE, || self.text().contains(what));
        assert!(shown, "{what:?} is not in {:?}", self.text());
    }
}

impl Drop for Going {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_state_that_is_watched_and_logs_that_are_followed_go_on_through_an_exchange_of_the_roles() {
    let stage = Stage::running("isolation=\"wait\"");
    let state = Going::new(&stage.a, "watched", &["state", "--watch", "-m", "vm"]);
    let both = Going::new(
        &stage.b,
        "both",
        &["-H", "*", "state", "--watch", "-m", "vm"],
    );
    let log = Going::new(&stage.a, "followed", &["-H", "*", "log", "--follow"]);
    state.shows("vm: a PRIM Ready, up to date");
    log.shows(" a vm state: PRIM Ready");
    stage.a.must(&["swap"]);
    state.shows("vm: a SECOND Ready, up to date");
    state.shows("  b PRIM Ready, up to date");
    // Both nodes at once, each as it sees the two.
    for node in [
        "vm: a SECOND Ready, up to date",
        "vm: b PRIM Ready, up to date",
    ] {
        both.shows(node);
    }
    log.shows(" a vm state: SECOND Ready");
    log.shows(" b vm state: PRIM Ready");
    let (state, log) = (state.text(), log.text());
    // What is no terminal gets no colours, and one state after the other.
    assert!(!state.contains('\x1b'), "{state:?}");
    for (n, line) in log.lines().enumerate() {
        let again = log.lines().skip(n + 1).any(|other| other == line);
        assert!(!again, "twice: {line}");
    }
    let painted = stage.b.must(&["state", "--color", "always"]);
    assert!(painted.contains("\x1b[32mPRIM Ready\x1b[0m"), "{painted:?}");

    let lines = stage.a.must(&["log", "--json", "-n", "5"]);
    let events: Vec<serde_json::Value> = lines
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(events.len(), 5, "{lines}");
    for event in &events {
        assert!(
            event["time"].is_u64() && event["kind"].is_string(),
            "{event}"
        );
        assert_eq!(
            (&event["node"], &event["module"]),
            (&"a".into(), &"vm".into())
        );
    }
    stage.assert_identical();
}

#[test]
fn the_output_of_an_application_is_shown_and_followed_from_one_run_into_the_next() {
    let stage = Stage::running("isolation=\"wait\"");
    let start = stage.a.home().join("etc/modules/vm/bin/start_prim");
    let text = std::fs::read_to_string(&start).unwrap();
    let says = format!("{text}echo \"start number $(wc -l <\"$HOME_OF_TEST/starts\")\"\n");
    executable(&start, &says);
    let followed = Going::new(&stage.a, "followed", &["log", "-a", "--follow"]);
    followed.shows("--- start_prim ");
    stage.a.must(&["restart"]);
    followed.shows("\nstart number 2\n");
    let told = stage.a.must(&["log", "--application", "-n", "1"]);
    assert_eq!(told, "start number 2");
    // Nobody follows, so that it serves again at once.
    for machine in [&stage.b, &stage.a] {
        machine.must(&["stop"]);
        machine.wait("STOP", "NotReady");
    }
    for machine in [&stage.a, &stage.b] {
        machine.must(&["start"]);
    }
    stage.a.wait("PRIM", "Ready");
    stage.b.wait("SECOND", "Ready");
    followed.shows("\nstart number 3\n");
    assert_eq!(followed.text().matches("start number 2\n").count(), 1);
    let told = stage.a.must(&["log", "--application"]);
    assert!(
        told.contains("start number 3") && !told.contains("number 2"),
        "{told}"
    );
    let before = stage.b.must(&["-H", "a", "log", "-a", "--run", "1"]);
    assert!(before.contains("start number 2"), "{before}");
    let both = stage.b.must(&["-H", "*", "log", "-a"]);
    assert!(
        both.lines().any(|line| line == "a: start number 3"),
        "{both}"
    );
    let (code, _, said) = stage.a.cli(&["log", "-a", "--run", "9"]);
    assert!(code == 1 && said.contains("is not kept"), "{said}");
    drop(followed);
    stage.assert_identical();
}

#[test]
fn a_resync_that_runs_is_shown_with_its_rate_on_both_nodes() {
    let slow = "<rfs reiallowedbw=\"500\"><replicated dir=\"%HOME_OF_TEST%/vm\"/></rfs>";
    let stage = Stage::with("isolation=\"wait\"", |_| slow.into());
    stage.a.must(&["prim"]);
    stage.a.wait("ALONE", "Ready");
    let bytes: Vec<u8> = (0..32_u32 << 20).map(|n| ((n * 31) >> 7) as u8).collect();
    std::fs::write(stage.a.vm().join("large"), bytes).unwrap();
    stage.b.must(&["second"]);
    let moves = |machine: &Machine| {
        let state = machine.state();
        state["percent"].is_u64() && state["resync"]["rate"].as_u64() > Some(0)
    };
    for machine in [&stage.a, &stage.b] {
        let shown = wait_until(PATIENCE, || moves(machine));
        assert!(shown, "{}: {}", machine.state(), machine.log());
    }
    let screen = stage.b.must(&["state"]);
    let line = screen.lines().find(|line| line.contains("resync: "));
    let line = line.unwrap_or_else(|| panic!("{screen}"));
    assert!(line.contains("] ") && line.contains(" MB/s"), "{screen}");
    let figures = stage.b.must(&["metrics"]);
    let figure = "twinfold_resync_bytes_per_second{module=\"vm\"}";
    assert!(figures.contains(figure), "{figures}");
    for machine in [&stage.a, &stage.b] {
        let folder = machine.vm().display().to_string();
        machine.must(&["fs", "limit", &folder, "none"]);
    }
    stage.b.wait("SECOND", "Ready");
    let quiet = || stage.b.state()["resync"].is_null();
    assert!(wait_until(PATIENCE, quiet), "{}", stage.b.state());
    stage.assert_identical();
}
