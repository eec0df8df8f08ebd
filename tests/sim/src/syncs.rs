//! Flushes of a node's store: a failed one is remembered, for it is told of once. Mirrors
//! the driver's `engine/syncs.rs`.

use twinfold_protocol::handshake::Role;
use twinfold_protocol::ids::{FileId, SessionId};

use crate::bugs::Bug;
use crate::disk::{Disk, Refusal};
use crate::world::{Node, World};

impl Node {
    /// Before a file is compared or moved by a source that may have lost something: memory shows
    /// what the disk has, or that is written once more. Mirrors the driver's `engine/doubt.rs`.
    pub(crate) fn make_sure(&mut self, file: FileId) {
        if self.doubtful || self.lossy {
            self.disk.make_sure(file);
        }
    }
}

impl World {
    /// Flushes the store.
    pub(crate) fn sync_store(&mut self, node: usize) -> Result<(), Refusal> {
        self.sync_counted(node, Disk::sync_all)
    }

    /// Flushes an object.
    pub(crate) fn sync_object(&mut self, node: usize, file: FileId) -> Result<(), Refusal> {
        self.sync_counted(node, |disk| disk.sync(file))
    }

    fn sync_counted(
        &mut self,
        node: usize,
        sync: impl FnOnce(&mut Disk) -> Result<(), Refusal>,
    ) -> Result<(), Refusal> {
        let done = sync(&mut self.nodes[node].disk);
        let secondary = self.nodes[node].role == Some(Role::Secondary);
        if secondary && self.has(Bug::SwallowSyncError) {
            return Ok(());
        }
        if done.is_err() {
            let n = &mut self.nodes[node];
            n.failed_syncs += 1;
            n.lossy = true;
            self.disk_failed(node);
        }
        done
    }

    /// A resync of the peer begins. What is known of failed flushes is asked for now, so that
    /// one that is told later has failed meanwhile. Mirrors the driver's `engine/doubt.rs`.
    pub(crate) fn begin_in_doubt(&mut self, node: usize, session: SessionId) {
        if self.nodes[node].lossy || self.nodes[node].doubtful {
            let _ = self.sync_store(node);
        }
        let n = &mut self.nodes[node];
        n.failed_before = Some((session, n.failed_syncs));
    }

    /// The peer is up to date. What was written once more has to be on the disk; if the disk
    /// has failed a flush since the resync began, the peer has everything, and this disk not.
    pub(crate) fn peer_ends_doubt(&mut self, node: usize, session: SessionId) {
        let failed = match self.nodes[node].failed_before {
            Some((begun, failed)) if begun == session => failed,
            _ => return,
        };
        if self.nodes[node].lossy || self.nodes[node].doubtful {
            let _ = self.sync_store(node);
        }
        if self.nodes[node].failed_syncs != failed {
            self.disk_failed(node);
        } else {
            let n = &mut self.nodes[node];
            (n.lossy, n.doubtful) = (false, false);
        }
    }
}
