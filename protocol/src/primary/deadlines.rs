//! Deadlines: a peer that makes no progress is dropped, however alive it looks
//! (invariant 14).

use super::{AckMode, Action, Link, Primary};
use crate::time::Instant;

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
        let Some((deadline, reason)) = self.earliest() else {
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
                self.hold(&reason);
            }
        }
    }

    /// When [`Primary::tick`] has something to do at the latest.
    pub fn next_deadline(&mut self) -> Option<Instant> {
        let peer = match self.link {
            Link::Bridging { until } => Some(until),
            _ if self.is_connected() => self.earliest().map(|(at, _)| at),
            _ => None,
        };
        peer.into_iter().chain(self.heir_deadline()).min()
    }

    fn earliest(&mut self) -> Option<(Instant, String)> {
        let (config, resumed) = (self.config, self.resumed);
        let mut best: Option<(Instant, String)> = None;
        let mut consider = |at: Instant, text: String| {
            if best.as_ref().is_none_or(|(b, _)| at < *b) {
                best = Some((at, text));
            }
        };
        if let Some(oldest) = self.window.oldest_unapplied() {
            consider(
                self.progress.max(oldest).after(config.stall),
                format!(
                    "the peer made no progress for {} ms while ops were waiting",
                    config.stall.as_millis()
                ),
            );
            consider(
                oldest.max(self.resumed).after(config.op),
                format!(
                    "the peer did not apply an op within {} ms",
                    config.op.as_millis()
                ),
            );
        }
        if let Some(oldest) = self.window.oldest_syncing() {
            consider(
                oldest.max(self.resumed).after(config.sync),
                format!(
                    "the peer did not complete a sync within {} ms",
                    config.sync.as_millis()
                ),
            );
        }
        if config.mode == AckMode::Disk
            && let Some(entry) = self.window.get(self.window.durable.next())
        {
            consider(
                entry.submitted.max(resumed).after(config.sync),
                format!(
                    "the peer did not bring an op to its disk within {} ms",
                    config.sync.as_millis()
                ),
            );
        }
        best
    }
}
