//! The disk of the secondary: the application never sees an error that only the
//! secondary had, and the secondary is out until it has been brought up again.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use harness::faulty::{ALL, Fate, Faults};
use harness::{Options, Pair, Role, read_quietly};

use crate::app::{self, App};
use crate::{expect, options, pair, write_known};

/// Whether the disk takes a new copy by itself.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Copy {
    Cannot,
    May,
}

/// The secondary is dropped, the application goes on, and the repaired node comes back.
fn is_dropped(name: &str, copy: Copy, fault: impl Fn(&Pair) -> Faults) {
    let mut pair = pair();
    let app = App::start(&pair.a.mount());
    let from = pair.a.log_text().len();
    let fault = fault(&pair);
    pair.disk_b().fail(fault);
    pair.a.expect_log(from, "the peer is dropped");
    pair.a.expect_log(from, "going on alone");
    app.go_on(40);
    if copy == Copy::Cannot {
        // It is none at the moment in which it tries again.
        expect(&pair.b, name, |s| s["trouble"].is_string());
        assert!(pair.b.promote(false).is_err(), "{name}");
    }
    pair.cut_power(1, |_, _| Fate::Kept);
    pair.b.start(Role::Secondary).unwrap();
    pair.wait_paired();
    let model = app.stop();
    pair.assert_identical();
    app::check(&pair.a.mount(), &model);
}

#[test]
fn its_writes_fail() {
    is_dropped("writes", Copy::Cannot, |_| Faults {
        writes: vec![ALL],
        ..Faults::default()
    });
}

#[test]
fn its_flushes_fail() {
    is_dropped("flushes", Copy::Cannot, |_| Faults {
        flushes: u64::MAX,
        ..Faults::default()
    });
}

/// Its file system goes on after that, or does not: that depends on what it flushed.
#[test]
fn one_flush_of_it_fails() {
    is_dropped("a flush", Copy::May, |_| Faults {
        flushes: 1,
        ..Faults::default()
    });
}

#[test]
fn its_disk_is_gone() {
    is_dropped("everything", Copy::Cannot, |_| Faults::everything());
}

#[test]
fn it_hangs() {
    let pair = Pair::with(Options {
        deadlines: [4_000, 8_000, 8_000],
        ..options()
    });
    let app = App::start(&pair.a.mount());
    let from = pair.a.log_text().len();
    pair.disk_b().hold();
    // It is dropped, or its line is: where the disk has been quick so far, the thread that applies
    // ops carries both.
    pair.a.expect_log(from, "going on alone");
    app.go_on(20);
    pair.disk_b().release();
    pair.wait_paired();
    let model = app.stop();
    pair.assert_identical();
    app::check(&pair.a.mount(), &model);
    expect(&pair.b, "peace", |s| s["trouble"].is_null());
}

/// The disk did not take some of a file's bytes and is sound again, and the machine was not
/// restarted: the kernel shows bytes that the disk never got.
#[test]
fn what_only_its_memory_has_is_moved_again() {
    const LENGTH: usize = 1 << 20;
    let mut pair = pair();
    let file = File::create(pair.on_a("file")).unwrap();
    let copy = pair.b.data().join("file");
    for round in 0.. {
        assert!(round < 20, "it comes back before the test can look");
        pair.wait_paired();
        file.write_all_at(&[1; LENGTH], 0).unwrap();
        file.sync_all().unwrap();
        pair.checkpoint();
        let from = pair.a.log_text().len();
        pair.disk_b().fail(Faults {
            writes: pair.disk_b().places_of(&copy).unwrap(),
            ..Faults::default()
        });
        file.write_all_at(&[2; LENGTH / 2], 0).unwrap();
        file.sync_all().unwrap();
        pair.a.expect_log(from, "going on alone");
        pair.b.kill();
        let shown = read_quietly(&copy).unwrap();
        pair.disk_b().heal();
        pair.b.start(Role::Secondary).unwrap();
        // It may have come back before it was killed: what is compared is read from the disk.
        if shown[..LENGTH / 2] == [2; LENGTH / 2] {
            break;
        }
    }
    pair.wait_paired();
    let pages = File::open(&copy).unwrap();
    rustix::fs::fadvise(pages, 0, None, rustix::fs::Advice::DontNeed).unwrap();
    let expected = [[2; LENGTH / 2], [1; LENGTH / 2]].concat();
    assert!(read_quietly(&copy).unwrap() == expected, "the disk has it");
    pair.assert_identical();
}

#[test]
fn it_cannot_be_read_as_it_is_compared() {
    let mut pair = pair();
    let app = App::start(&pair.a.mount());
    let from = pair.a.log_text().len();
    pair.cut_power(1, |_, _| Fate::Kept);
    pair.a.expect_log(from, "going on alone");
    app.go_on(40);
    let large = pair.b.data().join("app").join("large 0");
    let reads = places(&large);
    assert!(!reads.is_empty());
    pair.disk_b().fail(Faults {
        reads,
        ..Faults::default()
    });
    pair.b.start(Role::Secondary).unwrap();
    expect(&pair.b, "the trouble", |s| {
        s["trouble"].as_str().is_some_and(|t| t.contains("error"))
    });
    app.go_on(40);
    assert!(pair.a.status().unwrap()["disk_failure"].is_null());
    assert_ne!(pair.b.status().unwrap()["link"], "paired");
    assert!(pair.b.promote(false).is_err());
    pair.disk_b().heal();
    pair.wait_paired();
    let model = app.stop();
    pair.assert_identical();
    app::check(&pair.a.mount(), &model);
}

#[test]
fn its_own_state_cannot_be_written() {
    let mut pair = pair();
    let known = write_known(&pair);
    for round in 0.. {
        assert!(round < 20, "{}", pair.b.last_words());
        // What comes next has to be noted again. A checkpoint of its own may come between.
        pair.checkpoint();
        pair.disk_b().fail(Faults {
            writes: places_below(&pair.b.layout().state()),
            ..Faults::default()
        });
        std::fs::write(pair.on_a(format!("after {round}")), &known).unwrap();
        if pair.a.status().unwrap()["link"] != "paired" {
            break;
        }
    }
    expect(&pair.a, "the loss of the peer", |s| s["link"] == "alone");
    let status = pair.b.status().unwrap();
    assert!(status["fenced"].is_string(), "{status}");
    assert_eq!(status["up_to_date"], false);
    assert!(pair.b.promote(false).is_err());
    std::fs::write(pair.on_a("alone"), &known).unwrap();
    pair.cut_power(1, |_, _| Fate::Kept);
    pair.b.start(Role::Secondary).unwrap();
    pair.wait_paired();
    pair.assert_identical();
}

/// Where the disk has what is in the files below a directory, in bytes.
fn places_below(directory: &Path) -> Vec<Range<u64>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap().flatten() {
        match entry.file_type().unwrap() {
            t if t.is_dir() => found.extend(places_below(&entry.path())),
            t if t.is_file() => found.extend(places(&entry.path())),
            _ => {}
        }
    }
    found
}

/// Where the disk has what is in a file, in bytes.
fn places(file: &Path) -> Vec<Range<u64>> {
    const UNIT: u64 = 4096;
    let output = Command::new("filefrag")
        .args(["-v", "-b4096"])
        .arg(file)
        .output()
        .expect("this needs e2fsprogs");
    if !output.status.success() && !file.exists() {
        // A checkpoint has just let it go.
        return Vec::new();
    }
    assert!(output.status.success(), "{output:?}");
    // "  0:        0..      31:      34816..     34847:     32: ..."
    let text = String::from_utf8(output.stdout).unwrap();
    let places = text.lines().filter_map(|line| {
        let (first, last) = line.split(':').nth(2)?.split_once("..")?;
        let first: u64 = first.trim().parse().ok()?;
        let last: u64 = last.trim().parse().ok()?;
        Some(first * UNIT..(last + 1) * UNIT)
    });
    places.collect()
}
