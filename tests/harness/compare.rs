//! Reading a whole tree with all its attributes, and telling two trees apart.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ffi::{CString, OsString};
use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

/// twinfold's own attribute in a store; a mount must not show it.
const ID: &[u8] = b"trusted.twinfold";

/// Unit in which file data is compared, in bytes.
const BLOCK: u64 = 4096;

/// Bytes read at once.
const PIECE: usize = 1 << 20;

/// Bytes that the names of an object's attributes, or the value of one, may take:
/// what Linux allows (`XATTR_LIST_MAX`, `XATTR_SIZE_MAX`).
const ATTRIBUTES: usize = 64 << 10;

/// Where a tree lies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Scope {
    /// On a mount: inode numbers are file ids.
    Mount,
    /// In a store: inode numbers are the file system's own, and every object has an id.
    Store,
}

/// One object, as far as two copies must agree on it.
#[derive(Clone, Debug)]
struct Object {
    /// File id: the inode number on a mount, the attribute in a store.
    id: u64,
    kind: &'static str,
    mode: u32,
    uid: u32,
    gid: u32,
    links: u64,
    /// Of everything but directories, whose size is their file system's business.
    size: Option<u64>,
    device: u64,
    modified: (i64, i64),
    /// Of everything but symbolic links: each node's own look at one is an access.
    accessed: Option<(i64, i64)>,
    /// A directory that was read after its last change.
    read: bool,
    target: Option<Vec<u8>>,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Hash of all blocks that are not zero, with their places.
    data: Option<blake3::Hash>,
}

/// A tree of objects by path.
#[derive(Clone, Debug)]
pub struct Tree(BTreeMap<PathBuf, Object>);

impl Tree {
    /// Reads everything below `root`, `root` included, without changing access times.
    pub fn read(root: &Path, scope: Scope) -> io::Result<Tree> {
        let mut all = BTreeMap::new();
        let mut waiting = vec![PathBuf::new()];
        while let Some(path) = waiting.pop() {
            let full = if path.as_os_str().is_empty() {
                root.to_owned()
            } else {
                root.join(&path)
            };
            let meta = std::fs::symlink_metadata(&full).map_err(|e| at(&full, &e))?;
            let object = Object::read(&full, &meta, scope).map_err(|e| at(&full, &e))?;
            if meta.is_dir() {
                for name in names(&full).map_err(|e| at(&full, &e))? {
                    waiting.push(path.join(name));
                }
            }
            all.insert(path, object);
        }
        Ok(Tree(all))
    }

    /// Leaves out when directories were last read. After a boot the kernel itself reads
    /// them, where an object is looked for by its handle, and notes that.
    pub fn forget_reads_of_directories(&mut self) {
        let all = self.0.values_mut();
        for directory in all.filter(|object| object.kind == "directory") {
            directory.accessed = None;
        }
    }

    /// Everything in which it differs from `later`.
    pub fn changes(&self, later: &Tree) -> Vec<String> {
        differences("before and after", self, later)
    }

    /// How many objects it has, the root included.
    #[expect(clippy::len_without_is_empty, reason = "a tree has a root")]
    pub fn len(&self) -> usize {
        self.0.len()
    }
}

fn at(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

impl Object {
    /// Whether two copies agree on it. When a directory was last read counts only as long as
    /// nobody has read it since it was changed, as setting its times does as well: where the
    /// kernel has dropped an object from its memory, and on a machine that frees memory on its
    /// own it may do so at any moment, it looks for it in its directory again, and notes that.
    fn agrees(&self, other: &Object) -> bool {
        let accessed = self.accessed == other.accessed || self.read || other.read;
        accessed
            && self.id == other.id
            && self.kind == other.kind
            && self.mode == other.mode
            && self.uid == other.uid
            && self.gid == other.gid
            && self.links == other.links
            && self.size == other.size
            && self.device == other.device
            && self.modified == other.modified
            && self.target == other.target
            && self.xattrs == other.xattrs
            && self.data == other.data
    }

    fn read(path: &Path, meta: &Metadata, scope: Scope) -> io::Result<Object> {
        let kind = meta.file_type();
        let mut xattrs = xattrs(path)?;
        let noted = xattrs.remove(ID);
        let id = match (scope, noted) {
            (Scope::Mount, None) => meta.ino(),
            (Scope::Mount, Some(_)) => {
                return Err(io::Error::other("the mount shows twinfold's own attribute"));
            }
            (Scope::Store, Some(id)) => u64::from_le_bytes(
                id.try_into()
                    .map_err(|_| io::Error::other("an id is not 8 bytes long"))?,
            ),
            (Scope::Store, None) => return Err(io::Error::other("an object without an id")),
        };
        let data = if kind.is_file() {
            Some(contents(path, meta.len())?)
        } else {
            None
        };
        Ok(Object {
            id,
            kind: if kind.is_file() {
                "file"
            } else if kind.is_dir() {
                "directory"
            } else if kind.is_symlink() {
                "link"
            } else if kind.is_fifo() {
                "fifo"
            } else if kind.is_socket() {
                "socket"
            } else if kind.is_char_device() {
                "character device"
            } else {
                "block device"
            },
            mode: meta.mode() & 0o7777,
            uid: meta.uid(),
            gid: meta.gid(),
            links: meta.nlink(),
            size: (!kind.is_dir()).then_some(meta.len()),
            device: meta.rdev(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            accessed: (!kind.is_symlink()).then_some((meta.atime(), meta.atime_nsec())),
            read: kind.is_dir()
                && (meta.atime(), meta.atime_nsec()) > (meta.ctime(), meta.ctime_nsec()),
            target: if kind.is_symlink() {
                Some(std::fs::read_link(path)?.into_os_string().into_vec())
            } else {
                None
            },
            xattrs,
            data,
        })
    }
}

/// The names in a directory, read without leaving an access time: reading both
/// stores would make them differ.
pub fn names(path: &Path) -> io::Result<Vec<OsString>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOATIME | OFlags::CLOEXEC;
    let directory = rustix::fs::open(path, flags, Mode::empty())?;
    let mut all = Vec::new();
    for entry in rustix::fs::Dir::new(directory)? {
        let name = entry?.file_name().to_bytes().to_vec();
        if name != b"." && name != b".." {
            all.push(OsString::from_vec(name));
        }
    }
    Ok(all)
}

/// Opens a file for a look that leaves no access time.
pub(crate) fn open_quietly(path: &Path) -> io::Result<File> {
    File::options()
        .read(true)
        .custom_flags(libc::O_NOATIME | libc::O_NOFOLLOW)
        .open(path)
}

/// All of a file, read without leaving an access time.
pub fn read_quietly(path: &Path) -> io::Result<Vec<u8>> {
    let mut all = Vec::new();
    open_quietly(path)?.read_to_end(&mut all)?;
    Ok(all)
}

/// Hash of a file's contents that does not depend on where its holes are.
fn contents(path: &Path, size: u64) -> io::Result<blake3::Hash> {
    let mut hasher = blake3::Hasher::new();
    if size == 0 {
        return Ok(hasher.finalize());
    }
    let file = open_quietly(path)?;
    // A tree may have a million files of a few bytes.
    let mut buffer = vec![0; PIECE.min(size.next_multiple_of(BLOCK) as usize)];
    let mut at = 0;
    while let Some(start) = seek(&file, at, libc::SEEK_DATA)? {
        let end = seek(&file, start, libc::SEEK_HOLE)?.unwrap_or(size);
        let mut offset = start - start % BLOCK;
        while offset < end {
            let want = PIECE.min((end - offset).div_ceil(BLOCK) as usize * BLOCK as usize);
            let n = read_full(&file, &mut buffer[..want], offset)?;
            for (index, block) in buffer[..n].chunks(BLOCK as usize).enumerate() {
                if block.iter().any(|b| *b != 0) {
                    hasher.update(&(offset / BLOCK + index as u64).to_le_bytes());
                    // The last block may be short; what is missing counts as zeros.
                    hasher.update(block);
                    hasher.update(&vec![0; BLOCK as usize - block.len()]);
                }
            }
            offset += want as u64;
        }
        // Not `end`: a hole that begins inside a block would bring the block twice.
        at = offset;
    }
    Ok(hasher.finalize())
}

fn read_full(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut done = 0;
    while done < buffer.len() {
        match file.read_at(&mut buffer[done..], offset + done as u64)? {
            0 => break,
            n => done += n,
        }
    }
    Ok(done)
}

fn seek(file: &File, offset: u64, whence: i32) -> io::Result<Option<u64>> {
    // SAFETY: a system call on an open descriptor, without memory.
    let found = unsafe { libc::lseek(file.as_raw_fd(), offset as i64, whence) };
    if found >= 0 {
        return Ok(Some(found as u64));
    }
    match io::Error::last_os_error() {
        e if e.raw_os_error() == Some(libc::ENXIO) => Ok(None),
        e => Err(e),
    }
}

pub(crate) fn xattrs(path: &Path) -> io::Result<BTreeMap<Vec<u8>, Vec<u8>>> {
    thread_local! {
        static BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; ATTRIBUTES]);
    }
    let path = CString::new(path.as_os_str().as_bytes())?;
    BUFFER.with_borrow_mut(|buffer| {
        // SAFETY: a NUL-terminated path, and a buffer of the announced size.
        let n =
            unsafe { libc::llistxattr(path.as_ptr(), buffer.as_mut_ptr().cast(), buffer.len()) };
        if n < 0 {
            return Err(io::Error::last_os_error());
        }
        let names = buffer[..n as usize].to_vec();
        let mut all = BTreeMap::new();
        for name in names.split(|b| *b == 0).filter(|n| !n.is_empty()) {
            let c_name = CString::new(name)?;
            // SAFETY: as above, with a NUL-terminated name.
            let n = unsafe {
                libc::lgetxattr(
                    path.as_ptr(),
                    c_name.as_ptr(),
                    buffer.as_mut_ptr().cast(),
                    buffer.len(),
                )
            };
            if n < 0 {
                return Err(io::Error::last_os_error());
            }
            all.insert(name.to_vec(), buffer[..n as usize].to_vec());
        }
        Ok(all)
    })
}

/// Lines that say in what two trees differ.
pub fn differences(what: &str, a: &Tree, b: &Tree) -> Vec<String> {
    let mut found = Vec::new();
    for (path, one) in &a.0 {
        let Some(other) = b.0.get(path) else {
            found.push(format!("{what}: {path:?} is missing on the second"));
            continue;
        };
        if !one.agrees(other) {
            found.push(format!("{what}: {path:?} is\n  {one:?}\n  {other:?}"));
        }
    }
    for path in b.0.keys().filter(|path| !a.0.contains_key(*path)) {
        found.push(format!("{what}: {path:?} is missing on the first"));
    }
    found
}
