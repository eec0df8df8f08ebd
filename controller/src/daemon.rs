//! `twinfold daemon`: all modules of this node.
//!
//! When it ends, drivers and applications go on; the next daemon takes them over.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result, bail};
use fs_driver::setup::default_base;
use fs_driver::store::Layout;

use crate::cluster::{Cluster, mistakes};
use crate::config::{self, Around, Mistake};
use crate::driver::Place;
use crate::etcd::Witness;
use crate::net::{hardware, vips::Vips};
use crate::peer::{self, Hub};
use crate::places::{Places, replace};
use crate::runner::{self, Handle, Input, Setup};
use crate::scripts::Scripts;
use crate::versions::{self, Bundle, Version};

/// Modules of one node, at most.
const MAX_MODULES: usize = 256;

/// What the API works on.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) hub: Arc<Hub>,
    pub(crate) places: Places,
    modules: Mutex<Modules>,
    /// One configuration is applied at a time.
    configuring: Mutex<()>,
    pub(crate) progress: crate::api::Progress,
}

/// The modules of a node, by name.
#[derive(Debug, Default)]
pub(crate) struct Modules {
    pub(crate) running: BTreeMap<String, Handle>,
    /// Modules that cannot be run, and why.
    pub(crate) broken: BTreeMap<String, String>,
}

/// How long a module may take to say what it makes of a configuration.
const ANSWER: std::time::Duration = std::time::Duration::from_secs(10);

/// How often a module that cannot be run is tried again.
const AGAIN: std::time::Duration = std::time::Duration::from_secs(10);

impl Node {
    pub(crate) fn modules(&self) -> MutexGuard<'_, Modules> {
        self.modules.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn handle(&self, module: &str) -> Option<Handle> {
        self.modules().running.get(module).cloned()
    }

    /// Starts the thread of a module, which may not be configured well.
    fn begin(&self, name: String) {
        // One module that cannot be run is no reason not to run the others.
        let started = directory(&self.places, &self.hub, &name).and_then(|setup| {
            let notes = setup.notes.clone();
            let handle = runner::start(setup, &self.hub)?;
            tell(&name, &notes);
            Ok(handle)
        });
        let mut modules = self.modules();
        let before = modules.broken.remove(&name);
        match started {
            Ok(handle) => drop(modules.running.insert(name, handle)),
            Err(error) => {
                let text = format!("{error:#}");
                if before.as_ref() != Some(&text) {
                    tracing::error!(module = name, text);
                }
                modules.broken.insert(name, text);
            }
        }
    }

    /// Tries again to run what could not be run: a disk may have come, a driver have ended, an
    /// operator have corrected what was wrong.
    fn begin_again(&self) {
        let _one = self.configuring.lock();
        let broken: Vec<_> = self.modules().broken.keys().cloned().collect();
        for name in broken {
            self.begin(name);
        }
    }

    /// Whether a configuration could be applied here now; what is to be said of it.
    pub(crate) fn check(&self, module: &str, bundle: &Bundle) -> Result<Vec<Mistake>> {
        let _one = self.configuring.lock();
        let staged = versions::stage(&self.places, module, bundle)?;
        let setup = setup(&self.places, &self.hub, module, &staged, None)?;
        fs_driver::setup::stopped::history(&setup.place.layout).with_context(|| {
            format!(
                "{} is no replicated folder yet: `twinfold fs init` makes one",
                setup.place.mount.display()
            )
        })?;
        let notes = setup.notes.clone();
        self.send(module, |answer| Input::Configure {
            setup: Box::new(setup),
            only_look: true,
            answer,
        })?;
        Ok(notes)
    }

    /// Applies a configuration, which was looked at.
    pub(crate) fn apply(&self, module: &str, bundle: &Bundle) -> Result<Version> {
        let _one = self.configuring.lock();
        let version = versions::apply(&self.places, module, bundle)?;
        versions::edit(&self.places, module, bundle)?;
        self.places.make(&[module.to_owned()])?;
        if self.handle(module).is_none() {
            self.begin(module.to_owned());
            return Ok(version);
        }
        let setup = directory(&self.places, &self.hub, module)?;
        let notes = setup.notes.clone();
        self.send(module, |answer| Input::Configure {
            setup: Box::new(setup),
            only_look: false,
            answer,
        })?;
        tell(module, &notes);
        Ok(version)
    }

    /// Whether the module can be taken away.
    pub(crate) fn may_forget(&self, module: &str) -> Result<()> {
        if let Some(handle) = self.handle(module) {
            let state = crate::api::shown(&handle).state;
            if state != "STOP" {
                bail!("{module} is {state}: stop it on both nodes first");
            }
        }
        Ok(())
    }

    /// Takes it away; says where its configuration is.
    pub(crate) fn forget(&self, module: &str) -> Result<PathBuf> {
        let _one = self.configuring.lock();
        self.may_forget(module)?;
        self.send(module, Input::Quit)?;
        let mut modules = self.modules();
        modules.running.remove(module);
        modules.broken.remove(module);
        drop(modules);
        self.hub.unfollow(module);
        versions::forget(&self.places, module)
    }

    /// Tells a module's thread, if there is one, and waits for what it says.
    fn send(
        &self,
        module: &str,
        input: impl FnOnce(Sender<Result<(), String>>) -> Input,
    ) -> Result<()> {
        let Some(handle) = self.handle(module) else {
            return Ok(());
        };
        let (answer, answered) = channel();
        let sent = handle.inbox.send(input(answer));
        sent.ok().context("the module's thread has ended")?;
        match answered.recv_timeout(ANSWER) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(text)) => bail!("{text}"),
            Err(_) => bail!("the module does not answer"),
        }
    }
}

/// What is to be said of a configuration from which a module runs now goes into the daemon's log.
fn tell(module: &str, notes: &[Mistake]) {
    for note in notes {
        tracing::info!(module, "{note} (note)");
    }
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
    let node = Node {
        hub: hub.clone(),
        places: places.clone(),
        modules: Mutex::default(),
        configuring: Mutex::default(),
        progress: Default::default(),
    };
    for name in names {
        node.begin(name);
    }
    let node = Arc::new(node);
    let again = node.clone();
    std::thread::Builder::new()
        .name("broken".into())
        .spawn(move || {
            loop {
                std::thread::sleep(AGAIN);
                again.begin_again();
            }
        })
        .context("cannot start the thread that tries modules again")?;
    let socket = crate::api::serve(&places.socket(), node)?;
    tracing::info!(node = hub.cluster.node, peer = hub.cluster.peer, "running");
    // Where systemd runs it, whoever waits for its start can command it now.
    if let Err(error) = sd_notify::notify(&[sd_notify::NotifyState::Ready]) {
        tracing::warn!(%error, "systemd was not told that the daemon runs");
    }
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

/// The number of this run: more than the last one's, durably; also more than that of a node that
/// was installed anew, as far as clocks go.
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
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let next = now.map_or(0, |t| t.as_secs()).max(last + 1);
    replace(&path, next.to_string().as_bytes())
        .with_context(|| format!("cannot write {}", path.display()))?;
    Ok(next)
}

/// The modules there are, by name: those that are edited, and those that were applied.
pub(crate) fn modules(places: &Places) -> Result<Vec<String>> {
    let mut names = std::collections::BTreeSet::new();
    let marks = [
        (places.modules(), versions::FILE),
        (places.states().to_owned(), "config/active"),
    ];
    for (path, mark) in marks {
        let entries = match std::fs::read_dir(&path) {
            Ok(entries) => entries,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
            Err(e) => return Err(e).with_context(|| format!("cannot list {}", path.display())),
        };
        for entry in entries {
            let entry = entry?;
            if let Some(name) = entry.file_name().to_str()
                && entry.path().join(mark).exists()
            {
                names.insert(name.to_owned());
            }
        }
    }
    if names.len() > MAX_MODULES {
        bail!("there are more than {MAX_MODULES} modules");
    }
    Ok(names.into_iter().collect())
}

/// What a module runs with.
fn directory(places: &Places, hub: &Hub, name: &str) -> Result<Setup> {
    let (version, directory) = versions::directory(places, name)?;
    setup(places, hub, name, &directory, version)
}

/// What it would run with.
fn setup(
    places: &Places,
    hub: &Hub,
    name: &str,
    directory: &Path,
    version: Option<Version>,
) -> Result<Setup> {
    let file = directory.join("userconfig.xml");
    let text = config::text(&file)?;
    let shown = file.display().to_string();
    let around = Around {
        file: places.cluster().display().to_string(),
        lans: hub.cluster.lans.iter().map(|l| l.name.clone()).collect(),
        nodes: vec![hub.cluster.node.clone(), hub.cluster.peer.clone()],
    };
    let variable = |name: &str| std::env::var(name).ok();
    let (module, found) = config::module_in(&shown, &text, variable, Some(&around));
    // Whatever is not run is named by this, as `confcheck` names it.
    let config = module.with_context(|| mistakes(&shown, &found))?;
    let folder = config.folders.first();
    let folder = folder.with_context(|| format!("{shown}: there is no folder"))?;
    let mount = fs_driver::setup::absolute(Path::new(folder))?;
    let logs = places.logs(name);
    let bin = directory.join("bin");
    let mut environment = vec![
        ("TWINFOLD_MODULE".to_owned(), name.to_owned()),
        ("TWINFOLD_NODE".to_owned(), hub.cluster.node.clone()),
        ("TWINFOLD_FOLDERS".to_owned(), config.folders.join(":")),
        ("TWINFOLD_BIN".to_owned(), bin.display().to_string()),
        ("TWINFOLD_RUN".to_owned(), places.run.display().to_string()),
    ];
    // What they start finds this daemon.
    let home = places.home.iter();
    environment.extend(home.map(|h| ("TWINFOLD_HOME".to_owned(), h.display().to_string())));
    environment.extend(config.variables.iter().cloned());
    let witness = config.etcd.as_ref().map(Witness::new).transpose();
    if !config.addresses.is_empty() {
        hardware::watch();
    }
    Ok(Setup {
        name: name.to_owned(),
        vips: Vips::new(config.addresses.clone()),
        version,
        witness: witness.with_context(|| format!("{shown}: <etcd>"))?,
        place: Place {
            layout: Layout::new(default_base(&mount)?),
            mount: mount.clone(),
            identity: places.etc.clone(),
            replication: config.replication.clone(),
            taken: hub.cluster.ports(),
            log: logs.join("driver.log"),
        },
        scripts: Scripts {
            bin,
            logs: logs.clone(),
            folders: vec![mount],
            environment,
            start: config.start_timeout,
            stop: config.stop_timeouts,
            forced: Arc::default(),
        },
        memory: places.memory(name),
        logs,
        notes: found.notes,
        config,
    })
}
