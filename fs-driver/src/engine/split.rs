//! Two copies that will not come together: what their operators are told.

use std::collections::BTreeSet;

use twinfold_protocol::handshake::Role;
use twinfold_protocol::limits;
use twinfold_protocol::marks::Intent;
use twinfold_protocol::wire::{Account, Hello};

use super::{Engine, StandbyError};
use crate::state::Recovered;

impl Engine {
    /// What this node says of itself to the peer, in this role.
    pub(crate) fn hello(&self, role: Role) -> Result<Hello, StandbyError> {
        let record = self.copy.get();
        let (objects, bytes) = self.changed();
        Ok(Hello {
            versions: Hello::VERSIONS,
            name: self.settings.name.clone(),
            role,
            copy: record.copy,
            epoch: record.epoch,
            resume: match role {
                Role::Primary => None,
                Role::Secondary => self.standby_resume()?,
            },
            account: Account {
                mount: self.settings.mount.display().to_string(),
                alone_since: record.alone_since,
                objects,
                bytes,
            },
        })
    }

    /// How many objects, and bytes of file data in them, this node has changed or may have
    /// changed since it was together with its peer.
    fn changed(&self) -> (u64, u64) {
        let (mut objects, mut bytes) = noted(&self.recovered.lock());
        let own = self.own.lock();
        let core = self.core.lock();
        for map in [core.dirty(), core.suspect(), &own.dirty, &own.suspect] {
            objects.extend(map.objects().map(|(file, _)| file));
            objects.extend(map.directories().map(|(file, _)| file));
            bytes += map.block_bytes();
        }
        (objects.len() as u64, bytes)
    }
}

/// The objects that notes name, and the bytes of the extents of them.
fn noted(notes: &Recovered) -> (BTreeSet<twinfold_protocol::ids::FileId>, u64) {
    let (mut objects, mut bytes) = (BTreeSet::new(), 0);
    for intent in &notes.intents {
        match intent {
            Intent::Extent { file, .. } => {
                objects.insert(*file);
                bytes += limits::EXTENT;
            }
            Intent::Attributes { file } | Intent::File { file } => {
                objects.insert(*file);
            }
            Intent::Directory { directory } => {
                objects.insert(*directory);
            }
            Intent::NewIds { .. } => {}
        }
    }
    (objects, bytes)
}
