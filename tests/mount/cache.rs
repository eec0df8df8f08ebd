//! One writer past the page cache, readers through it: all see the same bytes.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rustix::mm::MapFlags;

use crate::area::{Area, answer};
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

/// The kernel's own interface for asynchronous I/O (`io_submit(2)`), as virtual machines
/// use it.
struct Queue(libc::c_ulong);

/// `struct iocb` of `linux/aio_abi.h`.
#[repr(C)]
#[derive(Default)]
struct Iocb {
    data: u64,
    key: u32,
    flags: u32,
    opcode: u16,
    priority: i16,
    fd: u32,
    buffer: u64,
    length: u64,
    offset: i64,
    more: [u64; 2],
}

/// `struct io_event`.
#[repr(C)]
#[derive(Default)]
struct Event {
    data: u64,
    object: u64,
    result: i64,
    result2: i64,
}

impl Queue {
    fn new() -> Queue {
        let mut queue = 0;
        // SAFETY: the call stores one number where it is told to.
        let rc = unsafe { libc::syscall(libc::SYS_io_setup, 8, &raw mut queue) };
        assert_eq!(answer(rc), Ok(0));
        Queue(queue)
    }

    /// Writes a block and waits until that is done.
    fn write(&self, file: &File, block: &Block, offset: u64) {
        /// `IOCB_CMD_PWRITE`.
        const PWRITE: u16 = 1;
        let mut call = Iocb {
            opcode: PWRITE,
            fd: file.as_raw_fd() as u32,
            buffer: block.0.as_ptr() as u64,
            length: BLOCK as u64,
            offset: offset as i64,
            ..Iocb::default()
        };
        let mut calls = [&raw mut call];
        let mut event = Event::default();
        // SAFETY: the queue is open; the call and its buffer live until its event has come.
        unsafe {
            let rc = libc::syscall(libc::SYS_io_submit, self.0, 1, calls.as_mut_ptr());
            assert_eq!(answer(rc), Ok(1));
            let none = std::ptr::null_mut::<libc::timespec>();
            let rc = libc::syscall(libc::SYS_io_getevents, self.0, 1, 1, &raw mut event, none);
            assert_eq!(answer(rc), Ok(1));
        }
        assert_eq!(event.result, BLOCK as i64);
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        // SAFETY: the queue is open and empty.
        unsafe { libc::syscall(libc::SYS_io_destroy, self.0) };
    }
}

/// A direct writer by `write` against readers through the cache, with files and mappings.
fn race(area: &Area, rounds: u64, write: impl Fn(&File, &Block, u64)) {
    let writer = direct(area);
    let stop = AtomicBool::new(false);
    // What every block holds at least: written, and the write has returned.
    let written: Vec<AtomicU64> = (0..BLOCKS).map(|_| AtomicU64::new(0)).collect();
    std::thread::scope(|s| {
        for worker in 0..3u64 {
            let (area, stop, written) = (area, &stop, &written);
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
            for n in 1..rounds {
                let at = n % 4;
                write(&writer, &Block::of(n), at * BLOCK as u64);
                written[at as usize].store(n, Ordering::Release);
            }
        }));
        stop.store(true, Ordering::Release);
        done.unwrap();
    });
    area.identical();
}

#[test]
fn nothing_old_stays_in_the_cache_when_readers_race_with_an_asynchronous_direct_writer() {
    let area = prepared("cache-race-asynchronous");
    let queue = Queue::new();
    race(&area, 6000, |file, block, offset| {
        queue.write(file, block, offset)
    });
}

#[test]
fn nothing_old_stays_in_the_cache_when_readers_race_with_a_direct_writer() {
    let area = prepared("cache-race");
    race(&area, 6000, |file, block, offset| {
        file.write_all_at(&block.0, offset).unwrap();
    });
}
