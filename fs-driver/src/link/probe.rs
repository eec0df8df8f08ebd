//! A primary without a peer looks for its peer, which may be primary as well: only
//! secondaries dial otherwise, and two primaries would never hear of each other.
//! Nothing is moved and nobody stops; both nodes tell their operators.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use quinn::Connection;
use twinfold_protocol::handshake::Role;
use twinfold_protocol::wire::{Control, common_version};

use super::framing::{Incoming, send};
use super::transport::Transport;
use super::{STEP, code, dial};
use crate::engine::Engine;

/// Pause between two looks: one small handshake each, and soon enough for a person.
const EVERY: Duration = Duration::from_secs(3);

/// Looks until the role changes (the caller drops the future).
pub(super) async fn run(engine: &Arc<Engine>, transport: &Arc<Transport>) -> Infallible {
    loop {
        tokio::time::sleep(EVERY).await;
        if !engine.is_primary_without_peer() {
            continue;
        }
        // A secondary does not listen: that nobody answers is what is hoped for.
        let Ok((connection, _)) = dial::connect(transport, 0, STEP).await else {
            continue;
        };
        if let Err(error) = look(engine, &connection).await {
            tracing::debug!(error = format!("{error:#}"), "a look at the peer broke off");
        }
        connection.close(code::ROLE.into(), b"that is all");
    }
}

async fn look(engine: &Arc<Engine>, connection: &Connection) -> Result<()> {
    let (mut tx, rx) = connection.open_bi().await?;
    let stall = Duration::from_millis(engine.settings().stall_ms);
    let mut control = Incoming::new(rx, stall);
    let mine = engine.hello(Role::Primary)?;
    send(&mut tx, &[Control::Hello(mine.clone()).encode()]).await?;
    let frame = tokio::time::timeout(STEP, control.next())
        .await
        .context("the peer sent no hello")??;
    if let Control::Hello(theirs) = Control::decode(frame)?
        && common_version(mine.versions, theirs.versions).is_ok()
        && theirs.name == mine.name
    {
        engine.met(&mine, &theirs, &connection.remote_address().to_string());
    }
    // The peer closes when it has taken up what it was sent.
    let _ = tokio::time::timeout(STEP, connection.closed()).await;
    Ok(())
}
