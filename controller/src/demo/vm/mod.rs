//! `twinfold demo --vm`: a real virtual machine, with its disk in the folder, is
//! failed over.
//!
//! The guest writes numbered blocks, syncs each, and prints its number on the
//! serial console. Driver and virtual machine are killed together, as in a power
//! cut; the virtual machine starts again on the other node, from the disk there,
//! and says which blocks it finds. Every number that was ever printed must be there.

pub(crate) mod guest;

use std::fmt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::Serialize;

use super::compare;
use super::content::BLOCK;
use super::nodes::{self, Node};
use super::progress::Progress;
use super::stage::Stage;
use super::table::{self, grouped};
use crate::guest::{self as machine, Archive, Kernel};

/// The writer's number in the stamps of the guest's blocks.
const WRITER: u64 = 1000;

/// Size of the guest's disk.
const DISK_BYTES: u64 = 64 << 20;

/// Blocks the guest writes before the kill, and after it.
const BEFORE: u64 = 400;
const AFTER: u64 = 200;

/// The guest's memory, in MiB.
const MEMORY: u32 = 256;

/// How long the guest may take to boot; it is emulated, not accelerated.
const TO_BOOT: Duration = Duration::from_secs(300);

/// How long the guest may take for its blocks.
const TO_WRITE: Duration = Duration::from_secs(300);

/// What the guest says.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Line {
    /// All blocks up to this number are there.
    Found(u64),
    /// This block is written and synced.
    Written(u64),
    /// Something is wrong.
    Error(String),
}

const PREFIX: &str = "twinfold guest: ";

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Line::Found(n) => write!(f, "{PREFIX}found {n}"),
            Line::Written(n) => write!(f, "{PREFIX}written {n}"),
            Line::Error(e) => write!(f, "{PREFIX}error {e}"),
        }
    }
}

impl Line {
    fn parse(line: &str) -> Option<Line> {
        // The kernel may have left something before it on the line.
        let said = &line[line.find(PREFIX)? + PREFIX.len()..];
        let (what, rest) = said.trim_end().split_once(' ')?;
        Some(match what {
            "found" => Line::Found(rest.parse().ok()?),
            "written" => Line::Written(rest.parse().ok()?),
            "error" => Line::Error(rest.into()),
            _ => return None,
        })
    }
}

/// What the guest has said so far. A line that is not ended is not said yet.
#[derive(Debug, Default, PartialEq, Eq)]
struct Said {
    found: Option<u64>,
    written: u64,
    error: Option<String>,
}

impl Said {
    fn read(console: &str) -> Said {
        let mut said = Said::default();
        let whole = console.rfind('\n').map_or("", |end| &console[..end]);
        for line in whole.lines().filter_map(Line::parse) {
            match line {
                Line::Found(n) => said.found = Some(n),
                Line::Written(n) => said.written = said.written.max(n),
                Line::Error(e) => said.error = Some(e),
            }
        }
        said
    }
}

/// The result.
#[derive(Debug, Serialize)]
pub(super) struct Outcome {
    /// Blocks the guest printed as written before the kill.
    acknowledged: u64,
    /// Of these, those the guest did not find on the other node.
    lost: u64,
    /// From the kill until the folder was writable on the other node.
    writable_ms: u64,
    /// From the kill until the guest's first write on the other node.
    guest_writes_again_ms: u64,
    /// Both copies are equal in all, after the old primary's return.
    identical: bool,
    /// All of it.
    seconds: f64,
}

impl Outcome {
    /// Nothing lost, nothing different.
    pub(super) fn is_good(&self) -> bool {
        self.lost == 0 && self.identical
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let identical = match self.identical {
            true => "yes",
            false => "no",
        };
        table::row(
            f,
            "blocks the guest had synced",
            &grouped(self.acknowledged),
            "",
        )?;
        table::row(f, "lost", &grouped(self.lost), table::bad(self.lost > 0))?;
        table::row(
            f,
            "folder writable after, ms",
            &grouped(self.writable_ms),
            "",
        )?;
        let again = grouped(self.guest_writes_again_ms);
        table::row(f, "guest writes again after, ms", &again, "")?;
        table::row(
            f,
            "copies identical",
            identical,
            table::bad(!self.identical),
        )?;
        table::row(f, "duration, s", &format!("{:.1}", self.seconds), "")
    }
}

/// A guest that runs.
struct Guest {
    process: u32,
    console: PathBuf,
    stage: Arc<Stage>,
}

impl Guest {
    /// Boots from what is in the folder on this node.
    fn boot(node: &Node, stage: &Arc<Stage>, seed: u64) -> Result<Guest> {
        let vm = node.folder.join("vm");
        let console = stage.directory().join(format!("console-{}.log", node.name));
        let mut drive = std::ffi::OsString::from("format=raw,if=none,id=disk,cache=none,file=");
        drive.push(vm.join("disk.img"));
        let mut qemu = machine::machine(MEMORY);
        qemu.args(["-device", "virtio-blk-pci,drive=disk", "-drive"])
            .arg(drive)
            .arg("-kernel")
            .arg(vm.join("kernel"))
            .arg("-initrd")
            .arg(vm.join("initramfs"))
            .arg("-append")
            .arg(machine::command_line(&format!("demo-guest {seed}")));
        Ok(Guest {
            process: stage.spawn(qemu, &console)?,
            console,
            stage: stage.clone(),
        })
    }

    fn said(&self) -> Result<Said> {
        let console = std::fs::read(&self.console)
            .with_context(|| format!("cannot read {}", self.console.display()))?;
        Ok(Said::read(&String::from_utf8_lossy(&console)))
    }

    /// Waits until the guest has said something.
    fn wait_until(
        &self,
        what: &str,
        deadline: Duration,
        progress: &mut Progress,
        done: impl Fn(&Said) -> bool,
    ) -> Result<Said> {
        let until = Instant::now() + deadline;
        loop {
            let said = self.said()?;
            if let Some(error) = &said.error {
                bail!("the guest says: {error}");
            }
            if done(&said) {
                return Ok(said);
            }
            if let Some(status) = self.stage.ended(self.process)? {
                bail!("the virtual machine ended ({status}){}", self.last_words());
            }
            if Instant::now() > until {
                bail!(
                    "the guest has not {what} in {deadline:?}{}",
                    self.last_words()
                );
            }
            progress.tick(|| match said.found {
                Some(_) => format!("the guest has written {} blocks", grouped(said.written)),
                None => "the guest boots".into(),
            });
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn last_words(&self) -> String {
        nodes::end_of(&self.console, "the guest's console")
    }

    /// SIGKILL, to its end.
    fn kill(&self) -> Result<()> {
        self.stage.kill(self.process)?;
        self.stage.wait(self.process, TO_BOOT).map(drop)
    }
}

/// The guest's disk, kernel and initramfs, in the folder that is to be replicated.
fn furnish(folder: &Path, kernel: &Kernel, seed: u64) -> Result<()> {
    let vm = folder.join("vm");
    let put = || -> Result<()> {
        std::fs::create_dir(&vm)?;
        std::fs::copy(&kernel.image, vm.join("kernel"))?;
        let me = std::env::current_exe().context("cannot find this program's own file")?;
        let archive = Archive::with_init(&me, &kernel.modules)?;
        std::fs::write(vm.join("initramfs"), archive.finish())?;
        let disk = std::fs::File::create(vm.join("disk.img"))?;
        disk.set_len(DISK_BYTES)?;
        Ok(disk.write_all_at(&guest::block(seed, 0), 0)?)
    };
    put().with_context(|| format!("cannot furnish {}", vm.display()))
}

/// Fails a virtual machine over.
pub(super) fn story(
    kernel: Option<&Path>,
    stage: &Arc<Stage>,
    seed: u64,
    progress: &mut Progress,
) -> Result<Outcome> {
    machine::require_qemu()?;
    let kernel = Kernel::find(kernel, machine::DISK)?;
    progress.say(&format!("two nodes in {}", stage.directory().display()));
    let (mut a, mut b) = nodes::pair(stage, |folder| furnish(folder, &kernel, seed))?;
    a.start("primary")?;
    b.start("secondary")?;
    nodes::wait_until_paired(&a, &b, super::TO_PAIR, |_| {})?;

    progress.say("paired; the virtual machine boots on node-a");
    let first = Guest::boot(&a, stage, seed)?;
    first.wait_until("booted", TO_BOOT, progress, |s| s.found.is_some())?;
    progress.say("the guest writes and syncs numbered blocks");
    first.wait_until("written", TO_WRITE, progress, |s| s.written >= BEFORE)?;
    nodes::wait_until(&b, super::TO_PAIR, |s| s.link == "paired" && s.up_to_date)?;
    let killed = Instant::now();
    // At once, as when the machine loses its power.
    a.kill()?;
    first.kill()?;
    super::fail_over(&b, seed)?;
    let writable = killed.elapsed();
    a.bury()?;
    let acknowledged = first.said()?.written;
    progress.say(&format!(
        "node-a and the virtual machine are killed, the guest had synced {} blocks; it boots on \
         node-b",
        grouped(acknowledged)
    ));
    let second = Guest::boot(&b, stage, seed)?;
    let said = second.wait_until("booted", TO_BOOT, progress, |s| s.found.is_some())?;
    let found = said.found.unwrap_or(0);
    progress.say(&format!(
        "the guest finds {} blocks, and goes on",
        grouped(found)
    ));
    second.wait_until("written", TO_WRITE, progress, |s| s.written > found)?;
    let again = killed.elapsed();
    second.wait_until("written", TO_WRITE, progress, |s| {
        s.written >= found + AFTER
    })?;

    progress.say("node-a comes back while the guest works");
    a.start("secondary")?;
    // The guest does not rest, so the copies are compared when it has been stopped.
    nodes::wait_until(&a, super::TO_PAIR, |s| s.link == "paired" && s.up_to_date)?;
    second.kill()?;
    nodes::wait_until_paired(&b, &a, super::TO_PAIR, |_| {})?;
    let written = second.said()?.written;
    let lost = acknowledged.saturating_sub(found) + missing(&a, seed, written)?;
    let mounts = compare::compare(&a.folder, &b.folder, true)?;
    b.stop()?;
    a.stop()?;
    let stores = compare::compare(&a.data(), &b.data(), false)?;
    super::show("the mounts differ", &mounts.differences);
    super::show("the stores differ", &stores.differences);
    Ok(Outcome {
        acknowledged,
        lost,
        writable_ms: writable.as_millis() as u64,
        guest_writes_again_ms: again.as_millis() as u64,
        identical: mounts.differences.is_empty() && stores.differences.is_empty(),
        seconds: progress.elapsed().as_secs_f64(),
    })
}

/// Blocks up to this number that are not on a node.
fn missing(node: &Node, seed: u64, written: u64) -> Result<u64> {
    let path = node.folder.join("vm/disk.img");
    let count = || -> std::io::Result<u64> {
        let disk = std::fs::File::open(&path)?;
        let (mut data, mut missing) = ([0; BLOCK], 0);
        for number in 0..=written {
            disk.read_exact_at(&mut data, number * BLOCK as u64)?;
            missing += u64::from(data != guest::block(seed, number));
        }
        Ok(missing)
    };
    count().with_context(|| format!("cannot check {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_guest_says_is_understood_when_the_line_has_ended() {
        let lines = [
            Line::Found(7),
            Line::Written(8),
            Line::Written(9),
            Line::Error("no disk".into()),
        ];
        for line in &lines {
            assert_eq!(Line::parse(&line.to_string()).as_ref(), Some(line));
        }
        let console = "Linux\r\n[ 1.0] xtwinfold guest: found 7\r\ntwinfold guest: written 12\r\n";
        let said = Said::read(&format!("{console}twinfold guest: written 13"));
        assert_eq!((said.found, said.written, said.error), (Some(7), 12, None));
        assert_eq!(Said::read("twinfold guest: found 7"), Said::default());
    }
}
