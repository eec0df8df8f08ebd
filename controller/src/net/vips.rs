//! The addresses that go with the primary: set before the application starts, removed when it
//! has stopped, and announced so that everybody finds them where they are.
//!
//! An address that somebody else answers for is waited for a while. If it is the peer who still
//! has it (its machine is up, its daemon is not), this node takes it nevertheless: it has the
//! right to serve. If it is a stranger, the application is not started.

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::announce::{self, announce, holder};
use super::netlink::{self, Interfaces, Link};
use crate::config::VirtualAddress;

/// How long an address may still be the peer's, which is about to remove it.
const PEER: Duration = Duration::from_millis(500);

/// How long it may be somebody else's.
const STRANGER: Duration = Duration::from_secs(10);

/// How often is looked.
const LOOK: Duration = Duration::from_millis(50);

/// When an address is announced after it was set, besides at once: a packet may be lost, a
/// switch may just have lost the port of the other node.
const SOON: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(3)];

/// Longest list of hardware addresses that a peer is believed.
pub(crate) const MAX_HARDWARE: usize = 64;

/// The addresses of one module.
#[derive(Debug)]
pub(crate) struct Vips {
    all: Vec<VirtualAddress>,
    /// The hardware addresses of the peer.
    peer: Mutex<Vec<[u8; 6]>>,
    /// This node has no right to them at the moment.
    withdrawn: AtomicBool,
    /// Held while they are set or removed.
    changing: Mutex<()>,
    /// Who announces them again; it ends when this goes.
    announcer: Mutex<Option<Sender<()>>>,
}

/// Where an address goes.
struct Place {
    link: Link,
    prefix: u8,
}

fn place(all: &Interfaces, vip: &VirtualAddress) -> Result<Place> {
    let beside = all.beside(vip.address);
    let link = match &vip.interface {
        Some(name) => all.named(name).with_context(|| {
            format!(
                "{} cannot be set: there is no interface {name}",
                vip.address
            )
        })?,
        None => beside.and_then(|a| all.link(a.index)).with_context(|| {
            format!(
                "{} cannot be set: no interface has an address of its network; name one with \
                 <interface name=...>",
                vip.address
            )
        })?,
    };
    let near = beside.filter(|a| a.index == link.index).map(|a| a.prefix);
    let whole = if vip.address.is_ipv4() { 32 } else { 128 };
    Ok(Place {
        prefix: vip.prefix.or(near).unwrap_or(whole),
        link: link.clone(),
    })
}

impl Vips {
    pub(crate) fn new(all: Vec<VirtualAddress>) -> Arc<Vips> {
        Arc::new(Vips {
            all,
            peer: Mutex::default(),
            withdrawn: AtomicBool::new(false),
            changing: Mutex::default(),
            announcer: Mutex::default(),
        })
    }

    /// The peer's hardware addresses are these.
    pub(crate) fn peer_has(&self, hardware: &[[u8; 6]]) {
        let mut peer = lock(&self.peer);
        if !hardware.is_empty() && *peer != hardware {
            *peer = hardware[..hardware.len().min(MAX_HARDWARE)].to_vec();
        }
    }

    fn is_peer(&self, hardware: [u8; 6]) -> bool {
        let peer = lock(&self.peer);
        peer.contains(&hardware)
    }

    /// Sets all, and tells everybody; `say` is for what an operator should know.
    pub(crate) fn set(&self, say: &dyn Fn(String)) -> Result<()> {
        for vip in &self.all {
            self.set_one(vip, say)?;
        }
        self.keep_announcing();
        Ok(())
    }

    /// Whether the node has the right to them: until it has, none is set.
    pub(crate) fn withdraw(&self, withdrawn: bool) {
        self.withdrawn.store(withdrawn, Ordering::Release);
    }

    /// Removes all if they are withdrawn still. Tells which.
    pub(crate) fn remove_withdrawn(&self) -> Result<Vec<IpAddr>> {
        let changing = lock(&self.changing);
        match self.withdrawn.load(Ordering::Acquire) {
            true => self.remove_all(&changing),
            false => Ok(Vec::new()),
        }
    }

    /// Waits until nobody else sets or removes them; fails when they are withdrawn.
    fn change(&self, address: IpAddr) -> Result<MutexGuard<'_, ()>> {
        let changing = lock(&self.changing);
        ensure!(
            !self.withdrawn.load(Ordering::Acquire),
            "{address} is not set: the peer is to serve"
        );
        Ok(changing)
    }

    fn set_one(&self, vip: &VirtualAddress, say: &dyn Fn(String)) -> Result<()> {
        let address = vip.address;
        let changing = self.change(address)?;
        let all = netlink::look()?;
        let place = place(&all, vip)?;
        if all
            .having(address)
            .any(|a| a.index == place.link.index && !a.duplicate)
        {
            return announce(&place.link, address);
        }
        drop(changing);
        if vip.check {
            self.wait_for(&place.link, address, say)?;
        }
        let _changing = self.change(address)?;
        netlink::add(place.link.index, address, place.prefix)?;
        say(format!("{address} is set on {}", place.link.name));
        announce(&place.link, address)
    }

    /// Waits until nobody answers for the address.
    fn wait_for(&self, link: &Link, address: IpAddr, say: &dyn Fn(String)) -> Result<()> {
        let begin = Instant::now();
        loop {
            let other = match holder(link, address) {
                Ok(None) => return Ok(()),
                Ok(Some(other)) => other,
                // An interface that has just come up cannot ask yet.
                Err(error) if begin.elapsed() >= STRANGER => return Err(error),
                Err(_) => {
                    std::thread::sleep(LOOK);
                    continue;
                }
            };
            let shown = announce::show(other);
            if self.is_peer(other) && begin.elapsed() >= PEER {
                say(format!(
                    "{address} is still set on the peer ({shown}), which has no right to it; it \
                     is taken over"
                ));
                return Ok(());
            }
            if begin.elapsed() >= STRANGER {
                bail!("{address} belongs to another machine already ({shown}): it is not set");
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Removes all that are there, also those that an earlier daemon left. Tells which.
    pub(crate) fn remove(&self) -> Result<Vec<IpAddr>> {
        self.remove_all(&lock(&self.changing))
    }

    fn remove_all(&self, _changing: &MutexGuard<'_, ()>) -> Result<Vec<IpAddr>> {
        lock(&self.announcer).take();
        let mut removed = Vec::new();
        if self.all.is_empty() {
            return Ok(removed);
        }
        let now = netlink::look()?;
        let mut failed = None;
        for vip in &self.all {
            for address in now.having(vip.address) {
                match netlink::remove(address) {
                    Ok(()) => removed.push(vip.address),
                    Err(error) => failed = Some(error),
                }
            }
        }
        match failed {
            Some(error) => Err(error),
            None => Ok(removed),
        }
    }

    /// Whether an address is set here, and on no other machine but, by mistake, the peer. An
    /// error says what is wrong.
    pub(crate) fn is_only_here(&self, address: IpAddr) -> Result<()> {
        let all = netlink::look()?;
        let set = all.having(address).next();
        let set = set.with_context(|| format!("{address} is not set any more"))?;
        if set.duplicate {
            bail!("{address} belongs to another machine as well");
        }
        if let Some(link) = all.link(set.index).filter(|l| l.up)
            && let Some(other) = holder(link, address)?
            && !self.is_peer(other)
            && !all.is_own(other)
        {
            let shown = announce::show(other);
            bail!("{address} belongs to another machine as well ({shown})");
        }
        Ok(())
    }

    /// Tells everybody now where they are, as far as they are here.
    pub(crate) fn announce_now(&self) {
        let announcer = lock(&self.announcer);
        if let Some(announcer) = &*announcer {
            // One that has ended has nothing to announce.
            let _ = announcer.send(());
        }
    }

    /// Announces them again and again, until they are removed.
    pub(crate) fn keep_announcing(&self) {
        if self.all.is_empty() {
            return;
        }
        let (now, asked) = channel();
        let all = self.all.clone();
        let work = move || {
            let begin = Instant::now();
            let mut soon = SOON.iter();
            loop {
                let every = all.iter().map(|v| v.announce_every).min();
                let pause = match soon.next() {
                    Some(at) => at.saturating_sub(begin.elapsed()),
                    None => every.unwrap_or(Duration::MAX),
                };
                match asked.recv_timeout(pause) {
                    // Whoever asks has a reason of today.
                    Ok(()) => tell(&all, Duration::ZERO),
                    Err(RecvTimeoutError::Timeout) => tell(&all, begin.elapsed()),
                    Err(RecvTimeoutError::Disconnected) => return,
                }
            }
        };
        let spawned = std::thread::Builder::new()
            .name("announce".into())
            .spawn(work);
        if let Err(error) = spawned {
            tracing::error!(%error, "addresses are not announced again");
        }
        *lock(&self.announcer) = Some(now);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Announces those that are announced so long after they were set.
fn tell(all: &[VirtualAddress], since: Duration) {
    let told = netlink::look().and_then(|now| {
        for vip in all.iter().filter(|v| since <= v.announce_for) {
            for address in now.having(vip.address) {
                if let Some(link) = now.link(address.index) {
                    announce(link, vip.address)?;
                }
            }
        }
        Ok(())
    });
    if let Err(error) = told {
        tracing::warn!("{error:#}");
    }
}
