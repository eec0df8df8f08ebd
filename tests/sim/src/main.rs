//! Runs seeds. A failing one is printed with how to run it again.

use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use clap::Parser;
use twinfold_sim::{Bug, Plan, Stats, plan_of, run, shrink};

/// The simulator of twinfold: two nodes, their disks, their network, and everything
/// that can happen to them.
#[derive(Debug, Parser)]
struct Arguments {
    /// The first seed.
    #[arg(long, default_value_t = 1)]
    from: u64,
    /// How many seeds.
    #[arg(long, default_value_t = 1000)]
    seeds: u64,
    /// Seconds after which no new seed is begun.
    #[arg(long)]
    seconds: Option<u64>,
    /// A verify runs all the time.
    #[arg(long)]
    verify: bool,
    /// Plant this bug.
    #[arg(long)]
    bug: Option<Bug>,
    /// Show what happens in one seed, with only the faults that it needs to fail.
    #[arg(long)]
    trace: Option<u64>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match arguments.trace {
        Some(seed) => trace(seed, &arguments),
        None => many(&arguments),
    }
}

impl Arguments {
    fn plan(&self, seed: u64) -> Plan {
        Plan {
            verify: self.verify,
            ..plan_of(seed)
        }
    }
}

fn trace(seed: u64, arguments: &Arguments) -> ExitCode {
    let bug = arguments.bug;
    let mut plan = arguments.plan(seed);
    if run(seed, &plan, bug, false).failure.is_some() {
        plan = shrink(seed, plan, bug);
    }
    println!("{plan:?}");
    let outcome = run(seed, &plan, bug, true);
    outcome.trace.iter().for_each(|line| println!("{line}"));
    match outcome.failure {
        Some(failure) => {
            println!("FAILED: {failure}");
            ExitCode::FAILURE
        }
        None => ExitCode::SUCCESS,
    }
}

fn many(arguments: &Arguments) -> ExitCode {
    let begun = Instant::now();
    let limit = arguments.seconds.map(Duration::from_secs);
    let next = AtomicU64::new(arguments.from);
    let end = arguments.from.saturating_add(arguments.seeds);
    let total = Mutex::new((0u64, Stats::default(), Vec::new()));
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= end || limit.is_some_and(|l| begun.elapsed() > l) {
                        return;
                    }
                    let outcome = run(seed, &arguments.plan(seed), arguments.bug, false);
                    let mut total = total.lock().unwrap_or_else(|e| e.into_inner());
                    total.0 += 1;
                    total.1.add(&outcome.stats);
                    if let Some(failure) = outcome.failure {
                        println!("seed {seed}: {failure}");
                        total.2.push(seed);
                        if total.2.len() >= 10 {
                            next.store(end, Ordering::Relaxed);
                        }
                    }
                }
            });
        }
    });
    let (seeds, stats, failed) = total.into_inner().unwrap_or_else(|e| e.into_inner());
    let seconds = begun.elapsed().as_secs_f64();
    println!(
        "{seeds} seeds in {seconds:.1} s, {:.0}/s: {} effects, {} changes asked for, {} \
         acknowledged; {} failovers, {} hand-overs, {} splits given up, {} starts, {} resyncs, {} \
         sessions resumed, {} times alone, {} checkpoints and {} while alone, {} copies of nameless files, {} questions of a verify, looked {} times, {} prefixes compared; {} failed disks of a primary \
         with a peer, {} take-overs, {} without an heir, {} heirs promoted, {} last resorts, {} remote calls, {} \
         reads, {} failing reads, {} rejoins",
        seeds as f64 / seconds,
        stats.effects,
        stats.asked,
        stats.acknowledged,
        stats.failovers,
        stats.swaps,
        stats.splits,
        stats.restarts,
        stats.resyncs,
        stats.resumed,
        stats.alone,
        stats.checkpoints,
        stats.alone_checkpoints,
        stats.orphans,
        stats.verified,
        stats.looks,
        stats.prefixes,
        stats.failed_disks,
        stats.take_overs,
        stats.without_heir,
        stats.heirs_promoted,
        stats.last_resorts,
        stats.remote_calls,
        stats.reads,
        stats.failed_reads,
        stats.rejoins,
    );
    println!("faults: {}", stats.faults_by_name());
    match failed.first() {
        None => ExitCode::SUCCESS,
        Some(seed) => {
            println!("{} seeds failed; see one with --trace {seed}", failed.len());
            ExitCode::FAILURE
        }
    }
}
