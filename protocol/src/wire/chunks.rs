//! Cuts a byte stream that arrives in pieces into frames, without joining the pieces.

use std::collections::VecDeque;

use bytes::{Buf, Bytes};

use super::coder::Violation;
use crate::limits;
use crate::op::Payload;

/// Received bytes not yet cut into frames.
#[derive(Debug, Default)]
pub struct ChunkQueue {
    chunks: VecDeque<Bytes>,
    len: usize,
}

impl ChunkQueue {
    /// Adds bytes as they arrived.
    pub fn push(&mut self, chunk: Bytes) {
        self.len += chunk.len();
        if !chunk.is_empty() {
            self.chunks.push_back(chunk);
        }
    }

    /// Bytes waiting.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no byte is waiting.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The next whole frame without its length word, when it is there.
    pub fn next_frame(&mut self) -> Result<Option<Payload>, Violation> {
        if self.len < 4 {
            return Ok(None);
        }
        let mut word = [0u8; 4];
        let mut at = 0;
        for chunk in &self.chunks {
            let n = chunk.len().min(4 - at);
            word[at..at + n].copy_from_slice(&chunk[..n]);
            at += n;
            if at == 4 {
                break;
            }
        }
        let length = u32::from_le_bytes(word) as usize;
        if length > limits::MAX_FRAME {
            return Err(Violation::FrameTooLong(length));
        }
        if length == 0 {
            return Err(Violation::Truncated);
        }
        if self.len < 4 + length {
            return Ok(None);
        }
        self.take(4);
        Ok(Some(self.take(length)))
    }

    fn take(&mut self, mut n: usize) -> Payload {
        let mut out = Payload::default();
        self.len -= n;
        while n > 0 {
            let Some(front) = self.chunks.front_mut() else {
                break;
            };
            if front.len() <= n {
                n -= front.len();
                out.push(std::mem::take(front));
                self.chunks.pop_front();
            } else {
                out.push(front.slice(..n));
                front.advance(n);
                n = 0;
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_out_whole_however_they_are_cut() {
        let mut wire = Vec::new();
        for body in [&b"abc"[..], b"x", &[7; 1000]] {
            wire.extend_from_slice(&(body.len() as u32).to_le_bytes());
            wire.extend_from_slice(body);
        }
        for step in 1..20 {
            let mut queue = ChunkQueue::default();
            let mut frames = Vec::new();
            for piece in wire.chunks(step) {
                queue.push(Bytes::copy_from_slice(piece));
                while let Some(frame) = queue.next_frame().unwrap() {
                    frames.push(frame.to_bytes());
                }
            }
            assert_eq!(frames, [&b"abc"[..], b"x", &[7; 1000]]);
            assert!(queue.is_empty());
        }
    }

    #[test]
    fn an_oversized_frame_is_refused_before_its_body_arrives() {
        let mut queue = ChunkQueue::default();
        queue.push(Bytes::copy_from_slice(&u32::MAX.to_le_bytes()));
        assert!(matches!(
            queue.next_frame(),
            Err(Violation::FrameTooLong(_))
        ));
    }
}
