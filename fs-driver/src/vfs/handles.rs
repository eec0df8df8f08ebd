//! Open files and directories.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::RwLock;
use twinfold_protocol::ids::FileId;

use super::told::Told;
use crate::error::{FsError, FsResult};
use crate::store::{DirectoryHandle, Node, Opening};

/// The number of an open handle.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct HandleId(pub u64);

/// How a file is open.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct OpenHow {
    /// For writing.
    pub write: bool,
    /// Past the page cache (`O_DIRECT`): the kernel passes each call on as it is.
    pub direct: bool,
}

/// Something open.
#[derive(Debug)]
pub enum Handle {
    /// A file.
    File {
        /// Which.
        opening: Opening,
        /// How.
        how: OpenHow,
    },
    /// A directory.
    Directory {
        /// Which.
        directory: DirectoryHandle,
        /// What its listing has told here.
        told: Told,
    },
    /// A file that was opened when this node's disk had failed already.
    Away {
        /// Which.
        file: FileId,
        /// How.
        how: OpenHow,
    },
    /// The same for a directory.
    AwayDirectory(FileId),
}

/// Parts of the table, each with a lock of its own.
const SHARDS: usize = 16;

#[derive(Debug, Default)]
pub(super) struct Handles {
    next: AtomicU64,
    shards: [RwLock<HashMap<u64, Arc<Handle>>>; SHARDS],
}

impl Handles {
    fn shard(&self, id: u64) -> &RwLock<HashMap<u64, Arc<Handle>>> {
        &self.shards[(id % SHARDS as u64) as usize]
    }

    pub(super) fn insert(&self, handle: Handle) -> HandleId {
        let id = self.next.fetch_add(1, Ordering::Relaxed) + 1;
        self.shard(id).write().insert(id, Arc::new(handle));
        HandleId(id)
    }

    pub(super) fn get(&self, id: HandleId) -> FsResult<Arc<Handle>> {
        let shard = self.shard(id.0).read();
        shard.get(&id.0).cloned().ok_or(FsError::BadHandle)
    }

    pub(super) fn node(&self, id: HandleId) -> Option<Arc<Node>> {
        match &*self.get(id).ok()? {
            Handle::File { opening, .. } => Some(opening.node().clone()),
            Handle::Directory { directory, .. } => Some(directory.node().clone()),
            Handle::Away { .. } | Handle::AwayDirectory(_) => None,
        }
    }

    pub(super) fn remove(&self, id: HandleId) {
        self.shard(id.0).write().remove(&id.0);
    }
}
