//! One object of the store, kept open.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use rustix::fs::{FileType, OFlags, Stat};
use twinfold_protocol::attr::{Attributes, Device, Kind};
use twinfold_protocol::ids::FileId;
use twinfold_protocol::time::Timestamp;

use super::data::Ahead;
use super::sys;
use crate::store::RangeLocks;

/// An object of the store. Descriptors stay open as long as it lives, so that an
/// unlinked file goes on working.
#[derive(Debug)]
pub struct Node {
    file: FileId,
    path: OwnedFd,
    kind: Kind,
    data: OnceLock<File>,
    /// What it is synced by before anybody asks, see [`Store::ahead`](super::Store::ahead).
    pub(super) ahead: Mutex<Option<Arc<Ahead>>>,
    /// What is being changed in it right now.
    pub ranges: RangeLocks,
    touched: AtomicBool,
    orphan: AtomicBool,
    /// Known to have no capabilities (`capabilities(7)`).
    plain: AtomicBool,
    /// Open on the mount, in any way.
    open: AtomicU32,
    /// Of these, through the page cache; and how many there have ever been.
    cached: AtomicU32,
    ever_cached: AtomicU32,
}

/// One open file on the mount; counted as long as it lives.
#[derive(Debug)]
pub struct Opening {
    node: Arc<Node>,
    cached: bool,
    /// Of a writer: what it was told of failures is its own, while the data's descriptor is
    /// shared by all.
    told: Option<OwnedFd>,
}

impl Opening {
    /// Counts an open file, whether it may write, and whether its reads may come from the
    /// page cache.
    pub fn new(node: Arc<Node>, write: bool, cached: bool) -> io::Result<Opening> {
        let told = write.then(|| sys::reopen(node.path(), OFlags::RDONLY));
        let told = told.transpose()?;
        node.open.fetch_add(1, Ordering::SeqCst);
        if cached {
            node.cached.fetch_add(1, Ordering::SeqCst);
            node.ever_cached.fetch_add(1, Ordering::SeqCst);
        }
        Ok(Opening { node, cached, told })
    }

    /// Fails if data of the file could not be brought to the disk since it was opened here,
    /// and this was not said yet: each who may have written it has to learn of it
    /// (`fsync(2)`), whoever's call met the failure.
    pub fn failed_before(&self) -> io::Result<()> {
        match &self.told {
            Some(told) => sys::failed_before(told.as_fd()),
            None => Ok(()),
        }
    }

    /// What is open.
    pub fn node(&self) -> &Arc<Node> {
        &self.node
    }
}

impl Drop for Opening {
    fn drop(&mut self) {
        self.node.open.fetch_sub(1, Ordering::SeqCst);
        if self.cached {
            self.node.cached.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

/// Who read through the page cache at a moment.
#[derive(Clone, Copy, Debug)]
pub struct Readers {
    now: u32,
    ever: u32,
}

impl Node {
    pub(super) fn new(file: FileId, path: OwnedFd) -> io::Result<Node> {
        let stat = rustix::fs::fstat(&path)?;
        Ok(Node {
            file,
            kind: kind_of(&stat)?,
            path,
            data: OnceLock::new(),
            ahead: Mutex::default(),
            ranges: RangeLocks::default(),
            touched: AtomicBool::new(true),
            orphan: AtomicBool::new(false),
            plain: AtomicBool::new(false),
            open: AtomicU32::new(0),
            cached: AtomicU32::new(0),
            ever_cached: AtomicU32::new(0),
        })
    }

    /// Its id.
    pub fn file(&self) -> FileId {
        self.file
    }

    /// What it is.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    pub(super) fn path(&self) -> BorrowedFd<'_> {
        self.path.as_fd()
    }

    /// The open file, for reading and writing. Regular files only.
    pub(crate) fn data(&self) -> io::Result<&File> {
        if let Some(file) = self.data.get() {
            return Ok(file);
        }
        match self.kind {
            Kind::Regular => {}
            Kind::Directory => return Err(io::Error::from_raw_os_error(libc::EISDIR)),
            _ => return Err(io::Error::from_raw_os_error(libc::EINVAL)),
        }
        let file = File::from(sys::reopen(self.path(), OFlags::RDWR)?);
        Ok(self.data.get_or_init(|| file))
    }

    pub(super) fn with_data(self, file: File) -> Node {
        let _ = self.data.set(file);
        self
    }

    /// Its attributes now.
    pub fn attributes(&self) -> io::Result<Attributes> {
        attributes_of(self.file, &rustix::fs::fstat(&self.path)?)
    }

    /// Size in bytes.
    pub fn size(&self) -> io::Result<u64> {
        Ok(rustix::fs::fstat(&self.path)?.st_size as u64)
    }

    /// Whether the file system knows no name of it any more.
    pub(super) fn has_no_link(&self) -> io::Result<bool> {
        Ok(rustix::fs::fstat(&self.path)?.st_nlink == 0)
    }

    /// Whether it is open on the mount.
    pub(super) fn is_open(&self) -> bool {
        self.open.load(Ordering::SeqCst) > 0
    }

    /// Who reads it through the page cache now.
    pub fn readers(&self) -> Readers {
        Readers {
            now: self.cached.load(Ordering::SeqCst),
            ever: self.ever_cached.load(Ordering::SeqCst),
        }
    }

    /// Whether anybody could read through the page cache at any time since `then`.
    pub fn was_read_since(&self, then: Readers) -> bool {
        then.now > 0 || self.readers().ever != then.ever
    }

    /// It has no name any more: nothing of it is replicated.
    pub fn is_orphan(&self) -> bool {
        self.orphan.load(Ordering::Acquire)
    }

    /// Whether it is known to have no capabilities, which a change of what is in it would
    /// take away.
    pub(super) fn is_plain(&self) -> bool {
        self.plain.load(Ordering::Acquire)
    }

    pub(super) fn set_plain(&self, plain: bool) {
        self.plain.store(plain, Ordering::Release);
    }

    pub(super) fn set_orphan(&self) {
        self.orphan.store(true, Ordering::Release);
    }

    pub(super) fn touch(&self) {
        self.touched.store(true, Ordering::Relaxed);
    }

    pub(super) fn clear_touched(&self) -> bool {
        self.touched.swap(false, Ordering::Relaxed)
    }
}

pub(super) fn kind_of(stat: &Stat) -> io::Result<Kind> {
    let device = Device {
        major: rustix::fs::major(stat.st_rdev),
        minor: rustix::fs::minor(stat.st_rdev),
    };
    Ok(match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => Kind::Regular,
        FileType::Directory => Kind::Directory,
        FileType::Symlink => Kind::Symlink,
        FileType::Fifo => Kind::Fifo,
        FileType::Socket => Kind::Socket,
        FileType::CharacterDevice => Kind::CharDevice(device),
        FileType::BlockDevice => Kind::BlockDevice(device),
        FileType::Unknown => {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "an object of a kind this driver does not know is in the store",
            ));
        }
    })
}

pub(super) fn attributes_of(file: FileId, stat: &Stat) -> io::Result<Attributes> {
    let time = |secs: i64, nanos: u64| Timestamp {
        secs,
        nanos: nanos as u32,
    };
    Ok(Attributes {
        file,
        kind: kind_of(stat)?,
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        links: u32::try_from(stat.st_nlink).unwrap_or(u32::MAX),
        size: stat.st_size as u64,
        blocks: stat.st_blocks as u64,
        block_size: u32::try_from(stat.st_blksize).unwrap_or(4096),
        accessed: time(stat.st_atime, stat.st_atime_nsec),
        modified: time(stat.st_mtime, stat.st_mtime_nsec),
        changed: time(stat.st_ctime, stat.st_ctime_nsec),
    })
}
