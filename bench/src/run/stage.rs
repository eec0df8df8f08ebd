//! The systems of a run, started once and kept until its end.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};

use super::plan::Workload;
use crate::process;
use crate::report::model::Memory;
use crate::systems::{Running, Started, System};

/// All systems that the workloads are done on.
#[derive(Debug)]
pub(super) struct Stage {
    running: BTreeMap<System, Running>,
    absent: BTreeMap<System, String>,
}

impl Stage {
    /// Starts what `workloads` need below `dir`, but not what is to be skipped, with files of
    /// `size` bytes.
    pub(super) fn set(
        workloads: &[Workload],
        skip: &[System],
        dir: &Path,
        size: u64,
    ) -> Result<Stage> {
        let mut stage = Stage {
            running: BTreeMap::new(),
            absent: BTreeMap::new(),
        };
        for system in workloads.iter().flat_map(|w| w.systems) {
            if stage.has(*system) || stage.absent.contains_key(system) {
                continue;
            }
            if skip.contains(system) {
                stage.absent.insert(*system, "left out as asked".into());
                continue;
            }
            eprintln!("starting: {}", system.title());
            let home = dir.join(format!("{system:?}").to_lowercase());
            let started = Running::start(*system, &home, size)
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

    /// The most memory each process has held.
    pub(super) fn memory(&self) -> Vec<Memory> {
        let mut all = Vec::new();
        for (system, running) in &self.running {
            for (process, id) in running.processes() {
                let bytes = process::peak(id);
                // Servers leave children behind that have ended.
                if bytes > 0 {
                    all.push(Memory {
                        system: *system,
                        process,
                        bytes,
                    });
                }
            }
        }
        all
    }
}
