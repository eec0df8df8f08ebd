//! Compares two directory trees completely: names, kinds, modes, owners, sizes,
//! modification times to the nanosecond, link counts, extended attributes, link
//! targets, data, and inode numbers where they must be the same.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::io::Errno;

/// Bytes compared at once.
const CHUNK: usize = 1 << 20;

/// How two trees differ.
#[derive(Debug, Default)]
pub(crate) struct Comparison {
    /// Objects compared.
    pub(crate) objects: u64,
    /// Bytes of data compared.
    pub(crate) bytes: u64,
    /// One line for each object that differs.
    pub(crate) differences: Vec<String>,
}

/// Compares the trees at `a` and `b`; inode numbers only with `numbers`.
pub(crate) fn compare(a: &Path, b: &Path, numbers: bool) -> Result<Comparison> {
    let (mut in_a, mut in_b) = (BTreeMap::new(), BTreeMap::new());
    walk(a, Path::new(""), &mut in_a)?;
    walk(b, Path::new(""), &mut in_b)?;
    let mut result = Comparison::default();
    let names: BTreeSet<_> = in_a.keys().chain(in_b.keys()).collect();
    for name in names {
        result.objects += 1;
        let shown = match name.as_os_str().is_empty() {
            true => "(the folder itself)".into(),
            false => name.display().to_string(),
        };
        let (Some(ours), Some(theirs)) = (in_a.get(name), in_b.get(name)) else {
            let only = match in_a.contains_key(name) {
                true => "first",
                false => "second",
            };
            let what = format!("{shown}: only in the {only} copy");
            result.differences.push(what);
            continue;
        };
        let mut how = ours.differences(theirs, numbers);
        if ours.is_file() && theirs.is_file() && ours.size == theirs.size {
            result.bytes += ours.size;
            let at = data(&a.join(name), &b.join(name))
                .with_context(|| format!("cannot compare the data of {shown}"))?;
            how.extend(at.map(|at| format!("data from byte {at} on")));
        }
        if !how.is_empty() {
            let what = format!("{shown}: {}", how.join(", "));
            result.differences.push(what);
        }
    }
    Ok(result)
}

#[derive(Debug)]
struct Object {
    number: u64,
    mode: u32,
    links: u64,
    owner: (u32, u32),
    device: u64,
    size: u64,
    modified: (i64, i64),
    target: Option<PathBuf>,
    xattrs: BTreeMap<OsString, Vec<u8>>,
}

impl Object {
    fn is_file(&self) -> bool {
        self.mode & libc::S_IFMT == libc::S_IFREG
    }

    fn differences(&self, other: &Object, numbers: bool) -> Vec<String> {
        let mut how = Vec::new();
        let mut differ = |what: &str, a: &dyn std::fmt::Debug, b: &dyn std::fmt::Debug| {
            let (a, b) = (format!("{a:?}"), format!("{b:?}"));
            if a != b {
                how.push(format!("{what} {a} and {b}"));
            }
        };
        differ("mode", &self.mode, &other.mode);
        differ("owner", &self.owner, &other.owner);
        differ("links", &self.links, &other.links);
        differ("device", &self.device, &other.device);
        differ("size", &self.size, &other.size);
        differ("modified", &self.modified, &other.modified);
        differ("target", &self.target, &other.target);
        differ("xattrs", &self.xattrs, &other.xattrs);
        if numbers {
            differ("inode", &self.number, &other.number);
        }
        how
    }
}

fn walk(root: &Path, below: &Path, into: &mut BTreeMap<PathBuf, Object>) -> Result<()> {
    let path = match below.as_os_str().is_empty() {
        true => root.to_owned(),
        false => root.join(below),
    };
    let object = look(&path).with_context(|| format!("cannot look at {}", path.display()))?;
    let directory = object.mode & libc::S_IFMT == libc::S_IFDIR;
    into.insert(below.to_owned(), object);
    if directory {
        let listed =
            std::fs::read_dir(&path).with_context(|| format!("cannot list {}", path.display()))?;
        for entry in listed {
            let entry = entry.with_context(|| format!("cannot list {}", path.display()))?;
            walk(root, &below.join(entry.file_name()), into)?;
        }
    }
    Ok(())
}

fn look(path: &Path) -> io::Result<Object> {
    let meta = std::fs::symlink_metadata(path)?;
    Ok(Object {
        number: meta.ino(),
        mode: meta.mode(),
        links: meta.nlink(),
        owner: (meta.uid(), meta.gid()),
        device: meta.rdev(),
        // A directory's size says how its file system stores it.
        size: if meta.is_dir() { 0 } else { meta.size() },
        modified: (meta.mtime(), meta.mtime_nsec()),
        target: match meta.is_symlink() {
            true => Some(std::fs::read_link(path)?),
            false => None,
        },
        xattrs: xattrs(path)?,
    })
}

fn xattrs(path: &Path) -> io::Result<BTreeMap<OsString, Vec<u8>>> {
    use std::os::unix::ffi::OsStrExt;
    let mut list = vec![0; 64 << 10];
    let n = match rustix::fs::llistxattr(path, list.as_mut_slice()) {
        Ok(n) => n,
        Err(Errno::NOTSUP) => return Ok(BTreeMap::new()),
        Err(e) => return Err(e.into()),
    };
    list.truncate(n);
    let mut found = BTreeMap::new();
    let names = list.split(|b| *b == 0).filter(|name| !name.is_empty());
    for name in names.map(std::ffi::OsStr::from_bytes) {
        let mut value = vec![0; 64 << 10];
        let n = rustix::fs::lgetxattr(path, name, value.as_mut_slice())?;
        value.truncate(n);
        found.insert(name.to_owned(), value);
    }
    Ok(found)
}

/// The first chunk in which two files of the same size differ.
fn data(a: &Path, b: &Path) -> io::Result<Option<u64>> {
    let (mut a, mut b) = (File::open(a)?, File::open(b)?);
    let (mut ours, mut theirs) = (Vec::with_capacity(CHUNK), Vec::with_capacity(CHUNK));
    let mut at = 0;
    loop {
        ours.clear();
        theirs.clear();
        (&mut a).take(CHUNK as u64).read_to_end(&mut ours)?;
        (&mut b).take(CHUNK as u64).read_to_end(&mut theirs)?;
        if ours != theirs {
            let same = ours.iter().zip(&theirs).take_while(|(a, b)| a == b).count();
            return Ok(Some(at + same as u64));
        }
        if ours.is_empty() {
            return Ok(None);
        }
        at += ours.len() as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{FileExt, PermissionsExt, symlink};

    #[test]
    fn every_kind_of_difference_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        let at = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::new(1_000_000, 123);
        let date = |path: &Path| File::open(path).unwrap().set_modified(at).unwrap();
        for root in [&a, &b] {
            std::fs::create_dir_all(root.join("d")).unwrap();
            std::fs::write(root.join("d/f"), [1; 5000]).unwrap();
            symlink("f", root.join("d/l")).unwrap();
            date(&root.join("d/f"));
        }
        let settle = || {
            for root in [&a, &b] {
                // A symbolic link's own time cannot be set through std.
                let link = root.join("d/l");
                let when = rustix::fs::Timespec {
                    tv_sec: 5,
                    tv_nsec: 6,
                };
                let times = rustix::fs::Timestamps {
                    last_access: when,
                    last_modification: when,
                };
                let flags = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
                // It may be gone, or be a file by now.
                if link.is_symlink() {
                    rustix::fs::utimensat(rustix::fs::CWD, &link, &times, flags).unwrap();
                }
                date(&root.join("d"));
                date(root);
            }
        };
        let differences = || {
            settle();
            compare(&a, &b, false).unwrap().differences
        };
        assert_eq!(differences(), Vec::<String>::new());
        assert!(!compare(&a, &b, true).unwrap().differences.is_empty());

        let f = File::options().write(true).open(b.join("d/f")).unwrap();
        f.write_all_at(&[2], 4500).unwrap();
        f.set_modified(at).unwrap();
        assert_eq!(differences(), ["d/f: data from byte 4500 on"]);
        f.write_all_at(&[1], 4500).unwrap();
        f.set_modified(at + std::time::Duration::from_nanos(1))
            .unwrap();
        assert!(differences()[0].contains("modified"));
        f.set_modified(at).unwrap();
        f.set_permissions(std::fs::Permissions::from_mode(0o600))
            .unwrap();
        assert!(differences()[0].contains("mode"));
        std::fs::remove_file(b.join("d/l")).unwrap();
        symlink("g", b.join("d/l")).unwrap();
        assert!(differences()[1].contains("target"));
        std::fs::remove_file(b.join("d/l")).unwrap();
        assert_eq!(differences()[1], "d/l: only in the first copy");
        std::fs::hard_link(b.join("d/f"), b.join("d/l")).unwrap();
        assert!(differences()[0].contains("links"));
    }
}
