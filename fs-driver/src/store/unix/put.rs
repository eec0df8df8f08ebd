//! Making this copy equal to the primary's: the target's side of a resync.
//!
//! Nothing here depends on the order in which objects arrive. An object that is
//! not in its place waits *aside*, under its id as name: one that lost its name
//! and may get another, one that was created before its name came. What is still
//! aside at the end has no name on the primary, and goes.

use std::collections::HashSet;
use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use bytes::Bytes;
use rustix::fs::{AtFlags, Mode, OFlags, RenameFlags};
use twinfold_protocol::attr::Kind;
use twinfold_protocol::ids::FileId;
use twinfold_protocol::op::{Change, Listing, Name, NewObject, Object, Op, PutEntry, XattrMode};

use super::names::c_name;
use super::node::{Node, kind_of};
use super::{Store, sys, xattrs};

/// Names a whole listing has named so far: their hashes (BLAKE3, cut to 128 bits), for a
/// directory may have a million of them.
pub(super) type SeenNames = HashSet<[u8; 16]>;

fn hash_of(name: &Name) -> [u8; 16] {
    let mut hash = [0; 16];
    hash.copy_from_slice(&blake3::hash(name.as_bytes()).as_bytes()[..16]);
    hash
}

/// How the names begin under which that waits aside which is no object of the store.
const FOREIGN: &str = "foreign-";

/// Whether a name aside is of something that came behind the mount.
pub(super) fn is_foreign(name: &CString) -> bool {
    name.to_bytes().starts_with(FOREIGN.as_bytes())
}

impl Store {
    /// Applies a resync op.
    pub fn put(&self, op: &Op) -> io::Result<()> {
        match op {
            Op::PutDirectory {
                directory,
                listing,
                entries,
            } => {
                self.put_directory(*directory, *listing, entries)?;
                self.put_back()
            }
            Op::PutObject { object, xattrs } => self.put_object(object, xattrs),
            Op::PutXattr { file, name, value } => {
                self.set_xattr(&*self.node(*file)?, name, value, XattrMode::Either)
            }
            Op::PutData { file, offset, data } => {
                let node = self.node(*file)?;
                self.with_capabilities(&node, || self.write(&node, *offset, data))
            }
            Op::PutHole {
                file,
                offset,
                length,
            } => self.put_hole(*file, *offset, *length),
            Op::ResyncEnd => self.all_in_place(),
            _ => Ok(()),
        }
    }

    /// A resync begins: what one that broke off has said of directories is forgotten.
    pub fn begin_puts(&self) {
        self.listings.lock().clear();
    }

    fn put_hole(&self, file: FileId, offset: u64, length: u64) -> io::Result<()> {
        let node = self.node(file)?;
        // Punching does not grow a file, and what lies beyond its end is a hole already.
        let punch = twinfold_protocol::op::AllocateMode::PunchHole;
        self.with_capabilities(&node, || self.allocate(&node, punch, offset, length))
    }

    /// Moves data: the kernel takes a file's capabilities away with each change of what is in
    /// it, but they came before it, with the attributes.
    pub(super) fn with_capabilities(
        &self,
        node: &Node,
        change: impl FnOnce() -> io::Result<()>,
    ) -> io::Result<()> {
        if node.is_plain() {
            return change();
        }
        let kept = match self.get_xattr(node, xattrs::CAPABILITY) {
            Ok(kept) => Some(kept),
            Err(e) if matches!(e.raw_os_error(), Some(libc::ENODATA | libc::EOPNOTSUPP)) => {
                node.set_plain(true);
                None
            }
            Err(e) => return Err(e),
        };
        let changed = change();
        if let Some(kept) = kept {
            self.set_xattr(node, xattrs::CAPABILITY, &kept, XattrMode::Either)?;
        }
        changed
    }

    fn put_directory(
        &self,
        directory: FileId,
        listing: Listing,
        entries: &[PutEntry],
    ) -> io::Result<()> {
        let parent = match self.object(directory)? {
            Some(node) => node,
            None => self.create_aside(directory, Kind::Directory, &Bytes::new(), 0o700)?,
        };
        if let Listing::Whole { first: true, .. } = listing {
            self.listings.lock().insert(directory, SeenNames::new());
        }
        for entry in entries {
            self.put_entry(&parent, entry)?;
            if let Some(seen) = self.listings.lock().get_mut(&directory) {
                seen.insert(hash_of(&entry.name));
            }
        }
        if let Listing::Whole { last: true, .. } = listing {
            let seen = self.listings.lock().remove(&directory).unwrap_or_default();
            self.told_of(directory, |name| !seen.contains(&hash_of(name)));
            let mut others = Vec::new();
            self.each_name(&parent, |name| {
                if !seen.contains(&hash_of(&name)) {
                    others.push(name);
                }
                Ok(())
            })?;
            for name in others {
                if let Some(node) = self.own(&parent, &name)? {
                    self.move_aside(&parent, &name, &node)?;
                }
            }
        }
        Ok(())
    }

    fn put_entry(&self, parent: &Arc<Node>, entry: &PutEntry) -> io::Result<()> {
        self.told_of(parent.file(), |name| *name == entry.name);
        let here = self.own(parent, &entry.name)?;
        let wanted = entry.object.as_ref();
        if let (Some(here), Some(wanted)) = (&here, wanted)
            && here.file() == wanted.file
        {
            return Ok(());
        }
        if let Some(here) = here {
            self.move_aside(parent, &entry.name, &here)?;
        }
        let Some(wanted) = wanted else { return Ok(()) };
        match self.object(wanted.file)? {
            Some(node) => self.place(&node, parent, &entry.name),
            None => self.create(parent, &entry.name, &as_new(wanted)).map(drop),
        }
    }

    /// What a name leads to, if it is an object of the store. What is none came there
    /// behind the mount, and goes.
    fn own(&self, parent: &Arc<Node>, name: &Name) -> io::Result<Option<Arc<Node>>> {
        let path = match sys::open_name(parent.path(), &c_name(name)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened?,
        };
        let file = match xattrs::id_of(path.as_fd())? {
            Some(file) if self.id_proven(path.as_fd())?.is_some() => Some(file),
            // The index may have lost it; but two objects cannot have one id.
            Some(file) if self.peek(file)?.is_none() => {
                self.index.put(file, &sys::Handle::of(path.as_fd())?)?;
                Some(file)
            }
            _ => None,
        };
        if let Some(file) = file {
            return self.node(file).map(Some);
        }
        tracing::warn!(%name, directory = %parent.file(), "what came behind the mount is removed");
        for number in 0.. {
            let aside = CString::new(format!("{FOREIGN}{number}")).unwrap_or_default();
            let moved = rustix::fs::renameat_with(
                parent.path(),
                c_name(name).as_c_str(),
                &self.aside,
                aside.as_c_str(),
                RenameFlags::NOREPLACE,
            );
            match moved {
                Err(rustix::io::Errno::EXIST) => {}
                moved => return Ok(moved.map(|()| None)?),
            }
        }
        Ok(None)
    }

    /// Gives an object that exists a name: from aside, from its old place if it is a
    /// directory, else as a further link.
    fn place(&self, node: &Arc<Node>, parent: &Node, name: &Name) -> io::Result<()> {
        if node.kind() == Kind::Directory {
            self.make_way(parent, node)?;
            self.lent.lock().remove(&node.file());
        }
        let aside = aside_name(node.file());
        let moved = rustix::fs::renameat_with(
            &self.aside,
            aside.as_c_str(),
            parent.path(),
            c_name(name).as_c_str(),
            RenameFlags::NOREPLACE,
        );
        match moved {
            Ok(()) => return Ok(()),
            Err(rustix::io::Errno::NOENT) => {}
            Err(e) => return Err(e.into()),
        }
        if node.kind() != Kind::Directory {
            return self.link(node, parent, name);
        }
        // A directory has one name; take it from where it is now.
        self.pull_aside(node)?;
        Ok(rustix::fs::renameat_with(
            &self.aside,
            aside.as_c_str(),
            parent.path(),
            c_name(name).as_c_str(),
            RenameFlags::NOREPLACE,
        )?)
    }

    /// Moves a directory aside from wherever it is.
    fn pull_aside(&self, node: &Arc<Node>) -> io::Result<()> {
        let up = rustix::fs::openat(
            node.path(),
            c"..",
            OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        let stat = rustix::fs::fstat(&up)?;
        let parent = match xattrs::id_of(up.as_fd())? {
            Some(file) => self.node(file)?,
            None => {
                return Err(io::Error::other(format!(
                    "{} lies in a directory (inode {}) that is not part of the store",
                    node.file(),
                    stat.st_ino
                )));
            }
        };
        match self.name_of(parent.clone(), node.file())? {
            Some(name) => self.move_aside(&parent, &name, node),
            None => Err(io::Error::from_raw_os_error(libc::ESTALE)),
        }
    }

    pub(super) fn move_aside(
        &self,
        parent: &Node,
        name: &Name,
        node: &Arc<Node>,
    ) -> io::Result<()> {
        let aside = aside_name(node.file());
        let moved = rustix::fs::renameat_with(
            parent.path(),
            c_name(name).as_c_str(),
            &self.aside,
            aside.as_c_str(),
            RenameFlags::NOREPLACE,
        );
        match moved {
            Ok(()) => Ok(()),
            // Another link of it waits aside already; this one only has to go.
            Err(rustix::io::Errno::EXIST) => Ok(rustix::fs::unlinkat(
                parent.path(),
                c_name(name).as_c_str(),
                AtFlags::empty(),
            )?),
            Err(e) => Err(e.into()),
        }
    }

    fn create_aside(
        &self,
        file: FileId,
        kind: Kind,
        target: &Bytes,
        mode: u32,
    ) -> io::Result<Arc<Node>> {
        let object = NewObject {
            file,
            kind,
            target: target.clone(),
            mode,
            umask: 0,
            uid: 0,
            gid: 0,
        };
        self.create_in(self.aside.as_fd(), &aside_name(file), &object)
    }

    fn put_object(&self, object: &Object, xattrs: &[(Bytes, Bytes)]) -> io::Result<()> {
        let node = match self.object(object.file)? {
            Some(node) => node,
            None => self.create_aside(object.file, object.kind, &object.target, object.mode)?,
        };
        if node.kind() != object.kind {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!(
                    "{} is a {:?} here and a {:?} on the primary",
                    object.file,
                    node.kind(),
                    object.kind
                ),
            ));
        }
        let here = node.attributes()?;
        let cut = object.kind == Kind::Regular && here.size != object.size;
        if cut {
            self.truncate(&node, object.size)?;
        }
        // What was made a moment ago is as it was sent but for its size and times.
        if cut || (here.mode, here.uid, here.gid) != (object.mode, object.uid, object.gid) {
            let change = Change {
                mode: Some(object.mode),
                uid: Some(object.uid),
                gid: Some(object.gid),
                accessed: None,
                modified: None,
            };
            self.change(&node, &change)?;
        }
        for attribute in self.list_xattrs(&node)? {
            if !xattrs.iter().any(|(name, _)| *name == attribute) {
                self.remove_xattr(&node, &attribute)?;
            }
        }
        for (name, value) in xattrs {
            self.set_xattr(&node, name, value, XattrMode::Either)?;
        }
        self.set_times(&node, Some(object.accessed), Some(object.modified))
    }

    /// Removes what is still aside: the primary has no name for it. The files whose inodes are
    /// in `linked` have one name more, outside of the store.
    pub fn clear_aside(&self, linked: &HashSet<u64>) -> io::Result<u64> {
        let mut removed = 0;
        for name in self.all_aside()? {
            removed += self.remove_tree(self.aside.as_fd(), &name, linked)?;
        }
        Ok(removed)
    }

    /// This copy is made the good one although a resync of it has not ended. A file that is
    /// aside, or in a directory that is, and has a name as well loses its place there: with it,
    /// it would outlive its last name. What has no name but that stays where it is, for whoever
    /// may need it. Returns how many such objects are aside.
    pub fn settle_aside(&self) -> io::Result<u64> {
        self.put_back()?;
        self.forget_lent();
        settle_below(self.aside.as_fd())
    }

    /// The names of what is aside.
    fn all_aside(&self) -> io::Result<Vec<CString>> {
        names_in(self.aside.as_fd())
    }

    /// Removes what a name leads to, with all below it, whether it has an id or not.
    fn remove_tree(
        &self,
        directory: BorrowedFd<'_>,
        name: &CString,
        linked: &HashSet<u64>,
    ) -> io::Result<u64> {
        let path = sys::open_name(directory, name)?;
        let is_directory = kind_of(&rustix::fs::fstat(&path)?)? == Kind::Directory;
        let node = match self.id_proven(path.as_fd())? {
            Some(file) => Some(self.node(file)?),
            None => None,
        };
        let mut removed = 1;
        if is_directory {
            let listed = sys::reopen(path.as_fd(), OFlags::RDONLY | OFlags::DIRECTORY)?;
            for entry in rustix::fs::Dir::new(listed)? {
                let entry = entry?;
                let child = entry.file_name();
                if child.to_bytes() != b"." && child.to_bytes() != b".." {
                    removed += self.remove_tree(path.as_fd(), &child.to_owned(), linked)?;
                }
            }
        }
        let flags = if is_directory {
            AtFlags::REMOVEDIR
        } else {
            AtFlags::empty()
        };
        rustix::fs::unlinkat(directory, name.as_c_str(), flags)?;
        if let Some(node) = node {
            let stat = rustix::fs::fstat(node.path())?;
            if is_directory || stat.st_nlink == u64::from(linked.contains(&stat.st_ino)) {
                self.orphan(node);
            }
        }
        Ok(removed)
    }
}

/// All names in a directory.
fn names_in(directory: BorrowedFd<'_>) -> io::Result<Vec<CString>> {
    let directory = sys::reopen(directory, OFlags::RDONLY | OFlags::DIRECTORY)?;
    let mut all = Vec::new();
    for entry in rustix::fs::Dir::new(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        if name.to_bytes() != b"." && name.to_bytes() != b".." {
            all.push(name.to_owned());
        }
    }
    Ok(all)
}

/// Takes the names in a directory, and below it, of files that have others. Returns how many
/// names of the directory stay.
fn settle_below(directory: BorrowedFd<'_>) -> io::Result<u64> {
    let mut kept = 0;
    for name in names_in(directory)? {
        let path = sys::open_name(directory, &name)?;
        let stat = rustix::fs::fstat(&path)?;
        let is_directory = kind_of(&stat)? == Kind::Directory;
        if is_directory {
            settle_below(path.as_fd())?;
        }
        if !is_directory && stat.st_nlink > 1 {
            rustix::fs::unlinkat(directory, name.as_c_str(), AtFlags::empty())?;
        } else {
            kept += 1;
        }
    }
    Ok(kept)
}

pub(super) fn aside_name(file: FileId) -> CString {
    CString::new(format!("{:016x}", file.0)).unwrap_or_default()
}

fn as_new(object: &Object) -> NewObject {
    NewObject {
        file: object.file,
        kind: object.kind,
        target: object.target.clone(),
        mode: object.mode,
        umask: 0,
        uid: object.uid,
        gid: object.gid,
    }
}
