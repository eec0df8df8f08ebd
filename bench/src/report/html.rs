//! The report as one page that needs nothing else: its style and its plots are in it.

use std::fmt::Write;

use super::model::{Cell, Report, Row, WHERE};
use super::plot;
use super::table::speed;
use super::units::{count, memory, time};
use crate::systems::System;

/// All systems, in the order of the tables.
const SYSTEMS: [System; 12] = [
    System::Bare,
    System::Plain,
    System::Twinfold,
    System::Other,
    System::Flush,
    System::Alone,
    System::Gluster,
    System::Strict,
    System::Drbd,
    System::Quic,
    System::Stock,
    System::Tcp,
];

/// Text as it may stand in the page.
pub(super) fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

/// The colours of the systems, as rules for plots and keys.
fn colours() -> String {
    let rule = |system: System| {
        let class = plot::class(system);
        format!(
            "svg rect.{class}, svg .dot.{class} {{ fill: var(--{class}); }}\n\
             svg .line.{class}, svg .range.{class} {{ stroke: var(--{class}); }}\n\
             .key i.{class} {{ background: var(--{class}); }}\n"
        )
    };
    SYSTEMS.into_iter().map(rule).collect()
}

/// The whole page.
pub(super) fn page(report: &Report) -> String {
    let mut out = String::new();
    let _ = write!(
        out,
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>twinfold, measured</title>\n<style>\n{}{}</style>\n</head>\n<body>\n<main>\n",
        include_str!("style.css"),
        colours()
    );
    head(&mut out, report);
    targets(&mut out, report);
    if report
        .workloads
        .iter()
        .any(|r| r.cells.iter().any(|c| c.floor.is_some()))
    {
        out.push_str(
            "<h2>What replication costs</h2>\n<div class=\"card\">\n\
             <p class=\"soft\">Time per step relative to what no replicated folder can be faster \
             than, measured in the same run. Below 1 x is faster than its floor, by caching or \
             chance. The band is the middle half of the rounds.</p>\n",
        );
        out.push_str(&plot::overview(report));
        out.push_str("</div>\n");
    }
    out.push_str("<h2>Workloads</h2>\n");
    for row in &report.workloads {
        workload(&mut out, row);
    }
    memories(&mut out, report);
    out.push_str("</main>\n</body>\n</html>\n");
    out
}

fn head(out: &mut String, report: &Report) {
    let (machine, flags) = (&report.machine, &report.flags);
    out.push_str("<h1>twinfold, measured</h1>\n<ul class=\"meta\">\n");
    for item in [
        machine.line(),
        format!("commit {}", machine.commit()),
        machine.day(),
        format!(
            "rounds: {}, of {} ms per measurement",
            flags.rounds, flags.millis
        ),
        format!("files of {} MiB", flags.file_mib),
    ] {
        let _ = writeln!(out, "<li>{}</li>", escape(&item));
    }
    out.push_str("</ul>\n");
    if let Some(there) = &report.there {
        let _ = writeln!(
            out,
            "<p>Between two machines. Here: {}. There, at {}: {}.</p>\n<ul class=\"meta\">\n\
             <li>{}</li>\n<li>commit {}</li>\n<li>round trip {} (TLS over TCP)</li>\n</ul>",
            WHERE[0],
            escape(&there.address),
            WHERE[1],
            escape(&there.machine.line()),
            escape(&there.machine.commit()),
            time(there.round_trip)
        );
    }
    for doubt in report.doubts() {
        let _ = writeln!(out, "<p class=\"missed\">Caution: {}.</p>", escape(&doubt));
    }
    for (system, reason) in &report.absent {
        let (system, reason) = (escape(system.title()), escape(reason));
        let _ = writeln!(
            out,
            "<p class=\"soft\">Not measured: {system} ({reason}).</p>"
        );
    }
    for f in &report.failures {
        let _ = writeln!(
            out,
            "<p class=\"missed\">{} failed on {}: {}</p>",
            escape(&f.workload),
            escape(f.system.title()),
            escape(&f.error)
        );
    }
}

fn targets(out: &mut String, report: &Report) {
    out.push_str(
        "<h2>Targets</h2>\n<div class=\"card scroll\">\n<table>\n<tr><th>figure</th>\
         <th>median</th><th>middle half</th><th>target</th><th></th>\
         <th>by median latencies</th></tr>\n",
    );
    for t in &report.targets {
        let (median, half) = match t.value {
            Some(e) => (
                format!("{:.2}", e.median),
                format!("{:.2} .. {:.2}", e.low, e.high),
            ),
            None => Default::default(),
        };
        let (class, word) = match t.met() {
            Some(true) => ("met", "met"),
            Some(false) => ("missed", "missed"),
            None => ("open", "not measured"),
        };
        let sign = if t.at_most { "&le;" } else { "&ge;" };
        let typical = t.typical.map(|e| format!("{:.2}", e.median));
        let _ = writeln!(
            out,
            "<tr><td>{}</td><td>{median}</td><td>{half}</td><td>{sign} {}</td>\
             <td><span class=\"badge {class}\">{word}</span></td><td>{}</td></tr>",
            escape(&t.name),
            t.limit,
            typical.unwrap_or_default()
        );
    }
    out.push_str("</table>\n</div>\n");
}

fn key(out: &mut String, row: &Row) {
    out.push_str("<div class=\"key\">");
    for cell in &row.cells {
        let (class, title) = (plot::class(cell.system), cell.system.title());
        let _ = write!(
            out,
            "<span><i class=\"{class}\"></i>{}</span>",
            escape(title)
        );
    }
    if row.cells.iter().any(|c| c.floor.is_some()) {
        out.push_str("<span><b></b>what its floor allows</span>");
    }
    out.push_str("</div>\n");
}

fn workload(out: &mut String, row: &Row) {
    let paced = row
        .paced
        .map(|rate| format!(", {} per second", count(rate)));
    let title = format!("{}{}", row.title, paced.unwrap_or_default());
    let _ = writeln!(
        out,
        "<section class=\"card\" id=\"{}\">\n<h3>{}</h3>",
        escape(&row.name),
        escape(&title)
    );
    key(out, row);
    let _ = writeln!(
        out,
        "<div class=\"pair\">\n{}\n{}\n</div>",
        plot::bars(row),
        plot::latencies(row)
    );
    out.push_str(
        "<details><summary>Numbers</summary>\n<div class=\"scroll\"><table>\n<tr><th></th>\
         <th>speed</th><th>spread</th><th>p50</th><th>p90</th><th>p99</th><th>p99.9</th>\
         <th>p99.99</th><th>slowest</th><th>CPU per step</th><th>CPU s per GB</th>\
         <th>over its floor</th></tr>\n",
    );
    for cell in &row.cells {
        numbers(out, cell);
    }
    out.push_str("</table></div></details>\n</section>\n");
}

fn numbers(out: &mut String, cell: &Cell) {
    let l = &cell.latency;
    let over = cell.floor.as_ref();
    let over = over.map(|f| format!("{:.2} x {}", f.ratio.median, f.floor));
    let behind = if cell.falls_behind() {
        " (falls behind)"
    } else {
        ""
    };
    let mut columns = vec![
        format!("{}{behind}", speed(cell)),
        format!("{:.0} %", 100.0 * cell.rate.spread()),
    ];
    columns.extend([l.p50, l.p90, l.p99, l.p999, l.p9999, l.max].map(time));
    columns.extend([
        time(cell.cpu.system_per_op + cell.cpu.own_per_op),
        format!("{:.2}", cell.cpu.per_gb),
        over.unwrap_or_default(),
    ]);
    let _ = write!(out, "<tr><td>{}</td>", escape(cell.system.title()));
    for column in columns {
        let _ = write!(out, "<td>{}</td>", escape(&column));
    }
    out.push_str("</tr>\n");
}

fn memories(out: &mut String, report: &Report) {
    if let Some(large) = &report.large {
        out.push_str(
            "<h2>Memory of the drivers of a large folder</h2>\n<div class=\"card scroll\">\n\
             <table>\n<tr><th>when</th><th>primary</th><th>secondary</th></tr>\n",
        );
        for held in &large.held {
            let _ = writeln!(
                out,
                "<tr><td>{}</td><td>{}</td><td>{}</td></tr>",
                escape(&held.when),
                memory(held.primary),
                held.secondary.map_or("away".into(), memory)
            );
        }
        out.push_str("</table>\n</div>\n");
    }
    if report.memory.is_empty() {
        return;
    }
    out.push_str(
        "<h2>Memory</h2>\n<div class=\"card scroll\">\n<table>\n\
         <tr><th>system</th><th>process</th><th>most held</th></tr>\n",
    );
    for m in &report.memory {
        let _ = writeln!(
            out,
            "<tr><td>{}</td><td>{}</td><td>{}</td></tr>",
            escape(m.system.title()),
            escape(&m.process),
            memory(m.bytes)
        );
    }
    out.push_str("</table>\n</div>\n");
}
