//! Starting, promoting, demoting, stopping; and the operator who orders it.
//!
//! The operator is careful: nobody goes on from a generation without its peer unless
//! the witness grants it, which it does once for each generation. Now and then the
//! operator errs, by force and in so many words.

use twinfold_protocol::handshake::{Decision, Role, decide};
use twinfold_protocol::ids::{Generation, Side};
use twinfold_protocol::marks::DirtyMap;
use twinfold_protocol::primary::{AckMode, Link, OwnMarks, Primary};

use crate::bugs::Bug;
use crate::checker::Promise;
use crate::net::Message;
use crate::world::{Event, MS, Moving, Quiet, Step, World};

/// How long a primary that hands over or stops waits for its peer, in milliseconds.
const QUIESCE_WAIT: u64 = 10_000;

impl World {
    /// The witness grants to go on from a generation to one node only.
    fn grants(&mut self, node: usize) -> bool {
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
    fn start(&mut self, node: usize, role: Role, force: bool) {
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
        n.segment = None;
        n.beginning = false;
        n.ailing = false;
        n.closing = false;
        n.comparing = false;
        n.denied = false;
        n.core = Primary::new(config, DirtyMap::default());
        self.note(|| format!("node {node} starts as {role:?}, force {force}"));
        match role {
            Role::Primary => {
                // By force also in the middle of a resync: what lost its place then has none.
                self.nodes[node].disk.clear_aside();
                let new = self.nodes[node].disk.record.paired || force;
                self.must_be_whole(node, force);
                self.take_over(node, new.then_some(next), DirtyMap::default());
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
                self.nodes[node].disk.update(|r| r.become_secondary(boot));
                self.nodes[node].role = Some(Role::Secondary);
            }
        }
        self.soon(node, 60 * MS, Step::Tick);
        self.soon(node, 150 * MS, Step::Dial);
        self.soon(node, 500 * MS, Step::Periodic);
    }

    /// A copy that a resync has begun to change is never promoted, unless by force.
    fn must_be_whole(&mut self, node: usize, force: bool) {
        if force {
            self.nodes[node].half_resynced = false;
        } else if self.nodes[node].half_resynced {
            self.fail(format!("node {node} becomes primary half-resynced"));
        }
    }

    fn take_over(&mut self, node: usize, next: Option<Generation>, suspects: DirtyMap) {
        let side = if node == 0 { Side::Even } else { Side::Odd };
        let old_term = self.has(Bug::StaleVote);
        let config = self.config;
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
        n.role = Some(Role::Primary);
        n.term += 1;
        n.closing = false;
        n.denied = false;
        self.sequence[node].begins(&self.nodes[node].disk.fs);
    }

    /// The application goes on, on this node.
    fn serve(&mut self, node: usize, level: Promise) {
        if self.nodes[node].disk.effects.is_dead() {
            return;
        }
        self.serving = Some((node, self.nodes[node].life));
        self.last_served = Some(node);
        if !self.habits.witness {
            self.remember_before_split(node);
        }
        self.nodes[node].own_history = false;
        self.look(node, level);
        self.nodes[node].serves_what_is_left = self.nodes[node].lost_cache;
        self.nodes[node].lost_cache = false;
    }

    /// What is known when this node goes on alone, and the copy that it leaves behind: that
    /// may still end a resync of which this node does not hear. Kept until that copy is
    /// brought up again.
    pub(crate) fn remember_before_split(&mut self, node: usize) {
        let left = self.nodes[1 - node].disk.record.copy.current;
        let known = self.before_split.as_ref();
        if known.is_none_or(|(generations, _)| !generations.contains(&left)) {
            let mine = &self.nodes[node].disk.record.copy;
            let before = mine.bases.iter().chain(mine.history.first());
            let generations = before.copied().chain([left]).collect();
            self.before_split = Some((generations, self.checker.clone()));
        }
    }

    fn promote(&mut self, node: usize) {
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
        self.take_over(node, Some(next), suspects);
        if self.nodes[node].disk.effects.is_dead() {
            // Nothing has come of it.
            return;
        }
        if let Some((left, before)) = self.before_split.take()
            && mine != theirs
            && left.contains(&mine)
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

    fn demote(&mut self, node: usize) {
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
        if self.nodes[node].disk.sync_all().is_err() {
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
        n.disk.update(|r| r.become_secondary(n.boot));
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
        if self.nodes[node].role == Some(Role::Primary) {
            return self.quiesce(node, Quiet::Stop);
        }
        if self.nodes[node].role == Some(Role::Secondary)
            && let Some(standby) = self.nodes[node].standby.take()
            && let Some(id) = self.nodes[node].connection
            && self.nodes[node].disk.sync_all().is_ok()
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
        if self.nodes[node].disk.sync_all().is_ok() {
            self.drop_connection(node);
            if self.nodes[node].role == Some(Role::Primary) {
                let segment = self.nodes[node].disk.log.current() + 1;
                self.end_term(node, segment);
            }
            self.nodes[node].disk.update(|r| r.stop());
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

    /// The operator looks around and does what is needed.
    pub(crate) fn operator(&mut self) {
        let next = self.now + 100 * MS + self.rng.below(200 * MS);
        self.at(next, Event::Operator);
        for node in 0..2 {
            let n = &self.nodes[node];
            let primary = n.up && !n.frozen && n.role == Some(Role::Primary);
            // The other one was promoted while this one was out of reach.
            let second = self.serving.is_some_and(|(s, _)| s != node) && self.reaches(node);
            let unasked = !self.habits.witness || self.habits.hold;
            if primary && (n.denied || (second && unasked)) {
                self.demote(node);
            }
        }
        for node in 0..2 {
            let n = &self.nodes[node];
            if self.reaches(node) && n.ailing && !n.disk.broken {
                self.kill(node);
            }
        }
        self.answer_held();
        if self.rng.one_in(3)
            && let Some((node, _)) = self.serving
            && self.reaches(node)
        {
            self.checkpoint(node);
        }
        let alive = self
            .serving
            .is_some_and(|(n, life)| self.nodes[n].life == life && self.reaches(n));
        self.missed = if alive { 0 } else { self.missed + 1 };
        let patience = if self.habits.patient { 6 } else { 0 };
        if self.missed > 0 {
            self.fail_over(self.missed > patience);
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

    /// Whether the operator can work on a node.
    fn reaches(&self, node: usize) -> bool {
        self.nodes[node].up && !self.nodes[node].frozen && self.blind != Some(node)
    }

    /// Without a witness the operator goes by where the application ran last.
    fn may_restart(&self, node: usize) -> bool {
        self.habits.witness || self.last_served.is_none_or(|last| last == node)
    }

    /// A primary holds what it cannot acknowledge: it may go on when its peer is down.
    fn answer_held(&mut self) {
        for node in 0..2 {
            let held = self.reaches(node) && self.nodes[node].core.link() == Link::Holding;
            let away = !self.nodes[1 - node].up || self.rng.one_in(8);
            // With everything repaired nobody helps any more.
            if self.habits.hold && held && away && !self.repaired && self.rng.one_in(3) {
                self.note(|| format!("node {node} is told to go on alone"));
                self.soon(node, MS, Step::AskWitness);
            }
        }
    }

    /// The operator hands over to the other node, in order.
    pub(crate) fn swap(&mut self) {
        if let Some((node, _)) = self.serving
            && self.reaches(node)
            && self.reaches(1 - node)
            && self.nodes[node].role == Some(Role::Primary)
        {
            // To one that is no copy of this one, nobody hands over.
            let peer = &self.nodes[1 - node];
            if peer.role != Some(Role::Secondary) || peer.disk.record.copy.given_up {
                return;
            }
            // In the middle of a resync it is a mistake, now and then made.
            if self.nodes[node].core.link() != Link::Paired && !self.rng.one_in(4) {
                return;
            }
            self.stats.swaps += 1;
            self.demote(node);
        }
    }

    /// A checkpoint by hand.
    pub(crate) fn checkpoint_by_hand(&mut self, node: usize) {
        if self.reaches(node) {
            self.checkpoint(node);
        }
    }

    /// The primary is lost for good, as far as the operator knows: the other copy is made
    /// the good one, by force, although it runs and its resync may not have ended.
    pub(crate) fn force_running(&mut self, node: usize) {
        let (n, peer) = (&self.nodes[node], &self.nodes[1 - node]);
        let possible = n.role == Some(Role::Secondary) && n.disk.record.copy.current.is_some();
        if !self.reaches(node) || !possible || peer.up {
            return;
        }
        self.note(|| format!("node {node} is promoted by force"));
        self.given_up_for(node);
        self.drop_connection(node);
        let standby = self.nodes[node].standby.take();
        let current = standby.as_ref().is_some_and(|s| !s.machine.is_syncing());
        let mut suspects = DirtyMap::default();
        if let Some(standby) = standby {
            suspects = standby.fresh;
            suspects.unite(standby.older);
        }
        let n = &mut self.nodes[node];
        if current {
            n.recovered.clear();
            n.damaged = false;
        } else {
            n.recovered.extend(n.disk.log.all());
            n.damaged |= n.disk.log.is_damaged();
        }
        self.must_be_whole(node, true);
        let next = Generation(self.random_id());
        self.take_over(node, Some(next), suspects);
        self.serve(node, Promise::Acknowledged);
    }

    fn fail_over(&mut self, restart: bool) {
        if (0..2).any(|node| self.nodes[node].closing && self.reaches(node)) {
            return;
        }
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
        if !restart {
            return;
        }
        // One that is down and may simply start again.
        let patience = self.rng.one_in(6);
        for node in 0..2 {
            let n = &self.nodes[node];
            if n.up || n.given_up {
                continue;
            }
            let objection = n.disk.record.objection(n.boot);
            let may = !n.disk.record.paired || self.grants(node);
            if objection.is_none() && may && self.is_newest(node) && self.may_restart(node) {
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
            let given_up = self.nodes[node].given_up || record.copy.given_up;
            if good && !given_up && self.is_newest(node) && self.may_restart(node) {
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
            self.stats.splits += u64::from(decision == Decision::SplitBrain);
            self.nodes[node].disk.update(|r| r.give_up());
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
            self.given_up_for(node);
            self.start(node, Role::Primary, true);
            return;
        }
    }

    /// In so many words: what only the other one had is given up. What this one has is
    /// taken as it is, on its disk.
    fn given_up_for(&mut self, node: usize) {
        let peer = 1 - node;
        self.nodes[peer].given_up = true;
        // It went on by itself: nobody may overwrite it before it is given up in so many words.
        let own = self.nodes[peer].disk.record.copy.current;
        let mine = &self.nodes[node].disk.record.copy;
        let known = mine.current == own || mine.bases.contains(&own) || mine.history.contains(&own);
        self.nodes[peer].own_history = own.is_some() && !known;
        self.nodes[node].own_history = false;
        self.nodes[node].given_up = false;
        self.nodes[node].disk.take_as_it_is();
        self.checker = crate::checker::Checker::default();
    }
}
