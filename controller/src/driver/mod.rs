//! A module's driver: a process of its own, which outlives this daemon and is taken over by
//! the next one.
//!
//! The driver's control socket says which process it is (the kernel tells who listens there);
//! a watch on it tells what changes, and its end tells at once that the driver has died.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use fs_driver::control::{self, Answer, Request, Standing, socket_path};
use fs_driver::state::Settings;
use fs_driver::store::Layout;
use twinfold_protocol::handshake::Role;

use crate::config::Replication;
use crate::process::{Process, on_its_own};
use crate::runner::Input;

/// How long a driver may take until its control socket and its mount are there: it may have
/// to repair its store first.
const START: Duration = Duration::from_secs(120);

/// How long one that is stopped may take: it flushes its store.
const STOP: Duration = Duration::from_secs(120);

/// How long the death of a process may take after its socket has closed.
const DEATH: Duration = Duration::from_secs(5);

/// A driver that tells nothing for so long hangs; it says something every two seconds.
const SICK: Duration = Duration::from_secs(10);

/// What a driver says is kept up to this size, in bytes.
const MAX_LOG: u64 = 16 << 20;

/// How much of its end is read for what it said last, in bytes.
const MAX_SAID: u64 = 64 << 10;

/// How long it may take to tell how it stands when it is asked.
const TELL: Duration = Duration::from_secs(1);

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
    /// How it replicates.
    pub(crate) replication: Replication,
    /// TCP ports that a driver must not take, for it may outlive who listens there.
    pub(crate) taken: Vec<u16>,
}

impl Place {
    /// Follows the driver that runs already, if there is one: what it tells goes to `to`.
    pub(crate) fn adopt(&self, to: &Sender<Input>) -> Result<Option<u32>> {
        let Some((stream, pid)) = self.connect()? else {
            return Ok(None);
        };
        let process = Process::of(pid)?;
        let (to, place) = (to.clone(), self.clone());
        std::thread::Builder::new()
            .name("driver".into())
            .spawn(move || {
                let mut stream = Some(stream);
                let why = loop {
                    let Some(watch) = stream.take() else {
                        break "it ended its watch".to_owned();
                    };
                    let ended = follow(watch, pid, &to);
                    let heard = match ended {
                        Ok(Ended::Unheard) => return,
                        Ok(Ended::Closed { heard }) => heard,
                        Err(error) => break format!("{error:#}"),
                    };
                    if process.wait(DEATH) {
                        break "it ended".to_owned();
                    }
                    // It gives up a watch that nobody reads, as when this daemon stood still.
                    let again = place.connect().ok().flatten();
                    stream = again
                        .filter(|(_, same)| heard && *same == pid)
                        .map(|(s, _)| s);
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

    /// A connection to the driver that runs, if one does, and its process.
    fn connect(&self) -> Result<Option<(UnixStream, u32)>> {
        connect(&self.layout)
    }

    /// How the driver that runs stands, at this moment.
    pub(crate) fn standing(&self) -> Result<Standing> {
        let (mut stream, _) = self.connect()?.context("no driver runs")?;
        stream.write_all(WATCH)?;
        stream.set_read_timeout(Some(TELL))?;
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line)?;
        told(line.as_bytes())
    }

    /// Starts a driver and follows it; returns when its mount is there.
    pub(crate) fn start(&self, role: Role, force: bool, to: &Sender<Input>) -> Result<u32> {
        self.replication.write(&self.layout.state())?;
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
        let listen = Settings::load(&self.layout.state())?.listen;
        if !listen.iter().any(|at| self.taken.contains(&at.port())) {
            command.arg("--present");
        }
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
        let mut child = on_its_own(&mut command)
            .spawn()
            .context("cannot start the driver")?;
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
        let mut text = Vec::new();
        if let Ok(mut log) = File::open(&self.log) {
            let end = log.metadata().map_or(0, |m| m.len());
            let from = from.max(end.saturating_sub(MAX_SAID));
            // What cannot be read is as if it were not there.
            let _ = log.seek(SeekFrom::Start(from));
            let _ = log.take(MAX_SAID).read_to_end(&mut text);
        }
        let text = String::from_utf8_lossy(&text);
        let last = text.lines().rev().find(|line| !line.trim().is_empty());
        last.unwrap_or("it said nothing").trim().to_owned()
    }

    /// A log that has grown too long begins anew; the driver goes on in it.
    pub(crate) fn trim_log(&self) {
        if std::fs::metadata(&self.log).is_ok_and(|m| m.len() > MAX_LOG) {
            let cut = File::options().write(true).open(&self.log);
            if let Err(error) = cut.and_then(|file| file.set_len(0)) {
                tracing::warn!(%error, "the driver's log cannot be cut");
            }
        }
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

/// A connection to the driver of a folder, if one runs, and its process.
fn connect(layout: &Layout) -> Result<Option<(UnixStream, u32)>> {
    let stream = match UnixStream::connect(socket_path(layout)) {
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
    let listener =
        rustix::net::sockopt::socket_peercred(&stream).context("cannot see who runs the driver")?;
    ensure!(
        listener.uid.is_root(),
        "another user's process listens in place of the driver"
    );
    let pid = listener.pid.as_raw_nonzero().get() as u32;
    Ok(Some((stream, pid)))
}

/// The status of the driver that runs for a folder, as far as it tells it without delay: whoever
/// looks at it does not wait for a driver that hangs.
pub(crate) fn status(layout: &Layout) -> Result<serde_json::Value> {
    let (mut stream, _) = connect(layout)?.context("no driver runs")?;
    stream.set_read_timeout(Some(TELL))?;
    stream.write_all(STATUS)?;
    let mut line = String::new();
    BufReader::new(stream.take(MAX_STATUS)).read_line(&mut line)?;
    let answer: Answer = serde_json::from_str(&line).context("the driver tells nonsense")?;
    answer.status.context("the driver tells nothing")
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

/// What a driver is asked for that is followed.
const WATCH: &[u8] = b"{\"command\":\"watch\"}\n";

/// What one is asked for that is looked at once.
const STATUS: &[u8] = b"{\"command\":\"status\"}\n";

/// Longest status, in bytes.
const MAX_STATUS: u64 = 1 << 20;

/// One line of what it tells then.
fn told(line: &[u8]) -> Result<Standing> {
    let answer: Answer = serde_json::from_slice(line).context("the driver tells nonsense")?;
    let status = answer.status.context("the driver tells nothing")?;
    serde_json::from_value(status).context("the driver is of another release")
}

/// How following a driver ended.
enum Ended {
    /// The driver closed its end; whether it had told anything.
    Closed { heard: bool },
    /// Nobody listens here any more; the driver runs on.
    Unheard,
}

/// Passes on what the driver tells until it ends.
fn follow(mut stream: UnixStream, pid: u32, to: &Sender<Input>) -> Result<Ended> {
    stream.write_all(WATCH)?;
    stream.set_read_timeout(Some(SICK))?;
    let mut heard = false;
    let mut lines = BufReader::new(stream);
    let (mut line, mut last) = (Vec::new(), Vec::new());
    loop {
        line.clear();
        match lines.read_until(b'\n', &mut line) {
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {
                bail!("it has told nothing for {} seconds", SICK.as_secs())
            }
            Err(_) | Ok(0) => break,
            Ok(_) => {}
        }
        // Most of what it tells is that it lives.
        let input = match line == last {
            true => Input::StandsAsBefore { pid },
            false => Input::Standing(Box::new(standing(&line, pid)?)),
        };
        if to.send(input).is_err() {
            return Ok(Ended::Unheard);
        }
        std::mem::swap(&mut line, &mut last);
        heard = true;
    }
    Ok(Ended::Closed { heard })
}

/// What the driver that is this process has told in a line.
fn standing(line: &[u8], pid: u32) -> Result<Standing> {
    let standing = told(line)?;
    ensure!(standing.pid == pid, "the driver is another process");
    Ok(standing)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::sync::mpsc::channel;

    use fs_driver::engine::{History, LinkState};

    use super::*;

    const BASE: &str = "TWINFOLD_TEST_WATCHED";

    /// A driver that closes its first watch, as one that nobody reads, and serves the next.
    fn serve(base: &str) {
        let listener = UnixListener::bind(socket_path(&Layout::new(base))).unwrap();
        for watch in 1.. {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = String::new();
            BufReader::new(&stream).read_line(&mut request).unwrap();
            let standing = Standing {
                pid: std::process::id(),
                name: "vm".into(),
                role: None,
                mounted: false,
                present: false,
                link: LinkState::Waiting,
                question: None,
                session: None,
                current: false,
                shared: false,
                copy: History::default(),
                serves_peer: false,
                conflict: None,
                trouble: None,
                fenced: None,
                percent: Some(watch),
            };
            let status = Some(serde_json::to_value(standing).unwrap());
            let answer = Answer {
                ok: true,
                error: None,
                status,
            };
            let mut line = serde_json::to_vec(&answer).unwrap();
            line.push(b'\n');
            while stream.write_all(&line).is_ok() && watch > 1 {
                std::thread::sleep(Duration::from_millis(200));
            }
        }
    }

    #[test]
    fn a_driver_that_lives_and_gave_up_its_watch_is_watched_again_and_not_killed() {
        if let Ok(base) = std::env::var(BASE) {
            return serve(&base);
        }
        let place = tempfile::tempdir().unwrap();
        let base = place.path().display().to_string();
        let name = "driver::tests::\
                    a_driver_that_lives_and_gave_up_its_watch_is_watched_again_and_not_killed";
        let socket = socket_path(&Layout::new(&base));
        std::fs::create_dir_all(socket.parent().unwrap()).unwrap();
        let mut driver = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", name, "--nocapture"])
            .env(BASE, &base)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let place = Place {
            mount: place.path().into(),
            layout: Layout::new(&base),
            identity: place.path().into(),
            log: place.path().join("log"),
            replication: Replication::default(),
            taken: Vec::new(),
        };
        let (to, heard) = channel();
        let until = Instant::now() + START;
        while !matches!(place.adopt(&to), Ok(Some(_))) && Instant::now() < until {
            std::thread::sleep(LOOK);
        }
        let heard: Vec<_> = (0..3)
            .map(|_| match heard.recv_timeout(START) {
                Ok(Input::Standing(standing)) => standing.percent,
                Ok(Input::StandsAsBefore { pid }) if pid == driver.id() => None,
                other => panic!("{:?}", other.is_ok()),
            })
            .collect();
        let ended = driver.try_wait().unwrap();
        driver.kill().unwrap();
        driver.wait().unwrap();
        std::fs::remove_file(socket).unwrap();
        // What is told again is not read again.
        assert_eq!(heard, [Some(1), Some(2), None]);
        assert_eq!(ended, None);
    }
}
