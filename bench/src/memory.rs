//! The memory of the two drivers of a large folder: many files, a large image written all
//! over, and a resync of both. Both nodes are on this machine.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use fs_driver::state::Ack;
use serde::{Deserialize, Serialize};

use crate::interrupt;
use crate::load::Dice;
use crate::systems::pair::Pair;

/// The most that a driver may hold, in MiB.
pub(crate) const TARGET: u64 = 200;

/// Files of one directory.
const PER_DIRECTORY: u64 = 1000;

/// Threads that make files and write.
const THREADS: u64 = 8;

/// How long the resync may take.
const PATIENCE: Duration = Duration::from_secs(3600);

/// How large the folder is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, clap::Args)]
pub(crate) struct Size {
    /// Files in the large folder.
    #[arg(long, default_value_t = 1_000_000)]
    pub(crate) files: u64,
    /// Size of its image, which is mostly holes, in GiB.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) image_gib: u64,
    /// Writes of 4 KiB anywhere in the image, and as many while the secondary is away.
    #[arg(long, default_value_t = 100_000)]
    pub(crate) writes: u64,
}

/// What both drivers have held at most until a moment, in bytes.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Held {
    pub(crate) when: String,
    pub(crate) primary: u64,
    /// Nothing while the secondary is away.
    pub(crate) secondary: Option<u64>,
}

/// The memory of the drivers of a large folder.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Large {
    pub(crate) size: Size,
    pub(crate) held: Vec<Held>,
}

impl Large {
    /// The most that a driver has held, in bytes.
    pub(crate) fn most(&self) -> u64 {
        let each = self
            .held
            .iter()
            .map(|h| h.primary.max(h.secondary.unwrap_or(0)));
        each.max().unwrap_or(0)
    }
}

impl std::fmt::Display for Held {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let secondary = match self.secondary {
            Some(bytes) => format!("secondary {:>7.1} MiB", mib(bytes)),
            None => "secondary away".to_owned(),
        };
        let primary = mib(self.primary);
        write!(
            f,
            "{:<56} primary {primary:>7.1} MiB, {secondary}",
            self.when
        )
    }
}

/// What `memory` was asked for.
#[derive(Debug)]
pub(crate) struct Options {
    pub(crate) size: Size,
    /// The most that a driver may hold, in MiB.
    pub(crate) at_most: u64,
    pub(crate) dir: PathBuf,
}

/// Makes, measures and reports; exits with 1 when a driver has held too much.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let name = format!("twinfold-bench.{}", std::process::id());
    let dir = options.dir.join(name);
    std::fs::create_dir_all(&dir)?;
    interrupt::catch();
    let measured = measure(&options.size, &dir, &|held| println!("{held}"));
    let removed = std::fs::remove_dir_all(&dir);
    let most = measured?.most();
    removed.with_context(|| format!("cannot remove {}", dir.display()))?;
    let met = most <= options.at_most << 20;
    println!(
        "\nmost held by a driver, in MiB {:>42.1}  target <= {}  {}",
        mib(most),
        options.at_most,
        if met { "met" } else { "MISSED" }
    );
    Ok(match met {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

/// Makes such a folder below `dir` and measures; tells each step when it is done.
pub(crate) fn measure(size: &Size, dir: &Path, told: &dyn Fn(&Held)) -> Result<Large> {
    let mut pair = Pair::start(&dir.join("large"), Ack::Memory)?;
    let folder = pair.mount.clone();
    let mut held = Vec::new();
    let mut tell = |pair: &Pair, when: &str| -> Result<()> {
        let used = pair.usage()?;
        let now = Held {
            when: when.to_owned(),
            primary: used.first().context("no primary")?.peak,
            secondary: used.get(1).map(|u| u.peak),
        };
        told(&now);
        held.push(now);
        Ok(())
    };
    tell(&pair, "paired, empty")?;
    make(&folder, size.files)?;
    tell(&pair, &format!("{} files made", size.files))?;
    let bytes = size.image_gib << 30;
    File::create(folder.join("image"))?.set_len(bytes)?;
    scatter(&folder, bytes, size.writes)?;
    let written = format!("{} writes of 4 KiB", size.writes);
    tell(&pair, &format!("{written} all over {} GiB", size.image_gib))?;
    pair.stop_secondary()?;
    scatter(&folder, bytes, size.writes)?;
    touch(&folder, size.files)?;
    tell(&pair, &format!("{written} and changes of all files, alone"))?;
    pair.start_secondary()?;
    let until = Instant::now() + PATIENCE;
    while !pair.is_paired()? {
        interrupt::check()?;
        if Instant::now() > until {
            bail!("the resync does not end: {}", pair.status()?);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    tell(&pair, "resynced")?;
    Ok(Large { size: *size, held })
}

/// Bytes in MiB.
pub(crate) fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// Does `each` for all numbers below `count`, on several threads.
fn spread(count: u64, each: impl Fn(u64) -> Result<()> + Sync) -> Result<()> {
    let next = AtomicU64::new(0);
    std::thread::scope(|scope| {
        let work = || loop {
            let n = next.fetch_add(1, Ordering::Relaxed);
            if n >= count {
                return Ok(());
            }
            interrupt::check()?;
            each(n)?;
        };
        let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(work)).collect();
        threads.into_iter().try_for_each(|t| match t.join() {
            Ok(result) => result,
            Err(_) => bail!("a worker broke off"),
        })
    })
}

fn path(folder: &Path, n: u64) -> PathBuf {
    folder.join(format!("d{}/f{n}", n / PER_DIRECTORY))
}

fn make(folder: &Path, files: u64) -> Result<()> {
    for n in 0..files.div_ceil(PER_DIRECTORY) {
        std::fs::create_dir(folder.join(format!("d{n}")))?;
    }
    spread(files, |n| {
        File::create_new(path(folder, n))?;
        Ok(())
    })
}

/// Changes every file a little.
fn touch(folder: &Path, files: u64) -> Result<()> {
    spread(files, |n| Ok(std::fs::write(path(folder, n), b"changed")?))
}

/// Writes anywhere in the image.
fn scatter(folder: &Path, size: u64, writes: u64) -> Result<()> {
    let image = File::options().write(true).open(folder.join("image"))?;
    spread(writes, |n| {
        let at = Dice::new(n).below((size / 4096).max(1)) * 4096;
        Ok(image.write_all_at(&[n as u8; 4096], at)?)
    })
}
