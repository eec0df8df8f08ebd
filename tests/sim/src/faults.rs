//! What breaks, and when.

use crate::rng::Rng;
use crate::world::{Event, MS, World};

/// One fault, or its repair.
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
    /// A disk is full.
    Full(usize),
    /// There is room again.
    Room(usize),
    /// A node is stopped in order.
    Stop(usize),
    /// The operator forces a stale copy.
    ForceStale,
    /// Messages take longer.
    Slow,
}

impl Fault {
    /// How many kinds are counted.
    pub const KINDS: usize = 14;

    /// Their names, in the order in which they are counted.
    pub const NAMES: [&'static str; Fault::KINDS] = [
        "kill",
        "power",
        "both-power",
        "both-kill",
        "freeze",
        "thaw",
        "cut",
        "cut-both",
        "heal",
        "full",
        "room",
        "stop",
        "force-stale",
        "slow",
    ];

    fn number(self) -> usize {
        match self {
            Fault::Kill(_) => 0,
            Fault::Power(_) => 1,
            Fault::BothPower => 2,
            Fault::BothKill => 3,
            Fault::Freeze(_) => 4,
            Fault::Thaw(_) => 5,
            Fault::Cut(_) => 6,
            Fault::CutBoth => 7,
            Fault::Heal => 8,
            Fault::Full(_) => 9,
            Fault::Room(_) => 10,
            Fault::Stop(_) => 11,
            Fault::ForceStale => 12,
            Fault::Slow => 13,
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
            let node = rng.below(2) as usize;
            let later = at + rng.below(1500);
            match rng.below(22) {
                0..=3 => all.push((at, Fault::Kill(node))),
                4..=6 => all.push((at, Fault::Power(node))),
                7 | 8 => all.push((at, Fault::BothPower)),
                9 => all.push((at, Fault::BothKill)),
                10 | 11 => {
                    all.push((at, Fault::Freeze(node)));
                    all.push((later, Fault::Thaw(node)));
                }
                12 | 13 => {
                    all.push((at, Fault::Cut(node)));
                    all.push((later, Fault::Heal));
                }
                14..=16 => {
                    all.push((at, Fault::CutBoth));
                    all.push((at + rng.below(700), Fault::Heal));
                }
                17 | 18 => {
                    all.push((at, Fault::Full(node)));
                    all.push((later, Fault::Room(node)));
                }
                19 => all.push((at, Fault::Stop(node))),
                20 => {
                    all.push((at, Fault::BothKill));
                    all.push((at + 1, Fault::ForceStale));
                }
                _ => all.push((at, Fault::Slow)),
            }
        }
        at += 1500;
    }
    all.sort_by_key(|(at, _)| *at);
    all
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
            Fault::Freeze(node) => {
                if self.nodes[node].up {
                    self.nodes[node].frozen = true;
                    let ids: Vec<u64> = self.net.connections.keys().copied().collect();
                    ids.into_iter().for_each(|id| self.suspect_connection(id));
                }
            }
            Fault::Thaw(node) => self.thaw(node),
            Fault::Cut(node) => self.cut(node),
            Fault::CutBoth => (0..2).for_each(|node| self.cut(node)),
            Fault::Heal => (0..2).for_each(|node| self.heal(node)),
            Fault::Full(node) => self.nodes[node].disk.full = true,
            Fault::Room(node) => self.nodes[node].disk.full = false,
            Fault::Stop(node) => self.stop(node),
            Fault::ForceStale => self.force_stale(),
            Fault::Slow => self.net.delay = self.rng.range(50_000, 60 * MS),
        }
    }

    fn thaw(&mut self, node: usize) {
        if !self.nodes[node].frozen {
            return;
        }
        self.nodes[node].frozen = false;
        self.release(node);
        for event in std::mem::take(&mut self.nodes[node].waiting) {
            let at = self.now + 1;
            self.at(at, event);
        }
    }

    /// Everything is repaired: from here on progress is demanded.
    pub(crate) fn repair(&mut self) {
        (0..2).for_each(|node| {
            self.heal(node);
            self.thaw(node);
            self.nodes[node].disk.full = false;
        });
        self.net.delay = MS;
    }

    /// Puts the faults on the calendar.
    pub(crate) fn plan(&mut self, faults: &[(u64, Fault)]) {
        for (at, fault) in faults {
            self.at(at * MS, Event::Fault(*fault));
        }
    }
}
