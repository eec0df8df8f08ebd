//! Extended attributes, and the one that is ours.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::BorrowedFd;

use bytes::Bytes;
use rustix::fs::XattrFlags;
use twinfold_protocol::ids::FileId;
use twinfold_protocol::limits;
use twinfold_protocol::op::XattrMode;

use super::node::Node;
use super::{Store, sys};

/// The extended attribute that holds an object's id.
pub(super) const ID: &CStr = c"trusted.twinfold";

/// The extended attribute that holds what a program may do (`capabilities(7)`).
pub(super) const CAPABILITY: &[u8] = b"security.capability";

/// Whether an extended attribute is one of the node's own: labels and hashes that its kernel
/// keeps by its own policy (SELinux, Smack, IMA, EVM). They are not replicated: the peer's
/// kernel may have another policy, refuse them, or not let them be removed.
fn is_of_the_node(attribute: &[u8]) -> bool {
    let label = attribute.strip_prefix(b"security.");
    label.is_some_and(|label| {
        matches!(label, b"selinux" | b"ima" | b"evm") || label.starts_with(b"SMACK64")
    })
}

/// The id an object carries, if any.
pub(super) fn id_of(fd: BorrowedFd<'_>) -> io::Result<Option<FileId>> {
    let mut value = [0u8; 8];
    match rustix::fs::getxattr(sys::proc_path(fd).as_c_str(), ID, &mut value[..]) {
        Ok(8) => Ok(Some(FileId(u64::from_le_bytes(value)))),
        Ok(_) => Ok(None),
        Err(rustix::io::Errno::NODATA) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

/// Gives an object its id, once and for ever.
pub(super) fn set_id(fd: BorrowedFd<'_>, file: FileId) -> io::Result<()> {
    Ok(rustix::fs::setxattr(
        sys::proc_path(fd).as_c_str(),
        ID,
        &file.0.to_le_bytes(),
        XattrFlags::CREATE,
    )?)
}

/// The same for a file that is open, without the way over its path.
pub(super) fn set_id_of_file(file: BorrowedFd<'_>, id: FileId) -> io::Result<()> {
    let value = id.0.to_le_bytes();
    Ok(rustix::fs::fsetxattr(file, ID, &value, XattrFlags::CREATE)?)
}

/// Gives an object an id whatever it had before.
pub(super) fn replace_id(fd: BorrowedFd<'_>, file: FileId) -> io::Result<()> {
    Ok(rustix::fs::setxattr(
        sys::proc_path(fd).as_c_str(),
        ID,
        &file.0.to_le_bytes(),
        XattrFlags::empty(),
    )?)
}

/// Takes an object's id away.
pub(super) fn remove_id(fd: BorrowedFd<'_>) -> io::Result<()> {
    match rustix::fs::removexattr(sys::proc_path(fd).as_c_str(), ID) {
        Ok(()) | Err(rustix::io::Errno::NODATA) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

fn name(bytes: &[u8]) -> io::Result<CString> {
    let name = CString::new(bytes).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    if name.as_c_str() == ID {
        return Err(io::Error::from_raw_os_error(libc::EPERM));
    }
    if is_of_the_node(bytes) {
        return Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP));
    }
    Ok(name)
}

impl Store {
    /// The value of an extended attribute; `ENODATA` when there is none.
    pub fn get_xattr(&self, node: &Node, attribute: &[u8]) -> io::Result<Vec<u8>> {
        let Ok(attribute) = name(attribute) else {
            return Err(io::Error::from_raw_os_error(libc::ENODATA));
        };
        let path = sys::proc_path(node.path());
        let mut value = vec![0; 256];
        loop {
            match rustix::fs::getxattr(path.as_c_str(), attribute.as_c_str(), &mut value[..]) {
                Ok(n) => {
                    value.truncate(n);
                    return Ok(value);
                }
                Err(rustix::io::Errno::RANGE) if value.len() < limits::MAX_XATTR_VALUE => {
                    value.resize(limits::MAX_XATTR_VALUE, 0);
                }
                Err(e) => return Err(e.into()),
            }
        }
    }

    /// The names of all extended attributes but ours and those of the node's own kernel.
    pub fn list_xattrs(&self, node: &Node) -> io::Result<Vec<Vec<u8>>> {
        let path = sys::proc_path(node.path());
        let mut buffer = vec![0u8; 1024];
        let n = loop {
            match rustix::fs::listxattr(path.as_c_str(), &mut buffer[..]) {
                Ok(n) => break n,
                Err(rustix::io::Errno::RANGE) if buffer.len() < limits::MAX_XATTR_VALUE => {
                    buffer.resize(limits::MAX_XATTR_VALUE, 0);
                }
                Err(e) => return Err(e.into()),
            }
        };
        Ok(buffer[..n]
            .split(|b| *b == 0)
            .filter(|name| !name.is_empty() && *name != ID.to_bytes() && !is_of_the_node(name))
            .map(<[u8]>::to_vec)
            .collect())
    }

    /// `setxattr(2)`.
    pub fn set_xattr(
        &self,
        node: &Node,
        attribute: &[u8],
        value: &[u8],
        mode: XattrMode,
    ) -> io::Result<()> {
        let flags = match mode {
            XattrMode::Either => XattrFlags::empty(),
            XattrMode::Create => XattrFlags::CREATE,
            XattrMode::Replace => XattrFlags::REPLACE,
        };
        if attribute == CAPABILITY {
            node.set_plain(false);
        }
        let attribute = name(attribute)?;
        Ok(rustix::fs::setxattr(
            sys::proc_path(node.path()).as_c_str(),
            attribute.as_c_str(),
            value,
            flags,
        )?)
    }

    /// `removexattr(2)`.
    pub fn remove_xattr(&self, node: &Node, attribute: &[u8]) -> io::Result<()> {
        let attribute = name(attribute)?;
        Ok(rustix::fs::removexattr(
            sys::proc_path(node.path()).as_c_str(),
            attribute.as_c_str(),
        )?)
    }

    /// All extended attributes with their values.
    pub fn xattrs(&self, node: &Node) -> io::Result<Vec<(Bytes, Bytes)>> {
        let mut all = Vec::new();
        for attribute in self.list_xattrs(node)? {
            match self.get_xattr(node, &attribute) {
                Ok(value) => all.push((attribute.into(), value.into())),
                Err(e) if e.raw_os_error() == Some(libc::ENODATA) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(all)
    }
}
