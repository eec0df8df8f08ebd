//! The secondary's ops: applied in their order, and acknowledged.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;
use quinn::{Connection, SendStream};
use tokio::sync::mpsc;
use tokio::time::{Interval, MissedTickBehavior};
use twinfold_protocol::op::Payload;
use twinfold_protocol::wire::Receipt;

use super::blocking::Blocking;
use super::framing::{Incoming, send};
use super::{STEP, code};
use crate::engine::{Due, Engine, StandbyError};

/// How long ops are applied at a stretch before receipts may leave. Long beside what a
/// turn of the endpoint costs, short beside what anybody waits for.
const STRETCH: Duration = Duration::from_millis(1);

/// Ops whose notes are made with one sync, at most.
const AHEAD: usize = 256;

/// Signs of a busy disk within the time that the primary waits for progress.
const BUSY_PER_STALL: u32 = 8;

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
            };
            let turned = match blocking.is_slow() {
                false => blocking.run_here(|| turn.take()),
                true => {
                    busy.wait(engine, &mut tx, blocking.run(|| turn.take()))
                        .await?
                }
            };
            busy.sync_begun(turned.syncs);
            let receipts: Vec<_> = turned.receipts.iter().map(Receipt::encode).collect();
            if !receipts.is_empty() {
                send(&mut tx, &receipts).await?;
            }
            if let Some(error) = turned.error {
                return stopped(engine, blocking, connection, tx, error).await;
            }
            ahead = turned.ahead;
            new = ahead.is_empty();
            if new {
                ahead = take_ready(&mut ops)?;
                if ahead.is_empty() {
                    break;
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
            _ = busy.every.tick(), if busy.syncs > 0 => {
                busy.tell(engine, &mut tx).await?;
                true
            }
            filled = ops.fill() => filled?,
        };
        if !filled {
            return ops.end();
        }
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
}

/// What came of it.
struct Turned {
    /// What was not begun.
    ahead: VecDeque<Payload>,
    receipts: Vec<Receipt>,
    /// Syncs that were begun.
    syncs: usize,
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
        } = self;
        let mut turned = Turned {
            ahead: VecDeque::new(),
            receipts: Vec::new(),
            syncs: 0,
            stretched: false,
            error: None,
        };
        let mut sync = |job| {
            let done = done.clone();
            engine.standby_sync(job, move |result| drop(done.send(result)));
            turned.syncs += 1;
        };
        if new {
            engine.standby_note_ahead(&ahead);
        }
        let began = Instant::now();
        while let Some(frame) = ahead.pop_front() {
            if unwanted.load(Ordering::Acquire) {
                return turned;
            }
            match engine.standby_apply(frame) {
                Ok(Due::Nothing) => {}
                Ok(Due::Receipt(receipt)) => turned.receipts.push(receipt),
                Ok(Due::Sync(job)) => sync(job),
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
            sync(job);
        }
        turned.receipts.extend(engine.standby_receipt());
        turned.ahead = ahead;
        turned
    }
}

/// Tells the primary that this node waits for a disk which is busy, not hanging.
struct Busy {
    every: Interval,
    /// Since when ops are being applied.
    works: Option<Instant>,
    /// Syncs that run.
    syncs: usize,
    /// Since when one does, and none has ended.
    syncing: Instant,
    /// What the disk had done, and when.
    seen: Option<(Instant, u64)>,
}

impl Busy {
    fn new(engine: &Engine) -> Busy {
        let every = Duration::from_millis(engine.settings().stall_ms) / BUSY_PER_STALL;
        let mut ticks = tokio::time::interval_at(tokio::time::Instant::now() + every, every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Busy {
            every: ticks,
            works: None,
            syncs: 0,
            syncing: Instant::now(),
            seen: None,
        }
    }

    /// Waits for ops that are being applied.
    async fn wait<T>(
        &mut self,
        engine: &Engine,
        tx: &mut SendStream,
        work: impl Future<Output = T>,
    ) -> Result<T> {
        self.works = Some(Instant::now());
        tokio::pin!(work);
        loop {
            tokio::select! {
                biased;
                done = &mut work => {
                    self.works = None;
                    return Ok(done);
                }
                _ = self.every.tick() => self.tell(engine, tx).await?,
            }
        }
    }

    fn sync_begun(&mut self, more: usize) {
        if self.syncs == 0 {
            self.syncing = Instant::now();
        }
        self.syncs += more;
    }

    fn sync_ended(&mut self) {
        self.syncs = self.syncs.saturating_sub(1);
        self.syncing = Instant::now();
    }

    /// Looks whether something has been waited for for long, and the disk does something.
    async fn tell(&mut self, engine: &Engine, tx: &mut SendStream) -> Result<()> {
        let every = self.every.period();
        let syncing = (self.syncs > 0).then_some(self.syncing);
        let mut since = self.works.into_iter().chain(syncing);
        if !since.any(|since| since.elapsed() >= every) {
            return Ok(());
        }
        let before = self.seen.take();
        let Some(done) = engine.disk_has_done() else {
            return Ok(());
        };
        self.seen = Some((Instant::now(), done));
        // What was seen in an earlier wait says nothing about this one.
        let moves = before.is_some_and(|(at, before)| at.elapsed() < 3 * every && done != before);
        if moves {
            send(tx, &[Receipt::Busy.encode()]).await?;
        }
        Ok(())
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
