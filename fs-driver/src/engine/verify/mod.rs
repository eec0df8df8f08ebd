//! Verify: comparing the two copies while the application writes, believing no map
//! (see [`twinfold_protocol::verify`] for the two looks).
//!
//! One runs at a time, on the primary, in a thread of its own, which asks through a
//! stream of low priority ([`Asked`]) and through the op stream. It ends when all
//! is compared, when it is cancelled, when the peer is lost, and when nobody asks for
//! its result any more. A connection that is lost and replaced does not end it: what was
//! not answered is asked again.

mod read;
mod repairing;
mod report;
mod second;
mod walk;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use crossbeam::channel::{Receiver, Sender, unbounded};
use parking_lot::Mutex;
use serde::Serialize;
use tokio::sync::{Notify, mpsc};
use twinfold_protocol::handshake::Role;
use twinfold_protocol::ids::{Seq, SessionId};
use twinfold_protocol::marks::{DirtyMap, intents_of_marks};
use twinfold_protocol::primary::Link;
use twinfold_protocol::time::Instant;
use twinfold_protocol::verify::{Found, Question};
use twinfold_protocol::wire::{VerifyAnswer, VerifyRequest};

use super::{Engine, clock};
use report::{Finding, Place, Problem, Report};

/// What an object counts for beside its data, in bytes: reading its attributes takes about
/// as long as reading a block.
const OBJECT: u64 = 4096;

/// A verify whose result nobody asks for ends after this long: who started it was killed.
const LEASE: Duration = Duration::from_secs(60);

/// Findings told in one answer.
const PAGE: usize = 256;

/// How often to look whether to go on.
const LOOK: Duration = Duration::from_millis(50);

/// A question on its way to the link, and where the answer goes. Dropped: the line is gone.
#[derive(Debug)]
pub(crate) struct Asked {
    /// What is asked.
    pub(crate) request: VerifyRequest,
    /// Where the answer goes.
    pub(crate) answer: Sender<VerifyAnswer>,
}

/// How to verify.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct VerifyOptions {
    /// Move what differs to the secondary.
    pub repair: bool,
    /// Bytes to be read a second on each node, at most.
    pub limit: Option<u64>,
}

/// Why a verify did not compare everything.
#[derive(Debug, thiserror::Error)]
enum VerifyError {
    #[error("it was interrupted")]
    Cancelled,
    #[error("nobody asked for its result for {} s", LEASE.as_secs())]
    Abandoned,
    #[error("the peer was lost meanwhile; run it again when both nodes are paired")]
    PeerLost,
    #[error("the peer did not answer within {0} ms")]
    NoAnswer(u128),
    #[error("the peer's answer does not fit the question: {0}")]
    Unexpected(String),
    #[error("this node's store cannot be read: {0}")]
    Store(#[from] io::Error),
    #[error(
        "what differs is marked, but the peer did not leave to be brought up again; it is repaired \
         with the next resync"
    )]
    NotLeft,
    #[error(
        "what differs is marked, but its resync makes no progress or does not end; see `status`. It \
         is repaired when the nodes are paired again"
    )]
    NotRepaired,
}

/// How a verify stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum VerifyState {
    /// It finds out how much there is to do.
    Measuring,
    /// It compares.
    Comparing,
    /// What differs is being moved.
    Repairing,
    /// All is compared, and repaired if that was asked for.
    Done,
    /// It ended before that.
    Failed,
}

/// Numbers of a verify.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct VerifyStatus {
    /// How it stands.
    pub state: VerifyState,
    /// How much of it is done, 0 to 100.
    pub percent: f64,
    /// Bytes compared, on each node.
    pub compared_bytes: u64,
    /// Bytes compared per second so far.
    pub rate: f64,
    /// Seconds until it ends at this rate, if that can be said.
    pub seconds_left: Option<f64>,
    /// Things that differ.
    pub differences: u64,
    /// Of these, what a repair cannot move: it has no id on the primary.
    pub foreign: u64,
    /// Things that could not be read.
    pub unreadable: u64,
    /// Bytes moved by a repair.
    pub moved_bytes: u64,
    /// Why it ended too early.
    pub error: Option<String>,
}

/// Some of what a verify found.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct VerifyPage {
    /// Which verify it is.
    pub id: u64,
    /// Its numbers.
    pub status: VerifyStatus,
    /// Findings, from the position asked for on.
    pub findings: Vec<Finding>,
}

/// A verify that runs or ran.
#[derive(Debug)]
struct Run {
    id: u64,
    options: VerifyOptions,
    cancelled: AtomicBool,
    begun: Instant,
    /// When somebody last asked for the result.
    asked: AtomicU64,
    whole: AtomicU64,
    weight: AtomicU64,
    read: AtomicU64,
    moved: AtomicU64,
    ended: Mutex<Option<Instant>>,
    state: Mutex<(VerifyState, Option<String>)>,
    report: Mutex<Report>,
}

/// An answer of the second look; none when it was lost with a connection.
type Answered = (Seq, Option<Found>);

/// What the engine keeps of verifies.
#[derive(Debug, Default)]
pub(crate) struct Verify {
    current: Mutex<Option<Arc<Run>>>,
    /// Where the answers of the second look go.
    answers: Mutex<Option<Sender<Answered>>>,
    /// Questions of the first look, for the link to take.
    line: Mutex<Option<mpsc::Receiver<Asked>>>,
    line_there: Notify,
    /// The session that is to be ended so that it is brought up again.
    rejoin: Mutex<Option<SessionId>>,
    rejoin_there: Notify,
}

impl Verify {
    pub(super) fn answered(&self, seq: Seq, found: Option<Found>) {
        if let Some(answers) = &*self.answers.lock() {
            let _ = answers.send((seq, found));
        }
    }

    /// No more come in than questions are in the op stream.
    fn listen(&self) -> Receiver<Answered> {
        let (tx, rx) = unbounded();
        *self.answers.lock() = Some(tx);
        rx
    }

    /// A line for the questions of the first look: the connection takes it that is there, or
    /// the next one.
    fn open_line(&self) -> mpsc::Sender<Asked> {
        let (questions, line) = mpsc::channel(1);
        *self.line.lock() = Some(line);
        self.line_there.notify_one();
        questions
    }

    /// The questions of a verify that begins, or goes on over another connection.
    pub(crate) async fn line(&self) -> mpsc::Receiver<Asked> {
        loop {
            let there = self.line_there.notified();
            if let Some(line) = self.line.lock().take() {
                return line;
            }
            there.await;
        }
    }

    /// The secondary of this session shall leave, and come back to be brought up again.
    pub(super) fn ask_to_rejoin(&self, session: SessionId) {
        *self.rejoin.lock() = Some(session);
        self.rejoin_there.notify_one();
    }

    /// Returns when the secondary of this session shall leave and come back.
    pub(crate) async fn rejoin(&self, session: SessionId) {
        loop {
            let there = self.rejoin_there.notified();
            if self.rejoin.lock().take_if(|s| *s == session).is_some() {
                return;
            }
            there.await;
        }
    }
}

impl Run {
    fn new(id: u64, options: VerifyOptions) -> Run {
        Run {
            id,
            options,
            cancelled: AtomicBool::new(false),
            begun: clock::now(),
            asked: AtomicU64::new(clock::now().0),
            whole: AtomicU64::new(0),
            weight: AtomicU64::new(0),
            read: AtomicU64::new(0),
            moved: AtomicU64::new(0),
            ended: Mutex::default(),
            state: Mutex::new((VerifyState::Measuring, None)),
            report: Mutex::default(),
        }
    }

    /// Fails when it shall not go on.
    fn check(&self) -> Result<(), VerifyError> {
        if self.cancelled.load(Ordering::Relaxed) {
            return Err(VerifyError::Cancelled);
        }
        let asked = Instant(self.asked.load(Ordering::Relaxed));
        match clock::now().since(asked) > LEASE {
            true => Err(VerifyError::Abandoned),
            false => Ok(()),
        }
    }

    fn progress(&self, weight: u64) {
        self.weight.fetch_add(weight, Ordering::Relaxed);
    }

    /// Waits as long as the limit asks for before so many more bytes are read. `lost`: the
    /// peer is.
    fn within_limit(&self, bytes: u64, lost: impl Fn() -> bool) -> Result<(), VerifyError> {
        if let Some(limit) = self.options.limit {
            let due = self.read.load(Ordering::Relaxed) as f64 / limit.max(1) as f64;
            let due = self.begun.after(Duration::from_secs_f64(due.min(1e9)));
            while clock::now() < due {
                self.check()?;
                if lost() {
                    return Err(VerifyError::PeerLost);
                }
                std::thread::sleep(due.since(clock::now()).min(LOOK));
            }
        }
        self.read.fetch_add(bytes, Ordering::Relaxed);
        Ok(())
    }

    fn found(&self, engine: &Arc<Engine>, question: &Question, place: &Place, problem: Problem) {
        let finding = report::finding(engine, question, place, &problem);
        tracing::warn!(path = finding.path, "verify: {}", finding.text);
        self.report.lock().add(finding);
    }

    fn set(&self, state: VerifyState) {
        self.state.lock().0 = state;
    }

    fn is_running(&self) -> bool {
        !matches!(self.state.lock().0, VerifyState::Done | VerifyState::Failed)
    }

    fn status(&self) -> VerifyStatus {
        let (state, error) = self.state.lock().clone();
        let report = self.report.lock();
        let until = self.ended.lock().unwrap_or_else(clock::now);
        let seconds = until.since(self.begun).as_secs_f64().max(0.001);
        let weight = self.weight.load(Ordering::Relaxed);
        let whole = self.whole.load(Ordering::Relaxed);
        let read = self.read.load(Ordering::Relaxed);
        let comparing = state == VerifyState::Comparing;
        VerifyStatus {
            state,
            percent: match state {
                VerifyState::Measuring => 0.0,
                VerifyState::Done | VerifyState::Repairing => 100.0,
                _ => (100.0 * weight as f64 / whole.max(1) as f64).min(99.9),
            },
            compared_bytes: read,
            rate: read as f64 / seconds,
            seconds_left: (comparing && weight > 0)
                .then(|| whole.saturating_sub(weight) as f64 * seconds / weight as f64),
            differences: report.differences,
            foreign: report.foreign,
            unreadable: report.unreadable,
            moved_bytes: self.moved.load(Ordering::Relaxed),
            error,
        }
    }
}

impl Engine {
    /// How long the peer may take for one answer: as long as its disk may take for a sync.
    fn verify_patience(&self) -> Duration {
        Duration::from_millis(self.settings.sync_ms)
    }

    /// Begins to compare the copies; returns the number of this verify.
    pub fn verify_start(self: &Arc<Self>, options: VerifyOptions) -> anyhow::Result<u64> {
        match self.role() {
            Some(Role::Primary) => {}
            Some(Role::Secondary) => anyhow::bail!(
                "this node is secondary: run `verify` on the primary, which compares the peer's \
                 copy with its own"
            ),
            None => anyhow::bail!("this node is starting or stopping"),
        }
        let mut current = self.verify.current.lock();
        if current.as_ref().is_some_and(|run| run.is_running()) {
            anyhow::bail!("a verify runs already");
        }
        let session = {
            let core = self.core.lock();
            match (core.link(), core.session()) {
                (Link::Paired, Some(session)) => session,
                _ => anyhow::bail!(
                    "the nodes are not paired: there is nothing to compare with. See `status`"
                ),
            }
        };
        let id = current.as_ref().map_or(1, |run| run.id + 1);
        let run = Arc::new(Run::new(id, options));
        let (engine, running) = (self.clone(), run.clone());
        std::thread::Builder::new()
            .name("verify".into())
            .spawn(move || engine.verify_all(&running, session))?;
        *current = Some(run);
        Ok(id)
    }

    /// How the running or last verify stands, and what it found from position `from` on.
    pub fn verify_poll(&self, from: usize) -> anyhow::Result<VerifyPage> {
        let current = self.verify.current.lock().clone();
        let Some(run) = current else {
            anyhow::bail!("no verify has run since the driver started");
        };
        run.asked.store(clock::now().0, Ordering::Relaxed);
        // First the numbers: the findings are then at least those that were counted.
        let status = run.status();
        let report = run.report.lock();
        let findings = report.findings.iter().skip(from).take(PAGE).cloned();
        Ok(VerifyPage {
            id: run.id,
            status,
            findings: findings.collect(),
        })
    }

    /// Whether the peer's copy is known to differ from this primary's.
    pub fn peer_differs(&self) -> bool {
        !self.core.lock().differing().is_empty()
    }

    /// Ends the running verify. False when none runs.
    pub fn verify_cancel(&self) -> bool {
        match &*self.verify.current.lock() {
            Some(run) if run.is_running() => {
                run.cancelled.store(true, Ordering::Relaxed);
                true
            }
            _ => false,
        }
    }

    /// The numbers of the running or last verify.
    pub(super) fn verify_status(&self) -> Option<VerifyStatus> {
        self.verify.current.lock().as_ref().map(|run| run.status())
    }

    fn verify_all(self: &Arc<Self>, run: &Run, session: SessionId) {
        let ended = self
            .verify_compare(run, session)
            .and_then(|()| match run.options.repair {
                true => self.verify_repair(run, session),
                false => Ok(()),
            });
        *run.ended.lock() = Some(clock::now());
        let status = run.status();
        let mut state = run.state.lock();
        *state = match ended {
            Ok(()) => {
                tracing::info!(
                    differences = status.differences,
                    unreadable = status.unreadable,
                    bytes = status.compared_bytes,
                    "the verify has ended"
                );
                (VerifyState::Done, None)
            }
            Err(e) => {
                tracing::warn!(error = %e, "the verify did not end");
                (VerifyState::Failed, Some(e.to_string()))
            }
        };
    }

    fn verify_compare(self: &Arc<Self>, run: &Run, session: SessionId) -> Result<(), VerifyError> {
        let whole = walk::measure(self, run)?;
        run.whole.store(whole, Ordering::Relaxed);
        run.set(VerifyState::Comparing);
        let second = second::Second::new(self, run, session);
        let compared = walk::Walk::new(self, run, second).run();
        *self.verify.answers.lock() = None;
        *self.verify.line.lock() = None;
        compared
    }

    /// The peer's copy differs in what was asked: that is noted first, for neither node may
    /// forget it in a crash. Without room for the note it is known for as long as this node
    /// runs, like what a full disk refuses to take.
    fn found_to_differ(&self, asked: Question, marks: DirtyMap) {
        // A checkpoint that lets the note go waits for the mark, and saves it.
        let pass = self.gate.enter();
        let mut notes = Vec::new();
        intents_of_marks(&marks, |note| notes.push(note));
        if let Err(error) = self.note(&notes) {
            tracing::warn!(%error, "what differs from the peer's copy cannot be noted");
        }
        let mut core = self.core.lock();
        core.differs(clock::now(), clock::wall(), asked, |map| map.unite(marks));
        drop(core);
        drop(pass);
        self.output.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use twinfold_protocol::ids::FileId;
    use twinfold_protocol::marks::Intent;

    use super::super::bed::{opened, paired};
    use super::*;

    /// The power of both nodes may be cut before anybody repairs it.
    #[test]
    fn what_is_found_to_differ_is_noted_before_it_is_marked() {
        let (engine, _place) = opened(true);
        engine.start_primary(false).unwrap();
        paired(&engine);
        let file = FileId(5000);
        let question = Question::Data {
            file,
            offset: 8192,
            length: 4096,
        };
        let mut marks = DirtyMap::default();
        marks.mark_data(file, 8192, 4096);
        engine.found_to_differ(question, marks);
        assert!(engine.peer_differs());
        assert!(engine.intents.is_hot(Intent::Extent { file, extent: 0 }));
    }
}
