//! From what the driver tells to what the automaton is told.

use std::time::Duration;

use fs_driver::control::{Request, Standing};
use fs_driver::engine::LinkState;
use fs_driver::setup::stopped;
use twinfold_protocol::automaton::{Copy, Effect, Event, Link};
use twinfold_protocol::handshake::{CopyState, Role};
use twinfold_protocol::ids::SessionId;

use super::Runner;
use super::memory::{WantedName, now};
use crate::peer::part;

/// How often it is noted that the copies are equal, in seconds.
const EQUAL_AGAIN: u64 = 30;

/// Whether copies that were equal then are recent enough. A clock that was set back says
/// nothing.
pub(super) fn is_recent(equal_at: u64, delta: Duration) -> bool {
    now()
        .checked_sub(equal_at)
        .is_some_and(|age| age < delta.as_secs())
}

impl Runner {
    /// The driver tells how it stands.
    pub(super) fn stands(&mut self, standing: Box<Standing>) {
        self.pid = Some(standing.pid);
        let before = self.standing.replace(standing);
        let now = self.standing.as_ref().expect("it was put there");
        let troubles = |s: &Standing| [s.fenced.clone(), s.conflict.clone(), s.trouble.clone()];
        let old = before.as_deref().map(troubles).unwrap_or_default();
        let new = troubles(now);
        // What follows the first sentence counts what happens meanwhile.
        let same = |old: &Option<String>, new: &String| {
            let first = |text: &str| text.split(". ").next().map(str::to_owned);
            old.as_deref().and_then(first) == first(new)
        };
        for (old, new) in old.into_iter().zip(new) {
            if let Some(text) = new.filter(|n| !same(&old, n)) {
                self.say("driver", text);
            }
        }
        self.settle();
        self.meet();
    }

    /// The role the driver has, as the automaton sees it. One that took over from a peer whose
    /// disk has failed still follows, until the application comes.
    pub(super) fn part(standing: &Standing) -> Option<Role> {
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
        let counts = equal && !self.setup.config.service.syncdelta.is_zero();
        self.compare_if_told(standing, role);
        self.discard_if_told(standing, role);
        let syncing = role == Role::Secondary && standing.link == LinkState::Syncing;
        self.remember(|m| {
            if standing.session.is_some() {
                m.session = standing.session;
            }
            if counts && now().abs_diff(m.equal_at) >= EQUAL_AGAIN {
                m.equal_at = now();
            }
            // The peer has gone on, or is about to, and nobody is asked: a disk that comes back
            // with what was on it is not recent.
            if matches!(standing.link, LinkState::HandingOver | LinkState::AtPeer) {
                m.equal_at = 0;
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
            recent: false,
        });
    }

    /// Everything in this copy is compared, if that is what the operator wants and there is a
    /// primary to compare it with. What was begun is begun again by each driver, until it
    /// has ended.
    fn compare_if_told(&mut self, standing: &Standing, role: Role) {
        if !self.memory.get().fullsync {
            return;
        }
        let equal = matches!(standing.link, LinkState::Paired);
        match (role, self.compares) {
            (Role::Primary, _) => self.remember(|m| m.fullsync = false),
            (Role::Secondary, Some((pid, before))) if pid == standing.pid => {
                // Equal again, in a later session than the one that was broken off.
                if standing.current && standing.session.is_some_and(|now| now != before) {
                    self.say("driver", "everything is compared");
                    self.compares = None;
                    self.remember(|m| m.fullsync = false);
                }
            }
            (Role::Secondary, _) => {
                // With a primary that is there, and has all.
                let Some(session) = standing.session else {
                    return;
                };
                if !equal {
                    return;
                }
                self.compares = Some((standing.pid, session));
                self.say("driver", "compares everything with the primary's copy");
                self.work(0, Duration::ZERO, |place| {
                    place.ask(Request::CompareEverything).map(drop)
                });
            }
        }
    }

    /// This copy is given up, if that is what the operator wants and something keeps it from
    /// following. The word is for this time: whatever else happens takes it back.
    fn discard_if_told(&mut self, standing: &Standing, role: Role) {
        if !self.memory.get().discard {
            return;
        }
        let follows = matches!(standing.link, LinkState::Paired | LinkState::Syncing);
        if role == Role::Secondary && standing.conflict.is_none() && !follows {
            // The peer was not met yet.
            return;
        }
        self.remember(|m| m.discard = false);
        if role == Role::Secondary && !follows {
            self.say(
                "driver",
                "gives up this copy; what only it has goes into its archive",
            );
            let request = Request::Discard {
                without_archive: false,
            };
            self.work(0, Duration::ZERO, move |place| place.ask(request).map(drop));
        }
    }

    /// The copy is this, and what is remembered of it.
    fn copy_is(&mut self, copy: Copy) {
        let memory = self.memory.get();
        let copy = Copy {
            was: memory.was.map(Role::from),
            session: memory.session.map(|s| SessionId(s.0)),
            recent: is_recent(memory.equal_at, self.setup.config.service.syncdelta),
            ..copy
        };
        if copy != self.copy {
            self.copy = copy.clone();
            self.events.push_back(Event::Copy(copy));
        }
    }

    fn tell_link(&mut self, standing: &Standing, role: Role) {
        let link = match (role, standing.link) {
            (Role::Secondary, _) if standing.serves_peer => Link::Heir,
            // Also while a peer is back that does not do what it was dropped for.
            (Role::Primary, _) if standing.question.is_some() => {
                standing.question.map_or(Link::None, Link::Holding)
            }
            // It is answered, and not carried out yet.
            (Role::Primary, LinkState::Holding) => return,
            // One that is fenced is left to the operator.
            (Role::Primary, LinkState::Forsaken) if standing.fenced.is_none() => Link::Forsaken,
            // It may come back; nobody decides anything yet.
            (Role::Primary, LinkState::Bridging) => return,
            (_, LinkState::Syncing | LinkState::Comparing) => Link::Syncing,
            (Role::Primary, LinkState::HandingOver | LinkState::AtPeer) => Link::AtPeer,
            (_, LinkState::Paired | LinkState::HandingOver | LinkState::AtPeer) => Link::Paired,
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
                recent: false,
            }),
            Err(error) => self.say("error", format!("{error:#}")),
        }
    }
}
