//! What the listing of an open directory has told, for when the peer goes on with it.
//!
//! Positions in a listing are a store's own: the peer's begins anew. It leaves out what was
//! told before, else names would come twice.

use std::collections::HashSet;

use parking_lot::Mutex;

use crate::store::Listed;

/// Entries that an open directory remembers, at most. Behind them a listing in whose middle the
/// peer takes over tells names twice.
const MOST: usize = 16_384;

/// The entries an open directory has told.
#[derive(Debug, Default)]
pub struct Told(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    entries: HashSet<Listed>,
    /// The peer has listed.
    moved: bool,
}

impl Told {
    /// This node lists from `from` on.
    pub(super) fn here(&self, from: u64) {
        if from == 0 {
            self.0.lock().entries.clear();
        }
    }

    /// The peer lists: from which position on.
    pub(super) fn there(&self, from: u64) -> u64 {
        let mut state = self.0.lock();
        if from == 0 {
            state.entries.clear();
        }
        match std::mem::replace(&mut state.moved, true) {
            true => from,
            false => 0,
        }
    }

    /// This node has told an entry.
    pub(super) fn tell(&self, entry: Listed) {
        let mut state = self.0.lock();
        if state.entries.len() < MOST {
            state.entries.insert(entry);
        }
    }

    /// Whether this node has told an entry, in the listing that goes on.
    pub(super) fn has(&self, entry: &Listed) -> bool {
        self.0.lock().entries.contains(entry)
    }
}

#[cfg(test)]
mod tests {
    use twinfold_protocol::op::Name;

    use super::*;

    fn named(name: &str) -> Listed {
        Listed::Name(Name::new(name.as_bytes()).unwrap())
    }

    #[test]
    fn what_was_told_here_is_left_out_until_the_listing_begins_anew() {
        let told = Told::default();
        told.here(0);
        told.tell(named("old"));
        told.here(0);
        told.tell(Listed::Here);
        told.tell(named("a"));
        told.here(2);
        told.tell(named("b"));
        assert_eq!(told.there(3), 0, "positions here say nothing there");
        assert!(told.has(&Listed::Here) && told.has(&named("a")) && told.has(&named("b")));
        assert!(!told.has(&named("old")) && !told.has(&named("c")));
        assert_eq!(told.there(7), 7);
        assert!(told.has(&named("a")));
        assert_eq!(told.there(0), 0);
        assert!(!told.has(&named("a")));
    }

    #[test]
    fn a_listing_that_has_not_begun_leaves_nothing_out() {
        let told = Told::default();
        told.here(0);
        told.tell(named("a"));
        assert_eq!(told.there(0), 0);
        assert!(!told.has(&named("a")));
    }

    #[test]
    fn no_more_is_remembered_than_the_limit_says() {
        let told = Told::default();
        for n in 0..=MOST {
            told.tell(named(&n.to_string()));
        }
        assert!(told.has(&named("0")));
        assert!(!told.has(&named(&MOST.to_string())));
    }
}
