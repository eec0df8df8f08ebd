//! A machine that has no time is not a dead one.
//!
//! `TWINFOLD_BUSY_SECONDS` is for how long it has none; some seconds without it.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use harness::wait_until;

use crate::PATIENCE;
use crate::etcd::with_etcd;
use crate::stage::Machine;

/// Bytes that each of the writers writes over and over.
const FILE: u64 = 64 << 20;

fn seconds() -> u64 {
    std::env::var("TWINFOLD_BUSY_SECONDS").map_or(8, |n| n.parse().unwrap())
}

#[test]
fn nothing_fails_over_while_both_cores_and_the_disk_are_busy() {
    let (stage, _witness) = with_etcd();
    let all = [&stage.a, &stage.b];
    let primary = usize::from(stage.b.is("PRIM", "Ready"));
    let starts = all.map(|m| m.starts());
    let begun = all[primary].acked();
    let cores = std::thread::available_parallelism().unwrap().get();
    let mut apart = 0;
    let (over, synced) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        // Twice as many as there are cores, so that everybody else has to wait for one.
        for _ in 0..2 * cores {
            scope.spawn(|| {
                let mut n = 1u64;
                while !over.load(Ordering::Relaxed) {
                    n = std::hint::black_box(n.wrapping_mul(6_364_136_223_846_793_005) | 1);
                }
            });
        }
        for n in 0..2 {
            let path = stage.a.home().join(format!("busy.{n}"));
            let (over, synced) = (&over, &synced);
            scope.spawn(move || {
                let file = File::create(path).unwrap();
                let piece = vec![n; 1 << 20];
                while !over.load(Ordering::Relaxed) {
                    for at in (0..FILE).step_by(piece.len()) {
                        file.write_all_at(&piece, at).unwrap();
                    }
                    file.sync_all().unwrap();
                    synced.fetch_add(FILE, Ordering::Relaxed);
                }
            });
        }
        let until = Instant::now() + Duration::from_secs(seconds());
        while Instant::now() < until {
            std::thread::sleep(Duration::from_millis(500));
            let serves = |m: &Machine| m.is("PRIM", "Ready") || m.is("ALONE", "Ready");
            // It waits for a moment while a peer that is left behind gives way.
            let goes_on = wait_until(PATIENCE, || serves(all[primary]));
            if !goes_on || serves(all[1 - primary]) {
                over.store(true, Ordering::Relaxed);
                panic!("{}\n{}", all[0].log(), all[1].log());
            }
            // A peer whose disk does not keep up is left behind: that is none.
            apart += u32::from(!all[1 - primary].is("SECOND", "Ready"));
        }
        over.store(true, Ordering::Relaxed);
    });
    assert_eq!(
        all.map(|m| m.starts()),
        starts,
        "an application was started"
    );
    println!(
        "{} s with {} busy threads and {} MiB synced: {} writes acknowledged, no failover, the \
         secondary behind at {apart} of {} looks",
        seconds(),
        2 * cores,
        synced.load(Ordering::Relaxed) >> 20,
        all[primary].acked() - begun,
        2 * seconds()
    );
    stage.a.works();
    stage.assert_identical();
}
