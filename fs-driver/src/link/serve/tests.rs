//! A primary's engine on a real line, with a peer that is no more than a list.

use std::collections::HashMap;
use std::sync::mpsc;

use bytes::Bytes;
use parking_lot::Mutex;
use twinfold_protocol::ids::{Epoch, FileId};
use twinfold_protocol::op::{Op, Payload, Stability};
use twinfold_protocol::wire::decode_op;

use super::super::transport::tests::{connect, pair};
use super::*;
use crate::engine::bed::{change, newest, opened_with, paired};
use crate::state::Ack;

const PATIENCE: Duration = Duration::from_secs(120);

/// Threads that change files, each one of its own.
const WRITERS: u64 = 3;

/// Changes of each.
const EACH: u64 = 600;

/// Every so many changes one is a sync.
const SYNC: u64 = 10;

/// How often the line breaks.
const BREAKS: u64 = 8;

/// What the peer has: the newest op, and of each file what was written last.
struct Peer {
    applied: Mutex<Seq>,
    written: Mutex<HashMap<FileId, u64>>,
}

impl Peer {
    fn has(&self, file: FileId, n: u64) -> bool {
        self.written
            .lock()
            .get(&file)
            .is_some_and(|last| *last >= n)
    }

    /// Applies what comes until it has taken `most` ops, or the line breaks.
    async fn take(&self, line: &Connection, most: u64) -> Result<()> {
        let (mut control, _answers) = line.open_bi().await?;
        send(&mut control, &[Control::Alive.encode()]).await?;
        let (mut receipts, ops) = line.accept_bi().await?;
        let mut ops = Incoming::new(ops, PATIENCE);
        let start = OpStreamStart::decode(ops.next().await?)?;
        assert_eq!(start.first, self.applied.lock().next());
        for _ in 0..most {
            let sequenced = decode_op(ops.next().await?)?;
            let (seq, next) = (sequenced.seq, self.applied.lock().next());
            let mut answers = Vec::new();
            match sequenced.op {
                // Asked for again.
                Op::Sync { .. } if seq < next => {}
                _ => assert_eq!(seq, next),
            }
            match sequenced.op {
                Op::Write {
                    file, offset: n, ..
                } => {
                    let before = self.written.lock().insert(file, n);
                    assert!(before.is_none_or(|before| before < n), "{before:?}, {n}");
                }
                Op::Sync { .. } => answers.push(Receipt::Synced { seq }.encode()),
                other => panic!("{other:?}"),
            }
            let applied = seq.max(Seq(next.0 - 1));
            *self.applied.lock() = applied;
            let durable = Seq(0);
            answers.insert(0, Receipt::Applied { applied, durable }.encode());
            send(&mut receipts, &answers).await?;
        }
        Ok(())
    }
}

/// Changes a file, and waits for each change to be acknowledged, or for some.
fn work(engine: &Engine, peer: &Arc<Peer>, ack: Ack, writer: u64) {
    let file = FileId::new(Epoch(7), writer);
    let (acknowledge, acknowledged) = mpsc::channel();
    let wait = || acknowledged.recv_timeout(PATIENCE).expect("an answer");
    let mut waiting = 0;
    let mut written = 0;
    for n in 1..=EACH {
        let is_sync = n.is_multiple_of(SYNC);
        let op = match is_sync {
            true => Op::Sync {
                file,
                data_only: false,
            },
            false => {
                written = n;
                Op::Write {
                    file,
                    offset: n,
                    stability: Stability::Mode,
                    clear_privileges: false,
                    data: Payload::from(Bytes::from_static(b"something")),
                }
            }
        };
        let (peer, acknowledge) = (peer.clone(), acknowledge.clone());
        let counts = is_sync || ack != Ack::Flush;
        change(
            engine,
            op,
            Box::new(move || {
                // In this copy and in the peer's.
                let had = !counts || peer.has(file, written);
                acknowledge.send(had).unwrap();
            }),
        );
        waiting += 1;
        // The first one does one thing at a time.
        while waiting > writer * 8 {
            assert!(wait(), "acknowledged before the peer has it");
            waiting -= 1;
        }
    }
    for _ in 0..waiting {
        assert!(wait(), "acknowledged before the peer has it");
    }
}

fn nothing_is_lost_or_out_of_order(ack: Ack) {
    let (engine, _place) = opened_with(true, |settings| settings.ack = ack);
    let session = paired(&engine);
    let home = tempfile::tempdir().unwrap();
    let (server, client) = pair(home.path());
    let peer = Arc::new(Peer {
        applied: Mutex::new(newest(&engine)),
        written: Mutex::default(),
    });
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let (over, all) = oneshot::channel::<()>();
    let lines = async {
        let listening = server.listen().unwrap().remove(0);
        let mut all = std::pin::pin!(all);
        for breaks in 1.. {
            let [dialled, accepted] = connect(&listening, &client).await;
            let first = peer.applied.lock().next();
            let serving = async {
                let (tx, rx) = accepted.accept_bi().await.unwrap();
                let control = Incoming::new(rx, PATIENCE);
                ship(&engine, &accepted, tx, control, session, first).await
            };
            let taking = async {
                let most = match breaks <= BREAKS {
                    true => WRITERS * EACH / (2 * BREAKS) + breaks,
                    false => u64::MAX,
                };
                let over = tokio::select! {
                    _ = &mut all => true,
                    _ = peer.take(&dialled, most) => false,
                };
                dialled.close(0u32.into(), b"cut");
                over
            };
            let (ended, over) = tokio::join!(serving, taking);
            assert!(ended.is_err());
            if over {
                assert!(breaks > BREAKS, "{breaks} lines only");
                return;
            }
            assert!(engine.resume(session, *peer.applied.lock()));
        }
    };
    std::thread::scope(|scope| {
        let working = [0, 1, 2].map(|writer| {
            let (engine, peer) = (&engine, &peer);
            scope.spawn(move || work(engine, peer, ack, writer))
        });
        assert_eq!(working.len() as u64, WRITERS);
        scope.spawn(move || {
            let failed = working.into_iter().filter_map(|w| w.join().err()).last();
            drop(over);
            assert!(failed.is_none(), "a writer failed");
        });
        runtime.block_on(async { tokio::time::timeout(PATIENCE, lines).await.unwrap() });
    });
    let last = EACH - u64::from(EACH.is_multiple_of(SYNC));
    for writer in 0..WRITERS {
        assert!(peer.has(FileId::new(Epoch(7), writer), last));
    }
}

#[test]
fn in_mode_memory_nothing_is_lost_or_out_of_order_over_lines_that_break() {
    nothing_is_lost_or_out_of_order(Ack::Memory);
}

#[test]
fn in_mode_flush_nothing_is_lost_or_out_of_order_over_lines_that_break() {
    nothing_is_lost_or_out_of_order(Ack::Flush);
}
