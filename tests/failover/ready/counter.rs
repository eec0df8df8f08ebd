//! What runs in the guest, as its first and only process: it counts on its disk, a block a
//! number, and says each when it is synced. The power button ends it.
//!
//! ```text
//! counter: found 812
//! counter: written 813
//! counter: off
//! ```

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::mount::MountFlags;
use rustix::system::RebootCommand;
use twinfold_controller::guest::load_modules;

const BLOCK: usize = 4096;

/// How long a device may take to appear.
const LOOKS: u32 = 600;
const LOOK: Duration = Duration::from_millis(100);

/// Between two numbers: the test's machine has other things to do, too.
const PAUSE: Duration = Duration::from_millis(5);

/// From `linux/input.h`: bytes of an event, and where in it type, code and value are.
const EVENT: usize = 24;
const KEY: u16 = 1;
const POWER: u16 = 116;

static PRESSED: AtomicBool = AtomicBool::new(false);

fn main() -> Result<()> {
    if std::process::id() != 1 {
        bail!("this runs as the first process of a guest");
    }
    if let Err(error) = work() {
        println!("counter: error {error:#}");
    }
    println!("counter: off");
    // SAFETY: a system call on this program's own output, which has to leave before the power.
    unsafe { libc::tcdrain(1) };
    // The first process must not end.
    rustix::system::reboot(RebootCommand::PowerOff).context("cannot power off")
}

fn work() -> Result<()> {
    rustix::mount::mount("devtmpfs", "/dev", "devtmpfs", MountFlags::empty(), None)
        .context("cannot mount /dev")?;
    load_modules()?;
    std::thread::spawn(buttons);
    let disk = disk()?;
    let mut number = 0;
    let mut data = [0; BLOCK];
    while disk.read_exact_at(&mut data, number * BLOCK as u64).is_ok() && data == block(number + 1)
    {
        number += 1;
    }
    println!("counter: found {number}");
    while !PRESSED.load(Ordering::Relaxed) {
        disk.write_all_at(&block(number + 1), number * BLOCK as u64)
            .context("cannot write")?;
        disk.sync_data().context("cannot sync")?;
        number += 1;
        println!("counter: written {number}");
        std::thread::sleep(PAUSE);
    }
    Ok(())
}

/// The block of a number: it, from one end to the other.
fn block(number: u64) -> [u8; BLOCK] {
    let mut data = [0; BLOCK];
    for part in data.chunks_mut(8) {
        part.copy_from_slice(&number.to_le_bytes());
    }
    data
}

fn disk() -> Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true);
    for _ in 0..LOOKS {
        if let Ok(disk) = options.open("/dev/vda") {
            return Ok(disk);
        }
        std::thread::sleep(LOOK);
    }
    options.open("/dev/vda").context("no disk at /dev/vda")
}

/// Listens to whatever has buttons.
fn buttons() {
    let mut known: Vec<PathBuf> = Vec::new();
    loop {
        for entry in std::fs::read_dir("/dev/input")
            .into_iter()
            .flatten()
            .flatten()
        {
            let path = entry.path();
            let is_one = entry.file_name().to_string_lossy().starts_with("event");
            if is_one && !known.contains(&path) {
                known.push(path.clone());
                std::thread::spawn(|| listen(path));
            }
        }
        std::thread::sleep(LOOK);
    }
}

fn listen(path: PathBuf) {
    let Ok(mut device) = File::open(path) else {
        return;
    };
    let mut event = [0; EVENT];
    while device.read_exact(&mut event).is_ok() {
        let at = |n: usize| u16::from_le_bytes([event[n], event[n + 1]]);
        if (at(16), at(18)) == (KEY, POWER) {
            PRESSED.store(true, Ordering::Relaxed);
        }
    }
}
