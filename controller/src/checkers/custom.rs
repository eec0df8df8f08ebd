//! A checker that is a program of the operator's: it runs all the time and says with
//! `twinfold set` what it finds. Its arguments are the module, the resource, and what the
//! configuration says. One that ends is started again.

use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process_group};

use super::{End, Found, Surroundings};
use crate::config::{Checker, ResourceState};
use crate::process::{Process, on_its_own};

/// How long at least until one that ended is started again.
const AGAIN: Duration = Duration::from_millis(200);

/// It ends, with all it has started, when this goes.
struct Program(Child);

impl Drop for Program {
    fn drop(&mut self) {
        if let Some(group) = Pid::from_raw(self.0.id() as i32) {
            // A group that is gone is what is wanted.
            let _ = kill_process_group(group, Signal::KILL);
        }
        let _ = self.0.wait();
    }
}

pub(super) fn run(
    checker: &Checker,
    exec: &str,
    arg: Option<&str>,
    around: &Surroundings,
    end: &End,
    tell: &impl Fn(Found) -> bool,
) {
    loop {
        let begin = Instant::now();
        let started = start(checker, exec, arg, around);
        let why = match started.and_then(|program| ended(program, end)) {
            Ok(None) => return,
            Ok(Some(status)) => format!("{exec} ended with {status}"),
            Err(error) => format!("{error:#}"),
        };
        // Whatever it has said, nobody looks now.
        let text = format!("{why}; it is started again");
        let pause = checker.interval.saturating_sub(begin.elapsed());
        if !tell((ResourceState::Unknown, Some(text))) || end.comes(pause.max(AGAIN)) {
            return;
        }
    }
}

/// Waits until a program has ended; nothing when the checker is to end before that.
fn ended(mut program: Program, end: &End) -> Result<Option<ExitStatus>> {
    let process = Process::of(program.0.id())?;
    match end.comes_before(&process) {
        true => Ok(None),
        false => Ok(Some(program.0.wait()?)),
    }
}

fn start(
    checker: &Checker,
    exec: &str,
    arg: Option<&str>,
    around: &Surroundings,
) -> Result<Program> {
    let scripts = &around.scripts;
    // An absolute path stays what it is.
    let path = scripts.bin.join(exec);
    let mut command = Command::new(&path);
    command
        .arg(&around.module)
        .arg(checker.resource())
        .args(arg)
        .envs(scripts.environment.iter().map(|(k, v)| (k, v)))
        .stdin(Stdio::null())
        .stdout(scripts.output()?)
        .stderr(scripts.output()?)
        .process_group(0);
    let end_with_us = || {
        // A daemon that is killed leaves no program behind that says things twice.
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
            .map_err(std::io::Error::from)
    };
    on_its_own(&mut command);
    // SAFETY: between fork and exec one system call without memory is made.
    unsafe { command.pre_exec(end_with_us) };
    let child = command
        .spawn()
        .with_context(|| format!("{} cannot be run", path.display()))?;
    Ok(Program(child))
}
