//! Bare QUIC between two processes, with the driver's own keys: request and answer, and one
//! stream's throughput. With the driver's sockets and settings, or with quinn's own.

use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use fs_driver::link::{Identity, Transport};
use fs_driver::state::Settings;

use crate::load::{Measured, Tally};

/// Bytes of the answer to a request.
pub(super) const ANSWER: usize = 29;

/// Bytes of a piece of the stream.
pub(super) const PIECE: usize = 1 << 20;

/// With whose sockets and settings.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub(crate) enum Tuning {
    /// The driver's.
    Driver,
    /// Quinn's, as they come.
    Stock,
}

impl Tuning {
    /// As it is given on a command line.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Tuning::Driver => "driver",
            Tuning::Stock => "stock",
        }
    }

    fn listen(self, transport: &Transport, at: SocketAddr) -> Result<quinn::Endpoint> {
        match self {
            Tuning::Driver => transport
                .listen()?
                .into_iter()
                .next()
                .context("no endpoint"),
            Tuning::Stock => Ok(quinn::Endpoint::server(transport.stock().0, at)?),
        }
    }

    fn dialler(self, transport: &Transport, to: SocketAddr) -> Result<quinn::Endpoint> {
        if self == Tuning::Driver {
            return transport.dialler(to);
        }
        let mut endpoint = quinn::Endpoint::client((std::net::Ipv4Addr::LOCALHOST, 0).into())?;
        endpoint.set_default_client_config(transport.stock().1);
        Ok(endpoint)
    }
}

fn transport(dir: &Path) -> Result<(Transport, Settings)> {
    let settings = Settings::load(dir)?;
    let identity = Identity::load(&dir.join("id"))?;
    Ok((Transport::new(&settings, &identity)?, settings))
}

/// Answers: reads requests of `size` bytes (the first four bytes of a stream say
/// how many) and answers each; size zero: reads to the end, then answers once.
pub(crate) fn serve(dir: &Path, tuning: Tuning) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let (transport, settings) = transport(dir)?;
        let at = *settings.listen.first().context("no address")?;
        let endpoint = tuning.listen(&transport, at)?;
        while let Some(incoming) = endpoint.accept().await {
            let Ok(connection) = incoming.await else {
                continue;
            };
            // One that has gone without a word does not keep the next one waiting.
            tokio::spawn(async move {
                while let Ok((tx, rx)) = connection.accept_bi().await {
                    tokio::spawn(answer(tx, rx));
                }
            });
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
    pub(crate) fn connect(dir: &Path, tuning: Tuning) -> Result<Client> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let connection = runtime.block_on(async {
            let (transport, settings) = transport(dir)?;
            let to = *settings.peer.first().context("no peer")?;
            let endpoint = tuning.dialler(&transport, to)?;
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

/// Makes the key of an end of the floor below `dir`; its identity.
pub(crate) fn identity(dir: &Path) -> Result<String> {
    let identity = Identity::load_or_create(&dir.join("id"))?;
    Ok(identity.fingerprint().to_string())
}

/// Tells an end where it is, and which other end it talks to.
pub(crate) fn settle(dir: &Path, here: SocketAddr, id: &str, other: SocketAddr) -> Result<()> {
    let mut settings = Settings::new("floor", dir, id);
    settings.listen = vec![here];
    settings.peer = vec![other];
    settings.save(dir)
}
