//! One file with several names, and names that lead elsewhere.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use std::path::Path;

use harness::{Options, Pair};
use rustix::fs::{AtFlags, CWD, linkat};
use rustix::io::Errno;

use crate::area::{Area, code};

#[test]
fn a_file_with_several_names_is_one_file_on_both_nodes() {
    let area = Area::new("link-names");
    std::fs::create_dir(area.a("directory")).unwrap();
    std::fs::write(area.a("0"), "contents").unwrap();
    let names: Vec<_> = (1..50)
        .map(|n| format!("{}{n}", ["", "directory/"][n % 2]))
        .collect();
    for name in &names {
        std::fs::hard_link(area.a("0"), area.a(name)).unwrap();
    }
    File::options()
        .write(true)
        .open(area.a(&names[7]))
        .unwrap()
        .write_all_at(b"CON", 0)
        .unwrap();
    let number = std::fs::metadata(area.a("0")).unwrap().ino();
    for name in &names {
        for path in [area.a(name), area.b(name)] {
            let meta = std::fs::metadata(&path).unwrap();
            assert_eq!((meta.ino(), meta.nlink()), (number, 50));
            assert_eq!(std::fs::read(&path).unwrap(), b"CONtents");
        }
    }
    for name in &names[..48] {
        std::fs::remove_file(area.a(name)).unwrap();
    }
    std::fs::remove_file(area.a("0")).unwrap();
    let last = std::fs::metadata(area.b(&names[48])).unwrap();
    assert_eq!((last.ino(), last.nlink()), (number, 1));
    area.identical();
}

#[test]
fn links_are_made_or_refused_as_on_a_plain_file_system() {
    let area = Area::new("link-refused");
    area.same(|at| {
        std::fs::write(at.join("file"), "contents").unwrap();
        std::fs::create_dir(at.join("directory")).unwrap();
        symlink("file", at.join("symlink")).unwrap();
        let open = File::open(at.join("file")).unwrap();
        let gone = File::create(at.join("gone")).unwrap();
        std::fs::remove_file(at.join("gone")).unwrap();
        let link =
            |from: &str, to: &str, flags| linkat(CWD, at.join(from), CWD, at.join(to), flags);
        let follow = AtFlags::SYMLINK_FOLLOW;
        let none = AtFlags::empty();
        let through = |file: &File, to: &str| {
            let path = format!("/proc/self/fd/{}", file.as_raw_fd());
            linkat(CWD, path, CWD, at.join(to), follow)
        };
        let told = [
            link("file", "file", none),
            link("file", "directory", none),
            link("directory", "new-directory", none),
            link("nothing", "new", none),
            link("file", "nowhere/new", none),
            link("file", "file/new", none),
            link("symlink", "symlink-again", none),
            link("symlink", "file-again", follow),
            linkat(
                &open,
                "",
                CWD,
                at.join("by-descriptor"),
                AtFlags::EMPTY_PATH,
            ),
            linkat(&gone, "", CWD, at.join("revived"), AtFlags::EMPTY_PATH),
            through(&open, "by-proc"),
            through(&gone, "revived-by-proc"),
        ];
        (told, std::fs::metadata(at.join("file")).unwrap().nlink())
    });
    area.identical();
}

/// As many names for one file as the store allows, less ten.
fn many_names(at: &Path) {
    std::fs::write(at.join("file"), "contents").unwrap();
    std::fs::create_dir(at.join("names")).unwrap();
    let name = |n: u32| at.join("names").join(n.to_string());
    let full = (0..70_000).find(|n| code(std::fs::hard_link(at.join("file"), name(*n))).is_some());
    let full = full.expect("this test needs a file system with a limit below 70,000, as ext4");
    for n in full - 10..full {
        std::fs::remove_file(name(n)).unwrap();
    }
}

#[test]
fn the_store_says_when_a_file_has_too_many_names() {
    // Made before the directory becomes a replicated folder: one by one it takes minutes.
    let pair = Pair::with(Options {
        populate: many_names,
        ..Options::default()
    });
    std::fs::create_dir(pair.on_a("more")).unwrap();
    let links = |path| std::fs::metadata(path).unwrap().nlink();
    let before = links(pair.on_a("file"));
    let name = |n: u32| pair.on_a("more").join(n.to_string());
    for n in 0..10 {
        std::fs::hard_link(pair.on_a("file"), name(n)).unwrap();
    }
    let refused = std::fs::hard_link(pair.on_a("file"), name(10));
    assert_eq!(code(refused), Some(Errno::MLINK));
    assert_eq!(links(pair.on_a("file")), before + 10);
    assert_eq!(links(pair.on_b("file")), before + 10);
    std::fs::remove_file(name(0)).unwrap();
    std::fs::hard_link(pair.on_a("file"), name(10)).unwrap();
    pair.assert_identical_below("more");
}

fn target(path: &Path) -> Vec<u8> {
    std::fs::read_link(path)
        .unwrap()
        .into_os_string()
        .into_encoded_bytes()
}

#[test]
fn symbolic_links_hold_any_target_as_it_is() {
    let area = Area::new("link-symbolic");
    let long = format!("/{}", "x/".repeat(2047));
    let targets = [
        "nowhere",
        "/",
        "/etc/hostname",
        "../../../../..",
        "a b\n\u{fc}",
        ".",
        &long[..4095],
        &long[..60],
        &long[..59],
        "//double//",
        "self",
    ];
    area.same(|at| {
        for (n, target) in targets.into_iter().enumerate() {
            symlink(target, at.join(n.to_string())).unwrap();
        }
        symlink("self", at.join("self")).unwrap();
        let told: Vec<_> = (0..targets.len())
            .map(|n| {
                let path = at.join(n.to_string());
                let meta = std::fs::symlink_metadata(&path).unwrap();
                (target(&path), meta.len(), meta.mode(), meta.nlink())
            })
            .collect();
        (
            told,
            code(symlink("x", at.join("0"))),
            code(symlink("", at.join("empty"))),
            code(symlink("x".repeat(4096), at.join("too-long"))),
            code(std::fs::read(at.join("0"))),
            code(std::fs::read(at.join("self"))),
            code(std::fs::read_link(at)),
        )
    });
    for (n, expected) in targets.into_iter().enumerate() {
        assert_eq!(target(&area.b(n.to_string())), expected.as_bytes());
    }
    area.identical();
}

#[test]
fn a_link_out_of_the_folder_leads_out_and_nothing_of_it_is_replicated() {
    let area = Area::new("link-out");
    let outside = area.plain("outside");
    std::fs::create_dir(&outside).unwrap();
    std::fs::write(outside.join("file"), "outside").unwrap();
    symlink(outside.join("file"), area.a("file")).unwrap();
    symlink(&outside, area.a("directory")).unwrap();

    // Through the link the outside changes, for the kernel follows it before it asks us.
    std::fs::write(area.a("file"), "changed").unwrap();
    std::fs::write(area.a("directory/new"), "new").unwrap();
    assert_eq!(std::fs::read(outside.join("file")).unwrap(), b"changed");
    assert_eq!(std::fs::read(outside.join("new")).unwrap(), b"new");

    // Of the link itself only the link does.
    let before = std::fs::metadata(outside.join("file")).unwrap();
    std::os::unix::fs::lchown(area.a("file"), Some(1), Some(1)).unwrap();
    rustix::fs::utimensat(
        CWD,
        area.a("file"),
        &rustix::fs::Timestamps {
            last_access: rustix::fs::Timespec {
                tv_sec: 1,
                tv_nsec: 2,
            },
            last_modification: rustix::fs::Timespec {
                tv_sec: 3,
                tv_nsec: 4,
            },
        },
        AtFlags::SYMLINK_NOFOLLOW,
    )
    .unwrap();
    rustix::fs::lsetxattr(
        area.a("file"),
        "trusted.mine",
        b"of the link",
        rustix::fs::XattrFlags::empty(),
    )
    .unwrap();
    let after = std::fs::metadata(outside.join("file")).unwrap();
    assert_eq!(
        (
            before.uid(),
            before.mtime(),
            before.mtime_nsec(),
            before.ctime_nsec()
        ),
        (
            after.uid(),
            after.mtime(),
            after.mtime_nsec(),
            after.ctime_nsec()
        )
    );
    let there = std::fs::symlink_metadata(area.b("file")).unwrap();
    assert_eq!((there.uid(), there.mtime(), there.mtime_nsec()), (1, 3, 4));
    area.identical();

    for name in ["file", "directory"] {
        std::fs::remove_file(area.a(name)).unwrap();
        assert!(std::fs::symlink_metadata(area.b(name)).is_err());
    }
    assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 2);
    area.identical();
}
