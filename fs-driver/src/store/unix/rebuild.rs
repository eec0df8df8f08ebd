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
use super::put::is_foreign;
use super::sys::Handle;
use super::{Store, sys, xattrs};

/// What stands for the id of the directory of what is aside. It has none.
const ASIDE: FileId = FileId(u64::MAX);

impl Store {
    /// Enters an object that was found by its name, unless the index knows it. False when
    /// it is none: a copy made behind the mount carries the id of its original, and the
    /// index leads there.
    pub(super) fn learn(&self, file: FileId, path: &OwnedFd) -> io::Result<bool> {
        let handle = Handle::of(path.as_fd())?;
        match self.index.get(file) {
            Ok(Some(known)) if known == handle => return Ok(true),
            Ok(Some(_)) if self.peek(file)?.is_some() => return Ok(false),
            Err(e) if e.kind() != io::ErrorKind::InvalidData => return Err(e),
            Ok(_) | Err(_) => {}
        }
        self.index.put(file, &handle)?;
        Ok(true)
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
        // The last is looked at first: should two objects carry one id, the one that has its
        // place is the one.
        for (file, top) in [(ASIDE, &self.aside), (FileId::ROOT, &self.file_system)] {
            left.push((file, Handle::of(top.as_fd())?));
        }
        let mut count = 0;
        while let Some((file, handle)) = left.pop() {
            let path = handle.open(self.file_system.as_fd())?;
            let node = Arc::new(Node::new(file, path)?);
            self.each_entry(&node, |_, path| {
                if let Some(file) = xattrs::id_of(path.as_fd())?
                    && self.learn(file, &path)?
                {
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

    /// What every name in a directory leads to; not what a resync moved away because it came
    /// behind the mount.
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
                if node.file() == ASIDE && is_foreign(&name) {
                    continue;
                }
                match sys::open_name(node.path(), &name) {
                    Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                    opened => seen(&name, opened?)?,
                }
            }
        }
    }

    /// After a crash: removes what was being made in a directory and has no id yet,
    /// and enters what has one into the index. Neither was ever acknowledged without.
    /// What cannot be half-made came behind the mount: it is left alone and named.
    /// Returns how many objects were removed.
    pub fn repair_directory(&self, node: &Arc<Node>) -> io::Result<u64> {
        let mut removed = 0;
        self.each_entry(node, |name, path| {
            let what = match xattrs::id_of(path.as_fd())? {
                Some(file) if self.learn(file, &path)? => return Ok(()),
                Some(_) => "a copy of an object of the store",
                None if remove_unborn(node.path(), name, path.as_fd())? => {
                    removed += 1;
                    return Ok(());
                }
                None => "something with data in it",
            };
            tracing::warn!(
                name = %name.to_string_lossy(),
                directory = %node.file(),
                "{what} came here behind the mount: it is left as it is; remove it, or let \
                 `verify --repair` on the primary do so"
            );
            Ok(())
        })?;
        Ok(removed)
    }

    /// The same for what was being made aside.
    pub fn repair_aside(&self) -> io::Result<u64> {
        let aside = sys::reopen_path(self.aside.as_fd())?;
        self.repair_directory(&Arc::new(Node::new(ASIDE, aside)?))
    }
}

/// Removes an object without an id if it may be one that was just being made: then it is
/// empty. False when it is not.
fn remove_unborn(
    directory: BorrowedFd<'_>,
    name: &CString,
    path: BorrowedFd<'_>,
) -> io::Result<bool> {
    let stat = rustix::fs::fstat(path)?;
    let flags = match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => AtFlags::REMOVEDIR,
        FileType::RegularFile if stat.st_size > 0 => return Ok(false),
        _ => AtFlags::empty(),
    };
    match rustix::fs::unlinkat(directory, name.as_c_str(), flags) {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::NOTEMPTY | rustix::io::Errno::EXIST) => Ok(false),
        Err(e) => Err(e.into()),
    }
}
