//! Threads for what may wait for a disk: syncs and state changes.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
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
    silence: Arc<Silence>,
    /// A thread runs a job of its own.
    here: AtomicBool,
}

impl Jobs {
    /// Starts the threads. The queue is bounded by what feeds it: syncs that
    /// applications wait for, one that is foreseen, and one checkpoint at most.
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
            silence: silence.clone(),
            here: AtomicBool::new(false),
        })
    }

    /// Queues a job. After [`Jobs::stop`] it is dropped, and with it the reply it carries.
    pub(crate) fn run(&self, job: impl FnOnce() + Send + 'static) {
        if let Some(queue) = &*self.queue.lock() {
            let _ = queue.send(Box::new(job));
        }
    }

    /// Runs a job at once on the thread of its caller, which spares both the way to another one.
    /// When one runs so already, it is queued: callers' threads are few, and a disk that hangs
    /// keeps one of them at most.
    pub(super) fn run_here(&self, job: impl FnOnce() + Send + 'static) {
        /// Ends with the job, however that ends.
        struct Here<'a>(&'a AtomicBool);
        impl Drop for Here<'_> {
            fn drop(&mut self) {
                self.0.store(false, Ordering::Release);
            }
        }
        if self.here.swap(true, Ordering::Acquire) {
            return self.run(job);
        }
        let _here = Here(&self.here);
        let _inside = self.silence.enter(clock::now());
        job();
    }

    /// Runs what is queued and ends the threads.
    pub(crate) fn stop(&self) {
        self.queue.lock().take();
        for thread in self.threads.lock().drain(..) {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    #[test]
    fn one_job_at_a_time_keeps_the_thread_of_its_caller() {
        let jobs = Jobs::start(&Arc::default()).unwrap();
        let (tell, told) = mpsc::channel();
        let run = || {
            let tell = tell.clone();
            jobs.run_here(move || tell.send(std::thread::current().id()).unwrap());
            told.recv_timeout(Duration::from_secs(60)).unwrap()
        };
        let me = std::thread::current().id();
        assert_eq!(run(), me);
        let (begun, begins) = mpsc::channel();
        let (release, released) = mpsc::channel::<()>();
        std::thread::scope(|scope| {
            let hangs = scope.spawn(|| {
                jobs.run_here(move || {
                    begun.send(()).unwrap();
                    released.recv().unwrap();
                });
            });
            begins.recv_timeout(Duration::from_secs(60)).unwrap();
            assert_ne!(run(), me);
            assert_ne!(run(), me);
            release.send(()).unwrap();
            hangs.join().unwrap();
        });
        assert_eq!(run(), me);
        // Nor does one that panics keep the place.
        let panics = std::panic::AssertUnwindSafe(|| jobs.run_here(|| panic!("on purpose")));
        std::panic::catch_unwind(panics).unwrap_err();
        assert_eq!(run(), me);
        jobs.stop();
    }
}
