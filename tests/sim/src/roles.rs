//! Starting, promoting, demoting, stopping.

use twinfold_protocol::handshake::Role;
use twinfold_protocol::ids::{Generation, Side};
use twinfold_protocol::marks::DirtyMap;
use twinfold_protocol::primary::{AckMode, Link, OwnMarks, Primary};

use crate::bugs::Bug;
use crate::checker::Promise;
use crate::net::Message;
use crate::takeover::{Place, TakeOver};
use crate::world::{MS, Moving, Quiet, Step, World};

/// How long a primary that hands over or stops waits for its peer, in milliseconds.
const QUIESCE_WAIT: u64 = 10_000;

impl World {
    /// The witness grants to go on from a generation to one node only.
    pub(crate) fn grants(&mut self, node: usize) -> bool {
        if !self.habits.witness {
            return true;
        }
        let generation = self.nodes[node].disk.record.copy.current.0;
        *self.witness.entry(generation).or_insert(node) == node
    }

    /// A primary that lost its peer asks whether it may go on.
    pub(crate) fn ask_witness(&mut self, node: usize) {
        if !self.nodes[node].core.is_asking() {
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
    pub(crate) fn start(&mut self, node: usize, role: Role, force: bool) {
        self.stats.restarts += 1;
        let next = Generation(self.random_id());
        let config = self.config;
        let n = &mut self.nodes[node];
        n.up = true;
        n.frozen = false;
        n.life += 1;
        let found = n.disk.find_own();
        n.own = found.own;
        n.recovered = found.notes;
        n.damaged = found.damaged && self.bug != Some(Bug::AssumeClean);
        if self.bug == Some(Bug::ForgetMarks) {
            n.own = OwnMarks::default();
        }
        n.disk.rotate();
        n.standby = None;
        n.connection = None;
        n.changes.clear();
        n.locks.clear();
        n.orphans.clear();
        n.moving = Moving::default();
        n.verifying.clear();
        n.segment = None;
        n.beginning = false;
        n.failed_syncs = 0;
        n.lossy = false;
        n.doubtful = !n.disk.record.clean && n.disk.record.boot == n.boot;
        n.ailing = false;
        n.closing = false;
        n.comparing = false;
        n.denied = false;
        n.differing = DirtyMap::default();
        n.rejoin = None;
        n.failed_before = None;
        n.takeover = TakeOver::default();
        n.core = Primary::new(config, DirtyMap::default());
        self.note(|| format!("node {node} starts as {role:?}, force {force}"));
        // What the last run could perhaps not write on a disk that failed is written now.
        if self.nodes[node].disk.is_condemned() && !self.has(Bug::CondemnedStarts) {
            self.nodes[node].disk.update(|r| r.fall_behind());
            if self.last_served == Some(node) {
                self.last_served = Some(1 - node);
            }
        }
        self.nodes[node].disk.pardon();
        match role {
            Role::Primary => {
                // By force also in the middle of a resync: what lost its place then has none.
                self.nodes[node].disk.clear_aside();
                let new = self.nodes[node].disk.record.paired || force;
                self.must_be_whole(node, force);
                self.become_primary(node, new.then_some(next), DirtyMap::default());
                // By force it need not be the one that served last, and in mode `flush` the
                // other one has what was synced.
                let behind = force && config.mode == AckMode::Flush;
                let level = match self.nodes[node].lost_cache || behind {
                    true => Promise::Synced,
                    false => Promise::Acknowledged,
                };
                self.serve(node, level);
            }
            Role::Secondary => {
                let boot = self.nodes[node].boot;
                let mode = self.config.mode;
                self.nodes[node]
                    .disk
                    .update(|r| r.become_secondary(boot, mode));
                self.nodes[node].role = Some(Role::Secondary);
            }
        }
        self.soon(node, 60 * MS, Step::Tick);
        self.soon(node, 150 * MS, Step::Dial);
        self.soon(node, 500 * MS, Step::Periodic);
    }

    /// A copy that a resync has begun to change is never promoted, unless by force.
    pub(crate) fn must_be_whole(&mut self, node: usize, force: bool) {
        if force {
            self.nodes[node].half_resynced = false;
        } else if self.nodes[node].half_resynced {
            self.fail(format!("node {node} becomes primary half-resynced"));
        }
    }

    pub(crate) fn become_primary(
        &mut self,
        node: usize,
        next: Option<Generation>,
        suspects: DirtyMap,
    ) {
        let side = if node == 0 { Side::Even } else { Side::Odd };
        let keep_aside = self.has(Bug::AsideLeft);
        let n = &mut self.nodes[node];
        if !keep_aside {
            n.disk.settle_aside();
        }
        let mut record = n.disk.record.clone();
        if record.become_primary(side, next, n.boot).is_err() {
            return self.fail("no epochs are left".into());
        }
        n.disk.update(|r| *r = record);
        self.begin_term(node, suspects);
        self.nodes[node].role = Some(Role::Primary);
    }

    /// A term as primary begins, alone.
    pub(crate) fn begin_term(&mut self, node: usize, suspects: DirtyMap) {
        let old_term = self.has(Bug::StaleVote);
        let config = self.config;
        let n = &mut self.nodes[node];
        n.takeover.place = Place::Here;
        n.takeover.undone.clear();
        n.epoch = n.disk.record.epoch;
        n.next_id = 0;
        n.core = match old_term {
            true => Primary::new(config, DirtyMap::default()),
            false => n.core.next_term(),
        };
        let own = std::mem::take(&mut n.own);
        n.core.mark(|dirty| dirty.unite(own.dirty));
        n.core.add_suspects(own.suspect);
        n.core.add_suspects(suspects);
        n.term += 1;
        n.closing = false;
        n.denied = false;
        self.sequence[node].begins(&self.nodes[node].disk.fs);
    }

    /// The application goes on, on this node.
    pub(crate) fn serve(&mut self, node: usize, level: Promise) {
        if self.nodes[node].disk.effects.is_dead() {
            return;
        }
        self.serving = Some((node, self.nodes[node].life));
        self.last_served = Some(node);
        self.nodes[node].disk.files_are_opened();
        if !self.habits.witness {
            self.remember_before_split(node);
        }
        self.nodes[node].own_history = false;
        self.look(node, level);
        self.nodes[node].serves_what_is_left = self.nodes[node].lost_cache;
        self.nodes[node].lost_cache = false;
    }

    /// What is known when this node leaves its generation: a copy that is left behind in it has
    /// that much, or ends its resync with it unheard. Kept until that copy is brought up again;
    /// what was left earlier is known as it was then.
    pub(crate) fn remember_before_split(&mut self, node: usize) {
        let left = self.nodes[1 - node].disk.record.copy.current;
        let mine = &self.nodes[node].disk.record.copy;
        let before = mine.bases.iter().chain(mine.history.first()).copied();
        for generation in before.chain([left]).filter(|g| *g != mine.current) {
            let known = self.before_split.entry(generation);
            known.or_insert_with(|| self.checker.clone());
        }
    }

    pub(crate) fn promote(&mut self, node: usize) {
        let n = &mut self.nodes[node];
        let Some(standby) = n.standby.take() else {
            return;
        };
        self.stats.failovers += 1;
        self.note(|| format!("node {node} is promoted"));
        self.must_be_whole(node, false);
        self.drop_connection(node);
        let [mine, theirs] = [node, 1 - node].map(|n| self.nodes[n].disk.record.copy.current);
        let mut suspects = standby.fresh;
        suspects.unite(standby.older);
        self.nodes[node].recovered.clear();
        self.nodes[node].damaged = false;
        let next = Generation(self.random_id());
        self.become_primary(node, Some(next), suspects);
        if self.nodes[node].disk.effects.is_dead() {
            // Nothing has come of it.
            return;
        }
        let mut before = std::mem::take(&mut self.before_split);
        if let Some(before) = before.remove(&mine)
            && mine != theirs
        {
            // The other one went on by itself, and so does this one: nobody prevented it.
            self.checker.falls_back_to(before);
            self.nodes[1 - node].own_history = true;
        }
        let level = match self.config.mode {
            AckMode::Flush => Promise::Synced,
            _ => Promise::Acknowledged,
        };
        self.serve(node, level);
    }

    pub(crate) fn demote(&mut self, node: usize) {
        if self.is_away(node) {
            // The peer has the data: it is to be promoted.
            return;
        }
        self.end_hosting(node);
        self.note(|| format!("node {node} is demoted"));
        self.quiesce(node, Quiet::Demote);
    }

    /// No change is taken from now on, and the peer gets everything: applied and, while
    /// it keeps up, on its disk.
    fn quiesce(&mut self, node: usize, why: Quiet) {
        if self.nodes[node].closing {
            return;
        }
        self.nodes[node].closing = true;
        let until = self.now + QUIESCE_WAIT * MS;
        self.soon(node, MS, Step::Quiesce(why, until, 0));
    }

    /// Goes on once no change is under way, the peer has everything, and two checkpoints
    /// have ended.
    pub(crate) fn quiesce_step(&mut self, node: usize, why: Quiet, until: u64, rounds: u64) {
        if self.is_away(node) && why == Quiet::Stop {
            return self.stopped(node);
        }
        if self.is_away(node) {
            // It stays what it is, and its calls are carried out by the peer.
            self.nodes[node].closing = false;
            return;
        }
        let n = &self.nodes[node];
        let paired = n.core.link() == Link::Paired && n.core.in_flight().0 > 0;
        let pending = paired || n.core.checkpoint_runs() || n.beginning;
        if !self.inside(node).is_empty() || (pending && self.now < until) {
            return self.soon(node, 2 * MS, Step::Quiesce(why, until, rounds));
        }
        if rounds < 2 && self.now < until {
            self.begin_checkpoint(node);
            return self.soon(node, 2 * MS, Step::Quiesce(why, until, rounds + 1));
        }
        if self.nodes[node].comparing {
            // With the connection the comparison ends.
            self.drop_connection(node);
            return self.soon(node, 2 * MS, Step::Quiesce(why, until, rounds));
        }
        match why {
            Quiet::Demote => self.demoted(node),
            Quiet::Stop => self.stopped(node),
        }
    }

    fn demoted(&mut self, node: usize) {
        if self.sync_store(node).is_err() {
            // It stays what it is.
            self.nodes[node].closing = false;
            return;
        }
        self.nodes[node].role = None;
        if self.serving.is_some_and(|(n, _)| n == node) {
            self.serving = None;
        }
        self.drop_connection(node);
        let segment = self.nodes[node].disk.rotate();
        let own = self.end_term(node, segment);
        let old_term = self.has(Bug::StaleVote);
        let config = self.config;
        let n = &mut self.nodes[node];
        n.own = own;
        // What is still held is answered with an error; a sync under way still votes.
        n.changes.retain(|_, change| !change.applied);
        n.locks.clear();
        n.orphans.clear();
        n.core = match old_term {
            true => Primary::new(config, DirtyMap::default()),
            false => n.core.next_term(),
        };
        n.disk.update(|r| r.become_secondary(n.boot, config.mode));
        n.role = Some(Role::Secondary);
        n.term += 1;
        n.closing = false;
        n.standby = None;
        n.segment = None;
        n.beginning = false;
        n.denied = false;
    }

    /// A node is to stop in order.
    pub(crate) fn stop(&mut self, node: usize) {
        if !self.nodes[node].up || self.nodes[node].frozen {
            return;
        }
        self.note(|| format!("node {node} stops in order"));
        self.end_hosting(node);
        if self.nodes[node].role == Some(Role::Primary) && !self.is_away(node) {
            return self.quiesce(node, Quiet::Stop);
        }
        if self.nodes[node].role == Some(Role::Secondary)
            && let Some(standby) = self.nodes[node].standby.take()
            && let Some(id) = self.nodes[node].connection
            && self.sync_store(node).is_ok()
            && standby.failed_syncs == self.nodes[node].failed_syncs
        {
            self.nodes[node].disk.update(|r| r.fall_behind());
            self.send(node, id, Message::Leave { flushed: true });
            // Whether or not the primary hears of it: what was noted here is noted there.
            if !standby.machine.is_syncing() {
                let segment = self.nodes[node].disk.rotate();
                self.nodes[node].disk.retire(segment);
            }
        }
        self.stopped(node);
    }

    fn stopped(&mut self, node: usize) {
        if self.is_away(node) {
            self.stopped_away(node);
        } else if self.sync_store(node).is_ok() {
            self.drop_connection(node);
            if self.nodes[node].role == Some(Role::Primary) {
                let segment = self.nodes[node].disk.log.current() + 1;
                self.end_term(node, segment);
            }
            let n = &mut self.nodes[node];
            // In doubt, the next run is so as well.
            if !n.lossy && !n.doubtful {
                n.disk.update(|r| r.stop());
            }
        }
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
        n.orphans.clear();
        n.takeover = TakeOver::default();
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
        n.disk.cut_power(&mut self.rng, self.bug);
        n.boot = boot;
        n.lost_cache = true;
        if self.rng.one_in(5) {
            let n = &mut self.nodes[node];
            match self.rng.one_in(3) {
                true => n.disk.saved.lost = true,
                false => n.disk.log.damage(&mut self.rng),
            }
        }
    }
}
