//! One running driver: a folder, its mount, its link, its control socket.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use parking_lot::Mutex;
use twinfold_protocol::handshake::Role;
use twinfold_protocol::ids::Side;

use crate::adapter::fuse::{self, Mounted};
use crate::control;
use crate::engine::{Engine, Standing, Status};
use crate::link::{self, Fingerprint, Identity, Transport};
use crate::state::Settings;
use crate::store::Layout;
use crate::vfs::Vfs;

/// How often times are shipped.
const SETTLE_EVERY: Duration = Duration::from_millis(100);

/// How often it is looked whether archives are beyond their limits.
const LIMIT_EVERY: Duration = Duration::from_secs(3600);

/// How a driver is started.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Start {
    /// As what.
    pub role: Role,
    /// Also with a copy that may lack acknowledged writes.
    pub force: bool,
    /// As secondary, although the history of its copy cannot be read.
    pub history_unknown: bool,
    /// A controller decides what the driver does when its peer is lost.
    pub controlled: bool,
}

/// A running driver, as the control socket sees it.
#[derive(Debug)]
pub struct Driver {
    engine: Arc<Engine>,
    vfs: Arc<Vfs>,
    mounted: Mutex<Option<Mounted>>,
    stopping: AtomicBool,
    /// One change of role at a time.
    changing: Mutex<()>,
}

impl Driver {
    /// The state now.
    pub fn status(&self) -> Status {
        self.engine.status()
    }

    /// What a controller decides from.
    pub fn standing(&self) -> Standing {
        Standing {
            mounted: self.mounted.lock().as_ref().is_some_and(|m| !m.is_gone()),
            ..self.engine.standing()
        }
    }

    /// See [`Engine::promote`]; the mount becomes writable in place.
    pub fn promote(&self, force: bool) -> Result<()> {
        let _one = self.changing.lock();
        self.vfs.before_promotion();
        self.engine.promote(force)?;
        self.make_writable()
    }

    /// See [`Engine::promote_by_right`]; the mount becomes writable in place.
    pub fn promote_by_right(&self, yielded: bool) -> Result<()> {
        let _one = self.changing.lock();
        self.vfs.before_promotion();
        self.engine.promote_by_right(yielded)?;
        self.make_writable()
    }

    fn make_writable(&self) -> Result<()> {
        match &*self.mounted.lock() {
            Some(mounted) => mounted
                .set_read_only(false)
                .context("this node is primary, but its mount cannot be made writable"),
            None => Ok(()),
        }
    }

    /// See [`Engine::demote`]; the mount becomes read-only in place.
    pub fn demote(&self, force: bool) -> Result<()> {
        let _one = self.changing.lock();
        if self.engine.role() != Some(Role::Primary) {
            bail!("this node is not primary");
        }
        if self.engine.peer_differs() && !force {
            bail!(
                "a verify found that the peer's copy differs from this one: run `verify --repair` \
                 first, or use --force"
            );
        }
        let read_only = |on| match &*self.mounted.lock() {
            Some(mounted) => mounted.set_read_only(on),
            None => Ok(()),
        };
        if let Err(e) = read_only(true) {
            if !force {
                return Err(anyhow::Error::from(e).context(
                    "something on the mount is still open for writing: stop the application \
                     first, or use --force to take it away",
                ));
            }
            tracing::warn!(error = %e, "demoting although something is open for writing");
        }
        self.engine.demote().inspect_err(|_| {
            if let Err(e) = read_only(false) {
                tracing::warn!(error = %e, "the mount stays read-only");
            }
        })
    }

    /// See [`Engine::go_alone`].
    pub fn go_alone(&self) -> Result<()> {
        if !self.engine.go_alone() {
            bail!("there is nothing to decide: the peer is not lost");
        }
        Ok(())
    }

    /// See [`Engine::give_up`].
    pub fn give_up(&self, without_archive: bool) -> Result<()> {
        let _one = self.changing.lock();
        self.engine.give_up(without_archive)
    }

    /// Asks the driver to end.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
    }

    fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
            || self.mounted.lock().as_ref().is_some_and(Mounted::is_gone)
    }

    /// The folder.
    pub fn engine(&self) -> &Arc<Engine> {
        &self.engine
    }
}

/// Runs a driver until it is asked to stop by a signal, the control socket, or an unmount.
pub fn run(layout: Layout, identity: &Path, start: Start) -> Result<()> {
    let settings = Settings::load(&layout.state())?;
    let identity = Identity::load(identity)?;
    let peer = Fingerprint::parse(&settings.peer_id)?;
    let side = match identity.fingerprint() < peer {
        true => Side::Even,
        false => Side::Odd,
    };
    raise_descriptor_limit();
    let _lock = crate::setup::lock(&layout)?;
    if let Err(error) = crate::archive::remove_incomplete(&layout) {
        tracing::warn!(%error, "an archive that was not completed cannot be removed");
    }
    let transport = Transport::new(&settings, &identity)?;
    let mount_at = settings.mount.clone();
    let name = settings.name.clone();
    let checkpoint_every = Duration::from_secs(settings.checkpoint_s);
    // Signals are taken by one thread only; it must be set up before any other starts.
    let signals = control::signals()?;
    let engine = Arc::new(Engine::open(
        layout.clone(),
        settings,
        side,
        start.history_unknown,
    )?);
    engine.set_controlled(start.controlled);
    if fuse::unmount_stale(&mount_at).context("a stale mount is in the way")? {
        tracing::info!(path = %mount_at.display(), "a mount left by a killed driver was removed");
    }
    match start.role {
        Role::Primary => engine.start_primary(start.force)?,
        Role::Secondary => engine.start_secondary()?,
    }
    let vfs = Arc::new(Vfs::new(engine.clone()));
    vfs.host();
    let driver = Arc::new(Driver {
        engine: engine.clone(),
        vfs: vfs.clone(),
        mounted: Mutex::new(None),
        stopping: AtomicBool::new(false),
        changing: Mutex::new(()),
    });
    let socket = control::serve(&layout, driver.clone())?;
    let link = link_thread(&engine, transport)?;
    let read_only = start.role == Role::Secondary;
    let mounted = fuse::mount(vfs, &name, &mount_at, read_only)?;
    *driver.mounted.lock() = Some(mounted);
    tracing::info!(name, path = %mount_at.display(), role = ?start.role, "mounted");

    let checkpoints = checkpoint_thread(&engine, &driver, checkpoint_every)?;
    while !driver.is_stopping() && !link.is_finished() {
        if signals.try_recv().is_ok() {
            driver.stop();
        }
        engine.settle_times();
        std::thread::sleep(SETTLE_EVERY);
    }
    if link.is_finished() && !driver.is_stopping() {
        tracing::error!("the link to the peer ended; stopping");
    }
    driver.stop();
    stop(&driver, &engine)?;
    let _ = checkpoints.join();
    drop(socket);
    Ok(())
}

fn stop(driver: &Driver, engine: &Arc<Engine>) -> Result<()> {
    if let Some(mounted) = driver.mounted.lock().take()
        && !mounted.is_gone()
    {
        // In use: whoever uses it keeps what is open until closed, and gets no new calls through.
        if let Err(error) = mounted.unmount() {
            tracing::warn!(%error, "the mount is in use; it is detached");
            mounted.detach().context("cannot unmount")?;
        }
        let until = Instant::now() + Duration::from_secs(5);
        while !mounted.is_gone() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    engine.stop()
}

fn link_thread(engine: &Arc<Engine>, transport: Transport) -> Result<std::thread::JoinHandle<()>> {
    let engine = engine.clone();
    std::thread::Builder::new()
        .name("link".into())
        .spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build();
            let ended = match runtime {
                Ok(runtime) => runtime.block_on(link::run(engine, transport)),
                Err(e) => Err(e.into()),
            };
            if let Err(error) = ended {
                tracing::error!(error = format!("{error:#}"), "the link to the peer failed");
            }
        })
        .context("cannot start the link's thread")
}

fn checkpoint_thread(
    engine: &Arc<Engine>,
    driver: &Arc<Driver>,
    every: Duration,
) -> Result<std::thread::JoinHandle<()>> {
    let (engine, driver) = (engine.clone(), driver.clone());
    std::thread::Builder::new()
        .name("checkpoint".into())
        .spawn(move || {
            let mut last = Instant::now();
            let mut limited: Option<Instant> = None;
            while !driver.is_stopping() {
                if limited.is_none_or(|at| at.elapsed() >= LIMIT_EVERY) {
                    engine.limit_archives();
                    limited = Some(Instant::now());
                }
                std::thread::sleep(SETTLE_EVERY);
                if last.elapsed() >= every {
                    engine.checkpoint();
                    last = Instant::now();
                }
            }
        })
        .context("cannot start the checkpoint's thread")
}

/// Every open file of the application is a descriptor here.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!(%error, "the limit on open files cannot be raised");
    }
}
