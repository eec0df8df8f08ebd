//! The secondary's end: finds its primary, and applies what it sends.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use quinn::{Connection, SendStream};
use twinfold_protocol::handshake::{Decision, Role, Which, decide};
use twinfold_protocol::limits;
use twinfold_protocol::marks::Cursor;
use twinfold_protocol::op::Payload;
use twinfold_protocol::wire::{
    CompareAnswer, CompareRequest, Control, OpStreamStart, common_version,
};

use super::apply::{CopyFailed, apply};
use super::blocking::Blocking;
use super::framing::{Incoming, send};
use super::retry::{RETRY, RETRY_FAILED, RETRY_REFUSED, Said, after_refusal, refused_key};
use super::transport::Transport;
use super::{STEP, code};
use crate::engine::{Engine, hashers};

/// Blocks about which questions are answered on one thread in one go.
const TOGETHER: usize = 256;

/// Pause of one network before the next is tried beside it.
const STAGGER: Duration = Duration::from_millis(150);

/// Dials until the role changes (the caller drops the future).
pub(super) async fn run(
    engine: &Arc<Engine>,
    transport: &Arc<Transport>,
    blocking: &Blocking,
) -> Result<()> {
    let mut first = 0;
    let mut failures = 0;
    let mut said = Said::default();
    let stall = Duration::from_millis(engine.settings().stall_ms);
    let mut refused: Option<std::time::Instant> = None;
    loop {
        // What an earlier connection has begun to apply is applied before anything is said
        // about what is.
        blocking.settled().await;
        if engine.must_host() {
            // Its primary has been told or is gone, perhaps for good. The role changes, and this
            // future is dropped.
            engine.begin_hosting();
            return std::future::pending().await;
        }
        let mut pause = RETRY;
        match connect(transport, first, STEP).await {
            Ok((connection, network)) => {
                // The network that worked is tried first the next time.
                first = network;
                let guard = CloseOnDrop(connection.clone());
                let ended = primary(engine, blocking, &connection).await;
                blocking.settled().await;
                let since = match &ended {
                    Ok(Ended::Refused(_)) => *refused.get_or_insert_with(std::time::Instant::now),
                    _ => {
                        refused = None;
                        std::time::Instant::now()
                    }
                };
                match ended {
                    Ok(Ended::Refused(reason)) => {
                        engine.set_trouble(Some(reason));
                        let current = engine.standby_was_current();
                        pause = after_refusal(current, since.elapsed(), stall);
                    }
                    Ok(Ended::Failed(error)) => {
                        let reason = error.to_string();
                        if said.is_new(&reason) {
                            tracing::error!(reason, "this copy cannot be brought up");
                        }
                        engine.set_trouble(Some(reason));
                        pause = (RETRY_REFUSED * 2u32.pow(failures)).min(RETRY_FAILED);
                        failures = (failures + 1).min(5);
                    }
                    Ok(Ended::Lost) => (failures, said) = (0, Said::default()),
                    Err(error) => {
                        let reason = refused_key(&error).unwrap_or_else(|| format!("{error:#}"));
                        if engine.standby_was_current() {
                            // Only the line broke: back at once.
                            (failures, said) = (0, Said::default());
                        } else {
                            pause = (RETRY * 2u32.pow(failures)).min(RETRY_REFUSED);
                            failures = (failures + 1).min(5);
                        }
                        if said.is_new(&reason) {
                            tracing::warn!(error = reason, "the connection to the primary ended");
                        } else {
                            tracing::debug!(error = reason, "the connection ended again");
                        }
                        // Nothing happens to one that is closed already.
                        connection.close(code::VIOLATION.into(), reason.as_bytes());
                        engine.set_trouble(Some(reason));
                    }
                }
                engine.clear_connection(&connection);
                drop(guard);
                if engine.must_host() {
                    continue;
                }
            }
            Err(error) => {
                tracing::debug!(error = format!("{error:#}"), "no primary was reached");
                if let Some(reason) = refused_key(&error) {
                    engine.set_trouble(Some(reason));
                    pause = RETRY_REFUSED;
                }
            }
        }
        tokio::time::sleep(pause).await;
    }
}

struct CloseOnDrop(Connection);

impl Drop for CloseOnDrop {
    fn drop(&mut self) {
        self.0
            .close(code::ROLE.into(), b"this node is not secondary any more");
    }
}

/// Tries the peer's addresses, beginning with number `first`, each a moment after
/// the one before, and takes the first that answers.
pub(super) async fn connect(
    transport: &Arc<Transport>,
    first: usize,
    patience: Duration,
) -> Result<(Connection, usize)> {
    let mut attempts = tokio::task::JoinSet::new();
    let count = transport.peers.len();
    for step in 0..count {
        let network = (first + step) % count;
        let transport = transport.clone();
        attempts.spawn(async move {
            tokio::time::sleep(STAGGER * step as u32).await;
            let address = transport.peers[network];
            let endpoint = transport.dialler(address)?;
            let connecting = endpoint.connect(address, transport.server_name())?;
            let connection = tokio::time::timeout(patience, connecting)
                .await
                .with_context(|| format!("{address} did not answer"))?
                .with_context(|| format!("no connection to {address}"))?;
            Ok::<_, anyhow::Error>((connection, network))
        });
    }
    let mut last = anyhow!("no address of the peer is known");
    while let Some(done) = attempts.join_next().await {
        match done.context("a connection attempt broke off")? {
            Ok(found) => return Ok(found),
            // A refusal says more than an address that does not answer.
            Err(_) if refused_key(&last).is_some() => {}
            Err(error) => last = error,
        }
    }
    Err(last)
}

enum Ended {
    /// This copy cannot apply what it is sent, and why.
    Failed(anyhow::Error),
    /// The primary will not have this copy, and why.
    Refused(String),
    /// The connection was lost.
    Lost,
}

async fn primary(
    engine: &Arc<Engine>,
    blocking: &Blocking,
    connection: &Connection,
) -> Result<Ended> {
    let (mut tx, rx) = connection.open_bi().await?;
    let stall = Duration::from_millis(engine.settings().stall_ms);
    let mut control = Incoming::new(rx, stall);
    let mine = engine.hello(Role::Secondary)?;
    send(&mut tx, &[Control::Hello(mine.clone()).encode()]).await?;
    let next = async |control: &mut Incoming| -> Result<Control> {
        let frame = tokio::time::timeout(STEP, control.next())
            .await
            .context("the primary did not answer in time")??;
        Ok(Control::decode(frame)?)
    };
    let theirs = match next(&mut control).await? {
        Control::Hello(hello) => hello,
        Control::Refuse { reason } => return Ok(Ended::Refused(reason)),
        other => bail!("expected a hello, got {other:?}"),
    };
    if let Err(reason) = common_version(mine.versions, theirs.versions) {
        return Ok(Ended::Refused(reason));
    }
    if theirs.name != mine.name {
        return Ok(Ended::Refused(format!(
            "the primary replicates module {:?}, this node {:?}: check the addresses",
            theirs.name, mine.name
        )));
    }
    let own = decide((&mine.copy, Role::Secondary), (&theirs.copy, theirs.role));
    let target = matches!(
        own,
        Decision::Resync {
            source: Which::Peer,
            ..
        }
    );
    match next(&mut control).await? {
        // The table would have this copy resynced, but the primary still has a session
        // open that this process does not know. It may go on once this copy cannot.
        // Where there is a controller, it is for that to give way.
        Control::Refuse { .. }
            if target
                && mine.resume.is_none()
                && mine.copy.up_to_date
                && !engine.is_controlled() =>
        {
            let noting = engine.clone();
            return Ok(match blocking.run(move || noting.standby_forgot()).await {
                Ok(()) => Ended::Lost,
                Err(error) => Ended::Failed(CannotNote(error).into()),
            });
        }
        Control::Refuse { reason } => {
            engine.met(&mine, &theirs, &connection.remote_address().to_string());
            return Ok(Ended::Refused(reason));
        }
        Control::Resume { session } => {
            if mine.resume.map(|(mine, _)| mine) != Some(session) {
                bail!("the primary resumes a session that is not this node's");
            }
            tracing::info!(%session, "the session goes on");
        }
        Control::Decide { decision, session } => {
            // Both decide from the same facts; if they differ, one of them is wrong, and nothing moves.
            if own != decision.mirrored() {
                bail!("the primary decided {decision:?}, this node {own:?}: nothing is moved");
            }
            if !target {
                bail!("this copy would be the source, but this node is secondary");
            }
            let (keeper, source) = (engine.clone(), theirs.copy.clone());
            tokio::task::spawn_blocking(move || keeper.keep_before_resync(own, &source))
                .await?
                .context(
                    "what this copy has cannot be kept, so it is not overwritten: make room, or \
                     run `resync --discard-this-copy --without-archive`",
                )?;
            let noting = engine.clone();
            let begun = blocking.run(move || noting.standby_begin(session, own, &theirs));
            if let Err(error) = begun.await {
                let error = CannotNote(error);
                connection.close(code::REFUSED.into(), error.to_string().as_bytes());
                return Ok(Ended::Failed(error.into()));
            }
            send_marks(engine, blocking, &mut tx).await?;
        }
        other => bail!("expected a decision, got {other:?}"),
    }
    engine.set_trouble(None);
    engine.no_conflict();
    engine.set_connection(connection.clone());
    follow(engine, blocking, connection, tx, control).await
}

/// This node's state does not take that its copy is not up to date.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot note that this copy is not up to date: {0}; repair the file system under the store and \
     restart this node"
)]
struct CannotNote(#[source] std::io::Error);

async fn send_marks(engine: &Arc<Engine>, blocking: &Blocking, tx: &mut SendStream) -> Result<()> {
    let reading = engine.clone();
    let (own, holds) = blocking
        .run(move || (reading.own_changes(), reading.standby_holds()))
        .await;
    let own = own.context("cannot read the intents")?;
    let holds = holds.context("cannot look into the store")?;
    // Everything is compared then; what is known adds nothing.
    let damaged = own.damaged || own.notes.len() > limits::MAX_TARGET_MARKS;
    let (map, notes) = match damaged {
        true => Default::default(),
        false => (own.marks, own.notes),
    };
    let (mut cursor, mut more) = (Cursor::default(), true);
    while more {
        let mut part = Vec::new();
        more = map.write(&mut cursor, limits::MAX_MAP_BYTES, &mut part);
        if !part.is_empty() {
            let frame = Control::OwnMarks { map: part.into() };
            send(tx, &[frame.encode()]).await?;
        }
    }
    let mut marks = notes.into_iter().peekable();
    loop {
        let intents = marks.by_ref().take(limits::MAX_MARKS_PER_FRAME).collect();
        let more = marks.peek().is_some();
        let frame = Control::Marks {
            intents,
            damaged,
            holds,
            more,
        };
        send(tx, &[frame.encode()]).await?;
        if !more {
            return Ok(());
        }
    }
}

/// Serves the primary's streams until the connection ends.
async fn follow(
    engine: &Arc<Engine>,
    blocking: &Blocking,
    connection: &Connection,
    mut control: SendStream,
    mut asked: Incoming,
) -> Result<Ended> {
    // The streams stay open until the leave has arrived: their end would come first.
    let streams = streams(engine, blocking, connection);
    tokio::pin!(streams);
    let reason = tokio::select! {
        ended = &mut streams => Err(ended),
        () = engine.leaving.notified() => Ok("the secondary was stopped".to_owned()),
        reason = asked_to_rejoin(engine, &mut asked) => Ok(reason?),
    };
    let ended = match reason {
        Err(ended) => ended,
        Ok(reason) => {
            let (done, left) = tokio::sync::oneshot::channel();
            engine.standby_leave(move |result| drop(done.send(result)));
            let left = left.await.context("leaving broke off")??;
            let leave = Control::Leave {
                reason,
                flushed: left.flushed,
            };
            send(&mut control, &[leave.encode()]).await?;
            let _ = control.finish();
            let told = tokio::time::timeout(STEP, control.stopped()).await;
            if left.was_current && left.flushed && matches!(told, Ok(Ok(None))) {
                let engine = engine.clone();
                tokio::task::spawn_blocking(move || engine.standby_left()).await?;
            }
            Ok(())
        }
    };
    match ended {
        Ok(()) => Ok(Ended::Lost),
        Err(e) if e.is::<CopyFailed>() => Ok(Ended::Failed(e)),
        Err(e) => Err(e),
    }
}

/// Waits until the primary asks this node to leave and to come back, and why.
async fn asked_to_rejoin(engine: &Arc<Engine>, control: &mut Incoming) -> Result<String> {
    loop {
        match control.next_or_end().await? {
            Some(frame) => match Control::decode(frame)? {
                Control::Rejoin { reason } => {
                    tracing::warn!(reason, "the primary asks this node to be brought up again");
                    return Ok(reason);
                }
                Control::Progress(progress) => engine.standby_progress(progress),
                Control::Alive => {}
                other => bail!("unexpected control frame: {other:?}"),
            },
            // The end of the connection is noticed elsewhere.
            None => return std::future::pending().await,
        }
    }
}

async fn streams(engine: &Arc<Engine>, blocking: &Blocking, connection: &Connection) -> Result<()> {
    let stall = Duration::from_millis(engine.settings().stall_ms);
    let mut compares = tokio::task::JoinSet::new();
    loop {
        let (stream_tx, stream_rx) = tokio::select! {
            accepted = connection.accept_bi() => accepted?,
            Some(ended) = compares.join_next() => {
                ended??;
                continue;
            }
        };
        let mut incoming = Incoming::new(stream_rx, stall);
        let first = incoming.next().await?;
        // The kind byte of the first frame tells which stream it is.
        if first
            .to_bytes()
            .first()
            .is_some_and(|kind| CompareRequest::is_first(*kind))
        {
            compares.spawn(compare(engine.clone(), first, incoming, stream_tx));
            continue;
        }
        let (start, starting) = (OpStreamStart::decode(first)?, engine.clone());
        blocking.run(move || starting.standby_start(start)).await?;
        let applying = apply(engine, blocking, connection, incoming, stream_tx);
        tokio::pin!(applying);
        loop {
            tokio::select! {
                ended = &mut applying => return ended,
                Some(ended) = compares.join_next() => ended??,
                accepted = connection.accept_bi() => {
                    let (tx, rx) = accepted?;
                    let incoming = Incoming::new(rx, stall);
                    compares.spawn(super::verify::answer(engine.clone(), incoming, tx));
                }
            }
        }
    }
}

/// Answers questions, several at once, in their order.
async fn compare(
    engine: Arc<Engine>,
    first: Payload,
    mut incoming: Incoming,
    mut tx: SendStream,
) -> Result<()> {
    let most = hashers() + 1;
    let mut running = VecDeque::new();
    let (mut frame, mut ended) = (Some(first), false);
    loop {
        if let Some(frame) = frame.take() {
            // Small questions are answered together.
            let mut questions = vec![CompareRequest::decode(frame)?];
            let mut work = weight(&questions[0]);
            while work < TOGETHER
                && let Some(frame) = incoming.ready()?
            {
                let question = CompareRequest::decode(frame)?;
                work += weight(&question);
                questions.push(question);
            }
            let worker = engine.clone();
            running.push_back(tokio::task::spawn_blocking(move || {
                let answers = questions.into_iter().map(|q| worker.compare_answer(q));
                answers.collect::<std::io::Result<Vec<_>>>()
            }));
        }
        let more = !ended && running.len() < most;
        let answered = async {
            match running.front_mut() {
                Some(answers) => answers.await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            answers = answered => {
                running.pop_front();
                let frames: Vec<_> = answers??.iter().map(CompareAnswer::encode).collect();
                send(&mut tx, &frames).await?;
            }
            next = incoming.next_or_end(), if more => {
                frame = next?;
                ended = frame.is_none();
            }
        }
        // The end of the questions is the end of the stream.
        if ended && running.is_empty() {
            return Ok(());
        }
    }
}

/// What a question costs, in blocks to be hashed.
fn weight(question: &CompareRequest) -> usize {
    match question {
        CompareRequest::Blocks { blocks, .. } => 1 + *blocks as usize,
        CompareRequest::Objects { files } => 1 + files.len(),
        CompareRequest::Match { entries, .. } => 1 + entries.len(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::StandbyError;

    #[test]
    fn why_a_copy_failed_is_known_to_the_last() {
        let broken = || std::io::Error::from_raw_os_error(libc::EIO);
        let failed = CopyFailed(StandbyError::Put {
            op: "write",
            source: broken(),
        });
        for error in [failed.into(), CannotNote(broken()).into()] {
            let error: anyhow::Error = error;
            let code = error
                .chain()
                .find_map(|e| e.downcast_ref::<std::io::Error>()?.raw_os_error());
            assert_eq!(code, Some(libc::EIO), "{error:#}");
        }
    }
}
