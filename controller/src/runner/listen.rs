//! What is heard of the peer, and for how long it is not.

use std::time::{Duration, Instant};

use twinfold_protocol::automaton::{Event, Link, Reason};
use twinfold_protocol::handshake::Role;

use super::Runner;
use crate::config::ResourceState;
use crate::peer::{StateName, WireView};

/// How long a driver may take to start, and its node to give way meanwhile.
const STARTS: Duration = Duration::from_secs(30);

impl Runner {
    pub(super) fn hears(&mut self, view: WireView) {
        self.setup.vips.peer_has(&view.hardware());
        if std::mem::take(&mut self.silent) {
            self.say("peer", "heard again");
            // What the peer has said meanwhile of the addresses may be wrong.
            self.setup.vips.announce_now();
            self.witness_is(ResourceState::Init, None);
        }
        let before = self.peer.replace(view.clone());
        // What the peer's daemon knows at once, the connection between the drivers shows only
        // after its timeout.
        let gone = before.is_some_and(|b| match self.role {
            Some(Role::Secondary) => b.serves && !view.serves,
            Some(Role::Primary) => b.state == StateName::Second && view.state != StateName::Second,
            None => false,
        });
        if gone && matches!(self.link, Some(Link::Paired | Link::Syncing)) {
            self.disconnect();
        }
        self.events.push_back(Event::Heard((&view).into()));
        self.meet();
    }

    /// Whether the peer is silent, and whether it is heard again.
    pub(super) fn listen(&mut self) {
        let silence = self.silence();
        let unheard = self.hub.quiet(&self.setup.config.heart.lans) >= silence;
        let gone = self.is_gone();
        let silent = unheard || gone || self.hub.idle(&self.setup.name) >= silence;
        if silent && !self.silent {
            self.silent = true;
            self.say(
                "peer",
                match (unheard, gone) {
                    (true, _) => "no heartbeat on any network",
                    (_, true) => "its daemon and its driver have died",
                    _ => "is heard, and does not run this module",
                },
            );
            self.verdict.clear();
            self.events.push_back(Event::Silent);
        } else if !silent
            && self.silent
            && let Some(view) = self.hub.told(&self.setup.name)
        {
            self.hears(view);
        }
    }

    /// That `cluster.xml` differs on the nodes decides nothing, and is noted once.
    pub(super) fn say_whether_clusters_differ(&mut self) {
        let differs = self.hub.differs();
        if differs == self.clusters {
            return;
        }
        match &differs {
            Some(text) => self.say("peer", &**text),
            None => self.say("peer", "cluster.xml does not differ any more"),
        }
        self.clusters = differs;
    }

    /// A peer that was not heard for so long is silent. One that beats more rarely than this node is
    /// configured for, because it is configured otherwise, is not dead in between.
    pub(super) fn silence(&self) -> Duration {
        let timeout = self.setup.config.heart.timeout;
        timeout.max(self.hub.least_silence())
    }

    /// Whether the peer was heard just now. Once it is again, this is looked at.
    pub(super) fn is_heard(&self) -> bool {
        self.hub.is_heard(&self.setup.config.heart.lans)
    }

    /// How long an answer of the peer is waited for.
    pub(super) fn patience(&self) -> Duration {
        match self.role {
            Some(Role::Primary) => self.setup.config.heart.timeout,
            _ => self.setup.config.heart.timeout + STARTS,
        }
    }

    /// A peer that is heard and does not answer, because its disk hangs, is not waited for
    /// longer than a silent one, as long as an application waits for it. One that was not heard
    /// just now may have said something else since, and is heard again or silent soon.
    pub(super) fn wait_for_answer(&mut self) {
        if self.automaton.shown().2 != Reason::Asking {
            self.asked_at = None;
            return;
        }
        let since = *self.asked_at.get_or_insert_with(Instant::now);
        if since.elapsed() >= self.patience() && self.is_heard() {
            self.say("peer", "was asked to give way, and does not answer");
            self.asked_at = None;
            self.events.push_back(Event::Unanswered);
        }
    }
}
