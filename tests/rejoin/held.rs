//! Writes that wait for a lost peer keep nothing else from going on.

use std::fs;
use std::io::Write;
use std::time::Duration;

use harness::{Pair, Role, wait_until};

/// More than the window of bytes in flight holds, in more calls than the driver has threads.
const WRITERS: usize = 100;
const BYTES: usize = 1 << 20;

#[test]
fn reads_go_on_while_more_writes_wait_than_the_window_holds() {
    let pair = Pair::new();
    fs::write(pair.on_a("before"), b"here").unwrap();
    let files: Vec<_> = (0..WRITERS)
        .map(|n| fs::File::create(pair.on_a(format!("w{n}"))).unwrap())
        .collect();
    pair.wait_settled();
    pair.b.freeze();
    let writers: Vec<_> = files
        .into_iter()
        .enumerate()
        .map(|(n, mut file)| std::thread::spawn(move || file.write_all(&vec![n as u8 + 1; BYTES])))
        .collect();
    let full = wait_until(Duration::from_secs(20), || {
        pair.a
            .status()
            .is_ok_and(|s| s["in_flight_ops"].as_u64() >= Some(WRITERS as u64 / 2))
    });
    assert!(full, "{:?}", pair.a.status());
    let (said, heard) = std::sync::mpsc::channel();
    let path = pair.on_a("before");
    std::thread::spawn(move || said.send(fs::read(path).unwrap()));
    let read = heard.recv_timeout(Duration::from_secs(20));
    pair.b.thaw();
    assert_eq!(read.as_deref(), Ok(&b"here"[..]), "a read had to wait");
    for writer in writers {
        writer.join().unwrap().unwrap();
    }
    pair.assert_identical();
    for n in 0..WRITERS {
        let data = fs::read(pair.on_b(format!("w{n}"))).unwrap();
        assert!(data == vec![n as u8 + 1; BYTES], "w{n}");
    }
}

/// The secondary's process dies and comes back: it knows of no session any more and
/// nobody can promote it, so a primary that holds has nothing left to be asked.
#[test]
fn a_primary_that_holds_goes_on_when_its_restarted_secondary_comes_back() {
    let mut pair = Pair::new();
    fs::write(pair.on_a("before"), b"here").unwrap();
    pair.b.kill();
    let path = pair.on_a("held");
    let writer = std::thread::spawn(move || fs::write(path, b"written without the peer"));
    let holds = wait_until(Duration::from_secs(60), || {
        pair.a.status().is_ok_and(|s| s["link"] == "holding")
    });
    assert!(holds, "{:?}", pair.a.status());
    assert!(!writer.is_finished(), "acknowledged without the right to");
    pair.b.start(Role::Secondary).unwrap();
    let done = wait_until(Duration::from_secs(60), || writer.is_finished());
    assert!(done, "{:?}", pair.a.status());
    writer.join().unwrap().unwrap();
    pair.assert_identical();
}
