//! What this node has changed in its own copy: kept beyond the end of a run or a term as
//! primary, exact to the block where it can be, by its notes where it cannot.
//!
//! While a primary is alone, a checkpoint saves its marks and then lets the notes go for
//! which they stand. A crash between any two steps leaves the old marks with the old
//! notes, or the new marks with some notes too many:
//!
//! 1. a new segment of the intent log: what is changed from here on is noted in it;
//! 2. every change noted before has been applied and marked;
//! 3. the marks are copied, a part at a time, so that no write waits for it;
//! 4. the store is flushed: a removal that the marks do not tell of any more is on the disk;
//! 5. the marks replace the file, and the copy's record names them;
//! 6. the segments before are deleted.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::MutexGuard;
use twinfold_protocol::handshake::Role;
use twinfold_protocol::marks::{Cursor, DirtyMap, Intent};
use twinfold_protocol::primary::{Link, OwnMarks};

use super::{Engine, clock};
use crate::state::{Recovered, ToSave};

/// How long the end of a term waits for a resync that is in the middle of an op.
const RESYNC_ENDS: Duration = Duration::from_secs(5);

/// Bytes of marks copied under the lock at once: well below a millisecond.
const COPY_AT_ONCE: usize = 64 << 10;

/// Saving the marks of a node that is alone takes this part of its time at most: one in.
const SHARE_OF_TIME: u32 = 20;

/// What this node has changed in its own copy and the other one may not have, or may have
/// lost there: since the generation that both had in common, and perhaps more.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct OwnChanges {
    /// Exact to the block and to the name.
    pub marks: DirtyMap,
    /// Coarse: what is only known by notes, of a run that ended in a crash, or of a resync
    /// of this copy that did not end.
    pub notes: BTreeSet<Intent>,
    /// Something of it could not be read: anything may have been changed.
    pub damaged: bool,
}

/// A map that says so.
fn everything() -> Vec<u8> {
    let mut map = DirtyMap::default();
    map.mark_everything();
    map.to_bytes()
}

impl Engine {
    /// What this secondary has changed in its own copy, in this run and before: all that
    /// it did as primary, until a resync of this copy has ended.
    pub fn own_changes(&self) -> io::Result<OwnChanges> {
        let mut changes = OwnChanges {
            marks: self.own.lock().clone().united(),
            ..OwnChanges::default()
        };
        // What its primary found here, and may have forgotten.
        changes.marks.unite(self.differing.lock().clone());
        for noted in [self.recovered.lock().clone(), self.intents.all()?] {
            changes.notes.extend(noted.intents);
            changes.damaged |= noted.damaged;
        }
        changes.damaged |= changes.marks.is_everything();
        Ok(changes)
    }

    /// Makes marks durable; they stand for the notes before `segment`, or, with none, for
    /// those the last ones stood for. False when there is no room, or the node is fenced:
    /// then the last ones and the notes stay in force.
    fn save_marks(
        &self,
        _one: &MutexGuard<'_, bool>,
        segment: Option<u64>,
        what: &ToSave<'_>,
    ) -> bool {
        if self.fenced().is_some() {
            return false;
        }
        let id = self.copy.get().next_marks();
        let saved = self.marks.save(id, segment, what).and_then(|saved| {
            if saved {
                self.copy.update(|r| r.marks_saved(id.number))?;
            }
            Ok(saved)
        });
        saved.unwrap_or_else(|e| {
            self.fence("the marks cannot be saved", &e);
            false
        })
    }

    /// Ends the term as primary: takes its marks and saves them; they stand for the notes
    /// before `segment`. `None` when a resync still has some of them in its hands.
    fn end_term(
        &self,
        segment: impl FnOnce() -> io::Result<Option<u64>>,
    ) -> io::Result<Option<OwnMarks>> {
        let no_resync = self.resyncing.try_lock_for(RESYNC_ENDS);
        let mut saving = self.saving.lock();
        *saving = false;
        if no_resync.is_none() {
            tracing::warn!("a resync does not end: the exact marks of this term are not at hand");
            return Ok(None);
        }
        let own = self.core.lock().take_own_marks();
        let noted = self.recovered.lock().clone();
        let mut what = ToSave::new(&own, &noted.intents);
        if noted.damaged {
            what.suspect = everything();
        }
        let saved = match segment()? {
            // What was lost here is known by its notes alone.
            Some(_) if self.syncs.is_lossy() => false,
            Some(segment) if self.save_marks(&saving, Some(segment), &what) => true,
            Some(_) | None => false,
        };
        if !saved {
            tracing::warn!("exact marks cannot be saved: the notes of this term are kept");
        }
        Ok(Some(own))
    }

    /// The end of a run as primary: exact marks for the next one. Nothing is changed any
    /// more. When they cannot be had or saved, the notes tell.
    pub(super) fn save_at_the_end(&self) {
        if let Err(e) = self.end_term(|| Ok(Some(self.intents.next_segment()))) {
            tracing::warn!(error = %e, "only the notes of this run are kept");
        }
    }

    /// The end of a term as primary, the driver goes on: exact marks for the resync of
    /// this copy.
    pub(super) fn keep_own_marks(&self) -> io::Result<()> {
        // From here on the notes are those of a secondary.
        let own = self.end_term(|| self.intents.rotate())?.unwrap_or_else(|| {
            // Nor are the marks at hand for which notes were let go.
            let mut own = OwnMarks::default();
            own.suspect.mark_everything();
            own
        });
        *self.own.lock() = own;
        Ok(())
    }

    /// This copy is equal to its source's: what it had changed before is no difference any more.
    pub(super) fn forget_own_marks(&self) {
        *self.own.lock() = OwnMarks::default();
        *self.recovered.lock() = Recovered::default();
        *self.damage.lock() = None;
        let saving = self.saving.lock();
        if !self.marks.is_empty() {
            self.save_marks(&saving, None, &ToSave::default());
        }
    }

    /// Both nodes have flushed what was noted before `segment`.
    pub(super) fn notes_may_go(&self, segment: Option<u64>) {
        let Some(segment) = segment else { return };
        // The flush may have failed for others than the checkpoint.
        if self.syncs.is_lossy() {
            return;
        }
        let saving = self.saving.lock();
        if !*saving {
            return;
        }
        // What failed here, and was not undone, waits to be compared; what a verify found
        // there, to be moved.
        let (dirty, suspect) = {
            let core = self.core.lock();
            let mut dirty = core.dirty().clone();
            dirty.unite(core.differing().clone());
            (dirty.to_bytes(), core.suspect().to_bytes())
        };
        let noted = self.recovered.lock().clone();
        let nothing = dirty.is_empty() && suspect.is_empty() && noted == Recovered::default();
        if !nothing || !self.marks.is_empty() {
            let what = ToSave {
                dirty,
                suspect,
                notes: Some(&noted.intents),
            };
            if noted.damaged || !self.save_marks(&saving, Some(segment), &what) {
                return;
            }
        }
        if let Err(e) = self.intents.retire(segment) {
            tracing::warn!(error = %e, "old intents cannot be deleted");
        }
    }

    /// While this primary is alone: saves its marks and lets notes go, see above.
    pub(super) fn checkpoint_alone(self: &Arc<Self>) {
        // A resync has marks in its hands.
        let Some(_no_resync) = self.resyncing.try_lock() else {
            return;
        };
        let begun = clock::now();
        let alone = || {
            self.role() == Some(Role::Primary)
                && self.fenced().is_none()
                && self.core.lock().link() == Link::Alone
        };
        if !alone()
            || self.syncs.is_lossy()
            || !self.intents.has_notes()
            || begun < *self.alone_again.lock()
        {
            return;
        }
        let segment = match self.intents.rotate_hot() {
            Ok(Some(segment)) => segment,
            Ok(None) => return,
            Err(e) => return self.fence("the intent log cannot be written", &e),
        };
        self.gate.wait_for_all_before();
        let mut what = ToSave {
            dirty: self.copy_marks(|core| core.dirty()),
            suspect: self.copy_marks(|core| core.suspect()),
            notes: None,
        };
        let noted = self.recovered.lock().clone();
        if noted.damaged {
            what.suspect = everything();
        }
        what.notes = Some(&noted.intents);
        if let Err(e) = self.sync_store() {
            return tracing::error!(error = %e, "the store could not be flushed");
        }
        let saving = self.saving.lock();
        if *saving
            && self.save_marks(&saving, Some(segment), &what)
            && let Err(e) = self.intents.retire(segment)
        {
            tracing::warn!(error = %e, "old intents cannot be deleted");
        }
        let now = clock::now();
        *self.alone_again.lock() = now.after(now.since(begun) * SHARE_OF_TIME);
    }

    /// The bytes of a map of a primary that is alone: it only grows meanwhile.
    fn copy_marks(
        &self,
        map: impl Fn(&twinfold_protocol::primary::Primary<super::Reply>) -> &DirtyMap,
    ) -> Vec<u8> {
        let (mut bytes, mut cursor) = (Vec::new(), Cursor::default());
        loop {
            let core = self.core.lock();
            if !map(&core).write(&mut cursor, COPY_AT_ONCE, &mut bytes) {
                return bytes;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use twinfold_protocol::ids::FileId;

    use super::super::bed::opened;

    #[test]
    fn what_a_term_changed_is_not_forgotten_when_a_resync_does_not_end() {
        let (engine, _place) = opened(true);
        engine.start_primary(false).unwrap();
        let file = FileId(5000);
        engine.core.lock().mark(|map| map.mark_data(file, 0, 4096));
        engine.checkpoint_alone();
        let own = {
            let _resync = engine.resyncing.lock();
            engine.keep_own_marks().unwrap();
            engine.own_changes().unwrap()
        };
        assert!(own.damaged || own.marks.object(file).is_some(), "{own:?}");
        engine.stop().unwrap();
    }
}
