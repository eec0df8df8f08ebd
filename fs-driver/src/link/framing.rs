//! Whole frames in and out of QUIC streams.

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
}

impl Incoming {
    pub(super) fn new(stream: RecvStream) -> Incoming {
        Incoming {
            stream,
            queue: ChunkQueue::default(),
        }
    }

    /// A frame that has arrived already, if there is a whole one.
    pub(super) fn ready(&mut self) -> Result<Option<Payload>> {
        Ok(self.queue.next_frame()?)
    }

    /// Waits for more bytes; false at the end of the stream. May be dropped and
    /// called again: nothing is lost.
    pub(super) async fn fill(&mut self) -> Result<bool> {
        match self.stream.read_chunk(READ, true).await? {
            Some(chunk) => {
                self.queue.push(chunk.bytes);
                Ok(true)
            }
            None => Ok(false),
        }
    }

    /// The next frame.
    pub(super) async fn next(&mut self) -> Result<Payload> {
        loop {
            if let Some(frame) = self.ready()? {
                return Ok(frame);
            }
            if !self.fill().await? {
                bail!("the stream ended");
            }
        }
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
