//! Mounting, remounting, unmounting.
//!
//! Read-only is the file system alone, never a mount of it: bind mounts, and the views of the
//! mounts that services and containers have of their own, keep the flags they began with for
//! ever, and would stay read-only behind a promotion.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};
use fuser::{Config, Filesystem, Session, SessionACL};
use rustix::fs::CWD;
use rustix::mount::{
    self, FsMountFlags, FsOpenFlags, FsPickFlags, MountAttrFlags, MoveMountFlags, UnmountFlags,
};

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
    gone: Arc<AtomicBool>,
}

/// Mounts the file system at `path`, read-only for a secondary. `ended` is called when the mount
/// is gone.
pub fn mount(
    vfs: Arc<Vfs>,
    name: &str,
    path: &Path,
    read_only: bool,
    ended: impl FnOnce() + Send + 'static,
) -> Result<Mounted> {
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
    let gone = Arc::new(AtomicBool::new(false));
    let end = End(gone.clone(), Some(ended));
    std::thread::Builder::new()
        .name("fuse".into())
        .spawn(move || {
            let _end = end;
            if let Err(error) = session.run() {
                tracing::debug!(%error, "the mount's session ended");
            }
        })
        .context("cannot start the mount's thread")?;
    Ok(Mounted {
        path: path.to_owned(),
        gone,
    })
}

/// Notes that the thread that has this ends, however that is, and tells so.
struct End<F: FnOnce()>(Arc<AtomicBool>, Option<F>);

impl<F: FnOnce()> Drop for End<F> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
        if let Some(ended) = self.1.take() {
            ended();
        }
    }
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
    let new = mount::fsopen(c"fuse", FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (key, value) in [
        ("source", format!("{SOURCE}{name}")),
        ("fd", device.as_raw_fd().to_string()),
        ("rootmode", format!("{:o}", libc::S_IFDIR)),
        ("user_id", "0".into()),
        ("group_id", "0".into()),
    ] {
        mount::fsconfig_set_string(&new, key, value)?;
    }
    mount::fsconfig_set_flag(&new, "default_permissions")?;
    mount::fsconfig_set_flag(&new, "allow_other")?;
    set_read_only(&new, read_only)?;
    mount::fsconfig_create(&new)?;
    let flags = FsMountFlags::FSMOUNT_CLOEXEC;
    let made = mount::fsmount(&new, flags, MountAttrFlags::empty())?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_SYMLINKS;
    mount::move_mount(&made, c"", CWD, path, flags)?;
    Ok(device)
}

/// Of a file system that is configured.
fn set_read_only(configured: &OwnedFd, read_only: bool) -> io::Result<()> {
    let key = if read_only { "ro" } else { "rw" };
    Ok(mount::fsconfig_set_flag(configured, key)?)
}

fn detach(path: &Path) -> io::Result<()> {
    let flags = UnmountFlags::NOFOLLOW | UnmountFlags::DETACH;
    Ok(mount::unmount(path, flags)?)
}

impl Mounted {
    /// Makes the mount writable or read-only, in place, wherever it is seen. Becoming
    /// read-only fails while something is open for writing.
    pub fn set_read_only(&self, read_only: bool) -> io::Result<()> {
        let flags = FsPickFlags::FSPICK_CLOEXEC | FsPickFlags::FSPICK_NO_AUTOMOUNT;
        let picked = mount::fspick(CWD, &self.path, flags)?;
        set_read_only(&picked, read_only)?;
        Ok(mount::fsconfig_reconfigure(&picked)?)
    }

    /// Unmounts; fails while it is in use.
    pub fn unmount(&self) -> io::Result<()> {
        Ok(mount::unmount(&self.path, UnmountFlags::NOFOLLOW)?)
    }

    /// Takes the mount away from under whoever uses it.
    pub fn detach(&self) -> io::Result<()> {
        detach(&self.path)
    }

    /// Whether the mount is gone.
    pub fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Acquire)
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
        mount::unmount(path, UnmountFlags::DETACH)?;
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
