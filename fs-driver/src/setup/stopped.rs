//! A folder whose driver does not run, for the controller: what its copy is worth, and
//! giving way in its place.

use anyhow::{Context, Result, bail};
use twinfold_protocol::ids::Generation;

use crate::engine::{History, is_shared};
use crate::state::{Condemned, CopyFile, Record};
use crate::store::Layout;

/// What the copy of a folder without a running driver is worth, and whether the peer may hold
/// an up-to-date one of the same generation.
pub fn history(layout: &Layout) -> Result<(History, bool)> {
    let record = CopyFile::open(&layout.state())?.get();
    let mut history = History::from(&record.copy);
    // The disk may not have taken that it failed.
    if Condemned::of(&layout.base).is_set(record.copy.current)? {
        history.up_to_date = false;
    }
    Ok((history, is_shared(&record)))
}

/// Notes durably that the copy is not up to date, if it is still of this generation. Returns
/// whether it did. Fails while a driver runs.
pub fn yield_copy(layout: &Layout, generation: Generation) -> Result<bool> {
    let _lock = super::lock(layout)?;
    let file = CopyFile::open(&layout.state())?;
    let copy = file.get().copy;
    if copy.current != generation || !(copy.up_to_date || copy.cut) {
        return Ok(false);
    }
    file.update(Record::give_way)
        .context("cannot write the copy's history")?;
    Ok(true)
}

/// Waits for nothing: fails while a driver runs.
pub fn ensure_stopped(layout: &Layout) -> Result<()> {
    if !layout.base.exists() {
        bail!(
            "{} is not there: `init` makes a replicated folder",
            layout.base.display()
        );
    }
    super::lock(layout).map(drop)
}
