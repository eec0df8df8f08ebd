//! The report as data.

use std::collections::BTreeMap;
use std::path::PathBuf;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use super::machine::Machine;
use super::targets::Judged;
use crate::load::Measured;
use crate::memory::{Large, Size};
use crate::stats::Estimate;
use crate::systems::System;

/// Raised when an older report cannot be read any more.
pub(crate) const FORMAT: u32 = 1;

/// Points of a latency distribution that are kept, in parts of the steps that are slower.
const CURVE: [f64; 19] = [
    0.9, 0.75, 0.5, 0.35, 0.25, 0.15, 0.1, 0.05, 0.025, 0.01, 0.005, 0.0025, 0.001, 0.0005,
    0.00025, 0.0001, 0.00005, 0.000025, 0.00001,
];

/// Everything that one run has found.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Report {
    pub(crate) format: u32,
    pub(crate) machine: Machine,
    pub(crate) flags: Flags,
    /// How long it took, in seconds.
    pub(crate) seconds: f64,
    pub(crate) workloads: Vec<Row>,
    pub(crate) memory: Vec<Memory>,
    /// The memory of the drivers of a large folder, if it was asked for.
    #[serde(default)]
    pub(crate) large: Option<Large>,
    /// The other machine, if there was one.
    #[serde(default)]
    pub(crate) there: Option<There>,
    /// Systems that could not be measured, and why.
    pub(crate) absent: BTreeMap<System, String>,
    /// What went wrong, and where.
    pub(crate) failures: Vec<Failure>,
    pub(crate) targets: Vec<Judged>,
    /// What each workload costs relative to the other build.
    #[serde(default)]
    pub(crate) beside: Vec<(String, Estimate)>,
    /// What each workload costs relative to DRBD.
    #[serde(default)]
    pub(crate) drbd: Vec<(String, Estimate)>,
}

/// How the run was asked for.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(crate) struct Flags {
    pub(crate) rounds: usize,
    pub(crate) millis: u64,
    pub(crate) file_mib: u64,
    pub(crate) resync_mib: u64,
    pub(crate) only: Option<String>,
    pub(crate) skip: Vec<System>,
    /// Another build of this program, whose drivers are measured as well.
    #[serde(default)]
    pub(crate) beside: Option<PathBuf>,
    /// The large folder whose drivers' memory is measured.
    #[serde(default)]
    pub(crate) large: Option<Size>,
    /// Where the other machine was asked for.
    #[serde(default)]
    pub(crate) peer: Option<String>,
    /// A directory on a DRBD device, measured as well.
    #[serde(default)]
    pub(crate) drbd: Option<PathBuf>,
}

/// The other machine.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct There {
    /// Where its control line was reached.
    pub(crate) address: String,
    pub(crate) machine: Machine,
    /// The median round trip of that line, in microseconds.
    pub(crate) round_trip: f64,
    /// How its program differs, where that was allowed.
    pub(crate) differs: Option<String>,
}

/// What runs where, when there are two machines.
pub(crate) const WHERE: [&str; 2] = [
    "the load, the primaries, the bare directory and the pass-through",
    "the secondaries and the answering ends of QUIC and TCP",
];

/// A workload, on all systems.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Row {
    pub(crate) name: String,
    pub(crate) title: String,
    /// Steps per second of an open loop.
    pub(crate) paced: Option<f64>,
    pub(crate) cells: Vec<Cell>,
}

/// A workload on one system.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Cell {
    pub(crate) system: System,
    /// One entry for each round, in their order.
    pub(crate) rounds: Vec<Round>,
    /// Steps per second.
    pub(crate) rate: Estimate,
    /// Bytes per second.
    pub(crate) throughput: Estimate,
    /// Of the steps of all rounds, in microseconds.
    pub(crate) latency: Latency,
    /// The distribution: the part of the steps that are slower, and microseconds.
    pub(crate) curve: Vec<(f64, f64)>,
    pub(crate) cpu: Cpu,
    /// What it costs relative to its floor, both of this run.
    pub(crate) floor: Option<OverFloor>,
}

/// What was measured in one round.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Round {
    pub(crate) ops: u64,
    pub(crate) bytes: u64,
    pub(crate) seconds: f64,
    /// Steps of an open loop that were never begun.
    pub(crate) unserved: u64,
    /// In microseconds.
    pub(crate) latency: Latency,
    /// CPU seconds of the system's processes, and of this one.
    pub(crate) cpu: (f64, f64),
}

/// Percentiles, in microseconds.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Latency {
    pub(crate) mean: f64,
    pub(crate) p50: f64,
    pub(crate) p90: f64,
    pub(crate) p99: f64,
    pub(crate) p999: f64,
    pub(crate) p9999: f64,
    pub(crate) max: f64,
}

/// CPU seconds of all rounds, of both sides of the mount.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Cpu {
    /// Microseconds per step, of the system's processes.
    pub(crate) system_per_op: f64,
    /// Microseconds per step, of this process: the calls themselves.
    pub(crate) own_per_op: f64,
    /// Seconds per gigabyte (10^9 bytes) moved, of both.
    pub(crate) per_gb: f64,
}

/// A cost relative to the floor's.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct OverFloor {
    /// What the floor is.
    pub(crate) floor: String,
    /// Of the medians; the quartiles are those of the rounds' own ratios.
    pub(crate) ratio: Estimate,
}

/// The most memory a process has held.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Memory {
    pub(crate) system: System,
    pub(crate) process: String,
    pub(crate) bytes: u64,
}

/// A measurement that did not come off.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Failure {
    pub(crate) workload: String,
    pub(crate) system: System,
    pub(crate) error: String,
}

impl Latency {
    pub(crate) fn of(histogram: &Histogram<u64>) -> Latency {
        let at = |q: f64| histogram.value_at_quantile(q) as f64 / 1e3;
        Latency {
            mean: histogram.mean() / 1e3,
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p999: at(0.999),
            p9999: at(0.9999),
            max: histogram.max() as f64 / 1e3,
        }
    }
}

impl Round {
    pub(crate) fn new(measured: &Measured, cpu: (f64, f64)) -> Round {
        Round {
            ops: measured.ops,
            bytes: measured.bytes,
            seconds: measured.seconds,
            unserved: measured.unserved,
            latency: Latency::of(&measured.latencies),
            cpu,
        }
    }

    pub(crate) fn rate(&self) -> f64 {
        self.ops as f64 / self.seconds
    }

    pub(crate) fn throughput(&self) -> f64 {
        self.bytes as f64 / self.seconds
    }
}

impl Cell {
    /// Of the rounds of `system` and all their latencies; nothing without rounds.
    pub(crate) fn of(system: System, rounds: Vec<Round>, all: &Histogram<u64>) -> Option<Cell> {
        let estimate = |value: fn(&Round) -> f64| {
            let values: Vec<f64> = rounds.iter().map(value).collect();
            Estimate::of(&values)
        };
        let total = |value: fn(&Round) -> f64| rounds.iter().map(value).sum::<f64>();
        let ops = total(|r| r.ops as f64).max(1.0);
        let (system_cpu, own_cpu) = (total(|r| r.cpu.0), total(|r| r.cpu.1));
        Some(Cell {
            system,
            rate: estimate(Round::rate)?,
            throughput: estimate(Round::throughput)?,
            latency: Latency::of(all),
            curve: curve(all),
            cpu: Cpu {
                system_per_op: system_cpu * 1e6 / ops,
                own_per_op: own_cpu * 1e6 / ops,
                per_gb: (system_cpu + own_cpu) * 1e9 / total(|r| r.bytes as f64).max(1.0),
            },
            floor: None,
            rounds,
        })
    }

    /// Whether an open loop has begun fewer steps than it should have.
    pub(crate) fn falls_behind(&self) -> bool {
        self.rounds.iter().any(|r| r.unserved > 0)
    }
}

/// The distribution at the points of [`CURVE`] that there are enough steps for; at the
/// first one in any case.
fn curve(histogram: &Histogram<u64>) -> Vec<(f64, f64)> {
    let steps = histogram.len() as f64;
    CURVE
        .iter()
        .filter(|slower| **slower == CURVE[0] || steps * **slower >= 1.0)
        .map(|slower| {
            (
                *slower,
                histogram.value_at_quantile(1.0 - slower) as f64 / 1e3,
            )
        })
        .collect()
}

impl Report {
    /// Why the figures may say little.
    pub(crate) fn doubts(&self) -> Vec<String> {
        let mut doubts = self.machine.doubts();
        if let Some(there) = &self.there {
            let of_it = there.machine.doubts().into_iter();
            doubts.extend(of_it.map(|d| format!("on the other machine: {d}")));
            doubts.extend(there.differs.iter().map(|d| format!("two programs: {d}")));
            doubts.push(
                "the targets are those for two nodes on one machine; what the network adds is in \
                 the round trips and streams of bare QUIC"
                    .to_owned(),
            );
        }
        doubts
    }

    /// A workload's row.
    pub(crate) fn row(&self, workload: &str) -> Option<&Row> {
        self.workloads.iter().find(|r| r.name == workload)
    }

    /// A workload on a system.
    pub(crate) fn cell(&self, workload: &str, system: System) -> Option<&Cell> {
        let cells = &self.row(workload)?.cells;
        cells.iter().find(|c| c.system == system)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_single_step_has_a_distribution() {
        let mut all = crate::load::histogram().unwrap();
        all.record(5_000).unwrap();
        let points = curve(&all);
        assert_eq!(points.len(), 1);
        assert!((points[0].1 - 5.0).abs() < 0.01, "{points:?}");
    }
}
