//! How an op that has its place in the order gets to the wire, and who carries it there.

use twinfold_protocol::op::Op;
use twinfold_protocol::primary::{Primary, Submitted};
use twinfold_protocol::secondary::needs_sync;

use super::{Engine, Reply, clock};
use crate::polling::What;
use crate::tasks;

/// Bytes of an op that the thread of its caller ships itself, at most: more is better done
/// by two threads at once. Nor does it pay to wait for more to be sent with one larger than this.
const SMALL: usize = 32 << 10;

/// How an op that was submitted goes to the wire.
#[derive(Clone, Copy, Debug)]
pub(super) struct Way {
    /// What is on its way to the peer is this one op, and it is small.
    alone: bool,
    /// It may wait for more to be sent with it.
    lingers: bool,
    /// The peer's disk has to be waited for.
    syncs: bool,
}

impl Way {
    /// What decides about the way of an op: its bytes, and whether it syncs.
    pub(super) fn kind(op: &Op) -> (usize, bool) {
        (op.weight(), needs_sync(op))
    }

    /// Of the op submitted last.
    pub(super) fn of(core: &Primary<Reply>, (bytes, syncs): (usize, bool)) -> Way {
        Way {
            alone: core.in_flight().0 <= 1 && bytes <= SMALL,
            lingers: bytes <= SMALL && core.may_linger(),
            syncs,
        }
    }
}

impl Engine {
    /// Gives an op its place in the order, and has it shipped.
    pub(super) fn submit(&self, op: Op) -> Submitted {
        let kind = Way::kind(&op);
        let mut core = self.core.lock();
        let submitted = core.submit(clock::now(), clock::wall(), op, 0);
        let way = Way::of(&core, kind);
        drop(core);
        self.to_wire(&submitted, way);
        submitted
    }

    /// Has a submitted op shipped: by the link's thread, or, where that is the shorter way,
    /// by this one.
    pub(super) fn to_wire(&self, submitted: &Submitted, way: Way) {
        // The peer foresees it, too, when it has this.
        let sync_is_due = self.is_sync_due();
        let waited_for = submitted.seq.is_some() || sync_is_due;
        let tell = || {
            self.output.notify_one();
            if !way.lingers || sync_is_due {
                self.urgent.notify_one();
            }
        };
        match submitted.output {
            false => {}
            // The application waits for the peer, and to wake another thread takes longer.
            true if way.alone && waited_for => {
                let polls = !way.syncs && self.polling.expect(What::Change);
                tasks::carry(tell);
                if polls {
                    self.polling.begin();
                }
            }
            true => tell(),
        }
    }

    /// Whether there is something for the wire that may wait a moment for more.
    pub(crate) fn lingers(&self) -> bool {
        let core = self.core.lock();
        core.has_output() && core.may_linger()
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::sync::{Arc, mpsc};
    use std::task::{Context, Waker};
    use std::thread::ThreadId;
    use std::time::{Duration, Instant};

    use bytes::Bytes;
    use tokio::sync::Notify;
    use twinfold_protocol::ids::{FileId, Seq};
    use twinfold_protocol::limits::MAX_LINGERING_OPS;
    use twinfold_protocol::op::{Payload, Stability};
    use twinfold_protocol::wire::Receipt;

    use super::super::bed::{opened_with, paired};
    use super::super::habit::{ALIKE, Target};
    use super::*;
    use crate::state::Ack;
    use crate::tasks::tests::Bed;

    const PATIENCE: Duration = Duration::from_secs(60);

    fn write(bytes: usize) -> Op {
        Op::Write {
            file: FileId::ROOT,
            offset: 0,
            stability: Stability::Mode,
            clear_privileges: false,
            data: Payload::from(Bytes::from(vec![7; bytes])),
        }
    }

    fn sync() -> Op {
        Op::Sync {
            file: FileId::ROOT,
            data_only: false,
        }
    }

    /// A primary whose peer is up to date.
    fn primary(ack: Ack) -> (Arc<Engine>, tempfile::TempDir) {
        let (engine, place) = opened_with(true, |settings| settings.ack = ack);
        paired(&engine);
        (engine, place)
    }

    /// Whether somebody was told since the last call.
    fn was_told(notify: &Notify) -> bool {
        let told = pin!(notify.notified());
        told.poll(&mut Context::from_waker(Waker::noop()))
            .is_ready()
    }

    /// The link's thread takes everything.
    fn take_all(engine: &Engine) {
        engine.frames(usize::MAX, &mut Vec::new());
    }

    #[test]
    fn in_mode_flush_only_what_somebody_waits_for_what_is_large_and_what_is_much_is_urgent() {
        let (engine, _place) = primary(Ack::Flush);
        assert!(!engine.lingers(), "there is nothing");
        engine.submit(write(100));
        assert!(engine.lingers());
        assert!(was_told(&engine.output) && !was_told(&engine.urgent));
        engine.submit(sync());
        assert!(!engine.lingers());
        assert!(was_told(&engine.urgent));
        take_all(&engine);
        // What comes behind a sync that is on its way waits again.
        engine.submit(write(100));
        assert!(engine.lingers() && !was_told(&engine.urgent));
        engine.submit(write(SMALL + 1));
        assert!(was_told(&engine.urgent));
        take_all(&engine);
        for _ in 1..MAX_LINGERING_OPS {
            engine.submit(write(1));
            assert!(!was_told(&engine.urgent));
        }
        engine.submit(write(1));
        assert!(!engine.lingers() && was_told(&engine.urgent));
    }

    /// Who waits for it waits for the write, too.
    #[test]
    fn a_write_behind_which_a_sync_is_foreseen_does_not_linger() {
        let (engine, _place) = primary(Ack::Flush);
        let target = Target {
            file: FileId::ROOT,
            data_only: true,
        };
        for changes in 1..=ALIKE as u64 + 1 {
            drop(engine.gate.enter());
            assert!(!engine.is_sync_due());
            engine.foresight.asked(target, changes, Box::new(|_| ()));
        }
        for due in [false, true, false] {
            engine.submit(write(100));
            assert_eq!(was_told(&engine.urgent), due);
            take_all(&engine);
            drop(engine.gate.enter());
        }
    }

    #[test]
    fn where_writes_wait_for_the_peer_nothing_lingers() {
        for ack in [Ack::Memory, Ack::Disk] {
            let (engine, _place) = primary(ack);
            engine.submit(write(100));
            assert!(!engine.lingers());
            assert!(was_told(&engine.output) && was_told(&engine.urgent));
        }
    }

    #[test]
    fn a_small_op_that_is_the_only_one_is_carried_by_its_thread_and_no_other_is() {
        let bed = Bed::new();
        let (engine, _place) = primary(Ack::Memory);
        let (tell, told) = mpsc::channel();
        let feed = engine.clone();
        let inside = bed.handle.enter();
        let _link = tasks::spawn(async move {
            let mut frames = Vec::new();
            loop {
                let more = feed.output.notified();
                feed.frames(1, &mut frames);
                match frames.pop() {
                    Some(_) => drop(tell.send(std::thread::current().id())),
                    None => more.await,
                }
            }
        });
        drop(inside);
        let me = std::thread::current().id();
        let by = || -> ThreadId { told.recv_timeout(PATIENCE).unwrap() };
        let applied = |seq: Option<Seq>| {
            let (applied, durable) = (seq.unwrap(), Seq(0));
            let receipt = Receipt::Applied { applied, durable };
            engine.receipt(receipt).unwrap();
        };
        // The task may still be on its way to where it waits.
        let until = Instant::now() + PATIENCE;
        loop {
            let only = engine.submit(write(4096)).seq;
            let carried = by() == me;
            applied(only);
            if carried {
                break;
            }
            assert!(Instant::now() < until);
        }
        for _ in 0..100 {
            let large = engine.submit(write(SMALL + 1)).seq;
            assert_eq!(by(), bed.runtime_thread());
            applied(large);
        }
        let first = engine.submit(write(4096)).seq;
        by();
        for _ in 0..100 {
            engine.submit(write(4096));
            assert_eq!(by(), bed.runtime_thread());
        }
        applied(first);
    }
}
