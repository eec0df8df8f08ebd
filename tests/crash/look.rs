//! What an application sees of a tree, without times. Looking leaves no access times, also in
//! a store.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// One object.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) kind: &'static str,
    pub(crate) mode: u32,
    pub(crate) owner: (u32, u32),
    /// Names, of everything but directories.
    pub(crate) links: u64,
    /// Contents of a file, target of a link.
    pub(crate) data: Vec<u8>,
    pub(crate) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl Seen {
    /// Whether everything but the bytes is the same.
    pub(crate) fn has_same_attributes(&self, other: &Seen) -> bool {
        let of = |seen: &Seen| (seen.kind, seen.mode, seen.owner, seen.links);
        of(self) == of(other) && self.xattrs == other.xattrs
    }
}

impl std::fmt::Debug for Seen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let xattrs: Vec<_> = self
            .xattrs
            .iter()
            .map(|(n, v)| (String::from_utf8_lossy(n), v.len()))
            .collect();
        write!(
            f,
            "{} {:o} {:?} links {} size {} {} {xattrs:?}",
            self.kind,
            self.mode,
            self.owner,
            self.links,
            self.data.len(),
            blake3::hash(&self.data).to_hex().split_at(8).0,
        )
    }
}

/// A tree by path.
pub(crate) type Look = BTreeMap<PathBuf, Seen>;

/// Everything below `root`, without it.
pub(crate) fn look(root: &Path) -> io::Result<Look> {
    let mut found = Look::new();
    let mut waiting = vec![root.to_owned()];
    while let Some(directory) = waiting.pop() {
        for name in harness::names(&directory)? {
            let path = directory.join(name);
            let seen = seen(&path)?;
            if seen.kind == "directory" {
                waiting.push(path.clone());
            }
            found.insert(path.strip_prefix(root).unwrap().to_owned(), seen);
        }
    }
    Ok(found)
}

/// One object.
pub(crate) fn seen(path: &Path) -> io::Result<Seen> {
    let meta = fs::symlink_metadata(path)?;
    let of = meta.file_type();
    let (kind, data) = match () {
        () if of.is_file() => ("file", harness::read_quietly(path)?),
        () if of.is_dir() => ("directory", Vec::new()),
        () if of.is_symlink() => (
            "link",
            fs::read_link(path)?.as_os_str().as_bytes().to_owned(),
        ),
        () if of.is_fifo() => ("fifo", Vec::new()),
        () => ("other", Vec::new()),
    };
    Ok(Seen {
        kind,
        mode: meta.mode() & 0o7777,
        owner: (meta.uid(), meta.gid()),
        links: if of.is_dir() { 0 } else { meta.nlink() },
        data,
        xattrs: xattrs(path)?,
    })
}

fn xattrs(path: &Path) -> io::Result<BTreeMap<Vec<u8>, Vec<u8>>> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut names = vec![0u8; 4096];
    // SAFETY: a NUL-terminated path, and a buffer of the announced size.
    let n = unsafe { libc::llistxattr(path.as_ptr(), names.as_mut_ptr().cast(), names.len()) };
    if n < 0 {
        return Err(io::Error::last_os_error());
    }
    let mut all = BTreeMap::new();
    for name in names[..n as usize].split(|b| *b == 0) {
        // The others are not the application's.
        if !name.starts_with(b"user.") {
            continue;
        }
        let c_name = CString::new(name)?;
        let mut value = vec![0u8; 64 << 10];
        // SAFETY: as above, with a NUL-terminated name.
        let n = unsafe {
            libc::lgetxattr(
                path.as_ptr(),
                c_name.as_ptr(),
                value.as_mut_ptr().cast(),
                value.len(),
            )
        };
        if n < 0 {
            return Err(io::Error::last_os_error());
        }
        value.truncate(n as usize);
        all.insert(name.to_vec(), value);
    }
    Ok(all)
}

/// In what two looks differ.
pub(crate) fn differences(wanted: &Look, found: &Look) -> Vec<String> {
    let mut lines = Vec::new();
    for path in wanted.keys().chain(found.keys()) {
        let (wanted, found) = (wanted.get(path), found.get(path));
        let line = format!("{path:?} should be {wanted:?} and is {found:?}");
        if wanted != found && !lines.contains(&line) {
            lines.push(line);
        }
    }
    lines
}
