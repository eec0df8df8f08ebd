//! The operations: everything that can change a replicated folder.
//!
//! An op names objects by [`FileId`] and says what it expects to find (the id
//! behind a name it removes), so that a copy that has drifted is noticed by the
//! next op that touches it, instead of drifting further.

use bytes::Bytes;

use crate::attr::Kind;
use crate::ids::{FileId, Seq};
use crate::limits;
use crate::time::Timestamp;

/// A name in a directory: 1 to [`limits::MAX_NAME`] bytes, no `/`, no NUL, neither
/// `.` nor `..`. A value of this type cannot lead out of its directory.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(Box<[u8]>);

/// Why bytes are not a name.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BadName {
    /// No bytes at all.
    #[error("a name is empty")]
    Empty,
    /// More than [`limits::MAX_NAME`] bytes.
    #[error("a name is longer than {} bytes", limits::MAX_NAME)]
    TooLong,
    /// `.`, `..`, or a name with a slash or NUL in it.
    #[error("a name would lead out of its directory")]
    Escapes,
}

impl Name {
    /// Checks and takes over `bytes`.
    pub fn new(bytes: &[u8]) -> Result<Name, BadName> {
        match bytes {
            [] => Err(BadName::Empty),
            _ if bytes.len() > limits::MAX_NAME => Err(BadName::TooLong),
            b"." | b".." => Err(BadName::Escapes),
            _ if bytes.iter().any(|b| matches!(b, b'/' | 0)) => Err(BadName::Escapes),
            _ => Ok(Name(bytes.into())),
        }
    }

    /// The bytes of the name.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl std::fmt::Debug for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", String::from_utf8_lossy(&self.0))
    }
}

impl std::fmt::Display for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        String::from_utf8_lossy(&self.0).fmt(f)
    }
}

/// Data of a write, as one piece where it was made and in as many pieces as the
/// network delivered it where it arrives; never joined by copying.
#[derive(Clone, Default, Debug)]
pub struct Payload {
    chunks: Vec<Bytes>,
    len: usize,
}

impl Payload {
    /// The pieces in order.
    pub fn chunks(&self) -> &[Bytes] {
        &self.chunks
    }

    /// Bytes in all pieces.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no byte in it.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Adds a piece at the end.
    pub fn push(&mut self, chunk: Bytes) {
        self.len += chunk.len();
        if !chunk.is_empty() {
            self.chunks.push(chunk);
        }
    }

    /// All bytes as one piece; copies when there is more than one.
    pub fn to_bytes(&self) -> Bytes {
        match self.chunks.as_slice() {
            [] => Bytes::new(),
            [one] => one.clone(),
            many => many.concat().into(),
        }
    }
}

impl From<Bytes> for Payload {
    fn from(chunk: Bytes) -> Payload {
        let mut payload = Payload::default();
        payload.push(chunk);
        payload
    }
}

impl PartialEq for Payload {
    fn eq(&self, other: &Payload) -> bool {
        self.len == other.len && self.to_bytes() == other.to_bytes()
    }
}

impl Eq for Payload {}

/// How durable a write must be before it is acknowledged (`O_DSYNC`, `O_SYNC`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Stability {
    /// As the module's acknowledgement mode says.
    Mode,
    /// Data and what is needed to read it back are on both disks.
    Data,
    /// Data and all attributes are on both disks.
    Full,
}

/// What `fallocate(2)` shall do with a range.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum AllocateMode {
    /// Reserve space, grow the file if the range ends beyond it.
    Allocate,
    /// Reserve space, keep the size.
    KeepSize,
    /// Give space back; the range reads as zeros. Keeps the size.
    PunchHole,
    /// Make the range read as zeros, space reserved.
    ZeroRange,
    /// As [`AllocateMode::ZeroRange`], keep the size.
    ZeroRangeKeepSize,
}

/// What `rename(2)` shall do when the new name exists.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum RenameMode {
    /// Replace it.
    Replace,
    /// Fail.
    NoReplace,
    /// Swap the two.
    Exchange,
}

/// How `setxattr(2)` treats an attribute that exists or not.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum XattrMode {
    /// Create or replace.
    Either,
    /// Fail when it exists.
    Create,
    /// Fail when it does not exist.
    Replace,
}

/// New values for some attributes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Change {
    /// Permission bits, see [`crate::attr::Attributes::mode`].
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Last access.
    pub accessed: Option<Timestamp>,
    /// Last change of the data.
    pub modified: Option<Timestamp>,
}

/// A new object.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NewObject {
    /// Its id, given by the primary.
    pub file: FileId,
    /// What it is.
    pub kind: Kind,
    /// Where a symbolic link points to; empty for everything else.
    pub target: Bytes,
    /// Mode as asked for, before the umask.
    pub mode: u32,
    /// The creating process's umask; a default ACL of the directory overrides it.
    pub umask: u32,
    /// Owner.
    pub uid: u32,
    /// Group, unless the directory's sgid bit says otherwise.
    pub gid: u32,
}

/// Everything about an object except its data and names, as resync moves it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Object {
    /// Its id.
    pub file: FileId,
    /// What it is.
    pub kind: Kind,
    /// Where a symbolic link points to; empty for everything else.
    pub target: Bytes,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Size in bytes; the target cuts or extends a regular file to it.
    pub size: u64,
    /// Last access.
    pub accessed: Timestamp,
    /// Last change of the data.
    pub modified: Timestamp,
}

/// A directory entry as resync moves it: the name, and what it leads to, if anything.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PutEntry {
    /// The name.
    pub name: Name,
    /// What it leads to at the source; `None`: there is no such name.
    pub object: Option<Object>,
}

/// What the entries of a [`Op::PutDirectory`] are a part of.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Listing {
    /// These names only; all others stay as they are.
    Names,
    /// A whole listing in one or more ops: names in none of them go with the last.
    Whole {
        /// The first op of the listing.
        first: bool,
        /// The last op of the listing.
        last: bool,
    },
}

/// One mutation.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Op {
    /// `pwrite(2)`.
    Write {
        /// Into which file.
        file: FileId,
        /// From which byte on.
        offset: u64,
        /// How durable before it is acknowledged.
        stability: Stability,
        /// Clear suid and sgid as a write by an ordinary user does.
        clear_privileges: bool,
        /// The bytes.
        data: Payload,
    },
    /// `ftruncate(2)`.
    Truncate {
        /// Which file.
        file: FileId,
        /// New size in bytes.
        size: u64,
        /// Clear suid and sgid.
        clear_privileges: bool,
    },
    /// `fallocate(2)`.
    Allocate {
        /// In which file.
        file: FileId,
        /// What to do.
        mode: AllocateMode,
        /// From which byte on.
        offset: u64,
        /// How many bytes.
        length: u64,
    },
    /// `copy_file_range(2)`: both nodes copy, no data is shipped.
    CopyRange {
        /// Source file.
        from: FileId,
        /// Source position.
        from_offset: u64,
        /// Destination file.
        to: FileId,
        /// Destination position.
        to_offset: u64,
        /// Bytes the primary copied.
        length: u64,
    },
    /// `open(O_CREAT)`, `mkdir(2)`, `mknod(2)`, `symlink(2)`.
    Create {
        /// In which directory.
        parent: FileId,
        /// Under which name.
        name: Name,
        /// What.
        object: NewObject,
    },
    /// `link(2)`.
    Link {
        /// The object.
        file: FileId,
        /// In which directory.
        parent: FileId,
        /// Under which further name.
        name: Name,
    },
    /// `unlink(2)`.
    Unlink {
        /// In which directory.
        parent: FileId,
        /// Which name.
        name: Name,
        /// What the name led to.
        file: FileId,
    },
    /// `rmdir(2)`.
    RemoveDirectory {
        /// In which directory.
        parent: FileId,
        /// Which name.
        name: Name,
        /// What the name led to.
        file: FileId,
    },
    /// `renameat2(2)`.
    Rename {
        /// From which directory.
        parent: FileId,
        /// Which name.
        name: Name,
        /// What the name led to.
        file: FileId,
        /// Into which directory.
        new_parent: FileId,
        /// Under which name.
        new_name: Name,
        /// What the new name led to, if anything.
        replaced: Option<FileId>,
        /// What to do about it.
        mode: RenameMode,
    },
    /// `chmod(2)`, `chown(2)`, `utimensat(2)`.
    SetAttributes {
        /// Of which object.
        file: FileId,
        /// The new values.
        change: Change,
    },
    /// `setxattr(2)`.
    SetXattr {
        /// Of which object.
        file: FileId,
        /// Attribute name with its namespace.
        name: Bytes,
        /// Value.
        value: Bytes,
        /// What to do when it exists or not.
        mode: XattrMode,
    },
    /// `removexattr(2)`.
    RemoveXattr {
        /// Of which object.
        file: FileId,
        /// Attribute name with its namespace.
        name: Bytes,
    },
    /// `fsync(2)`, `fdatasync(2)`, `fsync(2)` of a directory.
    Sync {
        /// Which object.
        file: FileId,
        /// Only data and what is needed to read it back.
        data_only: bool,
    },
    /// The exact times the primary's file system gave an object that ops changed.
    Times {
        /// Which object.
        file: FileId,
        /// Last access.
        accessed: Timestamp,
        /// Last change of the data.
        modified: Timestamp,
    },
    /// Both nodes flush all they have; what was done before needs no mark after.
    Checkpoint,
    /// Verify: the secondary tells what it has of what the question names, at this place in
    /// the order. Changes nothing.
    Verify {
        /// What is asked.
        question: crate::verify::Question,
    },
    /// Verify: what the question names is known to differ. Changes nothing but what the
    /// secondary may say of its copy.
    Differs {
        /// What was asked.
        question: crate::verify::Question,
    },
    /// The primary's disk has failed: the secondary, which has everything before this,
    /// flushes, makes a new generation durable and takes the data over. The last op of
    /// its session.
    TakeOver,
    /// Resync: the directory has these entries.
    PutDirectory {
        /// Which directory; created aside when the target lacks it.
        directory: FileId,
        /// What the entries are a part of.
        listing: Listing,
        /// The entries, at most [`limits::MAX_PUT_ENTRIES`].
        entries: Vec<PutEntry>,
    },
    /// Resync: the object has these attributes and extended attributes.
    PutObject {
        /// The attributes; created aside when the target lacks the object.
        object: Object,
        /// Its extended attributes, as many as fit into [`limits::MAX_PUT_XATTRS`]; it has no
        /// others but those that follow as [`Op::PutXattr`].
        xattrs: Vec<(Bytes, Bytes)>,
    },
    /// Resync: the object has this extended attribute beside those of its [`Op::PutObject`].
    PutXattr {
        /// Which object.
        file: FileId,
        /// The attribute's name.
        name: Bytes,
        /// Its value.
        value: Bytes,
    },
    /// Resync: the file has these bytes.
    PutData {
        /// Which file.
        file: FileId,
        /// From which byte on.
        offset: u64,
        /// The bytes.
        data: Payload,
    },
    /// Resync: the file has a hole here.
    PutHole {
        /// Which file.
        file: FileId,
        /// From which byte on.
        offset: u64,
        /// How many bytes.
        length: u64,
    },
    /// Resync: all is moved; flush, become up to date, adopt the generation.
    ResyncEnd,
    /// Resync: bring everything up to here to stable storage. Nobody waits for it.
    Flush,
}

/// An op with its place in the order.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Sequenced {
    /// Its number.
    pub seq: Seq,
    /// The primary's wall clock when it was done.
    pub time: Timestamp,
    /// What was done.
    pub op: Op,
}

impl Op {
    /// Bytes of file data in the op.
    pub fn payload_len(&self) -> usize {
        match self {
            Op::Write { data, .. } | Op::PutData { data, .. } => data.len(),
            _ => 0,
        }
    }

    /// Bytes the op counts for in the window: about what it takes on the wire and, for
    /// resync, in work of the target.
    pub fn weight(&self) -> usize {
        /// What an op takes beside its payload.
        const HEAD: usize = 64;
        /// What making or changing one object costs a target, in bytes of file data.
        const OBJECT: usize = 4096;
        match self {
            Op::PutDirectory { entries, .. } => HEAD + OBJECT * (1 + entries.len()),
            Op::PutObject { xattrs, .. } => {
                let values = xattrs.iter().map(|(n, v)| n.len() + v.len());
                HEAD + OBJECT + values.sum::<usize>()
            }
            Op::PutXattr { name, value, .. } | Op::SetXattr { name, value, .. } => {
                HEAD + name.len() + value.len()
            }
            // Its data do not travel, but the peer's disk has as much to do.
            Op::CopyRange { length, .. } => {
                let most = limits::MAX_IN_FLIGHT_BYTES / 2;
                HEAD + usize::try_from(*length).map_or(most, |n| n.min(most))
            }
            other => HEAD + other.payload_len(),
        }
    }

    /// Whether the op belongs to resync rather than to the application.
    pub fn is_resync(&self) -> bool {
        matches!(
            self,
            Op::PutDirectory { .. }
                | Op::PutObject { .. }
                | Op::PutXattr { .. }
                | Op::PutData { .. }
                | Op::PutHole { .. }
                | Op::ResyncEnd
                | Op::Flush
        )
    }

    /// A short word for logs and metrics.
    pub fn word(&self) -> &'static str {
        match self {
            Op::Write { .. } => "write",
            Op::Truncate { .. } => "truncate",
            Op::Allocate { .. } => "allocate",
            Op::CopyRange { .. } => "copy",
            Op::Create { .. } => "create",
            Op::Link { .. } => "link",
            Op::Unlink { .. } => "unlink",
            Op::RemoveDirectory { .. } => "rmdir",
            Op::Rename { .. } => "rename",
            Op::SetAttributes { .. } => "setattr",
            Op::SetXattr { .. } => "setxattr",
            Op::RemoveXattr { .. } => "removexattr",
            Op::Sync { .. } => "sync",
            Op::Times { .. } => "times",
            Op::Checkpoint => "checkpoint",
            Op::Verify { .. } => "verify",
            Op::Differs { .. } => "differs",
            Op::TakeOver => "take-over",
            Op::PutDirectory { .. } => "put-directory",
            Op::PutObject { .. } => "put-object",
            Op::PutXattr { .. } => "put-xattr",
            Op::PutData { .. } => "put-data",
            Op::PutHole { .. } => "put-hole",
            Op::ResyncEnd => "resync-end",
            Op::Flush => "flush",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_cannot_lead_out_of_its_directory() {
        for bad in ["", ".", "..", "a/b", "/", "a\0b"] {
            assert!(Name::new(bad.as_bytes()).is_err(), "{bad:?}");
        }
        assert!(Name::new(&[b'x'; limits::MAX_NAME + 1]).is_err());
        for good in ["a", "...", ".a", "ä b", "x\n"] {
            assert_eq!(
                Name::new(good.as_bytes()).unwrap().as_bytes(),
                good.as_bytes()
            );
        }
        assert!(Name::new(&[b'x'; limits::MAX_NAME]).is_ok());
    }

    #[test]
    fn payload_equality_ignores_how_it_is_cut() {
        let whole = Payload::from(Bytes::from_static(b"abcdef"));
        let mut cut = Payload::default();
        cut.push(Bytes::from_static(b"ab"));
        cut.push(Bytes::from_static(b"cdef"));
        assert_eq!(whole, cut);
        assert_eq!(cut.len(), 6);
    }
}
