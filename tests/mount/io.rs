//! Reading and writing at any offset and of any length.

use std::fs::File;
use std::io::{IoSlice, IoSliceMut, Read};
use std::os::unix::fs::FileExt;

use rustix::io::{Errno, preadv, pwrite, pwritev};

use crate::area::{Area, noise};

fn new_file(path: std::path::PathBuf) -> File {
    File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(path)
        .unwrap()
}

#[test]
fn writes_at_odd_offsets_leave_the_bytes_they_should() {
    let area = Area::new("io-odd");
    area.same(|at| {
        let file = new_file(at.join("file"));
        let mut told = Vec::new();
        let mut offset = 1u64;
        for n in 0..200u64 {
            let data = noise(n, (n * 37 % 9000) as usize);
            told.push(file.write_at(&data, offset).unwrap());
            offset = (offset * 31 + 4093) % 300_000;
        }
        told.push(file.metadata().unwrap().len() as usize);
        (told, std::fs::read(at.join("file")).unwrap())
    });
    let here = std::fs::read(area.a("file")).unwrap();
    assert!(here == std::fs::read(area.b("file")).unwrap());
    area.identical();
}

#[test]
fn scattered_and_gathered_buffers_are_one_write_and_one_read() {
    let area = Area::new("io-vectors");
    area.same(|at| {
        let file = new_file(at.join("file"));
        let pieces: Vec<_> = (0..1000u64).map(|n| noise(n, (n % 97) as usize)).collect();
        let slices: Vec<_> = pieces.iter().map(|p| IoSlice::new(p)).collect();
        let written = pwritev(&file, &slices, 4095).unwrap();
        let (mut one, mut two) = (vec![0; 1000], vec![0; written]);
        let read = preadv(
            &file,
            &mut [IoSliceMut::new(&mut one), IoSliceMut::new(&mut two)],
            4000,
        )
        .unwrap();
        (written, read, one, two)
    });
    area.identical();
}

#[test]
fn the_end_of_a_file_is_where_reads_end() {
    let area = Area::new("io-end");
    area.same(|at| {
        let file = new_file(at.join("file"));
        file.write_all_at(b"0123456789", 0).unwrap();
        let mut buffer = [0; 64];
        let mut told = Vec::new();
        for offset in [0, 5, 9, 10, 11, 4096, 1 << 40] {
            told.push(file.read_at(&mut buffer, offset).unwrap());
        }
        told
    });
    // What a write beyond the end leaves in between is zero.
    area.same(|at| {
        let file = File::options()
            .read(true)
            .write(true)
            .open(at.join("file"))
            .unwrap();
        file.write_all_at(b"far", 123_457).unwrap();
        let mut all = Vec::new();
        (&file).read_to_end(&mut all).unwrap();
        (file.metadata().unwrap().len(), all)
    });
    area.identical();
}

#[test]
fn one_call_writes_many_megabytes() {
    let area = Area::new("io-large");
    let data = noise(1, (9 << 20) + 13);
    let file = new_file(area.a("file"));
    assert_eq!(pwrite(&file, &data, 3).unwrap(), data.len());
    let mut back = vec![0; data.len() + 100];
    assert_eq!(file.read_at(&mut back, 3).unwrap(), data.len());
    assert!(back[..data.len()] == data);
    assert!(std::fs::read(area.b("file")).unwrap()[3..] == data);
    area.identical();
}

#[test]
fn a_write_of_nothing_changes_nothing() {
    let area = Area::new("io-nothing");
    area.same(|at| {
        let file = new_file(at.join("file"));
        file.write_all_at(b"x", 0).unwrap();
        let before = file.metadata().unwrap().modified().unwrap();
        let written = pwrite(&file, b"", 1000).unwrap();
        let after = file.metadata().unwrap();
        (written, after.len(), after.modified().unwrap() == before)
    });
    area.identical();
}

#[test]
fn a_file_too_large_for_the_store_is_refused_and_stays_as_it_was() {
    let area = Area::new("io-too-large");
    // ext4 ends at 16 TiB less a block, others later: ask far beyond each of them.
    let beyond = i64::MAX as u64 - 8192;
    let before = area.pair.a.status().unwrap()["generation"].clone();
    let told = area.alike(|at| {
        let file = new_file(at.join("file"));
        file.write_all_at(b"small", 0).unwrap();
        let told = (
            pwrite(&file, b"x", beyond),
            rustix::fs::ftruncate(&file, beyond),
            pwrite(&file, b"x", u64::MAX),
        );
        (told, file.metadata().unwrap().len())
    });
    assert_eq!(told.0.0, Err(Errno::FBIG));
    // What the application is refused is no reason to lose the peer.
    let after = area.pair.a.status().unwrap()["generation"].clone();
    assert_eq!(after, before);
    assert_eq!(std::fs::read(area.b("file")).unwrap(), b"small");
    area.identical();
}

#[test]
fn two_writers_of_overlapping_ranges_leave_the_same_bytes_on_both_nodes() {
    let area = Area::new("io-overlap");
    drop(new_file(area.a("file")));
    std::thread::scope(|s| {
        for writer in 0..4u64 {
            let path = area.a("file");
            s.spawn(move || {
                let file = File::options().write(true).open(path).unwrap();
                for n in 0..300 {
                    let data = vec![b'a' + writer as u8; 1000 + (n % 7) * 700];
                    file.write_all_at(&data, (n as u64 * 911 + writer * 333) % 20_000)
                        .unwrap();
                }
            });
        }
    });
    let here = std::fs::read(area.a("file")).unwrap();
    assert!(here == std::fs::read(area.b("file")).unwrap());
    area.identical();
}
