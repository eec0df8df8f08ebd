//! The intent log: durable notes, made before a node changes its own copy, of
//! what may differ from the peer's (invariant 1).
//!
//! A cold range or name costs one sync, shared by all who wait for one at the
//! time; a hot one costs a look into a set. A checkpoint starts a new segment; the
//! old ones are deleted when both nodes have flushed what they cover
//! (invariant 2). What was used since the last checkpoint is noted in the new segment before
//! that one is begun, so that it stays hot: else the next write of each hot range would wait
//! for a sync behind the checkpoint's own flush. What was not used since goes cold.
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

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::{Condvar, Mutex, RwLock};
use twinfold_protocol::marks::Intent;

use super::segment::{RECORD, Recovered, encode, end_of_notes, everything, head, read_segment};

/// Bytes by which a segment grows, written with zeros and synced before use.
const CHUNK: u64 = 256 << 10;

/// Notes that one segment tells apart, at most: 8 MiB on the disk, and about twice that in
/// memory. A checkpoint starts a new one long before; during a resync there is none, and it
/// may change any number of objects. One note that says "everything" then stands for all.
const MAX_NOTES: usize = 256 << 10;

/// Extents noted ahead of a sequential writer, at most.
const MAX_AHEAD: u32 = 16;

/// Notes taken along into a new segment, at most: 16 GiB of hot extents, in half of the bytes
/// with which a segment begins. What is beyond costs a sync again.
const MAX_TAKEN_ALONG: usize = 4 << 10;
const _: () = assert!((MAX_TAKEN_ALONG * RECORD) as u64 <= CHUNK / 2);

/// The log.
#[derive(Debug)]
pub struct IntentLog {
    directory: PathBuf,
    /// Each with whether it was asked for in this segment.
    hot: RwLock<HashMap<Intent, AtomicBool>>,
    /// Everything is noted in this segment.
    everything: AtomicBool,
    writer: Mutex<Writer>,
    synced: Condvar,
    /// Held while a new segment is made: one at a time. The next one, if it was made ahead.
    rotating: Mutex<Option<Made>>,
    /// Segments before it are retired, even if they cannot be deleted.
    oldest: AtomicU64,
}

/// A segment without notes, and its bytes.
#[derive(Debug)]
struct Made {
    segment: u64,
    file: File,
    capacity: u64,
}

#[derive(Debug)]
struct Writer {
    segment: u64,
    /// Shared with who syncs it: a descriptor of its own might not be had.
    file: Arc<File>,
    end: u64,
    capacity: u64,
    /// Notes for the next sync, and its number; whether somebody asks for it, or it is ahead.
    pending: Vec<(Intent, bool)>,
    next_sync: u64,
    done_sync: u64,
    /// The last batch that could not be noted for now, and why.
    refused: u64,
    why: io::ErrorKind,
    syncing: bool,
    failed: bool,
    /// For tests: what the next notes fail with.
    #[cfg(test)]
    refuses: Option<io::ErrorKind>,
}

impl Writer {
    fn intact(&self) -> io::Result<()> {
        match self.failed {
            true => Err(io::Error::other("the intent log failed before")),
            false => Ok(()),
        }
    }
}

impl IntentLog {
    /// Makes an empty log.
    pub fn create(directory: &Path) -> io::Result<()> {
        super::private_directory(directory)?;
        new_segment(directory, 1).map(drop)
    }

    /// Opens the log: reads what was noted from the segment `oldest` on and starts a new
    /// one. What was noted before is retired. A full file system does not keep a driver
    /// from starting: the last segment is then used again if it is retired, else gone on with.
    pub fn open(directory: &Path, oldest: u64) -> io::Result<(IntentLog, Recovered)> {
        super::private_directory(directory)?;
        let recovered = read_from(directory, oldest)?;
        let began = begin(directory, oldest, new_segment)?;
        let log = IntentLog::going_on(directory, began, oldest);
        delete(directory, oldest);
        Ok((log, recovered))
    }

    fn going_on(directory: &Path, began: Began, oldest: u64) -> IntentLog {
        IntentLog {
            directory: directory.to_owned(),
            hot: RwLock::default(),
            everything: AtomicBool::new(false),
            writer: Mutex::new(Writer {
                segment: began.segment,
                file: Arc::new(began.file),
                end: began.end,
                capacity: began.capacity,
                pending: Vec::new(),
                next_sync: 1,
                done_sync: 0,
                refused: 0,
                why: io::ErrorKind::StorageFull,
                syncing: false,
                failed: false,
                #[cfg(test)]
                refuses: None,
            }),
            synced: Condvar::new(),
            rotating: Mutex::default(),
            oldest: AtomicU64::new(oldest),
        }
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
                if !hot.contains_key(intent) {
                    wanted.push((*intent, true));
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
            writer.intact()?;
            if writer.refused >= mine {
                return Err(writer.why.into());
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
                false => records_of(batch.iter().map(|(i, _)| *i), writer.segment),
            };
            let done = match append(&mut writer, &records) {
                Ok(()) => {
                    let file = writer.file.clone();
                    let synced =
                        parking_lot::MutexGuard::unlocked(&mut writer, || file.sync_data());
                    synced.map_err(|e| (super::no_room(&e), e))
                }
                Err(e) => Err((super::not_now(&e), e)),
            };
            writer.syncing = false;
            let result = match done {
                Ok(()) => {
                    if too_many {
                        tracing::info!(
                            "so much is changed that after a crash everything would be compared"
                        );
                        self.everything.store(true, Ordering::Release);
                        *self.hot.write() = HashMap::new();
                    } else {
                        let mut hot = self.hot.write();
                        for (intent, used) in batch {
                            *hot.entry(intent).or_default().get_mut() |= used;
                        }
                    }
                    writer.done_sync = number;
                    Ok(())
                }
                // Not now: nothing was noted and nothing will be changed; that is all.
                Err((not_now, e)) => {
                    writer.failed = !not_now;
                    // Whoever waits for this batch must ask again.
                    writer.refused = number;
                    writer.why = e.kind();
                    Err(e)
                }
            };
            self.synced.notify_all();
            result?;
        }
    }

    /// Fails if the log could not be written once: it takes no note ever again.
    pub fn intact(&self) -> io::Result<()> {
        self.writer.lock().intact()
    }

    /// Whether this note is durable and not retired.
    pub fn is_hot(&self, intent: Intent) -> bool {
        self.are_hot(&[intent])
    }

    fn are_hot(&self, intents: &[Intent]) -> bool {
        let hot = self.hot.read();
        let is_hot = |intent| {
            hot.get(intent).is_some_and(|used: &AtomicBool| {
                // Written once a segment: what many threads only read they have in their caches.
                if !used.load(Ordering::Relaxed) {
                    used.store(true, Ordering::Relaxed);
                }
                true
            })
        };
        self.everything.load(Ordering::Acquire) || intents.iter().all(is_hot)
    }

    /// Starts a new segment; everything is cold again. Returns its number, for
    /// [`IntentLog::retire`] once a checkpoint that begins now has ended; `None`
    /// when one cannot be had now, and all goes on as it was.
    pub fn rotate(&self) -> io::Result<Option<u64>> {
        self.begin_segment(Vec::new())
    }

    /// The same, but what was asked for since the segment was begun is noted in the new one
    /// as well, and stays hot. Notes on new ids do not: whatever such a one covers would be
    /// compared as a whole for ever.
    pub fn rotate_hot(&self) -> io::Result<Option<u64>> {
        let used = |(intent, used): (&Intent, &AtomicBool)| {
            let finer = !matches!(intent, Intent::NewIds { .. });
            (finer && used.load(Ordering::Relaxed)).then_some(*intent)
        };
        let hot = self.hot.read();
        let taken = hot.iter().filter_map(used).take(MAX_TAKEN_ALONG).collect();
        drop(hot);
        self.begin_segment(taken)
    }

    /// Makes the next segment ahead, for one who may not wait for it.
    pub fn prepare(&self) -> io::Result<()> {
        let mut next = self.rotating.lock();
        self.make_next(&mut next).map(drop)
    }

    /// The next segment, durable and without notes; `None` when it cannot be had now.
    fn make_next<'a>(&self, next: &'a mut Option<Made>) -> io::Result<Option<&'a Made>> {
        if next.is_none() {
            let segment = self.writer.lock().segment + 1;
            match new_segment(&self.directory, segment) {
                Ok((file, capacity)) => {
                    *next = Some(Made {
                        segment,
                        file,
                        capacity,
                    });
                }
                Err(e) if super::not_now(&e) => {
                    let _ = std::fs::remove_file(path_of(&self.directory, segment));
                }
                Err(e) => {
                    self.writer.lock().failed = true;
                    return Err(e);
                }
            }
        }
        Ok(next.as_ref())
    }

    /// Starts a new segment in which these are noted.
    fn begin_segment(&self, mut taken: Vec<Intent>) -> io::Result<Option<u64>> {
        let mut next = self.rotating.lock();
        // Nobody who notes something waits for this.
        let Some(made) = self.make_next(&mut next)? else {
            return Ok(None);
        };
        if let Err(e) = note_first(made, &taken) {
            if !super::not_now(&e) {
                self.writer.lock().failed = true;
                return Err(e);
            }
            // They are cold then. What the file has of them is a note too many, and is written over.
            taken.clear();
        }
        let mut writer = self.writer.lock();
        while writer.syncing {
            self.synced.wait(&mut writer);
        }
        writer.intact()?;
        let Some(made) = next.take() else {
            return Ok(None);
        };
        let segment = made.segment;
        writer.file = Arc::new(made.file);
        writer.segment = segment;
        writer.end = (RECORD + taken.len() * RECORD) as u64;
        writer.capacity = made.capacity;
        self.everything.store(false, Ordering::Release);
        let unused = |intent| (intent, AtomicBool::new(false));
        *self.hot.write() = taken.into_iter().map(unused).collect();
        Ok(Some(segment))
    }

    /// Deletes the segments before `segment`: both nodes have flushed what they cover, or
    /// saved marks stand for it.
    pub fn retire(&self, segment: u64) -> io::Result<()> {
        self.oldest.fetch_max(segment, Ordering::SeqCst);
        delete_before(&self.directory, segment)
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

    /// From now on notes fail so.
    #[cfg(test)]
    pub(crate) fn refuse(&self, why: Option<io::ErrorKind>) {
        self.writer.lock().refuses = why;
    }

    /// How many times notes were brought to stable storage.
    #[cfg(test)]
    pub(crate) fn syncs(&self) -> u64 {
        self.writer.lock().done_sync
    }
}

/// A second extent next to a first one: a sequential writer; note some more ahead,
/// as many as it has written in a row.
fn ahead(intent: Intent, hot: &HashMap<Intent, AtomicBool>, wanted: &mut Vec<(Intent, bool)>) {
    let Intent::Extent { file, extent } = intent else {
        return;
    };
    let mut run = 0;
    while run < MAX_AHEAD
        && extent > run
        && hot.contains_key(&Intent::Extent {
            file,
            extent: extent - 1 - run,
        })
    {
        run += 1;
    }
    for next in 1..=run {
        if let Some(extent) = extent.checked_add(next) {
            wanted.push((Intent::Extent { file, extent }, false));
        }
    }
}

fn records_of(batch: impl Iterator<Item = Intent>, segment: u64) -> Vec<u8> {
    let records = batch.map(|intent| encode(intent, segment));
    records.collect::<Vec<_>>().concat()
}

/// Notes these in a segment that has no notes yet; durable when it returns.
fn note_first(made: &Made, taken: &[Intent]) -> io::Result<()> {
    if taken.is_empty() {
        return Ok(());
    }
    let records = records_of(taken.iter().copied(), made.segment);
    made.file.write_all_at(&records, RECORD as u64)?;
    made.file.sync_data()
}

fn append(writer: &mut Writer, bytes: &[u8]) -> io::Result<()> {
    writer.intact()?;
    #[cfg(test)]
    if let Some(why) = writer.refuses {
        return Err(why.into());
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

/// Where a run begins to write.
struct Began {
    segment: u64,
    file: File,
    end: u64,
    capacity: u64,
}

/// Begins a new segment with `make`, or does without.
fn begin(
    directory: &Path,
    oldest: u64,
    make: impl FnOnce(&Path, u64) -> io::Result<(File, u64)>,
) -> io::Result<Began> {
    drop_unmade(directory)?;
    let last = segments(directory)?.last().copied().unwrap_or(0);
    let segment = (last + 1).max(oldest);
    // All but the last one, for there is always one.
    delete(directory, oldest.min(last));
    match make(directory, segment) {
        Ok((file, capacity)) => Ok(Began {
            segment,
            file,
            end: RECORD as u64,
            capacity,
        }),
        Err(e) if super::no_room(&e) && last > 0 => {
            let _ = std::fs::remove_file(path_of(directory, segment));
            tracing::warn!(error = %e, "a new segment of the intent log is done without");
            let began = match last < oldest {
                true => use_again(directory, last, segment),
                false => go_on_with(directory, last),
            };
            began.map_err(|_| e)
        }
        Err(e) => Err(e),
    }
}

/// Removes what is left of segments that were just being made in a crash: zeros.
fn drop_unmade(directory: &Path) -> io::Result<()> {
    let mut all = segments(directory)?;
    while all.len() > 1
        && let Some(last) = all.pop()
    {
        let path = path_of(directory, last);
        if std::fs::read(&path)?.iter().any(|b| *b != 0) {
            break;
        }
        std::fs::remove_file(path)?;
    }
    Ok(())
}

/// Makes a retired segment a new one. Nobody reads it until it has its new name.
fn use_again(directory: &Path, retired: u64, segment: u64) -> io::Result<Began> {
    let old = path_of(directory, retired);
    let file = File::options().read(true).write(true).open(&old)?;
    // No new space is needed: it has at least as much.
    file.write_all_at(&vec![0; CHUNK as usize], 0)?;
    file.set_len(CHUNK)?;
    file.write_all_at(&head(segment), 0)?;
    file.sync_all()?;
    std::fs::rename(old, path_of(directory, segment))?;
    super::sync_directory(directory)?;
    Ok(Began {
        segment,
        file,
        end: RECORD as u64,
        capacity: CHUNK,
    })
}

/// Goes on behind the last note of a segment. What a crash has torn there is cleared
/// first: a note behind it would make it look like damage.
fn go_on_with(directory: &Path, segment: u64) -> io::Result<Began> {
    let path = path_of(directory, segment);
    let bytes = std::fs::read(&path)?;
    let file = File::options().read(true).write(true).open(&path)?;
    let end = match end_of_notes(&bytes, segment) {
        Some(end) if bytes.len() >= CHUNK as usize => end,
        _ => return Err(io::ErrorKind::InvalidData.into()),
    };
    if bytes[end..].iter().any(|b| *b != 0) || !bytes.starts_with(&head(segment)) {
        file.write_all_at(&vec![0; bytes.len() - end], end as u64)?;
        file.write_all_at(&head(segment), 0)?;
        file.sync_all()?;
    }
    let capacity = bytes.len() as u64 / CHUNK * CHUNK;
    Ok(Began {
        segment,
        file,
        end: end as u64,
        capacity,
    })
}

/// Deletes the segments before `segment`; what cannot be deleted stays.
fn delete(directory: &Path, segment: u64) {
    if let Err(e) = delete_before(directory, segment) {
        tracing::warn!(error = %e, "old intents cannot be deleted");
    }
}

fn delete_before(directory: &Path, segment: u64) -> io::Result<()> {
    for old in segments(directory)? {
        if old < segment {
            std::fs::remove_file(path_of(directory, old))?;
        }
    }
    Ok(())
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
            Err(e) if super::not_now(&e) => return Err(e),
            Err(e) => recovered.damaged(&path, &e.to_string()),
        }
    }
    Ok(recovered)
}

#[cfg(test)]
mod tests;
