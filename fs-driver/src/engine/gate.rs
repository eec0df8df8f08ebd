//! Tells when every change that began before a moment has ended, without
//! stopping any that begins after it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use parking_lot::{Condvar, Mutex};

use super::clock;
use super::silence::{Inside, Silence};

/// Changes under way, in two groups that take turns.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    turn: AtomicUsize,
    inside: [AtomicUsize; 2],
    /// Changes that have begun, since the gate is there.
    begun: AtomicU64,
    drained: Mutex<()>,
    left: Condvar,
    /// One waits at a time: two would wait for each other's groups.
    waiting: Mutex<()>,
    silence: Arc<Silence>,
}

/// A change under way.
#[derive(Debug)]
pub(crate) struct Pass<'a> {
    gate: &'a Gate,
    group: usize,
    _inside: Inside<'a>,
}

impl Gate {
    /// A gate whose changes are inside the store until they end.
    pub(super) fn to_store(silence: &Arc<Silence>) -> Gate {
        Gate {
            silence: silence.clone(),
            ..Gate::default()
        }
    }

    /// A change begins.
    pub(crate) fn enter(&self) -> Pass<'_> {
        let pass = self.enter_to_sync();
        // Behind its place inside: who sees this one counted sees it inside, or ended.
        self.begun.fetch_add(1, Ordering::SeqCst);
        pass
    }

    /// A call begins that changes nothing itself, but belongs in between changes.
    pub(crate) fn enter_to_sync(&self) -> Pass<'_> {
        loop {
            let group = self.turn.load(Ordering::SeqCst) & 1;
            self.inside[group].fetch_add(1, Ordering::SeqCst);
            // The turn may have changed in between; then this group is being waited for.
            if self.turn.load(Ordering::SeqCst) & 1 == group {
                return Pass {
                    gate: self,
                    group,
                    _inside: self.silence.enter(clock::now()),
                };
            }
            self.leave(group);
        }
    }

    /// How many changes have begun.
    pub(crate) fn begun(&self) -> u64 {
        self.begun.load(Ordering::SeqCst)
    }

    /// The same, by a change that is inside, if nobody else is: neither a change nor a sync.
    pub(crate) fn begun_alone(&self) -> Option<u64> {
        let begun = self.begun();
        let inside = |group: &AtomicUsize| group.load(Ordering::SeqCst);
        (self.inside.iter().map(inside).sum::<usize>() == 1).then_some(begun)
    }

    fn leave(&self, group: usize) {
        if self.inside[group].fetch_sub(1, Ordering::SeqCst) == 1 {
            let _lock = self.drained.lock();
            self.left.notify_all();
        }
    }

    /// Waits until every change that began before this call has ended.
    pub(crate) fn wait_for_all_before(&self) {
        let _waiting = self.waiting.lock();
        let group = self.turn.fetch_add(1, Ordering::SeqCst) & 1;
        let mut lock = self.drained.lock();
        while self.inside[group].load(Ordering::SeqCst) != 0 {
            self.left.wait(&mut lock);
        }
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        self.gate.leave(self.group);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicBool;
    use std::time::Duration;

    #[test]
    fn who_is_alone_inside_knows_how_many_have_begun() {
        let gate = Gate::default();
        drop(gate.enter());
        let mine = gate.enter();
        assert_eq!(gate.begun_alone(), Some(2));
        let other = gate.enter();
        assert_eq!(gate.begun_alone(), None);
        // Who waits has both groups looked at.
        std::thread::scope(|s| {
            s.spawn(|| gate.wait_for_all_before());
            while gate.turn.load(Ordering::SeqCst) == 0 {
                std::thread::sleep(Duration::from_millis(1));
            }
            let sync = gate.enter_to_sync();
            drop(other);
            assert_eq!(gate.begun_alone(), None);
            drop(sync);
            assert_eq!(gate.begun_alone(), Some(3));
            drop(mine);
        });
        assert_eq!(gate.begun(), 3);
    }

    #[test]
    fn waits_for_what_began_before_and_not_for_what_began_after() {
        let gate = Gate::default();
        let before = gate.enter();
        let done = AtomicBool::new(false);
        std::thread::scope(|s| {
            s.spawn(|| {
                gate.wait_for_all_before();
                done.store(true, Ordering::SeqCst);
            });
            while gate.turn.load(Ordering::SeqCst) == 0 {
                std::thread::sleep(Duration::from_millis(1));
            }
            let _after = gate.enter();
            assert!(!done.load(Ordering::SeqCst));
            drop(before);
            while !done.load(Ordering::SeqCst) {
                std::thread::sleep(Duration::from_millis(1));
            }
        });
    }
}
