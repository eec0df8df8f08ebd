//! Each planted bug breaks an invariant, and the simulator finds it.

// A test's helpers fail the test.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;

use clap::ValueEnum;
use twinfold_sim::{Bug, faults_of, run, shrink};

/// Seeds tried for each bug.
const SEEDS: u64 = 4000;

fn seeds_to_find(bug: Bug) -> Option<u64> {
    (1..=SEEDS).find(|seed| {
        run(*seed, &faults_of(*seed), Some(bug), false)
            .failure
            .is_some()
    })
}

#[test]
fn every_planted_bug_is_found() {
    let bugs = Bug::value_variants();
    let next = std::sync::atomic::AtomicUsize::new(0);
    let missed = std::sync::Mutex::new(Vec::new());
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                while let Some(bug) =
                    bugs.get(next.fetch_add(1, std::sync::atomic::Ordering::Relaxed))
                {
                    match seeds_to_find(*bug) {
                        Some(seeds) => println!(
                            "invariant {:>2}, {bug:?}: found by seed {seeds}",
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
    for invariant in [1, 2, 4, 5, 6, 8, 9, 10, 11, 12, 13, 15] {
        assert!(broken.contains(&invariant), "invariant {invariant}");
    }
}

#[test]
fn a_failing_seed_shrinks_to_fewer_faults_and_still_fails() {
    let bug = Some(Bug::NoIntents);
    let seed = seeds_to_find(Bug::NoIntents).unwrap();
    let few = shrink(seed, bug);
    assert!(few.len() < faults_of(seed).len(), "{few:?}");
    assert!(run(seed, &few, bug, false).failure.is_some());
}
