//! The record of what was acknowledged, outside of both nodes.
//!
//! Every call is repeated on a plain directory as soon as it is acknowledged. What a sync
//! has promised for the time after a power cut of both nodes is kept beside it.

use std::fs;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::acts::{Act, Open, bytes};
use crate::look::{Look, Seen, differences, look, seen};
use crate::model::{Left, is_part, never_was};

/// What must be found after a crash.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Promise {
    /// Everything acknowledged, and of the one call under way what the crash may leave.
    Acknowledged(Left),
    /// Everything up to a call that is not before the last sync, and of the next one
    /// what the crash may leave: a prefix.
    Prefix(Left),
    /// What was synced, and nothing that never was.
    Synced,
}

/// Bytes and attributes of a file that a sync has promised.
#[derive(Debug)]
struct Synced {
    /// Where it may be: its name, and the names it may have got since.
    names: Vec<String>,
    /// What is promised of its bytes, and the bytes.
    ranges: Vec<Range<u64>>,
    data: Vec<u8>,
    /// Its attributes, until they are changed again.
    attributes: Option<Seen>,
    /// It lost a name: it may be gone.
    gone: bool,
}

#[derive(Debug, Default)]
struct State {
    /// What was acknowledged, in order.
    acts: Vec<Act>,
    /// How many of them a sync has promised.
    promised: usize,
    /// What it looked like before the first and behind each of them.
    states: Vec<Look>,
    /// Begun and not acknowledged.
    open: Option<Act>,
    synced: Vec<Synced>,
    files: Open,
    error: Option<io::Error>,
    done: bool,
}

/// The record of one folder.
#[derive(Clone, Debug)]
pub(crate) struct Record {
    /// The plain directory.
    root: PathBuf,
    state: Arc<Mutex<State>>,
}

impl Record {
    pub(crate) fn new(root: &Path) -> Record {
        fs::create_dir_all(root).unwrap();
        Record {
            root: root.to_owned(),
            state: Arc::default(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins anew, at what is there now.
    pub(crate) fn begin(&self) {
        *self.state() = State {
            states: vec![look(&self.root).unwrap()],
            ..State::default()
        };
    }

    /// Runs `acts` on the mount at `mount`; ends at the first that fails.
    pub(crate) fn run(&self, acts: &[Act], mount: &Path) {
        self.run_and(acts, mount, || Ok(()));
    }

    /// The same; each of them counts as acknowledged when `then` is done.
    pub(crate) fn run_and(&self, acts: &[Act], mount: &Path, then: impl Fn() -> io::Result<()>) {
        let mut open = Open::new();
        for act in acts {
            {
                let mut state = self.state();
                state.touch(*act);
                state.open = Some(*act);
            }
            match act.run(mount, &mut open).and_then(|()| then()) {
                Ok(()) => self.acknowledge(*act),
                Err(e) => {
                    self.state().error = Some(io::Error::new(e.kind(), format!("{act:?}: {e}")));
                    break;
                }
            }
        }
        self.state().done = true;
    }

    /// Whether all ended, well or not.
    pub(crate) fn is_done(&self) -> bool {
        self.state().done
    }

    /// The error that ended it.
    pub(crate) fn error(&self) -> Option<String> {
        self.state().error.as_ref().map(ToString::to_string)
    }

    fn acknowledge(&self, act: Act) {
        let mut state = self.state();
        state.open = Some(act);
        state.repeat(&self.root);
        if act.is_sync() {
            state.promised = state.acts.len();
        }
        state.promise(act, &self.root);
    }

    /// What is wrong with the copy seen at `mount`.
    pub(crate) fn check(&self, promise: Promise, mount: &Path) -> Vec<String> {
        let found = match look(mount) {
            Ok(found) => found,
            Err(e) => return vec![format!("{} cannot be read: {e}", mount.display())],
        };
        let mut state = self.state();
        let acknowledged = state.acts.len();
        // From here on all of it may be there.
        state.repeat(&self.root);
        match promise {
            Promise::Acknowledged(left) => state.check_from(acknowledged, left, &found),
            Promise::Prefix(left) => state.check_from(state.promised, left, &found),
            Promise::Synced => {
                let mut wrong = state.check_synced(&found);
                wrong.extend(never_was(&state.states, &found));
                wrong
            }
        }
    }

    /// The record becomes what the copy at `mount` is: after a check that leaves open
    /// what of the unsynced is there.
    pub(crate) fn adopt(&self, mount: &Path) {
        fs::remove_dir_all(&self.root).unwrap();
        let copied = std::process::Command::new("cp")
            .args(["-a", "--"])
            .args([mount, &self.root])
            .status();
        assert!(copied.unwrap().success());
    }
}

impl Synced {
    fn objection(&self, found: &Seen) -> Option<String> {
        for range in &self.ranges {
            let (from, to) = (range.start as usize, range.end as usize);
            if found.data.get(from..to) != self.data.get(from..to) {
                return Some(format!(
                    "bytes {range:?} differ, it has {}",
                    found.data.len()
                ));
            }
        }
        let wanted = self.attributes.as_ref()?;
        let same = wanted.kind == found.kind
            && wanted.mode == found.mode
            && wanted.owner == found.owner
            && wanted.xattrs == found.xattrs;
        (!same).then(|| format!("should be {wanted:?}, is {found:?}"))
    }

    fn has(&self, path: &str) -> bool {
        self.names.iter().any(|name| name == path)
    }
}

/// `ranges` without `cut`.
fn without(ranges: &[Range<u64>], cut: &Range<u64>) -> Vec<Range<u64>> {
    ranges
        .iter()
        .flat_map(|r| [r.start..r.end.min(cut.start), r.start.max(cut.end)..r.end])
        .filter(|r| r.start < r.end)
        .collect()
}

/// The name that `name` gets when `from` becomes `to`.
fn moved(name: &str, from: &str, to: &str) -> Option<String> {
    match name.strip_prefix(from)? {
        "" => Some(to.to_owned()),
        rest if rest.starts_with('/') => Some(format!("{to}{rest}")),
        _ => None,
    }
}

impl State {
    /// Does what is open on the record.
    fn repeat(&mut self, root: &Path) {
        if let Some(act) = self.open.take() {
            act.run(root, &mut self.files)
                .unwrap_or_else(|e| panic!("{act:?} on the record: {e}"));
            self.acts.push(act);
            self.states.push(look(root).unwrap());
        }
    }

    /// One of the states behind `from` calls and more is found, or one on its way to the next.
    fn check_from(&self, from: usize, left: Left, found: &Look) -> Vec<String> {
        let mut wrong = None;
        for n in (from..self.states.len()).rev() {
            let state = &self.states[n];
            let between = self.states.get(n + 1).zip(self.acts.get(n));
            let lines = differences(state, found);
            if lines.is_empty()
                || between.is_some_and(|(next, act)| is_part(*act, state, next, found, left))
            {
                return Vec::new();
            }
            wrong = Some((n, lines));
        }
        let (n, mut lines) = wrong.unwrap();
        lines.push(format!(
            "behind {n} calls; the next one is {:?}",
            self.acts.get(n)
        ));
        lines
    }

    fn check_synced(&self, found: &Look) -> Vec<String> {
        let one = |synced: &Synced| {
            let mut why = Vec::new();
            for name in &synced.names {
                match found.get(Path::new(name)) {
                    None => why.push(format!("{name} does not exist")),
                    Some(seen) => match synced.objection(seen) {
                        None => return None,
                        Some(objection) => why.push(format!("{name}: {objection}")),
                    },
                }
            }
            (!synced.gone).then(|| why.join("; "))
        };
        self.synced.iter().filter_map(one).collect()
    }

    /// From now on `act` may have happened.
    fn touch(&mut self, act: Act) {
        for synced in &mut self.synced {
            if let Some((path, range)) = act.changes()
                && synced.has(path)
            {
                synced.ranges = without(&synced.ranges, &range);
            }
            let renames: &[(&str, &str)] = match act {
                Act::Rename(from, to) | Act::Link(from, to) => &[(from, to)],
                Act::Exchange(one, other) => &[(one, other), (other, one)],
                _ => &[],
            };
            let new: Vec<_> = renames
                .iter()
                .flat_map(|(from, to)| synced.names.iter().filter_map(|n| moved(n, from, to)))
                .collect();
            match act {
                Act::Rename(from, to) if synced.has(to) && !synced.has(from) => synced.gone = true,
                Act::Unlink(path) if synced.has(path) => synced.gone = true,
                Act::Chmod(path, _)
                | Act::Chown(path, _)
                | Act::Setxattr(path, ..)
                | Act::Removexattr(path, _)
                    if synced.has(path) =>
                {
                    synced.attributes = None;
                }
                _ => {}
            }
            synced.names.extend(new);
        }
    }

    /// `act` was acknowledged: what does it promise?
    fn promise(&mut self, act: Act, root: &Path) {
        let (path, all) = match act {
            Act::Fsync(path) | Act::FsyncOpen(path) => (path, true),
            Act::Fdatasync(path) | Act::WriteDsync(path, ..) => (path, false),
            _ => return,
        };
        let Ok(now) = seen(&root.join(path)) else {
            return;
        };
        let (range, data) = match act {
            Act::WriteDsync(_, offset, length, seed) => {
                let mut data = vec![0; offset as usize];
                data.extend(bytes(seed, offset, length));
                (offset..offset + length as u64, data)
            }
            _ => (0..now.data.len() as u64, now.data.clone()),
        };
        self.synced.push(Synced {
            names: vec![path.to_owned()],
            ranges: std::iter::once(range).collect(),
            data,
            attributes: all.then_some(now),
            gone: false,
        });
    }
}
