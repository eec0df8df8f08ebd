//! Calls on a mount that are carried out by the peer: what a node asks for whose own
//! disk has failed, and what it is told.
//!
//! A call names objects by id, never by a path, so that what is open goes on working. It
//! carries what the caller's kernel has not checked already: it checks permissions with
//! the attributes that it was told.

use bytes::Bytes;

use crate::attr::Attributes;
use crate::ids::FileId;
use crate::op::{Name, Op, Payload};

/// What is asked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Request {
    /// A change. Ids that only the peer knows, of a new object or behind a name, are
    /// not looked at.
    Change {
        /// What shall be done.
        op: Op,
        /// suid and sgid of the file go first. Ops that have a field for it do without.
        clear_privileges: bool,
    },
    /// What a name leads to.
    Lookup {
        /// In which directory.
        parent: FileId,
        /// Which name.
        name: Name,
    },
    /// The attributes of an object.
    Attributes {
        /// Which object.
        file: FileId,
    },
    /// Where a symbolic link points to.
    ReadLink {
        /// Which link.
        file: FileId,
    },
    /// The bytes of a file.
    Read {
        /// Which file.
        file: FileId,
        /// From which byte on.
        offset: u64,
        /// How many, at most [`crate::limits::MAX_PAYLOAD`].
        length: u32,
    },
    /// The next data or hole.
    Seek {
        /// In which file.
        file: FileId,
        /// At or behind which byte.
        offset: u64,
        /// Data, else a hole.
        data: bool,
    },
    /// The entries of a directory.
    List {
        /// Which directory.
        directory: FileId,
        /// Behind which position; 0 is the beginning.
        from: u64,
    },
    /// The value of an extended attribute.
    GetXattr {
        /// Of which object.
        file: FileId,
        /// Its name.
        name: Bytes,
    },
    /// The names of all extended attributes, each with a NUL behind it.
    ListXattrs {
        /// Of which object.
        file: FileId,
    },
    /// Space and objects of the file system.
    Space,
    /// The kernel does not refer to this object any more.
    Forget {
        /// Which object.
        file: FileId,
    },
}

/// What is answered.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Answer {
    /// It is done.
    Done,
    /// Attributes, as they are now.
    Attributes(Attributes),
    /// Bytes of a file, a link's target, a value, names.
    Bytes(Payload),
    /// A position, or how many bytes were copied.
    Number(u64),
    /// Entries, at most [`crate::limits::MAX_LISTED`]; none behind the last.
    Entries(Vec<Entry>),
    /// Space and objects.
    Space(Space),
    /// It failed.
    Failed(Failure),
}

/// The name of a listed entry.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum EntryName {
    /// `.`
    Here,
    /// `..`
    Up,
    /// Any other.
    Name(Name),
}

/// A listed entry.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    /// Its name.
    pub name: EntryName,
    /// Where to go on behind it.
    pub next: u64,
    /// What it leads to.
    pub attributes: Attributes,
}

/// Space and objects of a file system.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Space {
    /// Unit of the block counts, in bytes.
    pub block_size: u64,
    /// All blocks.
    pub blocks: u64,
    /// Free blocks.
    pub free: u64,
    /// Free blocks for ordinary users.
    pub available: u64,
    /// All inodes.
    pub files: u64,
    /// Free inodes.
    pub files_free: u64,
    /// Longest name, in bytes.
    pub name_max: u32,
}

/// Why a call failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Failure {
    /// The operating system's own code.
    System(i32),
    /// The peer does not take changes.
    ReadOnly,
    /// No room is left.
    NoSpace,
    /// The file would be too large.
    TooLarge,
    /// Not a directory.
    NotADirectory,
    /// A directory.
    IsADirectory,
    /// A name is too long.
    NameTooLong,
    /// Not supported.
    NotSupported,
    /// An argument makes no sense.
    Invalid,
    /// The peer's own state cannot be written.
    Fenced,
}

impl Request {
    /// Whether the op is one that a program can ask for.
    pub fn is_call(op: &Op) -> bool {
        !op.is_resync()
            && !matches!(
                op,
                Op::Times { .. }
                    | Op::Checkpoint
                    | Op::TakeOver
                    | Op::Verify { .. }
                    | Op::Differs { .. }
            )
    }

    /// Whether doing it twice could tell something else than doing it once: whoever does
    /// it must remember the answer until the other side has it.
    pub fn once(&self) -> bool {
        matches!(self, Request::Change { .. })
    }
}
