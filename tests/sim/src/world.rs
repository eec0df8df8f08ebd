//! Two nodes, a network, an application, an operator, and time.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque};
use std::time::Duration;

use twinfold_protocol::handshake::Role;
use twinfold_protocol::ids::{Epoch, FileId, Generation, ModuleId, Seq, SessionId, Side};
use twinfold_protocol::lifecycle::Record;
use twinfold_protocol::marks::{DirtyMap, Intent};
use twinfold_protocol::op::{Name, Sequenced};
use twinfold_protocol::primary::{AckMode, Config, Primary};
use twinfold_protocol::secondary::Secondary;
use twinfold_protocol::time::Instant;

use crate::bugs::Bug;
use crate::checker::{Checker, Promise};
use crate::disk::Disk;
use crate::faults::Fault;
use crate::net::{Message, Net};
use crate::primary::{Change, Stage};
use crate::rng::Rng;

/// One millisecond, in the nanoseconds of simulated time.
pub const MS: u64 = 1_000_000;

/// Something that happens.
#[derive(Clone, Debug)]
pub enum Event {
    /// A message arrives at a node.
    Arrive {
        /// On which connection.
        id: u64,
        /// At which node.
        to: usize,
        /// What.
        message: Message,
    },
    /// A node looks whether a connection is alive.
    Idle {
        /// Which connection.
        id: u64,
        /// Which node.
        node: usize,
    },
    /// A node hears that the other end closed.
    Closed {
        /// Which connection.
        id: u64,
        /// Which node.
        node: usize,
    },
    /// Something in a node's process; gone when the process is.
    Inside {
        /// Which node.
        node: usize,
        /// In which of its lives.
        life: u64,
        /// What.
        step: Step,
    },
    /// The application asks for something.
    Client,
    /// The operator looks around.
    Operator,
    /// Something breaks or is repaired.
    Fault(Fault),
}

/// A step inside a node's process.
#[derive(Clone, Debug)]
pub enum Step {
    /// A change of the application goes on.
    Change(u64, Stage),
    /// Deadlines.
    Tick,
    /// A checkpoint is due.
    Checkpoint(CheckpointStage),
    /// The witness is asked whether this primary may go on alone.
    AskWitness,
    /// The new generation is durable.
    Alone(Generation),
    /// The peer is up to date, durably.
    PeerIsCurrent,
    /// The secondary looks for its primary.
    Dial,
    /// The secondary takes up its next op.
    Next,
    /// The intents of the op at the head of the queue are durable.
    Noted(Vec<Intent>),
    /// A sync of the secondary is done.
    SyncDone(SessionId, SyncJob),
    /// The resync of a session goes on.
    Resync(SessionId),
    /// A demotion goes on once no change is under way.
    Demote(BTreeSet<u64>),
}

/// Where a checkpoint stands.
#[derive(Clone, Debug)]
pub enum CheckpointStage {
    /// It begins.
    Begin,
    /// Changes that were noted in the old segment take their places first.
    Gather(BTreeSet<u64>),
    /// And are applied here, before all is flushed.
    Flush(BTreeSet<u64>),
}

/// What a secondary syncs.
#[derive(Clone, Debug)]
pub enum SyncJob {
    /// An object.
    Object(Seq, FileId),
    /// Everything, and the segments before this one go.
    Checkpoint(Seq, Option<u64>),
    /// The end of a resync.
    End(Seq, Option<u64>),
    /// Everything applied so far, in mode `disk`.
    Stable(Seq),
}

/// A secondary's part of a session.
#[derive(Debug)]
pub struct Standby {
    pub machine: Secondary,
    pub module: ModuleId,
    pub generation: Generation,
    pub epoch: Epoch,
    pub fresh: DirtyMap,
    pub older: DirtyMap,
    pub segment: Option<u64>,
    pub stable: bool,
    pub stable_syncing: bool,
    pub inbox: VecDeque<Sequenced>,
    pub busy: bool,
}

/// Where a resync stands.
#[derive(Debug, Default)]
pub struct Moving {
    pub after: Option<FileId>,
    pub object: Option<FileId>,
    pub listing: Option<(FileId, Option<Name>, bool)>,
    /// Planted bug: what was read and is put into the order later.
    pub stale: Vec<twinfold_protocol::op::Op>,
}

/// One node.
#[derive(Debug)]
pub struct Node {
    pub up: bool,
    pub frozen: bool,
    /// Counts the lives of its process.
    pub life: u64,
    pub boot: u128,
    pub disk: Disk,
    pub role: Option<Role>,
    pub core: Primary<u64>,
    pub recovered: BTreeSet<Intent>,
    pub damaged: bool,
    pub standby: Option<Standby>,
    pub connection: Option<u64>,
    pub epoch: Epoch,
    pub next_id: u64,
    pub changes: BTreeMap<u64, Change>,
    pub locks: BTreeSet<FileId>,
    pub moving: Moving,
    pub segment: Option<u64>,
    pub denied: bool,
    /// The operator decided that its copy is to be overwritten.
    pub given_up: bool,
    /// Lost its page cache since it last held everything.
    pub lost_cache: bool,
    /// Events that wait while it is frozen.
    pub waiting: Vec<Event>,
    /// When it was last seen to work: the clock of a planted bug.
    pub seen: u64,
}

/// What was counted.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stats {
    pub asked: u64,
    pub acknowledged: u64,
    pub failovers: u64,
    pub restarts: u64,
    pub resyncs: u64,
    pub resumed: u64,
    pub alone: u64,
    pub looks: u64,
    pub faults: [u64; Fault::KINDS],
}

/// Everything.
#[derive(Debug)]
pub struct World {
    pub now: u64,
    pub rng: Rng,
    queue: BinaryHeap<Reverse<(u64, u64)>>,
    events: BTreeMap<u64, Event>,
    count: u64,
    pub nodes: [Node; 2],
    pub net: Net,
    /// Which node may go on from a generation without its peer.
    pub witness: BTreeMap<u128, usize>,
    pub checker: Checker,
    /// The node and the life of it that the application uses.
    pub serving: Option<(usize, u64)>,
    pub mode: AckMode,
    pub bug: Option<Bug>,
    pub quiet: bool,
    pub stats: Stats,
    pub failure: Option<String>,
    pub trace: Option<Vec<String>>,
    pub next_change: u64,
    pub next_random: u128,
}

impl World {
    /// Two nodes that were just initialised, A with the good copy.
    pub fn new(seed: u64, bug: Option<Bug>, trace: bool) -> World {
        let mut rng = Rng::new(seed);
        let mode = match rng.below(6) {
            0 => AckMode::Disk,
            1 => AckMode::Flush,
            _ => AckMode::Memory,
        };
        let config = Config {
            mode,
            stall: Duration::from_millis(500),
            op: Duration::from_millis(2000),
            sync: Duration::from_millis(2000),
            bridge: Duration::from_millis(if rng.one_in(4) { 0 } else { 300 }),
        };
        let node = |side: usize| {
            let mut disk = Disk::default();
            if side == 0 {
                disk.record = Record {
                    epoch: Epoch::next(Epoch(0), Side::Even).unwrap_or_default(),
                    clean: true,
                    ..Record::default()
                };
                disk.record.copy.module = ModuleId(77);
                disk.record.copy.current = Generation(1);
                disk.record.copy.up_to_date = true;
            }
            Node {
                up: false,
                frozen: false,
                life: 0,
                boot: 1 + side as u128,
                disk,
                role: None,
                core: Primary::new(config, DirtyMap::default()),
                recovered: BTreeSet::new(),
                damaged: false,
                standby: None,
                connection: None,
                epoch: Epoch(0),
                next_id: 0,
                changes: BTreeMap::new(),
                locks: BTreeSet::new(),
                moving: Moving::default(),
                segment: None,
                denied: false,
                given_up: false,
                lost_cache: false,
                waiting: Vec::new(),
                seen: 0,
            }
        };
        let mut net = Net::default();
        net.delay = rng.range(50_000, 3 * MS);
        World {
            now: 1,
            rng,
            queue: BinaryHeap::new(),
            events: BTreeMap::new(),
            count: 0,
            nodes: [node(0), node(1)],
            net,
            witness: BTreeMap::new(),
            checker: Checker::default(),
            serving: None,
            mode,
            bug,
            quiet: false,
            stats: Stats::default(),
            failure: None,
            trace: trace.then(Vec::new),
            next_change: 1,
            next_random: 1000,
        }
    }

    /// The state machine's settings.
    pub fn config(&self) -> Config {
        Config {
            mode: self.mode,
            stall: Duration::from_millis(500),
            op: Duration::from_millis(2000),
            sync: Duration::from_millis(2000),
            bridge: Duration::from_millis(300),
        }
    }

    pub fn instant(&self) -> Instant {
        Instant(self.now)
    }

    /// A number nobody had before.
    pub fn random_id(&mut self) -> u128 {
        self.next_random += 1;
        self.next_random
    }

    pub fn has(&self, bug: Bug) -> bool {
        self.bug == Some(bug)
    }

    pub fn note(&mut self, text: impl FnOnce() -> String) {
        let now = self.now;
        if let Some(trace) = &mut self.trace {
            trace.push(format!("{:>10.3} ms  {}", now as f64 / MS as f64, text()));
        }
    }

    /// The promise is broken: the run ends.
    pub fn fail(&mut self, what: String) {
        if self.failure.is_none() {
            self.note(|| format!("FAILED: {what}"));
            self.failure = Some(what);
        }
    }

    /// Something happens at a time to come.
    pub fn at(&mut self, time: u64, event: Event) {
        self.count += 1;
        self.queue.push(Reverse((time.max(self.now), self.count)));
        self.events.insert(self.count, event);
    }

    /// A step of a node's process happens, at most `within` nanoseconds from now.
    pub fn soon(&mut self, node: usize, within: u64, step: Step) {
        let at = self.now + 1 + self.rng.below(within);
        let life = self.nodes[node].life;
        self.at(at, Event::Inside { node, life, step });
    }

    /// Runs until `until`, or until nothing is left to happen.
    pub fn run(&mut self, until: u64) {
        while self.failure.is_none()
            && let Some(Reverse((time, _))) = self.queue.peek()
            && *time <= until
        {
            let Some(Reverse((time, number))) = self.queue.pop() else {
                break;
            };
            self.now = time;
            if let Some(event) = self.events.remove(&number) {
                self.happen(event);
            }
        }
        self.now = self.now.max(until);
    }

    /// An event takes place.
    pub fn happen(&mut self, event: Event) {
        let about = match &event {
            Event::Arrive { to: node, .. }
            | Event::Idle { node, .. }
            | Event::Closed { node, .. }
            | Event::Inside { node, .. } => Some(*node),
            _ => None,
        };
        if let Some(node) = about {
            if !self.nodes[node].up {
                return;
            }
            // What arrives waits in its socket.
            if self.nodes[node].frozen && !matches!(event, Event::Arrive { .. }) {
                self.nodes[node].waiting.push(event);
                return;
            }
            self.nodes[node].seen = self.now;
        }
        match event {
            Event::Arrive { id, to, message } => self.arrive(id, to, message),
            Event::Idle { id, node } => self.idle(id, node),
            Event::Closed { id, node } => self.closed(id, node),
            Event::Inside { node, life, step } => {
                if self.nodes[node].life == life {
                    self.step(node, step);
                }
            }
            Event::Client => self.client(),
            Event::Operator => self.operator(),
            Event::Fault(fault) => self.fault(fault),
        }
    }

    fn step(&mut self, node: usize, step: Step) {
        match step {
            Step::Change(change, stage) => self.change_step(node, change, stage),
            Step::Tick => self.tick(node),
            Step::Checkpoint(stage) => self.checkpoint_step(node, stage),
            Step::AskWitness => self.ask_witness(node),
            Step::Alone(generation) => self.alone(node, generation),
            Step::PeerIsCurrent => self.nodes[node].disk.record.peer_is_current(),
            Step::Dial => self.dial(node),
            Step::Next => self.standby_next(node),
            Step::Noted(intents) => self.standby_noted(node, intents),
            Step::SyncDone(session, job) => self.standby_synced(node, session, job),
            Step::Resync(session) => self.resync_step(node, session),
            Step::Demote(inside) => self.demote_step(node, inside),
        }
    }

    /// Looks at a node's copy as the application does when it begins to use it.
    pub fn look(&mut self, node: usize, level: Promise) {
        self.stats.looks += 1;
        if let Err(e) = self.checker.look(&self.nodes[node].disk.fs, level) {
            self.fail(format!("node {node}: {e}"));
        }
    }
}

impl Stats {
    /// Adds what was counted elsewhere.
    pub fn add(&mut self, other: &Stats) {
        self.asked += other.asked;
        self.acknowledged += other.acknowledged;
        self.failovers += other.failovers;
        self.restarts += other.restarts;
        self.resyncs += other.resyncs;
        self.resumed += other.resumed;
        self.alone += other.alone;
        self.looks += other.looks;
        for (mine, theirs) in self.faults.iter_mut().zip(other.faults) {
            *mine += theirs;
        }
    }
}
