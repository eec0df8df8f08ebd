//! The frames beside the op stream: control, receipts.
//! Layout: `protocol/WIRE.md`, "Control", "Receipts".

use bytes::Bytes;

use super::coder::{Reader, Violation, Writer, check};
use super::verify::{get_found, put_found};
use super::{Frame, VERSION_MAX, VERSION_MIN};
use crate::handshake::{CopyState, Decision, Method, Role, Which};
use crate::ids::{Epoch, FileId, Generation, Seq, SessionId};
use crate::limits;
use crate::marks::Intent;
use crate::op::Payload;
use crate::primary::AckMode;
use crate::verify::Found;

const MAGIC: u64 = u64::from_le_bytes(*b"twinfold");

/// The first frame of each side on the control stream.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Hello {
    /// Oldest and newest wire format this node can talk.
    pub versions: (u16, u16),
    /// The module's name, equal on both nodes.
    pub name: String,
    /// What the node does with its copy.
    pub role: Role,
    /// The copy's history.
    pub copy: CopyState,
    /// Highest epoch of file ids this copy has seen.
    pub epoch: Epoch,
    /// The session this node was in and the last op it applied in it, to resume.
    pub resume: Option<(SessionId, Seq)>,
    /// For the other node's operator.
    pub account: Account,
}

/// What a node tells of its copy for the operator of the other one. Nothing is decided from it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Account {
    /// Where its folder is mounted.
    pub mount: String,
    /// When it last went on without its peer, in seconds since 1970; 0 if it did not.
    pub alone_since: u64,
    /// Objects it has changed since then, or may have.
    pub objects: u64,
    /// Bytes of file data in them that it has changed, or may have.
    pub bytes: u64,
}

/// Frames of the control stream.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Control {
    /// Who I am.
    Hello(Hello),
    /// I will not talk to you, and why.
    Refuse {
        /// For the operator.
        reason: String,
    },
    /// What the primary decided: resume the session after this op.
    Resume {
        /// The session that goes on.
        session: SessionId,
    },
    /// What the primary decided from both hellos; the secondary checks that it decided the same.
    Decide {
        /// The decision, seen from the sender.
        decision: Decision,
        /// The new session.
        session: SessionId,
    },
    /// A part of the resync target's dirty map: what it has changed itself, exactly. Any
    /// number of these come before its Marks.
    OwnMarks {
        /// Pieces of it ([`DirtyMap::read`](crate::marks::DirtyMap::read)).
        map: Bytes,
    },
    /// Notes of the resync target; the last frame of them says so.
    Marks {
        /// The marks.
        intents: Vec<Intent>,
        /// The target's notes cannot be read in full: anything may differ.
        damaged: bool,
        /// What the target's store has in it.
        holds: Holds,
        /// More follow in another frame.
        more: bool,
    },
    /// The sender leaves in order and its copy is not up to date from now on.
    Leave {
        /// For the operator.
        reason: String,
        /// Everything it applied is on its disk.
        flushed: bool,
    },
    /// Progress of a long answer: still here, still working.
    Alive,
    /// How far the resync is, for those who ask the target.
    Progress(Progress),
    /// The primary asks the secondary to leave and to come back: its copy is known to differ.
    Rejoin {
        /// For the operator.
        reason: String,
    },
    /// The first frame of a node whose disk failed, instead of a Hello: it asks its peer,
    /// which took the data over, to carry out calls.
    Visit {
        /// As in the Hello.
        versions: (u16, u16),
        /// As in the Hello.
        name: String,
        /// The session in which the peer was asked to take over.
        session: SessionId,
    },
    /// The answer to a Visit: calls may follow on this stream.
    Welcome,
}

/// What the store of a resync target has in it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Hash)]
pub enum Holds {
    /// Nothing at all: nothing needs to be asked for.
    Nothing,
    /// Objects of the module, or of one that it was a copy of.
    #[default]
    Objects,
    /// Objects that came there by another way and have no ids of the module: they are
    /// told by their paths.
    Seed,
}

/// What a resync is doing.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Phase {
    /// Looking for differences.
    Comparing,
    /// Moving them.
    Moving,
    /// Everything is moved; the target flushes.
    Flushing,
}

/// How far a resync is. What counts is bytes, and a little for each object.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct Progress {
    /// What it is doing.
    pub phase: Phase,
    /// How much of the phase is done.
    pub done: u64,
    /// How much there is to do, as far as it is known.
    pub total: u64,
}

/// The first frame of the op stream, from the primary.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OpStreamStart {
    /// The session the ops belong to.
    pub session: SessionId,
    /// The number of the first op that follows.
    pub first: Seq,
    /// What the primary waits for: with `disk`, sync what is applied.
    pub mode: AckMode,
}

/// Frames the secondary sends back on the op stream.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Receipt {
    /// All ops up to and including these numbers are applied, and are on stable storage.
    Applied {
        /// Applied.
        applied: Seq,
        /// On stable storage.
        durable: Seq,
    },
    /// A sync, checkpoint or resync end is done.
    Synced {
        /// Which op.
        seq: Seq,
    },
    /// What is waited for waits for the secondary's disk, which has done something since the
    /// last word.
    Busy,
    /// The answer to a question of a verify.
    Verified {
        /// Which op asked.
        seq: Seq,
        /// What the secondary had when it came to it.
        found: Found,
    },
    /// The secondary could not apply an op. Its copy is not up to date any more,
    /// durably, before this is sent.
    Failed {
        /// Which op.
        seq: Seq,
        /// For the operator.
        reason: String,
    },
}

impl Hello {
    /// This build's versions.
    pub const VERSIONS: (u16, u16) = (VERSION_MIN, VERSION_MAX);
}

impl Control {
    /// Encodes the frame.
    pub fn encode(&self) -> Frame {
        let mut w;
        match self {
            Control::Hello(h) => {
                w = Writer::new(1);
                w.u64(MAGIC);
                w.u16(h.versions.0);
                w.u16(h.versions.1);
                w.bytes(h.name.as_bytes());
                w.u8(role_code(h.role));
                w.u128(h.copy.module.0);
                w.u128(h.copy.current.0);
                put_generations(&mut w, &h.copy.bases);
                put_generations(&mut w, &h.copy.history);
                w.u8(h.copy.up_to_date.into());
                w.u8(h.copy.cut.into());
                w.u8(h.copy.given_up.into());
                w.u8(h.copy.forced.into());
                w.u32(h.epoch.0);
                w.option(h.resume, |w, (session, seq)| {
                    w.u128(session.0);
                    w.seq(seq);
                });
                put_text(&mut w, &h.account.mount);
                w.u64(h.account.alone_since);
                w.u64(h.account.objects);
                w.u64(h.account.bytes);
            }
            Control::Refuse { reason } => {
                w = Writer::new(2);
                put_text(&mut w, reason);
            }
            Control::Resume { session } => {
                w = Writer::new(3);
                w.u128(session.0);
            }
            Control::Decide { decision, session } => {
                w = Writer::new(4);
                w.u128(session.0);
                let (code, source, method) = decision_code(*decision);
                w.u8(code);
                w.u8(source);
                w.u8(method);
            }
            Control::Marks {
                intents,
                damaged,
                holds,
                more,
            } => {
                w = Writer::new(5);
                w.u8((*more).into());
                w.u8((*damaged).into());
                w.u8(match holds {
                    Holds::Nothing => 0,
                    Holds::Objects => 1,
                    Holds::Seed => 2,
                });
                w.u32(intents.len() as u32);
                for intent in intents {
                    put_intent(&mut w, *intent);
                }
            }
            Control::Leave { reason, flushed } => {
                w = Writer::new(6);
                w.u8((*flushed).into());
                put_text(&mut w, reason);
            }
            Control::Alive => w = Writer::new(7),
            Control::OwnMarks { map } => {
                w = Writer::new(8);
                w.bytes(map);
            }
            Control::Rejoin { reason } => {
                w = Writer::new(16);
                put_text(&mut w, reason);
            }
            Control::Progress(progress) => {
                w = Writer::new(9);
                w.u8(match progress.phase {
                    Phase::Comparing => 1,
                    Phase::Moving => 2,
                    Phase::Flushing => 3,
                });
                w.u64(progress.done);
                w.u64(progress.total);
            }
            Control::Visit {
                versions,
                name,
                session,
            } => {
                w = Writer::new(17);
                w.u64(MAGIC);
                w.u16(versions.0);
                w.u16(versions.1);
                w.bytes(name.as_bytes());
                w.u128(session.0);
            }
            Control::Welcome => w = Writer::new(18),
        }
        w.finish(Payload::default())
    }

    /// Decodes a frame.
    pub fn decode(frame: Payload) -> Result<Control, Violation> {
        let mut r = Reader::new(frame);
        let message = match r.u8()? {
            1 => Control::Hello(get_hello(&mut r)?),
            2 => Control::Refuse {
                reason: r.text("reason", limits::MAX_REASON)?,
            },
            3 => Control::Resume {
                session: r.session()?,
            },
            4 => Control::Decide {
                session: r.session()?,
                decision: get_decision(&mut r)?,
            },
            5 => {
                let more = r.bool("more")?;
                let damaged = r.bool("damaged")?;
                let holds = match r.u8()? {
                    0 => Holds::Nothing,
                    1 => Holds::Objects,
                    2 => Holds::Seed,
                    v => return Err(unknown("contents", v)),
                };
                let count = r.count("marks", limits::MAX_MARKS_PER_FRAME)?;
                let mut intents = Vec::with_capacity(count);
                for _ in 0..count {
                    intents.push(get_intent(&mut r)?);
                }
                Control::Marks {
                    intents,
                    damaged,
                    holds,
                    more,
                }
            }
            6 => Control::Leave {
                flushed: r.bool("flushed")?,
                reason: r.text("reason", limits::MAX_REASON)?,
            },
            7 => Control::Alive,
            8 => Control::OwnMarks {
                map: r.bytes("dirty map", limits::MAX_MAP_BYTES)?,
            },
            16 => Control::Rejoin {
                reason: r.text("reason", limits::MAX_REASON)?,
            },
            9 => Control::Progress(Progress {
                phase: match r.u8()? {
                    1 => Phase::Comparing,
                    2 => Phase::Moving,
                    3 => Phase::Flushing,
                    v => return Err(unknown("phase", v)),
                },
                done: r.u64()?,
                total: r.u64()?,
            }),
            17 => {
                let versions = get_versions(&mut r)?;
                Control::Visit {
                    versions,
                    name: r.text("module name", limits::MAX_MODULE_NAME)?,
                    session: r.session()?,
                }
            }
            18 => Control::Welcome,
            v => return Err(unknown("control frame", v)),
        };
        r.end()?;
        Ok(message)
    }
}

fn get_versions(r: &mut Reader) -> Result<(u16, u16), Violation> {
    let magic = r.u64()?;
    if magic != MAGIC {
        return Err(Violation::Unknown {
            what: "protocol",
            value: magic,
        });
    }
    Ok((r.u16()?, r.u16()?))
}

fn get_hello(r: &mut Reader) -> Result<Hello, Violation> {
    let versions = get_versions(r)?;
    let name = r.text("module name", limits::MAX_MODULE_NAME)?;
    let role = match r.u8()? {
        1 => Role::Primary,
        2 => Role::Secondary,
        v => return Err(unknown("role", v)),
    };
    let copy = CopyState {
        module: r.module()?,
        current: r.generation()?,
        bases: get_generations(r)?,
        history: get_generations(r)?,
        up_to_date: r.bool("up to date")?,
        cut: r.bool("cut")?,
        gave_way: false,
        given_up: r.bool("given up")?,
        forced: r.bool("forced")?,
    };
    let epoch = r.u32()?;
    check("epoch", epoch.into(), Epoch::MAX.0.into())?;
    let resume = r.option("resume", |r| Ok((r.session()?, r.seq()?)))?;
    let account = Account {
        mount: r.text("mount", limits::MAX_REASON)?,
        alone_since: r.u64()?,
        objects: r.u64()?,
        bytes: r.u64()?,
    };
    Ok(Hello {
        versions,
        name,
        role,
        copy,
        epoch: Epoch(epoch),
        resume,
        account,
    })
}

impl OpStreamStart {
    /// Encodes the frame.
    pub fn encode(&self) -> Frame {
        let mut w = Writer::new(64);
        w.u128(self.session.0);
        w.seq(self.first);
        w.u8(match self.mode {
            AckMode::Memory => 0,
            AckMode::Disk => 1,
            AckMode::Flush => 2,
        });
        w.finish(Payload::default())
    }

    /// Decodes a frame.
    pub fn decode(frame: Payload) -> Result<OpStreamStart, Violation> {
        let mut r = Reader::new(frame);
        match r.u8()? {
            64 => {}
            v => return Err(unknown("start of the op stream", v)),
        }
        let start = OpStreamStart {
            session: r.session()?,
            first: r.seq()?,
            mode: match r.u8()? {
                0 => AckMode::Memory,
                1 => AckMode::Disk,
                2 => AckMode::Flush,
                v => return Err(unknown("acknowledgement mode", v)),
            },
        };
        r.end()?;
        Ok(start)
    }
}

impl Receipt {
    /// Encodes the frame.
    pub fn encode(&self) -> Frame {
        let mut w;
        match self {
            Receipt::Applied { applied, durable } => {
                w = Writer::new(65);
                w.seq(*applied);
                w.seq(*durable);
            }
            Receipt::Synced { seq } => {
                w = Writer::new(66);
                w.seq(*seq);
            }
            Receipt::Busy => w = Writer::new(68),
            Receipt::Verified { seq, found } => {
                w = Writer::new(70);
                w.seq(*seq);
                put_found(&mut w, found);
            }
            Receipt::Failed { seq, reason } => {
                w = Writer::new(67);
                w.seq(*seq);
                put_text(&mut w, reason);
            }
        }
        w.finish(Payload::default())
    }

    /// Decodes a frame.
    pub fn decode(frame: Payload) -> Result<Receipt, Violation> {
        let mut r = Reader::new(frame);
        let receipt = match r.u8()? {
            65 => Receipt::Applied {
                applied: r.seq()?,
                durable: r.seq()?,
            },
            66 => Receipt::Synced { seq: r.seq()? },
            67 => Receipt::Failed {
                seq: r.seq()?,
                reason: r.text("reason", limits::MAX_REASON)?,
            },
            68 => Receipt::Busy,
            70 => Receipt::Verified {
                seq: r.seq()?,
                found: get_found(&mut r)?,
            },
            v => return Err(unknown("receipt", v)),
        };
        r.end()?;
        Ok(receipt)
    }
}

fn role_code(role: Role) -> u8 {
    match role {
        Role::Primary => 1,
        Role::Secondary => 2,
    }
}

fn decision_code(decision: Decision) -> (u8, u8, u8) {
    let side = |w| match w {
        Which::Me => 1,
        Which::Peer => 2,
    };
    match decision {
        Decision::Resync { source, method } => {
            let method = match method {
                Method::Marks => 1,
                Method::Compare => 2,
                Method::Everything => 3,
            };
            (1, side(source), method)
        }
        Decision::NoGoodCopy => (2, 0, 0),
        Decision::SourceIncomplete { source } => (3, side(source), 0),
        Decision::SourceNotPrimary { source } => (4, side(source), 0),
        Decision::StalePrimary { source } => (5, side(source), 0),
        Decision::TwoPrimaries => (6, 0, 0),
        Decision::SplitBrain => (7, 0, 0),
        Decision::Unrelated => (8, 0, 0),
        Decision::OtherModule => (9, 0, 0),
        Decision::BothGivenUp => (10, 0, 0),
        Decision::NoPrimary => (11, 0, 0),
    }
}

fn get_decision(r: &mut Reader) -> Result<Decision, Violation> {
    let (code, side, method) = (r.u8()?, r.u8()?, r.u8()?);
    let source = || match side {
        1 => Ok(Which::Me),
        2 => Ok(Which::Peer),
        v => Err(unknown("side", v)),
    };
    Ok(match code {
        1 => Decision::Resync {
            source: source()?,
            method: match method {
                1 => Method::Marks,
                2 => Method::Compare,
                3 => Method::Everything,
                v => return Err(unknown("method", v)),
            },
        },
        2 => Decision::NoGoodCopy,
        3 => Decision::SourceIncomplete { source: source()? },
        4 => Decision::SourceNotPrimary { source: source()? },
        5 => Decision::StalePrimary { source: source()? },
        6 => Decision::TwoPrimaries,
        7 => Decision::SplitBrain,
        8 => Decision::Unrelated,
        9 => Decision::OtherModule,
        10 => Decision::BothGivenUp,
        11 => Decision::NoPrimary,
        v => return Err(unknown("decision", v)),
    })
}

fn put_generations(w: &mut Writer, list: &[Generation]) {
    let list = &list[..list.len().min(limits::MAX_HISTORY)];
    w.u32(list.len() as u32);
    for g in list {
        w.u128(g.0);
    }
}

fn get_generations(r: &mut Reader) -> Result<Vec<Generation>, Violation> {
    let count = r.count("generations", limits::MAX_HISTORY)?;
    (0..count).map(|_| r.generation()).collect()
}

pub(super) fn put_text(w: &mut Writer, text: &str) {
    let mut end = text.len().min(limits::MAX_REASON);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    w.bytes(&text.as_bytes()[..end]);
}

fn put_intent(w: &mut Writer, intent: Intent) {
    match intent {
        Intent::Extent { file, extent } => {
            w.u8(1);
            w.file(file);
            w.u32(extent);
        }
        Intent::Attributes { file } => {
            w.u8(2);
            w.file(file);
        }
        Intent::Directory { directory } => {
            w.u8(3);
            w.file(directory);
        }
        Intent::File { file } => {
            w.u8(5);
            w.file(file);
        }
        Intent::NewIds { first } => {
            w.u8(4);
            w.u64(first.0);
        }
    }
}

fn get_intent(r: &mut Reader) -> Result<Intent, Violation> {
    Ok(match r.u8()? {
        1 => Intent::Extent {
            file: r.file()?,
            extent: r.u32()?,
        },
        2 => Intent::Attributes { file: r.file()? },
        3 => Intent::Directory {
            directory: r.file()?,
        },
        // The first block of the first epoch starts at the id zero, which is no file.
        4 => {
            let first = FileId(r.u64()?);
            if !first.counter().is_multiple_of(limits::ID_BLOCK) {
                return Err(Violation::Order(
                    "a mark of new ids does not start at a block".into(),
                ));
            }
            Intent::NewIds { first }
        }
        5 => Intent::File { file: r.file()? },
        v => return Err(unknown("mark", v)),
    })
}

pub(super) fn unknown(what: &'static str, value: u8) -> Violation {
    Violation::Unknown {
        what,
        value: value.into(),
    }
}
