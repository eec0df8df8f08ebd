//! Names and paths of any kind, the size of the file system, and times.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, utimensat};
use rustix::io::Errno;

use crate::area::{Area, USER, as_user, code, in_thread};

#[test]
fn every_name_that_linux_allows_is_the_same_on_both_nodes() {
    let area = Area::new("names-all");
    let mut all: Vec<OsString> = (1..=255u8)
        .filter(|b| *b != b'/')
        .map(|b| OsString::from_vec(vec![b'x', b]))
        .collect();
    all.push(OsString::from_vec(
        (1..=255).filter(|b| *b != b'/').collect(),
    ));
    all.push(OsString::from_vec(vec![0xff; 255]));
    all.push("\u{1f600}".repeat(63).into());
    for special in [
        "...",
        " ",
        "\n",
        "-rf",
        ".vm.twinfold",
        "trusted.twinfold",
        "~",
        "a\\b",
    ] {
        all.push(special.into());
    }
    for name in &all {
        std::fs::write(area.a(name), name.as_bytes()).unwrap();
    }
    let mut expected = all.clone();
    expected.sort();
    for at in [area.a(""), area.b("")] {
        let mut found: Vec<_> = std::fs::read_dir(&at)
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        found.sort();
        assert_eq!(found, expected);
        for name in &all {
            assert_eq!(std::fs::read(at.join(name)).unwrap(), name.as_bytes());
        }
    }
    for (n, name) in all.iter().enumerate() {
        let new = OsString::from_vec(vec![0x80 + (n % 64) as u8; 1 + n % 255]);
        std::fs::rename(area.a(name), area.a(new)).unwrap();
    }
    area.identical();
}

#[test]
fn a_name_too_long_is_told_so_by_every_call() {
    let area = Area::new("names-long");
    let told = area.alike(|at| {
        std::fs::write(at.join("file"), "").unwrap();
        let long = at.join(OsStr::from_bytes(&[b'n'; 256]));
        let file = at.join("file");
        [
            code(File::create(&long)),
            code(File::open(&long)),
            code(std::fs::metadata(&long)),
            code(std::fs::create_dir(&long)),
            code(std::fs::remove_file(&long)),
            code(std::fs::rename(&file, &long)),
            code(std::fs::rename(&long, &file)),
            code(std::fs::hard_link(&file, &long)),
            code(std::os::unix::fs::symlink("x", &long)),
        ]
    });
    assert_eq!(told, [Some(Errno::NAMETOOLONG); 9]);
    area.identical();
}

#[test]
fn paths_may_be_as_deep_as_programs_go() {
    let area = Area::new("names-deep");
    // Deeper than one path can say: step by step.
    let name = "d".repeat(100);
    let build = |at: &Path| {
        in_thread(|| {
            std::env::set_current_dir(at).unwrap();
            for _ in 0..60 {
                std::fs::create_dir(&name).unwrap();
                std::env::set_current_dir(&name).unwrap();
            }
            std::fs::write("bottom", "reached").unwrap();
            code(std::fs::metadata(at.join(format!("{name}/").repeat(60))))
        })
    };
    assert_eq!(area.alike(build), Some(Errno::NAMETOOLONG));
    for at in [area.a(""), area.b("")] {
        in_thread(|| {
            std::env::set_current_dir(&at).unwrap();
            for _ in 0..60 {
                std::env::set_current_dir(&name).unwrap();
            }
            assert_eq!(std::fs::read("bottom").unwrap(), b"reached");
        });
    }
    // From the middle of the depth to the top: the comparison walks by whole paths.
    let middle = |at: &Path| at.join(format!("{name}/").repeat(20)).join(&name);
    std::fs::rename(middle(&area.a("")), area.a("upper")).unwrap();
    std::fs::rename(
        area.a("upper").join(format!("{name}/").repeat(15)),
        area.a("lower"),
    )
    .unwrap();
    area.identical();
}

#[test]
fn the_size_of_the_file_system_is_the_stores() {
    let area = Area::new("names-space");
    let told = |path: &Path| {
        let s = rustix::fs::statvfs(path).unwrap();
        (s.f_bsize, s.f_frsize, s.f_blocks, s.f_files, s.f_namemax)
    };
    for (mount, node) in [(area.a(""), &area.pair.a), (area.b(""), &area.pair.b)] {
        assert_eq!(told(&mount), told(&node.data()));
        let free = rustix::fs::statvfs(&mount).unwrap();
        assert!(free.f_bavail > 0 && free.f_bavail <= free.f_bfree);
        assert!(free.f_bfree < free.f_blocks && free.f_ffree < free.f_files);
    }
}

fn set(path: &Path, accessed: (i64, i64), modified: (i64, i64)) -> Result<(), Errno> {
    let time = |(tv_sec, tv_nsec): (i64, i64)| Timespec { tv_sec, tv_nsec };
    let times = Timestamps {
        last_access: time(accessed),
        last_modification: time(modified),
    };
    utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)
}

const NOW: (i64, i64) = (0, rustix::fs::UTIME_NOW);
const OMIT: (i64, i64) = (0, rustix::fs::UTIME_OMIT);

#[test]
fn times_are_kept_to_the_nanosecond_on_both_nodes() {
    let area = Area::new("times-set");
    let cases = [
        ("usual", (1_700_000_000, 123_456_789), (1_600_000_000, 1)),
        ("before-1970", (-1, 999_999_999), (-1_000_000_000, 5)),
        ("epoch", (0, 0), (0, 1)),
        ("after-2038", (4_000_000_000, 7), (15_000_000_000, 8)),
        // Outside of what ext4 holds: it is brought to the nearest it can.
        ("far", (1 << 40, 9), (-(1 << 40), 10)),
        ("only-modified", OMIT, (5, 6)),
        ("only-accessed", (7, 8), OMIT),
        ("neither", OMIT, OMIT),
    ];
    area.same(|at| {
        std::fs::create_dir(at.join("directory")).unwrap();
        std::os::unix::fs::symlink("x", at.join("link")).unwrap();
        cases.map(|(name, accessed, modified)| {
            let file = at.join(name);
            std::fs::write(&file, "").unwrap();
            set(&file, (1, 2), (3, 4)).unwrap();
            [&file, &at.join("directory"), &at.join("link")].map(|path| {
                let done = set(path, accessed, modified);
                let meta = std::fs::symlink_metadata(path).unwrap();
                let modified = (meta.mtime(), meta.mtime_nsec());
                // Looking at a link's target would be an access.
                (done, (meta.atime(), meta.atime_nsec()), modified)
            })
        })
    });
    area.identical();
}

#[test]
fn every_change_sets_the_times_it_should() {
    let area = Area::new("times-changes");
    type Step = fn(&Path);
    let steps: [(&str, Step); 10] = [
        ("write", |at| {
            let file = File::options().write(true).open(at.join("file")).unwrap();
            file.write_all_at(b"x", 0).unwrap();
        }),
        ("truncate", |at| {
            let file = File::options().write(true).open(at.join("file")).unwrap();
            file.set_len(3).unwrap();
        }),
        ("chmod", |at| {
            let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
            std::fs::set_permissions(at.join("file"), mode).unwrap();
        }),
        ("chown", |at| {
            std::os::unix::fs::chown(at.join("file"), Some(1), None).unwrap();
        }),
        ("xattr", |at| {
            let flags = rustix::fs::XattrFlags::empty();
            rustix::fs::setxattr(at.join("file"), "user.x", b"x", flags).unwrap();
        }),
        ("create", |at| drop(File::create(at.join("new")).unwrap())),
        ("link", |at| {
            std::fs::hard_link(at.join("file"), at.join("link")).unwrap()
        }),
        ("rename", |at| {
            std::fs::rename(at.join("new"), at.join("newer")).unwrap()
        }),
        ("unlink", |at| {
            std::fs::remove_file(at.join("newer")).unwrap()
        }),
        ("read", |at| drop(std::fs::read(at.join("file")).unwrap())),
    ];
    let told = area.alike(|at| {
        std::fs::write(at.join("file"), "contents").unwrap();
        steps.map(|(name, step)| {
            set(&at.join("file"), (1, 1), (1, 1)).unwrap();
            set(at, (1, 1), (1, 1)).unwrap();
            step(at);
            let told = [at.join("file"), at.to_owned()].map(|path| {
                // `at` is the area itself, whose change time others have moved.
                std::fs::metadata(path).unwrap().mtime() != 1
            });
            (name, told)
        })
    });
    assert_eq!(told[0], ("write", [true, false]));
    assert_eq!(told[5], ("create", [false, true]));
    area.identical();
}

#[test]
fn the_present_is_for_those_who_may_write() {
    let area = Area::new("times-now");
    area.same(|at| {
        let file = at.join("file");
        std::fs::write(&file, "").unwrap();
        set(&file, (1, 1), (1, 1)).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o666);
        std::fs::set_permissions(&file, mode).unwrap();
        let told = as_user(USER, &[], 0, || {
            [
                set(&file, NOW, NOW),
                set(&file, (1, 1), (1, 1)),
                set(&file, NOW, OMIT),
                set(&file, OMIT, OMIT),
            ]
        });
        let modified = std::fs::metadata(&file).unwrap().modified().unwrap();
        let age = modified.elapsed().unwrap_or_default();
        (told, age < std::time::Duration::from_secs(3600))
    });
    area.identical();
}
