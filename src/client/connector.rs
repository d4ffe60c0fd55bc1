//! Any connector, stamped and limited in time.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use http::{Extensions, Uri};
use hyper_util::client::legacy::connect::{Connection, HttpInfo};
use tokio::time::timeout;
use tower_service::Service;

use super::interim::Interim;
use super::sight::telling;
use super::{BoxError, Stamped};
use crate::cause::{BadGatewayCause, Evidence, Failure, Phase, Replay};
use crate::classify::Stamp;

/// Wraps any connector: its connections carry a [`Stamp`], its errors are [`Failure`]s.
///
/// For [`ReverseProxy`](super::ReverseProxy) and for hyper-util's client alike; with the latter,
/// [`ClassifyLayer`](crate::ClassifyLayer) tells a stale keep-alive from a crash.
///
/// | limit | default |
/// |---|---|
/// | [`timeout`](Self::timeout) over all that the inner connector does | none: set where the inner one has none |
/// | [`max_interim`](Self::max_interim) 1xx heads before an answer | 64 |
///
/// [`TcpConnector`](super::TcpConnector) and [`TlsConnector`](super::TlsConnector) limit name, connect
/// and TLS apart; around `HttpConnector`, hyper-rustls or a Unix socket connector, `timeout` is one
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
}

impl<C> Connector<C> {
    /// Wraps `inner`.
    pub fn new(inner: C) -> Self {
        Self { inner, timeout: None, max_interim: 64 }
    }

    /// Limits name, connect and TLS together (default: none).
    pub fn timeout(mut self, limit: Duration) -> Self {
        self.timeout = Some(limit);
        self
    }

    /// How many interim responses may come before an answer (default 64).
    ///
    /// One more, or over 64 KiB of them, ends the connection; hyper itself counts none.
    pub fn max_interim(mut self, heads: u32) -> Self {
        self.max_interim = heads;
        self
    }
}

impl<C> Service<Uri> for Connector<C>
where
    C: Service<Uri>,
    C::Response: Connection,
    C::Error: Into<BoxError>,
    C::Future: Send + 'static,
{
    type Response = Stamped<C::Response>;
    type Error = Failure;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Failure>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        self.inner.poll_ready(cx).map_err(|error| Failure::connecting(error.into(), None))
    }

    fn call(&mut self, target: Uri) -> Self::Future {
        let (limit, max_interim) = (self.timeout, self.max_interim);
        // an inner connector of ours tells more exactly, and is heard first
        let dial = telling(Phase::Connect, None, self.inner.call(target));
        Box::pin(async move {
            let dialed = match limit {
                None => dial.await,
                Some(limit) => match timeout(limit, dial).await {
                    Ok(dialed) => dialed,
                    Err(elapsed) => {
                        let failure = Failure::builder(BadGatewayCause::ConnectTimeout)
                            .replay(Replay::NotSent, Evidence::NoConnection);
                        return Err(failure.source(elapsed).build());
                    }
                },
            };
            let io = dialed.map_err(|error| Failure::connecting(error.into(), None))?;
            let mut extras = Extensions::new();
            io.connected().get_extras(&mut extras);
            let stamp = Stamp::new(extras.get::<HttpInfo>().map(HttpInfo::remote_addr));
            Ok(Stamped::new(io, stamp, Interim::new(max_interim)))
        })
    }
}
