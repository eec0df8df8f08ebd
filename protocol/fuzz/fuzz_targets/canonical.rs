//! What must hold whatever bytes a peer sends: no decoder panics, none cares how
//! the network cut a frame, and what decodes encodes to the same bytes again.
//!
//! Shared by the fuzz target and by `protocol/tests/decoder.rs`.

use std::fmt::Debug;

use bytes::Bytes;
use twinfold_protocol::limits;
use twinfold_protocol::op::Payload;
use twinfold_protocol::wire::{
    self, Answered, Call, ChunkQueue, CompareAnswer, CompareRequest, Control, Frame, OpStreamStart,
    Receipt, VerifyAnswer, VerifyRequest, Violation,
};

/// Feeds a stream, in the pieces in which it came, to a queue and each frame to
/// every decoder. Returns how many frames some decoder took, and why it ended.
pub(crate) fn check_stream(
    pieces: impl IntoIterator<Item = Bytes>,
) -> (usize, Result<(), Violation>) {
    let mut queue = ChunkQueue::default();
    let mut waiting = 0;
    let mut taken = 0;
    for piece in pieces {
        waiting += piece.len();
        queue.push(piece);
        loop {
            assert_eq!(queue.len(), waiting, "bytes were lost in the queue");
            match queue.next_frame() {
                Ok(Some(frame)) => {
                    assert!((1..=limits::MAX_FRAME).contains(&frame.len()));
                    waiting -= 4 + frame.len();
                    taken += usize::from(check_frame(&frame));
                }
                Ok(None) => break,
                Err(violation) => {
                    let again = queue.next_frame();
                    assert_eq!(again.as_ref().err(), Some(&violation), "not latched");
                    return (taken, Err(violation));
                }
            }
        }
    }
    (taken, Ok(()))
}

/// Feeds what follows a length word to every decoder. Whether one took it.
pub(crate) fn check_frame(body: &Payload) -> bool {
    if body.len() > limits::MAX_FRAME {
        return false; // No queue hands this out.
    }
    let op = check(body, same, wire::decode_op, |op| {
        wire::encode_op(op.seq, op.time, &op.op)
    });
    let control = check(body, control, Control::decode, Control::encode);
    let receipt = check(body, receipt, Receipt::decode, Receipt::encode);
    let start = check(body, same, OpStreamStart::decode, OpStreamStart::encode);
    let request = check(body, same, CompareRequest::decode, CompareRequest::encode);
    let answer = check(body, same, CompareAnswer::decode, CompareAnswer::encode);
    let verify = check(body, same, VerifyRequest::decode, VerifyRequest::encode);
    let digests = check(
        body,
        verify_answer,
        VerifyAnswer::decode,
        VerifyAnswer::encode,
    );
    let call = check(body, same, Call::decode, Call::encode);
    let answered = check(body, same, Answered::decode, Answered::encode);
    let found = op || control || receipt || start || request || answer;
    found || verify || digests || call || answered
}

fn check<T: PartialEq + Debug>(
    body: &Payload,
    canonical: fn(&[u8]) -> Vec<u8>,
    decode: impl Fn(Payload) -> Result<T, Violation>,
    encode: impl Fn(&T) -> Frame,
) -> bool {
    let bytes = body.to_bytes();
    let result = decode(body.clone());
    assert_eq!(result, decode(bytes.clone().into()), "the cuts matter");
    let Ok(value) = result else { return false };
    let frame = encode(&value);
    let again = frame.to_bytes();
    assert_eq!(frame.len(), again.len());
    assert_eq!(again[..4], (again.len() as u32 - 4).to_le_bytes());
    assert_eq!(again[4..], canonical(&bytes), "{value:?}");
    true
}

fn same(body: &[u8]) -> Vec<u8> {
    body.to_vec()
}

/// What a control frame that decodes encodes to: itself, except for the two
/// places that "Canonical form" in `WIRE.md` names.
fn control(body: &[u8]) -> Vec<u8> {
    match body[0] {
        1 => {
            let body = text(body, 1 + 8 + 2 + 2, usize::MAX);
            let mount = mount(&body);
            text(&body, mount, limits::MAX_REASON)
        }
        2 => text(body, 1, limits::MAX_REASON),
        4 => {
            let mut body = body.to_vec();
            let decision = body[17];
            if !matches!(decision, 1 | 3 | 4 | 5) {
                body[18] = 0;
            }
            if decision != 1 {
                body[19] = 0;
            }
            body
        }
        6 => text(body, 1 + 1, limits::MAX_REASON),
        16 => text(body, 1, limits::MAX_REASON),
        17 => text(body, 1 + 8 + 2 + 2, usize::MAX),
        _ => same(body),
    }
}

/// As [`control`], for receipts.
fn receipt(body: &[u8]) -> Vec<u8> {
    match body[0] {
        67 => text(body, 1 + 8, limits::MAX_REASON),
        70 if body[9] == 4 => text(body, 1 + 8 + 1, limits::MAX_REASON),
        _ => same(body),
    }
}

/// As [`control`], for the answers of a verify: any of the digests may have a text.
fn verify_answer(body: &[u8]) -> Vec<u8> {
    match body[0] {
        113 => {
            let mut body = body.to_vec();
            let mut at = 1 + 4;
            while let Some(digest) = body.get(at) {
                at += match digest {
                    1 => 1 + 16,
                    2 => {
                        body = text(&body, at + 1, limits::MAX_REASON);
                        let length: [u8; 4] = body[at + 1..at + 5].try_into().unwrap_or_default();
                        1 + 4 + u32::from_le_bytes(length) as usize
                    }
                    _ => 1,
                };
            }
            body
        }
        116 => text(body, 1, limits::MAX_REASON),
        _ => same(body),
    }
}

/// Where in a hello the mount is.
fn mount(body: &[u8]) -> usize {
    let word = |at: usize| {
        u32::from_le_bytes([body[at], body[at + 1], body[at + 2], body[at + 3]]) as usize
    };
    let bases = 13 + 4 + word(13) + 1 + 16 + 16;
    let history = bases + 4 + 16 * word(bases);
    let resume = history + 4 + 16 * word(history) + 1 + 1 + 1 + 1 + 4;
    resume + 1 + if body[resume] == 1 { 16 + 8 } else { 0 }
}

/// `body` with the text whose length is at `place` made UTF-8 and cut at `most` bytes.
fn text(body: &[u8], place: usize, most: usize) -> Vec<u8> {
    let (head, rest) = body.split_at(place);
    let (length, rest) = rest.split_at(4);
    let length = u32::from_le_bytes([length[0], length[1], length[2], length[3]]);
    let (text, tail) = rest.split_at(length as usize);
    let text = String::from_utf8_lossy(text);
    let mut kept = String::new();
    for c in text.chars() {
        if kept.len() + c.len_utf8() > most {
            break;
        }
        kept.push(c);
    }
    let length = (kept.len() as u32).to_le_bytes();
    [head, &length, kept.as_bytes(), tail].concat()
}
