//! A source whose page cache may show what its disk does not have.
//!
//! After a failed flush the kernel keeps the pages and takes them for written (`fsync(2)`,
//! LWN 752063). Who wrote was told; but until the kernel needs the memory everybody reads what
//! was written, and so would a resync: the peer would get, or be found to have, what this disk
//! loses at some later moment. So whatever such a source compares or moves is first read again
//! from the disk, and written once more where that differs: both copies have then what the
//! application has seen all the time.
//!
//! The next run of the driver does not know whether a flush has failed before it. It is in doubt
//! until the peer is up to date, unless the last run ended in order or the machine was restarted:
//! then there is no such page.

use std::io;

use twinfold_protocol::ids::SessionId;
use twinfold_protocol::limits;

use super::Engine;
use crate::store::{FORGOTTEN, Lost, Node, WideningGuard};

impl Engine {
    /// A resync of the peer of this session begins. What the kernel knows of failed flushes is
    /// asked for now, so that one that is told later has failed meanwhile.
    pub(super) fn begin_in_doubt(&self, session: SessionId) {
        if self.syncs.is_doubtful() && self.sync_store().is_err() {
            // It counts, and what it lost is looked for like the rest.
            tracing::warn!("the store could not be flushed before the resync");
        }
        *self.failed_before_resync.lock() = Some((session, self.syncs.failed()));
    }

    /// The peer of this session is up to date. What this one has written once more has to be on
    /// the disk as well; if it cannot be, or the disk has failed a flush since the resync began,
    /// the peer has everything, and this disk not. Blocks.
    pub(super) fn peer_ends_doubt(&self, session: SessionId) {
        let failed = match *self.failed_before_resync.lock() {
            Some((begun, failed)) if begun == session => failed,
            // The next one judges by itself.
            Some(_) => return,
            None => 0,
        };
        if self.syncs.is_doubtful() && self.sync_store().is_ok() {
            // One that runs beside this one may be told what this one was not.
            self.syncs.settled();
        }
        if self.syncs.failed() != failed {
            let error = io::Error::other("the kernel told so while the peer was brought up");
            self.disk_failed("a flush of the store", &error);
        } else {
            self.copy_is_made_good(failed);
        }
    }

    /// Before a range of a file is compared or moved: what readers see is what the disk has, or
    /// is written once more. The caller holds nothing of the file.
    pub(super) fn make_sure(&self, node: &Node, offset: u64, length: u64) -> io::Result<()> {
        if !self.syncs.is_doubtful() {
            return Ok(());
        }
        let end = offset.saturating_add(length).min(node.size()?);
        let mut at = offset / FORGOTTEN * FORGOTTEN;
        let mut rewritten = 0;
        while at < end {
            // Holes are as they are.
            let Some(data) = self.store.next_data(node, at)? else {
                break;
            };
            at = at.max(data / FORGOTTEN * FORGOTTEN);
            if at >= end {
                break;
            }
            let range = node.ranges.lock_to_widen(at, FORGOTTEN);
            let lost = self.store.find_lost(node, at)?;
            rewritten += self.write_again(node, range, &lost)?;
            at += FORGOTTEN;
        }
        if rewritten > 0 {
            self.touch_file(node.file());
            tracing::warn!(
                file = %node.file(), rewritten,
                "the disk did not have some of a file's bytes; they are written once more"
            );
        }
        Ok(())
    }

    /// Writes what was lost of a range once more.
    fn write_again(&self, node: &Node, mut range: WideningGuard, lost: &Lost) -> io::Result<u64> {
        if lost.is_empty() {
            return Ok(0);
        }
        // Readers may not see it for as long as writers elsewhere in the file take.
        range.widen();
        self.store.rewrite(node, lost)
    }

    /// The same for all marked blocks of a file.
    pub(super) fn make_sure_of_marked(&self, node: &Node) -> io::Result<()> {
        if !self.syncs.is_doubtful() {
            return Ok(());
        }
        // What lies in one piece is looked at once.
        const GAP: u32 = (FORGOTTEN / limits::BLOCK) as u32;
        let spans = {
            let core = self.core.lock();
            core.dirty()
                .object(node.file())
                .map(|m| m.blocks.spans(GAP))
        };
        for (offset, length) in spans.unwrap_or_default() {
            self.make_sure(node, offset, length)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use bytes::Bytes;
    use twinfold_protocol::attr::Kind;
    use twinfold_protocol::ids::FileId;
    use twinfold_protocol::op::{Name, Payload};

    use super::super::bed::{made, opened};
    use super::*;

    /// It is under way elsewhere in the file when something is found to be lost.
    #[test]
    fn the_times_of_a_write_are_not_put_back_by_what_is_written_once_more() {
        let (engine, _place) = opened(true);
        engine.start_primary(false).unwrap();
        let object = made(5000, Kind::Regular);
        let root = engine.store.node(FileId::ROOT).unwrap();
        let name = Name::new(b"file").unwrap();
        let node = engine.store.create(&root, &name, &object).unwrap();
        let old = twinfold_protocol::time::Timestamp { secs: 1, nanos: 0 };
        engine.store.set_times(&node, None, Some(old)).unwrap();
        let elsewhere = node.ranges.lock(1 << 30, 4096);
        let range = node.ranges.lock_to_widen(0, FORGOTTEN);
        let again = AtomicBool::new(false);
        let times = std::thread::scope(|scope| {
            let writing = scope.spawn(|| {
                // It has begun, so what is written once more waits, or would be by now.
                std::thread::sleep(std::time::Duration::from_millis(300));
                assert!(!again.load(Ordering::SeqCst), "beside a write");
                let data: Payload = Bytes::from_static(b"new").into();
                engine.store.write(&node, 1 << 30, &data).unwrap();
                let written = node.attributes().unwrap().modified;
                drop(elsewhere);
                written
            });
            let lost = Lost::bytes(0, b"seen");
            assert_eq!(engine.write_again(&node, range, &lost).unwrap(), 4);
            again.store(true, Ordering::SeqCst);
            (writing.join().unwrap(), node.attributes().unwrap().modified)
        });
        assert!(times.0 > old);
        assert_eq!(times.0, times.1);
        let mut seen = [0; 4];
        engine.store.read(&node, 0, &mut seen).unwrap();
        assert_eq!(&seen, b"seen");
    }
}
