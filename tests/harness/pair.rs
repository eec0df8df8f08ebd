//! Two nodes that replicate one folder.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use fs_driver::control::Request;

use crate::boot;
use crate::compare::{Scope, Tree, differences};
use crate::disk;
use crate::faulty::{self, Fate, ProgrammableDisk};
use crate::network::Network;
use crate::node::{Node, Role};
use crate::process::{self, wait_until};
use crate::space;
use crate::turn::Turn;

/// How long the nodes may take to find each other and to become equal.
const PATIENCE: Duration = Duration::from_secs(120);

/// How long the kernel trusts names and attributes it got from a primary, and a bit.
const TRUST: Duration = Duration::from_millis(1100);

/// How a pair is made.
#[derive(Clone, Debug)]
pub struct Options {
    /// `disk`, `memory` or `flush`.
    pub ack: &'static str,
    /// `hold` or `alone`.
    pub on_peer_loss: &'static str,
    /// Milliseconds without progress, of one op, and of one sync, after which the peer is
    /// dropped. Long by default: these tests share a machine that may be busy.
    pub deadlines: [u64; 3],
    /// More options for `init`, on both nodes.
    pub more: Vec<String>,
    /// Puts data into the directory of A before it becomes a replicated folder.
    pub populate: fn(&Path),
    /// Puts a copy of that data, made in another way, into the directory of B.
    pub seed: Option<fn(&Path)>,
    /// Where A and B accept each other; one free port of 127.0.0.1 for each if empty.
    pub listen: [Vec<SocketAddr>; 2],
    /// Where A finds B and B finds A; where the other one listens if empty.
    pub dial: [Vec<SocketAddr>; 2],
    /// No other pair runs meanwhile.
    pub alone: bool,
    /// A lies on an ext4 of its own with this many bytes.
    pub small_disk: Option<u64>,
    /// A and B each lie on a disk of so many bytes that the test programs.
    pub disks: [Option<u64>; 2],
    /// B has one of the same size.
    pub both_small: bool,
    /// A and B are in network namespaces of their own; what `listen` and `dial` say is not used.
    pub apart: bool,
    /// The effects of both drivers are counted.
    pub watched: bool,
    /// The descriptors each driver may have, if not as many as the tests.
    pub descriptors: Option<u64>,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            ack: "memory",
            on_peer_loss: "hold",
            deadlines: [30_000, 45_000, 60_000],
            more: Vec::new(),
            populate: |_| (),
            seed: None,
            listen: Default::default(),
            dial: Default::default(),
            alone: false,
            small_disk: None,
            disks: [None; 2],
            both_small: false,
            apart: false,
            watched: false,
            descriptors: None,
        }
    }
}

/// Two nodes. Dropped, it kills both, unmounts and removes everything.
#[derive(Debug)]
pub struct Pair {
    /// The node that begins as primary.
    pub a: Node,
    /// The node that begins as secondary.
    pub b: Node,
    disks: [Option<ProgrammableDisk>; 2],
    init: [Vec<String>; 2],
    directory: PathBuf,
    network: Option<Network>,
    _turn: Turn,
}

/// Ports that the kernel gives to nobody who asks for any (`ip_local_port_range`): one that is
/// free stays so while its node is down.
const PORTS: std::ops::Range<u16> = 20_000..32_000;

/// How many ports this process has taken so far.
static TAKEN: AtomicU16 = AtomicU16::new(0);

/// Addresses of this machine, each with a port nobody uses, for UDP or TCP.
pub fn free_addresses<const N: usize>(hosts: [&str; N]) -> Result<[SocketAddr; N]> {
    let mut found = [SocketAddr::from(([0, 0, 0, 0], 0)); N];
    for (place, host) in found.iter_mut().zip(hosts) {
        *place = free_address(host)?;
    }
    Ok(found)
}

fn free_address(host: &str) -> Result<SocketAddr> {
    let host: IpAddr = host.parse().context("no address")?;
    let length = u32::from(PORTS.end - PORTS.start);
    // Two processes begin at different places, mostly.
    let first = std::process::id().wrapping_mul(97);
    for _ in 0..length {
        let taken = TAKEN.fetch_add(1, Ordering::Relaxed);
        let number = first.wrapping_add(u32::from(taken)) % length;
        let address = SocketAddr::new(host, PORTS.start + number as u16);
        let both = UdpSocket::bind(address).and_then(|_| TcpListener::bind(address));
        match both {
            Ok(_) => return Ok(address),
            Err(e) if e.kind() == io::ErrorKind::AddrInUse => {}
            Err(e) => return Err(e).with_context(|| format!("{address} cannot be used")),
        }
    }
    bail!("no port of {host} is free")
}

fn programmable(
    directory: &Path,
    sizes: [Option<u64>; 2],
) -> Result<[Option<ProgrammableDisk>; 2]> {
    let mut disks = [None, None];
    for ((disk, size), name) in disks.iter_mut().zip(sizes).zip(["a", "b"]) {
        if let Some(size) = size {
            let mut new = ProgrammableDisk::new(&directory.join(format!("{name}.disk")), size)?;
            new.mount(&directory.join(name))?;
            *disk = Some(new);
        }
    }
    Ok(disks)
}

impl Pair {
    /// A paired primary and secondary with the default options.
    #[expect(
        clippy::new_without_default,
        reason = "it starts processes; that should be seen where it happens"
    )]
    pub fn new() -> Pair {
        Pair::with(Options::default())
    }

    /// A paired primary and secondary.
    pub fn with(options: Options) -> Pair {
        let mut pair = Pair::stopped(options);
        pair.a.start(Role::Primary).expect("A starts");
        pair.b.start(Role::Secondary).expect("B starts");
        pair.wait_paired();
        pair
    }

    /// Two nodes that know each other; no driver runs yet.
    pub fn stopped(options: Options) -> Pair {
        process::require_machine();
        let turn = Turn::wait(options.alone);
        Pair::prepare(&options, turn).expect("the two folders are made")
    }

    fn prepare(options: &Options, turn: Turn) -> Result<Pair> {
        let directory = process::new_directory()?;
        let disks = match programmable(&directory, options.disks) {
            Ok(disks) => disks,
            Err(e) => {
                process::remove_directory(&directory);
                return Err(e);
            }
        };
        let small: &[&str] = match (options.small_disk, options.both_small) {
            (None, _) => &[],
            (_, false) => &["a"],
            (_, true) => &["a", "b"],
        };
        for name in small {
            if let Err(e) = disk::mount(&directory, name, options.small_disk.unwrap_or_default()) {
                process::remove_directory(&directory);
                return Err(e);
            }
        }
        let network = match options.apart {
            true => Some(Network::new()?),
            false => None,
        };
        let mut pair = Pair {
            disks,
            init: Default::default(),
            a: Node::new("a", directory.join("a"))?,
            b: Node::new("b", directory.join("b"))?,
            directory,
            network,
            _turn: turn,
        };
        pair.a.watched = options.watched;
        pair.b.watched = options.watched;
        pair.a.descriptors = options.descriptors;
        pair.b.descriptors = options.descriptors;
        (options.populate)(&pair.a.mount());
        if let Some(seed) = options.seed {
            seed(&pair.b.mount());
        }
        let free = free_addresses(["127.0.0.1"; 2])?;
        let or = |given: &[SocketAddr], else_: &[SocketAddr]| match given {
            [] => else_.to_vec(),
            given => given.to_vec(),
        };
        let listen = [0, 1].map(|n| match &pair.network {
            Some(network) => vec![network.address(n)],
            None => or(&options.listen[n], &free[n..=n]),
        });
        if let Some(network) = &pair.network {
            pair.a.namespace = Some(network.namespace(0)?);
            pair.b.namespace = Some(network.namespace(1)?);
        }
        let dial = [0, 1].map(|n| match options.apart {
            true => listen[1 - n].clone(),
            false => or(&options.dial[n], &listen[1 - n]),
        });
        for (node, listen) in [&mut pair.a, &mut pair.b].into_iter().zip(&listen) {
            node.addresses.clone_from(listen);
        }
        let id_a = pair.a.run(&["identity", "--identity", &pair.a.key()])?;
        let id_b = pair.b.run(&["identity", "--identity", &pair.b.key()])?;
        let init = |number: usize, node: &Node, id: &str, from: &[&str]| -> Vec<String> {
            let (mount, key) = (node.mount().display().to_string(), node.key());
            let deadlines = options.deadlines.map(|ms| ms.to_string());
            let text = |all: &[SocketAddr]| all.iter().map(ToString::to_string).collect();
            let (here, there): (Vec<_>, Vec<_>) = (text(&listen[number]), text(&dial[number]));
            let mut arguments = vec!["init", &mount, "--identity", &key];
            arguments.extend(from);
            arguments.extend(here.iter().flat_map(|a| ["--listen", a.as_str()]));
            arguments.extend(there.iter().flat_map(|a| ["--peer", a.as_str()]));
            arguments.extend(["--peer-id", id]);
            arguments.extend(["--ack", options.ack, "--on-peer-loss", options.on_peer_loss]);
            let names = ["--stall-ms", "--op-ms", "--sync-ms"];
            for (name, value) in names.iter().zip(&deadlines) {
                arguments.extend([name, value.as_str()]);
            }
            arguments.extend(options.more.iter().map(String::as_str));
            arguments.into_iter().map(str::to_owned).collect()
        };
        let from_peer: &[&str] = match options.seed {
            Some(_) => &["--from-peer", "--seed"],
            None => &["--from-peer"],
        };
        pair.init = [
            init(0, &pair.a, &id_b, &["--good-copy"]),
            init(1, &pair.b, &id_a, from_peer),
        ];
        pair.a.run(&pair.init_arguments(0))?;
        pair.b.run(&pair.init_arguments(1))?;
        Ok(pair)
    }

    /// The command by which a node's folder was made.
    pub fn init_arguments(&self, number: usize) -> Vec<&str> {
        self.init[number].iter().map(String::as_str).collect()
    }

    /// The disk that A lies on, by [`Options::disks`].
    pub fn disk_a(&self) -> &ProgrammableDisk {
        self.disks[0].as_ref().expect("A has a disk of its own")
    }

    /// The disk that B lies on.
    pub fn disk_b(&self) -> &ProgrammableDisk {
        self.disks[1].as_ref().expect("B has a disk of its own")
    }

    /// Kills a node (0 is A), and gives its disk a power cut. It is mounted again, and
    /// the node can start, as if its machine had booted again.
    pub fn cut_power(&mut self, number: usize, fate: impl Fn(usize, &faulty::Request) -> Fate) {
        let (node, name) = match number {
            0 => (&mut self.a, "a"),
            _ => (&mut self.b, "b"),
        };
        let disk = self.disks[number].as_mut().expect("a disk of its own");
        // Nothing of what the process could do about a disk that fails comes to pass. One
        // that waits for its disk dies when the disk does.
        node.begin_to_kill();
        disk.die();
        node.kill();
        disk.cut(fate).expect("the power is cut");
        disk.mount(&self.directory.join(name))
            .expect("the disk is mounted again");
        boot::another(&node.layout().state()).expect("the boot is another one");
    }

    /// A path on the mount of A.
    pub fn on_a(&self, path: impl AsRef<Path>) -> PathBuf {
        self.a.mount().join(path)
    }

    /// A path on the mount of B.
    pub fn on_b(&self, path: impl AsRef<Path>) -> PathBuf {
        self.b.mount().join(path)
    }

    /// The network between nodes that are [`apart`](Options::apart).
    pub fn network(&self) -> &Network {
        self.network.as_ref().expect("the nodes are apart")
    }

    fn primary(&self) -> Option<&Node> {
        [&self.a, &self.b]
            .into_iter()
            .find(|node| node.status().is_ok_and(|s| s["role"] == "primary"))
    }

    /// Waits until one node is primary and the other up to date beside it.
    pub fn wait_paired(&self) {
        let both = wait_until(PATIENCE, || {
            self.a.is_paired() && self.b.is_paired() && self.primary().is_some()
        });
        assert!(
            both,
            "the nodes did not pair:\n{:?}\n{}\n{:?}\n{}",
            self.a.status(),
            self.a.last_words(),
            self.b.status(),
            self.b.last_words()
        );
    }

    /// Waits until the secondary has every op and all times, and nothing is on its way.
    pub fn wait_settled(&self) {
        self.wait_paired();
        let settled = wait_until(PATIENCE, || {
            self.primary()
                .and_then(|node| node.status().ok())
                .is_some_and(|s| s["settled"] == true)
        });
        assert!(settled, "the times were not shipped: {:?}", self.primary());
    }

    /// Flushes both nodes.
    pub fn checkpoint(&self) {
        for node in [&self.a, &self.b] {
            node.ask(Request::Checkpoint).expect("a checkpoint");
        }
    }

    /// Everything in which the two copies differ, seen through the mounts and in the
    /// stores, and in which a mount differs from its own store.
    pub fn compare(&self) -> Vec<String> {
        self.compare_below("")
    }

    /// The same for what is below a directory of the folder.
    pub fn compare_below(&self, directory: impl AsRef<Path>) -> Vec<String> {
        self.compare_as(directory.as_ref(), false)
    }

    fn compare_as(&self, directory: &Path, forget_reads: bool) -> Vec<String> {
        self.wait_settled();
        let look = || {
            let found = self.compare_now(directory, forget_reads);
            found.expect("both copies can be read")
        };
        let found = look();
        if found.is_empty() || !found.iter().all(|f| f.starts_with("mount")) {
            return found;
        }
        // On a node that was primary a moment ago the kernel still trusts what it has read.
        std::thread::sleep(TRUST);
        look()
    }

    fn compare_now(&self, directory: &Path, forget_reads: bool) -> Result<Vec<String>> {
        let read = |path: PathBuf, scope| {
            // Joined with nothing, a path would get a slash at its end.
            let path = match directory.as_os_str().is_empty() {
                true => path,
                false => path.join(directory),
            };
            let mut tree =
                Tree::read(&path, scope).with_context(|| format!("reading {}", path.display()))?;
            if forget_reads {
                tree.forget_reads_of_directories();
            }
            anyhow::Ok(tree)
        };
        // All at once: a tree may have a million files.
        let [mount_a, mount_b, store_a, store_b] = std::thread::scope(|scope| {
            [
                (self.a.mount(), Scope::Mount),
                (self.b.mount(), Scope::Mount),
                (self.a.data(), Scope::Store),
                (self.b.data(), Scope::Store),
            ]
            .map(|(path, which)| scope.spawn(move || read(path, which)))
            .map(|reader| reader.join().expect("a reader does not panic"))
        });
        let (mount_a, mount_b) = (mount_a?, mount_b?);
        let (store_a, store_b) = (store_a?, store_b?);
        let mut all = differences("mount", &mount_a, &mount_b);
        all.extend(differences("store", &store_a, &store_b));
        all.extend(differences("mount and store of A", &mount_a, &store_a));
        ensure!(
            mount_a.len() > 0,
            "the mount of A does not even have a root directory"
        );
        Ok(all)
    }

    /// Fails the test unless every file takes the same space in both stores.
    pub fn assert_same_space(&self) {
        self.assert_same_space_below("");
    }

    /// The same for the files below a directory of the folder.
    pub fn assert_same_space_below(&self, directory: impl AsRef<Path>) {
        self.wait_settled();
        let directory = directory.as_ref();
        let of = |node: &Node| {
            space::of_tree(&node.data().join(directory)).expect("the space of a store")
        };
        assert_eq!(of(&self.a), of(&self.b), "space on A and on B");
    }

    /// Fails the test unless both copies are identical.
    pub fn assert_identical(&self) {
        self.assert_identical_below("");
    }

    /// The same, whenever directories were last read: of more objects than the kernel keeps in
    /// memory it looks for one in its directory again, and notes that as a reading.
    pub fn assert_identical_but_for_reads(&self) {
        let found = self.compare_as(Path::new(""), true);
        assert!(found.is_empty(), "the copies differ:\n{}", found.join("\n"));
    }

    /// The same as `assert_identical` for what is below a directory of the folder.
    pub fn assert_identical_below(&self, directory: impl AsRef<Path>) {
        let found = self.compare_below(directory);
        assert!(found.is_empty(), "the copies differ:\n{}", found.join("\n"));
    }

    /// A path outside of both nodes, on the same file system, that goes with the pair.
    pub fn beside(&self, name: impl AsRef<Path>) -> PathBuf {
        self.directory.join(name)
    }

    /// Both nodes run, and the secondary is up to date.
    pub(crate) fn is_sound(&self) -> bool {
        self.a.is_paired() && self.b.is_paired()
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        // A frozen node would keep its peer's mount from answering.
        for node in [&mut self.b, &mut self.a] {
            if std::thread::panicking() && node.is_running() {
                eprintln!("--- {} said:\n{}\n---", node.name(), node.last_words());
            }
            node.thaw();
        }
        // A process that waits for its disk cannot be killed.
        for disk in self.disks.iter().flatten() {
            disk.die();
        }
        self.b.kill();
        self.a.kill();
        self.disks = [None, None];
        if std::env::var_os("TWINFOLD_KEEP").is_some() {
            eprintln!("{} is kept", self.directory.display());
        } else {
            process::remove_directory(&self.directory);
        }
    }
}
