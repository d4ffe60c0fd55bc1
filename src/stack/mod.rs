//! The recommended layers for one upstream as a single layer, with validated settings.
//!
//! [`UpstreamLayer`] does what these layers do in this order, outermost first. For another order, compose the layers with a
//! `ServiceBuilder` ([`ServiceBuilderExt`](crate::ServiceBuilderExt)).
//!
//! | | part | removed by |
//! |---|---|---|
//! | 1 | [`ErrorPage`](crate::error_page::ErrorPage) | default: none |
//! | 2 | [`ClassifyLayer`](crate::ClassifyLayer): reports the failure of the last attempt: log event, `Proxy-Status`, request id | |
//! | 3 | statistics, for the whole call | |
//! | 4 | [`RetryLayer`](crate::retry::RetryLayer) with its budget | [`without_retry`](UpstreamBuilder::without_retry) |
//! | 5 | the circuit ([`CircuitBreakerLayer`](crate::breaker::CircuitBreakerLayer)), for each attempt | [`without_circuit`](UpstreamBuilder::without_circuit) |
//! | 6 | the limiter ([`ConcurrencyLimitLayer`](crate::limit::ConcurrencyLimitLayer)), for each attempt: a call that waits for its next attempt holds no slot | [`without_limiter`](UpstreamBuilder::without_limiter) |
//! | 7 | [`TimeoutLayer`](crate::timeout::TimeoutLayer), for each attempt | |
//! | 8 | an inner [`ClassifyLayer`](crate::ClassifyLayer): classifies errors and unsafe heads before the retry decides | |
//!
//! For a client that does not apply the rules of HTTP proxies, such as hyper's or reqwest's, place a
//! [`ForwardLayer`](crate::forward::ForwardLayer) inside the stack.
//!
//! The service is infallible; its response body implements `Default` and `From<Bytes>`. It is always ready: a call waits for
//! the inner service in its own future, under its timeouts, and a rejection is immediate. All attempts of a call run in one
//! future with one timer.
//!
//! # Probes
//!
//! While the circuit is open, the stack tests the upstream with requests of its own, so that an outage of any kind ends for the
//! clients when the upstream responds again. A probe is a copy of the head of a `GET` or `HEAD` without a body that was just
//! refused; its client has its 503 already, and the response is dropped. Any response but those that count as failures closes
//! the circuit.
//!
//! | probes | |
//! |---|---|
//! | at most | one at a time, one for 32 refused calls |
//! | interval | 1/500 of the outage so far, 5 ms to 1 s; up to a quarter less at random |
//! | limit | 4 times the time within which nine of ten responses came before, 10 ms to the [`probe_timeout`](crate::breaker::BreakerPolicy::probe_timeout) |
//! | never | a request with `Upgrade` or `Expect`, or with a head of more than 8 KiB |
//! | another request | [`probe_request`](UpstreamBuilder::probe_request), for an upstream whose calls are no `GET`, such as gRPC |
//! | none | [`without_probe`](UpstreamBuilder::without_probe): after each open duration a call is the probe, as it is beside them |
//! | telemetry | an event at level DEBUG with `probe = true`, in a span `probe`; [`CircuitSnapshot::probes`](crate::breaker::CircuitSnapshot::probes) |
//!
//! A probe passes neither retry nor limiter, and is not counted as a call. It is a task of the runtime of the call that was
//! refused, which is why the inner service, and its future, have to be `Send` and `'static`.
//!
//! # Presets
//!
//! | | [`LatencyCritical`](Preset::LatencyCritical) | [`Standard`](Preset::Standard), the default | [`Batch`](Preset::Batch) | [`Streaming`](Preset::Streaming) |
//! |---|---|---|---|---|
//! | `response_head` | 450 ms | 4.5 s | 120 s | 4.5 s |
//! | `attempt` | 450 ms | 9 s | 300 s | none |
//! | `total` | 1 s | 30 s | 960 s | none |
//! | `body_idle` | 1 s | 30 s | 120 s | 90 s |
//! | `client_idle` | 60 s | 60 s | 60 s | 60 s |
//! | `attempts` | 2 | 3 | 3 | 3 |
//! | `retries within` | 1 s | 4.5 s | 960 s | 4.5 s |
//! | `backoff` | 5 ms to 50 ms | 25 ms to 1 s | 1 s to 30 s | 25 ms to 1 s |
//! | `max_retry_after` | 1 s | 1 s | 30 s | 1 s |
//! | `hedging` | p95 | none | none | none |
//! | `window` of the circuit | 10 s | 10 s | 60 s | 10 s |
//! | `open_duration` | 500 ms to 5 s | 1 s to 10 s | 5 s to 60 s | 1 s to 10 s |
//! | `in flight` | 1,024 | 1,024 | 1,024 | 1,024 |
//!
//! The presets for clients that wait answer within 5 s if the upstream hangs: after `response_head`, which begins at the end
//! of the request body. Their retries end that long after the call began, so that a first attempt that hung is not repeated,
//! while one that failed at once is. This window belongs to the preset's `response_head`: with another one, retries end
//! with the total. Around a pool of endpoints they end after twice that time, because an attempt that hung may succeed at another
//! endpoint: the client is answered within 9 s if all of them hang. A page or long poll that takes longer than 4.5 s needs a longer `response_head`
//! ([`with_timeouts`](UpstreamLayer::with_timeouts) for its route). [`Batch`](Preset::Batch) is for work that takes minutes,
//! and waits as long.
//!
//! The timeout of an attempt includes the upload: an upload that takes longer needs [`Batch`](Preset::Batch), or
//! timeouts of its own.
//!
//! A `Retry-After` longer than `max_retry_after` is passed on to the client at once. [`Batch`](Preset::Batch) waits for one of
//! up to 30 s, as long as for its own backoff: its clients are jobs that would wait themselves, and a gateway in front of
//! people must not use it.
//!
//! ```
//! use http::{Request, Response};
//! use http_body_util::Full;
//! use tower::{Layer, ServiceExt, service_fn};
//! use tower_upstream::{BadGatewayCause, UpstreamLayer};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() {
//! let layer = UpstreamLayer::builder("payments").proxy_status("shop-edge").build().unwrap();
//! let refused = service_fn(|_: Request<_>| async {
//!     Err::<Response<Full<bytes::Bytes>>, _>(std::io::Error::from(std::io::ErrorKind::ConnectionRefused))
//! });
//! let request = Request::new(Full::<bytes::Bytes>::default());
//! let Ok(response) = layer.layer(refused).oneshot(request).await;
//! assert_eq!(response.status(), 502);
//! assert_eq!(response.headers()["proxy-status"], "shop-edge; error=connection_refused");
//! let snapshot = layer.handle().snapshot(tokio::time::Instant::now());
//! assert_eq!(snapshot.failures, [(BadGatewayCause::ConnectionRefused, 1)]);
//! # }
//! ```

// measured: calls that are not inlined copy requests and responses
#![allow(clippy::inline_always)]

mod boxed;
mod builder;
#[cfg(feature = "serde")]
mod config;
mod config_error;
mod errors;
pub(crate) mod ext;
mod future;
mod handle;
mod live_config;
mod presets;
mod probe;
mod request_meta;
mod requests;
mod spec;
mod stats;
mod summary;
mod validate;

use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use tower_layer::Layer;
use tower_service::Service;

use self::live_config::LiveConfig;
use self::probe::Prober;
use self::spec::{Config, StackSpec};
use crate::body::WrapBody;
use crate::cause::BadGatewayCause;
use crate::exchange::{Exchange, ExchangeFuture, SendService};
use crate::timeout::Timeouts;

pub use self::boxed::{BoxUpstream, BoxUpstreamBody};
pub use self::builder::UpstreamBuilder;
#[cfg(feature = "serde")]
pub use self::config::UpstreamConfig;
#[cfg(all(feature = "balance", feature = "client", feature = "serde"))]
pub use self::config::{UpstreamProxy, UpstreamProxyBody, UpstreamProxyService};
pub use self::config_error::{ConfigError, ConfigErrors};
pub use self::future::{UpstreamBody, UpstreamFuture};
pub use self::handle::{DrainOutcome, StackChange, UpstreamHandle, UpstreamSnapshot, UpstreamState};
pub use self::presets::Preset;
pub use self::requests::RequestBody;
pub use self::stats::LatencySnapshot;
pub use self::summary::CallSummary;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Applies timeouts, retry, circuit breaker, concurrency limit and classification to one upstream; see the [module](self).
#[derive(Clone, Debug)]
#[must_use]
pub struct UpstreamLayer {
    live: Arc<LiveConfig>,
    /// Chooses the probes; `None`: no probe is sent.
    prober: Option<Prober>,
    handle: UpstreamHandle,
}

impl UpstreamLayer {
    /// Builds a stack for the upstream of this name, which labels its log events, metrics and snapshots.
    pub fn builder(name: impl Into<Arc<str>>) -> UpstreamBuilder {
        UpstreamBuilder::new(name)
    }

    /// Builds a stack for this proxy: it has the proxy's name, and leaves the tracking of uploads to the proxy.
    #[cfg(feature = "client")]
    pub fn for_proxy<C, B>(proxy: &crate::client::ReverseProxy<C, B>) -> UpstreamBuilder {
        Self::builder(proxy.name().clone()).without_upload_tracking()
    }

    /// Builds a stack for the endpoints of this pool: it has the pool's name, and leaves circuits, concurrency limits and the
    /// tracking of uploads to the pool, which has them for each endpoint.
    #[cfg(feature = "balance")]
    pub fn for_pool<S>(pool: &crate::balance::Balance<S>) -> UpstreamBuilder {
        let builder = Self::builder(pool.handle().name());
        builder.without_circuit().without_limiter().without_upload_tracking().pool(pool.handle())
    }

    /// Creates a layer with other timeouts that shares everything else: circuit, limiter, retry budget, statistics, handle.
    ///
    /// For routes of one upstream that take longer than the others; create it once per route.
    /// [`UpstreamHandle::set_timeouts`] does not change its timeouts. For a single request, add [`Timeouts`] to the request's
    /// extensions: they replace the stack's for that call, unchecked, at the price of a copy of the settings.
    ///
    /// ```
    /// use std::time::Duration;
    /// use tower_upstream::UpstreamLayer;
    ///
    /// let usual = UpstreamLayer::builder("backend").build().unwrap();
    /// let reports = usual
    ///     .with_timeouts(|timeouts| timeouts.response_head(Duration::from_secs(60)).attempt(None).total(Duration::from_secs(90)))
    ///     .unwrap();
    /// ```
    ///
    /// # Errors
    ///
    /// The timeouts are invalid, or conflict with each other or the topology.
    pub fn with_timeouts(&self, change: impl FnOnce(Timeouts) -> Timeouts) -> Result<Self, ConfigErrors> {
        let timeouts = change(self.live.current().1.timeouts.timeouts);
        Ok(Self { live: self.handle.variant(&self.live, timeouts)?, ..self.clone() })
    }

    /// Returns the handle that observes and controls the stack.
    pub fn handle(&self) -> UpstreamHandle {
        self.handle.clone()
    }
}

impl<S: Clone> Layer<S> for UpstreamLayer {
    type Service = Upstream<S>;

    fn layer(&self, inner: S) -> Upstream<S> {
        let (version, config) = self.live.current();
        Upstream {
            exchange: Exchange::repeating(inner, config),
            version,
            live: self.live.clone(),
            prober: self.prober.clone(),
        }
    }
}

/// The service of [`UpstreamLayer`].
///
/// The inner service gets its request body as [`RequestBody`].
#[derive(Clone, Debug)]
#[rustfmt::skip] // the compiler shows the whole line where a method lacks a bound
pub struct Upstream<S> { // to see the missing bound, write `ServiceExt::oneshot(service, request)`
    exchange: Exchange<S, StackSpec>,
    /// The version of the settings in `exchange`.
    version: u32,
    live: Arc<LiveConfig>,
    prober: Option<Prober>,
}

impl<S> Upstream<S> {
    /// Returns the inner service.
    pub fn get_ref(&self) -> &S {
        self.exchange.get_ref()
    }

    /// Returns the inner service; a change applies to the first attempt of later calls.
    pub fn get_mut(&mut self) -> &mut S {
        self.exchange.get_mut()
    }

    /// Unwraps the inner service.
    pub fn into_inner(self) -> S {
        self.exchange.into_inner()
    }

    /// Loads the current settings.
    #[cold]
    fn reload(&mut self) {
        let (version, config) = self.live.current();
        self.version = version;
        self.exchange.set_config(config);
    }
}

/// The settings with the timeouts of the request's extensions, which apply to this stack only.
#[cold]
fn requested<B>(live: &LiveConfig, request: &mut Request<B>) -> Arc<Config> {
    match request.extensions_mut().remove::<Timeouts>() {
        Some(timeouts) => Arc::new(live.with_timeouts(timeouts)),
        None => live.current().1,
    }
}

impl<S, B, X, E> Service<Request<B>> for Upstream<S>
where
    S: WrapBody<RequestBody<B>, Body = X, ServiceError = E> + SendService<RequestBody<B>>,
    B: Body<Data = Bytes, Error: Into<BoxError>> + 'static,
    X: Body<Data = Bytes, Error: Into<BoxError>> + Send + Unpin + 'static,
    E: Into<BoxError>,
{
    type Response = Response<UpstreamBody<X>>;
    type Error = std::convert::Infallible;
    type Future = UpstreamFuture<S, B>;

    #[inline]
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.exchange.poll_ready::<B, X, E>(cx)
    }

    #[inline]
    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        if request.extensions().get::<Timeouts>().is_some() {
            // the next call reloads the stack's own settings, also if this one panics
            self.version = self.live.version().wrapping_sub(1);
            self.exchange.set_config(requested(&self.live, &mut request));
        } else if self.version != self.live.version() {
            self.reload();
        }
        // `None` while the circuit is closed
        let prober = awake(self.prober.as_ref()).map(|prober| (prober, prober.head_of(&request, &self.live)));
        let call = self.exchange.call(request);
        if let Some((prober, head)) = prober {
            offer::<S, B, X, E>(prober, &self.exchange, &call, head);
        }
        UpstreamFuture { call }
    }
}

/// Chooses the probes, while the circuit is not closed.
#[inline]
fn awake(prober: Option<&Prober>) -> Option<&Prober> {
    prober.filter(|prober| !prober.is_idle())
}

/// Offers a probe, if the circuit has refused the call.
#[cold]
fn offer<S, B, X, E>(
    prober: &Prober,
    exchange: &Exchange<S, StackSpec>,
    call: &ExchangeFuture<S, B, StackSpec>,
    head: Option<Box<Request<()>>>,
) where
    S: WrapBody<RequestBody<B>, Body = X, ServiceError = E> + SendService<RequestBody<B>>,
    B: Body<Data = Bytes, Error: Into<BoxError>> + 'static,
    X: Body<Data = Bytes, Error: Into<BoxError>> + Send + Unpin + 'static,
    E: Into<BoxError>,
{
    if call.rejection().is_some_and(|rejection| rejection.failure().cause() == BadGatewayCause::CircuitOpen) {
        prober.on_refused(head.and_then(|head| exchange.probe(*head)));
    }
}

/// hyper's `Service`: hyper's servers call it without a clone per request.
impl<S, B, X, E> hyper::service::Service<Request<B>> for Upstream<S>
where
    S: WrapBody<RequestBody<B>, Body = X, ServiceError = E> + SendService<RequestBody<B>> + Clone,
    B: Body<Data = Bytes, Error: Into<BoxError>> + 'static,
    X: Body<Data = Bytes, Error: Into<BoxError>> + Send + Unpin + 'static,
    E: Into<BoxError>,
{
    type Response = Response<UpstreamBody<X>>;
    type Error = std::convert::Infallible;
    type Future = UpstreamFuture<S, B>;

    #[inline]
    fn call(&self, mut request: Request<B>) -> Self::Future {
        if request.extensions().get::<Timeouts>().is_some() {
            let config = requested(&self.live, &mut request);
            return UpstreamFuture { call: self.exchange.call_shared(Some(config), request) };
        }
        let changed = (self.version != self.live.version()).then(|| self.live.current().1);
        let prober = awake(self.prober.as_ref()).map(|prober| (prober, prober.head_of(&request, &self.live)));
        let call = self.exchange.call_shared(changed, request);
        if let Some((prober, head)) = prober {
            offer::<S, B, X, E>(prober, &self.exchange, &call, head);
        }
        UpstreamFuture { call }
    }
}
