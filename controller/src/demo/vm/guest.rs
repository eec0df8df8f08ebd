//! What runs in the guest, as its first and only process: it says which numbered
//! blocks it finds on its disk, and goes on writing them, each synced before its
//! number is printed.
//!
//! ```text
//! twinfold guest: found 812
//! twinfold guest: written 813
//! twinfold guest: error ...
//! ```

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use crate::guest::load_modules;
use anyhow::{Context, Result, bail};
use rustix::mount::MountFlags;
use rustix::system::RebootCommand;

use super::{Line, WRITER};
use crate::demo::content::{BLOCK, Bad, Stamp};

/// The guest's disk.
const DISK: &str = "/dev/vda";

/// How long the disk may take to appear.
const TO_APPEAR: Duration = Duration::from_secs(60);

/// The block with this number; number 0 is made by the host and names the run.
pub(super) fn block(seed: u64, number: u64) -> [u8; BLOCK] {
    let mut data = [0; BLOCK];
    Stamp {
        seed,
        writer: WRITER,
        seq: number,
        place: number,
    }
    .fill(&mut data);
    data
}

/// Never returns in a guest; elsewhere it touches nothing.
pub(crate) fn run(seed: u64) -> Result<()> {
    if std::process::id() != 1 {
        bail!("this runs as the first process of the guest that `twinfold demo --vm` boots");
    }
    if let Err(e) = work(seed) {
        say(&Line::Error(format!("{e:#}")));
    }
    // The first process must not end.
    rustix::system::reboot(RebootCommand::PowerOff).context("cannot power off")
}

fn say(line: &Line) {
    // A console nobody reads is no reason to stop.
    let _ = writeln!(std::io::stdout(), "{line}");
}

fn work(seed: u64) -> Result<()> {
    rustix::mount::mount("devtmpfs", "/dev", "devtmpfs", MountFlags::empty(), None)
        .context("cannot mount /dev")?;
    load_modules()?;
    let disk = open_disk()?;
    let mut data = [0; BLOCK];
    let size = rustix::fs::seek(&disk, rustix::fs::SeekFrom::End(0))?;
    // Block 0 says that this is the demonstration's own disk.
    disk.read_exact_at(&mut data, 0)?;
    if data != block(seed, 0) {
        bail!("the disk is not the one of this run");
    }
    let blocks = size / BLOCK as u64;
    let mut number = 0;
    while number + 1 < blocks {
        disk.read_exact_at(&mut data, (number + 1) * BLOCK as u64)?;
        if data != block(seed, number + 1) {
            break;
        }
        number += 1;
    }
    // Whole or not there: anything else was torn.
    if let Err(bad @ (Bad::Torn | Bad::NoStamp)) = Stamp::of(&data)
        && number + 1 < blocks
    {
        say(&Line::Error(format!("block {}: {bad:?}", number + 1)));
    }
    say(&Line::Found(number));
    while number + 1 < blocks {
        number += 1;
        disk.write_all_at(&block(seed, number), number * BLOCK as u64)
            .with_context(|| format!("cannot write block {number}"))?;
        disk.sync_data()
            .with_context(|| format!("cannot sync block {number}"))?;
        say(&Line::Written(number));
    }
    Ok(())
}

fn open_disk() -> Result<File> {
    let until = Instant::now() + TO_APPEAR;
    loop {
        match OpenOptions::new().read(true).write(true).open(DISK) {
            Ok(disk) => return Ok(disk),
            Err(e) if Instant::now() > until => {
                return Err(e).with_context(|| {
                    format!("no disk at {DISK}: the kernel lacks the virtio_blk driver")
                });
            }
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}
