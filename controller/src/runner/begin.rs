//! A module's beginning: with what it remembers, after a boot or after another daemon.

use std::cell::Cell;
use std::collections::{BTreeMap, VecDeque};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use fs_driver::control::{Hex, Standing};
use fs_driver::setup::stopped;
use twinfold_protocol::automaton::{Arbiter, Automaton, Config, Copy, Event, Isolation, Wanted};
use twinfold_protocol::handshake::{CopyState, Role};
use twinfold_protocol::ids::{Generation, SessionId};

use super::app;
use super::board::Board;
use super::events::EventLog;
use super::memory::{AppName, Remembered, WantedName, boot_id};
use super::{Handle, Input, ModuleState, Runner, Setup, facts, notify};
use crate::config::Boot;
use crate::net::hardware;
use crate::peer::Hub;

/// How long a driver that runs already may take to tell how it stands.
const ADOPT: Duration = Duration::from_secs(15);

/// The automaton's configuration of a module.
pub(super) fn automaton_config(config: &crate::config::Module, hub: &Hub) -> Config {
    let service = &config.service;
    let other = match hub.cluster.side {
        twinfold_protocol::ids::Side::Even => twinfold_protocol::ids::Side::Odd,
        twinfold_protocol::ids::Side::Odd => twinfold_protocol::ids::Side::Even,
    };
    Config {
        side: hub.cluster.side,
        arbiter: match (&config.fence, &config.etcd, &config.splitbrain) {
            (None, None, None) => Arbiter::None,
            _ => Arbiter::Asked,
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
        rules: rules(config),
    }
}

/// A number for what decides a separation: who is asked, or what is done if nobody can be. The
/// addresses of a witness may be others on each node; two clusters have different authorities.
fn rules(config: &crate::config::Module) -> u128 {
    let authority = config.etcd.as_ref().map(|etcd| {
        // One that cannot be read does not get so far.
        blake3::hash(&std::fs::read(&etcd.ca).unwrap_or_default()).to_hex()
    });
    let echoes = config.splitbrain.is_some();
    let asked = (config.fence.is_some(), authority, echoes);
    let alone = asked == (false, None, false) && config.service.isolation_alone;
    let text = format!("{asked:?} {alone}");
    u128::from_le_bytes(
        blake3::hash(text.as_bytes()).as_bytes()[..16]
            .try_into()
            .expect("16 bytes"),
    )
}

/// Starts a module's thread; it takes over a driver that runs already.
pub(crate) fn start(setup: Setup, hub: &Arc<Hub>) -> Result<Handle> {
    let mut memory = Remembered::open(&setup.memory)?;
    let boots = memory.get().boot != boot_id();
    let delay = setup.config.service.boot_delay;
    // One that has never run has no boot yet: the operator says which copy is the good one.
    let is_new = memory.get().boot.is_empty();
    if boots {
        let on = setup.config.service.boot;
        memory.change(|m| {
            m.boot = boot_id();
            (m.app, m.following) = (AppName::Down, AppName::Down);
            let starts = m.next.take().is_some() | m.held.take().is_some();
            let ran = m.wanted != WantedName::Stopped || m.until_boot || starts;
            let on = m.at_boot.unwrap_or(match on {
                Boot::On => true,
                Boot::Off => false,
                Boot::Auto => ran,
            });
            m.until_boot = false;
            m.wanted = match on && !is_new {
                true => WantedName::Running,
                false => WantedName::Stopped,
            };
        })?;
    }
    let (inbox, inputs) = channel();
    let log = EventLog::new(&setup.logs, &hub.cluster.node, &setup.name);
    let nothing_runs = [memory.get().app, memory.get().following] == [AppName::Down; 2];
    let serves = memory.get().app != AppName::Down;
    let jobs = app::start(inbox.clone(), setup.vips.clone(), serves, nothing_runs)?;
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
        recent: facts::is_recent(memory.get().equal_at, setup.config.service.syncdelta),
    };
    let yielded = memory.get().yielded.map(|g| Generation(g.0));
    let asked = memory.get().asked.map(|g| Generation(g.0));
    let agreed = memory.get().agreed.map(|rules| rules.0);
    let automaton = Automaton::new(automaton_config(&setup.config, hub), copy.clone(), yielded)
        .has_asked(asked)
        .has_agreed(agreed);
    // Before the peer hears of other rules: these again would not be those it knows then.
    memory.change(|m| m.agreed = automaton.agreed().map(Hex))?;
    let (state, status, reason) = automaton.shown();
    let shown = Arc::new(Mutex::new(ModuleState {
        module: setup.name.clone(),
        state: String::new(),
        status: String::new(),
        reason: String::new(),
        up_to_date: false,
        trouble: None,
        percent: None,
        resync: None,
        driver: None,
        base: String::new(),
        resources: BTreeMap::new(),
        suspended: false,
        needs: Vec::new(),
        ending: false,
        peer: None,
    }));
    let handle = Handle {
        inbox: inbox.clone(),
        shown: shown.clone(),
        logs: setup.logs.clone(),
    };
    let name = setup.name.clone();
    let loops = memory.get().loops.clone();
    let mut runner = Runner {
        setup,
        hub: hub.clone(),
        inbox,
        jobs,
        over: false,
        log,
        notes: notify::start(&name)?,
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
        presence: Default::default(),
        pending: None,
        numbers: 0,
        failures: 0,
        loops,
        next_want: None,
        again: false,
        boots_at: boots.then(|| Instant::now() + delay),
        compares: None,
        verdict: String::new(),
        clusters: None,
        board: Board::default(),
        stopping: false,
        soon: false,
        blocked: None,
        asked_at: None,
        withdrawn: false,
        hardware: Vec::new(),
        stale: Cell::new(true),
        busy: Instant::now(),
    };
    runner.take_up(first);
    runner.publish();
    hub.beats(&name, Some(runner.setup.config.heart.pulse));
    hub.follow(&name, runner.inbox.clone());
    let looks = runner.inbox.clone();
    hardware::tell(move || looks.send(Input::Look).is_ok());
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
        if driver.is_some() {
            self.boots_at = None;
        }
        match driver {
            Some(standing) if wanted != WantedName::Stopped => {
                self.say("driver", format!("process {} runs already", standing.pid));
                // The automaton catches up with what is so; what it would begin for that has
                // happened already.
                // One that serves its peer, whose disk has failed, follows.
                let role = Runner::part(&standing);
                self.pid = Some(standing.pid);
                self.automaton.handle(Event::Want(Wanted::Running));
                if let Some(role) = role {
                    self.automaton.handle(Event::DriverUp(role));
                    self.role = Some(role);
                    if role == Role::Primary && app != AppName::Down {
                        self.automaton.handle(Event::AppUp);
                    }
                }
                self.remember(|m| {
                    m.wanted = WantedName::Running;
                    m.held = None;
                });
                if role == Some(Role::Primary) {
                    match app {
                        // As the automaton believes; and it is told below that nothing runs.
                        AppName::Up | AppName::Down => {}
                        AppName::Starting | AppName::Stopping => {
                            self.events.push_back(Event::Restart);
                        }
                    }
                } else if app != AppName::Down {
                    self.automaton.handle(Event::AppUp);
                    self.end_app();
                }
                self.show();
                self.stands(standing);
                if role == Some(Role::Primary) && app == AppName::Down {
                    // What it began was not carried out: whether it is to be is decided behind
                    // what the driver says of its peer. One that has lost its right starts nothing.
                    self.events.push_back(Event::AppDown);
                }
            }
            driver => {
                if app != AppName::Down {
                    self.events.push_back(Event::AppUp);
                }
                if let Some(standing) = driver {
                    self.pid = Some(standing.pid);
                    self.stands(standing);
                }
                let runs = self.pid.is_some() || app != AppName::Down;
                let next = self.memory.get().next;
                // The daemon before was about to do so.
                let wanted = match runs {
                    false => next.unwrap_or(wanted),
                    true => wanted,
                };
                self.again = runs && next.is_some();
                if wanted == WantedName::Stopped || runs {
                    self.boots_at = None;
                }
                if self.boots_at.is_some() {
                    // It starts when its time has come; until then the peer waits for it.
                    self.soon = true;
                    self.events.push_back(Event::Want(Wanted::Soon));
                } else if wanted != WantedName::Stopped && !runs {
                    self.begin(wanted);
                } else if wanted != WantedName::Stopped {
                    self.events.push_back(Event::Want(wanted.into()));
                }
            }
        }
        self.pump();
        // What it was told above concerns the peer as well, whether anything changes now or not.
        self.tell_peer();
    }
}
