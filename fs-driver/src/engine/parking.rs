//! Changes for which the window has no room wait here, not in the kernel's threads:
//! reads and everything else go on, however long the peer is away.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use twinfold_protocol::handshake::Role;

use super::{Engine, clock};

/// Changes that wait, at most. The kernel's callers bound them too: each has one.
/// Beyond it the call keeps the thread that brought it.
const MAX_PARKED: usize = 4096;

/// How often a parked change looks whether this node is still primary.
const LOOK: Duration = Duration::from_millis(100);

type Work = Box<dyn FnOnce(&Arc<Engine>) + Send>;

/// The changes that wait, oldest first.
#[derive(Default)]
pub(super) struct Parking {
    waiting: Mutex<Waiting>,
}

#[derive(Default)]
struct Waiting {
    queue: VecDeque<(usize, Work)>,
    /// A thread works on the queue.
    served: bool,
}

impl Engine {
    /// Runs `work`, which adds an op of `bytes` to the window: at once if there is
    /// room for it, else when there is. When this node ceases to be primary it runs
    /// as well, and is refused there.
    pub(super) fn admit(
        self: &Arc<Self>,
        bytes: usize,
        work: impl FnOnce(&Arc<Engine>) + Send + 'static,
    ) {
        if self.core.lock().has_room(clock::now(), bytes) {
            return work(self);
        }
        let mut waiting = self.parking.waiting.lock();
        if waiting.queue.len() >= MAX_PARKED {
            drop(waiting);
            self.wait_for_room(bytes);
            return work(self);
        }
        waiting.queue.push_back((bytes, Box::new(work)));
        if waiting.served {
            return;
        }
        let engine = self.clone();
        let started = std::thread::Builder::new()
            .name("parked".into())
            .spawn(move || engine.serve_parked());
        match started {
            Ok(_) => waiting.served = true,
            Err(error) => {
                tracing::warn!(%error, "a call waits in the thread that brought it");
                let last = waiting.queue.pop_back();
                drop(waiting);
                if let Some((bytes, work)) = last {
                    self.wait_for_room(bytes);
                    work(self);
                }
            }
        }
    }

    /// Whether changes wait, or one of them is just being made.
    pub(super) fn has_parked(&self) -> bool {
        self.parking.waiting.lock().served
    }

    fn serve_parked(self: Arc<Self>) {
        loop {
            let (bytes, work) = {
                let mut waiting = self.parking.waiting.lock();
                match waiting.queue.pop_front() {
                    Some(next) => next,
                    None => {
                        waiting.served = false;
                        return;
                    }
                }
            };
            self.wait_for_room(bytes);
            work(&self);
        }
    }

    /// Waits until the window has room for `bytes` more, or until this node is not
    /// primary any more. A connected peer that makes no progress is dropped by its
    /// deadline, and one that is lost is waited for until somebody decides.
    fn wait_for_room(&self, bytes: usize) {
        let mut core = self.core.lock();
        while !core.has_room(clock::now(), bytes)
            && self.role() == Some(Role::Primary)
            && !self.is_away()
        {
            core.wait_for(&self.room, LOOK);
        }
    }
}
