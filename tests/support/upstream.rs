//! Upstreams: scripted byte by byte, or a real server.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use axum::Router;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpStream;
use tokio::task::AbortHandle;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::pki_types::PrivatePkcs8KeyDer;
use tokio_rustls::rustls::{ServerConfig, crypto};

use super::gateway::listener;
use super::wire::Wire;

/// An upstream that runs until it is dropped, and counts its connections.
pub(crate) struct Upstream {
    pub(crate) address: SocketAddr,
    accepted: Arc<AtomicUsize>,
    task: AbortHandle,
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Upstream {
    /// Runs `script` on each connection, with the number of connections before it.
    pub(crate) async fn scripted<F>(script: impl Fn(Wire, usize) -> F + Send + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        Self::accepting(move |stream, before| script(Wire::new(stream), before)).await
    }

    pub(crate) async fn accepting<F>(script: impl Fn(TcpStream, usize) -> F + Send + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = listener().await;
        let address = listener.local_addr().unwrap();
        let accepted = Arc::new(AtomicUsize::new(0));
        let count = accepted.clone();
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let _ = stream.set_nodelay(true);
                tokio::spawn(script(stream, count.fetch_add(1, SeqCst)));
            }
        });
        Self { address, accepted, task: task.abort_handle() }
    }

    /// Connections so far.
    pub(crate) fn accepted(&self) -> usize {
        self.accepted.load(SeqCst)
    }
}

/// A real server with these routes, HTTP/1.1 and h2c.
pub(crate) async fn app(router: Router) -> Upstream {
    Upstream::accepting(move |stream, _| {
        let service = TowerToHyperService::new(router.clone());
        async move {
            let server = auto::Builder::new(TokioExecutor::new());
            let _ = server.serve_connection_with_upgrades(TokioIo::new(stream), service).await;
        }
    })
    .await
}

/// An app over TLS that offers these protocols, and its certificate.
pub(crate) async fn tls_app(router: Router, protocols: &[&[u8]]) -> (Upstream, String) {
    let signed = rcgen::generate_simple_self_signed(["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
    let key = PrivatePkcs8KeyDer::from(signed.signing_key.serialize_der()).into();
    let mut config = ServerConfig::builder_with_provider(Arc::new(crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![signed.cert.der().clone()], key)
        .unwrap();
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let upstream = Upstream::accepting(move |stream, _| {
        let (acceptor, service) = (acceptor.clone(), TowerToHyperService::new(router.clone()));
        async move {
            let Ok(stream) = acceptor.accept(stream).await else { return };
            let server = auto::Builder::new(TokioExecutor::new());
            let _ = server.serve_connection_with_upgrades(TokioIo::new(stream), service).await;
        }
    })
    .await;
    (upstream, signed.cert.pem())
}
