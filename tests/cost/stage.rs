//! A pair over a network whose bytes are counted.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use fs_driver::control::Request;
use harness::{Node, Options, Pair, Role, free_addresses, wait_until};
use serde_json::Value;

use crate::relay::Relay;

/// How long anything may take on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(900);

/// Bytes beside file data for which no resync here has a reason: handshakes, marks,
/// hashes, names and attributes of what changed, acknowledgements, lost datagrams.
pub(crate) const SMALL: u64 = 512 << 10;

/// A number from the environment, for the large runs by hand.
pub(crate) fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |n| n.parse().unwrap())
}

/// A pair, and the network from A to B.
pub(crate) struct Stage {
    pub(crate) pair: Pair,
    pub(crate) relay: Relay,
}

/// What one resync cost.
#[derive(Debug)]
pub(crate) struct Cost {
    /// Bytes of file data, as the target tells it.
    pub(crate) data: u64,
    /// Bytes that went from the source to the target.
    pub(crate) wire: u64,
}

impl Cost {
    /// No more was moved than this much data.
    pub(crate) fn at_most(&self, data: u64) {
        assert!(self.data <= data, "{self:?}, {data} bytes changed");
        let wire = data + data / 10 + SMALL;
        assert!(self.wire <= wire, "{self:?}, {data} bytes changed");
    }
}

impl Stage {
    /// Two nodes that know each other; no driver runs yet.
    pub(crate) fn stopped(options: Options) -> Stage {
        let [a] = free_addresses(["127.0.0.1"]).unwrap();
        let relay = Relay::to(a);
        let pair = Pair::stopped(Options {
            listen: [vec![a], Vec::new()],
            dial: [Vec::new(), vec![relay.address()]],
            // A peer that is killed is not waited for.
            on_peer_loss: "alone",
            ..options
        });
        Stage { pair, relay }
    }

    /// A primary and a secondary that is up to date.
    pub(crate) fn new(options: Options) -> Stage {
        let mut stage = Stage::stopped(options);
        let begun = Instant::now();
        stage.pair.a.start(Role::Primary).unwrap();
        stage.pair.b.start(Role::Secondary).unwrap();
        let both = || is_paired(&stage.pair.a) && is_paired(&stage.pair.b);
        assert!(wait_until(PATIENCE, both), "{:?}", stage.pair);
        println!("first synchronisation: {:?}", begun.elapsed());
        stage.pair.wait_settled();
        stage
    }

    /// Lets both nodes flush and forget, so that a crash leaves nothing to look at.
    pub(crate) fn rest(&self) {
        let rests = || {
            self.pair.wait_settled();
            self.pair.checkpoint();
            let flushed = self.pair.a.status().unwrap()["unflushed_objects"] == 0;
            flushed && [&self.pair.a, &self.pair.b].into_iter().all(has_no_notes)
        };
        assert!(wait_until(PATIENCE, rests), "{:?}", self.pair.a.status());
    }

    /// Stops B in order and waits until A goes on without it.
    pub(crate) fn stop_b(&mut self) {
        self.pair.b.stop().unwrap();
        wait_link(&self.pair.a, "alone");
    }

    /// Starts B and waits until it is up to date and nothing is on its way.
    pub(crate) fn resync(&mut self) -> Cost {
        let cost = self.resync_beside_writers();
        self.pair.wait_settled();
        cost
    }

    /// Starts B and waits until it is up to date, while an application may write.
    pub(crate) fn resync_beside_writers(&mut self) -> Cost {
        let before = self.relay.inward();
        let begun = Instant::now();
        self.pair.b.start(Role::Secondary).unwrap();
        let both = || is_paired(&self.pair.a) && is_paired(&self.pair.b);
        assert!(wait_until(PATIENCE, both), "{:?}", self.pair);
        println!(
            "resync: {:?}, {}",
            begun.elapsed(),
            self.pair.a.status().unwrap()["resync"]
        );
        Cost {
            data: self.pair.b.status().unwrap()["received_bytes"]
                .as_u64()
                .unwrap(),
            wire: self.relay.inward() - before,
        }
    }

    /// B is away in order while A changes something.
    pub(crate) fn away(&mut self, change: impl FnOnce(&Pair)) -> Cost {
        self.stop_b();
        change(&self.pair);
        self.resync()
    }
}

/// Whether there is no note in the node's intent log: only heads and zeros.
fn has_no_notes(node: &Node) -> bool {
    let log = node.layout().state().join("intents");
    let segments = std::fs::read_dir(log).unwrap();
    segments.into_iter().all(|segment| {
        // It may just have been deleted.
        let bytes = std::fs::read(segment.unwrap().path()).unwrap_or_default();
        bytes.iter().skip(32).all(|b| *b == 0)
    })
}

/// Whether the node's peer is up to date beside it.
pub(crate) fn is_paired(node: &Node) -> bool {
    node.status().is_ok_and(|s| s["link"] == "paired")
}

/// Waits until the node's link is in this state.
pub(crate) fn wait_link(node: &Node, state: &str) {
    let there = || node.status().is_ok_and(|s| s["link"] == state);
    assert!(
        wait_until(PATIENCE, there),
        "the link did not become {state}: {:?}\n{}",
        node.status(),
        node.last_words()
    );
}

/// Waits until what the node tells is as wanted.
pub(crate) fn wait_status(node: &Node, mut wanted: impl FnMut(&Value) -> bool) -> Value {
    let mut last = Value::Null;
    let there = wait_until(PATIENCE, || {
        last = node.status().unwrap_or_default();
        wanted(&last)
    });
    assert!(there, "{last}\n{}", node.last_words());
    last
}

/// Limits the resyncs of a node.
pub(crate) fn limit(node: &Node, bytes_per_second: Option<u64>) {
    node.ask(Request::Limit { bytes_per_second }).unwrap();
}

/// The most memory that the node's driver had at any time, in bytes (`proc(5)`, `VmHWM`).
pub(crate) fn most_memory(node: &Node) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", node.pid().unwrap())).unwrap();
    let line = status
        .lines()
        .find_map(|l| l.strip_prefix("VmHWM:"))
        .unwrap();
    let kib = line.trim().strip_suffix(" kB").unwrap();
    kib.parse::<u64>().unwrap() << 10
}

/// Bytes that no two places share: `seed` makes them others.
pub(crate) fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut out = Vec::with_capacity(length + 8);
    while out.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.extend_from_slice(&state.to_le_bytes());
    }
    out.truncate(length);
    out
}

/// Writes a file of so many bytes.
pub(crate) fn write(path: &Path, length: usize, seed: u64) {
    std::fs::write(path, noise(length, seed)).unwrap();
}

/// Writes pieces of 4 KiB, each to a place of its own that `place` gives, from many threads.
pub(crate) fn scatter(path: &Path, pieces: u64, place: impl Fn(u64) -> u64 + Sync, seed: u64) {
    const THREADS: u64 = 16;
    let file = File::options().write(true).open(path).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (file, place) = (&file, &place);
            scope.spawn(move || {
                for n in (thread..pieces).step_by(THREADS as usize) {
                    let piece = noise(4096, seed + n);
                    file.write_all_at(&piece, place(n) * 4096).unwrap();
                }
            });
        }
    });
}
