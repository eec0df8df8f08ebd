//! A large folder under load, on request: `TWINFOLD_VERIFY_GIB=10`.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::time::Instant;

use harness::Pair;

use super::{EQUAL, findings};

const MIB: usize = 1 << 20;

#[test]
fn a_large_folder_shows_no_false_difference_under_load() {
    let Some(gib) = std::env::var("TWINFOLD_VERIFY_GIB").ok() else {
        return;
    };
    let gib: u64 = gib.parse().expect("a number of GiB");
    let pair = Pair::new();
    let mut block = vec![0; MIB];
    for n in 0..gib {
        let mut file = File::create(pair.on_a(format!("file{n}"))).unwrap();
        for m in 0..1024u64 {
            for (i, byte) in block.iter_mut().enumerate() {
                *byte = (i as u64 * 31 + m * 7 + n * 13 + i as u64 / 4096) as u8;
            }
            file.write_all(&block).unwrap();
        }
    }
    pair.wait_settled();
    pair.checkpoint();
    let began = Instant::now();
    let quiet = pair.a.verify(&[]).unwrap();
    println!("quiet: {:?} {}", began.elapsed(), quiet.1["status"]);
    assert_eq!(quiet.0, EQUAL, "{}", quiet.2);

    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|s| {
        let writer = s.spawn(|| {
            let files: Vec<_> = (0..gib)
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
                file.write_all_at(&at.to_le_bytes().repeat(512), (at >> 20) % (1 << 18) * 4096)
                    .unwrap();
                slowest = slowest.max(began.elapsed());
                writes += 1;
            }
            (writes, slowest)
        });
        let began = Instant::now();
        let (code, found, said) = pair.a.verify(&[]).unwrap();
        let elapsed = began.elapsed();
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        let (writes, slowest) = writer.join().unwrap();
        println!(
            "under load: {elapsed:?}, {writes} writes ({:.0}/s), slowest {slowest:?}, {}",
            writes as f64 / elapsed.as_secs_f64(),
            found["status"]
        );
        assert_eq!((code, findings(&found)), (EQUAL, vec![]), "{said}");
    });
}
