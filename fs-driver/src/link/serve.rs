//! The primary's end: accepts its peer, decides with it, and ships.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use quinn::{Connection, Endpoint, SendStream};
use tokio::sync::{Mutex, Notify, OwnedMutexGuard, mpsc, oneshot};
use twinfold_protocol::handshake::{Decision, Role, Which, decide, is_left_behind};
use twinfold_protocol::ids::{Seq, SessionId};
use twinfold_protocol::limits;
use twinfold_protocol::wire::{
    CompareAnswer, CompareRequest, Control, OpStreamStart, Receipt, common_version,
};

use super::framing::{Incoming, send};
use super::transport::Transport;
use super::{STEP, code, host};
use crate::engine::{Ask, Engine, Target};
use crate::tasks;

/// How often the target of a resync is told how far it is.
const TELL: Duration = Duration::from_millis(500);

/// Frames encoded and handed to QUIC at once.
const BATCH: usize = 64;

/// How long ops that nobody waits for are kept, so that many are sent together. A sync does
/// not wait for it.
const LINGER: Duration = Duration::from_millis(1);

/// Pause before listening is tried again.
const RETRY_LISTEN: Duration = Duration::from_millis(100);

/// Priority of the op stream over the compare stream.
const OPS_FIRST: i32 = 10;

/// Serves until the role changes (the caller drops the future).
pub(super) async fn run(
    engine: &Arc<Engine>,
    transport: &Arc<Transport>,
    resyncs: &Arc<Mutex<()>>,
) -> Result<()> {
    let endpoints = listen(engine, transport).await;
    let closer = CloseOnDrop(endpoints.clone());
    let (tx, mut accepted) = mpsc::channel(4);
    let mut acceptors = tokio::task::JoinSet::new();
    for endpoint in endpoints {
        let tx = tx.clone();
        acceptors.spawn(async move {
            while let Some(incoming) = endpoint.accept().await {
                let (tx, from) = (tx.clone(), incoming.remote_address());
                // A stranger fails here, before any of its streams is looked at.
                tokio::spawn(async move {
                    match tokio::time::timeout(STEP, async { incoming.await }).await {
                        Ok(Ok(connection)) => {
                            let _ = tx.send(connection).await;
                        }
                        Ok(Err(error)) => tracing::warn!(%from, %error, "a connection was refused"),
                        Err(_) => tracing::debug!(%from, "a connection was not completed in time"),
                    }
                });
            }
        });
    }
    let mut peers = tokio::task::JoinSet::new();
    while let Some(connection) = accepted.recv().await {
        // One task a connection; a newer one replaces the older when it has shaken hands.
        let (engine, resyncs) = (engine.clone(), resyncs.clone());
        peers.spawn(async move {
            let from = connection.remote_address();
            if let Err(error) = peer(&engine, &connection, &resyncs).await {
                let error = format!("{error:#}");
                tracing::info!(%from, error, "the peer's connection ended");
                connection.close(code::VIOLATION.into(), error.as_bytes());
            }
        });
        while peers.try_join_next().is_some() {}
    }
    drop(closer);
    Ok(())
}

/// Listens as soon as it can. The sockets of an earlier term as primary may still be
/// open for a moment, and an address may come only later, with its network; neither is a
/// reason to take the mount away.
async fn listen(engine: &Arc<Engine>, transport: &Arc<Transport>) -> Vec<Endpoint> {
    let mut last = String::new();
    loop {
        match transport.listen() {
            Ok(endpoints) => {
                if !last.is_empty() {
                    tracing::info!("listening for the peer");
                    engine.set_trouble(None);
                }
                return endpoints;
            }
            Err(error) => {
                let error = format!("the peer cannot connect: {error:#}");
                if error != last {
                    tracing::warn!(error, "trying again");
                    engine.set_trouble(Some(error.clone()));
                    last = error;
                }
            }
        }
        tokio::time::sleep(RETRY_LISTEN).await;
    }
}

struct CloseOnDrop(Vec<Endpoint>);

impl Drop for CloseOnDrop {
    fn drop(&mut self) {
        for endpoint in &self.0 {
            endpoint.close(code::ROLE.into(), b"this node is not primary any more");
        }
    }
}

async fn peer(
    engine: &Arc<Engine>,
    connection: &Connection,
    resyncs: &Arc<Mutex<()>>,
) -> Result<()> {
    let stall = Duration::from_millis(engine.settings().stall_ms);
    let (mut tx, rx) = tokio::time::timeout(STEP, connection.accept_bi())
        .await
        .context("the peer opened no control stream")??;
    let mut control = Incoming::new(rx, stall);
    let frame = tokio::time::timeout(STEP, control.next())
        .await
        .context("the peer sent no hello")??;
    let theirs = match Control::decode(frame)? {
        Control::Hello(theirs) => theirs,
        Control::Visit {
            versions,
            name,
            session,
        } => {
            return host::serve(engine, connection, (tx, control), versions, &name, session).await;
        }
        _ => bail!("the first frame was no hello"),
    };
    let mine = engine.hello(Role::Primary)?;
    send(&mut tx, &[Control::Hello(mine.clone()).encode()]).await?;
    let refuse = async |tx: &mut SendStream, reason: String| -> Result<()> {
        let frame = Control::Refuse {
            reason: reason.clone(),
        };
        send(tx, &[frame.encode()]).await?;
        let _ = tx.finish();
        let _ = tokio::time::timeout(STEP, tx.stopped()).await;
        connection.close(code::REFUSED.into(), reason.as_bytes());
        Ok(())
    };
    if let Err(reason) = common_version(mine.versions, theirs.versions) {
        tracing::warn!(reason, "the peer was refused");
        return refuse(&mut tx, reason).await;
    }
    if theirs.name != mine.name {
        let reason = format!(
            "the peer replicates module {:?}, this node {:?}: check the addresses",
            theirs.name, mine.name
        );
        tracing::warn!(reason, "the peer was refused");
        return refuse(&mut tx, reason).await;
    }
    let decision = decide((&mine.copy, Role::Primary), (&theirs.copy, theirs.role));
    let from = connection.remote_address().to_string();
    let reason = |decision: Decision| {
        let advice = decision.advice();
        advice.unwrap_or_else(|| "the peer has the newer copy".into())
    };
    if theirs.role == Role::Primary {
        // It looks whether this node is primary, too, and never comes for anything else.
        engine.met(&mine, &theirs, &from);
        return refuse(&mut tx, reason(decision.mirrored())).await;
    }
    if let Some((session, applied)) = theirs.resume
        && engine.resume(session, applied)
    {
        engine.set_connection(connection.clone());
        tracing::info!(%session, %applied, "the session goes on");
        send(&mut tx, &[Control::Resume { session }.encode()]).await?;
        return ship(engine, connection, tx, control, session, applied.next()).await;
    }
    if let Some(undecided) = engine.undecided() {
        // Its old session is not settled: only the caller's decision or a resume ends it,
        // or that the peer knows of none and its copy is one that nobody can promote.
        // Not the hello's: a copy whose disk failed is still the better one then.
        let copy = engine.copy().copy;
        // One that only a power cut counts out: the controllers may have agreed to go on with it.
        let counts = theirs.copy.cut && engine.is_controlled();
        let left = is_left_behind(&copy, (&theirs.copy, theirs.role)) && !counts;
        let forgot = theirs.resume.is_none() && left;
        let reason = if forgot && engine.peer_restarted() {
            "this primary goes on alone first; the peer is resynced when it comes again"
        } else {
            undecided
        };
        tracing::warn!(reason, "the peer was refused");
        return refuse(&mut tx, reason.to_owned()).await;
    }
    let method = match decision {
        Decision::Resync {
            source: Which::Me,
            method,
        } => method,
        other => {
            engine.met(&mine, &theirs, &from);
            tracing::warn!(reason = reason(other), "the peer was refused");
            return refuse(&mut tx, reason(other.mirrored())).await;
        }
    };
    let session = SessionId(crate::engine::random_id());
    send(&mut tx, &[Control::Decide { decision, session }.encode()]).await?;
    let target = tokio::time::timeout(STEP * 10, marks(&mut control))
        .await
        .context("the peer's marks did not arrive in time")??;
    tracing::info!(%session, ?method, notes = target.own.notes.len(), objects = target.own.marks.counts().0, "the peer is being brought up to date");
    engine.set_connection(connection.clone());
    // One that an older connection began holds marks that this one needs; with that
    // connection it ends, and gives them back.
    let patience = Duration::from_millis(engine.settings().sync_ms);
    let turn = tokio::select! {
        turn = tokio::time::timeout(patience, resyncs.clone().lock_owned()) => {
            turn.context("the resync of an earlier connection has not ended yet")?
        }
        error = connection.closed() => return Err(error.into()),
    };
    resync(
        engine, connection, tx, control, session, method, target, turn,
    )
    .await
}

async fn marks(control: &mut Incoming) -> Result<Target> {
    let mut target = Target::default();
    let all = &mut target.own;
    let (mut bytes, mut dense) = (0, 0);
    loop {
        match Control::decode(control.next().await?)? {
            Control::OwnMarks { map } => {
                bytes += map.len();
                dense += all.marks.read(&map).context("the peer's marks are none")?;
                if bytes > limits::MAX_TARGET_MAP || dense > limits::MAX_TARGET_CHUNKS {
                    all.marks.mark_everything();
                }
                all.marks.bound();
            }
            Control::Marks {
                intents,
                damaged,
                holds,
                more,
            } => {
                all.notes.extend(intents);
                all.damaged |= damaged;
                target.holds = holds;
                if all.notes.len() > limits::MAX_TARGET_MARKS {
                    bail!(
                        "the peer sends more than {} marks",
                        limits::MAX_TARGET_MARKS
                    );
                }
                if !more {
                    all.damaged |= all.marks.is_everything();
                    return Ok(target);
                }
            }
            Control::Alive => {}
            other => bail!("expected marks, got {other:?}"),
        }
    }
}

async fn resync(
    engine: &Arc<Engine>,
    connection: &Connection,
    mut tx: SendStream,
    control: Incoming,
    session: SessionId,
    method: twinfold_protocol::handshake::Method,
    target: Target,
    turn: OwnedMutexGuard<()>,
) -> Result<()> {
    let (questions, asked) = mpsc::channel(limits::MAX_COMPARE_QUESTIONS);
    let (answered, answers) = std::sync::mpsc::channel();
    let (opened, first) = oneshot::channel();
    let (runner, line) = (engine.clone(), connection.clone());
    let ask = Ask { questions, answers };
    std::thread::Builder::new()
        .name("resync".into())
        .spawn(move || {
            let result =
                runner.run_resync(session, method, target, ask, |seq| opened.send(seq).is_ok());
            if let Err(error) = result {
                tracing::warn!(%session, %error, "the resync did not end");
                runner.resync_failed(session, &line, &error);
            }
            drop(turn);
        })
        .context("cannot start the resync")?;
    let comparing = comparing(engine, connection, asked, answered);
    // The questions end with the comparison; the op stream then begins.
    let over = Notify::new();
    let compared = async {
        let compared = tokio::join!(comparing, first);
        over.notify_one();
        compared
    };
    let first = tokio::select! {
        ((compared, first), ()) = async { tokio::join!(compared, tell(engine, &mut tx, &over)) } => {
            compared.and_then(|()| first.map_err(|_| anyhow!("the resync could not begin")))
        }
        error = connection.closed() => Err(error.into()),
    };
    let first = match first {
        Ok(first) => first,
        Err(error) => {
            // Should it have begun at this very moment: nobody else would end it.
            engine.peer_disconnected(session, &error.to_string());
            return Err(error);
        }
    };
    ship(engine, connection, tx, control, session, first).await
}

/// Carries questions to the target and its answers back, until there are no more.
async fn comparing(
    engine: &Arc<Engine>,
    connection: &Connection,
    mut asked: mpsc::Receiver<CompareRequest>,
    answered: std::sync::mpsc::Sender<CompareAnswer>,
) -> Result<()> {
    let Some(mut next) = asked.recv().await else {
        return Ok(());
    };
    let stall = Duration::from_millis(engine.settings().stall_ms);
    // Hashing what is not in the page cache takes its disk as long as a sync may take.
    let patience = Duration::from_millis(engine.settings().sync_ms);
    let (mut tx, rx) = connection.open_bi().await?;
    let mut rx = Incoming::new(rx, stall);
    let (waiting, more) = (AtomicUsize::new(0), Notify::new());
    let asking = async {
        loop {
            let mut frames = vec![next.encode()];
            while let Ok(question) = asked.try_recv() {
                frames.push(question.encode());
            }
            waiting.fetch_add(frames.len(), Ordering::Relaxed);
            more.notify_one();
            send(&mut tx, &frames).await?;
            match asked.recv().await {
                Some(question) => next = question,
                None => return Ok(()),
            }
        }
    };
    let answering = async {
        loop {
            while waiting.load(Ordering::Relaxed) == 0 {
                more.notified().await;
            }
            let frame = tokio::time::timeout(patience, rx.next())
                .await
                .with_context(|| {
                    let ms = patience.as_millis();
                    format!("the peer did not answer a comparison within {ms} ms")
                })??;
            waiting.fetch_sub(1, Ordering::Relaxed);
            // Whoever asked may have given up.
            let _ = answered.send(CompareAnswer::decode(frame)?);
        }
    };
    // Nobody is left to ask: nobody waits for an answer either.
    tokio::select! {
        ended = asking => ended,
        ended = answering => ended,
    }
}

/// Tells the target now and then how far its resync is, until that is `over`; a frame is
/// never left half written. When it cannot be told, others notice why.
async fn tell(engine: &Arc<Engine>, control: &mut SendStream, over: &Notify) {
    loop {
        tokio::select! {
            () = over.notified() => return,
            () = tokio::time::sleep(TELL) => {}
        }
        if let Some(progress) = engine.resync_progress()
            && let Err(error) = send(control, &[Control::Progress(progress).encode()]).await
        {
            tracing::debug!(%error, "the target is not told any more how far it is");
            return;
        }
    }
}

/// Ships ops and takes receipts until the connection ends.
async fn ship(
    engine: &Arc<Engine>,
    connection: &Connection,
    control_tx: SendStream,
    mut control: Incoming,
    session: SessionId,
    first: Seq,
) -> Result<()> {
    let streams = (control_tx, &mut control);
    let ended = ship_ops(engine, connection, streams, session, first).await;
    let reason = match &ended {
        Ok(()) => "the peer closed the connection".to_owned(),
        Err(e) => format!("{e:#}"),
    };
    engine.peer_disconnected(session, &reason);
    ended
}

async fn ship_ops(
    engine: &Arc<Engine>,
    connection: &Connection,
    (mut control_tx, control): (SendStream, &mut Incoming),
    session: SessionId,
    first: Seq,
) -> Result<()> {
    let (mut tx, rx) = connection.open_bi().await?;
    tx.set_priority(OPS_FIRST)?;
    let start = OpStreamStart {
        session,
        first,
        mode: engine.settings().config().mode,
    };
    send(&mut tx, &[start.encode()]).await?;
    let stall = Duration::from_millis(engine.settings().stall_ms);
    let mut receipts = Incoming::new(rx, stall);
    let (ends, sender) = oneshot::channel();
    let feed = engine.clone();
    // A task of its own: whoever has an op for the wire may carry it on. Nothing takes ops
    // out of the window any more when this function has returned.
    let _sender = tasks::spawn(async move {
        let _ = ends.send(send_ops(&feed, &mut tx).await);
    });
    let receiver = async {
        loop {
            let frame = receipts.next().await?;
            engine.polling.came();
            engine.receipt(Receipt::decode(frame)?)?;
        }
    };
    let leaving = async {
        loop {
            match Control::decode(control.next().await?)? {
                Control::Leave { reason, flushed } => {
                    tracing::info!(reason, flushed, "the peer leaves");
                    engine.peer_left(session, flushed);
                }
                Control::Alive => {}
                other => bail!("unexpected control frame: {other:?}"),
            }
        }
    };
    let telling = async {
        // A resync begins before the ops, and ends for good.
        let mut runs = true;
        loop {
            // Sent outside: a frame is never left half written.
            let frame = tokio::select! {
                () = engine.verify.rejoin(session) => Control::Rejoin {
                    reason: "a verify found that its copy differs".into(),
                },
                () = tokio::time::sleep(TELL), if runs => match engine.resync_progress() {
                    Some(progress) => Control::Progress(progress),
                    None => {
                        runs = false;
                        continue;
                    }
                },
            };
            send(&mut control_tx, &[frame.encode()]).await?;
        }
    };
    let result: Result<(), anyhow::Error> = tokio::select! {
        r = sender => r.context("the sender broke off").flatten(),
        r = receiver => r,
        r = leaving => r,
        r = telling => r,
        r = super::verify::ask(engine, connection) => r,
        e = connection.closed() => Err(e.into()),
    };
    result
}

/// Sends what comes into the window.
async fn send_ops(engine: &Engine, tx: &mut SendStream) -> Result<()> {
    let mut frames = Vec::with_capacity(BATCH);
    loop {
        let more = engine.output.notified();
        if engine.lingers() {
            tokio::select! {
                biased;
                () = engine.urgent.notified() => {}
                () = tokio::time::sleep(LINGER) => {}
            }
        }
        engine.frames(BATCH, &mut frames);
        if frames.is_empty() {
            more.await;
        } else {
            send(tx, &frames).await?;
            frames.clear();
        }
    }
}

#[cfg(test)]
mod tests;
