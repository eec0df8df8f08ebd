//! Two nodes, a network, an application, an operator, and time.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque};
use std::time::Duration;

use twinfold_protocol::handshake::{Method, Role};
use twinfold_protocol::ids::{Epoch, FileId, Generation, ModuleId, Seq, SessionId, Side};
use twinfold_protocol::lifecycle::Record;
use twinfold_protocol::marks::{DirtyMap, Intent};
use twinfold_protocol::op::{Name, Sequenced};
use twinfold_protocol::primary::{AckMode, Config, OwnMarks, Primary};
use twinfold_protocol::secondary::Secondary;
use twinfold_protocol::time::Instant;
use twinfold_protocol::verify::{Found, Question};

use crate::bugs::Bug;
use crate::calls::Request;
use crate::checker::{Checker, Promise};
use crate::disk::Disk;
use crate::effects::Stop;
use crate::faults::Fault;
use crate::fs::Item;
use crate::net::{Message, Net};
use crate::plan::{Less, Plan};
use crate::prefix::Sequence;
use crate::primary::{Change, Stage};
use crate::rng::Rng;
use crate::stats::Stats;
use crate::takeover::TakeOver;

/// One millisecond, in the nanoseconds of simulated time.
pub(crate) const MS: u64 = 1_000_000;

/// Events of one run, at most.
const MAX_EVENTS: u64 = 3_000_000;

/// Something that happens.
#[derive(Clone, Debug)]
pub(crate) enum Event {
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
pub(crate) enum Step {
    /// A change of the application goes on.
    Change(u64, Stage),
    /// Deadlines.
    Tick,
    /// A checkpoint is due.
    Periodic,
    /// A checkpoint goes on.
    Checkpoint(CheckpointStage),
    /// The witness is asked whether this primary may go on alone.
    AskWitness,
    /// The new generation is durable.
    Alone(Generation),
    /// The peer is up to date, durably.
    PeerIsCurrent(Generation),
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
    /// This primary hands over or stops: no change is taken any more.
    Quiesce(Quiet, u64, u64),
    /// The disk has failed: that is noted, and the peer of this session is to be asked.
    Ask(SessionId),
    /// The peer is asked to take over, once these changes have ended.
    Yield(SessionId, BTreeSet<u64>),
    /// The peer should have answered.
    Heard(SessionId),
    /// The peer is looked for, to carry out calls.
    Visit,
    /// The copy whose disk has failed is marked on that disk.
    MarkFailed,
    /// The primary knows that this node has taken over.
    Host,
    /// A call of the visitor of this session is carried out.
    CarryOut(SessionId, u64, Request),
}

/// What a primary that takes no more changes is about to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Quiet {
    /// Become secondary.
    Demote,
    /// End.
    Stop,
}

/// Where a checkpoint stands.
#[derive(Clone, Debug)]
pub(crate) enum CheckpointStage {
    /// Changes that were noted in the old segment take their places first.
    Gather(Option<u64>, BTreeSet<u64>),
    /// The same while alone; then the marks are saved.
    Alone(u64, BTreeSet<u64>),
    /// And are applied here, before all is flushed.
    Flush(BTreeSet<u64>),
}

/// What a secondary syncs.
#[derive(Clone, Debug)]
pub(crate) enum SyncJob {
    /// An object.
    Object(Seq, FileId),
    /// Everything, and the segments before this one go.
    Checkpoint(Seq, Option<u64>),
    /// Everything, in a resync.
    Flush(Seq),
    /// The end of a resync.
    End(Seq, Option<u64>),
    /// Everything applied so far, in mode `disk`.
    Stable(Seq),
    /// Everything; then this node goes on in the primary's place.
    TakeOver(Seq),
}

/// A secondary's part of a session.
#[derive(Debug)]
pub(crate) struct Standby {
    pub(crate) machine: Secondary,
    pub(crate) module: ModuleId,
    pub(crate) generation: Generation,
    pub(crate) epoch: Epoch,
    pub(crate) fresh: DirtyMap,
    pub(crate) older: DirtyMap,
    pub(crate) segment: Option<u64>,
    pub(crate) stable: bool,
    pub(crate) stable_syncing: bool,
    /// Flushes that had failed when it began.
    pub(crate) failed_syncs: u64,
    pub(crate) inbox: VecDeque<Sequenced>,
    pub(crate) busy: bool,
}

/// Where a resync stands.
#[derive(Debug, Default)]
pub(crate) struct Moving {
    pub(crate) after: Option<FileId>,
    pub(crate) object: Option<FileId>,
    pub(crate) listing: Option<(FileId, Option<Name>, bool)>,
    /// The session in which the peer was asked to flush before the end.
    pub(crate) flushed: Option<SessionId>,
    /// Planted bug: what was read and is put into the order later.
    pub(crate) stale: Vec<twinfold_protocol::op::Op>,
}

/// What the operator is like.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Habits {
    /// There is a witness; else both nodes may go on from one generation.
    pub(crate) witness: bool,
    /// A primary that lost its peer waits for the operator's word.
    pub(crate) hold: bool,
    /// A node that went down is given some time to be replaced by the other one.
    pub(crate) patient: bool,
}

/// One node.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) up: bool,
    pub(crate) frozen: bool,
    /// Counts the lives of its process.
    pub(crate) life: u64,
    /// Counts its roles.
    pub(crate) term: u64,
    pub(crate) boot: u128,
    pub(crate) disk: Disk,
    pub(crate) role: Option<Role>,
    pub(crate) core: Primary<u64>,
    /// What this node has changed by itself, exactly.
    pub(crate) own: OwnMarks,
    pub(crate) recovered: BTreeSet<Intent>,
    pub(crate) damaged: bool,
    pub(crate) standby: Option<Standby>,
    pub(crate) connection: Option<u64>,
    /// What it said of its copy in its last hello, and over which connection.
    pub(crate) told: Option<(u64, Record)>,
    /// How the resync of the session begins that it decided on last.
    pub(crate) decided: Option<(SessionId, Method)>,
    pub(crate) epoch: Epoch,
    pub(crate) next_id: u64,
    pub(crate) changes: BTreeMap<u64, Change>,
    pub(crate) locks: BTreeSet<FileId>,
    /// Files without a name that the application still has open.
    pub(crate) orphans: BTreeMap<FileId, Item>,
    pub(crate) moving: Moving,
    /// Questions of a verify on their way, and what was here.
    pub(crate) verifying: BTreeMap<Seq, (Question, Found)>,
    /// The segment that the running checkpoint began.
    pub(crate) segment: Option<u64>,
    /// A checkpoint is about to begin.
    pub(crate) beginning: bool,
    /// Flushes of its store that have failed in this life.
    pub(crate) failed_syncs: u64,
    /// One has failed since this copy was last equal to another one.
    pub(crate) lossy: bool,
    /// Memory may show what the disk does not have: the run before did not end in order, and
    /// the machine is the same.
    pub(crate) doubtful: bool,
    /// Its store could not be flushed: it needs a restart.
    pub(crate) ailing: bool,
    /// No more changes are taken.
    pub(crate) closing: bool,
    /// It compares its copy with the peer's.
    pub(crate) comparing: bool,
    /// A resync has begun to change this copy and has not ended.
    pub(crate) half_resynced: bool,
    pub(crate) denied: bool,
    /// The operator decided that its copy is to be overwritten.
    pub(crate) given_up: bool,
    /// It went on by itself while the other one's copy was made the good one.
    pub(crate) own_history: bool,
    /// What it did before this term was given up with its copy.
    pub(crate) disowned: u64,
    /// Lost its page cache since it last held everything.
    pub(crate) lost_cache: bool,
    /// It serves what a power cut has left of it.
    pub(crate) serves_what_is_left: bool,
    /// Events that wait while it is frozen.
    pub(crate) waiting: Vec<Event>,
    /// What its primary has found to differ here.
    pub(crate) differing: DirtyMap,
    /// The session whose secondary is to leave and to come back.
    pub(crate) rejoin: Option<SessionId>,
    /// Flushes that had failed when the resync of a session began.
    pub(crate) failed_before: Option<(SessionId, u64)>,
    /// Its part in a disk's failure, of its own or of its peer.
    pub(crate) takeover: TakeOver,
}

/// Everything.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) now: u64,
    pub(crate) rng: Rng,
    queue: BinaryHeap<Reverse<(u64, u64)>>,
    events: BTreeMap<u64, Event>,
    count: u64,
    happened: u64,
    pub(crate) nodes: [Node; 2],
    pub(crate) net: Net,
    /// Which node may go on from a generation without its peer.
    pub(crate) witness: BTreeMap<u128, usize>,
    pub(crate) checker: Checker,
    /// What the application knew when its primary left a generation, unasked of a witness: a
    /// copy of that generation that was left behind has that much.
    pub(crate) before_split: BTreeMap<Generation, Checker>,
    /// The node and the life of it that the application uses.
    pub(crate) serving: Option<(usize, u64)>,
    /// The primary's sequence, to compare the secondary with.
    pub(crate) sequence: [Sequence; 2],
    /// The node that the operator cannot reach, where the network is cut.
    pub(crate) blind: Option<usize>,
    /// The node that the application used last.
    pub(crate) last_served: Option<usize>,
    /// How often in a row the operator found nobody who serves.
    pub(crate) missed: u64,
    /// Everything is repaired; nobody helps any more.
    pub(crate) repaired: bool,
    /// The settings of both nodes.
    pub(crate) config: Config,
    /// What the operator is like.
    pub(crate) habits: Habits,
    /// What of the application's work is left out.
    pub(crate) less: Less,
    /// What a verify looks at, if one runs.
    pub(crate) verify: Option<Rng>,
    pub(crate) bug: Option<Bug>,
    pub(crate) quiet: bool,
    pub(crate) stats: Stats,
    pub(crate) failure: Option<String>,
    pub(crate) trace: Option<Vec<String>>,
    pub(crate) next_change: u64,
    pub(crate) next_random: u128,
}

impl World {
    /// Two nodes that were just initialised, A with the good copy.
    pub(crate) fn new(seed: u64, plan: &Plan, bug: Option<Bug>, trace: bool) -> World {
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
        let habits = Habits {
            witness: !rng.one_in(4),
            hold: rng.one_in(4),
            patient: rng.one_in(2),
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
                term: 0,
                boot: 1 + side as u128,
                disk,
                role: None,
                core: Primary::new(config, DirtyMap::default()),
                own: OwnMarks::default(),
                recovered: BTreeSet::new(),
                damaged: false,
                standby: None,
                connection: None,
                told: None,
                decided: None,
                epoch: Epoch(0),
                next_id: 0,
                changes: BTreeMap::new(),
                locks: BTreeSet::new(),
                orphans: BTreeMap::new(),
                moving: Moving::default(),
                verifying: BTreeMap::new(),
                segment: None,
                beginning: false,
                failed_syncs: 0,
                lossy: false,
                doubtful: false,
                ailing: false,
                closing: false,
                comparing: false,
                half_resynced: false,
                denied: false,
                given_up: false,
                own_history: false,
                disowned: 0,
                lost_cache: false,
                serves_what_is_left: false,
                waiting: Vec::new(),
                differing: DirtyMap::default(),
                rejoin: None,
                failed_before: None,
                takeover: TakeOver::default(),
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
            happened: 0,
            nodes: [node(0), node(1)],
            net,
            witness: BTreeMap::new(),
            checker: Checker::default(),
            before_split: BTreeMap::new(),
            serving: None,
            sequence: Default::default(),
            blind: None,
            last_served: None,
            missed: 0,
            repaired: false,
            config,
            habits,
            less: plan.less.clone(),
            verify: plan.verify.then(|| Rng::new(seed ^ 0x5eef)),
            bug,
            quiet: false,
            stats: Stats::default(),
            failure: None,
            trace: trace.then(Vec::new),
            next_change: 1,
            next_random: 1000,
        }
    }

    pub(crate) fn instant(&self) -> Instant {
        Instant(self.now)
    }

    /// A number nobody had before.
    pub(crate) fn random_id(&mut self) -> u128 {
        self.next_random += 1;
        self.next_random
    }

    pub(crate) fn has(&self, bug: Bug) -> bool {
        self.bug == Some(bug)
    }

    pub(crate) fn note(&mut self, text: impl FnOnce() -> String) {
        let now = self.now;
        if let Some(trace) = &mut self.trace {
            trace.push(format!("{:>10.3} ms  {}", now as f64 / MS as f64, text()));
        }
    }

    /// The promise is broken: the run ends.
    pub(crate) fn fail(&mut self, what: String) {
        if self.failure.is_none() {
            self.note(|| format!("FAILED: {what}"));
            self.failure = Some(what);
        }
    }

    /// Something happens at a time to come.
    pub(crate) fn at(&mut self, time: u64, event: Event) {
        self.count += 1;
        self.queue.push(Reverse((time.max(self.now), self.count)));
        self.events.insert(self.count, event);
    }

    /// A step of a node's process happens, at most `within` nanoseconds from now.
    pub(crate) fn soon(&mut self, node: usize, within: u64, step: Step) {
        let at = self.now + 1 + self.rng.below(within);
        let life = self.nodes[node].life;
        self.at(at, Event::Inside { node, life, step });
    }

    /// The same where the disk has a part in it, which may be slow.
    pub(crate) fn soon_disk(&mut self, node: usize, within: u64, step: Step) {
        let slow = self.nodes[node].disk.slow;
        let more = self.rng.below(slow.max(1));
        let at = self.now + 1 + self.rng.below(within) + more;
        let life = self.nodes[node].life;
        self.at(at, Event::Inside { node, life, step });
    }

    /// Runs until `until`, or until nothing is left to happen.
    pub(crate) fn run(&mut self, until: u64) {
        while self.failure.is_none()
            && let Some(Reverse((time, _))) = self.queue.peek()
            && *time <= until
        {
            let Some(Reverse((time, number))) = self.queue.pop() else {
                break;
            };
            self.now = time;
            self.happened += 1;
            if self.happened > MAX_EVENTS {
                return self.fail(format!("{MAX_EVENTS} events: nothing comes to an end"));
            }
            if let Some(event) = self.events.remove(&number) {
                self.happen(event);
            }
        }
        self.now = self.now.max(until);
    }

    /// An event takes place.
    pub(crate) fn happen(&mut self, event: Event) {
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
        (0..2).for_each(|node| self.stop_short(node));
    }

    /// A node that was to be stopped in front of an effect is.
    fn stop_short(&mut self, node: usize) {
        let Some(how) = self.nodes[node].disk.effects.take_stopped() else {
            return;
        };
        let nth = self.nodes[node].disk.effects.count();
        self.note(|| format!("node {node} is stopped in front of effect {nth}: {how:?}"));
        match how {
            Stop::Kill => self.kill(node),
            Stop::Power => self.cut_power(node),
            Stop::Freeze => {
                self.freeze(node);
                let at = self.now + self.rng.range(100, 1500) * MS;
                self.at(at, Event::Fault(Fault::Thaw(node)));
            }
        }
    }

    fn step(&mut self, node: usize, step: Step) {
        match step {
            Step::Change(change, stage) => self.change_step(node, change, stage),
            Step::Tick => self.tick(node),
            Step::Periodic => self.checkpoint_periodic(node),
            Step::Checkpoint(stage) => self.checkpoint_step(node, stage),
            Step::AskWitness => self.ask_witness(node),
            Step::Alone(generation) => self.alone(node, generation),
            Step::PeerIsCurrent(generation) => {
                self.nodes[node]
                    .disk
                    .update(|r| r.peer_is_current(generation));
            }
            Step::Dial => self.dial(node),
            Step::Next => self.standby_next(node),
            Step::Noted(intents) => self.standby_noted(node, intents),
            Step::SyncDone(session, job) => self.standby_synced(node, session, job),
            Step::Resync(session) => self.resync_step(node, session),
            Step::Quiesce(why, until, rounds) => self.quiesce_step(node, why, until, rounds),
            Step::Ask(session) => self.ask_to_take_over(node, session),
            Step::Yield(session, before) => self.yield_step(node, session, before),
            Step::Heard(session) => self.not_heard(node, session),
            Step::Visit => self.visit(node),
            Step::MarkFailed => self.mark_failed(node),
            Step::Host => self.begin_hosting(node),
            Step::CarryOut(session, number, request) => {
                self.carry_out(node, session, number, request);
            }
        }
    }

    /// Looks at a node's copy as the application does when it begins to use it.
    pub(crate) fn look(&mut self, node: usize, level: Promise) {
        self.stats.looks += 1;
        if let Err(e) = self.checker.look(&self.nodes[node].disk.fs, level) {
            self.fail(format!("node {node}: {e}"));
        }
    }
}
