//! Doing on a secondary what the primary did.
//!
//! Each op says what it expects to find. When the store holds something else, the
//! copies have drifted apart; that is reported and never papered over.

use std::io;
use std::sync::Arc;

use twinfold_protocol::ids::FileId;
use twinfold_protocol::op::{Name, Op, RenameMode, Stability};

use super::Store;
use super::node::Node;

/// Why an op could not be applied.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// The store refused: full, broken, too small for the file.
    #[error("{op} of {file}: {source}")]
    Store {
        /// Which op.
        op: &'static str,
        /// On which object.
        file: FileId,
        /// What the operating system said.
        source: io::Error,
    },
    /// This copy is not what the primary thinks it is.
    #[error("the copies have drifted apart: {0}")]
    Drifted(String),
}

impl Store {
    /// Applies an op of the live stream (resync ops: [`Store::put`]). A write that
    /// must be stable is only written; the caller syncs.
    pub fn apply(&self, op: &Op) -> Result<(), ApplyError> {
        let failed = |file: FileId, source: io::Error| match source.raw_os_error() {
            Some(libc::ENOENT | libc::ESTALE | libc::EEXIST | libc::ENOTEMPTY | libc::ENOTDIR) => {
                ApplyError::Drifted(format!("{} of {file}: {source}", op.word()))
            }
            _ => ApplyError::Store {
                op: op.word(),
                file,
                source,
            },
        };
        let node = |file: FileId| self.node(file).map_err(|e| failed(file, e));
        match op {
            Op::Write {
                file,
                offset,
                clear_privileges,
                data,
                stability: Stability::Mode | Stability::Data | Stability::Full,
            } => {
                let target = node(*file)?;
                self.write(&target, *offset, data)
                    .and_then(|()| match clear_privileges {
                        true => self.clear_privileges(&target),
                        false => Ok(()),
                    })
                    .map_err(|e| failed(*file, e))
            }
            Op::Truncate {
                file,
                size,
                clear_privileges,
            } => {
                let target = node(*file)?;
                self.truncate(&target, *size)
                    .and_then(|()| match clear_privileges {
                        true => self.clear_privileges(&target),
                        false => Ok(()),
                    })
                    .map_err(|e| failed(*file, e))
            }
            Op::Allocate {
                file,
                mode,
                offset,
                length,
            } => self
                .allocate(&*node(*file)?, *mode, *offset, *length)
                .map_err(|e| failed(*file, e)),
            Op::CopyRange {
                from,
                from_offset,
                to,
                to_offset,
                length,
            } => {
                let copied = self
                    .copy_range(
                        &*node(*from)?,
                        *from_offset,
                        &*node(*to)?,
                        *to_offset,
                        *length,
                    )
                    .map_err(|e| failed(*to, e))?;
                if copied != *length {
                    return Err(ApplyError::Drifted(format!(
                        "a copy from {from} to {to} moved {copied} instead of {length} bytes"
                    )));
                }
                Ok(())
            }
            Op::Create {
                parent,
                name,
                object,
            } => {
                // Two objects with one id could not be told apart any more.
                if self.node(object.file).is_ok() {
                    return Err(ApplyError::Drifted(format!(
                        "{} is to be created, but exists",
                        object.file
                    )));
                }
                self.create(&*node(*parent)?, name, object)
                    .map(drop)
                    .map_err(|e| failed(object.file, e))
            }
            Op::Link { file, parent, name } => self
                .link(&*node(*file)?, &*node(*parent)?, name)
                .map_err(|e| failed(*file, e)),
            Op::Unlink { parent, name, file } | Op::RemoveDirectory { parent, name, file } => {
                let directory = node(*parent)?;
                let found = self.expect(&directory, name, Some(*file))?;
                match found {
                    Some(found) => self
                        .unlink(&directory, name, found)
                        .map_err(|e| failed(*file, e)),
                    None => Ok(()),
                }
            }
            Op::Rename {
                parent,
                name,
                file,
                new_parent,
                new_name,
                replaced,
                mode,
            } => {
                let (from, to) = (node(*parent)?, node(*new_parent)?);
                self.expect(&from, name, Some(*file))?;
                let victim = self.expect(&to, new_name, *replaced)?;
                let mode = match mode {
                    // The names were checked; the flag would only race with nobody.
                    RenameMode::NoReplace => RenameMode::Replace,
                    other => *other,
                };
                self.rename(&from, name, &to, new_name, victim, mode)
                    .map_err(|e| failed(*file, e))
            }
            Op::SetAttributes { file, change } => self
                .change(&*node(*file)?, change)
                .map_err(|e| failed(*file, e)),
            Op::SetXattr {
                file,
                name,
                value,
                mode,
            } => self
                .set_xattr(&*node(*file)?, name, value, *mode)
                .map_err(|e| failed(*file, e)),
            Op::RemoveXattr { file, name } => self
                .remove_xattr(&*node(*file)?, name)
                .map_err(|e| failed(*file, e)),
            Op::Times {
                file,
                accessed,
                modified,
            } => match self.node(*file) {
                Ok(target) => self
                    .set_times(&target, Some(*accessed), Some(*modified))
                    .map_err(|e| failed(*file, e)),
                // It lost its last name meanwhile.
                Err(_) => Ok(()),
            },
            Op::Sync { .. }
            | Op::Checkpoint
            | Op::ResyncEnd
            | Op::PutDirectory { .. }
            | Op::PutObject { .. }
            | Op::PutData { .. }
            | Op::PutHole { .. } => Ok(()),
        }
    }

    /// What a name leads to, which must be `file`, or nothing when `file` is none.
    fn expect(
        &self,
        parent: &Node,
        name: &Name,
        file: Option<FileId>,
    ) -> Result<Option<Arc<Node>>, ApplyError> {
        let found = self
            .find(parent, name)
            .map_err(|source| ApplyError::Store {
                op: "lookup",
                file: parent.file(),
                source,
            })?;
        let id = found.as_ref().map(|n| n.file());
        if id == file {
            return Ok(found);
        }
        let say = |id: Option<FileId>| id.map_or("nothing".into(), |id| id.to_string());
        Err(ApplyError::Drifted(format!(
            "{name} in {} leads to {} here and to {} on the primary",
            parent.file(),
            say(id),
            say(file)
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Layout;
    use twinfold_protocol::attr::Kind;
    use twinfold_protocol::op::NewObject;

    fn create(name: &[u8], file: FileId) -> Op {
        Op::Create {
            parent: FileId::ROOT,
            name: Name::new(name).unwrap(),
            object: NewObject {
                file,
                kind: Kind::Regular,
                target: bytes::Bytes::new(),
                mode: 0o600,
                umask: 0,
                uid: 0,
                gid: 0,
            },
        }
    }

    /// Needs root, for the attributes `trusted.*`, and a disk that has them.
    #[test]
    fn an_id_is_given_to_one_object_only() {
        let place = tempfile::tempdir_in("/var/tmp").unwrap();
        let layout = Layout::new(place.path());
        for directory in [layout.data(), layout.aside(), layout.state()] {
            std::fs::create_dir(directory).unwrap();
        }
        let store = Store::open(layout.clone()).unwrap();
        store.apply(&create(b"one", FileId(77))).unwrap();
        for taken in [FileId(77), FileId::ROOT] {
            let refused = store.apply(&create(b"two", taken));
            assert!(
                matches!(refused, Err(ApplyError::Drifted(_))),
                "{refused:?}"
            );
        }
        assert!(!layout.data().join("two").exists());
    }
}
