//! Virtual disks: images written past the page cache, with snapshots, are sound on the
//! other node and hold everything that was flushed.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use harness::program::{PATIENCE, Program, require, run};
use harness::{Pair, wait_until};

/// Size of the first disk in bytes.
const SIZE: usize = 32 << 20;

/// Unit of places and lengths, in bytes: a sector.
const SECTOR: usize = 512;

/// What an image allocates and discards at once, in bytes.
const CLUSTER: usize = 64 << 10;

/// Changes before the snapshot.
const PREPARED: usize = 60;

/// Changes after the snapshot, before the primary is killed.
const BEFORE: usize = 150;

/// More than can be done until then.
const ENDLESS: usize = 100_000;

/// Changes while the dead node returns.
const AFTER: usize = 150;

/// Size of the second disk in bytes.
const SECOND_SIZE: usize = 8 << 20;

/// What the second disk is filled with.
const FILL: u8 = 0xab;

/// One change of a disk.
#[derive(Clone, Copy, Debug)]
enum Change {
    /// Flushed before it is reported.
    Write { at: usize, length: usize, fill: u8 },
    /// Flushed before it is reported.
    Zero { at: usize, length: usize },
    /// Flushed by the next one of the others.
    Discard { at: usize, length: usize },
}

impl Change {
    /// Change number `n`, always the same.
    fn number(n: usize) -> Change {
        // SplitMix64.
        let mut x = (n as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let x = (x ^ (x >> 31)) as usize;
        let whole = n % 5 > 2;
        let unit = if whole { CLUSTER } else { SECTOR };
        let length = unit * (1 + x % if whole { 4 } else { 100 });
        let at = (x >> 20) % ((SIZE - length) / unit) * unit;
        match n % 5 {
            3 => Change::Discard { at, length },
            4 => Change::Zero { at, length },
            _ => Change::Write {
                at,
                length,
                fill: 1 + (n % 250) as u8,
            },
        }
    }

    /// As a command of `qemu-io`.
    fn command(self) -> String {
        match self {
            Change::Write { at, length, fill } => format!("write -f -P {fill} {at} {length}"),
            Change::Zero { at, length } => format!("write -f -z -u {at} {length}"),
            Change::Discard { at, length } => format!("discard {at} {length}"),
        }
    }

    fn apply(self, disk: &mut [u8]) {
        match self {
            Change::Write { at, length, fill } => disk[at..at + length].fill(fill),
            Change::Zero { at, length } | Change::Discard { at, length } => {
                disk[at..at + length].fill(0);
            }
        }
    }
}

/// `qemu-img` with an image as its last argument so far.
fn image(arguments: &[&str], image: &Path) -> Command {
    let mut command = Command::new("qemu-img");
    command.args(arguments).arg(image);
    command
}

struct Disk {
    outside: tempfile::TempDir,
    /// What a reader of the image finds.
    contents: Vec<u8>,
}

impl Disk {
    /// Starts the changes of a range on an image.
    fn change(&self, image: &Path, changes: std::ops::Range<usize>) -> Program {
        let script = self.outside.path().join("changes");
        let commands = changes.fold(String::new(), |mut text, n| {
            let _ = writeln!(text, "{}", Change::number(n).command());
            text
        });
        fs::write(&script, commands).unwrap();
        let mut command = Command::new("qemu-io");
        command
            .args(["-f", "qcow2", "-t", "none", "-d", "unmap"])
            .arg(image);
        Program::start_with(command, File::open(script).unwrap())
    }

    /// Carries out the changes of a range, all of them.
    fn change_all(&mut self, image: &Path, changes: std::ops::Range<usize>) {
        let program = self.change(image, changes.clone());
        self.carried_out(changes, program);
    }

    /// Waits for the changes of a range, which must all succeed.
    fn carried_out(&mut self, changes: std::ops::Range<usize>, program: Program) {
        let said = program.finish();
        assert_eq!(reported(&said), last_flushed(&changes), "{said}");
        assert!(!said.contains("failed"), "{said}");
        changes.for_each(|n| Change::number(n).apply(&mut self.contents));
    }

    fn write_raw(&self, name: &str) -> PathBuf {
        let path = self.outside.path().join(name);
        fs::write(&path, &self.contents).unwrap();
        path
    }

    /// Fails the test unless an image has the contents it must have.
    fn compare(&self, image: &Path) {
        let raw = self.write_raw("expected");
        let mut command = Command::new("qemu-img");
        command
            .args(["compare", "-f", "qcow2", "-F", "raw", "-T", "none"])
            .arg(image)
            .arg(raw);
        run(command);
    }
}

/// How many changes of those that are flushed `qemu-io` has reported.
fn reported(said: &str) -> usize {
    let whole = said.rfind('\n').map_or("", |end| &said[..end]);
    whole.lines().filter(|line| line.contains("wrote ")).count()
}

/// How many changes of a range are flushed before they are reported.
fn last_flushed(changes: &std::ops::Range<usize>) -> usize {
    changes.clone().filter(|n| is_flushed(*n)).count()
}

fn is_flushed(n: usize) -> bool {
    !matches!(Change::number(n), Change::Discard { .. })
}

/// Fails the test if an image is damaged. A program that ends in the middle may leave
/// clusters behind that nothing refers to; they are freed.
fn check(path: &Path) {
    let mut checking = Program::start(image(&["check", "-f", "qcow2"], path));
    let status = checking.wait(PATIENCE);
    const LEAKS: i32 = 3;
    assert!(
        status.success() || status.code() == Some(LEAKS),
        "{}: {status}\n{}\n{}",
        path.display(),
        checking.said(),
        checking.complained()
    );
    run(image(&["check", "-q", "-f", "qcow2", "-r", "leaks"], path));
    run(image(&["check", "-q", "-f", "qcow2"], path));
}

#[test]
fn flushed_writes_to_an_image_survive_a_failover() {
    require("qemu-img", "qemu-utils", &[]);
    require("qemu-io", "qemu-utils", &[]);
    let mut pair = Pair::new();
    let mut disk = Disk {
        outside: tempfile::tempdir().unwrap(),
        contents: vec![0; SIZE],
    };
    let first = pair.on_a("first");
    let second = pair.on_a("second");
    for (path, size) in [(&first, SIZE), (&second, SECOND_SIZE)] {
        let mut command = image(&["create", "-q", "-f", "qcow2"], path);
        command.arg(size.to_string());
        run(command);
    }
    disk.change_all(&first, 0..PREPARED);
    run(image(&["snapshot", "-c", "early"], &first));
    let early = disk.contents.clone();
    let mut command = Command::new("qemu-img");
    command
        .args(["convert", "-t", "none", "-f", "raw", "-O", "qcow2"])
        .arg(disk.write_raw("early"))
        .arg(pair.on_a("converted"));
    run(command);

    // One disk with a change at a time, one with many at once.
    let mut changing = disk.change(&first, PREPARED..ENDLESS);
    let fill = format!("--pattern={FILL}");
    let mut filling = Program::start(image(
        &[
            "bench",
            "-w",
            "-f",
            "qcow2",
            "-t",
            "none",
            "-d",
            "16",
            "-s",
            "4096",
            "-S",
            "12288",
            "-c",
            "100000000",
            "--flush-interval=64",
            &fill,
        ],
        &second,
    ));
    let far = wait_until(PATIENCE, || {
        let said = changing.said();
        reported(&said) >= BEFORE || said.contains("failed") || !filling.is_running()
    });
    let said = changing.said();
    assert!(
        far && reported(&said) >= BEFORE && !said.contains("failed") && filling.is_running(),
        "before the failover: {said}\n{}",
        filling.complained()
    );
    pair.fail_over();
    assert!(
        wait_until(PATIENCE, || changing.said().contains("failed")),
        "qemu-io noticed nothing"
    );
    changing.kill();
    filling.wait(PATIENCE);

    // What was flushed is there. What came behind it may be, or in part: it is done again.
    let flushed = (PREPARED..ENDLESS)
        .filter(|n| is_flushed(*n))
        .nth(reported(&changing.said()) - 1)
        .unwrap();
    (PREPARED..=flushed).for_each(|n| Change::number(n).apply(&mut disk.contents));
    let first = pair.on_b("first");
    let second = pair.on_b("second");
    for path in [&first, &second, &pair.on_b("converted")] {
        check(path);
    }
    disk.change_all(&first, flushed + 1..flushed + 4);
    disk.compare(&first);

    let early_now = disk.outside.path().join("early-now");
    let mut command = image(
        &["convert", "-f", "qcow2", "-l", "early", "-O", "raw"],
        &first,
    );
    command.arg(&early_now);
    run(command);
    assert!(
        fs::read(&early_now).unwrap() == early,
        "the snapshot has other contents"
    );
    let mut command = image(
        &["convert", "-f", "qcow2", "-O", "raw"],
        &pair.on_b("converted"),
    );
    command.arg(&early_now);
    run(command);
    assert!(
        fs::read(&early_now).unwrap() == early,
        "the converted image has other contents"
    );
    let filled = disk.outside.path().join("filled");
    let mut command = image(&["convert", "-f", "qcow2", "-O", "raw"], &second);
    command.arg(&filled);
    run(command);
    let filled = fs::read(&filled).unwrap();
    let torn = filled.chunks(4096).position(|block| {
        block.iter().any(|byte| *byte != 0) && block.iter().any(|byte| *byte != FILL)
    });
    assert_eq!(torn, None, "a block of the second disk is torn");
    assert!(
        filled.contains(&FILL),
        "nothing of the second disk was there"
    );

    // Changes, snapshots and their removal while the dead node returns.
    let more = flushed + 4..flushed + 4 + AFTER;
    run(image(&["snapshot", "-c", "late"], &first));
    let changing = disk.change(&first, more.clone());
    pair.bring_back();
    disk.carried_out(more, changing);
    disk.compare(&first);
    run(image(&["snapshot", "-a", "early"], &first));
    run(image(&["snapshot", "-d", "late"], &first));
    disk.contents = early;
    disk.compare(&first);
    check(&first);
    pair.assert_identical();
}
