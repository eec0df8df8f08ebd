//! What two daemons tell each other of a module, as it goes over the wire.

use std::collections::BTreeMap;

use fs_driver::control::{Hex, History, PartName};
use serde::{Deserialize, Serialize};
use twinfold_protocol::automaton::{State, Status, View};
use twinfold_protocol::handshake::{CopyState, Role};
use twinfold_protocol::ids::{Generation, SessionId};

use crate::config::ResourceState;
use crate::net::announce::{read, show};
use crate::runner::events::beginning;

/// A state, by the name that operators know.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub(crate) enum StateName {
    Stop,
    Wait,
    Alone,
    Prim,
    Second,
}

impl StateName {
    pub(crate) fn text(self) -> &'static str {
        match self {
            StateName::Stop => "STOP",
            StateName::Wait => "WAIT",
            StateName::Alone => "ALONE",
            StateName::Prim => "PRIM",
            StateName::Second => "SECOND",
        }
    }
}

impl From<State> for StateName {
    fn from(state: State) -> StateName {
        match state {
            State::Stop => StateName::Stop,
            State::Wait => StateName::Wait,
            State::Alone => StateName::Alone,
            State::Prim => StateName::Prim,
            State::Second => StateName::Second,
        }
    }
}

impl From<StateName> for State {
    fn from(state: StateName) -> State {
        match state {
            StateName::Stop => State::Stop,
            StateName::Wait => State::Wait,
            StateName::Alone => State::Alone,
            StateName::Prim => State::Prim,
            StateName::Second => State::Second,
        }
    }
}

/// How far a state is reached.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) enum StatusName {
    NotReady,
    Transient,
    Ready,
}

impl StatusName {
    pub(crate) fn text(self) -> &'static str {
        match self {
            StatusName::NotReady => "NotReady",
            StatusName::Transient => "Transient",
            StatusName::Ready => "Ready",
        }
    }
}

impl From<Status> for StatusName {
    fn from(status: Status) -> StatusName {
        match status {
            Status::NotReady => StatusName::NotReady,
            Status::Transient => StatusName::Transient,
            Status::Ready => StatusName::Ready,
        }
    }
}

impl From<StatusName> for Status {
    fn from(status: StatusName) -> Status {
        match status {
            StatusName::NotReady => Status::NotReady,
            StatusName::Transient => Status::Transient,
            StatusName::Ready => Status::Ready,
        }
    }
}

/// Longest reason, in bytes: it may name everything that is down, and why. With the longest list
/// of resources it has room in a frame.
const MAX_REASON: usize = 2000;

/// A [`View`] on the wire.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct WireView {
    pub(crate) state: StateName,
    pub(crate) status: StatusName,
    pub(crate) reason: String,
    copy: History,
    was: Option<PartName>,
    pub(crate) serves: bool,
    session: Option<Hex>,
    asks: Option<Hex>,
    yielded: Option<Hex>,
    willing: bool,
    swaps: bool,
    /// The hardware addresses of the node's interfaces.
    hardware: Vec<String>,
    /// Its resources.
    pub(crate) resources: BTreeMap<String, ResourceState>,
    rules: Hex,
    /// Its driver lets callers in at the TCP port beside its link's, while it lives.
    #[serde(default)]
    pub(crate) present: bool,
    /// Which configuration it runs with.
    #[serde(default)]
    pub(crate) config: Option<String>,
}

pub(crate) fn part(role: Role) -> PartName {
    match role {
        Role::Primary => PartName::Primary,
        Role::Secondary => PartName::Secondary,
    }
}

impl WireView {
    pub(crate) fn new(view: &View, reason: String, config: Option<String>) -> WireView {
        WireView {
            state: view.state.into(),
            status: view.status.into(),
            reason: beginning(&reason, MAX_REASON).to_owned(),
            copy: History::from(&view.copy),
            was: view.was.map(part),
            serves: view.serves,
            session: view.session.map(|s| Hex(s.0)),
            asks: view.asks.map(|g| Hex(g.0)),
            yielded: view.yielded.map(|g| Hex(g.0)),
            willing: view.willing,
            swaps: view.swaps,
            hardware: Vec::new(),
            resources: BTreeMap::new(),
            rules: Hex(view.rules),
            present: false,
            config,
        }
    }

    /// It waits, for this reason.
    pub(crate) fn waits(&mut self, status: Status, why: &str) {
        self.state = StateName::Wait;
        self.status = status.into();
        beginning(why, MAX_REASON).clone_into(&mut self.reason);
    }

    /// The node's interfaces have these hardware addresses.
    pub(crate) fn has_hardware(&mut self, all: &[[u8; 6]]) {
        self.hardware = all.iter().map(|one| show(*one)).collect();
    }

    /// The hardware addresses of the node's interfaces; what is none is left out.
    pub(crate) fn hardware(&self) -> Vec<[u8; 6]> {
        self.hardware.iter().filter_map(|text| read(text)).collect()
    }

    /// Whether the copy is up to date.
    pub(crate) fn up_to_date(&self) -> bool {
        self.copy.up_to_date
    }
}

impl From<&WireView> for View {
    fn from(told: &WireView) -> View {
        View {
            state: told.state.into(),
            status: told.status.into(),
            copy: CopyState::from(&told.copy),
            was: told.was.map(Role::from),
            serves: told.serves,
            session: told.session.map(|s| SessionId(s.0)),
            asks: told.asks.map(|g| Generation(g.0)),
            yielded: told.yielded.map(|g| Generation(g.0)),
            willing: told.willing,
            swaps: told.swaps,
            rules: told.rules.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use twinfold_protocol::ids::ModuleId;

    #[test]
    fn a_view_arrives_as_it_was_sent() {
        let view = View {
            state: State::Second,
            status: Status::Transient,
            copy: CopyState {
                module: ModuleId(u128::MAX),
                current: Generation(1 << 127),
                bases: vec![Generation(3)],
                history: vec![Generation(4), Generation(5)],
                up_to_date: false,
                cut: true,
                gave_way: true,
                given_up: false,
                forced: true,
            },
            was: Some(Role::Secondary),
            serves: true,
            session: Some(SessionId(7)),
            asks: None,
            yielded: Some(Generation(9)),
            willing: true,
            swaps: true,
            rules: u128::MAX - 1,
        };
        let text = serde_json::to_string(&WireView::new(&view, "why".into(), None)).unwrap();
        let told: WireView = serde_json::from_str(&text).unwrap();
        assert_eq!(View::from(&told), view);
        assert!(text.contains("\"SECOND\""), "{text}");
    }
}
