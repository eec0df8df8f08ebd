//! One node: a driver as a process of its own, its folder and its mount.

use std::fs::File;
use std::io::Read;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use fs_driver::control::{self, Request};
use fs_driver::store::Layout;
use serde_json::Value;

use crate::effects::{self, Effects};
use crate::network;
use crate::process::{self, wait_until};

/// How long something may stay open on a mount that nobody uses any more.
const CLOSES: Duration = Duration::from_secs(2);

/// How long a start, a stop or a mount may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long a verify may take, with its repair: longer than the driver itself waits for one
/// that does not get on.
const VERIFY: Duration = Duration::from_secs(300);

/// What a node is started as.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// Writable.
    Primary,
    /// Primary whatever its copy is worth.
    ForcedPrimary,
    /// Read-only, following.
    Secondary,
    /// The same, although the history of its copy cannot be read.
    HistoryUnknown,
}

/// One node of a pair.
#[derive(Debug)]
pub struct Node {
    name: &'static str,
    directory: PathBuf,
    /// Where it accepts its peer.
    pub(crate) addresses: Vec<SocketAddr>,
    /// The network it runs in, if not that of the tests.
    pub(crate) namespace: Option<File>,
    /// Its driver's effects are counted.
    pub(crate) watched: bool,
    /// The descriptors its driver may have, if not as many as the tests.
    pub(crate) descriptors: Option<u64>,
    /// The next one is killed behind so many.
    kill_after: Option<u64>,
    process: Option<Child>,
    effects: Option<Effects>,
}

fn last_lines(text: &str) -> String {
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(30)..].join("\n")
}

/// All that comes through a pipe.
fn gather(pipe: Option<impl Read + Send + 'static>) -> JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            let _ = pipe.read_to_end(&mut bytes);
        }
        bytes
    })
}

/// The driver, built along with the tests as a program beside them.
fn program() -> Result<PathBuf> {
    match std::env::var_os("TWINFOLD_NODE") {
        Some(path) => Ok(path.into()),
        None => process::program("node"),
    }
}

impl Node {
    /// A node in a directory of its own, which is made.
    pub fn new(name: &'static str, directory: PathBuf) -> Result<Node> {
        std::fs::create_dir_all(directory.join("vm"))?;
        Ok(Node {
            name,
            directory,
            addresses: Vec::new(),
            namespace: None,
            watched: false,
            descriptors: None,
            kill_after: None,
            process: None,
            effects: None,
        })
    }

    /// `a` or `b`.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// The directory with everything of the node; a file system of its own with
    /// [`small_disk`](crate::Options::small_disk).
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The path the application uses.
    pub fn mount(&self) -> PathBuf {
        self.directory.join("vm")
    }

    /// The directory with the node's private parts.
    pub fn layout(&self) -> Layout {
        Layout::new(self.directory.join(".vm.twinfold"))
    }

    /// The real directory under the mount.
    pub fn data(&self) -> PathBuf {
        self.layout().data()
    }

    /// Where it accepts its peer.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    fn log(&self) -> PathBuf {
        self.directory.with_extension("log")
    }

    /// Everything the driver has said so far, in all its runs.
    pub fn log_text(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(self.log()).unwrap_or_default()).into_owned()
    }

    /// Fails the test unless the driver says `text` soon, behind the first `from`
    /// bytes of its log.
    pub fn expect_log(&self, from: usize, text: &str) {
        let said = || {
            self.log_text()
                .get(from..)
                .is_some_and(|l| l.contains(text))
        };
        assert!(
            wait_until(PATIENCE, said),
            "{} did not say {text:?}, but:\n{}",
            self.name,
            self.log_text().get(from..).unwrap_or_default()
        );
    }

    /// What the driver has said so far, its last lines.
    pub fn last_words(&self) -> String {
        last_lines(&self.log_text())
    }

    fn command(&self, arguments: &[&str]) -> Result<Command> {
        let mut command = Command::new(program()?);
        command
            .args(arguments)
            .current_dir("/")
            .stdin(Stdio::null());
        Ok(command)
    }

    /// With so many descriptors at most.
    fn command_with(&self, descriptors: u64, arguments: &[&str]) -> Result<Command> {
        let mut command = Command::new("prlimit");
        command
            .arg(format!("--nofile={descriptors}"))
            .arg(program()?)
            .args(arguments)
            .current_dir("/")
            .stdin(Stdio::null());
        Ok(command)
    }

    /// Runs a command of the driver that ends by itself; returns what it printed.
    pub fn run(&self, arguments: &[&str]) -> Result<String> {
        let output = self.command(arguments)?.output()?;
        ensure!(
            output.status.success(),
            "{arguments:?} on {}: {}",
            self.name,
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(String::from_utf8(output.stdout)?.trim().to_owned())
    }

    /// Starts a command of the driver; what it prints can be read from its pipes.
    pub fn spawn(&self, arguments: &[&str]) -> Result<Child> {
        let mut command = self.command(arguments)?;
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        Ok(process::start(command)?)
    }

    /// Runs `verify` to its end: its exit code, what it found, and what it complained of.
    pub fn verify(&self, options: &[&str]) -> Result<(i32, Value, String)> {
        self.verify_within(VERIFY, options)
    }

    /// The same for one that may take `limit`.
    pub fn verify_within(&self, limit: Duration, options: &[&str]) -> Result<(i32, Value, String)> {
        let mount = self.mount().display().to_string();
        let arguments = [&["verify", &mount, "--json"], options].concat();
        let mut command = self.command(&arguments)?;
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = process::start(command)?;
        let (stdout, stderr) = (gather(child.stdout.take()), gather(child.stderr.take()));
        let ended = wait_until(limit, || !matches!(child.try_wait(), Ok(None)));
        if !ended {
            child.kill()?;
        }
        let (status, mut texts) = (child.wait()?, Vec::new());
        for reader in [stdout, stderr] {
            texts.push(reader.join().unwrap_or_default());
        }
        let said = String::from_utf8_lossy(&texts[1]).into_owned();
        if !ended {
            bail!("{arguments:?} does not end: {said}\n{}", self.both_nodes());
        }
        let found = serde_json::from_slice(&texts[0]).unwrap_or_default();
        let code = status.code().context("verify was killed")?;
        Ok((code, found, said))
    }

    /// How this node and its peer stand, and what they said last.
    fn both_nodes(&self) -> String {
        let of = |name: &str| {
            let directory = self.directory.with_file_name(name);
            let node = Layout::new(directory.join(".vm.twinfold"));
            let status = control::ask(&node, Request::Status);
            let log = std::fs::read(directory.with_extension("log")).unwrap_or_default();
            let log = last_lines(&String::from_utf8_lossy(&log));
            format!("{name}: {status:?}\n{log}\n")
        };
        ["a", "b"].map(of).concat()
    }

    /// The node's key directory.
    pub(crate) fn key(&self) -> String {
        self.key_directory().display().to_string()
    }

    /// Where the node's key lies.
    pub fn key_directory(&self) -> PathBuf {
        self.directory.join("id")
    }

    /// Starts the driver and waits until the mount answers. An error has what this run of it
    /// said, and nothing of those before.
    pub fn start(&mut self, role: Role) -> Result<()> {
        let before = self.log_text().len();
        self.begin_as(role)?;
        let up = wait_until(PATIENCE, || self.has_ended() || self.is_mounted());
        if !up || self.has_ended() {
            self.kill();
            let log = self.log_text();
            let said = last_lines(log.get(before..).unwrap_or(&log));
            bail!("{} did not start:\n{said}", self.name);
        }
        Ok(())
    }

    /// Starts the driver.
    pub fn begin_as(&mut self, role: Role) -> Result<()> {
        let mount = self.mount().display().to_string();
        let key = self.key();
        let mut arguments = vec![
            match role {
                Role::Primary | Role::ForcedPrimary => "primary",
                Role::Secondary | Role::HistoryUnknown => "secondary",
            },
            &mount,
            "--identity",
            &key,
        ];
        match role {
            Role::ForcedPrimary => arguments.push("--force"),
            Role::HistoryUnknown => arguments.push("--history-unknown"),
            Role::Primary | Role::Secondary => {}
        }
        self.begin(&arguments)
    }

    /// What is started next is killed behind so many effects, by [`crate::Options::watched`].
    pub fn kill_after(&mut self, effects: u64) {
        self.kill_after = Some(effects);
    }

    /// Starts a command of the driver; what it says goes to the node's log.
    pub fn begin(&mut self, arguments: &[&str]) -> Result<()> {
        ensure!(self.process.is_none(), "{} runs already", self.name);
        let log = File::options().append(true).create(true).open(self.log())?;
        let mut command = match self.descriptors {
            Some(most) => self.command_with(most, arguments)?,
            None => self.command(arguments)?,
        };
        command.stdout(log.try_clone()?).stderr(log);
        if let Some(namespace) = &self.namespace {
            network::enter(&mut command, namespace)?;
        }
        if self.watched {
            effects::watch(&mut command);
        }
        let process = self.process.insert(process::start(command)?);
        self.effects = match self.watched {
            true => Some(Effects::of(process.id(), self.kill_after.take())?),
            false => None,
        };
        Ok(())
    }

    /// Whether what was started has ended, or nothing was.
    pub fn has_ended(&mut self) -> bool {
        match &mut self.process {
            Some(process) => !matches!(process.try_wait(), Ok(None)),
            None => true,
        }
    }

    /// Whether a file system is mounted, by the kernel's table: the mount itself is not asked.
    pub fn is_mounted(&self) -> bool {
        process::is_mounted(&self.mount())
    }

    /// Whether its driver runs and the peer is up to date beside it.
    pub(crate) fn is_paired(&self) -> bool {
        self.is_running() && self.status().is_ok_and(|s| s["link"] == "paired")
    }

    /// Whether its driver runs.
    pub fn is_running(&self) -> bool {
        self.process.is_some()
    }

    /// The driver's process id.
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Child::id)
    }

    /// What its driver does, by [`crate::Options::watched`].
    pub fn effects(&self) -> &Effects {
        self.effects.as_ref().expect("its effects are watched")
    }

    /// Kills the driver without waiting for its end: it may wait for its disk.
    pub fn begin_to_kill(&self) {
        self.signal(libc::SIGKILL);
    }

    fn signal(&self, signal: i32) {
        if let Some(process) = &self.process {
            // SAFETY: a system call on the process id of a child that was not waited for.
            unsafe { libc::kill(process.id() as i32, signal) };
        }
    }

    /// Kills the driver as a power cut of the process would, and removes its dead mount.
    pub fn kill(&mut self) {
        self.signal(libc::SIGKILL);
        if let Some(mut process) = self.process.take() {
            let _ = process.wait();
        }
        process::detach(&self.mount());
    }

    /// Stops the driver where it is, without a word. Returns when none of its threads runs:
    /// on a busy machine the others go on until one of them has taken the signal.
    pub fn freeze(&self) {
        self.signal(libc::SIGSTOP);
        let Some(pid) = self.pid() else { return };
        let stopped = || process::is_stopped(pid);
        assert!(wait_until(PATIENCE, stopped), "{} does not stop", self.name);
    }

    /// Lets a frozen driver go on.
    pub fn thaw(&self) {
        self.signal(libc::SIGCONT);
    }

    /// Ends the driver in order.
    pub fn stop(&mut self) -> Result<ExitStatus> {
        self.ask(Request::Stop)?;
        let ended = wait_until(PATIENCE, || self.has_ended());
        ensure!(ended, "{} did not stop:\n{}", self.name, self.last_words());
        let mut process = self.process.take().context("it does not run")?;
        Ok(process.wait()?)
    }

    /// Asks the driver something through its control socket.
    pub fn ask(&self, request: Request) -> Result<Option<Value>> {
        control::ask(&self.layout(), request)
            .with_context(|| format!("{request:?} on {}", self.name))
    }

    /// The driver's state.
    pub fn status(&self) -> Result<Value> {
        self.ask(Request::Status)?
            .context("the driver told no state")
    }

    /// Makes the node primary.
    pub fn promote(&self, force: bool) -> Result<()> {
        self.ask(Request::Promote { force }).map(drop)
    }

    /// Makes the node secondary. What has just been closed may be open for a moment: the kernel
    /// tells of that later, and a program that another test is about to start has it open until
    /// it begins.
    pub fn demote(&self, force: bool) -> Result<()> {
        let until = Instant::now() + CLOSES;
        loop {
            match self.ask(Request::Demote { force }) {
                Err(e) if Instant::now() < until && format!("{e:#}").contains("still open") => {
                    std::thread::sleep(Duration::from_millis(20));
                }
                done => return done.map(drop),
            }
        }
    }

    /// Lets the node go on without its peer.
    pub fn go_alone(&self) -> Result<()> {
        self.ask(Request::GoAlone).map(drop)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
    }
}
