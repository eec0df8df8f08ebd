//! Frames that no node would send.

use bytes::Bytes;
use twinfold_protocol::attr::Kind;
use twinfold_protocol::ids::{FileId, Seq};
use twinfold_protocol::limits;
use twinfold_protocol::op::{Name, NewObject, Object, Op, Payload, Sequenced, Stability};
use twinfold_protocol::time::Timestamp;
use twinfold_protocol::wire::{Writer, encode_op};

use crate::wire::frame;

/// An op as the protocol writes it.
pub(crate) fn op(seq: u64, op: Op) -> Bytes {
    let op = Sequenced {
        seq: Seq(seq),
        time: Timestamp::default(),
        op,
    };
    encode_op(op.seq, op.time, &op.op).to_bytes()
}

/// A write of one byte.
pub(crate) fn write(file: FileId) -> Op {
    Op::Write {
        file,
        offset: 3,
        stability: Stability::Mode,
        clear_privileges: false,
        data: Payload::from(Bytes::from_static(b"!")),
    }
}

/// A new object.
pub(crate) fn create(parent: FileId, name: &str, file: FileId, kind: Kind) -> Op {
    Op::Create {
        parent,
        name: Name::new(name.as_bytes()).unwrap(),
        object: NewObject {
            file,
            kind,
            target: Bytes::new(),
            mode: 0o755,
            umask: 0,
            uid: 0,
            gid: 0,
        },
    }
}

/// An object as a listing of the resync describes it.
pub(crate) fn object(file: FileId, kind: Kind) -> Object {
    Object {
        file,
        kind,
        target: Bytes::new(),
        mode: 0o755,
        uid: 0,
        gid: 0,
        size: 0,
        accessed: Timestamp::default(),
        modified: Timestamp::default(),
    }
}

/// A creation under a name that the encoder would not write. `length` is what the
/// frame says about it.
pub(crate) fn create_named(seq: u64, name: &[u8], length: u8, file: FileId) -> Bytes {
    let mut w = Writer::new(5);
    w.seq(Seq(seq));
    w.time(Timestamp::default());
    w.file(FileId::ROOT);
    w.u8(length);
    for byte in name {
        w.u8(*byte);
    }
    w.file(file);
    w.kind(Kind::Regular);
    for _ in 0..4 {
        w.u32(0o600);
    }
    w.bytes(&[]);
    w.finish(Payload::default()).to_bytes()
}

/// Names that would lead out of their directory or are none: the name, the length
/// byte before it, and what the decoder says.
pub(crate) fn bad_names() -> Vec<(Vec<u8>, u8, &'static str)> {
    let escapes = "a name would lead out of its directory";
    let mut all: Vec<(Vec<u8>, u8, &'static str)> = [
        &b".."[..],
        b".",
        b"a/b",
        b"/etc/passwd",
        b"../../x",
        b"a\0b",
    ]
    .into_iter()
    .map(|name| (name.to_vec(), name.len() as u8, escapes))
    .collect();
    all.push((Vec::new(), 0, "a name is empty"));
    // The length of 256 bytes does not fit into its byte; what stands there is 0.
    all.push((vec![b'x'; limits::MAX_NAME + 1], 0, "a name is empty"));
    all
}

/// Only the length word, of more than any frame may have.
pub(crate) fn oversized() -> Bytes {
    Bytes::copy_from_slice(&(limits::MAX_FRAME as u32 + 1).to_le_bytes())
}

/// A frame of a kind that no stream carries.
pub(crate) fn unknown() -> Bytes {
    frame(200, b"what is this")
}

/// The beginning of a frame that says it is longer.
pub(crate) fn half() -> Bytes {
    let whole = frame(1, &[9; 600]);
    whole.slice(..300)
}
