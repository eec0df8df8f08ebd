//! A network of two machines' own: two network namespaces and a cable between them,
//! that can be pulled, or carry one direction only.
//!
//! The namespaces have no names. They are held by descriptors of the test process and
//! by the nodes in them, and go with those, however they end.

use std::fs::File;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

/// The name of the cable's end in both namespaces.
const DEVICE: &str = "cable";

/// Addresses and hardware addresses of the two ends.
const ADDRESSES: [&str; 2] = ["10.77.0.1", "10.77.0.2"];
const HARDWARE: [&str; 2] = ["02:77:00:00:00:01", "02:77:00:00:00:02"];

/// Hardware addresses on the network of users.
pub const PUBLIC: [&str; 2] = ["02:80:00:00:00:01", "02:80:00:00:00:02"];

/// The machine of a user.
const USER: &str = "10.80.0.3";

/// How long a switch may take to work.
const CARRIES: Duration = Duration::from_secs(60);

/// Nobody's: what is sent to it arrives and is taken by nobody.
const NOBODY: &str = "02:77:00:00:00:99";

/// Where nodes listen in their namespaces.
const PORT: u16 = 4810;

/// The name and the addresses of a second cable's ends.
const SECOND: &str = "second";
const SECOND_ADDRESSES: [&str; 2] = ["10.80.0.1", "10.80.0.2"];

/// Two machines and their cable.
#[derive(Debug)]
pub struct Network {
    ends: [File; 2],
    second: bool,
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

/// Runs in a namespace what does so on a thread of its own.
pub fn inside<T: Send + 'static>(
    namespace: &File,
    what: impl FnOnce() -> T + Send + 'static,
) -> io::Result<T> {
    let namespace = namespace.try_clone()?;
    let run = move || {
        // SAFETY: only this thread, made for the purpose, changes its namespace.
        match unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) } {
            0 => Ok(what()),
            _ => Err(io::Error::last_os_error()),
        }
    };
    std::thread::spawn(run)
        .join()
        .map_err(|_| io::Error::other("the thread failed"))?
}

/// Sends something to an address from a namespace, so that it is looked for there.
pub fn talk(namespace: &File, address: &str) -> Result<()> {
    let to = SocketAddr::new(address.parse().context("no address")?, 9);
    let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    inside(namespace, move || {
        UdpSocket::bind(any)?.send_to(b"hello", to).map(drop)
    })?
    .with_context(|| format!("nothing can be sent to {address}"))
}

/// Everything that is heard in a namespace.
#[derive(Debug)]
pub struct Wire(OwnedFd);

impl Wire {
    /// Begins to listen.
    pub fn of(namespace: &File) -> Result<Wire> {
        let all = (libc::ETH_P_ALL as u16).to_be();
        let open = move || {
            // SAFETY: a system call without pointers; the descriptor is new and owned here alone.
            unsafe {
                match libc::socket(
                    libc::AF_PACKET,
                    libc::SOCK_RAW | libc::SOCK_CLOEXEC,
                    all.into(),
                ) {
                    -1 => Err(io::Error::last_os_error()),
                    socket => Ok(OwnedFd::from_raw_fd(socket)),
                }
            }
        };
        Ok(Wire(inside(namespace, open)??))
    }

    /// The next frame that has come, if one has.
    pub fn next(&self) -> Option<Vec<u8>> {
        let mut frame = vec![0; 2048];
        let (room, length) = (frame.as_mut_ptr().cast(), frame.len());
        // SAFETY: the kernel writes into the buffer, at most its length.
        let got = unsafe { libc::recv(self.0.as_raw_fd(), room, length, libc::MSG_DONTWAIT) };
        frame.truncate(usize::try_from(got).ok()?);
        Some(frame)
    }
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

/// Runs `ip` in a namespace; what it says.
pub fn run_ip(namespace: &File, what: &str) -> Result<String> {
    let mut command = Command::new("ip");
    command.args(what.split_whitespace());
    enter(&mut command, namespace)?;
    let output = command.output().context("this needs iproute2")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "ip {what}: {said}");
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

impl Network {
    /// Two namespaces, connected.
    pub fn new() -> Result<Network> {
        let network = Network {
            ends: [namespace()?, namespace()?],
            second: false,
        };
        let other = network.other();
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

    /// The same, with a second cable between the two.
    pub fn with_second() -> Result<Network> {
        let mut network = Network::new()?;
        let other = network.other();
        network.ip(
            0,
            &format!("link add {SECOND} type veth peer name {SECOND} netns {other}"),
        )?;
        for (end, address) in SECOND_ADDRESSES.iter().enumerate() {
            network.ip(end, &format!("addr add {address}/24 dev {SECOND}"))?;
        }
        network.second = true;
        network.heal_second()?;
        Ok(network)
    }

    /// The namespace of end 1, for a command in that of end 0.
    fn other(&self) -> String {
        let fd = self.ends[1].as_raw_fd();
        format!("/proc/{}/fd/{fd}", std::process::id())
    }

    /// Pulls the second cable.
    pub fn cut_second(&self) -> Result<()> {
        (0..2).try_for_each(|end| self.ip(end, &format!("link set {SECOND} down")))
    }

    /// Puts it back.
    pub fn heal_second(&self) -> Result<()> {
        (0..2).try_for_each(|end| self.ip(end, &format!("link set {SECOND} up")))
    }

    /// The node at this end in each of the networks, the first one first.
    pub fn hosts(&self, end: usize) -> Vec<std::net::IpAddr> {
        let second = self.second.then_some(SECOND_ADDRESSES[end]);
        let all = std::iter::once(ADDRESSES[end]).chain(second);
        all.map(|host| host.parse().expect("an address")).collect()
    }

    /// A third machine, which each of the two reaches over a cable of its own.
    /// It is held by what is returned and by what runs in it.
    pub fn witness(&self) -> Result<File> {
        let third = namespace()?;
        let there = format!("/proc/{}/fd/{}", std::process::id(), third.as_raw_fd());
        let ip = |what: &str| run_ip(&third, what).map(drop);
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

    /// A network of users: a machine of theirs, on whose switch both nodes have an interface
    /// with the name `public`. It is held as the witness is.
    pub fn public(&self) -> Result<File> {
        let user = namespace()?;
        let there = format!("/proc/{}/fd/{}", std::process::id(), user.as_raw_fd());
        let ip = |what: &str| run_ip(&user, what).map(drop);
        ip("link add lan type bridge")?;
        for (end, hardware) in PUBLIC.iter().enumerate() {
            let port = format!("port{end}");
            let what = format!("type veth peer name {port} netns {there}");
            self.ip(end, &format!("link add public address {hardware} {what}"))?;
            let number = end + 1;
            self.ip(end, &format!("addr add 10.80.0.{number}/24 dev public"))?;
            self.ip(end, &format!("addr add fd80::{number}/64 dev public nodad"))?;
            self.ip(end, "link set public up")?;
            ip(&format!("link set {port} master lan up"))?;
        }
        ip(&format!("addr add {USER}/24 dev lan"))?;
        ip("addr add fd80::3/64 dev lan nodad")?;
        ip("link set lan up")?;
        ip("link set lo up")?;
        // A new switch takes a moment to carry anything.
        for end in 0..2 {
            let found = || {
                talk(&self.ends[end], USER).is_ok()
                    && run_ip(&self.ends[end], &format!("neigh show {USER} dev public"))
                        .is_ok_and(|shown| shown.contains("lladdr"))
            };
            ensure!(
                crate::wait_until(CARRIES, found),
                "the switch does not work"
            );
        }
        Ok(user)
    }

    /// The third machine gets no word to this end any more.
    pub fn unreachable(&self, third: &File, end: usize) -> Result<()> {
        run_ip(third, &format!("link set third{end} down")).map(drop)
    }

    /// It does again.
    pub fn reachable(&self, third: &File, end: usize) -> Result<()> {
        run_ip(third, &format!("link set third{end} up")).map(drop)
    }

    /// Where the node at this end finds the third machine.
    pub fn witness_address(end: usize) -> std::net::IpAddr {
        std::net::Ipv4Addr::new(10, 78 + end as u8, 0, 3).into()
    }

    /// Where the node at this end listens: in the last of the networks.
    pub fn address(&self, end: usize) -> SocketAddr {
        let hosts = self.hosts(end);
        SocketAddr::new(hosts[hosts.len() - 1], PORT)
    }

    /// The namespace of an end.
    pub fn namespace(&self, end: usize) -> io::Result<File> {
        self.ends[end].try_clone()
    }

    fn ip(&self, end: usize, what: &str) -> Result<()> {
        run_ip(&self.ends[end], what).map(drop)
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

    /// Whatever this end sends to the other one's address on the first cable, or on the second, is
    /// refused, as by a firewall that rejects: the address is this end's own, too, where nobody
    /// listens. Nothing comes from there either.
    pub fn reject(&self, end: usize, second: bool) -> Result<()> {
        self.ip(
            end,
            &format!("addr add {} dev lo", self.rejected(end, second)),
        )
    }

    /// It arrives again.
    pub fn accept(&self, end: usize, second: bool) -> Result<()> {
        self.ip(
            end,
            &format!("addr del {} dev lo", self.rejected(end, second)),
        )
    }

    fn rejected(&self, end: usize, second: bool) -> String {
        let addresses = if second { SECOND_ADDRESSES } else { ADDRESSES };
        format!("{}/32", addresses[1 - end])
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
