//! What a losing copy had, kept before it is overwritten (promise 5).
//!
//! ```text
//! base/archive/20261128-190511-1a2b3c4d/     time (UTC) and generation of the copy
//!   about.json        what it is of, and how much is in it
//!   manifest          one line of JSON for each changed object or name
//!   files/...         the changed objects under their paths, to be read and copied
//!   removed/...       what the resync took from this copy, and what it may have changed of that
//!   held              what would go there, until the resync has ended
//! base/archive/NAME.part                     one that is not complete
//! ```
//!
//! An archive is complete and on the disk before the first byte of the copy changes; it
//! gets its name then. What is left of an incomplete one is removed at the next attempt.
//!
//! A file is kept whole if it is new, changed all over, or not large, or where the file
//! system shares its blocks (`kept` is `whole`). Of another one the changed ranges are
//! kept, in a sparse file of the same size (`ranges`): what lies between them is not the
//! file's. Directories, links, special files, hard links, owners, modes, times and extended
//! attributes are kept as they are. What was removed has a line in the manifest only. What
//! is not kept whole, or only has another name, is in the copy all the same, and stays there
//! unless the other copy has removed it (`removed.rs`).

mod copy;
mod keep;
mod list;
mod removed;

pub use keep::{Object, Reason, Wanted, keep};
pub use list::{Archive, Limits, drop_archive, enforce, list, manifest, remove_incomplete};
pub(crate) use list::{beside, move_out};
pub use removed::{end_removed, keep_removed};

use serde::{Deserialize, Serialize};

/// Of which archive this is.
const ABOUT: &str = "about.json";
/// What changed.
const MANIFEST: &str = "manifest";
/// The objects.
const FILES: &str = "files";
/// What the resync removed.
const REMOVED: &str = "removed";
/// The end of the name of one that is not complete.
const PART: &str = ".part";

/// What an archive is of, and how much is in it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct About {
    /// Version of this format.
    pub format: u32,
    /// When it was made, in seconds since 1970.
    pub time: u64,
    /// The module of the copy.
    pub module: String,
    /// The generation of the copy.
    pub generation: String,
    /// Generations of the other copy it had gone on from.
    pub bases: Vec<String>,
    /// Why it was made.
    pub reason: Reason,
    /// All of the copy is kept: what it had changed was not known.
    pub everything: bool,
    /// Lines in the manifest.
    pub changes: u64,
    /// Files kept, whole or in part.
    pub files: u64,
    /// Bytes of file data kept.
    pub bytes: u64,
    /// Objects that the resync took from the copy, in `removed`. Known when it has ended.
    #[serde(default)]
    pub removed: u64,
}

/// The version of the format written here.
const FORMAT: u32 = 1;

/// How an object or a name was changed, as far as that is known.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Change {
    /// The name was removed, or the object renamed to another one.
    Removed,
    /// The object is new, or the other copy may lack it.
    New,
    /// The name was given to an object: renamed, linked, or new.
    Named,
    /// Data.
    Data,
    /// Owner, mode, times, extended attributes, or size.
    Attributes,
    /// Names in the directory, it is not known which.
    Names,
}

impl Change {
    /// As it stands in a manifest.
    pub fn word(self) -> &'static str {
        match self {
            Change::Removed => "removed",
            Change::New => "new",
            Change::Named => "named",
            Change::Data => "data",
            Change::Attributes => "attributes",
            Change::Names => "names",
        }
    }
}

/// How much of an object is kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kept {
    /// All of it.
    Whole,
    /// Its attributes and the changed ranges.
    Ranges,
    /// Another name in the archive leads to it.
    Linked,
    /// There is nothing to keep.
    Nothing,
}

impl Kept {
    /// As it stands in a manifest.
    pub fn word(self) -> &'static str {
        match self {
            Kept::Whole => "whole",
            Kept::Ranges => "ranges",
            Kept::Linked => "linked",
            Kept::Nothing => "nothing",
        }
    }
}

/// One line of a manifest.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Line {
    /// Where in the folder, and below `files`.
    pub path: String,
    /// The same in hexadecimal digits, where it is not UTF-8.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub path_hex: Option<String>,
    /// The object's id.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub id: Option<String>,
    /// How it was changed.
    pub changes: Vec<Change>,
    /// Changed ranges of a file, first byte and length; none if all of it may have changed.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub ranges: Vec<(u64, u64)>,
    /// How much of it is kept.
    pub kept: Kept,
}
