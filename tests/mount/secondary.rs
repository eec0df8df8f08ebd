//! The secondary's mount: nobody changes anything on it, everybody reads what the
//! primary has acknowledged; and a promotion turns the same mount around.

use std::fs::{File, Permissions};
use std::os::unix::fs::{FileExt, PermissionsExt, chown, symlink};

use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use harness::{Pair, wait_until};
use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, RenameFlags, Timestamps, XattrFlags, mknodat,
    removexattr, renameat_with, setxattr, utimensat,
};
use rustix::io::Errno;
use rustix::mm::MapFlags;

use crate::area::{Area, USER, as_user, code, noise};
use crate::mmap::Mapping;

/// How long what the kernel remembers of a file may outlive the file. Not a promise
/// about speed: only so that a test ends.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(60);

#[test]
fn a_secondary_refuses_every_change_with_erofs() {
    let area = Area::new("secondary-refuses");
    for name in ["file", "other"] {
        std::fs::write(area.a(name), "contents").unwrap();
    }
    std::fs::create_dir(area.a("directory")).unwrap();
    std::fs::set_permissions(area.a("file"), Permissions::from_mode(0o666)).unwrap();
    std::fs::set_permissions(area.a(""), Permissions::from_mode(0o777)).unwrap();
    let changes = || {
        let path = |name: &str| area.b(name);
        let file = path("file");
        let zero = Timestamps {
            last_access: rustix::fs::Timespec {
                tv_sec: 0,
                tv_nsec: 0,
            },
            last_modification: rustix::fs::Timespec {
                tv_sec: 0,
                tv_nsec: 0,
            },
        };
        let exchange = RenameFlags::EXCHANGE;
        vec![
            code(File::options().write(true).open(&file)),
            code(File::options().append(true).open(&file)),
            code(File::options().write(true).truncate(true).open(&file)),
            code(File::create(path("new"))),
            code(std::fs::create_dir(path("new"))),
            code(symlink("x", path("new"))),
            code(std::fs::hard_link(&file, path("new"))),
            mknodat(CWD, path("new"), FileType::Fifo, Mode::RWXU, 0).err(),
            code(std::fs::remove_file(&file)),
            code(std::fs::remove_dir(path("directory"))),
            code(std::fs::rename(&file, path("new"))),
            renameat_with(CWD, &file, CWD, path("other"), exchange).err(),
            setxattr(&file, "user.x", b"x", XattrFlags::empty()).err(),
            removexattr(&file, "user.x").err(),
            rustix::fs::access(&file, rustix::fs::Access::WRITE_OK).err(),
        ]
        .into_iter()
        .chain(match rustix::process::geteuid().is_root() {
            // Others are refused for not being the owner, or for not being root, before.
            false => vec![],
            true => vec![
                code(std::fs::set_permissions(
                    &file,
                    Permissions::from_mode(0o600),
                )),
                code(chown(&file, Some(1), None)),
                utimensat(CWD, &file, &zero, AtFlags::empty()).err(),
                code(std::os::unix::fs::lchown(path("directory"), Some(1), None)),
            ],
        })
        .collect::<Vec<_>>()
    };
    for (n, answer) in changes().into_iter().enumerate() {
        assert_eq!(answer, Some(Errno::ROFS), "change {n} by root");
    }
    for (n, answer) in as_user(USER, &[], 0, changes).into_iter().enumerate() {
        assert_eq!(answer, Some(Errno::ROFS), "change {n} by an ordinary user");
    }
    // What is open for reading cannot be changed through it either.
    let open = File::open(area.b("file")).unwrap();
    assert_eq!(
        code(open.set_permissions(Permissions::from_mode(0o600))),
        Some(Errno::ROFS)
    );
    assert_eq!(std::fs::read(area.b("file")).unwrap(), b"contents");
    area.identical();
}

#[test]
fn a_secondary_reads_what_the_primary_has_just_acknowledged() {
    let area = Area::new("secondary-reads");
    let file = File::create(area.a("file")).unwrap();
    file.write_all_at(&[0; 8192], 0).unwrap();
    let open = File::open(area.b("file")).unwrap();
    for n in 1..1000u64 {
        // Twice in the same block and once in another, and the file grows.
        for offset in [0, 100, 4096, 8192 + n] {
            file.write_all_at(&n.to_le_bytes(), offset).unwrap();
        }
        for offset in [0, 100, 4096, 8192 + n] {
            let mut now = [0; 8];
            open.read_exact_at(&mut now, offset).unwrap();
            assert_eq!(
                u64::from_le_bytes(now),
                n,
                "at {offset} through an open file"
            );
        }
        let again = File::open(area.b("file")).unwrap();
        let mut now = [0; 8];
        again.read_exact_at(&mut now, 4096).unwrap();
        assert_eq!(u64::from_le_bytes(now), n, "through a file opened now");
        assert_eq!(open.metadata().unwrap().len(), 8200 + n);
    }
    // Names and attributes, too.
    for n in 0..300u32 {
        let (a, b) = (area.a(format!("name-{n}")), area.b(format!("name-{n}")));
        assert!(!b.exists());
        std::fs::write(&a, n.to_string()).unwrap();
        assert_eq!(std::fs::read(&b).unwrap(), n.to_string().as_bytes());
        std::fs::set_permissions(&a, Permissions::from_mode(0o600 + n % 0o100)).unwrap();
        let mode = std::fs::metadata(&b).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o600 + n % 0o100);
        let renamed = area.a(format!("renamed-{n}"));
        std::fs::rename(&a, &renamed).unwrap();
        assert!(!b.exists() && area.b(format!("renamed-{n}")).exists());
        std::fs::remove_file(renamed).unwrap();
        assert!(!area.b(format!("renamed-{n}")).exists());
    }
    area.identical();
}

#[test]
fn a_mapping_on_the_secondary_follows_the_primary() {
    let area = Area::new("secondary-mapping");
    let file = File::create(area.a("file")).unwrap();
    file.write_all_at(&noise(1, 20_000), 0).unwrap();
    let open = File::open(area.b("file")).unwrap();
    for flags in [MapFlags::SHARED, MapFlags::PRIVATE] {
        let map = Mapping::new(&open, 20_000, flags, false);
        for n in 0..20u64 {
            let data = noise(n + 2, 20_000);
            // Every page is in the kernel's memory before it changes.
            map.load(0, 20_000);
            file.write_all_at(&data, 0).unwrap();
            // Pages are taken away behind the acknowledgement, not before it.
            let follows = wait_until(PATIENCE, || map.load(0, 20_000) == data);
            assert!(follows, "the mapping shows old data after change {n}");
        }
    }
    area.identical();
}

#[test]
fn a_promotion_turns_the_same_mount_around_under_those_who_use_it() {
    let mut pair = Pair::new();
    let before = noise(1, 50_000);
    std::fs::write(pair.on_a("file"), &before).unwrap();
    let open = File::open(pair.on_b("file")).unwrap();
    let map = Mapping::new(&open, 50_000, MapFlags::SHARED, false);
    let directory = File::open(pair.b.mount()).unwrap();
    assert!(map.load(0, 50_000) == before);
    // The last thing the primary acknowledges.
    let last = noise(2, 50_000);
    let writer = File::options().write(true).open(pair.on_a("file")).unwrap();
    writer.write_all_at(&last, 0).unwrap();
    drop(writer);
    pair.a.kill();
    pair.b.promote(false).unwrap();
    pair.b.go_alone().ok();
    let alone = wait_until(PATIENCE, || {
        pair.b
            .status()
            .is_ok_and(|s| s["role"] == "primary" && s["link"] == "alone")
    });
    assert!(alone, "{:?}", pair.b.status());

    let mut now = vec![0; 50_000];
    open.read_exact_at(&mut now, 0).unwrap();
    assert!(now == last, "the open file shows old data");
    let writer = File::options()
        .read(true)
        .write(true)
        .open(pair.on_b("file"))
        .unwrap();
    writer.read_exact_at(&mut now, 0).unwrap();
    assert!(
        now == last,
        "a file opened after the promotion shows old data"
    );
    assert!(
        wait_until(PATIENCE, || map.load(0, 50_000) == last),
        "the mapping shows old data"
    );
    // And goes on as on any file system: what one writes the other one reads.
    let next = noise(3, 50_000);
    writer.write_all_at(&next, 0).unwrap();
    open.read_exact_at(&mut now, 0).unwrap();
    assert!(now == next);
    assert!(map.load(0, 50_000) == next);
    rustix::fs::mkdirat(&directory, "made-by-an-old-descriptor", Mode::RWXU).unwrap();
    assert!(pair.on_b("made-by-an-old-descriptor").is_dir());
    drop((map, writer, open, directory));

    pair.a.start(harness::Role::Secondary).unwrap();
    pair.assert_identical();
}

#[test]
fn a_demotion_lets_readers_go_on_with_what_the_new_primary_writes() {
    let pair = Pair::new();
    let before = noise(1, 50_000);
    std::fs::write(pair.on_a("file"), &before).unwrap();
    // Open while its node is primary: the kernel keeps what it has read.
    let open = File::open(pair.on_a("file")).unwrap();
    let map = Mapping::new(&open, 50_000, MapFlags::SHARED, false);
    let mut now = vec![0; 50_000];
    open.read_exact_at(&mut now, 0).unwrap();
    assert!(now == before && map.load(0, 50_000) == before);

    pair.a.demote(false).unwrap();
    assert_eq!(
        code(std::fs::write(pair.on_a("new"), "x")),
        Some(Errno::ROFS)
    );
    let promoted = wait_until(PATIENCE, || pair.b.promote(false).is_ok());
    assert!(promoted, "{:?}", pair.b.status());
    pair.wait_paired();
    let after = noise(2, 50_000);
    let writer = File::options().write(true).open(pair.on_b("file")).unwrap();
    writer.write_all_at(&after, 0).unwrap();
    let follows = wait_until(PATIENCE, || {
        open.read_exact_at(&mut now, 0).unwrap();
        now == after
    });
    assert!(follows, "a file opened before the demotion shows old data");
    let follows = wait_until(PATIENCE, || map.load(0, 50_000) == after);
    assert!(follows, "a mapping made before the demotion shows old data");
    drop((map, open, writer));
    pair.assert_identical();
}

#[test]
fn a_node_that_is_primary_again_serves_nothing_it_had_read_before() {
    let pair = Pair::new();
    let before = noise(1, 50_000);
    for name in ["file", "shrunk"] {
        std::fs::write(pair.on_a(name), &before).unwrap();
        // Read and closed: the kernel keeps it for the next one.
        assert!(std::fs::read(pair.on_a(name)).unwrap() == before);
    }
    // A remount lets go of what nobody refers to; a path descriptor refers to a file
    // without having it open, as a directory does in which somebody is.
    let held = ["file", "shrunk"]
        .map(|name| rustix::fs::open(pair.on_a(name), OFlags::PATH, Mode::empty()).unwrap());
    let switch = |from: &harness::Node, to: &harness::Node| {
        from.demote(false).unwrap();
        let done = wait_until(PATIENCE, || to.promote(false).is_ok());
        assert!(done, "{:?}", to.status());
        pair.wait_paired();
    };
    switch(&pair.a, &pair.b);
    let after = noise(2, 50_000);
    std::fs::write(pair.on_b("file"), &after).unwrap();
    let shrunk = File::options()
        .write(true)
        .open(pair.on_b("shrunk"))
        .unwrap();
    shrunk.set_len(100).unwrap();
    shrunk.set_len(50_000).unwrap();
    drop(shrunk);
    switch(&pair.b, &pair.a);
    assert!(std::fs::read(pair.on_a("file")).unwrap() == after);
    assert!(
        std::fs::read(pair.on_a("shrunk")).unwrap()[100..]
            .iter()
            .all(|b| *b == 0)
    );
    drop(held);
    pair.assert_identical();
}

/// A service with a view of the mounts of its own (`PrivateTmp=`, a container), begun before
/// anything changed.
struct Service(Child);

impl Service {
    fn start() -> Service {
        let mut unshare = Command::new("unshare");
        unshare.args(["--mount", "--propagation", "slave", "sleep", "3600"]);
        let service = Service(unshare.spawn().unwrap());
        let view = |of: &str| std::fs::read_link(format!("/proc/{of}/ns/mnt")).ok();
        let own = wait_until(PATIENCE, || {
            let comm = std::fs::read_to_string(format!("/proc/{}/comm", service.0.id()));
            comm.is_ok_and(|name| name == "sleep\n")
        });
        assert!(own && view(&service.0.id().to_string()) != view("self"));
        service
    }

    fn writes(&self, path: &Path) -> bool {
        let mut nsenter = Command::new("nsenter");
        nsenter.args(["--mount", "--target", &self.0.id().to_string()]);
        nsenter.arg("touch").arg(path).status().unwrap().success()
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A second place at which the mount is seen.
struct Bound(PathBuf);

impl Bound {
    fn of(mount: &Path, place: PathBuf) -> Bound {
        std::fs::create_dir(&place).unwrap();
        rustix::mount::mount_bind(mount, &place).unwrap();
        Bound(place)
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        let flags = rustix::mount::UnmountFlags::DETACH;
        let _ = rustix::mount::unmount(&self.0, flags);
    }
}

#[test]
fn a_change_of_roles_reaches_every_place_at_which_the_mount_is_seen() {
    let pair = Pair::new();
    let service = Service::start();
    let bound = Bound::of(&pair.b.mount(), pair.b.directory().join("bound"));
    assert!(!service.writes(&pair.on_b("early")));
    assert_eq!(code(File::create(bound.0.join("early"))), Some(Errno::ROFS));
    pair.a.demote(false).unwrap();
    let promoted = wait_until(PATIENCE, || pair.b.promote(false).is_ok());
    assert!(promoted, "{:?}", pair.b.status());
    pair.wait_paired();
    assert!(service.writes(&pair.on_b("of-a-service")));
    std::fs::write(bound.0.join("of-a-bind-mount"), "x").unwrap();
    // Whoever writes keeps it writable, wherever.
    let open = File::create(bound.0.join("open")).unwrap();
    assert!(pair.b.demote(false).is_err());
    drop(open);
    pair.b.demote(false).unwrap();
    assert!(!service.writes(&pair.on_b("late")));
    assert_eq!(code(File::create(bound.0.join("late"))), Some(Errno::ROFS));
    drop((service, bound));
    let promoted = wait_until(PATIENCE, || pair.a.promote(false).is_ok());
    assert!(promoted, "{:?}", pair.a.status());
    pair.assert_identical();
}
