//! Reading the application log: what scripts, and what they have started, have printed.
//!
//! A run of the module has a file of its own, and the one before moves on: `application.log`,
//! `application.1.log` and so on. Who follows it names the file by its number in the file system
//! and the byte that comes next; so nothing is missing, nor told twice, when a new run begins.

use std::fs::File;
use std::io::{ErrorKind, Read, Result, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::MAX_LOGS;

/// Bytes of one answer, at most: some thousands of lines.
pub(crate) const MAX_BYTES: u64 = 256 << 10;

/// A part of the log.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Part {
    /// What it says.
    pub(crate) text: String,
    /// The file it is from; 0: there is none yet.
    pub(crate) file: u64,
    /// The byte behind it.
    pub(crate) end: u64,
}

/// The log of the present run is number 0, that of the one before number 1.
fn path(logs: &Path, run: usize) -> PathBuf {
    logs.join(match run {
        0 => "application.log".to_owned(),
        run => format!("application.{run}.log"),
    })
}

/// The last lines of a run, as far as an answer holds them. The present one may have printed
/// nothing yet; of an earlier one that is not kept nothing is known.
pub(crate) fn last(logs: &Path, run: usize, lines: usize) -> Result<Part> {
    let mut file = match File::open(path(logs, run)) {
        Ok(file) => file,
        Err(e) if e.kind() == ErrorKind::NotFound && run == 0 => return Ok(Part::default()),
        Err(e) => return Err(e),
    };
    let length = file.metadata()?.len();
    let from = length.saturating_sub(MAX_BYTES);
    let mut part = piece(&mut file, from)?;
    // What begins in the middle of a line is left out, if there are others.
    let cut = part.text.find('\n').filter(|_| from > 0);
    let whole = &part.text[cut.map_or(0, |at| at + 1)..];
    let whole = if whole.is_empty() { &part.text } else { whole };
    let ends = whole.trim_end_matches('\n').rmatch_indices('\n');
    let begin = match lines {
        0 => whole.len(),
        lines => ends.map(|(at, _)| at + 1).nth(lines - 1).unwrap_or(0),
    };
    part.text = whole[begin..].to_owned();
    Ok(part)
}

/// What is behind a byte of a file; then of the files of the runs after it. A file that is not
/// kept any more, or was begun anew, is read from the beginning of what there is.
pub(crate) fn behind(logs: &Path, file: u64, from: u64) -> Result<Part> {
    let mut runs = Vec::new();
    for run in 0..=MAX_LOGS {
        match File::open(path(logs, run)) {
            Ok(open) => runs.push(open),
            Err(e) if e.kind() == ErrorKind::NotFound => break,
            Err(e) => return Err(e),
        }
    }
    let mut numbers = Vec::new();
    for open in &runs {
        numbers.push(open.metadata()?.ino());
    }
    let known = numbers.iter().position(|number| *number == file);
    let mut from = from;
    if known.is_none() {
        from = 0;
    }
    let newest = known.map_or(1, |at| at + 1);
    let mut last = Part::default();
    for open in runs.iter_mut().take(newest).rev() {
        if from > open.metadata()?.len() {
            from = 0;
        }
        last = piece(open, from)?;
        if !last.text.is_empty() {
            break;
        }
        from = 0;
    }
    Ok(last)
}

/// What a file holds from a byte on, as much as an answer has room for. A letter that is not
/// written to its end yet is left for the next time.
fn piece(file: &mut File, from: u64) -> Result<Part> {
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(from))?;
    file.take(MAX_BYTES).read_to_end(&mut bytes)?;
    if let Some(last) = bytes.utf8_chunks().last()
        && let Err(error) = std::str::from_utf8(last.invalid())
        && error.error_len().is_none()
    {
        bytes.truncate(bytes.len() - last.invalid().len());
    }
    Ok(Part {
        end: from + bytes.len() as u64,
        text: String::from_utf8_lossy(&bytes).into_owned(),
        file: file.metadata()?.ino(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn append(logs: &Path, bytes: &[u8]) {
        let mut options = File::options();
        let log = options.append(true).create(true);
        log.open(path(logs, 0)).unwrap().write_all(bytes).unwrap();
    }

    /// As a new run of the module does.
    fn move_on(logs: &Path) {
        for run in (0..MAX_LOGS).rev() {
            let _ = std::fs::rename(path(logs, run), path(logs, run + 1));
        }
    }

    #[test]
    fn the_last_lines_are_as_many_as_are_wanted_and_fit() {
        let dir = tempfile::tempdir().unwrap();
        let logs = dir.path();
        assert_eq!(last(logs, 0, 10).unwrap(), Part::default());
        last(logs, 1, 10).unwrap_err();
        append(logs, b"one\ntwo\n\nthree");
        for (lines, text) in [
            (0, ""),
            (1, "three"),
            (3, "two\n\nthree"),
            (4, "one\ntwo\n\nthree"),
            (usize::MAX, "one\ntwo\n\nthree"),
        ] {
            let part = last(logs, 0, lines).unwrap();
            assert_eq!((part.text.as_str(), part.end), (text, 14), "{lines}");
        }
        append(logs, b"\n");
        assert_eq!(last(logs, 0, 1).unwrap().text, "three\n");
        append(logs, &b"a line of some length\n".repeat(20_000));
        let part = last(logs, 0, usize::MAX).unwrap();
        assert!(part.text.starts_with("a line"), "{:?}", &part.text[..30]);
        assert!(part.text.len() as u64 <= MAX_BYTES);
        append(logs, &vec![b'x'; 2 * MAX_BYTES as usize]);
        let part = last(logs, 0, 1).unwrap();
        assert_eq!(part.text.len() as u64, MAX_BYTES, "a line without end");
    }

    #[test]
    fn who_follows_misses_nothing_when_a_run_begins_or_the_log_is_cut() {
        let dir = tempfile::tempdir().unwrap();
        let logs = dir.path();
        let mut at = (0, 0);
        let mut more = || {
            let part = behind(logs, at.0, at.1).unwrap();
            at = (part.file, part.end);
            part.text
        };
        assert_eq!(more(), "");
        append(logs, b"one\n");
        assert_eq!(more(), "one\n");
        assert_eq!(more(), "");
        append(logs, b"tw");
        move_on(logs);
        append(logs, b"a longer line of the second run\n");
        move_on(logs);
        append(logs, b"three\n");
        assert_eq!(more(), "tw");
        assert_eq!(more(), "a longer line of the second run\n");
        assert_eq!(more(), "three\n");
        assert_eq!(more(), "");
        let log = File::options().write(true).open(path(logs, 0)).unwrap();
        log.set_len(0).unwrap();
        append(logs, b"new\n");
        assert_eq!(more(), "new\n");
        for _ in 0..=MAX_LOGS {
            move_on(logs);
        }
        append(logs, b"it was away for long\n");
        assert!(more().starts_with("it was"));
    }

    #[test]
    fn a_letter_comes_whole_and_what_is_none_is_shown_as_such() {
        let dir = tempfile::tempdir().unwrap();
        let logs = dir.path();
        append(logs, b"\xff\xc3");
        let part = behind(logs, 0, 0).unwrap();
        assert_eq!((part.text.as_str(), part.end), ("\u{fffd}", 1));
        append(logs, b"\xa4\n");
        let part = behind(logs, part.file, part.end).unwrap();
        assert_eq!((part.text.as_str(), part.end), ("\u{e4}\n", 4));
        append(logs, &"\u{20ac}".repeat(MAX_BYTES as usize).into_bytes());
        let first = behind(logs, part.file, part.end).unwrap();
        assert!(first.end - part.end <= MAX_BYTES);
        let next = behind(logs, first.file, first.end).unwrap();
        assert!(next.text.chars().all(|c| c == '\u{20ac}'));
    }
}
