//! What is done to a folder, again and again, and how long each time takes.

mod database;
mod file;
mod image;
mod log;
mod memory;
mod names;
mod pace;
pub(crate) mod queue;

use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use hdrhistogram::Histogram;

pub(crate) use file::{Access, Act, prepare};
pub(crate) use memory::Dice;
pub(crate) use pace::Pace;

/// Longest latency that is told from longer ones, in nanoseconds.
const LONGEST: u64 = 100_000_000_000;

/// Decimal digits to which latencies are kept.
const DIGITS: u8 = 3;

/// One kind of load.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Load {
    /// Reads or writes of one size in a file.
    File(Access),
    /// A small file is created, written, closed and unlinked; perhaps renamed in between.
    Names { rename: bool },
    /// A transaction of a database with a write-ahead log.
    Database,
    /// The disk of a virtual machine: direct reads and writes of several sizes, flushes.
    Image,
    /// Lines appended to a log, flushed now and then.
    Log,
}

/// One of several that do the same at once. Each has its own.
trait Worker: Send {
    /// Does it once; returns the bytes moved.
    fn step(&mut self) -> Result<u64>;
}

/// What came of it.
#[derive(Debug)]
pub(crate) struct Measured {
    /// Steps done.
    pub(crate) ops: u64,
    /// Steps of an open loop that had not begun when patience ended. Each is in the
    /// latencies with what it had waited by then.
    pub(crate) unserved: u64,
    /// Bytes moved.
    pub(crate) bytes: u64,
    /// How long it took all together.
    pub(crate) seconds: f64,
    /// Of each step, in nanoseconds.
    pub(crate) latencies: Histogram<u64>,
}

/// Counts the steps of one thread.
#[derive(Debug)]
pub(crate) struct Tally {
    begin: Instant,
    so_far: Measured,
}

impl Tally {
    /// Begins to count.
    pub(crate) fn begin() -> Result<Tally> {
        let so_far = Measured::nothing()?;
        let begin = Instant::now();
        Ok(Tally { begin, so_far })
    }

    pub(crate) fn elapsed(&self) -> Duration {
        self.begin.elapsed()
    }

    /// A step that began then has ended.
    pub(crate) fn step(&mut self, began: Instant, bytes: usize) {
        self.so_far.count(began.elapsed(), bytes as u64);
    }

    /// What came of it.
    pub(crate) fn end(mut self) -> Measured {
        self.so_far.seconds = self.begin.elapsed().as_secs_f64();
        self.so_far
    }
}

impl Measured {
    fn nothing() -> Result<Measured> {
        Ok(Measured {
            ops: 0,
            unserved: 0,
            bytes: 0,
            seconds: 0.0,
            latencies: histogram()?,
        })
    }

    fn count(&mut self, took: Duration, bytes: u64) {
        self.ops += 1;
        self.bytes += bytes;
        let nanos = took.as_nanos().max(1) as u64;
        self.latencies.saturating_record(nanos);
    }
}

/// An empty histogram.
pub(crate) fn histogram() -> Result<Histogram<u64>> {
    Ok(Histogram::new_with_bounds(1, LONGEST, DIGITS)?)
}

impl Load {
    fn worker(self, directory: &Path, n: usize, size: u64) -> Result<Box<dyn Worker>> {
        Ok(match self {
            Load::File(access) => Box::new(file::FileWorker::new(access, directory, n, size)?),
            Load::Names { rename } => Box::new(names::Storm::new(directory, n, rename)),
            Load::Database => Box::new(database::Transactions::new(directory, n, size)?),
            Load::Image => Box::new(image::Guest::new(directory, n, size)?),
            Load::Log => Box::new(log::Appender::new(directory, n)?),
        })
    }
}

/// How much of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Amount {
    /// Workers at once.
    pub(crate) depth: usize,
    /// For how long.
    pub(crate) time: Duration,
    /// Steps that begin in a second, whether the ones before have ended or not; without
    /// it each worker begins a step when its last one has ended.
    pub(crate) rate: Option<f64>,
    /// Bytes of the files that it is done to.
    pub(crate) size: u64,
}

/// Does `load` in `directory` until the time is over or `stop` is set.
pub(crate) fn measure(
    load: Load,
    directory: &Path,
    amount: Amount,
    stop: &AtomicBool,
) -> Result<Measured> {
    let mut workers = Vec::new();
    for n in 0..amount.depth {
        workers.push(load.worker(directory, n, amount.size)?);
    }
    let pace = Pace::new(amount.rate, amount.time);
    let begin = Instant::now();
    let parts: Vec<Result<Measured>> = std::thread::scope(|scope| {
        let threads: Vec<_> = workers
            .iter_mut()
            .map(|worker| {
                let pace = &pace;
                scope.spawn(move || {
                    let mut clock = pace::Real::new(begin);
                    pace.drive(&mut clock, stop, &mut || worker.step())
                })
            })
            .collect();
        let join = |t: std::thread::ScopedJoinHandle<'_, Result<Measured>>| match t.join() {
            Ok(part) => part,
            Err(_) => bail!("a worker broke off"),
        };
        threads.into_iter().map(join).collect()
    });
    let seconds = begin.elapsed().as_secs_f64();
    let mut all = Measured::nothing()?;
    all.seconds = seconds;
    for part in parts {
        let part = part?;
        all.ops += part.ops;
        all.bytes += part.bytes;
        all.latencies.add(&part.latencies)?;
    }
    all.unserved = pace.unserved(seconds, &mut all.latencies)?;
    Ok(all)
}
