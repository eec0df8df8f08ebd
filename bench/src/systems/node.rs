//! One node of a replicated folder, below a directory of its own.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use fs_driver::state::Ack;

use crate::process::{self, Process};

/// How long a command of the driver may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a node is told of the other one.
#[derive(Clone, Debug)]
pub(crate) struct Other<'a> {
    pub(crate) id: &'a str,
    pub(crate) address: SocketAddr,
}

/// A node that is made by one build of this program.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    program: PathBuf,
    home: PathBuf,
}

impl Node {
    /// Makes the folder and the key below `home`; the node, and its identity.
    pub(crate) fn make(program: &Path, home: &Path) -> Result<(Node, String)> {
        let node = Node {
            program: program.to_owned(),
            home: home.to_owned(),
        };
        std::fs::create_dir_all(node.mount())
            .with_context(|| format!("cannot make {}", node.mount().display()))?;
        let id = node.fs(&["identity", "--identity", &node.key()])?;
        Ok((node, id))
    }

    /// The folder.
    pub(crate) fn mount(&self) -> PathBuf {
        self.home.join("vm")
    }

    /// Where the folder's private parts lie.
    pub(crate) fn base(&self) -> PathBuf {
        self.home.join(".vm.twinfold")
    }

    fn key(&self) -> String {
        self.home.join("id").to_string_lossy().into_owned()
    }

    fn fs(&self, args: &[&str]) -> Result<String> {
        let mut command = Command::new(&self.program);
        command.arg("fs").args(args);
        let out = process::output(command, PATIENCE)?;
        if !out.status.success() {
            bail!("{}", String::from_utf8_lossy(&out.stderr).trim());
        }
        Ok(String::from_utf8_lossy(&out.stdout).trim().to_owned())
    }

    /// Replicates the folder; `more` are further options.
    pub(crate) fn init(
        &self,
        listen: SocketAddr,
        other: &Other<'_>,
        ack: Ack,
        more: &[&str],
    ) -> Result<()> {
        let ack = ack.to_possible_value().context("it has a name")?;
        let (mount, key) = (self.mount(), self.key());
        let (listen, peer) = (listen.to_string(), other.address.to_string());
        let mut args = vec!["init", mount.to_str().context("not UTF-8")?];
        args.extend(["--identity", &key, "--listen", &listen]);
        args.extend(["--peer", &peer, "--peer-id", other.id]);
        args.extend(["--ack", ack.get_name()]);
        args.extend(more);
        self.fs(&args).map(drop)
    }

    /// Starts its driver.
    pub(crate) fn start(&self, role: &str) -> Result<Process> {
        let mount = self.mount();
        let mut command = Command::new(&self.program);
        command.arg("fs").arg(role).arg(&mount);
        command.arg("--identity").arg(self.home.join("id"));
        Process::spawn(command, Some(&mount), &self.log())
    }

    /// What its driver says.
    pub(crate) fn log(&self) -> PathBuf {
        self.home.join("log")
    }

    /// Stops its driver in order.
    pub(crate) fn stop(&self, mut driver: Process) -> Result<()> {
        self.fs(&["stop", &self.mount().to_string_lossy()])?;
        driver.wait(PATIENCE)
    }
}
