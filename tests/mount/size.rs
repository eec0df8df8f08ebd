//! Sizes, space and holes: truncating, allocating, punching, seeking, syncing.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{FallocateFlags, SeekFrom, fallocate, ftruncate, seek};
use rustix::io::Errno;

use crate::area::{Area, answer, code, noise};

fn file_of(path: &Path, contents: &[u8]) -> File {
    std::fs::write(path, contents).unwrap();
    File::options().read(true).write(true).open(path).unwrap()
}

#[test]
fn what_is_cut_off_and_grown_back_is_zero() {
    let area = Area::new("size-truncate");
    area.same(|at| {
        let path = at.join("file");
        let file = file_of(&path, &noise(1, 100_000));
        let mut told = Vec::new();
        for size in [50_001, 90_000, 4096, 4095, 4097, 0, 1, 200_000, 150_000] {
            ftruncate(&file, size).unwrap();
            told.push(std::fs::read(&path).unwrap());
            rustix::fs::fsync(&file).unwrap();
        }
        told
    });
    assert_eq!(std::fs::metadata(area.b("file")).unwrap().len(), 150_000);
    area.identical();
    area.same_space();
}

#[test]
fn truncating_what_cannot_be_truncated_is_refused_in_the_same_words() {
    let area = Area::new("size-refused");
    area.same(|at| {
        drop(file_of(&at.join("file"), b"contents"));
        std::fs::create_dir(at.join("directory")).unwrap();
        std::os::unix::fs::symlink("file", at.join("link")).unwrap();
        let path = |name| {
            let path = at.join(name);
            std::ffi::CString::new(path.into_os_string().into_encoded_bytes()).unwrap()
        };
        // SAFETY: NUL-terminated paths that outlive the calls.
        let truncate = |name, size| answer(unsafe { libc::truncate(path(name).as_ptr(), size) });
        (
            truncate("directory", 0),
            truncate("nothing", 0),
            truncate("file", -1),
            truncate("link", 3),
            code(File::open(at.join("file")).unwrap().set_len(1)),
            std::fs::read(at.join("file")).unwrap(),
        )
    });
    area.identical();
}

const KEEP: FallocateFlags = FallocateFlags::KEEP_SIZE;
const PUNCH: FallocateFlags = FallocateFlags::PUNCH_HOLE;
const ZERO: FallocateFlags = FallocateFlags::ZERO_RANGE;

#[test]
fn space_is_allocated_punched_and_zeroed_as_on_a_plain_file_system() {
    let area = Area::new("size-allocate");
    let calls = [
        ("grow", FallocateFlags::empty(), 0, 300_000),
        ("inside", FallocateFlags::empty(), 10, 50_000),
        ("behind", FallocateFlags::empty(), 500_000, 50_000),
        ("keep", KEEP, 0, 300_000),
        ("keep-behind", KEEP, 1 << 20, 8192),
        ("punch", PUNCH | KEEP, 8192, 32_768),
        ("punch-odd", PUNCH | KEEP, 5000, 20_001),
        ("punch-end", PUNCH | KEEP, 90_000, 1 << 20),
        ("punch-beyond", PUNCH | KEEP, 200_000, 10_000),
        ("zero", ZERO, 5000, 30_000),
        ("zero-grow", ZERO, 90_000, 90_000),
        ("zero-keep", ZERO | KEEP, 90_000, 90_000),
        ("nothing", FallocateFlags::empty(), 10, 0),
        ("punch-alone", PUNCH, 0, 4096),
    ];
    let told = area.alike(|at| {
        calls.map(|(name, flags, offset, length)| {
            let file = file_of(&at.join(name), &noise(2, 100_000));
            // On the disk before, or delayed allocation would show as other space.
            file.sync_all().unwrap();
            let done = fallocate(&file, flags, offset, length);
            file.sync_all().unwrap();
            let blocks = rustix::fs::fstat(&file).unwrap().st_blocks;
            (name, done, std::fs::read(at.join(name)).unwrap(), blocks)
        })
    });
    assert_eq!(told[5].1, Ok(()));
    assert!(told[5].2[8192..40_960].iter().all(|b| *b == 0));
    for (name, ..) in told {
        let there = std::fs::metadata(area.b(name)).unwrap().len();
        assert_eq!(there, std::fs::metadata(area.a(name)).unwrap().len());
    }
    area.identical();
    area.same_space();
}

#[test]
fn moving_the_rest_of_a_file_is_refused_and_nothing_moves() {
    let area = Area::new("size-collapse");
    let contents = noise(3, 100_000);
    let file = file_of(&area.a("file"), &contents);
    for flags in [
        FallocateFlags::COLLAPSE_RANGE,
        FallocateFlags::INSERT_RANGE,
        FallocateFlags::UNSHARE_RANGE,
    ] {
        assert_eq!(fallocate(&file, flags, 0, 4096), Err(Errno::OPNOTSUPP));
    }
    assert!(std::fs::read(area.a("file")).unwrap() == contents);
    area.identical();
    area.same_space();
}

/// Where data and holes begin, from the start to the end of the file.
fn layout(file: &File) -> Vec<(bool, Result<u64, Errno>)> {
    let (mut at, mut data, mut found) = (0, true, Vec::new());
    loop {
        let next = seek(
            file,
            if data {
                SeekFrom::Data(at)
            } else {
                SeekFrom::Hole(at)
            },
        );
        found.push((data, next));
        match next {
            Ok(place) => at = place,
            Err(_) => return found,
        }
        data = !data;
    }
}

#[test]
fn holes_are_found_where_they_are_on_both_nodes() {
    let area = Area::new("size-seek");
    let told = area.alike(|at| {
        let file = file_of(&at.join("file"), b"");
        for offset in [0u64, 100_000, 1 << 20, (5 << 20) + 123] {
            file.write_all_at(&noise(offset, 10_000), offset).unwrap();
        }
        file.set_len(8 << 20).unwrap();
        file.sync_all().unwrap();
        let whole = layout(&file);
        fallocate(&file, PUNCH | KEEP, 1 << 20, 8192).unwrap();
        file.sync_all().unwrap();
        (
            whole,
            layout(&file),
            seek(&file, SeekFrom::Data(9 << 20)),
            seek(&file, SeekFrom::Hole(9 << 20)),
            seek(&file, SeekFrom::Hole(8 << 20)),
            seek(&file, SeekFrom::End(-100)),
            seek(&file, SeekFrom::Current(-(9 << 20))),
        )
    });
    assert!(told.0.len() > 8, "no holes to look for: {told:?}");
    let there = File::open(area.b("file")).unwrap();
    assert_eq!(layout(&there), told.1);
    area.identical();
    area.same_space();
}

#[test]
fn every_way_to_sync_is_accepted_where_it_is_elsewhere() {
    let area = Area::new("size-sync");
    area.same(|at| {
        let file = file_of(&at.join("file"), &noise(4, 50_000));
        let reader = File::open(at.join("file")).unwrap();
        std::fs::create_dir(at.join("directory")).unwrap();
        let directory = File::open(at.join("directory")).unwrap();
        let top = File::open(at).unwrap();
        let path = rustix::fs::open(
            at.join("file"),
            rustix::fs::OFlags::PATH,
            rustix::fs::Mode::empty(),
        )
        .unwrap();
        (
            rustix::fs::fsync(&file),
            rustix::fs::fdatasync(&file),
            rustix::fs::fsync(&reader),
            rustix::fs::fsync(&directory),
            rustix::fs::fdatasync(&directory),
            rustix::fs::fsync(&top),
            rustix::fs::syncfs(&top),
            rustix::fs::fsync(&path),
            // SAFETY: an open descriptor and integers.
            answer(unsafe {
                libc::sync_file_range(
                    std::os::fd::AsRawFd::as_raw_fd(&file),
                    0,
                    8192,
                    libc::SYNC_FILE_RANGE_WRITE | libc::SYNC_FILE_RANGE_WAIT_AFTER,
                )
            }),
        )
    });
    area.identical();
}
