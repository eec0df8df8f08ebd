//! Becoming primary or secondary, and ceasing to be.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use twinfold_protocol::handshake::Role;
use twinfold_protocol::ids::{Epoch, Generation};
use twinfold_protocol::lifecycle::Archived;
use twinfold_protocol::marks::DirtyMap;
use twinfold_protocol::primary::{Link, Primary};

use super::actions::{CHECKPOINTS_BEHIND, random_id};
use super::{Engine, Reply, Standby, clock};
use crate::archive::Reason;
use crate::state::{Record, Recovered};

/// How long a primary that hands over or stops waits for the peer to confirm and to
/// flush what is on its way. A peer that hangs is dropped by its own deadlines.
const QUIESCE_WAIT: Duration = Duration::from_secs(10);

/// How often it looks.
const QUIESCE_LOOK: Duration = Duration::from_millis(2);

/// How long a promotion waits for a take-over that is durable already to become this node's
/// role: the peer is told first, or found to be gone, which takes one step of the link.
const HOSTING_WAIT: Duration = Duration::from_secs(10);

/// How long a secondary that stops waits until it has told its primary.
const LEAVE_WAIT: Duration = Duration::from_secs(10);

/// A flush that is shorter than this one leaves so little that the primary can wait for the rest.
const SHORT_FLUSH: Duration = Duration::from_millis(500);

/// How long a secondary that stops flushes at most before it leaves; then it leaves all the same.
const FLUSH_WAIT: Duration = Duration::from_secs(60);

/// What a secondary's copy is to be made primary on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Claim {
    /// It was up to date until the connection was lost, in this very run.
    Current,
    /// The controller has the right to go on from its generation, so it needs no more than
    /// to be complete. `yielded`: it was, until it gave way to a peer that did not go on, or
    /// until a power cut that the peer had as well.
    Right { yielded: bool },
    /// The operator's word.
    Force,
}

impl Engine {
    /// Starts as primary. Without `force` only with a copy that is known to hold
    /// every acknowledged write (promise 4).
    pub fn start_primary(self: &Arc<Self>, force: bool) -> Result<()> {
        let record = self.copy.get();
        let mut forced = false;
        if let Some(objection) = record.objection(crate::state::boot_id()) {
            if !force || !record.copy.current.is_some() {
                bail!(
                    "{objection}; start it as secondary, or, if this copy shall be the good one \
                     whatever the peer has, start it as primary with --force"
                );
            }
            tracing::warn!(%objection, "starting as primary by force");
            self.keep_what_waits_aside();
            forced = true;
        }
        // A peer that was up to date is left behind by whatever is written now.
        self.take_over(record.paired || force, forced, DirtyMap::default())
    }

    /// Makes a new epoch (and generation) durable and accepts writes, alone.
    /// `suspects` are what the other copy may lack.
    fn take_over(&self, new_generation: bool, forced: bool, suspects: DirtyMap) -> Result<()> {
        let aside = self.store.settle_aside();
        let aside = aside.context("cannot look at what a resync left aside")?;
        if aside > 0 {
            tracing::warn!(
                aside,
                "a resync of this copy did not end: objects that it had taken out of their \
                 directories have no name now; the next resync of this copy removes them"
            );
        }
        let next = new_generation.then(|| Generation(random_id()));
        let mut record = self.copy.get();
        record.become_primary(self.side, next, crate::state::boot_id())?;
        if forced {
            record.is_forced();
        }
        if next.is_some() {
            record.alone_since = clock::unix_seconds();
        }
        let epoch = record.epoch;
        self.copy
            .update(|r| *r = record)
            .context("cannot write the copy's history")?;
        self.begin_term(epoch, suspects);
        self.set_role(Some(Role::Primary));
        Ok(())
    }

    /// A term as primary begins, alone.
    pub(super) fn begin_term(&self, epoch: Epoch, suspects: DirtyMap) {
        self.epoch.store(epoch.0, Ordering::Relaxed);
        self.next_id.store(0, Ordering::Relaxed);
        self.calls_stay_here();
        self.foresight.forget();
        let own = std::mem::take(&mut *self.own.lock());
        {
            let mut core = self.core.lock();
            *core = core.next_term();
            core.mark(|dirty| dirty.unite(own.dirty));
            core.add_suspects(own.suspect);
            core.add_suspects(suspects);
        }
        *self.saving.lock() = true;
        self.spoiled.store(false, Ordering::Relaxed);
        self.closing.store(false, Ordering::Release);
    }

    /// Starts as secondary.
    pub fn start_secondary(&self) -> Result<()> {
        let mode = self.settings.config().mode;
        let before = self.copy.get().copy.cut;
        self.copy
            .update(|r| r.become_secondary(crate::state::boot_id(), mode))
            .context("cannot write the copy's history")?;
        if self.copy.get().copy.cut && !before {
            tracing::warn!(
                "this machine went down without a stop: acknowledged writes that were not synced \
                 may be gone here, and the peer may have them; this copy is not up to date"
            );
        }
        self.set_role(Some(Role::Secondary));
        Ok(())
    }

    /// Makes a secondary primary. Without `force` only when its copy was up to date
    /// until the connection was lost in this very run.
    pub fn promote(self: &Arc<Self>, force: bool) -> Result<()> {
        self.promote_with(match force {
            true => Claim::Force,
            false => Claim::Current,
        })
    }

    pub(super) fn promote_with(self: &Arc<Self>, claim: Claim) -> Result<()> {
        // The session is over and the copy as good as one can be: not to be judged as one that
        // lost its session, whose operator would be told to use force.
        let until = clock::now().after(HOSTING_WAIT);
        while self.must_host() && clock::now() < until {
            std::thread::sleep(QUIESCE_LOOK);
        }
        if self.must_host() {
            bail!("this node takes over from its peer, whose disk has failed: repeat this");
        }
        match self.role() {
            Some(Role::Secondary) => {}
            // The data are here already; the application follows.
            Some(Role::Primary) if self.end_hosting() => return Ok(()),
            Some(Role::Primary) => bail!("this node is primary already"),
            None => bail!("this node is starting or stopping"),
        }
        let taken = {
            let mut standby = self.standby.lock();
            self.promoting.store(true, Ordering::Release);
            standby.take()
        };
        let promoted = self.promote_copy(taken, claim);
        self.promoting.store(false, Ordering::Release);
        promoted
    }

    fn promote_copy(self: &Arc<Self>, standby: Option<Standby>, claim: Claim) -> Result<()> {
        let differs = self.is_differing();
        let current = standby.as_ref().is_some_and(Standby::is_current);
        let good = match claim {
            Claim::Current => current && !differs,
            Claim::Right { yielded } => {
                let copy = self.told_copy(Role::Secondary);
                let was = yielded && standby.is_none() && (copy.gave_way || copy.cut);
                (copy.up_to_date || was) && !differs
            }
            Claim::Force => true,
        };
        if !good {
            let why = match &standby {
                None => {
                    "this copy has not been synchronised since the driver started, so it is not \
                         known whether the peer went on without it"
                }
                Some(_) if differs => {
                    "a verify found that this copy differs from its primary's, and it was not repaired"
                }
                Some(standby) if standby.is_syncing() => "the resync of this copy is not finished",
                Some(_) if current => "this copy is not up to date any more",
                Some(_) => "this copy could not be flushed",
            };
            *self.standby.lock() = standby;
            bail!(
                "{why}; promoting it could lose acknowledged writes. If the peer is lost for good, \
                 promote it with --force{}",
                match differs {
                    true => "; if it is not, run `verify --repair` there first",
                    false => "",
                }
            );
        }
        if !self.copy.get().copy.current.is_some() {
            *self.standby.lock() = standby;
            bail!("this copy was never synchronised: there is nothing to promote");
        }
        self.drop_connection("promoted");
        // Of a complete copy nothing waits aside.
        if !current {
            self.keep_what_waits_aside();
        }
        let mut suspects = match standby {
            Some(standby) => standby.into_marks(&self.store),
            None => DirtyMap::default(),
        };
        suspects.unite(std::mem::take(&mut self.differing.lock()));
        // What was noted by the secondary is in its marks, exactly, if it was up to date.
        *self.recovered.lock() = match current {
            true => Recovered::default(),
            false => {
                let changes = self.own_changes().context("cannot read the intents")?;
                Recovered {
                    intents: changes.notes,
                    damaged: changes.damaged,
                }
            }
        };
        let forced = claim == Claim::Force && !current;
        self.take_over(true, forced, suspects)
    }

    /// Makes a primary secondary: no write is accepted from now on, all is flushed,
    /// and the peer has what it can get.
    pub fn demote(self: &Arc<Self>) -> Result<()> {
        if self.role() != Some(Role::Primary) {
            bail!("this node is not primary");
        }
        let failed = "this node's disk has failed and the peer has the data: run `promote` there, \
                      then stop this node and repair its disk";
        if self.is_away() {
            bail!(failed);
        }
        self.end_hosting();
        self.quiesce();
        if self.is_away() {
            // Meanwhile: it is still the one whose calls the peer carries out.
            self.closing.store(false, Ordering::Release);
            bail!(failed);
        }
        if let Err(e) = self.sync_store() {
            self.closing.store(false, Ordering::Release);
            return Err(anyhow::Error::from(e).context("cannot flush the store"));
        }
        self.set_role(None);
        self.drop_connection("demoted");
        self.keep_own_marks()
            .inspect_err(|e| self.fence("the intent log cannot be written", e))
            .context("cannot keep what this node has changed")?;
        {
            // What is still held is answered: it is here, and this copy goes to the peer for
            // comparison when it returns.
            let mut core = self.core.lock();
            *core = core.next_term();
        }
        self.start_secondary()
    }

    /// No change is taken from now on, and the peer gets everything: applied and, while
    /// it keeps up, on its disk, so that nothing has to be compared later.
    fn quiesce(self: &Arc<Self>) {
        self.closing.store(true, Ordering::Release);
        self.gate.wait_for_all_before();
        self.settle_times();
        let until = clock::now().after(QUIESCE_WAIT);
        let wait = |pending: fn(&Primary<Reply>) -> bool| {
            // A peer that is to take over gets everything by that.
            while pending(&self.core.lock()) && !self.is_away() && clock::now() < until {
                std::thread::sleep(QUIESCE_LOOK);
            }
        };
        wait(|core| core.link() == Link::Paired && core.in_flight().0 > 0);
        wait(Primary::checkpoint_runs);
        // With the last one the peer forgets what it has applied.
        for _ in 0..=CHECKPOINTS_BEHIND {
            self.begin_checkpoint();
            wait(Primary::checkpoint_runs);
        }
    }

    /// Gives up this copy: whatever it has, the peer's may overwrite it. Its history and
    /// its marks stay, so that only what differs is moved.
    ///
    /// First what it has changed is kept in an archive, unless `without_archive`; where that
    /// cannot be, nothing is given up.
    pub fn give_up(self: &Arc<Self>, without_archive: bool) -> Result<()> {
        if self.role() == Some(Role::Primary) {
            bail!("this node is primary: its copy is in use. Run `demote` first");
        }
        let record = self.copy.get();
        if record.copy.given_up {
            // What has no room may still be in the way of its resync.
            if without_archive && record.archived != Archived::Waived {
                let noted = self.copy.update(|r| r.archived = Archived::Waived);
                return noted.context("cannot write the copy's history");
            }
            bail!("this copy is given up already; it waits for its peer");
        }
        if !record.copy.current.is_some() {
            bail!("this copy was never synchronised: there is nothing to give up");
        }
        self.stand_still("this copy is given up");
        let kept = match without_archive {
            true => Ok(()),
            // A copy that never went on by itself has nothing that its peer did not have.
            false if record.copy.bases.is_empty() => Ok(()),
            false => self.keep_copy(Reason::GivenUp, self.is_unmarked()),
        };
        let given_up = kept
            .context(
                "what this copy has cannot be kept, so it is not given up: make room and repeat \
                 this, or give it up with --without-archive",
            )
            .and_then(|()| {
                let noted = self.copy.update(|r| {
                    r.give_up();
                    if without_archive {
                        r.archived = Archived::Waived;
                    }
                });
                noted.context("cannot write the copy's history")
            });
        self.keeping.store(false, Ordering::Release);
        given_up?;
        tracing::warn!(generation = %record.copy.current, "this copy is given up");
        Ok(())
    }

    /// No resync changes this copy until `keeping` is taken back.
    fn stand_still(&self, reason: &str) {
        let ending = self.ending.lock();
        self.keeping.store(true, Ordering::Release);
        *self.standby.lock() = None;
        drop(ending);
        self.drop_connection(reason);
    }

    /// The kernel may keep what its disk takes minutes for. It is flushed while changes are still
    /// applied: a primary waits for one that leaves, and drops it if it takes long.
    fn flush_before_leaving(self: &Arc<Self>) {
        let until = clock::now().after(FLUSH_WAIT);
        loop {
            let (engine, begun) = (self.clone(), clock::now());
            let (done, flushed) = std::sync::mpsc::channel();
            // Whether it failed is seen, and told, in the flush with which it leaves.
            self.jobs.run(move || {
                let _ = done.send(engine.sync_store().is_ok());
            });
            let flushed = flushed.recv_timeout(until.since(clock::now()));
            if flushed != Ok(true) || clock::now().since(begun) < SHORT_FLUSH {
                break;
            }
        }
    }

    /// Ends in order: no more changes, all flushed, and noted as clean.
    pub fn stop(self: &Arc<Self>) -> Result<()> {
        let was = self.role();
        if was == Some(Role::Secondary) {
            self.flush_before_leaving();
            if self.connection.lock().is_some() {
                self.leave_in_order(LEAVE_WAIT);
            }
        }
        self.end_hosting();
        if was == Some(Role::Primary) && !self.is_away() {
            self.quiesce();
        }
        if self.is_away() {
            // Nothing of this copy counts any more, and its disk may not take a word.
            self.set_role(None);
            self.drop_connection("stopped");
            self.takeover.calls.refuse("this node stops");
            if let Err(error) = self.copy.update(Record::fall_behind) {
                tracing::warn!(%error, "this copy cannot be marked on its own disk");
            }
            self.jobs.stop();
            return Ok(());
        }
        self.set_role(None);
        self.gate.wait_for_all_before();
        self.sync_store().context("cannot flush the store")?;
        self.drop_connection("stopped");
        if was == Some(Role::Primary) {
            self.save_at_the_end();
        }
        self.syncs.settled();
        if self.syncs.is_lossy() {
            tracing::warn!(
                "a flush of the store has failed in this run: it does not end as a clean one, and \
                 what was changed is compared after the next start"
            );
        } else if self.syncs.is_doubtful() {
            tracing::info!(
                "the run before this one did not end in order, and the peer was not up to date \
                 since: this one does not end as a clean one either"
            );
        } else {
            self.copy
                .update(Record::stop)
                .context("cannot write the copy's history")?;
        }
        self.jobs.stop();
        Ok(())
    }
}
