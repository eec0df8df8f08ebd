//! Errors of file system calls. The adapter turns each into what its platform
//! wants, in one exhaustive map.

use std::io;

use twinfold_protocol::op::BadName;

/// Why a call on the mount failed.
#[derive(Debug, thiserror::Error)]
pub enum FsError {
    /// The store's answer, with the operating system's own code.
    #[error(transparent)]
    Store(#[from] io::Error),
    /// The mount is not writable: this node is not primary.
    #[error("this node is not primary")]
    ReadOnly,
    /// The name cannot be one.
    #[error(transparent)]
    Name(#[from] BadName),
    /// There is no room left.
    #[error("no space left")]
    NoSpace,
    /// The file would be larger than the file system holds.
    #[error("file too large")]
    TooLarge,
    /// What the name leads to is not a directory.
    #[error("not a directory")]
    NotADirectory,
    /// What the name leads to is a directory.
    #[error("is a directory")]
    IsADirectory,
    /// A name or a link's target is too long.
    #[error("name too long")]
    NameTooLong,
    /// The call is not supported.
    #[error("not supported")]
    NotSupported,
    /// An argument makes no sense.
    #[error("invalid argument")]
    Invalid,
    /// The handle is not open, or not for this.
    #[error("bad file handle")]
    BadHandle,
    /// twinfold's own state could not be written; nothing is changed any more
    /// until the operator has looked (invariant 17).
    #[error("this node is fenced")]
    Fenced,
}

/// The result of a file system call.
pub type FsResult<T> = Result<T, FsError>;
