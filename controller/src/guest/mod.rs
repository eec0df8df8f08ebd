//! Small virtual machines: an emulated one boots a Linux kernel with one program of ours in
//! a few seconds. The demonstration puts its disk into the folder; the tests run a node in
//! one and cut its power.

mod initramfs;
mod modules;

use std::process::Command;

use anyhow::{Context, Result, bail};

pub use initramfs::{Archive, DISK, Kernel};
pub use modules::load_modules;

/// Where the guest finds its modules.
const MODULES: &str = "modules";

/// Modules for what a node with a network needs, as far as a kernel has them not built in.
pub const NODE: &[&str] = &[
    "failover",
    "net_failover",
    "virtio_net",
    "fuse",
    "ext4",
    "jbd2",
    "mbcache",
    "crc16",
    "crc32c_generic",
    "crc32c_intel",
    "libcrc32c",
];

/// The emulator.
pub const QEMU: &str = "qemu-system-x86_64";

/// Says what is missing, before anything is put up.
pub fn require_qemu() -> Result<()> {
    match Command::new(QEMU).arg("--version").output() {
        Ok(out) if out.status.success() => Ok(()),
        Ok(out) => bail!("{QEMU} does not work: {}", out.status),
        Err(e) => Err(e).context(format!(
            "{QEMU} is needed; install it with: apt-get install --no-install-recommends \
             qemu-system-x86"
        )),
    }
}

/// An emulated machine with this much memory, its serial console on its output. What is
/// missing are disk, kernel and initramfs. It ends when it reboots or panics.
pub fn machine(megabytes: u32) -> Command {
    let mut qemu = Command::new(QEMU);
    qemu.args(["-accel", "tcg", "-machine", "pc", "-smp", "1", "-m"])
        .arg(megabytes.to_string())
        .args(["-no-user-config", "-nodefaults", "-no-reboot"])
        .args(["-display", "none", "-monitor", "none", "-serial", "stdio"]);
    qemu
}

/// The kernel's command line for a program of ours with these arguments.
pub fn command_line(arguments: &str) -> String {
    format!("console=ttyS0 quiet panic=-1 rdinit=/init -- {arguments}")
}
