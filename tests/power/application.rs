//! The application, here or in a guest, and what this machine has heard of it.

use std::io::BufRead;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use harness::ledger;
use harness::wait_until;

use crate::machine::{Machine, PATIENCE};

/// Between two steps of a writer on this machine: the guest is some twenty times slower.
const PACE: Duration = Duration::from_millis(4);

/// Writers of an application.
const WRITERS: u64 = 3;

#[derive(Default)]
struct Heard {
    /// The last step of each writer that was acknowledged.
    last: [AtomicU64; WRITERS as usize],
    stop: AtomicBool,
    error: Mutex<Option<String>>,
}

/// An application in a directory of its own.
pub(crate) struct Application {
    directory: String,
    heard: Arc<Heard>,
    threads: Vec<JoinHandle<()>>,
}

impl Application {
    /// Sets an application to work on a machine whose node is primary.
    pub(crate) fn start(machine: &Machine, directory: &str) -> Application {
        let heard = Arc::<Heard>::default();
        let threads = match machine {
            Machine::Host { node, .. } => {
                let root = node.mount().join(directory);
                std::fs::create_dir(&root).unwrap();
                (0..WRITERS).map(|n| here(&root, n, &heard)).collect()
            }
            Machine::Guest(guest) => {
                let lines = guest.work(directory, WRITERS).unwrap();
                let heard = heard.clone();
                vec![std::thread::spawn(move || listen(lines, &heard))]
            }
        };
        Application {
            directory: directory.into(),
            heard,
            threads,
        }
    }

    fn last(&self) -> Vec<u64> {
        let load = |last: &AtomicU64| last.load(Ordering::SeqCst);
        self.heard.last.iter().map(load).collect()
    }

    /// Steps acknowledged.
    pub(crate) fn acknowledged(&self) -> u64 {
        self.last().iter().sum()
    }

    /// Those of them that are on stable storage.
    pub(crate) fn synced(&self) -> u64 {
        self.last().into_iter().map(ledger::synced).sum()
    }

    /// Waits until so many more steps are acknowledged.
    pub(crate) fn expect(&self, more: u64, when: &str) {
        let goal = self.acknowledged() + more;
        let there = wait_until(PATIENCE, || {
            let error = self.heard.error.lock().unwrap().clone();
            assert_eq!(error, None, "the application sees an error");
            self.acknowledged() >= goal
        });
        let now = self.acknowledged();
        assert!(there, "{when}: {now} of {goal} steps");
    }

    /// Its machine has lost its power.
    pub(crate) fn is_gone(&mut self) {
        self.heard.stop.store(true, Ordering::SeqCst);
        for thread in self.threads.drain(..) {
            thread.join().unwrap();
        }
    }

    /// Ends it, on the machine on which it works.
    pub(crate) fn end(&mut self, machine: &Machine) {
        self.is_gone();
        if let Machine::Guest(guest) = machine {
            guest.tell("rest").unwrap();
        }
    }

    /// Everything acknowledged that is not below `root`.
    pub(crate) fn missing(&self, root: &Path) -> Vec<String> {
        self.check(root, |last| last)
    }

    /// Everything fsynced that is not below `root`.
    pub(crate) fn missing_of_synced(&self, root: &Path) -> Vec<String> {
        self.check(root, ledger::synced)
    }

    fn check(&self, root: &Path, from: impl Fn(u64) -> u64) -> Vec<String> {
        let one = |(writer, last): (usize, u64)| {
            let directory = root.join(&self.directory).join(writer.to_string());
            ledger::check(&directory, writer as u64, from(last))
        };
        self.last().into_iter().enumerate().flat_map(one).collect()
    }
}

/// A writer on this machine.
fn here(root: &Path, writer: u64, heard: &Arc<Heard>) -> JoinHandle<()> {
    let (directory, heard) = (root.join(writer.to_string()), heard.clone());
    std::thread::spawn(move || {
        let done = ledger::work(&directory, writer, |step| {
            heard.last[writer as usize].store(step, Ordering::SeqCst);
            std::thread::sleep(PACE);
            !heard.stop.load(Ordering::SeqCst)
        });
        if let Err(e) = done {
            *heard.error.lock().unwrap() = Some(e.to_string());
        }
    })
}

/// Hears what is acknowledged in a guest, as long as that has power or until told to stop.
fn listen(mut lines: impl BufRead, heard: &Heard) {
    let mut line = String::new();
    while !heard.stop.load(Ordering::SeqCst) {
        line.clear();
        // A line cut off by the power cut is not one.
        if lines.read_line(&mut line).is_err() || !line.ends_with('\n') {
            return;
        }
        let step = line.trim().split_once(' ').and_then(|(writer, step)| {
            let last = heard.last.get(writer.parse::<usize>().ok()?)?;
            Some((last, step.parse().ok()?))
        });
        match step {
            Some((last, step)) => last.store(step, Ordering::SeqCst),
            None => *heard.error.lock().unwrap() = Some(line.clone()),
        }
    }
}
