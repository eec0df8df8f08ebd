//! A full disk under the primary is an answer to the application, and both copies
//! are the same afterwards.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use harness::{Options, Pair, Role, read_quietly, wait_until};
use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;
use rustix::mm::MapFlags;

use crate::area::{code, noise};
use crate::mmap::Mapping;

/// Not a promise about speed: only so that a test ends.
const PATIENCE: Duration = Duration::from_secs(60);

/// Writes until there is no more space; returns how many writes there were.
fn fill(file: &File, piece: usize) -> u64 {
    for n in 0.. {
        let written = file.write_at(&noise(n, piece), n * piece as u64);
        match written {
            Ok(_) => {}
            Err(e) if e.raw_os_error() == Some(libc::ENOSPC) => return n,
            Err(e) => panic!("write {n}: {e}"),
        }
    }
    unreachable!()
}

#[test]
fn the_application_is_told_and_both_copies_stay_equal() {
    let pair = Pair::with(Options {
        small_disk: Some(64 << 20),
        ..Options::default()
    });
    std::fs::write(pair.on_a("kept"), noise(1, 1 << 20)).unwrap();
    let file = File::create(pair.on_a("large")).unwrap();
    assert!(fill(&file, 1 << 20) > 5);
    // What the application meets from here on is no space, and nothing else.
    let big = fallocate(&file, FallocateFlags::empty(), 0, 1 << 30);
    assert_eq!(big, Err(Errno::NOSPC));
    let small = File::create(pair.on_a("small")).unwrap();
    for n in 0..2000u64 {
        let done = small.write_all_at(&noise(n, 4096), n * 8192);
        match done {
            Ok(()) => {}
            Err(e) => assert_eq!(e.raw_os_error(), Some(libc::ENOSPC), "write {n}: {e}"),
        }
    }
    let copy = std::fs::copy(pair.on_a("kept"), pair.on_a("copy"));
    assert_eq!(code(copy), Some(Errno::NOSPC));
    for n in 0..50 {
        let made = std::fs::create_dir(pair.on_a(format!("directory-{n}")));
        let answer = code(made);
        assert!(matches!(answer, None | Some(Errno::NOSPC)), "{answer:?}");
    }
    assert_eq!(pair.a.status().unwrap()["link"], "paired");
    assert_eq!(pair.a.status().unwrap()["fenced"], serde_json::Value::Null);
    pair.assert_identical();

    // A flood of them is no flood in the log.
    let lines = pair.a.log_text().lines().count();
    assert!(
        lines < 50,
        "{lines} lines in the log:\n{}",
        pair.a.last_words()
    );

    // With space again it goes on.
    drop(file);
    std::fs::remove_file(pair.on_a("large")).unwrap();
    // The kernel tells of a last close after it has returned to the program.
    let free = || rustix::fs::statvfs(pair.a.mount()).unwrap().f_bavail;
    assert!(wait_until(PATIENCE, || free() > 1024), "no space came back");
    std::fs::write(pair.on_a("after"), noise(2, 1 << 20)).unwrap();
    assert!(std::fs::read(pair.on_b("after")).unwrap() == noise(2, 1 << 20));
    pair.assert_identical();
}

/// The kernel writes a page; whether it could.
fn write_back(file: &File, at: usize) -> bool {
    let how = libc::SYNC_FILE_RANGE_WRITE | libc::SYNC_FILE_RANGE_WAIT_AFTER;
    // SAFETY: the call takes no memory, and the descriptor is open.
    unsafe { libc::sync_file_range(file.as_raw_fd(), at as i64, 4096, how) == 0 }
}

/// What fails is taken back from the peer, and only that: what is appended meanwhile stays.
#[test]
fn a_write_that_fails_cuts_off_nothing_that_is_appended_meanwhile() {
    const HOLE: u64 = 4 << 20;
    const APPENDS: u64 = 2000;
    let pair = Pair::with(Options {
        small_disk: Some(64 << 20),
        ..Options::default()
    });
    let file = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(pair.on_a("file"))
        .unwrap();
    file.set_len(HOLE).unwrap();
    fallocate(&file, FallocateFlags::KEEP_SIZE, HOLE, APPENDS * 4096).unwrap();
    let large = File::create(pair.on_a("large")).unwrap();
    fill(&large, 1 << 20);
    let rest = File::create(pair.on_a("rest")).unwrap();
    fill(&rest, 4096);
    let appending = AtomicBool::new(true);
    let failed = std::thread::scope(|scope| {
        scope.spawn(|| {
            for n in 0..APPENDS {
                file.write_all_at(&noise(n, 4096), HOLE + n * 4096).unwrap();
            }
            appending.store(false, Ordering::SeqCst);
        });
        let mut failed = 0;
        let memory = Mapping::new(&file, HOLE as usize, MapFlags::SHARED, true);
        for at in (0..HOLE as usize).step_by(4096).cycle() {
            if !appending.load(Ordering::SeqCst) {
                return failed;
            }
            memory.store(at, b"a byte where the disk has no room");
            failed += u64::from(!write_back(&file, at));
        }
        unreachable!()
    });
    assert!(failed > 20, "{failed} writes failed");
    pair.wait_settled();
    assert_eq!(pair.a.status().unwrap()["link"], "paired");
    let there = |node: &harness::Node| read_quietly(&node.data().join("file")).unwrap();
    let (a, b) = (there(&pair.a), there(&pair.b));
    assert_eq!(a.len() as u64, HOLE + APPENDS * 4096);
    assert_eq!(a.len(), b.len());
    assert!(a == b, "the copies differ");
    assert!(noise(7, 4096) == a[HOLE as usize + 7 * 4096..][..4096]);
}

/// The disk is full, and the driver has to be started again: after a stop, for which marks
/// stand, and after a kill, after which there are notes.
#[test]
fn a_driver_starts_on_a_full_disk() {
    let mut pair = Pair::with(Options {
        small_disk: Some(64 << 20),
        ..Options::default()
    });
    std::fs::write(pair.on_a("kept"), noise(1, 1 << 20)).unwrap();
    for (round, kill) in [false, true, true, false].into_iter().enumerate() {
        let file = File::options()
            .append(true)
            .create(true)
            .open(pair.on_a("large"));
        let file = file.unwrap();
        for piece in [1 << 20, 4096] {
            fill(&file, piece);
        }
        drop(file);
        // To the last block: what is freed by a stop goes to others on such a disk.
        let others = File::create(pair.a.directory().join("others")).unwrap();
        pair.wait_settled();
        match kill {
            true => pair.a.kill(),
            false => assert!(pair.a.stop().unwrap().success()),
        }
        fill(&others, 4096);
        pair.a.start(Role::Primary).unwrap();
        pair.wait_paired();
        assert_eq!(pair.a.status().unwrap()["fenced"], serde_json::Value::Null);
        // In place, with a note of it.
        let kept = File::options().write(true).open(pair.on_a("kept")).unwrap();
        kept.write_all_at(&noise(9 + round as u64, 4096), 0)
            .unwrap();
        pair.assert_identical();
        others.set_len(0).unwrap();
    }
}
