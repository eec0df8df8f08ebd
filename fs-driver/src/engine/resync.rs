//! The source's side of a resync: what is marked is read here and put into the
//! stream, while the application works. See [`twinfold_protocol::primary`] for the
//! rules that make one pass enough.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use twinfold_protocol::attr::{Attributes, Kind};
use twinfold_protocol::compare::OBJECT_WEIGHT;
use twinfold_protocol::handshake::Method;
use twinfold_protocol::ids::{FileId, Seq, SessionId};
use twinfold_protocol::limits;
use twinfold_protocol::marks::{DirtyMap, Names};
use twinfold_protocol::op::{Listing, Name, Object, Op, PutEntry};
use twinfold_protocol::primary::Link;
use twinfold_protocol::wire::Holds;

use super::compare::{Ask, Look};
use super::{Engine, OwnChanges, clock};
use crate::state::Recovered;
use crate::store::{Listed, Node};

/// How long the resync sleeps at most while its window is full.
pub(super) const WINDOW_WAIT: Duration = Duration::from_millis(20);

/// Bytes a resync op counts for when it carries no file data.
const SMALL_OP: usize = 4096;

/// What a target tells of its copy before a resync.
#[derive(Debug, Default)]
pub(crate) struct Target {
    /// Its notes and marks.
    pub(crate) own: OwnChanges,
    /// What is in its store.
    pub(crate) holds: Holds,
}

/// Files marked from end to end whose sizes are looked at before a resync, at most.
const MAX_SIZED: usize = 16_384;

/// How a resync ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ResyncError {
    /// The connection was lost or given up; all marks are kept.
    #[error("the resync was interrupted")]
    Interrupted,
    /// The source could not be read; all marks are kept.
    #[error("the source cannot be read: {0}")]
    Source(#[from] io::Error),
}

/// About what an op takes on the wire, in bytes.
fn on_the_wire(op: &Op) -> u64 {
    let entries = match op {
        Op::PutDirectory { entries, .. } => entries.len(),
        _ => 1,
    };
    (op.payload_len() + 100 * entries) as u64
}

/// Entries of a directory for one op.
#[derive(Default)]
struct Batch {
    entries: Vec<PutEntry>,
    bytes: usize,
}

impl Batch {
    fn push(&mut self, name: Name, object: Option<Object>) {
        let target = object.as_ref().map_or(0, |o| o.target.len());
        self.bytes += name.as_bytes().len() + target;
        self.entries.push(PutEntry { name, object });
    }

    fn is_full(&self) -> bool {
        self.entries.len() >= limits::MAX_PUT_ENTRIES || self.bytes >= limits::MAX_PUT_BYTES
    }

    fn take(&mut self) -> Vec<PutEntry> {
        self.bytes = 0;
        std::mem::take(&mut self.entries)
    }
}

impl Engine {
    /// Brings the peer of `session` up to date; `target` is what it told. `opened` is
    /// called with the number of the first op once frames may flow, and tells whether there
    /// is still somebody to send them. Blocks until nothing is left to move.
    pub(crate) fn run_resync(
        self: &Arc<Self>,
        session: SessionId,
        method: Method,
        target: Target,
        ask: Ask,
        opened: impl FnOnce(Seq) -> bool,
    ) -> Result<(), ResyncError> {
        let _marks = self.resyncing.lock();
        self.begin_in_doubt(session);
        let mine = self.recovered.lock().clone();
        let (own, everything) = {
            let mut core = self.core.lock();
            let (own, mut everything) = (core.take_suspects(), false);
            core.mark(|dirty| everything = dirty.take_everything());
            everything |= own.is_everything();
            (own, everything)
        };
        // A write that was under way when the peer was left is among them, and may still not be
        // in the file: compared now, it would be found equal.
        self.gate.wait_for_all_before();
        let Target { own: theirs, holds } = target;
        let unclear = mine.damaged || theirs.damaged || everything;
        let look = match (method, holds) {
            (Method::Marks, _) if unclear => Look::By(Method::Compare),
            // An interrupted first synchronisation goes on where it was.
            (Method::Everything, Holds::Objects) => Look::By(Method::Compare),
            (Method::Everything, Holds::Seed) => Look::Paths,
            (method, _) => Look::By(method),
        };
        self.tracker.begin(clock::now());
        self.counters.comparing(true);
        self.changes.ring();
        let whole = self.whole_bytes();
        let noted = mine.intents.union(&theirs.notes).copied();
        let mut suspects = own.clone();
        suspects.unite(theirs.marks);
        let compared = self.compare(look, noted, &suspects, &ask);
        drop(suspects);
        self.counters.comparing(false);
        self.changes.ring();
        let missing = match compared {
            Ok(missing) => missing,
            Err(e) => {
                let mut core = self.core.lock();
                core.add_suspects(own);
                if everything {
                    core.mark(DirtyMap::mark_everything);
                }
                return Err(e.into());
            }
        };
        // No more questions: the connection goes on to the op stream.
        drop(ask);
        let first = {
            let mut core = self.core.lock();
            if core.link() != Link::Alone {
                return Err(ResyncError::Interrupted);
            }
            // So much was written meanwhile that it is not told apart any more.
            if core.dirty().is_everything() {
                return Err(io::Error::other("too much was changed during the comparison").into());
            }
            core.peer_ready(clock::now(), session);
            let (objects, directories) = core.dirty().counts();
            let bytes = core.dirty().block_bytes() + missing + whole;
            // What the peer lacks is made, and then gets its attributes.
            let made = core.dirty().count_unknown();
            let others = (objects + made + directories) as u64 * OBJECT_WEIGHT;
            self.tracker.moves(clock::now(), bytes, bytes + others);
            core.next_seq()
        };
        // What an earlier run left is in the map now, and stays there until it is moved.
        *self.recovered.lock() = Recovered::default();
        *self.damage.lock() = None;
        if !opened(first) {
            // The connection ended with the last question.
            self.peer_disconnected(session, "the connection was lost");
            return Err(ResyncError::Interrupted);
        }
        let moved = self.move_all(session);
        if moved.is_ok() {
            tracing::info!(%session, "everything is moved; the peer flushes");
        }
        moved
    }

    /// Bytes of the files that are marked from end to end, for the progress: a guess from
    /// the first of them when there are many.
    fn whole_bytes(&self) -> u64 {
        let (files, all) = {
            let core = self.core.lock();
            let files: Vec<_> = core.dirty().whole().take(MAX_SIZED).collect();
            (files, core.dirty().count_whole() as u64)
        };
        let size = |file: &FileId| {
            let node = self.store.object(*file).ok().flatten()?;
            (node.kind() == Kind::Regular).then(|| node.size().ok())?
        };
        let seen: u64 = files.iter().filter_map(size).sum();
        match files.len() as u64 {
            0 => 0,
            looked => (u128::from(seen) * u128::from(all) / u128::from(looked)) as u64,
        }
    }

    fn move_all(self: &Arc<Self>, session: SessionId) -> Result<(), ResyncError> {
        let mut flushed = false;
        loop {
            self.move_names(session)?;
            self.move_objects(session)?;
            self.settle_times();
            if !self.is_moved(session)? {
                continue;
            }
            if !flushed {
                self.flush_first(session)?;
                flushed = true;
                continue;
            }
            if self.finish(session)? {
                self.tracker.flushes(clock::now());
                self.output.notify_one();
                return Ok(());
            }
        }
    }

    fn move_names(&self, session: SessionId) -> Result<(), ResyncError> {
        loop {
            self.wait_for_window(session, SMALL_OP)?;
            let Some(directory) = self.core.lock().next_directory() else {
                return Ok(());
            };
            let node = match self.store.object(directory)? {
                Some(node) if node.kind() == Kind::Directory => node,
                _ => {
                    self.core.lock().object_is_gone(directory);
                    continue;
                }
            };
            self.tracker.worked(clock::now(), OBJECT_WEIGHT);
            let names = self.names.lock();
            let taken = self.core.lock().take_names(directory);
            match taken {
                None => {}
                Some(Names::Some(set)) => {
                    // At most `MAX_MARKED_NAMES`, so the lock is held for a moment only.
                    let moved = self.put_names(session, &node, set.iter());
                    drop(names);
                    if moved.is_err() {
                        let mut back = DirtyMap::default();
                        set.iter().for_each(|n| back.mark_name(directory, n));
                        self.core.lock().give_back(back);
                        return moved;
                    }
                }
                Some(Names::All) => {
                    // Names that change from here on are marked one by one until the
                    // listing has been sent, so nobody has to wait for it.
                    drop(names);
                    let moved = self.put_listing(session, &node);
                    if moved.is_err() && node.is_orphan() {
                        // It was removed while it was listed.
                        self.core.lock().object_is_gone(directory);
                        continue;
                    }
                    if moved.is_err() {
                        let mut back = DirtyMap::default();
                        back.mark_directory(directory);
                        self.core.lock().give_back(back);
                        return moved;
                    }
                }
            }
        }
    }

    fn put_names<'a>(
        &self,
        session: SessionId,
        node: &Arc<Node>,
        names: impl Iterator<Item = &'a Name>,
    ) -> Result<(), ResyncError> {
        let mut batch = Batch::default();
        for name in names {
            let object = match self.store.find_own(node, name)? {
                Some(entry) => Some(self.object_of(&entry)?),
                None => None,
            };
            batch.push(name.clone(), object);
            if batch.is_full() {
                self.put_entries(session, node, Listing::Names, batch.take())?;
            }
        }
        if batch.entries.is_empty() {
            return Ok(());
        }
        self.put_entries(session, node, Listing::Names, batch.take())
    }

    fn put_listing(&self, session: SessionId, node: &Arc<Node>) -> Result<(), ResyncError> {
        let handle = self.store.open_directory(node.clone())?;
        let mut batch = Batch::default();
        let (mut at, mut first) = (0, true);
        loop {
            let listed = self.store.list(&handle, at)?;
            let last = listed.is_empty();
            for entry in listed {
                at = entry.next;
                let Listed::Name(name) = entry.name else {
                    continue;
                };
                if let Some(object) = self.store.find_own(node, &name)? {
                    batch.push(name, Some(self.object_of(&object)?));
                }
                if batch.is_full() {
                    self.wait_for_window(session, SMALL_OP)?;
                    let listing = Listing::Whole { first, last: false };
                    self.put_entries(session, node, listing, batch.take())?;
                    first = false;
                }
            }
            if last {
                // A change that is done here, but has no place in the order yet, may have been
                // listed: it gets its place before this one, as one that is only marked.
                let _names = self.names.lock();
                let listing = Listing::Whole { first, last: true };
                return self.put_entries(session, node, listing, batch.take());
            }
        }
    }

    fn put_entries(
        &self,
        session: SessionId,
        node: &Node,
        listing: Listing,
        entries: Vec<PutEntry>,
    ) -> Result<(), ResyncError> {
        let made = {
            let core = self.core.lock();
            let objects = entries.iter().filter_map(|e| e.object.as_ref());
            let marks = objects.filter_map(|o| core.dirty().object(o.file));
            marks.filter(|m| m.unknown).count() as u64
        };
        self.tracker.worked(clock::now(), made * OBJECT_WEIGHT);
        self.put(
            session,
            Op::PutDirectory {
                directory: node.file(),
                listing,
                entries,
            },
        )
    }

    pub(super) fn put(&self, session: SessionId, op: Op) -> Result<(), ResyncError> {
        self.touch(&op);
        self.pace.spent(clock::now(), on_the_wire(&op));
        let mut core = self.core.lock();
        let there = core.session() == Some(session);
        if !core.submit_resync(clock::now(), clock::wall(), op) || !there {
            return Err(ResyncError::Interrupted);
        }
        drop(core);
        self.output.notify_one();
        Ok(())
    }

    fn move_objects(&self, session: SessionId) -> Result<(), ResyncError> {
        let mut after = None;
        loop {
            let (next, names) = {
                let core = self.core.lock();
                (core.next_object(after), core.next_directory())
            };
            // New names came up: they go first, so that what is new has its place.
            if names.is_some() {
                return Ok(());
            }
            let Some(file) = next else { return Ok(()) };
            after = Some(file);
            self.tracker.worked(clock::now(), OBJECT_WEIGHT);
            match self.store.object(file)? {
                Some(node) => self.move_object(session, &node)?,
                None => self.core.lock().object_is_gone(file),
            }
        }
    }

    fn move_object(&self, session: SessionId, node: &Arc<Node>) -> Result<(), ResyncError> {
        let file = node.file();
        if node.is_orphan() {
            self.core.lock().object_is_gone(file);
            return Ok(());
        }
        self.wait_for_window(session, SMALL_OP)?;
        {
            // Size and attributes first: the data then fits.
            let _names = self.names.lock();
            let _whole = node.ranges.lock_all();
            if !node.is_orphan() {
                self.put_object(session, node)?;
            }
        }
        if node.kind() != Kind::Regular {
            // Only files have data; a mark "all blocks" on anything else says no more.
            while self.core.lock().take_run(file, u32::MAX, 0).is_some() {}
            return Ok(());
        }
        // It was there before this folder was replicated. What lies behind would be taken for
        // moved.
        if node.size()? > limits::MAX_MAPPED_FILE {
            return Err(io::Error::new(
                io::ErrorKind::FileTooLarge,
                format!("{file} is larger than any file that can be replicated: make it smaller"),
            )
            .into());
        }
        if !self.move_data(session, node)? {
            return Ok(());
        }
        // The data just moved changed the times there.
        self.touch(&Op::PutHole {
            file,
            offset: 0,
            length: 0,
        });
        Ok(())
    }

    /// An object's attributes, and its extended attributes: together as far as they fit
    /// into one frame. The caller holds the names and the object.
    fn put_object(&self, session: SessionId, node: &Node) -> Result<(), ResyncError> {
        let object = self.object_of(node)?;
        let file = object.file;
        let (mut xattrs, mut more, mut bytes) = (Vec::new(), Vec::new(), 0);
        for (name, value) in self.store.xattrs(node)? {
            bytes += name.len() + value.len() + 8;
            if bytes <= limits::MAX_PUT_XATTRS {
                xattrs.push((name, value));
            } else {
                more.push(Op::PutXattr { file, name, value });
            }
        }
        // Only now that nothing can fail but the session, which marks it again.
        self.core.lock().take_attributes(file);
        self.put(session, Op::PutObject { object, xattrs })?;
        more.into_iter().try_for_each(|op| self.put(session, op))
    }

    fn object_of(&self, node: &Node) -> io::Result<Object> {
        let a: Attributes = node.attributes()?;
        let target = match a.kind {
            Kind::Symlink => self.store.link_target(node)?.into(),
            _ => bytes::Bytes::new(),
        };
        Ok(Object {
            file: a.file,
            kind: a.kind,
            target,
            mode: a.mode,
            uid: a.uid,
            gid: a.gid,
            size: if a.kind == Kind::Regular { a.size } else { 0 },
            accessed: a.accessed,
            modified: a.modified,
        })
    }

    /// Waits until so many bytes may be put in flight, or as many as one piece may have at the
    /// time. Returns how many.
    pub(super) fn wait_for_window(
        &self,
        session: SessionId,
        most: usize,
    ) -> Result<usize, ResyncError> {
        let mut core = self.core.lock();
        loop {
            if core.link() != Link::Syncing || core.session() != Some(session) {
                return Err(ResyncError::Interrupted);
            }
            let now = clock::now();
            if core.flush_is_due() {
                core.begin_flush(now, clock::wall());
                self.output.notify_one();
            }
            let pause = self.pace.wait(now);
            let bytes = most.min(core.resync_piece(now));
            let room = core.resync_room(now) >= bytes && core.has_space(bytes);
            if room && pause.is_zero() {
                return Ok(bytes);
            }
            let wait = match room {
                true => pause.min(WINDOW_WAIT),
                false => WINDOW_WAIT,
            };
            core.wait_for(&self.room, wait);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::bed::{made, opened, syncing};
    use super::*;

    fn name(name: &str) -> Name {
        Name::new(name.as_bytes()).unwrap()
    }

    fn wire(engine: &Engine) -> Vec<Op> {
        let mut core = engine.core.lock();
        let ops = std::iter::from_fn(|| core.next_op().map(|s| s.op));
        ops.collect()
    }

    fn listed(op: &Op) -> Vec<&[u8]> {
        match op {
            Op::PutDirectory { entries, .. } => entries.iter().map(|e| e.name.as_bytes()).collect(),
            other => panic!("{other:?}"),
        }
    }

    /// Its range is marked, and the peer, which came back at once, has the same as the file
    /// still has.
    #[test]
    fn a_write_that_is_under_way_when_the_peer_is_left_is_compared_when_it_is_done() {
        let (engine, _place) = opened(true);
        engine.start_primary(false).unwrap();
        let root = engine.store.node(FileId::ROOT).unwrap();
        let object = made(engine.new_id().0, Kind::Regular);
        let node = engine.store.create(&root, &name("f"), &object).unwrap();
        let data = bytes::Bytes::from_static(b"before").into();
        engine.store.write(&node, 0, &data).unwrap();
        let mut marks = DirtyMap::default();
        marks.mark_data(object.file, 0, 6);
        engine.core.lock().add_suspects(marks);
        let under_way = engine.gate.enter();
        let (questions, mut asked) = tokio::sync::mpsc::channel(16);
        let (answered, answers) = std::sync::mpsc::channel();
        let resyncs = {
            let engine = engine.clone();
            let ask = Ask { questions, answers };
            std::thread::spawn(move || {
                let (session, target) = (SessionId(1), Target::default());
                engine.run_resync(session, Method::Marks, target, ask, |_| false)
            })
        };
        std::thread::sleep(Duration::from_millis(300));
        assert!(asked.try_recv().is_err(), "it is not compared yet");
        drop(under_way);
        assert!(asked.blocking_recv().is_some());
        drop(answered);
        assert!(resyncs.join().unwrap().is_err(), "nobody answers");
    }

    /// It is in the listing, so it must not be told once more.
    #[test]
    fn a_change_that_has_no_place_in_the_order_yet_gets_it_before_the_listing_ends() {
        let (engine, _place) = opened(true);
        engine.start_primary(false).unwrap();
        let root = engine.store.node(FileId::ROOT).unwrap();
        engine.core.lock().mark(|m| m.mark_directory(FileId::ROOT));
        let session = syncing(&engine);
        assert_eq!(
            engine.core.lock().take_names(FileId::ROOT),
            Some(Names::All)
        );
        // The change is in the middle of it.
        let names = engine.names.lock();
        let object = made(engine.new_id().0, Kind::Regular);
        engine.store.create(&root, &name("z"), &object).unwrap();
        let lists = {
            let (engine, root) = (engine.clone(), root.clone());
            std::thread::spawn(move || engine.put_listing(session, &root).unwrap())
        };
        // It has listed by then, or lists later: then it ends no earlier.
        std::thread::sleep(Duration::from_millis(300));
        let create = Op::Create {
            parent: FileId::ROOT,
            name: name("z"),
            object,
        };
        engine.commit(create, 0, Box::new(|| ()));
        drop(names);
        lists.join().unwrap();
        let ops = wire(&engine);
        assert_eq!(ops.len(), 1, "{ops:?}");
        assert_eq!(listed(&ops[0]), [b"z"]);
        // Whatever was listed: the name is moved as it is now.
        assert!(engine.core.lock().dirty().names(FileId::ROOT).is_some());
        drop(engine);
    }

    /// What is just being made has its id a moment later, and what was put into the store behind
    /// the mount never: neither keeps the rest from the peer.
    #[test]
    fn what_has_no_id_is_left_out_of_a_listing() {
        let (engine, _place) = opened(true);
        engine.start_primary(false).unwrap();
        let data = engine.store.layout().data();
        std::fs::write(data.join("behind"), b"x").unwrap();
        let root = engine.store.node(FileId::ROOT).unwrap();
        let object = made(engine.new_id().0, Kind::Regular);
        engine.store.create(&root, &name("mine"), &object).unwrap();
        let mut seen = Vec::new();
        let see = |name: Name, _| {
            seen.push(name);
            Ok(())
        };
        engine.store.each(&root, see).unwrap();
        assert_eq!(seen, [name("mine")]);
        let session = syncing(&engine);
        engine.put_listing(session, &root).unwrap();
        let both = [name("behind"), name("mine")];
        engine.put_names(session, &root, both.iter()).unwrap();
        let ops = wire(&engine);
        assert_eq!(listed(&ops[0]), [b"mine"]);
        let Op::PutDirectory { entries, .. } = &ops[1] else {
            panic!("{ops:?}")
        };
        assert!(entries[0].object.is_none() && entries[1].object.is_some());
        // The application is told, as before.
        let refused = engine.store.lookup(&root, &name("behind")).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::InvalidData);
    }
}
