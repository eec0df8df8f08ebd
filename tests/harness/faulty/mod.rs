//! A disk that does what a test tells it: it fails, hangs, and loses what was not flushed.
//!
//! ```text
//! program -> ext4 -> loop device -> FUSE -> `faulty-disk`, a process of its own -> image
//!                                              | log: every write, discard and flush
//! ```
//!
//! The process serves a file system with one file, the disk. Every request of the ext4
//! above passes through it one after the other: it is failed or held up as the test
//! wants, else done on the image and noted in the log with its bytes. So the log leads
//! from the image at its beginning to what the disk held at any later point, and to what
//! it could have held after a power cut there ([`History`]).
//!
//! It is a process of its own, because a process that serves a file system must not wait
//! for one above it; and when it ends, however that happens, every request fails instead
//! of hanging.
//!
//! ```text
//! DIRECTORY/image     what the disk holds
//! DIRECTORY/base      what it held when the log began
//! DIRECTORY/log       the requests since then
//! DIRECTORY/fuse/     the mount with the one file
//! ```

mod history;
mod server;

use std::io::{BufRead, BufReader, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::process::{self, detach, must, unmount, wait_until};

pub use history::{Fate, History, Kind, Request};
pub use server::serve;

/// How long the process may take to answer, and a mount to come.
const PATIENCE: Duration = Duration::from_secs(60);

/// What the kernel's table of mounts shows as the source of the file system below.
pub(crate) const SOURCE: &str = "faulty-disk";

/// The name of the one file.
const NAME: &str = "disk";

/// The whole disk, as a range of bytes.
pub const ALL: Range<u64> = 0..u64::MAX;

/// What fails, with EIO if nothing else is said. Ranges are bytes of the disk.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Faults {
    /// Reads of these bytes.
    pub reads: Vec<Range<u64>>,
    /// Reads of these bytes, until they are written: a sector that the disk replaces.
    pub bad: Vec<Range<u64>>,
    /// Writes and discards of these bytes.
    pub writes: Vec<Range<u64>>,
    /// Writes fail with ENOSPC: what gives the disk its room has no more of it.
    pub full: bool,
    /// So many flushes more.
    pub flushes: u64,
    /// Nothing fails, but each write and flush takes its time.
    pub slow: Option<Slow>,
}

/// A disk that turns: how long a write or a flush takes.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Slow {
    /// Microseconds until it begins.
    pub seek_us: u64,
    /// Bytes written in a millisecond from then on.
    pub bytes_per_ms: u64,
}

impl Slow {
    /// An ordinary hard disk.
    pub fn hard_disk() -> Slow {
        Slow {
            seek_us: 6000,
            bytes_per_ms: 120_000,
        }
    }
}

impl Faults {
    /// `length` bytes cannot be read until they are written.
    pub fn bad_place(offset: u64, length: u64) -> Faults {
        let mut faults = Faults::default();
        faults.bad.push(offset..offset + length);
        faults
    }

    /// Every request fails: the disk is gone.
    pub fn everything() -> Faults {
        Faults {
            reads: vec![ALL],
            bad: Vec::new(),
            writes: vec![ALL],
            full: false,
            flushes: u64::MAX,
            slow: None,
        }
    }
}

#[derive(Debug, Serialize, Deserialize)]
enum Ask {
    Look,
    Faults(Faults),
    Hold(bool),
    HoldAfter(u64),
    Record,
    Die,
}

/// How the disk stands.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Standing {
    /// Requests in the log. Whatever an application was told before is in them.
    pub recorded: usize,
    /// Requests that have been failed.
    pub failed: u64,
    /// Requests that are held up.
    pub held: usize,
}

/// The disk, and the file system on it.
#[derive(Debug)]
pub struct ProgrammableDisk {
    directory: PathBuf,
    server: Mutex<Option<Server>>,
    mounted: Option<PathBuf>,
}

#[derive(Debug)]
struct Server {
    process: Child,
    questions: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl ProgrammableDisk {
    /// A new disk of `size` bytes with an empty ext4, not mounted, whose parts lie in the
    /// new directory `directory`.
    pub fn new(directory: &Path, size: u64) -> Result<ProgrammableDisk> {
        std::fs::create_dir_all(directory)?;
        let image = directory.join("image");
        std::fs::File::create(&image)?.set_len(size)?;
        must(
            Command::new("mkfs.ext4")
                // No blocks set aside for root: full is full. Nothing is left to be made
                // later, so that the log has only what tests do.
                .args(["-q", "-F", "-m", "0", "-E"])
                .arg("lazy_itable_init=0,lazy_journal_init=0,nodiscard")
                .arg(&image),
        )?;
        ProgrammableDisk::from_image(directory)
    }

    /// A disk whose image lies in `directory` already.
    pub fn from_image(directory: &Path) -> Result<ProgrammableDisk> {
        let disk = ProgrammableDisk {
            directory: directory.to_owned(),
            server: Mutex::default(),
            mounted: None,
        };
        disk.start()?;
        Ok(disk)
    }

    fn start(&self) -> Result<()> {
        let fuse = self.fuse();
        std::fs::create_dir_all(&fuse)?;
        let mut command = Command::new(process::program("faulty-disk")?);
        command
            .arg(&self.directory)
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut process = process::start(command)?;
        let questions = process.stdin.take().context("it has an input")?;
        let answers = process.stdout.take().context("it has an output")?;
        *self.lock() = Some(Server {
            process,
            questions,
            answers: BufReader::new(answers),
        });
        // It answers once it serves.
        self.record()
    }

    fn fuse(&self) -> PathBuf {
        self.directory.join("fuse")
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Server>> {
        self.server.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ask(&self, question: &Ask) -> Result<Standing> {
        let mut server = self.lock();
        let server = server.as_mut().context("the disk's process was ended")?;
        let mut line = serde_json::to_string(question)?;
        line.push('\n');
        server.questions.write_all(line.as_bytes())?;
        let mut answer = String::new();
        server.answers.read_line(&mut answer)?;
        serde_json::from_str(&answer).with_context(|| format!("{question:?}: {answer:?}"))
    }

    /// Mounts the file system at `path`, which is made. An error of the disk makes it
    /// read-only, as on most machines.
    pub fn mount(&mut self, path: &Path) -> Result<()> {
        ensure!(self.mounted.is_none(), "it is mounted already");
        std::fs::create_dir_all(path)?;
        let device = must(
            Command::new("losetup")
                .args(["--find", "--show", "--direct-io=on"])
                .arg(self.fuse().join(NAME)),
        )?;
        let device = device.trim();
        let mounted = must(
            Command::new("mount")
                .args(["-t", "ext4", "-o", "errors=remount-ro", device])
                .arg(path),
        );
        // It goes with the mount from now on, or at once if there is none.
        must(Command::new("losetup").args(["--detach", device]))?;
        mounted?;
        self.mounted = Some(path.to_owned());
        Ok(())
    }

    /// Unmounts it; fails while it is in use.
    pub fn unmount(&mut self) -> Result<()> {
        let path = self.mounted.as_ref().context("it is not mounted")?;
        unmount(path)?;
        self.mounted = None;
        Ok(())
    }

    /// From now on this fails, and nothing else.
    pub fn fail(&self, faults: Faults) {
        self.ask(&Ask::Faults(faults)).expect("the disk answers");
    }

    /// Nothing fails any more.
    pub fn heal(&self) {
        self.fail(Faults::default());
    }

    /// Turns the lowest bit of a byte of the disk, behind the back of everybody above it.
    pub fn flip_bit(&self, offset: u64) -> Result<()> {
        let image = std::fs::File::options()
            .read(true)
            .write(true)
            .open(self.directory.join("image"))?;
        let mut byte = [0];
        image.read_exact_at(&mut byte, offset)?;
        Ok(image.write_all_at(&[byte[0] ^ 1], offset)?)
    }

    /// Every request waits from now on.
    pub fn hold(&self) {
        self.ask(&Ask::Hold(true)).expect("the disk answers");
    }

    /// So many writes, discards and flushes more are done; from the next one on, every
    /// request waits.
    pub fn hold_after(&self, requests: u64) {
        self.ask(&Ask::HoldAfter(requests))
            .expect("the disk answers");
    }

    /// What waited is done, in the order in which it came.
    pub fn release(&self) {
        self.ask(&Ask::Hold(false)).expect("the disk answers");
    }

    /// How the disk stands.
    pub fn look(&self) -> Standing {
        self.ask(&Ask::Look).expect("the disk answers")
    }

    /// The log begins anew, at what the disk holds now. It has begun when the disk was made.
    pub fn record(&self) -> Result<()> {
        self.ask(&Ask::Record).map(drop)
    }

    /// The log so far.
    pub fn history(&self) -> Result<History> {
        let recorded = self.ask(&Ask::Look)?.recorded;
        History::read(&self.directory, recorded)
    }

    /// Where the bytes of a file lie on the disk. What waits for its place is written first.
    pub fn places_of(&self, path: &Path) -> Result<Vec<Range<u64>>> {
        let places = crate::space::places(&crate::compare::open_quietly(path)?)?;
        ensure!(!places.is_empty(), "{} has no place", path.display());
        Ok(places)
    }

    /// Fills the file system: not a byte more can be written. Removing the file that is
    /// returned makes room again.
    pub fn fill(&self) -> Result<PathBuf> {
        let path = self.mounted.as_ref().context("it is not mounted")?;
        let path = path.join("filler");
        let mut file = std::fs::File::create(&path)?;
        for piece in [1 << 20, 4096] {
            let zeros = vec![0; piece];
            loop {
                match file.write_all(&zeros) {
                    Ok(()) => {}
                    Err(e) if e.raw_os_error() == Some(libc::ENOSPC) => break,
                    Err(e) => return Err(e.into()),
                }
            }
        }
        file.sync_all()?;
        Ok(path)
    }

    /// The power is off: every request fails from now on, and those that waited. Only
    /// [`ProgrammableDisk::cut`] brings the disk back.
    pub fn die(&self) {
        self.ask(&Ask::Die).expect("the disk answers");
    }

    /// A power cut: what the disk holds afterwards is what was flushed, and of the
    /// requests behind the last flush what `fate` says. Not mounted afterwards, without
    /// faults, and the log begins anew. Whoever uses the mount finds a dead one.
    pub fn cut(&mut self, fate: impl Fn(usize, &Request) -> Fate) -> Result<()> {
        self.die();
        let recorded = self.look().recorded;
        self.take_down()?;
        let mut history = History::read(&self.directory, recorded)?;
        let after = self.directory.join("after");
        history.image_at(recorded, fate, &after)?;
        std::fs::rename(after, self.directory.join("image"))?;
        self.start()
    }

    /// Takes away the mount and the process, as they are. Nothing hangs: a disk whose
    /// process has ended fails every request.
    fn take_down(&mut self) -> Result<()> {
        if let Some(mut server) = self.lock().take() {
            // First, so that unmounting waits for nothing.
            let _ = server.process.kill();
            let _ = server.process.wait();
        }
        if let Some(path) = self.mounted.take() {
            detach(&path);
        }
        let fuse = self.fuse();
        detach(&fuse);
        let gone = wait_until(PATIENCE, || !process::is_mounted(&fuse));
        ensure!(gone, "{} is still mounted", fuse.display());
        Ok(())
    }
}

impl Drop for ProgrammableDisk {
    fn drop(&mut self) {
        if let Err(e) = self.take_down() {
            eprintln!("a disk is left behind: {e:#}");
        }
    }
}
