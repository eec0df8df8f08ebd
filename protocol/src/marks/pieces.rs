//! A dirty map as bytes: how it is kept on disk and sent to the source of a resync.
//!
//! ```text
//! a map is a row of pieces; numbers little endian
//!   1  u64 object      u8 flags: 1 attributes, 2 unknown, 4 every block
//!   2  u64 file        u16 chunk   u16 count   count times: u16 first, u16 last block
//!   3  u64 file        u16 chunk   8192 bytes: block n is bit n % 8 of byte n / 8
//!   4  u64 directory   (every name)
//!   5  u64 directory   u8 length   the name
//!   6  (everything)
//! ```
//!
//! A chunk is 65,536 blocks (256 MiB); the shorter one of the kinds 2 and 3 is
//! written. Objects come in the order of their ids, then directories.

use std::ops::Bound::{Excluded, Unbounded};

use roaring::RoaringBitmap;

use super::{Blocks, DirtyMap, Names};
use crate::ids::FileId;
use crate::op::{BadName, Name};

const OBJECT: u8 = 1;
const RUNS: u8 = 2;
const BITS: u8 = 3;
const DIRECTORY: u8 = 4;
const NAME: u8 = 5;
const EVERYTHING: u8 = 6;

const ATTRIBUTES: u8 = 1;
const UNKNOWN: u8 = 2;
const ALL: u8 = 4;

/// Blocks of a chunk.
const CHUNK: u32 = 1 << 16;

/// Bytes of a chunk's bits.
const BIT_BYTES: usize = CHUNK as usize / 8;

/// Marked blocks of a chunk beyond which a bitmap keeps a bit for each block.
const DENSE: u32 = 4096;

/// Runs of a chunk that are shorter than its bits.
const MAX_RUNS: usize = (BIT_BYTES - 2) / 4;

/// The most that is written at once, in bytes: an object and a chunk's bits.
const MAX_STEP: usize = 10 + 11 + BIT_BYTES;

/// Bytes that are no dirty map.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BadPiece {
    /// They end inside a piece.
    #[error("a piece of a dirty map ends too early")]
    Truncated,
    /// A kind or a flag that nobody knows.
    #[error("a piece of a dirty map has the unknown {0} {1}")]
    Unknown(&'static str, u8),
    /// Runs out of order, or a chunk without any block.
    #[error("the blocks of a piece of a dirty map are out of order")]
    Order,
    /// An object with the id 0, which none has.
    #[error("a piece of a dirty map names no object")]
    NoObject,
    /// A name that is none.
    #[error("bad name in a dirty map: {0}")]
    Name(#[from] BadName),
}

/// How far a map has been written.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Cursor {
    place: Place,
    /// It has been written that everything may differ.
    everything: bool,
}

#[derive(Clone, PartialEq, Eq, Debug, Default)]
enum Place {
    /// Nothing is written.
    #[default]
    Begin,
    /// Objects before this one are; of this one its blocks before a block.
    Object(FileId, u32),
    /// All objects are, and the directories up to this one; of it, its names up to a name.
    Names(Option<(FileId, Option<Name>)>),
    /// Everything is.
    End,
}

impl DirtyMap {
    /// Writes the next part of the map, `most` bytes at most (but not less than fit one
    /// chunk's bits). False when nothing is left. Between two calls the map may grow:
    /// what is marked when the first one is made will have been written.
    pub fn write(&self, cursor: &mut Cursor, most: usize, out: &mut Vec<u8>) -> bool {
        let end = out.len() + most.max(MAX_STEP);
        while out.len() + MAX_STEP <= end {
            // A map that grows too large says so at any time, and has nothing else to say.
            if self.everything && !cursor.everything {
                out.push(EVERYTHING);
                cursor.everything = true;
                continue;
            }
            cursor.place = match std::mem::take(&mut cursor.place) {
                Place::Begin => Place::Object(FileId(0), 0),
                Place::Object(file, block) => self.write_object(file, block, out),
                Place::Names(at) => self.write_names(at, out),
                Place::End => {
                    cursor.place = Place::End;
                    return false;
                }
            };
        }
        cursor.place != Place::End
    }

    /// The whole map.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        let mut cursor = Cursor::default();
        while self.write(&mut cursor, 1 << 20, &mut out) {}
        out
    }

    fn write_object(&self, from: FileId, block: u32, out: &mut Vec<u8>) -> Place {
        let next = self.objects.next(from);
        let Some((file, marks)) = next.and_then(|file| Some((file, self.object(file)?))) else {
            return Place::Names(None);
        };
        let next = || match file.0.checked_add(1) {
            Some(next) => Place::Object(FileId(next), 0),
            None => Place::Names(None),
        };
        let start = if file == from { block } else { 0 };
        // All of its blocks may have been marked while they were being written.
        if start == 0 || marks.blocks.is_all() {
            let flag = |on: bool, bit: u8| if on { bit } else { 0 };
            let flags = flag(marks.attributes, ATTRIBUTES)
                | flag(marks.unknown, UNKNOWN)
                | flag(marks.blocks.is_all(), ALL);
            if flags != 0 {
                put(out, OBJECT, file);
                out.push(flags);
            }
        }
        let Some((first, _)) = marks.blocks.runs_from(start).next() else {
            return next();
        };
        let chunk = first / CHUNK;
        write_chunk(out, file, chunk, marks.blocks);
        match (chunk + 1).checked_mul(CHUNK) {
            Some(block) => Place::Object(file, block),
            None => next(),
        }
    }

    fn write_names(&self, at: Option<(FileId, Option<Name>)>, out: &mut Vec<u8>) -> Place {
        let next = match &at {
            None => self.next_directory(None),
            Some((directory, Some(_))) => self.directory_from(*directory),
            Some((directory, None)) => self.next_directory(Some(*directory)),
        };
        let Some((directory, names)) = next else {
            return Place::End;
        };
        let done = Place::Names(Some((directory, None)));
        let set = match names {
            Names::All => {
                put(out, DIRECTORY, directory);
                return done;
            }
            Names::Some(set) => set,
        };
        let after = match &at {
            Some((before, Some(name))) if *before == directory => Excluded(name),
            _ => Unbounded,
        };
        let Some(name) = set.range((after, Unbounded)).next() else {
            return done;
        };
        put(out, NAME, directory);
        out.push(name.as_bytes().len() as u8);
        out.extend_from_slice(name.as_bytes());
        Place::Names(Some((directory, Some(name.clone()))))
    }

    /// Adds the marks that `bytes` hold. Returns how many chunks of them take a lot of
    /// memory (8 KiB) whatever they take here.
    pub fn read(&mut self, bytes: &[u8]) -> Result<usize, BadPiece> {
        let mut bytes = Input(bytes);
        let mut dense = 0;
        while let Some((kind, rest)) = bytes.0.split_first() {
            bytes.0 = rest;
            if *kind == EVERYTHING {
                self.mark_everything();
                continue;
            }
            if !(OBJECT..=NAME).contains(kind) {
                return Err(BadPiece::Unknown("kind", *kind));
            }
            let id = FileId(u64::from_le_bytes(bytes.take()?));
            if id == FileId(0) {
                return Err(BadPiece::NoObject);
            }
            match *kind {
                OBJECT => {
                    let [flags] = bytes.take::<1>()?;
                    if flags == 0 || flags > ATTRIBUTES | UNKNOWN | ALL {
                        return Err(BadPiece::Unknown("flag", flags));
                    }
                    if flags & ATTRIBUTES != 0 {
                        self.mark_attributes(id);
                    }
                    if flags & UNKNOWN != 0 {
                        self.objects.set(id, super::UNKNOWN);
                    }
                    if flags & ALL != 0 {
                        self.unite_blocks(id, Blocks::all());
                    }
                }
                RUNS | BITS => {
                    let chunk = u32::from(u16::from_le_bytes(bytes.take()?)) * CHUNK;
                    let blocks = match *kind {
                        RUNS => bytes.runs(chunk)?,
                        _ => bytes.bits(chunk)?,
                    };
                    let many = blocks.count() > u64::from(DENSE);
                    self.unite_blocks(id, blocks);
                    let scattered = self.object(id).is_some_and(|m| m.blocks.is_scattered());
                    dense += usize::from(many && scattered);
                }
                DIRECTORY => self.mark_directory(id),
                _ => {
                    let [length] = bytes.take::<1>()?;
                    let (name, rest) = bytes
                        .0
                        .split_at_checked(length.into())
                        .ok_or(BadPiece::Truncated)?;
                    bytes.0 = rest;
                    self.mark_name(id, &Name::new(name)?);
                }
            }
        }
        Ok(dense)
    }
}

fn put(out: &mut Vec<u8>, kind: u8, id: FileId) {
    out.push(kind);
    out.extend_from_slice(&id.0.to_le_bytes());
}

fn write_chunk(out: &mut Vec<u8>, file: FileId, chunk: u32, blocks: &Blocks) {
    let (from, last) = (chunk * CHUNK, chunk * CHUNK + (CHUNK - 1));
    let runs = || {
        blocks
            .runs_from(from)
            .take_while(|run| run.0 <= last)
            .map(|run| ((run.0 - from) as u16, (run.1.min(last) - from) as u16))
    };
    let count = runs().take(MAX_RUNS + 1).count();
    put(out, if count > MAX_RUNS { BITS } else { RUNS }, file);
    out.extend_from_slice(&(chunk as u16).to_le_bytes());
    if count > MAX_RUNS {
        let bits = out.len();
        out.resize(bits + BIT_BYTES, 0);
        for (first, last) in runs() {
            for block in first..=last {
                out[bits + usize::from(block / 8)] |= 1 << (block % 8);
            }
        }
        return;
    }
    out.extend_from_slice(&(count as u16).to_le_bytes());
    for (first, last) in runs() {
        out.extend_from_slice(&first.to_le_bytes());
        out.extend_from_slice(&last.to_le_bytes());
    }
}

struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], BadPiece> {
        let (head, rest) = self.0.split_first_chunk::<N>().ok_or(BadPiece::Truncated)?;
        self.0 = rest;
        Ok(*head)
    }

    fn runs(&mut self, from: u32) -> Result<Blocks, BadPiece> {
        let count = u16::from_le_bytes(self.take()?);
        let mut blocks = Blocks::default();
        let mut least = 0;
        for _ in 0..count {
            let first = u32::from(u16::from_le_bytes(self.take()?));
            let last = u32::from(u16::from_le_bytes(self.take()?));
            if first < least || last < first {
                return Err(BadPiece::Order);
            }
            least = last + 1;
            blocks.mark_run(from + first, from + last);
        }
        match count {
            0 => Err(BadPiece::Order),
            _ => Ok(blocks),
        }
    }

    fn bits(&mut self, from: u32) -> Result<Blocks, BadPiece> {
        let bits = self.take::<BIT_BYTES>()?;
        let map = RoaringBitmap::from_lsb0_bytes(from, &bits);
        let mut blocks = Blocks::default();
        let mut runs = map.iter();
        while let Some(run) = runs.next_range() {
            blocks.mark_run(*run.start(), *run.end());
        }
        match blocks.is_empty() {
            true => Err(BadPiece::Order),
            false => Ok(blocks),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits;

    const F: FileId = FileId(0x0102);
    const D: FileId = FileId(0x0304);

    fn name(text: &str) -> Name {
        Name::new(text.as_bytes()).unwrap()
    }

    fn read(bytes: &[u8]) -> Result<DirtyMap, BadPiece> {
        let mut map = DirtyMap::default();
        map.read(bytes).map(|_| map)
    }

    /// A map with all that a map can hold.
    fn full() -> DirtyMap {
        let mut map = DirtyMap::default();
        map.mark_attributes(F);
        map.mark_unknown(FileId(u64::MAX));
        map.mark_unknown_attributes(FileId(5));
        for block in (0..20_000).step_by(2) {
            map.mark_data(F, block * limits::BLOCK, 1);
        }
        map.mark_data(F, 70_000 * limits::BLOCK, 200_000 * limits::BLOCK);
        map.mark_data(FileId(6), 0, 1);
        map.mark_data(FileId(6), u64::from(u32::MAX) * limits::BLOCK, 1);
        map.mark_directory(FileId(7));
        for n in 0..100 {
            map.mark_name(D, &name(&n.to_string()));
        }
        map.mark_name(FileId(u64::MAX), &name("last"));
        map
    }

    #[test]
    fn the_bytes_of_each_piece() {
        let mut map = DirtyMap::default();
        map.mark_attributes(F);
        map.mark_data(F, 3 * limits::BLOCK, 2 * limits::BLOCK);
        map.mark_data(F, 65_536 * limits::BLOCK, 1);
        map.mark_directory(F);
        map.mark_name(D, &name("ab"));
        let bytes = [
            &[1, 2, 1, 0, 0, 0, 0, 0, 0, 1][..],
            &[2, 2, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 3, 0, 4, 0],
            &[2, 2, 1, 0, 0, 0, 0, 0, 0, 1, 0, 1, 0, 0, 0, 0, 0],
            &[4, 2, 1, 0, 0, 0, 0, 0, 0],
            &[5, 4, 3, 0, 0, 0, 0, 0, 0, 2, b'a', b'b'],
        ]
        .concat();
        assert_eq!(map.to_bytes(), bytes);
        assert_eq!(read(&bytes), Ok(map));
        let mut all = DirtyMap::default();
        all.mark_everything();
        assert_eq!(all.to_bytes(), [6]);
        assert_eq!(read(&[6]), Ok(all));
        let mut bits = DirtyMap::default();
        for block in (0..65_536).step_by(2) {
            bits.mark_data(F, block * limits::BLOCK, 1);
        }
        let bytes = [&[3, 2, 1, 0, 0, 0, 0, 0, 0, 0, 0][..], &[0x55; 8192]].concat();
        assert_eq!(bits.to_bytes(), bytes);
        assert_eq!(read(&bytes), Ok(bits));
    }

    #[test]
    fn a_map_comes_back_whole_however_small_the_parts() {
        let map = full();
        let (mut parts, mut cursor) = (Vec::new(), Cursor::default());
        let mut more = true;
        while more {
            let mut part = Vec::new();
            more = map.write(&mut cursor, 1, &mut part);
            assert!(part.len() <= MAX_STEP, "a part of {} bytes", part.len());
            parts.extend(part);
        }
        assert_eq!(parts, map.to_bytes());
        assert_eq!(read(&parts), Ok(map));
    }

    #[test]
    fn what_is_marked_before_the_writing_begins_is_written_whatever_comes_meanwhile() {
        let (mut map, before) = (full(), full());
        let (mut bytes, mut cursor, mut n) = (Vec::new(), Cursor::default(), 0u64);
        while map.write(&mut cursor, 1, &mut bytes) {
            n += 1;
            if n > 300 {
                continue;
            }
            map.mark_data(FileId(n * 7), n * n * limits::BLOCK, 1);
            map.mark_name(D, &name(&format!("{n}")));
            map.mark_name(FileId(n * 11), &name("new"));
        }
        let written = read(&bytes).unwrap();
        let mut both = written.clone();
        both.unite(before);
        assert_eq!(both, written, "something that was marked is not written");
    }

    #[test]
    fn a_map_that_says_everything_while_it_is_written_is_written_so() {
        for parts in 1.. {
            let (mut map, mut bytes, mut cursor) = (full(), Vec::new(), Cursor::default());
            let begun = (0..parts).all(|_| map.write(&mut cursor, 1, &mut bytes));
            if !begun {
                assert!(parts > 100, "{parts}");
                break;
            }
            map.mark_everything();
            while map.write(&mut cursor, 1, &mut bytes) {}
            assert!(
                read(&bytes).unwrap().is_everything(),
                "after {parts} parts, what is behind them is told by nobody"
            );
        }
    }

    #[test]
    fn a_file_that_is_marked_whole_while_its_blocks_are_written_is_written_so() {
        let mut map = DirtyMap::default();
        for chunk in 0..4u64 {
            map.mark_data(F, chunk * 65_536 * limits::BLOCK, 1);
        }
        map.mark_data(FileId(0x0109), 0, 1);
        for parts in 1..=4 {
            let (mut map, mut bytes, mut cursor) = (map.clone(), Vec::new(), Cursor::default());
            for _ in 0..parts {
                assert!(map.write(&mut cursor, 1, &mut bytes));
            }
            map.mark_unknown(F);
            while map.write(&mut cursor, 1, &mut bytes) {}
            let read = read(&bytes).unwrap();
            let marks = read.object(F).unwrap();
            assert!(marks.blocks.is_all(), "after {parts} chunks: {marks:?}");
            assert!(read.object(FileId(0x0109)).is_some());
        }
    }

    #[test]
    fn chunks_that_take_memory_are_counted() {
        let mut map = DirtyMap::default();
        // Every other chunk whole: a few bytes here, a bitmap each in memory.
        for chunk in 0..10u64 {
            map.mark_data(F, chunk * 131_072 * limits::BLOCK, 65_536 * limits::BLOCK);
        }
        map.mark_data(FileId(3), 0, 1 << 40);
        map.mark_data(FileId(4), 0, 1);
        let bytes = map.to_bytes();
        assert!(bytes.len() < 90_000, "{} bytes", bytes.len());
        // The first one is a run yet.
        assert_eq!(DirtyMap::default().read(&bytes), Ok(9));
    }

    #[test]
    fn bytes_that_are_no_map_are_refused() {
        let good = full().to_bytes();
        assert!(read(&good).is_ok());
        for len in 0..200.min(good.len()) {
            // Cut anywhere: it is the map up to there, or refused; never a panic.
            let _ = read(&good[..len]);
        }
        let id = [9, 0, 0, 0, 0, 0, 0, 0];
        let piece = |kind: u8, rest: &[u8]| [&[kind][..], &id, rest].concat();
        for (bytes, why) in [
            (piece(1, &[0]), BadPiece::Unknown("flag", 0)),
            (piece(1, &[8]), BadPiece::Unknown("flag", 8)),
            (piece(7, &[]), BadPiece::Unknown("kind", 7)),
            (piece(0, &[]), BadPiece::Unknown("kind", 0)),
            (piece(2, &[0, 0, 0, 0]), BadPiece::Order),
            (piece(2, &[0, 0, 1, 0, 5, 0, 4, 0]), BadPiece::Order),
            (
                piece(2, &[0, 0, 2, 0, 5, 0, 6, 0, 6, 0, 9, 0]),
                BadPiece::Order,
            ),
            (piece(2, &[0, 0, 2, 0, 5, 0, 6, 0]), BadPiece::Truncated),
            ([&[1][..], &[0; 8], &[1]].concat(), BadPiece::NoObject),
            (piece(3, &[0; 100]), BadPiece::Truncated),
            (piece(3, &[0; 8194]), BadPiece::Order),
            (piece(5, &[3, b'a']), BadPiece::Truncated),
            (piece(5, &[1, b'/']), BadPiece::Name(BadName::Escapes)),
            (piece(5, &[0]), BadPiece::Name(BadName::Empty)),
            (vec![4, 1], BadPiece::Truncated),
        ] {
            assert_eq!(read(&bytes), Err(why), "{bytes:?}");
        }
    }
}
