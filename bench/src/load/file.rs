//! Reads and writes of one size in a file that is there.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::Worker;
use super::memory::{Aligned, Dice};

/// What is done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Act {
    Write,
    /// A write, and an fsync behind it.
    WriteSync,
    Read,
}

/// How it is done.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Access {
    pub(crate) act: Act,
    /// Bytes of one call.
    pub(crate) bytes: usize,
    /// Past the page cache.
    pub(crate) direct: bool,
    /// One after the other instead of anywhere.
    pub(crate) sequential: bool,
}

/// The file that all workers share.
pub(super) fn path(directory: &Path) -> PathBuf {
    directory.join("bench.dat")
}

/// Makes the file of `size` bytes.
pub(crate) fn prepare(directory: &Path, size: u64) -> Result<()> {
    let path = path(directory);
    let file = File::create(&path).with_context(|| format!("cannot make {}", path.display()))?;
    let chunk = vec![0x5a; 1 << 20];
    for at in (0..size).step_by(chunk.len()) {
        file.write_all_at(&chunk, at)?;
    }
    file.sync_all()?;
    Ok(())
}

/// Opens `name` for the workers.
pub(super) fn open(path: &Path, write: bool, direct: bool) -> Result<File> {
    OpenOptions::new()
        .read(true)
        .write(write)
        .custom_flags(if direct { libc::O_DIRECT } else { 0 })
        .open(path)
        .with_context(|| format!("cannot open {}", path.display()))
}

/// Calls of one size.
pub(super) struct FileWorker {
    access: Access,
    file: File,
    buffer: Aligned,
    dice: Dice,
    places: u64,
    next: u64,
}

impl FileWorker {
    pub(super) fn new(access: Access, directory: &Path, n: usize, size: u64) -> Result<FileWorker> {
        let file = open(&path(directory), access.act != Act::Read, access.direct)?;
        let mut buffer = Aligned::new(access.bytes, n as u8);
        let places = (size / access.bytes as u64).max(1);
        if access.act == Act::Read && !access.direct {
            // What is read from the cache has to be there.
            for place in 0..places {
                file.read_exact_at(buffer.bytes_mut(), place * access.bytes as u64)?;
            }
        }
        Ok(FileWorker {
            access,
            file,
            buffer,
            dice: Dice::new(n as u64),
            places,
            next: 0,
        })
    }
}

impl Worker for FileWorker {
    fn step(&mut self) -> Result<u64> {
        let place = match self.access.sequential {
            true => self.next % self.places,
            false => self.dice.below(self.places),
        };
        self.next += 1;
        let at = place * self.access.bytes as u64;
        match self.access.act {
            Act::Write => self.file.write_all_at(self.buffer.bytes(), at)?,
            Act::WriteSync => {
                self.file.write_all_at(self.buffer.bytes(), at)?;
                self.file.sync_all()?;
            }
            Act::Read => self.file.read_exact_at(self.buffer.bytes_mut(), at)?,
        }
        Ok(self.access.bytes as u64)
    }
}
