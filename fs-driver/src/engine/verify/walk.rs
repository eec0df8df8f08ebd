//! The first look: the primary walks its own tree, and both nodes hash what is there,
//! without any order between them. What differs is looked at again.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use crossbeam::channel::{Receiver, RecvTimeoutError, bounded};
use roaring::RoaringTreemap;
use tokio::sync::mpsc::Sender;
use tokio::sync::mpsc::error::TrySendError;
use twinfold_protocol::attr::Kind;
use twinfold_protocol::ids::FileId;
use twinfold_protocol::limits;
use twinfold_protocol::time::Instant;
use twinfold_protocol::verify::{Digest, Hash, Lead, Question};
use twinfold_protocol::wire::{VerifyAnswer, VerifyRequest};

use super::super::{Engine, clock};
use super::read::entry_digest;
use super::report::{Place, Problem};
use super::second::Second;
use super::{Asked, OBJECT, Run, VerifyError};
use crate::store::Node;

/// Requests on their way at once: while one is answered here, others are there.
const IN_FLIGHT: usize = 4;

/// Bytes hashed for one request: a few milliseconds, so that both nodes work all the time
/// and a cancelled verify ends soon.
const BATCH: u64 = 4 << 20;

/// How long to wait for an answer before looking whether to go on.
const LOOK: Duration = Duration::from_millis(100);

/// Pause before a line that has no room for a question is looked at again.
const FULL: Duration = Duration::from_micros(200);

/// Pause before the questions are asked again over another connection: the one that broke
/// may still take them.
const AGAIN: Duration = Duration::from_millis(50);

/// Something to be compared.
struct Item {
    question: Question,
    place: Place,
    /// The object, unless the digest is known.
    object: Option<Arc<Node>>,
    mine: Option<io::Result<Digest>>,
    /// How much of the whole it is.
    weight: u64,
}

struct Flight {
    items: Vec<Item>,
    answer: Receiver<VerifyAnswer>,
}

pub(super) struct Walk<'a> {
    engine: &'a Arc<Engine>,
    run: &'a Run,
    line: Sender<Asked>,
    /// When the peer last answered, or was away with leave to come back.
    heard: Instant,
    second: Second<'a>,
    batch: Vec<Item>,
    covered: u64,
    hashed: u64,
    flights: VecDeque<Flight>,
    /// Objects that were looked at: each once, whatever names it has.
    visited: RoaringTreemap,
    directories: Vec<(FileId, Place)>,
    /// Directories whose listing is another one there.
    listings: VecDeque<FileId>,
}

/// What is counted against the limit and for the progress: the bytes that are read.
fn read_of(node: &Node) -> io::Result<u64> {
    let attributes = node.attributes()?;
    Ok(match attributes.kind {
        Kind::Regular => attributes.size.min(attributes.blocks.saturating_mul(512)),
        _ => 0,
    })
}

impl<'a> Walk<'a> {
    pub(super) fn new(engine: &'a Arc<Engine>, run: &'a Run, second: Second<'a>) -> Walk<'a> {
        Walk {
            engine,
            run,
            line: engine.verify.open_line(),
            heard: clock::now(),
            second,
            batch: Vec::new(),
            covered: 0,
            hashed: 0,
            flights: VecDeque::new(),
            visited: RoaringTreemap::new(),
            directories: Vec::new(),
            listings: VecDeque::new(),
        }
    }

    /// Compares everything.
    pub(super) fn run(mut self) -> Result<(), VerifyError> {
        // What is made while this runs is made by ops.
        let known = self.ids()?;
        self.object(FileId::ROOT, Place::Somewhere)?;
        self.below()?;
        // What was moved from where the walk had not been to where it had.
        for file in known {
            if !self.visited.contains(file) {
                self.object(FileId(file), Place::Somewhere)?;
                self.below()?;
            }
        }
        loop {
            self.flush()?;
            if let Some(directory) = self.listings.pop_front() {
                self.names(directory)?;
            } else if self.flights.is_empty() {
                break;
            } else {
                self.settle()?;
            }
        }
        self.second.finish()
    }

    fn ids(&self) -> Result<RoaringTreemap, VerifyError> {
        let (mut all, mut after) = (RoaringTreemap::new(), None);
        loop {
            self.run.check()?;
            let ids = self.engine.store.ids_after(after)?;
            let Some(last) = ids.last() else {
                return Ok(all);
            };
            after = Some(*last);
            all.extend(ids.iter().map(|file| file.0));
        }
    }

    /// Everything in the directories that are still to be looked at.
    fn below(&mut self) -> Result<(), VerifyError> {
        while let Some((directory, place)) = self.directories.pop() {
            if let Err(e) = self.directory(directory, &place)? {
                let question = Question::Listing { directory };
                self.second.unreadable_here(&question, &place, &e);
            }
            if let Some(directory) = self.listings.pop_front() {
                self.names(directory)?;
            }
        }
        Ok(())
    }

    /// The names of a directory and what they lead to. The inner error: it cannot be read.
    fn directory(
        &mut self,
        directory: FileId,
        place: &Place,
    ) -> Result<io::Result<()>, VerifyError> {
        let opened = self.engine.store.peek(directory).and_then(|node| {
            let node = node.filter(|n| n.kind() == Kind::Directory);
            node.map(|n| self.engine.store.open_directory(n))
                .transpose()
        });
        let handle = match opened {
            Ok(Some(handle)) => handle,
            Ok(None) => return Ok(Ok(())),
            Err(e) => return Ok(Err(e)),
        };
        let (mut sum, mut from) = (0u128, 0);
        loop {
            self.run.check()?;
            let page = self.engine.store.visit_page(&handle, from, usize::MAX);
            let (next, page) = match page {
                Ok(page) => page,
                Err(e) => return Ok(Err(e)),
            };
            for entry in page {
                sum = sum.wrapping_add(entry_digest(&entry.name, entry.lead));
                let name = entry.name;
                match (entry.lead, entry.object) {
                    (Lead::Object(file), Some(node)) => {
                        let parent = directory;
                        self.found(file, node, Place::Entry { parent, name })?;
                    }
                    // Whether it is one half-made is seen in its place in the order.
                    (Lead::Foreign, _) => {
                        let question = Question::Name { directory, name };
                        self.second.look(question, Place::Somewhere)?;
                    }
                    _ => {}
                }
            }
            if next == 0 {
                break;
            }
            from = next;
        }
        let mine: Hash = sum.to_le_bytes();
        self.push(Item {
            question: Question::Listing { directory },
            place: place.clone(),
            object: None,
            mine: Some(Ok(Digest::Is(mine))),
            weight: 0,
        })?;
        Ok(Ok(()))
    }

    fn object(&mut self, file: FileId, place: Place) -> Result<(), VerifyError> {
        match self.engine.store.peek(file) {
            Ok(Some(node)) => self.found(file, node, place),
            Ok(None) => Ok(()),
            Err(e) => {
                self.second
                    .unreadable_here(&Question::Object { file }, &place, &e);
                Ok(())
            }
        }
    }

    /// An object: its attributes, its data, and what lies in it.
    fn found(&mut self, file: FileId, node: Arc<Node>, place: Place) -> Result<(), VerifyError> {
        if !self.visited.insert(file.0) {
            return Ok(());
        }
        let question = Question::Object { file };
        self.push(Item {
            question: question.clone(),
            place: place.clone(),
            object: Some(node.clone()),
            mine: None,
            weight: OBJECT,
        })?;
        match node.kind() {
            Kind::Directory => self.directories.push((file, place)),
            Kind::Regular => {
                if let Err(e) = self.data(&node, &place)? {
                    self.second.unreadable_here(&question, &place, &e);
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn data(&mut self, node: &Arc<Node>, place: &Place) -> Result<io::Result<()>, VerifyError> {
        let file = node.file();
        let size = match node.size() {
            Ok(size) => size,
            Err(e) => return Ok(Err(e)),
        };
        let chunk = limits::VERIFY_CHUNK;
        let mut at = 0;
        while at < size {
            let data = match self.engine.store.next_data(node, at) {
                Ok(data) => data.unwrap_or(size).min(size),
                Err(e) => return Ok(Err(e)),
            };
            // A hole is one question, however long; most of it is never read.
            let hole = match data {
                data if data == size => size - at,
                data => (data - at) / chunk * chunk,
            };
            let (length, weight) = match hole {
                0 => {
                    let length = chunk.min(size - at);
                    (length, length)
                }
                hole => (hole.min(limits::MAX_VERIFY_BYTES), 0),
            };
            self.push(Item {
                question: Question::Data {
                    file,
                    offset: at,
                    length,
                },
                place: place.clone(),
                object: Some(node.clone()),
                mine: None,
                weight,
            })?;
            at += length;
        }
        Ok(Ok(()))
    }

    fn push(&mut self, item: Item) -> Result<(), VerifyError> {
        let (covers, reads) = match &item.question {
            Question::Data { length, .. } => (*length, item.weight),
            _ => (0, 0),
        };
        if self.covered + covers > limits::MAX_VERIFY_BYTES {
            self.flush()?;
        }
        self.covered += covers;
        self.hashed += reads;
        self.batch.push(item);
        if self.batch.len() >= limits::MAX_VERIFY_QUESTIONS || self.hashed >= BATCH {
            self.flush()?;
        }
        Ok(())
    }

    /// Asks what is in the batch, and looks at it here meanwhile.
    fn flush(&mut self) -> Result<(), VerifyError> {
        self.run.check()?;
        if self.batch.is_empty() {
            return Ok(());
        }
        self.run
            .within_limit(self.hashed, || self.second.is_lost())?;
        let mut items = std::mem::take(&mut self.batch);
        (self.covered, self.hashed) = (0, 0);
        let answer = self.send(&questions_of(&items))?;
        for item in &mut items {
            let Some(node) = item.object.take() else {
                continue;
            };
            item.mine = Some(self.engine.digest_of(&node, &item.question));
        }
        self.flights.push_back(Flight { items, answer });
        while self.flights.len() >= IN_FLIGHT {
            self.settle()?;
        }
        Ok(())
    }

    /// Puts a question on its way.
    fn send(&mut self, request: &VerifyRequest) -> Result<Receiver<VerifyAnswer>, VerifyError> {
        loop {
            if let Some(answered) = self.try_send(request)? {
                return Ok(answered);
            }
            self.open_again()?;
        }
    }

    /// The same; nothing when the line is gone.
    fn try_send(
        &mut self,
        request: &VerifyRequest,
    ) -> Result<Option<Receiver<VerifyAnswer>>, VerifyError> {
        let (answer, answered) = bounded(1);
        let mut asked = Asked {
            request: request.clone(),
            answer,
        };
        loop {
            match self.line.try_send(asked) {
                Ok(()) => return Ok(Some(answered)),
                Err(TrySendError::Closed(_)) => return Ok(None),
                Err(TrySendError::Full(back)) => {
                    self.may_go_on()?;
                    self.within_patience()?;
                    asked = back;
                    std::thread::sleep(FULL);
                }
            }
        }
    }

    /// Fails when nobody wants the result any more, or the peer will not answer.
    fn may_go_on(&self) -> Result<(), VerifyError> {
        self.run.check()?;
        match self.second.is_lost() {
            true => Err(VerifyError::PeerLost),
            false => Ok(()),
        }
    }

    /// The line is gone, and its questions with it. As long as the session may go on over
    /// another connection, they are asked again there.
    fn open_again(&mut self) -> Result<(), VerifyError> {
        loop {
            std::thread::sleep(AGAIN);
            self.may_go_on()?;
            self.within_patience()?;
            self.line = self.engine.verify.open_line();
            let requests: Vec<_> = self
                .flights
                .iter()
                .map(|f| questions_of(&f.items))
                .collect();
            let mut sent = Vec::new();
            for request in &requests {
                match self.try_send(request)? {
                    Some(answered) => sent.push(answered),
                    None => break,
                }
            }
            if sent.len() == self.flights.len() {
                for (flight, answer) in self.flights.iter_mut().zip(sent) {
                    flight.answer = answer;
                }
                return Ok(());
            }
        }
    }

    /// Fails when a peer that is there has not answered for too long.
    fn within_patience(&mut self) -> Result<(), VerifyError> {
        if self.second.is_away() {
            self.heard = clock::now();
        }
        // The link waits as long for each of the requests before it.
        let patience = self.engine.verify_patience() * IN_FLIGHT as u32;
        match clock::now().since(self.heard) > patience {
            true => Err(VerifyError::NoAnswer(patience.as_millis())),
            false => Ok(()),
        }
    }

    /// Waits for an answer; nothing when it was lost with the connection.
    fn wait(
        &mut self,
        answer: &Receiver<VerifyAnswer>,
    ) -> Result<Option<VerifyAnswer>, VerifyError> {
        loop {
            self.run.check()?;
            match answer.recv_timeout(LOOK) {
                Ok(answer) => {
                    self.heard = clock::now();
                    return Ok(Some(answer));
                }
                Err(RecvTimeoutError::Disconnected) => return Ok(None),
                Err(RecvTimeoutError::Timeout) => {
                    // A line that no connection has taken tells nothing of its end.
                    self.may_go_on()?;
                    self.within_patience()?;
                }
            }
        }
    }

    /// Asks, and waits for the answer, over as many connections as it takes.
    fn ask(&mut self, request: &VerifyRequest) -> Result<VerifyAnswer, VerifyError> {
        loop {
            let answered = self.send(request)?;
            if let Some(answer) = self.wait(&answered)? {
                return Ok(answer);
            }
            self.open_again()?;
        }
    }

    /// Compares the oldest answer.
    fn settle(&mut self) -> Result<(), VerifyError> {
        let answer = loop {
            let Some(answer) = self.flights.front().map(|f| f.answer.clone()) else {
                return Ok(());
            };
            match self.wait(&answer)? {
                Some(answer) => break answer,
                None => self.open_again()?,
            }
        };
        let Some(flight) = self.flights.pop_front() else {
            return Ok(());
        };
        let digests = match answer {
            VerifyAnswer::Digests(digests) if digests.len() == flight.items.len() => digests,
            other => return Err(VerifyError::Unexpected(format!("{other:?}"))),
        };
        for (item, theirs) in flight.items.into_iter().zip(digests) {
            self.run.progress(item.weight);
            let mine = match item.mine {
                Some(Ok(Digest::Is(mine))) => mine,
                // Gone meanwhile.
                None | Some(Ok(Digest::Missing | Digest::Failed(_))) => continue,
                Some(Err(e)) => {
                    self.second.unreadable_here(&item.question, &item.place, &e);
                    continue;
                }
            };
            match theirs {
                Digest::Is(theirs) if theirs == mine => {}
                Digest::Failed(reason) => {
                    let here = false;
                    let problem = Problem::Unreadable { here, reason };
                    self.run
                        .found(self.engine, &item.question, &item.place, problem);
                }
                theirs => self.suspect(item.question, item.place, theirs == Digest::Missing)?,
            }
        }
        Ok(())
    }

    fn suspect(
        &mut self,
        question: Question,
        place: Place,
        missing: bool,
    ) -> Result<(), VerifyError> {
        match question {
            Question::Listing { directory } if missing => {
                let file = directory;
                self.second.look(Question::Object { file }, place)
            }
            Question::Listing { directory } => {
                self.listings.push_back(directory);
                Ok(())
            }
            Question::Data {
                file,
                offset,
                length,
            } => {
                let mut at = offset;
                while at < offset + length {
                    let length = limits::VERIFY_CHUNK.min(offset + length - at);
                    let piece = Question::Data {
                        file,
                        offset: at,
                        length,
                    };
                    self.second.look(piece, place.clone())?;
                    at += length;
                }
                Ok(())
            }
            question => self.second.look(question, place),
        }
    }

    /// The listing of a directory is another one there: each name is compared, theirs by a
    /// look at what is here, ours by a question.
    fn names(&mut self, directory: FileId) -> Result<(), VerifyError> {
        let question = Question::Listing { directory };
        let place = Place::Somewhere;
        let Some(node) = self.engine.store.peek(directory)? else {
            return Ok(());
        };
        let mut from = 0;
        loop {
            let answer = self.ask(&VerifyRequest::Names { directory, from })?;
            let (next, entries) = match answer {
                VerifyAnswer::Names { next, entries } => (next, entries),
                VerifyAnswer::Failed { reason } => {
                    let here = false;
                    let problem = Problem::Unreadable { here, reason };
                    self.run.found(self.engine, &question, &place, problem);
                    return Ok(());
                }
                other => return Err(VerifyError::Unexpected(format!("{other:?}"))),
            };
            for (name, theirs) in entries {
                if self.engine.store.lead(&node, &name)? != theirs {
                    let question = Question::Name { directory, name };
                    self.second.look(question, place.clone())?;
                }
            }
            // A position that leads nowhere further would never end.
            if next == 0 || next == from {
                break;
            }
            from = next;
        }
        let handle = self.engine.store.open_directory(node)?;
        let mut from = 0;
        loop {
            let (next, page) = self.engine.store.visit_page(&handle, from, usize::MAX)?;
            for entry in page {
                let mine = entry_digest(&entry.name, entry.lead).to_le_bytes();
                let name = entry.name;
                self.push(Item {
                    question: Question::Name { directory, name },
                    place: place.clone(),
                    object: None,
                    mine: Some(Ok(Digest::Is(mine))),
                    weight: 0,
                })?;
            }
            if next == 0 {
                return Ok(());
            }
            from = next;
        }
    }
}

fn questions_of(items: &[Item]) -> VerifyRequest {
    VerifyRequest::Questions(items.iter().map(|i| i.question.clone()).collect())
}

/// How much there is to be compared: bytes to be read, and something for each object.
pub(super) fn measure(engine: &Engine, run: &Run) -> Result<u64, VerifyError> {
    let mut whole = OBJECT;
    let mut directories = vec![FileId::ROOT];
    while let Some(directory) = directories.pop() {
        let Some(node) = engine.store.peek(directory)? else {
            continue;
        };
        let handle = engine.store.open_directory(node)?;
        let mut from = 0;
        loop {
            run.check()?;
            let (next, page) = engine.store.visit_page(&handle, from, usize::MAX)?;
            for entry in page {
                if let (Lead::Object(file), Some(node)) = (entry.lead, entry.object) {
                    whole += OBJECT + read_of(&node)?;
                    if node.kind() == Kind::Directory {
                        directories.push(file);
                    }
                }
            }
            if next == 0 {
                break;
            }
            from = next;
        }
    }
    Ok(whole)
}
