use super::tests::{Bed, MS, now, sync, write};
use super::*;

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
        assert_eq!(bed.p.local_done(first, "write"), None);
        assert_eq!(bed.wire(), [first.0, second.0, end.0]);
        // It failed here only after the peer was asked.
        assert_eq!(bed.p.local_done(second, "sync"), None);
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
        assert_eq!(bed.p.local_done(first, "late"), Some("late"));
    }
}

#[test]
fn a_peer_that_is_lost_while_it_is_asked_is_waited_for_and_asked_again() {
    let mut bed = Bed::paired(AckMode::Memory);
    let written = bed.submit(write(0, 10)).seq.unwrap();
    let end = yields(&mut bed);
    assert_eq!(bed.p.local_done(written, "write"), None);
    bed.p.peer_lost(now(5), "cut");
    bed.p.tick(now(60_000));
    assert_eq!(bed.out(), (vec![], vec![]), "nobody goes on alone");
    assert!(!bed.p.go_alone(), "nor by a decision: the peer may have it");
    assert!(bed.p.can_resume(SessionId(1), written));
    bed.p.resume(now(60_001), written);
    bed.wire();
    bed.receipt(Receipt::Applied {
        applied: end,
        durable: Seq(0),
    });
    bed.out();
    bed.receipt(Receipt::Synced { seq: end });
    assert_eq!(bed.out().1, [Action::PeerTookOver]);
}

#[test]
fn a_peer_that_says_so_itself_has_taken_over() {
    let mut bed = Bed::paired(AckMode::Memory);
    let written = bed.submit(write(0, 10)).seq.unwrap();
    yields(&mut bed);
    assert_eq!(bed.p.local_done(written, "write"), None);
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
    assert_eq!(bed.p.local_done(written, "write"), None);
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
    assert_eq!(bed.p.local_done(first, "held"), None);
    bed.p.peer_left(false);
    assert_eq!(bed.out().1, [Action::MakeAlone]);
    assert_eq!(bed.p.forsake(), ["held"]);
    assert_eq!(bed.p.local_done(second, "late"), None);
    assert!(bed.out().0.is_empty());
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
    bed.p.tick(now(20_000));
    let actions = bed.out().1;
    assert!(
        matches!(actions[..], [Action::DropPeer { .. }]),
        "{actions:?}"
    );
    assert!(!bed.p.is_connected());
}
