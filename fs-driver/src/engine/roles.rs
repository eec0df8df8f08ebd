//! Becoming primary or secondary, and ceasing to be.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use twinfold_protocol::handshake::Role;
use twinfold_protocol::ids::Generation;
use twinfold_protocol::marks::DirtyMap;
use twinfold_protocol::primary::{Link, Primary};

use super::actions::random_id;
use super::{Engine, clock};
use crate::state::{Record, Recovered};

/// How long a demotion waits for the peer to confirm what is on its way.
const DEMOTE_WAIT: Duration = Duration::from_secs(10);

/// How long a secondary that stops waits until it has told its primary.
const LEAVE_WAIT: Duration = Duration::from_secs(5);

impl Engine {
    /// Starts as primary. Without `force` only with a copy that is known to hold
    /// every acknowledged write (promise 4).
    pub fn start_primary(self: &Arc<Self>, force: bool) -> Result<()> {
        let record = self.copy.get();
        if let Some(objection) = record.objection(crate::state::boot_id()) {
            if !force || !record.copy.current.is_some() {
                bail!(
                    "{objection}; start it as secondary, or, if this copy shall be the good one \
                     whatever the peer has, start it as primary with --force"
                );
            }
            tracing::warn!(%objection, "starting as primary by force");
        }
        // A peer that was up to date is left behind by whatever is written now.
        self.take_over(record.paired || force, DirtyMap::default())
    }

    /// Makes a new epoch (and generation) durable and accepts writes, alone.
    /// `suspects` are what the other copy may lack.
    fn take_over(&self, new_generation: bool, suspects: DirtyMap) -> Result<()> {
        let next = new_generation.then(|| Generation(random_id()));
        let mut record = self.copy.get();
        record.become_primary(self.side, next, crate::state::boot_id())?;
        let epoch = record.epoch;
        self.copy
            .update(|r| *r = record)
            .context("cannot write the copy's history")?;
        self.epoch.store(epoch.0, Ordering::Relaxed);
        self.next_id.store(0, Ordering::Relaxed);
        let mut primary = Primary::new(self.settings.config(), DirtyMap::default());
        primary.add_suspects(suspects);
        *self.core.lock() = primary;
        self.set_role(Some(Role::Primary));
        Ok(())
    }

    /// Starts as secondary.
    pub fn start_secondary(&self) -> Result<()> {
        self.copy
            .update(|r| r.become_secondary(crate::state::boot_id()))
            .context("cannot write the copy's history")?;
        self.set_role(Some(Role::Secondary));
        Ok(())
    }

    /// Makes a secondary primary. Without `force` only when its copy was up to date
    /// until the connection was lost in this very run.
    pub fn promote(self: &Arc<Self>, force: bool) -> Result<()> {
        match self.role() {
            Some(Role::Secondary) => {}
            Some(Role::Primary) => bail!("this node is primary already"),
            None => bail!("this node is starting or stopping"),
        }
        let standby = self.standby.lock().take();
        let current = standby.as_ref().is_some_and(|s| !s.is_syncing());
        if !current && !force {
            let why = match &standby {
                None => {
                    "this copy has not been synchronised since the driver started, so it is not \
                         known whether the peer went on without it"
                }
                Some(_) => "the resync of this copy is not finished",
            };
            *self.standby.lock() = standby;
            bail!(
                "{why}; promoting it could lose acknowledged writes. If the peer is lost for good, \
                 promote it with --force"
            );
        }
        if !self.copy.get().copy.current.is_some() {
            *self.standby.lock() = standby;
            bail!("this copy was never synchronised: there is nothing to promote");
        }
        self.drop_connection("promoted");
        let suspects = match standby {
            Some(standby) => standby.into_marks(&self.store),
            None => DirtyMap::default(),
        };
        // What was noted by the secondary is in its marks, exactly.
        if current {
            *self.recovered.lock() = Recovered::default();
        }
        self.take_over(true, suspects)
    }

    /// Makes a primary secondary: no write is accepted from now on, all is flushed,
    /// and the peer has what it can get.
    pub fn demote(self: &Arc<Self>) -> Result<()> {
        if self.role() != Some(Role::Primary) {
            bail!("this node is not primary");
        }
        self.set_role(None);
        self.gate.wait_for_all_before();
        self.settle_times();
        let until = clock::now().after(DEMOTE_WAIT);
        loop {
            let core = self.core.lock();
            let waiting = core.in_flight().0 > 0 && core.link() == Link::Paired;
            drop(core);
            if !waiting || clock::now() > until {
                break;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        self.store.sync_all().context("cannot flush the store")?;
        self.drop_connection("demoted");
        {
            // What is still held is answered: it is here, and this copy goes to the peer for
            // comparison when it returns.
            let mut core = self.core.lock();
            *core = Primary::new(self.settings.config(), DirtyMap::default());
        }
        self.start_secondary()?;
        *self.recovered.lock() = self.intents.all().context("cannot read the intents")?;
        Ok(())
    }

    /// Gives up this copy: it has no generation any more, and the next resync brings
    /// everything from the peer.
    pub fn discard(self: &Arc<Self>) -> Result<()> {
        if self.role() == Some(Role::Primary) {
            bail!("this node is primary: its copy is in use. Run `demote` first");
        }
        self.copy
            .update(Record::discard)
            .context("cannot write the copy's history")?;
        *self.standby.lock() = None;
        self.drop_connection("this copy was discarded");
        Ok(())
    }

    /// Ends in order: no more changes, all flushed, and noted as clean.
    pub fn stop(self: &Arc<Self>) -> Result<()> {
        let was = self.role();
        if was == Some(Role::Secondary) && self.connection.lock().is_some() {
            self.leave_in_order(LEAVE_WAIT);
        }
        self.set_role(None);
        self.gate.wait_for_all_before();
        if was == Some(Role::Primary) {
            self.settle_times();
        }
        self.store.sync_all().context("cannot flush the store")?;
        self.drop_connection("stopped");
        self.copy
            .update(Record::stop)
            .context("cannot write the copy's history")?;
        self.jobs.stop();
        Ok(())
    }
}
