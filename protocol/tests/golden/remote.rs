//! Remote calls, their answers, and the bytes of both.

use bytes::Bytes;
use twinfold_protocol::attr::{Attributes, Kind};
use twinfold_protocol::op::{Op, Stability};
use twinfold_protocol::remote::{Answer, Entry, EntryName, Failure, Request, Space};
use twinfold_protocol::wire::{Answered, Call};

use super::frames::{DIRECTORY, FILE, at, name};

const ID: u64 = 0x0102_0304_0506_0708;

const ATTRIBUTES: Attributes = Attributes {
    file: FILE,
    kind: Kind::Regular,
    mode: 0o644,
    uid: 1000,
    gid: 1001,
    links: 2,
    size: 4097,
    blocks: 16,
    block_size: 4096,
    accessed: at(1, 2),
    modified: at(3, 4),
    changed: at(5, 6),
};

macro_rules! attributes {
    () => {
        "2a00000000030000 01 a4010000 e8030000 e9030000 02000000 0110000000000000
         1000000000000000 00100000 010000000000000002000000 030000000000000004000000
         050000000000000006000000"
    };
}

pub(super) fn calls() -> Vec<(Call, &'static str)> {
    let write = Op::Write {
        file: FILE,
        offset: 0x12_3456_789a,
        stability: Stability::Full,
        clear_privileges: true,
        data: Bytes::from_static(b"data").into(),
    };
    let all = vec![
        (
            Request::Change {
                op: write,
                clear_privileges: true,
            },
            "29000000 80 0807060504030201 0700000000000000 01 01
             2a00000000030000 9a78563412000000 02 01 64617461",
        ),
        (
            Request::Lookup {
                parent: DIRECTORY,
                name: name("a"),
            },
            "1b000000 81 0807060504030201 0700000000000000 0700000000020000 01 61",
        ),
        (
            Request::Attributes { file: FILE },
            "19000000 82 0807060504030201 0700000000000000 2a00000000030000",
        ),
        (
            Request::ReadLink { file: FILE },
            "19000000 83 0807060504030201 0700000000000000 2a00000000030000",
        ),
        (
            Request::Read {
                file: FILE,
                offset: 4096,
                length: 1 << 20,
            },
            "25000000 84 0807060504030201 0700000000000000 2a00000000030000
             0010000000000000 00001000",
        ),
        (
            Request::Seek {
                file: FILE,
                offset: 4096,
                data: true,
            },
            "22000000 85 0807060504030201 0700000000000000 2a00000000030000
             0010000000000000 01",
        ),
        (
            Request::List {
                directory: DIRECTORY,
                from: 9,
            },
            "21000000 86 0807060504030201 0700000000000000 0700000000020000 0900000000000000",
        ),
        (
            Request::GetXattr {
                file: FILE,
                name: Bytes::from_static(b"user.a"),
            },
            "23000000 87 0807060504030201 0700000000000000 2a00000000030000
             06000000 757365722e61",
        ),
        (
            Request::ListXattrs { file: FILE },
            "19000000 88 0807060504030201 0700000000000000 2a00000000030000",
        ),
        (
            Request::Space,
            "11000000 89 0807060504030201 0700000000000000",
        ),
        (
            Request::Forget { file: FILE },
            "19000000 8a 0807060504030201 0700000000000000 2a00000000030000",
        ),
    ];
    let call = |(request, bytes)| {
        let (id, done) = (ID, 7);
        (Call { id, done, request }, bytes)
    };
    all.into_iter().map(call).collect()
}

pub(super) fn answered() -> Vec<(Answered, &'static str)> {
    let entries = vec![
        Entry {
            name: EntryName::Here,
            next: 1,
            attributes: ATTRIBUTES,
        },
        Entry {
            name: EntryName::Name(name("a")),
            next: 2,
            attributes: ATTRIBUTES,
        },
    ];
    let space = Space {
        block_size: 1,
        blocks: 2,
        free: 3,
        available: 4,
        files: 5,
        files_free: 6,
        name_max: 255,
    };
    let all = vec![
        (Answer::Done, "09000000 a0 0807060504030201"),
        (
            Answer::Attributes(ATTRIBUTES),
            concat!("5a000000 a1 0807060504030201", attributes!()),
        ),
        (
            Answer::Bytes(Bytes::from_static(b"data").into()),
            "0d000000 a2 0807060504030201 64617461",
        ),
        (
            Answer::Number(9),
            "11000000 a3 0807060504030201 0900000000000000",
        ),
        (
            Answer::Entries(entries),
            concat!(
                "c3000000 a4 0807060504030201 02000000 00 0100000000000000",
                attributes!(),
                "02 01 61 0200000000000000",
                attributes!()
            ),
        ),
        (
            Answer::Space(space),
            "3d000000 a5 0807060504030201 0100000000000000 0200000000000000 0300000000000000
             0400000000000000 0500000000000000 0600000000000000 ff000000",
        ),
        (
            Answer::Failed(Failure::System(28)),
            "0e000000 a6 0807060504030201 01 1c000000",
        ),
    ];
    let answer = |(answer, bytes)| (Answered { id: ID, answer }, bytes);
    all.into_iter().map(answer).collect()
}
