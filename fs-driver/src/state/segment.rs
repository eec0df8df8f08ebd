//! The bytes of a segment of the intent log.
//!
//! ```text
//! state/intents/SEGMENT     SEGMENT: sixteen hexadecimal digits, ascending
//!   0  8   "twinnote"
//!   8  2   version, 1
//!  10  2   0
//!  12  8   number of the segment
//!  20  8   0
//!  28  4   CRC-32C of the 28 bytes before
//!   record i at byte 32 * (i + 1), zeros behind the last:
//!     0  u8   kind: 1 extent, 2 attributes, 3 directory, 4 new ids, 5 whole file,
//!             6 everything: what is changed from here on is not noted apart
//!     4  u32  extent number (kind 1), else 0
//!     8  u64  file id, 0 for kind 6
//!    16  u64  number of the segment
//!    24  u32  CRC-32C of the 24 bytes before
//!    28  u32  0
//! ```
//!
//! All numbers little endian.

use std::collections::BTreeSet;
use std::path::Path;

use twinfold_protocol::ids::FileId;
use twinfold_protocol::marks::Intent;

const MAGIC: &[u8; 8] = b"twinnote";
const VERSION: u16 = 1;

/// Bytes of a record, and of the head of a segment.
pub(super) const RECORD: usize = 32;

/// The kind of the record that says that everything may differ.
const EVERYTHING: u8 = 6;

/// Bytes of a note without its checksum and segment.
pub(super) const NOTE: usize = 13;

/// What was noted before this run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovered {
    /// The notes.
    pub intents: BTreeSet<Intent>,
    /// Something could not be read, or too much was changed to be told apart: anything may
    /// differ.
    pub damaged: bool,
}

impl Recovered {
    pub(super) fn damaged(&mut self, path: &Path, why: &str) {
        tracing::error!(
            path = %path.display(),
            why,
            "a part of the intent log cannot be used: everything is compared"
        );
        self.damaged = true;
    }

    fn overflowed(&mut self, path: &Path) {
        tracing::warn!(
            path = %path.display(),
            "more was changed than the intent log tells apart: everything is compared"
        );
        self.damaged = true;
    }
}

/// The first bytes of a segment.
pub(super) fn head(segment: u64) -> [u8; RECORD] {
    let mut head = [0; RECORD];
    head[..8].copy_from_slice(MAGIC);
    head[8..10].copy_from_slice(&VERSION.to_le_bytes());
    head[12..20].copy_from_slice(&segment.to_le_bytes());
    let crc = crc32c::crc32c(&head[..28]);
    head[28..].copy_from_slice(&crc.to_le_bytes());
    head
}

/// Adds what the bytes of a segment hold.
pub(super) fn read_segment(path: &Path, bytes: &[u8], segment: u64, recovered: &mut Recovered) {
    let (found, records) = bytes.split_at(bytes.len().min(RECORD));
    if found != head(segment) {
        // A crash while it was being made: nothing was noted in it.
        if bytes.iter().all(|b| *b == 0) {
            return;
        }
        return recovered.damaged(path, &strange_head(found, segment));
    }
    let mut broken = false;
    let everything = everything(segment);
    for record in records.chunks_exact(RECORD) {
        if record == everything {
            recovered.overflowed(path);
            continue;
        }
        match decode(record, segment) {
            Some(intent) => {
                // A sound record behind a broken one: not the torn end of the log.
                if broken && !recovered.damaged {
                    recovered.damaged(path, "a record in its middle is damaged");
                }
                recovered.intents.insert(intent);
            }
            None => broken |= record.iter().any(|b| *b != 0),
        }
    }
}

/// Where the notes of a segment end, if nothing before is damaged.
pub(super) fn end_of_notes(bytes: &[u8], segment: u64) -> Option<usize> {
    let (found, records) = bytes.split_at(bytes.len().min(RECORD));
    if found != head(segment) {
        return bytes.iter().all(|b| *b == 0).then_some(RECORD);
    }
    let everything = everything(segment);
    let sound = |record: &[u8]| record == everything || decode(record, segment).is_some();
    let records = records.chunks_exact(RECORD);
    let count = records.clone().rposition(sound).map_or(0, |last| last + 1);
    let whole = records.take(count).all(sound);
    whole.then_some((count + 1) * RECORD)
}

/// What is wrong with the head of a segment.
pub(super) fn strange_head(found: &[u8], segment: u64) -> String {
    let sound = found.split_last_chunk::<4>().is_some_and(|(body, crc)| {
        body.starts_with(MAGIC) && crc32c::crc32c(body).to_le_bytes() == *crc
    });
    match found {
        [_, _, _, _, _, _, _, _, a, b, ..] if sound => match u16::from_le_bytes([*a, *b]) {
            VERSION => format!("it is not segment {segment}, whose name it has"),
            v => format!("it has version {v}, this build reads version {VERSION}"),
        },
        _ => "its head is damaged".into(),
    }
}

/// Kind, extent and file id of a note.
pub(super) fn encode_note(intent: Intent) -> [u8; NOTE] {
    let (kind, extent, file) = match intent {
        Intent::Extent { file, extent } => (1, extent, file),
        Intent::Attributes { file } => (2, 0, file),
        Intent::Directory { directory } => (3, 0, directory),
        Intent::NewIds { first } => (4, 0, first),
        Intent::File { file } => (5, 0, file),
    };
    let mut note = [0; NOTE];
    note[0] = kind;
    note[1..5].copy_from_slice(&extent.to_le_bytes());
    note[5..].copy_from_slice(&file.0.to_le_bytes());
    note
}

pub(super) fn decode_note(note: &[u8]) -> Option<Intent> {
    let (kind, rest) = note.split_first()?;
    let (extent, rest) = rest.split_first_chunk()?;
    let (file, rest) = rest.split_first_chunk()?;
    let (extent, file) = (
        u32::from_le_bytes(*extent),
        FileId(u64::from_le_bytes(*file)),
    );
    if !rest.is_empty() {
        return None;
    }
    Some(match kind {
        1 => Intent::Extent { file, extent },
        2 => Intent::Attributes { file },
        3 => Intent::Directory { directory: file },
        4 => Intent::NewIds { first: file },
        5 => Intent::File { file },
        _ => return None,
    })
}

/// A record.
pub(super) fn encode(intent: Intent, segment: u64) -> [u8; RECORD] {
    record_of(encode_note(intent), segment)
}

/// The record that says that everything may differ.
pub(super) fn everything(segment: u64) -> [u8; RECORD] {
    let mut note = [0; NOTE];
    note[0] = EVERYTHING;
    record_of(note, segment)
}

fn record_of(note: [u8; NOTE], segment: u64) -> [u8; RECORD] {
    let mut record = [0; RECORD];
    record[0] = note[0];
    record[4..16].copy_from_slice(&note[1..]);
    record[16..24].copy_from_slice(&segment.to_le_bytes());
    let crc = crc32c::crc32c(&record[..24]);
    record[24..28].copy_from_slice(&crc.to_le_bytes());
    record
}

fn decode(record: &[u8], segment: u64) -> Option<Intent> {
    let (body, crc) = (record.get(..24)?, record.get(24..28)?);
    if crc != crc32c::crc32c(body).to_le_bytes() || body.get(16..)? != segment.to_le_bytes() {
        return None;
    }
    let mut note = [0; NOTE];
    note[0] = *body.first()?;
    note[1..].copy_from_slice(body.get(4..16)?);
    decode_note(&note)
}

#[cfg(test)]
mod tests {
    use super::super::IntentLog;
    use super::*;

    #[test]
    fn the_bytes_of_a_segment() {
        assert_eq!(crate::state::documented_version("intents/SEGMENT"), VERSION);
        let dir = tempfile::tempdir().unwrap();
        IntentLog::create(dir.path()).unwrap();
        let (log, _) = IntentLog::open(dir.path(), 0).unwrap();
        let file = FileId(0x0102_0304_0506_0708);
        let all = [
            Intent::Extent {
                file,
                extent: 0x0a0b,
            },
            Intent::Attributes { file },
            Intent::Directory { directory: file },
            Intent::NewIds { first: file },
            Intent::File { file },
        ];
        log.ensure(&all).unwrap();
        let bytes = std::fs::read(dir.path().join("0000000000000002")).unwrap();
        assert_eq!(bytes.len(), 256 << 10);
        let mut head = [0u8; 28];
        head[..8].copy_from_slice(b"twinnote");
        head[8] = 1;
        head[12] = 2;
        assert_eq!(bytes[..28], head);
        assert_eq!(bytes[28..32], crc32c::crc32c(&head).to_le_bytes());
        for (i, record) in bytes[32..6 * 32].chunks(32).enumerate() {
            let extent = if i == 0 { [0x0b, 0x0a] } else { [0, 0] };
            let body = [
                &[i as u8 + 1, 0, 0, 0][..],
                &extent,
                &[0, 0, 8, 7, 6, 5, 4, 3, 2, 1, 2, 0, 0, 0, 0, 0, 0, 0],
            ]
            .concat();
            assert_eq!(record[..24], body, "record {i}");
            assert_eq!(record[24..28], crc32c::crc32c(&body).to_le_bytes());
            assert_eq!(record[28..], [0; 4]);
        }
        assert!(bytes[6 * 32..].iter().all(|b| *b == 0));
        let body = [&[6][..], &[0; 15], &[2, 0, 0, 0, 0, 0, 0, 0]].concat();
        assert_eq!(everything(2)[..24], body);
        assert_eq!(everything(2)[24..28], crc32c::crc32c(&body).to_le_bytes());
        assert_eq!(everything(2)[28..], [0; 4]);
    }
}
