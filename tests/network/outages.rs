//! Networks that fail: one of several, all for a moment, all for longer, and never quite.

use std::time::Duration;

use harness::{Options, wait_until};

use crate::relay::Weather;
use crate::stage::{PATIENCE, over, said, wait_link};
use crate::writers::Writers;

const ONE: [&str; 1] = ["127.0.0.1"];

/// Deadlines that end an outage soon and that a busy machine keeps, and a bridge that spans it.
fn options(on_peer_loss: &'static str, bridge_ms: u64) -> Options {
    Options {
        on_peer_loss,
        deadlines: [3000, 10_000, 20_000],
        more: vec!["--bridge-ms".into(), bridge_ms.to_string()],
        ..Options::default()
    }
}

#[test]
fn a_pair_goes_on_over_the_other_network_when_one_is_cut() {
    // Going on alone is what must not happen, so it is allowed.
    let (pair, [first, second]) = over(["127.0.0.1", "127.0.0.2"], options("alone", 30_000));
    let writers = Writers::start(pair.on_a(""), 3);
    writers.expect(100, "before");
    // It may have begun over the second one: one of the four cuts may hit nobody.
    let once = [(&first, &second), (&second, &first)];
    for (cut, healed) in once.into_iter().chain(once) {
        healed.heal();
        cut.cut();
        writers.expect(3, "what is on its way");
        writers.expect(200, "over the other network");
    }
    let record = writers.finish();
    record.check(&pair.on_b(""));
    assert!(said(&pair.a, "the session goes on") >= 3);
    assert_eq!(said(&pair.a, "going on alone"), 0, "it was not alone");
    assert_eq!(said(&pair.a, "is being brought up to date"), 1, "no resync");
    pair.assert_identical();
}

#[test]
fn a_short_outage_only_makes_writers_wait() {
    let (pair, [network]) = over(ONE, options("alone", 20_000));
    let writers = Writers::start(pair.on_a(""), 3);
    writers.expect(100, "before");
    network.cut();
    wait_link(&pair.a, "bridging");
    let held = writers.acknowledged();
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(
        writers.acknowledged(),
        held,
        "acknowledged without the peer"
    );
    network.heal();
    writers.expect(200, "after");
    writers.finish().check(&pair.on_b(""));
    assert!(said(&pair.a, "the session goes on") >= 1);
    assert_eq!(said(&pair.a, "going on alone"), 0);
    assert_eq!(said(&pair.a, "is being brought up to date"), 1, "no resync");
    pair.assert_identical();
}

#[test]
fn writes_are_held_until_somebody_decides() {
    let (pair, [network]) = over(ONE, options("hold", 200));
    let writers = Writers::start(pair.on_a(""), 3);
    writers.expect(100, "before");
    network.cut();
    wait_link(&pair.a, "holding");
    // It is asked a moment after it holds.
    let asked = || pair.a.status().is_ok_and(|s| s["question"].is_string());
    assert!(wait_until(PATIENCE, asked), "{:?}", pair.a.status());
    let held = writers.acknowledged();
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(
        writers.acknowledged(),
        held,
        "acknowledged without the peer"
    );
    pair.a.go_alone().unwrap();
    writers.expect(200, "alone");
    network.heal();
    pair.wait_paired();
    writers.expect(100, "with the peer again");
    writers.finish().check(&pair.on_b(""));
    assert_eq!(said(&pair.a, "is being brought up to date"), 2);
    pair.assert_identical();
}

#[test]
fn held_writes_are_acknowledged_when_the_peer_returns() {
    let (pair, [network]) = over(ONE, options("hold", 200));
    let writers = Writers::start(pair.on_a(""), 3);
    writers.expect(100, "before");
    let generation = pair.a.status().unwrap()["generation"].clone();
    network.cut();
    wait_link(&pair.a, "holding");
    network.heal();
    writers.expect(200, "after");
    writers.finish().check(&pair.on_b(""));
    assert!(said(&pair.a, "the session goes on") >= 1);
    assert_eq!(pair.a.status().unwrap()["generation"], generation);
    pair.assert_identical();
}

#[test]
fn a_peer_that_was_away_for_long_is_given_time_to_catch_up() {
    let options = Options {
        deadlines: [3000, 5000, 20_000],
        ..options("hold", 200)
    };
    let (pair, [network]) = over(ONE, options);
    let writers = Writers::start(pair.on_a(""), 3);
    writers.expect(100, "before");
    network.cut();
    wait_link(&pair.a, "holding");
    // Longer than an op may wait for a peer that is there.
    std::thread::sleep(Duration::from_millis(5500));
    // Its first receipt takes a moment.
    network.set(Weather {
        delay: 150,
        ..Weather::default()
    });
    writers.expect(20, "after");
    writers.finish().check(&pair.on_b(""));
    assert_eq!(said(&pair.a, "the peer is dropped"), 0);
    network.heal();
    pair.assert_identical();
}

#[test]
fn a_longer_outage_is_survived_alone_and_made_good() {
    let (pair, [network]) = over(ONE, options("alone", 200));
    let writers = Writers::start(pair.on_a(""), 3);
    writers.expect(100, "before");
    network.cut();
    wait_link(&pair.a, "alone");
    writers.expect(200, "alone");
    network.heal();
    pair.wait_paired();
    writers.expect(100, "with the peer again");
    writers.finish().check(&pair.on_b(""));
    pair.assert_identical();
}

#[test]
fn loss_delay_and_disorder_cost_time_and_nothing_else() {
    let (pair, [network]) = over(ONE, Options::default());
    let writers = Writers::start(pair.on_a(""), 4);
    for weather in [
        Weather {
            lost: 10,
            delay: 5,
            ..Weather::default()
        },
        Weather {
            lost: 50,
            delay: 5,
            jitter: 15,
            ..Weather::default()
        },
        Weather {
            lost: 30,
            jitter: 5,
            ..Weather::default()
        },
    ] {
        network.set(weather);
        writers.expect(150, "in bad weather");
    }
    let record = writers.finish();
    // Still in it: what was acknowledged is there, not on its way.
    record.check(&pair.on_b(""));
    network.heal();
    assert_eq!(said(&pair.a, "is being brought up to date"), 1, "no resync");
    pair.assert_identical();
}
