//! Losing the disk, not the node.
//!
//! When the store of a primary fails (an I/O error, or its file system went read-only)
//! while the peer is up to date, the application goes on with the peer's copy:
//!
//! ```text
//!   this node                                   the peer
//!   a call meets the failure, and waits
//!   no more changes are taken
//!   noted: this copy is condemned
//!   TakeOver, last in the order ─────────────▶  has everything before it: flushes,
//!                                               new generation, durable; alone, primary
//!   what waited for the peer's vote   ◀───────  done
//!   is acknowledged (invariant 4)
//!   calls are sent ══════════════════════════▶  carried out on its copy ([`super::calls`])
//! ```
//!
//! The mount stays where it is, writable, with its open files; the peer's stays read-only
//! until somebody promotes it: that swaps the application over, and calls from here are
//! refused from then on. This copy is never a source again: the peer has a newer
//! generation, and the note says so to this node, wherever its own state lies.
//!
//! The peer compares this copy whole when it returns: a disk that failed may have lost
//! anything.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::Ordering;

use parking_lot::{Mutex, RwLock};
use tokio::sync::watch;
use twinfold_protocol::handshake::{CopyState, Role};
use twinfold_protocol::ids::{FileId, Generation, SessionId};
use twinfold_protocol::remote::{Answer, Request};

use super::actions::random_id;
use super::calls::{Calls, OnAnswer};
use super::standby::of_session;
use super::{Engine, Guest, StandbyError, clock};
use crate::error::FsError;
use crate::state::{Record, Recovered};
use crate::store::{Node, is_disk_failure};

/// Where the calls of this node's application are carried out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Place {
    /// Here.
    Here,
    /// The disk has failed; the peer of this session is asked to take over.
    Asking(SessionId),
    /// At the peer, which took over in this session.
    Peer(SessionId),
}

/// Carries out a call of the peer, and answers it.
pub(crate) type Host = Box<dyn Fn(Request, Box<dyn FnOnce(Answer) + Send>) + Send + Sync>;

/// This side's part in a disk's failure, of either node.
pub(super) struct TakeOver {
    place: watch::Sender<Place>,
    /// What failed.
    reason: Mutex<Option<String>>,
    /// Ranges of files in which a change failed, and was not undone because the peer is to
    /// take over. Those that were under way when the first one failed, so no more than calls.
    undone: Mutex<Vec<(Arc<Node>, u64, u64)>>,
    /// Objects whose names or attributes such a change was about.
    undone_at: Mutex<BTreeSet<FileId>>,
    pub(super) calls: Calls,
    host: OnceLock<Host>,
    /// The visitor's calls.
    guest: Arc<Mutex<Guest>>,
    /// The session in which this node took over, while it serves the peer's mount.
    hosting: RwLock<Option<SessionId>>,
}

impl Default for TakeOver {
    fn default() -> TakeOver {
        TakeOver {
            place: watch::Sender::new(Place::Here),
            reason: Mutex::default(),
            undone: Mutex::default(),
            undone_at: Mutex::default(),
            calls: Calls::default(),
            host: OnceLock::new(),
            guest: Arc::default(),
            hosting: RwLock::default(),
        }
    }
}

/// The side whose disk failed.
impl Engine {
    /// Where calls are carried out.
    pub(crate) fn place(&self) -> Place {
        *self.takeover.place.borrow()
    }

    fn change_place(&self, change: impl FnOnce(&mut Place) -> bool) {
        if self.takeover.place.send_if_modified(change) {
            self.changes.ring();
        }
    }

    /// Follows it.
    pub(crate) fn watch_place(&self) -> watch::Receiver<Place> {
        self.takeover.place.subscribe()
    }

    /// Whether calls go to the peer.
    pub fn is_away(&self) -> bool {
        self.place() != Place::Here
    }

    /// Whether a call that failed so belongs to the peer. The first one that does makes
    /// the peer take over.
    pub(crate) fn moves(&self, error: &FsError) -> bool {
        match error {
            FsError::Moved => true,
            FsError::Fenced => self.is_away(),
            FsError::Store(e) => self.moves_with(e),
            _ => false,
        }
    }

    /// The same for the store's own errors.
    pub(crate) fn moves_with(&self, error: &io::Error) -> bool {
        is_disk_failure(error) && self.disk_failed("a call", error)
    }

    /// The store of this node failed. True when the peer has taken over or is asked to;
    /// false when there is no peer that could, and the application has to be told.
    pub(super) fn disk_failed(&self, what: &str, error: &io::Error) -> bool {
        if self.role() != Some(Role::Primary) {
            return false;
        }
        let heir = {
            let core = self.core.lock();
            core.session().filter(|_| core.can_yield())
        };
        let mut asked = false;
        self.change_place(|place| {
            asked = *place != Place::Here || heir.is_some();
            match heir {
                Some(session) if *place == Place::Here => {
                    self.takeover.calls.missed(clock::now());
                    *place = Place::Asking(session);
                    true
                }
                _ => false,
            }
        });
        let reason = format!("{what} failed: {error}");
        let mut known = self.takeover.reason.lock();
        if known.is_none() {
            if asked {
                tracing::error!(reason, "this node's disk has failed; the peer takes over");
            } else {
                tracing::error!(
                    reason,
                    "this node's disk has failed and there is no peer that is up to date: the \
                     application is told"
                );
            }
            *known = Some(reason);
        }
        asked
    }

    /// The same for a change of a range that the peer may have got, or that was done in part.
    /// Should the peer not take over after all, the copies differ there.
    pub(super) fn disk_failed_in(
        &self,
        (node, offset, length): (&Arc<Node>, u64, u64),
        what: &str,
        error: &io::Error,
    ) -> bool {
        let undone = || self.takeover.undone.lock();
        // First: as soon as the peer is asked it may answer.
        undone().push((node.clone(), offset, length));
        let asked = self.disk_failed(what, error);
        if !asked {
            // The caller undoes it.
            undone().retain(|u| !Arc::ptr_eq(&u.0, node) || (u.1, u.2) != (offset, length));
        }
        asked
    }

    /// The same for a change of names or attributes of these objects. Without a peer that could
    /// take over they may differ from now on.
    pub(super) fn disk_failed_at(&self, files: &[FileId], what: &str, error: &io::Error) {
        // First: as soon as the peer is asked it may answer.
        self.takeover.undone_at.lock().extend(files);
        if !self.disk_failed(what, error) {
            self.takeover
                .undone_at
                .lock()
                .retain(|f| !files.contains(f));
            files.iter().for_each(|f| self.object_differs(*f, error));
        }
    }

    /// The copy's history as others are told of it: what its own disk does not take any
    /// more is said at least.
    pub(super) fn told_copy(&self, role: Role) -> CopyState {
        let mut copy = self.copy.get().copy;
        copy.up_to_date &= match role {
            Role::Primary => !self.is_away(),
            Role::Secondary => !self.spoiled.load(Ordering::Relaxed),
        };
        copy
    }

    /// Why calls go to the peer, if they do.
    pub fn disk_failure(&self) -> Option<String> {
        self.takeover.reason.lock().clone()
    }

    /// Asks the peer, once every change that was begun has ended. Blocks for that long.
    pub(crate) fn ask_to_take_over(self: &Arc<Self>) {
        // First: from the moment when the peer may have done it, this copy must not be
        // started as primary any more.
        let generation = self.copy.get().copy.current;
        if let Err(error) = self.condemned.set(generation) {
            tracing::error!(%error, "it cannot be noted that this copy is condemned");
        }
        self.gate.wait_for_all_before();
        let asked = self.core.lock().yield_to_peer(clock::now(), clock::wall());
        if asked {
            self.output.notify_one();
        } else {
            self.peer_cannot_take_over();
        }
    }

    /// There was no peer any more that could, or it could not: calls end with what they
    /// failed with here.
    pub(super) fn peer_cannot_take_over(&self) {
        let mut was = false;
        self.change_place(|place| {
            was = matches!(place, Place::Asking(_));
            if was {
                *place = Place::Here;
            }
            was
        });
        if !was {
            return;
        }
        tracing::error!("the peer cannot take over: the application is told of the disk's errors");
        if let Err(error) = self.condemned.clear() {
            tracing::warn!(%error, "the note that this copy is condemned stays");
        }
        // What failed here and was shipped is there: a peer whose line comes back would go on
        // as if it were equal.
        let undone = std::mem::take(&mut *self.takeover.undone.lock());
        let error = io::Error::other("the disk failed, and the peer could not take over");
        for (node, offset, length) in undone {
            self.differs(&node, offset, length, &error);
        }
        for file in std::mem::take(&mut *self.takeover.undone_at.lock()) {
            self.object_differs(file, &error);
        }
        // Now, not at the first note that is made: until then it would seem to be in order.
        if let Err(error) = self.intents.intact() {
            self.fence("the intent log cannot be written", &error);
        }
        self.takeover.calls.give_up();
        self.room.notify_all();
    }

    /// A new term as primary: its calls are carried out here, whatever became of an earlier one.
    pub(super) fn calls_stay_here(&self) {
        self.change_place(|place| {
            let was = *place != Place::Here;
            *place = Place::Here;
            was
        });
        self.takeover.undone.lock().clear();
        self.takeover.undone_at.lock().clear();
        *self.takeover.reason.lock() = None;
        self.takeover.calls.give_up();
    }

    /// The peer has not said in time whether it has taken over. It may have: so nothing
    /// is done here any more, and what waits is told of an I/O error.
    pub(super) fn heir_is_late(&self) {
        let held = self.core.lock().take_held();
        let reason = "this node's disk has failed, and the peer, which was asked to take over, \
                      does not answer: the application is told of I/O errors until it does. If \
                      the peer is up, stop this node and run `promote --force` there";
        tracing::error!(calls = held.len(), reason);
        self.set_trouble(Some(reason.into()));
        // Dropped, each call ends with an I/O error.
        drop(held);
        self.room.notify_all();
    }

    /// The peer itself says that it has taken over.
    pub(crate) fn peer_welcomes(self: &Arc<Self>) {
        let mut core = self.core.lock();
        core.peer_took_over();
        self.perform(core);
    }

    /// The peer has taken over, durably.
    pub(super) fn peer_took_over(self: &Arc<Self>) {
        self.change_place(|place| {
            if let Place::Asking(session) = *place {
                self.takeover.calls.missed(clock::now());
                *place = Place::Peer(session);
            }
            true
        });
        self.takeover.undone.lock().clear();
        self.takeover.undone_at.lock().clear();
        self.set_trouble(None);
        tracing::error!(
            "the peer has taken the data over; reads and writes go there. Swap the application \
             to it: `promote` there, then stop this node and repair its disk"
        );
        self.room.notify_all();
        let engine = self.clone();
        self.jobs.run(move || {
            if let Err(error) = engine.copy.update(Record::fall_behind) {
                tracing::warn!(%error, "this copy cannot be marked on its own disk");
            }
        });
    }

    /// Queues a call for the peer. `otherwise` is what it failed with here.
    pub(crate) fn call(&self, request: Request, otherwise: FsError, reply: OnAnswer) {
        if !self.is_away() {
            return reply(Err(otherwise));
        }
        self.takeover
            .calls
            .push(clock::now(), request, otherwise, reply);
        if !self.is_away() {
            // The peer turned out not to be able to, between the two lines above.
            self.takeover.calls.give_up();
        }
    }

    /// The calls that wait for the peer.
    pub(crate) fn calls(&self) -> &Calls {
        &self.takeover.calls
    }

    /// Ends calls that the peer did not answer in time.
    pub(super) fn expire_calls(&self) {
        let patience = self.settings.config().heir_patience();
        self.takeover.calls.expire(clock::now(), patience);
    }
}

/// The side that takes over.
impl Engine {
    /// `host` carries out the peer's calls from now on. There is one, for the engine's lifetime.
    pub(crate) fn host_with(&self, host: Host) {
        let _ = self.takeover.host.set(host);
    }

    /// The session in which this node took over, while it serves the peer's application.
    pub fn hosting(&self) -> Option<SessionId> {
        // Also asked in the middle of a visitor's call, which holds the lock itself: not
        // behind a promotion that waits for that call to end.
        *self.takeover.hosting.read_recursive()
    }

    /// Whether nothing changes that the kernel of this node does not know of: this node
    /// is primary, and its own mount the only one.
    pub fn is_exclusive(&self) -> bool {
        self.role() == Some(Role::Primary) && self.hosting().is_none()
    }

    /// Takes over from the primary of `session`, whose disk has failed: everything here is
    /// flushed, and a new generation is durable. Blocks. The role changes when the primary
    /// has been told, by [`Engine::begin_hosting`].
    pub(super) fn take_over_from_peer(&self, session: SessionId) -> Result<(), StandbyError> {
        let failed = |op| move |source| StandbyError::Put { op, source };
        if self.hosting() == Some(session) {
            return Ok(());
        }
        self.flush_session(session)?;
        let mut guard = self.standby.lock();
        of_session(&mut guard, session)?;
        let mut record = self.copy.get();
        let next = Generation(random_id());
        record
            .take_over(self.side, next, crate::state::boot_id())
            .map_err(|e| failed("take-over")(io::Error::other(e)))?;
        record.alone_since = clock::unix_seconds();
        let epoch = record.epoch;
        self.copy.update(|r| *r = record).map_err(|e| {
            self.fence("the copy's history cannot be written", &e);
            StandbyError::Fenced
        })?;
        let differing = self.differing.lock().counts().0;
        tracing::warn!(generation = %next, differing, "the peer's disk has failed; this node takes over");
        let Some(standby) = guard.take() else {
            return Err(StandbyError::NoSession);
        };
        *self.takeover.hosting.write() = Some(session);
        self.changes.ring();
        drop(guard);
        let suspects = standby.into_marks(&self.store);
        self.nothing_differs();
        *self.recovered.lock() = Recovered::default();
        self.begin_term(epoch, suspects);
        Ok(())
    }

    /// The visitor's calls.
    pub(crate) fn guest(&self) -> &Arc<Mutex<Guest>> {
        &self.takeover.guest
    }

    /// Whether this node has taken over but is not primary yet.
    pub(crate) fn must_host(&self) -> bool {
        self.hosting().is_some() && self.role() == Some(Role::Secondary)
    }

    /// The peer has been told, or is gone: this node is primary, without a mount to write to.
    pub(crate) fn begin_hosting(&self) {
        self.set_role(Some(Role::Primary));
    }

    /// Carries out a call of the visitor of `session`; false when that is not served.
    pub(crate) fn carry_out(
        &self,
        session: SessionId,
        request: Request,
        reply: Box<dyn FnOnce(Answer) + Send>,
    ) -> bool {
        // Held for as long as the change is made: one that began before a promotion has
        // ended before it.
        let hosting = self.takeover.hosting.read();
        match self.takeover.host.get() {
            Some(host) if *hosting == Some(session) => host(request, reply),
            _ => return false,
        }
        true
    }

    /// The application is swapped over to this node, or it gives up its role: no call of
    /// the peer is carried out any more. False when it served none.
    pub(super) fn end_hosting(&self) -> bool {
        let was = self.takeover.hosting.write().take().is_some();
        if was {
            self.changes.ring();
            self.drop_connection("the application was swapped over to this node");
        }
        was
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use twinfold_protocol::ids::{FileId, Seq};
    use twinfold_protocol::marks::id_block;
    use twinfold_protocol::op::Op;
    use twinfold_protocol::primary::Link;
    use twinfold_protocol::wire::Receipt;

    use super::super::bed::{Bed, opened, paired};
    use super::*;

    /// Ends a primary's term, and has its disk fail as soon as no change is taken any more.
    fn fails_while<T: Send>(engine: &Arc<Engine>, ends: impl FnOnce() -> T + Send) -> T {
        paired(engine);
        std::thread::scope(|scope| {
            let ending = scope.spawn(ends);
            let until = std::time::Instant::now() + Duration::from_secs(60);
            while !engine.closing.load(Ordering::Acquire) {
                assert!(std::time::Instant::now() < until);
                std::thread::sleep(Duration::from_millis(1));
            }
            let eio = io::Error::from_raw_os_error(5);
            assert!(engine.disk_failed("a call", &eio));
            ending.join().unwrap()
        })
    }

    #[test]
    fn a_primary_whose_disk_fails_while_it_is_demoted_stays_primary_and_asks_its_peer() {
        let (engine, _place) = opened(true);
        engine.start_primary(false).unwrap();
        assert!(fails_while(&engine, || engine.demote()).is_err());
        assert_eq!(engine.role(), Some(Role::Primary));
        assert!(engine.is_away());
        assert!(!engine.closing.load(Ordering::Acquire));
    }

    #[test]
    fn a_primary_whose_disk_fails_while_it_stops_leaves_no_copy_that_counts() {
        let (engine, _place) = opened(true);
        engine.start_primary(false).unwrap();
        fails_while(&engine, || engine.stop()).unwrap();
        let record = engine.copy.get();
        assert!(!record.copy.up_to_date && !record.clean, "{record:?}");
    }

    /// The write is on its way to the peer or there, and this disk has not taken it. Before the
    /// peer can be asked to take over its line breaks for longer than it is waited for.
    #[test]
    fn what_only_the_peer_got_differs_when_it_cannot_be_asked_to_take_over() {
        let (engine, _place) = opened(true);
        engine.start_primary(false).unwrap();
        let root = engine.store.node(FileId::ROOT).unwrap();
        let end = {
            let mut core = engine.core.lock();
            core.peer_ready(clock::now(), SessionId(1));
            let end = core.next_seq();
            core.finish_resync(clock::now(), clock::wall()).unwrap();
            while core.next_op().is_some() {}
            let (applied, durable) = (end, Seq(0));
            for receipt in [
                Receipt::Applied { applied, durable },
                Receipt::Synced { seq: end },
            ] {
                core.receipt(clock::now(), receipt).unwrap();
            }
            assert_eq!(core.link(), Link::Paired);
            end
        };
        let eio = io::Error::from_raw_os_error(5);
        assert!(engine.disk_failed_in((&root, 0, 4096), "a write", &eio));
        assert!(engine.is_away());
        {
            let mut core = engine.core.lock();
            core.peer_lost(clock::now(), "cut");
            core.tick(clock::now().after(Duration::from_secs(3600)));
            assert_eq!(core.link(), Link::Holding);
        }
        engine.ask_to_take_over();
        assert!(!engine.is_away(), "the application is told");
        assert!(engine.resume(SessionId(1), end));
        let mut core = engine.core.lock();
        assert_eq!(core.link(), Link::Paired);
        assert!(!core.differing().is_empty());
        let shipped = std::iter::from_fn(|| core.next_op());
        assert!(
            shipped
                .map(|o| o.op)
                .any(|op| matches!(op, Op::Differs { .. }))
        );
        drop(core);
        // Of what the caller undoes nothing is left.
        engine.core.lock().peer_lost(clock::now(), "cut");
        engine
            .core
            .lock()
            .tick(clock::now().after(Duration::from_secs(3600)));
        assert!(!engine.disk_failed_in((&root, 0, 4096), "a write", &eio));
        assert!(engine.takeover.undone.lock().is_empty());
    }

    /// What has failed is the log of intents: without an heir the node is fenced at once, and
    /// does not seem to be in order until the next note is made.
    #[test]
    fn a_primary_without_a_log_is_fenced_as_soon_as_the_peer_cannot_take_over() {
        let (engine, _place) = opened(true);
        engine.start_primary(false).unwrap();
        paired(&engine);
        engine.intents.refuse(Some(io::ErrorKind::Other));
        engine.note(&[id_block(FileId(5000))]).unwrap_err();
        assert!(engine.is_away() && engine.fenced().is_none());
        engine.core.lock().peer_lost(clock::now(), "cut");
        let later = clock::now().after(Duration::from_secs(3600));
        engine.core.lock().tick(later);
        engine.ask_to_take_over();
        assert!(!engine.is_away());
        assert!(engine.fenced().is_some());
    }

    /// What is written here for the visitor is told to the readers of this node's own mount,
    /// which asks in the middle of the call whether there is a visitor.
    #[test]
    fn a_call_of_the_visitor_ends_while_a_promotion_waits_for_it() {
        let (engine, _place) = opened(true);
        engine.start_primary(false).unwrap();
        let session = SessionId(1);
        *engine.takeover.hosting.write() = Some(session);
        let (tell, told) = std::sync::mpsc::channel();
        let within = Arc::downgrade(&engine);
        engine.host_with(Box::new(move |_, _| {
            let engine = within.upgrade().unwrap();
            let promotion = engine.clone();
            std::thread::spawn(move || promotion.end_hosting());
            // The promotion is in the queue as soon as no other reader gets in.
            while engine.takeover.hosting.try_read().is_some() {
                std::thread::yield_now();
            }
            tell.send(engine.is_exclusive()).unwrap();
        }));
        let request = Request::Forget { file: FileId::ROOT };
        let visitor = engine.clone();
        std::thread::spawn(move || visitor.carry_out(session, request, Box::new(|_| ())));
        let exclusive = told.recv_timeout(Duration::from_secs(20));
        assert_eq!(exclusive, Ok(false), "the call waits for the promotion");
    }

    /// Durable first, then the peer is told, which takes a moment if it is gone; only then the
    /// role changes.
    #[test]
    fn a_promotion_between_a_take_over_and_its_end_waits_and_needs_no_force() {
        let bed = Bed::current();
        assert!(matches!(bed.sync(Op::TakeOver), Ok(Some(_))));
        assert!(bed.engine.must_host());
        let generation = bed.engine.copy().copy.current;
        let engine = bed.engine.clone();
        let promotion = std::thread::spawn(move || engine.promote(false));
        std::thread::sleep(Duration::from_millis(100));
        assert!(bed.engine.hosting().is_some(), "nobody has been told yet");
        bed.engine.begin_hosting();
        promotion.join().unwrap().unwrap();
        assert_eq!(bed.engine.role(), Some(Role::Primary));
        assert_eq!(bed.engine.hosting(), None);
        assert_eq!(bed.engine.copy().copy.current, generation);
    }
}
