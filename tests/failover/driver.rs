//! What a controller asks of a driver: the facts, giving way, going on by right.

use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use fs_driver::control::{Hex, Request, Standing, socket_path};
use fs_driver::setup::stopped;
use harness::faulty::Fate;
use harness::{Node, Options, Pair, wait_until};
use twinfold_protocol::ids::Generation;

use crate::PATIENCE;

/// Everything a driver tells to one that watches it; ends with the driver.
fn watch(node: &Node) -> Receiver<Standing> {
    let mut stream = UnixStream::connect(socket_path(&node.layout())).unwrap();
    stream.write_all(b"{\"command\":\"watch\"}\n").unwrap();
    let (tell, told) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(stream).lines() {
            let Ok(line) = line else { return };
            let answer: fs_driver::control::Answer = serde_json::from_str(&line).unwrap();
            let _ = tell.send(serde_json::from_value(answer.status.unwrap()).unwrap());
        }
    });
    told
}

/// What a driver tells now.
fn standing(node: &Node) -> Standing {
    watch(node).recv_timeout(PATIENCE).unwrap()
}

fn expect(
    told: &Receiver<Standing>,
    what: &str,
    mut fits: impl FnMut(&Standing) -> bool,
) -> Standing {
    let until = std::time::Instant::now() + PATIENCE;
    loop {
        let left = until.saturating_duration_since(std::time::Instant::now());
        let standing = told
            .recv_timeout(left)
            .unwrap_or_else(|e| panic!("{what}: {e}"));
        if fits(&standing) {
            return standing;
        }
    }
}

fn start(node: &mut Node, role: &str) {
    let mount = node.mount().display().to_string();
    let key = node.key_directory().display().to_string();
    let how = ["--identity", &key, "--controlled", "--present"];
    node.begin(&[&[role, &mount][..], &how].concat()).unwrap();
    assert!(
        wait_until(PATIENCE, || node.is_mounted()),
        "{}",
        node.last_words()
    );
}

/// Both nodes run under a controller's eyes, equal. A policy of going on alone is in the
/// settings, which a controller overrules.
fn pair(options: Options) -> Pair {
    let mut pair = Pair::stopped(Options {
        on_peer_loss: "alone",
        ..options
    });
    start(&mut pair.a, "primary");
    start(&mut pair.b, "secondary");
    pair.wait_paired();
    pair
}

fn generation(standing: &Standing) -> Hex {
    standing.copy.current
}

#[test]
fn a_watch_tells_what_changes_and_ends_with_the_driver() {
    let mut pair = pair(Options::default());
    let (a, b) = (watch(&pair.a), watch(&pair.b));
    let first = expect(&a, "paired", |s| s.session.is_some());
    let second = expect(&b, "paired", |s| s.current);
    assert_eq!(first.session, second.session);
    assert_eq!(generation(&first), generation(&second));
    assert_eq!(Some(first.pid), pair.a.pid());
    assert!(first.mounted && second.mounted);
    // Whether anything changes or not.
    for told in [&a, &b] {
        let mut before = told.recv_timeout(PATIENCE).unwrap();
        expect(told, "that it lives", |s| {
            std::mem::replace(&mut before, s.clone()) == *s
        });
    }
    pair.b.kill();
    let asks = expect(&a, "a question", |s| s.question.is_some());
    assert_eq!(asks.session, first.session, "the copies were equal in it");
    assert!(asks.shared, "the peer may have an up-to-date copy");
    let ended = || loop {
        match b.recv_timeout(Duration::from_millis(1)) {
            Ok(_) => {}
            Err(e) => return e == std::sync::mpsc::RecvTimeoutError::Disconnected,
        }
    };
    assert!(wait_until(PATIENCE, ended));
}

#[test]
fn a_controlled_driver_lets_callers_in_by_tcp_while_it_lives_and_its_kernel_refuses_them_then() {
    let mut pair = pair(Options::default());
    for number in 0..2 {
        let node = if number == 0 {
            &mut pair.a
        } else {
            &mut pair.b
        };
        let settings = fs_driver::state::Settings::load(&node.layout().state()).unwrap();
        let node_is = watch(node);
        expect(&node_is, "presence", |s| s.present);
        let call = || TcpStream::connect_timeout(&settings.listen[0], PATIENCE);
        call().unwrap();
        node.kill();
        assert_eq!(call().unwrap_err().kind(), ErrorKind::ConnectionRefused);
    }
}

#[test]
fn a_controlled_secondary_that_was_restarted_does_not_give_way_before_it_is_told_to() {
    let mut pair = pair(Options::default());
    let was = standing(&pair.b);
    pair.b.kill();
    let a = watch(&pair.a);
    expect(&a, "a question", |s| s.question.is_some());
    start(&mut pair.b, "secondary");
    // It has met its primary, was refused, and keeps its copy.
    let met = || standing(&pair.b).trouble.is_some();
    assert!(wait_until(PATIENCE, met));
    let now = standing(&pair.b);
    assert!(now.copy.up_to_date, "{now:?}");
    assert!(!now.current, "{now:?}");
    let give_way = |generation: Hex| {
        let session = was.session;
        let answer = pair.b.ask(Request::Yield {
            generation,
            session,
        });
        answer.unwrap().unwrap()["yielded"] == true
    };
    assert!(!give_way(Hex(77)), "that is not its generation");
    assert!(standing(&pair.b).copy.up_to_date);
    assert!(give_way(generation(&was)));
    assert!(!give_way(generation(&was)), "it has nothing left to yield");
    // Now nobody can promote it, and the primary goes on.
    expect(&a, "alone", |s| generation(s) != generation(&was));
    pair.wait_paired();
    pair.assert_identical();
}

#[test]
fn a_yield_from_before_the_copies_were_equal_again_changes_nothing() {
    let pair = pair(Options::default());
    let was = standing(&pair.b);
    let answer = pair.b.ask(Request::Yield {
        generation: generation(&was),
        session: Some(Hex(1)),
    });
    assert_eq!(answer.unwrap().unwrap()["yielded"], false);
    assert!(standing(&pair.b).copy.up_to_date);
}

#[test]
fn a_complete_copy_is_promoted_by_right_and_one_that_gave_way_only_if_its_peer_did_not_go_on() {
    let mut pair = pair(Options::default());
    let was = standing(&pair.b);
    pair.b.kill();
    pair.a.kill();
    start(&mut pair.b, "secondary");
    let refused = pair.b.promote(false).unwrap_err();
    assert!(format!("{refused:#}").contains("--force"), "{refused:#}");
    pair.b.ask(Request::Claim { yielded: false }).unwrap();
    let new = standing(&pair.b);
    assert_ne!(generation(&new), generation(&was));
    assert!(!new.copy.forced, "nobody said that anything may be lost");
    std::fs::write(pair.on_b("new"), "of B").unwrap();

    // A's driver does not run: its controller gives way in its place.
    let layout = pair.a.layout();
    assert!(!stopped::yield_copy(&layout, Generation(77)).unwrap());
    assert!(stopped::yield_copy(&layout, Generation(generation(&was).0)).unwrap());
    assert!(!stopped::history(&layout).unwrap().0.up_to_date);
    start(&mut pair.a, "secondary");
    pair.wait_paired();
    pair.assert_identical();

    // B gives way to A, which does not go on.
    pair.a.kill();
    pair.b.kill();
    start(&mut pair.a, "secondary");
    let given = standing(&pair.a);
    let request = Request::Yield {
        generation: generation(&given),
        session: None,
    };
    assert_eq!(pair.a.ask(request).unwrap().unwrap()["yielded"], true);
    assert!(pair.a.ask(Request::Claim { yielded: false }).is_err());
    pair.a.ask(Request::Claim { yielded: true }).unwrap();
    assert!(std::fs::read(pair.on_a("new")).unwrap() == b"of B");
}

#[test]
fn nothing_can_be_yielded_in_place_of_a_driver_that_runs() {
    let pair = pair(Options::default());
    let current = Generation(generation(&standing(&pair.b)).0);
    let refused = stopped::yield_copy(&pair.b.layout(), current).unwrap_err();
    assert!(format!("{refused:#}").contains("runs"), "{refused:#}");
}

#[test]
fn a_decision_to_go_on_alone_does_not_answer_a_later_question() {
    let pair = pair(Options {
        apart: true,
        deadlines: [1_000, 10_000, 20_000],
        ..Options::default()
    });
    let a = watch(&pair.a);
    pair.network().cut().unwrap();
    let first = expect(&a, "a question", |s| s.question.is_some());
    pair.network().heal().unwrap();
    expect(&a, "paired", |s| s.question.is_none());
    pair.network().cut().unwrap();
    let second = expect(&a, "another question", |s| s.question.is_some());
    assert_ne!(first.question, second.question);
    let go_on = |question: Option<u64>| {
        let question = question.unwrap();
        pair.a.ask(Request::GoOn { question })
    };
    assert!(go_on(first.question).is_err());
    assert_eq!(generation(&standing(&pair.a)), generation(&second));
    go_on(second.question).unwrap();
    let alone = expect(&a, "alone", |s| generation(s) != generation(&second));
    assert!(!alone.shared, "{alone:?}");
}

#[test]
fn a_primary_that_gives_way_answers_what_it_held_with_an_error_and_follows_the_other_copy() {
    let mut pair = pair(Options::default());
    std::fs::write(pair.on_a("file"), vec![1; 9000]).unwrap();
    let a = watch(&pair.a);
    pair.b.kill();
    let asks = expect(&a, "a question", |s| s.question.is_some());
    let path = pair.on_a("file");
    let held = std::thread::spawn(move || std::fs::write(path, vec![2; 9000]));
    // It is held, however long.
    std::thread::sleep(Duration::from_millis(500));
    assert!(!held.is_finished());
    let forsake = |question| pair.a.ask(Request::Forsake { question });
    assert!(forsake(77).is_err(), "that is not the question");
    assert!(!held.is_finished());
    forsake(asks.question.unwrap()).unwrap();
    let error = held.join().unwrap().unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EIO), "{error}");
    assert!(std::fs::write(pair.on_a("more"), "").is_err());
    let link = fs_driver::engine::LinkState::Forsaken;
    let gives_way = expect(&a, "forsaken", |s| s.link == link);
    assert_eq!(gives_way.question, None);
    assert_eq!(generation(&gives_way), generation(&asks), "it is not alone");
    pair.a.demote(false).unwrap();
    // The other one has the right to go on.
    start(&mut pair.b, "secondary");
    pair.b.ask(Request::Claim { yielded: false }).unwrap();
    std::fs::write(pair.on_b("new"), "of B").unwrap();
    pair.wait_paired();
    assert_eq!(std::fs::read(pair.on_b("file")).unwrap(), vec![1; 9000]);
    pair.assert_identical();
}

#[test]
fn a_secondary_whose_primary_is_known_to_be_gone_is_told_and_is_ready_to_take_over() {
    let pair = pair(Options::default());
    let b = watch(&pair.b);
    pair.a.freeze();
    pair.b.ask(Request::Disconnect).unwrap();
    let left = expect(&b, "waiting", |s| {
        s.link == fs_driver::engine::LinkState::Waiting
    });
    assert!(left.current, "{left:?}");
    pair.b.promote(false).unwrap();
}

#[test]
fn a_copy_that_lost_acknowledged_writes_with_its_power_is_not_promoted_by_right() {
    let mut pair = pair(Options {
        disks: [Some(64 << 20); 2],
        ..Options::default()
    });
    let lost = |_: usize, _: &harness::faulty::Request| Fate::Lost;
    let refused = |node: &Node| {
        let told = standing(node);
        assert!(told.copy.cut && !told.copy.up_to_date, "{told:?}");
        let claim = node.ask(Request::Claim { yielded: false });
        assert!(claim.is_err(), "{claim:?}");
    };
    // The secondary's power is cut, and then its primary's driver dies, which has it all.
    std::fs::write(pair.on_a("first"), "acknowledged").unwrap();
    pair.cut_power(1, lost);
    pair.a.kill();
    start(&mut pair.b, "secondary");
    refused(&pair.b);
    start(&mut pair.a, "primary");
    pair.wait_paired();
    pair.assert_identical();
    assert_eq!(std::fs::read(pair.on_b("first")).unwrap(), b"acknowledged");

    // The primary's power is cut, and it is back before its secondary was promoted.
    std::fs::write(pair.on_a("second"), "acknowledged").unwrap();
    pair.cut_power(0, lost);
    start(&mut pair.a, "secondary");
    refused(&pair.a);
    pair.b.promote(false).unwrap();
    pair.wait_paired();
    pair.assert_identical();
    assert_eq!(std::fs::read(pair.on_a("second")).unwrap(), b"acknowledged");

    // Both lose their power: by right all the same, for nobody has more.
    let was = standing(&pair.b);
    for node in 0..2 {
        pair.cut_power(node, lost);
    }
    for node in [&mut pair.a, &mut pair.b] {
        start(node, "secondary");
        refused(node);
    }
    let give_way = Request::Yield {
        generation: generation(&was),
        session: was.session,
    };
    assert_eq!(pair.b.ask(give_way).unwrap().unwrap()["yielded"], true);
    pair.a.ask(Request::Claim { yielded: true }).unwrap();
    pair.wait_paired();
    pair.assert_identical();
}

#[test]
fn a_secondary_with_every_acknowledged_write_on_its_disk_survives_a_power_cut() {
    let mut pair = pair(Options {
        ack: "disk",
        disks: [None, Some(64 << 20)],
        ..Options::default()
    });
    std::fs::write(pair.on_a("file"), "acknowledged").unwrap();
    pair.cut_power(1, |_, _| Fate::Lost);
    pair.a.kill();
    start(&mut pair.b, "secondary");
    pair.b.ask(Request::Claim { yielded: false }).unwrap();
    assert_eq!(std::fs::read(pair.on_b("file")).unwrap(), b"acknowledged");
}
