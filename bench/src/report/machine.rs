//! Where and of what the run was.

use std::path::Path;
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
    /// Of the source tree that the program was built from.
    pub(crate) commit: String,
    /// Whether the tree had changes that were not committed.
    pub(crate) changed: bool,
    /// BLAKE3 hash of the program's file.
    #[serde(default)]
    pub(crate) program: String,
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

/// What a commit is called that is not known.
const UNKNOWN: &str = "unknown";

/// The hash of this program's file.
fn program() -> std::io::Result<String> {
    let mut hash = blake3::Hasher::new();
    hash.update_reader(std::fs::File::open("/proc/self/exe")?)?;
    Ok(hash.finalize().to_hex().to_string())
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
        let unknown = || UNKNOWN.to_owned();
        let kib = field(&read("/proc/meminfo"), "MemTotal");
        let kib = kib.and_then(|m| m.split(' ').next()?.parse::<u64>().ok());
        let when = SystemTime::now().duration_since(UNIX_EPOCH);
        Machine {
            cpu: field(&read("/proc/cpuinfo"), "model name").unwrap_or_else(unknown),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            memory_bytes: kib.unwrap_or(0) << 10,
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            file_system: file_system(dir).unwrap_or_else(unknown),
            commit: env!("TWINFOLD_COMMIT").to_owned(),
            changed: env!("TWINFOLD_CHANGED") == "true",
            program: program().unwrap_or_default(),
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

    /// Whether the program there may be another one than here, and how.
    pub(crate) fn differs(&self, there: &Machine) -> Option<String> {
        let same_file = !self.program.is_empty() && self.program == there.program;
        let same_source = self.commit == there.commit
            && self.commit != UNKNOWN
            && !self.changed
            && !there.changed
            && self.release == there.release;
        let tell = || {
            let (here, there) = (self.commit(), there.commit());
            format!("commit {here} here, commit {there} there")
        };
        (!same_file && !same_source).then(tell)
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
    fn programs_are_the_same_by_their_file_or_by_a_commit_without_changes() {
        let here = Machine::here(Path::new("/"));
        assert_eq!(here.program.len(), 64);
        assert_eq!(here.differs(&here), None);
        let of = |commit: &str, changed, program: &str| Machine {
            commit: commit.into(),
            changed,
            program: program.into(),
            ..here.clone()
        };
        assert_eq!(of("a", false, "1").differs(&of("a", false, "2")), None);
        assert_eq!(of("a", true, "1").differs(&of("b", false, "1")), None);
        for (one, two) in [
            (of("a", false, "1"), of("b", false, "2")),
            (of("a", true, "1"), of("a", false, "2")),
            (of("a", false, "1"), of("a", true, "2")),
            (of("a", true, "1"), of("a", true, "2")),
            (of(UNKNOWN, false, "1"), of(UNKNOWN, false, "2")),
            (of("b", false, ""), of("a", false, "")),
        ] {
            let told = one.differs(&two).unwrap();
            assert!(told.contains("here") && told.contains("there"), "{told}");
        }
        let mut other = of("a", false, "2");
        other.release = !here.release;
        assert!(of("a", false, "1").differs(&other).is_some());
    }

    #[test]
    fn days_are_written_for_people() {
        let mut machine = Machine::here(Path::new("/"));
        machine.when = 1_700_000_000;
        assert_eq!(machine.day(), "2023-11-14 22:13 UTC");
    }
}
