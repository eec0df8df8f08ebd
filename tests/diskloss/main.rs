//! Losing the disk, not the node: an application goes on when the disk under it fails,
//! and the disk of the other node is none of its business.

// A test's helpers fail the test.
#![allow(clippy::unwrap_used)]

mod app;
mod both;
mod line;
mod memory;
mod primary;
mod secondary;
mod writers;

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::thread::JoinHandle;
use std::time::Duration;

use harness::faulty::Faults;
use harness::{Node, Options, Pair, wait_until};
use serde_json::Value;

/// How long something that must happen may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// Milliseconds after which a node does not wait for its peer: long enough for a busy
/// machine, and short beside what a test waits for.
const DEADLINES: [u64; 3] = [10_000, 15_000, 20_000];

/// Bytes of each node's disk.
const DISK: u64 = 64 << 20;

/// Two nodes on disks that the test programs. A peer that is lost is not waited for.
fn pair() -> Pair {
    Pair::with(options())
}

fn options() -> Options {
    Options {
        disks: [Some(DISK); 2],
        on_peer_loss: "alone",
        deadlines: DEADLINES,
        ..Options::default()
    }
}

/// The line may be away for long before anybody is asked.
fn patient() -> Options {
    Options {
        more: vec!["--bridge-ms".into(), "60000".into()],
        ..options()
    }
}

/// Waits until the state of a node is as wanted.
fn expect(node: &Node, what: &str, mut wanted: impl FnMut(&Value) -> bool) {
    let came = wait_until(PATIENCE, || node.status().is_ok_and(|s| wanted(&s)));
    assert!(
        came,
        "{what} did not come on {}: {:?}\n{}",
        node.name(),
        node.status(),
        node.last_words()
    );
}

/// The disk of A fails, and a call meets that which waits for nothing else: a read. The
/// thread returns what the read did.
fn lose_disk_a(pair: &Pair) -> JoinHandle<io::Result<Vec<u8>>> {
    // Not of the whole mount: a directory waits for the change in it that waits for the peer.
    forget_pages_of(&pair.on_a("known"));
    forget_pages(&pair.a.data());
    pair.disk_a().fail(Faults::everything());
    let path = pair.on_a("known");
    std::thread::spawn(move || std::fs::read(path))
}

/// Writes a file that is on both disks.
fn write_known(pair: &Pair) -> Vec<u8> {
    let bytes = b"known\n".repeat(50_000);
    let mut file = File::create(pair.on_a("known")).unwrap();
    file.write_all(&bytes).unwrap();
    file.sync_all().unwrap();
    bytes
}

/// The kernel forgets what it has cached of everything below a store: the next read is
/// the disk's.
fn forget_pages(store: &Path) {
    // What the disk does not give any more need not be forgotten.
    let entries = std::fs::read_dir(store).into_iter().flatten();
    for entry in entries.flatten() {
        let path = entry.path();
        if path.is_dir() {
            forget_pages(&path);
        } else {
            forget_pages_of(&path);
        }
    }
}

fn forget_pages_of(path: &Path) {
    if let Ok(file) = File::open(path) {
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
    }
}
