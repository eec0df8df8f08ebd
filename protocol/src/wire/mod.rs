//! Bytes on the wire. The layout is documented in `protocol/WIRE.md`; golden
//! bytes in `tests/golden.rs` keep document, code and older nodes in step.
//!
//! Every frame is a length word (little-endian `u32`, the bytes that follow), a
//! kind byte and a body. The decoder trusts nobody (invariant 16): a length is
//! compared with [`crate::limits`] before anything is allocated for it, a name is
//! checked where it is read, and what is left over at the end of a frame is an error.

mod chunks;
mod coder;
mod compare;
mod message;
mod op;
mod remote;
mod verify;

pub use chunks::ChunkQueue;
pub use coder::{Reader, Violation, Writer};
pub use compare::{CompareAnswer, CompareRequest, Hashes, MatchEntry};
pub use message::{Account, Control, Hello, Holds, OpStreamStart, Phase, Progress, Receipt};
pub use op::{decode_op, encode_op};
pub use remote::{Answered, Call};
pub use verify::{VerifyAnswer, VerifyRequest, facts_bytes};

use bytes::Bytes;

use crate::op::Payload;

/// Oldest version of the wire format this build can talk.
pub const VERSION_MIN: u16 = 1;
/// Newest version of the wire format this build can talk.
pub const VERSION_MAX: u16 = 1;

/// The name of the protocol in the TLS handshake (ALPN). It changes only when even
/// the hello could not be read by an older node.
pub const ALPN: &[u8] = b"twinfold";

/// One frame, ready to be sent: a header that holds everything but file data, and the data.
#[derive(Clone, Debug)]
pub struct Frame {
    /// Length word, kind, and the body up to the payload.
    pub header: Bytes,
    /// File data that follows.
    pub payload: Payload,
}

impl Frame {
    /// Bytes of the whole frame on the wire.
    pub fn len(&self) -> usize {
        self.header.len() + self.payload.len()
    }

    /// A frame is never empty.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// The whole frame in one piece, for tests and small frames.
    pub fn to_bytes(&self) -> Bytes {
        if self.payload.is_empty() {
            return self.header.clone();
        }
        let mut all = Vec::with_capacity(self.len());
        all.extend_from_slice(&self.header);
        for chunk in self.payload.chunks() {
            all.extend_from_slice(chunk);
        }
        all.into()
    }
}

/// The version two nodes use, the newest both can talk, or what to tell the operator.
pub fn common_version(mine: (u16, u16), theirs: (u16, u16)) -> Result<u16, String> {
    let newest = mine.1.min(theirs.1);
    if newest >= mine.0 && newest >= theirs.0 {
        return Ok(newest);
    }
    let older = if mine.1 < theirs.0 {
        "this node"
    } else {
        "the peer"
    };
    Err(format!(
        "the two nodes run versions of twinfold that cannot talk to each other \
         (this node: wire format {}-{}, peer: {}-{}); update twinfold on {older}",
        mine.0, mine.1, theirs.0, theirs.1
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_meet_or_say_who_is_older() {
        assert_eq!(common_version((1, 3), (2, 5)), Ok(3));
        assert_eq!(common_version((2, 5), (1, 3)), Ok(3));
        let old = common_version((1, 1), (2, 3)).unwrap_err();
        assert!(old.contains("update twinfold on this node"), "{old}");
        let new = common_version((2, 3), (1, 1)).unwrap_err();
        assert!(new.contains("update twinfold on the peer"), "{new}");
    }
}
