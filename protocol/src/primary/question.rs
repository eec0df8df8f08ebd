//! Whether to go on alone: asked once, and open until it is answered or the peer is as good
//! as it was.
//!
//! A connection that was lost and comes back answers it. A peer that was dropped because it
//! did not keep a deadline answers it only when it has done what it was dropped for: where
//! just its disk hangs, it is back in a moment, and would never be out of favour for longer
//! (promise 7). Until then it is shipped to, its vote counts, and the decision may be made.

use super::{Action, Link, Primary};

impl<R> Primary<R> {
    pub(super) fn hold(&mut self, reason: &str) {
        self.link = Link::Holding;
        if !std::mem::replace(&mut self.asked, true) {
            self.actions.push(Action::AskToGoAlone {
                reason: reason.to_owned(),
            });
        }
    }

    /// Whether the caller has been asked to decide, and still may.
    pub fn is_asking(&self) -> bool {
        self.asked
    }

    /// What the peer was dropped for decides: other progress takes nothing back.
    pub(super) fn ask_no_more(&mut self) {
        if let Some(wait) = self.overdue
            && !self.waits(wait)
        {
            self.overdue = None;
        }
        if self.asked && self.is_connected() && self.overdue.is_none() {
            self.asked = false;
            self.actions.push(Action::AskNoMore);
        }
    }

    /// The caller decided that this node goes on alone. False when there is nothing to decide.
    pub fn go_alone(&mut self) -> bool {
        match self.link {
            Link::Bridging { .. } | Link::Holding => {}
            Link::Finishing { .. } | Link::Paired if self.asked => {
                self.actions.push(Action::DropPeer {
                    reason: "this node goes on alone".to_owned(),
                });
            }
            _ => return false,
        }
        self.leave();
        true
    }

    pub(super) fn leave(&mut self) {
        self.link = Link::Leaving;
        self.asked = false;
        self.overdue = None;
        self.actions.push(Action::MakeAlone);
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Bed, now, sync, write};
    use super::super::*;
    use crate::wire::Receipt;

    /// A copy whose disk hangs, on a node that works otherwise, resumes at once whenever it is
    /// dropped.
    #[test]
    fn a_peer_that_comes_back_with_what_it_was_dropped_for_stays_in_question() {
        for mode in [AckMode::Memory, AckMode::Disk] {
            let mut bed = Bed::paired(mode);
            let op = match mode {
                AckMode::Disk => write(0, 1),
                _ => sync(),
            };
            let s = bed.submit(op).seq.unwrap();
            bed.wire();
            assert_eq!(bed.local_done(s, "sync"), None);
            bed.applied(s.0);
            bed.p.tick(now(8001));
            let asked = bed.out().1;
            assert!(
                matches!(
                    asked[..],
                    [Action::DropPeer { .. }, Action::AskToGoAlone { .. }]
                ),
                "{asked:?}"
            );
            bed.p.resume(now(8100), s);
            assert_eq!(bed.out(), (vec![], vec![]), "the question is still open");
            // Other ops do not take it back.
            bed.at = 8200;
            let w = bed.submit(write(4096, 1)).seq.unwrap();
            assert_eq!(bed.local_done(w, "write"), None);
            bed.applied(w.0);
            let (replies, actions) = bed.out();
            assert_eq!(replies.is_empty(), mode == AckMode::Disk);
            assert_eq!(actions, []);
            // A lost connection is not waited for once more.
            bed.p.peer_lost(now(8300), "cut");
            assert_eq!(bed.p.link(), Link::Holding);
            assert_eq!(bed.out().1, [], "asked once");
            bed.p.resume(now(8400), w);
            bed.p.tick(now(16_401));
            assert_eq!(bed.p.link(), Link::Holding);
            assert!(matches!(bed.out().1[..], [Action::DropPeer { .. }]));
            bed.p.resume(now(16_500), w);
            assert!(bed.p.go_alone(), "there is something to decide");
            bed.p.alone_is_durable();
            let (replies, actions) = bed.out();
            assert!(replies.contains(&"sync"), "{replies:?}");
            assert!(
                matches!(actions[..], [Action::DropPeer { .. }, Action::MakeAlone]),
                "{actions:?}"
            );
        }
    }

    #[test]
    fn a_peer_that_did_what_it_was_dropped_for_is_in_question_no_more() {
        let overdue = [
            (AckMode::Memory, write(0, 1)),
            (AckMode::Memory, sync()),
            (AckMode::Disk, write(0, 1)),
        ];
        for (mode, op) in overdue {
            let mut bed = Bed::paired(mode);
            let s = bed.submit(op.clone()).seq.unwrap();
            bed.wire();
            bed.local_done(s, "done");
            if mode == AckMode::Disk || op == sync() {
                bed.applied(s.0);
            }
            bed.p.tick(now(8001));
            assert_eq!(bed.p.link(), Link::Holding);
            bed.out();
            bed.p.resume(now(8100), Seq(s.0 - 1));
            assert_eq!(bed.out(), (vec![], vec![]));
            bed.at = 8200;
            bed.receipt(Receipt::Applied {
                applied: s,
                durable: s,
            });
            if op == sync() {
                assert_eq!(bed.out(), (vec![], vec![]), "applied is not enough");
                bed.receipt(Receipt::Synced { seq: s });
            }
            assert_eq!(bed.out(), (vec!["done"], vec![Action::AskNoMore]));
            assert_eq!(bed.p.link(), Link::Paired);
            assert!(!bed.p.go_alone(), "there is nothing to decide");
            bed.p.peer_lost(now(9000), "cut");
            assert!(matches!(bed.p.link(), Link::Bridging { .. }));
            bed.p.tick(now(9301));
            assert!(matches!(bed.out().1[..], [Action::AskToGoAlone { .. }]));
        }
    }
}
