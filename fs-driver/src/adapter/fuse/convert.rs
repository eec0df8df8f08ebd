//! FUSE's words and ours.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{Errno, FileAttr, FileType, INodeNo, TimeOrNow};
use twinfold_protocol::attr::{Attributes, Device, Kind};
use twinfold_protocol::ids::FileId;
use twinfold_protocol::op::BadName;
use twinfold_protocol::time::Timestamp;

use crate::error::FsError;

/// The one map from our errors to errno.
pub(super) fn errno(error: &FsError) -> Errno {
    let code = match error {
        FsError::Store(e) => match e.raw_os_error() {
            Some(code) => code,
            None => {
                tracing::error!(error = %e, "a call failed");
                libc::EIO
            }
        },
        FsError::ReadOnly => libc::EROFS,
        FsError::Name(BadName::TooLong) => libc::ENAMETOOLONG,
        FsError::Name(BadName::Empty) => libc::ENOENT,
        FsError::Name(BadName::Escapes) | FsError::Invalid => libc::EINVAL,
        FsError::NoSpace => libc::ENOSPC,
        FsError::TooLarge => libc::EFBIG,
        FsError::NotADirectory => libc::ENOTDIR,
        FsError::IsADirectory => libc::EISDIR,
        FsError::NameTooLong => libc::ENAMETOOLONG,
        FsError::NotSupported => libc::EOPNOTSUPP,
        FsError::BadHandle => libc::EBADF,
        FsError::Fenced | FsError::Moved => libc::EIO,
    };
    Errno::from_i32(code)
}

pub(super) fn file(ino: INodeNo) -> FileId {
    FileId(ino.0)
}

pub(super) fn ino(file: FileId) -> INodeNo {
    INodeNo(file.0)
}

pub(super) fn file_type(kind: Kind) -> FileType {
    match kind {
        Kind::Regular => FileType::RegularFile,
        Kind::Directory => FileType::Directory,
        Kind::Symlink => FileType::Symlink,
        Kind::Fifo => FileType::NamedPipe,
        Kind::Socket => FileType::Socket,
        Kind::CharDevice(_) => FileType::CharDevice,
        Kind::BlockDevice(_) => FileType::BlockDevice,
    }
}

/// The kind of a new node, from a mode's type bits and a device number in the
/// kernel's 32-bit form (`new_encode_dev`).
pub(super) fn kind(mode: u32, rdev: u32) -> Option<Kind> {
    let device = Device {
        major: (rdev & 0xf_ff00) >> 8,
        minor: (rdev & 0xff) | ((rdev >> 12) & 0xf_ff00),
    };
    Some(match mode & libc::S_IFMT {
        libc::S_IFREG | 0 => Kind::Regular,
        libc::S_IFIFO => Kind::Fifo,
        libc::S_IFSOCK => Kind::Socket,
        libc::S_IFCHR => Kind::CharDevice(device),
        libc::S_IFBLK => Kind::BlockDevice(device),
        _ => return None,
    })
}

fn rdev(kind: Kind) -> u32 {
    match kind {
        Kind::CharDevice(d) | Kind::BlockDevice(d) => {
            (d.minor & 0xff) | (d.major << 8) | ((d.minor & !0xff) << 12)
        }
        _ => 0,
    }
}

fn system_time(t: Timestamp) -> SystemTime {
    let nanos = Duration::from_nanos(t.nanos.into());
    match u64::try_from(t.secs) {
        Ok(secs) => UNIX_EPOCH + Duration::from_secs(secs) + nanos,
        Err(_) => UNIX_EPOCH - Duration::from_secs(t.secs.unsigned_abs()) + nanos,
    }
}

pub(super) fn timestamp(t: TimeOrNow) -> Timestamp {
    let t = match t {
        TimeOrNow::Now => return crate::engine::clock::wall(),
        TimeOrNow::SpecificTime(t) => t,
    };
    match t.duration_since(UNIX_EPOCH) {
        Ok(after) => Timestamp {
            secs: after.as_secs() as i64,
            nanos: after.subsec_nanos(),
        },
        // The fuser crate makes a time before 1970 of the kernel's seconds and nanoseconds
        // as if both counted backwards; the kernel's nanoseconds always count forwards. So
        // what the kernel said is what the distance consists of.
        Err(before) => {
            let before = before.duration();
            Timestamp {
                secs: 0i64.saturating_sub_unsigned(before.as_secs()),
                nanos: before.subsec_nanos(),
            }
        }
    }
}

pub(super) fn attributes(a: &Attributes) -> FileAttr {
    FileAttr {
        ino: ino(a.file),
        size: a.size,
        blocks: a.blocks,
        atime: system_time(a.accessed),
        mtime: system_time(a.modified),
        ctime: system_time(a.changed),
        crtime: UNIX_EPOCH,
        kind: file_type(a.kind),
        perm: (a.mode & 0o7777) as u16,
        nlink: a.links,
        uid: a.uid,
        gid: a.gid,
        rdev: rdev(a.kind),
        blksize: a.block_size,
        flags: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_1970_keep_their_nanoseconds() {
        for (secs, nanos) in [(-2, 1), (-1, 999_999_999), (-5, 0), (0, 0), (7, 3)] {
            let t = Timestamp { secs, nanos };
            // As fuser decodes what the kernel sends.
            let distance = Duration::new(i64::unsigned_abs(secs), nanos);
            let decoded = match secs < 0 {
                true => UNIX_EPOCH - distance,
                false => UNIX_EPOCH + distance,
            };
            assert_eq!(timestamp(TimeOrNow::SpecificTime(decoded)), t);
            // And what it encodes is a time that means the same.
            let meant = UNIX_EPOCH + Duration::from_secs(10) + Duration::from_nanos(nanos.into());
            let meant = meant - Duration::from_secs((10 - secs) as u64);
            assert_eq!(system_time(t), meant);
        }
    }

    /// The kernel passes on any time that a program sets, and the store keeps what it can.
    #[test]
    fn the_ends_of_time_are_told_without_an_overflow() {
        for (secs, nanos) in [
            (i64::MIN, 0),
            (i64::MIN, 999_999_999),
            (i64::MAX, 0),
            (i64::MAX, 999_999_999),
        ] {
            let t = system_time(Timestamp { secs, nanos });
            let near = Timestamp {
                secs: secs.clamp(i64::MIN + 1, i64::MAX - 1),
                nanos,
            };
            let one_second = Duration::from_secs(1);
            let (early, late) = match secs < 0 {
                true => (t, system_time(near)),
                false => (system_time(near), t),
            };
            assert_eq!(late.duration_since(early).unwrap(), one_second);
        }
    }

    #[test]
    fn device_numbers_survive() {
        for (major, minor) in [(1, 3), (259, 70_000), (4095, 0xf_ffff)] {
            let device = Kind::BlockDevice(Device { major, minor });
            assert_eq!(kind(libc::S_IFBLK, rdev(device)), Some(device));
        }
    }
}
