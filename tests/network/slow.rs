//! Nodes on ordinary hard disks.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use harness::faulty::{Faults, Slow};
use harness::{Dice, Options, Pair};

use crate::stage::said;

/// Bytes of each disk.
const DISK: u64 = 1 << 30;

/// Bytes of the file that is written at random places, and of one of its blocks.
const IMAGE: u64 = 128 << 20;
const BLOCK: u64 = 4096;

/// How long the application works.
const WORK: Duration = Duration::from_secs(20);

fn slow(is: bool) -> Faults {
    Faults {
        slow: is.then(Slow::hard_disk),
        ..Faults::default()
    }
}

/// A large file is written as fast as it goes, another one at random places, and a third is
/// synced. The kernels keep much of it, and bring it to the disks at the checkpoints; an fsync
/// or a note waits behind that for seconds.
#[test]
fn a_pair_on_hard_disks_stays_together() {
    let pair = Pair::with(Options {
        disks: [Some(DISK); 2],
        deadlines: [2_000, 10_000, 20_000],
        more: ["--checkpoint-s", "3"].map(String::from).to_vec(),
        ..Options::default()
    });
    let disks = [pair.disk_a(), pair.disk_b()];
    disks.iter().for_each(|disk| disk.fail(slow(true)));
    let end = Instant::now() + WORK;
    let works = || Instant::now() < end;
    let mut syncs = 0;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let file = File::create(pair.on_a("large")).unwrap();
            for n in (0..300u64).take_while(|_| works()) {
                let piece = vec![n as u8; 1 << 20];
                file.write_all_at(&piece, n << 20).unwrap();
            }
        });
        scope.spawn(|| {
            let file = File::create(pair.on_a("image")).unwrap();
            file.set_len(IMAGE).unwrap();
            let mut dice = Dice::new(1);
            while works() {
                let block = [dice.below(256) as u8; BLOCK as usize];
                file.write_all_at(&block, dice.below(IMAGE / BLOCK) * BLOCK)
                    .unwrap();
            }
        });
        let file = File::create(pair.on_a("log")).unwrap();
        while works() {
            file.write_all_at(b"entry", syncs * 5).unwrap();
            file.sync_data().unwrap();
            syncs += 1;
            std::thread::sleep(Duration::from_millis(50));
        }
    });
    assert!(syncs > 3, "{syncs} syncs");
    disks.iter().for_each(|disk| disk.fail(slow(false)));
    for once in ["is being brought up to date", "the peer is up to date"] {
        assert_eq!(said(&pair.a, once), 1, "{}", pair.a.log_text());
    }
    assert_eq!(said(&pair.a, "peer is lost"), 0, "{}", pair.a.log_text());
    pair.assert_identical();
}
