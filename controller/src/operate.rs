//! The operator's commands, over the local API.

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hyper::Method;
use serde::de::DeserializeOwned;

use crate::api::{Applied, CommandRequest, NodeState, ResourceRequest, Said, Snapshot, client};
use crate::config::ResourceState;
use crate::places::{Places, write_private};
use crate::runner::{Command, ModuleState};
use crate::screen::{self, Colours};

/// How often a state or a log that is waited for is looked at.
pub(crate) const LOOK: Duration = Duration::from_millis(100);

/// Which module.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Which {
    /// The module; not needed where there is only one.
    #[arg(short, long, env = "TWINFOLD_MODULE")]
    module: Option<String>,
}

/// `twinfold set`.
#[derive(Debug, clap::Args)]
pub(crate) struct Set {
    #[command(flatten)]
    which: Which,
    /// The resource, as class.id.
    #[arg(short, long)]
    resource: String,
    /// Its state.
    #[arg(short = 'v', long = "value", value_enum)]
    state: ResourceState,
}

/// `twinfold checker`.
#[derive(Debug, clap::Args)]
pub(crate) struct Checker {
    #[command(flatten)]
    pub(crate) which: Which,
    /// Whether checkers look and rules are followed.
    #[arg(value_enum)]
    switch: Switch,
}

/// On or off.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub(crate) enum Switch {
    /// They do.
    On,
    /// They do not.
    Off,
}

impl Checker {
    pub(crate) fn command(&self) -> Command {
        match self.switch {
            Switch::On => Command::Resume,
            Switch::Off => Command::Suspend,
        }
    }
}

/// `twinfold second`.
#[derive(Debug, clap::Args)]
pub(crate) struct Second {
    #[command(flatten)]
    pub(crate) which: Which,
    /// fullsync: compare everything. discard: both nodes went on alone, and this one's copy is
    /// given up; what only it has goes into its archive.
    #[arg(value_parser = ["fullsync", "discard"])]
    what: Option<String>,
}

impl Second {
    pub(crate) fn command(&self) -> Command {
        match self.what.as_deref() {
            Some("fullsync") => Command::Fullsync,
            Some(_) => Command::Discard,
            None => Command::Second,
        }
    }
}

/// `twinfold boot`.
#[derive(Debug, clap::Args)]
pub(crate) struct AtBoot {
    #[command(flatten)]
    pub(crate) which: Which,
    /// Whether it starts.
    #[arg(value_parser = ["on", "off"])]
    whether: String,
}

impl AtBoot {
    pub(crate) fn command(&self) -> Command {
        match self.whether.as_str() {
            "on" => Command::BootOn,
            _ => Command::BootOff,
        }
    }
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
    /// Show it again whenever it changes, until interrupted; with -H '*' both nodes at once.
    #[arg(short, long)]
    watch: bool,
    /// As one JSON object.
    #[arg(long)]
    json: bool,
    /// When colours are used: NotReady is red, Transient orange, Ready green.
    #[arg(long, value_enum, default_value_t = Colours::Auto, value_name = "WHEN")]
    color: Colours,
}

/// `twinfold snapshot`.
#[derive(Debug, clap::Args)]
pub(crate) struct Put {
    /// Where the archive is put, as twinfold-NODE.zip.
    #[arg(long, default_value = ".")]
    into: PathBuf,
}

/// The API of a node.
#[derive(Debug)]
pub(crate) struct Api {
    /// The node's name, where several could be meant.
    pub(crate) name: Option<String>,
    socket: PathBuf,
    /// What stands before a path: that of the other node, if it is not this one.
    prefix: String,
}

/// The nodes that are meant: this one, one by its name, or both with `*`.
pub(crate) fn nodes(home: Option<&Path>, on: Option<&str>) -> Result<Vec<Api>> {
    let here = Api {
        name: None,
        socket: Places::new(home).socket(),
        prefix: String::new(),
    };
    let Some(on) = on else { return Ok(vec![here]) };
    let state: NodeState = here.get("/api/v1/state")?;
    let names: Vec<&str> = match on {
        "*" => vec![&state.node, &state.peer],
        list => list.split(',').collect(),
    };
    let mut all = Vec::new();
    for name in names {
        if name != state.node && name != state.peer {
            bail!("{name:?} is none of {} and {}", state.node, state.peer);
        }
        all.push(Api {
            name: Some(name.to_owned()),
            socket: here.socket.clone(),
            prefix: match name == state.node {
                true => String::new(),
                false => format!("nodes/{name}/"),
            },
        });
    }
    Ok(all)
}

/// Runs a command on the nodes that are meant. What one of them refuses is said, and does not
/// keep the other one from it.
pub(crate) fn on_each(
    home: Option<&Path>,
    on: Option<&str>,
    run: &dyn Fn(&Api) -> Result<ExitCode>,
) -> Result<ExitCode> {
    let mut worst = Ok(ExitCode::SUCCESS);
    for api in nodes(home, on)? {
        match (run(&api), &worst) {
            (Err(error), Err(_)) => eprintln!("{error:#}"),
            (Err(error), Ok(_)) => worst = Err(error),
            (Ok(code), Ok(_)) if code != ExitCode::SUCCESS => worst = Ok(code),
            (Ok(_), _) => {}
        }
    }
    worst
}

/// Shows the state of one module, or of all; again and again if so wanted, then of all nodes that
/// are meant at once.
pub(crate) fn state(home: Option<&Path>, on: Option<&str>, show: &Show) -> Result<ExitCode> {
    if !show.watch {
        return on_each(home, on, &|api| {
            let (text, code) = api.shown(show)?;
            print!("{text}");
            Ok(code)
        });
    }
    let all = nodes(home, on)?;
    let mut before = String::new();
    loop {
        let of = |api: &Api| match api.shown(show) {
            Ok((text, _)) => text,
            // It may come back.
            Err(error) => format!("{error:#}\n"),
        };
        let text: String = all.iter().map(of).collect();
        if text != before {
            // A screen is made empty first; a file or a pipe gets one state after the other.
            let clear = match std::io::stdout().is_terminal() {
                true => "\x1b[H\x1b[2J",
                false => "",
            };
            print!("{clear}{text}");
            std::io::stdout().flush()?;
            before = text;
        }
        std::thread::sleep(LOOK);
    }
}

impl Api {
    pub(crate) fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl serde::Serialize>,
    ) -> Result<T> {
        let path = path.replacen("/api/v1/", &format!("/api/v1/{}", self.prefix), 1);
        client::ask(&self.socket, method, &path, body)
    }

    /// Prints the node's figures.
    pub(crate) fn metrics(&self) -> Result<ExitCode> {
        let path = format!("/api/v1/{}metrics", self.prefix);
        let text = client::fetch(&self.socket, Method::GET, &path, None::<&()>)?;
        std::io::stdout().write_all(&text)?;
        Ok(ExitCode::SUCCESS)
    }

    pub(crate) fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        self.call(Method::GET, path, None::<&()>)
    }

    pub(crate) fn module(&self, which: &Which) -> Result<String> {
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
        let said: Said = self.call(Method::POST, &path, Some(&CommandRequest { command }))?;
        println!("{module}: {}", said.text);
        Ok(ExitCode::SUCCESS)
    }

    /// Says what state a resource is in.
    pub(crate) fn set(&self, set: &Set) -> Result<ExitCode> {
        let module = self.module(&set.which)?;
        let path = format!("/api/v1/modules/{module}/resource");
        let request = ResourceRequest {
            resource: set.resource.clone(),
            state: set.state,
        };
        let said: Said = self.call(Method::POST, &path, Some(&request))?;
        println!("{module}: {}", said.text);
        Ok(ExitCode::SUCCESS)
    }

    /// Applies what is edited on the node to both.
    pub(crate) fn config(&self, which: &Which) -> Result<ExitCode> {
        let module = self.module(which)?;
        let path = format!("/api/v1/modules/{module}/config");
        let said: Said = self.call(Method::POST, &path, None::<&()>)?;
        println!("{module}: {}", said.text);
        Ok(ExitCode::SUCCESS)
    }

    /// Takes a module away from both nodes.
    pub(crate) fn deconfig(&self, which: &Which) -> Result<ExitCode> {
        let module = self.module(which)?;
        let path = format!("/api/v1/modules/{module}/config");
        let said: Said = self.call(Method::DELETE, &path, None::<&()>)?;
        println!("{module}: {}", said.text);
        Ok(ExitCode::SUCCESS)
    }

    /// Fetches a snapshot of the node.
    pub(crate) fn snapshot(&self, put: &Put) -> Result<ExitCode> {
        let snapshot: Snapshot = self.get("/api/v1/snapshot")?;
        let bytes = STANDARD.decode(&snapshot.zip);
        let bytes = bytes.context("the snapshot is broken")?;
        let path = put.into.join(format!("twinfold-{}.zip", snapshot.node));
        write_private(&path, &bytes).with_context(|| format!("cannot write {}", path.display()))?;
        println!("{}", path.display());
        Ok(ExitCode::SUCCESS)
    }

    /// Shows what is applied.
    pub(crate) fn confinfo(&self, which: &Which) -> Result<ExitCode> {
        let module = self.module(which)?;
        let applied: Applied = self.get(&format!("/api/v1/modules/{module}/config"))?;
        let edited = applied
            .edited
            .as_deref()
            .unwrap_or("nothing that can be read");
        match &applied.active {
            Some(v) if applied.edited.as_ref() == Some(&v.hash) => {
                println!(
                    "{module}: version {} ({}), not edited since",
                    v.number, v.hash
                );
            }
            Some(v) => println!(
                "{module}: version {} ({}); edited is {edited}: `config` applies it",
                v.number, v.hash
            ),
            None => println!("{module}: nothing was applied; what is edited ({edited}) is run"),
        }
        let kept: Vec<_> = applied.kept.iter().map(u64::to_string).collect();
        if !kept.is_empty() {
            println!("  kept: {}", kept.join(", "));
        }
        Ok(ExitCode::SUCCESS)
    }

    /// The state of one module, or of all, as it is printed; and the exit status that tells that
    /// of one.
    fn shown(&self, show: &Show) -> Result<(String, ExitCode)> {
        let paint = show.color.paint();
        let node: NodeState = self.get("/api/v1/state")?;
        let Some(name) = &show.which.module else {
            let text = match show.json {
                true => serde_json::to_string(&node)? + "\n",
                false => screen::node(&node, paint),
            };
            return Ok((text, ExitCode::SUCCESS));
        };
        let module: ModuleState = self.get(&format!("/api/v1/modules/{name}"))?;
        let text = match show.json {
            true => serde_json::to_string(&module)? + "\n",
            false => screen::module(&node.node, &node.peer, &module, paint),
        };
        Ok((text, ExitCode::from(code(&module.state))))
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
