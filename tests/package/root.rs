//! Machines with nothing but Debian's minimal system: a root of their own, a network
//! namespace and a process namespace.
//!
//! The system is made once, in `target/debian-root`, from the mirror that this machine's apt
//! uses. A machine's root is that with a layer of its own above; it is mounted in a namespace
//! that ends with the machine's processes, and these with the test.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::LazyLock;

use harness::{process, wait_until};

use crate::PATIENCE;

/// Makes a root of a machine, and remains as its first process, which takes note of the end
/// of those whose parent has ended.
const BOOT: &str = r#"set -e
mount -t overlay overlay -o "lowerdir=$1,upperdir=$2/upper,workdir=$2/work" "$2/root"
mount --bind "$2/srv" "$2/root/srv"
mount --rbind /dev "$2/root/dev"
mount -t tmpfs tmpfs "$2/root/run"
mount -t proc proc "$2/root/proc"
exec chroot "$2/root" sh -c 'echo >/ready; while :; do sleep 1000; done'
"#;

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Runs a command that has to succeed; what it says.
pub(crate) fn must(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).output().unwrap();
    let (said, complaint) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{command:?}: {said}{complaint}");
    said + &complaint
}

/// The release that the programs are built for: this machine's.
fn release() -> String {
    let known = std::fs::read_to_string("/etc/os-release").unwrap();
    let name = known
        .lines()
        .find_map(|l| l.strip_prefix("VERSION_CODENAME="));
    name.expect("this machine is no Debian").to_owned()
}

/// Debian's minimal system, for all tests of this process.
static SYSTEM: LazyLock<PathBuf> = LazyLock::new(system);

fn system() -> PathBuf {
    let me = std::env::current_exe().unwrap();
    let target = me.ancestors().nth(3).unwrap();
    let (system, new) = (target.join("debian-root"), target.join("debian-root.new"));
    if system.exists() {
        return system;
    }
    // What an interrupted run left.
    let _ = std::fs::remove_dir_all(&new);
    let release = release();
    let mut known = Command::new("apt-get");
    known.args([
        "indextargets",
        "--format",
        "$(SITE)",
        "Created-By: Packages",
    ]);
    known.args(["Origin: Debian", &format!("Codename: {release}")]);
    let known = must(&mut known);
    let mirror = known.lines().next();
    let mirror = mirror.expect("apt knows no mirror of this release: run `apt-get update`");
    let mut make = Command::new("debootstrap");
    make.args(["--variant=minbase", &release]).arg(&new);
    must(make.arg(mirror));
    std::fs::rename(&new, &system).unwrap();
    system
}

/// One machine.
#[derive(Debug)]
pub(crate) struct Machine {
    directory: PathBuf,
    network: File,
    holder: Child,
    init: u32,
}

impl Machine {
    /// With files of its own below `directory`: its `/srv` is the directory `srv` in it.
    pub(crate) fn new(directory: &Path, network: File) -> Machine {
        for name in ["upper", "work", "root", "srv"] {
            std::fs::create_dir_all(directory.join(name)).unwrap();
        }
        let mut command = Command::new("unshare");
        command.args(["--mount", "--pid", "--fork", "--kill-child=KILL"]);
        command.args(["sh", "-c", BOOT, "boot"]);
        command.arg(&*SYSTEM).arg(directory).stdin(Stdio::null());
        let holder = process::start(command).unwrap();
        let children = format!("/proc/{0}/task/{0}/children", holder.id());
        let ready = directory.join("upper/ready");
        assert!(wait_until(PATIENCE, || ready.exists()), "no machine");
        let init = std::fs::read_to_string(children).unwrap();
        Machine {
            directory: directory.to_owned(),
            network,
            holder,
            init: init.split_whitespace().next().unwrap().parse().unwrap(),
        }
    }

    /// What of its files is not a minimal system's.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        match name.strip_prefix("srv/") {
            Some(name) => self.directory.join("srv").join(name),
            None => self.directory.join("upper").join(name),
        }
    }

    pub(crate) fn write(&self, name: &str, text: &str) {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    pub(crate) fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap_or_default()
    }

    /// A command in it, by the shell.
    pub(crate) fn command(&self, line: &str) -> Command {
        let mut command = Command::new("nsenter");
        let init = self.init.to_string();
        command.args(["--target", &init, "--mount", "--pid", "--root", "--wd"]);
        command.args(["--", "sh", "-c", line]);
        command.env_clear();
        command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        command.env("DEBIAN_FRONTEND", "noninteractive");
        command.stdin(Stdio::null());
        harness::enter(&mut command, &self.network).unwrap();
        command
    }

    pub(crate) fn must(&self, line: &str) -> String {
        must(&mut self.command(line))
    }

    pub(crate) fn output(&self, line: &str) -> Output {
        self.command(line).output().unwrap()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.read("var/log/daemon.log"));
        }
        let _ = self.holder.kill();
        let _ = self.holder.wait();
        let init = format!("/proc/{}", self.init);
        wait_until(PATIENCE, || !Path::new(&init).exists());
    }
}
