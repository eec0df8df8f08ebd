//! A large folder under load; as large as `TWINFOLD_VERIFY_GIB` says.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use harness::Pair;

use super::{EQUAL, findings};

const MIB: usize = 1 << 20;

/// Files and bytes of each, by default.
const SMALL_FILES: u64 = 2;
const SMALL: u64 = 24 << 20;

/// A verify of it may take as long as its disk needs.
const LIMIT: Duration = Duration::from_secs(3600);

#[test]
fn a_large_folder_shows_no_false_difference_under_load() {
    let given = std::env::var("TWINFOLD_VERIFY_GIB").ok();
    let given: Option<u64> = given.map(|text| text.parse().expect("a number of GiB"));
    // By default a few files, small ones.
    let (files, size) = given.map_or((SMALL_FILES, SMALL), |gib| (gib, 1 << 30));
    let pair = Pair::new();
    let mut block = vec![0; MIB];
    for n in 0..files {
        let mut file = File::create(pair.on_a(format!("file{n}"))).unwrap();
        for m in 0..size >> 20 {
            for (i, byte) in block.iter_mut().enumerate() {
                *byte = (i as u64 * 31 + m * 7 + n * 13 + i as u64 / 4096) as u8;
            }
            file.write_all(&block).unwrap();
        }
    }
    pair.wait_settled();
    pair.checkpoint();
    let began = Instant::now();
    let quiet = pair.a.verify_within(LIMIT, &[]).unwrap();
    println!("quiet: {:?} {}", began.elapsed(), quiet.1["status"]);
    assert_eq!(quiet.0, EQUAL, "{}", quiet.2);

    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|s| {
        let writer = s.spawn(|| {
            let files: Vec<_> = (0..files)
                .map(|n| {
                    File::options()
                        .write(true)
                        .open(pair.on_a(format!("file{n}")))
                        .unwrap()
                })
                .collect();
            let (mut at, mut writes, mut slowest) = (1u64, 0u64, std::time::Duration::ZERO);
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                at = at
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                let file = &files[(at >> 33) as usize % files.len()];
                let began = Instant::now();
                file.write_all_at(
                    &at.to_le_bytes().repeat(512),
                    (at >> 20) % (size / 4096) * 4096,
                )
                .unwrap();
                slowest = slowest.max(began.elapsed());
                writes += 1;
            }
            (writes, slowest)
        });
        let began = Instant::now();
        let (code, found, said) = pair.a.verify_within(LIMIT, &[]).unwrap();
        let elapsed = began.elapsed();
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        let (writes, slowest) = writer.join().unwrap();
        assert!(writes > 0, "nothing was written meanwhile");
        println!(
            "under load: {elapsed:?}, {writes} writes ({:.0}/s), slowest {slowest:?}, {}",
            writes as f64 / elapsed.as_secs_f64(),
            found["status"]
        );
        assert_eq!((code, findings(&found)), (EQUAL, vec![]), "{said}");
    });
}
