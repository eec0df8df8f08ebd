//! Deadlines: a peer that makes no progress is dropped, however alive it looks
//! (invariant 14).

use std::time::Duration;

use super::{AckMode, Action, Link, Primary};
use crate::ids::Seq;
use crate::limits;
use crate::time::Instant;

/// What a deadline is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Wait {
    /// The peer shall apply an op.
    Applied(Seq),
    /// It shall complete a sync.
    Synced(Seq),
    /// It shall bring an op to its disk.
    Durable(Seq),
}

impl<R> Primary<R> {
    /// Looks at every deadline. Call at least at [`Primary::next_deadline`].
    pub fn tick(&mut self, now: Instant) {
        if let Link::Bridging { until } = self.link {
            if now >= until {
                self.hold("the connection to the peer was lost and did not come back");
            }
            return;
        }
        self.tick_heir(now);
        if !self.is_connected() {
            return;
        }
        let Some((deadline, wait, reason)) = self.earliest() else {
            return;
        };
        if now < deadline {
            return;
        }
        self.actions.push(Action::DropPeer {
            reason: reason.clone(),
        });
        match self.link {
            Link::Syncing => self.back_to_alone(),
            Link::Yielding { end, until, .. } => self.wait_for_heir(end, until),
            _ => {
                self.before = self.link;
                // The first one: what came later is not done before it.
                if self.overdue.is_none_or(|overdue| !self.waits(overdue)) {
                    self.overdue = Some(wait);
                }
                self.hold(&reason);
            }
        }
    }

    /// When [`Primary::tick`] has something to do at the latest.
    pub fn next_deadline(&mut self) -> Option<Instant> {
        let peer = match self.link {
            Link::Bridging { until } => Some(until),
            _ if self.is_connected() => self.earliest().map(|(at, ..)| at),
            _ => None,
        };
        peer.into_iter().chain(self.heir_deadline()).min()
    }

    /// Whether the peer has not done this yet.
    pub(super) fn waits(&self, wait: Wait) -> bool {
        match wait {
            Wait::Applied(seq) => seq > self.window.applied,
            Wait::Synced(seq) => self.window.waits_for_sync(seq),
            Wait::Durable(seq) => seq > self.window.durable,
        }
    }

    /// When what was asked for at `since` has to be done, and how many milliseconds that are. A
    /// peer whose disk is busy has more time than one whose disk does nothing, as long as it
    /// goes on to say so.
    fn patience(&self, since: Instant, within: Duration) -> (Instant, u128) {
        let (usual, longest) = (
            since.after(within),
            since.after(within * limits::BUSY_PATIENCE),
        );
        let busy = self.busy.map(|busy| busy.after(self.config.stall));
        let at = busy.map_or(usual, |busy| busy.min(longest).max(usual));
        (at, at.since(since).as_millis())
    }

    fn earliest(&mut self) -> Option<(Instant, Wait, String)> {
        let (config, resumed) = (self.config, self.resumed);
        let mut best: Option<(Instant, Wait, String)> = None;
        let mut consider = |at: Instant, wait: Wait, text: String| {
            if best.as_ref().is_none_or(|(b, ..)| at < *b) {
                best = Some((at, wait, text));
            }
        };
        if let Some(oldest) = self.window.oldest_unapplied() {
            let wait = Wait::Applied(self.window.applied.next());
            consider(
                self.progress.max(oldest).after(config.stall),
                wait,
                format!(
                    "the peer made no progress for {} ms while ops were waiting",
                    config.stall.as_millis()
                ),
            );
            let (at, within) = self.patience(oldest.max(resumed), config.op);
            consider(
                at,
                wait,
                format!("the peer did not apply an op within {within} ms"),
            );
        }
        let unawaited = config.sync * limits::UNAWAITED_SYNCS;
        let [awaited, internal] = self.window.longest_syncing();
        let syncs = [
            (awaited, config.sync),
            (internal, unawaited),
            (self.flushing.runs(), unawaited),
        ];
        for (sync, within) in syncs {
            let Some((seq, oldest)) = sync else { continue };
            let (at, within) = self.patience(oldest.max(resumed), within);
            consider(
                at,
                Wait::Synced(seq),
                format!("the peer did not complete a sync within {within} ms"),
            );
        }
        if config.mode == AckMode::Disk
            && let Some((seq, oldest)) = self.window.oldest_volatile()
        {
            let (at, within) = self.patience(oldest.max(resumed), config.sync);
            consider(
                at,
                Wait::Durable(seq),
                format!("the peer did not bring an op to its disk within {within} ms"),
            );
        }
        best
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Bed, now, sync, write};
    use super::*;
    use crate::wire::Receipt;

    /// Ticks until the peer is dropped; it says that its disk is busy every 500 ms up to a
    /// moment. Returns when that was, in ms.
    fn dropped(bed: &mut Bed, busy_until: u64) -> Option<u64> {
        for at in (bed.at..60_000).step_by(100) {
            bed.at = at;
            if at % 500 == 0 && at <= busy_until {
                bed.receipt(Receipt::Busy);
            }
            bed.p.tick(now(at));
            if bed.p.link() == Link::Holding {
                return Some(at);
            }
        }
        None
    }

    #[test]
    fn a_peer_that_says_that_its_disk_is_busy_has_more_time_but_not_for_ever() {
        for (busy_until, expected) in [
            (0, 1_100),
            (2_000, 3_000),
            // Its last word is older than it may be when the usual time for the op is over.
            (3_500, 4_500),
            (6_000, 7_000),
            (60_000, 15_100),
        ] {
            let mut bed = Bed::paired(AckMode::Memory);
            bed.at = 100;
            bed.submit(write(0, 1));
            bed.wire();
            let dropped = dropped(&mut bed, busy_until);
            assert_eq!(dropped, Some(expected), "{busy_until}");
        }
    }

    #[test]
    fn a_sync_that_the_own_disk_has_not_ended_either_is_not_the_peers_delay() {
        let mut bed = Bed::paired(AckMode::Memory);
        bed.at = 100;
        bed.submit(sync());
        let second = bed.submit(sync()).seq.unwrap();
        bed.wire();
        bed.applied(second.0);
        assert_eq!(dropped(&mut bed, 0), None);
        // The second one is waited for from here on.
        bed.at = 100_000;
        assert_eq!(bed.local_done(second, "second"), None);
        bed.p.tick(now(107_999));
        assert_eq!(bed.p.link(), Link::Paired);
        bed.at = 107_900;
        bed.receipt(Receipt::Busy);
        bed.p.tick(now(108_899));
        assert_eq!(bed.p.link(), Link::Paired);
        bed.p.tick(now(108_900));
        assert_eq!(bed.p.link(), Link::Holding);
    }
}
