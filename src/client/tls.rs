//! TLS over any connector, with rustls.

use std::cell::Cell;
use std::fmt;
use std::future::Future;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use http::uri::{PathAndQuery, Scheme};
use http::{Extensions, Uri};
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::connect::{Connected, Connection, HttpInfo};
use hyper_util::rt::TokioIo;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::time::timeout;
use tokio_rustls::client::TlsStream;
use tower_service::Service;

use super::progress::publishing;
use super::tls_info::wants_tls;
use super::{BoxError, ConnectTo, TlsInfo};
use crate::cause::{BadGatewayCause, Detail, Evidence, Failure, Phase};

/// Speaks TLS if the target's scheme is `https`, and passes other connections on unchanged.
///
/// | setting | default |
/// |---|---|
/// | roots | the platform's ([`new`](Self::new)), or given ([`with_roots`](Self::with_roots)) |
/// | [`timeout`](Self::timeout) of the handshake | 2 s |
/// | ALPN | `h2` (with feature `http2`) and `http/1.1`, as in the configuration given; `http/1.1` alone for a request that asks for an upgrade |
/// | cryptography | the process's [`CryptoProvider`], else ring's with feature `ring`; or as in the configuration given |
///
/// With neither provider, [`with_roots`](Self::with_roots) is an error, and each connection to an `https` target fails as
/// [`InvalidTarget`](BadGatewayCause::InvalidTarget). Install one as the process starts:
/// [`CryptoProvider::install_default`].
///
/// The certificate's chain, its names and dates are verified. Its revocation is not: no CRL or OCSP is asked for; a
/// configuration of your own ([`with_config`](Self::with_config)) can have a verifier that does. The platform's roots are
/// found by rustls-native-certs, which reads the environment: if `SSL_CERT_FILE` or `SSL_CERT_DIR` is set, it replaces
/// the platform's.
///
/// The inner connector is asked for a plain connection, as `http://host:port`; the extras of its connections are kept,
/// and [`TlsInfo`] is added.
///
/// ```
/// use tower_upstream::client::{TcpConnector, TlsConnector};
///
/// let connector = TlsConnector::new(TcpConnector::new());
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct TlsConnector<C> {
    inner: C,
    /// `None`: the platform's roots, read at first use.
    tls: Option<Arc<ClientConfig>>,
    timeout: Duration,
}

/// Read once per process, by the first TLS connection: many proxies never use TLS.
static PLATFORM: Mutex<Option<Arc<ClientConfig>>> = Mutex::new(None);

/// The platform's roots. A failure is retried: a provider may be installed later.
fn platform() -> Result<Arc<ClientConfig>, rustls::Error> {
    let mut platform = PLATFORM.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(config) = &*platform {
        return Ok(config.clone());
    }
    let provider = provider()?;
    let mut roots = RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    for error in &found.errors {
        tracing::warn!(target: "tower_upstream", %error, "a platform root certificate was left out");
    }
    roots.add_parsable_certificates(found.certs);
    Ok(platform.insert(config(roots, provider)?.into()).clone())
}

/// The process's provider, else ring's if compiled in.
fn provider() -> Result<Arc<CryptoProvider>, rustls::Error> {
    let installed = CryptoProvider::get_default().cloned();
    #[cfg(feature = "ring")]
    let installed = installed.or_else(|| Some(rustls::crypto::ring::default_provider().into()));
    installed.ok_or_else(|| rustls::Error::General(NO_PROVIDER.to_owned()))
}

const NO_PROVIDER: &str = "rustls has no CryptoProvider: enable the feature `ring`, or call `CryptoProvider::install_default` as the process starts";

thread_local! {
    static HTTP1_ONLY: Cell<bool> = const { Cell::new(false) };
}

/// Runs a step of a dial whose request needs HTTP/1.1; a [`TlsConnector`] called in it does not offer HTTP/2.
///
/// Set around the call and around each poll, so that it also reaches through connectors which call theirs later.
pub(super) fn http1_only<T>(step: impl FnOnce() -> T) -> T {
    struct Restore(bool);
    impl Drop for Restore {
        fn drop(&mut self) {
            HTTP1_ONLY.set(self.0);
        }
    }
    let _restore = Restore(HTTP1_ONLY.replace(true));
    step()
}

/// The configuration without HTTP/2 among its protocols, unless it has no other.
fn without_h2(config: &Arc<ClientConfig>) -> Arc<ClientConfig> {
    let is_h2 = |protocol: &Vec<u8>| protocol == b"h2";
    if !config.alpn_protocols.iter().any(is_h2) || config.alpn_protocols.iter().all(is_h2) {
        return config.clone();
    }
    let mut config = ClientConfig::clone(config);
    config.alpn_protocols.retain(|protocol| !is_h2(protocol));
    config.into()
}

/// A PEM file without a certificate that can be read, or no cryptography to verify with.
#[derive(Debug)]
pub struct InvalidRoots(Reason);

#[derive(Debug)]
enum Reason {
    Empty,
    Pem(rustls::pki_types::pem::Error),
    Tls(rustls::Error),
}

impl fmt::Display for InvalidRoots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Reason::Empty | Reason::Pem(_) => f.write_str("no certificate in PEM form"),
            Reason::Tls(rustls::Error::General(why)) => f.write_str(why),
            Reason::Tls(_) => f.write_str("no TLS version that the CryptoProvider supports"),
        }
    }
}

impl std::error::Error for InvalidRoots {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match &self.0 {
            Reason::Empty => None,
            Reason::Pem(error) => Some(error),
            Reason::Tls(error) => Some(error),
        }
    }
}

impl<C> TlsConnector<C> {
    /// Trusts the platform's roots. Unreadable ones are skipped.
    ///
    /// They are read once per process, by the first TLS connection.
    pub fn new(inner: C) -> Self {
        Self { inner, tls: None, timeout: Duration::from_secs(2) }
    }

    /// Trusts the certificates of a PEM file, and no others.
    ///
    /// # Errors
    /// [`InvalidRoots`] if `pem` has no certificate, or one that cannot be read, or if there is no [`CryptoProvider`].
    pub fn with_roots(inner: C, pem: &[u8]) -> Result<Self, InvalidRoots> {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(pem) {
            let certificate = certificate.map_err(|error| InvalidRoots(Reason::Pem(error)))?;
            roots.add(certificate).map_err(|_| InvalidRoots(Reason::Empty))?;
        }
        if roots.is_empty() {
            return Err(InvalidRoots(Reason::Empty));
        }
        let config = provider().and_then(|provider| config(roots, provider));
        Ok(Self::with_config(inner, config.map_err(|error| InvalidRoots(Reason::Tls(error)))?))
    }

    /// Uses a custom configuration: client certificates, ALPN, provider.
    pub fn with_config(inner: C, config: impl Into<Arc<ClientConfig>>) -> Self {
        Self { tls: Some(config.into()), ..Self::new(inner) }
    }

    /// The same settings over another connector.
    #[cfg_attr(not(feature = "balance"), expect(dead_code, reason = "health checks use it"))]
    pub(crate) fn over<D>(&self, inner: D) -> TlsConnector<D> {
        TlsConnector { inner, tls: self.tls.clone(), timeout: self.timeout }
    }

    /// Limits the handshake (default 2 s).
    pub fn timeout(mut self, limit: Duration) -> Self {
        self.timeout = limit;
        self
    }
}

/// The name in TLS stays the target's host.
impl<C: ConnectTo> ConnectTo for TlsConnector<C> {
    fn connect_to(self, addresses: &[SocketAddr]) -> Self {
        Self { inner: self.inner.connect_to(addresses), ..self }
    }
}

fn config(roots: RootCertStore, provider: Arc<CryptoProvider>) -> Result<ClientConfig, rustls::Error> {
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    if cfg!(feature = "http2") {
        config.alpn_protocols.insert(0, b"h2".to_vec());
    }
    Ok(config)
}

/// The same host and port without TLS, which is what the inner connector opens.
fn without_tls(target: &Uri) -> Option<Uri> {
    let authority = format!("{}:{}", target.host()?, target.port_u16().unwrap_or(443));
    let path = target.path_and_query().cloned().unwrap_or(PathAndQuery::from_static("/"));
    Uri::builder().scheme(Scheme::HTTP).authority(authority).path_and_query(path).build().ok()
}

fn refused(why: &'static str, source: impl Into<BoxError>) -> Failure {
    Failure::builder(BadGatewayCause::InvalidTarget)
        .unsent(Evidence::LocalRefusal)
        .detail(Detail::Text(why))
        .source(source)
        .build()
}

impl<C> Service<Uri> for TlsConnector<C>
where
    C: Service<Uri>,
    C::Response: Read + Write + Connection + Unpin + Send + 'static,
    C::Error: Into<BoxError>,
    C::Future: Send + 'static,
{
    type Response = MaybeTls<C::Response>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, target: Uri) -> Self::Future {
        let (config, limit, http1_only) = (self.tls.clone(), self.timeout, HTTP1_ONLY.get());
        let secure = wants_tls(&target);
        let host = target.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
        let name = ServerName::try_from(host).map(|name| name.to_owned());
        let plain = if secure { without_tls(&target) } else { None };
        let dial = self.inner.call(plain.unwrap_or(target));
        Box::pin(async move {
            let io = if secure {
                let name = name.map_err(|error| refused("the host is no TLS server name", error))?;
                let io = dial.await.map_err(Into::into)?;
                let config = match config {
                    Some(config) => config,
                    None => platform().map_err(|error| refused(NO_PROVIDER, error))?,
                };
                let config = if http1_only { without_h2(&config) } else { config };
                let tls = tokio_rustls::TlsConnector::from(config);
                let mut extras = Extensions::new();
                io.connected().get_extras(&mut extras);
                let peer = extras.get::<HttpInfo>().map(HttpInfo::remote_addr);
                let shaken = publishing(Phase::Tls, peer, timeout(limit, tls.connect(name, TokioIo::new(io)))).await;
                let failed = match shaken {
                    Ok(Ok(stream)) => return Ok(MaybeTls(Kind::Tls(Box::new(TokioIo::new(stream))))),
                    Ok(Err(error)) => Failure::handshaking(error, peer),
                    Err(elapsed) => Failure::builder(BadGatewayCause::TlsTimeout)
                        .unsent(Evidence::NoConnection)
                        .phase(Phase::Tls)
                        .peer(peer)
                        .source(elapsed)
                        .build(),
                };
                return Err(failed.into());
            } else {
                dial.await.map_err(Into::into)?
            };
            Ok(MaybeTls(Kind::Plain(io)))
        })
    }
}

/// A plain or TLS connection.
#[derive(Debug)]
pub struct MaybeTls<T>(Kind<T>);

#[derive(Debug)]
enum Kind<T> {
    Plain(T),
    Tls(Box<TokioIo<TlsStream<TokioIo<T>>>>),
}

impl<T: Connection + Read + Write + Unpin> Connection for MaybeTls<T> {
    fn connected(&self) -> Connected {
        match &self.0 {
            Kind::Plain(io) => io.connected(),
            Kind::Tls(stream) => {
                let (io, session) = stream.inner().get_ref();
                let connected = io.inner().connected();
                let connected = connected.extra(TlsInfo);
                if session.alpn_protocol() == Some(b"h2") { connected.negotiated_h2() } else { connected }
            }
        }
    }
}

impl<T: Read + Write + Unpin> Read for MaybeTls<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        match &mut self.0 {
            Kind::Plain(io) => Pin::new(io).poll_read(cx, buf),
            Kind::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl<T: Read + Write + Unpin> Write for MaybeTls<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.0 {
            Kind::Plain(io) => Pin::new(io).poll_write(cx, buf),
            Kind::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.0 {
            Kind::Plain(io) => Pin::new(io).poll_flush(cx),
            Kind::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.0 {
            Kind::Plain(io) => Pin::new(io).poll_shutdown(cx),
            Kind::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.0 {
            Kind::Plain(io) => io.is_write_vectored(),
            Kind::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.0 {
            Kind::Plain(io) => Pin::new(io).poll_write_vectored(cx, bufs),
            Kind::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }
}
