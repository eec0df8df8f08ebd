//! `twinfold log`: what happened to a module and why, and what its application printed.

use std::io::{IsTerminal, Write};
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};
use time::OffsetDateTime;

use crate::api::{Events, Output};
use crate::operate::{Api, LOOK, Which, nodes};
use crate::runner::events::EventLine;

/// `twinfold log`.
#[derive(Debug, clap::Args)]
pub(crate) struct Log {
    #[command(flatten)]
    which: Which,
    /// Go on showing what happens.
    #[arg(short, long)]
    follow: bool,
    /// So many of the last events, or lines, to begin with.
    #[arg(short = 'n', long, default_value_t = 300, value_name = "N")]
    lines: usize,
    /// As one JSON object a line.
    #[arg(long, conflicts_with = "application")]
    json: bool,
    /// What the module's scripts, and what they have started, have printed.
    #[arg(short, long)]
    application: bool,
    /// Of an earlier run of the module: 1 is the one before the present one.
    #[arg(
        long,
        default_value_t = 0,
        requires = "application",
        conflicts_with = "follow"
    )]
    run: usize,
}

/// How far the events of a node are shown.
struct Shown<'a> {
    api: &'a Api,
    module: String,
    from: u64,
}

impl Shown<'_> {
    fn more(&mut self, most: usize) -> Result<Vec<EventLine>> {
        let path = format!(
            "/api/v1/modules/{}/log?from={}&most={most}",
            self.module, self.from
        );
        let events: Events = self.api.get(&path)?;
        self.from = events.end;
        Ok(events.events)
    }
}

/// Shows what happened, and what happens, in the order of the nodes' clocks; or what the
/// application printed.
pub(crate) fn log(home: Option<&Path>, on: Option<&str>, log: &Log) -> Result<ExitCode> {
    let apis = nodes(home, on)?;
    if log.application {
        return application(&apis, log);
    }
    let mut all = Vec::new();
    for api in &apis {
        all.push(Shown {
            api,
            module: api.module(&log.which)?,
            from: 0,
        });
    }
    let mut most = log.lines;
    let mut out = std::io::stdout().lock();
    loop {
        let mut events = Vec::new();
        for shown in &mut all {
            match shown.more(most) {
                Ok(more) => events.extend(more),
                // Of two nodes one may be down for a while.
                Err(error) if log.follow && apis.len() > 1 => {
                    tracing::debug!(%error, "a node tells nothing");
                }
                Err(error) => return Err(error),
            }
        }
        // Each node's own are in order already, and stay so.
        events.sort_by_key(|event| event.time);
        for event in &events {
            match log.json {
                true => writeln!(out, "{}", serde_json::to_string(event)?)?,
                false => writeln!(out, "{}", line(event)?)?,
            }
        }
        out.flush()?;
        if !log.follow {
            return Ok(ExitCode::SUCCESS);
        }
        std::thread::sleep(LOOK);
        most = usize::MAX;
    }
}

/// How far the output of a node's application is shown.
struct Printed<'a> {
    api: &'a Api,
    module: String,
    /// The file and the byte to go on with; none: nothing was shown yet.
    at: Option<(u64, u64)>,
    /// The beginning of a line, if whole lines are shown.
    rest: String,
}

impl Printed<'_> {
    fn more(&mut self, log: &Log) -> Result<String> {
        let query = match self.at {
            None => format!("lines={}&run={}", log.lines, log.run),
            Some((file, from)) => format!("file={file}&from={from}"),
        };
        let path = format!("/api/v1/modules/{}/application?{query}", self.module);
        let output: Output = self.api.get(&path)?;
        self.at = Some((output.file, output.end));
        Ok(output.text)
    }

    /// What is shown of a text: of several nodes whole lines, with the node's name.
    fn shown(&mut self, text: String, several: bool) -> String {
        let Some(name) = self.api.name.as_ref().filter(|_| several) else {
            return text;
        };
        self.rest += &text;
        let end = self.rest.rfind('\n').map_or(0, |at| at + 1);
        let rest = self.rest.split_off(end);
        let whole = std::mem::replace(&mut self.rest, rest);
        whole.lines().map(|l| format!("{name}: {l}\n")).collect()
    }
}

/// Shows what the applications of the nodes printed, and print.
fn application(apis: &[Api], log: &Log) -> Result<ExitCode> {
    let several = apis.len() > 1;
    let mut all = Vec::new();
    for api in apis {
        all.push(Printed {
            api,
            module: api.module(&log.which)?,
            at: None,
            rest: String::new(),
        });
    }
    let mut out = std::io::stdout().lock();
    loop {
        let mut any = false;
        for printed in &mut all {
            let text = match printed.more(log) {
                Ok(text) => text,
                // Of two nodes one may be down for a while.
                Err(error) if log.follow && several => {
                    tracing::debug!(%error, "a node tells nothing");
                    continue;
                }
                Err(error) => return Err(error),
            };
            any |= !text.is_empty();
            let mut shown = printed.shown(text, several);
            if !log.follow {
                let rest = std::mem::take(&mut printed.rest);
                if !rest.is_empty() {
                    shown += &format!(
                        "{}: {rest}",
                        printed.api.name.as_deref().unwrap_or_default()
                    );
                }
                // What comes next on a terminal begins a line.
                if !shown.is_empty() && !shown.ends_with('\n') && (several || out.is_terminal()) {
                    shown.push('\n');
                }
            }
            out.write_all(shown.as_bytes())?;
        }
        out.flush()?;
        if !log.follow {
            return Ok(ExitCode::SUCCESS);
        }
        // There may be more already than one answer holds.
        if !any {
            std::thread::sleep(LOOK);
        }
    }
}

/// An event as it is shown.
pub(crate) fn line(event: &EventLine) -> Result<String> {
    let time = OffsetDateTime::from_unix_timestamp_nanos(i128::from(event.time) * 1_000_000)
        .context("an event has no sensible time")?;
    // All as long as each other, so that their order is that of the letters.
    let (date, clock) = (time.date(), time.time());
    Ok(format!(
        "{date}T{:02}:{:02}:{:02}.{:03}Z {} {} {}: {}",
        clock.hour(),
        clock.minute(),
        clock.second(),
        clock.millisecond(),
        event.node,
        event.module,
        event.kind,
        event.text
    ))
}
