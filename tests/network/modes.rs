//! Which word of the peer releases which call, in each mode: a peer made by the test
//! says one thing after the other.

use std::fs::File;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::time::Duration;

use harness::{Options, Pair, Role};
use quinn::Connection;
use tokio::sync::oneshot::{self, Receiver};
use twinfold_protocol::handshake::{CopyState, Role as Part};
use twinfold_protocol::ids::{Epoch, Seq};
use twinfold_protocol::op::{Op, Sequenced, Stability};
use twinfold_protocol::primary::AckMode;
use twinfold_protocol::wire::{
    Account, CompareAnswer, CompareRequest, Control, Hello, Holds, OpStreamStart, Receipt,
    decode_op,
};

use crate::wire::{ALPN, Key, Stream, dial, dialler, run, soon};

/// A secondary that applies nothing and says what it is told to.
struct Puppet {
    _connection: Connection,
    _control: Stream,
    ops: Stream,
    /// Whether the primary waits for stable storage.
    stable: bool,
}

impl Puppet {
    /// Pairs with A as if it were B.
    async fn pair_with_a(pair: &Pair) -> Puppet {
        let endpoint = dialler(Some(&Key::of(&pair.b)), ALPN);
        let connection = dial(&endpoint, pair.a.addresses()[0]).await;
        let mut control = Stream::open(&connection).await;
        let hello = Control::Hello(Hello {
            versions: Hello::VERSIONS,
            name: "vm".into(),
            role: Part::Secondary,
            copy: CopyState::default(),
            epoch: Epoch(2),
            resume: None,
            account: Account::default(),
        });
        control.send(&hello.encode().to_bytes()).await;
        let marks = Control::Marks {
            intents: Vec::new(),
            damaged: false,
            holds: Holds::Nothing,
            more: false,
        };
        control.send(&marks.encode().to_bytes()).await;
        let mut stream = Stream::accept(&connection).await.unwrap();
        let start = loop {
            let frame = match stream.frame().await {
                Ok(frame) => frame,
                Err(_) => {
                    stream = Stream::accept(&connection).await.unwrap();
                    continue;
                }
            };
            match OpStreamStart::decode(frame.clone()) {
                Ok(start) => break start,
                Err(_) => {
                    CompareRequest::decode(frame).unwrap();
                    let missing = CompareAnswer::Missing.encode();
                    stream.send(&missing.to_bytes()).await;
                }
            }
        };
        let mut puppet = Puppet {
            _connection: connection,
            _control: control,
            ops: stream,
            stable: start.mode == AckMode::Disk,
        };
        let end = puppet.until(|op| matches!(op, Op::ResyncEnd)).await;
        puppet.applied(end.seq, end.seq).await;
        puppet.say(Receipt::Synced { seq: end.seq }).await;
        puppet
    }

    async fn say(&mut self, receipt: Receipt) {
        self.ops.send(&receipt.encode().to_bytes()).await;
    }

    async fn applied(&mut self, applied: Seq, durable: Seq) {
        self.say(Receipt::Applied { applied, durable }).await;
    }

    /// Confirms all ops up to one of this kind, which it returns without a word.
    async fn until(&mut self, wanted: impl Fn(&Op) -> bool) -> Sequenced {
        loop {
            let frame = self.ops.frame().await.unwrap();
            let op = decode_op(frame).unwrap();
            if wanted(&op.op) {
                return op;
            }
            self.applied(op.seq, op.seq).await;
        }
    }
}

/// Does something on a thread of its own; the answer comes when it is done.
fn begin<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Receiver<T> {
    let (done, answer) = oneshot::channel();
    std::thread::spawn(move || done.send(work()));
    answer
}

/// Fails the test if the call has returned although the peer has not said enough.
async fn assert_waits<T: std::fmt::Debug>(answer: &mut Receiver<T>, what: &str) {
    let early = tokio::time::timeout(Duration::from_millis(300), answer).await;
    assert!(early.is_err(), "{what} returned too early: {early:?}");
}

/// A that runs in this mode, with a file in its folder.
fn primary(ack: &'static str) -> Pair {
    let mut pair = Pair::stopped(Options {
        ack,
        populate: |folder| std::fs::write(folder.join("file"), "old old old").unwrap(),
        ..Options::default()
    });
    pair.a.start(Role::Primary).unwrap();
    pair
}

fn open(pair: &Pair, flags: i32) -> File {
    let mut options = File::options();
    let file = options.write(true).custom_flags(flags);
    file.open(pair.on_a("file")).unwrap()
}

fn is_write(op: &Op) -> bool {
    matches!(op, Op::Write { .. })
}

#[test]
fn in_mode_memory_a_write_waits_until_the_peer_has_applied_it() {
    let pair = primary("memory");
    let file = open(&pair, 0);
    run(async {
        let mut puppet = Puppet::pair_with_a(&pair).await;
        assert!(!puppet.stable);
        let mut written = begin(move || file.write_all_at(b"new", 0).map(|()| file));
        let op = puppet.until(is_write).await;
        assert_waits(&mut written, "a write").await;
        puppet.applied(op.seq, Seq(op.seq.0 - 1)).await;
        let file = soon("the write", written).await.unwrap().unwrap();

        let mut synced = begin(move || file.sync_data());
        let op = puppet.until(|op| matches!(op, Op::Sync { .. })).await;
        puppet.applied(op.seq, op.seq).await;
        assert_waits(&mut synced, "an fsync").await;
        puppet.say(Receipt::Synced { seq: op.seq }).await;
        soon("the fsync", synced).await.unwrap().unwrap();
    });
}

#[test]
fn in_mode_disk_a_write_waits_until_it_is_on_the_peers_disk() {
    let pair = primary("disk");
    let file = open(&pair, 0);
    run(async {
        let mut puppet = Puppet::pair_with_a(&pair).await;
        assert!(
            puppet.stable,
            "the secondary is not asked for stable storage"
        );
        let mut written = begin(move || file.write_all_at(b"new", 0));
        let op = puppet.until(is_write).await;
        puppet.applied(op.seq, Seq(op.seq.0 - 1)).await;
        assert_waits(&mut written, "a write that is only applied").await;
        puppet.applied(op.seq, op.seq).await;
        soon("the write", written).await.unwrap().unwrap();

        let path = pair.on_a("directory");
        let mut made = begin(move || std::fs::create_dir(path));
        let op = puppet.until(|op| matches!(op, Op::Create { .. })).await;
        puppet.applied(op.seq, Seq(op.seq.0 - 1)).await;
        assert_waits(&mut made, "a new directory that is only applied").await;
        puppet.applied(op.seq, op.seq).await;
        soon("the directory", made).await.unwrap().unwrap();
    });
}

#[test]
fn in_mode_flush_a_write_waits_for_nobody_and_a_sync_for_the_peers_disk() {
    let pair = primary("flush");
    let file = open(&pair, 0);
    run(async {
        let mut puppet = Puppet::pair_with_a(&pair).await;
        // The peer says nothing at all meanwhile.
        let written = begin(move || file.write_all_at(b"new", 0).map(|()| file));
        let file = soon("the write", written).await.unwrap().unwrap();
        let mut synced = begin(move || file.sync_all());
        let write = puppet.until(is_write).await;
        let sync = puppet.until(|op| matches!(op, Op::Sync { .. })).await;
        assert!(sync.seq > write.seq);
        puppet.applied(sync.seq, sync.seq).await;
        assert_waits(&mut synced, "an fsync").await;
        puppet.say(Receipt::Synced { seq: sync.seq }).await;
        soon("the fsync", synced).await.unwrap().unwrap();
    });
}

#[test]
fn a_synchronous_write_waits_for_the_peers_disk_in_every_mode() {
    for ack in ["memory", "disk", "flush"] {
        let pair = primary(ack);
        run(async {
            let mut puppet = Puppet::pair_with_a(&pair).await;
            let direct = libc::O_DIRECT;
            for (flags, stability) in [
                (libc::O_DSYNC, Stability::Mode),
                (libc::O_SYNC, Stability::Mode),
                (direct | libc::O_DSYNC, Stability::Data),
                (direct | libc::O_SYNC, Stability::Full),
            ] {
                let file = open(&pair, flags);
                let mut written = begin(move || file.write_all_at(b"new", 0));
                let mut op = puppet.until(is_write).await;
                let asked = match &op.op {
                    Op::Write { stability, .. } => *stability,
                    _ => unreachable!("a write was waited for"),
                };
                assert_eq!(asked, stability, "{ack}, flags {flags:o}");
                puppet.applied(op.seq, op.seq).await;
                // Behind a write through its page cache the kernel itself asks for the sync.
                if stability == Stability::Mode {
                    op = puppet.until(|op| matches!(op, Op::Sync { .. })).await;
                    puppet.applied(op.seq, op.seq).await;
                }
                assert_waits(&mut written, "a synchronous write").await;
                puppet.say(Receipt::Synced { seq: op.seq }).await;
                soon("the write", written).await.unwrap().unwrap();
            }
        });
    }
}
