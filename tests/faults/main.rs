//! Faults of every kind in a loop, under load: real processes in network namespaces of
//! their own, on small disks of their own, with an application that keeps a record.
//!
//! After every round the nodes are brought together: both copies must be identical, and
//! everything must be in them that was ever acknowledged. A round's kind and all its
//! details come from a seed, which is printed (the machine's own timing does not):
//!
//! ```text
//! TWINFOLD_FAULT_SEED=7 TWINFOLD_FAULT_ROUNDS=200 cargo test -p twinfold-tests --test faults -- --nocapture
//! ```

// A test's helpers fail the test.
#![allow(clippy::unwrap_used)]

mod kinds;
mod stage;
mod witness;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use stage::Stage;

/// How long the loop goes on when no number of rounds is given.
const TIME: Duration = Duration::from_secs(75);

/// Operations before each fault.
const LOAD: u64 = 60;

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

#[test]
fn whatever_fails_nothing_acknowledged_is_lost_and_the_copies_become_equal() {
    let seed = number("TWINFOLD_FAULT_SEED").unwrap_or_else(|| {
        let now = std::time::UNIX_EPOCH.elapsed().unwrap();
        now.as_secs()
    });
    let rounds = number("TWINFOLD_FAULT_ROUNDS");
    let only = std::env::var("TWINFOLD_FAULT_KIND").ok();
    println!("TWINFOLD_FAULT_SEED={seed}");
    let begun = Instant::now();
    let mut stage = Stage::new(seed);
    let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
    let mut deck: Vec<&kinds::Kind> = Vec::new();
    let mut round = 0;
    loop {
        let over = match rounds {
            Some(rounds) => round >= rounds,
            None => begun.elapsed() > TIME,
        };
        if over {
            break;
        }
        if deck.is_empty() {
            deck = kinds::ALL
                .iter()
                .filter(|k| only.as_ref().is_none_or(|only| k.name.contains(only)))
                .collect();
            assert!(!deck.is_empty(), "no kind has this in its name: {only:?}");
        }
        let kind = deck.swap_remove(stage.dice.below(deck.len() as u64) as usize);
        round += 1;
        let at = Instant::now();
        let primary = stage.node(stage.primary).name();
        println!("{round:4} {} (primary {primary})", kind.name);
        stage.work();
        stage.expect(LOAD, "before the fault");
        let said = (kind.happens)(&mut stage);
        let faulty = at.elapsed();
        let wrong = stage.bring_together();
        println!(
            "     {:.1} s + {:.1} s to become equal; {} acknowledged; {}",
            faulty.as_secs_f64(),
            (at.elapsed() - faulty).as_secs_f64(),
            stage.application().tally().operations(),
            said.unwrap_or_default()
        );
        assert!(
            wrong.is_empty(),
            "round {round} of seed {seed}, {}:\n{}",
            kind.name,
            wrong.join("\n")
        );
        *counts.entry(kind.name).or_default() += 1;
    }
    let tally = stage.application().tally();
    println!("rounds of each kind:");
    for (name, count) in &counts {
        println!("{count:6} {name}");
    }
    println!(
        "{round} rounds in {:.0} s, seed {seed}: {} operations acknowledged ({} writes, {} fsyncs), \
         {} refused for a full disk, {} times forced; lost: 0, different: 0",
        begun.elapsed().as_secs_f64(),
        tally.operations(),
        tally.writes(),
        tally.syncs(),
        tally.full(),
        stage.forced
    );
}
