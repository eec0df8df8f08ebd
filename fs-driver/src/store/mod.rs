//! The store: the real directory under the mount, one implementation a platform.
//!
//! It knows objects by [`twinfold_protocol::ids::FileId`], names only beneath a
//! directory, and never follows a symbolic link: nothing that comes from the wire
//! or from the application can lead out of it (invariant 16).

mod ranges;

#[cfg(unix)]
mod unix;
#[cfg(unix)]
pub use unix::{
    Adoption, Ahead, ApplyError, DirectoryHandle, Entry, FORGOTTEN, Layout, Listed, Lost, Node,
    Opening, Readers, SpaceUse, Store, Visited, is_disk_failure, mark_as_seed, may_have_changed,
    strip_ids,
};

#[cfg(unix)]
pub(crate) use unix::Disk;
#[cfg(all(unix, test))]
pub(crate) use unix::scratch::{alone_in_a_process, scratch, take_all_descriptors};

pub use ranges::{RangeGuard, RangeLocks, WideningGuard};
