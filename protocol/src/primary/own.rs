//! What this node has changed in its own copy and the other one may not have: what it
//! keeps of its term when the term ends.

use super::{Primary, resync};
use crate::marks::DirtyMap;
use crate::op::Op;

/// Marks of one copy.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct OwnMarks {
    /// What is known to differ, or has been written without a peer.
    pub dirty: DirtyMap,
    /// What may differ.
    pub suspect: DirtyMap,
}

impl OwnMarks {
    /// Whether nothing is marked.
    pub fn is_empty(&self) -> bool {
        self.dirty.is_empty() && self.suspect.is_empty()
    }

    /// All of it.
    pub fn united(self) -> DirtyMap {
        let mut all = self.suspect;
        all.unite(self.dirty);
        all
    }
}

impl<R> Primary<R> {
    /// Takes everything that the other copy may lack of this one, whatever the link: what
    /// is marked, what it has not provably flushed, and what is on its way. For the end of
    /// a term: no change is accepted any more, and no resync holds marks that it has taken
    /// and not submitted. Nothing that is held is acknowledged by it.
    pub fn take_own_marks(&mut self) -> OwnMarks {
        let mut own = OwnMarks {
            dirty: std::mem::take(&mut self.dirty),
            suspect: std::mem::take(&mut self.suspect),
        };
        own.dirty.unite(std::mem::take(&mut self.differing));
        if let Some(directory) = self.listing {
            own.dirty.mark_directory(directory);
        }
        own.suspect.unite(std::mem::take(&mut self.fresh));
        own.suspect.unite(std::mem::take(&mut self.older));
        for (op, old_size) in self.window.unapplied_ops() {
            own.suspect.mark_op(op, old_size);
            resync::mark_moved(&mut own.suspect, op, old_size);
        }
        own.suspect.bound();
        own
    }

    /// A change failed here and may have left something of itself: it is compared. What it
    /// would have ended may still be there, and what is marked of that stays marked.
    pub fn failed_here(&mut self, op: &Op, old_size: u64) {
        match op {
            Op::RemoveDirectory { parent, name, .. } => {
                self.suspect.mark_name(*parent, name);
                self.suspect.mark_attributes(*parent);
            }
            op => self.suspect.mark_op(op, old_size),
        }
        self.suspect.bound();
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::ids::{FileId, Seq, SessionId};
    use crate::limits::BLOCK;
    use crate::op::{Name, Payload, Stability};
    use crate::primary::{AckMode, Config, Link};
    use crate::time::{Instant, Timestamp};
    use crate::wire::Receipt;

    const SECOND: std::time::Duration = std::time::Duration::from_secs(1);

    const CONFIG: Config = Config {
        mode: AckMode::Memory,
        stall: SECOND,
        op: SECOND,
        sync: SECOND,
        bridge: SECOND,
    };

    fn write(block: u64) -> Op {
        Op::Write {
            file: FileId(5000),
            offset: block * BLOCK,
            stability: Stability::Mode,
            clear_privileges: false,
            data: Payload::from(Bytes::from_static(b"x")),
        }
    }

    #[test]
    fn own_marks_are_what_is_marked_what_is_not_flushed_there_and_what_is_on_its_way() {
        let at = Instant(1);
        let mut p: Primary<()> = Primary::new(CONFIG, DirtyMap::default());
        p.submit(at, Timestamp::default(), write(0), 0);
        p.failed_here(&write(2), 0);
        p.peer_ready(at, SessionId(1));
        assert_eq!(p.link(), Link::Syncing);
        // Applied there, and not applied there.
        p.submit(at, Timestamp::default(), write(4), 0);
        p.submit(at, Timestamp::default(), write(6), 0);
        while p.next_op().is_some() {}
        let applied = Seq(p.next_seq().0 - 2);
        let receipt = Receipt::Applied {
            applied,
            durable: Seq(0),
        };
        p.receipt(at, receipt).unwrap();
        let own = p.take_own_marks();
        let spans = |map: &DirtyMap| map.object(FileId(5000)).unwrap().blocks.spans(0);
        let block = |n: u64| (n * BLOCK, BLOCK);
        assert_eq!(spans(&own.dirty), [block(0)]);
        assert_eq!(spans(&own.suspect), [block(2), block(4), block(6)]);
        assert_eq!(spans(&own.united()), [0, 2, 4, 6].map(block));
    }

    #[test]
    fn what_is_marked_in_a_directory_outlives_its_removal_that_failed() {
        let name = |text: &str| Name::new(text.as_bytes()).unwrap();
        let directory = FileId(5000);
        let mut p: Primary<()> = Primary::new(CONFIG, DirtyMap::default());
        let removal = |name| Op::RemoveDirectory {
            parent: FileId::ROOT,
            name,
            file: directory,
        };
        let mut known = DirtyMap::default();
        known.mark_name(directory, &name("gone"));
        known.mark_attributes(directory);
        p.add_suspects(known.clone());
        p.failed_here(&removal(name("d")), 0);
        let mut own = p.take_own_marks().united();
        assert!(own.object(directory).is_some_and(|marks| marks.attributes));
        assert_eq!(own.take_names(directory), known.take_names(directory));
        assert!(own.take_names(FileId::ROOT).is_some());
        assert!(own.take_attributes(FileId::ROOT));
    }

    #[test]
    fn what_was_forsaken_is_suspect_and_so_is_what_comes_after_it() {
        let at = Instant(1);
        let mut p: Primary<()> = Primary::new(CONFIG, DirtyMap::default());
        p.peer_ready(at, SessionId(1));
        p.submit(at, Timestamp::default(), write(2), 0);
        assert!(p.forsake().is_empty());
        assert_eq!(p.link(), Link::Forsaken);
        p.submit(at, Timestamp::default(), write(4), 0);
        let own = p.take_own_marks().united();
        let spans = own.object(FileId(5000)).unwrap().blocks.spans(0);
        assert_eq!(spans, [2, 4].map(|n| (n * BLOCK, BLOCK)));
    }

    #[test]
    fn a_map_that_grew_too_large_says_everything_and_takes_no_memory() {
        let mut map = DirtyMap::default();
        // Far from each other: a row of them would share one place.
        for n in 0..=crate::limits::MAX_MARKED_PLACES as u64 {
            map.mark_attributes(FileId(n * 64));
        }
        map.bound();
        assert!(map.is_everything() && !map.is_empty());
        assert_eq!(map.counts(), (0, 0));
        map.mark_op(&write(1), 0);
        assert_eq!(map.counts(), (0, 0));
        let mut other = DirtyMap::default();
        other.mark_attributes(FileId(1));
        other.unite(map);
        assert!(other.is_everything());
        assert!(other.take_everything() && other.is_empty());
    }
}
