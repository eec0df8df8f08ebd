//! An application of several threads that work in a folder, each in a directory of its
//! own, and keep a record of what was acknowledged to them outside of it.
//!
//! A writer does one thing after the other: writes, direct writes, appends, truncations,
//! holes, new, renamed, linked and removed files and directories, modes, attributes,
//! fsyncs, and reads of what it wrote. Its record is a model of its directory: whatever
//! was acknowledged is in it, and the one operation that was not answered when the mount
//! died may be there or not ([`Application::check`]).

mod judge;
mod model;

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::dice::Dice;
use crate::process::wait_until;
use judge::Found;
use model::{Model, Op};

/// The extended attribute of a note.
const NOTE: &str = "user.note";

/// How long writers may take to come forward, or to end, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(90);

/// How long a writer waits after a full disk.
const WHEN_FULL: Duration = Duration::from_millis(20);

/// What was acknowledged so far, and what was refused.
#[derive(Debug, Default)]
pub struct Tally {
    operations: AtomicU64,
    writes: AtomicU64,
    syncs: AtomicU64,
    full: AtomicU64,
}

impl Tally {
    /// Operations acknowledged.
    pub fn operations(&self) -> u64 {
        self.operations.load(Ordering::SeqCst)
    }

    /// Writes among them.
    pub fn writes(&self) -> u64 {
        self.writes.load(Ordering::SeqCst)
    }

    /// Fsyncs among them.
    pub fn syncs(&self) -> u64 {
        self.syncs.load(Ordering::SeqCst)
    }

    /// Operations refused because the disk was full.
    pub fn full(&self) -> u64 {
        self.full.load(Ordering::SeqCst)
    }
}

/// What the writers share while they run.
#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    /// The mount dies: errors are what must come.
    dies: AtomicBool,
    /// The disk may be full.
    full: AtomicBool,
    error: Mutex<Option<String>>,
}

/// One writer and its record.
#[derive(Debug)]
struct Writer {
    number: u64,
    name: String,
    dice: Dice,
    count: u64,
    model: Model,
    /// The operation that was not answered.
    open: Option<Op>,
}

/// The application, at rest.
#[derive(Debug)]
pub struct Application {
    writers: Vec<Writer>,
    tally: Arc<Tally>,
}

/// The application at work.
#[derive(Debug)]
pub struct Running {
    shared: Arc<Shared>,
    tally: Arc<Tally>,
    ended: Receiver<Writer>,
    count: usize,
}

impl Application {
    /// As many writers, whose work the seed tells.
    pub fn new(seed: u64, count: u64) -> Application {
        let writer = |number: u64| Writer {
            number,
            name: format!("writer-{number}"),
            dice: Dice::new(seed.wrapping_mul(1000).wrapping_add(number)),
            count: 0,
            model: Model::default(),
            open: None,
        };
        Application {
            writers: (0..count).map(writer).collect(),
            tally: Arc::default(),
        }
    }

    /// What was acknowledged in all its runs.
    pub fn tally(&self) -> &Arc<Tally> {
        &self.tally
    }

    /// Sets all writers to work in the folder.
    pub fn start(self, folder: &Path) -> Running {
        let shared = Arc::<Shared>::default();
        let (tell, ended) = channel();
        let count = self.writers.len();
        for mut writer in self.writers {
            let (shared, tally, tell) = (shared.clone(), self.tally.clone(), tell.clone());
            let directory = folder.join(&writer.name);
            std::thread::spawn(move || {
                if let Err(e) = writer.work(&directory, &shared, &tally) {
                    let what = format!("{}: {:?}: {e}", writer.name, writer.open);
                    shared
                        .error
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .get_or_insert(what);
                }
                let _ = tell.send(writer);
            });
        }
        Running {
            shared,
            tally: self.tally,
            ended,
            count,
        }
    }

    /// Whether an operation was not answered, and may have happened or not. The folder must
    /// be [checked](Application::check) before the application goes on.
    pub fn is_in_doubt(&self) -> bool {
        self.writers.iter().any(|writer| writer.open.is_some())
    }

    /// Everything in which what is in `folder` contradicts the record; what was in doubt
    /// is then settled.
    pub fn check(&mut self, folder: &Path) -> Vec<String> {
        let mut all = Vec::new();
        for writer in &mut self.writers {
            match writer.settle(&folder.join(&writer.name)) {
                Ok(wrong) => {
                    let at = |what| format!("{}/{}: {what}", folder.display(), writer.name);
                    all.extend(wrong.into_iter().map(at));
                }
                Err(e) => all.push(format!("{}/{}: {e}", folder.display(), writer.name)),
            }
        }
        all
    }
}

impl Running {
    /// Operations acknowledged so far, in this run and those before.
    pub fn acknowledged(&self) -> u64 {
        self.tally.operations()
    }

    /// What was acknowledged in all runs.
    pub fn tally(&self) -> &Arc<Tally> {
        &self.tally
    }

    fn fail_if_wrong(&self) {
        let error = self.shared.error.lock();
        if let Some(error) = &*error.unwrap_or_else(PoisonError::into_inner) {
            panic!("the application sees an error: {error}");
        }
    }

    /// Waits until `more` further operations are acknowledged; returns how long it took.
    pub fn expect(&self, more: u64, when: &str) -> Duration {
        let begun = Instant::now();
        let goal = self.acknowledged() + more;
        let there = wait_until(PATIENCE, || {
            self.fail_if_wrong();
            self.acknowledged() >= goal
        });
        let missing = goal.saturating_sub(self.acknowledged());
        assert!(there, "{when}: {missing} of {more} operations are missing");
        begun.elapsed()
    }

    /// From here on a full disk is an answer.
    pub fn disk_may_be_full(&self, full: bool) {
        self.shared.full.store(full, Ordering::SeqCst);
    }

    /// From here on the mount may die, and a writer that gets an error ends.
    pub fn mount_dies(&self) {
        self.shared.dies.store(true, Ordering::SeqCst);
    }

    /// Lets every writer finish the call it is in. Fails the test if one of them has seen
    /// an error that nobody announced.
    pub fn stop(self) -> Application {
        self.shared.stop.store(true, Ordering::SeqCst);
        let until = Instant::now() + PATIENCE;
        let mut writers = Vec::new();
        while writers.len() < self.count {
            let left = until.saturating_duration_since(Instant::now());
            match self.ended.recv_timeout(left) {
                Ok(writer) => writers.push(writer),
                Err(_) => panic!("a call on the mount does not return"),
            }
        }
        self.fail_if_wrong();
        writers.sort_by_key(|writer| writer.number);
        Application {
            writers,
            tally: self.tally,
        }
    }
}

impl Writer {
    fn work(&mut self, directory: &Path, shared: &Shared, tally: &Tally) -> io::Result<()> {
        while !shared.stop.load(Ordering::SeqCst) {
            self.count += 1;
            let op = self.model.draw(&mut self.dice, self.count);
            self.open = Some(op.clone());
            // It may hear of a full disk when that is over.
            let was_full = shared.full.load(Ordering::SeqCst);
            let done = match self.count {
                // It is there if the mount died before this was answered.
                1 => std::fs::create_dir_all(directory),
                _ => Ok(()),
            };
            match done.and_then(|()| self.perform(directory, &op)) {
                Ok(()) => {}
                // What has become of it is found out when the folder is checked.
                Err(_) if shared.dies.load(Ordering::SeqCst) => return Ok(()),
                Err(e)
                    if e.raw_os_error() == Some(libc::ENOSPC)
                        && (was_full || shared.full.load(Ordering::SeqCst)) =>
                {
                    tally.full.fetch_add(1, Ordering::SeqCst);
                    let wrong = self.settle(directory)?;
                    if !wrong.is_empty() {
                        return Err(io::Error::other(wrong.join("\n")));
                    }
                    std::thread::sleep(WHEN_FULL);
                    continue;
                }
                Err(e) => return Err(e),
            }
            self.model.apply(self.number, &op);
            self.open = None;
            tally.operations.fetch_add(1, Ordering::SeqCst);
            let more = match &op {
                op if op.is_write() => &tally.writes,
                Op::Sync(_) => &tally.syncs,
                _ => continue,
            };
            more.fetch_add(1, Ordering::SeqCst);
        }
        Ok(())
    }

    fn settle(&mut self, directory: &Path) -> io::Result<Vec<String>> {
        if self.model.entries.is_empty() && !directory.exists() {
            // Its first operation was not answered.
            self.open = None;
            self.count = 0;
            return Ok(Vec::new());
        }
        let found = Found::read(directory)?;
        Ok(judge::judge(
            &mut self.model,
            &mut self.open,
            self.number,
            &found,
        ))
    }

    fn perform(&self, directory: &Path, op: &Op) -> io::Result<()> {
        let at = |path: &str| directory.join(path);
        let open = |path: &str| File::options().write(true).open(at(path));
        match op {
            Op::Create(path) => {
                let mut options = File::options();
                let options = options.write(true).create_new(true).mode(0o644);
                options.open(at(path)).map(drop)
            }
            Op::Write {
                path,
                offset,
                length,
                number,
                direct,
            } => {
                let flags = if *direct { libc::O_DIRECT } else { 0 };
                let mut options = File::options();
                let file = options.write(true).custom_flags(flags).open(at(path))?;
                let data = Aligned::new(&model::bytes(self.number, *number, *length));
                file.write_all_at(data.bytes(), *offset)
            }
            Op::Append {
                path,
                length,
                number,
            } => {
                let mut file = File::options().append(true).open(at(path))?;
                file.write_all(&model::bytes(self.number, *number, *length))
            }
            Op::Truncate { path, size } => open(path)?.set_len(*size),
            Op::Punch {
                path,
                offset,
                length,
            } => {
                let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
                let file = open(path)?;
                let (offset, length) = (*offset as i64, *length as i64);
                // SAFETY: a system call on an open descriptor, without memory.
                match unsafe { libc::fallocate(file.as_raw_fd(), mode, offset, length) } {
                    0 => Ok(()),
                    _ => Err(io::Error::last_os_error()),
                }
            }
            Op::Rename { from, to } => std::fs::rename(at(from), at(to)),
            Op::Link { from, to } => std::fs::hard_link(at(from), at(to)),
            Op::Symlink { path, target } => std::os::unix::fs::symlink(target, at(path)),
            Op::Unlink(path) => std::fs::remove_file(at(path)),
            Op::Mkdir(path) => std::fs::create_dir(at(path)),
            Op::Rmdir(path) => std::fs::remove_dir(at(path)),
            Op::Chmod { path, mode } => {
                std::fs::set_permissions(at(path), PermissionsExt::from_mode(*mode))
            }
            Op::Note { path, number } => {
                let flags = rustix::fs::XattrFlags::empty();
                let note = model::note(*number);
                Ok(rustix::fs::lsetxattr(at(path), NOTE, &note, flags)?)
            }
            Op::Sync(path) => open(path)?.sync_all(),
            Op::Read(path) => {
                let found = std::fs::read(at(path))?;
                let same = self.model.file(path).is_some_and(|f| f.data == found);
                match same {
                    true => Ok(()),
                    false => Err(io::Error::other(format!("{path} is not what was written"))),
                }
            }
        }
    }
}

/// Bytes at a block's address, as `O_DIRECT` wants them.
struct Aligned {
    buffer: Vec<u8>,
    start: usize,
    length: usize,
}

impl Aligned {
    fn new(bytes: &[u8]) -> Aligned {
        let block = model::BLOCK as usize;
        let mut buffer = vec![0; bytes.len() + block];
        let start = buffer.as_ptr().align_offset(block);
        buffer[start..start + bytes.len()].copy_from_slice(bytes);
        Aligned {
            buffer,
            start,
            length: bytes.len(),
        }
    }

    fn bytes(&self) -> &[u8] {
        &self.buffer[self.start..self.start + self.length]
    }
}
