//! The primary's core behind its lock. Who follows this node's standing is told when the
//! relation to the peer has changed, whoever changed it and why.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex, MutexGuard};
use twinfold_protocol::ids::SessionId;
use twinfold_protocol::primary::{Link, Primary};

use super::Reply;
use crate::bell::Bell;

/// What of the core is part of the standing.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Seen {
    link: Link,
    asking: bool,
    session: Option<SessionId>,
}

impl Seen {
    fn of(primary: &Primary<Reply>) -> Seen {
        Seen {
            link: primary.link(),
            asking: primary.is_asking(),
            session: primary.session(),
        }
    }
}

/// The core.
pub(super) struct Core {
    /// And what of it was told last.
    inner: Mutex<(Primary<Reply>, Seen)>,
    changes: Arc<Bell>,
}

impl Core {
    pub(super) fn new(primary: Primary<Reply>, changes: &Arc<Bell>) -> Core {
        let seen = Seen::of(&primary);
        Core {
            inner: Mutex::new((primary, seen)),
            changes: changes.clone(),
        }
    }

    pub(super) fn lock(&self) -> Held<'_> {
        Held {
            inner: self.inner.lock(),
            changes: &self.changes,
        }
    }
}

/// The core, for the one who may change it.
pub(super) struct Held<'a> {
    inner: MutexGuard<'a, (Primary<Reply>, Seen)>,
    changes: &'a Bell,
}

impl Held<'_> {
    /// Lets the core go until the condition is signalled, or for so long.
    pub(super) fn wait_for(&mut self, condition: &Condvar, most: Duration) {
        self.tell();
        condition.wait_for(&mut self.inner, most);
    }

    fn tell(&mut self) {
        let (primary, told) = &mut *self.inner;
        let now = Seen::of(primary);
        if *told != now {
            *told = now;
            self.changes.ring();
        }
    }
}

impl Deref for Held<'_> {
    type Target = Primary<Reply>;

    fn deref(&self) -> &Primary<Reply> {
        &self.inner.0
    }
}

impl DerefMut for Held<'_> {
    fn deref_mut(&mut self) -> &mut Primary<Reply> {
        &mut self.inner.0
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.tell();
    }
}
