//! The intent log: durable notes, made before a node changes its own copy, of
//! what may differ from the peer's (invariant 1).
//!
//! A cold range or name costs one sync, shared by all who wait for one at the
//! time; a hot one costs a look into a set. A checkpoint starts a new segment; the
//! old ones are deleted when both nodes have flushed what they cover
//! (invariant 2).
//!
//! A segment's bytes: [`super::segment`].
//!
//! Segments are filled with zeros and synced before use. A full file system is no failure
//! of the log: an intent for which there is no room is refused, and a new segment for
//! which there is none is done without.
//!
//! There is always a segment, and none is missing between two others: the oldest are
//! deleted first. A segment that is missing, damaged or newer is named, and everything is
//! compared then.

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::{Condvar, Mutex, RwLock};
use twinfold_protocol::marks::Intent;

use super::segment::{RECORD, Recovered, encode, everything, head, read_segment};

/// Bytes by which a segment grows, written with zeros and synced before use.
const CHUNK: u64 = 256 << 10;

/// Notes that one segment tells apart, at most: 8 MiB on the disk, and about twice that in
/// memory. A checkpoint starts a new one long before; during a resync there is none, and it
/// may change any number of objects. One note that says "everything" then stands for all.
const MAX_NOTES: usize = 256 << 10;

/// Extents noted ahead of a sequential writer, at most.
const MAX_AHEAD: u32 = 16;

/// The log.
#[derive(Debug)]
pub struct IntentLog {
    directory: PathBuf,
    hot: RwLock<HashSet<Intent>>,
    /// Everything is noted in this segment.
    everything: AtomicBool,
    writer: Mutex<Writer>,
    synced: Condvar,
    /// Held while a new segment is made: one at a time.
    rotating: Mutex<()>,
    /// Segments before it are retired, even if they cannot be deleted.
    oldest: AtomicU64,
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
    /// Makes an empty log.
    pub fn create(directory: &Path) -> io::Result<()> {
        super::private_directory(directory)?;
        new_segment(directory, 1).map(drop)
    }

    /// Opens the log: reads what was noted from the segment `oldest` on and starts a new
    /// one. What was noted before is retired.
    pub fn open(directory: &Path, oldest: u64) -> io::Result<(IntentLog, Recovered)> {
        super::private_directory(directory)?;
        let recovered = read_from(directory, oldest)?;
        let last = segments(directory)?.last().copied().unwrap_or(0);
        let segment = (last + 1).max(oldest);
        let (file, capacity) = new_segment(directory, segment)?;
        let log = IntentLog {
            directory: directory.to_owned(),
            hot: RwLock::default(),
            everything: AtomicBool::new(false),
            writer: Mutex::new(Writer {
                segment,
                file,
                end: RECORD as u64,
                capacity,
                pending: Vec::new(),
                next_sync: 1,
                done_sync: 0,
                refused: 0,
                syncing: false,
                failed: false,
            }),
            synced: Condvar::new(),
            rotating: Mutex::default(),
            oldest: AtomicU64::new(oldest),
        };
        if let Err(e) = log.delete_before(oldest) {
            tracing::warn!(error = %e, "old intents cannot be deleted");
        }
        Ok((log, recovered))
    }

    /// Returns when all of `intents` are durable. An error means that the log cannot
    /// be trusted any more; it stays failed, and the caller fences the node.
    pub fn ensure(&self, intents: &[Intent]) -> io::Result<()> {
        if self.are_hot(intents) {
            return Ok(());
        }
        let mut writer = self.writer.lock();
        if self.everything.load(Ordering::Acquire) {
            return Ok(());
        }
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
            let noted = (writer.end / RECORD as u64) as usize - 1;
            let too_many = noted + batch.len() > MAX_NOTES;
            let records = match too_many {
                true => everything(writer.segment).to_vec(),
                false => records_of(&batch, writer.segment),
            };
            let written = append(&mut writer, &records);
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
                    if too_many {
                        tracing::info!(
                            "so much is changed that after a crash everything would be compared"
                        );
                        self.everything.store(true, Ordering::Release);
                        *self.hot.write() = HashSet::new();
                    } else {
                        self.hot.write().extend(batch);
                    }
                    writer.done_sync = number;
                    Ok(())
                }
                Err(e) => {
                    // No room: nothing was noted and nothing will be changed; that is all.
                    writer.failed = !super::no_room(&e);
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
        self.are_hot(&[intent])
    }

    fn are_hot(&self, intents: &[Intent]) -> bool {
        let hot = self.hot.read();
        self.everything.load(Ordering::Acquire) || intents.iter().all(|i| hot.contains(i))
    }

    /// Starts a new segment; everything is cold again. Returns its number, for
    /// [`IntentLog::retire`] once a checkpoint that begins now has ended; `None`
    /// when there is no room for one, and all goes on as it was.
    pub fn rotate(&self) -> io::Result<Option<u64>> {
        let _one = self.rotating.lock();
        let segment = self.writer.lock().segment + 1;
        // Nobody who notes something waits for this.
        let made = new_segment(&self.directory, segment);
        let mut writer = self.writer.lock();
        while writer.syncing {
            self.synced.wait(&mut writer);
        }
        if writer.failed {
            return Err(io::Error::other("the intent log failed before"));
        }
        let (file, capacity) = match made {
            Ok(made) => made,
            Err(e) if super::no_room(&e) => {
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
        writer.end = RECORD as u64;
        writer.capacity = capacity;
        self.everything.store(false, Ordering::Release);
        self.hot.write().clear();
        Ok(Some(segment))
    }

    /// Deletes the segments before `segment`: both nodes have flushed what they cover, or
    /// saved marks stand for it.
    pub fn retire(&self, segment: u64) -> io::Result<()> {
        self.oldest.fetch_max(segment, Ordering::SeqCst);
        self.delete_before(segment)
    }

    fn delete_before(&self, segment: u64) -> io::Result<()> {
        for old in segments(&self.directory)? {
            if old < segment {
                std::fs::remove_file(path_of(&self.directory, old))?;
            }
        }
        Ok(())
    }

    /// Whether there is anything that a checkpoint could let go.
    pub fn has_notes(&self) -> bool {
        let writer = self.writer.lock();
        writer.end > RECORD as u64 || self.oldest.load(Ordering::SeqCst) < writer.segment
    }

    /// The segment that the next run begins at the earliest: saved marks that stand for
    /// all of this run name it.
    pub fn next_segment(&self) -> u64 {
        self.writer.lock().segment + 1
    }

    /// Everything noted and not retired, this run and before.
    pub fn all(&self) -> io::Result<Recovered> {
        let _one = self.rotating.lock();
        let _writer = self.writer.lock();
        read_from(&self.directory, self.oldest.load(Ordering::SeqCst))
    }

    /// How many times notes were brought to stable storage.
    #[cfg(test)]
    pub(crate) fn syncs(&self) -> u64 {
        self.writer.lock().done_sync
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

fn records_of(batch: &[Intent], segment: u64) -> Vec<u8> {
    let records = batch.iter().map(|intent| encode(*intent, segment));
    records.collect::<Vec<_>>().concat()
}

fn append(writer: &mut Writer, bytes: &[u8]) -> io::Result<()> {
    if writer.failed {
        return Err(io::Error::other("the intent log failed before"));
    }
    let end = writer.end + bytes.len() as u64;
    while writer.capacity < end {
        writer.capacity = grow(&writer.file, writer.capacity)?;
    }
    writer.file.write_all_at(bytes, writer.end)?;
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
    file.write_all_at(&vec![0; CHUNK as usize], 0)?;
    file.write_all_at(&head(segment), 0)?;
    file.sync_all()?;
    super::sync_directory(directory)?;
    Ok((file, CHUNK))
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

/// All notes from a segment on.
fn read_from(directory: &Path, oldest: u64) -> io::Result<Recovered> {
    let mut recovered = Recovered::default();
    let all = segments(directory)?;
    if all.is_empty() {
        recovered.damaged(directory, "all segments are missing");
    }
    let mut before = None;
    for segment in all.into_iter().filter(|s| *s >= oldest) {
        let path = path_of(directory, segment);
        if before.is_some_and(|b| b + 1 != segment) {
            recovered.damaged(&path, "the segment before this one is missing");
        }
        before = Some(segment);
        match std::fs::read(&path) {
            Ok(bytes) => read_segment(&path, &bytes, segment, &mut recovered),
            Err(e) => recovered.damaged(&path, &e.to_string()),
        }
    }
    Ok(recovered)
}

#[cfg(test)]
mod tests {
    use super::super::segment::strange_head;
    use super::*;
    use twinfold_protocol::ids::FileId;

    fn extent(n: u32) -> Intent {
        Intent::Extent {
            file: FileId(9),
            extent: n,
        }
    }

    fn new_log(directory: &Path) -> IntentLog {
        IntentLog::create(directory).unwrap();
        IntentLog::open(directory, 0).unwrap().0
    }

    fn found(path: &Path, segment: u64) -> (usize, bool) {
        let mut found = Recovered::default();
        read_segment(path, &std::fs::read(path).unwrap(), segment, &mut found);
        (found.intents.len(), found.damaged)
    }

    #[test]
    fn a_segment_that_is_missing_newer_damaged_or_under_another_name_is_damage() {
        let dir = tempfile::tempdir().unwrap();
        let damaged = || read_from(dir.path(), 0).unwrap().damaged;
        assert!(damaged(), "no segment at all");
        let log = new_log(dir.path());
        for n in 0..3 {
            log.ensure(&[extent(n * 100)]).unwrap();
            log.rotate().unwrap();
        }
        assert!(!damaged());
        let path = path_of(dir.path(), 3);
        let good = std::fs::read(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert!(damaged(), "one between two others");
        assert!(
            !read_from(dir.path(), 4).unwrap().damaged,
            "nobody needs it"
        );
        std::fs::rename(path_of(dir.path(), 5), &path).unwrap();
        assert!(damaged(), "another one under its name");
        for at in 0..RECORD {
            let mut bad = good.clone();
            bad[at] ^= 1;
            std::fs::write(&path, &bad).unwrap();
            assert!(damaged(), "byte {at} of the head");
        }
        let mut newer = good.clone();
        newer[8] = 2;
        let crc = crc32c::crc32c(&newer[..28]).to_le_bytes();
        newer[28..32].copy_from_slice(&crc);
        assert!(strange_head(&newer[..32], 3).contains("version 2"));
        std::fs::write(&path, [0; 4096]).unwrap();
        assert!(!damaged(), "a crash while it was made");
        std::fs::write(&path, &good).unwrap();
        assert!(!damaged());
    }

    #[test]
    fn a_cold_range_costs_one_sync_and_a_hot_one_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let log = new_log(dir.path());
        let names = Intent::Directory {
            directory: FileId::ROOT,
        };
        log.ensure(&[extent(7), names]).unwrap();
        assert_eq!(log.syncs(), 1, "an op's notes together");
        for _ in 0..1000 {
            log.ensure(&[extent(7), names]).unwrap();
        }
        assert_eq!(log.syncs(), 1);
        log.rotate().unwrap();
        log.ensure(&[extent(7)]).unwrap();
        assert_eq!(log.syncs(), 2, "cold again after a checkpoint");
    }

    #[test]
    fn notes_for_which_saved_marks_stand_are_not_read_and_their_numbers_not_used_again() {
        let dir = tempfile::tempdir().unwrap();
        let log = new_log(dir.path());
        log.ensure(&[extent(1)]).unwrap();
        let next = log.next_segment();
        drop(log);
        let (log, found) = IntentLog::open(dir.path(), next).unwrap();
        assert_eq!(found, Recovered::default());
        assert_eq!(segments(dir.path()).unwrap(), [next]);
        log.ensure(&[extent(2)]).unwrap();
        assert_eq!(log.all().unwrap().intents.len(), 1);
    }

    #[test]
    fn what_was_ensured_is_there_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        IntentLog::create(dir.path()).unwrap();
        let (log, before) = IntentLog::open(dir.path(), 0).unwrap();
        assert_eq!(before, Recovered::default());
        log.ensure(&[extent(5)]).unwrap();
        log.ensure(&[Intent::Directory {
            directory: FileId::ROOT,
        }])
        .unwrap();
        drop(log);
        let (log, after) = IntentLog::open(dir.path(), 0).unwrap();
        assert_eq!(after.intents.len(), 2);
        assert!(!after.damaged);
        log.ensure(&[extent(5)]).unwrap();
        assert_eq!(log.all().unwrap().intents.len(), 2);
    }

    #[test]
    fn a_checkpoint_retires_what_came_before_it_only() {
        let dir = tempfile::tempdir().unwrap();
        let log = new_log(dir.path());
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
    fn a_segment_has_a_limit_beyond_which_one_note_stands_for_everything() {
        let dir = tempfile::tempdir().unwrap();
        let log = new_log(dir.path());
        let attributes = |n: usize| Intent::Attributes {
            file: FileId(n as u64 + 5000),
        };
        let note = |from: usize| {
            let some: Vec<_> = (from..from + 4096).map(attributes).collect();
            log.ensure(&some).unwrap();
        };
        (0..MAX_NOTES).step_by(4096).for_each(note);
        assert_eq!(log.hot.read().len(), MAX_NOTES);
        let all = log.all().unwrap();
        assert_eq!((all.intents.len(), all.damaged), (MAX_NOTES, false));
        assert!(!log.is_hot(attributes(MAX_NOTES)));
        note(MAX_NOTES);
        assert!(log.is_hot(attributes(3 * MAX_NOTES)), "everything is noted");
        assert_eq!(log.hot.read().capacity(), 0, "and takes no memory");
        assert!(log.all().unwrap().damaged, "and is compared after a crash");
        let syncs = log.syncs();
        (2 * MAX_NOTES..4 * MAX_NOTES).step_by(4096).for_each(note);
        assert_eq!(log.syncs(), syncs);
        let size = std::fs::metadata(path_of(dir.path(), 2)).unwrap().len();
        assert!(size <= (MAX_NOTES * RECORD) as u64 + 2 * CHUNK, "{size}");
        let segment = log.rotate().unwrap().unwrap();
        assert!(!log.is_hot(attributes(0)), "a new one tells apart again");
        log.ensure(&[attributes(7)]).unwrap();
        log.retire(segment).unwrap();
        let left = log.all().unwrap();
        assert_eq!((left.intents.len(), left.damaged), (1, false));
    }

    #[test]
    fn a_sequential_writer_is_noted_ahead() {
        let dir = tempfile::tempdir().unwrap();
        let log = new_log(dir.path());
        for n in 0..40 {
            log.ensure(&[extent(n)]).unwrap();
        }
        let syncs = log.syncs();
        assert!(syncs < 12, "{syncs} syncs for 40 extents in a row");
    }

    #[test]
    fn a_torn_end_is_ignored_and_a_hole_in_the_middle_is_damage() {
        let dir = tempfile::tempdir().unwrap();
        let log = new_log(dir.path());
        for n in [10, 20, 30] {
            log.ensure(&[extent(n)]).unwrap();
        }
        drop(log);
        let path = path_of(dir.path(), 2);
        let good = std::fs::read(&path).unwrap();

        let mut torn = good.clone();
        torn[3 * RECORD + 9] ^= 1;
        std::fs::write(&path, &torn).unwrap();
        assert_eq!(found(&path, 2), (2, false));

        let mut hole = good;
        hole[2 * RECORD + 9] ^= 1;
        std::fs::write(&path, &hole).unwrap();
        assert_eq!(found(&path, 2), (2, true));
    }

    #[test]
    fn many_threads_share_syncs_and_all_of_theirs_is_durable() {
        let dir = tempfile::tempdir().unwrap();
        let log = new_log(dir.path());
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
