//! One node's part in deciding who serves a module: when it starts, follows, takes over,
//! goes on alone, gives way and stops.
//!
//! A pure function of facts: events change what is known ([`Automaton::handle`]), then the
//! rules are looked at from the top and name what to do next. Nothing is remembered about
//! how a situation came about, so that a restarted controller decides as the one before.
//!
//! ```text
//!            start                 peer is SECOND
//!   STOP ----------> WAIT ---+---> ALONE <-----------> PRIM
//!    ^                |      |       ^   peer left       |
//!    |      stop      |      |       | peer gave way /   | swap
//!    +----------------+      |       | right granted     v
//!                            +---> SECOND <--------------+
//! ```
//!
//! # The right to serve
//!
//! Two copies of one generation may both be complete. A node acknowledges writes without
//! its peer only with the *right* to go on from that generation (invariant 4), and of one
//! generation at most one node gets it:
//!
//! - the copy was alone already: its generation is on no other node; or
//! - the peer *yielded* the generation: it noted, durably, that its own copy is not up to
//!   date, and says so. A node yields only to one that asks, only while it does not serve,
//!   and only if both, from the same facts, choose the asking one ([`choice`]). A copy that only
//!   a power cut counts out yields as well: with `recent` it would count itself in again as soon
//!   as the peer is silent; or
//! - the peer's copy is not complete, durably, and by more than a power cut; or
//! - the arbiter granted it: a witness that gives each generation to one node, a fence
//!   command that has ended the peer.
//!   What it granted and was not needed, because the copies are equal again and nobody went on,
//!   is given back: it would decide the next separation, weeks later; or
//! - no arbiter is configured and the policy says `alone`: then both may go on, and the
//!   operator was told so.

mod facts;
mod rules;
#[cfg(test)]
mod tests;

use crate::handshake::{CopyState, Role, Which, newer};
use crate::ids::{Generation, Side};

pub use facts::{
    App, Arbiter, Claim, Config, Copy, Driver, Effect, Event, Isolation, Link, Peer, Reason, State,
    Status, View, Wanted,
};

/// What decides which of two nodes shall serve.
#[derive(Clone, Copy, Debug)]
pub struct Candidate<'a> {
    /// Its copy's history.
    pub copy: &'a CopyState,
    /// It is ready to serve.
    pub willing: bool,
    /// The role it had when it last served, or was up to date beside one that did.
    pub was: Option<Role>,
    /// Which node it is.
    pub side: Side,
}

/// Which of two nodes shall serve when neither does: the newer copy; of equals the complete
/// one, then one that was until it gave way, and lost nothing since, then the willing one, then
/// the former primary, else the even side. Both nodes come to the same answer from the same
/// facts.
pub fn choice(me: Candidate<'_>, peer: Candidate<'_>) -> Which {
    if let Some(which) = newer(me.copy, peer.copy) {
        return which;
    }
    let pick = |what: fn(Candidate<'_>) -> bool| match (what(me), what(peer)) {
        (true, false) => Some(Which::Me),
        (false, true) => Some(Which::Peer),
        _ => None,
    };
    pick(|c| usable(c.copy))
        .or_else(|| pick(|c| c.copy.gave_way && !c.copy.cut))
        .or_else(|| pick(|c| c.willing))
        .or_else(|| pick(|c| c.was == Some(Role::Primary)))
        .unwrap_or(match me.side {
            Side::Even => Which::Me,
            Side::Odd => Which::Peer,
        })
}

/// Whether a copy may serve as far as its own flag goes.
fn usable(copy: &CopyState) -> bool {
    copy.current.is_some() && copy.up_to_date
}

/// One node's part for one module.
#[derive(Clone, PartialEq, Eq, Debug, Hash)]
pub struct Automaton {
    config: Config,
    wanted: Wanted,
    app: App,
    driver: Driver,
    /// The driver is primary, whatever it is becoming.
    serving: bool,
    link: Link,
    copy: Copy,
    peer: Peer,
    /// The generation from which this node may go on without its peer.
    right: Option<Generation>,
    yielded: Option<Generation>,
    yielding: bool,
    /// An answer of the arbiter is outstanding.
    asking: bool,
    /// The rules that both nodes had when the peer was heard last.
    agreed: Option<u128>,
    /// The arbiter was asked for this generation, and may have granted it.
    asked: Option<Generation>,
    /// What it granted is being given back.
    releasing: bool,
    /// That did not work: not before the next retry.
    kept: bool,
    /// It denied the right, or did not answer: not asked again before the next retry.
    refused: Option<Reason>,
    /// The peer was asked to yield this generation, and does not answer.
    unanswered: Option<Generation>,
    swap: bool,
    /// The application is to be stopped, to be started again.
    restart: bool,
    /// This node let go of the primary's role, so that the peer takes it.
    gives_way: bool,
    state: State,
    status: Status,
    reason: Reason,
    told: Option<View>,
}

impl Automaton {
    /// A module that is not running, with the copy as its file tells it.
    pub fn new(config: Config, copy: Copy, yielded: Option<Generation>) -> Automaton {
        Automaton {
            config,
            wanted: Wanted::Stopped,
            app: App::Down,
            driver: Driver::Down,
            serving: false,
            link: Link::None,
            copy,
            peer: Peer::Unknown,
            right: None,
            yielded,
            yielding: false,
            asking: false,
            agreed: None,
            asked: None,
            releasing: false,
            kept: false,
            refused: None,
            unanswered: None,
            swap: false,
            restart: false,
            gives_way: false,
            state: State::Stop,
            status: Status::NotReady,
            reason: Reason::Stopped,
            told: None,
        }
    }

    /// What is configured from now on; looked at with the next event.
    pub fn configure(&mut self, config: Config) {
        self.config = config;
        self.agree();
    }

    /// What an operator sees, and why.
    pub fn shown(&self) -> (State, Status, Reason) {
        (self.state, self.status, self.reason)
    }

    /// Both nodes had these rules when the daemon before heard the peer last.
    pub fn has_agreed(mut self, rules: Option<u128>) -> Automaton {
        self.agreed = rules.filter(|r| *r == self.config.rules);
        self
    }

    /// The rules that both nodes had when the peer was heard last, if these are in force still.
    /// Noted durably when they change.
    pub fn agreed(&self) -> Option<u128> {
        self.agreed
    }

    /// Whether the peer says that it has other rules.
    pub fn differs(&self) -> bool {
        matches!(&self.peer, Peer::Heard(view) if view.rules != self.config.rules)
    }

    /// The arbiter was asked for this generation by the daemon before.
    pub fn has_asked(mut self, generation: Option<Generation>) -> Automaton {
        self.asked = generation.filter(|g| *g == self.copy.state.current);
        self
    }

    /// The generation for which the arbiter was asked, while that is not known to be without
    /// consequence. Noted durably before it is asked.
    pub fn asked(&self) -> Option<Generation> {
        self.asked
    }

    /// What the operator wants, as far as nothing has come of it: the word that a node be
    /// primary or secondary is used up as soon as it is one, or its peer serves.
    pub fn wanted(&self) -> Wanted {
        self.wanted
    }

    /// Something happened; returns what to do.
    pub fn handle(&mut self, event: Event) -> Vec<Effect> {
        self.learn(event);
        self.forget_words();
        let mut effects = Vec::new();
        // Each effect changes a fact, so this ends; the bound is a guard.
        for _ in 0..MAX_STEPS {
            match self.next() {
                Some(effect) => {
                    self.begin(effect);
                    effects.push(effect);
                }
                None => break,
            }
        }
        let view = self.view();
        if self.told.as_ref() != Some(&view) {
            self.told = Some(view);
            effects.push(Effect::Tell);
        }
        effects
    }

    /// What the peer is told.
    pub fn view(&self) -> View {
        View {
            state: self.state,
            status: self.status,
            copy: self.copy.state.clone(),
            was: self.copy.was,
            session: self.copy.session,
            serves: self.serves(),
            asks: self.asks(),
            yielded: self.yielded,
            willing: self.willing(),
            swaps: self.swap || self.gives_the_role(),
            rules: self.config.rules,
        }
    }

    fn agree(&mut self) {
        let rules = self.config.rules;
        self.agreed = match &self.peer {
            Peer::Heard(view) => Some(view.rules),
            _ => self.agreed,
        }
        .filter(|r| *r == rules);
    }

    /// Whether this node acknowledges writes or may begin to without a further decision. A
    /// primary that is being demoted or stopped does until that has succeeded.
    fn serves(&self) -> bool {
        self.serving || self.driver == Driver::Becoming(Role::Primary)
    }

    fn learn(&mut self, event: Event) {
        match event {
            Event::Want(wanted) => {
                self.wanted = wanted;
                self.swap = false;
                self.refused = None;
                self.gives_way &= !matches!(wanted, Wanted::Prim(_));
            }
            Event::Swap => self.swap = true,
            Event::Restart => self.restart = self.app == App::Up,
            Event::Heard(view) => {
                self.gives_way &= !view.serves;
                // Of one that was there all the time it says no more than before. One that is back may
                // go on itself, by a right of its own: what was granted here because it was away, and
                // not used, is asked for again.
                if !matches!(self.peer, Peer::Heard(_)) {
                    self.refused = None;
                    self.right = None;
                }
                self.peer = Peer::Heard(Box::new(view));
                // It went on, whoever let it: what was granted here is of the past.
                self.right = self.right.filter(|_| !self.is_overtaken());
                self.agree();
            }
            Event::Silent => self.peer = Peer::Silent,
            Event::DriverUp(role) => {
                self.driver = Driver::Up(role);
                self.unanswered = None;
                self.serving = role == Role::Primary;
                // An exchange of roles ends with it, also one that was asked for here when the
                // peer gave its role: once is enough.
                self.link = Link::None;
                // The operator's word was for this start.
                if matches!(self.wanted, Wanted::Prim(_) | Wanted::Second) {
                    self.wanted = Wanted::Running;
                }
            }
            Event::DriverDown => {
                // A primary's driver that died: the peer is nearer to serving than this node. One
                // that was stopped: whoever stops it to start it again wants it elsewhere.
                let died = self.driver == Driver::Up(Role::Primary) && self.copy.shared;
                let left = self.driver == Driver::Stopping && self.serving && self.is_followed();
                self.gives_way |= (died || left) && self.config.failover;
                self.driver = Driver::Down;
                self.serving = false;
                self.link = Link::None;
                self.unanswered = None;
                self.copy.current = false;
                // It was for what this run of the driver knew. Who may have it still gets it again.
                self.right = None;
            }
            Event::DriverStays(role) => self.driver = Driver::Up(role),
            Event::Link(link) => {
                if link == Link::Paired {
                    self.copy.shared = true;
                }
                if is_joint(link) {
                    self.right = None;
                    self.refused = None;
                }
                self.link = link;
                self.unanswered = None;
            }
            Event::Copy(copy) => {
                // A right is for one generation; what was yielded was made good by a resync.
                if self.right.is_some_and(|r| r != copy.state.current) {
                    self.right = None;
                }
                if copy.state.up_to_date {
                    self.yielded = None;
                }
                // It was used, or is of the past: nobody shall get it from now on.
                if self.asked != Some(copy.state.current) {
                    self.asked = None;
                }
                self.copy = copy;
            }
            Event::AppUp => self.app = App::Up,
            Event::AppDown => {
                self.app = App::Down;
                self.restart = false;
            }
            Event::Yielded(generation) => {
                self.yielding = false;
                self.yielded = Some(generation);
                self.copy.state.gave_way = true;
                self.copy.state.up_to_date = false;
                self.copy.current = false;
                self.right = None;
            }
            Event::Kept => self.yielding = false,
            Event::Released(generation) => {
                self.releasing = false;
                self.asked = self.asked.filter(|g| *g != generation);
            }
            Event::Unreleased => {
                self.releasing = false;
                self.kept = true;
            }
            Event::Granted(generation) => {
                self.asking = false;
                // What was yielded meanwhile is yielded, what is equal again is not needed, and
                // the peer may have gone on as well where the arbiter grants whoever reaches it.
                let needed = !is_joint(self.link) && !self.is_overtaken();
                if needed && self.yielded != Some(generation) && !self.yielding {
                    self.right = Some(generation);
                }
            }
            Event::Denied(_) => {
                self.asking = false;
                self.is_refused(Reason::Denied);
            }
            Event::Unreachable => {
                self.asking = false;
                self.is_refused(Reason::Arbiter);
            }
            Event::Unanswered => {
                if self.reason == Reason::Asking {
                    self.unanswered = Some(self.copy.state.current);
                }
            }
            Event::Retry => {
                self.refused = None;
                self.kept = false;
                self.gives_way = false;
            }
        }
    }

    /// An answer that comes when the nodes are together again says nothing about their next
    /// separation.
    fn is_refused(&mut self, reason: Reason) {
        self.refused = (!is_joint(self.link)).then_some(reason);
    }

    /// The operator's words are about what is so when they are said: one that could not be
    /// followed then must not be followed by whatever happens later.
    fn forget_words(&mut self) {
        let follows = matches!(self.link, Link::Syncing | Link::Paired);
        let peer_serves = matches!(&self.peer, Peer::Heard(view) if view.serves);
        let word = matches!(self.wanted, Wanted::Prim(_) | Wanted::Second);
        if word && (self.serving || follows || peer_serves) {
            self.wanted = Wanted::Running;
        }
        self.swap &= is_joint(self.link);
    }

    /// An effect is under way.
    fn begin(&mut self, effect: Effect) {
        match effect {
            Effect::Start(role, _) => self.driver = Driver::Becoming(role),
            Effect::Promote(_) => self.driver = Driver::Becoming(Role::Primary),
            Effect::Demote => {
                self.driver = Driver::Becoming(Role::Secondary);
                self.gives_way = true;
            }
            Effect::StopDriver => self.driver = Driver::Stopping,
            Effect::GoAlone(_) => self.link = Link::None,
            Effect::Forsake(_) => self.link = Link::Forsaken,
            Effect::Yield(..) => {
                self.yielding = true;
                self.right = None;
            }
            Effect::Ask(generation) => {
                self.asking = true;
                self.asked = Some(generation);
            }
            Effect::Release(_) => {
                self.releasing = true;
                self.right = None;
            }
            Effect::StartApp => self.app = App::Starting,
            Effect::StopApp => {
                self.app = App::Stopping;
                self.restart = false;
            }
            Effect::Tell => {}
        }
    }
}

/// The two nodes act together: nobody went on, and the next separation is decided anew; or the
/// peer did, with this one's consent.
fn is_joint(link: Link) -> bool {
    matches!(link, Link::Paired | Link::AtPeer | Link::Heir)
}

/// Effects of one event, at most.
const MAX_STEPS: usize = 8;
