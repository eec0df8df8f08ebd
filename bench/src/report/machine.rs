//! Where and of what the run was.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// What a reader has to know of the run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Machine {
    pub(crate) cpu: String,
    pub(crate) cores: usize,
    pub(crate) memory_bytes: u64,
    pub(crate) kernel: String,
    /// Type of the file system the folders lie on.
    pub(crate) file_system: String,
    /// Of the source tree, when the run began.
    pub(crate) commit: String,
    /// Whether the tree had changes that were not committed.
    pub(crate) changed: bool,
    /// Whether the program was built for speed.
    pub(crate) release: bool,
    /// Seconds since 1970.
    pub(crate) when: u64,
    /// Processes that were waiting for a CPU before the run, a minute's average: above
    /// half the cores the machine was busy with something else.
    pub(crate) load: f64,
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

fn field(text: &str, name: &str) -> Option<String> {
    let line = text.lines().find(|l| l.starts_with(name))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

fn git(args: &[&str]) -> Option<String> {
    let mut command = Command::new("git");
    command.arg("-C").arg(env!("CARGO_MANIFEST_DIR")).args(args);
    let output = command.output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout);
    output.status.success().then(|| text.trim().to_owned())
}

/// The type of the file system that `path` lies on: the longest mount point above it in
/// the kernel's table.
fn file_system(path: &Path) -> Option<String> {
    let path = path.canonicalize().ok()?;
    let table = read("/proc/self/mounts");
    let mounts = table.lines().filter_map(|line| {
        let mut words = line.split(' ').skip(1);
        Some((words.next()?, words.next()?))
    });
    let above = mounts.filter(|(point, _)| path.starts_with(point));
    let found = above.max_by_key(|(point, _)| point.len());
    found.map(|(_, kind)| kind.to_owned())
}

impl Machine {
    /// This one, with the folders in `dir`.
    pub(crate) fn here(dir: &Path) -> Machine {
        let unknown = || "unknown".to_owned();
        let kib = field(&read("/proc/meminfo"), "MemTotal");
        let kib = kib.and_then(|m| m.split(' ').next()?.parse::<u64>().ok());
        let when = SystemTime::now().duration_since(UNIX_EPOCH);
        Machine {
            cpu: field(&read("/proc/cpuinfo"), "model name").unwrap_or_else(unknown),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            memory_bytes: kib.unwrap_or(0) << 10,
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            file_system: file_system(dir).unwrap_or_else(unknown),
            commit: git(&["rev-parse", "HEAD"]).unwrap_or_else(unknown),
            changed: git(&["status", "--porcelain", "-uno"]).is_some_and(|s| !s.is_empty()),
            release: !cfg!(debug_assertions),
            when: when.unwrap_or(Duration::ZERO).as_secs(),
            load: read("/proc/loadavg")
                .split(' ')
                .next()
                .and_then(|l| l.parse().ok())
                .unwrap_or(0.0),
        }
    }

    /// One line.
    pub(crate) fn line(&self) -> String {
        format!(
            "{} x {}, {:.0} GiB, Linux {}, {}",
            self.cores,
            self.cpu,
            self.memory_bytes as f64 / f64::from(1 << 30),
            self.kernel,
            self.file_system
        )
    }

    /// What was measured, in short.
    pub(crate) fn commit(&self) -> String {
        let short: String = self.commit.chars().take(12).collect();
        let changed = if self.changed { " with changes" } else { "" };
        let build = if self.release { "" } else { ", a debug build" };
        format!("{short}{changed}{build}")
    }

    /// Why the figures may say little.
    pub(crate) fn doubts(&self) -> Vec<String> {
        let mut doubts = Vec::new();
        if !self.release {
            doubts.push("this is a debug build: its figures say nothing of the program".to_owned());
        }
        if self.load > self.cores as f64 / 2.0 {
            doubts.push(format!(
                "the machine was busy before the run: a load of {:.1} on {} cores",
                self.load, self.cores
            ));
        }
        doubts
    }

    /// Day and time, in UTC.
    pub(crate) fn day(&self) -> String {
        let time = i64::try_from(self.when)
            .ok()
            .and_then(|s| time::OffsetDateTime::from_unix_timestamp(s).ok());
        match time {
            Some(t) => {
                let (h, m) = (t.hour(), t.minute());
                format!("{} {h:02}:{m:02} UTC", t.date())
            }
            None => String::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_system_is_the_nearest_mount() {
        assert_eq!(
            file_system(Path::new("/proc/self")).as_deref(),
            Some("proc")
        );
    }

    #[test]
    fn a_busy_machine_is_doubted() {
        let mut machine = Machine::here(Path::new("/"));
        (machine.cores, machine.load, machine.release) = (4, 1.9, true);
        assert!(machine.doubts().is_empty());
        machine.load = 2.1;
        assert_eq!(machine.doubts().len(), 1);
        machine.release = false;
        assert_eq!(machine.doubts().len(), 2);
    }

    #[test]
    fn days_are_written_for_people() {
        let mut machine = Machine::here(Path::new("/"));
        machine.when = 1_700_000_000;
        assert_eq!(machine.day(), "2023-11-14 22:13 UTC");
    }
}
