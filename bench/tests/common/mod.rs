//! How the tests run the program.

// Each test program uses a part of it.
#![allow(dead_code)]

use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// A run takes a few seconds; a machine may be busy.
pub(crate) const PATIENCE: Duration = Duration::from_secs(240);

/// How often something is looked at that is waited for.
pub(crate) const LOOK: Duration = Duration::from_millis(20);

/// Waits until it is so; whether it is.
pub(crate) fn wait_until(so: impl FnMut() -> bool) -> bool {
    wait_within(PATIENCE, so)
}

fn wait_within(patience: Duration, mut so: impl FnMut() -> bool) -> bool {
    let until = Instant::now() + patience;
    while !so() {
        if Instant::now() > until {
            return false;
        }
        std::thread::sleep(LOOK);
    }
    true
}

/// Starts a command whose words are read at its end: they have to fit into the pipes.
pub(crate) fn start(mut command: Command) -> Child {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command.spawn().unwrap()
}

/// Waits for the end of the program; it is ended when it takes too long.
pub(crate) fn end(child: Child) -> Output {
    end_within(child, PATIENCE.as_secs())
}

/// The same with another patience, in seconds.
pub(crate) fn end_within(mut child: Child, seconds: u64) -> Output {
    let patience = Duration::from_secs(seconds);
    if !wait_within(patience, || child.try_wait().unwrap().is_some()) {
        // An interrupted run takes its mounts away.
        let id = child.id().to_string();
        Command::new("kill").arg(id).status().unwrap();
        panic!("twinfold-bench does not end");
    }
    child.wait_with_output().unwrap()
}

/// Runs the program.
pub(crate) fn bench(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_twinfold-bench"));
    command.args(args);
    end(start(command))
}
