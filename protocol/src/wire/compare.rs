//! Questions and answers of a comparison. Layout: `protocol/WIRE.md`, "Compare".

use bytes::Bytes;

use super::Frame;
use super::coder::{Reader, Violation, Writer, check};
use super::message::unknown;
use crate::attr::Kind;
use crate::compare::HASH;
use crate::ids::FileId;
use crate::limits;
use crate::op::{Name, Payload};

/// A name on the source, to be told by its path on a target that is a seed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MatchEntry {
    /// The name.
    pub name: Name,
    /// The object it leads to on the source.
    pub file: FileId,
    /// What that is.
    pub kind: Kind,
}

/// What the primary asks of the secondary before a resync.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum CompareRequest {
    /// Hashes of a file's blocks.
    Blocks {
        /// Which file.
        file: FileId,
        /// From which byte on, a multiple of [`limits::BLOCK`].
        offset: u64,
        /// How many blocks, at most [`limits::MAX_COMPARE_BLOCKS`].
        blocks: u32,
    },
    /// Whether it has these objects, at most [`limits::MAX_COMPARE_OBJECTS`].
    Objects {
        /// Which objects.
        files: Vec<FileId>,
    },
    /// Names of a directory, at most [`limits::MAX_PUT_ENTRIES`]: where the target has an
    /// object of the same kind under that name, and its id is none of the module's yet, it
    /// gives it this id. Answered as [`CompareRequest::Objects`]: whether the name now leads
    /// to that object.
    Match {
        /// Which directory.
        directory: FileId,
        /// Its names.
        entries: Vec<MatchEntry>,
    },
}

/// The secondary's answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum CompareAnswer {
    /// There is no such file here.
    Missing,
    /// The file's size and a hash for each block below it.
    Hashes {
        /// Size of the file, in bytes.
        size: u64,
        /// The hashes.
        hashes: Hashes,
    },
    /// For each object asked for, in the same order, whether it is here.
    Present {
        /// The answers.
        present: Vec<bool>,
    },
}

/// Hashes of blocks in a row, [`HASH`] bytes each. That of a block of zeros is zeros, and
/// takes one bit, so that a hole costs next to nothing.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Hashes {
    blocks: u32,
    /// A bit for each block, lowest first: whether it has a hash other than zeros.
    map: Vec<u8>,
    hashes: Vec<u8>,
}

impl From<Vec<u8>> for Hashes {
    /// Takes hashes in a row; what is left over at the end is none.
    fn from(flat: Vec<u8>) -> Hashes {
        let mut hashes = Hashes::default();
        let (flat, _) = flat.as_chunks::<HASH>();
        flat.iter().for_each(|hash| hashes.push(hash));
        hashes
    }
}

impl Hashes {
    /// How many blocks they are of.
    pub fn len(&self) -> usize {
        self.blocks as usize
    }

    /// Whether they are of no block.
    pub fn is_empty(&self) -> bool {
        self.blocks == 0
    }

    /// The next block's hash.
    pub fn push(&mut self, hash: &[u8; HASH]) {
        let at = self.blocks;
        self.push_zeros(1);
        if *hash != [0; HASH] {
            if let Some(last) = self.map.last_mut() {
                *last |= 1 << (at % 8);
            }
            self.hashes.extend_from_slice(hash);
        }
    }

    /// The next blocks are zeros, so many of them.
    pub fn push_zeros(&mut self, blocks: u32) {
        self.blocks += blocks;
        self.map.resize(self.blocks.div_ceil(8) as usize, 0);
    }

    /// The blocks of which `theirs` has another hash, or none.
    pub fn differing(&self, theirs: &Hashes) -> Vec<u32> {
        let mut found = Vec::new();
        let (mut mine, mut other) = (self.hashes(), theirs.hashes());
        for (i, map) in self.map.iter().enumerate() {
            let there = theirs.map.get(i).copied().unwrap_or_default();
            let first = i as u32 * 8;
            if *map == 0 && there == 0 && first + 8 <= theirs.blocks {
                continue;
            }
            for bit in 0..8 {
                let a = (map >> bit & 1 == 1).then(|| mine.next()).flatten();
                let b = (there >> bit & 1 == 1).then(|| other.next()).flatten();
                let block = first + bit;
                if block < self.blocks && (a != b || block >= theirs.blocks) {
                    found.push(block);
                }
            }
        }
        found
    }

    fn hashes(&self) -> impl Iterator<Item = &[u8; HASH]> {
        self.hashes.as_chunks::<HASH>().0.iter()
    }

    fn put(&self, w: &mut Writer) -> Payload {
        w.u32(self.blocks);
        self.map.iter().for_each(|byte| w.u8(*byte));
        Bytes::from(self.hashes.clone()).into()
    }

    fn get(r: &mut Reader) -> Result<Hashes, Violation> {
        let blocks = r.u32()?;
        check("hashes", blocks.into(), limits::MAX_COMPARE_BLOCKS as u64)?;
        let map = (0..blocks.div_ceil(8))
            .map(|_| r.u8())
            .collect::<Result<Vec<_>, _>>()?;
        let beyond = map.last().is_some_and(|last| {
            let used = blocks % 8;
            used != 0 && last >> used != 0
        });
        if beyond {
            return Err(Violation::Order(
                "there are hashes of more blocks than were said".into(),
            ));
        }
        let count: u32 = map.iter().map(|byte| byte.count_ones()).sum();
        let hashes = r.exactly(count as usize * HASH)?;
        if hashes.chunks_exact(HASH).any(|hash| hash == [0; HASH]) {
            return Err(Violation::Order(
                "a block of zeros has a hash of its own".into(),
            ));
        }
        Ok(Hashes {
            blocks,
            map,
            hashes: hashes.into(),
        })
    }
}

impl CompareRequest {
    /// Encodes the frame.
    pub fn encode(&self) -> Frame {
        let mut w;
        match self {
            CompareRequest::Blocks {
                file,
                offset,
                blocks,
            } => {
                w = Writer::new(96);
                w.file(*file);
                w.u64(*offset);
                w.u32(*blocks);
            }
            CompareRequest::Objects { files } => {
                w = Writer::new(99);
                w.u32(files.len() as u32);
                for file in files {
                    w.file(*file);
                }
            }
            CompareRequest::Match { directory, entries } => {
                w = Writer::new(101);
                w.file(*directory);
                w.u32(entries.len() as u32);
                for entry in entries {
                    w.name(&entry.name);
                    w.file(entry.file);
                    w.kind(entry.kind);
                }
            }
        }
        w.finish(Payload::default())
    }

    /// Decodes a frame.
    pub fn decode(frame: Payload) -> Result<CompareRequest, Violation> {
        let mut r = Reader::new(frame);
        let request = match r.u8()? {
            96 => {
                let file = r.file()?;
                let (offset, blocks) = (r.offset("offset")?, r.u32()?);
                check("blocks", blocks.into(), limits::MAX_COMPARE_BLOCKS as u64)?;
                if !offset.is_multiple_of(limits::BLOCK) {
                    return Err(Violation::Order(
                        "a compare request does not start at a block".into(),
                    ));
                }
                CompareRequest::Blocks {
                    file,
                    offset,
                    blocks,
                }
            }
            99 => {
                let count = r.count("objects", limits::MAX_COMPARE_OBJECTS)?;
                let files = (0..count).map(|_| r.file()).collect::<Result<_, _>>()?;
                CompareRequest::Objects { files }
            }
            101 => {
                let directory = r.file()?;
                let count = r.count("entries", limits::MAX_PUT_ENTRIES)?;
                let entries = (0..count)
                    .map(|_| {
                        Ok(MatchEntry {
                            name: r.name()?,
                            file: r.file()?,
                            kind: r.kind()?,
                        })
                    })
                    .collect::<Result<_, Violation>>()?;
                CompareRequest::Match { directory, entries }
            }
            v => return Err(unknown("compare request", v)),
        };
        r.end()?;
        Ok(request)
    }

    /// Whether a stream that begins with this kind byte carries compare requests.
    pub fn is_first(kind: u8) -> bool {
        matches!(kind, 96 | 99 | 101)
    }
}

impl CompareAnswer {
    /// Encodes the frame.
    pub fn encode(&self) -> Frame {
        match self {
            CompareAnswer::Missing => Writer::new(97).finish(Payload::default()),
            CompareAnswer::Hashes { size, hashes } => {
                let mut w = Writer::new(98);
                w.u64(*size);
                let rest = hashes.put(&mut w);
                w.finish(rest)
            }
            CompareAnswer::Present { present } => {
                let mut w = Writer::new(100);
                w.u32(present.len() as u32);
                present.iter().for_each(|here| w.u8((*here).into()));
                w.finish(Payload::default())
            }
        }
    }

    /// Decodes a frame.
    pub fn decode(frame: Payload) -> Result<CompareAnswer, Violation> {
        let mut r = Reader::new(frame);
        let answer = match r.u8()? {
            97 => CompareAnswer::Missing,
            98 => {
                let size = r.offset("size")?;
                let hashes = Hashes::get(&mut r)?;
                CompareAnswer::Hashes { size, hashes }
            }
            100 => {
                let count = r.count("objects", limits::MAX_COMPARE_OBJECTS)?;
                let present = (0..count)
                    .map(|_| r.bool("present"))
                    .collect::<Result<_, _>>()?;
                CompareAnswer::Present { present }
            }
            v => return Err(unknown("compare answer", v)),
        };
        r.end()?;
        Ok(answer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Hashes of blocks with these contents; zeros of zero.
    fn of(blocks: &[u8]) -> Hashes {
        let flat: Vec<u8> = blocks.iter().flat_map(|b| [*b; HASH]).collect();
        flat.into()
    }

    #[test]
    fn exactly_the_blocks_that_differ_are_found() {
        let mine = of(&[0, 1, 2, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 4]);
        assert_eq!(mine.differing(&mine), []);
        let theirs = of(&[5, 1, 0, 0, 0, 0, 0, 0, 0, 6, 0, 0, 0, 0, 0, 0, 0, 4, 7]);
        assert_eq!(mine.differing(&theirs), [0, 2, 9]);
        // What is not there differs, also from zeros.
        let short = of(&[0, 1, 2, 0, 0, 0, 0, 0, 0, 3, 0, 0]);
        assert_eq!(mine.differing(&short), [12, 13, 14, 15, 16, 17]);
        assert_eq!(of(&[]).differing(&mine), []);
        let mut pushed = Hashes::default();
        pushed.push_zeros(9);
        pushed.push(&[3; HASH]);
        pushed.push_zeros(2);
        assert_eq!(pushed, of(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0]));
    }
}
