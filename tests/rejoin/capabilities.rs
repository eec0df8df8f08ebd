//! What a program may do is moved with its file.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use harness::{Options, Pair, Role, wait_until};
use rustix::fs::{XattrFlags, getxattr, setxattr};

const CAPABILITY: &str = "security.capability";

/// `cap_net_raw+ep` as the kernel keeps it (`struct vfs_cap_data`, version 2).
const NET_RAW: [u8; 20] = [
    1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
];

fn set(path: &Path) {
    setxattr(path, CAPABILITY, &NET_RAW, XattrFlags::empty()).unwrap();
}

/// The kernel takes a file's capabilities away with each write to it, and a resync writes
/// after it has set them.
#[test]
fn a_resync_brings_capabilities_that_were_set_before_and_during_it_and_takes_those_away_that_went()
{
    let mut pair = Pair::with(Options {
        // The data of a file takes seconds.
        more: vec!["--resync-limit".into(), "512K".into()],
        ..Options::default()
    });
    for name in ["before", "during", "gone"] {
        fs::write(pair.on_a(name), b"old").unwrap();
    }
    set(&pair.on_a("gone"));
    pair.wait_settled();
    pair.b.stop().unwrap();
    for name in ["before", "during", "gone", "new"] {
        fs::write(pair.on_a(name), vec![7; 1 << 20]).unwrap();
    }
    set(&pair.on_a("before"));
    set(&pair.on_a("new"));
    pair.b.begin_as(Role::Secondary).unwrap();
    let moves = || pair.a.status().is_ok_and(|s| s["link"] == "syncing");
    assert!(wait_until(Duration::from_secs(30), moves));
    set(&pair.on_a("during"));
    // A write while the rest of the file is being moved takes them away on both nodes.
    let new = fs::File::options().write(true).open(pair.on_a("new"));
    new.unwrap().write_all_at(b"x", 1 << 19).unwrap();
    pair.assert_identical();
    let there = |name| getxattr(pair.on_b(name), CAPABILITY, &mut [0; 32][..]).is_ok();
    assert!(there("before") && there("during"));
    assert!(!there("gone") && !there("new"));
}
