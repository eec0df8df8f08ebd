//! `GlusterFS`, replica 2: two servers, each in a machine of its own as far as it can tell
//! (network, processes, and the directories it keeps its state in), a cable between them,
//! and a client beside the first one. It refuses loopback addresses, hence the networks.
//!
//! The volume has the settings a new volume has. With them its client acknowledges a write
//! before a server has it (write-behind), so it promises less than a replicated folder
//! does until a program calls fsync. A strict one does without that.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::process::Process;

/// The programs of the packages.
const PROGRAMS: [&str; 6] = [
    "glusterd",
    "gluster",
    "glusterfs",
    "unshare",
    "nsenter",
    "ip",
];

/// Addresses of the two servers on their cable.
const ADDRESSES: [&str; 2] = ["10.78.0.1", "10.78.0.2"];

/// How long a server may take to answer, and a command to be carried out, in seconds.
const PATIENCE: u64 = 60;

/// What a server's machine begins with: state of its own, gone with it.
const SERVER: &str = "mount --make-rprivate / && \
    for d in /var/lib/glusterd /run /var/log/glusterfs; do \
        mkdir -p $d && mount -t tmpfs tmpfs $d || exit 1; done && \
    mkdir -p /run/gluster && ip link set lo up && \
    exec glusterd -N --log-level WARNING";

/// A volume on two servers.
#[derive(Debug)]
pub(super) struct Gluster {
    mount: PathBuf,
    client: Process,
    servers: [Process; 2],
}

/// Where a program lies, if it is installed.
fn installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .any(|dir| dir.join(program).is_file())
}

/// Starts a server in a machine of its own; it and all that it starts ends with it.
fn server(dir: &Path, name: &str) -> Result<Process> {
    std::fs::create_dir_all(dir.join(name).join("brick"))?;
    let mut command = Command::new("unshare");
    command
        .args([
            "--net",
            "--mount",
            "--pid",
            "--fork",
            "--kill-child",
            "--mount-proc",
        ])
        .args(["sh", "-c", SERVER]);
    Process::spawn(command, None, &dir.join(format!("{name}.log")))
}

fn run(program: &str, args: &[&str]) -> Result<Output> {
    let output = Command::new("timeout")
        .arg(PATIENCE.to_string())
        .arg(program)
        .args(args)
        .output()
        .with_context(|| format!("cannot run {program}"))?;
    ensure!(
        output.status.success(),
        "{program} {}: {}{}",
        args.join(" "),
        String::from_utf8_lossy(&output.stdout).trim(),
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(output)
}

/// Runs a command in the network of a server.
fn in_network(of: &Process, command: &[&str]) -> Result<Output> {
    let target = of.id().to_string();
    let mut args = vec!["-t", &target, "-n"];
    args.extend(command);
    run("nsenter", &args)
}

/// The processes that a process has started.
fn children(of: u32) -> Vec<u32> {
    let list = format!("/proc/{of}/task/{of}/children");
    let list = std::fs::read_to_string(list).unwrap_or_default();
    list.split_whitespace()
        .filter_map(|n| n.parse().ok())
        .collect()
}

/// And those that these have started.
fn family(of: u32) -> Vec<u32> {
    let mut all = children(of);
    let mut next = 0;
    while let Some(one) = all.get(next).copied() {
        all.extend(children(one));
        next += 1;
    }
    all
}

fn name(id: u32) -> String {
    let name = std::fs::read_to_string(format!("/proc/{id}/comm"));
    name.unwrap_or_default().trim().to_owned()
}

/// Asks the first server's daemon until it does it.
fn ask(server: &Process, words: &[&str]) -> Result<()> {
    let until = Instant::now() + Duration::from_secs(PATIENCE);
    loop {
        let done = match children(server.id()).first() {
            // The whole machine of the daemon, down to its list of processes.
            Some(daemon) => {
                let target = daemon.to_string();
                let mut args = vec!["-t", &target, "-n", "-m", "-p", "gluster", "--mode=script"];
                args.extend(words);
                run("nsenter", &args).map(drop)
            }
            None => bail!("the server ended"),
        };
        match done {
            Ok(()) => return Ok(()),
            Err(e) if Instant::now() > until => return Err(e),
            Err(_) => std::thread::sleep(Duration::from_millis(200)),
        }
    }
}

impl Gluster {
    /// Starts it, or says why it cannot run here.
    pub(super) fn start(dir: &Path, strict: bool) -> Result<Result<Gluster, String>> {
        let missing: Vec<&str> = PROGRAMS.into_iter().filter(|p| !installed(p)).collect();
        if !missing.is_empty() {
            let missing = missing.join(", ");
            return Ok(Err(format!(
                "not installed: {missing}; the packages are glusterfs-server, \
                 glusterfs-client, util-linux and iproute2"
            )));
        }
        let servers = [server(dir, "a")?, server(dir, "b")?];
        cable(&servers)?;
        ask(&servers[0], &["peer", "probe", ADDRESSES[1]])?;
        let brick = |n: usize, name: &str| {
            let path = dir.join(name).join("brick");
            format!("{}:{}", ADDRESSES[n], path.display())
        };
        let (one, two) = (brick(0, "a"), brick(1, "b"));
        ask(
            &servers[0],
            &[
                "volume", "create", "bench", "replica", "2", &one, &two, "force",
            ],
        )?;
        if strict {
            let option = "performance.write-behind";
            ask(&servers[0], &["volume", "set", "bench", option, "off"])?;
        }
        ask(&servers[0], &["volume", "start", "bench"])?;
        let mount = dir.join("mount");
        std::fs::create_dir_all(&mount)?;
        let client = client(&servers[0], dir, &mount)?;
        super::wait_for_mount(&mount).with_context(|| super::words(&dir.join("client.log")))?;
        let gluster = Gluster {
            mount,
            client,
            servers,
        };
        gluster.wait_for_both(dir)?;
        Ok(Ok(gluster))
    }

    /// Waits until a file that is written is on both servers.
    fn wait_for_both(&self, dir: &Path) -> Result<()> {
        let until = Instant::now() + Duration::from_secs(PATIENCE);
        let on = |name: &str, file: &str| dir.join(name).join("brick").join(file).exists();
        for n in 0.. {
            let file = format!("here-{n}");
            std::fs::write(self.mount.join(&file), b"here")?;
            let both = on("a", &file) && on("b", &file);
            std::fs::remove_file(self.mount.join(&file))?;
            if both {
                break;
            }
            ensure!(Instant::now() < until, "it does not replicate");
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    }

    pub(super) fn mount(&self) -> &Path {
        &self.mount
    }

    /// All processes but the shells around them.
    pub(super) fn processes(&self) -> Vec<(String, u32)> {
        let mut all = vec![("client".to_owned(), self.client.id())];
        for (server, title) in self.servers.iter().zip(["first", "second"]) {
            for id in family(server.id()) {
                all.push((format!("{title} {}", name(id)), id));
            }
        }
        all
    }
}

/// Connects the two networks.
fn cable(servers: &[Process; 2]) -> Result<()> {
    let until = Instant::now() + Duration::from_secs(PATIENCE);
    // Until the server has a network of its own, this would be ours.
    let own = |server: &Process| {
        let net = |id: &str| std::fs::read_link(format!("/proc/{id}/ns/net")).ok();
        let theirs = net(&server.id().to_string());
        theirs.is_some() && theirs != net("self") && !children(server.id()).is_empty()
    };
    while !servers.iter().all(own) {
        ensure!(Instant::now() < until, "the servers do not start");
        std::thread::sleep(Duration::from_millis(20));
    }
    let other = servers[1].id().to_string();
    let link = [
        "ip", "link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns",
    ];
    in_network(&servers[0], &[&link[..], &[&other]].concat())?;
    for (server, address) in servers.iter().zip(ADDRESSES) {
        let address = format!("{address}/24");
        in_network(server, &["ip", "addr", "add", &address, "dev", "cable"])?;
        in_network(server, &["ip", "link", "set", "cable", "up"])?;
    }
    Ok(())
}

/// Mounts the volume, in our view of the file system and the first server's network.
fn client(server: &Process, dir: &Path, mount: &Path) -> Result<Process> {
    let mut command = Command::new("nsenter");
    command
        .args(["-t", &server.id().to_string(), "-n"])
        .args([
            "glusterfs",
            "-N",
            "-s",
            ADDRESSES[0],
            "--volfile-id",
            "bench",
        ])
        .args(["--log-level", "WARNING", "--log-file"])
        .arg(dir.join("client.log"))
        .arg(mount);
    Process::spawn(command, Some(mount), &dir.join("client.out"))
}
