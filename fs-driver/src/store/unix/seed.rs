//! A copy of the data that came here by another way, and has no ids of the module: at the
//! first resync its objects get the ids that the source has under the same paths.
//!
//! ```text
//! state/seed      an empty file, as long as that is not done
//! ```
//!
//! Until then its objects have ids of an epoch that no node ever takes
//! ([`Epoch::SEED`]), so that none of them can be taken for one of the module's.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;

use rustix::fs::OFlags;
use twinfold_protocol::attr::Kind;
use twinfold_protocol::ids::Epoch;
use twinfold_protocol::wire::MatchEntry;

use super::node::Node;
use super::sys::{self, Handle};
use super::{Layout, Store, xattrs};

fn marker(layout: &Layout) -> std::path::PathBuf {
    layout.state().join("seed")
}

/// Notes that the copy is a seed.
pub fn mark_as_seed(layout: &Layout) -> io::Result<()> {
    let made = crate::state::private()
        .write(true)
        .create(true)
        .truncate(false)
        .open(marker(layout))?;
    made.sync_all()?;
    crate::state::sync_directory(&layout.state())
}

impl Store {
    /// Whether the copy is a seed.
    pub fn is_seed(&self) -> bool {
        marker(&self.layout).exists()
    }

    /// It is an ordinary copy from now on. Should the file stay, nobody looks at it: the
    /// copy has a generation.
    pub fn seed_ended(&self) {
        match std::fs::remove_file(marker(&self.layout)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(error = %e, "the note that this copy is a seed stays behind");
            }
            _ => {}
        }
    }

    /// Whether there is no object at all, in its place or aside.
    pub fn is_empty(&self) -> io::Result<bool> {
        for directory in [self.root.path(), self.aside.as_fd()] {
            let listing = sys::reopen(directory, OFlags::RDONLY | OFlags::DIRECTORY)?;
            for entry in rustix::fs::Dir::new(listing)? {
                if !matches!(entry?.file_name().to_bytes(), b"." | b"..") {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    /// Whether a name leads to the object that it leads to on the source; an object of the
    /// seed of the same kind becomes that object. Other kinds than files and directories
    /// are made anew: they have no data.
    pub fn match_entry(&self, parent: &Arc<Node>, entry: &MatchEntry) -> io::Result<bool> {
        let Some(here) = self.find(parent, &entry.name)? else {
            return Ok(false);
        };
        if here.kind() != entry.kind || !matches!(here.kind(), Kind::Regular | Kind::Directory) {
            return Ok(false);
        }
        if here.file() == entry.file {
            // Its place in the index may have been lost in a crash.
            let handle = Handle::of(here.path())?;
            if self.index.get(entry.file)? != Some(handle) {
                self.index.put(entry.file, &handle)?;
            }
            return Ok(true);
        }
        // It was matched already under another name, or the source's object was: they are
        // linked in another way there.
        if here.file().epoch() != Epoch::SEED || self.object(entry.file)?.is_some() {
            return Ok(false);
        }
        xattrs::replace_id(here.path(), entry.file)?;
        self.index.put(entry.file, &Handle::of(here.path())?)?;
        self.index.remove(here.file());
        self.nodes.lock().cached.remove(&here.file());
        Ok(true)
    }
}
