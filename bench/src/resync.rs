//! How fast a resync moves changed data, against one bare QUIC stream in the same run: quinn as
//! it comes, and quinn with the sockets and settings of the driver, which the resync has, too.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use fs_driver::state::Ack;

use crate::floors::quic::{self, Tuning};
use crate::stats::Estimate;
use crate::systems;
use crate::systems::pair::Pair;

/// How often the source is asked how far it is.
const LOOK: Duration = Duration::from_millis(40);

/// How long one resync may take.
const PATIENCE: Duration = Duration::from_secs(300);

/// What `resync` was asked for.
#[derive(Debug)]
pub(crate) struct Options {
    pub(crate) rounds: usize,
    pub(crate) millis: u64,
    pub(crate) mib: u64,
    /// The least part of a bare stream's speed that a resync shall have.
    pub(crate) at_least: f64,
    pub(crate) dir: PathBuf,
}

/// What changes while the secondary is away.
#[derive(Clone, Copy)]
enum Change {
    /// A whole file.
    Whole,
    /// Every second block of 4 KiB of it.
    Pieces,
}

/// Bytes per second of each round.
#[derive(Default)]
struct Series(Vec<f64>);

impl Series {
    fn show(&self, name: &str) -> Result<f64> {
        let estimate = Estimate::of(&self.0).context("no rounds")?;
        println!(
            "{name:<34} {:>8.1} MB/s  spread {:>4.1} %",
            estimate.median / 1e6,
            100.0 * estimate.spread()
        );
        Ok(estimate.median)
    }
}

/// Measures and reports; exits with 1 when a resync is too slow.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let dir = options
        .dir
        .join(format!("twinfold-bench.{}", std::process::id()));
    std::fs::create_dir_all(&dir)?;
    let measured = measure(options, &dir);
    let removed = std::fs::remove_dir_all(&dir);
    let met = measured?;
    removed.with_context(|| format!("cannot remove {}", dir.display()))?;
    Ok(match met {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

/// Whether a resync is fast enough.
fn measure(options: &Options, dir: &std::path::Path) -> Result<bool> {
    let mut pair = Pair::start(dir, Ack::Memory)?;
    let tunings = [Tuning::Stock, Tuning::Driver];
    let mut ends = Vec::new();
    for tuning in tunings {
        ends.push(systems::quic_pair(&dir.join(tuning.word()), tuning)?);
    }
    let mut streams = [Series::default(), Series::default()];
    let (mut whole, mut pieces) = (Series::default(), Series::default());
    for round in 0..=options.rounds {
        eprint!("\rround {round} of {} ", options.rounds);
        let bare = |n: usize| -> Result<f64> {
            let quic = quic::Client::connect(&ends[n].1, tunings[n])?;
            let sent = quic.stream(Duration::from_millis(options.millis))?;
            Ok(sent.bytes as f64 / sent.seconds)
        };
        let bare = [bare(0)?, bare(1)?];
        let all = resync(&mut pair, options.mib, Change::Whole, round)?;
        let some = resync(&mut pair, options.mib, Change::Pieces, round)?;
        // The first round makes the files.
        if round > 0 {
            (streams.iter_mut().zip(bare)).for_each(|(series, bare)| series.0.push(bare));
            whole.0.push(all);
            pieces.0.push(some);
        }
    }
    eprintln!();
    let stock = streams[0].show("bare quinn stream")?;
    let driver = streams[1].show("the same, with our settings")?;
    let whole = whole.show("resync of a whole file")?;
    let pieces = pieces.show("resync of 4 KiB pieces")?;
    let (ratio, least) = (whole / stock, options.at_least);
    let met = ratio >= least;
    let mark = if met { "met" } else { "MISSED" };
    println!("\nresync / bare quinn {ratio:>43.2}  target >= {least:<5} {mark}");
    println!("resync / quinn with our settings {:>30.2}", whole / driver);
    println!("resync of pieces / bare quinn {:>33.2}", pieces / stock);
    Ok(met)
}

/// Changes the file while the secondary is away; returns the bytes per second at which it
/// is moved when the secondary is back: from the first byte that arrived to the last one.
fn resync(pair: &mut Pair, mib: u64, change: Change, round: usize) -> Result<f64> {
    pair.stop_secondary()?;
    let path = pair.mount.join("resync.dat");
    let file = File::options()
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)?;
    let (size, step): (u64, u64) = match change {
        Change::Whole => (1 << 20, 1 << 20),
        Change::Pieces => (4096, 8192),
    };
    let bytes = vec![round as u8 + 1 + size.trailing_zeros() as u8; size as usize];
    for at in (0..mib << 20).step_by(step as usize) {
        file.write_all_at(&bytes, at)?;
    }
    drop(file);
    pair.start_secondary()?;
    let until = Instant::now() + PATIENCE;
    let (mut first, mut last) = (None, None);
    loop {
        let status = pair.status()?;
        let resync = &status["resync"];
        let number = |key: &str| resync[key].as_u64().unwrap_or(0);
        let running = matches!(resync["phase"].as_str(), Some("moving" | "flushing"));
        let moved = number("moved_bytes");
        if running && moved > 0 {
            first.get_or_insert((Instant::now(), moved));
            if last.is_none_or(|(_, before)| before < moved) {
                last = Some((Instant::now(), moved));
            }
        }
        if status["link"] == "paired" {
            break;
        }
        if Instant::now() > until {
            bail!("the resync does not end: {status}");
        }
        std::thread::sleep(LOOK);
    }
    let (Some((begin, from)), Some((end, to))) = (first, last) else {
        bail!("the resync was over before it was seen: use more data (--mib)");
    };
    Ok((to - from) as f64 / (end - begin).as_secs_f64())
}
