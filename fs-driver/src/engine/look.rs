//! A secondary's session, and what is told of it while its lock is held.
//!
//! The lock is held while an op is applied and while a note is synced: for as long as the
//! disk takes. Who only looks, the controller above all, does not wait for that: a node that
//! tells nothing counts as dead, and a slow disk is no reason to kill its driver.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use twinfold_protocol::ids::SessionId;

use super::Standby;
use crate::bell::Bell;

/// How long a look waits for what is being done: nearly always it is over at once, and
/// nothing is told of a moment that is past.
const PATIENCE: Duration = Duration::from_secs(1);

/// What is told of a session.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Seen {
    pub(super) session: SessionId,
    pub(super) syncing: bool,
    pub(super) current: bool,
}

impl Seen {
    fn of(standby: &Standby) -> Seen {
        Seen {
            session: standby.session(),
            syncing: standby.is_syncing(),
            current: standby.is_current(),
        }
    }
}

/// The session of a secondary, if there is one.
pub(super) struct Session {
    standby: Mutex<Option<Standby>>,
    /// As it was when the lock was last let go. Locked by nobody who locks anything else.
    seen: Mutex<Option<Seen>>,
    /// Rings when that has changed.
    changes: Arc<Bell>,
}

impl Session {
    pub(super) fn new(changes: &Arc<Bell>) -> Session {
        Session {
            standby: Mutex::default(),
            seen: Mutex::default(),
            changes: changes.clone(),
        }
    }

    pub(super) fn lock(&self) -> Held<'_> {
        Held {
            standby: self.standby.lock(),
            seen: &self.seen,
            changes: &self.changes,
        }
    }

    /// It, if nobody has it at this moment.
    pub(super) fn try_lock(&self) -> Option<MutexGuard<'_, Option<Standby>>> {
        self.standby.try_lock()
    }

    /// What is told of it. Nothing changes while the second part is kept, if it is there; if
    /// not, somebody has been changing something for long, and has not finished.
    pub(super) fn look(&self) -> (Option<Seen>, Option<MutexGuard<'_, Option<Standby>>>) {
        match self.standby.try_lock_for(PATIENCE) {
            Some(standby) => (standby.as_ref().map(Seen::of), Some(standby)),
            None => (*self.seen.lock(), None),
        }
    }
}

/// The session, for the one who may change it.
pub(super) struct Held<'a> {
    standby: MutexGuard<'a, Option<Standby>>,
    seen: &'a Mutex<Option<Seen>>,
    changes: &'a Bell,
}

impl Deref for Held<'_> {
    type Target = Option<Standby>;

    fn deref(&self) -> &Option<Standby> {
        &self.standby
    }
}

impl DerefMut for Held<'_> {
    fn deref_mut(&mut self) -> &mut Option<Standby> {
        &mut self.standby
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        let now = self.standby.as_ref().map(Seen::of);
        let before = std::mem::replace(&mut *self.seen.lock(), now);
        if before != now {
            self.changes.ring();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;
    use std::time::Duration;

    use super::super::bed::Bed;

    #[test]
    fn a_disk_that_hangs_under_an_op_keeps_nobody_from_seeing_how_the_node_is() {
        let bed = Bed::current();
        let before = bed.engine.standing();
        assert!(before.current && before.session.is_some());
        let held = bed.engine.standby.lock();
        let (tell, told) = channel();
        let engine = bed.engine.clone();
        std::thread::spawn(move || {
            engine.status();
            tell.send(engine.standing()).unwrap();
        });
        let standing = told.recv_timeout(Duration::from_secs(60)).unwrap();
        assert_eq!(standing, before);
        drop(held);
        assert_eq!(bed.engine.standing(), before);
    }
}
