//! The stream of a verify: questions of its first look, and their answers.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use crossbeam::channel::Sender;
use quinn::{Connection, SendStream, WriteError};
use tokio::sync::mpsc;
use twinfold_protocol::wire::{VerifyAnswer, VerifyRequest, Violation};

use super::framing::{Incoming, send};
use crate::engine::{Asked, Engine};

/// Priority of the verify stream, below everything else on the connection.
const LAST: i32 = -10;

/// Questions sent and not answered, at most: as many as a verify asks at once, and more.
const MAX_ASKED: usize = 16;

/// The primary's end: carries the questions of one verify after the other. Ends with the
/// connection, or when the peer breaks the protocol.
pub(super) async fn ask(engine: &Arc<Engine>, connection: &Connection) -> Result<()> {
    loop {
        let questions = engine.verify.line().await;
        if let Err(error) = carry(engine, connection, questions).await {
            if error.is::<Violation>() || connection.close_reason().is_some() {
                return Err(error);
            }
            // The verify ends for it, not the connection.
            tracing::warn!(error = format!("{error:#}"), "a verify's stream ended");
        }
    }
}

async fn carry(
    engine: &Arc<Engine>,
    connection: &Connection,
    mut questions: mpsc::Receiver<Asked>,
) -> Result<()> {
    let stall = Duration::from_millis(engine.settings().stall_ms);
    // Hashing takes the peer's disk as long as a sync may take.
    let patience = Duration::from_millis(engine.settings().sync_ms);
    let (mut tx, rx) = connection.open_bi().await?;
    tx.set_priority(LAST)?;
    let mut answers = Incoming::new(rx, stall);
    let mut waiting: VecDeque<Sender<VerifyAnswer>> = VecDeque::new();
    loop {
        let room = waiting.len() < MAX_ASKED;
        let next = async {
            match waiting.is_empty() {
                true => std::future::pending().await,
                false => tokio::time::timeout(patience, answers.fill()).await,
            }
        };
        tokio::select! {
            asked = questions.recv(), if room => {
                let Some(asked) = asked else { return Ok(()) };
                send(&mut tx, &[asked.request.encode()]).await?;
                waiting.push_back(asked.answer);
            }
            filled = next => {
                let filled = filled.with_context(|| {
                    format!("the peer did not answer within {} ms", patience.as_millis())
                })??;
                if !filled {
                    bail!("the peer ended the stream");
                }
            }
        }
        while let Some(frame) = answers.ready()? {
            let answer = VerifyAnswer::decode(frame)?;
            let Some(to) = waiting.pop_front() else {
                bail!(Violation::Order(
                    "an answer came that nobody asked for".into()
                ));
            };
            // Nobody waits for it when the verify has just been cancelled.
            let _ = to.send(answer);
        }
    }
}

/// The secondary's end: answers until the questions end.
pub(super) async fn answer(
    engine: Arc<Engine>,
    mut incoming: Incoming,
    mut tx: SendStream,
) -> Result<()> {
    tx.set_priority(LAST)?;
    while let Some(frame) = incoming.next_or_end().await? {
        let request = VerifyRequest::decode(frame)?;
        let worker = engine.clone();
        let answer = tokio::task::spawn_blocking(move || worker.verify_answer(&request)).await?;
        match send(&mut tx, &[answer.encode()]).await {
            Ok(()) => {}
            // The verify was cancelled.
            Err(e) if matches!(e.downcast_ref(), Some(WriteError::Stopped(_))) => return Ok(()),
            Err(e) => return Err(e),
        }
    }
    Ok(())
}
