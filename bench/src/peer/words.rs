//! What the two machines say to each other: one asks, the other answers.

use std::net::SocketAddr;
use std::time::Duration;

use fs_driver::state::Ack;
use serde::{Deserialize, Serialize};

use crate::process::Usage;
use crate::report::Machine;
use crate::systems::System;

/// How long a step of making the acquaintance may take.
pub(super) const STEP: Duration = Duration::from_secs(10);

/// How long a question may take to be answered: for some of them a driver is started or
/// stopped, or a disk is flushed.
const ANSWER: Duration = Duration::from_secs(120);

/// And one that is answered at once.
const AT_ONCE: Duration = Duration::from_secs(20);

/// How often the asking machine says that it is there.
pub(super) const BEAT: Duration = Duration::from_secs(3);

/// After so long without a word the machine that asks counts as gone.
pub(super) const SILENCE: Duration = Duration::from_secs(45);

/// The first word.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Hello {
    pub(super) secret: String,
}

/// What is asked for.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) enum Request {
    /// Nothing: it is there.
    Beat,
    /// The file system of the folders is flushed.
    Flush,
    /// A place for the other end of `system`: its key is made, its address chosen.
    Prepare { system: System },
    /// It is started.
    Start { system: System, with: With },
    /// A secondary is stopped in order.
    Stop { system: System },
    /// And started again.
    StartAgain { system: System },
    /// What its processes have used.
    Usage { system: System },
    /// Everything is ended and removed.
    Leave,
}

impl Request {
    /// How long the answer may take.
    pub(super) fn patience(&self) -> Duration {
        match self {
            Request::Beat | Request::Usage { .. } => AT_ONCE,
            Request::Flush
            | Request::Prepare { .. }
            | Request::Start { .. }
            | Request::Stop { .. }
            | Request::StartAgain { .. }
            | Request::Leave => ANSWER,
        }
    }
}

/// What the other end of a system has to know of this one.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) enum With {
    /// A secondary of this primary.
    Primary {
        id: String,
        address: SocketAddr,
        ack: Ack,
    },
    /// Answers whom this key belongs to.
    Quic { id: String, address: SocketAddr },
    /// Answers whoever begins with these bytes, as digits.
    Tcp { key: String },
}

/// What is answered.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Answer {
    /// To the first word.
    Welcome {
        machine: Box<Machine>,
    },
    Done,
    /// The place of a system: its identity, and where it listens.
    Prepared {
        id: String,
        address: SocketAddr,
    },
    Usage(Vec<Usage>),
    Refused {
        why: String,
    },
}
