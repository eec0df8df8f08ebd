//! What a writer's directory really holds, and whether that is what it must hold.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::NOTE;
use super::model::{Contents, Entry, Model, Op, note};
use crate::compare;

/// A directory as it was read; files by inode number.
#[derive(Debug, Default)]
pub(super) struct Found {
    entries: BTreeMap<String, Entry>,
    files: BTreeMap<u64, (Contents, Vec<u8>)>,
}

impl Found {
    /// Reads everything below a writer's directory.
    pub(super) fn read(root: &Path) -> io::Result<Found> {
        let mut found = Found::default();
        let mut waiting = vec![String::new()];
        while let Some(directory) = waiting.pop() {
            // Looking at both stores must not make their access times differ.
            for name in compare::names(&root.join(&directory))? {
                let name = name.to_string_lossy().into_owned();
                let path = match directory.is_empty() {
                    true => name,
                    false => format!("{directory}/{name}"),
                };
                let full = root.join(&path);
                let meta = std::fs::symlink_metadata(&full)?;
                let is = if meta.is_dir() {
                    waiting.push(path.clone());
                    Entry::Directory(meta.mode() & 0o7777)
                } else if meta.is_symlink() {
                    let target = std::fs::read_link(&full)?;
                    Entry::Symlink(target.to_string_lossy().into_owned())
                } else {
                    let contents = Contents {
                        data: compare::read_quietly(&full)?,
                        mode: meta.mode() & 0o7777,
                        note: None,
                    };
                    let note = compare::xattrs(&full)?.remove(NOTE.as_bytes());
                    let note = note.unwrap_or_default();
                    found.files.insert(meta.ino(), (contents, note));
                    Entry::File(meta.ino())
                };
                found.entries.insert(path, is);
            }
        }
        Ok(found)
    }

    fn data(&self, path: &str) -> Option<&[u8]> {
        match self.entries.get(path) {
            Some(Entry::File(inode)) => self.files.get(inode).map(|(c, _)| c.data.as_slice()),
            _ => None,
        }
    }
}

/// In what it differs from the model.
fn differences(model: &Model, found: &Found) -> Vec<String> {
    let mut all = Vec::new();
    // Names of one file there are names of one file here.
    let mut same: BTreeMap<u64, u64> = BTreeMap::new();
    for (path, wanted) in &model.entries {
        let Some(is) = found.entries.get(path) else {
            all.push(format!("{path} is missing"));
            continue;
        };
        let (Entry::File(id), Entry::File(inode)) = (wanted, is) else {
            if wanted != is {
                all.push(format!("{path} must be {wanted:?}, but is {is:?}"));
            }
            continue;
        };
        if *same.entry(*id).or_insert(*inode) != *inode {
            all.push(format!(
                "{path} is no longer the same file as its other name"
            ));
        }
        let (wanted, (is, attribute)) = (&model.files[id], &found.files[inode]);
        if wanted.data != is.data || wanted.mode != is.mode {
            let at = wanted.data.iter().zip(&is.data).position(|(a, b)| a != b);
            all.push(format!(
                "{path} must have {wanted:?}, but has {is:?}, from byte {at:?} on"
            ));
        }
        if wanted.note.map(note).unwrap_or_default() != *attribute {
            let is = String::from_utf8_lossy(attribute);
            all.push(format!(
                "{path} must have note {:?}, not {is:?}",
                wanted.note
            ));
        }
    }
    for path in found.entries.keys() {
        if !model.entries.contains_key(path) {
            all.push(format!("{path} must not be there"));
        }
    }
    if all.is_empty() && found.files.len() != model.files.len() {
        all.push("names of different files are names of one file".into());
    }
    all
}

/// Takes into the model what is found, if it may be so: all that was acknowledged, and
/// the operation that was not answered whole, in part (a write), or not at all.
pub(super) fn judge(
    model: &mut Model,
    open: &mut Option<Op>,
    writer: u64,
    found: &Found,
) -> Vec<String> {
    let wrong = differences(model, found);
    let Some(op) = open.take() else {
        return wrong;
    };
    if wrong.is_empty() {
        return wrong;
    }
    let mut done = model.clone();
    done.apply(writer, &op);
    let path = match &op {
        Op::Write { path, .. } | Op::Append { path, .. } => path.as_str(),
        _ => "",
    };
    let torn = found
        .data(path)
        .and_then(|data| model.torn(writer, &op, data));
    for possible in [Some(done), torn].into_iter().flatten() {
        if differences(&possible, found).is_empty() {
            *model = possible;
            return Vec::new();
        }
    }
    let note = format!("({op:?} was not answered)");
    wrong.into_iter().chain([note]).collect()
}
