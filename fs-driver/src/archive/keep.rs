//! Writing an archive: one walk over the tree finds what changed under its names, and
//! what it needs; then it is copied.

use std::collections::{BTreeSet, HashMap};
use std::ffi::{CStr, CString, OsStr, OsString};
use std::fs::{self, File, Metadata};
use std::io::{self, BufWriter, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, Timespec, Timestamps, XattrFlags};
use serde::{Deserialize, Serialize};
use twinfold_protocol::handshake::CopyState;
use twinfold_protocol::ids::FileId;
use twinfold_protocol::marks::Names;

use super::{ABOUT, About, Change, FILES, FORMAT, Kept, Line, MANIFEST, PART};
use crate::store::Layout;

/// Files up to this size are kept whole, so that they can be used as they are, in bytes.
const WHOLE: u64 = 1 << 20;

/// Bytes copied at once where the file system cannot copy by itself.
const PIECE: usize = 1 << 20;

/// Twinfold's own attribute: it has no place outside of the store.
const ID: &[u8] = b"trusted.twinfold";

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
    let name = format!("{}-{}", stamp(now), copy.current);
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

fn private_directory(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new()
        .mode(0o700)
        .recursive(true)
        .create(path)
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
    let (found, removed) = find(&root, wanted)?;
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
        put(&archiving.keep(object)?)?;
    }
    archiving.finish()?;
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

/// Everything that is wanted under every name it has; and the names that are gone.
fn find(root: &Path, wanted: &Wanted) -> io::Result<(Vec<Found>, Vec<PathBuf>)> {
    let (mut found, mut removed) = (Vec::new(), Vec::new());
    let inode = fs::symlink_metadata(root)?.ino();
    let mut waiting = vec![(PathBuf::new(), inode)];
    if let Some(object) = wanted.objects.get(&inode) {
        found.push(Found {
            path: PathBuf::new(),
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
                None => continue,
            };
            found.push(Found {
                path,
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

/// Name, inode, and whether it is a directory, of everything in a directory; without
/// leaving an access time in it.
fn entries(path: &Path) -> io::Result<Vec<(OsString, u64, bool)>> {
    let flags =
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::NOATIME | OFlags::CLOEXEC;
    let directory = rustix::fs::open(path, flags, Mode::empty())?;
    let mut all = Vec::new();
    for entry in rustix::fs::Dir::new(directory)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name == b"." || name == b".." {
            continue;
        }
        let name = OsString::from_vec(name.to_vec());
        let is_directory = match entry.file_type() {
            FileType::Directory => true,
            FileType::Unknown => fs::symlink_metadata(path.join(&name))?.is_dir(),
            _ => false,
        };
        all.push((name, entry.ino(), is_directory));
    }
    Ok(all)
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
            let kind = match () {
                () if kind.is_fifo() => FileType::Fifo,
                () if kind.is_socket() => FileType::Socket,
                () if kind.is_char_device() => FileType::CharacterDevice,
                () => FileType::BlockDevice,
            };
            rustix::fs::mknodat(CWD, &target, kind, Mode::empty(), meta.rdev())?;
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

/// Whether the file system lets files share blocks.
fn shares_blocks(root: &Path, at: &Path) -> io::Result<bool> {
    let probe = |name: &str| {
        File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(at.join(name))
    };
    debug_assert!(root.is_absolute());
    let names = ["probe-a", "probe-b"];
    let shared = (|| {
        let [from, to] = [probe(names[0])?, probe(names[1])?];
        (&from).write_all(&[1; 4096])?;
        io::Result::Ok(rustix::fs::ioctl_ficlone(&to, &from).is_ok())
    })();
    for name in names {
        let _ = fs::remove_file(at.join(name));
    }
    shared
}

/// Copies a file: whole where that is wanted or costs nothing, else its ranges. Returns the
/// bytes kept, and whether it is whole.
fn copy_file(
    source: &Path,
    target: &Path,
    meta: &Metadata,
    whole: bool,
    ranges: &[(u64, u64)],
) -> io::Result<(u64, bool)> {
    let from = File::options()
        .read(true)
        .custom_flags(libc::O_NOATIME | libc::O_NOFOLLOW)
        .open(source)?;
    let to = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(target)?;
    if meta.len() > 0 && rustix::fs::ioctl_ficlone(&to, &from).is_ok() {
        return Ok((meta.blocks() * 512, true));
    }
    to.set_len(meta.len())?;
    if whole {
        return Ok((copy_data(&from, &to, 0, meta.len())?, true));
    }
    let mut bytes = 0;
    for (offset, length) in ranges {
        bytes += copy_data(&from, &to, *offset, *length)?;
    }
    Ok((bytes, false))
}

/// Copies what is not hole of a range.
fn copy_data(from: &File, to: &File, offset: u64, length: u64) -> io::Result<u64> {
    let end = offset.saturating_add(length);
    let (mut at, mut copied) = (offset, 0);
    while at < end {
        let data = match rustix::fs::seek(from, rustix::fs::SeekFrom::Data(at)) {
            Ok(data) if data < end => data,
            Ok(_) | Err(rustix::io::Errno::NXIO) => break,
            Err(e) => return Err(e.into()),
        };
        let hole = rustix::fs::seek(from, rustix::fs::SeekFrom::Hole(data))?.min(end);
        copy_range(from, to, data, hole - data)?;
        copied += hole - data;
        at = hole;
    }
    Ok(copied)
}

fn copy_range(from: &File, to: &File, offset: u64, length: u64) -> io::Result<()> {
    use std::os::unix::fs::FileExt;
    let mut done = 0;
    while done < length {
        let (mut a, mut b) = (offset + done, offset + done);
        let most = usize::try_from(length - done)
            .unwrap_or(usize::MAX)
            .min(1 << 30);
        match rustix::fs::copy_file_range(from, Some(&mut a), to, Some(&mut b), most) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => done += n as u64,
            Err(rustix::io::Errno::INTR) => {}
            Err(rustix::io::Errno::NOSPC) => return Err(io::ErrorKind::StorageFull.into()),
            // The file system cannot: by hand, from where it stopped.
            Err(_) => break,
        }
    }
    let mut buffer = vec![0; PIECE.min((length - done) as usize)];
    while done < length {
        let most = buffer.len().min((length - done) as usize);
        let piece = &mut buffer[..most];
        from.read_exact_at(piece, offset + done)?;
        to.write_all_at(piece, offset + done)?;
        done += most as u64;
    }
    Ok(())
}

/// Owner, mode, extended attributes and times of an object, on what was made for it.
fn attributes(source: &Path, target: &Path, meta: &Metadata) -> io::Result<()> {
    std::os::unix::fs::lchown(target, Some(meta.uid()), Some(meta.gid()))?;
    for name in xattr_names(source)? {
        let mut value = vec![0; twinfold_protocol::limits::MAX_XATTR_VALUE];
        let n = rustix::fs::lgetxattr(source, name.as_c_str(), &mut value[..])?;
        rustix::fs::lsetxattr(target, name.as_c_str(), &value[..n], XattrFlags::empty())?;
    }
    if !meta.is_symlink() {
        rustix::fs::chmodat(
            CWD,
            target,
            Mode::from_raw_mode(meta.mode() & 0o7777),
            AtFlags::empty(),
        )?;
    }
    let time = |seconds: i64, nanoseconds: i64| Timespec {
        tv_sec: seconds,
        tv_nsec: nanoseconds,
    };
    let times = Timestamps {
        last_access: time(meta.atime(), meta.atime_nsec()),
        last_modification: time(meta.mtime(), meta.mtime_nsec()),
    };
    rustix::fs::utimensat(CWD, target, &times, AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(())
}

fn xattr_names(path: &Path) -> io::Result<Vec<CString>> {
    let mut names = vec![0u8; twinfold_protocol::limits::MAX_XATTR_VALUE];
    let n = rustix::fs::llistxattr(path, &mut names[..])?;
    let all = names[..n].split_inclusive(|b| *b == 0);
    Ok(all
        .filter_map(|name| CStr::from_bytes_with_nul(name).ok())
        .filter(|name| name.to_bytes() != ID && !name.is_empty())
        .map(CStr::to_owned)
        .collect())
}
