//! Doing on a secondary what the primary did.
//!
//! Each op says what it expects to find. When the store holds something else, the
//! copies have drifted apart; that is reported and never papered over.

use std::io;
use std::sync::Arc;

use twinfold_protocol::attr::Kind;
use twinfold_protocol::ids::FileId;
use twinfold_protocol::op::{Name, Op, RenameMode, Stability};

use super::Store;
use super::names::has_no_name;
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
    /// must be stable is only written; the caller syncs. In a copy that is being
    /// brought up (`syncing`) a file that loses a name is kept aside: another name of
    /// it may be on its way.
    pub fn apply(&self, op: &Op, syncing: bool) -> Result<(), ApplyError> {
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
                    Some(found) if syncing && found.kind() != Kind::Directory => self
                        .move_aside(&directory, name, &found)
                        .map_err(|e| failed(*file, e)),
                    Some(found) => self
                        .remove_name(&directory, name, &found)
                        .map(|last| {
                            if last {
                                self.orphan(found);
                            }
                        })
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
                let victim = match victim {
                    Some(victim)
                        if syncing
                            && mode == RenameMode::Replace
                            && victim.kind() != Kind::Directory
                            && victim.file() != *file =>
                    {
                        self.move_aside(&to, new_name, &victim)
                            .map_err(|e| failed(*file, e))?;
                        None
                    }
                    other => other,
                };
                self.move_name(&from, name, &to, new_name, mode)
                    .and_then(|()| match victim {
                        Some(victim) if mode == RenameMode::Replace && has_no_name(&victim)? => {
                            self.orphan(victim);
                            Ok(())
                        }
                        _ => Ok(()),
                    })
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
            | Op::Verify { .. }
            | Op::Differs { .. }
            | Op::TakeOver
            | Op::ResyncEnd
            | Op::Flush
            | Op::PutDirectory { .. }
            | Op::PutObject { .. }
            | Op::PutXattr { .. }
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
        if let Some(file) = file
            && self.is_lent(parent.file(), name)
        {
            return Err(ApplyError::Store {
                op: "lookup",
                file,
                source: io::Error::from(io::ErrorKind::ResourceBusy),
            });
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
pub(super) mod tests {
    use bytes::Bytes;
    use twinfold_protocol::ids::Epoch;
    use twinfold_protocol::op::NewObject;

    use super::super::scratch::scratch as store;
    use super::*;

    pub(in crate::store::unix) fn name(text: &str) -> Name {
        Name::new(text.as_bytes()).unwrap()
    }

    pub(in crate::store::unix) fn create(
        store: &Store,
        counter: u64,
        at: &str,
        kind: Kind,
    ) -> FileId {
        let file = FileId::new(Epoch(2), counter);
        let object = NewObject {
            file,
            kind,
            target: Bytes::new(),
            mode: 0o700,
            umask: 0,
            uid: 0,
            gid: 0,
        };
        let (parent, name) = (FileId::ROOT, name(at));
        store
            .apply(
                &Op::Create {
                    parent,
                    name,
                    object,
                },
                false,
            )
            .unwrap();
        file
    }

    fn unlink(at: &str, file: FileId) -> Op {
        Op::Unlink {
            parent: FileId::ROOT,
            name: name(at),
            file,
        }
    }

    /// Objects below `directory` that have no name and are still held by this process.
    fn held(directory: &tempfile::TempDir) -> Vec<std::path::PathBuf> {
        std::fs::read_dir("/proc/self/fd")
            .unwrap()
            .filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok())
            .filter(|path| path.starts_with(directory.path()))
            .filter(|path| path.to_string_lossy().ends_with(" (deleted)"))
            .collect()
    }

    #[test]
    fn what_loses_its_last_name_is_let_go_at_once() {
        let (directory, store) = store();
        let removed = create(&store, 1, "removed", Kind::Regular);
        let replaced = create(&store, 2, "replaced", Kind::Regular);
        let new = create(&store, 3, "new", Kind::Regular);
        let emptied = create(&store, 4, "emptied", Kind::Directory);
        for file in [removed, replaced, new] {
            let write = Op::Write {
                file,
                offset: 0,
                stability: Stability::Mode,
                clear_privileges: false,
                data: Bytes::from_static(b"data").into(),
            };
            store.apply(&write, false).unwrap();
        }
        store.apply(&unlink("removed", removed), false).unwrap();
        store
            .apply(
                &Op::RemoveDirectory {
                    parent: FileId::ROOT,
                    name: name("emptied"),
                    file: emptied,
                },
                false,
            )
            .unwrap();
        store
            .apply(
                &Op::Rename {
                    parent: FileId::ROOT,
                    name: name("new"),
                    file: new,
                    new_parent: FileId::ROOT,
                    new_name: name("replaced"),
                    replaced: Some(replaced),
                    mode: RenameMode::Replace,
                },
                false,
            )
            .unwrap();
        assert_eq!(held(&directory), [] as [std::path::PathBuf; 0]);
        for file in [removed, replaced, emptied] {
            let error = store.node(file).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::ESTALE));
        }
    }

    /// The source removes one name of a file and has another one that the target does
    /// not know yet: what is in the file must last until that one comes.
    #[test]
    fn in_a_resync_a_file_outlives_the_names_it_loses() {
        let (_directory, store) = store();
        for (counter, replace) in [(1, false), (10, true)] {
            let file = create(&store, counter, "one", Kind::Regular);
            let write = Op::Write {
                file,
                offset: 0,
                stability: Stability::Mode,
                clear_privileges: false,
                data: Bytes::from_static(b"data").into(),
            };
            store.apply(&write, true).unwrap();
            if replace {
                let new = create(&store, counter + 1, "new", Kind::Regular);
                let rename = Op::Rename {
                    parent: FileId::ROOT,
                    name: name("new"),
                    file: new,
                    new_parent: FileId::ROOT,
                    new_name: name("one"),
                    replaced: Some(file),
                    mode: RenameMode::Replace,
                };
                store.apply(&rename, true).unwrap();
            } else {
                store.apply(&unlink("one", file), true).unwrap();
            }
            let object = twinfold_protocol::op::Object {
                file,
                kind: Kind::Regular,
                target: Bytes::new(),
                mode: 0o600,
                uid: 0,
                gid: 0,
                size: 4,
                accessed: Default::default(),
                modified: Default::default(),
            };
            let entry = twinfold_protocol::op::PutEntry {
                name: name(&format!("two{counter}")),
                object: Some(object),
            };
            store
                .put(&Op::PutDirectory {
                    directory: FileId::ROOT,
                    listing: twinfold_protocol::op::Listing::Names,
                    entries: vec![entry],
                })
                .unwrap();
            let found = store
                .lookup(&store.root, &name(&format!("two{counter}")))
                .unwrap();
            assert_eq!((found.file(), found.size().unwrap()), (file, 4));
            assert_eq!(store.clear_aside(&Default::default()).unwrap(), 0);
        }
    }

    /// A resync is broken off for good: what it took out of its place and left with
    /// another name goes with that name; what has none is kept.
    #[test]
    fn a_copy_made_good_half_resynced_removes_what_loses_its_last_name() {
        let (directory, store) = store();
        let file = create(&store, 1, "one", Kind::Regular);
        let link = Op::Link {
            file,
            parent: FileId::ROOT,
            name: name("two"),
        };
        store.apply(&link, false).unwrap();
        let lost = create(&store, 2, "lost", Kind::Regular);
        store.apply(&unlink("one", file), true).unwrap();
        store.apply(&unlink("lost", lost), true).unwrap();
        assert_eq!(store.settle_aside().unwrap(), 1, "that has no name");
        assert!(store.node(lost).is_ok());
        store.apply(&unlink("two", file), false).unwrap();
        assert_eq!(
            store.node(file).unwrap_err().raw_os_error(),
            Some(libc::ESTALE)
        );
        assert_eq!(held(&directory), [] as [std::path::PathBuf; 0]);
    }

    /// The same of what is in a directory that lost its place.
    #[test]
    fn a_copy_made_good_half_resynced_removes_what_loses_its_last_name_outside_of_a_lost_directory()
    {
        let (directory, store) = store();
        let lost = create(&store, 1, "lost", Kind::Directory);
        let file = create(&store, 2, "one", Kind::Regular);
        let alone = create(&store, 3, "two", Kind::Regular);
        for (file, old, new) in [(file, None, "inner"), (alone, Some("two"), "alone")] {
            let link = Op::Link {
                file,
                parent: lost,
                name: name(new),
            };
            store.apply(&link, false).unwrap();
            if let Some(old) = old {
                store.apply(&unlink(old, file), false).unwrap();
            }
        }
        let gone = twinfold_protocol::op::PutEntry {
            name: name("lost"),
            object: None,
        };
        let listing = Op::PutDirectory {
            directory: FileId::ROOT,
            listing: twinfold_protocol::op::Listing::Names,
            entries: vec![gone],
        };
        store.put(&listing).unwrap();
        assert_eq!(store.settle_aside().unwrap(), 1, "the directory");
        assert!(store.node(alone).is_ok());
        store.apply(&unlink("one", file), false).unwrap();
        assert_eq!(
            store.node(file).unwrap_err().raw_os_error(),
            Some(libc::ESTALE)
        );
        assert_eq!(held(&directory), [] as [std::path::PathBuf; 0]);
    }

    #[test]
    fn what_somebody_has_open_stays_reachable_without_a_name() {
        let (directory, store) = store();
        let file = create(&store, 1, "open", Kind::Regular);
        let open = store.node(file).unwrap();
        store.apply(&unlink("open", file), false).unwrap();
        assert!(store.node(file).unwrap().is_orphan());
        drop(open);
        store.forget(file);
        assert_eq!(held(&directory), [] as [std::path::PathBuf; 0]);
    }

    #[test]
    fn an_id_is_given_to_one_object_only() {
        let (directory, store) = store();
        let taken = create(&store, 1, "one", Kind::Regular);
        for taken in [taken, FileId::ROOT] {
            let object = NewObject {
                file: taken,
                kind: Kind::Regular,
                target: Bytes::new(),
                mode: 0o600,
                umask: 0,
                uid: 0,
                gid: 0,
            };
            let again = Op::Create {
                parent: FileId::ROOT,
                name: name("two"),
                object,
            };
            let refused = store.apply(&again, false);
            assert!(
                matches!(refused, Err(ApplyError::Drifted(_))),
                "{refused:?}"
            );
        }
        assert!(!directory.path().join("data/two").exists());
    }
}
