//! Opening: what each flag means, who is refused, and appending.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;

use crate::area::{Area, code};

/// What is there, for every flag to meet.
fn furnish(at: &Path) {
    std::fs::write(at.join("file"), "contents").unwrap();
    std::fs::create_dir(at.join("directory")).unwrap();
    for (name, target) in [
        ("to-file", "file"),
        ("to-directory", "directory"),
        ("dangling", "made-through-a-link"),
        ("loop", "loop"),
    ] {
        std::os::unix::fs::symlink(target, at.join(name)).unwrap();
    }
}

#[test]
fn every_flag_meets_every_kind_of_object_as_on_a_plain_file_system() {
    let area = Area::new("open-flags");
    let flags = [
        OFlags::RDONLY,
        OFlags::WRONLY,
        OFlags::RDWR,
        OFlags::RDONLY | OFlags::NOFOLLOW,
        OFlags::RDWR | OFlags::NOFOLLOW,
        OFlags::RDONLY | OFlags::DIRECTORY,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW,
        OFlags::RDWR | OFlags::CREATE | OFlags::EXCL,
        OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW,
        OFlags::PATH,
        OFlags::PATH | OFlags::NOFOLLOW,
        OFlags::WRONLY | OFlags::APPEND,
        OFlags::RDWR | OFlags::SYNC,
        OFlags::RDWR | OFlags::DSYNC,
        OFlags::RDWR | OFlags::DIRECT,
        OFlags::RDONLY | OFlags::NOATIME,
        OFlags::RDONLY | OFlags::CREATE,
        OFlags::RDWR | OFlags::CREATE | OFlags::TRUNC,
    ];
    let names = [
        "file",
        "directory",
        "to-file",
        "to-directory",
        "dangling",
        "loop",
        "new",
        "file/below",
        "nowhere/below",
        "file/",
        "directory/",
    ];
    let told = area.alike(|at| {
        let mut told = Vec::new();
        for (n, flags) in flags.into_iter().enumerate() {
            let at = at.join(n.to_string());
            std::fs::create_dir(&at).unwrap();
            furnish(&at);
            for name in names {
                let opened = open(at.join(name), flags, Mode::from_raw_mode(0o640));
                told.push((n, name, opened.map(drop)));
            }
            let size = std::fs::metadata(at.join("file")).unwrap().len();
            told.push((n, "size", if size == 8 { Ok(()) } else { Err(Errno::FBIG) }));
        }
        told
    });
    assert!(told.contains(&(3, "to-file", Err(Errno::LOOP))));
    assert!(told.contains(&(7, "file", Err(Errno::EXIST))));
    assert!(told.contains(&(9, "file", Ok(()))));
    area.identical();
}

#[test]
fn a_path_descriptor_names_a_file_without_opening_it() {
    let area = Area::new("open-path");
    std::fs::write(area.a("file"), "contents").unwrap();
    std::fs::write(area.plain("file"), "contents").unwrap();
    area.same(|at| {
        let file = open(at.join("file"), OFlags::PATH, Mode::empty()).unwrap();
        let mut buffer = [0; 8];
        (
            rustix::io::read(&file, &mut buffer).map(drop),
            rustix::io::write(&file, b"no"),
            rustix::fs::fchmod(&file, Mode::from_raw_mode(0o600)),
            rustix::fs::fstat(&file).map(|s| (s.st_size, s.st_nlink)),
            // Through `/proc` it can be opened after all.
            std::fs::read_to_string(format!(
                "/proc/self/fd/{}",
                std::os::fd::AsRawFd::as_raw_fd(&file)
            ))
            .unwrap(),
        )
    });
    area.identical();
}

#[test]
fn files_without_a_name_are_refused_in_the_words_programs_know() {
    let area = Area::new("open-tmpfile");
    let opened = open(
        area.a(""),
        OFlags::RDWR | OFlags::TMPFILE,
        Mode::from_raw_mode(0o600),
    );
    // tmpfile(3) and others take this for "use a name then".
    assert_eq!(opened.map(drop), Err(Errno::OPNOTSUPP));
    area.identical();
}

/// Appends `count` records of `size` bytes from each of four descriptors.
fn append(path: &Path, size: usize, count: usize, flags: i32) {
    std::thread::scope(|s| {
        for writer in 0..4u8 {
            s.spawn(move || {
                let mut file = File::options()
                    .append(true)
                    .create(true)
                    .custom_flags(flags)
                    .open(path)
                    .unwrap();
                // Aligned, for what bypasses the page cache.
                let layout = std::alloc::Layout::from_size_align(size, 4096).unwrap();
                // SAFETY: the layout has a size; the memory is zeroed, freed below with
                // the same layout, and not used after it.
                unsafe {
                    let memory = std::alloc::alloc_zeroed(layout);
                    assert!(!memory.is_null());
                    let record = std::slice::from_raw_parts_mut(memory, size);
                    for n in 0..count {
                        record.fill(b'a' + writer);
                        record[..8].copy_from_slice(&(n as u64).to_le_bytes());
                        assert_eq!(file.write(record).unwrap(), size);
                    }
                    std::alloc::dealloc(memory, layout);
                }
            });
        }
    });
}

/// Every record is there once, those of each writer in their order.
fn check_appended(path: &Path, size: usize, count: usize) {
    let bytes = std::fs::read(path).unwrap();
    assert_eq!(bytes.len(), 4 * size * count);
    let mut next = [0u64; 4];
    for record in bytes.chunks(size) {
        let writer = record[8] - b'a';
        assert!(
            record[8..].iter().all(|b| *b == record[8]),
            "a torn record of writer {writer}"
        );
        let n = u64::from_le_bytes(record[..8].try_into().unwrap());
        assert_eq!(n, next[usize::from(writer)], "writer {writer}");
        next[usize::from(writer)] += 1;
    }
    assert_eq!(next, [count as u64; 4]);
}

#[test]
fn appenders_in_parallel_never_overwrite_each_other() {
    let area = Area::new("open-append");
    for (name, size, count, flags) in [
        ("buffered", 100, 500, 0),
        ("direct", 4096, 200, libc::O_DIRECT),
        ("stable", 512, 20, libc::O_DSYNC),
    ] {
        append(&area.a(name), size, count, flags);
        check_appended(&area.a(name), size, count);
        check_appended(&area.b(name), size, count);
    }
    area.identical();
}

#[test]
fn an_appending_descriptor_appends_wherever_it_is_told_to_write() {
    let area = Area::new("open-append-at");
    area.same(|at| {
        let path = at.join("file");
        std::fs::write(&path, "0123456789").unwrap();
        let mut file = File::options().read(true).append(true).open(&path).unwrap();
        // pwrite(2): with O_APPEND the offset is ignored in Linux.
        file.write_all_at(b"abc", 0).unwrap();
        // Cut short by another descriptor: the end is where it is now.
        File::options()
            .write(true)
            .open(&path)
            .unwrap()
            .set_len(4)
            .unwrap();
        file.write_all(b"def").unwrap();
        let mut all = String::new();
        File::open(&path).unwrap().read_to_string(&mut all).unwrap();
        all
    });
    assert_eq!(std::fs::read(area.b("file")).unwrap(), b"0123def");
    area.identical();
}

#[test]
fn truncating_opens_empty_the_file_on_both_nodes() {
    let area = Area::new("open-truncate");
    for flags in [OFlags::WRONLY, OFlags::RDWR, OFlags::RDONLY] {
        std::fs::write(area.a("file"), vec![7; 100_000]).unwrap();
        let held = File::open(area.a("file")).unwrap();
        drop(open(area.a("file"), flags | OFlags::TRUNC, Mode::empty()).unwrap());
        assert_eq!(held.metadata().unwrap().len(), 0);
        assert_eq!(std::fs::metadata(area.b("file")).unwrap().len(), 0);
    }
    area.identical();
}

#[test]
fn direct_and_stable_writes_are_on_both_nodes_when_they_return() {
    let area = Area::new("open-stable");
    #[repr(align(4096))]
    struct Block([u8; 8192]);
    for (name, flags) in [
        ("sync", libc::O_SYNC),
        ("dsync", libc::O_DSYNC),
        ("direct", libc::O_DIRECT),
        ("direct-sync", libc::O_DIRECT | libc::O_SYNC),
        ("direct-dsync", libc::O_DIRECT | libc::O_DSYNC),
    ] {
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .custom_flags(flags)
            .open(area.a(name))
            .unwrap();
        // Without an access time of its own: when it is read, its times may be settled already.
        let store = File::options()
            .read(true)
            .custom_flags(libc::O_NOATIME)
            .open(area.pair.b.data().join("open-stable").join(name))
            .unwrap();
        for n in 0..20u8 {
            let block = Block([n + 1; 8192]);
            file.write_all_at(&block.0, u64::from(n) * 4096).unwrap();
            let mut there = Block([0; 8192]);
            store
                .read_exact_at(&mut there.0, u64::from(n) * 4096)
                .unwrap();
            assert!(there.0 == block.0, "{name}, write {n}");
            let mut back = Block([0; 8192]);
            file.read_exact_at(&mut back.0, u64::from(n) * 4096)
                .unwrap();
            assert!(back.0 == block.0);
        }
    }
    area.identical();
}

#[test]
fn descriptors_for_one_direction_refuse_the_other() {
    let area = Area::new("open-direction");
    area.same(|at| {
        std::fs::write(at.join("file"), "contents").unwrap();
        let reader = File::open(at.join("file")).unwrap();
        let writer = File::options().write(true).open(at.join("file")).unwrap();
        (
            code(reader.write_at(b"x", 0)),
            code(reader.set_len(1)),
            code(writer.read_at(&mut [0], 0)),
            rustix::fs::fallocate(reader.as_fd(), rustix::fs::FallocateFlags::empty(), 0, 10),
        )
    });
    area.identical();
}
