//! Storms of small files: create, write, close, perhaps rename, unlink.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Result;

use super::Worker;

/// Bytes of each file.
const BYTES: usize = 4096;

/// One step is one file, from its creation to its removal.
pub(super) struct Storm {
    directory: PathBuf,
    n: usize,
    rename: bool,
    count: u64,
    content: Vec<u8>,
}

impl Storm {
    pub(super) fn new(directory: &Path, n: usize, rename: bool) -> Storm {
        Storm {
            directory: directory.to_owned(),
            n,
            rename,
            count: 0,
            content: vec![n as u8; BYTES],
        }
    }
}

impl Worker for Storm {
    fn step(&mut self) -> Result<u64> {
        let path = |kind: &str| {
            self.directory
                .join(format!("{kind}-{}-{}", self.n, self.count))
        };
        let first = path("new");
        let mut file = File::create_new(&first)?;
        file.write_all(&self.content)?;
        drop(file);
        match self.rename {
            true => {
                let second = path("named");
                std::fs::rename(&first, &second)?;
                std::fs::remove_file(&second)?;
            }
            false => std::fs::remove_file(&first)?,
        }
        self.count += 1;
        Ok(BYTES as u64)
    }
}
