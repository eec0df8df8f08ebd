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
pub(crate) mod bed;
mod calls;
pub(crate) mod clock;
mod compare;
mod data;
mod differing;
mod doubt;
mod equal;
mod finishing;
mod foresight;
mod gate;
mod guest;
mod habit;
mod hashing;
mod jobs;
mod look;
mod moving;
mod names;
mod noting;
mod own;
mod pace;
mod parking;
mod progress;
mod repair;
mod resync;
mod roles;
mod settle;
mod shipping;
mod silence;
mod split;
mod standby;
mod standing;
mod status;
mod syncs;
mod takeover;
mod verify;
mod watched;

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use anyhow::{Context, Result};
use parking_lot::{Condvar, Mutex};
use tokio::sync::{Notify, watch};
use twinfold_protocol::handshake::Role;
use twinfold_protocol::ids::{Epoch, FileId, SessionId, Side};
use twinfold_protocol::marks::DirtyMap;
use twinfold_protocol::op::Op;
use twinfold_protocol::primary::{OwnMarks, Primary};
use twinfold_protocol::time::Instant;

use crate::bell::Bell;
use crate::error::{FsError, FsResult};
use crate::polling::Polling;
use crate::state::{Condemned, CopyFile, IntentLog, MarksFile, Record, Recovered, Settings};
use crate::store::{Disk, Layout, Store};

pub(crate) use actions::random_id;
pub(crate) use compare::Ask;
pub(crate) use guest::{Guest, Need};
pub(crate) use hashing::hashers;
pub use names::NewEntry;
pub use own::OwnChanges;
pub use progress::ResyncStatus;
pub(crate) use resync::Target;
pub(crate) use standby::{Due, SyncJob};
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
    core: watched::Core,
    /// Signalled when ops leave the window: writers may go on.
    room: Condvar,
    parking: parking::Parking,
    role: AtomicU8,
    role_changed: watch::Sender<Option<Role>>,
    /// Held over every change of a name or of attributes: one order, here as in the sequence.
    names: Mutex<()>,
    gate: gate::Gate,
    silence: Arc<silence::Silence>,
    disk: Disk,
    jobs: jobs::Jobs,
    syncs: syncs::Syncs,
    foresight: foresight::Foresight,
    /// Syncs that had failed when the last resync of the peer began, and its session.
    failed_before_resync: Mutex<Option<(SessionId, u64)>>,
    /// There is something for the wire.
    pub(crate) output: Notify,
    /// And it waits no longer for more.
    pub(crate) urgent: Notify,
    /// Whether the peer is about to say something.
    pub(crate) polling: Polling,
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
    /// Who ships times sleeps until there are some.
    rest: settle::Rest,
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
    standby: look::Session,
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
    /// Checkpoints that are due although nothing is unflushed.
    more_checkpoints: AtomicU8,
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
    /// Rings when something in the standing may have changed.
    changes: Arc<Bell>,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine")
            .field("name", &self.settings.name)
            .field("role", &self.role())
            .finish_non_exhaustive()
    }
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
        let disk = Disk::under(&layout.data());
        let store = Store::open(layout).context("cannot open the store")?;
        repair::repair(&store, &found.recovered)
            .context("cannot repair the store after a crash")?;
        let last = found.copy.get();
        let doubtful = !last.clean && last.boot == crate::state::boot_id();
        let config = settings.config();
        let pace = pace::Pace::default();
        let silence = Arc::<silence::Silence>::default();
        let changes = Arc::<Bell>::default();
        found.copy.rings(&changes);
        pace.set(settings.resync_limit);
        Ok(Engine {
            store,
            side,
            copy: found.copy,
            intents: found.intents,
            core: watched::Core::new(Primary::new(config, DirtyMap::default()), &changes),
            room: Condvar::new(),
            parking: parking::Parking::default(),
            role: AtomicU8::new(0),
            role_changed: watch::Sender::new(None),
            names: Mutex::new(()),
            gate: gate::Gate::to_store(&silence),
            jobs: jobs::Jobs::start(&silence).context("cannot start threads")?,
            syncs: syncs::Syncs::after(doubtful),
            foresight: foresight::Foresight::default(),
            failed_before_resync: Default::default(),
            output: Notify::new(),
            urgent: Notify::new(),
            polling: Polling::new(),
            synced: Notify::new(),
            leaving: Notify::new(),
            deadlines: Notify::new(),
            epoch: AtomicU32::new(0),
            next_id: AtomicU64::new(0),
            touched: Mutex::default(),
            rest: settle::Rest::default(),
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
            standby: look::Session::new(&changes),
            ending: Mutex::default(),
            checkpoints: Mutex::default(),
            checkpoint_segment: Mutex::default(),
            closing: AtomicBool::new(false),
            promoting: AtomicBool::new(false),
            keeping: AtomicBool::new(false),
            archiving: Mutex::default(),
            more_checkpoints: AtomicU8::new(0),
            matching: Mutex::default(),
            pace,
            tracker: progress::Tracker::default(),
            takeover: takeover::TakeOver::default(),
            silence,
            disk,
            condemned,
            spoiled: AtomicBool::new(false),
            counters: status::Counters::default(),
            changes,
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
        self.changes.ring();
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
            self.changes.ring();
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

    /// Runs `job` on another thread soon: for whoever must not wait for a disk.
    pub(crate) fn later(&self, job: impl FnOnce() + Send + 'static) {
        self.jobs.run(job);
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
        let kind = shipping::Way::kind(&op);
        let mut core = self.core.lock();
        let now = clock::now();
        let submitted = core.submit(now, clock::wall(), op, old_size);
        let ready = match submitted.seq {
            None => Some(reply),
            Some(seq) => core.local_done(now, seq, reply),
        };
        let way = shipping::Way::of(&core, kind);
        drop(core);
        // Only now: times that are shipped before the op would be lost with it.
        touched
            .into_iter()
            .flatten()
            .for_each(|f| self.touch_file(f));
        self.to_wire(&submitted, way);
        if let Some(reply) = ready {
            reply();
        }
    }
}
