//! Arbitrary values of everything that goes over the wire, within its limits.

use std::fmt::Debug;

use bytes::Bytes;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;
use twinfold_protocol::attr::{Attributes, Device, Kind};
use twinfold_protocol::handshake::{CopyState, Decision, Method, Role, Which};
use twinfold_protocol::ids::{Epoch, FileId, Generation, ModuleId, Seq, SessionId};
use twinfold_protocol::limits;
use twinfold_protocol::marks::Intent;
use twinfold_protocol::op::{
    AllocateMode, Change, Listing, Name, NewObject, Object, Op, Payload, PutEntry, RenameMode,
    Sequenced, Stability, XattrMode,
};
use twinfold_protocol::primary::AckMode;
use twinfold_protocol::remote::{Answer, Entry, EntryName, Failure, Request, Space};
use twinfold_protocol::time::Timestamp;
use twinfold_protocol::wire::{
    self, Account, Answered, Call, CompareAnswer, CompareRequest, Control, Frame, Hello, Holds,
    MatchEntry, OpStreamStart, Phase, Progress, Receipt, VerifyAnswer, VerifyRequest, Violation,
};

#[path = "verify.rs"]
mod verify;

/// Any frame, with the stream that carries it.
#[derive(Clone, PartialEq, Debug)]
pub(super) enum Sent {
    Op(Sequenced),
    Control(Control),
    Receipt(Receipt),
    Start(OpStreamStart),
    Request(CompareRequest),
    Answer(CompareAnswer),
    Verify(VerifyRequest),
    Digests(VerifyAnswer),
    Call(Call),
    Answered(Answered),
}

impl Sent {
    pub(super) fn encode(&self) -> Frame {
        match self {
            Sent::Op(op) => wire::encode_op(op.seq, op.time, &op.op),
            Sent::Control(control) => control.encode(),
            Sent::Receipt(receipt) => receipt.encode(),
            Sent::Start(start) => start.encode(),
            Sent::Request(request) => request.encode(),
            Sent::Answer(answer) => answer.encode(),
            Sent::Verify(request) => request.encode(),
            Sent::Digests(answer) => answer.encode(),
            Sent::Call(call) => call.encode(),
            Sent::Answered(answered) => answered.encode(),
        }
    }

    /// Decodes a frame of the same stream.
    pub(super) fn decode(&self, frame: Payload) -> Result<Sent, Violation> {
        match self {
            Sent::Op(_) => wire::decode_op(frame).map(Sent::Op),
            Sent::Control(_) => Control::decode(frame).map(Sent::Control),
            Sent::Receipt(_) => Receipt::decode(frame).map(Sent::Receipt),
            Sent::Start(_) => OpStreamStart::decode(frame).map(Sent::Start),
            Sent::Request(_) => CompareRequest::decode(frame).map(Sent::Request),
            Sent::Answer(_) => CompareAnswer::decode(frame).map(Sent::Answer),
            Sent::Verify(_) => VerifyRequest::decode(frame).map(Sent::Verify),
            Sent::Digests(_) => VerifyAnswer::decode(frame).map(Sent::Digests),
            Sent::Call(_) => Call::decode(frame).map(Sent::Call),
            Sent::Answered(_) => Answered::decode(frame).map(Sent::Answered),
        }
    }

    /// Which stream and direction carries it.
    pub(super) fn stream(&self) -> &'static str {
        match self {
            Sent::Op(_) => "op",
            Sent::Control(_) => "control",
            Sent::Receipt(_) => "receipt",
            Sent::Start(_) => "start",
            Sent::Request(_) => "request",
            Sent::Answer(_) => "answer",
            Sent::Verify(_) => "verify",
            Sent::Digests(_) => "digests",
            Sent::Call(_) => "call",
            Sent::Answered(_) => "answered",
        }
    }

    /// Whether the frame ends with bytes that have no length of their own.
    pub(super) fn has_rest(&self) -> bool {
        match self {
            Sent::Op(op) => matches!(op.op, Op::Write { .. } | Op::PutData { .. }),
            Sent::Call(call) => matches!(
                call.request,
                Request::Change {
                    op: Op::Write { .. },
                    ..
                }
            ),
            Sent::Answered(answered) => matches!(answered.answer, Answer::Bytes(_)),
            _ => false,
        }
    }
}

fn ack_mode() -> impl Strategy<Value = AckMode> {
    prop_oneof![
        Just(AckMode::Memory),
        Just(AckMode::Disk),
        Just(AckMode::Flush)
    ]
}

pub(super) fn any_sent() -> impl Strategy<Value = Sent> {
    let start = (any::<u128>(), seq(), ack_mode()).prop_map(|(session, first, mode)| {
        Sent::Start(OpStreamStart {
            session: SessionId(session),
            first,
            mode,
        })
    });
    let blocks = 0..=limits::MAX_COMPARE_BLOCKS as u32;
    let range = (file(), 0..=limits::MAX_OFFSET / limits::BLOCK, blocks);
    let request = prop_oneof![
        range.prop_map(|(file, block, blocks)| CompareRequest::Blocks {
            file,
            offset: block * limits::BLOCK,
            blocks,
        }),
        vec(file(), 0..20).prop_map(|files| CompareRequest::Objects { files }),
        (file(), vec((name(), file(), kind()), 0..20)).prop_map(|(directory, entries)| {
            CompareRequest::Match {
                directory,
                entries: entries
                    .into_iter()
                    .map(|(name, file, kind)| MatchEntry { name, file, kind })
                    .collect(),
            }
        }),
    ];
    let answer = prop_oneof![
        Just(CompareAnswer::Missing),
        (offset(), vec(any::<[u8; 16]>(), 0..20)).prop_map(|(size, hashes)| {
            CompareAnswer::Hashes {
                size,
                hashes: hashes.concat().into(),
            }
        }),
        vec(any::<bool>(), 0..20).prop_map(|present| CompareAnswer::Present { present }),
    ];
    prop_oneof![
        8 => any_op().prop_map(Sent::Op),
        4 => any_control().prop_map(Sent::Control),
        2 => any_receipt().prop_map(Sent::Receipt),
        1 => start,
        1 => request.prop_map(Sent::Request),
        1 => answer.prop_map(Sent::Answer),
        1 => verify::any_request().prop_map(Sent::Verify),
        1 => verify::any_answer().prop_map(Sent::Digests),
        3 => any_call().prop_map(Sent::Call),
        2 => any_answered().prop_map(Sent::Answered),
    ]
}

pub(super) fn any_op() -> impl Strategy<Value = Sequenced> {
    let op = prop_oneof![
        data_ops().boxed(),
        name_ops().boxed(),
        attribute_ops().boxed(),
        resync_ops().boxed(),
        verify::any_op().boxed(),
    ];
    (seq(), time(), op).prop_map(|(seq, time, op)| Sequenced { seq, time, op })
}

fn one<T: Clone + Debug + 'static>(values: &[T]) -> impl Strategy<Value = T> + use<T> {
    select(values.to_vec())
}

fn seq() -> impl Strategy<Value = Seq> {
    prop_oneof![any::<u64>(), 0..100u64].prop_map(Seq)
}

fn file() -> impl Strategy<Value = FileId> {
    prop_oneof![any::<u64>(), 1..100u64].prop_map(|id| FileId(id.max(1)))
}

fn offset() -> impl Strategy<Value = u64> {
    prop_oneof![
        0..=limits::MAX_OFFSET,
        0..10_000u64,
        Just(limits::MAX_OFFSET)
    ]
}

/// An offset and a length that end within what a file can have.
fn range() -> impl Strategy<Value = (u64, u64)> {
    (offset(), offset()).prop_map(|(a, b)| (a, b.min(limits::MAX_OFFSET - a)))
}

fn time() -> impl Strategy<Value = Timestamp> {
    (any::<i64>(), 0..1_000_000_000u32).prop_map(|(secs, nanos)| Timestamp { secs, nanos })
}

fn mode() -> impl Strategy<Value = u32> {
    0..=0o7777u32
}

fn name() -> impl Strategy<Value = Name> {
    let byte = prop_oneof![any::<u8>(), b'.'..=b'0'];
    prop_oneof![9 => vec(byte.clone(), 1..12), 1 => vec(byte, 1..=limits::MAX_NAME)]
        .prop_filter_map("not a name", |bytes| Name::new(&bytes).ok())
}

fn some_bytes(most: usize) -> impl Strategy<Value = Bytes> {
    let few = vec(any::<u8>(), 0..16);
    prop_oneof![15 => few, 1 => vec(any::<u8>(), 0..=most)].prop_map(Bytes::from)
}

fn text(most: usize) -> impl Strategy<Value = String> {
    vec(any::<char>(), 0..most).prop_map(move |chars| {
        let mut text = String::new();
        for c in chars {
            if text.len() + c.len_utf8() <= most {
                text.push(c);
            }
        }
        text
    })
}

fn payload() -> impl Strategy<Value = Payload> {
    vec(any::<u8>(), 0..600).prop_map(|data| Bytes::from(data).into())
}

fn kind() -> impl Strategy<Value = Kind> {
    let device = || (any::<u32>(), any::<u32>()).prop_map(|(major, minor)| Device { major, minor });
    let plain = [
        Kind::Regular,
        Kind::Directory,
        Kind::Symlink,
        Kind::Fifo,
        Kind::Socket,
    ];
    prop_oneof![
        5 => one(&plain),
        1 => device().prop_map(Kind::CharDevice),
        1 => device().prop_map(Kind::BlockDevice),
    ]
}

fn data_ops() -> impl Strategy<Value = Op> {
    let stability = [Stability::Mode, Stability::Data, Stability::Full];
    let modes = [
        AllocateMode::Allocate,
        AllocateMode::KeepSize,
        AllocateMode::PunchHole,
        AllocateMode::ZeroRange,
        AllocateMode::ZeroRangeKeepSize,
    ];
    prop_oneof![
        (file(), offset(), one(&stability), any::<bool>(), payload()).prop_map(
            |(file, offset, stability, clear_privileges, data)| Op::Write {
                file,
                offset: offset.min(limits::MAX_OFFSET - data.len() as u64),
                stability,
                clear_privileges,
                data,
            }
        ),
        (file(), offset(), any::<bool>()).prop_map(|(file, size, clear_privileges)| {
            Op::Truncate {
                file,
                size,
                clear_privileges,
            }
        }),
        (file(), one(&modes), range()).prop_map(|(file, mode, (offset, length))| {
            Op::Allocate {
                file,
                mode,
                offset,
                length,
            }
        }),
        (file(), offset(), file(), range()).prop_map(|(from, from_offset, to, range)| {
            Op::CopyRange {
                from,
                from_offset: from_offset.min(limits::MAX_OFFSET - range.1),
                to,
                to_offset: range.0,
                length: range.1,
            }
        }),
        (file(), any::<bool>()).prop_map(|(file, data_only)| Op::Sync { file, data_only }),
        Just(Op::Checkpoint),
        Just(Op::TakeOver),
    ]
}

fn new_object() -> impl Strategy<Value = NewObject> {
    let target = some_bytes(limits::MAX_TARGET);
    let owner = (any::<u32>(), any::<u32>());
    (file(), kind(), mode(), mode(), owner, target).prop_map(
        |(file, kind, mode, umask, (uid, gid), target)| NewObject {
            file,
            kind,
            target,
            mode,
            umask,
            uid,
            gid,
        },
    )
}

fn name_ops() -> impl Strategy<Value = Op> {
    let modes = [
        RenameMode::Replace,
        RenameMode::NoReplace,
        RenameMode::Exchange,
    ];
    let replaced = option::of(file());
    prop_oneof![
        (file(), name(), new_object()).prop_map(|(parent, name, object)| Op::Create {
            parent,
            name,
            object,
        }),
        (file(), file(), name()).prop_map(|(file, parent, name)| Op::Link { file, parent, name }),
        (file(), name(), file()).prop_map(|(parent, name, file)| Op::Unlink { parent, name, file }),
        (file(), name(), file()).prop_map(|(parent, name, file)| Op::RemoveDirectory {
            parent,
            name,
            file
        }),
        (
            file(),
            name(),
            file(),
            file(),
            name(),
            replaced,
            one(&modes)
        )
            .prop_map(
                |(parent, name, file, new_parent, new_name, replaced, mode)| Op::Rename {
                    parent,
                    name,
                    file,
                    new_parent,
                    new_name,
                    replaced,
                    mode,
                }
            ),
    ]
}

fn attribute_ops() -> impl Strategy<Value = Op> {
    let owner = || option::of(any::<u32>());
    let change = (
        option::of(mode()),
        owner(),
        owner(),
        option::of(time()),
        option::of(time()),
    );
    let change = change.prop_map(|(mode, uid, gid, accessed, modified)| Change {
        mode,
        uid,
        gid,
        accessed,
        modified,
    });
    let modes = [XattrMode::Either, XattrMode::Create, XattrMode::Replace];
    let xattr = || some_bytes(limits::MAX_XATTR_NAME);
    prop_oneof![
        (file(), change).prop_map(|(file, change)| Op::SetAttributes { file, change }),
        (file(), xattr(), some_bytes(5000), one(&modes)).prop_map(|(file, name, value, mode)| {
            Op::SetXattr {
                file,
                name,
                value,
                mode,
            }
        }),
        (file(), xattr()).prop_map(|(file, name)| Op::RemoveXattr { file, name }),
        (file(), time(), time()).prop_map(|(file, accessed, modified)| Op::Times {
            file,
            accessed,
            modified,
        }),
    ]
}

fn object() -> impl Strategy<Value = Object> {
    let owner = (any::<u32>(), any::<u32>());
    let times = (time(), time());
    let target = some_bytes(limits::MAX_TARGET);
    (file(), kind(), mode(), owner, offset(), times, target).prop_map(
        |(file, kind, mode, (uid, gid), size, (accessed, modified), target)| Object {
            file,
            kind,
            target,
            mode,
            uid,
            gid,
            size,
            accessed,
            modified,
        },
    )
}

fn resync_ops() -> impl Strategy<Value = Op> {
    let listing = prop_oneof![
        Just(Listing::Names),
        any::<(bool, bool)>().prop_map(|(first, last)| Listing::Whole { first, last }),
    ];
    let entry = (name(), option::of(object())).prop_map(|(name, object)| PutEntry { name, object });
    let xattr = (some_bytes(limits::MAX_XATTR_NAME), some_bytes(2000));
    prop_oneof![
        (file(), listing, vec(entry, 0..6)).prop_map(|(directory, listing, entries)| {
            Op::PutDirectory {
                directory,
                listing,
                entries,
            }
        }),
        (object(), vec(xattr, 0..4)).prop_map(|(object, xattrs)| Op::PutObject { object, xattrs }),
        (file(), some_bytes(limits::MAX_XATTR_NAME), some_bytes(2000))
            .prop_map(|(file, name, value)| Op::PutXattr { file, name, value }),
        (file(), offset(), payload()).prop_map(|(file, offset, data)| Op::PutData {
            file,
            offset: offset.min(limits::MAX_OFFSET - data.len() as u64),
            data,
        }),
        (file(), range()).prop_map(|(file, (offset, length))| Op::PutHole {
            file,
            offset,
            length,
        }),
        Just(Op::ResyncEnd),
        Just(Op::Flush),
    ]
}

fn generations() -> impl Strategy<Value = Vec<Generation>> {
    vec(any::<u128>().prop_map(Generation), 0..=limits::MAX_HISTORY)
}

fn hello() -> impl Strategy<Value = Hello> {
    let copy = (
        any::<u128>(),
        any::<u128>(),
        generations(),
        generations(),
        any::<(bool, bool, bool)>(),
    );
    let copy = copy.prop_map(|(module, current, bases, history, flags)| CopyState {
        module: ModuleId(module),
        current: Generation(current),
        bases,
        history,
        up_to_date: flags.0,
        cut: false,
        gave_way: false,
        given_up: flags.1,
        forced: flags.2,
    });
    let account = (text(limits::MAX_REASON), any::<(u64, u64, u64)>());
    let account = account.prop_map(|(mount, (alone_since, objects, bytes))| Account {
        mount,
        alone_since,
        objects,
        bytes,
    });
    let resume = (any::<u128>().prop_map(SessionId), seq());
    (
        any::<(u16, u16)>(),
        text(limits::MAX_MODULE_NAME),
        one(&[Role::Primary, Role::Secondary]),
        copy,
        (0..=Epoch::MAX.0).prop_map(Epoch),
        option::of(resume),
        account,
    )
        .prop_map(
            |(versions, name, role, copy, epoch, resume, account)| Hello {
                versions,
                name,
                role,
                copy,
                epoch,
                resume,
                account,
            },
        )
}

fn decision() -> impl Strategy<Value = Decision> {
    let methods = [Method::Marks, Method::Compare, Method::Everything];
    let sides = [Which::Me, Which::Peer];
    (one(&sides), one(&methods)).prop_flat_map(|(source, method)| {
        one(&[
            Decision::Resync { source, method },
            Decision::NoGoodCopy,
            Decision::SourceIncomplete { source },
            Decision::SourceNotPrimary { source },
            Decision::StalePrimary { source },
            Decision::TwoPrimaries,
            Decision::SplitBrain,
            Decision::Unrelated,
            Decision::OtherModule,
            Decision::BothGivenUp,
            Decision::NoPrimary,
        ])
    })
}

fn intent() -> impl Strategy<Value = Intent> {
    let block = any::<u64>().prop_map(|id| FileId(id / limits::ID_BLOCK * limits::ID_BLOCK));
    prop_oneof![
        (file(), any::<u32>()).prop_map(|(file, extent)| Intent::Extent { file, extent }),
        file().prop_map(|file| Intent::Attributes { file }),
        file().prop_map(|directory| Intent::Directory { directory }),
        block.prop_map(|first| Intent::NewIds { first }),
        file().prop_map(|file| Intent::File { file }),
    ]
}

pub(super) fn any_control() -> impl Strategy<Value = Control> {
    let reason = || text(40);
    let session = || any::<u128>().prop_map(SessionId);
    prop_oneof![
        3 => hello().prop_map(Control::Hello),
        1 => text(limits::MAX_REASON).prop_map(|reason| Control::Refuse { reason }),
        1 => session().prop_map(|session| Control::Resume { session }),
        1 => (decision(), session())
            .prop_map(|(decision, session)| Control::Decide { decision, session }),
        2 => (vec(intent(), 0..30), any::<bool>(), holds(), any::<bool>()).prop_map(
            |(intents, damaged, holds, more)| Control::Marks {
                intents,
                damaged,
                holds,
                more,
            }
        ),
        1 => progress().prop_map(Control::Progress),
        1 => (reason(), any::<bool>())
            .prop_map(|(reason, flushed)| Control::Leave { reason, flushed }),
        1 => Just(Control::Alive),
        1 => vec(any::<u8>(), 0..50).prop_map(|map| Control::OwnMarks { map: map.into() }),
        1 => reason().prop_map(|reason| Control::Rejoin { reason }),
        1 => (any::<(u16, u16)>(), text(limits::MAX_MODULE_NAME), session()).prop_map(
            |(versions, name, session)| Control::Visit {
                versions,
                name,
                session,
            }
        ),
        1 => Just(Control::Welcome),
    ]
}

fn holds() -> impl Strategy<Value = Holds> {
    select(vec![Holds::Nothing, Holds::Objects, Holds::Seed])
}

fn progress() -> impl Strategy<Value = Progress> {
    let phases = select(vec![Phase::Comparing, Phase::Moving, Phase::Flushing]);
    (phases, any::<u64>(), any::<u64>()).prop_map(|(phase, done, total)| Progress {
        phase,
        done,
        total,
    })
}

pub(super) fn any_receipt() -> impl Strategy<Value = Receipt> {
    prop_oneof![
        (seq(), seq()).prop_map(|(applied, durable)| Receipt::Applied { applied, durable }),
        seq().prop_map(|seq| Receipt::Synced { seq }),
        Just(Receipt::Busy),
        (seq(), text(40)).prop_map(|(seq, reason)| Receipt::Failed { seq, reason }),
        (seq(), verify::found()).prop_map(|(seq, found)| Receipt::Verified { seq, found }),
    ]
}

fn attributes() -> impl Strategy<Value = Attributes> {
    let owner = (any::<u32>(), any::<u32>(), any::<u32>());
    let space = (0..=limits::MAX_OFFSET, any::<u64>(), any::<u32>());
    (
        file(),
        kind(),
        mode(),
        owner,
        space,
        (time(), time(), time()),
    )
        .prop_map(
            |(file, kind, mode, (uid, gid, links), (size, blocks, block_size), times)| Attributes {
                file,
                kind,
                mode,
                uid,
                gid,
                links,
                size,
                blocks,
                block_size,
                accessed: times.0,
                modified: times.1,
                changed: times.2,
            },
        )
}

pub(super) fn any_call() -> impl Strategy<Value = Call> {
    let offset = || 0..=limits::MAX_OFFSET;
    let change = (any_op(), any::<bool>())
        .prop_filter("not a call", |(op, _)| Request::is_call(&op.op))
        .prop_map(|(op, clear_privileges)| Request::Change {
            op: op.op,
            clear_privileges,
        });
    let length = 0..=limits::MAX_PAYLOAD as u32;
    let request = prop_oneof![
        4 => change,
        1 => (file(), name()).prop_map(|(parent, name)| Request::Lookup { parent, name }),
        1 => file().prop_map(|file| Request::Attributes { file }),
        1 => file().prop_map(|file| Request::ReadLink { file }),
        1 => (file(), offset(), length).prop_map(|(file, offset, length)| Request::Read {
            file,
            offset,
            length,
        }),
        1 => (file(), offset(), any::<bool>())
            .prop_map(|(file, offset, data)| Request::Seek { file, offset, data }),
        1 => (file(), any::<u64>())
            .prop_map(|(directory, from)| Request::List { directory, from }),
        1 => (file(), some_bytes(limits::MAX_XATTR_NAME))
            .prop_map(|(file, name)| Request::GetXattr { file, name }),
        1 => file().prop_map(|file| Request::ListXattrs { file }),
        1 => Just(Request::Space),
        1 => file().prop_map(|file| Request::Forget { file }),
    ];
    (any::<u64>(), any::<u64>(), request).prop_map(|(id, done, request)| Call { id, done, request })
}

pub(super) fn any_answered() -> impl Strategy<Value = Answered> {
    let entry_name = prop_oneof![
        Just(EntryName::Here),
        Just(EntryName::Up),
        name().prop_map(EntryName::Name),
    ];
    let entry =
        (entry_name, any::<u64>(), attributes()).prop_map(|(name, next, attributes)| Entry {
            name,
            next,
            attributes,
        });
    let space = any::<[u64; 6]>().prop_map(|v| Space {
        block_size: v[0],
        blocks: v[1],
        free: v[2],
        available: v[3],
        files: v[4],
        files_free: v[5],
        name_max: 255,
    });
    let failure = prop_oneof![
        any::<i32>().prop_map(Failure::System),
        one(&[Failure::ReadOnly, Failure::NoSpace, Failure::Fenced]),
    ];
    let answer = prop_oneof![
        Just(Answer::Done),
        attributes().prop_map(Answer::Attributes),
        some_bytes(5000).prop_map(|bytes| Answer::Bytes(bytes.into())),
        any::<u64>().prop_map(Answer::Number),
        vec(entry, 0..20).prop_map(Answer::Entries),
        space.prop_map(Answer::Space),
        failure.prop_map(Answer::Failed),
    ];
    (any::<u64>(), answer).prop_map(|(id, answer)| Answered { id, answer })
}
