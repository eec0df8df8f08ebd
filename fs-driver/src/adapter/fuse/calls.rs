//! The callbacks.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use fuser::{
    BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle, Filesystem, FopenFlags, Generation,
    INodeNo, InitFlags, KernelConfig, LockOwner, OpenAccMode, OpenFlags, RenameFlags, ReplyAttr,
    ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyLseek,
    ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use twinfold_protocol::attr::{Attributes, Kind};
use twinfold_protocol::limits;
use twinfold_protocol::op::{AllocateMode, Change, RenameMode, Stability, XattrMode};

use super::convert::{attributes, errno, file, file_type, ino, kind, timestamp};
use super::{Adapter, READ_BUFFER};
use crate::engine::NewEntry;
use crate::error::FsResult;
use crate::store::Listed;
use crate::vfs::{HandleId, OpenHow, Opened, SetAttributes};

/// Ids are never used twice, so every object is the first with its number.
const GENERATION: Generation = Generation(0);

/// Requests the kernel may have under way in the background (asynchronous direct
/// I/O, writeback).
const MAX_BACKGROUND: u16 = 512;

fn reply_entry(ttl: Duration, reply: ReplyEntry) -> impl FnOnce(FsResult<Attributes>) + Send {
    move |result| match result {
        Ok(a) => reply.entry(&ttl, &attributes(&a), GENERATION),
        Err(e) => reply.error(errno(&e)),
    }
}

fn reply_attr(ttl: Duration, reply: ReplyAttr) -> impl FnOnce(FsResult<Attributes>) + Send {
    move |result| match result {
        Ok(a) => reply.attr(&ttl, &attributes(&a)),
        Err(e) => reply.error(errno(&e)),
    }
}

fn reply_empty(reply: ReplyEmpty) -> impl FnOnce(FsResult<()>) + Send {
    move |result| match result {
        Ok(()) => reply.ok(),
        Err(e) => reply.error(errno(&e)),
    }
}

/// Whether a file that this caller changes loses suid and sgid. The kernel leaves them
/// to us (`FUSE_HANDLE_KILLPRIV_V2`); only of a write it says itself whether they go.
fn loses_privileges(req: &Request) -> bool {
    req.uid() != 0
}

/// How stable a write shall be that passes the kernel's cache by. Whether it does is decided
/// by how the file was opened, for the kernel as for [`Vfs::write`](crate::vfs::Vfs::write):
/// `O_DIRECT` can be switched off and on behind that (`F_SETFL`, `fcntl(2)`).
fn asked_for(flags: OpenFlags, write_flags: WriteFlags) -> Stability {
    // Written back from the page cache, the flags are some descriptor's, not this write's.
    if write_flags.contains(WriteFlags::FUSE_WRITE_CACHE) {
        Stability::Mode
    } else if flags.0 & libc::O_SYNC == libc::O_SYNC {
        Stability::Full
    } else if flags.0 & libc::O_DSYNC != 0 {
        Stability::Data
    } else {
        Stability::Mode
    }
}

fn how(flags: i32) -> OpenHow {
    OpenHow {
        write: OpenFlags(flags).acc_mode() != OpenAccMode::O_RDONLY,
        direct: flags & libc::O_DIRECT != 0,
    }
}

/// What the kernel may do with an open file.
pub fn open_flags(direct: bool, keep_cache: bool) -> FopenFlags {
    let mut flags = FopenFlags::empty();
    if direct {
        flags |= FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES;
    }
    if keep_cache {
        flags |= FopenFlags::FOPEN_KEEP_CACHE;
    }
    flags
}

fn flags_of(how: OpenHow, opened: &Opened) -> FopenFlags {
    open_flags(how.direct || opened.uncached, opened.keep_cache)
}

/// Agrees with the kernel on what a mount can do.
pub fn negotiate(config: &mut KernelConfig) -> io::Result<()> {
    // What a kernel lacks it does without; only speed or convenience is lost, but
    // for the last ones.
    for flag in [
        InitFlags::FUSE_ASYNC_DIO,
        InitFlags::FUSE_PARALLEL_DIROPS,
        InitFlags::FUSE_DO_READDIRPLUS,
        InitFlags::FUSE_READDIRPLUS_AUTO,
        InitFlags::FUSE_CACHE_SYMLINKS,
        InitFlags::FUSE_EXPLICIT_INVAL_DATA,
        InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP,
        InitFlags::FUSE_HANDLE_KILLPRIV_V2,
    ] {
        let _ = config.add_capabilities(flag);
    }
    for flag in [InitFlags::FUSE_POSIX_ACL, InitFlags::FUSE_DONT_MASK] {
        config.add_capabilities(flag).map_err(|_| {
            io::Error::new(
                io::ErrorKind::Unsupported,
                format!("this kernel's FUSE lacks {flag:?}, which correct permissions need"),
            )
        })?;
    }
    let _ = config.set_max_write(limits::MAX_PAYLOAD as u32);
    let _ = config.set_max_readahead(limits::MAX_PAYLOAD as u32);
    let _ = config.set_max_background(MAX_BACKGROUND);
    let _ = config.set_congestion_threshold(MAX_BACKGROUND);
    Ok(())
}

impl Filesystem for Adapter {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        negotiate(config)
    }

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        reply_entry(self.ttl(), reply)(self.vfs.lookup(file(parent), name.as_bytes()));
    }

    fn forget(&self, _req: &Request, ino: INodeNo, _nlookup: u64) {
        self.vfs.forget(file(ino));
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, fh: Option<FileHandle>, reply: ReplyAttr) {
        let handle = fh.map(|h| HandleId(h.0));
        reply_attr(self.ttl(), reply)(self.vfs.attributes(file(ino), handle));
    }

    fn setattr(
        &self,
        req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let set = SetAttributes {
            size,
            clear_privileges: size.is_some() && loses_privileges(req),
            change: Change {
                mode: mode.map(|m| m & 0o7777),
                uid,
                gid,
                accessed: atime.map(timestamp),
                modified: mtime.map(timestamp),
            },
        };
        let handle = fh.map(|h| HandleId(h.0));
        self.vfs
            .set_attributes(file(ino), handle, set, reply_attr(self.ttl(), reply));
    }

    fn readlink(&self, _req: &Request, ino: INodeNo, reply: ReplyData) {
        match self.vfs.read_link(file(ino)) {
            Ok(target) => reply.data(&target),
            Err(e) => reply.error(errno(&e)),
        }
    }

    fn mknod(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let Some(kind) = kind(mode, rdev) else {
            return reply.error(Errno::EINVAL);
        };
        let new = new_entry(req, kind, mode, umask);
        let reply = reply_entry(self.ttl(), reply);
        self.vfs.make(file(parent), name.as_bytes(), new, reply);
    }

    fn mkdir(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        reply: ReplyEntry,
    ) {
        let new = new_entry(req, Kind::Directory, mode, umask);
        let reply = reply_entry(self.ttl(), reply);
        self.vfs.make(file(parent), name.as_bytes(), new, reply);
    }

    fn symlink(
        &self,
        req: &Request,
        parent: INodeNo,
        link_name: &OsStr,
        target: &Path,
        reply: ReplyEntry,
    ) {
        let mut new = new_entry(req, Kind::Symlink, 0o777, 0);
        new.target = Bytes::copy_from_slice(target.as_os_str().as_bytes());
        let reply = reply_entry(self.ttl(), reply);
        self.vfs
            .make(file(parent), link_name.as_bytes(), new, reply);
    }

    fn unlink(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let reply = reply_empty(reply);
        self.vfs.remove(file(parent), name.as_bytes(), false, reply);
    }

    fn rmdir(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let reply = reply_empty(reply);
        self.vfs.remove(file(parent), name.as_bytes(), true, reply);
    }

    fn rename(
        &self,
        _req: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let mode = if flags.is_empty() {
            RenameMode::Replace
        } else if flags == RenameFlags::RENAME_NOREPLACE {
            RenameMode::NoReplace
        } else if flags == RenameFlags::RENAME_EXCHANGE {
            RenameMode::Exchange
        } else {
            return reply.error(Errno::EINVAL);
        };
        self.vfs.rename(
            (file(parent), name.as_bytes()),
            (file(newparent), newname.as_bytes()),
            mode,
            reply_empty(reply),
        );
    }

    fn link(
        &self,
        _req: &Request,
        ino: INodeNo,
        newparent: INodeNo,
        newname: &OsStr,
        reply: ReplyEntry,
    ) {
        let reply = reply_entry(self.ttl(), reply);
        self.vfs
            .link(file(ino), file(newparent), newname.as_bytes(), reply);
    }

    fn open(&self, _req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let how = how(flags.0);
        match self.vfs.open(file(ino), how) {
            Ok(opened) => reply.opened(FileHandle(opened.handle.0), flags_of(how, &opened)),
            Err(e) => reply.error(errno(&e)),
        }
    }

    fn create(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let how = how(flags);
        let ttl = self.ttl();
        let new = new_entry(req, Kind::Regular, mode, umask);
        self.vfs.create(
            file(parent),
            name.as_bytes(),
            new,
            how,
            move |result| match result {
                Ok((a, opened)) => reply.created(
                    &ttl,
                    &attributes(&a),
                    GENERATION,
                    FileHandle(opened.handle.0),
                    flags_of(how, &opened),
                ),
                Err(e) => reply.error(errno(&e)),
            },
        );
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
        READ_BUFFER.with_borrow_mut(|buffer| {
            let size = size as usize;
            if buffer.len() < size {
                buffer.resize(size, 0);
            }
            match self.vfs.read(HandleId(fh.0), offset, &mut buffer[..size]) {
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
        write_flags: WriteFlags,
        flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let stability = asked_for(flags, write_flags);
        let written = data.len() as u32;
        self.vfs.write(
            HandleId(fh.0),
            offset,
            data,
            stability,
            write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID),
            move |result| match result {
                Ok(()) => reply.written(written),
                // The application's to handle. A full disk is no event of the driver's,
                // and a program that goes on trying would flood the log.
                Err(e) => {
                    tracing::debug!(error = %e, "a write failed");
                    reply.error(errno(&e));
                }
            },
        );
    }

    fn flush(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _lock_owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        // Nothing is kept back that a close could flush; the kernel does not ask again.
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
        self.vfs.close(HandleId(fh.0));
        reply.ok();
    }

    fn fsync(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        datasync: bool,
        reply: ReplyEmpty,
    ) {
        let handle = Some(HandleId(fh.0));
        self.vfs
            .sync(file(ino), handle, datasync, reply_empty(reply));
    }

    fn opendir(&self, _req: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        match self.vfs.open_directory(file(ino)) {
            Ok(handle) => reply.opened(FileHandle(handle.0), FopenFlags::empty()),
            Err(e) => reply.error(errno(&e)),
        }
    }

    fn readdir(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let listed = self.vfs.list(HandleId(fh.0), offset, |entry| {
            let a = &entry.attributes;
            !reply.add(
                ino(a.file),
                entry.next,
                file_type(a.kind),
                listed_name(&entry.name),
            )
        });
        match listed {
            Ok(()) => reply.ok(),
            Err(e) => reply.error(errno(&e)),
        }
    }

    fn readdirplus(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let ttl = self.ttl();
        let listed = self.vfs.list(HandleId(fh.0), offset, |entry| {
            let attr = attributes(&entry.attributes);
            let name = listed_name(&entry.name);
            !reply.add(attr.ino, entry.next, name, &ttl, &attr, GENERATION)
        });
        match listed {
            Ok(()) => reply.ok(),
            Err(e) => reply.error(errno(&e)),
        }
    }

    fn releasedir(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        self.vfs.close(HandleId(fh.0));
        reply.ok();
    }

    fn fsyncdir(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        datasync: bool,
        reply: ReplyEmpty,
    ) {
        let handle = Some(HandleId(fh.0));
        self.vfs
            .sync(file(ino), handle, datasync, reply_empty(reply));
    }

    fn statfs(&self, _req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        match self.vfs.space() {
            Ok(s) => reply.statfs(
                s.blocks,
                s.free,
                s.available,
                s.files,
                s.files_free,
                s.block_size as u32,
                s.name_max,
                s.block_size as u32,
            ),
            Err(e) => reply.error(errno(&e)),
        }
    }

    fn setxattr(
        &self,
        _req: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        let mode = match flags {
            0 => XattrMode::Either,
            libc::XATTR_CREATE => XattrMode::Create,
            libc::XATTR_REPLACE => XattrMode::Replace,
            // Both at once can only fail: it is there, or it is not.
            _ => {
                return reply.error(match self.vfs.get_xattr(file(ino), name.as_bytes()) {
                    Ok(_) => Errno::EEXIST,
                    Err(e) => errno(&e),
                });
            }
        };
        let reply = reply_empty(reply);
        self.vfs
            .set_xattr(file(ino), name.as_bytes(), value, mode, reply);
    }

    fn getxattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        match self.vfs.get_xattr(file(ino), name.as_bytes()) {
            Ok(value) => sized(&value, size, reply),
            Err(e) => reply.error(errno(&e)),
        }
    }

    fn listxattr(&self, req: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        match self.vfs.list_xattrs(file(ino)) {
            Ok(mut names) => {
                // `xattr(7)`: only for the administrator. The kernel refuses the values
                // to others by itself, the names it leaves to the file system.
                if req.uid() != 0 {
                    names.retain(|name| !name.starts_with(b"trusted."));
                }
                let mut list = names.join(&0);
                if !list.is_empty() {
                    list.push(0);
                }
                sized(&list, size, reply);
            }
            Err(e) => reply.error(errno(&e)),
        }
    }

    fn removexattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let reply = reply_empty(reply);
        self.vfs.remove_xattr(file(ino), name.as_bytes(), reply);
    }

    fn fallocate(
        &self,
        req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        const KEEP: i32 = libc::FALLOC_FL_KEEP_SIZE;
        const PUNCH: i32 = libc::FALLOC_FL_PUNCH_HOLE | KEEP;
        const ZERO: i32 = libc::FALLOC_FL_ZERO_RANGE;
        const ZERO_KEEP: i32 = ZERO | KEEP;
        let mode = match mode {
            0 => AllocateMode::Allocate,
            KEEP => AllocateMode::KeepSize,
            PUNCH => AllocateMode::PunchHole,
            ZERO => AllocateMode::ZeroRange,
            ZERO_KEEP => AllocateMode::ZeroRangeKeepSize,
            _ => return reply.error(Errno::EOPNOTSUPP),
        };
        let clear = loses_privileges(req);
        let reply = reply_empty(reply);
        self.vfs
            .allocate(HandleId(fh.0), mode, offset, length, clear, reply);
    }

    fn lseek(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let data = match whence {
            libc::SEEK_DATA => true,
            libc::SEEK_HOLE => false,
            _ => return reply.error(Errno::EINVAL),
        };
        let Ok(offset) = u64::try_from(offset) else {
            return reply.error(Errno::ENXIO);
        };
        match self.vfs.seek(HandleId(fh.0), offset, data) {
            Ok(found) => reply.offset(found as i64),
            Err(e) => reply.error(errno(&e)),
        }
    }

    fn copy_file_range(
        &self,
        req: &Request,
        _ino_in: INodeNo,
        fh_in: FileHandle,
        offset_in: u64,
        _ino_out: INodeNo,
        fh_out: FileHandle,
        offset_out: u64,
        len: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        self.vfs.copy_range(
            (HandleId(fh_in.0), offset_in),
            (HandleId(fh_out.0), offset_out),
            len,
            loses_privileges(req),
            move |result| match result {
                Ok(n) => reply.written(n as u32),
                Err(e) => reply.error(errno(&e)),
            },
        );
    }
}

fn new_entry(req: &Request, kind: Kind, mode: u32, umask: u32) -> NewEntry {
    NewEntry {
        kind,
        target: Bytes::new(),
        mode: mode & 0o7777,
        umask: umask & 0o7777,
        uid: req.uid(),
        gid: req.gid(),
    }
}

fn listed_name(name: &Listed) -> &OsStr {
    match name {
        Listed::Here => OsStr::new("."),
        Listed::Up => OsStr::new(".."),
        Listed::Name(name) => OsStr::from_bytes(name.as_bytes()),
    }
}

fn sized(value: &[u8], size: u32, reply: ReplyXattr) {
    if size == 0 {
        reply.size(value.len() as u32);
    } else if value.len() > size as usize {
        reply.error(Errno::ERANGE);
    } else {
        reply.data(value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_past_the_cache_is_as_stable_as_its_descriptor_says_now() {
        let none = WriteFlags::empty();
        for (flags, asked) in [
            (libc::O_DIRECT | libc::O_DSYNC, Stability::Data),
            (libc::O_DIRECT | libc::O_SYNC, Stability::Full),
            (libc::O_DIRECT, Stability::Mode),
            // Opened with `O_DIRECT`, which is switched off by now.
            (libc::O_DSYNC, Stability::Data),
            (libc::O_SYNC, Stability::Full),
        ] {
            let flags = OpenFlags(flags | libc::O_WRONLY);
            assert_eq!(asked_for(flags, none), asked);
            let written_back = WriteFlags::FUSE_WRITE_CACHE;
            assert_eq!(asked_for(flags, written_back), Stability::Mode);
        }
    }
}
