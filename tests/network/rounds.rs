//! A secondary that dies again and again, and one that is slow: the application never
//! notices.

use std::path::Path;
use std::time::{Duration, Instant};

use harness::{Options, Pair, Role};

use crate::stage::{said, wait_link};
use crate::writers::Writers;

#[test]
fn twenty_deaths_of_the_secondary_go_unnoticed() {
    let mut pair = Pair::with(Options {
        on_peer_loss: "alone",
        deadlines: [1000, 10_000, 20_000],
        more: vec!["--bridge-ms".into(), "0".into()],
        ..Options::default()
    });
    let writers = Writers::start(pair.on_a(""), 3);
    for round in 0..20 {
        writers.expect(20, "before a death");
        pair.b.kill();
        // Every second time it is back before it is missed.
        if round % 2 == 0 {
            wait_link(&pair.a, "alone");
            writers.expect(20, "alone");
        }
        pair.b.start(Role::Secondary).unwrap();
        if round % 3 != 2 {
            pair.wait_paired();
        }
    }
    pair.wait_paired();
    writers.expect(50, "in the end");
    writers.finish().check(&pair.on_b(""));
    pair.assert_identical();
}

fn many_small_files(folder: &Path) {
    for n in 0..1200 {
        let directory = folder.join((n / 300).to_string());
        std::fs::create_dir_all(&directory).unwrap();
        std::fs::write(directory.join(n.to_string()), n.to_string()).unwrap();
    }
}

/// Progress is liveness: what a slow node has done it says while it does the rest.
#[test]
fn a_slow_secondary_that_makes_progress_is_not_dropped() {
    let mut pair = Pair::stopped(Options {
        // Of the slices that it is given it may get few on a busy machine.
        deadlines: [4000, 60_000, 60_000],
        populate: many_small_files,
        ..Options::default()
    });
    pair.a.start(Role::Primary).unwrap();
    pair.b.start(Role::Secondary).unwrap();
    // Nine tenths of the time it does not run.
    let end = Instant::now() + Duration::from_secs(100);
    while said(&pair.a, "the peer is up to date") == 0 && Instant::now() < end {
        pair.b.freeze();
        std::thread::sleep(Duration::from_millis(135));
        pair.b.thaw();
        std::thread::sleep(Duration::from_millis(15));
    }
    pair.wait_paired();
    assert_eq!(
        said(&pair.a, "is being brought up to date"),
        1,
        "{}",
        pair.a.log_text()
    );
    pair.assert_identical();
}
