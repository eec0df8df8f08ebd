//! From a file id to the object: one flat file an epoch, an entry at the place of
//! the id's counter.
//!
//! ```text
//! state/index/EPOCH    EPOCH: eight hexadecimal digits
//!   0  8   "twinindx"
//!   8  2   version, 1
//!  10  2   0
//!  12  4   the epoch
//!  16 12   0
//!  28  4   CRC-32C of the 28 bytes before
//!   entry i at byte 32 * (i + 1), all zeros: no such object
//!     0  u8   bytes of the handle
//!     1  u8   0
//!     2  u16  low half of the CRC-32C of the object's id and this entry with zeros here
//!     4  i32  type of the handle
//!     8  24   the handle (`name_to_handle_at(2)`), zeros behind it
//! state/index/rebuild  there while the index is made anew, empty
//! ```
//!
//! All numbers little endian. A file is sparse and read through the page cache, so that
//! a million objects cost the driver no memory of its own. It is not synced with each
//! change: after a crash the entries of directories that were being changed are made
//! anew from the objects' own ids ([`super::Store::repair_directory`]), and an entry that
//! leads astray is noticed, because the object says its id itself. What is missing,
//! damaged or newer is made anew from the whole tree ([`super::Store::rebuild_index`]);
//! so the directory `index` may be removed while the driver is stopped.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::RwLock;
use twinfold_protocol::ids::{Epoch, FileId};

use super::sys::Handle;

const MAGIC: &[u8; 8] = b"twinindx";
const VERSION: u16 = 1;

/// Bytes of an entry, and of the head of a file.
const ENTRY: usize = 32;

/// The file that says that the index is not whole.
const REBUILD: &str = "rebuild";

/// The index of one store.
#[derive(Debug)]
pub(crate) struct Index {
    directory: PathBuf,
    epochs: RwLock<HashMap<Epoch, Arc<File>>>,
}

impl Index {
    /// Opens the index; the second value tells why it has to be made anew, if it has.
    pub(super) fn open(directory: &Path) -> io::Result<(Index, Option<String>)> {
        let index = Index {
            directory: directory.to_owned(),
            epochs: RwLock::default(),
        };
        let mut strange = (!directory.exists()).then(|| "it is missing".to_owned());
        crate::state::private_directory(directory)?;
        let mut count = 0;
        for entry in std::fs::read_dir(directory)? {
            let entry = entry?;
            let name = entry.file_name();
            if name == REBUILD {
                strange.get_or_insert_with(|| "it was being made anew".into());
                continue;
            }
            count += 1;
            let epoch = name.to_str().and_then(|n| u32::from_str_radix(n, 16).ok());
            let why = match epoch {
                Some(epoch) => look(&entry.path(), Epoch(epoch))?,
                None => Some("its name is none of ours".into()),
            };
            if let Some(why) = why {
                strange = Some(format!("{}: {why}", entry.path().display()));
                // From here on the index is known not to be whole.
                index.begin_rebuild()?;
                std::fs::remove_file(entry.path())?;
            }
        }
        if count == 0 {
            strange.get_or_insert_with(|| "it has no file".into());
        }
        Ok((index, strange))
    }

    /// From here until [`Index::end_rebuild`] the index is not whole, durably.
    pub(super) fn begin_rebuild(&self) -> io::Result<()> {
        crate::state::private()
            .write(true)
            .create(true)
            .truncate(true)
            .open(self.directory.join(REBUILD))?
            .sync_all()?;
        crate::state::sync_directory(&self.directory)
    }

    /// Everything is in the index again.
    pub(super) fn end_rebuild(&self) -> io::Result<()> {
        self.sync()?;
        crate::state::sync_directory(&self.directory)?;
        std::fs::remove_file(self.directory.join(REBUILD))?;
        crate::state::sync_directory(&self.directory)
    }

    fn epoch(&self, epoch: Epoch, create: bool) -> io::Result<Option<Arc<File>>> {
        if let Some(file) = self.epochs.read().get(&epoch) {
            return Ok(Some(file.clone()));
        }
        let mut epochs = self.epochs.write();
        if let Some(file) = epochs.get(&epoch) {
            return Ok(Some(file.clone()));
        }
        let path = self.directory.join(format!("{:08x}", epoch.0));
        let mut options = crate::state::private();
        let opened = options.read(true).write(true).create(create).open(path);
        match opened {
            Ok(file) => {
                // The head is on the disk before any entry may be.
                if create && file.metadata()?.len() < ENTRY as u64 {
                    file.write_all_at(&head(epoch), 0)?;
                    file.sync_all()?;
                    crate::state::sync_directory(&self.directory)?;
                }
                let file = Arc::new(file);
                epochs.insert(epoch, file.clone());
                Ok(Some(file))
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Where the object is, if it is known. `InvalidData`: the entry is damaged.
    pub(super) fn get(&self, file: FileId) -> io::Result<Option<Handle>> {
        let Some(epoch) = self.epoch(file.epoch(), false)? else {
            return Ok(None);
        };
        let mut entry = [0; ENTRY];
        let mut at = place(file);
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
        decode(file, &entry)
    }

    /// Notes where the object is.
    pub(super) fn put(&self, file: FileId, handle: &Handle) -> io::Result<()> {
        let mut entry = [0; ENTRY];
        entry[0] = handle.len;
        entry[4..8].copy_from_slice(&handle.kind.to_le_bytes());
        entry[8..].copy_from_slice(&handle.data);
        let crc = checksum(file, &entry).to_le_bytes();
        entry[2..4].copy_from_slice(&crc);
        self.write(file, &entry)
    }

    fn write(&self, file: FileId, entry: &[u8; ENTRY]) -> io::Result<()> {
        let Some(epoch) = self.epoch(file.epoch(), true)? else {
            return Err(io::ErrorKind::NotFound.into());
        };
        epoch.write_all_at(entry, place(file))
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
                let n = file.read_at(&mut buffer, (counter + 1) * ENTRY as u64)?;
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
            match self.get(file) {
                Ok(None) => {}
                // A damaged one is found, or not, by whoever asks for the object.
                Ok(Some(_)) => found.push(file),
                Err(e) if e.kind() == io::ErrorKind::InvalidData => found.push(file),
                Err(e) => return Err(e),
            }
        }
        Ok(found)
    }
}

fn place(file: FileId) -> u64 {
    (file.counter() + 1) * ENTRY as u64
}

fn head(epoch: Epoch) -> [u8; ENTRY] {
    let mut head = [0; ENTRY];
    head[..8].copy_from_slice(MAGIC);
    head[8..10].copy_from_slice(&VERSION.to_le_bytes());
    head[12..16].copy_from_slice(&epoch.0.to_le_bytes());
    let crc = crc32c::crc32c(&head[..28]);
    head[28..].copy_from_slice(&crc.to_le_bytes());
    head
}

/// What is wrong with the head of a file, if anything is.
fn look(path: &Path, epoch: Epoch) -> io::Result<Option<String>> {
    let file = File::open(path)?;
    let mut found = [0; ENTRY];
    let size = file.metadata()?.len();
    if size >= ENTRY as u64 {
        file.read_exact_at(&mut found, 0)?;
    }
    if found == head(epoch) {
        return Ok(None);
    }
    if found == [0; ENTRY] && size <= ENTRY as u64 {
        // A crash while it was made.
        std::fs::remove_file(path)?;
        return Ok(None);
    }
    let version = u16::from_le_bytes([found[8], found[9]]);
    Ok(Some(match found.starts_with(MAGIC) && version != VERSION {
        true => format!("it has version {version}, this build reads version {VERSION}"),
        false => "its head is damaged".into(),
    }))
}

fn checksum(file: FileId, entry: &[u8; ENTRY]) -> u16 {
    let mut bytes = [0; 8 + ENTRY];
    bytes[..8].copy_from_slice(&file.0.to_le_bytes());
    bytes[8..].copy_from_slice(entry);
    bytes[10..12].fill(0);
    crc32c::crc32c(&bytes) as u16
}

fn decode(file: FileId, entry: &[u8; ENTRY]) -> io::Result<Option<Handle>> {
    if *entry == [0; ENTRY] {
        return Ok(None);
    }
    let len = entry[0];
    let sound = u16::from_le_bytes([entry[2], entry[3]]) == checksum(file, entry);
    if !sound || len == 0 || usize::from(len) > Handle::MAX {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("the index entry of {file} is damaged"),
        ));
    }
    let mut kind = [0; 4];
    kind.copy_from_slice(&entry[4..8]);
    let mut data = [0; Handle::MAX];
    data.copy_from_slice(&entry[8..]);
    Ok(Some(Handle {
        kind: i32::from_le_bytes(kind),
        len,
        data,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn handle() -> Handle {
        let mut data = [0; Handle::MAX];
        data[..8].copy_from_slice(b"abcdefgh");
        Handle {
            kind: 1,
            len: 8,
            data,
        }
    }

    #[test]
    fn entries_come_back_and_go() {
        let dir = tempfile::tempdir().unwrap();
        let (index, _) = Index::open(dir.path()).unwrap();
        let file = FileId::new(Epoch(3), 1_000_000);
        assert_eq!(index.get(file).unwrap(), None);
        index.put(file, &handle()).unwrap();
        let (again, strange) = Index::open(dir.path()).unwrap();
        assert_eq!(strange, None);
        assert_eq!(again.get(file).unwrap(), Some(handle()));
        let first = FileId::new(Epoch(3), 999_998);
        assert_eq!(again.present(first, 4).unwrap(), [file]);
        assert_eq!(again.after(None).unwrap(), [file]);
        assert_eq!(again.after(Some(first)).unwrap(), [file]);
        assert_eq!(again.after(Some(file)).unwrap(), []);
        let later = FileId::new(Epoch(4), 5000);
        again.put(later, &handle()).unwrap();
        assert_eq!(again.after(Some(file)).unwrap(), [later]);
        again.remove(file);
        assert_eq!(index.get(file).unwrap(), None);
    }

    #[test]
    fn the_bytes_of_a_file() {
        assert_eq!(crate::state::documented_version("index/EPOCH"), VERSION);
        let dir = tempfile::tempdir().unwrap();
        let (index, _) = Index::open(dir.path()).unwrap();
        let file = FileId::new(Epoch(0x0201), 1);
        index.put(file, &handle()).unwrap();
        let bytes = std::fs::read(dir.path().join("00000201")).unwrap();
        let head = [&b"twinindx"[..], &[1, 0, 0, 0, 1, 2, 0, 0], &[0; 12]].concat();
        assert_eq!(bytes[..28], head);
        assert_eq!(bytes[28..32], crc32c::crc32c(&head).to_le_bytes());
        assert_eq!(bytes[32..64], [0; 32], "number 0 is not there");
        let entry = [&[8, 0, 0, 0, 1, 0, 0, 0][..], b"abcdefgh", &[0; 16]].concat();
        let crc = crc32c::crc32c(&[&[1, 0, 0, 0, 0, 1, 2, 0][..], &entry].concat()).to_le_bytes();
        assert_eq!(bytes[64..66], entry[..2]);
        assert_eq!(bytes[66..68], crc[..2]);
        assert_eq!(bytes[68..], entry[4..]);
    }

    #[test]
    fn a_damaged_entry_or_one_of_another_object_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let (index, _) = Index::open(dir.path()).unwrap();
        let file = FileId::new(Epoch(2), 0);
        index.put(file, &handle()).unwrap();
        let path = dir.path().join("00000002");
        let good = std::fs::read(&path).unwrap();
        for at in ENTRY..2 * ENTRY {
            let mut bad = good.clone();
            bad[at] ^= 4;
            std::fs::write(&path, &bad).unwrap();
            let error = index.get(file).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "byte {at}");
        }
        std::fs::write(&path, [&good[..], &good[ENTRY..]].concat()).unwrap();
        assert!(index.get(file).is_ok());
        assert!(
            index.get(FileId::new(Epoch(2), 1)).is_err(),
            "not its entry"
        );
    }

    #[test]
    fn an_index_that_is_missing_damaged_newer_or_half_made_is_to_be_made_anew() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("index");
        let strange = || Index::open(&place).unwrap().1.unwrap_or_default();
        assert!(strange().contains("missing"));
        assert!(strange().contains("no file"));
        let fill = || {
            let (index, _) = Index::open(&place).unwrap();
            index.put(FileId::new(Epoch(2), 0), &handle()).unwrap();
        };
        fill();
        assert_eq!(strange(), "");
        let path = place.join("00000002");
        let good = std::fs::read(&path).unwrap();
        for (at, why) in [
            (0, "damaged"),
            (8, "version"),
            (12, "damaged"),
            (30, "damaged"),
        ] {
            let mut bad = good.clone();
            bad[at] ^= 2;
            std::fs::write(&path, &bad).unwrap();
            assert!(strange().contains(why), "byte {at}");
            assert!(strange().contains("being made anew"), "it was not yet");
            fill();
            Index::open(&place).unwrap().0.end_rebuild().unwrap();
            assert_eq!(strange(), "");
        }
        // A crash while the file was made: nothing was in it.
        std::fs::write(place.join("00000004"), [0; ENTRY]).unwrap();
        assert_eq!(strange(), "");
    }
}
