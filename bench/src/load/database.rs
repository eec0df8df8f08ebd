//! The commit of a database with a write-ahead log, as SQLite and others do it: the
//! changed pages are appended to the log and flushed; now and then the pages of the log
//! are written to their places, flushed, and the log begins anew.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result};

use super::Worker;
use super::memory::Dice;

/// Bytes of a page.
const PAGE: u64 = 4096;

/// Bytes in front of each page in the log.
const HEADER: u64 = 24;

/// Pages that one transaction changes.
const PAGES: u64 = 3;

/// Transactions until the log is written back.
const CHECKPOINT: u64 = 250;

/// One step is one transaction.
pub(super) struct Transactions {
    data: File,
    log: File,
    /// Pages in the log, by number.
    logged: Vec<u64>,
    frame: Vec<u8>,
    pages: u64,
    dice: Dice,
    count: u64,
}

impl Transactions {
    pub(super) fn new(directory: &Path, n: usize, size: u64) -> Result<Transactions> {
        let open = |kind: &str| {
            let path = directory.join(format!("database-{n}.{kind}"));
            OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .open(&path)
                .with_context(|| format!("cannot open {}", path.display()))
        };
        let (data, log) = (open("data")?, open("log")?);
        if data.metadata()?.len() != size {
            let chunk = vec![0x44; 1 << 20];
            for at in (0..size).step_by(chunk.len()) {
                data.write_all_at(&chunk, at)?;
            }
            data.set_len(size)?;
            data.sync_all()?;
        }
        Ok(Transactions {
            data,
            log,
            logged: Vec::new(),
            frame: vec![n as u8; (HEADER + PAGE) as usize],
            pages: (size / PAGE).max(1),
            dice: Dice::new(n as u64),
            count: 0,
        })
    }

    fn checkpoint(&mut self) -> Result<u64> {
        self.logged.sort_unstable();
        self.logged.dedup();
        for page in &self.logged {
            let content = &self.frame[HEADER as usize..];
            self.data.write_all_at(content, page * PAGE)?;
        }
        self.data.sync_data()?;
        let moved = self.logged.len() as u64 * PAGE;
        self.logged.clear();
        Ok(moved)
    }
}

impl Worker for Transactions {
    fn step(&mut self) -> Result<u64> {
        for _ in 0..PAGES {
            let page = self.dice.below(self.pages);
            let at = self.logged.len() as u64 * (HEADER + PAGE);
            self.frame[..8].copy_from_slice(&page.to_le_bytes());
            self.log.write_all_at(&self.frame, at)?;
            self.logged.push(page);
        }
        self.log.sync_data()?;
        self.count += 1;
        let mut moved = PAGES * (HEADER + PAGE);
        if self.count.is_multiple_of(CHECKPOINT) {
            moved += self.checkpoint()?;
        }
        Ok(moved)
    }
}
