//! Verify: comparing the two copies while the application writes, believing no map.
//!
//! Each thing is looked at up to twice. The first look has no order: both nodes hash
//! what they have at some moment, so that a difference is only a suspicion. The second
//! look has one: the primary reads its own under the lock over what the question names
//! and puts the question into the op stream at that place ([`crate::op::Op::Verify`]); the
//! secondary answers with what it has at exactly that point. So what differs there
//! does differ, whatever is being written, and what does not is forgotten.
//!
//! Nothing here reads or hashes: the driver brings what a node has as [`Found`].

use bytes::Bytes;

use crate::attr::Kind;
pub use crate::compare::HASH;
use crate::ids::FileId;
use crate::limits;
use crate::marks::DirtyMap;
use crate::op::Name;
use crate::time::Timestamp;

/// A hash: BLAKE3, cut to 128 bits; zeros for nothing but zeros.
pub type Hash = [u8; HASH];

/// What is compared.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Question {
    /// Bytes of a file; beyond its end there are zeros.
    Data {
        /// Which file.
        file: FileId,
        /// From which byte on, a multiple of [`limits::BLOCK`].
        offset: u64,
        /// How many bytes.
        length: u64,
    },
    /// Everything about an object but its data and names.
    Object {
        /// Which object.
        file: FileId,
    },
    /// All names of a directory with what they lead to, as one digest (first look only).
    Listing {
        /// Which directory.
        directory: FileId,
    },
    /// What one name leads to.
    Name {
        /// In which directory.
        directory: FileId,
        /// Which name.
        name: Name,
    },
}

/// What a name leads to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Lead {
    /// There is no such name.
    Nothing,
    /// An object of the store.
    Object(FileId),
    /// Something that is no object of the store: it came there behind the mount.
    Foreign,
}

/// Everything about an object that is equal on both nodes, except its data and names.
/// Times of access and of attribute changes are each node's own.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Facts {
    /// What it is.
    pub kind: Kind,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Size of a regular file in bytes; 0 for everything else.
    pub size: u64,
    /// Last change of the data.
    pub modified: Timestamp,
    /// Hash of a symbolic link's target.
    pub target: Hash,
    /// Its extended attributes, ordered by name, and a hash of each value.
    pub xattrs: Vec<(Bytes, Hash)>,
}

/// What a node has of what a question names, at the second look.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Found {
    /// There is no such object.
    Missing,
    /// The hash of each block, [`HASH`] bytes each.
    Blocks(Bytes),
    /// The object.
    Object(Facts),
    /// What the name leads to.
    Name(Lead),
    /// It cannot be read, and what the operating system said.
    Failed(String),
}

/// The same at the first look.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Digest {
    /// There is no such object.
    Missing,
    /// Equal on both nodes if what it stands for is.
    Is(Hash),
    /// It cannot be read, and what the operating system said.
    Failed(String),
}

/// In what the two copies differ. `mine` is the primary's.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Difference {
    /// The secondary has no such object.
    Missing,
    /// These bytes.
    Data {
        /// From which byte on.
        offset: u64,
        /// How many; whole blocks.
        length: u64,
    },
    /// What it is.
    Kind {
        /// Here.
        mine: Kind,
        /// There.
        theirs: Kind,
    },
    /// Where a symbolic link points to.
    Target,
    /// A number: `mode`, `uid`, `gid` or `size`.
    Number {
        /// Which.
        what: &'static str,
        /// Here.
        mine: u64,
        /// There.
        theirs: u64,
    },
    /// When the data was last changed.
    Modified {
        /// Here.
        mine: Timestamp,
        /// There.
        theirs: Timestamp,
    },
    /// An extended attribute: there is none on one side, or its value differs.
    Xattr {
        /// The attribute's name.
        name: Bytes,
    },
    /// What a name leads to.
    Name {
        /// Here.
        mine: Lead,
        /// There.
        theirs: Lead,
    },
}

/// In what `theirs` differs from `mine`; `None` when it does not answer the question.
/// Without `times` the time of the last change is left out: it is not shipped yet.
pub fn differences(
    question: &Question,
    mine: &Found,
    theirs: &Found,
    times: bool,
) -> Option<Vec<Difference>> {
    match (question, mine, theirs) {
        (Question::Data { .. } | Question::Object { .. }, _, Found::Missing) => {
            Some(vec![Difference::Missing])
        }
        (Question::Data { offset, length, .. }, Found::Blocks(mine), Found::Blocks(theirs)) => {
            let whole = length.div_ceil(limits::BLOCK) as usize * HASH;
            (mine.len() == whole && theirs.len() == whole)
                .then(|| block_runs(*offset, *length, mine, theirs))
        }
        (Question::Object { .. }, Found::Object(mine), Found::Object(theirs)) => {
            Some(facts_differ(mine, theirs, times))
        }
        (Question::Name { .. }, Found::Name(mine), Found::Name(theirs)) => {
            let (mine, theirs) = (*mine, *theirs);
            Some(match mine == theirs {
                true => Vec::new(),
                false => vec![Difference::Name { mine, theirs }],
            })
        }
        _ => None,
    }
}

fn block_runs(offset: u64, length: u64, mine: &[u8], theirs: &[u8]) -> Vec<Difference> {
    let mut runs: Vec<(u64, u64)> = Vec::new();
    let hashes = mine.chunks_exact(HASH).zip(theirs.chunks_exact(HASH));
    for (n, (mine, theirs)) in hashes.enumerate() {
        if mine == theirs {
            continue;
        }
        let at = offset + n as u64 * limits::BLOCK;
        let size = limits::BLOCK.min(offset + length - at);
        match runs.last_mut() {
            Some((from, run)) if *from + *run == at => *run += size,
            _ => runs.push((at, size)),
        }
    }
    let data = |(offset, length)| Difference::Data { offset, length };
    runs.into_iter().map(data).collect()
}

fn facts_differ(mine: &Facts, theirs: &Facts, times: bool) -> Vec<Difference> {
    let mut found = Vec::new();
    if mine.kind != theirs.kind {
        let (mine, theirs) = (mine.kind, theirs.kind);
        // Nothing else can be compared.
        return vec![Difference::Kind { mine, theirs }];
    }
    if mine.target != theirs.target {
        found.push(Difference::Target);
    }
    for (what, mine, theirs) in [
        ("mode", mine.mode.into(), theirs.mode.into()),
        ("uid", mine.uid.into(), theirs.uid.into()),
        ("gid", mine.gid.into(), theirs.gid.into()),
        ("size", mine.size, theirs.size),
    ] {
        if mine != theirs {
            found.push(Difference::Number { what, mine, theirs });
        }
    }
    if times && mine.modified != theirs.modified {
        let (mine, theirs) = (mine.modified, theirs.modified);
        found.push(Difference::Modified { mine, theirs });
    }
    let one_sided = |a: &Facts, b: &Facts| -> Vec<Bytes> {
        let other = |x: &&(Bytes, Hash)| !b.xattrs.contains(x);
        let names = a.xattrs.iter().filter(other);
        names.map(|(name, _)| name.clone()).collect()
    };
    let mut names = one_sided(mine, theirs);
    names.extend(one_sided(theirs, mine));
    names.sort();
    names.dedup();
    found.extend(names.into_iter().map(|name| Difference::Xattr { name }));
    found
}

/// Marks what differs, so that a resync moves it and nothing else. `mine` is what the
/// primary has.
pub fn mark(map: &mut DirtyMap, question: &Question, mine: &Found, found: &[Difference]) {
    for difference in found {
        match (question, difference) {
            (
                Question::Data { file, .. } | Question::Object { file },
                Difference::Missing | Difference::Kind { .. } | Difference::Target,
            ) => {
                map.mark_unknown(*file);
                let is_directory = matches!(mine, Found::Object(facts)
                    if facts.kind == Kind::Directory);
                if is_directory {
                    map.mark_directory(*file);
                }
            }
            (Question::Data { file, .. }, Difference::Data { offset, length }) => {
                map.mark_data(*file, *offset, *length);
            }
            (
                Question::Object { file },
                Difference::Number {
                    what: "size",
                    mine,
                    theirs,
                },
            ) => {
                map.mark_attributes(*file);
                let from = mine.min(theirs) / limits::BLOCK * limits::BLOCK;
                map.mark_data(*file, from, mine.max(theirs) - from);
            }
            (Question::Object { file }, _) => map.mark_attributes(*file),
            (Question::Name { directory, name }, _) => {
                map.mark_name(*directory, name);
                map.mark_attributes(*directory);
            }
            _ => {}
        }
    }
}

/// Marks all that a question names: what a node keeps that was told no more than that
/// the answer was wrong ([`crate::op::Op::Differs`]).
pub fn mark_question(map: &mut DirtyMap, question: &Question) {
    match question {
        Question::Data {
            file,
            offset,
            length,
        } => map.mark_data(*file, *offset, *length),
        Question::Object { file } => map.mark_attributes(*file),
        Question::Listing { directory } => map.mark_directory(*directory),
        Question::Name { directory, name } => map.mark_name(*directory, name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::marks::Names;

    const F: FileId = FileId(100);

    fn data(length: u64) -> Question {
        Question::Data {
            file: F,
            offset: 8192,
            length,
        }
    }

    fn blocks(values: &[u8]) -> Found {
        let hashes: Vec<u8> = values.iter().flat_map(|v| [*v; HASH]).collect();
        Found::Blocks(hashes.into())
    }

    fn facts() -> Facts {
        Facts {
            kind: Kind::Regular,
            mode: 0o644,
            uid: 1,
            gid: 2,
            size: 5000,
            modified: Timestamp { secs: 7, nanos: 8 },
            target: [0; HASH],
            xattrs: vec![
                (Bytes::from_static(b"user.a"), [1; HASH]),
                (Bytes::from_static(b"user.b"), [2; HASH]),
            ],
        }
    }

    fn of_object(mine: Facts, theirs: Facts, times: bool) -> Vec<Difference> {
        let question = Question::Object { file: F };
        let (mine, theirs) = (Found::Object(mine), Found::Object(theirs));
        differences(&question, &mine, &theirs, times).unwrap()
    }

    #[test]
    fn neighbouring_blocks_are_one_difference_and_the_last_is_cut() {
        let (mine, theirs) = (blocks(&[1, 2, 3, 4, 5]), blocks(&[1, 9, 9, 4, 9]));
        let found = differences(&data(4 * 4096 + 10), &mine, &theirs, true).unwrap();
        let run = |offset, length| Difference::Data { offset, length };
        assert_eq!(found, [run(8192 + 4096, 8192), run(8192 + 4 * 4096, 10)]);
        let mut map = DirtyMap::default();
        mark(&mut map, &data(4 * 4096 + 10), &mine, &found);
        assert_eq!(map.block_bytes(), 3 * 4096);
    }

    #[test]
    fn an_answer_must_fit_its_question() {
        let mine = blocks(&[1]);
        for theirs in [
            blocks(&[1, 2]),
            blocks(&[]),
            Found::Name(Lead::Nothing),
            Found::Object(facts()),
        ] {
            assert_eq!(differences(&data(4096), &mine, &theirs, true), None);
        }
    }

    #[test]
    fn every_fact_is_compared_and_times_only_when_they_are_shipped() {
        assert_eq!(of_object(facts(), facts(), true), []);
        let changes: [fn(&mut Facts); 6] = [
            |f| f.mode = 0o600,
            |f| f.uid = 9,
            |f| f.gid = 9,
            |f| f.size = 9,
            |f| f.target = [9; HASH],
            |f| f.kind = Kind::Fifo,
        ];
        for change in changes {
            let mut theirs = facts();
            change(&mut theirs);
            let found = of_object(facts(), theirs, false);
            assert_eq!(found.len(), 1, "{found:?}");
        }
        let mut theirs = facts();
        theirs.modified.nanos += 1;
        assert_eq!(of_object(facts(), theirs.clone(), false), []);
        assert_eq!(of_object(facts(), theirs, true).len(), 1);
    }

    #[test]
    fn an_attribute_that_is_missing_on_either_side_or_differs_is_named_once() {
        let mut theirs = facts();
        theirs.xattrs[0].1 = [9; HASH];
        theirs.xattrs[1].0 = Bytes::from_static(b"user.c");
        let found = of_object(facts(), theirs, true);
        let names: Vec<_> = found
            .iter()
            .map(|d| match d {
                Difference::Xattr { name } => name.as_ref(),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(names, [b"user.a", b"user.b", b"user.c"]);
    }

    #[test]
    fn marks_name_what_differs_and_no_more() {
        let question = Question::Object { file: F };
        let mut longer = facts();
        longer.size = 9000;
        let found = of_object(facts(), longer, true);
        let mut map = DirtyMap::default();
        mark(&mut map, &question, &Found::Object(facts()), &found);
        let marks = map.object(F).unwrap();
        assert!(marks.attributes && !marks.unknown);
        assert_eq!(map.block_bytes(), 2 * 4096, "from the shorter end on");

        let mut directory = facts();
        directory.kind = Kind::Directory;
        let mine = Found::Object(directory);
        let found = differences(&question, &mine, &Found::Missing, true).unwrap();
        let mut map = DirtyMap::default();
        mark(&mut map, &question, &mine, &found);
        assert!(map.object(F).unwrap().unknown);
        assert_eq!(map.names(F), Some(&Names::All));
    }

    #[test]
    fn what_a_secondary_keeps_of_it_covers_the_question() {
        let mut map = DirtyMap::default();
        mark_question(&mut map, &data(4096));
        mark_question(&mut map, &Question::Object { file: FileId(7) });
        let name = Name::new(b"x").unwrap();
        let directory = FileId::ROOT;
        mark_question(&mut map, &Question::Name { directory, name });
        assert_eq!(map.object(F).unwrap().blocks.spans(0), [(8192, 4096)]);
        assert!(map.object(FileId(7)).unwrap().attributes);
        assert!(matches!(map.names(directory), Some(Names::Some(set)) if set.len() == 1));
    }
}
