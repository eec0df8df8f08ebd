//! One running driver: a folder, its mount, its link, its control socket.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use parking_lot::Mutex;
use twinfold_protocol::handshake::Role;
use twinfold_protocol::ids::Side;

use crate::adapter::fuse::{self, Mounted};
use crate::control;
use crate::engine::{Engine, Standing, Status};
use crate::link::{self, Fingerprint, Identity, Presence, Transport};
use crate::state::Settings;
use crate::store::Layout;
use crate::vfs::Vfs;

/// How often times are shipped.
const SETTLE_EVERY: Duration = Duration::from_millis(100);

/// Looks in a row that find none, until it is slept until there are some: whoever changes
/// something now and then need not wake another thread each time.
const LOOKS: u32 = 10;

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
    /// The TCP ports beside the link's are held ([`Presence`]).
    pub present: bool,
}

/// A running driver, as the control socket sees it.
#[derive(Debug)]
pub struct Driver {
    engine: Arc<Engine>,
    vfs: Arc<Vfs>,
    mounted: Mutex<Option<Mounted>>,
    /// Where the peer's controller sees whether this process lives.
    presence: Option<Presence>,
    stopping: AtomicBool,
    /// Wakes the driver's main thread.
    wake: Sender<()>,
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
            present: self.presence.as_ref().is_some_and(Presence::is_complete),
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
        // A main thread that is gone has stopped.
        let _ = self.wake.send(());
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
    let listen = settings.listen.clone();
    let checkpoint_every = Duration::from_secs(settings.checkpoint_s);
    // Signals are taken by one thread only; it must be set up before any other starts.
    let (wake, woken) = channel();
    let signalled = Arc::new(AtomicBool::new(false));
    signals(&signalled, &wake)?;
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
    let seen = engine.clone();
    let presence = match start.present {
        true => Some(Presence::hold(&listen, move || seen.changes().ring())?),
        false => None,
    };
    let driver = Arc::new(Driver {
        engine: engine.clone(),
        vfs: vfs.clone(),
        mounted: Mutex::new(None),
        presence,
        stopping: AtomicBool::new(false),
        wake: wake.clone(),
        changing: Mutex::new(()),
    });
    let socket = control::serve(&layout, driver.clone())?;
    let unlinked = Arc::new(AtomicBool::new(false));
    link_thread(&engine, transport, &unlinked, wake.clone())?;
    let read_only = start.role == Role::Secondary;
    let (seen, ended) = (engine.clone(), wake.clone());
    let gone = move || {
        seen.changes().ring();
        let _ = ended.send(());
    };
    let mounted = fuse::mount(vfs, &name, &mount_at, read_only, gone)?;
    *driver.mounted.lock() = Some(mounted);
    engine.changes().ring();
    tracing::info!(name, path = %mount_at.display(), role = ?start.role, "mounted");

    let (stopping, stops) = channel();
    let checkpoints = checkpoint_thread(&engine, stops, checkpoint_every)?;
    // Whoever has times to be shipped behind a pause.
    engine.settle_with(move || {
        let _ = wake.send(());
    });
    let is_ending = || signalled.load(Ordering::Acquire) || driver.is_stopping();
    let is_unlinked = || unlinked.load(Ordering::Acquire);
    settle_until(&engine, &woken, || is_ending() || is_unlinked());
    if is_unlinked() && !is_ending() {
        tracing::error!("the link to the peer ended; stopping");
    }
    driver.stop();
    drop(stopping);
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

/// Ships times until the driver is to end; sleeps as long as there are none.
fn settle_until(engine: &Engine, woken: &Receiver<()>, ends: impl Fn() -> bool) {
    let mut nothing = 0;
    while !ends() {
        nothing = if engine.times_settled() {
            nothing + 1
        } else {
            0
        };
        engine.settle_times();
        if nothing >= LOOKS && engine.may_rest() {
            // Whoever wakes this thread lives as long as it.
            let _ = woken.recv();
            nothing = 0;
        } else {
            std::thread::sleep(SETTLE_EVERY);
        }
    }
}

/// Passes signals on to the main thread.
fn signals(signalled: &Arc<AtomicBool>, wake: &Sender<()>) -> Result<()> {
    let (signalled, wake) = (signalled.clone(), wake.clone());
    control::on_signal(move || {
        signalled.store(true, Ordering::Release);
        wake.send(()).is_ok()
    })
}

/// Notes that the link's thread ends, however that is, and wakes the main thread.
struct End(Arc<AtomicBool>, Sender<()>);

impl Drop for End {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
        let _ = self.1.send(());
    }
}

/// Starts the link's thread, which notes in `ended` that it has ended.
fn link_thread(
    engine: &Arc<Engine>,
    transport: Transport,
    ended: &Arc<AtomicBool>,
    wake: Sender<()>,
) -> Result<()> {
    let (engine, end) = (engine.clone(), End(ended.clone(), wake));
    std::thread::Builder::new()
        .name("link".into())
        .spawn(move || {
            let _end = end;
            if let Err(error) = link::run(engine, transport) {
                tracing::error!(error = format!("{error:#}"), "the link to the peer failed");
            }
        })
        .map(drop)
        .context("cannot start the link's thread")
}

fn checkpoint_thread(
    engine: &Arc<Engine>,
    stops: Receiver<()>,
    every: Duration,
) -> Result<std::thread::JoinHandle<()>> {
    let engine = engine.clone();
    std::thread::Builder::new()
        .name("checkpoint".into())
        .spawn(move || {
            let mut limited: Option<Instant> = None;
            loop {
                if limited.is_none_or(|at| at.elapsed() >= LIMIT_EVERY) {
                    engine.limit_archives();
                    limited = Some(Instant::now());
                }
                if stops.recv_timeout(every) != Err(RecvTimeoutError::Timeout) {
                    return;
                }
                engine.checkpoint();
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
