//! The secondary's ops: applied in their order, and acknowledged.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;
use quinn::{Connection, SendStream};
use tokio::sync::mpsc;
use twinfold_protocol::op::Payload;
use twinfold_protocol::wire::Receipt;

use super::blocking::Blocking;
use super::busy::Busy;
use super::framing::{Incoming, send};
use super::{STEP, code};
use crate::engine::{Due, Engine, StandbyError, SyncJob};
use crate::polling::What;

/// How long ops are applied at a stretch before receipts may leave. Long beside what a
/// turn of the endpoint costs, short beside what anybody waits for.
const STRETCH: Duration = Duration::from_millis(1);

/// Ops whose notes are made with one sync, at most.
const AHEAD: usize = 256;

/// What one caller of the primary has under way at once: a write, and the sync behind it.
const FEW: usize = 2;

/// Bytes of those whose next one may follow within a moment, at most.
const SMALL: usize = 32 << 10;

/// How long receipts wait for a sync that is likely to be done soon. By then another thread
/// drives the runtime.
const SOON: Duration = Duration::from_millis(50);

/// For how long no sync keeps the link's thread, when others' ops arrived while one did.
const CROWDED: Duration = Duration::from_millis(10);

/// This copy could not apply an op; trying again at once would fail again.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub(super) struct CopyFailed(pub(super) StandbyError);

/// Applies what comes until the stream ends, and sends receipts.
pub(super) async fn apply(
    engine: &Arc<Engine>,
    blocking: &Blocking,
    connection: &Connection,
    mut ops: Incoming,
    mut tx: SendStream,
) -> Result<()> {
    let (done, mut synced): (Done, _) = mpsc::unbounded_channel();
    let wanted = Wanted::default();
    let mut busy = Busy::new(engine);
    let mut crowded: Option<Instant> = None;
    loop {
        let mut new = true;
        let mut ahead = take_ready(&mut ops)?;
        loop {
            let turn = Turn {
                engine: engine.clone(),
                done: done.clone(),
                unwanted: wanted.0.clone(),
                new,
                ahead,
                syncs_here: !busy.is_syncing()
                    && !blocking.is_slow()
                    // By one that an earlier connection has begun.
                    && !blocking.is_kept()
                    && crowded.is_none_or(|at| at.elapsed() >= CROWDED),
            };
            let mut turned = match blocking.is_slow() {
                false => blocking.run_here(|| turn.take()),
                true => {
                    busy.wait(engine, &mut tx, blocking.run(|| turn.take()))
                        .await?
                }
            };
            busy.sync_begun(turned.syncs);
            let synced_here = !turned.here.is_empty();
            if synced_here {
                let jobs = std::mem::take(&mut turned.here);
                busy.sync_begun(jobs.len());
                sync_here(engine, blocking, jobs, &done);
                // What takes longer is told when it has ended, as any other.
                while busy.is_syncing()
                    && let Ok(Some(ended)) = tokio::time::timeout(SOON, synced.recv()).await
                {
                    busy.sync_ended();
                    match ended {
                        Ok(receipt) => turned.receipts.extend(receipt),
                        Err(error) => return failed(engine, blocking, connection, tx, error).await,
                    }
                }
                turned.receipts.extend(engine.standby_receipt());
            }
            let receipts: Vec<_> = turned.receipts.iter().map(Receipt::encode).collect();
            if !receipts.is_empty() {
                send(&mut tx, &receipts).await?;
            }
            if let Some(job) = turned.foreseen {
                // The receipts leave before it: the connection has its turn first.
                busy.sync_begun(1);
                sync_here(engine, blocking, vec![job], &done);
            } else if !receipts.is_empty()
                && turned.waited_for
                && engine.polling.expect(What::Change)
            {
                engine.polling.begin();
            }
            if let Some(error) = turned.error {
                return stopped(engine, blocking, connection, tx, error).await;
            }
            ahead = turned.ahead;
            new = ahead.is_empty();
            if new {
                ahead = take_ready(&mut ops)?;
                if ahead.is_empty() {
                    if !synced_here || !others_arrived(&mut ops).await? {
                        break;
                    }
                    engine.polling.came();
                    crowded = Some(Instant::now());
                    ahead = take_ready(&mut ops)?;
                }
            }
            // Nothing on the way to the next op gives the endpoint, on this same thread, its turn.
            if turned.stretched {
                tokio::task::yield_now().await;
            }
        }
        // Only now: the stream's first bytes may have held ops already.
        let filled = tokio::select! {
            // Ops that never cease to arrive must not keep back what a disk has done.
            biased;
            Some(receipt) = synced.recv() => {
                busy.sync_ended();
                match receipt {
                    Ok(Some(receipt)) => {
                        send(&mut tx, &[receipt.encode()]).await?;
                        if engine.must_host() {
                            // The last word of the session; the primary comes back as a visitor.
                            let _ = tx.finish();
                            let _ = tokio::time::timeout(STEP, tx.stopped()).await;
                            return Ok(());
                        }
                    }
                    Ok(None) => {}
                    Err(error) => return failed(engine, blocking, connection, tx, error).await,
                }
                true
            }
            // Perhaps one that was asked for over an earlier connection.
            () = engine.synced.notified() => true,
            () = busy.tick(), if busy.is_syncing() => {
                busy.tell(engine, &mut tx).await?;
                true
            }
            filled = ops.fill() => {
                engine.polling.came();
                filled?
            }
        };
        if !filled {
            return ops.end();
        }
    }
}

/// Has the link's thread do syncs, one after the other.
fn sync_here(engine: &Arc<Engine>, blocking: &Blocking, jobs: Vec<SyncJob>, done: &Done) {
    let (syncs, tells, done) = (engine.clone(), engine.clone(), done.clone());
    let sync = move || -> Vec<_> {
        let sync = |job| syncs.standby_sync_here(job);
        jobs.into_iter().map(sync).collect()
    };
    blocking.begin_sync(sync, move |ended| {
        for result in ended {
            if done.send(result).is_err() {
                // Whoever serves the next connection looks what there is to tell.
                tells.synced.notify_one();
            }
        }
    });
}

/// Whether more has arrived while the thread was kept: it is there when the endpoint and the
/// connection, on this same thread, have had their turns.
async fn others_arrived(ops: &mut Incoming) -> Result<bool> {
    for _ in 0..2 {
        tokio::task::yield_now().await;
    }
    tokio::select! {
        biased;
        // Where the stream has ended, it has for the next one who asks, too.
        filled = ops.fill() => filled,
        () = std::future::ready(()) => Ok(false),
    }
}

/// Ops that have arrived.
fn take_ready(ops: &mut Incoming) -> Result<VecDeque<Payload>> {
    let mut ahead = VecDeque::new();
    while ahead.len() < AHEAD
        && let Some(frame) = ops.ready()?
    {
        ahead.push_back(frame);
    }
    Ok(ahead)
}

/// What syncs tell when they have ended.
type Done = mpsc::UnboundedSender<Result<Option<Receipt>, StandbyError>>;

/// Somebody waits for what a turn does; one that has begun applies no more ops when this is
/// dropped.
#[derive(Default)]
struct Wanted(Arc<AtomicBool>);

impl Drop for Wanted {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

/// Ops to be applied in one go.
struct Turn {
    engine: Arc<Engine>,
    done: Done,
    /// Nobody wants it any more.
    unwanted: Arc<AtomicBool>,
    /// None of them is noted yet.
    new: bool,
    ahead: VecDeque<Payload>,
    /// A sync may keep the link's thread.
    syncs_here: bool,
}

/// What came of it.
struct Turned {
    /// What was not begun.
    ahead: VecDeque<Payload>,
    receipts: Vec<Receipt>,
    /// Syncs that were begun.
    syncs: usize,
    /// Syncs that are soon done, and nothing else is to do.
    here: Vec<SyncJob>,
    /// One that is likely to be asked for next.
    foreseen: Option<SyncJob>,
    /// One caller of the primary, it seems, waits for the receipts, and goes on then.
    waited_for: bool,
    /// It was broken off, or has lasted as long.
    stretched: bool,
    /// Nothing behind this is applied.
    error: Option<StandbyError>,
}

impl Turn {
    /// Applies ops for a while, and begins the syncs they ask for.
    fn take(self) -> Turned {
        let Turn {
            engine,
            done,
            unwanted,
            new,
            mut ahead,
            syncs_here,
        } = self;
        let mut turned = Turned {
            ahead: VecDeque::new(),
            receipts: Vec::new(),
            syncs: 0,
            here: Vec::new(),
            foreseen: None,
            waited_for: false,
            stretched: false,
            error: None,
        };
        let few = new && ahead.len() <= FEW;
        let small = few && ahead.iter().map(Payload::len).sum::<usize>() <= SMALL;
        let mut sync = |job, last| {
            // Behind one that another thread does, it is that one which is waited for.
            let alone = last && few && turned.syncs == 0;
            if alone && syncs_here && engine.is_soon_done(&job) {
                return turned.here.push(job);
            }
            let done = done.clone();
            engine.standby_sync(job, move |result| drop(done.send(result)));
            turned.syncs += 1;
        };
        if new {
            engine.standby_note_ahead(&ahead);
        }
        let mut synced = Vec::new();
        let began = Instant::now();
        while let Some(frame) = ahead.pop_front() {
            if unwanted.load(Ordering::Acquire) {
                return turned;
            }
            match engine.standby_apply(frame) {
                Ok(Due::Nothing) => {}
                Ok(Due::Receipt(receipt)) => turned.receipts.push(receipt),
                Ok(Due::Synced(receipt)) => synced.push(receipt),
                Ok(Due::Sync(job)) => sync(job, ahead.is_empty()),
                Err(error) => {
                    turned.error = Some(error);
                    return turned;
                }
            }
            // Megabytes of ops may have arrived.
            if began.elapsed() >= STRETCH {
                turned.stretched = true;
                break;
            }
        }
        if ahead.is_empty()
            && let Some(job) = engine.standby_stable_job()
        {
            sync(job, true);
        }
        // For a sync somebody waits in every mode.
        let waits = || !turned.here.is_empty() || engine.standby_is_waited_for();
        let one_caller = small && ahead.is_empty();
        turned.waited_for = one_caller && waits();
        turned.receipts.extend(engine.standby_receipt());
        turned.receipts.append(&mut synced);
        if one_caller && syncs_here && turned.here.is_empty() && turned.syncs == 0 {
            turned.foreseen = engine.standby_foreseen();
        }
        turned.ahead = ahead;
        turned
    }
}

/// An op could not be applied: nothing after it is.
async fn stopped(
    engine: &Arc<Engine>,
    blocking: &Blocking,
    connection: &Connection,
    tx: SendStream,
    error: StandbyError,
) -> Result<()> {
    match error {
        StandbyError::Violation(violation) => {
            let reason = violation.to_string();
            connection.close(code::VIOLATION.into(), reason.as_bytes());
            Err(violation.into())
        }
        error => failed(engine, blocking, connection, tx, error).await,
    }
}

/// Tells the primary, after noting it durably, that this copy cannot go on.
async fn failed(
    engine: &Arc<Engine>,
    blocking: &Blocking,
    connection: &Connection,
    mut tx: SendStream,
    error: StandbyError,
) -> Result<()> {
    let noting = engine.clone();
    let (receipt, error) = blocking
        .run(move || (noting.standby_failed(&error), error))
        .await;
    if let Some(receipt) = receipt {
        send(&mut tx, &[receipt.encode()]).await?;
        let _ = tx.finish();
        let _ = tokio::time::timeout(STEP, tx.stopped()).await;
    }
    connection.close(code::REFUSED.into(), error.to_string().as_bytes());
    Err(CopyFailed(error).into())
}

#[cfg(test)]
mod tests {
    use tokio::runtime::Builder;
    use twinfold_protocol::attr::Kind;
    use twinfold_protocol::ids::{FileId, Seq};
    use twinfold_protocol::op::{Name, Op, Stability, XattrMode};
    use twinfold_protocol::primary::AckMode;
    use twinfold_protocol::time::Timestamp;
    use twinfold_protocol::wire::encode_op;

    use super::super::blocking::serve;
    use super::super::transport::tests::pair;
    use super::*;
    use crate::engine::bed::{Bed, made};

    const PATIENCE: Duration = Duration::from_secs(60);

    /// A primary's end of the op stream.
    struct Primary {
        line: Connection,
        ops: SendStream,
        receipts: Incoming,
    }

    impl Primary {
        async fn send(&mut self, seq: Seq, op: &Op) {
            let frame = encode_op(seq, Timestamp::default(), op);
            send(&mut self.ops, &[frame]).await.unwrap();
        }

        async fn until(&mut self, all: impl Fn(&Receipt) -> bool) {
            let patience = tokio::time::timeout(PATIENCE / 2, async {
                while !all(&Receipt::decode(self.receipts.next().await.unwrap()).unwrap()) {}
            });
            patience.await.expect("nobody is told of it");
        }

        async fn applied(&mut self, seq: Seq) {
            self.until(|r| matches!(r, Receipt::Applied { applied, .. } if *applied == seq))
                .await;
        }

        async fn synced(&mut self, seq: Seq) {
            self.until(|r| matches!(r, Receipt::Synced { seq: synced } if *synced == seq))
                .await;
        }
    }

    fn change() -> Op {
        Op::SetXattr {
            file: FileId::ROOT,
            name: bytes::Bytes::from_static(b"user.a"),
            value: bytes::Bytes::from_static(b"x"),
            mode: XattrMode::Either,
        }
    }

    fn sync() -> Op {
        Op::Sync {
            file: FileId::ROOT,
            data_only: false,
        }
    }

    fn with_primary(run: impl AsyncFnOnce(&mut Primary, &Bed, &Blocking)) {
        with_primary_in(AckMode::Disk, run);
    }

    /// Runs a primary, on a thread of its own, before the secondary's link.
    fn with_primary_in(mode: AckMode, run: impl AsyncFnOnce(&mut Primary, &Bed, &Blocking)) {
        let bed = Arc::new(Bed::current());
        bed.start_in(mode, bed.next());
        let place = tempfile::tempdir().unwrap();
        let (server, client) = pair(place.path());
        let blocking = Arc::<Blocking>::default();
        let (inside, inner, store) = (bed.clone(), blocking.clone(), blocking.clone());
        let primary = async move {
            let to = client.peers[0];
            let dialling = client.dialler(to).unwrap();
            let line = dialling.connect(to, client.server_name()).unwrap();
            let line = line.await.unwrap();
            let (ops, rx) = line.open_bi().await.unwrap();
            let receipts = Incoming::new(rx, PATIENCE);
            let mut primary = Primary {
                line,
                ops,
                receipts,
            };
            run(&mut primary, &inside, &store).await;
            primary.line.close(0u32.into(), b"over");
        };
        let (listens, listening) = std::sync::mpsc::channel();
        let secondary = async move {
            let endpoint = server.listen().unwrap().remove(0);
            listens.send(()).unwrap();
            let line = endpoint.accept().await.unwrap().await.unwrap();
            let (tx, rx) = line.accept_bi().await.unwrap();
            let ops = Incoming::new(rx, PATIENCE);
            let _ = apply(&bed.engine, &inner, &line, ops, tx).await;
        };
        let ends = std::thread::spawn(move || serve(secondary, &blocking).unwrap());
        listening.recv_timeout(PATIENCE).unwrap();
        let runtime = Builder::new_current_thread().enable_all().build();
        runtime.unwrap().block_on(primary);
        ends.join().unwrap();
    }

    /// The primary waits for a sync which keeps the thread of its secondary's link: `run` gets
    /// the numbers of the sync and of the next op, and what lets the sync get on.
    fn with_sync_under_way(
        run: impl AsyncFnOnce(&mut Primary, [Seq; 2], std::sync::mpsc::Sender<()>),
    ) {
        with_primary(async |primary, bed, _| {
            let before = bed.next();
            let [sync_at, behind] = [before.next(), before.next().next()];
            primary.send(before, &change()).await;
            let durable =
                |r: &Receipt| matches!(r, Receipt::Applied { durable, .. } if *durable == before);
            primary.until(durable).await;
            // That one may have come beside what was synced first.
            tokio::time::sleep(2 * CROWDED).await;
            let held = bed.hold_syncs();
            primary.send(sync_at, &sync()).await;
            while !bed.is_syncing() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            run(primary, [sync_at, behind], held).await;
        });
    }

    /// Nothing comes behind it that would wake anybody.
    #[test]
    fn an_op_that_arrives_while_a_sync_keeps_the_thread_is_applied_behind_it() {
        with_sync_under_way(async |primary, [sync, behind], held| {
            primary.send(behind, &change()).await;
            // It has arrived by then.
            tokio::time::sleep(SOON / 5).await;
            drop(held);
            primary.synced(sync).await;
            primary.applied(behind).await;
        });
    }

    #[test]
    fn ops_are_applied_and_told_of_while_a_sync_that_seemed_quick_takes_long() {
        with_sync_under_way(async |primary, [sync, behind], held| {
            primary.applied(sync).await;
            primary.send(behind, &change()).await;
            primary.applied(behind).await;
            drop(held);
            primary.synced(sync).await;
        });
    }

    #[test]
    fn a_sync_that_was_foreseen_is_told_of_although_none_gets_on() {
        // In mode `disk` each change is synced without being asked for.
        for mode in [AckMode::Flush, AckMode::Memory] {
            foresees_in(mode);
        }
    }

    fn foresees_in(mode: AckMode) {
        with_primary_in(mode, async |primary, bed, store| {
            let file = FileId((9 << 40) + 1);
            let mut seq = bed.next();
            let create = Op::Create {
                parent: FileId::ROOT,
                name: Name::new(b"log").unwrap(),
                object: made(file.0, Kind::Regular),
            };
            let write = Op::Write {
                file,
                offset: 0,
                stability: Stability::Mode,
                clear_privileges: false,
                data: bytes::Bytes::from_static(b"x").into(),
            };
            let sync = Op::Sync {
                file,
                data_only: true,
            };
            primary.send(seq, &create).await;
            let until = Instant::now() + PATIENCE;
            loop {
                seq = seq.next();
                // This disk is quick, however busy.
                drop(bed.hold_syncs());
                store.forget_slow();
                primary.send(seq, &write).await;
                primary.applied(seq).await;
                seq = seq.next();
                // Some may come while the link's thread is away, or be slow.
                tokio::time::sleep(2 * CROWDED).await;
                if bed.has_foreseen() {
                    break;
                }
                assert!(Instant::now() < until, "none is foreseen in {mode:?}");
                primary.send(seq, &sync).await;
                primary.synced(seq).await;
            }
            let held = bed.hold_syncs();
            primary.send(seq, &sync).await;
            primary.synced(seq).await;
            drop(held);
        });
    }
}
