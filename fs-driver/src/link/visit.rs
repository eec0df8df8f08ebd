//! Visiting the peer: this node's disk has failed, the peer has taken over, and the calls
//! of this node's application are sent there.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use quinn::Connection;
use twinfold_protocol::ids::SessionId;
use twinfold_protocol::wire::{Answered, Control, Hello};

use super::STEP;
use super::dial::connect;
use super::framing::{Incoming, send};
use super::host::RETRY_REFUSED;
use super::transport::Transport;
use crate::engine::{Engine, Place, clock};

/// Pause between two rounds over the peer's addresses.
const RETRY: Duration = Duration::from_millis(20);

/// How long one attempt may take at first: the peer begins to listen at this moment, and
/// what was sent a little too early is not answered.
const FIRST: Duration = Duration::from_millis(100);

/// How long the answer to the question whether the peer takes over is waited for before
/// the peer itself is asked: it may have been lost on the way.
const HEARD: Duration = Duration::from_secs(2);

/// Frames handed to QUIC at once.
const BATCH: usize = 64;

/// Waits until the disk fails, asks the peer to take over, and then sends it calls, until
/// the role changes (the caller drops the future).
pub(super) async fn run(engine: &Arc<Engine>, transport: &Arc<Transport>) -> Result<()> {
    let mut place = engine.watch_place();
    loop {
        let now = *place.borrow_and_update();
        match now {
            Place::Here => {}
            Place::Asking(session) => {
                let asking = engine.clone();
                tokio::task::spawn_blocking(move || asking.ask_to_take_over()).await?;
                let answered = place.wait_for(|place| *place != Place::Asking(session));
                let heard = tokio::time::timeout(HEARD, answered).await.is_ok();
                if !heard {
                    tokio::select! {
                        () = visit(engine, transport, session) => {}
                        changed = place.wait_for(|place| *place == Place::Here) => drop(changed?),
                    }
                }
                continue;
            }
            Place::Peer(session) => visit(engine, transport, session).await,
        }
        place.changed().await?;
    }
}

/// Sends calls over one connection after the other, for ever.
async fn visit(engine: &Arc<Engine>, transport: &Arc<Transport>, session: SessionId) {
    let (mut first, mut patience) = (0, FIRST);
    loop {
        let mut pause = RETRY;
        match connect(transport, first, patience).await {
            Ok((connection, network)) => {
                (first, patience) = (network, FIRST);
                match calls(engine, &connection, session).await {
                    Ok(reason) => {
                        tracing::error!(reason, "the peer does not carry out calls any more");
                        engine.calls().refuse(&reason);
                        engine.set_trouble(Some(reason));
                        pause = RETRY_REFUSED;
                    }
                    Err(error) => {
                        let error = format!("{error:#}");
                        tracing::warn!(error, "the connection to the peer ended");
                    }
                }
                engine.calls().disconnected(clock::now());
                connection.close(super::code::ROLE.into(), b"the visit ended");
            }
            Err(error) => {
                patience = (patience * 2).min(STEP);
                tracing::debug!(error = format!("{error:#}"), "the peer was not reached");
            }
        }
        tokio::time::sleep(pause).await;
    }
}

/// Sends calls until the connection ends; returns the reason when they are refused.
async fn calls(
    engine: &Arc<Engine>,
    connection: &Connection,
    session: SessionId,
) -> Result<String> {
    let (mut tx, rx) = connection.open_bi().await?;
    let stall = Duration::from_millis(engine.settings().stall_ms);
    let mut answers = Incoming::new(rx, stall);
    let visit = Control::Visit {
        versions: Hello::VERSIONS,
        name: engine.settings().name.clone(),
        session,
    };
    send(&mut tx, &[visit.encode()]).await?;
    let frame = tokio::time::timeout(STEP, answers.next())
        .await
        .context("the peer did not answer in time")??;
    match Control::decode(frame)? {
        Control::Welcome => {}
        Control::Refuse { reason } => return Ok(reason),
        other => bail!("expected a welcome, got {other:?}"),
    }
    // It took over, also if the answer to that was lost.
    engine.peer_welcomes();
    engine.calls().connected();
    let sender = async {
        let mut frames = Vec::with_capacity(BATCH);
        loop {
            let more = engine.calls().wake.notified();
            engine.calls().frames(BATCH, &mut frames);
            if frames.is_empty() {
                more.await;
            } else {
                send(&mut tx, &frames).await?;
                frames.clear();
            }
        }
    };
    let receiver = async {
        loop {
            engine
                .calls()
                .answered(Answered::decode(answers.next().await?)?)?;
        }
    };
    tokio::select! {
        ended = sender => ended,
        ended = receiver => ended,
        error = connection.closed() => Err(error.into()),
    }
}
