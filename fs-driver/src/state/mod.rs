//! What a node knows about its copy beyond the data: the module's settings, the
//! copy's history, and the intents. All of it under `state/` beside the data.

mod copy;
mod intents;
mod settings;

pub use copy::CopyFile;
pub(crate) use copy::boot_id;
pub use intents::{IntentLog, Recovered};
pub use settings::{Ack, OnPeerLoss, Settings};
pub use twinfold_protocol::lifecycle::Record;

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;

/// Replaces a file in one step: after a crash it holds the old or the new bytes,
/// never a mixture (write beside it, sync, rename over it, sync the directory).
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let beside = path.with_extension("new");
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .open(&beside)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&beside, path)?;
    sync_directory(path.parent().unwrap_or(Path::new(".")))
}

/// Brings a directory's names to stable storage.
pub(crate) fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}
