//! Which space files take on the disk: the same in both stores, as long as every op
//! was applied by both (a resync moves data and holes, not reservations).

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use crate::compare::open_quietly;

/// `FS_IOC_FIEMAP` of `linux/fs.h`.
const FIEMAP: libc::Ioctl = 0xc020_660b;

/// `FIEMAP_FLAG_SYNC`: what waits for its place is written first.
const SYNC: u32 = 1;

/// `FIEMAP_EXTENT_LAST`.
const LAST: u32 = 1;

/// Extents fetched at once.
const COUNT: usize = 512;

/// `struct fiemap_extent`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Extent {
    logical: u64,
    physical: u64,
    length: u64,
    reserved: [u64; 2],
    flags: u32,
    more: [u32; 3],
}

/// `struct fiemap` with room for extents.
#[repr(C)]
struct Request {
    start: u64,
    length: u64,
    flags: u32,
    mapped: u32,
    count: u32,
    reserved: u32,
    extents: [Extent; COUNT],
}

/// The pieces of a file that have space, written or reserved.
fn extents(file: &File) -> io::Result<Vec<Extent>> {
    let mut all = Vec::new();
    let mut start = 0;
    loop {
        let mut request = Box::new(Request {
            start,
            length: u64::MAX - start,
            flags: SYNC,
            mapped: 0,
            count: COUNT as u32,
            reserved: 0,
            extents: [Extent::default(); COUNT],
        });
        // SAFETY: the request has the layout of `struct fiemap` with `count` extents
        // behind it, which the call fills; the descriptor is open.
        if unsafe { libc::ioctl(file.as_raw_fd(), FIEMAP, &raw mut *request) } != 0 {
            return Err(io::Error::last_os_error());
        }
        let found = &request.extents[..request.mapped as usize];
        all.extend_from_slice(found);
        match found.last() {
            Some(last) if last.flags & LAST == 0 => start = last.logical + last.length,
            _ => return Ok(all),
        }
    }
}

/// The ranges of a file that have space; neighbours are one.
fn ranges(file: &File) -> io::Result<Vec<(u64, u64)>> {
    let mut all: Vec<(u64, u64)> = Vec::new();
    for extent in extents(file)? {
        let end = extent.logical + extent.length;
        match all.last_mut() {
            Some(last) if last.1 == extent.logical => last.1 = end,
            _ => all.push((extent.logical, end)),
        }
    }
    Ok(all)
}

/// Where a file lies on its disk, in bytes, from its beginning to its end.
pub(crate) fn places(file: &File) -> io::Result<Vec<Range<u64>>> {
    let place = |e: Extent| e.physical..e.physical + e.length;
    Ok(extents(file)?.into_iter().map(place).collect())
}

/// The space of every file below a store's root.
pub(crate) fn of_tree(root: &Path) -> io::Result<BTreeMap<PathBuf, Vec<(u64, u64)>>> {
    let mut all = BTreeMap::new();
    let mut waiting = vec![PathBuf::new()];
    while let Some(path) = waiting.pop() {
        for entry in std::fs::read_dir(root.join(&path))? {
            let entry = entry?;
            let path = path.join(entry.file_name());
            let kind = entry.file_type()?;
            if kind.is_dir() {
                waiting.push(path);
            } else if kind.is_file() {
                let found = ranges(&open_quietly(&entry.path())?)?;
                all.insert(path, found);
            }
        }
    }
    Ok(all)
}
