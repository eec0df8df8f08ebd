//! What two copies are to each other, judged from generations, never from clocks
//! (invariant 13).
//!
//! ```text
//! mine against theirs                              decision
//! ------------------------------------------------ ---------------------------
//! modules differ                                   other module
//! both were given up                               both given up
//! one was given up                                 the other is source, see below
//! one's history is not known                       as if it was given up: compare everything
//! both without a generation                        no good copy named yet
//! one without a generation                         the other is source, everything
//! equal generations                                the primary is source, marks
//! theirs is a base of my marks                     I am source, marks
//! mine is a base of their marks                    they are source, marks
//! theirs is in my history only                     I am source, compare everything
//! mine is in their history only                    they are source, compare everything
//! both went on from a common generation            split brain
//! nothing in common                                unrelated
//! ```
//!
//! A source must be up to date and primary; where the newer copy is not, the
//! decision says so and nothing moves.
//!
//! A copy that its operator gave up is the target, whatever it has. What differs is
//! what either side has changed since the generation both went on from: their marks,
//! if on both sides they reach back to it. If not, everything is compared. Copies of
//! different modules never come together: their ids mean different objects.

use crate::ids::{Generation, ModuleId};

/// What a node does with its copy at the moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Role {
    /// Its mount is writable.
    Primary,
    /// It applies what the primary sends.
    Secondary,
}

/// The history of one copy, as it is kept on disk and sent in the hello.
#[derive(Clone, PartialEq, Eq, Debug, Default, Hash)]
pub struct CopyState {
    /// Which module it is a copy of; none before the first synchronisation.
    pub module: ModuleId,
    /// The generation the copy belongs to; none before the first synchronisation.
    pub current: Generation,
    /// Generations of the other copy for which this copy's marks are complete:
    /// what it had when this node went on alone. Empty while both are together.
    pub bases: Vec<Generation>,
    /// Earlier generations of this copy, newest first.
    pub history: Vec<Generation>,
    /// The copy holds every acknowledged op of its generation.
    pub up_to_date: bool,
    /// It did until the power of its machine was cut: what was not synced may be gone, and
    /// the other one may have it. Whoever decides which node serves may let it go on all the same.
    pub cut: bool,
    /// It did until it gave way to the other one, and nothing was done to it since. Not in the
    /// hello: it is for who decides.
    pub gave_way: bool,
    /// Its operator said that it may be overwritten by the other one, until it was.
    pub given_up: bool,
    /// It was made the good one by force, and no other one has followed it since: what
    /// the other one has may be more.
    pub forced: bool,
}

impl CopyState {
    /// The state after going on without the peer under the new generation `next`.
    #[must_use]
    pub fn go_alone(&self, next: Generation) -> CopyState {
        let mut state = self.clone();
        if !state.bases.contains(&state.current) && state.current.is_some() {
            state.bases.insert(0, state.current);
            // The oldest is what a peer that was away all the time has.
            if state.bases.len() > crate::limits::MAX_HISTORY {
                state.bases.remove(crate::limits::MAX_HISTORY / 2);
            }
        }
        state.given_up = false;
        (state.cut, state.gave_way) = (false, false);
        state.remember(next);
        state
    }

    /// The state after taking over from a peer whose disk failed, under the new generation
    /// `next`. No marks reach back to what that peer has: its disk may have lost anything,
    /// so its copy is compared whole when it returns. What that peer had found to differ here
    /// counts for nothing any more: there is no better copy than this one.
    #[must_use]
    pub fn take_over(&self, next: Generation) -> CopyState {
        let mut state = self.clone();
        state.bases.clear();
        state.up_to_date = true;
        state.given_up = false;
        (state.cut, state.gave_way) = (false, false);
        state.remember(next);
        state
    }

    /// The state of a resync target after its last flush: it adopts the source's generation.
    #[must_use]
    pub fn adopt(&self, module: ModuleId, generation: Generation) -> CopyState {
        let mut state = self.clone();
        state.module = module;
        state.bases.clear();
        state.given_up = false;
        state.forced = false;
        (state.cut, state.gave_way) = (false, false);
        state.remember(generation);
        state.up_to_date = true;
        state
    }

    /// The state of a copy whose operator gives it up: what it had stays known, so that
    /// only what differs is moved into it.
    #[must_use]
    pub fn give_up(&self) -> CopyState {
        CopyState {
            given_up: self.current.is_some(),
            ..self.clone()
        }
    }

    fn remember(&mut self, next: Generation) {
        if self.current == next {
            return;
        }
        if self.current.is_some() {
            self.history.insert(0, self.current);
            self.history.truncate(crate::limits::MAX_HISTORY);
        }
        self.current = next;
    }
}

/// Which of the two nodes, seen from the one that decides.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Which {
    /// The node that decides.
    Me,
    /// The other one.
    Peer,
}

impl Which {
    /// The same node, seen from the other side.
    #[must_use]
    pub fn mirrored(self) -> Which {
        match self {
            Which::Me => Which::Peer,
            Which::Peer => Which::Me,
        }
    }
}

/// How a resync finds what to move.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Method {
    /// From the marks of both copies.
    Marks,
    /// By comparing everything: the marks do not reach back to what the target has.
    Compare,
    /// The target has nothing of this module: everything is moved.
    Everything,
}

/// What to do with two copies that have met.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Decision {
    /// Bring the other copy up to the source.
    Resync {
        /// Which node has the data to keep.
        source: Which,
        /// How the differences are found.
        method: Method,
    },
    /// Neither copy was ever named the good one.
    NoGoodCopy,
    /// The newer copy is incomplete: its own resync was interrupted.
    SourceIncomplete {
        /// Which node has the newer, incomplete copy.
        source: Which,
    },
    /// The newer copy's node is not primary.
    SourceNotPrimary {
        /// Which node has the newer copy.
        source: Which,
    },
    /// The older copy's node is primary as well.
    StalePrimary {
        /// Which node has the newer copy.
        source: Which,
    },
    /// Both nodes are primary on one generation.
    TwoPrimaries,
    /// Both went on alone from a common generation.
    SplitBrain,
    /// The copies belong to one module and have no generation in common.
    Unrelated,
    /// The copies belong to different modules.
    OtherModule,
    /// The operators of both copies gave them up.
    BothGivenUp,
    /// Both copies are of one generation and equally good, and neither node is primary.
    NoPrimary,
}

impl Decision {
    /// The same decision, seen from the other side.
    #[must_use]
    pub fn mirrored(self) -> Decision {
        match self {
            Decision::Resync { source, method } => Decision::Resync {
                source: source.mirrored(),
                method,
            },
            Decision::SourceIncomplete { source } => Decision::SourceIncomplete {
                source: source.mirrored(),
            },
            Decision::SourceNotPrimary { source } => Decision::SourceNotPrimary {
                source: source.mirrored(),
            },
            Decision::StalePrimary { source } => Decision::StalePrimary {
                source: source.mirrored(),
            },
            same => same,
        }
    }

    /// What to tell an operator of the deciding node who waits for the two to
    /// replicate, and what to do about it; nothing when a resync follows.
    pub fn advice(self) -> Option<String> {
        let side = |w: Which| match w {
            Which::Me => "this node",
            Which::Peer => "the peer",
        };
        Some(match self {
            Decision::Resync { .. } => return None,
            Decision::NoGoodCopy => {
                "there is no good copy: neither was ever named so (`init --good-copy`), or the \
                 only one was given up (`primary --force` keeps it after all)"
                    .into()
            }
            Decision::SourceIncomplete { source } => format!(
                "the newer copy on {} is incomplete because its resync was interrupted, and there \
                 is no complete copy of that generation here",
                side(source)
            ),
            Decision::SourceNotPrimary { source } => format!(
                "{} has the newer copy but is not primary: make it primary there",
                side(source)
            ),
            Decision::StalePrimary { source } => format!(
                "both nodes are primary and {} has the newer copy: run `demote` on the other",
                side(source)
            ),
            Decision::TwoPrimaries => {
                "both nodes are primary: run `demote` on the one whose copy shall be overwritten"
                    .into()
            }
            Decision::SplitBrain => {
                "split brain: both nodes went on alone from a common generation; choose the \
                 copy to give up and run `demote` and `resync --discard-this-copy` on its node"
                    .into()
            }
            Decision::Unrelated => {
                "the two copies have no generation in common: choose the copy to give up and \
                 run `demote` and `resync --discard-this-copy` on its node"
                    .into()
            }
            Decision::OtherModule => {
                "the two copies belong to different modules: check that the right folders are \
                 paired. To replace one of them, run `deinit --force` on its node, empty the \
                 directory, and make it anew with `init --from-peer`"
                    .into()
            }
            Decision::BothGivenUp => {
                "both copies were given up: start the one to keep with `primary --force`".into()
            }
            Decision::NoPrimary => "neither node is primary: run `promote` on one of them".into(),
        })
    }
}

enum Relation {
    Newer(Which, Method),
    Equal,
    Split,
    Unrelated,
    Nothing,
    BothGivenUp,
}

/// How the differences to a copy that was given up are found, whichever of them is newer.
pub fn after_giving_up(a: &CopyState, b: &CopyState) -> Method {
    // All that either one has changed since it was what the other one is or was.
    let marked = a.current == b.current
        || a.bases.contains(&b.current)
        || b.bases.contains(&a.current)
        || a.bases.iter().any(|g| b.bases.contains(g));
    match marked {
        true => Method::Marks,
        false => Method::Compare,
    }
}

fn relation(me: &CopyState, peer: &CopyState) -> Relation {
    match (me.given_up, peer.given_up) {
        (false, false) => {}
        (true, true) => return Relation::BothGivenUp,
        (true, false) if peer.current.is_some() => {
            return Relation::Newer(Which::Peer, after_giving_up(me, peer));
        }
        (false, true) if me.current.is_some() => {
            return Relation::Newer(Which::Me, after_giving_up(me, peer));
        }
        _ => return Relation::Nothing,
    }
    match (me.current.is_some(), peer.current.is_some()) {
        (false, false) => return Relation::Nothing,
        (false, true) => return Relation::Newer(Which::Peer, Method::Everything),
        (true, false) => return Relation::Newer(Which::Me, Method::Everything),
        (true, true) => {}
    }
    if me.current == peer.current {
        return Relation::Equal;
    }
    let marks = (
        me.bases.contains(&peer.current),
        peer.bases.contains(&me.current),
    );
    let past = (
        me.history.contains(&peer.current),
        peer.history.contains(&me.current),
    );
    match (marks, past) {
        ((true, false), (_, false)) => Relation::Newer(Which::Me, Method::Marks),
        ((false, true), (false, _)) => Relation::Newer(Which::Peer, Method::Marks),
        ((false, false), (true, false)) => Relation::Newer(Which::Me, Method::Compare),
        ((false, false), (false, true)) => Relation::Newer(Which::Peer, Method::Compare),
        ((false, false), (false, false)) => {
            let mine = || me.bases.iter().chain(&me.history);
            if mine().any(|g| peer.bases.contains(g) || peer.history.contains(g)) {
                Relation::Split
            } else {
                Relation::Unrelated
            }
        }
        // Each claims to come after the other: no run of this program writes that.
        _ => Relation::Split,
    }
}

/// Which of two copies has the newer data, if their generations tell.
pub fn newer(me: &CopyState, peer: &CopyState) -> Option<Which> {
    match relation(me, peer) {
        Relation::Newer(which, _) => Some(which),
        _ => None,
    }
}

/// Whether two copies went on apart from a common generation, or have none in common.
pub fn have_split(me: &CopyState, peer: &CopyState) -> bool {
    matches!(relation(me, peer), Relation::Split | Relation::Unrelated)
}

/// Whether a primary with the copy `me` whose session is not settled may go on when its
/// peer returns without that session: the peer's copy is none that anybody could promote,
/// whether it fell behind within the session or was broken off before it got so far.
pub fn is_left_behind(me: &CopyState, peer: (&CopyState, Role)) -> bool {
    let decision = decide((me, Role::Primary), peer);
    !peer.0.up_to_date
        && matches!(
            decision,
            Decision::Resync {
                source: Which::Me,
                ..
            }
        )
}

/// Decides what two copies in these roles do. Pure; [`Decision::mirrored`] of one
/// side's decision is always the other side's.
pub fn decide(me: (&CopyState, Role), peer: (&CopyState, Role)) -> Decision {
    let primary = |w: Which| {
        let role = match w {
            Which::Me => me.1,
            Which::Peer => peer.1,
        };
        role == Role::Primary
    };
    let complete = |w: Which| match w {
        Which::Me => me.0.up_to_date,
        Which::Peer => peer.0.up_to_date,
    };
    let (a, b) = (me.0.module, peer.0.module);
    if a.is_some() && b.is_some() && a != b {
        return Decision::OtherModule;
    }
    let (source, method) = match relation(me.0, peer.0) {
        Relation::BothGivenUp => return Decision::BothGivenUp,
        Relation::Unrelated => return Decision::Unrelated,
        Relation::Split => return Decision::SplitBrain,
        Relation::Nothing => return Decision::NoGoodCopy,
        Relation::Newer(source, method) => (source, method),
        Relation::Equal => match (primary(Which::Me), primary(Which::Peer)) {
            (true, true) => return Decision::TwoPrimaries,
            (true, false) => (Which::Me, Method::Marks),
            (false, true) => (Which::Peer, Method::Marks),
            (false, false) => match (complete(Which::Me), complete(Which::Peer)) {
                (true, false) => (Which::Me, Method::Marks),
                (false, true) => (Which::Peer, Method::Marks),
                // Nothing to move until somebody is.
                _ => return Decision::NoPrimary,
            },
        },
    };
    if !complete(source) {
        Decision::SourceIncomplete { source }
    } else if !primary(source) {
        Decision::SourceNotPrimary { source }
    } else if primary(source.mirrored()) {
        Decision::StalePrimary { source }
    } else {
        Decision::Resync { source, method }
    }
}

#[cfg(test)]
mod tests;
