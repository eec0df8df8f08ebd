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
//!   and only if both, from the same facts, choose the asking one ([`choice`]); or
//! - the arbiter granted it: a witness that gives each generation to one node, a fence
//!   command that has ended the peer; or
//! - no arbiter is configured and the policy says `alone`: then both may go on, and the
//!   operator was told so.

mod rules;

use crate::handshake::{CopyState, Role, Which, newer};
use crate::ids::{Generation, SessionId, Side};

/// What an operator sees of a module on a node.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, PartialOrd, Ord)]
pub enum State {
    /// Not running.
    Stop,
    /// Running, and not serving or following yet, for a reason.
    Wait,
    /// Serving without an up-to-date peer.
    Alone,
    /// Serving, with an up-to-date peer.
    Prim,
    /// Following a primary.
    Second,
}

/// How far a state is reached.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, PartialOrd, Ord)]
pub enum Status {
    /// Red: something is missing; somebody has to do something.
    NotReady,
    /// Orange: on the way.
    Transient,
    /// Green.
    Ready,
}

/// What a node tells its peer with each heartbeat.
#[derive(Clone, PartialEq, Eq, Debug, Hash)]
pub struct View {
    /// What its operator sees.
    pub state: State,
    /// How far that is reached.
    pub status: Status,
    /// Its copy's history.
    pub copy: CopyState,
    /// The role it had when it last served, or was up to date beside one that did.
    pub was: Option<Role>,
    /// It acknowledges writes, or may begin to at any moment.
    pub serves: bool,
    /// The session in which the copies were last equal, as far as this node knows.
    pub session: Option<SessionId>,
    /// It asks the peer to yield this generation.
    pub asks: Option<Generation>,
    /// It has yielded this generation, durably.
    pub yielded: Option<Generation>,
    /// It is ready to serve, should it be chosen: wanted to run, and not giving way.
    pub willing: bool,
    /// Its operator wants the roles exchanged.
    pub swaps: bool,
}

/// What is known of the peer.
#[derive(Clone, PartialEq, Eq, Debug, Hash)]
pub enum Peer {
    /// Nothing was heard yet, and the timeout has not passed.
    Unknown,
    /// What it last said.
    Heard(Box<View>),
    /// Nothing was heard for the timeout on any network.
    Silent,
}

/// Who settles which of two separated nodes goes on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Arbiter {
    /// Nobody: the policy decides.
    None,
    /// Something that is asked: a witness or a fence command.
    Asked,
}

/// What a node does when it is isolated and there is no arbiter.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Isolation {
    /// It goes on. Both may.
    Alone,
    /// It waits for its peer or the operator.
    Wait,
}

/// What is configured.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct Config {
    /// Which of the two nodes this is.
    pub side: Side,
    /// Who settles separations.
    pub arbiter: Arbiter,
    /// The policy without an arbiter.
    pub isolation: Isolation,
    /// Whether this node takes over by itself.
    pub failover: bool,
    /// The node that shall be primary whenever both are up to date; none: whoever is.
    pub default_prim: Option<Side>,
}

/// What the operator wants.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Wanted {
    /// Not running.
    Stopped,
    /// Running, as whatever the facts say.
    Running,
    /// Running as primary: this copy is the good one. `true`: by force, whatever the peer has.
    Prim(bool),
    /// Running as secondary, to begin with.
    Second,
}

/// The application: its scripts and addresses.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum App {
    /// Stopped.
    Down,
    /// Being started.
    Starting,
    /// Started.
    Up,
    /// Being stopped.
    Stopping,
}

/// The driver's process.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Driver {
    /// None.
    Down,
    /// Being started or changed to this role.
    Becoming(Role),
    /// Running in this role.
    Up(Role),
    /// Being stopped.
    Stopping,
}

/// The driver's relation to its peer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Link {
    /// A primary without a peer, a secondary without a primary.
    None,
    /// A resync runs.
    Syncing,
    /// Both copies are up to date; the peer's vote counts.
    Paired,
    /// A primary holds its answers and asks whether it may go on alone: its question
    /// number so and so.
    Holding(u64),
}

/// What a driver or the copy's file says of the copy.
#[derive(Clone, PartialEq, Eq, Debug, Hash)]
pub struct Copy {
    /// Its history.
    pub state: CopyState,
    /// The role it had when it last served, or was up to date beside one that did.
    pub was: Option<Role>,
    /// The peer may hold an up-to-date copy of the same generation.
    pub shared: bool,
    /// A secondary that was up to date until it lost its primary, in this very run.
    pub current: bool,
    /// The session in which the copies were last equal; none when they never were.
    pub session: Option<SessionId>,
}

/// What happened.
#[derive(Clone, PartialEq, Eq, Debug, Hash)]
pub enum Event {
    /// The operator wants something else.
    Want(Wanted),
    /// The operator wants the roles exchanged.
    Swap,
    /// A heartbeat.
    Heard(View),
    /// No heartbeat for the timeout, on any network.
    Silent,
    /// The driver is up in a role.
    DriverUp(Role),
    /// The driver has ended, or could not start.
    DriverDown,
    /// The driver could not change its role and is what it was.
    DriverStays(Role),
    /// The driver's relation to its peer changed.
    Link(Link),
    /// The copy's history changed.
    Copy(Copy),
    /// The application's start has ended.
    AppUp,
    /// The application is stopped, or could not be started.
    AppDown,
    /// This node's yield is durable.
    Yielded(Generation),
    /// It was not yielded: the copy has changed meanwhile.
    Kept,
    /// The arbiter grants this generation to this node.
    Granted(Generation),
    /// The arbiter has granted it to the peer.
    Denied(Generation),
    /// The arbiter does not answer.
    Unreachable,
    /// Time to try again what did not work.
    Retry,
}

/// What to do. Each is answered by an event.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Effect {
    /// Start the driver in a role: [`Event::DriverUp`] or [`Event::DriverDown`]. With
    /// `true` also against its objections, which the right to serve has answered.
    Start(Role, bool),
    /// Make the secondary primary; `true` as in [`Effect::Start`]: [`Event::DriverUp`],
    /// [`Event::DriverStays`] or [`Event::DriverDown`].
    Promote(bool),
    /// Make the primary secondary, everything flushed: as above.
    Demote,
    /// Stop the driver: [`Event::DriverDown`].
    StopDriver,
    /// Let the primary go on alone, if its question is still this one.
    GoAlone(u64),
    /// Note durably that this copy is not up to date, if it is still of this generation and
    /// was not made equal again since this session: [`Event::Yielded`] or [`Event::Kept`].
    Yield(Generation, Option<SessionId>),
    /// Ask the arbiter: [`Event::Granted`], [`Event::Denied`] or [`Event::Unreachable`].
    Ask(Generation),
    /// Start the application: [`Event::AppUp`] or [`Event::AppDown`].
    StartApp,
    /// Stop the application: [`Event::AppDown`].
    StopApp,
    /// The view changed: tell the peer now.
    Tell,
}

/// Why a node is where it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, thiserror::Error)]
pub enum Reason {
    /// As wanted.
    #[error("stopped by the operator")]
    Stopped,
    /// On the way.
    #[error("starting")]
    Starting,
    /// Nothing was heard of the peer yet.
    #[error("waiting for the first heartbeat of the peer, or for the timeout")]
    Listening,
    /// The copy is not good enough to serve.
    #[error(
        "this copy is not up to date and no primary is there to resync it: start the peer, or \
         run `primforce` to make this copy the good one, whatever the peer has"
    )]
    NotUpToDate,
    /// Neither copy was named the good one.
    #[error("first start: run `prim` on the node with the good copy and `second` on the other")]
    FirstStart,
    /// The peer may have gone on.
    #[error(
        "the peer is silent and may hold newer data: start it, or run `primforce` here if it is \
         lost for good"
    )]
    PeerMayBeNewer,
    /// The peer is chosen to serve.
    #[error("the peer has the newer copy, or was primary last: it is to serve")]
    PeerServes,
    /// The peer is asked to yield.
    #[error("asking the peer to give way")]
    Asking,
    /// The arbiter is asked or does not answer.
    #[error("isolated; the arbiter has not answered")]
    Arbiter,
    /// The arbiter gave the right to the peer.
    #[error("isolated; the arbiter let the peer go on")]
    Denied,
    /// Nobody can be asked.
    #[error("isolated, and the configuration says to wait")]
    Isolated,
    /// Failover is off.
    #[error("the primary is gone, but failover is off: run `prim` here to take over")]
    FailoverOff,
    /// Two histories.
    #[error("both nodes went on alone: split brain, the operator decides which copy is given up")]
    SplitBrain,
    /// Serving.
    #[error("serving")]
    Serving,
    /// Following.
    #[error("following the primary")]
    Following,
    /// Exchanging roles.
    #[error("exchanging roles")]
    Swapping,
}

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
/// one, then the willing one, then the former primary, else the even side. Both nodes come
/// to the same answer from the same facts.
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
    /// It denied the right, or did not answer: not asked again before the next retry.
    refused: Option<Reason>,
    swap: bool,
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
            refused: None,
            swap: false,
            gives_way: false,
            state: State::Stop,
            status: Status::NotReady,
            reason: Reason::Stopped,
            told: None,
        }
    }

    /// What an operator sees, and why.
    pub fn shown(&self) -> (State, Status, Reason) {
        (self.state, self.status, self.reason)
    }

    /// Something happened; returns what to do.
    pub fn handle(&mut self, event: Event) -> Vec<Effect> {
        self.learn(event);
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
            swaps: self.swap,
        }
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
            }
            Event::Swap => self.swap = true,
            Event::Heard(view) => {
                self.gives_way &= !view.serves;
                self.peer = Peer::Heard(Box::new(view));
                self.refused = None;
            }
            Event::Silent => self.peer = Peer::Silent,
            Event::DriverUp(role) => {
                self.driver = Driver::Up(role);
                self.serving = role == Role::Primary;
                self.link = Link::None;
                // The operator's word was for this start.
                if matches!(self.wanted, Wanted::Prim(_) | Wanted::Second) {
                    self.wanted = Wanted::Running;
                }
                // Also when it was asked for here and the peer gave its role: once is enough.
                self.swap = false;
            }
            Event::DriverDown => {
                // A primary's driver that died: the peer is nearer to serving than this node.
                self.gives_way |= self.driver == Driver::Up(Role::Primary)
                    && self.copy.shared
                    && self.config.failover;
                self.driver = Driver::Down;
                self.serving = false;
                self.link = Link::None;
                self.copy.current = false;
            }
            Event::DriverStays(role) => self.driver = Driver::Up(role),
            Event::Link(link) => {
                if link == Link::Paired {
                    self.copy.shared = true;
                }
                self.link = link;
            }
            Event::Copy(copy) => {
                // A right is for one generation; what was yielded was made good by a resync.
                if self.right.is_some_and(|r| r != copy.state.current) {
                    self.right = None;
                }
                if copy.state.up_to_date {
                    self.yielded = None;
                }
                self.copy = copy;
            }
            Event::AppUp => self.app = App::Up,
            Event::AppDown => self.app = App::Down,
            Event::Yielded(generation) => {
                self.yielding = false;
                self.yielded = Some(generation);
                self.copy.state.up_to_date = false;
                self.copy.current = false;
                self.right = None;
            }
            Event::Kept => self.yielding = false,
            Event::Granted(generation) => {
                self.asking = false;
                // What was yielded meanwhile is yielded.
                if self.yielded != Some(generation) && !self.yielding {
                    self.right = Some(generation);
                }
            }
            Event::Denied(_) => {
                self.asking = false;
                self.refused = Some(Reason::Denied);
            }
            Event::Unreachable => {
                self.asking = false;
                self.refused = Some(Reason::Arbiter);
            }
            Event::Retry => {
                self.refused = None;
                self.gives_way = false;
            }
        }
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
            Effect::Yield(..) => {
                self.yielding = true;
                self.right = None;
            }
            Effect::Ask(_) => self.asking = true,
            Effect::StartApp => self.app = App::Starting,
            Effect::StopApp => self.app = App::Stopping,
            Effect::Tell => {}
        }
    }
}

/// Effects of one event, at most.
const MAX_STEPS: usize = 8;
