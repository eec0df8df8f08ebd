//! Both nodes' automata with their drivers, an arbiter and a network: every history up to
//! a depth, and many longer ones from seeds. Never two that serve, never one that serves
//! without an acknowledged write, and always together again once everything is repaired.

// A test's helpers fail the test.
#![allow(clippy::unwrap_used)]

#[path = "automaton/nodes.rs"]
mod nodes;
#[path = "automaton/world.rs"]
mod world;

use std::collections::HashSet;

use twinfold_protocol::automaton::{Arbiter, Isolation};
use world::{Bug, Step, World};

/// Steps of a repaired pair until it must be together, at most.
const PATIENCE: usize = 400;

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
    }
    None
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

#[test]
fn every_short_history_keeps_the_promises_and_comes_together_again() {
    for (arbiter, isolation) in setups() {
        let start = World::paired(arbiter, isolation, 2, None);
        let (states, failure) = all_histories(start, depth(), true);
        assert_eq!(failure, None, "{arbiter:?} {isolation:?}");
        println!("{arbiter:?} {isolation:?}: {states} states");
        assert!(states > 1000);
    }
}

#[test]
fn long_random_histories_keep_the_promises_and_come_together_again() {
    for (arbiter, isolation) in setups() {
        let start = World::paired(arbiter, isolation, 6, None);
        for seed in 1..=seeds() {
            let failure = one_history(&start, seed, 120);
            assert_eq!(failure, None, "{arbiter:?} {isolation:?}");
        }
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
                world.round(round);
            }
            assert!(world.is_together(), "{}", world.brief());
            assert_eq!(world.primary(), Some(1 - before), "{}", world.brief());
        }
    }
}

#[test]
fn planted_bugs_are_found() {
    for bug in [
        Bug::GrantsAll,
        Bug::EarlyYield,
        Bug::SilenceIsDeath,
        Bug::NoSessions,
        Bug::AnyQuestion,
    ] {
        let start = World::paired(Arbiter::Asked, Isolation::Wait, 6, Some(bug));
        let found = (1..=200_000).find(|seed| one_history(&start, *seed, 120).is_some());
        println!("{bug:?}: found by seed {found:?}");
        assert!(found.is_some(), "{bug:?} is not found");
    }
}
