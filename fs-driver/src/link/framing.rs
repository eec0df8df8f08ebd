//! Whole frames in and out of QUIC streams.

use std::time::Duration;

use anyhow::{Result, bail};
use bytes::Bytes;
use quinn::{RecvStream, SendStream};
use twinfold_protocol::op::Payload;
use twinfold_protocol::wire::{ChunkQueue, Frame};

/// Bytes taken from a stream at once.
const READ: usize = 1 << 20;

/// Frames coming in.
#[derive(Debug)]
pub(super) struct Incoming {
    stream: RecvStream,
    queue: ChunkQueue,
    stall: Duration,
}

impl Incoming {
    /// Between two frames a stream may be silent for ever; within one, the next bytes
    /// must come within `stall` (invariant 14).
    pub(super) fn new(stream: RecvStream, stall: Duration) -> Incoming {
        Incoming {
            stream,
            queue: ChunkQueue::default(),
            stall,
        }
    }

    /// A frame that has arrived already, if there is a whole one.
    pub(super) fn ready(&mut self) -> Result<Option<Payload>> {
        Ok(self.queue.next_frame()?)
    }

    /// Waits for more bytes; false at the end of the stream. May be dropped and
    /// called again: nothing is lost.
    pub(super) async fn fill(&mut self) -> Result<bool> {
        let more = self.stream.read_chunk(READ, true);
        let more = if self.queue.is_empty() {
            more.await?
        } else {
            match tokio::time::timeout(self.stall, more).await {
                Ok(more) => more?,
                Err(_) => bail!(
                    "a frame did not end: nothing more of it came for {} ms",
                    self.stall.as_millis()
                ),
            }
        };
        match more {
            Some(chunk) => {
                self.queue.push(chunk.bytes);
                Ok(true)
            }
            None => Ok(false),
        }
    }

    /// The next frame.
    pub(super) async fn next(&mut self) -> Result<Payload> {
        match self.next_or_end().await? {
            Some(frame) => Ok(frame),
            None => bail!("the stream ended"),
        }
    }

    /// The next frame, or nothing where the stream ends between two frames.
    pub(super) async fn next_or_end(&mut self) -> Result<Option<Payload>> {
        loop {
            if let Some(frame) = self.ready()? {
                return Ok(Some(frame));
            }
            if !self.fill().await? {
                self.end()?;
                return Ok(None);
            }
        }
    }

    /// The stream has ended; fails when that was within a frame.
    pub(super) fn end(&self) -> Result<()> {
        if !self.queue.is_empty() {
            bail!("the stream ended within a frame");
        }
        Ok(())
    }
}

/// Sends frames; the bytes are not copied before they are encrypted.
pub(super) async fn send(stream: &mut SendStream, frames: &[Frame]) -> Result<()> {
    let mut chunks: Vec<Bytes> = Vec::with_capacity(frames.len() * 2);
    for frame in frames {
        chunks.push(frame.header.clone());
        chunks.extend(frame.payload.chunks().iter().cloned());
    }
    Ok(stream.write_all_chunks(&mut chunks).await?)
}
