//! One module on this node: what happens goes to the automaton, what it wants is carried out.
//!
//! ```text
//!  driver's watch ──┐                        ┌──> driver (start, promote, demote, yield ...)
//!  peer's views ────┤  Input   ┌───────────┐ │
//!  commands ────────┼────────> │ automaton │─┼──> scripts
//!  ends of scripts ─┤          └───────────┘ │
//!  silence ─────────┘                        └──> peer
//! ```
//!
//! One thread owns the module's state and never waits for anything but its inbox; what takes
//! time is done by other threads, whose ends are inputs again. What must survive is remembered
//! durably before it is acted on (`memory`).

mod app;
mod begin;
mod board;
mod command;
mod configure;
pub(crate) mod events;
mod facts;
mod gone;
mod judge;
mod listen;
mod memory;
mod notify;
mod perform;

use std::cell::Cell;
use std::collections::{BTreeMap, VecDeque};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use fs_driver::control::{Hex, Standing};
use serde::{Deserialize, Serialize};
use twinfold_protocol::automaton::{Automaton, Copy, Effect, Event, Link, State, Status, Wanted};
use twinfold_protocol::handshake::Role;
use twinfold_protocol::ids::Generation;

use crate::config::ResourceState;
use crate::driver::Place;
use crate::net::{hardware, vips::Vips};
use crate::peer::{Hub, StateName, StatusName, WireView};
use crate::scripts::Scripts;
use app::{Job, Work};
pub(crate) use begin::start;
use board::Board;
#[cfg(test)]
pub(crate) use board::{MAX_NAME, MAX_RESOURCES};
use events::EventLog;
use memory::{AppName, Remembered, WantedName};

/// How long a module's thread sleeps at most: longer than the time after which a driver says again
/// how it stands.
const ROUND: Duration = Duration::from_millis(2500);

/// How long it sleeps at least when something is due, which the clock may not show yet.
const SOON: Duration = Duration::from_millis(20);

/// What did not work is tried again when nothing has happened for so long.
const RETRY: Duration = Duration::from_secs(5);

/// What is wrong with rules that only one node has.
const RULES_DIFFER: &str = "the nodes have different rules for a separation (<etcd>, <fence>, \
    <splitbrain> or isolation): until they are equal, none goes on without the other";

/// Something that concerns a module.
#[derive(Debug)]
pub(crate) enum Input {
    /// How its driver stands.
    Standing(Box<Standing>),
    /// It stands as it has said last.
    StandsAsBefore { pid: u32 },
    /// Something is different that the module looks at by itself.
    Look,
    /// Its driver has ended.
    DriverGone { pid: u32, why: String },
    /// What the peer says.
    Peer(Box<WireView>),
    /// The kernel of the peer's machine refuses callers at its daemon's port.
    Refused,
    /// What came of looking whether any process of the peer is left.
    Looked(gone::Looked),
    /// What was begun has ended.
    Done(Done),
    /// What the checker with this place in the configuration found, in which run of it.
    Found(usize, u64, Box<crate::checkers::Found>),
    /// A resource is in this state, says the operator or a checker of theirs.
    Set(String, ResourceState, Sender<Result<String, String>>),
    /// It gets another configuration; or would it?
    Configure {
        /// The new one.
        setup: Box<Setup>,
        /// Nothing is changed yet.
        only_look: bool,
        /// Whether it does, or why not.
        answer: Sender<Result<(), String>>,
    },
    /// There is no such module any more.
    Quit(Sender<Result<(), String>>),
    /// The operator wants something; the answer says what follows.
    Command(Command, Sender<Result<String, String>>),
}

/// The end of something.
#[derive(Debug)]
pub(crate) enum Done {
    /// Of an effect on the driver, with its number.
    Driver(u64, Result<(), String>),
    /// Of a yield: whether it was yielded.
    Yield(Generation, Result<bool, String>),
    /// Nothing has ended; something happened to an address.
    Said(String),
    /// Of scripts.
    Job(Job, Result<(), String>),
    /// Of the fence command, for the right to this generation.
    Fence(Generation, Result<(), String>),
    /// Of the echoes to the witness, for the right to this generation: who answered.
    Reached(Generation, Result<std::net::IpAddr, String>),
    /// Of giving back what the witness granted in vain.
    Released(Generation, Result<(), String>),
    /// Of the question to the witness, whether this node may go on from this generation.
    Asked(Generation, Result<bool, String>),
}

/// What an operator can command.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Command {
    /// Run, as whatever the facts say.
    Start,
    /// Stop the application, then the driver.
    Stop,
    /// The same, without waiting for the application's goodwill.
    Forcestop,
    /// Stop and start the application only.
    Restart,
    /// Stop, then start.
    Stopstart,
    /// Run as primary: this copy is the good one.
    Prim,
    /// The same, whatever the peer has: what only the peer has is lost.
    Primforce,
    /// Run as secondary, to begin with.
    Second,
    /// The same, and compare everything with the primary's copy.
    Fullsync,
    /// The same; if both nodes went on alone, this one's copy is given up, and what only it has
    /// goes into its archive.
    Discard,
    /// Exchange the roles.
    Swap,
    /// Look at nothing and follow no rules, for maintenance.
    Suspend,
    /// Do it again.
    Resume,
    /// Stop because the node does: what `boot="auto"` starts again.
    Shutdown,
    /// Start when the node does, whatever the configuration says.
    BootOn,
    /// Do not start when the node does.
    BootOff,
}

/// What an operator sees of a module.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub(crate) struct ModuleState {
    /// Its name.
    pub(crate) module: String,
    /// `STOP`, `WAIT`, `ALONE`, `PRIM` or `SECOND`.
    pub(crate) state: String,
    /// `NotReady`, `Transient` or `Ready`.
    pub(crate) status: String,
    /// Why.
    pub(crate) reason: String,
    /// The copy holds every acknowledged write.
    pub(crate) up_to_date: bool,
    /// What the driver says is wrong.
    pub(crate) trouble: Option<String>,
    /// Hundredths of a running resync.
    pub(crate) percent: Option<u8>,
    /// More of it, as far as the driver tells.
    #[serde(default)]
    pub(crate) resync: Option<crate::api::Resync>,
    /// The driver's process.
    pub(crate) driver: Option<u32>,
    /// The folder's private directory.
    pub(crate) base: String,
    /// What checkers and operators say of its resources.
    pub(crate) resources: BTreeMap<String, ResourceState>,
    /// Nothing is looked at, and no rules are followed.
    pub(crate) suspended: bool,
    /// The modules that it needs, by its checkers.
    #[serde(default)]
    pub(crate) needs: Vec<String>,
    /// It has stopped, but for its last scripts.
    #[serde(default)]
    pub(crate) ending: bool,
    /// The same module on the peer, as far as it is known.
    pub(crate) peer: Option<PeerState>,
}

/// What is known of a module on the peer.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub(crate) struct PeerState {
    /// Its state.
    pub(crate) state: String,
    /// How far it is reached.
    pub(crate) status: String,
    /// Why.
    pub(crate) reason: String,
    /// Its copy holds every acknowledged write.
    pub(crate) up_to_date: bool,
    /// Nothing was heard for the timeout: this is what it said last.
    pub(crate) silent: bool,
}

/// What a module is made of.
#[derive(Debug)]
pub(crate) struct Setup {
    pub(crate) name: String,
    /// Which of the applied configurations it is.
    pub(crate) version: Option<crate::versions::Version>,
    pub(crate) config: crate::config::Module,
    /// What its configuration promises, and what in it is not needed.
    pub(crate) notes: Vec<crate::config::Mistake>,
    pub(crate) place: Place,
    pub(crate) scripts: Scripts,
    pub(crate) vips: Arc<Vips>,
    pub(crate) witness: Option<crate::etcd::Witness>,
    pub(crate) memory: std::path::PathBuf,
    pub(crate) logs: std::path::PathBuf,
}

/// A running module, from outside.
#[derive(Clone, Debug)]
pub(crate) struct Handle {
    pub(crate) inbox: Sender<Input>,
    pub(crate) shown: Arc<Mutex<ModuleState>>,
    pub(crate) logs: std::path::PathBuf,
}

/// An effect on the driver that is under way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Pending {
    number: u64,
    effect: Effect,
    /// It was carried out; the driver is yet to say so.
    done: bool,
}

/// One module.
#[derive(Debug)]
struct Runner {
    setup: Setup,
    hub: Arc<Hub>,
    inbox: Sender<Input>,
    jobs: Sender<Work>,
    /// There is no such module any more.
    over: bool,
    log: EventLog,
    notes: notify::Told,
    memory: Remembered,
    automaton: Automaton,
    events: VecDeque<Event>,
    shown: Arc<Mutex<ModuleState>>,
    seen: (State, Status, String),
    /// What the driver said last, and its process.
    standing: Option<Box<Standing>>,
    pid: Option<u32>,
    /// What the automaton was told.
    role: Option<Role>,
    copy: Copy,
    link: Option<Link>,
    peer: Option<WireView>,
    silent: bool,
    presence: gone::Presence,
    pending: Option<Pending>,
    numbers: u64,
    /// Failures of the driver in a row.
    failures: u32,
    /// What `maxloop` counts, also where it cannot be remembered.
    loops: Vec<u64>,
    /// What shall be wanted when `prestart` has ended.
    next_want: Option<WantedName>,
    /// Start again when stopped.
    again: bool,
    /// When the module starts after a boot.
    boots_at: Option<Instant>,
    /// The driver that was told to compare everything, and the session in which it was.
    compares: Option<(u32, Hex)>,
    /// What was said of the arbiter last: it is asked again and again.
    verdict: String,
    /// What was said last of how `cluster.xml` differs.
    clusters: Option<Arc<str>>,
    board: Board,
    /// What `poststop` does is not done yet.
    stopping: bool,
    /// It starts with the node, and the peer was told so.
    soon: bool,
    /// Why a module that is to start waits, and whether somebody has to do something.
    blocked: Option<(bool, String)>,
    /// Since when the peer is asked to give way.
    asked_at: Option<Instant>,
    /// The addresses were removed because the peer is to serve.
    withdrawn: bool,
    /// The hardware addresses that the peer was told.
    hardware: Vec<[u8; 6]>,
    /// What is shown may not be what is so.
    stale: Cell<bool>,
    busy: Instant,
}

impl Runner {
    fn say(&self, kind: &str, text: impl Into<String>) {
        let event = self.log.say(kind, text);
        self.notify(&event);
    }

    /// Notes what came of asking the arbiter, if that is new.
    fn say_verdict(&mut self, kind: &str, text: String) {
        if text != self.verdict {
            self.say(kind, text.clone());
            self.verdict = text;
        }
    }

    /// Feeds what is waiting, and carries out what follows; whether there was anything.
    fn pump(&mut self) -> bool {
        let any = !self.events.is_empty();
        while let Some(event) = self.events.pop_front() {
            self.busy = Instant::now();
            let effects = self.automaton.handle(event);
            self.show();
            for effect in effects {
                self.perform(effect);
            }
            self.withdraw_addresses();
            self.forget();
        }
        self.tell_presence();
        if self.stale.replace(false) || any {
            self.publish();
        }
        any
    }

    /// What is used up, a word of the operator or a question to the arbiter, must not be found
    /// again by the next daemon.
    fn forget(&mut self) {
        if !self.events.is_empty() {
            return;
        }
        let word = matches!(
            self.memory.get().wanted,
            WantedName::Prim | WantedName::Primforce | WantedName::Second
        );
        let word = word && self.automaton.wanted() == Wanted::Running;
        let asked = self.automaton.asked().is_some();
        let agreed = self.automaton.agreed().map(Hex);
        self.remember(|m| {
            if word {
                m.wanted = WantedName::Running;
            }
            m.asked = m.asked.filter(|_| asked);
            m.agreed = agreed;
        });
    }

    /// Notes a transition, with its reason.
    fn show(&mut self) {
        let (state, status, reason) = self.automaton.shown();
        let reason = reason.to_string();
        if self.seen == (state, status, reason.clone()) {
            return;
        }
        let before = std::mem::replace(&mut self.seen, (state, status, reason.clone()));
        self.say(
            "state",
            format!(
                "{} {}: {reason}",
                StateName::from(state).text(),
                StatusName::from(status).text()
            ),
        );
        if before.0 == state {
            // Of this alone the automaton tells nothing.
            if before.1 == status {
                self.tell_peer();
            } else if (state, status) == (State::Stop, Status::NotReady) {
                // What the daemon before had begun to stop.
                self.stopping = true;
                self.job(Job::Poststop(StateName::from(state).text()));
            }
            return;
        }
        let (from, to) = (
            StateName::from(before.0).text(),
            StateName::from(state).text(),
        );
        let following = self.memory.get().following;
        let follows = matches!(following, AppName::Starting | AppName::Up);
        // In WAIT a daemon that has just begun does not know yet whether it still follows.
        if before.0 == State::Second || follows && !matches!(state, State::Second | State::Wait) {
            self.remember(|m| m.following = AppName::Stopping);
            self.job(Job::StopSecond(from, to));
        }
        // What the daemon before has started runs on.
        if state == State::Second && following != AppName::Up {
            self.remember(|m| m.following = AppName::Starting);
            self.job(Job::StartSecond(from, to));
        }
        if state == State::Stop {
            self.stopping = true;
            self.job(Job::Poststop(from));
        }
    }

    fn publish(&self) {
        let (mut state, mut status, mut reason) = self.seen.clone();
        if let Some((how, why)) = self.waits() {
            (state, status, reason) = (State::Wait, how, why);
        }
        let standing = self.standing.as_ref();
        let new = ModuleState {
            module: self.setup.name.clone(),
            state: StateName::from(state).text().into(),
            status: StatusName::from(status).text().into(),
            reason,
            up_to_date: self.copy.state.up_to_date,
            trouble: standing
                .and_then(|s| {
                    let all = [&s.fenced, &s.conflict, &s.trouble];
                    all.into_iter().flatten().next().cloned()
                })
                .or_else(|| self.automaton.differs().then(|| RULES_DIFFER.to_owned())),
            percent: standing.and_then(|s| s.percent),
            // Asked for when somebody looks.
            resync: None,
            driver: self.pid,
            base: self.setup.place.layout.base.display().to_string(),
            resources: self.board.states.clone(),
            suspended: self.memory.get().suspended,
            needs: self.setup.config.needs(),
            ending: self.stopping,
            peer: self.peer.as_ref().map(|v| PeerState {
                state: v.state.text().into(),
                status: v.status.text().into(),
                reason: v.reason.clone(),
                up_to_date: v.up_to_date(),
                silent: self.silent,
            }),
        };
        *self.shown.lock().unwrap_or_else(PoisonError::into_inner) = new;
    }

    fn remember(&mut self, change: impl FnOnce(&mut memory::Memory)) {
        if let Err(error) = self.memory.change(change) {
            self.say("error", format!("{error:#}"));
        }
    }

    /// Sleeps until something happens or is due.
    fn run(&mut self, inbox: &Receiver<Input>) {
        let mut until = Instant::now();
        while !self.over {
            self.hub.works(&self.setup.name, until);
            let left = until.saturating_duration_since(Instant::now());
            let input = inbox.recv_timeout(left);
            // From now on it does not sleep, but may hang.
            self.hub.works(&self.setup.name, Instant::now());
            match input {
                Ok(input) => self.take(input),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            self.tick();
            self.judge();
            until = match self.pump() {
                // Checkers and rules look at what has come of it.
                true => Instant::now(),
                false => self.next_round(),
            };
        }
    }

    /// When something is due that no input tells of.
    fn next_round(&self) -> Instant {
        let now = Instant::now();
        let heart = &self.setup.config.heart;
        let unheard = self.hub.quiet(&heart.lans);
        let unheard = unheard.max(self.hub.idle(&self.setup.name));
        let silence = (!self.silent).then(|| now + self.silence().saturating_sub(unheard));
        let asked_at = self.asked_at.filter(|_| self.is_heard());
        let answer = asked_at.map(|at| at + self.patience());
        let again = self.tries_again().then(|| self.busy + RETRY);
        let rule = self.board.due(self.setup.config.handle_time);
        let due = [silence, answer, again, rule, self.boots_at];
        let first = due.into_iter().flatten().min();
        first.map_or(now + ROUND, |at| at.clamp(now + SOON, now + ROUND))
    }

    /// Whether what did not work is to be tried again.
    fn tries_again(&self) -> bool {
        let settled = matches!(self.seen.1, Status::Ready) || self.seen.0 == State::Stop;
        !settled || self.automaton.asked().is_some()
    }

    fn take(&mut self, input: Input) {
        if !matches!(input, Input::StandsAsBefore { .. } | Input::Look) {
            self.stale.set(true);
        }
        match input {
            Input::Standing(standing) => self.stands(standing),
            Input::StandsAsBefore { pid } => {
                if self.pid == Some(pid) {
                    self.settle();
                    self.meet();
                }
            }
            // It does so with each input.
            Input::Look => {}
            Input::DriverGone { pid, why } => self.driver_gone(pid, &why),
            Input::Peer(view) => self.hears(*view),
            Input::Refused => self.refused(),
            Input::Looked(looked) => self.looked(looked),
            Input::Done(done) => self.done(done),
            Input::Found(number, run, found) => self.found(number, run, *found),
            Input::Set(name, state, answer) => {
                // Whoever asked may have gone.
                let _ = answer.send(self.told(&name, state));
            }
            Input::Configure {
                setup,
                only_look,
                answer,
            } => {
                let _ = answer.send(self.configure(*setup, only_look));
            }
            Input::Quit(answer) => {
                self.over = self.seen.0 == State::Stop && self.memory.get().held.is_none();
                let _ = answer.send(match self.over {
                    true => Ok(()),
                    false => Err("the module runs".into()),
                });
            }
            Input::Command(command, answer) => {
                let answered = self.command(command);
                self.pump();
                // Whoever asked may have gone.
                let _ = answer.send(answered);
            }
        }
    }

    fn tick(&mut self) {
        if self.boots_at.is_some_and(|at| Instant::now() >= at) {
            self.boots_at = None;
            match self.differs() {
                Some(why) => {
                    self.say("error", format!("does not start with the node: {why}"));
                    self.events.push_back(Event::Want(Wanted::Stopped));
                }
                None => {
                    self.say("command", "starts with the node");
                    self.begin(self.memory.get().wanted);
                }
            }
        }
        self.setup.scripts.trim_log();
        self.setup.place.trim_log();
        self.say_whether_clusters_differ();
        self.listen();
        self.wait_for_answer();
        if !self.setup.config.addresses.is_empty() && self.hardware != hardware::seen() {
            self.hardware = hardware::seen();
            self.tell_peer();
        }
        if self.tries_again() && self.busy.elapsed() >= RETRY {
            self.events.push_back(Event::Retry);
        }
    }
}
