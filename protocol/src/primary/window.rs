//! Ops shipped or to be shipped in one session, until both votes are in.

use std::collections::VecDeque;

use crate::ids::Seq;
use crate::op::{Op, Sequenced, Stability};
use crate::time::{Instant, Timestamp};

/// What the peer must have said before an op is acknowledged to the application.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Vote {
    /// Nothing: the local copy decides.
    None,
    /// Applied.
    Applied,
    /// On stable storage, by the cumulative receipt.
    Durable,
    /// Synced, by a receipt of its own.
    Synced,
}

#[derive(Debug)]
pub(super) struct Entry<R> {
    pub(super) time: Timestamp,
    pub(super) submitted: Instant,
    /// Gone once the peer has applied it and a resend is out of question.
    pub(super) op: Option<Op>,
    /// Size of the file before the op, for the marks; where they end that it cuts, for
    /// [`Op::PutObject`].
    pub(super) old_size: u64,
    pub(super) bytes: usize,
    pub(super) vote: Vote,
    pub(super) synced: bool,
    /// The local vote, with the reply it releases.
    pub(super) local: Local<R>,
    /// When that came, if the peer's was still missing.
    pub(super) voted: Option<Instant>,
}

#[derive(Debug)]
pub(super) enum Local<R> {
    /// Not yet applied here.
    Pending,
    /// Applied; the reply waits for the peer.
    Done(R),
    /// Applied and answered, or nobody waits.
    Settled,
}

/// The entries between the oldest not yet settled and the newest.
#[derive(Debug)]
pub(super) struct Window<R> {
    entries: VecDeque<Entry<R>>,
    /// Number of the first entry; the number of the next op when there is none.
    first: Seq,
    /// The next entry to be put on the wire.
    cursor: Seq,
    pub(super) applied: Seq,
    pub(super) durable: Seq,
    /// Numbers of entries that wait for [`Vote::Synced`], oldest first.
    syncing: VecDeque<Seq>,
    pub(super) unapplied_bytes: usize,
    pub(super) resync_bytes: usize,
    pub(super) resync_ops: u64,
}

impl<R> Window<R> {
    /// An empty window whose first op will be number `first`.
    pub(super) fn new(first: Seq) -> Window<R> {
        Window {
            entries: VecDeque::new(),
            first,
            cursor: first,
            applied: Seq(first.0 - 1),
            durable: Seq(first.0 - 1),
            syncing: VecDeque::new(),
            unapplied_bytes: 0,
            resync_bytes: 0,
            resync_ops: 0,
        }
    }

    pub(super) fn next(&self) -> Seq {
        Seq(self.first.0 + self.entries.len() as u64)
    }

    /// Entries that are still there.
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn unapplied(&self) -> u64 {
        self.next().0 - 1 - self.applied.0
    }

    pub(super) fn push(&mut self, entry: Entry<R>) -> Seq {
        let seq = self.next();
        self.unapplied_bytes += entry.bytes;
        if entry.op.as_ref().is_some_and(Op::is_resync) {
            self.resync_bytes += entry.bytes;
            self.resync_ops += 1;
        }
        if entry.vote == Vote::Synced {
            self.syncing.push_back(seq);
        }
        self.entries.push_back(entry);
        seq
    }

    fn entry(&self, seq: Seq) -> Option<&Entry<R>> {
        let index = seq.0.checked_sub(self.first.0)?;
        self.entries.get(usize::try_from(index).ok()?)
    }

    pub(super) fn get(&mut self, seq: Seq) -> Option<&mut Entry<R>> {
        let index = seq.0.checked_sub(self.first.0)?;
        self.entries.get_mut(usize::try_from(index).ok()?)
    }

    /// The next op for the wire.
    pub(super) fn ship(&mut self) -> Option<Sequenced> {
        loop {
            let seq = self.cursor;
            let entry = self.get(seq)?;
            let (time, op) = (entry.time, entry.op.clone());
            self.cursor = seq.next();
            // Applied ones are skipped, unless their sync has to be asked for again.
            if let Some(op) = op {
                return Some(Sequenced { seq, time, op });
            }
        }
    }

    pub(super) fn has_output(&self) -> bool {
        self.cursor < self.next()
    }

    /// Entries that were not put on the wire yet.
    pub(super) fn unshipped(&self) -> u64 {
        self.next().0 - self.cursor.0
    }

    /// Whether one of them is a sync that somebody waits for.
    pub(super) fn waits_for_unshipped(&self) -> bool {
        self.syncing.back().is_some_and(|last| *last >= self.cursor)
    }

    /// After a resumed connection: everything that is still there is sent again.
    pub(super) fn rewind(&mut self) {
        self.cursor = self.first;
    }

    /// The peer has applied everything up to `applied`: hands each op that is new
    /// in this to `seen`, and the replies it releases to `replies`.
    pub(super) fn applied_up_to(
        &mut self,
        applied: Seq,
        mut seen: impl FnMut(Seq, &Op, u64),
        replies: &mut Vec<R>,
    ) {
        while self.applied < applied {
            let seq = self.applied.next();
            let Some(entry) = self.get(seq) else { break };
            let bytes = entry.bytes;
            let mut resync = false;
            if let Some(op) = entry.op.take() {
                seen(seq, &op, entry.old_size);
                resync = op.is_resync();
                if entry.vote == Vote::Synced && !entry.synced {
                    entry.op = Some(as_sync(op));
                }
            }
            if entry.vote == Vote::Applied {
                release(entry, replies);
            }
            self.unapplied_bytes -= bytes;
            if resync {
                self.resync_bytes -= bytes;
                self.resync_ops -= 1;
            }
            self.applied = seq;
        }
    }

    /// The peer has everything up to `durable` on stable storage.
    pub(super) fn durable_up_to(&mut self, durable: Seq, replies: &mut Vec<R>) {
        while self.durable < durable.min(self.applied) {
            let seq = self.durable.next();
            if let Some(entry) = self.get(seq)
                && entry.vote == Vote::Durable
            {
                release(entry, replies);
            }
            self.durable = seq;
        }
    }

    /// The peer has synced op `seq`. False when nothing waited for it.
    pub(super) fn synced(&mut self, seq: Seq, replies: &mut Vec<R>) -> bool {
        let Some(at) = self.syncing.iter().position(|s| *s == seq) else {
            return false;
        };
        self.syncing.remove(at);
        if let Some(entry) = self.get(seq) {
            entry.synced = true;
            entry.op = None;
            release(entry, replies);
        }
        true
    }

    /// The local vote. Hands the reply back when nothing is left to wait for.
    pub(super) fn local_done(&mut self, now: Instant, seq: Seq, reply: R) -> Option<R> {
        let (applied, durable) = (self.applied, self.durable);
        let Some(entry) = self.get(seq) else {
            return Some(reply);
        };
        let voted = match entry.vote {
            Vote::None => true,
            Vote::Applied => seq <= applied,
            Vote::Durable => seq <= durable,
            Vote::Synced => entry.synced,
        };
        if voted {
            entry.local = Local::Settled;
            Some(reply)
        } else {
            entry.local = Local::Done(reply);
            entry.voted = Some(now);
            None
        }
    }

    /// Takes every reply that waits for the peer; the ops stay.
    pub(super) fn take_held(&mut self) -> Vec<R> {
        let mut replies = Vec::new();
        for entry in &mut self.entries {
            release(entry, &mut replies);
        }
        replies
    }

    /// Drops settled entries from the front.
    pub(super) fn trim(&mut self) {
        while let Some(front) = self.entries.front() {
            let seq = self.first;
            let peer = match front.vote {
                Vote::None | Vote::Applied => seq <= self.applied,
                Vote::Durable => seq <= self.durable,
                Vote::Synced => front.synced,
            };
            if !peer || matches!(front.local, Local::Pending) {
                break;
            }
            self.entries.pop_front();
            self.first = seq.next();
            self.cursor = self.cursor.max(self.first);
        }
    }

    /// The ops that the peer has not applied, with the sizes of their files before.
    pub(super) fn unapplied_ops(&self) -> impl Iterator<Item = (&Op, u64)> {
        let applied = (self.applied.0 + 1).saturating_sub(self.first.0);
        let skip = usize::try_from(applied).unwrap_or(usize::MAX);
        self.entries
            .iter()
            .skip(skip)
            .filter_map(|e| Some((e.op.as_ref()?, e.old_size)))
    }

    /// When the oldest op the peer has not applied was submitted.
    pub(super) fn oldest_unapplied(&mut self) -> Option<Instant> {
        let seq = self.applied.next();
        self.get(seq).map(|e| e.submitted)
    }

    /// The op that has waited longest for its own sync receipt alone, and since when: of those
    /// that somebody waits for, and of the others. Whoever waits for the local disk as well does
    /// not wait for the peer yet.
    pub(super) fn longest_syncing(&self) -> [Option<(Seq, Instant)>; 2] {
        let mut found: [Option<(Seq, Instant)>; 2] = [None; 2];
        for &seq in &self.syncing {
            let Some(entry) = self.entry(seq) else {
                continue;
            };
            let internal = matches!(entry.op, Some(Op::Checkpoint | Op::ResyncEnd));
            if !internal && matches!(entry.local, Local::Pending) {
                continue;
            }
            let since = entry.voted.unwrap_or(entry.submitted);
            let longest = &mut found[usize::from(internal)];
            if longest.is_none_or(|(_, before)| since < before) {
                *longest = Some((seq, since));
            }
        }
        found
    }

    /// The oldest op that is not known to be on the peer's stable storage, and when it was
    /// submitted. Those before it may be settled already: they waited for something else.
    pub(super) fn oldest_volatile(&mut self) -> Option<(Seq, Instant)> {
        let seq = self.durable.next().max(self.first);
        self.get(seq).map(|e| (seq, e.submitted))
    }

    /// Whether op `seq` waits for its own sync receipt.
    pub(super) fn waits_for_sync(&self, seq: Seq) -> bool {
        self.syncing.contains(&seq)
    }

    /// Gives up on the peer: hands every op it has not applied to `seen`, releases
    /// every reply whose local vote is in, and leaves an empty window. A local vote
    /// that comes later finds no entry and releases its reply at once.
    pub(super) fn abandon(self, mut seen: impl FnMut(&Op, u64), replies: &mut Vec<R>) -> Window<R> {
        let next = self.next();
        let applied = self.applied;
        let mut seq = self.first;
        for entry in self.entries {
            if let (Some(op), true) = (&entry.op, seq > applied) {
                seen(op, entry.old_size);
            }
            if let Local::Done(reply) = entry.local {
                replies.push(reply);
            }
            seq = seq.next();
        }
        Window::new(next)
    }
}

/// The peer's vote is in: a reply that waited for it goes. An entry that nobody waits
/// for stays settled, so that it leaves the window.
fn release<R>(entry: &mut Entry<R>, replies: &mut Vec<R>) {
    if !matches!(entry.local, Local::Done(_)) {
        return;
    }
    if let Local::Done(reply) = std::mem::replace(&mut entry.local, Local::Settled) {
        replies.push(reply);
    }
}

/// What is sent again for an op that was applied but whose sync was not confirmed:
/// the write itself must not be repeated over later ones.
fn as_sync(op: Op) -> Op {
    match op {
        Op::Write {
            file, stability, ..
        } => Op::Sync {
            file,
            data_only: stability != Stability::Full,
        },
        other => other,
    }
}
