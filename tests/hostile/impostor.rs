//! A primary with A's key that says what a test wants it to say.

use bytes::Bytes;
use harness::Node;
use quinn::{Connection, Endpoint};
use twinfold_protocol::handshake::{Decision, Role, decide};
use twinfold_protocol::ids::{Generation, Seq, SessionId};
use twinfold_protocol::primary::AckMode;
use twinfold_protocol::wire::{Control, Hello, OpStreamStart};

use crate::wire::{ALPN, Key, Stream, ending, listener, soon};

/// The session every impostor makes.
pub(crate) const SESSION: SessionId = SessionId(0x5e55);

/// Listens where A would, with A's key.
pub(crate) struct Impostor {
    endpoint: Endpoint,
}

/// A secondary on the line, with its hello.
pub(crate) struct Caller {
    pub(crate) connection: Connection,
    pub(crate) control: Stream,
    pub(crate) hello: Hello,
}

impl Impostor {
    /// Takes A's place. Called within a runtime.
    pub(crate) fn of(a: &Node) -> Impostor {
        Impostor {
            endpoint: listener(&Key::of(a), ALPN, a.addresses()[0]),
        }
    }

    /// The next call of the secondary.
    pub(crate) async fn accept(&self) -> Caller {
        loop {
            let incoming = soon("the secondary's call", self.endpoint.accept())
                .await
                .unwrap();
            // A call the secondary has given up meanwhile, while nobody listened.
            let Ok(connection) = incoming.await else {
                continue;
            };
            let Ok(mut control) = Stream::accept(&connection).await else {
                continue;
            };
            let Ok(frame) = control.frame().await else {
                continue;
            };
            let Control::Hello(hello) = Control::decode(frame).unwrap() else {
                panic!("the secondary does not begin with a hello");
            };
            return Caller {
                connection,
                control,
                hello,
            };
        }
    }

    /// The next call, answered as a primary with the newer copy would, up to the
    /// beginning of the op stream.
    pub(crate) async fn begin(&self) -> (Caller, Stream) {
        let mut caller = self.accept().await;
        let mine = answer(&caller.hello);
        caller.say(&Control::Hello(mine.clone())).await;
        caller.say(&decision(&mine, &caller.hello)).await;
        let mut caller = caller.after_marks().await;
        let mut ops = Stream::open(&caller.connection).await;
        ops.send(&start(SESSION, 1)).await;
        caller.hello.resume = None;
        (caller, ops)
    }

    /// Sends `frames` as ops; returns what the secondary says when it hangs up.
    pub(crate) async fn ship(&self, frames: &[Bytes]) -> String {
        let (caller, mut ops) = self.begin().await;
        for frame in frames {
            ops.send(frame).await;
        }
        ending(&caller.connection).await
    }
}

impl Caller {
    /// Sends a control frame.
    pub(crate) async fn say(&mut self, frame: &Control) {
        self.control.send(&frame.encode().to_bytes()).await;
    }

    /// Waits for all marks of the target.
    pub(crate) async fn after_marks(mut self) -> Caller {
        loop {
            let frame = self.control.frame().await.expect("marks of the target");
            match Control::decode(frame).unwrap() {
                Control::Marks { more: false, .. } => return self,
                Control::Marks { .. } | Control::OwnMarks { .. } => {}
                other => panic!("expected marks, got {other:?}"),
            }
        }
    }
}

/// What a primary with a newer copy of the same line says.
pub(crate) fn answer(theirs: &Hello) -> Hello {
    let mut copy = theirs.copy.go_alone(Generation(0x6e6e));
    copy.up_to_date = true;
    Hello {
        role: Role::Primary,
        copy,
        resume: None,
        ..theirs.clone()
    }
}

/// The right decision between these two.
pub(crate) fn decision(mine: &Hello, theirs: &Hello) -> Control {
    let decision = decide((&mine.copy, Role::Primary), (&theirs.copy, Role::Secondary));
    assert!(matches!(decision, Decision::Resync { .. }), "{decision:?}");
    Control::Decide {
        decision,
        session: SESSION,
    }
}

/// The first frame of an op stream.
pub(crate) fn start(session: SessionId, first: u64) -> Bytes {
    OpStreamStart {
        session,
        first: Seq(first),
        mode: AckMode::Memory,
    }
    .encode()
    .to_bytes()
}
