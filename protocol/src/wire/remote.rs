//! The frames of remote calls. Layout: `protocol/WIRE.md`, "Remote calls".

use super::Frame;
use super::coder::{Reader, Violation, Writer, check};
use super::message::unknown;
use super::op::{code, decode_body, mode, put_body};
use crate::attr::Attributes;
use crate::limits;
use crate::op::Payload;
use crate::remote::{Answer, Entry, EntryName, Failure, Request, Space};

/// One call.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Call {
    /// Its number; a call that is repeated over a new connection keeps it.
    pub id: u64,
    /// All calls with lower numbers are answered: their answers need not be kept.
    pub done: u64,
    /// What is asked.
    pub request: Request,
}

/// The answer to a call.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Answered {
    /// The number of the call.
    pub id: u64,
    /// What is answered.
    pub answer: Answer,
}

impl Call {
    /// Encodes the frame. Data is not copied.
    pub fn encode(&self) -> Frame {
        let begin = |kind| {
            let mut w = Writer::new(kind);
            w.u64(self.id);
            w.u64(self.done);
            w
        };
        let mut payload = Payload::default();
        let mut w;
        match &self.request {
            Request::Change {
                op,
                clear_privileges,
            } => {
                w = begin(128);
                w.u8((*clear_privileges).into());
                w.u8(code(op));
                payload = put_body(&mut w, op);
            }
            Request::Lookup { parent, name } => {
                w = begin(129);
                w.file(*parent);
                w.name(name);
            }
            Request::Attributes { file } => {
                w = begin(130);
                w.file(*file);
            }
            Request::ReadLink { file } => {
                w = begin(131);
                w.file(*file);
            }
            Request::Read {
                file,
                offset,
                length,
            } => {
                w = begin(132);
                w.file(*file);
                w.u64(*offset);
                w.u32(*length);
            }
            Request::Seek { file, offset, data } => {
                w = begin(133);
                w.file(*file);
                w.u64(*offset);
                w.u8((*data).into());
            }
            Request::List { directory, from } => {
                w = begin(134);
                w.file(*directory);
                w.u64(*from);
            }
            Request::GetXattr { file, name } => {
                w = begin(135);
                w.file(*file);
                w.bytes(name);
            }
            Request::ListXattrs { file } => {
                w = begin(136);
                w.file(*file);
            }
            Request::Space => w = begin(137),
            Request::Forget { file } => {
                w = begin(138);
                w.file(*file);
            }
        }
        w.finish(payload)
    }

    /// Decodes a frame.
    pub fn decode(frame: Payload) -> Result<Call, Violation> {
        let mut r = Reader::new(frame);
        let kind = r.u8()?;
        let (id, done) = (r.u64()?, r.u64()?);
        let request = match kind {
            128 => {
                let clear_privileges = r.bool("clear privileges")?;
                let code = r.u8()?;
                let op = decode_body(code, &mut r)?;
                if !Request::is_call(&op) {
                    return Err(unknown("changing call", code));
                }
                Request::Change {
                    op,
                    clear_privileges,
                }
            }
            129 => Request::Lookup {
                parent: r.file()?,
                name: r.name()?,
            },
            130 => Request::Attributes { file: r.file()? },
            131 => Request::ReadLink { file: r.file()? },
            132 => {
                let (file, offset, length) = (r.file()?, r.offset("offset")?, r.u32()?);
                check("length", length.into(), limits::MAX_PAYLOAD as u64)?;
                Request::Read {
                    file,
                    offset,
                    length,
                }
            }
            133 => Request::Seek {
                file: r.file()?,
                offset: r.offset("offset")?,
                data: r.bool("data")?,
            },
            134 => Request::List {
                directory: r.file()?,
                from: r.u64()?,
            },
            135 => Request::GetXattr {
                file: r.file()?,
                name: r.bytes("attribute name", limits::MAX_XATTR_NAME)?,
            },
            136 => Request::ListXattrs { file: r.file()? },
            137 => Request::Space,
            138 => Request::Forget { file: r.file()? },
            v => return Err(unknown("remote call", v)),
        };
        r.end()?;
        Ok(Call { id, done, request })
    }
}

impl Answered {
    /// Encodes the frame. Data is not copied.
    pub fn encode(&self) -> Frame {
        let begin = |kind| {
            let mut w = Writer::new(kind);
            w.u64(self.id);
            w
        };
        let mut payload = Payload::default();
        let mut w;
        match &self.answer {
            Answer::Done => w = begin(160),
            Answer::Attributes(a) => {
                w = begin(161);
                put_attributes(&mut w, a);
            }
            Answer::Bytes(bytes) => {
                w = begin(162);
                payload = bytes.clone();
            }
            Answer::Number(number) => {
                w = begin(163);
                w.u64(*number);
            }
            Answer::Entries(entries) => {
                w = begin(164);
                w.u32(entries.len() as u32);
                for entry in entries {
                    match &entry.name {
                        EntryName::Here => w.u8(0),
                        EntryName::Up => w.u8(1),
                        EntryName::Name(name) => {
                            w.u8(2);
                            w.name(name);
                        }
                    }
                    w.u64(entry.next);
                    put_attributes(&mut w, &entry.attributes);
                }
            }
            Answer::Space(s) => {
                w = begin(165);
                for v in [
                    s.block_size,
                    s.blocks,
                    s.free,
                    s.available,
                    s.files,
                    s.files_free,
                ] {
                    w.u64(v);
                }
                w.u32(s.name_max);
            }
            Answer::Failed(failure) => {
                w = begin(166);
                w.u8(failure_code(*failure));
                if let Failure::System(code) = failure {
                    w.u32(code.cast_unsigned());
                }
            }
        }
        w.finish(payload)
    }

    /// Decodes a frame.
    pub fn decode(frame: Payload) -> Result<Answered, Violation> {
        let mut r = Reader::new(frame);
        let kind = r.u8()?;
        let id = r.u64()?;
        let answer = match kind {
            160 => Answer::Done,
            161 => Answer::Attributes(get_attributes(&mut r)?),
            162 => Answer::Bytes(r.payload()?),
            163 => Answer::Number(r.u64()?),
            164 => {
                let count = r.count("entries", limits::MAX_LISTED)?;
                let entries = (0..count).map(|_| get_entry(&mut r));
                Answer::Entries(entries.collect::<Result<_, _>>()?)
            }
            165 => Answer::Space(Space {
                block_size: r.u64()?,
                blocks: r.u64()?,
                free: r.u64()?,
                available: r.u64()?,
                files: r.u64()?,
                files_free: r.u64()?,
                name_max: r.u32()?,
            }),
            166 => Answer::Failed(match r.u8()? {
                1 => Failure::System(r.u32()?.cast_signed()),
                2 => Failure::ReadOnly,
                3 => Failure::NoSpace,
                4 => Failure::TooLarge,
                5 => Failure::NotADirectory,
                6 => Failure::IsADirectory,
                7 => Failure::NameTooLong,
                8 => Failure::NotSupported,
                9 => Failure::Invalid,
                10 => Failure::Fenced,
                v => return Err(unknown("failure", v)),
            }),
            v => return Err(unknown("remote answer", v)),
        };
        r.end()?;
        Ok(Answered { id, answer })
    }
}

fn failure_code(failure: Failure) -> u8 {
    match failure {
        Failure::System(_) => 1,
        Failure::ReadOnly => 2,
        Failure::NoSpace => 3,
        Failure::TooLarge => 4,
        Failure::NotADirectory => 5,
        Failure::IsADirectory => 6,
        Failure::NameTooLong => 7,
        Failure::NotSupported => 8,
        Failure::Invalid => 9,
        Failure::Fenced => 10,
    }
}

fn put_attributes(w: &mut Writer, a: &Attributes) {
    w.file(a.file);
    w.kind(a.kind);
    w.u32(a.mode);
    w.u32(a.uid);
    w.u32(a.gid);
    w.u32(a.links);
    w.u64(a.size);
    w.u64(a.blocks);
    w.u32(a.block_size);
    w.time(a.accessed);
    w.time(a.modified);
    w.time(a.changed);
}

fn get_attributes(r: &mut Reader) -> Result<Attributes, Violation> {
    Ok(Attributes {
        file: r.file()?,
        kind: r.kind()?,
        mode: mode(r)?,
        uid: r.u32()?,
        gid: r.u32()?,
        links: r.u32()?,
        size: r.offset("size")?,
        blocks: r.u64()?,
        block_size: r.u32()?,
        accessed: r.time()?,
        modified: r.time()?,
        changed: r.time()?,
    })
}

fn get_entry(r: &mut Reader) -> Result<Entry, Violation> {
    Ok(Entry {
        name: match r.u8()? {
            0 => EntryName::Here,
            1 => EntryName::Up,
            2 => EntryName::Name(r.name()?),
            v => return Err(unknown("name of an entry", v)),
        },
        next: r.u64()?,
        attributes: get_attributes(r)?,
    })
}
