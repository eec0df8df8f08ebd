//! What the automaton wants of driver and peer, carried out by threads that may wait.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use fs_driver::control::{Hex, Request};
use fs_driver::setup::stopped;
use twinfold_protocol::automaton::{Claim, Effect, Event};
use twinfold_protocol::handshake::Role;
use twinfold_protocol::ids::{Generation, SessionId};

use super::{Done, Input, Pending, Runner};
use crate::config::ResourceState;
use crate::driver::Place;
use crate::etcd::Witness;
use crate::net::{hardware, ping};
use crate::peer::WireView;

/// The longest pause before something that failed again and again is tried once more.
const MAX_PAUSE: Duration = Duration::from_secs(30);

/// How often a primary's mount may be in use by what the stop scripts left, before it is taken
/// away.
const PATIENT_DEMOTIONS: u32 = 3;

/// How long the witness may take to answer an echo, several times sent.
const REACH: Duration = Duration::from_secs(2);

/// How long a yield in place of a driver may wait for one that is starting or ending.
const YIELD: Duration = Duration::from_secs(20);

/// How often it looks.
const LOOK: Duration = Duration::from_millis(20);

impl Runner {
    pub(super) fn perform(&mut self, effect: Effect) {
        match effect {
            Effect::Tell => self.tell_peer(),
            Effect::StartApp => self.begin_app(),
            Effect::StopApp => self.end_app(),
            Effect::Ask(generation) => {
                // What is not noted before would never be given back.
                let asked = Some(Hex(generation.0));
                self.remember(|m| m.asked = asked);
                let splitbrain = self.setup.config.splitbrain.clone();
                match (self.setup.witness.clone(), splitbrain) {
                    _ if self.memory.get().asked != asked => {
                        self.events.push_back(Event::Unreachable);
                    }
                    (Some(witness), _) => self.ask(witness, generation),
                    (None, Some(splitbrain)) => self.reach(splitbrain.addresses, generation),
                    (None, None) => self.fence(generation),
                }
            }
            Effect::Release(generation) => self.release(generation),
            Effect::Yield(generation, session) => self.give_way(generation, session),
            Effect::GoAlone(question) => {
                self.say("driver", "goes on without its peer");
                let request = Request::GoOn { question };
                self.work(0, Duration::ZERO, move |place| place.ask(request).map(drop));
            }
            Effect::Forsake(question) => self.forsake(question),
            Effect::Start(role, force) => {
                self.say("driver", format!("starts as {}", name(role)));
                let inbox = self.inbox.clone();
                self.change(effect, move |place| {
                    place.start(role, force, &inbox).map(drop)
                });
            }
            Effect::Promote(claim) => {
                let memory = self.memory.get();
                let request = match claim {
                    Claim::Force => Request::Promote { force: true },
                    Claim::Current => Request::Promote { force: false },
                    Claim::Right => Request::Claim {
                        yielded: memory.yielded == Some(Hex(self.copy.state.current.0))
                            || self.copy.state.cut,
                    },
                };
                self.say("driver", "becomes primary");
                self.change(effect, move |place| place.ask(request).map(drop));
            }
            Effect::Demote => {
                self.say("driver", "becomes secondary");
                let force = self.failures >= PATIENT_DEMOTIONS;
                let request = Request::Demote { force };
                self.change(effect, move |place| place.ask(request).map(drop));
            }
            Effect::StopDriver => {
                let pid = self.pid;
                self.change(effect, move |place| place.stop(pid));
            }
        }
    }

    /// Tells the peer how this module is.
    pub(super) fn tell_peer(&self) {
        self.stale.set(true);
        let config = self.setup.version.as_ref().map(|v| v.hash.clone());
        let mut view = WireView::new(&self.automaton.view(), self.seen.2.clone(), config);
        view.resources = self.board.states.clone();
        view.present = self.standing.as_ref().is_some_and(|s| s.present);
        if !self.setup.config.addresses.is_empty() {
            // Interfaces come and go.
            view.has_hardware(&hardware::seen());
        }
        if let Some((status, why)) = self.waits() {
            view.waits(status, &why);
        }
        self.hub.tell(&self.setup.name, view);
    }

    /// What the primary holds is answered with an error: nobody can be stopped who waits for it.
    pub(super) fn forsake(&self, question: u64) {
        self.say("driver", "gives way: what waited for the peer has failed");
        let request = Request::Forsake { question };
        self.work(0, Duration::ZERO, move |place| place.ask(request).map(drop));
    }

    /// The connection to the peer's driver is closed: the peer's daemon says that it is gone.
    pub(super) fn disconnect(&self) {
        let place = self.setup.place.clone();
        spawn(move || {
            if let Err(error) = place.ask(Request::Disconnect) {
                tracing::debug!(%error, "the connection was not closed");
            }
        });
    }

    /// Asks the witness whether this node may go on without its peer.
    fn ask(&self, witness: Witness, generation: Generation) {
        let (module, inbox) = (self.copy.state.module, self.inbox.clone());
        let node = self.hub.cluster.identity.fingerprint().to_string();
        spawn(move || {
            let result = witness
                .ask(module, generation, &node)
                .map_err(|e| format!("{e:#}"));
            let _ = inbox.send(Input::Done(Done::Asked(generation, result)));
        });
    }

    /// Looks whether this node reaches the witness; who does has the right, as far as that goes.
    fn reach(&self, addresses: Vec<IpAddr>, generation: Generation) {
        let inbox = self.inbox.clone();
        spawn(move || {
            let result = ping::first(&addresses, REACH).map_err(|e| format!("{e:#}"));
            let _ = inbox.send(Input::Done(Done::Reached(generation, result)));
        });
    }

    /// Gives back what the witness may have granted in vain.
    fn release(&mut self, generation: Generation) {
        let Some(witness) = self.setup.witness.clone() else {
            return self.events.push_back(Event::Released(generation));
        };
        let (module, inbox) = (self.copy.state.module, self.inbox.clone());
        let node = self.hub.cluster.identity.fingerprint().to_string();
        spawn(move || {
            let result = witness
                .release(module, generation, &node)
                .map_err(|e| format!("{e:#}"));
            let _ = inbox.send(Input::Done(Done::Released(generation, result)));
        });
    }

    /// Ends the peer; who has ended it has the right.
    fn fence(&mut self, generation: Generation) {
        let Some(fence) = self.setup.config.fence.clone() else {
            return self.events.push_back(Event::Unreachable);
        };
        self.say("peer", format!("is silent and is ended: {}", fence.command));
        let (scripts, inbox) = (self.setup.scripts.clone(), self.inbox.clone());
        let peer = self.hub.cluster.peer.clone();
        spawn(move || {
            let result = scripts
                .fence(fence.command.as_ref(), &peer, fence.timeout)
                .map_err(|e| format!("{e:#}"));
            let _ = inbox.send(Input::Done(Done::Fence(generation, result)));
        });
    }

    /// An effect that changes what the driver is, one at a time.
    fn change(
        &mut self,
        effect: Effect,
        work: impl FnOnce(&Place) -> anyhow::Result<()> + Send + 'static,
    ) {
        self.numbers += 1;
        self.pending = Some(Pending {
            number: self.numbers,
            effect,
            done: false,
        });
        let pause = match self.failures {
            0 | 1 => Duration::ZERO,
            n => Duration::from_secs(1 << (n - 2).min(8)).min(MAX_PAUSE),
        };
        self.work(self.numbers, pause, work);
    }

    pub(super) fn work(
        &self,
        number: u64,
        pause: Duration,
        work: impl FnOnce(&Place) -> anyhow::Result<()> + Send + 'static,
    ) {
        let (place, inbox) = (self.setup.place.clone(), self.inbox.clone());
        spawn(move || {
            std::thread::sleep(pause);
            let result = work(&place).map_err(|e| format!("{e:#}"));
            let _ = inbox.send(Input::Done(Done::Driver(number, result)));
        });
    }

    /// This node's yield is made durable: by the driver, or in its place.
    fn give_way(&self, generation: Generation, session: Option<SessionId>) {
        self.say("peer", "gives way to the peer, which asks for it");
        let (place, inbox) = (self.setup.place.clone(), self.inbox.clone());
        let request = Request::Yield {
            generation: Hex(generation.0),
            session: session.map(|s| Hex(s.0)),
        };
        spawn(move || {
            let until = Instant::now() + YIELD;
            let result = loop {
                let by_driver = place.ask(request);
                let result = match by_driver {
                    Ok(Some(answer)) => Ok(answer["yielded"] == true),
                    Ok(None) => Err("the driver told nothing".to_owned()),
                    Err(_) => {
                        stopped::yield_copy(&place.layout, generation).map_err(|e| format!("{e:#}"))
                    }
                };
                if result.is_ok() || Instant::now() > until {
                    break result;
                }
                std::thread::sleep(LOOK);
            };
            let _ = inbox.send(Input::Done(Done::Yield(generation, result)));
        });
    }

    pub(super) fn done(&mut self, done: Done) {
        match done {
            Done::Driver(0, result) => {
                if let Err(error) = result {
                    self.say("driver", error);
                }
                // Whatever it says next is told again; what it said last is from before this.
                self.link = None;
            }
            Done::Driver(number, result) => self.changed(number, result),
            Done::Yield(generation, Ok(true)) => {
                self.remember(|m| m.yielded = Some(Hex(generation.0)));
                self.events.push_back(Event::Yielded(generation));
            }
            Done::Yield(_, Ok(false)) => self.events.push_back(Event::Kept),
            Done::Yield(_, Err(error)) => {
                self.say("error", format!("cannot give way: {error}"));
                self.events.push_back(Event::Kept);
            }
            Done::Said(text) => self.say("address", text),
            Done::Job(job, result) => self.job_done(job, result),
            Done::Asked(generation, Ok(granted)) => {
                let (text, event) = match granted {
                    true => ("lets this node go on", Event::Granted(generation)),
                    false => ("has let the peer go on", Event::Denied(generation)),
                };
                self.say_verdict("peer", format!("the witness {text}"));
                self.events.push_back(event);
            }
            Done::Asked(_, Err(error)) => {
                self.say_verdict("error", format!("the witness does not answer: {error}"));
                self.events.push_back(Event::Unreachable);
            }
            Done::Reached(generation, Ok(address)) => {
                self.say_verdict(
                    "peer",
                    format!(
                        "the witness {address} answers: this node goes on (so does the peer, if \
                         it lives and reaches it as well)"
                    ),
                );
                self.witness_is(ResourceState::Up, None);
                self.events.push_back(Event::Granted(generation));
            }
            Done::Reached(_, Err(error)) => {
                self.witness_is(ResourceState::Down, Some(error.clone()));
                self.say_verdict("error", format!("the witness is not reached: {error}"));
                self.events.push_back(Event::Unreachable);
            }
            Done::Released(generation, Ok(())) => {
                self.say_verdict("peer", "the witness decides anew next time".into());
                self.events.push_back(Event::Released(generation));
            }
            Done::Released(_, Err(error)) => {
                self.say_verdict(
                    "error",
                    format!("the witness still has what it granted in vain: {error}"),
                );
                self.events.push_back(Event::Unreleased);
            }
            Done::Fence(generation, Ok(())) => {
                self.say("peer", "is ended; this node may go on without it");
                self.events.push_back(Event::Granted(generation));
            }
            Done::Fence(_, Err(error)) => {
                self.say_verdict("error", format!("the peer could not be ended: {error}"));
                self.events.push_back(Event::Unreachable);
            }
        }
    }

    fn changed(&mut self, number: u64, result: Result<(), String>) {
        let Some(pending) = self.pending.as_mut().filter(|p| p.number == number) else {
            return;
        };
        let effect = pending.effect;
        let Err(error) = result else {
            pending.done = true;
            return self.settle();
        };
        self.say("driver", error);
        self.failures += 1;
        match effect {
            Effect::Promote(_) | Effect::Demote => {
                self.pending = None;
                let role = match effect {
                    Effect::Demote => Role::Primary,
                    _ => Role::Secondary,
                };
                self.events.push_back(Event::DriverStays(role));
                // What it says now is newer, and decides what comes next: it may have become so
                // although nobody heard the answer.
                if let Some(standing) = self.standing.clone() {
                    self.stands(standing);
                }
            }
            // Its end comes, or came, by itself.
            Effect::StopDriver => {}
            _ => {
                self.pending = None;
                if self.pid.is_none() {
                    self.down();
                }
            }
        }
    }
}

fn name(role: Role) -> &'static str {
    match role {
        Role::Primary => "primary",
        Role::Secondary => "secondary",
    }
}

pub(super) fn spawn(work: impl FnOnce() + Send + 'static) {
    // Without a thread nothing can be done at all; the retry comes.
    if let Err(error) = std::thread::Builder::new().name("work".into()).spawn(work) {
        tracing::error!(%error, "no thread can be started");
    }
}
