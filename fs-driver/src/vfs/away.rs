//! Calls that the peer carries out, because this node's disk has failed
//! ([`crate::engine`], "Losing the disk, not the node").
//!
//! A call that meets the failure here is not answered with it: it waits, like those that
//! come after it, until the peer has taken over, and is asked for there.
//!
//! What has no name any more but is open has no copy at the peer: such a file goes on
//! here, as far as the disk lets it.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::sync_channel;

use twinfold_protocol::attr::Attributes;
use twinfold_protocol::ids::FileId;
use twinfold_protocol::limits;
use twinfold_protocol::op::{Change, NewObject, Op};
use twinfold_protocol::remote::{Answer, EntryName, Request};

use super::{Handle, HandleId, Listing, SetAttributes, Vfs};
use crate::engine::{Engine, NewEntry};
use crate::error::{FsError, FsResult};
use crate::store::{Listed, SpaceUse};

fn unexpected<T>(answer: &Answer) -> FsResult<T> {
    let word = match answer {
        Answer::Done => "done",
        Answer::Attributes(_) => "attributes",
        Answer::Bytes(_) => "bytes",
        Answer::Number(_) => "a number",
        Answer::Entries(_) => "entries",
        Answer::Space(_) => "space",
        Answer::Failed(_) => "a failure",
    };
    let error = format!("the peer answered with {word}, which was not asked for");
    Err(FsError::Store(io::Error::new(
        io::ErrorKind::InvalidData,
        error,
    )))
}

pub(super) fn done(answer: Answer) -> FsResult<()> {
    match answer {
        Answer::Done => Ok(()),
        other => unexpected(&other),
    }
}

pub(super) fn attributes(answer: Answer) -> FsResult<Attributes> {
    match answer {
        Answer::Attributes(attributes) => Ok(attributes),
        other => unexpected(&other),
    }
}

pub(super) fn number(answer: Answer) -> FsResult<u64> {
    match answer {
        Answer::Number(number) => Ok(number),
        other => unexpected(&other),
    }
}

pub(super) fn bytes(answer: Answer) -> FsResult<Vec<u8>> {
    match answer {
        Answer::Bytes(bytes) => Ok(bytes.to_bytes().into()),
        other => unexpected(&other),
    }
}

pub(super) fn space(answer: Answer) -> FsResult<SpaceUse> {
    match answer {
        Answer::Space(s) => Ok(SpaceUse {
            block_size: s.block_size,
            blocks: s.blocks,
            free: s.free,
            available: s.available,
            files: s.files,
            files_free: s.files_free,
            name_max: s.name_max,
        }),
        other => unexpected(&other),
    }
}

/// A change as the peer is asked for it.
pub(super) fn change(op: Op) -> Request {
    Request::Change {
        op,
        clear_privileges: false,
    }
}

/// The peer gives the object its id; the one in here is not looked at.
pub(super) fn new_object(new: NewEntry) -> NewObject {
    NewObject {
        file: FileId::ROOT,
        kind: new.kind,
        target: new.target,
        mode: new.mode,
        umask: new.umask,
        uid: new.uid,
        gid: new.gid,
    }
}

/// Asks the peer; `otherwise` is what the call failed with here.
pub(super) fn send<T: 'static>(
    engine: &Arc<Engine>,
    request: Request,
    otherwise: FsError,
    take: fn(Answer) -> FsResult<T>,
    reply: impl FnOnce(FsResult<T>) + Send + 'static,
) {
    let answered = Box::new(move |answer: FsResult<Answer>| reply(answer.and_then(take)));
    engine.call(request, otherwise, answered);
}

/// `chmod(2)` and its relatives with a new size: two changes, one after the other.
pub(super) fn send_attributes(
    engine: &Arc<Engine>,
    file: FileId,
    set: SetAttributes,
    otherwise: FsError,
    reply: impl FnOnce(FsResult<Attributes>) + Send + 'static,
) {
    let others = {
        let engine = engine.clone();
        let op = Op::SetAttributes {
            file,
            change: set.change,
        };
        move |cut: FsResult<()>, reply: Box<dyn FnOnce(FsResult<Attributes>) + Send>| match cut {
            // Also with nothing to change: the attributes are the answer.
            Ok(()) => send(&engine, change(op), FsError::Moved, attributes, reply),
            Err(e) => reply(Err(e)),
        }
    };
    let reply = Box::new(reply);
    let Some(size) = set.size else {
        if set.change == Change::default() {
            return send(
                engine,
                Request::Attributes { file },
                otherwise,
                attributes,
                reply,
            );
        }
        return others(Ok(()), reply);
    };
    let op = Op::Truncate {
        file,
        size,
        clear_privileges: set.clear_privileges,
    };
    if set.change == Change::default() {
        let engine_then = engine.clone();
        return send(engine, change(op), otherwise, done, move |cut| match cut {
            Ok(()) => {
                let request = Request::Attributes { file };
                send(&engine_then, request, FsError::Moved, attributes, reply);
            }
            Err(e) => reply(Err(e)),
        });
    }
    send(engine, change(op), otherwise, done, move |cut| {
        others(cut, reply);
    });
}

impl Vfs {
    /// A reply that gives a call which met the disk's failure to the peer instead:
    /// `there` asks for it. A file without a name has nobody to ask.
    pub(super) fn or_there<T, F, R>(
        &self,
        movable: bool,
        reply: R,
        there: F,
    ) -> impl FnOnce(FsResult<T>) + Send + 'static + use<T, F, R>
    where
        F: FnOnce(&Arc<Engine>, FsError, R) + Send + 'static,
        R: FnOnce(FsResult<T>) + Send + 'static,
    {
        let engine = self.engine.clone();
        move |result| match result {
            Err(e) if movable && engine.moves(&e) => there(&engine, e, reply),
            result => reply(result),
        }
    }

    /// Asks the peer if the call belongs there, and takes the reply; else hands it back as
    /// one that gives the call to the peer when it meets the disk's failure.
    pub(super) fn send_or<F, R>(
        &self,
        there: F,
        reply: R,
    ) -> Option<impl FnOnce(FsResult<()>) + Send + 'static + use<F, R>>
    where
        F: FnOnce() -> Request + Send + 'static,
        R: FnOnce(FsResult<()>) + Send + 'static,
    {
        if self.engine.is_away() {
            send(&self.engine, there(), FsError::Moved, done, reply);
            return None;
        }
        Some(self.or_there(true, reply, move |engine, e, reply| {
            send(engine, there(), e, done, reply);
        }))
    }

    /// Does something that answers at once: here, or by the peer.
    pub(super) fn here_or_there<T: Send + 'static>(
        &self,
        here: impl FnOnce() -> FsResult<T>,
        request: impl FnOnce() -> FsResult<Request>,
        take: fn(Answer) -> FsResult<T>,
    ) -> FsResult<T> {
        let mut otherwise = FsError::Moved;
        if !self.engine.is_away() {
            let done = {
                let _inside = self.engine.inside();
                here()
            };
            match done {
                Err(e) if self.engine.moves(&e) => otherwise = e,
                result => return result,
            }
        }
        self.wait_for_peer(request()?, otherwise, take)
    }

    /// Waits for the peer's answer; it comes within a deadline.
    pub(super) fn wait_for_peer<T: Send + 'static>(
        &self,
        request: Request,
        otherwise: FsError,
        take: fn(Answer) -> FsResult<T>,
    ) -> FsResult<T> {
        let (tell, told) = sync_channel(1);
        send(&self.engine, request, otherwise, take, move |result| {
            let _ = tell.send(result);
        });
        told.recv().unwrap_or(Err(FsError::Moved))
    }

    /// The file behind a handle, if its calls belong to the peer.
    pub(super) fn away(&self, handle: HandleId) -> FsResult<Option<FileId>> {
        Ok(match &*self.handles.get(handle)? {
            Handle::Away { file, .. } => Some(*file),
            Handle::File { opening, .. } if self.engine.is_away() => {
                let node = opening.node();
                (!node.is_orphan()).then(|| node.file())
            }
            _ => None,
        })
    }

    /// Lists a directory of the peer, see [`Vfs::list`].
    pub(super) fn list_there(
        &self,
        directory: FileId,
        from: u64,
        mut take: impl FnMut(Listing) -> bool,
    ) -> FsResult<()> {
        let mut from = from;
        loop {
            let request = Request::List { directory, from };
            let entries = self.wait_for_peer(request, FsError::Moved, |answer| match answer {
                Answer::Entries(entries) => Ok(entries),
                other => unexpected(&other),
            })?;
            if entries.is_empty() {
                return Ok(());
            }
            debug_assert!(entries.len() <= limits::MAX_LISTED);
            for entry in entries {
                from = entry.next;
                let listing = Listing {
                    name: match entry.name {
                        EntryName::Here => Listed::Here,
                        EntryName::Up => Listed::Up,
                        EntryName::Name(name) => Listed::Name(name),
                    },
                    next: entry.next,
                    attributes: entry.attributes,
                };
                if !take(listing) {
                    return Ok(());
                }
            }
        }
    }
}
