//! How the tests run the program.

use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// A run takes a few seconds; a machine may be busy.
pub(crate) const PATIENCE: Duration = Duration::from_secs(240);

/// How often something is looked at that is waited for.
pub(crate) const LOOK: Duration = Duration::from_millis(20);

/// Waits until it is so; whether it is.
pub(crate) fn wait_until(mut so: impl FnMut() -> bool) -> bool {
    let until = Instant::now() + PATIENCE;
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
pub(crate) fn end(mut child: Child) -> Output {
    if !wait_until(|| child.try_wait().unwrap().is_some()) {
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
