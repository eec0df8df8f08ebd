//! Deadlines: a peer that makes no progress is dropped, however alive it looks
//! (invariant 14).

use super::{AckMode, Action, Link, Primary};
use crate::ids::Seq;
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
            consider(
                oldest.max(self.resumed).after(config.op),
                wait,
                format!(
                    "the peer did not apply an op within {} ms",
                    config.op.as_millis()
                ),
            );
        }
        if let Some((seq, oldest)) = self.window.oldest_syncing() {
            consider(
                oldest.max(self.resumed).after(config.sync),
                Wait::Synced(seq),
                format!(
                    "the peer did not complete a sync within {} ms",
                    config.sync.as_millis()
                ),
            );
        }
        if config.mode == AckMode::Disk
            && let Some((seq, oldest)) = self.window.oldest_volatile()
        {
            consider(
                oldest.max(resumed).after(config.sync),
                Wait::Durable(seq),
                format!(
                    "the peer did not bring an op to its disk within {} ms",
                    config.sync.as_millis()
                ),
            );
        }
        best
    }
}
