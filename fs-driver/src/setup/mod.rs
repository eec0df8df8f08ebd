//! Making a replicated folder out of a directory, and giving the directory back.

mod deinit;
mod init;
pub mod stopped;
mod users;

pub use deinit::{GivenBack, deinit};
pub use init::{Init, init};

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::store::Layout;

/// How long the lock over a folder may outlive who held it. A program that is just being
/// started by another thread of a process has a copy of every open file until it runs.
const LOCK_ENDS: Duration = Duration::from_secs(1);

/// Where the private parts of the folder mounted at `mount` lie unless told otherwise:
/// beside it, on the same file system.
pub fn default_base(mount: &Path) -> Result<PathBuf> {
    let (Some(parent), Some(name)) = (mount.parent(), mount.file_name()) else {
        bail!("{} cannot be replicated: it has no name", mount.display());
    };
    let mut base = std::ffi::OsString::from(".");
    base.push(name);
    base.push(".twinfold");
    Ok(parent.join(base))
}

/// Where the private parts lie that are not a replicated folder yet, or not any more.
fn unfinished(base: &Path) -> PathBuf {
    base.with_extension("twinfold-new")
}

/// Brings the name of `path` to stable storage.
fn sync_parent(path: &Path) -> std::io::Result<()> {
    path.parent().map_or(Ok(()), crate::state::sync_directory)
}

/// An absolute path without touching what it leads to (a dead mount would not answer).
pub fn absolute(path: &Path) -> Result<PathBuf> {
    let path = std::path::absolute(path)?;
    Ok(path.components().collect())
}

/// Keeps a second driver from the same folder as long as the file lives.
pub(crate) fn lock(layout: &Layout) -> Result<File> {
    let path = layout.state().join("lock");
    let file = crate::state::private()
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .with_context(|| {
            format!(
                "cannot open {}; is {} a replicated folder? `init` makes one",
                path.display(),
                layout.base.display()
            )
        })?;
    let until = Instant::now() + LOCK_ENDS;
    loop {
        match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(file),
            Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < until => {
                std::thread::sleep(Duration::from_millis(5));
            }
            Err(rustix::io::Errno::WOULDBLOCK) => bail!(
                "a driver runs for this folder already ({})",
                layout.base.display()
            ),
            Err(e) => return Err(e).context("cannot lock the folder"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn a_lock_that_is_let_go_in_a_moment_is_waited_for_and_one_that_is_kept_is_not() {
        let place = tempfile::tempdir().unwrap();
        let layout = Layout::new(place.path());
        std::fs::create_dir(layout.state()).unwrap();
        let held = lock(&layout).unwrap();
        assert!(lock(&layout).is_err());
        let (tell, told) = channel();
        let waits = std::thread::spawn(move || {
            tell.send(()).unwrap();
            lock(&layout).map(drop)
        });
        told.recv().unwrap();
        std::thread::sleep(LOCK_ENDS / 20);
        drop(held);
        waits.join().unwrap().unwrap();
    }
}
