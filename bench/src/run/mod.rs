//! One run: all systems side by side, workload by workload, in rounds.
//!
//! In each round each workload is done on one system after the other, so that what is
//! compared lies seconds apart; the order changes from round to round. Before each
//! measurement the local file system is flushed, so that nobody pays for what the one
//! before has left in the page cache.

pub(crate) mod plan;
mod progress;
mod resync;
mod stage;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use hdrhistogram::Histogram;

use crate::floors::{quic, tcp};
use crate::load::{self, Amount, Measured};
use crate::peer::{Peer, Token};
use crate::report::model::{self, Cell, Failure, Flags, Report, Round, Row};
use crate::report::{self, Machine, targets};
use crate::systems::{Place, Running, System};
use crate::{interrupt, memory, process};
use plan::{Floor, Work, Workload};
use progress::Progress;
use stage::Stage;

/// Bytes of a request on the bare wires: a page, as a write of one carries.
const REQUEST: usize = 4096;

/// An open loop asks for this part of what twinfold did in the warm-up.
const PACE: f64 = 0.5;

/// The warm-up's measurements are shorter by this factor.
const WARM_UP: u32 = 4;

/// What `run` was asked for.
#[derive(Debug)]
pub(crate) struct Options {
    pub(crate) flags: Flags,
    /// Steps per second of open loops; without it a part of what twinfold can do.
    pub(crate) rate: Option<f64>,
    /// Where the folders lie.
    pub(crate) dir: PathBuf,
    /// Where the report goes.
    pub(crate) out: PathBuf,
    /// What the other machine printed, if there is one.
    pub(crate) token: Option<Token>,
    /// Also with a program of another commit there.
    pub(crate) different_commits: bool,
}

/// A workload on a system, so far.
struct Series {
    workload: usize,
    system: System,
    rounds: Vec<Round>,
    latencies: Histogram<u64>,
    failure: Option<String>,
}

/// Measures and reports.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let name = format!("twinfold-bench.{}", std::process::id());
    let dir = options.dir.join(name);
    std::fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    interrupt::catch();
    let measured = on_both(options, &dir);
    // Whatever was mounted is gone by now.
    let removed = std::fs::remove_dir_all(&dir);
    let mut report = measured?;
    removed.with_context(|| format!("cannot remove {}", dir.display()))?;
    targets::add_floors(&mut report);
    report.targets = targets::judge(&report);
    report.beside = targets::relative_to(&report, System::Other);
    report.drbd = targets::relative_to(&report, System::Drbd);
    print!("{}", report::show(&report));
    let page = report::save(&report, &options.out)?;
    println!("\n{}", page.display());
    let ours = report.failures.iter().any(|f| f.system.is_ours());
    Ok(match ours {
        true => ExitCode::FAILURE,
        false => ExitCode::SUCCESS,
    })
}

/// The workloads that were asked for.
fn chosen(only: Option<&str>) -> Vec<Workload> {
    let asked = |w: &Workload| only.is_none_or(|o| o.split(',').any(|part| w.name.contains(part)));
    plan::workloads().into_iter().filter(asked).collect()
}

/// Measures, with the other machine if there is one.
fn on_both(options: &Options, dir: &Path) -> Result<Report> {
    let machine = Machine::here(dir);
    let Some((to, token)) = options.flags.peer.as_ref().zip(options.token.as_ref()) else {
        return measure(options, dir, machine, None);
    };
    let peer = Peer::connect(to, token)?;
    let differ = machine.differs(&peer.machine);
    if let Some(how) = differ.as_ref().filter(|_| !options.different_commits) {
        anyhow::bail!(
            "the two machines have different programs: {how}; copy one to the other machine, or \
             measure all the same with --different-commits"
        );
    }
    let there = model::There {
        address: peer.address.to_string(),
        round_trip: peer.round_trip()?,
        machine: peer.machine.clone(),
        differs: differ,
    };
    let mut report = measure(options, dir, machine, Some(&peer))?;
    peer.leave().context("it could not clean up")?;
    report.there = Some(there);
    Ok(report)
}

fn measure(
    options: &Options,
    dir: &Path,
    machine: Machine,
    peer: Option<&Arc<Peer>>,
) -> Result<Report> {
    let begun = Instant::now();
    let flags = &options.flags;
    let mut workloads = chosen(flags.only.as_deref());
    if flags.beside.is_some() {
        workloads.iter_mut().for_each(Workload::add_other);
    }
    if flags.drbd.is_some() {
        workloads.iter_mut().for_each(Workload::add_drbd);
    }
    anyhow::ensure!(
        !workloads.is_empty(),
        "no workload's name contains {:?}; there are: {}",
        flags.only.as_deref().unwrap_or_default(),
        plan::workloads()
            .iter()
            .map(|w| w.name)
            .collect::<Vec<_>>()
            .join(", ")
    );
    let mut stage = Stage::set(&workloads, flags, dir, peer)?;
    let paces = paces(options, &workloads, &mut stage)?;
    let series = rounds(options, &workloads, &paces, &mut stage)?;
    let (held, absent) = (stage.memory()?, stage.absent());
    drop(stage);
    let mut failures = Vec::new();
    let large = flags.large.and_then(|size| {
        eprintln!("the memory of the drivers of a large folder");
        let measured = memory::measure(&size, dir, &|held| eprintln!("{held}"));
        // What was measured before is told all the same.
        measured
            .map_err(|error| {
                failures.push(Failure {
                    workload: "memory".into(),
                    system: System::Twinfold,
                    error: format!("{error:#}"),
                });
            })
            .ok()
    });
    let mut report = Report {
        format: model::FORMAT,
        machine,
        flags: flags.clone(),
        seconds: begun.elapsed().as_secs_f64(),
        workloads: Vec::new(),
        memory: held,
        large,
        there: None,
        absent,
        failures,
        targets: Vec::new(),
        beside: Vec::new(),
        drbd: Vec::new(),
    };
    for (workload, pace) in workloads.iter().zip(paces) {
        report.workloads.push(Row {
            name: workload.name.into(),
            title: workload.title.into(),
            paced: pace,
            cells: Vec::new(),
        });
    }
    for s in series {
        let row = &mut report.workloads[s.workload];
        match s.failure {
            Some(error) => report.failures.push(Failure {
                workload: row.name.clone(),
                system: s.system,
                error,
            }),
            None => row.cells.extend(Cell::of(s.system, s.rounds, &s.latencies)),
        }
    }
    Ok(report)
}

/// The rates of the open loops: what was asked for, or a part of what twinfold does in a
/// closed one.
fn paces(options: &Options, workloads: &[Workload], stage: &mut Stage) -> Result<Vec<Option<f64>>> {
    let mut pace = |workload: &Workload| {
        if !matches!(workload.work, Work::Paced(..)) {
            return Ok(None);
        }
        if options.rate.is_some() {
            return Ok(options.rate);
        }
        let running = stage
            .running(System::Twinfold)
            .context("an open loop without twinfold needs a rate (--rate)")?;
        let once = Once {
            options,
            round: 0,
            rate: None,
        };
        let (measured, _) = once.measure(workload, running)?;
        let rate = measured.ops as f64 / measured.seconds;
        Ok(Some((rate * PACE).max(1.0)))
    };
    workloads.iter().map(&mut pace).collect()
}

/// All rounds, behind one that warms up and is not counted.
fn rounds(
    options: &Options,
    workloads: &[Workload],
    paces: &[Option<f64>],
    stage: &mut Stage,
) -> Result<Vec<Series>> {
    let mut series = Vec::new();
    for (workload, w) in workloads.iter().enumerate() {
        for system in w.systems.iter().filter(|s| stage.has(**s)) {
            series.push(Series {
                workload,
                system: *system,
                rounds: Vec::new(),
                latencies: load::histogram()?,
                failure: None,
            });
        }
    }
    let mut progress = Progress::new(series.len(), options.flags.rounds);
    for round in 0..=options.flags.rounds {
        for turn in series.chunk_by_mut(|a, b| a.workload == b.workload) {
            let workload = &workloads[turn[0].workload];
            let first = round % turn.len();
            let once = Once {
                options,
                round,
                rate: paces[turn[0].workload],
            };
            let (before, behind) = turn.split_at_mut(first);
            for one in behind.iter_mut().chain(before) {
                progress.step(round, workload.title, one.system.title());
                interrupt::check()?;
                stage.check()?;
                if one.failure.is_none() {
                    one.add(&once, workload, stage.running(one.system)?)?;
                }
            }
        }
    }
    progress.end();
    Ok(series)
}

impl Series {
    /// Measures it once more; a failure ends the series, not the run.
    fn add(&mut self, once: &Once, workload: &Workload, running: &mut Running) -> Result<()> {
        match once.measure(workload, running) {
            Ok((measured, cpu)) if once.round > 0 => {
                self.latencies.add(&measured.latencies)?;
                self.rounds.push(Round::new(&measured, cpu));
            }
            Ok(_) => {}
            Err(e) => self.failure = Some(format!("{e:#}")),
        }
        Ok(())
    }
}

/// One measurement.
struct Once<'a> {
    options: &'a Options,
    round: usize,
    rate: Option<f64>,
}

impl Once<'_> {
    fn measure(
        &self,
        workload: &Workload,
        running: &mut Running,
    ) -> Result<(Measured, (f64, f64))> {
        let time = Duration::from_millis(self.options.flags.millis);
        let time = if self.round == 0 {
            time / WARM_UP
        } else {
            time
        };
        let amount = |depth, rate| Amount {
            depth,
            time,
            rate,
            size: self.options.flags.file_mib << 20,
        };
        flush(&self.options.dir)?;
        running.flush()?;
        if let Work::DuringResync(load, depth) = workload.work {
            let mib = self.options.flags.resync_mib;
            return resync::measure(load, amount(depth, None), running, mib, self.round);
        }
        let me = std::process::id();
        let line = running.line()?;
        let before = (running.cpu()?, process::cpu(me));
        let never = AtomicBool::new(false);
        let measured = match (workload.work, &running.place) {
            (Work::Folder(load, depth), Place::Folder(folder)) => {
                load::measure(load, folder, amount(depth, None), &never)?
            }
            (Work::Queue(bytes, depth), Place::Folder(folder)) => {
                load::queue::measure(bytes, folder, amount(depth, None), &never)?
            }
            (Work::Paced(load, depth), Place::Folder(folder)) => {
                load::measure(load, folder, amount(depth, self.rate), &never)?
            }
            // A connection of its own each time: nobody keeps it alive in between. Beside
            // other work it is that work's floor.
            (work, Place::Quic(client, tuning)) => {
                let client = quic::Client::connect(client, *tuning)?;
                match (work, workload.floor) {
                    (Work::Stream, _) | (_, Floor::Stream) => client.stream(time)?,
                    _ => client.round_trips(REQUEST, time)?,
                }
            }
            (Work::RoundTrips, Place::Tcp(server)) => tcp::round_trips(server, REQUEST, time)?,
            (Work::Stream, Place::Tcp(server)) => tcp::stream(server, time)?,
            (work, place) => anyhow::bail!("{work:?} cannot be done on {place:?}"),
        };
        let after = (running.cpu()?, process::cpu(me));
        anyhow::ensure!(
            running.line()? == line,
            "the two nodes lost each other during the measurement"
        );
        Ok((measured, (after.0 - before.0, after.1 - before.1)))
    }
}

/// Flushes the file system of the folders.
pub(crate) fn flush(dir: &Path) -> Result<()> {
    let file = std::fs::File::open(dir)?;
    rustix::fs::syncfs(&file).with_context(|| format!("cannot flush {}", dir.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workloads_are_chosen_by_parts_of_their_names() {
        let names = |only| {
            chosen(Some(only))
                .iter()
                .map(|w| w.name)
                .collect::<Vec<_>>()
        };
        assert_eq!(names("write-1m"), ["write-1m"]);
        assert_eq!(names("read-1m,vm"), ["read-1m", "vm-image"]);
        assert!(names("nothing").is_empty());
        assert_eq!(chosen(None).len(), plan::workloads().len());
    }
}
