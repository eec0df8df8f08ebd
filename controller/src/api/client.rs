//! The command line's end of the API.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use super::Said;

/// How long the daemon may take to answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// Longest answer, in bytes: events of a log.
const MAX_ANSWER: usize = 32 << 20;

/// Asks the daemon that listens at `socket`.
pub(crate) fn ask<T: DeserializeOwned>(
    socket: &Path,
    method: Method,
    path: &str,
    body: Option<&impl Serialize>,
) -> Result<T> {
    let bytes = fetch(socket, method, path, body)?;
    serde_json::from_slice(&bytes).context("the daemon's answer is not understood")
}

/// Whether there is no daemon at all: what was asked for has not been done.
pub(crate) fn nobody_listens(error: &anyhow::Error) -> bool {
    use std::io::ErrorKind::{ConnectionRefused, NotFound};
    let kinds = error
        .chain()
        .filter_map(|e| e.downcast_ref::<std::io::Error>());
    kinds
        .map(std::io::Error::kind)
        .any(|kind| matches!(kind, NotFound | ConnectionRefused))
}

/// The same, with the answer as it is.
pub(crate) fn fetch(
    socket: &Path,
    method: Method,
    path: &str,
    body: Option<&impl Serialize>,
) -> Result<Bytes> {
    let body = match body {
        Some(body) => serde_json::to_vec(body)?,
        None => Vec::new(),
    };
    let call = async {
        let stream = UnixStream::connect(socket).await.with_context(|| {
            format!(
                "no daemon answers at {}; start it with `twinfold daemon`",
                socket.display()
            )
        })?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "twinfold")
            .header("content-type", "application/json")
            .body(Full::new(Bytes::from(body)))?;
        let answer = sender.send_request(request).await?;
        let status = answer.status();
        let limited = Limited::new(answer.into_body(), MAX_ANSWER);
        let bytes = limited.collect().await.map_err(anyhow::Error::from_boxed)?;
        Ok::<_, anyhow::Error>((status, bytes.to_bytes()))
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let answered = runtime.block_on(async { tokio::time::timeout(PATIENCE, call).await });
    let (status, bytes) = answered.context("the daemon did not answer in time")??;
    if !status.is_success() {
        let said = serde_json::from_slice::<Said>(&bytes);
        bail!(said.map_or_else(
            |_| format!("{status}: {}", String::from_utf8_lossy(&bytes)),
            |s| s.text
        ));
    }
    Ok(bytes)
}
