//! The application: threads that work in the mounted folder and keep a record of
//! every operation that succeeded, in memory and as lines in a file outside of it.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::content::{BLOCK, Stamp};
use super::record::{Blocks, Files, Life, Log, Record};

/// Blocks of the image that both direct writers share: 64 MiB.
const IMAGE_BLOCKS: u64 = 16_384;

/// Blocks of the other two block files: 16 MiB.
const FILE_BLOCKS: u64 = 4096;

/// Small files that are kept; the oldest beyond it are removed.
const MAX_FILES: usize = 400;

/// Directories the small files are spread over.
const DIRECTORIES: u64 = 8;

/// How long a writer may take to end once told (or once its mount is dead).
const TO_END: Duration = Duration::from_secs(30);

/// What a writer does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    /// Overwrites blocks of a file of `blocks`; only those with this remainder of `step`.
    Blocks {
        blocks: u64,
        step: u64,
        first: u64,
        /// With `O_DIRECT`.
        direct: bool,
        /// `fdatasync` after every so many writes.
        sync_every: Option<u64>,
    },
    /// Appends lines.
    Log,
    /// Creates, writes, renames and removes small files.
    Files,
}

/// What all writers share with the story.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    stop: AtomicBool,
    /// The primary is being killed: errors are what must come.
    killed: AtomicBool,
    acknowledged: AtomicU64,
}

impl Shared {
    pub(crate) fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::Relaxed)
    }

    pub(crate) fn expect_death(&self) {
        self.killed.store(true, Ordering::SeqCst);
    }
}

/// One writer with its record.
#[derive(Debug)]
pub(crate) struct Writer {
    pub(crate) kind: Kind,
    /// Its file or directory, below the folder.
    pub(crate) path: PathBuf,
    pub(crate) record: Record,
    me: Stamp,
    rng: StdRng,
    seq: u64,
    /// Small files with their own name, oldest first.
    kept: VecDeque<u64>,
    journal: BufWriter<File>,
}

/// The names of a small file.
pub(crate) fn names(folder: &Path, number: u64) -> (PathBuf, PathBuf) {
    let directory = folder.join(format!("{}", number % DIRECTORIES));
    (
        directory.join(format!(".new-{number}")),
        directory.join(format!("file-{number}")),
    )
}

/// One page at a page's address, as `O_DIRECT` wants it.
#[repr(align(4096))]
struct Page([u8; BLOCK]);

/// The writers of a run; their records go to files in `journals`.
pub(crate) fn all(seed: u64, journals: &Path) -> Result<Vec<Writer>> {
    let direct = |first| Kind::Blocks {
        blocks: IMAGE_BLOCKS,
        step: 2,
        first,
        direct: true,
        sync_every: None,
    };
    let buffered = |sync_every| Kind::Blocks {
        blocks: FILE_BLOCKS,
        step: 1,
        first: 0,
        direct: false,
        sync_every,
    };
    let kinds = [
        ("disk.img", direct(0)),
        ("disk.img", direct(1)),
        ("table.dat", buffered(None)),
        ("ledger.dat", buffered(Some(4))),
        ("access.log", Kind::Log),
        ("files", Kind::Files),
    ];
    std::fs::create_dir(journals).with_context(|| format!("cannot make {}", journals.display()))?;
    let writers = kinds.into_iter().zip(1..).map(|((path, kind), writer)| {
        let journal = journals.join(format!("writer-{writer}"));
        let journal = File::create_new(&journal)
            .with_context(|| format!("cannot make {}", journal.display()))?;
        Ok(Writer {
            kind,
            path: Path::new("work").join(path),
            record: match kind {
                Kind::Blocks { .. } => Record::Blocks(Blocks::default()),
                Kind::Log => Record::Log(Log::default()),
                Kind::Files => Record::Files(Files::default()),
            },
            me: Stamp {
                seed,
                writer,
                seq: 0,
                place: 0,
            },
            rng: StdRng::seed_from_u64(seed.wrapping_add(writer)),
            seq: 0,
            kept: VecDeque::new(),
            journal: BufWriter::new(journal),
        })
    });
    writers.collect()
}

/// Makes the files the writers work in.
pub(crate) fn prepare(writers: &[Writer], root: &Path) -> Result<()> {
    for writer in writers {
        let path = root.join(&writer.path);
        let made = match writer.kind {
            Kind::Blocks { blocks, .. } => std::fs::create_dir_all(root.join("work"))
                .and_then(|()| OpenOptions::new().create(true).append(true).open(&path))
                .and_then(|file| file.set_len(blocks * BLOCK as u64)),
            Kind::Log => File::create(&path).map(drop),
            Kind::Files => (0..DIRECTORIES)
                .try_for_each(|d| std::fs::create_dir_all(path.join(format!("{d}")))),
        };
        made.with_context(|| format!("cannot make {}", path.display()))?;
    }
    Ok(())
}

/// Writers at work on one mount.
#[derive(Debug)]
pub(crate) struct Team {
    pub(crate) shared: Arc<Shared>,
    ended: Receiver<(Writer, Result<()>)>,
    count: usize,
}

impl Team {
    /// Sets all writers to work in the folder at `root`.
    pub(crate) fn start(writers: Vec<Writer>, root: &Path) -> Result<Team> {
        let shared = Arc::new(Shared::default());
        let (tx, ended) = channel();
        let count = writers.len();
        for mut writer in writers {
            let (shared, root, tx) = (shared.clone(), root.to_owned(), tx.clone());
            std::thread::Builder::new()
                .name(format!("writer-{}", writer.me.writer))
                .spawn(move || {
                    let result = writer.work(&root, &shared);
                    let result = result.and(writer.journal.flush().map_err(Into::into));
                    // Whoever gave up waiting does not want it any more.
                    let _ = tx.send((writer, result));
                })
                .context("cannot start a writer")?;
        }
        Ok(Team {
            shared,
            ended,
            count,
        })
    }

    /// Fails if a writer ended although nobody told it to.
    pub(crate) fn check(&self) -> Result<()> {
        match self.ended.try_recv() {
            Ok((writer, Err(e))) => {
                Err(e.context(format!("a writer in {} failed", writer.path.display())))
            }
            Ok((writer, Ok(()))) => bail!("the writer in {} ended early", writer.path.display()),
            Err(_) => Ok(()),
        }
    }

    /// Tells all writers to end and takes them back, in their order, with the count
    /// of what they did.
    pub(crate) fn end(self) -> Result<(Vec<Writer>, u64)> {
        self.shared.stop.store(true, Ordering::SeqCst);
        let until = Instant::now() + TO_END;
        let mut back = Vec::new();
        for _ in 0..self.count {
            let left = until.saturating_duration_since(Instant::now());
            let (writer, result) = self.ended.recv_timeout(left).with_context(|| {
                format!("a call on the mount hangs: a writer did not end in {TO_END:?}")
            })?;
            result.with_context(|| format!("a writer in {} failed", writer.path.display()))?;
            back.push(writer);
        }
        back.sort_by_key(|w| w.me.writer);
        Ok((back, self.shared.acknowledged()))
    }
}

/// Errors of calls on a mount whose driver was killed.
fn is_death(e: &io::Error) -> bool {
    matches!(
        e.raw_os_error(),
        Some(libc::ENOTCONN | libc::ECONNABORTED | libc::EIO)
    )
}

/// Why a writer goes no further: the mount died as expected, or something is wrong.
enum Halt {
    Dead,
    Wrong(anyhow::Error),
}

impl Writer {
    /// The stamp of all this writer does, but for sequence number and place.
    pub(crate) fn me(&self) -> Stamp {
        self.me
    }

    /// Whether this writer is answerable for a block of its file.
    pub(crate) fn owns(&self, place: u64) -> bool {
        match self.kind {
            Kind::Blocks { step, first, .. } => place % step == first,
            Kind::Log | Kind::Files => false,
        }
    }

    /// Counts what changes from here on.
    pub(crate) fn count_from_here(&mut self) {
        let me = self.me;
        match &mut self.record {
            Record::Blocks(blocks) => blocks.count_from_here(),
            Record::Log(log) => log.count_from_here(me),
            Record::Files(files) => files.count_from_here(),
        }
    }

    fn work(&mut self, root: &Path, shared: &Shared) -> Result<()> {
        let path = root.join(&self.path);
        let halt = match self.kind {
            Kind::Blocks { .. } => self.write_blocks(&path, shared),
            Kind::Log => self.append(&path, shared),
            Kind::Files => self.make_files(&path, shared),
        };
        match halt {
            Ok(()) | Err(Halt::Dead) => Ok(()),
            Err(Halt::Wrong(e)) => Err(e),
        }
    }

    fn next(&mut self) -> u64 {
        self.seq += 1;
        self.seq
    }

    /// Passes a success on; tells a death that was expected from an error.
    fn judged<T>(
        &mut self,
        shared: &Shared,
        what: &str,
        place: u64,
        result: io::Result<T>,
    ) -> Result<T, Halt> {
        match result {
            Ok(value) => {
                shared.acknowledged.fetch_add(1, Ordering::Relaxed);
                let seq = self.seq;
                match writeln!(self.journal, "{seq} {what} {place}") {
                    Ok(()) => Ok(value),
                    Err(e) => Err(Halt::Wrong(
                        anyhow::Error::from(e).context("the record cannot be written"),
                    )),
                }
            }
            Err(e) => Err(self.failed(shared, what, e)),
        }
    }

    fn failed(&self, shared: &Shared, what: &str, e: io::Error) -> Halt {
        if shared.killed.load(Ordering::SeqCst) && is_death(&e) {
            return Halt::Dead;
        }
        let path = self.path.display();
        Halt::Wrong(
            anyhow::Error::from(e).context(format!("{what} in {path}, number {}", self.seq)),
        )
    }

    fn write_blocks(&mut self, path: &Path, shared: &Shared) -> Result<(), Halt> {
        let Kind::Blocks {
            blocks: count,
            step,
            first,
            direct,
            sync_every,
        } = self.kind
        else {
            return Ok(());
        };
        let mut options = OpenOptions::new();
        options.write(true);
        if direct {
            options.custom_flags(libc::O_DIRECT);
        }
        let file = options
            .open(path)
            .map_err(|e| self.failed(shared, "open", e))?;
        let mut page = Box::new(Page([0; BLOCK]));
        while !shared.stop.load(Ordering::Relaxed) {
            let seq = self.next();
            let place = self.rng.random_range(0..count / step) * step + first;
            Stamp {
                seq,
                place,
                ..self.me
            }
            .fill(&mut page.0);
            let Record::Blocks(record) = &mut self.record else {
                return Ok(());
            };
            record.issue(place, seq);
            let written = whole(&page.0, |rest, done| {
                file.write_at(rest, place * BLOCK as u64 + done as u64)
            });
            if written.is_ok() {
                record.acknowledge(place, seq);
            }
            self.judged(shared, "write", place, written)?;
            if sync_every.is_some_and(|n| seq.is_multiple_of(n)) {
                let synced = file.sync_data();
                self.judged(shared, "fdatasync", place, synced)?;
            }
        }
        Ok(())
    }

    fn append(&mut self, path: &Path, shared: &Shared) -> Result<(), Halt> {
        let mut file = OpenOptions::new()
            .append(true)
            .open(path)
            .map_err(|e| self.failed(shared, "open", e))?;
        while !shared.stop.load(Ordering::Relaxed) {
            let seq = self.next();
            let line = Stamp { seq, ..self.me }.line();
            let Record::Log(record) = &mut self.record else {
                return Ok(());
            };
            record.issue(seq);
            let written = whole(&line, |rest, _| file.write(rest));
            if written.is_ok() {
                record.acknowledge(seq);
            }
            self.judged(shared, "append", 0, written)?;
        }
        Ok(())
    }

    fn make_files(&mut self, folder: &Path, shared: &Shared) -> Result<(), Halt> {
        while !shared.stop.load(Ordering::Relaxed) {
            let number = self.next();
            let (temporary, own) = names(folder, number);
            let made = self.step(shared, number, Life::Begun, || File::create_new(&temporary));
            let mut file = made?;
            let content = Stamp {
                seq: number,
                place: number,
                ..self.me
            }
            .file();
            self.step(shared, number, Life::Written, || {
                whole(&content, |rest, _| file.write(rest))
            })?;
            self.step(shared, number, Life::Renamed, || {
                std::fs::rename(&temporary, &own)
            })?;
            self.kept.push_back(number);
            if self.kept.len() > MAX_FILES
                && let Some(oldest) = self.kept.pop_front()
            {
                let (_, own) = names(folder, oldest);
                self.step(shared, oldest, Life::Nowhere, || std::fs::remove_file(&own))?;
            }
        }
        Ok(())
    }

    fn step<T>(
        &mut self,
        shared: &Shared,
        number: u64,
        next: Life,
        act: impl FnOnce() -> io::Result<T>,
    ) -> Result<T, Halt> {
        let Record::Files(record) = &mut self.record else {
            return Err(Halt::Dead);
        };
        record.issue(number, next);
        let done = act();
        if done.is_ok() {
            record.acknowledge(number, next);
        }
        let what = match next {
            Life::Nowhere => "unlink",
            Life::Begun => "create",
            Life::Written => "write",
            Life::Renamed => "rename",
        };
        self.judged(shared, what, number, done)
    }
}

/// Writes all of `data`, `write` from the given position on. What stopped a write half
/// way, the kill for one, is told by the next attempt.
fn whole(data: &[u8], mut write: impl FnMut(&[u8], usize) -> io::Result<usize>) -> io::Result<()> {
    let mut done = 0;
    while done < data.len() {
        match write(&data[done..], done)? {
            0 => return Err(io::ErrorKind::WriteZero.into()),
            n => done += n,
        }
    }
    Ok(())
}
