//! The syncs that a secondary owes its primary, and what each of them ends: a checkpoint, a
//! resync, a take-over.

use std::io;
use std::sync::Arc;

use twinfold_protocol::ids::{FileId, SessionId};
use twinfold_protocol::wire::Receipt;

use super::super::Engine;
use super::super::habit::Target;
use super::{Standby, StandbyError, SyncJob, SyncWhat, of_session};
use crate::store::Node;

impl Engine {
    /// Runs a sync on a thread that may wait; `done` gets the receipt, if one is due.
    pub(crate) fn standby_sync(
        self: &Arc<Self>,
        job: SyncJob,
        done: impl FnOnce(Result<Option<Receipt>, StandbyError>) + Send + 'static,
    ) {
        let engine = self.clone();
        self.jobs.run(move || {
            let result = engine.standby_sync_here(job);
            engine.synced.notify_one();
            done(result);
        });
    }

    /// Runs a sync on this thread; returns the receipt, if one is due.
    pub(crate) fn standby_sync_here(&self, job: SyncJob) -> Result<Option<Receipt>, StandbyError> {
        let session = job.session;
        self.run_sync(job)
            .inspect_err(|_| self.standby_broken(session))
    }

    /// Whether a sync is likely to be done soon: of files, where that has been quick lately.
    pub(crate) fn is_soon_done(&self, job: &SyncJob) -> bool {
        let of_files = matches!(
            job.what,
            SyncWhat::Object { .. } | SyncWhat::Stable { files: Some(_) }
        );
        of_files && self.syncs.is_quick()
    }

    /// The sync that is likely to be asked for next, to be begun before, where it is soon done.
    pub(crate) fn standby_foreseen(&self) -> Option<SyncJob> {
        if !self.syncs.is_quick() {
            return None;
        }
        let mut standby = self.standby.lock();
        let standby = standby.as_mut().filter(|s| s.is_current())?;
        let seq = standby.applied();
        let target = standby.foresight.begin(seq)?;
        Some(SyncJob {
            session: standby.session(),
            seq,
            what: SyncWhat::Foreseen(target),
        })
    }

    /// Whether a sync that is asked for is done already, and none has failed.
    pub(super) fn is_foreseen(&self, standby: &mut Standby, file: FileId, data_only: bool) -> bool {
        let done = standby.foresight.asked(Target { file, data_only });
        let is_there = || match self.store.object(file) {
            Ok(Some(node)) => self.standby_all_is_there(&node),
            _ => false,
        };
        done && is_there() && standby.is_flushed(self.syncs.failed())
    }

    /// A sync failed. Asked for again, it might succeed with what was lost forgotten: so
    /// this holds whether or not anybody is connected who hears of it.
    fn standby_broken(&self, session: SessionId) {
        let mut standby = self.standby.lock();
        let Ok(standby) = of_session(&mut standby, session) else {
            return;
        };
        standby.failed = true;
        // What cannot be noted is fenced, and told.
        let _ = self.fall_behind();
    }

    /// A foreseen sync has failed so. A session hears of it, and the next one has nothing to do
    /// with that; where this node is primary meanwhile, the application hears of it.
    pub(super) fn foreseen_has_failed(
        &self,
        session: SessionId,
        node: &Arc<Node>,
        source: io::Error,
    ) -> StandbyError {
        let mut standby = self.standby.lock();
        match of_session(&mut standby, session) {
            Ok(standby) => {
                standby.failed = true;
                let _ = self.store.failed_before(node);
                StandbyError::Put { op: "sync", source }
            }
            Err(gone) => {
                self.foresight.keep_untold(node, source);
                gone
            }
        }
    }

    fn run_sync(&self, job: SyncJob) -> Result<Option<Receipt>, StandbyError> {
        let failed = |source| StandbyError::Put { op: "sync", source };
        let sync = |file, data_only| match self.store.object(file).map_err(failed)? {
            Some(node) => self.sync_file(&node, data_only).map_err(failed),
            // Removed meanwhile: nothing of it has to last.
            None => Ok(()),
        };
        match job.what {
            SyncWhat::Object { file, data_only } => {
                sync(file, data_only)?;
                self.none_failed(job.session)?;
            }
            SyncWhat::Foreseen(Target { file, data_only }) => {
                let Some(node) = self.store.object(file).map_err(failed)? else {
                    return Ok(None);
                };
                match self.sync_ahead(&node, data_only) {
                    Some(Ok(())) => {}
                    Some(Err(e)) => {
                        return Err(self.foreseen_has_failed(job.session, &node, e));
                    }
                    // It is done when it is asked for.
                    None => return Ok(None),
                }
                let mut standby = self.standby.lock();
                let standby = of_session(&mut standby, job.session)?;
                standby.foresight.ended(job.seq);
                return Ok(None);
            }
            SyncWhat::TakeOver => self.take_over_from_peer(job.session)?,
            SyncWhat::Flush => self.flush_session(job.session)?,
            SyncWhat::Checkpoint { retire } => {
                self.flush_session(job.session)?;
                self.retire(retire);
                self.prepare_segment()?;
            }
            SyncWhat::ResyncEnd { retire } => {
                let _ending = self.ending.lock();
                of_session(&mut self.standby.lock(), job.session)?;
                let kept = self.keep_what_goes().map_err(failed)?;
                let removed = self.store.clear_aside(&kept).map_err(failed)?;
                self.flush_session(job.session)?;
                let mut guard = self.standby.lock();
                let standby = of_session(&mut guard, job.session)?;
                let (module, generation, epoch) =
                    (standby.module, standby.generation, standby.epoch);
                let differs = self.is_differing();
                self.copy
                    .update(|r| {
                        r.end_resync(module, generation, epoch);
                        if differs {
                            r.fall_behind();
                        }
                    })
                    .map_err(|e| {
                        self.fence("the copy's history cannot be written", &e);
                        StandbyError::Fenced
                    })?;
                standby.machine.resync_ended();
                self.copy_is_made_good(standby.failed_syncs);
                self.tracker.ends(true);
                drop(guard);
                self.store.seed_ended();
                self.forget_own_marks();
                self.nothing_more_goes();
                match differs {
                    false => tracing::info!(%generation, removed, "this copy is up to date"),
                    true => tracing::warn!(%generation, removed, "this copy still differs"),
                }
                self.retire(retire);
                self.prepare_segment()?;
            }
            SyncWhat::Stable { files } => {
                match files {
                    Some(files) => {
                        files.into_iter().try_for_each(|f| sync(f, true))?;
                        self.none_failed(job.session)?;
                    }
                    None => self.flush_session(job.session)?,
                }
                let mut guard = self.standby.lock();
                let standby = of_session(&mut guard, job.session)?;
                standby.machine.durable(job.seq);
                if let Some(stable) = &mut standby.stable {
                    stable.syncing = false;
                }
                return Ok(None);
            }
        }
        Ok(Some(Receipt::Synced { seq: job.seq }))
    }

    pub(super) fn log_failed(&self, error: &io::Error) -> StandbyError {
        self.fence("the intent log cannot be written", error);
        StandbyError::Fenced
    }

    /// Makes the segment of the next checkpoint ahead: where that begins, the ops behind it
    /// wait.
    fn prepare_segment(&self) -> Result<(), StandbyError> {
        self.intents.prepare().map_err(|e| self.log_failed(&e))
    }

    pub(super) fn retire(&self, segment: Option<u64>) {
        if let Some(Err(e)) = segment.map(|s| self.intents.retire(s)) {
            tracing::warn!(error = %e, "old intents cannot be deleted");
        }
    }
}
