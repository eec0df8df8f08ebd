//! Crashes of a pair that replicates.

use harness::{Dice, Role};

use crate::cases::{CASES, Case};
use crate::model::Left;
use crate::plan;
use crate::record::Promise;
use crate::stage::{Crash, Stage, Victim};

/// Tries one point; returns whether the crash came before the end.
fn point(stage: &mut Stage, victim: Victim, case: &Case, steps: u64, seed: u64) -> bool {
    let mut dice = Dice::new(seed);
    stage.prepare(case, dice.below(3) == 0);
    let (primary, secondary) = (stage.primary, 1 - stage.primary);
    // The second one goes down somewhere.
    let other = match dice.below(4) {
        0 => u64::MAX,
        _ => dice.below(steps + 10),
    };
    let victims = match victim {
        Victim::Primary => vec![(primary, steps)],
        Victim::Secondary => vec![(secondary, steps)],
        Victim::Both if dice.below(2) == 0 => vec![(primary, steps), (secondary, other)],
        Victim::Both => vec![(secondary, steps), (primary, other)],
    };
    stage.arm(&victims);
    let (record, mount, acts) = (stage.record.clone(), stage.mount(), case.acts);
    let worker = std::thread::spawn(move || record.run(acts, &mount));
    let record = stage.record.clone();
    let came = stage.await_fall(&victims, || record.is_done());
    stage.fall(&victims, dice.draw());
    let promise = match victim {
        Victim::Secondary => {
            stage.start(secondary, Role::Secondary).unwrap();
            worker.join().unwrap();
            // The application never sees what only the secondary had.
            assert_eq!(stage.record.error(), None);
            Promise::Acknowledged(Left::Whole)
        }
        Victim::Primary => {
            worker.join().unwrap();
            let good = match stage.crash == Crash::Kill && dice.below(2) == 0 {
                // Its page cache is there: it may go on as what it was.
                true => {
                    stage.start(primary, Role::Primary).unwrap();
                    primary
                }
                false => {
                    stage.node(secondary).promote(false).unwrap();
                    stage.primary = secondary;
                    stage.start(primary, Role::Secondary).unwrap();
                    secondary
                }
            };
            stage.promise_of(good, primary, good == primary)
        }
        Victim::Both => {
            worker.join().unwrap();
            after_both(stage, primary, &mut dice)
        }
    };
    stage.conclude(promise);
    came
}

/// Both went down. Where the former primary may go on, it does; where it says that its
/// peer may hold more, the operator names one of the two.
fn after_both(stage: &mut Stage, primary: usize, dice: &mut Dice) -> Promise {
    let secondary = 1 - primary;
    stage.primary = primary;
    let good = match stage.start(primary, Role::Primary) {
        Ok(()) => primary,
        Err(e) => {
            let objection = format!("{e:#}");
            assert!(objection.contains("the peer may hold"), "{objection}");
            stage.kill(primary);
            let good = match dice.below(2) {
                0 => primary,
                _ => secondary,
            };
            assert!(stage.start_primary(good), "its word was not asked for");
            good
        }
    };
    stage.start(1 - good, Role::Secondary).unwrap();
    stage.promise_of(good, primary, true)
}

/// The same for a primary that went on alone: the peer stopped in order, or was killed.
fn point_alone(stage: &mut Stage, case: &Case, steps: u64, seed: u64) -> bool {
    let mut dice = Dice::new(seed);
    stage.prepare(case, dice.below(3) == 0);
    let (primary, secondary) = (stage.primary, 1 - stage.primary);
    match dice.below(4) {
        0 => stage.lose(secondary),
        _ => stage.stop(secondary),
    }
    let victims = [(primary, steps)];
    stage.arm(&victims);
    let (record, mount, acts) = (stage.record.clone(), stage.mount(), case.acts);
    let worker = std::thread::spawn(move || record.run(acts, &mount));
    let record = stage.record.clone();
    let came = stage.await_fall(&victims, || record.is_done());
    stage.fall(&victims, dice.draw());
    worker.join().unwrap();
    // It lacks what was acknowledged without it: nobody makes it primary by accident.
    assert!(stage.start(secondary, Role::Primary).is_err());
    stage.start(primary, Role::Primary).unwrap();
    stage.start(secondary, Role::Secondary).unwrap();
    stage.conclude(match stage.crash {
        Crash::Kill => Promise::Acknowledged(Left::Pages),
        // One disk is all there was.
        Crash::Power => Promise::Synced,
    });
    came
}

/// Points a workload has at most, about.
fn most(crash: Crash) -> u64 {
    match crash {
        Crash::Power => 30,
        Crash::Kill => 80,
    }
}

fn run_alone(test: &str, crash: Crash) {
    let mut stage = Stage::new(crash, "memory");
    plan::run(test, CASES, most(crash), |case, steps, seed| {
        point_alone(&mut stage, case, steps, seed)
    });
}

fn run(test: &str, victim: Victim, crash: Crash, ack: &'static str) {
    let mut stage = Stage::new(crash, ack);
    plan::run(test, CASES, most(crash), |case, steps, seed| {
        point(&mut stage, victim, case, steps, seed)
    });
}

#[test]
fn nothing_acknowledged_is_missing_after_a_power_cut_of_the_secondary() {
    run("power secondary", Victim::Secondary, Crash::Power, "memory");
}

#[test]
fn nothing_acknowledged_is_missing_after_a_power_cut_of_the_primary() {
    run("power primary", Victim::Primary, Crash::Power, "memory");
}

#[test]
fn nothing_synced_is_missing_after_a_power_cut_of_both() {
    run("power both", Victim::Both, Crash::Power, "memory");
}

#[test]
fn nothing_acknowledged_on_disk_is_missing_after_a_power_cut_of_both() {
    run("power both, ack disk", Victim::Both, Crash::Power, "disk");
}

#[test]
fn nothing_acknowledged_is_missing_after_a_kill_before_any_effect_of_the_secondary() {
    run("kill secondary", Victim::Secondary, Crash::Kill, "memory");
}

#[test]
fn nothing_acknowledged_is_missing_after_a_kill_before_any_effect_of_the_primary() {
    run("kill primary", Victim::Primary, Crash::Kill, "memory");
}

#[test]
fn nothing_acknowledged_is_missing_after_a_kill_of_both() {
    run("kill both", Victim::Both, Crash::Kill, "memory");
}

#[test]
fn nothing_is_missing_on_the_primary_after_a_power_cut_of_the_secondary_in_mode_flush() {
    run(
        "flush power secondary",
        Victim::Secondary,
        Crash::Power,
        "flush",
    );
}

#[test]
fn the_secondary_is_a_prefix_with_all_that_was_synced_after_a_power_cut_in_mode_flush() {
    run(
        "flush power primary",
        Victim::Primary,
        Crash::Power,
        "flush",
    );
}

#[test]
fn nothing_synced_is_missing_after_a_power_cut_of_both_in_mode_flush() {
    run("flush power both", Victim::Both, Crash::Power, "flush");
}

#[test]
fn nothing_is_missing_on_the_primary_after_a_kill_of_the_secondary_in_mode_flush() {
    run(
        "flush kill secondary",
        Victim::Secondary,
        Crash::Kill,
        "flush",
    );
}

#[test]
fn the_secondary_is_a_prefix_with_all_that_was_synced_after_a_kill_in_mode_flush() {
    run("flush kill primary", Victim::Primary, Crash::Kill, "flush");
}

#[test]
fn each_copy_is_a_prefix_with_all_that_was_synced_after_a_kill_of_both_in_mode_flush() {
    run("flush kill both", Victim::Both, Crash::Kill, "flush");
}

#[test]
fn nothing_synced_is_missing_after_a_power_cut_of_a_primary_that_is_alone() {
    run_alone("alone power", Crash::Power);
}

#[test]
fn nothing_acknowledged_is_missing_after_a_kill_of_a_primary_that_is_alone() {
    run_alone("alone kill", Crash::Kill);
}
