//! Processes of the systems that are measured: started, counted, ended with the value
//! that holds them.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

/// Ticks of CPU time in a second, as `/proc` counts them (`USER_HZ`, the same on all
/// architectures of Linux that we run on).
const TICKS: f64 = 100.0;

/// How often a process is looked at that is to end.
const LOOK: Duration = Duration::from_millis(5);

/// What a process has used so far.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Usage {
    /// What it is.
    pub(crate) process: String,
    /// CPU seconds.
    pub(crate) cpu: f64,
    /// The most memory held, in bytes.
    pub(crate) peak: u64,
}

impl Usage {
    /// Of the process with this number.
    pub(crate) fn of(process: impl Into<String>, id: u32) -> Usage {
        Usage {
            process: process.into(),
            cpu: cpu(id),
            peak: peak(id),
        }
    }
}

/// Runs a command to its end, for so long at most. What it prints has to fit into a pipe.
pub(crate) fn output(mut command: Command, patience: Duration) -> Result<Output> {
    let name = command.get_program().display().to_string();
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command
        .spawn()
        .with_context(|| format!("cannot start {name}"))?;
    let until = Instant::now() + patience;
    while child.try_wait()?.is_none() {
        if Instant::now() > until {
            let _ = child.kill();
            let _ = child.wait();
            let args: Vec<_> = command.get_args().map(|a| a.to_string_lossy()).collect();
            bail!("{name} {} does not end", args.join(" "));
        }
        std::thread::sleep(LOOK);
    }
    Ok(child.wait_with_output()?)
}

/// A process that does not outlive the thread that starts it, and the mount it may have.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    mount: Option<PathBuf>,
}

impl Process {
    /// Starts this program with other arguments.
    pub(crate) fn start(args: &[&str], mount: Option<&Path>, log: &Path) -> Result<Process> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(args);
        Process::spawn(command, mount, log)
    }

    /// Starts any program; its words go to `log`.
    pub(crate) fn spawn(mut command: Command, mount: Option<&Path>, log: &Path) -> Result<Process> {
        let words = std::fs::File::create(log)
            .with_context(|| format!("cannot write {}", log.display()))?;
        command
            .stdin(Stdio::null())
            .stdout(words.try_clone()?)
            .stderr(words);
        // SAFETY: prctl is async-signal-safe and touches no memory.
        unsafe {
            command.pre_exec(|| {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                Ok(())
            });
        }
        let child = command
            .spawn()
            .with_context(|| format!("cannot start {}", command.get_program().display()))?;
        Ok(Process {
            child,
            mount: mount.map(Path::to_owned),
        })
    }

    /// Its number.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Whether it has ended by itself.
    pub(crate) fn has_ended(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_some())
    }

    /// Waits until it has ended by itself.
    pub(crate) fn wait(&mut self, patience: Duration) -> Result<()> {
        let until = Instant::now() + patience;
        while self.child.try_wait()?.is_none() {
            if Instant::now() > until {
                bail!("process {} does not end", self.child.id());
            }
            std::thread::sleep(LOOK);
        }
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(mount) = &self.mount {
            let _ = rustix::mount::unmount(mount, rustix::mount::UnmountFlags::DETACH);
        }
    }
}

/// CPU seconds a process has used so far (`proc(5)`, stat: utime and stime).
pub(crate) fn cpu(id: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
    cpu_of(&stat)
}

fn cpu_of(stat: &str) -> f64 {
    // The name stands in brackets and may contain anything; what follows it is field 3.
    let after = stat.rsplit(')').next().unwrap_or_default();
    let field = |n: usize| -> f64 {
        let text = after.split_whitespace().nth(n - 3);
        text.and_then(|t| t.parse().ok()).unwrap_or(0.0)
    };
    (field(14) + field(15)) / TICKS
}

/// The most memory a process has held so far, in bytes (`VmHWM`).
pub(crate) fn peak(id: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{id}/status")).unwrap_or_default();
    peak_of(&status)
}

fn peak_of(status: &str) -> u64 {
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"));
    let kib = line.and_then(|l| l.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0) << 10
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_brackets_does_not_shift_the_times() {
        let stat = "42 (a) 7 (b c) S 1 42 42 0 -1 4194304 100 0 0 0 150 250 9 9 20 0 3 0";
        assert_eq!(cpu_of(stat), 4.0);
    }

    #[test]
    fn peak_memory_is_in_bytes() {
        assert_eq!(peak_of("VmPeak:\t  9 kB\nVmHWM:\t    2048 kB\n"), 2 << 20);
    }

    #[test]
    fn a_command_that_does_not_end_is_ended() {
        let mut command = Command::new("sleep");
        command.arg("3600");
        let error = output(command, Duration::from_millis(50)).unwrap_err();
        assert_eq!(error.to_string(), "sleep 3600 does not end");
    }

    #[test]
    fn this_process_uses_memory() {
        assert!(peak(std::process::id()) > 0);
    }
}
