//! Killing a process in front of the n-th thing it does.
//!
//! The kernel asks a thread of the test before each of the process's system calls that
//! change something outside of it (`seccomp_unotify(2)`): files, names, attributes, syncs,
//! datagrams to the peer, answers to the kernel's file system. The thread counts, lets the
//! call through, or kills the process in front of it. The process is the production
//! program and knows nothing of it; what it wrote stays in the page cache, as after any
//! SIGKILL.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Where the child keeps the descriptor that the test takes.
const PLACE: i32 = 900;

/// Calls that change something, on every architecture.
const CALLS: &[libc::c_long] = &[
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_pwritev2,
    // An answer to the kernel: this is how a call is acknowledged.
    libc::SYS_writev,
    libc::SYS_copy_file_range,
    libc::SYS_fallocate,
    libc::SYS_ftruncate,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_syncfs,
    libc::SYS_renameat2,
    libc::SYS_linkat,
    libc::SYS_unlinkat,
    libc::SYS_mkdirat,
    libc::SYS_mknodat,
    libc::SYS_symlinkat,
    libc::SYS_setxattr,
    libc::SYS_fsetxattr,
    libc::SYS_removexattr,
    libc::SYS_fremovexattr,
    libc::SYS_utimensat,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_fchown,
    libc::SYS_fchownat,
    libc::SYS_sendmsg,
    libc::SYS_sendmmsg,
    libc::SYS_sendto,
];

/// Their older forms.
#[cfg(target_arch = "x86_64")]
const OLD_CALLS: &[libc::c_long] = &[
    libc::SYS_rename,
    libc::SYS_renameat,
    libc::SYS_unlink,
    libc::SYS_rmdir,
    libc::SYS_mkdir,
    libc::SYS_chmod,
    libc::SYS_chown,
    libc::SYS_lchown,
];

#[cfg(not(target_arch = "x86_64"))]
const OLD_CALLS: &[libc::c_long] = &[];

/// The offset of argument `n` in `struct seccomp_data`, its lower half.
const fn argument(n: u32) -> u32 {
    16 + 8 * n + if cfg!(target_endian = "big") { 4 } else { 0 }
}

fn filter() -> Vec<libc::sock_filter> {
    let load = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    let equal = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    let any = (libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K) as u16;
    let ret = (libc::BPF_RET | libc::BPF_K) as u16;
    let op = |code, jt: usize, jf: usize, k| libc::sock_filter {
        code,
        jt: jt as u8,
        jf: jf as u8,
        k,
    };
    let calls: Vec<_> = CALLS.iter().chain(OLD_CALLS).collect();
    let mut program = vec![op(load, 0, 0, 0)];
    for (n, call) in calls.iter().enumerate() {
        // To the last instruction, which asks.
        let left = calls.len() - n - 1;
        program.push(op(equal, left + 4, 0, **call as u32));
    }
    program.extend([
        // `openat` counts if it may create.
        op(equal, 0, 2, libc::SYS_openat as u32),
        op(load, 0, 0, argument(2)),
        op(any, 1, 0, libc::O_CREAT as u32),
        op(ret, 0, 0, libc::SECCOMP_RET_ALLOW),
        op(ret, 0, 0, libc::SECCOMP_RET_USER_NOTIF),
    ]);
    program
}

fn checked(result: libc::c_long) -> io::Result<libc::c_long> {
    match result {
        -1 => Err(io::Error::last_os_error()),
        other => Ok(other),
    }
}

/// Before the process starts: every effect of it will be asked about.
pub(crate) fn watch(command: &mut Command) {
    let filter = filter();
    // SAFETY: between fork and exec only system calls are made, on memory that was made before.
    unsafe {
        command.pre_exec(move || {
            let program = libc::sock_fprog {
                len: filter.len() as u16,
                filter: filter.as_ptr().cast_mut(),
            };
            let listener = checked(libc::syscall(
                libc::SYS_seccomp,
                libc::SECCOMP_SET_MODE_FILTER,
                libc::SECCOMP_FILTER_FLAG_NEW_LISTENER,
                &raw const program,
            ))?;
            checked(libc::dup2(listener as i32, PLACE).into())?;
            Ok(())
        });
    }
}

#[derive(Debug, Default)]
struct Plan {
    counting: bool,
    /// So many effects more are let through; then the process is killed.
    left: u64,
}

#[derive(Debug, Default)]
struct Shared {
    plan: Mutex<Plan>,
    seen: AtomicU64,
    killed: AtomicBool,
}

/// What a watched process does.
#[derive(Debug)]
pub struct Effects {
    shared: Arc<Shared>,
}

impl Effects {
    /// Begins to answer for the process, which was started from a watched command. It is
    /// killed behind `limit` effects, if that is given.
    pub(crate) fn of(pid: u32, limit: Option<u64>) -> io::Result<Effects> {
        // SAFETY: system calls on a child that was not waited for; each descriptor is new.
        let listener = unsafe {
            let process = checked(libc::syscall(libc::SYS_pidfd_open, pid, 0))?;
            let process = OwnedFd::from_raw_fd(process as i32);
            let taken = libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), PLACE, 0);
            OwnedFd::from_raw_fd(checked(taken)? as i32)
        };
        let shared = Arc::new(Shared::default());
        *shared.lock() = Plan {
            counting: limit.is_some(),
            left: limit.unwrap_or_default(),
        };
        let mine = shared.clone();
        std::thread::Builder::new()
            .name("effects".into())
            .spawn(move || serve(&listener, pid, &mine))?;
        Ok(Effects { shared })
    }

    /// From now on so many effects are let through; the process is killed in front of
    /// the next one.
    pub fn kill_after(&self, effects: u64) {
        let mut plan = self.shared.lock();
        plan.counting = true;
        plan.left = effects;
    }

    /// The process lives, whatever it does.
    pub fn spare(&self) {
        self.shared.lock().counting = false;
    }

    /// Whether it was killed in front of an effect.
    pub fn has_killed(&self) -> bool {
        self.shared.killed.load(Ordering::SeqCst)
    }

    /// How many effects it had so far.
    pub fn seen(&self) -> u64 {
        self.shared.seen.load(Ordering::SeqCst)
    }
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, Plan> {
        self.plan.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the next effect may come to pass.
    fn may_happen(&self) -> bool {
        let mut plan = self.lock();
        if plan.counting && plan.left == 0 {
            return false;
        }
        plan.left = plan.left.saturating_sub(1);
        self.seen.fetch_add(1, Ordering::SeqCst);
        true
    }
}

/// Answers until the process has ended.
fn serve(listener: &OwnedFd, pid: u32, shared: &Shared) {
    loop {
        let mut poll = libc::pollfd {
            fd: listener.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: one structure, as announced.
        let ready = unsafe { libc::poll(&raw mut poll, 1, -1) };
        if ready < 0 {
            continue;
        }
        if poll.revents & libc::POLLIN == 0 {
            return;
        }
        // SAFETY: zeros are valid in these structures, and the kernel wants them.
        let (mut question, mut answer): (libc::seccomp_notif, libc::seccomp_notif_resp) =
            unsafe { std::mem::zeroed() };
        // SAFETY: the structure that the call fills.
        let got = unsafe {
            libc::ioctl(
                listener.as_raw_fd(),
                libc::SECCOMP_IOCTL_NOTIF_RECV,
                &raw mut question,
            )
        };
        if got != 0 {
            // Whoever asked was killed meanwhile.
            continue;
        }
        if !shared.may_happen() {
            shared.killed.store(true, Ordering::SeqCst);
            // SAFETY: the process exists as long as this call of it waits.
            unsafe { libc::kill(pid as i32, libc::SIGKILL) };
            continue;
        }
        answer.id = question.id;
        answer.flags = libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32;
        // SAFETY: the structure that the call reads. It fails if the caller was killed.
        unsafe {
            libc::ioctl(
                listener.as_raw_fd(),
                libc::SECCOMP_IOCTL_NOTIF_SEND,
                &raw mut answer,
            )
        };
    }
}
