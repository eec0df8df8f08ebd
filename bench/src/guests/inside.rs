//! The first process of an emulated machine: puts up disks, network and DRBD, then serves the
//! other machine, or measures and writes the report to a disk of its own.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, ValueEnum};
use rustix::mount::{MountFlags, mount};

use crate::process;

/// Where DRBD of both listens, and the serving machine tells its token.
const DRBD: u16 = 7788;
/// See [`DRBD`].
const TOKEN: u16 = 7000;
/// Where `serve` listens.
const SERVE: u16 = 4850;

/// How long the other machine may take to be there: the emulation is slow.
const PATIENCE: Duration = Duration::from_secs(300);

/// How long one command may take.
const COMMAND: Duration = Duration::from_secs(60);

/// How often is looked.
const LOOK: Duration = Duration::from_millis(200);

/// Which machine it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Role {
    /// The one that measures.
    A,
    /// The one that serves.
    B,
}

impl Role {
    fn address(self) -> IpAddr {
        let last = match self {
            Role::A => 1,
            Role::B => 2,
        };
        Ipv4Addr::new(10, 0, 3, last).into()
    }

    fn other(self) -> Role {
        match self {
            Role::A => Role::B,
            Role::B => Role::A,
        }
    }
}

/// What the machine was booted for.
#[derive(Debug, Args)]
pub(crate) struct Options {
    role: Role,
    #[arg(long)]
    minutes: u64,
    /// What `run` is called with.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    run: Vec<String>,
}

/// Works and switches the machine off.
pub(crate) fn run(options: &Options) -> Result<()> {
    ensure!(
        std::process::id() == 1,
        "this runs as the first process of a machine that `drbd` boots"
    );
    if let Err(e) = work(options) {
        println!("failed: {e:#}");
    }
    rustix::system::reboot(rustix::system::RebootCommand::PowerOff).context("cannot power off")
}

fn work(options: &Options) -> Result<()> {
    put_up(options.role)?;
    replicate(options.role)?;
    match options.role {
        Role::A => measure(options),
        Role::B => serve(options),
    }
}

/// File systems and the network.
fn put_up(role: Role) -> Result<()> {
    for (kind, at) in [
        ("devtmpfs", "/dev"),
        ("proc", "/proc"),
        ("sysfs", "/sys"),
        ("tmpfs", "/run"),
        ("tmpfs", "/tmp"),
        ("tmpfs", "/var"),
    ] {
        std::fs::create_dir_all(at)?;
        mount(kind, at, kind, MountFlags::empty(), None)
            .with_context(|| format!("cannot mount {at}"))?;
    }
    for place in ["/var/tmp", "/var/lock", "/var/lib/drbd", "/var/run/drbd"] {
        std::fs::create_dir_all(place)?;
    }
    twinfold_controller::guest::load_modules()?;
    let cable = format!("addr add {}/24 dev eth0", role.address());
    for what in ["link set lo up", &cable, "link set eth0 up"] {
        must("/ip", &what.split(' ').collect::<Vec<_>>())?;
    }
    put("/dev/vda", "/folders")
}

fn put(device: &str, at: &str) -> Result<()> {
    std::fs::create_dir_all(at)?;
    mount(device, at, "ext4", MountFlags::NOATIME, None)
        .with_context(|| format!("cannot mount {device}"))
}

/// DRBD as it comes, in protocol C: a write is done when both disks have it.
fn replicate(role: Role) -> Result<()> {
    let end = |role: Role| format!("ipv4:{}:{DRBD}", role.address());
    let (own, peer) = (end(role), end(role.other()));
    let disk = "/dev/vdb";
    must(
        "/drbdmeta",
        &["--force", "0", "v08", disk, "internal", "create-md"],
    )?;
    must("/drbdsetup", &["new-resource", "r0"])?;
    must("/drbdsetup", &["new-minor", "r0", "0", "0"])?;
    must("/drbdsetup", &["attach", "0", disk, disk, "internal"])?;
    must(
        "/drbdsetup",
        &["connect", "r0", &own, &peer, "--protocol=C"],
    )?;
    wait_for_drbd("cs:Connected")?;
    if role == Role::A {
        // Both disks begin alike: nothing is to be synchronised.
        must("/drbdsetup", &["new-current-uuid", "0", "--clear-bitmap"])?;
        wait_for_drbd("ds:UpToDate/UpToDate")?;
        must("/drbdsetup", &["primary", "0"])?;
        put("/dev/drbd0", "/drbd")?;
    }
    Ok(())
}

fn wait_for_drbd(state: &str) -> Result<()> {
    let until = Instant::now() + PATIENCE;
    loop {
        let now = std::fs::read_to_string("/proc/drbd").context("DRBD is not there")?;
        if now.contains(state) {
            return Ok(());
        }
        ensure!(Instant::now() < until, "DRBD is not {state}: {now}");
        std::thread::sleep(LOOK);
    }
}

/// Serves until the machine is switched off, and tells whoever asks the token.
fn serve(options: &Options) -> Result<()> {
    let listen = SocketAddr::new(options.role.address(), SERVE);
    let mut child = Command::new("/proc/self/exe")
        .args(["serve", "--listen", &listen.to_string()])
        .args(["--minutes", &options.minutes.to_string()])
        .args(["--dir", "/folders"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut lines = BufReader::new(child.stdout.take().context("no output")?).lines();
    let token = loop {
        let line = lines.next().context("it serves nobody")??;
        let mut words = line.split_whitespace().skip_while(|w| *w != "--token");
        if let Some(token) = words.nth(1) {
            break token.to_owned();
        }
    };
    // What it says later must not block it.
    std::thread::spawn(move || lines.for_each(|line| println!("{}", line.unwrap_or_default())));
    let door = TcpListener::bind((options.role.address(), TOKEN))?;
    std::thread::spawn(move || {
        for mut caller in door.incoming().flatten() {
            // Who has gone again asks again.
            let _ = writeln!(caller, "{token}");
        }
    });
    let ended = child.wait()?;
    bail!("serve ended: {ended}")
}

/// Measures with the other machine, and puts the report on its disk.
fn measure(options: &Options) -> Result<()> {
    let other = options.role.other().address();
    let token = ask_token(SocketAddr::new(other, TOKEN))?;
    let out = Path::new("/run/report");
    let ended = Command::new("/proc/self/exe")
        .args(["run", "--peer", &format!("{other}:{SERVE}")])
        .args(["--token", &token, "--drbd", "/drbd"])
        .args(["--dir", "/folders", "--out"])
        .arg(out)
        .args(&options.run)
        .stdin(Stdio::null())
        .status()?;
    let report = std::fs::read(out.join("report.json"))
        .with_context(|| format!("run has ended without a report: {ended}"))?;
    let mut disk = File::options().write(true).open("/dev/vdc")?;
    disk.write_all(&(report.len() as u64).to_le_bytes())?;
    disk.write_all(&report)?;
    Ok(disk.sync_all()?)
}

fn ask_token(at: SocketAddr) -> Result<String> {
    let until = Instant::now() + PATIENCE;
    loop {
        let asked = TcpStream::connect_timeout(&at, COMMAND).and_then(|stream| {
            stream.set_read_timeout(Some(COMMAND))?;
            let mut line = String::new();
            BufReader::new(stream).read_line(&mut line)?;
            Ok(line.trim().to_owned())
        });
        match asked {
            Ok(token) if !token.is_empty() => return Ok(token),
            _ if Instant::now() < until => std::thread::sleep(LOOK),
            Ok(_) => bail!("the other machine tells no token"),
            Err(e) => return Err(e).context("the other machine does not serve"),
        }
    }
}

fn must(program: &str, arguments: &[&str]) -> Result<()> {
    let mut command = Command::new(program);
    command.args(arguments);
    let out = process::output(command, COMMAND)?;
    ensure!(
        out.status.success(),
        "{program} {}: {}{}",
        arguments.join(" "),
        String::from_utf8_lossy(&out.stdout),
        String::from_utf8_lossy(&out.stderr)
    );
    Ok(())
}
