//! Creating objects in another user's name.
//!
//! An object gets its owner, group, mode and inherited ACL in the one call that
//! makes it, so that no crash can leave it with the driver's own. The thread takes
//! on the user's file system ids and umask for that call; the securebit
//! `SECBIT_NO_SETUID_FIXUP` (`capabilities(7)`) lets it keep its capabilities, so
//! that permissions, which the kernel has checked already, do not decide again.

use std::cell::Cell;
use std::io;

use rustix::fs::Mode;

const SECBIT_NO_SETUID_FIXUP: libc::c_ulong = 1 << 2;

thread_local! {
    static READY: Cell<bool> = const { Cell::new(false) };
}

/// Makes this thread able to act for others: its own umask, capabilities kept.
fn prepare() -> io::Result<()> {
    if READY.get() {
        return Ok(());
    }
    // SAFETY: unshares only this thread's umask and working directory; no memory is involved.
    if unsafe { libc::unshare(libc::CLONE_FS) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a plain prctl with integer arguments.
    let bits = unsafe { libc::prctl(libc::PR_GET_SECUREBITS) };
    if bits < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: as above.
    let rc = unsafe {
        libc::prctl(
            libc::PR_SET_SECUREBITS,
            bits as libc::c_ulong | SECBIT_NO_SETUID_FIXUP,
        )
    };
    if rc != 0 {
        return Err(io::Error::last_os_error());
    }
    READY.set(true);
    Ok(())
}

/// Runs `make` with these file system ids and umask. Afterwards the thread is what it
/// was: it also makes files of the driver's own.
pub(super) fn with<T>(
    uid: u32,
    gid: u32,
    umask: u32,
    make: impl FnOnce() -> io::Result<T>,
) -> io::Result<T> {
    prepare()?;
    let own = rustix::process::umask(Mode::from_raw_mode(umask));
    set(gid, uid);
    let made = make();
    set(0, 0);
    rustix::process::umask(own);
    made
}

fn set(gid: u32, uid: u32) {
    // SAFETY: raw system calls with integer arguments; they change this thread only
    // (the C library's wrappers do the same). They cannot fail for a thread that
    // holds CAP_SETUID and CAP_SETGID, which `prepare` keeps.
    unsafe {
        libc::syscall(libc::SYS_setfsgid, gid);
        libc::syscall(libc::SYS_setfsuid, uid);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn a_thread_that_acted_for_another_is_itself_again() {
        let dir = tempfile::tempdir().unwrap();
        let make = |name: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, "").unwrap();
            let meta = std::fs::metadata(path).unwrap();
            (meta.mode() & 0o777, meta.uid(), meta.gid())
        };
        // A thread of its own: capabilities and umask are a thread's.
        std::thread::scope(|s| {
            s.spawn(|| {
                let before = make("before");
                let other = with(65534, 65534, 0, || Ok(make("other"))).unwrap();
                assert_eq!(other, (0o666, 65534, 65534));
                assert_eq!(make("after"), before);
                let failed = with(1, 1, 0o777, || {
                    io::Result::<()>::Err(io::ErrorKind::Other.into())
                });
                assert!(failed.is_err());
                assert_eq!(make("after a failure"), before);
            });
        });
    }
}
