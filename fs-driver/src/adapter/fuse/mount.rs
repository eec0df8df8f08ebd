//! Mounting, remounting, unmounting.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use fuser::{Config, Filesystem, Session, SessionACL};
use rustix::mount::{MountFlags, UnmountFlags};

use super::Adapter;
use super::convert::ino;
use crate::vfs::Vfs;

/// Threads that take calls from the kernel. A call that has to wait for the disk
/// keeps one; one that waits for the peer keeps none.
const THREADS: usize = 4;

/// What the source of our mounts begins with in the kernel's table.
const SOURCE: &str = "twinfold:";

/// A mounted folder.
#[derive(Debug)]
pub struct Mounted {
    path: PathBuf,
    session: std::thread::JoinHandle<io::Result<()>>,
}

/// Mounts the file system at `path`, read-only for a secondary.
pub fn mount(vfs: Arc<Vfs>, name: &str, path: &Path, read_only: bool) -> Result<Mounted> {
    let adapter = Adapter { vfs: vfs.clone() };
    let session = session(adapter, name, path, read_only)?;
    let kernel = session.notifier();
    let drop_pages = move |file, start: u64, end: u64| {
        // No length: up to the end, however far that is.
        let length = i64::try_from(end - start).unwrap_or(0);
        let told = kernel.inval_inode(ino(file), start as i64, length);
        if let Err(error) = told {
            tracing::debug!(%file, %error, "the kernel was not told to forget pages");
        }
    };
    vfs.serve_caches(Box::new(drop_pages))
        .context("cannot start the caches' thread")?;
    let session = std::thread::Builder::new()
        .name("fuse".into())
        .spawn(move || session.run())
        .context("cannot start the mount's thread")?;
    Ok(Mounted {
        path: path.to_owned(),
        session,
    })
}

/// Mounts any file system as the driver's own is mounted, with as many threads: so is what
/// the driver is measured against. What is agreed upon with the kernel is
/// [`negotiate`](super::negotiate).
pub fn session<F: Filesystem>(
    filesystem: F,
    name: &str,
    path: &Path,
    read_only: bool,
) -> Result<Session<F>> {
    let mut config = Config::default();
    config.n_threads = Some(THREADS);
    config.clone_fd = true;
    let device = attach(name, path, read_only)
        .with_context(|| format!("cannot mount at {}", path.display()))?;
    Session::from_fd(filesystem, device, SessionACL::All, config)
        .inspect_err(|_| {
            if let Err(error) = detach(path) {
                tracing::warn!(%error, path = %path.display(), "a half-made mount is left behind");
            }
        })
        .with_context(|| format!("cannot mount at {}", path.display()))
}

/// Mounts a new connection (`fuse(4)`). The fuser crate could, but would then unmount
/// a second time when its session ends, after [`Mounted::unmount`] has done so.
fn attach(name: &str, path: &Path, read_only: bool) -> io::Result<OwnedFd> {
    let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::CLOEXEC;
    let device = rustix::fs::open("/dev/fuse", flags, rustix::fs::Mode::empty())?;
    let options = CString::new(format!(
        "fd={},rootmode={:o},user_id=0,group_id=0,default_permissions,allow_other",
        device.as_raw_fd(),
        libc::S_IFDIR
    ))?;
    let read_only = match read_only {
        true => MountFlags::RDONLY,
        false => MountFlags::empty(),
    };
    let source = format!("{SOURCE}{name}");
    rustix::mount::mount(source, path, c"fuse", read_only, options.as_c_str())?;
    Ok(device)
}

fn detach(path: &Path) -> io::Result<()> {
    let flags = UnmountFlags::NOFOLLOW | UnmountFlags::DETACH;
    Ok(rustix::mount::unmount(path, flags)?)
}

impl Mounted {
    /// Makes the mount writable or read-only, in place. Becoming read-only fails
    /// while something is open for writing.
    pub fn set_read_only(&self, read_only: bool) -> io::Result<()> {
        let flags = if read_only {
            MountFlags::RDONLY
        } else {
            MountFlags::empty()
        };
        Ok(rustix::mount::mount_remount(&self.path, flags, c"")?)
    }

    /// Unmounts; fails while it is in use.
    pub fn unmount(&self) -> io::Result<()> {
        Ok(rustix::mount::unmount(&self.path, UnmountFlags::NOFOLLOW)?)
    }

    /// Takes the mount away from under whoever uses it.
    pub fn detach(&self) -> io::Result<()> {
        detach(&self.path)
    }

    /// Whether the mount is gone.
    pub fn is_gone(&self) -> bool {
        self.session.is_finished()
    }
}

/// Removes what a killed driver left at `path`: a mount nobody answers for. The
/// caller holds the folder's lock, so no living driver's mount is there.
pub fn unmount_stale(path: &Path) -> io::Result<bool> {
    let mut removed = false;
    // A few layers at most: each killed driver leaves one.
    for _ in 0..16 {
        if !is_our_mount(path)? {
            break;
        }
        rustix::mount::unmount(path, UnmountFlags::DETACH)?;
        removed = true;
    }
    Ok(removed)
}

/// Whether a file system of ours is mounted at `path`, by the kernel's table
/// (`proc(5)`, mountinfo): asking the path itself would ask the dead driver, or be
/// answered from what the kernel still remembers of it.
fn is_our_mount(path: &Path) -> io::Result<bool> {
    let table = std::fs::read_to_string("/proc/self/mountinfo")?;
    let wanted = escaped(path);
    Ok(table.lines().any(|line| {
        let mut halves = line.splitn(2, " - ");
        let point = halves.next().and_then(|h| h.split(' ').nth(4));
        // File system type, then the source, which is the name we gave.
        let source = halves.next().and_then(|h| h.split(' ').nth(1));
        point == Some(&wanted) && source.is_some_and(|s| s.starts_with(SOURCE))
    }))
}

/// A path as the kernel's mount table writes it.
fn escaped(path: &Path) -> String {
    let mut out = Vec::new();
    for byte in path.as_os_str().as_encoded_bytes() {
        match byte {
            b' ' | b'\t' | b'\n' | b'\\' => out.extend(format!("\\{byte:03o}").bytes()),
            other => out.push(*other),
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_written_as_the_kernel_writes_them() {
        assert_eq!(escaped(Path::new("/a b\\c")), "/a\\040b\\134c");
    }
}
