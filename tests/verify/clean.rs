//! A healthy pair shows no difference, whatever is being changed.

use harness::{Options, Pair};
use serde_json::Value;

use super::load::Load;
use super::{EQUAL, findings};

/// Verifies under load in each mode: `TWINFOLD_VERIFY_ROUNDS`, or a few.
fn rounds() -> u64 {
    let given = std::env::var("TWINFOLD_VERIFY_ROUNDS").ok();
    given.map_or(4, |text| text.parse().expect("a number of rounds"))
}

fn under_load(ack: &'static str) {
    let pair = Pair::with(Options {
        ack,
        ..Options::default()
    });
    let load = Load::begin(&pair.a.mount());
    let mut compared = 0;
    for _ in 0..rounds() {
        let before = load.changes();
        let (code, found, said) = pair.a.verify(&[]).unwrap();
        assert_eq!(code, EQUAL, "{found:#} {said}");
        assert_eq!(findings(&found), []);
        assert!(load.changes() > before, "nothing was changed meanwhile");
        compared += found["status"]["compared_bytes"].as_u64().unwrap();
    }
    assert!(compared > 0);
    drop(load);
    pair.assert_identical();
    let status: Value = pair.a.status().unwrap();
    assert_eq!(status["differing_objects"], 0);
    assert_eq!(status["verify"]["state"], "done");
}

#[test]
fn nothing_differs_under_every_kind_of_change() {
    under_load("memory");
}

#[test]
fn nothing_differs_when_the_peer_is_behind() {
    under_load("flush");
}

#[test]
fn nothing_differs_when_every_change_waits_for_the_disk() {
    under_load("disk");
}
