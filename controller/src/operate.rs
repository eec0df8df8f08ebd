//! The operator's commands, over the local API.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use hyper::Method;
use serde::de::DeserializeOwned;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::api::{CommandRequest, Events, NodeState, Said, client};
use crate::places::Places;
use crate::runner::events::EventLine;
use crate::runner::{Command, ModuleState};

/// How often a state or a log that is waited for is looked at.
const LOOK: Duration = Duration::from_millis(100);

/// Events shown of a log unless told otherwise.
const EVENTS: usize = 300;

/// Which module.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Which {
    /// The module; not needed where there is only one.
    #[arg(short, long, env = "TWINFOLD_MODULE")]
    module: Option<String>,
}

/// `twinfold waitstate`.
#[derive(Debug, clap::Args)]
pub(crate) struct Wait {
    #[command(flatten)]
    which: Which,
    /// The state: STOP, WAIT, ALONE, PRIM or SECOND.
    state: String,
    /// And this status, as Ready.
    #[arg(long)]
    status: Option<String>,
    /// Seconds to wait, at most.
    #[arg(long, default_value_t = 600)]
    timeout: u64,
}

/// `twinfold state`.
#[derive(Debug, clap::Args)]
pub(crate) struct Show {
    #[command(flatten)]
    which: Which,
    /// As one JSON object.
    #[arg(long)]
    json: bool,
}

/// `twinfold log`.
#[derive(Debug, clap::Args)]
pub(crate) struct Log {
    #[command(flatten)]
    which: Which,
    /// Go on showing what happens.
    #[arg(short, long)]
    follow: bool,
    /// As one JSON object a line.
    #[arg(long)]
    json: bool,
}

/// The API of this node.
#[derive(Debug)]
pub(crate) struct Api(PathBuf);

impl Api {
    pub(crate) fn new(home: Option<&Path>) -> Api {
        Api(Places::new(home).socket())
    }

    fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        client::ask(&self.0, Method::GET, path, None::<&()>)
    }

    fn module(&self, which: &Which) -> Result<String> {
        if let Some(module) = &which.module {
            return Ok(module.clone());
        }
        let node: NodeState = self.get("/api/v1/state")?;
        match &node.modules[..] {
            [one] => Ok(one.module.clone()),
            [] => bail!("no module is configured"),
            all => {
                let names: Vec<_> = all.iter().map(|m| m.module.as_str()).collect();
                bail!("which module? -m {}", names.join(", -m "))
            }
        }
    }

    /// Sends a command.
    pub(crate) fn command(&self, which: &Which, command: Command) -> Result<ExitCode> {
        let module = self.module(which)?;
        let path = format!("/api/v1/modules/{module}/command");
        let said: Said = client::ask(
            &self.0,
            Method::POST,
            &path,
            Some(&CommandRequest { command }),
        )?;
        println!("{module}: {}", said.text);
        Ok(ExitCode::SUCCESS)
    }

    /// Shows the state of one module, or of all; the exit status tells that of one.
    pub(crate) fn state(&self, show: &Show) -> Result<ExitCode> {
        let node: NodeState = self.get("/api/v1/state")?;
        let Some(name) = &show.which.module else {
            match show.json {
                true => println!("{}", serde_json::to_string(&node)?),
                false => print!("{}", screen(&node)),
            }
            return Ok(ExitCode::SUCCESS);
        };
        let module: ModuleState = self.get(&format!("/api/v1/modules/{name}"))?;
        match show.json {
            true => println!("{}", serde_json::to_string(&module)?),
            false => print!("{}", lines(&node.node, &node.peer, &module)),
        }
        Ok(ExitCode::from(code(&module.state)))
    }

    /// Waits for a state.
    pub(crate) fn wait(&self, wait: &Wait) -> Result<ExitCode> {
        let wanted = wait.state.to_uppercase();
        if code(&wanted) == UNKNOWN {
            bail!(
                "{:?} is none of STOP, WAIT, ALONE, PRIM, SECOND",
                wait.state
            );
        }
        let name = self.module(&wait.which)?;
        let until = Instant::now() + Duration::from_secs(wait.timeout);
        loop {
            let module: ModuleState = self.get(&format!("/api/v1/modules/{name}"))?;
            let status = wait.status.as_ref().is_none_or(|s| *s == module.status);
            if module.state == wanted && status {
                return Ok(ExitCode::SUCCESS);
            }
            if Instant::now() >= until {
                bail!(
                    "{name} is still {} {}: {}",
                    module.state,
                    module.status,
                    module.reason
                );
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Shows what happened, and what happens.
    pub(crate) fn log(&self, log: &Log) -> Result<ExitCode> {
        let name = self.module(&log.which)?;
        let read = |from: u64, most: usize| -> Result<Events> {
            self.get(&format!(
                "/api/v1/modules/{name}/log?from={from}&most={most}"
            ))
        };
        let mut events = read(0, EVENTS)?;
        loop {
            for event in &events.events {
                match log.json {
                    true => println!("{}", serde_json::to_string(event)?),
                    false => println!("{}", line(event)?),
                }
            }
            if !log.follow {
                return Ok(ExitCode::SUCCESS);
            }
            std::thread::sleep(LOOK);
            events = read(events.end, usize::MAX)?;
        }
    }
}

const UNKNOWN: u8 = 5;

/// The exit status that stands for a state.
fn code(state: &str) -> u8 {
    match state {
        "STOP" => 0,
        "WAIT" => 1,
        "ALONE" => 2,
        "PRIM" => 3,
        "SECOND" => 4,
        _ => UNKNOWN,
    }
}

fn line(event: &EventLine) -> Result<String> {
    let time = OffsetDateTime::from_unix_timestamp_nanos(i128::from(event.time) * 1_000_000)
        .context("an event has no sensible time")?;
    Ok(format!(
        "{} {} {} {}: {}",
        time.format(&Rfc3339)?,
        event.node,
        event.module,
        event.kind,
        event.text
    ))
}

fn screen(node: &NodeState) -> String {
    let mut out = format!("node {}, peer {}\n", node.node, node.peer);
    for network in &node.networks {
        let state = match (network.up, &network.trouble) {
            (true, _) => "heartbeats".to_owned(),
            (false, Some(trouble)) => format!("lost: {trouble}"),
            (false, None) => "lost".to_owned(),
        };
        out += &format!("  lan {}: {state}\n", network.name);
    }
    for module in &node.modules {
        out += &lines(&node.node, &node.peer, module);
    }
    for broken in &node.broken {
        out += &format!("{}: cannot be run: {}\n", broken.module, broken.reason);
    }
    out
}

fn lines(node: &str, peer: &str, module: &ModuleState) -> String {
    let current = |yes| match yes {
        true => "up to date",
        false => "not up to date",
    };
    let mut out = format!(
        "{}: {node} {} {}, {} ({})\n",
        module.module,
        module.state,
        module.status,
        current(module.up_to_date),
        module.reason
    );
    if let Some(percent) = module.percent {
        out += &format!("  resync: {percent} %\n");
    }
    if let Some(trouble) = &module.trouble {
        out += &format!("  {trouble}\n");
    }
    if let Some(other) = &module.peer {
        out += &format!(
            "  {peer} {}{} {}, {} ({})\n",
            if other.silent { "silent, was " } else { "" },
            other.state,
            other.status,
            current(other.up_to_date),
            other.reason
        );
    }
    out
}
