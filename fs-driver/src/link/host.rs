//! Serving a visitor: the peer, whose disk has failed, and whose calls are carried out here.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, bail};
use parking_lot::Mutex;
use quinn::{Connection, SendStream};
use tokio::sync::mpsc;
use twinfold_protocol::ids::SessionId;
use twinfold_protocol::limits;
use twinfold_protocol::remote::{Answer, Failure};
use twinfold_protocol::wire::{Answered, Call, Control, Hello, common_version};

use super::framing::{Incoming, send};
use super::{STEP, code};
use crate::engine::{Engine, Guest, Need};

/// Serves the visitor that came with a Visit until it goes.
pub(super) async fn serve(
    engine: &Arc<Engine>,
    connection: &Connection,
    (mut tx, mut calls): (SendStream, Incoming),
    versions: (u16, u16),
    name: &str,
    session: SessionId,
) -> Result<()> {
    let objection = match common_version(Hello::VERSIONS, versions) {
        Err(reason) => Some(reason),
        Ok(_) if name != engine.settings().name => Some(format!(
            "the peer replicates module {name:?}, this node {:?}: check the addresses",
            engine.settings().name
        )),
        Ok(_) if engine.hosting() != Some(session) => {
            Some("this node has its own application, or none, on this data".to_owned())
        }
        Ok(_) => None,
    };
    if let Some(reason) = objection {
        tracing::warn!(reason, "the peer's calls are refused");
        let refuse = Control::Refuse {
            reason: reason.clone(),
        };
        send(&mut tx, &[refuse.encode()]).await?;
        let _ = tx.finish();
        let _ = tokio::time::timeout(STEP, tx.stopped()).await;
        connection.close(code::REFUSED.into(), reason.as_bytes());
        return Ok(());
    }
    engine.set_connection(connection.clone());
    tracing::info!("the peer's calls are carried out here");
    send(&mut tx, &[Control::Welcome.encode()]).await?;
    let (to, mut answers) = mpsc::unbounded_channel();
    let guest = engine.guest().clone();
    guest.lock().connected(session, to.clone());
    let sender = async {
        while let Some(answered) = answers.recv().await {
            send(&mut tx, &[answered.encode()]).await?;
        }
        Ok::<(), anyhow::Error>(())
    };
    let receiver = async {
        loop {
            let call = Call::decode(calls.next().await?)?;
            let need = guest.lock().takes(&call);
            match need {
                Need::Nothing => {}
                Need::Answer(answer) => {
                    let _ = to.send(Answered {
                        id: call.id,
                        answer,
                    });
                }
                Need::Doing => carry_out(engine, &guest, session, call)?,
            }
        }
    };
    tokio::select! {
        ended = sender => ended,
        ended = receiver => ended,
        error = connection.closed() => Err(error.into()),
    }
}

fn carry_out(
    engine: &Arc<Engine>,
    guest: &Arc<Mutex<Guest>>,
    session: SessionId,
    call: Call,
) -> Result<()> {
    if guest.lock().running() > limits::MAX_REMOTE_CALLS {
        bail!(
            "the peer has more than {} calls under way",
            limits::MAX_REMOTE_CALLS
        );
    }
    let (engine, guest) = (engine.clone(), guest.clone());
    // Not on the link's thread: the disk is waited for.
    tokio::task::spawn_blocking(move || {
        let (id, refused) = (call.id, guest.clone());
        let reply = Box::new(move |answer| guest.lock().answers(id, answer));
        if !engine.carry_out(session, call.request, reply) {
            let answer = Answer::Failed(Failure::ReadOnly);
            refused.lock().answers(id, answer);
        }
    });
    Ok(())
}

/// Pause before a visitor that was refused comes again.
pub(super) const RETRY_REFUSED: Duration = Duration::from_secs(1);
