//! A network of two machines' own: two network namespaces and a cable between them,
//! that can be pulled, or carry one direction only.
//!
//! The namespaces have no names. They are held by descriptors of the test process and
//! by the nodes in them, and go with those, however they end.

use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// The name of the cable's end in both namespaces.
const DEVICE: &str = "cable";

/// Addresses and hardware addresses of the two ends.
const ADDRESSES: [&str; 2] = ["10.77.0.1", "10.77.0.2"];
const HARDWARE: [&str; 2] = ["02:77:00:00:00:01", "02:77:00:00:00:02"];

/// Nobody's: what is sent to it arrives and is taken by nobody.
const NOBODY: &str = "02:77:00:00:00:99";

/// Where nodes listen in their namespaces.
const PORT: u16 = 4810;

/// Two machines and their cable.
#[derive(Debug)]
pub struct Network {
    ends: [File; 2],
}

/// Lets a command run in a namespace.
pub fn enter(command: &mut Command, namespace: &File) -> io::Result<()> {
    let namespace = namespace.try_clone()?;
    // SAFETY: between fork and exec one system call without memory is made.
    unsafe {
        command.pre_exec(
            move || match libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) {
                0 => Ok(()),
                _ => Err(io::Error::last_os_error()),
            },
        );
    }
    Ok(())
}

/// A new network namespace, which the thread that makes it takes with it but for this.
fn namespace() -> Result<File> {
    let make = || -> io::Result<File> {
        // SAFETY: only this thread, made for the purpose, changes its namespace.
        if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
            return Err(io::Error::last_os_error());
        }
        File::open("/proc/thread-self/ns/net")
    };
    let made = std::thread::spawn(make).join();
    made.map_err(|_| anyhow::anyhow!("the thread failed"))?
        .context("cannot make a network namespace")
}

fn run_ip(namespace: &File, what: &str) -> Result<()> {
    let mut command = Command::new("ip");
    command.args(what.split_whitespace());
    enter(&mut command, namespace)?;
    let output = command.output().context("this needs iproute2")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "ip {what}: {said}");
    Ok(())
}

impl Network {
    /// Two namespaces, connected.
    pub fn new() -> Result<Network> {
        let network = Network {
            ends: [namespace()?, namespace()?],
        };
        let other = format!(
            "/proc/{}/fd/{}",
            std::process::id(),
            network.ends[1].as_raw_fd()
        );
        let [one, two] = HARDWARE;
        network.ip(
            0,
            &format!(
                "link add {DEVICE} address {one} type veth \
                 peer name {DEVICE} address {two} netns {other}"
            ),
        )?;
        for (end, address) in ADDRESSES.iter().enumerate() {
            network.ip(end, &format!("addr add {address}/24 dev {DEVICE}"))?;
            network.ip(end, "link set lo up")?;
            network.ip(end, &format!("link set {DEVICE} up"))?;
        }
        network.heal()?;
        Ok(network)
    }

    /// A third machine, which each of the two reaches over a cable of its own.
    /// It is held by what is returned and by what runs in it.
    pub fn witness(&self) -> Result<File> {
        let third = namespace()?;
        let there = format!("/proc/{}/fd/{}", std::process::id(), third.as_raw_fd());
        let ip = |what: &str| run_ip(&third, what);
        for end in 0..2 {
            let (net, device) = (78 + end, format!("third{end}"));
            let peer = format!("link add third type veth peer name {device} netns {there}");
            self.ip(end, &peer)?;
            self.ip(end, &format!("addr add 10.{net}.0.1/24 dev third"))?;
            self.ip(end, "link set third up")?;
            ip(&format!("addr add 10.{net}.0.3/24 dev {device}"))?;
            ip(&format!("link set {device} up"))?;
        }
        ip("link set lo up")?;
        Ok(third)
    }

    /// Where the node at this end finds the third machine.
    pub fn witness_address(end: usize) -> std::net::IpAddr {
        std::net::Ipv4Addr::new(10, 78 + end as u8, 0, 3).into()
    }

    /// Where the node at this end listens.
    pub fn address(&self, end: usize) -> SocketAddr {
        let host: std::net::IpAddr = ADDRESSES[end].parse().expect("an address");
        SocketAddr::new(host, PORT)
    }

    /// The namespace of an end.
    pub fn namespace(&self, end: usize) -> io::Result<File> {
        self.ends[end].try_clone()
    }

    fn ip(&self, end: usize, what: &str) -> Result<()> {
        run_ip(&self.ends[end], what)
    }

    /// Nothing that this end sends arrives, without a word to it.
    pub fn silence(&self, end: usize) -> Result<()> {
        self.towards(end, NOBODY)
    }

    /// Nothing arrives in either direction, without a word.
    pub fn cut(&self) -> Result<()> {
        self.silence(0)?;
        self.silence(1)
    }

    /// Pulls the cable: both ends see it.
    pub fn pull(&self, end: usize) -> Result<()> {
        self.ip(end, &format!("link set {DEVICE} down"))
    }

    /// Everything arrives.
    pub fn heal(&self) -> Result<()> {
        for end in 0..2 {
            self.ip(end, &format!("link set {DEVICE} up"))?;
        }
        for end in 0..2 {
            self.towards(end, HARDWARE[1 - end])?;
        }
        Ok(())
    }

    fn towards(&self, end: usize, hardware: &str) -> Result<()> {
        let address = ADDRESSES[1 - end];
        self.ip(
            end,
            &format!("neigh replace {address} lladdr {hardware} dev {DEVICE} nud permanent"),
        )
    }
}
