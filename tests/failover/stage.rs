//! Two machines: each a network namespace and a process namespace of its own, with a daemon,
//! one module and an application that counts.
//!
//! What is started in a machine ends with its process namespace, and that with the test.

use std::fs::File;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use fs_driver::control::{self, socket_path};
use fs_driver::store::Layout;
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

const START: &str = r#"#!/bin/sh
cat "$TWINFOLD_FOLDERS/count" >"$HOME_OF_TEST/found" 2>/dev/null || echo 0 >"$HOME_OF_TEST/found"
"$TWINFOLD_BIN/app" "$TWINFOLD_FOLDERS" "$HOME_OF_TEST/acked" </dev/null >/dev/null 2>&1 &
echo $! >"$HOME_OF_TEST/app.pid"
echo start >>"$HOME_OF_TEST/starts"
"#;

const STOP: &str = r#"#!/bin/sh
[ "$1" = force ] && shift
pid=$(cat "$HOME_OF_TEST/app.pid") || exit 0
kill "$pid" 2>/dev/null
while kill -0 "$pid" 2>/dev/null; do sleep 0.01; done
exit 0
"#;

/// One machine.
#[derive(Debug)]
pub(crate) struct Machine {
    name: &'static str,
    home: PathBuf,
    network: File,
    /// Holds the process namespace, whose first process is the number.
    holder: Child,
    init: u32,
    daemon: Option<Child>,
}

/// Two machines.
#[derive(Debug)]
pub(crate) struct Stage {
    pub(crate) a: Machine,
    pub(crate) b: Machine,
    pub(crate) network: Network,
    _scratch: Scratch,
}

fn controller() -> PathBuf {
    process::program("controller").unwrap()
}

fn write(path: &Path, text: &str) {
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
    fn new(name: &'static str, directory: &Path, network: File) -> Machine {
        let home = directory.join(name);
        std::fs::create_dir_all(home.join("vm")).unwrap();
        let (holder, init) = processes();
        Machine {
            name,
            home,
            network,
            holder,
            init,
            daemon: None,
        }
    }

    pub(crate) fn vm(&self) -> PathBuf {
        self.home.join("vm")
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.layout().data()
    }

    fn layout(&self) -> Layout {
        Layout::new(self.home.join(".vm.twinfold"))
    }

    pub(crate) fn home(&self) -> &Path {
        &self.home
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.home.join("run/twinfold.sock")
    }

    /// Runs a command of the controller; its exit status, output and complaint.
    pub(crate) fn cli(&self, arguments: &[&str]) -> (i32, String, String) {
        let output = Command::new(controller())
            .arg("--home")
            .arg(&self.home)
            .args(arguments)
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

    /// Starts the daemon, which finds everything configured, and waits until it answers.
    pub(crate) fn start_daemon(&mut self) {
        let log = File::options()
            .append(true)
            .create(true)
            .open(self.home.join("daemon.log"))
            .unwrap();
        let mut command = Command::new("nsenter");
        command
            .args(["--target", &self.init.to_string(), "--pid", "--"])
            .arg(controller())
            .arg("--home")
            .arg(&self.home)
            .arg("daemon")
            .env("HOME_OF_TEST", &self.home)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        harness::enter(&mut command, &self.network).unwrap();
        self.daemon = Some(process::start(command).unwrap());
        let up = wait_until(PATIENCE, || self.cli(&["state"]).0 == 0);
        assert!(up, "{}: {}", self.name, self.log());
    }

    /// Kills the daemon alone.
    pub(crate) fn kill_daemon(&mut self) {
        kill(listener(&self.socket()).unwrap(), libc::SIGKILL);
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
            let _ = daemon.wait();
        }
        let init = format!("/proc/{}", self.init);
        wait_until(PATIENCE, || !Path::new(&init).exists());
        process::detach(&self.vm());
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

fn kill(pid: i32, signal: i32) {
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
        let scratch = Scratch::new();
        let network = Network::new().unwrap();
        let directory = scratch.path();
        let machine = |name, end| Machine::new(name, directory, network.namespace(end).unwrap());
        let mut stage = Stage {
            a: machine("a", 0),
            b: machine("b", 1),
            network,
            _scratch: scratch,
        };
        let hosts = [0, 1].map(|n| stage.network.address(n).ip());
        let identities = [&stage.a, &stage.b].map(|m| m.must(&["cluster", "identity"]));
        for (n, machine) in [&stage.a, &stage.b].into_iter().enumerate() {
            write(
                &machine.home.join("etc/cluster.xml"),
                &format!(
                    "<cluster><lans port=\"4800\"><lan name=\"net\">\
                     <node name=\"a\" addr=\"{}\"/><node name=\"b\" addr=\"{}\"/>\
                     </lan></lans></cluster>",
                    hosts[0], hosts[1]
                ),
            );
            let peer = &identities[1 - n];
            let name = machine.name;
            machine.must(&["cluster", "pair", "--node", name, "--peer-identity", peer]);
            let module = machine.home.join("etc/modules/vm");
            write(
                &module.join("userconfig.xml"),
                &format!(
                    "<safe><service mode=\"mirror\" {service}><heart timeout=\"3s\"/>{}\
                     <rfs><replicated dir=\"{}\"/></rfs>\
                     <user nicestoptimeout=\"5s\" forcestoptimeout=\"5s\"/></service></safe>",
                    more(&machine.home),
                    machine.vm().display()
                ),
            );
            executable(&module.join("bin/app"), APP);
            executable(&module.join("bin/start_prim"), START);
            executable(&module.join("bin/stop_prim"), STOP);
            let vm = machine.vm().display().to_string();
            let etc = machine.home.join("etc").display().to_string();
            let at = |n: usize| stage.network.address(n).to_string();
            let from = ["--good-copy", "--from-peer"][n];
            machine.must(&[
                "fs",
                "init",
                &vm,
                from,
                "--identity",
                &etc,
                "--listen",
                &at(n),
                "--peer",
                &at(1 - n),
                "--peer-id",
                peer,
                "--name",
                "vm",
            ]);
        }
        stage.a.start_daemon();
        stage.b.start_daemon();
        stage
    }

    /// The same, with A as PRIM, B as SECOND, and the application working.
    pub(crate) fn running(service: &str) -> Stage {
        Stage::new(service).run()
    }

    /// A becomes PRIM, B SECOND, and the application works.
    pub(crate) fn run(self) -> Stage {
        let stage = self;
        stage.a.must(&["prim", "-m", "vm"]);
        stage.b.must(&["second", "-m", "vm"]);
        stage.a.wait("PRIM", "Ready");
        stage.b.wait("SECOND", "Ready");
        stage.a.works();
        stage
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
        let quiet = || both.into_iter().all(|m| rests(m) && settled(m));
        assert!(wait_until(PATIENCE, quiet), "{}", self.a.log());
        // The one that follows first, or it would take over.
        let follows = |machine: &&Machine| machine.state()["state"] == "SECOND";
        let second = both.into_iter().find(follows).expect("one follows");
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
