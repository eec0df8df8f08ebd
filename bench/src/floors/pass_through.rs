//! A plain FUSE pass-through: mounted, negotiated and served by the driver's own adapter,
//! with its threads, its flags of open files and its trust of the kernel. Each call does
//! one thing on the real directory and answers: no replication, no ids, no log, no locks
//! over ranges. It does less than the driver without a peer would, so it is a strict floor.
//! It knows what the workloads need, in one flat directory, and no more.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::RwLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, UNIX_EPOCH};

use anyhow::Result;
use fs_driver::adapter::fuse;
use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo,
    KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyEmpty,
    ReplyEntry, ReplyOpen, ReplyWrite, Request, TimeOrNow, WriteFlags,
};

struct PassThrough {
    source: PathBuf,
    /// Names by number; the directory is flat.
    names: RwLock<HashMap<u64, OsString>>,
    files: RwLock<HashMap<u64, File>>,
    next: AtomicU64,
}

fn errno(e: &io::Error) -> Errno {
    Errno::from_i32(e.raw_os_error().unwrap_or(libc::EIO))
}

impl PassThrough {
    fn path(&self, ino: INodeNo) -> PathBuf {
        match self.names.read() {
            Ok(names) => match names.get(&ino.0) {
                Some(name) => self.source.join(name),
                None => self.source.clone(),
            },
            Err(_) => self.source.clone(),
        }
    }

    fn attr(&self, path: &Path, ino: Option<INodeNo>) -> io::Result<FileAttr> {
        let m = std::fs::symlink_metadata(path)?;
        let time = |s: i64, n: i64| UNIX_EPOCH + Duration::new(s as u64, n as u32);
        Ok(FileAttr {
            ino: ino.unwrap_or(INodeNo(m.ino())),
            size: m.size(),
            blocks: m.blocks(),
            atime: time(m.atime(), m.atime_nsec()),
            mtime: time(m.mtime(), m.mtime_nsec()),
            ctime: time(m.ctime(), m.ctime_nsec()),
            crtime: UNIX_EPOCH,
            kind: if m.is_dir() {
                FileType::Directory
            } else {
                FileType::RegularFile
            },
            perm: (m.mode() & 0o7777) as u16,
            nlink: m.nlink() as u32,
            uid: m.uid(),
            gid: m.gid(),
            rdev: 0,
            blksize: 4096,
            flags: 0,
        })
    }

    fn entry(&self, name: &OsStr) -> io::Result<FileAttr> {
        let attr = self.attr(&self.source.join(name), None)?;
        if let Ok(mut names) = self.names.write() {
            names.insert(attr.ino.0, name.to_owned());
        }
        Ok(attr)
    }

    fn keep(&self, file: File) -> FileHandle {
        let fh = self.next.fetch_add(1, Ordering::Relaxed);
        if let Ok(mut files) = self.files.write() {
            files.insert(fh, file);
        }
        FileHandle(fh)
    }

    fn with<T>(&self, fh: FileHandle, f: impl FnOnce(&File) -> io::Result<T>) -> io::Result<T> {
        let files = self
            .files
            .read()
            .map_err(|_| io::Error::other("poisoned"))?;
        let bad = || io::Error::from_raw_os_error(libc::EBADF);
        f(files.get(&fh.0).ok_or_else(bad)?)
    }
}

fn flags_of(flags: i32) -> FopenFlags {
    fuse::open_flags(flags & libc::O_DIRECT != 0, true)
}

impl Filesystem for PassThrough {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        fuse::negotiate(config)
    }

    fn lookup(&self, _req: &Request, _parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.entry(name) {
            Ok(attr) => reply.entry(&fuse::TRUST, &attr, Generation(0)),
            Err(e) => reply.error(errno(&e)),
        }
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        match self.attr(&self.path(ino), Some(ino)) {
            Ok(attr) => reply.attr(&fuse::TRUST, &attr),
            Err(e) => reply.error(errno(&e)),
        }
    }

    fn setattr(
        &self,
        _req: &Request,
        ino: INodeNo,
        _mode: Option<u32>,
        _uid: Option<u32>,
        _gid: Option<u32>,
        size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<std::time::SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<std::time::SystemTime>,
        _chgtime: Option<std::time::SystemTime>,
        _bkuptime: Option<std::time::SystemTime>,
        _flags: Option<fuser::BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let path = self.path(ino);
        let cut = || {
            if let Some(size) = size {
                OpenOptions::new().write(true).open(&path)?.set_len(size)?;
            }
            self.attr(&path, Some(ino))
        };
        match cut() {
            Ok(attr) => reply.attr(&fuse::TRUST, &attr),
            Err(e) => reply.error(errno(&e)),
        }
    }

    fn unlink(&self, _req: &Request, _parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        match std::fs::remove_file(self.source.join(name)) {
            Ok(()) => reply.ok(),
            Err(e) => reply.error(errno(&e)),
        }
    }

    fn rename(
        &self,
        _req: &Request,
        _parent: INodeNo,
        name: &OsStr,
        _new_parent: INodeNo,
        new_name: &OsStr,
        _flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let moved = std::fs::rename(self.source.join(name), self.source.join(new_name))
            .and_then(|()| self.entry(new_name));
        match moved {
            Ok(_) => reply.ok(),
            Err(e) => reply.error(errno(&e)),
        }
    }

    fn open(&self, _req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let opened = OpenOptions::new()
            .read(true)
            .write(true)
            .open(self.path(ino));
        match opened {
            Ok(file) => reply.opened(self.keep(file), flags_of(flags.0)),
            Err(e) => reply.error(errno(&e)),
        }
    }

    fn create(
        &self,
        _req: &Request,
        _parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let made = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(self.source.join(name))
            .and_then(|file| Ok((file, self.entry(name)?)));
        match made {
            Ok((file, attr)) => reply.created(
                &fuse::TRUST,
                &attr,
                Generation(0),
                self.keep(file),
                flags_of(flags),
            ),
            Err(e) => reply.error(errno(&e)),
        }
    }

    fn read(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        thread_local! {
            static BUFFER: std::cell::RefCell<Vec<u8>> = const { std::cell::RefCell::new(Vec::new()) };
        }
        BUFFER.with_borrow_mut(|buffer| {
            if buffer.len() < size as usize {
                buffer.resize(size as usize, 0);
            }
            match self.with(fh, |f| f.read_at(&mut buffer[..size as usize], offset)) {
                Ok(n) => reply.data(&buffer[..n]),
                Err(e) => reply.error(errno(&e)),
            }
        });
    }

    fn write(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        match self.with(fh, |f| f.write_all_at(data, offset)) {
            Ok(()) => reply.written(data.len() as u32),
            Err(e) => reply.error(errno(&e)),
        }
    }

    fn flush(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _lock_owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        reply.error(Errno::ENOSYS);
    }

    fn release(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        if let Ok(mut files) = self.files.write() {
            files.remove(&fh.0);
        }
        reply.ok();
    }

    fn fsync(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        datasync: bool,
        reply: ReplyEmpty,
    ) {
        let done = self.with(fh, |f| {
            if datasync {
                f.sync_data()
            } else {
                f.sync_all()
            }
        });
        match done {
            Ok(()) => reply.ok(),
            Err(e) => reply.error(errno(&e)),
        }
    }
}

/// Mounts and serves until unmounted.
pub(crate) fn run(source: &Path, mount: &Path) -> Result<()> {
    let fs = PassThrough {
        source: source.to_owned(),
        names: RwLock::default(),
        files: RwLock::default(),
        next: AtomicU64::new(1),
    };
    Ok(fuse::session(fs, "plain", mount, false)?.run()?)
}
