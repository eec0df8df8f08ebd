//! Two nodes that replicate a folder, as processes of their own.

use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use fs_driver::control::{self, Request};

use crate::process::Process;

/// How long the nodes may take to pair.
const PATIENCE: Duration = Duration::from_secs(30);

/// Free UDP ports on loopback.
pub(crate) fn ports<const N: usize>() -> Result<[u16; N]> {
    let sockets: Vec<UdpSocket> = (0..N)
        .map(|_| UdpSocket::bind("127.0.0.1:0"))
        .collect::<Result<_, _>>()?;
    let mut out = [0; N];
    for (port, socket) in out.iter_mut().zip(&sockets) {
        *port = socket.local_addr()?.port();
    }
    Ok(out)
}

/// Two nodes that replicate a folder.
#[derive(Debug)]
pub(crate) struct Pair {
    /// The primary's mount.
    pub(crate) mount: PathBuf,
    /// The two drivers, primary first.
    pub(crate) drivers: [Process; 2],
    dir: PathBuf,
}

/// Starts node `n`.
fn driver(dir: &Path, n: &str, role: &str) -> Result<Process> {
    let (mount, id) = (dir.join(n).join("vm"), dir.join(n).join("id"));
    let (mount_text, id) = (mount.to_string_lossy(), id.to_string_lossy());
    let args = ["fs", role, &mount_text, "--identity", &id];
    Process::start(&args, Some(&mount), &dir.join(format!("{n}.log")))
}

fn fs(args: &[&str]) -> Result<String> {
    let out = Command::new(std::env::current_exe()?)
        .arg("fs")
        .args(args)
        .output()?;
    if !out.status.success() {
        bail!("{}", String::from_utf8_lossy(&out.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&out.stdout).trim().to_owned())
}

impl Pair {
    /// Makes and starts two nodes below `dir`, and waits until they are paired.
    pub(crate) fn start(dir: &Path, ack: &str) -> Result<Pair> {
        let [pa, pb] = ports()?;
        let side = |n: &str| dir.join(n);
        let text = |p: PathBuf| p.to_string_lossy().into_owned();
        let mut ids = Vec::new();
        for n in ["a", "b"] {
            std::fs::create_dir_all(side(n).join("vm"))?;
            ids.push(fs(&["identity", "--identity", &text(side(n).join("id"))])?);
        }
        for (n, me, other, id, copy) in [
            ("a", pa, pb, &ids[1], "--good-copy"),
            ("b", pb, pa, &ids[0], "--from-peer"),
        ] {
            fs(&[
                "init",
                &text(side(n).join("vm")),
                "--identity",
                &text(side(n).join("id")),
                copy,
                "--listen",
                &format!("127.0.0.1:{me}"),
                "--peer",
                &format!("127.0.0.1:{other}"),
                "--peer-id",
                id,
                "--ack",
                ack,
            ])?;
        }
        let drivers = [driver(dir, "a", "primary")?, driver(dir, "b", "secondary")?];
        let mount = side("a").join("vm");
        let until = Instant::now() + PATIENCE;
        loop {
            let status = fs(&["status", "--json", &text(mount.clone())]);
            if status.is_ok_and(|s| s.contains("\"link\":\"paired\"")) {
                let dir = dir.to_owned();
                return Ok(Pair {
                    mount,
                    drivers,
                    dir,
                });
            }
            if Instant::now() > until {
                bail!("the two nodes did not pair; see {}", dir.display());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Pair {
    /// Stops the secondary in order; the primary goes on alone.
    pub(crate) fn stop_secondary(&mut self) -> Result<()> {
        fs(&["stop", &self.dir.join("b/vm").to_string_lossy()])?;
        let until = Instant::now() + PATIENCE;
        while self.status()?["link"] != "alone" {
            if Instant::now() > until {
                bail!("the primary does not go on alone");
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Starts the secondary again.
    pub(crate) fn start_secondary(&mut self) -> Result<()> {
        self.drivers[1] = driver(&self.dir, "b", "secondary")?;
        Ok(())
    }

    /// What the primary tells.
    pub(crate) fn status(&self) -> Result<serde_json::Value> {
        let layout = fs_driver::store::Layout::new(self.dir.join("a/.vm.twinfold"));
        control::ask(&layout, Request::Status)?.context("the driver told no state")
    }
}
