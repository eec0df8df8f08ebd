//! What a call on the mount means: objects, handles, reads, and which change a
//! call is. No word of FUSE or WinFsp in here; an adapter translates.

mod away;
mod caches;
mod calls;
mod handles;
mod host;
#[cfg(test)]
mod tests;
mod told;

use std::collections::HashSet;
use std::sync::Arc;

use parking_lot::Mutex;
use twinfold_protocol::attr::{Attributes, Kind};
use twinfold_protocol::handshake::Role;
use twinfold_protocol::ids::FileId;
use twinfold_protocol::limits;
use twinfold_protocol::op::Name;
use twinfold_protocol::remote::Request;

use crate::engine::Engine;
use crate::error::{FsError, FsResult};
use crate::store::{DirectoryHandle, Listed, Node, Opening, SpaceUse};

pub use caches::DropPages;
pub use calls::SetAttributes;
pub use handles::{Handle, HandleId, OpenHow};

use caches::Caches;
use handles::Handles;
use told::Told;

/// Files whose pages in the kernel are known to be right, at most; beyond it all are
/// forgotten, and read again.
const MAX_KEPT: usize = 65_536;

/// How long the kernel may trust what it was told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Trust {
    /// This node is primary: nobody but the kernel itself changes anything.
    Long,
    /// The peer changes things behind the kernel's back.
    Never,
}

/// An open file, and whether the kernel may keep what it has cached of it.
#[derive(Clone, Copy, Debug)]
pub struct Opened {
    /// The handle.
    pub handle: HandleId,
    /// Cached pages are still right.
    pub keep_cache: bool,
    /// Reads must come here every time.
    pub uncached: bool,
}

/// A listed entry with what it leads to.
#[derive(Clone, Debug)]
pub struct Listing {
    /// Its name.
    pub name: Listed,
    /// Where to go on behind it.
    pub next: u64,
    /// What it leads to.
    pub attributes: Attributes,
}

/// The file system of one mount.
#[derive(Debug)]
pub struct Vfs {
    engine: Arc<Engine>,
    handles: Handles,
    caches: Arc<Caches>,
    /// Opened since this node became primary, and since the last write past the cache: what
    /// the kernel has cached of these is from then.
    kept: Arc<Mutex<HashSet<FileId>>>,
}

impl Vfs {
    /// The file system over an engine.
    pub fn new(engine: Arc<Engine>) -> Vfs {
        let caches = Arc::new(Caches::default());
        // On a primary every change comes from the kernel. It owns the caches' end of
        // this; the engine, which owns the store, only lends its role.
        let (told, role) = (caches.clone(), Arc::downgrade(&engine));
        engine.store.watch(move |file, start, end| {
            if !role.upgrade().is_some_and(|engine| engine.is_exclusive()) {
                told.drop_pages(file, start, end, None);
            }
        });
        Vfs {
            engine,
            handles: Handles::default(),
            caches,
            kept: Arc::default(),
        }
    }

    /// From now on the kernel is told of changes that it cannot know of.
    pub fn serve_caches(&self, drop_pages: DropPages) -> std::io::Result<()> {
        self.caches.serve(drop_pages)
    }

    /// This node is about to become primary: the peer may have changed what the kernel
    /// has cached of files that nobody has open.
    pub fn before_promotion(&self) {
        self.kept.lock().clear();
    }

    /// How long the kernel may trust an answer given now.
    pub fn trust(&self) -> Trust {
        match self.engine.is_exclusive() {
            true => Trust::Long,
            false => Trust::Never,
        }
    }

    fn node(&self, file: FileId) -> FsResult<Arc<Node>> {
        Ok(self.engine.store.node(file)?)
    }

    /// What a name in a directory leads to.
    pub fn lookup(&self, parent: FileId, name: &[u8]) -> FsResult<Attributes> {
        // A name that no op could carry does not exist; one too long is told so.
        let name = match Name::new(name) {
            Ok(name) => name,
            Err(twinfold_protocol::op::BadName::TooLong) => return Err(FsError::NameTooLong),
            Err(e) => return Err(e.into()),
        };
        let here = || {
            let parent = self.node(parent)?;
            Ok(self.engine.store.lookup(&parent, &name)?.attributes()?)
        };
        let request = || {
            let name = name.clone();
            Ok(Request::Lookup { parent, name })
        };
        self.here_or_there(here, request, away::attributes)
    }

    /// The kernel does not refer to this object any more.
    pub fn forget(&self, file: FileId) {
        self.engine.store.forget(file);
        if self.engine.is_away() {
            let request = Request::Forget { file };
            away::send(&self.engine, request, FsError::Moved, away::done, |_| ());
        }
    }

    /// The attributes of an object.
    pub fn attributes(&self, file: FileId, handle: Option<HandleId>) -> FsResult<Attributes> {
        let node = handle.and_then(|h| self.handles.node(h));
        if let Some(node) = node.as_ref().filter(|node| node.is_orphan()) {
            return Ok(node.attributes()?);
        }
        let here = || match node {
            Some(node) => Ok(node.attributes()?),
            None => Ok(self.node(file)?.attributes()?),
        };
        self.here_or_there(here, || Ok(Request::Attributes { file }), away::attributes)
    }

    /// Where a symbolic link points to.
    pub fn read_link(&self, file: FileId) -> FsResult<Vec<u8>> {
        let here = || {
            let node = self.node(file)?;
            if node.kind() != Kind::Symlink {
                return Err(FsError::Invalid);
            }
            Ok(self.engine.store.link_target(&node)?)
        };
        self.here_or_there(here, || Ok(Request::ReadLink { file }), away::bytes)
    }

    /// Opens a file.
    pub fn open(&self, file: FileId, how: OpenHow) -> FsResult<Opened> {
        let mut otherwise = FsError::Moved;
        if !self.engine.is_away() {
            let opened = self.node(file).and_then(|node| {
                self.engine.store.has_descriptors()?;
                self.open_node(node, how)
            });
            match opened {
                Err(e) if self.engine.moves(&e) => otherwise = e,
                opened => return opened,
            }
        }
        // That it is there is all there is to say; the peer keeps nothing open.
        self.wait_for_peer(Request::Attributes { file }, otherwise, away::attributes)?;
        Ok(self.open_away(file, how))
    }

    /// Opens a file of the peer.
    fn open_away(&self, file: FileId, how: OpenHow) -> Opened {
        Opened {
            handle: self.handles.insert(Handle::Away { file, how }),
            keep_cache: self.keeps_cache(file),
            uncached: false,
        }
    }

    /// Whether the kernel may keep what it has cached of a file that is opened now.
    fn keeps_cache(&self, file: FileId) -> bool {
        let mut kept = self.kept.lock();
        if kept.len() >= MAX_KEPT {
            kept.clear();
        }
        !kept.insert(file)
    }

    pub(crate) fn open_node(&self, node: Arc<Node>, how: OpenHow) -> FsResult<Opened> {
        let exclusive = self.engine.is_exclusive();
        if how.write && self.engine.role() != Some(Role::Primary) {
            return Err(FsError::ReadOnly);
        }
        // The descriptor is opened now, so that what is wrong with it is said now.
        node.data()?;
        let opening = Opening::new(node, how.write, !how.direct)?;
        let keep_cache = exclusive && self.keeps_cache(opening.node().file());
        Ok(Opened {
            handle: self.handles.insert(Handle::File { opening, how }),
            keep_cache,
            uncached: !exclusive,
        })
    }

    /// Opens a directory for listing.
    pub fn open_directory(&self, file: FileId) -> FsResult<HandleId> {
        let mut otherwise = FsError::Moved;
        if !self.engine.is_away() {
            let opened = self.node(file).and_then(|node| {
                self.engine.store.has_descriptors()?;
                Ok(self.engine.store.open_directory(node)?)
            });
            match opened {
                Ok(directory) => {
                    return Ok(self.handles.insert(Handle::Directory {
                        directory,
                        told: Told::default(),
                    }));
                }
                Err(e) if self.engine.moves(&e) => otherwise = e,
                Err(e) => return Err(e),
            }
        }
        self.wait_for_peer(Request::Attributes { file }, otherwise, away::attributes)?;
        Ok(self.handles.insert(Handle::AwayDirectory(file)))
    }

    /// Closes a handle.
    pub fn close(&self, handle: HandleId) {
        self.handles.remove(handle);
    }

    /// Reads up to `buffer.len()` bytes; fewer only at the end of the file.
    pub fn read(&self, handle: HandleId, offset: u64, buffer: &mut [u8]) -> FsResult<usize> {
        let length = buffer.len().min(limits::MAX_PAYLOAD);
        let (file, otherwise) = match self.away(handle)? {
            Some(file) => (file, FsError::Moved),
            None => {
                let handle = self.handles.get(handle)?;
                let Handle::File { opening, .. } = &*handle else {
                    return Err(FsError::BadHandle);
                };
                let node = opening.node();
                let inside = self.engine.inside();
                let read = self.engine.store.read(node, offset, buffer);
                drop(inside);
                match read.map_err(FsError::from) {
                    Err(e) if !node.is_orphan() && self.engine.moves(&e) => (node.file(), e),
                    read => return read,
                }
            }
        };
        let request = Request::Read {
            file,
            offset,
            length: length as u32,
        };
        let read = self.wait_for_peer(request, otherwise, away::bytes)?;
        let n = read.len().min(length);
        buffer[..n].copy_from_slice(&read[..n]);
        Ok(n)
    }

    /// The next data or hole at or after `offset`.
    pub fn seek(&self, handle: HandleId, offset: u64, data: bool) -> FsResult<u64> {
        if let Some(file) = self.away(handle)? {
            let request = Request::Seek { file, offset, data };
            return self.wait_for_peer(request, FsError::Moved, away::number);
        }
        let handle = self.handles.get(handle)?;
        let Handle::File { opening, .. } = &*handle else {
            return Err(FsError::BadHandle);
        };
        let node = opening.node();
        let sought = self.engine.store.seek(node, offset, data);
        match sought.map_err(FsError::from) {
            Err(e) if !node.is_orphan() && self.engine.moves(&e) => {
                let file = node.file();
                let request = Request::Seek { file, offset, data };
                self.wait_for_peer(request, e, away::number)
            }
            sought => sought,
        }
    }

    /// Lists a directory from a position on, handing each entry to `take` until it
    /// returns false. A name that vanished meanwhile is left out, and so is what is no object
    /// of this store. What cannot be looked at fails the listing: whoever takes a name that
    /// is not listed for one that does not exist would act on that.
    pub fn list(
        &self,
        handle: HandleId,
        from: u64,
        mut take: impl FnMut(Listing) -> bool,
    ) -> FsResult<()> {
        let handle = self.handles.get(handle)?;
        let (directory, told) = match &*handle {
            Handle::Directory { directory, told } => (directory, told),
            Handle::AwayDirectory(file) => return self.list_there(*file, from, take),
            _ => return Err(FsError::BadHandle),
        };
        if !self.engine.is_away() {
            told.here(from);
            let mut taken = false;
            let listed = self.list_here(directory, from, |listing| {
                let entry = listing.name.clone();
                let more = take(listing);
                if more {
                    told.tell(entry);
                    taken = true;
                }
                more
            });
            match listed {
                Err(e) if self.engine.moves(&e) => {
                    if taken {
                        // The caller comes again for the rest.
                        return Ok(());
                    }
                }
                listed => return listed,
            }
        }
        let from = told.there(from);
        self.list_there(directory.node().file(), from, |listing| {
            told.has(&listing.name) || take(listing)
        })
    }

    /// Lists a directory of this node's store, see [`Vfs::list`].
    pub(super) fn list_here(
        &self,
        directory: &DirectoryHandle,
        from: u64,
        mut take: impl FnMut(Listing) -> bool,
    ) -> FsResult<()> {
        let store = &self.engine.store;
        let mut at = from;
        loop {
            let entries = store.list(directory, at)?;
            if entries.is_empty() {
                return Ok(());
            }
            for entry in entries {
                at = entry.next;
                let node = match &entry.name {
                    Listed::Here => Some(directory.node().clone()),
                    Listed::Up => Some(store.node(store.parent_of(directory.node())?)?),
                    Listed::Name(name) => store.find_own(directory.node(), name)?,
                };
                let Some(node) = node else { continue };
                let listing = Listing {
                    name: entry.name,
                    next: entry.next,
                    attributes: node.attributes()?,
                };
                if !take(listing) {
                    return Ok(());
                }
            }
        }
    }

    /// The value of an extended attribute.
    pub fn get_xattr(&self, file: FileId, name: &[u8]) -> FsResult<Vec<u8>> {
        let here = || {
            let node = self.node(file)?;
            Ok(self.engine.store.get_xattr(&node, name)?)
        };
        let request = || {
            let name = bytes::Bytes::copy_from_slice(name);
            Ok(Request::GetXattr { file, name })
        };
        self.here_or_there(here, request, away::bytes)
    }

    /// The names of all extended attributes.
    pub fn list_xattrs(&self, file: FileId) -> FsResult<Vec<Vec<u8>>> {
        let here = || {
            let node = self.node(file)?;
            Ok(self.engine.store.list_xattrs(&node)?)
        };
        let names = |answer| {
            let list = away::bytes(answer)?;
            let names = list.split(|b| *b == 0).filter(|name| !name.is_empty());
            Ok(names.map(<[u8]>::to_vec).collect())
        };
        self.here_or_there(here, || Ok(Request::ListXattrs { file }), names)
    }

    /// Space and objects of the store.
    pub fn space(&self) -> FsResult<SpaceUse> {
        let here = || Ok(self.engine.store.space()?);
        self.here_or_there(here, || Ok(Request::Space), away::space)
    }
}

impl Drop for Vfs {
    fn drop(&mut self) {
        self.caches.end();
    }
}
