//! The two nodes: real processes of this very program, spoken to as an operator would.

use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use fs_driver::control::{self, Request};
use fs_driver::store::Layout;
use serde::Deserialize;

use super::stage::Stage;

/// How long a command of the driver may take.
const COMMAND: Duration = Duration::from_secs(60);

/// Both nodes share one disk here, and a busy one must not look like a dead peer.
const DEADLINES: [&str; 6] = [
    "--stall-ms",
    "15000",
    "--op-ms",
    "20000",
    "--sync-ms",
    "40000",
];

/// Lines of a log that are shown when its driver failed.
const LOG_LINES: usize = 15;

/// One node.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) name: &'static str,
    pub(crate) folder: PathBuf,
    identity: PathBuf,
    log: PathBuf,
    address: String,
    layout: Layout,
    process: Option<u32>,
    stage: Arc<Stage>,
}

/// What a driver says of itself, as far as it matters here.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct State {
    pub(crate) link: String,
    pub(crate) up_to_date: bool,
    pub(crate) settled: bool,
    pub(crate) in_flight_ops: u64,
    pub(crate) received_bytes: u64,
    pub(crate) trouble: Option<String>,
    pub(crate) fenced: Option<String>,
}

impl State {
    /// Paired, nothing on its way, and the times shipped.
    pub(crate) fn is_at_rest(&self) -> bool {
        self.link == "paired" && self.up_to_date && self.settled && self.in_flight_ops == 0
    }
}

/// Two nodes with a folder each: the first one's data is `seed`ed, the other's comes from it.
pub(crate) fn pair(
    stage: &Arc<Stage>,
    seed: impl FnOnce(&Path) -> Result<()>,
) -> Result<(Node, Node)> {
    let [here, there] = free_addresses()?;
    let node = |name: &'static str, address: &str| -> Result<Node> {
        let directory = stage.directory().join(name);
        let folder = directory.join("folder");
        for made in [&directory, &folder] {
            std::fs::create_dir(made).with_context(|| format!("cannot make {}", made.display()))?;
        }
        let layout = Layout::new(fs_driver::setup::default_base(&folder)?);
        stage.note_file(control::socket_path(&layout));
        Ok(Node {
            name,
            folder,
            identity: directory.join("identity"),
            log: stage.directory().join(format!("{name}.log")),
            address: address.into(),
            layout,
            process: None,
            stage: stage.clone(),
        })
    };
    let (a, b) = (node("node-a", &here)?, node("node-b", &there)?);
    seed(&a.folder)?;
    let ids = (a.make_identity()?, b.make_identity()?);
    a.init("--good-copy", &b.address, &ids.1)?;
    b.init("--from-peer", &a.address, &ids.0)?;
    Ok((a, b))
}

/// Two addresses on this machine that nobody listens on.
fn free_addresses() -> Result<[String; 2]> {
    let socket = || UdpSocket::bind("127.0.0.1:0").context("cannot find a free UDP port");
    // Both are held until both are known, so that they differ.
    let (one, two) = (socket()?, socket()?);
    Ok([one.local_addr()?.to_string(), two.local_addr()?.to_string()])
}

/// This program, as `twinfold fs ...`.
fn driver(command: &str) -> Result<Command> {
    let me = std::env::current_exe().context("cannot find this program's own file")?;
    let mut driver = Command::new(me);
    driver.args(["fs", command]);
    driver.env_remove("TWINFOLD_LOG");
    Ok(driver)
}

impl Node {
    fn make_identity(&self) -> Result<String> {
        let mut command = driver("identity")?;
        command.arg("--identity").arg(&self.identity);
        Ok(self.output("identity", command)?.trim().to_owned())
    }

    fn init(&self, whose: &str, peer: &str, peer_id: &str) -> Result<()> {
        let mut command = driver("init")?;
        command.arg(&self.folder).arg(whose);
        command.arg("--identity").arg(&self.identity);
        command.args(["--listen", &self.address, "--peer", peer]);
        command.args(["--peer-id", peer_id, "--on-peer-loss", "alone"]);
        command.args(DEADLINES);
        self.output("init", command).map(drop)
    }

    /// Runs a command to its end; returns what it printed.
    fn output(&self, what: &str, command: Command) -> Result<String> {
        let log = self
            .stage
            .directory()
            .join(format!("{}.{what}.log", self.name));
        let id = self.stage.spawn(command, &log)?;
        let status = self.stage.wait(id, COMMAND)?;
        let said = std::fs::read_to_string(&log)
            .with_context(|| format!("cannot read {}", log.display()))?;
        if !status.success() {
            bail!(
                "`twinfold fs {what}` failed on {}: {}",
                self.name,
                said.trim()
            );
        }
        Ok(said)
    }

    /// Starts the driver as `primary` or `secondary`.
    pub(crate) fn start(&mut self, role: &str) -> Result<()> {
        let mut command = driver(role)?;
        command.arg(&self.folder);
        command.arg("--identity").arg(&self.identity);
        self.process = Some(self.stage.spawn(command, &self.log)?);
        Ok(())
    }

    /// SIGKILL: what a power cut is to everybody else. Returns at once.
    pub(crate) fn kill(&self) -> Result<()> {
        let process = self.process.context("the driver does not run")?;
        self.stage.kill(process)
    }

    /// Waits until a killed driver is gone.
    pub(crate) fn bury(&mut self) -> Result<()> {
        let process = self.process.take().context("the driver does not run")?;
        self.stage.wait(process, COMMAND).map(drop)
    }

    /// Ends the driver in order.
    pub(crate) fn stop(&mut self) -> Result<()> {
        let Some(process) = self.process.take() else {
            return Ok(());
        };
        control::ask(&self.layout, Request::Stop)
            .with_context(|| format!("cannot stop {}{}", self.name, self.last_words()))?;
        let status = self
            .stage
            .wait(process, COMMAND)
            .with_context(|| format!("stopping {}{}", self.name, self.last_words()))?;
        if !status.success() {
            bail!("{} ended with {status}{}", self.name, self.last_words());
        }
        Ok(())
    }

    /// Makes this node primary.
    pub(crate) fn promote(&self) -> Result<()> {
        control::ask(&self.layout, Request::Promote { force: false }).map(drop)
    }

    /// The driver's state, or nothing while it does not answer yet.
    pub(crate) fn state(&self) -> Result<Option<State>> {
        self.check()?;
        let state = ask(&self.layout)?;
        match state.as_ref().and_then(|state| state.fenced.as_ref()) {
            Some(why) => bail!("{} is fenced: {why}{}", self.name, self.last_words()),
            None => Ok(state),
        }
    }

    /// Fails if the driver has ended although it should run.
    pub(crate) fn check(&self) -> Result<()> {
        let process = self.process.context("the driver does not run")?;
        match self.stage.ended(process)? {
            Some(status) => bail!("{} ended: {status}{}", self.name, self.last_words()),
            None => Ok(()),
        }
    }

    /// The end of its log.
    pub(crate) fn last_words(&self) -> String {
        end_of(&self.log, self.name)
    }

    /// The stored copy itself.
    pub(crate) fn data(&self) -> PathBuf {
        self.layout.data()
    }
}

/// What the driver of a folder says of itself, or nothing while it does not answer.
pub(crate) fn ask(layout: &Layout) -> Result<Option<State>> {
    match control::ask(layout, Request::Status) {
        Ok(Some(state)) => serde_json::from_value(state)
            .context("the driver's state is not understood")
            .map(Some),
        Ok(None) | Err(_) => Ok(None),
    }
}

/// Waits until both copies are equal and at rest; `seen` gets the states meanwhile.
pub(crate) fn wait_until_paired(
    primary: &Node,
    secondary: &Node,
    deadline: Duration,
    mut seen: impl FnMut(&State),
) -> Result<()> {
    let until = Instant::now() + deadline;
    loop {
        let states = (primary.state()?, secondary.state()?);
        if let (Some(p), Some(s)) = &states {
            if p.is_at_rest() && s.link == "paired" && s.up_to_date {
                return Ok(());
            }
            seen(s);
        }
        if Instant::now() > until {
            let trouble = |s: &Option<State>| match s {
                Some(s) => format!("link {}, {:?}", s.link, s.trouble),
                None => "no answer".into(),
            };
            bail!(
                "the copies are not equal after {deadline:?}: {} {}, {} {}{}{}",
                primary.name,
                trouble(&states.0),
                secondary.name,
                trouble(&states.1),
                primary.last_words(),
                secondary.last_words()
            );
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Waits until a node is in some state.
pub(crate) fn wait_until(
    node: &Node,
    deadline: Duration,
    wanted: impl Fn(&State) -> bool,
) -> Result<()> {
    let until = Instant::now() + deadline;
    loop {
        let state = node.state()?;
        if state.as_ref().is_some_and(&wanted) {
            return Ok(());
        }
        if Instant::now() > until {
            let words = node.last_words();
            bail!(
                "{} is not ready after {deadline:?}: {state:?}{words}",
                node.name
            );
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The end of a log.
pub(crate) fn end_of(log: &Path, whose: &str) -> String {
    let log = std::fs::read(log).unwrap_or_default();
    let log = String::from_utf8_lossy(&log);
    let lines: Vec<_> = log.lines().collect();
    let from = lines.len().saturating_sub(LOG_LINES);
    let begin = format!("\n  the log of {whose} ends with:");
    lines[from..].iter().fold(begin, |s, l| s + "\n  | " + l)
}
