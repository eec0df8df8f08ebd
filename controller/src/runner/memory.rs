//! What is remembered of a module over a restart of the daemon and a boot of the node.

use std::path::{Path, PathBuf};

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
        };
        memory.change(change).unwrap();
        let again = Remembered::open(&path).unwrap();
        assert_eq!(again.get(), memory.get());
        std::fs::write(&path, "{").unwrap();
        assert!(Remembered::open(&path).is_err());
    }
}
