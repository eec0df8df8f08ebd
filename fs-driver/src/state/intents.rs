//! The intent log: durable notes, made before a node changes its own copy, of
//! what may differ from the peer's (invariant 1).
//!
//! A cold range or name costs one sync, shared by all who wait for one at the
//! time; a hot one costs a look into a set. A checkpoint starts a new segment; the
//! old ones are deleted when both nodes have flushed what they cover
//! (invariant 2).
//!
//! ```text
//! state/intents/SEGMENT     SEGMENT: sixteen hexadecimal digits, ascending
//!   record i at byte 32 * i, zeros behind the last:
//!     0  u8   kind: 1 extent, 2 attributes, 3 directory, 4 new ids, 5 whole file
//!     4  u32  extent number (kind 1), else 0
//!     8  u64  file id
//!    16  u64  number of the segment
//!    24  u32  CRC-32C of the 24 bytes before
//!    28  u32  0
//! ```
//!
//! All numbers little endian. Segments are filled with zeros before use. A full
//! file system is no failure of the log: an intent for which there is no room is
//! refused, and a new segment for which there is none is done without.

use std::collections::{BTreeSet, HashSet};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use parking_lot::{Condvar, Mutex, RwLock};
use twinfold_protocol::ids::FileId;
use twinfold_protocol::marks::Intent;

const RECORD: usize = 32;

/// Bytes by which a segment grows, written with zeros and synced before use.
const CHUNK: u64 = 256 << 10;

/// Extents noted ahead of a sequential writer, at most.
const MAX_AHEAD: u32 = 16;

/// What was noted before this run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovered {
    /// The notes.
    pub intents: BTreeSet<Intent>,
    /// A segment was damaged in its middle: anything may differ.
    pub damaged: bool,
}

/// The log.
#[derive(Debug)]
pub struct IntentLog {
    directory: PathBuf,
    hot: RwLock<HashSet<Intent>>,
    writer: Mutex<Writer>,
    synced: Condvar,
}

#[derive(Debug)]
struct Writer {
    segment: u64,
    file: File,
    end: u64,
    capacity: u64,
    /// Notes for the next sync, and its number.
    pending: Vec<Intent>,
    next_sync: u64,
    done_sync: u64,
    /// The last batch for which there was no room.
    refused: u64,
    syncing: bool,
    failed: bool,
}

impl IntentLog {
    /// Opens the log: reads what was noted before and starts a new segment.
    pub fn open(directory: &Path) -> io::Result<(IntentLog, Recovered)> {
        super::private_directory(directory)?;
        let mut recovered = Recovered::default();
        let mut last = 0;
        for segment in segments(directory)? {
            last = last.max(segment);
            read_segment(&path_of(directory, segment), segment, &mut recovered)?;
        }
        let segment = last + 1;
        let (file, capacity) = new_segment(directory, segment)?;
        let log = IntentLog {
            directory: directory.to_owned(),
            hot: RwLock::default(),
            writer: Mutex::new(Writer {
                segment,
                file,
                end: 0,
                capacity,
                pending: Vec::new(),
                next_sync: 1,
                done_sync: 0,
                refused: 0,
                syncing: false,
                failed: false,
            }),
            synced: Condvar::new(),
        };
        Ok((log, recovered))
    }

    /// Returns when all of `intents` are durable. An error means that the log cannot
    /// be trusted any more; it stays failed, and the caller fences the node.
    pub fn ensure(&self, intents: &[Intent]) -> io::Result<()> {
        {
            let hot = self.hot.read();
            if intents.iter().all(|i| hot.contains(i)) {
                return Ok(());
            }
        }
        let mut writer = self.writer.lock();
        let mut wanted = Vec::new();
        {
            let hot = self.hot.read();
            for intent in intents {
                if !hot.contains(intent) {
                    wanted.push(*intent);
                    ahead(*intent, &hot, &mut wanted);
                }
            }
        }
        if wanted.is_empty() {
            return Ok(());
        }
        writer.pending.extend(wanted);
        let mine = writer.next_sync;
        loop {
            if writer.failed {
                return Err(io::Error::other("the intent log failed before"));
            }
            if writer.refused >= mine {
                return Err(io::ErrorKind::StorageFull.into());
            }
            if writer.done_sync >= mine {
                return Ok(());
            }
            if writer.syncing {
                self.synced.wait(&mut writer);
                continue;
            }
            // This thread syncs for all that came so far.
            writer.syncing = true;
            let batch = std::mem::take(&mut writer.pending);
            let number = writer.next_sync;
            writer.next_sync += 1;
            let written = append(&mut writer, &batch);
            let synced = match written {
                Ok(()) => {
                    let file = writer.file.try_clone();
                    parking_lot::MutexGuard::unlocked(&mut writer, || {
                        file.and_then(|f| f.sync_data())
                    })
                }
                Err(e) => Err(e),
            };
            writer.syncing = false;
            let result = match synced {
                Ok(()) => {
                    self.hot.write().extend(batch);
                    writer.done_sync = number;
                    Ok(())
                }
                Err(e) => {
                    // No room: nothing was noted and nothing will be changed; that is all.
                    writer.failed = e.kind() != io::ErrorKind::StorageFull;
                    // Whoever waits for this batch must ask again.
                    writer.refused = number;
                    Err(e)
                }
            };
            self.synced.notify_all();
            result?;
        }
    }

    /// Whether this note is durable and not retired.
    pub fn is_hot(&self, intent: Intent) -> bool {
        self.hot.read().contains(&intent)
    }

    /// Starts a new segment; everything is cold again. Returns its number, for
    /// [`IntentLog::retire`] once a checkpoint that begins now has ended; `None`
    /// when there is no room for one, and all goes on as it was.
    pub fn rotate(&self) -> io::Result<Option<u64>> {
        let mut writer = self.writer.lock();
        while writer.syncing {
            self.synced.wait(&mut writer);
        }
        if writer.failed {
            return Err(io::Error::other("the intent log failed before"));
        }
        let segment = writer.segment + 1;
        let (file, capacity) = match new_segment(&self.directory, segment) {
            Ok(made) => made,
            Err(e) if e.kind() == io::ErrorKind::StorageFull => {
                let _ = std::fs::remove_file(path_of(&self.directory, segment));
                return Ok(None);
            }
            Err(e) => {
                writer.failed = true;
                return Err(e);
            }
        };
        writer.file = file;
        writer.segment = segment;
        writer.end = 0;
        writer.capacity = capacity;
        self.hot.write().clear();
        Ok(Some(segment))
    }

    /// Deletes the segments before `segment`: both nodes have flushed what they cover.
    pub fn retire(&self, segment: u64) -> io::Result<()> {
        for old in segments(&self.directory)? {
            if old < segment {
                std::fs::remove_file(path_of(&self.directory, old))?;
            }
        }
        Ok(())
    }

    /// Everything noted and not retired, this run and before.
    pub fn all(&self) -> io::Result<Recovered> {
        let _writer = self.writer.lock();
        let mut recovered = Recovered::default();
        for segment in segments(&self.directory)? {
            read_segment(&path_of(&self.directory, segment), segment, &mut recovered)?;
        }
        Ok(recovered)
    }
}

/// A second extent next to a first one: a sequential writer; note some more ahead,
/// as many as it has written in a row.
fn ahead(intent: Intent, hot: &HashSet<Intent>, wanted: &mut Vec<Intent>) {
    let Intent::Extent { file, extent } = intent else {
        return;
    };
    let mut run = 0;
    while run < MAX_AHEAD
        && extent > run
        && hot.contains(&Intent::Extent {
            file,
            extent: extent - 1 - run,
        })
    {
        run += 1;
    }
    for next in 1..=run {
        if let Some(extent) = extent.checked_add(next) {
            wanted.push(Intent::Extent { file, extent });
        }
    }
}

fn append(writer: &mut Writer, batch: &[Intent]) -> io::Result<()> {
    if writer.failed {
        return Err(io::Error::other("the intent log failed before"));
    }
    let mut bytes = Vec::with_capacity(batch.len() * RECORD);
    for intent in batch {
        bytes.extend_from_slice(&encode(*intent, writer.segment));
    }
    let end = writer.end + bytes.len() as u64;
    while writer.capacity < end {
        writer.capacity = grow(&writer.file, writer.capacity)?;
    }
    writer.file.write_all_at(&bytes, writer.end)?;
    writer.end = end;
    Ok(())
}

fn grow(file: &File, capacity: u64) -> io::Result<u64> {
    file.write_all_at(&vec![0; CHUNK as usize], capacity)?;
    file.sync_all()?;
    Ok(capacity + CHUNK)
}

fn new_segment(directory: &Path, segment: u64) -> io::Result<(File, u64)> {
    let file = super::private()
        .read(true)
        .write(true)
        .create_new(true)
        .open(path_of(directory, segment))?;
    let capacity = grow(&file, 0)?;
    super::sync_directory(directory)?;
    Ok((file, capacity))
}

fn path_of(directory: &Path, segment: u64) -> PathBuf {
    directory.join(format!("{segment:016x}"))
}

fn segments(directory: &Path) -> io::Result<Vec<u64>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let name = entry?.file_name();
        if let Some(segment) = name.to_str().and_then(|n| u64::from_str_radix(n, 16).ok()) {
            found.push(segment);
        }
    }
    found.sort_unstable();
    Ok(found)
}

fn read_segment(path: &Path, segment: u64, recovered: &mut Recovered) -> io::Result<()> {
    let bytes = std::fs::read(path)?;
    let mut broken = false;
    for record in bytes.chunks_exact(RECORD) {
        match decode(record, segment) {
            Some(intent) => {
                // A sound record behind a broken one: not the torn end of the log.
                recovered.damaged |= broken;
                recovered.intents.insert(intent);
            }
            None => broken |= record.iter().any(|b| *b != 0),
        }
    }
    Ok(())
}

fn encode(intent: Intent, segment: u64) -> [u8; RECORD] {
    let (kind, extent, file) = match intent {
        Intent::Extent { file, extent } => (1, extent, file),
        Intent::Attributes { file } => (2, 0, file),
        Intent::Directory { directory } => (3, 0, directory),
        Intent::NewIds { first } => (4, 0, first),
        Intent::File { file } => (5, 0, file),
    };
    let mut record = [0; RECORD];
    record[0] = kind;
    record[4..8].copy_from_slice(&extent.to_le_bytes());
    record[8..16].copy_from_slice(&file.0.to_le_bytes());
    record[16..24].copy_from_slice(&segment.to_le_bytes());
    let crc = crc32c::crc32c(&record[..24]);
    record[24..28].copy_from_slice(&crc.to_le_bytes());
    record
}

fn decode(record: &[u8], segment: u64) -> Option<Intent> {
    let word = |at: usize| -> Option<u32> {
        Some(u32::from_le_bytes(record.get(at..at + 4)?.try_into().ok()?))
    };
    let long = |at: usize| -> Option<u64> {
        Some(u64::from_le_bytes(record.get(at..at + 8)?.try_into().ok()?))
    };
    if word(24)? != crc32c::crc32c(record.get(..24)?) || long(16)? != segment {
        return None;
    }
    let (extent, file) = (word(4)?, FileId(long(8)?));
    Some(match record.first()? {
        1 => Intent::Extent { file, extent },
        2 => Intent::Attributes { file },
        3 => Intent::Directory { directory: file },
        4 => Intent::NewIds { first: file },
        5 => Intent::File { file },
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extent(n: u32) -> Intent {
        Intent::Extent {
            file: FileId(9),
            extent: n,
        }
    }

    #[test]
    fn what_was_ensured_is_there_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let (log, before) = IntentLog::open(dir.path()).unwrap();
        assert_eq!(before, Recovered::default());
        log.ensure(&[extent(5)]).unwrap();
        log.ensure(&[Intent::Directory {
            directory: FileId::ROOT,
        }])
        .unwrap();
        drop(log);
        let (log, after) = IntentLog::open(dir.path()).unwrap();
        assert_eq!(after.intents.len(), 2);
        assert!(!after.damaged);
        log.ensure(&[extent(5)]).unwrap();
        assert_eq!(log.all().unwrap().intents.len(), 2);
    }

    #[test]
    fn a_checkpoint_retires_what_came_before_it_only() {
        let dir = tempfile::tempdir().unwrap();
        let (log, _) = IntentLog::open(dir.path()).unwrap();
        log.ensure(&[extent(1)]).unwrap();
        let segment = log.rotate().unwrap().unwrap();
        log.ensure(&[extent(100)]).unwrap();
        log.retire(segment).unwrap();
        assert_eq!(
            log.all().unwrap().intents.into_iter().collect::<Vec<_>>(),
            [extent(100)]
        );
    }

    #[test]
    fn a_sequential_writer_is_noted_ahead() {
        let dir = tempfile::tempdir().unwrap();
        let (log, _) = IntentLog::open(dir.path()).unwrap();
        for n in 0..40 {
            log.ensure(&[extent(n)]).unwrap();
        }
        let syncs = log.writer.lock().done_sync;
        assert!(syncs < 12, "{syncs} syncs for 40 extents in a row");
    }

    #[test]
    fn a_torn_end_is_ignored_and_a_hole_in_the_middle_is_damage() {
        let dir = tempfile::tempdir().unwrap();
        let (log, _) = IntentLog::open(dir.path()).unwrap();
        for n in [10, 20, 30] {
            log.ensure(&[extent(n)]).unwrap();
        }
        drop(log);
        let path = path_of(dir.path(), 1);
        let good = std::fs::read(&path).unwrap();

        let mut torn = good.clone();
        torn[2 * RECORD + 9] ^= 1;
        std::fs::write(&path, &torn).unwrap();
        let mut found = Recovered::default();
        read_segment(&path, 1, &mut found).unwrap();
        assert_eq!((found.intents.len(), found.damaged), (2, false));

        let mut hole = good;
        hole[RECORD + 9] ^= 1;
        std::fs::write(&path, &hole).unwrap();
        let mut found = Recovered::default();
        read_segment(&path, 1, &mut found).unwrap();
        assert_eq!((found.intents.len(), found.damaged), (2, true));
    }

    #[test]
    fn many_threads_share_syncs_and_all_of_theirs_is_durable() {
        let dir = tempfile::tempdir().unwrap();
        let (log, _) = IntentLog::open(dir.path()).unwrap();
        std::thread::scope(|s| {
            for t in 0..8u32 {
                let log = &log;
                s.spawn(move || {
                    for n in 0..20 {
                        // Far apart, so that nothing is noted ahead.
                        log.ensure(&[extent(t * 100_000 + n * 100)]).unwrap();
                    }
                });
            }
        });
        assert_eq!(log.all().unwrap().intents.len(), 160);
    }
}
