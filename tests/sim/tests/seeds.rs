//! As many seeds as fit into half a minute, and what every seed must do.

// A test's helpers fail the test.
#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use twinfold_sim::{Plan, Stats, plan_of, run};

/// Seconds of a run in which no new seed is begun any more; more with
/// `TWINFOLD_SIM_SECONDS`.
fn limit() -> Duration {
    let seconds = std::env::var("TWINFOLD_SIM_SECONDS");
    Duration::from_secs(seconds.map_or(30, |s| s.parse().unwrap()))
}

#[test]
fn nothing_acknowledged_is_lost_and_the_copies_come_together() {
    let begun = Instant::now();
    let mut total = Stats::default();
    let mut seed = 0;
    // At least some, however slow the machine is.
    while seed < 50 || begun.elapsed() < limit() {
        seed += 1;
        let outcome = run(seed, &plan_of(seed), None, false);
        assert_eq!(
            outcome.failure, None,
            "seed {seed}: see it with `cargo run --release -p twinfold-sim -- --trace {seed}`"
        );
        total.add(&outcome.stats);
    }
    println!("{seed} seeds: {total:?}\n{}", total.faults_by_name());
    // The faults do happen, and so does what they are to test.
    assert!(total.faults.iter().all(|n| *n > 0), "{total:?}");
    let counts = [
        total.acknowledged / 500,
        total.prefixes / 500,
        total.checkpoints,
        total.alone_checkpoints,
        total.splits,
        total.orphans,
        total.failovers,
        total.resyncs,
        total.resumed,
        total.alone,
        total.take_overs,
        total.heirs_promoted,
        total.remote_calls / 100,
        total.reads / 100,
        total.failed_reads,
    ];
    assert!(counts.iter().all(|n| *n > 0), "{total:?}");
}

#[test]
fn a_verify_under_every_fault_reports_no_false_difference() {
    let mut total = Stats::default();
    for seed in 1..=40 {
        let plan = Plan {
            verify: true,
            ..plan_of(seed)
        };
        let outcome = run(seed, &plan, None, false);
        assert_eq!(
            outcome.failure, None,
            "seed {seed}: see it with `cargo run --release -p twinfold-sim -- --verify --trace {seed}`"
        );
        total.add(&outcome.stats);
    }
    assert!(total.verified > 1000, "{total:?}");
}

#[test]
fn a_seed_replays_exactly() {
    let [one, two] = [(); 2].map(|()| run(7, &plan_of(7), None, true));
    assert!(one.trace.len() > 100);
    assert!(one.trace == two.trace, "two runs of one seed differ");
}
