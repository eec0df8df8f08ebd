//! Losing the disk, not the node: the peer takes the data over.
//!
//! ```text
//!   Paired ──▶ Yielding ──Synced(TakeOver), or the peer says so itself──▶ Yielded
//!   Bridging ─▶   │
//!                 └─the peer cannot: it leaves, or knows of no session──▶ Leaving ─▶ Alone
//!                                                                            └─▶ Forsaken
//! ```
//!
//! [`Op::TakeOver`] is the last op of the order, so the peer has everything before it. What
//! waits for the peer is acknowledged when the peer has durably taken over, not before
//! (invariant 4): until then this copy, whatever it is worth, may be the one that is
//! promoted. While it is not known whether the peer took over, nothing is acknowledged,
//! and this node never goes on alone by itself. What waits is given back, as failed, when
//! the peer has not answered in time, however often it came and went meanwhile; it is still
//! asked when it comes again, so that what comes after that goes on there.

use std::time::Duration;

use super::{Action, Config, Link, Primary, Vote, Window};
use crate::ids::Seq;
use crate::op::Op;
use crate::time::{Instant, Timestamp};

impl Config {
    /// How long the answer of a peer that is asked to take over is waited for: what a
    /// connected peer has for any op or sync.
    pub fn heir_patience(&self) -> Duration {
        self.op.max(self.sync)
    }
}

impl<R> Primary<R> {
    /// Whether the peer could take over: it is up to date, or was when the connection
    /// that may still come back was lost.
    pub fn can_yield(&self) -> bool {
        match self.link {
            Link::Paired => true,
            Link::Bridging { .. } => self.before == Link::Paired,
            _ => false,
        }
    }

    /// The local disk has failed. Asks the peer to take over; false when there is no peer
    /// that could. The caller takes no more changes, and those it took are applied or
    /// have failed.
    pub fn yield_to_peer(&mut self, now: Instant, time: Timestamp) -> bool {
        if !self.can_yield() {
            return false;
        }
        let connected = self.link == Link::Paired;
        let end = self.push(now, time, Op::TakeOver, 0, Vote::Synced);
        self.settle_internal(end);
        self.link = Link::Yielding {
            end,
            connected,
            until: Some(now.after(self.config.heir_patience())),
        };
        // Going alone is out of question now.
        self.overdue = None;
        self.ask_no_more();
        true
    }

    /// What waited for the peer's answer when [`Action::HeirIsLate`] was due, and only then.
    /// Nobody knows whether the peer had it: the caller must end each as failed.
    pub fn take_held(&mut self) -> Vec<R> {
        match self.link {
            Link::Yielding { until: None, .. } => self.window.take_held(),
            _ => Vec::new(),
        }
    }

    /// The peer has taken over, durably: it has every op before the one that asked, on
    /// its disk. What waited for it is released.
    pub fn peer_took_over(&mut self) {
        if !matches!(self.link, Link::Yielding { .. }) {
            return;
        }
        let window = std::mem::replace(&mut self.window, Window::new(Seq(1)));
        self.window = window.abandon(|_, _| (), &mut self.replies);
        self.checkpoint = None;
        self.session = None;
        self.link = Link::Yielded;
        self.actions.push(Action::PeerTookOver);
    }

    /// The connection is lost while the peer is asked.
    pub(super) fn wait_for_heir(&mut self, end: Seq, until: Option<Instant>) {
        self.link = Link::Yielding {
            end,
            connected: false,
            until,
        };
    }

    /// When the peer's answer comes too late for what waits.
    pub(super) fn heir_deadline(&self) -> Option<Instant> {
        match self.link {
            Link::Yielding { until, .. } => until,
            _ => None,
        }
    }

    pub(super) fn tick_heir(&mut self, now: Instant) {
        if let Link::Yielding { until, .. } = &mut self.link
            && until.is_some_and(|until| now >= until)
        {
            *until = None;
            self.actions.push(Action::HeirIsLate);
        }
    }
}
