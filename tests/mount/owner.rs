//! Owners and modes, and that ordinary users may do what the modes say.

use std::fs::{File, Permissions};
use std::io::ErrorKind;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown};
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use harness::wait_until;
use rustix::fs::{FallocateFlags, XattrFlags, copy_file_range, fallocate};
use rustix::io::Errno;

use crate::area::{Area, OTHER, USER, as_user, code, in_thread};

/// Not a promise about speed: only so that a test ends.
const PATIENCE: Duration = Duration::from_secs(60);

fn mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

fn mode_of(path: &Path) -> u32 {
    std::fs::symlink_metadata(path).unwrap().mode() & 0o7777
}

fn owner_of(path: &Path) -> (u32, u32, u32) {
    let meta = std::fs::symlink_metadata(path).unwrap();
    (meta.mode() & 0o7777, meta.uid(), meta.gid())
}

#[test]
fn all_modes_and_owners_are_the_same_on_both_nodes() {
    let area = Area::new("owner-modes");
    area.same(|at| {
        std::fs::create_dir(at.join("directory")).unwrap();
        std::fs::write(at.join("file"), "contents").unwrap();
        let mut told = Vec::new();
        for name in ["file", "directory"] {
            let path = at.join(name);
            for bits in [0o777, 0, 0o4755, 0o2755, 0o1777, 0o7777, 0o644] {
                mode(&path, bits);
                told.push(owner_of(&path));
            }
            mode(&path, 0o6755);
            for (uid, gid) in [(Some(1), None), (None, Some(2)), (Some(USER), Some(USER))] {
                // Root, too, takes suid and sgid away from a file by chown(2).
                chown(&path, uid, gid).unwrap();
                told.push(owner_of(&path));
            }
            chown(&path, None, None).unwrap();
            chown(&path, Some(u32::MAX - 1), Some(u32::MAX - 1)).unwrap();
            told.push(owner_of(&path));
        }
        told
    });
    area.identical();
}

/// Everything by which an ordinary user changes a file that is not theirs, but that
/// they may write.
type Change = fn(&Path) -> Result<(), Errno>;

const CHANGES: [(&str, Change); 10] = [
    ("write", |path| {
        writer(path).write_all_at(b"new", 0).map_err(errno)
    }),
    ("write-nothing", |path| {
        writer(path).write_at(b"", 0).map(drop).map_err(errno)
    }),
    ("append", |path| {
        let mut file = File::options().append(true).open(path).map_err(errno)?;
        std::io::Write::write_all(&mut file, b"new").map_err(errno)
    }),
    ("direct", |path| {
        #[repr(align(4096))]
        struct Block([u8; 4096]);
        let mut options = File::options();
        let options = options.write(true).custom_flags(libc::O_DIRECT);
        let file = options.open(path).map_err(errno)?;
        file.write_all_at(&Block([1; 4096]).0, 0).map_err(errno)
    }),
    ("truncate", |path| writer(path).set_len(3).map_err(errno)),
    ("open-truncate", |path| {
        let mut options = File::options();
        options.write(true).truncate(true);
        options.open(path).map(drop).map_err(errno)
    }),
    ("allocate", |path| {
        fallocate(writer(path), FallocateFlags::empty(), 0, 100_000)
    }),
    ("punch", |path| {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        fallocate(writer(path), flags, 0, 4096)
    }),
    ("copy", |path| {
        let file = File::options()
            .read(true)
            .write(true)
            .open(path)
            .map_err(errno)?;
        let (mut from, mut to) = (0, 50_000);
        copy_file_range(&file, Some(&mut from), &file, Some(&mut to), 100).map(drop)
    }),
    ("read", |path| std::fs::read(path).map(drop).map_err(errno)),
];

fn errno(e: std::io::Error) -> Errno {
    Errno::from_io_error(&e).unwrap()
}

fn writer(path: &Path) -> File {
    File::options().write(true).open(path).unwrap()
}

#[test]
fn an_ordinary_users_change_takes_suid_and_sgid_away() {
    let area = Area::new("owner-privileges");
    let told = area.alike(|at| {
        let mut told = Vec::new();
        for (name, change) in CHANGES {
            // Without the group's execute bit sgid means nothing, and whether it goes
            // depends on groups of the caller that FUSE does not tell.
            for bits in [0o6777, 0o4777, 0o2777, 0o4666, 0o777] {
                let path = at.join(format!("{name}-{bits:o}"));
                std::fs::write(&path, vec![b'x'; 10_000]).unwrap();
                mode(&path, bits);
                let done = as_user(USER, &[], 0o022, || change(&path));
                told.push((
                    name,
                    format!("{bits:o}"),
                    done,
                    format!("{:o}", mode_of(&path)),
                ));
            }
        }
        told
    });
    assert_eq!(told[0], ("write", "6777".into(), Ok(()), "777".into()));
    area.identical();
}

#[test]
fn root_keeps_them_and_file_capabilities_go_with_any_write() {
    let area = Area::new("owner-root");
    // `struct vfs_cap_data`, version 2, CAP_NET_BIND_SERVICE permitted and effective.
    let capability: [u8; 20] = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    area.same(|at| {
        let mut told = Vec::new();
        for (name, change) in CHANGES {
            for by in [0, USER] {
                let path = at.join(format!("{name}-{by}"));
                std::fs::write(&path, vec![b'x'; 10_000]).unwrap();
                mode(&path, 0o6777);
                let name = "security.capability";
                rustix::fs::setxattr(&path, name, &capability, XattrFlags::empty()).unwrap();
                let done = match by {
                    0 => change(&path),
                    user => as_user(user, &[], 0o022, || change(&path)),
                };
                let left = rustix::fs::getxattr(&path, name, &mut [0; 32][..]);
                told.push((
                    path.file_name().unwrap().to_owned(),
                    done,
                    left,
                    mode_of(&path),
                ));
            }
        }
        let path = at.join("chown");
        std::fs::write(&path, "x").unwrap();
        rustix::fs::setxattr(
            &path,
            "security.capability",
            &capability,
            XattrFlags::empty(),
        )
        .unwrap();
        chown(&path, Some(1), None).unwrap();
        let left = rustix::fs::getxattr(&path, "security.capability", &mut [0; 32][..]);
        (told, left)
    });
    area.identical();
}

#[test]
fn new_objects_get_the_owner_and_mode_they_should() {
    let area = Area::new("owner-new");
    area.same(|at| {
        let shared = at.join("shared");
        std::fs::create_dir(&shared).unwrap();
        chown(&shared, None, Some(7)).unwrap();
        mode(&shared, 0o2777);
        let open = at.join("open");
        std::fs::create_dir(&open).unwrap();
        mode(&open, 0o1777);
        let mut told = Vec::new();
        for at in [&shared, &open] {
            for umask in [0, 0o022, 0o077, 0o777] {
                told.extend(as_user(USER, &[7], umask, || {
                    let path = |name: &str| at.join(format!("{name}-{umask:o}"));
                    File::options()
                        .create_new(true)
                        .write(true)
                        .mode(0o6777)
                        .open(path("file"))
                        .unwrap();
                    std::fs::create_dir(path("directory")).unwrap();
                    std::os::unix::fs::symlink("x", path("link")).unwrap();
                    ["file", "directory", "link"].map(|name| owner_of(&path(name)))
                }));
                // One who is not of the group gets no sgid file for it.
                told.push(as_user(OTHER, &[], umask, || {
                    let path = at.join(format!("foreign-{umask:o}"));
                    let mut options = File::options();
                    options.create_new(true).write(true).mode(0o2775);
                    options.open(&path).unwrap();
                    owner_of(&path)
                }));
            }
        }
        // Root with a umask of its own.
        told.push(in_thread(|| {
            // SAFETY: an integer; the umask is this thread's own.
            unsafe { libc::umask(0o137) };
            std::fs::write(at.join("root"), "").unwrap();
            owner_of(&at.join("root"))
        }));
        told
    });
    area.identical();
}

#[test]
fn the_kernel_refuses_an_ordinary_user_what_the_modes_refuse() {
    let area = Area::new("owner-refused");
    let told = area.alike(|at| {
        mode(at, 0o755);
        for (name, bits) in [("secret", 0o600), ("public", 0o644), ("open", 0o666)] {
            std::fs::write(at.join(name), "contents").unwrap();
            mode(&at.join(name), bits);
        }
        std::fs::create_dir(at.join("closed")).unwrap();
        std::fs::write(at.join("closed/file"), "contents").unwrap();
        mode(&at.join("closed"), 0o700);
        std::fs::create_dir(at.join("sticky")).unwrap();
        mode(&at.join("sticky"), 0o1777);
        std::fs::write(at.join("sticky/of-root"), "contents").unwrap();
        mode(&at.join("sticky/of-root"), 0o666);
        as_user(USER, &[], 0o022, || {
            let path = |name: &str| at.join(name);
            vec![
                code(std::fs::read(path("secret"))),
                code(std::fs::read(path("public"))),
                code(std::fs::write(path("public"), "x")),
                code(std::fs::write(path("open"), "x")),
                code(std::fs::write(path("new"), "x")),
                code(std::fs::create_dir(path("new"))),
                code(std::fs::remove_file(path("open"))),
                code(std::fs::rename(path("open"), path("other"))),
                code(std::fs::hard_link(path("secret"), path("sticky/link"))),
                code(std::fs::metadata(path("closed/file"))),
                code(std::fs::read_dir(path("closed"))),
                code(std::fs::write(path("sticky/mine"), "x")),
                code(std::fs::remove_file(path("sticky/of-root"))),
                code(std::fs::rename(
                    path("sticky/of-root"),
                    path("sticky/moved"),
                )),
                code(std::fs::rename(path("sticky/mine"), path("sticky/of-root"))),
                code(std::fs::remove_file(path("sticky/mine"))),
                code(std::fs::set_permissions(
                    path("open"),
                    Permissions::from_mode(0o777),
                )),
                code(chown(path("open"), Some(USER), None)),
                code(File::options().append(true).open(path("public"))),
                rustix::fs::access(path("open"), rustix::fs::Access::WRITE_OK).err(),
                rustix::fs::access(path("public"), rustix::fs::Access::WRITE_OK).err(),
                rustix::fs::access(path("public"), rustix::fs::Access::EXEC_OK).err(),
            ]
        })
    });
    assert_eq!(
        told[..4],
        [Some(Errno::ACCESS), None, Some(Errno::ACCESS), None]
    );
    area.identical();
}

#[test]
fn an_owner_may_change_what_is_theirs() {
    let area = Area::new("owner-own");
    area.same(|at| {
        let path = at.join("file");
        std::fs::write(&path, "contents").unwrap();
        chown(&path, Some(USER), Some(USER)).unwrap();
        let told = as_user(USER, &[5, 6], 0o022, || {
            vec![
                code(std::fs::set_permissions(
                    &path,
                    Permissions::from_mode(0o2750),
                )),
                // A group of theirs, and one that is not.
                code(chown(&path, None, Some(6))),
                code(chown(&path, None, Some(9))),
                code(chown(&path, Some(OTHER), None)),
                code(
                    File::options()
                        .write(true)
                        .open(&path)
                        .and_then(|f| f.set_modified(std::time::UNIX_EPOCH)),
                ),
                // sgid for a group that is not theirs is dropped.
                code(std::fs::set_permissions(
                    &path,
                    Permissions::from_mode(0o2750),
                )),
            ]
        });
        (told, owner_of(&path))
    });
    area.identical();
}

/// Runs a program that has just been written. What another thread is about to start has it open
/// for writing until that begins, and as long it cannot be run.
fn run(command: &mut Command) -> Output {
    let mut output = command.output();
    wait_until(PATIENCE, || {
        let busy = matches!(&output, Err(e) if e.kind() == ErrorKind::ExecutableFileBusy);
        if busy {
            output = command.output();
        }
        !busy
    });
    output.unwrap()
}

#[test]
fn programs_of_ordinary_users_run_from_the_mount() {
    let area = Area::new("owner-programs");
    let program = area.a("program");
    std::fs::copy("/bin/true", &program).unwrap();
    mode(&program, 0o755);
    let script = area.a("script");
    std::fs::write(&script, "#!/bin/sh\nid -u > \"$1\"\n").unwrap();
    mode(&script, 0o755);
    mode(&area.a(""), 0o777);
    let mut command = Command::new(&program);
    let output = run(harness::leave_root(&mut command, USER));
    assert!(output.status.success(), "{output:?}");
    let mut command = Command::new(&script);
    command.arg(area.a("said"));
    let output = run(harness::leave_root(&mut command, USER));
    assert!(output.status.success(), "{output:?}");
    assert_eq!(
        std::fs::read_to_string(area.b("said")).unwrap().trim(),
        USER.to_string()
    );
    // suid counts on the mount, as on any file system that is not `nosuid`.
    std::fs::copy("/usr/bin/id", area.a("id")).unwrap();
    mode(&area.a("id"), 0o4755);
    let mut command = Command::new(area.a("id"));
    let output = run(harness::leave_root(command.arg("-u"), USER));
    assert_eq!(String::from_utf8(output.stdout).unwrap().trim(), "0");
    area.identical();
}
