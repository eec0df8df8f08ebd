//! The store on a Linux file system (ext4, xfs, btrfs or any other with extended
//! attributes and persistent file handles).
//!
//! ```text
//! base/            private to root
//!   data/          the replicated directory itself
//!   aside/         objects without a name yet or any more, during a resync
//!   archive/       what was kept of losing copies (see `crate::archive`)
//!   state/         generation, intents, index (see `crate::state`)
//! ```
//!
//! An object's id is its extended attribute `trusted.twinfold` (8 bytes, little
//! endian); the [`index`] leads from the id back to the object.

mod adoption;
mod apply;
mod creds;
mod data;
#[cfg(test)]
mod data_tests;
mod disk;
mod freeing;
mod index;
mod names;
mod node;
mod put;
#[cfg(test)]
mod put_tests;
mod rebuild;
#[cfg(test)]
pub(crate) mod scratch;
mod seed;
mod sys;
mod verify;
mod way;
mod xattrs;

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock, Weak};

use parking_lot::Mutex;
use rustix::fs::{Mode, OFlags};
use twinfold_protocol::attr::Attributes;
use twinfold_protocol::ids::FileId;
use twinfold_protocol::limits;
use twinfold_protocol::op::Name;

pub use adoption::{Adoption, strip_ids};
pub use apply::ApplyError;
pub use data::{Ahead, FORGOTTEN, Lost};
pub(crate) use disk::Disk;
pub use names::{DirectoryHandle, Entry, Listed};
pub use node::{Node, Opening, Readers};
pub use seed::mark_as_seed;
pub use sys::{is_disk_failure, may_have_changed};
pub use verify::Visited;

use index::Index;

/// Objects kept open that nobody uses, at most. Beyond it the longest unused go.
const MAX_CACHED_NODES: usize = 8192;

/// The part of this process's descriptors that these may take: each has up to two, and
/// as many again may be in use by the application.
const SHARE_OF_DESCRIPTORS: u64 = 4;

/// Descriptors kept for this driver's own work (its state, the link, the control socket),
/// beside those that the cache of nodes may take.
const OWN_DESCRIPTORS: u64 = 128;

/// Unlinked objects nobody has open that are kept reachable until the kernel forgets them.
const MAX_ORPHANS: usize = 4096;

/// Where the parts of a replicated folder lie.
#[derive(Clone, Debug)]
pub struct Layout {
    /// The private directory that holds all others.
    pub base: PathBuf,
}

impl Layout {
    /// The layout below `base`.
    pub fn new(base: impl Into<PathBuf>) -> Layout {
        Layout { base: base.into() }
    }

    /// The replicated directory.
    pub fn data(&self) -> PathBuf {
        self.base.join("data")
    }

    /// Objects without a name during a resync.
    pub fn aside(&self) -> PathBuf {
        self.base.join("aside")
    }

    /// What was kept of losing copies.
    pub fn archive(&self) -> PathBuf {
        self.base.join("archive")
    }

    /// twinfold's own state.
    pub fn state(&self) -> PathBuf {
        self.base.join("state")
    }
}

/// Space and objects of the file system under the store.
#[derive(Clone, Copy, Debug)]
pub struct SpaceUse {
    /// Unit of the block counts, in bytes.
    pub block_size: u64,
    /// All blocks.
    pub blocks: u64,
    /// Free blocks.
    pub free: u64,
    /// Free blocks for ordinary users.
    pub available: u64,
    /// All inodes.
    pub files: u64,
    /// Free inodes.
    pub files_free: u64,
    /// Longest name, in bytes.
    pub name_max: u32,
}

/// Who is told of every change of an open file's contents, from one byte up to another.
struct Watcher(Box<dyn Fn(FileId, u64, u64) + Send + Sync>);

impl std::fmt::Debug for Watcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Watcher")
    }
}

/// The store of one replicated folder.
#[derive(Debug)]
pub struct Store {
    layout: Layout,
    root: Arc<Node>,
    /// A descriptor on the store's file system, for file handles and `syncfs`.
    file_system: OwnedFd,
    aside: OwnedFd,
    index: Index,
    nodes: Mutex<Nodes>,
    /// Whose descriptor to be synced by ahead is open.
    ahead: Mutex<Weak<Node>>,
    /// Nodes cached at most, unless more are in use.
    capacity: usize,
    /// The application gets no descriptor from this number on.
    descriptors: u64,
    largest_file: u64,
    /// Whole listings of directories in progress, by directory (resync target only).
    listings: Mutex<HashMap<FileId, put::SeenNames>>,
    /// Directories taken out of their places for a while, and where those are (resync
    /// target only).
    lent: Mutex<HashMap<FileId, (FileId, Name)>>,
    watcher: OnceLock<Watcher>,
    freeing: freeing::Freeing,
    /// Held while the index is made anew.
    rebuilding: Mutex<()>,
}

#[derive(Debug, Default)]
struct Nodes {
    cached: HashMap<FileId, Arc<Node>>,
    /// How many there must be before unused ones are looked for again.
    sweep_at: usize,
    orphans: HashMap<FileId, Arc<Node>>,
    orphan_order: VecDeque<FileId>,
}

impl Nodes {
    /// Closes what nobody uses.
    fn close_unused(&mut self) {
        self.cached.retain(|_, node| Arc::strong_count(node) > 1);
        self.sweep_at = 0;
    }

    /// Keeps an object open for the next use.
    fn keep(&mut self, node: Arc<Node>, capacity: usize) {
        // What is in use stays, so a sweep may free little: the next one comes later then.
        if self.cached.len() >= capacity.max(self.sweep_at) {
            for _ in 0..2 {
                // Second chance: what was not used since the last sweep and is not open goes.
                if self.cached.len() >= capacity {
                    self.cached
                        .retain(|_, node| node.clear_touched() || Arc::strong_count(node) > 1);
                }
            }
            self.sweep_at = self.cached.len() + capacity / 4;
        }
        self.cached.insert(node.file(), node);
    }

    fn keep_orphan(&mut self, node: Arc<Node>) {
        let file = node.file();
        if self.orphans.insert(file, node).is_none() {
            self.orphan_order.push_back(file);
        }
        let mut looked_at = self.orphan_order.len();
        while self.orphans.len() > MAX_ORPHANS && looked_at > 0 {
            looked_at -= 1;
            let Some(oldest) = self.orphan_order.pop_front() else {
                break;
            };
            match self.orphans.get(&oldest) {
                Some(node) if Arc::strong_count(node) > 1 => self.orphan_order.push_back(oldest),
                _ => {
                    self.orphans.remove(&oldest);
                }
            }
        }
    }
}

/// How many nodes this process's descriptors allow to be cached, and how many descriptors
/// there may be when the application gets another one.
fn capacity() -> (usize, u64) {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    let limit = limit.unwrap_or(u64::MAX);
    let capacity = usize::try_from(limit / SHARE_OF_DESCRIPTORS)
        .map_or(MAX_CACHED_NODES, |n| n.min(MAX_CACHED_NODES));
    // So many may come to what is in use before the cache is swept, see `Nodes::keep`.
    let swept = (capacity / 2) as u64;
    (capacity, limit.saturating_sub(swept + OWN_DESCRIPTORS))
}

impl Store {
    /// Opens the store below `layout.base`, which `init` has made.
    pub fn open(layout: Layout) -> io::Result<Store> {
        let directory = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let base = sys::open_quietly(&layout.base)?;
        let below = |path: &Path| -> io::Result<OwnedFd> {
            let name = path.strip_prefix(&layout.base).map_err(io::Error::other)?;
            Ok(rustix::fs::openat(&base, name, directory, Mode::empty())?)
        };
        let file_system = below(&layout.data())?;
        let aside = below(&layout.aside())?;
        let (index, strange) = Index::open(&layout.state().join("index"))?;
        let root = sys::reopen_path(file_system.as_fd())?;
        let root = Arc::new(Node::new(FileId::ROOT, root)?);
        let largest_file = sys::largest_file(aside.as_fd()).min(limits::MAX_MAPPED_FILE);
        let (capacity, descriptors) = capacity();
        let store = Store {
            layout,
            root,
            file_system,
            aside,
            index,
            nodes: Mutex::default(),
            ahead: Mutex::default(),
            capacity,
            descriptors,
            largest_file,
            listings: Mutex::default(),
            lent: Mutex::default(),
            watcher: OnceLock::new(),
            freeing: freeing::Freeing::default(),
            rebuilding: Mutex::default(),
        };
        if let Some(why) = strange
            && store.has_objects()?
        {
            store.rebuild_index(&why)?;
        }
        Ok(store)
    }

    fn has_objects(&self) -> io::Result<bool> {
        for directory in [&self.file_system, &self.aside] {
            let node = Node::new(FileId::ROOT, sys::reopen_path(directory.as_fd())?)?;
            // As all that this driver reads for itself, it leaves no trace in the times.
            let handle = self.open_directory(Arc::new(node))?;
            let entries = self.list(&handle, 0)?;
            if entries.iter().any(|e| matches!(e.name, Listed::Name(_))) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// `watcher` is told of changes from now on. There is one, for the store's lifetime.
    pub fn watch(&self, watcher: impl Fn(FileId, u64, u64) + Send + Sync + 'static) {
        let _ = self.watcher.set(Watcher(Box::new(watcher)));
    }

    /// The contents of a file were changed, or may have been, from one byte up to another.
    fn changed(&self, node: &Node, start: u64, end: u64) {
        if node.is_open()
            && let Some(Watcher(tell)) = self.watcher.get()
        {
            tell(node.file(), start, end);
        }
    }

    /// Where the parts lie.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Fails when so many descriptors are in use that the application must not get another
    /// one: what it holds open must not keep this driver from its own work.
    pub fn has_descriptors(&self) -> io::Result<()> {
        // The kernel gives out the lowest number that is free.
        let is_low = || match rustix::io::fcntl_dupfd_cloexec(&self.file_system, 0) {
            Ok(next) => next.as_raw_fd() as u64 <= self.descriptors,
            Err(_) => false,
        };
        if is_low() {
            return Ok(());
        }
        self.nodes.lock().close_unused();
        match is_low() {
            true => Ok(()),
            false => Err(io::Error::from_raw_os_error(libc::ENFILE)),
        }
    }

    /// The object with this id. `NotFound` (`ESTALE`-like) when there is none.
    pub fn node(&self, file: FileId) -> io::Result<Arc<Node>> {
        if file == FileId::ROOT {
            return Ok(self.root.clone());
        }
        {
            let nodes = self.nodes.lock();
            if let Some(node) = nodes.cached.get(&file).or_else(|| nodes.orphans.get(&file)) {
                node.touch();
                return Ok(node.clone());
            }
        }
        let stale = || io::Error::from_raw_os_error(libc::ESTALE);
        let handle = match self.index.get(file) {
            Err(e) if e.kind() == io::ErrorKind::InvalidData => {
                self.rebuild_index(&e.to_string())?;
                self.index.get(file)
            }
            other => other,
        };
        let handle = handle?.ok_or_else(stale)?;
        let path = match handle.open(self.file_system.as_fd()) {
            Ok(path) => path,
            Err(e) if matches!(e.raw_os_error(), Some(libc::ESTALE | libc::ENOENT)) => {
                return Err(stale());
            }
            Err(e) => return Err(e),
        };
        // A handle may lead to another object after a crash lost the index's last entries.
        if xattrs::id_of(path.as_fd())? != Some(file) {
            return Err(stale());
        }
        self.remember(file, path)
    }

    /// The object with this id, if it has a name.
    pub fn object(&self, file: FileId) -> io::Result<Option<Arc<Node>>> {
        match self.node(file) {
            Ok(node) if node.is_orphan() => Ok(None),
            Ok(node) => Ok(Some(node)),
            Err(e) if e.raw_os_error() == Some(libc::ESTALE) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// The number of an object's inode, if it has a name.
    pub(crate) fn inode(&self, file: FileId) -> io::Result<Option<u64>> {
        match self.object(file)? {
            Some(node) => Ok(Some(rustix::fs::fstat(node.path())?.st_ino)),
            None => Ok(None),
        }
    }

    /// Keeps the descriptor of an object for the next use.
    fn remember(&self, file: FileId, path: OwnedFd) -> io::Result<Arc<Node>> {
        let node = Arc::new(Node::new(file, path)?);
        let mut nodes = self.nodes.lock();
        // It may have lost its last name since it was looked for.
        if let Some(known) = nodes.cached.get(&file).or_else(|| nodes.orphans.get(&file)) {
            return Ok(known.clone());
        }
        nodes.keep(node.clone(), self.capacity);
        Ok(node)
    }

    /// An object lost its last name by a call on the mount: it stays reachable for those
    /// who have it open and, within bounds, until [`Store::forget`].
    fn orphan_until_forgotten(&self, node: Arc<Node>) {
        node.set_orphan();
        let file = node.file();
        let mut nodes = self.nodes.lock();
        nodes.cached.remove(&file);
        nodes.keep_orphan(node);
        drop(nodes);
        self.index.remove(file);
    }

    /// An object lost its last name because the peer said so: it stays reachable only
    /// for those who have it open. The kernel here may never have heard of it and would
    /// then never tell that it forgets it; the object would keep its space on the disk.
    fn orphan(&self, node: Arc<Node>) {
        node.set_orphan();
        let file = node.file();
        let mut nodes = self.nodes.lock();
        nodes.cached.remove(&file);
        let unused = match Arc::strong_count(&node) > 1 {
            true => {
                nodes.keep_orphan(node);
                None
            }
            false => Some(node),
        };
        drop(nodes);
        self.index.remove(file);
        if let Some(node) = unused {
            self.freeing.free(node);
        }
    }

    /// The kernel does not refer to this object any more.
    pub fn forget(&self, file: FileId) {
        let mut nodes = self.nodes.lock();
        if nodes.orphans.remove(&file).is_some() {
            nodes.orphan_order.retain(|f| *f != file);
        }
    }

    /// The attributes of an object.
    pub fn attributes(&self, file: FileId) -> io::Result<Attributes> {
        self.node(file)?.attributes()
    }

    /// Writes everything of the store to stable storage.
    pub fn sync_all(&self) -> io::Result<()> {
        self.index.sync()?;
        Ok(rustix::fs::syncfs(&self.file_system)?)
    }

    /// Space and objects.
    pub fn space(&self) -> io::Result<SpaceUse> {
        let s = rustix::fs::fstatvfs(&self.file_system)?;
        Ok(SpaceUse {
            block_size: s.f_frsize,
            blocks: s.f_blocks,
            free: s.f_bfree,
            available: s.f_bavail,
            files: s.f_files,
            files_free: s.f_ffree,
            name_max: u32::try_from(s.f_namemax).unwrap_or(255),
        })
    }

    /// Bytes a file can have at most on this file system, and have its changes marked.
    pub fn largest_file(&self) -> u64 {
        self.largest_file
    }

    /// The index from ids to objects.
    pub(crate) fn ids(&self) -> &Index {
        &self.index
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use twinfold_protocol::attr::Kind;
    use twinfold_protocol::op::{Name, NewObject};

    fn make(store: &Store, n: u64) -> Arc<Node> {
        let object = NewObject {
            file: FileId(5000 + n),
            kind: Kind::Regular,
            target: bytes::Bytes::new(),
            mode: 0o600,
            umask: 0,
            uid: 0,
            gid: 0,
        };
        let name = Name::new(n.to_string().as_bytes()).unwrap();
        store.create(&store.root, &name, &object).unwrap()
    }

    /// Needs root, for a mount of its own.
    #[test]
    fn nothing_the_store_does_leaves_an_access_time() {
        let (_place, store) = scratch::scratch();
        for descriptor in [store.file_system.as_fd(), store.aside.as_fd()] {
            let flags = rustix::fs::fstatvfs(descriptor).unwrap().f_flag;
            assert!(flags.contains(rustix::fs::StatVfsMountFlags::NOATIME));
        }
    }

    #[test]
    fn what_the_application_has_open_leaves_descriptors_for_the_drivers_own_work() {
        let name = "store::unix::tests::\
                    what_the_application_has_open_leaves_descriptors_for_the_drivers_own_work";
        if !scratch::alone_in_a_process(name) {
            return;
        }
        scratch::limit_descriptors(512);
        let (_place, store) = scratch::scratch();
        let mut open = Vec::new();
        for n in 0..400 {
            if store.has_descriptors().is_err() {
                break;
            }
            open.push(make(&store, n));
        }
        assert!((100..200).contains(&open.len()), "{} are open", open.len());
        let own: io::Result<Vec<_>> = (0..OWN_DESCRIPTORS)
            .map(|_| std::fs::File::open("/dev/null"))
            .collect();
        drop(own.unwrap());
        // What nobody has open any more gives way.
        open.truncate(50);
        store.has_descriptors().unwrap();
    }

    /// Needs root, for the attributes `trusted.*`, and a disk that has them.
    #[test]
    fn objects_that_are_made_do_not_stay_open_for_ever() {
        let (_place, mut store) = scratch::scratch();
        store.capacity = 40;
        let mut in_use = Vec::new();
        for n in 0..500u64 {
            let node = make(&store, n);
            if n < 20 {
                in_use.push(node);
            }
            let cached = store.nodes.lock().cached.len();
            assert!(cached <= 70, "{cached} objects are open after {n}");
        }
        for node in &in_use {
            assert!(Arc::ptr_eq(node, &store.node(node.file()).unwrap()));
        }
    }
}
