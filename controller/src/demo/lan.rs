//! The network of the demonstration: two machines and a user of theirs, each a network namespace,
//! on one switch. They are held by this process and by what runs in them, and go with those.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

/// The network, the machines in it by their number, and the user.
const NETWORK: [u8; 3] = [10, 83, 0];
const USER: u8 = 3;
const VIRTUAL: u8 = 9;

/// The name of a machine's interface.
pub(crate) const INTERFACE: &str = "eth0";

/// Where the application is found, at the address that goes with it.
const PORT: u16 = 7000;

/// How long the switch, or an address that has just moved, may take to carry anything.
const CARRIES: Duration = Duration::from_secs(30);

/// How long one try may take.
const TRY: Duration = Duration::from_secs(1);

/// Three machines on a switch.
#[derive(Debug)]
pub(crate) struct Lan {
    user: File,
    ends: [File; 2],
}

fn address(host: u8) -> Ipv4Addr {
    let [a, b, c] = NETWORK;
    Ipv4Addr::new(a, b, c, host)
}

/// The address of a machine, 0 or 1.
pub(crate) fn machine(end: usize) -> Ipv4Addr {
    address(end as u8 + 1)
}

/// The address of the user.
pub(crate) fn user() -> Ipv4Addr {
    address(USER)
}

/// The address that goes with the application.
pub(crate) fn of_application() -> Ipv4Addr {
    address(VIRTUAL)
}

fn change_to(namespace: &File) -> io::Result<()> {
    // SAFETY: a system call without pointers, on a descriptor that is open.
    match unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Lets a command run in a namespace.
pub(crate) fn enter(command: &mut Command, namespace: &File) -> io::Result<()> {
    let namespace = namespace.try_clone()?;
    // SAFETY: one system call is made between fork and exec, no memory is allocated.
    unsafe { command.pre_exec(move || change_to(&namespace)) };
    Ok(())
}

/// Runs something on a thread of its own in a namespace.
fn inside<T: Send + 'static>(
    namespace: &File,
    what: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let namespace = namespace.try_clone()?;
    let run = move || change_to(&namespace).and_then(|()| what());
    let ended = std::thread::spawn(run).join();
    ended.map_err(|_| io::Error::other("the thread failed"))?
}

/// A new namespace.
fn namespace() -> Result<File> {
    let make = || {
        // SAFETY: a system call without pointers; only this thread, made for it, changes.
        if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
            return Err(io::Error::last_os_error());
        }
        File::open("/proc/thread-self/ns/net")
    };
    let made = std::thread::spawn(make).join();
    made.map_err(|_| anyhow::anyhow!("the thread failed"))?
        .context("cannot make a network namespace (in a container: --privileged)")
}

fn ip(namespace: &File, what: &str) -> Result<()> {
    let mut command = Command::new("ip");
    command.args(what.split_whitespace());
    enter(&mut command, namespace)?;
    let output = command
        .output()
        .context("the command `ip` is needed (package iproute2)")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "ip {what}: {}", said.trim());
    Ok(())
}

impl Lan {
    /// Puts it up.
    pub(crate) fn new() -> Result<Lan> {
        let lan = Lan {
            user: namespace()?,
            ends: [namespace()?, namespace()?],
        };
        let switch = format!("/proc/{}/fd/{}", std::process::id(), lan.user.as_raw_fd());
        ip(&lan.user, "link add switch type bridge")?;
        for (end, namespace) in lan.ends.iter().enumerate() {
            let cable = format!("type veth peer name port{end} netns {switch}");
            ip(namespace, &format!("link add {INTERFACE} {cable}"))?;
            ip(
                namespace,
                &format!("addr add {}/24 dev {INTERFACE}", machine(end)),
            )?;
            ip(namespace, "link set lo up")?;
            ip(namespace, &format!("link set {INTERFACE} up"))?;
            ip(&lan.user, &format!("link set port{end} master switch up"))?;
        }
        ip(&lan.user, &format!("addr add {}/24 dev switch", user()))?;
        ip(&lan.user, "link set lo up")?;
        ip(&lan.user, "link set switch up")?;
        // A new switch takes a moment.
        for end in 0..2 {
            lan.serves(end, machine(end))?;
        }
        Ok(lan)
    }

    /// The namespace of a machine.
    pub(crate) fn of(&self, end: usize) -> io::Result<File> {
        self.ends[end].try_clone()
    }

    /// Nothing goes to or from a machine any more, as when it has no power; or it does again.
    pub(crate) fn power(&self, end: usize, on: bool) -> Result<()> {
        let how = if on { "up" } else { "down" };
        ip(&self.ends[end], &format!("link set {INTERFACE} {how}"))
    }

    /// The user finds the application's address at a machine.
    pub(crate) fn is_served_by(&self, end: usize) -> Result<()> {
        self.serves(end, of_application())
    }

    /// Somebody listens at the address on this machine, which has to have it, and the user
    /// comes to him there.
    fn serves(&self, end: usize, at: Ipv4Addr) -> Result<()> {
        let at = SocketAddr::from((at, PORT));
        let name = [b'a' + end as u8];
        let listener = inside(&self.ends[end], move || TcpListener::bind(at))
            .with_context(|| format!("this machine does not have {at}"))?;
        listener.set_nonblocking(true)?;
        let until = Instant::now() + CARRIES;
        loop {
            let asked = inside(&self.user, move || TcpStream::connect_timeout(&at, TRY));
            if let Ok(mut asked) = asked {
                asked.set_read_timeout(Some(TRY))?;
                let mut answer = [0];
                if let Ok((mut line, _)) = listener.accept() {
                    line.write_all(&name)?;
                    if asked.read_exact(&mut answer).is_ok() && answer == name {
                        return Ok(());
                    }
                }
            }
            if Instant::now() > until {
                bail!("the user does not find {at} in {CARRIES:?}");
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}
