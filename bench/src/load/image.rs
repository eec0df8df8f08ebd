//! The disk of a virtual machine: its file is read and written past the page cache, in
//! several sizes, anywhere, and flushed when the guest flushes.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::Result;

use super::Worker;
use super::file::open;
use super::memory::{Aligned, Dice};

/// Of a hundred calls so many are reads.
const READS: u64 = 65;

/// Of a thousand calls so many are followed by a flush.
const FLUSHES: u64 = 5;

/// Sizes of the calls in bytes, and of a hundred so many.
const SIZES: [(usize, u64); 3] = [(4096, 60), (16 << 10, 25), (64 << 10, 15)];

/// One step is one call of the guest.
pub(super) struct Guest {
    file: File,
    buffer: Aligned,
    dice: Dice,
    size: u64,
}

impl Guest {
    pub(super) fn new(directory: &Path, n: usize, size: u64) -> Result<Guest> {
        Ok(Guest {
            file: open(&directory.join("bench.dat"), true, true)?,
            buffer: Aligned::new(SIZES[2].0, n as u8),
            dice: Dice::new(n as u64),
            size,
        })
    }

    fn bytes(&mut self) -> usize {
        let mut roll = self.dice.below(100);
        for (bytes, part) in SIZES {
            if roll < part {
                return bytes;
            }
            roll -= part;
        }
        SIZES[0].0
    }
}

impl Worker for Guest {
    fn step(&mut self) -> Result<u64> {
        let bytes = self.bytes();
        let at = self.dice.below((self.size / bytes as u64).max(1)) * bytes as u64;
        if self.dice.below(100) < READS {
            let into = &mut self.buffer.bytes_mut()[..bytes];
            self.file.read_exact_at(into, at)?;
        } else {
            self.file.write_all_at(&self.buffer.bytes()[..bytes], at)?;
        }
        if self.dice.below(1000) < FLUSHES {
            self.file.sync_data()?;
        }
        Ok(bytes as u64)
    }
}
