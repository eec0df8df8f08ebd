//! The line between the two daemons: one TLS connection on each network, by pinned keys;
//! pulses, and what each says of its modules.
//!
//! ```text
//! even node: dials        odd node: listens       (by the order of their identities)
//! {"hello":{"version":1,"node":"a","run":7}}      first, in both directions
//! {"pulse":null}                                  each 200 ms
//! {"view":{"module":"vm","number":12,"view":{...}}}   when it changed, and all of them at first
//! ```
//!
//! A frame is its length in four bytes (little endian) and that much JSON. It runs on a thread
//! of its own, at a real-time priority where that is permitted, so that a busy machine does not
//! look like a dead one. Silence counts only while this node could have listened: one that was
//! frozen does not take its peer for dead when it is thawed.

mod line;
mod view;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use serde::Serialize;
use tokio::sync::watch;

use crate::cluster::Cluster;
use crate::runner::Input;

pub(crate) use view::{StateName, StatusName, WireView, part};

/// How often a node says that it lives.
pub(crate) const PULSE: Duration = Duration::from_millis(200);

/// What both sides know of each other.
#[derive(Debug)]
pub(crate) struct Hub {
    pub(crate) cluster: Cluster,
    /// How often this node's daemon was started: what a later one says counts.
    run: u64,
    lans: Vec<LanState>,
    /// What this node says, with the number of the change.
    own: Mutex<HashMap<String, (u64, WireView)>>,
    numbers: AtomicU64,
    changed: watch::Sender<u64>,
    /// The newest that the peer said: its run, the number, the view.
    told: Mutex<HashMap<String, (u64, u64, WireView)>>,
    modules: Mutex<HashMap<String, Sender<Input>>>,
}

#[derive(Debug, Default)]
struct LanState {
    /// Milliseconds this node has listened and heard nothing.
    quiet: AtomicU64,
    /// Something was heard since the start.
    heard: AtomicBool,
    trouble: Mutex<Option<String>>,
}

/// How a network is.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub(crate) struct Network {
    pub(crate) name: String,
    /// Milliseconds without a heartbeat.
    pub(crate) quiet_ms: u64,
    pub(crate) heard: bool,
    pub(crate) trouble: Option<String>,
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
        })
    }

    /// What the peer says of this module goes there, and what it has said already.
    pub(crate) fn follow(&self, module: &str, to: Sender<Input>) {
        let told = lock(&self.told);
        if let Some((_, _, view)) = told.get(module) {
            let _ = to.send(Input::Peer(Box::new(view.clone())));
        }
        lock(&self.modules).insert(module.to_owned(), to);
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
        let all = self.cluster.lans.iter().zip(&self.lans);
        let quiet = all
            .filter(|(lan, _)| names.is_empty() || names.contains(&lan.name))
            .map(|(_, state)| state.quiet.load(Ordering::Acquire))
            .min();
        Duration::from_millis(quiet.unwrap_or(u64::MAX))
    }

    /// All networks.
    pub(crate) fn networks(&self) -> Vec<Network> {
        let all = self.cluster.lans.iter().zip(&self.lans);
        all.map(|(lan, state)| Network {
            name: lan.name.clone(),
            quiet_ms: state.quiet.load(Ordering::Acquire),
            heard: state.heard.load(Ordering::Acquire),
            trouble: lock(&state.trouble).clone(),
        })
        .collect()
    }

    /// The newest that the peer said of a module.
    pub(crate) fn told(&self, module: &str) -> Option<WireView> {
        lock(&self.told)
            .get(module)
            .map(|(_, _, view)| view.clone())
    }

    /// What arrived counts if it is newer than what is known; the networks are not equally fast.
    fn learn(&self, module: String, run: u64, number: u64, view: WireView) {
        let mut told = lock(&self.told);
        if let Some((r, n, _)) = told.get(&module)
            && (*r, *n) >= (run, number)
        {
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

#[cfg(test)]
mod tests {
    use super::*;
    use fs_driver::link::Identity;
    use twinfold_protocol::automaton::{Arbiter, Automaton, Config, Copy, Isolation};
    use twinfold_protocol::ids::Side;

    fn hub() -> Arc<Hub> {
        let identity = Identity::generate().unwrap();
        let peer_identity = Identity::generate().unwrap().fingerprint();
        let lan = |name: &str| crate::cluster::Lan {
            name: name.into(),
            here: "127.0.0.1:1".parse().unwrap(),
            there: "127.0.0.1:2".parse().unwrap(),
        };
        Hub::new(
            Cluster {
                node: "a".into(),
                peer: "b".into(),
                identity,
                peer_identity,
                side: Side::Even,
                lans: vec![lan("fast"), lan("slow")],
            },
            1,
        )
    }

    fn view(reason: &str) -> WireView {
        let config = Config {
            side: Side::Even,
            arbiter: Arbiter::None,
            isolation: Isolation::Wait,
            failover: true,
            default_prim: None,
        };
        let copy = Copy {
            state: Default::default(),
            was: None,
            shared: false,
            current: false,
            session: None,
        };
        WireView::new(&Automaton::new(config, copy, None).view(), reason.into())
    }

    #[test]
    fn what_a_slower_network_brings_later_does_not_count() {
        let hub = hub();
        hub.learn("vm".into(), 1, 5, view("new"));
        hub.learn("vm".into(), 1, 4, view("old"));
        assert_eq!(hub.told("vm").unwrap().reason, "new");
        hub.learn("vm".into(), 2, 1, view("after a restart"));
        hub.learn("vm".into(), 1, 6, view("from before the restart"));
        assert_eq!(hub.told("vm").unwrap().reason, "after a restart");
    }

    #[test]
    fn a_module_that_follows_late_is_told_what_was_said() {
        let hub = hub();
        hub.learn("vm".into(), 1, 5, view("said"));
        let (to, told) = std::sync::mpsc::channel();
        hub.follow("vm", to);
        assert!(matches!(told.try_recv(), Ok(Input::Peer(v)) if v.reason == "said"));
    }

    #[test]
    fn one_network_with_heartbeats_is_enough() {
        let hub = hub();
        hub.lans[0].quiet.store(9000, Ordering::Release);
        assert_eq!(hub.quiet(&[]), Duration::ZERO);
        assert_eq!(hub.quiet(&["fast".into()]), Duration::from_secs(9));
        hub.tell("vm", view("1"));
        hub.tell("db", view("2"));
        hub.tell("vm", view("3"));
        let newer: Vec<_> = hub.newer(1).into_iter().map(|(m, n, _)| (m, n)).collect();
        assert_eq!(newer, [("db".into(), 2), ("vm".into(), 3)]);
    }
}
