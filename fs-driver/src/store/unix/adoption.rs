//! Giving ids to objects that were there before, and taking them away again.

use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags};
use twinfold_protocol::ids::{Epoch, FileId};

use super::index::Index;
use super::sys::Handle;
use super::{Layout, sys, xattrs};

/// Taking over a directory.
#[derive(Debug)]
pub struct Adoption {
    index: Index,
    file_system: std::os::fd::OwnedFd,
    epoch: Epoch,
    next: u64,
}

fn open(path: &Path) -> io::Result<std::os::fd::OwnedFd> {
    Ok(rustix::fs::openat(
        CWD,
        path,
        OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    )?)
}

impl Adoption {
    /// Begins with the directory itself, which proves that its file system can do
    /// what is needed.
    pub fn begin(layout: &Layout, root: &Path, epoch: Epoch) -> io::Result<Adoption> {
        let (index, _) = Index::open(&layout.state().join("index"))?;
        let root = open(root)?;
        let file_system = sys::reopen(root.as_fd(), OFlags::RDONLY | OFlags::DIRECTORY)?;
        Handle::of(root.as_fd())?.open(file_system.as_fd())?;
        xattrs::replace_id(root.as_fd(), FileId::ROOT)?;
        Ok(Adoption {
            index,
            file_system,
            epoch,
            // The first ids of the first epoch are no object's, and the folder's own.
            next: if epoch == Epoch::SEED { 2 } else { 0 },
        })
    }

    /// Gives one object an id.
    pub fn adopt(&mut self, path: &Path) -> io::Result<FileId> {
        let file = FileId::new(self.epoch, self.next);
        self.next += 1;
        let object = open(path)?;
        xattrs::replace_id(object.as_fd(), file)?;
        self.index.put(file, &Handle::of(object.as_fd())?)?;
        Ok(file)
    }

    /// Brings the index, the ids and the data to stable storage: a copy that is called
    /// good holds after a power cut what it held when it was.
    pub fn finish(self) -> io::Result<()> {
        self.index.sync()?;
        Ok(rustix::fs::syncfs(&self.file_system)?)
    }
}

/// Removes the ids of a whole tree, durably; returns how many objects it has.
pub fn strip_ids(root: &Path) -> io::Result<u64> {
    let mut count = 0;
    let mut directories = vec![root.to_owned()];
    let top = open(root)?;
    xattrs::remove_id(top.as_fd())?;
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(&directory)? {
            let entry = entry?;
            count += 1;
            xattrs::remove_id(open(&entry.path())?.as_fd())?;
            if entry.file_type()?.is_dir() {
                directories.push(entry.path());
            }
        }
    }
    rustix::fs::syncfs(sys::reopen(
        top.as_fd(),
        OFlags::RDONLY | OFlags::DIRECTORY,
    )?)?;
    Ok(count)
}
