//! What the programs that this one starts begin with, and who uses a folder.

use std::collections::BTreeMap;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{AtFlags, StatxFlags};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open, pidfd_send_signal};

/// How long what was killed may take to be gone.
const DEATH: Duration = Duration::from_secs(5);

/// How often it is looked.
const LOOK: Duration = Duration::from_millis(10);

/// A process that runs, whoever gets its number later.
#[derive(Debug)]
pub(crate) struct Process {
    handle: OwnedFd,
}

/// Readable when it has ended.
impl AsFd for Process {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.handle.as_fd()
    }
}

/// How long it is until then, as the kernel takes it.
pub(crate) fn timespec(until: Instant) -> Timespec {
    let left = until.saturating_duration_since(Instant::now());
    Timespec {
        tv_sec: left.as_secs() as i64,
        tv_nsec: left.subsec_nanos().into(),
    }
}

impl Process {
    pub(crate) fn of(pid: u32) -> Result<Process> {
        let raw = Pid::from_raw(pid as i32).context("the process has no number")?;
        let handle = pidfd_open(raw, PidfdFlags::empty())
            .with_context(|| format!("the process {pid} cannot be followed"))?;
        Ok(Process { handle })
    }

    /// Waits until it has ended; false when time is up.
    pub(crate) fn wait(&self, most: Duration) -> bool {
        let until = Instant::now() + most;
        loop {
            let left = timespec(until);
            match poll(&mut [PollFd::new(self, PollFlags::IN)], Some(&left)) {
                Ok(0) => return false,
                Ok(_) => return true,
                Err(rustix::io::Errno::INTR) => {}
                Err(_) => return false,
            }
        }
    }

    pub(crate) fn kill(&self) {
        // One that has ended already is what is wanted.
        let _ = pidfd_send_signal(&self.handle, Signal::KILL);
    }
}

/// The program begins with no signal blocked, and is no part of a service. This process blocks the
/// signals that it waits for, a program inherits that, and many never look: SIGTERM would not end
/// them. Nor is it anything of theirs where this process tells systemd how it is (`sd_notify(3)`).
pub(crate) fn on_its_own(command: &mut Command) -> &mut Command {
    command.env_remove("NOTIFY_SOCKET");
    // SAFETY: between fork and exec this calls sigemptyset and pthread_sigmask alone, both
    // async-signal-safe (signal-safety(7)), on memory of its own.
    unsafe {
        command.pre_exec(|| {
            let mut none = MaybeUninit::uninit();
            libc::sigemptyset(none.as_mut_ptr());
            let done =
                libc::pthread_sigmask(libc::SIG_SETMASK, none.as_ptr(), std::ptr::null_mut());
            match done {
                0 => Ok(()),
                error => Err(std::io::Error::from_raw_os_error(error)),
            }
        })
    }
}

/// Kills everything that has something on a mount open, mapped, or as its working directory, as
/// `fuser -km` does; this process excepted. Returns what it killed, by process id, and of that
/// what was not gone after a moment. The file system is asked nothing: it may not answer. Where
/// nothing is mounted there, nobody is killed.
pub(crate) fn kill_users(mount: &Path) -> (BTreeMap<i32, String>, Vec<i32>) {
    let mut killed = BTreeMap::new();
    let until = Instant::now() + DEATH;
    loop {
        let found = users(mount);
        for (pid, name) in &found {
            if let Some(raw) = Pid::from_raw(*pid) {
                // One that has ended by now is what is wanted.
                let _ = kill_process(raw, Signal::KILL);
            }
            killed.insert(*pid, name.clone());
        }
        if found.is_empty() || Instant::now() >= until {
            return (killed, found.into_keys().collect());
        }
        std::thread::sleep(LOOK);
    }
}

/// Who uses what is mounted there: process ids and names.
fn users(mount: &Path) -> BTreeMap<i32, String> {
    let own = std::process::id() as i32;
    let mut found = BTreeMap::new();
    let shown = std::fs::read_link("/proc/self").unwrap_or_default();
    if shown != Path::new(&own.to_string()) {
        // Of another process namespace, whose numbers are other processes here.
        tracing::warn!("/proc does not show this machine's processes: nobody is killed");
        return found;
    }
    // By its device, not by its path: in a container another directory has the same path, or the
    // same one another path.
    let Ok(mount) = mount.canonicalize() else {
        return found;
    };
    let (here, above) = (device(&mount), mount.parent().and_then(device));
    let Some(here) = here.filter(|here| above.is_some_and(|above| above != *here)) else {
        return found;
    };
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let pid = entry.file_name().to_str().and_then(|n| n.parse().ok());
        let Some(pid) = pid.filter(|pid| *pid != own) else {
            continue;
        };
        if uses(&entry.path(), here) {
            let name = std::fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
            found.insert(pid, name.trim().to_owned());
        }
    }
    found
}

/// The device of the file system in which this lies, as far as the kernel knows it by itself:
/// the file system is not asked.
fn device(path: &Path) -> Option<(u32, u32)> {
    let told = rustix::fs::statx(
        rustix::fs::CWD,
        path,
        AtFlags::STATX_DONT_SYNC | AtFlags::NO_AUTOMOUNT,
        StatxFlags::empty(),
    );
    told.ok()
        .map(|told| (told.stx_dev_major, told.stx_dev_minor))
}

/// Whether the process that is shown here uses what is on the device. One that ends meanwhile
/// does not.
fn uses(process: &Path, mounted: (u32, u32)) -> bool {
    let on = |link: &Path| device(link) == Some(mounted);
    if ["cwd", "root", "exe"].iter().any(|n| on(&process.join(n))) {
        return true;
    }
    let open = std::fs::read_dir(process.join("fd"));
    if open
        .into_iter()
        .flatten()
        .flatten()
        .any(|fd| on(&fd.path()))
    {
        return true;
    }
    let maps = std::fs::read_to_string(process.join("maps")).unwrap_or_default();
    // The fourth field of proc_pid_maps(5), in hexadecimal.
    let shown = format!("{:02x}:{:02x}", mounted.0, mounted.1);
    maps.lines()
        .any(|line| line.split(' ').nth(3) == Some(&shown))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::io::Read;
    use std::os::unix::process::ExitStatusExt;
    use std::process::Stdio;

    /// The signals that a program finds blocked, as the kernel shows them.
    fn blocked(command: &mut Command) -> String {
        // Not a shell: some take back what they inherit.
        let text = command.arg("/proc/self/status").output().unwrap().stdout;
        let text = String::from_utf8(text).unwrap();
        let line = text.lines().find(|l| l.starts_with("SigBlk:")).unwrap();
        line.trim_start_matches("SigBlk:").trim().to_owned()
    }

    #[test]
    fn a_program_can_be_ended_whatever_this_one_waits_for() {
        let none = "0000000000000000";
        // A thread's own mask, so that no other test sees it.
        let here = std::thread::spawn(|| {
            let mut term = MaybeUninit::uninit();
            // SAFETY: on memory of its own.
            unsafe {
                libc::sigemptyset(term.as_mut_ptr());
                libc::sigaddset(term.as_mut_ptr(), libc::SIGTERM);
                libc::pthread_sigmask(libc::SIG_BLOCK, term.as_ptr(), std::ptr::null_mut());
            }
            let inherited = blocked(&mut Command::new("cat"));
            (inherited, blocked(on_its_own(&mut Command::new("cat"))))
        });
        let (inherited, unblocked) = here.join().unwrap();
        assert_ne!(inherited, none, "the test blocks nothing");
        assert_eq!(unblocked, none);
    }

    /// A file system in memory; unmounted at the end.
    pub(crate) struct Mounted(std::path::PathBuf);

    impl Mounted {
        pub(crate) fn new(path: &Path) -> Mounted {
            std::fs::create_dir_all(path).unwrap();
            let flags = rustix::mount::MountFlags::empty();
            rustix::mount::mount("tmpfs", path, "tmpfs", flags, None).unwrap();
            Mounted(path.to_owned())
        }
    }

    impl Drop for Mounted {
        fn drop(&mut self) {
            let _ = rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH);
        }
    }

    #[test]
    fn who_uses_a_mount_is_killed_and_nobody_else() {
        let dir = tempfile::tempdir().unwrap();
        let [folder, beside, bound] = ["vm", "vm2", "bound"].map(|n| dir.path().join(n));
        std::fs::create_dir_all(folder.join("below")).unwrap();
        let sleep = |directory: &Path| {
            let mut command = Command::new("sleep");
            command.arg("1000").current_dir(directory);
            command.stdin(Stdio::null());
            command
        };
        // Where nothing is mounted nobody is killed, whoever is there.
        let mut under = sleep(&folder.join("below")).spawn().unwrap();
        assert_eq!(kill_users(&folder), Default::default());
        let (_one, _other) = (Mounted::new(&folder), Mounted::new(&beside));
        std::fs::create_dir(&bound).unwrap();
        rustix::mount::mount_bind(&folder, &bound).unwrap();
        let _bound = Mounted(bound.clone());
        // It opens the file itself: what this process has open is also open in every program that
        // another test is about to start.
        let mut opens = Command::new("sh");
        opens.args(["-c", "exec <>\"$0\" && echo && exec sleep 1000"]);
        opens.arg(folder.join("disk")).current_dir("/");
        opens.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut opens = opens.spawn().unwrap();
        let said = opens.stdout.as_mut().unwrap();
        said.read_exact(&mut [0]).unwrap();
        let mut stands = sleep(&folder).spawn().unwrap();
        // By another name, as in a container.
        let mut elsewhere = sleep(&bound).spawn().unwrap();
        let mut other = sleep(&beside).spawn().unwrap();
        let (killed, left) = kill_users(&folder);
        let mut expected = [&opens, &stands, &elsewhere].map(|child| child.id() as i32);
        expected.sort_unstable();
        assert!(killed.keys().eq(&expected), "{killed:?}, {expected:?}");
        assert!(left.is_empty(), "{left:?}");
        for child in [&mut opens, &mut stands, &mut elsewhere] {
            assert_eq!(child.wait().unwrap().signal(), Some(libc::SIGKILL));
        }
        for child in [&mut under, &mut other] {
            assert!(child.try_wait().unwrap().is_none());
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
}
