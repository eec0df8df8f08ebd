//! How much may be in flight: what the peer gets done in a part of the deadline of an op.
//!
//! A peer that is brought up is shipped to, not waited for, and in mode `flush` none is. An
//! application that is faster than its peer would queue so much that the last of it is applied
//! after its deadline, and a peer that works without a pause would be dropped for being slow,
//! again and again. So writers wait as soon as the queue takes the peer longer than that part.

use std::time::Duration;

use crate::limits;
use crate::time::Instant;

/// What the peer has applied.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Done {
    pub(super) ops: u64,
    pub(super) bytes: usize,
}

/// What the peer has applied in this period and in the one before it.
#[derive(Debug)]
pub(super) struct Flow {
    period: Duration,
    began: Instant,
    this: Done,
    last: Done,
}

impl Flow {
    /// Nothing is known of a peer yet.
    pub(super) fn new(op: Duration, now: Instant) -> Flow {
        Flow {
            period: op / limits::FLOW_PERIODS,
            began: now,
            this: Done::default(),
            last: Done::default(),
        }
    }

    /// The peer has applied some more.
    pub(super) fn applied(&mut self, now: Instant, more: Done) {
        let age = now.since(self.began);
        if age >= self.period {
            self.last = match age < self.period * 2 {
                true => self.this,
                false => Done::default(),
            };
            self.this = Done::default();
            self.began = now;
        }
        self.this.ops += more.ops;
        self.this.bytes += more.bytes;
    }

    /// What may be in flight.
    pub(super) fn allowed(&self, now: Instant) -> Done {
        let age = now.since(self.began);
        let (this, last) = match age {
            _ if age < self.period => (self.this, self.last),
            _ if age < self.period * 2 => (self.this, Done::default()),
            _ => (Done::default(), Done::default()),
        };
        Done {
            ops: limits::MIN_IN_FLIGHT_OPS + this.ops + last.ops,
            bytes: limits::MIN_IN_FLIGHT_BYTES + this.bytes + last.bytes,
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::super::tests::{Bed, F, MS, now, sync, write};
    use super::super::*;
    use crate::op::Payload;
    use crate::wire::Receipt;

    /// A peer that takes 10 ms for an op, and this many of them for a megabyte.
    const SLOW: u64 = 10;

    /// Runs an application that never pauses, and a resync beside it, against a peer that
    /// applies an op in `cost(bytes)` ms, for a minute. Returns how long an op waited at most,
    /// and bytes of the resync that were applied.
    fn minute(mut bed: Bed, op: &dyn Fn() -> Op, cost: impl Fn(usize) -> u64) -> (Duration, u64) {
        let resyncs = bed.p.link() == Link::Syncing;
        let mut worst = Duration::ZERO;
        let mut queue = std::collections::VecDeque::new();
        let (mut busy_until, mut at) = (0, bed.at);
        while at < 60_000 {
            bed.at = at;
            let weight = op().weight();
            // The writers are many, and never pause.
            for _ in 0..200 {
                if bed.p.has_room(now(at), weight) {
                    bed.submit(op());
                }
            }
            while resyncs && bed.p.resync_room(now(at)) >= bed.p.resync_piece(now(at)) {
                let data = Bytes::from(vec![0; bed.p.resync_piece(now(at))]);
                let put = Op::PutData {
                    file: F,
                    offset: 0,
                    data: Payload::from(data),
                };
                bed.p.submit_resync(now(at), Timestamp::default(), put);
            }
            while let Some(next) = bed.p.next_op() {
                queue.push_back((at, next.seq.0, next.op.weight()));
            }
            while let Some(&(sent, seq, weight)) = queue.front() {
                let done = busy_until.max(sent) + cost(weight);
                if done > at {
                    break;
                }
                queue.pop_front();
                busy_until = done;
                worst = worst.max(Duration::from_millis(at - sent));
                bed.receipt(Receipt::Applied {
                    applied: Seq(seq),
                    durable: Seq(0),
                });
            }
            bed.p.tick(now(at));
            let (_, actions) = bed.out();
            assert_eq!(actions, [], "after {at} ms");
            at += 1;
        }
        (worst, bed.p.progress().moved_bytes)
    }

    fn syncing() -> Bed {
        let mut bed = Bed::alone(AckMode::Memory);
        bed.p.peer_ready(now(1), SessionId(1));
        bed
    }

    #[test]
    fn a_peer_that_is_brought_up_slowly_is_not_dropped_for_a_fast_application() {
        let op = || write(0, 100);
        let (worst, _) = minute(syncing(), &op, |bytes| SLOW + bytes as u64 / 2000);
        assert!(worst < Duration::from_millis(3500), "{worst:?} of 5 s");
    }

    #[test]
    fn a_resync_over_a_thin_line_is_not_dropped_and_goes_on_beside_the_application() {
        // Four megabits a second.
        let op = || write(0, 4096);
        let (worst, moved) = minute(syncing(), &op, |bytes| bytes as u64 / 500);
        assert!(worst < Duration::from_millis(3500), "{worst:?} of 5 s");
        assert!(moved > 2 << 20, "{moved} bytes in a minute");
    }

    /// What a resync has in flight is no reason for an application to wait.
    #[test]
    fn an_application_does_not_wait_for_room_that_a_resync_has_taken() {
        let mut bed = syncing();
        bed.at = 1000;
        while bed.p.resync_room(now(bed.at)) >= 4096 {
            let put = Op::PutData {
                file: F,
                offset: 0,
                data: Payload::from(Bytes::from_static(&[0; 4096])),
            };
            bed.p.submit_resync(now(bed.at), Timestamp::default(), put);
        }
        assert!(bed.p.in_flight().0 > limits::MIN_IN_FLIGHT_OPS);
        for _ in 0..limits::MIN_IN_FLIGHT_OPS {
            assert!(bed.p.has_room(now(bed.at), 1));
            bed.submit(write(0, 1));
        }
        assert!(!bed.p.has_room(now(bed.at), 1));
    }

    #[test]
    fn a_slow_peer_that_nobody_waits_for_is_not_dropped() {
        let bed = Bed::paired(AckMode::Flush);
        let (worst, _) = minute(bed, &|| write(0, 100), |_| SLOW);
        assert!(worst < Duration::from_millis(3500), "{worst:?} of 5 s");
    }

    #[test]
    fn a_fast_peer_is_given_as_much_as_there_is_room_for() {
        let mut bed = syncing();
        for at in 0..40 {
            bed.at = at;
            while bed.p.has_room(now(at), 1 << 20) {
                bed.submit(write(0, 1 << 20));
            }
            let last = bed.p.next_seq().0 - 1;
            if at < 39 {
                bed.applied(last);
            }
        }
        let most = limits::MAX_IN_FLIGHT_BYTES;
        assert!(bed.p.in_flight().1 > most - (2 << 20));
        // What it was a moment ago says nothing later.
        bed.at = 10_000;
        assert!(!bed.p.has_room(now(bed.at), 1));
    }

    /// What was let in before a peer was lost waits for the decision, and others do as before.
    #[test]
    fn a_lost_peer_takes_no_room_away() {
        let mut bed = Bed::paired(AckMode::Flush);
        for _ in 0..1000 {
            bed.submit(write(0, 1));
            let last = bed.wire()[0];
            bed.applied(last);
        }
        bed.p.peer_lost(now(bed.at), "cut");
        for _ in 0..limits::MIN_IN_FLIGHT_OPS + 100 {
            bed.submit(write(0, 1));
        }
        bed.submit(sync());
        assert!(bed.p.has_room(now(10 * MS), 1));
    }
}
