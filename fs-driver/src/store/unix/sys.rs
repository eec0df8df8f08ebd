//! System calls that need a word.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::fs::{AtFlags, CWD, Mode, OFlags};

/// A path that leads to the object behind a descriptor, also to a symbolic link
/// itself and to an object without a name (`proc(5)`, `/proc/self/fd`).
pub(super) fn proc_path(fd: BorrowedFd<'_>) -> CString {
    // Digits and slashes: never a NUL inside.
    CString::new(format!("/proc/self/fd/{}", fd.as_raw_fd())).unwrap_or_default()
}

/// An `O_PATH` descriptor of the same object.
pub(super) fn reopen_path(fd: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    Ok(rustix::fs::openat(
        fd,
        c".",
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?)
}

/// Opens the object behind an `O_PATH` descriptor for input and output.
pub(super) fn reopen(fd: BorrowedFd<'_>, flags: OFlags) -> io::Result<OwnedFd> {
    Ok(rustix::fs::openat(
        CWD,
        proc_path(fd).as_c_str(),
        flags | OFlags::CLOEXEC | OFlags::NOATIME | OFlags::NOCTTY,
        Mode::empty(),
    )?)
}

/// An `O_PATH` descriptor of what a name in a directory leads to, links not followed.
pub(super) fn open_name(directory: BorrowedFd<'_>, name: &CStr) -> io::Result<OwnedFd> {
    Ok(rustix::fs::openat(
        directory,
        name,
        OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    )?)
}

/// A descriptor of a directory through which nothing leaves an access time. The kernel
/// itself lists directories on the way from a handle to a directory it does not know yet,
/// and that is no access of the application. So it leads through a mount of its own, which
/// nobody sees; where there can be none, it is an ordinary one.
pub(super) fn open_quietly(path: &std::path::Path) -> io::Result<OwnedFd> {
    use rustix::mount::{OpenTreeFlags, open_tree};
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let quiet = open_tree(CWD, path, flags)
        .map_err(io::Error::from)
        .and_then(|tree| {
            let attributes = libc::mount_attr {
                attr_set: libc::MOUNT_ATTR_NOATIME,
                attr_clr: libc::MOUNT_ATTR__ATIME,
                propagation: 0,
                userns_fd: 0,
            };
            // SAFETY: a descriptor that is open, an empty string, and a structure of the
            // announced size, all alive for the call.
            let rc = unsafe {
                libc::syscall(
                    libc::SYS_mount_setattr,
                    tree.as_raw_fd(),
                    c"".as_ptr(),
                    libc::AT_EMPTY_PATH,
                    &raw const attributes,
                    size_of::<libc::mount_attr>(),
                )
            };
            match rc {
                0 => Ok(tree),
                _ => Err(io::Error::last_os_error()),
            }
        });
    quiet.or_else(|error| {
        tracing::debug!(%error, "access times of directories may change by themselves");
        let directory = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(rustix::fs::open(path, directory, Mode::empty())?)
    })
}

/// The largest file handle a Linux file system makes (`MAX_HANDLE_SZ`).
const MAX_HANDLE: usize = 128;

#[repr(C)]
struct RawHandle {
    bytes: u32,
    kind: i32,
    data: [u8; MAX_HANDLE],
}

/// A persistent handle of an object (`name_to_handle_at(2)`), at most 24 bytes long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Handle {
    /// The file system's type of handle.
    pub(super) kind: i32,
    pub(super) len: u8,
    pub(super) data: [u8; Handle::MAX],
}

impl Handle {
    /// What ext4 (8 bytes), xfs (12), btrfs (20) and tmpfs (12) need.
    pub(super) const MAX: usize = 24;

    /// The handle of the object behind a descriptor.
    pub(super) fn of(fd: BorrowedFd<'_>) -> io::Result<Handle> {
        let mut raw = RawHandle {
            bytes: MAX_HANDLE as u32,
            kind: 0,
            data: [0; MAX_HANDLE],
        };
        let mut mount_id = 0;
        // SAFETY: `raw` has the layout of `struct file_handle` with room for the
        // announced bytes, the path is a NUL-terminated empty string, and the
        // descriptor is borrowed for the call.
        let rc = unsafe {
            libc::name_to_handle_at(
                fd.as_raw_fd(),
                c"".as_ptr(),
                (&raw mut raw).cast(),
                &raw mut mount_id,
                libc::AT_EMPTY_PATH,
            )
        };
        if rc != 0 {
            return Err(io::Error::last_os_error());
        }
        let len = raw.bytes as usize;
        if len > Handle::MAX {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                format!("the file system makes file handles of {len} bytes"),
            ));
        }
        let mut data = [0; Handle::MAX];
        data[..len].copy_from_slice(&raw.data[..len]);
        Ok(Handle {
            kind: raw.kind,
            len: len as u8,
            data,
        })
    }

    /// An `O_PATH` descriptor of the object, found through any descriptor of its file system.
    pub(super) fn open(&self, file_system: BorrowedFd<'_>) -> io::Result<OwnedFd> {
        let mut raw = RawHandle {
            bytes: u32::from(self.len),
            kind: self.kind,
            data: [0; MAX_HANDLE],
        };
        raw.data[..Handle::MAX].copy_from_slice(&self.data);
        // SAFETY: `raw` has the layout of `struct file_handle` and holds `bytes`
        // valid bytes; the descriptor is borrowed for the call.
        let fd = unsafe {
            libc::open_by_handle_at(
                file_system.as_raw_fd(),
                (&raw mut raw).cast(),
                libc::O_PATH | libc::O_NOFOLLOW | libc::O_CLOEXEC,
            )
        };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the call returned a new descriptor that nobody else owns.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }
}

/// Bytes a file can have at most on the file system of `directory`: found by asking for
/// sizes, for no call tells it. A file system that cannot be asked has no limit here.
pub(super) fn largest_file(directory: BorrowedFd<'_>) -> u64 {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    let Ok(file) = rustix::fs::openat(directory, c".", flags, Mode::RUSR | Mode::WUSR) else {
        return i64::MAX as u64;
    };
    let (mut fits, mut too_large) = (0, 1 << 63);
    while too_large - fits > 1 {
        let size = fits + (too_large - fits) / 2;
        match rustix::fs::ftruncate(&file, size) {
            Ok(()) => fits = size,
            Err(rustix::io::Errno::FBIG | rustix::io::Errno::INVAL) => too_large = size,
            // Of another reason nothing can be concluded.
            Err(_) => return i64::MAX as u64,
        }
    }
    fits
}

/// Whether the kernel failed to write something of a file, and has not said so through this
/// descriptor yet. Nothing is written and nobody waited for: there is no data so far behind.
pub(super) fn failed_before(fd: BorrowedFd<'_>) -> io::Result<()> {
    const END: i64 = i64::MAX - 1;
    // SAFETY: a descriptor that is borrowed for the call, and integers.
    let rc =
        unsafe { libc::sync_file_range(fd.as_raw_fd(), END, 1, libc::SYNC_FILE_RANGE_WAIT_BEFORE) };
    match rc {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// `AT_EMPTY_PATH` for calls on a descriptor itself.
pub(super) const SELF: AtFlags = AtFlags::EMPTY_PATH;

/// Whether a call that failed so may have changed something before: it ran out of room,
/// or the disk failed. Everything else is refused beforehand.
pub fn may_have_changed(error: &io::Error) -> bool {
    is_disk_failure(error)
        || matches!(
            error.raw_os_error(),
            None | Some(libc::ENOSPC | libc::EDQUOT)
        )
}

/// Whether a call that failed so tells of a disk, or of a file system on it, that cannot
/// be trusted any more. A full one is no such thing.
pub fn is_disk_failure(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(
            libc::EIO
                // The file system went read-only under the store, or found itself damaged.
                | libc::EROFS
                | libc::EUCLEAN
                | libc::EBADMSG
                | libc::ENODEV
                | libc::ENOMEDIUM
                | libc::EREMOTEIO
                | libc::ETIMEDOUT
                | libc::ENOLINK
                | libc::ESHUTDOWN
        )
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn the_largest_file_is_found_to_the_byte() {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let largest = largest_file(std::fs::File::open(dir.path()).unwrap().as_fd());
        let file = std::fs::File::create(dir.path().join("file")).unwrap();
        file.set_len(largest).unwrap();
        if largest < i64::MAX as u64 {
            assert!(file.set_len(largest + 1).is_err());
        }
    }
}
