//! Tells threads that sleep that something has happened, as often as it may be.
//!
//! Whoever looks at something remembers the count from before the look and waits for another
//! one: what happens during the look is looked at again.

use std::time::Instant;

use parking_lot::{Condvar, Mutex};

/// Something that happens again and again, and threads that wait for it.
#[derive(Debug, Default)]
pub(crate) struct Bell {
    count: Mutex<u64>,
    rings: Condvar,
}

impl Bell {
    /// It has happened. What did is visible to whoever is woken. Takes no other lock, and is
    /// next to nothing where nobody waits.
    pub(crate) fn ring(&self) {
        *self.count.lock() += 1;
        self.rings.notify_all();
    }

    /// How often it has happened.
    pub(crate) fn count(&self) -> u64 {
        *self.count.lock()
    }

    /// Waits until it has happened more often than `seen`, or until then; whether it has.
    pub(crate) fn wait(&self, seen: u64, until: Instant) -> bool {
        let mut count = self.count.lock();
        while *count == seen {
            if self.rings.wait_until(&mut count, until).timed_out() {
                return *count != seen;
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;

    #[test]
    fn who_waits_is_woken_and_misses_nothing_that_came_before() {
        let bell = Arc::new(Bell::default());
        let seen = bell.count();
        assert!(!bell.wait(seen, Instant::now()));
        bell.ring();
        assert!(bell.wait(seen, Instant::now()), "it rang before the wait");
        let seen = bell.count();
        assert!(!bell.wait(seen, Instant::now() + Duration::from_millis(1)));
        let ringing = bell.clone();
        let ringer = std::thread::spawn(move || ringing.ring());
        assert!(bell.wait(seen, Instant::now() + Duration::from_secs(60)));
        ringer.join().unwrap();
    }
}
