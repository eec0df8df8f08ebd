//! Two nodes, their drivers, an arbiter and the network between them, as small as they
//! can be and still go wrong in every way.

use std::collections::BTreeMap;

use twinfold_protocol::automaton::{
    Arbiter, Automaton, Config, Copy, Effect, Event, Isolation, Link, State, Status, View, Wanted,
};
use twinfold_protocol::handshake::Role;
use twinfold_protocol::ids::{Generation, ModuleId, SessionId, Side};
use twinfold_protocol::lifecycle::Record;

/// A mistake planted on purpose, to see that the checker finds it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub(crate) enum Bug {
    /// The arbiter grants whoever asks.
    GrantsAll,
    /// A yield is said before it is durable.
    EarlyYield,
    /// A silent peer counts as dead.
    SilenceIsDeath,
    /// Nobody knows whether a view is from before the copies were last equal.
    NoSessions,
    /// A decision to go on alone answers whatever question there is when it arrives.
    AnyQuestion,
}

/// What survives a crash of a node.
#[derive(Clone, PartialEq, Eq, Debug, Hash)]
pub(super) struct Disk {
    pub(super) record: RecordKey,
    pub(super) yielded: Option<Generation>,
    pub(super) wanted: Wanted,
    /// The role it had when it last served or was up to date.
    pub(super) was: Option<Role>,
    pub(super) session: Option<SessionId>,
    /// The last acknowledged write that the copy has.
    pub(super) has: u8,
}

/// A [`Record`] that can be hashed.
#[derive(Clone, PartialEq, Eq, Debug, Hash)]
pub(super) struct RecordKey {
    pub(super) copy: twinfold_protocol::handshake::CopyState,
    pub(super) role: Option<Role>,
    pub(super) paired: bool,
}

impl RecordKey {
    pub(super) fn change(&mut self, change: impl FnOnce(&mut Record)) {
        let mut record = Record {
            copy: self.copy.clone(),
            role: self.role,
            paired: self.paired,
            ..Record::default()
        };
        change(&mut record);
        *self = RecordKey {
            copy: record.copy,
            role: record.role,
            paired: record.paired,
        };
    }
}

/// The driver's process as it really is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub(super) enum Driver {
    Down,
    Primary(Link),
    Secondary { link: Link, current: bool },
}

#[derive(Clone, PartialEq, Eq, Debug, Hash)]
pub(super) struct Node {
    pub(super) automaton: Option<Automaton>,
    pub(super) driver: Driver,
    pub(super) disk: Disk,
    pub(super) doing: Vec<Effect>,
    pub(super) app: bool,
    pub(super) frozen: bool,
}

/// Everything.
#[derive(Clone, PartialEq, Eq, Debug, Hash)]
pub(crate) struct World {
    pub(super) nodes: [Node; 2],
    /// The last view each node sent, until it arrives.
    pub(super) sent: [Option<View>; 2],
    pub(super) network: bool,
    pub(super) arbiter: BTreeMap<Generation, usize>,
    pub(super) reachable: bool,
    /// The last acknowledged write.
    pub(super) acknowledged: u8,
    pub(super) next: u8,
    pub(super) sessions: u128,
    pub(super) questions: u64,
    pub(super) faults: u8,
    pub(super) writes: u8,
    pub(super) config: [Config; 2],
    pub(super) bug: Option<Bug>,
}

/// Something that can happen next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Step {
    /// An effect of a node is done; `false`: it fails.
    Done(usize, usize, bool),
    /// A view arrives at a node.
    Arrive(usize),
    /// A node hears nothing for the timeout.
    Silent(usize),
    /// What did not work is tried again.
    Retry(usize),
    /// The drivers find each other.
    Connect,
    /// The resync ends.
    Resynced,
    /// A primary notices that its secondary is gone.
    Lost(usize),
    /// The application writes.
    Write(usize),
    /// A crashed node starts again.
    Boot(usize),
    /// A node loses everything but its disk.
    Crash(usize),
    /// A node's driver dies.
    KillDriver(usize),
    /// The network is cut, or heals.
    Cut(bool),
    /// The arbiter goes away, or comes back.
    Arbiter(bool),
    /// A node stops doing anything, or goes on.
    Freeze(usize, bool),
    /// The operator exchanges the roles.
    Swap(usize),
    /// The operator stops or starts a node.
    Want(usize, Wanted),
}

pub(super) fn generation(n: u8) -> Generation {
    Generation(u128::from(n))
}

impl World {
    /// Two nodes that are paired, A primary, with so many faults and writes to come.
    pub(crate) fn paired(
        arbiter: Arbiter,
        isolation: Isolation,
        faults: u8,
        bug: Option<Bug>,
    ) -> World {
        let config = [Side::Even, Side::Odd].map(|side| Config {
            side,
            arbiter,
            isolation,
            failover: true,
            default_prim: None,
        });
        let copy = twinfold_protocol::handshake::CopyState {
            module: ModuleId(1),
            current: generation(1),
            up_to_date: true,
            ..Default::default()
        };
        let node = |role| Node {
            automaton: None,
            driver: Driver::Down,
            disk: Disk {
                record: RecordKey {
                    copy: copy.clone(),
                    role: Some(role),
                    paired: true,
                },
                yielded: None,
                wanted: Wanted::Running,
                was: Some(role),
                session: None,
                has: 0,
            },
            doing: Vec::new(),
            app: false,
            frozen: false,
        };
        let mut world = World {
            nodes: [node(Role::Primary), node(Role::Secondary)],
            sent: [None, None],
            network: true,
            arbiter: BTreeMap::new(),
            reachable: true,
            acknowledged: 0,
            next: 1,
            sessions: 0,
            questions: 0,
            faults: 0,
            writes: 0,
            config,
            bug,
        };
        world.settle(300);
        assert!(world.is_together(), "{}", world.brief());
        world.faults = faults;
        world.writes = 2;
        world
    }

    pub(super) fn copy(&self, n: usize) -> Copy {
        let node = &self.nodes[n];
        Copy {
            state: node.disk.record.copy.clone(),
            was: node.disk.was,
            shared: node.disk.record.paired || node.disk.record.role == Some(Role::Secondary),
            current: matches!(node.driver, Driver::Secondary { current: true, .. }),
            session: node.disk.session,
        }
    }

    pub(super) fn tell(&mut self, n: usize, event: Event) {
        let Some(automaton) = &mut self.nodes[n].automaton else {
            return;
        };
        for effect in automaton.handle(event) {
            match effect {
                Effect::Tell => {
                    let view = self.nodes[n].automaton.as_ref().map(Automaton::view);
                    self.sent[n] = view;
                }
                effect => {
                    if self.bug == Some(Bug::EarlyYield)
                        && let Effect::Yield(g, _) = effect
                    {
                        self.tell(n, Event::Yielded(g));
                    }
                    self.nodes[n].doing.push(effect);
                }
            }
        }
    }

    pub(super) fn tell_copy(&mut self, n: usize) {
        let copy = self.copy(n);
        self.tell(n, Event::Copy(copy));
    }

    pub(super) fn link(&mut self, n: usize, to: Link) {
        if to == Link::Paired {
            self.nodes[n].disk.was = match self.nodes[n].driver {
                Driver::Primary(_) => Some(Role::Primary),
                _ => Some(Role::Secondary),
            };
            self.tell_copy(n);
        }
        match &mut self.nodes[n].driver {
            Driver::Primary(link) | Driver::Secondary { link, .. } => *link = to,
            Driver::Down => return,
        }
        self.tell(n, Event::Link(to));
    }

    fn is_alive(&self, n: usize) -> bool {
        self.nodes[n].automaton.is_some() && !self.nodes[n].frozen
    }

    fn connected(&self) -> bool {
        self.network && self.is_alive(0) && self.is_alive(1)
    }

    /// The primary and the secondary, if there is one of each.
    pub(super) fn roles(&self) -> Option<(usize, usize)> {
        (0..2).map(|n| (n, 1 - n)).find(|(p, s)| {
            matches!(self.nodes[*p].driver, Driver::Primary(_))
                && matches!(self.nodes[*s].driver, Driver::Secondary { .. })
        })
    }

    /// Whether a node can acknowledge a write now.
    fn acknowledges(&self, n: usize) -> bool {
        match self.nodes[n].driver {
            Driver::Primary(Link::None | Link::Syncing) => true,
            Driver::Primary(Link::Paired) => matches!(
                self.nodes[1 - n].driver,
                Driver::Secondary {
                    link: Link::Paired,
                    ..
                }
            ),
            _ => false,
        }
    }

    /// What is wrong with this state, if anything is.
    pub(crate) fn wrong(&self) -> Option<String> {
        let both = (0..2).all(|n| self.acknowledges(n));
        if both && self.config[0].arbiter == Arbiter::Asked {
            return Some("two nodes acknowledge writes although there is an arbiter".into());
        }
        let exclusive =
            self.config[0].isolation == Isolation::Wait || self.config[0].arbiter == Arbiter::Asked;
        (0..2)
            .find(|n| {
                exclusive && self.acknowledges(*n) && self.nodes[*n].disk.has != self.acknowledged
            })
            .map(|n| format!("node {n} serves without an acknowledged write"))
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

    /// Everything that can happen next. `faults`: also what breaks.
    pub(crate) fn steps(&self, faults: bool) -> Vec<Step> {
        let mut all = Vec::new();
        for n in 0..2 {
            let node = &self.nodes[n];
            if node.automaton.is_none() {
                all.push(Step::Boot(n));
                continue;
            }
            if node.frozen {
                all.push(Step::Freeze(n, false));
                continue;
            }
            all.extend((0..node.doing.len()).map(|i| Step::Done(n, i, true)));
            if self.network && self.sent[1 - n].is_some() {
                all.push(Step::Arrive(n));
            }
            if !self.network || !self.is_alive(1 - n) {
                all.push(Step::Silent(n));
            }
            all.push(Step::Retry(n));
            let paired = matches!(node.driver, Driver::Primary(Link::Paired | Link::Syncing));
            let follows = matches!(
                node.driver,
                Driver::Secondary {
                    link: Link::Paired | Link::Syncing,
                    ..
                }
            );
            let peer = match self.nodes[1 - n].driver {
                Driver::Primary(link) => paired_link(link) && follows,
                Driver::Secondary { link, .. } => paired_link(link) && paired,
                Driver::Down => false,
            };
            if (paired || follows) && !(peer && self.connected()) {
                all.push(Step::Lost(n));
            }
            if self.writes > 0 && self.acknowledges(n) && node.app && self.connected_or_alone(n) {
                all.push(Step::Write(n));
            }
        }
        if self.connected() && self.roles().is_some() {
            all.push(Step::Connect);
            all.push(Step::Resynced);
        }
        if !self.network {
            all.push(Step::Cut(false));
        }
        if !self.reachable {
            all.push(Step::Arbiter(true));
        }
        if faults && self.faults > 0 {
            if self.network {
                all.push(Step::Cut(true));
            }
            if self.reachable && self.config[0].arbiter == Arbiter::Asked {
                all.push(Step::Arbiter(false));
            }
            for n in 0..2 {
                if self.is_alive(n) {
                    all.push(Step::Crash(n));
                    all.push(Step::Freeze(n, true));
                    all.push(Step::Swap(n));
                    if self.nodes[n].driver != Driver::Down {
                        all.push(Step::KillDriver(n));
                    }
                    let stopped = self.nodes[n].disk.wanted == Wanted::Stopped;
                    all.push(Step::Want(
                        n,
                        match stopped {
                            true => Wanted::Running,
                            false => Wanted::Stopped,
                        },
                    ));
                    let failing = self.nodes[n].doing.iter().enumerate();
                    all.extend(
                        failing
                            .filter(|(_, e)| {
                                matches!(e, Effect::Start(..) | Effect::Promote(_) | Effect::Demote)
                            })
                            .map(|(i, _)| Step::Done(n, i, false)),
                    );
                }
            }
        }
        all
    }

    fn connected_or_alone(&self, n: usize) -> bool {
        self.connected() || !matches!(self.nodes[n].driver, Driver::Primary(Link::Paired))
    }

    /// Something happens.
    pub(crate) fn take(&mut self, step: Step) {
        match step {
            Step::Done(n, i, well) => {
                if i < self.nodes[n].doing.len() {
                    let effect = self.nodes[n].doing.remove(i);
                    self.faults -= u8::from(!well);
                    self.done(n, effect, well);
                }
            }
            Step::Arrive(n) => {
                if let Some(view) = self.sent[1 - n].take() {
                    self.tell(n, Event::Heard(view));
                }
            }
            Step::Silent(n) => {
                self.tell(n, Event::Silent);
                if self.bug == Some(Bug::SilenceIsDeath) {
                    let g = self.nodes[n].disk.record.copy.current;
                    self.tell(n, Event::Granted(g));
                }
            }
            Step::Retry(n) => self.tell(n, Event::Retry),
            Step::Connect => self.connect(),
            Step::Resynced => self.resynced(),
            Step::Lost(n) => self.lost(n),
            Step::Write(n) => {
                self.writes -= 1;
                self.acknowledged += 1;
                self.nodes[n].disk.has = self.acknowledged;
                if matches!(self.nodes[n].driver, Driver::Primary(Link::Paired)) {
                    self.nodes[1 - n].disk.has = self.acknowledged;
                }
            }
            Step::Boot(n) => self.boot(n),
            Step::Crash(n) => {
                self.faults -= 1;
                let node = &mut self.nodes[n];
                node.automaton = None;
                node.driver = Driver::Down;
                node.doing.clear();
                node.app = false;
                self.sent[n] = None;
            }
            Step::KillDriver(n) => {
                self.faults -= 1;
                self.nodes[n].driver = Driver::Down;
                self.nodes[n].doing.retain(|e| {
                    !matches!(
                        e,
                        Effect::Promote(_)
                            | Effect::Demote
                            | Effect::GoAlone(_)
                            | Effect::StopDriver
                    )
                });
                self.tell(n, Event::DriverDown);
                self.tell_copy(n);
            }
            Step::Cut(off) => {
                self.faults -= u8::from(off);
                self.network = !off;
                if !off {
                    // The next heartbeat says it all again.
                    for n in 0..2 {
                        self.sent[n] = self.nodes[n].automaton.as_ref().map(Automaton::view);
                    }
                } else {
                    self.sent = [None, None];
                }
            }
            Step::Arbiter(on) => {
                self.faults -= u8::from(!on);
                self.reachable = on;
            }
            Step::Freeze(n, on) => {
                self.faults -= u8::from(on);
                self.nodes[n].frozen = on;
            }
            Step::Swap(n) => {
                self.faults -= 1;
                self.tell(n, Event::Swap);
            }
            Step::Want(n, wanted) => {
                self.faults -= 1;
                self.nodes[n].disk.wanted = wanted;
                self.tell(n, Event::Want(wanted));
            }
        }
    }

    /// Everything is repaired, and both nodes are wanted: takes steps in turn until
    /// nothing is left to do, at most `most`.
    pub(crate) fn settle(&mut self, most: usize) {
        if !self.network {
            self.take(Step::Cut(false));
        }
        self.reachable = true;
        for n in 0..2 {
            self.nodes[n].frozen = false;
            if self.nodes[n].automaton.is_none() {
                self.take(Step::Boot(n));
            }
            if self.nodes[n].disk.wanted == Wanted::Stopped {
                self.nodes[n].disk.wanted = Wanted::Running;
                self.tell(n, Event::Want(Wanted::Running));
            }
        }
        for round in 0..most {
            if self.is_together() {
                return;
            }
            self.round(round);
        }
    }

    /// Everything that can go on does, and a heartbeat arrives.
    pub(crate) fn round(&mut self, round: usize) {
        let steps = self.steps(false);
        let retry = round % 40 == 39;
        let useful: Vec<_> = steps
            .into_iter()
            .filter(|s| retry || !matches!(s, Step::Retry(_)))
            .filter(|s| !matches!(s, Step::Write(_)))
            .collect();
        for step in useful {
            self.take(step);
        }
        // Heartbeats go on.
        for n in 0..2 {
            self.sent[n] = self.nodes[n].automaton.as_ref().map(Automaton::view);
            if round % 2 == n && self.sent[1 - n].is_some() {
                self.take(Step::Arrive(n));
            }
        }
    }

    /// The node whose driver is primary beside one that is secondary.
    pub(crate) fn primary(&self) -> Option<usize> {
        self.roles().map(|(primary, _)| primary)
    }
}

fn paired_link(link: Link) -> bool {
    matches!(link, Link::Paired | Link::Syncing)
}
