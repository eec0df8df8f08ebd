//! Each planted bug breaks an invariant, and the simulator finds it.

// A test's helpers fail the test.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use clap::ValueEnum;
use twinfold_sim::{Bug, plan_of, run, shrink};

/// Seeds tried for each bug.
const SEEDS: u64 = 4000;

/// The first seed that found a bug when it was planted, where that was none of the first
/// few. It is tried first; if it does not find the bug any more, all the others are.
const FOUND: &[(Bug, u64)] = &[
    (Bug::EarlyRetire, 193),
    (Bug::ForgetMarks, 66),
    (Bug::NotesGoFirst, 1124),
    (Bug::TornRecord, 348),
    (Bug::StaleVote, 41),
    (Bug::AsideLeft, 682),
    (Bug::HoldForever, 35),
];

fn fails(bug: Bug, seed: u64) -> bool {
    run(seed, &plan_of(seed), Some(bug), false)
        .failure
        .is_some()
}

fn seed_that_finds(bug: Bug) -> Option<u64> {
    let hint = FOUND.iter().find(|(b, _)| *b == bug).map(|(_, seed)| *seed);
    hint.into_iter()
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
    let few = shrink(seed, bug);
    let all = plan_of(seed);
    assert!(few.faults.len() < all.faults.len(), "{few:?}");
    assert!(few.less != all.less, "{few:?}");
    assert!(run(seed, &few, bug, false).failure.is_some());
}
