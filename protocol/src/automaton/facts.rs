//! What the automaton knows, is told and tells.

use crate::handshake::{CopyState, Role};
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
    /// Its operator wants the roles exchanged; or it has let go of the primary's role so that the
    /// peer takes it, and is not willing itself.
    pub swaps: bool,
    /// What its rules are ([`Config::rules`]).
    pub rules: u128,
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
    /// A number for all that decides a separation. Rules that the two nodes do not share exclude
    /// nothing: one that asks a witness does not keep one from going on that knows of none.
    pub rules: u128,
}

/// What the operator wants.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Wanted {
    /// Not running.
    Stopped,
    /// To run in a moment: the node has just started, and so does the module. It counts as one
    /// that runs, or the peer would not wait for it.
    Soon,
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
    /// A primary has answered what it held with an error, and takes no change any more.
    Forsaken,
    /// A primary whose disk has failed serves from its peer's.
    AtPeer,
    /// A secondary has the data, in a generation that nobody else has: it took over from a primary
    /// whose disk has failed, and carries out the calls of that one's application.
    Heir,
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
    /// They were equal so recently that the operator lets a copy go on of which it is not known
    /// whether the silent peer has a newer one.
    pub recent: bool,
}

/// What happened.
#[derive(Clone, PartialEq, Eq, Debug, Hash)]
pub enum Event {
    /// The operator wants something else.
    Want(Wanted),
    /// The operator wants the roles exchanged.
    Swap,
    /// The application is to be stopped and started, if it runs.
    Restart,
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
    /// The arbiter has not granted this generation to this node, or not any more.
    Released(Generation),
    /// That could not be made so.
    Unreleased,
    /// The arbiter grants this generation to this node.
    Granted(Generation),
    /// The arbiter has granted it to the peer.
    Denied(Generation),
    /// The arbiter does not answer.
    Unreachable,
    /// The peer is there, for it was heard just now, was asked to give way ([`Reason::Asking`]),
    /// and has not answered for as long as a silent one is waited for: its disk hangs, or whoever
    /// decides there, or it does not hear this node.
    Unanswered,
    /// Time to try again what did not work.
    Retry,
}

/// On what a secondary's copy is made primary.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Claim {
    /// It was up to date until it lost its primary, in this very run of the driver.
    Current,
    /// The right to go on from its generation, against the driver's doubts.
    Right,
    /// The operator's word, whatever the peer has.
    Force,
}

/// What to do. Each is answered by an event.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Effect {
    /// Start the driver in a role: [`Event::DriverUp`] or [`Event::DriverDown`]. With
    /// `true` also against its objections, which the right to serve has answered.
    Start(Role, bool),
    /// Make the secondary primary: [`Event::DriverUp`], [`Event::DriverStays`] or
    /// [`Event::DriverDown`].
    Promote(Claim),
    /// Make the primary secondary, everything flushed: as above.
    Demote,
    /// Stop the driver: [`Event::DriverDown`].
    StopDriver,
    /// Let the primary go on alone, if its question is still this one.
    GoAlone(u64),
    /// Let the primary answer what it holds with an error and take no change any more, if its
    /// question is still this one: the application could not be stopped while its calls wait.
    Forsake(u64),
    /// Note durably that this copy is not up to date, if it is still of this generation and
    /// was not made equal again since this session: [`Event::Yielded`] or [`Event::Kept`].
    Yield(Generation, Option<SessionId>),
    /// Ask the arbiter: [`Event::Granted`], [`Event::Denied`] or [`Event::Unreachable`].
    Ask(Generation),
    /// Give back what the arbiter has granted, if it has: [`Event::Released`] or
    /// [`Event::Unreleased`].
    Release(Generation),
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
    /// The peer has other rules, or was not heard since these are in force.
    #[error(
        "isolated, and the nodes are not known to have the same arbiter and policy: make them \
         equal on both, or run `primforce` here if the peer is lost for good"
    )]
    Rules,
    /// Failover is off.
    #[error("the primary is gone, but failover is off: run `prim` here to take over")]
    FailoverOff,
    /// Two histories.
    #[error(
        "both nodes went on alone: split brain. Run `stop`, then `second discard` on the node whose \
         copy is to be given up; what only it has goes into its archive"
    )]
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
    /// Serving without a disk.
    #[error(
        "the disk of this node has failed: the application works on the peer's. Run `swap` there to \
         move it, then `stop` here and repair the disk"
    )]
    AtPeer,
    /// The application is still where the disk has failed.
    #[error("this node has the data, the application is still on the peer, whose disk has failed")]
    Heir,
}
