//! Changes of names and attributes. Each is applied here first, under one lock,
//! and shipped only when it succeeded: what the store refuses never reaches the peer.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use twinfold_protocol::attr::{Attributes, Kind};
use twinfold_protocol::ids::FileId;
use twinfold_protocol::marks::DirtyMap;
use twinfold_protocol::op::{Change, Name, NewObject, Op, RenameMode, XattrMode};

use super::Engine;
use super::settle::touched_by;
use crate::error::{FsError, FsResult};
use crate::store::{Node, is_disk_failure, may_have_changed};

/// What a new object shall be, before it has an id.
#[derive(Clone, Debug)]
pub struct NewEntry {
    /// What it is.
    pub kind: Kind,
    /// Where a symbolic link points to.
    pub target: Bytes,
    /// Mode as asked for.
    pub mode: u32,
    /// The caller's umask.
    pub umask: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// The store refused before it changed anything: how calls usually fail.
fn is_refusal(error: &FsError) -> bool {
    !matches!(error, FsError::Store(e) if may_have_changed(e))
}

impl Engine {
    /// Runs `change` under the lock over names when this node may write, after the
    /// intents of `op` are durable. What `change` returns is committed and answered.
    fn change_names<T: Send + 'static>(
        self: &Arc<Self>,
        op: Op,
        reply: impl FnOnce(FsResult<T>) + Send + 'static,
        change: impl FnOnce(&Engine, Op) -> FsResult<(Option<Op>, T)> + Send + 'static,
    ) {
        self.admit(0, move |engine| {
            engine.change_names_now(op, reply, change);
        });
    }

    fn change_names_now<T: Send + 'static>(
        &self,
        op: Op,
        reply: impl FnOnce(FsResult<T>) + Send + 'static,
        change: impl FnOnce(&Engine, Op) -> FsResult<(Option<Op>, T)>,
    ) {
        let _pass = self.gate.enter();
        if let Err(e) = self.writable().and_then(|()| self.ensure_intents(&op, 0)) {
            return reply(Err(e));
        }
        let mut touched = Vec::with_capacity(2);
        touched_by(&op, |file| touched.push(file));
        let _names = self.names.lock();
        match change(self, op) {
            Ok((Some(op), answer)) => {
                self.commit(op, 0, Box::new(move || reply(Ok(answer))));
            }
            Ok((None, answer)) => reply(Ok(answer)),
            Err(e) => {
                // What failed half-way was undone, but that, too, has set times.
                if !is_refusal(&e) {
                    let marks = self.marks_of(&touched);
                    self.core.lock().add_suspects(marks);
                    self.not_undone(&touched, &e);
                    self.touched.lock().extend(touched);
                }
                reply(Err(e));
            }
        }
    }

    /// Marks of these objects and of all names in them.
    pub(super) fn marks_of(&self, files: &[FileId]) -> DirtyMap {
        let mut marks = DirtyMap::default();
        for file in files {
            marks.mark_attributes(*file);
            let found = self.store.object(*file);
            if found.is_ok_and(|node| node.is_some_and(|n| n.kind() == Kind::Directory)) {
                marks.mark_directory(*file);
            }
        }
        marks
    }

    /// Of a disk that fails nobody knows whether what was done in part is undone.
    fn not_undone(&self, files: &[FileId], error: &FsError) {
        if let FsError::Store(e) = error
            && is_disk_failure(e)
        {
            self.disk_failed_at(files, "a change of names or attributes", e);
        }
    }

    /// Makes a new object. The reply brings it and its attributes.
    pub fn create(
        self: &Arc<Self>,
        parent: &Arc<Node>,
        name: Name,
        new: NewEntry,
        reply: impl FnOnce(FsResult<(Arc<Node>, Attributes)>) + Send + 'static,
    ) {
        let op = Op::Create {
            parent: parent.file(),
            name,
            object: NewObject {
                file: self.new_id(),
                kind: new.kind,
                target: new.target,
                mode: new.mode,
                umask: new.umask,
                uid: new.uid,
                gid: new.gid,
            },
        };
        let parent = parent.clone();
        self.change_names(op, reply, move |engine, op| {
            let Op::Create { name, object, .. } = &op else {
                return Err(FsError::Invalid);
            };
            let node = engine.store.create(&parent, name, object)?;
            let attributes = node.attributes()?;
            Ok((Some(op), (node, attributes)))
        });
    }

    /// `link(2)`. The reply brings the attributes with the new link counted.
    pub fn link(
        self: &Arc<Self>,
        node: &Arc<Node>,
        parent: &Arc<Node>,
        name: Name,
        reply: impl FnOnce(FsResult<Attributes>) + Send + 'static,
    ) {
        let op = Op::Link {
            file: node.file(),
            parent: parent.file(),
            name,
        };
        let (node, parent) = (node.clone(), parent.clone());
        self.change_names(op, reply, move |engine, op| {
            let Op::Link { name, .. } = &op else {
                return Err(FsError::Invalid);
            };
            engine.store.link(&node, &parent, name)?;
            let attributes = node.attributes()?;
            Ok((Some(op), attributes))
        });
    }

    /// `unlink(2)`, or `rmdir(2)` with `directory`.
    pub fn remove(
        self: &Arc<Self>,
        parent: &Arc<Node>,
        name: Name,
        directory: bool,
        reply: impl FnOnce(FsResult<()>) + Send + 'static,
    ) {
        // The name decides which intents are needed; what it leads to is looked up under the lock.
        let probe = Op::Unlink {
            parent: parent.file(),
            name,
            file: parent.file(),
        };
        let parent = parent.clone();
        self.change_names(probe, reply, move |engine, probe| {
            let Op::Unlink { name, .. } = probe else {
                return Err(FsError::Invalid);
            };
            let node = engine.store.lookup(&parent, &name)?;
            if directory != (node.kind() == Kind::Directory) {
                return Err(if directory {
                    FsError::NotADirectory
                } else {
                    FsError::IsADirectory
                });
            }
            // A write to it comes before the removal, or it finds an object without a name.
            let whole = node.ranges.lock_all();
            engine.store.unlink(&parent, &name, node.clone())?;
            drop(whole);
            let (parent, file) = (parent.file(), node.file());
            let op = if directory {
                Op::RemoveDirectory { parent, name, file }
            } else {
                Op::Unlink { parent, name, file }
            };
            Ok((Some(op), ()))
        });
    }

    /// `renameat2(2)`.
    pub fn rename(
        self: &Arc<Self>,
        (parent, name): (&Arc<Node>, Name),
        (new_parent, new_name): (&Arc<Node>, Name),
        mode: RenameMode,
        reply: impl FnOnce(FsResult<()>) + Send + 'static,
    ) {
        let probe = Op::Rename {
            parent: parent.file(),
            name,
            file: parent.file(),
            new_parent: new_parent.file(),
            new_name,
            replaced: None,
            mode,
        };
        let (parent, new_parent) = (parent.clone(), new_parent.clone());
        self.change_names(probe, reply, move |engine, probe| {
            let Op::Rename { name, new_name, .. } = probe else {
                return Err(FsError::Invalid);
            };
            let node = engine.store.lookup(&parent, &name)?;
            let victim = engine.store.find(&new_parent, &new_name)?;
            let whole = victim.as_ref().map(|v| v.ranges.lock_all());
            engine
                .store
                .rename(&parent, &name, &new_parent, &new_name, victim.clone(), mode)?;
            drop(whole);
            let op = Op::Rename {
                parent: parent.file(),
                name,
                file: node.file(),
                new_parent: new_parent.file(),
                new_name,
                replaced: victim.as_ref().map(|v| v.file()),
                mode,
            };
            Ok((Some(op), ()))
        });
    }

    /// `chmod(2)`, `chown(2)`, `utimensat(2)`.
    pub fn set_attributes(
        self: &Arc<Self>,
        node: &Arc<Node>,
        change: Change,
        reply: impl FnOnce(FsResult<()>) + Send + 'static,
    ) {
        let op = Op::SetAttributes {
            file: node.file(),
            change,
        };
        self.change_object(node, op, reply, move |engine, node, _| {
            let done = engine.store.change(node, &change);
            let two = change.mode.is_some() && (change.uid.is_some() || change.gid.is_some());
            if let Err(e) = &done
                && (two || may_have_changed(e))
                && !node.is_orphan()
            {
                engine.attributes_as_they_are(node);
            }
            done
        });
    }

    /// Changes an object's attributes, ordered with all that is done to names, and with
    /// writes: they take suid and capabilities away, and set times.
    fn change_object(
        self: &Arc<Self>,
        node: &Arc<Node>,
        op: Op,
        reply: impl FnOnce(FsResult<()>) + Send + 'static,
        change: impl FnOnce(&Engine, &Node, &Op) -> io::Result<()> + Send + 'static,
    ) {
        let node = node.clone();
        self.admit(0, move |engine| {
            let _pass = engine.gate.enter();
            let ready = engine.writable();
            if let Err(e) = ready.and_then(|()| engine.ensure_intents(&op, 0)) {
                return reply(Err(e));
            }
            let _names = engine.names.lock();
            let _whole = node.ranges.lock_all();
            match change(engine, &node, &op) {
                Ok(()) if node.is_orphan() => reply(Ok(())),
                Ok(()) => engine.commit(op, 0, Box::new(move || reply(Ok(())))),
                Err(e) => {
                    let error = FsError::from(e);
                    if !node.is_orphan() {
                        engine.not_undone(&[node.file()], &error);
                    }
                    reply(Err(error));
                }
            }
        });
    }

    /// A change of an object's attributes failed and may have done a part of it: ships what
    /// they are now. The caller holds names and all of the object.
    fn attributes_as_they_are(&self, node: &Node) {
        match node.attributes() {
            Ok(now) => {
                let change = Change {
                    mode: (now.kind != Kind::Symlink).then_some(now.mode),
                    uid: Some(now.uid),
                    gid: Some(now.gid),
                    accessed: Some(now.accessed),
                    modified: Some(now.modified),
                };
                let file = node.file();
                self.commit(Op::SetAttributes { file, change }, 0, Box::new(|| ()));
            }
            Err(e) => self.differs(node, 0, 0, &e),
        }
    }

    /// `setxattr(2)`.
    pub fn set_xattr(
        self: &Arc<Self>,
        node: &Arc<Node>,
        name: &[u8],
        value: &[u8],
        mode: XattrMode,
        reply: impl FnOnce(FsResult<()>) + Send + 'static,
    ) {
        let op = Op::SetXattr {
            file: node.file(),
            name: Bytes::copy_from_slice(name),
            value: Bytes::copy_from_slice(value),
            mode,
        };
        self.change_object(node, op, reply, move |engine, node, op| match op {
            Op::SetXattr { name, value, .. } => engine.store.set_xattr(node, name, value, mode),
            _ => Ok(()),
        });
    }

    /// `removexattr(2)`.
    pub fn remove_xattr(
        self: &Arc<Self>,
        node: &Arc<Node>,
        name: &[u8],
        reply: impl FnOnce(FsResult<()>) + Send + 'static,
    ) {
        let op = Op::RemoveXattr {
            file: node.file(),
            name: Bytes::copy_from_slice(name),
        };
        self.change_object(node, op, reply, move |engine, node, op| match op {
            Op::RemoveXattr { name, .. } => engine.store.remove_xattr(node, name),
            _ => Ok(()),
        });
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use twinfold_protocol::ids::Seq;
    use twinfold_protocol::marks::Names;
    use twinfold_protocol::primary::Link;

    use super::super::bed::{newest, opened, paired};
    use super::super::clock;
    use super::*;

    /// It may be there in part; and before the peer can be asked to take over its line breaks
    /// for longer than it is waited for.
    #[test]
    fn names_that_a_failing_disk_changed_in_part_differ_when_the_peer_does_not_take_over() {
        for holding in [false, true] {
            let (engine, _place) = opened(true);
            engine.start_primary(false).unwrap();
            let session = paired(&engine);
            let lose = || {
                let mut core = engine.core.lock();
                core.peer_lost(clock::now(), "cut");
                core.tick(clock::now().after(Duration::from_secs(3600)));
                assert_eq!(core.link(), Link::Holding);
            };
            // Of a peer that may come back, but cannot be asked, nobody waits for a word.
            if holding {
                lose();
            }
            let op = Op::Unlink {
                parent: FileId::ROOT,
                name: Name::new(b"name").unwrap(),
                file: FileId(5000),
            };
            let eio = || FsError::Store(io::Error::from_raw_os_error(5));
            engine.change_names_now(op, |r: FsResult<()>| assert!(r.is_err()), |_, _| Err(eio()));
            if !holding {
                assert!(engine.is_away());
                lose();
                engine.ask_to_take_over();
            }
            assert!(!engine.is_away());
            assert!(engine.resume(session, Seq(newest(&engine).0 - 1)));
            let mut core = engine.core.lock();
            let names = core.differing().names(FileId::ROOT);
            assert!(matches!(names, Some(Names::All)), "{names:?}");
            let told =
                std::iter::from_fn(|| core.next_op()).any(|op| matches!(op.op, Op::Differs { .. }));
            assert!(told);
        }
    }
}
