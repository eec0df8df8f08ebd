//! The memory of the two drivers of a large folder: many files, a large image written all
//! over, and a resync of both.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::load::Dice;
use crate::process;
use crate::systems::pair::Pair;

/// The most that a driver may hold, in bytes.
const TARGET: u64 = 200 << 20;

/// Files of one directory.
const PER_DIRECTORY: u64 = 1000;

/// Threads that make files and write.
const THREADS: u64 = 8;

/// How long the resync may take.
const PATIENCE: Duration = Duration::from_secs(3600);

/// What `memory` was asked for.
#[derive(Debug)]
pub(crate) struct Options {
    pub(crate) files: u64,
    pub(crate) image_gib: u64,
    pub(crate) writes: u64,
    pub(crate) dir: PathBuf,
}

/// Makes, measures and reports.
pub(crate) fn run(options: &Options) -> Result<()> {
    let name = format!("twinfold-bench.{}", std::process::id());
    let dir = options.dir.join(name);
    std::fs::create_dir_all(&dir)?;
    let result = measure(options, &dir);
    std::fs::remove_dir_all(&dir)
        .with_context(|| format!("cannot remove {}", dir.display()))
        .and(result)
}

fn measure(options: &Options, dir: &Path) -> Result<()> {
    let mut pair = Pair::start(dir, "memory")?;
    let folder = pair.mount.clone();
    let mut most = 0;
    let mut tell = |pair: &Pair, when: &str| most = tell(pair, when).max(most);
    tell(&pair, "paired, empty");
    make(&folder, options.files)?;
    tell(&pair, &format!("{} files made", options.files));
    let size = options.image_gib << 30;
    File::create(folder.join("image"))?.set_len(size)?;
    scatter(&folder, size, options.writes)?;
    let written = format!("{} writes of 4 KiB", options.writes);
    tell(
        &pair,
        &format!("{written} all over {} GiB", options.image_gib),
    );
    pair.stop_secondary()?;
    scatter(&folder, size, options.writes)?;
    touch(&folder, options.files)?;
    tell(&pair, &format!("{written} and changes of all files, alone"));
    pair.start_secondary()?;
    let until = Instant::now() + PATIENCE;
    while pair.status()?["link"] != "paired" {
        if Instant::now() > until {
            bail!("the resync does not end: {}", pair.status()?);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    tell(&pair, "resynced");
    let mark = if most <= TARGET { "met" } else { "MISSED" };
    println!(
        "\nmost held by a driver, in MiB {:>42.1}  target <= {}  {mark}",
        mib(most),
        mib(TARGET)
    );
    Ok(())
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// Prints what both drivers have held at most so far; returns the larger.
fn tell(pair: &Pair, when: &str) -> u64 {
    let [one, two] = [0, 1].map(|n: usize| process::peak(pair.drivers[n].id()));
    println!(
        "{when:<56} primary {:>7.1} MiB, secondary {:>7.1} MiB",
        mib(one),
        mib(two)
    );
    one.max(two)
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
