//! Questions of a verify in their place in the order, and what they brought to light.
//!
//! A question is no change: nothing waits for it, and nothing is marked because of it.
//! What was found to differ is a mark of its own kind: no checkpoint drops it, for
//! flushing does not make copies equal. It becomes a mark of what must be moved
//! with the end of the session (invariant 12).

use super::{Action, Link, Primary, Vote};
use crate::ids::Seq;
use crate::limits;
use crate::marks::DirtyMap;
use crate::op::Op;
use crate::time::{Instant, Timestamp};
use crate::verify::{Found, Question};
use crate::wire::Violation;

impl<R> Primary<R> {
    /// Puts a question into its place in the order. The caller holds the lock over what it
    /// names. The answer comes as [`Action::Verified`], or [`Action::Unanswered`] when it was
    /// lost with a connection. `None`: not now; there is no peer that is up to date, or
    /// it has enough to do.
    pub fn submit_verify(
        &mut self,
        now: Instant,
        time: Timestamp,
        question: Question,
    ) -> Option<Seq> {
        if !self.can_verify() {
            return None;
        }
        let seq = self.push(now, time, Op::Verify { question }, 0, Vote::None);
        self.verifying.push_back(seq);
        Some(seq)
    }

    /// Whether a question may be asked now.
    pub fn can_verify(&self) -> bool {
        self.link == Link::Paired
            && self.verifying.len() < limits::MAX_VERIFYING
            && self.has_space(0)
    }

    /// What a question names differs: `mark` marks it here, and the peer is told, so that
    /// it is not promoted as if it were up to date.
    pub fn differs(
        &mut self,
        now: Instant,
        time: Timestamp,
        question: Question,
        mark: impl FnOnce(&mut DirtyMap),
    ) {
        match self.link {
            Link::Alone | Link::Syncing => mark(&mut self.dirty),
            // Nothing comes behind the request to take over; this copy is compared whole.
            Link::Yielding { .. } | Link::Yielded => {}
            _ => {
                mark(&mut self.differing);
                self.differing.bound();
                self.push(now, time, Op::Differs { question }, 0, Vote::None);
            }
        }
    }

    /// What is known to differ from the peer, which counts as up to date otherwise.
    pub fn differing(&self) -> &DirtyMap {
        &self.differing
    }

    pub(super) fn verified(&mut self, seq: Seq, found: Found) -> Result<(), Violation> {
        if self.verifying.front() != Some(&seq) {
            return Err(Violation::Order(format!(
                "the peer answers question {seq}, but the next one is {:?}",
                self.verifying.front()
            )));
        }
        self.verifying.pop_front();
        self.actions.push(Action::Verified { seq, found });
        Ok(())
    }

    /// After a resumed connection: what the peer has applied it will not answer again.
    pub(super) fn unanswered(&mut self, applied: Seq) {
        while let Some(seq) = self.verifying.front().copied()
            && seq <= applied
        {
            self.verifying.pop_front();
            self.actions.push(Action::Unanswered { seq });
        }
    }

    /// The session is over: what differs has to be moved.
    pub(super) fn verify_over(&mut self) {
        self.verifying.clear();
        let differing = std::mem::take(&mut self.differing);
        self.dirty.unite(differing);
    }
}

#[cfg(test)]
mod tests;
