//! What the peer says of the ops it was sent.

use super::flow::Done;
use super::{Action, Link, Primary, resync};
use crate::ids::Seq;
use crate::marks::DirtyMap;
use crate::time::Instant;
use crate::wire::{Receipt, Violation};

impl<R> Primary<R> {
    /// A receipt from the peer. An error is a broken protocol: drop the peer.
    pub fn receipt(&mut self, now: Instant, receipt: Receipt) -> Result<(), Violation> {
        if !self.is_connected() {
            return Ok(()); // Late, from a connection already given up.
        }
        match receipt {
            Receipt::Applied { applied, durable } => {
                if applied >= self.window.next() || durable > applied {
                    return Err(Violation::Order(format!(
                        "the peer acknowledges op {applied} (durable {durable}), but only {} were sent",
                        self.window.next().0 - 1
                    )));
                }
                if applied > self.window.applied || durable > self.window.durable {
                    self.progress = now;
                }
                self.applied(now, applied);
                self.window.durable_up_to(durable, &mut self.replies);
            }
            Receipt::Synced { seq } => {
                self.progress = now;
                if seq > self.window.applied {
                    return Err(Violation::Order(format!(
                        "the peer synced op {seq} before it applied it"
                    )));
                }
                if !self.flushing.ended(now, seq) && self.window.synced(seq, &mut self.replies) {
                    self.sync_ended(seq);
                }
            }
            Receipt::Busy => {
                self.progress = now;
                self.busy = Some(now);
            }
            Receipt::Verified { seq, found } => {
                self.progress = now;
                self.verified(seq, found)?;
            }
            Receipt::Failed { seq, reason } => {
                self.actions.push(Action::DropPeer {
                    reason: format!("the peer could not apply op {seq}: {reason}"),
                });
                self.peer_left(false);
            }
        }
        self.window.trim();
        self.ask_no_more();
        Ok(())
    }

    pub(super) fn applied(&mut self, now: Instant, applied: Seq) {
        let (ops, bytes) = (self.window.applied, self.window.unapplied_bytes);
        let checkpoint = match self.link {
            Link::Finishing { end } => Some(end),
            _ => self.checkpoint.map(|c| c.seq),
        };
        let (fresh, older) = (&mut self.fresh, &mut self.older);
        let stats = &mut self.stats;
        self.window.applied_up_to(
            applied,
            |seq, op, old_size| {
                let map = match checkpoint {
                    Some(c) if seq < c => &mut *older,
                    _ => &mut *fresh,
                };
                map.mark_op(op, old_size);
                resync::mark_moved(map, op, old_size);
                map.bound();
                stats.acknowledged(op);
            },
            &mut self.replies,
        );
        let more = Done {
            ops: self.window.applied.0 - ops.0,
            bytes: bytes - self.window.unapplied_bytes,
        };
        self.flow.applied(now, more);
    }

    fn sync_ended(&mut self, seq: Seq) {
        if let Link::Yielding { end, .. } = self.link
            && end == seq
        {
            return self.peer_took_over();
        }
        if let Link::Finishing { end } = self.link
            && end == seq
        {
            self.link = Link::Paired;
            self.older = DirtyMap::default();
            self.actions.push(Action::PeerIsCurrent);
        }
        if let Some(checkpoint) = &mut self.checkpoint
            && checkpoint.seq == seq
        {
            checkpoint.peer = true;
            self.checkpoint_progress();
        }
    }
}
