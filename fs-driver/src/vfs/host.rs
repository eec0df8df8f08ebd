//! Carrying out the peer's calls, whose disk has failed, on this node's copy.

use std::sync::Arc;

use bytes::Bytes;
use twinfold_protocol::attr::Attributes;
use twinfold_protocol::limits;
use twinfold_protocol::op::Op;
use twinfold_protocol::remote::{Answer, Entry, EntryName, Failure, Request, Space};

use super::{SetAttributes, Vfs};
use crate::engine::NewEntry;
use crate::error::{FsError, FsResult};
use crate::store::Listed;

type Reply = Box<dyn FnOnce(Answer) + Send>;

fn answer<T>(result: FsResult<T>, ok: impl FnOnce(T) -> Answer) -> Answer {
    match result {
        Ok(value) => ok(value),
        Err(e) => Answer::Failed(Failure::from(&e)),
    }
}

fn with_done(reply: Reply) -> impl FnOnce(FsResult<()>) + Send {
    move |result| reply(answer(result, |()| Answer::Done))
}

fn with_attributes(reply: Reply) -> impl FnOnce(FsResult<Attributes>) + Send {
    move |result| reply(answer(result, Answer::Attributes))
}

impl Vfs {
    /// The engine carries out the peer's calls by this.
    pub(crate) fn host(self: &Arc<Self>) {
        let vfs = Arc::downgrade(self);
        self.engine
            .host_with(Box::new(move |request, reply| match vfs.upgrade() {
                Some(vfs) => vfs.carry_out(request, reply),
                None => reply(Answer::Failed(Failure::ReadOnly)),
            }));
    }

    fn carry_out(&self, request: Request, reply: Reply) {
        match request {
            Request::Change {
                op,
                clear_privileges,
            } => self.change(op, clear_privileges, reply),
            other => reply(match self.look(other) {
                Ok(answer) => answer,
                Err(e) => Answer::Failed(Failure::from(&e)),
            }),
        }
    }

    fn look(&self, request: Request) -> FsResult<Answer> {
        let store = &self.engine.store;
        let bytes = |bytes: Vec<u8>| Answer::Bytes(Bytes::from(bytes).into());
        Ok(match request {
            Request::Lookup { parent, name } => {
                Answer::Attributes(self.lookup(parent, name.as_bytes())?)
            }
            Request::Attributes { file } => Answer::Attributes(self.attributes(file, None)?),
            Request::ReadLink { file } => bytes(self.read_link(file)?),
            Request::Read {
                file,
                offset,
                length,
            } => {
                let mut buffer = vec![0; length as usize];
                let n = store.read(&*self.node(file)?, offset, &mut buffer)?;
                buffer.truncate(n);
                bytes(buffer)
            }
            Request::Seek { file, offset, data } => {
                Answer::Number(store.seek(&*self.node(file)?, offset, data)?)
            }
            Request::List { directory, from } => {
                let handle = store.open_directory(self.node(directory)?)?;
                let mut entries = Vec::new();
                self.list_here(&handle, from, |listing| {
                    entries.push(Entry {
                        name: match listing.name {
                            Listed::Here => EntryName::Here,
                            Listed::Up => EntryName::Up,
                            Listed::Name(name) => EntryName::Name(name),
                        },
                        next: listing.next,
                        attributes: listing.attributes,
                    });
                    entries.len() < limits::MAX_LISTED
                })?;
                Answer::Entries(entries)
            }
            Request::GetXattr { file, name } => bytes(self.get_xattr(file, &name)?),
            Request::ListXattrs { file } => {
                let mut list = Vec::new();
                for name in self.list_xattrs(file)? {
                    list.extend_from_slice(&name);
                    list.push(0);
                }
                bytes(list)
            }
            Request::Space => {
                let s = self.space()?;
                Answer::Space(Space {
                    block_size: s.block_size,
                    blocks: s.blocks,
                    free: s.free,
                    available: s.available,
                    files: s.files,
                    files_free: s.files_free,
                    name_max: s.name_max,
                })
            }
            Request::Forget { file } => {
                store.forget(file);
                Answer::Done
            }
            Request::Change { .. } => return Err(FsError::Invalid),
        })
    }

    fn change(&self, op: Op, clear_privileges: bool, reply: Reply) {
        let node = |file| self.node(file);
        /// Continues with a value, or answers with the error and returns.
        macro_rules! or_fail {
            ($value:expr) => {
                match $value {
                    Ok(value) => value,
                    Err(e) => return reply(Answer::Failed(Failure::from(&FsError::from(e)))),
                }
            };
        }
        let engine = &self.engine;
        match op {
            Op::Write {
                file,
                offset,
                stability,
                clear_privileges,
                data,
            } => {
                let node = or_fail!(node(file));
                let (data, reply) = (data.to_bytes(), with_done(reply));
                engine.write(&node, offset, data, stability, clear_privileges, reply);
            }
            Op::Truncate {
                file,
                size,
                clear_privileges,
            } => {
                let node = or_fail!(node(file));
                engine.truncate(&node, size, clear_privileges, with_done(reply));
            }
            Op::Allocate {
                file,
                mode,
                offset,
                length,
            } => {
                let node = or_fail!(node(file));
                if clear_privileges {
                    or_fail!(self.clear_privileges(&node));
                }
                engine.allocate(&node, mode, offset, length, with_done(reply));
            }
            Op::CopyRange {
                from,
                from_offset,
                to,
                to_offset,
                length,
            } => {
                let (from, to) = (or_fail!(node(from)), or_fail!(node(to)));
                if clear_privileges {
                    or_fail!(self.clear_privileges(&to));
                }
                let reply = move |result| reply(answer(result, Answer::Number));
                engine.copy_range((&from, from_offset), (&to, to_offset), length, reply);
            }
            Op::Create {
                parent,
                name,
                object,
            } => {
                let new = NewEntry {
                    kind: object.kind,
                    target: object.target,
                    mode: object.mode,
                    umask: object.umask,
                    uid: object.uid,
                    gid: object.gid,
                };
                self.make(parent, name.as_bytes(), new, with_attributes(reply));
            }
            Op::Link { file, parent, name } => {
                self.link(file, parent, name.as_bytes(), with_attributes(reply));
            }
            Op::Unlink { parent, name, .. } => {
                self.remove(parent, name.as_bytes(), false, with_done(reply));
            }
            Op::RemoveDirectory { parent, name, .. } => {
                self.remove(parent, name.as_bytes(), true, with_done(reply));
            }
            Op::Rename {
                parent,
                name,
                new_parent,
                new_name,
                mode,
                ..
            } => self.rename(
                (parent, name.as_bytes()),
                (new_parent, new_name.as_bytes()),
                mode,
                with_done(reply),
            ),
            Op::SetAttributes { file, change } => {
                let set = SetAttributes {
                    change,
                    ..SetAttributes::default()
                };
                self.set_attributes(file, None, set, with_attributes(reply));
            }
            Op::SetXattr {
                file,
                name,
                value,
                mode,
            } => self.set_xattr(file, &name, &value, mode, with_done(reply)),
            Op::RemoveXattr { file, name } => {
                self.remove_xattr(file, &name, with_done(reply));
            }
            Op::Sync { file, data_only } => {
                let node = or_fail!(node(file));
                engine.sync(&node, data_only, true, with_done(reply));
            }
            Op::Times { .. }
            | Op::Checkpoint
            | Op::Verify { .. }
            | Op::Differs { .. }
            | Op::TakeOver
            | Op::PutDirectory { .. }
            | Op::PutObject { .. }
            | Op::PutXattr { .. }
            | Op::PutData { .. }
            | Op::PutHole { .. }
            | Op::ResyncEnd
            | Op::Flush => reply(Answer::Failed(Failure::Invalid)),
        }
    }
}
