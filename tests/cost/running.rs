//! A resync as those see it who run it: limited, followed, and beside an application.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use harness::{Options, Role};
use serde_json::Value;

use crate::stage::{Stage, limit, noise, wait_status, write};

/// Follows what a node tells of a resync until its copy is up to date.
#[derive(Default)]
struct Followed {
    phases: Vec<String>,
    percent: f64,
}

impl Followed {
    fn look(&mut self, status: &Value) {
        let resync = &status["resync"];
        let Some(phase) = resync["phase"].as_str() else {
            return;
        };
        if self.phases.last().is_none_or(|last| last != phase) {
            self.phases.push(phase.to_owned());
            self.percent = 0.0;
        }
        let percent = resync["percent"].as_f64().unwrap();
        assert!(
            percent >= self.percent,
            "{} % after {} %",
            percent,
            self.percent
        );
        self.percent = percent;
        assert!(phase == "done" || percent < 100.0, "{resync}");
        for number in [&resync["rate"], &resync["seconds_left"]] {
            assert!(
                number.is_null() || number.as_f64().is_some_and(f64::is_finite),
                "{resync}"
            );
        }
    }
}

/// Bytes that may be ahead of a limit: what may be spent at once, and what is under way.
const WINDOW: u64 = 1 << 20;

/// No more than the limit allows since `begun`; the time is taken after the bytes, so that a
/// slow machine allows more.
fn keeps_to(limit: u64, begun: Instant, bytes: u64) {
    let elapsed = begun.elapsed();
    let most = (limit as f64 * elapsed.as_secs_f64()) as u64 + WINDOW;
    assert!(
        bytes <= most,
        "{bytes} bytes in {elapsed:?} at {limit} a second"
    );
}

#[test]
fn both_nodes_tell_how_far_it_is_and_a_changed_limit_counts_at_once() {
    let mut stage = Stage::new(Options {
        more: vec!["--resync-limit".into(), "512K".into()],
        ..Options::default()
    });
    stage.stop_b();
    write(&stage.pair.on_a("file"), 32 << 20, 1);
    let begun = Instant::now();
    stage.pair.b.start(Role::Secondary).unwrap();
    let (mut source, mut target) = (Followed::default(), Followed::default());
    // At this rate it takes a minute: it is seen in the middle, on both nodes.
    let seen = wait_status(&stage.pair.b, |s| {
        source.look(&stage.pair.a.status().unwrap());
        target.look(s);
        let moved = s["resync"]["moved_bytes"].as_u64().unwrap_or(0);
        s["resync"]["phase"] == "moving" && moved > WINDOW + WINDOW / 2
    });
    keeps_to(
        512 << 10,
        begun,
        seen["resync"]["moved_bytes"].as_u64().unwrap(),
    );
    assert!(seen["resync"]["percent"].as_f64() > Some(0.0), "{seen}");
    assert!(seen["resync"]["rate"].as_f64() > Some(0.0), "{seen}");
    assert!(
        seen["resync"]["seconds_left"].as_f64() > Some(0.0),
        "{seen}"
    );
    let seen = stage.pair.a.status().unwrap();
    keeps_to(
        512 << 10,
        begun,
        seen["resync"]["moved_bytes"].as_u64().unwrap(),
    );
    assert_eq!(seen["resync_limit"], 512 << 10);
    assert_eq!(seen["resync"]["marked_bytes"], 32 << 20);
    limit(&stage.pair.a, None);
    wait_status(&stage.pair.b, |s| {
        source.look(&stage.pair.a.status().unwrap());
        target.look(s);
        s["link"] == "paired"
    });
    let last = wait_status(&stage.pair.a, |s| {
        source.look(s);
        s["link"] == "paired"
    });
    assert_eq!(last["resync"]["phase"], "done");
    assert_eq!(last["resync"]["percent"], 100.0);
    assert_eq!(last["resync"]["moved_bytes"], 32 << 20);
    assert!(
        source.phases.contains(&"moving".to_owned()),
        "{:?}",
        source.phases
    );
    assert!(
        target.phases.contains(&"moving".to_owned()),
        "{:?}",
        target.phases
    );
    stage.pair.assert_identical();
}

fn eight(root: &Path) {
    (0..8).for_each(|n| write(&root.join(format!("f{n}")), 1 << 20, n));
}

/// Nothing has to be moved, and all of it is read.
#[test]
fn what_is_compared_counts_for_the_limit() {
    let mut stage = Stage::stopped(Options {
        populate: eight,
        seed: Some(eight),
        more: vec!["--resync-limit".into(), "2M".into()],
        ..Options::default()
    });
    stage.pair.a.start(Role::Primary).unwrap();
    let begun = Instant::now();
    let cost = stage.resync();
    let status = stage.pair.a.status().unwrap();
    let compared = status["resync"]["compared_bytes"].as_u64().unwrap();
    keeps_to(2 << 20, begun, compared);
    assert!(compared >= 8 << 20 && cost.data == 0, "{status} {cost:?}");
}

#[test]
fn it_ends_while_the_application_writes_without_a_pause() {
    const SIZE: u64 = 16 << 20;
    let mut stage = Stage::new(Options::default());
    let path = stage.pair.on_a("file");
    write(&path, SIZE as usize, 1);
    stage.stop_b();
    write(&path, SIZE as usize, 2);
    write(&stage.pair.on_a("new"), SIZE as usize, 3);
    let stop = AtomicBool::new(false);
    let file = File::options().write(true).open(&path).unwrap();
    let cost = std::thread::scope(|scope| {
        let writers: Vec<_> = (0..2u64)
            .map(|writer| {
                let (file, stop) = (&file, &stop);
                scope.spawn(move || {
                    let mut count = 0;
                    while !stop.load(Ordering::Relaxed) {
                        let place = (count * 37 + writer) % (SIZE / 4096);
                        file.write_all_at(&noise(4096, count), place * 4096)
                            .unwrap();
                        count += 1;
                    }
                    count
                })
            })
            .collect();
        let cost = stage.resync_beside_writers();
        stop.store(true, Ordering::Relaxed);
        let written: u64 = writers.into_iter().map(|w| w.join().unwrap()).sum();
        assert!(written > 0, "nothing was written meanwhile");
        cost
    });
    // What was written meanwhile went as writes; each block was moved once.
    assert!(cost.data <= 2 * SIZE, "{cost:?}");
    stage.pair.assert_identical();
}
