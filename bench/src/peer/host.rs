//! What is carried out on the machine that serves: the other ends of the systems, below a
//! folder of its own that goes with them.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use super::ports::Ports;
use super::words::{Answer, Request, With};
use crate::floors::quic;
use crate::process::{Process, Usage};
use crate::systems::node::{Node, Other};
use crate::systems::{self, System};

/// The other ends of a run's systems. They end with it; the folder is removed by
/// [`Host::end`].
#[derive(Debug)]
pub(super) struct Host {
    dir: PathBuf,
    ports: Ports,
    ends: BTreeMap<System, End>,
}

/// The other end of one system.
#[derive(Debug)]
enum End {
    /// A node that has not been told of its primary yet.
    Made(Node, SocketAddr),
    /// A secondary, and its driver while it runs.
    Secondary(Node, Option<Process>),
    /// Where a server is going to listen.
    Chosen(SocketAddr),
    Server(Process),
}

/// Whether the other end of a system is a secondary.
fn is_secondary(system: System) -> bool {
    matches!(system, System::Twinfold | System::Flush | System::Alone)
}

impl Host {
    /// Of a run that reached this machine at `ip` and at the port `control`.
    pub(super) fn new(dir: &Path, ip: IpAddr, control: u16) -> Result<Host> {
        std::fs::create_dir(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        Ok(Host {
            dir: dir.to_owned(),
            ports: Ports::behind(ip, control),
            ends: BTreeMap::new(),
        })
    }

    /// Ends everything and removes it.
    pub(super) fn end(&mut self) -> Result<()> {
        self.ends.clear();
        match std::fs::remove_dir_all(&self.dir) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
            removed => removed.with_context(|| format!("cannot remove {}", self.dir.display())),
        }
    }

    /// Does what is asked for, or tells why it cannot be done.
    pub(super) fn answer(&mut self, request: Request) -> Answer {
        self.carry_out(request)
            .unwrap_or_else(|error| Answer::Refused {
                why: format!("{error:#}"),
            })
    }

    fn carry_out(&mut self, request: Request) -> Result<Answer> {
        match request {
            Request::Beat => {}
            Request::Flush => crate::run::flush(&self.dir)?,
            Request::Prepare { system } => return self.prepare(system),
            Request::Start { system, with } => self.start(system, with)?,
            Request::Stop { system } => {
                let (node, driver) = self.secondary(system)?;
                node.stop(driver.take().context("the secondary does not run")?)?;
            }
            Request::StartAgain { system } => {
                let (node, driver) = self.secondary(system)?;
                ensure!(driver.is_none(), "the secondary runs");
                *driver = Some(node.start("secondary")?);
            }
            Request::Usage { system } => return Ok(Answer::Usage(self.usage(system))),
            Request::Leave => self.end()?,
        }
        Ok(Answer::Done)
    }

    fn home(&self, system: System) -> PathBuf {
        self.dir.join(format!("{system:?}").to_lowercase())
    }

    fn prepare(&mut self, system: System) -> Result<Answer> {
        ensure!(
            !self.ends.contains_key(&system),
            "{} is there already",
            system.title()
        );
        let home = self.home(system);
        let (id, end, address) = if is_secondary(system) {
            let address = self.ports.udp()?;
            let (node, id) = Node::make(&std::env::current_exe()?, &home)?;
            (id, End::Made(node, address), address)
        } else if system == System::Quic {
            let address = self.ports.udp()?;
            (quic::identity(&home)?, End::Chosen(address), address)
        } else if system == System::Tcp {
            let address = self.ports.tcp()?;
            std::fs::create_dir(&home)?;
            (String::new(), End::Chosen(address), address)
        } else {
            bail!("{} has no end on another machine", system.title())
        };
        self.ends.insert(system, end);
        Ok(Answer::Prepared { id, address })
    }

    fn start(&mut self, system: System, with: With) -> Result<()> {
        let home = self.home(system);
        let end = self.ends.get_mut(&system).context("it is not prepared")?;
        *end = match (&*end, with) {
            (End::Made(node, here), With::Primary { id, address, ack }) => {
                let other = Other { id: &id, address };
                node.init(*here, &other, ack, &["--from-peer"])?;
                let driver = node.start("secondary")?;
                End::Secondary(node.clone(), Some(driver))
            }
            (End::Chosen(here), With::Quic { id, address }) if system == System::Quic => {
                quic::settle(&home, *here, &id, address)?;
                End::Server(systems::quic_server(&home, quic::Tuning::Driver)?)
            }
            (End::Chosen(here), With::Tcp { key }) if system == System::Tcp => {
                End::Server(systems::tcp_server(&home, *here, &key)?)
            }
            _ => bail!("{} is not started like that", system.title()),
        };
        Ok(())
    }

    fn secondary(&mut self, system: System) -> Result<(&Node, &mut Option<Process>)> {
        match self.ends.get_mut(&system) {
            Some(End::Secondary(node, driver)) => Ok((node, driver)),
            _ => bail!("{} has no secondary here", system.title()),
        }
    }

    fn usage(&self, system: System) -> Vec<Usage> {
        let (name, process) = match self.ends.get(&system) {
            Some(End::Secondary(_, Some(driver))) => ("secondary", driver),
            Some(End::Server(server)) => ("server", server),
            _ => return Vec::new(),
        };
        vec![Usage::of(name, process.id())]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_no_end_here_is_refused_and_nothing_is_made_twice() {
        let place = tempfile::tempdir().unwrap();
        let dir = place.path().join("run");
        let mut host = Host::new(&dir, IpAddr::from([127, 0, 0, 1]), 40_000).unwrap();
        for system in [System::Bare, System::Plain, System::Gluster, System::Other] {
            let answer = host.answer(Request::Prepare { system });
            assert!(matches!(answer, Answer::Refused { .. }), "{answer:?}");
        }
        let system = System::Tcp;
        let prepared = host.answer(Request::Prepare { system });
        assert!(matches!(prepared, Answer::Prepared { .. }), "{prepared:?}");
        let again = host.answer(Request::Prepare { system });
        assert!(matches!(again, Answer::Refused { .. }), "{again:?}");
        let stop = host.answer(Request::Stop { system });
        assert!(matches!(stop, Answer::Refused { .. }), "{stop:?}");
        assert!(matches!(host.answer(Request::Leave), Answer::Done));
        assert!(!dir.exists());
    }
}
