//! The rules: from what is known to what is done next, and to what is shown.

use super::{
    App, Arbiter, Automaton, Candidate, Driver, Effect, Isolation, Link, Peer, Reason, State,
    Status, View, Wanted, choice, usable,
};
use crate::handshake::{Role, Which, have_split, newer};
use crate::ids::{Generation, Side};

/// What stands between a node and serving.
enum Leave {
    /// Nothing: it has the right.
    Given,
    /// An effect asks for it.
    Do(Effect),
    /// It waits for this.
    Wait(Reason),
}

impl Automaton {
    /// The next thing to do, if anything is to be done now; and what is shown.
    pub(super) fn next(&mut self) -> Option<Effect> {
        if let Some(generation) = self.to_yield() {
            return Some(Effect::Yield(generation, self.copy.session));
        }
        if self.yielding || matches!(self.driver, Driver::Becoming(_) | Driver::Stopping) {
            self.on_the_way();
            return None;
        }
        if self.wanted == Wanted::Stopped {
            return self.stop();
        }
        match self.driver {
            Driver::Up(Role::Primary) => self.primary(),
            Driver::Up(Role::Secondary) => self.secondary(),
            _ => self.down(),
        }
    }

    pub(super) fn willing(&self) -> bool {
        self.wanted != Wanted::Stopped && !self.gives_way
    }

    fn show(&mut self, state: State, status: Status, reason: Reason) -> Option<Effect> {
        (self.state, self.status, self.reason) = (state, status, reason);
        None
    }

    fn wait(&mut self, reason: Reason) -> Option<Effect> {
        let status = match reason {
            Reason::Starting | Reason::Listening | Reason::Asking | Reason::Following => {
                Status::Transient
            }
            _ => Status::NotReady,
        };
        self.show(State::Wait, status, reason)
    }

    fn on_the_way(&mut self) {
        let (state, reason) = match self.driver {
            Driver::Becoming(Role::Primary) => (State::Alone, Reason::Starting),
            Driver::Becoming(Role::Secondary) if self.serving => (State::Prim, Reason::Swapping),
            Driver::Stopping => (self.state, Reason::Stopped),
            _ => (State::Wait, Reason::Starting),
        };
        self.show(state, Status::Transient, reason);
    }

    /// Stops the application; `None` once it is down or on its way.
    fn stop_app(&self) -> Option<Effect> {
        (self.app == App::Up).then_some(Effect::StopApp)
    }

    fn heard(&self) -> Option<&View> {
        match &self.peer {
            Peer::Heard(view) => Some(view),
            _ => None,
        }
    }

    fn choice(&self, peer: &View) -> Which {
        let (mine, theirs) = match self.config.side {
            Side::Even => (Side::Even, Side::Odd),
            Side::Odd => (Side::Odd, Side::Even),
        };
        choice(
            Candidate {
                copy: &self.copy.state,
                willing: self.willing(),
                was: self.copy.was,
                side: mine,
            },
            Candidate {
                copy: &peer.copy,
                willing: peer.willing,
                was: peer.was,
                side: theirs,
            },
        )
    }

    /// The generation that the peer asks for and gets.
    fn to_yield(&self) -> Option<Generation> {
        let asked = self.heard()?.asks?;
        let idle = !self.serves() && !self.yielding;
        // One that changes its role has said what it does; the peer asks again.
        let mine = usable(&self.copy.state) && self.copy.state.current == asked;
        let agreed = self.choice(self.heard()?) == Which::Peer;
        (idle && mine && agreed && !self.asking).then_some(asked)
    }

    /// Which generation this node asks the peer to yield.
    pub(super) fn asks(&self) -> Option<Generation> {
        let peer = self.heard()?;
        let wants = match self.driver {
            Driver::Up(Role::Primary) => matches!(self.link, Link::Holding(_)),
            Driver::Up(Role::Secondary) => {
                self.link == Link::None && !peer.serves && self.is_candidate()
            }
            _ => false,
        };
        let base = self.copy.state.current;
        let open = wants
            && self.wanted != Wanted::Stopped
            && usable(&self.copy.state)
            && self.right != Some(base)
            && !self.has_yielded(peer)
            && self.choice(peer) == Which::Me;
        open.then_some(base)
    }

    /// Whether this secondary would serve, should it be chosen and get the right.
    fn is_candidate(&self) -> bool {
        let complete = usable(&self.copy.state) || self.both_yielded();
        let by_itself = self.config.failover || self.copy.was == Some(Role::Primary);
        complete && (by_itself || matches!(self.wanted, Wanted::Prim(_))) && self.willing()
    }

    /// The peer has yielded this copy's generation, and that since the copies were last
    /// equal: a resync takes back what was yielded before it.
    fn has_yielded(&self, peer: &View) -> bool {
        peer.yielded == Some(self.copy.state.current) && peer.session == self.copy.session
    }

    /// Both gave way to each other, and neither went on: the even side takes it back.
    fn both_yielded(&self) -> bool {
        self.yielded == Some(self.copy.state.current)
            && self.heard().is_some_and(|v| self.has_yielded(v))
            && self.config.side == Side::Even
    }

    /// The right to go on from this copy's generation.
    fn leave(&self) -> Leave {
        let base = self.copy.state.current;
        if self.right == Some(base) && self.yielded != Some(base) {
            return Leave::Given;
        }
        match &self.peer {
            Peer::Unknown => Leave::Wait(Reason::Listening),
            Peer::Heard(v) => {
                if v.serves {
                    return Leave::Wait(Reason::PeerServes);
                }
                if self.yielded == Some(base) && !self.both_yielded() {
                    return Leave::Wait(Reason::PeerServes);
                }
                // It cannot serve from this generation, and says so.
                // What it said before the copies were last equal says nothing about now.
                let since = v.session == self.copy.session;
                let older = newer(&self.copy.state, &v.copy) == Some(Which::Me);
                let cannot = since && (older || !usable(&v.copy));
                let told = matches!(self.wanted, Wanted::Prim(_)) && !usable(&v.copy);
                if self.has_yielded(v) || cannot || told {
                    return Leave::Given;
                }
                match self.choice(v) {
                    Which::Me => Leave::Wait(Reason::Asking),
                    Which::Peer => Leave::Wait(Reason::PeerServes),
                }
            }
            Peer::Silent => {
                if self.yielded == Some(base) {
                    return Leave::Wait(Reason::PeerMayBeNewer);
                }
                match (self.config.arbiter, self.config.isolation) {
                    (Arbiter::Asked, _) => match self.refused {
                        Some(reason) => Leave::Wait(reason),
                        None if self.asking => Leave::Wait(Reason::Arbiter),
                        None => Leave::Do(Effect::Ask(base)),
                    },
                    (Arbiter::None, Isolation::Alone) => Leave::Given,
                    (Arbiter::None, Isolation::Wait) => Leave::Wait(Reason::Isolated),
                }
            }
        }
    }

    fn stop(&mut self) -> Option<Effect> {
        match (self.app, self.driver) {
            (App::Up, _) => Some(Effect::StopApp),
            (App::Starting | App::Stopping, _) => {
                self.show(self.state, Status::Transient, Reason::Stopped)
            }
            (App::Down, Driver::Up(_)) => Some(Effect::StopDriver),
            (App::Down, _) => self.show(State::Stop, Status::NotReady, Reason::Stopped),
        }
    }

    /// No driver runs.
    fn down(&mut self) -> Option<Effect> {
        // Its mount went with the driver.
        if let Some(effect) = self.stop_app() {
            return Some(effect);
        }
        if self.app != App::Down {
            return self.wait(Reason::Starting);
        }
        if self.wanted == Wanted::Second || self.heard().is_some_and(|v| v.serves) {
            return Some(Effect::Start(Role::Secondary, false));
        }
        if self.wanted == Wanted::Prim(true) {
            return Some(Effect::Start(Role::Primary, true));
        }
        if self.peer == Peer::Unknown {
            return self.wait(Reason::Listening);
        }
        // Nobody else has its generation: it starts at once.
        let overtaken = self
            .heard()
            .is_some_and(|v| newer(&self.copy.state, &v.copy) == Some(Which::Peer));
        if usable(&self.copy.state) && !self.copy.shared && !overtaken {
            return Some(Effect::Start(Role::Primary, false));
        }
        Some(Effect::Start(Role::Secondary, false))
    }

    fn secondary(&mut self) -> Option<Effect> {
        if let Some(effect) = self.stop_app() {
            return Some(effect);
        }
        match self.link {
            Link::Syncing => {
                return self.show(State::Second, Status::Transient, Reason::Following);
            }
            Link::Paired => return self.show(State::Second, Status::Ready, Reason::Following),
            Link::None | Link::Holding(_) => {}
        }
        if self.app != App::Down {
            return self.wait(Reason::Starting);
        }
        if self.heard().is_some_and(|v| v.serves) {
            return self.wait(Reason::Following);
        }
        if self.wanted == Wanted::Prim(true) {
            return Some(Effect::Promote(true));
        }
        if !self.copy.state.current.is_some() {
            return self.wait(Reason::FirstStart);
        }
        let complete = usable(&self.copy.state) || self.both_yielded();
        if !complete {
            return self.wait(Reason::NotUpToDate);
        }
        if !self.willing() {
            return self.wait(Reason::PeerServes);
        }
        if !self.is_candidate() {
            return self.wait(Reason::FailoverOff);
        }
        // After a restart it is not known whether the silent peer went on.
        let known = self.copy.current || matches!(self.wanted, Wanted::Prim(_));
        if !known && self.peer == Peer::Silent {
            return self.wait(Reason::PeerMayBeNewer);
        }
        match self.leave() {
            Leave::Given => Some(Effect::Promote(!self.copy.current)),
            Leave::Do(effect) => {
                self.wait(Reason::Arbiter);
                Some(effect)
            }
            Leave::Wait(reason) => self.wait(reason),
        }
    }

    fn primary(&mut self) -> Option<Effect> {
        let overtaken = self
            .heard()
            .is_some_and(|v| newer(&self.copy.state, &v.copy) == Some(Which::Peer));
        let denied = matches!(self.link, Link::Holding(_)) && self.refused == Some(Reason::Denied);
        if overtaken || denied || self.swaps_now() {
            self.show(State::Prim, Status::Transient, Reason::Swapping);
            return match self.app {
                App::Up => Some(Effect::StopApp),
                App::Down => Some(Effect::Demote),
                _ => None,
            };
        }
        if let Link::Holding(question) = self.link {
            return match self.leave() {
                Leave::Given => Some(Effect::GoAlone(question)),
                Leave::Do(effect) => {
                    self.show(State::Prim, Status::Transient, Reason::Arbiter);
                    Some(effect)
                }
                Leave::Wait(reason) => self.show(State::Prim, Status::Transient, reason),
            };
        }
        if self.app == App::Down {
            return Some(Effect::StartApp);
        }
        let split = self
            .heard()
            .is_some_and(|v| v.serves && have_split(&self.copy.state, &v.copy));
        let state = match self.link {
            Link::Paired => State::Prim,
            _ => State::Alone,
        };
        let status = match self.app {
            App::Up => Status::Ready,
            _ => Status::Transient,
        };
        let reason = if split {
            Reason::SplitBrain
        } else {
            Reason::Serving
        };
        self.show(state, status, reason)
    }

    /// Whether the roles are to be exchanged, and can be.
    fn swaps_now(&self) -> bool {
        let Some(peer) = self.heard() else {
            return false;
        };
        let ready = self.link == Link::Paired
            && peer.willing
            && (peer.state, peer.status) == (State::Second, Status::Ready);
        let preferred = self
            .config
            .default_prim
            .is_some_and(|s| s != self.config.side);
        ready && (self.swap || peer.swaps || preferred)
    }
}
