//! Nodes that stand still without a word, and come back.

use std::os::unix::fs::FileExt;
use std::time::Duration;

use fs_driver::control::Request;
use harness::{Options, Pair, Role, wait_until};

use crate::stage::{said, wait_link};
use crate::writers::Writers;

fn options(on_peer_loss: &'static str) -> Options {
    Options {
        on_peer_loss,
        deadlines: [1500, 10_000, 20_000],
        ..Options::default()
    }
}

#[test]
fn a_frozen_secondary_is_dropped_and_brought_up_again() {
    let pair = Pair::with(options("alone"));
    let writers = Writers::start(pair.on_a(""), 3);
    writers.expect(100, "before");
    pair.b.freeze();
    wait_link(&pair.a, "alone");
    writers.expect(200, "without the frozen one");
    pair.b.thaw();
    pair.wait_paired();
    writers.expect(100, "with it again");
    writers.finish().check(&pair.on_b(""));
    pair.assert_identical();
}

#[test]
fn in_mode_flush_a_sync_waits_for_a_frozen_secondary_until_it_is_dropped_and_a_write_does_not() {
    let pair = Pair::with(Options {
        ack: "flush",
        // Long beside what a write takes on a busy machine.
        deadlines: [8_000, 20_000, 40_000],
        ..options("alone")
    });
    let file = std::fs::File::create(pair.on_a("file")).unwrap();
    pair.b.freeze();
    file.write_all_at(b"written", 0).unwrap();
    assert_eq!(said(&pair.a, "going on alone"), 0, "the write waited");
    file.sync_all().unwrap();
    assert_ne!(said(&pair.a, "going on alone"), 0, "the sync did not wait");
    pair.b.thaw();
    pair.wait_paired();
    assert_eq!(std::fs::read(pair.on_b("file")).unwrap(), b"written");
    pair.assert_identical();
}

#[test]
fn a_thawed_primary_acknowledges_nothing_that_its_successor_lacks() {
    let mut pair = Pair::with(options("hold"));
    let writers = Writers::start(pair.on_a(""), 3);
    writers.expect(100, "before");
    pair.a.freeze();
    wait_link(&pair.b, "waiting");
    pair.b.promote(false).unwrap();
    let held = writers.acknowledged();
    std::fs::write(pair.on_b("successor"), "new").unwrap();
    pair.a.thaw();
    wait_link(&pair.a, "holding");
    // What the peer had acknowledged before may still come out; nothing after that.
    let mut settled = writers.acknowledged();
    let stays = wait_until(Duration::from_secs(30), || {
        std::thread::sleep(Duration::from_millis(500));
        let before = settled;
        settled = writers.acknowledged();
        settled == before
    });
    assert!(stays, "acknowledged without the peer");
    assert!(settled >= held);

    // The old primary as the secondary of the new one: nothing is merged silently.
    pair.a.kill();
    let record = writers.finish_whatever_happened();
    record.check(&pair.on_b(""));
    pair.a.start(Role::Secondary).unwrap();
    pair.wait_paired();
    assert_eq!(std::fs::read(pair.on_a("successor")).unwrap(), b"new");
    record.check(&pair.on_a(""));
    pair.assert_identical();
}

#[test]
fn two_primaries_are_told_apart_and_nothing_is_merged() {
    let mut pair = Pair::with(options("hold"));
    std::fs::write(pair.on_a("common"), "both").unwrap();
    pair.a.freeze();
    wait_link(&pair.b, "waiting");
    pair.b.promote(false).unwrap();
    std::fs::write(pair.on_b("of-b"), "b").unwrap();
    pair.a.thaw();
    // The old one is told to go on, against all advice: now there are two lines.
    let alone = || pair.a.go_alone().is_ok();
    assert!(wait_until(Duration::from_secs(30), alone));
    wait_link(&pair.a, "alone");
    std::fs::write(pair.on_a("of-a"), "a").unwrap();
    let from = pair.a.log_text().len();
    // One of them shall follow the other.
    pair.b.demote(true).unwrap();
    pair.a.expect_log(from, "split brain");
    let told = || {
        let status = pair.b.status().unwrap();
        let trouble = status["trouble"].as_str().unwrap_or_default().to_owned();
        trouble.contains("split brain")
    };
    assert!(wait_until(Duration::from_secs(30), told));
    assert!(!pair.on_a("of-b").exists() && pair.on_b("of-b").exists());
    assert!(pair.on_a("of-a").exists() && !pair.on_b("of-a").exists());
    // Only in so many words is one of the two given up.
    pair.b
        .ask(Request::Discard {
            without_archive: false,
        })
        .unwrap();
    pair.wait_paired();
    assert!(!pair.on_b("of-b").exists() && pair.on_b("of-a").exists());
    assert_eq!(said(&pair.b, "this copy is up to date"), 2);
    pair.assert_identical();
    pair.b.kill();
}
