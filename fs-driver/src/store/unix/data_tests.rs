//! A write arrives whole, however it is cut.

use bytes::Bytes;
use twinfold_protocol::attr::Kind;
use twinfold_protocol::ids::FileId;
use twinfold_protocol::op::{Name, NewObject, Payload};

use super::scratch::scratch;

#[test]
fn a_write_arrives_whole_however_it_came_and_wherever_it_begins() {
    let (_place, store) = scratch();
    let object = NewObject {
        file: FileId(5000),
        kind: Kind::Regular,
        target: Bytes::new(),
        mode: 0o644,
        umask: 0,
        uid: 0,
        gid: 0,
    };
    let name = Name::new(b"file").unwrap();
    let node = store.create(&store.root, &name, &object).unwrap();
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
