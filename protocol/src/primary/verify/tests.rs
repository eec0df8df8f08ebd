use super::super::tests::{Bed, F, now, write};
use super::*;
use crate::primary::AckMode;
use crate::time::Timestamp;
use crate::wire::Receipt;

fn question() -> Question {
    Question::Object { file: F }
}

fn ask(bed: &mut Bed) -> Option<Seq> {
    let at = now(bed.at);
    bed.p.submit_verify(at, Timestamp::default(), question())
}

fn answer(seq: Seq) -> Receipt {
    let found = Found::Missing;
    Receipt::Verified { seq, found }
}

fn differ(bed: &mut Bed) {
    let at = now(bed.at);
    bed.p.differs(at, Timestamp::default(), question(), |map| {
        map.mark_data(F, 4096, 4096);
    });
}

#[test]
fn a_question_has_its_place_in_the_order_and_leaves_no_mark() {
    let mut bed = Bed::paired(AckMode::Memory);
    let before = bed.submit(write(0, 1)).seq.unwrap();
    let asked = ask(&mut bed).unwrap();
    let after = bed.submit(write(0, 1)).seq.unwrap();
    assert_eq!(bed.wire(), [before.0, asked.0, after.0]);
    bed.applied(before.0);
    let marked = bed.p.unflushed_counts();
    bed.applied(asked.0);
    assert_eq!(bed.p.unflushed_counts(), marked);
    bed.receipt(answer(asked));
    let found = Found::Missing;
    assert_eq!(bed.out().1, [Action::Verified { seq: asked, found }]);
}

#[test]
fn only_a_peer_that_is_up_to_date_is_asked_and_not_too_much_at_once() {
    let mut bed = Bed::alone(AckMode::Memory);
    assert_eq!(ask(&mut bed), None);
    let mut bed = Bed::paired(AckMode::Memory);
    let asked: Vec<_> = (0..limits::MAX_VERIFYING)
        .map(|_| ask(&mut bed).unwrap())
        .collect();
    assert_eq!(ask(&mut bed), None);
    bed.wire();
    bed.receipt(answer(asked[0]));
    assert!(ask(&mut bed).is_some());
    bed.p.peer_lost(now(2), "cut");
    assert_eq!(ask(&mut bed), None);
}

#[test]
fn an_answer_nobody_asked_for_or_out_of_order_breaks_the_protocol() {
    let mut bed = Bed::paired(AckMode::Memory);
    let first = ask(&mut bed).unwrap();
    let second = ask(&mut bed).unwrap();
    bed.wire();
    assert!(bed.p.receipt(now(1), answer(second)).is_err());
    bed.receipt(answer(first));
    bed.receipt(answer(second));
    assert!(bed.p.receipt(now(1), answer(second)).is_err());
}

#[test]
fn an_answer_that_was_lost_with_a_connection_is_reported_and_one_never_asked_is_asked() {
    let mut bed = Bed::paired(AckMode::Memory);
    let lost = ask(&mut bed).unwrap();
    let unsent = ask(&mut bed).unwrap();
    bed.wire();
    bed.p.peer_lost(now(2), "cut");
    bed.p.resume(now(3), lost);
    assert_eq!(bed.out().1, [Action::Unanswered { seq: lost }]);
    assert_eq!(bed.wire(), [unsent.0]);
    bed.receipt(answer(unsent));
}

#[test]
fn what_differs_outlives_every_checkpoint_and_is_moved_when_the_session_ends() {
    let mut bed = Bed::paired(AckMode::Memory);
    differ(&mut bed);
    assert_eq!(bed.wire().len(), 1, "the peer is told");
    for _ in 0..3 {
        assert!(bed.p.begin_checkpoint(now(5), Timestamp::default()));
        let seq = *bed.wire().last().unwrap();
        bed.p.checkpoint_flushed();
        bed.applied(seq);
        bed.receipt(Receipt::Synced { seq: Seq(seq) });
    }
    assert_eq!(bed.out().1, vec![Action::CheckpointDone; 3]);
    assert_eq!(bed.p.differing().block_bytes(), 4096);
    // The peer flushed all it has, and that is still not what is here.
    bed.p.peer_left(true);
    bed.p.alone_is_durable();
    assert!(bed.p.differing().is_empty());
    assert_eq!(bed.p.dirty().block_bytes(), 4096);
}

#[test]
fn nothing_is_copied_there_out_of_what_differs() {
    let mut bed = Bed::paired(AckMode::Memory);
    assert!(bed.p.peer_can_copy(F));
    differ(&mut bed);
    assert!(!bed.p.peer_can_copy(F));
    assert!(bed.p.peer_can_copy(crate::ids::FileId(F.0 + 1)));
    // Nor out of what a change has failed in here.
    let mut bed = Bed::paired(AckMode::Memory);
    bed.p.failed_here(&write(0, 1), 0);
    assert!(!bed.p.peer_can_copy(F));
    // So much differs that it is not told apart.
    let mut bed = Bed::paired(AckMode::Memory);
    let at = now(bed.at);
    bed.p.differs(
        at,
        Timestamp::default(),
        question(),
        DirtyMap::mark_everything,
    );
    assert!(!bed.p.peer_can_copy(F));
}
