//! Files and directories that have lost their last name while somebody uses them.

use std::fs::File;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};

use rustix::fs::{FallocateFlags, Mode, XattrFlags};

use crate::area::{Area, code, in_thread, noise};

#[test]
fn a_removed_file_goes_on_for_those_who_have_it_open() {
    let area = Area::new("unlinked-file");
    area.same(|at| {
        let path = at.join("file");
        std::fs::write(&path, noise(1, 20_000)).unwrap();
        let file = File::options().read(true).write(true).open(&path).unwrap();
        let reader = File::open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        file.write_all_at(b"after", 30_000).unwrap();
        file.set_len(40_000).unwrap();
        file.set_len(35_000).unwrap();
        rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, 50_000).unwrap();
        rustix::fs::fchmod(&file, Mode::from_raw_mode(0o640)).unwrap();
        rustix::fs::fchown(&file, None, Some(rustix::fs::Gid::from_raw(5))).unwrap();
        rustix::fs::fsetxattr(&file, "user.mine", b"kept", XattrFlags::empty()).unwrap();
        file.sync_all().unwrap();
        let mut value = [0; 16];
        let length = rustix::fs::fgetxattr(&file, "user.mine", &mut value[..]).unwrap();
        let meta = reader.metadata().unwrap();
        let mut all = Vec::new();
        (&reader).read_to_end(&mut all).unwrap();
        // Opened again through `/proc`, it is the same file.
        let again = File::options()
            .read(true)
            .write(true)
            .open(format!("/proc/self/fd/{}", file.as_raw_fd()))
            .unwrap();
        again.write_all_at(b"again", 0).unwrap();
        let mut start = [0; 5];
        reader.read_exact_at(&mut start, 0).unwrap();
        (
            (meta.nlink(), meta.len(), meta.mode(), meta.gid()),
            all,
            value[..length].to_vec(),
            start,
            code(std::fs::metadata(&path)),
        )
    });
    area.identical();
}

#[test]
fn its_name_may_lead_to_another_file_meanwhile() {
    let area = Area::new("unlinked-name");
    area.same(|at| {
        let path = at.join("file");
        let old: Vec<_> = (0..20u8)
            .map(|n| {
                let _ = std::fs::remove_file(&path);
                let file = File::options()
                    .read(true)
                    .write(true)
                    .create_new(true)
                    .open(&path)
                    .unwrap();
                file.write_all_at(&[n; 100], 0).unwrap();
                file
            })
            .collect();
        let tell = |file: &File| {
            let mut byte = [0];
            file.write_all_at(b"!", 99).unwrap();
            file.read_exact_at(&mut byte, 0).unwrap();
            (byte[0], file.metadata().unwrap().nlink())
        };
        old.iter().map(tell).collect::<Vec<_>>()
    });
    let last = std::fs::read(area.b("file")).unwrap();
    assert_eq!((last[0], last[99]), (19, b'!'));
    area.identical();
}

#[test]
fn many_removed_files_stay_usable_at_once() {
    let area = Area::new("unlinked-many");
    let files: Vec<_> = (0..500u64)
        .map(|n| {
            let path = area.a(n.to_string());
            let file = File::options()
                .read(true)
                .write(true)
                .create_new(true)
                .open(&path)
                .unwrap();
            file.write_all_at(&n.to_le_bytes(), 0).unwrap();
            std::fs::remove_file(path).unwrap();
            file
        })
        .collect();
    for (n, file) in files.iter().enumerate() {
        let mut number = [0; 8];
        file.read_exact_at(&mut number, 0).unwrap();
        assert_eq!(u64::from_le_bytes(number), n as u64);
    }
    assert_eq!(std::fs::read_dir(area.b("")).unwrap().count(), 0);
    area.identical();
}

#[test]
fn a_removed_directory_is_an_empty_place_for_those_who_are_in_it() {
    let area = Area::new("unlinked-directory");
    area.same(|at| {
        let path = at.join("directory");
        std::fs::create_dir(&path).unwrap();
        let open = File::open(&path).unwrap();
        in_thread(|| {
            std::env::set_current_dir(&path).unwrap();
            std::fs::remove_dir(&path).unwrap();
            let meta = std::fs::metadata(".").unwrap();
            (
                code(std::env::current_dir()),
                code(File::create("file")),
                code(std::fs::create_dir("inner")),
                code(std::fs::metadata("../directory")),
                meta.nlink(),
                open.metadata().unwrap().nlink(),
                std::fs::read_dir(".").unwrap().count(),
                code(std::fs::rename("/proc/self/stat", "here")),
                // Up from it is what held it.
                std::fs::metadata("..").unwrap().ino() == std::fs::metadata(at).unwrap().ino(),
            )
        })
    });
    area.identical();
}
