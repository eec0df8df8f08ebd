//! A hostile secondary against a real primary: it is dropped with the reason, and the
//! application and its data notice nothing.

use std::io::Write;

use bytes::Bytes;
use harness::{Node, Options, Role};
use quinn::{Connection, Endpoint};
use twinfold_protocol::handshake::{CopyState, Role as Part};
use twinfold_protocol::ids::{Epoch, FileId, Generation, ModuleId, Seq, SessionId};
use twinfold_protocol::limits;
use twinfold_protocol::marks::Intent;
use twinfold_protocol::wire::{
    Account, CompareAnswer, CompareRequest, Control, Hello, Holds, OpStreamStart, Receipt,
};

use crate::frames;
use crate::stage::{Stage, assert_unharmed, store, wait_alone};
use crate::wire::{ALPN, Key, Stream, dial, dialler, ending, run};

/// Dials A with B's key.
struct Impostor {
    endpoint: Endpoint,
    to: std::net::SocketAddr,
    name: String,
}

impl Impostor {
    fn of(b: &Node, a: &Node) -> Impostor {
        Impostor {
            endpoint: dialler(Some(&Key::of(b)), ALPN),
            to: a.addresses()[0],
            name: "vm".to_owned(),
        }
    }

    /// What a new, empty secondary says.
    fn hello(&self) -> Hello {
        Hello {
            versions: Hello::VERSIONS,
            name: self.name.clone(),
            role: Part::Secondary,
            copy: CopyState::default(),
            epoch: Epoch(2),
            resume: None,
            account: Account::default(),
        }
    }

    async fn call(&self) -> (Connection, Stream) {
        let connection = dial(&self.endpoint, self.to).await;
        let control = Stream::open(&connection).await;
        (connection, control)
    }

    /// Says this first; returns the primary's hello and what it says then.
    async fn greet(&self, hello: &Hello) -> (Connection, Stream, Hello, Control) {
        let (connection, mut control) = self.call().await;
        control.send(&bytes(&Control::Hello(hello.clone()))).await;
        let mut next = async || Control::decode(control.frame().await.unwrap()).unwrap();
        let Control::Hello(theirs) = next().await else {
            panic!("no hello");
        };
        let then = next().await;
        (connection, control, theirs, then)
    }

    /// Goes on to the op stream as an empty secondary.
    async fn begin(&self) -> (Connection, Stream, Stream) {
        let (connection, mut control, _, decided) = self.greet(&self.hello()).await;
        assert!(matches!(decided, Control::Decide { .. }), "{decided:?}");
        control.send(&marks(&[], false)).await;
        let mut stream = Stream::accept(&connection).await.unwrap();
        loop {
            let frame = stream.frame().await;
            match frame {
                Ok(frame) if OpStreamStart::decode(frame.clone()).is_ok() => {
                    return (connection, control, stream);
                }
                // Suspects are compared first: nothing of the primary's is here.
                Ok(frame) => {
                    CompareRequest::decode(frame).unwrap();
                    stream
                        .send(&CompareAnswer::Missing.encode().to_bytes())
                        .await;
                }
                Err(_) => stream = Stream::accept(&connection).await.unwrap(),
            }
        }
    }
}

fn bytes(frame: &Control) -> Bytes {
    frame.encode().to_bytes()
}

fn marks(intents: &[Intent], more: bool) -> Bytes {
    bytes(&Control::Marks {
        intents: intents.to_vec(),
        damaged: false,
        holds: Holds::Nothing,
        more,
    })
}

/// A runs alone: the pair was never whole, so nobody has to be asked.
fn stage() -> Stage {
    let mut stage = Stage::new(Options {
        on_peer_loss: "alone",
        ..Options::default()
    });
    stage.pair.b.stop().unwrap();
    wait_alone(&stage.pair.a);
    stage
}

fn end(mut stage: Stage) {
    std::fs::write(stage.pair.on_a("afterwards"), "still here").unwrap();
    stage.pair.b.start(Role::Secondary).unwrap();
    stage.pair.assert_identical();
    stage.assert_outside_untouched("a hostile secondary");
}

#[test]
fn a_primary_refuses_a_bad_beginning() {
    let stage = stage();
    let a = &stage.pair.a;
    let before = store(a);
    let op = frames::op(1, frames::write(FileId::ROOT));
    let start = crate::impostor::start(SessionId(1), 1);
    let cases: Vec<(&str, Vec<Bytes>, bool, &str)> = vec![
        ("silence", vec![], false, "no control stream"),
        (
            "half a hello",
            vec![frames::half()],
            false,
            "the peer sent no hello",
        ),
        (
            "half a hello and the end",
            vec![frames::half()],
            true,
            "the stream ended",
        ),
        (
            "an unknown kind",
            vec![frames::unknown()],
            false,
            "unknown control frame 200",
        ),
        (
            "an oversized frame",
            vec![frames::oversized()],
            false,
            "1114112 are allowed",
        ),
        (
            "an op stream",
            vec![start, op.clone()],
            false,
            "unknown control frame 64",
        ),
        ("an op", vec![op], false, "unknown protocol"),
        (
            "marks before the hello",
            vec![marks(&[], false)],
            false,
            "the first frame was no hello",
        ),
    ];
    run(async {
        let impostor = Impostor::of(&stage.pair.b, a);
        for (what, frames, ends, says) in cases {
            let from = a.log_text().len();
            let (connection, mut control) = impostor.call().await;
            for frame in &frames {
                control.send(frame).await;
            }
            if ends {
                let _ = control.tx.finish();
            }
            let told = ending(&connection).await;
            assert!(told.contains(says), "{what}: the peer was told {told:?}");
            a.expect_log(from, says);
            assert_unharmed(a, &before, what);
        }
    });
    end(stage);
}

#[test]
fn a_primary_puts_a_limit_on_streams_and_connections_cost_it_nothing() {
    let stage = stage();
    let a = &stage.pair.a;
    let before = store(a);
    run(async {
        let impostor = Impostor::of(&stage.pair.b, a);
        let (connection, _control, _ops) = impostor.begin().await;
        let mut streams = Vec::new();
        let enough = std::time::Duration::from_millis(300);
        while let Ok(Ok(stream)) = tokio::time::timeout(enough, connection.open_bi()).await {
            streams.push(stream);
            assert!(streams.len() < 100, "the primary puts no limit on streams");
        }
        let uni = tokio::time::timeout(enough, connection.open_uni()).await;
        assert!(uni.is_err(), "nobody needs streams of one direction");
        // As long as it may become current, writes wait for it.
        connection.close(0u32.into(), b"enough");
        impostor.endpoint.wait_idle().await;
        wait_alone(a);
        // Whoever says nothing is given up.
        let mut silent = Vec::new();
        for _ in 0..100 {
            silent.push(dial(&impostor.endpoint, impostor.to).await);
        }
        std::fs::write(stage.pair.on_a("meanwhile"), "undisturbed").unwrap();
        std::fs::remove_file(stage.pair.on_a("meanwhile")).unwrap();
        for connection in &silent {
            let told = ending(connection).await;
            assert!(told.contains("no control stream"), "{told}");
        }
    });
    // Only the time of the root may have changed: the application has just used it.
    let changes = before.changes(&store(a));
    assert!(changes.len() <= 1, "{changes:#?}");
    end(stage);
}

#[test]
fn a_primary_refuses_a_copy_that_does_not_fit() {
    let stage = stage();
    let a = &stage.pair.a;
    let before = store(a);
    run(async {
        let impostor = Impostor::of(&stage.pair.b, a);
        let (connection, _, known, _) = impostor.greet(&impostor.hello()).await;
        connection.close(0u32.into(), b"");
        let known = known.copy;
        let copy = |change: fn(&mut CopyState)| {
            let mut copy = known.clone();
            change(&mut copy);
            Hello {
                copy,
                ..impostor.hello()
            }
        };
        let cases = [
            (
                "a newer version",
                Hello {
                    versions: (2, 3),
                    ..impostor.hello()
                },
                "cannot talk to each other",
            ),
            (
                "an older version",
                Hello {
                    versions: (0, 0),
                    ..impostor.hello()
                },
                "update twinfold on the peer",
            ),
            (
                "another module's name",
                Hello {
                    name: "other".into(),
                    ..impostor.hello()
                },
                "check the addresses",
            ),
            (
                "another module",
                copy(|c| c.module = ModuleId(5)),
                "different modules",
            ),
            (
                "a second primary",
                Hello {
                    role: Part::Primary,
                    ..copy(|_| ())
                },
                "both nodes are primary",
            ),
            (
                "a newer copy",
                copy(|c| *c = c.go_alone(Generation(5))),
                "has the newer copy but is not primary",
            ),
            (
                "nothing in common",
                copy(|c| {
                    *c = CopyState {
                        module: c.module,
                        current: Generation(5),
                        ..CopyState::default()
                    };
                }),
                "no generation in common",
            ),
            (
                "a split",
                copy(|c| {
                    let base = c.history.first().copied().unwrap_or(c.current);
                    c.current = Generation(5);
                    c.bases = vec![base];
                }),
                "split brain",
            ),
        ];
        for (what, hello, says) in cases {
            let from = a.log_text().len();
            let (connection, _control, _, answer) = impostor.greet(&hello).await;
            let Control::Refuse { reason } = answer else {
                panic!("{what}: {answer:?}");
            };
            assert!(reason.contains(says), "{what}: {reason}");
            a.expect_log(from, says);
            ending(&connection).await;
            assert_unharmed(a, &before, what);
        }
        // A session that never was is no session to go on with: it begins anew.
        let resume = Some((SessionId(0xbad), Seq(17)));
        let hello = Hello {
            resume,
            ..impostor.hello()
        };
        let (_connection, _control, _, answer) = impostor.greet(&hello).await;
        assert!(matches!(answer, Control::Decide { .. }), "{answer:?}");
    });
    end(stage);
}

#[test]
fn a_primary_refuses_marks_that_are_none() {
    let stage = stage();
    let a = &stage.pair.a;
    let before = store(a);
    let hello = |i: &Impostor| bytes(&Control::Hello(i.hello()));
    let crooked = FileId((1 << FileId::COUNTER_BITS) + (1 << FileId::COUNTER_BITS) - 3);
    let count = {
        let mut body = vec![0u8; 3];
        body.extend_from_slice(&(limits::MAX_MARKS_PER_FRAME as u32 + 1).to_le_bytes());
        body.resize(body.len() + 20 * (limits::MAX_MARKS_PER_FRAME + 1), 2);
        crate::wire::frame(5, &body)
    };
    run(async {
        let impostor = Impostor::of(&stage.pair.b, a);
        let cases = [
            ("two hellos", hello(&impostor), "expected marks"),
            (
                "an unknown mark",
                crate::wire::frame(5, &[0, 0, 0, 1, 0, 0, 0, 99]),
                "unknown mark 99",
            ),
            ("too many marks", count, "the limit is 4096"),
            (
                "contents that are none",
                crate::wire::frame(5, &[0, 0, 3, 0, 0, 0, 0]),
                "unknown contents 3",
            ),
            (
                "marks that are not there",
                crate::wire::frame(5, &[0, 0, 0, 255, 0, 0, 0, 2]),
                "ends inside a value",
            ),
            (
                "a block of ids that is none",
                marks(&[Intent::NewIds { first: crooked }], false),
                "does not start at a block",
            ),
            (
                "an oversized frame",
                frames::oversized(),
                "1114112 are allowed",
            ),
        ];
        for (what, frame, says) in cases {
            let from = a.log_text().len();
            let (connection, mut control, _, _) = impostor.greet(&impostor.hello()).await;
            control.send(&frame).await;
            let told = ending(&connection).await;
            assert!(told.contains(says), "{what}: the peer was told {told:?}");
            a.expect_log(from, says);
            assert_unharmed(a, &before, what);
        }
    });
    end(stage);
}

#[test]
fn a_primary_refuses_answers_it_did_not_ask_for() {
    let mut stage = Stage::new(Options {
        on_peer_loss: "alone",
        // The last one is for how long an answer may take. A line that is silent for most of
        // the first one ends: this process must not miss it on a busy machine.
        deadlines: [3000, 5000, 9000],
        ..Options::default()
    });
    // What B may have lost with its page cache is asked for when it returns.
    std::fs::write(stage.pair.on_a("fresh"), vec![5; 100_000]).unwrap();
    stage.pair.wait_settled();
    stage.pair.b.kill();
    wait_alone(&stage.pair.a);
    // As if its machine had lost the page cache: the size is there, the data is not.
    let lost = std::fs::File::options()
        .write(true)
        .open(stage.pair.b.data().join("fresh"));
    lost.unwrap().write_all(&[0; 100_000]).unwrap();
    let a = &stage.pair.a;
    let before = store(a);
    let record = fs_driver::state::CopyFile::open(&stage.pair.b.layout().state());
    let copy = record.unwrap().get().copy;
    let hashes = |n: usize| CompareAnswer::Hashes {
        size: 1 << 40,
        hashes: vec![1; n].into(),
    };
    let cases: [(&str, Option<Bytes>, &str); 4] = [
        ("no answer", None, "did not answer a comparison within"),
        (
            "an unknown answer",
            Some(frames::unknown()),
            "unknown compare answer 200",
        ),
        (
            "too many hashes",
            Some(
                hashes(16 * limits::MAX_COMPARE_BLOCKS + 16)
                    .encode()
                    .to_bytes(),
            ),
            "hashes is",
        ),
        (
            "half an answer",
            Some(frames::half()),
            "a frame did not end",
        ),
    ];
    run(async {
        let impostor = Impostor::of(&stage.pair.b, a);
        let hello = Hello {
            copy,
            ..impostor.hello()
        };
        for (what, frame, says) in cases {
            let from = a.log_text().len();
            let (connection, mut control, _, decided) = impostor.greet(&hello).await;
            assert!(matches!(decided, Control::Decide { .. }), "{decided:?}");
            control.send(&marks(&[], false)).await;
            let mut questions = Stream::accept(&connection).await.unwrap();
            CompareRequest::decode(questions.frame().await.unwrap()).expect("a question");
            if let Some(frame) = frame {
                questions.send(&frame).await;
            }
            let told = ending(&connection).await;
            assert!(told.contains(says), "{what}: the peer was told {told:?}");
            a.expect_log(from, says);
            assert_unharmed(a, &before, what);
        }
        // A second call while the first one is being answered: the first is given up, and
        // what it was to compare is not forgotten.
        let mut calls = Vec::new();
        for _ in 0..3 {
            let (connection, mut control, _, _) = impostor.greet(&hello).await;
            control.send(&marks(&[], false)).await;
            let mut questions = Stream::accept(&connection).await.unwrap();
            CompareRequest::decode(questions.frame().await.unwrap()).expect("a question");
            calls.push((connection, control, questions));
        }
        for (connection, ..) in &calls[..2] {
            assert!(
                ending(connection)
                    .await
                    .contains("replaced by a newer connection")
            );
        }
    });
    end(stage);
}

#[test]
fn a_primary_refuses_receipts_for_what_it_never_sent() {
    let stage = stage();
    let a = &stage.pair.a;
    let before = store(a);
    let receipt = |r: Receipt| r.encode().to_bytes();
    let applied = |applied, durable| {
        receipt(Receipt::Applied {
            applied: Seq(applied),
            durable: Seq(durable),
        })
    };
    let cases = [
        (
            "a receipt for the future",
            applied(1 << 60, 0),
            "the peer acknowledges op",
        ),
        (
            "the last number of all",
            applied(u64::MAX, u64::MAX),
            "the peer acknowledges op",
        ),
        (
            "durable before applied",
            applied(1, 2),
            "the peer acknowledges op",
        ),
        (
            "synced before applied",
            receipt(Receipt::Synced { seq: Seq(1 << 60) }),
            "before it applied it",
        ),
        (
            "a failure",
            receipt(Receipt::Failed {
                seq: Seq(1),
                reason: "no luck today".into(),
            }),
            "no luck today",
        ),
        (
            "an unknown receipt",
            frames::unknown(),
            "unknown receipt 200",
        ),
        (
            "an op",
            frames::op(1, frames::write(FileId::ROOT)),
            "unknown receipt 1",
        ),
        (
            "an oversized frame",
            frames::oversized(),
            "1114112 are allowed",
        ),
    ];
    run(async {
        let impostor = Impostor::of(&stage.pair.b, a);
        for (what, frame, says) in cases {
            wait_alone(a);
            let from = a.log_text().len();
            let (connection, _control, mut ops) = impostor.begin().await;
            ops.send(&frame).await;
            let told = ending(&connection).await;
            assert!(told.contains(says), "{what}: the peer was told {told:?}");
            a.expect_log(from, says);
            assert_unharmed(a, &before, what);
        }
        for (what, frame, says) in [
            (
                "a second hello",
                bytes(&Control::Hello(impostor.hello())),
                "unexpected control frame",
            ),
            (
                "garbage beside the ops",
                frames::unknown(),
                "unknown control frame 200",
            ),
        ] {
            wait_alone(a);
            let from = a.log_text().len();
            let (connection, mut control, _ops) = impostor.begin().await;
            control.send(&frame).await;
            let told = ending(&connection).await;
            assert!(told.contains(says), "{what}: the peer was told {told:?}");
            a.expect_log(from, says);
            assert_unharmed(a, &before, what);
        }
    });
    end(stage);
}
