//! Two emulated machines that are measured beside DRBD, which needs a kernel with its module
//! and two of them.
//!
//! ```text
//! this machine            a: measures                      b: serves
//!   a.folder  /dev/vda      ext4, all folders              ext4, the secondaries   b.folder
//!   a.drbd    /dev/vdb      DRBD, ext4 on it  <=========>  DRBD                    b.drbd
//!   report    /dev/vdc      length, report.json
//! ```
//!
//! Both have one network between them and none to anybody else. The two disks for DRBD begin as
//! copies of one another, so that nothing is to be synchronised before the measurement.

pub(crate) mod inside;

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use twinfold_controller::guest::{self, Archive, Kernel};

use crate::process::{self, Process};
use crate::{interrupt, report};

/// Memory of a machine, in MiB: the page cache has room for all folders.
const MEMORY: u32 = 1536;

/// Size of the disk for the folders, in bytes. It is sparse.
const FOLDERS: u64 = 16 << 30;

/// Size of the disk for DRBD, in bytes. It is sparse.
const DRBD: u64 = 4 << 30;

/// What DRBD keeps at the end of its disk, in bytes, generously: a bit for each 4 KiB, and its
/// activity log (`drbdmeta(8)`).
const METADATA: u64 = 64 << 20;

/// Room for the report, in bytes.
const REPORT: u64 = 64 << 20;

/// How long a command of the preparation may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// The socket that is the network, made by the serving machine's emulator.
const NETWORK: &str = "network";

/// How often the machines are looked at.
const LOOK: Duration = Duration::from_millis(200);

/// Where Debian keeps the tool for the kernel's own DRBD, which is version 8.4.
const DRBDSETUP: &str = "/lib/drbd/drbdsetup-84";

/// Modules of DRBD.
const MODULES: &[&str] = &["lru_cache", "drbd"];

/// What `drbd` was asked for.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Rounds; each measures everything once, in turn.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Milliseconds per measurement.
    #[arg(long, default_value_t = 2000)]
    millis: u64,
    /// MiB of the files that are read and written.
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u64).range(1..=64))]
    file_mib: u64,
    /// Only the workloads whose name contains one of these, with commas between them.
    #[arg(
        long,
        default_value = "write-4k-d1,direct-4k,queue-4k,fsync-4k-d1,write-1m,create-unlink,database,vm-image"
    )]
    only: String,
    /// The kernel for the machines, its modules in ../lib/modules beside it [default: the newest
    /// one in /boot]
    #[arg(long)]
    kernel: Option<PathBuf>,
    /// Everything ends after so many minutes.
    #[arg(long, default_value_t = 120, value_parser = clap::value_parser!(u64).range(1..=crate::MOST_MINUTES))]
    minutes: u64,
    /// Directory for the machines' disks.
    #[arg(long, default_value = "/var/tmp")]
    dir: PathBuf,
    /// Directory for report.json and report.html.
    #[arg(long, default_value = "bench-report")]
    out: PathBuf,
}

/// Boots both machines, waits for the report, shows and keeps it.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    guest::require_qemu()?;
    let dir = options
        .dir
        .join(format!("twinfold-bench-drbd.{}", std::process::id()));
    std::fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    interrupt::catch();
    let measured = measure(options, &dir);
    let removed = std::fs::remove_dir_all(&dir);
    let text = measured?;
    removed.with_context(|| format!("cannot remove {}", dir.display()))?;
    std::fs::create_dir_all(&options.out)?;
    let kept = options.out.join("report.json");
    std::fs::write(&kept, text).with_context(|| format!("cannot write {}", kept.display()))?;
    let report = report::load(&kept)?;
    print!("{}", report::show(&report));
    println!("\n{}", report::save(&report, &options.out)?.display());
    let ours = report.failures.iter().any(|f| f.system.is_ours());
    Ok(match ours {
        true => ExitCode::FAILURE,
        false => ExitCode::SUCCESS,
    })
}

fn measure(options: &Options, dir: &Path) -> Result<Vec<u8>> {
    eprintln!("making two machines");
    let kernel = Kernel::find(
        options.kernel.as_deref(),
        &[guest::DISK, guest::NODE, MODULES].concat(),
    )?;
    let initramfs = dir.join("initramfs");
    std::fs::write(&initramfs, archive(&kernel)?)?;
    for (name, size) in [("folder", FOLDERS), ("drbd", DRBD - METADATA)] {
        let a = dir.join(format!("a.{name}"));
        let whole = if name == "drbd" { DRBD } else { size };
        std::fs::File::create(&a)?.set_len(whole)?;
        let mut mkfs = Command::new("mkfs.ext4");
        // Nothing is left to be made while it is measured.
        mkfs.args(["-q", "-F", "-b", "4096", "-E"])
            .arg("lazy_itable_init=0,lazy_journal_init=0")
            .arg(&a)
            .arg((size / 4096).to_string());
        must(mkfs)?;
        let mut copy = Command::new("cp");
        copy.args(["--sparse=always", "--reflink=auto"])
            .arg(&a)
            .arg(dir.join(format!("b.{name}")));
        must(copy)?;
    }
    let out = dir.join("report");
    std::fs::File::create(&out)?.set_len(REPORT)?;
    let minutes = options.minutes;
    let b = format!("guest b --minutes {minutes}");
    let mib = options.file_mib;
    let a = format!(
        "guest a --minutes {minutes} --rounds {} --millis {} --file-mib {mib} --resync-mib {mib} \
         --only {}",
        options.rounds, options.millis, options.only
    );
    let mut machines = Vec::new();
    for (name, arguments, report) in [("b", b, None), ("a", a, Some(&out))] {
        let qemu = machine(&kernel, &initramfs, dir, name, &arguments, report);
        machines.push(Process::spawn(qemu, None, &dir.join(name))?);
        wait_for(&dir.join(NETWORK)).with_context(|| last(&dir.join(name)))?;
    }
    let until = Instant::now() + Duration::from_secs(minutes * 60);
    let mut shown = 0;
    loop {
        interrupt::check()?;
        let ended = machines[1].has_ended()?;
        relay(&dir.join("a"), &mut shown)?;
        if ended {
            break;
        }
        if machines[0].has_ended()? {
            bail!("the serving machine has ended: {}", last(&dir.join("b")));
        }
        ensure!(Instant::now() < until, "no report after {minutes} minutes");
        std::thread::sleep(LOOK);
    }
    let mut length = [0; 8];
    let mut file = std::fs::File::open(&out)?;
    file.read_exact(&mut length)?;
    let length = u64::from_le_bytes(length);
    ensure!(
        (1..REPORT - 8).contains(&length),
        "the measuring machine has ended without a report: {}; the other one said: {}",
        last(&dir.join("a")),
        last(&dir.join("b"))
    );
    let mut text = Vec::new();
    file.take(length).read_to_end(&mut text)?;
    Ok(text)
}

/// This program as the first process, with the tools of DRBD and of the network.
fn archive(kernel: &Kernel) -> Result<Vec<u8>> {
    ensure!(
        kernel
            .modules
            .iter()
            .any(|m| m.to_string_lossy().contains("/drbd.ko")),
        "the kernel {} has no module drbd (Debian's linux-image-cloud-amd64 has)",
        kernel.image.display()
    );
    let mut archive = Archive::with_init(&std::env::current_exe()?, &kernel.modules)?;
    for (name, path, package) in [
        ("ip", found("ip"), "iproute2"),
        ("drbdmeta", found("drbdmeta"), "drbd-utils"),
        ("drbdsetup", Some(DRBDSETUP.into()), "drbd-utils"),
    ] {
        let path = path
            .filter(|p| p.exists())
            .with_context(|| format!("{name} is needed: apt-get install {package}"))?;
        archive.program(name, &path)?;
    }
    Ok(archive.finish())
}

/// A program that is on the path, or where the system's own are.
fn found(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    let mut all = std::env::split_paths(&path).chain(system);
    all.find_map(|dir| Some(dir.join(name)).filter(|p| p.exists()))
}

fn machine(
    kernel: &Kernel,
    initramfs: &Path,
    dir: &Path,
    name: &str,
    arguments: &str,
    report: Option<&PathBuf>,
) -> Command {
    let mut qemu = guest::machine(MEMORY);
    qemu.args(["-cpu", "max"]);
    let disks = ["folder", "drbd"].map(|disk| dir.join(format!("{name}.{disk}")));
    for (n, disk) in disks.iter().chain(report).enumerate() {
        let file = disk.display();
        qemu.arg("-drive").arg(format!(
            "format=raw,if=none,id=disk{n},cache=none,file={file}"
        ));
        qemu.arg("-device")
            .arg(format!("virtio-blk-pci,drive=disk{n}"));
    }
    let server = if name == "b" { "on" } else { "off" };
    let network = format!(
        "stream,id=net,server={server},addr.type=unix,addr.path={}",
        dir.join(NETWORK).display()
    );
    let mac = if name == "b" { 2 } else { 1 };
    qemu.arg("-netdev").arg(network);
    qemu.arg("-device").arg(format!(
        "virtio-net-pci,netdev=net,romfile=,mac=52:54:00:12:34:0{mac}"
    ));
    qemu.arg("-kernel").arg(&kernel.image);
    qemu.arg("-initrd").arg(initramfs);
    qemu.arg("-append").arg(guest::command_line(arguments));
    qemu
}

fn wait_for(path: &Path) -> Result<()> {
    let until = Instant::now() + PATIENCE;
    while !path.exists() {
        ensure!(Instant::now() < until, "{} does not appear", path.display());
        std::thread::sleep(LOOK);
    }
    Ok(())
}

/// Shows what a machine has said since the last time.
fn relay(log: &Path, shown: &mut u64) -> Result<()> {
    use std::io::Seek;
    let mut file = std::fs::File::open(log)?;
    file.seek(std::io::SeekFrom::Start(*shown))?;
    let mut new = Vec::new();
    file.read_to_end(&mut new)?;
    *shown += new.len() as u64;
    Ok(std::io::stderr().write_all(&new)?)
}

/// The last lines of what a machine has said.
fn last(log: &Path) -> String {
    let said = std::fs::read(log).unwrap_or_default();
    let said = String::from_utf8_lossy(&said);
    let mut lines: Vec<&str> = said.lines().rev().take(5).map(str::trim).collect();
    lines.reverse();
    lines.join("; ")
}

fn must(command: Command) -> Result<()> {
    let name = command.get_program().display().to_string();
    let out = process::output(command, PATIENCE)?;
    let said = String::from_utf8_lossy(&out.stderr);
    ensure!(out.status.success(), "{name}: {}", said.trim());
    Ok(())
}
