//! What a call on the mount means: objects, handles, reads, and which change a
//! call is. No word of FUSE or WinFsp in here; an adapter translates.

mod caches;
mod calls;
mod handles;

use std::collections::HashSet;
use std::sync::Arc;

use parking_lot::Mutex;
use twinfold_protocol::attr::{Attributes, Kind};
use twinfold_protocol::handshake::Role;
use twinfold_protocol::ids::FileId;
use twinfold_protocol::op::Name;

use crate::engine::Engine;
use crate::error::{FsError, FsResult};
use crate::store::{Listed, Node, Opening, SpaceUse};

pub use caches::DropPages;
pub use calls::SetAttributes;
pub use handles::{Handle, HandleId, OpenHow};

use caches::Caches;
use handles::Handles;

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
    /// Opened since this node became primary: what the kernel has cached of these is
    /// from then.
    kept: Mutex<HashSet<FileId>>,
}

impl Vfs {
    /// The file system over an engine.
    pub fn new(engine: Arc<Engine>) -> Vfs {
        let caches = Arc::new(Caches::default());
        // On a primary every change comes from the kernel. It owns the caches' end of
        // this; the engine, which owns the store, only lends its role.
        let (told, role) = (caches.clone(), Arc::downgrade(&engine));
        engine.store.watch(move |file, start, end| {
            let role = role.upgrade().and_then(|engine| engine.role());
            if role != Some(Role::Primary) {
                told.drop_pages(file, start, end, None);
            }
        });
        Vfs {
            engine,
            handles: Handles::default(),
            caches,
            kept: Mutex::default(),
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
        match self.engine.role() {
            Some(Role::Primary) => Trust::Long,
            _ => Trust::Never,
        }
    }

    fn node(&self, file: FileId) -> FsResult<Arc<Node>> {
        Ok(self.engine.store.node(file)?)
    }

    /// What a name in a directory leads to.
    pub fn lookup(&self, parent: FileId, name: &[u8]) -> FsResult<Attributes> {
        let parent = self.node(parent)?;
        // A name that no op could carry does not exist; one too long is told so.
        let name = match Name::new(name) {
            Ok(name) => name,
            Err(twinfold_protocol::op::BadName::TooLong) => return Err(FsError::NameTooLong),
            Err(e) => return Err(e.into()),
        };
        Ok(self.engine.store.lookup(&parent, &name)?.attributes()?)
    }

    /// The kernel does not refer to this object any more.
    pub fn forget(&self, file: FileId) {
        self.engine.store.forget(file);
    }

    /// The attributes of an object.
    pub fn attributes(&self, file: FileId, handle: Option<HandleId>) -> FsResult<Attributes> {
        if let Some(node) = handle.and_then(|h| self.handles.node(h)) {
            return Ok(node.attributes()?);
        }
        Ok(self.node(file)?.attributes()?)
    }

    /// Where a symbolic link points to.
    pub fn read_link(&self, file: FileId) -> FsResult<Vec<u8>> {
        let node = self.node(file)?;
        if node.kind() != Kind::Symlink {
            return Err(FsError::Invalid);
        }
        Ok(self.engine.store.link_target(&node)?)
    }

    /// Opens a file.
    pub fn open(&self, file: FileId, how: OpenHow) -> FsResult<Opened> {
        let node = self.node(file)?;
        self.open_node(node, how)
    }

    pub(crate) fn open_node(&self, node: Arc<Node>, how: OpenHow) -> FsResult<Opened> {
        let primary = self.engine.role() == Some(Role::Primary);
        if how.write && !primary {
            return Err(FsError::ReadOnly);
        }
        // The descriptor is opened now, so that what is wrong with it is said now.
        node.data()?;
        let opening = Opening::new(node, !how.direct);
        let keep_cache = primary && {
            let mut kept = self.kept.lock();
            if kept.len() >= MAX_KEPT {
                kept.clear();
            }
            !kept.insert(opening.node().file())
        };
        Ok(Opened {
            handle: self.handles.insert(Handle::File { opening, how }),
            keep_cache,
            uncached: !primary,
        })
    }

    /// Opens a directory for listing.
    pub fn open_directory(&self, file: FileId) -> FsResult<HandleId> {
        let node = self.node(file)?;
        let directory = self.engine.store.open_directory(node)?;
        Ok(self.handles.insert(Handle::Directory(directory)))
    }

    /// Closes a handle.
    pub fn close(&self, handle: HandleId) {
        self.handles.remove(handle);
    }

    /// Reads up to `buffer.len()` bytes; fewer only at the end of the file.
    pub fn read(&self, handle: HandleId, offset: u64, buffer: &mut [u8]) -> FsResult<usize> {
        let handle = self.handles.get(handle)?;
        let Handle::File { opening, .. } = &*handle else {
            return Err(FsError::BadHandle);
        };
        Ok(self.engine.store.read(opening.node(), offset, buffer)?)
    }

    /// The next data or hole at or after `offset`.
    pub fn seek(&self, handle: HandleId, offset: u64, data: bool) -> FsResult<u64> {
        let handle = self.handles.get(handle)?;
        let Handle::File { opening, .. } = &*handle else {
            return Err(FsError::BadHandle);
        };
        Ok(self.engine.store.seek(opening.node(), offset, data)?)
    }

    /// Lists a directory from a position on, handing each entry to `take` until it
    /// returns false. A name that vanished meanwhile is left out.
    pub fn list(
        &self,
        handle: HandleId,
        from: u64,
        mut take: impl FnMut(Listing) -> bool,
    ) -> FsResult<()> {
        let handle = self.handles.get(handle)?;
        let Handle::Directory(directory) = &*handle else {
            return Err(FsError::BadHandle);
        };
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
                    Listed::Name(name) => match store.find(directory.node(), name) {
                        Ok(found) => found,
                        // Only this entry is in doubt, not the listing.
                        Err(error) => {
                            tracing::warn!(%name, %error, "an entry is left out of a listing");
                            None
                        }
                    },
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
        let node = self.node(file)?;
        Ok(self.engine.store.get_xattr(&node, name)?)
    }

    /// The names of all extended attributes.
    pub fn list_xattrs(&self, file: FileId) -> FsResult<Vec<Vec<u8>>> {
        let node = self.node(file)?;
        Ok(self.engine.store.list_xattrs(&node)?)
    }

    /// Space and objects of the store.
    pub fn space(&self) -> FsResult<SpaceUse> {
        Ok(self.engine.store.space()?)
    }
}

impl Drop for Vfs {
    fn drop(&mut self) {
        self.caches.end();
    }
}
