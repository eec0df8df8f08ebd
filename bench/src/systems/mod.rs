//! What is measured side by side: folders and wires, each with its processes.

mod gluster;
pub(crate) mod node;
pub(crate) mod pair;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use fs_driver::state::Ack;
use serde::{Deserialize, Serialize};

use crate::floors::{quic, tcp};
use crate::load;
use crate::peer::Peer;
use crate::process::{Process, Usage};
use crate::report::model::Flags;
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
    /// The same with another build of this program.
    Other,
    /// Two nodes, acknowledging after the local apply.
    Flush,
    /// A primary whose secondary has left.
    Alone,
    /// `GlusterFS`, replica 2, as a new volume is.
    Gluster,
    /// The same, with a client that acknowledges a write when both servers have it.
    Strict,
    /// A directory on a DRBD device that somebody else has put up.
    Drbd,
    /// QUIC between two processes, as the drivers set it up.
    Quic,
    /// QUIC between two processes, as quinn sets it up.
    Stock,
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
            System::Other => "twinfold, other build",
            System::Flush => "twinfold, ack flush",
            System::Alone => "twinfold, no peer",
            System::Gluster => "GlusterFS replica 2",
            System::Strict => "GlusterFS, no write-behind",
            System::Drbd => "DRBD, protocol C",
            System::Quic => "bare QUIC",
            System::Stock => "bare QUIC, quinn as it comes",
            System::Tcp => "bare TCP",
        }
    }

    /// Whether a failure of it is a failure of the run: it is ours.
    pub(crate) fn is_ours(self) -> bool {
        !matches!(self, System::Gluster | System::Strict | System::Drbd)
    }
}

/// Where the load is put.
#[derive(Clone, Debug)]
pub(crate) enum Place {
    /// A folder.
    Folder(PathBuf),
    /// Keys and settings of the asking end of QUIC.
    Quic(PathBuf, quic::Tuning),
    /// The TCP server.
    Tcp(tcp::Server),
}

#[derive(Debug)]
enum Holder {
    Nobody,
    Process(Process),
    /// On the other machine.
    There(Arc<Peer>),
    Pair(Pair),
    Gluster(Gluster),
    Directory(Directory),
}

/// A directory of ours on a file system of its own.
#[derive(Debug)]
struct Directory(PathBuf);

impl Directory {
    fn make(file_system: &Path) -> Result<Directory> {
        let path = file_system.join(format!("twinfold-bench.{}", std::process::id()));
        std::fs::create_dir(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Directory(path))
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        if let Err(e) = std::fs::remove_dir_all(&self.0) {
            eprintln!("cannot remove {}: {e}", self.0.display());
        }
    }
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
    /// Starts `system` below `dir`, with files for the load; its other end on the other
    /// machine, if there is one.
    pub(crate) fn start(
        system: System,
        dir: &Path,
        flags: &Flags,
        peer: Option<&Arc<Peer>>,
    ) -> Result<Started> {
        std::fs::create_dir_all(dir)?;
        let folder = |path: &Path| Place::Folder(path.to_owned());
        let pair = |ack| match peer {
            Some(peer) => Pair::with(peer, system, dir, ack),
            None => Pair::start(dir, ack),
        };
        let (place, holder) = match system {
            System::Bare => (folder(dir), Holder::Nobody),
            System::Plain => {
                let (process, mount) = pass_through(dir)?;
                (Place::Folder(mount), Holder::Process(process))
            }
            System::Other => {
                let other = flags.beside.as_ref().context("which other build?")?;
                let pair = Pair::of(other, dir, Ack::Memory)?;
                (folder(&pair.mount), Holder::Pair(pair))
            }
            System::Twinfold | System::Alone => {
                let pair = pair(Ack::Memory)?;
                (folder(&pair.mount), Holder::Pair(pair))
            }
            System::Flush => {
                let pair = pair(Ack::Flush)?;
                (folder(&pair.mount), Holder::Pair(pair))
            }
            System::Gluster | System::Strict if peer.is_some() => {
                return Ok(Started::Absent(
                    "runs here in namespaces of one machine, not between two".into(),
                ));
            }
            System::Gluster | System::Strict => {
                match Gluster::start(dir, system == System::Strict)? {
                    Ok(gluster) => (folder(gluster.mount()), Holder::Gluster(gluster)),
                    Err(reason) => return Ok(Started::Absent(reason)),
                }
            }
            System::Drbd => {
                let place = flags.drbd.as_ref().context("which directory?")?;
                let directory = Directory::make(place)?;
                (folder(&directory.0), Holder::Directory(directory))
            }
            System::Stock if peer.is_some() => {
                return Ok(Started::Absent(
                    "runs between two processes of one machine".into(),
                ));
            }
            System::Quic | System::Stock | System::Tcp => wire(system, dir, peer)?,
        };
        let mut running = Running {
            system,
            place,
            holder,
        };
        if let Place::Folder(folder) = &running.place {
            load::prepare(folder, flags.file_mib << 20)?;
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

    /// Which connection of its two nodes lasts, if they are to be connected: waited for, and
    /// another one after each loss.
    pub(crate) fn line(&self) -> Result<Option<String>> {
        match (&self.holder, self.system) {
            (Holder::Pair(_), System::Alone) => Ok(None),
            (Holder::Pair(pair), _) => pair.generation().map(Some),
            _ => Ok(None),
        }
    }

    /// Flushes what lies on no file system of the other folders: that of the other machine, or
    /// one of its own.
    pub(crate) fn flush(&self) -> Result<()> {
        match &self.holder {
            Holder::Directory(directory) => crate::run::flush(&directory.0),
            Holder::There(peer) => peer.flush(),
            Holder::Pair(pair) => pair.flush_there(),
            _ => Ok(()),
        }
    }

    /// What its processes have used so far, on both machines.
    pub(crate) fn usage(&self) -> Result<Vec<Usage>> {
        Ok(match &self.holder {
            // What DRBD's threads in the kernel use is nobody's.
            Holder::Nobody | Holder::Directory(_) => Vec::new(),
            Holder::Process(process) => vec![Usage::of("server", process.id())],
            Holder::There(peer) => peer.usage(self.system)?,
            Holder::Pair(pair) => pair.usage()?,
            Holder::Gluster(gluster) => {
                let all = gluster.processes().into_iter();
                all.map(|(process, id)| Usage::of(process, id)).collect()
            }
        })
    }

    /// CPU seconds its processes have used so far.
    pub(crate) fn cpu(&self) -> Result<f64> {
        Ok(self.usage()?.iter().map(|u| u.cpu).sum())
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

/// Starts the answering end of bare QUIC or TCP: where it is found, and who holds it.
fn wire(system: System, dir: &Path, peer: Option<&Arc<Peer>>) -> Result<(Place, Holder)> {
    Ok(match (system, peer) {
        (System::Quic | System::Stock, None) => {
            let tuning = match system {
                System::Stock => quic::Tuning::Stock,
                _ => quic::Tuning::Driver,
            };
            let (process, client) = quic_pair(dir, tuning)?;
            (Place::Quic(client, tuning), Holder::Process(process))
        }
        (System::Quic, Some(peer)) => {
            let client = dir.join("quic-client");
            peer.start_quic(&client)?;
            (
                Place::Quic(client, quic::Tuning::Driver),
                Holder::There(peer.clone()),
            )
        }
        (_, None) => {
            let free = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?;
            let key = tcp::key();
            let process = tcp_server(dir, free, &key)?;
            let server = tcp::Server { address: free, key };
            (Place::Tcp(server), Holder::Process(process))
        }
        (_, Some(peer)) => (Place::Tcp(peer.start_tcp()?), Holder::There(peer.clone())),
    })
}

/// Both ends of QUIC here: the answering one, and the directory of the asking one.
pub(crate) fn quic_pair(dir: &Path, tuning: quic::Tuning) -> Result<(Process, PathBuf)> {
    let [server, client] = ["quic-server", "quic-client"].map(|name| dir.join(name));
    let [s, c] = pair::ports()?.map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
    let (sid, cid) = (quic::identity(&server)?, quic::identity(&client)?);
    quic::settle(&client, c, &sid, s)?;
    quic::settle(&server, s, &cid, c)?;
    Ok((quic_server(&server, tuning)?, client))
}

/// Starts the answering end of QUIC with what is settled in `dir`.
pub(crate) fn quic_server(dir: &Path, tuning: quic::Tuning) -> Result<Process> {
    let args = ["quic-server", &dir.to_string_lossy(), tuning.word()];
    Process::start(&args, None, &dir.join("log"))
}

/// Starts the answering end of TCP.
pub(crate) fn tcp_server(dir: &Path, address: SocketAddr, key: &str) -> Result<Process> {
    let path = tcp::keep(key, dir)?;
    let args = ["tcp-server", &address.to_string(), &path.to_string_lossy()];
    Process::start(&args, None, &dir.join("log"))
}
