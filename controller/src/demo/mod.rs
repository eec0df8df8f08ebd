//! `twinfold demo`: two nodes on this machine, paired and configured, an application at work; the
//! power of the primary is cut, the other one takes over by itself, everything acknowledged is
//! looked for, the old primary comes back by itself, the roles are swapped under load, and both
//! copies are compared ([`story`]).
//!
//! ```text
//! node-a  PRIM ─── work ───✗ power             SECOND ◀─ resync ─┐        ┌ PRIM ─ work ─┐
//! node-b  SECOND ◀═════════ ALONE ─ check ─ work ────────────────┘ PRIM ─ swap ◀═════════╧▶ compare
//! ```

mod check;
mod compare;
mod content;
mod lan;
mod machine;
mod nodes;
mod place;
mod progress;
mod record;
mod stage;
mod story;
mod table;
pub(crate) mod vm;
mod writers;

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use content::{BLOCK, Stamp};
use nodes::Node;
use progress::Progress;
use stage::{Curtain, Signals, Stage};

/// How long the nodes may take to become equal.
const TO_PAIR: Duration = Duration::from_secs(300);

/// How long the survivor may take until it is writable.
const TO_FAIL_OVER: Duration = Duration::from_secs(60);

/// Complaints and differences shown.
const SHOWN: usize = 20;

/// Options of the demonstration.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Operations that are acknowledged at least.
    #[arg(long, default_value_t = 100_000, value_name = "NUMBER", value_parser = clap::value_parser!(u64).range(1000..))]
    ops: u64,
    /// Take place in a fresh directory in this one (on ext4, xfs or btrfs), instead of /var/tmp.
    #[arg(long, value_name = "DIRECTORY")]
    dir: Option<PathBuf>,
    /// Leave the directory: both stores, the logs, the writers' records.
    #[arg(long)]
    keep: bool,
    /// Print the result as one JSON object.
    #[arg(long)]
    json: bool,
    /// Fail over a real virtual machine instead (needs qemu-system-x86 and a kernel).
    #[arg(long)]
    vm: bool,
    /// The virtual machine's kernel; its modules are looked for beside it. The newest of
    /// /boot if not given.
    #[arg(long, value_name = "VMLINUZ", requires = "vm")]
    kernel: Option<PathBuf>,
    /// Write the data of this run again (the timing still differs).
    #[arg(long, value_name = "NUMBER")]
    seed: Option<u64>,
}

/// Runs the demonstration. Fails when it could not be carried out; the exit code
/// also says whether it showed what it should.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let signals = Signals::hold();
    // Without mounts of its own a SIGKILL would leave dead mounts; that is all.
    let _ = stage::own_mounts();
    let place = place::Place::new(args.dir.as_deref())?;
    let stage = Stage::new(signals, &place.directory, args.keep)?;
    let curtain = Curtain(stage);
    let mut progress = Progress::new();
    let seed = args
        .seed
        .unwrap_or_else(|| u64::from(rand::random::<u32>()));
    let result = match args.vm {
        true => vm::story(args.kernel.as_deref(), &curtain.0, seed, &mut progress)
            .and_then(|outcome| Ok((told(args, &outcome)?, outcome.is_good()))),
        false => story::tell(args.ops, seed, &curtain.0, &mut progress)
            .and_then(|outcome| Ok((told(args, &outcome)?, outcome.is_good()))),
    };
    drop(progress);
    curtain.0.wait_if_interrupted();
    if args.keep {
        place::mark_kept(&place.directory).context("cannot unlock the directory")?;
        eprintln!("everything is kept in {}", place.directory.display());
    }
    let (told, good) = result?;
    drop(curtain);
    print!("{told}");
    match good {
        true => Ok(ExitCode::SUCCESS),
        false => Ok(ExitCode::FAILURE),
    }
}

/// An outcome as it is printed.
fn told<T: serde::Serialize + std::fmt::Display>(args: &Args, outcome: &T) -> Result<String> {
    Ok(match args.json {
        true => serde_json::to_string(outcome)? + "\n",
        false => format!("\n{outcome}"),
    })
}

/// Writes to a folder that has become writable. Returns the bytes written.
fn first_write(folder: &Path, seed: u64) -> Result<u64> {
    let mut data = [0; BLOCK];
    let stamp = Stamp {
        seed,
        writer: 0,
        seq: 0,
        place: 0,
    };
    stamp.fill(&mut data);
    File::create(folder.join("first-write-after-the-failover"))?.write_all(&data)?;
    Ok(data.len() as u64)
}

/// Promotes the survivor and writes to its folder, until both have worked. Returns
/// the bytes written.
fn fail_over(node: &Node, seed: u64) -> Result<u64> {
    let until = Instant::now() + TO_FAIL_OVER;
    let mut promoted = false;
    loop {
        let tried = match promoted {
            true => Ok(()),
            false => node.promote(),
        };
        promoted = tried.is_ok();
        let tried = tried.and_then(|()| first_write(&node.folder, seed));
        match tried {
            Ok(bytes) => return Ok(bytes),
            Err(e) if Instant::now() > until => {
                let words = node.last_words();
                return Err(e.context(format!(
                    "{} is not writable after {TO_FAIL_OVER:?}{words}",
                    node.name
                )));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(2)),
        }
        node.check()?;
    }
}

fn show(what: &str, lines: &[String]) {
    if lines.is_empty() {
        return;
    }
    eprintln!("{what}:");
    lines.iter().take(SHOWN).for_each(|l| eprintln!("  {l}"));
    if lines.len() > SHOWN {
        eprintln!("  and {} more", lines.len() - SHOWN);
    }
}
