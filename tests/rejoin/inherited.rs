//! What is made inherits from its directory, and the two directories differ for a while.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::Command;

use fs_driver::control::Request;
use harness::{Options, Pair, Role, wait_until};

use crate::PATIENCE;

/// Moved before the directory, which was made after it.
const BALLAST: usize = 32 << 20;

/// Bytes a second: far more time than anything here takes.
const RATE: u64 = 1 << 20;

#[test]
fn what_is_made_during_a_resync_inherits_what_its_directory_has_on_the_primary() {
    let mut pair = Pair::with(Options {
        on_peer_loss: "alone",
        ..Options::default()
    });
    let directory = pair.on_a("directory");
    fs::write(pair.on_a("ballast"), b"little").unwrap();
    fs::create_dir(&directory).unwrap();
    pair.wait_settled();
    // Nothing is in doubt, so nothing is compared first.
    pair.b.stop().unwrap();
    fs::write(pair.on_a("ballast"), vec![1; BALLAST]).unwrap();
    let mut acl = Command::new("setfacl");
    acl.args(["-d", "-m", "user:1234:rwx"]).arg(&directory);
    assert!(acl.status().unwrap().success());
    std::os::unix::fs::chown(&directory, None, Some(1234)).unwrap();
    fs::set_permissions(&directory, fs::Permissions::from_mode(0o2775)).unwrap();
    let limit = |bytes_per_second| pair.a.ask(Request::Limit { bytes_per_second }).unwrap();
    limit(Some(RATE));
    pair.b.start(Role::Secondary).unwrap();
    let syncing = || pair.a.status().is_ok_and(|s| s["link"] == "syncing");
    assert!(wait_until(PATIENCE, syncing), "{:?}", pair.a.status());
    fs::write(directory.join("file"), b"x").unwrap();
    fs::create_dir(directory.join("below")).unwrap();
    fs::write(directory.join("below/file"), b"x").unwrap();
    let there = wait_until(PATIENCE, || {
        pair.b.data().join("directory/below/file").exists()
    });
    assert!(
        there && syncing(),
        "it was not shipped: {:?}",
        pair.a.status()
    );
    let old = fs::metadata(pair.b.data().join("directory")).unwrap();
    assert_eq!(
        (old.mode() & 0o7777, old.gid()),
        (0o755, 0),
        "moved already"
    );
    limit(None);
    pair.assert_identical();
}
