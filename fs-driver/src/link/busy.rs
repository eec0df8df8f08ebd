//! What a secondary says while it waits for its disk: that it is busy, not hanging.

use std::time::{Duration, Instant};

use anyhow::Result;
use quinn::SendStream;
use tokio::time::{Interval, MissedTickBehavior};
use twinfold_protocol::wire::Receipt;

use super::framing::send;
use crate::engine::Engine;

/// Signs of a busy disk within the time that the primary waits for progress.
const BUSY_PER_STALL: u32 = 8;

/// Tells the primary that this node waits for a disk which is busy, not hanging.
pub(super) struct Busy {
    every: Interval,
    /// Since when ops are being applied.
    works: Option<Instant>,
    /// Syncs that run.
    syncs: usize,
    /// Since when one does, and none has ended.
    syncing: Instant,
    /// What the disk had done, and when.
    seen: Option<(Instant, u64)>,
}

impl Busy {
    pub(super) fn new(engine: &Engine) -> Busy {
        let every = Duration::from_millis(engine.settings().stall_ms) / BUSY_PER_STALL;
        let mut ticks = tokio::time::interval_at(tokio::time::Instant::now() + every, every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Busy {
            every: ticks,
            works: None,
            syncs: 0,
            syncing: Instant::now(),
            seen: None,
        }
    }

    /// Waits for ops that are being applied.
    pub(super) async fn wait<T>(
        &mut self,
        engine: &Engine,
        tx: &mut SendStream,
        work: impl Future<Output = T>,
    ) -> Result<T> {
        self.works = Some(Instant::now());
        tokio::pin!(work);
        loop {
            tokio::select! {
                biased;
                done = &mut work => {
                    self.works = None;
                    return Ok(done);
                }
                _ = self.every.tick() => self.tell(engine, tx).await?,
            }
        }
    }

    /// Comes when it is time to look again.
    pub(super) async fn tick(&mut self) {
        self.every.tick().await;
    }

    pub(super) fn is_syncing(&self) -> bool {
        self.syncs > 0
    }

    pub(super) fn sync_begun(&mut self, more: usize) {
        if self.syncs == 0 {
            self.syncing = Instant::now();
        }
        self.syncs += more;
    }

    pub(super) fn sync_ended(&mut self) {
        self.syncs = self.syncs.saturating_sub(1);
        self.syncing = Instant::now();
    }

    /// Looks whether something has been waited for for long, and the disk does something.
    pub(super) async fn tell(&mut self, engine: &Engine, tx: &mut SendStream) -> Result<()> {
        let every = self.every.period();
        let syncing = (self.syncs > 0).then_some(self.syncing);
        let mut since = self.works.into_iter().chain(syncing);
        if !since.any(|since| since.elapsed() >= every) {
            return Ok(());
        }
        let before = self.seen.take();
        let Some(done) = engine.disk_has_done() else {
            return Ok(());
        };
        self.seen = Some((Instant::now(), done));
        // What was seen in an earlier wait says nothing about this one.
        let moves = before.is_some_and(|(at, before)| at.elapsed() < 3 * every && done != before);
        if moves {
            send(tx, &[Receipt::Busy.encode()]).await?;
        }
        Ok(())
    }
}
