//! The application's scripts: any executables, in `bin/` of the module.
//!
//! | script | when |
//! |---|---|
//! | `prestart` | before the module starts; it stops what should not run |
//! | `transition` | before this node begins to serve or to follow |
//! | `start_both` | behind it, once after the module's start |
//! | `start_prim` | this node serves |
//! | `stop_prim` | it does not serve any more |
//! | `start_second` | this node follows |
//! | `stop_second` | it does not follow any more |
//! | `stop_both`, `poststop` | the module has stopped |
//!
//! `SCRIPTS.md` says it to users. Arguments: the state, the next state, and `start` or `stop`. A stop
//! script that fails or does not end in time (`nicestoptimeout`) is called again with `force` as its
//! first argument; what is then left of its process group (after `forcestoptimeout`) is killed. So is
//! any other script that does not end in time (`starttimeout`): that counts as a failed start. What
//! still uses the folder when `stop_prim` has failed also
//! by force is killed, for the other node may start its own. A script that is not there is
//! nothing to do.
//!
//! Environment: `TWINFOLD_MODULE`, `TWINFOLD_NODE`, `TWINFOLD_FOLDERS` (separated by colons),
//! `TWINFOLD_BIN`, `TWINFOLD_RUN` (a directory that a boot makes empty), and the module's
//! variables. What a script prints is in the application log of its run.

pub(crate) mod output;

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process_group};

use crate::process::{kill_users, on_its_own};

/// How often it is looked whether a script has ended.
const LOOK: Duration = Duration::from_millis(10);

/// How often a script is tried that somebody still writes to.
const BUSY: usize = 100;

/// How long a script that was killed may take to be gone: one that waits for a file system that
/// does not answer is not.
const DEATH: Duration = Duration::from_secs(5);

/// Output of one run of the application that is kept, in bytes.
pub(crate) const MAX_OUTPUT: u64 = 16 << 20;

/// How many application logs are kept.
const MAX_LOGS: usize = 10;

/// What a module's scripts need to know.
#[derive(Clone, Debug)]
pub(crate) struct Scripts {
    pub(crate) bin: PathBuf,
    pub(crate) logs: PathBuf,
    /// What the application works in.
    pub(crate) folders: Vec<PathBuf>,
    pub(crate) environment: Vec<(String, String)>,
    /// How long a script may take that stops nothing.
    pub(crate) start: Duration,
    /// How long a stop script may take, in order and then by force.
    pub(crate) stop: [Duration; 2],
    /// Stop scripts are called with `force` at once, and what runs is broken off.
    pub(crate) forced: Arc<AtomicBool>,
}

/// What a script is called with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Call {
    pub(crate) script: &'static str,
    pub(crate) state: &'static str,
    pub(crate) next: &'static str,
    pub(crate) action: &'static str,
}

impl Scripts {
    /// From now on stops are forced, or not.
    pub(crate) fn set_forced(&self, on: bool) {
        self.forced.store(on, Ordering::Release);
    }

    fn log(&self) -> PathBuf {
        self.logs.join("application.log")
    }

    /// The application log, to be written to.
    pub(crate) fn output(&self) -> Result<File> {
        File::options()
            .append(true)
            .create(true)
            .open(self.log())
            .with_context(|| format!("cannot write {}", self.log().display()))
    }

    /// A new run of the application gets a log of its own.
    pub(crate) fn begin_log(&self) -> Result<()> {
        let name = |n: usize| self.logs.join(format!("application.{n}.log"));
        for n in (1..MAX_LOGS).rev() {
            if name(n).exists() {
                std::fs::rename(name(n), name(n + 1))?;
            }
        }
        if self.log().exists() {
            std::fs::rename(self.log(), name(1))?;
        }
        let _ = std::fs::remove_file(name(MAX_LOGS));
        Ok(())
    }

    /// Runs a script to its end. An error says what went wrong; a missing script is none.
    pub(crate) fn call(&self, call: Call) -> Result<()> {
        let path = self.bin.join(call.script);
        if !path.exists() {
            return Ok(());
        }
        if call.action != "stop" {
            return self.once(&path, call, false, self.start);
        }
        let first = match self.forced.load(Ordering::Acquire) {
            true => Err(anyhow::anyhow!("a forced stop")),
            false => self.once(&path, call, false, self.stop[0]),
        };
        let Err(why) = first else { return Ok(()) };
        self.say(&format!("{}: {why:#}; once more, by force", call.script));
        self.once(&path, call, true, self.stop[1])
            .with_context(|| format!("also by force, after: {why:#}"))
    }

    fn once(&self, path: &Path, call: Call, force: bool, most: Duration) -> Result<()> {
        self.say(&format!(
            "{}{} {} {} {}",
            call.script,
            if force { " force" } else { "" },
            call.state,
            call.next,
            call.action
        ));
        let mut command = Command::new(path);
        if force {
            command.arg("force");
        }
        command.args([call.state, call.next, call.action]);
        let may_break_off = !force;
        let status = self.run(command, most, may_break_off);
        let status = status.with_context(|| call.script.to_owned())?;
        ensure!(status.success(), "{} ended with {status}", call.script);
        Ok(())
    }

    /// Runs a command to its end; one that does not end is ended, with all it has started.
    fn run(&self, mut command: Command, most: Duration, may_break_off: bool) -> Result<ExitStatus> {
        let log = self.output()?;
        command
            .envs(self.environment.iter().map(|(k, v)| (k, v)))
            .current_dir(match self.bin.is_dir() {
                true => self.bin.as_path(),
                false => Path::new("/"),
            })
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0);
        on_its_own(&mut command);
        let mut tries = 0;
        let mut child = loop {
            match command.spawn() {
                // Somebody has just written it and is about to close it.
                Err(e) if e.kind() == ErrorKind::ExecutableFileBusy && tries < BUSY => {
                    tries += 1;
                    std::thread::sleep(LOOK);
                }
                spawned => break spawned,
            }
        }
        .with_context(|| format!("{:?} cannot be run", command.get_program()))?;
        let status = self.wait(&mut child, most, may_break_off);
        if status.is_err() {
            kill_group(child.id());
            reap(child);
        }
        status
    }

    /// Kills what still uses the folders: an application that did not stop.
    pub(crate) fn kill_application(&self) {
        for folder in &self.folders {
            let (killed, left) = kill_users(folder);
            for (pid, name) in killed {
                let (folder, gone) = (folder.display(), !left.contains(&pid));
                let end = if gone { "" } else { ", but is not gone yet" };
                self.say(&format!(
                    "{name} ({pid}) still used {folder} and was killed{end}"
                ));
            }
        }
    }

    /// Runs the fence command with the peer's name, and as long as it may take. Only one that
    /// ends with 0 has ended the peer.
    pub(crate) fn fence(&self, command: &Path, peer: &str, most: Duration) -> Result<()> {
        self.say(&format!("{} {peer}", command.display()));
        let mut run = Command::new(command);
        run.arg(peer).env("TWINFOLD_PEER", peer);
        let status = self.run(run, most, false)?;
        ensure!(status.success(), "the fence command ended with {status}");
        Ok(())
    }

    /// Runs a command that is told of something: its output is in the application log, too.
    pub(crate) fn tell(&self, command: &Path, what: [&str; 2], most: Duration) -> Result<()> {
        let mut run = Command::new(command);
        run.args(what);
        let status = self.run(run, most, false)?;
        ensure!(status.success(), "it ended with {status}");
        Ok(())
    }

    fn wait(&self, child: &mut Child, most: Duration, may_break_off: bool) -> Result<ExitStatus> {
        let until = Instant::now() + most;
        loop {
            self.trim_log();
            if let Some(status) = child.try_wait()? {
                return Ok(status);
            }
            if Instant::now() >= until {
                bail!("it did not end within {} s", most.as_secs());
            }
            if may_break_off && self.forced.load(Ordering::Acquire) {
                bail!("it was broken off by a forced stop");
            }
            std::thread::sleep(LOOK);
        }
    }

    /// A script, or what it has started, that floods its output begins at the top again. The
    /// file stays the same one: whoever writes to it goes on.
    pub(crate) fn trim_log(&self) {
        if std::fs::metadata(self.log()).is_ok_and(|m| m.len() > MAX_OUTPUT) {
            let cut = File::options().write(true).open(self.log());
            if let Err(error) = cut.and_then(|file| file.set_len(0)) {
                tracing::warn!(%error, "the application log cannot be cut");
            }
            self.say("the output was too long and begins anew");
        }
    }

    fn say(&self, what: &str) {
        let line = format!("--- {what}\n");
        let written = File::options()
            .append(true)
            .create(true)
            .open(self.log())
            .and_then(|mut log| log.write_all(line.as_bytes()));
        if let Err(error) = written {
            tracing::warn!(%error, "the application log cannot be written");
        }
    }
}

/// Waits until a killed process is gone; after a while, without keeping anybody.
fn reap(mut child: Child) {
    let until = Instant::now() + DEATH;
    while Instant::now() < until {
        // An error: there is no such child.
        if !matches!(child.try_wait(), Ok(None)) {
            return;
        }
        std::thread::sleep(LOOK);
    }
    tracing::warn!(pid = child.id(), "a killed script is not gone yet");
    let wait = move || drop(child.wait());
    // Without a thread it stays in the table of processes; nothing else depends on it.
    let _ = std::thread::Builder::new()
        .name("reaper".into())
        .spawn(wait);
}

fn kill_group(leader: u32) {
    if let Some(group) = Pid::from_raw(leader as i32) {
        // A group that is gone is what is wanted.
        let _ = kill_process_group(group, Signal::KILL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn scripts(dir: &Path) -> Scripts {
        std::fs::create_dir_all(dir.join("bin")).unwrap();
        std::fs::create_dir_all(dir.join("log")).unwrap();
        Scripts {
            bin: dir.join("bin"),
            logs: dir.join("log"),
            folders: Vec::new(),
            environment: vec![("TWINFOLD_MODULE".into(), "vm".into())],
            start: Duration::from_secs(60),
            stop: [Duration::from_secs(60); 2],
            forced: Arc::default(),
        }
    }

    fn write(dir: &Path, name: &str, text: &str) {
        let path = dir.join("bin").join(name);
        std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn call(script: &'static str, action: &'static str) -> Call {
        Call {
            script,
            state: "WAIT",
            next: "ALONE",
            action,
        }
    }

    /// The process of this number has ended, or does at once.
    fn assert_gone(pid: &str) {
        let gone = || {
            let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.trim()));
            stat.map_or(true, |s| s.contains(") Z"))
        };
        let until = Instant::now() + Duration::from_secs(60);
        while !gone() && Instant::now() < until {
            std::thread::sleep(LOOK);
        }
        assert!(gone(), "{pid}");
    }

    fn log(dir: &Path) -> String {
        std::fs::read_to_string(dir.join("log/application.log")).unwrap()
    }

    #[test]
    fn a_script_gets_arguments_and_environment_and_its_output_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let scripts = scripts(dir.path());
        write(dir.path(), "start_prim", "echo \"$TWINFOLD_MODULE: $*\"");
        scripts.call(call("start_prim", "start")).unwrap();
        scripts.call(call("not_there", "start")).unwrap();
        assert!(
            log(dir.path()).contains("\nvm: WAIT ALONE start\n"),
            "{}",
            log(dir.path())
        );
        scripts.begin_log().unwrap();
        scripts.call(call("start_prim", "start")).unwrap();
        assert!(dir.path().join("log/application.1.log").exists());
    }

    #[test]
    fn a_start_script_that_fails_is_an_error_with_its_status() {
        let dir = tempfile::tempdir().unwrap();
        let scripts = scripts(dir.path());
        write(dir.path(), "start_prim", "exit 3");
        let error = scripts.call(call("start_prim", "start")).unwrap_err();
        assert!(error.to_string().contains("3"), "{error}");
    }

    #[test]
    fn a_stop_script_that_hangs_is_ended_with_all_it_started_and_called_by_force() {
        let dir = tempfile::tempdir().unwrap();
        let mut scripts = scripts(dir.path());
        let child = dir.path().join("child");
        let text = format!(
            "[ \"$1\" = force ] && exit 0\nsleep 1000 &\necho $! > {}\nwait",
            child.display()
        );
        write(dir.path(), "stop_prim", &text);
        // On a busy machine it may be ended before it has started anything.
        let mut began = String::new();
        for millis in [300, 3000, 30_000] {
            scripts.stop[0] = Duration::from_millis(millis);
            scripts.call(call("stop_prim", "stop")).unwrap();
            began = std::fs::read_to_string(&child).unwrap_or_default();
            if began.ends_with('\n') {
                break;
            }
        }
        assert!(began.ends_with('\n'), "it starts nothing");
        assert_gone(&began);
        assert!(log(dir.path()).contains("stop_prim force WAIT ALONE stop"));
    }

    #[test]
    fn a_forced_stop_breaks_off_the_one_that_runs() {
        let dir = tempfile::tempdir().unwrap();
        let scripts = scripts(dir.path());
        write(
            dir.path(),
            "stop_prim",
            "[ \"$1\" = force ] && exit 0\nsleep 1000",
        );
        let forced = scripts.forced.clone();
        std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(200));
            forced.store(true, Ordering::Release);
        });
        scripts.call(call("stop_prim", "stop")).unwrap();
    }

    #[test]
    fn a_forced_stop_breaks_off_a_start_that_hangs_with_all_it_started() {
        let dir = tempfile::tempdir().unwrap();
        let scripts = scripts(dir.path());
        let text = "for n in 1 2 3 4 5; do sleep 1000 & done\necho $! >child\nwait";
        write(dir.path(), "start_prim", text);
        let child = dir.path().join("bin/child");
        let (forced, began) = (scripts.forced.clone(), child.clone());
        std::thread::spawn(move || {
            while !std::fs::read(&began).is_ok_and(|text| text.ends_with(b"\n")) {
                std::thread::sleep(LOOK);
            }
            forced.store(true, Ordering::Release);
        });
        let error = scripts.call(call("start_prim", "start")).unwrap_err();
        assert!(format!("{error:#}").contains("broken off"), "{error:#}");
        assert_gone(&std::fs::read_to_string(child).unwrap());
    }

    #[test]
    fn what_users_are_told_of_limits_is_so() {
        let told = include_str!("../../SCRIPTS.md");
        let text = "<safe><service><rfs><replicated dir=\"/vm\"/></rfs></service></safe>";
        let (config, _) = crate::config::module("f", text, |_| None);
        let config = config.unwrap();
        let [nice, force] = config.stop_timeouts.map(|t| t.as_secs());
        let start = config.start_timeout.as_secs();
        for part in [
            format!("starttimeout=\"{start}s\""),
            format!("nicestoptimeout=\"{nice}s\""),
            format!("forcestoptimeout=\"{force}s\""),
            format!("{} MiB begins anew", MAX_OUTPUT >> 20),
        ] {
            assert!(told.contains(&part), "{part}");
        }
        assert!(told.contains("those of the nine runs before") && MAX_LOGS == 10);
    }

    #[test]
    fn output_without_end_fills_no_disk() {
        let dir = tempfile::tempdir().unwrap();
        let mut scripts = scripts(dir.path());
        scripts.start = Duration::from_secs(3);
        write(dir.path(), "start_prim", "exec yes twinfold");
        scripts.call(call("start_prim", "start")).unwrap_err();
        let length = std::fs::metadata(dir.path().join("log/application.log"))
            .unwrap()
            .len();
        assert!(length < 64 * MAX_OUTPUT, "{length}");
        assert!(length > 0);
    }
}
