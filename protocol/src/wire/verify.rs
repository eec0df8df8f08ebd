//! The frames of a verify, and what it adds to the op stream.
//! Layout: `protocol/WIRE.md`, "Verify".

use bytes::Bytes;

use super::Frame;
use super::coder::{Reader, Violation, Writer, check};
use super::message::{put_text, unknown};
use crate::ids::FileId;
use crate::limits;
use crate::op::{Name, Payload};
use crate::verify::{Digest, Facts, Found, HASH, Hash, Lead, Question};

/// What the primary asks for a first look.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum VerifyRequest {
    /// Digests of what each question names, at most [`limits::MAX_VERIFY_QUESTIONS`] that
    /// cover at most [`limits::MAX_VERIFY_BYTES`] of data.
    Questions(Vec<Question>),
    /// The names of a directory from a position on, which an earlier answer gave (0: from
    /// the beginning).
    Names {
        /// Which directory.
        directory: FileId,
        /// Where to go on.
        from: u64,
    },
}

/// The secondary's answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum VerifyAnswer {
    /// For each question, in the same order.
    Digests(Vec<Digest>),
    /// Names, at most [`limits::MAX_VERIFY_NAMES`], and what they lead to.
    Names {
        /// Where to go on; 0 behind the last name.
        next: u64,
        /// The names.
        entries: Vec<(Name, Lead)>,
    },
    /// A listing cannot be read, and what the operating system said.
    Failed {
        /// For the operator.
        reason: String,
    },
}

impl VerifyRequest {
    /// Encodes the frame.
    pub fn encode(&self) -> Frame {
        let mut w;
        match self {
            VerifyRequest::Questions(questions) => {
                w = Writer::new(112);
                w.u32(questions.len() as u32);
                questions.iter().for_each(|q| put_question(&mut w, q));
            }
            VerifyRequest::Names { directory, from } => {
                w = Writer::new(114);
                w.file(*directory);
                w.u64(*from);
            }
        }
        w.finish(Payload::default())
    }

    /// Decodes a frame.
    pub fn decode(frame: Payload) -> Result<VerifyRequest, Violation> {
        let mut r = Reader::new(frame);
        let request = match r.u8()? {
            112 => {
                let count = r.count("questions", limits::MAX_VERIFY_QUESTIONS)?;
                let mut left = limits::MAX_VERIFY_BYTES;
                let mut questions = Vec::with_capacity(count);
                for _ in 0..count {
                    let question = get_question(&mut r, left)?;
                    if let Question::Data { length, .. } = &question {
                        left -= length;
                    }
                    questions.push(question);
                }
                VerifyRequest::Questions(questions)
            }
            114 => VerifyRequest::Names {
                directory: r.file()?,
                from: r.u64()?,
            },
            v => return Err(unknown("verify request", v)),
        };
        r.end()?;
        Ok(request)
    }

    /// Whether a stream that begins with this kind byte carries verify requests.
    pub fn is_first(kind: u8) -> bool {
        matches!(kind, 112 | 114)
    }
}

impl VerifyAnswer {
    /// Encodes the frame.
    pub fn encode(&self) -> Frame {
        let mut w;
        match self {
            VerifyAnswer::Digests(digests) => {
                w = Writer::new(113);
                w.u32(digests.len() as u32);
                for digest in digests {
                    match digest {
                        Digest::Missing => w.u8(0),
                        Digest::Is(hash) => {
                            w.u8(1);
                            w.hash(hash);
                        }
                        Digest::Failed(reason) => {
                            w.u8(2);
                            put_text(&mut w, reason);
                        }
                    }
                }
            }
            VerifyAnswer::Names { next, entries } => {
                w = Writer::new(115);
                w.u64(*next);
                w.u32(entries.len() as u32);
                for (name, lead) in entries {
                    w.name(name);
                    put_lead(&mut w, *lead);
                }
            }
            VerifyAnswer::Failed { reason } => {
                w = Writer::new(116);
                put_text(&mut w, reason);
            }
        }
        w.finish(Payload::default())
    }

    /// Decodes a frame.
    pub fn decode(frame: Payload) -> Result<VerifyAnswer, Violation> {
        let mut r = Reader::new(frame);
        let answer = match r.u8()? {
            113 => {
                let count = r.count("digests", limits::MAX_VERIFY_QUESTIONS)?;
                let mut digests = Vec::with_capacity(count);
                for _ in 0..count {
                    digests.push(match r.u8()? {
                        0 => Digest::Missing,
                        1 => Digest::Is(r.hash()?),
                        2 => Digest::Failed(r.text("reason", limits::MAX_REASON)?),
                        v => return Err(unknown("digest", v)),
                    });
                }
                VerifyAnswer::Digests(digests)
            }
            115 => {
                let next = r.u64()?;
                let count = r.count("names", limits::MAX_VERIFY_NAMES)?;
                let mut entries = Vec::with_capacity(count);
                for _ in 0..count {
                    entries.push((r.name()?, get_lead(&mut r)?));
                }
                VerifyAnswer::Names { next, entries }
            }
            116 => VerifyAnswer::Failed {
                reason: r.text("reason", limits::MAX_REASON)?,
            },
            v => return Err(unknown("verify answer", v)),
        };
        r.end()?;
        Ok(answer)
    }
}

pub(super) fn put_question(w: &mut Writer, question: &Question) {
    match question {
        Question::Data {
            file,
            offset,
            length,
        } => {
            w.u8(1);
            w.file(*file);
            w.u64(*offset);
            w.u64(*length);
        }
        Question::Object { file } => {
            w.u8(2);
            w.file(*file);
        }
        Question::Listing { directory } => {
            w.u8(3);
            w.file(*directory);
        }
        Question::Name { directory, name } => {
            w.u8(4);
            w.file(*directory);
            w.name(name);
        }
    }
}

/// A question that covers at most `most` bytes of data.
fn get_question(r: &mut Reader, most: u64) -> Result<Question, Violation> {
    Ok(match r.u8()? {
        1 => {
            let file = r.file()?;
            let (offset, length) = r.range()?;
            check("length", length, most)?;
            if !offset.is_multiple_of(limits::BLOCK) {
                return Err(Violation::Order(
                    "a question does not start at a block".into(),
                ));
            }
            Question::Data {
                file,
                offset,
                length,
            }
        }
        2 => Question::Object { file: r.file()? },
        3 => Question::Listing {
            directory: r.file()?,
        },
        4 => Question::Name {
            directory: r.file()?,
            name: r.name()?,
        },
        v => return Err(unknown("question", v)),
    })
}

/// A question of the op stream: ops wait behind its answer, so it is a small one.
pub(super) fn get_ordered(r: &mut Reader) -> Result<Question, Violation> {
    match get_question(r, limits::VERIFY_CHUNK)? {
        Question::Listing { .. } => Err(Violation::Order(
            "a whole listing is asked for in the op stream".into(),
        )),
        other => Ok(other),
    }
}

fn put_lead(w: &mut Writer, lead: Lead) {
    match lead {
        Lead::Nothing => w.u8(0),
        Lead::Object(file) => {
            w.u8(1);
            w.file(file);
        }
        Lead::Foreign => w.u8(2),
    }
}

fn get_lead(r: &mut Reader) -> Result<Lead, Violation> {
    Ok(match r.u8()? {
        0 => Lead::Nothing,
        1 => Lead::Object(r.file()?),
        2 => Lead::Foreign,
        v => return Err(unknown("lead", v)),
    })
}

pub(super) fn put_found(w: &mut Writer, found: &Found) {
    match found {
        Found::Missing => w.u8(0),
        Found::Blocks(hashes) => {
            w.u8(1);
            w.bytes(hashes);
        }
        Found::Object(facts) => {
            w.u8(2);
            put_facts(w, facts);
        }
        Found::Name(lead) => {
            w.u8(3);
            put_lead(w, *lead);
        }
        Found::Failed(reason) => {
            w.u8(4);
            put_text(w, reason);
        }
    }
}

pub(super) fn get_found(r: &mut Reader) -> Result<Found, Violation> {
    const MAX_BLOCKS: usize = (limits::VERIFY_CHUNK / limits::BLOCK) as usize;
    Ok(match r.u8()? {
        0 => Found::Missing,
        1 => Found::Blocks(r.bytes("hashes", MAX_BLOCKS * HASH)?),
        2 => Found::Object(get_facts(r)?),
        3 => Found::Name(get_lead(r)?),
        4 => Found::Failed(r.text("reason", limits::MAX_REASON)?),
        v => return Err(unknown("answer", v)),
    })
}

fn put_facts(w: &mut Writer, facts: &Facts) {
    w.kind(facts.kind);
    w.u32(facts.mode);
    w.u32(facts.uid);
    w.u32(facts.gid);
    w.u64(facts.size);
    w.time(facts.modified);
    w.hash(&facts.target);
    w.u32(facts.xattrs.len() as u32);
    for (name, hash) in &facts.xattrs {
        w.bytes(name);
        w.hash(hash);
    }
}

fn get_facts(r: &mut Reader) -> Result<Facts, Violation> {
    let mut facts = Facts {
        kind: r.kind()?,
        mode: r.u32()?,
        uid: r.u32()?,
        gid: r.u32()?,
        size: r.offset("size")?,
        modified: r.time()?,
        target: r.hash()?,
        xattrs: Vec::new(),
    };
    check("mode", facts.mode.into(), 0o7777)?;
    let count = r.count("attributes", limits::MAX_XATTRS)?;
    for _ in 0..count {
        let name = r.bytes("attribute name", limits::MAX_XATTR_NAME)?;
        facts.xattrs.push((name, r.hash()?));
    }
    Ok(facts)
}

/// The facts as bytes of which a digest can be made.
pub fn facts_bytes(facts: &Facts) -> Bytes {
    let mut w = Writer::new(0);
    put_facts(&mut w, facts);
    w.finish(Payload::default()).header
}

impl Writer {
    fn hash(&mut self, hash: &Hash) {
        self.u128(u128::from_le_bytes(*hash));
    }
}

impl Reader {
    fn hash(&mut self) -> Result<Hash, Violation> {
        Ok(self.u128()?.to_le_bytes())
    }
}
