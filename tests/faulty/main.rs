//! The disk that other tests program: it fails, hangs and forgets as it is told, and
//! keeps what it must.

// A test's helpers fail the test.
#![allow(clippy::unwrap_used)]

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use harness::faulty::{ALL, Fate, Faults, Kind, ProgrammableDisk, Slow};
use harness::{Options, Pair, Role, Scratch, wait_until};

/// Bytes of a disk.
const SIZE: u64 = 32 << 20;

const PATIENCE: Duration = Duration::from_secs(60);

struct Stage {
    disk: ProgrammableDisk,
    mount: PathBuf,
    scratch: Scratch,
}

fn stage() -> Stage {
    let scratch = Scratch::new();
    let mount = scratch.path().join("mount");
    let mut disk = ProgrammableDisk::new(&scratch.path().join("disk"), SIZE).unwrap();
    disk.mount(&mount).unwrap();
    Stage {
        disk,
        mount,
        scratch,
    }
}

/// A file whose bytes are on the disk.
fn synced(path: &Path, byte: u8) {
    let mut file = File::create(path).unwrap();
    file.write_all(&[byte; 64 << 10]).unwrap();
    file.sync_all().unwrap();
    File::open(path.parent().unwrap())
        .unwrap()
        .sync_all()
        .unwrap();
}

/// Reads past the page cache.
fn read(path: &Path) -> io::Result<Vec<u8>> {
    let file = File::open(path)?;
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?;
    let mut bytes = Vec::new();
    (&file).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn is_eio<T>(result: io::Result<T>) -> bool {
    result.is_err_and(|e| e.raw_os_error() == Some(libc::EIO))
}

/// Checks an image without a mount.
fn fsck(image: &Path) {
    let checked = std::process::Command::new("e2fsck")
        .args(["-f", "-y"])
        .arg(image)
        .output()
        .unwrap();
    // 1: the journal was replayed or something small was repaired.
    assert!(checked.status.code().unwrap() <= 1, "{checked:?}");
}

#[test]
fn after_a_power_cut_what_was_synced_is_there_and_the_rest_may_be_gone() {
    let mut stage = stage();
    synced(&stage.mount.join("kept"), 1);
    let flushed = stage.disk.look().recorded;
    // On the disk's way, but not flushed: written directly, past the page cache.
    let direct = File::options()
        .write(true)
        .custom_flags(libc::O_DIRECT)
        .open(stage.mount.join("kept"))
        .unwrap();
    let buffer = Aligned([2; 4096]);
    direct.write_all_at(&buffer.0, 0).unwrap();
    drop(direct);
    fs::write(stage.mount.join("never synced"), [3; 4096]).unwrap();
    assert!(stage.disk.look().recorded > flushed);

    stage.disk.cut(|_, _| Fate::Lost).unwrap();
    stage.disk.mount(&stage.mount).unwrap();
    assert!(read(&stage.mount.join("kept")).unwrap() == [1; 64 << 10]);
    assert!(!stage.mount.join("never synced").exists());

    // The same, and the disk keeps the first half of it.
    let file = File::options()
        .write(true)
        .custom_flags(libc::O_DIRECT)
        .open(stage.mount.join("kept"))
        .unwrap();
    file.write_all_at(&buffer.0, 0).unwrap();
    drop(file);
    stage.disk.cut(|_, _| Fate::Torn(2048)).unwrap();
    stage.disk.mount(&stage.mount).unwrap();
    let found = read(&stage.mount.join("kept")).unwrap();
    assert!(found[..2048] == [2; 2048] && found[2048..4096] == [1; 2048]);
    stage.disk.unmount().unwrap();
}

#[repr(align(4096))]
struct Aligned([u8; 4096]);

#[test]
fn a_bad_place_fails_its_reads_until_it_is_written() {
    let stage = stage();
    let path = stage.mount.join("file");
    synced(&path, 7);
    fs::write(stage.mount.join("other"), [8; 8192]).unwrap();
    File::open(stage.mount.join("other"))
        .unwrap()
        .sync_all()
        .unwrap();
    let place = stage.disk.places_of(&path).unwrap()[0].clone();
    stage.disk.fail(Faults::bad_place(place.start, 4096));
    assert!(is_eio(read(&path)), "the bad block was read");
    assert!(read(&stage.mount.join("other")).unwrap() == [8; 8192]);
    assert!(stage.disk.look().failed > 0);
    let file = File::options().write(true).open(&path).unwrap();
    file.write_all_at(&[9; 4096], 0).unwrap();
    file.sync_all().unwrap();
    assert!(read(&path).unwrap()[..4097] == [[9; 4096].as_slice(), &[7]].concat());
}

#[test]
fn failing_writes_and_flushes_reach_the_program() {
    let stage = stage();
    let path = stage.mount.join("file");
    synced(&path, 7);
    let place = stage.disk.places_of(&path).unwrap()[0].clone();
    let file = File::options().write(true).open(&path).unwrap();
    stage.disk.fail(Faults {
        writes: vec![place],
        ..Faults::default()
    });
    file.write_all_at(&[9; 4096], 0).unwrap();
    assert!(is_eio(file.sync_data()), "the write failed, the sync not");
    stage.disk.heal();

    stage.disk.fail(Faults {
        flushes: 1,
        ..Faults::default()
    });
    file.write_all_at(&[9; 4096], 0).unwrap();
    assert!(is_eio(file.sync_data()), "the flush failed, the sync not");
    file.write_all_at(&[9; 4096], 0).unwrap();
    file.sync_data().unwrap();
}

#[test]
fn a_disk_that_is_gone_fails_everything_and_comes_back_with_what_was_synced() {
    let mut stage = stage();
    let path = stage.mount.join("file");
    synced(&path, 7);
    stage.disk.fail(Faults::everything());
    assert!(is_eio(read(&path)));
    let gone = File::create(stage.mount.join("new")).and_then(|f| f.sync_all());
    assert!(gone.is_err());
    stage.disk.cut(|_, _| Fate::Kept).unwrap();
    stage.disk.mount(&stage.mount).unwrap();
    assert!(read(&path).unwrap() == [7; 64 << 10]);
}

#[test]
fn a_held_disk_hangs_until_it_is_released_and_a_test_can_end_meanwhile() {
    let stage = stage();
    let path = stage.mount.join("file");
    synced(&path, 7);
    stage.disk.hold();
    let (tell, told) = channel();
    let file = File::options().write(true).open(&path).unwrap();
    std::thread::spawn(move || {
        file.write_all_at(&[9; 4096], 0).unwrap();
        let _ = tell.send(file.sync_all());
    });
    assert!(wait_until(PATIENCE, || stage.disk.look().held > 0));
    assert!(told.try_recv().is_err());
    stage.disk.release();
    told.recv_timeout(PATIENCE).unwrap().unwrap();
    // Dropped with requests that wait: the next test must still be able to run.
    stage.disk.hold();
    let file = File::options().write(true).open(&path).unwrap();
    let waiting = std::thread::spawn(move || {
        file.write_all_at(&[9; 4096], 0).unwrap();
        file.sync_all()
    });
    assert!(wait_until(PATIENCE, || stage.disk.look().held > 0));
    let directory = stage.scratch.path().to_owned();
    drop(stage);
    assert!(waiting.join().unwrap().is_err());
    assert!(!directory.exists());
}

#[test]
fn a_disk_holds_behind_so_many_changes_and_none_is_lost_when_it_goes_on() {
    let stage = stage();
    let path = stage.mount.join("file");
    synced(&path, 7);
    let before = stage.disk.look().recorded;
    stage.disk.hold_after(2);
    let file = File::options().write(true).open(&path).unwrap();
    let waiting = std::thread::spawn(move || {
        file.write_all_at(&[9; 4096], 0).unwrap();
        file.set_len(4096).unwrap();
        file.sync_all()
    });
    assert!(wait_until(PATIENCE, || stage.disk.look().held > 0));
    assert_eq!(stage.disk.look().recorded, before + 2);
    stage.disk.release();
    waiting.join().unwrap().unwrap();
    assert!(read(&path).unwrap() == [9; 4096]);
}

#[test]
fn a_slow_disk_takes_its_time_for_what_is_synced_and_does_it() {
    let stage = stage();
    let slow = Slow {
        seek_us: 100_000,
        bytes_per_ms: 1000,
    };
    stage.disk.fail(Faults {
        slow: Some(slow),
        ..Faults::default()
    });
    let begun = Instant::now();
    // Half a megabyte, and the flush behind it.
    fs::write(stage.mount.join("large"), vec![1; 500_000]).unwrap();
    File::open(stage.mount.join("large"))
        .unwrap()
        .sync_all()
        .unwrap();
    let took = begun.elapsed();
    assert!(took >= Duration::from_millis(700), "{took:?}");
    stage.disk.fail(Faults::default());
}

#[test]
fn a_full_disk_says_so() {
    let stage = stage();
    let filler = stage.disk.fill().unwrap();
    let e = fs::write(stage.mount.join("more"), [1; 8192]).unwrap_err();
    assert_eq!(e.raw_os_error(), Some(libc::ENOSPC));
    fs::remove_file(filler).unwrap();
    // ext4 has the room again when its journal says so, and no program that another test is
    // about to start has the file open any more.
    let room = || {
        File::open(&stage.mount).unwrap().sync_all().unwrap();
        fs::write(stage.mount.join("more"), [0; 64 << 10]).is_ok()
    };
    assert!(wait_until(PATIENCE, room));
    synced(&stage.mount.join("more"), 1);
}

#[test]
fn the_disk_of_every_point_of_its_log_can_be_made() {
    let stage = stage();
    stage.disk.record().unwrap();
    let mut points = Vec::new();
    for n in 1..=5u8 {
        synced(&stage.mount.join(format!("file {n}")), n);
        points.push(stage.disk.look().recorded);
    }
    let mut history = stage.disk.history().unwrap();
    let flushes = history.requests().iter().filter(|r| r.kind == Kind::Flush);
    assert!(flushes.count() >= 5);
    let image = stage.scratch.path().join("crash");
    for (synced, point) in points.iter().enumerate() {
        // The worst and the best that can become of what was not flushed, and a mixture.
        let fates: [&dyn Fn(usize) -> Fate; 3] = [&|_| Fate::Lost, &|_| Fate::Kept, &|n| {
            [Fate::Kept, Fate::Lost, Fate::Torn(512)][n % 3]
        }];
        for fate in fates {
            history.image_at(*point, |n, _| fate(n), &image).unwrap();
            fsck(&image);
            let crashed = stage.scratch.path().join("crashed");
            fs::create_dir_all(&crashed).unwrap();
            fs::rename(&image, crashed.join("image")).unwrap();
            let mut disk = ProgrammableDisk::from_image(&crashed).unwrap();
            let mount = stage.scratch.path().join("recovered");
            disk.mount(&mount).unwrap();
            for n in 1..=synced as u8 + 1 {
                let found = read(&mount.join(format!("file {n}"))).unwrap();
                assert!(found == [n; 64 << 10], "file {n} at point {point}");
            }
            disk.unmount().unwrap();
        }
    }
}

#[test]
fn nodes_can_lie_on_such_disks_and_lose_their_power() {
    let mut pair = Pair::with(Options {
        disks: [Some(2 * SIZE); 2],
        // One that is slow is waited for: what is written has to be there.
        on_peer_loss: "hold",
        deadlines: [2_000, 4_000, 4_000],
        ..Options::default()
    });
    fs::write(pair.on_a("file"), [5; 64 << 10]).unwrap();
    let file = File::options().write(true).open(pair.on_a("file")).unwrap();
    file.sync_all().unwrap();
    pair.cut_power(1, |_, _| Fate::Lost);
    assert!(fs::read(pair.b.data().join("file")).unwrap() == [5; 64 << 10]);
    pair.b.start(Role::Secondary).unwrap();
    pair.assert_identical();
}

#[test]
fn all_of_a_disk_can_be_named() {
    let stage = stage();
    stage.disk.fail(Faults {
        writes: vec![ALL],
        ..Faults::default()
    });
    let file = File::create(stage.mount.join("file")).unwrap();
    assert!(file.sync_all().is_err());
}
