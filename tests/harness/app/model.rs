//! What one writer's directory must hold: a plain file system in memory, and the one
//! operation that may have happened or not.

use std::collections::BTreeMap;
use std::fmt;

use crate::dice::Dice;

/// Files of a writer, and directories beside the one it is given.
const FILES: u64 = 24;
const DIRECTORIES: u64 = 4;

/// Bytes of the largest small file, and of the one that stands for a virtual disk.
const SMALL: u64 = 192 << 10;
const DISK: u64 = 1 << 20;

/// Bytes of a block of the virtual disk.
pub(super) const BLOCK: u64 = 4096;

/// The virtual disk's name.
pub(super) const DISK_NAME: &str = "disk";

/// One call, or a few that belong together, that a program makes in its directory.
/// Paths are below it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Op {
    Create(String),
    /// Bytes that `number` tells, at `offset`.
    Write {
        path: String,
        offset: u64,
        length: u64,
        number: u64,
        direct: bool,
    },
    Append {
        path: String,
        length: u64,
        number: u64,
    },
    Truncate {
        path: String,
        size: u64,
    },
    /// A hole, the size stays.
    Punch {
        path: String,
        offset: u64,
        length: u64,
    },
    Rename {
        from: String,
        to: String,
    },
    Link {
        from: String,
        to: String,
    },
    Symlink {
        path: String,
        target: String,
    },
    Unlink(String),
    Mkdir(String),
    Rmdir(String),
    Chmod {
        path: String,
        mode: u32,
    },
    /// An extended attribute with this number.
    Note {
        path: String,
        number: u64,
    },
    Sync(String),
    /// What is read must be what was acknowledged.
    Read(String),
}

impl Op {
    /// Whether it brings data.
    pub(super) fn is_write(&self) -> bool {
        matches!(self, Op::Write { .. } | Op::Append { .. })
    }
}

/// A name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Entry {
    Directory(u32),
    Symlink(String),
    /// A file, by a number that all its names share.
    File(u64),
}

/// What is in a file.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Contents {
    pub(super) data: Vec<u8>,
    pub(super) mode: u32,
    pub(super) note: Option<u64>,
}

impl fmt::Debug for Contents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hash = blake3::hash(&self.data);
        let (mode, note) = (self.mode, self.note);
        write!(
            f,
            "{} bytes ({:.8}), mode {mode:o}, note {note:?}",
            self.data.len(),
            hash.to_hex()
        )
    }
}

/// A directory and all below it.
#[derive(Clone, Default, Debug)]
pub(super) struct Model {
    pub(super) entries: BTreeMap<String, Entry>,
    pub(super) files: BTreeMap<u64, Contents>,
    next: u64,
}

/// The bytes with this number that a writer writes.
pub(super) fn bytes(writer: u64, number: u64, length: u64) -> Vec<u8> {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&writer.to_le_bytes());
    hasher.update(&number.to_le_bytes());
    let mut all = vec![0; length as usize];
    hasher.finalize_xof().fill(&mut all);
    all
}

/// A note's bytes.
pub(super) fn note(number: u64) -> Vec<u8> {
    format!("note {number}").into_bytes()
}

impl Model {
    /// What is in a file.
    pub(super) fn file(&self, path: &str) -> Option<&Contents> {
        match self.entries.get(path) {
            Some(Entry::File(id)) => self.files.get(id),
            _ => None,
        }
    }

    fn file_mut(&mut self, path: &str) -> Option<&mut Contents> {
        match self.entries.get(path) {
            Some(Entry::File(id)) => self.files.get_mut(id),
            _ => None,
        }
    }

    fn below<'a>(&'a self, directory: &str) -> impl Iterator<Item = &'a String> {
        let prefix = format!("{directory}/");
        self.entries
            .keys()
            .filter(move |path| path.starts_with(&prefix))
    }

    /// The operation has happened.
    pub(super) fn apply(&mut self, writer: u64, op: &Op) {
        match op {
            Op::Create(path) => {
                self.next += 1;
                let empty = Contents {
                    data: Vec::new(),
                    mode: 0o644,
                    note: None,
                };
                self.files.insert(self.next, empty);
                self.entries.insert(path.clone(), Entry::File(self.next));
            }
            Op::Write {
                path,
                offset,
                length,
                number,
                ..
            } => self.write(path, *offset, &bytes(writer, *number, *length)),
            Op::Append {
                path,
                length,
                number,
            } => {
                let end = self.file(path).map_or(0, |f| f.data.len() as u64);
                self.write(path, end, &bytes(writer, *number, *length));
            }
            Op::Truncate { path, size } => {
                if let Some(file) = self.file_mut(path) {
                    file.data.resize(*size as usize, 0);
                }
            }
            Op::Punch {
                path,
                offset,
                length,
            } => {
                if let Some(file) = self.file_mut(path) {
                    let end = file.data.len().min((offset + length) as usize);
                    let start = end.min(*offset as usize);
                    file.data[start..end].fill(0);
                }
            }
            Op::Rename { from, to } => {
                let moved = [from.clone()].into_iter().chain(self.below(from).cloned());
                for old in moved.collect::<Vec<_>>() {
                    if let Some(entry) = self.entries.remove(&old) {
                        let new = format!("{to}{}", &old[from.len()..]);
                        self.entries.insert(new, entry);
                    }
                }
                self.forget_nameless();
            }
            Op::Link { from, to } => {
                if let Some(entry) = self.entries.get(from).cloned() {
                    self.entries.insert(to.clone(), entry);
                }
            }
            Op::Symlink { path, target } => {
                let entry = Entry::Symlink(target.clone());
                self.entries.insert(path.clone(), entry);
            }
            Op::Unlink(path) | Op::Rmdir(path) => {
                self.entries.remove(path);
                self.forget_nameless();
            }
            Op::Mkdir(path) => {
                self.entries.insert(path.clone(), Entry::Directory(0o755));
            }
            Op::Chmod { path, mode } => {
                if let Some(Entry::Directory(now)) = self.entries.get_mut(path) {
                    *now = *mode;
                } else if let Some(file) = self.file_mut(path) {
                    file.mode = *mode;
                }
            }
            Op::Note { path, number } => {
                if let Some(file) = self.file_mut(path) {
                    file.note = Some(*number);
                }
            }
            Op::Sync(_) | Op::Read(_) => {}
        }
    }

    fn forget_nameless(&mut self) {
        let Model { entries, files, .. } = self;
        files.retain(|id, _| entries.values().any(|e| *e == Entry::File(*id)));
    }

    fn write(&mut self, path: &str, offset: u64, data: &[u8]) {
        if let Some(file) = self.file_mut(path)
            && !data.is_empty()
        {
            let (start, end) = (offset as usize, offset as usize + data.len());
            if file.data.len() < end {
                file.data.resize(end, 0);
            }
            file.data[start..end].copy_from_slice(data);
        }
    }

    /// What there is if only the beginning of a write has happened, as much of it as
    /// `found` shows: the kernel may cut a write into several.
    pub(super) fn torn(&self, writer: u64, op: &Op, found: &[u8]) -> Option<Model> {
        let (path, offset, data) = match op {
            Op::Write {
                path,
                offset,
                length,
                number,
                ..
            } => (path, *offset, bytes(writer, *number, *length)),
            Op::Append {
                path,
                length,
                number,
            } => {
                let end = self.file(path)?.data.len() as u64;
                (path, end, bytes(writer, *number, *length))
            }
            _ => return None,
        };
        let there = found.get(offset as usize..).unwrap_or_default();
        let same = data.iter().zip(there).take_while(|(a, b)| a == b).count();
        let mut torn = self.clone();
        torn.write(path, offset, &data[..same]);
        Some(torn)
    }

    /// What the writer does next.
    pub(super) fn draw(&self, dice: &mut Dice, number: u64) -> Op {
        if !self.entries.contains_key(DISK_NAME) {
            return Op::Create(DISK_NAME.into());
        }
        if self
            .file(DISK_NAME)
            .is_some_and(|f| f.data.len() as u64 != DISK)
        {
            let path = DISK_NAME.into();
            return Op::Truncate { path, size: DISK };
        }
        // What cannot be done as things are is drawn again; a write always can.
        loop {
            if let Some(op) = self.try_draw(dice, number) {
                return op;
            }
        }
    }

    fn try_draw(&self, dice: &mut Dice, number: u64) -> Option<Op> {
        let small = |(path, e): (&String, &Entry)| {
            (matches!(e, Entry::File(_)) && path != DISK_NAME).then(|| path.clone())
        };
        let files: Vec<_> = self.entries.iter().filter_map(small).collect();
        let directory =
            |(path, e): (&String, &Entry)| matches!(e, Entry::Directory(_)).then(|| path.clone());
        let directories: Vec<_> = self.entries.iter().filter_map(directory).collect();
        let one = |dice: &mut Dice| (!files.is_empty()).then(|| dice.pick(&files).clone());
        let free = |dice: &mut Dice| {
            let name = format!("f{}", dice.below(FILES));
            let at = dice.below(directories.len() as u64 + 1) as usize;
            let path = match directories.get(at) {
                Some(directory) => format!("{directory}/{name}"),
                None => name,
            };
            (!self.entries.contains_key(&path)).then_some(path)
        };
        let new_directory = |dice: &mut Dice| {
            let path = format!("d{}", dice.below(DIRECTORIES));
            (!self.entries.contains_key(&path)).then_some(path)
        };
        let room = |dice: &mut Dice| dice.below(SMALL - (16 << 10));
        Some(match dice.below(100) {
            0..20 => Op::Write {
                path: DISK_NAME.into(),
                offset: dice.below(DISK / BLOCK) * BLOCK,
                length: BLOCK,
                number,
                direct: true,
            },
            20..42 => Op::Write {
                path: one(dice)?,
                offset: room(dice),
                length: 1 + dice.below(16 << 10),
                number,
                direct: false,
            },
            42..52 => {
                let path = one(dice)?;
                let size = self.file(&path)?.data.len() as u64;
                let length = 1 + dice.below(8 << 10);
                (size + length < SMALL).then_some(Op::Append {
                    path,
                    length,
                    number,
                })?
            }
            52..56 => Op::Truncate {
                path: one(dice)?,
                size: room(dice),
            },
            56..58 => Op::Punch {
                path: one(dice)?,
                offset: room(dice),
                length: 1 + dice.below(16 << 10),
            },
            58..66 => (files.len() < FILES as usize).then(|| free(dice).map(Op::Create))??,
            66..72 => Op::Rename {
                from: one(dice)?,
                to: free(dice)?,
            },
            72..75 => {
                let (from, to) = (one(dice)?, one(dice)?);
                // Two names of one file: nothing would happen.
                (self.entries[&from] != self.entries[&to]).then_some(Op::Rename { from, to })?
            }
            75..77 => Op::Link {
                from: one(dice)?,
                to: free(dice)?,
            },
            77..78 => Op::Symlink {
                path: free(dice)?,
                target: format!("target-{number}"),
            },
            78..84 => {
                let (path, _) = self.entries.iter().find(|(_, e)| match e {
                    Entry::Directory(_) => false,
                    Entry::Symlink(_) => true,
                    Entry::File(_) => dice.percent(8),
                })?;
                (path != DISK_NAME).then(|| Op::Unlink(path.clone()))?
            }
            84..86 => Op::Mkdir(new_directory(dice)?),
            86..87 => {
                let path = directories
                    .iter()
                    .find(|d| self.below(d).next().is_none())?;
                Op::Rmdir(path.clone())
            }
            87..88 => Op::Rename {
                from: (!directories.is_empty()).then(|| dice.pick(&directories).clone())?,
                to: new_directory(dice)?,
            },
            88..90 => Op::Chmod {
                path: one(dice)?,
                mode: 0o600 + dice.below(0o100) as u32,
            },
            90..92 => Op::Note {
                path: one(dice)?,
                number,
            },
            92..94 => Op::Sync(DISK_NAME.into()),
            94..97 => Op::Sync(one(dice)?),
            _ => Op::Read(one(dice)?),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_moves_with_all_below_it_and_a_nameless_file_is_forgotten() {
        let mut model = Model::default();
        let paths = |model: &Model| model.entries.keys().cloned().collect::<Vec<_>>();
        for op in [
            Op::Mkdir("d".into()),
            Op::Create("d/f".into()),
            Op::Create("g".into()),
            Op::Rename {
                from: "d".into(),
                to: "e".into(),
            },
        ] {
            model.apply(1, &op);
        }
        assert_eq!(paths(&model), ["e", "e/f", "g"]);
        let onto = Op::Rename {
            from: "g".into(),
            to: "e/f".into(),
        };
        model.apply(1, &onto);
        assert_eq!(paths(&model), ["e", "e/f"]);
        assert_eq!(model.files.len(), 1);
    }

    #[test]
    fn of_a_torn_write_the_beginning_is_there() {
        let mut model = Model::default();
        model.apply(1, &Op::Create("f".into()));
        let append = |number| Op::Append {
            path: "f".into(),
            length: 10,
            number,
        };
        model.apply(1, &append(1));
        let mut found = model.file("f").unwrap().data.clone();
        found.extend(&bytes(1, 2, 10)[..4]);
        let torn = model.torn(1, &append(2), &found).unwrap();
        assert_eq!(torn.file("f").unwrap().data, found);
        found[12] ^= 1;
        let torn = model.torn(1, &append(2), &found).unwrap();
        assert_ne!(torn.file("f").unwrap().data, found);
    }

    #[test]
    fn every_kind_of_operation_is_drawn() {
        let (mut model, mut dice) = (Model::default(), Dice::new(1));
        let mut kinds = std::collections::BTreeSet::new();
        for number in 0..3000 {
            let op = model.draw(&mut dice, number);
            kinds.insert(
                format!("{op:?}")
                    .split(['(', ' '])
                    .next()
                    .unwrap()
                    .to_owned(),
            );
            model.apply(1, &op);
        }
        assert_eq!(kinds.len(), 15, "{kinds:?}");
    }
}
