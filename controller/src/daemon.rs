//! `twinfold daemon`: all modules of this node.
//!
//! When it ends, drivers and applications go on; the next daemon takes them over.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use fs_driver::setup::default_base;
use fs_driver::store::Layout;

use crate::cluster::{Cluster, mistakes};
use crate::config;
use crate::driver::Place;
use crate::etcd::Witness;
use crate::peer::{self, Hub};
use crate::places::{Places, replace};
use crate::runner::{self, Handle, Setup};
use crate::scripts::Scripts;

/// Modules of one node, at most.
const MAX_MODULES: usize = 256;

/// How long a start script may take: a database may have to recover.
const START: std::time::Duration = std::time::Duration::from_secs(600);

/// What the API works on.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) hub: Arc<Hub>,
    pub(crate) modules: BTreeMap<String, Handle>,
    /// Modules that cannot be run, and why.
    pub(crate) broken: BTreeMap<String, String>,
}

/// Runs until a signal comes.
pub(crate) fn run(home: Option<&Path>) -> Result<ExitCode> {
    let filter = std::env::var("TWINFOLD_LOG").unwrap_or_else(|_| "info".into());
    let _ = tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::new(filter))
        .with_writer(std::io::stderr)
        .with_target(false)
        .with_ansi(false)
        .try_init();
    let signals = fs_driver::control::signals()?;
    let places = Places::new(home);
    let names = modules(&places)?;
    places.make(&names)?;
    let _lock = only_one(&places)?;
    let cluster = Cluster::load(&places)?;
    let hub = Hub::new(cluster, next_run(&places)?);
    peer::start(hub.clone())?;
    let mut node = Node {
        hub: hub.clone(),
        modules: BTreeMap::new(),
        broken: BTreeMap::new(),
    };
    for name in names {
        // One module that cannot be run is no reason not to run the others.
        match setup(&places, &hub, &name).and_then(|setup| runner::start(setup, &hub)) {
            Ok(handle) => drop(node.modules.insert(name, handle)),
            Err(error) => {
                tracing::error!(module = name, "{error:#}");
                node.broken.insert(name, format!("{error:#}"));
            }
        }
    }
    let socket = crate::api::serve(&places.socket(), Arc::new(node))?;
    tracing::info!(node = hub.cluster.node, peer = hub.cluster.peer, "running");
    // Whatever ends this wait, there is nobody left to wait for.
    let _ = signals.recv();
    tracing::info!("ending; drivers and applications go on");
    drop(socket);
    Ok(ExitCode::SUCCESS)
}

/// Keeps a second daemon from the same node as long as the file lives.
fn only_one(places: &Places) -> Result<File> {
    let path = places.lock();
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .with_context(|| format!("cannot open {}", path.display()))?;
    match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => bail!("a daemon runs on this node already"),
        Err(e) => Err(e).context("cannot lock the daemon's file"),
    }
}

/// The number of this run: one more than the last one's, durably.
fn next_run(places: &Places) -> Result<u64> {
    let path = places.runs();
    let last = match std::fs::read_to_string(&path) {
        Ok(text) => text
            .trim()
            .parse()
            .with_context(|| format!("{} is damaged", path.display()))?,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => 0,
        Err(e) => return Err(e).with_context(|| format!("cannot read {}", path.display())),
    };
    let next: u64 = last + 1;
    replace(&path, next.to_string().as_bytes())
        .with_context(|| format!("cannot write {}", path.display()))?;
    Ok(next)
}

/// The modules there are, by name.
fn modules(places: &Places) -> Result<Vec<String>> {
    let path = places.modules();
    let entries = match std::fs::read_dir(&path) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(e).with_context(|| format!("cannot list {}", path.display())),
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry?;
        let Some(name) = entry.file_name().to_str().map(str::to_owned) else {
            continue;
        };
        if entry.path().join("userconfig.xml").exists() {
            names.push(name);
        }
    }
    names.sort();
    if names.len() > MAX_MODULES {
        bail!("{} has more than {MAX_MODULES} modules", path.display());
    }
    Ok(names)
}

fn setup(places: &Places, hub: &Hub, name: &str) -> Result<Setup> {
    let directory = places.modules().join(name);
    let file = directory.join("userconfig.xml");
    let text = std::fs::read_to_string(&file)
        .with_context(|| format!("cannot read {}", file.display()))?;
    let shown = file.display().to_string();
    let (module, found) = config::module(&shown, &text, |n| std::env::var(n).ok());
    let config = module.with_context(|| mistakes(&shown, &found))?;
    if !config.unserved.is_empty() {
        bail!(
            "{shown}: this cannot be run yet: {}",
            config.unserved.join(", ")
        );
    }
    for lan in &config.heart.lans {
        if !hub.cluster.lans.iter().any(|l| l.name == *lan) {
            bail!("{shown}: <heartbeat name={lan:?}>: cluster.xml has no such lan");
        }
    }
    let [folder] = &config.folders[..] else {
        bail!("{shown}: exactly one <replicated dir=...> can be run yet");
    };
    let mount = fs_driver::setup::absolute(Path::new(folder))?;
    if let Some(prim) = &config.service.defaultprim
        && ![&hub.cluster.node, &hub.cluster.peer].contains(&prim)
    {
        bail!("{shown}: defaultprim={prim:?} is none of the two nodes");
    }
    let logs = places.logs(name);
    let bin = directory.join("bin");
    let mut environment = vec![
        ("TWINFOLD_MODULE".to_owned(), name.to_owned()),
        ("TWINFOLD_NODE".to_owned(), hub.cluster.node.clone()),
        ("TWINFOLD_FOLDERS".to_owned(), config.folders.join(":")),
        ("TWINFOLD_BIN".to_owned(), bin.display().to_string()),
    ];
    environment.extend(config.variables.iter().cloned());
    let witness = config.etcd.as_ref().map(Witness::new).transpose();
    Ok(Setup {
        name: name.to_owned(),
        witness: witness.with_context(|| format!("{shown}: <etcd>"))?,
        place: Place {
            layout: Layout::new(default_base(&mount)?),
            mount,
            identity: places.etc.clone(),
            log: logs.join("driver.log"),
        },
        scripts: Scripts {
            bin,
            logs: logs.clone(),
            environment,
            start: START,
            stop: config.stop_timeouts,
            forced: Arc::default(),
        },
        memory: places.memory(name),
        logs,
        config,
    })
}
