//! Losing the disk, not the node: the side whose disk has failed, and the side that takes
//! over. Mirrors the driver's `engine/takeover.rs` and `link/dial.rs`.

use std::collections::BTreeSet;

use twinfold_protocol::attr::Kind;
use twinfold_protocol::handshake::Role;
use twinfold_protocol::ids::{FileId, Generation, Seq, SessionId, Side};
use twinfold_protocol::limits;
use twinfold_protocol::marks::DirtyMap;
use twinfold_protocol::primary::Link;
use twinfold_protocol::time::Timestamp;
use twinfold_protocol::verify::Question;
use twinfold_protocol::wire::Receipt;

use crate::calls::{Calls, Guest};
use crate::checker::Promise;
use crate::net::Message;
use crate::world::{MS, Step, World};

/// How long the answer to the question whether the peer takes over is waited for before the
/// peer itself is asked, in milliseconds.
const HEARD: u64 = 400;

/// Where the calls of a node's application are carried out.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) enum Place {
    /// Here.
    #[default]
    Here,
    /// The disk has failed; the peer of this session is asked to take over.
    Asking(SessionId),
    /// At the peer, which took over in this session.
    Peer(SessionId),
}

/// What a change that failed here may have left different.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Undone {
    /// Bytes of a file.
    Data(FileId, u64, u64),
    /// An object, and the names in it.
    Object(FileId),
}

/// A node's part in a disk's failure, of its own or of its peer.
#[derive(Debug, Default)]
pub(crate) struct TakeOver {
    pub(crate) place: Place,
    pub(crate) undone: Vec<Undone>,
    pub(crate) calls: Calls,
    /// The peer did not answer in time.
    pub(crate) late: bool,
    /// The connection over which calls are sent.
    pub(crate) visit: Option<u64>,
    /// It looks for the peer now and then.
    pub(crate) visiting: bool,
    /// The session in which this node took over, while it serves its peer's application.
    pub(crate) hosting: Option<SessionId>,
    pub(crate) guest: Guest,
}

/// The side whose disk has failed.
impl World {
    /// Whether the calls of a node's application go to its peer.
    pub(crate) fn is_away(&self, node: usize) -> bool {
        self.nodes[node].takeover.place != Place::Here
    }

    /// The store of a node failed. True when the peer has taken over or is asked to; false
    /// when there is no peer that could, and the application has to be told.
    pub(crate) fn disk_failed(&mut self, node: usize) -> bool {
        let now = self.now;
        let n = &mut self.nodes[node];
        if n.role != Some(Role::Primary) {
            return false;
        }
        if n.takeover.place != Place::Here {
            return true;
        }
        let Some(session) = n.core.session().filter(|_| n.core.can_yield()) else {
            return false;
        };
        n.takeover.calls.missed(now);
        n.takeover.place = Place::Asking(session);
        n.takeover.late = false;
        self.stats.failed_disks += 1;
        self.note(|| format!("node {node}: its disk has failed; its peer is to take over"));
        self.soon(node, MS, Step::Ask(session));
        true
    }

    /// The same for a change of something that the peer may have got.
    pub(crate) fn disk_failed_in(&mut self, node: usize, undone: &[Undone]) -> bool {
        let before = self.nodes[node].takeover.undone.len();
        self.nodes[node].takeover.undone.extend(undone);
        let asked = self.disk_failed(node);
        if !asked {
            // The caller undoes it.
            self.nodes[node].takeover.undone.truncate(before);
        }
        asked
    }

    /// First: from the moment when the peer may have taken over, this copy must not be
    /// started as primary any more.
    pub(crate) fn ask_to_take_over(&mut self, node: usize, session: SessionId) {
        self.nodes[node].disk.condemn();
        let before = self.inside(node);
        self.soon_disk(node, 2 * MS, Step::Yield(session, before));
    }

    /// The peer is asked, once every change that was begun has ended.
    pub(crate) fn yield_step(&mut self, node: usize, session: SessionId, before: BTreeSet<u64>) {
        if self.nodes[node].takeover.place != Place::Asking(session) {
            return;
        }
        let inside = self.inside(node);
        if before.iter().any(|id| inside.contains(id)) {
            return self.soon(node, 2 * MS, Step::Yield(session, before));
        }
        let now = self.instant();
        let core = &mut self.nodes[node].core;
        if !core.yield_to_peer(now, Timestamp::default()) {
            return self.peer_cannot_take_over(node);
        }
        self.note(|| format!("node {node} asks its peer to take over"));
        self.perform(node);
        self.ship(node);
        self.soon(node, HEARD * MS, Step::Heard(session));
    }

    /// The answer may have been lost on its way: the peer itself is looked for.
    pub(crate) fn not_heard(&mut self, node: usize, session: SessionId) {
        if self.nodes[node].takeover.place == Place::Asking(session) {
            self.begin_to_visit(node);
        }
    }

    /// There was no peer any more that could, or it could not: calls end with what they
    /// failed with here.
    pub(crate) fn peer_cannot_take_over(&mut self, node: usize) {
        let takeover = &mut self.nodes[node].takeover;
        if !matches!(takeover.place, Place::Asking(_)) {
            return;
        }
        takeover.place = Place::Here;
        let undone = std::mem::take(&mut takeover.undone);
        self.stats.without_heir += 1;
        self.note(|| format!("node {node}: its peer cannot take over"));
        self.nodes[node].disk.pardon();
        // What failed here and was shipped is there: a peer whose line comes back would go on
        // as if it were equal.
        undone.into_iter().for_each(|u| self.differs(node, u));
        self.calls_end(node);
        self.nodes[node].takeover.calls.open();
    }

    /// Something may differ from the peer's, which counts as not up to date from now on and
    /// comes back to a resync.
    pub(crate) fn differs(&mut self, node: usize, undone: Undone) {
        if let Undone::Data(file, ..) = undone {
            self.sequence[node].is_left(file, &self.nodes[node].disk.fs);
        }
        let mut marks = DirtyMap::default();
        let question = match undone {
            Undone::Data(file, offset, length) => {
                marks.mark_data(file, offset, length);
                marks.mark_attributes(file);
                Question::Data {
                    file,
                    offset,
                    length: length.min(limits::VERIFY_CHUNK),
                }
            }
            Undone::Object(file) => {
                marks.mark_attributes(file);
                if self.nodes[node].disk.fs.kind(file) == Some(Kind::Directory) {
                    marks.mark_directory(file);
                }
                Question::Object { file }
            }
        };
        let now = self.instant();
        let core = &mut self.nodes[node].core;
        core.differs(now, Timestamp::default(), question, |map| map.unite(marks));
        let session = match core.link() {
            Link::Alone | Link::Syncing => None,
            _ => core.session(),
        };
        self.ship(node);
        if session.is_some() {
            self.nodes[node].rejoin = session;
            self.ask_to_rejoin(node);
        }
    }

    /// Asks the peer of a session to leave and to come back, over the connection there is.
    pub(crate) fn ask_to_rejoin(&mut self, node: usize) {
        let n = &mut self.nodes[node];
        if let (Some(session), Some(id)) = (n.rejoin, n.connection)
            && n.core.session() == Some(session)
        {
            n.rejoin = None;
            self.send(node, id, Message::Rejoin);
        }
    }

    /// The peer has taken over, durably.
    pub(crate) fn peer_took_over(&mut self, node: usize) {
        let now = self.now;
        let takeover = &mut self.nodes[node].takeover;
        if let Place::Asking(session) = takeover.place {
            takeover.calls.missed(now);
            takeover.place = Place::Peer(session);
        }
        takeover.undone.clear();
        takeover.late = false;
        self.stats.take_overs += 1;
        self.last_served = Some(1 - node);
        self.soon_disk(node, 3 * MS, Step::MarkFailed);
        self.begin_to_visit(node);
    }

    /// This copy is marked on its own disk, if that takes it.
    pub(crate) fn mark_failed(&mut self, node: usize) {
        let disk = &mut self.nodes[node].disk;
        if !disk.broken {
            disk.update(|r| r.fall_behind());
        }
    }

    /// The peer has not said in time whether it has taken over.
    pub(crate) fn heir_is_late(&mut self, node: usize) {
        let held = self.nodes[node].core.take_held();
        self.nodes[node].takeover.late = true;
        held.into_iter().for_each(|id| self.told_failed(node, id));
    }

    /// A node whose disk has failed is stopped: nothing of its copy counts any more.
    pub(crate) fn stopped_away(&mut self, node: usize) {
        self.drop_connection(node);
        self.mark_failed(node);
    }
}

/// The side that takes over.
impl World {
    /// Takes over from the primary of `session`, whose disk has failed: everything here is
    /// flushed, and a new generation is durable. The role changes later.
    pub(crate) fn take_over(&mut self, node: usize, session: SessionId) {
        let side = if node == 0 { Side::Even } else { Side::Odd };
        let next = Generation(self.random_id());
        let n = &mut self.nodes[node];
        let mut record = n.disk.record.clone();
        if record.take_over(side, next, n.boot).is_err() {
            return self.fail("no epochs are left".into());
        }
        n.disk.update(|r| *r = record);
        if n.disk.effects.is_dead() {
            return;
        }
        let Some(standby) = n.standby.take() else {
            return;
        };
        self.note(|| format!("node {node} takes over: generation {next}"));
        self.must_be_whole(node, false);
        let n = &mut self.nodes[node];
        n.takeover.hosting = Some(session);
        n.differing = DirtyMap::default();
        n.recovered.clear();
        n.damaged = false;
        let mut suspects = standby.fresh;
        suspects.unite(standby.older);
        self.begin_term(node, suspects);
    }

    /// It is done: the primary is told, or is found to be gone.
    pub(crate) fn took_over(&mut self, node: usize, session: SessionId, seq: Seq) {
        if self.nodes[node].takeover.hosting != Some(session) {
            return;
        }
        if let Some(id) = self.nodes[node].connection {
            self.send(node, id, Message::Receipt(Receipt::Synced { seq }));
            let patience = MS + 2 * self.net.delay;
            self.soon(node, patience, Step::Host);
        }
    }

    /// Whether a node has taken over but is not primary yet.
    pub(crate) fn must_host(&self, node: usize) -> bool {
        let n = &self.nodes[node];
        n.up && n.takeover.hosting.is_some() && n.role == Some(Role::Secondary)
    }

    /// The peer has been told, or is gone: this node is primary, without a mount to write to.
    pub(crate) fn begin_hosting(&mut self, node: usize) {
        if self.must_host(node) {
            self.note(|| format!("node {node} is primary, and serves its peer's application"));
            self.drop_connection(node);
            self.nodes[node].role = Some(Role::Primary);
        }
    }

    /// The operator swaps the application over to the node that has taken over. What had
    /// begun there ends first.
    pub(crate) fn promote_heir(&mut self, node: usize) {
        let mut changes = self.nodes[node].changes.values();
        if changes.any(|c| c.guest.is_some() && !c.passed) {
            return;
        }
        self.note(|| format!("node {node}, which has taken over, is promoted"));
        self.stats.heirs_promoted += 1;
        self.end_hosting(node);
        self.serve(node, Promise::Acknowledged);
    }

    /// No call of the peer is carried out any more.
    pub(crate) fn end_hosting(&mut self, node: usize) {
        if self.nodes[node].takeover.hosting.take().is_some() {
            self.drop_connection(node);
        }
    }
}
