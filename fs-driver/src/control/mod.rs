//! The control socket: one line of JSON in, one line of JSON out.
//!
//! ```text
//! {"command":"status"}              {"ok":true,"status":{...}}
//! {"command":"promote","force":false}   {"ok":true}
//! {"command":"demote","force":false}    {"ok":false,"error":"..."}
//! {"command":"verify","repair":false,"limit":null}   {"ok":true,"status":{"id":1}}
//! {"command":"verify-poll","from":0}    {"ok":true,"status":{"id":1,"status":{...},"findings":[...]}}
//! {"command":"verify-cancel"}
//! {"command":"go-alone"} {"command":"discard","without_archive":false}
//! {"command":"checkpoint"} {"command":"stop"}
//! {"command":"limit","bytes_per_second":52428800}   null: no limit
//!
//! for the controller:
//! {"command":"watch"}     {"ok":true,"status":{...}} at once, when it changes, and every two seconds
//! {"command":"claim","yielded":false}   promote by right
//! {"command":"go-on","question":3}      go-alone, if that is still what is asked
//! {"command":"forsake","question":3}    fail what is held and take no change, if it still is
//! {"command":"yield","generation":"...","session":"..."}   {"ok":true,"status":{"yielded":true}}
//! {"command":"disconnect"} {"command":"compare-everything"}
//! ```
//!
//! The socket is root's alone. A caller that says nothing is let go after a moment.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use twinfold_protocol::ids::{Generation, SessionId};

use crate::daemon::Driver;
pub use crate::engine::{Hex, History, PartName, Standing};
use crate::engine::{LinkState, VerifyOptions};
use crate::state::RUN_DIRECTORY as DIRECTORY;
use crate::store::Layout;

/// Longest request, in bytes.
const MAX_REQUEST: u64 = 4096;

/// How long a caller may take to say what it wants.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long a command may take, seen from the caller.
const COMMAND: Duration = Duration::from_secs(60);

/// How long a watch waits when something has changed, so that what changes together is told
/// together: a small part of what a failover may take.
const WATCH_SETTLES: Duration = Duration::from_millis(5);

/// How often it looks how far a resync is, or a driver that begins.
const WATCH_LOOK: Duration = Duration::from_millis(20);

/// How often it tells the same again, so that the caller knows that the driver lives.
const WATCH_AGAIN: Duration = Duration::from_secs(2);

/// Callers served at once.
const MAX_CALLERS: usize = 16;

/// What can be asked of a running driver.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "kebab-case")]
pub enum Request {
    /// The state.
    Status,
    /// Become primary.
    Promote {
        /// Also with a copy that may lack acknowledged writes.
        #[serde(default)]
        force: bool,
    },
    /// Become secondary.
    Demote {
        /// Also while something is open for writing, or although a verify found that the peer's
        /// copy differs.
        #[serde(default)]
        force: bool,
    },
    /// Go on without the peer.
    GoAlone,
    /// Give up this copy: the peer's may overwrite it.
    Discard {
        /// Also without keeping what it has changed.
        #[serde(default)]
        without_archive: bool,
    },
    /// Flush both nodes now.
    Checkpoint,
    /// Begin to compare the copies.
    Verify {
        /// Move what differs to the secondary.
        #[serde(default)]
        repair: bool,
        /// Bytes to be read a second, at most.
        #[serde(default)]
        limit: Option<u64>,
    },
    /// How the verify stands, and what it found.
    VerifyPoll {
        /// Findings the caller has already.
        #[serde(default)]
        from: usize,
    },
    /// End the verify.
    VerifyCancel,
    /// Limit what a resync reads and moves.
    Limit {
        /// In bytes; none: no limit.
        bytes_per_second: Option<u64>,
    },
    /// End the driver.
    Stop,
    /// Tell the controller's [`Standing`] now and whenever they change.
    Watch,
    /// Become primary by right: the copy must be complete.
    Claim {
        /// It was complete until it gave way, and the peer did not go on.
        yielded: bool,
    },
    /// Go on without the peer, if this is still the question.
    GoOn {
        /// Its number.
        question: u64,
    },
    /// Answer what is held with an error and take no change any more, if this is still the
    /// question: the peer goes on, and this node is to be demoted.
    Forsake {
        /// Its number.
        question: u64,
    },
    /// Note that this copy is not up to date, if it is still of this generation and was not
    /// made equal again since this session.
    Yield {
        /// The generation.
        generation: Hex,
        /// The session in which the controller knows the copies to have been equal last.
        session: Option<Hex>,
    },
    /// Close the connection to the peer: it is known to be gone.
    Disconnect,
    /// This secondary's copy is not up to date, and everything in it is compared.
    CompareEverything,
}

/// The answer.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Answer {
    /// The command was carried out.
    pub ok: bool,
    /// Why not.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub error: Option<String>,
    /// The state, when it was asked for.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub status: Option<serde_json::Value>,
}

/// The socket's path for the folder at `layout.base`.
pub fn socket_path(layout: &Layout) -> PathBuf {
    let hash = blake3::hash(layout.base.as_os_str().as_encoded_bytes());
    Path::new(DIRECTORY).join(format!("fs-{}.sock", &hash.to_hex()[..16]))
}

/// The socket; it is removed when dropped.
#[derive(Debug)]
pub struct Socket(PathBuf);

impl Drop for Socket {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Serves the control socket on a thread of its own.
pub(crate) fn serve(layout: &Layout, driver: Arc<Driver>) -> Result<Socket> {
    let path = socket_path(layout);
    std::fs::create_dir_all(DIRECTORY).with_context(|| format!("cannot make {DIRECTORY}"))?;
    // The folder is locked by this process, so a socket that is there is a leftover.
    let _ = std::fs::remove_file(&path);
    let listener = UnixListener::bind(&path)
        .with_context(|| format!("cannot listen on {}", path.display()))?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
    std::thread::Builder::new()
        .name("control".into())
        .spawn(move || {
            let callers = Arc::new(AtomicUsize::new(0));
            for stream in listener.incoming().flatten() {
                if callers.fetch_add(1, Ordering::SeqCst) >= MAX_CALLERS {
                    callers.fetch_sub(1, Ordering::SeqCst);
                    continue;
                }
                let (driver, count) = (driver.clone(), callers.clone());
                let spawned = std::thread::Builder::new()
                    .name("control-call".into())
                    .spawn(move || {
                        if let Err(error) = answer(&driver, stream) {
                            tracing::debug!(%error, "a control call broke off");
                        }
                        count.fetch_sub(1, Ordering::SeqCst);
                    });
                if spawned.is_err() {
                    callers.fetch_sub(1, Ordering::SeqCst);
                }
            }
        })
        .context("cannot start the control socket's thread")?;
    Ok(Socket(path))
}

fn answer(driver: &Driver, mut stream: UnixStream) -> Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut line = String::new();
    BufReader::new((&stream).take(MAX_REQUEST)).read_line(&mut line)?;
    let answer = match serde_json::from_str(&line) {
        Ok(Request::Watch) => return watch(driver, stream),
        Ok(request) => carry_out(driver, request),
        Err(e) => Err(anyhow::Error::from(e).context("the request is not understood")),
    };
    let answer = match answer {
        Ok(status) => Answer {
            ok: true,
            error: None,
            status,
        },
        Err(e) => Answer {
            ok: false,
            error: Some(format!("{e:#}")),
            status: None,
        },
    };
    let mut line = serde_json::to_vec(&answer)?;
    line.push(b'\n');
    stream.write_all(&line)?;
    Ok(())
}

fn carry_out(driver: &Driver, request: Request) -> Result<Option<serde_json::Value>> {
    match request {
        Request::Status => return Ok(Some(serde_json::to_value(driver.status())?)),
        Request::Promote { force } => driver.promote(force)?,
        Request::Demote { force } => driver.demote(force)?,
        Request::GoAlone => driver.go_alone()?,
        Request::Discard { without_archive } => driver.give_up(without_archive)?,
        Request::Checkpoint => driver.engine().checkpoint(),
        Request::Verify { repair, limit } => {
            let options = VerifyOptions { repair, limit };
            let id = driver.engine().verify_start(options)?;
            return Ok(Some(serde_json::json!({ "id": id })));
        }
        Request::VerifyPoll { from } => {
            let page = driver.engine().verify_poll(from)?;
            return Ok(Some(serde_json::to_value(page)?));
        }
        Request::VerifyCancel => {
            if !driver.engine().verify_cancel() {
                bail!("no verify runs");
            }
        }
        Request::Limit { bytes_per_second } => driver.engine().limit_resync(bytes_per_second),
        Request::Stop => driver.stop(),
        Request::Watch => bail!("a watch is a connection of its own"),
        Request::Claim { yielded } => driver.promote_by_right(yielded)?,
        Request::GoOn { question } => {
            if !driver.engine().go_on(question) {
                bail!("question {question} is not open any more");
            }
        }
        Request::Forsake { question } => {
            if !driver.engine().forsake(question) {
                bail!("question {question} is not open any more");
            }
        }
        Request::Yield {
            generation,
            session,
        } => {
            let session = session.map(|s| SessionId(s.0));
            let yielded = driver
                .engine()
                .yield_copy(Generation(generation.0), session)
                .context("cannot note that this copy is not up to date")?;
            return Ok(Some(serde_json::json!({ "yielded": yielded })));
        }
        Request::CompareEverything => driver
            .engine()
            .compare_everything()
            .context("this copy cannot be compared whole")?,
        Request::Disconnect => driver
            .engine()
            .disconnect("the controller knows that the peer is gone"),
    }
    Ok(None)
}

/// Tells the facts until the caller is gone.
fn watch(driver: &Driver, mut stream: UnixStream) -> Result<()> {
    let changes = driver.engine().changes();
    let mut told: Option<Standing> = None;
    let (mut line, mut again) = (Vec::new(), Instant::now());
    loop {
        // Before the look: what changes meanwhile is looked at again.
        let seen = changes.count();
        let standing = driver.standing();
        let rests = rests(&standing);
        if told.as_ref() != Some(&standing) || Instant::now() >= again {
            if told.as_ref() != Some(&standing) {
                let answer = Answer {
                    ok: true,
                    error: None,
                    status: Some(serde_json::to_value(&standing)?),
                };
                line = serde_json::to_vec(&answer)?;
                line.push(b'\n');
                told = Some(standing);
            }
            stream.write_all(&line)?;
            again = Instant::now() + WATCH_AGAIN;
        }
        let until = match rests {
            true => again,
            false => again.min(Instant::now() + WATCH_LOOK),
        };
        if changes.wait(seen, until) {
            std::thread::sleep(WATCH_SETTLES);
        }
    }
}

/// Whether it is told at once when anything of this changes.
fn rests(standing: &Standing) -> bool {
    let moves = matches!(standing.link, LinkState::Syncing | LinkState::Comparing);
    standing.mounted && standing.role.is_some() && standing.percent.is_none() && !moves
}

/// Asks the driver that runs the folder at `layout.base`.
pub fn ask(layout: &Layout, request: Request) -> Result<Option<serde_json::Value>> {
    let path = socket_path(layout);
    let mut stream = UnixStream::connect(&path).with_context(|| {
        format!(
            "no driver runs for the folder in {}; start one with `primary` or `secondary`",
            layout.base.display()
        )
    })?;
    // Keeping what a copy has may mean copying all of it.
    let patience = match request {
        Request::Discard { .. } => None,
        _ => Some(COMMAND),
    };
    stream.set_read_timeout(patience)?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut line = serde_json::to_vec(&request)?;
    line.push(b'\n');
    stream.write_all(&line)?;
    let mut answer = String::new();
    BufReader::new(stream)
        .read_line(&mut answer)
        .context("the driver did not answer in time")?;
    let answer: Answer = serde_json::from_str(&answer).context("the driver's answer is broken")?;
    match answer.error {
        Some(error) if !answer.ok => bail!("{error}"),
        _ => Ok(answer.status),
    }
}

/// Waits until the driver has ended.
pub fn wait_until_gone(layout: &Layout) -> Result<()> {
    let until = std::time::Instant::now() + COMMAND;
    while std::time::Instant::now() < until {
        if crate::setup::lock(layout).is_ok() {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    bail!("the driver did not end in time")
}

/// Takes the signals that end a program, on a thread of its own: call before any
/// other thread starts.
pub fn signals() -> Result<std::sync::mpsc::Receiver<()>> {
    let (tx, rx) = std::sync::mpsc::channel();
    on_signal(move || tx.send(()).is_ok())?;
    Ok(rx)
}

/// The same; `tell` is called for each of them until it returns false.
pub(crate) fn on_signal(tell: impl Fn() -> bool + Send + 'static) -> Result<()> {
    // SAFETY: a zeroed signal set is made valid by sigemptyset before use; the
    // calls change this thread's mask, which threads started later inherit.
    let set = unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, libc::SIGTERM);
        libc::sigaddset(&raw mut set, libc::SIGINT);
        libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
        set
    };
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            loop {
                let mut signal = 0;
                // SAFETY: the set was made above and the signals in it are blocked.
                let rc = unsafe { libc::sigwait(&raw const set, &raw mut signal) };
                if rc != 0 || !tell() {
                    return;
                }
            }
        })
        .map(drop)
        .context("cannot start the signal thread")
}
