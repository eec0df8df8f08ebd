//! Programs that a test lets work on a mount: each in a process group of its own,
//! with a deadline and with what it says kept outside the folder. They end with the
//! test, however that ends.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use crate::process::{self, wait_until};

/// How long a program may take that has a bounded amount to do, on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// Where `name` lies: in the path, or in one of `directories`. Fails the test with
/// the Debian package to install where it is missing.
pub fn require(name: &str, package: &str, directories: &[PathBuf]) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = directories
        .iter()
        .cloned()
        .chain(std::env::split_paths(&path))
        .map(|directory| directory.join(name))
        .find(|program| program.is_file());
    found.unwrap_or_else(|| {
        panic!("this test needs the program `{name}`: apt-get install {package}")
    })
}

/// A running program.
#[derive(Debug)]
pub struct Program {
    what: String,
    /// None when it has ended.
    process: Option<Child>,
    output: File,
    errors: File,
}

impl Program {
    /// Starts it. Without an input of its own it reads nothing.
    pub fn start(command: Command) -> Program {
        Program::start_with(command, Stdio::null())
    }

    /// Starts it with something to read.
    pub fn start_with(mut command: Command, input: impl Into<Stdio>) -> Program {
        let what = format!("{command:?}");
        let output = tempfile::tempfile().expect("a file for what it prints");
        let errors = tempfile::tempfile().expect("a file for what it complains about");
        let copy = |file: &File| file.try_clone().expect("a second descriptor");
        command
            .stdin(input)
            .stdout(copy(&output))
            .stderr(copy(&errors))
            .process_group(0);
        let process = match process::start(command) {
            Ok(process) => process,
            Err(e) => panic!("{what} cannot be started: {e}"),
        };
        Program {
            what,
            process: Some(process),
            output,
            errors,
        }
    }

    /// Its process id, while it runs or has not been waited for.
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Child::id)
    }

    /// What it has printed so far.
    pub fn said(&self) -> String {
        text(&self.output)
    }

    /// What it has complained about so far.
    pub fn complained(&self) -> String {
        text(&self.errors)
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        match &mut self.process {
            Some(process) => matches!(process.try_wait(), Ok(None)),
            None => false,
        }
    }

    /// Waits for its end.
    pub fn wait(&mut self, limit: Duration) -> ExitStatus {
        let ended = wait_until(limit, || !self.is_running());
        assert!(
            ended,
            "{} runs for more than {limit:?}\n{}\n{}",
            self.what,
            self.said(),
            self.complained()
        );
        let mut process = self.process.take().expect("it is waited for once");
        process.wait().expect("a child can be waited for")
    }

    /// Waits for its end, which must be a good one; returns what it printed.
    pub fn finish(mut self) -> String {
        let status = self.wait(PATIENCE);
        assert!(
            status.success(),
            "{}: {status}\n{}\n{}",
            self.what,
            self.said(),
            self.complained()
        );
        self.said()
    }

    /// Sends a signal to the program itself.
    pub fn signal(&self, signal: i32) {
        if let Some(pid) = self.pid() {
            // SAFETY: a system call on the process id of a child that was not waited for.
            unsafe { libc::kill(pid as i32, signal) };
        }
    }

    /// Kills it and its process group, and waits for it.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            // SAFETY: a system call on the group led by a child that was not waited for.
            unsafe { libc::kill(-(process.id() as i32), libc::SIGKILL) };
            let _ = process.wait();
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.kill();
    }
}

/// All of a file, whatever position its writer is at.
fn text(file: &File) -> String {
    let mut all = Vec::new();
    let mut piece = vec![0; 64 << 10];
    loop {
        match file.read_at(&mut piece, all.len() as u64) {
            Ok(0) => break,
            Ok(n) => all.extend_from_slice(&piece[..n]),
            Err(e) => panic!("what a program said cannot be read: {e}"),
        }
    }
    String::from_utf8_lossy(&all).into_owned()
}

/// Runs a program that has a bounded amount to do and must succeed; returns what it
/// printed.
pub fn run(command: Command) -> String {
    Program::start(command).finish()
}
