//! What breaks, and when; and what operators do at the worst moments.

use crate::effects::Stop;
use crate::rng::Rng;
use crate::world::{Event, MS, World};

/// One fault, its repair, or an order of the operator.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// A process is killed.
    Kill(usize),
    /// A machine loses power.
    Power(usize),
    /// Both do.
    BothPower,
    /// Both processes are killed.
    BothKill,
    /// A node is stopped in front of its effect of this number from here.
    StopAt(usize, u64, Stop),
    /// A process stops answering.
    Freeze(usize),
    /// It goes on.
    Thaw(usize),
    /// What is for a node does not arrive.
    Cut(usize),
    /// Nothing arrives.
    CutBoth,
    /// Everything arrives again.
    Heal,
    /// A node's end of the connection dies; the other one hears nothing.
    DropEnd(usize),
    /// Messages are lost and sent again: streams overtake each other.
    Loss,
    /// Messages take longer.
    Slow,
    /// A disk is full.
    Full(usize),
    /// There is room again.
    Room(usize),
    /// A disk fails what is asked of it.
    Break(usize),
    /// A disk fails what is read from it.
    FailReads(usize),
    /// It works again.
    Mend(usize),
    /// What is written to a disk's memory is not brought to the disk.
    FailFlushes(usize),
    /// A disk takes long for each sync, or hangs.
    SlowDisk(usize),
    /// It is as fast as before.
    FastDisk(usize),
    /// A node is stopped in order.
    Stop(usize),
    /// The operator hands over to the other node.
    Swap,
    /// A checkpoint by hand.
    Checkpoint(usize),
    /// The operator forces a stale copy.
    ForceStale,
    /// The operator forces a copy that runs as secondary, in whatever state it is.
    ForceRunning(usize),
}

impl Fault {
    /// The kinds that are counted, by name.
    pub const NAMES: [&'static str; 28] = [
        "kill",
        "power",
        "both-power",
        "both-kill",
        "kill-at-effect",
        "power-at-effect",
        "freeze-at-effect",
        "freeze",
        "thaw",
        "cut",
        "cut-both",
        "heal",
        "drop-end",
        "loss",
        "slow",
        "full",
        "room",
        "break",
        "mend",
        "slow-disk",
        "fast-disk",
        "stop",
        "swap",
        "checkpoint",
        "force-stale",
        "force-running",
        "fail-flushes",
        "fail-reads",
    ];

    fn number(self) -> usize {
        match self {
            Fault::Kill(_) => 0,
            Fault::Power(_) => 1,
            Fault::BothPower => 2,
            Fault::BothKill => 3,
            Fault::StopAt(_, _, Stop::Kill) => 4,
            Fault::StopAt(_, _, Stop::Power) => 5,
            Fault::StopAt(_, _, Stop::Freeze) => 6,
            Fault::Freeze(_) => 7,
            Fault::Thaw(_) => 8,
            Fault::Cut(_) => 9,
            Fault::CutBoth => 10,
            Fault::Heal => 11,
            Fault::DropEnd(_) => 12,
            Fault::Loss => 13,
            Fault::Slow => 14,
            Fault::Full(_) => 15,
            Fault::Room(_) => 16,
            Fault::Break(_) => 17,
            Fault::Mend(_) => 18,
            Fault::SlowDisk(_) => 19,
            Fault::FastDisk(_) => 20,
            Fault::Stop(_) => 21,
            Fault::Swap => 22,
            Fault::Checkpoint(_) => 23,
            Fault::ForceStale => 24,
            Fault::ForceRunning(_) => 25,
            Fault::FailFlushes(_) => 26,
            Fault::FailReads(_) => 27,
        }
    }
}

/// The faults of a run, by the milliseconds after its beginning.
pub(crate) fn schedule(rng: &mut Rng, phases: u64) -> Vec<(u64, Fault)> {
    let mut all = Vec::new();
    let mut at = 600;
    for _ in 0..phases {
        let count = 1 + rng.below(4);
        for _ in 0..count {
            let gap = if rng.one_in(3) { 40 } else { 900 };
            at += rng.below(gap);
            one(rng, at, &mut all);
        }
        at += 1500;
    }
    all.sort_by_key(|(at, _)| *at);
    all
}

fn one(rng: &mut Rng, mut at: u64, all: &mut Vec<(u64, Fault)>) {
    let node = rng.below(2) as usize;
    let later = at + rng.below(1500);
    match rng.below(64) {
        0 | 1 => all.push((at, Fault::Kill(node))),
        2 | 3 => all.push((at, Fault::Power(node))),
        4 | 5 => all.push((at, Fault::BothPower)),
        6 => all.push((at, Fault::BothKill)),
        7..=14 => {
            let how = match rng.below(5) {
                0 | 1 => Stop::Kill,
                2 | 3 => Stop::Power,
                _ => Stop::Freeze,
            };
            let reach = if rng.one_in(2) { 30 } else { 1500 };
            all.push((at, Fault::StopAt(node, 1 + rng.below(reach), how)));
            // Both at nearly the same moment.
            if rng.one_in(4) {
                all.push((at, Fault::StopAt(1 - node, 1 + rng.below(reach), how)));
            }
        }
        15 | 16 => {
            all.push((at, Fault::Freeze(node)));
            all.push((later, Fault::Thaw(node)));
        }
        17 | 18 => {
            all.push((at, Fault::Cut(node)));
            all.push((later, Fault::Heal));
        }
        19..=21 => {
            all.push((at, Fault::CutBoth));
            all.push((at + rng.below(2500), Fault::Heal));
        }
        22 | 23 => all.push((at, Fault::DropEnd(node))),
        24 => all.push((at, Fault::Loss)),
        25 => all.push((at, Fault::Slow)),
        26 | 27 => {
            all.push((at, Fault::Full(node)));
            all.push((later, Fault::Room(node)));
        }
        28..=30 => {
            all.push((at, Fault::Break(node)));
            all.push((later, Fault::Mend(node)));
        }
        31 | 32 => {
            all.push((at, Fault::SlowDisk(node)));
            all.push((later, Fault::FastDisk(node)));
        }
        33 | 34 => all.push((at, Fault::Stop(node))),
        35..=37 => all.push((at, Fault::Swap)),
        38 => {
            // Two at once, and one in the middle of them.
            for _ in 0..3 {
                all.push((at + rng.below(8), Fault::Checkpoint(node)));
            }
        }
        39 | 40 => {
            all.push((at, Fault::BothKill));
            all.push((at + 1, Fault::ForceStale));
        }
        44 | 45 => {
            // A flush fails while nobody is there to be told, and works when asked for again.
            all.push((at, Fault::Break(node)));
            all.push((at + rng.below(6), Fault::DropEnd(node)));
            all.push((at + rng.range(8, 80), Fault::Mend(node)));
            all.push((at + rng.range(900, 1600), Fault::BothPower));
        }
        46 | 47 => {
            // Hand-overs to and fro while syncs take long.
            for node in 0..2 {
                all.push((at, Fault::SlowDisk(node)));
                all.push((at + 3000, Fault::FastDisk(node)));
            }
            for _ in 0..5 {
                at += rng.range(100, 600);
                all.push((at, Fault::Swap));
            }
        }
        48 | 49 => {
            // Checkpoints meet while much is on its way, then everything is lost.
            all.push((at, Fault::Slow));
            for _ in 0..8 {
                all.push((at + rng.below(250), Fault::Checkpoint(0)));
                all.push((at + rng.below(250), Fault::Checkpoint(1)));
            }
            all.push((at + rng.range(40, 300), Fault::BothPower));
        }
        50..=52 => {
            // A flush fails, of much or of little, and works when asked for again; then, or
            // when all is settled, memory is gone.
            all.push((at, Fault::FailFlushes(node)));
            for _ in 0..rng.below(3) {
                all.push((at + rng.below(40), Fault::Checkpoint(1 - node)));
            }
            all.push((at + rng.range(5, 200), Fault::Mend(node)));
            match rng.below(4) {
                0 => all.push((at + rng.range(20, 1600), Fault::Power(node))),
                1 => all.push((at + rng.range(20, 1600), Fault::BothPower)),
                2 => all.push((at + rng.range(20, 1600), Fault::Power(1 - node))),
                _ => {}
            }
        }
        53 | 54 => {
            all.push((at, Fault::FailReads(node)));
            if rng.one_in(3) {
                all.push((at, Fault::Break(node)));
            }
            all.push((later, Fault::Mend(node)));
        }
        55 | 56 => {
            // A disk fails, and the line breaks at nearly the same moment.
            let cut = [Fault::DropEnd(0), Fault::CutBoth, Fault::Cut(node)];
            all.push((at, Fault::Break(node)));
            let nearly = at.saturating_sub(20) + rng.below(60);
            all.push((nearly, *rng.pick(&cut).unwrap_or(&Fault::CutBoth)));
            all.push((at + rng.range(60, 2500), Fault::Heal));
            all.push((later, Fault::Mend(node)));
        }
        57..=59 => {
            // A disk fails, and then one of both nodes.
            all.push((at, Fault::Break(node)));
            let (one, soon) = (rng.below(2) as usize, at + rng.below(600));
            all.push(match rng.below(5) {
                0 => (soon, Fault::Kill(one)),
                1 => (soon, Fault::Power(one)),
                2 => (soon, Fault::Freeze(one)),
                3 => (at, Fault::StopAt(one, 1 + rng.below(300), Stop::Kill)),
                _ => (at, Fault::StopAt(one, 1 + rng.below(300), Stop::Power)),
            });
            all.push((soon + rng.below(1500), Fault::Thaw(one)));
            all.push((later, Fault::Mend(node)));
        }
        60 => {
            // A disk fails while the network is slow and lossy, and connections break.
            all.push((at, Fault::Slow));
            all.push((at, Fault::Loss));
            all.push((at + rng.below(20), Fault::Break(node)));
            for _ in 0..rng.range(1, 6) {
                let end = rng.below(2) as usize;
                all.push((at + rng.below(900), Fault::DropEnd(end)));
            }
            all.push((later, Fault::Mend(node)));
        }
        61 | 62 => {
            // A disk fails while that of the peer, which is to flush first, takes long; and the
            // node is lost before it is told.
            all.push((at, Fault::SlowDisk(1 - node)));
            all.push((at + 1, Fault::FailReads(node)));
            let lost = at + rng.range(20, 300);
            all.push(match rng.below(3) {
                0 => (lost, Fault::Kill(node)),
                1 => (lost, Fault::Power(node)),
                _ => (lost, Fault::CutBoth),
            });
            all.push((lost + rng.below(20), Fault::DropEnd(1 - node)));
            all.push((later + 1500, Fault::Heal));
            all.push((later + 1500, Fault::Mend(node)));
            all.push((later + 1500, Fault::FastDisk(1 - node)));
        }
        _ => {
            // In the middle of a resync: the target was restarted a moment ago.
            let back = at + rng.range(200, 1200);
            all.push((at, Fault::Kill(node)));
            all.push((back, Fault::Kill(1 - node)));
            all.push((back + 1, Fault::ForceRunning(node)));
        }
    }
}

impl World {
    /// A fault happens.
    pub(crate) fn fault(&mut self, fault: Fault) {
        self.stats.faults[fault.number()] += 1;
        self.note(|| format!("{fault:?}"));
        match fault {
            Fault::Kill(node) => self.kill(node),
            Fault::Power(node) => self.cut_power(node),
            Fault::BothPower => (0..2).for_each(|node| self.cut_power(node)),
            Fault::BothKill => (0..2).for_each(|node| self.kill(node)),
            Fault::StopAt(node, nth, how) => {
                if self.nodes[node].up {
                    self.nodes[node].disk.effects.stop_before(nth, how);
                }
            }
            Fault::Freeze(node) => self.freeze(node),
            Fault::Thaw(node) => self.thaw(node),
            Fault::Cut(node) => {
                self.cut(node);
                self.go_blind();
            }
            Fault::CutBoth => {
                (0..2).for_each(|node| self.cut(node));
                self.go_blind();
            }
            Fault::Heal => {
                self.blind = None;
                (0..2).for_each(|node| self.heal(node));
            }
            Fault::DropEnd(node) => self.break_end(node),
            Fault::Loss => self.net.loss = self.rng.range(4, 40),
            Fault::Slow => self.net.delay = self.rng.range(50_000, 60 * MS),
            Fault::Full(node) => self.nodes[node].disk.full = true,
            Fault::Room(node) => self.nodes[node].disk.full = false,
            Fault::Break(node) => self.nodes[node].disk.broken = true,
            Fault::FailFlushes(node) => self.nodes[node].disk.unflushable = true,
            Fault::FailReads(node) => self.nodes[node].disk.unreadable = true,
            Fault::Mend(node) => {
                let disk = &mut self.nodes[node].disk;
                if disk.unflushable && self.rng.one_in(2) {
                    // Nobody has asked for it, and nobody is told yet.
                    disk.fail_to_write_back();
                }
                (disk.broken, disk.unflushable, disk.unreadable) = (false, false, false);
            }
            Fault::SlowDisk(node) => {
                let longest = if self.rng.one_in(3) { 4000 } else { 300 };
                self.nodes[node].disk.slow = self.rng.range(20, longest) * MS;
            }
            Fault::FastDisk(node) => self.nodes[node].disk.slow = 0,
            Fault::Stop(node) => self.stop(node),
            Fault::Swap => self.swap(),
            Fault::Checkpoint(node) => self.checkpoint_by_hand(node),
            Fault::ForceStale => self.force_stale(),
            Fault::ForceRunning(node) => self.force_running(node),
        }
    }

    /// Without a witness the operator may sit on one side of a cut, and take what is
    /// there for all there is.
    fn go_blind(&mut self) {
        if !self.habits.witness && self.rng.one_in(2) {
            self.blind = self.serving.map(|(node, _)| node);
        }
    }

    /// A node stops answering.
    pub(crate) fn freeze(&mut self, node: usize) {
        if self.nodes[node].up {
            self.nodes[node].frozen = true;
            let ids: Vec<u64> = self.net.connections.keys().copied().collect();
            ids.into_iter().for_each(|id| self.suspect_connection(id));
        }
    }

    fn thaw(&mut self, node: usize) {
        if !self.nodes[node].frozen {
            return;
        }
        self.nodes[node].frozen = false;
        // First: what has arrived may wait for what was under way.
        for event in std::mem::take(&mut self.nodes[node].waiting) {
            let at = self.now + 1;
            self.at(at, event);
        }
        self.release(node);
    }

    /// Everything is repaired: from here on progress is demanded.
    pub(crate) fn repair(&mut self) {
        self.repaired = true;
        self.blind = None;
        (0..2).for_each(|node| {
            self.heal(node);
            self.thaw(node);
            let disk = &mut self.nodes[node].disk;
            (disk.full, disk.broken, disk.slow) = (false, false, 0);
            (disk.unflushable, disk.unreadable) = (false, false);
            disk.effects.disarm();
        });
        self.net.delay = MS;
        self.net.loss = 0;
    }

    /// Puts the faults on the calendar.
    pub(crate) fn plan(&mut self, faults: &[(u64, Fault)]) {
        for (at, fault) in faults {
            self.at(at * MS, Event::Fault(*fault));
        }
    }
}
