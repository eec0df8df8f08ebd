//! File contents and attributes.

use std::fs::File;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

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

/// Bytes written at once, between multiples of this. The kernel keeps what is written at
/// once in one large page, and where it then writes a part of such a page it looks at each of
/// the page's blocks (ext4 since Linux 6.16): at 1 MiB that takes several times as long as
/// the rest of a small write.
const PIECE: u64 = 64 << 10;

/// Bytes that the kernel forgets together: the largest page of a file system's cache
/// (x86-64: 2 MiB).
pub const FORGOTTEN: u64 = 2 << 20;

/// What is written once more at least.
const LOST_BLOCK: usize = twinfold_protocol::limits::BLOCK as usize;

/// What readers of a file have seen and its disk does not have.
#[derive(Debug)]
pub struct Lost {
    /// From where on it was looked at, and what was seen there.
    first: u64,
    seen: Vec<u8>,
    /// Where in it, and how many bytes.
    blocks: Vec<(usize, usize)>,
}

impl Lost {
    /// Whether that is nothing.
    pub fn is_empty(&self) -> bool {
        self.blocks.is_empty()
    }

    /// For tests: these bytes at `first`.
    #[cfg(test)]
    pub fn bytes(first: u64, seen: &[u8]) -> Lost {
        Lost {
            first,
            seen: seen.to_vec(),
            blocks: vec![(0, seen.len())],
        }
    }
}

/// A file that is synced before anybody asks.
#[derive(Debug)]
pub struct Ahead(OwnedFd);

impl Ahead {
    /// Brings it to stable storage.
    pub fn sync(&self, data_only: bool) -> io::Result<()> {
        let done = match data_only {
            true => rustix::fs::fdatasync(&self.0),
            false => rustix::fs::fsync(&self.0),
        };
        Ok(done?)
    }
}

/// Writes all of `slices`, no more than [`MAX_SLICES`], at `at`.
fn write_slices(file: &File, mut at: u64, slices: &mut [IoSlice<'_>]) -> io::Result<()> {
    let mut rest = slices;
    while !rest.is_empty() {
        match rustix::io::pwritev(file, rest, at) {
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

    /// Up to `most` bytes at `offset`; fewer at the end of the file only. The same as
    /// [`Store::read`], without clearing a buffer first.
    pub fn read_new(&self, node: &Node, offset: u64, most: usize) -> io::Result<Vec<u8>> {
        let file = node.data()?;
        let mut bytes = Vec::with_capacity(most);
        while bytes.len() < most {
            let (done, at) = (bytes.len(), offset + bytes.len() as u64);
            // What may have been allocated beyond `most` is not asked for.
            let spare = &mut bytes.spare_capacity_mut()[..most - done];
            match rustix::io::pread(file, spare, at).map(|(read, _)| read.len()) {
                Ok(0) => break,
                // SAFETY: the kernel has filled so many bytes behind those that are there.
                Ok(n) => unsafe { bytes.set_len(done + n) },
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(bytes)
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
        // Most writes are one piece, and need no list.
        if let [chunk] = data.chunks()
            && !chunk.is_empty()
            && chunk.len() as u64 <= PIECE - offset % PIECE
        {
            return write_slices(file, offset, &mut [IoSlice::new(chunk)]);
        }
        let (mut at, mut length) = (offset, 0);
        let mut slices: Vec<IoSlice<'_>> = Vec::new();
        for chunk in data.chunks() {
            let mut chunk = &chunk[..];
            while !chunk.is_empty() {
                let room = PIECE - (at + length) % PIECE;
                let fits = chunk
                    .len()
                    .min(usize::try_from(room).unwrap_or(chunk.len()));
                let (now, later) = chunk.split_at(fits);
                slices.push(IoSlice::new(now));
                length += fits as u64;
                if fits as u64 == room || slices.len() == MAX_SLICES {
                    write_slices(file, at, &mut slices)?;
                    slices.clear();
                    at += length;
                    length = 0;
                }
                chunk = later;
            }
        }
        write_slices(file, at, &mut slices)
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
        let first = offset / FORGOTTEN * FORGOTTEN;
        let end = match length {
            0 => None,
            _ => offset
                .saturating_add(length)
                .checked_next_multiple_of(FORGOTTEN),
        };
        let length = end.and_then(|end| std::num::NonZeroU64::new(end - first));
        Ok(rustix::fs::fadvise(
            node.data()?,
            first,
            length,
            rustix::fs::Advice::DontNeed,
        )?)
    }

    /// What readers see of the [`FORGOTTEN`] bytes at `first`, a multiple of that, and the disk
    /// does not have. Readers may see it no more: the caller holds these bytes until they are
    /// written once more.
    pub fn find_lost(&self, node: &Node, first: u64) -> io::Result<Lost> {
        let mut seen = vec![0; FORGOTTEN as usize];
        let n = self.read(node, first, &mut seen)?;
        seen.truncate(n);
        self.forget_cached(node, first, FORGOTTEN)?;
        let mut disk = vec![0; n];
        // What the disk does not give is written as well: a bad sector is replaced then.
        let known = match self.read(node, first, &mut disk) {
            Ok(known) => known,
            Err(e) if e.raw_os_error() == Some(libc::EIO) => 0,
            Err(e) => return Err(e),
        };
        disk.truncate(known);
        let blocks = seen
            .chunks(LOST_BLOCK)
            .enumerate()
            .filter_map(|(n, block)| {
                let at = n * LOST_BLOCK;
                (disk.get(at..at + block.len()) != Some(block)).then_some((at, block.len()))
            });
        Ok(Lost {
            first,
            blocks: blocks.collect(),
            seen,
        })
    }

    /// Writes that once more; returns how many bytes. The caller holds the whole file: the
    /// times of somebody else's write must not be put back.
    pub fn rewrite(&self, node: &Node, lost: &Lost) -> io::Result<u64> {
        let before = node.attributes()?;
        let file = node.data()?;
        let mut rewritten = 0;
        self.with_capabilities(node, || {
            for (at, length) in &lost.blocks {
                file.write_all_at(&lost.seen[*at..at + length], lost.first + *at as u64)?;
                rewritten += *length as u64;
            }
            Ok(())
        })?;
        // Nothing was changed for anybody who looks.
        self.set_times(node, Some(before.accessed), Some(before.modified))?;
        Ok(rewritten)
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

    /// A descriptor to sync a regular file by before anybody asks: of what could not be brought
    /// to the disk the kernel tells each descriptor, and once (`fsync(2)`), so that what it tells
    /// this one it tells [`Store::sync`] as well. The last one is kept.
    pub fn ahead(&self, node: &Arc<Node>) -> io::Result<Arc<Ahead>> {
        if let Some(ahead) = &*node.ahead.lock() {
            return Ok(ahead.clone());
        }
        if node.kind() != Kind::Regular {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let ahead = Arc::new(Ahead(sys::reopen(node.path(), OFlags::RDONLY)?));
        *node.ahead.lock() = Some(ahead.clone());
        let before = std::mem::replace(&mut *self.ahead.lock(), Arc::downgrade(node));
        if let Some(before) = before.upgrade().filter(|before| !Arc::ptr_eq(before, node)) {
            before.ahead.lock().take();
        }
        Ok(ahead)
    }

    /// [`Store::sync`] has told of something that [`Store::ahead`] may not have told of yet:
    /// the next one begins anew.
    pub fn forget_ahead(&self, node: &Node) {
        node.ahead.lock().take();
    }

    /// Fails if something of a regular file could not be brought to the disk, and
    /// [`Store::sync`] has not said so yet. Nothing is written, and nobody waited for.
    pub fn failed_before(&self, node: &Node) -> io::Result<()> {
        sys::failed_before(node.data()?.as_fd())
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
