//! Time limits of an exchange; the one that passes names the phase that ate the time.
//!
//! [`TimeoutLayer`] stands around whatever does the work: a hyper client, a
//! [`ReverseProxy`](https://docs.rs/tower-upstream/latest/tower_upstream/client/struct.ReverseProxy.html),
//! an axum handler, a `service_fn`. What passes a limit is answered with 504 (408 where the client itself stalled), a
//! [`Failure`](crate::Failure) and its cause in the extensions; the work is dropped, and with it the connection that hung.
//! A body that passes its limit is cut: its error is the [`Failure`](crate::Failure).
//!
//! | limit | default | begins | ends | cause |
//! |---|---|---|---|---|
//! | [`head`](Timeouts::response_head) | 30 s | when the request body has ended; without one, at the call | at the response head | by phase, below |
//! | [`attempt`](Timeouts::attempt) | none | at the call | at the response head | by phase, below |
//! | [`total`](Timeouts::total), and the caller's [`Deadline`](crate::deadline::Deadline) less a margin | 60 s | at the call | at the response head | `deadline_exceeded` |
//! | [`body_idle`](Timeouts::body_idle) | 30 s | when a frame is waited for | at any progress, either way | `body_read_timeout`, or `upload_stalled` |
//! | [`absolute`](Timeouts::max_duration) | none | at the call | with the response body | `deadline_exceeded` |
//! | [`client_idle`](Timeouts::client_idle) | 60 s | when the client has taken a frame | when it takes the next | `client_closed` |
//!
//! | phase | cause |
//! |---|---|
//! | waiting for a pooled connection | `queue_timeout` |
//! | resolving, connecting, TLS | `dns_timeout`, `connect_timeout`, `tls_timeout`: nothing was sent |
//! | sending, and the upstream does not take it | `write_timeout` |
//! | sending, and the client does not go on | `upload_stalled`, 408: the client's own fault |
//! | sent, no byte of an answer | `first_byte_timeout` |
//! | in the head, and bytes keep coming | `head_timeout` |
//!
//! The phases are told by a client of this crate ([`ReverseProxy`], or a
//! [`Connector`] while it connects); of any other service only the request body is seen, and the failure's
//! evidence says `inferred`. An upload is judged by two looks half a limit apart, so that no clock is read at each
//! frame: one that moves is never late.
//!
//! The time that a caller waits for `poll_ready` is under no limit, as no call has begun.
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
//! let layer = TimeoutLayer::new(Timeouts::new().response_head(Duration::from_secs(2))).untouched();
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
use crate::body::WrapBody;
use crate::deadline::DeadlinePropagation;
use crate::exchange::Sweep;
use crate::exchange::{Config, PassOn, SpareCalls, Spec, middleware_body, middleware_future, middleware_service};

pub use self::adaptive::{AdaptiveEstimate, AdaptiveTimeout, LearningMode, RouteTimeouts, TooManyRoutes};
pub(crate) use self::policy::EnforcedTimeouts;
pub use self::route_learner::RequestHead;
pub use self::timeouts::Timeouts;
pub use self::upload_mode::{PassThrough, TrackUpload, UploadMode};
use self::upload_mode::{Uploads, sealed::Mode};
pub use crate::alignment::{MisalignedTimeouts, Report, Topology};
pub use crate::stats::Quantile;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

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

/// Timeouts alone.
#[derive(Debug)]
#[allow(unnameable_types)]
pub(crate) struct TimeoutSpec<W>(PhantomData<fn() -> W>);

impl<W: Mode> Spec for TimeoutSpec<W> {
    type PerCall = ();
    type PerAttempt = ();
    type Timeouts = EnforcedTimeouts;
    type Requests = Uploads<W>;
    type Errors = PassOn;

    const WAITS: bool = false;
    const SPANS: bool = false;

    #[inline]
    fn spare_calls() -> &'static SpareCalls<Self> {
        W::spare_calls()
    }
}

/// Limits the time of an exchange; see the [module](self).
#[derive(Clone, Debug)]
#[must_use]
pub struct TimeoutLayer<W = TrackUpload> {
    enforced: EnforcedTimeouts,
    /// All services of one layer share the sweep of their response bodies.
    sweep: Arc<Sweep>,
    mode: PhantomData<fn() -> W>,
}

impl TimeoutLayer {
    /// Enforces these limits. The inner service gets its request body as [`Upload`](crate::body::TrackedUpload).
    pub fn new(timeouts: Timeouts) -> Self {
        Self { enforced: EnforcedTimeouts { timeouts, extensions: None }, sweep: Arc::default(), mode: PhantomData }
    }
}

impl<W> TimeoutLayer<W> {
    pub(crate) fn limits(&self) -> &EnforcedTimeouts {
        &self.enforced
    }

    /// The same with other limits.
    pub(crate) fn with(mut self, timeouts: Timeouts) -> Self {
        self.enforced.timeouts = timeouts;
        self
    }

    /// Hands the request body on as it is, for a service that takes one type of body only.
    ///
    /// The limit on the head then begins at the call, unless the service watches the upload itself, as
    /// `ReverseProxy` does.
    pub fn untouched(self) -> TimeoutLayer<PassThrough> {
        TimeoutLayer { enforced: self.enforced, sweep: self.sweep, mode: PhantomData }
    }

    fn extras(&mut self) -> &mut TimeoutExtensions {
        Arc::make_mut(self.enforced.extensions.get_or_insert_with(Arc::default))
    }

    /// Reads the caller's deadline, and writes the one that goes out (default: neither).
    ///
    /// A deadline from a header passes here so much earlier that our 504 reaches the caller in time: 5 % of
    /// what is left, 50 ms at least, a quarter at most. What goes out is what is left then, less the margin of
    /// [`DeadlinePropagation`].
    pub fn deadlines(mut self, deadlines: DeadlinePropagation) -> Self {
        self.extras().deadlines = Some(deadlines);
        self
    }

    /// Says how long the pool of the client inside keeps idle connections (default: not known).
    ///
    /// For clients that cannot be told, as hyper-util's (90 s unless it was set). When an upstream says in `Keep-Alive` that it
    /// keeps them no longer, or a reused connection proves to be dead, one `tracing` warning names the
    /// [finding](crate::alignment::FindingId) and what to set. [`ReverseProxy`] needs none of it: its own pool learns.
    ///
    /// [`ReverseProxy`]: https://docs.rs/tower-upstream/latest/tower_upstream/client/struct.ReverseProxy.html
    pub fn pool_idle(mut self, limit: Duration) -> Self {
        self.extras().keepalive_check = Some(Arc::new(KeepAliveCheck::new(limit)));
        self
    }

    /// How long that is, where it was said.
    pub(crate) fn pool(&self) -> Option<Duration> {
        Some(self.limits().extensions.as_ref()?.keepalive_check.as_ref()?.idle())
    }

    /// Learns how long the response heads of these routes take (default: not at all).
    ///
    /// `route` names a request's route: one of those that `limits` were made for, or it teaches nothing. The
    /// limits only report until they are told to [enforce](LearningMode::Enforce). Exchanges that are
    /// [unbounded](Timeouts::unbounded) are no samples, nor is an answer that came before its upload was through.
    ///
    /// ```
    /// use std::{sync::Arc, time::Duration};
    /// use axum::extract::MatchedPath;
    /// use tower_upstream::timeout::{RouteTimeouts, TimeoutLayer, Timeouts};
    ///
    /// let limits = Arc::new(RouteTimeouts::new(Duration::from_secs(10), ["/cart/{id}", "/search"]).unwrap());
    /// let layer = TimeoutLayer::new(Timeouts::new())
    ///     .learned(limits.clone(), |head| head.extensions.get().map(MatchedPath::as_str));
    /// // and now and then, for whoever looks at it
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
        let mut config = Config::new((), (), self.enforced.clone(), Uploads(PhantomData), PassOn);
        config.sweep = self.sweep.clone();
        Timeout::new(inner, Arc::new(config))
    }
}
