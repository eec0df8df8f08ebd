//! A full disk under the primary is an answer to the application, and both copies
//! are the same afterwards.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use harness::{Options, Pair, wait_until};
use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;

use crate::area::{code, noise};

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
