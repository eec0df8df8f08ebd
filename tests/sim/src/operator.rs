//! The operator: looks around now and then, and orders what is needed.
//!
//! The operator is careful: nobody goes on from a generation without its peer unless
//! the witness grants it, which it does once for each generation. Now and then the
//! operator errs, by force and in so many words.

use twinfold_protocol::handshake::{Decision, Role, decide};
use twinfold_protocol::ids::Generation;
use twinfold_protocol::marks::DirtyMap;
use twinfold_protocol::primary::Link;

use crate::bugs::Bug;
use crate::checker::Promise;
use crate::world::{Event, MS, Step, World};

impl World {
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
            let hosts = n.takeover.hosting.is_some();
            // It took over, unasked any more: the other one was made primary by force before.
            let in_vain = hosts && second && !self.is_away(1 - node);
            if primary && (in_vain || (!hosts && (n.denied || (second && unasked)))) {
                self.demote(node);
            }
        }
        for node in 0..2 {
            let n = &self.nodes[node];
            if self.reaches(node) && n.ailing && !n.disk.broken {
                self.kill(node);
            }
        }
        self.look_after_failed_disks();
        self.answer_held();
        self.give_back();
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
                let n = &self.nodes[node];
                let good = n.disk.record.objection(n.boot).is_none() && !n.disk.is_condemned();
                // It had taken over from one whose disk has failed.
                let heir = good && !n.disk.record.paired && self.is_away(1 - node);
                let role = if heir { Role::Primary } else { Role::Secondary };
                self.start(node, role, false);
            }
        }
        let node = self.rng.below(4) as usize;
        if node < 2 {
            self.settle_split(node);
        }
    }

    /// A disk has failed under a primary, and its log says what to do.
    fn look_after_failed_disks(&mut self) {
        for node in 0..2 {
            if !self.reaches(node) || !self.is_away(node) {
                continue;
            }
            let heir = 1 - node;
            let n = &self.nodes[node];
            let lost = n.takeover.late || n.takeover.calls.is_refused();
            let hosts = self.reaches(heir)
                && self.nodes[heir].takeover.hosting.is_some()
                && self.nodes[heir].role == Some(Role::Primary);
            if self.serving != Some((node, n.life)) {
                // The application is elsewhere: what is left here is to be repaired.
                if self.rng.one_in(2) {
                    self.stop(node);
                }
            } else if hosts {
                if self.rng.one_in(6) {
                    self.promote_heir(heir);
                }
            } else if lost && self.rng.one_in(3) {
                self.note(|| format!("node {node} is given up, for its disk has failed"));
                self.stop(node);
                self.last_served = Some(heir);
            }
        }
    }

    /// The other one has taken over from this one, as the operator is told there.
    fn is_overtaken(&self, node: usize) -> bool {
        let mine = &self.nodes[node].disk.record.copy;
        let theirs = &self.nodes[1 - node].disk.record.copy;
        theirs.current != mine.current && theirs.history.contains(&mine.current)
    }

    /// Whether the operator can work on a node.
    fn reaches(&self, node: usize) -> bool {
        self.nodes[node].up && !self.nodes[node].frozen && self.blind != Some(node)
    }

    /// Without a witness the operator goes by where the application ran last.
    fn may_restart(&self, node: usize) -> bool {
        let last = self.last_served.is_none_or(|last| last == node);
        self.habits.witness || last || self.is_overtaken(1 - node)
    }

    /// The witness granted a generation to a node whose promotion came to nothing, and which
    /// has begun to be brought up to date since: it cannot use that any more.
    fn give_back(&mut self) {
        for node in 0..2 {
            let n = &self.nodes[node];
            let copy = &n.disk.record.copy;
            let complete = copy.up_to_date || copy.cut || copy.gave_way;
            let waits = self.reaches(node) && n.role == Some(Role::Secondary) && !complete;
            let generation = copy.current.0;
            if waits && self.witness.get(&generation) == Some(&node) {
                self.witness.remove(&generation);
            }
        }
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
        let possible = n.role == Some(Role::Secondary)
            && n.disk.record.copy.current.is_some()
            && n.takeover.hosting.is_none();
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
        self.become_primary(node, Some(next), suspects);
        self.serve(node, Promise::Acknowledged);
    }

    fn fail_over(&mut self, restart: bool) {
        if (0..2).any(|node| self.nodes[node].closing && self.reaches(node)) {
            return;
        }
        // One that has taken over.
        for node in 0..2 {
            if self.reaches(node) && self.nodes[node].takeover.hosting.is_some() {
                if self.nodes[node].role == Some(Role::Primary) {
                    self.promote_heir(node);
                }
                return;
            }
        }
        // A secondary that was up to date until its primary was gone.
        for node in 0..2 {
            let n = &self.nodes[node];
            let early = self.has(Bug::EarlyUpToDate);
            let current = n
                .standby
                .as_ref()
                .is_some_and(|s| !s.machine.is_syncing() || early);
            let current = current && n.differing.is_empty();
            let free = n.up && !n.frozen && n.role == Some(Role::Secondary);
            if current && free && !n.given_up && n.connection.is_none() && self.grants(node) {
                return self.promote(node);
            }
        }
        if !restart {
            return;
        }
        for node in 0..2 {
            // Its log says so: what the application had is on the other one.
            let failed = !self.nodes[node].up && self.nodes[node].disk.is_condemned();
            if failed && self.blind != Some(node) && !self.has(Bug::CondemnedStarts) {
                self.last_served = Some(1 - node);
            }
        }
        // One that is down and may simply start again.
        let patience = self.rng.one_in(6);
        for node in 0..2 {
            let n = &self.nodes[node];
            if n.up || n.given_up {
                continue;
            }
            let (record, boot) = (&n.disk.record, n.boot);
            let condemned = n.disk.is_condemned() && !self.has(Bug::CondemnedStarts);
            let fit = record.objection(boot).is_none() && !condemned && self.is_newest(node);
            let asks = record.paired;
            // What the witness grants to one node, the other one never gets: only who goes on asks.
            if fit && self.may_restart(node) && (!asks || self.grants(node)) {
                return self.start(node, Role::Primary, false);
            }
        }
        // One whose copy is no good can only be secondary, and the other one may wait for that.
        for node in 0..2 {
            let down = !self.nodes[node].up && !self.is_good(node);
            if down && self.nodes[1 - node].up && self.rng.one_in(2) {
                return self.start(node, Role::Secondary, false);
            }
        }
        // Both are down, or neither may: the newest copy is made the good one, by force.
        if !patience || self.nodes.iter().any(|n| n.frozen) {
            return;
        }
        // One that lost what was not synced only when no other one has it.
        for (node, cut) in [(0, false), (1, false), (0, true), (1, true)] {
            let copy = &self.nodes[node].disk.record.copy;
            let good = copy.current.is_some() && if cut { copy.cut } else { copy.up_to_date };
            let good = good && !self.nodes[node].disk.is_condemned() && !self.is_overtaken(node);
            let given_up = self.nodes[node].given_up || copy.given_up;
            // It was made the good one by force, and was lost before it was.
            let chosen = self.nodes[1 - node].given_up;
            // The other one got the right to go on and did not, and its disk has failed.
            let theirs = &self.nodes[1 - node].disk.record.copy;
            let only = !self.is_good(1 - node);
            let left = theirs.current == copy.current && only;
            let may = only || self.may_restart(node);
            let fit = good && may && (left || self.is_newest(node));
            if !given_up && (fit || chosen) {
                let (up, generation) = (self.nodes[node].up, copy.current.0);
                if left && fit {
                    self.witness.remove(&generation);
                }
                if !up && (chosen || self.grants(node)) {
                    return self.start(node, Role::Primary, true);
                }
                let n = &self.nodes[node];
                if up && n.role == Some(Role::Secondary) && n.standby.is_none() {
                    // Started as secondary in vain: it goes down, to be started by force.
                    return self.stop(node);
                }
            }
        }
        self.last_resort();
    }

    /// Whether a copy is one that the operator would go on with.
    fn is_good(&self, node: usize) -> bool {
        let disk = &self.nodes[node].disk;
        let copy = &disk.record.copy;
        copy.current.is_some() && ((copy.up_to_date && !disk.is_condemned()) || copy.cut)
    }

    /// Neither copy is good, for the disk of one failed while the other one was not there: the
    /// operator takes what there is.
    fn last_resort(&mut self) {
        let newer = (0..2).find(|node| self.is_overtaken(1 - node));
        let node = newer.or(self.last_served).unwrap_or(0);
        if (0..2).any(|n| self.is_good(n)) || !self.nodes[node].disk.record.copy.current.is_some() {
            return;
        }
        if self.nodes[node].up {
            return self.stop(node);
        }
        self.note(|| format!("node {node} is all there is"));
        self.stats.last_resorts += 1;
        self.given_up_for(node);
        self.start(node, Role::Primary, true);
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
        // It may have the better copy.
        if self.is_away(peer) {
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
            self.nodes[node].disowned = self.nodes[node].term;
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
            if self.is_newest(node) && !self.is_overtaken(node) {
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
