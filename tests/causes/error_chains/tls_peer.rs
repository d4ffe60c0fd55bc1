//! A certificate authority for one test run, and TLS upstreams.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, date_time_ymd};
use rustls::crypto::ring;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{
    ClientConfig, RootCertStore, ServerConfig, ServerConnection, StreamOwned, SupportedProtocolVersion,
    version::{TLS12, TLS13},
};

use super::peer::{Peer, accept_into};

pub type TlsStream = StreamOwned<ServerConnection, TcpStream>;
type Identity = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

pub const BOTH: &[&SupportedProtocolVersion] = &[&TLS13, &TLS12];

static AUTHORITY: LazyLock<CertifiedIssuer<'static, KeyPair>> = LazyLock::new(|| {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, key()).expect("a certificate")
});

fn key() -> KeyPair {
    KeyPair::generate().expect("a key")
}

fn roots() -> RootCertStore {
    let mut roots = RootCertStore::empty();
    roots.add(AUTHORITY.der().clone()).expect("a root");
    roots
}

/// What the upstream shows.
#[derive(Clone, Copy)]
pub enum Certificate {
    Good,
    SelfSigned,
    OtherName,
    Expired,
}

impl Certificate {
    fn issue(self) -> Identity {
        let name = if matches!(self, Self::OtherName) { "other.test" } else { "127.0.0.1" };
        let mut params = CertificateParams::new([name.to_owned()]).expect("a name");
        if matches!(self, Self::Expired) {
            params.not_before = date_time_ymd(2020, 1, 1);
            params.not_after = date_time_ymd(2021, 1, 1);
        }
        let key = key();
        let certificate = match self {
            Self::SelfSigned => params.self_signed(&key),
            _ => params.signed_by(&key, &AUTHORITY),
        };
        (
            vec![certificate.expect("a certificate").der().clone()],
            PrivateKeyDer::try_from(key.serialize_der()).expect("a key"),
        )
    }

    /// A server that shows this certificate and asks for none.
    pub fn server(self, versions: &[&'static SupportedProtocolVersion]) -> ServerConfig {
        let (chain, key) = self.issue();
        ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(versions)
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .expect("an identity")
    }
}

/// A server that demands a client certificate.
pub fn demanding(version: &'static SupportedProtocolVersion) -> ServerConfig {
    let (chain, key) = Certificate::Good.issue();
    let provider = Arc::new(ring::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots()), provider.clone());
    ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[version])
        .expect("versions")
        .with_client_cert_verifier(verifier.build().expect("a verifier"))
        .with_single_cert(chain, key)
        .expect("an identity")
}

/// A client that trusts this run's authority.
pub fn trusting(versions: &[&'static SupportedProtocolVersion]) -> ClientConfig {
    ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(versions)
        .expect("versions")
        .with_root_certificates(roots())
        .with_no_client_auth()
}

/// Starts a TLS upstream; the socket is closed without `close_notify` where the script ends.
pub fn tls_upstream(server: ServerConfig, script: fn(&mut TlsStream)) -> SocketAddr {
    let server = Arc::new(server);
    accept_into(move |peer: Peer| {
        let session = ServerConnection::new(server.clone()).expect("a server");
        let mut stream = StreamOwned::new(session, peer.into_stream());
        script(&mut stream);
        // what the client still says must not turn our FIN into a reset, and an alert must arrive
        let _ = stream.flush();
        let _ = stream.sock.shutdown(std::net::Shutdown::Write);
        let _ = stream.sock.set_read_timeout(Some(Duration::from_secs(2)));
        while stream.sock.read(&mut [0; 4096]).is_ok_and(|read| read > 0) {}
    })
}

/// Reads one request, as far as it comes.
pub fn request(stream: &mut TlsStream) {
    let mut read = Vec::new();
    let mut byte = [0];
    while !read.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|length| length > 0) {
        read.push(byte[0]);
    }
}

/// Answers with a body that only the end of the connection ends.
pub fn open_ended(stream: &mut TlsStream) {
    request(stream);
    let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nabc");
}
