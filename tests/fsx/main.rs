//! fsx (crates.io) on the mount: 200,000 random reads, writes, mappings,
//! truncations, allocations, holes and copies in four files at once, each checked
//! against a model in memory by fsx itself; then both copies are identical.

// A test's helpers fail the test.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::{Command, Stdio};

use harness::{Options, Pair, tools};

const VERSION: &str = "0.3.2";

/// One run in a file of its own.
struct Run {
    name: &'static str,
    operations: u32,
    /// `opsize` and what else is special.
    special: &'static str,
    /// Syncs are as frequent as writes; else rare, for they take most of the time.
    syncs: bool,
    /// Not with an alignment: fsx then asks for empty ranges and takes the refusal for
    /// a missing feature.
    allocate: bool,
}

const RUNS: [Run; 4] = [
    Run {
        name: "large",
        operations: 70_000,
        special: "flen = 1048576\nopsize.max = 65536\nopsize.min = 1",
        syncs: false,
        allocate: true,
    },
    Run {
        name: "small",
        operations: 60_000,
        special: "flen = 131072\nopsize.max = 2000\nopsize.min = 1",
        syncs: false,
        allocate: true,
    },
    Run {
        name: "blocks",
        operations: 60_000,
        special: "flen = 1048576\nopsize.max = 65536\nopsize.min = 4096\nopsize.align = 4096",
        syncs: false,
        allocate: false,
    },
    Run {
        name: "synced",
        operations: 10_000,
        special: "flen = 524288\nopsize.max = 32768\nopsize.min = 1",
        syncs: true,
        allocate: true,
    },
];

impl Run {
    fn configuration(&self) -> String {
        let sync = if self.syncs { 5.0 } else { 0.02 };
        let allocate = if self.allocate { 3.0 } else { 0.0 };
        format!(
            "nomsyncafterwrite = {}\n{}\n\
             [weights]\nclose_open = 1\nread = 10\nwrite = 10\nmapread = 10\nmapwrite = 10\n\
             invalidate = {sync}\nfsync = {sync}\nfdatasync = {sync}\ntruncate = 2\n\
             posix_fallocate = {allocate}\npunch_hole = 5\nsendfile = 3\nposix_fadvise = 1\n\
             copy_file_range = 5\n",
            !self.syncs, self.special
        )
    }
}

/// The seed of this run: fixed, or `TWINFOLD_SEED`.
fn seed() -> u64 {
    match std::env::var("TWINFOLD_SEED") {
        Ok(seed) => seed.parse().expect("TWINFOLD_SEED is a number"),
        Err(_) => 1,
    }
}

fn exercise(options: Options, share: u32) {
    let pair = Pair::with(options);
    let program = tools::install("fsx", VERSION).expect("fsx is installed");
    let notes = tempfile::tempdir().unwrap();
    let started: Vec<_> = RUNS
        .iter()
        .map(|run| {
            let configuration = notes.path().join(run.name);
            std::fs::write(&configuration, run.configuration()).unwrap();
            let log =
                std::fs::File::create(notes.path().join(format!("{}.log", run.name))).unwrap();
            let child = fsx(&program, &configuration)
                .arg("-P")
                .arg(notes.path())
                .args(["-N", &(run.operations / share).to_string()])
                .args(["-S", &seed().to_string()])
                .arg(pair.on_a(run.name))
                .stdout(log.try_clone().unwrap())
                .stderr(log)
                .spawn()
                .unwrap();
            (run, child)
        })
        .collect();
    for (run, mut child) in started {
        let status = child.wait().unwrap();
        let log = std::fs::read_to_string(notes.path().join(format!("{}.log", run.name))).unwrap();
        assert!(
            status.success(),
            "{} with seed {}: {status}\n{log}",
            run.name,
            seed()
        );
    }
    pair.assert_identical();
    pair.assert_same_space();
}

fn fsx(program: &Path, configuration: &Path) -> Command {
    let mut command = Command::new(program);
    command.arg("-f").arg(configuration).stdin(Stdio::null());
    command
}

#[test]
fn two_hundred_thousand_operations_leave_both_copies_identical() {
    exercise(Options::default(), 1);
}

#[test]
fn so_do_fewer_with_every_write_on_both_disks() {
    let options = Options {
        ack: "disk",
        ..Options::default()
    };
    exercise(options, 50);
}

#[test]
fn so_do_fewer_with_writes_that_run_ahead() {
    let options = Options {
        ack: "flush",
        ..Options::default()
    };
    exercise(options, 10);
}
