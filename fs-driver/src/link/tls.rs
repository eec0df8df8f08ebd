//! TLS 1.3 with pinned certificates on both ends: no authority, no names, no
//! dates; a node talks to exactly the one other node it was told.

use std::sync::Arc;

use anyhow::{Context, Result};
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, SignatureScheme};
use twinfold_protocol::wire;

use super::identity::{Fingerprint, Identity};

/// AES-128 first: with hardware support, as nearly everywhere, it is the fastest.
fn provider() -> CryptoProvider {
    use ring::cipher_suite::{
        TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384, TLS13_CHACHA20_POLY1305_SHA256,
    };
    CryptoProvider {
        cipher_suites: vec![
            TLS13_AES_128_GCM_SHA256,
            TLS13_CHACHA20_POLY1305_SHA256,
            TLS13_AES_256_GCM_SHA384,
        ],
        ..ring::default_provider()
    }
}

#[derive(Debug)]
struct Pinned {
    /// None: whoever it is, it holds its certificate's key, and what it may do is decided later.
    peer: Option<Fingerprint>,
    provider: Arc<CryptoProvider>,
}

impl Pinned {
    fn check(&self, certificate: &CertificateDer<'_>) -> Result<(), Error> {
        let found = Fingerprint::of(certificate);
        let Some(expected) = self.peer.filter(|expected| *expected != found) else {
            return Ok(());
        };
        tracing::warn!(%found, %expected, "a stranger was refused");
        Err(Error::InvalidCertificate(
            CertificateError::ApplicationVerificationFailure,
        ))
    }

    fn tls12(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn tls13(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        _chain: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.check(certificate)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.tls12(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.tls13(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.schemes()
    }
}

impl ClientCertVerifier for Pinned {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        certificate: &CertificateDer<'_>,
        _chain: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.check(certificate)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.tls12(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.tls13(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.schemes()
    }
}

/// The configurations for accepting and for dialling.
pub(super) fn configs(
    identity: &Identity,
    peer: Fingerprint,
) -> Result<(QuicServerConfig, QuicClientConfig)> {
    let (server, client) = pinned_configs(identity, peer, wire::ALPN)?;
    Ok((server.try_into()?, client.try_into()?))
}

/// TLS 1.3 for accepting exactly one peer and for dialling it, with this protocol's name:
/// also for what runs over TCP.
pub fn pinned_configs(
    identity: &Identity,
    peer: Fingerprint,
    protocol: &[u8],
) -> Result<(rustls::ServerConfig, rustls::ClientConfig)> {
    with_verifier(identity, Some(peer), protocol)
}

/// TLS 1.3 for accepting anybody who has a key: for making the acquaintance of a node. What it
/// may do has to be decided from what it knows.
pub fn open_config(identity: &Identity, protocol: &[u8]) -> Result<rustls::ServerConfig> {
    with_verifier(identity, None, protocol).map(|(server, _)| server)
}

fn with_verifier(
    identity: &Identity,
    peer: Option<Fingerprint>,
    protocol: &[u8],
) -> Result<(rustls::ServerConfig, rustls::ClientConfig)> {
    let provider = Arc::new(provider());
    let pinned = Arc::new(Pinned {
        peer,
        provider: provider.clone(),
    });
    let chain = vec![CertificateDer::from(identity.certificate.clone())];
    let key = || PrivatePkcs8KeyDer::from(identity.key.clone()).into();
    let versions = &[&rustls::version::TLS13];

    let mut server = rustls::ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(versions)?
        .with_client_cert_verifier(pinned.clone())
        .with_single_cert(chain.clone(), key())
        .context("this node's key and certificate do not fit")?;
    server.alpn_protocols = vec![protocol.to_vec()];

    let mut client = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)?
        .dangerous()
        .with_custom_certificate_verifier(pinned)
        .with_client_auth_cert(chain, key())
        .context("this node's key and certificate do not fit")?;
    client.alpn_protocols = vec![protocol.to_vec()];
    // A resumed TLS session would not show the certificate again.
    client.resumption = rustls::client::Resumption::disabled();
    Ok((server, client))
}
