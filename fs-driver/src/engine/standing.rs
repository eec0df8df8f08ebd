//! What a controller decides from, and what it tells this driver: the copy's history, the
//! relation to the peer, yielding, going on by right.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use anyhow::Result;
use serde::{Deserialize, Serialize};
use twinfold_protocol::handshake::{CopyState, Role};
use twinfold_protocol::ids::{Generation, ModuleId, SessionId};
use twinfold_protocol::primary::Link;

use super::roles::Claim;
use super::status::link_state;
use super::{Engine, LinkState, Standby};
use crate::bell::Bell;
use crate::state::Record;

/// A random id in all its digits, as text: 128 bits are more than a number in JSON holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Hex(pub u128);

impl From<Hex> for String {
    fn from(id: Hex) -> String {
        format!("{:032x}", id.0)
    }
}

impl TryFrom<String> for Hex {
    type Error = std::num::ParseIntError;

    fn try_from(text: String) -> Result<Hex, Self::Error> {
        u128::from_str_radix(&text, 16).map(Hex)
    }
}

/// The history of a copy, in full.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct History {
    /// The module.
    pub module: Hex,
    /// The generation; 0: none.
    pub current: Hex,
    /// Generations for which the marks are complete.
    pub bases: Vec<Hex>,
    /// Earlier generations, newest first.
    pub history: Vec<Hex>,
    /// The copy holds every acknowledged op of its generation.
    pub up_to_date: bool,
    /// It did until the power of its machine was cut: what was not synced may be gone.
    #[serde(default)]
    pub cut: bool,
    /// It did until it gave way to the peer's.
    #[serde(default)]
    pub gave_way: bool,
    /// Its operator gave it up.
    pub given_up: bool,
    /// It was made good by force.
    pub forced: bool,
}

impl From<&CopyState> for History {
    fn from(copy: &CopyState) -> History {
        let all = |list: &[Generation]| list.iter().map(|g| Hex(g.0)).collect();
        History {
            module: Hex(copy.module.0),
            current: Hex(copy.current.0),
            bases: all(&copy.bases),
            history: all(&copy.history),
            up_to_date: copy.up_to_date,
            cut: copy.cut,
            gave_way: copy.gave_way,
            given_up: copy.given_up,
            forced: copy.forced,
        }
    }
}

impl From<&History> for CopyState {
    fn from(told: &History) -> CopyState {
        let all = |list: &[Hex]| list.iter().map(|g| Generation(g.0)).collect();
        CopyState {
            module: ModuleId(told.module.0),
            current: Generation(told.current.0),
            bases: all(&told.bases),
            history: all(&told.history),
            up_to_date: told.up_to_date,
            cut: told.cut,
            gave_way: told.gave_way,
            given_up: told.given_up,
            forced: told.forced,
        }
    }
}

/// What a controller decides from. Everything in one is of one moment; while a disk hangs
/// under a change, the part of a secondary is of the moment before that.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Standing {
    /// The driver's process.
    pub pid: u32,
    /// The module's name.
    pub name: String,
    /// `primary`, `secondary`, or nothing while starting, changing and stopping.
    pub role: Option<PartName>,
    /// The mount is there. Whether it is writable the role tells, once a change has ended.
    pub mounted: bool,
    /// Whoever calls at the TCP port beside the link's is let in while this process lives, at each
    /// of its addresses.
    #[serde(default)]
    pub present: bool,
    /// The relation to the peer.
    pub link: LinkState,
    /// The number of the question whether to go on alone, while that is open.
    pub question: Option<u64>,
    /// The session in which the copies are or were equal, if that was in this session.
    pub session: Option<Hex>,
    /// A secondary that was up to date until it lost its primary, in this very run.
    pub current: bool,
    /// The peer may hold an up-to-date copy of the same generation.
    pub shared: bool,
    /// The copy's history.
    pub copy: History,
    /// This node carries out the calls of the peer, whose disk has failed.
    pub serves_peer: bool,
    /// What keeps the two copies apart.
    pub conflict: Option<String>,
    /// What went wrong last.
    pub trouble: Option<String>,
    /// Why the node is fenced.
    pub fenced: Option<String>,
    /// Hundredths of the running resync.
    pub percent: Option<u8>,
}

/// A role, by name.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PartName {
    /// Its mount is writable.
    Primary,
    /// It applies what the primary sends.
    Secondary,
}

impl From<PartName> for Role {
    fn from(name: PartName) -> Role {
        match name {
            PartName::Primary => Role::Primary,
            PartName::Secondary => Role::Secondary,
        }
    }
}

/// Whether the peer may hold an up-to-date copy of the same generation.
pub(crate) fn is_shared(record: &Record) -> bool {
    record.paired || record.role == Some(Role::Secondary)
}

impl Engine {
    /// A controller decides from now on: this driver neither goes on alone nor gives way by
    /// itself.
    pub fn set_controlled(&self, on: bool) {
        self.controlled.store(on, Ordering::Release);
    }

    pub(crate) fn is_controlled(&self) -> bool {
        self.controlled.load(Ordering::Acquire)
    }

    /// Rings whenever something that [`Engine::standing`] tells may have changed, but for how far
    /// a running resync is.
    pub(crate) fn changes(&self) -> &Arc<Bell> {
        &self.changes
    }

    /// What a controller decides from, but for the mount and the ports, of which the engine knows
    /// nothing.
    pub fn standing(&self) -> Standing {
        let serves_peer = self.hosting().is_some();
        let comparing = self.counters.is_comparing();
        let connected = self.connection.lock().is_some();
        let percent = self.tracker.status(super::clock::now());
        let differs = self.is_differing();
        // In this order as where a role changes: the session, then the core.
        let (seen, standby) = self.standby.look();
        let core = self.core.lock();
        let role = self.role();
        let record = self.copy.get();
        // What is being changed for long was so before, unless it has begun to show already.
        let seen = seen.filter(|_| standby.is_some() || role == Some(Role::Secondary));
        let syncing = seen.map(|s| s.syncing);
        let current = seen.filter(|s| s.current && (standby.is_some() || record.copy.up_to_date));
        let equal = match role {
            Some(Role::Primary) => match core.link() {
                Link::Alone | Link::Syncing | Link::Finishing { .. } => None,
                _ => core.session(),
            },
            _ => current.map(|s| s.session),
        };
        Standing {
            pid: std::process::id(),
            name: self.settings.name.clone(),
            role: role.map(|r| match r {
                Role::Primary => PartName::Primary,
                Role::Secondary => PartName::Secondary,
            }),
            mounted: false,
            present: false,
            link: link_state(role, core.link(), comparing, syncing.filter(|_| connected)),
            question: (role == Some(Role::Primary) && core.is_asking())
                .then(|| self.questions.load(Ordering::Acquire)),
            session: equal.map(|s| Hex(s.0)),
            current: current.is_some() && !differs,
            shared: is_shared(&record),
            copy: History::from(&self.told_copy(role.unwrap_or(Role::Secondary))),
            serves_peer,
            conflict: self.conflict_text(),
            trouble: self.trouble.lock().clone(),
            fenced: self.fenced().map(str::to_owned),
            percent: percent
                .filter(|r| matches!(r.phase, "comparing" | "moving" | "flushing"))
                .map(|r| r.percent as u8),
        }
    }

    /// Makes a secondary primary by right: nobody else goes on from its copy's generation, so
    /// the copy needs no more than to be complete. `yielded`: it gave way to a peer that did
    /// not go on, or the power of both was cut, and was complete until then.
    pub fn promote_by_right(self: &Arc<Self>, yielded: bool) -> Result<()> {
        self.promote_with(Claim::Right { yielded })
    }

    /// Goes on alone, if question number `question` is still open.
    pub fn go_on(self: &Arc<Self>, question: u64) -> bool {
        let mut core = self.core.lock();
        let same = core.is_asking()
            && self.questions.load(Ordering::Acquire) == question
            && core.go_alone();
        self.perform(core);
        same
    }

    /// Gives way: notes durably that this secondary's copy is not up to date, if it is still
    /// of this generation and was not made equal again since `session`. From then on the
    /// session is not resumed here, and nobody promotes the copy. Returns whether it yielded.
    pub fn yield_copy(
        &self,
        generation: Generation,
        session: Option<SessionId>,
    ) -> io::Result<bool> {
        let _ending = self.ending.lock();
        let mut standby = self.standby.lock();
        if self.role() != Some(Role::Secondary) || self.promoting.load(Ordering::Acquire) {
            return Ok(false);
        }
        let record = self.copy.get().copy;
        // One that is being brought up is not equal yet, and not up to date either.
        let since = standby
            .as_ref()
            .filter(|s| s.is_current())
            .map(Standby::session);
        let newer = since.is_some() && since != session;
        if record.current != generation || !(record.up_to_date || record.cut) || newer {
            return Ok(false);
        }
        self.copy.update(Record::give_way)?;
        *standby = None;
        drop(standby);
        tracing::warn!(%generation, "this copy gives way to the peer's");
        self.drop_connection("this node has given way");
        Ok(true)
    }

    /// Gives up what is known of this secondary's copy: it is not up to date any more, and
    /// everything in it is compared with its primary's.
    pub fn compare_everything(&self) -> io::Result<()> {
        let _ending = self.ending.lock();
        let mut standby = self.standby.lock();
        if self.role() != Some(Role::Secondary) || self.promoting.load(Ordering::Acquire) {
            return Err(io::Error::other("this node is not secondary"));
        }
        self.copy.update(Record::fall_behind)?;
        self.own.lock().suspect.mark_everything();
        *standby = None;
        drop(standby);
        tracing::warn!("everything in this copy is to be compared");
        self.drop_connection("this copy is to be compared whole");
        Ok(())
    }

    /// Closes the connection to the peer, which the controller knows to be gone.
    pub fn disconnect(&self, reason: &str) {
        self.drop_connection(reason);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use twinfold_protocol::ids::FileId;
    use twinfold_protocol::op::Op;
    use twinfold_protocol::verify::Question;

    use super::super::bed::{Bed, opened, paired};
    use super::super::clock;
    use super::*;

    /// Whoever follows the standing sleeps until it rings.
    fn rings(engine: &Engine, what: &str, change: impl FnOnce()) -> Standing {
        let (seen, before) = (engine.changes().count(), engine.standing());
        change();
        let after = engine.standing();
        assert_ne!(after, before, "{what} does not show");
        assert_ne!(engine.changes().count(), seen, "{what} is told to nobody");
        after
    }

    #[test]
    fn whatever_changes_in_a_primarys_standing_is_told() {
        let (engine, _place) = opened(true);
        engine.set_controlled(true);
        rings(&engine, "its role", || engine.start_primary(false).unwrap());
        let now = rings(&engine, "a peer", || {
            paired(&engine);
        });
        assert_eq!(now.link, LinkState::Paired);
        let trouble = || engine.set_trouble(Some("that".into()));
        rings(&engine, "a trouble", trouble);
        let seen = engine.changes().count();
        trouble();
        assert_eq!(engine.changes().count(), seen, "it is the same one");
        let lost = || engine.core.lock().peer_lost(clock::now(), "cut");
        let now = rings(&engine, "the loss of the peer", lost);
        assert_eq!((now.link, now.question), (LinkState::Bridging, None));
        let asks = || {
            let mut core = engine.core.lock();
            core.tick(clock::now().after(Duration::from_secs(3600)));
            engine.perform(core);
        };
        let now = rings(&engine, "a question", asks);
        assert_eq!((now.link, now.question), (LinkState::Holding, Some(1)));
        rings(&engine, "its answer", || assert!(engine.go_on(1)));
    }

    #[test]
    fn whatever_changes_in_a_secondarys_standing_is_told() {
        let mut bed = Bed::new(false);
        let engine = bed.engine.clone();
        rings(&engine, "its role", || engine.start_secondary().unwrap());
        bed.begin();
        let ended = || assert!(bed.sync(Op::ResyncEnd).unwrap().is_some());
        let now = rings(&engine, "the end of a resync", ended);
        assert!(now.current && now.copy.up_to_date);
        let file = FileId::ROOT;
        let question = Question::Object { file };
        let differs = || drop(bed.apply(&Op::Differs { question }).unwrap());
        rings(&engine, "that it differs", differs);
        let broken = io::Error::from_raw_os_error(5);
        rings(&engine, "a fence", || engine.fence("its state", &broken));
    }

    #[test]
    fn that_a_node_takes_over_from_its_peer_is_told() {
        let bed = Bed::current();
        let takes_over = || assert!(bed.sync(Op::TakeOver).unwrap().is_some());
        let now = rings(&bed.engine, "a take-over", takes_over);
        assert!(now.serves_peer);
        let promoted = || {
            bed.engine.begin_hosting();
            bed.engine.promote(false).unwrap();
        };
        rings(&bed.engine, "the application", promoted);
    }
}
