//! A flush fails and there is no peer that has the data: who wrote is told.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use harness::Pair;
use harness::faulty::{Faults, ProgrammableDisk};

use crate::{expect, pair};

/// A node whose peer has left.
fn alone() -> Pair {
    let mut pair = pair();
    pair.b.stop().unwrap();
    expect(&pair.a, "the loss of the peer", |s| s["link"] == "alone");
    pair
}

/// Makes a file; returns what has its bytes fail to reach the disk. To ask for their places
/// later would have the file written first.
fn make(pair: &Pair, name: &str) -> Faults {
    let path = pair.on_a(name);
    std::fs::write(&path, vec![1; 1 << 20]).unwrap();
    File::open(&path).unwrap().sync_all().unwrap();
    Faults {
        writes: pair.disk_a().places_of(&pair.a.data().join(name)).unwrap(),
        ..Faults::default()
    }
}

#[test]
fn every_program_that_wrote_is_told_once_of_a_flush_that_failed() {
    let pair = alone();
    let faults = make(&pair, "file");
    let (path, disk) = (pair.on_a("file"), pair.disk_a());
    let open = || File::options().write(true).open(&path).unwrap();
    let writers = [open(), open(), open()];
    // Before anything is written: the kernel may bring it to the disk by itself.
    disk.fail(faults);
    for (n, file) in (0..).zip(&writers) {
        file.write_all_at(&[2; 4096], n * 16384).unwrap();
    }
    for (n, file) in writers.iter().enumerate() {
        let told = file.sync_all().expect_err("a flush failed");
        assert_eq!(told.raw_os_error(), Some(libc::EIO), "{n}: {told}");
    }
    disk.heal();
    for (n, file) in (0..).zip(&writers) {
        file.write_all_at(&[3; 4096], n * 16384).unwrap();
        file.sync_all().unwrap();
    }
}

/// When a sync is asked for that the driver has begun by itself.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Asked {
    /// While that one runs.
    Meanwhile,
    /// The same, but that one does not cover what another program has written.
    Beside,
    /// When that one has failed.
    Later,
}

/// The driver begins a sync before it is asked for, and the kernel tells of a failure once:
/// whoever asks is told, not only the driver.
#[test]
fn who_syncs_is_told_although_a_sync_that_nobody_had_asked_for_has_failed() {
    use Asked::{Beside, Later, Meanwhile};
    let pair = alone();
    let writes = make(&pair, "log");
    // Of this one the kernel tells nobody but who has asked for the flush.
    let flush = Faults {
        flushes: 1,
        ..Faults::default()
    };
    make(&pair, "other");
    let disk: &ProgrammableDisk = pair.disk_a();
    let open = |name| File::options().write(true).open(pair.on_a(name)).unwrap();
    // One that never writes is told what the data's own descriptor in the driver is told.
    let reader = File::open(pair.on_a("log")).unwrap();
    let commit = |log: &File| {
        log.write_all_at(&[2; 4096], 0).unwrap();
        log.sync_data()
    };
    let cases = [
        (&writes, Beside),
        (&writes, Later),
        (&writes, Meanwhile),
        (&flush, Later),
        (&flush, Meanwhile),
    ];
    for (faults, asked) in cases.iter().cycle().take(3 * cases.len()) {
        let case = format!("{faults:?}, {asked:?}");
        let (log, other) = (open("log"), open("other"));
        (0..8).for_each(|_| commit(&log).expect(&case));
        disk.fail((*faults).clone());
        if *asked != Later {
            disk.hold();
        }
        log.write_all_at(&[3; 4096], 0).unwrap();
        if *asked == Beside {
            other.write_all_at(&[4; 4096], 0).unwrap();
        }
        // For as long it may be begun.
        std::thread::sleep(Duration::from_millis(50));
        let told = std::thread::scope(|scope| {
            let asks = scope.spawn(|| reader.sync_data());
            std::thread::sleep(Duration::from_millis(50));
            disk.release();
            asks.join().unwrap()
        });
        let told = told.expect_err(&case);
        assert_eq!(told.raw_os_error(), Some(libc::EIO), "{case}: {told}");
        reader.sync_data().expect(&case);
        // And who wrote, of what was written.
        assert_eq!(
            log.sync_data().is_err(),
            !faults.writes.is_empty(),
            "{case}"
        );
        disk.heal();
        (0..2).for_each(|_| commit(&log).expect(&case));
    }
}
