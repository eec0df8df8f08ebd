//! Both nodes' automata with their drivers, an arbiter and a network: every history up to
//! a depth, and many longer ones from seeds. Never two that serve where somebody decides, never
//! one that serves without an acknowledged write, never a copy promoted from before its peer went
//! on, always the same decision on two nodes that know of each other what is so, and always
//! together again once everything is repaired.
//!
//! What may happen: a node crashes, loses its power, freezes; its disk hangs or fails; its driver
//! dies; the network is cut, or carries one direction only; up to two views of each node are on
//! their way, so that one is late or lost, and stay so when their sender has died; the arbiter goes
//! away, or its answer is lost; what a node was to do fails; the operator stops, starts, restarts
//! and exchanges roles, says a word in the wrong place, and gives one node other rules. With each of
//! [`setups`]: a witness, a fence command, an address, or nobody with either policy; failover on and
//! off; a default primary on either side; with and without `syncdelta`.
//!
//! Histories are searched breadth first to [`depth`] steps with two faults among them, each state
//! once. From each of them everything is repaired, and the pair has to come together and then to
//! survive the loss of either node; what was found to do so is not looked at again. Random histories
//! of 120 steps with six faults follow.

// A test's helpers fail the test.
#![allow(clippy::unwrap_used)]

#[path = "automaton/explore.rs"]
mod explore;
#[path = "automaton/nodes.rs"]
mod nodes;
#[path = "automaton/promises.rs"]
mod promises;
#[path = "automaton/setup.rs"]
mod setup;
#[path = "automaton/steps.rs"]
mod steps;
#[path = "automaton/stories.rs"]
mod stories;
#[path = "automaton/world.rs"]
mod world;

use explore::{Checked, all_histories, in_parallel, one_history};
use steps::Step;
use twinfold_protocol::automaton::{Arbiter, Effect, Isolation, Wanted};
use twinfold_protocol::ids::Side;
use world::{Bug, Judge, Setup, World};

/// Steps of a repaired pair until it must be together, at most.
const PATIENCE: usize = 400;

/// Steps of a random history.
const LENGTH: usize = 120;

fn number(variable: &str, unless: u64) -> u64 {
    let said = std::env::var(variable);
    said.map_or(unless, |text| text.parse().unwrap())
}

/// Steps of the short histories; more with `TWINFOLD_AUTOMATON_DEPTH`.
fn depth() -> usize {
    number("TWINFOLD_AUTOMATON_DEPTH", 6) as usize
}

/// Random histories of each setup; more with `TWINFOLD_AUTOMATON_SEEDS`.
fn seeds() -> u64 {
    number("TWINFOLD_AUTOMATON_SEEDS", 10_000)
}

/// Two that keep two nodes from both going on.
fn setups() -> [(Arbiter, Isolation); 2] {
    [
        (Arbiter::Asked, Isolation::Wait),
        (Arbiter::None, Isolation::Wait),
    ]
}

/// Everything that is explored, and what it is called.
fn all_setups() -> Vec<(&'static str, Setup)> {
    let witness = Setup::new(Arbiter::Asked, Isolation::Wait);
    let alone = Setup::new(Arbiter::None, Isolation::Alone);
    let judge = |judge| Setup { judge, ..witness };
    let prefers = |side| Setup {
        default_prim: Some(side),
        ..witness
    };
    let off = |setup| Setup {
        failover: false,
        ..setup
    };
    vec![
        ("witness", witness),
        ("wait", Setup::new(Arbiter::None, Isolation::Wait)),
        ("alone", alone),
        ("fence", judge(Judge::Fence)),
        ("ping", judge(Judge::Ping)),
        (
            "syncdelta",
            Setup {
                syncdelta: true,
                ..witness
            },
        ),
        ("witness, failover off", off(witness)),
        ("alone, failover off", off(alone)),
        ("witness, even side is default", prefers(Side::Even)),
        ("witness, odd side is default", prefers(Side::Odd)),
        ("odd side is default, failover off", off(prefers(Side::Odd))),
    ]
}

#[test]
fn every_short_history_keeps_the_promises_and_comes_together_again() {
    in_parallel(all_setups(), |(name, setup)| {
        let start = World::of(setup, 2, None);
        let (states, failure) = all_histories(start, depth());
        println!("{name}: {states} states");
        assert_eq!(failure, None, "{name}");
        assert!(states > 1000);
    });
}

#[test]
fn long_random_histories_keep_the_promises_and_come_together_again() {
    in_parallel(all_setups(), |(name, setup)| {
        let start = World::of(setup, 6, None);
        let mut checked = Checked::default();
        let failures =
            (1..=seeds()).filter_map(|seed| one_history(&start, seed, LENGTH, &mut checked));
        let failures: Vec<_> = failures.take(3).collect();
        assert!(failures.is_empty(), "{name}: {}", failures.join("\n\n"));
    });
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

/// Where each planted bug shows, and the first seed from 1 on that finds it. It is tried first; if
/// it finds nothing any more, all the others are.
fn planted() -> Vec<(Bug, Setup, u64)> {
    let witness = Setup::new(Arbiter::Asked, Isolation::Wait);
    let alone = Setup::new(Arbiter::None, Isolation::Alone);
    let off = Setup {
        failover: false,
        ..witness
    };
    let fence = Setup {
        judge: Judge::Fence,
        ..witness
    };
    let prefers = Setup {
        default_prim: Some(Side::Odd),
        ..witness
    };
    vec![
        (Bug::GrantsAll, witness, 122),
        (Bug::EarlyYield, witness, 1084),
        (Bug::EarlyRelease, witness, 20756),
        (Bug::SilenceIsDeath, witness, 39),
        (Bug::NoSessions, witness, 11109),
        (Bug::AnyQuestion, witness, 2712),
        (Bug::ForgetsPower, witness, 4),
        (Bug::ForgesSessions, witness, 55415),
        (Bug::NoFence, fence, 122),
        (Bug::RestartIsCurrent, alone, 23),
        (Bug::BothEven, witness, 4507),
        (Bug::FailoverAnyway, off, 2),
        (Bug::SwapsBlindly, prefers, 39),
    ]
}

#[test]
fn planted_bugs_are_found() {
    in_parallel(planted(), |(bug, setup, hint)| {
        let start = World::of(setup, 6, Some(bug));
        let mut checked = Checked::default();
        let found = std::iter::once(hint)
            .chain(1..=1_000_000)
            .find_map(|seed| Some((seed, one_history(&start, seed, LENGTH, &mut checked)?)));
        let (seed, failure) = found.unwrap_or_else(|| panic!("{bug:?} is not found"));
        let what = failure.lines().next().unwrap_or_default();
        println!(
            "{bug:?}: found by seed {seed}: {}",
            what.rsplit("]: ").next().unwrap()
        );
    });
}
