//! Threads for what may wait for a disk: syncs and state changes.

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;

use crossbeam::channel::{Receiver, Sender};
use parking_lot::Mutex;

use super::clock;
use super::silence::Silence;

type Job = Box<dyn FnOnce() + Send>;

/// Syncs under way at once.
const THREADS: usize = 4;

/// A few threads that run jobs in the order in which they come.
#[derive(Debug)]
pub(crate) struct Jobs {
    queue: Mutex<Option<Sender<Job>>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Jobs {
    /// Starts the threads. The queue is bounded by what feeds it: syncs that
    /// applications wait for, and at most one checkpoint.
    pub(super) fn start(silence: &Arc<Silence>) -> io::Result<Jobs> {
        let (queue, jobs): (Sender<Job>, Receiver<Job>) = crossbeam::channel::unbounded();
        let mut threads = Vec::new();
        for n in 0..THREADS {
            let (jobs, silence) = (jobs.clone(), silence.clone());
            threads.push(
                std::thread::Builder::new()
                    .name(format!("sync-{n}"))
                    .spawn(move || {
                        for job in jobs {
                            let _inside = silence.enter(clock::now());
                            job();
                        }
                    })?,
            );
        }
        Ok(Jobs {
            queue: Mutex::new(Some(queue)),
            threads: Mutex::new(threads),
        })
    }

    /// Queues a job. After [`Jobs::stop`] it is dropped, and with it the reply it carries.
    pub(crate) fn run(&self, job: impl FnOnce() + Send + 'static) {
        if let Some(queue) = &*self.queue.lock() {
            let _ = queue.send(Box::new(job));
        }
    }

    /// Runs what is queued and ends the threads.
    pub(crate) fn stop(&self) {
        self.queue.lock().take();
        for thread in self.threads.lock().drain(..) {
            let _ = thread.join();
        }
    }
}
