//! Between two machines: network namespaces with a cable between them. One serves, the other
//! one measures. No figure is judged here.

// A test's helpers fail the test.
#![allow(clippy::unwrap_used)]

mod common;

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use common::{bench, end, start, wait_until};
use serde_json::Value;

/// The addresses of the two ends of the cable: the first one measures.
const ADDRESSES: [&str; 2] = ["10.79.0.1", "10.79.0.2"];

/// A process that ends with the value.
struct Owned(Child);

impl Drop for Owned {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Two machines and what they keep on their disks.
struct Machines {
    holders: [Owned; 2],
    dir: tempfile::TempDir,
}

/// A namespace, held by a process that does nothing.
fn namespace() -> Owned {
    let mut command = Command::new("unshare");
    let holder = Owned(command.args(["--net", "sleep", "3600"]).spawn().unwrap());
    let net = |id: &str| std::fs::read_link(format!("/proc/{id}/ns/net")).ok();
    let id = holder.0.id().to_string();
    let own = || net(&id).is_some() && net(&id) != net("self");
    assert!(wait_until(own), "no network namespace");
    holder
}

impl Machines {
    fn new() -> Machines {
        let machines = Machines {
            holders: [namespace(), namespace()],
            dir: tempfile::tempdir_in("/var/tmp").unwrap(),
        };
        let other = machines.holders[1].0.id();
        let cable = format!("link add cable type veth peer name cable netns {other}");
        machines.ip(0, &cable);
        for (end, address) in ADDRESSES.iter().enumerate() {
            machines.ip(end, "link set lo up");
            machines.ip(end, &format!("addr add {address}/24 dev cable"));
            machines.ip(end, "link set cable up");
            std::fs::create_dir(machines.place(end)).unwrap();
        }
        machines
    }

    fn ip(&self, end: usize, what: &str) {
        let status = self.on(end, "ip").args(what.split(' ')).status().unwrap();
        assert!(status.success(), "ip {what}");
    }

    /// A command on a machine.
    fn on(&self, end: usize, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        let holder = self.holders[end].0.id().to_string();
        command.args(["-t", &holder, "-n", program]);
        command
    }

    fn place(&self, end: usize) -> PathBuf {
        self.dir.path().join(["a", "b"][end])
    }

    /// What is below a machine's directory.
    fn left(&self, end: usize) -> Vec<String> {
        names(&self.place(end))
    }

    /// Bytes that have come over the cable to the machine that serves.
    fn arrived(&self) -> u64 {
        let output = self
            .on(1, "cat")
            .arg("/proc/self/net/dev")
            .output()
            .unwrap();
        let table = String::from_utf8(output.stdout).unwrap();
        let line = table.lines().find_map(|l| l.trim().strip_prefix("cable:"));
        let first = line.unwrap().split_whitespace().next().unwrap();
        first.parse().unwrap()
    }

    /// A run here with the other machine there.
    fn run(&self, serving: &Serving, args: &[&str]) -> Child {
        let mut command = self.on(0, env!("CARGO_BIN_EXE_twinfold-bench"));
        command.args(["run", "--rounds=1", "--file-mib=4", "--resync-mib=24"]);
        command.args(["--peer", &serving.address, "--token", &serving.token]);
        command.arg("--dir").arg(self.place(0));
        command.arg("--out").arg(self.dir.path().join("report"));
        start({
            command.args(args);
            command
        })
    }
}

impl Drop for Machines {
    fn drop(&mut self) {
        for mount in mounts(self.dir.path()) {
            let _ = Command::new("umount").arg("-l").arg(mount).status();
        }
    }
}

fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten();
    let name = |e: std::fs::DirEntry| e.file_name().to_string_lossy().into_owned();
    entries.map(|e| name(e.unwrap())).collect()
}

/// The mounts below a directory.
fn mounts(dir: &Path) -> Vec<PathBuf> {
    let table = std::fs::read_to_string("/proc/self/mounts").unwrap();
    let points = table.lines().filter_map(|l| l.split(' ').nth(1));
    let below = points.map(PathBuf::from).filter(|p| p.starts_with(dir));
    below.collect()
}

/// Processes of the program that were told of something below a directory.
fn processes(dir: &Path) -> Vec<String> {
    let dir = format!("{}/", dir.display());
    let of = |entry: std::io::Result<std::fs::DirEntry>| {
        let line = std::fs::read(entry.ok()?.path().join("cmdline")).ok()?;
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        line.contains(&dir).then_some(line)
    };
    std::fs::read_dir("/proc").unwrap().filter_map(of).collect()
}

/// The machine that serves.
struct Serving {
    process: Owned,
    address: String,
    token: String,
    said: Arc<Mutex<String>>,
}

impl Serving {
    fn start(machines: &Machines, port: u16) -> Serving {
        let mut command = machines.on(1, env!("CARGO_BIN_EXE_twinfold-bench"));
        let listen = format!("0.0.0.0:{port}");
        command.args(["serve", "--listen", &listen, "--dir"]);
        command.arg(machines.place(1));
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut process = Owned(command.spawn().unwrap());
        let said: Arc<Mutex<String>> = Arc::default();
        let heard = said.clone();
        let lines = BufReader::new(process.0.stdout.take().unwrap()).lines();
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                *heard.lock().unwrap() += &format!("{line}\n");
            }
        });
        let word = |behind: &str| {
            let said = said.lock().unwrap();
            let mut words = said.split_whitespace().skip_while(|w| *w != behind);
            words.nth(1).map(str::to_owned)
        };
        assert!(wait_until(|| said.lock().unwrap().contains("Ctrl-C")));
        Serving {
            address: word("--peer").unwrap(),
            token: word("--token").unwrap(),
            process,
            said,
        }
    }

    fn said(&self) -> String {
        self.said.lock().unwrap().clone()
    }

    /// Everything of a run is ended and removed, but the folder of this process is there.
    fn is_empty(&self, machines: &Machines) -> bool {
        let own = format!("twinfold-bench.{}", self.process.0.id());
        mounts(&machines.place(1)).is_empty()
            && machines.left(1) == [own.as_str()]
            && names(&machines.place(1).join(own)).is_empty()
            && processes(&machines.place(1)).is_empty()
    }

    /// Ends it as an operator does.
    fn end(mut self) {
        let id = self.process.0.id().to_string();
        Command::new("kill").arg(id).status().unwrap();
        let mut code = None;
        let ended = wait_until(|| {
            code = self.process.0.try_wait().unwrap();
            code.is_some()
        });
        assert!(ended && code.unwrap().success(), "{}", self.said());
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Every workload was done on everything that can be done between two machines.
fn check_cells(report: &Value) {
    for (workload, systems) in [
        ("round-trip-4k", vec!["quic", "tcp"]),
        ("stream", vec!["quic", "tcp"]),
        (
            "write-4k-d1",
            vec!["bare", "plain", "twinfold", "flush", "alone", "quic"],
        ),
        (
            "fsync-4k-d1",
            vec!["bare", "plain", "twinfold", "flush", "alone", "quic"],
        ),
        ("write-4k-d1-resync", vec!["twinfold"]),
    ] {
        let rows = report["workloads"].as_array().unwrap();
        let row = rows.iter().find(|r| r["name"] == workload).unwrap();
        let cells = row["cells"].as_array().unwrap();
        let measured: Vec<_> = cells
            .iter()
            .map(|c| c["system"].as_str().unwrap())
            .collect();
        assert_eq!(measured, systems, "{workload}");
        for cell in cells {
            assert!(cell["rounds"][0]["ops"].as_u64().unwrap() > 0, "{workload}");
        }
    }
}

#[test]
fn a_run_between_two_machines_measures_with_the_secondary_there() {
    let machines = Machines::new();
    let serving = Serving::start(&machines, 4850);
    assert_eq!(serving.address, format!("{}:4850", ADDRESSES[1]));
    let before = machines.arrived();
    let only = "--only=write-4k-d1,fsync-4k-d1,round-trip,stream";
    let ran = end(machines.run(&serving, &["--millis=40", only]));
    let told = text(&ran.stdout);
    assert!(ran.status.success(), "{told}{}", text(&ran.stderr));
    // What was sent has gone over the cable: the resync alone is as much.
    assert!(machines.arrived() - before > 24 << 20);
    let path = machines.dir.path().join("report");
    let report = std::fs::read_to_string(path.join("report.json")).unwrap();
    let report: Value = serde_json::from_str(&report).unwrap();
    assert_eq!(report["failures"], serde_json::json!([]));
    check_cells(&report);
    let there = &report["there"];
    assert_eq!(there["address"], serving.address.as_str());
    assert!(there["round_trip"].as_f64().unwrap() > 0.0);
    assert!(there["differs"].is_null());
    for key in ["kernel", "cores", "commit", "program"] {
        assert_eq!(there["machine"][key], report["machine"][key], "{key}");
        assert!(!there["machine"][key].is_null(), "{key}");
    }
    for system in ["gluster", "strict"] {
        let why = report["absent"][system].as_str().unwrap();
        assert!(why.contains("one machine"), "{system}: {why}");
    }
    let memory = report["memory"].as_array().unwrap();
    let held = |system: &str, process: &str| {
        let of = |m: &&Value| m["system"] == system && m["process"] == process;
        memory
            .iter()
            .find(of)
            .map_or(0, |m| m["bytes"].as_u64().unwrap())
    };
    for (system, process) in [
        ("twinfold", "secondary"),
        ("flush", "secondary"),
        ("quic", "server"),
        ("tcp", "server"),
    ] {
        assert!(held(system, process) > 0, "{system}: {memory:?}");
    }
    assert_eq!(held("alone", "secondary"), 0);
    assert!(
        told.contains(&format!("the other machine, {}:", serving.address)),
        "{told}"
    );
    let page = std::fs::read_to_string(path.join("report.html")).unwrap();
    assert!(page.contains("Between two machines"));
    assert!(machines.left(0).is_empty(), "{:?}", machines.left(0));
    let mut said = String::new();
    let empty = wait_until(|| {
        said = serving.said();
        said.contains("is done") && serving.is_empty(&machines)
    });
    assert!(empty, "{said}{:?}", machines.left(1));
    serving.end();
    assert!(machines.left(1).is_empty(), "{:?}", machines.left(1));
}

#[test]
fn a_token_of_another_one_is_refused_and_nothing_is_started() {
    let machines = Machines::new();
    let serving = Serving::start(&machines, 4850);
    let other = Serving::start(&machines, 4900);
    let wrong = Serving {
        token: other.token.clone(),
        address: serving.address.clone(),
        process: Owned(Command::new("true").spawn().unwrap()),
        said: Arc::default(),
    };
    let ran = end(machines.run(&wrong, &["--only=write-4k-d1"]));
    assert_eq!(ran.status.code(), Some(2), "{}", text(&ran.stdout));
    let said = text(&ran.stderr);
    assert!(said.contains("is not what printed the token"), "{said}");
    assert!(!serving.said().contains("measures"), "{}", serving.said());
    assert!(machines.left(0).is_empty(), "{:?}", machines.left(0));
    other.end();
    assert!(serving.is_empty(&machines), "{:?}", machines.left(1));
    serving.end();
}

#[test]
fn a_token_with_a_slip_and_a_peer_without_a_token_are_told() {
    let slip = bench(&["run", "--peer=10.79.0.2:4850", "--token=tfb1-00"]);
    assert_eq!(slip.status.code(), Some(2));
    let said = text(&slip.stderr);
    assert!(
        said.contains("was mistyped") || said.contains("not complete"),
        "{said}"
    );
    let none = bench(&["run", "--peer=10.79.0.2:4850"]);
    assert_eq!(none.status.code(), Some(2));
    assert!(text(&none.stderr).contains("--token"));
}

#[test]
fn the_machine_that_serves_cleans_up_behind_a_run_that_is_killed() {
    let machines = Machines::new();
    let serving = Serving::start(&machines, 4850);
    let mut run = machines.run(&serving, &["--millis=60000", "--only=write-4k-d1"]);
    let both = || (0..2).all(|end| !mounts(&machines.place(end)).is_empty());
    assert!(wait_until(both), "the nodes do not start");
    run.kill().unwrap();
    run.wait().unwrap();
    assert!(
        wait_until(|| serving.is_empty(&machines)),
        "{}",
        serving.said()
    );
    // It says so when it has cleaned up.
    let told = || serving.said().contains("is gone");
    assert!(wait_until(told), "{}", serving.said());
    let again = ["--millis=40", "--only=round-trip-4k"];
    let ran = end(machines.run(&serving, &again));
    assert!(ran.status.success(), "{}", text(&ran.stderr));
    serving.end();
}

#[test]
fn a_run_ends_and_cleans_up_when_the_other_machine_is_gone() {
    let machines = Machines::new();
    let mut serving = Serving::start(&machines, 4850);
    let mut run = machines.run(&serving, &["--millis=2000", "--only=write-4k-d1"]);
    let both = || (0..2).all(|end| !mounts(&machines.place(end)).is_empty());
    assert!(wait_until(both), "the nodes do not start");
    assert!(run.try_wait().unwrap().is_none());
    serving.process.0.kill().unwrap();
    serving.process.0.wait().unwrap();
    let ran = end(run);
    let said = text(&ran.stderr);
    assert_eq!(ran.status.code(), Some(2), "{said}");
    assert!(said.contains("the other machine is lost"), "{said}");
    assert!(machines.left(0).is_empty(), "{:?}", machines.left(0));
    let of_it = || processes(&machines.place(1)).is_empty();
    assert!(wait_until(of_it), "{:?}", processes(&machines.place(1)));
}
