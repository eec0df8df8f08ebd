//! A module's driver: a process of its own, which outlives this daemon and is taken over by
//! the next one.
//!
//! The driver's control socket says which process it is (the kernel tells who listens there);
//! a watch on it tells what changes, and its end tells at once that the driver has died.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use fs_driver::control::{self, Answer, Request, Standing, socket_path};
use fs_driver::store::Layout;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use twinfold_protocol::handshake::Role;

use crate::runner::Input;

/// How long a driver may take until its control socket and its mount are there: it may have
/// to repair its store first.
const START: Duration = Duration::from_secs(120);

/// How long one that is stopped may take: it flushes its store.
const STOP: Duration = Duration::from_secs(120);

/// How long the death of a process may take after its socket has closed.
const DEATH: Duration = Duration::from_secs(5);

/// A driver that tells nothing for so long hangs; it says something each second.
const SICK: Duration = Duration::from_secs(10);

/// How often it is looked whether something has come.
const LOOK: Duration = Duration::from_millis(10);

/// Where a module's driver is, and how it is started.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(crate) mount: PathBuf,
    pub(crate) layout: Layout,
    /// The directory with this node's key.
    pub(crate) identity: PathBuf,
    /// Where it says what it does.
    pub(crate) log: PathBuf,
}

/// A running driver.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) pid: u32,
    handle: OwnedFd,
}

impl Process {
    fn of(pid: u32) -> Result<Process> {
        let raw = Pid::from_raw(pid as i32).context("the driver has no process id")?;
        let handle = pidfd_open(raw, PidfdFlags::empty())
            .with_context(|| format!("the driver's process {pid} cannot be followed"))?;
        Ok(Process { pid, handle })
    }

    /// Waits until it has ended; false when time is up.
    fn wait(&self, most: Duration) -> bool {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let until = Instant::now() + most;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let left = Timespec {
                tv_sec: left.as_secs() as i64,
                tv_nsec: left.subsec_nanos().into(),
            };
            match poll(&mut [PollFd::new(&self.handle, PollFlags::IN)], Some(&left)) {
                Ok(0) => return false,
                Ok(_) => return true,
                Err(rustix::io::Errno::INTR) => {}
                Err(_) => return false,
            }
        }
    }

    fn kill(&self) {
        // One that has ended already is what is wanted.
        let _ = pidfd_send_signal(&self.handle, Signal::KILL);
    }
}

impl Place {
    /// Follows the driver that runs already, if there is one: what it tells goes to `to`.
    pub(crate) fn adopt(&self, to: &Sender<Input>) -> Result<Option<u32>> {
        let stream = match UnixStream::connect(socket_path(&self.layout)) {
            Ok(stream) => stream,
            Err(e)
                if matches!(
                    e.kind(),
                    std::io::ErrorKind::NotFound | std::io::ErrorKind::ConnectionRefused
                ) =>
            {
                return Ok(None);
            }
            Err(e) => return Err(e).context("cannot connect to the driver"),
        };
        let listener = rustix::net::sockopt::socket_peercred(&stream)
            .context("cannot see who runs the driver")?;
        ensure!(
            listener.uid.is_root(),
            "another user's process listens in place of the driver"
        );
        let process = Process::of(listener.pid.as_raw_nonzero().get() as u32)?;
        let pid = process.pid;
        let to = to.clone();
        std::thread::Builder::new()
            .name("driver".into())
            .spawn(move || {
                let why = match follow(stream, pid, &to) {
                    Ok(Ended::Unheard) => return,
                    Ok(Ended::Closed) => "it ended".to_owned(),
                    Err(error) => format!("{error:#}"),
                };
                // Without a watch nobody knows what it does: it counts as dead, and must be.
                if !process.wait(DEATH) {
                    tracing::error!(pid, why, "the driver is killed");
                    process.kill();
                    process.wait(STOP);
                }
                let _ = to.send(Input::DriverGone { pid, why });
            })
            .context("cannot start the thread that follows the driver")?;
        Ok(Some(pid))
    }

    /// Starts a driver and follows it; returns when its mount is there.
    pub(crate) fn start(&self, role: Role, force: bool, to: &Sender<Input>) -> Result<u32> {
        let from = std::fs::metadata(&self.log).map_or(0, |m| m.len());
        let log = File::options()
            .append(true)
            .create(true)
            .open(&self.log)
            .with_context(|| format!("cannot write {}", self.log.display()))?;
        let mut command = Command::new(program()?);
        command.arg("fs").arg(match role {
            Role::Primary => "primary",
            Role::Secondary => "secondary",
        });
        command
            .arg(&self.mount)
            .arg("--base")
            .arg(&self.layout.base);
        command.arg("--identity").arg(&self.identity);
        command.arg("--controlled");
        if force {
            command.arg("--force");
        }
        command
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            // No signal meant for the daemon's group reaches it.
            .process_group(0);
        let mut child = command.spawn().context("cannot start the driver")?;
        let pid = child.id();
        let until = Instant::now() + START;
        loop {
            if let Some(status) = child.try_wait()? {
                bail!("the driver ended ({status}): {}", self.said(from));
            }
            if self.adopt(to)? == Some(pid) {
                break;
            }
            if Instant::now() > until {
                let _ = child.kill();
                let _ = child.wait();
                bail!("the driver did not start in time: {}", self.said(from));
            }
            std::thread::sleep(LOOK);
        }
        // It is a child of this daemon: its end is taken note of as soon as it comes.
        std::thread::Builder::new()
            .name("reaper".into())
            .spawn(move || drop(child.wait()))
            .context("cannot start the thread that waits for the driver")?;
        Ok(pid)
    }

    /// The last of what it said behind the first `from` bytes of its log.
    fn said(&self, from: u64) -> String {
        let text = std::fs::read(&self.log).unwrap_or_default();
        let text = text.get(from as usize..).unwrap_or_default();
        let text = String::from_utf8_lossy(text);
        let last = text.lines().rev().find(|line| !line.trim().is_empty());
        last.unwrap_or("it said nothing").trim().to_owned()
    }

    /// Ends the driver in order, by force if it does not.
    pub(crate) fn stop(&self, pid: Option<u32>) -> Result<()> {
        let asked = self.ask(Request::Stop);
        let Some(pid) = pid else {
            return asked.map(drop);
        };
        let Ok(process) = Process::of(pid) else {
            return Ok(());
        };
        if asked.is_ok() && process.wait(STOP) {
            return Ok(());
        }
        process.kill();
        process.wait(STOP);
        bail!("the driver did not end in order and was killed")
    }

    /// Asks the running driver.
    pub(crate) fn ask(&self, request: Request) -> Result<Option<serde_json::Value>> {
        control::ask(&self.layout, request)
    }
}

/// This very program: it has the driver's commands, too.
fn program() -> Result<PathBuf> {
    // Also after an upgrade has replaced it.
    let path = std::env::current_exe()?;
    Ok(match path.exists() {
        true => path,
        false => Path::new("/proc/self/exe").to_owned(),
    })
}

/// How following a driver ended.
enum Ended {
    /// The driver closed its end.
    Closed,
    /// Nobody listens here any more; the driver runs on.
    Unheard,
}

/// Passes on what the driver tells until it ends.
fn follow(mut stream: UnixStream, pid: u32, to: &Sender<Input>) -> Result<Ended> {
    stream.write_all(b"{\"command\":\"watch\"}\n")?;
    stream.set_read_timeout(Some(SICK))?;
    for line in BufReader::new(stream).lines() {
        let line = match line {
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {
                bail!("it has told nothing for {} seconds", SICK.as_secs())
            }
            Err(_) => return Ok(Ended::Closed),
            Ok(line) => line,
        };
        let answer: Answer = serde_json::from_str(&line).context("the driver tells nonsense")?;
        let status = answer.status.context("the driver tells nothing")?;
        let standing: Standing =
            serde_json::from_value(status).context("the driver is of another release")?;
        ensure!(standing.pid == pid, "the driver is another process");
        if to.send(Input::Standing(Box::new(standing))).is_err() {
            return Ok(Ended::Unheard);
        }
    }
    Ok(Ended::Closed)
}
