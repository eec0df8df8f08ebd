//! Two nodes, their drivers, an arbiter and the network between them, as small as they
//! can be and still go wrong in every way.

use std::collections::BTreeMap;

use twinfold_protocol::automaton::{
    Arbiter, Automaton, Config, Copy, Effect, Event, Isolation, Link, State, Status, View, Wanted,
};
use twinfold_protocol::handshake::{Role, Which, newer};
use twinfold_protocol::ids::{Generation, ModuleId, SessionId, Side};
use twinfold_protocol::lifecycle::Record;

pub(crate) use super::setup::{Bug, Judge, Setup};
use super::steps::Step;

/// What survives a crash of a node.
#[derive(Clone, PartialEq, Eq, Debug, Hash)]
pub(super) struct Disk {
    pub(super) record: RecordKey,
    pub(super) yielded: Option<Generation>,
    /// The rules that both nodes had.
    pub(super) agreed: Option<u128>,
    /// What the arbiter was asked for.
    pub(super) asked: Option<Generation>,
    pub(super) wanted: Wanted,
    /// The role it had when it last served or was up to date.
    pub(super) was: Option<Role>,
    pub(super) session: Option<SessionId>,
    /// The copies were equal, and not so long ago that it does not count any more.
    pub(super) recent: bool,
    /// The last acknowledged write that the copy has, and the last one that is on the disk.
    pub(super) has: u8,
    pub(super) synced: u8,
    /// How often the machine has booted.
    pub(super) boot: u128,
    /// It has lost its power since the copy was equal to another one, or served.
    pub(super) lost: bool,
}

/// A [`Record`] that can be hashed.
#[derive(Clone, PartialEq, Eq, Debug, Hash)]
pub(super) struct RecordKey {
    pub(super) copy: twinfold_protocol::handshake::CopyState,
    pub(super) role: Option<Role>,
    pub(super) paired: bool,
    pub(super) boot: u128,
}

impl RecordKey {
    pub(super) fn change(&mut self, change: impl FnOnce(&mut Record)) {
        let mut record = Record {
            copy: self.copy.clone(),
            role: self.role,
            paired: self.paired,
            boot: self.boot,
            ..Record::default()
        };
        change(&mut record);
        *self = RecordKey {
            copy: record.copy,
            role: record.role,
            paired: record.paired,
            boot: record.boot,
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
    pub(super) hangs: bool,
    /// Its disk has failed: nothing starts on it.
    pub(super) broken: bool,
    /// It was started, and its module is to start.
    pub(super) soon: bool,
}

/// Everything.
#[derive(Clone, PartialEq, Eq, Debug, Hash)]
pub(crate) struct World {
    pub(super) nodes: [Node; 2],
    /// The last views that each node sent, the oldest first, until they arrive or are lost.
    pub(super) sent: [Vec<View>; 2],
    pub(super) network: bool,
    /// Nothing arrives at this node, and what it sends does.
    pub(super) deaf: [bool; 2],
    pub(super) judge: Judge,
    pub(super) arbiter: BTreeMap<Generation, usize>,
    pub(super) reachable: bool,
    /// The last acknowledged write.
    pub(super) acknowledged: u8,
    /// It was lost with both copies: what the next one has that serves counts.
    pub(super) lost: bool,
    pub(super) next: u8,
    pub(super) sessions: u128,
    pub(super) questions: u64,
    pub(super) faults: u8,
    pub(super) writes: u8,
    pub(super) config: [Config; 2],
    /// A copy that was equal recently may go on without a silent peer (`syncdelta`).
    pub(super) syncdelta: bool,
    /// Which node went on from a generation that the other one may have.
    pub(super) left: BTreeMap<Generation, usize>,
    /// Of one generation both did.
    pub(super) twice: bool,
    /// Something has kept the nodes from hearing each other, or may have.
    pub(super) separated: bool,
    /// What a node did that it must not do, whatever comes of it.
    pub(super) mistake: Option<&'static str>,
    /// The operator has said that this node is to have another role.
    pub(super) told: bool,
    pub(super) bug: Option<Bug>,
}

/// Views of one node that are on their way at once: one that is late, and the next one. The late
/// one is lost when there are more.
const IN_FLIGHT: usize = 2;

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
        World::of(Setup::new(arbiter, isolation), faults, bug)
    }

    /// The same, configured like this.
    pub(crate) fn of(setup: Setup, faults: u8, bug: Option<Bug>) -> World {
        let Setup {
            arbiter, isolation, ..
        } = setup;
        let config = [Side::Even, Side::Odd].map(|side| Config {
            side,
            arbiter,
            isolation,
            failover: setup.failover,
            default_prim: setup.default_prim,
            rules: rules(arbiter, isolation),
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
                    boot: 1,
                },
                yielded: None,
                agreed: None,
                asked: None,
                wanted: Wanted::Running,
                was: Some(role),
                session: None,
                recent: false,
                has: 0,
                synced: 0,
                boot: 1,
                lost: false,
            },
            doing: Vec::new(),
            app: false,
            frozen: false,
            hangs: false,
            broken: false,
            soon: false,
        };
        let mut world = World {
            nodes: [node(Role::Primary), node(Role::Secondary)],
            sent: [Vec::new(), Vec::new()],
            network: true,
            deaf: [false; 2],
            judge: setup.judge,
            arbiter: BTreeMap::new(),
            reachable: true,
            acknowledged: 0,
            lost: false,
            next: 1,
            sessions: 0,
            questions: 0,
            faults: 0,
            writes: 0,
            config,
            syncdelta: false,
            left: BTreeMap::new(),
            twice: false,
            separated: false,
            mistake: None,
            told: false,
            bug: None,
        };
        world.settle(300);
        if setup.default_prim.is_some() {
            // It may be the other one's turn now.
            (0..60).for_each(|round| world.round(round, &[]));
        }
        assert!(world.is_together(), "{}", world.brief());
        world.faults = faults;
        world.writes = 2;
        // Before it is planted, everything is well.
        world.bug = bug;
        (0..2).for_each(|n| world.configured(n));
        match setup.syncdelta {
            true => world.with_syncdelta(),
            false => world,
        }
    }

    /// The same, and what was equal recently counts.
    pub(crate) fn with_syncdelta(mut self) -> World {
        self.syncdelta = true;
        (0..2).for_each(|n| self.tell_copy(n));
        self
    }

    /// What the automaton of a node is configured to do.
    pub(super) fn configuration(&self, n: usize) -> Config {
        let mut config = self.config[n];
        match self.bug {
            Some(Bug::BothEven) => config.side = Side::Even,
            Some(Bug::FailoverAnyway) => config.failover = true,
            _ => {}
        }
        config
    }

    fn configured(&mut self, n: usize) {
        let config = self.configuration(n);
        if let Some(automaton) = &mut self.nodes[n].automaton {
            automaton.configure(config);
            self.nodes[n].disk.agreed = automaton.agreed();
        }
    }

    pub(super) fn copy(&self, n: usize) -> Copy {
        let node = &self.nodes[n];
        let mut state = node.disk.record.copy.clone();
        state.up_to_date &= node.driver != Driver::Primary(Link::AtPeer);
        Copy {
            state,
            was: node.disk.was,
            shared: node.disk.record.paired || node.disk.record.role == Some(Role::Secondary),
            current: matches!(node.driver, Driver::Secondary { current: true, .. })
                || self.bug == Some(Bug::RestartIsCurrent)
                    && matches!(node.driver, Driver::Secondary { .. }),
            recent: self.syncdelta && node.disk.recent,
            session: node.disk.session,
        }
    }

    pub(super) fn tell(&mut self, n: usize, event: Event) {
        let Some(automaton) = &mut self.nodes[n].automaton else {
            return;
        };
        let event = match (self.bug, event) {
            (Some(Bug::SwapsBlindly), Event::Link(Link::Syncing)) => Event::Link(Link::Paired),
            (Some(Bug::SwapsBlindly), Event::Heard(view)) => {
                let follows = view.state == State::Second;
                let status = if follows { Status::Ready } else { view.status };
                Event::Heard(View { status, ..view })
            }
            (_, event) => event,
        };
        let effects = automaton.handle(event);
        // A word that is used up is not told again by the next daemon.
        if automaton.wanted() == Wanted::Running && self.nodes[n].disk.wanted != Wanted::Stopped {
            self.nodes[n].disk.wanted = Wanted::Running;
        }
        self.nodes[n].disk.asked = automaton.asked();
        self.nodes[n].disk.agreed = automaton.agreed();
        for effect in effects {
            match effect {
                Effect::Tell => self.send(n),
                effect => {
                    self.watch(n, effect);
                    if self.bug == Some(Bug::EarlyYield)
                        && let Effect::Yield(g, _) = effect
                    {
                        self.tell(n, Event::Yielded(g));
                    }
                    if self.bug == Some(Bug::EarlyRelease)
                        && let Effect::Release(g) = effect
                    {
                        self.tell(n, Event::Released(g));
                    }
                    self.nodes[n].doing.push(effect);
                }
            }
        }
    }

    /// A node says how it is, if its peer can hear that.
    pub(super) fn send(&mut self, n: usize) {
        let view = self.nodes[n].automaton.as_ref().map(Automaton::view);
        let sent = &mut self.sent[n];
        let Some(view) = view.filter(|view| sent.last() != Some(view)) else {
            return;
        };
        if sent.len() == IN_FLIGHT {
            sent.remove(0);
        }
        sent.push(view);
    }

    /// Of what is on its way and does not arrive, the last word is known to be missing.
    fn only_last(&mut self, n: usize) {
        let sent = &mut self.sent[n];
        sent.drain(..sent.len().saturating_sub(1));
    }

    /// The next heartbeat, if there is one, says it all again.
    fn says_all(&mut self, n: usize) {
        if self.nodes[n].automaton.is_some() {
            self.sent[n].clear();
            self.send(n);
        }
    }

    /// Whether what the peer sends arrives at this node.
    pub(super) fn hears(&self, n: usize) -> bool {
        self.network && !self.deaf[n]
    }

    pub(super) fn tell_copy(&mut self, n: usize) {
        let copy = self.copy(n);
        self.tell(n, Event::Copy(copy));
    }

    pub(super) fn link(&mut self, n: usize, to: Link) {
        if to == Link::Paired {
            self.nodes[n].disk.recent = true;
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

    pub(super) fn is_alive(&self, n: usize) -> bool {
        self.nodes[n].automaton.is_some() && !self.nodes[n].frozen
    }

    pub(super) fn connected(&self) -> bool {
        // An answer is needed for everything that the drivers do.
        (0..2).all(|n| self.hears(n) && self.is_alive(n))
    }

    /// The primary and the secondary, if there is one of each.
    pub(super) fn roles(&self) -> Option<(usize, usize)> {
        (0..2).map(|n| (n, 1 - n)).find(|(p, s)| {
            matches!(self.nodes[*p].driver, Driver::Primary(_))
                && matches!(self.nodes[*s].driver, Driver::Secondary { .. })
        })
    }

    /// Whether a node can acknowledge a write now.
    pub(crate) fn acknowledges(&self, n: usize) -> bool {
        let paired = matches!(self.nodes[n].driver, Driver::Primary(Link::Paired));
        if self.nodes[n].hangs || paired && self.nodes[1 - n].hangs {
            return false;
        }
        match self.nodes[n].driver {
            Driver::Primary(Link::None | Link::Syncing) => true,
            Driver::Primary(Link::Paired) => matches!(
                self.nodes[1 - n].driver,
                Driver::Secondary {
                    link: Link::Paired,
                    ..
                }
            ),
            Driver::Primary(Link::AtPeer) => {
                self.connected() && !self.nodes[1 - n].hangs && {
                    let peer = self.nodes[1 - n].driver;
                    matches!(peer, Driver::Secondary { link, .. } if link == Link::Heir)
                }
            }
            _ => false,
        }
    }

    /// Whose copy has what a node acknowledges.
    pub(super) fn copy_of(&self, n: usize) -> usize {
        match self.nodes[n].driver {
            Driver::Primary(Link::AtPeer) => 1 - n,
            _ => n,
        }
    }

    /// Something happens.
    pub(crate) fn take(&mut self, step: Step) {
        self.happens(step);
        self.calm_down();
        if let Some(serves) = (0..2).find(|n| self.lost && self.acknowledges(*n)) {
            self.acknowledged = self.nodes[serves].disk.has;
            self.lost = false;
        }
    }

    fn happens(&mut self, step: Step) {
        match step {
            Step::Done(n, i, well) => {
                if i < self.nodes[n].doing.len() {
                    let effect = self.nodes[n].doing.remove(i);
                    self.faults -= u8::from(!well);
                    self.done(n, effect, well);
                }
            }
            Step::Arrive(n) => {
                if !self.sent[1 - n].is_empty() {
                    let mut view = self.sent[1 - n].remove(0);
                    if self.bug == Some(Bug::ForgesSessions) {
                        view.session = self.nodes[n].disk.session;
                    }
                    self.tell(n, Event::Heard(view));
                }
            }
            Step::Lose(n) => drop(self.sent[1 - n].remove(0)),
            Step::Deaf(n, on) => {
                self.faults -= u8::from(on);
                self.separated |= on;
                self.deaf[n] = on;
                match on {
                    true => self.only_last(1 - n),
                    false => self.says_all(1 - n),
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
                let copy = self.copy_of(n);
                self.nodes[copy].disk.has = self.acknowledged;
                if matches!(self.nodes[n].driver, Driver::Primary(Link::Paired)) {
                    self.nodes[1 - n].disk.has = self.acknowledged;
                }
            }
            Step::Boot(n) => self.boot(n),
            Step::Begin(n) => {
                self.nodes[n].soon = false;
                let wanted = self.nodes[n].disk.wanted;
                self.tell(n, Event::Want(wanted));
            }
            Step::Crash(n) => {
                self.faults -= 1;
                self.crash(n);
            }
            Step::PowerCut(n) => {
                self.faults -= 1;
                self.power_cut(n);
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
                            | Effect::Forsake(_)
                            | Effect::StopDriver
                    )
                });
                self.tell(n, Event::DriverDown);
                self.tell_copy(n);
            }
            Step::Cut(off) => {
                self.faults -= u8::from(off);
                self.separated |= off;
                self.network = !off;
                (0..2).for_each(|n| match off {
                    true => self.only_last(n),
                    false => self.says_all(n),
                });
            }
            Step::Arbiter(on) => {
                self.faults -= u8::from(!on);
                self.reachable = on;
            }
            Step::Freeze(n, on) => {
                self.faults -= u8::from(on);
                self.separated |= on;
                self.nodes[n].frozen = on;
            }
            Step::Hang(n, on) => {
                self.faults -= u8::from(on);
                self.separated |= on;
                self.nodes[n].hangs = on;
            }
            Step::Configure(n, arbiter, isolation) => {
                self.faults = self.faults.saturating_sub(1);
                let config = &mut self.config[n];
                (config.arbiter, config.isolation) = (arbiter, isolation);
                config.rules = rules(arbiter, isolation);
                self.configured(n);
                self.tell(n, Event::Retry);
            }
            Step::DiskFails(n) => {
                self.faults -= 1;
                self.disk_fails(n);
            }
            Step::Repair(n) => self.nodes[n].broken = false,
            Step::Unanswered(n) => {
                self.separated = true;
                self.tell(n, Event::Unanswered);
            }
            Step::Swap(n) => {
                self.faults -= 1;
                self.told = true;
                self.tell(n, Event::Swap);
            }
            Step::Restart(n) => {
                self.faults -= 1;
                self.tell(n, Event::Restart);
            }
            Step::Want(n, wanted) => {
                self.faults -= 1;
                self.told |= matches!(wanted, Wanted::Prim(_));
                self.nodes[n].disk.wanted = wanted;
                self.nodes[n].soon = false;
                self.tell(n, Event::Want(wanted));
            }
        }
    }

    pub(super) fn power_cut(&mut self, n: usize) {
        self.crash(n);
        let disk = &mut self.nodes[n].disk;
        disk.boot += 1;
        (disk.has, disk.lost) = (disk.synced, true);
        let (mine, peer) = (&self.nodes[n].disk, &self.nodes[1 - n].disk);
        let copies = [mine, peer].map(|d| &d.record.copy);
        match newer(copies[0], copies[1]) {
            // The power of both was cut: nothing here was fsynced by the application.
            None if peer.lost => self.lost = true,
            None => {}
            // What a node had that went on alone is lost with it.
            Some(Which::Me) => self.acknowledged = mine.has,
            Some(Which::Peer) => {}
        }
    }

    /// What is on its way to the peer is so still.
    fn crash(&mut self, n: usize) {
        let node = &mut self.nodes[n];
        node.automaton = None;
        node.driver = Driver::Down;
        node.doing.clear();
        node.app = false;
        node.soon = false;
    }

    /// What a node is remembered to be wanted as.
    pub(crate) fn wanted(&self, n: usize) -> Wanted {
        self.nodes[n].disk.wanted
    }

    /// What a node is doing.
    pub(crate) fn doing(&self, n: usize) -> &[Effect] {
        &self.nodes[n].doing
    }

    /// The generation of a node's copy.
    pub(crate) fn generation(&self, n: usize) -> Generation {
        self.nodes[n].disk.record.copy.current
    }

    pub(crate) fn has_arbiter(&self) -> bool {
        self.config[0].arbiter == Arbiter::Asked
    }

    /// Whether no node takes over by itself.
    pub(crate) fn no_failover(&mut self, off: bool) {
        for n in 0..2 {
            self.config[n].failover = !off;
            self.configured(n);
        }
    }

    /// Whether a node takes over by itself.
    pub(crate) fn takes_over(&self) -> bool {
        self.config.iter().all(|c| c.failover)
    }

    /// So many faults more may come.
    pub(crate) fn allow(&mut self, faults: usize) {
        self.faults += faults as u8;
    }

    /// The application runs on a node that acknowledges what it writes.
    pub(crate) fn is_served(&self) -> bool {
        (0..2).any(|n| self.nodes[n].app && self.acknowledges(n))
    }

    /// The node whose driver is primary beside one that is secondary.
    pub(crate) fn primary(&self) -> Option<usize> {
        self.roles().map(|(primary, _)| primary)
    }
}

/// A number for what decides.
fn rules(arbiter: Arbiter, isolation: Isolation) -> u128 {
    u128::from(arbiter == Arbiter::Asked) * 2 + u128::from(isolation == Isolation::Alone)
}
