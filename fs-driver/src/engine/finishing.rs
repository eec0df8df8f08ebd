//! The end of a resync, on its source.
//!
//! From there on the peer may be up to date. Should this machine go down then, it must know
//! that ([`Record::objection`]): so it is noted before. A resync that does not end after all
//! takes the note back, or this copy, which may serve alone for long, would seem to lack what
//! nobody else has.

use twinfold_protocol::ids::SessionId;
use twinfold_protocol::limits;
use twinfold_protocol::primary::Link;

use super::resync::{ResyncError, WINDOW_WAIT};
use super::{Engine, clock};
use crate::state::Record;

impl Engine {
    /// Whether nothing is left to move to the peer of `session`. Fails when it is not brought
    /// up any more.
    pub(super) fn is_moved(&self, session: SessionId) -> Result<bool, ResyncError> {
        let core = self.core.lock();
        match core.link() {
            Link::Syncing if core.session() == Some(session) => Ok(core.is_moved()),
            _ => Err(ResyncError::Interrupted),
        }
    }

    /// Lets the peer bring to its disk what it has got, until there is so little left that an
    /// application can wait for it. Changes go on, and nobody waits for the peer meanwhile.
    pub(super) fn flush_first(&self, session: SessionId) -> Result<(), ResyncError> {
        for _ in 0..limits::RESYNC_LAST_FLUSHES {
            let mut core = self.core.lock();
            let begins = core.session() == Some(session) && core.flush_is_worth_it();
            if begins {
                core.begin_flush(clock::now(), clock::wall());
                self.tracker.flushes(clock::now());
                self.output.notify_one();
            } else if !core.flush_runs() {
                break;
            }
            while core.flush_runs() && core.session() == Some(session) {
                core.wait_for(&self.room, WINDOW_WAIT);
            }
            // One from on the way says nothing of what was moved behind it.
            if begins && core.flush_was_short() {
                break;
            }
        }
        self.is_moved(session).map(drop)
    }

    /// Ends the resync of `session`. False when something was marked meanwhile, which is to be
    /// moved first.
    pub(super) fn finish(&self, session: SessionId) -> Result<bool, ResyncError> {
        let note = |change: fn(&mut Record)| {
            self.copy.update(change).inspect_err(|e| {
                self.fence("the copy's history cannot be written", e);
            })
        };
        note(Record::peer_may_be_current)?;
        let ended = {
            let mut core = self.core.lock();
            core.session() == Some(session)
                && core.finish_resync(clock::now(), clock::wall()).is_some()
        };
        if !ended {
            // Nobody else has noted it: resyncs run one after the other.
            note(Record::peer_is_behind)?;
            self.is_moved(session)?;
        }
        Ok(ended)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, mpsc};
    use std::time::Duration;

    use bytes::Bytes;
    use twinfold_protocol::ids::{FileId, Seq};
    use twinfold_protocol::op::{Op, Payload};
    use twinfold_protocol::wire::Receipt;

    use super::super::bed::{PATIENCE, newest, opened, shipped, syncing};
    use super::*;

    const PIECE: usize = 1 << 20;

    /// A resync has moved this many bytes.
    fn moved(engine: &Engine, session: SessionId, bytes: u64) {
        for _ in 0..bytes / PIECE as u64 {
            let op = Op::PutData {
                file: FileId(5000),
                offset: 0,
                data: Payload::from(Bytes::from(vec![0; PIECE])),
            };
            engine.put(session, op).unwrap();
            shipped(engine);
            applied(engine);
        }
    }

    fn applied(engine: &Engine) {
        let (applied, durable) = (newest(engine), Seq(0));
        let receipt = Receipt::Applied { applied, durable };
        engine.core.lock().receipt(clock::now(), receipt).unwrap();
    }

    #[test]
    fn the_peer_flushes_what_it_has_got_before_anybody_waits_for_it() {
        let (engine, _place) = opened(true);
        engine.start_primary(false).unwrap();
        let session = syncing(&engine);
        moved(&engine, session, 1 << 20);
        engine.flush_first(session).unwrap();
        assert_eq!(shipped(&engine), [], "so little is flushed at the end");

        moved(&engine, session, limits::RESYNC_FLUSH_LEAST);
        let (done, ended) = mpsc::channel();
        let first = {
            let engine: Arc<Engine> = engine.clone();
            std::thread::spawn(move || done.send(engine.flush_first(session).is_ok()))
        };
        let asked = std::iter::repeat_with(|| shipped(&engine))
            .find(|ops| !ops.is_empty() || first.is_finished());
        assert_eq!(asked.unwrap(), [Op::Flush]);
        let flush = newest(&engine);
        applied(&engine);
        let early = ended.recv_timeout(Duration::from_millis(200));
        assert!(early.is_err(), "it has not flushed: {early:?}");
        let synced = Receipt::Synced { seq: flush };
        engine.core.lock().receipt(clock::now(), synced).unwrap();
        assert!(ended.recv_timeout(PATIENCE).unwrap());
        first.join().unwrap().unwrap();

        // What has come behind one that runs already is flushed as well.
        let core = || engine.core.lock();
        core().begin_flush(clock::now(), clock::wall());
        let on_the_way = newest(&engine);
        moved(&engine, session, limits::RESYNC_FLUSH_LEAST);
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| engine.flush_first(session).is_ok());
            let synced = |seq| core().receipt(clock::now(), Receipt::Synced { seq });
            // It waits for that one by then, or the test shows less.
            std::thread::sleep(Duration::from_millis(200));
            synced(on_the_way).unwrap();
            let behind = Seq(on_the_way.0 + limits::RESYNC_FLUSH_LEAST / PIECE as u64);
            while newest(&engine) == behind && !waits.is_finished() {
                std::thread::yield_now();
            }
            assert_eq!(shipped(&engine), [Op::Flush]);
            applied(&engine);
            synced(newest(&engine)).unwrap();
            assert!(waits.join().unwrap());
        });

        // A peer that is lost meanwhile is not waited for.
        moved(&engine, session, limits::RESYNC_FLUSH_LEAST);
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| engine.flush_first(session).is_err());
            while !engine.core.lock().flush_runs() && !waits.is_finished() {
                std::thread::yield_now();
            }
            engine.core.lock().peer_lost(clock::now(), "cut");
            assert!(waits.join().unwrap());
        });
    }

    /// It may serve alone for days, and then its machine loses its power.
    #[test]
    fn a_peer_whose_resync_did_not_end_does_not_count_as_one_that_may_have_more() {
        let (engine, _place) = opened(true);
        engine.start_primary(false).unwrap();
        let session = syncing(&engine);
        let file = FileId(5000);
        let other_boot = 1;
        let alone = || engine.copy().objection(other_boot).is_none();
        assert!(engine.is_moved(session).unwrap());
        // Something is marked, or the connection is lost, behind that look.
        engine.core.lock().mark(|map| map.mark_attributes(file));
        assert!(!engine.finish(session).unwrap());
        assert!(alone() && !engine.is_moved(session).unwrap());
        engine.core.lock().object_is_gone(file);
        engine.core.lock().peer_lost(clock::now(), "cut");
        assert!(engine.finish(session).is_err());
        assert!(alone() && engine.is_moved(session).is_err());
        // What is ended is noted.
        let session = syncing(&engine);
        assert!(engine.finish(session).unwrap());
        assert!(!alone());
    }
}
