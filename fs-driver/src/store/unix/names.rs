//! Names: looking up, making, moving, removing, listing.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use parking_lot::Mutex;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, RenameFlags};
use twinfold_protocol::attr::Kind;
use twinfold_protocol::ids::FileId;
use twinfold_protocol::op::{Name, NewObject, RenameMode};

use super::node::Node;
use super::sys::Handle;
use super::{Store, creds, sys, xattrs};

/// One entry of a directory as it is listed.
#[derive(Clone, Debug)]
pub struct Entry {
    /// What it is called.
    pub name: Listed,
    /// Where to go on behind it.
    pub next: u64,
}

/// The name of a listed entry.
#[derive(Clone, PartialEq, Eq, Debug, Hash)]
pub enum Listed {
    /// `.`, the directory itself.
    Here,
    /// `..`, the directory that holds it.
    Up,
    /// A name in the directory.
    Name(Name),
}

/// A directory open for listing.
#[derive(Debug)]
pub struct DirectoryHandle {
    node: Arc<Node>,
    listing: Mutex<Listing>,
}

/// What was fetched last: the kernel asks for far fewer entries than one fetch brings.
#[derive(Debug)]
struct Listing {
    directory: OwnedFd,
    /// The position of the first fetched entry, and the entries.
    from: u64,
    fetched: Vec<Entry>,
}

impl DirectoryHandle {
    /// The directory.
    pub fn node(&self) -> &Arc<Node> {
        &self.node
    }
}

/// Bytes of a listing fetched at once.
const LISTING_BUFFER: usize = 32 << 10;

pub(super) fn c_name(name: &Name) -> CString {
    // A name has no NUL inside.
    CString::new(name.as_bytes()).unwrap_or_default()
}

impl Store {
    /// What a name leads to.
    pub fn lookup(&self, parent: &Node, name: &Name) -> io::Result<Arc<Node>> {
        self.known(parent, name)?.map_err(|why| {
            io::Error::new(
                io::ErrorKind::InvalidData,
                format!("{name}: {why} is in the store; somebody wrote behind the mount"),
            )
        })
    }

    /// What a name leads to, or why that is no object of this store.
    fn known(&self, parent: &Node, name: &Name) -> io::Result<Result<Arc<Node>, &'static str>> {
        let path = sys::open_name(parent.path(), &c_name(name))?;
        let Some(file) = xattrs::id_of(path.as_fd())? else {
            return Ok(Err("an object without an id"));
        };
        if let Some(node) = self.nodes.lock().cached.get(&file) {
            node.touch();
            return Ok(Ok(node.clone()));
        }
        match self.learn(file, &path)? {
            true => self.remember(file, path).map(Ok),
            false => Ok(Err("a copy of an object, with the id of it,")),
        }
    }

    /// As [`Store::find`], for what lists this copy, or reads it to bring up another one: what
    /// is no object of this store is left out. It may be one that is just being made and gets
    /// its id in a moment: the op that makes it comes later. What was put there behind the
    /// mount cannot be replicated, and must not keep all the rest from it.
    pub fn find_own(&self, parent: &Node, name: &Name) -> io::Result<Option<Arc<Node>>> {
        match self.known(parent, name) {
            Ok(Ok(node)) => Ok(Some(node)),
            Ok(Err(why)) => {
                tracing::warn!(directory = %parent.file(), %name, "{why} is left out");
                Ok(None)
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// As [`Store::lookup`], with `None` for a name that does not exist.
    pub fn find(&self, parent: &Node, name: &Name) -> io::Result<Option<Arc<Node>>> {
        match self.lookup(parent, name) {
            Ok(node) => Ok(Some(node)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Makes a new object under a new name, with owner, mode and id from the beginning.
    pub fn create(&self, parent: &Node, name: &Name, object: &NewObject) -> io::Result<Arc<Node>> {
        self.create_in(parent.path(), &c_name(name), object)
    }

    pub(super) fn create_in(
        &self,
        directory: BorrowedFd<'_>,
        name: &CString,
        object: &NewObject,
    ) -> io::Result<Arc<Node>> {
        let mode = Mode::from_raw_mode(object.mode);
        let made: Option<OwnedFd> = creds::with(object.uid, object.gid, object.umask, || {
            match object.kind {
                Kind::Regular => {
                    return Ok(Some(rustix::fs::openat(
                        directory,
                        name.as_c_str(),
                        OFlags::CREATE
                            | OFlags::EXCL
                            | OFlags::RDWR
                            | OFlags::NOFOLLOW
                            | OFlags::NOATIME
                            | OFlags::CLOEXEC,
                        mode,
                    )?));
                }
                Kind::Directory => rustix::fs::mkdirat(directory, name.as_c_str(), mode)?,
                Kind::Symlink => {
                    let target = CString::new(object.target.to_vec())
                        .map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
                    rustix::fs::symlinkat(target.as_c_str(), directory, name.as_c_str())?;
                }
                Kind::Fifo => special(directory, name, FileType::Fifo, mode, 0)?,
                Kind::Socket => special(directory, name, FileType::Socket, mode, 0)?,
                Kind::CharDevice(d) => special(
                    directory,
                    name,
                    FileType::CharacterDevice,
                    mode,
                    rustix::fs::makedev(d.major, d.minor),
                )?,
                Kind::BlockDevice(d) => special(
                    directory,
                    name,
                    FileType::BlockDevice,
                    mode,
                    rustix::fs::makedev(d.major, d.minor),
                )?,
            }
            Ok(None)
        })?;
        self.adopt(directory, name, object.file, made)
            .inspect_err(|_| {
                // Without its id it must not stay.
                let flags = if object.kind == Kind::Directory {
                    AtFlags::REMOVEDIR
                } else {
                    AtFlags::empty()
                };
                if let Err(e) = rustix::fs::unlinkat(directory, name.as_c_str(), flags) {
                    tracing::warn!(error = %e, "a half-made object could not be removed");
                }
            })
    }

    /// Gives a new object its id and an index entry.
    pub(super) fn adopt(
        &self,
        directory: BorrowedFd<'_>,
        name: &CString,
        file: FileId,
        opened: Option<OwnedFd>,
    ) -> io::Result<Arc<Node>> {
        let path = sys::open_name(directory, name)?;
        match &opened {
            Some(fd) => xattrs::set_id_of_file(fd.as_fd(), file)?,
            None => xattrs::set_id(path.as_fd(), file)?,
        }
        self.index.put(file, &Handle::of(path.as_fd())?)?;
        let mut node = Node::new(file, path)?;
        if let Some(fd) = opened {
            node = node.with_data(File::from(fd));
        }
        let node = Arc::new(node);
        self.nodes.lock().keep(node.clone(), self.capacity);
        Ok(node)
    }

    /// `link(2)`.
    pub fn link(&self, node: &Node, parent: &Node, name: &Name) -> io::Result<()> {
        Ok(rustix::fs::linkat(
            node.path(),
            c"",
            parent.path(),
            c_name(name).as_c_str(),
            AtFlags::EMPTY_PATH,
        )?)
    }

    /// Removes a name that leads to `node`.
    pub fn unlink(&self, parent: &Node, name: &Name, node: Arc<Node>) -> io::Result<()> {
        if self.remove_name(parent, name, &node)? {
            self.orphan_until_forgotten(node);
        }
        Ok(())
    }

    /// Removes a name that leads to `node`; returns whether it was the last one.
    pub(super) fn remove_name(&self, parent: &Node, name: &Name, node: &Node) -> io::Result<bool> {
        let flags = if node.kind() == Kind::Directory {
            AtFlags::REMOVEDIR
        } else {
            AtFlags::empty()
        };
        rustix::fs::unlinkat(parent.path(), c_name(name).as_c_str(), flags)?;
        has_no_name(node)
    }

    /// `renameat2(2)`. `replaced` is what the new name led to.
    pub fn rename(
        &self,
        parent: &Node,
        name: &Name,
        new_parent: &Node,
        new_name: &Name,
        replaced: Option<Arc<Node>>,
        mode: RenameMode,
    ) -> io::Result<()> {
        let replaced = replaced.filter(|_| mode == RenameMode::Replace);
        self.move_name(parent, name, new_parent, new_name, mode)?;
        if let Some(replaced) = replaced
            && has_no_name(&replaced)?
        {
            self.orphan_until_forgotten(replaced);
        }
        Ok(())
    }

    /// `renameat2(2)`; whoever calls looks what became of what the new name led to.
    pub(super) fn move_name(
        &self,
        parent: &Node,
        name: &Name,
        new_parent: &Node,
        new_name: &Name,
        mode: RenameMode,
    ) -> io::Result<()> {
        let flags = match mode {
            RenameMode::Replace => RenameFlags::empty(),
            RenameMode::NoReplace => RenameFlags::NOREPLACE,
            RenameMode::Exchange => RenameFlags::EXCHANGE,
        };
        Ok(rustix::fs::renameat_with(
            parent.path(),
            c_name(name).as_c_str(),
            new_parent.path(),
            c_name(new_name).as_c_str(),
            flags,
        )?)
    }

    /// Opens a directory for listing.
    pub fn open_directory(&self, node: Arc<Node>) -> io::Result<DirectoryHandle> {
        let directory = sys::reopen(node.path(), OFlags::RDONLY | OFlags::DIRECTORY)?;
        Ok(DirectoryHandle {
            node,
            listing: Mutex::new(Listing {
                directory,
                from: 0,
                fetched: Vec::new(),
            }),
        })
    }

    /// Entries from the position `from` on (0: the beginning), as the file system
    /// lists them; empty at the end. Positions stay valid while the directory changes.
    pub fn list(&self, handle: &DirectoryHandle, from: u64) -> io::Result<Vec<Entry>> {
        let mut listing = handle.listing.lock();
        if from != 0 {
            if from == listing.from && !listing.fetched.is_empty() {
                return Ok(listing.fetched.clone());
            }
            let known = listing.fetched.iter().position(|e| e.next == from);
            if let Some(rest) = known.and_then(|at| listing.fetched.get(at + 1..))
                && !rest.is_empty()
            {
                return Ok(rest.to_vec());
            }
        }
        listing.fetched = fetch(&listing.directory, from)?;
        listing.from = from;
        Ok(listing.fetched.clone())
    }

    /// All names of a directory, a page at a time.
    pub(super) fn each_name(
        &self,
        node: &Arc<Node>,
        mut see: impl FnMut(Name) -> io::Result<()>,
    ) -> io::Result<()> {
        let handle = self.open_directory(node.clone())?;
        let mut at = 0;
        loop {
            let entries = self.list(&handle, at)?;
            let Some(last) = entries.last() else {
                return Ok(());
            };
            at = last.next;
            for entry in entries {
                if let Listed::Name(name) = entry.name {
                    see(name)?;
                }
            }
        }
    }

    /// All names of a directory and what they lead to, one after the other: none is kept
    /// open for it. What is no object of this store is left out.
    pub fn each(
        &self,
        node: &Arc<Node>,
        mut see: impl FnMut(Name, Arc<Node>) -> io::Result<()>,
    ) -> io::Result<()> {
        self.each_name(node, |name| match self.find_own(node, &name)? {
            Some(entry) => see(name, entry),
            None => Ok(()),
        })
    }

    /// The id of the directory that holds this directory.
    pub fn parent_of(&self, node: &Node) -> io::Result<FileId> {
        if node.file() == FileId::ROOT {
            return Ok(FileId::ROOT);
        }
        let parent = rustix::fs::openat(
            node.path(),
            c"..",
            OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        Ok(xattrs::id_of(parent.as_fd())?.unwrap_or(FileId::ROOT))
    }
}

/// Whether an object that just lost a name has none left. (Renaming one of an object's
/// names over another one does nothing: it keeps both.)
pub(super) fn has_no_name(node: &Node) -> io::Result<bool> {
    Ok(node.kind() == Kind::Directory || rustix::fs::fstat(node.path())?.st_nlink == 0)
}

/// Entries from a position on, straight from the file system.
fn fetch(directory: &OwnedFd, from: u64) -> io::Result<Vec<Entry>> {
    rustix::fs::seek(directory, rustix::fs::SeekFrom::Start(from))?;
    let mut buffer = [0u8; LISTING_BUFFER];
    // SAFETY: the kernel fills at most `LISTING_BUFFER` bytes of a buffer of that
    // size; the descriptor is open for the call.
    let n = unsafe {
        libc::syscall(
            libc::SYS_getdents64,
            directory.as_raw_fd(),
            buffer.as_mut_ptr(),
            LISTING_BUFFER,
        )
    };
    if n < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(parse_listing(&buffer[..n as usize]))
}

fn special(
    directory: BorrowedFd<'_>,
    name: &CString,
    kind: FileType,
    mode: Mode,
    device: u64,
) -> io::Result<()> {
    Ok(rustix::fs::mknodat(
        directory,
        name.as_c_str(),
        kind,
        mode,
        device,
    )?)
}

/// Takes `linux_dirent64` records apart (`getdents64(2)`): inode u64, next position
/// u64, record length u16, type u8, name with NUL.
fn parse_listing(mut bytes: &[u8]) -> Vec<Entry> {
    let mut entries = Vec::new();
    while let Some((head, rest)) = bytes.split_at_checked(19) {
        let mut word = [0; 8];
        word.copy_from_slice(&head[8..16]);
        let next = u64::from_le_bytes(word);
        let length = usize::from(u16::from_le_bytes([head[16], head[17]]));
        let Some(name) = rest.get(..length.saturating_sub(19)) else {
            break;
        };
        let end = name.iter().position(|b| *b == 0).unwrap_or(name.len());
        let name = match &name[..end] {
            b"." => Some(Listed::Here),
            b".." => Some(Listed::Up),
            other => Name::new(other).ok().map(Listed::Name),
        };
        if let Some(name) = name {
            entries.push(Entry { name, next });
        }
        bytes = &bytes[length..];
    }
    entries
}
