//! Two copies that will not come together: what their operators are told, on both nodes.

use std::collections::BTreeSet;
use std::fmt::Write;

use twinfold_protocol::handshake::{Decision, Method, Role, Which, after_giving_up, decide};
use twinfold_protocol::ids::{FileId, Generation};
use twinfold_protocol::limits;
use twinfold_protocol::marks::{DirtyMap, Intent};
use twinfold_protocol::primary::Link;
use twinfold_protocol::wire::{Account, Hello};

use super::{Engine, StandbyError};
use crate::state::Recovered;

/// Marks that are told apart for the number of changed objects, at most: some milliseconds.
const MAX_TOLD_APART: usize = 16_384;

/// What keeps the two copies apart.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Conflict {
    decision: Decision,
    generations: [Generation; 2],
    /// Both have marks of all that they have changed since they were together.
    marked: bool,
    /// Names both histories and what to do.
    text: String,
}

impl Engine {
    /// What this node says of itself to the peer, in this role.
    pub(crate) fn hello(&self, role: Role) -> Result<Hello, StandbyError> {
        let record = self.copy.get();
        let (objects, bytes) = self.changed();
        Ok(Hello {
            versions: Hello::VERSIONS,
            name: self.settings.name.clone(),
            role,
            copy: self.told_copy(role),
            epoch: record.epoch,
            resume: match role {
                Role::Primary => None,
                Role::Secondary => self.standby_resume()?,
            },
            account: Account {
                mount: self.settings.mount.display().to_string(),
                alone_since: record.alone_since,
                objects,
                bytes,
            },
        })
    }

    /// This node has met its peer, found at `peer`: notes whether something keeps the two
    /// copies apart, and says so once. Returns whether it was said now.
    pub(crate) fn met(&self, mine: &Hello, theirs: &Hello, peer: &str) -> bool {
        let found = conflict(mine, theirs, peer);
        let mut known = self.conflict.lock();
        let same = |a: &Conflict, b: &Conflict| {
            (a.decision, &a.generations) == (b.decision, &b.generations)
        };
        let is_new = match (&found, &*known) {
            (Some(now), Some(before)) => !same(now, before),
            (Some(_), None) => true,
            (None, _) => false,
        };
        if let (Some(found), true) = (&found, is_new) {
            tracing::error!("{}", found.text);
        }
        *known = found;
        drop(known);
        self.changes.ring();
        is_new
    }

    /// What keeps the two copies apart, if anything does.
    pub(super) fn conflict_text(&self) -> Option<String> {
        self.conflict.lock().as_ref().map(|c| c.text.clone())
    }

    /// Whether the marks are known not to reach back to what the peer has gone on from.
    pub(super) fn is_unmarked(&self) -> bool {
        let known = self.conflict.lock();
        known.as_ref().is_some_and(|c| !c.marked)
    }

    /// The two copies come together, or this node's part in it is another one now.
    pub(crate) fn no_conflict(&self) {
        if self.conflict.lock().take().is_some() {
            self.changes.ring();
        }
    }

    /// Whether this node is primary and nobody follows it: its peer may be primary too.
    pub(crate) fn is_primary_without_peer(&self) -> bool {
        self.role() == Some(Role::Primary)
            && matches!(
                self.core.lock().link(),
                Link::Alone | Link::Bridging { .. } | Link::Holding
            )
    }

    /// How many objects, and bytes of file data in them, this node has changed or may have
    /// changed since it was together with its peer; when there are very many, about so many.
    fn changed(&self) -> (u64, u64) {
        let (mut objects, mut bytes) = noted(&self.recovered.lock());
        let own = self.own.lock();
        let core = self.core.lock();
        let maps = [core.dirty(), core.suspect(), &own.dirty, &own.suspect];
        bytes += maps.iter().map(|map| map.block_bytes()).sum::<u64>();
        let counts = maps.map(DirtyMap::counts);
        let all: usize = counts.iter().map(|(objects, names)| objects + names).sum();
        // Writes wait for this lock, and the peer for the answer.
        if all > MAX_TOLD_APART {
            let each = counts.map(|(objects, names)| objects.max(names) as u64);
            let most = each.into_iter().max().unwrap_or(0);
            return (most.max(objects.len() as u64), bytes);
        }
        for map in maps {
            objects.extend(map.objects().map(|(file, _)| file));
            objects.extend(map.directories().map(|(file, _)| file));
        }
        (objects.len() as u64, bytes)
    }
}

/// The objects that notes name, and the bytes of the extents of them.
fn noted(notes: &Recovered) -> (BTreeSet<FileId>, u64) {
    let (mut objects, mut bytes) = (BTreeSet::new(), 0);
    for intent in &notes.intents {
        match intent {
            Intent::Extent { file, .. } => {
                objects.insert(*file);
                bytes += limits::EXTENT;
            }
            Intent::Attributes { file } | Intent::File { file } => {
                objects.insert(*file);
            }
            Intent::Directory { directory } => {
                objects.insert(*directory);
            }
            Intent::NewIds { .. } => {}
        }
    }
    (objects, bytes)
}

/// What keeps two copies apart that have met, seen from `mine`.
fn conflict(mine: &Hello, theirs: &Hello, peer: &str) -> Option<Conflict> {
    let decision = decide((&mine.copy, mine.role), (&theirs.copy, theirs.role));
    let text = match decision {
        Decision::SplitBrain => {
            let from = match common(mine, theirs) {
                Some(generation) => format!("generation {generation}"),
                None => "a common generation".into(),
            };
            format!("split brain: both copies went on alone from {from}")
        }
        Decision::Unrelated => "the two copies have no generation in common".into(),
        Decision::OtherModule => "the two copies belong to different modules".into(),
        Decision::TwoPrimaries => "both nodes are primary on one generation".into(),
        Decision::StalePrimary { source } => format!(
            "both nodes are primary, and {} has the newer copy",
            side(source)
        ),
        Decision::BothGivenUp => "both copies were given up".into(),
        _ => return None,
    };
    Some(Conflict {
        decision,
        generations: [mine.copy.current, theirs.copy.current],
        marked: after_giving_up(&mine.copy, &theirs.copy) == Method::Marks,
        text: format!(
            "{text}. This node: {}. The peer ({peer}): {}. Nothing is merged. {}",
            account(mine),
            account(theirs),
            remedy(decision, mine, theirs)
        ),
    })
}

fn side(which: Which) -> &'static str {
    match which {
        Which::Me => "this node",
        Which::Peer => "the peer",
    }
}

/// The newest generation that both have gone on from.
fn common(mine: &Hello, theirs: &Hello) -> Option<Generation> {
    let (a, b) = (&mine.copy, &theirs.copy);
    let mut of_mine = a.bases.iter().chain(&a.history);
    of_mine
        .find(|g| b.bases.contains(g) || b.history.contains(g))
        .copied()
}

fn account(hello: &Hello) -> String {
    let Account {
        alone_since,
        objects,
        bytes,
        ..
    } = hello.account;
    let role = match hello.role {
        Role::Primary => "primary",
        Role::Secondary => "secondary",
    };
    let mut text = format!("{role}, generation {}", hello.copy.current);
    if alone_since > 0 {
        let _ = write!(text, ", alone since {}", super::clock::utc(alone_since));
    }
    let _ = write!(text, ", {objects} objects with up to {bytes} bytes changed");
    text
}

/// What to run, and where.
fn remedy(decision: Decision, mine: &Hello, theirs: &Hello) -> String {
    let demote = |hello: &Hello| format!("twinfold-fs demote {}", quoted(&hello.account.mount));
    let give_up = |hello: &Hello| {
        let resync = format!(
            "twinfold-fs resync {} --discard-this-copy",
            quoted(&hello.account.mount)
        );
        match hello.role {
            Role::Primary => format!("{} && {resync}", demote(hello)),
            Role::Secondary => resync,
        }
    };
    match decision {
        Decision::StalePrimary { source } => {
            let (older, hello) = match source {
                Which::Me => (Which::Peer, theirs),
                Which::Peer => (Which::Me, mine),
            };
            format!("Run on {}: {}", side(older), demote(hello))
        }
        Decision::TwoPrimaries => format!(
            "Choose the copy to give up. To keep this node's, run on the peer: {}. To keep the \
             peer's, run on this node: {}",
            demote(theirs),
            demote(mine)
        ),
        Decision::SplitBrain | Decision::Unrelated => format!(
            "Choose the copy to give up; what it has changed is kept in an archive. To keep this \
             node's copy, run on the peer: {}. To keep the peer's copy, run on this node: {}",
            give_up(theirs),
            give_up(mine)
        ),
        other => other.advice().unwrap_or_default(),
    }
}

/// A path as a shell takes it.
fn quoted(path: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "/._-".contains(c);
    match path.chars().all(plain) {
        true => path.to_owned(),
        false => format!("'{}'", path.replace('\'', "'\\''")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::bed::opened;
    use super::*;
    use twinfold_protocol::handshake::CopyState;
    use twinfold_protocol::ids::{Epoch, ModuleId};

    /// Every write waits while they are counted, and the peer for the answer.
    #[test]
    fn few_changed_objects_are_told_exactly_and_very_many_without_looking_at_each() {
        let (engine, _place) = opened(true);
        let mark = |ids: std::ops::Range<u64>| {
            let mut core = engine.core.lock();
            core.mark(|map| ids.clone().for_each(|id| map.mark_unknown(FileId(id))));
            let mut marks = DirtyMap::default();
            ids.for_each(|id| marks.mark_attributes(FileId(id + 10)));
            core.add_suspects(marks);
        };
        let told = || engine.hello(Role::Primary).unwrap().account.objects;
        mark(5000..5100);
        assert_eq!(told(), 110);
        // None of them is counted twice, and none looked at.
        let many = MAX_TOLD_APART as u64;
        mark(5000..5000 + many);
        assert_eq!(told(), many);
    }

    fn hello(mount: &str, current: u128, base: u128) -> Hello {
        Hello {
            versions: Hello::VERSIONS,
            name: "vm".into(),
            role: Role::Primary,
            copy: CopyState {
                module: ModuleId(1),
                current: Generation(current << 96),
                bases: vec![Generation(base << 96)],
                up_to_date: true,
                ..CopyState::default()
            },
            epoch: Epoch(1),
            resume: None,
            account: Account {
                mount: mount.into(),
                alone_since: 1_764_356_645,
                objects: 3,
                bytes: 4096,
            },
        }
    }

    #[test]
    fn both_nodes_name_both_histories_and_the_commands_that_resolve_it() {
        let (mine, theirs) = (hello("/vm", 0xa, 1), hello("/my vm", 0xb, 1));
        let here = conflict(&mine, &theirs, "10.0.0.2").unwrap();
        let there = conflict(&theirs, &mine, "10.0.0.1").unwrap();
        for text in [&here.text, &there.text] {
            for part in [
                "split brain: both copies went on alone from generation 00000001",
                "generation 0000000a, alone since 2025-11-28 19:04:05 UTC, 3 objects with up to 4096 bytes",
                "generation 0000000b",
                "twinfold-fs demote /vm && twinfold-fs resync /vm --discard-this-copy",
                "twinfold-fs demote '/my vm' && twinfold-fs resync '/my vm' --discard-this-copy",
            ] {
                assert!(text.contains(part), "{part}: {text}");
            }
        }
        assert!(
            here.text
                .contains("keep the peer's copy, run on this node: twinfold-fs demote /vm &&")
        );
        assert!(
            there
                .text
                .contains("keep this node's copy, run on the peer: twinfold-fs demote /vm &&")
        );
    }

    #[test]
    fn a_stale_primary_is_told_to_step_down_on_the_right_node() {
        let (new, mut old) = (hello("/new", 2, 1), hello("/old", 1, 9));
        old.copy.bases.clear();
        let there = conflict(&new, &old, "b").unwrap().text;
        assert!(
            there.contains("Run on the peer: twinfold-fs demote /old"),
            "{there}"
        );
        let here = conflict(&old, &new, "a").unwrap().text;
        assert!(
            here.contains("Run on this node: twinfold-fs demote /old"),
            "{here}"
        );
        old.role = Role::Secondary;
        assert_eq!(
            conflict(&new, &old, "b"),
            None,
            "they come together by themselves"
        );
    }
}
