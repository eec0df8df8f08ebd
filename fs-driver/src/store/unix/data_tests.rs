//! A write arrives whole, however it is cut; what a file is synced by before anybody asks.

use std::sync::Arc;

use bytes::Bytes;
use twinfold_protocol::attr::Kind;
use twinfold_protocol::ids::FileId;
use twinfold_protocol::op::{Name, NewObject, Payload};

use super::scratch::scratch;
use super::{Node, Store};

/// A file.
fn made(store: &Store, file: u64) -> Arc<Node> {
    let object = NewObject {
        file: FileId(file),
        kind: Kind::Regular,
        target: Bytes::new(),
        mode: 0o644,
        umask: 0,
        uid: 0,
        gid: 0,
    };
    let name = Name::new(format!("file-{file}").as_bytes()).unwrap();
    store.create(&store.root, &name, &object).unwrap()
}

#[test]
fn a_write_arrives_whole_however_it_came_and_wherever_it_begins() {
    let (_place, store) = scratch();
    let node = made(&store, 5000);
    // Longer and shorter than what is written at once, with more chunks than go into one
    // call, and with an empty one.
    let content: Vec<u8> = (0..300_000u32).map(|n| (n * 7 + n / 256) as u8).collect();
    let mut size = 0;
    for (offset, length, chunk) in [
        (0, 300_000, 300_000),
        (65_535, 2, 2),
        (65_536, 65_536, 65_536),
        (4097, 200_000, 8875),
        (131_071, 131_074, 65_537),
        (10, 70_000, 100),
        (299_999, 1, 1),
        (1 << 33, 100_000, 1440),
    ] {
        let mut data = Payload::default();
        for piece in content[..length].chunks(chunk) {
            data.push(Bytes::copy_from_slice(piece));
            data.push(Bytes::new());
        }
        store.write(&node, offset, &data).unwrap();
        size = size.max(offset + length as u64);
        assert_eq!(node.size().unwrap(), size);
        let mut read = vec![0; length];
        assert_eq!(store.read(&node, offset, &mut read).unwrap(), length);
        assert!(read == content[..length], "{length} bytes at {offset}");
    }
    // Nothing beside it was touched.
    let mut before = [0; 10];
    store.read(&node, 0, &mut before).unwrap();
    assert_eq!(before, content[..10]);
}

#[test]
fn one_descriptor_is_kept_to_sync_a_file_before_anybody_asks() {
    let (_place, store) = scratch();
    let [one, other] = [1, 2].map(|n| made(&store, 5000 + n));
    let is_kept = |node: &Node| node.ahead.lock().is_some();
    let first = store.ahead(&one).unwrap();
    first.sync(true).unwrap();
    assert!(Arc::ptr_eq(&first, &store.ahead(&one).unwrap()));
    // Of the last one.
    store.ahead(&other).unwrap().sync(false).unwrap();
    assert!(is_kept(&other) && !is_kept(&one));
    store.forget_ahead(&other);
    assert!(!is_kept(&other));
    assert!(store.ahead(&store.root).is_err());
    store.ahead(&one).unwrap();
    assert!(is_kept(&one));
}
