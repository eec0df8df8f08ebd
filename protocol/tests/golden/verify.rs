//! The frames of a verify and their bytes.

use bytes::Bytes;
use twinfold_protocol::attr::{Device, Kind};
use twinfold_protocol::ids::Seq;
use twinfold_protocol::op::Op;
use twinfold_protocol::verify::{Digest, Facts, Found, HASH, Hash, Lead, Question};
use twinfold_protocol::wire::{Receipt, VerifyAnswer, VerifyRequest};

use super::frames::{DIRECTORY, FILE, at, name};

const HASHED: Hash = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];

const DATA: Question = Question::Data {
    file: FILE,
    offset: 8192,
    length: 100,
};

fn of_name() -> Question {
    Question::Name {
        directory: DIRECTORY,
        name: name("a"),
    }
}

pub(super) fn ops() -> Vec<(Op, &'static str)> {
    vec![
        (
            Op::Verify { question: DATA },
            "2e000000 30 0807060504030201 00f153650000000015cd5b07
             01 2a00000000030000 0020000000000000 6400000000000000",
        ),
        (
            Op::Verify {
                question: Question::Object { file: FILE },
            },
            "1e000000 30 0807060504030201 00f153650000000015cd5b07 02 2a00000000030000",
        ),
        (
            Op::Differs {
                question: of_name(),
            },
            "20000000 31 0807060504030201 00f153650000000015cd5b07 04 0700000000020000 01 61",
        ),
    ]
}

pub(super) fn receipts() -> Vec<(Receipt, &'static str)> {
    let mut hashes = HASHED.to_vec();
    hashes.extend_from_slice(&[0; HASH]);
    let facts = Facts {
        kind: Kind::CharDevice(Device { major: 1, minor: 3 }),
        mode: 0o644,
        uid: 1000,
        gid: 50,
        size: 0,
        modified: at(1_700_000_000, 123_456_789),
        target: [0; HASH],
        xattrs: vec![(Bytes::from_static(b"user.a"), HASHED)],
    };
    let verified = |found| Receipt::Verified { seq: Seq(9), found };
    vec![
        (verified(Found::Missing), "0a000000 46 0900000000000000 00"),
        (
            verified(Found::Blocks(hashes.into())),
            "2e000000 46 0900000000000000 01 20000000 000102030405060708090a0b0c0d0e0f
             00000000000000000000000000000000",
        ),
        (
            verified(Found::Object(facts)),
            "61000000 46 0900000000000000 02 06 01000000 03000000 a4010000 e8030000 32000000
             0000000000000000 00f153650000000015cd5b07 00000000000000000000000000000000
             01000000 06000000 757365722e61 000102030405060708090a0b0c0d0e0f",
        ),
        (
            verified(Found::Name(Lead::Nothing)),
            "0b000000 46 0900000000000000 03 00",
        ),
        (
            verified(Found::Name(Lead::Object(FILE))),
            "13000000 46 0900000000000000 03 01 2a00000000030000",
        ),
        (
            verified(Found::Name(Lead::Foreign)),
            "0b000000 46 0900000000000000 03 02",
        ),
        (
            verified(Found::Failed("EIO".into())),
            "11000000 46 0900000000000000 04 03000000 45494f",
        ),
    ]
}

pub(super) fn requests() -> Vec<(VerifyRequest, &'static str)> {
    vec![
        (
            VerifyRequest::Questions(vec![
                DATA,
                Question::Object { file: FILE },
                Question::Listing {
                    directory: DIRECTORY,
                },
                of_name(),
            ]),
            "3b000000 70 04000000 01 2a00000000030000 0020000000000000 6400000000000000
             02 2a00000000030000 03 0700000000020000 04 0700000000020000 01 61",
        ),
        (
            VerifyRequest::Names {
                directory: DIRECTORY,
                from: 0x0102_0304_0506_0708,
            },
            "11000000 72 0700000000020000 0807060504030201",
        ),
    ]
}

pub(super) fn answers() -> Vec<(VerifyAnswer, &'static str)> {
    vec![
        (
            VerifyAnswer::Digests(vec![
                Digest::Missing,
                Digest::Is(HASHED),
                Digest::Failed("EIO".into()),
            ]),
            "1f000000 71 03000000 00 01 000102030405060708090a0b0c0d0e0f 02 03000000 45494f",
        ),
        (
            VerifyAnswer::Names {
                next: 5,
                entries: vec![(name("a"), Lead::Object(FILE)), (name("b"), Lead::Foreign)],
            },
            "1b000000 73 0500000000000000 02000000 01 61 01 2a00000000030000 01 62 02",
        ),
        (
            VerifyAnswer::Failed {
                reason: "EIO".into(),
            },
            "08000000 74 03000000 45494f",
        ),
    ]
}

pub(super) fn request_name(request: &VerifyRequest) -> &'static str {
    match request {
        VerifyRequest::Questions(_) => "Questions",
        VerifyRequest::Names { .. } => "Names",
    }
}

pub(super) fn answer_name(answer: &VerifyAnswer) -> &'static str {
    match answer {
        VerifyAnswer::Digests(_) => "Digests",
        VerifyAnswer::Names { .. } => "Listed",
        VerifyAnswer::Failed { .. } => "Unreadable",
    }
}
