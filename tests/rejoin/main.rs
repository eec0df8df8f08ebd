//! A primary that dies in the middle of a change returns as secondary: what it had
//! done and the other node had not, is undone from the other copy, whatever it was.
//!
//! The secondary is frozen, the change is begun (it is done here and waits for the
//! peer), both are killed, and the secondary's copy becomes the good one.

// A test's helpers fail the test.
#![allow(clippy::unwrap_used)]

mod capabilities;
mod held;
mod inherited;
mod places;
mod switchover;
mod unshipped;

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use harness::{Pair, Role, wait_until};

const PATIENCE: Duration = Duration::from_secs(30);

/// Begins `change` on A while B is frozen, waits until `done` sees it in A's store,
/// kills A and makes B primary. The change was never acknowledged, and B never saw it.
fn cut_off(
    pair: &mut Pair,
    change: impl FnOnce(&Path) + Send + 'static,
    done: impl Fn(&Path) -> bool,
) {
    forget_what_was_flushed(pair);
    pair.b.freeze();
    let mount = pair.a.mount();
    let worker = std::thread::spawn(move || change(&mount));
    let store = pair.a.data();
    assert!(
        wait_until(PATIENCE, || done(&store)),
        "the change was not begun"
    );
    pair.a.kill();
    worker.join().unwrap();
    // What A sent waits in B's socket. It goes with B's process; B's copy stays as it was.
    pair.b.kill();
    pair.b.start(Role::ForcedPrimary).unwrap();
}

/// Checkpoints, until neither node remembers how the files came to be: only the notes
/// of the change itself then tell of it. (A secondary keeps notes one checkpoint longer.)
fn forget_what_was_flushed(pair: &Pair) {
    fs::write(pair.on_a("tick"), b"0").unwrap();
    for n in 0..3 {
        let tick = fs::File::options().write(true).open(pair.on_a("tick"));
        tick.unwrap().write_all_at(&[n], 0).unwrap();
        pair.wait_settled();
        pair.checkpoint();
        let flushed = || pair.a.status().is_ok_and(|s| s["unflushed_objects"] == 0);
        assert!(wait_until(PATIENCE, flushed), "{:?}", pair.a.status());
    }
}

/// A returns as secondary and is resynced; both copies are then what B has.
fn bring_back(pair: &mut Pair) {
    pair.a.start(Role::Secondary).unwrap();
    pair.assert_identical();
}
