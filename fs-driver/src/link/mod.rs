//! The connection between the two nodes: QUIC, both ends authenticated by keys
//! that were exchanged beforehand.
//!
//! The secondary dials, the primary accepts. A primary without a peer looks now and then
//! whether its peer is primary, too (`probe`). On each connection:
//!
//! | stream | opened by | carries |
//! |---|---|---|
//! | control | secondary | hellos, the decision, the target's marks, leaving |
//! | ops | primary | ops; receipts come back on it |
//! | compare | primary | block hashes, before a resync |
//! | verify | primary | digests, while both are paired |
//!
//! A primary whose disk has failed dials its peer, which has taken over, and sends its calls
//! there on one stream (`visit`, `host`).

mod apply;
mod blocking;
mod busy;
mod dial;
mod framing;
mod host;
mod identity;
mod presence;
mod probe;
mod retry;
mod serve;
mod socket;
mod tls;
mod transport;
mod verify;
mod visit;

pub use identity::{Fingerprint, Identity, SERVER_NAME};
pub use presence::Presence;
pub use tls::{open_config, pinned_configs};
pub use transport::Transport;

use std::sync::Arc;

use anyhow::Result;
use twinfold_protocol::handshake::Role;

use crate::engine::Engine;
use blocking::Blocking;

/// How long one connection attempt, and each step of a handshake, may take.
const STEP: std::time::Duration = std::time::Duration::from_secs(2);

/// Reasons a connection is closed with.
mod code {
    /// The other side was refused.
    pub(super) const REFUSED: u32 = 3;
    /// The other side broke the protocol.
    pub(super) const VIOLATION: u32 = 4;
    /// The role of this node changed.
    pub(super) const ROLE: u32 = 5;
}

/// Runs the link of one folder on this thread until the role watch closes: serves while
/// primary, dials while secondary.
pub fn run(engine: Arc<Engine>, transport: Transport) -> Result<()> {
    let blocking = Arc::default();
    blocking::serve(roles(engine, transport, Arc::clone(&blocking)), &blocking).flatten()
}

async fn roles(engine: Arc<Engine>, transport: Transport, blocking: Arc<Blocking>) -> Result<()> {
    let transport = Arc::new(transport);
    let mut role = engine.watch_role();
    let resyncs = Arc::default();
    let ticker = tokio::spawn(tick(engine.clone()));
    let polled = engine.clone();
    let poller = tokio::spawn(async move { polled.polling.run().await });
    loop {
        let now = *role.borrow_and_update();
        // What was said of the role before is no matter any more.
        engine.no_conflict();
        let work = async {
            match now {
                Some(Role::Primary) => {
                    // What this node had to say about its primary is no trouble any more.
                    engine.set_trouble(None);
                    tokio::select! {
                        ended = serve::run(&engine, &transport, &resyncs) => ended,
                        ended = visit::run(&engine, &transport) => ended,
                        never = probe::run(&engine, &transport) => match never {},
                    }
                }
                Some(Role::Secondary) => dial::run(&engine, &transport, &blocking).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            done = work => done?,
            changed = role.changed() => if changed.is_err() { break },
        }
    }
    ticker.abort();
    poller.abort();
    Ok(())
}

/// How often deadlines are looked at while something is to be done by one.
const TICK: std::time::Duration = std::time::Duration::from_millis(200);

/// How often otherwise. Nothing that begins is due sooner than `stall` after that, so that it is
/// seen in time if this is a part of it.
const RESTING_TICK: std::time::Duration = std::time::Duration::from_secs(1);

/// Keeps the deadlines.
async fn tick(engine: Arc<Engine>) {
    let stall = std::time::Duration::from_millis(engine.settings().stall_ms);
    let resting = RESTING_TICK.min(stall / 2);
    loop {
        let wait = match engine.tick() {
            Some(at) => at.since(crate::engine::clock::now()).min(TICK),
            None if engine.is_away() => TICK,
            None => resting,
        };
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = engine.deadlines.notified() => {}
        }
    }
}
