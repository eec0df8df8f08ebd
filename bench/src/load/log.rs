//! A log of lines: appended, flushed now and then.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};

use super::Worker;

/// Bytes of a line.
const LINE: usize = 200;

/// Lines between two flushes.
const FLUSH: u64 = 100;

/// One step is one line.
pub(super) struct Appender {
    file: File,
    line: Vec<u8>,
    count: u64,
}

impl Appender {
    pub(super) fn new(directory: &Path, n: usize) -> Result<Appender> {
        let path = directory.join(format!("log-{n}.txt"));
        let file = OpenOptions::new()
            .append(true)
            .create(true)
            .open(&path)
            .with_context(|| format!("cannot open {}", path.display()))?;
        // Each measurement begins a new log, as if the last one had been rotated away.
        file.set_len(0)?;
        let mut line = vec![b'x'; LINE];
        line[LINE - 1] = b'\n';
        Ok(Appender {
            file,
            line,
            count: 0,
        })
    }
}

impl Worker for Appender {
    fn step(&mut self) -> Result<u64> {
        self.file.write_all(&self.line)?;
        self.count += 1;
        if self.count.is_multiple_of(FLUSH) {
            self.file.sync_data()?;
        }
        Ok(LINE as u64)
    }
}
