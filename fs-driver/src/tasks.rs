//! Tasks of the link that a thread in a hurry carries on itself.
//!
//! Whoever wakes a task of a runtime hands over to the runtime's thread, which has to be
//! woken first, on another core. A thread that has one op for the wire would wait for that
//! longer than for all the rest. Inside [`carry`], tasks that this module has spawned are
//! not handed over when they are woken: the calling thread polls them.
//!
//! Every wake is followed by a poll that begins after it, as with any runtime: by the
//! caller of [`carry`], or, where somebody else polls the task at that moment or the caller
//! has done enough, by the runtime.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};

use parking_lot::Mutex;
use tokio::runtime::Handle;

/// Polls that one call of [`carry`] does at most: a task that hands frames over, the one
/// that sends them, and once more each.
const MOST_POLLS: usize = 4;

type Work = Pin<Box<dyn Future<Output = ()> + Send>>;

thread_local! {
    /// Inside [`carry`]: the tasks that were woken on this thread.
    static WOKEN: RefCell<Option<VecDeque<Arc<Task>>>> = const { RefCell::new(None) };
}

struct Task {
    /// Nothing when it is over.
    work: Mutex<Option<Work>>,
    /// The runtime's task that stands for it.
    outer: Mutex<Option<Waker>>,
    runtime: Handle,
}

impl Task {
    fn new(work: impl Future<Output = ()> + Send + 'static) -> Arc<Task> {
        Arc::new(Task {
            work: Mutex::new(Some(Box::pin(work))),
            outer: Mutex::default(),
            runtime: Handle::current(),
        })
    }

    /// Has the runtime poll it.
    fn hand_over(&self) {
        if let Some(outer) = &*self.outer.lock() {
            outer.wake_by_ref();
        }
    }

    /// Polls it, under its lock.
    fn poll(self: &Arc<Task>, work: &mut Option<Work>) -> Poll<()> {
        let Some(running) = work else {
            return Poll::Ready(());
        };
        let waker = Waker::from(self.clone());
        let polled = running.as_mut().poll(&mut Context::from_waker(&waker));
        if polled.is_ready() {
            *work = None;
        }
        polled
    }

    /// Polls it on a thread that is not the runtime's.
    fn carry(self: &Arc<Task>) {
        let Some(mut work) = self.work.try_lock() else {
            return self.hand_over();
        };
        let _inside = self.runtime.enter();
        let over = self.poll(&mut work).is_ready();
        drop(work);
        if over {
            self.hand_over();
        }
    }

    fn end(&self) {
        let work = self.work.lock().take();
        // Not under the lock: it may wake others.
        drop(work);
    }
}

impl Wake for Task {
    fn wake(self: Arc<Task>) {
        Wake::wake_by_ref(&self);
    }

    fn wake_by_ref(self: &Arc<Task>) {
        // A thread that is about to end has none any more.
        let kept = WOKEN.try_with(|woken| match &mut *woken.borrow_mut() {
            Some(woken) => {
                woken.push_back(self.clone());
                true
            }
            None => false,
        });
        if !kept.unwrap_or(false) {
            self.hand_over();
        }
    }
}

/// What the runtime runs of it; its end ends it.
struct Outer(Arc<Task>);

impl Future for Outer {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let task = &self.0;
        {
            let mut outer = task.outer.lock();
            if outer.as_ref().is_none_or(|w| !w.will_wake(cx.waker())) {
                *outer = Some(cx.waker().clone());
            }
        }
        task.poll(&mut task.work.lock())
    }
}

impl Drop for Outer {
    fn drop(&mut self) {
        self.0.end();
    }
}

/// A task that ends with this value, at the latest.
pub(crate) struct Running(Arc<Task>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.end();
        self.0.hand_over();
    }
}

/// Spawns a task on the current runtime that ends with the value returned.
pub(crate) fn spawn(work: impl Future<Output = ()> + Send + 'static) -> Running {
    let task = Task::new(work);
    tokio::spawn(Outer(task.clone()));
    Running(task)
}

/// The same, but it runs until its own end.
pub(crate) fn spawn_detached(work: impl Future<Output = ()> + Send + 'static) {
    tokio::spawn(Outer(Task::new(work)));
}

/// Calls `wake`, and carries on what it wakes.
pub(crate) fn carry(wake: impl FnOnce()) {
    /// Hands over what is left, whatever happened.
    struct Rest;
    impl Drop for Rest {
        fn drop(&mut self) {
            for task in WOKEN.take().unwrap_or_default() {
                task.hand_over();
            }
        }
    }
    if WOKEN.with_borrow(Option::is_some) {
        return wake(); // Carried already.
    }
    WOKEN.set(Some(VecDeque::with_capacity(MOST_POLLS)));
    let _rest = Rest;
    wake();
    for _ in 0..MOST_POLLS {
        let next = WOKEN.with_borrow_mut(|woken| woken.as_mut()?.pop_front());
        match next {
            Some(task) => task.carry(),
            None => return,
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::HashSet;
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
    use std::sync::mpsc;
    use std::thread::ThreadId;
    use std::time::{Duration, Instant};

    use tokio::sync::Notify;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(60);

    /// A runtime on a thread of its own, as the link has one, until this is dropped.
    pub(crate) struct Bed {
        pub(crate) handle: Handle,
        stop: Arc<Notify>,
        thread: Option<std::thread::JoinHandle<()>>,
    }

    impl Bed {
        pub(crate) fn new() -> Bed {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            let (handle, stop) = (runtime.handle().clone(), Arc::new(Notify::new()));
            let stopped = stop.clone();
            let thread = std::thread::spawn(move || runtime.block_on(stopped.notified()));
            Bed {
                handle,
                stop,
                thread: Some(thread),
            }
        }

        pub(crate) fn runtime_thread(&self) -> ThreadId {
            self.thread.as_ref().unwrap().thread().id()
        }
    }

    impl Drop for Bed {
        fn drop(&mut self) {
            self.stop.notify_one();
            self.thread.take().unwrap().join().unwrap();
        }
    }

    /// A task that says on which thread it was each time it was woken.
    fn teller(bed: &Bed, wake: &Arc<Notify>) -> (Running, mpsc::Receiver<ThreadId>) {
        let (tell, told) = mpsc::channel();
        let wake = wake.clone();
        let _inside = bed.handle.enter();
        let running = spawn(async move {
            loop {
                let _ = tell.send(std::thread::current().id());
                wake.notified().await;
            }
        });
        (running, told)
    }

    #[test]
    fn a_task_is_carried_by_the_thread_that_wakes_it() {
        let (bed, wake) = (Bed::new(), Arc::new(Notify::new()));
        let (_running, told) = teller(&bed, &wake);
        assert_eq!(told.recv_timeout(PATIENCE), Ok(bed.runtime_thread()));
        // It may still be on its way to where it waits.
        let me = std::thread::current().id();
        let until = Instant::now() + PATIENCE;
        loop {
            carry(|| wake.notify_one());
            if told.recv_timeout(PATIENCE) == Ok(me) {
                break;
            }
            assert!(Instant::now() < until);
        }
        carry(|| wake.notify_one());
        assert_eq!(told.try_recv(), Ok(me), "before the call returned");
        wake.notify_one();
        assert_eq!(told.recv_timeout(PATIENCE), Ok(bed.runtime_thread()));
    }

    #[test]
    fn what_a_carried_task_wakes_is_carried_too() {
        let (bed, first, second) = (Bed::new(), Arc::new(Notify::new()), Arc::new(Notify::new()));
        let (_running, told) = teller(&bed, &second);
        told.recv_timeout(PATIENCE).unwrap();
        let (one, other) = (first.clone(), second.clone());
        let _inside = bed.handle.enter();
        let _between = spawn(async move {
            loop {
                one.notified().await;
                other.notify_one();
            }
        });
        let me = std::thread::current().id();
        let until = Instant::now() + PATIENCE;
        loop {
            carry(|| first.notify_one());
            if told.recv_timeout(PATIENCE) == Ok(me) {
                return;
            }
            assert!(Instant::now() < until);
        }
    }

    #[test]
    fn no_wake_is_lost_between_threads_that_carry_and_the_runtime() {
        const THREADS: u64 = 4;
        const EACH: u64 = 20_000;
        let bed = Bed::new();
        let (wake, queue) = (Arc::new(Notify::new()), Arc::new(Mutex::new(Vec::new())));
        let done = Arc::new(Mutex::new(HashSet::new()));
        let (from, into, woken) = (queue.clone(), done.clone(), wake.clone());
        let inside = bed.handle.enter();
        let _running = spawn(async move {
            loop {
                let more = woken.notified();
                let taken = std::mem::take(&mut *from.lock());
                match taken.is_empty() {
                    true => more.await,
                    false => into.lock().extend(taken),
                }
            }
        });
        drop(inside);
        std::thread::scope(|scope| {
            for thread in 0..THREADS {
                let (queue, wake, done) = (&queue, &wake, &done);
                scope.spawn(move || {
                    for n in 0..EACH {
                        let item = thread * EACH + n;
                        queue.lock().push(item);
                        match n % 3 {
                            0 => wake.notify_one(),
                            _ => carry(|| wake.notify_one()),
                        }
                        // Nobody else wakes it for this one.
                        let until = Instant::now() + PATIENCE;
                        while n % 100 == 0 && !done.lock().contains(&item) {
                            assert!(Instant::now() < until, "item {item} is forgotten");
                            std::thread::yield_now();
                        }
                    }
                });
            }
        });
        let until = Instant::now() + PATIENCE;
        while done.lock().len() as u64 != THREADS * EACH {
            assert!(Instant::now() < until);
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// A task each of whose polls says where it is, and lasts until it may go on.
    fn slow(bed: &Bed) -> (Running, mpsc::Receiver<(Waker, ThreadId)>, mpsc::Sender<()>) {
        let (tell, told) = mpsc::channel();
        let (go, may_go) = mpsc::channel();
        let _inside = bed.handle.enter();
        let running = spawn(std::future::poll_fn(move |cx| {
            let _ = tell.send((cx.waker().clone(), std::thread::current().id()));
            let _ = may_go.recv();
            Poll::Pending
        }));
        (running, told, go)
    }

    #[test]
    fn one_that_is_woken_while_the_runtime_polls_it_is_polled_again() {
        let bed = Bed::new();
        let (_running, told, go) = slow(&bed);
        for _ in 0..3 {
            let (waker, thread) = told.recv_timeout(PATIENCE).unwrap();
            assert_eq!(thread, bed.runtime_thread());
            carry(|| waker.wake_by_ref());
            go.send(()).unwrap();
        }
        told.recv_timeout(PATIENCE).unwrap();
        drop(go);
    }

    #[test]
    fn one_that_is_woken_while_a_thread_carries_it_is_polled_again() {
        for carried in [false, true] {
            let bed = Bed::new();
            let (_running, told, go) = slow(&bed);
            let (waker, _) = told.recv_timeout(PATIENCE).unwrap();
            go.send(()).unwrap();
            std::thread::scope(|scope| {
                // The runtime may still be about to end its poll.
                let carrier = loop {
                    let waker = waker.clone();
                    let carrier = scope.spawn(move || carry(|| waker.wake()));
                    let (_, thread) = told.recv_timeout(PATIENCE).unwrap();
                    if thread == carrier.thread().id() {
                        break carrier;
                    }
                    go.send(()).unwrap();
                    carrier.join().unwrap();
                };
                match carried {
                    true => carry(|| waker.wake_by_ref()),
                    false => waker.wake_by_ref(),
                }
                go.send(()).unwrap();
                carrier.join().unwrap();
            });
            let (_, thread) = told.recv_timeout(PATIENCE).unwrap();
            assert_eq!(thread, bed.runtime_thread());
            drop(go);
        }
    }

    #[test]
    fn one_that_always_wakes_itself_does_not_keep_the_caller() {
        let (bed, polls) = (Bed::new(), Arc::new(AtomicU64::new(0)));
        let (wake, ended) = (Arc::new(Notify::new()), Arc::new(AtomicBool::new(false)));
        let (count, woken, end) = (polls.clone(), wake.clone(), ended.clone());
        let _inside = bed.handle.enter();
        let _running = spawn(async move {
            woken.notified().await;
            std::future::poll_fn(|cx| {
                count.fetch_add(1, Ordering::SeqCst);
                cx.waker().wake_by_ref();
                match end.load(Ordering::SeqCst) {
                    true => Poll::Ready(()),
                    false => Poll::Pending,
                }
            })
            .await;
        });
        carry(|| wake.notify_one());
        // The runtime goes on with it.
        let until = Instant::now() + PATIENCE;
        while polls.load(Ordering::SeqCst) < 100 {
            assert!(Instant::now() < until);
            std::thread::yield_now();
        }
        ended.store(true, Ordering::SeqCst);
    }

    #[test]
    fn a_task_is_gone_when_what_holds_it_is() {
        let (bed, wake) = (Bed::new(), Arc::new(Notify::new()));
        let (running, told) = teller(&bed, &wake);
        told.recv_timeout(PATIENCE).unwrap();
        drop(running);
        // Its end of the channel went with it, before the drop returned.
        while told.try_recv() != Err(mpsc::TryRecvError::Disconnected) {
            assert_ne!(told.try_recv(), Err(mpsc::TryRecvError::Empty));
        }
        carry(|| wake.notify_one());
    }

    #[test]
    fn a_task_is_gone_when_the_runtime_is() {
        let (bed, wake) = (Bed::new(), Arc::new(Notify::new()));
        let (tell, told) = mpsc::channel::<()>();
        let own = wake.clone();
        let inside = bed.handle.enter();
        spawn_detached(async move {
            let _tell = tell;
            own.notified().await;
            std::future::pending().await
        });
        drop(inside);
        drop(bed);
        assert_eq!(
            told.recv_timeout(PATIENCE),
            Err(mpsc::RecvTimeoutError::Disconnected)
        );
        carry(|| wake.notify_one());
    }
}
