//! What the operator wants.

use twinfold_protocol::automaton::{Event, State, Status, Wanted};

use super::app::Job;
use super::memory::WantedName;
use super::{Command, Runner};
use crate::peer::StateName;

impl Runner {
    pub(super) fn want(&mut self, wanted: WantedName) {
        self.remember(|m| m.wanted = wanted);
        self.events.push_back(Event::Want(wanted.into()));
    }

    /// Starts the module from nothing, with what is to be wanted then.
    pub(super) fn starts(&mut self, wanted: WantedName) {
        self.next_want = Some(wanted);
        self.remember(|m| m.next = Some(wanted));
        self.job(Job::Prestart);
    }

    /// It is not started again when it has stopped.
    pub(super) fn forget_next(&mut self) {
        self.again = false;
        self.remember(|m| m.next = None);
    }

    /// Whether a forced word was given up for a rule that says to wait.
    fn dropped(&self, wanted: WantedName) -> bool {
        wanted.is_forced() && self.memory.get().held == Some(WantedName::Running)
    }

    pub(super) fn command(&mut self, command: Command) -> Result<String, String> {
        self.say("command", format!("{command:?}").to_lowercase());
        if let Some(answer) = self.is_so(command) {
            return answer;
        }
        // A node that is shut down says nothing of its modules.
        if command != Command::Shutdown {
            self.loops.clear();
            self.remember(|m| m.loops.clear());
        }
        self.failures = 0;
        let held = self.memory.get().held.is_some();
        let mut stopped = self.seen.0 == State::Stop && self.next_want.is_none() && !held;
        let stays = matches!(
            command,
            Command::BootOn
                | Command::BootOff
                | Command::Swap
                | Command::Restart
                | Command::Suspend
                | Command::Resume
        );
        if !stays {
            // The operator decides, not the boot.
            stopped |= self.boots_at.take().is_some();
            let shutdown = command == Command::Shutdown;
            self.remember(|m| {
                let ran = m.until_boot || m.wanted != WantedName::Stopped || held;
                m.until_boot = shutdown && ran;
            });
        }
        let (state, status, _) = &self.seen;
        match command {
            Command::BootOn | Command::BootOff => {
                let on = command == Command::BootOn;
                self.remember(|m| m.at_boot = Some(on));
                Ok(match on {
                    true => "starts with the node".into(),
                    false => "does not start with the node".into(),
                })
            }
            Command::Start
            | Command::Prim
            | Command::Primforce
            | Command::Second
            | Command::Fullsync
            | Command::Discard => {
                if let Some(why) = self.differs() {
                    if stopped {
                        // Also what was to start with the node.
                        self.events.push_back(Event::Want(Wanted::Stopped));
                    }
                    return Err(why);
                }
                let serves = matches!(state, State::Alone | State::Prim);
                if command == Command::Fullsync && serves {
                    return Err("this node serves: run it on the other one".into());
                }
                if command == Command::Discard && serves {
                    return Err("this node serves: stop it first".into());
                }
                self.compares = None;
                self.remember(|m| {
                    m.discard = command == Command::Discard;
                    m.fullsync = match command {
                        Command::Fullsync => true,
                        Command::Start | Command::Second => m.fullsync,
                        _ => false,
                    }
                });
                let wanted = match command {
                    Command::Prim => WantedName::Prim,
                    Command::Primforce => WantedName::Primforce,
                    Command::Second | Command::Fullsync | Command::Discard => WantedName::Second,
                    _ => WantedName::Running,
                };
                self.forget_next();
                // A stop that was to be forced has ended, or is taken back.
                self.setup.scripts.set_forced(false);
                let waits = "it starts, in whatever role, as soon as no rule says to wait: the word \
                             is not kept until then. Repair what it waits for, or turn the \
                             checkers off (`checker off`), and say it again";
                if held {
                    self.remember(|m| m.held = Some(wanted));
                    self.judge();
                    return match self.dropped(wanted) {
                        true => Err(waits.into()),
                        false => Ok("it starts as soon as no rule says to wait".into()),
                    };
                }
                if stopped {
                    self.begin(wanted);
                    if self.dropped(wanted) {
                        return Err(waits.into());
                    }
                } else if command != Command::Start
                    || self.memory.get().wanted == WantedName::Stopped
                {
                    self.want(wanted);
                }
                Ok("starting".into())
            }
            Command::Stop | Command::Forcestop | Command::Shutdown => {
                self.forget_next();
                self.next_want = None;
                self.remember(|m| m.held = None);
                self.setup.scripts.set_forced(command == Command::Forcestop);
                let question = self.standing.as_ref().and_then(|s| s.question);
                if let (Command::Forcestop, Some(question)) = (command, question) {
                    self.forsake(question);
                }
                self.want(WantedName::Stopped);
                Ok("stopping".into())
            }
            Command::Stopstart => {
                if stopped {
                    return Err("the module is stopped: use `start`".into());
                }
                if held {
                    return Err("the module waits for what a rule says".into());
                }
                self.again = true;
                self.remember(|m| m.next = Some(WantedName::Running));
                self.want(WantedName::Stopped);
                Ok("stopping, then starting".into())
            }
            Command::Restart => {
                let serves = matches!(state, State::Alone | State::Prim);
                if !serves || *status != Status::Ready {
                    return Err("the application does not run here".into());
                }
                self.events.push_back(Event::Restart);
                Ok("restarting the application".into())
            }
            Command::Suspend | Command::Resume => {
                let suspended = command == Command::Suspend;
                self.remember(|m| m.suspended = suspended);
                Ok(match suspended {
                    true => "checkers and rules are suspended, until `checker on`".into(),
                    false => "checkers and rules work".into(),
                })
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

    /// What is said to a word about this node's role that is so already or cannot be followed
    /// now. It is not kept for later: what is right beside a peer that serves may be the loss of
    /// its data tomorrow.
    fn is_so(&self, command: Command) -> Option<Result<String, String>> {
        let wants_prim = matches!(command, Command::Prim | Command::Primforce);
        if !wants_prim && command != Command::Second {
            return None;
        }
        let (state, _, _) = self.seen;
        let name = StateName::from(state).text();
        let why = match state {
            State::Alone | State::Prim if wants_prim => return Some(Ok("it serves".into())),
            State::Second if !wants_prim => return Some(Ok("it follows".into())),
            State::Alone | State::Prim => "`swap` exchanges the roles, `stop` ends its service",
            State::Second => "`swap` exchanges the roles; to follow no more, `stop` it first",
            State::Stop | State::Wait => {
                let serves = self.peer.as_ref().is_some_and(|v| v.serves) && !self.silent;
                return (wants_prim && serves).then(|| {
                    Err(format!(
                        "{} serves: `stop` the module there first, or `start` it here and then \
                         `swap`",
                        self.hub.cluster.peer
                    ))
                });
            }
        };
        Some(Err(format!("the module is {name} here: {why}")))
    }
}
