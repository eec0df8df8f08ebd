//! What is remembered of a module over a restart of the daemon and a boot of the node.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use fs_driver::control::{Hex, PartName};
use serde::{Deserialize, Serialize};
use twinfold_protocol::automaton::Wanted;

use crate::places::replace;

/// What the operator wants, by name.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum WantedName {
    /// Not running.
    #[default]
    Stopped,
    /// Running.
    Running,
    /// Running, this copy being the good one.
    Prim,
    /// The same by force.
    Primforce,
    /// Running as secondary, to begin with.
    Second,
}

impl WantedName {
    /// The operator says that this copy is the good one, whatever the peer has.
    pub(crate) fn is_forced(self) -> bool {
        self == WantedName::Primforce
    }
}

impl From<WantedName> for Wanted {
    fn from(name: WantedName) -> Wanted {
        match name {
            WantedName::Stopped => Wanted::Stopped,
            WantedName::Running => Wanted::Running,
            WantedName::Prim => Wanted::Prim(false),
            WantedName::Primforce => Wanted::Prim(true),
            WantedName::Second => Wanted::Second,
        }
    }
}

/// How far the application is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum AppName {
    /// Stopped.
    #[default]
    Down,
    /// Its start has begun.
    Starting,
    /// Started.
    Up,
    /// Its stop has begun.
    Stopping,
}

/// `memory.json`, replaced in one step and synced before anything is done because of it.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Memory {
    /// What the operator wants.
    pub(crate) wanted: WantedName,
    /// The role this node had when it last served, or was up to date beside one that did.
    pub(crate) was: Option<PartName>,
    /// The session in which the copies were last equal.
    pub(crate) session: Option<Hex>,
    /// The generation that was yielded, as long as nothing came of it.
    pub(crate) yielded: Option<Hex>,
    /// The rules for separations that both nodes had when the peer was heard last.
    #[serde(default)]
    pub(crate) agreed: Option<Hex>,
    /// The generation for which the arbiter was asked, as long as something may come of it.
    #[serde(default)]
    pub(crate) asked: Option<Hex>,
    /// The application, in this boot.
    #[serde(default)]
    pub(crate) app: AppName,
    /// What is wanted as soon as no rule says to wait.
    #[serde(default)]
    pub(crate) held: Option<WantedName>,
    /// Checkers and rules are suspended.
    #[serde(default)]
    pub(crate) suspended: bool,
    /// What runs of it on a node that follows, in this boot.
    #[serde(default)]
    pub(crate) following: AppName,
    /// What shall be wanted as soon as the module has stopped, or is about to start.
    #[serde(default)]
    pub(crate) next: Option<WantedName>,
    /// The operating system's boot in which this was written.
    pub(crate) boot: String,
    /// It was stopped only because the node was.
    #[serde(default)]
    pub(crate) until_boot: bool,
    /// The operator's word on whether it starts when the node does, against the configuration.
    #[serde(default)]
    pub(crate) at_boot: Option<bool>,
    /// When the copies were last equal, in seconds since 1970; to half a minute, and only
    /// where that decides something.
    #[serde(default)]
    pub(crate) equal_at: u64,
    /// Everything in this copy is to be compared before it is up to date.
    #[serde(default)]
    pub(crate) fullsync: bool,
    /// The operator gives this copy up, should both nodes have gone on.
    #[serde(default)]
    pub(crate) discard: bool,
    /// When a rule or a failed start made the module do something, in seconds since 1970: what
    /// `maxloop` counts since the operator's last word.
    #[serde(default)]
    pub(crate) loops: Vec<u64>,
}

/// Adds one more of what `maxloop` counts to those that are known, and returns how many there were
/// within the interval, of which more than `most` are too many. No more than needed for that are
/// kept. The clock may have been set: a time that has not come yet counts as now, so that it counts
/// for one interval more at most.
pub(crate) fn count_loop(loops: &mut Vec<u64>, now: u64, interval: Duration, most: usize) -> usize {
    for at in &mut *loops {
        *at = now.min(*at);
    }
    loops.retain(|at| Duration::from_secs(now - at) < interval);
    loops.push(now);
    let count = loops.len();
    loops.drain(..count.saturating_sub(most.saturating_add(1)));
    count
}

/// The memory and its file.
#[derive(Debug)]
pub(crate) struct Remembered {
    path: PathBuf,
    now: Memory,
}

impl Remembered {
    /// Reads it. A file that cannot be read is no memory: the module does not start with it.
    pub(crate) fn open(path: &Path) -> Result<Remembered> {
        let now = match std::fs::read(path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .with_context(|| format!("{} is damaged", path.display()))?,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Memory::default(),
            Err(e) => return Err(e).with_context(|| format!("cannot read {}", path.display())),
        };
        Ok(Remembered {
            path: path.to_owned(),
            now,
        })
    }

    pub(crate) fn get(&self) -> &Memory {
        &self.now
    }

    /// Changes it durably. If that fails, what is remembered is as it was.
    pub(crate) fn change(&mut self, change: impl FnOnce(&mut Memory)) -> Result<()> {
        let mut next = self.now.clone();
        change(&mut next);
        if next != self.now {
            replace(&self.path, &serde_json::to_vec(&next)?)
                .with_context(|| format!("cannot write {}", self.path.display()))?;
            self.now = next;
        }
        Ok(())
    }
}

/// Seconds since 1970.
pub(crate) fn now() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |t| t.as_secs())
}

/// The operating system's boot.
pub(crate) fn boot_id() -> String {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id");
    text.unwrap_or_default().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_remembered_survives_and_damage_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("memory.json");
        let mut memory = Remembered::open(&path).unwrap();
        assert_eq!(*memory.get(), Memory::default());
        let change = |m: &mut Memory| {
            m.wanted = WantedName::Running;
            m.was = Some(PartName::Primary);
            m.session = Some(Hex(u128::MAX));
            m.loops = vec![7, u64::MAX];
        };
        memory.change(change).unwrap();
        let again = Remembered::open(&path).unwrap();
        assert_eq!(again.get(), memory.get());
        std::fs::write(&path, "{").unwrap();
        assert!(Remembered::open(&path).is_err());
    }

    #[test]
    fn what_an_earlier_release_remembers_counts_no_loops() {
        let text = r#"{"wanted":"running","was":null,"session":null,"yielded":null,"boot":"1"}"#;
        let memory: Memory = serde_json::from_str(text).unwrap();
        assert!(memory.loops.is_empty());
        assert_eq!(memory.wanted, WantedName::Running);
    }

    #[test]
    fn loops_count_within_their_interval() {
        let hour = Duration::from_secs(3600);
        let mut loops = Vec::new();
        assert_eq!(count_loop(&mut loops, 10_000, hour, 3), 1);
        assert_eq!(count_loop(&mut loops, 11_000, hour, 3), 2);
        assert_eq!(count_loop(&mut loops, 13_599, hour, 3), 3);
        // An hour after the first.
        assert_eq!(count_loop(&mut loops, 13_600, hour, 3), 3);
        assert_eq!(loops, [11_000, 13_599, 13_600]);
        assert_eq!(count_loop(&mut loops, 13_601, hour, 3), 4);
        // Nothing counts where there is no interval, but the last one.
        assert_eq!(count_loop(&mut loops, 13_601, Duration::ZERO, 3), 1);
        assert_eq!(loops, [13_601]);
    }

    #[test]
    fn loops_count_whatever_happens_to_the_clock() {
        let hour = Duration::from_secs(3600);
        // It was set back by years: what it showed before is as if it were now.
        let mut loops = vec![1_000_000_000, u64::MAX];
        assert_eq!(count_loop(&mut loops, 5000, hour, 3), 3);
        assert_eq!(loops, [5000; 3]);
        // And does not count for years.
        assert_eq!(count_loop(&mut loops, 5000 + 3600, hour, 3), 1);
        // It was set forward as far as it goes.
        assert_eq!(count_loop(&mut loops, u64::MAX, hour, 3), 1);
        assert_eq!(count_loop(&mut loops, u64::MAX, hour, 3), 2);
        // There is none at all.
        assert_eq!(count_loop(&mut loops, 0, hour, 3), 3);
    }

    #[test]
    fn no_more_loops_are_kept_than_are_too_many() {
        let mut loops = vec![7; 100_000];
        assert_eq!(count_loop(&mut loops, 8, Duration::MAX, 3), 100_001);
        assert_eq!(loops, [7, 7, 7, 8]);
        assert_eq!(count_loop(&mut loops, 8, Duration::MAX, 0), 5);
        assert_eq!(loops, [8]);
        assert_eq!(count_loop(&mut loops, 8, Duration::MAX, usize::MAX), 2);
    }
}
