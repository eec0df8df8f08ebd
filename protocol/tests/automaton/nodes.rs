//! What becomes of a node's effects, and what the drivers do between the nodes.

use twinfold_protocol::automaton::{Automaton, Claim, Effect, Event, Link, Wanted};
use twinfold_protocol::handshake::{Decision, Role, Which, decide};
use twinfold_protocol::ids::{Generation, SessionId};
use twinfold_protocol::lifecycle::Record;
use twinfold_protocol::primary::AckMode;

use super::world::{Bug, Driver, Judge, Node, World, generation};

impl World {
    pub(super) fn boot(&mut self, n: usize) {
        let (config, copy) = (self.configuration(n), self.copy(n));
        let node = &mut self.nodes[n];
        node.automaton = Some(
            Automaton::new(config, copy, node.disk.yielded)
                .has_agreed(node.disk.agreed)
                .has_asked(node.disk.asked),
        );
        node.disk.agreed = node.automaton.as_ref().and_then(Automaton::agreed);
        node.soon = node.disk.wanted != Wanted::Stopped;
        if node.soon {
            self.tell(n, Event::Want(Wanted::Soon));
        }
        // Both hear of each other with the next heartbeats.
        (0..2).for_each(|n| self.send(n));
    }

    fn new_generation(&mut self) -> Generation {
        self.next += 1;
        generation(self.next)
    }

    /// A node goes on from the generation that it has, and that its peer may have.
    fn leaves(&mut self, n: usize) {
        let disk = &self.nodes[n].disk;
        let other = self.left.insert(disk.record.copy.current, n);
        self.twice |= other.is_some_and(|o| o != n);
        // What its machine lost is lost, if that is what the operator takes into account.
        if self.syncdelta && disk.record.copy.cut && other.is_none() {
            self.acknowledged = disk.has;
        }
    }

    fn become_primary(&mut self, n: usize, new: bool) {
        let next = new.then(|| self.new_generation());
        if new {
            self.leaves(n);
        }
        let side = self.config[n].side;
        let boot = self.nodes[n].disk.boot;
        self.nodes[n]
            .disk
            .record
            .change(|r| r.become_primary(side, next, boot).unwrap());
        self.nodes[n].disk.yielded = None;
        self.nodes[n].disk.lost = false;
        self.nodes[n].disk.was = Some(Role::Primary);
        self.nodes[n].driver = Driver::Primary(Link::None);
        self.tell_copy(n);
        self.tell(n, Event::DriverUp(Role::Primary));
    }

    fn become_secondary(&mut self, n: usize) {
        let disk = &mut self.nodes[n].disk;
        let boot = match self.bug {
            Some(Bug::ForgetsPower) => disk.record.boot,
            _ => disk.boot,
        };
        disk.record
            .change(|r| r.become_secondary(boot, AckMode::Memory));
        self.nodes[n].driver = Driver::Secondary {
            link: Link::None,
            current: false,
        };
        self.tell_copy(n);
        self.tell(n, Event::DriverUp(Role::Secondary));
    }

    pub(super) fn done(&mut self, n: usize, effect: Effect, well: bool) {
        let role = match self.nodes[n].driver {
            Driver::Primary(_) => Some(Role::Primary),
            Driver::Secondary { .. } => Some(Role::Secondary),
            Driver::Down => None,
        };
        match effect {
            Effect::Start(..) if !well || self.nodes[n].broken => self.tell(n, Event::DriverDown),
            // It has nothing to be secondary with.
            Effect::Demote if self.nodes[n].driver == Driver::Primary(Link::AtPeer) => {
                self.tell(n, Event::DriverStays(Role::Primary));
            }
            // The data are here already, and of a generation that nobody else has.
            Effect::Promote(_) if matches!(self.nodes[n].driver, Driver::Secondary { link, .. } if link == Link::Heir) =>
            {
                self.nodes[n].driver = Driver::Primary(Link::None);
                self.nodes[n].disk.was = Some(Role::Primary);
                self.tell_copy(n);
                self.tell(n, Event::DriverUp(Role::Primary));
            }
            Effect::Promote(_) | Effect::Demote if !well || role.is_none() => match role {
                Some(role) => self.tell(n, Event::DriverStays(role)),
                None => self.tell(n, Event::DriverDown),
            },
            Effect::Start(Role::Primary, force) => {
                let shared = self.nodes[n].disk.record.paired;
                self.become_primary(n, shared || force);
            }
            Effect::Start(Role::Secondary, _) | Effect::Demote => {
                if effect == Effect::Demote {
                    self.flush(n);
                }
                self.become_secondary(n);
            }
            // By right, not by force: only what is still complete.
            Effect::Promote(Claim::Right)
                if !self.nodes[n].disk.record.copy.up_to_date
                    && !self.nodes[n].disk.record.copy.cut
                    && !self.nodes[n].disk.record.copy.gave_way =>
            {
                self.tell(n, Event::DriverStays(Role::Secondary));
            }
            // One that is being resynced meanwhile is refused.
            Effect::Promote(Claim::Current)
                if !matches!(
                    self.nodes[n].driver,
                    Driver::Secondary { current: true, .. }
                ) && self.bug != Some(Bug::RestartIsCurrent) =>
            {
                self.tell(n, Event::DriverStays(Role::Secondary));
            }
            Effect::Promote(_) => self.become_primary(n, true),
            Effect::StopDriver => {
                self.flush(n);
                self.nodes[n].driver = Driver::Down;
                self.tell_copy(n);
                self.tell(n, Event::DriverDown);
            }
            Effect::GoAlone(question) => {
                if let Driver::Primary(Link::Holding(now)) = self.nodes[n].driver
                    && (now == question || self.bug == Some(Bug::AnyQuestion))
                {
                    self.make_alone(n);
                }
            }
            Effect::Forsake(question) => {
                if self.nodes[n].driver == Driver::Primary(Link::Holding(question)) {
                    self.nodes[n].driver = Driver::Primary(Link::Forsaken);
                    self.tell(n, Event::Link(Link::Forsaken));
                }
            }
            Effect::Yield(g, session) => {
                let disk = &self.nodes[n].disk;
                if disk.record.copy.current != g || disk.session != session {
                    return self.tell(n, Event::Kept);
                }
                self.nodes[n].disk.record.change(Record::give_way);
                self.nodes[n].disk.yielded = Some(g);
                if let Driver::Secondary { .. } = self.nodes[n].driver {
                    self.nodes[n].driver = Driver::Secondary {
                        link: Link::None,
                        current: false,
                    };
                    self.tell(n, Event::Link(Link::None));
                }
                if self.bug != Some(Bug::EarlyYield) {
                    self.tell(n, Event::Yielded(g));
                }
            }
            Effect::Ask(g) => {
                if !self.reachable {
                    return self.tell(n, Event::Unreachable);
                }
                let owner = self.judges(n, g);
                if !well {
                    // It has done it, and the answer is lost.
                    return self.tell(n, Event::Unreachable);
                }
                let granted = owner == n || self.bug == Some(Bug::GrantsAll);
                self.tell(
                    n,
                    match granted {
                        true => Event::Granted(g),
                        false => Event::Denied(g),
                    },
                );
            }
            Effect::Release(g) => {
                if self.reachable && self.arbiter.get(&g) == Some(&n) {
                    self.arbiter.remove(&g);
                }
                if self.bug != Some(Bug::EarlyRelease) {
                    self.tell(
                        n,
                        match well && self.reachable {
                            true => Event::Released(g),
                            false => Event::Unreleased,
                        },
                    );
                }
            }
            Effect::StartApp => {
                self.nodes[n].app = true;
                self.tell(n, Event::AppUp);
            }
            Effect::StopApp => {
                self.nodes[n].app = false;
                self.tell(n, Event::AppDown);
            }
            Effect::Tell => {}
        }
    }

    /// Whoever is asked decides; who has the generation then.
    fn judges(&mut self, n: usize, g: Generation) -> usize {
        match self.judge {
            Judge::Witness => *self.arbiter.entry(g).or_insert(n),
            Judge::Ping => n,
            Judge::Fence => {
                if self.bug != Some(Bug::NoFence) {
                    let peer = &mut self.nodes[1 - n];
                    peer.frozen = false;
                    if peer.automaton.is_some() {
                        self.power_cut(1 - n);
                    }
                }
                n
            }
        }
    }

    /// A node ends in order: its disk has everything, and so has that of its peer.
    fn flush(&mut self, n: usize) {
        let link = |n: usize| match self.nodes[n].driver {
            Driver::Primary(link) | Driver::Secondary { link, .. } => link,
            Driver::Down => Link::None,
        };
        let paired = self.connected() && [0, 1].map(link) == [Link::Paired; 2];
        for node in 0..2 {
            let disk = &mut self.nodes[node].disk;
            if node == n || paired {
                disk.synced = disk.has;
            }
        }
    }

    fn make_alone(&mut self, n: usize) {
        let next = self.new_generation();
        self.leaves(n);
        self.nodes[n].disk.record.change(|r| r.go_alone(next));
        self.nodes[n].driver = Driver::Primary(Link::None);
        self.tell_copy(n);
        self.tell(n, Event::Link(Link::None));
    }

    /// Whether the peer of this primary can take over from it.
    pub(super) fn has_heir(&self, n: usize) -> bool {
        let link = |n: usize| match self.nodes[n].driver {
            Driver::Primary(link) | Driver::Secondary { link, .. } => link,
            Driver::Down => Link::None,
        };
        let primary = matches!(self.nodes[n].driver, Driver::Primary(_));
        let hangs = self.nodes.iter().any(|n| n.hangs);
        primary && self.connected() && !hangs && [0, 1].map(link) == [Link::Paired; 2]
    }

    pub(super) fn disk_fails(&mut self, n: usize) {
        let (peer, next) = (1 - n, self.new_generation());
        self.leaves(peer);
        let (side, boot) = (self.config[peer].side, self.nodes[peer].disk.boot);
        let disk = &mut self.nodes[peer].disk;
        disk.record
            .change(|r| r.take_over(side, next, boot).unwrap());
        disk.synced = disk.has;
        self.nodes[peer].driver = Driver::Secondary {
            link: Link::Heir,
            current: false,
        };
        self.nodes[n].broken = true;
        self.nodes[n].disk.recent = false;
        self.nodes[n].driver = Driver::Primary(Link::AtPeer);
        for (node, link) in [(peer, Link::Heir), (n, Link::AtPeer)] {
            self.tell_copy(node);
            self.tell(node, Event::Link(link));
        }
    }

    pub(super) fn connect(&mut self) {
        let Some((p, s)) = self.roles() else { return };
        let (Driver::Primary(mine), Driver::Secondary { link, current }) =
            (self.nodes[p].driver, self.nodes[s].driver)
        else {
            return;
        };
        if link != Link::None {
            return;
        }
        match mine {
            // The session is still known on both: it goes on.
            Link::Holding(_) if current => {
                self.link(p, Link::Paired);
                self.link(s, Link::Paired);
            }
            Link::Holding(_) => {
                let copies = [p, s].map(|n| self.nodes[n].disk.record.copy.clone());
                if copies[0].current != copies[1].current {
                    return;
                }
                // Of a secondary that may be complete, or be taken for that, the controllers decide.
                if !copies[1].up_to_date && !copies[1].cut {
                    self.make_alone(p);
                }
            }
            Link::None => {
                let copies = [p, s].map(|n| self.nodes[n].disk.record.copy.clone());
                let decision = decide((&copies[0], Role::Primary), (&copies[1], Role::Secondary));
                if !matches!(
                    decision,
                    Decision::Resync {
                        source: Which::Me,
                        ..
                    }
                ) {
                    return;
                }
                self.nodes[s]
                    .disk
                    .record
                    .change(|r| r.begin_resync(r.epoch));
                self.nodes[s].driver = Driver::Secondary {
                    link: Link::Syncing,
                    current: false,
                };
                self.tell_copy(s);
                self.tell(s, Event::Link(Link::Syncing));
                self.link(p, Link::Syncing);
            }
            Link::Syncing | Link::Paired | Link::Forsaken | Link::AtPeer | Link::Heir => {}
        }
    }

    pub(super) fn resynced(&mut self) {
        let Some((p, s)) = self.roles() else { return };
        let syncing = self.nodes[p].driver == Driver::Primary(Link::Syncing)
            && matches!(
                self.nodes[s].driver,
                Driver::Secondary {
                    link: Link::Syncing,
                    ..
                }
            );
        if !syncing {
            return;
        }
        let source = self.nodes[p].disk.record.copy.clone();
        self.sessions += 1;
        for n in [p, s] {
            let known = self.bug != Some(Bug::NoSessions);
            self.nodes[n].disk.session = known.then_some(SessionId(self.sessions));
        }
        self.nodes[p]
            .disk
            .record
            .change(Record::peer_may_be_current);
        let generation = self.nodes[p].disk.record.copy.current;
        self.nodes[p]
            .disk
            .record
            .change(|r| r.peer_is_current(generation));
        let (module, current) = (source.module, source.current);
        self.nodes[s]
            .disk
            .record
            .change(|r| r.end_resync(module, current, r.epoch));
        self.nodes[s].disk.has = self.nodes[p].disk.has;
        self.nodes[s].disk.synced = self.nodes[s].disk.has;
        self.nodes[s].disk.lost = false;
        self.nodes[s].disk.yielded = None;
        self.nodes[s].driver = Driver::Secondary {
            link: Link::Paired,
            current: true,
        };
        self.link(s, Link::Paired);
        self.link(p, Link::Paired);
    }

    /// In a few words, for a failure.
    pub(crate) fn brief(&self) -> String {
        let node = |n: &Node| {
            let shown = n.automaton.as_ref().map(Automaton::shown);
            let asks = n.automaton.as_ref().map(|a| {
                let v = a.view();
                let number = |g: Generation| g.0;
                (
                    v.asks.map(number),
                    v.willing,
                    v.session.map(|s| s.0),
                    v.yielded.map(number),
                    v.copy.current.0,
                )
            });
            format!(
                "{shown:?} {:?} {:?} was {:?} yielded {:?} has {} asks {asks:?} doing {:?}",
                n.driver, n.disk.record, n.disk.was, n.disk.yielded, n.disk.has, n.doing
            )
        };
        format!(
            "acknowledged {}, arbiter {:?}\n  A {}\n  B {}",
            self.acknowledged,
            self.arbiter,
            node(&self.nodes[0]),
            node(&self.nodes[1])
        )
    }

    pub(super) fn lost(&mut self, n: usize) {
        match self.nodes[n].driver {
            Driver::Primary(Link::Paired) => {
                self.questions += 1;
                self.link(n, Link::Holding(self.questions));
            }
            Driver::Primary(Link::Syncing) | Driver::Secondary { .. } => self.link(n, Link::None),
            Driver::Primary(_) | Driver::Down => {}
        }
    }
}
