//! What runs in a guest, as its first process: it puts up disk and network, and does
//! what the test on the other side of a connection says, one line for each connection.
//!
//! ```text
//! mount                    the disk at /disk       umount
//! run ARGUMENTS            a command of the driver that ends by itself: what it says
//! ask REQUEST              what the running driver answers
//! start ARGUMENTS          a driver that stays     log: what it has said
//! work DIRECTORY WRITERS   an application: "WRITER STEP" for each step acknowledged
//! rest                     waits until no application works any more
//! ```
//!
//! The answer's first line is `ok` or `failed`.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use fs_driver::control;
use fs_driver::store::Layout;
use harness::guest::{ADDRESS, CONTROL, DISK, LOG, READY};
use harness::ledger;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

/// Writers at work.
static WORKING: AtomicU64 = AtomicU64::new(0);

/// How long they may take to end.
const PATIENCE: Duration = Duration::from_secs(60);

/// The disk, as the kernel names it.
const DEVICE: &str = "/dev/vda";

fn main() -> Result<()> {
    ensure!(
        std::process::id() == 1,
        "this runs as the first process of a virtual machine that tests boot"
    );
    if let Err(e) = serve() {
        println!("guest: {e:#}");
    }
    rustix::system::reboot(rustix::system::RebootCommand::PowerOff).context("cannot power off")
}

fn serve() -> Result<()> {
    for (kind, at) in [
        ("devtmpfs", "/dev"),
        ("proc", "/proc"),
        ("sysfs", "/sys"),
        ("tmpfs", "/run"),
    ] {
        std::fs::create_dir_all(at)?;
        mount(kind, at, kind, MountFlags::empty(), None)
            .with_context(|| format!("cannot mount {at}"))?;
    }
    twinfold_controller::guest::load_modules()?;
    let cable = format!("addr add {ADDRESS}/24 dev eth0");
    for what in ["link set lo up", &cable, "link set eth0 up"] {
        let done = Command::new("/ip").args(what.split(' ')).status()?;
        ensure!(done.success(), "ip {what}: {done}");
    }
    let listener = TcpListener::bind(("0.0.0.0", CONTROL))?;
    println!("{READY}");
    for stream in listener.incoming() {
        let stream = stream?;
        std::thread::spawn(move || {
            if let Err(e) = answer(stream) {
                println!("guest: {e:#}");
            }
        });
    }
    Ok(())
}

fn answer(stream: TcpStream) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut line = String::new();
    BufReader::new(&stream).read_line(&mut line)?;
    let words: Vec<_> = line.split_whitespace().collect();
    let (word, rest) = words.split_first().context("an empty line")?;
    let (mut first, second) = (stream.try_clone()?, stream);
    let done = match *word {
        "work" => return work(rest, first),
        word => carry_out(word, rest),
    };
    let (how, text) = match done {
        Ok(text) => ("ok", text),
        Err(e) => ("failed", format!("{e:#}")),
    };
    write!(first, "{how}\n{text}")?;
    Ok(second.shutdown(std::net::Shutdown::Both)?)
}

fn carry_out(word: &str, arguments: &[&str]) -> Result<String> {
    match word {
        "mount" => {
            std::fs::create_dir_all(DISK)?;
            mount(DEVICE, DISK, "ext4", MountFlags::empty(), None).context("the disk")?;
            std::fs::create_dir_all(format!("{DISK}/vm"))?;
        }
        "umount" => {
            // A driver that has stopped may not have ended yet.
            let gone = || unmount(DISK, UnmountFlags::empty()).is_ok();
            ensure!(harness::wait_until(PATIENCE, gone), "the disk is in use");
        }
        "run" => {
            let output = Command::new("/node").args(arguments).output()?;
            if !output.status.success() {
                bail!("{}", String::from_utf8_lossy(&output.stderr));
            }
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        "ask" => {
            let request = serde_json::from_str(&arguments.concat())?;
            let layout = Layout::new(format!("{DISK}/.vm.twinfold"));
            let status = control::ask(&layout, request)?;
            return Ok(serde_json::to_string(&status)?);
        }
        "start" => {
            let log = File::options().append(true).create(true).open(LOG)?;
            let mut node = Command::new("/node")
                .args(arguments)
                .stdout(log.try_clone()?)
                .stderr(log)
                .spawn()?;
            // What has ended must not wait for its parent.
            std::thread::spawn(move || node.wait());
        }
        "rest" => {
            let rests = || WORKING.load(Ordering::SeqCst) == 0;
            ensure!(harness::wait_until(PATIENCE, rests), "it does not end");
        }
        "log" => return Ok(std::fs::read_to_string(LOG)?),
        other => bail!("{other:?} is not known"),
    }
    Ok(String::new())
}

/// The application: every step is told as soon as it is acknowledged, until nobody
/// listens any more.
fn work(arguments: &[&str], stream: TcpStream) -> Result<()> {
    let [directory, writers] = arguments else {
        bail!("work DIRECTORY WRITERS");
    };
    let (directory, writers): (&str, u64) = (directory, writers.parse()?);
    std::fs::create_dir(directory)?;
    let stream = Arc::new(Mutex::new(stream));
    WORKING.fetch_add(writers, Ordering::SeqCst);
    let threads: Vec<_> = (0..writers)
        .map(|writer| {
            let own = std::path::Path::new(directory).join(writer.to_string());
            let stream = stream.clone();
            std::thread::spawn(move || {
                let tell = |line: String| {
                    let mut stream = stream.lock().unwrap_or_else(PoisonError::into_inner);
                    stream.write_all(line.as_bytes()).is_ok()
                };
                let done = ledger::work(&own, writer, |step| tell(format!("{writer} {step}\n")));
                if let Err(e) = done {
                    tell(format!("failed {writer}: {e}\n"));
                }
            })
        })
        .collect();
    for thread in threads {
        let _ = thread.join();
        WORKING.fetch_sub(1, Ordering::SeqCst);
    }
    Ok(())
}
