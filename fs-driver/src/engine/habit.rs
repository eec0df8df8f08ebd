//! What a program that commits does again and again: some changes, and a sync behind them.

use twinfold_protocol::ids::FileId;

/// Syncs alike until the next one is foreseen.
pub(super) const ALIKE: u32 = 3;

/// What a sync is of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Target {
    pub(super) file: FileId,
    pub(super) data_only: bool,
}

impl Target {
    pub(super) fn covers(self, other: Target) -> bool {
        self.file == other.file && (other.data_only || !self.data_only)
    }
}

/// What the last syncs were like.
#[derive(Debug, Default)]
pub(super) struct Habit {
    /// The last one, and the changes between it and the one before.
    last: Option<(Target, u64)>,
    /// Syncs in a row that were like the last one.
    alike: u32,
}

impl Habit {
    /// A sync is asked for, behind so many changes.
    pub(super) fn asked(&mut self, target: Target, changes: u64) {
        let this = Some((target, changes));
        self.alike = match self.last == this {
            true => self.alike.saturating_add(1),
            false => 0,
        };
        self.last = this;
    }

    /// One that was foreseen was not asked for: as many have to be alike again.
    pub(super) fn failed(&mut self) {
        self.alike = 0;
    }

    /// The sync that is likely to come next, and behind how many changes.
    pub(super) fn next(&self) -> Option<(Target, u64)> {
        self.last.filter(|_| self.alike >= ALIKE)
    }
}
