//! Each limit, from both sides.

use bytes::Bytes;
use twinfold_protocol::attr::{Attributes, Kind};
use twinfold_protocol::handshake::{CopyState, Role};
use twinfold_protocol::ids::{Epoch, FileId, Seq, SessionId};
use twinfold_protocol::limits;
use twinfold_protocol::marks::Intent;
use twinfold_protocol::op::{Change, Name, NewObject, Op, Stability, XattrMode};
use twinfold_protocol::remote::{Answer, Entry, EntryName, Request};
use twinfold_protocol::time::Timestamp;
use twinfold_protocol::verify::{Digest, Facts, Found, HASH, Lead, Question};
use twinfold_protocol::wire::{
    Account, Answered, Call, CompareAnswer, CompareRequest, Control, Hello, Holds, Receipt,
    VerifyAnswer, VerifyRequest, Violation,
};

use super::values::Sent;
use super::{marks, op, put_directory};

fn hello(name: usize, epoch: u32) -> Sent {
    Sent::Control(Control::Hello(Hello {
        versions: Hello::VERSIONS,
        name: "x".repeat(name),
        role: Role::Primary,
        copy: CopyState::default(),
        epoch: Epoch(epoch),
        resume: Some((SessionId(1), Seq(2))),
        account: Account::default(),
    }))
}

/// Pairs: the first is at its limit and passes, the second is beyond it.
fn read(length: usize) -> Sent {
    Sent::Call(Call {
        id: 1,
        done: 1,
        request: Request::Read {
            file: FileId::ROOT,
            offset: 0,
            length: length as u32,
        },
    })
}

fn listed(count: usize) -> Sent {
    let attributes = Attributes {
        file: FileId::ROOT,
        kind: Kind::Regular,
        mode: 0,
        uid: 0,
        gid: 0,
        links: 1,
        size: 0,
        blocks: 0,
        block_size: 0,
        accessed: Timestamp::default(),
        modified: Timestamp::default(),
        changed: Timestamp::default(),
    };
    let entry = Entry {
        name: EntryName::Name(Name::new(&[b'x'; limits::MAX_NAME]).unwrap()),
        next: 0,
        attributes,
    };
    let answer = Answer::Entries(vec![entry; count]);
    Sent::Answered(Answered { id: 1, answer })
}

fn at_and_beyond() -> Vec<[Sent; 2]> {
    const F: FileId = FileId::ROOT;
    let bytes = |n: usize| Bytes::from(vec![b'x'; n]);
    let write = |offset, n| {
        op(Op::Write {
            file: F,
            offset,
            stability: Stability::Mode,
            clear_privileges: false,
            data: bytes(n).into(),
        })
    };
    let put = |offset, n| {
        op(Op::PutData {
            file: F,
            offset,
            data: bytes(n).into(),
        })
    };
    let hole = |offset, length| {
        op(Op::PutHole {
            file: F,
            offset,
            length,
        })
    };
    let copy = |from_offset, to_offset, length| {
        op(Op::CopyRange {
            from: F,
            from_offset,
            to: F,
            to_offset,
            length,
        })
    };
    let truncate = |size| {
        op(Op::Truncate {
            file: F,
            size,
            clear_privileges: false,
        })
    };
    let create = |target, mode| {
        op(Op::Create {
            parent: F,
            name: Name::new(&[b'x'; limits::MAX_NAME]).unwrap(),
            object: NewObject {
                file: F,
                kind: Kind::Symlink,
                target: bytes(target),
                mode,
                umask: 0o7777,
                uid: 0,
                gid: 0,
            },
        })
    };
    let xattr = |name, value| {
        op(Op::SetXattr {
            file: F,
            name: bytes(name),
            value: bytes(value),
            mode: XattrMode::Either,
        })
    };
    let times = |nanos| {
        op(Op::Times {
            file: F,
            accessed: Timestamp { secs: 0, nanos },
            modified: Timestamp::default(),
        })
    };
    let chmod = |mode| {
        op(Op::SetAttributes {
            file: F,
            change: Change {
                mode: Some(mode),
                ..Change::default()
            },
        })
    };
    let request = |blocks| {
        Sent::Request(CompareRequest::Blocks {
            file: F,
            offset: 0,
            blocks,
        })
    };
    let answer = |size, hashes| {
        Sent::Answer(CompareAnswer::Hashes {
            size,
            hashes: vec![1; hashes].into(),
        })
    };
    let own = |n| {
        Sent::Control(Control::OwnMarks {
            map: vec![0; n].into(),
        })
    };
    let objects = |n| Sent::Request(CompareRequest::Objects { files: vec![F; n] });
    const END: u64 = limits::MAX_OFFSET;
    const DATA: usize = limits::MAX_PAYLOAD;
    const BLOCKS: usize = limits::MAX_COMPARE_BLOCKS;
    const OBJECTS: usize = limits::MAX_COMPARE_OBJECTS;
    vec![
        [objects(OBJECTS), objects(OBJECTS + 1)],
        [write(0, DATA), write(0, DATA + 1)],
        [write(END - 9, 9), write(END - 9, 10)],
        [write(END, 0), write(END + 1, 0)],
        [put(0, DATA), put(0, DATA + 1)],
        [put(END - 9, 9), put(END - 9, 10)],
        [hole(1, END - 1), hole(1, END)],
        [copy(1, 2, END - 2), copy(1, 2, END - 1)],
        [copy(2, 1, END - 2), copy(2, 1, END - 1)],
        [truncate(END), truncate(END + 1)],
        [
            create(limits::MAX_TARGET, 0),
            create(limits::MAX_TARGET + 1, 0),
        ],
        [create(0, 0o7777), create(0, 0o10000)],
        [
            xattr(limits::MAX_XATTR_NAME, limits::MAX_XATTR_VALUE),
            xattr(limits::MAX_XATTR_NAME + 1, 0),
        ],
        [
            xattr(0, limits::MAX_XATTR_VALUE),
            xattr(0, limits::MAX_XATTR_VALUE + 1),
        ],
        [times(999_999_999), times(1_000_000_000)],
        [chmod(0o7777), chmod(0o10000)],
        [
            put_directory(limits::MAX_PUT_ENTRIES),
            put_directory(limits::MAX_PUT_ENTRIES + 1),
        ],
        [
            Sent::Control(marks(limits::MAX_MARKS_PER_FRAME)),
            Sent::Control(marks(limits::MAX_MARKS_PER_FRAME + 1)),
        ],
        [own(limits::MAX_MAP_BYTES), own(limits::MAX_MAP_BYTES + 1)],
        [
            hello(limits::MAX_MODULE_NAME, 0),
            hello(limits::MAX_MODULE_NAME + 1, 0),
        ],
        [hello(0, Epoch::MAX.0), hello(0, Epoch::MAX.0 + 1)],
        [request(BLOCKS as u32), request(BLOCKS as u32 + 1)],
        [answer(END, 16 * BLOCKS), answer(END, 16 * BLOCKS + 16)],
        [answer(END, 0), answer(END + 1, 0)],
        [read(limits::MAX_PAYLOAD), read(limits::MAX_PAYLOAD + 1)],
        [listed(limits::MAX_LISTED), listed(limits::MAX_LISTED + 1)],
    ]
}

fn data(offset: u64, length: u64) -> Question {
    Question::Data {
        file: FileId::ROOT,
        offset,
        length,
    }
}

/// The same for what a verify sends.
fn verify_at_and_beyond() -> Vec<[Sent; 2]> {
    let ask = |length| {
        op(Op::Verify {
            question: data(0, length),
        })
    };
    let differs = |length| {
        op(Op::Differs {
            question: data(0, length),
        })
    };
    let questions = |questions| Sent::Verify(VerifyRequest::Questions(questions));
    let many = |n| questions(vec![data(0, 1); n]);
    let verified = |found| Sent::Receipt(Receipt::Verified { seq: Seq(1), found });
    let blocks = |n: usize| verified(Found::Blocks(vec![0; n].into()));
    let facts = |size, mode, name: usize, xattrs: usize| {
        verified(Found::Object(Facts {
            kind: Kind::Regular,
            mode,
            uid: 0,
            gid: 0,
            size,
            modified: Timestamp::default(),
            target: [0; HASH],
            xattrs: vec![(vec![b'x'; name].into(), [0; HASH]); xattrs],
        }))
    };
    let digests = |n| Sent::Digests(VerifyAnswer::Digests(vec![Digest::Missing; n]));
    let names = |n| {
        Sent::Digests(VerifyAnswer::Names {
            next: 0,
            entries: vec![(Name::new(b"x").unwrap(), Lead::Foreign); n],
        })
    };
    const CHUNK: u64 = limits::VERIFY_CHUNK;
    const BYTES: u64 = limits::MAX_VERIFY_BYTES;
    const HASHES: usize = (CHUNK / limits::BLOCK) as usize * HASH;
    const END: u64 = limits::MAX_OFFSET;
    const LAST: u64 = END / limits::BLOCK * limits::BLOCK;
    vec![
        [ask(CHUNK), ask(CHUNK + 1)],
        [differs(CHUNK), differs(CHUNK + 1)],
        [
            questions(vec![data(0, BYTES)]),
            questions(vec![data(0, BYTES + 1)]),
        ],
        [
            questions(vec![data(0, BYTES - 5), data(0, 5)]),
            questions(vec![data(0, BYTES - 5), data(0, 6)]),
        ],
        [
            questions(vec![data(LAST, END - LAST)]),
            questions(vec![data(LAST, END - LAST + 1)]),
        ],
        [
            many(limits::MAX_VERIFY_QUESTIONS),
            many(limits::MAX_VERIFY_QUESTIONS + 1),
        ],
        [blocks(HASHES), blocks(HASHES + 1)],
        [facts(END, 0o7777, 0, 0), facts(END + 1, 0o7777, 0, 0)],
        [facts(0, 0o7777, 0, 0), facts(0, 0o10000, 0, 0)],
        [
            facts(0, 0, limits::MAX_XATTR_NAME, 1),
            facts(0, 0, limits::MAX_XATTR_NAME + 1, 1),
        ],
        [
            facts(0, 0, 1, limits::MAX_XATTRS),
            facts(0, 0, 1, limits::MAX_XATTRS + 1),
        ],
        [
            digests(limits::MAX_VERIFY_QUESTIONS),
            digests(limits::MAX_VERIFY_QUESTIONS + 1),
        ],
        [
            names(limits::MAX_VERIFY_NAMES),
            names(limits::MAX_VERIFY_NAMES + 1),
        ],
    ]
}

#[test]
fn a_question_starts_at_a_block_and_the_op_stream_carries_small_ones_only() {
    let crooked = VerifyRequest::Questions(vec![data(1, 1)]);
    let frame = crooked.encode().to_bytes().slice(4..);
    assert!(VerifyRequest::decode(frame.into()).is_err());
    let listing = op(Op::Verify {
        question: Question::Listing {
            directory: FileId::ROOT,
        },
    });
    let refused = listing.decode(listing.encode().to_bytes().slice(4..).into());
    assert!(matches!(refused, Err(Violation::Order(_))), "{refused:?}");
}

#[test]
fn what_is_at_its_limit_passes_and_what_is_beyond_does_not() {
    for [within, beyond] in at_and_beyond().into_iter().chain(verify_at_and_beyond()) {
        let frame = within.encode().to_bytes();
        assert!(frame.len() <= 4 + limits::MAX_FRAME);
        assert_eq!(within.decode(frame.slice(4..).into()), Ok(within));
        let refused = beyond.decode(beyond.encode().to_bytes().slice(4..).into());
        assert!(
            matches!(refused, Err(Violation::Limit { .. })),
            "{refused:?}"
        );
    }
    let request = CompareRequest::Blocks {
        file: FileId::ROOT,
        offset: limits::BLOCK + 1,
        blocks: 1,
    };
    let frame = request.encode().to_bytes().slice(4..);
    assert!(CompareRequest::decode(frame.into()).is_err());
    let crooked = Control::Marks {
        intents: vec![Intent::NewIds {
            first: FileId(limits::ID_BLOCK + 1),
        }],
        damaged: false,
        holds: Holds::Objects,
        more: false,
    };
    let frame = crooked.encode().to_bytes().slice(4..);
    assert!(Control::decode(frame.into()).is_err());
}
