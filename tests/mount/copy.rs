//! `copy_file_range`: both nodes copy by themselves; the data does not travel.

use std::fs::File;
use std::path::Path;

use rustix::fs::copy_file_range;
use rustix::io::Errno;

use crate::area::{Area, answer, noise};

fn file_of(path: &Path, contents: &[u8]) -> File {
    std::fs::write(path, contents).unwrap();
    File::options().read(true).write(true).open(path).unwrap()
}

/// Copies until nothing is left; returns the bytes copied.
fn copy(from: &File, mut a: u64, to: &File, mut b: u64, length: usize) -> Result<usize, Errno> {
    let mut done = 0;
    while done < length {
        match copy_file_range(from, Some(&mut a), to, Some(&mut b), length - done)? {
            0 => break,
            n => done += n,
        }
    }
    Ok(done)
}

fn bytes_sent(area: &Area) -> u64 {
    area.pair.b.status().unwrap()["applied_bytes"]
        .as_u64()
        .unwrap()
}

#[test]
fn a_copy_is_made_on_both_nodes_without_sending_the_data() {
    let area = Area::new("copy-replicated");
    let contents = noise(1, (20 << 20) + 77);
    let from = file_of(&area.a("from"), &contents);
    let to = file_of(&area.a("to"), b"before");
    let before = bytes_sent(&area);
    assert_eq!(copy(&from, 0, &to, 3, contents.len()), Ok(contents.len()));
    let sent = bytes_sent(&area) - before;
    assert!(sent < 64 << 10, "{sent} bytes were sent for a copy");
    let there = std::fs::read(area.b("to")).unwrap();
    assert!(there[..3] == *b"bef" && there[3..] == contents);
    // What a program reads through the page cache is the copy, too.
    assert!(std::fs::read(area.a("to")).unwrap() == there);
    area.identical();
}

#[test]
fn every_range_is_copied_or_refused_as_on_a_plain_file_system() {
    let area = Area::new("copy-ranges");
    area.same(|at| {
        let from = file_of(&at.join("from"), &noise(2, 100_000));
        let to = file_of(&at.join("to"), &noise(3, 50_000));
        let same = file_of(&at.join("same"), &noise(4, 100_000));
        let reader = File::open(at.join("to")).unwrap();
        let told = vec![
            copy(&from, 1, &to, 2, 5000),
            copy(&from, 90_000, &to, 0, 20_000),
            copy(&from, 100_000, &to, 0, 10),
            copy(&from, 200_000, &to, 0, 10),
            copy(&from, 0, &to, 300_000, 4096),
            copy(&from, 0, &to, 0, 0),
            copy(&same, 0, &same, 50_000, 50_000),
            copy(&same, 0, &same, 10, 50_000),
            copy(&same, 0, &same, 200_000, 100_000),
            copy(&from, 0, &reader, 0, 10),
        ];
        let files = ["from", "to", "same"].map(|n| std::fs::read(at.join(n)).unwrap());
        (told, files)
    });
    area.identical();
}

#[test]
fn a_copy_out_of_a_removed_file_arrives_as_data() {
    let area = Area::new("copy-unlinked");
    let contents = noise(5, 3 << 20);
    let from = file_of(&area.a("from"), &contents);
    let to = file_of(&area.a("to"), b"");
    std::fs::remove_file(area.a("from")).unwrap();
    assert_eq!(copy(&from, 0, &to, 0, contents.len()), Ok(contents.len()));
    assert!(std::fs::read(area.b("to")).unwrap() == contents);
    area.identical();
}

#[test]
fn copies_and_writes_at_the_same_time_leave_the_same_on_both_nodes() {
    let area = Area::new("copy-busy");
    let from = file_of(&area.a("from"), &noise(6, 1 << 20));
    let to = file_of(&area.a("to"), &vec![0; 1 << 20]);
    std::thread::scope(|s| {
        s.spawn(|| {
            for n in 0..200u64 {
                copy(&from, n * 997, &to, n * 1201, 100_000).unwrap();
                copy(&to, n * 501, &from, n * 77, 30_000).unwrap();
            }
        });
        for (file, seed) in [(&from, 7), (&to, 8)] {
            s.spawn(move || {
                for n in 0..400u64 {
                    let data = noise(seed + n, 3000);
                    std::os::unix::fs::FileExt::write_all_at(file, &data, n * 2003).unwrap();
                }
            });
        }
    });
    area.identical();
}

#[test]
fn sharing_blocks_between_files_is_answered_as_ext4_does() {
    let area = Area::new("copy-clone");
    let from = file_of(&area.a("from"), b"contents");
    let to = file_of(&area.a("to"), b"");
    // `FICLONE` of `linux/fs.h`; `cp --reflink=auto` then copies.
    let ficlone: libc::Ioctl = 0x4004_9409;
    let from = std::os::fd::AsRawFd::as_raw_fd(&from);
    // SAFETY: two open descriptors; no memory is involved.
    let done = answer(unsafe { libc::ioctl(std::os::fd::AsRawFd::as_raw_fd(&to), ficlone, from) });
    assert_eq!(done, Err(Errno::OPNOTSUPP));
    area.identical();
}
