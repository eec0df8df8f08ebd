//! The intent log of a node: segments of notes, each of which may be damaged.

use std::collections::{BTreeMap, BTreeSet};

use twinfold_protocol::marks::Intent;

use crate::rng::Rng;

#[derive(Clone, Debug, Default)]
struct Segment {
    notes: BTreeSet<Intent>,
    /// A record in the middle cannot be read.
    damaged: bool,
}

/// The intent log.
#[derive(Clone, Debug, Default)]
pub(crate) struct Log {
    segments: BTreeMap<u64, Segment>,
    current: u64,
    hot: BTreeSet<Intent>,
}

impl Log {
    /// A new segment begins; everything is cold again.
    pub(crate) fn open(&mut self) {
        self.hot.clear();
        self.current += 1;
        self.segments.insert(self.current, Segment::default());
    }

    /// The segment that is written to.
    pub(crate) fn current(&self) -> u64 {
        self.current
    }

    /// Whether an intent is durable and not retired.
    pub(crate) fn is_hot(&self, intent: Intent) -> bool {
        self.hot.contains(&intent)
    }

    /// Notes an intent, durably.
    pub(crate) fn note(&mut self, intent: Intent) {
        self.hot.insert(intent);
        let segment = self.segments.entry(self.current).or_default();
        segment.notes.insert(intent);
    }

    /// Drops the segments before `segment`.
    pub(crate) fn retire(&mut self, segment: u64) {
        self.segments.retain(|number, _| *number >= segment);
    }

    /// Everything noted and not retired.
    pub(crate) fn all(&self) -> BTreeSet<Intent> {
        let notes = self.segments.values().map(|s| &s.notes);
        notes.flatten().copied().collect()
    }

    /// Whether anything is noted.
    pub(crate) fn has_notes(&self) -> bool {
        self.segments.values().any(|s| !s.notes.is_empty())
    }

    /// Whether some of it cannot be read.
    pub(crate) fn is_damaged(&self) -> bool {
        self.segments.values().any(|s| s.damaged)
    }

    /// Loses some notes and is known to have.
    pub(crate) fn damage(&mut self, rng: &mut Rng) {
        for segment in self.segments.values_mut() {
            segment.notes.retain(|_| !rng.one_in(3));
            segment.damaged = true;
        }
    }
}
