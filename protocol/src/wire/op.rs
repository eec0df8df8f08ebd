//! The frames of the op stream. Layout: `protocol/WIRE.md`, "Ops".

use super::coder::{Reader, Violation, Writer};
use super::verify::{get_ordered, put_question};
use super::{Frame, coder};
use crate::ids::Seq;
use crate::limits;
use crate::op::{
    AllocateMode, Change, Listing, NewObject, Object, Op, Payload, PutEntry, RenameMode, Sequenced,
    Stability, XattrMode,
};
use crate::time::Timestamp;

/// Encodes an op with its number and time. The payload is not copied.
pub fn encode_op(seq: Seq, time: Timestamp, op: &Op) -> Frame {
    let mut w = Writer::new(code(op));
    w.seq(seq);
    w.time(time);
    let payload = put_body(&mut w, op);
    w.finish(payload)
}

/// Writes what belongs to an op of this kind; returns the data that ends the frame.
pub(super) fn put_body(w: &mut Writer, op: &Op) -> Payload {
    let mut payload = Payload::default();
    match op {
        Op::Write {
            file,
            offset,
            stability,
            clear_privileges,
            data,
        } => {
            w.file(*file);
            w.u64(*offset);
            w.u8(match stability {
                Stability::Mode => 0,
                Stability::Data => 1,
                Stability::Full => 2,
            });
            w.u8((*clear_privileges).into());
            payload = data.clone();
        }
        Op::Truncate {
            file,
            size,
            clear_privileges,
        } => {
            w.file(*file);
            w.u64(*size);
            w.u8((*clear_privileges).into());
        }
        Op::Allocate {
            file,
            mode,
            offset,
            length,
        } => {
            w.file(*file);
            w.u8(match mode {
                AllocateMode::Allocate => 0,
                AllocateMode::KeepSize => 1,
                AllocateMode::PunchHole => 2,
                AllocateMode::ZeroRange => 3,
                AllocateMode::ZeroRangeKeepSize => 4,
            });
            w.u64(*offset);
            w.u64(*length);
        }
        Op::CopyRange {
            from,
            from_offset,
            to,
            to_offset,
            length,
        } => {
            w.file(*from);
            w.u64(*from_offset);
            w.file(*to);
            w.u64(*to_offset);
            w.u64(*length);
        }
        Op::Create {
            parent,
            name,
            object,
        } => {
            w.file(*parent);
            w.name(name);
            w.file(object.file);
            w.kind(object.kind);
            w.u32(object.mode);
            w.u32(object.umask);
            w.u32(object.uid);
            w.u32(object.gid);
            w.bytes(&object.target);
        }
        Op::Link { file, parent, name } => {
            w.file(*file);
            w.file(*parent);
            w.name(name);
        }
        Op::Unlink { parent, name, file } | Op::RemoveDirectory { parent, name, file } => {
            w.file(*parent);
            w.name(name);
            w.file(*file);
        }
        Op::Rename {
            parent,
            name,
            file,
            new_parent,
            new_name,
            replaced,
            mode,
        } => {
            w.file(*parent);
            w.name(name);
            w.file(*file);
            w.file(*new_parent);
            w.name(new_name);
            w.option(*replaced, Writer::file);
            w.u8(match mode {
                RenameMode::Replace => 0,
                RenameMode::NoReplace => 1,
                RenameMode::Exchange => 2,
            });
        }
        Op::SetAttributes { file, change } => {
            w.file(*file);
            w.option(change.mode, Writer::u32);
            w.option(change.uid, Writer::u32);
            w.option(change.gid, Writer::u32);
            w.option(change.accessed, Writer::time);
            w.option(change.modified, Writer::time);
        }
        Op::SetXattr {
            file,
            name,
            value,
            mode,
        } => {
            w.file(*file);
            w.bytes(name);
            w.bytes(value);
            w.u8(match mode {
                XattrMode::Either => 0,
                XattrMode::Create => 1,
                XattrMode::Replace => 2,
            });
        }
        Op::RemoveXattr { file, name } => {
            w.file(*file);
            w.bytes(name);
        }
        Op::Sync { file, data_only } => {
            w.file(*file);
            w.u8((*data_only).into());
        }
        Op::Times {
            file,
            accessed,
            modified,
        } => {
            w.file(*file);
            w.time(*accessed);
            w.time(*modified);
        }
        Op::Checkpoint | Op::TakeOver | Op::ResyncEnd | Op::Flush => {}
        Op::Verify { question } | Op::Differs { question } => put_question(w, question),
        Op::PutDirectory {
            directory,
            listing,
            entries,
        } => {
            w.file(*directory);
            w.u8(match listing {
                Listing::Names => 0,
                Listing::Whole { first, last } => 4 | u8::from(*first) | (u8::from(*last) << 1),
            });
            w.u32(entries.len() as u32);
            for entry in entries {
                w.name(&entry.name);
                w.option(entry.object.as_ref(), put_object);
            }
        }
        Op::PutObject { object, xattrs } => {
            put_object(w, object);
            w.u32(xattrs.len() as u32);
            for (name, value) in xattrs {
                w.bytes(name);
                w.bytes(value);
            }
        }
        Op::PutXattr { file, name, value } => {
            w.file(*file);
            w.bytes(name);
            w.bytes(value);
        }
        Op::PutData { file, offset, data } => {
            w.file(*file);
            w.u64(*offset);
            payload = data.clone();
        }
        Op::PutHole {
            file,
            offset,
            length,
        } => {
            w.file(*file);
            w.u64(*offset);
            w.u64(*length);
        }
    }
    payload
}

pub(super) fn code(op: &Op) -> u8 {
    match op {
        Op::Write { .. } => 1,
        Op::Truncate { .. } => 2,
        Op::Allocate { .. } => 3,
        Op::CopyRange { .. } => 4,
        Op::Create { .. } => 5,
        Op::Link { .. } => 6,
        Op::Unlink { .. } => 7,
        Op::RemoveDirectory { .. } => 8,
        Op::Rename { .. } => 9,
        Op::SetAttributes { .. } => 10,
        Op::SetXattr { .. } => 11,
        Op::RemoveXattr { .. } => 12,
        Op::Sync { .. } => 13,
        Op::Times { .. } => 14,
        Op::Checkpoint => 15,
        Op::TakeOver => 16,
        Op::PutDirectory { .. } => 32,
        Op::PutObject { .. } => 33,
        Op::PutData { .. } => 34,
        Op::PutHole { .. } => 35,
        Op::ResyncEnd => 36,
        Op::PutXattr { .. } => 37,
        Op::Flush => 38,
        Op::Verify { .. } => 48,
        Op::Differs { .. } => 49,
    }
}

/// Decodes one frame of the op stream.
pub fn decode_op(frame: Payload) -> Result<Sequenced, Violation> {
    let mut r = Reader::new(frame);
    let code = r.u8()?;
    let seq = r.seq()?;
    let time = r.time()?;
    let op = decode_body(code, &mut r)?;
    r.end()?;
    Ok(Sequenced { seq, time, op })
}

pub(super) fn decode_body(code: u8, r: &mut Reader) -> Result<Op, Violation> {
    Ok(match code {
        1 => {
            let (file, offset) = (r.file()?, r.offset("offset")?);
            let stability = match r.u8()? {
                0 => Stability::Mode,
                1 => Stability::Data,
                2 => Stability::Full,
                v => return Err(unknown("stability", v)),
            };
            let clear_privileges = r.bool("clear privileges")?;
            let data = data_at(r, offset)?;
            Op::Write {
                file,
                offset,
                stability,
                clear_privileges,
                data,
            }
        }
        2 => Op::Truncate {
            file: r.file()?,
            size: r.offset("size")?,
            clear_privileges: r.bool("clear privileges")?,
        },
        3 => {
            let file = r.file()?;
            let mode = match r.u8()? {
                0 => AllocateMode::Allocate,
                1 => AllocateMode::KeepSize,
                2 => AllocateMode::PunchHole,
                3 => AllocateMode::ZeroRange,
                4 => AllocateMode::ZeroRangeKeepSize,
                v => return Err(unknown("allocate mode", v)),
            };
            let (offset, length) = r.range()?;
            Op::Allocate {
                file,
                mode,
                offset,
                length,
            }
        }
        4 => {
            let (from, from_offset) = (r.file()?, r.offset("offset")?);
            let to = r.file()?;
            let (to_offset, length) = r.range()?;
            coder::check(
                "end of range",
                from_offset.saturating_add(length),
                limits::MAX_OFFSET,
            )?;
            Op::CopyRange {
                from,
                from_offset,
                to,
                to_offset,
                length,
            }
        }
        5 => Op::Create {
            parent: r.file()?,
            name: r.name()?,
            object: NewObject {
                file: r.file()?,
                kind: r.kind()?,
                mode: mode(r)?,
                umask: mode(r)?,
                uid: r.u32()?,
                gid: r.u32()?,
                target: r.bytes("link target", limits::MAX_TARGET)?,
            },
        },
        6 => Op::Link {
            file: r.file()?,
            parent: r.file()?,
            name: r.name()?,
        },
        7 => Op::Unlink {
            parent: r.file()?,
            name: r.name()?,
            file: r.file()?,
        },
        8 => Op::RemoveDirectory {
            parent: r.file()?,
            name: r.name()?,
            file: r.file()?,
        },
        9 => Op::Rename {
            parent: r.file()?,
            name: r.name()?,
            file: r.file()?,
            new_parent: r.file()?,
            new_name: r.name()?,
            replaced: r.option("replaced", Reader::file)?,
            mode: match r.u8()? {
                0 => RenameMode::Replace,
                1 => RenameMode::NoReplace,
                2 => RenameMode::Exchange,
                v => return Err(unknown("rename mode", v)),
            },
        },
        10 => Op::SetAttributes {
            file: r.file()?,
            change: Change {
                mode: r.option("mode", mode)?,
                uid: r.option("uid", Reader::u32)?,
                gid: r.option("gid", Reader::u32)?,
                accessed: r.option("access time", Reader::time)?,
                modified: r.option("modification time", Reader::time)?,
            },
        },
        11 => Op::SetXattr {
            file: r.file()?,
            name: r.bytes("attribute name", limits::MAX_XATTR_NAME)?,
            value: r.bytes("attribute value", limits::MAX_XATTR_VALUE)?,
            mode: match r.u8()? {
                0 => XattrMode::Either,
                1 => XattrMode::Create,
                2 => XattrMode::Replace,
                v => return Err(unknown("attribute mode", v)),
            },
        },
        12 => Op::RemoveXattr {
            file: r.file()?,
            name: r.bytes("attribute name", limits::MAX_XATTR_NAME)?,
        },
        13 => Op::Sync {
            file: r.file()?,
            data_only: r.bool("data only")?,
        },
        14 => Op::Times {
            file: r.file()?,
            accessed: r.time()?,
            modified: r.time()?,
        },
        15 => Op::Checkpoint,
        16 => Op::TakeOver,
        32 => {
            let directory = r.file()?;
            let listing = match r.u8()? {
                0 => Listing::Names,
                v @ 4..=7 => Listing::Whole {
                    first: v & 1 != 0,
                    last: v & 2 != 0,
                },
                v => return Err(unknown("listing", v)),
            };
            let count = r.count("entries", limits::MAX_PUT_ENTRIES)?;
            let mut entries = Vec::with_capacity(count);
            for _ in 0..count {
                entries.push(PutEntry {
                    name: r.name()?,
                    object: r.option("object", get_object)?,
                });
            }
            Op::PutDirectory {
                directory,
                listing,
                entries,
            }
        }
        33 => {
            let object = get_object(r)?;
            let count = r.count("attributes", limits::MAX_XATTR_VALUE)?;
            let mut xattrs = Vec::with_capacity(count.min(64));
            for _ in 0..count {
                xattrs.push((
                    r.bytes("attribute name", limits::MAX_XATTR_NAME)?,
                    r.bytes("attribute value", limits::MAX_XATTR_VALUE)?,
                ));
            }
            Op::PutObject { object, xattrs }
        }
        34 => {
            let (file, offset) = (r.file()?, r.offset("offset")?);
            let data = data_at(r, offset)?;
            Op::PutData { file, offset, data }
        }
        35 => {
            let file = r.file()?;
            let (offset, length) = r.range()?;
            Op::PutHole {
                file,
                offset,
                length,
            }
        }
        36 => Op::ResyncEnd,
        37 => Op::PutXattr {
            file: r.file()?,
            name: r.bytes("attribute name", limits::MAX_XATTR_NAME)?,
            value: r.bytes("attribute value", limits::MAX_XATTR_VALUE)?,
        },
        38 => Op::Flush,
        48 => Op::Verify {
            question: get_ordered(r)?,
        },
        49 => Op::Differs {
            question: get_ordered(r)?,
        },
        v => return Err(unknown("op", v)),
    })
}

fn put_object(w: &mut Writer, o: &Object) {
    w.file(o.file);
    w.kind(o.kind);
    w.u32(o.mode);
    w.u32(o.uid);
    w.u32(o.gid);
    w.u64(o.size);
    w.time(o.accessed);
    w.time(o.modified);
    w.bytes(&o.target);
}

fn get_object(r: &mut Reader) -> Result<Object, Violation> {
    Ok(Object {
        file: r.file()?,
        kind: r.kind()?,
        mode: mode(r)?,
        uid: r.u32()?,
        gid: r.u32()?,
        size: r.offset("size")?,
        accessed: r.time()?,
        modified: r.time()?,
        target: r.bytes("link target", limits::MAX_TARGET)?,
    })
}

pub(super) fn mode(r: &mut Reader) -> Result<u32, Violation> {
    let v = r.u32()?;
    coder::check("mode", v.into(), 0o7777)?;
    Ok(v)
}

fn data_at(r: &mut Reader, offset: u64) -> Result<Payload, Violation> {
    let data = r.payload()?;
    coder::check(
        "end of range",
        offset.saturating_add(data.len() as u64),
        limits::MAX_OFFSET,
    )?;
    Ok(data)
}

fn unknown(what: &'static str, value: u8) -> Violation {
    Violation::Unknown {
        what,
        value: value.into(),
    }
}
