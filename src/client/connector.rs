//! Wraps any connector with connection counters and a timeout.

use std::any::Any;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use http::{Extensions, Uri};
use hyper_util::client::legacy::connect::{Connection, HttpInfo};
use tokio::time::timeout;
use tower_service::Service;

use super::interim::Interim;
use super::progress::publishing;
use super::tls_info::{TlsInfo, not_tls, wants_tls};
use super::{BoxError, ConnectTo, CountedIo, InvalidTarget, TcpConnector};
use crate::cause::{BadGatewayCause, Evidence, Failure, Phase};
use crate::classify::ConnectionStats;

/// Wraps any connector: its connections count their bytes, its errors are [`Failure`]s.
///
/// For [`ReverseProxy`](super::ReverseProxy) and for hyper-util's client alike; with the latter,
/// [`ClassifyLayer`](crate::ClassifyLayer) can distinguish a stale keep-alive from a crash.
///
/// | limit | default |
/// |---|---|
/// | [`timeout`](Self::timeout) of the inner connector | none: set it if the inner one has none |
/// | [`max_interim`](Self::max_interim) 1xx heads before a response | 64 |
///
/// For a target whose scheme is `https`, nothing is sent on a connection that is not known to be TLS: by [`TlsInfo`], or by
/// [`assume_tls`](Self::assume_tls) for connectors that do not say so, such as hyper-rustls and hyper-tls. Any other
/// connection is closed, and the failure is [`InvalidTarget`](crate::BadGatewayCause::InvalidTarget).
///
/// [`TcpConnector`] and [`TlsConnector`](super::TlsConnector) have separate limits for name, connect
/// and TLS; around `HttpConnector`, hyper-rustls or a Unix socket connector, `timeout` is one
/// limit for all three.
///
/// ```
/// use hyper_util::{client::legacy::Client, rt::TokioExecutor};
/// use tower_upstream::client::{Connector, TcpConnector};
///
/// let client: Client<_, axum::body::Body> =
///     Client::builder(TokioExecutor::new()).build(Connector::new(TcpConnector::new()));
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct Connector<C> {
    inner: C,
    timeout: Option<Duration>,
    max_interim: u32,
    assume_tls: bool,
    /// Why nothing can be connected to.
    refuses: Option<InvalidTarget>,
}

impl<C> Connector<C> {
    /// Wraps `inner`.
    pub fn new(inner: C) -> Self {
        Self { inner, timeout: None, max_interim: 64, assume_tls: false, refuses: None }
    }

    /// Limits name, connect and TLS together (default: none).
    pub fn timeout(mut self, limit: Duration) -> Self {
        self.timeout = Some(limit);
        self
    }

    /// Sets how many interim responses may precede a response (default 64).
    ///
    /// One more, or more than 64 KiB of them, closes the connection; hyper itself has no limit. In HTTP/2 they are counted
    /// per stream, and their size is not limited.
    pub fn max_interim(mut self, heads: u32) -> Self {
        self.max_interim = heads;
        self
    }

    /// States that the inner connector speaks TLS to every `https` target (default: its connections say so by [`TlsInfo`]).
    ///
    /// This is not checked: if it is wrong, requests are sent in clear.
    ///
    /// ```
    /// use hyper_util::client::legacy::connect::HttpConnector;
    /// use tower_upstream::client::Connector;
    ///
    /// fn over_tls(https: hyper_rustls::HttpsConnector<HttpConnector>) -> Connector<hyper_rustls::HttpsConnector<HttpConnector>> {
    ///     Connector::new(https).assume_tls()
    /// }
    /// ```
    pub fn assume_tls(mut self) -> Self {
        self.assume_tls = true;
        self
    }

    /// Fails each connection as an invalid target.
    #[cfg(feature = "balance")]
    pub(super) fn refuse(mut self, why: InvalidTarget) -> Self {
        self.refuses = Some(why);
        self
    }

    /// Whether its connections cannot be TLS, as far as known before connecting.
    pub(super) fn is_plain(&self) -> bool
    where
        C: 'static,
    {
        !self.assume_tls && (&self.inner as &dyn Any).is::<TcpConnector>()
    }
}

impl<C: ConnectTo> ConnectTo for Connector<C> {
    fn connect_to(self, addresses: &[SocketAddr]) -> Self {
        Self { inner: self.inner.connect_to(addresses), ..self }
    }
}

impl<C> Service<Uri> for Connector<C>
where
    C: Service<Uri>,
    C::Response: Connection + hyper::rt::Read + Unpin,
    C::Error: Into<BoxError>,
    C::Future: Send + 'static,
{
    type Response = CountedIo<C::Response>;
    type Error = Failure;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Failure>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        self.inner.poll_ready(cx).map_err(|error| Failure::connecting(error.into(), None))
    }

    fn call(&mut self, target: Uri) -> Self::Future {
        if let Some(why) = self.refuses {
            return Box::pin(async move { Err(why.into_failure()) });
        }
        let (limit, max_interim) = (self.timeout, self.max_interim);
        let needs_tls_info = !self.assume_tls && wants_tls(&target);
        // an inner connector of this crate has a more specific failure
        let dial = publishing(Phase::Connect, None, self.inner.call(target));
        Box::pin(async move {
            let dialed = match limit {
                None => dial.await,
                Some(limit) => match timeout(limit, dial).await {
                    Ok(dialed) => dialed,
                    Err(elapsed) => {
                        let failure = Failure::builder(BadGatewayCause::ConnectTimeout).unsent(Evidence::NoConnection);
                        return Err(failure.source(elapsed).build());
                    }
                },
            };
            let io = dialed.map_err(|error| Failure::connecting(error.into(), None))?;
            let mut extras = Extensions::new();
            io.connected().get_extras(&mut extras);
            if needs_tls_info && extras.get::<TlsInfo>().is_none() {
                return Err(not_tls());
            }
            let stamp = ConnectionStats::new(extras.get::<HttpInfo>().map(HttpInfo::remote_addr));
            Ok(CountedIo::new(io, stamp, Interim::new(max_interim)))
        })
    }
}
