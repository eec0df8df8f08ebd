//! Extended attributes, access control lists, and the attribute that is twinfold's own.

use std::fs::{File, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use rustix::fs::{
    XattrFlags, fgetxattr, fsetxattr, getxattr, lgetxattr, listxattr, lsetxattr, removexattr,
    setxattr,
};
use rustix::io::Errno;

use crate::area::{Area, USER, as_user, code, in_thread, noise};

const ANY: XattrFlags = XattrFlags::empty();

fn get(path: &Path, name: &str, room: usize) -> Result<Vec<u8>, Errno> {
    let mut value = vec![0; room];
    let n = getxattr(path, name, &mut value[..])?;
    value.truncate(n);
    Ok(value)
}

/// All names, in an order of their own.
fn names(path: &Path) -> Vec<String> {
    let mut list = vec![0u8; 64 << 10];
    let n = listxattr(path, &mut list[..]).unwrap();
    let mut names: Vec<_> = list[..n]
        .split(|b| *b == 0)
        .filter(|name| !name.is_empty())
        .map(|name| String::from_utf8(name.to_vec()).unwrap())
        // The plain directory has none; it must not show on the mount either.
        .collect();
    names.sort();
    names
}

#[test]
fn attributes_are_set_read_listed_and_removed_as_on_a_plain_file_system() {
    let area = Area::new("xattr-all");
    let told = area.alike(|at| {
        let path = at.join("file");
        let file = File::create(&path).unwrap();
        let mut told = vec![
            setxattr(&path, "user.one", b"1", ANY),
            setxattr(&path, "user.empty", b"", ANY),
            setxattr(&path, "user.binary", &noise(1, 500), ANY),
            setxattr(&path, "trusted.two", b"22", ANY),
            setxattr(&path, "security.three", b"333", ANY),
            fsetxattr(&file, "user.four", b"4444", ANY),
            setxattr(&path, "user.one", b"again", XattrFlags::CREATE),
            setxattr(&path, "user.one", b"replaced", XattrFlags::REPLACE),
            setxattr(&path, "user.none", b"x", XattrFlags::REPLACE),
            setxattr(&path, "user.new", b"x", XattrFlags::CREATE),
            setxattr(
                &path,
                "user.both",
                b"x",
                XattrFlags::CREATE | XattrFlags::REPLACE,
            ),
            setxattr(&path, "user.", b"x", ANY),
            setxattr(&path, "user", b"x", ANY),
            setxattr(&path, "", b"x", ANY),
            setxattr(&path, "other.name", b"x", ANY),
            setxattr(&path, "system.other", b"x", ANY),
            setxattr(&path, format!("user.{}", "n".repeat(250)), b"x", ANY),
            setxattr(&path, format!("user.{}", "n".repeat(251)), b"x", ANY),
            setxattr(&path, "user.large", &noise(2, 2000), ANY),
            setxattr(&path, "user.larger", &noise(3, 65_536), ANY),
            setxattr(&path, "user.too-large", &noise(4, 65_537), ANY),
            removexattr(&path, "user.four"),
            removexattr(&path, "user.none"),
            removexattr(&path, "trusted.none"),
        ];
        // Room: none asks for the size, too little is an error, more is no matter.
        let sizes = [0, 1, 7, 8, 100].map(|room| get(&path, "user.one", room).map(|v| v.len()));
        told.push(get(&path, "user.none", 10).map(drop));
        let mut short = [0; 5];
        told.push(listxattr(&path, &mut short[..]).map(drop));
        let values: Vec<_> = names(&path)
            .iter()
            .map(|name| (name.clone(), get(&path, name, 70_000)))
            .collect();
        let size = listxattr(&path, &mut [0u8; 0][..]).unwrap();
        let by_descriptor = fgetxattr(&file, "user.one", &mut [0; 100][..]);
        (told, sizes, values, size, by_descriptor)
    });
    assert_eq!(told.0[6], Err(Errno::EXIST));
    assert_eq!(told.1[1], Err(Errno::RANGE));
    for (name, value) in told.2 {
        assert_eq!(get(&area.b("file"), &name, 70_000), value, "{name}");
    }
    area.identical();
}

#[test]
fn they_belong_to_links_and_directories_too() {
    let area = Area::new("xattr-kinds");
    area.same(|at| {
        std::fs::create_dir(at.join("directory")).unwrap();
        std::fs::write(at.join("file"), "").unwrap();
        symlink("file", at.join("link")).unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            at.join("fifo"),
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RWXU,
            0,
        )
        .unwrap();
        ["directory", "link", "fifo"].map(|name| {
            let path = at.join(name);
            (
                lsetxattr(&path, "user.a", b"1", ANY),
                lsetxattr(&path, "trusted.a", b"1", ANY),
                lgetxattr(&path, "trusted.a", &mut [0; 10][..]),
                lsetxattr(&path, "security.a", b"1", ANY),
            )
        })
    });
    area.identical();
}

#[test]
fn ordinary_users_see_and_change_only_what_is_theirs_to_see() {
    let area = Area::new("xattr-user");
    area.same(|at| {
        let path = at.join("file");
        std::fs::write(&path, "").unwrap();
        std::fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        setxattr(&path, "user.a", b"1", ANY).unwrap();
        setxattr(&path, "trusted.a", b"1", ANY).unwrap();
        as_user(USER, &[], 0o022, || {
            (
                names(&path),
                get(&path, "user.a", 10),
                get(&path, "trusted.a", 10),
                setxattr(&path, "user.a", b"2", ANY),
                setxattr(&path, "trusted.a", b"2", ANY),
                setxattr(&path, "security.a", b"2", ANY),
                removexattr(&path, "user.a"),
            )
        })
    });
    area.identical();
}

#[test]
fn twinfolds_own_attribute_is_not_there_and_cannot_be_made() {
    let area = Area::new("xattr-own");
    std::fs::write(area.a("file"), "").unwrap();
    std::fs::create_dir(area.a("directory")).unwrap();
    let own = "trusted.twinfold";
    for name in ["file", "directory", ""] {
        for path in [area.a(name), area.b(name)] {
            assert_eq!(get(&path, own, 100), Err(Errno::NODATA));
            assert!(!names(&path).contains(&own.to_owned()));
        }
        let path = area.a(name);
        for flags in [ANY, XattrFlags::CREATE, XattrFlags::REPLACE] {
            assert_eq!(setxattr(&path, own, &[1; 8], flags), Err(Errno::PERM));
        }
        assert_eq!(removexattr(&path, own), Err(Errno::PERM));
        // What only begins like it is anybody's.
        setxattr(&path, "trusted.twinfolded", b"1", ANY).unwrap();
        setxattr(&path, "user.twinfold", b"1", ANY).unwrap();
        assert_eq!(names(&path), ["trusted.twinfolded", "user.twinfold"]);
    }
    area.identical();
}

/// Runs one of the tools for access control lists below `at`.
fn tool(at: &Path, program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program)
        .args(arguments)
        .current_dir(at)
        .output()
        .unwrap_or_else(|e| panic!("{program} cannot be started ({e}): install the package acl"));
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

#[test]
fn access_control_lists_are_kept_inherited_and_obeyed() {
    let area = Area::new("xattr-acl");
    let told = area.alike(|at| {
        let mut told = Vec::new();
        let mut acl = |arguments: &[&str]| told.push(tool(at, "setfacl", arguments));
        for name in ["plain", "default"] {
            std::fs::create_dir(at.join(name)).unwrap();
        }
        std::fs::write(at.join("plain/file"), "contents").unwrap();
        std::fs::set_permissions(at.join("plain/file"), Permissions::from_mode(0o640)).unwrap();
        acl(&["-m", "u:nobody:rw,g:daemon:r", "plain/file"]);
        acl(&["-d", "-m", "u:nobody:rwx,g:daemon:rx,o::-", "default"]);
        acl(&["-m", "u:nobody:rwx", "default"]);
        // With a default list the umask does not count.
        in_thread(|| {
            // SAFETY: an integer; the umask is this thread's own.
            unsafe { libc::umask(0o077) };
            std::fs::write(at.join("default/file"), "contents").unwrap();
            std::fs::create_dir(at.join("default/directory")).unwrap();
            std::fs::write(at.join("default/directory/deeper"), "contents").unwrap();
            std::fs::write(at.join("plain/umask"), "contents").unwrap();
        });
        let answers = as_user(USER, &[], 0o077, || {
            vec![
                code(std::fs::read(at.join("plain/file"))),
                code(std::fs::write(at.join("plain/file"), "mine")),
                code(std::fs::write(at.join("plain/umask"), "mine")),
                code(std::fs::write(at.join("default/file"), "mine")),
                code(std::fs::write(at.join("default/new"), "mine")),
            ]
        });
        // The group's bits are the mask now.
        std::fs::set_permissions(at.join("plain/file"), Permissions::from_mode(0o600)).unwrap();
        let masked = as_user(USER, &[], 0, || code(std::fs::read(at.join("plain/file"))));
        let before = tool(at, "getfacl", &["-Rpn", "plain", "default"]);
        told.push(tool(at, "setfacl", &["-b", "plain/file"]));
        told.push(tool(at, "setfacl", &["-k", "default"]));
        let after = tool(at, "getfacl", &["-Rpn", "plain", "default"]);
        (told, answers, masked, before, after)
    });
    assert_eq!(told.1[0], None);
    assert_eq!(told.2, Some(Errno::ACCESS));
    assert!(told.3.contains("default:user:65534:rwx"), "{}", told.3);
    let there = tool(&area.b(""), "getfacl", &["-Rpn", "plain", "default"]);
    assert_eq!(there, told.4);
    area.identical();
}
