//! What a verify found, in words and numbers, with the path at which it lies.

use std::collections::HashSet;
use std::io;
use std::sync::Arc;

use serde::Serialize;
use twinfold_protocol::attr::Kind;
use twinfold_protocol::ids::FileId;
use twinfold_protocol::marks::DirtyMap;
use twinfold_protocol::op::Name;
use twinfold_protocol::time::Timestamp;
use twinfold_protocol::verify::{Difference, Lead, Question};

use super::super::Engine;

/// Findings kept in words; more are counted only.
const MAX_FINDINGS: usize = 10_000;

/// Where the walk came upon an object.
#[derive(Clone, Debug)]
pub(super) enum Place {
    /// Under this name.
    Entry {
        /// In which directory.
        parent: FileId,
        /// Under which name.
        name: Name,
    },
    /// Not by a name: it is the root, or it moved past the walk.
    Somewhere,
}

impl Place {
    /// What cannot be changed in an object is repaired by making it anew, under its name.
    pub(super) fn mark(&self, map: &mut DirtyMap, differences: &[Difference]) {
        if let Place::Entry { parent, name } = self
            && let [Difference::Kind { .. } | Difference::Target] = differences
        {
            map.mark_name(*parent, name);
        }
    }
}

/// What is wrong.
#[derive(Debug)]
pub(super) enum Problem {
    /// The copies differ.
    Differs(Difference),
    /// Something without an id is in the primary's store.
    Foreign,
    /// A copy cannot be read.
    Unreadable {
        /// The primary's.
        here: bool,
        /// What the operating system said.
        reason: String,
    },
}

/// One thing a verify found.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Finding {
    /// Where, from the root of the folder on.
    pub path: String,
    /// What: `data`, `missing`, `extra`, `other`, `kind`, `target`, `mode`, `uid`, `gid`, `size`,
    /// `modified`, `xattr`, `foreign` or `unreadable`.
    pub what: &'static str,
    /// Which bytes, if it is about bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub offset: Option<u64>,
    /// How many.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub length: Option<u64>,
    /// For a person.
    pub text: String,
    /// A repair has moved it to the secondary.
    pub repaired: bool,
}

/// Everything a verify found.
#[derive(Debug, Default)]
pub(super) struct Report {
    /// The first of them.
    pub(super) findings: Vec<Finding>,
    /// All that differ.
    pub(super) differences: u64,
    /// What could not be read.
    pub(super) unreadable: u64,
    /// What a repair cannot move.
    pub(super) foreign: u64,
    seen: HashSet<(String, String)>,
}

impl Report {
    pub(super) fn add(&mut self, finding: Finding) {
        if let (Some(last), Some(offset), Some(length)) =
            (self.findings.last_mut(), finding.offset, finding.length)
            && (last.what, &last.path) == (finding.what, &finding.path)
            && last.what == "data"
            && last.offset.zip(last.length).map(|(o, l)| o + l) == Some(offset)
        {
            let (from, whole) = (last.offset.unwrap_or(0), last.length.unwrap_or(0) + length);
            last.length = Some(whole);
            last.text = bytes_text(from, whole, "differ");
            return;
        }
        // A file that is missing is missed under its name and by its id.
        if self.findings.len() < MAX_FINDINGS
            && !self
                .seen
                .insert((finding.path.clone(), finding.text.clone()))
        {
            return;
        }
        match finding.what {
            "unreadable" => self.unreadable += 1,
            "foreign" => {
                self.foreign += 1;
                self.differences += 1;
            }
            _ => self.differences += 1,
        }
        if self.findings.len() < MAX_FINDINGS {
            self.findings.push(finding);
        }
    }
}

fn bytes_text(offset: u64, length: u64, verb: &str) -> String {
    format!("bytes {offset} to {} {verb}", offset + length)
}

fn kind_word(kind: Kind) -> &'static str {
    match kind {
        Kind::Regular => "a file",
        Kind::Directory => "a directory",
        Kind::Symlink => "a symbolic link",
        Kind::Fifo => "a named pipe",
        Kind::Socket => "a socket",
        Kind::CharDevice(_) => "a character device",
        Kind::BlockDevice(_) => "a block device",
    }
}

fn number(what: &str, mine: u64, theirs: u64) -> String {
    match what {
        "mode" => format!("mode is {mine:04o} here and {theirs:04o} on the secondary"),
        _ => format!("{what} is {mine} here and {theirs} on the secondary"),
    }
}

fn time(t: Timestamp) -> String {
    format!("{}.{:09}", t.secs, t.nanos)
}

/// A word for programs and a text for people.
fn words(problem: &Problem, question: &Question) -> (&'static str, String) {
    match problem {
        Problem::Foreign => (
            "foreign",
            "came into this node's store behind the mount and is not replicated; a repair does not \
             touch it"
                .into(),
        ),
        Problem::Unreadable { here, reason } => {
            let place = if *here { "here" } else { "on the secondary" };
            let what = match question {
                Question::Data { offset, length, .. } => {
                    bytes_text(*offset, *length, "cannot be read")
                }
                Question::Object { .. } => "its attributes cannot be read".into(),
                Question::Listing { .. } | Question::Name { .. } => {
                    "its entry cannot be read".into()
                }
            };
            ("unreadable", format!("{what} {place}: {reason}"))
        }
        Problem::Differs(difference) => match difference {
            Difference::Missing => ("missing", "missing on the secondary".into()),
            Difference::Data { offset, length } => ("data", bytes_text(*offset, *length, "differ")),
            Difference::Kind { mine, theirs } => (
                "kind",
                format!(
                    "is {} here and {} on the secondary",
                    kind_word(*mine),
                    kind_word(*theirs)
                ),
            ),
            Difference::Target => ("target", "the link points to another target".into()),
            Difference::Number { what, mine, theirs } => (what, number(what, *mine, *theirs)),
            Difference::Modified { mine, theirs } => (
                "modified",
                format!(
                    "last change is {} here and {} on the secondary",
                    time(*mine),
                    time(*theirs)
                ),
            ),
            Difference::Xattr { name } => (
                "xattr",
                format!(
                    "extended attribute {} differs",
                    String::from_utf8_lossy(name)
                ),
            ),
            Difference::Name { mine, theirs } => match (mine, theirs) {
                (_, Lead::Nothing) => ("missing", "missing on the secondary".into()),
                (Lead::Nothing, _) => ("extra", "only on the secondary".into()),
                (_, Lead::Foreign) => (
                    "other",
                    "came into the secondary's store behind its mount".into(),
                ),
                (_, Lead::Object(_)) => ("other", "leads to another object on the secondary".into()),
            },
        },
    }
}

pub(super) fn finding(
    engine: &Arc<Engine>,
    question: &Question,
    place: &Place,
    problem: &Problem,
) -> Finding {
    let (what, text) = words(problem, question);
    let range = match (problem, question) {
        (Problem::Differs(Difference::Data { offset, length }), _) => Some((*offset, *length)),
        (Problem::Unreadable { .. }, Question::Data { offset, length, .. }) => {
            Some((*offset, *length))
        }
        _ => None,
    };
    let path = match question {
        Question::Name { directory, name } => engine.path_below(*directory, name),
        Question::Listing { directory } => engine.path_of(*directory),
        Question::Data { file, .. } | Question::Object { file } => match place {
            Place::Entry { parent, name } => engine.path_below(*parent, name),
            Place::Somewhere => engine.path_of(*file),
        },
    };
    let file = match question {
        Question::Data { file, .. } | Question::Object { file } => *file,
        Question::Listing { directory } | Question::Name { directory, .. } => *directory,
    };
    Finding {
        path: path.unwrap_or_else(|e| {
            tracing::debug!(%file, error = %e, "no path was found");
            format!("(object {file})")
        }),
        what,
        offset: range.map(|r| r.0),
        length: range.map(|r| r.1),
        text,
        repaired: false,
    }
}

impl Engine {
    fn path_below(&self, directory: FileId, name: &Name) -> io::Result<String> {
        let mut path = self.path_of(directory)?;
        if !path.ends_with('/') {
            path.push('/');
        }
        path.push_str(&name.to_string());
        Ok(path)
    }

    /// A path from the root to an object: up from a directory, down to anything else.
    fn path_of(&self, file: FileId) -> io::Result<String> {
        /// Deeper trees are not named to the root.
        const MAX_DEPTH: usize = 512;
        let gone = || io::Error::from(io::ErrorKind::NotFound);
        let mut names = Vec::new();
        let mut at = file;
        while at != FileId::ROOT && names.len() < MAX_DEPTH {
            let node = self.store.peek(at)?.ok_or_else(gone)?;
            let (parent, name) = match node.kind() {
                Kind::Directory => {
                    let parent = self.store.parent_of(&node)?;
                    let above = self.store.peek(parent)?.ok_or_else(gone)?;
                    (parent, self.store.name_of(above, at)?.ok_or_else(gone)?)
                }
                _ => self.find_name(at)?.ok_or_else(gone)?,
            };
            names.push(name.to_string());
            at = parent;
        }
        names.reverse();
        Ok(format!("/{}", names.join("/")))
    }

    /// Looks for a name of an object in the whole tree.
    fn find_name(&self, file: FileId) -> io::Result<Option<(FileId, Name)>> {
        let mut directories = vec![FileId::ROOT];
        while let Some(directory) = directories.pop() {
            let Some(node) = self.store.peek(directory)? else {
                continue;
            };
            let handle = self.store.open_directory(node)?;
            let mut from = 0;
            loop {
                let (next, page) = self.store.visit_page(&handle, from, usize::MAX)?;
                for entry in page {
                    match (entry.lead, entry.object) {
                        (Lead::Object(found), _) if found == file => {
                            return Ok(Some((directory, entry.name)));
                        }
                        (Lead::Object(below), Some(node)) if node.kind() == Kind::Directory => {
                            directories.push(below);
                        }
                        _ => {}
                    }
                }
                if next == 0 {
                    break;
                }
                from = next;
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data(path: &str, offset: u64, length: u64) -> Finding {
        Finding {
            path: path.into(),
            what: "data",
            offset: Some(offset),
            length: Some(length),
            text: bytes_text(offset, length, "differ"),
            repaired: false,
        }
    }

    #[test]
    fn neighbouring_ranges_of_one_file_are_one_finding() {
        let mut report = Report::default();
        report.add(data("/a", 0, 4096));
        report.add(data("/a", 4096, 8192));
        report.add(data("/a", 40960, 10));
        report.add(data("/b", 40970, 10));
        let texts: Vec<_> = report.findings.iter().map(|f| f.text.as_str()).collect();
        assert_eq!(
            texts,
            [
                "bytes 0 to 12288 differ",
                "bytes 40960 to 40970 differ",
                "bytes 40970 to 40980 differ"
            ]
        );
        assert_eq!(report.differences, 3);
    }

    #[test]
    fn what_is_found_twice_is_reported_once() {
        let missing = Finding {
            what: "missing",
            text: "missing on the secondary".into(),
            offset: None,
            length: None,
            ..data("/a", 0, 0)
        };
        let mut report = Report::default();
        report.add(missing.clone());
        report.add(missing);
        assert_eq!((report.differences, report.findings.len()), (1, 1));
    }
}
