//! What an object is and what is known about it, in words both platforms share.

use crate::ids::FileId;
use crate::time::Timestamp;

/// The kind of a file system object, with what only that kind has.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Kind {
    /// A file with data.
    Regular,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A named pipe.
    Fifo,
    /// A Unix socket's name.
    Socket,
    /// A character device.
    CharDevice(Device),
    /// A block device.
    BlockDevice(Device),
}

/// The number of a device node.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct Device {
    /// The driver's number.
    pub major: u32,
    /// The device's number within the driver.
    pub minor: u32,
}

/// Attributes of an object.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Attributes {
    /// Who it is.
    pub file: FileId,
    /// What it is.
    pub kind: Kind,
    /// Permission bits and suid, sgid, sticky: the lower 12 bits of a Unix mode.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Names that lead to it.
    pub links: u32,
    /// Size in bytes.
    pub size: u64,
    /// Space used, in units of 512 bytes.
    pub blocks: u64,
    /// Best size of one transfer, in bytes.
    pub block_size: u32,
    /// Last access.
    pub accessed: Timestamp,
    /// Last change of the data.
    pub modified: Timestamp,
    /// Last change of the attributes, by the clock of the node at hand: the one
    /// time no file system lets a program set, so it is not replicated.
    pub changed: Timestamp,
}
