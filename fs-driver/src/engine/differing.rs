//! A secondary that its primary has found to differ.
//!
//! It applies whatever comes as before, but its copy is not up to date from then on, durably:
//! neither this run nor the next one may promote it (promise 4, invariant 12), until a resync
//! has moved what differs.

use std::io;

use twinfold_protocol::marks::DirtyMap;
use twinfold_protocol::verify::{Question, mark_question};

use super::Engine;

impl Engine {
    /// The primary says that this copy differs in what it asked for.
    pub(super) fn note_differing(&self, question: &Question) -> io::Result<()> {
        let mut differing = self.differing.lock();
        if differing.is_empty() {
            tracing::warn!("the primary found that this copy differs from its own");
        }
        mark_question(&mut differing, question);
        differing.bound();
        drop(differing);
        self.fall_behind()
    }

    /// What the primary had found to differ was moved, or its copy counts for nothing. What it
    /// says from now on, behind the end of the resync, was not.
    pub(super) fn nothing_differs(&self) {
        *self.differing.lock() = DirtyMap::default();
        self.changes.ring();
    }

    /// Whether the primary has found in this run that this copy differs.
    pub(super) fn is_differing(&self) -> bool {
        !self.differing.lock().is_empty()
    }
}

#[cfg(test)]
mod tests {
    use twinfold_protocol::ids::FileId;
    use twinfold_protocol::op::Op;

    use super::super::Due;
    use super::super::bed::Bed;
    use super::*;

    fn differs() -> Op {
        let file = FileId::ROOT;
        Op::Differs {
            question: Question::Object { file },
        }
    }

    /// Its driver may end before the two are together again.
    #[test]
    fn a_copy_that_was_found_to_differ_is_not_promoted_by_the_next_run_either() {
        let bed = Bed::current();
        assert!(matches!(bed.apply(&differs()), Ok(Due::Nothing)));
        let refused = |bed: &Bed| {
            for yielded in [false, true] {
                assert!(bed.engine.promote_by_right(yielded).is_err());
            }
            assert!(bed.engine.promote(false).is_err());
            let standing = bed.engine.standing();
            assert!(!standing.copy.up_to_date && !standing.current);
        };
        refused(&bed);
        // What it applies goes on being flushed.
        assert!(matches!(bed.sync(Op::Checkpoint), Ok(Some(_))));
        let mut bed = bed.restarted();
        bed.engine.start_secondary().unwrap();
        refused(&bed);
        // Until it was brought up again.
        bed.begin();
        assert!(matches!(bed.sync(Op::ResyncEnd), Ok(Some(_))));
        let bed = bed.restarted();
        bed.engine.start_secondary().unwrap();
        bed.engine.promote_by_right(false).unwrap();
    }

    /// The primary has ended the resync, this node has not flushed it yet.
    #[test]
    fn what_is_found_to_differ_behind_the_end_of_a_resync_stays_known() {
        let bed = Bed::target();
        bed.apply(&differs()).unwrap();
        let Due::Sync(end) = bed.apply(&Op::ResyncEnd).unwrap() else {
            panic!("the end of a resync is flushed")
        };
        bed.apply(&differs()).unwrap();
        assert!(matches!(bed.end_sync(end), Ok(Some(_))));
        assert!(!bed.up_to_date());
        assert!(bed.engine.promote(false).is_err());

        let bed = Bed::target();
        bed.apply(&differs()).unwrap();
        assert!(matches!(bed.sync(Op::ResyncEnd), Ok(Some(_))));
        assert!(bed.up_to_date());
        bed.engine.promote(false).unwrap();
    }

    /// What failed half-way there may have been told so, and there is no better copy.
    #[test]
    fn a_copy_that_differs_from_one_whose_disk_failed_is_up_to_date_when_it_takes_over() {
        let bed = Bed::current();
        bed.apply(&differs()).unwrap();
        assert!(matches!(bed.sync(Op::TakeOver), Ok(Some(_))));
        bed.engine.begin_hosting();
        assert!(bed.up_to_date() && !bed.engine.is_differing());
        assert_eq!(bed.engine.copy().objection(crate::state::boot_id()), None);
    }
}
