use std::time::Duration;

use bytes::Bytes;

use super::*;
use crate::op::{Name, NewObject, Payload};
use crate::wire::Receipt;

pub(super) const F: FileId = FileId(100);
pub(super) const MS: u64 = 1_000_000;

fn config(mode: AckMode) -> Config {
    Config {
        mode,
        stall: Duration::from_millis(1000),
        op: Duration::from_millis(5000),
        sync: Duration::from_millis(8000),
        bridge: Duration::from_millis(300),
    }
}

pub(super) fn write(offset: u64, len: usize) -> Op {
    Op::Write {
        file: F,
        offset,
        stability: Stability::Mode,
        clear_privileges: false,
        data: Payload::from(Bytes::from(vec![7; len])),
    }
}

pub(super) fn sync() -> Op {
    Op::Sync {
        file: F,
        data_only: false,
    }
}

pub(super) fn now(ms: u64) -> Instant {
    Instant(ms * MS)
}

pub(super) struct Bed {
    pub(super) p: Primary<&'static str>,
    pub(super) at: u64,
}

impl Bed {
    pub(super) fn alone(mode: AckMode) -> Bed {
        Bed {
            p: Primary::new(config(mode), DirtyMap::default()),
            at: 1,
        }
    }

    pub(super) fn paired(mode: AckMode) -> Bed {
        let mut bed = Bed::alone(mode);
        bed.p.peer_ready(now(1), SessionId(1));
        let end = bed.p.finish_resync(now(1), Timestamp::default()).unwrap();
        bed.wire();
        bed.applied(end.0);
        bed.receipt(Receipt::Synced { seq: end });
        assert_eq!(bed.p.link(), Link::Paired);
        assert_eq!(bed.out().1, [Action::PeerIsCurrent]);
        bed
    }

    pub(super) fn submit(&mut self, op: Op) -> Submitted {
        self.p.submit(now(self.at), Timestamp::default(), op, 0)
    }

    pub(super) fn local_done(&mut self, seq: Seq, reply: &'static str) -> Option<&'static str> {
        self.p.local_done(now(self.at), seq, reply)
    }

    pub(super) fn wire(&mut self) -> Vec<u64> {
        std::iter::from_fn(|| self.p.next_op())
            .map(|s| s.seq.0)
            .collect()
    }

    pub(super) fn receipt(&mut self, r: Receipt) {
        self.p.receipt(now(self.at), r).unwrap();
    }

    pub(super) fn applied(&mut self, seq: u64) {
        self.receipt(Receipt::Applied {
            applied: Seq(seq),
            durable: Seq(0),
        });
    }

    pub(super) fn marked(&self) -> DirtyMap {
        let mut all = self.p.dirty().clone();
        all.unite(self.p.suspect().clone());
        all
    }

    pub(super) fn out(&mut self) -> (Vec<&'static str>, Vec<Action>) {
        let (mut r, mut a) = (Vec::new(), Vec::new());
        self.p.drain(&mut r, &mut a);
        (r, a)
    }
}

#[test]
fn alone_needs_nobody_and_marks() {
    let mut bed = Bed::alone(AckMode::Memory);
    assert_eq!(
        bed.submit(write(8192, 10)),
        Submitted {
            seq: None,
            output: false
        }
    );
    assert_eq!(bed.p.dirty().block_bytes(), 4096);
}

#[test]
fn a_reply_waits_for_both_votes_in_either_order() {
    let mut bed = Bed::paired(AckMode::Memory);
    let a = bed.submit(write(0, 1)).seq.unwrap();
    let b = bed.submit(write(0, 1)).seq.unwrap();
    assert_eq!(bed.wire(), [a.0, b.0]);
    assert_eq!(bed.local_done(a, "a"), None);
    bed.applied(b.0);
    assert_eq!(bed.out().0, ["a"]);
    assert_eq!(bed.local_done(b, "b"), Some("b"));
    assert_eq!(bed.p.in_flight(), (0, 0));
}

#[test]
fn a_sync_waits_for_its_own_receipt_and_later_writes_do_not() {
    let mut bed = Bed::paired(AckMode::Memory);
    let s = bed.submit(sync()).seq.unwrap();
    let w = bed.submit(write(0, 1)).seq.unwrap();
    bed.wire();
    assert_eq!(bed.local_done(s, "sync"), None);
    assert_eq!(bed.local_done(w, "write"), None);
    bed.applied(w.0);
    assert_eq!(bed.out().0, ["write"]);
    bed.receipt(Receipt::Synced { seq: s });
    assert_eq!(bed.out().0, ["sync"]);
}

#[test]
fn disk_mode_waits_for_stable_storage() {
    let mut bed = Bed::paired(AckMode::Disk);
    let w = bed.submit(write(0, 1)).seq.unwrap();
    bed.wire();
    bed.local_done(w, "w");
    bed.applied(w.0);
    assert!(bed.out().0.is_empty());
    bed.receipt(Receipt::Applied {
        applied: w,
        durable: w,
    });
    assert_eq!(bed.out().0, ["w"]);
}

#[test]
fn what_nobody_waits_for_may_linger_and_nothing_else() {
    let mut bed = Bed::paired(AckMode::Flush);
    assert!(bed.submit(write(0, 1)).seq.is_none());
    assert!(bed.p.may_linger());
    bed.submit(sync());
    assert!(!bed.p.may_linger());
    // Once it is on its way, what comes behind it may.
    bed.wire();
    bed.submit(write(0, 1));
    assert!(bed.p.may_linger());
    for n in 1..limits::MAX_LINGERING_OPS {
        assert!(bed.p.may_linger(), "{n} wait");
        bed.submit(write(n * 8192, 1));
    }
    assert!(!bed.p.may_linger());
    for mode in [AckMode::Memory, AckMode::Disk] {
        let mut bed = Bed::paired(mode);
        bed.submit(write(0, 1));
        assert!(!bed.p.may_linger());
    }
}

#[test]
fn flush_mode_writes_do_not_wait_but_syncs_do() {
    let mut bed = Bed::paired(AckMode::Flush);
    let w = bed.submit(write(0, 1));
    assert_eq!(
        w,
        Submitted {
            seq: None,
            output: true
        }
    );
    assert!(bed.submit(sync()).seq.is_some());
    assert_eq!(bed.wire().len(), 2);
}

#[test]
fn nothing_is_acknowledged_between_the_loss_and_the_durable_decision() {
    let mut bed = Bed::paired(AckMode::Memory);
    let w = bed.submit(write(4096, 1)).seq.unwrap();
    bed.wire();
    bed.local_done(w, "w");
    bed.p.peer_lost(now(10), "cut");
    let x = bed.submit(write(0, 1)).seq.unwrap();
    bed.local_done(x, "x");
    assert!(bed.out().0.is_empty());
    bed.p.tick(now(311));
    assert_eq!(bed.p.link(), Link::Holding);
    assert!(matches!(bed.out().1[..], [Action::AskToGoAlone { .. }]));
    assert!(bed.p.go_alone());
    let (replies, actions) = bed.out();
    assert!(replies.is_empty());
    assert_eq!(actions, [Action::MakeAlone]);
    bed.p.alone_is_durable();
    assert_eq!(bed.out().0, ["w", "x"]);
    assert_eq!(bed.marked().block_bytes(), 8192);
}

#[test]
fn a_local_vote_after_the_peer_is_gone_replies_at_once() {
    let mut bed = Bed::paired(AckMode::Memory);
    let w = bed.submit(write(0, 1)).seq.unwrap();
    bed.p.peer_left(false);
    bed.p.alone_is_durable();
    assert_eq!(bed.local_done(w, "w"), Some("w"));
}

#[test]
fn what_the_peer_applied_but_did_not_flush_is_dirty_after_a_loss() {
    let mut bed = Bed::paired(AckMode::Memory);
    let w = bed.submit(write(0, 1)).seq.unwrap();
    bed.wire();
    bed.local_done(w, "w");
    bed.applied(w.0);
    assert!(bed.p.dirty().is_empty());
    bed.p.peer_lost(now(1), "cut");
    bed.p.go_alone();
    bed.p.alone_is_durable();
    assert_eq!(bed.marked().block_bytes(), 4096);
}

#[test]
fn a_flushed_leave_leaves_only_what_was_not_applied_dirty() {
    let mut bed = Bed::paired(AckMode::Memory);
    let a = bed.submit(write(0, 1)).seq.unwrap();
    bed.submit(write(8192, 1));
    bed.wire();
    bed.applied(a.0);
    bed.p.peer_left(true);
    bed.p.alone_is_durable();
    assert_eq!(bed.marked().block_bytes(), 4096);
    let mut dirty = bed.marked();
    assert_eq!(dirty.take_run(F, 9, 1 << 20), Some((8192, 4096)));
}

#[test]
fn a_checkpoint_drops_marks_made_before_it_and_keeps_later_ones() {
    let mut bed = Bed::paired(AckMode::Memory);
    let a = bed.submit(write(0, 1)).seq.unwrap();
    assert!(bed.p.begin_checkpoint(now(1), Timestamp::default()));
    let b = bed.submit(write(8192, 1)).seq.unwrap();
    bed.wire();
    bed.applied(b.0);
    bed.p.checkpoint_flushed();
    assert_eq!(bed.p.unflushed_counts().0, 2);
    bed.receipt(Receipt::Synced { seq: a.next() });
    assert!(bed.out().1.contains(&Action::CheckpointDone));
    bed.p.peer_lost(now(1), "cut");
    bed.p.go_alone();
    bed.p.alone_is_durable();
    let mut dirty = bed.marked();
    assert_eq!(dirty.take_run(F, 9, 1 << 20), Some((8192, 4096)));
    assert_eq!(dirty.take_run(F, 9, 1 << 20), None);
}

#[test]
fn a_checkpoint_that_fails_here_makes_way_for_the_next_one_and_keeps_its_marks() {
    let mut bed = Bed::paired(AckMode::Memory);
    let a = bed.submit(write(0, 1)).seq.unwrap();
    assert!(bed.p.begin_checkpoint(now(1), Timestamp::default()));
    bed.wire();
    bed.local_done(a, "a");
    bed.applied(a.0 + 1);
    bed.p.checkpoint_failed();
    bed.receipt(Receipt::Synced { seq: a.next() });
    assert!(!bed.p.checkpoint_runs());
    assert_eq!(bed.out(), (vec!["a"], vec![]), "nothing has ended");
    assert_eq!(bed.p.unflushed_counts().0, 1);
    assert!(bed.p.begin_checkpoint(now(2), Timestamp::default()));
    let again = bed.wire()[0];
    bed.applied(again);
    bed.receipt(Receipt::Synced { seq: Seq(again) });
    bed.p.checkpoint_flushed();
    assert_eq!(bed.out().1, [Action::CheckpointDone]);
    assert_eq!(bed.p.unflushed_counts().0, 0);
}

#[test]
fn a_short_outage_resends_only_what_was_not_applied() {
    let mut bed = Bed::paired(AckMode::Memory);
    let a = bed.submit(write(0, 1)).seq.unwrap();
    let s = bed.submit(sync()).seq.unwrap();
    let b = bed.submit(write(8, 1)).seq.unwrap();
    bed.wire();
    bed.local_done(a, "a");
    bed.p.peer_lost(now(5), "cut");
    assert!(!bed.p.can_resume(SessionId(2), a));
    assert!(!bed.p.can_resume(SessionId(1), b.next()));
    assert!(bed.p.can_resume(SessionId(1), s));
    bed.p.resume(now(6), s);
    assert_eq!(bed.p.link(), Link::Paired);
    assert_eq!(bed.out().0, ["a"]);
    assert_eq!(
        bed.wire(),
        [s.0, b.0],
        "the unconfirmed sync is asked for again"
    );
}

#[test]
fn a_synced_write_is_not_written_again_by_a_resend() {
    let mut bed = Bed::paired(AckMode::Memory);
    let op = Op::Write {
        file: F,
        offset: 0,
        stability: Stability::Data,
        clear_privileges: false,
        data: Payload::from(Bytes::from_static(b"x")),
    };
    let w = bed.submit(op).seq.unwrap();
    bed.wire();
    bed.p.peer_lost(now(5), "cut");
    bed.p.resume(now(6), w);
    let again = bed.p.next_op().unwrap();
    assert_eq!(again.seq, w);
    assert_eq!(
        again.op,
        Op::Sync {
            file: F,
            data_only: true
        }
    );
}

#[test]
fn a_frozen_peer_is_dropped_and_a_slow_one_is_not() {
    let mut bed = Bed::paired(AckMode::Memory);
    bed.at = 100;
    for i in 0..10 {
        bed.submit(write(i, 1));
    }
    let first = bed.wire()[0];
    bed.at = 1000;
    bed.applied(first);
    bed.p.tick(now(1150));
    assert_eq!(bed.p.link(), Link::Paired, "progress is liveness");
    assert_eq!(bed.p.next_deadline(), Some(now(2000)));
    bed.p.tick(now(2000));
    assert_eq!(bed.p.link(), Link::Holding);
    let actions = bed.out().1;
    assert!(
        matches!(
            actions[..],
            [Action::DropPeer { .. }, Action::AskToGoAlone { .. }]
        ),
        "{actions:?}"
    );
}

#[test]
fn a_sync_that_never_ends_drops_the_peer() {
    let mut bed = Bed::paired(AckMode::Memory);
    let s = bed.submit(sync()).seq.unwrap();
    bed.wire();
    bed.local_done(s, "sync");
    bed.applied(s.0);
    bed.p.tick(now(8000));
    assert_eq!(bed.p.link(), Link::Paired);
    bed.p.tick(now(8001));
    assert_eq!(bed.p.link(), Link::Holding);
}

#[test]
fn lies_in_receipts_are_noticed() {
    let mut bed = Bed::paired(AckMode::Memory);
    let w = bed.submit(write(0, 1)).seq.unwrap();
    for (applied, durable) in [(w.0 + 1, 0), (w.0, w.0 + 1)] {
        let lie = Receipt::Applied {
            applied: Seq(applied),
            durable: Seq(durable),
        };
        assert!(bed.p.receipt(now(1), lie).is_err());
    }
    assert!(bed.p.receipt(now(1), Receipt::Synced { seq: w }).is_err());
}

fn create(name: &str, file: u64) -> Op {
    create_in(FileId::ROOT, name, file)
}

fn create_in(parent: FileId, name: &str, file: u64) -> Op {
    Op::Create {
        parent,
        name: Name::new(name.as_bytes()).unwrap(),
        object: NewObject {
            file: FileId(file),
            kind: crate::attr::Kind::Regular,
            target: Bytes::new(),
            mode: 0o644,
            umask: 0,
            uid: 0,
            gid: 0,
        },
    }
}

#[test]
fn while_syncing_only_what_the_peer_can_do_is_shipped() {
    let mut bed = Bed::alone(AckMode::Memory);
    bed.submit(create("new", 200));
    bed.p.peer_ready(now(1), SessionId(1));
    // The peer has neither the name nor the file yet.
    let mut op = write(0, 1);
    if let Op::Write { file, .. } = &mut op {
        *file = FileId(200);
    }
    bed.submit(op.clone());
    bed.submit(create("new", 201));
    assert!(bed.wire().is_empty());
    // Another name of the same directory is fine, and so is a file the peer has.
    bed.submit(create("other", 202));
    bed.submit(write(0, 1));
    assert_eq!(bed.wire().len(), 2);
    assert!(bed.p.finish_resync(now(1), Timestamp::default()).is_none());
    // The directory's names are moved: what follows on them is shipped.
    assert!(matches!(
        bed.p.take_names(FileId::ROOT),
        Some(Names::Some(_))
    ));
    let object = |file| crate::op::Object {
        file: FileId(file),
        kind: crate::attr::Kind::Regular,
        target: Bytes::new(),
        mode: 0,
        uid: 0,
        gid: 0,
        size: 0,
        accessed: Timestamp::default(),
        modified: Timestamp::default(),
    };
    let put = Op::PutDirectory {
        directory: FileId::ROOT,
        listing: crate::op::Listing::Names,
        entries: vec![crate::op::PutEntry {
            name: Name::new(b"new").unwrap(),
            object: Some(object(200)),
        }],
    };
    assert!(bed.p.submit_resync(now(1), Timestamp::default(), put));
    bed.submit(op);
    assert_eq!(bed.wire().len(), 2);
}

use crate::marks::Names;
use crate::op::XattrMode;

/// Whether the attribute is there decides what comes of these, and the peer may have others.
#[test]
fn an_attribute_is_not_removed_there_before_the_object_has_its_attributes() {
    let xattr = |mode| Op::SetXattr {
        file: F,
        name: Bytes::from_static(b"user.a"),
        value: Bytes::new(),
        mode,
    };
    let remove = Op::RemoveXattr {
        file: F,
        name: Bytes::from_static(b"user.a"),
    };
    let mut bed = Bed::alone(AckMode::Memory);
    bed.submit(xattr(XattrMode::Either));
    bed.p.peer_ready(now(1), SessionId(1));
    for op in [
        remove.clone(),
        xattr(XattrMode::Create),
        xattr(XattrMode::Replace),
    ] {
        bed.submit(op.clone());
        assert!(bed.wire().is_empty(), "{op:?}");
    }
    bed.submit(xattr(XattrMode::Either));
    assert_eq!(bed.wire().len(), 1);
    assert!(bed.p.take_attributes(F));
    bed.submit(remove);
    bed.submit(xattr(XattrMode::Create));
    assert_eq!(bed.wire().len(), 2);
}

#[test]
fn marks_survive_a_resync_that_breaks_off() {
    let mut bed = Bed::alone(AckMode::Memory);
    bed.submit(write(0, 4096));
    bed.submit(write(40960, 4096));
    let before = bed.marked().block_bytes();
    bed.p.peer_ready(now(1), SessionId(1));
    let (offset, length) = bed.p.take_run(F, 1, 1 << 20).unwrap();
    let put = Op::PutData {
        file: F,
        offset,
        data: Payload::from(Bytes::from(vec![0; length as usize])),
    };
    bed.p.submit_resync(now(1), Timestamp::default(), put);
    let seq = bed.wire()[0];
    bed.applied(seq);
    assert_eq!(bed.p.progress().moved_bytes, 4096);
    bed.p.peer_lost(now(2), "cut");
    assert_eq!(bed.p.link(), Link::Alone);
    assert_eq!(bed.marked().block_bytes(), before);
}

/// A resync beside a peer that has just shown that it is fast.
fn syncing_fast() -> Bed {
    let mut bed = Bed::alone(AckMode::Memory);
    bed.p.peer_ready(now(1), SessionId(1));
    bed.at = 900;
    for _ in 0..8 {
        bed.submit(write(0, 1 << 20));
    }
    let last = bed.wire()[7];
    bed.applied(last);
    bed
}

#[test]
fn resync_makes_way_for_the_application() {
    let mut bed = syncing_fast();
    assert_eq!(bed.p.resync_room(now(1000)), limits::RESYNC_WINDOW_IDLE);
    bed.at = 1000;
    bed.submit(write(0, 1));
    assert_eq!(bed.p.resync_room(now(1001)), limits::RESYNC_WINDOW_BUSY);
    // There is room for a piece at any time, or a resync would not end under load.
    assert!(bed.p.resync_piece(now(1001)) <= limits::RESYNC_WINDOW_BUSY);
    let quiet = now(1000 + limits::RESYNC_BUSY_FOR.as_millis() as u64);
    assert_eq!(bed.p.resync_piece(quiet), limits::RESYNC_CHUNK);
}

/// The times of what a resync moves are shipped several times a second: it would make way for
/// itself half of the time.
#[test]
fn resync_does_not_make_way_for_the_times_of_what_it_moves() {
    let mut bed = syncing_fast();
    bed.at = 1000;
    let shipped = bed.submit(Op::Times {
        file: F,
        accessed: Timestamp::default(),
        modified: Timestamp::default(),
    });
    assert!(shipped.output);
    assert_eq!(bed.p.resync_room(now(1001)), limits::RESYNC_WINDOW_IDLE);
    assert_eq!(bed.p.resync_piece(now(1001)), limits::RESYNC_CHUNK);
}

#[test]
fn a_failure_of_the_peer_is_not_a_failure_of_the_application() {
    let mut bed = Bed::paired(AckMode::Memory);
    let w = bed.submit(write(0, 1)).seq.unwrap();
    bed.wire();
    bed.local_done(w, "w");
    bed.receipt(Receipt::Failed {
        seq: w,
        reason: "no space".into(),
    });
    let (replies, actions) = bed.out();
    assert!(replies.is_empty());
    assert!(actions.contains(&Action::MakeAlone));
    bed.p.alone_is_durable();
    assert_eq!(bed.out().0, ["w"]);
}

#[test]
fn nothing_is_remembered_once_everything_is_settled() {
    let mut bed = Bed::paired(AckMode::Memory);
    assert_eq!(bed.p.remembered(), 0, "the end of the resync");
    assert!(bed.p.begin_checkpoint(now(1), Timestamp::default()));
    let w = bed.submit(write(0, 1)).seq.unwrap();
    let seqs = bed.wire();
    bed.local_done(w, "w");
    bed.applied(w.0);
    bed.receipt(Receipt::Synced { seq: Seq(seqs[0]) });
    bed.p.checkpoint_flushed();
    assert_eq!(bed.out().1, [Action::CheckpointDone]);
    assert_eq!(bed.p.remembered(), 0);
}

#[test]
fn a_vote_of_an_earlier_term_answers_nobody() {
    let mut bed = Bed::paired(AckMode::Memory);
    let s = bed.submit(sync()).seq.unwrap();
    bed.wire();
    bed.p = bed.p.next_term();
    assert_eq!(bed.local_done(s, "sync"), None);
    bed.p.peer_ready(now(1), SessionId(2));
    let end = bed.p.finish_resync(now(1), Timestamp::default()).unwrap();
    assert!(end > s, "numbers go on");
    assert_eq!(bed.local_done(s, "sync"), None);
    assert_eq!(bed.out().0, [""; 0]);
}

#[test]
fn a_peer_that_comes_back_without_its_session_ends_the_wait() {
    for held in [false, true] {
        let mut bed = Bed::paired(AckMode::Memory);
        let w = bed.submit(write(0, 1)).seq.unwrap();
        bed.wire();
        bed.local_done(w, "w");
        if held {
            bed.p.peer_lost(now(1), "cut");
            bed.p.tick(now(400));
            assert_eq!(bed.p.link(), Link::Holding);
            bed.out();
        }
        assert!(bed.p.peer_restarted());
        assert!(!bed.p.peer_restarted(), "once");
        assert_eq!(bed.out(), (vec![], vec![Action::MakeAlone]));
        bed.p.alone_is_durable();
        assert_eq!(bed.out().0, ["w"]);
        assert!(!bed.p.peer_restarted(), "there is no session");
    }
}

/// The source cut the file while it was alone. The resync breaks off behind the op that
/// cuts it there, which the peer may never have got; then the file grows again.
#[test]
fn what_a_resync_was_about_to_cut_off_stays_marked() {
    for flushed in [false, true] {
        let mut bed = Bed::alone(AckMode::Memory);
        let cut = Op::Truncate {
            file: F,
            size: 4096,
            clear_privileges: false,
        };
        bed.p.submit(now(1), Timestamp::default(), cut, 5 * 4096);
        bed.p.peer_ready(now(1), SessionId(1));
        let object = crate::op::Object {
            file: F,
            kind: crate::attr::Kind::Regular,
            target: Bytes::new(),
            mode: 0o600,
            uid: 0,
            gid: 0,
            size: 4096,
            accessed: Timestamp::default(),
            modified: Timestamp::default(),
        };
        bed.p.take_attributes(F);
        let put = Op::PutObject {
            object,
            xattrs: Vec::new(),
        };
        assert!(bed.p.submit_resync(now(1), Timestamp::default(), put));
        assert_eq!(bed.p.take_run(F, 100, 4096), None);
        if flushed {
            bed.p.peer_left(true);
        } else {
            bed.p.peer_lost(now(1), "cut");
        }
        assert_eq!(bed.p.link(), Link::Alone);
        let marks = bed.marked();
        let spans = marks.object(F).unwrap().blocks.spans(0);
        assert_eq!(spans, [(4096, 4 * 4096)], "flushed: {flushed}");
    }
}

/// The store there lets what is new inherit from its directory: the default ACL, the group.
#[test]
fn what_is_made_where_the_attributes_are_not_moved_yet_gets_its_own_moved() {
    let (old, right) = (FileId(1), FileId(2));
    let mut bed = Bed::alone(AckMode::Memory);
    bed.p.mark(|map| map.mark_attributes(old));
    bed.p.peer_ready(now(1), SessionId(1));
    bed.submit(create_in(old, "x", 10));
    bed.submit(create_in(right, "y", 11));
    assert_eq!(bed.wire().len(), 2, "both are shipped");
    assert!(bed.p.dirty().object(FileId(10)).unwrap().attributes);
    assert!(bed.p.dirty().object(FileId(11)).is_none());
    // A directory among them passes on what it got itself.
    bed.submit(create_in(FileId(10), "z", 12));
    assert!(bed.p.dirty().object(FileId(12)).unwrap().attributes);
}
