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

use std::io;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::Ordering;

use parking_lot::{Mutex, RwLock};
use tokio::sync::watch;
use twinfold_protocol::handshake::{CopyState, Role};
use twinfold_protocol::ids::{Generation, SessionId};
use twinfold_protocol::remote::{Answer, Request};

use super::actions::random_id;
use super::calls::{Calls, OnAnswer};
use super::standby::of_session;
use super::{Engine, Guest, StandbyError, clock};
use crate::error::FsError;
use crate::state::{Record, Recovered};
use crate::store::is_disk_failure;

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
        self.takeover.place.send_if_modified(|place| {
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
        self.takeover.place.send_if_modified(|place| {
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
        self.takeover.calls.give_up();
        self.room.notify_all();
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
        self.takeover.place.send_modify(|place| {
            if let Place::Asking(session) = *place {
                self.takeover.calls.missed(clock::now());
                *place = Place::Peer(session);
            }
        });
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
        *self.takeover.hosting.read()
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
        tracing::warn!(generation = %next, "the peer's disk has failed; this node takes over");
        let Some(standby) = guard.take() else {
            return Err(StandbyError::NoSession);
        };
        *self.takeover.hosting.write() = Some(session);
        drop(guard);
        let suspects = standby.into_marks(&self.store);
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
            self.drop_connection("the application was swapped over to this node");
        }
        was
    }
}
