//! `twinfold cluster init` and `join`: two nodes get to know each other's keys.
//!
//! ```text
//! init: token (printed), listens                     join: TOKEN
//!                    <------ TLS, server pinned by the token ------
//!                    <------ {"secret":"..."} -------------------
//!   the token is used up: its secret is in this process only
//!                    ------- {"node":"b","cluster":"<cluster>..."} -->
//!                                                      writes what it got
//!                    <------ {"done":true} -----------------------
//!   writes whom it met
//! ```
//!
//! A token serves once: also a join that breaks off has used it up. A wrong one uses up nothing.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use fs_driver::link::{Fingerprint, Identity, SERVER_NAME, open_config, pinned_configs};
use rand::RngCore;
use rustls::{ClientConnection, ServerConnection, StreamOwned};
use serde::{Deserialize, Serialize};

use super::token::{SECRET, Token};
use super::{Pair, lans};
use crate::places::{Places, replace};
use crate::token::hex;

/// The protocol's name in TLS.
const PROTOCOL: &[u8] = b"twinfold-join/1";

/// How long the other side may take for each step.
const STEP: Duration = Duration::from_secs(5);

/// Longest message, in bytes; a `cluster.xml` may be as long as the configuration's limit.
const MAX_MESSAGE: usize = 2 << 20;

/// How often it is looked whether somebody has come.
const LOOK: Duration = Duration::from_millis(50);

#[derive(Serialize, Deserialize)]
struct Ask {
    secret: String,
}

#[derive(Serialize, Deserialize)]
struct Answer {
    /// The joining node's name.
    node: String,
    /// The text of `cluster.xml`.
    cluster: String,
}

#[derive(Serialize, Deserialize)]
struct Finished {
    done: bool,
}

/// Prints a token and waits until the other node has used it.
pub(super) fn init(places: &Places, node: &str, minutes: u64) -> Result<()> {
    ensure!(
        !places.pair().exists(),
        "this node has a peer already; to choose another one, remove {} first",
        places.pair().display()
    );
    let path = places.cluster();
    let cluster = crate::config::text(&path).context("write it first")?;
    let (lans, peer) = lans(&path.display().to_string(), &cluster, node)?;
    let identity = Identity::load_or_create(&places.etc)?;
    let mut secret = [0; SECRET];
    rand::rng().fill_bytes(&mut secret);
    let listeners = lans
        .iter()
        .map(|lan| {
            let listener = TcpListener::bind(lan.here)
                .with_context(|| format!("cannot listen on {}", lan.here))?;
            listener.set_nonblocking(true)?;
            Ok(listener)
        })
        .collect::<Result<Vec<_>>>()?;
    let token = Token {
        secret,
        identity: identity.fingerprint(),
        addresses: lans.iter().map(|lan| lan.here).collect(),
    };
    println!("run on {peer}, within {minutes} minutes:\n");
    println!("twinfold cluster join {}\n", token.show());
    std::io::stdout().flush()?;
    let tls = Arc::new(open_config(&identity, PROTOCOL)?);
    let until = Instant::now() + Duration::from_secs(minutes * 60);
    while Instant::now() < until {
        for listener in &listeners {
            let Ok((stream, from)) = listener.accept() else {
                continue;
            };
            match welcome(&tls, stream, &secret) {
                Ok((mut line, met)) => {
                    // From here on the token is used up, whatever happens.
                    ensure!(
                        met != identity.fingerprint(),
                        "this node has met itself; the token is for the other one"
                    );
                    give(&mut line, &peer, &cluster).context(
                        "the join broke off, and the token is used up: run `cluster init` again",
                    )?;
                    let pair = Pair {
                        node: node.to_owned(),
                        peer_identity: met.to_string(),
                    };
                    pair.save(places)?;
                    println!("{peer} has joined from {from}; its identity is {met}");
                    return Ok(());
                }
                Err(error) => eprintln!("{from} was refused: {error:#}"),
            }
        }
        std::thread::sleep(LOOK);
    }
    bail!("the token has expired; nobody has joined")
}

type ServerLine = StreamOwned<ServerConnection, TcpStream>;

/// Whoever knows the secret, and its identity.
fn welcome(
    tls: &Arc<rustls::ServerConfig>,
    stream: TcpStream,
    secret: &[u8; SECRET],
) -> Result<(ServerLine, Fingerprint)> {
    stream.set_nonblocking(false)?;
    limit(&stream)?;
    let mut line = StreamOwned::new(ServerConnection::new(tls.clone())?, stream);
    let ask: Ask = receive(&mut line)?;
    // Compared by hashes, so that the time it takes tells nothing.
    let same = blake3::hash(ask.secret.as_bytes()) == blake3::hash(hex(secret).as_bytes());
    ensure!(same, "that is not this token's secret");
    let certificates = line.conn.peer_certificates().unwrap_or_default();
    let certificate = certificates.first().context("it has no key")?;
    let met = Fingerprint::of(certificate);
    Ok((line, met))
}

fn give(line: &mut ServerLine, node: &str, cluster: &str) -> Result<()> {
    let answer = Answer {
        node: node.to_owned(),
        cluster: cluster.to_owned(),
    };
    send(line, &answer)?;
    let finished: Finished = receive(line)?;
    ensure!(finished.done, "the other node could not write what it got");
    Ok(())
}

/// Joins the node that printed the token.
pub(super) fn join(places: &Places, token: &str) -> Result<()> {
    ensure!(
        !places.pair().exists(),
        "this node has a peer already; to choose another one, remove {} first",
        places.pair().display()
    );
    let token = Token::parse(token)?;
    let identity = Identity::load_or_create(&places.etc)?;
    ensure!(
        identity.fingerprint() != token.identity,
        "this is the node that printed the token: run this on the other one"
    );
    let (_, tls) = pinned_configs(&identity, token.identity, PROTOCOL)?;
    let tls = Arc::new(tls);
    let mut last = None;
    for address in &token.addresses {
        match meet(*address, &tls, &token) {
            Ok((mut line, answer)) => {
                let (_, peer) = lans("cluster.xml of the peer", &answer.cluster, &answer.node)?;
                let path = places.cluster();
                replace(&path, answer.cluster.as_bytes())
                    .with_context(|| format!("cannot write {}", path.display()))?;
                let pair = Pair {
                    node: answer.node.clone(),
                    peer_identity: token.identity.to_string(),
                };
                pair.save(places)?;
                let told = send(&mut line, &Finished { done: true });
                told.with_context(|| {
                    format!("{peer} was not told that this node has joined: run `init` there again")
                })?;
                // The other side closes when it has read that; what it says then is no matter.
                let _ = line.read(&mut [0]);
                println!("this is {}, its peer is {peer}", answer.node);
                return Ok(());
            }
            Err(error) => last = Some(error),
        }
    }
    Err(last.context("the token names no address")?)
}

type ClientLine = StreamOwned<ClientConnection, TcpStream>;

fn meet(
    address: SocketAddr,
    tls: &Arc<rustls::ClientConfig>,
    token: &Token,
) -> Result<(ClientLine, Answer)> {
    let stream = TcpStream::connect_timeout(&address, STEP).with_context(|| {
        format!("nobody listens at {address}: has the token expired, or been used?")
    })?;
    limit(&stream)?;
    let name = SERVER_NAME.try_into().context("the name is one")?;
    let mut line = StreamOwned::new(ClientConnection::new(tls.clone(), name)?, stream);
    let ask = Ask {
        secret: hex(&token.secret),
    };
    send(&mut line, &ask)
        .with_context(|| format!("{address} is not the node that printed the token"))?;
    let answer = receive(&mut line)
        .with_context(|| format!("{address} refuses: has the token been used, or expired?"))?;
    Ok((line, answer))
}

fn limit(stream: &TcpStream) -> Result<()> {
    stream.set_read_timeout(Some(STEP))?;
    stream.set_write_timeout(Some(STEP))?;
    Ok(())
}

fn send(line: &mut impl Write, message: &impl Serialize) -> Result<()> {
    let body = serde_json::to_vec(message)?;
    ensure!(body.len() <= MAX_MESSAGE, "the message is too long");
    line.write_all(&(body.len() as u32).to_le_bytes())?;
    line.write_all(&body)?;
    line.flush()?;
    Ok(())
}

fn receive<T: serde::de::DeserializeOwned>(line: &mut impl Read) -> Result<T> {
    let mut length = [0; 4];
    line.read_exact(&mut length)
        .context("it broke the connection")?;
    let length = u32::from_le_bytes(length) as usize;
    ensure!(length <= MAX_MESSAGE, "its message has {length} bytes");
    let mut body = Vec::new();
    line.take(length as u64)
        .read_to_end(&mut body)
        .context("it broke the connection")?;
    ensure!(body.len() == length, "it broke the connection");
    serde_json::from_slice(&body).context("its message is not understood")
}
