//! The network between the nodes: connections that carry streams in order, late, cut
//! one way or both, or not at all.

use std::collections::BTreeMap;

use twinfold_protocol::handshake::Decision;
use twinfold_protocol::ids::Seq;
use twinfold_protocol::ids::SessionId;
use twinfold_protocol::lifecycle::Record;
use twinfold_protocol::marks::{DirtyMap, Intent};
use twinfold_protocol::op::Sequenced;
use twinfold_protocol::wire::{OpStreamStart, Receipt};

use crate::calls::{Answer, Request};
use crate::world::{Event, MS, World};

/// What one node says to the other.
#[derive(Clone, Debug)]
pub(crate) enum Message {
    /// The secondary's state.
    Hello {
        /// What it knows of its copy.
        record: Box<Record>,
        /// The session it could go on with.
        resume: Option<(SessionId, Seq)>,
    },
    /// The primary's decision, with its own state.
    Decide {
        /// What it knows of its copy.
        record: Box<Record>,
        /// Seen from the primary.
        decision: Decision,
        /// The new session.
        session: SessionId,
    },
    /// The session goes on.
    Resume(SessionId),
    /// Nothing to talk about, as things stand with the primary's copy; none from a node that
    /// is no primary.
    Refuse(Option<Box<Record>>),
    /// The target's notes.
    Marks {
        /// For which session.
        session: SessionId,
        /// What it has changed itself, exactly.
        own: Box<DirtyMap>,
        /// The notes.
        intents: Vec<Intent>,
        /// Some cannot be read.
        damaged: bool,
    },
    /// The op stream begins.
    Start(OpStreamStart),
    /// An op.
    Op(Box<Sequenced>),
    /// A receipt.
    Receipt(Receipt),
    /// The secondary leaves.
    Leave {
        /// Its copy is on its disk.
        flushed: bool,
    },
    /// The secondary is asked to leave and to come back.
    Rejoin,
    /// A node whose disk has failed comes to the one that took over in this session.
    Visit(SessionId),
    /// Its calls are carried out.
    Welcome,
    /// A call.
    Call {
        /// Its number.
        number: u64,
        /// Those before this one are answered.
        done: u64,
        /// What is asked.
        request: Request,
    },
    /// An answer.
    Answer {
        /// To which call.
        number: u64,
        /// Which.
        answer: Answer,
    },
}

impl Message {
    fn stream(&self) -> usize {
        match self {
            Message::Start(_) | Message::Op(_) | Message::Receipt(_) => 1,
            _ => 0,
        }
    }
}

/// One connection.
#[derive(Clone, Debug, Default)]
pub(crate) struct Connection {
    /// Whether each node still has it.
    pub(crate) open: [bool; 2],
    /// When the last message of each direction and stream arrives.
    last: [[u64; 2]; 2],
    /// Messages held up by a cut, by the node they are for.
    stuck: [Vec<Message>; 2],
}

/// The network.
#[derive(Clone, Debug, Default)]
pub(crate) struct Net {
    /// Connections that at least one node has.
    pub(crate) connections: BTreeMap<u64, Connection>,
    next: u64,
    /// Whether what is for each node does not arrive.
    pub(crate) cut: [bool; 2],
    /// Longest delay of a message, in nanoseconds.
    pub(crate) delay: u64,
    /// One message in so many is lost at first; 0: none.
    pub(crate) loss: u64,
}

/// How long a connection lives without hearing from the other end.
const IDLE: u64 = 400_000_000;

impl World {
    /// A new connection that both nodes have.
    pub(crate) fn connect(&mut self) -> u64 {
        self.net.next += 1;
        let id = self.net.next;
        let connection = Connection {
            open: [true; 2],
            ..Connection::default()
        };
        self.net.connections.insert(id, connection);
        id
    }

    /// Node `from` sends on connection `id`.
    pub(crate) fn send(&mut self, from: usize, id: u64, message: Message) {
        let to = 1 - from;
        if !self.nodes[from].disk.effects.next() {
            return;
        }
        let mut delay = 20_000 + self.rng.below(self.net.delay.max(1));
        if self.net.loss > 0 && self.rng.one_in(self.net.loss) {
            // Lost, and sent again; its stream waits for it, the others do not.
            delay += self.net.delay + 30 * MS;
        }
        let now = self.now;
        let Some(connection) = self.net.connections.get_mut(&id) else {
            return;
        };
        if !connection.open[from] {
            return;
        }
        let last = &mut connection.last[to][message.stream()];
        *last = (*last + 1).max(now + delay);
        let at = *last;
        self.at(at, Event::Arrive { id, to, message });
    }

    /// A message arrives at `to`.
    pub(crate) fn arrive(&mut self, id: u64, to: usize, message: Message) {
        let stuck = self.net.cut[to] || self.nodes[to].frozen;
        let Some(connection) = self.net.connections.get_mut(&id) else {
            return;
        };
        if !connection.open[to] {
            return;
        }
        // Behind what is held up, or in order again after it.
        if stuck || !connection.stuck[to].is_empty() {
            connection.stuck[to].push(message);
            return;
        }
        self.receive(to, id, message);
    }

    /// What is for `to` arrives again.
    pub(crate) fn heal(&mut self, to: usize) {
        self.net.cut[to] = false;
        self.release(to);
    }

    /// What was held up for `to` arrives now, before anything that is still on its way.
    pub(crate) fn release(&mut self, to: usize) {
        if self.net.cut[to] || self.nodes[to].frozen {
            return;
        }
        let ids: Vec<u64> = self.net.connections.keys().copied().collect();
        for id in ids {
            let Some(connection) = self.net.connections.get_mut(&id) else {
                continue;
            };
            for message in std::mem::take(&mut connection.stuck[to]) {
                self.happen(Event::Arrive { id, to, message });
            }
        }
    }

    /// What is for `to` does not arrive from now on.
    pub(crate) fn cut(&mut self, to: usize) {
        self.net.cut[to] = true;
        for id in self.net.connections.keys().copied().collect::<Vec<_>>() {
            self.suspect_connection(id);
        }
    }

    /// Both ends will notice, some time from now, if nothing gets through.
    pub(crate) fn suspect_connection(&mut self, id: u64) {
        for node in 0..2 {
            let at = self.now + IDLE + self.rng.below(IDLE);
            self.at(at, Event::Idle { id, node });
        }
    }

    /// Node `node` looks whether the connection is alive.
    pub(crate) fn idle(&mut self, id: u64, node: usize) {
        let Some(connection) = self.net.connections.get(&id) else {
            return;
        };
        if !connection.open[node] {
            return;
        }
        let peer = 1 - node;
        let silent = self.net.cut[node]
            || self.net.cut[peer]
            || !connection.open[peer]
            || !self.nodes[peer].up
            || self.nodes[peer].frozen;
        if silent {
            self.close_here(id, node);
            self.connection_lost(node, id);
        }
    }

    fn close_here(&mut self, id: u64, node: usize) {
        if let Some(connection) = self.net.connections.get_mut(&id) {
            connection.open[node] = false;
            connection.stuck[node].clear();
            if connection.open == [false; 2] {
                self.net.connections.remove(&id);
            }
        }
    }

    /// Node `node` closes the connection; the other one hears of it, or finds out.
    pub(crate) fn close(&mut self, id: u64, node: usize) {
        self.close_here(id, node);
        let peer = 1 - node;
        let at = self.now + 20_000 + self.rng.below(self.net.delay.max(1));
        if self.net.connections.contains_key(&id) {
            self.at(at, Event::Closed { id, node: peer });
            self.suspect_connection(id);
        }
    }

    /// The other end's goodbye arrives.
    pub(crate) fn closed(&mut self, id: u64, node: usize) {
        let open = self.net.connections.get(&id).is_some_and(|c| c.open[node]);
        if open && !self.net.cut[node] {
            self.close_here(id, node);
            self.connection_lost(node, id);
        }
    }

    /// One end of a node's connection dies; the other one hears nothing.
    pub(crate) fn break_end(&mut self, node: usize) {
        if let Some(id) = self.nodes[node].connection {
            self.close_here(id, node);
            self.suspect_connection(id);
            self.connection_lost(node, id);
        }
    }

    /// A node's process is gone: its ends are, without a word.
    pub(crate) fn drop_connections(&mut self, node: usize) {
        for id in self.net.connections.keys().copied().collect::<Vec<_>>() {
            self.close_here(id, node);
            self.suspect_connection(id);
        }
    }
}
