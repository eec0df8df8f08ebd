//! What the operator wants.

use twinfold_protocol::automaton::{Event, State, Status};

use super::app::Job;
use super::memory::WantedName;
use super::{Command, Runner};

impl Runner {
    pub(super) fn want(&mut self, wanted: WantedName) {
        self.remember(|m| m.wanted = wanted);
        self.events.push_back(Event::Want(wanted.into()));
    }

    pub(super) fn command(&mut self, command: Command) -> Result<String, String> {
        self.say("command", format!("{command:?}").to_lowercase());
        self.loops.clear();
        self.failures = 0;
        let stopped = self.seen.0 == State::Stop && self.next_want.is_none();
        let (state, status, _) = &self.seen;
        match command {
            Command::Start | Command::Prim | Command::Primforce | Command::Second => {
                let wanted = match command {
                    Command::Prim => WantedName::Prim,
                    Command::Primforce => WantedName::Primforce,
                    Command::Second => WantedName::Second,
                    _ => WantedName::Running,
                };
                self.again = false;
                if stopped {
                    self.next_want = Some(wanted);
                    self.setup.scripts.set_forced(false);
                    self.job(Job::Prestart);
                } else if command != Command::Start
                    || self.memory.get().wanted == WantedName::Stopped
                {
                    self.want(wanted);
                }
                Ok("starting".into())
            }
            Command::Stop | Command::Forcestop => {
                self.again = false;
                self.next_want = None;
                self.setup.scripts.set_forced(command == Command::Forcestop);
                self.want(WantedName::Stopped);
                Ok("stopping".into())
            }
            Command::Stopstart => {
                if stopped {
                    return Err("the module is stopped: use `start`".into());
                }
                self.again = true;
                self.want(WantedName::Stopped);
                Ok("stopping, then starting".into())
            }
            Command::Restart => {
                let serves = matches!(state, State::Alone | State::Prim);
                if !serves || *status != Status::Ready {
                    return Err("the application does not run here".into());
                }
                self.restart_app();
                Ok("restarting the application".into())
            }
            Command::Swap => {
                if !matches!(state, State::Prim | State::Second) || *status != Status::Ready {
                    return Err(
                        "the roles can be exchanged when one node is PRIM and the other SECOND, \
                         both Ready"
                            .into(),
                    );
                }
                self.events.push_back(Event::Swap);
                Ok("exchanging the roles".into())
            }
        }
    }
}
