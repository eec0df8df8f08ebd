//! Two nodes and the floors as processes of their own, ended and cleaned up with
//! the value that holds them.

use std::net::UdpSocket;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use fs_driver::control::{self, Request};

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

/// A process that does not outlive this one, and the mount it may have.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    mount: Option<PathBuf>,
}

impl Process {
    /// Starts this program with other arguments.
    pub(crate) fn start(args: &[&str], mount: Option<&Path>, log: &Path) -> Result<Process> {
        let mut command = Command::new(std::env::current_exe()?);
        command
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(log)?);
        // SAFETY: prctl is async-signal-safe and touches no memory.
        unsafe {
            command.pre_exec(|| {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                Ok(())
            });
        }
        Ok(Process {
            child: command.spawn()?,
            mount: mount.map(Path::to_owned),
        })
    }

    /// CPU seconds used so far.
    pub(crate) fn cpu(&self) -> f64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id()));
        let fields: Vec<f64> = stat
            .unwrap_or_default()
            .rsplit(')')
            .next()
            .unwrap_or_default()
            .split_whitespace()
            .filter_map(|f| f.parse().ok())
            .collect();
        // utime and stime, in ticks of 10 ms; the state letter before them does not parse.
        (fields.get(10).unwrap_or(&0.0) + fields.get(11).unwrap_or(&0.0)) / 100.0
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(mount) = &self.mount {
            let _ = rustix::mount::unmount(mount, rustix::mount::UnmountFlags::DETACH);
        }
    }
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
        let until = Instant::now() + Duration::from_secs(20);
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
        let until = Instant::now() + Duration::from_secs(20);
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

/// The plain pass-through on `dir/plain`.
pub(crate) fn pass_through(dir: &Path) -> Result<(Process, PathBuf)> {
    let (source, mount) = (dir.join("plain-source"), dir.join("plain"));
    std::fs::create_dir_all(&source)?;
    std::fs::create_dir_all(&mount)?;
    let args = [
        "pass-through",
        &source.to_string_lossy(),
        &mount.to_string_lossy(),
    ];
    let process = Process::start(&args, Some(&mount), &dir.join("plain.log"))?;
    let until = Instant::now() + Duration::from_secs(5);
    loop {
        let meta = |p: &Path| {
            use std::os::unix::fs::MetadataExt;
            std::fs::metadata(p).map(|m| m.dev())
        };
        if meta(&mount)? != meta(dir)? {
            return Ok((process, mount));
        }
        if Instant::now() > until {
            bail!("the pass-through was not mounted");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The bare QUIC server.
pub(crate) fn quic_server(home: &Path, dir: &Path) -> Result<Process> {
    Process::start(
        &["quic-server", &home.to_string_lossy()],
        None,
        &dir.join("quic.log"),
    )
    .context("cannot start the QUIC floor")
}
