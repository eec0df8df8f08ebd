//! Each planted bug breaks an invariant, and the simulator finds it.

// A test's helpers fail the test.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use clap::ValueEnum;
use twinfold_sim::{Bug, Plan, plan_of, run, shrink};

/// Seeds tried for each bug.
const SEEDS: u64 = 6000;

/// The first seed from 1 on that found a bug, where that was none of the first few. It is tried
/// first; if it does not find the bug any more, all the others are. With
/// `TWINFOLD_SIM_FROM_ONE=1` it is not: that tells how many seeds each bug takes.
const FOUND: &[(Bug, u64)] = &[
    (Bug::EarlyRetire, 105),
    (Bug::CheckpointsOverlap, 2298),
    (Bug::SwallowSyncError, 56),
    (Bug::AssumeClean, 32),
    (Bug::ForgetMarks, 50),
    (Bug::NotesGoFirst, 142),
    (Bug::TornRecord, 339),
    (Bug::StaleVote, 373),
    (Bug::AsideLeft, 875),
    (Bug::WayLeftAside, 336),
    (Bug::CondemnedStarts, 390),
    (Bug::CalledTwice, 324),
    (Bug::HoldForever, 145),
    (Bug::HostWhenReached, 2921),
];

fn fails(bug: Bug, seed: u64) -> bool {
    let plan = Plan {
        verify: bug == Bug::VerifyUnlocked,
        ..plan_of(seed)
    };
    run(seed, &plan, Some(bug), false).failure.is_some()
}

fn seed_that_finds(bug: Bug) -> Option<u64> {
    let from_one = std::env::var_os("TWINFOLD_SIM_FROM_ONE").is_some();
    let hint = FOUND.iter().find(|(b, _)| *b == bug && !from_one);
    hint.map(|(_, seed)| *seed)
        .into_iter()
        .chain(1..=SEEDS)
        .find(|seed| fails(bug, *seed))
}

#[test]
fn every_planted_bug_is_found() {
    let bugs = Bug::value_variants();
    let next = AtomicUsize::new(0);
    let missed = Mutex::new(Vec::new());
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                while let Some(bug) = bugs.get(next.fetch_add(1, Ordering::Relaxed)) {
                    match seed_that_finds(*bug) {
                        Some(seed) => println!(
                            "invariant {:>2}, {bug:?}: found by seed {seed}",
                            bug.invariant()
                        ),
                        None => missed.lock().unwrap().push(*bug),
                    }
                }
            });
        }
    });
    let missed = missed.into_inner().unwrap();
    assert!(missed.is_empty(), "not found in {SEEDS} seeds: {missed:?}");
}

#[test]
fn they_break_the_invariants_that_the_simulator_is_there_for() {
    let broken: BTreeSet<u8> = Bug::value_variants()
        .iter()
        .map(|b| b.invariant())
        .collect();
    for invariant in [1, 2, 3, 4, 5, 6, 8, 9, 10, 11, 12, 13, 14, 15, 17] {
        assert!(broken.contains(&invariant), "invariant {invariant}");
    }
}

#[test]
fn a_failing_seed_shrinks_to_fewer_faults_and_less_work_and_still_fails() {
    let bug = Some(Bug::NoIntents);
    let seed = seed_that_finds(Bug::NoIntents).unwrap();
    let all = plan_of(seed);
    let few = shrink(seed, all.clone(), bug);
    assert!(few.faults.len() < all.faults.len(), "{few:?}");
    assert!(few.less != all.less, "{few:?}");
    assert!(run(seed, &few, bug, false).failure.is_some());
}
