//! The report on a terminal.

use std::fmt::Write;

use super::model::{Cell, Report, WHERE};
use super::units::{count, memory, throughput, time};
use crate::memory::mib;

/// From this on a throughput says more than a number of steps: bytes of a step.
const LARGE: u64 = 256 << 10;

/// Steps, or bytes where they are large.
pub(super) fn speed(cell: &Cell) -> String {
    match is_large(cell) {
        true => throughput(cell.throughput.median),
        false => format!("{}/s", count(cell.rate.median)),
    }
}

/// Whether the steps of a cell are large.
pub(super) fn is_large(cell: &Cell) -> bool {
    let total = |value: fn(&super::model::Round) -> u64| cell.rounds.iter().map(value).sum::<u64>();
    total(|r| r.bytes) >= LARGE * total(|r| r.ops).max(1)
}

/// The whole report as text.
pub(crate) fn show(report: &Report) -> String {
    let mut out = String::new();
    let machine = &report.machine;
    let flags = &report.flags;
    let _ = writeln!(out, "{}", machine.line());
    let _ = writeln!(
        out,
        "commit {}; {}; rounds: {} of {} ms each, {:.0} s in all",
        machine.commit(),
        machine.day(),
        flags.rounds,
        flags.millis,
        report.seconds
    );
    if let Some(there) = &report.there {
        let _ = writeln!(
            out,
            "the other machine, {}: {}\ncommit {}; round trip {} (TLS over TCP)",
            there.address,
            there.machine.line(),
            there.machine.commit(),
            time(there.round_trip)
        );
        let _ = writeln!(out, "here: {};\nthere: {}", WHERE[0], WHERE[1]);
    }
    for doubt in report.doubts() {
        let _ = writeln!(out, "CAUTION: {doubt}");
    }
    for row in &report.workloads {
        let paced = row.paced.map(|rate| format!(" ({}/s)", count(rate)));
        let _ = writeln!(out, "\n{}{}", row.title, paced.unwrap_or_default());
        let _ = writeln!(
            out,
            "  {:<26} {:>11} {:>7} {:>9} {:>9} {:>9} {:>9} {:>9}  {:>8} {:>8}  over its floor",
            "", "speed", "spread", "p50", "p90", "p99", "p99.9", "p99.99", "CPU/op", "CPU s/GB"
        );
        for cell in &row.cells {
            let _ = writeln!(out, "{}", line(cell));
        }
    }
    if !report.memory.is_empty() {
        let _ = writeln!(out, "\nmost memory held");
    }
    for m in &report.memory {
        let _ = writeln!(
            out,
            "  {:<26} {:<18} {:>11}",
            m.system.title(),
            m.process,
            memory(m.bytes)
        );
    }
    if let Some(large) = &report.large {
        let most = mib(large.most());
        let _ = writeln!(out, "\ndrivers of a large folder: {most:.1} MiB at most");
        for held in &large.held {
            let _ = writeln!(out, "  {held}");
        }
    }
    for (system, reason) in &report.absent {
        let _ = writeln!(out, "\n{}: {reason}", system.title());
    }
    for f in &report.failures {
        let _ = writeln!(
            out,
            "\nFAILED {} on {}: {}",
            f.workload,
            f.system.title(),
            f.error
        );
    }
    for (other, all) in [("the other build", &report.beside), ("DRBD", &report.drbd)] {
        if !all.is_empty() {
            let _ = writeln!(out, "\ncost relative to {other}");
        }
        for (name, over) in all {
            let _ = writeln!(
                out,
                "  {name:<56} {:.2} ({:.2} .. {:.2})",
                over.median, over.low, over.high
            );
        }
    }
    out.push('\n');
    for t in &report.targets {
        let sign = if t.at_most { "<=" } else { ">=" };
        let typical = match t.typical {
            Some(e) => format!(
                "  by median latencies {:.2} ({:.2} .. {:.2})",
                e.median, e.low, e.high
            ),
            None => String::new(),
        };
        let (value, mark) = match (t.value, t.met()) {
            (Some(e), Some(met)) => (
                format!("{:.2} ({:.2} .. {:.2})", e.median, e.low, e.high),
                if met { "met" } else { "MISSED" },
            ),
            _ => (String::new(), "not measured"),
        };
        let line = format!(
            "{:<58} {:>26}  target {sign} {:<5} {mark:<12}{typical}",
            t.name, value, t.limit
        );
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

fn line(cell: &Cell) -> String {
    let l = &cell.latency;
    let mut out = format!(
        "  {:<26} {:>11} {:>5.0} % {:>9} {:>9} {:>9} {:>9} {:>9}  {:>8} {:>8.2}",
        cell.system.title(),
        speed(cell),
        100.0 * cell.rate.spread(),
        time(l.p50),
        time(l.p90),
        time(l.p99),
        time(l.p999),
        time(l.p9999),
        time(cell.cpu.system_per_op + cell.cpu.own_per_op),
        cell.cpu.per_gb
    );
    if let Some(over) = &cell.floor {
        let _ = write!(out, "  {:.2} x {}", over.ratio.median, over.floor);
    }
    if cell.falls_behind() {
        out.push_str("  falls behind the rate");
    }
    out
}
