//! Objects as they are, holes, owners, modes, times and extended attributes with them.

use std::ffi::{CStr, CString, OsString};
use std::fs::{self, File, Metadata};
use std::io::{self, Write};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, Timespec, Timestamps, XattrFlags};

/// Bytes copied at once where the file system cannot copy by itself.
const PIECE: usize = 1 << 20;

/// Twinfold's own attribute: it has no place outside of the store.
pub(super) const ID: &[u8] = b"trusted.twinfold";

pub(super) fn private_directory(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new()
        .mode(0o700)
        .recursive(true)
        .create(path)
}

/// Name, inode, and whether it is a directory, of everything in a directory; without
/// leaving an access time in it.
pub(super) fn entries(path: &Path) -> io::Result<Vec<(OsString, u64, bool)>> {
    let flags =
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::NOATIME | OFlags::CLOEXEC;
    let directory = rustix::fs::open(path, flags, Mode::empty())?;
    let mut all = Vec::new();
    for entry in rustix::fs::Dir::new(directory)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name == b"." || name == b".." {
            continue;
        }
        let name = OsString::from_vec(name.to_vec());
        let is_directory = match entry.file_type() {
            FileType::Directory => true,
            FileType::Unknown => fs::symlink_metadata(path.join(&name))?.is_dir(),
            _ => false,
        };
        all.push((name, entry.ino(), is_directory));
    }
    Ok(all)
}

/// Makes a special file like the one that `meta` is of.
pub(super) fn special(target: &Path, meta: &Metadata) -> io::Result<()> {
    let kind = meta.file_type();
    let kind = match () {
        () if kind.is_fifo() => FileType::Fifo,
        () if kind.is_socket() => FileType::Socket,
        () if kind.is_char_device() => FileType::CharacterDevice,
        () => FileType::BlockDevice,
    };
    Ok(rustix::fs::mknodat(
        CWD,
        target,
        kind,
        Mode::empty(),
        meta.rdev(),
    )?)
}

/// Whether the file system lets files share blocks.
pub(super) fn shares_blocks(root: &Path, at: &Path) -> io::Result<bool> {
    let probe = |name: &str| {
        File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(at.join(name))
    };
    debug_assert!(root.is_absolute());
    let names = ["probe-a", "probe-b"];
    let shared = (|| {
        let [from, to] = [probe(names[0])?, probe(names[1])?];
        (&from).write_all(&[1; 4096])?;
        io::Result::Ok(rustix::fs::ioctl_ficlone(&to, &from).is_ok())
    })();
    for name in names {
        let _ = fs::remove_file(at.join(name));
    }
    shared
}

/// Copies a file: whole where that is wanted or costs nothing, else its ranges. Returns the
/// bytes kept, and whether it is whole.
pub(super) fn copy_file(
    source: &Path,
    target: &Path,
    meta: &Metadata,
    whole: bool,
    ranges: &[(u64, u64)],
) -> io::Result<(u64, bool)> {
    let from = File::options()
        .read(true)
        .custom_flags(libc::O_NOATIME | libc::O_NOFOLLOW)
        .open(source)?;
    let to = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(target)?;
    if meta.len() > 0 && rustix::fs::ioctl_ficlone(&to, &from).is_ok() {
        return Ok((meta.blocks() * 512, true));
    }
    to.set_len(meta.len())?;
    if whole {
        return Ok((copy_data(&from, &to, 0, meta.len())?, true));
    }
    let mut bytes = 0;
    for (offset, length) in ranges {
        bytes += copy_data(&from, &to, *offset, *length)?;
    }
    Ok((bytes, false))
}

/// Copies what is not hole of a range.
fn copy_data(from: &File, to: &File, offset: u64, length: u64) -> io::Result<u64> {
    let end = offset.saturating_add(length);
    let (mut at, mut copied) = (offset, 0);
    while at < end {
        let data = match rustix::fs::seek(from, rustix::fs::SeekFrom::Data(at)) {
            Ok(data) if data < end => data,
            Ok(_) | Err(rustix::io::Errno::NXIO) => break,
            Err(e) => return Err(e.into()),
        };
        let hole = rustix::fs::seek(from, rustix::fs::SeekFrom::Hole(data))?.min(end);
        copy_range(from, to, data, hole - data)?;
        copied += hole - data;
        at = hole;
    }
    Ok(copied)
}

fn copy_range(from: &File, to: &File, offset: u64, length: u64) -> io::Result<()> {
    use std::os::unix::fs::FileExt;
    let mut done = 0;
    while done < length {
        let (mut a, mut b) = (offset + done, offset + done);
        let most = usize::try_from(length - done)
            .unwrap_or(usize::MAX)
            .min(1 << 30);
        match rustix::fs::copy_file_range(from, Some(&mut a), to, Some(&mut b), most) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => done += n as u64,
            Err(rustix::io::Errno::INTR) => {}
            Err(rustix::io::Errno::NOSPC) => return Err(io::ErrorKind::StorageFull.into()),
            // The file system cannot: by hand, from where it stopped.
            Err(_) => break,
        }
    }
    let mut buffer = vec![0; PIECE.min((length - done) as usize)];
    while done < length {
        let most = buffer.len().min((length - done) as usize);
        let piece = &mut buffer[..most];
        from.read_exact_at(piece, offset + done)?;
        to.write_all_at(piece, offset + done)?;
        done += most as u64;
    }
    Ok(())
}

/// Owner, mode, extended attributes and times of an object, on what was made for it.
pub(super) fn attributes(source: &Path, target: &Path, meta: &Metadata) -> io::Result<()> {
    std::os::unix::fs::lchown(target, Some(meta.uid()), Some(meta.gid()))?;
    for name in xattr_names(source)? {
        let mut value = vec![0; twinfold_protocol::limits::MAX_XATTR_VALUE];
        let n = rustix::fs::lgetxattr(source, name.as_c_str(), &mut value[..])?;
        rustix::fs::lsetxattr(target, name.as_c_str(), &value[..n], XattrFlags::empty())?;
    }
    if !meta.is_symlink() {
        rustix::fs::chmodat(
            CWD,
            target,
            Mode::from_raw_mode(meta.mode() & 0o7777),
            AtFlags::empty(),
        )?;
    }
    let time = |seconds: i64, nanoseconds: i64| Timespec {
        tv_sec: seconds,
        tv_nsec: nanoseconds,
    };
    let times = Timestamps {
        last_access: time(meta.atime(), meta.atime_nsec()),
        last_modification: time(meta.mtime(), meta.mtime_nsec()),
    };
    rustix::fs::utimensat(CWD, target, &times, AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(())
}

fn xattr_names(path: &Path) -> io::Result<Vec<CString>> {
    let mut names = vec![0u8; twinfold_protocol::limits::MAX_XATTR_VALUE];
    let n = rustix::fs::llistxattr(path, &mut names[..])?;
    let all = names[..n].split_inclusive(|b| *b == 0);
    Ok(all
        .filter_map(|name| CStr::from_bytes_with_nul(name).ok())
        .filter(|name| name.to_bytes() != ID && !name.is_empty())
        .map(CStr::to_owned)
        .collect())
}
