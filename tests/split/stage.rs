//! Pairs that fall apart.

use std::time::Duration;

use harness::{Node, Options, Pair, wait_until};
use serde_json::Value;

/// How long a state may take to come about on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A pair whose primary goes on by itself when its peer is gone.
pub(crate) fn options() -> Options {
    Options {
        on_peer_loss: "alone",
        ..Options::default()
    }
}

/// Both go on alone from here.
pub(crate) fn split(pair: &Pair) {
    pair.wait_settled();
    pair.b.promote(false).unwrap();
    for node in [&pair.a, &pair.b] {
        wait_status(node, "alone", |s| s["link"] == "alone");
    }
}

/// Waits until the node's state is as wanted.
pub(crate) fn wait_status(node: &Node, what: &str, wanted: impl Fn(&Value) -> bool) {
    let there = || node.status().is_ok_and(|s| wanted(&s));
    assert!(
        wait_until(PATIENCE, there),
        "{} is not {what}: {:?}\n{}",
        node.name(),
        node.status(),
        node.last_words()
    );
}

/// What keeps this node's copy and its peer's apart, as it tells its operator.
pub(crate) fn conflict(node: &Node) -> String {
    conflict_that_says(node, "")
}

/// The same, as soon as it says this: the nodes may have met before both had gone on alone,
/// and were told something else then.
pub(crate) fn conflict_that_says(node: &Node, what: &str) -> String {
    let mut told = String::new();
    let says = wait_until(PATIENCE, || {
        let status = node.status().unwrap_or_default();
        told = status["conflict"].as_str().unwrap_or_default().to_owned();
        !told.is_empty() && told.contains(what)
    });
    assert!(
        says,
        "{} is not in conflict: {told}\n{}",
        node.name(),
        node.last_words()
    );
    told
}

/// Gives the node's copy up, as its operator does.
pub(crate) fn give_up(node: &Node) -> anyhow::Result<()> {
    let mount = node.mount().display().to_string();
    node.run(&["resync", &mount, "--discard-this-copy"])
        .map(drop)
}

/// The node's archives, as `archive list` tells them.
pub(crate) fn list(node: &Node) -> Vec<Value> {
    let mount = node.mount().display().to_string();
    let text = node.run(&["archive", "list", &mount, "--json"]).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// What `archive show` tells.
pub(crate) fn show(node: &Node, name: &str) -> Value {
    let mount = node.mount().display().to_string();
    let text = node
        .run(&["archive", "show", &mount, name, "--json"])
        .unwrap();
    serde_json::from_str(&text).unwrap()
}

/// How often the node has said this.
pub(crate) fn said(node: &Node, text: &str) -> usize {
    node.log_text().matches(text).count()
}

/// Checkpoints, until neither node remembers how the files came to be: only what is done
/// after it then counts as changed. (A secondary keeps notes one checkpoint longer.)
pub(crate) fn forget_how_it_began(pair: &Pair) {
    for n in 0..3 {
        std::fs::write(pair.on_a("tick"), [n]).unwrap();
        pair.wait_settled();
        pair.checkpoint();
        wait_status(&pair.a, "flushed", |s| s["unflushed_objects"] == 0);
    }
}
