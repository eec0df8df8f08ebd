//! The first figures: each system in turn, round by round, medians and ratios.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::Serialize;

use crate::floors::quic;
use crate::pair::{self, Pair};
use crate::stats::{median, spread};
use crate::workload::{self, Kind, Work};

/// What `figures` was asked for.
#[derive(Debug)]
pub(crate) struct Options {
    pub(crate) rounds: usize,
    pub(crate) millis: u64,
    pub(crate) dir: PathBuf,
    pub(crate) json: bool,
    pub(crate) only: Option<String>,
}

/// One measured value per round, in operations or bytes per second.
#[derive(Debug, Serialize)]
struct Series {
    name: &'static str,
    median: f64,
    spread: f64,
    values: Vec<f64>,
}

#[derive(Debug, Serialize)]
struct Ratio {
    name: &'static str,
    value: f64,
    target: &'static str,
    met: bool,
}

const PAGE: usize = 4096;
const MIB: usize = 1 << 20;

fn work(size: usize, depth: usize, direct: bool, sequential: bool, kind: Kind) -> Work {
    Work {
        size,
        depth,
        direct,
        sequential,
        kind,
    }
}

/// The workloads, by name.
fn workloads() -> Vec<(&'static str, Work)> {
    vec![
        ("write 4K d1", work(PAGE, 1, false, false, Kind::Write)),
        (
            "write 4K d1 direct",
            work(PAGE, 1, true, false, Kind::Write),
        ),
        (
            "write 4K d32 direct",
            work(PAGE, 32, true, false, Kind::Write),
        ),
        (
            "write+sync 4K",
            work(PAGE, 1, false, false, Kind::WriteSync),
        ),
        (
            "write 1M sequential",
            work(MIB, 1, false, true, Kind::Write),
        ),
        ("read 4K cached", work(PAGE, 1, false, false, Kind::Read)),
        ("read 4K direct", work(PAGE, 1, true, false, Kind::Read)),
        ("churn 4K", work(PAGE, 1, false, false, Kind::Churn)),
    ]
}

/// Measures and reports.
pub(crate) fn run(options: &Options) -> Result<()> {
    let dir = options
        .dir
        .join(format!("twinfold-bench.{}", std::process::id()));
    std::fs::create_dir_all(&dir)?;
    let result = measure(options, &dir);
    std::fs::remove_dir_all(&dir)
        .with_context(|| format!("cannot remove {}", dir.display()))
        .and(result)
}

fn measure(options: &Options, dir: &std::path::Path) -> Result<()> {
    let time = Duration::from_millis(options.millis);
    let bare = dir.join("bare");
    std::fs::create_dir_all(&bare)?;
    let (plain_process, plain) = pair::pass_through(dir)?;
    let pair = Pair::start(dir, "memory")?;
    let [ps, pc] = pair::ports()?;
    let (server, client) = quic::prepare(dir, (ps, pc))?;
    let quic_process = pair::quic_server(&server, dir)?;
    for directory in [&bare, &plain, &pair.mount] {
        workload::prepare(directory)?;
    }
    let mut series: Vec<Series> = Vec::new();
    let mut put = |name: &'static str, value: f64| match series.iter_mut().find(|s| s.name == name)
    {
        Some(s) => s.values.push(value),
        None => series.push(Series {
            name,
            median: 0.0,
            spread: 0.0,
            values: vec![value],
        }),
    };
    let systems = [
        ("bare", &bare),
        ("plain", &plain),
        ("twinfold", &pair.mount),
    ];
    let wanted = |name: &str| {
        options
            .only
            .as_ref()
            .is_none_or(|o| name.contains(o.as_str()))
    };
    for round in 0..options.rounds {
        eprint!("\rround {} of {} ", round + 1, options.rounds);
        for (name, work) in workloads() {
            if !wanted(name) {
                continue;
            }
            for (system, directory) in systems {
                let key: &'static str = leak(format!("{name} | {system}"));
                put(key, workload::run(directory, work, time)?);
            }
        }
        // A connection of its own each round: nobody keeps it alive in between.
        let quic = quic::Client::connect(&client)?;
        put("quic 4K round trip", quic.round_trips(PAGE, time)?);
        put("quic 64B round trip", quic.round_trips(64, time)?);
        put("quic stream bytes", quic.throughput(time)?);
    }
    eprintln!();
    for s in &mut series {
        s.median = median(&s.values);
        s.spread = spread(&s.values);
    }
    drop((plain_process, quic_process));
    let ratios = ratios(&series);
    if options.json {
        let cpu: Vec<f64> = pair.drivers.iter().map(pair::Process::cpu).collect();
        println!(
            "{}",
            serde_json::json!({"series": series, "ratios": ratios, "driver_cpu_seconds": cpu})
        );
    } else {
        for s in &series {
            println!(
                "{:<34} {:>14.0}/s  {:>9.1} us  spread {:>4.1} %",
                s.name,
                s.median,
                1e6 / s.median,
                100.0 * s.spread
            );
        }
        println!();
        for r in &ratios {
            let mark = if r.met { "met" } else { "MISSED" };
            println!(
                "{:<58} {:>6.2}  target {:<8} {mark}",
                r.name, r.value, r.target
            );
        }
    }
    Ok(())
}

/// Names live as long as the program; there are a few dozen.
fn leak(name: String) -> &'static str {
    use std::sync::Mutex;
    static NAMES: Mutex<Vec<&'static str>> = Mutex::new(Vec::new());
    let Ok(mut names) = NAMES.lock() else {
        return "";
    };
    if let Some(known) = names.iter().find(|n| **n == name) {
        return known;
    }
    let name: &'static str = name.leak();
    names.push(name);
    name
}

fn ratios(series: &[Series]) -> Vec<Ratio> {
    let rate = |name: &str| {
        series
            .iter()
            .find(|s| s.name == name)
            .map_or(f64::NAN, |s| s.median)
    };
    let time = |name: &str| 1.0 / rate(name);
    let mut out = Vec::new();
    let mut at_most = |name, value: f64, limit: f64, target| {
        if value.is_finite() {
            out.push(Ratio {
                name,
                value,
                target,
                met: value <= limit,
            });
        }
    };
    let trip = time("quic 4K round trip");
    at_most(
        "4K write d1 / (plain + QUIC round trip)",
        time("write 4K d1 | twinfold") / (time("write 4K d1 | plain") + trip),
        1.25,
        "<= 1.25",
    );
    at_most(
        "4K direct write d1 / (plain + QUIC round trip)",
        time("write 4K d1 direct | twinfold") / (time("write 4K d1 direct | plain") + trip),
        1.25,
        "<= 1.25",
    );
    at_most(
        "4K write+sync / (plain + QUIC round trip)",
        time("write+sync 4K | twinfold") / (time("write+sync 4K | plain") + trip),
        1.3,
        "<= 1.3",
    );
    let mut at_least = |name, value: f64, limit: f64, target| {
        if value.is_finite() {
            out.push(Ratio {
                name,
                value,
                target,
                met: value >= limit,
            });
        }
    };
    at_least(
        "4K direct d32 rate / d1 rate",
        rate("write 4K d32 direct | twinfold") / rate("write 4K d1 direct | twinfold"),
        4.0,
        ">= 4",
    );
    at_least(
        "1M sequential write / QUIC stream",
        rate("write 1M sequential | twinfold") * MIB as f64 / rate("quic stream bytes"),
        0.6,
        ">= 0.6",
    );
    at_least(
        "cached 4K reads / plain",
        rate("read 4K cached | twinfold") / rate("read 4K cached | plain"),
        0.95,
        ">= 0.95",
    );
    at_least(
        "direct 4K reads / plain",
        rate("read 4K direct | twinfold") / rate("read 4K direct | plain"),
        0.95,
        ">= 0.95",
    );
    out
}
