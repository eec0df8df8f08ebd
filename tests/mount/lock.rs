//! Locks between processes: flock, and fcntl's of a process and of an open file.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::Duration;

use harness::wait_until;
use rustix::io::Errno;

use crate::area::{Area, answer};

/// How long a lock may outlive the last descriptor of this process: a program that another
/// thread is about to start has every file of this one open until it begins.
const PATIENCE: Duration = Duration::from_secs(60);

/// Runs `act` in a process of its own; it must only make system calls. Returns its
/// errno, or nothing when it went well.
fn in_process(act: impl FnOnce() -> Result<i64, Errno>) -> Option<Errno> {
    // SAFETY: the child makes system calls only (this process has other threads, whose
    // locks it must not wait for) and ends without running anything else.
    unsafe {
        match libc::fork() {
            0 => libc::_exit(match act() {
                Ok(_) => 0,
                Err(e) => e.raw_os_error(),
            }),
            child => {
                assert!(child > 0, "{}", std::io::Error::last_os_error());
                let mut status = 0;
                assert_eq!(libc::waitpid(child, &raw mut status, 0), child);
                assert!(libc::WIFEXITED(status), "the child ended with {status:x}");
                let code = libc::WEXITSTATUS(status);
                (code != 0).then(|| Errno::from_raw_os_error(code))
            }
        }
    }
}

fn range(kind: i32, start: i64, length: i64) -> libc::flock {
    // SAFETY: a structure of integers.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = kind as libc::c_short;
    lock.l_whence = libc::SEEK_SET as libc::c_short;
    lock.l_start = start;
    lock.l_len = length;
    lock
}

fn fcntl(file: &File, command: i32, lock: &mut libc::flock) -> Result<i64, Errno> {
    // SAFETY: an open descriptor and a valid structure, both borrowed for the call.
    answer(unsafe { libc::fcntl(file.as_raw_fd(), command, std::ptr::from_mut(lock)) })
}

fn open(path: &Path) -> File {
    File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .unwrap()
}

fn flock(file: &File, how: i32) -> Result<i64, Errno> {
    // SAFETY: an open descriptor and an integer.
    answer(unsafe { libc::flock(file.as_raw_fd(), how | libc::LOCK_NB) })
}

#[test]
fn whole_files_are_locked_between_processes() {
    let area = Area::new("lock-flock");
    let told = area.alike(|at| {
        let path = at.join("file");
        let (mine, theirs) = (open(&path), open(&path));
        let other = |how| in_process(|| flock(&theirs, how));
        let mut told = Vec::new();
        for how in [libc::LOCK_SH, libc::LOCK_EX, libc::LOCK_UN] {
            flock(&mine, how).unwrap();
            told.push((other(libc::LOCK_SH), other(libc::LOCK_EX)));
            flock(&theirs, libc::LOCK_UN).unwrap();
        }
        // It goes with the last descriptor.
        flock(&mine, libc::LOCK_EX).unwrap();
        let copy = mine.try_clone().unwrap();
        drop(mine);
        told.push((other(libc::LOCK_SH), None));
        drop(copy);
        let free = wait_until(PATIENCE, || other(libc::LOCK_SH).is_none());
        assert!(free, "it stays locked");
        told.push((other(libc::LOCK_SH), None));
        told
    });
    assert_eq!(told[0], (None, Some(Errno::WOULDBLOCK)));
    assert_eq!(told[1], (Some(Errno::WOULDBLOCK), Some(Errno::WOULDBLOCK)));
    area.identical();
}

#[test]
fn ranges_are_locked_between_processes() {
    let area = Area::new("lock-posix");
    let told = area.alike(|at| {
        let mine = open(&at.join("file"));
        let theirs = open(&at.join("file"));
        let other = |kind, start, length| {
            in_process(|| fcntl(&theirs, libc::F_SETLK, &mut range(kind, start, length)))
        };
        let mut told = Vec::new();
        fcntl(&mine, libc::F_SETLK, &mut range(libc::F_WRLCK, 100, 100)).unwrap();
        fcntl(&mine, libc::F_SETLK, &mut range(libc::F_RDLCK, 300, 100)).unwrap();
        for (start, length) in [(0, 100), (0, 101), (199, 1), (200, 100), (350, 10), (0, 0)] {
            told.push(other(libc::F_RDLCK, start, length));
            told.push(other(libc::F_WRLCK, start, length));
        }
        // Who holds it is told.
        let me = std::process::id() as i32;
        told.push(in_process(|| {
            let mut lock = range(libc::F_WRLCK, 150, 1);
            fcntl(&theirs, libc::F_GETLK, &mut lock)?;
            match (i32::from(lock.l_type), lock.l_start, lock.l_pid == me) {
                (libc::F_WRLCK, 100, true) => Ok(0),
                _ => Err(Errno::INVAL),
            }
        }));
        // Closing any descriptor of the file drops a process's locks.
        drop(open(&at.join("file")));
        told.push(other(libc::F_WRLCK, 0, 0));
        told
    });
    assert_eq!(
        told[..4],
        [None, None, Some(Errno::AGAIN), Some(Errno::AGAIN)]
    );
    area.identical();
}

#[test]
fn locks_of_an_open_file_belong_to_it_and_not_to_the_process() {
    let area = Area::new("lock-open-file");
    let told = area.alike(|at| {
        let (one, two) = (open(&at.join("file")), open(&at.join("file")));
        let lock = |file: &File, kind| fcntl(file, libc::F_OFD_SETLK, &mut range(kind, 0, 10));
        let mut told = vec![
            lock(&one, libc::F_WRLCK),
            lock(&two, libc::F_WRLCK),
            lock(&two, libc::F_RDLCK),
        ];
        drop(open(&at.join("file")));
        told.push(lock(&two, libc::F_WRLCK));
        // A child shares what it inherits.
        told.push(match in_process(|| lock(&one, libc::F_WRLCK)) {
            None => Ok(0),
            Some(e) => Err(e),
        });
        drop(one);
        let free = wait_until(PATIENCE, || lock(&two, libc::F_WRLCK).is_ok());
        assert!(free, "it stays locked");
        told.push(lock(&two, libc::F_WRLCK));
        told
    });
    assert_eq!(told[1], Err(Errno::AGAIN));
    area.identical();
}

#[test]
fn one_who_waits_for_a_lock_gets_it() {
    let area = Area::new("lock-wait");
    let mine = open(&area.a("file"));
    flock(&mine, libc::LOCK_EX).unwrap();
    let theirs = open(&area.a("file"));
    std::thread::scope(|s| {
        let waits = s.spawn(|| {
            in_process(|| {
                // SAFETY: an open descriptor and integers; it ends the wait should the
                // lock never come.
                answer(unsafe {
                    libc::alarm(60);
                    libc::flock(theirs.as_raw_fd(), libc::LOCK_EX)
                })
            })
        });
        flock(&mine, libc::LOCK_UN).unwrap();
        assert_eq!(waits.join().unwrap(), None);
    });
    area.identical();
}
