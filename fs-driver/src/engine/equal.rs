//! A change failed here after the peer got it, or half-way: the peer gets what is really
//! here, so that both copies end equal (invariant 9).

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use twinfold_protocol::ids::FileId;
use twinfold_protocol::limits;
use twinfold_protocol::marks::DirtyMap;
use twinfold_protocol::op::{AllocateMode, Change, Op, Stability};
use twinfold_protocol::primary::Link;
use twinfold_protocol::verify::Question;

use super::{Engine, Reply, clock};
use crate::store::Node;

/// Bytes that are shipped at once for a change that failed half-way; where more is in doubt,
/// the peer comes back to a resync.
const MAX_SHIPPED: u64 = 16 << 20;

impl Engine {
    /// A write failed here after it was shipped: ships what its range holds, which the caller
    /// holds as well. [`Engine::end_as_it_is`] has to follow.
    pub(super) fn range_as_it_is(&self, node: &Node, offset: u64, length: u64) {
        let end = offset.saturating_add(length);
        let known = node.size().and_then(|size| {
            let here = size.clamp(offset, end);
            self.ship(node, offset, here - offset)?;
            Ok(here)
        });
        match known {
            // Behind the end is nothing here, and must be nothing there, should another write
            // move the end.
            Ok(here) if here < end => self.commit(hole(node, here, end), end, Box::new(|| ())),
            Ok(_) => {}
            Err(e) => self.differs(node, offset, length, &e),
        }
    }

    /// Ships the size of a file, and its mode if the failed write may have changed that there.
    /// The caller holds nothing of it: writes that are on their way to the end come first.
    pub(super) fn end_as_it_is(&self, node: &Arc<Node>, mode: bool, reply: Reply) {
        let _names = mode.then(|| self.names.lock());
        let _whole = node.ranges.lock_all();
        if node.is_orphan() {
            return reply();
        }
        match node.attributes() {
            Ok(attributes) => {
                if mode {
                    let change = Change {
                        mode: Some(attributes.mode),
                        ..Change::default()
                    };
                    let file = node.file();
                    let op = Op::SetAttributes { file, change };
                    self.commit(op, attributes.size, Box::new(|| ()));
                }
                let op = Op::Truncate {
                    file: node.file(),
                    size: attributes.size,
                    clear_privileges: false,
                };
                self.commit(op, attributes.size, reply);
            }
            Err(e) => {
                self.differs(node, 0, limits::MAX_OFFSET, &e);
                reply();
            }
        }
    }

    /// A change of a range failed and may have done a part of it: ships what is there now,
    /// holes as holes. The caller holds the range and the size.
    pub(super) fn changed_in_part(&self, node: &Node, offset: u64, length: u64) {
        let shipped = (|| -> io::Result<()> {
            let end = offset.saturating_add(length).min(node.size()?);
            let (mut at, mut left) = (offset, MAX_SHIPPED);
            while at < end {
                let data = self.store.next_data(node, at)?.unwrap_or(end).min(end);
                if data > at {
                    self.commit(hole(node, at, data), 0, Box::new(|| ()));
                    at = data;
                    continue;
                }
                let hole = self.store.seek(node, at, false)?.min(end);
                left = left
                    .checked_sub(hole - at)
                    .ok_or_else(|| io::Error::other("too much of it is in doubt"))?;
                self.ship(node, at, hole - at)?;
                at = hole;
            }
            Ok(())
        })();
        if let Err(e) = shipped {
            self.differs(node, offset, length, &e);
        }
    }

    /// Ships what a range holds here, as far as the file goes. The caller holds it.
    fn ship(&self, node: &Node, offset: u64, length: u64) -> io::Result<()> {
        if let Some(last) = self.ship_but_last(node, offset, length)? {
            self.commit(last, 0, Box::new(|| ()));
        }
        Ok(())
    }

    /// The same, but for the last op, with which the caller's reply goes.
    pub(super) fn ship_but_last(
        &self,
        node: &Node,
        offset: u64,
        length: u64,
    ) -> io::Result<Option<Op>> {
        let mut done = 0;
        let mut last = None;
        while done < length {
            let mut data = vec![0; (length - done).min(limits::MAX_PAYLOAD as u64) as usize];
            let n = self.store.read(node, offset + done, &mut data)?;
            data.truncate(n);
            if n == 0 {
                break;
            }
            let op = Op::Write {
                file: node.file(),
                offset: offset + done,
                stability: Stability::Mode,
                clear_privileges: false,
                data: Bytes::from(data).into(),
            };
            if let Some(op) = last.replace(op) {
                self.commit(op, 0, Box::new(|| ()));
            }
            done += n as u64;
        }
        Ok(last)
    }

    /// A range may differ from the peer's, and what is here cannot be shipped: from now on
    /// the peer's copy counts as not up to date, and it comes back to a resync.
    pub(super) fn differs(&self, node: &Node, offset: u64, length: u64, error: &io::Error) {
        tracing::error!(
            file = %node.file(), offset, length, %error,
            "a change failed in part, and the peer cannot be told what is left; it is resynced"
        );
        let from = offset / limits::BLOCK * limits::BLOCK;
        let question = Question::Data {
            file: node.file(),
            offset: from,
            length: (offset - from)
                .saturating_add(length)
                .min(limits::VERIFY_CHUNK),
        };
        let mut marks = DirtyMap::default();
        marks.mark_data(node.file(), offset, length);
        marks.mark_attributes(node.file());
        self.differs_in(question, marks);
    }

    /// The same for an object's attributes, and for the names in it.
    pub(super) fn object_differs(&self, file: FileId, error: &io::Error) {
        let marks = self.marks_of(&[file]);
        if self.differs_in(Question::Object { file }, marks) {
            tracing::error!(
                %file, %error,
                "a change of names or attributes failed, perhaps in part; the peer is resynced"
            );
        }
    }

    /// Whether there is a peer that counts as equal, and is brought up again.
    fn differs_in(&self, question: Question, marks: DirtyMap) -> bool {
        let mut core = self.core.lock();
        core.differs(clock::now(), clock::wall(), question, |map| {
            map.unite(marks);
        });
        let session = match core.link() {
            Link::Alone | Link::Syncing => None,
            _ => core.session(),
        };
        drop(core);
        self.output.notify_one();
        if let Some(session) = session {
            self.verify.ask_to_rejoin(session);
        }
        session.is_some()
    }
}

fn hole(node: &Node, from: u64, to: u64) -> Op {
    Op::Allocate {
        file: node.file(),
        mode: AllocateMode::PunchHole,
        offset: from,
        length: to - from,
    }
}
