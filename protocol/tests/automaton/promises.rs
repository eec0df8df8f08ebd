//! What has to be so in every state, and what two nodes come to when everything is repaired.

use twinfold_protocol::automaton::{
    Arbiter, Automaton, Config, Effect, Event, Isolation, Link, Reason, State, Status, View, Wanted,
};
use twinfold_protocol::handshake::{Role, Which, have_split, newer};
use twinfold_protocol::lifecycle::Record;

use super::steps::Step;
use super::world::{Driver, Judge, World};

/// Rounds after which what did not work is tried again.
pub(crate) const RETRY: usize = 40;

/// Rounds for which a peer that was asked to give way is waited for; a part of [`RETRY`].
const UNANSWERED: usize = 10;

impl World {
    /// Whether somebody or something keeps two separated nodes from both going on. Where nothing
    /// does, only nodes that hear nothing of each other may.
    fn excludes(&self) -> bool {
        let asked = self.config.iter().any(|c| c.arbiter == Arbiter::Asked);
        let Config {
            arbiter, isolation, ..
        } = self.config[0];
        let waits = arbiter == Arbiter::None && isolation == Isolation::Wait;
        asked && self.judge != Judge::Ping || waits || !self.separated
    }

    /// Whether no node goes on by itself, however slow its peer may be.
    pub(super) fn is_asked(&self) -> bool {
        let Config {
            arbiter, isolation, ..
        } = self.config[0];
        match arbiter {
            Arbiter::Asked => self.judge != Judge::Ping,
            Arbiter::None => isolation == Isolation::Wait,
        }
    }

    /// What is wrong with this state, if anything is.
    pub(crate) fn wrong(&self) -> Option<String> {
        if let Some(mistake) = self.mistake {
            return Some(mistake.into());
        }
        if self.excludes() {
            if (0..2).all(|n| self.acknowledges(n)) {
                return Some("two nodes acknowledge writes, and only one may".into());
            }
            if self.twice {
                return Some("both nodes went on from one generation, and only one may".into());
            }
            let lacks = |n: &usize| {
                let has = self.nodes[self.copy_of(*n)].disk.has;
                self.acknowledges(*n) && has != self.acknowledged
            };
            if let Some(n) = (0..2).find(lacks) {
                return Some(format!("node {n} serves without an acknowledged write"));
            }
        }
        if let Some(n) = (0..2).find(|n| self.is_shown_wrong(*n)) {
            return Some(format!("node {n} is stopped and shown as something else"));
        }
        self.is_mirrored()
    }

    /// Two nodes that know of each other what is so have decided alike.
    fn is_mirrored(&self) -> Option<String> {
        let [Some(a), Some(b)] = [0, 1].map(|n| self.nodes[n].automaton.as_ref()) else {
            return None;
        };
        let knows = |one: &Automaton, other: &View| one.heard() == Some(other);
        let views = [a.view(), b.view()];
        if !(knows(a, &views[1]) && knows(b, &views[0])) {
            return None;
        }
        let chosen = [a, b].map(Automaton::chosen);
        if chosen[0] != chosen[1].map(Which::mirrored) {
            return Some(format!("the nodes choose differently: {chosen:?}"));
        }
        if views.iter().all(|v| v.asks.is_some()) {
            return Some("both nodes ask the other one to give way".into());
        }
        None
    }

    /// Whether a node that is stopped, and does nothing but to yield, is shown otherwise.
    fn is_shown_wrong(&self, n: usize) -> bool {
        let node = &self.nodes[n];
        let rests = node.disk.wanted == Wanted::Stopped
            && node.driver == Driver::Down
            && !node.app
            && node.doing.iter().all(|e| matches!(e, Effect::Yield(..)));
        let shown = node.automaton.as_ref().map(|a| a.shown().0);
        rests && shown.is_some_and(|s| s != State::Stop)
    }

    /// A node is about to do something that it may not do as the drivers are.
    pub(super) fn watch(&mut self, n: usize, effect: Effect) {
        let (node, peer) = (&self.nodes[n], &self.nodes[1 - n]);
        // What is started as primary has the only copy of its generation.
        let takes = matches!(effect, Effect::Promote(_));
        let config = self.config[n];
        let by_itself = !config.failover && config.default_prim.is_none() && !self.told;
        if takes && by_itself && node.disk.was == Some(Role::Secondary) {
            self.mistake = Some("a node takes over although failover is off");
        }
        // Two that are separated both may, where nobody decides; one that was away must not, once
        // the other one has. What an address has granted to both counts until that is heard.
        let heard = node.automaton.as_ref().and_then(Automaton::heard);
        let unaware = heard
            .is_some_and(|view| newer(&node.disk.record.copy, &view.copy) != Some(Which::Peer));
        let excused = self.judge == Judge::Ping && unaware;
        let gone = self.left.get(&node.disk.record.copy.current) == Some(&(1 - n));
        let current = matches!(node.driver, Driver::Secondary { current: true, .. });
        if takes && gone && !current && !excused && !self.syncdelta {
            self.mistake = Some("a copy from before its peer went on is promoted");
        }
        let serves = matches!(node.driver, Driver::Primary(Link::None | Link::Syncing));
        let copies = [node, peer].map(|n| &n.disk.record.copy);
        if effect == Effect::Demote && serves && newer(copies[0], copies[1]) != Some(Which::Peer) {
            self.mistake = Some("a primary gives its role to a copy that is not up to date");
        }
    }

    /// One serves, the other follows, both are up to date and the application is up.
    pub(crate) fn is_together(&self) -> bool {
        let shown = |n: usize| {
            let automaton = self.nodes[n].automaton.as_ref()?;
            let (state, status, _) = automaton.shown();
            Some((state, status))
        };
        let good = |p: usize, s: usize| {
            shown(p) == Some((State::Prim, Status::Ready))
                && shown(s) == Some((State::Second, Status::Ready))
                && self.nodes[p].app
        };
        good(0, 1) || good(1, 0)
    }

    /// Everything is repaired, and both nodes are wanted: takes steps in turn until
    /// nothing is left to do, at most `most`.
    pub(crate) fn settle(&mut self, most: usize) {
        self.repair();
        for round in 0..most {
            if self.is_together() {
                return;
            }
            self.operate(round);
            self.round(round, &[]);
        }
    }

    /// Everything is repaired, and both nodes are wanted.
    pub(crate) fn repair(&mut self) {
        if !self.network {
            self.take(Step::Cut(false));
        }
        for n in 0..2 {
            if self.deaf[n] {
                self.take(Step::Deaf(n, false));
            }
        }
        self.reachable = true;
        if self.config[1].rules != self.config[0].rules {
            let Config {
                arbiter, isolation, ..
            } = self.config[0];
            self.take(Step::Configure(1, arbiter, isolation));
        }
        for n in 0..2 {
            self.nodes[n].frozen = false;
            self.nodes[n].hangs = false;
            self.nodes[n].broken &= self.nodes[n].driver != Driver::Down;
            if self.nodes[n].automaton.is_none() {
                self.take(Step::Boot(n));
            }
            if self.nodes[n].disk.wanted == Wanted::Stopped {
                self.operator_wants(n, Wanted::Running);
            }
        }
    }

    fn operator_wants(&mut self, n: usize, wanted: Wanted) {
        self.nodes[n].disk.wanted = wanted;
        self.tell(n, Event::Want(wanted));
    }

    /// The operator does now and then what is shown as left to the operator: where both nodes went
    /// on, one gives up what only it has; where nobody takes over by itself, one is told to.
    pub(crate) fn operate(&mut self, round: usize) {
        let copies = [0, 1].map(|n| &self.nodes[n].disk.record.copy);
        if have_split(copies[0], copies[1]) {
            let stopped = |n: &usize| self.nodes[*n].disk.wanted == Wanted::Stopped;
            let idle = |n: &usize| !self.acknowledges(*n);
            let loser = (0..2).find(stopped).or_else(|| (0..2).find(idle));
            let loser = loser.unwrap_or(1);
            let node = &self.nodes[loser];
            if node.disk.wanted != Wanted::Stopped {
                // Not before they have come to what they come to by themselves.
                if round % RETRY == RETRY / 2 {
                    self.operator_wants(loser, Wanted::Stopped);
                }
            } else if node.driver == Driver::Down && node.doing.is_empty() {
                self.nodes[loser].disk.record.change(Record::give_up);
                self.tell_copy(loser);
                self.acknowledged = self.nodes[1 - loser].disk.has;
                self.begin_anew();
                self.operator_wants(loser, Wanted::Second);
            }
        }
        if round % RETRY == RETRY / 4 && !self.takes_over() {
            let shows = |n: &usize, reason: Reason| {
                let shown = self.nodes[*n].automaton.as_ref().map(Automaton::shown);
                shown.is_some_and(|s| s.2 == reason)
            };
            let heir = (0..2).find(|n| shows(n, Reason::Heir));
            let off = (0..2).find(|n| shows(n, Reason::FailoverOff));
            self.told |= heir.or(off).is_some();
            match (heir, off) {
                (Some(n), _) => self.tell(n, Event::Swap),
                (None, Some(n)) => self.operator_wants(n, Wanted::Prim(false)),
                (None, None) => {}
            }
        }
    }

    /// Where both hear each other, follow each other and have nothing left to do, what was before
    /// decides nothing any more.
    pub(super) fn calm_down(&mut self) {
        let rests = |n: usize| {
            let node = &self.nodes[n];
            let hears = node.automaton.as_ref().and_then(Automaton::heard).is_some();
            hears && node.doing.is_empty() && !node.hangs
        };
        let paired = |n: usize| {
            matches!(
                self.nodes[n].driver,
                Driver::Primary(Link::Paired)
                    | Driver::Secondary {
                        link: Link::Paired,
                        ..
                    }
            )
        };
        if self.separated && self.connected() && (0..2).all(|n| rests(n) && paired(n)) {
            self.begin_anew();
        }
    }

    fn begin_anew(&mut self) {
        self.separated = false;
        if std::mem::take(&mut self.twice) {
            self.left.clear();
        }
    }

    /// Everything that can go on does but for this, and a heartbeat arrives.
    pub(crate) fn round(&mut self, round: usize, but: &[Step]) {
        let steps = self.steps(false);
        let retry = round % RETRY == RETRY - 1;
        let late = round % UNANSWERED == UNANSWERED - 1;
        let useful: Vec<_> = steps
            .into_iter()
            .filter(|s| retry || !matches!(s, Step::Retry(_)))
            .filter(|s| late || !matches!(s, Step::Unanswered(_)))
            .filter(|s| !matches!(s, Step::Write(_) | Step::Lose(_)) && !but.contains(s))
            .collect();
        for step in useful {
            self.take(step);
        }
        // Heartbeats go on.
        for n in 0..2 {
            self.sent[n].clear();
            self.send(n);
            if round % 2 == n && self.hears(n) && !self.sent[1 - n].is_empty() {
                self.take(Step::Arrive(n));
            }
        }
    }

    /// The default primary serves, if there is one.
    pub(crate) fn is_as_configured(&self) -> bool {
        let side = self.config[0].default_prim;
        let primary = self.primary().map(|p| self.config[p].side);
        side.is_none() || primary == side
    }

    /// Without what only bounds what may still happen.
    pub(crate) fn at_rest(&self) -> World {
        let mut world = self.clone();
        (world.faults, world.writes, world.told) = (0, 0, true);
        world
    }
}
