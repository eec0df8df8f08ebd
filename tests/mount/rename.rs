//! Renaming: every kind of object over every other, in every mode, and with open files.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;

use crate::area::Area;

const KINDS: [&str; 7] = [
    "nothing",
    "file",
    "empty",
    "full",
    "link",
    "fifo",
    "hard-link",
];

fn make(kind: &str, path: &Path, other: &Path) {
    match kind {
        "file" => std::fs::write(path, path.file_name().unwrap().as_encoded_bytes()).unwrap(),
        "empty" => std::fs::create_dir(path).unwrap(),
        "full" => {
            std::fs::create_dir(path).unwrap();
            std::fs::write(path.join("inside"), "inside").unwrap();
        }
        "link" => std::os::unix::fs::symlink("nowhere", path).unwrap(),
        "fifo" => rustix::fs::mknodat(
            CWD,
            path,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RWXU,
            0,
        )
        .unwrap(),
        // A second name of what the other path leads to.
        "hard-link" if other.is_file() => std::fs::hard_link(other, path).unwrap(),
        _ => {}
    }
}

/// Names and what they lead to, told without numbers that differ from run to run.
fn listing(at: &Path) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    for entry in std::fs::read_dir(at).unwrap() {
        let entry = entry.unwrap();
        let meta = entry.metadata().unwrap();
        let inside = match meta.is_dir() {
            true => format!("{:?}", listing(&entry.path())),
            false if meta.is_file() => std::fs::read_to_string(entry.path()).unwrap(),
            false => String::new(),
        };
        let kind = meta.mode() & libc::S_IFMT;
        let told = format!("{kind:o} {} {inside}", meta.nlink());
        all.insert(entry.file_name().into_string().unwrap(), told);
    }
    all
}

#[test]
fn every_kind_over_every_other_in_every_mode_as_on_a_plain_file_system() {
    let area = Area::new("rename-matrix");
    let modes = [
        RenameFlags::empty(),
        RenameFlags::NOREPLACE,
        RenameFlags::EXCHANGE,
    ];
    let told = area.alike(|at| {
        let mut told = Vec::new();
        for (n, mode) in modes.into_iter().enumerate() {
            for from in KINDS {
                for to in KINDS {
                    let at = at.join(format!("{n}-{from}-{to}"));
                    std::fs::create_dir(&at).unwrap();
                    let (a, b) = (at.join("a"), at.join("b"));
                    make(from, &a, &b);
                    make(to, &b, &a);
                    let done = renameat_with(CWD, &a, CWD, &b, mode);
                    told.push((n, from, to, done, listing(&at)));
                }
            }
        }
        told
    });
    let went_well = told.iter().filter(|t| t.3.is_ok()).count();
    assert!(went_well > 50, "only {went_well} renames went well");
    area.identical();
}

#[test]
fn directories_cannot_be_moved_into_themselves() {
    let area = Area::new("rename-loop");
    let told = area.alike(|at| {
        std::fs::create_dir_all(at.join("one/two/three")).unwrap();
        std::fs::create_dir(at.join("other")).unwrap();
        let rename =
            |a: &str, b: &str, flags| renameat_with(CWD, at.join(a), CWD, at.join(b), flags);
        let none = RenameFlags::empty();
        (
            rename("one", "one/two/new", none),
            rename("one", "one/two/three", none),
            rename("one", "one/two", RenameFlags::EXCHANGE),
            rename("one/two", "one", RenameFlags::EXCHANGE),
            rename("one/two/three", "other/moved", none),
            rename("other", "one/two/three", none),
            rename("one/.", "new", none),
            rename("one", "other/moved/..", none),
            rename("nothing", "new", none),
            rename("one", "nowhere/new", none),
            listing(at),
        )
    });
    assert_eq!(told.0, Err(Errno::INVAL));
    area.identical();
}

#[test]
fn open_files_go_along_with_their_names_and_stay_when_replaced() {
    let area = Area::new("rename-open");
    area.same(|at| {
        let open = |name: &str, text: &str| {
            let mut file = File::options()
                .create_new(true)
                .read(true)
                .append(true)
                .open(at.join(name))
                .unwrap();
            file.write_all(text.as_bytes()).unwrap();
            file
        };
        std::fs::create_dir(at.join("directory")).unwrap();
        let (mut one, mut two, mut three) =
            (open("1", "one"), open("2", "two"), open("3", "three"));
        std::fs::rename(at.join("1"), at.join("directory/moved")).unwrap();
        one.write_all(b" moved").unwrap();
        std::fs::rename(at.join("2"), at.join("directory/moved")).unwrap();
        one.write_all(b" replaced").unwrap();
        two.write_all(b" moved over").unwrap();
        let exchange = RenameFlags::EXCHANGE;
        renameat_with(CWD, at.join("3"), CWD, at.join("directory/moved"), exchange).unwrap();
        two.write_all(b" exchanged").unwrap();
        three.write_all(b" exchanged").unwrap();
        std::fs::rename(at.join("directory"), at.join("elsewhere")).unwrap();
        three.write_all(b" in a moved directory").unwrap();
        let tell = |file: &File| {
            let mut text = String::new();
            let meta = file.metadata().unwrap();
            let start = rustix::fs::seek(file, rustix::fs::SeekFrom::Start(0));
            let mut file = file;
            file.read_to_string(&mut text).unwrap();
            (text, meta.nlink(), start)
        };
        (tell(&one), tell(&two), tell(&three), listing(at))
    });
    assert_eq!(
        std::fs::read_to_string(area.b("elsewhere/moved")).unwrap(),
        "three exchanged in a moved directory"
    );
    assert_eq!(
        std::fs::read_to_string(area.b("3")).unwrap(),
        "two moved over exchanged"
    );
    area.identical();
}

#[test]
fn whiteouts_and_unknown_modes_are_refused() {
    let area = Area::new("rename-whiteout");
    std::fs::write(area.a("file"), "contents").unwrap();
    let (from, to) = (area.a("file"), area.a("other"));
    for flags in [
        RenameFlags::WHITEOUT,
        RenameFlags::NOREPLACE | RenameFlags::EXCHANGE,
    ] {
        let done = renameat_with(CWD, &from, CWD, &to, flags);
        assert_eq!(done, Err(Errno::INVAL));
    }
    assert!(from.exists() && !to.exists());
    area.identical();
}

#[test]
fn a_file_keeps_its_identity_wherever_it_goes() {
    let area = Area::new("rename-identity");
    std::fs::create_dir(area.a("directory")).unwrap();
    std::fs::write(area.a("file"), "contents").unwrap();
    let number = std::fs::metadata(area.a("file")).unwrap().ino();
    std::fs::rename(area.a("file"), area.a("directory/file")).unwrap();
    for path in [area.a("directory/file"), area.b("directory/file")] {
        assert_eq!(std::fs::metadata(path).unwrap().ino(), number);
    }
    area.identical();
}

#[test]
fn renames_in_parallel_end_the_same_on_both_nodes() {
    let area = Area::new("rename-parallel");
    for n in 0..8 {
        std::fs::create_dir(area.a(format!("d{n}"))).unwrap();
        std::fs::write(area.a(format!("d{n}/f")), format!("{n}")).unwrap();
    }
    std::thread::scope(|s| {
        for worker in 0..4usize {
            let area = area.a("");
            s.spawn(move || {
                for n in 0..150usize {
                    let a = area.join(format!("d{}/f", (n + worker) % 8));
                    let b = area.join(format!("d{}/f", (n * 3 + worker * 5) % 8));
                    let mode = [RenameFlags::empty(), RenameFlags::EXCHANGE][n % 2];
                    match renameat_with(CWD, &a, CWD, &b, mode) {
                        Ok(()) | Err(Errno::NOENT) => {}
                        Err(e) => panic!("{a:?} to {b:?}: {e}"),
                    }
                    let _ = std::fs::write(&a, format!("{worker} {n}"));
                }
            });
        }
    });
    area.identical();
}
