//! Handshake, comparison, and the source's side of a resync.

use std::collections::{BTreeSet, VecDeque};

use twinfold_protocol::attr::Kind;
use twinfold_protocol::compare::compare;
use twinfold_protocol::handshake::{Decision, Method, Role, Which, decide, is_left_behind};
use twinfold_protocol::ids::{FileId, Seq, SessionId};
use twinfold_protocol::lifecycle::Record;
use twinfold_protocol::limits::BLOCK;
use twinfold_protocol::marks::{DirtyMap, Intent, Names};
use twinfold_protocol::op::{Listing, Name, Op, PutEntry};
use twinfold_protocol::primary::Link;
use twinfold_protocol::secondary::Secondary;
use twinfold_protocol::time::Timestamp;
use twinfold_protocol::wire::OpStreamStart;

use crate::bugs::Bug;
use crate::compare::Here;
use crate::fs::payload;
use crate::net::Message;
use crate::world::{MS, Moving, Standby, Step, World};

/// Entries of a directory in one op: few, so that listings are cut.
const ENTRIES: usize = 2;
/// Blocks read at once: a file here is mostly hole.
const RUN: u32 = 1000;
/// Bytes that must have room for it.
const ROOM: usize = 8192;

impl World {
    /// The secondary looks for its primary.
    pub(crate) fn dial(&mut self, node: usize) {
        self.soon(node, 150 * MS, Step::Dial);
        let n = &self.nodes[node];
        let waits = self.must_host(node) && n.connection.is_none();
        if waits && !self.has(Bug::HostWhenReached) {
            // The primary was lost before it could be told.
            return self.begin_hosting(node);
        }
        if n.role != Some(Role::Secondary) || n.connection.is_some() {
            return;
        }
        let peer = &self.nodes[1 - node];
        let reachable = !self.net.cut[0] && !self.net.cut[1] && peer.up && !peer.frozen;
        if !reachable || peer.role != Some(Role::Primary) {
            return;
        }
        let id = self.connect();
        let n = &mut self.nodes[node];
        n.connection = Some(id);
        let resume = n.standby.as_ref().and_then(|s| s.machine.resumes_at());
        let record = Box::new(n.disk.record.clone());
        n.told = Some((id, n.disk.record.clone()));
        self.send(node, id, Message::Hello { record, resume });
    }

    /// A message is taken up.
    pub(crate) fn receive(&mut self, node: usize, id: u64, message: Message) {
        match message {
            Message::Hello { record, resume } => self.hello(node, id, &record, resume),
            Message::Decide {
                record,
                decision,
                session,
            } => self.decided(node, id, &record, decision, session),
            Message::Resume(session) => self.note(|| format!("node {node} resumes {session}")),
            Message::Refuse(_) if self.nodes[node].takeover.visit == Some(id) => {
                self.refused_calls(node);
            }
            Message::Refuse(theirs) => {
                if self.nodes[node].connection == Some(id) && self.must_host(node) {
                    return self.begin_hosting(node);
                }
                if self.nodes[node].connection == Some(id) {
                    self.refused_by(node, theirs.as_deref());
                    self.drop_connection(node);
                }
            }
            Message::Marks {
                session,
                own,
                intents,
                damaged,
            } => self.marks(node, id, session, (*own, intents, damaged)),
            Message::Start(start) => self.standby_start(node, start),
            Message::Op(op) => self.standby_op(node, *op),
            Message::Receipt(receipt) => {
                if self.nodes[node].connection != Some(id) {
                    return;
                }
                let now = self.instant();
                if let Err(e) = self.nodes[node].core.receipt(now, receipt) {
                    return self.fail(format!("node {node} refuses an honest receipt: {e}"));
                }
                self.perform(node);
                self.ship(node);
            }
            Message::Rejoin => {
                if self.nodes[node].connection == Some(id) {
                    self.rejoin(node);
                }
            }
            Message::Visit(session) => self.visited(node, id, session),
            Message::Welcome => {
                if self.nodes[node].takeover.visit == Some(id) {
                    self.welcomed(node);
                }
            }
            Message::Call {
                number,
                done,
                request,
            } => self.called(node, id, (number, done, request)),
            Message::Answer { number, answer } => {
                if self.nodes[node].takeover.visit == Some(id) {
                    self.answered(node, number, answer);
                }
            }
            Message::Leave { flushed } => {
                if self.nodes[node].connection == Some(id) {
                    self.nodes[node].core.peer_left(flushed);
                    self.perform(node);
                }
            }
        }
    }

    /// The table would have this copy resynced, but the primary still has a session open
    /// that this process does not know. It may go on once this copy cannot.
    fn refused_by(&mut self, node: usize, theirs: Option<&Record>) {
        let n = &mut self.nodes[node];
        let Some(theirs) = theirs else { return };
        let mine = &n.disk.record.copy;
        let own = decide((mine, Role::Secondary), (&theirs.copy, Role::Primary));
        let target = matches!(
            own,
            Decision::Resync {
                source: Which::Peer,
                ..
            }
        );
        let idle = n.role == Some(Role::Secondary) && n.standby.is_none();
        if target && idle && mine.up_to_date {
            n.disk.update(Record::fall_behind);
        }
    }

    fn hello(&mut self, node: usize, id: u64, theirs: &Record, resume: Option<(SessionId, Seq)>) {
        let refuse = |w: &mut World| {
            let n = &w.nodes[node];
            let primary = n.role == Some(Role::Primary);
            let mut record = primary.then(|| Box::new(n.disk.record.clone()));
            if let Some(record) = &mut record {
                // What its own disk does not take any more is said at least.
                record.copy.up_to_date &= !w.is_away(node);
            }
            w.send(node, id, Message::Refuse(record));
            w.close(id, node);
        };
        if self.nodes[node].role != Some(Role::Primary) {
            return refuse(self);
        }
        let now = self.instant();
        let mode = self.config.mode;
        if let Some((session, applied)) = resume
            && self.nodes[node].core.can_resume(session, applied)
        {
            self.stats.resumed += 1;
            self.nodes[node].core.resume(now, applied);
            self.replace_connection(node, id);
            self.send(node, id, Message::Resume(session));
            let first = applied.next();
            self.send(
                node,
                id,
                Message::Start(OpStreamStart {
                    session,
                    first,
                    mode,
                }),
            );
            self.perform(node);
            self.ask_to_rejoin(node);
            self.ship(node);
            return;
        }
        if !matches!(self.nodes[node].core.link(), Link::Alone | Link::Syncing) {
            // A process that knows of no session, with a copy that is not up to date: nobody
            // can promote that, so nothing is to be asked.
            let mine = &self.nodes[node].disk.record.copy;
            let behind = is_left_behind(mine, (&theirs.copy, Role::Secondary));
            if resume.is_none() && behind && !self.has(Bug::HoldForever) {
                self.nodes[node].core.peer_restarted();
                self.perform(node);
            }
            return refuse(self);
        }
        let mine = self.nodes[node].disk.record.clone();
        let mut decision = decide((&mine.copy, Role::Primary), (&theirs.copy, Role::Secondary));
        if self.has(Bug::NewerByClock) && theirs.copy.current.is_some() {
            // Whoever serves now was seen last.
            decision = Decision::Resync {
                source: Which::Me,
                method: Method::Marks,
            };
        }
        let Decision::Resync {
            source: Which::Me,
            method,
        } = decision
        else {
            self.note(|| format!("node {node} decides {decision:?}"));
            return refuse(self);
        };
        // A newer connection replaces one whose end was not noticed.
        if self.nodes[node].core.link() == Link::Syncing {
            self.nodes[node].core.peer_lost(now, "replaced");
            self.perform(node);
        }
        self.replace_connection(node, id);
        let session = SessionId(self.random_id());
        self.note(|| format!("node {node} decides {decision:?}, session {session}"));
        self.nodes[node].decided = Some((session, method));
        self.send(
            node,
            id,
            Message::Decide {
                record: Box::new(mine),
                decision,
                session,
            },
        );
    }

    pub(crate) fn replace_connection(&mut self, node: usize, id: u64) {
        if let Some(old) = self.nodes[node].connection.replace(id)
            && old != id
        {
            self.close(old, node);
        }
    }

    fn decided(
        &mut self,
        node: usize,
        id: u64,
        theirs: &Record,
        decision: Decision,
        session: SessionId,
    ) {
        if self.nodes[node].connection != Some(id) || self.nodes[node].role != Some(Role::Secondary)
        {
            return;
        }
        // From what it said of itself: a resync of before may have ended since.
        let Some((_, mine)) = self.nodes[node].told.take().filter(|told| told.0 == id) else {
            return self.fail(format!("node {node} said nothing of itself"));
        };
        let own = decide((&mine.copy, Role::Secondary), (&theirs.copy, Role::Primary));
        if own != decision.mirrored() && !self.has(Bug::NewerByClock) {
            return self.fail(format!(
                "node {node} decides {own:?}, its peer {decision:?}"
            ));
        }
        if self.nodes[node].own_history {
            return self.fail(format!(
                "node {node} has a history of its own and is overwritten unasked"
            ));
        }
        let early = self.has(Bug::EarlyUpToDate);
        let n = &mut self.nodes[node];
        n.disk.update(|r| r.begin_resync(theirs.epoch));
        n.disk.begin_session();
        if early {
            let (module, generation) = (theirs.copy.module, theirs.copy.current);
            n.disk
                .update(|r| r.end_resync(module, generation, theirs.epoch));
        }
        n.standby = Some(Standby {
            machine: Secondary::new(session),
            module: theirs.copy.module,
            generation: theirs.copy.current,
            epoch: theirs.epoch,
            fresh: DirtyMap::default(),
            older: DirtyMap::default(),
            segment: None,
            stable: false,
            stable_syncing: false,
            failed_syncs: n.failed_syncs,
            inbox: Default::default(),
            busy: false,
        });
        let mut own = Box::new(n.own.clone().united());
        own.unite(n.differing.clone());
        let damaged = (n.damaged || n.disk.log.is_damaged() || own.is_everything())
            && self.bug != Some(Bug::AssumeClean);
        let mut intents = n.disk.log.all();
        intents.extend(n.recovered.iter().copied());
        let intents: Vec<Intent> = intents.into_iter().collect();
        self.send(
            node,
            id,
            Message::Marks {
                session,
                own,
                intents,
                damaged,
            },
        );
    }

    /// The target's notes are here: the source compares, and the resync begins.
    fn marks(
        &mut self,
        node: usize,
        id: u64,
        session: SessionId,
        (theirs_own, intents, damaged): (DirtyMap, Vec<Intent>, bool),
    ) {
        let usable = self.has_connection(node, id)
            && self.nodes[node].core.link() == Link::Alone
            && self.nodes[node].role == Some(Role::Primary)
            && !self.nodes[node].comparing;
        if !usable {
            if self.nodes[node].comparing && self.nodes[node].connection == Some(id) {
                // One comparison at a time: the peer comes again.
                self.drop_connection(node);
            }
            return;
        }
        self.begin_in_doubt(node, session);
        let decided = self.nodes[node].decided;
        let Some((_, mut method)) = decided.filter(|d| d.0 == session) else {
            return self.fail(format!("node {node} has decided nothing for {session}"));
        };
        if method == Method::Marks && (damaged || self.nodes[node].damaged) {
            method = Method::Compare;
        }
        let mut noted: BTreeSet<Intent> = self.nodes[node].recovered.clone();
        if !self.has(Bug::IgnoreTargetNotes) {
            noted.extend(intents);
        }
        if self.has(Bug::DropMarks) {
            self.nodes[node].core.mark(|map| *map = DirtyMap::default());
        }
        let own = self.nodes[node].core.take_suspects();
        let mut everything = own.is_everything();
        self.nodes[node]
            .core
            .mark(|dirty| everything |= dirty.take_everything());
        if method == Method::Marks && everything {
            method = Method::Compare;
        }
        let mut suspects = own.clone();
        if !self.has(Bug::IgnoreTargetNotes) {
            suspects.unite(theirs_own);
        }
        let patience = if self.rng.one_in(12) {
            self.rng.below(20)
        } else {
            u64::MAX
        };
        let life = self.nodes[node].life;
        self.nodes[node].comparing = true;
        let mut here = Here {
            connection: id,
            node,
            life,
            patience,
            asked: VecDeque::new(),
            world: self,
        };
        let compared = here
            .wait_for_changes()
            .and_then(|()| compare(&mut here, method, noted, &suspects));
        if self.nodes[node].life != life {
            return;
        }
        self.nodes[node].comparing = false;
        if compared.is_err() {
            self.note(|| format!("node {node}: the comparison breaks off"));
            self.nodes[node].core.add_suspects(own);
            if everything {
                self.nodes[node].core.mark(DirtyMap::mark_everything);
            }
            if self.nodes[node].connection == Some(id) {
                self.drop_connection(node);
            }
            return;
        }
        let n = &self.nodes[node];
        if n.core.link() != Link::Alone || n.connection != Some(id) {
            // The comparison came too late; what it found stays marked.
            self.nodes[node].core.add_suspects(own);
            return;
        }
        self.note(|| format!("node {node} compared ({method:?}), session {session} begins"));
        let now = self.instant();
        let n = &mut self.nodes[node];
        n.core.peer_ready(now, session);
        n.recovered.clear();
        n.damaged = false;
        n.moving = Moving::default();
        let first = n.core.next_seq();
        let mode = self.config.mode;
        self.send(
            node,
            id,
            Message::Start(OpStreamStart {
                session,
                first,
                mode,
            }),
        );
        self.soon(node, MS, Step::Resync(session));
    }

    /// A connection of a node is gone.
    pub(crate) fn connection_lost(&mut self, node: usize, id: u64) {
        if self.nodes[node].takeover.visit == Some(id) {
            return self.visit_lost(node);
        }
        if self.nodes[node].connection != Some(id) {
            return;
        }
        self.note(|| format!("node {node} loses its connection"));
        self.nodes[node].connection = None;
        // What was not taken up comes again, or never.
        if let Some(standby) = &mut self.nodes[node].standby {
            standby.inbox.clear();
        }
        if self.nodes[node].role == Some(Role::Primary) {
            let now = self.instant();
            self.nodes[node].core.peer_lost(now, "lost");
            self.perform(node);
        } else {
            self.begin_hosting(node);
        }
    }

    /// One step of moving what is marked.
    pub(crate) fn resync_step(&mut self, node: usize, session: SessionId) {
        let core = &self.nodes[node].core;
        if core.link() != Link::Syncing || core.session() != Some(session) {
            return;
        }
        if self.nodes[node].disk.unreadable {
            // The marks are kept.
            let now = self.instant();
            self.drop_connection(node);
            self.nodes[node]
                .core
                .peer_lost(now, "the source cannot be read");
            return self.perform(node);
        }
        let again = |w: &mut World| w.soon(node, MS, Step::Resync(session));
        for op in std::mem::take(&mut self.nodes[node].moving.stale) {
            self.put(node, op);
        }
        if self.nodes[node].core.resync_room(self.instant()) < ROOM {
            return again(self);
        }
        if let Some((directory, after, first)) = self.nodes[node].moving.listing.take() {
            self.put_listing(node, directory, after, first);
            return again(self);
        }
        if let Some(file) = self.nodes[node].moving.object {
            self.put_run(node, file);
            return again(self);
        }
        if let Some(directory) = self.nodes[node].core.next_directory() {
            self.put_names(node, directory);
            return again(self);
        }
        let after = self.nodes[node].moving.after;
        match self.nodes[node].core.next_object(after) {
            Some(file) => self.put_object(node, file),
            None if after.is_some() => self.nodes[node].moving.after = None,
            None if self.flushes_first(node, session) => {}
            None => {
                self.nodes[node].disk.update(|r| r.peer_may_be_current());
                let now = self.instant();
                let ended = self.nodes[node]
                    .core
                    .finish_resync(now, Timestamp::default());
                if let Some(end) = ended {
                    self.sequence[node].ends_resync(session, end);
                    return self.ship(node);
                }
                self.nodes[node].disk.update(|r| r.peer_is_behind());
            }
        }
        again(self);
    }

    /// The peer flushes before the end in some sessions: as after a resync of a gigabyte.
    fn flushes_first(&mut self, node: usize, session: SessionId) -> bool {
        let now = self.instant();
        let n = &mut self.nodes[node];
        if n.core.flush_runs() {
            return true;
        }
        if !session.0.is_multiple_of(4) || n.moving.flushed == Some(session) {
            return false;
        }
        n.moving.flushed = Some(session);
        n.core.begin_flush(now, Timestamp::default());
        self.ship(node);
        true
    }

    fn put(&mut self, node: usize, op: Op) {
        let now = self.instant();
        self.nodes[node]
            .core
            .submit_resync(now, Timestamp::default(), op);
        self.ship(node);
    }

    fn put_names(&mut self, node: usize, directory: FileId) {
        let n = &mut self.nodes[node];
        if n.disk.fs.names(directory).is_none() {
            return n.core.object_is_gone(directory);
        }
        match n.core.take_names(directory) {
            None => {}
            Some(Names::All) => n.moving.listing = Some((directory, None, true)),
            Some(Names::Some(set)) => {
                let fs = &n.disk.fs;
                let entries: Vec<PutEntry> = set
                    .into_iter()
                    .map(|name| PutEntry {
                        object: fs
                            .names(directory)
                            .and_then(|names| names.get(&name))
                            .and_then(|file| fs.object(*file)),
                        name,
                    })
                    .collect();
                self.put(
                    node,
                    Op::PutDirectory {
                        directory,
                        listing: Listing::Names,
                        entries,
                    },
                );
            }
        }
    }

    fn put_listing(&mut self, node: usize, directory: FileId, after: Option<Name>, first: bool) {
        let fs = &self.nodes[node].disk.fs;
        let names = fs.names(directory).cloned().unwrap_or_default();
        let entries: Vec<PutEntry> = names
            .into_iter()
            .filter(|(name, _)| after.as_ref().is_none_or(|a| name > a))
            .take(ENTRIES)
            .map(|(name, file)| PutEntry {
                name,
                object: fs.object(file),
            })
            .collect();
        let last = entries.is_empty();
        let next = entries.last().map(|e| e.name.clone()).or(after);
        let listing = Listing::Whole { first, last };
        self.put(
            node,
            Op::PutDirectory {
                directory,
                listing,
                entries,
            },
        );
        if !last {
            self.nodes[node].moving.listing = Some((directory, next, false));
        }
    }

    fn put_object(&mut self, node: usize, file: FileId) {
        let n = &mut self.nodes[node];
        if n.locks.contains(&file) && self.bug != Some(Bug::StaleRead) {
            return;
        }
        let n = &mut self.nodes[node];
        n.moving.after = Some(file);
        let Some(object) = n.disk.fs.object(file) else {
            return n.core.object_is_gone(file);
        };
        n.core.take_attributes(file);
        if object.kind == Kind::Regular {
            n.moving.object = Some(file);
        } else {
            while n.core.take_run(file, u32::MAX, 0).is_some() {}
        }
        self.put(
            node,
            Op::PutObject {
                object,
                xattrs: Vec::new(),
            },
        );
    }

    fn put_run(&mut self, node: usize, file: FileId) {
        let stale = self.has(Bug::StaleRead);
        let n = &mut self.nodes[node];
        if n.locks.contains(&file) && !stale {
            return;
        }
        n.make_sure(file);
        let size = n.disk.fs.size(file);
        let Some((offset, length)) = n.core.take_run(file, RUN, size) else {
            n.moving.object = None;
            return;
        };
        let mut ops: Vec<Op> = Vec::new();
        for (i, value) in n.disk.fs.read(file, offset, length).into_iter().enumerate() {
            let offset = offset + i as u64 * BLOCK;
            match ops.last_mut() {
                Some(Op::PutHole { length, .. }) if value == 0 => *length += BLOCK,
                _ if value == 0 => ops.push(Op::PutHole {
                    file,
                    offset,
                    length: BLOCK,
                }),
                _ => ops.push(Op::PutData {
                    file,
                    offset,
                    data: payload(&[value]),
                }),
            }
        }
        if stale {
            self.nodes[node].moving.stale = ops;
            return;
        }
        ops.into_iter().for_each(|op| self.put(node, op));
    }
}

impl World {
    /// Whether both nodes have this connection as theirs.
    pub(crate) fn has_connection(&self, node: usize, id: u64) -> bool {
        [node, 1 - node]
            .iter()
            .all(|n| self.nodes[*n].up && self.nodes[*n].connection == Some(id))
    }
}
