//! Calls that the peer carries out, because this node's disk has failed. Mirrors the
//! driver's `engine/calls.rs`, `engine/guest.rs`, `link/visit.rs` and `link/host.rs`.

use std::collections::{BTreeMap, BTreeSet};

use twinfold_protocol::attr::Kind;
use twinfold_protocol::handshake::Role;
use twinfold_protocol::ids::{FileId, SessionId};
use twinfold_protocol::limits::BLOCK;
use twinfold_protocol::op::{NewObject, Op, RenameMode};

use crate::bugs::Bug;
use crate::net::Message;
use crate::primary::{Change, Stage};
use crate::takeover::Place;
use crate::world::{MS, Step, World};

/// Pause between two looks for the peer, in milliseconds.
const RETRY: u64 = 40;
/// The same after the peer has refused.
const RETRY_REFUSED: u64 = 500;

/// What is asked.
#[derive(Clone, Debug)]
pub(crate) enum Request {
    /// A change of the application, by its number.
    Change(u64, Op),
    /// A block of a file; what had been acknowledged before must be seen.
    Read(FileId, u32, u64),
}

/// What is answered.
#[derive(Clone, Debug)]
pub(crate) enum Answer {
    /// It is done.
    Done,
    /// What a block holds.
    Block(u64),
    /// It failed.
    Failed,
}

#[derive(Debug)]
struct Waiting {
    request: Request,
    since: u64,
}

/// The calls that are not answered, by number.
#[derive(Debug, Default)]
pub(crate) struct Calls {
    next: u64,
    waiting: BTreeMap<u64, Waiting>,
    /// Not sent over this connection yet.
    unsent: BTreeSet<u64>,
    /// The peer carries nothing out.
    refused: bool,
    /// Since when the peer is to carry calls out and cannot be reached.
    lost: Option<u64>,
    /// When the peer, which has refused, is asked again.
    not_before: u64,
}

impl Calls {
    /// From now on the peer is missed.
    pub(crate) fn missed(&mut self, now: u64) {
        self.lost = Some(now);
    }

    /// Whether none is waited for.
    pub(crate) fn is_refused(&self) -> bool {
        self.refused
    }

    /// Calls are taken again.
    pub(crate) fn open(&mut self) {
        (self.refused, self.lost) = (false, None);
    }

    fn take(&mut self, number: u64) -> Option<Request> {
        self.unsent.remove(&number);
        self.waiting.remove(&number).map(|w| w.request)
    }
}

/// What a node that took over remembers of its visitor's calls.
#[derive(Debug, Default)]
pub(crate) struct Guest {
    session: Option<SessionId>,
    /// The answers to what must be done only once: none yet while it is under way.
    once: BTreeMap<u64, Option<Answer>>,
    to: Option<u64>,
}

/// The node whose calls are carried out elsewhere.
impl World {
    /// A change belongs to the peer: it waits, and is asked for there.
    pub(crate) fn move_call(&mut self, node: usize, id: u64) {
        self.unlock(node, id);
        let now = self.instant();
        let n = &mut self.nodes[node];
        let Some(change) = n.changes.get_mut(&id) else {
            return;
        };
        change.away = true;
        let request = Request::Change(id, change.op.clone());
        if let Some(seq) = change.seq.take() {
            n.core.local_done(now, seq, 0);
        }
        self.note(|| format!("node {node} change {id} is for its peer"));
        self.call(node, request);
    }

    /// Queues a call.
    pub(crate) fn call(&mut self, node: usize, request: Request) {
        let now = self.now;
        let calls = &mut self.nodes[node].takeover.calls;
        if calls.refused {
            return self.call_failed(node, request);
        }
        calls.next += 1;
        calls.unsent.insert(calls.next);
        let since = now;
        calls.waiting.insert(calls.next, Waiting { request, since });
        self.send_calls(node);
    }

    fn call_failed(&mut self, node: usize, request: Request) {
        if let Request::Change(id, _) = request {
            self.told_failed(node, id);
        }
    }

    /// Sends what was not sent over this connection, once it was welcomed.
    fn send_calls(&mut self, node: usize) {
        let takeover = &mut self.nodes[node].takeover;
        let Some(id) = takeover.visit.filter(|_| takeover.calls.lost.is_none()) else {
            return;
        };
        let calls = &mut takeover.calls;
        let Some(done) = calls.waiting.keys().next().copied() else {
            return;
        };
        let mut all = Vec::new();
        for number in std::mem::take(&mut calls.unsent) {
            if let Some(waiting) = calls.waiting.get(&number) {
                let request = waiting.request.clone();
                all.push(Message::Call {
                    number,
                    done,
                    request,
                });
            }
        }
        all.into_iter().for_each(|call| self.send(node, id, call));
    }

    /// Every call ends with what it had failed with here.
    pub(crate) fn calls_end(&mut self, node: usize) {
        let calls = &mut self.nodes[node].takeover.calls;
        calls.refused = true;
        calls.unsent.clear();
        let all = std::mem::take(&mut calls.waiting);
        for waiting in all.into_values() {
            self.call_failed(node, waiting.request);
        }
    }

    /// Ends calls that the peer did not answer in time.
    pub(crate) fn expire_calls(&mut self, node: usize) {
        let patience = self.config.heir_patience().as_nanos() as u64;
        let now = self.now;
        let calls = &mut self.nodes[node].takeover.calls;
        let lost = calls.lost.is_some_and(|since| now > since + patience);
        calls.refused |= lost;
        let late = calls.waiting.iter();
        let late = late.filter(|(_, w)| lost || now > w.since + patience);
        let late: Vec<u64> = late.map(|(number, _)| *number).collect();
        for number in late {
            if let Some(request) = self.nodes[node].takeover.calls.take(number) {
                self.call_failed(node, request);
            }
        }
    }

    /// The peer is looked for from now on.
    pub(crate) fn begin_to_visit(&mut self, node: usize) {
        if !std::mem::replace(&mut self.nodes[node].takeover.visiting, true) {
            self.soon(node, MS, Step::Visit);
        }
    }

    /// The peer is looked for, and asked to carry out calls.
    pub(crate) fn visit(&mut self, node: usize) {
        let session = match self.nodes[node].takeover.place {
            Place::Here => {
                self.nodes[node].takeover.visiting = false;
                self.leave_peer(node);
                return;
            }
            Place::Asking(session) | Place::Peer(session) => session,
        };
        self.soon(node, RETRY * MS, Step::Visit);
        let peer = &self.nodes[1 - node];
        let reachable = self.net.cut == [false; 2] && peer.up && !peer.frozen;
        let listens = reachable && peer.role == Some(Role::Primary);
        let takeover = &self.nodes[node].takeover;
        let due = self.now >= takeover.calls.not_before;
        if takeover.visit.is_none() && due && listens {
            let id = self.connect();
            self.nodes[node].takeover.visit = Some(id);
            self.send(node, id, Message::Visit(session));
        }
    }

    fn leave_peer(&mut self, node: usize) {
        if let Some(id) = self.nodes[node].takeover.visit.take() {
            self.close(id, node);
        }
    }

    /// The peer carries out calls from now on: it took over, also if the answer to that was
    /// lost.
    pub(crate) fn welcomed(&mut self, node: usize) {
        self.nodes[node].core.peer_took_over();
        self.perform(node);
        let calls = &mut self.nodes[node].takeover.calls;
        calls.open();
        calls.unsent = calls.waiting.keys().copied().collect();
        self.send_calls(node);
    }

    /// The peer carries nothing out.
    pub(crate) fn refused_calls(&mut self, node: usize) {
        self.note(|| format!("node {node}: its calls are refused"));
        self.leave_peer(node);
        self.calls_end(node);
        self.visit_lost(node);
        self.nodes[node].takeover.calls.not_before = self.now + RETRY_REFUSED * MS;
    }

    /// The connection to the peer is gone; it is missed since then, at the latest.
    pub(crate) fn visit_lost(&mut self, node: usize) {
        let now = self.now;
        let takeover = &mut self.nodes[node].takeover;
        takeover.visit = None;
        takeover.calls.lost.get_or_insert(now);
    }

    /// The peer has answered.
    pub(crate) fn answered(&mut self, node: usize, number: u64, answer: Answer) {
        let Some(request) = self.nodes[node].takeover.calls.take(number) else {
            return;
        };
        match (request, answer) {
            (Request::Change(id, _), Answer::Done) => {
                self.stats.remote_calls += 1;
                self.reply(node, id);
            }
            (Request::Read(file, block, before), Answer::Block(found)) => {
                self.stats.remote_calls += 1;
                self.seen(node, (file, block), found, before);
            }
            (request, _) => self.call_failed(node, request),
        }
    }
}

/// The node that carries them out.
impl World {
    /// A visitor came.
    pub(crate) fn visited(&mut self, node: usize, id: u64, session: SessionId) {
        let n = &mut self.nodes[node];
        let primary = n.role == Some(Role::Primary);
        if !primary || n.takeover.hosting != Some(session) {
            self.send(node, id, Message::Refuse(None));
            return self.close(id, node);
        }
        let guest = &mut n.takeover.guest;
        if guest.session != Some(session) {
            *guest = Guest::default();
            guest.session = Some(session);
        }
        guest.to = Some(id);
        self.replace_connection(node, id);
        self.send(node, id, Message::Welcome);
    }

    /// A call came.
    pub(crate) fn called(&mut self, node: usize, id: u64, call: (u64, u64, Request)) {
        let twice = self.has(Bug::CalledTwice);
        let guest = &mut self.nodes[node].takeover.guest;
        let Some(session) = guest.session.filter(|_| guest.to == Some(id)) else {
            return;
        };
        let (number, done, request) = call;
        // What is below is answered, and the visitor has it.
        guest.once = guest.once.split_off(&done);
        if let (Request::Change(..), false) = (&request, twice) {
            match guest.once.get(&number) {
                Some(Some(answer)) => {
                    let answer = answer.clone();
                    return self.send(node, id, Message::Answer { number, answer });
                }
                Some(None) => return,
                None => drop(guest.once.insert(number, None)),
            }
        }
        self.soon(node, MS, Step::CarryOut(session, number, request));
    }

    /// A call is carried out, unless the visitor is not served any more.
    pub(crate) fn carry_out(
        &mut self,
        node: usize,
        session: SessionId,
        number: u64,
        request: Request,
    ) {
        let n = &self.nodes[node];
        if n.role != Some(Role::Primary) || n.takeover.hosting != Some(session) {
            return self.answer(node, number, Answer::Failed);
        }
        match request {
            Request::Read(file, block, _) => {
                let offset = u64::from(block) * BLOCK;
                let found = n.disk.fs.read(file, offset, BLOCK).first().copied();
                let answer = match found.filter(|_| !n.disk.unreadable) {
                    Some(found) => Answer::Block(found),
                    None => Answer::Failed,
                };
                self.answer(node, number, answer);
            }
            Request::Change(id, op) => {
                let Some(op) = self.resolve(node, op) else {
                    return self.answer(node, number, Answer::Failed);
                };
                let mut change = Change::new(op, self.nodes[node].term);
                change.guest = Some(number);
                if self.nodes[node].changes.insert(id, change).is_none() {
                    self.change_step(node, id, Stage::Lock);
                }
            }
        }
    }

    /// What names lead to here, and the id that a new object gets here.
    fn resolve(&mut self, node: usize, op: Op) -> Option<Op> {
        let n = &mut self.nodes[node];
        let fs = &n.disk.fs;
        let leads = |parent: FileId, name| fs.names(parent).and_then(|n| n.get(name)).copied();
        Some(match op {
            Op::Create {
                parent,
                name,
                object,
            } => {
                let file = FileId::new(n.epoch, n.next_id);
                n.next_id += 1;
                let object = NewObject { file, ..object };
                Op::Create {
                    parent,
                    name,
                    object,
                }
            }
            Op::Unlink { parent, name, .. } => {
                let file = leads(parent, &name)?;
                (fs.kind(file) != Some(Kind::Directory)).then_some(())?;
                Op::Unlink { parent, name, file }
            }
            Op::RemoveDirectory { parent, name, .. } => {
                let file = leads(parent, &name)?;
                (fs.kind(file) == Some(Kind::Directory)).then_some(())?;
                Op::RemoveDirectory { parent, name, file }
            }
            Op::Rename {
                parent,
                name,
                new_parent,
                new_name,
                mode,
                ..
            } => {
                let file = leads(parent, &name)?;
                let replaced = leads(new_parent, &new_name);
                (mode != RenameMode::Exchange || replaced.is_some()).then_some(())?;
                Op::Rename {
                    parent,
                    name,
                    file,
                    new_parent,
                    new_name,
                    replaced,
                    mode,
                }
            }
            other => other,
        })
    }

    /// A call is done.
    pub(crate) fn answer(&mut self, node: usize, number: u64, answer: Answer) {
        let guest = &mut self.nodes[node].takeover.guest;
        if let Some(kept) = guest.once.get_mut(&number) {
            *kept = Some(answer.clone());
        }
        if let Some(id) = guest.to {
            // A connection that is gone is replaced, and the call comes again.
            self.send(node, id, Message::Answer { number, answer });
        }
    }
}
