//! Giving back the space of large files whose last name the peer has removed.
//!
//! The last descriptor of a file without a name takes its blocks back to the file system when
//! it is closed: seconds for a large file on a slow disk. The thread that applies what the peer
//! sends must not wait for that; it also tells the peer that this node is alive.

use std::sync::{Arc, OnceLock};

use crossbeam::channel::{Receiver, Sender, bounded};

use super::node::Node;

/// Bytes on the disk from which on a file is closed elsewhere. On ext4 a bitmap to be read
/// stands for 128 MiB: anything smaller takes a few reads at most.
const LARGE: u64 = 256 << 20;

/// Files that wait to be closed, at most: each has a descriptor. Beyond it who comes closes.
const MAX_WAITING: usize = 64;

/// The thread that closes large files, once there was one; it ends with this.
#[derive(Debug, Default)]
pub(super) struct Freeing(OnceLock<Sender<Arc<Node>>>);

impl Freeing {
    /// Lets go of an object without a name.
    pub(super) fn free(&self, node: Arc<Node>) {
        if !is_large(&node) {
            return;
        }
        let queue = self.0.get_or_init(|| {
            let (queue, waiting): (_, Receiver<Arc<Node>>) = bounded(MAX_WAITING);
            let closes = move || waiting.into_iter().for_each(drop);
            let started = std::thread::Builder::new()
                .name("free".into())
                .spawn(closes);
            if let Err(error) = started {
                // Its end of the queue is gone: who comes closes.
                tracing::warn!(%error, "large files are closed where they are removed");
            }
            queue
        });
        // One that has no place there comes back, and is closed here.
        let _ = queue.try_send(node);
    }
}

/// Whether it takes long to give back its space.
fn is_large(node: &Node) -> bool {
    // Units of 512 bytes, whatever the file system's block is.
    rustix::fs::fstat(node.path()).is_ok_and(|stat| stat.st_blocks as u64 >= LARGE / 512)
}

#[cfg(test)]
mod tests {
    use twinfold_protocol::attr::Kind;
    use twinfold_protocol::ids::FileId;
    use twinfold_protocol::op::{AllocateMode, Name, NewObject, Op};

    use super::super::scratch::scratch;
    use super::*;

    /// Needs root, for the attributes `trusted.*`, and a disk that has them.
    #[test]
    fn a_large_file_that_loses_its_last_name_is_not_closed_where_that_is_applied() {
        let (_place, store) = scratch();
        let (queue, waiting) = bounded(1);
        store.freeing.0.set(queue).unwrap();
        let name = Name::new(b"image").unwrap();
        let remove = |counter: u64, size: u64| {
            let file = FileId(5000 + counter);
            let object = NewObject {
                file,
                kind: Kind::Regular,
                target: bytes::Bytes::new(),
                mode: 0o600,
                umask: 0,
                uid: 0,
                gid: 0,
            };
            let node = store.create(&store.root, &name, &object).unwrap();
            let mode = AllocateMode::Allocate;
            store.allocate(&node, mode, 0, size).unwrap();
            drop(node);
            let unlink = Op::Unlink {
                parent: FileId::ROOT,
                name: name.clone(),
                file,
            };
            store.apply(&unlink, false).unwrap();
        };
        remove(1, 4096);
        assert!(waiting.try_recv().is_err(), "a small one costs nothing");
        remove(2, LARGE);
        let node = waiting.try_recv().unwrap();
        assert_eq!((node.file(), Arc::strong_count(&node)), (FileId(5002), 1));
        // One has a place, the next one none.
        remove(3, LARGE);
        remove(4, LARGE);
        assert_eq!(waiting.try_iter().count(), 1);
    }
}
