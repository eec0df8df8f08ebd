//! A peer that is brought up flushes on the way.
//!
//! Its kernel may keep tens of gigabytes that it has not written, on a disk that takes minutes
//! for them. Were they flushed at the end of the resync only, the application's first syncs
//! would wait for all of it, and a crash of the peer would cost everything moved so far. While
//! it is brought up nobody waits for it.

use std::time::Duration;

use super::{Link, Primary, Vote};
use crate::ids::Seq;
use crate::limits;
use crate::op::Op;
use crate::time::{Instant, Timestamp};

/// What the peer was asked to flush in this session.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Flushing {
    /// The op that asks, and when it was submitted.
    runs: Option<(Seq, Instant)>,
    /// Bytes submitted since the last one that asked.
    bytes: u64,
    /// How long the last one took that ended.
    took: Duration,
}

impl Flushing {
    pub(super) fn submitted(&mut self, bytes: usize) {
        self.bytes += bytes as u64;
    }

    /// What it waits for, and since when.
    pub(super) fn runs(&self) -> Option<(Seq, Instant)> {
        self.runs
    }

    /// Op `seq` is on stable storage. False when that was no flush.
    pub(super) fn ended(&mut self, now: Instant, seq: Seq) -> bool {
        match self.runs {
            Some((asked, since)) if asked == seq => {
                self.runs = None;
                self.took = now.since(since);
                true
            }
            _ => false,
        }
    }

    /// So much is not flushed that no more is moved before.
    pub(super) fn is_behind(&self) -> bool {
        self.runs.is_some() && self.bytes >= limits::RESYNC_FLUSH_EVERY
    }
}

impl<R> Primary<R> {
    /// Whether the peer that is brought up shall begin to flush.
    pub fn flush_is_due(&self) -> bool {
        self.link == Link::Syncing
            && self.flushing.runs.is_none()
            && self.flushing.bytes >= limits::RESYNC_FLUSH_EVERY
    }

    /// The same at the end of a resync: whether there is anything worth it.
    pub fn flush_is_worth_it(&self) -> bool {
        self.link == Link::Syncing
            && self.flushing.runs.is_none()
            && self.flushing.bytes >= limits::RESYNC_FLUSH_LEAST
    }

    /// Asks it to flush what it has got so far, unless it does so already. Resync goes on.
    pub fn begin_flush(&mut self, now: Instant, time: Timestamp) {
        if self.link != Link::Syncing || self.flushing.runs.is_some() {
            return;
        }
        let seq = self.push(now, time, Op::Flush, 0, Vote::None);
        self.flushing.runs = Some((seq, now));
        self.flushing.bytes = 0;
    }

    /// Whether it flushes.
    pub fn flush_runs(&self) -> bool {
        self.flushing.runs.is_some()
    }

    /// Whether the last flush was short enough that an application can wait for another one.
    pub fn flush_was_short(&self) -> bool {
        self.flushing.took < self.config.sync / 4
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::super::tests::{Bed, F, now, sync};
    use super::super::*;
    use super::*;
    use crate::op::Payload;
    use crate::wire::Receipt;

    const CHUNK: usize = 1 << 20;

    fn syncing() -> Bed {
        let mut bed = Bed::alone(AckMode::Memory);
        bed.p.peer_ready(now(1), SessionId(1));
        bed
    }

    fn put(bed: &mut Bed) {
        let op = Op::PutData {
            file: F,
            offset: 0,
            data: Payload::from(Bytes::from(vec![0; CHUNK])),
        };
        let at = now(bed.at);
        assert!(bed.p.submit_resync(at, Timestamp::default(), op));
        let last = *bed.wire().last().unwrap();
        bed.applied(last);
    }

    fn begin(bed: &mut Bed) -> Seq {
        let seq = bed.p.next_seq();
        bed.p.begin_flush(now(bed.at), Timestamp::default());
        assert!(bed.p.flush_runs());
        bed.wire();
        bed.applied(seq.0);
        seq
    }

    #[test]
    fn a_flush_is_asked_for_once_in_a_while_and_resync_goes_on_until_another_is_due() {
        let mut bed = syncing();
        let chunks = limits::RESYNC_FLUSH_EVERY / CHUNK as u64;
        for _ in 0..chunks {
            assert!(!bed.p.flush_is_due());
            put(&mut bed);
        }
        assert!(bed.p.flush_is_due());
        let seq = begin(&mut bed);
        // Another one is not begun beside it.
        bed.p.begin_flush(now(bed.at), Timestamp::default());
        assert_eq!(bed.p.next_seq(), seq.next());
        for _ in 0..chunks {
            assert!(bed.p.resync_room(now(bed.at)) > 0);
            put(&mut bed);
        }
        assert_eq!(bed.p.resync_room(now(bed.at)), 0);
        assert!(!bed.p.flush_is_due(), "the other one has not ended");
        bed.receipt(Receipt::Synced { seq });
        assert!(!bed.p.flush_runs() && bed.p.flush_is_due());
        assert!(bed.p.resync_room(now(bed.at)) > 0);
    }

    #[test]
    fn a_short_flush_at_the_end_is_enough_and_little_needs_none() {
        let mut bed = syncing();
        put(&mut bed);
        assert!(!bed.p.flush_is_worth_it());
        for _ in 0..limits::RESYNC_FLUSH_LEAST / CHUNK as u64 {
            put(&mut bed);
        }
        assert!(bed.p.flush_is_worth_it());
        for (ms, short) in [(6000, false), (500, true)] {
            let seq = begin(&mut bed);
            bed.at += ms;
            bed.receipt(Receipt::Synced { seq });
            assert_eq!(bed.p.flush_was_short(), short, "{ms} of 8000 ms");
        }
    }

    /// Nobody waits for these, and a disk may have much to write.
    #[test]
    fn what_nobody_waits_for_has_a_longer_deadline_and_hides_no_shorter_one() {
        let mut bed = syncing();
        begin(&mut bed);
        let long = bed.at + 8000 * u64::from(limits::UNAWAITED_SYNCS);
        assert_eq!(bed.p.next_deadline(), Some(now(long)));
        bed.p.tick(now(long - 1));
        assert_eq!(bed.out().1, []);
        bed.p.tick(now(long));
        let (_, actions) = bed.out();
        assert!(
            matches!(&actions[..], [Action::DropPeer { .. }]),
            "{actions:?}"
        );
        assert_eq!((bed.p.link(), bed.p.flush_runs()), (Link::Alone, false));

        let mut bed = Bed::paired(AckMode::Memory);
        assert!(bed.p.begin_checkpoint(now(bed.at), Timestamp::default()));
        let [checkpoint] = bed.wire()[..] else {
            panic!()
        };
        bed.applied(checkpoint);
        assert_eq!(bed.p.next_deadline(), Some(now(long)));
        bed.at += 100;
        bed.submit(sync());
        let [synced] = bed.wire()[..] else { panic!() };
        bed.local_done(Seq(synced), "sync");
        bed.applied(synced);
        assert_eq!(bed.p.next_deadline(), Some(now(bed.at + 8000)));
    }

    #[test]
    fn writers_wait_when_too_much_stands_behind_a_flush_that_does_not_end() {
        let mut bed = Bed::paired(AckMode::Memory);
        assert!(bed.p.begin_checkpoint(now(bed.at), Timestamp::default()));
        let checkpoint = Seq(bed.wire()[0]);
        bed.applied(checkpoint.0);
        for _ in 0..limits::MAX_UNSETTLED_OPS {
            assert!(bed.p.has_room(now(bed.at), 1));
            let seq = bed.submit(super::super::tests::write(0, 1)).seq.unwrap();
            bed.wire();
            bed.applied(seq.0);
            bed.local_done(seq, "");
        }
        assert!(!bed.p.has_room(now(bed.at), 1));
        bed.receipt(Receipt::Synced { seq: checkpoint });
        assert!(bed.p.has_room(now(bed.at), 1));
    }
}
