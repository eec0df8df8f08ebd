//! An application that opens more than the driver can have open.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::time::Duration;

use harness::{Options, Pair, wait_until};
use rustix::io::Errno;

use crate::area::code;

/// Not a promise about speed: only so that a test ends.
const PATIENCE: Duration = Duration::from_secs(60);

#[test]
fn an_application_that_opens_too_much_is_told_and_nothing_else_is_hurt() {
    let pair = Pair::with(Options {
        descriptors: Some(512),
        ..Options::default()
    });
    let file = File::create(pair.on_a("first")).unwrap();
    let mut held = Vec::new();
    for n in 0..400 {
        let opened = File::create(pair.on_a(n.to_string()));
        match opened {
            Ok(file) => held.push(file),
            Err(e) => {
                assert_eq!(code::<()>(Err(e)), Some(Errno::NFILE));
                break;
            }
        }
    }
    assert!((50..300).contains(&held.len()), "{} are open", held.len());
    assert!(
        !pair.on_a(held.len().to_string()).exists(),
        "made, not opened"
    );
    let listed = fs::read_dir(pair.a.mount());
    assert_eq!(code(listed.map(drop)), Some(Errno::NFILE));
    // Notes, checkpoints and other changes go on.
    for n in 0..4u64 {
        file.write_all_at(b"cold", n << 30).unwrap();
        fs::create_dir(pair.on_a(format!("d{n}"))).unwrap();
        pair.checkpoint();
    }
    let status = pair.a.status().unwrap();
    assert_eq!(status["link"], "paired", "{status}");
    assert_eq!(status["fenced"], serde_json::Value::Null);
    let half = held.len() / 2;
    drop(held);
    // The kernel tells of a last close after it has returned to the program.
    let again = || {
        let opened = (0..half).map(|n| File::open(pair.on_a(n.to_string())));
        opened.collect::<Result<Vec<_>, _>>().is_ok()
    };
    assert!(wait_until(PATIENCE, again), "{}", pair.a.last_words());
    pair.assert_identical();
}
