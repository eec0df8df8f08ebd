//! Performing what the state machine asks for.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use rand::RngCore;
use twinfold_protocol::ids::{Generation, Seq, SessionId};
use twinfold_protocol::primary::{Action, Link};
use twinfold_protocol::time::Instant;
use twinfold_protocol::wire::{Frame, Receipt, Violation, encode_op};

use super::resync::ResyncError;
use super::watched::Held;
use super::{Engine, clock};
use crate::state::OnPeerLoss;

/// Checkpoints behind the last one that had something to flush, until a quiet pair has no
/// notes. What was used before that one is noted anew at it, and not at the next one; and the
/// secondary drops its notes one checkpoint later than the primary.
pub(super) const CHECKPOINTS_BEHIND: u8 = 2;

/// A random id other than zero.
pub(crate) fn random_id() -> u128 {
    let mut bytes = [0; 16];
    rand::rng().fill_bytes(&mut bytes);
    u128::from_le_bytes(bytes).max(1)
}

impl Engine {
    /// Sends replies and takes actions the machine has ready, after unlocking it.
    pub(super) fn perform(self: &Arc<Self>, mut core: Held<'_>) {
        let (mut replies, mut actions) = (Vec::new(), Vec::new());
        core.drain(&mut replies, &mut actions);
        // That of the checkpoint that has ended: the next one may begin, and put its own
        // there, as soon as the lock is free.
        let ended = match actions.contains(&Action::CheckpointDone) {
            true => self.checkpoint_segment.lock().take(),
            false => None,
        };
        // Nobody goes on alone, with another one, before the lock is free.
        let generation = match actions.contains(&Action::PeerIsCurrent) {
            true => self.copy.get().copy.current,
            false => Generation::default(),
        };
        // A question is never told with the number of the one before.
        for action in &actions {
            if matches!(action, Action::AskToGoAlone { .. }) {
                self.questions.fetch_add(1, Ordering::AcqRel);
            }
        }
        drop(core);
        self.room.notify_all();
        for reply in replies {
            reply();
        }
        for action in actions {
            self.act(action, ended, generation);
        }
    }

    /// `ended`: the segment of the checkpoint that has ended. `generation`: in which the peer is
    /// up to date.
    fn act(self: &Arc<Self>, action: Action, ended: Option<u64>, generation: Generation) {
        match action {
            Action::DropPeer { reason } => {
                tracing::warn!(reason, "the peer is dropped");
                self.set_trouble(Some(reason.clone()));
                self.drop_connection(&reason);
            }
            Action::AskToGoAlone { reason } => {
                {
                    // It may be answered already, by another thread.
                    let core = self.core.lock();
                    if core.is_asking() {
                        *self.question.lock() = Some(reason.clone());
                    }
                }
                match self.settings.on_peer_loss {
                    OnPeerLoss::Alone if !self.is_controlled() => {
                        tracing::warn!(reason, "the peer is lost; going on alone, as configured");
                        self.go_alone();
                    }
                    _ => tracing::warn!(
                        reason,
                        "the peer is lost; writes are held until `go-alone` or its return"
                    ),
                }
            }
            Action::AskNoMore => {
                let core = self.core.lock();
                if !core.is_asking() {
                    *self.question.lock() = None;
                }
            }
            Action::MakeAlone => {
                let engine = self.clone();
                self.jobs.run(move || engine.make_alone());
            }
            Action::PeerIsCurrent => {
                tracing::info!("the peer is up to date");
                self.no_conflict();
                self.tracker.ends(true);
                self.more_checkpoints
                    .store(CHECKPOINTS_BEHIND, Ordering::Relaxed);
                self.set_trouble(None);
                if let Some(session) = self.core.lock().session() {
                    let engine = self.clone();
                    self.jobs.run(move || engine.peer_ends_doubt(session));
                }
                let engine = self.clone();
                // It may be done after a decision to go on alone that was made later.
                self.jobs.run(move || {
                    let current = engine.copy.update(|r| r.peer_is_current(generation));
                    if let Err(e) = current {
                        engine.fence("the copy's history cannot be written", &e);
                    }
                });
            }
            Action::Verified { seq, found } => self.verify.answered(seq, Some(found)),
            Action::Unanswered { seq } => self.verify.answered(seq, None),
            Action::PeerTookOver => self.peer_took_over(),
            Action::HeirIsLate => self.heir_is_late(),
            Action::CheckpointDone => {
                let engine = self.clone();
                self.jobs.run(move || engine.notes_may_go(ended));
            }
        }
    }

    /// The decision to go on alone is made: a new generation, durable, then the replies.
    fn make_alone(self: &Arc<Self>) {
        let next = Generation(random_id());
        // One that was asked to take over could not, and said so.
        self.peer_cannot_take_over();
        let gone_alone = self.copy.update(|r| {
            r.go_alone(next);
            r.alone_since = clock::unix_seconds();
        });
        if let Err(e) = gone_alone {
            self.fence("the new generation cannot be written", &e);
            return self.forsake_held(self.core.lock());
        }
        tracing::warn!(generation = %next, "going on alone");
        *self.question.lock() = None;
        let mut core = self.core.lock();
        if core.link() == Link::Leaving {
            core.alone_is_durable();
        }
        self.perform(core);
    }

    /// What waits for the peer ends with an I/O error, now and later.
    fn forsake_held(&self, mut core: Held<'_>) {
        let held = core.forsake();
        drop(core);
        tracing::error!(calls = held.len(), "what waited for the peer has failed");
        *self.question.lock() = None;
        // Dropped, each call ends with an I/O error.
        drop(held);
        self.room.notify_all();
    }

    /// This primary gives way to its peer, if question number `question` is still open: what it
    /// holds has failed, and it takes no change any more. It is then to be demoted; an
    /// application that waits for an answer could not be stopped for that.
    pub fn forsake(&self, question: u64) -> bool {
        let core = self.core.lock();
        if !core.is_asking() || self.questions.load(Ordering::Acquire) != question {
            return false;
        }
        tracing::warn!("this node gives way to its peer");
        self.closing.store(true, Ordering::Release);
        self.forsake_held(core);
        self.drop_connection("this node gives way");
        true
    }

    /// The caller decides that this node goes on without its peer. False when
    /// there was nothing to decide.
    pub fn go_alone(self: &Arc<Self>) -> bool {
        let mut core = self.core.lock();
        let decided = core.go_alone();
        self.perform(core);
        decided
    }

    /// Closes the connection to the peer, if there is one.
    pub(super) fn drop_connection(&self, reason: &str) {
        if let Some(connection) = self.connection.lock().take() {
            connection.close(1u32.into(), reason.as_bytes());
            self.changes.ring();
        }
    }

    /// Makes `connection` the one that is dropped when the peer has to be; an older one is closed.
    pub(crate) fn set_connection(&self, connection: quinn::Connection) {
        let id = connection.stable_id();
        let old = self.connection.lock().replace(connection);
        self.changes.ring();
        if let Some(old) = old
            && old.stable_id() != id
        {
            old.close(2u32.into(), b"replaced by a newer connection");
        }
    }

    /// Up to `most` frames for the wire.
    pub(crate) fn frames(&self, most: usize, into: &mut Vec<Frame>) {
        let mut core = self.core.lock();
        for _ in 0..most {
            let Some(op) = core.next_op() else { break };
            into.push(encode_op(op.seq, op.time, &op.op));
        }
    }

    /// A receipt came in.
    pub(crate) fn receipt(self: &Arc<Self>, receipt: Receipt) -> Result<(), Violation> {
        let mut core = self.core.lock();
        let accepted = core.receipt(clock::now(), receipt);
        if matches!(core.link(), Link::Syncing | Link::Finishing { .. }) {
            let moved = core.progress().moved_bytes;
            self.tracker.moved(clock::now(), moved);
        }
        self.perform(core);
        accepted
    }

    /// The connection to the secondary of `session` is gone.
    pub(crate) fn peer_disconnected(self: &Arc<Self>, session: SessionId, reason: &str) {
        let mut core = self.core.lock();
        if core.session() == Some(session) {
            tracing::warn!(reason, link = ?core.link(), "the connection to the peer is lost");
            core.peer_lost(clock::now(), reason);
            self.tracker.ends(false);
        }
        self.perform(core);
        self.deadlines.notify_one();
    }

    /// The secondary left in order: its copy is not up to date any more.
    pub(crate) fn peer_left(self: &Arc<Self>, session: SessionId, flushed: bool) {
        let mut core = self.core.lock();
        if core.session() == Some(session) {
            core.peer_left(flushed);
        }
        self.perform(core);
    }

    /// Whether the secondary may go on with `session` after `applied`; if so, the session is resumed.
    pub(crate) fn resume(self: &Arc<Self>, session: SessionId, applied: Seq) -> bool {
        let mut core = self.core.lock();
        let may = core.can_resume(session, applied);
        if may {
            core.resume(clock::now(), applied);
            if core.is_asking() {
                tracing::warn!(
                    "the peer is back, but has not done yet what it was dropped for: `go-alone` \
                     leaves it behind"
                );
            }
        }
        self.perform(core);
        self.output.notify_one();
        may
    }

    /// The peer's process came back without the session that is still open here.
    pub(crate) fn peer_restarted(self: &Arc<Self>) -> bool {
        let mut core = self.core.lock();
        let goes_on = core.peer_restarted();
        if goes_on {
            tracing::warn!("the peer was restarted; this node goes on alone until it is resynced");
        }
        self.perform(core);
        goes_on
    }

    /// Why no session can begin: the last one is still open for the peer's return or for a
    /// decision, or none ever begins again.
    pub(crate) fn undecided(&self) -> Option<&'static str> {
        match self.core.lock().link() {
            Link::Alone | Link::Syncing => None,
            Link::Yielding { .. } => Some(
                "this primary's disk has failed, and it asked its peer to take over in a session \
                 that this node does not know any more: stop the primary, and run `promote \
                 --force` here",
            ),
            Link::Yielded => Some(
                "this primary's disk has failed, and its peer took over: stop it and repair its \
                 disk; it comes back as secondary",
            ),
            Link::Forsaken if self.fenced().is_none() => {
                Some("this primary gives way and becomes secondary")
            }
            Link::Forsaken => Some(
                "this primary is fenced, because its own state cannot be written: stop it and \
                 repair its disk",
            ),
            _ => Some("this primary has not decided yet whether to go on alone"),
        }
    }

    /// Looks at the deadlines; returns when to look again at the latest.
    pub(crate) fn tick(self: &Arc<Self>) -> Option<Instant> {
        let mut core = self.core.lock();
        core.tick(clock::now());
        let next = core.next_deadline();
        self.perform(core);
        self.expire_calls();
        self.tell_silence();
        next
    }

    /// Flushes both nodes and drops what they then need not remember; alone, saves what
    /// it has to. Blocks for as long as the local disk takes; writes go on.
    pub fn checkpoint(self: &Arc<Self>) {
        self.checkpoint_alone();
        let unflushed = self.core.lock().unflushed_counts() != (0, 0);
        let more = self.more_checkpoints.load(Ordering::Relaxed);
        if (unflushed || more > 0) && self.begin_checkpoint() {
            let more = match unflushed {
                true => CHECKPOINTS_BEHIND,
                false => more - 1,
            };
            self.more_checkpoints.store(more, Ordering::Relaxed);
        }
    }

    /// Begins a checkpoint, unless one runs, and flushes the local copy for it.
    pub(super) fn begin_checkpoint(self: &Arc<Self>) -> bool {
        // Two at a time would take each other's segments: notes of later changes would go.
        let _one = self.checkpoints.lock();
        if !self.core.lock().can_checkpoint() {
            return false;
        }
        // What was lost here is known by its notes alone: they stay.
        let segment = match self.syncs.is_lossy() {
            true => Ok(None),
            false => self.intents.rotate_hot(),
        };
        let segment = match segment {
            Ok(segment) => segment,
            Err(e) => {
                self.fence("the intent log cannot be written", &e);
                return false;
            }
        };
        // What was noted in the old segment has its place in the order before the
        // checkpoint has: else the peer would not flush it, and its note would go.
        self.gate.wait_for_all_before();
        // So have the times that it has set: they are known by that note alone.
        self.settle_now();
        {
            let mut core = self.core.lock();
            if !core.begin_checkpoint(clock::now(), clock::wall()) {
                return false;
            }
            // Before anybody can tell that it has ended.
            *self.checkpoint_segment.lock() = segment;
        }
        self.output.notify_one();
        // Every op before the checkpoint is applied here, then flushed.
        self.gate.wait_for_all_before();
        let _inside = self.inside();
        match self.sync_store() {
            Ok(()) => {
                let mut core = self.core.lock();
                core.checkpoint_flushed();
                self.perform(core);
            }
            Err(e) => {
                tracing::error!(
                    error = %e,
                    "the store could not be flushed: what was changed last is compared when this \
                     node starts again"
                );
                // Its marks and its notes stay.
                let mut core = self.core.lock();
                core.checkpoint_failed();
                self.perform(core);
            }
        }
        true
    }
}

/// What the link needs beside frames.
impl Engine {
    /// The resync's own thread gave up: its connection goes, the marks stay. Not one
    /// that has replaced it meanwhile; and where the connection is what ended the
    /// resync, whoever noticed closes it, with the better reason.
    pub(crate) fn resync_failed(
        self: &Arc<Self>,
        session: SessionId,
        connection: &quinn::Connection,
        error: &ResyncError,
    ) {
        self.tracker.ends(false);
        let reason = error.to_string();
        let current = self.core.lock().session() == Some(session);
        let own = matches!(error, ResyncError::Source(e)
            if e.kind() != std::io::ErrorKind::ConnectionAborted);
        if current || own {
            connection.close(1u32.into(), reason.as_bytes());
        }
        self.peer_disconnected(session, &reason);
    }

    /// Asks the link to leave in order; returns when it has, or after `patience`.
    pub(super) fn leave_in_order(&self, patience: std::time::Duration) {
        self.leaving.notify_one();
        let until = clock::now().after(patience);
        while self.connection.lock().is_some() && clock::now() < until {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    }

    /// What the operator is told to look at.
    pub(crate) fn set_trouble(&self, trouble: Option<String>) {
        let before = std::mem::replace(&mut *self.trouble.lock(), trouble.clone());
        if before != trouble {
            self.changes.ring();
        }
    }

    /// `connection` has ended.
    pub(crate) fn clear_connection(&self, connection: &quinn::Connection) {
        let mut current = self.connection.lock();
        if current
            .as_ref()
            .is_some_and(|c| c.stable_id() == connection.stable_id())
        {
            self.tracker.ends(false);
            *current = None;
            self.changes.ring();
        }
    }
}
