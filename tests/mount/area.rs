//! A directory of its own for each test: on the mount of the pair that all share, and
//! a plain one beside it on the same file system, to compare with.

use std::fmt::Debug;
use std::path::{Path, PathBuf};

use harness::{Shared, shared};
use rustix::io::Errno;

/// An ordinary user that every Debian has (`nobody`), and another one (`daemon`).
pub(crate) const USER: u32 = 65534;
pub(crate) const OTHER: u32 = 1;

pub(crate) struct Area {
    pub(crate) pair: Shared,
    name: &'static str,
    plain: PathBuf,
}

impl Area {
    pub(crate) fn new(name: &'static str) -> Area {
        let pair = shared();
        std::fs::create_dir(pair.on_a(name)).unwrap();
        let plain = pair.beside("plain").join(name);
        std::fs::create_dir_all(&plain).unwrap();
        Area { pair, name, plain }
    }

    /// A path in it on the primary's mount.
    pub(crate) fn a(&self, path: impl AsRef<Path>) -> PathBuf {
        self.pair.on_a(self.name).join(path)
    }

    /// A path in it on the secondary's mount.
    pub(crate) fn b(&self, path: impl AsRef<Path>) -> PathBuf {
        self.pair.on_b(self.name).join(path)
    }

    /// A path in the plain directory.
    pub(crate) fn plain(&self, path: impl AsRef<Path>) -> PathBuf {
        self.plain.join(path)
    }

    /// Does the same on the mount and on the plain file system; what comes of it, every
    /// answer and every error, must be the same.
    pub(crate) fn alike<T: PartialEq + Debug>(&self, act: impl Fn(&Path) -> T) -> T {
        let expected = act(&self.plain);
        let found = act(&self.pair.on_a(self.name));
        if found != expected {
            panic!(
                "not as on a plain file system:\n{}",
                apart(&expected, &found)
            );
        }
        found
    }

    /// The same, for answers that need no further look.
    pub(crate) fn same<T: PartialEq + Debug>(&self, act: impl Fn(&Path) -> T) {
        drop(self.alike(act));
    }

    /// Both copies of what the test made are the same.
    pub(crate) fn identical(&self) {
        self.pair.assert_identical_below(self.name);
    }

    /// And take the same space.
    pub(crate) fn same_space(&self) {
        self.pair.assert_same_space_below(self.name);
    }
}

/// The lines in which two answers differ, each cut to a length that can be read.
fn apart<T: Debug>(plain: &T, mount: &T) -> String {
    const LINES: usize = 40;
    let text = |t: &T| format!("{t:#?}");
    let (plain, mount) = (text(plain), text(mount));
    let cut = |line: &str| line.chars().take(160).collect::<String>();
    let (plain, mount): (Vec<_>, Vec<_>) = (plain.lines().collect(), mount.lines().collect());
    let mut told: Vec<_> = (0..plain.len().max(mount.len()))
        .filter(|n| plain.get(*n) != mount.get(*n))
        .take(LINES)
        .map(|n| {
            let of = |lines: &[&str]| lines.get(n).map_or("nothing".into(), |line| cut(line));
            let before = plain[n.saturating_sub(8).min(plain.len())..n.min(plain.len())].join(" ");
            format!(
                "line {n} ({}): {} there, {} on the mount",
                cut(&before),
                of(&plain),
                of(&mount)
            )
        })
        .collect();
    told.push(format!("{} and {} lines", plain.len(), mount.len()));
    told.join("\n")
}

impl Drop for Area {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for node in [&self.pair.a, &self.pair.b] {
                eprintln!("--- {} said:\n{}\n---", node.name(), node.last_words());
            }
        }
    }
}

/// The answer of a C library call: a number, or errno.
pub(crate) fn answer(rc: impl Into<i64>) -> Result<i64, Errno> {
    match rc.into() {
        -1 => Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap()),
        n => Ok(n),
    }
}

/// The errno of a failed call of the standard library, nothing when it went well.
pub(crate) fn code<T>(result: std::io::Result<T>) -> Option<Errno> {
    result.err().map(|e| Errno::from_io_error(&e).unwrap())
}

/// Runs `act` in a thread that has left root, its groups and its capabilities, with a
/// umask and a working directory of its own. Credentials are a thread's in Linux.
pub(crate) fn as_user<T: Send>(
    user: u32,
    groups: &[u32],
    umask: u32,
    act: impl FnOnce() -> T + Send,
) -> T {
    in_thread(|| {
        // SAFETY: plain system calls; `groups` outlives the one that reads it. They
        // change this thread only, which ends with `act`.
        unsafe {
            libc::umask(umask);
            for rc in [
                libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()),
                libc::syscall(libc::SYS_setresgid, user, user, user),
                libc::syscall(libc::SYS_setresuid, user, user, user),
            ] {
                assert_eq!(rc, 0, "{}", std::io::Error::last_os_error());
            }
        }
        act()
    })
}

/// Runs `act` in a thread with a umask and a working directory of its own.
pub(crate) fn in_thread<T: Send>(act: impl FnOnce() -> T + Send) -> T {
    let run = || {
        // SAFETY: unshares this thread's umask and working directory; no memory is involved.
        let rc = unsafe { libc::unshare(libc::CLONE_FS) };
        assert_eq!(rc, 0, "{}", std::io::Error::last_os_error());
        act()
    };
    std::thread::scope(|s| match s.spawn(run).join() {
        Ok(value) => value,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}

/// Bytes that differ from place to place and from `seed` to `seed`.
pub(crate) fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..length)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 24) as u8
        })
        .collect()
}
