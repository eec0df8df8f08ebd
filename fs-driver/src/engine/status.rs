//! What the operator and the controller are told.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use serde::{Deserialize, Serialize};
use twinfold_protocol::handshake::Role;
use twinfold_protocol::op::Op;
use twinfold_protocol::primary::Link;
use twinfold_protocol::wire::Progress;

use super::progress::ResyncStatus;
use super::silence::Waits;
use super::verify::VerifyStatus;
use super::{Engine, Place, Standby, clock};

/// Numbers that only grow, and the running resync.
#[derive(Debug, Default)]
pub(super) struct Counters {
    applied_ops: AtomicU64,
    applied_bytes: AtomicU64,
    moved_bytes: AtomicU64,
    /// As it was when the session began.
    moved_before: AtomicU64,
    comparing: AtomicBool,
}

impl Counters {
    pub(super) fn applied(&self, op: &Op) {
        self.applied_ops.fetch_add(1, Ordering::Relaxed);
        let bytes = op.payload_len() as u64;
        self.applied_bytes.fetch_add(bytes, Ordering::Relaxed);
        if op.is_resync() {
            self.moved_bytes.fetch_add(bytes, Ordering::Relaxed);
        }
    }

    pub(super) fn comparing(&self, on: bool) {
        self.comparing.store(on, Ordering::Relaxed);
    }

    pub(super) fn is_comparing(&self) -> bool {
        self.comparing.load(Ordering::Relaxed)
    }

    /// A session begins, in which this copy is brought up.
    pub(super) fn session_begins(&self) {
        let moved = self.moved_bytes.load(Ordering::Relaxed);
        self.moved_before.store(moved, Ordering::Relaxed);
    }

    /// Bytes of file data that resync brought in this session.
    pub(super) fn moved_now(&self) -> u64 {
        let before = self.moved_before.load(Ordering::Relaxed);
        (self.moved_bytes.load(Ordering::Relaxed)).saturating_sub(before)
    }
}

/// The relation to the peer, as it is reported.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LinkState {
    /// Primary without a peer.
    Alone,
    /// Primary, comparing what may differ before the resync.
    Comparing,
    /// Resync runs.
    Syncing,
    /// The peer is up to date.
    Paired,
    /// The connection is lost, and may come back.
    Bridging,
    /// Writes are held until somebody decides.
    Holding,
    /// What was held has failed; this primary takes no change any more and is to be demoted.
    Forsaken,
    /// This node's disk has failed; the peer is asked to take over.
    HandingOver,
    /// This node's disk has failed; the peer carries out its calls.
    AtPeer,
    /// Secondary without a primary.
    Waiting,
}

/// The state of one folder on one node.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Status {
    /// The module's name.
    pub name: String,
    /// `primary`, `secondary`, or nothing while starting and stopping.
    pub role: Option<&'static str>,
    /// The relation to the peer.
    pub link: LinkState,
    /// The copy holds every acknowledged write.
    pub up_to_date: bool,
    /// The operator gave the copy up; it waits to be overwritten.
    pub given_up: bool,
    /// The copy's generation, its first eight digits.
    pub generation: String,
    /// Ops and bytes on their way to the peer.
    pub in_flight_ops: u64,
    /// Bytes of them.
    pub in_flight_bytes: u64,
    /// Objects with marks: what a resync would have to look at.
    pub dirty_objects: u64,
    /// Marked bytes of file data.
    pub dirty_bytes: u64,
    /// Objects that are compared when the peer returns.
    pub suspect_objects: u64,
    /// Objects the peer has but may not have on its disk yet.
    pub unflushed_objects: u64,
    /// All times are shipped: the copies are equal in every attribute.
    pub settled: bool,
    /// Ops applied here for the peer.
    pub applied_ops: u64,
    /// Bytes of file data in them.
    pub applied_bytes: u64,
    /// Bytes of file data received by resync since the driver started.
    pub received_bytes: u64,
    /// The running or last resync.
    pub resync: Option<ResyncStatus>,
    /// Bytes that a resync may read or move in a second, if that is limited.
    pub resync_limit: Option<u64>,
    /// The running or last verify.
    pub verify: Option<VerifyStatus>,
    /// Objects that a verify found to differ and that are not repaired.
    pub differing_objects: u64,
    /// What the caller is asked to decide: go on alone?
    pub question: Option<String>,
    /// What keeps the two copies apart, and how to end that.
    pub conflict: Option<String>,
    /// What went wrong last.
    pub trouble: Option<String>,
    /// What of this node's own state could not be read: everything is compared when the
    /// peer returns.
    pub damage: Option<String>,
    /// Why the node is fenced.
    pub fenced: Option<String>,
    /// For how many seconds the store has not answered, if that is too long.
    pub store_silent_s: Option<u64>,
    /// For how many seconds a call has waited for the store, if that is too long, whose disk
    /// works.
    pub store_busy_s: Option<u64>,
    /// What failed of this node's disk.
    pub disk_failure: Option<String>,
    /// This node carries out the calls of the peer, whose disk has failed.
    pub serves_peer: bool,
    /// The application is to be swapped: to the peer if this node's disk has failed, to
    /// this node if the peer's has.
    pub swap: Option<Swap>,
}

/// To which node an application is to be swapped.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Swap {
    /// To the peer of the node that says so.
    ToPeer,
    /// To the node that says so.
    ToThisNode,
}

impl Engine {
    /// Limits what a resync reads and moves in a second, until the driver ends or is told
    /// otherwise.
    pub fn limit_resync(&self, limit: Option<u64>) {
        tracing::info!(
            bytes_per_second = limit,
            "the limit for resyncs was changed"
        );
        self.pace.set(limit);
        self.room.notify_all();
    }

    /// What a running resync's target is to be told.
    pub(crate) fn resync_progress(&self) -> Option<Progress> {
        self.tracker.to_tell()
    }

    /// What the source tells of the resync of this copy. One word may come late, when this copy
    /// is up to date: it is no new resync, of which nobody would tell the end.
    pub(crate) fn standby_progress(&self, told: Progress) {
        let moved = self.counters.moved_now();
        // The end comes under the same lock. Nobody waits for it here: there is a next word.
        let standby = self.standby.try_lock();
        let syncing = standby.as_deref().and_then(Option::as_ref);
        if syncing.is_some_and(Standby::is_syncing) {
            self.tracker.told(clock::now(), told, moved);
        }
    }

    /// The state now.
    pub fn status(&self) -> Status {
        let copy = self.copy.get();
        let role = self.role();
        let serves_peer = self.hosting().is_some();
        let comparing = self.counters.is_comparing();
        let syncing = self.standby.look().0.map(|s| s.syncing);
        let connected = self.connection.lock().is_some();
        // Before what is in flight: what is settled meanwhile is in flight then.
        let times_settled = self.times_settled();
        let core = self.core.lock();
        let link = link_state(role, core.link(), comparing, syncing.filter(|_| connected));
        let (in_flight_ops, in_flight_bytes) = core.in_flight();
        let dirty = core.dirty().counts();
        let dirty_bytes = core.dirty().block_bytes();
        let suspect = core.suspect().counts();
        let unflushed = core.unflushed_counts();
        let differing = match role {
            Some(Role::Primary) => core.differing().counts(),
            _ => self.differing.lock().counts(),
        };
        let differing = (differing.0 + differing.1) as u64;
        drop(core);
        let left = (dirty.0 + dirty.1) as u64;
        let silent = self.silent_seconds();
        let silent = |why| silent.filter(|(waits, _)| *waits == why).map(|(_, s)| s);
        Status {
            name: self.settings.name.clone(),
            role: role.map(|r| match r {
                Role::Primary => "primary",
                Role::Secondary => "secondary",
            }),
            link,
            // The primary's copy is right by definition, unless its disk has failed.
            up_to_date: self.told_copy(role.unwrap_or(Role::Secondary)).up_to_date
                && (role == Some(Role::Primary) || differing == 0),
            given_up: copy.copy.given_up,
            generation: copy.copy.current.to_string(),
            in_flight_ops,
            in_flight_bytes: in_flight_bytes as u64,
            dirty_objects: left,
            dirty_bytes,
            suspect_objects: (suspect.0 + suspect.1) as u64,
            unflushed_objects: (unflushed.0 + unflushed.1) as u64,
            settled: times_settled && in_flight_ops == 0,
            applied_ops: self.counters.applied_ops.load(Ordering::Relaxed),
            applied_bytes: self.counters.applied_bytes.load(Ordering::Relaxed),
            received_bytes: self.counters.moved_bytes.load(Ordering::Relaxed),
            resync: self.tracker.status(clock::now()),
            resync_limit: self.pace.limit(),
            verify: self.verify_status(),
            differing_objects: differing,
            question: self.question.lock().clone(),
            conflict: self.conflict_text(),
            trouble: self.trouble.lock().clone(),
            damage: self.damage.lock().clone(),
            fenced: self.fenced().map(str::to_owned),
            store_silent_s: silent(Waits::Hangs),
            store_busy_s: silent(Waits::Busy),
            disk_failure: self.disk_failure(),
            serves_peer,
            swap: match self.place() {
                Place::Peer(_) => Some(Swap::ToPeer),
                _ if serves_peer => Some(Swap::ToThisNode),
                _ => None,
            },
        }
    }
}

/// The relation to the peer. `syncing`: of a secondary that is connected, whether its copy is
/// still being brought up.
pub(super) fn link_state(
    role: Option<Role>,
    link: Link,
    comparing: bool,
    syncing: Option<bool>,
) -> LinkState {
    if role != Some(Role::Primary) {
        return match syncing {
            Some(true) => LinkState::Syncing,
            Some(false) => LinkState::Paired,
            None => LinkState::Waiting,
        };
    }
    match link {
        Link::Alone if comparing => LinkState::Comparing,
        Link::Alone => LinkState::Alone,
        Link::Forsaken => LinkState::Forsaken,
        Link::Syncing | Link::Finishing { .. } => LinkState::Syncing,
        Link::Paired => LinkState::Paired,
        Link::Bridging { .. } => LinkState::Bridging,
        Link::Holding | Link::Leaving => LinkState::Holding,
        Link::Yielding { .. } => LinkState::HandingOver,
        Link::Yielded => LinkState::AtPeer,
    }
}

#[cfg(test)]
mod tests {
    use twinfold_protocol::wire::Phase;

    use super::super::bed::Bed;
    use super::*;

    #[test]
    fn a_word_about_a_resync_that_comes_behind_its_end_begins_no_other_one() {
        let bed = Bed::target();
        let flushing = Progress {
            phase: Phase::Flushing,
            done: 9,
            total: 10,
        };
        let shown = |bed: &Bed| bed.engine.status().resync.map(|r| r.phase);
        bed.engine.standby_progress(flushing);
        assert_eq!(shown(&bed), Some("flushing"));
        assert!(bed.engine.standing().percent.is_some());
        assert!(matches!(bed.sync(Op::ResyncEnd), Ok(Some(_))));
        assert_eq!(shown(&bed), Some("done"));
        bed.engine.standby_progress(flushing);
        assert_eq!(shown(&bed), Some("done"));
        assert_eq!(bed.engine.standing().percent, None);
    }
}
