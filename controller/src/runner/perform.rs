//! What the automaton wants of driver and peer, carried out by threads that may wait.

use std::time::{Duration, Instant};

use fs_driver::control::{Hex, Request};
use fs_driver::setup::stopped;
use twinfold_protocol::automaton::{Effect, Event};
use twinfold_protocol::handshake::Role;
use twinfold_protocol::ids::{Generation, SessionId};

use super::memory::WantedName;
use super::{Done, Input, Pending, Runner};
use crate::driver::Place;
use crate::etcd::Witness;
use crate::peer::WireView;

/// The longest pause before something that failed again and again is tried once more.
const MAX_PAUSE: Duration = Duration::from_secs(30);

/// How often a primary's mount may be in use by what the stop scripts left, before it is taken
/// away.
const PATIENT_DEMOTIONS: u32 = 3;

/// How long a yield in place of a driver may wait for one that is starting or ending.
const YIELD: Duration = Duration::from_secs(20);

/// How often it looks.
const LOOK: Duration = Duration::from_millis(20);

impl Runner {
    pub(super) fn perform(&mut self, effect: Effect) {
        match effect {
            Effect::Tell => {
                let view = WireView::new(&self.automaton.view(), self.seen.2.clone());
                self.hub.tell(&self.setup.name, view);
            }
            Effect::StartApp => self.begin_app(),
            Effect::StopApp => self.end_app(),
            Effect::Ask(generation) => match self.setup.witness.clone() {
                Some(witness) => self.ask(witness, generation),
                None => self.fence(generation),
            },
            Effect::Yield(generation, session) => self.give_way(generation, session),
            Effect::GoAlone(question) => {
                self.say("driver", "goes on without its peer");
                let request = Request::GoOn { question };
                self.work(0, Duration::ZERO, move |place| place.ask(request).map(drop));
            }
            Effect::Start(role, force) => {
                self.say("driver", format!("starts as {}", name(role)));
                let inbox = self.inbox.clone();
                self.change(effect, move |place| {
                    place.start(role, force, &inbox).map(drop)
                });
            }
            Effect::Promote(by_right) => {
                let memory = self.memory.get();
                let request = match (memory.wanted, by_right) {
                    (WantedName::Primforce, _) => Request::Promote { force: true },
                    (_, false) => Request::Promote { force: false },
                    (_, true) => Request::Claim {
                        yielded: memory.yielded == Some(Hex(self.copy.state.current.0)),
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

    fn work(
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
                // Whatever it says now is told again.
                self.link = None;
                self.settle();
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
                // What it says now decides what comes next.
                if let Some(standing) = self.standing.clone() {
                    self.stands(standing);
                }
                self.events.push_back(Event::DriverStays(role));
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

fn spawn(work: impl FnOnce() + Send + 'static) {
    // Without a thread nothing can be done at all; the retry comes.
    if let Err(error) = std::thread::Builder::new().name("work".into()).spawn(work) {
        tracing::error!(%error, "no thread can be started");
    }
}
