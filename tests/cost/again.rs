//! A resync that breaks off in the middle goes on where it was.

use std::path::Path;

use fs_driver::control::Request;
use harness::{Options, Role, wait_until};

use crate::stage::{PATIENCE, Stage, is_paired, limit, wait_link, wait_status, write};

/// Bytes of each file, and files.
const FILE: u64 = 4 << 20;
const FILES: u64 = 8;

/// Slow enough to be stopped in the middle, fast enough to be waited for.
const RATE: u64 = 4 << 20;

fn name(n: u64) -> String {
    format!("file{n}")
}

fn populate(root: &Path) {
    (0..FILES).for_each(|n| write(&root.join(name(n)), FILE as usize, n));
}

/// A first synchronisation that has moved more than a third, and less than all.
fn half_way(stage: &mut Stage) -> u64 {
    stage.pair.a.start(Role::Primary).unwrap();
    limit(&stage.pair.a, Some(RATE));
    stage.pair.b.start(Role::Secondary).unwrap();
    let third = FILE * FILES / 3;
    let status = wait_status(&stage.pair.b, |s| {
        s["received_bytes"].as_u64().is_some_and(|n| n > third)
    });
    assert_eq!(status["link"], "syncing", "{status}");
    assert_eq!(status["up_to_date"], false);
    let refused = stage.pair.b.ask(Request::Promote { force: false });
    assert!(refused.is_err(), "half a copy was promoted");
    status["received_bytes"].as_u64().unwrap()
}

/// The rest, and no more than what may have been on its way when it broke off.
fn only_the_rest(stage: &Stage, data: u64, wire: u64, had: u64) {
    const UNDER_WAY: u64 = 16 << 20;
    let rest = FILE * FILES - had;
    assert!(data <= rest, "{data} bytes moved, {rest} were missing");
    assert!(
        wire <= rest + rest / 10 + UNDER_WAY,
        "{wire} on the wire, {rest} were missing"
    );
    assert!(data > 0, "it had everything before");
    stage.pair.assert_identical();
}

#[test]
fn a_target_that_is_killed_in_its_first_synchronisation_keeps_what_it_has() {
    let mut stage = Stage::stopped(Options {
        populate,
        ..Options::default()
    });
    let had = half_way(&mut stage);
    stage.pair.b.kill();
    wait_link(&stage.pair.a, "alone");
    limit(&stage.pair.a, None);
    let cost = stage.resync();
    only_the_rest(&stage, cost.data, cost.wire, had);
}

#[test]
fn a_source_that_is_killed_in_a_first_synchronisation_goes_on_with_the_rest() {
    let mut stage = Stage::stopped(Options {
        populate,
        ..Options::default()
    });
    half_way(&mut stage);
    stage.pair.a.kill();
    wait_link(&stage.pair.b, "waiting");
    let had = stage.pair.b.status().unwrap()["received_bytes"]
        .as_u64()
        .unwrap();
    let before = stage.relay.inward();
    stage.pair.a.start(Role::Primary).unwrap();
    let both = || is_paired(&stage.pair.a) && is_paired(&stage.pair.b);
    assert!(wait_until(PATIENCE, both), "{:?}", stage.pair);
    let all = stage.pair.b.status().unwrap()["received_bytes"]
        .as_u64()
        .unwrap();
    only_the_rest(&stage, all - had, stage.relay.inward() - before, had);
}

#[test]
fn a_target_that_is_killed_in_a_later_resync_keeps_what_it_has() {
    let mut stage = Stage::new(Options::default());
    stage.rest();
    stage.stop_b();
    populate(&stage.pair.a.mount());
    limit(&stage.pair.a, Some(RATE));
    stage.pair.b.start(Role::Secondary).unwrap();
    let status = wait_status(&stage.pair.b, |s| {
        s["received_bytes"]
            .as_u64()
            .is_some_and(|n| n > FILE * FILES / 3)
    });
    let had = status["received_bytes"].as_u64().unwrap();
    stage.pair.b.kill();
    wait_link(&stage.pair.a, "alone");
    limit(&stage.pair.a, None);
    let cost = stage.resync();
    only_the_rest(&stage, cost.data, cost.wire, had);
}
