//! Errors of file system calls. The adapter turns each into what its platform
//! wants, in one exhaustive map.

use std::io;

use twinfold_protocol::op::BadName;
use twinfold_protocol::remote::Failure;

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
    /// This node's disk has failed: the call belongs to the peer.
    #[error("this node's disk has failed")]
    Moved,
}

impl From<&FsError> for Failure {
    fn from(error: &FsError) -> Failure {
        match error {
            // Without a code of its own it is told as what it is: an error of the input or output.
            FsError::Store(e) => Failure::System(e.raw_os_error().unwrap_or(0)),
            FsError::ReadOnly => Failure::ReadOnly,
            FsError::NoSpace => Failure::NoSpace,
            FsError::TooLarge => Failure::TooLarge,
            FsError::NotADirectory => Failure::NotADirectory,
            FsError::IsADirectory => Failure::IsADirectory,
            FsError::NameTooLong | FsError::Name(BadName::TooLong) => Failure::NameTooLong,
            FsError::NotSupported => Failure::NotSupported,
            FsError::Invalid | FsError::Name(_) | FsError::BadHandle => Failure::Invalid,
            FsError::Fenced | FsError::Moved => Failure::Fenced,
        }
    }
}

impl From<Failure> for FsError {
    fn from(failure: Failure) -> FsError {
        match failure {
            Failure::System(0) => FsError::Store(io::Error::other("the peer's store failed")),
            Failure::System(code) => FsError::Store(io::Error::from_raw_os_error(code)),
            Failure::ReadOnly => FsError::ReadOnly,
            Failure::NoSpace => FsError::NoSpace,
            Failure::TooLarge => FsError::TooLarge,
            Failure::NotADirectory => FsError::NotADirectory,
            Failure::IsADirectory => FsError::IsADirectory,
            Failure::NameTooLong => FsError::NameTooLong,
            Failure::NotSupported => FsError::NotSupported,
            Failure::Invalid => FsError::Invalid,
            Failure::Fenced => FsError::Fenced,
        }
    }
}

/// The result of a file system call.
pub type FsResult<T> = Result<T, FsError>;
