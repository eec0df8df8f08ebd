//! What a resync does to an object is all there when it is done, and nothing else.

use std::ffi::CStr;

use bytes::Bytes;
use twinfold_protocol::attr::Kind;
use twinfold_protocol::ids::FileId;
use twinfold_protocol::op::{Name, NewObject, Object, Op};
use twinfold_protocol::time::Timestamp;

use super::scratch::scratch;
use super::*;

const FILE: FileId = FileId(5000);

/// `cap_net_raw+ep` as the kernel keeps it (`struct vfs_cap_data`, version 2).
const CAPABILITY: [u8; 20] = [
    1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
];

fn create(store: &Store) -> Arc<Node> {
    let object = NewObject {
        file: FILE,
        kind: Kind::Regular,
        target: Bytes::new(),
        mode: 0o755,
        umask: 0,
        uid: 0,
        gid: 0,
    };
    let name = Name::new(b"program").unwrap();
    store.create(&store.root, &name, &object).unwrap()
}

fn put_object(xattrs: &[(&str, &[u8])]) -> Op {
    let copy = |(name, value): &(&str, &[u8])| {
        let name = Bytes::copy_from_slice(name.as_bytes());
        (name, Bytes::copy_from_slice(value))
    };
    Op::PutObject {
        object: Object {
            file: FILE,
            kind: Kind::Regular,
            target: Bytes::new(),
            mode: 0o755,
            uid: 0,
            gid: 0,
            size: 8192,
            accessed: Timestamp::default(),
            modified: Timestamp::default(),
        },
        xattrs: xattrs.iter().map(copy).collect(),
    }
}

fn put_data(offset: u64) -> Op {
    Op::PutData {
        file: FILE,
        offset,
        data: Bytes::from_static(&[7; 4096]).into(),
    }
}

/// The attributes come before the data, and the kernel takes the capabilities of a file
/// away with each write to it.
#[test]
fn a_file_has_its_capabilities_when_its_data_has_been_moved() {
    let (_place, store) = scratch();
    let node = create(&store);
    let capability = ("security.capability", &CAPABILITY[..]);
    let hole = Op::PutHole {
        file: FILE,
        offset: 4096,
        length: 4096,
    };
    store.put(&put_object(&[capability])).unwrap();
    for op in [put_data(0), put_data(4096), hole] {
        store.put(&op).unwrap();
        let kept = store.get_xattr(&node, capability.0.as_bytes());
        assert_eq!(kept.unwrap(), CAPABILITY, "{op:?}");
    }
    store.put(&put_object(&[])).unwrap();
    store.put(&put_data(0)).unwrap();
    let gone = store.get_xattr(&node, capability.0.as_bytes());
    assert_eq!(gone.unwrap_err().raw_os_error(), Some(libc::ENODATA));
    // That it had none is known now, and has to be forgotten when it gets some.
    store.put(&put_object(&[capability])).unwrap();
    store.put(&put_data(0)).unwrap();
    let kept = store.get_xattr(&node, capability.0.as_bytes());
    assert_eq!(kept.unwrap(), CAPABILITY);
}

/// Each node's kernel keeps labels and hashes of its own, by its own policy: the peer's say
/// nothing here, and some cannot even be removed.
#[test]
fn a_resync_leaves_the_labels_of_the_nodes_own_kernel_alone() {
    let (_place, store) = scratch();
    let node = create(&store);
    let path = sys::proc_path(node.path());
    let label = |name: &CStr, value: &[u8]| {
        rustix::fs::setxattr(&path, name, value, rustix::fs::XattrFlags::empty()).unwrap();
    };
    label(c"security.selinux", b"system_u:object_r:etc_t:s0");
    label(c"security.SMACK64", b"_");
    label(c"user.old", b"1");
    store.put(&put_object(&[("user.new", b"2")])).unwrap();
    let mut here = [0; 64];
    for (name, left) in [
        (c"security.selinux", true),
        (c"security.SMACK64", true),
        (c"user.old", false),
        (c"user.new", true),
    ] {
        let found = rustix::fs::getxattr(&path, name, &mut here[..]);
        assert_eq!(found.is_ok(), left, "{name:?}");
    }
    // As a source it does not send them, and a verify does not compare them.
    let told = store.xattrs(&node).unwrap();
    assert_eq!(told, [("user.new".into(), "2".into())]);
}

#[test]
fn nobody_sets_or_removes_the_labels_of_the_nodes_own_kernel_through_a_mount() {
    use twinfold_protocol::op::XattrMode;
    let (_place, store) = scratch();
    let node = create(&store);
    for name in ["security.selinux", "security.SMACK64EXEC", "security.ima"] {
        let name = name.as_bytes();
        let refused = store.set_xattr(&node, name, b"x", XattrMode::Either);
        assert_eq!(refused.unwrap_err().raw_os_error(), Some(libc::EOPNOTSUPP));
        let refused = store.remove_xattr(&node, name);
        assert_eq!(refused.unwrap_err().raw_os_error(), Some(libc::EOPNOTSUPP));
        let none = store.get_xattr(&node, name);
        assert_eq!(none.unwrap_err().raw_os_error(), Some(libc::ENODATA));
    }
}

#[test]
fn nothing_is_kept_of_a_listing_that_broke_off() {
    use twinfold_protocol::op::{Listing, PutEntry};
    let (_place, store) = scratch();
    let begun = Op::PutDirectory {
        directory: FileId::ROOT,
        listing: Listing::Whole {
            first: true,
            last: false,
        },
        entries: vec![PutEntry {
            name: Name::new(b"none").unwrap(),
            object: None,
        }],
    };
    store.put(&begun).unwrap();
    assert_eq!(store.listings.lock().len(), 1);
    store.begin_puts();
    assert_eq!(store.listings.lock().len(), 0);
}
