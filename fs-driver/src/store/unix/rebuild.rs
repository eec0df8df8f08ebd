//! The index made right again: after a crash, or when it was lost or damaged.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{AtFlags, FileType};
use twinfold_protocol::attr::Kind;
use twinfold_protocol::ids::FileId;

use super::names::{Listed, c_name};
use super::node::Node;
use super::sys::Handle;
use super::{Store, sys, xattrs};

impl Store {
    /// Enters an object that was found by its name, unless the index knows it.
    pub(super) fn learn(&self, file: FileId, path: &OwnedFd) -> io::Result<()> {
        let handle = Handle::of(path.as_fd())?;
        match self.index.get(file) {
            Ok(Some(known)) if known == handle => Ok(()),
            Err(e) if e.kind() != io::ErrorKind::InvalidData => Err(e),
            Ok(_) | Err(_) => self.index.put(file, &handle),
        }
    }

    /// Enters every object of the tree into the index, and what lies aside. Returns how
    /// many there are.
    pub fn rebuild_index(&self, why: &str) -> io::Result<u64> {
        let _one = self.rebuilding.lock();
        tracing::warn!(
            why,
            "the index of file ids is made anew from the whole tree"
        );
        self.index.begin_rebuild()?;
        let mut left = Vec::new();
        for top in [&self.file_system, &self.aside] {
            left.push((FileId::ROOT, Handle::of(top.as_fd())?));
        }
        let mut count = 0;
        while let Some((file, handle)) = left.pop() {
            let path = handle.open(self.file_system.as_fd())?;
            let node = Arc::new(Node::new(file, path)?);
            self.each_entry(&node, |_, path| {
                if let Some(file) = xattrs::id_of(path.as_fd())? {
                    self.learn(file, &path)?;
                    count += 1;
                    if Node::new(file, path.try_clone()?)?.kind() == Kind::Directory {
                        left.push((file, Handle::of(path.as_fd())?));
                    }
                }
                Ok(())
            })?;
        }
        self.index.end_rebuild()?;
        tracing::warn!(count, "the index of file ids is whole again");
        Ok(count)
    }

    /// What every name in a directory leads to.
    fn each_entry(
        &self,
        node: &Arc<Node>,
        mut seen: impl FnMut(&CString, OwnedFd) -> io::Result<()>,
    ) -> io::Result<()> {
        let handle = self.open_directory(node.clone())?;
        let mut at = 0;
        loop {
            let entries = self.list(&handle, at)?;
            let Some(last) = entries.last() else {
                return Ok(());
            };
            at = last.next;
            for entry in &entries {
                let Listed::Name(name) = &entry.name else {
                    continue;
                };
                let name = c_name(name);
                match sys::open_name(node.path(), &name) {
                    Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                    opened => seen(&name, opened?)?,
                }
            }
        }
    }

    /// After a crash: removes what was being made in a directory and has no id yet,
    /// and enters what has one into the index. Neither was ever acknowledged without.
    /// Returns how many objects were removed.
    pub fn repair_directory(&self, node: &Arc<Node>) -> io::Result<u64> {
        let mut removed = 0;
        self.each_entry(node, |name, path| {
            match xattrs::id_of(path.as_fd())? {
                Some(file) => self.learn(file, &path)?,
                None => {
                    remove_unborn(node.path(), name, path.as_fd())?;
                    removed += 1;
                }
            }
            Ok(())
        })?;
        Ok(removed)
    }

    /// The same for what was being made aside.
    pub fn repair_aside(&self) -> io::Result<u64> {
        let aside = sys::reopen_path(self.aside.as_fd())?;
        let node = Arc::new(Node::new(FileId(u64::MAX), aside)?);
        self.repair_directory(&node)
    }
}

/// Removes an object that has no id: it was just being made, so it is empty.
fn remove_unborn(
    directory: BorrowedFd<'_>,
    name: &CString,
    path: BorrowedFd<'_>,
) -> io::Result<()> {
    let stat = rustix::fs::fstat(path)?;
    let flags = if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
        AtFlags::REMOVEDIR
    } else {
        AtFlags::empty()
    };
    Ok(rustix::fs::unlinkat(directory, name.as_c_str(), flags)?)
}
