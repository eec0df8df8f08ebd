//! What follows from resources: checkers begin and end with the module's states, rules act on
//! the module, and one that is to wait waits.

use std::collections::BTreeMap;

use twinfold_protocol::automaton::{Event, Link, State, Status, Wanted};

use super::memory::{self, AppName, WantedName};
use super::{Input, Runner};
use crate::checkers::{self, Found, Surroundings};
use crate::config::{Action, ResourceState, When};
use crate::peer::StateName;

impl Runner {
    /// A checker says what it found. One that has ended meanwhile does not count.
    pub(super) fn found(&mut self, number: usize, run: u64, (state, why): Found) {
        if self.board.running.get(&number).is_none_or(|r| r.0 != run) {
            return;
        }
        let name = self.setup.config.checkers[number].resource();
        self.resource(&name, state, why)
            .unwrap_or_else(|e| self.say("error", e));
    }

    /// Somebody says with `twinfold set` what a resource is. What the program of a checker says
    /// that has ended meanwhile does not count: nobody would take it back.
    pub(super) fn told(&mut self, name: &str, state: ResourceState) -> Result<String, String> {
        let mut checkers = self.setup.config.checkers.iter();
        if let Some(number) = checkers.position(|c| c.resource() == name)
            && !self.board.running.contains_key(&number)
        {
            let why = match self.memory.get().suspended {
                true => "checkers are suspended".to_owned(),
                false => format!(
                    "it does not look in the state {}",
                    StateName::from(self.seen.0).text()
                ),
            };
            return Err(format!("{name} belongs to a checker: {why}"));
        }
        self.resource(name, state, None)?;
        Ok(format!("{name} is {}", state.text()))
    }

    /// A resource is in this state, says a checker or the operator.
    pub(super) fn resource(
        &mut self,
        name: &str,
        state: ResourceState,
        why: Option<String>,
    ) -> Result<(), String> {
        if !self.board.set(name, state)? {
            return Ok(());
        }
        let text = match &why {
            Some(why) => format!("{name} is {}: {why}", state.text()),
            None => format!("{name} is {}", state.text()),
        };
        match why {
            Some(why) => self.board.reasons.insert(name.to_owned(), why),
            None => self.board.reasons.remove(name),
        };
        if state != ResourceState::Init {
            self.say("resource", text);
        }
        self.tell_peer();
        Ok(())
    }

    /// Whether the witness that decides by echoes was reached.
    pub(super) fn witness_is(&mut self, state: ResourceState, why: Option<String>) {
        if let Some(splitbrain) = &self.setup.config.splitbrain {
            let name = format!("splitbrain.{}", splitbrain.ident);
            self.resource(&name, state, why)
                .unwrap_or_else(|e| self.say("error", e));
        }
    }

    /// Whether a checker looks in the module's present state.
    fn looks(&self, when: When) -> bool {
        let state = self.seen.0;
        let up = self.memory.get().app == AppName::Up;
        let prim = up && matches!(state, State::Alone | State::Prim);
        let second = state == State::Second;
        match when {
            When::Pre => {
                let starts = self.next_want.is_some() || self.memory.get().held.is_some();
                starts || self.memory.get().wanted != WantedName::Stopped
            }
            When::Prim => prim,
            When::Second => second,
            When::Both => prim || second,
            When::Sec => second || (up && state == State::Alone),
        }
    }

    fn follow_checkers(&mut self) {
        let suspended = self.memory.get().suspended;
        for number in 0..self.setup.config.checkers.len() {
            let checker = &self.setup.config.checkers[number];
            let looks = !suspended && self.looks(checker.when);
            if looks == self.board.running.contains_key(&number) {
                continue;
            }
            let name = checker.resource();
            if looks {
                self.board.runs += 1;
                let (run, inbox) = (self.board.runs, self.inbox.clone());
                let tell = move |found| {
                    inbox
                        .send(Input::Found(number, run, Box::new(found)))
                        .is_ok()
                };
                let around = Surroundings {
                    module: self.setup.name.clone(),
                    hub: self.hub.clone(),
                    vips: self.setup.vips.clone(),
                    scripts: self.setup.scripts.clone(),
                };
                match checkers::start(checker.clone(), around, tell) {
                    Ok(running) => drop(self.board.running.insert(number, (run, running))),
                    Err(error) => self.say("error", format!("{error:#}")),
                }
            } else {
                self.board.running.remove(&number);
            }
            if let Err(error) = self.resource(&name, ResourceState::Init, None) {
                self.say("error", error);
            }
        }
    }

    /// The peer's resources. Of one that is silent nothing is known, whatever it said last.
    fn remote(&self) -> BTreeMap<String, ResourceState> {
        let heard = self.peer.as_ref().filter(|_| !self.silent);
        heard.map(|p| p.resources.clone()).unwrap_or_default()
    }

    /// Does what the rules say of the resources as they are.
    pub(super) fn judge(&mut self) {
        self.follow_checkers();
        if matches!(self.link, Some(Link::Holding(_))) {
            // Whoever looks at what waits for an answer sees it hang; it counts from when it goes
            // on. And nobody can be stopped whose calls wait.
            return self.board.forget();
        }
        if self.memory.get().suspended {
            self.board.forget();
            return self.let_go();
        }
        if self.memory.get().held.is_some() {
            return self.let_go();
        }
        if self.memory.get().wanted == WantedName::Stopped || self.boots_at.is_some() {
            return self.board.forget();
        }
        let remote = self.remote();
        let (rules, patience) = (&self.setup.config.rules, self.setup.config.handle_time);
        let due = self.board.judge(rules, &remote, patience);
        for (action, label) in due {
            if self.act(action, &label) {
                self.board.forget();
                return;
            }
        }
    }

    /// Whether something was done.
    fn act(&mut self, action: Action, label: &str) -> bool {
        let (state, status) = (self.seen.0, self.seen.1);
        let ready = status == Status::Ready;
        let possible = match action {
            Action::Stop | Action::Stopstart | Action::Wait => true,
            Action::Restart => matches!(state, State::Alone | State::Prim) && ready,
            Action::Swap => state == State::Prim && ready,
        };
        if !possible {
            return false;
        }
        let why = match self.board.down() {
            Some(down) => format!("the rule {label} ({down})"),
            None => format!("the rule {label}"),
        };
        self.say("rule", format!("{}: {why}", action.text()));
        if action == Action::Stop {
            self.want(WantedName::Stopped);
            return true;
        }
        if self.loops_too_often(&why) {
            return true;
        }
        match action {
            Action::Stop => {}
            Action::Restart => self.events.push_back(Event::Restart),
            Action::Swap => self.events.push_back(Event::Swap),
            Action::Stopstart => {
                self.again = true;
                self.remember(|m| m.next = Some(WantedName::Running));
                self.want(WantedName::Stopped);
            }
            Action::Wait => {
                self.remember(|m| m.held = Some(WantedName::Running));
                self.want(WantedName::Stopped);
            }
        }
        true
    }

    /// Counts what a rule or a failed start makes the module do; the module stops when that is
    /// too often.
    pub(super) fn loops_too_often(&mut self, why: &str) -> bool {
        let service = &self.setup.config.service;
        let (interval, most) = (service.loop_interval, service.maxloop as usize);
        let count = memory::count_loop(&mut self.loops, memory::now(), interval, most);
        // The next daemon goes on counting, also after a boot.
        let loops = self.loops.clone();
        self.remember(|m| m.loops = loops);
        if count <= most {
            return false;
        }
        self.say(
            "error",
            format!(
                "maxloop: {count} times, the last time because of {why}; the module stops. Repair \
                     it, then run `start`"
            ),
        );
        self.forget_next();
        self.remember(|m| m.held = None);
        self.want(WantedName::Stopped);
        true
    }

    /// The module is to start, as soon as no rule says to wait.
    pub(super) fn begin(&mut self, wanted: WantedName) {
        self.setup.scripts.set_forced(false);
        self.remember(|m| m.held = Some(wanted));
        self.judge();
    }

    /// Starts what is held and has nothing to wait for any more.
    fn let_go(&mut self) {
        let Some(wanted) = self.memory.get().held else {
            return;
        };
        let down = self.pid.is_none() && self.memory.get().app == AppName::Down;
        let stopped = down && (self.seen.0 == State::Stop || self.soon) && !self.stopping;
        if !stopped || self.next_want.is_some() {
            return;
        }
        let remote = self.remote();
        let config = &self.setup.config;
        let blocked = match self.memory.get().suspended {
            true => None,
            false => self.board.blocked(&config.rules, &config.checkers, &remote),
        };
        if blocked != self.blocked {
            if let Some((_, why)) = &blocked {
                self.say("state", format!("WAIT: {why}"));
            }
            self.blocked = blocked;
            self.tell_peer();
        }
        let grave = self.blocked.as_ref().is_some_and(|b| b.0);
        if grave && wanted.is_forced() {
            // Such a word is for now: what is right today may be the loss of the peer's data on
            // the day on which the rule has nothing to say any more.
            self.remember(|m| m.held = Some(WantedName::Running));
            self.say("command", "the word `primforce` is not kept until then");
        }
        if self.soon && grave {
            // The peer need not wait for it.
            self.soon = false;
            self.events.push_back(Event::Want(Wanted::Stopped));
        }
        if self.blocked.is_none() {
            self.soon = false;
            self.starts(wanted);
            self.remember(|m| m.held = None);
        }
    }

    /// What is shown while the module waits for a rule's sake: whether somebody has to do
    /// something, and why it waits.
    pub(super) fn waits(&self) -> Option<(Status, String)> {
        self.memory.get().held?;
        let (grave, why) = self
            .blocked
            .as_ref()
            .filter(|_| self.seen.0 == State::Stop)?;
        let status = if *grave {
            Status::NotReady
        } else {
            Status::Transient
        };
        Some((status, why.clone()))
    }
}
