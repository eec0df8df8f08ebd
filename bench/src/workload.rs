//! What is done to a file, for a given time, as fast as it goes.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// Size of the file the workloads use, in bytes.
pub(crate) const FILE: u64 = 64 << 20;

/// Memory aligned for `O_DIRECT`.
struct Aligned {
    memory: Vec<u8>,
    from: usize,
    len: usize,
}

impl Aligned {
    fn new(len: usize, fill: u8) -> Aligned {
        let memory = vec![fill; len + 4096];
        let from = memory.as_ptr().align_offset(4096);
        Aligned { memory, from, len }
    }

    fn bytes(&self) -> &[u8] {
        &self.memory[self.from..self.from + self.len]
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.from..self.from + self.len]
    }
}

/// What to do.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Work {
    /// Bytes of one call.
    pub(crate) size: usize,
    /// Calls under way at once, each from a thread of its own.
    pub(crate) depth: usize,
    /// Past the page cache.
    pub(crate) direct: bool,
    /// One after the other instead of anywhere.
    pub(crate) sequential: bool,
    /// What each call is.
    pub(crate) kind: Kind,
}

/// What each call is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    Write,
    WriteSync,
    Read,
    /// create, write, close, unlink
    Churn,
}

/// Fills the file the work is done on.
pub(crate) fn prepare(directory: &Path) -> Result<()> {
    let path = directory.join("bench.dat");
    let file = File::create(&path).with_context(|| format!("cannot make {}", path.display()))?;
    let chunk = vec![0x5a; 1 << 20];
    for i in 0..FILE / chunk.len() as u64 {
        file.write_all_at(&chunk, i * chunk.len() as u64)?;
    }
    file.sync_all()?;
    Ok(())
}

/// Does the work for `time`; returns calls per second.
pub(crate) fn run(directory: &Path, work: Work, time: Duration) -> Result<f64> {
    let path = directory.join("bench.dat");
    let flags = if work.direct { libc::O_DIRECT } else { 0 };
    let file = OpenOptions::new()
        .read(true)
        .write(work.kind != Kind::Read)
        .custom_flags(flags)
        .open(&path)
        .with_context(|| format!("cannot open {}", path.display()))?;
    let done = AtomicU64::new(0);
    let begin = Instant::now();
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..work.depth)
            .map(|n| {
                let (file, done) = (&file, &done);
                scope.spawn(move || one(file, directory, work, n as u64, begin + time, done))
            })
            .collect();
        threads.into_iter().try_for_each(|t| match t.join() {
            Ok(result) => result,
            Err(_) => anyhow::bail!("a worker broke off"),
        })
    })?;
    Ok(done.load(Ordering::Relaxed) as f64 / begin.elapsed().as_secs_f64())
}

fn one(
    file: &File,
    directory: &Path,
    work: Work,
    n: u64,
    until: Instant,
    done: &AtomicU64,
) -> Result<()> {
    let mut buffer = Aligned::new(work.size, n as u8);
    let slots = FILE / work.size as u64;
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(n + 1);
    let mut count = 0;
    while Instant::now() < until {
        let slot = if work.sequential {
            (n + count * work.depth as u64) % slots
        } else {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            seed % slots
        };
        let at = slot * work.size as u64;
        match work.kind {
            Kind::Write => file.write_all_at(buffer.bytes(), at)?,
            Kind::WriteSync => {
                file.write_all_at(buffer.bytes(), at)?;
                file.sync_data()?;
            }
            Kind::Read => file.read_exact_at(buffer.bytes_mut(), at)?,
            Kind::Churn => {
                let path = directory.join(format!("churn-{n}-{count}"));
                let new = File::create(&path)?;
                new.write_all_at(buffer.bytes(), 0)?;
                drop(new);
                std::fs::remove_file(&path)?;
            }
        }
        count += 1;
    }
    done.fetch_add(count, Ordering::Relaxed);
    Ok(())
}
