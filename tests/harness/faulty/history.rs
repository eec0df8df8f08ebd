//! What a disk was asked to do, in order, and what it would hold after a power cut.
//!
//! The log, little-endian, one entry after the other:
//!
//! | bytes | meaning |
//! |---|---|
//! | 0 | 1 write, 2 discard (zeros afterwards), 3 flush |
//! | 1-7 | zero |
//! | 8-15 | offset on the disk |
//! | 16-23 | length |
//! | 24- | a write's bytes |

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, ensure};

use crate::process::must;

/// Bytes before a write's own.
pub(super) const HEADER: usize = 24;

/// What a disk replaces as a whole, in bytes: a torn write ends between two of them.
const SECTOR: u64 = 512;

/// What was asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// New bytes.
    Write,
    /// No bytes: zeros from then on.
    Discard,
    /// Everything before is safe from a power cut.
    Flush,
}

/// One request that succeeded.
#[derive(Clone, Debug)]
pub struct Request {
    /// What was asked.
    pub kind: Kind,
    /// Where, in bytes.
    pub offset: u64,
    /// How much, in bytes.
    pub length: u64,
    /// Where a write's bytes begin in the log.
    payload: u64,
}

/// What becomes of a request behind the last flush when the power is cut.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fate {
    /// It is on the disk.
    Kept,
    /// It is not.
    Lost,
    /// Its first bytes are, rounded down to whole sectors.
    Torn(u64),
}

/// The log of a disk up to one point.
#[derive(Debug)]
pub struct History {
    directory: PathBuf,
    log: File,
    requests: Vec<Request>,
    /// How many of the first requests are in the file `rolled`.
    rolled: Option<usize>,
}

pub(super) fn header(kind: Kind, offset: u64, length: u64) -> [u8; HEADER] {
    let mut bytes = [0; HEADER];
    bytes[0] = match kind {
        Kind::Write => 1,
        Kind::Discard => 2,
        Kind::Flush => 3,
    };
    bytes[8..16].copy_from_slice(&offset.to_le_bytes());
    bytes[16..].copy_from_slice(&length.to_le_bytes());
    bytes
}

fn number(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |n, b| n << 8 | u64::from(*b))
}

/// Copies an image without its holes, and shares the bytes where the file system can.
pub(super) fn copy(from: &Path, to: &Path) -> Result<()> {
    must(
        Command::new("cp")
            .args(["--sparse=auto", "--reflink=auto"])
            .args([from, to]),
    )?;
    Ok(())
}

/// Zeros, without taking space.
pub(super) fn discard(image: &File, offset: u64, length: u64) -> io::Result<()> {
    use rustix::fs::{FallocateFlags, fallocate};
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    Ok(fallocate(image, flags, offset, length)?)
}

impl History {
    /// Reads the first `count` requests of the log of the disk in `directory`.
    pub(super) fn read(directory: &Path, count: usize) -> Result<History> {
        let log = File::open(directory.join("log"))?;
        let mut reader = BufReader::new(&log);
        let mut requests = Vec::with_capacity(count);
        let mut at = 0;
        for _ in 0..count {
            let mut bytes = [0; HEADER];
            reader.read_exact(&mut bytes)?;
            at += HEADER as u64;
            let (offset, length) = (number(&bytes[8..16]), number(&bytes[16..]));
            let kind = match bytes[0] {
                1 => Kind::Write,
                2 => Kind::Discard,
                _ => Kind::Flush,
            };
            requests.push(Request {
                kind,
                offset,
                length,
                payload: at,
            });
            if kind == Kind::Write {
                reader.seek_relative(length as i64)?;
                at += length;
            }
        }
        ensure!(
            (&log).seek(SeekFrom::End(0))? >= at,
            "the log ends within request {count}"
        );
        Ok(History {
            directory: directory.to_owned(),
            log,
            requests,
            rolled: None,
        })
    }

    /// The requests in order. A point of the history is a number of them.
    pub fn requests(&self) -> &[Request] {
        &self.requests
    }

    /// The requests before `point` that a power cut there may lose.
    pub fn unflushed(&self, point: usize) -> std::ops::Range<usize> {
        let before = &self.requests[..point];
        let flushed = before.iter().rposition(|r| r.kind == Kind::Flush);
        flushed.map_or(0, |at| at + 1)..point
    }

    /// Makes the image `target`: what the disk could hold after a power cut before
    /// request number `point`, where `fate` is asked about every request that was not
    /// flushed. Points that come in their order cost one copy of what the disk holds and
    /// the requests since the last point; an earlier one begins anew.
    pub fn image_at(
        &mut self,
        point: usize,
        fate: impl Fn(usize, &Request) -> Fate,
        target: &Path,
    ) -> Result<()> {
        let open = self.unflushed(point);
        let rolled = self.directory.join("rolled");
        let from = match self.rolled.take() {
            Some(done) if done <= open.start => done,
            _ => {
                copy(&self.directory.join("base"), &rolled)?;
                0
            }
        };
        let image = File::options().write(true).open(&rolled)?;
        for index in from..open.start {
            self.apply(&image, index, Fate::Kept)?;
        }
        self.rolled = Some(open.start);
        copy(&rolled, target)?;
        let image = File::options().write(true).open(target)?;
        for index in open {
            self.apply(&image, index, fate(index, &self.requests[index]))?;
        }
        Ok(())
    }

    fn apply(&self, image: &File, index: usize, fate: Fate) -> Result<()> {
        let request = &self.requests[index];
        let length = match fate {
            Fate::Kept => request.length,
            Fate::Lost => 0,
            Fate::Torn(length) => length.min(request.length) / SECTOR * SECTOR,
        };
        match request.kind {
            Kind::Flush => {}
            _ if length == 0 => {}
            Kind::Discard => discard(image, request.offset, length)?,
            Kind::Write => {
                let mut bytes = vec![0; length as usize];
                self.log.read_exact_at(&mut bytes, request.payload)?;
                image.write_all_at(&bytes, request.offset)?;
            }
        }
        Ok(())
    }
}
