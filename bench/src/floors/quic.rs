//! Bare QUIC between two processes, with the driver's own sockets, keys and
//! settings: request and answer, and one stream's throughput.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use fs_driver::link::{Identity, Transport};
use fs_driver::state::Settings;

use crate::load::{Measured, Tally};

/// Bytes of the answer to a request.
pub(super) const ANSWER: usize = 29;

/// Bytes of a piece of the stream.
pub(super) const PIECE: usize = 1 << 20;

fn transport(dir: &Path) -> Result<(Transport, Settings)> {
    let settings = Settings::load(dir)?;
    let identity = Identity::load(&dir.join("id"))?;
    Ok((Transport::new(&settings, &identity)?, settings))
}

/// Answers: reads requests of `size` bytes (the first four bytes of a stream say
/// how many) and answers each; size zero: reads to the end, then answers once.
pub(crate) fn serve(dir: &Path) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let (transport, _) = transport(dir)?;
        let endpoints = transport.listen()?;
        let endpoint = endpoints.first().context("no endpoint")?;
        while let Some(incoming) = endpoint.accept().await {
            let Ok(connection) = incoming.await else {
                continue;
            };
            while let Ok((tx, rx)) = connection.accept_bi().await {
                tokio::spawn(answer(tx, rx));
            }
        }
        Ok(())
    })
}

async fn answer(mut tx: quinn::SendStream, mut rx: quinn::RecvStream) -> Result<()> {
    let mut word = [0; 4];
    rx.read_exact(&mut word).await?;
    let size = u32::from_le_bytes(word) as usize;
    let mut left = size;
    while let Some(chunk) = rx.read_chunk(1 << 20, true).await? {
        let mut n = chunk.bytes.len();
        if size == 0 {
            continue;
        }
        while n >= left {
            n -= left;
            left = size;
            tx.write_all(&[7; ANSWER]).await?;
        }
        left -= n;
    }
    if size == 0 {
        tx.write_all(&[7; ANSWER]).await?;
    }
    tx.finish()?;
    let _ = tx.stopped().await;
    Ok(())
}

/// The asking end.
#[derive(Debug)]
pub(crate) struct Client {
    runtime: tokio::runtime::Runtime,
    connection: quinn::Connection,
}

impl Client {
    /// Connects to the server, which may still be starting.
    pub(crate) fn connect(dir: &Path) -> Result<Client> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let connection = runtime.block_on(async {
            let (transport, settings) = transport(dir)?;
            let to = *settings.peer.first().context("no peer")?;
            let endpoint = transport.dialler(to)?;
            for _ in 0..50 {
                let connecting = endpoint.connect(to, transport.server_name())?;
                if let Ok(Ok(connection)) =
                    tokio::time::timeout(Duration::from_millis(300), connecting).await
                {
                    return Ok(connection);
                }
            }
            bail!("the QUIC floor's server does not answer")
        })?;
        Ok(Client {
            runtime,
            connection,
        })
    }

    /// Requests of `size` bytes, one after the other.
    pub(crate) fn round_trips(&self, size: usize, time: Duration) -> Result<Measured> {
        self.runtime.block_on(async {
            let (mut tx, mut rx) = self.connection.open_bi().await?;
            tx.write_all(&(size as u32).to_le_bytes()).await?;
            let payload = payload(size);
            let mut answer = [0; ANSWER];
            let mut tally = Tally::begin()?;
            while tally.elapsed() < time {
                let asked = Instant::now();
                tx.write_chunk(payload.clone()).await?;
                rx.read_exact(&mut answer).await?;
                tally.step(asked, size);
            }
            let measured = tally.end();
            tx.finish()?;
            Ok(measured)
        })
    }

    /// Pieces of 1 MiB through one stream, received to the last byte. The time of a
    /// piece is what it takes to be handed over.
    pub(crate) fn stream(&self, time: Duration) -> Result<Measured> {
        self.runtime.block_on(async {
            let (mut tx, mut rx) = self.connection.open_bi().await?;
            tx.write_all(&0u32.to_le_bytes()).await?;
            let piece = payload(PIECE);
            let mut tally = Tally::begin()?;
            while tally.elapsed() < time {
                let begin = Instant::now();
                tx.write_chunk(piece.clone()).await?;
                tally.step(begin, piece.len());
            }
            tx.finish()?;
            let mut answer = [0; ANSWER];
            rx.read_exact(&mut answer).await?;
            Ok(tally.end())
        })
    }
}

fn payload(size: usize) -> bytes::Bytes {
    vec![0x33; size].into()
}

/// Keys and settings of the floor's two ends.
pub(crate) fn prepare(dir: &Path, ports: (u16, u16)) -> Result<(PathBuf, PathBuf)> {
    let (server, client) = (dir.join("quic-server"), dir.join("quic-client"));
    let make = |d: &Path| {
        std::fs::create_dir_all(d)?;
        Identity::load_or_create(&d.join("id"))
    };
    let (s, c) = (make(&server)?, make(&client)?);
    let address = |port: u16| std::net::SocketAddr::from(([127, 0, 0, 1], port));
    for (home, peer, me, other) in [
        (&server, c.fingerprint(), ports.0, ports.1),
        (&client, s.fingerprint(), ports.1, ports.0),
    ] {
        let mut settings = Settings::new("floor", home, &peer.to_string());
        settings.listen = vec![address(me)];
        settings.peer = vec![address(other)];
        settings.save(home)?;
    }
    Ok((server, client))
}
