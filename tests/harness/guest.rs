//! A node's machine that can lose its power: an emulated one, whose page cache goes with
//! it when it is killed. What it wrote to its disk and flushed is in a file of this one.
//!
//! Its network is the emulator's own: it reaches this machine's loopback at
//! [`HOST`], and two of its ports are forwarded from there.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use fs_driver::control::Request;
use serde_json::Value;
use twinfold_controller::guest::{self, Archive, Kernel};

use crate::pair::free_addresses;
use crate::process::{self, must, unmount, wait_until};
use crate::program::Program;

/// The guest's own address, and where it finds this machine.
pub const ADDRESS: &str = "10.0.2.15";
/// See [`ADDRESS`].
pub const HOST: &str = "10.0.2.2";

/// Where the agent in the guest listens, and where the node does.
pub const CONTROL: u16 = 7000;
/// See [`CONTROL`].
pub const NODE: u16 = 4810;

/// Where the guest's disk is mounted; the folder is `vm` in it.
pub const DISK: &str = "/disk";

/// What the node in the guest says goes here.
pub const LOG: &str = "/run/node.log";

/// What the agent prints when it listens.
pub const READY: &str = "guest: ready";

/// How long an emulated machine may take to boot, and a command in it, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// Memory of a guest, in MiB.
const MEMORY: u32 = 384;

/// A kernel and an initramfs to boot guests from.
#[derive(Debug)]
pub struct Boot {
    kernel: PathBuf,
    initramfs: PathBuf,
}

impl Boot {
    /// Makes the initramfs in `directory`. The kernel is the one that
    /// `TWINFOLD_GUEST_KERNEL` names, the one in `target/guest-kernel`, or this machine's.
    pub fn prepare(directory: &Path) -> Result<Boot> {
        let kernel = kernel(guest::NODE)?;
        let mut archive = Archive::with_init(&process::program("guest")?, &kernel.modules)?;
        archive.program("node", &process::program("node")?)?;
        let ip = crate::program::require("ip", "iproute2", &["/usr/sbin".into(), "/sbin".into()]);
        archive.program("ip", &ip)?;
        let initramfs = directory.join("initramfs");
        std::fs::write(&initramfs, archive.finish())?;
        Ok(Boot {
            kernel: kernel.image,
            initramfs,
        })
    }
}

/// A kernel for guests, with what a virtio disk and these modules need.
pub fn kernel(modules: &[&str]) -> Result<Kernel> {
    guest::require_qemu()?;
    let needed = [guest::DISK, modules].concat();
    let named = std::env::var_os("TWINFOLD_GUEST_KERNEL").map(PathBuf::from);
    Kernel::find(named.or_else(unpacked).as_deref(), &needed)
        .context("guests need a kernel; .ci/run unpacks one into target/guest-kernel")
}

/// The kernel that was unpacked beside the build for this purpose.
fn unpacked() -> Option<PathBuf> {
    let me = std::env::current_exe().ok()?;
    let boot = me.ancestors().nth(3)?.join("guest-kernel/boot");
    let mut images = std::fs::read_dir(boot).ok()?.flatten();
    images
        .find(|e| e.file_name().to_string_lossy().starts_with("vmlinuz-"))
        .map(|e| e.path())
}

/// A machine with a node, running or without power.
#[derive(Debug)]
pub struct Guest {
    image: PathBuf,
    copy: PathBuf,
    /// Where this machine's side of the two forwarded ports is.
    control: SocketAddr,
    node: SocketAddr,
    qemu: Option<Program>,
}

impl Guest {
    /// A machine with an empty disk of so many bytes in `directory`.
    pub fn new(directory: &Path, name: &str, size: u64) -> Result<Guest> {
        let image = directory.join(format!("{name}.disk"));
        std::fs::File::create(&image)?.set_len(size)?;
        must(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&image))?;
        let [node, control] = free_addresses(["127.0.0.1"; 2])?;
        Ok(Guest {
            copy: directory.join(format!("{name}.copy")),
            image,
            control,
            node,
            qemu: None,
        })
    }

    /// Where this machine finds the node in the guest; other guests find it at the same
    /// port of [`HOST`].
    pub fn address(&self) -> SocketAddr {
        self.node
    }

    /// Begins to boot.
    pub fn power_on(&mut self, boot: &Boot) {
        let mut qemu = guest::machine(MEMORY);
        // What the guest has not flushed to its disk is in its memory only.
        let drive = format!(
            "format=raw,if=none,id=disk,cache=none,file={}",
            self.image.display()
        );
        let net = format!(
            "user,id=net,hostfwd=tcp:{}-:{CONTROL},hostfwd=udp:{}-:{NODE}",
            self.control, self.node
        );
        qemu.args(["-cpu", "max", "-drive", &drive])
            .args(["-device", "virtio-blk-pci,drive=disk", "-netdev", &net])
            .args(["-device", "virtio-net-pci,netdev=net,romfile="])
            .arg("-kernel")
            .arg(&boot.kernel)
            .arg("-initrd")
            .arg(&boot.initramfs)
            .arg("-append")
            .arg(guest::command_line(""));
        self.qemu = Some(Program::start(qemu));
    }

    /// Waits until it has booted and its disk is mounted.
    pub fn wait_booted(&mut self) -> Result<()> {
        let qemu = self.qemu.as_mut().context("it has no power")?;
        let up = wait_until(PATIENCE, || {
            qemu.said().contains(READY) || !qemu.is_running()
        });
        ensure!(
            up && qemu.is_running(),
            "the guest did not boot:\n{}\n{}",
            qemu.said(),
            qemu.complained()
        );
        self.tell("mount").map(drop)
    }

    /// Takes its power away, in the middle of everything.
    pub fn cut_power(&mut self) {
        if let Some(mut qemu) = self.qemu.take() {
            qemu.kill();
        }
    }

    /// What the guest's kernel and its agent have said since it was switched on.
    pub fn console(&self) -> String {
        self.qemu.as_ref().map(Program::said).unwrap_or_default()
    }

    fn connect(&self, line: &str) -> Result<BufReader<TcpStream>> {
        let mut stream = TcpStream::connect(self.control).context("the guest has no power")?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        stream.write_all(format!("{line}\n").as_bytes())?;
        Ok(BufReader::new(stream))
    }

    /// Tells the agent something that ends; returns its answer.
    pub fn tell(&self, line: &str) -> Result<String> {
        let mut stream = self.connect(line)?;
        let (mut how, mut text) = (String::new(), String::new());
        let read = stream.read_line(&mut how);
        read.and_then(|_| stream.read_to_string(&mut text))
            .with_context(|| format!("the guest did not answer to `{line}`"))?;
        match how.trim() {
            "ok" => Ok(text),
            _ => bail!("{line}: {text}"),
        }
    }

    /// Sets an application to work in a new directory of the folder in the guest; the
    /// lines tell what is acknowledged.
    pub fn work(&self, directory: &str, writers: u64) -> Result<BufReader<TcpStream>> {
        self.connect(&format!("work {DISK}/vm/{directory} {writers}"))
    }

    /// Asks the node in it something.
    pub fn ask(&self, request: Request) -> Result<Option<Value>> {
        let text = self.tell(&format!("ask {}", serde_json::to_string(&request)?))?;
        Ok(serde_json::from_str(&text)?)
    }

    /// Lets something be seen of the store on its disk as it is now: without power, as the
    /// file system's journal makes it. The disk itself is not touched.
    pub fn with_store<T>(&self, look: impl FnOnce(&Path) -> T) -> Result<T> {
        must(
            Command::new("cp")
                .args(["--sparse=always", "--reflink=auto"])
                .args([&self.image, &self.copy]),
        )?;
        let at = self.copy.with_extension("mounted");
        std::fs::create_dir_all(&at)?;
        must(
            Command::new("mount")
                .args(["-o", "loop"])
                .args([&self.copy, &at]),
        )?;
        let seen = look(&at.join(".vm.twinfold/data"));
        unmount(&at)?;
        Ok(seen)
    }
}
