//! The history of this node's copy: `state/copy`, two slots of 4 KiB that are
//! written in turn. A crash in the middle of a change leaves the other slot; a full
//! file system cannot stop a change, for nothing is allocated.
//!
//! ```text
//! slot i at byte 4096 * i; the sound one with the higher number holds
//!   0  8   "twinfold"
//!   8  2   version, 6
//!  10  8   number of the change
//!  18  4   bytes of the body
//!  22  n   body
//!   22+n 4 CRC-32C of everything before
//!
//! body   16  module id                16  current generation
//!         4  count, 16 each: bases     4  count, 16 each: history
//!         1  up to date: nothing is acknowledged that is not here, and its primary has not
//!            found that it differs
//!         4  highest epoch of file ids seen
//!         1  last role: 0 none, 1 primary, 2 secondary
//!         1  paired: the peer was up to date and its vote counted
//!         1  clean: the driver stopped in order
//!        16  boot id of the operating system during the last run
//!         1  given up by its operator
//!         1  made the good one by force, and not followed by the other one since
//!         1  up to date until a power cut, which may have taken what was not synced
//!         1  up to date until it gave way to the peer's, and as it was then
//!         1  kept in an archive: 0 no, 1 its changes, 2 all of it, 3 the operator does without
//!         8  when it last went on without its peer, in seconds since 1970, or 0
//!         8  number of the saved marks in force (`state/marks`)
//! ```
//!
//! All numbers little endian. A file that is damaged or of another version is
//! never guessed at: the node does not start with it.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use anyhow::{Context, Result, bail};
use parking_lot::Mutex;
use twinfold_protocol::handshake::{CopyState, Role};
use twinfold_protocol::ids::{Epoch, Generation, ModuleId};
use twinfold_protocol::lifecycle::{Archived, Record};
use twinfold_protocol::limits;

use crate::bell::Bell;

const MAGIC: &[u8; 8] = b"twinfold";
const VERSION: u16 = 6;

/// Bytes of a slot: one sector of any disk holds no more than one.
const SLOT: usize = 4096;

/// The file, and its contents in memory.
#[derive(Debug)]
pub struct CopyFile {
    /// Held while it is changed, for as long as the disk takes.
    inner: Mutex<Inner>,
    /// What the file holds: whoever looks does not wait for a disk that hangs.
    record: Mutex<Record>,
    /// Rings when that has changed, if somebody wants to know.
    changes: OnceLock<Arc<Bell>>,
}

#[derive(Debug)]
struct Inner {
    file: File,
    number: u64,
}

impl CopyFile {
    /// Writes a new file.
    pub fn create(state: &Path, record: Record) -> io::Result<CopyFile> {
        let file = super::private()
            .read(true)
            .write(true)
            .create_new(true)
            .open(state.join("copy"))?;
        // Both slots: the space of the second one is taken now.
        file.write_all_at(&slot(&record, 1), SLOT as u64)?;
        file.write_all_at(&slot(&record, 2), 0)?;
        file.sync_all()?;
        super::sync_directory(state)?;
        Ok(CopyFile {
            inner: Mutex::new(Inner { file, number: 2 }),
            record: Mutex::new(record),
            changes: OnceLock::new(),
        })
    }

    /// Reads the file.
    pub fn open(state: &Path) -> Result<CopyFile> {
        let path = state.join("copy");
        let read = || {
            let file = File::options().read(true).write(true).open(&path)?;
            // A run that was killed in the middle of a change may have left one that is not
            // on the disk. Others are told what is read here, and act on it.
            file.sync_data()?;
            let mut bytes = Vec::new();
            (&file).read_to_end(&mut bytes)?;
            io::Result::Ok((file, bytes))
        };
        let (file, bytes) = read().with_context(|| format!("cannot read {}", path.display()))?;
        let slots = [bytes.get(..SLOT), bytes.get(SLOT..)].map(|s| decode(s.unwrap_or_default()));
        let found = match slots {
            [Ok(a), Ok(b)] => Ok(if a.0 > b.0 { a } else { b }),
            [Ok(one), Err(_)] | [Err(_), Ok(one)] => Ok(one),
            [Err(e), Err(_)] => Err(e),
        };
        let (number, record) = found.with_context(|| {
            format!(
                "{} cannot be used; what this copy is worth is not known any more. If the peer's \
                 copy is good, start this one with `secondary --history-unknown`: it is compared \
                 with the peer's and becomes what the peer has",
                path.display()
            )
        })?;
        Ok(CopyFile {
            inner: Mutex::new(Inner { file, number }),
            record: Mutex::new(record),
            changes: OnceLock::new(),
        })
    }

    /// Writes a new file for a copy whose history cannot be read; what could not be read is
    /// kept beside it. Fails if it can be read.
    pub(super) fn begin_anew(state: &Path) -> Result<CopyFile> {
        let path = state.join("copy");
        match CopyFile::open(state) {
            Ok(_) => bail!(
                "{} can be read: start without --history-unknown",
                path.display()
            ),
            Err(error) => tracing::error!(
                error = format!("{error:#}"),
                "this copy is compared with its peer's as a whole"
            ),
        }
        match std::fs::rename(&path, state.join("copy.damaged")) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                return Err(e).with_context(|| format!("cannot rename {}", path.display()));
            }
            _ => {}
        }
        // Ids of this epoch may have been given out here.
        let epoch = newest_epoch(&state.join("index"));
        CopyFile::create(state, Record::history_unknown(epoch))
            .with_context(|| format!("cannot write {}", path.display()))
    }

    /// `changes` rings from now on when what the file holds has changed.
    pub(crate) fn rings(&self, changes: &Arc<Bell>) {
        // There is one, for the file's lifetime.
        let _ = self.changes.set(changes.clone());
    }

    /// What the file holds.
    pub fn get(&self) -> Record {
        self.record.lock().clone()
    }

    /// Changes the file durably; on an error the memory is as it was, and the
    /// caller fences the node (invariant 17).
    pub fn update(&self, change: impl FnOnce(&mut Record)) -> io::Result<()> {
        let mut inner = self.inner.lock();
        let before = self.get();
        let mut next = before.clone();
        change(&mut next);
        if next != before {
            let number = inner.number + 1;
            let at = (number % 2) * SLOT as u64;
            inner.file.write_all_at(&slot(&next, number), at)?;
            inner.file.sync_data()?;
            inner.number = number;
            *self.record.lock() = next;
            if let Some(changes) = self.changes.get() {
                changes.ring();
            }
        }
        Ok(())
    }
}

/// The highest epoch of which there are ids here.
fn newest_epoch(index: &Path) -> Epoch {
    let names = std::fs::read_dir(index).into_iter().flatten().flatten();
    let epochs = names.filter_map(|e| u32::from_str_radix(e.file_name().to_str()?, 16).ok());
    Epoch(epochs.filter(|e| *e <= Epoch::MAX.0).max().unwrap_or(0))
}

/// The operating system's boot id (`random(4)`).
pub(crate) fn boot_id() -> u128 {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    u128::from_str_radix(&text.trim().replace('-', ""), 16).unwrap_or(0)
}

fn slot(record: &Record, number: u64) -> Vec<u8> {
    let mut body = Vec::with_capacity(256);
    body.extend_from_slice(&record.copy.module.0.to_le_bytes());
    body.extend_from_slice(&record.copy.current.0.to_le_bytes());
    for list in [&record.copy.bases, &record.copy.history] {
        let list = &list[..list.len().min(limits::MAX_HISTORY)];
        body.extend_from_slice(&(list.len() as u32).to_le_bytes());
        for generation in list {
            body.extend_from_slice(&generation.0.to_le_bytes());
        }
    }
    body.push(record.copy.up_to_date.into());
    body.extend_from_slice(&record.epoch.0.to_le_bytes());
    body.push(match record.role {
        None => 0,
        Some(Role::Primary) => 1,
        Some(Role::Secondary) => 2,
    });
    body.push(record.paired.into());
    body.push(record.clean.into());
    body.extend_from_slice(&record.boot.to_le_bytes());
    body.push(record.copy.given_up.into());
    body.push(record.copy.forced.into());
    body.push(record.copy.cut.into());
    body.push(record.copy.gave_way.into());
    body.push(match record.archived {
        Archived::No => 0,
        Archived::Changes => 1,
        Archived::Everything => 2,
        Archived::Waived => 3,
    });
    body.extend_from_slice(&record.alone_since.to_le_bytes());
    body.extend_from_slice(&record.marks.to_le_bytes());

    let mut slot = Vec::with_capacity(SLOT);
    slot.extend_from_slice(MAGIC);
    slot.extend_from_slice(&VERSION.to_le_bytes());
    slot.extend_from_slice(&number.to_le_bytes());
    slot.extend_from_slice(&(body.len() as u32).to_le_bytes());
    slot.extend_from_slice(&body);
    let crc = crc32c::crc32c(&slot);
    slot.extend_from_slice(&crc.to_le_bytes());
    assert!(slot.len() <= SLOT, "the lists in a record are bounded");
    slot.resize(SLOT, 0);
    slot
}

struct Bytes<'a>(&'a [u8]);

impl Bytes<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N]> {
        let Some((head, rest)) = self.0.split_first_chunk::<N>() else {
            bail!("the file ends too early");
        };
        self.0 = rest;
        Ok(*head)
    }

    fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(self.take()?))
    }

    fn u128(&mut self) -> Result<u128> {
        Ok(u128::from_le_bytes(self.take()?))
    }

    fn bool(&mut self) -> Result<bool> {
        match self.take::<1>()? {
            [0] => Ok(false),
            [1] => Ok(true),
            [v] => bail!("a truth value is {v}"),
        }
    }

    fn generations(&mut self) -> Result<Vec<Generation>> {
        let count = self.u32()? as usize;
        if count > limits::MAX_HISTORY {
            bail!("a list has {count} generations");
        }
        (0..count).map(|_| Ok(Generation(self.u128()?))).collect()
    }
}

fn decode(slot: &[u8]) -> Result<(u64, Record)> {
    if !slot.starts_with(MAGIC) {
        bail!("it is not a file of twinfold");
    }
    let mut bytes = Bytes(&slot[MAGIC.len()..]);
    let version = u16::from_le_bytes(bytes.take()?);
    if version != VERSION {
        bail!("it has version {version}, this build reads version {VERSION}");
    }
    let number = u64::from_le_bytes(bytes.take()?);
    let length = bytes.u32()? as usize;
    let end = MAGIC.len() + 14 + length;
    let Some((content, rest)) = slot.split_at_checked(end) else {
        bail!("its length is wrong");
    };
    if rest.get(..4) != Some(&crc32c::crc32c(content).to_le_bytes()[..]) {
        bail!("it is damaged (its checksum is wrong)");
    }
    let mut bytes = Bytes(&content[MAGIC.len() + 14..]);
    let record = decode_body(&mut bytes)?;
    if !bytes.0.is_empty() {
        bail!("its length is wrong");
    }
    Ok((number, record))
}

fn decode_body(bytes: &mut Bytes<'_>) -> Result<Record> {
    let mut record = Record {
        copy: CopyState {
            module: ModuleId(bytes.u128()?),
            current: Generation(bytes.u128()?),
            bases: bytes.generations()?,
            history: bytes.generations()?,
            up_to_date: bytes.bool()?,
            cut: false,
            gave_way: false,
            given_up: false,
            forced: false,
        },
        epoch: Epoch(bytes.u32()?),
        role: match bytes.take::<1>()? {
            [0] => None,
            [1] => Some(Role::Primary),
            [2] => Some(Role::Secondary),
            [v] => bail!("unknown role {v}"),
        },
        paired: bytes.bool()?,
        clean: bytes.bool()?,
        boot: bytes.u128()?,
        alone_since: 0,
        marks: 0,
        archived: Archived::No,
    };
    record.copy.given_up = bytes.bool()?;
    record.copy.forced = bytes.bool()?;
    record.copy.cut = bytes.bool()?;
    record.copy.gave_way = bytes.bool()?;
    record.archived = match bytes.take::<1>()? {
        [0] => Archived::No,
        [1] => Archived::Changes,
        [2] => Archived::Everything,
        [3] => Archived::Waived,
        [v] => bail!("unknown state of the archive {v}"),
    };
    record.alone_since = u64::from_le_bytes(bytes.take()?);
    record.marks = u64::from_le_bytes(bytes.take()?);
    Ok(record)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        Record {
            copy: CopyState {
                module: ModuleId(7),
                current: Generation(1 << 100),
                bases: vec![Generation(3)],
                history: vec![Generation(3), Generation(2)],
                up_to_date: true,
                cut: false,
                gave_way: true,
                given_up: true,
                forced: true,
            },
            epoch: Epoch(12),
            role: Some(Role::Primary),
            paired: true,
            clean: false,
            boot: 99,
            alone_since: 1234,
            marks: 5,
            archived: Archived::Changes,
        }
    }

    #[test]
    fn the_bytes_of_the_file() {
        assert_eq!(crate::state::documented_version("copy"), VERSION);
        let dir = tempfile::tempdir().unwrap();
        drop(CopyFile::create(dir.path(), record()).unwrap());
        let bytes = std::fs::read(dir.path().join("copy")).unwrap();
        assert_eq!(bytes.len(), 2 * SLOT);
        let wide = |n: u8| [&[n][..], &[0; 15]].concat();
        let body = [
            &wide(7)[..],
            &[&[0; 12][..], &[16, 0, 0, 0]].concat(),
            &[1, 0, 0, 0],
            &wide(3),
            &[2, 0, 0, 0],
            &wide(3),
            &wide(2),
            &[1, 12, 0, 0, 0, 1, 1, 0],
            &wide(99),
            &[1, 1, 0, 1, 1],
            &[0xd2, 4, 0, 0, 0, 0, 0, 0],
            &[5, 0, 0, 0, 0, 0, 0, 0],
        ]
        .concat();
        for (at, number) in [(0, 2), (SLOT, 1)] {
            let head = [
                &b"twinfold"[..],
                &[6, 0],
                &[number, 0, 0, 0, 0, 0, 0, 0],
                &(body.len() as u32).to_le_bytes(),
                &body,
            ]
            .concat();
            assert_eq!(bytes[at..at + head.len()], head, "slot at {at}");
            let crc = crc32c::crc32c(&head).to_le_bytes();
            assert_eq!(bytes[at + head.len()..at + head.len() + 4], crc);
            assert!(
                bytes[at + head.len() + 4..at + SLOT]
                    .iter()
                    .all(|b| *b == 0)
            );
        }
    }

    #[test]
    fn whoever_looks_does_not_wait_for_a_change_that_hangs() {
        let dir = tempfile::tempdir().unwrap();
        let file = std::sync::Arc::new(CopyFile::create(dir.path(), record()).unwrap());
        let (looker, looked) = (file.clone(), std::sync::mpsc::channel());
        file.update(|r| {
            std::thread::spawn(move || drop(looked.0.send(looker.get())));
            let seen = looked.1.recv_timeout(std::time::Duration::from_secs(30));
            assert_eq!(seen, Ok(record()));
            r.paired = false;
        })
        .unwrap();
        assert!(!file.get().paired);
    }

    #[test]
    fn a_history_that_cannot_be_read_begins_anew_and_what_was_there_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        drop(CopyFile::create(dir.path(), record()).unwrap());
        assert!(CopyFile::begin_anew(dir.path()).is_err(), "it can be read");
        std::fs::write(dir.path().join("copy"), b"?").unwrap();
        std::fs::create_dir(dir.path().join("index")).unwrap();
        for epoch in ["00000004", "0000002a", "rebuild"] {
            std::fs::write(dir.path().join("index").join(epoch), b"").unwrap();
        }
        let anew = CopyFile::begin_anew(dir.path()).unwrap().get();
        assert_eq!(anew, Record::history_unknown(Epoch(42)));
        assert!(anew.objection(0).is_some());
        assert_eq!(
            std::fs::read(dir.path().join("copy.damaged")).unwrap(),
            b"?"
        );
        assert_eq!(CopyFile::open(dir.path()).unwrap().get(), anew);
    }

    #[test]
    fn a_torn_change_leaves_the_one_before_and_two_damaged_slots_are_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let file = CopyFile::create(dir.path(), record()).unwrap();
        file.update(|r| r.paired = false).unwrap();
        file.update(|r| r.epoch = Epoch(13)).unwrap();
        let last = file.get();
        drop(file);
        assert_eq!(CopyFile::open(dir.path()).unwrap().get(), last);

        let path = dir.path().join("copy");
        let good = std::fs::read(&path).unwrap();
        // The change before the last one set `paired`, the last one the epoch.
        let mut before = record();
        before.paired = false;
        let used = slot(&last, 4).iter().rposition(|b| *b != 0).unwrap();
        for at in 0..used {
            let mut torn = good.clone();
            torn[at] ^= 0x40;
            std::fs::write(&path, &torn).unwrap();
            assert_eq!(CopyFile::open(dir.path()).unwrap().get(), before, "{at}");
            torn[SLOT + at] ^= 0x40;
            std::fs::write(&path, &torn).unwrap();
            assert!(CopyFile::open(dir.path()).is_err(), "byte {at} of both");
        }
        for len in 0..SLOT {
            std::fs::write(&path, &good[..len]).unwrap();
            assert!(CopyFile::open(dir.path()).is_err(), "{len} bytes");
        }
    }
}
