//! The demonstration shows what it says, and leaves nothing behind, however it ends.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use harness::{Scratch, process, wait_until};
use serde_json::Value;

use crate::PATIENCE;
use crate::stage::{controller, kill};

fn demo(directory: &Path) -> Command {
    let mut command = Command::new(controller());
    command.args(["demo", "--json", "--ops", "4000", "--dir"]);
    command.arg(directory).stdin(Stdio::null());
    command
}

/// Processes that were told of the directory.
fn processes(directory: &Path) -> Vec<String> {
    let shown = directory.display().to_string();
    let all = std::fs::read_dir("/proc").unwrap().flatten();
    let commands = all.filter_map(|e| std::fs::read(e.path().join("cmdline")).ok());
    let commands = commands.map(|c| String::from_utf8_lossy(&c).replace('\0', " "));
    commands.filter(|c| c.contains(&shown)).collect()
}

fn nothing_runs(directory: &Path) {
    let gone = wait_until(PATIENCE, || processes(directory).is_empty());
    assert!(gone, "{:?}", processes(directory));
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let shown = directory.display().to_string();
    assert!(!mounts.contains(&shown), "{mounts}");
}

fn is_empty(directory: &Path) -> bool {
    std::fs::read_dir(directory).unwrap().next().is_none()
}

/// Begins it, until the application works.
fn begun(directory: &Path) -> Child {
    let mut command = demo(directory);
    command.stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = process::start(command).unwrap();
    let mut said = BufReader::new(child.stderr.take().unwrap()).lines();
    let works = said.any(|l| l.unwrap().contains("the application works on node-a"));
    assert!(works, "it ended");
    // Whatever it still says is read.
    std::thread::spawn(move || said.count());
    assert!(processes(directory).len() > 4, "what runs is not seen");
    child
}

#[test]
fn the_demonstration_fails_over_and_back_and_swaps_and_loses_nothing() {
    let scratch = Scratch::new();
    let output = demo(scratch.path()).output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{told}");
    let shown: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(shown["lost"], 0, "{shown} {told}");
    assert_eq!(shown["identical"], true, "{shown} {told}");
    assert!(shown["acknowledged"].as_u64() >= Some(4000), "{shown}");
    for part in [
        "by a token",
        "power of node-a was cut",
        "swap",
        "node-a is PRIM again",
    ] {
        assert!(told.contains(part), "{part}: {told}");
    }
    nothing_runs(scratch.path());
    assert!(is_empty(scratch.path()));
}

#[test]
fn a_demonstration_that_is_interrupted_leaves_nothing_behind() {
    let scratch = Scratch::new();
    let mut child = begun(scratch.path());
    kill(child.id() as i32, libc::SIGINT);
    assert_eq!(child.wait().unwrap().code(), Some(130));
    nothing_runs(scratch.path());
    assert!(is_empty(scratch.path()));
}

#[test]
fn a_demonstration_that_is_killed_leaves_a_directory_at_most_and_the_next_one_removes_it() {
    let scratch = Scratch::new();
    let mut child = begun(scratch.path());
    kill(child.id() as i32, libc::SIGKILL);
    child.wait().unwrap();
    nothing_runs(scratch.path());
    let mut child = begun(scratch.path());
    let left = std::fs::read_dir(scratch.path()).unwrap().count();
    assert_eq!(left, 1, "that of the run that goes on");
    kill(child.id() as i32, libc::SIGTERM);
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert!(is_empty(scratch.path()));
}
