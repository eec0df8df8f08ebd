//! What a node must remember about its copy to know, at its next start, what the copy
//! is worth; and every way in which that changes.
//!
//! The driver makes each change durable before it acts on it (invariants 4, 11, 17).

use crate::handshake::{CopyState, Role};
use crate::ids::{Epoch, Generation, ModuleId, Side};
use crate::primary::AckMode;

/// Whether what this copy has was kept, should it be overwritten.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Archived {
    /// It was not.
    #[default]
    No,
    /// What it has changed by itself was kept.
    Changes,
    /// All of it was kept.
    Everything,
    /// The operator does without.
    Waived,
}

/// Everything that is remembered beside intents and marks.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Record {
    /// The copy's history.
    pub copy: CopyState,
    /// Highest epoch of file ids seen, here or at the peer.
    pub epoch: Epoch,
    /// What the node did with the copy when it last ran.
    pub role: Option<Role>,
    /// The peer was up to date and its vote counted: it may hold newer data than a
    /// primary that lost its page cache.
    pub paired: bool,
    /// The driver stopped in order.
    pub clean: bool,
    /// The operating system's boot during the last run; another one now means that
    /// what was not synced may be gone.
    pub boot: u128,
    /// When it last went on without its peer, in seconds since 1970; 0 if it did not. For
    /// the operator: nothing is ever decided from it.
    pub alone_since: u64,
    /// The number of the saved marks that are in force: notes that they stand for may be
    /// gone, so without them nothing is known.
    pub marks: u64,
    /// Whether what this copy has was kept. A copy that goes on has more than that.
    pub archived: Archived,
}

/// What saved marks belong to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct MarksId {
    /// The module of the copy; none before the first synchronisation.
    pub module: ModuleId,
    /// The copy's generation when they were saved.
    pub generation: Generation,
    /// Their number: each time they are saved one higher.
    pub number: u64,
}

/// Saved marks are of another history than the copy.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "it belongs to module {:?}, generation {}, number {}, which is not this copy's history",
    .0.module, .0.generation, .0.number
)]
pub struct ForeignMarks(pub MarksId);

/// Why a copy may not simply become primary when the driver starts (promise 4).
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Objection {
    /// It has no generation.
    #[error("this copy was never synchronised")]
    NeverSynchronised,
    /// The record of it was lost.
    #[error("this copy's history is not known: it waits to be compared with its peer's")]
    HistoryUnknown,
    /// Its operator gave it up.
    #[error("this copy was given up: it waits to be overwritten by its peer")]
    GivenUp,
    /// Its flag is down.
    #[error(
        "this copy is not up to date: it lacks acknowledged writes of its peer, or its resync was \
         interrupted"
    )]
    NotUpToDate,
    /// Its peer may have gone on.
    #[error("this node was secondary when it last ran, and its peer may have gone on without it")]
    WasSecondary,
    /// Its page cache is gone, its peer's may not be.
    #[error(
        "this machine went down as primary while its peer was up to date: the peer may hold \
         acknowledged writes that were lost here"
    )]
    PeerMayHoldMore,
}

/// No epoch of file ids is left.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("all epochs of file ids are used up")]
pub struct NoEpoch;

impl Record {
    /// The record of a copy whose own record cannot be read. It counts as given up: whoever
    /// starts it says so, the peer is source, and everything is compared.
    pub fn history_unknown(epoch: Epoch) -> Record {
        Record {
            copy: CopyState {
                given_up: true,
                ..CopyState::default()
            },
            epoch,
            clean: true,
            ..Record::default()
        }
    }

    /// Why this copy may not become primary without force; `boot` is the running
    /// operating system's.
    pub fn objection(&self, boot: u128) -> Option<Objection> {
        if !self.copy.current.is_some() && self.copy.given_up {
            Some(Objection::HistoryUnknown)
        } else if !self.copy.current.is_some() {
            Some(Objection::NeverSynchronised)
        } else if self.copy.given_up {
            Some(Objection::GivenUp)
        } else if !self.copy.up_to_date {
            Some(Objection::NotUpToDate)
        } else if self.role == Some(Role::Secondary) {
            Some(Objection::WasSecondary)
        } else if self.paired && !self.clean && self.boot != boot {
            Some(Objection::PeerMayHoldMore)
        } else {
            None
        }
    }

    /// The node becomes primary, without its peer. A `next` generation is needed when
    /// the peer may be up to date, or when the copy is made good by force.
    pub fn become_primary(
        &mut self,
        side: Side,
        next: Option<Generation>,
        boot: u128,
    ) -> Result<(), NoEpoch> {
        self.epoch = Epoch::next(self.epoch, side).ok_or(NoEpoch)?;
        if let Some(next) = next {
            self.copy = self.copy.go_alone(next);
        }
        self.copy.up_to_date = true;
        (self.copy.cut, self.copy.gave_way) = (false, false);
        self.copy.given_up = false;
        self.archived = Archived::No;
        self.runs_as(Role::Primary, boot);
        Ok(())
    }

    /// The secondary takes the data over from a primary whose disk failed. It is up to
    /// date, and alone.
    pub fn take_over(&mut self, side: Side, next: Generation, boot: u128) -> Result<(), NoEpoch> {
        self.epoch = Epoch::next(self.epoch, side).ok_or(NoEpoch)?;
        self.copy = self.copy.take_over(next);
        self.runs_as(Role::Primary, boot);
        Ok(())
    }

    /// The node becomes secondary; `mode` says what an acknowledgement means. A copy from
    /// which a power cut may have taken acknowledged ops that its peer still has is not up to
    /// date from then on (promises 2 and 4).
    pub fn become_secondary(&mut self, boot: u128, mode: AckMode) {
        if self.lost_cache(boot, mode) {
            self.copy.up_to_date = false;
            self.copy.cut = true;
        }
        self.runs_as(Role::Secondary, boot);
    }

    /// Whether acknowledged ops were lost with the page cache that the peer may have.
    fn lost_cache(&self, boot: u128, mode: AckMode) -> bool {
        let shared = match self.role {
            // In mode `disk` what it acknowledged is on its disk; in `flush` only what was
            // fsynced is promised to be here. A copy that went on alone, and was demoted, is
            // the only one of its generation.
            Some(Role::Secondary) => mode == AckMode::Memory && self.copy.bases.is_empty(),
            // The peer has what was written here, on its disk or not; in `flush` the loss of a
            // primary may cost what was not fsynced.
            Some(Role::Primary) => self.paired && mode != AckMode::Flush,
            None => false,
        };
        let complete = self.copy.up_to_date || self.copy.gave_way;
        complete && !self.clean && self.boot != boot && shared
    }

    fn runs_as(&mut self, role: Role, boot: u128) {
        self.role = Some(role);
        self.paired = false;
        self.clean = false;
        self.boot = boot;
    }

    /// The primary goes on without its peer (invariant 4).
    pub fn go_alone(&mut self, next: Generation) {
        self.copy = self.copy.go_alone(next);
        self.paired = false;
    }

    /// The primary is about to end a resync: from then on the peer may be up to date.
    pub fn peer_may_be_current(&mut self) {
        self.paired = true;
    }

    /// It did not end after all: nobody but this copy has what is acknowledged.
    pub fn peer_is_behind(&mut self) {
        self.paired = false;
    }

    /// The peer is up to date with `generation`: no base is needed any more. Nothing if this
    /// node has gone on without it meanwhile: then that generation is a base itself.
    pub fn peer_is_current(&mut self, generation: Generation) {
        if self.copy.current != generation {
            return;
        }
        self.copy.bases.clear();
        self.copy.forced = false;
        self.alone_since = 0;
    }

    /// The copy is primary by force, whatever the peer may have.
    pub fn is_forced(&mut self) {
        self.copy.forced = true;
    }

    /// A resync of this copy begins, from a primary that has seen `epoch` (invariant 11).
    pub fn begin_resync(&mut self, epoch: Epoch) {
        self.fall_behind();
        self.epoch = self.epoch.max(epoch);
    }

    /// Everything was moved and flushed (invariant 11).
    pub fn end_resync(&mut self, module: ModuleId, generation: Generation, epoch: Epoch) {
        self.copy = self.copy.adopt(module, generation);
        self.alone_since = 0;
        self.archived = Archived::No;
        self.epoch = self.epoch.max(epoch);
    }

    /// This copy leaves, or could not apply an op: its primary goes on without it.
    pub fn fall_behind(&mut self) {
        self.copy.up_to_date = false;
        (self.copy.cut, self.copy.gave_way) = (false, false);
    }

    /// This copy gives way to the peer's: nobody promotes it any more. That its machine lost
    /// its power stays known: the peer's copy may be complete only because both did. So does
    /// that it was complete: it may turn out that the peer cannot go on.
    pub fn give_way(&mut self) {
        self.copy.gave_way |= self.copy.up_to_date || self.copy.cut;
        self.copy.up_to_date = false;
    }

    /// The operator gives this copy up: the peer's may overwrite it, whichever is newer.
    pub fn give_up(&mut self) {
        self.copy = self.copy.give_up();
    }

    /// What marks that are saved now belong to. Durable first, then
    /// [`Record::marks_saved`], then the notes they stand for may go.
    pub fn next_marks(&self) -> MarksId {
        MarksId {
            module: self.copy.module,
            generation: self.copy.current,
            number: self.marks + 1,
        }
    }

    /// Marks with this number are in force.
    pub fn marks_saved(&mut self, number: u64) {
        self.marks = number;
    }

    /// Whether marks that were found are those in force, or the ones saved next: a crash
    /// may have come between the two steps, and either is complete. What belongs to another
    /// history is never believed. Those in force were written at any time: the record names
    /// them, and of a copy's generations only the last [`crate::limits::MAX_HISTORY`] are kept.
    pub fn trusts(&self, found: MarksId) -> Result<(), ForeignMarks> {
        let module = !found.module.is_some() || found.module == self.copy.module;
        let generation = !found.generation.is_some()
            || found.generation == self.copy.current
            || self.copy.history.contains(&found.generation);
        let in_force = found.number == self.marks;
        let next = found.number == self.marks + 1 && generation;
        match module && (in_force || next) {
            true => Ok(()),
            false => Err(ForeignMarks(found)),
        }
    }

    /// The driver stops in order.
    pub fn stop(&mut self) {
        self.clean = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        Record {
            copy: CopyState {
                current: Generation(1),
                up_to_date: true,
                ..CopyState::default()
            },
            role: Some(Role::Primary),
            paired: true,
            clean: true,
            boot: 5,
            ..Record::default()
        }
    }

    #[test]
    fn that_a_peer_was_current_is_no_news_once_it_was_left_behind() {
        let mut record = record();
        record.copy.bases = vec![Generation(7)];
        record.peer_is_current(Generation(1));
        assert_eq!(record.copy.bases, []);
        record.go_alone(Generation(2));
        record.peer_is_current(Generation(1));
        assert_eq!(record.copy.bases, [Generation(1)]);
    }

    #[test]
    fn a_copy_that_may_be_stale_is_not_started_as_primary() {
        assert_eq!(record().objection(6), None);
        let mut crashed = record();
        crashed.clean = false;
        assert_eq!(crashed.objection(5), None, "the page cache survived");
        assert_eq!(crashed.objection(6), Some(Objection::PeerMayHoldMore));
        crashed.paired = false;
        assert_eq!(crashed.objection(6), None, "there was no peer to hold more");
        let mut behind = record();
        behind.copy.up_to_date = false;
        assert_eq!(behind.objection(5), Some(Objection::NotUpToDate));
        let mut given_up = record();
        given_up.give_up();
        assert_eq!(given_up.objection(5), Some(Objection::GivenUp));
        given_up.become_primary(Side::Even, None, 5).unwrap();
        assert!(!given_up.copy.given_up, "force takes it back");
        let unknown = Record::history_unknown(Epoch(4));
        assert_eq!(unknown.objection(5), Some(Objection::HistoryUnknown));
        let mut secondary = record();
        secondary.role = Some(Role::Secondary);
        assert_eq!(secondary.objection(5), Some(Objection::WasSecondary));
        assert_eq!(
            Record::default().objection(5),
            Some(Objection::NeverSynchronised)
        );
    }

    #[test]
    fn the_only_complete_copy_is_not_cut_by_a_resync_that_did_not_end() {
        let mut alone = record();
        (alone.paired, alone.clean) = (false, false);
        alone.peer_may_be_current();
        assert_eq!(alone.objection(6), Some(Objection::PeerMayHoldMore));
        alone.peer_is_behind();
        assert_eq!(alone.objection(6), None);
        alone.become_secondary(6, AckMode::Memory);
        assert!(alone.copy.up_to_date && !alone.copy.cut);
    }

    #[test]
    fn a_power_cut_costs_a_copy_its_claim_if_acknowledged_ops_went_with_it() {
        let after = |role, paired, clean, boot, mode| {
            let mut record = Record {
                role,
                paired,
                clean,
                ..record()
            };
            record.become_secondary(boot, mode);
            assert_ne!(record.copy.cut, record.copy.up_to_date);
            record
        };
        let (primary, secondary) = (Some(Role::Primary), Some(Role::Secondary));
        let modes = [AckMode::Memory, AckMode::Disk, AckMode::Flush];
        for mode in modes {
            let cut = |role, paired| after(role, paired, false, 6, mode).copy.cut;
            assert_eq!(cut(secondary, false), mode == AckMode::Memory);
            assert_eq!(cut(primary, true), mode != AckMode::Flush);
            assert!(!cut(primary, false), "nobody else has more");
            assert!(!cut(None, false));
            for role in [primary, secondary] {
                assert!(!after(role, true, true, 6, mode).copy.cut, "it was stopped");
                assert!(
                    !after(role, true, false, 5, mode).copy.cut,
                    "it has its cache"
                );
            }
        }
        let mut alone = record();
        (alone.role, alone.clean) = (secondary, false);
        alone.copy = alone.copy.go_alone(Generation(2));
        alone.become_secondary(6, AckMode::Memory);
        assert!(!alone.copy.cut, "the other one is older");
        // One that gave way, and then lost its power, is not what it was.
        let mut gave_way = record();
        gave_way.give_way();
        assert!(!gave_way.copy.cut);
        (gave_way.role, gave_way.clean) = (secondary, false);
        gave_way.become_secondary(6, AckMode::Memory);
        assert!(gave_way.copy.cut && gave_way.copy.gave_way);
        // It is not forgotten by a further start, and ends with what it stands for.
        let mut record = after(secondary, false, false, 6, AckMode::Memory);
        record.become_secondary(6, AckMode::Memory);
        assert!(record.copy.cut);
        assert_eq!(record.objection(6), Some(Objection::NotUpToDate));
        record.give_way();
        assert!(record.copy.cut && record.copy.gave_way && !record.copy.up_to_date);
        let ends: [fn(&mut Record); 4] = [
            |r| r.fall_behind(),
            |r| r.begin_resync(Epoch(1)),
            |r| r.end_resync(ModuleId(1), Generation(1), Epoch(1)),
            |r| r.become_primary(Side::Even, None, 6).unwrap(),
        ];
        for end in ends {
            let mut ended = record.clone();
            end(&mut ended);
            assert!(!ended.copy.cut && !ended.copy.gave_way);
        }
    }

    #[test]
    fn marks_of_another_history_are_not_believed() {
        let mut copy = record();
        copy.copy.module = ModuleId(7);
        copy.marks = 4;
        let saved = copy.next_marks();
        assert_eq!(saved.number, 5);
        assert_eq!(
            copy.trusts(saved),
            Ok(()),
            "the crash came before they were in force"
        );
        copy.marks_saved(5);
        assert_eq!(copy.trusts(saved), Ok(()));
        copy.go_alone(Generation(2));
        assert_eq!(
            copy.trusts(saved),
            Ok(()),
            "an earlier generation of this copy"
        );
        let other = |change: fn(&mut MarksId)| {
            let mut other = saved;
            change(&mut other);
            copy.trusts(other).is_ok()
        };
        assert!(!other(|m| m.number = 4), "older ones: notes are gone since");
        assert!(!other(|m| m.number = 7));
        assert!(other(|m| m.number = 6));
        assert!(
            !other(|m| (m.number, m.generation) = (6, Generation(9))),
            "nobody has vouched for them"
        );
        assert!(!other(|m| m.module = ModuleId(8)));
        for n in 0..=crate::limits::MAX_HISTORY as u128 {
            copy.go_alone(Generation(100 + n));
        }
        assert!(!copy.copy.history.contains(&saved.generation));
        assert_eq!(copy.trusts(saved), Ok(()), "they are in force all the same");
    }

    #[test]
    fn every_new_primary_has_an_epoch_of_its_own() {
        let mut seen = Vec::new();
        let (mut a, mut b) = (record(), record());
        for _ in 0..5 {
            a.become_primary(Side::Even, None, 1).unwrap();
            b.become_primary(Side::Odd, None, 1).unwrap();
            seen.extend([a.epoch, b.epoch]);
        }
        let mut unique = seen.clone();
        unique.sort_unstable();
        unique.dedup();
        assert_eq!(unique.len(), seen.len(), "{seen:?}");
        let mut last = record();
        last.epoch = Epoch::MAX;
        assert_eq!(last.become_primary(Side::Even, None, 1), Err(NoEpoch));
    }
}
