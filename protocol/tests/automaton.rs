//! Both nodes' automata with their drivers, an arbiter and a network: every history up to
//! a depth, and many longer ones from seeds. Never two that serve, never one that serves
//! without an acknowledged write, and always together again once everything is repaired.

// A test's helpers fail the test.
#![allow(clippy::unwrap_used)]

#[path = "automaton/nodes.rs"]
mod nodes;
#[path = "automaton/steps.rs"]
mod steps;
#[path = "automaton/stories.rs"]
mod stories;
#[path = "automaton/world.rs"]
mod world;

use std::collections::HashSet;

use steps::Step;
use twinfold_protocol::automaton::{Arbiter, Effect, Isolation, Wanted};
use world::{Bug, World};

/// Steps of a repaired pair until it must be together, at most.
const PATIENCE: usize = 400;

/// Rounds in which a pair that is left alone has done everything, also what is tried again.
const ROUNDS: usize = 60;

fn fails(world: &World, progress: bool) -> Option<String> {
    if let Some(wrong) = world.wrong() {
        return Some(format!("{wrong}: {}", world.brief()));
    }
    if progress {
        let mut healed = world.clone();
        healed.settle(PATIENCE);
        if let Some(wrong) = healed.wrong() {
            return Some(format!("after the repair: {wrong}"));
        }
        if !healed.is_together() {
            return Some(format!(
                "no progress after the repair of {}\nto {}",
                world.brief(),
                healed.brief()
            ));
        }
        if healed.has_arbiter()
            && let Some(wrong) = survives(&healed)
        {
            return Some(format!("after the repair of {}\n{wrong}", world.brief()));
        }
    }
    None
}

/// With an arbiter, the loss of one node of a pair that is together never ends the service,
/// however the pair came there.
fn survives(together: &World) -> Option<String> {
    let mut world = together.clone();
    // What is tried again from time to time is done.
    (0..ROUNDS).for_each(|round| world.round(round, &[]));
    let primary = world.primary()?;
    let losses = [
        vec![Step::Crash(primary)],
        vec![Step::Crash(1 - primary)],
        vec![Step::Freeze(primary, true)],
        vec![Step::Freeze(1 - primary, true)],
        vec![Step::Hang(1 - primary, true)],
        vec![Step::DiskFails(primary)],
        vec![Step::DiskFails(primary), Step::Crash(primary)],
        vec![Step::DiskFails(primary), Step::Cut(true)],
    ];
    losses.into_iter().find_map(|loss| {
        let mut world = world.clone();
        world.allow(loss.len());
        loss.iter().for_each(|step| world.take(*step));
        let never: Vec<_> = (0..2)
            .flat_map(|n| {
                let node = [Step::Boot(n), Step::Freeze(n, false), Step::Hang(n, false)];
                node.into_iter().chain([Step::Repair(n)])
            })
            .chain([Step::Cut(false)])
            .collect();
        for round in 0..ROUNDS {
            world.round(round, &never);
            if let Some(wrong) = world.wrong() {
                return Some(format!("{loss:?}: {wrong}: {}", world.brief()));
            }
        }
        (!world.is_served()).then(|| format!("{loss:?}: nobody serves: {}", world.brief()))
    })
}

/// All histories of up to `depth` steps; how many states were seen, and the first failure.
fn all_histories(start: World, depth: usize, progress: bool) -> (usize, Option<String>) {
    let mut seen = HashSet::from([start.clone()]);
    let mut layer = vec![(start, Vec::<Step>::new())];
    for _ in 0..depth {
        let mut next = Vec::new();
        for (world, path) in layer {
            for step in world.steps(true) {
                let mut after = world.clone();
                after.take(step);
                if !seen.insert(after.clone()) {
                    continue;
                }
                let mut path = path.clone();
                path.push(step);
                if let Some(wrong) = fails(&after, progress) {
                    return (seen.len(), Some(format!("{path:?}: {wrong}")));
                }
                next.push((after, path));
            }
        }
        layer = next;
    }
    (seen.len(), None)
}

/// A random history from a seed.
fn one_history(start: &World, seed: u64, length: usize) -> Option<String> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut random = move |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as usize % below
    };
    let mut world = start.clone();
    let mut path = Vec::new();
    for _ in 0..length {
        // Faults are rarer than what follows from them, and tries again rarer than both.
        let (faults, retries) = (random(6) == 0, random(10) == 0);
        let mut steps = world.steps(faults);
        steps.retain(|s| retries || !matches!(s, Step::Retry(_)));
        if steps.is_empty() {
            continue;
        }
        let step = steps[random(steps.len())];
        world.take(step);
        path.push(step);
        if let Some(wrong) = fails(&world, false) {
            return Some(format!("seed {seed}, {path:?}: {wrong}"));
        }
    }
    fails(&world, true).map(|wrong| format!("seed {seed}, {path:?}: {wrong}"))
}

/// Steps of the short histories; more with `TWINFOLD_AUTOMATON_DEPTH`.
fn depth() -> usize {
    let depth = std::env::var("TWINFOLD_AUTOMATON_DEPTH");
    depth.map_or(6, |d| d.parse().unwrap())
}

/// Random histories of each setup; more with `TWINFOLD_AUTOMATON_SEEDS`.
fn seeds() -> u64 {
    let seeds = std::env::var("TWINFOLD_AUTOMATON_SEEDS");
    seeds.map_or(20_000, |s| s.parse().unwrap())
}

fn setups() -> [(Arbiter, Isolation); 2] {
    [
        (Arbiter::Asked, Isolation::Wait),
        (Arbiter::None, Isolation::Wait),
    ]
}

/// Pairs that are together, with so many faults to come; and what they are.
fn starts(faults: u8) -> Vec<(String, World)> {
    let mut all: Vec<_> = setups()
        .into_iter()
        .map(|(arbiter, isolation)| {
            let world = World::paired(arbiter, isolation, faults, None);
            (format!("{arbiter:?} {isolation:?}"), world)
        })
        .collect();
    let recent = World::paired(Arbiter::Asked, Isolation::Wait, faults, None);
    all.push(("with syncdelta".into(), recent.with_syncdelta()));
    all
}

#[test]
fn every_short_history_keeps_the_promises_and_comes_together_again() {
    for (name, start) in starts(2) {
        let (states, failure) = all_histories(start, depth(), true);
        assert_eq!(failure, None, "{name}");
        println!("{name}: {states} states");
        assert!(states > 1000);
    }
}

#[test]
fn long_random_histories_keep_the_promises_and_come_together_again() {
    for (name, start) in starts(6) {
        let failures = (1..=seeds()).filter_map(|seed| one_history(&start, seed, 120));
        let failures: Vec<_> = failures.take(3).collect();
        assert!(failures.is_empty(), "{name}: {}", failures.join("\n\n"));
    }
}

#[test]
fn an_exchange_of_roles_is_done_once_on_whichever_node_it_was_asked_for() {
    for (arbiter, isolation) in setups() {
        for node in 0..2 {
            let mut world = World::paired(arbiter, isolation, 1, None);
            let before = world.primary().unwrap();
            world.take(Step::Swap(node));
            for round in 0..PATIENCE {
                world.round(round, &[]);
            }
            assert!(world.is_together(), "{}", world.brief());
            assert_eq!(world.primary(), Some(1 - before), "{}", world.brief());
        }
    }
}

#[test]
fn a_primary_that_is_stopped_to_be_started_again_follows_the_other_one() {
    for (arbiter, isolation) in setups() {
        let mut world = World::paired(arbiter, isolation, 2, None);
        let before = world.primary().unwrap();
        // It knows that the other one follows.
        world.take(Step::Arrive(before));
        world.take(Step::Want(before, Wanted::Stopped));
        for effect in [Effect::StopApp, Effect::StopDriver] {
            assert_eq!(world.nodes[before].doing, [effect]);
            world.take(Step::Done(before, 0, true));
        }
        // Nobody else has noticed anything yet.
        world.take(Step::Want(before, Wanted::Running));
        for round in 0..PATIENCE {
            world.round(round, &[]);
        }
        assert!(world.is_together(), "{}", world.brief());
        assert_eq!(world.primary(), Some(1 - before), "{}", world.brief());
    }
}

#[test]
fn after_a_general_outage_the_former_primary_serves_whichever_node_starts_first() {
    for (arbiter, isolation) in setups() {
        for (first, late) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
            let mut world = World::paired(arbiter, isolation, 2, None);
            let before = world.primary().unwrap();
            world.take(Step::Crash(0));
            world.take(Step::Crash(1));
            world.take(Step::Boot(first));
            // One node is later than the other, and then its module later than it.
            let later = Step::Boot(1 - first);
            (0..50).for_each(|round| world.round(round, &[later, Step::Begin(late)]));
            assert_eq!(world.primary(), None, "{}", world.brief());
            (0..50).for_each(|round| world.round(round, &[Step::Begin(late)]));
            assert_eq!(world.primary(), None, "{}", world.brief());
            world.settle(PATIENCE);
            assert!(world.is_together(), "{}", world.brief());
            assert_eq!(world.primary(), Some(before), "{}", world.brief());
        }
    }
}

#[test]
fn an_application_is_stopped_once_and_started_once_however_often_that_is_asked() {
    let (arbiter, isolation) = setups()[0];
    let mut world = World::paired(arbiter, isolation, 4, None);
    let node = world.primary().unwrap();
    for effect in [Effect::StopApp, Effect::StartApp] {
        for _ in 0..2 {
            world.take(Step::Restart(node));
            let doing = &world.nodes[node].doing;
            let expected: &[Effect] = match effect {
                // It does not run while it starts.
                Effect::StartApp => &[Effect::StartApp],
                _ => &[Effect::StopApp],
            };
            assert_eq!(doing, expected);
        }
        world.take(Step::Done(node, 0, true));
    }
    assert!(world.nodes[node].doing.is_empty() && world.is_together());
    assert_eq!(world.primary(), Some(node));
}

#[test]
fn planted_bugs_are_found() {
    for bug in [
        Bug::GrantsAll,
        Bug::EarlyYield,
        Bug::EarlyRelease,
        Bug::SilenceIsDeath,
        Bug::NoSessions,
        Bug::AnyQuestion,
        Bug::ForgetsPower,
    ] {
        let start = World::paired(Arbiter::Asked, Isolation::Wait, 6, Some(bug));
        let found = (1..=1_000_000).find(|seed| one_history(&start, *seed, 120).is_some());
        println!("{bug:?}: found by seed {found:?}");
        assert!(found.is_some(), "{bug:?} is not found");
    }
}
