//! What a node knows about its copy beyond the data: the module's settings, the
//! copy's history, the intents, and the saved marks. All of it under `state/` beside the
//! data; `fs-driver/STATE.md` has every file byte by byte.

mod condemned;
mod copy;
mod intents;
mod marks;
mod open;
mod segment;
mod settings;

pub(crate) use condemned::Condemned;
pub use copy::CopyFile;
pub(crate) use copy::boot_id;
pub use intents::IntentLog;
pub use marks::{MarksFile, Saved, ToSave};
pub(crate) use open::open;
pub use segment::Recovered;
pub use settings::{Ack, OnPeerLoss, Settings, parse_limit};
pub use twinfold_protocol::lifecycle::Record;

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Where sockets and notes lie that need not outlast a boot.
pub(crate) const RUN_DIRECTORY: &str = "/run/twinfold";

/// How files of our own are opened: root's alone when they are made, whatever the umask
/// of the thread is.
pub(crate) fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.mode(0o600);
    options
}

/// Makes a directory of our own, root's alone, unless it is there.
pub(crate) fn private_directory(path: &Path) -> io::Result<()> {
    let made = std::fs::DirBuilder::new().mode(0o700).create(path);
    match made {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other,
    }
}

/// Replaces a file in one step: after a crash it holds the old or the new bytes,
/// never a mixture (write beside it, sync, rename over it, sync the directory).
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let beside = beside(path);
    // Opened before anything counts: whether it can be does not depend on the disk.
    let directory = File::open(path.parent().unwrap_or(Path::new(".")))?;
    let mut file = private()
        .write(true)
        .create(true)
        .truncate(true)
        .open(&beside)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&beside, path)?;
    directory.sync_all()
}

fn beside(path: &Path) -> PathBuf {
    path.with_extension("new")
}

/// Whether a write failed only for want of room: nothing is wrong with what was there.
pub(crate) fn no_room(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}

/// Whether something failed for want of room, of descriptors or of memory, before anything
/// was changed that counts: it is done without for now, and nothing is wrong with the disk.
/// What an application holds open must not fence the node.
pub(crate) fn not_now(error: &io::Error) -> bool {
    use rustix::io::Errno;
    no_room(error)
        || matches!(
            Errno::from_io_error(error),
            Some(Errno::MFILE | Errno::NFILE | Errno::NOMEM)
        )
}

/// Brings a directory's names to stable storage.
pub(crate) fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// The version that `STATE.md` gives for the file with this heading.
#[cfg(test)]
pub(crate) fn documented_version(heading: &str) -> u16 {
    let text = include_str!("../../STATE.md");
    let mut sections = text.split("\n## ");
    let section = sections.find(|s| s.lines().next() == Some(heading));
    let mut lines = section.expect("a section").lines();
    let version = lines.find_map(|l| l.strip_prefix("| 8 | 2 | version, "));
    let number = version.expect("a version").trim_end_matches(" |");
    number.parse().expect("a number")
}
