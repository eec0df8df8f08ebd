//! Two machines: each a network namespace and a process namespace of its own, with a daemon,
//! one module and an application that counts.
//!
//! What is started in a machine ends with its process namespace, and that with the test.

use std::ffi::OsString;
use std::fs::File;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use fs_driver::control::{self, socket_path};
use fs_driver::store::Layout;
use harness::faulty::ProgrammableDisk;
use harness::{Network, Scratch, process, wait_until};
use serde_json::Value;

use crate::PATIENCE;

/// Counts in the folder: a number is acknowledged when its file has its name on both nodes.
const APP: &str = r#"#!/bin/sh
folder=$1 acked=$2
n=$(cat "$folder/count" 2>/dev/null || echo 0)
while [ ! -e "$acked.stop" ]; do
    n=$((n + 1))
    echo $n >"$folder/count.new" && mv "$folder/count.new" "$folder/count" || exit
    echo $n >"$acked.new" && mv "$acked.new" "$acked"
done
"#;

pub(crate) const START: &str = r#"#!/bin/sh
cat "$TWINFOLD_FOLDERS/count" >"$HOME_OF_TEST/found" 2>/dev/null || echo 0 >"$HOME_OF_TEST/found"
"$TWINFOLD_BIN/app" "$TWINFOLD_FOLDERS" "$HOME_OF_TEST/acked" </dev/null >/dev/null 2>&1 &
echo $! >"$HOME_OF_TEST/app.pid"
echo start >>"$HOME_OF_TEST/starts"
"#;

pub(crate) const STOP: &str = r#"#!/bin/sh
[ "$1" = force ] && shift
pid=$(cat "$HOME_OF_TEST/app.pid") || exit 0
kill "$pid" 2>/dev/null
while kill -0 "$pid" 2>/dev/null; do sleep 0.01; done
exit 0
"#;

/// Size of a disk, in bytes.
const DISK: u64 = 256 << 20;

/// One machine.
#[derive(Debug)]
pub(crate) struct Machine {
    name: &'static str,
    home: PathBuf,
    /// The folder, below it.
    folder: &'static str,
    network: File,
    /// Holds the process namespace, whose first process is the number.
    holder: Child,
    init: u32,
    daemon: Option<Child>,
    /// What is run as the daemon.
    program: PathBuf,
}

/// Two machines.
#[derive(Debug)]
pub(crate) struct Stage {
    pub(crate) a: Machine,
    pub(crate) b: Machine,
    disk: Option<ProgrammableDisk>,
    pub(crate) network: Network,
    _scratch: Scratch,
}

pub(crate) fn controller() -> PathBuf {
    process::program("controller").unwrap()
}

pub(crate) fn write(path: &Path, text: &str) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, text).unwrap();
}

pub(crate) fn executable(path: &Path, text: &str) {
    write(path, text);
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
}

/// A process namespace: whoever holds it, and its first process.
fn processes() -> (Child, u32) {
    let mut command = Command::new("unshare");
    // Its first process takes note of the end of those whose parent has ended.
    let first = "while :; do sleep 1000; done";
    command.args(["--pid", "--fork", "--kill-child=KILL", "sh", "-c", first]);
    command.stdin(Stdio::null());
    let holder = process::start(command).unwrap();
    let children = format!("/proc/{0}/task/{0}/children", holder.id());
    let mut init = None;
    assert!(wait_until(PATIENCE, || {
        let text = std::fs::read_to_string(&children).unwrap_or_default();
        init = text.split_whitespace().next().and_then(|p| p.parse().ok());
        // Its program is there, so it has its namespace.
        init.is_some_and(|pid: u32| {
            std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|c| c == "sh\n")
        })
    }));
    (holder, init.unwrap())
}

impl Machine {
    fn new(name: &'static str, directory: &Path, folder: &'static str, network: File) -> Machine {
        let home = directory.join(name);
        std::fs::create_dir_all(home.join(folder)).unwrap();
        std::fs::create_dir(home.join("tools")).unwrap();
        std::os::unix::fs::symlink(controller(), home.join("tools/twinfold")).unwrap();
        let (holder, init) = processes();
        Machine {
            name,
            home,
            folder,
            network,
            holder,
            init,
            daemon: None,
            program: controller(),
        }
    }

    /// The daemon's program gets a file of this machine's own from the next start on.
    pub(crate) fn own_program(&mut self) {
        self.program = self.home.join("bin/twinfold");
        std::fs::create_dir_all(self.home.join("bin")).unwrap();
        self.replace_program();
    }

    /// Puts a new file in place of the program, as an upgrade does.
    pub(crate) fn replace_program(&self) {
        let new = self.program.with_extension("new");
        std::fs::copy(controller(), &new).unwrap();
        std::fs::rename(new, &self.program).unwrap();
    }

    pub(crate) fn vm(&self) -> PathBuf {
        self.home.join(self.folder)
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.layout().data()
    }

    fn layout(&self) -> Layout {
        Layout::new(self.vm().with_file_name(".vm.twinfold"))
    }

    pub(crate) fn home(&self) -> &Path {
        &self.home
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.home.join("run/twinfold.sock")
    }

    /// Where a test puts programs that this machine has, before those of the real one.
    pub(crate) fn tools(&self) -> PathBuf {
        self.home.join("tools")
    }

    fn path(&self) -> OsString {
        let mut path = self.tools().into_os_string();
        path.push(":");
        path.push(std::env::var_os("PATH").unwrap_or_default());
        path
    }

    /// Runs a command of the controller; its exit status, output and complaint.
    pub(crate) fn cli(&self, arguments: &[&str]) -> (i32, String, String) {
        let output = Command::new(controller())
            .arg("--home")
            .arg(&self.home)
            .args(arguments)
            .env("PATH", self.path())
            .stdin(Stdio::null())
            .output()
            .unwrap();
        (
            output.status.code().unwrap_or(-1),
            String::from_utf8_lossy(&output.stdout).trim().to_owned(),
            String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        )
    }

    pub(crate) fn must(&self, arguments: &[&str]) -> String {
        let (code, out, err) = self.cli(arguments);
        assert_eq!(
            code,
            0,
            "{arguments:?} on {}: {err}\n{}",
            self.name,
            self.log()
        );
        out
    }

    /// A command in the machine, with its network; its program is the first argument to add.
    pub(crate) fn entering(&self) -> Command {
        let mut command = Command::new("nsenter");
        command
            .args(["--target", &self.init.to_string(), "--pid", "--"])
            .env("PATH", self.path())
            .stdin(Stdio::null());
        harness::enter(&mut command, &self.network).unwrap();
        command
    }

    /// Starts the daemon, which finds everything configured, and waits until it answers.
    pub(crate) fn start_daemon(&mut self) {
        let log = File::options()
            .append(true)
            .create(true)
            .open(self.home.join("daemon.log"))
            .unwrap();
        let mut command = self.entering();
        command
            .arg(&self.program)
            .arg("--home")
            .arg(&self.home)
            .arg("daemon")
            .env("HOME_OF_TEST", &self.home)
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        self.daemon = Some(process::start(command).unwrap());
        let up = wait_until(PATIENCE, || self.cli(&["state"]).0 == 0);
        assert!(up, "{}: {}", self.name, self.log());
    }

    /// Runs a shell's commands in the machine; what they print.
    pub(crate) fn inside(&self, commands: &str) -> String {
        let output = Command::new("nsenter")
            .args([
                "--target",
                &self.init.to_string(),
                "--pid",
                "--",
                "sh",
                "-c",
            ])
            .arg(commands)
            .env("PATH", self.path())
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{commands}: {said}");
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    /// The daemon's process, as this test sees it.
    pub(crate) fn daemon(&self) -> i32 {
        listener(&self.socket()).unwrap()
    }

    /// Kills the daemon alone.
    pub(crate) fn kill_daemon(&mut self) {
        self.signal_daemon(libc::SIGKILL);
    }

    /// Ends the daemon alone, in order.
    pub(crate) fn end_daemon(&mut self) {
        self.signal_daemon(libc::SIGTERM);
    }

    fn signal_daemon(&mut self, signal: i32) {
        kill(listener(&self.socket()).unwrap(), signal);
        if let Some(mut daemon) = self.daemon.take() {
            daemon.wait().unwrap();
        }
    }

    /// The driver's process, as this test sees it.
    pub(crate) fn driver(&self) -> Option<i32> {
        listener(&socket_path(&self.layout()))
    }

    /// Kills the driver alone.
    pub(crate) fn kill_driver(&self) {
        kill(self.driver().unwrap(), libc::SIGKILL);
    }

    /// Everything that runs dies at once, and may be started again.
    pub(crate) fn kill_everything(&mut self) {
        self.end();
        // Its number may be another process's by now.
        let _ = std::fs::remove_file(self.home.join("app.pid"));
        (self.holder, self.init) = processes();
    }

    fn end(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
        if let Some(mut daemon) = self.daemon.take() {
            // What entered the namespace for it stops as it does.
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
        let init = format!("/proc/{}", self.init);
        wait_until(PATIENCE, || !Path::new(&init).exists());
        let modules = std::fs::read_dir(self.home.join("etc/modules"));
        for module in modules.into_iter().flatten().flatten() {
            process::detach(&self.vm().with_file_name(module.file_name()));
        }
    }

    /// Everything dies, and the operating system starts again.
    pub(crate) fn reboot(&mut self) {
        self.kill_everything();
        self.remembers("boot", "another one".into());
        harness::another_boot(&self.layout().state()).unwrap();
        self.start_daemon();
    }

    /// What the daemon remembers of the module.
    pub(crate) fn memory(&self) -> Value {
        let path = self.home.join("lib/vm/memory.json");
        serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
    }

    /// Changes it, while the daemon does not run.
    pub(crate) fn remembers(&self, what: &str, value: Value) {
        let mut memory = self.memory();
        memory[what] = value;
        std::fs::write(self.home.join("lib/vm/memory.json"), memory.to_string()).unwrap();
    }

    /// Stops all processes of the machine where they are, or lets them go on. Nothing of it
    /// answers meanwhile, its mount neither.
    pub(crate) fn freeze(&self, on: bool) {
        let namespace = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
        let own = namespace(&self.init.to_string()).unwrap();
        for entry in std::fs::read_dir("/proc").unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            let Ok(pid) = name.parse() else { continue };
            if namespace(&name).as_ref() == Some(&own) {
                kill(pid, if on { libc::SIGSTOP } else { libc::SIGCONT });
            }
        }
        if let (Some(daemon), false) = (&self.daemon, on) {
            // What entered the namespace for it stopped as it did.
            kill(daemon.id() as i32, libc::SIGCONT);
        }
    }

    /// The module as its daemon shows it.
    pub(crate) fn state(&self) -> Value {
        let (_, out, err) = self.cli(&["state", "-m", "vm", "--json"]);
        serde_json::from_str(&out).unwrap_or_else(|_| panic!("{}: {err}", self.name))
    }

    pub(crate) fn is(&self, state: &str, status: &str) -> bool {
        let now = self.state();
        now["state"] == state && now["status"] == status
    }

    pub(crate) fn wait(&self, state: &str, status: &str) {
        let (code, _, err) = self.cli(&[
            "waitstate",
            "-m",
            "vm",
            state,
            "--status",
            status,
            "--timeout",
            "60",
        ]);
        assert_eq!(code, 0, "{}: {err}\n{}", self.name, self.log());
    }

    /// The last events, and what the daemon and the driver said.
    pub(crate) fn log(&self) -> String {
        let read = |name: &str| {
            let text = std::fs::read(self.home.join(name)).unwrap_or_default();
            let text = String::from_utf8_lossy(&text).into_owned();
            let lines: Vec<_> = text.lines().collect();
            lines[lines.len().saturating_sub(60)..].join("\n")
        };
        format!(
            "--- daemon of {0}\n{1}\n--- driver of {0}\n{2}",
            self.name,
            read("daemon.log"),
            read("log/vm/driver.log")
        )
    }

    fn number(&self, name: &str) -> u64 {
        let text = std::fs::read_to_string(self.home.join(name)).unwrap_or_default();
        text.trim().parse().unwrap_or(0)
    }

    /// The last number that was acknowledged to the application here.
    pub(crate) fn acked(&self) -> u64 {
        self.number("acked")
    }

    /// The number that the application found when it was started last.
    pub(crate) fn found(&self) -> u64 {
        self.number("found")
    }

    /// What the application found here is all that the other one's was told: at most one more,
    /// that was under way.
    pub(crate) fn assert_found_all_of(&self, other: &Machine) {
        let (found, acked) = (self.found(), other.acked());
        assert!(
            found == acked || found == acked + 1,
            "{acked} was acknowledged, {found} was found"
        );
    }

    /// How often the application was started.
    pub(crate) fn starts(&self) -> usize {
        let text = std::fs::read_to_string(self.home.join("starts")).unwrap_or_default();
        text.lines().count()
    }

    /// Waits until the application here works.
    pub(crate) fn works(&self) {
        let before = self.acked();
        let works = wait_until(PATIENCE, || self.acked() > before);
        assert!(works, "{}: {}", self.name, self.log());
    }
}

/// Who listens on a Unix socket.
fn listener(path: &Path) -> Option<i32> {
    let stream = UnixStream::connect(path).ok()?;
    let peer = rustix::net::sockopt::socket_peercred(&stream).ok()?;
    Some(peer.pid.as_raw_nonzero().get())
}

pub(crate) fn kill(pid: i32, signal: i32) {
    // SAFETY: a system call on the process id of what listens on a socket of this test.
    unsafe { libc::kill(pid, signal) };
}

impl Drop for Machine {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.log());
        }
        self.end();
    }
}

impl Stage {
    /// Two machines that know each other, with a module whose folder is made; `service` are
    /// more attributes of it. The daemons run, the module does not.
    pub(crate) fn new(service: &str) -> Stage {
        Stage::with(service, |_| String::new())
    }

    /// The same, with more elements of the service for the machine with this directory.
    pub(crate) fn with(service: &str, more: impl Fn(&Path) -> String) -> Stage {
        Stage::on(Network::new().unwrap(), service, more, None)
    }

    /// The same, with one network and another one, for replication and heartbeats.
    pub(crate) fn with_two_networks(service: &str) -> Stage {
        let network = Network::with_second().unwrap();
        Stage::on(network, service, |_| String::new(), None)
    }

    /// The same, with more elements.
    pub(crate) fn with_two_networks_and(service: &str, more: &str) -> Stage {
        let network = Network::with_second().unwrap();
        Stage::on(network, service, |_| more.to_owned(), None)
    }

    /// The same, with the copy of one machine on a disk of its own.
    pub(crate) fn with_disk(number: usize, service: &str, more: impl Fn(&Path) -> String) -> Stage {
        Stage::on(Network::new().unwrap(), service, more, Some(number))
    }

    pub(crate) fn disk(&self) -> &ProgrammableDisk {
        self.disk.as_ref().expect("a machine has a disk of its own")
    }

    fn on(
        network: Network,
        service: &str,
        more: impl Fn(&Path) -> String,
        disk: Option<usize>,
    ) -> Stage {
        let scratch = Scratch::new();
        let directory = scratch.path();
        let folder = if disk.is_some() { "disk/vm" } else { "vm" };
        let disk = disk.map(|number| {
            let mut disk = ProgrammableDisk::new(&directory.join("parts"), DISK).unwrap();
            let machine = directory.join(["a", "b"][number]);
            std::fs::create_dir_all(&machine).unwrap();
            disk.mount(&machine.join("disk")).unwrap();
            disk
        });
        let machine =
            |name, end| Machine::new(name, directory, folder, network.namespace(end).unwrap());
        let mut stage = Stage {
            a: machine("a", 0),
            b: machine("b", 1),
            disk,
            network,
            _scratch: scratch,
        };
        let [a, b] = [0, 1].map(|n| stage.network.hosts(n));
        let lans: String = ["net", "replication"]
            .iter()
            .zip(a.iter().zip(&b))
            .map(|(lan, (a, b))| {
                format!(
                    "<lan name=\"{lan}\"><node name=\"a\" addr=\"{a}\"/>\
                     <node name=\"b\" addr=\"{b}\"/></lan>"
                )
            })
            .collect();
        let identities = [&stage.a, &stage.b].map(|m| m.must(&["cluster", "identity"]));
        for (n, machine) in [&stage.a, &stage.b].into_iter().enumerate() {
            write(
                &machine.home.join("etc/cluster.xml"),
                &format!("<cluster><lans port=\"4800\">{lans}</lans></cluster>"),
            );
            let peer = &identities[1 - n];
            let name = machine.name;
            machine.must(&["cluster", "pair", "--node", name, "--peer-identity", peer]);
            let module = machine.home.join("etc/modules/vm");
            let more = more(&machine.home);
            // The same on both nodes: the directories of the two machines are in a macro.
            let heart = "<heart timeout=\"3s\"/>";
            let rfs = format!("<rfs><replicated dir=\"%HOME_OF_TEST%/{folder}\"/></rfs>");
            write(
                &module.join("userconfig.xml"),
                &format!(
                    "<safe><service mode=\"mirror\" {service}>{}{more}{}</service></safe>",
                    if more.contains("<heart") { "" } else { heart },
                    if more.contains("<rfs") { "" } else { &rfs }
                ),
            );
            executable(&module.join("bin/app"), APP);
            executable(&module.join("bin/start_prim"), START);
            executable(&module.join("bin/stop_prim"), STOP);
        }
        stage.make_folders("vm", 0);
        stage.a.start_daemon();
        stage.b.start_daemon();
        stage
    }

    /// Makes the folders of a module, whose drivers listen at a port so far behind the first.
    pub(crate) fn make_folders(&self, name: &str, port: u16) {
        self.make_folders_with(name, port, &[]);
    }

    /// The same, with more options.
    pub(crate) fn make_folders_with(&self, name: &str, port: u16, more: &[&str]) {
        let both = [&self.a, &self.b];
        let identities = both.map(|m| m.must(&["cluster", "identity"]));
        let at = |n: usize| {
            let mut address = self.network.address(n);
            address.set_port(address.port() + port);
            address.to_string()
        };
        for (n, machine) in both.into_iter().enumerate() {
            let folder = machine.vm().with_file_name(name);
            std::fs::create_dir_all(&folder).unwrap();
            let folder = folder.display().to_string();
            let init = [
                "fs",
                "init",
                &folder,
                ["--good-copy", "--from-peer"][n],
                "--identity",
                &machine.home.join("etc").display().to_string(),
                "--listen",
                &at(n),
                "--peer",
                &at(1 - n),
                "--peer-id",
                &identities[1 - n],
                "--name",
                name,
            ];
            machine.must(&[&init[..], more].concat());
        }
    }

    /// The same, with A as PRIM, B as SECOND, and the application working.
    pub(crate) fn running(service: &str) -> Stage {
        Stage::new(service).run()
    }

    /// A becomes PRIM, B SECOND, and the application works.
    pub(crate) fn run(self) -> Stage {
        let stage = self;
        // What starts with its node may be so already, and then refuses these words.
        stage.a.cli(&["prim", "-m", "vm"]);
        stage.b.cli(&["second", "-m", "vm"]);
        stage.a.wait("PRIM", "Ready");
        stage.b.wait("SECOND", "Ready");
        stage.a.works();
        stage
    }

    /// Both machines lose their power in the same moment.
    pub(crate) fn lose_power(&mut self) {
        self.a.freeze(true);
        self.b.freeze(true);
        self.a.kill_everything();
        self.b.kill_everything();
    }

    /// The application comes to rest, and both copies have to be what the other one is.
    pub(crate) fn assert_identical(self) {
        for machine in [&self.a, &self.b] {
            std::fs::write(machine.home.join("acked.stop"), "").unwrap();
        }
        let settled = |machine: &Machine| {
            control::ask(&machine.layout(), control::Request::Status)
                .is_ok_and(|s| s.is_some_and(|s| s["link"] == "paired" && s["settled"] == true))
        };
        let rests = |machine: &Machine| {
            let before = machine.acked();
            std::thread::sleep(Duration::from_millis(300));
            machine.acked() == before
        };
        let both = [&self.a, &self.b];
        // What was settled before the last write is not yet.
        let quiet = || both.into_iter().all(rests) && both.into_iter().all(settled);
        assert!(wait_until(PATIENCE, quiet), "{}", self.a.log());
        // The one that follows first, or it would take over. Its daemon knows it a moment later.
        let follows = |machine: &&Machine| machine.state()["state"] == "SECOND";
        let mut second = None;
        let one = wait_until(PATIENCE, || {
            second = both.into_iter().find(follows);
            second.is_some()
        });
        assert!(one, "nobody follows: {}", self.a.log());
        let second = second.unwrap();
        let first = both.into_iter().find(|m| m.name != second.name).unwrap();
        for machine in [second, first] {
            machine.must(&["stop", "-m", "vm"]);
            machine.wait("STOP", "NotReady");
        }
        let read = |machine: &Machine| {
            harness::Tree::read(&machine.data(), harness::Scope::Store).unwrap()
        };
        let (a, b) = (read(&self.a), read(&self.b));
        let found = harness::differences("store", &a, &b);
        assert!(found.is_empty(), "{found:?}");
    }
}
