//! Calls that change something. Each answers through a reply, which may run later
//! and on another thread; the calling thread is free as soon as the call returns.

use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use twinfold_protocol::attr::{Attributes, Kind};
use twinfold_protocol::ids::FileId;
use twinfold_protocol::limits;
use twinfold_protocol::op::{AllocateMode, Change, Name, Op, RenameMode, Stability, XattrMode};
use twinfold_protocol::remote::Request;

use super::{Handle, HandleId, OpenHow, Opened, Vfs, away};
use crate::engine::NewEntry;
use crate::error::{FsError, FsResult};
use crate::store::Node;

/// Continues with a value, or replies with the error and returns.
macro_rules! or_reply {
    ($reply:ident, $value:expr) => {
        match $value {
            Ok(value) => value,
            Err(error) => return $reply(Err(FsError::from(error))),
        }
    };
}

/// New attributes, and a new size.
#[derive(Clone, Copy, Debug, Default)]
pub struct SetAttributes {
    /// New size in bytes.
    pub size: Option<u64>,
    /// A change of size clears suid and sgid.
    pub clear_privileges: bool,
    /// The others.
    pub change: Change,
}

impl Vfs {
    fn file_node(&self, handle: HandleId) -> FsResult<Arc<Node>> {
        match &*self.handles.get(handle)? {
            Handle::File { opening, .. } => Ok(opening.node().clone()),
            _ => Err(FsError::BadHandle),
        }
    }

    /// Writes `data`, which is copied once, before the call returns. `stability` is what is
    /// asked for past the kernel's cache; else the kernel itself asks for a sync.
    pub fn write(
        &self,
        handle: HandleId,
        offset: u64,
        data: &[u8],
        stability: Stability,
        clear_privileges: bool,
        reply: impl FnOnce(FsResult<()>) + Send + 'static,
    ) {
        let away = or_reply!(reply, self.away(handle));
        let handle = or_reply!(reply, self.handles.get(handle));
        if data.len() > limits::MAX_PAYLOAD {
            return reply(Err(FsError::Invalid));
        }
        let (how, file, open) = match &*handle {
            Handle::File { opening, how } => {
                let node = opening.node();
                (*how, node.file(), Some((node.clone(), node.readers())))
            }
            Handle::Away { file, how } => (*how, *file, None),
            _ => return reply(Err(FsError::BadHandle)),
        };
        let stability = match how.direct {
            true => stability,
            false => Stability::Mode,
        };
        let data = Bytes::copy_from_slice(data);
        let there = move |file, data: Bytes| {
            away::change(Op::Write {
                file,
                offset,
                stability,
                clear_privileges,
                data: data.into(),
            })
        };
        let (caches, kept, written) = (self.caches.clone(), self.kept.clone(), open.clone());
        let end = offset.saturating_add(data.len() as u64);
        let reply = move |result| {
            if !how.direct {
                return reply(result);
            }
            // What readers that have closed left in the cache, the next one must not find.
            kept.lock().remove(&file);
            // Who is there while the peer does it all is not counted.
            if written.is_none_or(|(node, readers)| node.was_read_since(readers)) {
                // Whoever sees the write return sees it through the cache as well.
                let reply = Box::new(move || reply(result));
                caches.drop_pages(file, offset, end, Some(reply));
            } else {
                reply(result);
            }
        };
        if let Some(file) = away {
            let request = there(file, data);
            return away::send(&self.engine, request, FsError::Moved, away::done, reply);
        }
        let Some((node, _)) = open else {
            return reply(Err(FsError::BadHandle));
        };
        let again = data.clone();
        let reply = self.or_there(!node.is_orphan(), reply, move |engine, e, reply| {
            away::send(engine, there(file, again), e, away::done, reply);
        });
        self.engine
            .write(&node, offset, data, stability, clear_privileges, reply);
    }

    /// Sets attributes and size; the reply brings the attributes as they are then.
    pub fn set_attributes(
        &self,
        file: FileId,
        handle: Option<HandleId>,
        set: SetAttributes,
        reply: impl FnOnce(FsResult<Attributes>) + Send + 'static,
    ) {
        let open = handle.and_then(|h| self.handles.node(h));
        let movable = !open.as_ref().is_some_and(|node| node.is_orphan());
        if movable && self.engine.is_away() {
            return away::send_attributes(&self.engine, file, set, FsError::Moved, reply);
        }
        let reply = self.or_there(movable, reply, move |engine, e, reply| {
            away::send_attributes(engine, file, set, e, reply);
        });
        let node = match open {
            Some(node) => node,
            None => or_reply!(reply, self.node(file)),
        };
        let done = {
            let node = node.clone();
            move |result: FsResult<()>| {
                reply(result.and_then(|()| Ok(node.attributes()?)));
            }
        };
        let others = set.change != Change::default();
        match set.size {
            None => self.engine.set_attributes(&node, set.change, done),
            Some(size) if !others => {
                self.engine
                    .truncate(&node, size, set.clear_privileges, done);
            }
            Some(size) => {
                // Two ops, the second when the first is done. Whoever tells of that has no time.
                let engine = self.engine.clone();
                let jobs = engine.clone();
                self.engine
                    .truncate(
                        &node.clone(),
                        size,
                        set.clear_privileges,
                        move |result| match result {
                            Ok(()) => jobs.later(move || {
                                engine.set_attributes(&node, set.change, done);
                            }),
                            Err(e) => done(Err(e)),
                        },
                    );
            }
        }
    }

    /// Makes a file and opens it.
    pub fn create(
        self: &Arc<Self>,
        parent: FileId,
        name: &[u8],
        new: NewEntry,
        how: OpenHow,
        reply: impl FnOnce(FsResult<(Attributes, Opened)>) + Send + 'static,
    ) {
        // Before it is made: a file that is made and not opened would be left.
        if !self.engine.is_away() {
            or_reply!(reply, self.engine.store.has_descriptors());
        }
        let vfs = self.clone();
        self.make_node(parent, name, new, move |result| {
            reply(result.and_then(|(node, attributes)| {
                let opened = match node {
                    Some(node) => vfs.open_node(node, how)?,
                    None => vfs.open_away(attributes.file, how),
                };
                Ok((attributes, opened))
            }));
        });
    }

    /// Makes an object of any kind.
    pub fn make(
        &self,
        parent: FileId,
        name: &[u8],
        new: NewEntry,
        reply: impl FnOnce(FsResult<Attributes>) + Send + 'static,
    ) {
        self.make_node(parent, name, new, move |result| {
            reply(result.map(|(_, attributes)| attributes));
        });
    }

    fn make_node(
        &self,
        parent: FileId,
        name: &[u8],
        new: NewEntry,
        reply: impl FnOnce(FsResult<(Option<Arc<Node>>, Attributes)>) + Send + 'static,
    ) {
        if new.kind == Kind::Symlink && new.target.len() > limits::MAX_TARGET {
            return reply(Err(FsError::NameTooLong));
        }
        let name = or_reply!(reply, Name::new(name));
        let there = {
            let (name, new) = (name.clone(), new.clone());
            move || {
                away::change(Op::Create {
                    parent,
                    name,
                    object: away::new_object(new),
                })
            }
        };
        let take = |answer| Ok((None, away::attributes(answer)?));
        if self.engine.is_away() {
            return away::send(&self.engine, there(), FsError::Moved, take, reply);
        }
        let reply = self.or_there(true, reply, move |engine, e, reply| {
            away::send(engine, there(), e, take, reply);
        });
        let parent = or_reply!(reply, self.node(parent));
        self.engine.create(&parent, name, new, move |made| {
            reply(made.map(|(node, attributes)| (Some(node), attributes)));
        });
    }

    /// `link(2)`.
    pub fn link(
        &self,
        file: FileId,
        parent: FileId,
        name: &[u8],
        reply: impl FnOnce(FsResult<Attributes>) + Send + 'static,
    ) {
        let name = or_reply!(reply, Name::new(name));
        let there = {
            let name = name.clone();
            move || away::change(Op::Link { file, parent, name })
        };
        if self.engine.is_away() {
            let take = away::attributes;
            return away::send(&self.engine, there(), FsError::Moved, take, reply);
        }
        let reply = self.or_there(true, reply, move |engine, e, reply| {
            away::send(engine, there(), e, away::attributes, reply);
        });
        let node = or_reply!(reply, self.node(file));
        let parent = or_reply!(reply, self.node(parent));
        self.engine.link(&node, &parent, name, reply);
    }

    /// `unlink(2)`, or `rmdir(2)` with `directory`.
    pub fn remove(
        &self,
        parent: FileId,
        name: &[u8],
        directory: bool,
        reply: impl FnOnce(FsResult<()>) + Send + 'static,
    ) {
        let name = or_reply!(reply, Name::new(name));
        let there = {
            // What the name leads to only the peer knows.
            let (name, file) = (name.clone(), parent);
            move || {
                away::change(match directory {
                    true => Op::RemoveDirectory { parent, name, file },
                    false => Op::Unlink { parent, name, file },
                })
            }
        };
        let reply = match self.send_or(there, reply) {
            Some(reply) => reply,
            None => return,
        };
        let parent = or_reply!(reply, self.node(parent));
        self.engine.remove(&parent, name, directory, reply);
    }

    /// `renameat2(2)`.
    pub fn rename(
        &self,
        (parent, name): (FileId, &[u8]),
        (new_parent, new_name): (FileId, &[u8]),
        mode: RenameMode,
        reply: impl FnOnce(FsResult<()>) + Send + 'static,
    ) {
        let name = or_reply!(reply, Name::new(name));
        let new_name = or_reply!(reply, Name::new(new_name));
        let there = {
            let (name, new_name) = (name.clone(), new_name.clone());
            move || {
                away::change(Op::Rename {
                    parent,
                    name,
                    file: parent,
                    new_parent,
                    new_name,
                    replaced: None,
                    mode,
                })
            }
        };
        let reply = match self.send_or(there, reply) {
            Some(reply) => reply,
            None => return,
        };
        let parent = or_reply!(reply, self.node(parent));
        let new_parent = or_reply!(reply, self.node(new_parent));
        self.engine
            .rename((&parent, name), (&new_parent, new_name), mode, reply);
    }

    /// Takes suid and sgid away before a change whose op cannot do it by the way. The
    /// caller's op is acknowledged after this one.
    pub(super) fn clear_privileges(&self, node: &Arc<Node>) -> FsResult<()> {
        let Some(mode) = self.engine.store.mode_without_privileges(node)? else {
            return Ok(());
        };
        let change = Change {
            mode: Some(mode),
            ..Change::default()
        };
        // What fails here has failed before the call returns.
        let failed = Arc::new(Mutex::new(None));
        let note = failed.clone();
        self.engine.set_attributes(node, change, move |result| {
            *note.lock() = result.err();
        });
        let error = failed.lock().take();
        error.map_or(Ok(()), Err)
    }

    /// `fallocate(2)`.
    pub fn allocate(
        &self,
        handle: HandleId,
        mode: AllocateMode,
        offset: u64,
        length: u64,
        clear_privileges: bool,
        reply: impl FnOnce(FsResult<()>) + Send + 'static,
    ) {
        let there = move |file| Request::Change {
            op: Op::Allocate {
                file,
                mode,
                offset,
                length,
            },
            clear_privileges,
        };
        if let Some(file) = or_reply!(reply, self.away(handle)) {
            let request = there(file);
            return away::send(&self.engine, request, FsError::Moved, away::done, reply);
        }
        let node = or_reply!(reply, self.file_node(handle));
        let file = node.file();
        let reply = self.or_there(!node.is_orphan(), reply, move |engine, e, reply| {
            away::send(engine, there(file), e, away::done, reply);
        });
        if clear_privileges {
            or_reply!(reply, self.clear_privileges(&node));
        }
        self.engine.allocate(&node, mode, offset, length, reply);
    }

    /// `copy_file_range(2)`.
    pub fn copy_range(
        &self,
        (from, from_offset): (HandleId, u64),
        (to, to_offset): (HandleId, u64),
        length: u64,
        clear_privileges: bool,
        reply: impl FnOnce(FsResult<u64>) + Send + 'static,
    ) {
        let there = move |from, to| Request::Change {
            op: Op::CopyRange {
                from,
                from_offset,
                to,
                to_offset,
                length: length.min(limits::MAX_OFFSET),
            },
            clear_privileges,
        };
        let away = (
            or_reply!(reply, self.away(from)),
            or_reply!(reply, self.away(to)),
        );
        if let (Some(from), Some(to)) = away {
            let request = there(from, to);
            return away::send(&self.engine, request, FsError::Moved, away::number, reply);
        }
        let from = or_reply!(reply, self.file_node(from));
        let to = or_reply!(reply, self.file_node(to));
        let movable = !from.is_orphan() && !to.is_orphan();
        let files = (from.file(), to.file());
        let reply = self.or_there(movable, reply, move |engine, e, reply| {
            away::send(engine, there(files.0, files.1), e, away::number, reply);
        });
        if clear_privileges {
            or_reply!(reply, self.clear_privileges(&to));
        }
        self.engine
            .copy_range((&from, from_offset), (&to, to_offset), length, reply);
    }

    /// `fsync(2)` and its relatives, of files and directories.
    pub fn sync(
        &self,
        file: FileId,
        handle: Option<HandleId>,
        data_only: bool,
        reply: impl FnOnce(FsResult<()>) + Send + 'static,
    ) {
        let open = handle.and_then(|h| self.handles.node(h));
        let movable = !open.as_ref().is_some_and(|node| node.is_orphan());
        let there = move || away::change(Op::Sync { file, data_only });
        if movable && self.engine.is_away() {
            return away::send(&self.engine, there(), FsError::Moved, away::done, reply);
        }
        let reply = self.or_there(movable, reply, move |engine, e, reply| {
            away::send(engine, there(), e, away::done, reply);
        });
        let node = match open {
            Some(node) => node,
            None => or_reply!(reply, self.node(file)),
        };
        let handle = handle.and_then(|h| self.handles.get(h).ok());
        let wrote = handle
            .as_ref()
            .is_some_and(|h| matches!(&**h, Handle::File { how, .. } if how.write));
        let reply = move |done: FsResult<()>| {
            // A failure that another's call met is this one's as well.
            let before = match handle.as_deref() {
                Some(Handle::File { opening, .. }) => opening.failed_before(),
                _ => Ok(()),
            };
            reply(done.and_then(|()| Ok(before?)));
        };
        self.engine.sync(&node, data_only, wrote, reply);
    }

    /// `setxattr(2)`.
    pub fn set_xattr(
        &self,
        file: FileId,
        name: &[u8],
        value: &[u8],
        mode: XattrMode,
        reply: impl FnOnce(FsResult<()>) + Send + 'static,
    ) {
        let there = {
            let (name, value) = (Bytes::copy_from_slice(name), Bytes::copy_from_slice(value));
            move || {
                away::change(Op::SetXattr {
                    file,
                    name,
                    value,
                    mode,
                })
            }
        };
        let reply = match self.send_or(there, reply) {
            Some(reply) => reply,
            None => return,
        };
        let node = or_reply!(reply, self.node(file));
        self.engine.set_xattr(&node, name, value, mode, reply);
    }

    /// `removexattr(2)`.
    pub fn remove_xattr(
        &self,
        file: FileId,
        name: &[u8],
        reply: impl FnOnce(FsResult<()>) + Send + 'static,
    ) {
        let there = {
            let name = Bytes::copy_from_slice(name);
            move || away::change(Op::RemoveXattr { file, name })
        };
        let reply = match self.send_or(there, reply) {
            Some(reply) => reply,
            None => return,
        };
        let node = or_reply!(reply, self.node(file));
        self.engine.remove_xattr(&node, name, reply);
    }
}
