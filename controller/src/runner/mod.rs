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
mod command;
pub(crate) mod events;
mod facts;
mod memory;
mod perform;

use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use fs_driver::control::Standing;
use fs_driver::setup::stopped;
use serde::{Deserialize, Serialize};
use twinfold_protocol::automaton::{
    Arbiter, Automaton, Config, Copy, Effect, Event, Isolation, Link, State, Status, Wanted,
};
use twinfold_protocol::handshake::{CopyState, Role};
use twinfold_protocol::ids::{Generation, SessionId};

use crate::driver::Place;
use crate::peer::{Hub, StateName, StatusName, WireView};
use crate::scripts::Scripts;
use app::Job;
use events::EventLog;
use memory::{AppName, Remembered, WantedName, boot_id};

/// How often silence and tries again are looked at.
const TICK: Duration = Duration::from_millis(200);

/// What did not work is tried again when nothing has happened for so long.
const RETRY: Duration = Duration::from_secs(5);

/// How long a driver that runs already may take to tell how it stands.
const ADOPT: Duration = Duration::from_secs(15);

/// Something that concerns a module.
#[derive(Debug)]
pub(crate) enum Input {
    /// How its driver stands.
    Standing(Box<Standing>),
    /// Its driver has ended.
    DriverGone { pid: u32, why: String },
    /// What the peer says.
    Peer(Box<WireView>),
    /// What was begun has ended.
    Done(Done),
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
    /// Of scripts.
    Job(Job, Result<(), String>),
    /// Of the fence command, for the right to this generation.
    Fence(Generation, Result<(), String>),
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
    /// Exchange the roles.
    Swap,
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
    /// The driver's process.
    pub(crate) driver: Option<u32>,
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
    pub(crate) config: crate::config::Module,
    pub(crate) place: Place,
    pub(crate) scripts: Scripts,
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
    jobs: Sender<Job>,
    log: EventLog,
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
    pending: Option<Pending>,
    numbers: u64,
    /// Failures of the driver in a row.
    failures: u32,
    /// Failures of the application's start.
    loops: VecDeque<Instant>,
    /// What shall be wanted when `prestart` has ended.
    next_want: Option<WantedName>,
    /// Start again when stopped.
    again: bool,
    /// What was said of the arbiter last: it is asked again and again.
    verdict: String,
    busy: Instant,
}

impl Runner {
    fn say(&self, kind: &str, text: impl Into<String>) {
        self.log.say(kind, text);
    }

    /// Notes what came of asking the arbiter, if that is new.
    fn say_verdict(&mut self, kind: &str, text: String) {
        if text != self.verdict {
            self.say(kind, text.clone());
            self.verdict = text;
        }
    }

    /// Feeds what is waiting, and carries out what follows.
    fn pump(&mut self) {
        while let Some(event) = self.events.pop_front() {
            self.busy = Instant::now();
            let effects = self.automaton.handle(event);
            self.show();
            for effect in effects {
                self.perform(effect);
            }
        }
        self.publish();
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
            return;
        }
        let (from, to) = (
            StateName::from(before.0).text(),
            StateName::from(state).text(),
        );
        if before.0 == State::Second {
            self.job(Job::StopSecond(from, to));
        }
        if state == State::Second {
            self.job(Job::StartSecond(from, to));
        }
        if state == State::Stop {
            self.job(Job::Poststop(from));
        }
    }

    fn publish(&self) {
        let (state, status, reason) = &self.seen;
        let standing = self.standing.as_ref();
        let new = ModuleState {
            module: self.setup.name.clone(),
            state: StateName::from(*state).text().into(),
            status: StatusName::from(*status).text().into(),
            reason: reason.clone(),
            up_to_date: self.copy.state.up_to_date,
            trouble: standing.and_then(|s| {
                let all = [&s.fenced, &s.conflict, &s.trouble];
                all.into_iter().flatten().next().cloned()
            }),
            percent: standing.and_then(|s| s.percent),
            driver: self.pid,
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

    fn run(&mut self, inbox: &Receiver<Input>) {
        loop {
            match inbox.recv_timeout(TICK) {
                Ok(input) => self.take(input),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            self.tick();
            self.pump();
        }
    }

    fn take(&mut self, input: Input) {
        match input {
            Input::Standing(standing) => self.stands(standing),
            Input::DriverGone { pid, why } => self.driver_gone(pid, &why),
            Input::Peer(view) => self.hears(*view),
            Input::Done(done) => self.done(done),
            Input::Command(command, answer) => {
                let answered = self.command(command);
                self.pump();
                // Whoever asked may have gone.
                let _ = answer.send(answered);
            }
        }
    }

    fn hears(&mut self, view: WireView) {
        let before = self.peer.replace(view.clone());
        // What the peer's daemon knows at once, the connection between the drivers shows only
        // after its timeout.
        let gone = before.is_some_and(|b| match self.role {
            Some(Role::Secondary) => b.serves && !view.serves,
            Some(Role::Primary) => b.state == StateName::Second && view.state != StateName::Second,
            None => false,
        });
        if gone && matches!(self.link, Some(Link::Paired | Link::Syncing)) {
            self.disconnect();
        }
        self.events.push_back(Event::Heard((&view).into()));
    }

    fn tick(&mut self) {
        let heart = &self.setup.config.heart;
        let quiet = self.hub.quiet(&heart.lans);
        let silent = quiet >= heart.timeout;
        if silent && !self.silent {
            self.silent = true;
            self.say("peer", "no heartbeat on any network");
            self.verdict.clear();
            self.events.push_back(Event::Silent);
        } else if !silent && self.silent {
            self.silent = false;
            self.say("peer", "heard again");
            if let Some(view) = self.hub.told(&self.setup.name) {
                self.hears(view);
            }
        }
        let settled = matches!(self.seen.1, Status::Ready) || self.seen.0 == State::Stop;
        if !settled && self.busy.elapsed() >= RETRY {
            self.events.push_back(Event::Retry);
        }
    }
}

/// The automaton's configuration of a module.
fn automaton_config(config: &crate::config::Module, hub: &Hub) -> Config {
    let service = &config.service;
    let other = match hub.cluster.side {
        twinfold_protocol::ids::Side::Even => twinfold_protocol::ids::Side::Odd,
        twinfold_protocol::ids::Side::Odd => twinfold_protocol::ids::Side::Even,
    };
    Config {
        side: hub.cluster.side,
        arbiter: match config.fence.is_some() || config.etcd.is_some() {
            true => Arbiter::Asked,
            false => Arbiter::None,
        },
        isolation: match service.isolation_alone {
            true => Isolation::Alone,
            false => Isolation::Wait,
        },
        failover: service.failover,
        default_prim: service
            .defaultprim
            .as_ref()
            .map(|name| match *name == hub.cluster.node {
                true => hub.cluster.side,
                false => other,
            }),
    }
}

/// Starts a module's thread; it takes over a driver that runs already.
pub(crate) fn start(setup: Setup, hub: &Arc<Hub>) -> Result<Handle> {
    let mut memory = Remembered::open(&setup.memory)?;
    let boots = memory.get().boot != boot_id();
    if boots {
        let on = setup.config.service.boot;
        memory.change(|m| {
            m.boot = boot_id();
            m.app = AppName::Down;
            m.wanted = match on {
                true => WantedName::Running,
                false => WantedName::Stopped,
            };
        })?;
    }
    let (inbox, inputs) = channel();
    let log = EventLog::new(&setup.logs, &hub.cluster.node, &setup.name);
    let jobs = app::start(
        setup.scripts.clone(),
        inbox.clone(),
        boots || memory.get().app == AppName::Down,
    )?;
    let running = setup.place.adopt(&inbox)?;
    let first = match running {
        None => None,
        Some(_) => match inputs.recv_timeout(ADOPT) {
            Ok(Input::Standing(standing)) => Some(standing),
            _ => anyhow::bail!("the driver that runs already does not tell how it stands"),
        },
    };
    let (history, shared, current) = match &first {
        Some(s) => (s.copy.clone(), s.shared, s.current),
        None => {
            let (history, shared) = stopped::history(&setup.place.layout).with_context(|| {
                format!(
                    "{} is no replicated folder yet: `twinfold fs init` makes one",
                    setup.place.mount.display()
                )
            })?;
            (history, shared, false)
        }
    };
    let copy = Copy {
        state: CopyState::from(&history),
        was: memory.get().was.map(Role::from),
        shared,
        current,
        session: memory.get().session.map(|s| SessionId(s.0)),
    };
    let yielded = memory.get().yielded.map(|g| Generation(g.0));
    let automaton = Automaton::new(automaton_config(&setup.config, hub), copy.clone(), yielded);
    let (state, status, reason) = automaton.shown();
    let shown = Arc::new(Mutex::new(ModuleState {
        module: setup.name.clone(),
        state: String::new(),
        status: String::new(),
        reason: String::new(),
        up_to_date: false,
        trouble: None,
        percent: None,
        driver: None,
        peer: None,
    }));
    let handle = Handle {
        inbox: inbox.clone(),
        shown: shown.clone(),
        logs: setup.logs.clone(),
    };
    let name = setup.name.clone();
    let mut runner = Runner {
        setup,
        hub: hub.clone(),
        inbox,
        jobs,
        log,
        memory,
        automaton,
        events: VecDeque::new(),
        shown,
        seen: (state, status, reason.to_string()),
        standing: None,
        pid: None,
        role: None,
        copy,
        link: None,
        peer: None,
        silent: false,
        pending: None,
        numbers: 0,
        failures: 0,
        loops: VecDeque::new(),
        next_want: None,
        again: false,
        verdict: String::new(),
        busy: Instant::now(),
    };
    runner.take_up(first);
    runner.publish();
    hub.follow(&name, runner.inbox.clone());
    std::thread::Builder::new()
        .name(format!("module {name}"))
        .spawn(move || runner.run(&inputs))
        .context("cannot start the module's thread")?;
    Ok(handle)
}

impl Runner {
    /// Goes on where the daemon before was, with the driver it left running, if it did.
    fn take_up(&mut self, driver: Option<Box<Standing>>) {
        let wanted = self.memory.get().wanted;
        let app = self.memory.get().app;
        match driver {
            Some(standing) if wanted != WantedName::Stopped => {
                self.say("driver", format!("process {} runs already", standing.pid));
                // The automaton catches up with what is so; what it would begin for that has
                // happened already.
                let role = standing.role.map(Role::from);
                self.pid = Some(standing.pid);
                self.automaton.handle(Event::Want(Wanted::Running));
                if let Some(role) = role {
                    self.automaton.handle(Event::DriverUp(role));
                    self.role = Some(role);
                    if role == Role::Primary && app != AppName::Down {
                        self.automaton.handle(Event::AppUp);
                    }
                }
                self.remember(|m| m.wanted = WantedName::Running);
                if role == Some(Role::Primary) {
                    match app {
                        // Started, as the automaton believes; what it began was not carried out.
                        AppName::Up => {}
                        AppName::Down => self.begin_app(),
                        AppName::Starting | AppName::Stopping => self.restart_app(),
                    }
                } else if app != AppName::Down {
                    self.automaton.handle(Event::AppUp);
                    self.restart_app();
                }
                self.show();
                self.stands(standing);
            }
            driver => {
                if app != AppName::Down {
                    self.events.push_back(Event::AppUp);
                }
                if let Some(standing) = driver {
                    self.pid = Some(standing.pid);
                    self.stands(standing);
                }
                if wanted != WantedName::Stopped && self.pid.is_none() && app == AppName::Down {
                    self.next_want = Some(wanted);
                    self.job(Job::Prestart);
                } else if wanted != WantedName::Stopped {
                    self.events.push_back(Event::Want(wanted.into()));
                }
            }
        }
        self.pump();
    }
}
