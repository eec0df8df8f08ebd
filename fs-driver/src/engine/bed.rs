//! For tests: the engine of a node that has a copy in a directory of its own, and no peer.

use std::io;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use twinfold_protocol::attr::Kind;
use twinfold_protocol::handshake::{CopyState, Decision, Method, Role, Which};
use twinfold_protocol::ids::{Epoch, FileId, Generation, ModuleId, Seq, SessionId, Side};
use twinfold_protocol::marks::DirtyMap;
use twinfold_protocol::op::{NewObject, Op};
use twinfold_protocol::primary::{AckMode, Link};
use twinfold_protocol::time::Timestamp;
use twinfold_protocol::wire::{Account, Hello, OpStreamStart, Receipt, encode_op};

use super::standby::{Left, Standby, SyncJob};
use super::{Due, Engine, Reply, StandbyError, clock};
use crate::setup::{Init, default_base, init};
use crate::state::Settings;
use crate::store::Layout;

/// How long a test waits for what must happen.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

/// An engine without a role yet, and its place, which goes when it is dropped.
pub(crate) fn opened(good_copy: bool) -> (Arc<Engine>, tempfile::TempDir) {
    opened_with(good_copy, |_| ())
}

/// The same, with other settings.
pub(crate) fn opened_with(
    good_copy: bool,
    set: impl FnOnce(&mut Settings),
) -> (Arc<Engine>, tempfile::TempDir) {
    let place = tempfile::tempdir_in("/var/tmp").unwrap();
    let mount = place.path().join("vm");
    std::fs::create_dir(&mount).unwrap();
    let peer = format!("tf1-{}-2ada", "0".repeat(64));
    let mut settings = Settings::new("vm", &mount, &peer);
    settings.listen = vec!["127.0.0.1:1".parse().unwrap()];
    settings.peer = vec!["127.0.0.1:2".parse().unwrap()];
    set(&mut settings);
    let base = default_base(&mount).unwrap();
    let what = Init {
        settings: settings.clone(),
        base: base.clone(),
        good_copy,
        seed: false,
        side: Side::Even,
    };
    init(&what, |_| ()).unwrap();
    let engine = Engine::open(Layout::new(base), settings, Side::Even, false).unwrap();
    (Arc::new(engine), place)
}

/// A new object, as an op makes it.
pub(crate) fn made(file: u64, kind: Kind) -> NewObject {
    NewObject {
        file: FileId(file),
        kind,
        target: bytes::Bytes::new(),
        mode: 0o700,
        umask: 0,
        uid: 0,
        gid: 0,
    }
}

/// A peer of this primary is being brought up, which nobody sees.
pub(crate) fn syncing(engine: &Engine) -> SessionId {
    let session = SessionId(1);
    engine.core.lock().peer_ready(clock::now(), session);
    session
}

/// A peer of this primary, which nobody sees, is up to date; also with what was done before.
pub(crate) fn paired(engine: &Engine) -> SessionId {
    let session = syncing(engine);
    let mut core = engine.core.lock();
    core.mark(|map| *map = DirtyMap::default());
    let end = core.finish_resync(clock::now(), clock::wall()).unwrap();
    while core.next_op().is_some() {}
    let (applied, durable) = (end, Seq(0));
    let applied = Receipt::Applied { applied, durable };
    for receipt in [applied, Receipt::Synced { seq: end }] {
        core.receipt(clock::now(), receipt).unwrap();
    }
    assert_eq!(core.link(), Link::Paired);
    session
}

/// What has been shipped since it was asked last, to a peer which nobody sees.
pub(crate) fn shipped(engine: &Engine) -> Vec<Op> {
    let mut core = engine.core.lock();
    std::iter::from_fn(|| core.next_op())
        .map(|sent| sent.op)
        .collect()
}

/// The number of the newest op.
pub(crate) fn newest(engine: &Engine) -> Seq {
    Seq(engine.core.lock().next_seq().0 - 1)
}

/// A change of the application that this copy has at once.
pub(crate) fn change(engine: &Engine, op: Op, reply: Reply) {
    let submitted = engine.submit(op);
    engine.vote(submitted.seq, reply);
}

/// A node with a copy of its own in a directory of its own.
pub(crate) struct Bed {
    pub(crate) engine: Arc<Engine>,
    sessions: u64,
    place: tempfile::TempDir,
}

impl Bed {
    pub(super) fn new(good_copy: bool) -> Bed {
        let (engine, place) = opened(good_copy);
        Bed {
            engine,
            sessions: 0,
            place,
        }
    }

    /// A secondary whose resync begins.
    pub(super) fn target() -> Bed {
        let mut bed = Bed::new(false);
        bed.engine.start_secondary().unwrap();
        bed.begin();
        bed
    }

    /// A secondary that is up to date.
    pub(crate) fn current() -> Bed {
        let bed = Bed::target();
        assert!(matches!(bed.sync(Op::ResyncEnd), Ok(Some(_))));
        assert!(bed.up_to_date());
        bed
    }

    pub(super) fn begin(&mut self) {
        self.sessions += 1;
        let session = SessionId(self.sessions.into());
        let primary = Hello {
            versions: Hello::VERSIONS,
            name: "vm".into(),
            role: Role::Primary,
            copy: CopyState {
                module: ModuleId(5),
                current: Generation(6),
                up_to_date: true,
                ..CopyState::default()
            },
            epoch: Epoch(9),
            resume: None,
            account: Account::default(),
        };
        let decision = Decision::Resync {
            source: Which::Peer,
            method: Method::Marks,
        };
        self.engine
            .standby_begin(session, decision, &primary)
            .unwrap();
        self.start(Seq(1));
    }

    /// The op stream begins, or goes on over the next connection.
    pub(super) fn start(&self, first: Seq) {
        self.start_in(AckMode::Disk, first);
    }

    pub(crate) fn start_in(&self, mode: AckMode, first: Seq) {
        let start = OpStreamStart {
            session: SessionId(self.sessions.into()),
            first,
            mode,
        };
        if mode != AckMode::Disk
            && let Some(standby) = &mut *self.engine.standby.lock()
        {
            standby.syncs_nothing_by_itself();
        }
        self.engine.standby_start(start).unwrap();
    }

    /// The number of the next op.
    pub(crate) fn next(&self) -> Seq {
        let applied = |standby: &Option<Standby>| standby.as_ref().unwrap().applied();
        applied(&self.engine.standby.lock()).next()
    }

    /// Applies an op.
    pub(super) fn apply(&self, op: &Op) -> Result<Due, StandbyError> {
        let seq = self.next();
        // Without the length in front.
        let frame = encode_op(seq, Timestamp::default(), op)
            .to_bytes()
            .slice(4..);
        self.engine.standby_apply(frame.into())
    }

    /// Applies an op that asks for a sync, and waits for what comes of it.
    pub(super) fn sync(&self, op: Op) -> Result<Option<Receipt>, StandbyError> {
        let Due::Sync(job) = self.apply(&op).unwrap() else {
            panic!("no sync")
        };
        self.end_sync(job)
    }

    /// Waits for what comes of a sync.
    pub(super) fn end_sync(&self, job: SyncJob) -> Result<Option<Receipt>, StandbyError> {
        let (done, result) = mpsc::channel();
        self.engine.standby_sync(job, move |r| drop(done.send(r)));
        result.recv_timeout(PATIENCE).unwrap()
    }

    /// The driver ends without a word, and its next run opens the folder.
    pub(super) fn restarted(self) -> Bed {
        let settings = self.engine.settings.clone();
        let base = default_base(&self.place.path().join("vm")).unwrap();
        drop(self.engine);
        let engine = Engine::open(Layout::new(base), settings, Side::Even, false).unwrap();
        Bed {
            engine: Arc::new(engine),
            sessions: self.sessions,
            place: self.place,
        }
    }

    /// Keeps all syncs from getting on until the sender returned is dropped. Those before count
    /// as quick.
    pub(crate) fn hold_syncs(&self) -> mpsc::Sender<()> {
        let (release, released) = mpsc::channel::<()>();
        let (held, holds) = mpsc::channel();
        let engine = self.engine.clone();
        std::thread::spawn(move || {
            let _held = engine.hold_syncs();
            held.send(()).unwrap();
            let _ = released.recv();
        });
        holds.recv_timeout(PATIENCE).unwrap();
        release
    }

    /// Whether a sync runs.
    pub(crate) fn is_syncing(&self) -> bool {
        self.engine.runs_a_sync()
    }

    pub(crate) fn has_foreseen(&self) -> bool {
        let standby = self.engine.standby.lock();
        standby.as_ref().is_some_and(Standby::has_foreseen)
    }

    pub(super) fn leave(&self) -> mpsc::Receiver<io::Result<Left>> {
        let (done, left) = mpsc::channel();
        self.engine.standby_leave(move |l| drop(done.send(l)));
        left
    }

    pub(super) fn up_to_date(&self) -> bool {
        self.engine.copy().copy.up_to_date
    }

    pub(super) fn fail(&self) {
        let lost = || Err(io::Error::from_raw_os_error(5));
        self.engine.sync_counted(lost).unwrap_err();
    }
}
