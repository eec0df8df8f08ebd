//! An etcd cluster as the witness: it gives each generation to one node, for ever.
//!
//! One transaction on the key `/twinfold/MODULE/GENERATION`: if it is not there, it is made with
//! this node's identity as its value; if it is, its value tells whose the right is. So an answer
//! that was lost on the way is found again, and nothing that expires is relied on: a node that
//! was frozen has no less right when it is thawed than the key says, and never more. Keys are a
//! few bytes each and stay: a pair makes one for each time that it was separated.
//!
//! Spoken is etcd's JSON over HTTPS (`/v3/kv/txn`); only servers whose certificate the configured
//! authority has signed are believed.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http_body_util::{BodyExt, Full, Limited};
use hyper::Request;
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use twinfold_protocol::ids::{Generation, ModuleId};

use crate::config::Etcd;

/// Longest answer, in bytes: one key and its value.
const MAX_ANSWER: usize = 64 << 10;

/// One who is asked.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Endpoint {
    host: String,
    port: u16,
}

/// A cluster.
#[derive(Clone)]
pub(crate) struct Witness {
    endpoints: Vec<Endpoint>,
    tls: Arc<rustls::ClientConfig>,
    /// For one endpoint.
    patience: Duration,
}

impl std::fmt::Debug for Witness {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Witness({:?})", self.endpoints)
    }
}

impl Endpoint {
    fn parse(text: &str) -> Result<Endpoint> {
        let rest = text.strip_prefix("https://").with_context(|| {
            format!("{text}: an endpoint begins with https://, for the answer decides who goes on")
        })?;
        let rest = rest.trim_end_matches('/');
        let (host, port) = rest
            .rsplit_once(':')
            .with_context(|| format!("{text}: an endpoint ends with its port, as :2379"))?;
        let host = host.trim_start_matches('[').trim_end_matches(']');
        ensure!(!host.is_empty(), "{text}: an endpoint names a host");
        Ok(Endpoint {
            host: host.to_owned(),
            port: port
                .parse()
                .with_context(|| format!("{text}: {port} is no port"))?,
        })
    }
}

fn read<T>(path: &str, read: impl FnOnce(PathBuf) -> Result<T>) -> Result<T> {
    read(path.into()).with_context(|| format!("cannot use {path}"))
}

impl Witness {
    /// Reads the certificates.
    pub(crate) fn new(config: &Etcd) -> Result<Witness> {
        let endpoints = config.endpoints.split([',', ' ']).filter(|e| !e.is_empty());
        let endpoints = endpoints.map(Endpoint::parse).collect::<Result<Vec<_>>>()?;
        ensure!(!endpoints.is_empty(), "<etcd> names no endpoint");
        let mut roots = rustls::RootCertStore::empty();
        read(&config.ca, |path| {
            for certificate in CertificateDer::pem_file_iter(path)? {
                roots.add(certificate?)?;
            }
            Ok(())
        })?;
        let builder = rustls::ClientConfig::builder_with_provider(Arc::new(
            rustls::crypto::ring::default_provider(),
        ))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots);
        let tls = match (&config.cert, &config.key) {
            (Some(cert), Some(key)) => {
                let chain = read(cert, |path| {
                    Ok(CertificateDer::pem_file_iter(path)?.collect::<Result<Vec<_>, _>>()?)
                })?;
                let key = read(key, |path| Ok(PrivateKeyDer::from_pem_file(path)?))?;
                builder.with_client_auth_cert(chain, key)?
            }
            _ => builder.with_no_client_auth(),
        };
        let patience = config.timeout / endpoints.len() as u32;
        Ok(Witness {
            endpoints,
            tls: Arc::new(tls),
            patience,
        })
    }

    /// Whether `node` has the right to go on from this generation: true for whoever asked
    /// first. An error: nobody could say. Blocks for the configured time, at most.
    pub(crate) fn ask(&self, module: ModuleId, generation: Generation, node: &str) -> Result<bool> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        runtime.block_on(async {
            let body = transaction(module, generation, node);
            let mut last = None;
            for endpoint in &self.endpoints {
                let asked = timeout(self.patience, self.post(endpoint, &body)).await;
                let told = match asked {
                    Ok(told) => told,
                    Err(_) => Err(anyhow::anyhow!("it did not answer in time")),
                };
                match told.and_then(|told| owner(&told)) {
                    Ok(None) => return Ok(true),
                    Ok(Some(owner)) => return Ok(owner == node),
                    Err(error) => {
                        let (host, port) = (&endpoint.host, endpoint.port);
                        last = Some(error.context(format!("etcd at {host}:{port}")));
                    }
                }
            }
            Err(last.context("there is no endpoint")?)
        })
    }

    async fn post(&self, endpoint: &Endpoint, body: &Value) -> Result<Value> {
        let tcp = TcpStream::connect((endpoint.host.as_str(), endpoint.port)).await?;
        let name = ServerName::try_from(endpoint.host.clone())?;
        let stream = TlsConnector::from(self.tls.clone())
            .connect(name, tcp)
            .await?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let connection = tokio::spawn(connection);
        let request = Request::post("/v3/kv/txn")
            .header("host", format!("{}:{}", endpoint.host, endpoint.port))
            .header("content-type", "application/json")
            .body(Full::new(Bytes::from(serde_json::to_vec(body)?)))?;
        let answer = sender.send_request(request).await?;
        let status = answer.status();
        let limited = Limited::new(answer.into_body(), MAX_ANSWER);
        let bytes = limited.collect().await.map_err(anyhow::Error::from_boxed)?;
        let bytes = bytes.to_bytes();
        connection.abort();
        if !status.is_success() {
            bail!("{status}: {}", String::from_utf8_lossy(&bytes));
        }
        serde_json::from_slice(&bytes).context("its answer is not understood")
    }
}

/// Makes the key with `node` as its value if it is not there, else asks for its value.
fn transaction(module: ModuleId, generation: Generation, node: &str) -> Value {
    let key = STANDARD.encode(format!("/twinfold/{:032x}/{:032x}", module.0, generation.0));
    json!({
        "compare": [{
            "key": key, "target": "CREATE", "result": "EQUAL", "create_revision": "0",
        }],
        "success": [{ "request_put": { "key": key, "value": STANDARD.encode(node) } }],
        "failure": [{ "request_range": { "key": key } }],
    })
}

/// Who has the right already; none: whoever asked has it now.
fn owner(told: &Value) -> Result<Option<String>> {
    ensure!(
        told["header"].is_object(),
        "that is no answer of etcd: {told}"
    );
    if told["succeeded"] == true {
        return Ok(None);
    }
    let value = &told["responses"][0]["response_range"]["kvs"][0]["value"];
    let value = value
        .as_str()
        .with_context(|| format!("it does not tell whose the key is: {told}"))?;
    Ok(Some(String::from_utf8(STANDARD.decode(value)?)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_encrypted_and_have_a_port() {
        let read = Endpoint::parse("https://10.0.0.3:2379").unwrap();
        assert_eq!((read.host.as_str(), read.port), ("10.0.0.3", 2379));
        assert_eq!(
            Endpoint::parse("https://[fd00::3]:2379/").unwrap().host,
            "fd00::3"
        );
        for wrong in [
            "http://10.0.0.3:2379",
            "https://x",
            "https://:1",
            "https://x:y",
            "",
        ] {
            assert!(Endpoint::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn an_answer_says_whose_the_right_is_or_it_is_none() {
        let header = json!({"cluster_id": "1"});
        let mine = json!({"header": header, "succeeded": true, "responses": []});
        assert_eq!(owner(&mine).unwrap(), None);
        let kvs = json!([{"key": "a", "value": STANDARD.encode("tf1-b")}]);
        let told = json!({"header": header, "responses": [{"response_range": {"kvs": kvs}}]});
        assert_eq!(owner(&told).unwrap(), Some("tf1-b".into()));
        for broken in [
            json!({}),
            json!({"succeeded": true}),
            json!({"header": header, "responses": [{"response_range": {}}]}),
        ] {
            assert!(owner(&broken).is_err(), "{broken}");
        }
    }
}
