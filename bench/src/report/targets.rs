//! Ratios within the run: what each workload costs over its floor, and the figures that
//! the project has set itself.
//!
//! A ratio is one of medians. Its quartiles are those of the ratios of each round, in
//! which both sides were measured within seconds of each other.

use serde::{Deserialize, Serialize};

use super::model::{Cell, OverFloor, Report, Round};
use crate::memory;
use crate::run::plan::{Floor, Workload, workloads};
use crate::stats::Estimate;
use crate::systems::System;

/// A figure with its target.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Judged {
    pub(crate) name: String,
    /// Nothing when what it compares was not all measured.
    pub(crate) value: Option<Estimate>,
    /// The same by the median latencies, where one step is done at a time: what other work on
    /// the machine takes away now and then is not in it.
    #[serde(default)]
    pub(crate) typical: Option<Estimate>,
    pub(crate) at_most: bool,
    pub(crate) limit: f64,
}

impl Judged {
    /// Whether it is met.
    pub(crate) fn met(&self) -> Option<bool> {
        let value = self.value?.median;
        Some(match self.at_most {
            true => value <= self.limit,
            false => value >= self.limit,
        })
    }
}

/// The values of a report: the medians, or those of one round.
struct View<'a> {
    report: &'a Report,
    round: Option<usize>,
    /// Rates are what they would be if each step took the median latency.
    typical: bool,
}

impl View<'_> {
    fn value(
        &self,
        workload: &str,
        system: System,
        of_all: fn(&Cell) -> f64,
        of_one: fn(&Round) -> f64,
    ) -> Option<f64> {
        let cell = self.report.cell(workload, system)?;
        match self.round {
            None => Some(of_all(cell)),
            Some(n) => cell.rounds.get(n).map(of_one),
        }
    }

    /// Steps per second.
    fn rate(&self, workload: &str, system: System) -> Option<f64> {
        fn of_all(cell: &Cell) -> f64 {
            let medians: Vec<f64> = cell.rounds.iter().map(|r| r.latency.p50).collect();
            Estimate::of(&medians).map_or(f64::NAN, |e| 1e6 / e.median)
        }
        match self.typical {
            true => self.value(workload, system, of_all, |r| 1e6 / r.latency.p50),
            false => self.value(workload, system, |c| c.rate.median, Round::rate),
        }
    }

    /// Seconds per step.
    fn cost(&self, workload: &str, system: System) -> Option<f64> {
        self.rate(workload, system).map(|rate| 1.0 / rate)
    }

    /// Bytes per second.
    fn throughput(&self, workload: &str, system: System) -> Option<f64> {
        self.value(workload, system, |c| c.throughput.median, Round::throughput)
    }

    /// The slowest of a thousand steps, in microseconds.
    fn tail(&self, workload: &str, system: System) -> Option<f64> {
        fn of_all(cell: &Cell) -> f64 {
            let tails: Vec<f64> = cell.rounds.iter().map(|r| r.latency.p999).collect();
            Estimate::of(&tails).map_or(f64::NAN, |e| e.median)
        }
        self.value(workload, system, of_all, |r| r.latency.p999)
    }

    fn floor(&self, floor: Floor, workload: &str) -> Option<f64> {
        let trip = || self.cost(workload, System::Quic);
        match floor {
            Floor::Plain => self.cost(workload, System::Plain),
            Floor::PlainAndTrips(n) => {
                Some(self.cost(workload, System::Plain)? + f64::from(n) * trip()?)
            }
            Floor::Stream => Some(1.0 / self.throughput(workload, System::Quic)?),
            Floor::None => None,
        }
    }
}

/// A ratio of the medians, with the quartiles of the rounds' ratios.
fn ratio(report: &Report, typical: bool, of: &dyn Fn(&View) -> Option<f64>) -> Option<Estimate> {
    let view = |round| View {
        report,
        round,
        typical,
    };
    let median = of(&view(None)).filter(|v| v.is_finite())?;
    let each = |n| of(&view(Some(n))).filter(|v| v.is_finite());
    let rounds: Vec<f64> = (0..report.flags.rounds).filter_map(each).collect();
    let around = Estimate::of(&rounds)?;
    Some(Estimate {
        median,
        low: around.low.min(median),
        high: around.high.max(median),
    })
}

/// What it is called in a table.
fn floor_title(floor: Floor) -> String {
    match floor {
        Floor::Plain => "plain pass-through".into(),
        Floor::PlainAndTrips(1) => "pass-through + round trip".into(),
        Floor::PlainAndTrips(n) => format!("pass-through + {n} round trips"),
        Floor::Stream => "QUIC stream".into(),
        Floor::None => String::new(),
    }
}

/// The floor that `system` has in a workload: nobody waits for a peer that is not there,
/// or that acknowledges later; the floors have none themselves.
fn floor_of(workload: &Workload, system: System) -> Floor {
    match system {
        System::Twinfold | System::Other | System::Gluster | System::Strict | System::Drbd => {
            workload.floor
        }
        System::Flush if workload.syncs() => workload.floor,
        System::Flush | System::Alone => Floor::Plain,
        System::Bare | System::Plain | System::Quic | System::Stock | System::Tcp => Floor::None,
    }
}

/// Fills in what each cell costs over its floor.
pub(crate) fn add_floors(report: &mut Report) {
    let mut found = Vec::new();
    for workload in workloads() {
        let Some(row) = report.row(workload.name) else {
            continue;
        };
        for cell in &row.cells {
            let (name, system) = (workload.name, cell.system);
            let floor = floor_of(&workload, system);
            let over = |view: &View| {
                let cost = match floor {
                    Floor::Stream => 1.0 / view.throughput(name, system)?,
                    _ => view.cost(name, system)?,
                };
                Some(cost / view.floor(floor, name)?)
            };
            let over = ratio(report, false, &over).map(|ratio| OverFloor {
                floor: floor_title(floor),
                ratio,
            });
            found.push((name, system, over));
        }
    }
    for (name, system, over) in found {
        let row = report.workloads.iter_mut().find(|r| r.name == name);
        let cell = row.and_then(|r| r.cells.iter_mut().find(|c| c.system == system));
        if let Some(cell) = cell {
            cell.floor = over;
        }
    }
}

type Figure = fn(&View) -> Option<f64>;

/// Names, figures, whether they are to be low, targets; and whether what they compare is
/// done one step at a time.
const FIGURES: &[(&str, Figure, bool, f64, bool)] = &[
    (
        "4 KiB write, depth 1 / (pass-through + QUIC round trip)",
        |v| with_trip(v, "write-4k-d1", System::Twinfold),
        true,
        1.25,
        true,
    ),
    (
        "4 KiB O_DIRECT, depth 32 / depth 1",
        |v| depth(v, "direct-4k-d32"),
        false,
        4.0,
        false,
    ),
    (
        "4 KiB O_DIRECT, asynchronous, depth 32 / depth 1",
        |v| depth(v, "queue-4k-d32"),
        false,
        4.0,
        false,
    ),
    (
        "4 KiB O_DIRECT, depth 32 / GlusterFS",
        |v| gluster(v, "direct-4k-d32", System::Gluster),
        false,
        10.0,
        false,
    ),
    (
        "4 KiB O_DIRECT, depth 32 / GlusterFS, no write-behind",
        |v| gluster(v, "direct-4k-d32", System::Strict),
        false,
        10.0,
        false,
    ),
    (
        "4 KiB O_DIRECT, asynchronous, depth 32 / GlusterFS",
        |v| gluster(v, "queue-4k-d32", System::Gluster),
        false,
        10.0,
        false,
    ),
    (
        "4 KiB write + fsync / (pass-through + QUIC round trip)",
        |v| with_trip(v, "fsync-4k-d1", System::Twinfold),
        true,
        1.3,
        true,
    ),
    (
        "ack flush: 4 KiB write + fsync / (pass-through + QUIC round trip)",
        |v| with_trip(v, "fsync-4k-d1", System::Flush),
        true,
        1.3,
        true,
    ),
    (
        "4 KiB write + fsync / GlusterFS",
        |v| gluster(v, "fsync-4k-d1", System::Gluster),
        false,
        8.0,
        true,
    ),
    (
        "1 MiB sequential write / QUIC stream",
        |v| stream(v, System::Quic),
        false,
        0.6,
        false,
    ),
    (
        "1 MiB sequential write / QUIC stream, quinn as it comes",
        |v| stream(v, System::Stock),
        false,
        0.6,
        false,
    ),
    (
        "1 MiB sequential write / GlusterFS",
        |v| gluster(v, "write-1m", System::Gluster),
        false,
        1.5,
        false,
    ),
    (
        "1 MiB sequential write / GlusterFS, no write-behind",
        |v| gluster(v, "write-1m", System::Strict),
        false,
        1.5,
        false,
    ),
    (
        "4 KiB read, cached / pass-through",
        |v| plain(v, "read-4k-cached", System::Twinfold),
        false,
        0.95,
        true,
    ),
    (
        "4 KiB read, direct / pass-through",
        |v| plain(v, "read-4k-direct", System::Twinfold),
        false,
        0.95,
        true,
    ),
    (
        "create + write 4 KiB + close + unlink / GlusterFS",
        |v| gluster(v, "create-unlink", System::Gluster),
        false,
        5.0,
        true,
    ),
    (
        "no peer: cost of a 4 KiB write / pass-through",
        |v| plain(v, "write-4k-d1", System::Alone).map(|rate| 1.0 / rate),
        true,
        1.1,
        true,
    ),
    (
        "ack flush: cost of a 4 KiB write / pass-through",
        |v| plain(v, "write-4k-d1", System::Flush).map(|rate| 1.0 / rate),
        true,
        1.2,
        true,
    ),
    (
        "p99.9 of 4 KiB writes during a resync / without",
        |v| {
            let without = v.tail("write-4k-d1", System::Twinfold)?;
            Some(v.tail("write-4k-d1-resync", System::Twinfold)? / without)
        },
        true,
        3.0,
        false,
    ),
];

/// What a system's step costs over the plain pass-through and one round trip.
fn with_trip(view: &View, workload: &str, system: System) -> Option<f64> {
    Some(view.cost(workload, system)? / view.floor(Floor::PlainAndTrips(1), workload)?)
}

/// Our throughput in large writes relative to that of a bare stream.
fn stream(view: &View, wire: System) -> Option<f64> {
    let stream = view.throughput("write-1m", wire)?;
    Some(view.throughput("write-1m", System::Twinfold)? / stream)
}

/// Our rate of direct writes at once relative to that of one after the other.
fn depth(view: &View, workload: &str) -> Option<f64> {
    let one = view.rate("direct-4k-d1", System::Twinfold)?;
    Some(view.rate(workload, System::Twinfold)? / one)
}

/// Our rate relative to that of `GlusterFS`, run in one of its ways.
fn gluster(view: &View, workload: &str, way: System) -> Option<f64> {
    Some(view.rate(workload, System::Twinfold)? / view.rate(workload, way)?)
}

/// A system's rate relative to the plain pass-through's.
fn plain(view: &View, workload: &str, system: System) -> Option<f64> {
    Some(view.rate(workload, system)? / view.rate(workload, System::Plain)?)
}

/// The cost of a step of each workload relative to another system's.
pub(crate) fn relative_to(report: &Report, other: System) -> Vec<(String, Estimate)> {
    let mut all = Vec::new();
    for row in &report.workloads {
        let over = |view: &View| {
            let other = view.cost(&row.name, other)?;
            Some(view.cost(&row.name, System::Twinfold)? / other)
        };
        all.extend(ratio(report, false, &over).map(|over| (row.title.clone(), over)));
    }
    all
}

/// All figures of the report.
pub(crate) fn judge(report: &Report) -> Vec<Judged> {
    let judged =
        |(name, figure, at_most, limit, single): &(&str, Figure, bool, f64, bool)| Judged {
            name: (*name).to_owned(),
            value: ratio(report, false, figure),
            typical: single.then(|| ratio(report, true, figure)).flatten(),
            at_most: *at_most,
            limit: *limit,
        };
    let large = report.large.as_ref();
    let size = report.flags.large.as_ref();
    let size = size.map(|s| format!(", {} files, {} GiB image", s.files, s.image_gib));
    let memory = Judged {
        name: format!("memory of a driver{}, in MiB", size.unwrap_or_default()),
        value: large.map(|l| Estimate::exactly(memory::mib(l.most()))),
        typical: None,
        at_most: true,
        limit: memory::TARGET as f64,
    };
    FIGURES.iter().map(judged).chain([memory]).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::Path;

    use super::*;
    use crate::load::histogram;
    use crate::report::Machine;
    use crate::report::model::{FORMAT, Flags, Latency, Row};

    /// How fast the machine was in each round.
    const SPEEDS: [f64; 5] = [1.0, 1.0, 0.5, 0.25, 1.0];

    /// A cell with a rate, on a machine whose speed changes.
    fn cell(system: System, rate: f64) -> Cell {
        let mut all = histogram().unwrap();
        all.record((1e9 / rate) as u64).unwrap();
        let round = |speed: &f64| Round {
            ops: (rate * speed) as u64,
            bytes: (rate * speed) as u64 * 4096,
            seconds: 1.0,
            unserved: 0,
            latency: Latency::of(&all),
            cpu: (0.5, 0.25),
        };
        Cell::of(system, SPEEDS.iter().map(round).collect(), &all).unwrap()
    }

    fn report(rows: &[(&str, &[(System, f64)])]) -> Report {
        let row = |(name, cells): &(&str, &[(System, f64)])| Row {
            name: (*name).to_owned(),
            title: (*name).to_owned(),
            paced: None,
            cells: cells.iter().map(|(s, rate)| cell(*s, *rate)).collect(),
        };
        let mut report = Report {
            format: FORMAT,
            machine: Machine::here(Path::new("/")),
            flags: Flags {
                rounds: SPEEDS.len(),
                millis: 1000,
                file_mib: 1,
                resync_mib: 1,
                only: None,
                skip: Vec::new(),
                beside: None,
                drbd: None,
                large: None,
                peer: None,
            },
            seconds: 1.0,
            workloads: rows.iter().map(row).collect(),
            memory: Vec::new(),
            large: None,
            there: None,
            absent: BTreeMap::new(),
            failures: Vec::new(),
            targets: Vec::new(),
            beside: Vec::new(),
            drbd: Vec::new(),
        };
        add_floors(&mut report);
        report.targets = judge(&report);
        report
    }

    fn figure<'a>(report: &'a Report, begins: &str) -> &'a Judged {
        let found = report.targets.iter().find(|t| t.name.starts_with(begins));
        found.unwrap()
    }

    #[test]
    fn a_write_is_held_against_the_pass_through_and_a_round_trip() {
        // 50 us and 50 us, and 120 us.
        let measured = [
            (System::Plain, 20_000.0),
            (System::Twinfold, 1e6 / 120.0),
            (System::Quic, 20_000.0),
        ];
        let report = report(&[("write-4k-d1", &measured)]);
        let over = report.cell("write-4k-d1", System::Twinfold).unwrap();
        let over = over.floor.as_ref().unwrap();
        assert!((over.ratio.median - 1.2).abs() < 0.01, "{over:?}");
        assert_eq!(figure(&report, "4 KiB write, depth 1 /").met(), Some(true));
        let plain = report.cell("write-4k-d1", System::Plain).unwrap();
        assert!(plain.floor.is_none());
    }

    #[test]
    fn a_machine_that_is_slower_in_some_rounds_does_not_change_a_ratio() {
        let folders = [(System::Plain, 20_000.0), (System::Twinfold, 19_200.0)];
        let report = report(&[("read-4k-cached", &folders)]);
        let rate = report.cell("read-4k-cached", System::Plain).unwrap().rate;
        assert!(rate.spread() > 0.4);
        let value = figure(&report, "4 KiB read, cached").value.unwrap();
        assert!((value.median - 0.96).abs() < 0.001 && value.spread() < 0.001);
    }

    #[test]
    fn what_was_not_measured_is_neither_met_nor_missed() {
        let report = report(&[("direct-4k-d32", &[(System::Twinfold, 1000.0)])]);
        let peer = figure(&report, "4 KiB O_DIRECT, depth 32 / GlusterFS");
        assert_eq!((peer.value, peer.met()), (None, None));
    }

    #[test]
    fn stalls_are_in_a_figure_and_not_in_the_one_of_median_latencies() {
        let folders = [(System::Plain, 20_000.0), (System::Alone, 20_000.0)];
        let mut report = report(&[("write-4k-d1", &folders)]);
        let row = report
            .workloads
            .iter_mut()
            .find(|r| r.name == "write-4k-d1");
        let alone = &mut row.unwrap().cells[1];
        assert_eq!(alone.system, System::Alone);
        alone.rate.median /= 3.0;
        for round in &mut alone.rounds {
            round.seconds *= 3.0;
        }
        let judged = judge(&report);
        let figure = judged
            .iter()
            .find(|j| j.name.starts_with("no peer"))
            .unwrap();
        assert!((figure.value.unwrap().median - 3.0).abs() < 0.01);
        assert!((figure.typical.unwrap().median - 1.0).abs() < 0.01);
        assert_eq!(figure.met(), Some(false));
        let deep = judged.iter().find(|j| j.name.contains("depth 32")).unwrap();
        assert!(deep.typical.is_none());
    }

    #[test]
    fn the_most_that_either_driver_has_held_is_judged() {
        let held = |primary: u64, secondary: Option<u64>| memory::Held {
            when: "once".into(),
            primary: primary << 20,
            secondary: secondary.map(|s| s << 20),
        };
        let mut report = report(&[]);
        let judged = |report: &Report| {
            let all = judge(report);
            let row = all
                .iter()
                .find(|j| j.name.starts_with("memory of a driver"));
            let row = row.unwrap();
            (row.value.map(|v| v.median), row.met(), row.name.clone())
        };
        assert_eq!(judged(&report).1, None);
        let size = memory::Size {
            files: 1_000_000,
            image_gib: 100,
            writes: 1,
        };
        report.flags.large = Some(size);
        let mut large = memory::Large {
            size,
            held: vec![held(50, Some(200)), held(90, None)],
        };
        report.large = Some(large.clone());
        let (most, met, name) = judged(&report);
        assert_eq!((most, met), (Some(200.0), Some(true)));
        assert_eq!(
            name,
            "memory of a driver, 1000000 files, 100 GiB image, in MiB"
        );
        large.held.push(held(201, Some(10)));
        report.large = Some(large);
        assert_eq!(judged(&report).1, Some(false));
    }

    #[test]
    fn another_build_is_held_against_this_one() {
        let folders = [(System::Twinfold, 20_000.0), (System::Other, 10_000.0)];
        let report = report(&[("write-4k-d1", &folders), ("read-1m", &folders[..1])]);
        let [(name, over)] = &relative_to(&report, System::Other)[..] else {
            panic!("{:?}", relative_to(&report, System::Other));
        };
        assert_eq!(name, "write-4k-d1");
        assert!((over.median - 0.5).abs() < 0.001, "{over:?}");
    }

    #[test]
    fn more_than_the_target_is_missed_where_less_is_wanted() {
        let folders = [(System::Plain, 20_000.0), (System::Alone, 16_000.0)];
        let report = report(&[("write-4k-d1", &folders)]);
        assert_eq!(figure(&report, "no peer").met(), Some(false));
        let cpu = report.cell("write-4k-d1", System::Alone).unwrap().cpu;
        // Two and a half seconds of 5 rounds over 60,000 steps.
        assert!(
            (cpu.system_per_op - 2.5e6 / 60_000.0).abs() < 0.01,
            "{cpu:?}"
        );
    }
}
