//! What two copies are to each other, judged from generations, never from clocks
//! (invariant 13).
//!
//! ```text
//! mine against theirs                              decision
//! ------------------------------------------------ ---------------------------
//! modules differ                                   unrelated
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
#[derive(Clone, PartialEq, Eq, Debug, Default)]
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
}

impl CopyState {
    /// The state after going on without the peer under the new generation `next`.
    #[must_use]
    pub fn go_alone(&self, next: Generation) -> CopyState {
        let mut state = self.clone();
        if !state.bases.contains(&state.current) && state.current.is_some() {
            state.bases.insert(0, state.current);
        }
        state.remember(next);
        state
    }

    /// The state of a resync target after its last flush: it adopts the source's generation.
    #[must_use]
    pub fn adopt(&self, module: ModuleId, generation: Generation) -> CopyState {
        let mut state = self.clone();
        state.module = module;
        state.bases.clear();
        state.remember(generation);
        state.up_to_date = true;
        state
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
    /// The copies have nothing in common.
    Unrelated,
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
                "neither copy was ever named the good one: run `init --good-copy` on \
                 the node whose data shall be kept"
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
                "split brain: both nodes went on alone from a common generation; choose \
                 the copy to give up and run `resync --discard-this-copy` on its node"
                    .into()
            }
            Decision::Unrelated => {
                "the two copies belong to different modules or have no generation in \
                 common: check that the right folders are paired, or run `resync \
                 --discard-this-copy` on the node whose data may be overwritten"
                    .into()
            }
        })
    }
}

enum Relation {
    Newer(Which, Method),
    Equal,
    Split,
    Unrelated,
    Nothing,
}

fn relation(me: &CopyState, peer: &CopyState) -> Relation {
    if me.module.is_some() && peer.module.is_some() && me.module != peer.module {
        return Relation::Unrelated;
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
    let (source, method) = match relation(me.0, peer.0) {
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
                // Two equal copies and nobody primary: nothing to move until someone is.
                _ => return Decision::NoGoodCopy,
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
mod tests {
    use super::*;

    fn g(n: u128) -> Generation {
        Generation(n)
    }

    fn copy(current: u128, bases: &[u128], history: &[u128]) -> CopyState {
        CopyState {
            module: ModuleId(9),
            current: g(current),
            bases: bases.iter().map(|n| g(*n)).collect(),
            history: history.iter().map(|n| g(*n)).collect(),
            up_to_date: true,
        }
    }

    fn sees(me: &CopyState, peer: &CopyState) -> Decision {
        decide((me, Role::Primary), (peer, Role::Secondary))
    }

    const FROM_ME: Decision = Decision::Resync {
        source: Which::Me,
        method: Method::Marks,
    };

    #[test]
    fn a_peer_that_was_away_is_resynced_from_the_marks() {
        let away = copy(1, &[], &[]);
        let alone = away.go_alone(g(2));
        assert_eq!(sees(&alone, &away), FROM_ME);
        assert_eq!(
            decide((&away, Role::Secondary), (&alone, Role::Primary)),
            FROM_ME.mirrored()
        );
    }

    #[test]
    fn a_source_that_does_not_know_whether_the_resync_ended_keeps_both_bases() {
        let before = copy(1, &[], &[]);
        let source = before.go_alone(g(2));
        let adopted = before.adopt(ModuleId(9), g(2));
        // The connection broke around the end of the resync; the source goes on alone.
        let source = source.go_alone(g(3));
        assert_eq!(sees(&source, &before), FROM_ME);
        assert_eq!(sees(&source, &adopted), FROM_ME);
    }

    #[test]
    fn going_on_twice_from_one_generation_is_a_split_brain() {
        let common = copy(1, &[], &[]);
        let (a, b) = (common.go_alone(g(2)), common.go_alone(g(3)));
        for role in [Role::Primary, Role::Secondary] {
            assert_eq!(
                decide((&a, Role::Primary), (&b, role)),
                Decision::SplitBrain
            );
        }
    }

    #[test]
    fn an_old_copy_is_compared_whole() {
        let old = copy(1, &[], &[]);
        let new = copy(3, &[2], &[2, 1]);
        assert_eq!(
            sees(&new, &old),
            Decision::Resync {
                source: Which::Me,
                method: Method::Compare
            }
        );
    }

    #[test]
    fn a_stale_primary_is_named_and_nothing_moves() {
        let old = copy(1, &[], &[]);
        let new = old.go_alone(g(2));
        assert_eq!(
            decide((&old, Role::Primary), (&new, Role::Primary)),
            Decision::StalePrimary {
                source: Which::Peer
            }
        );
        assert_eq!(
            decide((&old, Role::Primary), (&new, Role::Secondary)),
            Decision::SourceNotPrimary {
                source: Which::Peer
            }
        );
    }

    #[test]
    fn an_interrupted_target_is_no_source() {
        let mut target = copy(2, &[1], &[1]);
        target.up_to_date = false;
        let other = copy(1, &[], &[]);
        assert_eq!(
            sees(&target, &other),
            Decision::SourceIncomplete { source: Which::Me }
        );
    }

    /// Every pair of copies over a small universe, in every pair of roles: the two
    /// decisions mirror each other, a resync never takes an incomplete copy or a
    /// secondary for its source, and never overwrites a newer copy with an older.
    #[test]
    fn the_whole_table_is_mirrored_and_safe() {
        let mut copies = Vec::new();
        let sets: [&[u128]; 5] = [&[], &[1], &[2], &[1, 2], &[3]];
        for module in [0, 9, 8] {
            for current in 0..4 {
                for bases in sets {
                    for history in sets {
                        for up_to_date in [false, true] {
                            let mut state = copy(current, bases, history);
                            state.module = ModuleId(module);
                            state.up_to_date = up_to_date;
                            copies.push(state);
                        }
                    }
                }
            }
        }
        let roles = [Role::Primary, Role::Secondary];
        let mut seen = std::collections::HashSet::new();
        for a in &copies {
            for b in &copies {
                for ra in roles {
                    for rb in roles {
                        let d = decide((a, ra), (b, rb));
                        assert_eq!(d.mirrored(), decide((b, rb), (a, ra)), "{a:?} {b:?}");
                        seen.insert(d);
                        if let Decision::Resync { source, .. } = d {
                            let (source, role, target, target_role) = match source {
                                Which::Me => (a, ra, b, rb),
                                Which::Peer => (b, rb, a, ra),
                            };
                            assert!(source.up_to_date && role == Role::Primary);
                            assert!(target_role == Role::Secondary);
                            // A copy that went on from the source's generation is never the target.
                            assert!(
                                !target.bases.contains(&source.current)
                                    || target.current == source.current
                                    || !target.current.is_some()
                            );
                            assert_eq!(d.advice(), None);
                        } else {
                            assert!(d.advice().is_some());
                        }
                    }
                }
            }
        }
        assert!(seen.len() >= 12, "the universe is too small: {seen:?}");
    }
}
