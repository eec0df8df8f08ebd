//! What two nodes are configured to do, and what they may be made to do wrong.

use twinfold_protocol::automaton::{Arbiter, Isolation};
use twinfold_protocol::ids::Side;

/// A mistake planted on purpose, to see that the checker finds it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub(crate) enum Bug {
    /// The arbiter grants whoever asks.
    GrantsAll,
    /// A yield is said before it is durable.
    EarlyYield,
    /// A silent peer counts as dead.
    SilenceIsDeath,
    /// What was granted is said to be given back before it is.
    EarlyRelease,
    /// Nobody knows whether a view is from before the copies were last equal.
    NoSessions,
    /// A decision to go on alone answers whatever question there is when it arrives.
    AnyQuestion,
    /// A copy whose machine lost its power counts as it did before.
    ForgetsPower,
    /// The node that is to be ended runs on.
    NoFence,
    /// A copy that follows again after a restart counts as one that was never left.
    RestartIsCurrent,
    /// Both nodes take themselves for the even one.
    BothEven,
    /// A node takes over although it is configured not to.
    FailoverAnyway,
    /// A primary takes one that is being resynced for one that is up to date.
    SwapsBlindly,
    /// What is in the network and was said before the nodes were last silent to each other comes
    /// with the session of now.
    ForgesSessions,
}

/// Who is asked when the configuration says that somebody is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub(crate) enum Judge {
    /// A witness gives each generation to one node.
    Witness,
    /// A command ends the other node.
    Fence,
    /// An address answers whoever reaches it: both may.
    Ping,
}

/// What two nodes are configured to do.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Setup {
    pub(crate) arbiter: Arbiter,
    pub(crate) judge: Judge,
    pub(crate) isolation: Isolation,
    pub(crate) failover: bool,
    pub(crate) default_prim: Option<Side>,
    pub(crate) syncdelta: bool,
}

impl Setup {
    pub(crate) fn new(arbiter: Arbiter, isolation: Isolation) -> Setup {
        Setup {
            arbiter,
            judge: Judge::Witness,
            isolation,
            failover: true,
            default_prim: None,
            syncdelta: false,
        }
    }
}
