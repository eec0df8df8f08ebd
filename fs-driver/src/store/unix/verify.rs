//! What a verify needs of the store: objects and names as they are on the disk,
//! whatever the index and the open objects say, and without pushing out what the
//! application has open.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use twinfold_protocol::attr::Kind;
use twinfold_protocol::ids::FileId;
use twinfold_protocol::op::Name;
use twinfold_protocol::verify::Lead;

use super::names::{Listed, c_name};
use super::node::Node;
use super::sys::Handle;
use super::{DirectoryHandle, Store, sys, xattrs};

/// An entry of a directory: where it leads, and the object there if it is one of the store.
#[derive(Debug)]
pub struct Visited {
    /// The name.
    pub name: Name,
    /// Where it leads.
    pub lead: Lead,
    /// The object.
    pub object: Option<Arc<Node>>,
}

impl Store {
    /// What a name leads to: an object of the store only if it carries an id and is the
    /// one object to which that id leads.
    pub fn lead(&self, parent: &Node, name: &Name) -> io::Result<Lead> {
        Ok(self.visit(parent, name)?.lead)
    }

    fn visit(&self, parent: &Node, name: &Name) -> io::Result<Visited> {
        let visited = |lead, object| {
            Ok(Visited {
                name: name.clone(),
                lead,
                object,
            })
        };
        let path = match sys::open_name(parent.path(), &c_name(name)) {
            Ok(path) => path,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return visited(Lead::Nothing, None),
            Err(e) => return Err(e),
        };
        match self.id_proven(path.as_fd())? {
            Some(file) => {
                let node = Arc::new(Node::new(file, path)?);
                visited(Lead::Object(file), Some(node))
            }
            None => visited(Lead::Foreign, None),
        }
    }

    /// The id of an object, if the index leads from it back to this very object.
    pub(super) fn id_proven(&self, path: BorrowedFd<'_>) -> io::Result<Option<FileId>> {
        let Some(file) = xattrs::id_of(path)? else {
            return Ok(None);
        };
        let proven = self.index.get(file)? == Some(Handle::of(path)?);
        Ok(proven.then_some(file))
    }

    /// Entries of a directory from a position on, with what they lead to, and where to go
    /// on behind them: 0 at the end. Reads as many as the file system gives at once,
    /// but no more than `most`.
    pub fn visit_page(
        &self,
        handle: &DirectoryHandle,
        from: u64,
        most: usize,
    ) -> io::Result<(u64, Vec<Visited>)> {
        let mut listed = self.list(handle, from)?;
        listed.truncate(most);
        let next = listed.last().map_or(0, |last| last.next);
        let mut visited = Vec::with_capacity(listed.len());
        for entry in listed {
            if let Listed::Name(name) = entry.name {
                let entry = self.visit(handle.node(), &name)?;
                if entry.lead != Lead::Nothing {
                    visited.push(entry);
                }
            }
        }
        Ok((next, visited))
    }

    /// The object with this id if it has a name, opened for the caller alone: nobody is
    /// kept from letting it go. One that lost its last name is forgotten here.
    pub fn peek(&self, file: FileId) -> io::Result<Option<Arc<Node>>> {
        if file == FileId::ROOT {
            return Ok(Some(self.root.clone()));
        }
        let Some(path) = self.open_by_id(file)? else {
            return Ok(None);
        };
        let node = Node::new(file, path)?;
        if node.has_no_link()? {
            self.lost(file);
            return Ok(None);
        }
        Ok(Some(Arc::new(node)))
    }

    /// An object has no name any more: an op takes it away at this moment, or it was
    /// removed behind the mount, and an open descriptor and an entry of the index is what
    /// is left of it.
    fn lost(&self, file: FileId) {
        let mut nodes = self.nodes.lock();
        if let Some(node) = nodes.cached.remove(&file) {
            node.set_orphan();
            if Arc::strong_count(&node) > 1 {
                nodes.keep_orphan(node);
            }
        }
        drop(nodes);
        self.index.remove(file);
    }

    /// The object an id leads to, if it carries that id.
    fn open_by_id(&self, file: FileId) -> io::Result<Option<OwnedFd>> {
        let Some(handle) = self.index.get(file)? else {
            return Ok(None);
        };
        let path = match handle.open(self.file_system.as_fd()) {
            Ok(path) => path,
            Err(e) if matches!(e.raw_os_error(), Some(libc::ESTALE | libc::ENOENT)) => {
                return Ok(None);
            }
            Err(e) => return Err(e),
        };
        Ok((xattrs::id_of(path.as_fd())? == Some(file)).then_some(path))
    }

    /// The ids of a block that have an entry in the index, of all epochs, block by block:
    /// `after` is the last one that was given. Empty at the end.
    pub fn ids_after(&self, after: Option<FileId>) -> io::Result<Vec<FileId>> {
        self.index.after(after)
    }

    /// One name that leads to `file`, if there is one in the directory.
    pub fn name_of(&self, directory: Arc<Node>, file: FileId) -> io::Result<Option<Name>> {
        if directory.kind() != Kind::Directory {
            return Ok(None);
        }
        let handle = self.open_directory(directory)?;
        let mut from = 0;
        loop {
            let (next, page) = self.visit_page(&handle, from, usize::MAX)?;
            let found = page.into_iter().find(|v| v.lead == Lead::Object(file));
            if let Some(found) = found {
                return Ok(Some(found.name));
            }
            if next == 0 {
                return Ok(None);
            }
            from = next;
        }
    }
}
