//! What a node finds of its state when the driver starts.

use std::path::Path;

use anyhow::{Context, Result};
use twinfold_protocol::primary::OwnMarks;

use super::{CopyFile, IntentLog, MarksFile, Recovered, Saved};

/// All of a node's state.
#[derive(Debug)]
pub(crate) struct Found {
    /// The copy's history.
    pub(crate) copy: CopyFile,
    /// The intent log.
    pub(crate) intents: IntentLog,
    /// The file of saved marks.
    pub(crate) marks: MarksFile,
    /// What was saved of them.
    pub(crate) own: OwnMarks,
    /// What was noted and no saved marks stand for.
    pub(crate) recovered: Recovered,
    /// What could not be read, if that matters: then anything may differ.
    pub(crate) damage: Option<String>,
}

/// Reads the state of a copy and begins a new segment of its intent log.
/// With `history_unknown` the copy's history cannot be read, and begins anew.
pub(crate) fn open(state: &Path, history_unknown: bool) -> Result<Found> {
    let copy = match history_unknown {
        true => CopyFile::begin_anew(state)?,
        false => CopyFile::open(state)?,
    };
    let record = copy.get();
    // Before its first synchronisation a copy has nothing to lose.
    let matters = record.copy.current.is_some();
    let (marks, found) = MarksFile::open(state, &record);
    let (saved, mut damage) = match found {
        Ok((number, saved)) => {
            copy.update(|r| r.marks_saved(number))
                .context("cannot write the copy's history")?;
            (saved, None)
        }
        Err(why) => {
            tracing::error!(why, "saved marks cannot be used: everything is compared");
            (Saved::default(), matters.then_some(why))
        }
    };
    let (intents, mut recovered) = IntentLog::open(&state.join("intents"), saved.segment)
        .context("cannot open the intent log")?;
    if recovered.damaged && matters {
        damage.get_or_insert_with(|| "a part of the intent log cannot be used".into());
    }
    recovered.intents.extend(saved.notes);
    recovered.damaged = damage.is_some();
    let mut own = saved.own;
    for map in [&mut own.dirty, &mut own.suspect] {
        recovered.damaged |= map.take_everything();
    }
    Ok(Found {
        copy,
        intents,
        marks,
        own,
        recovered,
        damage,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::{Record, ToSave};
    use std::collections::BTreeSet;
    use std::path::PathBuf;
    use twinfold_protocol::handshake::CopyState;
    use twinfold_protocol::ids::{FileId, Generation, ModuleId};
    use twinfold_protocol::limits::{BLOCK, EXTENT};
    use twinfold_protocol::marks::{DirtyMap, Intent};

    fn made() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let record = Record {
            copy: CopyState {
                module: ModuleId(7),
                current: Generation(3),
                up_to_date: true,
                ..CopyState::default()
            },
            ..Record::default()
        };
        CopyFile::create(dir.path(), record).unwrap();
        MarksFile::create(dir.path()).unwrap();
        IntentLog::create(&dir.path().join("intents")).unwrap();
        dir
    }

    const F: FileId = FileId(5000);

    fn note(extent: u32) -> Intent {
        Intent::Extent { file: F, extent }
    }

    /// What a resync would look at: whether it is in the marks, exactly, or in the notes.
    fn covered(found: &Found, extent: u32) -> bool {
        let at = u64::from(extent) * EXTENT;
        let marked = |map: &DirtyMap| {
            map.object(F)
                .is_some_and(|m| m.blocks.spans(0).contains(&(at, BLOCK)))
        };
        found.recovered.damaged
            || marked(&found.own.dirty)
            || found.recovered.intents.contains(&note(extent))
    }

    /// A run on the disk of `dir`: each extent is noted and then changed in one block.
    struct Run<'a> {
        found: Found,
        map: DirtyMap,
        states: &'a mut Vec<(String, tempfile::TempDir, BTreeSet<u32>)>,
        changed: BTreeSet<u32>,
        dir: PathBuf,
    }

    impl Run<'_> {
        fn change(&mut self, extent: u32) {
            self.found.intents.ensure(&[note(extent)]).unwrap();
            self.map.mark_data(F, u64::from(extent) * EXTENT, 1);
            self.changed.insert(extent);
            self.crash_here(&format!("after the change of {extent}"));
        }

        /// What the disk holds if the node goes down now.
        fn crash_here(&mut self, when: &str) {
            let copy = tempfile::tempdir().unwrap();
            copy_tree(&self.dir, copy.path());
            self.states.push((when.into(), copy, self.changed.clone()));
        }

        fn checkpoint(&mut self, meanwhile: u32) {
            let segment = self.found.intents.rotate().unwrap().unwrap();
            self.crash_here("a segment was begun");
            let mut own = OwnMarks {
                dirty: self.map.clone(),
                ..OwnMarks::default()
            };
            self.change(meanwhile);
            // Copied a part at a time: what came meanwhile may be in it.
            own.dirty.mark_data(F, u64::from(meanwhile) * EXTENT, 1);
            let id = self.found.copy.get().next_marks();
            let before = std::fs::read(self.dir.join("marks")).unwrap();
            let notes = BTreeSet::new();
            let what = ToSave::new(&own, &notes);
            assert!(self.found.marks.save(id, Some(segment), &what).unwrap());
            self.crash_here("the marks are replaced");
            let after = std::fs::read(self.dir.join("marks")).unwrap();
            for cut in [0, 1, after.len() / 2, after.len()] {
                // The rename is not on the disk yet, and what was written beside is torn.
                std::fs::write(self.dir.join("marks.new"), &after[..cut]).unwrap();
                std::fs::write(self.dir.join("marks"), &before).unwrap();
                self.crash_here("the marks are written beside the old ones");
            }
            std::fs::remove_file(self.dir.join("marks.new")).unwrap();
            std::fs::write(self.dir.join("marks"), &after).unwrap();
            self.found
                .copy
                .update(|r| r.marks_saved(id.number))
                .unwrap();
            self.crash_here("the record names the marks");
            let old: Vec<_> = std::fs::read_dir(self.dir.join("intents"))
                .unwrap()
                .map(|e| e.unwrap().path())
                .collect();
            self.found.intents.retire(segment).unwrap();
            let gone: Vec<_> = old.iter().filter(|p| !p.exists()).cloned().collect();
            assert!(!gone.is_empty());
            self.crash_here("all old segments are deleted");
            // Any of the deletions may not be on the disk.
            for kept in &gone {
                std::fs::write(kept, b"").unwrap();
                self.crash_here("an old segment is empty");
                std::fs::remove_file(kept).unwrap();
            }
        }
    }

    fn copy_tree(from: &Path, to: &Path) {
        for entry in std::fs::read_dir(from).unwrap() {
            let entry = entry.unwrap();
            let target = to.join(entry.file_name());
            if entry.file_type().unwrap().is_dir() {
                std::fs::create_dir(&target).unwrap();
                copy_tree(&entry.path(), &target);
            } else {
                std::fs::copy(entry.path(), target).unwrap();
            }
        }
    }

    fn run(dir: &Path, states: &mut Vec<(String, tempfile::TempDir, BTreeSet<u32>)>) {
        let found = open(dir, false).unwrap();
        let mut run = Run {
            map: found.own.dirty.clone(),
            found,
            states,
            changed: BTreeSet::new(),
            dir: dir.to_owned(),
        };
        run.change(1);
        run.change(40);
        run.checkpoint(80);
        run.change(120);
        run.checkpoint(160);
        run.change(200);
    }

    #[test]
    fn whatever_step_of_a_checkpoint_a_crash_interrupts_every_change_is_marked_or_noted() {
        let dir = made();
        let mut states = Vec::new();
        run(dir.path(), &mut states);
        assert!(states.len() > 20, "{} states", states.len());
        let mut exact = 0;
        for (when, state, changed) in &states {
            // Twice: the first start must not lose what the second one needs.
            for start in 1..=2 {
                let found = open(state.path(), false).unwrap();
                assert_eq!(found.damage, None, "{when}, start {start}");
                for extent in changed {
                    assert!(covered(&found, *extent), "{when}, start {start}: {extent}");
                }
                exact += usize::from(!found.own.is_empty());
            }
        }
        assert!(exact > 10, "saved marks were found {exact} times");
    }

    #[test]
    fn an_old_file_of_saved_marks_is_not_believed_once_notes_are_gone() {
        let dir = made();
        let mut states = Vec::new();
        run(dir.path(), &mut states);
        let first = states
            .iter()
            .find(|(when, ..)| when == "the marks are replaced")
            .unwrap();
        let (_, last, changed) = states.last().unwrap();
        std::fs::copy(first.1.path().join("marks"), last.path().join("marks")).unwrap();
        let found = open(last.path(), false).unwrap();
        assert!(found.damage.is_some() && found.recovered.damaged);
        assert!(changed.iter().all(|extent| covered(&found, *extent)));
    }

    #[test]
    fn without_its_marks_or_its_log_a_copy_is_compared_whole() {
        for lost in ["marks", "intents"] {
            let dir = made();
            drop(open(dir.path(), false).unwrap());
            let path = dir.path().join(lost);
            std::fs::remove_file(&path)
                .or_else(|_| std::fs::remove_dir_all(&path))
                .unwrap();
            let found = open(dir.path(), false).unwrap();
            assert!(found.recovered.damaged, "{lost}");
            assert!(found.damage.is_some_and(|d| d.contains("cannot be used")));
        }
    }
}
