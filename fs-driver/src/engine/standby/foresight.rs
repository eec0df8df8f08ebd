//! Syncs that are begun before they are asked for.
//!
//! A program that commits does the same again and again: some writes, and a sync behind them.
//! Where its last syncs each came behind as many changes, to the same file, the next one begins
//! here as soon as the change before it is applied and told of, while the primary's caller is
//! still on its way to ask for it: it finds its answer then. One that nobody asks for costs
//! this disk a sync, once: then the changes are as many no more.

use twinfold_protocol::ids::{FileId, Seq};
use twinfold_protocol::op::Op;

use crate::engine::habit::{Habit, Target};

/// What the syncs before were like, and what has been done for the next one.
#[derive(Debug, Default)]
pub(super) struct Foresight {
    habit: Habit,
    /// Changes since the last one, and the file that the last of them wrote to.
    changes: u64,
    written: Option<FileId>,
    /// What was begun; nothing was changed since.
    begun: Option<(Target, Seq)>,
    /// It has ended well.
    ended: bool,
}

impl Foresight {
    /// An op was applied that is no sync of a file.
    pub(super) fn applied(&mut self, op: &Op) {
        match op {
            // Of times none is durable before a full sync.
            Op::Times { .. } if self.begun.is_none_or(|(t, _)| t.data_only) => return,
            Op::Times { .. } => {}
            op => {
                // Who was wrong waits for as many again.
                if self.begun.is_some() {
                    self.habit.failed();
                }
                self.changes = self.changes.saturating_add(1);
                self.written = match op {
                    Op::Write { file, .. } => Some(*file),
                    _ => None,
                };
            }
        }
        (self.begun, self.ended) = (None, false);
    }

    /// A sync is asked for; returns whether it is done already.
    pub(super) fn asked(&mut self, target: Target) -> bool {
        let done = self.ended && self.begun.is_some_and(|(begun, _)| begun.covers(target));
        self.habit.asked(target, self.changes);
        (self.changes, self.written) = (0, None);
        (self.begun, self.ended) = (None, false);
        done
    }

    /// The sync to begin now, behind the op `applied`, if one is foreseen.
    pub(super) fn begin(&mut self, applied: Seq) -> Option<Target> {
        let (target, changes) = self.habit.next()?;
        let now = self.changes == changes && self.written == Some(target.file);
        if !now || self.begun.is_some() {
            return None;
        }
        self.begun = Some((target, applied));
        Some(target)
    }

    /// The one that was begun behind the op `applied` has ended well.
    pub(super) fn ended(&mut self, applied: Seq) {
        self.ended |= self.begun.is_some_and(|(_, seq)| seq == applied);
    }

    #[cfg(test)]
    pub(super) fn has_ended(&self) -> bool {
        self.ended
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use twinfold_protocol::attr::Kind;
    use twinfold_protocol::ids::SessionId;
    use twinfold_protocol::op::{Name, Stability};
    use twinfold_protocol::time::Timestamp;
    use twinfold_protocol::wire::Receipt;

    use super::*;
    use crate::engine::bed::{Bed, made};
    use crate::engine::habit::ALIKE;
    use crate::engine::{Due, SyncJob};

    const FILE: FileId = FileId((9 << 40) + 1);
    const OTHER: FileId = FileId((9 << 40) + 2);
    const DATA: Target = Target {
        file: FILE,
        data_only: true,
    };

    fn write(file: FileId) -> Op {
        Op::Write {
            file,
            offset: 0,
            stability: Stability::Mode,
            clear_privileges: false,
            data: bytes::Bytes::from_static(b"x").into(),
        }
    }

    fn times(file: FileId) -> Op {
        Op::Times {
            file,
            accessed: Timestamp::default(),
            modified: Timestamp::default(),
        }
    }

    /// After commits of two writes each.
    fn after_commits(commits: u32, target: Target) -> Foresight {
        let mut foresight = Foresight::default();
        for _ in 0..commits {
            foresight.applied(&write(OTHER));
            foresight.applied(&write(FILE));
            assert_eq!(foresight.begin(Seq(7)), None);
            assert!(!foresight.asked(target));
        }
        foresight
    }

    /// The changes of another commit.
    fn changes(foresight: &mut Foresight) {
        foresight.applied(&write(OTHER));
        assert_eq!(foresight.begin(Seq(8)), None, "one more is to come");
        foresight.applied(&write(FILE));
    }

    #[test]
    fn a_sync_is_foreseen_where_the_last_ones_were_alike() {
        let mut young = after_commits(ALIKE, DATA);
        changes(&mut young);
        assert_eq!(young.begin(Seq(9)), None);
        let mut foresight = after_commits(ALIKE + 1, DATA);
        changes(&mut foresight);
        assert_eq!(foresight.begin(Seq(9)), Some(DATA));
        assert_eq!(foresight.begin(Seq(9)), None, "it is begun once");
        foresight.ended(Seq(9));
        assert!(foresight.asked(DATA));
        changes(&mut foresight);
        assert!(!foresight.asked(DATA), "each one is for itself");
    }

    #[test]
    fn what_has_changed_since_a_sync_was_begun_is_not_taken_for_synced() {
        let done = |then: &dyn Fn(&mut Foresight)| {
            let mut foresight = after_commits(ALIKE + 1, DATA);
            changes(&mut foresight);
            assert!(foresight.begin(Seq(9)).is_some());
            then(&mut foresight);
            foresight.asked(DATA)
        };
        assert!(!done(&|_| ()), "it runs");
        assert!(done(&|f| f.ended(Seq(9))));
        assert!(!done(&|f| f.ended(Seq(8))), "that is another one");
        assert!(!done(&|f| {
            f.ended(Seq(9));
            f.applied(&write(FILE));
        }));
        assert!(!done(&|f| {
            f.applied(&write(FILE));
            f.ended(Seq(9));
        }));
        // Of times, none has to be durable for it.
        assert!(done(&|f| {
            f.ended(Seq(9));
            f.applied(&times(FILE));
        }));
    }

    #[test]
    fn a_sync_of_the_data_is_none_of_the_times_and_one_of_all_serves_for_both() {
        let full = Target {
            data_only: false,
            ..DATA
        };
        let done = |foreseen: Target, asked: Target, then: &[Op]| {
            let mut foresight = after_commits(ALIKE + 1, foreseen);
            changes(&mut foresight);
            assert!(foresight.begin(Seq(9)).is_some());
            foresight.ended(Seq(9));
            then.iter().for_each(|op| foresight.applied(op));
            foresight.asked(asked)
        };
        assert!(!done(DATA, full, &[]));
        assert!(done(full, DATA, &[]));
        assert!(done(full, full, &[]));
        assert!(!done(full, full, &[times(FILE)]));
        let other = Target {
            file: OTHER,
            ..DATA
        };
        assert!(!done(DATA, other, &[]));
    }

    #[test]
    fn who_was_wrong_waits_for_as_many_again() {
        let mut foresight = after_commits(ALIKE + 1, DATA);
        changes(&mut foresight);
        assert!(foresight.begin(Seq(9)).is_some());
        foresight.applied(&write(OTHER));
        assert!(!foresight.asked(DATA));
        for _ in 0..=ALIKE {
            changes(&mut foresight);
            assert_eq!(foresight.begin(Seq(9)), None);
            assert!(!foresight.asked(DATA));
        }
        changes(&mut foresight);
        assert!(foresight.begin(Seq(9)).is_some());
    }

    /// A secondary that foresees the next sync, and has begun it.
    fn foreseeing() -> (Bed, SyncJob) {
        let bed = Bed::current();
        let create = Op::Create {
            parent: FileId::ROOT,
            name: Name::new(b"log").unwrap(),
            object: made(FILE.0, Kind::Regular),
        };
        assert!(matches!(bed.apply(&create), Ok(Due::Nothing)));
        // The first one comes behind more changes.
        for _ in 0..=ALIKE + 1 {
            bed.apply(&write(FILE)).unwrap();
            assert!(bed.engine.standby_foreseen().is_none());
            assert!(matches!(bed.sync(sync()), Ok(Some(_))));
        }
        bed.apply(&write(FILE)).unwrap();
        // This disk is quick, however busy.
        drop(bed.hold_syncs());
        let job = bed.engine.standby_foreseen().unwrap();
        (bed, job)
    }

    fn sync() -> Op {
        Op::Sync {
            file: FILE,
            data_only: true,
        }
    }

    #[test]
    fn a_sync_that_was_foreseen_is_told_at_once_and_no_other_one() {
        let told = |then: &dyn Fn(&Bed, SyncJob)| {
            let (bed, job) = foreseeing();
            then(&bed, job);
            let seq = bed.next();
            match bed.apply(&sync()) {
                Ok(Due::Synced(receipt)) => {
                    assert_eq!(receipt, Receipt::Synced { seq });
                    true
                }
                Ok(Due::Sync(_)) => false,
                other => panic!("{other:?}"),
            }
        };
        let end = |bed: &Bed, job| assert!(matches!(bed.end_sync(job), Ok(None)));
        assert!(told(&end));
        assert!(!told(&|_, _| ()));
        assert!(!told(&|bed, job| {
            end(bed, job);
            bed.apply(&write(FILE)).unwrap();
        }));
        assert!(!told(&|bed, job| {
            bed.apply(&write(FILE)).unwrap();
            end(bed, job);
        }));
    }

    /// The kernel has told another one of what this one should have brought to the disk.
    #[test]
    fn nothing_is_foreseen_beside_a_sync_that_has_failed() {
        let (bed, job) = foreseeing();
        bed.end_sync(job).unwrap();
        bed.fail();
        assert!(bed.sync(sync()).is_err());
        let (bed, job) = foreseeing();
        bed.fail();
        bed.end_sync(job).unwrap();
        assert!(bed.sync(sync()).is_err());
    }

    #[test]
    fn one_that_fails_is_told_to_its_session_or_else_to_who_asks_next() {
        for over in [false, true] {
            let (bed, job) = foreseeing();
            let engine = &bed.engine;
            let node = engine.store.object(FILE).unwrap().unwrap();
            let session = SessionId(job.session.0 + u128::from(over));
            let error = io::Error::from_raw_os_error(5);
            engine.foreseen_has_failed(session, &node, error);
            let failed = engine.standby.lock().as_ref().unwrap().failed;
            assert_eq!(failed, !over);
            assert_eq!(engine.foresight.told(FILE, Ok(())).is_err(), over);
        }
    }

    #[test]
    fn nothing_is_foreseen_while_a_copy_is_brought_up() {
        let (mut bed, _job) = foreseeing();
        bed.begin();
        assert!(bed.engine.standby_foreseen().is_none());
    }
}
