//! A load while a resync runs: the secondary has been away, a file has changed, and the
//! load is measured from the moment the resync is seen until it is over.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::load::{self, Amount, Load, Measured};
use crate::process;
use crate::systems::pair::Pair;
use crate::systems::{Place, Running};

/// How often the primary is asked how far it is.
const LOOK: Duration = Duration::from_millis(2);

/// How long a resync may take to begin, and to end.
const PATIENCE: Duration = Duration::from_secs(300);

/// Does `load` while `mib` MiB are moved.
pub(super) fn measure(
    load: Load,
    amount: Amount,
    running: &mut Running,
    mib: u64,
    round: usize,
) -> Result<(Measured, (f64, f64))> {
    let Place::Folder(folder) = running.place.clone() else {
        bail!("a resync needs a folder");
    };
    let pair = running.pair()?;
    pair.stop_secondary()?;
    change(&folder.join("resync.dat"), mib, round as u8 + 1)?;
    pair.start_secondary()?;
    wait(pair, moves)?;
    let me = std::process::id();
    let before = (running.cpu()?, process::cpu(me));
    let pair = running.pair()?;
    let stop = AtomicBool::new(false);
    let measured = std::thread::scope(|scope| {
        let worker = scope.spawn(|| load::measure(load, &folder, amount, &stop));
        let over = loop {
            match worker.is_finished() || pair.is_paired()? {
                true => break Ok(()),
                false => std::thread::sleep(LOOK),
            }
        };
        stop.store(true, Ordering::Relaxed);
        let measured = match worker.join() {
            Ok(measured) => measured,
            Err(_) => bail!("the load broke off"),
        };
        over.and(measured)
    })?;
    let after = (running.cpu()?, process::cpu(me));
    let pair = running.pair()?;
    wait(pair, |status| status["link"] == "paired")?;
    if measured.ops == 0 {
        bail!("the resync was over before it was seen: use more data (--resync-mib)");
    }
    Ok((measured, (after.0 - before.0, after.1 - before.1)))
}

/// Fills a file anew.
fn change(path: &Path, mib: u64, fill: u8) -> Result<()> {
    let file = File::create(path)?;
    let piece = vec![fill; 1 << 20];
    for n in 0..mib {
        file.write_all_at(&piece, n << 20)?;
    }
    Ok(())
}

/// Whether a resync runs, or is over already. Told is also of the last one, as it ended.
fn moves(status: &serde_json::Value) -> bool {
    let running = ["comparing", "moving", "flushing"];
    let phase = status["resync"]["phase"].as_str();
    status["link"] == "paired" || phase.is_some_and(|p| running.contains(&p))
}

fn wait(pair: &Pair, until: impl Fn(&serde_json::Value) -> bool) -> Result<()> {
    let end = Instant::now() + PATIENCE;
    loop {
        let status = pair.status()?;
        if until(&status) {
            return Ok(());
        }
        if Instant::now() > end {
            bail!("the resync does not get on: {status}");
        }
        std::thread::sleep(LOOK);
    }
}
