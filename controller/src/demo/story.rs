//! The whole story, with the controller: two machines are paired and a module configured, and from
//! then on nobody does anything but cut the power, switch it on again, and ask for a swap.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::content::BLOCK;
use super::lan::{self, Lan};
use super::machine::{self, MODULE, Machine};
use super::progress::Progress;
use super::record::Complaint;
use super::stage::Stage;
use super::table::{Outcome, grouped};
use super::writers::{self, Team, Writer};
use super::{TO_FAIL_OVER, TO_PAIR, check, compare, first_write, place, show};

/// How long the writers may make no progress at all.
const TO_PROGRESS: Duration = Duration::from_secs(60);

/// Shares of the work in percent: before the power is cut, alone, and together again; the rest
/// comes after the swap.
const BEFORE: u64 = 50;
const ALONE: u64 = 40;
const TOGETHER: u64 = 5;

/// Tells it, with so many operations.
pub(super) fn tell(
    ops: u64,
    seed: u64,
    stage: &Arc<Stage>,
    progress: &mut Progress,
) -> Result<Outcome> {
    let lan = Lan::new()?;
    let (mut a, mut b) = (Machine::new(stage, &lan, 0)?, Machine::new(stage, &lan, 1)?);
    progress.say(&format!(
        "two machines on one switch, in {} (seed {seed})",
        stage.directory().display()
    ));
    machine::pair(&a, &b)?;
    progress.say("node-b has joined node-a, by a token that serves once");
    let (files, bytes) = place::seed(&a.folder)?;
    machine::make_folders(&a, &b)?;
    a.start(&lan)?;
    b.start(&lan)?;
    machine::configure(&a)?;
    progress.say(&format!(
        "a module is configured: a folder with {} files of {} bytes, the address {}",
        grouped(files as u64),
        grouped(bytes),
        lan::of_application()
    ));
    a.run(&["prim", "-m", MODULE])?;
    b.run(&["second", "-m", MODULE])?;
    a.wait("PRIM", "Ready")?;
    b.wait("SECOND", "Ready")?;

    // Both nodes, until the power of the primary is cut in the middle of it.
    a.wait_for_work(true, TO_FAIL_OVER)?;
    lan.is_served_by(a.end)?;
    let team = writers::all(seed, &stage.directory().join("records"))?;
    writers::prepare(&team, &a.folder)?;
    progress.say("node-a is PRIM, node-b SECOND; the application works on node-a");
    let mut done = Done::new(ops);
    let team = a.work(team)?;
    done.watch(&team, ops * BEFORE / 100, &[&a, &b], progress)?;
    // A copy that is just being brought up could not take over.
    b.wait("SECOND", "Ready")?;
    team.shared.expect_death();
    let killed = Instant::now();
    a.cut(&lan)?;
    b.wait_for_work(true, TO_FAIL_OVER)?;
    let started = killed.elapsed();
    let probe = first_write(&b.folder, seed)?;
    let writable = killed.elapsed();
    a.bury()?;
    let mut team = done.end(team)?;
    progress.say(&format!(
        "the power of node-a was cut; node-b started the application {} ms later; looking for {} \
         operations",
        started.as_millis(),
        grouped(done.before)
    ));
    b.wait("ALONE", "Ready")?;
    lan.is_served_by(b.end)?;
    let mut lost = look(&team, &b, "after the failover")?;

    // Alone.
    progress.say(&format!(
        "the user finds {} at node-b; the application works there, alone",
        lan::of_application()
    ));
    team.iter_mut().for_each(Writer::count_from_here);
    let team = b.work(team)?;
    done.watch(&team, ops * (BEFORE + ALONE) / 100, &[&b], progress)?;
    let team = done.end(team)?;
    let others = other_changes(&b.folder)?;
    let changed = check::changed_bytes(&team, &b.folder)? + probe + others;

    // Together again, the other way round.
    progress.say(&format!(
        "node-a has power again; {} bytes were changed meanwhile",
        grouped(changed)
    ));
    let back = Instant::now();
    a.start(&lan)?;
    a.wait("SECOND", "Ready")?;
    b.wait("PRIM", "Ready")?;
    let resync = back.elapsed();
    let moved = a.state().context("node-a's driver does not answer")?;
    let moved = moved.received_bytes;
    progress.say(&format!(
        "node-b is PRIM, node-a SECOND, {} bytes moved; the application works on",
        grouped(moved)
    ));
    let team = Team::start(team, &b.folder)?;
    done.watch(
        &team,
        ops * (BEFORE + ALONE + TOGETHER) / 100,
        &[&a, &b],
        progress,
    )?;

    // The roles are exchanged under load.
    progress.say("swap");
    b.run(&["swap", "-m", MODULE])?;
    b.wait_for_work(false, TO_FAIL_OVER)?;
    let team = done.end(team)?;
    let stopped = Instant::now();
    b.rests()?;
    a.wait_for_work(true, TO_FAIL_OVER)?;
    let team = a.work(team)?;
    while team.shared.acknowledged() == 0 {
        team.check()?;
        if stopped.elapsed() > TO_FAIL_OVER {
            bail!("nothing is written after the swap{}", a.last_words());
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    let swap = stopped.elapsed();
    a.wait("PRIM", "Ready")?;
    b.wait("SECOND", "Ready")?;
    lan.is_served_by(a.end)?;
    progress.say("node-a is PRIM again, and the user finds the address there");
    done.watch(&team, ops, &[&a, &b], progress)?;
    let team = done.end(team)?;
    a.rests()?;
    wait_until_at_rest(&a, &b)?;

    progress.say("looking for every operation again, and comparing both copies");
    lost += look(&team, &a, "at the end, on node-a")?;
    lost += look(&team, &b, "at the end, on node-b")?;
    let mounts = compare::compare(&a.folder, &b.folder, true)?;
    // In order, the one that follows first, so that what is compared next is what the disks have.
    for machine in [&b, &a] {
        machine.run(&["stop", "-m", MODULE])?;
        machine.wait("STOP", "NotReady")?;
    }
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
        started_ms: started.as_millis() as u64,
        writable_ms: writable.as_millis() as u64,
        bytes_changed: changed,
        bytes_moved: moved,
        resync_ms: resync.as_millis() as u64,
        swap_ms: swap.as_millis() as u64,
        compared_objects: mounts.objects,
        identical: mounts.differences.is_empty() && stores.differences.is_empty(),
        seconds: progress.elapsed().as_secs_f64(),
    })
}

/// Waits until everything is on both nodes.
fn wait_until_at_rest(a: &Machine, b: &Machine) -> Result<()> {
    let until = Instant::now() + TO_PAIR;
    let rests = |m: &Machine| m.state().is_some_and(|s| s.is_at_rest());
    while !(rests(a) && rests(b)) {
        if Instant::now() > until {
            let (first, second) = (a.last_words(), b.last_words());
            bail!("the copies are not equal after {TO_PAIR:?}{first}{second}");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
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
        running: &[&Machine],
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
fn look(team: &[Writer], node: &Machine, when: &str) -> Result<u64> {
    let complaints = check::check(team, &node.folder)?;
    let lines: Vec<_> = complaints
        .iter()
        .map(|c: &Complaint| c.what.clone())
        .collect();
    show(&format!("acknowledged, but not there {when}"), &lines);
    Ok(complaints.iter().map(|c| c.count).sum())
}
