//! ext4 alone, held to the rules of [`crate::model`]: without twinfold, on the same disk.
//!
//! What these rules allow behind a power cut is what an application would meet on one
//! machine with one disk; here it is seen that ext4 leaves no more than that, and that it
//! leaves each part of it that one would not expect.

use std::fs::{self, File};
use std::path::Path;

use harness::faulty::{Fate, History, Kind, ProgrammableDisk};
use harness::{Dice, Scratch, wait_until};

use crate::acts::{Act, Open, bytes};
use crate::cases::{CASES, Case};
use crate::model::Left;
use crate::plan;
use crate::record::{Promise, Record};
use crate::stage::{DISK, PATIENCE, fate};

/// A disk with an ext4, the record beside it.
struct Bare {
    disk: ProgrammableDisk,
    record: Record,
    scratch: Scratch,
}

impl Bare {
    fn new() -> Bare {
        let scratch = Scratch::new();
        let disk = ProgrammableDisk::new(&scratch.path().join("disk"), DISK).unwrap();
        let record = Record::new(&scratch.path().join("record"));
        let mut bare = Bare {
            disk,
            record,
            scratch,
        };
        bare.mount();
        bare
    }

    fn mount(&mut self) {
        let path = self.scratch.path().join("mount");
        self.disk.mount(&path).unwrap();
        let _ = fs::remove_dir(path.join("lost+found"));
    }

    /// Tries one point: every call counts as acknowledged when all is on the disk.
    fn point(&mut self, case: &Case, steps: u64, seed: u64) -> bool {
        let mount = self.scratch.path().join("mount");
        let root = self.scratch.path().join("record");
        let sync = {
            let mount = mount.clone();
            move || Ok(rustix::fs::syncfs(File::open(&mount)?)?)
        };
        for place in [&mount, &root] {
            let _ = fs::remove_dir_all(place.join("c"));
            fs::create_dir(place.join("c")).unwrap();
        }
        sync().unwrap();
        self.record.begin();
        self.record.run_and(case.before, &mount, &sync);
        assert_eq!(self.record.error(), None);
        self.record.begin();
        self.disk.hold_after(steps);
        let record = self.record.clone();
        let (acts, there) = (case.acts, mount.clone());
        let worker = std::thread::spawn(move || record.run_and(acts, &there, sync));
        let is_down = |disk: &ProgrammableDisk| disk.look().held > 0;
        let ended = wait_until(PATIENCE, || is_down(&self.disk) || self.record.is_done());
        assert!(ended, "neither the end nor the crash came");
        let came = is_down(&self.disk);
        self.disk.die();
        worker.join().unwrap();
        self.disk.cut(fate(Dice::new(seed))).unwrap();
        self.mount();
        let promise = Promise::Acknowledged(Left::Sectors);
        let wrong = self.record.check(promise, &mount);
        assert!(wrong.is_empty(), "ext4 left:\n{}", wrong.join("\n"));
        came
    }
}

#[test]
fn ext4_leaves_of_an_open_call_no_more_than_the_rules_allow() {
    let mut bare = Bare::new();
    plan::run("bare power", CASES, 30, |case, steps, seed| {
        bare.point(case, steps, seed)
    });
}

/// What the file holds on the disk at each point of a history, when nothing is lost.
fn contents_at_each_point(history: &mut History, place: &Path) -> Vec<Vec<u8>> {
    (0..=history.requests().len())
        .map(|point| {
            let image = place.join("image");
            fs::create_dir_all(place).unwrap();
            history.image_at(point, |_, _| Fate::Kept, &image).unwrap();
            let mut disk = ProgrammableDisk::from_image(place).unwrap();
            disk.mount(&place.join("mount")).unwrap();
            let found = fs::read(place.join("mount/f")).unwrap();
            disk.unmount().unwrap();
            drop(disk);
            found
        })
        .collect()
}

/// The bytes behind the new end are zeroed in place and written as data, before the
/// transaction that has the new size: the history of the disk shows that.
#[test]
fn ext4_zeroes_the_rest_of_a_block_before_it_makes_a_file_shorter() {
    let mut bare = Bare::new();
    let mount = bare.scratch.path().join("mount");
    let mut open = Open::new();
    for act in [
        Act::Create("f"),
        Act::Write("f", 0, 50_000, 1),
        Act::Fsync("f"),
    ] {
        act.run(&mount, &mut open).unwrap();
    }
    let block = rustix::fs::statvfs(&mount).unwrap().f_bsize;
    bare.disk.unmount().unwrap();
    bare.disk.record().unwrap();
    bare.mount();
    for act in [Act::Truncate("f", 30_000), Act::Fsync("f")] {
        act.run(&mount, &mut open).unwrap();
    }
    let mut history = bare.disk.history().unwrap();
    let zeroed = history
        .requests()
        .iter()
        .any(|request| request.kind == Kind::Write && request.length == block);
    assert!(zeroed, "{:?}", history.requests());
    let old = bytes(1, 0, 50_000);
    let end = 30_000_u64.next_multiple_of(block) as usize;
    let mut cut = old.clone();
    cut[30_000..end].fill(0);
    let found = contents_at_each_point(&mut history, &bare.scratch.path().join("after"));
    for (point, found) in found.iter().enumerate() {
        assert!(
            [&old[..], &cut, &old[..30_000]].contains(&&found[..]),
            "point {point} of {}: {} bytes",
            history.requests().len(),
            found.len()
        );
    }
    assert!(
        found.contains(&cut),
        "no power cut shows the zeros in a file of the old size"
    );
}
