//! A gateway: `ClassifyLayer` over `TimeoutLayer` over `ReverseProxy`, served by hyper-util on a port of its own.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::task::AbortHandle;
use tower::{Layer, Service};
use tower_upstream::body::ReplayBody;
use tower_upstream::cause::ProxyStatus;
use tower_upstream::client::{Connect, ReverseProxy, ReverseProxyBuilder};
use tower_upstream::event::{Event, Observer};
use tower_upstream::forward::{ClientInfo, ForwardingRules, Scheme};
use tower_upstream::retry::RetryLayer;
use tower_upstream::timeout::{TimeoutLayer, Timeouts};
use tower_upstream::{BadGatewayCause, ClassifyLayer, Failure};

/// A proxy to this upstream.
pub(crate) fn proxy(upstream: SocketAddr) -> ReverseProxyBuilder {
    let target = upstream.to_string().parse().unwrap();
    ReverseProxy::builder(target, ForwardingRules::new("edge").unwrap()).upload_idle_timeout(Duration::from_millis(300))
}

/// Limits that a test can wait for.
pub(crate) fn short() -> Timeouts {
    let limit = Duration::from_millis(300);
    Timeouts::new().response_head(limit).body_idle(limit).total(Duration::from_secs(5))
}

/// Every failure that was reported.
#[derive(Clone, Default)]
pub(crate) struct Seen(Arc<Mutex<Vec<Failure>>>);

impl Observer for Seen {
    fn on_event(&self, event: &Event<'_>) {
        if let Event::Failed(_, failure) = event {
            self.0.lock().unwrap().push((*failure).clone());
        }
    }
}

impl Seen {
    pub(crate) fn failures(&self) -> Vec<Failure> {
        self.0.lock().unwrap().clone()
    }

    pub(crate) fn causes(&self) -> Vec<BadGatewayCause> {
        self.failures().iter().map(Failure::cause).collect()
    }

    /// Forgets what was seen so far.
    pub(crate) fn take(&self) -> Vec<BadGatewayCause> {
        std::mem::take(&mut *self.0.lock().unwrap()).iter().map(Failure::cause).collect()
    }
}

/// A gateway that runs until it is dropped.
pub(crate) struct Gateway {
    pub(crate) address: SocketAddr,
    pub(crate) seen: Seen,
    task: AbortHandle,
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Gateway {
    /// With the defaults of [`proxy`].
    pub(crate) async fn before(upstream: SocketAddr) -> Self {
        Self::start(proxy(upstream)).await
    }

    pub(crate) async fn start<C>(builder: ReverseProxyBuilder<C>) -> Self
    where
        C: Connect,
        C::Future: 'static,
    {
        Self::limited(builder, short()).await
    }

    /// With limits of its own.
    pub(crate) async fn limited<C>(builder: ReverseProxyBuilder<C>, timeouts: Timeouts) -> Self
    where
        C: Connect,
        C::Future: 'static,
    {
        Self::serving(listener().await, builder, timeouts)
    }

    /// On a socket whose address is needed before.
    pub(crate) fn bound<C>(listener: TcpListener, builder: ReverseProxyBuilder<C>) -> Self
    where
        C: Connect,
        C::Future: 'static,
    {
        Self::serving(listener, builder, short())
    }

    /// With retries between the classification and the limits.
    pub(crate) async fn retrying(builder: ReverseProxyBuilder, retry: RetryLayer) -> Self {
        let listener = listener().await;
        let (seen, address) = (Seen::default(), listener.local_addr().unwrap());
        let layer = ClassifyLayer::new().proxy_status(ProxyStatus::new("edge").unwrap()).observer(seen.clone());
        let proxy = builder.build::<ReplayBody<Incoming>>();
        let limits = TimeoutLayer::new(short()).without_upload_tracking();
        let service = move |peer: SocketAddr| {
            let caller = ClientInfo::new(Some(peer.ip()), Scheme::Http);
            layer.layer(retry.layer(limits.layer(proxy.client_info(caller))))
        };
        Self { address, seen, task: tokio::spawn(serve(listener, service)).abort_handle() }
    }

    fn serving<C>(listener: TcpListener, builder: ReverseProxyBuilder<C>, timeouts: Timeouts) -> Self
    where
        C: Connect,
        C::Future: 'static,
    {
        let seen = Seen::default();
        let limits = TimeoutLayer::new(timeouts).without_upload_tracking();
        let member = ProxyStatus::new("edge").unwrap();
        let layer = ClassifyLayer::new().proxy_status(member).observer(seen.clone());
        let proxy = builder.build::<Incoming>();
        let address = listener.local_addr().unwrap();
        let service = move |peer: SocketAddr| {
            layer.layer(limits.layer(proxy.client_info(ClientInfo::new(Some(peer.ip()), Scheme::Http))))
        };
        Self { address, seen, task: tokio::spawn(serve(listener, service)).abort_handle() }
    }
}

pub(crate) async fn listener() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").await.unwrap()
}

/// Serves HTTP/1.1 and h2c on every connection.
pub(crate) async fn serve<S, B>(listener: TcpListener, mut service: impl FnMut(SocketAddr) -> S)
where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
    B: http_body::Body<Data = Bytes, Error: Into<tower::BoxError>> + Send + 'static,
{
    let mut server = auto::Builder::new(TokioExecutor::new());
    server.http1().timer(TokioTimer::new());
    server.http2().timer(TokioTimer::new());
    while let Ok((stream, peer)) = listener.accept().await {
        stream.set_nodelay(true).unwrap();
        let service = TowerToHyperService::new(service(peer));
        let connection = server.serve_connection_with_upgrades(TokioIo::new(stream), service).into_owned();
        tokio::spawn(async move {
            let _ = connection.await;
        });
    }
}
