//! What strangers and hostile peers are made of: QUIC with any key, without any
//! check of the other side, and streams that carry any bytes.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use fs_driver::link::Identity;
use harness::Node;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{Connection, Endpoint, RecvStream, SendStream};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::ring::default_provider;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, Error, SignatureScheme};
use twinfold_protocol::op::Payload;
use twinfold_protocol::wire::{self, ChunkQueue};

/// Longer than any deadline of a node that is waited for here.
const PATIENCE: Duration = Duration::from_secs(40);

/// A certificate and its private key.
pub(crate) struct Key {
    certificate: Vec<u8>,
    key: Vec<u8>,
}

impl Key {
    /// The key of a node.
    pub(crate) fn of(node: &Node) -> Key {
        Key::load(&node.key_directory())
    }

    /// A key that no node was told.
    pub(crate) fn strange() -> Key {
        let directory = tempfile::tempdir().unwrap();
        Identity::load_or_create(directory.path()).unwrap();
        Key::load(directory.path())
    }

    fn load(directory: &Path) -> Key {
        Key {
            certificate: std::fs::read(directory.join("node.crt")).unwrap(),
            key: std::fs::read(directory.join("node.key")).unwrap(),
        }
    }

    fn chain(&self) -> Vec<CertificateDer<'static>> {
        vec![self.certificate.clone().into()]
    }

    fn private(&self) -> rustls::pki_types::PrivateKeyDer<'static> {
        PrivatePkcs8KeyDer::from(self.key.clone()).into()
    }
}

/// Takes every certificate for good.
#[derive(Debug)]
struct Gullible;

fn schemes() -> Vec<SignatureScheme> {
    default_provider()
        .signature_verification_algorithms
        .supported_schemes()
}

impl ServerCertVerifier for Gullible {
    fn verify_server_cert(
        &self,
        _certificate: &CertificateDer<'_>,
        _chain: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        schemes()
    }
}

impl ClientCertVerifier for Gullible {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _certificate: &CertificateDer<'_>,
        _chain: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        schemes()
    }
}

/// Runs one attack to its end; fails the test when it takes too long.
pub(crate) fn run<T>(attack: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(attack)
}

/// Waits, but not for ever.
pub(crate) async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(done) => done,
        Err(_) => panic!("{what}: nothing for {PATIENCE:?}"),
    }
}

/// An endpoint that dials with `key`, or without a certificate, and this protocol name.
pub(crate) fn dialler(key: Option<&Key>, alpn: &[u8]) -> Endpoint {
    let builder = rustls::ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Gullible));
    let mut tls = match key {
        Some(key) => builder
            .with_client_auth_cert(key.chain(), key.private())
            .unwrap(),
        None => builder.with_no_client_auth(),
    };
    tls.alpn_protocols = vec![alpn.to_vec()];
    let crypto = QuicClientConfig::try_from(tls).unwrap();
    let mut config = quinn::ClientConfig::new(Arc::new(crypto));
    config.transport_config(transport());
    let mut endpoint = Endpoint::client((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    endpoint.set_default_client_config(config);
    endpoint
}

/// An endpoint at `address` that accepts everybody, with `key`.
pub(crate) fn listener(key: &Key, alpn: &[u8], address: SocketAddr) -> Endpoint {
    let mut tls = rustls::ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_client_cert_verifier(Arc::new(Gullible))
        .with_single_cert(key.chain(), key.private())
        .unwrap();
    tls.alpn_protocols = vec![alpn.to_vec()];
    let crypto = QuicServerConfig::try_from(tls).unwrap();
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
    config.transport_config(transport());
    Endpoint::server(config, address).unwrap()
}

/// A hostile peer answers every ping: only what it does on its streams gives it away.
fn transport() -> Arc<quinn::TransportConfig> {
    let mut config = quinn::TransportConfig::default();
    config.keep_alive_interval(Some(Duration::from_millis(200)));
    Arc::new(config)
}

/// Dials a node with the right protocol name.
pub(crate) async fn dial(endpoint: &Endpoint, to: SocketAddr) -> Connection {
    let connecting = endpoint.connect(to, "twinfold").unwrap();
    soon("a connection", connecting).await.unwrap()
}

/// The right protocol name.
pub(crate) const ALPN: &[u8] = wire::ALPN;

/// Why the other side ended the connection.
pub(crate) async fn ending(connection: &Connection) -> String {
    soon("the end of a connection", connection.closed())
        .await
        .to_string()
}

/// A stream in both directions.
pub(crate) struct Stream {
    pub(crate) tx: SendStream,
    rx: RecvStream,
    queue: ChunkQueue,
}

impl Stream {
    pub(crate) async fn open(connection: &Connection) -> Stream {
        Stream::new(soon("a stream", connection.open_bi()).await.unwrap())
    }

    pub(crate) async fn accept(connection: &Connection) -> Result<Stream, String> {
        let accepted = soon("a stream of the other side", connection.accept_bi()).await;
        accepted.map(Stream::new).map_err(|e| e.to_string())
    }

    fn new((tx, rx): (SendStream, RecvStream)) -> Stream {
        Stream {
            tx,
            rx,
            queue: ChunkQueue::default(),
        }
    }

    /// Sends any bytes. The other side may be gone already: its reason is looked at later.
    pub(crate) async fn send(&mut self, bytes: &[u8]) {
        let _ = soon("sending", self.tx.write_all(bytes)).await;
    }

    /// The next frame, or why there is none.
    pub(crate) async fn frame(&mut self) -> Result<Payload, String> {
        loop {
            if let Some(frame) = self.queue.next_frame().map_err(|e| e.to_string())? {
                return Ok(frame);
            }
            match soon("a frame", self.rx.read_chunk(1 << 16, true)).await {
                Ok(Some(chunk)) => self.queue.push(chunk.bytes),
                Ok(None) => return Err("the stream ended".to_owned()),
                Err(e) => return Err(e.to_string()),
            }
        }
    }
}

/// A frame of this kind with any body.
pub(crate) fn frame(kind: u8, body: &[u8]) -> Bytes {
    let mut all = (body.len() as u32 + 1).to_le_bytes().to_vec();
    all.push(kind);
    all.extend_from_slice(body);
    all.into()
}
