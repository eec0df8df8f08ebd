//! What the demonstration puts up on this machine, and taking it down again.
//!
//! Processes, mounts, control sockets and the directory are noted here the moment
//! they come to be. [`Stage::clear`] takes everything down, whoever calls it: the
//! end of the story, an error, a panic (by [`Curtain`]'s drop), or a signal (by a
//! thread of its own). The mounts live in a mount namespace of this process, and
//! the drivers die with it, so that even a SIGKILL leaves only the directory,
//! which the next run sweeps away.

use std::fs::File;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::mount::{MountPropagationFlags, UnmountFlags};
use rustix::process::Signal;

/// How long a killed process may take to be gone.
const TO_DIE: Duration = Duration::from_secs(10);

/// Exit code after a signal, as shells have it for SIGINT.
const INTERRUPTED: i32 = 130;

/// Everything put up.
#[derive(Debug)]
pub(crate) struct Stage {
    directory: PathBuf,
    keep: bool,
    interrupted: AtomicBool,
    props: Mutex<Props>,
}

#[derive(Debug, Default)]
struct Props {
    /// Nothing may be put up any more.
    cleared: bool,
    children: Vec<(u32, Child)>,
    /// Processes that end with one of these children.
    others: Vec<u32>,
    /// Files outside the directory, such as control sockets.
    files: Vec<PathBuf>,
}

/// Clears the stage when dropped.
#[derive(Debug)]
pub(crate) struct Curtain(pub(crate) Arc<Stage>);

impl Drop for Curtain {
    fn drop(&mut self) {
        if let Err(e) = self.0.clear() {
            eprintln!("twinfold demo: cleaning up: {e:#}");
        }
    }
}

impl Stage {
    /// A stage in `directory`, which exists; it is cleared when a signal comes.
    pub(crate) fn new(signals: Signals, directory: &Path, keep: bool) -> Result<Arc<Stage>> {
        let stage = Arc::new(Stage {
            directory: directory.to_owned(),
            keep,
            interrupted: AtomicBool::new(false),
            props: Mutex::default(),
        });
        clear_on_signals(signals, stage.clone())?;
        Ok(stage)
    }

    /// The directory everything is in.
    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    fn props(&self) -> MutexGuard<'_, Props> {
        self.props.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A file elsewhere that is to be removed at the end.
    pub(crate) fn note_file(&self, path: PathBuf) {
        self.props().files.push(path);
    }

    /// A process that ends by itself when a child is killed.
    pub(crate) fn note_process(&self, id: u32) {
        self.props().others.push(id);
    }

    /// Waits for the end of one.
    pub(crate) fn wait_for_the_end(&self, id: u32) -> Result<()> {
        let until = Instant::now() + TO_DIE;
        while Path::new(&format!("/proc/{id}")).exists() {
            if Instant::now() > until {
                bail!("process {id} does not end");
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        self.props().others.retain(|known| *known != id);
        Ok(())
    }

    /// Starts a process that dies with this one, its output going to `log`. Call it
    /// from the main thread only: the process dies with the thread that started it.
    pub(crate) fn spawn(&self, mut command: Command, log: &Path) -> Result<u32> {
        let out = File::options()
            .create(true)
            .append(true)
            .open(log)
            .with_context(|| format!("cannot write {}", log.display()))?;
        command
            .stdin(Stdio::null())
            .stdout(out.try_clone()?)
            .stderr(out)
            // Ctrl-C at the terminal is for this process, which then ends the others.
            .process_group(0);
        let me = rustix::process::getpid();
        // SAFETY: only system calls are made between fork and exec, no memory is allocated.
        unsafe {
            command.pre_exec(move || {
                rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
                // This process may have died before the line above.
                match rustix::process::getppid() == Some(me) {
                    true => Ok(()),
                    false => Err(io::Error::from_raw_os_error(libc::ESRCH)),
                }
            });
        }
        let mut props = self.props();
        if props.cleared {
            bail!("the demonstration is being ended");
        }
        let child = command
            .spawn()
            .with_context(|| format!("cannot start {:?}", command.get_program()))?;
        let id = child.id();
        props.children.push((id, child));
        Ok(id)
    }

    /// How a process ended, if it has.
    pub(crate) fn ended(&self, id: u32) -> Result<Option<ExitStatus>> {
        let mut props = self.props();
        match props.children.iter_mut().find(|(known, _)| *known == id) {
            Some((_, child)) => Ok(child.try_wait()?),
            None => bail!("process {id} is gone"),
        }
    }

    /// Waits until a process has ended by itself.
    pub(crate) fn wait(&self, id: u32, deadline: Duration) -> Result<ExitStatus> {
        let until = Instant::now() + deadline;
        loop {
            if let Some(status) = self.ended(id)? {
                self.props().children.retain(|(known, _)| *known != id);
                return Ok(status);
            }
            if Instant::now() > until {
                bail!("process {id} did not end in {deadline:?}");
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// SIGKILL. Returns at once.
    pub(crate) fn kill(&self, id: u32) -> Result<()> {
        let mut props = self.props();
        match props.children.iter_mut().find(|(known, _)| *known == id) {
            Some((_, child)) => Ok(child.kill()?),
            None => bail!("process {id} is gone"),
        }
    }

    /// Takes everything down. Can be repeated.
    pub(crate) fn clear(&self) -> Result<()> {
        let mut props = self.props();
        props.cleared = true;
        for (_, child) in &mut props.children {
            // One that has ended already cannot be killed.
            let _ = child.kill();
        }
        let until = Instant::now() + TO_DIE;
        let mut left = Vec::new();
        for (id, mut child) in props.children.drain(..) {
            while child.try_wait()?.is_none() {
                if Instant::now() > until {
                    left.push(id);
                    break;
                }
                std::thread::sleep(Duration::from_millis(2));
            }
        }
        for id in std::mem::take(&mut props.others) {
            while Path::new(&format!("/proc/{id}")).exists() {
                if Instant::now() > until {
                    left.push(id);
                    break;
                }
                std::thread::sleep(Duration::from_millis(2));
            }
        }
        let unmounted = unmount_below(&self.directory);
        for file in props.files.drain(..) {
            let _ = std::fs::remove_file(file);
        }
        // Removing what is below a mount would remove what is in the folder.
        unmounted?;
        if !left.is_empty() {
            bail!("these processes do not die: {left:?}");
        }
        match self.keep {
            true => Ok(()),
            false => remove(&self.directory)
                .with_context(|| format!("cannot remove {}", self.directory.display())),
        }
    }

    /// A signal ends the demonstration: waits for that, if it is so.
    pub(crate) fn wait_if_interrupted(&self) {
        if self.interrupted.load(Ordering::SeqCst) {
            // The signal's thread ends the process, long before this.
            std::thread::sleep(TO_DIE * 3);
        }
    }
}

/// Removes a directory in which another thread may just be making something.
fn remove(directory: &Path) -> io::Result<()> {
    let until = Instant::now() + TO_DIE;
    loop {
        match std::fs::remove_dir_all(directory) {
            Err(e) if e.kind() == io::ErrorKind::NotFound && !directory.exists() => return Ok(()),
            Err(e) if Instant::now() > until => return Err(e),
            Err(_) => std::thread::sleep(Duration::from_millis(10)),
            Ok(()) => return Ok(()),
        }
    }
}

/// Gives this process mounts of its own, which vanish with it, however it ends.
/// Call it before any other thread starts.
pub(crate) fn own_mounts() -> io::Result<()> {
    // SAFETY: no memory is involved; there is one thread, whose mounts become its own.
    if unsafe { libc::unshare(libc::CLONE_NEWNS) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    Ok(rustix::mount::mount_change("/", private)?)
}

/// Mounts below a directory, the innermost last.
fn mounts_below(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let table = std::fs::read_to_string("/proc/self/mountinfo")?;
    let points = table.lines().filter_map(|line| line.split(' ').nth(4));
    let mut found: Vec<PathBuf> = points.map(unescape).map(PathBuf::from).collect();
    found.retain(|point| point.starts_with(directory));
    Ok(found)
}

/// Names in the table of mounts have blanks and the like as octal numbers.
fn unescape(name: &str) -> String {
    let octal = [("\\040", " "), ("\\011", "\t"), ("\\012", "\n")];
    let plain = octal.iter().fold(name.to_owned(), |name, (code, char)| {
        name.replace(code, char)
    });
    plain.replace("\\134", "\\")
}

fn unmount_below(directory: &Path) -> Result<()> {
    // Each round takes one layer away; a path can have several.
    for _ in 0..16 {
        let mounts = mounts_below(directory).context("cannot read the table of mounts")?;
        if mounts.is_empty() {
            return Ok(());
        }
        for point in mounts.iter().rev() {
            // Failures are seen in the next round.
            let flags = UnmountFlags::DETACH | UnmountFlags::NOFOLLOW;
            let _ = rustix::mount::unmount(point, flags);
        }
    }
    let left = mounts_below(directory)?;
    bail!("still mounted: {left:?}; take them away with: umount -l PATH")
}

/// Ctrl-C and the like, blocked in this thread and those it starts.
pub(crate) struct Signals(libc::sigset_t);

impl Signals {
    /// From here on they wait until a stage takes them. Call it before anything else.
    pub(crate) fn hold() -> Signals {
        // SAFETY: a zeroed signal set is made valid by sigemptyset before use; the
        // calls change this thread's mask only.
        let set = unsafe {
            let mut set: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&raw mut set);
            for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
                libc::sigaddset(&raw mut set, signal);
            }
            libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
            set
        };
        Signals(set)
    }
}

/// Clears the stage on a signal and ends the process. Processes started do not
/// inherit the blocked signals.
fn clear_on_signals(Signals(set): Signals, stage: Arc<Stage>) -> Result<()> {
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            let mut signal = 0;
            // SAFETY: the set was made by `Signals::hold` and the signals in it are blocked.
            if unsafe { libc::sigwait(&raw const set, &raw mut signal) } != 0 {
                return;
            }
            stage.interrupted.store(true, Ordering::SeqCst);
            eprintln!("\ntwinfold demo: interrupted; cleaning up");
            if let Err(e) = stage.clear() {
                eprintln!("twinfold demo: cleaning up: {e:#}");
            }
            std::process::exit(INTERRUPTED);
        })
        .context("cannot start the signal thread")?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_in_the_table_of_mounts() {
        assert_eq!(unescape(r"/a\040b\134040"), r"/a b\040");
        assert_eq!(mounts_below(Path::new("/nowhere")).unwrap().len(), 0);
        assert!(!mounts_below(Path::new("/")).unwrap().is_empty());
    }

    #[test]
    fn clearing_kills_and_removes() {
        let dir = tempfile::tempdir().unwrap();
        let inside = dir.path().join("demo");
        std::fs::create_dir(&inside).unwrap();
        let stage = Stage {
            directory: inside.clone(),
            keep: false,
            interrupted: AtomicBool::new(false),
            props: Mutex::default(),
        };
        let mut sleep = Command::new("sleep");
        sleep.arg("1000");
        let id = stage.spawn(sleep, &inside.join("log")).unwrap();
        assert!(stage.ended(id).unwrap().is_none());
        assert!(stage.wait(id, Duration::from_millis(20)).is_err());
        stage.clear().unwrap();
        assert!(!inside.exists());
        assert!(!Path::new(&format!("/proc/{id}")).exists());
        let late = stage.spawn(Command::new("true"), &dir.path().join("log"));
        assert!(late.is_err(), "nothing starts once cleared");
        stage.clear().unwrap();
    }
}
