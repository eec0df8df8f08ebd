//! Changes of file contents.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use twinfold_protocol::handshake::Role;
use twinfold_protocol::ids::Seq;
use twinfold_protocol::limits;
use twinfold_protocol::op::{AllocateMode, Op, Payload, Stability};

use super::foresight::Asked;
use super::habit::Target;
use super::{Engine, Reply};
use crate::error::{FsError, FsResult};
use crate::polling::What;
use crate::store::{Node, is_disk_failure, may_have_changed};

/// Bytes one call copies at most: a longer copy comes as more calls, so that no
/// single op keeps the peer busy for long.
const MAX_COPY: u64 = 16 << 20;

/// How far a file may have to reach for `op`.
fn reaches_to(op: &Op) -> u64 {
    match op {
        Op::Truncate { size, .. } => *size,
        // Behind the end there is nothing to punch.
        Op::Allocate {
            mode: AllocateMode::PunchHole,
            ..
        } => 0,
        Op::Allocate { offset, length, .. } => offset.saturating_add(*length),
        _ => 0,
    }
}

impl Engine {
    /// Writes `data` at `offset`. The op is shipped first and applied here while it
    /// travels; should the local write fail, the peer is brought back to what is here.
    pub fn write(
        self: &Arc<Self>,
        node: &Arc<Node>,
        offset: u64,
        data: Bytes,
        stability: Stability,
        clear_privileges: bool,
        reply: impl FnOnce(FsResult<()>) + Send + 'static,
    ) {
        let node = node.clone();
        self.admit(data.len(), move |engine| {
            engine.write_now(&node, offset, data, stability, clear_privileges, reply);
        });
    }

    fn write_now(
        self: &Arc<Self>,
        node: &Arc<Node>,
        offset: u64,
        data: Bytes,
        stability: Stability,
        clear_privileges: bool,
        reply: impl FnOnce(FsResult<()>) + Send + 'static,
    ) {
        let length = data.len() as u64;
        let data = Payload::from(data);
        // Shipped first, it would be the peer that refuses, and be dropped for it.
        if offset.saturating_add(length) > self.store.largest_file() {
            return reply(Err(FsError::TooLarge));
        }
        let pass = self.gate.enter();
        if let Err(e) = self.writable() {
            return reply(Err(e));
        }
        let range = node.ranges.lock(offset, length);
        let op = Op::Write {
            file: node.file(),
            offset,
            stability,
            clear_privileges,
            data: data.clone(),
        };
        if node.is_orphan() {
            let done = self.write_here(node, offset, &data, clear_privileges);
            return reply(done.map_err(FsError::from));
        }
        if let Err(e) = self.ensure_intents(&op, 0) {
            return reply(Err(e));
        }
        let submitted = self.submit(op);
        let written = self.write_here(node, offset, &data, clear_privileges);
        // Only now: times read before the write would be the old ones.
        self.touch_file(node.file());
        match written {
            Ok(()) if stability == Stability::Mode => {
                drop(range);
                self.foresee(node);
                drop(pass);
                self.vote(submitted.seq, Box::new(move || reply(Ok(()))));
            }
            Ok(()) => {
                drop(range);
                drop(pass);
                let (engine, node) = (self.clone(), node.clone());
                self.run_sync_job(move || {
                    let done = engine.sync_file(&node, stability == Stability::Data);
                    engine.vote_synced(submitted.seq, done, reply);
                });
            }
            // The peer has it, or will; whether that counts is known when it has taken over.
            Err(e)
                if is_disk_failure(&e)
                    && self.disk_failed_in((node, offset, length), "a write", &e) =>
            {
                drop(range);
                drop(pass);
                self.vote(submitted.seq, Box::new(|| ()));
                reply(Err(FsError::Moved));
            }
            Err(e) => {
                self.vote(submitted.seq, Box::new(|| ()));
                self.range_as_it_is(node, offset, length);
                drop(range);
                let reply = Box::new(move || reply(Err(e.into())));
                self.end_as_it_is(node, clear_privileges, reply);
            }
        }
    }

    fn write_here(
        &self,
        node: &Node,
        offset: u64,
        data: &Payload,
        clear_privileges: bool,
    ) -> io::Result<()> {
        self.store.write(node, offset, data)?;
        if clear_privileges {
            self.store.clear_privileges(node)?;
        }
        Ok(())
    }

    /// The local vote for a submitted op. Returns whether the peer's is all that is missing, and
    /// nothing else is on its way there.
    pub(super) fn vote(&self, seq: Option<Seq>, reply: Reply) -> bool {
        let (ready, alone) = match seq {
            None => (Some(reply), false),
            Some(seq) => {
                let now = super::clock::now();
                let mut core = self.core.lock();
                let ready = core.local_done(now, seq, reply);
                (ready, core.in_flight().0 <= 1)
            }
        };
        let waits = ready.is_none();
        if let Some(reply) = ready {
            reply();
        }
        waits && alone
    }

    /// The local vote for a sync. A failure is told at once: it waits for nobody's vote. One that
    /// ended well after this disk had failed says nothing: the kernel tells of a failure once.
    fn vote_synced(
        &self,
        seq: Option<Seq>,
        done: io::Result<()>,
        reply: impl FnOnce(FsResult<()>) + Send + 'static,
    ) {
        match done {
            Ok(()) if self.is_away() => {
                self.vote(seq, Box::new(|| ()));
                reply(Err(FsError::Moved));
            }
            Ok(()) => {
                let waits = self.vote(seq, Box::new(move || reply(Ok(()))));
                // The peer's disk needs about as long.
                if waits && self.polling.expect(What::Sync) {
                    self.polling.begin();
                }
            }
            Err(e) => {
                self.vote(seq, Box::new(|| ()));
                // Whatever it failed with: it is done where the data is now.
                let moved = self.is_away() && !is_disk_failure(&e);
                reply(Err(if moved { FsError::Moved } else { e.into() }));
            }
        }
    }

    /// `ftruncate(2)`.
    pub fn truncate(
        self: &Arc<Self>,
        node: &Arc<Node>,
        size: u64,
        clear_privileges: bool,
        reply: impl FnOnce(FsResult<()>) + Send + 'static,
    ) {
        let op = Op::Truncate {
            file: node.file(),
            size,
            clear_privileges,
        };
        self.change_whole(node, op, reply, move |engine, node| {
            engine.store.truncate(node, size)?;
            if clear_privileges {
                engine.store.clear_privileges(node)?;
            }
            Ok(())
        });
    }

    /// `fallocate(2)`.
    pub fn allocate(
        self: &Arc<Self>,
        node: &Arc<Node>,
        mode: AllocateMode,
        offset: u64,
        length: u64,
        reply: impl FnOnce(FsResult<()>) + Send + 'static,
    ) {
        let op = Op::Allocate {
            file: node.file(),
            mode,
            offset,
            length,
        };
        self.change_whole(node, op, reply, move |engine, node| {
            engine.store.allocate(node, mode, offset, length)
        });
    }

    /// A change that may move the end of the file: nothing else is done to it meanwhile.
    fn change_whole(
        self: &Arc<Self>,
        node: &Arc<Node>,
        op: Op,
        reply: impl FnOnce(FsResult<()>) + Send + 'static,
        apply: impl FnOnce(&Engine, &Node) -> io::Result<()> + Send + 'static,
    ) {
        let node = node.clone();
        self.admit(0, move |engine| {
            engine.change_whole_now(&node, op, reply, apply);
        });
    }

    fn change_whole_now(
        &self,
        node: &Arc<Node>,
        op: Op,
        reply: impl FnOnce(FsResult<()>) + Send + 'static,
        apply: impl FnOnce(&Engine, &Node) -> io::Result<()>,
    ) {
        if reaches_to(&op) > self.store.largest_file() {
            return reply(Err(FsError::TooLarge));
        }
        let _pass = self.gate.enter();
        if let Err(e) = self.writable() {
            return reply(Err(e));
        }
        let _whole = node.ranges.lock_all();
        let old_size = match node.size() {
            Ok(size) => size,
            Err(e) => return reply(Err(e.into())),
        };
        if node.is_orphan() {
            return reply(apply(self, node).map_err(FsError::from));
        }
        if let Err(e) = self.ensure_intents(&op, old_size) {
            return reply(Err(e));
        }
        match apply(self, node) {
            Ok(()) => self.commit(op, old_size, Box::new(move || reply(Ok(())))),
            Err(e) => {
                // A failed allocation may have changed a part, and has set the times: the
                // peer learns what is here now.
                self.touch(&op);
                let size = node.size().unwrap_or(old_size);
                let all = (node, 0, limits::MAX_OFFSET);
                let moved =
                    is_disk_failure(&e) && self.disk_failed_in(all, "a change of a file", &e);
                if may_have_changed(&e) {
                    self.core.lock().failed_here(&op, old_size);
                }
                if !moved
                    && may_have_changed(&e)
                    && let Op::Allocate {
                        mode:
                            AllocateMode::PunchHole
                            | AllocateMode::ZeroRange
                            | AllocateMode::ZeroRangeKeepSize,
                        offset,
                        length,
                        ..
                    } = op
                {
                    self.changed_in_part(node, offset, length);
                }
                if moved || size == old_size {
                    return reply(Err(e.into()));
                }
                let op = Op::Truncate {
                    file: node.file(),
                    size,
                    clear_privileges: false,
                };
                self.commit(op, old_size, Box::new(move || reply(Err(e.into()))));
            }
        }
    }

    /// `copy_file_range(2)`: both nodes copy. The reply tells the bytes copied.
    pub fn copy_range(
        self: &Arc<Self>,
        (from, from_offset): (&Arc<Node>, u64),
        (to, to_offset): (&Arc<Node>, u64),
        length: u64,
        reply: impl FnOnce(FsResult<u64>) + Send + 'static,
    ) {
        let Some(room) = self.store.largest_file().checked_sub(to_offset) else {
            return reply(Err(FsError::TooLarge));
        };
        if room == 0 && length > 0 {
            return reply(Err(FsError::TooLarge));
        }
        let length = length.min(MAX_COPY).min(room);
        let (from, to) = (from.clone(), to.clone());
        self.admit(0, move |engine| {
            engine.copy_range_now((&from, from_offset), (&to, to_offset), length, reply);
        });
    }

    fn copy_range_now(
        &self,
        (from, from_offset): (&Arc<Node>, u64),
        (to, to_offset): (&Arc<Node>, u64),
        length: u64,
        reply: impl FnOnce(FsResult<u64>) + Send + 'static,
    ) {
        let _pass = self.gate.enter();
        if let Err(e) = self.writable() {
            return reply(Err(e));
        }
        // Always the smaller id first, so that two copies cannot wait for each other.
        let locks = if from.file() == to.file() {
            (from.ranges.lock_all(), None)
        } else if from.file() < to.file() {
            let first = from.ranges.lock(from_offset, length);
            (first, Some(to.ranges.lock(to_offset, length)))
        } else {
            let first = to.ranges.lock(to_offset, length);
            (first, Some(from.ranges.lock(from_offset, length)))
        };
        let copy = |engine: &Engine| {
            engine
                .store
                .copy_range(from, from_offset, to, to_offset, length)
        };
        if to.is_orphan() {
            return reply(copy(self).map_err(FsError::from));
        }
        let op = |length| Op::CopyRange {
            from: from.file(),
            from_offset,
            to: to.file(),
            to_offset,
            length,
        };
        if let Err(e) = self.ensure_intents(&op(length), 0) {
            return reply(Err(e));
        }
        match copy(self) {
            Ok(0) => reply(Ok(0)),
            Ok(copied) if !from.is_orphan() && self.core.lock().peer_can_copy(from.file()) => {
                self.commit(op(copied), 0, Box::new(move || reply(Ok(copied))));
            }
            // The peer does not have the source any more, or not yet: it gets the data.
            Ok(copied) => match self.ship_but_last(to, to_offset, copied) {
                Ok(Some(last)) => self.commit(last, 0, Box::new(move || reply(Ok(copied)))),
                Ok(None) => reply(Ok(copied)),
                Err(e) => {
                    self.differs(to, to_offset, copied, &e);
                    reply(Err(e.into()));
                }
            },
            Err(e) => {
                // As far as is known nothing was copied, but the times may have been set.
                self.touch(&op(length));
                if !may_have_changed(&e) {
                    return reply(Err(e.into()));
                }
                self.core.lock().failed_here(&op(length), 0);
                let range = (to, to_offset, length);
                if is_disk_failure(&e) && self.disk_failed_in(range, "a copy", &e) {
                    return reply(Err(e.into()));
                }
                // The peer gets what is there now.
                self.changed_in_part(to, to_offset, length);
                drop(locks);
                self.end_as_it_is(to, false, Box::new(move || reply(Err(e.into()))));
            }
        }
    }

    /// `fsync(2)`, `fdatasync(2)`: both disks. `wrote`: the caller may have written.
    pub fn sync(
        self: &Arc<Self>,
        node: &Arc<Node>,
        data_only: bool,
        wrote: bool,
        reply: impl FnOnce(FsResult<()>) + Send + 'static,
    ) {
        // Its place in the order comes before the peer is asked to take over, or not at all.
        let pass = self.gate.enter_to_sync();
        let writable = self.writable();
        // What was written before this node ceased to be primary is on one disk at most.
        if let Err(e) = writable
            && (wrote || matches!(e, FsError::Fenced | FsError::Moved))
        {
            return reply(Err(e));
        }
        let shipped = !node.is_orphan() && self.role() == Some(Role::Primary);
        let file = node.file();
        let seq = match shipped {
            true => self.submit(Op::Sync { file, data_only }).seq,
            false => None,
        };
        let engine = self.clone();
        let tell = Box::new(move |done| engine.vote_synced(seq, done, reply));
        let target = Target { file, data_only };
        let asked = match shipped {
            true => self.foresight.asked(target, self.gate.begun(), tell),
            false => Asked::Unforeseen(tell),
        };
        drop(pass);
        match asked {
            Asked::Runs => {}
            Asked::Done(tell) => tell(self.all_is_there(node)),
            Asked::Unforeseen(tell) => {
                let (engine, node) = (self.clone(), node.clone());
                self.run_sync_job(move || tell(engine.sync_file(&node, data_only)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use twinfold_protocol::attr::Kind;
    use twinfold_protocol::ids::FileId;
    use twinfold_protocol::limits;
    use twinfold_protocol::op::Name;

    use super::super::bed::{made, opened, paired};
    use super::*;

    /// The kernel tells of what it could not write once: the next sync ends well.
    #[test]
    fn a_sync_that_ends_well_after_the_disk_failed_is_done_where_the_data_is() {
        let (engine, _place) = opened(true);
        engine.start_primary(false).unwrap();
        let end = |done| {
            let (tell, told) = mpsc::channel();
            engine.vote_synced(None, done, move |r: FsResult<()>| tell.send(r).unwrap());
            told.recv_timeout(Duration::from_secs(60)).unwrap()
        };
        paired(&engine);
        assert!(end(Ok(())).is_ok());
        let failed = || Err(io::Error::from_raw_os_error(5));
        engine.sync_counted(failed).unwrap_err();
        assert!(engine.is_away());
        assert!(matches!(end(Ok(())), Err(FsError::Moved)));
    }

    /// For the peer's disk, that is: it needs about as long as this one did.
    #[test]
    fn the_peer_is_expected_when_this_disk_has_synced_and_nothing_else_is_on_its_way() {
        for others in [0, 1] {
            let (engine, _place) = opened(true);
            engine.start_primary(false).unwrap();
            let session = paired(&engine);
            let root = engine.store.node(FileId::ROOT).unwrap();
            for _ in 0..others {
                let file = FileId::ROOT;
                let data_only = true;
                engine.submit(Op::Sync { file, data_only });
            }
            assert!(!engine.polling.expects());
            engine.sync(&root, true, true, |_| ());
            assert_eq!(engine.polling.expects(), others == 0);
            engine.peer_disconnected(session, "the test ends");
        }
    }

    /// Marks behind that size cannot be moved: the file system's own limit may be larger.
    #[test]
    fn no_change_makes_a_file_larger_than_its_marks_reach() {
        let (engine, _place) = opened(true);
        engine.start_primary(false).unwrap();
        let largest = engine.store.largest_file();
        assert!(largest <= limits::MAX_MAPPED_FILE);
        let root = engine.store.node(FileId::ROOT).unwrap();
        let object = made(engine.new_id().0, Kind::Regular);
        let name = Name::new(b"large").unwrap();
        let node = engine.store.create(&root, &name, &object).unwrap();
        let (done, result) = mpsc::channel();
        let reply = || {
            let done = done.clone();
            move |r: FsResult<()>| drop(done.send(r))
        };
        let ended = || result.recv_timeout(Duration::from_secs(60)).unwrap();
        let too_large = || {
            let r = ended();
            assert!(matches!(r, Err(FsError::TooLarge)), "{r:?}");
        };
        engine.truncate(&node, largest + 1, false, reply());
        too_large();
        for mode in [
            AllocateMode::Allocate,
            AllocateMode::KeepSize,
            AllocateMode::ZeroRange,
            AllocateMode::ZeroRangeKeepSize,
        ] {
            engine.allocate(&node, mode, largest, 1, reply());
            too_large();
        }
        let byte = || Bytes::from_static(b"x");
        engine.write(&node, largest, byte(), Stability::Mode, false, reply());
        too_large();
        engine.write(&node, 0, byte(), Stability::Mode, false, reply());
        ended().unwrap();
        let copied = {
            let done = done.clone();
            move |r: FsResult<u64>| drop(done.send(r.map(drop)))
        };
        engine.copy_range((&node, 0), (&node, largest), 1, copied);
        too_large();
        // Nothing lies there.
        let end = limits::MAX_OFFSET - 1;
        engine.allocate(
            &node,
            AllocateMode::PunchHole,
            1 << 20,
            end - (1 << 20),
            reply(),
        );
        let punched = ended();
        assert!(!matches!(punched, Err(FsError::TooLarge)));
        engine.stop().unwrap();
    }
}
