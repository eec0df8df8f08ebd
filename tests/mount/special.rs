//! Device nodes, fifos and sockets: made on both nodes, and usable.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::os::unix::net::{UnixListener, UnixStream};

use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};
use rustix::io::Errno;

use crate::area::{Area, USER, as_user, code};

#[test]
fn device_nodes_lead_to_their_devices() {
    let area = Area::new("special-devices");
    let mode = Mode::from_raw_mode(0o666);
    area.same(|at| {
        let devices = [
            ("null", FileType::CharacterDevice, makedev(1, 3)),
            ("zero", FileType::CharacterDevice, makedev(1, 5)),
            ("large", FileType::BlockDevice, makedev(4095, 0xf_ffff)),
            ("none", FileType::BlockDevice, makedev(0, 0)),
        ];
        let told = devices.map(|(name, kind, device)| {
            mknodat(CWD, at.join(name), kind, mode, device).unwrap();
            let meta = std::fs::symlink_metadata(at.join(name)).unwrap();
            (meta.rdev(), meta.mode())
        });
        let mut zeros = [1; 100];
        let mut zero = File::open(at.join("zero")).unwrap();
        zero.read_exact(&mut zeros).unwrap();
        std::fs::write(at.join("null"), "gone").unwrap();
        (
            told,
            zeros.to_vec(),
            std::fs::read(at.join("null")).unwrap(),
            code(File::open(at.join("large"))),
            mknodat(CWD, at.join("null"), FileType::Fifo, mode, 0),
        )
    });
    for (name, device) in [("null", makedev(1, 3)), ("large", makedev(4095, 0xf_ffff))] {
        let meta = std::fs::symlink_metadata(area.b(name)).unwrap();
        assert_eq!(meta.rdev(), device);
    }
    area.identical();
}

#[test]
fn every_kind_of_node_can_be_made_by_those_who_may() {
    let area = Area::new("special-kinds");
    area.same(|at| {
        std::fs::set_permissions(at, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
        as_user(USER, &[], 0o027, || {
            [
                FileType::RegularFile,
                FileType::Fifo,
                FileType::Socket,
                FileType::CharacterDevice,
                FileType::BlockDevice,
            ]
            .map(|kind| {
                let path = at.join(format!("{kind:?}"));
                let made = mknodat(CWD, &path, kind, Mode::from_raw_mode(0o666), makedev(1, 3));
                let meta = std::fs::symlink_metadata(&path).ok();
                (made, meta.map(|m| (m.mode(), m.uid(), m.gid())))
            })
        })
    });
    area.identical();
}

#[test]
fn a_fifo_joins_two_sides() {
    let area = Area::new("special-fifo");
    let path = area.a("fifo");
    mknodat(CWD, &path, FileType::Fifo, Mode::RWXU, 0).unwrap();
    // Nobody reads yet.
    let writer = File::options()
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(&path);
    assert_eq!(code(writer), Some(Errno::NXIO));
    let text = std::thread::scope(|s| {
        let reader = s.spawn(|| {
            let mut text = String::new();
            File::open(&path)
                .unwrap()
                .read_to_string(&mut text)
                .unwrap();
            text
        });
        let mut writer = File::options().write(true).open(&path).unwrap();
        writer.write_all(b"from one side ").unwrap();
        writer.write_all(b"to the other").unwrap();
        drop(writer);
        reader.join().unwrap()
    });
    assert_eq!(text, "from one side to the other");
    assert!(
        std::fs::metadata(area.b("fifo"))
            .unwrap()
            .file_type()
            .is_fifo()
    );
    area.identical();
}

#[test]
fn a_socket_is_bound_connected_and_removed() {
    let area = Area::new("special-socket");
    let path = area.a("socket");
    let listener = UnixListener::bind(&path).unwrap();
    assert_eq!(code(UnixListener::bind(&path)), Some(Errno::ADDRINUSE));
    assert_eq!(code(File::open(&path)), Some(Errno::NXIO));
    let mut client = UnixStream::connect(&path).unwrap();
    let (mut server, _) = listener.accept().unwrap();
    client.write_all(b"hello").unwrap();
    let mut heard = [0; 5];
    server.read_exact(&mut heard).unwrap();
    assert_eq!(&heard, b"hello");
    assert!(
        std::fs::metadata(area.b("socket"))
            .unwrap()
            .file_type()
            .is_socket()
    );
    area.identical();
    std::fs::remove_file(&path).unwrap();
    assert_eq!(code(UnixStream::connect(&path)), Some(Errno::NOENT));
    area.identical();
}
