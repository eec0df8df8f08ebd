//! `deinit`: the directory is what it was, with the data as it is now.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::sync_parent;
use crate::state::{CopyFile, Settings};
use crate::store::{Layout, strip_ids};

/// Gives the directory back. Without `force` only when the copy is up to date.
/// Returns how many objects it holds, and where the archives of given-up copies are now:
/// beside the folder, for they are not twinfold's to delete. One that was broken off can be
/// repeated.
pub fn deinit(layout: &Layout, force: bool) -> Result<(u64, Option<PathBuf>)> {
    let rest = Layout::new(super::unfinished(&layout.base));
    if !layout.base.exists() {
        remove(&rest)?;
        bail!(
            "there is nothing to give back: {} does not exist",
            layout.base.display()
        );
    }
    let settings = Settings::load(&layout.state())?;
    let _lock = super::lock(layout).context("stop the driver first (`stop`)")?;
    let mount = &settings.mount;
    crate::adapter::fuse::unmount_stale(mount)?;
    if let (Ok(here), Some(Ok(up))) = (
        std::fs::metadata(mount),
        mount.parent().map(std::fs::metadata),
    ) {
        use std::os::unix::fs::MetadataExt;
        if here.dev() != up.dev() {
            bail!("{} is still mounted: unmount it first", mount.display());
        }
    }
    let current = CopyFile::open(&layout.state()).is_ok_and(|c| c.get().copy.up_to_date);
    if !current && !force {
        bail!(
            "this copy is not up to date: it may lack writes that the peer has. To get it as it is, \
             use --force"
        );
    }
    if layout.data().exists() {
        give_back(layout, mount)?;
    }
    let stripped = strip(mount)?;
    let archives = crate::archive::move_out(layout).context("cannot move the archives away")?;
    // The last step that counts: what is removed then is not a replicated folder any more.
    remove(&rest)?;
    std::fs::rename(&layout.base, &rest.base)
        .with_context(|| format!("cannot remove {}", layout.base.display()))?;
    sync_parent(&layout.base)?;
    remove(&rest)?;
    Ok((stripped, archives))
}

/// Removes private parts that are none any more; never data.
fn remove(rest: &Layout) -> Result<()> {
    if !rest.base.exists() || rest.data().exists() {
        return Ok(());
    }
    std::fs::remove_dir_all(&rest.base)
        .with_context(|| format!("cannot remove {}", rest.base.display()))
}

fn give_back(layout: &Layout, mount: &Path) -> Result<()> {
    std::fs::remove_dir(mount)
        .or_else(|e| match e.kind() {
            std::io::ErrorKind::NotFound => Ok(()),
            _ => Err(e),
        })
        .with_context(|| {
            format!(
                "{} is not empty: something was put there while it was not mounted",
                mount.display()
            )
        })?;
    std::fs::rename(layout.data(), mount)
        .with_context(|| format!("cannot move the data back to {}", mount.display()))?;
    Ok(sync_parent(mount)?)
}

fn strip(mount: &Path) -> Result<u64> {
    strip_ids(mount).with_context(|| {
        format!(
            "the data is back at {}, but the ids could not be removed from all of it",
            mount.display()
        )
    })
}
