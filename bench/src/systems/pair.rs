//! Two nodes that replicate a folder: the primary here, the secondary here or on the other
//! machine.

use std::net::{SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use fs_driver::control::{self, Request};
use fs_driver::state::Ack;

use super::System;
use super::node::{Node, Other};
use crate::peer::Peer;
use crate::process::{Process, Usage};

/// How long the nodes may take to pair.
const PATIENCE: Duration = Duration::from_secs(30);

/// How often they are looked at meanwhile.
const LOOK: Duration = Duration::from_millis(20);

/// Free UDP ports on loopback.
pub(crate) fn ports<const N: usize>() -> Result<[u16; N]> {
    let sockets: Vec<UdpSocket> = (0..N)
        .map(|_| UdpSocket::bind("127.0.0.1:0"))
        .collect::<Result<_, _>>()?;
    let mut out = [0; N];
    for (port, socket) in out.iter_mut().zip(&sockets) {
        *port = socket.local_addr()?.port();
    }
    Ok(out)
}

/// Two nodes that replicate a folder.
#[derive(Debug)]
pub(crate) struct Pair {
    /// The primary's mount.
    pub(crate) mount: PathBuf,
    node: Node,
    primary: Process,
    secondary: Secondary,
}

#[derive(Debug)]
enum Secondary {
    /// And its driver while it runs.
    Here(Node, Option<Process>),
    /// On the other machine, as part of this system.
    There(Arc<Peer>, System),
}

impl Pair {
    /// Makes and starts two nodes of this build below `dir`, and waits until they are paired.
    pub(crate) fn start(dir: &Path, ack: Ack) -> Result<Pair> {
        Pair::of(&std::env::current_exe()?, dir, ack)
    }

    /// The same with the drivers of any build of this program.
    pub(crate) fn of(program: &Path, dir: &Path, ack: Ack) -> Result<Pair> {
        let [pa, pb] = ports()?.map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
        let (a, a_id) = Node::make(program, &dir.join("a"))?;
        let (b, b_id) = Node::make(program, &dir.join("b"))?;
        let other = |id, address| Other { id, address };
        a.init(pa, &other(&b_id, pb), ack, &["--good-copy"])?;
        b.init(pb, &other(&a_id, pa), ack, &["--from-peer"])?;
        let pair = Pair {
            mount: a.mount(),
            primary: a.start("primary")?,
            node: a,
            secondary: Secondary::Here(b.clone(), Some(b.start("secondary")?)),
        };
        pair.wait_until_paired()?;
        Ok(pair)
    }

    /// The primary below `dir`, the secondary of `system` on the other machine.
    pub(crate) fn with(peer: &Arc<Peer>, system: System, dir: &Path, ack: Ack) -> Result<Pair> {
        let (node, id) = Node::make(&std::env::current_exe()?, dir)?;
        let here = peer.free_address()?;
        let (there_id, there) = peer.prepare(system)?;
        let other = Other {
            id: &there_id,
            address: there,
        };
        // It does not hold what it was told when the other machine is lost: the run ends then.
        let more = ["--good-copy", "--on-peer-loss", "alone"];
        node.init(here, &other, ack, &more)?;
        let primary = node.start("primary")?;
        peer.start_secondary(system, id, here, ack)?;
        let pair = Pair {
            mount: node.mount(),
            node,
            primary,
            secondary: Secondary::There(peer.clone(), system),
        };
        pair.wait_until_paired().with_context(|| {
            format!("do UDP packets pass in both directions between {here} and {there}?")
        })?;
        Ok(pair)
    }

    /// Waits until both nodes have everything.
    pub(crate) fn wait_until_paired(&self) -> Result<()> {
        let until = Instant::now() + PATIENCE;
        while !self.is_paired().unwrap_or(false) {
            if Instant::now() > until {
                let words = super::words(&self.node.log());
                bail!("the two nodes did not pair; the primary says: {words}");
            }
            if let Secondary::There(peer, _) = &self.secondary {
                peer.check()?;
            }
            std::thread::sleep(LOOK);
        }
        Ok(())
    }

    /// Stops the secondary in order; the primary goes on alone.
    pub(crate) fn stop_secondary(&mut self) -> Result<()> {
        match &mut self.secondary {
            Secondary::Here(node, driver) => {
                node.stop(driver.take().context("the secondary does not run")?)?;
            }
            Secondary::There(peer, system) => peer.stop_secondary(*system)?,
        }
        let until = Instant::now() + PATIENCE;
        while self.status()?["link"] != "alone" {
            if Instant::now() > until {
                bail!("the primary does not go on alone");
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Starts the secondary again.
    pub(crate) fn start_secondary(&mut self) -> Result<()> {
        match &mut self.secondary {
            Secondary::Here(node, driver) => *driver = Some(node.start("secondary")?),
            Secondary::There(peer, system) => peer.start_again(*system)?,
        }
        Ok(())
    }

    /// What the primary tells.
    pub(crate) fn status(&self) -> Result<serde_json::Value> {
        if let Secondary::There(peer, _) = &self.secondary {
            peer.check()?;
        }
        let layout = fs_driver::store::Layout::new(self.node.base());
        control::ask(&layout, Request::Status)?.context("the driver told no state")
    }

    /// Whether the primary is paired.
    pub(crate) fn is_paired(&self) -> Result<bool> {
        Ok(self.status()?["link"] == "paired")
    }

    /// The generation of the data, once both nodes are paired: a primary that goes on alone
    /// begins another one.
    pub(crate) fn generation(&self) -> Result<String> {
        self.wait_until_paired()?;
        let status = self.status()?;
        let generation = status["generation"].as_str();
        Ok(generation
            .context("the driver told no generation")?
            .to_owned())
    }

    /// Flushes the file system of the secondary, if that is on the other machine.
    pub(crate) fn flush_there(&self) -> Result<()> {
        match &self.secondary {
            Secondary::Here(..) => Ok(()),
            Secondary::There(peer, _) => peer.flush(),
        }
    }

    /// What both drivers have used, the primary first; the secondary only while it runs.
    pub(crate) fn usage(&self) -> Result<Vec<Usage>> {
        let mut all = vec![Usage::of("primary", self.primary.id())];
        match &self.secondary {
            Secondary::Here(_, driver) => {
                all.extend(driver.iter().map(|d| Usage::of("secondary", d.id())));
            }
            Secondary::There(peer, system) => all.extend(peer.usage(*system)?),
        }
        Ok(all)
    }
}
