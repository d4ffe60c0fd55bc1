//! Which cryptography TLS to an upstream uses. One test, as the provider is the process's.

// helpers fail their test
#![allow(clippy::unwrap_used)]

mod support;

use std::sync::Arc;

use support::{Gateway, Upstream, ask};
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::{CryptoProvider, ring};
use tokio_rustls::rustls::pki_types::PrivatePkcs8KeyDer;
use tokio_rustls::rustls::{CipherSuite, ServerConfig};
use tower_upstream::client::{ReverseProxy, TcpConnector, TlsConnector};
use tower_upstream::forward::ForwardingRules;

const CHACHA: CipherSuite = CipherSuite::TLS13_CHACHA20_POLY1305_SHA256;

#[tokio::test]
async fn the_provider_of_the_process_is_used_before_ring() {
    let signed = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let key = PrivatePkcs8KeyDer::from(signed.signing_key.serialize_der()).into();
    let server = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![signed.cert.der().clone()], key)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(server));
    let (suites, mut negotiated) = mpsc::unbounded_channel();
    let upstream = Upstream::accepting(move |stream, _| {
        let (acceptor, suites) = (acceptor.clone(), suites.clone());
        async move {
            let stream = acceptor.accept(stream).await.unwrap();
            suites.send(stream.get_ref().1.negotiated_cipher_suite().unwrap().suite()).unwrap();
        }
    })
    .await;
    let before = TlsConnector::with_roots(TcpConnector::new(), signed.cert.pem().as_bytes()).unwrap();
    // ring's, with one suite that it does not prefer
    let mut installed = ring::default_provider();
    installed.cipher_suites.retain(|suite| suite.suite() == CHACHA);
    CryptoProvider::install_default(installed).unwrap();
    let after = TlsConnector::with_roots(TcpConnector::new(), signed.cert.pem().as_bytes()).unwrap();
    let mut used = Vec::new();
    for connector in [before, after] {
        let target = format!("https://localhost:{}", upstream.address.port()).parse().unwrap();
        let builder = ReverseProxy::builder(target, ForwardingRules::new("edge").unwrap()).connector(connector);
        ask(Gateway::start(builder).await.address, "GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        used.push(negotiated.recv().await.unwrap());
    }
    assert_ne!(used[0], CHACHA, "ring prefers AES");
    assert_eq!(used[1], CHACHA);
}
