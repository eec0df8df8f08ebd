//! The rules: from what is known to what is done next, and to what is shown.

use super::{
    App, Arbiter, Automaton, Candidate, Claim, Driver, Effect, Isolation, Link, Peer, Reason,
    State, Status, View, Wanted, choice, usable,
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
        if let Some(generation) = self.to_release() {
            return Some(Effect::Release(generation));
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
        // A yield is none of the operator's business: what is stopped is shown as stopped.
        let rests = self.driver == Driver::Down && self.app == App::Down;
        if rests && self.wanted == Wanted::Stopped {
            self.show(State::Stop, Status::NotReady, Reason::Stopped);
            return;
        }
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

    /// What the peer said last, unless it is silent.
    pub fn heard(&self) -> Option<&View> {
        match &self.peer {
            Peer::Heard(view) => Some(view),
            _ => None,
        }
    }

    /// Which of the two nodes is to serve when neither does, as far as this one knows; none as long
    /// as it hears nothing of the other one.
    pub fn chosen(&self) -> Option<Which> {
        self.heard().map(|peer| self.choice(peer))
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
        // One that changes its role has said what it does; the peer asks again. A copy that its
        // machine's power cut counts out might count itself in once the peer is silent.
        let counts = self.is_complete() || self.copy.state.cut;
        let mine = counts && self.copy.state.current == asked;
        let anew = self.yielded != Some(asked);
        let agreed = self.choice(self.heard()?) == Which::Peer;
        (idle && mine && anew && agreed && !self.asking).then_some(asked)
    }

    /// What the arbiter may have granted in vain. Only while the copies are equal in a session:
    /// this node can do nothing with a right then, and asks for none before this has ended.
    fn to_release(&self) -> Option<Generation> {
        let equal = matches!(self.driver, Driver::Up(_)) && self.link == Link::Paired;
        let busy = self.asking || self.yielding || self.releasing || self.kept;
        self.asked.filter(|_| equal && !busy)
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
            && (self.is_complete() || self.takes_back())
            && self.right != Some(base)
            && !self.has_yielded(peer)
            && self.choice(peer) == Which::Me;
        open.then_some(base)
    }

    /// Whether this secondary would serve, should it be chosen and get the right.
    fn is_candidate(&self) -> bool {
        let complete = self.is_complete() || self.both_yielded() || self.takes_back();
        let by_itself = self.config.failover || self.copy.was == Some(Role::Primary);
        let told = matches!(self.wanted, Wanted::Prim(_)) || self.is_given_the_role();
        complete && (by_itself || told) && self.willing()
    }

    /// The peer has let go of the primary's role so that this node takes it: the roles are being
    /// exchanged. One that is stopped, or whose driver has died, does not say so.
    fn is_given_the_role(&self) -> bool {
        self.heard()
            .is_some_and(|v| v.swaps && !v.serves && !v.willing)
    }

    /// This node is the one that has let go of it.
    pub(super) fn gives_the_role(&self) -> bool {
        let follows = self.driver == Driver::Up(Role::Secondary);
        follows && self.gives_way && self.wanted != Wanted::Stopped
    }

    /// The power of both nodes was cut, as far as is known, while the copies were equal: what
    /// was not synced may be gone on either, and nobody has more.
    fn both_cut(&self) -> bool {
        self.copy.state.cut
            && self.heard().is_some_and(|v| {
                v.copy.cut
                    && v.copy.current == self.copy.state.current
                    && v.session == self.copy.session
            })
    }

    /// The power of this node was cut, the peer is silent, and the operator lets a copy go on
    /// that was equal to the peer's so recently; unless it has given way to that one.
    fn cut_recently(&self) -> bool {
        let state = &self.copy.state;
        state.cut && !state.gave_way && self.copy.recent && self.peer == Peer::Silent
    }

    /// The power of this node was cut, and its copy's generation is one that the peer never had:
    /// nobody has what was lost.
    fn cut_alone(&self) -> bool {
        self.copy.state.cut
            && self.heard().is_some_and(|v| {
                v.session == self.copy.session
                    && newer(&self.copy.state, &v.copy) == Some(Which::Me)
            })
    }

    /// Whether this copy may serve as far as what it has goes.
    fn is_complete(&self) -> bool {
        let cut = self.both_cut() || self.cut_alone() || self.cut_recently();
        usable(&self.copy.state) || cut
    }

    /// The peer has yielded this copy's generation, and that since the copies were last
    /// equal: a resync takes back what was yielded before it.
    fn has_yielded(&self, peer: &View) -> bool {
        peer.yielded == Some(self.copy.state.current) && peer.session == self.copy.session
    }

    /// Both gave way to each other, and neither went on: the even side takes it back.
    fn both_yielded(&self) -> bool {
        self.yielded == Some(self.copy.state.current)
            && self.copy.state.gave_way
            && self
                .heard()
                .is_some_and(|v| self.has_yielded(v) && (v.copy.cut || !self.copy.state.cut))
            && self.config.side == Side::Even
    }

    /// What this copy gave way to did not go on and has less: its machine lost its power, and
    /// this one's did not while it was complete. So this one takes it back, with that one's consent.
    fn takes_back(&self) -> bool {
        self.yielded == Some(self.copy.state.current)
            && self.copy.state.gave_way
            && !self.copy.state.cut
            && self.heard().is_some_and(|v| {
                v.copy.cut
                    && v.copy.current == self.copy.state.current
                    && v.session == self.copy.session
                    && !v.serves
            })
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
                let back = self.takes_back() || self.both_yielded();
                if self.yielded == Some(base) && !back {
                    return Leave::Wait(Reason::PeerServes);
                }
                // It cannot serve from this generation, and says so. What it said before the
                // copies were last equal says nothing about now. One that only a power cut counts
                // out gives way first: it may count itself in again, once this node is silent.
                let since = v.session == self.copy.session;
                let newer = newer(&self.copy.state, &v.copy);
                let older = newer == Some(Which::Me);
                // One that is newer counts even if a power cut took something of it.
                let complete = usable(&v.copy) || v.copy.cut || newer == Some(Which::Peer);
                let cannot = since && (older || !complete);
                let told = matches!(self.wanted, Wanted::Prim(_)) && !complete;
                if self.has_yielded(v) || cannot || told {
                    return Leave::Given;
                }
                match self.choice(v) {
                    // It is there, and as good as gone. Of what was yielded no arbiter gives the
                    // right back: it would be asked for ever, or end the peer for nothing.
                    Which::Me if self.unanswered == Some(base) && self.yielded != Some(base) => {
                        self.separated(base)
                    }
                    Which::Me => Leave::Wait(Reason::Asking),
                    Which::Peer => Leave::Wait(Reason::PeerServes),
                }
            }
            Peer::Silent => {
                if self.yielded == Some(base) {
                    return Leave::Wait(Reason::PeerMayBeNewer);
                }
                self.separated(base)
            }
        }
    }

    /// The right to go on from `base`, of which the peer says nothing.
    fn separated(&self, base: Generation) -> Leave {
        let agreed = self.agreed == Some(self.config.rules);
        match (self.config.arbiter, self.config.isolation) {
            (Arbiter::None, Isolation::Wait) => Leave::Wait(Reason::Isolated),
            _ if !agreed => Leave::Wait(Reason::Rules),
            (Arbiter::Asked, _) => match self.refused {
                Some(reason) => Leave::Wait(reason),
                None if self.asking || self.releasing => Leave::Wait(Reason::Arbiter),
                None => Leave::Do(Effect::Ask(base)),
            },
            (Arbiter::None, Isolation::Alone) => Leave::Given,
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
        if self.wanted == Wanted::Soon {
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
        if usable(&self.copy.state) && !self.copy.shared && !self.is_overtaken() {
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
            Link::Heir => return self.heir(),
            Link::None | Link::Holding(_) | Link::Forsaken | Link::AtPeer => {}
        }
        if self.app != App::Down {
            return self.wait(Reason::Starting);
        }
        if self.heard().is_some_and(|v| v.serves) {
            return self.wait(Reason::Following);
        }
        if self.wanted == Wanted::Prim(true) {
            return Some(Effect::Promote(Claim::Force));
        }
        if !self.copy.state.current.is_some() {
            return self.wait(Reason::FirstStart);
        }
        let complete = self.is_complete() || self.both_yielded() || self.takes_back();
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
        let told = self.copy.recent || matches!(self.wanted, Wanted::Prim(_));
        let known = self.copy.current || told;
        if !known && self.peer == Peer::Silent {
            return self.wait(Reason::PeerMayBeNewer);
        }
        match self.leave() {
            Leave::Given if self.copy.current => Some(Effect::Promote(Claim::Current)),
            Leave::Given => Some(Effect::Promote(Claim::Right)),
            Leave::Do(effect) => {
                self.wait(Reason::Arbiter);
                Some(effect)
            }
            Leave::Wait(reason) => self.wait(reason),
        }
    }

    /// This node's copy is the only one of its generation. The application is where the disk has
    /// failed, as long as that node serves.
    fn heir(&mut self) -> Option<Effect> {
        let gone = match &self.peer {
            Peer::Unknown => false,
            Peer::Heard(view) => !view.serves,
            Peer::Silent => true,
        };
        let told = matches!(self.wanted, Wanted::Prim(_)) || self.swap;
        if self.app == App::Down && gone && (self.config.failover || told) {
            return Some(Effect::Promote(Claim::Current));
        }
        match gone {
            true => self.wait(Reason::FailoverOff),
            false => self.show(State::Second, Status::Ready, Reason::Heir),
        }
    }

    /// The disk has failed; the peer has the data. The application moves there, in order, and the
    /// driver has nothing to be secondary with.
    fn at_peer(&mut self) -> Option<Effect> {
        let moves = self.heard().is_some_and(|v| {
            let told = self.config.failover || self.swap || v.swaps;
            // One that follows no more carries out no call of here either.
            let takes = v.willing && (told || v.state != State::Second);
            newer(&self.copy.state, &v.copy) == Some(Which::Peer) && (v.serves || takes)
        });
        if moves {
            self.show(State::Prim, Status::Transient, Reason::Swapping);
            return match self.app {
                App::Up => Some(Effect::StopApp),
                App::Down => Some(Effect::StopDriver),
                App::Starting | App::Stopping => None,
            };
        }
        if self.app == App::Down {
            return Some(Effect::StartApp);
        }
        self.show(State::Alone, Status::Ready, Reason::AtPeer)
    }

    /// The peer has said that its copy is the newer one.
    pub(super) fn is_overtaken(&self) -> bool {
        self.heard()
            .is_some_and(|v| newer(&self.copy.state, &v.copy) == Some(Which::Peer))
    }

    /// The peer serves by right, or is to: this primary has lost its own.
    fn is_overruled(&self) -> bool {
        let denied = matches!(self.link, Link::Holding(_)) && self.refused == Some(Reason::Denied);
        let forsaken = self.link == Link::Forsaken;
        // The peer's copy is the newer one then, and this node serves from it.
        let at_peer = self.link == Link::AtPeer;
        !at_peer && (self.is_overtaken() || denied || forsaken)
    }

    /// Whether the application, if it runs here, is to be found at its addresses. If not, the peer
    /// takes them, and does not wait until the application is stopped.
    pub fn may_be_reached(&self) -> bool {
        self.driver == Driver::Up(Role::Primary) && !self.is_overruled()
    }

    fn primary(&mut self) -> Option<Effect> {
        if self.link == Link::AtPeer {
            return self.at_peer();
        }
        if self.is_overruled() || self.swaps_now() {
            self.show(State::Prim, Status::Transient, Reason::Swapping);
            if let Link::Holding(question) = self.link {
                return Some(Effect::Forsake(question));
            }
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
                // Nobody is served until this changes.
                Leave::Wait(reason @ (Reason::Isolated | Reason::PeerMayBeNewer)) => {
                    self.wait(reason)
                }
                Leave::Wait(Reason::Arbiter) if !self.asking => self.wait(Reason::Arbiter),
                Leave::Wait(reason) => self.show(State::Prim, Status::Transient, reason),
            };
        }
        if self.app == App::Down {
            return Some(Effect::StartApp);
        }
        if self.restart {
            return Some(Effect::StopApp);
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

    /// Whether the peer is ready to take this primary's role.
    pub(super) fn is_followed(&self) -> bool {
        let ready = (State::Second, Status::Ready);
        let follows = |v: &View| v.willing && (v.state, v.status) == ready;
        self.link == Link::Paired && self.heard().is_some_and(follows)
    }

    /// Whether the roles are to be exchanged, and can be.
    fn swaps_now(&self) -> bool {
        let Some(peer) = self.heard() else {
            return false;
        };
        let ready = self.is_followed();
        let preferred = self
            .config
            .default_prim
            .is_some_and(|s| s != self.config.side);
        ready && (self.swap || peer.swaps || preferred)
    }
}
