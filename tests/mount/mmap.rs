//! Memory mappings: what is stored through them reaches both nodes with `msync`, with
//! `fsync` and when the mapping goes.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use harness::wait_until;
use rustix::mm::{MapFlags, MsyncFlags, ProtFlags, mmap, msync, munmap};

use crate::area::{Area, noise};

/// A whole file in memory.
pub(crate) struct Mapping {
    at: *mut u8,
    length: usize,
}

impl Mapping {
    pub(crate) fn new(file: &File, length: usize, flags: MapFlags, write: bool) -> Mapping {
        let protection = match write {
            true => ProtFlags::READ | ProtFlags::WRITE,
            false => ProtFlags::READ,
        };
        // SAFETY: a new mapping at an address the kernel chooses.
        let at = unsafe { mmap(std::ptr::null_mut(), length, protection, flags, file, 0) };
        Mapping {
            at: at.unwrap().cast(),
            length,
        }
    }

    pub(crate) fn store(&self, offset: usize, bytes: &[u8]) {
        assert!(offset + bytes.len() <= self.length);
        // SAFETY: the range lies in the mapping, which is writable and overlaps no
        // memory of Rust's.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.at.add(offset), bytes.len()) };
    }

    pub(crate) fn load(&self, offset: usize, length: usize) -> Vec<u8> {
        assert!(offset + length <= self.length);
        (offset..offset + length)
            // SAFETY: the byte lies in the mapping; volatile, for others change it too.
            .map(|n| unsafe { self.at.add(n).read_volatile() })
            .collect()
    }

    fn sync(&self) {
        // SAFETY: the range is the mapping.
        unsafe { msync(self.at.cast(), self.length, MsyncFlags::SYNC) }.unwrap();
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range is the mapping, and nobody uses it any more.
        unsafe { munmap(self.at.cast(), self.length) }.unwrap();
    }
}

fn file_of(path: &Path, contents: &[u8]) -> File {
    std::fs::write(path, contents).unwrap();
    File::options().read(true).write(true).open(path).unwrap()
}

#[test]
fn what_is_stored_in_a_shared_mapping_is_on_both_nodes_after_msync() {
    let area = Area::new("mmap-msync");
    let mut contents = noise(1, 50_000);
    let file = file_of(&area.a("file"), &contents);
    let map = Mapping::new(&file, contents.len(), MapFlags::SHARED, true);
    for (n, offset) in [0usize, 4090, 12_288, 40_001, 49_990]
        .into_iter()
        .enumerate()
    {
        let bytes = noise(n as u64 + 2, 10);
        map.store(offset, &bytes);
        contents[offset..offset + 10].copy_from_slice(&bytes);
        // A reader on the same node sees it at once.
        let mut now = [0; 10];
        file.read_exact_at(&mut now, offset as u64).unwrap();
        assert_eq!(&now[..], bytes);
        map.sync();
        assert!(std::fs::read(area.b("file")).unwrap() == contents);
    }
    // And the other way round: a write shows in the mapping.
    file.write_all_at(b"written", 20_000).unwrap();
    assert_eq!(map.load(20_000, 7), b"written");
    drop(map);
    area.identical();
}

#[test]
fn it_is_after_fsync_and_after_the_mapping_is_gone() {
    let area = Area::new("mmap-fsync");
    let file = file_of(&area.a("file"), &[0; 20_000]);
    let map = Mapping::new(&file, 20_000, MapFlags::SHARED, true);
    map.store(5000, b"synced");
    file.sync_all().unwrap();
    assert_eq!(
        &std::fs::read(area.b("file")).unwrap()[5000..5006],
        b"synced"
    );
    map.store(9000, b"unmapped");
    drop(map);
    drop(file);
    // The kernel writes back when it likes; with the last descriptor at the latest here.
    let there = wait_until(Duration::from_secs(60), || {
        std::fs::read(area.b("file")).unwrap()[9000..9008] == *b"unmapped"
    });
    assert!(there, "what was stored before munmap never came");
    area.identical();
}

#[test]
fn a_private_mapping_changes_no_file() {
    let area = Area::new("mmap-private");
    let contents = noise(3, 10_000);
    let file = file_of(&area.a("file"), &contents);
    let map = Mapping::new(&file, contents.len(), MapFlags::PRIVATE, true);
    map.store(100, b"mine alone");
    assert_eq!(map.load(100, 10), b"mine alone");
    drop(map);
    file.sync_all().unwrap();
    assert!(std::fs::read(area.a("file")).unwrap() == contents);
    assert!(std::fs::read(area.b("file")).unwrap() == contents);
    area.identical();
}

#[test]
fn what_a_mapping_holds_beyond_the_end_is_nobodys() {
    let area = Area::new("mmap-end");
    area.same(|at| {
        let file = file_of(&at.join("file"), &noise(4, 5000));
        let map = Mapping::new(&file, 8192, MapFlags::SHARED, true);
        map.store(6000, b"beyond");
        map.store(4990, b"before");
        map.sync();
        let size = file.metadata().unwrap().len();
        // Grown later, the file has zeros there.
        file.set_len(8192).unwrap();
        let mut grown = vec![0; 3192];
        file.read_exact_at(&mut grown, 5000).unwrap();
        let mut before = [0; 6];
        file.read_exact_at(&mut before, 4990).unwrap();
        (size, grown.iter().all(|b| *b == 0), before)
    });
    area.identical();
}

#[test]
fn a_mapping_of_a_file_that_is_removed_goes_on() {
    let area = Area::new("mmap-unlinked");
    let file = file_of(&area.a("file"), &[1; 8192]);
    let map = Mapping::new(&file, 8192, MapFlags::SHARED, true);
    std::fs::remove_file(area.a("file")).unwrap();
    map.store(10, b"still here");
    map.sync();
    let mut now = [0; 10];
    file.read_exact_at(&mut now, 10).unwrap();
    assert_eq!(&now, b"still here");
    drop((map, file));
    area.identical();
}
