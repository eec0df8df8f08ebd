//! Making a replicated folder out of a directory, and giving the directory back.

mod deinit;
mod init;
pub mod stopped;

pub use deinit::{GivenBack, deinit};
pub use init::{Init, init};

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::store::Layout;

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
    match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => bail!(
            "a driver runs for this folder already ({})",
            layout.base.display()
        ),
        Err(e) => Err(e).context("cannot lock the folder"),
    }
}
