//! The line between the two daemons: one TLS connection on each network, by pinned keys;
//! pulses, and what each says of its modules.
//!
//! ```text
//! even node: dials        odd node: listens       (by the order of their identities)
//! {"hello":{"version":1,"node":"a","run":7,"listens":true,"cluster":{...}}}  first, both ways
//! {"pulse":{"works":["vm"],"every_ms":200}}       as often as that; the modules whose thread works
//! {"view":{"module":"vm","number":12,"view":{...}}}   when it changed, and all of them at first
//! ```
//!
//! A frame is its length in four bytes (little endian) and that much JSON. It runs on a thread
//! of its own, at a real-time priority where that is permitted, so that a busy machine does not
//! look like a dead one. What it says of a module counts while that one's thread works: a daemon
//! that lives and cannot run a module does not decide for it. Silence counts only while this node could have listened: one that was
//! frozen does not take its peer for dead when it is thawed.
//!
//! The kernel of the peer's machine is heard as well: where the daemon has died, it refuses
//! callers (`knock`). So the even node lets them in, too, and says that it does.

mod knock;
mod line;
#[cfg(test)]
pub(crate) mod tests;
mod view;

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::Serialize;
use tokio::sync::{Notify, watch};

use crate::cluster::{Cluster, Meaning};
use crate::config::{MIN_PULSE, MIN_PULSES, PULSE};
use crate::runner::Input;

pub(crate) use knock::{Answer, knock};
pub(crate) use view::{StateName, StatusName, WireView, part};

/// A module whose thread has not come round for so long when it should have does not work: it
/// waits for a disk.
const WORKS: Duration = Duration::from_secs(2);

/// A network without a heartbeat for so long, and for three pulses, is shown as lost.
const LOST: Duration = Duration::from_secs(1);

/// A network without a word for so long and for two pulses gets a new connection: what was lost on
/// the old one may be sent again only much later.
const SLACK: Duration = Duration::from_millis(800);

/// The longest pulse, whatever is asked for: it is still time that the kernel can count.
const MAX_PULSE: Duration = Duration::from_secs(3600);

/// Silence is counted in such steps, or in shorter ones, of which a pulse has four.
const LISTENS: Duration = Duration::from_millis(50);

/// What both sides know of each other.
#[derive(Debug)]
pub(crate) struct Hub {
    pub(crate) cluster: Cluster,
    /// The number of this daemon's run, higher than any before: what a later one says counts.
    run: u64,
    lans: Vec<LanState>,
    /// What this node says, with the number of the change.
    own: Mutex<HashMap<String, (u64, WireView)>>,
    numbers: AtomicU64,
    changed: watch::Sender<u64>,
    /// The newest that the peer said: its run, the number, the view.
    told: Mutex<HashMap<String, (u64, u64, WireView)>>,
    modules: Mutex<HashMap<String, Sender<Input>>>,
    /// When the threads of this node's modules come round at the latest.
    rounds: Mutex<BTreeMap<String, Instant>>,
    /// Milliseconds this node has listened.
    listened: AtomicU64,
    worked: Mutex<Worked>,
    /// The pulses that this node's modules ask for.
    pulses: Mutex<HashMap<String, Duration>>,
    /// How often this node says that it lives.
    pulse: watch::Sender<Duration>,
    /// How often the peer says that it does so, in milliseconds.
    peer_pulse: AtomicU64,
    /// What the peer's `cluster.xml` says differently.
    differs: Mutex<Option<Arc<str>>>,
}

/// Which modules of the peer work.
#[derive(Debug, Default)]
struct Worked {
    /// How many milliseconds this node had listened when one was last said to.
    at: HashMap<String, u64>,
    /// The same of those that the last pulse named, which are rarely others than before.
    named: Vec<String>,
    named_at: u64,
}

impl Worked {
    fn last(&self, module: &str) -> Option<u64> {
        let named = self
            .named
            .binary_search_by(|name| name.as_str().cmp(module));
        let named = named.is_ok().then_some(self.named_at);
        named.max(self.at.get(module).copied())
    }
}

#[derive(Debug, Default)]
struct LanState {
    /// Milliseconds this node has listened and heard nothing.
    quiet: AtomicU64,
    /// Something was heard since the start.
    heard: AtomicBool,
    trouble: Mutex<Option<String>>,
    /// Callers are let in here.
    open: AtomicBool,
    /// Lines on which the peer is talked to.
    lines: AtomicUsize,
    /// One of them has ended.
    ended: Notify,
    /// The peer has said that it lets callers in.
    listens: AtomicBool,
    /// The peer's kernel refused the last call, and nothing was heard since.
    refused: AtomicBool,
    /// Frames heard since the start.
    words: AtomicU64,
    /// A line has begun, and nothing was heard on it yet.
    begins: AtomicBool,
}

/// The peer is talked to on a network, until this is dropped.
#[derive(Debug)]
struct Talks<'a>(&'a LanState);

impl Drop for Talks<'_> {
    fn drop(&mut self) {
        self.0.lines.fetch_sub(1, Ordering::AcqRel);
        self.0.ended.notify_one();
    }
}

/// How a network is.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub(crate) struct Network {
    pub(crate) name: String,
    /// Milliseconds without a heartbeat.
    pub(crate) quiet_ms: u64,
    pub(crate) up: bool,
    /// Heartbeats, and what else was heard, since the daemon's start.
    pub(crate) words: u64,
    pub(crate) trouble: Option<String>,
}

/// These modules look at how the peer is.
fn look<'a>(modules: impl IntoIterator<Item = &'a Sender<Input>>) {
    for module in modules {
        // One that has ended looks at nothing.
        let _ = module.send(Input::Look);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Hub {
    /// A hub that nobody serves yet.
    pub(crate) fn new(cluster: Cluster, run: u64) -> Arc<Hub> {
        Arc::new(Hub {
            lans: cluster.lans.iter().map(|_| LanState::default()).collect(),
            cluster,
            run,
            own: Mutex::default(),
            numbers: AtomicU64::new(0),
            changed: watch::Sender::new(0),
            told: Mutex::default(),
            modules: Mutex::default(),
            rounds: Mutex::default(),
            listened: AtomicU64::new(0),
            worked: Mutex::default(),
            pulses: Mutex::default(),
            pulse: watch::Sender::new(PULSE),
            peer_pulse: AtomicU64::new(PULSE.as_millis() as u64),
            differs: Mutex::default(),
        })
    }

    /// The peer says what its `cluster.xml` says; one of an earlier release does not.
    fn compares(&self, there: Option<&Meaning>) {
        let here = &self.cluster.meaning;
        let new = there.and_then(|there| here.differs(there, &self.cluster.peer));
        let mut differs = lock(&self.differs);
        if differs.as_deref() == new.as_deref() {
            return;
        }
        match &new {
            Some(text) => tracing::warn!("{text}"),
            None => tracing::info!("cluster.xml does not differ any more"),
        }
        *differs = new.map(Arc::from);
        drop(differs);
        // They note it.
        look(lock(&self.modules).values());
    }

    /// What the peer's `cluster.xml` says differently, and what is to be done, as it was when the
    /// peer was heard last.
    pub(crate) fn differs(&self) -> Option<Arc<str>> {
        lock(&self.differs).clone()
    }

    /// A module asks for this pulse, or for none any more. All share the shortest one, from now on.
    pub(crate) fn beats(&self, module: &str, pulse: Option<Duration>) {
        let mut all = lock(&self.pulses);
        match pulse {
            Some(pulse) => all.insert(module.to_owned(), pulse.clamp(MIN_PULSE, MAX_PULSE)),
            None => all.remove(module),
        };
        let shortest = all.values().min().copied().unwrap_or(PULSE);
        self.pulse.send_if_modified(|now| {
            let other = *now != shortest;
            *now = shortest;
            other
        });
    }

    /// The peer says how often it says that it lives.
    fn peer_beats(&self, millis: u64) {
        let pulse = Duration::from_millis(millis).clamp(MIN_PULSE, MAX_PULSE);
        self.peer_pulse
            .store(pulse.as_millis() as u64, Ordering::Release);
    }

    /// How often the peer is to be heard.
    fn peer_pulse(&self) -> Duration {
        Duration::from_millis(self.peer_pulse.load(Ordering::Acquire))
    }

    /// Whether so many milliseconds are more than there may be between two of the peer's pulses. One
    /// that was not heard of for so long and is heard again is looked at at once.
    fn was_missed(&self, quiet: u64) -> bool {
        Duration::from_millis(quiet) >= self.peer_pulse().saturating_mul(2)
    }

    /// What is no silence yet, however it is configured here: so many pulses as a timeout has to hold.
    pub(crate) fn least_silence(&self) -> Duration {
        self.peer_pulse().saturating_mul(MIN_PULSES)
    }

    /// How long a line may be without a word before it is given up.
    fn stale(&self) -> Duration {
        self.peer_pulse().saturating_mul(2).saturating_add(SLACK)
    }

    /// In what steps silence is counted: often enough for the shorter of the two pulses.
    fn step(&self) -> Duration {
        let shorter = self.peer_pulse().min(*self.pulse.borrow());
        (shorter / 4).min(LISTENS)
    }

    /// What the peer says of this module goes there, and what it has said already.
    pub(crate) fn follow(&self, module: &str, to: Sender<Input>) {
        let told = lock(&self.told);
        if let Some((_, _, view)) = told.get(module) {
            let _ = to.send(Input::Peer(Box::new(view.clone())));
        }
        // Only from now on it is listened for: one that begins late has not been silent.
        let now = self.listened.load(Ordering::Acquire);
        lock(&self.worked).at.insert(module.to_owned(), now);
        lock(&self.modules).insert(module.to_owned(), to);
    }

    /// The module is no more; what the peer says of it goes nowhere.
    pub(crate) fn unfollow(&self, module: &str) {
        lock(&self.modules).remove(module);
        lock(&self.own).remove(module);
        lock(&self.rounds).remove(module);
        self.beats(module, None);
    }

    /// The module's thread works, and comes round at this time at the latest.
    pub(crate) fn works(&self, module: &str, until: Instant) {
        let mut rounds = lock(&self.rounds);
        match rounds.get_mut(module) {
            Some(at) => *at = until,
            None => {
                rounds.insert(module.to_owned(), until);
            }
        }
    }

    /// The modules of this node whose threads work, in order; whether they are others than these,
    /// where they are put then.
    fn working(&self, known: &mut Vec<String>) -> bool {
        let rounds = lock(&self.rounds);
        let works = || {
            let works = rounds.iter().filter(|(_, at)| at.elapsed() < WORKS);
            works.map(|(module, _)| module)
        };
        let same = works().eq(known.iter());
        if !same {
            *known = works().cloned().collect();
        }
        !same
    }

    /// The peer says that these modules of its work; they are in order.
    fn learn_works(&self, modules: &[String]) {
        let now = self.listened.load(Ordering::Acquire);
        let mut worked = lock(&self.worked);
        let here = lock(&self.modules);
        let same = worked.named == modules;
        if !same || self.was_missed(now.saturating_sub(worked.named_at)) {
            let missed = |module: &&String| {
                let last = worked.last(module).unwrap_or(now);
                self.was_missed(now.saturating_sub(last))
            };
            look(modules.iter().filter(missed).filter_map(|m| here.get(m)));
        }
        if !same {
            // These and no others: names that are of no use do not pile up.
            let (named, at) = (std::mem::take(&mut worked.named), worked.named_at);
            for module in named {
                let last = worked.at.entry(module).or_default();
                *last = at.max(*last);
            }
            worked.at.retain(|module, _| here.contains_key(module));
            worked.named = modules.to_vec();
        }
        worked.named_at = now;
    }

    /// Something was heard on a network.
    fn heard(&self, lan: usize) {
        let quiet = self.lans[lan].quiet.swap(0, Ordering::AcqRel);
        self.lans[lan].heard.store(true, Ordering::Release);
        self.lans[lan].words.fetch_add(1, Ordering::AcqRel);
        // Before a line begins the peer may have been gone.
        let begins = self.lans[lan].begins.swap(false, Ordering::AcqRel);
        if begins || self.was_missed(quiet) {
            look(lock(&self.modules).values());
        }
    }

    /// The peer's daemon was started again: what the one before said of modules counts no more.
    fn begins(&self, run: u64) {
        lock(&self.told).retain(|_, (of, _, _)| *of >= run);
    }

    /// How long the peer's module has not been said to work.
    pub(crate) fn idle(&self, module: &str) -> Duration {
        let now = self.listened.load(Ordering::Acquire);
        let last = lock(&self.worked).last(module).unwrap_or(0);
        Duration::from_millis(now.saturating_sub(last))
    }

    /// Tells the peer, at once.
    pub(crate) fn tell(&self, module: &str, view: WireView) {
        let number = {
            // The number is taken under the lock: a later view has the higher one.
            let mut own = lock(&self.own);
            let number = self.numbers.fetch_add(1, Ordering::AcqRel) + 1;
            own.insert(module.to_owned(), (number, view));
            number
        };
        self.changed.send_if_modified(|n| {
            let newer = number > *n;
            *n = number.max(*n);
            newer
        });
    }

    /// How long nothing was heard on any of these networks (all, if none is named).
    pub(crate) fn quiet(&self, names: &[String]) -> Duration {
        let quiet = self
            .of(names)
            .map(|state| state.quiet.load(Ordering::Acquire))
            .min();
        Duration::from_millis(quiet.unwrap_or(u64::MAX))
    }

    /// Whether none of the peer's pulses on these networks (all, if none is named) is missing.
    pub(crate) fn is_heard(&self, names: &[String]) -> bool {
        !self.was_missed(self.quiet(names).as_millis() as u64)
    }

    /// A line on this network begins; whether the peer lets callers in there.
    fn talks(&self, lan: usize, listens: bool) -> Talks<'_> {
        let state = &self.lans[lan];
        state.listens.store(listens, Ordering::Release);
        state.refused.store(false, Ordering::Release);
        state.begins.store(true, Ordering::Release);
        state.lines.fetch_add(1, Ordering::AcqRel);
        Talks(state)
    }

    /// What the peer's kernel answered to a call on this network. That it has begun to refuse
    /// them is told to all modules.
    fn answers(&self, lan: usize, answer: Answer) {
        let state = &self.lans[lan];
        let refused = answer == Answer::Refused && state.lines.load(Ordering::Acquire) == 0;
        if state.refused.swap(refused, Ordering::AcqRel) || !refused {
            return;
        }
        for to in lock(&self.modules).values() {
            let _ = to.send(Input::Refused);
        }
    }

    /// Whether the peer's kernel says that no daemon runs there: it refuses callers on one of these
    /// networks (all, if none is named), and on each of the others, too, unless nothing was heard
    /// there for `silence` anyway.
    pub(crate) fn refuses(&self, names: &[String], silence: Duration) -> bool {
        let mut any = false;
        for state in self.of(names) {
            let quiet = Duration::from_millis(state.quiet.load(Ordering::Acquire));
            let refused = state.refused.load(Ordering::Acquire);
            if state.lines.load(Ordering::Acquire) > 0 || (!refused && quiet < silence) {
                return false;
            }
            any |= refused;
        }
        any
    }

    /// How much was heard on these networks (all, if none is named).
    pub(crate) fn words(&self, names: &[String]) -> u64 {
        self.of(names)
            .map(|state| state.words.load(Ordering::Acquire))
            .sum()
    }

    fn of(&self, names: &[String]) -> impl Iterator<Item = &LanState> {
        let all = self.cluster.lans.iter().zip(&self.lans);
        all.filter(|(lan, _)| names.is_empty() || names.contains(&lan.name))
            .map(|(_, state)| state)
    }

    /// All networks.
    pub(crate) fn networks(&self) -> Vec<Network> {
        let all = self.cluster.lans.iter().zip(&self.lans);
        let lost = LOST.max(self.least_silence());
        all.map(|(lan, state)| {
            let quiet = state.quiet.load(Ordering::Acquire);
            Network {
                name: lan.name.clone(),
                quiet_ms: quiet,
                up: state.heard.load(Ordering::Acquire) && Duration::from_millis(quiet) < lost,
                words: state.words.load(Ordering::Acquire),
                trouble: lock(&state.trouble).clone(),
            }
        })
        .collect()
    }

    /// The newest that the peer said of a module.
    pub(crate) fn told(&self, module: &str) -> Option<WireView> {
        lock(&self.told)
            .get(module)
            .map(|(_, _, view)| view.clone())
    }

    /// The node on which a module serves, its application started; an error says how it stands.
    /// Who was not heard for so long serves nobody as far as is known.
    pub(crate) fn serving(&self, module: &str, silence: Duration) -> Result<&str> {
        let own = lock(&self.own).get(module).map(|(_, view)| view.clone());
        let heard = self.quiet(&[]) < silence;
        let told = self.told(module).filter(|_| heard);
        let (here, there) = (self.cluster.node.as_str(), self.cluster.peer.as_str());
        let mut stands = Vec::new();
        for (node, view) in [(here, own), (there, told)] {
            let Some(view) = view else { continue };
            let serves = matches!(view.state, StateName::Alone | StateName::Prim);
            if serves && view.status == StatusName::Ready {
                return Ok(node);
            }
            stands.push(format!(
                "{} {} on {node}",
                view.state.text(),
                view.status.text()
            ));
        }
        match stands.is_empty() {
            true => bail!("there is no module {module}"),
            false => bail!("{module} is {}", stands.join(" and ")),
        }
    }

    /// What arrived counts if it is newer than what is known; the networks are not equally fast.
    fn learn(&self, module: String, run: u64, number: u64, view: WireView) {
        let now = self.listened.load(Ordering::Acquire);
        let last = {
            let mut worked = lock(&self.worked);
            let last = worked.last(&module);
            worked.at.insert(module.clone(), now);
            last
        };
        let mut told = lock(&self.told);
        if let Some((r, n, _)) = told.get(&module)
            && (*r, *n) >= (run, number)
        {
            if self.was_missed(now.saturating_sub(last.unwrap_or(now))) {
                look(lock(&self.modules).get(&module));
            }
            return;
        }
        if let Some(to) = lock(&self.modules).get(&module) {
            let _ = to.send(Input::Peer(Box::new(view.clone())));
        }
        told.insert(module, (run, number, view));
    }

    /// What of this node is newer than number `after`, in order.
    fn newer(&self, after: u64) -> Vec<(String, u64, WireView)> {
        let own = lock(&self.own);
        let mut all: Vec<_> = own
            .iter()
            .filter(|(_, (number, _))| *number > after)
            .map(|(module, (number, view))| (module.clone(), *number, view.clone()))
            .collect();
        all.sort_by_key(|(_, number, _)| *number);
        all
    }
}

/// Serves the line on a thread of its own until the process ends.
pub(crate) fn start(hub: Arc<Hub>) -> Result<()> {
    std::thread::Builder::new()
        .name("peer".into())
        .spawn(move || {
            raise_priority();
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build();
            match runtime {
                Ok(runtime) => runtime.block_on(line::run(&hub)),
                Err(error) => tracing::error!(%error, "the line to the peer cannot be served"),
            }
        })
        .map(drop)
        .context("cannot start the thread of the line to the peer")
}

/// A thread that only says and hears that the nodes live goes before whatever else there is.
fn raise_priority() {
    let lowest = libc::sched_param { sched_priority: 1 };
    // SAFETY: the structure outlives the call, which concerns this thread alone.
    let rc = unsafe { libc::sched_setscheduler(0, libc::SCHED_RR, &raw const lowest) };
    if rc != 0 {
        let error = std::io::Error::last_os_error();
        tracing::info!(%error, "no real-time priority for the heartbeats");
    }
}
