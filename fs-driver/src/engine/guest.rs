//! What a node that took over remembers of its visitor's calls.

use std::collections::BTreeMap;

use tokio::sync::mpsc;
use twinfold_protocol::ids::SessionId;
use twinfold_protocol::remote::Answer;
use twinfold_protocol::wire::{Answered, Call};

/// What is remembered of a visitor's calls, over all its connections.
#[derive(Debug, Default)]
pub(crate) struct Guest {
    session: Option<SessionId>,
    /// The answers to what must be done only once: none yet while it is under way.
    once: BTreeMap<u64, Option<Answer>>,
    /// Calls under way.
    running: usize,
    /// The connection that there is now.
    to: Option<mpsc::UnboundedSender<Answered>>,
}

/// What a call that came needs.
#[derive(Debug, PartialEq)]
pub(crate) enum Need {
    /// To be carried out.
    Doing,
    /// Nothing: it is under way.
    Nothing,
    /// The answer that it got before.
    Answer(Answer),
}

impl Guest {
    /// A connection of the visitor of `session`; answers go to `to` from now on.
    pub(crate) fn connected(&mut self, session: SessionId, to: mpsc::UnboundedSender<Answered>) {
        if self.session != Some(session) {
            *self = Guest::default();
            self.session = Some(session);
        }
        self.to = Some(to);
    }

    /// Calls under way.
    pub(crate) fn running(&self) -> usize {
        self.running
    }

    /// A call came.
    pub(crate) fn takes(&mut self, call: &Call) -> Need {
        // What is below is answered, and the visitor has it.
        self.once = self.once.split_off(&call.done);
        if call.request.once() {
            match self.once.get(&call.id) {
                Some(Some(answer)) => return Need::Answer(answer.clone()),
                Some(None) => return Need::Nothing,
                None => {
                    self.once.insert(call.id, None);
                }
            }
        }
        self.running += 1;
        Need::Doing
    }

    /// A call is done.
    pub(crate) fn answers(&mut self, id: u64, answer: Answer) {
        self.running -= 1;
        if let Some(kept) = self.once.get_mut(&id) {
            *kept = Some(answer.clone());
        }
        if let Some(to) = &self.to {
            // A connection that is gone is replaced, and the call comes again.
            let _ = to.send(Answered { id, answer });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use twinfold_protocol::ids::FileId;
    use twinfold_protocol::op::Op;
    use twinfold_protocol::remote::Request;

    fn change(id: u64, done: u64) -> Call {
        let op = Op::Truncate {
            file: FileId::ROOT,
            size: 0,
            clear_privileges: false,
        };
        let request = Request::Change {
            op,
            clear_privileges: false,
        };
        Call { id, done, request }
    }

    #[test]
    fn a_change_that_is_asked_for_again_is_done_once() {
        let mut guest = Guest::default();
        assert_eq!(guest.takes(&change(1, 1)), Need::Doing);
        assert_eq!(guest.takes(&change(1, 1)), Need::Nothing);
        guest.answers(1, Answer::Done);
        assert_eq!(guest.takes(&change(1, 1)), Need::Answer(Answer::Done));
        assert_eq!(guest.takes(&change(2, 2)), Need::Doing);
        assert!(!guest.once.contains_key(&1), "nobody asks for it again");
        guest.answers(2, Answer::Done);
        assert_eq!(guest.running, 0);
    }
}
