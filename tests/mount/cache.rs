//! One writer past the page cache, readers through it: all see the same bytes.

use std::fs::File;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rustix::mm::MapFlags;

use crate::area::Area;
use crate::mmap::Mapping;

const BLOCK: usize = 4096;
const BLOCKS: u64 = 64;

#[repr(align(4096))]
struct Block([u8; BLOCK]);

impl Block {
    fn of(version: u64) -> Block {
        let mut block = Block([0; BLOCK]);
        for word in block.0.chunks_exact_mut(8) {
            word.copy_from_slice(&version.to_le_bytes());
        }
        block
    }
}

fn version(bytes: &[u8]) -> u64 {
    u64::from_le_bytes(bytes[..8].try_into().unwrap())
}

fn direct(area: &Area) -> File {
    File::options()
        .read(true)
        .write(true)
        .custom_flags(libc::O_DIRECT)
        .open(area.a("file"))
        .unwrap()
}

fn prepared(name: &'static str) -> Area {
    let area = Area::new(name);
    std::fs::write(area.a("file"), vec![0; BLOCK * BLOCKS as usize]).unwrap();
    area
}

#[test]
fn readers_through_the_cache_see_a_direct_write_once_it_has_returned() {
    let area = prepared("cache-in-turn");
    let writer = direct(&area);
    let reader = File::open(area.a("file")).unwrap();
    let map = Mapping::new(&reader, BLOCK * BLOCKS as usize, MapFlags::SHARED, false);
    for n in 1..500u64 {
        let at = n % BLOCKS * BLOCK as u64;
        let mut block = Block([0; BLOCK]);
        // In the cache before it changes.
        reader.read_exact_at(&mut block.0, at).unwrap();
        map.load(at as usize, 8);
        writer.write_all_at(&Block::of(n).0, at).unwrap();
        reader.read_exact_at(&mut block.0, at).unwrap();
        assert_eq!(version(&block.0), n);
        assert_eq!(version(&map.load(at as usize, 8)), n);
        // And one who opens it now, whatever the kernel has kept.
        let again = File::open(area.a("file")).unwrap();
        again.read_exact_at(&mut block.0, at).unwrap();
        assert_eq!(version(&block.0), n);
    }
    area.identical();
}

#[test]
fn nothing_old_stays_in_the_cache_when_readers_race_with_a_direct_writer() {
    let area = prepared("cache-race");
    let writer = direct(&area);
    let stop = AtomicBool::new(false);
    // What every block holds at least: written, and the write has returned.
    let written: Vec<AtomicU64> = (0..BLOCKS).map(|_| AtomicU64::new(0)).collect();
    std::thread::scope(|s| {
        for worker in 0..3u64 {
            let (area, stop, written) = (&area, &stop, &written);
            s.spawn(move || {
                let reader = File::open(area.a("file")).unwrap();
                let map = Mapping::new(&reader, BLOCK * BLOCKS as usize, MapFlags::SHARED, false);
                let mut block = vec![0; BLOCK];
                let mut n = worker;
                while !stop.load(Ordering::Acquire) {
                    n = n
                        .wrapping_mul(6_364_136_223_846_793_005)
                        .wrapping_add(1_442_695_040_888_963_407);
                    let at = (n >> 33) % 4;
                    let least = written[at as usize].load(Ordering::Acquire);
                    reader.read_exact_at(&mut block, at * BLOCK as u64).unwrap();
                    let found = version(&block);
                    assert!(found >= least, "read {found} of block {at} after {least}");
                    let least = written[at as usize].load(Ordering::Acquire);
                    let found = version(&map.load((at * BLOCK as u64) as usize, 8));
                    assert!(found >= least, "mapped {found} of block {at} after {least}");
                }
            });
        }
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for n in 1..6000u64 {
                let at = n % 4;
                writer
                    .write_all_at(&Block::of(n).0, at * BLOCK as u64)
                    .unwrap();
                written[at as usize].store(n, Ordering::Release);
            }
        }));
        stop.store(true, Ordering::Release);
        done.unwrap();
    });
    area.identical();
}
