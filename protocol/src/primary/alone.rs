//! Going on without the peer: who may decide that, and what becomes of what waits for it.

use super::{Link, Primary, Window, resync};
use crate::ids::Seq;
use crate::marks::DirtyMap;

impl<R> Primary<R> {
    /// The peer has declared, durably, that its copy is not up to date any more.
    /// Nobody can promote it, so nothing needs to be asked.
    pub fn peer_left(&mut self, flushed: bool) {
        if flushed {
            // What it applied is on its disk; what it did not apply is still in the window.
            self.fresh = DirtyMap::default();
            self.older = DirtyMap::default();
        }
        match self.link {
            Link::Alone | Link::Leaving | Link::Yielded | Link::Forsaken => {}
            Link::Syncing => self.back_to_alone(),
            _ => self.leave(),
        }
    }

    /// The peer's process has come back without the session it had: it holds a copy that
    /// nobody can promote any more without force, so nothing needs to be asked. False
    /// when there is no session that could miss it.
    pub fn peer_restarted(&mut self) -> bool {
        let settled = matches!(self.link, Link::Leaving | Link::Yielded | Link::Forsaken);
        if !self.peer_counts() || settled {
            return false;
        }
        self.leave();
        true
    }

    /// The decision to go on alone cannot be made durable, or the peer has the right to go on:
    /// what is held is never acknowledged. The replies are the caller's to end otherwise; one
    /// that comes with a later vote is dropped. What is here all the same is suspect.
    pub fn forsake(&mut self) -> Vec<R> {
        self.link = Link::Forsaken;
        self.session = None;
        self.asked = false;
        self.overdue = None;
        self.checkpoint = None;
        self.began = self.window.next();
        let window = std::mem::replace(&mut self.window, Window::new(Seq(1)));
        let mut held = std::mem::take(&mut self.replies);
        let suspect = &mut self.suspect;
        self.window = window.abandon(
            |op, old_size| {
                suspect.mark_op(op, old_size);
                resync::mark_moved(suspect, op, old_size);
            },
            &mut held,
        );
        held
    }

    /// The new generation is durable: what was held is released, what the peer may
    /// lack is suspect.
    pub fn alone_is_durable(&mut self) {
        debug_assert_eq!(self.link, Link::Leaving);
        self.back_to_alone();
    }

    pub(super) fn back_to_alone(&mut self) {
        let fresh = std::mem::take(&mut self.fresh);
        let older = std::mem::take(&mut self.older);
        self.suspect.unite(fresh);
        self.suspect.unite(older);
        self.verify_over();
        if let Some(directory) = self.listing.take() {
            self.dirty.mark_directory(directory);
        }
        let window = std::mem::replace(&mut self.window, Window::new(Seq(1)));
        // Even what it never acknowledged it may have applied.
        let suspect = &mut self.suspect;
        self.window = window.abandon(
            |op, old_size| {
                suspect.mark_op(op, old_size);
                resync::mark_moved(suspect, op, old_size);
            },
            &mut self.replies,
        );
        self.checkpoint = None;
        self.flushing = super::Flushing::default();
        self.session = None;
        self.link = Link::Alone;
    }
}
