//! The systems of a run, started once and kept until its end.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};

use super::plan::Workload;
use crate::peer::Peer;
use crate::report::model::{Flags, Memory};
use crate::systems::{Running, Started, System};

/// All systems that the workloads are done on.
#[derive(Debug)]
pub(super) struct Stage {
    running: BTreeMap<System, Running>,
    absent: BTreeMap<System, String>,
    peer: Option<Arc<Peer>>,
}

impl Stage {
    /// Starts what `workloads` need below `dir`, and on the other machine if there is one, but
    /// not what is to be skipped.
    pub(super) fn set(
        workloads: &[Workload],
        flags: &Flags,
        dir: &Path,
        peer: Option<&Arc<Peer>>,
    ) -> Result<Stage> {
        let mut stage = Stage {
            peer: peer.cloned(),
            running: BTreeMap::new(),
            absent: BTreeMap::new(),
        };
        for system in workloads.iter().flat_map(|w| &w.systems) {
            if stage.has(*system) || stage.absent.contains_key(system) {
                continue;
            }
            if flags.skip.contains(system) {
                stage.absent.insert(*system, "left out as asked".into());
                continue;
            }
            eprintln!("starting: {}", system.title());
            let home = dir.join(format!("{system:?}").to_lowercase());
            let started = Running::start(*system, &home, flags, peer)
                .with_context(|| format!("{} does not start", system.title()));
            match started {
                Ok(Started::Running(running)) => {
                    stage.running.insert(*system, *running);
                }
                Ok(Started::Absent(reason)) => {
                    stage.absent.insert(*system, reason);
                }
                Err(e) if !system.is_ours() => {
                    stage.absent.insert(*system, format!("{e:#}"));
                }
                Err(e) => return Err(e),
            }
        }
        Ok(stage)
    }

    pub(super) fn has(&self, system: System) -> bool {
        self.running.contains_key(&system)
    }

    pub(super) fn running(&mut self, system: System) -> Result<&mut Running> {
        let running = self.running.get_mut(&system);
        running.with_context(|| format!("{} does not run", system.title()))
    }

    /// What could not be measured, and why.
    pub(super) fn absent(&self) -> BTreeMap<System, String> {
        self.absent.clone()
    }

    /// Fails when the other machine is not there any more.
    pub(super) fn check(&self) -> Result<()> {
        self.peer.as_ref().map_or(Ok(()), |peer| peer.check())
    }

    /// The most memory each process has held.
    pub(super) fn memory(&self) -> Result<Vec<Memory>> {
        let mut all = Vec::new();
        for (system, running) in &self.running {
            // Servers leave children behind that have ended.
            for used in running.usage()?.into_iter().filter(|u| u.peak > 0) {
                all.push(Memory {
                    system: *system,
                    process: used.process,
                    bytes: used.peak,
                });
            }
        }
        Ok(all)
    }
}
