//! Counting what a node does to the outside, so that it can be stopped in front of
//! any of it.

/// How a node is stopped in front of an effect.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stop {
    /// Its process is killed.
    Kill,
    /// Its machine loses power.
    Power,
    /// Its process stops answering for a while.
    Freeze,
}

/// Changes of the disk, messages sent and answers given, counted.
#[derive(Clone, Debug, Default)]
pub(crate) struct Effects {
    count: u64,
    stop: Option<(u64, Stop)>,
    stopped: Option<Stop>,
}

impl Effects {
    /// The node's next effect: false when it does not take place any more.
    pub(crate) fn next(&mut self) -> bool {
        if self.is_dead() {
            return false;
        }
        self.count += 1;
        if let Some((at, how)) = self.stop
            && self.count >= at
        {
            self.stop = None;
            self.stopped = Some(how);
            // What stands still goes on later.
            return how == Stop::Freeze;
        }
        true
    }

    /// Stops the node in front of its effect number `nth` from here.
    pub(crate) fn stop_before(&mut self, nth: u64, how: Stop) {
        self.stop = Some((self.count + nth, how));
    }

    /// Nothing stops the node any more.
    pub(crate) fn disarm(&mut self) {
        self.stop = None;
    }

    /// Whether nothing takes place any more.
    pub(crate) fn is_dead(&self) -> bool {
        matches!(self.stopped, Some(Stop::Kill | Stop::Power))
    }

    /// How the node was stopped, if it was.
    pub(crate) fn stopped(&self) -> Option<Stop> {
        self.stopped
    }

    /// The same, once.
    pub(crate) fn take_stopped(&mut self) -> Option<Stop> {
        self.stopped.take()
    }

    /// Effects so far.
    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    /// A process is gone, and what was to stop it.
    pub(crate) fn begin(&mut self) {
        self.stop = None;
        self.stopped = None;
    }
}
