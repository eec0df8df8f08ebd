//! A hostile primary against a real secondary, on the way to the op stream: the
//! secondary tells the reason, keeps every byte, and is not up to date until an honest
//! primary has brought it up.

use bytes::Bytes;
use harness::Node;
use serde_json::Value;
use twinfold_protocol::handshake::{CopyState, Decision, Method, Role, Which};
use twinfold_protocol::ids::{Generation, ModuleId, SessionId};
use twinfold_protocol::wire::{CompareRequest, Control, Hello};

use crate::frames;
use crate::impostor::{Caller, Impostor, SESSION, answer, decision, start};
use crate::ops::on_streams;
use crate::stage::{Stage, assert_unharmed, store};
use crate::wire::{Stream, ending, run};

/// What an impostor says instead of the right thing.
enum Says {
    /// These frames on the control stream.
    Control(fn(&Hello) -> Vec<Bytes>),
    /// The right handshake, then this on a stream of its own.
    Stream(fn() -> Vec<Bytes>),
    /// As [`Says::Control`], and the stream ends.
    Ends(fn(&Hello) -> Vec<Bytes>),
}

struct Case {
    what: &'static str,
    says: Says,
    /// What the secondary tells its operator.
    told: &'static str,
}

fn control(frames: &[Control]) -> Vec<Bytes> {
    frames.iter().map(|f| f.encode().to_bytes()).collect()
}

fn with_copy(theirs: &Hello, change: impl FnOnce(&mut CopyState)) -> Hello {
    let mut mine = answer(theirs);
    change(&mut mine.copy);
    mine
}

/// The decision for a resync from the impostor.
fn resync() -> Control {
    Control::Decide {
        decision: Decision::Resync {
            source: Which::Me,
            method: Method::Marks,
        },
        session: SESSION,
    }
}

fn cases() -> Vec<Case> {
    use Says::{Control as C, Ends as E, Stream as S};
    let case = |what, says, told| Case { what, says, told };
    vec![
        case(
            "a newer version",
            C(|h| {
                let mine = Hello {
                    versions: (2, 3),
                    ..answer(h)
                };
                control(&[Control::Hello(mine)])
            }),
            "update twinfold on this node",
        ),
        case(
            "an older version",
            C(|h| {
                let mine = Hello {
                    versions: (0, 0),
                    ..answer(h)
                };
                control(&[Control::Hello(mine)])
            }),
            "update twinfold on the peer",
        ),
        case(
            "another module",
            C(|h| {
                let mine = Hello {
                    name: "other".into(),
                    ..answer(h)
                };
                control(&[Control::Hello(mine.clone()), decision(&mine, h)])
            }),
            "check the addresses",
        ),
        case(
            "a frame of unknown kind",
            C(|_| vec![frames::unknown()]),
            "unknown control frame 200",
        ),
        case(
            "an oversized frame",
            C(|_| vec![frames::oversized()]),
            "1114112 are allowed",
        ),
        case(
            "a truncated frame",
            E(|_| vec![frames::half()]),
            "the stream ended",
        ),
        case(
            "half a frame and silence",
            C(|_| vec![frames::half()]),
            "did not answer in time",
        ),
        case("silence", C(|_| vec![]), "did not answer in time"),
        case(
            "two hellos",
            C(|h| {
                let hello = Control::Hello(answer(h));
                control(&[hello.clone(), hello])
            }),
            "expected a decision",
        ),
        case(
            "a decision before the hello",
            C(|_| control(&[resync()])),
            "expected a hello",
        ),
        case(
            "a session of somebody else",
            C(|h| {
                let session = SessionId(0xbad);
                control(&[Control::Hello(answer(h)), Control::Resume { session }])
            }),
            "a session that is not this node's",
        ),
        case(
            "a decision that does not follow",
            C(|h| {
                let other = Control::Decide {
                    decision: Decision::Resync {
                        source: Which::Me,
                        method: Method::Everything,
                    },
                    session: SESSION,
                };
                control(&[Control::Hello(answer(h)), other])
            }),
            "nothing is moved",
        ),
        case(
            "the copy of another module",
            C(|h| {
                let mine = with_copy(h, |copy| copy.module = ModuleId(0xbad));
                control(&[Control::Hello(mine), resync()])
            }),
            "nothing is moved",
        ),
        case(
            "a copy with nothing in common",
            C(|h| {
                let mine = with_copy(h, |copy| {
                    *copy = CopyState {
                        module: copy.module,
                        current: Generation(9),
                        ..CopyState::default()
                    };
                });
                control(&[Control::Hello(mine), resync()])
            }),
            "nothing is moved",
        ),
        case(
            "an incomplete copy",
            C(|h| {
                let mine = with_copy(h, |copy| copy.up_to_date = false);
                control(&[Control::Hello(mine), resync()])
            }),
            "nothing is moved",
        ),
        case(
            "a secondary's role",
            C(|h| {
                let mine = Hello {
                    role: Role::Secondary,
                    ..answer(h)
                };
                control(&[Control::Hello(mine), resync()])
            }),
            "nothing is moved",
        ),
        case(
            "a refusal",
            C(|h| {
                let reason = "go away, please".to_owned();
                control(&[Control::Hello(answer(h)), Control::Refuse { reason }])
            }),
            "go away, please",
        ),
        case(
            "an op before the stream began",
            S(|| vec![frames::op(1, frames::write(crate::stage::Ids::NOBODY))]),
            "unknown start of the op stream",
        ),
        case(
            "an op stream of another session",
            S(|| vec![start(SessionId(0xbad), 1)]),
            "the op stream belongs to session",
        ),
        case(
            "an oversized frame on the op stream",
            S(|| vec![start(SESSION, 1), frames::oversized()]),
            "1114112 are allowed",
        ),
        case(
            "half an op and silence",
            S(|| vec![start(SESSION, 1), frames::half()]),
            "a frame did not end",
        ),
        case(
            "half a beginning and silence",
            S(|| vec![start(SESSION, 1).slice(..9)]),
            "a frame did not end",
        ),
        case(
            "a question of too many blocks",
            S(|| {
                let ask = CompareRequest::Blocks {
                    file: crate::stage::Ids::NOBODY,
                    offset: 0,
                    blocks: u32::MAX,
                };
                vec![ask.encode().to_bytes()]
            }),
            "blocks is 4294967295",
        ),
        case(
            "garbage behind a question",
            S(|| {
                let ask = CompareRequest::Blocks {
                    file: crate::stage::Ids::NOBODY,
                    offset: 0,
                    blocks: 1,
                };
                vec![ask.encode().to_bytes(), frames::unknown()]
            }),
            "unknown compare request 200",
        ),
    ]
}

async fn attack(impostor: &Impostor, says: &Says) {
    let caller = impostor.accept().await;
    match says {
        Says::Control(frames) | Says::Ends(frames) => {
            let Caller {
                connection,
                mut control,
                hello,
            } = caller;
            for frame in frames(&hello) {
                control.send(&frame).await;
            }
            if matches!(says, Says::Ends(_)) {
                let _ = control.tx.finish();
            }
            ending(&connection).await;
        }
        Says::Stream(frames) => {
            let mut caller = caller;
            let mine = answer(&caller.hello);
            caller.say(&Control::Hello(mine.clone())).await;
            caller.say(&decision(&mine, &caller.hello)).await;
            let caller = caller.after_marks().await;
            let mut stream = Stream::open(&caller.connection).await;
            for frame in frames() {
                stream.send(&frame).await;
            }
            ending(&caller.connection).await;
        }
    }
}

fn told(node: &Node, from: usize, says: &str) {
    let trouble = || {
        let status = node.status().unwrap();
        matches!(&status["trouble"], Value::String(text) if text.contains(says))
    };
    assert!(
        harness::wait_until(std::time::Duration::from_secs(20), trouble),
        "the state does not tell {says:?}: {:?}\n{}",
        node.status(),
        &node.log_text()[from..]
    );
}

#[test]
fn a_secondary_is_not_led_astray_before_the_first_op() {
    let stage = Stage::without_a();
    let b = &stage.pair.b;
    let before = store(b);
    run(async {
        let impostor = Impostor::of(&stage.pair.a);
        for case in cases() {
            println!("{}", case.what);
            let from = b.log_text().len();
            attack(&impostor, &case.says).await;
            told(b, from, case.told);
            assert_unharmed(b, &before, case.what);
            stage.assert_outside_untouched(case.what);
        }
        // As many streams as the secondary lets it open, none of which says anything.
        on_streams(&impostor).await;
        assert_unharmed(b, &before, "a flood of streams");
    });
    stage.end_with_the_honest_primary();
}
