//! File contents and attributes.

use std::io::{self, IoSlice};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use rustix::fs::{AtFlags, CWD, FallocateFlags, Gid, Mode, OFlags, Timespec, Timestamps, Uid};
use twinfold_protocol::attr::Kind;
use twinfold_protocol::op::{AllocateMode, Change, Payload};
use twinfold_protocol::time::Timestamp;

use super::node::Node;
use super::{Store, sys};

/// `UTIME_OMIT` of `utimensat(2)`.
const OMIT: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: rustix::fs::UTIME_OMIT as _,
};

const SUID: u32 = 0o4000;
const SGID: u32 = 0o2000;
const GROUP_EXECUTE: u32 = 0o010;

/// Pieces handed to one `pwritev(2)`.
const MAX_SLICES: usize = 256;

/// Bytes of the largest page of a file system's cache (x86-64: 2 MiB).
const LARGEST_PAGE: u64 = 2 << 20;

impl Store {
    /// Reads into `buffer` from `offset` until it is full or the file ends; returns the bytes read.
    pub fn read(&self, node: &Node, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let file = node.data()?;
        let mut done = 0;
        while done < buffer.len() {
            match file.read_at(&mut buffer[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(done)
    }

    /// Writes all of `data` at `offset`. On an error part of it may have been written;
    /// the file then is what it is, and the caller looks.
    pub fn write(&self, node: &Node, offset: u64, data: &Payload) -> io::Result<()> {
        let written = self.write_all(node, offset, data);
        self.changed(node, offset, offset.saturating_add(data.len() as u64));
        written
    }

    fn write_all(&self, node: &Node, offset: u64, data: &Payload) -> io::Result<()> {
        let file = node.data()?;
        if let [one] = data.chunks() {
            return file.write_all_at(one, offset);
        }
        let mut slices: Vec<IoSlice<'_>> = data.chunks().iter().map(|c| IoSlice::new(c)).collect();
        let mut rest = &mut slices[..];
        let mut at = offset;
        while !rest.is_empty() {
            let most = rest.len().min(MAX_SLICES);
            match rustix::io::pwritev(file, &rest[..most], at) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => {
                    at += n as u64;
                    IoSlice::advance_slices(&mut rest, n);
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }

    /// Clears suid, and sgid where the group may execute, as a write by an ordinary user does.
    pub fn clear_privileges(&self, node: &Node) -> io::Result<()> {
        match self.mode_without_privileges(node)? {
            Some(mode) => self.set_mode(node, mode),
            None => Ok(()),
        }
    }

    /// The mode without them; nothing when it has none.
    pub fn mode_without_privileges(&self, node: &Node) -> io::Result<Option<u32>> {
        let mode = node.attributes()?.mode;
        let mut kept = mode & !SUID;
        if mode & GROUP_EXECUTE != 0 {
            kept &= !SGID;
        }
        Ok((kept != mode).then_some(kept))
    }

    /// `ftruncate(2)`.
    pub fn truncate(&self, node: &Node, size: u64) -> io::Result<()> {
        let done = rustix::fs::ftruncate(node.data()?, size);
        self.changed(node, 0, u64::MAX);
        Ok(done?)
    }

    /// `fallocate(2)`.
    pub fn allocate(
        &self,
        node: &Node,
        mode: AllocateMode,
        offset: u64,
        length: u64,
    ) -> io::Result<()> {
        let flags = match mode {
            AllocateMode::Allocate => FallocateFlags::empty(),
            AllocateMode::KeepSize => FallocateFlags::KEEP_SIZE,
            AllocateMode::PunchHole => FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
            AllocateMode::ZeroRange => FallocateFlags::ZERO_RANGE,
            AllocateMode::ZeroRangeKeepSize => {
                FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE
            }
        };
        let done = rustix::fs::fallocate(node.data()?, flags, offset, length);
        self.changed(node, offset, offset.saturating_add(length));
        Ok(done?)
    }

    /// `copy_file_range(2)`; returns the bytes copied, fewer than `length` only at
    /// the end of the source.
    pub fn copy_range(
        &self,
        from: &Node,
        from_offset: u64,
        to: &Node,
        to_offset: u64,
        length: u64,
    ) -> io::Result<u64> {
        let (source, target) = (from.data()?, to.data()?);
        let mut done = 0;
        while done < length {
            let (mut a, mut b) = (from_offset + done, to_offset + done);
            let most = usize::try_from(length - done)
                .unwrap_or(usize::MAX)
                .min(1 << 30);
            match rustix::fs::copy_file_range(source, Some(&mut a), target, Some(&mut b), most) {
                Ok(0) => break,
                Ok(n) => done += n as u64,
                Err(rustix::io::Errno::INTR) => {}
                // Something was copied: that much is the answer, as it is from the kernel.
                Err(_) if done > 0 => break,
                Err(e) => return Err(e.into()),
            }
        }
        self.changed(to, to_offset, to_offset.saturating_add(done));
        Ok(done)
    }

    /// The next data (`data`) or hole at or after `offset`; `ENXIO` beyond the end.
    pub fn seek(&self, node: &Node, offset: u64, data: bool) -> io::Result<u64> {
        let to = if data {
            rustix::fs::SeekFrom::Data(offset)
        } else {
            rustix::fs::SeekFrom::Hole(offset)
        };
        Ok(rustix::fs::seek(node.data()?, to)?)
    }

    /// Where the next data at or behind `offset` begins, if there is any.
    pub fn next_data(&self, node: &Node, offset: u64) -> io::Result<Option<u64>> {
        match self.seek(node, offset, true) {
            Ok(at) => Ok(Some(at)),
            Err(e) if e.raw_os_error() == Some(libc::ENXIO) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Lets the kernel forget what it has cached of a range, to the file's end if `length` is
    /// 0, and is on the disk: the next read is the disk's. What is not on the disk yet stays.
    ///
    /// After a failed flush the kernel keeps the pages and takes them for written (`fsync(2)`,
    /// LWN 752063), so that a read alone does not tell what the disk has.
    pub fn forget_cached(&self, node: &Node, offset: u64, length: u64) -> io::Result<()> {
        // A page that is only partly in the range stays, and pages may be as large as this.
        let first = offset / LARGEST_PAGE * LARGEST_PAGE;
        let end = match length {
            0 => None,
            _ => offset
                .saturating_add(length)
                .checked_next_multiple_of(LARGEST_PAGE),
        };
        let length = end.and_then(|end| std::num::NonZeroU64::new(end - first));
        Ok(rustix::fs::fadvise(
            node.data()?,
            first,
            length,
            rustix::fs::Advice::DontNeed,
        )?)
    }

    /// Brings an object to stable storage.
    pub fn sync(&self, node: &Node, data_only: bool) -> io::Result<()> {
        match node.kind() {
            Kind::Regular if data_only => node.data()?.sync_data(),
            Kind::Regular => node.data()?.sync_all(),
            Kind::Directory => {
                let directory = sys::reopen(node.path(), OFlags::RDONLY | OFlags::DIRECTORY)?;
                Ok(rustix::fs::fsync(directory)?)
            }
            // Nothing of these can be open for data; their names are their directory's.
            _ => Ok(()),
        }
    }

    fn set_mode(&self, node: &Node, mode: u32) -> io::Result<()> {
        Ok(rustix::fs::chmodat(
            CWD,
            sys::proc_path(node.path()).as_c_str(),
            Mode::from_raw_mode(mode),
            AtFlags::empty(),
        )?)
    }

    /// `chown(2)`, `chmod(2)` and `utimensat(2)`, in this order.
    pub fn change(&self, node: &Node, change: &Change) -> io::Result<()> {
        if change.uid.is_some() || change.gid.is_some() {
            rustix::fs::chownat(
                node.path().as_fd(),
                c"",
                change.uid.map(Uid::from_raw),
                change.gid.map(Gid::from_raw),
                sys::SELF,
            )?;
        }
        if let Some(mode) = change.mode
            && node.kind() != Kind::Symlink
        {
            self.set_mode(node, mode)?;
        }
        self.set_times(node, change.accessed, change.modified)
    }

    /// Sets the given times.
    pub fn set_times(
        &self,
        node: &Node,
        accessed: Option<Timestamp>,
        modified: Option<Timestamp>,
    ) -> io::Result<()> {
        if accessed.is_none() && modified.is_none() {
            return Ok(());
        }
        let spec = |t: Option<Timestamp>| {
            t.map_or(OMIT, |t| Timespec {
                tv_sec: t.secs,
                tv_nsec: t.nanos.into(),
            })
        };
        let times = Timestamps {
            last_access: spec(accessed),
            last_modification: spec(modified),
        };
        Ok(rustix::fs::utimensat(node.path(), c"", &times, sys::SELF)?)
    }

    /// Where a symbolic link points to.
    pub fn link_target(&self, node: &Node) -> io::Result<Vec<u8>> {
        let target = rustix::fs::readlinkat(node.path(), c"", Vec::new())?;
        Ok(target.into_bytes())
    }
}
