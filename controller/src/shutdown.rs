//! `twinfold shutdown`: the modules of a node stop with it, who needs another one first.

use std::collections::{BTreeMap, BTreeSet};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use hyper::Method;

use crate::api::{CommandRequest, NodeState, Said};
use crate::operate::{Api, LOOK};
use crate::runner::{Command, ModuleState};

/// Of the time that all may take, so much is for the order; then the rest stops whoever needs it.
const ORDERED: (u32, u32) = (2, 3);

/// Seconds that all may take together unless told otherwise: a stop script in order and by force
/// may take ten minutes. Less than systemd waits for `twinfold-modules.service`.
const TIMEOUT: u64 = 900;

/// How long a node stays for a peer that is about to take over: only as long as it is there it
/// can tell that it gives way. A peer takes some milliseconds, a busy one a second.
const HANDOVER: Duration = Duration::from_secs(10);

/// `twinfold shutdown`.
#[derive(Debug, clap::Args)]
pub(crate) struct Shutdown {
    /// Seconds to wait, at most. When two thirds of them have passed, modules that others still
    /// need are stopped as well.
    #[arg(long, default_value_t = TIMEOUT)]
    timeout: u64,
}

/// Those of the modules that may stop now: none that stays needs them. They are given by name,
/// with what each needs. Those that need each other in a circle stop together, so that there is
/// always one.
fn free<'a>(modules: &BTreeMap<&'a str, &'a [String]>) -> BTreeSet<&'a str> {
    // What each needs, by what it needs itself as well.
    let needs: BTreeMap<_, _> = modules.keys().map(|m| (*m, all(modules, m))).collect();
    let is_free = |module: &str| {
        let mut others = needs.iter().filter(|(_, needed)| needed.contains(module));
        others.all(|(other, _)| needs[module].contains(other))
    };
    let names = modules.keys().copied();
    names.filter(|module| is_free(module)).collect()
}

/// What a module needs, and what that needs, of those that are there; itself in any case.
fn all<'a>(modules: &BTreeMap<&'a str, &'a [String]>, module: &'a str) -> BTreeSet<&'a str> {
    let mut found = BTreeSet::from([module]);
    let mut open = vec![module];
    while let Some(next) = open.pop() {
        for needed in modules.get(next).copied().unwrap_or_default() {
            if let Some((name, _)) = modules.get_key_value(needed.as_str())
                && found.insert(*name)
            {
                open.push(*name);
            }
        }
    }
    found
}

/// Whether nothing of it is left on this node.
fn is_over(module: &ModuleState) -> bool {
    module.state == "STOP" && !module.ending
}

/// Whether the peer has still to hear from here that it may serve.
fn is_taking_over(module: &ModuleState) -> bool {
    let peer = module.peer.as_ref().filter(|p| !p.silent);
    peer.is_some_and(|p| p.state == "SECOND" || (p.state == "WAIT" && p.status == "Transient"))
}

/// How far a shutdown is.
#[derive(Debug, Default)]
struct Progress {
    /// Who was told to stop.
    told: BTreeSet<String>,
    /// Who has stopped.
    over: BTreeSet<String>,
    /// Whose peer takes over, and since when.
    left: BTreeMap<String, Instant>,
    /// Who could not be told, and why. Nobody waits for their turn because of them.
    failed: BTreeMap<String, String>,
}

impl Progress {
    /// Modules that have stopped, and whose peer is given the time to take over.
    fn left_to_peers(&mut self, modules: &[ModuleState]) -> BTreeSet<String> {
        let now = Instant::now();
        let stopped = modules.iter().filter(|m| is_over(m) && is_taking_over(m));
        stopped
            .filter(|m| {
                let since = self.left.entry(m.module.clone()).or_insert(now);
                since.elapsed() < HANDOVER
            })
            .map(|m| m.module.clone())
            .collect()
    }

    /// Whom to tell now: all, if it is late.
    fn next(&self, modules: &[ModuleState], late: bool) -> Vec<String> {
        let open = modules
            .iter()
            .filter(|m| !self.failed.contains_key(&m.module));
        // What is stopped needs nothing, and still has to hear of it: it may be about to start.
        let running = open.clone().filter(|m| !is_over(m));
        let running: BTreeMap<_, _> = running
            .map(|m| (m.module.as_str(), m.needs.as_slice()))
            .collect();
        let free = free(&running);
        let names = open.map(|m| m.module.as_str());
        names
            .filter(|m| late || !running.contains_key(m) || free.contains(m))
            .filter(|m| !self.told.contains(*m))
            .map(str::to_owned)
            .collect()
    }
}

impl Api {
    /// Stops all modules and waits for their ends: at once those that no other one needs, which
    /// still runs.
    pub(crate) fn shutdown(&self, how: &Shutdown) -> Result<ExitCode> {
        let begun = Instant::now();
        let most = Duration::from_secs(how.timeout);
        let mut progress = Progress::default();
        let mut ordered = true;
        loop {
            let node: NodeState = self.get("/api/v1/state")?;
            let all = node.modules.len();
            for module in &node.modules {
                let told = progress.told.contains(&module.module);
                if told && is_over(module) && progress.over.insert(module.module.clone()) {
                    let count = progress.over.len();
                    println!("{}: stopped ({count} of {all})", module.module);
                }
            }
            // Of one that is told only now this is from before.
            let told = progress.told.clone();
            let late = begun.elapsed() >= most / ORDERED.1 * ORDERED.0;
            let next = progress.next(&node.modules, late);
            if late && std::mem::take(&mut ordered) && !next.is_empty() {
                println!("it takes too long: the others stop although they are needed");
            }
            for module in next {
                self.tell_shutdown(module, &mut progress);
            }
            let left_to_peers = progress.left_to_peers(&node.modules);
            let over = |m: &ModuleState| {
                let heard = told.contains(&m.module) || progress.failed.contains_key(&m.module);
                heard && is_over(m) && !left_to_peers.contains(&m.module)
            };
            let mut left = node.modules.iter().filter(|m| !over(m));
            let Some(first) = left.next() else { break };
            if begun.elapsed() >= most {
                let rest = left.count();
                bail!(
                    "{} is still {} {} ({}), and {rest} more modules are not stopped",
                    first.module,
                    first.state,
                    first.status,
                    first.reason
                );
            }
            std::thread::sleep(LOOK);
        }
        let failed: Vec<_> = progress
            .failed
            .iter()
            .map(|(module, error)| format!("{module}: {error}"))
            .collect();
        match failed.is_empty() {
            true => Ok(ExitCode::SUCCESS),
            false => bail!("{}", failed.join("; ")),
        }
    }

    fn tell_shutdown(&self, module: String, progress: &mut Progress) {
        let path = format!("/api/v1/modules/{module}/command");
        let command = CommandRequest {
            command: Command::Shutdown,
        };
        match self.call::<Said>(Method::POST, &path, Some(&command)) {
            Ok(_) => {
                println!("{module}: stopping");
                progress.told.insert(module);
            }
            Err(error) => {
                progress.failed.insert(module, format!("{error:#}"));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runner::PeerState;

    /// The groups in which modules stop that need these others.
    fn order(needs: &[(&str, &[&str])]) -> Vec<String> {
        let owned: Vec<(_, Vec<String>)> = needs
            .iter()
            .map(|(module, all)| (*module, all.iter().map(|n| (*n).to_owned()).collect()))
            .collect();
        let mut left: BTreeMap<&str, &[String]> =
            owned.iter().map(|(m, n)| (*m, n.as_slice())).collect();
        let mut groups = Vec::new();
        while !left.is_empty() {
            let free = free(&left);
            assert!(!free.is_empty(), "nobody stops of {left:?}");
            left.retain(|module, _| !free.contains(module));
            groups.push(Vec::from_iter(free).join(" "));
        }
        groups
    }

    #[test]
    fn who_needs_another_one_stops_before_it_and_the_others_at_once() {
        assert_eq!(order(&[]), [""; 0]);
        assert_eq!(order(&[("a", &[]), ("b", &[]), ("c", &[])]), ["a b c"]);
        assert_eq!(
            order(&[("db", &[]), ("web", &["db"]), ("mail", &[])]),
            ["mail web", "db"]
        );
        // A chain, and one that needs both ends of it.
        assert_eq!(
            order(&[("a", &["b"]), ("b", &["c"]), ("c", &[]), ("d", &["a", "c"])]),
            ["d", "a", "b", "c"]
        );
        // Two that need one.
        assert_eq!(
            order(&[("x", &["z"]), ("y", &["z"]), ("z", &[])]),
            ["x y", "z"]
        );
    }

    #[test]
    fn modules_that_need_each_other_stop_together_in_their_turn() {
        assert_eq!(order(&[("a", &["a"])]), ["a"]);
        assert_eq!(order(&[("a", &["b"]), ("b", &["a"])]), ["a b"]);
        // Somebody needs one of the circle, which needs somebody.
        assert_eq!(
            order(&[
                ("a", &["b"]),
                ("b", &["c"]),
                ("c", &["a", "z"]),
                ("top", &["b"]),
                ("z", &[]),
            ]),
            ["top", "a b c", "z"]
        );
    }

    #[test]
    fn who_is_not_here_is_needed_by_nobody() {
        assert_eq!(order(&[("a", &["elsewhere"]), ("b", &[])]), ["a b"]);
    }

    #[test]
    fn any_order_of_many_modules_ends() {
        // All need all behind them, and the last one the first.
        let names: Vec<_> = (0..60).map(|n| format!("{n:02}")).collect();
        let mut needs: Vec<Vec<String>> = (0..60).map(|n| names[n + 1..].to_vec()).collect();
        let all = |needs: &[Vec<String>]| {
            let modules: BTreeMap<_, _> = names
                .iter()
                .zip(needs)
                .map(|(m, n)| (m.as_str(), n.as_slice()))
                .collect();
            free(&modules).len()
        };
        assert_eq!(all(&needs), 1);
        needs[59].push(names[0].clone());
        assert_eq!(all(&needs), 60);
    }

    fn module(name: &str, state: &str, needs: &[&str]) -> ModuleState {
        ModuleState {
            module: name.into(),
            state: state.into(),
            status: "Ready".into(),
            reason: String::new(),
            up_to_date: true,
            trouble: None,
            percent: None,
            resync: None,
            driver: None,
            base: String::new(),
            resources: BTreeMap::new(),
            suspended: false,
            needs: needs.iter().map(|n| (*n).to_owned()).collect(),
            ending: false,
            peer: None,
        }
    }

    #[test]
    fn each_is_told_once_when_nobody_needs_it_any_more_or_when_it_is_late() {
        let mut all = [
            module("db", "PRIM", &[]),
            module("idle", "STOP", &["db"]),
            module("web", "PRIM", &["db"]),
        ];
        let mut progress = Progress::default();
        // One that is stopped keeps nobody, and may be about to start.
        assert_eq!(progress.next(&all, false), ["idle", "web"]);
        progress.told.extend(["idle".into(), "web".into()]);
        assert_eq!(progress.next(&all, false), [""; 0]);
        assert_eq!(progress.next(&all, true), ["db"], "it is late");
        all[2].state = "STOP".into();
        all[2].ending = true;
        assert_eq!(progress.next(&all, false), [""; 0], "its last script runs");
        all[2].ending = false;
        assert_eq!(progress.next(&all, false), ["db"]);
    }

    #[test]
    fn one_that_cannot_be_told_holds_nobody_up() {
        let all = [module("db", "PRIM", &[]), module("web", "PRIM", &["db"])];
        let mut progress = Progress::default();
        assert_eq!(progress.next(&all, false), ["web"]);
        progress.failed.insert("web".into(), "why".into());
        assert_eq!(progress.next(&all, false), ["db"]);
    }

    #[test]
    fn a_peer_that_follows_or_is_about_to_serve_is_waited_for_and_no_other_one() {
        let of = |state: &str, status: &str, silent| {
            let mut stopped = module("db", "STOP", &[]);
            stopped.peer = Some(PeerState {
                state: state.into(),
                status: status.into(),
                reason: String::new(),
                up_to_date: true,
                silent,
            });
            let mut progress = Progress::default();
            let waits = |p: &mut Progress| !p.left_to_peers(&[stopped.clone()]).is_empty();
            let first = waits(&mut progress);
            for since in progress.left.values_mut() {
                *since -= HANDOVER;
            }
            assert!(!waits(&mut progress), "it has an end");
            first
        };
        assert!(of("SECOND", "Ready", false));
        assert!(of("WAIT", "Transient", false));
        assert!(!of("WAIT", "NotReady", false));
        assert!(!of("ALONE", "Ready", false));
        assert!(!of("STOP", "NotReady", false));
        assert!(!of("SECOND", "Ready", true));
    }
}
