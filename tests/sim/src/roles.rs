//! Starting, promoting, demoting, stopping; and the operator who orders it.
//!
//! The operator is careful: nobody goes on from a generation without its peer unless
//! the witness grants it, which it does once for each generation. Now and then the
//! operator errs, by force and in so many words.

use twinfold_protocol::handshake::{Decision, Role, decide};
use twinfold_protocol::ids::{Generation, Side};
use twinfold_protocol::marks::DirtyMap;
use twinfold_protocol::primary::{AckMode, Link, Primary};

use crate::bugs::Bug;
use crate::checker::Promise;
use crate::net::Message;
use crate::world::{CheckpointStage, Event, MS, Moving, Step, World};

impl World {
    /// The witness grants to go on from a generation to one node only.
    fn grants(&mut self, node: usize) -> bool {
        let generation = self.nodes[node].disk.record.copy.current.0;
        *self.witness.entry(generation).or_insert(node) == node
    }

    /// A primary that lost its peer asks whether it may go on.
    pub(crate) fn ask_witness(&mut self, node: usize) {
        if self.nodes[node].core.link() != Link::Holding {
            return;
        }
        if self.rng.one_in(5) {
            // Not reached: later.
            return self.soon(node, 200 * MS, Step::AskWitness);
        }
        if self.grants(node) {
            self.nodes[node].core.go_alone();
            self.perform(node);
        } else {
            self.nodes[node].denied = true;
        }
    }

    /// A process starts on a node.
    fn start(&mut self, node: usize, role: Role, force: bool) {
        self.stats.restarts += 1;
        let next = Generation(self.random_id());
        let config = self.config;
        let n = &mut self.nodes[node];
        n.up = true;
        n.frozen = false;
        n.life += 1;
        n.disk.log.open();
        n.recovered = n.disk.log.all();
        n.damaged = n.disk.log.damaged && self.bug != Some(Bug::AssumeClean);
        n.standby = None;
        n.connection = None;
        n.changes.clear();
        n.locks.clear();
        n.moving = Moving::default();
        n.segment = None;
        n.denied = false;
        n.core = Primary::new(config, DirtyMap::default());
        self.note(|| format!("node {node} starts as {role:?}, force {force}"));
        match role {
            Role::Primary => {
                // By force also in the middle of a resync: what lost its place then has none.
                self.nodes[node].disk.clear_aside();
                let new = self.nodes[node].disk.record.paired || force;
                self.take_over(node, new.then_some(next), DirtyMap::default());
                let level = match self.nodes[node].lost_cache {
                    true => Promise::Synced,
                    false => Promise::Acknowledged,
                };
                self.serve(node, level);
            }
            Role::Secondary => {
                let boot = self.nodes[node].boot;
                self.nodes[node].disk.record.become_secondary(boot);
                self.nodes[node].role = Some(Role::Secondary);
            }
        }
        self.soon(node, 60 * MS, Step::Tick);
        self.soon(node, 150 * MS, Step::Dial);
        let begin = Step::Checkpoint(CheckpointStage::Begin);
        self.soon(node, 500 * MS, begin);
    }

    fn take_over(&mut self, node: usize, next: Option<Generation>, suspects: DirtyMap) {
        let side = if node == 0 { Side::Even } else { Side::Odd };
        let n = &mut self.nodes[node];
        if n.disk.record.become_primary(side, next, n.boot).is_err() {
            return self.fail("no epochs are left".into());
        }
        n.epoch = n.disk.record.epoch;
        n.next_id = 0;
        n.core = n.core.next_term();
        n.core.add_suspects(suspects);
        n.role = Some(Role::Primary);
        n.denied = false;
    }

    /// The application goes on, on this node.
    fn serve(&mut self, node: usize, level: Promise) {
        self.serving = Some((node, self.nodes[node].life));
        self.look(node, level);
        self.nodes[node].lost_cache = false;
    }

    fn promote(&mut self, node: usize) {
        let n = &mut self.nodes[node];
        let Some(standby) = n.standby.take() else {
            return;
        };
        self.stats.failovers += 1;
        self.note(|| format!("node {node} is promoted"));
        self.drop_connection(node);
        let mut suspects = standby.fresh;
        suspects.unite(standby.older);
        self.nodes[node].recovered.clear();
        self.nodes[node].damaged = false;
        let next = Generation(self.random_id());
        self.take_over(node, Some(next), suspects);
        let level = match self.config.mode {
            AckMode::Flush => Promise::Synced,
            _ => Promise::Acknowledged,
        };
        self.serve(node, level);
    }

    fn demote(&mut self, node: usize) {
        self.note(|| format!("node {node} is demoted"));
        self.nodes[node].role = None;
        if self.serving.is_some_and(|(n, _)| n == node) {
            self.serving = None;
        }
        self.soon(node, MS, Step::Demote);
    }

    /// The demotion goes on once no change is under way.
    pub(crate) fn demote_step(&mut self, node: usize) {
        let busy = |c: &crate::primary::Change| !c.applied;
        if self.nodes[node].changes.values().any(busy) {
            return self.soon(node, 2 * MS, Step::Demote);
        }
        self.drop_connection(node);
        let n = &mut self.nodes[node];
        n.disk.sync_all();
        n.changes.clear();
        n.locks.clear();
        n.core = n.core.next_term();
        n.disk.record.become_secondary(n.boot);
        n.role = Some(Role::Secondary);
        n.standby = None;
        n.recovered = n.disk.log.all();
        n.damaged = n.disk.log.damaged;
        n.segment = None;
        n.denied = false;
    }

    /// A node stops in order.
    pub(crate) fn stop(&mut self, node: usize) {
        if !self.nodes[node].up || self.nodes[node].frozen {
            return;
        }
        self.note(|| format!("node {node} stops in order"));
        if self.nodes[node].role == Some(Role::Secondary)
            && self.nodes[node].standby.is_some()
            && let Some(id) = self.nodes[node].connection
        {
            self.nodes[node].disk.sync_all();
            self.nodes[node].disk.record.fall_behind();
            self.send(node, id, Message::Leave { flushed: true });
            self.nodes[node].standby = None;
        }
        self.nodes[node].disk.sync_all();
        self.nodes[node].disk.record.stop();
        self.drop_connection(node);
        self.end(node);
    }

    /// A process is gone.
    fn end(&mut self, node: usize) {
        if self.serving.is_some_and(|(n, _)| n == node) {
            self.serving = None;
        }
        self.drop_connections(node);
        let n = &mut self.nodes[node];
        n.up = false;
        n.frozen = false;
        n.life += 1;
        n.role = None;
        n.standby = None;
        n.connection = None;
        n.waiting.clear();
        n.changes.clear();
        n.locks.clear();
        n.disk.kill();
    }

    /// A process is killed.
    pub(crate) fn kill(&mut self, node: usize) {
        if self.nodes[node].up {
            self.note(|| format!("node {node} is killed"));
            self.end(node);
        }
    }

    /// A machine loses power.
    pub(crate) fn cut_power(&mut self, node: usize) {
        self.note(|| format!("node {node} loses power"));
        self.end(node);
        let boot = self.random_id();
        let n = &mut self.nodes[node];
        n.disk.cut_power(&mut self.rng);
        n.boot = boot;
        n.lost_cache = true;
        if self.rng.one_in(5) {
            let n = &mut self.nodes[node];
            n.disk.log.damage(&mut self.rng);
        }
    }

    /// The operator looks around and does what is needed.
    pub(crate) fn operator(&mut self) {
        let next = self.now + 100 * MS + self.rng.below(200 * MS);
        self.at(next, Event::Operator);
        for node in 0..2 {
            if self.nodes[node].denied && self.nodes[node].role == Some(Role::Primary) {
                self.demote(node);
            }
        }
        let serving = self.serving;
        let alive = serving.is_some_and(|(n, life)| {
            self.nodes[n].up && !self.nodes[n].frozen && self.nodes[n].life == life
        });
        if !alive {
            self.fail_over();
        }
        // What is down comes back, some time.
        for node in 0..2 {
            if !self.nodes[node].up && self.serving.is_some() && self.rng.one_in(4) {
                self.start(node, Role::Secondary, false);
            }
        }
        let node = self.rng.below(4) as usize;
        if node < 2 {
            self.settle_split(node);
        }
    }

    fn fail_over(&mut self) {
        // A secondary that was up to date until its primary was gone.
        for node in 0..2 {
            let n = &self.nodes[node];
            let early = self.has(Bug::EarlyUpToDate);
            let current = n
                .standby
                .as_ref()
                .is_some_and(|s| !s.machine.is_syncing() || early);
            let free = n.up && !n.frozen && n.role == Some(Role::Secondary);
            if current && free && !n.given_up && n.connection.is_none() && self.grants(node) {
                return self.promote(node);
            }
        }
        // One that is down and may simply start again.
        let patience = self.rng.one_in(6);
        for node in 0..2 {
            let n = &self.nodes[node];
            if n.up || n.given_up {
                continue;
            }
            let objection = n.disk.record.objection(n.boot);
            let granted = !n.disk.record.paired || self.grants(node);
            if objection.is_none() && granted && self.is_newest(node) {
                return self.start(node, Role::Primary, false);
            }
        }
        // Both are down, or neither may: the newest copy is made the good one, by force.
        if !patience || self.nodes.iter().any(|n| n.frozen) {
            return;
        }
        for node in 0..2 {
            let record = &self.nodes[node].disk.record;
            let good = record.copy.current.is_some() && record.copy.up_to_date;
            if good && !self.nodes[node].given_up && self.is_newest(node) {
                let force = !self.nodes[node].up;
                if self.grants(node) && force {
                    return self.start(node, Role::Primary, true);
                }
                if self.nodes[node].up && self.nodes[node].role == Some(Role::Secondary) {
                    // Started as secondary in vain: it goes down, to be started by force.
                    return self.stop(node);
                }
            }
        }
    }

    /// Whether the other copy does not follow from this one.
    fn is_newest(&self, node: usize) -> bool {
        let mine = &self.nodes[node].disk.record.copy;
        let theirs = &self.nodes[1 - node].disk.record.copy;
        let peer_goes_on = theirs.bases.contains(&mine.current) && theirs.current != mine.current;
        let granted_there = self.witness.get(&mine.current.0) == Some(&(1 - node));
        !peer_goes_on && !granted_there
    }

    /// Two copies that will not come together: the one that does not serve is given up.
    fn settle_split(&mut self, node: usize) {
        let peer = 1 - node;
        if self.serving.is_none_or(|(n, _)| n != peer) || !self.nodes[node].up {
            return;
        }
        if self.nodes[node].role != Some(Role::Secondary) {
            return;
        }
        let mine = &self.nodes[node].disk.record.copy;
        let theirs = &self.nodes[peer].disk.record.copy;
        let decision = decide((mine, Role::Secondary), (theirs, Role::Primary));
        if matches!(
            decision,
            Decision::SplitBrain
                | Decision::Unrelated
                | Decision::BothGivenUp
                | Decision::SourceNotPrimary { .. }
                | Decision::StalePrimary { .. }
                | Decision::SourceIncomplete { .. }
        ) {
            self.note(|| format!("node {node} is given up: {decision:?}"));
            self.nodes[node].disk.record.give_up();
            self.nodes[node].given_up = false;
            self.nodes[node].own_history = false;
            self.nodes[node].standby = None;
            self.drop_connection(node);
        }
    }

    /// The operator errs: a stale copy is made the good one, by force.
    pub(crate) fn force_stale(&mut self) {
        for node in 0..2 {
            let peer = 1 - node;
            let n = &self.nodes[node];
            if n.up || self.nodes[peer].up || !n.disk.record.copy.current.is_some() {
                continue;
            }
            if self.is_newest(node) {
                continue;
            }
            self.note(|| format!("node {node} is forced although it is stale"));
            self.nodes[peer].given_up = true;
            // It went on by itself: nobody may overwrite it before it is given up in so many words.
            let own = self.nodes[peer].disk.record.copy.current;
            self.nodes[peer].own_history = own != self.nodes[node].disk.record.copy.current;
            self.nodes[node].own_history = false;
            self.nodes[node].given_up = false;
            // In so many words: what only the other one had is given up. What this one has
            // is taken as it is, on its disk.
            self.nodes[node].disk.sync_all();
            self.checker = crate::checker::Checker::default();
            self.start(node, Role::Primary, true);
            return;
        }
    }
}
