//! Plots, as SVG in the page's own colours.

use std::fmt::Write;

use super::html::escape;
use super::model::{Cell, Report, Row};
use super::table::{is_large, speed};
use super::units::time;
use crate::systems::System;

/// The class that gives a system its colour.
pub(super) fn class(system: System) -> &'static str {
    match system {
        System::Bare => "bare",
        System::Plain => "plain",
        System::Twinfold => "twinfold",
        System::Other => "other",
        System::Flush => "flush",
        System::Alone => "alone",
        System::Gluster => "gluster",
        System::Strict => "strict",
        System::Drbd => "drbd",
        System::Quic => "quic",
        System::Stock => "stock",
        System::Tcp => "tcp",
    }
}

fn open(out: &mut String, kind: &str, width: f64, height: f64, title: &str) {
    let _ = write!(
        out,
        "<svg class=\"{kind}\" viewBox=\"0 0 {width} {height}\" role=\"img\" \
         aria-label=\"{title}\"><title>{title}</title>",
        title = escape(title)
    );
}

fn text(out: &mut String, x: f64, y: f64, class: &str, words: &str) {
    let words = escape(words);
    let _ = write!(
        out,
        "<text x=\"{x:.1}\" y=\"{y:.1}\" class=\"{class}\">{words}</text>"
    );
}

fn line(out: &mut String, class: &str, from: (f64, f64), to: (f64, f64)) {
    let _ = write!(
        out,
        "<line class=\"{class}\" x1=\"{:.1}\" y1=\"{:.1}\" x2=\"{:.1}\" y2=\"{:.1}\"/>",
        from.0, from.1, to.0, to.1
    );
}

/// A row's speed on every system: bars from zero, the quartiles as whiskers, and a dashed
/// mark where the floor of a replicated folder lies.
pub(super) fn bars(row: &Row) -> String {
    const WIDTH: f64 = 560.0;
    const LEFT: f64 = 172.0;
    const RIGHT: f64 = 90.0;
    const STEP: f64 = 34.0;
    /// Room that the words behind a bar need.
    const WORDS: f64 = 80.0;
    let value = |cell: &Cell| match is_large(cell) {
        true => cell.throughput,
        false => cell.rate,
    };
    let floor = |cell: &Cell| {
        let over = cell.floor.as_ref()?;
        Some(value(cell).median * over.ratio.median)
    };
    let cells = &row.cells;
    let top = cells
        .iter()
        .flat_map(|c| [value(c).high, value(c).median, floor(c).unwrap_or(0.0)])
        .fold(f64::MIN_POSITIVE, f64::max);
    let x = |v: f64| LEFT + v / top * (WIDTH - LEFT - RIGHT);
    let height = STEP * cells.len() as f64 + 12.0;
    let mut out = String::new();
    open(
        &mut out,
        "bars",
        WIDTH,
        height,
        &format!("Speed: {}", row.title),
    );
    line(&mut out, "axis", (LEFT, 2.0), (LEFT, height - 6.0));
    for (n, cell) in cells.iter().enumerate() {
        let y = 6.0 + STEP * n as f64;
        let middle = y + STEP / 2.0 - 4.0;
        let v = value(cell);
        text(
            &mut out,
            LEFT - 8.0,
            middle + 4.0,
            "name",
            cell.system.title(),
        );
        let _ = write!(
            out,
            "<rect class=\"{}\" x=\"{LEFT}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{:.1}\" rx=\"3\"/>",
            class(cell.system),
            (x(v.median) - LEFT).max(1.0),
            STEP - 10.0
        );
        if v.high > v.low {
            line(&mut out, "whisker", (x(v.low), middle), (x(v.high), middle));
            for end in [v.low, v.high] {
                line(
                    &mut out,
                    "whisker",
                    (x(end), middle - 4.0),
                    (x(end), middle + 4.0),
                );
            }
        }
        let mut right = x(v.high.max(v.median));
        if let Some(f) = floor(cell).map(x) {
            line(&mut out, "floor", (f, y - 3.0), (f, y + STEP - 7.0));
            if (right - 4.0..right + WORDS).contains(&f) {
                right = f;
            }
        }
        text(&mut out, right + 8.0, middle + 4.0, "value", &speed(cell));
    }
    out.push_str("</svg>");
    out
}

/// Powers of ten from the one below `low` to the one above `high`.
fn decades(low: f64, high: f64) -> Vec<f64> {
    let (from, to) = (low.log10().floor() as i32, high.log10().ceil() as i32);
    (from..=to.max(from + 1)).map(|e| 10f64.powi(e)).collect()
}

/// A row's latencies on every system: to the right the ever slower steps, each mark a
/// tenth as many; both axes logarithmic.
pub(super) fn latencies(row: &Row) -> String {
    const WIDTH: f64 = 560.0;
    const HEIGHT: f64 = 270.0;
    const LEFT: f64 = 64.0;
    const RIGHT: f64 = 14.0;
    const BOTTOM: f64 = 34.0;
    const MARKS: [(f64, &str); 6] = [
        (0.5, "p50"),
        (0.1, "p90"),
        (0.01, "p99"),
        (0.001, "p99.9"),
        (0.0001, "p99.99"),
        (0.00001, "p99.999"),
    ];
    let points = || row.cells.iter().flat_map(|c| &c.curve);
    let low = points().map(|p| p.1).fold(f64::MAX, f64::min).max(0.01);
    let high = points().map(|p| p.1).fold(0.02, f64::max);
    let last = points().map(|p| p.0).fold(0.1, f64::min);
    let decades = decades(low.min(high), high);
    let (bottom, top) = (decades[0].log10(), decades[decades.len() - 1].log10());
    let first = 0.9f64;
    let x = |slower: f64| {
        let part = (first / slower).log10() / (first / last).log10();
        LEFT + part * (WIDTH - LEFT - RIGHT)
    };
    let y = |us: f64| {
        let part = (us.max(0.01).log10() - bottom) / (top - bottom);
        HEIGHT - BOTTOM - part * (HEIGHT - BOTTOM - 10.0)
    };
    let mut out = String::new();
    open(
        &mut out,
        "latency",
        WIDTH,
        HEIGHT,
        &format!("Latency: {}", row.title),
    );
    for us in &decades {
        line(&mut out, "grid", (LEFT, y(*us)), (WIDTH - RIGHT, y(*us)));
        let label = match *us {
            us if us < 1.0 => format!("{:.0} ns", us * 1e3),
            us if us < 1e3 => format!("{us:.0} us"),
            us if us < 1e6 => format!("{:.0} ms", us / 1e3),
            us => format!("{:.0} s", us / 1e6),
        };
        text(&mut out, LEFT - 8.0, y(*us) + 4.0, "name", &label);
    }
    for (slower, label) in MARKS.iter().filter(|m| m.0 >= last * 0.99) {
        line(
            &mut out,
            "grid",
            (x(*slower), 10.0),
            (x(*slower), HEIGHT - BOTTOM),
        );
        text(&mut out, x(*slower), HEIGHT - BOTTOM + 18.0, "mark", label);
    }
    for cell in &row.cells {
        let mut path = String::new();
        for (n, (slower, us)) in cell.curve.iter().enumerate() {
            let letter = if n == 0 { 'M' } else { 'L' };
            let _ = write!(path, "{letter}{:.1} {:.1}", x(*slower), y(*us));
        }
        let _ = write!(
            out,
            "<path class=\"line {}\" d=\"{path}\"><title>{}</title></path>",
            class(cell.system),
            escape(cell.system.title())
        );
        for (slower, label) in MARKS {
            let Some((_, us)) = cell.curve.iter().find(|p| p.0 == slower) else {
                continue;
            };
            let said = format!("{}, {label}: {}", cell.system.title(), time(*us));
            let _ = write!(
                out,
                "<circle class=\"dot {}\" cx=\"{:.1}\" cy=\"{:.1}\" r=\"3.5\"><title>{}</title></circle>",
                class(cell.system),
                x(slower),
                y(*us),
                escape(&said)
            );
        }
    }
    out.push_str("</svg>");
    out
}

/// What a replicated folder costs over its floor, all workloads below each other.
pub(super) fn overview(report: &Report) -> String {
    const WIDTH: f64 = 1000.0;
    const LEFT: f64 = 330.0;
    const RIGHT: f64 = 260.0;
    const STEP: f64 = 26.0;
    let shown: Vec<(&Row, &Cell)> = report
        .workloads
        .iter()
        .flat_map(|row| row.cells.iter().map(move |cell| (row, cell)))
        .filter(|(_, cell)| cell.floor.is_some() && cell.system == System::Twinfold)
        .collect();
    let ratios = || shown.iter().filter_map(|(_, c)| c.floor.as_ref());
    let high = ratios().map(|f| f.ratio.high).fold(2.0, f64::max);
    let low = ratios().map(|f| f.ratio.low).fold(0.9, f64::min).max(0.01);
    let (from, to) = (low.log2().floor(), high.log2().ceil());
    let x = |ratio: f64| {
        let part = (ratio.max(0.01).log2() - from) / (to - from);
        LEFT + part * (WIDTH - LEFT - RIGHT)
    };
    let height = STEP * shown.len() as f64 + 34.0;
    let mut out = String::new();
    open(
        &mut out,
        "overview",
        WIDTH,
        height,
        "Cost of each workload over its floor",
    );
    for power in from as i32..=to as i32 {
        let ratio = 2f64.powi(power);
        let kind = if power == 0 { "one" } else { "grid" };
        line(&mut out, kind, (x(ratio), 4.0), (x(ratio), height - 26.0));
        text(
            &mut out,
            x(ratio),
            height - 8.0,
            "mark",
            &format!("{ratio} x"),
        );
    }
    for (n, (row, cell)) in shown.iter().enumerate() {
        let Some(over) = &cell.floor else {
            continue;
        };
        let y = STEP * n as f64 + 16.0;
        text(&mut out, LEFT - 14.0, y + 4.0, "name", &row.title);
        let r = over.ratio;
        line(&mut out, "range twinfold", (x(r.low), y), (x(r.high), y));
        let _ = write!(
            out,
            "<circle class=\"dot twinfold\" cx=\"{:.1}\" cy=\"{y:.1}\" r=\"5.5\"/>",
            x(r.median)
        );
        let said = format!("{:.2} x {}", r.median, over.floor);
        text(&mut out, WIDTH - RIGHT + 14.0, y + 4.0, "value", &said);
    }
    out.push_str("</svg>");
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_axis_spans_its_values() {
        assert_eq!(decades(3.0, 250.0), [1.0, 10.0, 100.0, 1000.0]);
        assert_eq!(decades(10.0, 10.0), [10.0, 100.0]);
    }
}
