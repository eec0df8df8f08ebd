//! The application: its scripts one after the other, on a thread of their own.

use std::sync::mpsc::{Sender, channel};
use std::time::Instant;

use anyhow::{Context, Result};
use twinfold_protocol::automaton::{Event, State};

use super::memory::{AppName, WantedName};
use super::{Done, Input, Runner};
use crate::peer::StateName;
use crate::scripts::{Call, Scripts};

/// Scripts that belong together; the states are where they lead from and to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Job {
    /// Before the module starts.
    Prestart,
    /// This node serves.
    StartPrim(&'static str, &'static str),
    /// It does not serve any more.
    StopPrim(&'static str, &'static str),
    /// It follows.
    StartSecond(&'static str, &'static str),
    /// It does not follow any more.
    StopSecond(&'static str, &'static str),
    /// The module has stopped.
    Poststop(&'static str),
}

/// Starts the thread; jobs are done in the order in which they come. `down`: nothing of the
/// application runs.
pub(super) fn start(scripts: Scripts, inbox: Sender<Input>, down: bool) -> Result<Sender<Job>> {
    let (jobs, queue) = channel::<Job>();
    std::thread::Builder::new()
        .name("scripts".into())
        .spawn(move || {
            let mut both = !down;
            for job in queue {
                let result = carry_out(&scripts, job, &mut both).map_err(|e| format!("{e:#}"));
                if inbox.send(Input::Done(Done::Job(job, result))).is_err() {
                    return;
                }
            }
        })
        .context("cannot start the thread of the scripts")?;
    Ok(jobs)
}

/// `both`: `start_both` has run.
fn carry_out(scripts: &Scripts, job: Job, both: &mut bool) -> Result<()> {
    let call = |script, state, next, action| {
        scripts.call(Call {
            script,
            state,
            next,
            action,
        })
    };
    let mut begin = |from, to| {
        call("transition", from, to, "start")?;
        if !*both {
            call("start_both", from, to, "start")?;
            *both = true;
        }
        Ok::<_, anyhow::Error>(())
    };
    match job {
        Job::Prestart => {
            scripts.begin_log()?;
            call("prestart", "STOP", "WAIT", "start")
        }
        Job::StartPrim(from, to) => {
            begin(from, to)?;
            call("start_prim", from, to, "start")
        }
        Job::StartSecond(from, to) => {
            begin(from, to)?;
            call("start_second", from, to, "start")
        }
        Job::StopPrim(from, to) => call("stop_prim", from, to, "stop"),
        Job::StopSecond(from, to) => call("stop_second", from, to, "stop"),
        Job::Poststop(from) => {
            if std::mem::take(both) {
                call("stop_both", from, "STOP", "stop")?;
            }
            call("poststop", from, "STOP", "stop")
        }
    }
}

impl Runner {
    pub(super) fn job(&self, job: Job) {
        // The thread lives as long as this one.
        let _ = self.jobs.send(job);
    }

    fn state(&self) -> &'static str {
        StateName::from(self.seen.0).text()
    }

    pub(super) fn begin_app(&mut self) {
        self.remember(|m| m.app = AppName::Starting);
        self.say("script", "the application starts");
        self.job(Job::StartPrim(self.state(), "ALONE"));
    }

    pub(super) fn end_app(&mut self) {
        self.remember(|m| m.app = AppName::Stopping);
        self.say("script", "the application stops");
        let to = match self.memory.get().wanted {
            WantedName::Stopped => "STOP",
            _ => "WAIT",
        };
        self.job(Job::StopPrim(self.state(), to));
    }

    /// Stops the application; the automaton, told so, starts it again.
    pub(super) fn restart_app(&mut self) {
        self.end_app();
    }

    pub(super) fn job_done(&mut self, job: Job, result: Result<(), String>) {
        if let Err(error) = &result {
            self.say("script", error.clone());
        }
        match job {
            Job::Prestart => {
                if let Some(wanted) = self.next_want.take() {
                    match result {
                        Ok(()) => self.want(wanted),
                        Err(_) => self.say("error", "prestart failed: the module stays stopped"),
                    }
                }
            }
            Job::StartPrim(..) => match result {
                Ok(()) => {
                    self.remember(|m| m.app = AppName::Up);
                    self.say("script", "the application is started");
                    self.events.push_back(Event::AppUp);
                }
                Err(_) => self.start_failed(),
            },
            Job::StopPrim(..) => {
                self.remember(|m| m.app = AppName::Down);
                self.say("script", "the application is stopped");
                self.events.push_back(Event::AppDown);
            }
            Job::Poststop(_) => {
                self.setup.scripts.set_forced(false);
                if std::mem::take(&mut self.again) && self.seen.0 == State::Stop {
                    self.next_want = Some(WantedName::Running);
                    self.job(Job::Prestart);
                }
            }
            Job::StartSecond(..) | Job::StopSecond(..) => {}
        }
    }

    /// What a failed start has begun is stopped, and it is tried again, a few times.
    fn start_failed(&mut self) {
        let service = &self.setup.config.service;
        let (interval, most) = (service.loop_interval, service.maxloop as usize);
        self.loops.retain(|at| at.elapsed() < interval);
        self.loops.push_back(Instant::now());
        if self.loops.len() > most {
            self.say(
                "error",
                format!(
                    "maxloop: the application could not be started {} times; the module stops. \
                     Repair it, then run `start`",
                    self.loops.len()
                ),
            );
            self.want(WantedName::Stopped);
        }
        // Its end leads to the next start, or to the module's stop.
        self.end_app();
    }
}
