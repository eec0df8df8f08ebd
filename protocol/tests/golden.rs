//! The exact bytes of one frame of every kind, in step with `WIRE.md`.
//!
//! A change of the golden bytes is a change of the wire format: older nodes do not
//! understand it, so it needs a new version. Limits that `WIRE.md` quotes are
//! compared with the constants.

#![allow(clippy::unwrap_used, reason = "a test may panic, its helpers too")]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;

use bytes::Bytes;
use twinfold_protocol::attr::{Device, Kind};
use twinfold_protocol::handshake::{Decision, Method, Role, Which};
use twinfold_protocol::ids::{Epoch, Seq};
use twinfold_protocol::limits;
use twinfold_protocol::op::{
    AllocateMode, Listing, NewObject, Op, Payload, RenameMode, Sequenced, Stability, XattrMode,
};
use twinfold_protocol::remote::{Answer, Failure, Request};
use twinfold_protocol::wire::{
    self, Answered, Call, CompareAnswer, CompareRequest, Control, Frame, Hello, OpStreamStart,
    Receipt, VerifyAnswer, VerifyRequest, Violation,
};

#[path = "golden/frames.rs"]
mod frames;
#[path = "golden/remote.rs"]
mod remote;
#[path = "golden/verify.rs"]
mod verify;

use frames::{
    DIRECTORY, FILE, SESSION, START, answers, at, controls, fresh_hello, name, ops, receipts,
    requests,
};

const WIRE: &str = include_str!("../WIRE.md");

fn sequenced(op: Op) -> Sequenced {
    Sequenced {
        seq: Seq(0x0102_0304_0506_0708),
        time: at(1_700_000_000, 123_456_789),
        op,
    }
}

fn encode(op: &Sequenced) -> Frame {
    wire::encode_op(op.seq, op.time, &op.op)
}

fn unhex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text
        .bytes()
        .filter(|b| !b.is_ascii_whitespace())
        .map(|b| char::from(b).to_digit(16).unwrap() as u8)
        .collect();
    assert_eq!(digits.len() % 2, 0, "{text}");
    digits.chunks(2).map(|d| d[0] << 4 | d[1]).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn body(frame: &[u8]) -> Payload {
    Bytes::copy_from_slice(&frame[4..]).into()
}

fn check<T: PartialEq + Debug>(
    value: &T,
    golden: &str,
    encode: impl Fn(&T) -> Frame,
    decode: impl Fn(Payload) -> Result<T, Violation>,
) {
    let golden = unhex(golden);
    assert_eq!(
        hex(&encode(value).to_bytes()),
        hex(&golden),
        "encoding {value:?}"
    );
    assert_eq!(decode(body(&golden)).as_ref(), Ok(value));
    let length = u32::from_le_bytes(golden[..4].try_into().unwrap()) as usize;
    assert_eq!(length, golden.len() - 4, "length word of {value:?}");
}

#[test]
fn ops_have_their_golden_bytes() {
    for (op, golden) in ops() {
        check(&sequenced(op), golden, encode, wire::decode_op);
    }
    check(
        &START.0,
        START.1,
        OpStreamStart::encode,
        OpStreamStart::decode,
    );
}

#[test]
fn control_frames_have_their_golden_bytes() {
    for (control, golden) in controls() {
        check(&control, golden, Control::encode, Control::decode);
    }
}

#[test]
fn receipts_have_their_golden_bytes() {
    for (receipt, golden) in receipts() {
        check(&receipt, golden, Receipt::encode, Receipt::decode);
    }
}

#[test]
fn compare_frames_have_their_golden_bytes() {
    for (request, golden) in requests() {
        check(
            &request,
            golden,
            CompareRequest::encode,
            CompareRequest::decode,
        );
    }
    for (answer, golden) in answers() {
        check(
            &answer,
            golden,
            CompareAnswer::encode,
            CompareAnswer::decode,
        );
    }
}

#[test]
fn verify_frames_have_their_golden_bytes() {
    for (op, golden) in verify::ops() {
        check(&sequenced(op), golden, encode, wire::decode_op);
    }
    for (receipt, golden) in verify::receipts() {
        check(&receipt, golden, Receipt::encode, Receipt::decode);
    }
    for (request, golden) in verify::requests() {
        check(
            &request,
            golden,
            VerifyRequest::encode,
            VerifyRequest::decode,
        );
    }
    for (answer, golden) in verify::answers() {
        check(&answer, golden, VerifyAnswer::encode, VerifyAnswer::decode);
    }
}

#[test]
fn remote_calls_have_their_golden_bytes() {
    for (call, golden) in remote::calls() {
        check(&call, golden, Call::encode, Call::decode);
    }
    for (answer, golden) in remote::answered() {
        check(&answer, golden, Answered::encode, Answered::decode);
    }
}

/// `frames` are encodings that differ in the byte at `place`, with that byte's value.
/// Every other value of the byte is refused.
fn check_codes<T: PartialEq + Debug>(
    place: usize,
    frames: &[(u8, T)],
    encode: impl Fn(&T) -> Frame,
    decode: impl Fn(Payload) -> Result<T, Violation>,
) {
    let codes: BTreeSet<u8> = frames.iter().map(|(code, _)| *code).collect();
    assert_eq!(codes.len(), frames.len());
    for (code, value) in frames {
        let bytes = encode(value).to_bytes();
        assert_eq!(bytes[place], *code, "{value:?}");
        assert_eq!(decode(body(&bytes)).as_ref(), Ok(value));
        for other in (0..=u8::MAX).filter(|v| !codes.contains(v)) {
            let mut bytes = bytes.to_vec();
            bytes[place] = other;
            assert!(decode(body(&bytes)).is_err(), "{value:?} with {other}");
        }
    }
}

fn check_op_codes(place: usize, codes: &[u8], make: impl Fn(usize) -> Op) {
    let frames: Vec<_> = (codes.iter().enumerate())
        .map(|(i, code)| (*code, sequenced(make(i))))
        .collect();
    check_codes(place, &frames, encode, wire::decode_op);
}

#[test]
fn enumerations_in_ops_have_their_documented_codes() {
    use AllocateMode as A;
    let stability = [Stability::Mode, Stability::Data, Stability::Full];
    check_op_codes(41, &[0, 1, 2], |i| Op::Write {
        file: FILE,
        offset: 0,
        stability: stability[i],
        clear_privileges: false,
        data: Payload::default(),
    });
    let modes = [
        A::Allocate,
        A::KeepSize,
        A::PunchHole,
        A::ZeroRange,
        A::ZeroRangeKeepSize,
    ];
    check_op_codes(33, &[0, 1, 2, 3, 4], |i| Op::Allocate {
        file: FILE,
        mode: modes[i],
        offset: 0,
        length: 0,
    });
    let renames = [
        RenameMode::Replace,
        RenameMode::NoReplace,
        RenameMode::Exchange,
    ];
    check_op_codes(51 + 1 + 1 + 1, &[0, 1, 2], |i| Op::Rename {
        parent: DIRECTORY,
        name: name("a"),
        file: FILE,
        new_parent: DIRECTORY,
        new_name: name("b"),
        replaced: None,
        mode: renames[i],
    });
    let xattrs = [XattrMode::Either, XattrMode::Create, XattrMode::Replace];
    check_op_codes(41 + 1 + 2, &[0, 1, 2], |i| Op::SetXattr {
        file: FILE,
        name: Bytes::from_static(b"a"),
        value: Bytes::from_static(b"bc"),
        mode: xattrs[i],
    });
    check_op_codes(33, &[0, 4, 5, 6, 7], |i| Op::PutDirectory {
        directory: DIRECTORY,
        listing: match i {
            0 => Listing::Names,
            i => Listing::Whole {
                first: (i - 1) & 1 != 0,
                last: (i - 1) & 2 != 0,
            },
        },
        entries: Vec::new(),
    });
    let device = Device { major: 1, minor: 2 };
    let kinds = [
        Kind::Regular,
        Kind::Directory,
        Kind::Symlink,
        Kind::Fifo,
        Kind::Socket,
        Kind::CharDevice(device),
        Kind::BlockDevice(device),
    ];
    check_op_codes(42 + 1, &[1, 2, 3, 4, 5, 6, 7], |i| Op::Create {
        parent: DIRECTORY,
        name: name("a"),
        object: NewObject {
            file: FILE,
            kind: kinds[i],
            target: Bytes::new(),
            mode: 0,
            umask: 0,
            uid: 0,
            gid: 0,
        },
    });
}

#[test]
fn enumerations_in_control_frames_have_their_documented_codes() {
    let roles = [(1, Role::Primary), (2, Role::Secondary)].map(|(code, role)| {
        let hello = fresh_hello();
        (code, Control::Hello(Hello { role, ..hello }))
    });
    check_codes(21 + 2, &roles, Control::encode, Control::decode);

    let decide = |decision| Control::Decide {
        decision,
        session: SESSION,
    };
    for (side, source) in [(1, Which::Me), (2, Which::Peer)] {
        let methods = [
            (1, Method::Marks),
            (2, Method::Compare),
            (3, Method::Everything),
        ];
        let resyncs =
            methods.map(|(code, method)| (code, decide(Decision::Resync { source, method })));
        check_codes(23, &resyncs, Control::encode, Control::decode);
        for (code, decision) in [
            (2, Decision::NoGoodCopy),
            (3, Decision::SourceIncomplete { source }),
            (4, Decision::SourceNotPrimary { source }),
            (5, Decision::StalePrimary { source }),
            (6, Decision::TwoPrimaries),
            (7, Decision::SplitBrain),
            (8, Decision::Unrelated),
            (9, Decision::OtherModule),
            (10, Decision::BothGivenUp),
            (11, Decision::NoPrimary),
        ] {
            let used = (3..=5).contains(&code);
            let bytes = Control::encode(&decide(decision)).to_bytes();
            assert_eq!(bytes[21..], [code, if used { side } else { 0 }, 0]);
            assert_eq!(Control::decode(body(&bytes)), Ok(decide(decision)));
        }
    }
}

fn op_name(op: &Op) -> &'static str {
    match op {
        Op::Write { .. } => "Write",
        Op::Truncate { .. } => "Truncate",
        Op::Allocate { .. } => "Allocate",
        Op::CopyRange { .. } => "CopyRange",
        Op::Create { .. } => "Create",
        Op::Link { .. } => "Link",
        Op::Unlink { .. } => "Unlink",
        Op::RemoveDirectory { .. } => "RemoveDirectory",
        Op::Rename { .. } => "Rename",
        Op::SetAttributes { .. } => "SetAttributes",
        Op::SetXattr { .. } => "SetXattr",
        Op::RemoveXattr { .. } => "RemoveXattr",
        Op::Sync { .. } => "Sync",
        Op::Times { .. } => "Times",
        Op::Checkpoint => "Checkpoint",
        Op::TakeOver => "TakeOver",
        Op::PutDirectory { .. } => "PutDirectory",
        Op::PutObject { .. } => "PutObject",
        Op::PutXattr { .. } => "PutXattr",
        Op::PutData { .. } => "PutData",
        Op::PutHole { .. } => "PutHole",
        Op::ResyncEnd => "ResyncEnd",
        Op::Flush => "Flush",
        Op::Verify { .. } => "Verify",
        Op::Differs { .. } => "Differs",
    }
}

fn control_name(control: &Control) -> &'static str {
    match control {
        Control::Hello(_) => "Hello",
        Control::Refuse { .. } => "Refuse",
        Control::Resume { .. } => "Resume",
        Control::Decide { .. } => "Decide",
        Control::Marks { .. } => "Marks",
        Control::Leave { .. } => "Leave",
        Control::Alive => "Alive",
        Control::OwnMarks { .. } => "OwnMarks",
        Control::Rejoin { .. } => "Rejoin",
        Control::Progress(_) => "Progress",
        Control::Visit { .. } => "Visit",
        Control::Welcome => "Welcome",
    }
}

fn receipt_name(receipt: &Receipt) -> &'static str {
    match receipt {
        Receipt::Applied { .. } => "Applied",
        Receipt::Synced { .. } => "Synced",
        Receipt::Failed { .. } => "Failed",
        Receipt::Busy => "Busy",
        Receipt::Verified { .. } => "Verified",
    }
}

fn request_name(request: &CompareRequest) -> &'static str {
    match request {
        CompareRequest::Blocks { .. } => "Blocks",
        CompareRequest::Objects { .. } => "Objects",
        CompareRequest::Match { .. } => "Match",
    }
}

fn answer_name(answer: &CompareAnswer) -> &'static str {
    match answer {
        CompareAnswer::Missing => "Missing",
        CompareAnswer::Hashes { .. } => "Hashes",
        CompareAnswer::Present { .. } => "Present",
    }
}

fn call_name(call: &Call) -> &'static str {
    match &call.request {
        Request::Change { .. } => "Change",
        Request::Lookup { .. } => "Lookup",
        Request::Attributes { .. } => "Attributes",
        Request::ReadLink { .. } => "ReadLink",
        Request::Read { .. } => "Read",
        Request::Seek { .. } => "Seek",
        Request::List { .. } => "List",
        Request::GetXattr { .. } => "GetXattr",
        Request::ListXattrs { .. } => "ListXattrs",
        Request::Space => "Space",
        Request::Forget { .. } => "Forget",
    }
}

fn answered_name(answered: &Answered) -> &'static str {
    match &answered.answer {
        Answer::Done => "Done",
        Answer::Attributes(_) => "Attributes",
        Answer::Bytes(_) => "Bytes",
        Answer::Number(_) => "Number",
        Answer::Entries(_) => "Entries",
        Answer::Space(_) => "Space",
        Answer::Failed(_) => "Failed",
    }
}

#[test]
fn failures_have_their_documented_codes() {
    let failures = [
        Failure::ReadOnly,
        Failure::NoSpace,
        Failure::TooLarge,
        Failure::NotADirectory,
        Failure::IsADirectory,
        Failure::NameTooLong,
        Failure::NotSupported,
        Failure::Invalid,
        Failure::Fenced,
    ];
    let frames: Vec<_> = (2..)
        .zip(failures)
        .map(|(code, failure)| {
            let answer = Answer::Failed(failure);
            (code, Answered { id: 1, answer })
        })
        .collect();
    // A failure with a code of the system is longer: it is refused like one that nobody knows.
    check_codes(13, &frames, Answered::encode, Answered::decode);
}

/// A frame kind that is in the code has golden bytes here and a section there.
#[test]
fn every_kind_has_golden_bytes_and_a_section() {
    let mut golden = BTreeSet::new();
    let mut have = |section: &str, name: &str, bytes: &str| {
        golden.insert(format!("{section}: {name} ({})", unhex(bytes)[4]));
    };
    have("Ops", "OpStreamStart", START.1);
    for (op, bytes) in ops().into_iter().chain(verify::ops()) {
        have("Ops", op_name(&op), bytes);
    }
    for (control, bytes) in controls() {
        have("Control", control_name(&control), bytes);
    }
    for (receipt, bytes) in receipts().into_iter().chain(verify::receipts()) {
        have("Receipts", receipt_name(&receipt), bytes);
    }
    for (request, bytes) in requests() {
        have("Compare", request_name(&request), bytes);
    }
    for (answer, bytes) in answers() {
        have("Compare", answer_name(&answer), bytes);
    }
    for (call, bytes) in remote::calls() {
        have("Remote calls", call_name(&call), bytes);
    }
    for (answer, bytes) in remote::answered() {
        have("Remote calls", answered_name(&answer), bytes);
    }

    for (request, bytes) in verify::requests() {
        have("Verify", verify::request_name(&request), bytes);
    }
    for (answer, bytes) in verify::answers() {
        have("Verify", verify::answer_name(&answer), bytes);
    }

    let mut documented = BTreeSet::new();
    let mut section = "";
    for line in WIRE.lines() {
        if let Some(title) = line.strip_prefix("## ") {
            section = title;
        } else if let Some(kind) = line.strip_prefix("### ")
            && kind.ends_with(')')
        {
            documented.insert(format!("{section}: {kind}"));
        }
    }
    assert_eq!(documented, golden);
}

fn constants() -> BTreeMap<&'static str, u64> {
    let of = |n: usize| n as u64;
    BTreeMap::from([
        ("MAX_FRAME", of(limits::MAX_FRAME)),
        ("MAX_PAYLOAD", of(limits::MAX_PAYLOAD)),
        ("MAX_NAME", of(limits::MAX_NAME)),
        ("MAX_TARGET", of(limits::MAX_TARGET)),
        ("MAX_XATTR_NAME", of(limits::MAX_XATTR_NAME)),
        ("MAX_XATTR_VALUE", of(limits::MAX_XATTR_VALUE)),
        ("MAX_OFFSET", limits::MAX_OFFSET),
        ("BLOCK", limits::BLOCK),
        ("EXTENT", limits::EXTENT),
        ("ID_BLOCK", limits::ID_BLOCK),
        ("MAX_PUT_ENTRIES", of(limits::MAX_PUT_ENTRIES)),
        ("MAX_HISTORY", of(limits::MAX_HISTORY)),
        ("MAX_MARKS_PER_FRAME", of(limits::MAX_MARKS_PER_FRAME)),
        ("MAX_MAP_BYTES", of(limits::MAX_MAP_BYTES)),
        ("MAX_COMPARE_BLOCKS", of(limits::MAX_COMPARE_BLOCKS)),
        ("MAX_COMPARE_OBJECTS", of(limits::MAX_COMPARE_OBJECTS)),
        ("MAX_PUT_XATTRS", of(limits::MAX_PUT_XATTRS)),
        ("VERIFY_CHUNK", limits::VERIFY_CHUNK),
        ("MAX_VERIFY_QUESTIONS", of(limits::MAX_VERIFY_QUESTIONS)),
        ("MAX_VERIFY_BYTES", limits::MAX_VERIFY_BYTES),
        ("MAX_VERIFY_NAMES", of(limits::MAX_VERIFY_NAMES)),
        ("MAX_XATTRS", of(limits::MAX_XATTRS)),
        ("MAX_LISTED", of(limits::MAX_LISTED)),
        ("MAX_REMOTE_CALLS", of(limits::MAX_REMOTE_CALLS)),
        ("MAX_REASON", of(limits::MAX_REASON)),
        ("MAX_MODULE_NAME", of(limits::MAX_MODULE_NAME)),
    ])
}

#[test]
fn the_table_of_limits_quotes_the_constants() {
    let mut quoted = BTreeMap::new();
    for line in WIRE.lines().filter(|l| l.starts_with("| ")) {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let is_constant = |b: u8| b.is_ascii_uppercase() || b == b'_';
        if !cells[1].bytes().all(is_constant) {
            continue;
        }
        let value: u64 = cells[2].parse().unwrap();
        assert_eq!(quoted.insert(cells[1], value), None, "{line}");
    }
    assert_eq!(quoted, constants());
}

/// "`NAME` (value)" anywhere in the text.
#[test]
fn constants_quoted_in_the_text_are_right() {
    let mut known = constants();
    known.insert("VERSION_MIN", wire::VERSION_MIN.into());
    known.insert("VERSION_MAX", wire::VERSION_MAX.into());
    let mut seen = 0;
    for (name, value) in &known {
        for (place, quote) in WIRE.match_indices(&format!("`{name}` (")) {
            let rest = &WIRE[place + quote.len()..];
            let digits = &rest[..rest.find(')').unwrap()];
            assert_eq!(digits, value.to_string(), "{name}");
            seen += 1;
        }
    }
    let all = WIRE.matches("` (").count();
    assert_eq!(seen, all, "a constant is quoted that nobody knows");
    assert!(WIRE.contains(&format!(
        "`{}`",
        String::from_utf8_lossy(wire::ALPN).into_owned()
    )));
    assert!(WIRE.contains(&format!("u32, at most {}:", Epoch::MAX.0)));
    assert!(WIRE.starts_with(&format!("# Wire format, version {}\n", wire::VERSION_MAX)));
}
