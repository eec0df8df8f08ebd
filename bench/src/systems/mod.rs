//! What is measured side by side: folders and wires, each with its processes.

mod gluster;
pub(crate) mod pair;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::floors::quic;
use crate::load;
use crate::process::{self, Process};
use gluster::Gluster;
use pair::Pair;

/// How long a mount may take to appear.
const PATIENCE: Duration = Duration::from_secs(10);

/// What is measured, in the order of the tables.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize, clap::ValueEnum,
)]
#[serde(rename_all = "lowercase")]
pub(crate) enum System {
    /// A directory of the local file system.
    Bare,
    /// A FUSE file system that only passes through.
    Plain,
    /// Two nodes, acknowledging from memory.
    Twinfold,
    /// Two nodes, acknowledging after the local apply.
    Flush,
    /// A primary whose secondary has left.
    Alone,
    /// `GlusterFS`, replica 2, as a new volume is.
    Gluster,
    /// The same, with a client that acknowledges a write when both servers have it.
    Strict,
    /// QUIC between two processes.
    Quic,
    /// TCP between two processes.
    Tcp,
}

impl System {
    /// How a person calls it.
    pub(crate) fn title(self) -> &'static str {
        match self {
            System::Bare => "bare directory",
            System::Plain => "plain pass-through",
            System::Twinfold => "twinfold",
            System::Flush => "twinfold, ack flush",
            System::Alone => "twinfold, no peer",
            System::Gluster => "GlusterFS replica 2",
            System::Strict => "GlusterFS, no write-behind",
            System::Quic => "bare QUIC",
            System::Tcp => "bare TCP",
        }
    }

    /// Whether a failure of it is a failure of the run: it is ours.
    pub(crate) fn is_ours(self) -> bool {
        !matches!(self, System::Gluster | System::Strict)
    }
}

/// Where the load is put.
#[derive(Clone, Debug)]
pub(crate) enum Place {
    /// A folder.
    Folder(PathBuf),
    /// Keys and settings of the asking end of QUIC.
    Quic(PathBuf),
    /// The TCP server's port.
    Tcp(u16),
}

#[derive(Debug)]
enum Holder {
    Nobody,
    Process(Process),
    Pair(Pair),
    Gluster(Gluster),
}

/// A system that runs.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) system: System,
    pub(crate) place: Place,
    holder: Holder,
}

/// What came of a start.
#[derive(Debug)]
pub(crate) enum Started {
    Running(Box<Running>),
    /// It cannot run here, and why.
    Absent(String),
}

impl Running {
    /// Starts `system` below `dir`, with files of `size` bytes for the load.
    pub(crate) fn start(system: System, dir: &Path, size: u64) -> Result<Started> {
        std::fs::create_dir_all(dir)?;
        let folder = |path: &Path| Place::Folder(path.to_owned());
        let (place, holder) = match system {
            System::Bare => (folder(dir), Holder::Nobody),
            System::Plain => {
                let (process, mount) = pass_through(dir)?;
                (Place::Folder(mount), Holder::Process(process))
            }
            System::Twinfold | System::Alone => {
                let pair = Pair::start(dir, "memory")?;
                (folder(&pair.mount), Holder::Pair(pair))
            }
            System::Flush => {
                let pair = Pair::start(dir, "flush")?;
                (folder(&pair.mount), Holder::Pair(pair))
            }
            System::Gluster | System::Strict => {
                match Gluster::start(dir, system == System::Strict)? {
                    Ok(gluster) => (folder(gluster.mount()), Holder::Gluster(gluster)),
                    Err(reason) => return Ok(Started::Absent(reason)),
                }
            }
            System::Quic => {
                let (process, client) = quic_server(dir)?;
                (Place::Quic(client), Holder::Process(process))
            }
            System::Tcp => {
                let (process, port) = tcp_server(dir)?;
                (Place::Tcp(port), Holder::Process(process))
            }
        };
        let mut running = Running {
            system,
            place,
            holder,
        };
        if let Place::Folder(folder) = &running.place {
            load::prepare(folder, size)?;
        }
        if system == System::Alone {
            running.pair()?.stop_secondary()?;
        }
        Ok(Started::Running(Box::new(running)))
    }

    /// The two nodes of a replicated folder.
    pub(crate) fn pair(&mut self) -> Result<&mut Pair> {
        match &mut self.holder {
            Holder::Pair(pair) => Ok(pair),
            _ => bail!("{} has no nodes", self.system.title()),
        }
    }

    /// Its processes: what they are, and their numbers.
    pub(crate) fn processes(&self) -> Vec<(String, u32)> {
        match &self.holder {
            Holder::Nobody => Vec::new(),
            Holder::Process(process) => vec![("server".into(), process.id())],
            Holder::Pair(pair) => {
                let [one, two] = &pair.drivers;
                let mut all = vec![("primary".to_owned(), one.id())];
                if self.system != System::Alone {
                    all.push(("secondary".to_owned(), two.id()));
                }
                all
            }
            Holder::Gluster(gluster) => gluster.processes(),
        }
    }

    /// CPU seconds its processes have used so far.
    pub(crate) fn cpu(&self) -> f64 {
        self.processes()
            .iter()
            .map(|(_, id)| process::cpu(*id))
            .sum()
    }
}

/// The plain pass-through below `dir`.
fn pass_through(dir: &Path) -> Result<(Process, PathBuf)> {
    let (source, mount) = (dir.join("source"), dir.join("mount"));
    std::fs::create_dir_all(&source)?;
    std::fs::create_dir_all(&mount)?;
    let args = [
        "pass-through",
        &source.to_string_lossy(),
        &mount.to_string_lossy(),
    ];
    let process = Process::start(&args, Some(&mount), &dir.join("log"))?;
    wait_for_mount(&mount).with_context(|| words(&dir.join("log")))?;
    Ok((process, mount))
}

/// Waits until something is mounted at `mount`.
fn wait_for_mount(mount: &Path) -> Result<()> {
    let device = |path: &Path| {
        use std::os::unix::fs::MetadataExt;
        std::fs::metadata(path).map(|m| m.dev())
    };
    let above = device(mount.parent().context("no parent")?)?;
    let until = Instant::now() + PATIENCE;
    while !device(mount).is_ok_and(|d| d != above) {
        if Instant::now() > until {
            bail!("nothing was mounted at {}", mount.display());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// What a process has said last, for an error.
fn words(log: &Path) -> String {
    let said = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = said.lines().rev().take(5).collect();
    lines.into_iter().rev().collect::<Vec<_>>().join("; ")
}

/// The answering end of QUIC, and the directory of the asking one.
pub(crate) fn quic_server(dir: &Path) -> Result<(Process, PathBuf)> {
    let [ps, pc] = pair::ports()?;
    let (server, client) = quic::prepare(dir, (ps, pc))?;
    let args = ["quic-server", &server.to_string_lossy()];
    let process = Process::start(&args, None, &dir.join("quic.log"))?;
    Ok((process, client))
}

fn tcp_server(dir: &Path) -> Result<(Process, u16)> {
    let free = std::net::TcpListener::bind("127.0.0.1:0")?
        .local_addr()?
        .port();
    let args = ["tcp-server", &free.to_string()];
    Ok((Process::start(&args, None, &dir.join("tcp.log"))?, free))
}
