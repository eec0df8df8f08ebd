use std::sync::mpsc::channel;

use twinfold_protocol::op::{Op, Stability};

use super::*;
use crate::engine::NewEntry;
use crate::engine::bed::{opened, paired, shipped};
use crate::store::{alone_in_a_process, take_all_descriptors};

const BUFFERED: OpenHow = OpenHow {
    write: true,
    direct: false,
};
const DIRECT: OpenHow = OpenHow {
    write: true,
    direct: true,
};

/// The file system of a primary without a peer, with an empty file in it.
fn with_a_file() -> (Arc<Vfs>, FileId, tempfile::TempDir) {
    let (engine, place) = opened(true);
    engine.start_primary(false).unwrap();
    let vfs = Arc::new(Vfs::new(engine));
    let new = NewEntry {
        kind: Kind::Regular,
        target: bytes::Bytes::new(),
        mode: 0o600,
        umask: 0,
        uid: 0,
        gid: 0,
    };
    let (tell, told) = channel();
    vfs.create(FileId::ROOT, b"file", new, BUFFERED, move |made| {
        tell.send(made).unwrap();
    });
    let (made, opened) = told.recv().unwrap().unwrap();
    vfs.close(opened.handle);
    (vfs, made.file, place)
}

fn write(vfs: &Vfs, handle: HandleId, stability: Stability) {
    let (tell, told) = channel();
    vfs.write(handle, 0, &[7; 4096], stability, false, move |done| {
        tell.send(done).unwrap();
    });
    told.recv().unwrap().unwrap();
}

/// It is in the kernel's cache still, and a kernel may write past that without a look at it.
#[test]
fn what_readers_that_have_closed_left_in_the_cache_goes_when_a_direct_write_has_returned() {
    let (vfs, file, _place) = with_a_file();
    let keeps = |how| {
        let opened = vfs.open(file, how).unwrap();
        vfs.close(opened.handle);
        opened.keep_cache
    };
    assert!(keeps(BUFFERED) && keeps(BUFFERED));
    let direct = vfs.open(file, DIRECT).unwrap().handle;
    assert!(keeps(BUFFERED), "nothing was written yet");
    write(&vfs, direct, Stability::Mode);
    assert!(!keeps(BUFFERED), "the kernel shows what was there before");
    assert!(keeps(BUFFERED), "what is read now is right");
    let through = vfs.open(file, BUFFERED).unwrap().handle;
    write(&vfs, through, Stability::Mode);
    assert!(keeps(BUFFERED), "the kernel knows its own writes");
}

#[test]
fn a_listing_that_cannot_look_at_an_entry_fails_and_does_not_leave_it_out() {
    let name = "vfs::tests::\
                a_listing_that_cannot_look_at_an_entry_fails_and_does_not_leave_it_out";
    if !alone_in_a_process(name) {
        return;
    }
    let (vfs, file, _place) = with_a_file();
    let handle = vfs.open_directory(FileId::ROOT).unwrap();
    let list = || {
        let mut found = false;
        let listed = vfs.list(handle, 0, |entry| {
            found |= entry.attributes.file == file;
            true
        });
        listed.map(|()| found)
    };
    assert!(list().unwrap());
    let held = take_all_descriptors();
    let listed = list();
    drop(held);
    assert!(matches!(listed, Err(FsError::Store(_))), "{listed:?}");
    assert!(list().unwrap());
}

/// The kernel goes by how the file was opened: it asks for a sync by itself exactly when the
/// write went through its cache.
#[test]
fn a_write_is_as_stable_as_was_asked_for_when_the_file_is_open_past_the_cache() {
    let (vfs, file, _place) = with_a_file();
    paired(&vfs.engine);
    for (how, expected) in [(DIRECT, Stability::Data), (BUFFERED, Stability::Mode)] {
        let handle = vfs.open(file, how).unwrap().handle;
        vfs.write(handle, 0, &[7; 4096], Stability::Data, false, |_| ());
        let shipped = shipped(&vfs.engine).into_iter();
        let written: Vec<_> = shipped
            .filter_map(|op| match op {
                Op::Write { stability, .. } => Some(stability),
                _ => None,
            })
            .collect();
        assert_eq!(written, [expected]);
    }
}
