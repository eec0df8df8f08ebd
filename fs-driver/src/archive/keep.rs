//! Writing an archive: one walk over the tree finds what changed under its names, and
//! what it needs; then it is copied.

use std::collections::{BTreeSet, HashMap};
use std::ffi::OsStr;
use std::fs::{self, File, Metadata};
use std::io::{self, BufWriter, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use twinfold_protocol::handshake::CopyState;
use twinfold_protocol::ids::FileId;
use twinfold_protocol::marks::Names;

use super::copy::{attributes, copy_file, entries, private_directory, shares_blocks, special};
use super::removed::{HELD, hold};
use super::{ABOUT, About, Change, FILES, FORMAT, Kept, Line, MANIFEST, PART};
use crate::store::Layout;

/// Files up to this size are kept whole, so that they can be used as they are, in bytes.
const WHOLE: u64 = 1 << 20;

/// Why an archive is made.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// The operator gives the copy up.
    GivenUp,
    /// The other copy was made the good one by force, and may lack what this one has.
    Forced,
    /// The copy was made the good one by force, in the middle of a resync: these objects had
    /// lost their names by then, and had no new ones. They are named by their ids.
    Aside,
}

/// What is to be kept of an object.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Object {
    /// Its id.
    pub file: u64,
    /// The other copy may lack it.
    pub new: bool,
    /// Its attributes may have changed.
    pub attributes: bool,
    /// All of its data may have changed.
    pub all: bool,
    /// These ranges of its data may have changed: first byte and length, in order.
    pub ranges: Vec<(u64, u64)>,
}

/// What is to be kept.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Wanted {
    /// All of the copy.
    pub everything: bool,
    /// Objects, by the number of their inode in the store.
    pub objects: HashMap<u64, Object>,
    /// Directories some of whose names may have changed, in the same way.
    pub directories: HashMap<u64, Names>,
}

impl Wanted {
    /// Whether nothing is to be kept.
    pub fn is_empty(&self) -> bool {
        !self.everything && self.objects.is_empty() && self.directories.is_empty()
    }
}

/// Something to be kept, found under a name.
struct Found {
    path: PathBuf,
    inode: u64,
    is_directory: bool,
    object: Object,
    named: bool,
    names: bool,
}

/// Keeps what is wanted below `root` of the copy in a new archive; returns its name. Nothing
/// may change it meanwhile. When this returns the archive is complete and on the disk.
pub fn keep(
    layout: &Layout,
    root: PathBuf,
    copy: &CopyState,
    reason: Reason,
    wanted: &Wanted,
    now: u64,
) -> io::Result<(String, About)> {
    private_directory(&layout.archive())?;
    super::remove_incomplete(layout)?;
    let (name, now) = free_name(layout, copy, now)?;
    let part = layout.archive().join(format!("{name}{PART}"));
    let made = write(root, copy, reason, wanted, now, &part);
    let about = match made {
        Ok(about) => about,
        Err(e) => {
            // Half an archive is none, and may have taken the last room there was.
            let _ = fs::remove_dir_all(&part);
            return Err(e);
        }
    };
    let directory = File::open(layout.archive())?;
    rustix::fs::syncfs(&directory)?;
    fs::rename(&part, layout.archive().join(&name))?;
    directory.sync_all()?;
    Ok((name, about))
}

/// The name of a new archive, and its time. In this very second there may be one already, made
/// by a run that was killed before it could note that: the new one is of the next second.
fn free_name(layout: &Layout, copy: &CopyState, now: u64) -> io::Result<(String, u64)> {
    let mut now = now;
    loop {
        let name = format!("{}-{}", stamp(now), copy.current);
        if !layout.archive().join(&name).try_exists()? {
            return Ok((name, now));
        }
        now += 1;
    }
}

/// The time in a name: it sorts, and has nothing in it that a shell would take for its own.
fn stamp(now: u64) -> String {
    let text = crate::engine::clock::utc(now);
    let digits = |c: &char| c.is_ascii_digit() || *c == ' ';
    text.trim_end_matches(" UTC")
        .chars()
        .filter(digits)
        .collect::<String>()
        .replace(' ', "-")
}

fn write(
    root: PathBuf,
    copy: &CopyState,
    reason: Reason,
    wanted: &Wanted,
    now: u64,
    part: &Path,
) -> io::Result<About> {
    private_directory(part)?;
    let mut lines = BufWriter::new(File::create_new(part.join(MANIFEST))?);
    let mut held = BufWriter::new(File::create_new(part.join(HELD))?);
    let (found, removed) = find(&root, wanted, &mut held)?;
    let mut archiving = Archiving {
        to: part.join(FILES),
        root,
        linked: HashMap::new(),
        directories: Vec::new(),
        made: BTreeSet::new(),
        files: 0,
        bytes: 0,
    };
    archiving.check_room(&found)?;
    archiving.parent(Path::new(""))?;
    let mut changes = 0;
    let mut put = |line: &Line| {
        changes += 1;
        serde_json::to_writer(&mut lines, line)?;
        lines.write_all(b"\n")
    };
    for path in removed {
        put(&line(
            &path,
            None,
            vec![Change::Removed],
            Vec::new(),
            Kept::Nothing,
        ))?;
    }
    for object in &found {
        let line = archiving.keep(object)?;
        if line.kept == Kept::Ranges || object.is_directory {
            hold(&mut held, object.inode, &object.path)?;
        }
        put(&line)?;
    }
    archiving.finish()?;
    held.into_inner().map_err(io::IntoInnerError::into_error)?;
    lines.into_inner().map_err(io::IntoInnerError::into_error)?;
    let about = About {
        format: FORMAT,
        time: now,
        module: format!("{:032x}", copy.module.0),
        generation: format!("{:032x}", copy.current.0),
        bases: copy.bases.iter().map(|g| format!("{:032x}", g.0)).collect(),
        reason,
        everything: wanted.everything,
        changes,
        files: archiving.files,
        bytes: archiving.bytes,
        removed: 0,
    };
    fs::write(part.join(ABOUT), serde_json::to_vec_pretty(&about)?)?;
    Ok(about)
}

fn line(
    path: &Path,
    id: Option<u64>,
    changes: Vec<Change>,
    ranges: Vec<(u64, u64)>,
    kept: Kept,
) -> Line {
    let bytes = path.as_os_str().as_bytes();
    let hex = || bytes.iter().map(|b| format!("{b:02x}")).collect();
    Line {
        path: path.to_string_lossy().into_owned(),
        path_hex: std::str::from_utf8(bytes).is_err().then(hex),
        id: id.map(|id| FileId(id).to_string()),
        changes,
        ranges,
        kept,
    }
}

/// Everything that is wanted under every name it has; and the names that are gone. What may
/// have got its name here, and is not known to be changed otherwise, is `held`.
fn find(
    root: &Path,
    wanted: &Wanted,
    held: &mut impl Write,
) -> io::Result<(Vec<Found>, Vec<PathBuf>)> {
    let (mut found, mut removed) = (Vec::new(), Vec::new());
    let inode = fs::symlink_metadata(root)?.ino();
    let mut waiting = vec![(PathBuf::new(), inode)];
    if let Some(object) = wanted.objects.get(&inode) {
        found.push(Found {
            path: PathBuf::new(),
            inode,
            is_directory: true,
            object: object.clone(),
            named: false,
            names: matches!(wanted.directories.get(&inode), Some(Names::All)),
        });
    }
    while let Some((directory, inode)) = waiting.pop() {
        let marked = wanted.directories.get(&inode);
        let mut seen = BTreeSet::new();
        for (name, inode, is_directory) in entries(&root.join(&directory))? {
            let path = directory.join(&name);
            if is_directory {
                waiting.push((path.clone(), inode));
            }
            let named = match marked {
                Some(Names::Some(set)) => set.iter().any(|n| n.as_bytes() == name.as_bytes()),
                _ => false,
            };
            if named {
                seen.insert(name.as_bytes().to_vec());
            }
            let names = is_directory && matches!(wanted.directories.get(&inode), Some(Names::All));
            let object = match wanted.objects.get(&inode) {
                Some(object) => object.clone(),
                None if wanted.everything => Object {
                    all: true,
                    ..Object::default()
                },
                None if named || names => Object::default(),
                None => {
                    if marked == Some(&Names::All) {
                        hold(held, inode, &path)?;
                    }
                    continue;
                }
            };
            found.push(Found {
                path,
                inode,
                is_directory,
                object,
                named,
                names,
            });
        }
        if let Some(Names::Some(set)) = marked {
            let gone = set.iter().filter(|n| !seen.contains(n.as_bytes()));
            removed.extend(gone.map(|n| directory.join(OsStr::from_bytes(n.as_bytes()))));
        }
    }
    // Parents before what they hold.
    found.sort_by(|a, b| a.path.cmp(&b.path));
    Ok((found, removed))
}

struct Archiving {
    root: PathBuf,
    to: PathBuf,
    /// Objects with several names, and where they are already.
    linked: HashMap<u64, PathBuf>,
    /// Directories whose attributes are set when all is in them.
    directories: Vec<PathBuf>,
    made: BTreeSet<PathBuf>,
    files: u64,
    bytes: u64,
}

impl Archiving {
    /// Fails early where the data cannot fit. Blocks that can be shared need no room.
    fn check_room(&self, found: &[Found]) -> io::Result<()> {
        let mut needed = 0;
        let mut counted = BTreeSet::new();
        for f in found {
            let meta = fs::symlink_metadata(self.root.join(&f.path))?;
            if meta.is_file() && counted.insert(meta.ino()) {
                let marked: u64 = match is_whole(&f.object, &meta) {
                    true => meta.len(),
                    false => f.object.ranges.iter().map(|(_, length)| length).sum(),
                };
                needed += marked.min(meta.blocks() * 512);
            }
        }
        let space = rustix::fs::statvfs(&self.root)?;
        let free = space.f_bavail * space.f_frsize;
        if needed <= free || shares_blocks(&self.root, self.to.parent().unwrap_or(&self.root))? {
            return Ok(());
        }
        Err(io::Error::new(
            io::ErrorKind::StorageFull,
            format!("an archive of what this copy has needs {needed} bytes, {free} are free"),
        ))
    }

    /// Makes the directories down to `path`, with the attributes of the copy's.
    fn parent(&mut self, path: &Path) -> io::Result<()> {
        if self.made.contains(path) {
            return Ok(());
        }
        if let Some(above) = path.parent() {
            self.parent(above)?;
        }
        fs::create_dir(self.target(path))?;
        self.made.insert(path.to_owned());
        self.directories.push(path.to_owned());
        Ok(())
    }

    /// Joined with nothing, a path would get a slash at its end.
    fn target(&self, path: &Path) -> PathBuf {
        match path.as_os_str().is_empty() {
            true => self.to.clone(),
            false => self.to.join(path),
        }
    }

    fn keep(&mut self, found: &Found) -> io::Result<Line> {
        let Found { path, object, .. } = found;
        let source = self.root.join(path);
        let meta = fs::symlink_metadata(&source)?;
        let mut changes = Vec::new();
        let mut note = |on: bool, change| {
            if on {
                changes.push(change);
            }
        };
        note(object.new, Change::New);
        note(found.named, Change::Named);
        let is_file = meta.is_file();
        note(
            is_file && (object.all || !object.ranges.is_empty()),
            Change::Data,
        );
        note(object.attributes, Change::Attributes);
        note(found.names, Change::Names);
        let mut ranges = Vec::new();
        if is_file && !object.all {
            ranges.extend(object.ranges.iter().filter(|(from, _)| *from < meta.len()));
            for (from, length) in &mut ranges {
                *length = (*length).min(meta.len() - *from);
            }
        }
        let kept = self.keep_object(path, &source, &meta, object, &ranges)?;
        Ok(line(
            path,
            Some(object.file).filter(|id| *id != 0),
            changes,
            ranges,
            kept,
        ))
    }

    fn keep_object(
        &mut self,
        path: &Path,
        source: &Path,
        meta: &Metadata,
        object: &Object,
        ranges: &[(u64, u64)],
    ) -> io::Result<Kept> {
        if meta.is_dir() {
            self.parent(path)?;
            return Ok(Kept::Whole);
        }
        if let Some(above) = path.parent() {
            self.parent(above)?;
        }
        let target = self.target(path);
        if meta.nlink() > 1 {
            if let Some(there) = self.linked.get(&meta.ino()) {
                fs::hard_link(there, &target)?;
                return Ok(Kept::Linked);
            }
            self.linked.insert(meta.ino(), target.clone());
        }
        let kind = meta.file_type();
        let mut kept = Kept::Whole;
        if kind.is_file() {
            let (bytes, whole) = copy_file(source, &target, meta, is_whole(object, meta), ranges)?;
            self.files += 1;
            self.bytes += bytes;
            if !whole {
                kept = Kept::Ranges;
            }
        } else if kind.is_symlink() {
            std::os::unix::fs::symlink(fs::read_link(source)?, &target)?;
        } else {
            special(&target, meta)?;
        }
        attributes(source, &target, meta)?;
        Ok(kept)
    }

    /// Directories get their attributes when nothing is put into them any more.
    fn finish(&mut self) -> io::Result<()> {
        for path in std::mem::take(&mut self.directories).iter().rev() {
            let source = match path.as_os_str().is_empty() {
                true => self.root.clone(),
                false => self.root.join(path),
            };
            attributes(&source, &self.target(path), &fs::symlink_metadata(&source)?)?;
        }
        Ok(())
    }
}

/// Whether all of a file is kept, also where blocks cannot be shared.
fn is_whole(object: &Object, meta: &Metadata) -> bool {
    object.all || object.new || meta.len() <= WHOLE
}
