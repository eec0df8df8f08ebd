//! The API for the other node: the same one, over TLS with the pinned keys of the pair, on the
//! networks for commands (`<lan command="on">`), at the port behind the one of the heartbeats.
//!
//! Whoever has the peer's key may do what the peer's root may: the two nodes are one
//! installation. A request to `/api/v1/nodes/NODE/...` here is passed on to that node.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use axum::Json;
use axum::body::Body;
use axum::extract::connect_info::{ConnectInfo, Connected};
use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::serve::{IncomingStream, Listener};
use fs_driver::link::{SERVER_NAME, pinned_configs};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::{Caller, Said, refuse};
use crate::cluster::Cluster;
use crate::daemon::Node;

/// The protocol's name in TLS.
const PROTOCOL: &[u8] = b"twinfold-api/1";

/// How long a connection or a handshake may take.
const STEP: Duration = Duration::from_secs(2);

/// How long the other node may take to answer: it may have to ask its module.
const ANSWER: Duration = Duration::from_secs(25);

/// Pause before an address is tried again that cannot be listened on.
const RETRY: Duration = Duration::from_millis(500);

/// Longest request and answer that is passed on, in bytes.
const MAX_PASSED: usize = 32 << 20;

/// Connections that are shaken hands with and wait to be served, at most.
const MAX_WAITING: usize = 16;

type Stream = tokio_rustls::server::TlsStream<TcpStream>;

/// Connections of the peer, from all networks.
pub(super) struct FromPeer {
    shaken: mpsc::Receiver<(Stream, SocketAddr)>,
    /// Also where no network is for commands, the other end stays.
    _tell: mpsc::Sender<(Stream, SocketAddr)>,
}

impl Listener for FromPeer {
    type Io = Stream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Stream, SocketAddr) {
        match self.shaken.recv().await {
            Some(next) => next,
            // The tasks that listen never end.
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> std::io::Result<SocketAddr> {
        Err(std::io::Error::other("there are several"))
    }
}

impl Connected<IncomingStream<'_, FromPeer>> for Caller {
    fn connect_info(_: IncomingStream<'_, FromPeer>) -> Caller {
        Caller {
            user: None,
            peer: true,
        }
    }
}

/// Listens on all networks for commands.
pub(super) fn listen(cluster: &Cluster) -> Result<FromPeer> {
    let (server, _) = pinned_configs(&cluster.identity, cluster.peer_identity, PROTOCOL)?;
    let tls = TlsAcceptor::from(Arc::new(server));
    let (tell, shaken) = mpsc::channel(MAX_WAITING);
    for (here, _) in cluster.commands() {
        tokio::spawn(accept(here, tls.clone(), tell.clone()));
    }
    Ok(FromPeer {
        shaken,
        _tell: tell,
    })
}

async fn accept(here: SocketAddr, tls: TlsAcceptor, tell: mpsc::Sender<(Stream, SocketAddr)>) {
    let listener = loop {
        match TcpListener::bind(here).await {
            Ok(listener) => break listener,
            Err(error) => tracing::debug!(%here, %error, "commands cannot be listened for"),
        }
        tokio::time::sleep(RETRY).await;
    };
    loop {
        let Ok((tcp, from)) = listener.accept().await else {
            tokio::time::sleep(RETRY).await;
            continue;
        };
        let (tls, tell) = (tls.clone(), tell.clone());
        tokio::spawn(async move {
            match timeout(STEP, tls.accept(tcp)).await {
                Ok(Ok(stream)) => drop(tell.send((stream, from)).await),
                Ok(Err(error)) => tracing::warn!(%from, %error, "it is not the peer of this node"),
                Err(_) => tracing::debug!(%from, "a handshake was not completed in time"),
            }
        });
    }
}

/// A connection to the peer, over the first network that has one.
async fn connect(cluster: &Cluster) -> Result<tokio_rustls::client::TlsStream<TcpStream>> {
    let (_, client) = pinned_configs(&cluster.identity, cluster.peer_identity, PROTOCOL)?;
    let tls = TlsConnector::from(Arc::new(client));
    let mut failed = Vec::new();
    for (here, there) in cluster.commands() {
        let shake = async {
            let socket = match there {
                SocketAddr::V4(_) => TcpSocket::new_v4()?,
                SocketAddr::V6(_) => TcpSocket::new_v6()?,
            };
            socket.bind(SocketAddr::new(here.ip(), 0))?;
            let tcp = socket.connect(there).await?;
            let name = SERVER_NAME.try_into().map_err(std::io::Error::other)?;
            tls.connect(name, tcp).await
        };
        match timeout(STEP, shake).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => failed.push(format!("{there}: {error}")),
            Err(_) => failed.push(format!("{there}: no answer")),
        }
    }
    if failed.is_empty() {
        bail!("cluster.xml has no <lan command=\"on\">");
    }
    bail!("{}", failed.join("; "))
}

/// Asks the peer's API.
pub(crate) async fn ask(
    cluster: &Cluster,
    method: hyper::Method,
    path: &str,
    body: Bytes,
) -> Result<(StatusCode, Bytes)> {
    let asked = async {
        let stream = connect(cluster).await?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        let request = hyper::Request::builder()
            .method(method)
            .uri(path)
            .header("host", "twinfold")
            .header("content-type", "application/json")
            .body(Full::new(body))?;
        let answer = sender.send_request(request).await?;
        let status = answer.status();
        let limited = Limited::new(answer.into_body(), MAX_PASSED);
        let bytes = limited.collect().await.map_err(anyhow::Error::from_boxed)?;
        Ok::<_, anyhow::Error>((status, bytes.to_bytes()))
    };
    let answered = timeout(ANSWER, asked).await;
    answered
        .context("it did not answer in time")?
        .with_context(|| format!("node {} cannot be reached", cluster.peer))
}

/// Passes a request on to the node it names, as to this one's path without that name.
#[utoipa::path(
    method(get, post, delete),
    path = "/api/v1/nodes/{node}/{rest}",
    params(
        ("node" = String, Path, description = "the peer's name"),
        ("rest" = String, Path, description = "what follows /api/v1/ of a path")
    ),
    request_body(content = Option<serde_json::Value>, description = "as that path wants it"),
    responses(
        (status = 200, description = "what the other node answers, with whatever status",
            body = serde_json::Value),
        (status = 404, body = Said),
        (status = 413, body = Said),
        (status = 502, body = Said)
    )
)]
pub(super) async fn pass_on(
    State(node): State<Arc<Node>>,
    ConnectInfo(caller): ConnectInfo<Caller>,
    Path((name, rest)): Path<(String, String)>,
    request: Request,
) -> Response {
    let cluster = &node.hub.cluster;
    if name != cluster.peer || caller.peer {
        let text = format!("this is {}, its peer is {}", cluster.node, cluster.peer);
        return refuse(StatusCode::NOT_FOUND, text);
    }
    let method = request.method().clone();
    let path = match request.uri().query() {
        Some(query) => format!("/api/v1/{rest}?{query}"),
        None => format!("/api/v1/{rest}"),
    };
    let body = Limited::new(request.into_body(), MAX_PASSED)
        .collect()
        .await;
    let Ok(body) = body else {
        return refuse(StatusCode::PAYLOAD_TOO_LARGE, "the request is too long");
    };
    match ask(cluster, method, &path, body.to_bytes()).await {
        Ok((status, bytes)) => {
            let json = [("content-type", "application/json")];
            (status, json, Body::from(bytes)).into_response()
        }
        Err(error) => {
            let text = format!("{error:#}");
            (StatusCode::BAD_GATEWAY, Json(Said { text })).into_response()
        }
    }
}
