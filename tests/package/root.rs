//! Machines with nothing but Debian's minimal system and systemd: a root of their own, a network
//! namespace and a process namespace.
//!
//! The system is made once, in `target/debian-machine`, from the mirror that this machine's apt
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
const BARE: &str = r#"set -e
mount -t overlay overlay -o "lowerdir=$1,upperdir=$2/upper,workdir=$2/work" "$2/root"
mount --bind "$2/srv" "$2/root/srv"
mount --rbind /dev "$2/root/dev"
mount -t tmpfs tmpfs "$2/root/run"
mount -t proc proc "$2/root/proc"
exec chroot "$2/root" sh -c 'echo >/ready; while :; do sleep 1000; done'
"#;

/// The same with systemd as its first process, as in a container: it has control groups of its own
/// below that in which this runs, each boot is another one, and of the kernel's settings it changes
/// none.
const BOOT: &str = r#"set -e
mount --make-rprivate /
mount -t overlay overlay -o "lowerdir=$1,upperdir=$2/upper,workdir=$2/work" "$2/root"
cd "$2/root"
mount --bind "$2/srv" srv
mount -t tmpfs tmpfs run
mount -t proc proc proc
cat proc/sys/kernel/random/uuid >run/boot_id
mount --bind run/boot_id proc/sys/kernel/random/boot_id
mount --rbind proc/sys proc/sys
mount -o remount,bind,ro proc/sys
mount -t tmpfs tmpfs dev
for device in null zero full random urandom tty fuse; do
    touch dev/$device
    mount --bind /dev/$device dev/$device
done
mkdir dev/shm dev/pts
mount -t devpts -o newinstance,ptmxmode=666 devpts dev/pts
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
mount -t sysfs -o ro sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
exec env -i container=other PATH=/usr/sbin:/usr/bin:/sbin:/bin \
    chroot . /lib/systemd/systemd --log-level=warning --log-target=console --show-status=no
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
    let (system, new) = (
        target.join("debian-machine"),
        target.join("debian-machine.new"),
    );
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
    make.args(["--variant=minbase", "--include=systemd-sysv,dbus"]);
    make.arg(&release).arg(&new);
    must(make.arg(mirror));
    std::fs::rename(&new, &system).unwrap();
    system
}

/// Where the kernel's control groups of the second kind are, which systemd wants.
fn control_groups() -> PathBuf {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    let mut all = mounts.lines().map(|l| l.split(' ').collect::<Vec<_>>());
    let found = all.find(|m| m.get(2) == Some(&"cgroup2"));
    PathBuf::from(found.expect("no control groups of version 2 are mounted")[1])
}

/// Removes a control group in which nothing runs, with all below it.
fn remove_group(group: &Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(group)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_group(&entry.path())?;
        }
    }
    std::fs::remove_dir(group)
}

/// One machine.
#[derive(Debug)]
pub(crate) struct Machine {
    directory: PathBuf,
    network: File,
    holder: Child,
    init: u32,
    /// Of one that systemd runs.
    group: Option<PathBuf>,
}

impl Machine {
    /// With files of its own below `directory`: its `/srv` is the directory `srv` in it.
    pub(crate) fn new(directory: &Path, network: File) -> Machine {
        for name in ["upper", "work", "root", "srv"] {
            std::fs::create_dir_all(directory.join(name)).unwrap();
        }
        let (holder, init) = start(directory, BARE, None);
        let ready = directory.join("upper/ready");
        assert!(wait_until(PATIENCE, || ready.exists()), "no machine");
        Machine {
            directory: directory.to_owned(),
            network,
            holder,
            init,
            group: None,
        }
    }

    /// The machine is put out, and systemd boots it.
    pub(crate) fn boot(&mut self) {
        self.put_out();
        let name = format!("twinfold-tests.{}", self.holder.id());
        let group = control_groups().join(name);
        std::fs::create_dir(&group).unwrap();
        (self.holder, self.init) = start(&self.directory, BOOT, Some((&group, &self.network)));
        self.group = Some(group);
        let up = || {
            let state = self.output("systemctl is-system-running").stdout;
            matches!(text(&state).trim(), "running" | "degraded")
        };
        assert!(wait_until(PATIENCE, up), "it does not come up");
        let failed = self.must("systemctl --failed --no-legend --plain");
        assert_eq!(failed, "");
    }

    /// Shuts it down, as who presses its button; all that runs in it has then ended.
    pub(crate) fn shut_down(&mut self) {
        self.must("systemctl poweroff");
        let ended = wait_until(PATIENCE, || self.holder.try_wait().unwrap().is_some());
        assert!(ended, "it does not shut down");
    }

    fn put_out(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
        let init = format!("/proc/{}", self.init);
        wait_until(PATIENCE, || !Path::new(&init).exists());
        if let Some(group) = self.group.take() {
            wait_until(PATIENCE, || remove_group(&group).is_ok());
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
            if self.group.is_some() {
                let said = self.output("journalctl --no-pager --unit twinfold").stdout;
                eprintln!("{}", text(&said));
            }
        }
        self.put_out();
    }
}

/// Starts the first process of a machine, which runs the script; its number.
fn start(directory: &Path, script: &str, own: Option<(&Path, &File)>) -> (Child, u32) {
    // Who moves itself moves what it starts.
    let enter = "[ -z \"$1\" ] || echo $$ >\"$1/cgroup.procs\"; shift; exec \"$@\"";
    let mut command = Command::new("sh");
    command.args(["-c", enter, "enter"]);
    let group = own.map_or_else(Default::default, |(group, _)| group.to_owned());
    command.arg(group).arg("unshare");
    if let Some((_, network)) = own {
        command.args(["--cgroup", "--uts", "--ipc"]);
        harness::enter(&mut command, network).unwrap();
    }
    command.args(["--mount", "--pid", "--fork", "--kill-child=KILL"]);
    command.args(["sh", "-c", script, "boot"]);
    command.arg(&*SYSTEM).arg(directory).stdin(Stdio::null());
    let holder = process::start(command).unwrap();
    let children = format!("/proc/{0}/task/{0}/children", holder.id());
    let child = || {
        let all = std::fs::read_to_string(&children).ok()?;
        all.split_whitespace().next()?.parse().ok()
    };
    let mut init = None;
    wait_until(PATIENCE, || {
        init = child();
        init.is_some()
    });
    (holder, init.expect("no machine"))
}
