//! Notes: made durable before a node changes its own copy (invariant 1).

use std::collections::VecDeque;
use std::io;

use twinfold_protocol::ids::FileId;
use twinfold_protocol::marks::{Intent, id_block, intents_of};
use twinfold_protocol::op::{Op, Payload};
use twinfold_protocol::wire::decode_op;

use super::{Engine, StandbyError};
use crate::error::{FsError, FsResult};

/// What is to be noted before `op`. `is_new` tells of an object that it is noted as a
/// whole, `is_here` that there is one.
fn notes_of(
    op: &Op,
    old_size: u64,
    is_new: impl Fn(FileId) -> bool,
    is_here: impl Fn(FileId) -> bool,
) -> Vec<Intent> {
    let mut wanted: Vec<Intent> = Vec::new();
    intents_of(op, old_size, |intent| {
        // What is new is noted with its id.
        let known = match intent {
            Intent::Extent { file, .. } | Intent::Attributes { file } | Intent::File { file } => {
                is_new(file)
            }
            Intent::Directory { .. } | Intent::NewIds { .. } => false,
        };
        if !known {
            wanted.push(intent);
        }
    });
    // What a resync makes is noted as new, as what a creation makes: with its id, once
    // for thousands, and not with each piece that is moved into it.
    let made = |file: FileId| (!is_new(file) && !is_here(file)).then(|| id_block(file));
    match op {
        Op::PutDirectory {
            directory, entries, ..
        } => {
            let objects = entries.iter().filter_map(|e| e.object.as_ref());
            for file in objects.map(|o| o.file).chain([*directory]) {
                if let Some(note) = made(file)
                    && !wanted.contains(&note)
                {
                    wanted.push(note);
                }
            }
        }
        Op::PutObject { object, .. } => wanted.extend(made(object.file)),
        _ => {}
    }
    wanted
}

impl Engine {
    /// Makes the intents of an op durable, and fences the node when that fails.
    pub(super) fn ensure_intents(&self, op: &Op, old_size: u64) -> FsResult<()> {
        let wanted = notes_of(
            op,
            old_size,
            |file| self.is_new(file),
            |file| {
                self.store
                    .ids()
                    .present(file, 1)
                    .is_ok_and(|p| !p.is_empty())
            },
        );
        if wanted.is_empty() {
            return Ok(());
        }
        self.note(&wanted).map_err(|e| {
            if crate::state::no_room(&e) {
                return FsError::NoSpace;
            }
            if crate::state::not_now(&e) {
                return FsError::Store(e);
            }
            FsError::Fenced
        })
    }

    /// Makes the intents of an op of the primary durable.
    pub(super) fn standby_note(&self, op: &Op, old_size: u64) -> Result<(), StandbyError> {
        let source = match self.ensure_intents(op, old_size) {
            Ok(()) => return Ok(()),
            Err(FsError::NoSpace) => io::ErrorKind::StorageFull.into(),
            Err(FsError::Store(source)) => source,
            Err(_) => return Err(StandbyError::Fenced),
        };
        // It changes nothing here. Where it differs is known for as long as this node runs, and
        // that it differs is durable beside the notes.
        if let Op::Differs { .. } = op {
            tracing::warn!(error = %source, "what differs from the primary's copy cannot be noted");
            return Ok(());
        }
        let op = op.word();
        Err(StandbyError::Put { op, source })
    }

    /// Makes notes durable. When that fails for anything else than want of room, of
    /// descriptors or of memory, the node is fenced.
    pub(super) fn note(&self, wanted: &[Intent]) -> io::Result<()> {
        self.intents.ensure(wanted).inspect_err(|e| {
            if !crate::state::not_now(e) {
                self.fence("the intent log cannot be written", e);
            }
        })
    }

    /// Whether everything about `file` is covered by a note on new ids.
    pub(super) fn is_new(&self, file: FileId) -> bool {
        self.intents.is_hot(id_block(file))
    }

    /// Notes the directories out of which an op takes a name that it does not tell of.
    pub(super) fn note_the_way(&self, op: &Op) -> Result<(), StandbyError> {
        let found = self.store.in_the_way(op).map_err(|source| {
            let op = op.word();
            StandbyError::Put { op, source }
        })?;
        let notes = found
            .into_iter()
            .map(|directory| Intent::Directory { directory });
        let noted = self.note(&notes.collect::<Vec<_>>());
        noted.map_err(|source| match self.fenced() {
            Some(_) => StandbyError::Fenced,
            None => StandbyError::Put {
                op: op.word(),
                source,
            },
        })
    }

    /// Makes the notes of changes that have arrived with one sync for all of them: small
    /// pieces all over a large file, or the attributes of many, would else cost one each. What
    /// cannot be noted here is met again when it is applied.
    pub(crate) fn standby_note_ahead(&self, frames: &VecDeque<Payload>) {
        if frames.len() < 2 {
            return;
        }
        let mut wanted = Vec::new();
        for frame in frames {
            let Ok(op) = decode_op(frame.clone()) else {
                break;
            };
            match op.op {
                Op::Write { .. }
                | Op::PutData { .. }
                | Op::PutHole { .. }
                | Op::PutDirectory { .. } => intents_of(&op.op, 0, |note| wanted.push(note)),
                // How much of its data it cuts is seen when it is applied.
                Op::PutObject { object, .. } => {
                    wanted.push(Intent::Attributes { file: object.file });
                }
                _ => {}
            }
        }
        wanted.retain(|note| match note {
            Intent::Extent { file, .. } | Intent::File { file } | Intent::Attributes { file } => {
                !self.is_new(*file)
            }
            _ => true,
        });
        if let Err(error) = self.intents.ensure(&wanted) {
            tracing::debug!(%error, "ops could not be noted together");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::bed::{Bed, made, opened, paired};
    use super::super::{Due, NewEntry};
    use super::*;
    use bytes::Bytes;
    use twinfold_protocol::attr::Kind;
    use twinfold_protocol::limits;
    use twinfold_protocol::op::Stability;
    use twinfold_protocol::op::{AllocateMode, Listing, Name, Object, PutEntry};
    use twinfold_protocol::time::Timestamp;
    use twinfold_protocol::verify::Question;

    fn hole(length: u64) -> Op {
        Op::Allocate {
            file: FileId(5000),
            mode: AllocateMode::PunchHole,
            offset: 0,
            length,
        }
    }

    #[test]
    fn a_range_is_noted_by_its_extents_and_the_longest_by_its_file() {
        let notes = |op: &Op, new| notes_of(op, 0, |_| new, |_| true);
        let short = notes(&hole(3 * limits::EXTENT), false);
        assert_eq!(
            short.len(),
            4,
            "three extents and the attributes: {short:?}"
        );
        let longest = notes(&hole(limits::MAX_OFFSET), false);
        let file = FileId(5000);
        assert_eq!(
            longest,
            [Intent::File { file }, Intent::Attributes { file }]
        );
        assert_eq!(notes(&hole(limits::MAX_OFFSET), true), []);
    }

    fn object(file: u64) -> Object {
        Object {
            file: FileId(file),
            kind: Kind::Regular,
            target: bytes::Bytes::new(),
            mode: 0o600,
            uid: 0,
            gid: 0,
            size: 0,
            accessed: Timestamp::default(),
            modified: Timestamp::default(),
        }
    }

    fn name(name: &str) -> Name {
        Name::new(name.as_bytes()).unwrap()
    }

    #[test]
    fn what_a_resync_makes_is_noted_once_with_its_name() {
        let entry = |file: u64| PutEntry {
            name: Name::new(file.to_string().as_bytes()).unwrap(),
            object: Some(object(file)),
        };
        let listing = Op::PutDirectory {
            directory: FileId::ROOT,
            listing: Listing::Names,
            entries: (5000..5500).chain(9000..9100).map(entry).collect(),
        };
        let old = |file: FileId| file.0 < 9000;
        let directory = Intent::Directory {
            directory: FileId::ROOT,
        };
        let notes = notes_of(&listing, 0, |_| false, old);
        assert_eq!(notes, [directory, id_block(FileId(9000))]);
        let data = Op::PutObject {
            object: object(9000),
            xattrs: Vec::new(),
        };
        assert_eq!(notes_of(&data, 0, |file| !old(file), |_| true), []);
    }

    /// It changes nothing here, so there is nothing that could not be done.
    #[test]
    fn a_copy_that_differs_is_told_so_and_stays_although_there_is_no_room_to_note_where() {
        let file = FileId(5000);
        let question = Question::Object { file };
        for why in [io::ErrorKind::StorageFull, io::ErrorKind::QuotaExceeded] {
            let bed = Bed::current();
            bed.engine.intents.refuse(Some(why));
            let due = bed.apply(&Op::Differs {
                question: question.clone(),
            });
            assert!(matches!(due, Ok(Due::Nothing)), "{due:?}");
            assert!(bed.engine.standby_resume().unwrap().is_some());
            assert!(!bed.up_to_date());
            bed.engine.intents.refuse(None);
            assert!(matches!(bed.sync(Op::Checkpoint), Ok(Some(_))));
        }
    }

    const MANY: u64 = 100;

    /// A file that is older than any note.
    fn old_file(engine: &Engine) -> Arc<crate::store::Node> {
        let root = engine.store.node(FileId::ROOT).unwrap();
        let object = made(5000, Kind::Regular);
        engine.store.create(&root, &name("old"), &object).unwrap()
    }

    #[test]
    fn what_a_primary_changes_again_and_again_costs_one_sync_of_its_log() {
        let (engine, _place) = opened(true);
        engine.start_primary(false).unwrap();
        paired(&engine);
        let file = old_file(&engine);
        let write = |n: u64| {
            let data = Bytes::from_static(b"x");
            engine.write(&file, n, data, Stability::Mode, false, drop);
        };
        let syncs = || engine.intents.syncs();
        let before = syncs();
        (0..MANY).for_each(write);
        assert_eq!(syncs(), before + 1, "writes to one extent");
        // Its flush would stand in front of another sync, and writes behind that.
        engine.begin_checkpoint();
        (0..MANY).for_each(write);
        assert_eq!(syncs(), before + 1, "writes behind a checkpoint");
        let root = engine.store.node(FileId::ROOT).unwrap();
        for n in 0..MANY {
            let new = NewEntry {
                kind: Kind::Regular,
                target: Bytes::new(),
                mode: 0o600,
                umask: 0,
                uid: 0,
                gid: 0,
            };
            engine.create(&root, name(&format!("new{n}")), new, drop);
        }
        assert_eq!(syncs(), before + 2, "names in one directory");
        let (in_flight, _) = engine.core.lock().in_flight();
        assert_eq!(
            in_flight,
            3 * MANY + 2,
            "with the checkpoint and the times it is behind, all are on their way"
        );
    }

    #[test]
    fn what_a_secondary_is_told_to_change_again_and_again_costs_one_sync_of_its_log() {
        let bed = Bed::current();
        let apply = |op: &Op| match bed.apply(op).unwrap() {
            Due::Sync(job) => drop(bed.end_sync(job).unwrap()),
            due => assert!(matches!(due, Due::Nothing), "{due:?}"),
        };
        old_file(&bed.engine);
        let write = |n: u64| Op::Write {
            file: FileId(5000),
            offset: n,
            stability: Stability::Mode,
            clear_privileges: false,
            data: Bytes::from_static(b"x").into(),
        };
        let create = |n: u64| Op::Create {
            parent: FileId::ROOT,
            name: name(&format!("new{n}")),
            object: made((9 << 40) + n, Kind::Regular),
        };
        let syncs = || bed.engine.intents.syncs();
        let before = syncs();
        (0..MANY).for_each(|n| apply(&write(n)));
        assert_eq!(syncs(), before + 1, "writes to one extent");
        for _ in 0..3 {
            apply(&Op::Checkpoint);
            (0..MANY).for_each(|n| apply(&write(n)));
        }
        assert_eq!(syncs(), before + 1, "writes behind checkpoints");
        (1..=MANY).for_each(|n| apply(&create(n)));
        assert_eq!(syncs(), before + 2, "names in one directory");
    }

    /// What the application holds open, or a full disk, must not fence a node: neither as
    /// primary nor as secondary.
    #[test]
    fn a_note_that_cannot_be_made_for_now_fences_nobody() {
        for why in [io::ErrorKind::StorageFull, io::ErrorKind::QuotaExceeded] {
            let (engine, _place) = opened(false);
            engine.start_secondary().unwrap();
            engine
                .store
                .create(
                    &engine.store.node(FileId::ROOT).unwrap(),
                    &name("old"),
                    &made(5000, Kind::Directory),
                )
                .unwrap();
            let old = engine.store.node(FileId(5000)).unwrap();
            engine
                .store
                .create(&old, &name("moved"), &made(5001, Kind::Directory))
                .unwrap();
            let moved = Object {
                kind: Kind::Directory,
                ..object(5001)
            };
            let op = Op::PutDirectory {
                directory: FileId::ROOT,
                listing: Listing::Names,
                entries: vec![PutEntry {
                    name: name("moved"),
                    object: Some(moved),
                }],
            };
            assert!(!engine.store.in_the_way(&op).unwrap().is_empty());
            engine.intents.refuse(Some(why));
            let refused = engine.note_the_way(&op).unwrap_err();
            assert!(matches!(refused, StandbyError::Put { .. }), "{refused}");
            assert_eq!(engine.fenced(), None);
            engine.intents.refuse(None);
            engine.note_the_way(&op).unwrap();
        }
        let (engine, _place) = opened(false);
        engine.start_secondary().unwrap();
        engine.intents.refuse(Some(io::ErrorKind::Other));
        let note = id_block(FileId(5000));
        engine.note(&[note]).unwrap_err();
        assert!(engine.fenced().is_some());
    }
}
