//! Reads the folder and holds it against the writers' records.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::Path;

use anyhow::{Context, Result};

use super::content::BLOCK;
use super::record::{Complaint, Record};
use super::writers::{self, Kind, Writer};

/// Bytes read at once.
const AT_ONCE: usize = 1 << 20;

/// Everything that contradicts the records. An error means that it could not be looked at.
pub(crate) fn check(writers: &[Writer], root: &Path) -> Result<Vec<Complaint>> {
    let mut complaints = Vec::new();
    for writer in writers {
        let path = root.join(&writer.path);
        let found = one(writer, &path).with_context(|| format!("cannot check {}", path.display()));
        let place = |complaint: Complaint| Complaint {
            what: format!("{}: {}", writer.path.display(), complaint.what),
            ..complaint
        };
        complaints.extend(found?.into_iter().map(place));
    }
    Ok(complaints)
}

fn one(writer: &Writer, path: &Path) -> io::Result<Vec<Complaint>> {
    let me = writer.me();
    match (&writer.record, writer.kind) {
        (Record::Blocks(record), Kind::Blocks { blocks, .. }) => {
            let Some(file) = open(path)? else {
                return Ok(vec![Complaint::new("the file is gone")]);
            };
            let size = file.metadata()?.len();
            let mut file = BufReader::with_capacity(AT_ONCE, file);
            let mut found = Vec::new();
            if size != blocks * BLOCK as u64 {
                let what = format!("{size} bytes long, not {} blocks", blocks);
                found.push(Complaint::new(what));
            }
            let mut buffer = vec![0; BLOCK];
            for place in 0..blocks {
                let filled = fill(&mut file, &mut buffer)?;
                if writer.owns(place) {
                    found.extend(record.judge(me, place, &buffer[..filled]));
                }
            }
            Ok(found)
        }
        (Record::Log(record), _) => {
            let Some(mut file) = open(path)? else {
                return Ok(vec![Complaint::new("the file is gone")]);
            };
            let mut data = Vec::new();
            file.read_to_end(&mut data)?;
            Ok(record.judge(me, &data).into_iter().collect())
        }
        (Record::Files(record), _) => {
            let mut found = Vec::new();
            let mut known = BTreeSet::new();
            for number in record.numbers() {
                let (temporary, own) = writers::names(path, number);
                let (new, old) = (read(&temporary)?, read(&own)?);
                found.extend(record.judge(me, number, new.as_deref(), old.as_deref()));
                known.extend([temporary, own]);
            }
            for directory in std::fs::read_dir(path)? {
                for entry in std::fs::read_dir(directory?.path())? {
                    let entry = entry?.path();
                    if !known.contains(&entry) {
                        let what = format!("{} was made by nobody", entry.display());
                        found.push(Complaint::new(what));
                    }
                }
            }
            Ok(found)
        }
        (Record::Blocks(_), _) => Ok(Vec::new()),
    }
}

/// Bytes of data that differ from what the folder held when counting began: whole
/// blocks, cut at the end of their file, each once.
pub(crate) fn changed_bytes(writers: &[Writer], root: &Path) -> Result<u64> {
    let mut bytes = 0;
    for writer in writers {
        let path = root.join(&writer.path);
        let size = |path: &Path| match std::fs::symlink_metadata(path) {
            Ok(meta) => Ok(meta.len()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(0),
            Err(e) => Err(e).with_context(|| format!("cannot look at {}", path.display())),
        };
        bytes += match &writer.record {
            Record::Blocks(record) => record.changed().count() as u64 * BLOCK as u64,
            Record::Log(record) => {
                let size = size(&path)?;
                let from = record.changed_from();
                match from < size {
                    true => size - from / BLOCK as u64 * BLOCK as u64,
                    false => 0,
                }
            }
            Record::Files(record) => {
                let mut sum = 0;
                for number in record.changed() {
                    let (temporary, own) = writers::names(&path, number);
                    sum += size(&temporary)? + size(&own)?;
                }
                sum
            }
        };
    }
    Ok(bytes)
}

fn open(path: &Path) -> io::Result<Option<File>> {
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

fn read(path: &Path) -> io::Result<Option<Vec<u8>>> {
    let Some(mut file) = open(path)? else {
        return Ok(None);
    };
    let mut data = Vec::new();
    file.read_to_end(&mut data)?;
    Ok(Some(data))
}

/// Reads until the buffer is full or the file ends.
fn fill(file: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read(&mut buffer[filled..])? {
            0 => break,
            n => filled += n,
        }
    }
    Ok(filled)
}
