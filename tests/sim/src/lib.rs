//! Two simulated nodes under every fault there is, from a seed.
//!
//! What runs is the core of twinfold (`twinfold-protocol`): the state machines of both
//! sides, the handshake table, marks and notes, the comparison, the lifecycle of a copy.
//! What stands around it here is as thin as the driver's own code: it keeps the order
//! of effects that the driver keeps, on disks and a network made of numbers.
//!
//! A run has a safety phase with faults, after each of which everything acknowledged
//! must be found; then everything is repaired, and progress is demanded: the nodes
//! pair, and their copies are equal.

mod bugs;
mod calls;
mod checker;
mod checkpoint;
mod compare;
mod disk;
mod effects;
mod faults;
mod fs;
mod log;
mod net;
mod operator;
mod own;
mod plan;
mod prefix;
mod primary;
mod resync;
mod rng;
mod roles;
mod secondary;
mod stats;
mod syncs;
mod takeover;
mod told;
mod verify;
mod way;
mod workload;
mod world;

pub use bugs::Bug;
pub use effects::Stop;
pub use faults::Fault;
pub use plan::{Less, Plan, plan_of, shrink};
pub use stats::Stats;

use twinfold_protocol::primary::Link;

use checker::Promise;
use world::{Event, MS, World};

/// How long the nodes may take to come together once everything is repaired, in
/// milliseconds of simulated time.
const PATIENCE: u64 = 60_000;

/// How a run ended.
#[derive(Debug)]
pub struct Outcome {
    /// What was counted.
    pub stats: Stats,
    /// What went wrong.
    pub failure: Option<String>,
    /// What happened, if it was asked for.
    pub trace: Vec<String>,
}

/// Runs a seed by this plan.
pub fn run(seed: u64, plan: &Plan, bug: Option<Bug>, trace: bool) -> Outcome {
    let mut world = World::new(seed, plan, bug, trace);
    world.begin();
    world.plan(&plan.faults);
    let end = plan.faults.iter().map(|(at, _)| *at).max().unwrap_or(0) + 2500;
    world.run(end * MS);
    if world.failure.is_none() {
        world.come_together();
    }
    let effects = world.nodes.iter().map(|n| n.disk.effects.count());
    world.stats.effects = effects.sum();
    Outcome {
        stats: world.stats,
        failure: world.failure,
        trace: world.trace.unwrap_or_default(),
    }
}

impl World {
    fn begin(&mut self) {
        self.at(1, Event::Operator);
        self.at(2, Event::Client);
    }

    /// Everything is repaired and the application rests: the nodes pair, settle, and
    /// hold the same.
    fn come_together(&mut self) {
        self.repair();
        let until = self.now + PATIENCE * MS;
        let mut rested = 0;
        while self.failure.is_none() && self.now < until {
            let next = self.now + 50 * MS;
            self.run(next);
            let together = (0..2).any(|n| self.nodes[n].core.link() == Link::Paired);
            // The resync ends under a load; only then does the application rest.
            if together {
                self.quiet = true;
            }
            rested = if together && self.is_settled() {
                rested + 1
            } else {
                0
            };
            if rested > 3 {
                return self.compare_copies();
            }
        }
        if self.failure.is_none() {
            let state = format!(
                "the nodes did not come together: {:?} {:?} {:?}",
                self.nodes[0].core.link(),
                self.nodes[1].core.link(),
                self.serving
            );
            self.fail(state);
        }
    }

    fn is_settled(&self) -> bool {
        self.nodes.iter().all(|n| {
            let standby = n.standby.as_ref();
            n.up && n.changes.is_empty()
                && n.core.in_flight().0 == 0
                && !n.core.checkpoint_runs()
                && standby.is_none_or(|s| s.inbox.is_empty() && !s.busy && !s.machine.is_syncing())
        })
    }

    fn compare_copies(&mut self) {
        // What counts, in the end, is what the disks have.
        let [a, b] = [0, 1].map(|n: usize| {
            self.nodes[n].disk.forget_cached(None);
            self.nodes[n].disk.fs.reachable()
        });
        if a != b {
            let ids: std::collections::BTreeSet<_> = a.keys().chain(b.keys()).collect();
            let differ = ids.into_iter().find(|id| a.get(id) != b.get(id));
            let what = differ.map(|id| (id, a.get(id), b.get(id)));
            return self.fail(format!("the copies differ: {what:?}"));
        }
        for n in &self.nodes {
            // A forced copy keeps what a resync left without a name.
            let (aside, lost) = (
                &n.disk.fs.aside,
                n.disk.fs.items.len() - n.disk.fs.kept().len(),
            );
            if lost > 0 || aside.iter().any(|f| n.disk.fs.links(*f) > 1) {
                return self.fail(format!("{lost} objects are left over; aside: {aside:?}"));
            }
            if n.core.remembered() > 0 {
                let held = n.core.remembered();
                return self.fail(format!("{held} ops are remembered although all is settled"));
            }
        }
        if let Some((node, _)) = self.serving {
            self.look(1 - node, Promise::Acknowledged);
        }
    }
}
