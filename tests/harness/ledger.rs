//! An application whose every step follows from its number, so that whoever heard the
//! numbers of the steps that were acknowledged knows what must be there: also one that
//! only hears of them, from a machine that loses its power.
//!
//! ```text
//! ledger    blocks of 4 KiB, written again and again; each says its step
//! log       records, appended
//! file-N    made in step N, removed 563 steps later
//! current   renamed into place again and again
//! ```
//!
//! Each eighth step is an fsync of all that, directory included: what was acknowledged
//! before it is on stable storage.

use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::compare::read_quietly;

/// Blocks of the ledger.
const PLACES: u64 = 48;

/// Bytes of a block, and of a record of the log.
const BLOCK: usize = 4096;
const RECORD: usize = 120;

/// Steps between two fsyncs.
pub const SYNC_EVERY: u64 = 8;

/// Steps after which a file is removed: more than nobody may have been told of, or a file that is
/// missing could always have been removed.
const KEPT: u64 = 563;

/// Steps that may have been taken and not been told yet.
const UNTOLD: u64 = 500;

enum Step {
    Block(u64),
    Append,
    Create,
    Replace,
    /// The file made in this step.
    Remove(u64),
    Sync,
}

fn step(number: u64) -> Step {
    match number % SYNC_EVERY {
        0 => Step::Sync,
        2 => Step::Append,
        4 => Step::Create,
        6 => Step::Replace,
        7 if number > KEPT => Step::Remove(number - KEPT),
        _ => Step::Block(number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32),
    }
}

/// The step whose number is in `bytes`, if they are whole.
fn number_in(writer: u64, bytes: &[u8]) -> Option<u64> {
    let number = u64::from_le_bytes(bytes.get(..8)?.try_into().ok()?);
    (number != 0 && contents(writer, number, bytes.len()) == bytes).then_some(number)
}

/// Bytes that say their step and belong to nothing else.
fn contents(writer: u64, number: u64, length: usize) -> Vec<u8> {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&writer.to_le_bytes());
    hasher.update(&number.to_le_bytes());
    let mut bytes = vec![0; length];
    hasher.finalize_xof().fill(&mut bytes);
    bytes[..8].copy_from_slice(&number.to_le_bytes());
    bytes
}

/// Bytes of the file made in a step.
fn length(number: u64) -> usize {
    100 + (number * 997 % 9000) as usize
}

/// Works in `directory`, which is made, until `acknowledged`, which is told every step
/// that has succeeded, says that it is enough.
pub fn work(
    directory: &Path,
    writer: u64,
    mut acknowledged: impl FnMut(u64) -> bool,
) -> io::Result<()> {
    std::fs::create_dir(directory)?;
    let new = |name: &str| File::create_new(directory.join(name));
    let (ledger, mut log) = (new("ledger")?, new("log")?);
    let mut fresh = Vec::new();
    for number in 1.. {
        match step(number) {
            Step::Block(place) => ledger.write_all_at(
                &contents(writer, number, BLOCK),
                place % PLACES * BLOCK as u64,
            )?,
            Step::Append => log.write_all(&contents(writer, number, RECORD))?,
            Step::Create => {
                let mut file = new(&format!("file-{number}"))?;
                file.write_all(&contents(writer, number, length(number)))?;
                fresh.push(file);
            }
            Step::Replace => {
                let mut file = new("new")?;
                file.write_all(&contents(writer, number, length(number)))?;
                std::fs::rename(directory.join("new"), directory.join("current"))?;
                fresh.push(file);
            }
            Step::Remove(old) => std::fs::remove_file(directory.join(format!("file-{old}")))?,
            Step::Sync => {
                for file in fresh
                    .drain(..)
                    .chain([ledger.try_clone()?, log.try_clone()?])
                {
                    file.sync_all()?;
                }
                File::open(directory)?.sync_all()?;
            }
        }
        if !acknowledged(number) {
            break;
        }
    }
    Ok(())
}

/// The last step before and with `last` that is on stable storage if `last` was acknowledged.
pub fn synced(last: u64) -> u64 {
    last - last % SYNC_EVERY
}

/// Everything that contradicts that all steps up to `last` have been taken and kept.
pub fn check(directory: &Path, writer: u64, last: u64) -> Vec<String> {
    let mut wrong = Vec::new();
    if let Err(e) = look(directory, writer, last, &mut wrong) {
        wrong.push(e.to_string());
    }
    let at = |what| format!("{}, step {last}: {what}", directory.display());
    wrong.into_iter().map(at).collect()
}

fn read(directory: &Path, name: &str) -> io::Result<Option<Vec<u8>>> {
    match read_quietly(&directory.join(name)) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

fn look(directory: &Path, writer: u64, last: u64, wrong: &mut Vec<String>) -> io::Result<()> {
    if last == 0 {
        return Ok(());
    }
    let mut places = vec![0; PLACES as usize];
    let mut appended = Vec::new();
    let mut current = 0;
    for number in 1..=last {
        match step(number) {
            Step::Block(place) => places[(place % PLACES) as usize] = number,
            Step::Append => appended.extend(contents(writer, number, RECORD)),
            Step::Replace => current = number,
            Step::Create => {
                let name = format!("file-{number}");
                let found = read(directory, &name)?;
                let whole = contents(writer, number, length(number));
                if number + KEPT <= last && found.is_some() {
                    wrong.push(format!("{name} was removed, and is there"));
                } else if number + KEPT > last + UNTOLD && found.is_none()
                    || found.is_some_and(|f| number + KEPT > last && f != whole)
                {
                    wrong.push(format!("{name} is lost"));
                }
            }
            Step::Remove(_) | Step::Sync => {}
        }
    }
    let ledger = read(directory, "ledger")?.unwrap_or_default();
    for (place, wanted) in places.into_iter().enumerate().filter(|(_, n)| *n > 0) {
        let block = ledger.get(place * BLOCK..(place + 1) * BLOCK);
        let found = block.and_then(|bytes| number_in(writer, bytes));
        if found.is_none_or(|found| found < wanted) {
            wrong.push(format!(
                "block {place} must hold step {wanted}, not {found:?}"
            ));
        }
    }
    let log = read(directory, "log")?.unwrap_or_default();
    if !log.starts_with(&appended) {
        let same = log
            .iter()
            .zip(&appended)
            .take_while(|(a, b)| a == b)
            .count();
        let all = appended.len();
        wrong.push(format!("{same} of {all} bytes of the log are there"));
    }
    if current > 0 {
        let bytes = read(directory, "current")?.unwrap_or_default();
        let found = number_in(writer, &bytes);
        if found.is_none_or(|found| found < current || bytes.len() != length(found)) {
            wrong.push(format!("`current` must hold step {current}, not {found:?}"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn worked(last: u64) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        work(&directory.path().join("w"), 3, |n| n < last).unwrap();
        directory
    }

    #[test]
    fn what_was_done_is_found_and_more_does_not_matter() {
        let directory = worked(1200);
        let path = directory.path().join("w");
        for last in [1200, 1199, 1132, 700] {
            assert_eq!(check(&path, 3, last), Vec::<String>::new());
        }
        assert!(!check(&path, 3, 1208).is_empty());
        assert!(!check(&path, 4, 1200).is_empty());
    }

    #[test]
    fn whatever_is_lost_is_missed() {
        for name in ["ledger", "log", "file-1148", "file-1132", "current"] {
            let directory = worked(1200);
            let path = directory.path().join("w");
            let bytes = std::fs::read(path.join(name)).unwrap();
            std::fs::write(path.join(name), &bytes[..bytes.len() - 1]).unwrap();
            assert!(!check(&path, 3, 1200).is_empty(), "{name}");
            std::fs::remove_file(path.join(name)).unwrap();
            // This one may have been removed by a step that nobody was told of.
            let older = name == "file-1132";
            assert_eq!(check(&path, 3, 1200).is_empty(), older, "{name}");
        }
    }

    #[test]
    fn what_was_removed_stays_away() {
        let directory = worked(1200);
        let path = directory.path().join("w");
        assert!(!path.join("file-604").exists());
        std::fs::write(path.join("file-604"), contents(3, 604, length(604))).unwrap();
        assert!(!check(&path, 3, 1200).is_empty());
    }
}
