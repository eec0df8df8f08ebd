//! Saved marks: `state/marks`, what of this copy the other one may lack, exact to the
//! block and the name. It stands for all notes of the intent log before a segment, so
//! that these can go.
//!
//! ```text
//!   0  8   "twinmark"
//!   8  2   version, 1
//!  10  8   number: one higher each time; the copy's record names the one in force
//!  18 16   module id
//!  34 16   generation of the copy when it was written
//!  50  8   first segment of the intent log whose notes it does not stand for
//!  58  8   bytes of the map of what must be moved, d
//!  66  8   bytes of the map of what must be compared, s
//!  74  8   number of notes, n
//!  82  d   map (`protocol/src/marks/pieces.rs`)
//!      s   map
//!    13n   notes that are no more exact: u8 kind, u32 extent, u64 file id, as in the
//!          intent log
//!      4   CRC-32C of everything before
//! ```
//!
//! All numbers little endian. The file is replaced in one step (written beside, synced,
//! renamed, the directory synced): it is the old one or the new one, and each is complete
//! together with the notes that are still there. Without room for it the old one and the
//! notes stay. One that is damaged, missing, newer or of another history is named, and
//! everything is compared then.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use twinfold_protocol::ids::{Generation, ModuleId};
use twinfold_protocol::lifecycle::{MarksId, Record};
use twinfold_protocol::marks::{DirtyMap, Intent};
use twinfold_protocol::primary::OwnMarks;

use super::segment::{NOTE, decode_note, encode_note};

const MAGIC: &[u8; 8] = b"twinmark";
const VERSION: u16 = 1;
const HEADER: usize = 82;

/// What was saved.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Saved {
    /// Exact marks.
    pub own: OwnMarks,
    /// Notes that are no more exact.
    pub notes: BTreeSet<Intent>,
    /// The first segment of the intent log whose notes it does not stand for.
    pub segment: u64,
}

/// What is to be saved: maps as [`DirtyMap::write`] writes them.
#[derive(Debug, Default)]
pub struct ToSave<'a> {
    /// What must be moved.
    pub dirty: Vec<u8>,
    /// What must be compared.
    pub suspect: Vec<u8>,
    /// Notes that are no more exact.
    pub notes: Option<&'a BTreeSet<Intent>>,
}

impl<'a> ToSave<'a> {
    /// Whole maps.
    pub fn new(own: &OwnMarks, notes: &'a BTreeSet<Intent>) -> ToSave<'a> {
        ToSave {
            dirty: own.dirty.to_bytes(),
            suspect: own.suspect.to_bytes(),
            notes: Some(notes),
        }
    }

    fn is_empty(&self) -> bool {
        self.dirty.is_empty()
            && self.suspect.is_empty()
            && self.notes.is_none_or(BTreeSet::is_empty)
    }
}

/// The file.
#[derive(Debug)]
pub struct MarksFile {
    path: PathBuf,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    segment: u64,
    /// Known to hold nothing.
    empty: bool,
}

impl MarksFile {
    /// Writes a first file, without any marks, for a record with the number 0.
    pub fn create(state: &Path) -> io::Result<()> {
        let bytes = encode(MarksId::default(), 0, &ToSave::default());
        super::replace(&state.join("marks"), &bytes)
    }

    /// Reads what was saved for a copy with this record. `Err` tells why it cannot be used.
    pub fn open(state: &Path, record: &Record) -> (MarksFile, Result<(u64, Saved), String>) {
        let path = state.join("marks");
        let read = std::fs::read(&path)
            .map_err(|e| e.to_string())
            .and_then(|bytes| decode(&bytes))
            .and_then(|(id, saved)| {
                record.trusts(id).map_err(|e| e.to_string())?;
                Ok((id.number, saved))
            })
            .map_err(|why| format!("{} cannot be used: {why}", path.display()));
        let inner = Mutex::new(Inner {
            segment: read.as_ref().map_or(0, |(_, saved)| saved.segment),
            empty: read
                .as_ref()
                .is_ok_and(|(_, s)| s.own.is_empty() && s.notes.is_empty()),
        });
        (MarksFile { path, inner }, read)
    }

    /// Replaces the file. It stands for the notes before `segment`, or, with none, for
    /// those the last one stood for. False when it cannot be done now: the last one is in force.
    pub fn save(&self, id: MarksId, segment: Option<u64>, what: &ToSave<'_>) -> io::Result<bool> {
        let mut inner = self.inner.lock();
        let segment = segment.unwrap_or(inner.segment);
        let written = super::replace(&self.path, &encode(id, segment, what));
        match written {
            Ok(()) => {
                *inner = Inner {
                    segment,
                    empty: what.is_empty(),
                };
                Ok(true)
            }
            Err(e) if super::not_now(&e) => {
                let _ = std::fs::remove_file(super::beside(&self.path));
                Ok(false)
            }
            Err(e) => Err(e),
        }
    }

    /// Whether the file holds no marks.
    pub fn is_empty(&self) -> bool {
        self.inner.lock().empty
    }
}

fn encode(id: MarksId, segment: u64, what: &ToSave<'_>) -> Vec<u8> {
    let notes = what.notes.map_or(0, BTreeSet::len);
    let length = HEADER + what.dirty.len() + what.suspect.len() + notes * NOTE + 4;
    let mut out = Vec::with_capacity(length);
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(&VERSION.to_le_bytes());
    out.extend_from_slice(&id.number.to_le_bytes());
    out.extend_from_slice(&id.module.0.to_le_bytes());
    out.extend_from_slice(&id.generation.0.to_le_bytes());
    out.extend_from_slice(&segment.to_le_bytes());
    for length in [what.dirty.len(), what.suspect.len(), notes] {
        out.extend_from_slice(&(length as u64).to_le_bytes());
    }
    out.extend_from_slice(&what.dirty);
    out.extend_from_slice(&what.suspect);
    for note in what.notes.into_iter().flatten() {
        out.extend_from_slice(&encode_note(*note));
    }
    let crc = crc32c::crc32c(&out);
    out.extend_from_slice(&crc.to_le_bytes());
    out
}

fn decode(bytes: &[u8]) -> Result<(MarksId, Saved), String> {
    let too_short = || "it ends too early".to_owned();
    let (body, crc) = bytes.split_last_chunk::<4>().ok_or_else(too_short)?;
    if !body.starts_with(MAGIC) {
        return Err("it is not a file of twinfold".into());
    }
    if crc32c::crc32c(body).to_le_bytes() != *crc {
        return Err("it is damaged (its checksum is wrong)".into());
    }
    let mut rest = &body[MAGIC.len()..];
    let version = u16::from_le_bytes(take(&mut rest)?);
    if version != VERSION {
        return Err(format!(
            "it has version {version}, this build reads version {VERSION}"
        ));
    }
    let number = u64::from_le_bytes(take(&mut rest)?);
    let module = ModuleId(u128::from_le_bytes(take(&mut rest)?));
    let generation = Generation(u128::from_le_bytes(take(&mut rest)?));
    let segment = u64::from_le_bytes(take(&mut rest)?);
    let mut lengths = [0usize; 3];
    for length in &mut lengths {
        *length =
            usize::try_from(u64::from_le_bytes(take(&mut rest)?)).map_err(|e| e.to_string())?;
    }
    let [dirty, suspect, count] = lengths;
    let mut map = |length: usize| -> Result<DirtyMap, String> {
        let (part, after) = rest.split_at_checked(length).ok_or_else(too_short)?;
        rest = after;
        let mut map = DirtyMap::default();
        map.read(part).map_err(|e| e.to_string())?;
        Ok(map)
    };
    let own = OwnMarks {
        dirty: map(dirty)?,
        suspect: map(suspect)?,
    };
    if rest.len() != count.saturating_mul(NOTE) {
        return Err("its length is wrong".into());
    }
    let notes = rest
        .chunks_exact(NOTE)
        .map(|note| decode_note(note).ok_or_else(|| "it has a note of an unknown kind".to_owned()))
        .collect::<Result<_, _>>()?;
    let id = MarksId {
        module,
        generation,
        number,
    };
    Ok((
        id,
        Saved {
            own,
            notes,
            segment,
        },
    ))
}

fn take<const N: usize>(rest: &mut &[u8]) -> Result<[u8; N], String> {
    let (head, after) = rest
        .split_first_chunk::<N>()
        .ok_or_else(|| "it ends too early".to_owned())?;
    *rest = after;
    Ok(*head)
}

#[cfg(test)]
mod tests {
    use super::*;
    use twinfold_protocol::handshake::CopyState;
    use twinfold_protocol::ids::FileId;

    fn record() -> Record {
        Record {
            copy: CopyState {
                module: ModuleId(0x0b0a),
                current: Generation(0x0d0c),
                ..CopyState::default()
            },
            marks: 6,
            ..Record::default()
        }
    }

    fn saved() -> Saved {
        let mut saved = Saved {
            segment: 9,
            ..Saved::default()
        };
        saved.own.dirty.mark_attributes(FileId(0x0102));
        saved.own.suspect.mark_directory(FileId(1));
        saved.notes.insert(Intent::Extent {
            file: FileId(3),
            extent: 4,
        });
        saved
    }

    fn save(directory: &Path, saved: &Saved) {
        let (file, _) = MarksFile::open(directory, &record());
        let id = record().next_marks();
        let what = ToSave::new(&saved.own, &saved.notes);
        assert!(file.save(id, Some(saved.segment), &what).unwrap());
        assert!(!file.is_empty());
    }

    #[test]
    fn the_bytes_of_the_file() {
        assert_eq!(crate::state::documented_version("marks"), VERSION);
        let dir = tempfile::tempdir().unwrap();
        save(dir.path(), &saved());
        let bytes = std::fs::read(dir.path().join("marks")).unwrap();
        let (body, crc) = bytes.split_last_chunk::<4>().unwrap();
        let zeros = [0; 16];
        let wanted = [
            &b"twinmark"[..],
            &[1, 0],
            &[7, 0, 0, 0, 0, 0, 0, 0],
            &[0x0a, 0x0b],
            &zeros[..14],
            &[0x0c, 0x0d],
            &zeros[..14],
            &[9, 0, 0, 0, 0, 0, 0, 0],
            &[10, 0, 0, 0, 0, 0, 0, 0],
            &[9, 0, 0, 0, 0, 0, 0, 0],
            &[1, 0, 0, 0, 0, 0, 0, 0],
            &[1, 2, 1, 0, 0, 0, 0, 0, 0, 1],
            &[4, 1, 0, 0, 0, 0, 0, 0, 0],
            &[1, 4, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0],
        ]
        .concat();
        assert_eq!(body, wanted);
        assert_eq!(*crc, crc32c::crc32c(&wanted).to_le_bytes());
        let (file, read) = MarksFile::open(dir.path(), &record());
        assert_eq!(read, Ok((7, saved())));
        assert!(!file.is_empty());
    }

    #[test]
    fn a_file_that_is_damaged_cut_newer_missing_or_of_another_history_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("marks");
        let why = |record: &Record| MarksFile::open(dir.path(), record).1.unwrap_err();
        assert!(
            why(&record()).contains("No such file"),
            "{}",
            why(&record())
        );
        save(dir.path(), &saved());
        let good = std::fs::read(&path).unwrap();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0x10;
            std::fs::write(&path, &bad).unwrap();
            assert!(why(&record()).contains("marks cannot be used"), "byte {at}");
            std::fs::write(&path, &good[..at]).unwrap();
            why(&record());
        }
        let mut newer = good[..good.len() - 4].to_vec();
        newer[8] = 2;
        let crc = crc32c::crc32c(&newer).to_le_bytes();
        std::fs::write(&path, [&newer[..], &crc].concat()).unwrap();
        assert!(why(&record()).contains("version 2"), "{}", why(&record()));
        std::fs::write(&path, &good).unwrap();
        let mut later = record();
        later.marks = 8;
        assert!(
            why(&later).contains("not this copy's history"),
            "{}",
            why(&later)
        );
    }

    #[test]
    fn a_new_file_holds_nothing() {
        let dir = tempfile::tempdir().unwrap();
        MarksFile::create(dir.path()).unwrap();
        let (file, read) = MarksFile::open(dir.path(), &Record::default());
        assert_eq!(read, Ok((0, Saved::default())));
        assert!(file.is_empty());
    }
}
