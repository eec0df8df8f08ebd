//! From what the driver tells to what the automaton is told.

use fs_driver::control::Standing;
use fs_driver::engine::LinkState;
use fs_driver::setup::stopped;
use twinfold_protocol::automaton::{Copy, Effect, Event, Link};
use twinfold_protocol::handshake::{CopyState, Role};
use twinfold_protocol::ids::SessionId;

use super::Runner;
use super::memory::WantedName;
use crate::peer::part;

impl Runner {
    /// The driver tells how it stands.
    pub(super) fn stands(&mut self, standing: Box<Standing>) {
        self.pid = Some(standing.pid);
        let before = self.standing.replace(standing);
        let now = self.standing.as_ref().expect("it was put there");
        let troubles = |s: &Standing| [s.fenced.clone(), s.conflict.clone(), s.trouble.clone()];
        let old = before.as_deref().map(troubles).unwrap_or_default();
        let new = troubles(now);
        for (old, new) in old.into_iter().zip(new) {
            if let Some(text) = new.filter(|n| old.as_ref() != Some(n)) {
                self.say("driver", text);
            }
        }
        self.settle();
    }

    /// The role the driver has, as the automaton sees it. One that took over from a peer whose
    /// disk has failed still follows, until the application comes.
    fn part(standing: &Standing) -> Option<Role> {
        match standing.serves_peer {
            true => Some(Role::Secondary),
            false => standing.role.map(Role::from),
        }
    }

    /// What the driver told last becomes events, as far as nothing is under way.
    pub(super) fn settle(&mut self) {
        let Some(standing) = self.standing.clone() else {
            return;
        };
        let Some(role) = Runner::part(&standing) else {
            return;
        };
        if let Some(pending) = self.pending {
            let to = match pending.effect {
                Effect::Start(role, _) => Some(role),
                Effect::Promote(_) => Some(Role::Primary),
                Effect::Demote => Some(Role::Secondary),
                _ => None,
            };
            if !pending.done || to != Some(role) || !standing.mounted {
                return;
            }
            self.pending = None;
            self.failures = 0;
            self.becomes(&standing, role);
        } else if self.role != Some(role) {
            self.becomes(&standing, role);
        }
        self.tell_copy(&standing, role);
        self.tell_link(&standing, role);
    }

    /// The driver is up in this role.
    fn becomes(&mut self, standing: &Standing, role: Role) {
        self.role = Some(role);
        self.link = None;
        self.remember(|m| {
            if role == Role::Primary {
                m.was = Some(part(role));
                m.yielded = None;
            }
            // The operator's word was for this start.
            if m.wanted != WantedName::Stopped {
                m.wanted = WantedName::Running;
            }
        });
        self.tell_copy(standing, role);
        self.events.push_back(Event::DriverUp(role));
    }

    fn tell_copy(&mut self, standing: &Standing, role: Role) {
        let equal = matches!(standing.link, LinkState::Paired);
        let syncing = role == Role::Secondary && standing.link == LinkState::Syncing;
        self.remember(|m| {
            if standing.session.is_some() {
                m.session = standing.session;
            }
            if equal {
                m.was = Some(part(role));
            }
            // What was yielded is equal again, or is not what it was.
            if standing.copy.up_to_date || syncing {
                m.yielded = None;
            }
        });
        self.copy_is(Copy {
            state: CopyState::from(&standing.copy),
            was: None,
            shared: standing.shared,
            current: standing.current,
            session: None,
        });
    }

    /// The copy is this, and what is remembered of it.
    fn copy_is(&mut self, copy: Copy) {
        let memory = self.memory.get();
        let copy = Copy {
            was: memory.was.map(Role::from),
            session: memory.session.map(|s| SessionId(s.0)),
            ..copy
        };
        if copy != self.copy {
            self.copy = copy.clone();
            self.events.push_back(Event::Copy(copy));
        }
    }

    fn tell_link(&mut self, standing: &Standing, role: Role) {
        let link = match (role, standing.link) {
            (Role::Primary, LinkState::Holding) => match standing.question {
                Some(question) => Link::Holding(question),
                // It is answered, and not carried out yet.
                None => return,
            },
            // It may come back; nobody decides anything yet.
            (Role::Primary, LinkState::Bridging) => return,
            (_, LinkState::Syncing | LinkState::Comparing) => Link::Syncing,
            (_, LinkState::Paired | LinkState::HandingOver | LinkState::AtPeer) => Link::Paired,
            (Role::Secondary, _) if standing.serves_peer => Link::Paired,
            (_, _) => Link::None,
        };
        if self.link != Some(link) {
            self.link = Some(link);
            self.events.push_back(Event::Link(link));
        }
    }

    /// The driver has ended.
    pub(super) fn driver_gone(&mut self, pid: u32, why: &str) {
        if self.pid != Some(pid) {
            return;
        }
        let stopping = self.pending.is_some_and(|p| p.effect == Effect::StopDriver);
        match stopping {
            true => self.say("driver", "stopped"),
            false => {
                self.say("driver", format!("process {pid} is gone: {why}"));
                self.failures += 1;
            }
        }
        self.pid = None;
        self.standing = None;
        self.pending = None;
        self.down();
    }

    /// No driver runs: what the copy is worth is read from its file.
    pub(super) fn down(&mut self) {
        self.role = None;
        self.link = None;
        // The peer waits for this; what the copy is comes behind it.
        self.events.push_back(Event::DriverDown);
        match stopped::history(&self.setup.place.layout) {
            Ok((history, shared)) => self.copy_is(Copy {
                state: CopyState::from(&history),
                was: None,
                shared,
                current: false,
                session: None,
            }),
            Err(error) => self.say("error", format!("{error:#}")),
        }
    }
}
