//! The forwarding service and its settings.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::{Request, Response};
use tokio::sync::Semaphore;
use tower_service::Service;

#[cfg(feature = "balance")]
use super::InvalidTarget;
use super::exchange::{self, ProxyTarget};
use super::pool::{Limits, Pool};
use super::tls_info::{NOT_TLS, wants_tls};
use super::{Connect, ConnectTo, Connector, HttpVersion, ProxyBody, SendBody, Target, TcpConnector};
use crate::body::ResponseBody;
use crate::cause::Failure;
use crate::forward::{ClientInfo, ForwardingRules};
use crate::opaque::Opaque;

/// The default connector of [`ReverseProxy`].
#[cfg(feature = "rustls")]
pub type DefaultConnector = super::TlsConnector<TcpConnector>;
/// The default connector of [`ReverseProxy`].
#[cfg(not(feature = "rustls"))]
pub type DefaultConnector = TcpConnector;

/// The largest flow-control window of HTTP/2 (RFC 9113 section 6.9.1).
const MAX_WINDOW: u32 = (1 << 31) - 1;
/// The maximum number of streams: the smallest windows fit into that of their connection.
const MAX_STREAMS: u32 = MAX_WINDOW / 65_535 - 1;

/// Forwards requests to one upstream.
///
/// Heads follow the [`ForwardingRules`]; bodies stream in both directions with backpressure; upgrades are forwarded, over
/// HTTP/1.1 even if TLS would negotiate HTTP/2 (`upgrade_failed` if the upstream speaks only HTTP/2). A request that is
/// proven not sent because a pooled connection had died is sent again on another connection, with its body; nothing else is
/// ever sent twice. A request that fails closes its connection, even one that is blocked in a write. See the
/// [module](super) for an example.
///
/// The client's address is that of [`client_info`](Self::client_info), or of a [`ClientInfo`] in the request's
/// extensions.
#[derive(Debug)]
pub struct ReverseProxy<C, B> {
    upstream: Opaque<Arc<ProxyTarget<C, B>>>,
    client_info: Arc<ClientInfo>,
}

impl ReverseProxy<DefaultConnector, ()> {
    /// Starts with the defaults of [`ReverseProxyBuilder`].
    pub fn builder(target: Target, rules: ForwardingRules) -> ReverseProxyBuilder {
        let connector = TcpConnector::new();
        #[cfg(feature = "rustls")]
        let connector = super::TlsConnector::new(connector);
        ReverseProxyBuilder::new(target, rules, connector)
    }
}

impl<C, B> ReverseProxy<C, B> {
    /// The upstream's name in log events, failures and metrics.
    pub(crate) fn name(&self) -> &Arc<str> {
        &self.upstream.name
    }

    /// A clone for the requests of this client: create one for each accepted connection.
    pub fn client_info(&self, caller: ClientInfo) -> Self {
        Self { upstream: self.upstream.clone(), client_info: Arc::new(caller) }
    }
}

impl<C, B> ReverseProxy<C, B>
where
    C: Connect,
    C::Future: 'static,
    B: SendBody,
{
    /// A probe for [`CircuitHandle::active_probe`](crate::breaker::CircuitHandle::active_probe): whether the upstream accepts a
    /// connection, including TLS.
    ///
    /// Nothing is sent on it; it is closed immediately.
    pub fn connect_probe(&self) -> impl FnMut() -> Pin<Box<dyn Future<Output = bool> + Send>> + Send + use<C, B> {
        let upstream = self.upstream.0.clone();
        move || {
            let upstream = upstream.clone();
            Box::pin(async move { upstream.pool.connects().await })
        }
    }
}

impl<C, B> ReverseProxy<C, B>
where
    C: Connect,
    C::Future: 'static,
    B: SendBody,
{
    /// Opens a connection, including TLS, which the next request uses if it comes within
    /// [`idle_timeout`](ReverseProxyBuilder::idle_timeout). Nothing is sent on it.
    ///
    /// # Errors
    /// The [`Failure`] to connect.
    pub fn warm_up(&self) -> impl Future<Output = Result<(), Failure>> + Send + use<C, B> {
        let upstream = self.upstream.0.clone();
        async move { upstream.pool.warm_up().await }
    }
}

impl<C, B> Clone for ReverseProxy<C, B> {
    fn clone(&self) -> Self {
        Self { upstream: self.upstream.clone(), client_info: self.client_info.clone() }
    }
}

impl<C, B> Service<Request<B>> for ReverseProxy<C, B>
where
    C: Connect,
    C::Future: 'static,
    B: SendBody,
{
    type Response = Response<ResponseBody<ProxyBody<B>>>;
    type Error = Failure;
    type Future = ExchangeFuture<B>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        // the wait for a connection is part of the call, under its timeouts
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        exchange::start(&self.upstream, &self.client_info, request)
    }
}

/// The future of [`ReverseProxy`]; hyper's own futures cannot be named, hence the box.
pub(super) type ExchangeFuture<B> =
    Pin<Box<dyn Future<Output = Result<Response<ResponseBody<ProxyBody<B>>>, Failure>> + Send>>;

/// Settings of a [`ReverseProxy`].
///
/// | setting | default |
/// |---|---|
/// | [`http`](Self::http) | [`HttpVersion::Auto`] |
/// | [`max_connections`](Self::max_connections) | 1024 |
/// | [`max_tunnels`](Self::max_tunnels) among them | half of them |
/// | [`tunnel_idle`](Self::tunnel_idle) of tunnels after a 101 | 1 h |
/// | [`max_streams`](Self::max_streams) on one HTTP/2 connection | 100 |
/// | [`queue_timeout`](Self::queue_timeout) | 1 s |
/// | [`upload_idle_timeout`](Self::upload_idle_timeout) once the response is complete | 30 s |
/// | [`idle_timeout`](Self::idle_timeout) of pooled connections | 3 s, less if the upstream announces so in `Keep-Alive` |
/// | [`max_age`](Self::max_age) of a connection for further requests | 10 min +-10 % |
/// | [`http2_stream_window`](Self::http2_stream_window) | 65,535 bytes |
/// | [`http2_keep_alive`](Self::http2_keep_alive) | no PING is sent |
/// | [`connect_to`](Self::connect_to) addresses | those of the target's host |
/// | [`connector`](Self::connector) | [`TcpConnector`], under [`TlsConnector`](super::TlsConnector) with feature `rustls` |
///
/// Requests for an `https` target are never sent in clear: without TLS each fails as
/// [`InvalidTarget`](crate::BadGatewayCause::InvalidTarget) before anything is sent, and [`build`](Self::build) logs an error
/// if it can detect this.
#[derive(Clone, Debug)]
#[must_use]
pub struct ReverseProxyBuilder<C = DefaultConnector> {
    name: Option<Arc<str>>,
    target: Target,
    rules: ForwardingRules,
    http: HttpVersion,
    upload_idle: Duration,
    tunnels: Option<usize>,
    tunnel_idle: Option<Duration>,
    exposes_peer: bool,
    limits: Limits,
    connector: Connector<C>,
}

impl<C> ReverseProxyBuilder<C> {
    fn new(target: Target, rules: ForwardingRules, connector: C) -> Self {
        let limits = Limits {
            connections: 1024,
            streams: 100,
            // more than a second below the shortest common keep-alive: 5 s (Node, uvicorn)
            idle: Duration::from_secs(3),
            queue: Duration::from_secs(1),
            max_age: Duration::from_secs(600),
            stream_window: 65_535,
            keep_alive: None,
        };
        let connector = Connector::new(connector);
        Self {
            name: None,
            target,
            rules,
            http: HttpVersion::Auto,
            upload_idle: Duration::from_secs(30),
            tunnels: None,
            tunnel_idle: Some(Duration::from_secs(3600)),
            exposes_peer: false,
            limits,
            connector,
        }
    }

    /// Sets the upstream's name in failures (default: its authority).
    pub fn name(mut self, name: impl Into<Arc<str>>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Replaces the target, with the upstream's name if that is not set.
    pub fn target(mut self, target: Target) -> Self {
        self.target = target;
        self
    }

    /// Connects to these addresses in place of those of the target's host (default: none, it is resolved).
    ///
    /// They are the addresses of one server, tried in turns, with ports of their own. The name in TLS stays the target's.
    pub fn connect_to(mut self, addresses: &[SocketAddr]) -> Self
    where
        C: ConnectTo,
    {
        self.connector = self.connector.connect_to(addresses);
        self
    }

    /// Fails each request, because there is no target.
    #[cfg(feature = "balance")]
    pub(crate) fn refuse(mut self, why: InvalidTarget) -> Self {
        self.connector = self.connector.refuse(why);
        self
    }

    /// Sets the HTTP version of the upstream (default: HTTP/1.1, or what TLS negotiates).
    pub fn http(mut self, http: HttpVersion) -> Self {
        self.http = http;
        self
    }

    /// Limits stalls of an upload after its response is complete (default 30 s).
    ///
    /// The upstream may still want the rest (RFC 9112 section 9.3); after this time its connection is closed.
    pub fn upload_idle_timeout(mut self, limit: Duration) -> Self {
        self.upload_idle = limit;
        self
    }

    /// Sets the maximum number of connections (default 1024, at least 1); beyond it requests queue.
    ///
    /// A connection attempt without progress for 5 s is no longer waited for: others are started concurrently, and it gives up its
    /// slot if there is no other.
    pub fn max_connections(mut self, connections: usize) -> Self {
        self.limits.connections = connections.max(1);
        self
    }

    /// Sets how many of these connections may be tunnels after a 101 (default half of them, at least 1).
    ///
    /// Tunnels are long-lived and may be silent: without a cap of their own they could take every connection. Further upgrades
    /// get a 503 `connection_limit` before anything is sent.
    pub fn max_tunnels(mut self, tunnels: usize) -> Self {
        self.tunnels = Some(tunnels);
        self
    }

    /// Limits how long a tunnel after a 101 may be silent in both directions (default 1 h; `None`: no limit).
    ///
    /// It is a setting of the client and not of [`Timeouts`](crate::timeout::Timeouts), because a call ends with its 101 and the bytes that
    /// follow pass no layer. It fires within 9/8 of the limit, also for a tunnel of which one side has ended.
    pub fn tunnel_idle(mut self, limit: impl Into<Option<Duration>>) -> Self {
        self.tunnel_idle = limit.into();
        self
    }

    /// Adds the upstream's address to responses, for [`CallSummary::peer`](crate::stack::CallSummary::peer) (default: off).
    ///
    /// It costs an entry in each response's extensions. A failure has the address in any case.
    pub fn expose_peer(mut self) -> Self {
        self.exposes_peer = true;
        self
    }

    /// Sets how many streams share an HTTP/2 connection before another is opened (default 100, from 1 to 32,767).
    ///
    /// A lower `SETTINGS_MAX_CONCURRENT_STREAMS` of the upstream applies. A request for which no connection has a free
    /// stream waits at most for [`queue_timeout`](Self::queue_timeout).
    pub fn max_streams(mut self, streams: usize) -> Self {
        self.limits.streams = u32::try_from(streams).unwrap_or(MAX_STREAMS).clamp(1, MAX_STREAMS);
        self
    }

    /// Limits how long a request waits for a connection (default 1 s).
    pub fn queue_timeout(mut self, limit: Duration) -> Self {
        self.limits.queue = limit;
        self
    }

    /// Sets how long an idle connection is kept (default 3 s, at most a day), for HTTP/1.1 and HTTP/2.
    ///
    /// It must be shorter than the upstream's own keep-alive, or requests meet connections that the upstream is just
    /// closing. A `Keep-Alive: timeout=N` of the upstream shortens it.
    pub fn idle_timeout(mut self, limit: Duration) -> Self {
        // long enough for any pool, and within the range of the clock
        self.limits.idle = limit.min(Duration::from_secs(24 * 60 * 60));
        self
    }

    /// Sets the age at which a connection accepts no further request (default 10 min +-10 %, at least 1 s).
    ///
    /// For HTTP/1.1 and HTTP/2: only a new connection notices that the upstream's name resolves to another address, so
    /// under load this limits how long the old one is used. Requests in flight are not interrupted.
    /// [`Duration::MAX`] sets no limit.
    pub fn max_age(mut self, limit: Duration) -> Self {
        self.limits.max_age = limit.max(Duration::from_secs(1));
        self
    }

    /// Sets how many bytes of a response on an HTTP/2 stream may wait for a client that does not read (default 65,535, at
    /// least that, at most 2^31-1 divided by [`max_streams`](Self::max_streams)).
    ///
    /// A stream carries at most this much in each round trip to the upstream: 64 MB/s at 1 ms, 0.6 MB/s at 100 ms. The
    /// connection's window is as large as those of all its streams together, so that no client that stops reading
    /// holds up another (RFC 9113 section 5.2.2).
    pub fn http2_stream_window(mut self, bytes: u32) -> Self {
        self.limits.stream_window = bytes.max(65_535);
        self
    }

    /// Sends a PING on an HTTP/2 connection with open streams after each `interval` without a byte from the upstream, and
    /// ends the connection if it is not answered within `timeout` (default: none are sent).
    ///
    /// It detects a connection that a NAT or firewall has dropped, before the timeouts do. gRPC servers end a connection
    /// that is pinged more often than they allow, every 5 minutes by default. Both times are at least 1 s and at most a day.
    pub fn http2_keep_alive(mut self, interval: Duration, timeout: Duration) -> Self {
        let within = |time: Duration| time.clamp(Duration::from_secs(1), Duration::from_secs(24 * 60 * 60));
        self.limits.keep_alive = Some((within(interval), within(timeout)));
        self
    }

    /// Sets the connector.
    ///
    /// For an `https` target it has to mark its connections as TLS ([`TlsInfo`](super::TlsInfo)), or be declared by
    /// [`Connector::assume_tls`].
    pub fn connector<D>(self, connector: D) -> ReverseProxyBuilder<D> {
        self.stamped_connector(Connector::new(connector))
    }

    /// Like [`connector`](Self::connector), with settings of [`Connector`].
    pub fn stamped_connector<D>(self, connector: Connector<D>) -> ReverseProxyBuilder<D> {
        let Self { name, target, rules, http, upload_idle, tunnels, tunnel_idle, exposes_peer, limits, connector: _ } =
            self;
        ReverseProxyBuilder {
            name,
            target,
            rules,
            http,
            upload_idle,
            tunnels,
            tunnel_idle,
            exposes_peer,
            limits,
            connector,
        }
    }

    /// The service, for requests with body `B`. Clones share one pool.
    ///
    /// Logs an error if the target's scheme is `https` and the connector is a [`TcpConnector`] alone: every request would
    /// fail.
    pub fn build<B>(self) -> ReverseProxy<C, B>
    where
        C: 'static,
    {
        let Self { name, target, rules, http, upload_idle, tunnels, tunnel_idle, exposes_peer, limits, connector } =
            self;
        let tunnels = tunnels.unwrap_or((limits.connections / 2).max(1)).min(Semaphore::MAX_PERMITS);
        let tunnels = Arc::new(Semaphore::new(tunnels));
        let name = name.unwrap_or_else(|| target.authority().as_str().into());
        if wants_tls(&target.uri()) && connector.is_plain() {
            tracing::error!(target: "tower_upstream", upstream = &*name, "{NOT_TLS}");
        }
        let stream_window = limits.stream_window.min(MAX_WINDOW / limits.streams);
        let pool = Pool::new(target.uri(), http, connector, Limits { stream_window, ..limits });
        let upstream = ProxyTarget {
            name,
            host: target.host(),
            target,
            rules,
            upload_idle,
            tunnel_idle,
            exposes_peer,
            tunnels,
            pool,
        };
        ReverseProxy { upstream: Opaque(Arc::new(upstream)), client_info: Arc::new(ClientInfo::unknown()) }
    }
}
