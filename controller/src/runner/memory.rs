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
    /// The application, in this boot.
    #[serde(default)]
    pub(crate) app: AppName,
    /// The operating system's boot in which this was written.
    pub(crate) boot: String,
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
