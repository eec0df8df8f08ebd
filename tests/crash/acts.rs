//! What an application does, one change at a time, on the mount and on a plain directory.

use std::collections::HashMap;
use std::ffi::CString;
use std::fs::{self, File, Permissions};
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt, lchown, symlink};
use std::path::Path;

use rustix::fs::{CWD, FallocateFlags, RenameFlags, fallocate, renameat_with};

/// One change, or one sync. Paths are relative.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Act {
    Create(&'static str),
    Write(&'static str, u64, usize, u8),
    /// Written with `O_DSYNC`.
    WriteDsync(&'static str, u64, usize, u8),
    Fsync(&'static str),
    Fdatasync(&'static str),
    Truncate(&'static str, u64),
    Punch(&'static str, u64, u64),
    Allocate(&'static str, u64, u64),
    /// From, offset, to, offset, length.
    Copy(&'static str, u64, &'static str, u64, usize),
    Mkdir(&'static str),
    Rmdir(&'static str),
    Rename(&'static str, &'static str),
    Exchange(&'static str, &'static str),
    Link(&'static str, &'static str),
    Unlink(&'static str),
    /// Path and target.
    Symlink(&'static str, &'static str),
    Fifo(&'static str),
    Chmod(&'static str, u32),
    Chown(&'static str, u32),
    Setxattr(&'static str, &'static str, usize),
    Removexattr(&'static str, &'static str),
    /// Keeps a file open.
    Open(&'static str),
    /// To the open file of this path, whatever became of its name.
    WriteOpen(&'static str, u64, usize, u8),
    FsyncOpen(&'static str),
    Close(&'static str),
}

/// Files kept open by path.
pub(crate) type Open = HashMap<&'static str, File>;

/// The bytes that are written: they tell where they belong.
pub(crate) fn bytes(seed: u8, offset: u64, length: usize) -> Vec<u8> {
    (offset..offset + length as u64)
        .map(|at| seed ^ ((at >> 9) as u8).wrapping_mul(37))
        .collect()
}

fn for_writing(path: &Path) -> io::Result<File> {
    File::options().read(true).write(true).open(path)
}

fn c_path(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).unwrap()
}

fn checked(result: libc::c_int) -> io::Result<()> {
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn kept<'a>(open: &'a Open, path: &str) -> io::Result<&'a File> {
    open.get(path)
        .ok_or_else(|| io::Error::other(format!("{path} is not open")))
}

impl Act {
    /// Does it below `root`.
    pub(crate) fn run(self, root: &Path, open: &mut Open) -> io::Result<()> {
        let at = |path: &str| root.join(path);
        match self {
            Act::Create(path) => File::options()
                .write(true)
                .create_new(true)
                .mode(0o640)
                .open(at(path))
                .map(drop),
            Act::Write(path, offset, length, seed) => {
                for_writing(&at(path))?.write_all_at(&bytes(seed, offset, length), offset)
            }
            Act::WriteDsync(path, offset, length, seed) => File::options()
                .write(true)
                .custom_flags(libc::O_DSYNC)
                .open(at(path))?
                .write_all_at(&bytes(seed, offset, length), offset),
            Act::Fsync(path) => File::open(at(path))?.sync_all(),
            Act::Fdatasync(path) => for_writing(&at(path))?.sync_data(),
            Act::Truncate(path, size) => for_writing(&at(path))?.set_len(size),
            Act::Punch(path, offset, length) => Ok(fallocate(
                for_writing(&at(path))?,
                FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
                offset,
                length,
            )?),
            Act::Allocate(path, offset, length) => Ok(fallocate(
                for_writing(&at(path))?,
                FallocateFlags::empty(),
                offset,
                length,
            )?),
            Act::Copy(from, from_at, to, to_at, length) => {
                let (from, to) = (File::open(at(from))?, for_writing(&at(to))?);
                let (mut from_at, mut to_at) = (from_at, to_at);
                let copied = rustix::fs::copy_file_range(
                    &from,
                    Some(&mut from_at),
                    &to,
                    Some(&mut to_at),
                    length,
                )?;
                match copied == length {
                    true => Ok(()),
                    false => Err(io::Error::other("a short copy")),
                }
            }
            Act::Mkdir(path) => fs::create_dir(at(path)),
            Act::Rmdir(path) => fs::remove_dir(at(path)),
            Act::Rename(from, to) => fs::rename(at(from), at(to)),
            Act::Exchange(one, other) => Ok(renameat_with(
                CWD,
                at(one),
                CWD,
                at(other),
                RenameFlags::EXCHANGE,
            )?),
            Act::Link(from, to) => fs::hard_link(at(from), at(to)),
            Act::Unlink(path) => fs::remove_file(at(path)),
            Act::Symlink(path, target) => symlink(target, at(path)),
            Act::Fifo(path) => {
                // SAFETY: a path that lives as long as the call.
                checked(unsafe { libc::mkfifo(c_path(&at(path)).as_ptr(), 0o600) })
            }
            Act::Chmod(path, mode) => fs::set_permissions(at(path), Permissions::from_mode(mode)),
            Act::Chown(path, owner) => lchown(at(path), Some(owner), Some(owner)),
            Act::Setxattr(path, name, length) => {
                let (path, name) = (c_path(&at(path)), CString::new(name).unwrap());
                let value = bytes(7, 0, length);
                // SAFETY: strings and a buffer that live as long as the call.
                checked(unsafe {
                    libc::lsetxattr(
                        path.as_ptr(),
                        name.as_ptr(),
                        value.as_ptr().cast(),
                        length,
                        0,
                    )
                })
            }
            Act::Removexattr(path, name) => {
                let (path, name) = (c_path(&at(path)), CString::new(name).unwrap());
                // SAFETY: strings that live as long as the call.
                checked(unsafe { libc::lremovexattr(path.as_ptr(), name.as_ptr()) })
            }
            Act::Open(path) => {
                open.insert(path, for_writing(&at(path))?);
                Ok(())
            }
            Act::WriteOpen(path, offset, length, seed) => {
                kept(open, path)?.write_all_at(&bytes(seed, offset, length), offset)
            }
            Act::FsyncOpen(path) => checked({
                let file = kept(open, path)?;
                // SAFETY: a descriptor that is open.
                unsafe { libc::fsync(file.as_raw_fd()) }
            }),
            Act::Close(path) => {
                open.remove(path);
                Ok(())
            }
        }
    }

    /// The bytes of a file that may be other ones from when it begins.
    pub(crate) fn changes(self) -> Option<(&'static str, Range<u64>)> {
        match self {
            Act::Write(path, offset, length, _)
            | Act::WriteDsync(path, offset, length, _)
            | Act::Copy(_, _, path, offset, length)
            | Act::WriteOpen(path, offset, length, _) => {
                Some((path, offset..offset + length as u64))
            }
            Act::Punch(path, offset, length) => Some((path, offset..offset + length)),
            Act::Truncate(path, size) => Some((path, size..u64::MAX)),
            _ => None,
        }
    }

    /// Whether both disks have everything before it when it is acknowledged.
    pub(crate) fn is_sync(self) -> bool {
        matches!(
            self,
            Act::WriteDsync(..) | Act::Fsync(_) | Act::Fdatasync(_) | Act::FsyncOpen(_)
        )
    }
}
