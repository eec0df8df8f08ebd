//! `twinfold monitor`: what the scripts of a virtual machine say to QEMU.
//!
//! QEMU listens on a Unix socket and speaks QMP: a JSON object a line, a greeting first, answers
//! in the order of the commands, events in between (QEMU's interop/qmp-spec). The guest's agent
//! speaks the same without greeting and events, behind a socket of its own. Everything here has a
//! deadline: neither has to answer.

use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind, IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde_json::{Value, json};
use socket2::{Domain, SockAddr, Socket, Type};

use crate::process::Process;

/// How long QEMU, or an agent, may take for one answer.
const ANSWER: Duration = Duration::from_secs(10);

/// The same, while QEMU saves memory: it answers nothing while it writes the last of it, and the
/// folder may be slow. Whoever has started this ends it before that.
const SAVED: Duration = Duration::from_secs(3600);

/// Longest line of an answer, in bytes; those that are asked for here are far below it.
const MAX_LINE: u64 = 1 << 20;

/// How often the power button is pressed: a guest that boots may not see the first time.
const PRESS: Duration = Duration::from_secs(15);

/// How often something that takes its time is asked for.
const LOOK: Duration = Duration::from_millis(100);

/// How long a process may take to be gone after `quit`, or when it is killed.
const DEATH: Duration = Duration::from_secs(20);

/// How fast memory is saved, in bytes a second: as fast as the folder takes it.
const FAST: u64 = 1 << 40;

/// What the open file is called to which memory is saved.
const SAVE: &str = "twinfold-save";

/// `twinfold monitor`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Where QEMU, or the agent, listens.
    socket: PathBuf,
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// Print how the machine is, as QEMU calls it; `off` when there is none.
    Status,
    /// Press the power button, again and again, until the machine is off.
    Powerdown,
    /// Save the machine's memory to a new file, and switch it off.
    Save {
        /// The file.
        file: PathBuf,
    },
    /// Switch the machine off at once.
    Off,
    /// Wait until a machine that was started with saved memory has read it.
    Loaded,
    /// Let the machine run.
    Cont,
    /// Ask the guest's agent for a sign of life.
    Agent,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let socket = &args.socket;
    match &args.what {
        What::Status => match Monitor::connect(socket)? {
            Some(mut monitor) => println!("{}", monitor.status()?),
            None => println!("off"),
        },
        What::Powerdown => powerdown(socket)?,
        What::Save { file } => save(socket, file)?,
        What::Off => off(socket)?,
        What::Loaded => loaded(socket)?,
        What::Cont => drop(there(socket)?.ask("cont", &json!({}))?),
        What::Agent => agent(socket)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// A conversation.
struct Line {
    lines: BufReader<UnixStream>,
    /// For one answer.
    patience: Duration,
}

impl Line {
    /// `None`: nobody listens, so there is no such process.
    fn connect(socket: &Path) -> Result<Option<Line>> {
        let stream = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        // Of connecting, too: where one that hangs was asked before, others wait in front.
        stream.set_write_timeout(Some(ANSWER))?;
        match stream.connect(&SockAddr::unix(socket)?) {
            Ok(()) => {
                let lines = BufReader::new(UnixStream::from(OwnedFd::from(stream)));
                Ok(Some(Line {
                    lines,
                    patience: ANSWER,
                }))
            }
            Err(e) if e.kind() == ErrorKind::WouldBlock => {
                Err(e).with_context(|| format!("no answer within {} s", ANSWER.as_secs()))
            }
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) => {
                Ok(None)
            }
            Err(e) => Err(e).with_context(|| format!("cannot reach {}", socket.display())),
        }
    }

    fn say(&mut self, what: &Value) -> Result<()> {
        let text = format!("{what}\n");
        self.lines.get_mut().write_all(text.as_bytes())?;
        Ok(())
    }

    fn deadline(&self) -> Instant {
        Instant::now() + self.patience
    }

    /// What is said next, if it is within the deadline.
    fn hear(&mut self, until: Instant) -> Result<Value> {
        let left = until.saturating_duration_since(Instant::now());
        let late = || format!("no answer within {} s", self.patience.as_secs());
        ensure!(!left.is_zero(), "{}", late());
        self.lines.get_ref().set_read_timeout(Some(left))?;
        let mut line = Vec::new();
        let read = (&mut self.lines)
            .take(MAX_LINE)
            .read_until(b'\n', &mut line);
        match read {
            Ok(0) => bail!("the line was closed"),
            Ok(_) => serde_json::from_slice(&line).context("this is no answer"),
            Err(e) if e.kind() == ErrorKind::WouldBlock => {
                Err(e).with_context(|| format!("no answer within {} s", self.patience.as_secs()))
            }
            Err(e) => Err(e.into()),
        }
    }
}

/// QEMU.
struct Monitor {
    line: Line,
    process: Process,
    greeted: bool,
}

impl Monitor {
    /// `None`: it does not run.
    fn connect(socket: &Path) -> Result<Option<Monitor>> {
        let Some(line) = Line::connect(socket)? else {
            return Ok(None);
        };
        let peer = rustix::net::sockopt::socket_peercred(line.lines.get_ref())?;
        let process = Process::of(peer.pid.as_raw_nonzero().get() as u32)?;
        Ok(Some(Monitor {
            line,
            process,
            greeted: false,
        }))
    }

    /// One command, after the greeting.
    fn ask(&mut self, command: &str, arguments: &Value) -> Result<Value> {
        if !self.greeted {
            let until = self.line.deadline();
            while self.line.hear(until).context("QEMU")?.get("QMP").is_none() {}
            self.line.say(&json!({"execute": "qmp_capabilities"}))?;
            self.answer("qmp_capabilities")?;
            self.greeted = true;
        }
        self.line
            .say(&json!({"execute": command, "arguments": arguments}))?;
        self.answer(command)
    }

    fn answer(&mut self, command: &str) -> Result<Value> {
        let until = self.line.deadline();
        loop {
            let mut answer = self.line.hear(until).context("QEMU")?;
            if let Some(error) = answer.get("error") {
                let text = error["desc"].as_str().unwrap_or("no reason given");
                bail!("QEMU refuses {command}: {text}");
            }
            // All else is an event.
            if let Some(answer) = answer.get_mut("return") {
                return Ok(answer.take());
            }
        }
    }

    fn status(&mut self) -> Result<String> {
        let status = self.ask("query-status", &json!({}))?;
        let status = status["status"].as_str().context("QEMU tells no status")?;
        Ok(status.to_owned())
    }

    /// Hands an open file over, under a name.
    fn give(&mut self, name: &str, file: &File) -> Result<()> {
        let text = json!({"execute": "getfd", "arguments": {"fdname": name}}).to_string();
        let descriptors = [file.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut with = SendAncillaryBuffer::new(&mut space);
        ensure!(
            with.push(SendAncillaryMessage::ScmRights(&descriptors)),
            "there is no room for a descriptor"
        );
        let stream = self.line.lines.get_ref();
        let bytes = [IoSlice::new(text.as_bytes())];
        let sent = sendmsg(stream, &bytes, &mut with, SendFlags::empty())?;
        ensure!(sent == text.len(), "QEMU takes no command");
        self.answer("getfd").map(drop)
    }

    /// Ends its process, in order if it can.
    fn end(&mut self) -> Result<()> {
        let asked = self.ask("quit", &json!({}));
        // One that is gone before it has answered is what is wanted.
        let patience = if asked.is_ok() { DEATH } else { Duration::ZERO };
        if self.process.wait(patience) {
            return Ok(());
        }
        match asked {
            Ok(_) => println!("QEMU does not end, and is killed"),
            Err(error) => println!("QEMU is killed: {error:#}"),
        }
        self.process.kill();
        ensure!(self.process.wait(DEATH), "QEMU is killed and not gone yet");
        Ok(())
    }
}

/// The monitor of a machine that has to be there.
fn there(socket: &Path) -> Result<Monitor> {
    let monitor = Monitor::connect(socket)?;
    monitor.with_context(|| format!("nobody listens at {}", socket.display()))
}

/// Ends when the machine is off; when that takes too long, whoever has started this ends it.
fn powerdown(socket: &Path) -> Result<()> {
    let Some(mut monitor) = Monitor::connect(socket)? else {
        return Ok(());
    };
    loop {
        let pressed = monitor.ask("system_powerdown", &json!({}));
        if monitor.process.wait(PRESS) {
            return Ok(());
        }
        pressed?;
        // With -no-shutdown QEMU stays when its guest has gone.
        if monitor.status()? == "shutdown" {
            return monitor.end();
        }
    }
}

fn off(socket: &Path) -> Result<()> {
    match Monitor::connect(socket)? {
        Some(mut monitor) => monitor.end(),
        None => Ok(()),
    }
}

fn save(socket: &Path, path: &Path) -> Result<()> {
    let mut monitor = there(socket)?;
    let file = File::create(path).with_context(|| format!("cannot make {}", path.display()))?;
    monitor.ask("stop", &json!({}))?;
    let saved = save_to(&mut monitor, &file).and_then(|()| Ok(file.sync_all()?));
    if saved.is_err()
        && let Err(error) = monitor.ask("cont", &json!({}))
    {
        println!("the machine does not go on: {error:#}");
    }
    saved?;
    monitor.end()
}

fn save_to(monitor: &mut Monitor, file: &File) -> Result<()> {
    monitor.line.patience = SAVED;
    let fast = json!({"max-bandwidth": FAST});
    monitor.ask("migrate-set-parameters", &fast)?;
    monitor.give(SAVE, file)?;
    monitor.ask("migrate", &json!({"uri": format!("fd:{SAVE}")}))?;
    loop {
        let how = monitor.ask("query-migrate", &json!({}))?;
        match how["status"].as_str() {
            Some("completed") => return Ok(()),
            Some("failed" | "cancelled") => {
                let why = how["error-desc"].as_str().unwrap_or("no reason given");
                bail!("the memory cannot be saved: {why}");
            }
            _ => std::thread::sleep(LOOK),
        }
    }
}

/// Ends when it is; a machine that cannot read what was saved ends, and with it this.
fn loaded(socket: &Path) -> Result<()> {
    let mut monitor = there(socket)?;
    while monitor.status()? == "inmigrate" {
        std::thread::sleep(LOOK);
    }
    Ok(())
}

fn agent(socket: &Path) -> Result<()> {
    let line = Line::connect(socket)?;
    let mut line = line.with_context(|| format!("nobody listens at {}", socket.display()))?;
    // What an earlier question was answered too late lies in front of this one's answer.
    let number = u64::from(std::process::id());
    line.say(&json!({"execute": "guest-sync", "arguments": {"id": number}}))?;
    let until = line.deadline();
    while line.hear(until).context("the agent")?["return"] != number {}
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    /// Whoever listens is asked once, and says this.
    fn asked(answers: &'static [&'static str]) -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("agent");
        let listener = UnixListener::bind(&socket).unwrap();
        std::thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let mut lines = BufReader::new(stream);
            let mut line = String::new();
            lines.read_line(&mut line).unwrap();
            let question: Value = serde_json::from_str(&line).unwrap();
            let number = question["arguments"]["id"].to_string();
            for answer in answers {
                let text = answer.replace("NUMBER", &number);
                writeln!(lines.get_mut(), "{text}").unwrap();
            }
        });
        (directory, socket)
    }

    #[test]
    fn an_agent_lives_when_it_answers_this_question_and_not_an_earlier_one() {
        let (_directory, socket) = asked(&["{\"return\": 0}", "{\"return\": NUMBER}"]);
        agent(&socket).unwrap();
        for answers in [&["{\"return\": 0}"][..], &["{}", "no json"], &[]] {
            let (_directory, socket) = asked(answers);
            agent(&socket).unwrap_err();
        }
    }

    #[test]
    fn who_does_not_listen_does_not_run() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("monitor");
        assert!(Monitor::connect(&socket).unwrap().is_none());
        drop(UnixListener::bind(&socket).unwrap());
        assert!(Monitor::connect(&socket).unwrap().is_none());
        off(&socket).unwrap();
        powerdown(&socket).unwrap();
        save(&socket, &directory.path().join("saved")).unwrap_err();
        agent(&socket).unwrap_err();
    }
}
