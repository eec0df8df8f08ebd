//! What the resync of a copy that was given up removes although this copy may have changed it.
//!
//! Of an object that is not small only the changed ranges are copied when the archive is made,
//! and of one that only got another name nothing. If the other copy has removed it, the resync
//! takes its last name: then it is in no copy any more. So an archive remembers such objects,
//! by their inodes, until the resync has ended, and what waits aside for its end then goes into
//! the archive, below `removed`, under the path it had. Nothing is copied for that: a file gets
//! a further name before it loses its last one, and loses twinfold's attribute behind that.

use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD};
use serde::{Deserialize, Serialize};

use super::copy::{ID, attributes, copy_file, entries, private_directory, special};
use super::list::names;
use super::{ABOUT, About, PART, REMOVED};
use crate::store::Layout;

/// The objects that are remembered, as lines of JSON. It is there until the resync has ended.
pub(super) const HELD: &str = "held";

/// One of them.
#[derive(Serialize, Deserialize)]
struct Held {
    inode: u64,
    path: Vec<u8>,
}

/// Notes one more object in `file`.
pub(super) fn hold(file: &mut impl Write, inode: u64, path: &Path) -> io::Result<()> {
    let path = path.as_os_str().to_owned().into_vec();
    serde_json::to_writer(&mut *file, &Held { inode, path })?;
    file.write_all(b"\n")
}

fn held(archive: &Path) -> io::Result<HashMap<u64, PathBuf>> {
    let path = archive.join(HELD);
    let read = || {
        let mut all = HashMap::new();
        for line in BufReader::new(File::open(&path)?).lines() {
            let held: Held = serde_json::from_str(&line?)?;
            all.insert(held.inode, OsString::from_vec(held.path).into());
        }
        io::Result::Ok(all)
    };
    read().map_err(|e| {
        let text = format!(
            "{} cannot be read, so what the resync removes is not kept; \
             `archive drop` of this archive does without: {e}",
            path.display()
        );
        io::Error::new(e.kind(), text)
    })
}

/// The archives of resyncs that have not ended.
fn holding(layout: &Layout) -> io::Result<Vec<PathBuf>> {
    let mut all = Vec::new();
    for name in names(layout)?.iter().filter(|n| !n.ends_with(PART)) {
        let archive = layout.archive().join(name);
        if archive.join(HELD).try_exists()? {
            all.push(archive);
        }
    }
    Ok(all)
}

/// The resync ends: what is remembered and waits aside gets its place in the archive.
/// Returns the inodes that have a name there beside that aside. Done again after a crash it
/// goes on where it was.
pub fn keep_removed(layout: &Layout) -> io::Result<HashSet<u64>> {
    let mut linked = HashSet::new();
    for archive in holding(layout)? {
        let mut keeping = Keeping {
            to: archive.join(REMOVED),
            held: held(&archive)?,
            linked: &mut linked,
            any: false,
        };
        keeping.look(&layout.aside())?;
        if keeping.any {
            rustix::fs::syncfs(File::open(&archive)?)?;
        }
    }
    Ok(linked)
}

struct Keeping<'a> {
    to: PathBuf,
    held: HashMap<u64, PathBuf>,
    linked: &'a mut HashSet<u64>,
    any: bool,
}

impl Keeping<'_> {
    /// Looks at everything below a directory.
    fn look(&mut self, directory: &Path) -> io::Result<()> {
        for (name, inode, is_directory) in entries(directory)? {
            let source = directory.join(name);
            if let Some(path) = self.held.get(&inode) {
                let target = self.to.join(path);
                if let Some(above) = target.parent() {
                    private_directory(above)?;
                }
                self.keep(&source, &target)?;
                self.any = true;
            } else if is_directory {
                self.look(&source)?;
            }
        }
        Ok(())
    }

    fn keep(&mut self, source: &Path, target: &Path) -> io::Result<()> {
        let meta = fs::symlink_metadata(source)?;
        if meta.is_dir() {
            private_directory(target)?;
            for (name, _, _) in entries(source)? {
                self.keep(&source.join(&name), &target.join(&name))?;
            }
            return attributes(source, target, &meta);
        }
        if let Ok(there) = fs::symlink_metadata(target) {
            if there.ino() == meta.ino() {
                self.linked.insert(meta.ino());
                return Ok(());
            }
            // Half a copy.
            fs::remove_file(target)?;
        }
        if meta.nlink() == 1 {
            fs::hard_link(source, target)?;
            self.linked.insert(meta.ino());
            return Ok(());
        }
        // Its other name may be one that it has now.
        let kind = meta.file_type();
        if kind.is_file() {
            copy_file(source, target, &meta, true, &[])?;
        } else if kind.is_symlink() {
            std::os::unix::fs::symlink(fs::read_link(source)?, target)?;
        } else {
            special(target, &meta)?;
        }
        attributes(source, target, &meta)
    }
}

/// The resync has ended: nothing is remembered any more, and what came into an archive is told
/// of there.
pub fn end_removed(layout: &Layout) -> io::Result<()> {
    for archive in holding(layout)? {
        let removed = archive.join(REMOVED);
        if removed.try_exists()? {
            let (mut objects, mut bytes) = (0, 0);
            settle(&removed, &mut objects, &mut bytes)?;
            let mut about: About = serde_json::from_slice(&fs::read(archive.join(ABOUT))?)?;
            // It may have been told already, by a run that was killed behind that.
            if about.removed == 0 {
                about.bytes += bytes;
            }
            about.removed = objects;
            let new = archive.join("about.new");
            fs::write(&new, serde_json::to_vec_pretty(&about)?)?;
            File::open(&new)?.sync_all()?;
            fs::rename(new, archive.join(ABOUT))?;
        }
        fs::remove_file(archive.join(HELD))?;
    }
    Ok(())
}

/// Counts what is below a directory, and takes twinfold's attribute from it.
fn settle(directory: &Path, objects: &mut u64, bytes: &mut u64) -> io::Result<()> {
    for (name, _, is_directory) in entries(directory)? {
        let path = directory.join(name);
        match rustix::fs::lremovexattr(&path, ID) {
            Ok(()) | Err(rustix::io::Errno::NODATA) => {}
            Err(e) => return Err(e.into()),
        }
        let meta = rustix::fs::statat(CWD, &path, AtFlags::SYMLINK_NOFOLLOW)?;
        *objects += 1;
        if is_directory {
            settle(&path, objects, bytes)?;
        } else {
            *bytes += meta.st_blocks as u64 * 512;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use twinfold_protocol::handshake::CopyState;
    use twinfold_protocol::marks::Names;
    use twinfold_protocol::op::Name;

    use super::super::{Reason, Wanted, keep};
    use super::*;

    fn inode(path: &Path) -> u64 {
        fs::symlink_metadata(path).unwrap().ino()
    }

    /// A resync takes the last name of what was renamed here, is killed before it has ended,
    /// and does it again.
    #[test]
    fn what_is_remembered_gets_a_name_once_and_keeps_it() {
        let place = tempfile::tempdir_in("/var/tmp").unwrap();
        let (layout, root) = (
            Layout::new(place.path().join("base")),
            place.path().join("root"),
        );
        fs::create_dir_all(layout.aside()).unwrap();
        fs::create_dir_all(root.join("d/below")).unwrap();
        for path in ["renamed", "twice", "d/below/f", "theirs"] {
            fs::write(root.join(path), vec![7; 2 << 20]).unwrap();
        }
        fs::hard_link(root.join("twice"), root.join("second")).unwrap();
        let names = ["renamed", "twice", "d"].map(|n| Name::new(n.as_bytes()).unwrap());
        let wanted = Wanted {
            directories: [(inode(&root), Names::Some(names.into()))].into(),
            ..Wanted::default()
        };
        let copy = CopyState::default();
        let (name, _) = keep(&layout, root.clone(), &copy, Reason::GivenUp, &wanted, 1).unwrap();
        for (n, path) in ["renamed", "twice", "d", "theirs"].iter().enumerate() {
            let aside = layout.aside().join(n.to_string());
            fs::rename(root.join(path), &aside).unwrap();
            rustix::fs::lsetxattr(&aside, ID, b"x", rustix::fs::XattrFlags::empty()).unwrap();
        }
        let linked = HashSet::from(["0", "2/below/f"].map(|n| inode(&layout.aside().join(n))));
        // Half a copy of it, as a power cut leaves it.
        let removed = layout.archive().join(name).join(REMOVED);
        fs::create_dir(&removed).unwrap();
        fs::write(removed.join("twice"), "half").unwrap();
        for _ in 0..2 {
            assert_eq!(keep_removed(&layout).unwrap(), linked);
        }
        fs::remove_dir_all(layout.aside()).unwrap();
        for _ in 0..2 {
            end_removed(&layout).unwrap();
        }
        for path in ["renamed", "twice", "d/below/f"] {
            assert_eq!(
                fs::read(removed.join(path)).unwrap(),
                vec![7; 2 << 20],
                "{path}"
            );
            let id = rustix::fs::lgetxattr(removed.join(path), ID, &mut [0u8; 8][..]);
            assert_eq!(id, Err(rustix::io::Errno::NODATA));
        }
        // The name that it has now leads to an object of its own.
        assert_ne!(inode(&removed.join("twice")), inode(&root.join("second")));
        assert!(!removed.join("theirs").exists());
        let about = super::super::list(&layout).unwrap().remove(0).about;
        assert_eq!(about.removed, 5);
        assert!(about.bytes >= 6 << 20, "{about:?}");
        fs::create_dir(layout.aside()).unwrap();
        assert_eq!(keep_removed(&layout).unwrap(), HashSet::new());
    }
}
