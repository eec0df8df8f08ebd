//! The application: its addresses and scripts one after the other, on a thread of their own.

use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};

use anyhow::{Context, Result};
use twinfold_protocol::automaton::{Event, State, Wanted};

use super::memory::{AppName, WantedName};
use super::perform::spawn;
use super::{Done, Input, Runner};
use crate::net::vips::Vips;
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

/// A job, and what it is done with.
#[derive(Debug)]
pub(super) struct Work {
    job: Job,
    scripts: Scripts,
    vips: Arc<Vips>,
}

/// What `start_both` has begun.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
enum Both {
    /// Nothing.
    #[default]
    Down,
    /// Some of it, perhaps: it failed. It is called again, and `stop_both` at the end in any case.
    Half,
    Up,
}

/// Starts the thread; jobs are done in the order in which they come. `serves`: the application
/// runs; `nothing_runs`: nor does anything of it that follows.
pub(super) fn start(
    inbox: Sender<Input>,
    vips: Arc<Vips>,
    serves: bool,
    nothing_runs: bool,
) -> Result<Sender<Work>> {
    let (jobs, queue) = channel::<Work>();
    std::thread::Builder::new()
        .name("scripts".into())
        .spawn(move || {
            let said = inbox.clone();
            let say = |text: String| drop(said.send(Input::Done(Done::Said(text))));
            match serves {
                true => vips.keep_announcing(),
                // An earlier daemon, or a boot's scripts, may have left them.
                false => take_away(&vips, &say).unwrap_or_else(|e| say(format!("{e:#}"))),
            }
            let mut both = match nothing_runs {
                true => Both::Down,
                false => Both::Up,
            };
            for Work { job, scripts, vips } in queue {
                let result = match job {
                    Job::StartPrim(..) => vips.set(&say),
                    _ => Ok(()),
                };
                let mut result = result.and_then(|()| carry_out(&scripts, job, &mut both));
                // Whatever its scripts said: who does not serve has no address.
                if !matches!(job, Job::StartPrim(..)) {
                    result = result.and(take_away(&vips, &say));
                }
                let result = result.map_err(|e| format!("{e:#}"));
                if inbox.send(Input::Done(Done::Job(job, result))).is_err() {
                    return;
                }
            }
        })
        .context("cannot start the thread of the scripts")?;
    Ok(jobs)
}

fn take_away(vips: &Vips, say: &dyn Fn(String)) -> Result<()> {
    for address in vips.remove()? {
        say(format!("{address} is removed"));
    }
    Ok(())
}

fn carry_out(scripts: &Scripts, job: Job, both: &mut Both) -> Result<()> {
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
        if *both != Both::Up {
            *both = Both::Half;
            call("start_both", from, to, "start")?;
            *both = Both::Up;
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
        Job::StopPrim(from, to) => {
            let stopped = call("stop_prim", from, to, "stop");
            if stopped.is_err() {
                scripts.kill_application();
            }
            stopped
        }
        Job::StopSecond(from, to) => call("stop_second", from, to, "stop"),
        Job::Poststop(from) => {
            let both = match std::mem::take(both) {
                Both::Up | Both::Half => call("stop_both", from, "STOP", "stop"),
                Both::Down => Ok(()),
            };
            // Whatever became of the one: the other one is the module's last word.
            match (both, call("poststop", from, "STOP", "stop")) {
                (Err(both), Err(after)) => Err(both.context(format!("{after:#}; before that"))),
                (both, after) => both.and(after),
            }
        }
    }
}

impl Runner {
    pub(super) fn job(&self, job: Job) {
        // The thread lives as long as this one.
        let _ = self.jobs.send(Work {
            job,
            scripts: self.setup.scripts.clone(),
            vips: self.setup.vips.clone(),
        });
    }

    fn state(&self) -> &'static str {
        StateName::from(self.seen.0).text()
    }

    /// Who has lost the right to serve has no address from now on, however long its application
    /// takes to stop: the peer sets them.
    pub(super) fn withdraw_addresses(&mut self) {
        let app = self.memory.get().app;
        let reached = self.automaton.may_be_reached();
        if !reached && app != AppName::Down && !self.withdrawn {
            self.withdrawn = true;
            let (vips, inbox) = (self.setup.vips.clone(), self.inbox.clone());
            vips.withdraw(true);
            spawn(move || {
                let say = |text| drop(inbox.send(Input::Done(Done::Said(text))));
                match vips.remove_withdrawn() {
                    Ok(removed) => {
                        for address in removed {
                            say(format!("{address} is removed: the peer is to serve"));
                        }
                    }
                    // Tried again when the application has stopped.
                    Err(error) => say(format!("{error:#}")),
                }
            });
        }
        if reached && app == AppName::Up && self.withdrawn {
            // It was to stop, and goes on: its start sets them again.
            self.withdrawn = false;
            self.events.push_back(Event::Restart);
        }
    }

    pub(super) fn begin_app(&mut self) {
        self.withdrawn = false;
        self.setup.vips.withdraw(false);
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

    pub(super) fn job_done(&mut self, job: Job, result: Result<(), String>) {
        if let Err(error) = &result {
            self.say("script", error.clone());
        }
        match job {
            Job::Prestart => {
                if let Some(wanted) = self.next_want.take() {
                    match result {
                        Ok(()) => self.want(wanted),
                        Err(_) => {
                            self.say("error", "prestart failed: the module stays stopped");
                            // Nothing runs yet, whatever was to.
                            self.events.push_back(Event::Want(Wanted::Stopped));
                        }
                    }
                    self.forget_next();
                }
            }
            Job::StartPrim(..) => match result {
                Ok(()) => {
                    self.remember(|m| m.app = AppName::Up);
                    self.say("script", "the application is started");
                    self.events.push_back(Event::AppUp);
                }
                // Its addresses were withdrawn meanwhile, or else it has failed.
                Err(_) if self.withdrawn => self.end_app(),
                Err(_) => self.start_failed(),
            },
            Job::StopPrim(..) => {
                self.remember(|m| m.app = AppName::Down);
                self.say("script", "the application is stopped");
                self.events.push_back(Event::AppDown);
            }
            Job::Poststop(_) => {
                self.setup.scripts.set_forced(false);
                self.stopping = false;
                if self.again && self.seen.0 == State::Stop {
                    self.again = false;
                    let next = self.memory.get().next;
                    self.begin(next.unwrap_or(WantedName::Running));
                }
            }
            Job::StartSecond(..) => self.remember(|m| {
                // Unless its stop is waiting already.
                if m.following == AppName::Starting {
                    m.following = AppName::Up;
                }
            }),
            Job::StopSecond(..) => self.remember(|m| {
                if m.following == AppName::Stopping {
                    m.following = AppName::Down;
                }
            }),
        }
    }

    /// What a failed start has begun is stopped, and it is tried again, a few times.
    fn start_failed(&mut self) {
        self.loops_too_often("a failed start of the application");
        // Its end leads to the next start, or to the module's stop.
        self.end_app();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::process::ExitStatusExt;
    use std::path::Path;
    use std::time::Duration;

    /// Scripts that have the folder of this name, below a directory.
    fn scripts(dir: &Path, folder: &str) -> Scripts {
        let (bin, logs) = (dir.join("bin"), dir.join("log"));
        for directory in [&bin, &logs, &dir.join(folder)] {
            std::fs::create_dir(directory).unwrap();
        }
        Scripts {
            bin,
            logs,
            folders: vec![dir.join(folder)],
            environment: vec![("NOTES".into(), dir.join("notes").display().to_string())],
            start: Duration::from_secs(60),
            stop: [Duration::from_secs(60); 2],
            forced: std::sync::Arc::default(),
        }
    }

    /// Makes a script that notes its call, and then does this.
    fn write(scripts: &Scripts, name: &str, text: &str) {
        let path = scripts.bin.join(name);
        let text = format!("#!/bin/sh\necho \"{name} $*\" >>\"$NOTES\"\n{text}\n");
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// The calls that were noted, in their order.
    fn noted(dir: &Path) -> Vec<String> {
        let text = std::fs::read_to_string(dir.join("notes")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    #[test]
    fn what_uses_the_folder_is_killed_when_the_application_does_not_stop() {
        let dir = tempfile::tempdir().unwrap();
        let scripts = scripts(dir.path(), "vm");
        let folder = scripts.folders[0].clone();
        let _mounted = crate::process::tests::Mounted::new(&folder);
        write(&scripts, "stop_prim", "exit 1");
        let mut application = std::process::Command::new("sleep");
        let mut application = application
            .arg("1000")
            .current_dir(&folder)
            .spawn()
            .unwrap();
        let stopped = carry_out(&scripts, Job::StopPrim("PRIM", "WAIT"), &mut Both::Up);
        let status = application.wait().unwrap();
        assert_eq!(status.signal(), Some(libc::SIGKILL));
        assert!(stopped.is_err());
        let said = std::fs::read_to_string(scripts.logs.join("application.log")).unwrap();
        assert!(said.contains("and was killed"), "{said}");
    }

    #[test]
    fn what_started_on_both_nodes_stops_once_and_then_comes_poststop() {
        let dir = tempfile::tempdir().unwrap();
        let scripts = scripts(dir.path(), "vm");
        for name in ["start_both", "start_prim", "stop_both", "poststop"] {
            write(&scripts, name, "");
        }
        let mut both = Both::Down;
        let start = Job::StartPrim("WAIT", "ALONE");
        carry_out(&scripts, start, &mut both).unwrap();
        carry_out(&scripts, Job::Poststop("ALONE"), &mut both).unwrap();
        // It has stopped; whatever else says so is no reason to stop it again.
        carry_out(&scripts, Job::Poststop("STOP"), &mut both).unwrap();
        assert_eq!(
            noted(dir.path()),
            [
                "start_both WAIT ALONE start",
                "start_prim WAIT ALONE start",
                "stop_both ALONE STOP stop",
                "poststop ALONE STOP stop",
                "poststop STOP STOP stop",
            ]
        );
    }

    #[test]
    fn what_failed_to_start_on_both_nodes_is_started_again_and_stopped_at_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let scripts = scripts(dir.path(), "vm");
        write(&scripts, "start_both", "exit 1");
        for name in ["start_second", "stop_both", "poststop"] {
            write(&scripts, name, "");
        }
        let mut both = Both::Down;
        let start = Job::StartSecond("WAIT", "SECOND");
        carry_out(&scripts, start, &mut both).unwrap_err();
        carry_out(&scripts, start, &mut both).unwrap_err();
        carry_out(&scripts, Job::Poststop("SECOND"), &mut both).unwrap();
        assert_eq!(
            noted(dir.path()),
            [
                "start_both WAIT SECOND start",
                "start_both WAIT SECOND start",
                "stop_both SECOND STOP stop",
                "poststop SECOND STOP stop",
            ]
        );
    }

    #[test]
    fn poststop_runs_when_stop_both_fails_or_hangs_and_both_failures_are_told() {
        let dir = tempfile::tempdir().unwrap();
        let mut scripts = scripts(dir.path(), "vm");
        write(&scripts, "stop_both", "exit 7");
        write(&scripts, "poststop", "");
        let stop = Job::Poststop("PRIM");
        let calls = [
            "stop_both PRIM STOP stop",
            "stop_both force PRIM STOP stop",
            "poststop PRIM STOP stop",
        ];
        let mut both = Both::Up;
        let error = carry_out(&scripts, stop, &mut both).unwrap_err();
        let text = format!("{error:#}");
        assert!(
            text.contains("stop_both ended with") && text.contains('7'),
            "{text}"
        );
        assert_eq!(noted(dir.path()), calls);
        assert_eq!(both, Both::Down, "stopped by force: not stopped again");

        write(&scripts, "poststop", "exit 8");
        let error = carry_out(&scripts, stop, &mut Both::Up).unwrap_err();
        let text = format!("{error:#}");
        assert!(
            text.contains("stop_both") && text.contains("poststop"),
            "{text}"
        );
        assert_eq!(noted(dir.path())[3..].len(), 4);

        // All have the same time: on a busy machine it may not be enough for the last one.
        write(&scripts, "stop_both", "exec sleep 1000");
        write(&scripts, "poststop", "");
        let ran = [500, 5000, 30_000].into_iter().any(|millis| {
            let _ = std::fs::remove_file(dir.path().join("notes"));
            scripts.stop = [Duration::from_millis(millis); 2];
            let hangs = carry_out(&scripts, stop, &mut Both::Up).unwrap_err();
            let text = format!("{hangs:#}");
            assert!(
                text.contains("stop_both") && text.contains("did not end within"),
                "{text}"
            );
            noted(dir.path()).last().map(String::as_str) == Some(calls[2])
        });
        assert!(ran, "{:?}", noted(dir.path()));
    }
}
