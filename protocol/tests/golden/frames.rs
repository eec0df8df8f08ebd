//! Values of every frame kind and their bytes, field by field in the order of the
//! tables in `WIRE.md`.

use bytes::Bytes;
use twinfold_protocol::attr::{Device, Kind};
use twinfold_protocol::handshake::{CopyState, Decision, Method, Role, Which};
use twinfold_protocol::ids::{Epoch, FileId, Generation, ModuleId, Seq, SessionId};
use twinfold_protocol::marks::Intent;
use twinfold_protocol::op::{
    AllocateMode, Change, Listing, Name, NewObject, Object, Op, PutEntry, RenameMode, Stability,
    XattrMode,
};
use twinfold_protocol::primary::AckMode;
use twinfold_protocol::time::Timestamp;
use twinfold_protocol::wire::{
    Account, CompareAnswer, CompareRequest, Control, Hello, Holds, MatchEntry, OpStreamStart,
    Phase, Progress, Receipt,
};

pub(super) const FILE: FileId = FileId((3 << 40) | 42);
pub(super) const DIRECTORY: FileId = FileId((2 << 40) | 7);
const OTHER: FileId = FileId((5 << 40) | 0x1122);
pub(super) const SESSION: SessionId = SessionId(0x0f0e_0d0c_0b0a_0908_0706_0504_0302_0100);

pub(super) fn name(text: &str) -> Name {
    Name::new(text.as_bytes()).unwrap()
}

pub(super) const fn at(secs: i64, nanos: u32) -> Timestamp {
    Timestamp { secs, nanos }
}

/// Data and names.
fn live_ops() -> Vec<(Op, &'static str)> {
    vec![
        (
            Op::Write {
                file: FILE,
                offset: 0x12_3456_789a,
                stability: Stability::Full,
                clear_privileges: true,
                data: Bytes::from_static(b"data").into(),
            },
            "2b000000 01 0807060504030201 00f153650000000015cd5b07
             2a00000000030000 9a78563412000000 02 01 64617461",
        ),
        (
            Op::Truncate {
                file: FILE,
                size: 4097,
                clear_privileges: false,
            },
            "26000000 02 0807060504030201 00f153650000000015cd5b07
             2a00000000030000 0110000000000000 00",
        ),
        (
            Op::Allocate {
                file: FILE,
                mode: AllocateMode::ZeroRangeKeepSize,
                offset: 4096,
                length: 8192,
            },
            "2e000000 03 0807060504030201 00f153650000000015cd5b07
             2a00000000030000 04 0010000000000000 0020000000000000",
        ),
        (
            Op::CopyRange {
                from: FILE,
                from_offset: 1,
                to: OTHER,
                to_offset: 2,
                length: 3,
            },
            "3d000000 04 0807060504030201 00f153650000000015cd5b07
             2a00000000030000 0100000000000000 2211000000050000 0200000000000000
             0300000000000000",
        ),
        (
            Op::Create {
                parent: DIRECTORY,
                name: name("disk.img"),
                object: NewObject {
                    file: FILE,
                    kind: Kind::BlockDevice(Device {
                        major: 8,
                        minor: 17,
                    }),
                    target: Bytes::new(),
                    mode: 0o4755,
                    umask: 0o022,
                    uid: 1000,
                    gid: 100,
                },
            },
            "4b000000 05 0807060504030201 00f153650000000015cd5b07
             0700000000020000 086469736b2e696d67 2a00000000030000 070800000011000000
             ed090000 12000000 e8030000 64000000 00000000",
        ),
        (
            Op::Create {
                parent: DIRECTORY,
                name: name("l"),
                object: NewObject {
                    file: FILE,
                    kind: Kind::Symlink,
                    target: Bytes::from_static(b"../a/b"),
                    mode: 0o777,
                    umask: 0,
                    uid: 0,
                    gid: 0,
                },
            },
            "42000000 05 0807060504030201 00f153650000000015cd5b07
             0700000000020000 016c 2a00000000030000 03
             ff010000 00000000 00000000 00000000 060000002e2e2f612f62",
        ),
        (
            Op::Link {
                file: FILE,
                parent: DIRECTORY,
                name: name("ä"),
            },
            "28000000 06 0807060504030201 00f153650000000015cd5b07
             2a00000000030000 0700000000020000 02c3a4",
        ),
        (
            Op::Unlink {
                parent: DIRECTORY,
                name: name("a"),
                file: FILE,
            },
            "27000000 07 0807060504030201 00f153650000000015cd5b07
             0700000000020000 0161 2a00000000030000",
        ),
        (
            Op::RemoveDirectory {
                parent: DIRECTORY,
                name: name("..."),
                file: FILE,
            },
            "29000000 08 0807060504030201 00f153650000000015cd5b07
             0700000000020000 032e2e2e 2a00000000030000",
        ),
        (
            Op::Rename {
                parent: DIRECTORY,
                name: name("a"),
                file: FILE,
                new_parent: OTHER,
                new_name: name("bc"),
                replaced: Some(FileId::ROOT),
                mode: RenameMode::Exchange,
            },
            "3c000000 09 0807060504030201 00f153650000000015cd5b07
             0700000000020000 0161 2a00000000030000 2211000000050000 026263
             010100000000000000 02",
        ),
        (
            Op::Rename {
                parent: DIRECTORY,
                name: name("a"),
                file: FILE,
                new_parent: OTHER,
                new_name: name("bc"),
                replaced: None,
                mode: RenameMode::NoReplace,
            },
            "34000000 09 0807060504030201 00f153650000000015cd5b07
             0700000000020000 0161 2a00000000030000 2211000000050000 026263 00 01",
        ),
    ]
}

/// Attributes and flushing.
fn attribute_ops() -> Vec<(Op, &'static str)> {
    vec![
        (
            Op::SetAttributes {
                file: FILE,
                change: Change {
                    mode: Some(0o6644),
                    uid: Some(0xffff_fffe),
                    gid: Some(5),
                    accessed: Some(at(-1, 999_999_999)),
                    modified: Some(at(1 << 40, 0)),
                },
            },
            "46000000 0a 0807060504030201 00f153650000000015cd5b07
             2a00000000030000 01a40d0000 01feffffff 0105000000
             01ffffffffffffffffffc99a3b 01000000000001000000000000",
        ),
        (
            Op::SetAttributes {
                file: FILE,
                change: Change {
                    gid: Some(5),
                    ..Change::default()
                },
            },
            "26000000 0a 0807060504030201 00f153650000000015cd5b07
             2a00000000030000 00 00 0105000000 00 00",
        ),
        (
            Op::SetXattr {
                file: FILE,
                name: Bytes::from_static(b"user.a"),
                value: Bytes::from_static(&[0, 255]),
                mode: XattrMode::Create,
            },
            "2e000000 0b 0807060504030201 00f153650000000015cd5b07
             2a00000000030000 06000000757365722e61 0200000000ff 01",
        ),
        (
            Op::RemoveXattr {
                file: FILE,
                name: Bytes::from_static(b"user.a"),
            },
            "27000000 0c 0807060504030201 00f153650000000015cd5b07
             2a00000000030000 06000000757365722e61",
        ),
        (
            Op::Sync {
                file: FILE,
                data_only: true,
            },
            "1e000000 0d 0807060504030201 00f153650000000015cd5b07
             2a00000000030000 01",
        ),
        (
            Op::Times {
                file: FILE,
                accessed: at(-1, 0),
                modified: at(1_700_000_001, 999_999_999),
            },
            "35000000 0e 0807060504030201 00f153650000000015cd5b07
             2a00000000030000 ffffffffffffffff00000000 01f1536500000000ffc99a3b",
        ),
        (
            Op::TakeOver,
            "15000000 10 0807060504030201 00f153650000000015cd5b07",
        ),
        (
            Op::Checkpoint,
            "15000000 0f 0807060504030201 00f153650000000015cd5b07",
        ),
    ]
}

/// What resync moves.
fn resync_ops() -> Vec<(Op, &'static str)> {
    let object = Object {
        file: FILE,
        kind: Kind::Regular,
        target: Bytes::new(),
        mode: 0o640,
        uid: 1000,
        gid: 100,
        size: 1 << 33,
        accessed: at(1, 2),
        modified: at(3, 4),
    };
    let link = Object {
        file: OTHER,
        kind: Kind::Symlink,
        target: Bytes::from_static(b"x"),
        mode: 0o777,
        uid: 0,
        gid: 0,
        size: 1,
        accessed: at(-5, 6),
        modified: at(7, 8),
    };
    vec![
        (
            Op::PutDirectory {
                directory: DIRECTORY,
                listing: Listing::Whole {
                    first: false,
                    last: true,
                },
                entries: vec![
                    PutEntry {
                        name: name("f"),
                        object: Some(object),
                    },
                    PutEntry {
                        name: name("gone"),
                        object: None,
                    },
                ],
            },
            "64000000 20 0807060504030201 00f153650000000015cd5b07
             0700000000020000 06 02000000
             0166 01
             2a00000000030000 01 a0010000 e8030000 64000000 0000000002000000
             010000000000000002000000 030000000000000004000000 00000000
             04676f6e65 00",
        ),
        (
            Op::PutDirectory {
                directory: DIRECTORY,
                listing: Listing::Names,
                entries: Vec::new(),
            },
            "22000000 20 0807060504030201 00f153650000000015cd5b07
             0700000000020000 00 00000000",
        ),
        (
            Op::PutObject {
                object: link,
                xattrs: vec![(Bytes::from_static(b"user.a"), Bytes::from_static(b"v"))],
            },
            "62000000 21 0807060504030201 00f153650000000015cd5b07
             2211000000050000 03 ff010000 00000000 00000000 0100000000000000
             fbffffffffffffff06000000 070000000000000008000000 0100000078
             01000000 06000000757365722e61 0100000076",
        ),
        (
            Op::PutData {
                file: FILE,
                offset: 262_144,
                data: Bytes::from_static(&[0, 1, 2]).into(),
            },
            "28000000 22 0807060504030201 00f153650000000015cd5b07
             2a00000000030000 0000040000000000 000102",
        ),
        (
            Op::PutXattr {
                file: FILE,
                name: Bytes::from_static(b"user.a"),
                value: Bytes::from_static(b"v"),
            },
            "2c000000 25 0807060504030201 00f153650000000015cd5b07
             2a00000000030000 06000000757365722e61 0100000076",
        ),
        (
            Op::PutHole {
                file: FILE,
                offset: 4096,
                length: 1 << 32,
            },
            "2d000000 23 0807060504030201 00f153650000000015cd5b07
             2a00000000030000 0010000000000000 0000000001000000",
        ),
        (
            Op::ResyncEnd,
            "15000000 24 0807060504030201 00f153650000000015cd5b07",
        ),
        (
            Op::Flush,
            "15000000 26 0807060504030201 00f153650000000015cd5b07",
        ),
    ]
}

pub(super) fn ops() -> Vec<(Op, &'static str)> {
    [live_ops(), attribute_ops(), resync_ops()].concat()
}

pub(super) fn fresh_hello() -> Hello {
    Hello {
        versions: Hello::VERSIONS,
        name: "vm".into(),
        role: Role::Secondary,
        copy: CopyState::default(),
        epoch: Epoch(0),
        resume: None,
        account: Account::default(),
    }
}

pub(super) fn controls() -> Vec<(Control, &'static str)> {
    vec![
        (
            Control::Hello(Hello {
                versions: (1, 0x0203),
                name: "vm".into(),
                role: Role::Primary,
                copy: CopyState {
                    module: ModuleId(0xaa),
                    current: Generation(0xbb << 120),
                    bases: vec![Generation(0xc1)],
                    history: vec![Generation(0xd1), Generation(0xd2)],
                    up_to_date: true,
                    cut: false,
                    gave_way: false,
                    given_up: true,
                    forced: true,
                },
                epoch: Epoch::MAX,
                resume: Some((SESSION, Seq(77))),
                account: Account {
                    mount: "/vm".into(),
                    alone_since: 0x6512_3456,
                    objects: 3,
                    bytes: 0x5000,
                },
            }),
            "ac000000 01 7477696e666f6c64 0100 0302 02000000766d 01
             aa000000000000000000000000000000 000000000000000000000000000000bb
             01000000 c1000000000000000000000000000000
             02000000 d1000000000000000000000000000000 d2000000000000000000000000000000
             01 00 01 01 ffffff00 01 000102030405060708090a0b0c0d0e0f 4d00000000000000
             030000002f766d 5634126500000000 0300000000000000 0050000000000000",
        ),
        (
            Control::Hello(fresh_hello()),
            "61000000 01 7477696e666f6c64 0100 0100 02000000766d 02
             00000000000000000000000000000000 00000000000000000000000000000000
             00000000 00000000 00 00 00 00 00000000 00
             00000000 0000000000000000 0000000000000000 0000000000000000",
        ),
        (
            Control::Refuse {
                reason: "nö".into(),
            },
            "08000000 02 030000006ec3b6",
        ),
        (
            Control::Resume { session: SESSION },
            "11000000 03 000102030405060708090a0b0c0d0e0f",
        ),
        (
            Control::Decide {
                decision: Decision::Resync {
                    source: Which::Peer,
                    method: Method::Everything,
                },
                session: SESSION,
            },
            "14000000 04 000102030405060708090a0b0c0d0e0f 01 02 03",
        ),
        (
            Control::Marks {
                intents: vec![
                    Intent::Extent {
                        file: FILE,
                        extent: 0x0102_0304,
                    },
                    Intent::Attributes { file: FILE },
                    Intent::Directory {
                        directory: DIRECTORY,
                    },
                    Intent::NewIds { first: FileId(0) },
                    Intent::File { file: FILE },
                ],
                damaged: false,
                holds: Holds::Seed,
                more: true,
            },
            "39000000 05 01 00 02 05000000
             01 2a00000000030000 04030201
             02 2a00000000030000
             03 0700000000020000
             04 0000000000000000
             05 2a00000000030000",
        ),
        (
            Control::OwnMarks {
                map: {
                    let mut map = twinfold_protocol::marks::DirtyMap::default();
                    map.mark_attributes(FILE);
                    map.to_bytes().into()
                },
            },
            "0f000000 08 0a000000 012a0000000003000001",
        ),
        (
            Control::Leave {
                reason: "bye".into(),
                flushed: true,
            },
            "09000000 06 01 03000000627965",
        ),
        (Control::Alive, "01000000 07"),
        (
            Control::Rejoin {
                reason: "verify".into(),
            },
            "0b000000 10 06000000766572696679",
        ),
        (
            Control::Progress(Progress {
                phase: Phase::Moving,
                done: 0x0102,
                total: 0x0304,
            }),
            "12000000 09 02 0201000000000000 0403000000000000",
        ),
        (
            Control::Visit {
                versions: (1, 2),
                name: "vm".into(),
                session: SESSION,
            },
            "23000000 11 7477696e666f6c64 0100 0200 02000000766d
             000102030405060708090a0b0c0d0e0f",
        ),
        (Control::Welcome, "01000000 12"),
    ]
}

pub(super) fn receipts() -> Vec<(Receipt, &'static str)> {
    vec![
        (
            Receipt::Applied {
                applied: Seq(0x0102_0304_0506_0708),
                durable: Seq(0x0102_0304_0506_0707),
            },
            "11000000 41 0807060504030201 0707060504030201",
        ),
        (
            Receipt::Synced { seq: Seq(9) },
            "09000000 42 0900000000000000",
        ),
        (
            Receipt::Failed {
                seq: Seq(9),
                reason: "ENOSPC".into(),
            },
            "13000000 43 0900000000000000 06000000454e4f535043",
        ),
        (Receipt::Busy, "01000000 44"),
    ]
}

pub(super) const START: (OpStreamStart, &str) = (
    OpStreamStart {
        session: SESSION,
        first: Seq(9),
        mode: AckMode::Disk,
    },
    "1a000000 40 000102030405060708090a0b0c0d0e0f 0900000000000000 01",
);

pub(super) fn requests() -> Vec<(CompareRequest, &'static str)> {
    vec![
        (
            CompareRequest::Blocks {
                file: FILE,
                offset: 8192,
                blocks: 4096,
            },
            "15000000 60 2a00000000030000 0020000000000000 00100000",
        ),
        (
            CompareRequest::Objects {
                files: vec![FILE, DIRECTORY],
            },
            "15000000 63 02000000 2a00000000030000 0700000000020000",
        ),
        (
            CompareRequest::Match {
                directory: DIRECTORY,
                entries: vec![MatchEntry {
                    name: Name::new(b"a").unwrap(),
                    file: FILE,
                    kind: Kind::Regular,
                }],
            },
            "18000000 65 0700000000020000 01000000 0161 2a00000000030000 01",
        ),
    ]
}

pub(super) fn answers() -> Vec<(CompareAnswer, &'static str)> {
    let mut hashes: Vec<u8> = (0..16).collect();
    hashes.extend_from_slice(&[0; 16]);
    vec![
        (CompareAnswer::Missing, "01000000 61"),
        (
            CompareAnswer::Hashes {
                size: 4097,
                hashes: hashes.into(),
            },
            "1e000000 62 0110000000000000 02000000 01 000102030405060708090a0b0c0d0e0f",
        ),
        (
            CompareAnswer::Present {
                present: vec![true, false],
            },
            "07000000 64 02000000 01 00",
        ),
    ]
}
