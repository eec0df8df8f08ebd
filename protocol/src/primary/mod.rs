//! The primary's side of replication: what is shipped, what is acknowledged when,
//! what is held, and what is marked.
//!
//! Ops come from the file system; receipts from the peer; decisions from the
//! caller. Replies, frames and [`Action`]s come out. The local disk is just
//! another voter: an op is acknowledged when the local vote and, while the peer
//! counts, the peer's vote are in.
//!
//! ```text
//!            peer_ready            resync_finished        Synced(end)
//!   Alone ───────────────▶ Syncing ──────────────▶ Finishing ────────▶ Paired
//!     ▲ ▲                    │                        │  ▲              │  ▲
//!     │ └──────peer_lost─────┘                        │  │ resume       │  │ resume
//!     │                                    peer_lost  ▼  │              ▼  │
//!     │                                             Bridging ◀──────────┘  │
//!     │                                      deadline │  └─────────────────┘
//!     │ alone_is_durable           go_alone           ▼
//!     └───────────────── Leaving ◀──────────────── Holding ──resume──▶ (back)
//! ```
//!
//! Paired and Bridging lead to Yielding, and that to Yielded, when the local disk fails
//! (`takeover`); Leaving leads to Forsaken when that cannot be made durable, Holding when the peer goes on.
//!
//! While Bridging, Holding and Leaving nothing that needs the peer's vote is
//! acknowledged (invariant 4): the peer may be current, and may be promoted.

mod alone;
mod checkpoint;
mod deadlines;
mod flow;
mod flush;
mod own;
mod question;
mod receipts;
mod resync;
mod takeover;
mod verify;
mod window;

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use crate::ids::{FileId, Seq, SessionId};
use crate::limits;
use crate::marks::DirtyMap;
use crate::op::{Op, Sequenced, Stability};
use crate::time::{Instant, Timestamp};
use crate::verify::Found;

use checkpoint::Checkpoint;
use deadlines::Wait;
use flow::Flow;
use flush::Flushing;
pub use own::OwnMarks;
pub use resync::Progress;
use window::{Entry, Local, Vote, Window};

/// What an acknowledgement means, chosen per module (promise 1).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum AckMode {
    /// The secondary has it on stable storage.
    Disk,
    /// The secondary has applied it.
    Memory,
    /// The primary has applied it; syncs wait for both disks.
    Flush,
}

/// How long a primary waits for what.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Config {
    /// What an acknowledgement means.
    pub mode: AckMode,
    /// The peer is dropped when it makes no progress at all for this long while ops wait.
    pub stall: Duration,
    /// The peer is dropped when one op waits for this long, or, while it says that its disk is
    /// busy, [`limits::BUSY_PATIENCE`] times as long.
    pub op: Duration,
    /// As `op`, for syncs and for acknowledgements in mode `disk`. Syncs that nobody waits for
    /// have [`limits::UNAWAITED_SYNCS`] times this.
    pub sync: Duration,
    /// How long a broken connection may be resumed before the caller is asked.
    pub bridge: Duration,
}

/// The relation to the peer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Link {
    /// Nobody to wait for; everything is marked.
    Alone,
    /// The peer is being brought up; it is shipped to, not waited for.
    Syncing,
    /// Everything is moved; the peer flushes and becomes up to date. From here on its vote counts.
    Finishing {
        /// The number of the op that ends the resync.
        end: Seq,
    },
    /// The peer is up to date; its vote counts.
    Paired,
    /// The connection is lost and may come back.
    Bridging {
        /// When the caller is asked.
        until: Instant,
    },
    /// The caller has been asked; replies are held until it decides.
    Holding,
    /// The caller decided to go on alone; the new generation is being made durable.
    Leaving,
    /// The local disk has failed; the peer is asked to take the data over.
    Yielding {
        /// The number of the op that asks.
        end: Seq,
        /// There is a connection to hear the answer on.
        connected: bool,
        /// When what waits for the answer is given back; `None`: it was.
        until: Option<Instant>,
    },
    /// The peer has taken the data over. This node has no copy that counts.
    Yielded,
    /// The decision to go on alone could not be made durable, or the peer has the right to go
    /// on: nothing is acknowledged any more.
    Forsaken,
}

/// What the driver must do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Action {
    /// Close the connection: the peer did not keep a deadline.
    DropPeer {
        /// For the operator.
        reason: String,
    },
    /// Report that the peer is lost and ask whether to go on alone.
    AskToGoAlone {
        /// For the operator.
        reason: String,
    },
    /// What was asked needs no answer any more: the peer is back, and has done what it was
    /// dropped for.
    AskNoMore,
    /// Make a new generation durable, then call [`Primary::alone_is_durable`].
    MakeAlone,
    /// The peer is up to date: note durably that no base is needed any more.
    PeerIsCurrent,
    /// Both copies have flushed everything before the checkpoint that has now ended.
    CheckpointDone,
    /// The peer answered a question of a verify.
    Verified {
        /// Which one.
        seq: Seq,
        /// What it has.
        found: Found,
    },
    /// The answer was lost with a connection that was replaced: ask again.
    Unanswered {
        /// Which one.
        seq: Seq,
    },
    /// The peer has taken the data over, durably: calls go to it from now on.
    PeerTookOver,
    /// The peer did not say in time whether it has taken over: what waits for that comes
    /// from [`Primary::take_held`]. It is still asked when it comes back.
    HeirIsLate,
}

/// Where an op went.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Submitted {
    /// The number under which the local vote is to be given; `None`: no peer is
    /// waited for, reply as soon as the local copy has it.
    pub seq: Option<Seq>,
    /// There is something for the wire.
    pub output: bool,
}

/// The primary's replication state. `R` is a reply that waits.
#[derive(Debug)]
pub struct Primary<R> {
    config: Config,
    link: Link,
    /// Where a resumed connection goes back to.
    before: Link,
    session: Option<SessionId>,
    /// The first number of this term as primary: a vote for an earlier one comes too late.
    began: Seq,
    window: Window<R>,
    progress: Instant,
    /// When the peer last said that its disk is busy.
    busy: Option<Instant>,
    /// When the connection came up that there is now: no wait began before it.
    resumed: Instant,
    /// The caller has been asked whether to go on alone, and may still say so.
    asked: bool,
    /// What the peer was dropped for and has not done since.
    overdue: Option<Wait>,
    /// What must be moved before the peer is current.
    dirty: DirtyMap,
    /// What the peer had, but perhaps not on its disk, when it was lost: compared when
    /// it returns, and moved only where it differs.
    suspect: DirtyMap,
    /// Shipped and applied by the peer after the last checkpoint began.
    fresh: DirtyMap,
    /// Shipped and applied by the peer before it.
    older: DirtyMap,
    /// Known to differ, by a verify, from a peer that counts as up to date otherwise.
    differing: DirtyMap,
    /// Questions of a verify that the peer has not answered, oldest first.
    verifying: VecDeque<Seq>,
    checkpoint: Option<Checkpoint>,
    /// What got another name since a comparison began.
    moved: Option<BTreeSet<FileId>>,
    /// The directory whose listing is being sent.
    listing: Option<crate::ids::FileId>,
    last_app_op: Instant,
    flow: Flow,
    flushing: Flushing,
    replies: Vec<R>,
    actions: Vec<Action>,
    stats: Progress,
}

impl<R> Primary<R> {
    /// A primary that goes on alone, with these marks from before.
    pub fn new(config: Config, dirty: DirtyMap) -> Primary<R> {
        Primary::beginning_at(Seq(1), config, dirty)
    }

    /// The next term of this node as primary: alone, without a mark. Numbers go on, so
    /// that a vote for an op of this term is not taken for one of the next.
    #[must_use]
    pub fn next_term(&self) -> Primary<R> {
        Primary::beginning_at(self.window.next(), self.config, DirtyMap::default())
    }

    fn beginning_at(began: Seq, config: Config, dirty: DirtyMap) -> Primary<R> {
        Primary {
            config,
            link: Link::Alone,
            before: Link::Alone,
            session: None,
            began,
            window: Window::new(began),
            progress: Instant::default(),
            busy: None,
            resumed: Instant::default(),
            asked: false,
            overdue: None,
            dirty,
            suspect: DirtyMap::default(),
            fresh: DirtyMap::default(),
            older: DirtyMap::default(),
            differing: DirtyMap::default(),
            verifying: VecDeque::new(),
            checkpoint: None,
            moved: None,
            listing: None,
            last_app_op: Instant::default(),
            flow: Flow::new(config.op, Instant::default()),
            flushing: Flushing::default(),
            replies: Vec::new(),
            actions: Vec::new(),
            stats: Progress::default(),
        }
    }

    /// The relation to the peer.
    pub fn link(&self) -> Link {
        self.link
    }

    /// The current session.
    pub fn session(&self) -> Option<SessionId> {
        self.session
    }

    /// The number the next op will get.
    pub fn next_seq(&self) -> Seq {
        self.window.next()
    }

    /// Ops that are still remembered: not settled yet, or behind one that is not.
    pub fn remembered(&self) -> usize {
        self.window.len()
    }

    /// Ops shipped or waiting to be shipped that the peer has not applied, and their bytes.
    pub fn in_flight(&self) -> (u64, usize) {
        (self.window.unapplied(), self.window.unapplied_bytes)
    }

    /// The marks of what must be moved.
    pub fn dirty(&self) -> &DirtyMap {
        &self.dirty
    }

    /// The marks of what must be compared when the peer returns.
    pub fn suspect(&self) -> &DirtyMap {
        &self.suspect
    }

    /// Adds marks of what must be compared.
    pub fn add_suspects(&mut self, marks: DirtyMap) {
        self.suspect.unite(marks);
    }

    /// Takes the marks of what must be compared; what cannot be compared after all
    /// comes back with [`Primary::add_suspects`].
    pub fn take_suspects(&mut self) -> DirtyMap {
        std::mem::take(&mut self.suspect)
    }

    /// Remembers from now on what gets another name, for a comparison; or not any more.
    pub fn watch_moves(&mut self, watch: bool) {
        self.moved = watch.then(BTreeSet::new);
    }

    /// What got another name since the last call.
    pub fn take_moved(&mut self) -> Vec<FileId> {
        let moved = self.moved.as_mut().map(std::mem::take);
        moved.into_iter().flatten().collect()
    }

    fn note_move(&mut self, op: &Op) {
        let Some(moved) = &mut self.moved else { return };
        match op {
            Op::Link { file, .. } => drop(moved.insert(*file)),
            Op::Rename { file, replaced, .. } => moved.extend(replaced.iter().chain([file])),
            _ => {}
        }
    }

    /// Marks of what the peer has applied but not provably flushed.
    pub fn unflushed_counts(&self) -> (usize, usize) {
        let (a, b) = (self.fresh.counts(), self.older.counts());
        (a.0 + b.0, a.1 + b.1)
    }

    /// Whether another op of the application, of this many bytes, has room. Otherwise its
    /// writer waits.
    pub fn has_room(&self, now: Instant, bytes: usize) -> bool {
        if !self.has_space(bytes) {
            return false;
        }
        // Where each caller waits for its own op, they are not many.
        let waited_for = self.peer_counts() && self.config.mode != AckMode::Flush;
        // Resync has its own share, and does not take theirs.
        let unapplied = self.window.unapplied() - self.window.resync_ops;
        if !self.is_connected() || waited_for || unapplied == 0 {
            return true;
        }
        let allowed = self.flow.allowed(now);
        let unapplied_bytes = self.window.unapplied_bytes - self.window.resync_bytes;
        unapplied < allowed.ops && unapplied_bytes + bytes <= allowed.bytes
    }

    /// Whether this many bytes more can be kept here, however fast the peer is: for what the
    /// application does not set the pace of.
    pub fn has_space(&self, bytes: usize) -> bool {
        matches!(self.link, Link::Alone | Link::Forsaken)
            || (self.window.unapplied_bytes + bytes <= limits::MAX_IN_FLIGHT_BYTES
                && self.window.unapplied() < limits::MAX_IN_FLIGHT_OPS as u64
                && self.window.len() <= limits::MAX_UNSETTLED_OPS)
    }

    /// Whether the peer's vote counts.
    fn peer_counts(&self) -> bool {
        !matches!(self.link, Link::Alone | Link::Syncing)
    }

    /// An op of the application, in its place in the order. The caller holds the
    /// lock over what the op touches. `old_size` is the file's size before it.
    pub fn submit(&mut self, now: Instant, time: Timestamp, op: Op, old_size: u64) -> Submitted {
        debug_assert!(!op.is_resync());
        // Times follow what changed them a moment later, a resync's own ops as well.
        if !matches!(op, Op::Times { .. }) {
            self.last_app_op = now;
        }
        let local_only = Submitted {
            seq: None,
            output: false,
        };
        match self.link {
            Link::Alone => {
                self.dirty.mark_op(&op, old_size);
                self.note_move(&op);
                self.dirty.bound();
                return local_only;
            }
            Link::Syncing => {
                if matches!(op, Op::Sync { .. } | Op::Checkpoint) {
                    return local_only;
                }
                if !self.can_ship(&op) {
                    self.dirty.mark_op(&op, old_size);
                    return local_only;
                }
                self.mark_inherited(&op);
            }
            // What was not applied before the peer was asked goes to the peer itself.
            Link::Yielding { .. } | Link::Yielded => return local_only,
            // A number of no term: the vote for it comes too late, whenever it comes.
            Link::Forsaken => {
                self.suspect.mark_op(&op, old_size);
                self.suspect.bound();
                return Submitted {
                    seq: Some(Seq(0)),
                    output: false,
                };
            }
            _ => {}
        }
        let vote = if self.peer_counts() {
            self.vote_for(&op)
        } else {
            Vote::None
        };
        let seq = self.push(now, time, op, old_size, vote);
        Submitted {
            seq: (vote != Vote::None).then_some(seq),
            output: self.is_connected(),
        }
    }

    fn push(&mut self, now: Instant, time: Timestamp, op: Op, old_size: u64, vote: Vote) -> Seq {
        let bytes = op.weight();
        if self.link == Link::Syncing {
            self.flushing.submitted(bytes);
        }
        self.window.push(Entry {
            time,
            submitted: now,
            op: Some(op),
            old_size,
            bytes,
            vote,
            synced: false,
            local: if vote == Vote::None {
                Local::Settled
            } else {
                Local::Pending
            },
            voted: None,
        })
    }

    fn vote_for(&self, op: &Op) -> Vote {
        match op {
            Op::Sync { .. } | Op::Checkpoint | Op::ResyncEnd | Op::TakeOver => Vote::Synced,
            Op::Write { stability, .. } if *stability != Stability::Mode => Vote::Synced,
            Op::Times { .. } | Op::Verify { .. } | Op::Differs { .. } => Vote::None,
            op if op.is_resync() => Vote::None,
            _ => match self.config.mode {
                AckMode::Disk => Vote::Durable,
                AckMode::Memory => Vote::Applied,
                AckMode::Flush => Vote::None,
            },
        }
    }

    /// Whether a connection carries frames.
    pub fn is_connected(&self) -> bool {
        matches!(
            self.link,
            Link::Syncing
                | Link::Finishing { .. }
                | Link::Paired
                | Link::Yielding {
                    connected: true,
                    ..
                }
        )
    }

    /// The local copy has op `seq`, now. Hands the reply back when nothing is left to wait
    /// for. A vote from an earlier term as primary is dropped with its reply: nobody
    /// knows any more whether the peer had the op.
    pub fn local_done(&mut self, now: Instant, seq: Seq, reply: R) -> Option<R> {
        if seq < self.began {
            return None;
        }
        let reply = self.window.local_done(now, seq, reply);
        if reply.is_some() {
            self.window.trim();
        } else if matches!(self.link, Link::Yielding { until: None, .. }) {
            // Dropped, as those before it were.
            self.window.take_held();
        }
        reply
    }

    /// The next op for the wire, if the connection can carry one.
    pub fn next_op(&mut self) -> Option<Sequenced> {
        if !self.is_connected() {
            return None;
        }
        self.window.ship()
    }

    /// Whether [`Primary::next_op`] would give one.
    pub fn has_output(&self) -> bool {
        self.is_connected() && self.window.has_output()
    }

    /// Whether what there is for the wire may wait a moment for more: nobody waits for any
    /// of it, and it is not much. Fewer and larger sends cost both nodes less.
    pub fn may_linger(&self) -> bool {
        self.config.mode == AckMode::Flush
            && self.link == Link::Paired
            && self.window.unshipped() < limits::MAX_LINGERING_OPS
            && !self.window.waits_for_unshipped()
    }

    /// Replies to be sent and actions to be taken, since the last call.
    pub fn drain(&mut self, replies: &mut Vec<R>, actions: &mut Vec<Action>) {
        replies.append(&mut self.replies);
        actions.append(&mut self.actions);
    }

    /// A peer has shaken hands and shall be brought up in this session. Everything
    /// from now on has numbers from [`Primary::next_seq`] on.
    pub fn peer_ready(&mut self, now: Instant, session: SessionId) {
        debug_assert_eq!(self.link, Link::Alone);
        self.session = Some(session);
        self.window = Window::new(self.window.next());
        self.progress = now;
        self.busy = None;
        self.flow = Flow::new(self.config.op, now);
        self.flushing = Flushing::default();
        self.listing = None;
        self.checkpoint = None;
        self.stats = Progress::default();
        self.link = Link::Syncing;
    }

    fn may_come_back(&self) -> bool {
        matches!(
            self.link,
            Link::Bridging { .. }
                | Link::Holding
                | Link::Yielding {
                    connected: false,
                    ..
                }
        )
    }

    /// Whether a connection that asks to go on with `session` may.
    pub fn can_resume(&self, session: SessionId, applied: Seq) -> bool {
        self.session == Some(session)
            && self.may_come_back()
            && applied >= self.window.applied
            && applied < self.window.next()
    }

    /// The session goes on over a new connection; the peer has applied up to `applied`.
    /// One that was dropped stays in question until it has done what it was dropped for:
    /// a copy whose disk hangs comes back at once, and again and again.
    pub fn resume(&mut self, now: Instant, applied: Seq) {
        debug_assert!(self.may_come_back());
        self.link = match self.link {
            Link::Yielding { end, until, .. } => Link::Yielding {
                end,
                connected: true,
                until,
            },
            _ => self.before,
        };
        self.progress = now;
        self.busy = None;
        self.resumed = now;
        self.applied(now, applied);
        self.unanswered(applied);
        self.window.trim();
        self.window.rewind();
        self.ask_no_more();
    }

    /// The connection is lost.
    pub fn peer_lost(&mut self, now: Instant, reason: &str) {
        match self.link {
            Link::Alone
            | Link::Bridging { .. }
            | Link::Holding
            | Link::Leaving
            | Link::Yielded
            | Link::Forsaken => {}
            Link::Yielding { end, until, .. } => self.wait_for_heir(end, until),
            Link::Syncing => self.back_to_alone(),
            Link::Finishing { .. } | Link::Paired => {
                self.before = self.link;
                if self.config.bridge.is_zero() || self.asked {
                    self.hold(reason);
                } else {
                    self.link = Link::Bridging {
                        until: now.after(self.config.bridge),
                    };
                }
            }
        }
    }
}

#[cfg(test)]
mod takeover_tests;
#[cfg(test)]
mod tests;
