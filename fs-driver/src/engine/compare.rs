//! Comparing before a resync: what [`twinfold_protocol::compare`] reads and asks.

use std::collections::VecDeque;
use std::io;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use twinfold_protocol::attr::Kind;
use twinfold_protocol::compare::{self, Answers, Held, HowFar, Source};
use twinfold_protocol::handshake::Method;
use twinfold_protocol::ids::FileId;
use twinfold_protocol::limits;
use twinfold_protocol::marks::{DirtyMap, Intent, Names};
use twinfold_protocol::op::Name;
use twinfold_protocol::wire::{CompareAnswer, CompareRequest, MatchEntry};

use super::hashing::{Hashed, hash_blocks, hashers};
use super::{Engine, clock};
use crate::store::Node;

/// The longest sleep for the limit's sake before it is looked at again.
const STEP: Duration = Duration::from_millis(20);

/// The way to the secondary: questions out, answers in the same order back. Both ends
/// are closed when the connection is gone.
#[derive(Debug)]
pub(crate) struct Ask {
    /// Bounded by what may be under way ([`limits::MAX_COMPARE_QUESTIONS`]).
    pub(crate) questions: tokio::sync::mpsc::Sender<CompareRequest>,
    /// The answers.
    pub(crate) answers: Receiver<CompareAnswer>,
}

/// What is looked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Look {
    /// What the method says.
    By(Method),
    /// What lies under the same path: the target is a seed.
    Paths,
}

impl Engine {
    /// Turns what may differ into marks of what does. Returns the bytes of the files that
    /// the target lacks altogether.
    pub(super) fn compare(
        &self,
        look: Look,
        noted: impl IntoIterator<Item = Intent>,
        marks: &DirtyMap,
        ask: &Ask,
    ) -> io::Result<u64> {
        let (work, jobs) = crossbeam::channel::unbounded::<Job>();
        std::thread::scope(|scope| {
            for n in 0..hashers() {
                let jobs = jobs.clone();
                std::thread::Builder::new()
                    .name(format!("hash-{n}"))
                    .spawn_scoped(scope, move || {
                        for job in jobs {
                            // Nobody waits for it when the comparison has broken off.
                            let _ = job.done.send(self.hash_here(&job));
                        }
                    })?;
            }
            let mut here = Here {
                engine: self,
                ask,
                work,
                pending: VecDeque::new(),
                missing: 0,
            };
            match look {
                Look::By(method) => compare::compare(&mut here, method, noted, marks)?,
                Look::Paths => compare::compare_seed(&mut here)?,
            }
            Ok(here.missing)
        })
    }

    fn hash_here(&self, job: &Job) -> io::Result<Option<Hashed>> {
        match self.store.object(job.file)? {
            Some(node) if node.kind() == Kind::Regular => {
                let length = u64::from(job.blocks) * limits::BLOCK;
                self.make_sure(&node, job.offset, length)?;
                let hashed = hash_blocks(&self.store, &node, job.offset, job.blocks)?;
                self.pace.spent(clock::now(), hashed.read);
                Ok(Some(hashed))
            }
            _ => Ok(None),
        }
    }
}

/// Something to hash here while the target does the same. There are never more than
/// questions under way.
#[derive(Debug)]
struct Job {
    file: FileId,
    offset: u64,
    blocks: u32,
    done: Sender<io::Result<Option<Hashed>>>,
}

/// This node's copy, as the source of a comparison.
struct Here<'a> {
    engine: &'a Engine,
    ask: &'a Ask,
    work: crossbeam::channel::Sender<Job>,
    /// For each question under way what is hashed here for it.
    pending: VecDeque<Option<Receiver<io::Result<Option<Hashed>>>>>,
    missing: u64,
}

fn gone() -> io::Error {
    io::ErrorKind::ConnectionAborted.into()
}

fn held(node: &Node) -> io::Result<Held> {
    let size = match node.kind() {
        Kind::Regular => node.size()?,
        _ => 0,
    };
    Ok(Held {
        file: node.file(),
        kind: node.kind(),
        size,
    })
}

impl Source for Here<'_> {
    type Error = io::Error;

    fn look(&mut self, file: FileId) -> io::Result<Option<Held>> {
        let node = self.engine.store.object(file)?;
        node.map(|node| held(&node)).transpose()
    }

    fn find(&mut self, directory: FileId, name: &Name) -> io::Result<Option<FileId>> {
        match self.engine.store.object(directory)? {
            Some(node) if node.kind() == Kind::Directory => {
                Ok(self.engine.store.find_own(&node, name)?.map(|n| n.file()))
            }
            _ => Ok(None),
        }
    }

    fn list(&mut self, directory: FileId) -> io::Result<Vec<Held>> {
        let mut all = Vec::new();
        if let Some(node) = self.engine.store.object(directory)?
            && node.kind() == Kind::Directory
        {
            self.engine.store.each(&node, |_, entry| {
                all.push(held(&entry)?);
                Ok(())
            })?;
        }
        Ok(all)
    }

    fn entries(&mut self, directory: FileId) -> io::Result<Vec<MatchEntry>> {
        let mut all = Vec::new();
        if let Some(node) = self.engine.store.object(directory)?
            && node.kind() == Kind::Directory
        {
            self.engine.store.each(&node, |name, entry| {
                all.push(MatchEntry {
                    name,
                    file: entry.file(),
                    kind: entry.kind(),
                });
                Ok(())
            })?;
        }
        Ok(all)
    }

    fn ids(&mut self, first: FileId) -> io::Result<Vec<FileId>> {
        self.engine.store.ids().present(first, limits::ID_BLOCK)
    }

    fn ask(&mut self, request: CompareRequest) -> io::Result<()> {
        let mut mine = None;
        if let CompareRequest::Blocks {
            file,
            offset,
            blocks,
        } = request
        {
            // What was hashed so far is paid for before more is.
            let wait = self.engine.pace.wait(clock::now());
            if !wait.is_zero() {
                self.pause(wait)?;
            }
            let (done, hashed) = channel();
            mine = Some(hashed);
            let job = Job {
                file,
                offset,
                blocks,
                done,
            };
            self.work.send(job).map_err(|_| gone())?;
        }
        let asked = self.ask.questions.blocking_send(request);
        asked.map_err(|_| gone())?;
        self.pending.push_back(mine);
        Ok(())
    }

    fn answer(&mut self) -> io::Result<Answers> {
        let mine = match self.pending.pop_front().flatten() {
            Some(hashed) => hashed.recv().map_err(|_| gone())??,
            None => None,
        };
        let theirs = self.ask.answers.recv().map_err(|_| gone())?;
        Ok(Answers {
            theirs,
            mine: mine.map(|m| (m.size, m.hashes)),
        })
    }

    fn unexpected(&mut self, answer: &CompareAnswer) -> io::Error {
        let what = match answer {
            CompareAnswer::Missing => "nothing",
            CompareAnswer::Hashes { .. } => "hashes",
            CompareAnswer::Present { .. } => "what it has",
        };
        io::Error::new(
            io::ErrorKind::InvalidData,
            format!("the peer's answer does not fit the question: it tells {what}"),
        )
    }

    fn watch(&mut self, watch: bool) {
        self.engine.core.lock().watch_moves(watch);
    }

    fn moved(&mut self) -> Vec<FileId> {
        // A rename is done in the store before it has its place.
        let _names = self.engine.names.lock();
        self.engine.core.lock().take_moved()
    }

    fn named(&mut self, after: Option<FileId>) -> Option<(FileId, Names)> {
        // One at a time: writes wait for this lock.
        let core = self.engine.core.lock();
        let (directory, names) = core.dirty().next_directory(after)?;
        Some((directory, names.clone()))
    }

    fn mark(&mut self, change: impl FnOnce(&mut DirtyMap)) {
        self.engine.core.lock().mark(change);
    }

    fn progress(&mut self, far: HowFar) {
        self.missing = far.missing;
        let now = clock::now();
        self.engine.tracker.compared(now, far.done, far.known);
    }
}

impl Here<'_> {
    /// Waits for the limit, as long as the connection is there.
    fn pause(&self, wait: Duration) -> io::Result<()> {
        let mut wait = wait;
        // In steps: the limit may be changed, and the peer may be lost.
        while !wait.is_zero() {
            if self.ask.questions.is_closed() {
                return Err(gone());
            }
            std::thread::sleep(wait.min(STEP));
            wait = self.engine.pace.wait(clock::now());
        }
        Ok(())
    }
}
