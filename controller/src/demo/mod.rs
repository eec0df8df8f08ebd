//! `twinfold demo`: two nodes on this machine, an application at work, the primary
//! killed, the other promoted, everything acknowledged looked for, the old primary
//! brought back, and both copies compared.
//!
//! ```text
//! node-a  primary ──────── work ────────✗ SIGKILL        secondary ◀─ resync ─┐  work  ┐
//! node-b  secondary ◀══════════════════ ═ promote ─ check ─ work, alone ──────┘ ══════▶ compare
//! ```

mod check;
mod compare;
mod content;
mod nodes;
mod place;
mod progress;
mod record;
mod stage;
mod table;
pub(crate) mod vm;
mod writers;

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use content::{BLOCK, Stamp};
use nodes::Node;
use progress::Progress;
use record::Complaint;
use stage::{Curtain, Signals, Stage};
use table::{Outcome, grouped};
use writers::{Team, Writer};

/// How long the nodes may take to become equal.
const TO_PAIR: Duration = Duration::from_secs(300);

/// How long the survivor may take until it is writable.
const TO_FAIL_OVER: Duration = Duration::from_secs(60);

/// How long the writers may make no progress at all.
const TO_PROGRESS: Duration = Duration::from_secs(60);

/// Complaints and differences shown.
const SHOWN: usize = 20;

/// Shares of the work in percent: before the kill, and alone; the rest comes after.
const BEFORE: u64 = 50;
const ALONE: u64 = 40;

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
        false => story(args, seed, &curtain.0, &mut progress)
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

fn story(args: &Args, seed: u64, stage: &Arc<Stage>, progress: &mut Progress) -> Result<Outcome> {
    progress.say(&format!(
        "two nodes in {} (seed {seed})",
        stage.directory().display()
    ));
    let mut copied = (0, 0);
    let (mut a, mut b) = nodes::pair(stage, |folder| {
        copied = place::seed(folder)?;
        Ok(())
    })?;
    a.start("primary")?;
    b.start("secondary")?;
    progress.say(&format!(
        "node-a is primary, node-b gets {} files of {} bytes from it",
        grouped(copied.0 as u64),
        grouped(copied.1)
    ));
    nodes::wait_until_paired(&a, &b, TO_PAIR, |s| {
        progress.tick(|| format!("{} bytes received", grouped(s.received_bytes)));
    })?;

    // Both nodes, until the primary is killed in the middle of it.
    let team = writers::all(seed, &stage.directory().join("records"))?;
    writers::prepare(&team, &a.folder)?;
    progress.say("paired; the application works on node-a");
    let mut done = Done::new(args.ops);
    let team = Team::start(team, &a.folder)?;
    done.watch(&team, args.ops * BEFORE / 100, &[&a, &b], progress)?;
    // A copy that is just being brought up could not take over.
    nodes::wait_until(&b, TO_PAIR, |s| s.link == "paired" && s.up_to_date)?;
    team.shared.expect_death();
    let killed = Instant::now();
    a.kill()?;
    let probe = fail_over(&b, seed)?;
    let writable = killed.elapsed();
    a.bury()?;
    let mut team = done.end(team)?;
    progress.say(&format!(
        "node-a is killed, node-b writable after {} ms; looking for {} operations",
        writable.as_millis(),
        grouped(done.before)
    ));
    let mut lost = look(&team, &b, "after the failover")?;

    // Alone.
    progress.say("the application works on node-b, alone");
    team.iter_mut().for_each(Writer::count_from_here);
    let team = Team::start(team, &b.folder)?;
    done.watch(&team, args.ops * (BEFORE + ALONE) / 100, &[&b], progress)?;
    let team = done.end(team)?;
    let others = other_changes(&b.folder)?;
    let changed = check::changed_bytes(&team, &b.folder)? + probe + others;

    // Together again, the other way round.
    progress.say(&format!(
        "node-a comes back; {} bytes were changed meanwhile",
        grouped(changed)
    ));
    let back = Instant::now();
    a.start("secondary")?;
    nodes::wait_until_paired(&b, &a, TO_PAIR, |s| {
        progress.tick(|| format!("{} bytes received", grouped(s.received_bytes)));
    })?;
    let resync = back.elapsed();
    let moved = a.state()?.context("node-a does not answer")?.received_bytes;
    progress.say(&format!(
        "paired again, {} bytes moved; the application works on node-b",
        grouped(moved)
    ));
    let team = Team::start(team, &b.folder)?;
    done.watch(&team, args.ops, &[&a, &b], progress)?;
    let team = done.end(team)?;
    nodes::wait_until_paired(&b, &a, TO_PAIR, |_| {})?;

    progress.say("looking for every operation again, and comparing both copies");
    lost += look(&team, &b, "at the end, on node-b")?;
    lost += look(&team, &a, "at the end, on node-a")?;
    let mounts = compare::compare(&a.folder, &b.folder, true)?;
    // In order, so that what is compared next is what the disks have.
    b.stop()?;
    a.stop()?;
    let stores = compare::compare(&a.data(), &b.data(), false)?;
    for (what, found) in [("mounts", &mounts), ("stores", &stores)] {
        show(&format!("the {what} differ"), &found.differences);
    }
    progress.say(&format!(
        "{} objects with {} bytes compared",
        grouped(mounts.objects),
        grouped(mounts.bytes)
    ));
    Ok(Outcome {
        acknowledged: done.before,
        lost,
        writable_ms: writable.as_millis() as u64,
        bytes_changed: changed,
        bytes_moved: moved,
        resync_ms: resync.as_millis() as u64,
        compared_objects: mounts.objects,
        identical: mounts.differences.is_empty() && stores.differences.is_empty(),
        seconds: progress.elapsed().as_secs_f64(),
    })
}

/// What all teams so far have done.
struct Done {
    all: u64,
    before: u64,
}

impl Done {
    fn new(all: u64) -> Done {
        Done { all, before: 0 }
    }

    /// Ends a team.
    fn end(&mut self, team: Team) -> Result<Vec<Writer>> {
        let (team, count) = team.end()?;
        self.before += count;
        Ok(team)
    }

    /// Waits until so many operations are acknowledged in all.
    fn watch(
        &self,
        team: &Team,
        wanted: u64,
        running: &[&Node],
        progress: &mut Progress,
    ) -> Result<()> {
        let began = Instant::now();
        let mut last = (0, began);
        loop {
            let here = team.shared.acknowledged();
            if self.before + here >= wanted {
                return Ok(());
            }
            team.check()?;
            running.iter().try_for_each(|node| node.check())?;
            if here != last.0 {
                last = (here, Instant::now());
            } else if last.1.elapsed() > TO_PROGRESS {
                let words: String = running.iter().map(|node| node.last_words()).collect();
                bail!("the writers made no progress for {TO_PROGRESS:?}{words}");
            }
            progress.tick(|| {
                format!(
                    "{} of {} operations, {} a second",
                    grouped(self.before + here),
                    grouped(self.all),
                    grouped((here as f64 / began.elapsed().as_secs_f64()) as u64)
                )
            });
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Promotes the survivor and writes to its folder, until both have worked. Returns
/// the bytes written.
fn fail_over(node: &Node, seed: u64) -> Result<u64> {
    let until = Instant::now() + TO_FAIL_OVER;
    let probe = node.folder.join("first-write-after-the-failover");
    let mut promoted = false;
    loop {
        let tried = match promoted {
            true => Ok(()),
            false => node.promote(),
        };
        promoted = tried.is_ok();
        let tried = tried.and_then(|()| {
            let mut data = [0; BLOCK];
            let stamp = Stamp {
                seed,
                writer: 0,
                seq: 0,
                place: 0,
            };
            stamp.fill(&mut data);
            File::create(&probe)?.write_all(&data)?;
            Ok(data.len() as u64)
        });
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

/// One change of every other kind, so that there is more to compare than data.
/// Returns the bytes of data written.
fn other_changes(folder: &Path) -> Result<u64> {
    let at = folder.join("other changes");
    let make = || -> std::io::Result<u64> {
        std::fs::create_dir(&at)?;
        std::fs::write(at.join("file"), [7; 100])?;
        std::fs::hard_link(at.join("file"), at.join("second name"))?;
        std::os::unix::fs::symlink("../work", at.join("link"))?;
        std::fs::set_permissions(at.join("file"), PermissionsExt::from_mode(0o4751))?;
        std::os::unix::fs::chown(at.join("file"), Some(1234), Some(5678))?;
        rustix::fs::setxattr(
            at.join("file"),
            "user.demo",
            b"value",
            rustix::fs::XattrFlags::empty(),
        )?;
        let mut sparse = File::create(at.join("sparse"))?;
        sparse.write_all(&[9; BLOCK])?;
        sparse.set_len(100 << 20)?;
        // Renaming a file that is on both nodes moves no data.
        std::fs::rename(folder.join("usr-bin"), at.join("programs"))?;
        std::fs::set_permissions(at.join("programs"), PermissionsExt::from_mode(0o711))?;
        Ok(100 + BLOCK as u64)
    };
    make().with_context(|| format!("cannot make changes in {}", at.display()))
}

/// Checks the folder on one node; says what is wrong, and returns how much.
fn look(team: &[Writer], node: &Node, when: &str) -> Result<u64> {
    let complaints = check::check(team, &node.folder)?;
    let lines: Vec<_> = complaints
        .iter()
        .map(|c: &Complaint| c.what.clone())
        .collect();
    show(&format!("acknowledged, but not there {when}"), &lines);
    Ok(complaints.iter().map(|c| c.count).sum())
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
