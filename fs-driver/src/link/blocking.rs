//! What may wait for a disk, done by the link's own thread outside of its runtime.
//!
//! An op is applied a few microseconds after it has come, by the thread that received it:
//! to hand it to another one would cost more than to apply it. But a busy disk may keep
//! that thread for seconds, and then nothing would be answered meanwhile, not even that
//! this node lives. So the thread leaves the runtime before it enters the store, and when
//! it does not come back soon, another one, the deputy, drives the runtime until it does.
//!
//! To leave and to come back costs a few microseconds as well, so this is done only where
//! the store has been slow lately. One that stops altogether at once, without having been slow
//! before, has the line with it; but then its node would not be waited for anyway.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread::Thread;
use std::time::Duration;

use anyhow::{Context, Result};
use parking_lot::Mutex;
use tokio::runtime::Runtime;
use tokio::sync::{Notify, oneshot};
use twinfold_protocol::time::Instant;

use crate::engine::clock;

/// For how long the link's thread may be away before the deputy drives the runtime. Short
/// beside the time that a line may be silent, long beside what a sound disk takes.
const AWAY: Duration = Duration::from_millis(50);

/// What keeps the thread for so long is slow. Longer than any sound flash disk takes for what
/// comes behind an op, and shorter than a hard disk takes when it has something to do.
const SLOW: Duration = Duration::from_millis(20);

/// How long that is remembered.
const REMEMBERED: Duration = Duration::from_secs(60);

/// Looks of the deputy in a row that find nothing done, until it sleeps until there is.
const LOOKS: u32 = 20;

/// Work for the link's thread; what it returns hands the result over, within the runtime, where
/// that costs nobody a wake-up.
type Work = Box<dyn FnOnce() -> Answer + Send>;
type Answer = Box<dyn FnOnce() + Send>;

struct Job {
    work: Work,
    /// It changes something, and what it takes tells whether the store is slow.
    changes: bool,
}

/// Hands work from the runtime's tasks to the link's thread.
#[derive(Default)]
pub(super) struct Blocking {
    jobs: Mutex<VecDeque<Job>>,
    /// Those that change something, and are not done.
    changes: AtomicUsize,
    /// There is a job.
    more: Notify,
    /// Since when the thread is away, in nanoseconds of the clock; 0: it is not.
    since: AtomicU64,
    /// Jobs that were begun.
    begun: AtomicU64,
    /// Until when the store counts as slow, in nanoseconds of the clock.
    slow_until: AtomicU64,
    deputy: Deputy,
}

/// What the link's thread and its deputy know of each other.
#[derive(Default)]
struct Deputy {
    thread: Mutex<Option<Thread>>,
    sleeps: AtomicBool,
    drives: AtomicBool,
    /// The link's thread is back.
    back: Notify,
    ends: AtomicBool,
}

impl Deputy {
    fn wake(&self) {
        self.sleeps.store(false, Ordering::SeqCst);
        if let Some(thread) = &*self.thread.lock() {
            thread.unpark();
        }
    }
}

impl Blocking {
    /// Runs `work` at once, on this thread. For what is quick, as long as it is.
    pub(super) fn run_here<T>(&self, work: impl FnOnce() -> T) -> T {
        let began = clock::now();
        let result = work();
        self.took(began);
        result
    }

    /// Whether work is better done outside of the runtime.
    pub(super) fn is_slow(&self) -> bool {
        let until = self.slow_until.load(Ordering::Relaxed);
        until != 0 && clock::now().0 < until
    }

    /// For tests: it was slow by chance.
    #[cfg(test)]
    pub(super) fn forget_slow(&self) {
        self.slow_until.store(0, Ordering::Relaxed);
    }

    /// Whether the thread is away, or about to go: what is begun now waits for that.
    pub(super) fn is_kept(&self) -> bool {
        self.since.load(Ordering::SeqCst) != 0 || !self.jobs.lock().is_empty()
    }

    fn took(&self, began: Instant) {
        let now = clock::now();
        if now.since(began) >= SLOW {
            let until = now.after(REMEMBERED).0;
            self.slow_until.store(until, Ordering::Relaxed);
        }
    }

    /// Runs `work` on the link's thread, outside of the runtime. Jobs are done one after the
    /// other, in their order, also when nobody waits for them any more.
    ///
    /// # Panics
    ///
    /// If the work panics.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> T {
        let (done, result) = oneshot::channel();
        self.changes.fetch_add(1, Ordering::SeqCst);
        self.queue(Job {
            work: Box::new(move || {
                let result = work();
                // Whoever asked may be gone.
                Box::new(move || drop(done.send(result)))
            }),
            changes: true,
        });
        result.await.expect("the link's thread does every job")
    }

    /// Has the link's thread do a sync, outside of the runtime, and then `tell` of it within.
    /// That one takes long says nothing about anything else in the store.
    pub(super) fn begin_sync<T: Send + 'static>(
        &self,
        sync: impl FnOnce() -> T + Send + 'static,
        tell: impl FnOnce(T) + Send + 'static,
    ) {
        self.queue(Job {
            work: Box::new(move || {
                let result = sync();
                Box::new(move || tell(result))
            }),
            changes: false,
        });
    }

    fn queue(&self, job: Job) {
        self.jobs.lock().push_back(job);
        self.more.notify_one();
    }

    /// Waits until every change that was begun is done. A sync changes nothing.
    pub(super) async fn settled(&self) {
        if self.changes.load(Ordering::SeqCst) > 0 {
            self.run(|| ()).await;
        }
    }

    async fn next(&self) -> Job {
        loop {
            if let Some(job) = self.jobs.lock().pop_front() {
                return job;
            }
            self.more.notified().await;
        }
    }

    fn work(&self, job: Job) -> Answer {
        self.begun.fetch_add(1, Ordering::SeqCst);
        let began = clock::now();
        self.since.store(began.0, Ordering::SeqCst);
        if self.deputy.sleeps.load(Ordering::SeqCst) {
            self.deputy.wake();
        }
        let answer = (job.work)();
        self.since.store(0, Ordering::SeqCst);
        if job.changes {
            self.took(began);
            self.changes.fetch_sub(1, Ordering::SeqCst);
        }
        if self.deputy.drives.load(Ordering::SeqCst) {
            self.deputy.back.notify_one();
        }
        answer
    }

    /// The deputy's thread.
    fn stand_in(&self, runtime: &Runtime) {
        *self.deputy.thread.lock() = Some(std::thread::current());
        let ends = || self.deputy.ends.load(Ordering::SeqCst);
        let mut idle = 0;
        let mut begun = 0;
        while !ends() {
            if idle >= LOOKS {
                self.deputy.sleeps.store(true, Ordering::SeqCst);
                // What has begun in between may have seen nobody sleep.
                while self.begun.load(Ordering::SeqCst) == begun
                    && self.deputy.sleeps.load(Ordering::SeqCst)
                    && !ends()
                {
                    std::thread::park();
                }
                self.deputy.sleeps.store(false, Ordering::SeqCst);
                idle = 0;
            }
            std::thread::park_timeout(AWAY);
            let since = self.since.load(Ordering::SeqCst);
            if since != 0 && clock::now().0.saturating_sub(since) >= AWAY.as_nanos() as u64 {
                self.drive(runtime, since);
            }
            let now = self.begun.load(Ordering::SeqCst);
            idle = if now == begun && since == 0 {
                idle + 1
            } else {
                0
            };
            begun = now;
        }
    }

    /// Drives the runtime until the link's thread is back from where it went at `since`.
    fn drive(&self, runtime: &Runtime, since: u64) {
        self.deputy.drives.store(true, Ordering::SeqCst);
        while self.since.load(Ordering::SeqCst) == since {
            runtime.block_on(self.deputy.back.notified());
        }
        self.deputy.drives.store(false, Ordering::SeqCst);
    }
}

/// Runs `work` in a runtime of its own on this thread, which leaves it for the jobs that
/// `work` has for it.
pub(super) fn serve<T: Send + 'static>(
    work: impl Future<Output = T> + Send + 'static,
    blocking: &Arc<Blocking>,
) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let runtime = Arc::new(runtime);
    let deputy = {
        let (blocking, runtime) = (blocking.clone(), runtime.clone());
        std::thread::Builder::new()
            .name("link-deputy".into())
            .spawn(move || blocking.stand_in(&runtime))
            .context("cannot start the deputy of the link's thread")?
    };
    // A task of its own: waking what is blocked on costs the runtime a look at its sockets
    // first, each time.
    let mut work = runtime.spawn(work);
    let mut answer: Option<Answer> = None;
    let ended = loop {
        let next = runtime.block_on(async {
            if let Some(answer) = answer.take() {
                answer();
            }
            tokio::select! {
                biased;
                job = blocking.next() => Ok(job),
                ended = &mut work => Err(ended),
            }
        });
        match next {
            Ok(job) => answer = Some(blocking.work(job)),
            Err(ended) => break ended,
        }
    };
    blocking.deputy.ends.store(true, Ordering::SeqCst);
    blocking.deputy.wake();
    let _ = deputy.join();
    ended.context("broke off")
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Instant;

    use super::{AWAY, Arc, Blocking, Duration, Ordering, SLOW, oneshot, serve};

    /// Longer than anything here takes.
    const PATIENCE: Duration = Duration::from_secs(60);

    #[test]
    fn jobs_run_on_the_threads_own_in_their_order_and_also_when_nobody_waits() {
        let blocking = Arc::<Blocking>::default();
        let here = std::thread::current().id();
        let (say, said) = mpsc::channel();
        let asks = blocking.clone();
        let order = serve(
            async move {
                let first = asks.run(|| std::thread::current().id()).await;
                let (given_up, second) = (say.clone(), say.clone());
                let job = asks.run(move || given_up.send(1).unwrap());
                // Begun, and given up before it is done.
                tokio::select! {
                    biased;
                    () = job => unreachable!("it cannot be done yet"),
                    () = std::future::ready(()) => {}
                }
                asks.run(move || second.send(2).unwrap()).await;
                asks.settled().await;
                first
            },
            &blocking,
        );
        assert_eq!(order.unwrap(), here);
        assert_eq!(said.iter().collect::<Vec<_>>(), [1, 2]);
    }

    #[test]
    fn tasks_go_on_while_the_thread_is_kept_and_again_by_itself_behind_that() {
        let blocking = Arc::<Blocking>::default();
        let (asks, here) = (blocking.clone(), std::thread::current().id());
        serve(
            async move {
                for round in 0..3 {
                    let (release, kept) = mpsc::channel::<()>();
                    let job = asks.run(move || kept.recv_timeout(PATIENCE));
                    // Timers run, and tasks do.
                    let other = async move {
                        tokio::time::sleep(AWAY).await;
                        let driver = tokio::spawn(async { std::thread::current().id() });
                        let driver = driver.await.unwrap();
                        release.send(()).unwrap();
                        driver
                    };
                    let (ended, driver) = tokio::join!(job, other);
                    assert_eq!(ended, Ok(()), "round {round}");
                    assert_ne!(driver, here, "round {round}");
                    // It may take a moment until the deputy has left.
                    let until = Instant::now() + PATIENCE;
                    while tokio::spawn(async { std::thread::current().id() })
                        .await
                        .unwrap()
                        != here
                    {
                        assert!(Instant::now() < until, "round {round}");
                        tokio::time::sleep(Duration::from_millis(1)).await;
                    }
                }
            },
            &blocking,
        )
        .unwrap();
    }

    #[test]
    fn nobody_waits_for_a_sync_and_a_slow_one_says_nothing_of_the_store() {
        let blocking = Arc::<Blocking>::default();
        let asks = blocking.clone();
        serve(
            async move {
                let (release, kept) = mpsc::channel::<()>();
                let (tell, told) = oneshot::channel();
                let sync = move || kept.recv_timeout(PATIENCE);
                asks.begin_sync(sync, |ended| tell.send(ended).unwrap());
                while asks.since.load(Ordering::SeqCst) == 0 {
                    tokio::task::yield_now().await;
                }
                asks.settled().await;
                assert!(asks.is_kept());
                tokio::time::sleep(SLOW).await;
                release.send(()).unwrap();
                assert_eq!(told.await.unwrap(), Ok(()));
                assert!(!asks.is_kept());
                assert!(!asks.is_slow());
            },
            &blocking,
        )
        .unwrap();
    }

    #[test]
    fn what_has_been_slow_is_done_outside_for_a_while() {
        let blocking = Blocking::default();
        assert!(!blocking.is_slow());
        assert_eq!(blocking.run_here(|| 7), 7);
        blocking.run_here(|| std::thread::sleep(SLOW));
        assert!(blocking.is_slow());
        let past = super::clock::now().0;
        blocking.slow_until.store(past, Ordering::Relaxed);
        assert!(!blocking.is_slow());
    }

    #[test]
    fn the_deputy_sleeps_when_nothing_is_done_and_wakes_up_for_what_is() {
        let blocking = Arc::<Blocking>::default();
        let asks = blocking.clone();
        serve(
            async move {
                for _ in 0..2 {
                    let until = Instant::now() + PATIENCE;
                    while !asks.deputy.sleeps.load(Ordering::SeqCst) {
                        assert!(Instant::now() < until);
                        tokio::time::sleep(AWAY).await;
                    }
                    let (release, kept) = mpsc::channel::<()>();
                    let job = asks.run(move || kept.recv_timeout(PATIENCE));
                    let other = async move {
                        tokio::time::sleep(AWAY).await;
                        release.send(()).unwrap();
                    };
                    assert_eq!(tokio::join!(job, other).0, Ok(()));
                }
            },
            &blocking,
        )
        .unwrap();
    }
}
