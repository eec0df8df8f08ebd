//! The engine: gives every change its place in the order, makes its intent
//! durable, applies it, ships it, and answers when the votes are in.
//!
//! The state machine ([`twinfold_protocol::primary`]) sits behind one mutex that is
//! held for a moment only: file system threads submit and vote, the network thread
//! brings receipts. A thread of its own for it would cost every write two more
//! wake-ups. Who performs an effect is whoever caused it.

mod actions;
mod archive;
#[cfg(test)]
mod bed;
mod calls;
pub(crate) mod clock;
mod compare;
mod data;
mod equal;
mod gate;
mod guest;
mod hashing;
mod jobs;
mod moving;
mod names;
mod own;
mod pace;
mod parking;
mod progress;
mod repair;
mod resync;
mod roles;
mod settle;
mod silence;
mod split;
mod standby;
mod standing;
mod status;
mod syncs;
mod takeover;
mod verify;

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use anyhow::{Context, Result};
use parking_lot::{Condvar, Mutex};
use tokio::sync::{Notify, watch};
use twinfold_protocol::handshake::Role;
use twinfold_protocol::ids::{Epoch, FileId, Side};
use twinfold_protocol::marks::{DirtyMap, Intent, id_block, intents_of};
use twinfold_protocol::op::Op;
use twinfold_protocol::primary::{OwnMarks, Primary};
use twinfold_protocol::time::Instant;

use crate::error::{FsError, FsResult};
use crate::state::{Condemned, CopyFile, IntentLog, MarksFile, Record, Recovered, Settings};
use crate::store::{Layout, Store};

pub(crate) use actions::random_id;
pub(crate) use compare::Ask;
pub(crate) use guest::{Guest, Need};
pub(crate) use hashing::hashers;
pub use names::NewEntry;
pub use own::OwnChanges;
pub use progress::ResyncStatus;
pub(crate) use resync::Target;
pub(crate) use standby::Due;
pub use standby::{Standby, StandbyError};
pub(crate) use standing::is_shared;
pub use standing::{Hex, History, PartName, Standing};
pub use status::{LinkState, Status, Swap};
pub(crate) use takeover::Place;
pub(crate) use verify::Asked;
pub use verify::{VerifyOptions, VerifyPage};

/// What answers a call once it may be acknowledged.
pub type Reply = Box<dyn FnOnce() + Send>;

/// The replication of one folder on one node.
pub struct Engine {
    /// The real directory.
    pub store: Store,
    settings: Settings,
    side: Side,
    copy: CopyFile,
    intents: IntentLog,
    core: Mutex<Primary<Reply>>,
    /// Signalled when ops leave the window: writers may go on.
    room: Condvar,
    parking: parking::Parking,
    role: AtomicU8,
    role_changed: watch::Sender<Option<Role>>,
    /// Held over every change of a name or of attributes: one order, here as in the sequence.
    names: Mutex<()>,
    gate: gate::Gate,
    silence: Arc<silence::Silence>,
    jobs: jobs::Jobs,
    syncs: syncs::Syncs,
    /// There is something for the wire.
    pub(crate) output: Notify,
    /// A sync of this secondary has ended, perhaps one that was asked for over an earlier
    /// connection: there may be something to tell, and the next one may begin.
    pub(crate) synced: Notify,
    /// This secondary shall leave in order.
    pub(crate) leaving: Notify,
    /// Deadlines have changed.
    pub(crate) deadlines: Notify,
    epoch: AtomicU32,
    next_id: AtomicU64,
    touched: Mutex<HashSet<FileId>>,
    /// Held from when touched objects are taken until their times are in the order.
    settling: Mutex<()>,
    pub(crate) verify: verify::Verify,
    /// What the primary found to differ in this secondary's copy.
    differing: Mutex<DirtyMap>,
    fenced: OnceLock<String>,
    connection: Mutex<Option<quinn::Connection>>,
    question: Mutex<Option<String>>,
    /// How often it was asked in this run: the number of the question that is open.
    questions: AtomicU64,
    /// A controller decides: this driver neither goes on alone nor gives way by itself.
    controlled: AtomicBool,
    trouble: Mutex<Option<String>>,
    conflict: Mutex<Option<split::Conflict>>,
    /// What earlier runs noted and no saved marks stand for.
    recovered: Mutex<Recovered>,
    /// What this secondary, or this node before it has a role, has changed in its own copy.
    own: Mutex<OwnMarks>,
    marks: MarksFile,
    /// Marks are saved one at a time; whether this is a term as primary, in which the
    /// core's marks are what is saved.
    saving: Mutex<bool>,
    /// Held as long as a resync of the peer may have marks in its hands.
    resyncing: Mutex<()>,
    /// When a primary that is alone saves its marks again at the earliest.
    alone_again: Mutex<Instant>,
    /// What of this node's state could not be read, until everything has been compared.
    damage: Mutex<Option<String>>,
    standby: Mutex<Option<Standby>>,
    /// Held while a resync of this copy begins or ends.
    ending: Mutex<()>,
    /// One checkpoint begins at a time.
    checkpoints: Mutex<()>,
    /// The segment that the running checkpoint began.
    checkpoint_segment: Mutex<Option<u64>>,
    /// No more changes are taken: this primary is about to hand over or to stop.
    closing: AtomicBool,
    /// This secondary is about to become primary; set and read under the lock of `standby`.
    promoting: AtomicBool,
    /// What this copy has is being kept: no resync of it may begin.
    keeping: AtomicBool,
    /// Held while an archive is made.
    archiving: Mutex<()>,
    /// A checkpoint is due although nothing is unflushed.
    one_more: AtomicBool,
    /// Held while objects of a seed get their ids.
    matching: Mutex<()>,
    pace: pace::Pace,
    tracker: progress::Tracker,
    takeover: takeover::TakeOver,
    condemned: Condemned,
    /// This secondary's copy is not up to date, and its own disk did not take that any more.
    /// The next run finds a secondary's copy, which nobody makes primary without force.
    spoiled: AtomicBool,
    counters: status::Counters,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine")
            .field("name", &self.settings.name)
            .field("role", &self.role())
            .finish_non_exhaustive()
    }
}

/// What is to be noted before `op`. `is_new` tells of an object that it is noted as a
/// whole, `is_here` that there is one.
fn notes_of(
    op: &Op,
    old_size: u64,
    is_new: impl Fn(FileId) -> bool,
    is_here: impl Fn(FileId) -> bool,
) -> Vec<Intent> {
    let mut wanted: Vec<Intent> = Vec::new();
    intents_of(op, old_size, |intent| {
        // What is new is noted with its id.
        let known = match intent {
            Intent::Extent { file, .. } | Intent::Attributes { file } | Intent::File { file } => {
                is_new(file)
            }
            Intent::Directory { .. } | Intent::NewIds { .. } => false,
        };
        if !known {
            wanted.push(intent);
        }
    });
    // What a resync makes is noted as new, as what a creation makes: with its id, once
    // for thousands, and not with each piece that is moved into it.
    let made = |file: FileId| (!is_new(file) && !is_here(file)).then(|| id_block(file));
    match op {
        Op::PutDirectory {
            directory, entries, ..
        } => {
            let objects = entries.iter().filter_map(|e| e.object.as_ref());
            for file in objects.map(|o| o.file).chain([*directory]) {
                if let Some(note) = made(file)
                    && !wanted.contains(&note)
                {
                    wanted.push(note);
                }
            }
        }
        Op::PutObject { object, .. } => wanted.extend(made(object.file)),
        _ => {}
    }
    wanted
}

/// What the last run could perhaps not write on a disk that failed is written now.
fn note_condemned(copy: &CopyFile, condemned: &Condemned) -> std::io::Result<()> {
    if condemned.is_set(copy.get().copy.current)? {
        tracing::warn!("the disk of this copy failed, and its peer took over");
        copy.update(Record::fall_behind)?;
    }
    condemned.clear()
}

impl Engine {
    /// Opens the folder below `layout.base` without a role. `side` says which of
    /// the two nodes this one is. With `history_unknown` the copy is one of which nothing
    /// is known, because the file that tells it cannot be read.
    pub fn open(
        layout: Layout,
        settings: Settings,
        side: Side,
        history_unknown: bool,
    ) -> Result<Engine> {
        let state = layout.state();
        let found = crate::state::open(&state, history_unknown)?;
        let condemned = Condemned::of(&layout.base);
        note_condemned(&found.copy, &condemned)
            .context("cannot note that this copy's disk failed")?;
        let store = Store::open(layout).context("cannot open the store")?;
        repair::repair(&store, &found.recovered)
            .context("cannot repair the store after a crash")?;
        let config = settings.config();
        let pace = pace::Pace::default();
        let silence = Arc::<silence::Silence>::default();
        pace.set(settings.resync_limit);
        Ok(Engine {
            store,
            side,
            copy: found.copy,
            intents: found.intents,
            core: Mutex::new(Primary::new(config, DirtyMap::default())),
            room: Condvar::new(),
            parking: parking::Parking::default(),
            role: AtomicU8::new(0),
            role_changed: watch::Sender::new(None),
            names: Mutex::new(()),
            gate: gate::Gate::to_store(&silence),
            jobs: jobs::Jobs::start(&silence).context("cannot start threads")?,
            syncs: syncs::Syncs::default(),
            output: Notify::new(),
            synced: Notify::new(),
            leaving: Notify::new(),
            deadlines: Notify::new(),
            epoch: AtomicU32::new(0),
            next_id: AtomicU64::new(0),
            touched: Mutex::default(),
            settling: Mutex::default(),
            verify: verify::Verify::default(),
            differing: Mutex::default(),
            fenced: OnceLock::new(),
            connection: Mutex::default(),
            question: Mutex::default(),
            questions: AtomicU64::new(0),
            controlled: AtomicBool::new(false),
            trouble: Mutex::default(),
            recovered: Mutex::new(found.recovered),
            own: Mutex::new(found.own),
            marks: found.marks,
            saving: Mutex::default(),
            resyncing: Mutex::default(),
            alone_again: Mutex::default(),
            damage: Mutex::new(found.damage),
            conflict: Mutex::default(),
            standby: Mutex::default(),
            ending: Mutex::default(),
            checkpoints: Mutex::default(),
            checkpoint_segment: Mutex::default(),
            closing: AtomicBool::new(false),
            promoting: AtomicBool::new(false),
            keeping: AtomicBool::new(false),
            archiving: Mutex::default(),
            one_more: AtomicBool::new(false),
            matching: Mutex::default(),
            pace,
            tracker: progress::Tracker::default(),
            takeover: takeover::TakeOver::default(),
            silence,
            condemned,
            spoiled: AtomicBool::new(false),
            counters: status::Counters::default(),
            settings,
        })
    }

    /// The folder's settings.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The copy's history.
    pub fn copy(&self) -> crate::state::Record {
        self.copy.get()
    }

    /// What this node does with its copy.
    pub fn role(&self) -> Option<Role> {
        match self.role.load(Ordering::Acquire) {
            1 => Some(Role::Primary),
            2 => Some(Role::Secondary),
            _ => None,
        }
    }

    fn set_role(&self, role: Option<Role>) {
        let code = match role {
            None => 0,
            Some(Role::Primary) => 1,
            Some(Role::Secondary) => 2,
        };
        self.role.store(code, Ordering::Release);
        self.role_changed.send_replace(role);
    }

    /// Follows the role.
    pub fn watch_role(&self) -> watch::Receiver<Option<Role>> {
        self.role_changed.subscribe()
    }

    /// Fails unless this node may change its copy for the application.
    fn writable(&self) -> FsResult<()> {
        if self.is_away() {
            return Err(FsError::Moved);
        }
        if self.fenced.get().is_some() {
            return Err(FsError::Fenced);
        }
        match self.role() {
            Some(Role::Primary) if !self.closing.load(Ordering::Acquire) => Ok(()),
            _ => Err(FsError::ReadOnly),
        }
    }

    /// twinfold's own state could not be written: nothing is changed here any more. The
    /// peer takes over if it can, else it is let go (invariant 17).
    fn fence(&self, what: &str, error: &std::io::Error) {
        // A peer that has everything can go on where this node must not.
        if self.disk_failed(what, error) {
            return;
        }
        let reason = format!("{what}: {error}");
        if self.fenced.set(reason.clone()).is_ok() {
            tracing::error!(
                reason,
                "this node is fenced: its own state cannot be written; repair the file system \
                 under the store and restart the driver"
            );
            // A secondary tells its primary first, see [`Engine::standby_failed`].
            if self.role() != Some(Role::Secondary) {
                self.drop_connection(&reason);
            }
        }
    }

    /// Why the node is fenced, if it is.
    pub fn fenced(&self) -> Option<&str> {
        self.fenced.get().map(String::as_str)
    }

    /// A new file id. The epoch was made durable when the node became primary.
    fn new_id(&self) -> FileId {
        let counter = self.next_id.fetch_add(1, Ordering::Relaxed);
        FileId::new(Epoch(self.epoch.load(Ordering::Relaxed)), counter)
    }

    /// Makes the intents of an op durable, and fences the node when that fails.
    fn ensure_intents(&self, op: &Op, old_size: u64) -> FsResult<()> {
        let wanted = notes_of(
            op,
            old_size,
            |file| self.is_new(file),
            |file| {
                self.store
                    .ids()
                    .present(file, 1)
                    .is_ok_and(|p| !p.is_empty())
            },
        );
        if wanted.is_empty() {
            return Ok(());
        }
        self.intents.ensure(&wanted).map_err(|e| {
            if crate::state::no_room(&e) {
                return FsError::NoSpace;
            }
            if crate::state::not_now(&e) {
                return FsError::Store(e);
            }
            self.fence("the intent log cannot be written", &e);
            FsError::Fenced
        })
    }

    /// Runs `job` on another thread soon: for whoever must not wait for a disk.
    pub(crate) fn later(&self, job: impl FnOnce() + Send + 'static) {
        self.jobs.run(job);
    }

    /// Whether everything about `file` is covered by a note on new ids.
    fn is_new(&self, file: FileId) -> bool {
        self.intents
            .is_hot(twinfold_protocol::marks::id_block(file))
    }

    /// Puts an op that has been applied here into the order; `reply` runs when it may be
    /// acknowledged. The caller holds the locks over what the op touches.
    fn commit(&self, op: Op, old_size: u64, reply: Reply) {
        let mut touched = [None; 2];
        let mut places = touched.iter_mut();
        settle::touched_by(&op, |file| {
            if let Some(place) = places.next() {
                *place = Some(file);
            }
        });
        let mut core = self.core.lock();
        let submitted = core.submit(clock::now(), clock::wall(), op, old_size);
        let ready = match submitted.seq {
            None => Some(reply),
            Some(seq) => core.local_done(seq, reply),
        };
        drop(core);
        // Only now: times that are shipped before the op would be lost with it.
        touched
            .into_iter()
            .flatten()
            .for_each(|f| self.touch_file(f));
        if submitted.output {
            self.output.notify_one();
        }
        if let Some(reply) = ready {
            reply();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use twinfold_protocol::attr::Kind;
    use twinfold_protocol::limits;
    use twinfold_protocol::op::{AllocateMode, Listing, Name, Object, PutEntry};
    use twinfold_protocol::time::Timestamp;

    fn hole(length: u64) -> Op {
        Op::Allocate {
            file: FileId(5000),
            mode: AllocateMode::PunchHole,
            offset: 0,
            length,
        }
    }

    #[test]
    fn a_range_is_noted_by_its_extents_and_the_longest_by_its_file() {
        let notes = |op: &Op, new| notes_of(op, 0, |_| new, |_| true);
        let short = notes(&hole(3 * limits::EXTENT), false);
        assert_eq!(
            short.len(),
            4,
            "three extents and the attributes: {short:?}"
        );
        let longest = notes(&hole(limits::MAX_OFFSET), false);
        let file = FileId(5000);
        assert_eq!(
            longest,
            [Intent::File { file }, Intent::Attributes { file }]
        );
        assert_eq!(notes(&hole(limits::MAX_OFFSET), true), []);
    }

    fn object(file: u64) -> Object {
        Object {
            file: FileId(file),
            kind: Kind::Regular,
            target: bytes::Bytes::new(),
            mode: 0o600,
            uid: 0,
            gid: 0,
            size: 0,
            accessed: Timestamp::default(),
            modified: Timestamp::default(),
        }
    }

    #[test]
    fn what_a_resync_makes_is_noted_once_with_its_name() {
        let entry = |file: u64| PutEntry {
            name: Name::new(file.to_string().as_bytes()).unwrap(),
            object: Some(object(file)),
        };
        let listing = Op::PutDirectory {
            directory: FileId::ROOT,
            listing: Listing::Names,
            entries: (5000..5500).chain(9000..9100).map(entry).collect(),
        };
        let old = |file: FileId| file.0 < 9000;
        let directory = Intent::Directory {
            directory: FileId::ROOT,
        };
        let notes = notes_of(&listing, 0, |_| false, old);
        assert_eq!(notes, [directory, id_block(FileId(9000))]);
        let data = Op::PutObject {
            object: object(9000),
            xattrs: Vec::new(),
        };
        assert_eq!(notes_of(&data, 0, |file| !old(file), |_| true), []);
    }
}
