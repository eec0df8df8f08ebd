//! The secondary's side of replication: which frames it may apply, and what it
//! may say about them.
//!
//! Ops are applied strictly in order; the copy is always a prefix of the
//! primary's sequence (promise 3). The machine checks the order and the moment;
//! whether an op can be done is the store's business.

use crate::ids::{Seq, SessionId};
use crate::op::{Op, Sequenced, Stability};
use crate::wire::{OpStreamStart, Receipt, Violation};

/// What to do with a frame.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Accepted {
    /// Apply the op, then call [`Secondary::applied`].
    Apply,
    /// Applied before the connection broke; only its sync is asked for again.
    SyncAgain,
}

/// The state of a resync target or secondary within a session.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Secondary {
    session: SessionId,
    applied: Seq,
    durable: Seq,
    /// Before [`Op::ResyncEnd`]: the copy is not up to date.
    syncing: bool,
    /// [`Op::ResyncEnd`] has not come yet: what loses its name may get another one.
    moving: bool,
    started: bool,
    told: (Seq, Seq),
}

impl Secondary {
    /// A secondary at the beginning of a session.
    pub fn new(session: SessionId) -> Secondary {
        Secondary {
            session,
            applied: Seq(0),
            durable: Seq(0),
            syncing: true,
            moving: true,
            started: false,
            told: (Seq(0), Seq(0)),
        }
    }

    /// The session.
    pub fn session(&self) -> SessionId {
        self.session
    }

    /// The last op applied.
    pub fn applied_seq(&self) -> Seq {
        self.applied
    }

    /// The session with the last op applied, for a new connection to go on with. None before
    /// the op stream has begun: there is no place in it yet, and a primary that may have sent
    /// all of it must learn that nobody can be promoted by it, or it waits for ever.
    pub fn resumes_at(&self) -> Option<(SessionId, Seq)> {
        self.started.then_some((self.session, self.applied))
    }

    /// Whether the copy is still being brought up.
    pub fn is_syncing(&self) -> bool {
        self.syncing
    }

    /// Whether resync ops may still come. Until then what loses its last name is kept, for
    /// one of them may give it another; afterwards nobody would ever take it away.
    pub fn is_moving(&self) -> bool {
        self.moving
    }

    /// The op stream begins, for the first time or again.
    pub fn start(&mut self, start: OpStreamStart) -> Result<(), Violation> {
        if start.session != self.session {
            return Err(Violation::Order(format!(
                "the op stream belongs to session {}, not to {}",
                start.session, self.session
            )));
        }
        if !self.started {
            self.started = true;
            self.applied = Seq(start.first.0.saturating_sub(1));
            self.durable = self.applied;
        } else if start.first > self.applied.next() {
            return Err(Violation::Order(format!(
                "the op stream goes on at {}, but {} was the last applied",
                start.first, self.applied
            )));
        }
        self.told = (Seq(0), Seq(0));
        Ok(())
    }

    /// Checks the place of an op.
    pub fn accept(&self, op: &Sequenced) -> Result<Accepted, Violation> {
        if !self.started {
            return Err(Violation::Order(
                "an op came before the stream began".into(),
            ));
        }
        if op.seq <= self.applied {
            return match op.op {
                Op::Sync { .. } | Op::Checkpoint | Op::ResyncEnd | Op::TakeOver => {
                    Ok(Accepted::SyncAgain)
                }
                _ => Err(Violation::Order(format!("op {} came twice", op.seq))),
            };
        }
        if op.seq != self.applied.next() {
            return Err(Violation::Order(format!(
                "op {} came after op {}",
                op.seq, self.applied
            )));
        }
        if op.op.is_resync() && !self.moving {
            return Err(Violation::Order(format!(
                "a resync op ({}) came after the end of the resync",
                op.op.word()
            )));
        }
        if op.op == Op::TakeOver && self.syncing {
            return Err(Violation::Order(
                "a copy that is not up to date was asked to take over".into(),
            ));
        }
        Ok(Accepted::Apply)
    }

    /// Op `seq` is applied.
    pub fn applied(&mut self, seq: Seq) {
        debug_assert_eq!(seq, self.applied.next());
        self.applied = seq;
    }

    /// [`Op::ResyncEnd`] is applied: its sync may begin.
    pub fn all_moved(&mut self) {
        self.moving = false;
    }

    /// Everything up to `seq` is on stable storage.
    pub fn durable(&mut self, seq: Seq) {
        self.durable = self.durable.max(seq.min(self.applied));
    }

    /// The end of the resync is durable: the copy is up to date.
    pub fn resync_ended(&mut self) {
        self.syncing = false;
    }

    /// The receipt to send now, if there is anything new to tell.
    pub fn receipt(&mut self) -> Option<Receipt> {
        let now = (self.applied, self.durable);
        if now == self.told {
            return None;
        }
        self.told = now;
        Some(Receipt::Applied {
            applied: now.0,
            durable: now.1,
        })
    }
}

/// Whether an op needs a receipt of its own once it is on stable storage.
pub fn needs_sync(op: &Op) -> bool {
    match op {
        Op::Sync { .. } | Op::Checkpoint | Op::ResyncEnd | Op::Flush | Op::TakeOver => true,
        Op::Write { stability, .. } => *stability != Stability::Mode,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::FileId;
    use crate::primary::AckMode;
    use crate::time::Timestamp;

    fn op(seq: u64, op: Op) -> Sequenced {
        Sequenced {
            seq: Seq(seq),
            time: Timestamp::default(),
            op,
        }
    }

    fn started(first: u64) -> Secondary {
        let mut s = Secondary::new(SessionId(5));
        s.start(OpStreamStart {
            session: SessionId(5),
            first: Seq(first),
            mode: AckMode::Memory,
        })
        .unwrap();
        s
    }

    const SYNC: Op = Op::Sync {
        file: FileId::ROOT,
        data_only: false,
    };
    const CUT: Op = Op::Truncate {
        file: FileId::ROOT,
        size: 0,
        clear_privileges: false,
    };

    #[test]
    fn a_session_whose_stream_has_not_begun_is_none_to_go_on_with() {
        assert_eq!(Secondary::new(SessionId(5)).resumes_at(), None);
        assert_eq!(started(10).resumes_at(), Some((SessionId(5), Seq(9))));
    }

    #[test]
    fn ops_come_in_order_and_once() {
        let mut s = started(10);
        assert!(s.accept(&op(11, CUT)).is_err());
        assert_eq!(s.accept(&op(10, CUT)), Ok(Accepted::Apply));
        s.applied(Seq(10));
        assert!(s.accept(&op(10, CUT)).is_err());
        assert_eq!(s.accept(&op(10, SYNC)), Ok(Accepted::SyncAgain));
    }

    #[test]
    fn receipts_are_told_once_and_again_after_a_resume() {
        let mut s = started(1);
        s.applied(Seq(1));
        s.durable(Seq(9));
        let receipt = s.receipt().unwrap();
        assert_eq!(
            receipt,
            Receipt::Applied {
                applied: Seq(1),
                durable: Seq(1)
            }
        );
        assert_eq!(s.receipt(), None);
        s.start(OpStreamStart {
            session: SessionId(5),
            first: Seq(1),
            mode: AckMode::Memory,
        })
        .unwrap();
        assert_eq!(s.receipt(), Some(receipt));
    }

    #[test]
    fn a_resync_op_after_its_end_is_refused() {
        let mut s = started(1);
        assert!(s.accept(&op(1, Op::ResyncEnd)).is_ok());
        s.applied(Seq(1));
        s.all_moved();
        // Its sync has not ended, but nothing more can come.
        assert!(s.is_syncing() && !s.is_moving());
        assert!(s.accept(&op(2, Op::ResyncEnd)).is_err());
        assert_eq!(s.accept(&op(1, Op::ResyncEnd)), Ok(Accepted::SyncAgain));
        s.resync_ended();
        assert!(!s.is_syncing());
    }

    #[test]
    fn only_an_up_to_date_copy_is_asked_to_take_over() {
        let mut s = started(1);
        assert!(s.accept(&op(1, Op::TakeOver)).is_err());
        s.resync_ended();
        assert_eq!(s.accept(&op(1, Op::TakeOver)), Ok(Accepted::Apply));
        s.applied(Seq(1));
        // Asked again, because the primary did not hear that it was done.
        assert_eq!(s.accept(&op(1, Op::TakeOver)), Ok(Accepted::SyncAgain));
    }

    #[test]
    fn a_foreign_session_or_a_gap_is_refused() {
        let mut s = started(1);
        assert!(
            s.start(OpStreamStart {
                session: SessionId(6),
                first: Seq(1),
                mode: AckMode::Memory,
            })
            .is_err()
        );
        assert!(
            s.start(OpStreamStart {
                session: SessionId(5),
                first: Seq(3),
                mode: AckMode::Memory,
            })
            .is_err()
        );
    }
}
