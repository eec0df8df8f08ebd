//! State that survives: what a node knows of its copy after a stop, a crash, a demotion,
//! and when a part of its state is damaged or gone.

// A test's helpers fail the test.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::Duration;

use harness::{Node, Options, Pair, Role, wait_until};

const PATIENCE: Duration = Duration::from_secs(60);
const BLOCK: u64 = 4096;

/// Blocks written far apart: each in an extent of its own, so that notes would be coarse.
const BLOCKS: u64 = 24;

fn write_blocks(pair: &Pair, name: &str, byte: u8) {
    let file = fs::File::options()
        .write(true)
        .open(pair.on_a(name))
        .unwrap();
    for n in 0..BLOCKS {
        file.write_all_at(&[byte; BLOCK as usize], n * (4 << 20))
            .unwrap();
    }
}

/// A pair with a large file with data in every extent, settled and flushed on both nodes.
fn pair() -> Pair {
    let pair = Pair::with(Options {
        on_peer_loss: "alone",
        // No checkpoint comes in between, however slow the machine is.
        more: vec!["--checkpoint-s".into(), "3600".into()],
        ..Options::default()
    });
    fs::File::create(pair.on_a("image"))
        .unwrap()
        .set_len(BLOCKS * (4 << 20))
        .unwrap();
    write_blocks(&pair, "image", 1);
    pair.wait_settled();
    for _ in 0..2 {
        let flushed = || {
            pair.checkpoint();
            pair.a.status().is_ok_and(|s| s["unflushed_objects"] == 0)
        };
        assert!(wait_until(PATIENCE, flushed), "{:?}", pair.a.status());
    }
    pair
}

fn number(node: &Node, key: &str) -> u64 {
    let status = node.status().unwrap();
    status[key]
        .as_u64()
        .unwrap_or_else(|| panic!("{key}: {status}"))
}

fn moved(node: &Node) -> u64 {
    let status = node.status().unwrap();
    status["resync"]["moved_bytes"]
        .as_u64()
        .unwrap_or_else(|| panic!("{status}"))
}

fn wait_alone(node: &Node) {
    let alone = || node.status().is_ok_and(|s| s["link"] == "alone");
    assert!(wait_until(PATIENCE, alone), "{:?}", node.status());
}

/// Waits until the log of a primary, without its colours, has what its target told.
fn expect_told(node: &Node, from: usize, what: &str) {
    let told = || {
        let text = node.log_text();
        let plain: String = text[from..]
            .split('\x1b')
            .enumerate()
            .map(|(i, part)| match part.split_once('m') {
                Some((_, rest)) if i > 0 => rest,
                _ => part,
            })
            .collect();
        plain
            .lines()
            .any(|line| line.contains("method=Marks") && line.contains(what))
    };
    assert!(wait_until(PATIENCE, told), "{what}: {}", node.log_text());
}

fn state(node: &Node) -> PathBuf {
    node.layout().state()
}

/// B leaves in order, and A writes one block in each extent.
fn written_alone() -> Pair {
    let mut pair = pair();
    pair.b.stop().unwrap();
    wait_alone(&pair.a);
    write_blocks(&pair, "image", 2);
    pair
}

#[test]
fn what_a_primary_wrote_alone_is_known_to_the_block_after_an_orderly_stop() {
    let mut pair = written_alone();
    pair.a.stop().unwrap();
    pair.a.start(Role::Primary).unwrap();
    assert_eq!(number(&pair.a, "dirty_bytes"), BLOCKS * BLOCK);
    assert_eq!(number(&pair.a, "suspect_objects"), 0);
    pair.b.start(Role::Secondary).unwrap();
    expect_told(&pair.a, 0, "notes=0 objects=0");
    pair.assert_identical();
    assert_eq!(moved(&pair.a), BLOCKS * BLOCK);
}

#[test]
fn a_crash_costs_only_what_came_after_the_last_checkpoint_alone() {
    let mut pair = written_alone();
    pair.a.ask(fs_driver::control::Request::Checkpoint).unwrap();
    let segments = || {
        fs::read_dir(state(&pair.a).join("intents"))
            .unwrap()
            .count()
    };
    assert_eq!(segments(), 1, "the log does not grow while a node is alone");
    fs::write(pair.on_a("later"), [3; 10_000]).unwrap();
    pair.a.kill();
    pair.a.start(Role::Primary).unwrap();
    // The image exactly; what came later is noted and compared.
    assert_eq!(number(&pair.a, "dirty_bytes"), BLOCKS * BLOCK);
    pair.b.start(Role::Secondary).unwrap();
    pair.assert_identical();
    assert!(
        moved(&pair.a) <= BLOCKS * BLOCK + 3 * BLOCK,
        "{}",
        moved(&pair.a)
    );
}

#[test]
fn a_secondary_that_leaves_in_order_has_nothing_to_tell_when_it_returns() {
    let mut pair = pair();
    write_blocks(&pair, "image", 5);
    pair.wait_settled();
    // No checkpoint comes in between.
    pair.b.stop().unwrap();
    wait_alone(&pair.a);
    let file = fs::File::options()
        .write(true)
        .open(pair.on_a("image"))
        .unwrap();
    file.write_all_at(&[6; BLOCK as usize], 5 * (4 << 20))
        .unwrap();
    drop(file);
    let from = pair.a.log_text().len();
    pair.b.start(Role::Secondary).unwrap();
    expect_told(&pair.a, from, "notes=0 objects=0");
    pair.assert_identical();
    assert_eq!(moved(&pair.a), BLOCK);
}

#[test]
fn a_primary_that_dies_after_its_secondary_has_left_still_tells_what_it_changed() {
    let mut pair = pair();
    write_blocks(&pair, "image", 5);
    pair.wait_settled();
    pair.b.stop().unwrap();
    wait_alone(&pair.a);
    fs::write(pair.on_a("alone"), b"a").unwrap();
    pair.a.kill();
    // What was alone is given up: B goes on from what it had.
    pair.b.start(Role::ForcedPrimary).unwrap();
    fs::write(pair.on_b("later"), b"b").unwrap();
    pair.a.start(Role::Secondary).unwrap();
    let refused = || pair.a.status().is_ok_and(|s| !s["trouble"].is_null());
    assert!(wait_until(PATIENCE, refused), "{:?}", pair.a.status());
    pair.a
        .ask(fs_driver::control::Request::Discard {
            without_archive: true,
        })
        .unwrap();
    pair.assert_identical();
    assert!(!pair.on_a("alone").exists() && pair.on_a("later").exists());
}

#[test]
fn a_demoted_primary_tells_exactly_what_it_had_changed_also_after_a_restart() {
    let mut pair = written_alone();
    pair.a.demote(false).unwrap();
    pair.a.stop().unwrap();
    pair.b.start(Role::ForcedPrimary).unwrap();
    pair.a.start(Role::Secondary).unwrap();
    let refused = || pair.a.status().is_ok_and(|s| !s["trouble"].is_null());
    assert!(wait_until(PATIENCE, refused), "{:?}", pair.a.status());
    pair.a
        .ask(fs_driver::control::Request::Discard {
            without_archive: true,
        })
        .unwrap();
    expect_told(&pair.b, 0, "notes=0 objects=1");
    pair.assert_identical();
    assert_eq!(moved(&pair.b), BLOCKS * BLOCK);
}

#[test]
fn damaged_marks_are_named_and_everything_is_compared() {
    let mut pair = written_alone();
    pair.a.stop().unwrap();
    let path = state(&pair.a).join("marks");
    let mut bytes = fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&path, bytes).unwrap();
    pair.a.start(Role::Primary).unwrap();
    let status = pair.a.status().unwrap();
    let damage = status["damage"].as_str().unwrap_or_default();
    assert!(damage.contains("checksum"), "{status}");
    pair.b.start(Role::Secondary).unwrap();
    pair.assert_identical();
    assert_eq!(moved(&pair.a), BLOCKS * BLOCK, "only what differs is moved");
    assert!(pair.a.status().unwrap()["damage"].is_null());
}

#[test]
fn a_damaged_intent_log_is_named_and_everything_is_compared() {
    // The first record, with others behind it; and a segment of another version.
    let torn = |bytes: &mut [u8]| bytes[33] ^= 1;
    let newer = |bytes: &mut [u8]| {
        bytes[8] = 2;
        let crc = crc32c::crc32c(&bytes[..28]).to_le_bytes();
        bytes[28..32].copy_from_slice(&crc);
    };
    for damage in [torn, newer] {
        let mut pair = written_alone();
        pair.a.kill();
        let mut damaged = 0;
        for segment in fs::read_dir(state(&pair.a).join("intents")).unwrap() {
            let path = segment.unwrap().path();
            let mut bytes = fs::read(&path).unwrap();
            if bytes[64..].iter().any(|b| *b != 0) {
                damage(&mut bytes);
                fs::write(&path, bytes).unwrap();
                damaged += 1;
            }
        }
        assert!(damaged > 0, "no segment has two notes");
        pair.a.start(Role::Primary).unwrap();
        let status = pair.a.status().unwrap();
        let told = status["damage"].as_str().unwrap_or_default();
        assert!(told.contains("intent log"), "{status}");
        pair.b.start(Role::Secondary).unwrap();
        pair.assert_identical();
        assert_eq!(moved(&pair.a), BLOCKS * BLOCK, "only what differs is moved");
        assert!(pair.a.status().unwrap()["damage"].is_null());
    }
}

#[test]
fn a_copy_whose_history_cannot_be_read_is_no_primary_and_is_compared_as_a_secondary() {
    let mut pair = written_alone();
    let path = state(&pair.b).join("copy");
    let good = fs::read(&path).unwrap();
    fs::write(&path, vec![0xff; good.len()]).unwrap();
    for role in [Role::Primary, Role::ForcedPrimary, Role::Secondary] {
        let error = format!("{:#}", pair.b.start(role).unwrap_err());
        assert!(error.contains("--history-unknown"), "{role:?}: {error}");
    }
    pair.b.start(Role::HistoryUnknown).unwrap();
    pair.assert_identical();
    assert_eq!(moved(&pair.a), BLOCKS * BLOCK, "only what differs is moved");
    assert!(state(&pair.b).join("copy.damaged").exists());
    // Its history is its peer's from now on.
    pair.b.stop().unwrap();
    assert!(
        pair.b.start(Role::HistoryUnknown).is_err(),
        "it can be read"
    );
    pair.b.start(Role::Secondary).unwrap();
    pair.assert_identical();
}

/// All of such a copy is kept before it is overwritten; where there is no room for that, an
/// operator can do without.
#[test]
fn a_copy_of_unknown_history_that_cannot_be_kept_is_overwritten_when_an_operator_says_so() {
    let mut pair = Pair::with(Options {
        small_disk: Some(96 << 20),
        ..Options::default()
    });
    fs::write(pair.on_a("large"), vec![7; 48 << 20]).unwrap();
    pair.assert_identical();
    pair.a.demote(false).unwrap();
    pair.b.promote(false).unwrap();
    pair.wait_paired();
    pair.a.stop().unwrap();
    let path = state(&pair.a).join("copy");
    let good = fs::read(&path).unwrap();
    fs::write(&path, vec![0xff; good.len()]).unwrap();
    fs::write(pair.on_b("more"), "more").unwrap();
    pair.a.start(Role::HistoryUnknown).unwrap();
    pair.a.expect_log(0, "--without-archive");
    let discard = |without_archive| {
        pair.a
            .ask(fs_driver::control::Request::Discard { without_archive })
    };
    assert!(discard(false).is_err());
    discard(true).unwrap();
    pair.assert_identical();
    assert!(pair.on_a("more").exists());
    pair.a.kill();
}

#[test]
fn a_folder_that_is_given_back_in_the_middle_of_a_resync_loses_nothing() {
    let mut pair = pair();
    pair.b.stop().unwrap();
    // As a resync leaves it that breaks off between the old name and the new one.
    fs::rename(
        pair.b.data().join("image"),
        pair.b.layout().aside().join("0000020000000001"),
    )
    .unwrap();
    let mount = pair.b.mount().display().to_string();
    let said = pair.b.run(&["deinit", &mount, "--force"]).unwrap();
    let beside = pair.beside("b/.vm.twinfold-aside");
    assert!(said.contains(&beside.display().to_string()), "{said}");
    let kept = fs::read(beside.join("0000020000000001")).unwrap();
    assert!(kept == fs::read(pair.on_a("image")).unwrap());
    assert!(!pair.on_b("image").exists() && pair.b.mount().is_dir());
}
