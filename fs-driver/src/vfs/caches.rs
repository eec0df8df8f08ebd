//! What the kernel has cached of file contents, where it cannot know that they changed.
//!
//! - On a secondary the peer changes files behind the kernel's back: open files and
//!   mappings would go on showing what was read first.
//! - On a primary a direct write passes the page cache by. A reader through the cache
//!   may read the old bytes while the write is under way and leave them there for
//!   ever; before it sends an asynchronous write (and, up to Linux 6.16, any) is the
//!   only time when the kernel looks for them.
//!
//! So the kernel is told, after the change. It may wait for requests of its own that
//! this driver has to answer while it drops pages; so a thread that answers nothing
//! tells it, and whoever must know that it was told leaves a reply.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io;
use std::sync::Arc;

use parking_lot::{Condvar, Mutex};
use twinfold_protocol::ids::FileId;

type Reply = Box<dyn FnOnce() + Send>;

/// Makes the kernel drop the pages of a file from one byte up to another one.
pub type DropPages = Box<dyn Fn(FileId, u64, u64) + Send>;

/// What waits to be dropped.
#[derive(Default)]
pub(super) struct Caches {
    queue: Mutex<Queue>,
    woken: Condvar,
}

/// Bounded by the files that are open, and by the calls that wait.
#[derive(Default)]
struct Queue {
    waiting: HashMap<FileId, Pages>,
    served: bool,
    ended: bool,
}

struct Pages {
    start: u64,
    end: u64,
    replies: Vec<Reply>,
}

impl std::fmt::Debug for Caches {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Caches").finish_non_exhaustive()
    }
}

impl Caches {
    /// Starts the thread that tells the kernel. Until then there is nothing to drop.
    pub(super) fn serve(self: &Arc<Self>, drop_pages: DropPages) -> io::Result<()> {
        let caches = self.clone();
        self.queue.lock().served = true;
        std::thread::Builder::new()
            .name("caches".into())
            .spawn(move || caches.run(&drop_pages))?;
        Ok(())
    }

    fn run(&self, drop_pages: &DropPages) {
        loop {
            let mut queue = self.queue.lock();
            while queue.waiting.is_empty() {
                if queue.ended {
                    return;
                }
                self.woken.wait(&mut queue);
            }
            let waiting = std::mem::take(&mut queue.waiting);
            drop(queue);
            for (file, pages) in waiting {
                drop_pages(file, pages.start, pages.end);
                for reply in pages.replies {
                    reply();
                }
            }
        }
    }

    /// The pages with these bytes go soon, and then the reply, if there is one.
    pub(super) fn drop_pages(&self, file: FileId, start: u64, end: u64, reply: Option<Reply>) {
        let mut queue = self.queue.lock();
        if !queue.served || queue.ended {
            drop(queue);
            if let Some(reply) = reply {
                reply();
            }
            return;
        }
        match queue.waiting.entry(file) {
            Entry::Occupied(mut known) => {
                let pages = known.get_mut();
                pages.start = pages.start.min(start);
                pages.end = pages.end.max(end);
                pages.replies.extend(reply);
            }
            Entry::Vacant(new) => {
                new.insert(Pages {
                    start,
                    end,
                    replies: reply.into_iter().collect(),
                });
            }
        }
        drop(queue);
        self.woken.notify_one();
    }

    /// What waits is still served; then the thread ends.
    pub(super) fn end(&self) {
        self.queue.lock().ended = true;
        self.woken.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;

    #[test]
    fn a_reply_comes_after_its_pages_are_dropped_and_ranges_of_a_file_are_united() {
        let caches = Arc::new(Caches::default());
        let (tell, told) = channel();
        let note = |what: &str| {
            let (tell, what) = (tell.clone(), what.to_owned());
            Some(Box::new(move || tell.send(what).unwrap()) as Reply)
        };
        // Nobody is there whose pages could be old.
        caches.drop_pages(FileId(1), 0, 10, note("at once"));
        assert_eq!(told.try_recv().unwrap(), "at once");

        // The thread waits in its first call until both others are queued.
        let (go, gone) = channel::<()>();
        let kernel = tell.clone();
        let drop_pages = move |file: FileId, start, end| {
            gone.recv().unwrap();
            kernel.send(format!("{}: {start}-{end}", file.0)).unwrap();
        };
        caches.serve(Box::new(drop_pages)).unwrap();
        caches.drop_pages(FileId(1), 0, 10, note("first"));
        while !caches.queue.lock().waiting.is_empty() {
            std::thread::yield_now();
        }
        caches.drop_pages(FileId(2), 100, 200, note("second"));
        caches.drop_pages(FileId(2), 50, 120, None);
        caches.drop_pages(FileId(2), 300, 400, note("third"));
        caches.end();
        go.send(()).unwrap();
        go.send(()).unwrap();
        let heard: Vec<_> = (0..5).map(|_| told.recv().unwrap()).collect();
        assert_eq!(heard, ["1: 0-10", "first", "2: 50-400", "second", "third"]);
        caches.drop_pages(FileId(1), 0, 10, note("after the end"));
        assert_eq!(told.recv().unwrap(), "after the end");
    }
}
