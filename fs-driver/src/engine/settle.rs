//! Exact times on both copies, without a system call for each write.
//!
//! A change makes the primary's file system set new times. They are read a moment
//! later and shipped as an op of their own, so that both copies have the same times
//! to the nanosecond. Until then, and should the primary fail meanwhile, the
//! secondary goes by the time each op carries (see [`super::standby`]).

use std::io;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use twinfold_protocol::attr::Kind;
use twinfold_protocol::ids::FileId;
use twinfold_protocol::op::Op;
use twinfold_protocol::primary::Link;

use super::{Engine, clock};
use crate::store::is_disk_failure;

/// Objects with times to be shipped, at most; beyond it they are shipped at once.
const MAX_TOUCHED: usize = 65_536;

/// The objects whose times an op changes.
pub(super) fn touched_by(op: &Op, mut touch: impl FnMut(FileId)) {
    match op {
        Op::Write { file, .. }
        | Op::Truncate { file, .. }
        | Op::Allocate { file, .. }
        | Op::CopyRange { to: file, .. }
        | Op::PutData { file, .. }
        | Op::PutHole { file, .. } => touch(*file),
        Op::Create { parent, object, .. } => {
            touch(*parent);
            touch(object.file);
        }
        Op::Link { parent, .. }
        | Op::Unlink { parent, .. }
        | Op::RemoveDirectory { parent, .. } => {
            touch(*parent);
        }
        Op::Rename {
            parent, new_parent, ..
        } => {
            touch(*parent);
            touch(*new_parent);
        }
        Op::PutDirectory { directory, .. } => touch(*directory),
        Op::SetAttributes { .. }
        | Op::SetXattr { .. }
        | Op::RemoveXattr { .. }
        | Op::Sync { .. }
        | Op::Times { .. }
        | Op::Checkpoint
        | Op::Verify { .. }
        | Op::Differs { .. }
        | Op::TakeOver
        | Op::PutObject { .. }
        | Op::PutXattr { .. }
        | Op::ResyncEnd
        | Op::Flush => {}
    }
}

/// Who ships times, asleep or not.
#[derive(Default)]
pub(super) struct Rest {
    /// It sleeps until it is woken.
    asleep: AtomicBool,
    wake: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

impl Rest {
    /// There is something to ship.
    fn over(&self) {
        if self.asleep.load(Ordering::Relaxed)
            && self.asleep.swap(false, Ordering::AcqRel)
            && let Some(wake) = self.wake.get()
        {
            wake();
        }
    }
}

impl Engine {
    /// `wake` wakes who calls [`Engine::settle_times`]. There is one, for the engine's lifetime.
    pub(crate) fn settle_with(&self, wake: impl Fn() + Send + Sync + 'static) {
        let _ = self.rest.wake.set(Box::new(wake));
    }

    /// Whether there is nothing to ship: who does it is woken when there is.
    pub(crate) fn may_rest(&self) -> bool {
        self.rest.asleep.store(true, Ordering::Release);
        // Whoever touches something after this look sees that it has to wake somebody: it takes
        // this lock first.
        let nothing = self.touched.lock().is_empty();
        if !nothing {
            self.rest.asleep.store(false, Ordering::Release);
        }
        nothing
    }

    pub(super) fn touch(&self, op: &Op) {
        touched_by(op, |file| self.touch_file(file));
    }

    /// The times of an object are to be shipped.
    pub(super) fn touch_file(&self, file: FileId) {
        let mut touched = self.touched.lock();
        touched.insert(file);
        let full = touched.len() > MAX_TOUCHED;
        drop(touched);
        self.rest.over();
        // This is called under locks that shipping takes too, so the ticker does it.
        if full {
            self.deadlines.notify_one();
        }
    }

    /// Ships the times of everything touched since the last call.
    pub fn settle_times(&self) {
        {
            let core = self.core.lock();
            // A lost peer may come back and will want them then.
            if !core.has_space(0) || !(core.is_connected() || core.link() == Link::Alone) {
                return;
            }
        }
        self.settle_now();
    }

    /// The same, whether or not there is room for more ops.
    pub(super) fn settle_now(&self) {
        let _one = self.settling.lock();
        let touched = std::mem::take(&mut *self.touched.lock());
        if touched.is_empty() {
            return;
        }
        {
            let mut core = self.core.lock();
            if core.link() == Link::Alone {
                // Nobody to ship to. What was changed since is marked with its times; of what a
                // peer had that left a moment ago, only the times are missing there.
                core.mark(|map| touched.iter().for_each(|file| map.mark_attributes(*file)));
                return;
            }
        }
        for file in touched {
            if let Err(e) = self.ship_times(file) {
                tracing::warn!(%file, error = %e, "times cannot be read");
                if is_disk_failure(&e) {
                    self.disk_failed("reading times", &e);
                }
            }
        }
    }

    /// Reads and ships the times of an object as one step: times that are set meanwhile come
    /// behind them in the order.
    fn ship_times(&self, file: FileId) -> io::Result<()> {
        let Some(node) = self.store.object(file)? else {
            return Ok(());
        };
        let _whole = node.ranges.lock_all();
        if node.is_orphan() {
            return Ok(());
        }
        let attributes = node.attributes()?;
        debug_assert!(attributes.kind != Kind::Symlink || attributes.size > 0);
        let op = Op::Times {
            file,
            accessed: attributes.accessed,
            modified: attributes.modified,
        };
        let mut core = self.core.lock();
        let submitted = core.submit(clock::now(), clock::wall(), op, 0);
        drop(core);
        if submitted.output {
            self.output.notify_one();
        }
        Ok(())
    }

    /// Whether times of this object are still to be shipped. The caller holds
    /// `settling` and all of the object.
    pub(super) fn is_touched(&self, file: FileId) -> bool {
        self.touched.lock().contains(&file)
    }

    /// Whether all times are shipped. What was taken and is being read counts as not.
    pub fn times_settled(&self) -> bool {
        let Some(_idle) = self.settling.try_lock() else {
            return false;
        };
        self.touched.lock().is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use twinfold_protocol::ids::FileId;
    use twinfold_protocol::op::Op;

    use super::super::bed::{opened, paired};

    #[test]
    fn who_ships_times_is_woken_once_when_there_are_some_again() {
        let (engine, _place) = opened(true);
        let (wake, woken) = channel();
        engine.settle_with(move || wake.send(()).unwrap());
        engine.touch_file(FileId::ROOT);
        assert!(!engine.may_rest(), "there is something to ship");
        engine.settle_now();
        assert!(woken.try_recv().is_err(), "nobody slept");
        assert!(engine.may_rest());
        engine.touch_file(FileId::ROOT);
        engine.touch_file(FileId::ROOT);
        assert_eq!(woken.try_iter().count(), 1);
    }

    /// The notes of what touched them go with it, and this node may crash.
    #[test]
    fn times_are_shipped_before_the_checkpoint_that_flushes_what_set_them() {
        let (engine, _place) = opened(true);
        engine.start_primary(false).unwrap();
        paired(&engine);
        engine.touch_file(FileId::ROOT);
        engine.begin_checkpoint();
        let mut core = engine.core.lock();
        let ops: Vec<Op> = std::iter::from_fn(|| core.next_op())
            .map(|o| o.op)
            .collect();
        let times = |op: &Op| matches!(op, Op::Times { file, .. } if *file == FileId::ROOT);
        assert!(ops.first().is_some_and(times), "{ops:?}");
        assert_eq!(ops.last(), Some(&Op::Checkpoint));
    }
}
