//! What becomes of a node's effects, and what the drivers do between the nodes.

use twinfold_protocol::automaton::{Automaton, Effect, Event, Link};
use twinfold_protocol::handshake::{Decision, Role, Which, decide};
use twinfold_protocol::ids::{Generation, SessionId};
use twinfold_protocol::lifecycle::Record;

use super::world::{Bug, Driver, Node, World, generation};

impl World {
    pub(super) fn boot(&mut self, n: usize) {
        let copy = self.copy(n);
        let node = &mut self.nodes[n];
        node.automaton = Some(Automaton::new(self.config[n], copy, node.disk.yielded));
        let wanted = node.disk.wanted;
        self.tell(n, Event::Want(wanted));
        // Both hear of each other with the next heartbeats.
        for n in 0..2 {
            self.sent[n] = self.nodes[n].automaton.as_ref().map(Automaton::view);
        }
    }

    fn new_generation(&mut self) -> Generation {
        self.next += 1;
        generation(self.next)
    }

    fn become_primary(&mut self, n: usize, new: bool) {
        let next = new.then(|| self.new_generation());
        let side = self.config[n].side;
        self.nodes[n]
            .disk
            .record
            .change(|r| r.become_primary(side, next, 1).unwrap());
        self.nodes[n].disk.yielded = None;
        self.nodes[n].disk.was = Some(Role::Primary);
        self.nodes[n].driver = Driver::Primary(Link::None);
        self.tell_copy(n);
        self.tell(n, Event::DriverUp(Role::Primary));
    }

    fn become_secondary(&mut self, n: usize) {
        self.nodes[n].disk.record.change(|r| r.become_secondary(1));
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
            Effect::Start(..) if !well => self.tell(n, Event::DriverDown),
            Effect::Promote(_) | Effect::Demote if !well || role.is_none() => match role {
                Some(role) => self.tell(n, Event::DriverStays(role)),
                None => self.tell(n, Event::DriverDown),
            },
            Effect::Start(Role::Primary, force) => {
                let shared = self.nodes[n].disk.record.paired;
                self.become_primary(n, shared || force);
            }
            Effect::Start(Role::Secondary, _) | Effect::Demote => self.become_secondary(n),
            // By right, not by force: only what is still complete.
            Effect::Promote(true)
                if !self.nodes[n].disk.record.copy.up_to_date
                    && self.nodes[n].disk.yielded.is_none() =>
            {
                self.tell(n, Event::DriverStays(Role::Secondary));
            }
            Effect::Promote(_) => self.become_primary(n, true),
            Effect::StopDriver => {
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
            Effect::Yield(g, session) => {
                let disk = &self.nodes[n].disk;
                if disk.record.copy.current != g || disk.session != session {
                    return self.tell(n, Event::Kept);
                }
                self.nodes[n].disk.record.change(Record::fall_behind);
                self.nodes[n].disk.yielded = Some(g);
                if let Driver::Secondary { current, .. } = &mut self.nodes[n].driver {
                    *current = false;
                }
                if self.bug != Some(Bug::EarlyYield) {
                    self.tell(n, Event::Yielded(g));
                }
            }
            Effect::Ask(g) => {
                if !self.reachable {
                    return self.tell(n, Event::Unreachable);
                }
                let owner = *self.arbiter.entry(g).or_insert(n);
                let granted = owner == n || self.bug == Some(Bug::GrantsAll);
                self.tell(
                    n,
                    match granted {
                        true => Event::Granted(g),
                        false => Event::Denied(g),
                    },
                );
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

    fn make_alone(&mut self, n: usize) {
        let next = self.new_generation();
        self.nodes[n].disk.record.change(|r| r.go_alone(next));
        self.nodes[n].driver = Driver::Primary(Link::None);
        self.tell_copy(n);
        self.tell(n, Event::Link(Link::None));
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
                // Of a secondary that may be complete the controllers decide.
                if !copies[1].up_to_date {
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
            Link::Syncing | Link::Paired => {}
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
