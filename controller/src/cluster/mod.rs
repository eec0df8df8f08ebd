//! Who this node is, who its peer is, and where they hear of each other.

mod join;
mod meaning;
mod token;

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::path::Path;

use anyhow::{Context, Result, bail};
use fs_driver::link::{Fingerprint, Identity};
use serde::{Deserialize, Serialize};
use twinfold_protocol::ids::Side;

use crate::config::{self, Findings};
use crate::places::{Places, replace};
pub(crate) use meaning::Meaning;

/// `pair.json`: which node this is, and the identity of the other one.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Pair {
    /// This node's name in `cluster.xml`.
    pub(crate) node: String,
    /// The peer's identity, as `twinfold fs identity` prints it there.
    pub(crate) peer_identity: String,
}

impl Pair {
    fn load(places: &Places) -> Result<Pair> {
        let path = places.pair();
        let text = std::fs::read_to_string(&path).with_context(|| {
            format!(
                "cannot read {}; `twinfold cluster init` on one node and `twinfold cluster join` on the other make the two a pair",
                path.display()
            )
        })?;
        serde_json::from_str(&text).with_context(|| format!("in {}", path.display()))
    }

    pub(crate) fn save(&self, places: &Places) -> Result<()> {
        Fingerprint::parse(&self.peer_identity)?;
        let text = serde_json::to_vec_pretty(self)?;
        replace(&places.pair(), &text)
            .with_context(|| format!("cannot write {}", places.pair().display()))
    }
}

/// One network, seen from this node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Lan {
    pub(crate) name: String,
    pub(crate) here: SocketAddr,
    pub(crate) there: SocketAddr,
    /// Commands to the other node go over it.
    pub(crate) command: bool,
}

/// This node and its peer.
#[derive(Clone, Debug)]
pub(crate) struct Cluster {
    pub(crate) node: String,
    pub(crate) peer: String,
    pub(crate) identity: Identity,
    pub(crate) peer_identity: Fingerprint,
    pub(crate) side: Side,
    pub(crate) lans: Vec<Lan>,
    /// What its `cluster.xml` says, to be compared with the peer's.
    pub(crate) meaning: Meaning,
}

/// The port behind it is the one for commands.
fn next_port(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip(), address.port().saturating_add(1))
}

impl Cluster {
    /// The ports at which the daemon of this node listens.
    pub(crate) fn ports(&self) -> Vec<u16> {
        let all = self.lans.iter().map(|lan| lan.here);
        all.flat_map(|here| [here.port(), next_port(here).port()])
            .collect()
    }

    /// Where this node and the other one listen for commands of each other.
    pub(crate) fn commands(&self) -> Vec<(SocketAddr, SocketAddr)> {
        let lans = self.lans.iter().filter(|lan| lan.command);
        lans.map(|lan| (next_port(lan.here), next_port(lan.there)))
            .collect()
    }

    /// Reads `cluster.xml`, `pair.json` and the key.
    pub(crate) fn load(places: &Places) -> Result<Cluster> {
        let pair = Pair::load(places)?;
        let path = places.cluster();
        let text = config::text(&path)?;
        let identity = Identity::load(&places.etc)?;
        let peer_identity = Fingerprint::parse(&pair.peer_identity)
            .with_context(|| format!("in {}", places.pair().display()))?;
        if peer_identity == identity.fingerprint() {
            bail!("{} has this node's own identity", places.pair().display());
        }
        let name = path.display().to_string();
        let (lans, peer) = lans(&name, &text, &pair.node)?;
        let read = config::cluster(&name, &text).0;
        Ok(Cluster {
            meaning: read.as_ref().map(Meaning::of).unwrap_or_default(),
            node: pair.node,
            peer,
            side: match identity.fingerprint() < peer_identity {
                true => Side::Even,
                false => Side::Odd,
            },
            identity,
            peer_identity,
            lans,
        })
    }
}

/// The networks of a `cluster.xml`, seen from a node, and the other node's name.
fn lans(name: &str, text: &str, node: &str) -> Result<(Vec<Lan>, String)> {
    let (cluster, found) = config::cluster(name, text);
    let cluster = cluster.with_context(|| mistakes(name, &found))?;
    let mut lans = Vec::new();
    let mut peers = BTreeSet::new();
    for lan in &cluster.lans {
        let mine = lan.nodes.iter().find(|n| n.name == node);
        let theirs = lan.nodes.iter().find(|n| n.name != node);
        let (Some(mine), Some(theirs)) = (mine, theirs) else {
            bail!("{name} has no node {node:?} in lan {}", lan.name);
        };
        peers.insert(theirs.name.clone());
        lans.push(Lan {
            name: lan.name.clone(),
            here: match mine.local {
                Some(local) => SocketAddr::new(local, cluster.port),
                None => resolve(&mine.address, cluster.port)?,
            },
            there: resolve(&theirs.address, cluster.port)?,
            command: lan.command,
        });
    }
    let peer = peers.pop_first().context("there is no lan")?;
    Ok((lans, peer))
}

/// The first address of a host. Names are resolved once, at the start: a name service that
/// is down later stops nothing.
fn resolve(host: &str, port: u16) -> Result<SocketAddr> {
    if let Ok(address) = host.parse::<IpAddr>() {
        return Ok(SocketAddr::new(address, port));
    }
    (host, port)
        .to_socket_addrs()
        .with_context(|| format!("cannot find the address of {host}"))?
        .next()
        .with_context(|| format!("{host} has no address"))
}

/// All mistakes of a file, a line each.
pub(crate) fn mistakes(name: &str, found: &Findings) -> String {
    let lines: Vec<_> = found.mistakes.iter().map(ToString::to_string).collect();
    format!("{name} cannot be used:\n{}", lines.join("\n"))
}

/// `twinfold cluster`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// Print this node's identity, which its peer must be told; makes the key if there is none.
    Identity,
    /// Let the other node join: prints a token that serves once, and waits for it. This node's
    /// `cluster.xml` becomes the other one's.
    Init {
        /// This node's name in `cluster.xml`.
        #[arg(long)]
        node: String,
        /// Minutes for which the token can be used.
        #[arg(long, default_value_t = 15)]
        valid: u64,
    },
    /// Join the node that printed this token.
    Join {
        /// The token.
        token: String,
    },
    /// Tell this node which one of `cluster.xml` it is, and its peer's identity, by hand.
    Pair {
        /// This node's name.
        #[arg(long)]
        node: String,
        /// What `twinfold cluster identity` prints on the other node.
        #[arg(long)]
        peer_identity: String,
    },
}

pub(crate) fn run(args: &Args, home: Option<&Path>) -> Result<std::process::ExitCode> {
    let places = Places::new(home);
    match &args.what {
        What::Identity => {
            let identity = Identity::load_or_create(&places.etc)?;
            println!("{}", identity.fingerprint());
        }
        What::Init { node, valid } => join::init(&places, node, *valid)?,
        What::Join { token } => join::join(&places, token)?,
        What::Pair {
            node,
            peer_identity,
        } => {
            let pair = Pair {
                node: node.clone(),
                peer_identity: peer_identity.clone(),
            };
            pair.save(&places)?;
            let cluster = Cluster::load(&places)?;
            println!("this is {}, its peer is {}", cluster.node, cluster.peer);
        }
    }
    Ok(std::process::ExitCode::SUCCESS)
}
