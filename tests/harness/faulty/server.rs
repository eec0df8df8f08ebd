//! The process behind a disk: one file, and what is done to its requests.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufRead, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, UNIX_EPOCH};

use anyhow::{Context, Result};
use fuser::{
    Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo,
    KernelConfig, LockOwner, MountOption, OpenFlags, ReplyAttr, ReplyData, ReplyEmpty, ReplyEntry,
    ReplyOpen, ReplyWrite, Session, WriteFlags,
};

use super::history::{Kind, copy, discard, header};
use super::{Ask, Faults, NAME, SOURCE, Standing};

/// The inode number of the one file.
const DISK: u64 = 2;

/// `PR_SET_IO_FLUSHER` of `linux/prctl.h`.
const IO_FLUSHER: i32 = 57;

/// How long the kernel trusts what it was told: nothing changes by itself.
const TTL: Duration = Duration::from_secs(3600);

/// What is done to one request, when its turn comes.
type Work = Box<dyn FnOnce(&mut State) + Send>;

struct State {
    directory: PathBuf,
    image: File,
    size: u64,
    log: File,
    standing: Standing,
    faults: Faults,
    holding: bool,
    /// Requests that are done before it holds.
    hold_after: Option<u64>,
    held: Vec<Work>,
    dead: bool,
}

fn overlap(ranges: &[Range<u64>], offset: u64, length: u64) -> bool {
    let end = offset + length;
    ranges.iter().any(|r| r.start < end && offset < r.end)
}

/// `ranges` without the bytes from `offset` on.
fn without(ranges: &[Range<u64>], offset: u64, length: u64) -> Vec<Range<u64>> {
    let end = offset + length;
    ranges
        .iter()
        .flat_map(|r| [r.start..r.end.min(offset), r.start.max(end)..r.end])
        .filter(|r| r.start < r.end)
        .collect()
}

impl State {
    fn note(&mut self, kind: Kind, offset: u64, length: u64, data: &[u8]) -> io::Result<()> {
        let mut entry = header(kind, offset, length).to_vec();
        entry.extend_from_slice(data);
        self.log.write_all(&entry)?;
        self.standing.recorded += 1;
        Ok(())
    }

    fn turns(&self, bytes: u64) {
        if let Some(slow) = self.faults.slow {
            let us = slow.seek_us + bytes * 1000 / slow.bytes_per_ms;
            std::thread::sleep(std::time::Duration::from_micros(us));
        }
    }

    fn refuse<T>(&mut self) -> io::Result<T> {
        self.standing.failed += 1;
        Err(io::Error::from_raw_os_error(libc::EIO))
    }

    fn read(&mut self, offset: u64, length: u64) -> io::Result<Vec<u8>> {
        let faults = &self.faults;
        if self.dead
            || overlap(&faults.reads, offset, length)
            || overlap(&faults.bad, offset, length)
        {
            return self.refuse();
        }
        let mut bytes = vec![0; length.min(self.size.saturating_sub(offset)) as usize];
        self.image.read_exact_at(&mut bytes, offset)?;
        Ok(bytes)
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        let length = data.len() as u64;
        if self.dead || overlap(&self.faults.writes, offset, length) {
            let refused = self.refuse();
            return match self.faults.full && !self.dead {
                true => Err(io::Error::from_raw_os_error(libc::ENOSPC)),
                false => refused,
            };
        }
        self.turns(length);
        self.image.write_all_at(data, offset)?;
        self.faults.bad = without(&self.faults.bad, offset, length);
        self.note(Kind::Write, offset, length, data)
    }

    fn discard(&mut self, offset: u64, length: u64) -> io::Result<()> {
        if self.dead || overlap(&self.faults.writes, offset, length) {
            return self.refuse();
        }
        discard(&self.image, offset, length)?;
        self.note(Kind::Discard, offset, length, &[])
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.dead || self.faults.flushes > 0 {
            self.faults.flushes = self.faults.flushes.saturating_sub(1);
            return self.refuse();
        }
        self.turns(0);
        self.note(Kind::Flush, 0, 0, &[])
    }

    fn record(&mut self) -> Result<()> {
        copy(&self.directory.join("image"), &self.directory.join("base"))?;
        self.log = File::create(self.directory.join("log"))?;
        self.standing.recorded = 0;
        Ok(())
    }

    fn turn(&mut self, work: Work) {
        match self.holding {
            true => self.held.push(work),
            false => work(self),
        }
    }

    fn release(&mut self) {
        for work in std::mem::take(&mut self.held) {
            work(self);
        }
    }

    fn answer(&mut self, question: Ask) -> Result<Standing> {
        match question {
            Ask::Look => {}
            Ask::Faults(faults) => self.faults = faults,
            Ask::Hold(hold) => {
                self.holding = hold;
                self.hold_after = None;
            }
            Ask::HoldAfter(requests) => self.hold_after = Some(requests),
            Ask::Record => self.record()?,
            Ask::Die => {
                self.dead = true;
                self.holding = false;
                self.hold_after = None;
            }
        }
        if !self.holding {
            self.release();
        }
        self.standing.held = self.held.len();
        Ok(self.standing)
    }
}

#[derive(Clone)]
struct Disk(Arc<Mutex<State>>);

impl Disk {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does the work now, or when the disk is released.
    fn turn(&self, work: impl FnOnce(&mut State) + Send + 'static) {
        self.state().turn(Box::new(work));
    }

    /// The same for work that changes the disk.
    fn change(&self, work: impl FnOnce(&mut State) + Send + 'static) {
        let mut state = self.state();
        match state.hold_after {
            Some(0) => state.holding = true,
            Some(left) => state.hold_after = Some(left - 1),
            None => {}
        }
        state.turn(Box::new(work));
    }

    fn attributes(&self, inode: u64) -> FileAttr {
        let size = self.state().size;
        FileAttr {
            ino: INodeNo(inode),
            size: if inode == DISK { size } else { 0 },
            blocks: size / 512,
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind: match inode {
                DISK => FileType::RegularFile,
                _ => FileType::Directory,
            },
            perm: 0o700,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }
}

fn errno(e: &io::Error) -> Errno {
    Errno::from_i32(e.raw_os_error().unwrap_or(libc::EIO))
}

fn tell(reply: ReplyEmpty, done: io::Result<()>) {
    match done {
        Ok(()) => reply.ok(),
        Err(e) => reply.error(errno(&e)),
    }
}

impl Filesystem for Disk {
    fn init(&mut self, _: &fuser::Request, config: &mut KernelConfig) -> io::Result<()> {
        let _ = config.set_max_write(1 << 20);
        Ok(())
    }

    fn lookup(&self, _: &fuser::Request, _: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match name == NAME {
            true => reply.entry(&TTL, &self.attributes(DISK), Generation(0)),
            false => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &fuser::Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&TTL, &self.attributes(ino.0));
    }

    fn open(&self, _: &fuser::Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        // Nothing stays in a cache between the loop device and this process.
        reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO);
    }

    fn read(
        &self,
        _: &fuser::Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.turn(move |state| match state.read(offset, size.into()) {
            Ok(bytes) => reply.data(&bytes),
            Err(e) => reply.error(errno(&e)),
        });
    }

    fn write(
        &self,
        _: &fuser::Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let data = data.to_vec();
        self.change(move |state| match state.write(offset, &data) {
            Ok(()) => reply.written(data.len() as u32),
            Err(e) => reply.error(errno(&e)),
        });
    }

    fn fallocate(
        &self,
        _: &fuser::Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        // The loop device punches for a discard and zeroes for zeros: both are zeros.
        if mode & (libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_ZERO_RANGE) == 0 {
            return reply.error(Errno::EOPNOTSUPP);
        }
        self.change(move |state| tell(reply, state.discard(offset, length)));
    }

    fn fsync(&self, _: &fuser::Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        self.change(move |state| tell(reply, state.flush()));
    }

    fn flush(&self, _: &fuser::Request, _: INodeNo, _: FileHandle, _: LockOwner, r: ReplyEmpty) {
        r.error(Errno::ENOSYS);
    }
}

/// Serves the disk in `directory` until its input ends.
pub fn serve(directory: &Path) -> Result<()> {
    let image = File::options()
        .read(true)
        .write(true)
        .open(directory.join("image"))?;
    let disk = Disk(Arc::new(Mutex::new(State {
        directory: directory.to_owned(),
        size: image.metadata()?.len(),
        image,
        log: File::create(directory.join("log"))?,
        standing: Standing::default(),
        faults: Faults::default(),
        holding: false,
        hold_after: None,
        held: Vec::new(),
        dead: false,
    })));
    // Memory for this process must never wait for the disk that it is.
    // SAFETY: a call without memory. It may be refused; then that is the machine's risk.
    unsafe { libc::prctl(IO_FLUSHER, 1, 0, 0, 0) };
    let mut config = Config::default();
    config.mount_options = vec![MountOption::FSName(SOURCE.into())];
    let session = Session::new(disk.clone(), directory.join("fuse"), &config)
        .context("cannot mount the disk's file")?;
    std::thread::Builder::new()
        .name("fuse".into())
        .spawn(move || session.run())?;
    for line in io::stdin().lock().lines() {
        let answer = disk.state().answer(serde_json::from_str(&line?)?)?;
        println!("{}", serde_json::to_string(&answer)?);
    }
    Ok(())
}
