use super::tests::{Bed, MS, now, sync, write};
use super::*;
use crate::wire::Receipt;

fn yields(bed: &mut Bed) -> Seq {
    let end = bed.p.next_seq();
    assert!(bed.p.yield_to_peer(now(bed.at), Timestamp::default()));
    end
}

#[test]
fn nothing_is_acknowledged_by_the_peer_alone_before_it_took_over() {
    for mode in [AckMode::Memory, AckMode::Disk] {
        let mut bed = Bed::paired(mode);
        let first = bed.submit(write(0, 10)).seq.unwrap();
        let second = bed.submit(sync()).seq.unwrap();
        let end = yields(&mut bed);
        assert_eq!(bed.local_done(first, "write"), None);
        assert_eq!(bed.wire(), [first.0, second.0, end.0]);
        // It failed here only after the peer was asked.
        assert_eq!(bed.local_done(second, "sync"), None);
        bed.receipt(Receipt::Applied {
            applied: end,
            durable: end,
        });
        let acknowledged = bed.out().0;
        assert!(!acknowledged.contains(&"sync"), "{acknowledged:?}");
        bed.receipt(Receipt::Synced { seq: end });
        let (replies, actions) = bed.out();
        assert_eq!(
            [acknowledged, replies].concat(),
            ["write", "sync"],
            "{mode:?}"
        );
        assert_eq!(actions, [Action::PeerTookOver]);
        assert_eq!(bed.p.link(), Link::Yielded);
        // A vote that comes later waits for nobody.
        assert_eq!(bed.local_done(first, "late"), Some("late"));
    }
}

#[test]
fn a_peer_that_is_lost_while_it_is_asked_is_asked_again() {
    let mut bed = Bed::paired(AckMode::Memory);
    let written = bed.submit(write(0, 10)).seq.unwrap();
    let end = yields(&mut bed);
    assert_eq!(bed.local_done(written, "write"), None);
    bed.p.peer_lost(now(5), "cut");
    assert!(!bed.p.go_alone(), "the peer may have it");
    assert!(bed.p.can_resume(SessionId(1), written));
    bed.p.resume(now(6), written);
    bed.wire();
    bed.receipt(Receipt::Applied {
        applied: end,
        durable: Seq(0),
    });
    bed.out();
    bed.receipt(Receipt::Synced { seq: end });
    assert_eq!(bed.out().1, [Action::PeerTookOver]);
}

/// How long the answer of a peer that is asked is waited for, by the tests' configuration.
const PATIENCE: u64 = 10_000;

#[test]
fn what_waits_for_a_peer_that_does_not_come_back_is_given_back_in_time() {
    for mode in [AckMode::Memory, AckMode::Disk, AckMode::Flush] {
        let mut bed = Bed::paired(mode);
        let first = bed.submit(sync()).seq.unwrap();
        let second = bed.submit(sync()).seq.unwrap();
        let end = yields(&mut bed);
        assert_eq!(bed.local_done(first, "held"), None);
        bed.p.peer_lost(now(5), "cut");
        let at = bed.p.next_deadline().expect("every wait has a deadline");
        assert!(at <= now(bed.at + PATIENCE), "{at:?}");
        assert_eq!(bed.p.take_held(), [""; 0], "not before");
        bed.p.tick(at);
        assert_eq!(bed.out(), (vec![], vec![Action::HeirIsLate]), "{mode:?}");
        assert_eq!(bed.p.take_held(), ["held"]);
        // Nobody may take an error for a success later, nor wait.
        assert_eq!(bed.local_done(second, "late"), None);
        assert_eq!(bed.p.take_held(), [""; 0]);
        assert_eq!(bed.p.next_deadline(), None);
        assert!(
            !bed.p.go_alone(),
            "this copy is never worth more than the peer's"
        );

        // The peer comes back after all, and takes over: what was told stays told.
        assert!(bed.p.can_resume(SessionId(1), Seq(first.0 - 1)));
        bed.p.resume(now(60_000), Seq(first.0 - 1));
        assert_eq!(bed.wire(), [first.0, second.0, end.0]);
        bed.receipt(Receipt::Applied {
            applied: end,
            durable: end,
        });
        bed.receipt(Receipt::Synced { seq: end });
        assert_eq!(bed.out(), (vec![], vec![Action::PeerTookOver]));
    }
}

#[test]
fn a_peer_that_comes_and_goes_does_not_put_the_deadline_off() {
    let mut bed = Bed::paired(AckMode::Memory);
    let first = bed.submit(sync()).seq.unwrap();
    yields(&mut bed);
    assert_eq!(bed.local_done(first, "held"), None);
    let mut told = Vec::new();
    for at in (0..2 * PATIENCE).step_by(100) {
        if bed.p.is_connected() {
            bed.p.peer_lost(now(at), "cut");
        } else {
            bed.p.resume(now(at), first);
        }
        bed.p.tick(now(at));
        told.extend(bed.out().1);
    }
    told.retain(|action| *action == Action::HeirIsLate);
    assert_eq!(told.len(), 1, "said once");
    assert_eq!(bed.p.take_held(), ["held"]);
}

#[test]
fn a_peer_that_says_so_itself_has_taken_over() {
    let mut bed = Bed::paired(AckMode::Memory);
    let written = bed.submit(write(0, 10)).seq.unwrap();
    yields(&mut bed);
    assert_eq!(bed.local_done(written, "write"), None);
    bed.p.peer_lost(now(5), "its role changed");
    bed.p.peer_took_over();
    assert_eq!(bed.out(), (vec!["write"], vec![Action::PeerTookOver]));
    bed.p.peer_took_over();
    bed.p.peer_left(true);
    assert_eq!(bed.out(), (vec![], vec![]));
    assert_eq!(bed.p.link(), Link::Yielded);
}

#[test]
fn a_peer_that_cannot_take_over_leaves_this_node_alone() {
    let mut bed = Bed::paired(AckMode::Memory);
    let written = bed.submit(write(0, 10)).seq.unwrap();
    let end = yields(&mut bed);
    assert_eq!(bed.local_done(written, "write"), None);
    bed.receipt(Receipt::Failed {
        seq: end,
        reason: "its disk, too".into(),
    });
    let (replies, actions) = bed.out();
    assert!(replies.is_empty(), "not before that is durable");
    assert!(actions.contains(&Action::MakeAlone), "{actions:?}");
}

#[test]
fn a_node_that_cannot_go_alone_acknowledges_nothing_any_more() {
    let mut bed = Bed::paired(AckMode::Memory);
    let first = bed.submit(write(0, 10)).seq.unwrap();
    let second = bed.submit(write(10, 10)).seq.unwrap();
    assert_eq!(bed.local_done(first, "held"), None);
    bed.p.peer_left(false);
    assert_eq!(bed.out().1, [Action::MakeAlone]);
    assert_eq!(bed.p.forsake(), ["held"]);
    assert_eq!(bed.local_done(second, "late"), None);
    assert!(bed.out().0.is_empty());
    // One that had got past the fence: not acknowledged, and not waited for either.
    let third = bed.submit(write(20, 10)).seq.unwrap();
    assert_eq!(bed.local_done(third, "late"), None);
    assert!(bed.p.forsake().is_empty() && bed.out().0.is_empty());
    assert!(
        bed.p.has_room(now(bed.at), 1 << 30),
        "nobody waits for room"
    );
    assert!(!bed.p.peer_restarted());
    bed.p.peer_left(true);
    assert_eq!(bed.out().1, []);
}

#[test]
fn only_an_up_to_date_peer_is_asked() {
    let mut alone = Bed::alone(AckMode::Memory);
    assert!(!alone.p.yield_to_peer(now(1), Timestamp::default()));
    alone.p.peer_ready(now(1), SessionId(1));
    assert!(!alone.p.yield_to_peer(now(1), Timestamp::default()));
    let mut bed = Bed::paired(AckMode::Memory);
    bed.p.peer_lost(now(5), "cut");
    assert!(bed.p.can_yield(), "it may come back");
    bed.p.tick(Instant(5 * MS + 400 * MS));
    assert!(!bed.p.can_yield(), "it did not");
}

#[test]
fn a_peer_that_hangs_when_it_is_asked_is_dropped() {
    let mut bed = Bed::paired(AckMode::Memory);
    yields(&mut bed);
    bed.wire();
    let at = bed.p.next_deadline().unwrap();
    bed.p.tick(at);
    let actions = bed.out().1;
    assert!(
        matches!(actions[..], [Action::DropPeer { .. }]),
        "{actions:?}"
    );
    assert!(!bed.p.is_connected());
}
