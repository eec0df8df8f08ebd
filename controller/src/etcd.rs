//! An etcd cluster as the witness: it gives each generation to one node, until that one gives it
//! back.
//!
//! The key `/twinfold/MODULE/GENERATION` has the identity of the node with the right as its value,
//! or nothing. It is read, and then changed in a transaction that fails if it was changed in
//! between. So an answer that was lost on the way is found again, and nothing that expires is
//! relied on: a node that was frozen has no less right when it is thawed than the key says, and
//! never more. Giving a right back changes the key even if there is none: a question of before that
//! is still on its way changes nothing any more, and what gives a right back does not if the right
//! was asked for again. Keys are a few bytes each and stay: a pair makes one for each time that it
//! was separated.
//!
//! Spoken is etcd's JSON over HTTPS (`/v3/kv/...`); only servers whose certificate the configured
//! authority has signed are believed.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
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
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use twinfold_protocol::ids::{Generation, ModuleId};

use crate::config::Etcd;

/// Longest answer, in bytes: one key and its value.
const MAX_ANSWER: usize = 64 << 10;

/// How much of the time a question may take is for the names of who is asked: one part in so many.
const NAMES: u32 = 4;

/// How often a change is tried that another one was faster than. Two nodes change a key, each by
/// way of all members.
const TRIES: usize = 16;

/// One who is asked.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Endpoint {
    host: String,
    port: u16,
}

/// A cluster.
#[derive(Clone)]
pub(crate) struct Witness {
    endpoints: Vec<Endpoint>,
    tls: Arc<rustls::ClientConfig>,
    /// For all of them, who are asked at once.
    patience: Duration,
    /// Where they were last: a name service that is down keeps nobody from asking.
    known: Arc<Mutex<BTreeMap<Endpoint, Vec<SocketAddr>>>>,
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
        let witness = Witness {
            endpoints,
            tls: Arc::new(tls),
            patience: config.timeout,
            known: Arc::default(),
        };
        let first = witness.clone();
        // As long as names can be found; this may take as long as the name service wants.
        std::thread::Builder::new()
            .name("names".into())
            .spawn(move || first.endpoints.iter().for_each(|e| first.find(e)))
            .context("cannot start the thread that looks for etcd's addresses")?;
        Ok(witness)
    }

    /// Looks for the addresses of an endpoint, and keeps them.
    fn find(&self, endpoint: &Endpoint) {
        match (endpoint.host.as_str(), endpoint.port).to_socket_addrs() {
            Ok(addresses) => {
                let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
                known.insert(endpoint.clone(), addresses.collect());
            }
            Err(error) => tracing::warn!(%error, host = endpoint.host, "etcd's name is not found"),
        }
    }

    /// Where it is, now or when its name was found last.
    async fn addresses(&self, endpoint: &Endpoint) -> Result<Vec<SocketAddr>> {
        if let Ok(address) = endpoint.host.parse::<IpAddr>() {
            return Ok(vec![SocketAddr::new(address, endpoint.port)]);
        }
        let (witness, sought) = (self.clone(), endpoint.clone());
        let looks = tokio::task::spawn_blocking(move || witness.find(&sought));
        // In time or not: what is known is used.
        let _ = timeout(self.patience / NAMES, looks).await;
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let found = known.get(endpoint).filter(|found| !found.is_empty());
        found.cloned().context("its address was never found")
    }

    /// Whether `node` has the right to go on from this generation: true for whoever asked
    /// first. All endpoints are asked at once, for each of them may not answer; whichever does
    /// speaks for the cluster. An error: nobody could say. Blocks for the configured time, at
    /// most.
    pub(crate) fn ask(&self, module: ModuleId, generation: Generation, node: &str) -> Result<bool> {
        self.owns(&Key::new(module, generation), node, true)
    }

    /// `node` has no right to go on from this generation, whatever it asked before, when this
    /// has returned. Not while it asks.
    pub(crate) fn release(
        &self,
        module: ModuleId,
        generation: Generation,
        node: &str,
    ) -> Result<()> {
        self.owns(&Key::new(module, generation), node, false)
            .map(drop)
    }

    /// Makes the right to this key that of `node`, or not, unless it is the other node's; and
    /// whether it is that of `node` then.
    fn owns(&self, key: &Key, node: &str, wanted: bool) -> Result<bool> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let answer = runtime.block_on(async {
            let mut asked = JoinSet::new();
            for endpoint in &self.endpoints {
                let (witness, endpoint) = (self.clone(), endpoint.clone());
                let (key, node) = (key.clone(), node.to_owned());
                asked.spawn(async move {
                    let change = witness.change(&endpoint, &key, &node, wanted);
                    let told = match timeout(witness.patience, change).await {
                        Ok(told) => told,
                        Err(_) => Err(anyhow::anyhow!("it did not answer in time")),
                    };
                    told.with_context(|| format!("etcd at {}:{}", endpoint.host, endpoint.port))
                });
            }
            let mut wrong = Vec::new();
            while let Some(told) = asked.join_next().await {
                match told.context("asking broke off").flatten() {
                    Ok(owns) => return Ok(owns),
                    Err(error) => wrong.push(format!("{error:#}")),
                }
            }
            // Which of them is to be repaired is not known here. In the same order each time.
            wrong.sort();
            bail!("{}", wrong.join("; "))
        });
        // A name that is still looked for keeps nobody.
        runtime.shutdown_background();
        answer
    }

    async fn change(
        &self,
        endpoint: &Endpoint,
        key: &Key,
        node: &str,
        wanted: bool,
    ) -> Result<bool> {
        let mut held = Held::of(&self.post(endpoint, "range", &key.read()).await?)?;
        for _ in 0..TRIES {
            if held.owner.as_ref().is_some_and(|owner| owner != node) {
                return Ok(false);
            }
            let owner = if wanted { node } else { "" };
            let body = key.change(&held, owner);
            let told = self.post(endpoint, "txn", &body).await?;
            if told["succeeded"] == true {
                return Ok(wanted);
            }
            let now = &told["responses"][0]["response_range"];
            ensure!(now.is_object(), "it does not tell whose the key is: {told}");
            held = Held::of(now)?;
        }
        bail!("the key is changed all the time");
    }

    async fn post(&self, endpoint: &Endpoint, what: &str, body: &Value) -> Result<Value> {
        let addresses = self.addresses(endpoint).await?;
        let tcp = TcpStream::connect(&addresses[..]).await?;
        let name = ServerName::try_from(endpoint.host.clone())?;
        let stream = TlsConnector::from(self.tls.clone())
            .connect(name, tcp)
            .await?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let connection = tokio::spawn(connection);
        let request = Request::post(format!("/v3/kv/{what}"))
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
        read_answer(&bytes)
    }
}

/// An answer, if it is one of etcd.
fn read_answer(bytes: &[u8]) -> Result<Value> {
    let told: Value = serde_json::from_slice(bytes).context("its answer is not understood")?;
    ensure!(
        told["header"].is_object(),
        "that is no answer of etcd: {told}"
    );
    Ok(told)
}

/// The key of a generation.
#[derive(Clone, Debug)]
struct Key(String);

impl Key {
    fn new(module: ModuleId, generation: Generation) -> Key {
        let name = format!("/twinfold/{:032x}/{:032x}", module.0, generation.0);
        Key(STANDARD.encode(name))
    }

    fn read(&self) -> Value {
        json!({ "key": self.0 })
    }

    /// Gives it to `owner` if it is still as `held` says; else asks how it is.
    fn change(&self, held: &Held, owner: &str) -> Value {
        json!({
            "compare": [{
                "key": self.0, "target": "MOD", "result": "EQUAL",
                "mod_revision": held.revision.to_string(),
            }],
            "success": [{ "request_put": { "key": self.0, "value": STANDARD.encode(owner) } }],
            "failure": [{ "request_range": self.read() }],
        })
    }
}

/// How a key is.
#[derive(PartialEq, Eq, Debug)]
struct Held {
    /// Of its last change; 0: there is none.
    revision: u64,
    /// Whose the right is.
    owner: Option<String>,
}

impl Held {
    /// Read from an answer with the keys of a range.
    fn of(range: &Value) -> Result<Held> {
        let Some(kv) = range["kvs"].get(0) else {
            return Ok(Held {
                revision: 0,
                owner: None,
            });
        };
        let revision = kv["mod_revision"].as_str().and_then(|r| r.parse().ok());
        let owner = STANDARD.decode(kv["value"].as_str().unwrap_or_default())?;
        Ok(Held {
            revision: revision
                .with_context(|| format!("it does not tell when the key was changed: {kv}"))?,
            owner: Some(String::from_utf8(owner)?).filter(|owner| !owner.is_empty()),
        })
    }
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
        let held = |revision, owner: Option<&str>| Held {
            revision,
            owner: owner.map(str::to_owned),
        };
        let none = read_answer(br#"{"header": {"cluster_id": "1"}}"#).unwrap();
        assert_eq!(Held::of(&none).unwrap(), held(0, None));
        let kv = json!({"key": "a", "mod_revision": "7", "value": STANDARD.encode("tf1-b")});
        let told = json!({"kvs": [kv], "count": "1"});
        assert_eq!(Held::of(&told).unwrap(), held(7, Some("tf1-b")));
        let back = json!({"kvs": [{"key": "a", "mod_revision": "9"}]});
        assert_eq!(Held::of(&back).unwrap(), held(9, None));
        for broken in [
            json!({"kvs": [{"value": ""}]}),
            json!({"kvs": [{"mod_revision": "1", "value": "?"}]}),
        ] {
            assert!(Held::of(&broken).is_err(), "{broken}");
        }
        for broken in ["{}", r#"{"kvs": []}"#, "", "<html>"] {
            assert!(read_answer(broken.as_bytes()).is_err(), "{broken}");
        }
    }
}
