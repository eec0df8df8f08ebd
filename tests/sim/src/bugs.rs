//! Bugs that are planted on purpose, to see that the simulator finds them.

use clap::ValueEnum;

/// One mistake a driver could make; the number is that of the invariant it breaks.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Bug {
    /// 1: a node changes its copy without a note.
    NoIntents,
    /// 1: a node notes what it changes only afterwards.
    LateIntents,
    /// 2: notes go with the acknowledgement, not with both flushes.
    EarlyRetire,
    /// 2: a checkpoint that begins while another one runs has that one drop its notes.
    CheckpointsOverlap,
    /// 3: a flush of the secondary's disk that failed counts as done.
    SwallowSyncError,
    /// 3: a sync is acknowledged by the local disk alone.
    LocalSync,
    /// 4: a primary goes on alone without having asked.
    GoAloneUnasked,
    /// 5: overlapping writes are applied here in any order.
    NoRangeLock,
    /// 6: the target of a resync ignores holes.
    IgnoreHoles,
    /// 6: a cut is not shipped.
    TruncateNotShipped,
    /// 8: a file that moved is made anew under its new name.
    IdentityByPath,
    /// 9: a write that failed here stays on the peer.
    NoUndo,
    /// 10: resync reads first and takes its place in the order later.
    StaleRead,
    /// 11: a resync target counts as up to date from the beginning.
    EarlyUpToDate,
    /// 12: marks are dropped when a resync begins.
    DropMarks,
    /// 12: an unreadable note counts as none.
    AssumeClean,
    /// 13: whoever serves is taken for the newer one, whatever the generations say.
    NewerByClock,
    /// 15: the target's notes are not asked for.
    IgnoreTargetNotes,
    /// 8: a copy out of a file without a name is shipped as one.
    CopyOfNameless,
    /// 12: saved marks are not read when the driver starts.
    ForgetMarks,
    /// 1: while alone, notes go before the marks that stand for them are saved.
    NotesGoFirst,
    /// Promise 3: the secondary applies writes to different files in any order.
    AnyOrder,
    /// 17: the record is written in place: power that fails meanwhile tears it.
    TornRecord,
    /// 4: a local vote of an earlier term as primary counts in the next one.
    StaleVote,
    /// 9: what a resync left aside stays when its target is made the good copy.
    AsideLeft,
    /// 10: a directory that made way for another one in a resync stays aside.
    WayLeftAside,
    /// 14: a primary waits for ever for the session of a process that is gone.
    HoldForever,
    /// 5: a verify reads what is being changed.
    VerifyUnlocked,
    /// 3: a node says that it has taken over before it has flushed.
    EarlyTakeOver,
    /// 4: the note that a copy is condemned is not looked at when its driver starts.
    CondemnedStarts,
    /// 5: a call that is asked for again is carried out again.
    CalledTwice,
    /// 14: a node that has taken over is primary only once it has reached its peer again.
    HostWhenReached,
}

impl Bug {
    /// The invariant of `ARCHITECTURE.md` that it breaks.
    pub fn invariant(self) -> u8 {
        match self {
            Bug::NoIntents | Bug::LateIntents | Bug::NotesGoFirst => 1,
            Bug::EarlyRetire | Bug::CheckpointsOverlap => 2,
            Bug::LocalSync | Bug::SwallowSyncError | Bug::EarlyTakeOver => 3,
            Bug::GoAloneUnasked | Bug::StaleVote | Bug::CondemnedStarts => 4,
            Bug::NoRangeLock | Bug::VerifyUnlocked | Bug::CalledTwice => 5,
            Bug::IgnoreHoles | Bug::TruncateNotShipped => 6,
            Bug::IdentityByPath | Bug::CopyOfNameless => 8,
            Bug::NoUndo | Bug::AsideLeft => 9,
            Bug::StaleRead | Bug::WayLeftAside => 10,
            Bug::EarlyUpToDate => 11,
            Bug::DropMarks | Bug::AssumeClean | Bug::ForgetMarks => 12,
            Bug::NewerByClock => 13,
            Bug::HoldForever | Bug::HostWhenReached => 14,
            Bug::IgnoreTargetNotes => 15,
            Bug::TornRecord => 17,
            // The prefix is a promise, kept by the one order of invariant 5.
            Bug::AnyOrder => 5,
        }
    }
}
