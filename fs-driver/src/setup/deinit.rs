//! `deinit`: the directory is what it was, with the data as it is now.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::sync_parent;
use crate::state::{CopyFile, Settings};
use crate::store::{Layout, strip_ids};

/// A directory that was given back.
#[derive(Debug)]
pub struct GivenBack {
    /// How many objects it holds.
    pub objects: u64,
    /// Where the archives of given-up copies are now, if there are any.
    pub archives: Option<PathBuf>,
    /// Where the objects are now that a resync had taken out of their place, if there are any.
    pub aside: Option<PathBuf>,
}

/// Gives the directory back. Without `force` only when the copy is up to date. What is not
/// in it and not twinfold's to delete is beside it then. One that was broken off can be
/// repeated.
pub fn deinit(layout: &Layout, force: bool) -> Result<GivenBack> {
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
    let objects = strip(mount)?;
    let aside = move_aside_out(layout).context("cannot move away what waits aside")?;
    let archives = crate::archive::move_out(layout).context("cannot move the archives away")?;
    // The last step that counts: what is removed then is not a replicated folder any more.
    remove(&rest)?;
    std::fs::rename(&layout.base, &rest.base)
        .with_context(|| format!("cannot remove {}", layout.base.display()))?;
    sync_parent(&layout.base)?;
    remove(&rest)?;
    Ok(GivenBack {
        objects,
        archives,
        aside,
    })
}

/// Takes out what a resync that broke off had taken out of its place and has no other name.
fn move_aside_out(layout: &Layout) -> Result<Option<PathBuf>> {
    use std::os::unix::fs::MetadataExt;
    let aside = layout.aside();
    let mut kept = 0;
    let entries = match std::fs::read_dir(&aside) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        let meta = entry.metadata()?;
        match !meta.is_dir() && meta.nlink() > 1 {
            true => std::fs::remove_file(entry.path())?,
            false => kept += 1,
        }
    }
    if kept == 0 {
        return Ok(None);
    }
    strip_ids(&aside)?;
    let to = crate::archive::beside(layout, "aside")?;
    std::fs::rename(&aside, &to)?;
    sync_parent(&to)?;
    Ok(Some(to))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waits_aside_without_another_name_is_not_deleted() {
        let place = tempfile::tempdir_in("/var/tmp").unwrap();
        let layout = Layout::new(place.path().join(".vm.twinfold"));
        assert_eq!(move_aside_out(&layout).unwrap(), None);
        let aside = layout.aside();
        std::fs::create_dir_all(aside.join("0000020000000001")).unwrap();
        std::fs::write(aside.join("0000020000000001/in it"), "a").unwrap();
        std::fs::write(aside.join("0000020000000002"), "b").unwrap();
        std::fs::create_dir(layout.data()).unwrap();
        std::fs::write(layout.data().join("name"), "c").unwrap();
        std::fs::hard_link(layout.data().join("name"), aside.join("0000020000000003")).unwrap();
        let to = move_aside_out(&layout).unwrap().unwrap();
        assert_eq!(to, place.path().join(".vm.twinfold-aside"));
        let read = |name| std::fs::read(to.join(name)).ok();
        assert_eq!(read("0000020000000001/in it").unwrap(), b"a");
        assert_eq!(read("0000020000000002").unwrap(), b"b");
        assert_eq!(read("0000020000000003"), None, "it has its name");
        assert_eq!(move_aside_out(&layout).unwrap(), None);
    }
}
