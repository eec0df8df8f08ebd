//! The event log of a module: every transition with its reason, every command, every end of
//! a script or a driver; one JSON object a line.

use std::fs::File;
use std::io::{BufRead, BufReader, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// How large the log gets before it becomes the old one, in bytes.
const MAX_LOG: u64 = 8 << 20;

/// Longest text of an event, in bytes: what a script or a driver said may be long.
const MAX_TEXT: usize = 4000;

/// One event.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub(crate) struct EventLine {
    /// Milliseconds since 1970.
    pub(crate) time: u64,
    /// The node.
    pub(crate) node: String,
    /// The module.
    pub(crate) module: String,
    /// `state`, `command`, `script`, `driver`, `peer`, `address`, `resource`, `rule`, `error`.
    pub(crate) kind: String,
    /// What happened and why.
    pub(crate) text: String,
}

/// As much of a text as an event may have.
fn shortened(text: &str) -> &str {
    beginning(text, MAX_TEXT)
}

/// The beginning of a text, so many bytes at most.
pub(crate) fn beginning(text: &str, most: usize) -> &str {
    let end = (0..=most.min(text.len())).rev();
    let end = end.into_iter().find(|i| text.is_char_boundary(*i));
    &text[..end.unwrap_or(0)]
}

/// The log, open for writing.
#[derive(Debug)]
pub(crate) struct EventLog {
    path: PathBuf,
    node: String,
    module: String,
}

impl EventLog {
    pub(crate) fn new(directory: &Path, node: &str, module: &str) -> EventLog {
        EventLog {
            path: directory.join("events.log"),
            node: node.to_owned(),
            module: module.to_owned(),
        }
    }

    /// Writes an event, and returns it. A log that cannot be written stops nothing.
    pub(crate) fn say(&self, kind: &str, text: impl Into<String>) -> EventLine {
        let mut text: String = text.into();
        text.truncate(shortened(&text).len());
        tracing::info!(module = self.module, "{kind}: {text}");
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let line = EventLine {
            time: now.map_or(0, |t| t.as_millis() as u64),
            node: self.node.clone(),
            module: self.module.clone(),
            kind: kind.to_owned(),
            text,
        };
        if let Err(error) = self.write(&line) {
            tracing::warn!(%error, path = %self.path.display(), "the event log cannot be written");
        }
        line
    }

    fn write(&self, line: &EventLine) -> std::io::Result<()> {
        if std::fs::metadata(&self.path).is_ok_and(|m| m.len() >= MAX_LOG) {
            std::fs::rename(&self.path, self.path.with_extension("log.old"))?;
        }
        let mut bytes = serde_json::to_vec(line)?;
        bytes.push(b'\n');
        let mut file = File::options().append(true).create(true).open(&self.path)?;
        file.write_all(&bytes)
    }
}

/// The last `most` events of a log behind its byte `from`, and where it ends. A log that is
/// shorter than that was begun anew.
pub(crate) fn read(
    directory: &Path,
    from: u64,
    most: usize,
) -> std::io::Result<(Vec<EventLine>, u64)> {
    let path = directory.join("events.log");
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok((Vec::new(), 0)),
        Err(e) => return Err(e),
    };
    let length = file.metadata()?.len();
    let from = if from > length { 0 } else { from };
    file.seek(SeekFrom::Start(from))?;
    let mut all = std::collections::VecDeque::new();
    let mut end = from;
    let mut reader = BufReader::new(file);
    let mut line = String::new();
    while reader.read_line(&mut line)? > 0 {
        // Half a line is one that is being written.
        if !line.ends_with('\n') {
            break;
        }
        end += line.len() as u64;
        if let Ok(event) = serde_json::from_str(&line) {
            all.push_back(event);
            if all.len() > most {
                all.pop_front();
            }
        }
        line.clear();
    }
    Ok((all.into(), end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_read_from_where_the_reader_was() {
        let dir = tempfile::tempdir().unwrap();
        let log = EventLog::new(dir.path(), "a", "vm");
        assert_eq!(read(dir.path(), 0, 10).unwrap(), (Vec::new(), 0));
        for n in 0..5 {
            log.say("state", format!("number {n}"));
        }
        let (last, end) = read(dir.path(), 0, 2).unwrap();
        assert_eq!(last.len(), 2);
        assert_eq!(last[1].text, "number 4");
        assert_eq!(read(dir.path(), end, 10).unwrap().0, []);
        log.say("error", "x".repeat(10_000));
        let (new, _) = read(dir.path(), end, 10).unwrap();
        assert_eq!(new.len(), 1);
        assert_eq!(new[0].text.len(), MAX_TEXT);
        assert_eq!(read(dir.path(), u64::MAX, 10).unwrap().0.len(), 6);
    }
}
