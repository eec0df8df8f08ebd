//! Directories that change places in a resync: a tree cannot hold both names at once, so
//! what leads from the one to the other makes way.

use twinfold_protocol::attr::Kind;
use twinfold_protocol::ids::FileId;
use twinfold_protocol::op::{Name, Op, RenameMode};

use crate::fs::{Body, Fs};

impl Fs {
    /// Where a directory has its name.
    pub(crate) fn place_of(&self, directory: FileId) -> Option<(FileId, Name)> {
        self.items.iter().find_map(|(id, item)| match &item.body {
            Body::Directory(names) => {
                let name = names.iter().find(|(_, f)| **f == directory)?.0;
                Some((*id, name.clone()))
            }
            Body::File { .. } => None,
        })
    }

    /// The line of directories from `inner` up to, and without, `outer`, if that is one.
    fn line(&self, inner: FileId, outer: FileId) -> Option<(FileId, Name)> {
        let mut at = inner;
        loop {
            let (up, name) = self.place_of(at)?;
            if up == outer {
                return Some((at, name));
            }
            at = up;
        }
    }

    /// The directories out of which an op of a resync takes a name that it does not tell of:
    /// where a directory lay that gets another place, and what makes way for it.
    pub(crate) fn in_the_way(&self, op: &Op) -> Vec<FileId> {
        let Op::PutDirectory {
            directory, entries, ..
        } = op
        else {
            return Vec::new();
        };
        let objects = entries.iter().filter_map(|e| e.object.as_ref());
        let mut found = Vec::new();
        for outer in objects.filter(|o| o.kind == Kind::Directory) {
            let holder = self.place_of(outer.file).map(|(holder, _)| holder);
            found.extend(holder.filter(|holder| holder != directory));
            let below = self.line(*directory, outer.file).is_some();
            found.extend(below.then_some(outer.file));
        }
        found
    }

    /// Whether an op of the live stream has to wait for names that are to be told of: it
    /// changes one that is out of its place for now, or would put a directory below itself.
    pub(crate) fn waits(&self, op: &Op) -> bool {
        let lent = |parent: &FileId, name: &Name| {
            let mut all = self.lent.values();
            all.any(|(p, n)| p == parent && n == name)
        };
        match op {
            Op::Unlink { parent, name, .. } | Op::RemoveDirectory { parent, name, .. } => {
                lent(parent, name)
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
                let back = replaced.filter(|_| *mode == RenameMode::Exchange);
                lent(parent, name)
                    || lent(new_parent, new_name)
                    || self.is_below(*new_parent, *file)
                    || back.is_some_and(|other| self.is_below(*parent, other))
            }
            _ => false,
        }
    }

    /// A directory is about to get a name in one that may lie below it.
    pub(crate) fn make_way(&mut self, inner: FileId, outer: FileId) {
        if let Some((child, name)) = self.line(inner, outer)
            && self.move_aside(outer, &name).is_ok()
        {
            self.lent.insert(child, (outer, name));
        }
    }

    pub(crate) fn told_of(&mut self, parent: FileId, told: impl Fn(&Name) -> bool) {
        self.lent.retain(|_, (p, name)| *p != parent || !told(name));
    }

    pub(crate) fn put_back(&mut self) {
        for (file, (parent, name)) in std::mem::take(&mut self.lent) {
            if self.is_below(parent, file) {
                self.lent.insert(file, (parent, name));
            } else if let Ok(names) = self.names_mut(parent)
                && !names.contains_key(&name)
            {
                names.insert(name, file);
                self.aside.remove(&file);
            }
        }
    }

    /// Everything is moved: nothing is out of its place any more.
    pub(crate) fn all_in_place(&mut self) -> Result<(), String> {
        self.put_back();
        match self.lent.is_empty() {
            true => Ok(()),
            false => Err(format!("{:?} would lie below themselves", self.lent)),
        }
    }

    /// Nobody puts back what made way.
    pub(crate) fn forget_lent(&mut self) {
        self.lent.clear();
    }
}
