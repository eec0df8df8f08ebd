//! How a verify ends when it is not let to its end.

use std::fs;
use std::time::{Duration, Instant};

use harness::{Options, Pair, free_addresses, wait_until};

use super::relay::Relay;
use super::{DIFFERED, EQUAL, INCOMPLETE, assert_equal, findings, flip};

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

/// One after the other, in one verify: with questions of the first look under way, and
/// with names that are asked for.
#[test]
fn a_connection_that_is_lost_and_comes_back_costs_it_time_only() {
    let [address] = free_addresses(["127.0.0.1"]).unwrap();
    let network = Relay::to(address);
    let pair = Pair::with(Options {
        listen: [vec![address], Vec::new()],
        dial: [Vec::new(), vec![network.address()]],
        deadlines: [1500, 30_000, 30_000],
        more: vec!["--bridge-ms".into(), "60000".into()],
        ..Options::default()
    });
    for n in 0..24 {
        fs::write(pair.on_a(format!("file{n}")), vec![n as u8 + 1; 2 * MIB]).unwrap();
    }
    pair.wait_settled();
    flip(&pair.b.data().join("file3"), 70_000);
    flip(&pair.b.data().join("file20"), 7);
    let mount = pair.a.mount().display().to_string();
    let arguments = ["verify", &mount, "--limit", "4M", "--json"];
    let child = pair.a.spawn(&arguments).unwrap();
    let link = |wanted: &str| {
        let there = || pair.a.status().is_ok_and(|s| s["link"] == wanted);
        assert!(wait_until(PATIENCE, there), "{:?}", pair.a.status());
    };
    let compared = || {
        let status = pair.a.status().unwrap_or_default();
        status["verify"]["compared_bytes"].as_u64().unwrap_or(0)
    };
    for cut in 1..=3u64 {
        assert!(
            wait_until(PATIENCE, || compared() >= cut * 9 * MIB as u64),
            "{}",
            state(&pair)
        );
        network.cut();
        link("bridging");
        assert_eq!(state(&pair), "comparing");
        network.heal();
        link("paired");
    }
    let output = child.wait_with_output().unwrap();
    let complaints = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(DIFFERED), "{complaints}");
    let found: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let paths: Vec<_> = findings(&found).into_iter().map(|f| f.0).collect();
    assert_eq!(paths, ["/file20", "/file3"]);
    assert!(pair.a.log_text().matches("the session goes on").count() >= 3);
}

#[test]
fn a_connection_that_does_not_come_back_ends_it_when_its_bridge_does() {
    let [address] = free_addresses(["127.0.0.1"]).unwrap();
    let network = Relay::to(address);
    let pair = with_data(Options {
        listen: [vec![address], Vec::new()],
        dial: [Vec::new(), vec![network.address()]],
        deadlines: [1500, 30_000, 30_000],
        more: vec!["--bridge-ms".into(), "2000".into()],
        on_peer_loss: "alone",
        ..Options::default()
    });
    let child = begin_slowly(&pair);
    network.cut();
    let (code, text) = said(child);
    assert_eq!(code, INCOMPLETE, "{text}");
    assert!(text.contains("the peer was lost"), "{text}");
}

#[test]
fn on_the_secondary_it_says_where_to_run_it() {
    let pair = with_data(Options::default());
    let (code, _, refused) = pair.b.verify(&[]).unwrap();
    assert_eq!(code, INCOMPLETE);
    assert!(refused.contains("run `verify` on the primary"), "{refused}");
}

#[test]
fn status_tells_how_far_it_is_how_fast_and_how_long_it_takes() {
    let pair = with_data(Options::default());
    for n in 0..8 {
        fs::write(pair.on_a(format!("file{n}")), vec![n; MIB]).unwrap();
    }
    pair.wait_settled();
    let mount = pair.a.mount().display().to_string();
    let child = pair.a.spawn(&["verify", &mount, "--limit", "4M"]).unwrap();
    let (mut seen, mut percent) = (0, 0.0);
    let ended = wait_until(PATIENCE, || {
        let status = pair.a.status().unwrap();
        let verify = &status["verify"];
        let far = verify["percent"].as_f64().unwrap_or(0.0);
        assert!(far >= percent, "{far} % after {percent} %");
        percent = far;
        if verify["state"] == "comparing" && far > 0.0 {
            let number = |name: &str| verify[name].as_f64().filter(|n| n.is_finite());
            assert!(
                far < 100.0 && number("compared_bytes") > Some(0.0),
                "{verify}"
            );
            assert!(number("rate") > Some(0.0), "{verify}");
            assert!(number("seconds_left") >= Some(0.0), "{verify}");
            seen += 1;
        }
        verify["state"] == "done"
    });
    assert!(ended && seen > 0, "{:?}", pair.a.status());
    let (code, text) = said(child);
    assert_eq!(code, EQUAL, "{text}");
    let last = &pair.a.status().unwrap()["verify"];
    assert_eq!(last["percent"], 100.0);
    assert!(last["seconds_left"].is_null(), "{last}");
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
        began.elapsed() >= Duration::from_millis(1900),
        "{:?}",
        began.elapsed()
    );
}
