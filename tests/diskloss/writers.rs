//! A flush fails and there is no peer that has the data: who wrote is told.

use std::fs::File;
use std::os::unix::fs::FileExt;

use harness::faulty::Faults;

use crate::{expect, pair};

#[test]
fn every_program_that_wrote_is_told_once_of_a_flush_that_failed() {
    let mut pair = pair();
    pair.b.stop().unwrap();
    expect(&pair.a, "the loss of the peer", |s| s["link"] == "alone");
    let path = pair.on_a("file");
    std::fs::write(&path, vec![1; 1 << 20]).unwrap();
    File::open(&path).unwrap().sync_all().unwrap();
    let disk = pair.disk_a();
    // To ask for them later would have the file written first.
    let places = disk.places_of(&pair.a.data().join("file")).unwrap();
    let open = || File::options().write(true).open(&path).unwrap();
    let writers = [open(), open(), open()];
    // Before anything is written: the kernel may bring it to the disk by itself.
    disk.fail(Faults {
        writes: places,
        ..Faults::default()
    });
    for (n, file) in (0..).zip(&writers) {
        file.write_all_at(&[2; 4096], n * 16384).unwrap();
    }
    for (n, file) in writers.iter().enumerate() {
        let told = file.sync_all().expect_err("a flush failed");
        assert_eq!(told.raw_os_error(), Some(libc::EIO), "{n}: {told}");
    }
    disk.heal();
    for (n, file) in (0..).zip(&writers) {
        file.write_all_at(&[3; 4096], n * 16384).unwrap();
        file.sync_all().unwrap();
    }
}
