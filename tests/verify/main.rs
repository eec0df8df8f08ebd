//! Comparing the two copies while the application works, and repairing what differs.

// A test's helpers fail the test.
#![allow(clippy::unwrap_used)]

mod clean;
mod ends;
mod found;
mod large;
mod load;
#[allow(dead_code, reason = "the network tests need more of it")]
#[path = "../network/relay.rs"]
mod relay;

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::SystemTime;

use harness::Node;
use serde_json::Value;

/// The copies are equal.
const EQUAL: i32 = 0;
/// Something differed.
const DIFFERED: i32 = 1;
/// Not everything could be compared.
const INCOMPLETE: i32 = 2;

/// From which byte on, and how many, if it is about bytes.
type Range = Option<(u64, u64)>;

/// What a verify found: path, what, and which bytes.
fn findings(found: &Value) -> Vec<(String, String, Range)> {
    let all = found["findings"].as_array().expect("a verify tells JSON");
    let text = |finding: &Value, key: &str| finding[key].as_str().unwrap().to_owned();
    let mut found: Vec<_> = all
        .iter()
        .map(|f| {
            let range = f["offset"].as_u64().zip(f["length"].as_u64());
            (text(f, "path"), text(f, "what"), range)
        })
        .collect();
    found.sort();
    found
}

/// Fails the test unless the two copies are equal by a verify on `node`.
fn assert_equal(node: &Node) {
    let (code, found, said) = node.verify(&[]).unwrap();
    assert_eq!(code, EQUAL, "{found:#} {said}");
    assert_eq!(findings(&found), []);
}

/// Flips one bit of a file behind the mount; nothing else tells of it.
fn flip(path: &Path, offset: u64) {
    without_a_trace(path, |file| {
        let mut byte = [0];
        file.read_exact_at(&mut byte, offset).unwrap();
        file.write_all_at(&[byte[0] ^ 0x10], offset).unwrap();
    });
}

/// Changes a file and gives it its time back.
fn without_a_trace(path: &Path, change: impl FnOnce(&File)) {
    let file = File::options().read(true).write(true).open(path).unwrap();
    let modified: SystemTime = fs::metadata(path).unwrap().modified().unwrap();
    change(&file);
    file.set_modified(modified).unwrap();
}
