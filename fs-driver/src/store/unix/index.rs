//! From a file id to the object: one flat file an epoch, an entry at the place of
//! the id's counter.
//!
//! ```text
//! state/index/EPOCH    EPOCH: eight hexadecimal digits
//!   entry i at byte 32 * i:
//!     0  u8   bytes of the handle, 0: no such object
//!     1  u8   reserved, 0
//!     2  u16  reserved, 0
//!     4  i32  type of the handle, little endian
//!     8  24   the handle (`name_to_handle_at(2)`), zeros behind it
//! ```
//!
//! The file is sparse and read through the page cache, so that a million objects
//! cost the driver no memory of its own. It is not synced with each change: after a
//! crash the entries of directories that were being changed are made anew from the
//! objects' own ids ([`super::Store::repair_directory`]), and an entry that leads
//! astray is noticed, because the object says its id itself.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::RwLock;
use twinfold_protocol::ids::{Epoch, FileId};

use super::sys::Handle;

const ENTRY: usize = 32;

/// The index of one store.
#[derive(Debug)]
pub(crate) struct Index {
    directory: PathBuf,
    epochs: RwLock<HashMap<Epoch, Arc<File>>>,
}

impl Index {
    pub(super) fn open(directory: &Path) -> io::Result<Index> {
        crate::state::private_directory(directory)?;
        Ok(Index {
            directory: directory.to_owned(),
            epochs: RwLock::default(),
        })
    }

    fn epoch(&self, epoch: Epoch, create: bool) -> io::Result<Option<Arc<File>>> {
        if let Some(file) = self.epochs.read().get(&epoch) {
            return Ok(Some(file.clone()));
        }
        let path = self.directory.join(format!("{:08x}", epoch.0));
        let opened = crate::state::private()
            .read(true)
            .write(true)
            .create(create)
            .truncate(false)
            .open(path);
        match opened {
            Ok(file) => {
                let file = Arc::new(file);
                self.epochs.write().insert(epoch, file.clone());
                Ok(Some(file))
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Where the object is, if it is known.
    pub(super) fn get(&self, file: FileId) -> io::Result<Option<Handle>> {
        let Some(epoch) = self.epoch(file.epoch(), false)? else {
            return Ok(None);
        };
        let mut entry = [0; ENTRY];
        let mut at = file.counter() * ENTRY as u64;
        let mut filled = 0;
        while filled < ENTRY {
            match epoch.read_at(&mut entry[filled..], at)? {
                0 => return Ok(None),
                n => {
                    filled += n;
                    at += n as u64;
                }
            }
        }
        Ok(decode(&entry))
    }

    /// Notes where the object is.
    pub(super) fn put(&self, file: FileId, handle: &Handle) -> io::Result<()> {
        let mut entry = [0; ENTRY];
        entry[0] = handle.len;
        entry[4..8].copy_from_slice(&handle.kind.to_le_bytes());
        entry[8..].copy_from_slice(&handle.data);
        self.write(file, &entry)
    }

    fn write(&self, file: FileId, entry: &[u8; ENTRY]) -> io::Result<()> {
        let Some(epoch) = self.epoch(file.epoch(), true)? else {
            return Err(io::ErrorKind::NotFound.into());
        };
        epoch.write_all_at(entry, file.counter() * ENTRY as u64)
    }

    /// Notes that the object is gone. An entry that stays behind leads nowhere, so
    /// a failure is no error.
    pub(super) fn remove(&self, file: FileId) {
        if let Err(e) = self.write(file, &[0; ENTRY]) {
            tracing::debug!(%file, error = %e, "an index entry could not be cleared");
        }
    }

    pub(super) fn sync(&self) -> io::Result<()> {
        let files: Vec<_> = self.epochs.read().values().cloned().collect();
        files.iter().try_for_each(|f| f.sync_data())
    }

    /// The next ids behind `after` that have an entry, in order, of one stretch of one epoch
    /// at a time. Empty when there are no more.
    pub(super) fn after(&self, after: Option<FileId>) -> io::Result<Vec<FileId>> {
        /// Entries read at once.
        const STRETCH: usize = 4096;
        let mut epochs = Vec::new();
        for entry in std::fs::read_dir(&self.directory)? {
            let name = entry?.file_name();
            let epoch = name.to_str().map(|n| u32::from_str_radix(n, 16));
            if let Some(Ok(epoch)) = epoch {
                epochs.push(Epoch(epoch));
            }
        }
        epochs.sort_unstable();
        let mut buffer = vec![0; STRETCH * ENTRY];
        for epoch in epochs {
            let mut counter = match after {
                Some(after) if after.epoch() > epoch => continue,
                Some(after) if after.epoch() == epoch => after.counter() + 1,
                _ => 0,
            };
            let Some(file) = self.epoch(epoch, false)? else {
                continue;
            };
            loop {
                let n = file.read_at(&mut buffer, counter * ENTRY as u64)?;
                if n < ENTRY {
                    break;
                }
                let entries = buffer[..n].chunks_exact(ENTRY);
                let found: Vec<_> = (counter..)
                    .zip(entries)
                    .filter(|(_, entry)| entry[0] != 0)
                    .map(|(counter, _)| FileId::new(epoch, counter))
                    .collect();
                if !found.is_empty() {
                    return Ok(found);
                }
                counter += (n / ENTRY) as u64;
            }
        }
        Ok(Vec::new())
    }

    /// The ids in `first .. first + count` that have an entry.
    pub(crate) fn present(&self, first: FileId, count: u64) -> io::Result<Vec<FileId>> {
        let mut found = Vec::new();
        for counter in first.counter()..first.counter() + count {
            let file = FileId::new(first.epoch(), counter);
            if self.get(file)?.is_some() {
                found.push(file);
            }
        }
        Ok(found)
    }
}

fn decode(entry: &[u8; ENTRY]) -> Option<Handle> {
    let len = entry[0];
    if len == 0 || usize::from(len) > Handle::MAX {
        return None;
    }
    let mut kind = [0; 4];
    kind.copy_from_slice(&entry[4..8]);
    let mut data = [0; Handle::MAX];
    data.copy_from_slice(&entry[8..]);
    Some(Handle {
        kind: i32::from_le_bytes(kind),
        len,
        data,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_come_back_and_go() {
        let dir = tempfile::tempdir().unwrap();
        let index = Index::open(dir.path()).unwrap();
        let file = FileId::new(Epoch(3), 1_000_000);
        assert_eq!(index.get(file).unwrap(), None);
        let mut data = [0; Handle::MAX];
        data[..8].copy_from_slice(b"abcdefgh");
        let handle = Handle {
            kind: 1,
            len: 8,
            data,
        };
        index.put(file, &handle).unwrap();
        let again = Index::open(dir.path()).unwrap();
        assert_eq!(again.get(file).unwrap(), Some(handle));
        let first = FileId::new(Epoch(3), 999_998);
        assert_eq!(again.present(first, 4).unwrap(), [file]);
        assert_eq!(again.after(None).unwrap(), [file]);
        assert_eq!(again.after(Some(first)).unwrap(), [file]);
        assert_eq!(again.after(Some(file)).unwrap(), []);
        let later = FileId::new(Epoch(4), 5000);
        again.put(later, &handle).unwrap();
        assert_eq!(again.after(Some(file)).unwrap(), [later]);
        again.remove(file);
        assert_eq!(index.get(file).unwrap(), None);
    }
}
