//! How a verify ends when it is not let to its end.

use std::fs;
use std::time::{Duration, Instant};

use harness::{Options, Pair, wait_until};

use super::{EQUAL, INCOMPLETE, assert_equal};

const PATIENCE: Duration = Duration::from_secs(60);
const MIB: usize = 1 << 20;

fn with_data(options: Options) -> Pair {
    let pair = Pair::with(options);
    fs::write(pair.on_a("file"), vec![7; 8 * MIB]).unwrap();
    pair.wait_settled();
    pair
}

fn state(pair: &Pair) -> String {
    let status = pair.a.status().unwrap_or_default();
    status["verify"]["state"]
        .as_str()
        .unwrap_or("none")
        .to_owned()
}

/// Begins a verify so slow that it is under way for long.
fn begin_slowly(pair: &Pair) -> std::process::Child {
    let mount = pair.a.mount().display().to_string();
    let child = pair.a.spawn(&["verify", &mount, "--limit", "1k"]).unwrap();
    assert!(
        wait_until(PATIENCE, || state(pair) == "comparing"),
        "{}",
        state(pair)
    );
    child
}

fn said(child: std::process::Child) -> (i32, String) {
    let output = child.wait_with_output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (
        output.status.code().unwrap(),
        String::from_utf8_lossy(&text).into_owned(),
    )
}

#[test]
fn an_interrupt_ends_it_in_the_driver_too() {
    let pair = with_data(Options::default());
    let child = begin_slowly(&pair);
    let (code, _, refused) = pair.a.verify(&[]).unwrap();
    assert_eq!(code, INCOMPLETE, "one at a time");
    assert!(refused.contains("a verify runs already"), "{refused}");
    // SAFETY: a system call on the process id of a child that was not waited for.
    unsafe { libc::kill(child.id() as i32, libc::SIGINT) };
    let (code, text) = said(child);
    assert_eq!(code, INCOMPLETE, "{text}");
    assert!(text.contains("interrupted"), "{text}");
    assert_eq!(state(&pair), "failed");
    assert_equal(&pair.a);
}

#[test]
fn a_lost_peer_ends_it_with_a_clear_word() {
    let mut pair = with_data(Options::default());
    let child = begin_slowly(&pair);
    pair.b.kill();
    let (code, text) = said(child);
    assert_eq!(code, INCOMPLETE, "{text}");
    assert!(text.contains("the peer was lost"), "{text}");
    let (code, _, refused) = pair.a.verify(&[]).unwrap();
    assert_eq!(code, INCOMPLETE);
    assert!(refused.contains("not paired"), "{refused}");
}

#[test]
fn on_the_secondary_it_says_where_to_run_it() {
    let pair = with_data(Options::default());
    let (code, _, refused) = pair.b.verify(&[]).unwrap();
    assert_eq!(code, INCOMPLETE);
    assert!(refused.contains("run `verify` on the primary"), "{refused}");
}

#[test]
fn a_limit_is_kept() {
    let pair = with_data(Options::default());
    let began = Instant::now();
    let (code, found, said) = pair.a.verify(&["--limit", "2M"]).unwrap();
    assert_eq!(code, EQUAL, "{said}");
    assert!(found["status"]["compared_bytes"].as_u64().unwrap() >= 8 * MIB as u64);
    // The first batch is free, the second waits for it.
    assert!(
        began.elapsed() >= Duration::from_secs(2),
        "{:?}",
        began.elapsed()
    );
}
