//! Calls that wait for the peer to carry them out, because this node's disk has failed.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use twinfold_protocol::limits;
use twinfold_protocol::remote::{Answer, Request};
use twinfold_protocol::time::Instant;
use twinfold_protocol::wire::{Answered, Call, Frame, Violation};

use crate::error::{FsError, FsResult};

/// What gets the answer. It may run on the link's thread and must not wait.
pub(crate) type OnAnswer = Box<dyn FnOnce(FsResult<Answer>) + Send>;

struct Waiting {
    request: Request,
    /// What the call ends with when nobody can carry it out.
    otherwise: FsError,
    reply: OnAnswer,
    since: Instant,
}

/// The calls that are not answered, by number. Their callers bound them: each has one.
#[derive(Default)]
pub(crate) struct Calls {
    inner: Mutex<Inner>,
    /// There is something to send.
    pub(crate) wake: Notify,
}

#[derive(Default)]
struct Inner {
    next: u64,
    waiting: BTreeMap<u64, Waiting>,
    /// Not sent over this connection yet.
    unsent: BTreeSet<u64>,
    /// Why the peer carries nothing out.
    refused: Option<String>,
    /// Since when the peer is to carry calls out and cannot be reached.
    lost: Option<Instant>,
}

fn no_peer() -> FsError {
    FsError::Store(io::Error::from(io::ErrorKind::NotConnected))
}

impl Calls {
    /// Queues a call. `otherwise` is what it ends with when the peer turns out not to
    /// have the data.
    pub(crate) fn push(&self, now: Instant, request: Request, otherwise: FsError, reply: OnAnswer) {
        let mut inner = self.inner.lock();
        if inner.refused.is_some() {
            drop(inner);
            return reply(Err(otherwise));
        }
        inner.next += 1;
        let id = inner.next;
        inner.unsent.insert(id);
        let waiting = Waiting {
            request,
            otherwise,
            reply,
            since: now,
        };
        inner.waiting.insert(id, waiting);
        drop(inner);
        self.wake.notify_one();
    }

    /// A new connection: everything is sent (again). The peer knows by the number what it
    /// has done already.
    pub(crate) fn connected(&self) {
        let mut inner = self.inner.lock();
        (inner.refused, inner.lost) = (None, None);
        inner.unsent = inner.waiting.keys().copied().collect();
        drop(inner);
        self.wake.notify_one();
    }

    /// From now on the peer is missed, until it is [connected](Calls::connected).
    pub(crate) fn missed(&self, now: Instant) {
        self.inner.lock().lost = Some(now);
    }

    /// A connection ended. One that is missed already still is, since then.
    pub(crate) fn disconnected(&self, now: Instant) {
        self.inner.lock().lost.get_or_insert(now);
    }

    /// Up to `most` frames for the wire.
    pub(crate) fn frames(&self, most: usize, into: &mut Vec<Frame>) {
        let mut inner = self.inner.lock();
        let Some(done) = inner.waiting.keys().next().copied() else {
            return;
        };
        for _ in 0..most {
            // Those before it in the queue are sent; the peer bounds what it holds.
            let under_way = inner.waiting.len() - inner.unsent.len();
            if under_way >= limits::MAX_REMOTE_CALLS {
                return;
            }
            let Some(id) = inner.unsent.pop_first() else {
                return;
            };
            if let Some(waiting) = inner.waiting.get(&id) {
                let request = waiting.request.clone();
                into.push(Call { id, done, request }.encode());
            }
        }
    }

    /// The peer has answered.
    pub(crate) fn answered(&self, answered: Answered) -> Result<(), Violation> {
        let mut inner = self.inner.lock();
        if inner.unsent.contains(&answered.id) || answered.id > inner.next {
            return Err(Violation::Order(format!(
                "the peer answers call {}, which was not sent",
                answered.id
            )));
        }
        let waiting = inner.waiting.remove(&answered.id);
        let more = !inner.unsent.is_empty();
        drop(inner);
        if more {
            self.wake.notify_one();
        }
        if let Some(waiting) = waiting {
            (waiting.reply)(match answered.answer {
                Answer::Failed(failure) => Err(failure.into()),
                answer => Ok(answer),
            });
        }
        Ok(())
    }

    /// Ends the calls that have waited for longer than `patience`; all of them, and those
    /// that come, once the peer is missed for that long.
    pub(crate) fn expire(&self, now: Instant, patience: Duration) {
        let late = {
            let mut inner = self.inner.lock();
            let lost = inner.lost.is_some_and(|since| now > since.after(patience));
            if lost && inner.refused.is_none() {
                tracing::error!(
                    "this node's disk has failed and the peer is lost: the application is told of \
                     I/O errors until it is back"
                );
                inner.refused = Some("the peer is lost".into());
            }
            let late: Vec<u64> = inner
                .waiting
                .iter()
                .filter(|(_, w)| lost || now > w.since.after(patience))
                .map(|(id, _)| *id)
                .collect();
            inner.take(&late)
        };
        if !late.is_empty() {
            tracing::error!(
                calls = late.len(),
                "this node's disk has failed and the peer did not answer in time: the \
                 application is told of an I/O error"
            );
        }
        for waiting in late {
            (waiting.reply)(Err(no_peer()));
        }
    }

    /// The peer does not carry out calls, for this reason: none is waited for until it does.
    pub(crate) fn refuse(&self, reason: &str) {
        let all = {
            let mut inner = self.inner.lock();
            inner.refused = Some(reason.to_owned());
            let all: Vec<u64> = inner.waiting.keys().copied().collect();
            inner.take(&all)
        };
        for waiting in all {
            (waiting.reply)(Err(waiting.otherwise));
        }
    }

    /// The peer did not take over: each call ends with what it had failed with here.
    pub(crate) fn give_up(&self) {
        self.refuse("");
        let mut inner = self.inner.lock();
        (inner.refused, inner.lost) = (None, None);
    }
}

impl Inner {
    fn take(&mut self, ids: &[u64]) -> Vec<Waiting> {
        ids.iter()
            .filter_map(|id| {
                self.unsent.remove(id);
                self.waiting.remove(id)
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::{Receiver, channel};
    use twinfold_protocol::ids::FileId;

    fn push(calls: &Calls, at: u64) -> Receiver<FsResult<Answer>> {
        let (tell, told) = channel();
        let request = Request::Attributes { file: FileId::ROOT };
        let reply = Box::new(move |answer| tell.send(answer).unwrap());
        calls.push(Instant(at), request, FsError::Fenced, reply);
        told
    }

    fn sent(calls: &Calls) -> Vec<(u64, u64)> {
        let mut frames = Vec::new();
        calls.frames(10, &mut frames);
        frames
            .iter()
            .map(|f| Call::decode(f.to_bytes().slice(4..).into()).unwrap())
            .map(|call| (call.id, call.done))
            .collect()
    }

    fn done(id: u64) -> Answered {
        Answered {
            id,
            answer: Answer::Done,
        }
    }

    #[test]
    fn calls_keep_their_numbers_over_connections_and_tell_what_is_answered() {
        let calls = Calls::default();
        let (first, second) = (push(&calls, 1), push(&calls, 1));
        assert_eq!(sent(&calls), [(1, 1), (2, 1)]);
        assert_eq!(sent(&calls), []);
        calls.answered(done(1)).unwrap();
        assert_eq!(first.recv().unwrap().unwrap(), Answer::Done);
        calls.connected();
        let third = push(&calls, 1);
        assert!(calls.answered(done(3)).is_err(), "it was not sent");
        assert_eq!(sent(&calls), [(2, 2), (3, 2)]);
        calls.answered(done(3)).unwrap();
        assert!(third.recv().unwrap().is_ok());
        // Answered before the connection broke, and again after.
        calls.answered(done(1)).unwrap();
        assert!(second.try_recv().is_err());
    }

    #[test]
    fn calls_to_a_lost_peer_end_at_once_when_it_is_missed_for_too_long() {
        let (calls, patience) = (Calls::default(), Duration::from_nanos(100));
        calls.expire(Instant(1000), patience);
        calls.missed(Instant(1000));
        let first = push(&calls, 1090);
        calls.expire(Instant(1100), patience);
        assert!(first.try_recv().is_err(), "it may come back");
        calls.expire(Instant(1101), patience);
        assert!(first.recv().unwrap().is_err());
        assert!(push(&calls, 1102).recv().unwrap().is_err(), "at once");
        calls.connected();
        let second = push(&calls, 1103);
        calls.expire(Instant(1200), patience);
        assert!(second.try_recv().is_err(), "it is back");
        calls.disconnected(Instant(1200));
        calls.disconnected(Instant(1290));
        calls.expire(Instant(1301), patience);
        assert!(second.recv().unwrap().is_err());
    }

    #[test]
    fn a_call_ends_in_time_or_when_the_peer_refuses() {
        let calls = Calls::default();
        let (old, new) = (push(&calls, 0), push(&calls, 2_000_000_000));
        calls.expire(Instant(2_500_000_000), Duration::from_secs(2));
        assert!(old.recv().unwrap().is_err());
        assert!(new.try_recv().is_err());
        calls.refuse("promoted");
        assert!(matches!(new.recv().unwrap(), Err(FsError::Fenced)));
        assert!(push(&calls, 3).recv().unwrap().is_err(), "at once");
        calls.connected();
        assert!(push(&calls, 3).try_recv().is_err(), "it waits again");
    }
}
