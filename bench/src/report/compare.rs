//! Two runs: what has become worse.
//!
//! A figure of one run means nothing beside a figure of another one: the machine, its
//! load and its disk may have changed. What is compared are ratios, each within its run:
//! costs over their floors, and the targets' figures. A change counts when it is larger
//! than the tolerance and the quartiles of the two runs do not overlap.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;

use super::model::Report;
use crate::stats::Estimate;

/// What has become of a figure.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Verdict {
    Same,
    Better,
    Worse,
    /// It was measured before, and is not any more.
    Gone,
    New,
}

/// A figure that is better when it is lower.
type Figures = BTreeMap<String, Estimate>;

/// Compares; exits with 1 when something is worse or gone.
pub(crate) fn run(old: &Path, new: &Path, tolerance: f64) -> Result<ExitCode> {
    let (old, new) = (super::load(old)?, super::load(new)?);
    println!(
        "old: commit {}; {}",
        old.machine.commit(),
        old.machine.line()
    );
    println!(
        "new: commit {}; {}",
        new.machine.commit(),
        new.machine.line()
    );
    if old.flags != new.flags {
        println!(
            "the two were run with different flags: {:?} and {:?}",
            old.flags, new.flags
        );
    }
    for doubt in [&old, &new].iter().flat_map(|r| r.doubts()) {
        println!("CAUTION: {doubt}");
    }
    println!();
    let mut worse = false;
    for (name, verdict, was, is) in compare(&old, &new, tolerance / 100.0) {
        let show = |e: Option<Estimate>| match e {
            Some(e) => format!("{:.2} ({:.2} .. {:.2})", e.median, e.low, e.high),
            None => String::new(),
        };
        let word = match verdict {
            Verdict::Same => "",
            Verdict::Better => "better",
            Verdict::Worse => "WORSE",
            Verdict::Gone => "GONE",
            Verdict::New => "new",
        };
        println!("{name:<62} {:>24} {:>24}  {word}", show(was), show(is));
        worse |= matches!(verdict, Verdict::Worse | Verdict::Gone);
    }
    Ok(match worse {
        true => ExitCode::FAILURE,
        false => ExitCode::SUCCESS,
    })
}

/// Every ratio of a report, so that lower is better.
fn figures(report: &Report) -> Figures {
    let mut all = Figures::new();
    for row in &report.workloads {
        for cell in &row.cells {
            if let Some(over) = cell.floor.as_ref().filter(|_| cell.system.is_ours()) {
                let name = format!("{}, {}, over its floor", row.name, cell.system.title());
                all.insert(name, over.ratio);
            }
        }
    }
    for target in &report.targets {
        let Some(value) = target.value else {
            continue;
        };
        match target.at_most {
            true => all.insert(target.name.clone(), value),
            false => {
                let turned = Estimate {
                    median: 1.0 / value.median,
                    low: 1.0 / value.high,
                    high: 1.0 / value.low,
                };
                all.insert(format!("1 / ({})", target.name), turned)
            }
        };
    }
    all
}

type Line = (String, Verdict, Option<Estimate>, Option<Estimate>);

fn compare(old: &Report, new: &Report, tolerance: f64) -> Vec<Line> {
    let (old, new) = (figures(old), figures(new));
    let mut names: Vec<&String> = old.keys().chain(new.keys()).collect();
    names.sort_unstable();
    names.dedup();
    let line = |name: &String| {
        let (was, is) = (old.get(name).copied(), new.get(name).copied());
        let verdict = match (was, is) {
            (Some(was), Some(is)) => judge(was, is, tolerance),
            (Some(_), None) => Verdict::Gone,
            (None, _) => Verdict::New,
        };
        (name.clone(), verdict, was, is)
    };
    names.into_iter().map(line).collect()
}

fn judge(was: Estimate, is: Estimate, tolerance: f64) -> Verdict {
    let apart = |low: Estimate, high: Estimate| {
        low.high < high.low && high.median > low.median * (1.0 + tolerance)
    };
    if apart(was, is) {
        Verdict::Worse
    } else if apart(is, was) {
        Verdict::Better
    } else {
        Verdict::Same
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn estimate(low: f64, median: f64, high: f64) -> Estimate {
        Estimate { median, low, high }
    }

    #[test]
    fn a_change_counts_when_the_quartiles_are_apart() {
        let was = estimate(1.0, 1.1, 1.2);
        assert_eq!(judge(was, estimate(1.3, 1.4, 1.5), 0.05), Verdict::Worse);
        assert_eq!(judge(was, estimate(0.7, 0.8, 0.9), 0.05), Verdict::Better);
        assert_eq!(judge(was, was, 0.05), Verdict::Same);
    }

    #[test]
    fn noise_is_no_change() {
        let was = estimate(1.0, 1.1, 1.4);
        assert_eq!(judge(was, estimate(1.3, 1.5, 1.6), 0.05), Verdict::Same);
    }

    #[test]
    fn a_change_within_the_tolerance_is_none() {
        let was = estimate(1.0, 1.0, 1.0);
        assert_eq!(judge(was, estimate(1.04, 1.04, 1.04), 0.05), Verdict::Same);
        assert_eq!(judge(was, estimate(1.06, 1.06, 1.06), 0.05), Verdict::Worse);
    }
}
