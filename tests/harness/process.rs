//! Processes that die with the test, and what dead ones left behind.

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{LazyLock, Mutex, Once, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::faulty;

/// Where the temporary directories of the tests lie: a real disk, not a tmpfs.
const DIRECTORY: &str = "/var/tmp";

/// What their names begin with.
const PREFIX: &str = "twinfold-tests.";

type Job = Box<dyn FnOnce() + Send>;

/// The kernel sends the death signal when the *thread* that started a process
/// ends; so all are started by one that lasts as long as the tests.
static STARTER: LazyLock<Mutex<Sender<Job>>> = LazyLock::new(|| {
    let (jobs, queue) = channel::<Job>();
    std::thread::spawn(move || queue.into_iter().for_each(|job| job()));
    Mutex::new(jobs)
});

/// Whether no thread of a process runs, or will before the process is continued: each is
/// stopped, or in a system call behind which it stops (`proc(5)`, `stat`).
pub fn is_stopped(pid: u32) -> bool {
    // One that has ended runs no more, either.
    let Ok(threads) = std::fs::read_dir(format!("/proc/{pid}/task")) else {
        return true;
    };
    threads.flatten().all(|thread| {
        let Ok(stat) = std::fs::read_to_string(thread.path().join("stat")) else {
            return true;
        };
        let state = stat.rsplit(") ").next().and_then(|s| s.chars().next());
        !matches!(state, Some('R' | 'S'))
    })
}

/// Starts a process that is killed when this one ends.
pub fn start(mut command: Command) -> io::Result<Child> {
    let parent = std::process::id();
    // SAFETY: between fork and exec only two system calls without memory are made.
    unsafe {
        command.pre_exec(move || {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            // It may have ended before the request was in place.
            if libc::getppid() as u32 != parent {
                libc::_exit(1);
            }
            Ok(())
        });
    }
    let (tell, told) = channel();
    STARTER
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .send(Box::new(move || {
            let _ = tell.send(command.spawn());
        }))
        .map_err(|e| io::Error::other(e.to_string()))?;
    told.recv().map_err(io::Error::other)?
}

/// A program of this package, built along with the tests and lying beside them.
pub fn program(name: &str) -> Result<PathBuf> {
    let me = std::env::current_exe()?;
    let path = me
        .ancestors()
        .skip(1)
        .take(2)
        .map(|directory| directory.join(name))
        .find(|path| path.is_file());
    path.with_context(|| format!("the program `{name}` is not beside {}", me.display()))
}

/// Runs a command of the system; returns what it printed.
pub(crate) fn must(command: &mut Command) -> Result<String> {
    let output = command
        .output()
        .with_context(|| format!("{command:?}: install e2fsprogs and mount"))?;
    ensure!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// How long an unmount is tried: a program that another thread is about to start has every file
/// of this one open until it begins.
const BUSY: Duration = Duration::from_secs(5);

/// Unmounts a file system; fails when it stays in use.
pub(crate) fn unmount(path: &Path) -> Result<()> {
    let until = Instant::now() + BUSY;
    loop {
        match must(Command::new("umount").arg(path)) {
            Err(e) if e.to_string().contains("busy") && Instant::now() < until => {
                std::thread::sleep(Duration::from_millis(20));
            }
            done => return done.map(drop),
        }
    }
}

/// Fails the test with a clear message where it cannot run: nothing is skipped silently.
pub(crate) fn require_machine() {
    static CHECKED: Once = Once::new();
    // SAFETY: a call without arguments that cannot fail.
    let user = unsafe { libc::geteuid() };
    assert!(
        user == 0,
        "these tests mount file systems and change owners: run them as root (this is user {user})"
    );
    let fuse = std::fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/fuse");
    if let Err(e) = fuse {
        panic!("these tests need /dev/fuse, which cannot be opened: {e}");
    }
    CHECKED.call_once(remove_leftovers);
}

/// A new directory that ordinary users can pass through.
pub(crate) fn new_directory() -> io::Result<PathBuf> {
    static NUMBER: AtomicUsize = AtomicUsize::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let path = Path::new(DIRECTORY).join(format!("{PREFIX}{}.{number}", std::process::id()));
    std::fs::create_dir(&path)?;
    Ok(path)
}

/// A directory for one test, removed with whatever is mounted in it.
#[derive(Debug)]
pub struct Scratch(PathBuf);

impl Scratch {
    /// A new one.
    #[expect(
        clippy::new_without_default,
        reason = "it makes a directory; that should be seen where it happens"
    )]
    pub fn new() -> Scratch {
        require_machine();
        Scratch(new_directory().expect("a directory for the test"))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        remove_directory(&self.0);
    }
}

/// Takes away whatever is mounted at `path`, in use or not.
pub fn detach(path: &Path) {
    let Ok(path) = CString::new(path.as_os_str().as_bytes()) else {
        return;
    };
    // A few layers at most.
    for _ in 0..8 {
        // SAFETY: the path is a NUL-terminated string that outlives the call.
        let rc = unsafe { libc::umount2(path.as_ptr(), libc::MNT_DETACH | libc::UMOUNT_NOFOLLOW) };
        if rc != 0 {
            return;
        }
    }
}

/// The mounts of this machine, by the kernel's table: source and place, oldest first.
fn mounts() -> Vec<(String, PathBuf)> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let one = |line: &str| {
        let (left, right) = line.split_once(" - ")?;
        let place = left.split(' ').nth(4)?;
        let source = right.split(' ').nth(1)?;
        Some((source.to_owned(), place.into()))
    };
    table.lines().filter_map(one).collect()
}

/// Whether something is mounted at `path`; the path itself is not asked.
pub fn is_mounted(path: &Path) -> bool {
    mounts().iter().any(|(_, place)| place == path)
}

/// Takes away every mount below `path`, disks last: a loop device is still asked for its
/// file, which lies on one, when what is mounted from it goes.
fn detach_below(path: &Path) {
    let below = || {
        mounts()
            .into_iter()
            .rev()
            .filter(|(_, p)| p.starts_with(path))
    };
    for (_, place) in below().filter(|(source, _)| source != faulty::SOURCE) {
        detach(&place);
    }
    let devices = std::fs::read_dir("/sys/block").into_iter().flatten();
    for device in devices.flatten() {
        let file = device.path().join("loop/backing_file");
        if std::fs::read_to_string(file).is_ok_and(|f| Path::new(&f).starts_with(path)) {
            let device = Path::new("/dev").join(device.file_name());
            if let Err(e) = must(Command::new("losetup").arg("--detach").arg(&device)) {
                eprintln!("{} is left behind: {e:#}", device.display());
            }
        }
    }
    for (_, place) in below() {
        detach(&place);
    }
}

/// Removes a directory of tests, whatever is mounted in it.
pub fn remove_directory(path: &Path) {
    detach_below(path);
    if let Err(e) = std::fs::remove_dir_all(path)
        && e.kind() != io::ErrorKind::NotFound
    {
        eprintln!("{} is left behind: {e}", path.display());
    }
}

fn remove_leftovers() {
    let Ok(entries) = std::fs::read_dir(DIRECTORY) else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let Some(rest) = name.to_str().and_then(|n| n.strip_prefix(PREFIX)) else {
            continue;
        };
        let owner = rest.split('.').next().unwrap_or_default();
        if !owner.is_empty() && !Path::new("/proc").join(owner).exists() {
            remove_directory(&entry.path());
        }
    }
}

/// Asks every few milliseconds until the answer is yes; false when time is up.
pub fn wait_until(limit: Duration, mut done: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + limit;
    loop {
        if done() {
            return true;
        }
        if Instant::now() > end {
            return false;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Lets a command run as an ordinary user (`Command::uid` drops root's further groups).
pub fn leave_root(command: &mut Command, user: u32) -> &mut Command {
    command.uid(user).gid(user)
}
