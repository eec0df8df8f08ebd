//! Directories that change places in a resync.
//!
//! The source may put a directory into one that lies below it here: there the two have
//! changed places, and the name that has to go is told of later. Until then both names
//! cannot be in one tree. So what leads from the one to the other is *lent*: taken out of
//! its place and put back as soon as that is possible, unless its name is told of before.
//! Nobody has marked a lent name, so whoever lends it notes it first
//! ([`Store::in_the_way`]): should this process end, the next resync compares it.

use std::io;
use std::sync::Arc;

use rustix::fs::RenameFlags;
use twinfold_protocol::attr::Kind;
use twinfold_protocol::ids::FileId;
use twinfold_protocol::op::{Name, Op};

use super::Store;
use super::names::c_name;
use super::node::Node;
use super::put::aside_name;

impl Store {
    /// The directories out of which this op of a resync takes a name that it does not tell
    /// of: where a directory lay that gets another place, and what makes way for it. They are
    /// to be noted before it is done.
    pub fn in_the_way(&self, op: &Op) -> io::Result<Vec<FileId>> {
        let mut found = Vec::new();
        let Op::PutDirectory {
            directory, entries, ..
        } = op
        else {
            return Ok(found);
        };
        let mut line = None;
        let objects = entries.iter().filter_map(|e| e.object.as_ref());
        for moved in objects.filter(|o| o.kind == Kind::Directory) {
            let Some(node) = self.object(moved.file)? else {
                continue;
            };
            found.extend(self.holder(&node)?.filter(|holder| holder != directory));
            if line.is_none()
                && let Some(inner) = self.object(*directory)?
                && inner.kind() == Kind::Directory
            {
                line = Some(self.line(&inner)?);
            }
            let line = line.as_deref().unwrap_or_default();
            found.extend(line.iter().skip(1).find(|file| **file == moved.file));
        }
        Ok(found)
    }

    /// The directory that a directory lies in, unless it is aside.
    fn holder(&self, node: &Node) -> io::Result<Option<FileId>> {
        let up = self.parent_of(node)?;
        let aside = rustix::fs::fstat(&self.aside)?.st_ino;
        let lies = rustix::fs::statat(node.path(), c"..", rustix::fs::AtFlags::empty())?;
        Ok((lies.st_ino != aside).then_some(up))
    }

    /// A directory and all it lies in, up to the root. (What is aside lies in the root.)
    fn line(&self, inner: &Node) -> io::Result<Vec<FileId>> {
        let mut line = vec![inner.file()];
        let mut up = self.parent_of(inner)?;
        while line.last() != Some(&up) {
            line.push(up);
            up = self.parent_of(&*self.node(up)?)?;
        }
        Ok(line)
    }

    /// The directory `outer` is about to get a name in `inner`. Where that lies below it,
    /// what leads from one to the other is lent.
    pub(super) fn make_way(&self, inner: &Node, outer: &Arc<Node>) -> io::Result<()> {
        if outer.file() == FileId::ROOT || outer.file() == inner.file() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("{} would come to lie below itself", outer.file()),
            ));
        }
        let line = self.line(inner)?;
        let Some(at) = line.iter().position(|file| *file == outer.file()) else {
            return Ok(());
        };
        let lent = self.node(line[at - 1])?;
        let Some(name) = self.name_of(outer.clone(), lent.file())? else {
            return Err(io::Error::from_raw_os_error(libc::ESTALE));
        };
        self.move_aside(outer, &name, &lent)?;
        self.lent.lock().insert(lent.file(), (outer.file(), name));
        Ok(())
    }

    /// Whether what has this name is lent.
    pub(super) fn is_lent(&self, parent: FileId, name: &Name) -> bool {
        let lent = self.lent.lock();
        lent.values().any(|(p, n)| *p == parent && n == name)
    }

    /// The names of a directory for which `told` is true are told of: what is lent has them
    /// no more.
    pub(super) fn told_of(&self, parent: FileId, told: impl Fn(&Name) -> bool) {
        let mut lent = self.lent.lock();
        lent.retain(|_, (p, name)| *p != parent || !told(name));
    }

    /// Puts back what is lent and can lie in its place again.
    pub(super) fn put_back(&self) -> io::Result<()> {
        let mut lent = self.lent.lock();
        let mut left = Vec::new();
        for (file, (parent, name)) in std::mem::take(&mut *lent) {
            let Some(into) = self.object(parent)? else {
                continue;
            };
            if self.line(&into)?.contains(&file) {
                left.push((file, (parent, name)));
                continue;
            }
            let moved = rustix::fs::renameat_with(
                &self.aside,
                aside_name(file).as_c_str(),
                into.path(),
                c_name(&name).as_c_str(),
                RenameFlags::NOREPLACE,
            );
            moved.or_else(|e| match e {
                // It, or its place, was needed otherwise.
                rustix::io::Errno::NOENT | rustix::io::Errno::EXIST => Ok(()),
                e => Err(e),
            })?;
        }
        lent.extend(left);
        Ok(())
    }

    /// Everything is moved. What is still lent would lie below itself, and nothing may be
    /// removed: what has been listed is no tree.
    pub(super) fn all_in_place(&self) -> io::Result<()> {
        self.put_back()?;
        match self.lent.lock().keys().next() {
            None => Ok(()),
            Some(file) => Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("by what was listed, {file} lies below itself"),
            )),
        }
    }

    /// A new resync begins: it is told of everything that was lent in an earlier one.
    pub fn forget_lent(&self) {
        self.lent.lock().clear();
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use twinfold_protocol::op::{Listing, Object, PutEntry, RenameMode};

    use super::super::apply::tests::{create, name};
    use super::super::scratch::scratch as store;
    use super::*;

    fn rename(file: FileId, from: (FileId, &str), to: (FileId, &str)) -> Op {
        Op::Rename {
            parent: from.0,
            name: name(from.1),
            file,
            new_parent: to.0,
            new_name: name(to.1),
            replaced: None,
            mode: RenameMode::Replace,
        }
    }

    fn listing(directory: FileId, at: &str, file: Option<FileId>) -> Op {
        let object = file.map(|file| Object {
            file,
            kind: Kind::Directory,
            target: Bytes::new(),
            mode: 0o700,
            uid: 0,
            gid: 0,
            size: 0,
            accessed: Default::default(),
            modified: Default::default(),
        });
        Op::PutDirectory {
            directory,
            listing: Listing::Names,
            entries: vec![PutEntry {
                name: name(at),
                object,
            }],
        }
    }

    /// `outer/between/inner`, as (outer, between, inner).
    fn nested(store: &Store) -> (FileId, FileId, FileId) {
        let root = store.node(FileId::ROOT).unwrap();
        super::super::xattrs::set_id(root.path(), FileId::ROOT).unwrap();
        let outer = create(store, 1, "outer", Kind::Directory);
        let between = create(store, 2, "between", Kind::Directory);
        let inner = create(store, 3, "inner", Kind::Directory);
        for op in [
            rename(between, (FileId::ROOT, "between"), (outer, "between")),
            rename(inner, (FileId::ROOT, "inner"), (between, "inner")),
        ] {
            store.apply(&op, false).unwrap();
        }
        (outer, between, inner)
    }

    /// At the source this is now `inner/outer/between`. That `between` is in `outer` is so on
    /// both, and nobody says it.
    #[test]
    fn directories_change_places_around_one_that_stays_where_it_is() {
        let (directory, store) = store();
        let (outer, between, inner) = nested(&store);
        let first = listing(inner, "outer", Some(outer));
        assert_eq!(store.in_the_way(&first).unwrap(), [FileId::ROOT, outer]);
        for op in [
            first,
            listing(FileId::ROOT, "outer", None),
            listing(FileId::ROOT, "inner", Some(inner)),
            listing(between, "inner", None),
            Op::ResyncEnd,
        ] {
            store.put(&op).unwrap();
        }
        assert!(directory.path().join("data/inner/outer/between").is_dir());
        assert_eq!(store.clear_aside(&Default::default()).unwrap(), 0);
    }

    #[test]
    fn what_made_way_stays_away_when_its_name_is_told_of() {
        let (directory, store) = store();
        let (outer, between, inner) = nested(&store);
        for op in [
            listing(inner, "outer", Some(outer)),
            listing(outer, "between", None),
            listing(FileId::ROOT, "elsewhere", Some(between)),
            listing(between, "inner", None),
            listing(FileId::ROOT, "inner", Some(inner)),
            Op::ResyncEnd,
        ] {
            store.put(&op).unwrap();
        }
        assert!(directory.path().join("data/inner/outer").is_dir());
        assert!(directory.path().join("data/elsewhere").is_dir());
        assert!(!directory.path().join("data/inner/outer/between").exists());
        assert_eq!(store.clear_aside(&Default::default()).unwrap(), 0);
    }

    #[test]
    fn a_listing_that_is_no_tree_ends_in_an_error_and_removes_nothing() {
        let (directory, store) = store();
        let (outer, between, inner) = nested(&store);
        std::fs::write(directory.path().join("data/outer/between/inner/leaf"), "x").unwrap();
        store.put(&listing(inner, "outer", Some(outer))).unwrap();
        let refused = store.put(&Op::ResyncEnd).unwrap_err();
        assert!(refused.to_string().contains("below itself"), "{refused}");
        // The next one tells of all that was noted or marked.
        store.forget_lent();
        for op in [
            listing(inner, "outer", None),
            listing(FileId::ROOT, "outer", Some(outer)),
            listing(outer, "between", Some(between)),
            Op::ResyncEnd,
        ] {
            store.put(&op).unwrap();
        }
        let leaf = directory.path().join("data/outer/between/inner/leaf");
        assert_eq!(std::fs::read(leaf).unwrap(), b"x");
        assert_eq!(store.clear_aside(&Default::default()).unwrap(), 0);
    }

    #[test]
    fn what_is_out_of_its_place_is_not_changed_by_its_name() {
        let (directory, store) = store();
        let (outer, between, inner) = nested(&store);
        let (there, free) = ((outer, "between"), (FileId::ROOT, "free"));
        store.put(&listing(inner, "outer", Some(outer))).unwrap();
        let early = rename(between, there, free);
        assert!(store.apply(&early, true).is_err());
        store.put(&listing(between, "inner", None)).unwrap();
        store.apply(&early, true).unwrap();
        assert!(directory.path().join("data/free").is_dir());
    }
}
