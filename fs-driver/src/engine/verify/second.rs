//! The second look: each suspicion again, with every change to it ordered around the
//! question. What differs then is reported and marked.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use crossbeam::channel::Receiver;
use twinfold_protocol::attr::Kind;
use twinfold_protocol::ids::{FileId, Seq, SessionId};
use twinfold_protocol::marks::DirtyMap;
use twinfold_protocol::primary::Link;
use twinfold_protocol::time::Instant;
use twinfold_protocol::verify::{self, Difference, Found, Lead, Question};

use super::super::{Engine, clock};
use super::report::{Place, Problem};
use super::{Answered, Run, VerifyError};

/// How long to wait for an answer before looking whether to go on.
const LOOK: Duration = Duration::from_millis(50);

/// What came of a try to ask.
enum Asked {
    /// Under this number; this is what is here, and whether the times count.
    As(Seq, Found, bool),
    /// It is not here any more.
    Gone,
    /// The peer has enough to do.
    Busy,
    /// There is no peer to ask.
    Lost,
}

struct Pending {
    question: Question,
    place: Place,
    mine: Found,
    times: bool,
    at: Instant,
}

pub(super) struct Second<'a> {
    engine: &'a Arc<Engine>,
    run: &'a Run,
    session: SessionId,
    answers: Receiver<Answered>,
    pending: HashMap<Seq, Pending>,
    /// To be asked again: their answers were lost.
    again: VecDeque<(Question, Place)>,
}

impl Engine {
    /// Reads what is here under the lock over it, and asks the peer at this place in the order.
    fn ask_in_order(&self, question: &Question) -> io::Result<Asked> {
        {
            let core = self.core.lock();
            match core.link() {
                Link::Paired if core.can_verify() => {}
                Link::Paired | Link::Bridging { .. } => return Ok(Asked::Busy),
                _ => return Ok(Asked::Lost),
            }
        }
        let submit = |mine: Found, times| {
            let mut core = self.core.lock();
            let seq = core.submit_verify(clock::now(), clock::wall(), question.clone());
            drop(core);
            match seq {
                Some(seq) => {
                    self.output.notify_one();
                    Asked::As(seq, mine, times)
                }
                None => Asked::Busy,
            }
        };
        match question {
            Question::Data {
                file,
                offset,
                length,
            } => {
                let Some(node) = self.store.object(*file)? else {
                    return Ok(Asked::Gone);
                };
                if node.kind() != Kind::Regular {
                    return Ok(Asked::Gone);
                }
                // The change that made it has its place in the order once this was free.
                drop(self.names.lock());
                let _range = node.ranges.lock(*offset, *length);
                if node.is_orphan() {
                    return Ok(Asked::Gone);
                }
                Ok(submit(self.found_of(&node, question)?, false))
            }
            Question::Object { file } => {
                let _settling = self.settling.lock();
                let _names = self.names.lock();
                let Some(node) = self.store.object(*file)? else {
                    return Ok(Asked::Gone);
                };
                let _whole = node.ranges.lock_all();
                if node.is_orphan() || self.store.peek(*file)?.is_none() {
                    return Ok(Asked::Gone);
                }
                // Times that are still to be shipped will be equal then.
                let times = !self.is_touched(*file);
                Ok(submit(self.found_of(&node, question)?, times))
            }
            Question::Listing { .. } => Ok(Asked::Gone),
            Question::Name { directory, .. } => {
                let _names = self.names.lock();
                match self.store.object(*directory)? {
                    Some(node) if node.kind() == Kind::Directory && !node.is_orphan() => {
                        Ok(submit(self.found_of(&node, question)?, false))
                    }
                    _ => Ok(Asked::Gone),
                }
            }
        }
    }
}

impl<'a> Second<'a> {
    pub(super) fn new(engine: &'a Arc<Engine>, run: &'a Run, session: SessionId) -> Second<'a> {
        Second {
            engine,
            run,
            session,
            answers: engine.verify.listen(),
            pending: HashMap::new(),
            again: VecDeque::new(),
        }
    }

    /// Looks at a suspicion again. Returns when the question is on its way.
    pub(super) fn look(&mut self, question: Question, place: Place) -> Result<(), VerifyError> {
        self.again.push_back((question, place));
        self.work_off()
    }

    /// Waits for everything that was asked.
    pub(super) fn finish(&mut self) -> Result<(), VerifyError> {
        loop {
            self.work_off()?;
            if self.pending.is_empty() {
                return Ok(());
            }
            self.take_answer()?;
        }
    }

    fn work_off(&mut self) -> Result<(), VerifyError> {
        while let Some((question, place)) = self.again.pop_front() {
            match self.engine.ask_in_order(&question) {
                Ok(Asked::As(seq, mine, times)) => {
                    let at = clock::now();
                    let pending = Pending {
                        question,
                        place,
                        mine,
                        times,
                        at,
                    };
                    self.pending.insert(seq, pending);
                }
                Ok(Asked::Gone) => {}
                Ok(Asked::Busy) => {
                    self.again.push_front((question, place));
                    self.take_answer()?;
                }
                Ok(Asked::Lost) => return Err(VerifyError::PeerLost),
                Err(e) => self.unreadable_here(&question, &place, &e),
            }
        }
        while let Ok((seq, found)) = self.answers.try_recv() {
            self.answered(seq, found)?;
        }
        Ok(())
    }

    /// Waits a moment for an answer.
    fn take_answer(&mut self) -> Result<(), VerifyError> {
        self.run.check()?;
        if let Ok((seq, found)) = self.answers.recv_timeout(LOOK) {
            return self.answered(seq, found);
        }
        if self.is_lost() {
            return Err(VerifyError::PeerLost);
        }
        // A peer that does not apply the question is dropped by other deadlines.
        let patience = self.engine.verify_patience();
        let oldest = self.pending.values().map(|p| p.at).min();
        match oldest {
            Some(at) if clock::now().since(at) > patience => {
                Err(VerifyError::NoAnswer(patience.as_millis()))
            }
            _ => Ok(()),
        }
    }

    /// Whether the session has ended, or the time is over in which its connection may come
    /// back.
    pub(super) fn is_lost(&self) -> bool {
        let core = self.engine.core.lock();
        let going_on = matches!(core.link(), Link::Paired | Link::Bridging { .. });
        core.session() != Some(self.session) || !going_on
    }

    /// Whether the connection is lost and may come back.
    pub(super) fn is_away(&self) -> bool {
        matches!(self.engine.core.lock().link(), Link::Bridging { .. })
    }

    fn answered(&mut self, seq: Seq, theirs: Option<Found>) -> Result<(), VerifyError> {
        let Some(pending) = self.pending.remove(&seq) else {
            return Ok(());
        };
        let Some(theirs) = theirs else {
            self.again.push_back((pending.question, pending.place));
            return Ok(());
        };
        if let Found::Failed(reason) = theirs {
            let problem = Problem::Unreadable {
                here: false,
                reason,
            };
            self.run
                .found(self.engine, &pending.question, &pending.place, problem);
            return Ok(());
        }
        let differences =
            verify::differences(&pending.question, &pending.mine, &theirs, pending.times)
                .ok_or_else(|| VerifyError::Unexpected(format!("{theirs:?}")))?;
        if let Question::Data { file, .. } = pending.question
            && !differences.is_empty()
        {
            self.is_on_disk(file)?;
        }
        self.report(pending, differences);
        Ok(())
    }

    /// What was compared is what this disk has, and it may have failed to take what was written
    /// since the last flush. Then this copy is not the one to be repaired from.
    fn is_on_disk(&self, file: FileId) -> Result<(), VerifyError> {
        let engine = self.engine;
        let Some(node) = engine.store.object(file)? else {
            return Ok(());
        };
        Ok(engine.sync_counted(|| engine.store.sync(&node, true))?)
    }

    fn report(&self, pending: Pending, differences: Vec<Difference>) {
        let Pending {
            question,
            place,
            mine,
            ..
        } = pending;
        // It has no id, so the peer cannot get it.
        if mine == Found::Name(Lead::Foreign) {
            return self
                .run
                .found(self.engine, &question, &place, Problem::Foreign);
        }
        for difference in differences {
            let asked = match (&question, &difference) {
                (Question::Data { file, .. }, Difference::Data { offset, length }) => {
                    Question::Data {
                        file: *file,
                        offset: *offset,
                        length: *length,
                    }
                }
                _ => question.clone(),
            };
            let one = [difference];
            let mut marks = DirtyMap::default();
            verify::mark(&mut marks, &question, &mine, &one);
            place.mark(&mut marks, &one);
            self.engine.found_to_differ(asked, marks);
            let [difference] = one;
            let problem = Problem::Differs(difference);
            self.run.found(self.engine, &question, &place, problem);
        }
    }

    pub(super) fn unreadable_here(&self, question: &Question, place: &Place, error: &io::Error) {
        let problem = Problem::Unreadable {
            here: true,
            reason: error.to_string(),
        };
        self.run.found(self.engine, question, place, problem);
    }
}
