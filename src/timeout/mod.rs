//! Timeouts of a call; the cause names the phase that used up the time.
//!
//! [`TimeoutLayer`] wraps any HTTP service: a hyper client, a
//! [`ReverseProxy`](https://docs.rs/tower-upstream/latest/tower_upstream/client/struct.ReverseProxy.html),
//! an axum handler, a `service_fn`. A call that exceeds a timeout gets a 504 (408 if the client stalled) with a
//! [`Failure`](crate::Failure) with its cause in the extensions; the inner future is dropped, and with it the connection that hung.
//! A body that exceeds its timeout ends with an error, the [`Failure`](crate::Failure).
//!
//! | timeout | default | starts | ends | cause |
//! |---|---|---|---|---|
//! | [`response_head`](Timeouts::response_head) | 30 s | when the request body has ended; without one, at the call | at the response head | by phase, below |
//! | [`attempt`](Timeouts::attempt) | none | at the call | at the response head | by phase, below |
//! | [`total`](Timeouts::total), and the client's [`Deadline`](crate::deadline::Deadline) less a margin | 60 s | at the call | at the response head | `deadline_exceeded` |
//! | [`body_idle`](Timeouts::body_idle) | 30 s | when the body is polled for a frame | at any progress of either body | `body_read_timeout`, or `upload_stalled` |
//! | [`max_duration`](Timeouts::max_duration) | none | at the call | with the response body | `deadline_exceeded` |
//! | [`client_idle`](Timeouts::client_idle) | 60 s | when the client has taken a frame | when it takes the next | `client_closed` |
//!
//! | phase | cause |
//! |---|---|
//! | waiting for a pooled connection | `queue_timeout` |
//! | resolving, connecting, TLS | `dns_timeout`, `connect_timeout`, `tls_timeout`: nothing was sent |
//! | sending, and the upstream does not read | `write_timeout` |
//! | sending, and the client does not send | `upload_stalled`, 408: the client's fault |
//! | sent, no byte of a response | `first_byte_timeout` |
//! | within the response head, and bytes keep arriving | `head_timeout` |
//!
//! The phases are reported by a client of this crate ([`ReverseProxy`], or a
//! [`Connector`] while it connects). Of any other service only the request body is visible, and the failure's
//! evidence is `inferred`. An upload is checked twice, half a timeout apart, so that no clock is read per frame: an upload
//! that makes progress never times out.
//!
//! The wait for `poll_ready` is not limited, because the call has not started. A call whose deadline has passed already is
//! rejected. An inner service that was ready keeps its place, such as a
//! permit of tower's concurrency limit, until it is called again or dropped: without a clone it cannot give it back.
//! [`UpstreamLayer`](crate::UpstreamLayer) does.
//!
//! ```
//! use std::time::Duration;
//! use http::{Request, Response};
//! use http_body_util::Full;
//! use tower::{Layer, ServiceExt, service_fn};
//! use tower_upstream::{BadGatewayCause, timeout::{TimeoutLayer, Timeouts}};
//!
//! # #[tokio::main(flavor = "current_thread", start_paused = true)]
//! # async fn main() {
//! let stuck = service_fn(|_: Request<()>| std::future::pending::<Result<Response<Full<bytes::Bytes>>, std::io::Error>>());
//! let layer = TimeoutLayer::new(Timeouts::new().response_head(Duration::from_secs(2))).without_upload_tracking();
//! let answer = layer.layer(stuck).oneshot(Request::new(())).await.unwrap();
//! assert_eq!(answer.status(), 504);
//! assert_eq!(BadGatewayCause::of(&answer), Some(BadGatewayCause::FirstByteTimeout));
//! # }
//! ```
//!
//! [`ReverseProxy`]: https://docs.rs/tower-upstream/latest/tower_upstream/client/struct.ReverseProxy.html
//! [`Connector`]: https://docs.rs/tower-upstream/latest/tower_upstream/client/struct.Connector.html

#![allow(clippy::multiple_bound_locations)] // in what the macro declares

mod adaptive;
mod attachments;
mod keepalive_check;
mod policy;
mod route_learner;
mod stall;
mod timeouts;
mod upload_mode;

use std::future::Future;
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use tower_layer::Layer;
use tower_service::Service;

use self::attachments::TimeoutExtensions;
use self::keepalive_check::KeepAliveCheck;
use self::route_learner::RouteLearner;
use crate::body::{BoxError, WrapBody};
use crate::deadline::DeadlinePropagation;
use crate::exchange::{Config, PassErrors, Sweep, middleware_body, middleware_future, middleware_service};

pub use self::adaptive::{AdaptiveEstimate, AdaptiveTimeout, LearningMode, RouteTimeouts, TooManyRoutes};
pub(crate) use self::policy::EnforcedTimeouts;
pub use self::route_learner::RequestHead;
pub use self::timeouts::Timeouts;
pub use self::upload_mode::{PassThrough, TrackUpload, UploadMode};
use self::upload_mode::{TimeoutSpec, Uploads, sealed::Mode};

middleware_service! {
    /// The service of [`TimeoutLayer`].
    Timeout [W: Mode = TrackUpload] TimeoutSpec<W>, once
}

middleware_future! {
    /// The future of [`Timeout`].
    TimeoutFuture<S, B, W: Mode> TimeoutSpec<W>,
    W::Body where { W: UploadMode<B>, }
}

middleware_body! {
    /// The response body of [`Timeout`]: the inner service's, or that of a local response.
    ///
    /// Its error is the inner body's own, boxed, or a [`Failure`](crate::Failure) where a limit has passed.
    TimeoutBody<X, W: Mode> TimeoutSpec<W>, X, BoxError,
    { X: Body<Data = Bytes>, X::Error: Into<BoxError>, }
}

impl<S, B, W, X, E> Service<Request<B>> for Timeout<S, W>
where
    W: UploadMode<B>,
    S: WrapBody<W::Body, Body = X, ServiceError = E>,
    X: Body<Data = Bytes>,
    X::Error: Into<BoxError>,
    E: 'static,
{
    type Response = Response<TimeoutBody<X, W>>;
    type Error = E;
    type Future = TimeoutFuture<S, B, W>;

    #[inline]
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), E>> {
        self.exchange.poll_ready::<B, X, E>(cx)
    }

    #[inline]
    fn call(&mut self, request: Request<B>) -> Self::Future {
        TimeoutFuture::new(self.exchange.call(request))
    }
}

impl<S, B, W, X, E> Future for TimeoutFuture<S, B, W>
where
    W: UploadMode<B>,
    S: WrapBody<W::Body, Body = X, ServiceError = E>,
    X: Body<Data = Bytes>,
    X::Error: Into<BoxError>,
    E: 'static,
{
    type Output = Result<Response<TimeoutBody<X, W>>, E>;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.project().call.poll_as(cx)
    }
}

/// Limits the time of a call; see the [module](self).
#[derive(Clone, Debug)]
#[must_use]
pub struct TimeoutLayer<W = TrackUpload> {
    enforced: EnforcedTimeouts,
    /// All services of one layer share the sweep of their response bodies.
    sweep: Arc<Sweep>,
    mode: PhantomData<fn() -> W>,
}

impl TimeoutLayer {
    /// Enforces these timeouts. The inner service receives its request body as [`TrackedUpload`](crate::body::TrackedUpload).
    pub fn new(timeouts: Timeouts) -> Self {
        Self { enforced: EnforcedTimeouts { timeouts, extensions: None }, sweep: Arc::default(), mode: PhantomData }
    }
}

impl<W> TimeoutLayer<W> {
    pub(crate) fn limits(&self) -> &EnforcedTimeouts {
        &self.enforced
    }

    /// The same layer with other timeouts.
    pub(crate) fn with(mut self, timeouts: Timeouts) -> Self {
        self.enforced.timeouts = timeouts;
        self
    }

    /// Passes the request body on unchanged, for a service that accepts a single body type.
    ///
    /// The timeout of the response head then starts at the call, unless the service tracks the upload itself, as
    /// `ReverseProxy` does.
    pub fn without_upload_tracking(self) -> TimeoutLayer<PassThrough> {
        TimeoutLayer { enforced: self.enforced, sweep: self.sweep, mode: PhantomData }
    }

    fn extras(&mut self) -> &mut TimeoutExtensions {
        Arc::make_mut(self.enforced.extensions.get_or_insert_with(Arc::default))
    }

    /// Reads the client's deadline and passes deadlines on (default: neither).
    ///
    /// A deadline from a header takes effect earlier by the time our 504 needs to reach the client: 5 % of the remaining time,
    /// at least 50 ms, at most a quarter. What is passed on is the remaining time after that, less the margin of
    /// [`DeadlinePropagation`].
    pub fn deadlines(mut self, deadlines: DeadlinePropagation) -> Self {
        self.extras().deadlines = Some(deadlines);
        self
    }

    /// Declares how long the pool of the inner client keeps idle connections (default: unknown).
    ///
    /// For clients that cannot learn it, such as hyper-util's (90 s by default). If an upstream announces a shorter `Keep-Alive`,
    /// or a reused connection proves to be dead, one `tracing` warning names the [finding](crate::alignment::Finding) and what
    /// to set. [`ReverseProxy`] does not need it: its own pool learns.
    ///
    /// [`ReverseProxy`]: https://docs.rs/tower-upstream/latest/tower_upstream/client/struct.ReverseProxy.html
    pub fn pool_idle(mut self, limit: Duration) -> Self {
        self.extras().keepalive_check = Some(Arc::new(KeepAliveCheck::new(limit)));
        self
    }

    /// The declared idle timeout of the pool.
    pub(crate) fn pool(&self) -> Option<Duration> {
        Some(self.limits().extensions.as_ref()?.keepalive_check.as_ref()?.idle())
    }

    /// Learns the timeout of the response head per route (default: off).
    ///
    /// `route` returns a request's route: one of those that `limits` were created for, else the request is not a sample. The
    /// learned timeouts are only reported unless they are [enforced](LearningMode::Enforce). [Unbounded](Timeouts::unbounded) calls
    /// are not samples, nor are responses that came before their upload had ended.
    ///
    /// ```
    /// use std::{sync::Arc, time::Duration};
    /// use axum::extract::MatchedPath;
    /// use tower_upstream::timeout::{RouteTimeouts, TimeoutLayer, Timeouts};
    ///
    /// let limits = Arc::new(RouteTimeouts::new(Duration::from_secs(10), ["/cart/{id}", "/search"]).unwrap());
    /// let layer = TimeoutLayer::new(Timeouts::new())
    ///     .learned(limits.clone(), |head| head.extensions.get().map(MatchedPath::as_str));
    /// // periodically, for a log or a status page
    /// for (route, limit) in limits.iter() {
    ///     println!("{route}: {:?}", limit.snapshot(tokio::time::Instant::now()));
    /// }
    /// ```
    pub fn learned(
        mut self,
        limits: Arc<RouteTimeouts>,
        route: impl for<'a> Fn(RequestHead<'a>) -> Option<&'a str> + Send + Sync + 'static,
    ) -> Self {
        self.extras().routes = Some(RouteLearner::new(limits, route));
        self
    }
}

impl<S, W: Mode> Layer<S> for TimeoutLayer<W> {
    type Service = Timeout<S, W>;

    fn layer(&self, inner: S) -> Timeout<S, W> {
        let mut config = Config::new((), (), self.enforced.clone(), Uploads(PhantomData), PassErrors);
        config.sweep = self.sweep.clone();
        Timeout::new(inner, Arc::new(config))
    }
}
