//! Finding what differs, before a resync: suspicions go in, exact marks come out.
//!
//! What notes and marks name may differ; it is compared, by existence and by hash,
//! so that only what does differ is moved (promise 6). What they do not name, but
//! one node may have removed or cut while it could not tell the other one, follows
//! from them: everything in a suspect directory is asked for, and what has another name
//! here than it had there.
//!
//! Many questions are under way at once, within bounds, and both nodes work on the same
//! ones: an answer never changes what the questions before it were about.

use std::collections::VecDeque;
use std::fmt::Debug;

use crate::attr::Kind;
use crate::handshake::Method;
use crate::ids::FileId;
use crate::limits;
use crate::marks::{DirtyMap, Flags, Intent, Names};
use crate::op::Name;
use crate::wire::{CompareAnswer, CompareRequest, Hashes, MatchEntry};

/// Bytes of one block's hash: BLAKE3, cut to 128 bits; zeros for a block of zeros.
pub const HASH: usize = 16;

/// Unmarked blocks between two marked ones that are compared along with them, rather
/// than asked for apart.
const SPAN_GAP: u32 = 32;

/// What an object counts for in the progress, beside its data, in bytes: about what
/// looking for it costs.
pub const OBJECT_WEIGHT: u64 = 4096;

/// An object of the source.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Held {
    /// Which.
    pub file: FileId,
    /// What it is.
    pub kind: Kind,
    /// Bytes of data, if it is a file.
    pub size: u64,
}

/// Both nodes' answers to one question.
#[derive(Clone, PartialEq, Debug)]
pub struct Answers {
    /// The target's.
    pub theirs: CompareAnswer,
    /// For [`CompareRequest::Blocks`] the source's own: its file's size and hashes.
    pub mine: Option<(u64, Hashes)>,
}

/// How far a comparison is, in bytes of data and [`OBJECT_WEIGHT`] for each object.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct HowFar {
    /// Compared.
    pub done: u64,
    /// To be compared, as far as it is known.
    pub known: u64,
    /// Bytes of the files that the target lacks altogether.
    pub missing: u64,
}

/// The source's copy, its marks, and the way to ask the target. Every method fails
/// when the store cannot be read or the target is gone.
pub trait Source {
    /// Why something could not be read or asked.
    type Error;

    /// An object, if it has a name here.
    fn look(&mut self, file: FileId) -> Result<Option<Held>, Self::Error>;
    /// What a name leads to.
    fn find(&mut self, directory: FileId, name: &Name) -> Result<Option<FileId>, Self::Error>;
    /// What a directory holds; nothing if it is none.
    fn list(&mut self, directory: FileId) -> Result<Vec<Held>, Self::Error>;
    /// The same with the names, to be matched.
    fn entries(&mut self, directory: FileId) -> Result<Vec<MatchEntry>, Self::Error>;
    /// Ids in `first .. first + limits::ID_BLOCK` that objects have.
    fn ids(&mut self, first: FileId) -> Result<Vec<FileId>, Self::Error>;
    /// Asks the target; for [`CompareRequest::Blocks`] this node begins to look as well: the
    /// file's size, and hashes of its blocks from the offset on, none beyond its end.
    fn ask(&mut self, request: CompareRequest) -> Result<(), Self::Error>;
    /// The answers to the oldest question that was not answered yet.
    fn answer(&mut self) -> Result<Answers, Self::Error>;
    /// The target answered something else than it was asked.
    fn unexpected(&mut self, answer: &CompareAnswer) -> Self::Error;
    /// From now on what gets another name is remembered, or not any more.
    fn watch(&mut self, watch: bool);
    /// What got another name since the last call. Nothing is half-way while it is asked for.
    fn moved(&mut self) -> Vec<FileId>;
    /// The next directory behind `after` of which names are marked to be moved, and which.
    fn named(&mut self, after: Option<FileId>) -> Option<(FileId, Names)>;
    /// Changes the marks of what must be moved.
    fn mark(&mut self, change: impl FnOnce(&mut DirtyMap));
    /// How far it is.
    fn progress(&mut self, far: HowFar) {
        let _ = far;
    }
}

/// Turns what may differ into marks of what does, exact to the block. The source goes
/// on alone meanwhile, so that what is written marks itself. `noted` are the intents of
/// both nodes, `marks` what the source knows of more exactly.
pub fn compare<S: Source>(
    source: &mut S,
    method: Method,
    noted: impl IntoIterator<Item = Intent>,
    marks: &DirtyMap,
) -> Result<(), S::Error> {
    let how = match method {
        Method::Everything => Some(Tree::Missing),
        Method::Compare => Some(Tree::Compared),
        Method::Marks => None,
    };
    Comparison::new(source, how).run(noted, marks)
}

/// The same for a target whose objects came there by another way: what lies under the same
/// path and is of the same kind becomes the same object, and is compared.
pub fn compare_seed<S: Source>(source: &mut S) -> Result<(), S::Error> {
    Comparison::new(source, Some(Tree::Matched)).run([], &DirtyMap::default())
}

/// How a whole tree is looked at.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Tree {
    /// The target has none of it.
    Missing,
    /// By the ids of its objects.
    Compared,
    /// By the paths of its objects.
    Matched,
}

/// A question that is under way.
enum Question {
    /// Whether they are there; those with `true` are regular files to be compared.
    Objects(Vec<(FileId, bool)>),
    /// A part of a file; the rest follows if it is `open`, as much as there is.
    Blocks {
        file: FileId,
        at: u64,
        end: u64,
        open: bool,
    },
    /// What these names lead to.
    Match(Vec<(FileId, Kind)>),
}

struct Comparison<'a, S> {
    source: &'a mut S,
    /// How the whole tree is looked at; `None`: only what is noted and marked.
    how: Option<Tree>,
    /// Questions under way, oldest first, and the blocks that they are about.
    asked: VecDeque<Question>,
    blocks: u64,
    /// Ranges to be asked for.
    ranges: VecDeque<(FileId, u64, u64)>,
    /// Objects to be asked for.
    objects: Vec<(FileId, bool)>,
    /// Directories whose names are to be matched.
    unmatched: Vec<FileId>,
    /// Objects that are not under their names.
    unplaced: Vec<FileId>,
    /// Directories whose entries the peer is or was asked for.
    listed: Flags<1>,
    /// Objects that were met in the tree, or because they moved: each is looked at once.
    seen: Flags<1>,
    far: HowFar,
}

impl<S: Debug> Debug for Comparison<'_, S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Comparison").finish_non_exhaustive()
    }
}

impl<S: Source> Comparison<'_, S> {
    fn new(source: &mut S, how: Option<Tree>) -> Comparison<'_, S> {
        Comparison {
            source,
            how,
            asked: VecDeque::new(),
            blocks: 0,
            ranges: VecDeque::new(),
            objects: Vec::new(),
            unmatched: Vec::new(),
            unplaced: Vec::new(),
            listed: Flags::default(),
            seen: Flags::default(),
            far: HowFar::default(),
        }
    }

    fn run(
        mut self,
        noted: impl IntoIterator<Item = Intent>,
        marks: &DirtyMap,
    ) -> Result<(), S::Error> {
        self.source.watch(true);
        let compared = self.all(noted, marks);
        self.source.watch(false);
        compared
    }

    fn all(
        &mut self,
        noted: impl IntoIterator<Item = Intent>,
        marks: &DirtyMap,
    ) -> Result<(), S::Error> {
        match self.how {
            None => {
                let mut after = None;
                while let Some((directory, names)) = self.source.named(after) {
                    self.named(directory, &names)?;
                    after = Some(directory);
                }
                for intent in noted {
                    self.intent(intent)?;
                }
                self.marks(marks)?;
            }
            Some(Tree::Matched) => self.matched()?,
            Some(Tree::Missing | Tree::Compared) => {
                self.source.mark(|map| {
                    map.mark_directory(FileId::ROOT);
                    map.mark_attributes(FileId::ROOT);
                });
                self.tree(FileId::ROOT)?;
            }
        }
        loop {
            self.finish()?;
            // What moves from a directory that was not listed yet to one that was is met in
            // neither.
            let moved = self.source.moved();
            if moved.is_empty() {
                return Ok(());
            }
            for file in moved {
                self.moved(file)?;
            }
        }
    }

    fn moved(&mut self, file: FileId) -> Result<(), S::Error> {
        if !self.seen.set(file, 0) {
            return Ok(());
        }
        let Some(held) = self.source.look(file)? else {
            return Ok(());
        };
        if self.how.is_none() {
            return self.existence(file);
        }
        self.found(held)?;
        if held.kind == Kind::Directory && self.listed.of(file).is_none() {
            self.tree(file)?;
        }
        Ok(())
    }

    fn intent(&mut self, intent: Intent) -> Result<(), S::Error> {
        match intent {
            Intent::Directory { directory } => self.directory(directory),
            Intent::Attributes { file } => {
                self.source.mark(|map| map.mark_attributes(file));
                Ok(())
            }
            Intent::File { file } => self.file(file),
            Intent::NewIds { first } => {
                for file in self.source.ids(first)? {
                    self.file(file)?;
                }
                Ok(())
            }
            Intent::Extent { file, extent } => {
                let from = u64::from(extent) * limits::EXTENT;
                self.source.mark(|map| map.mark_attributes(file));
                self.range(file, from, limits::EXTENT)
            }
        }
    }

    /// What a lost peer may not have kept, as exactly as it is marked.
    fn marks(&mut self, marks: &DirtyMap) -> Result<(), S::Error> {
        for (directory, names) in marks.directories() {
            if let Names::Some(set) = names {
                self.source
                    .mark(|map| set.iter().for_each(|name| map.mark_name(directory, name)));
            }
            self.named(directory, names)?;
        }
        for (file, object) in marks.objects() {
            if object.unknown {
                self.existence(file)?;
            }
            if object.unknown || object.attributes {
                self.source.mark(|map| map.mark_attributes(file));
            }
            for (offset, length) in object.blocks.spans(SPAN_GAP) {
                self.range(file, offset, length)?;
            }
        }
        Ok(())
    }

    /// Names are moved. The peer may have removed what they lead to, under a name that it had
    /// before: the name that it tells of leads nowhere here.
    fn named(&mut self, directory: FileId, names: &Names) -> Result<(), S::Error> {
        let Names::Some(set) = names else {
            return self.directory(directory);
        };
        for name in set {
            if let Some(file) = self.source.find(directory, name)? {
                self.existence(file)?;
            }
        }
        Ok(())
    }

    /// The names of a directory may differ. What it holds may be missing there: one
    /// node may have removed what the other one kept.
    fn directory(&mut self, directory: FileId) -> Result<(), S::Error> {
        self.source.mark(|map| {
            map.mark_directory(directory);
            map.mark_attributes(directory);
        });
        if self.listed.set(directory, 0) {
            for held in self.source.list(directory)? {
                self.existence(held.file)?;
            }
        }
        Ok(())
    }

    /// The peer may lack an object; it is asked for a number of them at once.
    fn existence(&mut self, file: FileId) -> Result<(), S::Error> {
        self.want(file, false)
    }

    fn want(&mut self, file: FileId, data: bool) -> Result<(), S::Error> {
        self.far.known += OBJECT_WEIGHT;
        self.objects.push((file, data));
        self.work()
    }

    /// The peer has no such object: all of it is moved, and what it holds may be missing too.
    fn missing(&mut self, file: FileId) -> Result<(), S::Error> {
        let mut counted = false;
        self.source.mark(|map| {
            counted = map.object(file).is_some_and(|marks| marks.unknown);
            map.mark_unknown(file);
        });
        let Some(held) = self.source.look(file)? else {
            return Ok(());
        };
        if !counted {
            self.far.missing += held.size;
        }
        if held.kind == Kind::Directory {
            self.source.mark(|map| map.mark_directory(file));
            if self.listed.set(file, 0) {
                let held = self.source.list(file)?;
                self.far.known += OBJECT_WEIGHT * held.len() as u64;
                self.objects.extend(held.iter().map(|h| (h.file, false)));
            }
        }
        Ok(())
    }

    /// Everything about an object: whether the peer has it, its attributes, its data.
    fn file(&mut self, file: FileId) -> Result<(), S::Error> {
        let Some(Held { kind, .. }) = self.source.look(file)? else {
            return Ok(());
        };
        self.source.mark(|map| map.mark_attributes(file));
        if kind == Kind::Directory {
            self.directory(file)?;
        }
        self.want(file, kind == Kind::Regular)
    }

    fn range(&mut self, file: FileId, offset: u64, length: u64) -> Result<(), S::Error> {
        // Gone here: it goes there with its name.
        let held = self.source.look(file)?;
        if held.is_none_or(|h| h.kind != Kind::Regular) {
            return Ok(());
        }
        let end = offset.saturating_add(length).min(limits::MAX_OFFSET);
        self.push_range(file, offset, end);
        self.work()
    }

    /// Up to `limits::MAX_OFFSET`: how much that is, the first answer tells.
    fn push_range(&mut self, file: FileId, at: u64, end: u64) {
        if end != limits::MAX_OFFSET {
            self.far.known += end - at;
        }
        self.ranges.push_back((file, at, end));
    }

    /// Asks for what has piled up, with all the questions that may be under way.
    fn work(&mut self) -> Result<(), S::Error> {
        loop {
            if let Some((file, at, end)) = self.ranges.pop_front() {
                let (stop, open) = (at + step(at, end), end == limits::MAX_OFFSET);
                if stop < end && !open {
                    self.ranges.push_front((file, stop, end));
                }
                let request = CompareRequest::Blocks {
                    file,
                    offset: at,
                    blocks: blocks(stop - at),
                };
                let question = Question::Blocks {
                    file,
                    at,
                    end: stop,
                    open,
                };
                self.ask(request, question)?;
            } else if self.objects.len() >= limits::MAX_COMPARE_OBJECTS {
                self.ask_for_objects()?;
            } else {
                return Ok(());
            }
        }
    }

    /// Asks for the rest, and waits for all answers.
    fn finish(&mut self) -> Result<(), S::Error> {
        loop {
            self.work()?;
            if !self.objects.is_empty() {
                self.ask_for_objects()?;
            } else if !self.asked.is_empty() {
                self.answer()?;
            } else {
                return Ok(());
            }
        }
    }

    fn ask_for_objects(&mut self) -> Result<(), S::Error> {
        let rest = (self.objects.len()).saturating_sub(limits::MAX_COMPARE_OBJECTS);
        let now = self.objects.split_off(rest);
        let files = now.iter().map(|(file, _)| *file).collect();
        self.ask(CompareRequest::Objects { files }, Question::Objects(now))
    }

    fn ask(&mut self, request: CompareRequest, question: Question) -> Result<(), S::Error> {
        while self.asked.len() >= limits::MAX_COMPARE_QUESTIONS
            || self.blocks >= limits::MAX_COMPARE_AHEAD
        {
            self.answer()?;
        }
        if let Question::Blocks { at, end, .. } = question {
            self.blocks += u64::from(blocks(end - at));
        }
        self.source.ask(request)?;
        self.asked.push_back(question);
        Ok(())
    }

    /// Takes the next answer. What follows from it is only put in line: this is called
    /// while questions are asked.
    fn answer(&mut self) -> Result<(), S::Error> {
        let Some(question) = self.asked.pop_front() else {
            return Ok(());
        };
        let answers = self.source.answer()?;
        match question {
            Question::Objects(asked) => {
                let present = self.present(answers.theirs, asked.len())?;
                for ((file, data), present) in asked.into_iter().zip(present) {
                    self.far.done += OBJECT_WEIGHT;
                    if !present {
                        self.missing(file)?;
                    } else if data {
                        self.push_range(file, 0, limits::MAX_OFFSET);
                    }
                }
            }
            Question::Blocks {
                file,
                at,
                end,
                open,
            } => {
                self.blocks -= u64::from(blocks(end - at));
                let size = self.compared(file, at, answers)?;
                if open {
                    let looked = size.min(end).saturating_sub(at);
                    self.far.known += looked;
                    self.far.done += looked;
                    if end < size {
                        self.push_range(file, end, size);
                    }
                } else {
                    self.far.done += end - at;
                }
            }
            Question::Match(asked) => {
                let present = self.present(answers.theirs, asked.len())?;
                for ((file, kind), present) in asked.into_iter().zip(present) {
                    self.far.done += OBJECT_WEIGHT;
                    match kind {
                        // It may be there under another name: what was not matched is
                        // asked for when all names were.
                        _ if !present => self.unplaced.push(file),
                        Kind::Directory => self.unmatched.push(file),
                        Kind::Regular => {
                            self.source.mark(|map| map.mark_attributes(file));
                            self.push_range(file, 0, limits::MAX_OFFSET);
                        }
                        _ => self.source.mark(|map| map.mark_attributes(file)),
                    }
                }
            }
        }
        self.source.progress(self.far);
        Ok(())
    }

    fn present(&mut self, answer: CompareAnswer, count: usize) -> Result<Vec<bool>, S::Error> {
        match answer {
            CompareAnswer::Present { present } if present.len() == count => Ok(present),
            other => Err(self.source.unexpected(&other)),
        }
    }

    /// Marks the blocks that differ; returns the size of the source's file.
    fn compared(&mut self, file: FileId, at: u64, answers: Answers) -> Result<u64, S::Error> {
        let (their_size, theirs) = match answers.theirs {
            CompareAnswer::Missing => {
                self.missing(file)?;
                return Ok(0);
            }
            CompareAnswer::Hashes { size, hashes } => (size, hashes),
            other => return Err(self.source.unexpected(&other)),
        };
        // Gone here meanwhile: it goes there with its name.
        let Some((size, mine)) = answers.mine else {
            return Ok(0);
        };
        self.source.mark(|map| {
            // Should the file grow again before the target is cut, what the target has
            // there now would come to light.
            map.mark_data(file, size, their_size.saturating_sub(size));
            for block in mine.differing(&theirs) {
                map.mark_data(file, at + u64::from(block) * limits::BLOCK, 1);
            }
        });
        Ok(size)
    }

    /// All that lies below a directory.
    fn tree(&mut self, top: FileId) -> Result<(), S::Error> {
        let mut directories = vec![top];
        while let Some(directory) = directories.pop() {
            // Its entries are looked at here.
            self.listed.set(directory, 0);
            for held in self.source.list(directory)? {
                if held.kind == Kind::Directory {
                    directories.push(held.file);
                }
                self.seen.set(held.file, 0);
                self.found(held)?;
            }
        }
        self.source.progress(self.far);
        Ok(())
    }

    /// An object in a tree that is looked at as a whole.
    fn found(&mut self, held: Held) -> Result<(), S::Error> {
        let Held { file, kind, size } = held;
        if kind == Kind::Directory {
            self.source.mark(|map| map.mark_directory(file));
        }
        if self.how == Some(Tree::Missing) {
            self.source.mark(|map| map.mark_unknown(file));
            self.far.missing += size;
            return Ok(());
        }
        self.source.mark(|map| map.mark_attributes(file));
        self.want(file, kind == Kind::Regular)
    }

    /// Directory by directory, each as soon as it is known to be the same one.
    fn matched(&mut self) -> Result<(), S::Error> {
        self.unmatched.push(FileId::ROOT);
        loop {
            if let Some(directory) = self.unmatched.pop() {
                self.listed.set(directory, 0);
                self.source.mark(|map| {
                    map.mark_directory(directory);
                    map.mark_attributes(directory);
                });
                let mut entries = self.source.entries(directory)?;
                self.far.known += OBJECT_WEIGHT * entries.len() as u64;
                while !entries.is_empty() {
                    let rest = entries.len().saturating_sub(limits::MAX_PUT_ENTRIES);
                    let now = entries.split_off(rest);
                    let asked = now.iter().map(|e| (e.file, e.kind)).collect();
                    let request = CompareRequest::Match {
                        directory,
                        entries: now,
                    };
                    self.ask(request, Question::Match(asked))?;
                }
                self.work()?;
            } else if !self.asked.is_empty() {
                self.answer()?;
                self.work()?;
            } else {
                let unplaced = std::mem::take(&mut self.unplaced);
                return unplaced.into_iter().try_for_each(|f| self.existence(f));
            }
        }
    }
}

/// Bytes of the next question about `at .. end`.
fn step(at: u64, end: u64) -> u64 {
    (limits::MAX_COMPARE_BLOCKS as u64 * limits::BLOCK).min(end - at)
}

fn blocks(bytes: u64) -> u32 {
    bytes.div_ceil(limits::BLOCK) as u32
}
