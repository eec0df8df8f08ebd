//! A machine with a node: this one, or a guest.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use fs_driver::control::Request;
use harness::guest::{Boot, DISK, Guest, HOST, NODE};
use harness::{Node, Role, free_addresses, wait_until};
use serde_json::Value;

/// How long a state may take to come about, in an emulated machine on a busy one.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// Bytes of a guest's disk.
const SIZE: u64 = 384 << 20;

/// How often a node's state is looked at: in a guest that is work.
const EVERY: Duration = Duration::from_millis(100);

/// A machine with a node.
pub(crate) enum Machine {
    Host { node: Node, address: SocketAddr },
    Guest(Guest),
}

impl Machine {
    /// This machine, its node in `directory`.
    pub(crate) fn host(directory: &Path) -> Machine {
        let node = Node::new("host", directory.join("host")).unwrap();
        let [address] = free_addresses(["127.0.0.1"]).unwrap();
        Machine::Host { node, address }
    }

    /// A guest that has booted.
    pub(crate) fn guest(directory: &Path, name: &str, boot: &Boot) -> Machine {
        let mut guest = Guest::new(directory, name, SIZE).unwrap();
        guest.power_on(boot);
        Machine::Guest(guest)
    }

    /// The guest.
    pub(crate) fn as_guest(&mut self) -> &mut Guest {
        match self {
            Machine::Guest(guest) => guest,
            Machine::Host { .. } => panic!("this machine is no guest"),
        }
    }

    fn is_guest(&self) -> bool {
        matches!(self, Machine::Guest(_))
    }

    fn folder(&self) -> PathBuf {
        match self {
            Machine::Host { node, .. } => node.mount(),
            Machine::Guest(_) => Path::new(DISK).join("vm"),
        }
    }

    fn key(&self) -> PathBuf {
        match self {
            Machine::Host { node, .. } => node.key_directory(),
            Machine::Guest(_) => Path::new(DISK).join("id"),
        }
    }

    /// Runs a command of the driver on it.
    fn run(&self, arguments: &str) -> Result<String> {
        match self {
            Machine::Host { node, .. } => {
                let words: Vec<_> = arguments.split_whitespace().collect();
                node.run(&words)
            }
            Machine::Guest(guest) => guest.tell(&format!("run {arguments}")),
        }
    }

    fn identity(&self) -> String {
        let key = self.key();
        let id = self.run(&format!("identity --identity {}", key.display()));
        id.unwrap().trim().to_owned()
    }

    /// Makes the folder.
    pub(crate) fn init(&self, peer: &Machine, how: &str) {
        let listen = match self {
            Machine::Host { address, .. } => address.to_string(),
            Machine::Guest(_) => format!("0.0.0.0:{NODE}"),
        };
        let port = match peer {
            Machine::Host { address, .. } => address.port(),
            Machine::Guest(guest) => guest.address().port(),
        };
        let found = match self.is_guest() {
            true => HOST,
            false => "127.0.0.1",
        };
        // `init` wants this node's own key, too.
        self.identity();
        let init = format!(
            "init {} {how} --identity {} --listen {listen} --peer {found}:{port} --peer-id {} \
             --on-peer-loss hold --stall-ms 3000 --op-ms 30000 --sync-ms 60000 --bridge-ms 200 \
             --checkpoint-s 2",
            self.folder().display(),
            self.key().display(),
            peer.identity()
        );
        self.run(&init).unwrap();
    }

    /// Starts the driver and waits until it answers.
    pub(crate) fn start(&mut self, role: Role) {
        let (folder, key) = (self.folder(), self.key());
        match self {
            Machine::Host { node, .. } => node.start(role).unwrap(),
            Machine::Guest(guest) => {
                let (role, more) = match role {
                    Role::Primary => ("primary", ""),
                    Role::ForcedPrimary => ("primary", " --force"),
                    Role::Secondary => ("secondary", ""),
                    Role::HistoryUnknown => ("secondary", " --history-unknown"),
                };
                let line = format!(
                    "start {role} {} --identity {}{more}",
                    folder.display(),
                    key.display()
                );
                guest.tell(&line).unwrap();
                self.wait("an answer", |_| true);
            }
        }
    }

    /// Asks its driver something.
    pub(crate) fn ask(&self, request: Request) -> Result<Option<Value>> {
        match self {
            Machine::Host { node, .. } => node.ask(request),
            Machine::Guest(guest) => guest.ask(request),
        }
    }

    /// Its node's state.
    fn status(&self) -> Result<Value> {
        self.ask(Request::Status)?.context("no state was told")
    }

    /// Waits until its node is in some state.
    pub(crate) fn wait(&self, what: &str, wanted: impl Fn(&Value) -> bool) {
        let mut last = None;
        let there = wait_until(PATIENCE, || {
            let status = self.status();
            let good = status.as_ref().is_ok_and(&wanted);
            last = Some(status);
            if !good {
                std::thread::sleep(EVERY);
            }
            good
        });
        assert!(there, "no {what}: {last:?}\n{}", self.said());
    }

    /// What its node has said.
    pub(crate) fn said(&self) -> String {
        match self {
            Machine::Host { node, .. } => node.last_words(),
            Machine::Guest(guest) => {
                let log = guest.tell("log").unwrap_or_else(|e| format!("{e:#}"));
                format!("{}\n{log}", guest.console())
            }
        }
    }

    /// Ends the driver in order, and lets go of a guest's disk.
    pub(crate) fn stop(&mut self) {
        match self {
            Machine::Host { node, .. } => drop(node.stop().unwrap()),
            Machine::Guest(_) => {
                self.ask(Request::Stop).unwrap();
                self.as_guest().tell("umount").unwrap();
            }
        }
    }

    /// Takes a guest's disk again after [`stop`](Machine::stop).
    pub(crate) fn mount(&mut self) {
        if let Machine::Guest(guest) = self {
            guest.tell("mount").unwrap();
        }
    }

    /// Lets its store be looked at. A guest's node does not run, or has no power.
    pub(crate) fn with_store<T>(&self, look: impl FnOnce(&Path) -> T) -> Result<T> {
        match self {
            Machine::Host { node, .. } => Ok(look(&node.data())),
            Machine::Guest(guest) => guest.with_store(look).context("a guest's disk"),
        }
    }
}

/// Waits until a secondary is up to date. An application may work meanwhile.
pub(crate) fn wait_paired(primary: &Machine, secondary: &Machine) {
    secondary.wait("pair", |s| s["link"] == "paired" && s["up_to_date"] == true);
    primary.wait("pair", |s| s["link"] == "paired");
}

/// Waits until a primary and a secondary are equal and at rest, as they are without one.
pub(crate) fn wait_equal(primary: &Machine, secondary: &Machine) {
    wait_paired(primary, secondary);
    primary.wait("rest", |s| s["link"] == "paired" && s["settled"] == true);
}
