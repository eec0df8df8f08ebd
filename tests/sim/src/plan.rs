//! What happens in a run beside what its seed says: the faults, and how much of the
//! application's work is left out. A failing run shrinks by both.

use std::collections::BTreeSet;

use crate::Bug;
use crate::faults::{self, Fault};
use crate::rng::Rng;
use crate::run;

/// Phases of faults in one run.
const PHASES: u64 = 3;

/// Runs that shrinking takes at most.
const TRIES: u64 = 400;

/// The faults of a run, and what its application does not do.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Plan {
    /// Faults, by the milliseconds after the beginning.
    pub faults: Vec<(u64, Fault)>,
    /// What is left out.
    pub less: Less,
    /// A verify runs all the time.
    pub verify: bool,
}

/// What of the application's work is left out.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Less {
    /// Kinds of changes, by the words of their ops.
    pub kinds: BTreeSet<&'static str>,
    /// Changes of these numbers, each range's end not counted.
    pub ranges: Vec<(u64, u64)>,
}

impl Less {
    /// Whether a change is left out.
    pub(crate) fn skips(&self, number: u64, kind: &str) -> bool {
        let skipped = |(from, to): &(u64, u64)| (*from..*to).contains(&number);
        self.kinds.contains(kind) || self.ranges.iter().any(skipped)
    }
}

/// The plan of a seed: all of it.
pub fn plan_of(seed: u64) -> Plan {
    Plan {
        faults: faults::schedule(&mut Rng::new(seed ^ 0xfa17), PHASES),
        less: Less::default(),
        verify: false,
    }
}

/// What of a failing plan is enough to fail: fewer faults, fewer kinds of changes, fewer
/// changes.
pub fn shrink(seed: u64, mut plan: Plan, bug: Option<Bug>) -> Plan {
    let mut tries = 0;
    let mut fails = |plan: &Plan| {
        tries += 1;
        tries <= TRIES && run(seed, plan, bug, false).failure.is_some()
    };
    // Twice: with less work fewer faults may do.
    for _ in 0..2 {
        let mut at = 0;
        while at < plan.faults.len() {
            let mut fewer = plan.clone();
            fewer.faults.remove(at);
            if fails(&fewer) {
                plan = fewer;
            } else {
                at += 1;
            }
        }
        for kind in crate::workload::KINDS {
            let mut fewer = plan.clone();
            if fewer.less.kinds.insert(kind) && fails(&fewer) {
                plan = fewer;
            }
        }
    }
    let all = run(seed, &plan, bug, false).stats.asked + 1;
    let mut size = all.div_ceil(2);
    while size >= all.div_ceil(64).max(1) {
        let mut from = 1;
        while from < all {
            let mut fewer = plan.clone();
            fewer.less.ranges.push((from, from + size));
            if fails(&fewer) {
                plan = fewer;
            }
            from += size;
        }
        if size == 1 {
            break;
        }
        size = size.div_ceil(2);
    }
    plan
}
