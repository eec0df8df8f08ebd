//! Where the demonstration takes place: a fresh directory on a file system that can
//! hold a replicated folder, and the real files that are in the folder to begin with.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use rustix::fs::{FlockOperation, XattrFlags};

/// Tried in turn when no directory is given.
const CANDIDATES: [&str; 4] = ["/var/tmp", "/tmp", ".", "/dev/shm"];

const PREFIX: &str = "twinfold-demo-";

/// Held as long as a run uses its directory.
const LOCK: &str = "in-use";

/// Free bytes needed: both copies of the folder, with room to spare.
const NEEDED: u64 = 1 << 30;

/// Bytes and files copied into the folder.
const SEED_BYTES: u64 = 20 << 20;
const SEED_FILES: usize = 1500;

/// Largest file copied.
const SEED_FILE_BYTES: u64 = 4 << 20;

/// A fresh directory, in `wanted` or in the first place that will do.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) directory: PathBuf,
    _lock: File,
}

impl Place {
    pub(crate) fn new(wanted: Option<&Path>) -> Result<Place> {
        if !rustix::process::geteuid().is_root() {
            bail!("mounting needs root: run it with sudo, or as root");
        }
        File::options()
            .read(true)
            .write(true)
            .open("/dev/fuse")
            .context("FUSE is needed (try: modprobe fuse; in a container: --device /dev/fuse)")?;
        if let Some(wanted) = wanted {
            return fresh(wanted).with_context(|| {
                format!(
                    "the demonstration cannot take place in {}",
                    wanted.display()
                )
            });
        }
        let mut reasons = String::new();
        for candidate in CANDIDATES {
            match fresh(Path::new(candidate)) {
                Ok(place) => return Ok(place),
                Err(e) => reasons.push_str(&format!("\n  {candidate}: {e:#}")),
            }
        }
        bail!(
            "no place for the demonstration was found; give a directory on ext4, xfs or btrfs with \
             --dir{reasons}"
        )
    }
}

fn fresh(parent: &Path) -> Result<Place> {
    let parent = std::fs::canonicalize(parent)?;
    sweep(&parent);
    let directory = parent.join(format!("{PREFIX}{:08x}", rand::random::<u32>()));
    std::fs::DirBuilder::new()
        .mode(0o700)
        .create(&directory)
        .context("cannot make a directory in it")?;
    let usable = suits(&directory).and_then(|()| {
        let lock = File::create(directory.join(LOCK))?;
        rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive)?;
        Ok(lock)
    });
    match usable {
        Ok(lock) => Ok(Place {
            directory,
            _lock: lock,
        }),
        Err(e) => {
            let _ = std::fs::remove_dir_all(&directory);
            Err(e)
        }
    }
}

/// Says that a directory is to stay although nobody uses it.
pub(crate) fn mark_kept(directory: &Path) -> io::Result<()> {
    std::fs::remove_file(directory.join(LOCK))
}

/// Removes what runs that were killed have left. Their mounts and processes went with them.
fn sweep(parent: &Path) {
    let Ok(entries) = std::fs::read_dir(parent) else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let Ok(lock) = File::open(entry.path().join(LOCK)) else {
            continue;
        };
        let free = rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok();
        if free && name.as_bytes().starts_with(PREFIX.as_bytes()) {
            // What cannot be removed is in nobody's way.
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

/// Whether a file system can hold a replicated folder.
fn suits(directory: &Path) -> Result<()> {
    rustix::fs::setxattr(
        directory,
        c"trusted.twinfold-demo",
        b"1",
        XattrFlags::empty(),
    )
    .context("its file system has no trusted extended attributes, or this is not the real root")?;
    rustix::fs::removexattr(directory, c"trusted.twinfold-demo")?;
    handles(directory).context("its file system has no file handles (overlayfs has none)")?;
    let space = rustix::fs::statvfs(directory)?;
    let free = space.f_bavail.saturating_mul(space.f_frsize);
    if free < NEEDED {
        bail!("{} MiB are free, {} are needed", free >> 20, NEEDED >> 20);
    }
    Ok(())
}

/// Finds the directory again by its handle, as the driver does with every object.
fn handles(directory: &Path) -> io::Result<()> {
    #[repr(C, align(8))]
    struct Handle {
        bytes: u32,
        kind: i32,
        data: [u8; 128],
    }
    let mut handle = Handle {
        bytes: 128,
        kind: 0,
        data: [0; 128],
    };
    let at = File::open(directory)?;
    let path = CString::new(directory.as_os_str().as_bytes())?;
    let mut mount = 0;
    // SAFETY: `path` ends with a zero; the handle has the room it says, at the place
    // and in the form of the kernel's `struct file_handle`.
    let found = unsafe {
        let handle = (&raw mut handle).cast::<libc::file_handle>();
        libc::name_to_handle_at(libc::AT_FDCWD, path.as_ptr(), handle, &raw mut mount, 0)
    };
    if found != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: as above, and the kernel has filled the handle.
    let opened = unsafe {
        let handle = (&raw mut handle).cast::<libc::file_handle>();
        libc::open_by_handle_at(at.as_raw_fd(), handle, libc::O_PATH | libc::O_CLOEXEC)
    };
    if opened < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just opened and is nobody else's.
    drop(unsafe { <std::os::fd::OwnedFd as std::os::fd::FromRawFd>::from_raw_fd(opened) });
    Ok(())
}

/// Copies some of this machine's own files into the folder. Returns files and bytes.
pub(crate) fn seed(folder: &Path) -> Result<(usize, u64)> {
    let mut done = (0, 0);
    for (from, share) in [("/usr/bin", SEED_BYTES / 2), ("/usr/share", SEED_BYTES)] {
        let to = folder.join(from.trim_start_matches('/').replace('/', "-"));
        std::fs::create_dir(&to).with_context(|| format!("cannot make {}", to.display()))?;
        copy(Path::new(from), &to, share, &mut done)
            .with_context(|| format!("cannot copy {from} into the folder"))?;
    }
    Ok(done)
}

/// What cannot be read is left out; what cannot be written is an error.
fn copy(from: &Path, to: &Path, most: u64, done: &mut (usize, u64)) -> io::Result<()> {
    let Ok(entries) = std::fs::read_dir(from) else {
        return Ok(());
    };
    let mut entries: Vec<_> = entries.flatten().collect();
    entries.sort_by_key(std::fs::DirEntry::file_name);
    for entry in entries {
        if done.0 >= SEED_FILES || done.1 >= most {
            break;
        }
        let (path, to) = (entry.path(), to.join(entry.file_name()));
        let Ok(meta) = path.symlink_metadata() else {
            continue;
        };
        if meta.is_dir() {
            std::fs::create_dir(&to)?;
            copy(&path, &to, most, done)?;
        } else if meta.is_symlink() {
            std::os::unix::fs::symlink(std::fs::read_link(&path)?, &to)?;
            done.0 += 1;
        } else if meta.is_file() && meta.len() <= SEED_FILE_BYTES && done.1 + meta.len() <= most {
            std::fs::copy(&path, &to)?;
            File::open(&to)?.set_modified(meta.modified()?)?;
            done.0 += 1;
            done.1 += meta.len();
        }
    }
    Ok(())
}
