//! A pair whose nodes talk over networks that a test can spoil.

use std::time::Duration;

use harness::{Node, Options, Pair, free_addresses, wait_until};

use crate::relay::Relay;

/// How long a state may take to come about on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A pair over as many networks as `hosts` has addresses of this machine.
pub(crate) fn over<const N: usize>(hosts: [&str; N], options: Options) -> (Pair, [Relay; N]) {
    let addresses = free_addresses(hosts).unwrap();
    let relays = addresses.map(Relay::to);
    let pair = Pair::with(Options {
        listen: [addresses.to_vec(), Vec::new()],
        dial: [Vec::new(), relays.iter().map(Relay::address).collect()],
        ..options
    });
    (pair, relays)
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

/// How often the node has said this.
pub(crate) fn said(node: &Node, text: &str) -> usize {
    node.log_text().matches(text).count()
}
