//! Processes that die with the test, and what dead ones left behind.

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::mpsc::{Sender, channel};
use std::sync::{LazyLock, Mutex, Once, PoisonError};
use std::time::{Duration, Instant};

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

/// Starts a process that is killed when this one ends.
pub(crate) fn start(mut command: Command) -> io::Result<Child> {
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
pub(crate) fn new_directory(number: usize) -> io::Result<PathBuf> {
    let path = Path::new(DIRECTORY).join(format!("{PREFIX}{}.{number}", std::process::id()));
    std::fs::create_dir(&path)?;
    Ok(path)
}

/// Takes away whatever is mounted at `path`, in use or not.
pub(crate) fn detach(path: &Path) {
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

/// Removes a directory of a pair, once nothing is mounted in it.
pub(crate) fn remove_directory(path: &Path) {
    for node in ["a", "b"] {
        detach(&path.join(node).join("vm"));
        detach(&path.join(node));
    }
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
