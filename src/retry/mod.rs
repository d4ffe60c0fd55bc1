//! Retries failed requests where that is safe, promising, and paid for by a budget.
//!
//! [`RetryLayer`] wraps a service that classifies its failures: one whose error is a [`Failure`](crate::Failure) or that never
//! returns an error. One pure function decides on each failed attempt: by the failure that the response
//! carries, the method, the attempts made, the remaining time, and last the budget.
//!
//! | failure | retried |
//! |---|---|
//! | proven not sent (no connection, refused stream, returned by the pool) | any method, the first time without backoff |
//! | a reused connection had died | once more, if idempotent; with `Idempotency-Key` by opt-in |
//! | sent and lost, or its attempt timed out | if idempotent (RFC 9110 section 9.2.2), and not a write under `If-Match` or another precondition |
//! | 502, 503 or 504 of the upstream | if idempotent, after a `Retry-After` of at most 1 s |
//! | another 5xx that the [`ClassifyLayer`](crate::ClassifyLayer) inside [counts as a failure](crate::ClassifyLayer::failure_statuses) | if idempotent |
//! | 429, gRPC's `RESOURCE_EXHAUSTED` | by opt-in |
//! | refusals of this gateway, and failures that no retry can fix | never |
//!
//! | default | value |
//! |---|---|
//! | [`policy`](RetryLayer::policy): attempts | 3, the first one included |
//! | [`policy`](RetryLayer::policy): backoff before a retry | full jitter, 25 ms doubled up to 1 s; none before the first retry of a request that was not sent |
//! | [`policy`](RetryLayer::policy): longest `Retry-After` that is waited for | 1 s; a longer one is passed on with the response |
//! | [`budget`](RetryLayer::budget) | its own: 20 % of the successes, see [`RetryBudget`] |
//! | [`body_cap`](RetryLayer::body_cap): bytes kept of a request body while it is sent | 64 KiB; an unread body is not capped |
//! | [`carry`](RetryLayer::carry): extensions copied to retries | [`Deadline`](crate::deadline::Deadline), [`RetryOverride`] |
//! | [`total`](RetryLayer::total) of all attempts | none |
//! | [`count`](RetryLayer::count): header field on retries | `x-envoy-attempt-count` |
//! | [`hedging`](RetryLayer::hedging): a second, concurrent attempt if the first is late | none |
//!
//! The layer has no timer except for its backoff. Timeouts belong inside, in a [`TimeoutLayer`](crate::timeout::TimeoutLayer); the rest of
//! the [`total`](RetryLayer::total) or of the client's [`Deadline`](crate::deadline::Deadline) is passed on with each retry. Once a
//! response has been returned, the call is not retried, even if its body fails.
//!
//! "Not sent" is trusted only of a client that is called when this service is called. A service that calls its clients later,
//! as handlers usually do, may have done other work before, so that their failures prove nothing about it.
//!
//! A final failure reports the number of attempts, the earlier failures, and in [`retry_stop`](crate::Failure::retry_stop) why there
//! was no further attempt, so that an outer layer of this crate does not continue. A response that took more than one attempt
//! carries [`Attempts`]; each failure that is followed by another attempt is one `tracing` event at level `INFO`. Each attempt is
//! a span `attempt` at level `DEBUG`, with OpenTelemetry's names: `http.request.method`,
//! `server.address`, `http.request.resend_count` for retries, `http.response.status_code`, `error.type`.
//!
//! With one attempt ([`policy`](RetryLayer::policy)) and no override for the request the layer is idle: it reads no clock, copies
//! nothing, and its budget records nothing.
//!
//! ```
//! use std::sync::atomic::{AtomicU32, Ordering};
//! use http::{Request, Response};
//! use http_body_util::{Empty, Full};
//! use tower::{Layer, ServiceExt, service_fn};
//! use tower_upstream::{BadGatewayCause, Failure};
//! use tower_upstream::body::ReplayBody;
//! use tower_upstream::cause::{Evidence, Replay};
//! use tower_upstream::retry::{Attempts, RetryLayer};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() {
//! static CALLS: AtomicU32 = AtomicU32::new(0);
//! let flaky = service_fn(|_: Request<ReplayBody<Empty<bytes::Bytes>>>| async {
//!     match CALLS.fetch_add(1, Ordering::Relaxed) {
//!         0 => Err(Failure::builder(BadGatewayCause::ConnectionRefused)
//!             .replay(Replay::NotSent, Evidence::NoConnection)
//!             .build()),
//!         _ => Ok(Response::new(Full::<bytes::Bytes>::from("hello"))),
//!     }
//! });
//! let answer = RetryLayer::new().layer(flaky).oneshot(Request::post("/").body(Empty::new()).unwrap()).await.unwrap();
//! assert_eq!(Attempts::of(&answer).unwrap().count(), 2);
//! # }
//! ```

// measured: calls that are not inlined copy requests and responses
#![allow(clippy::inline_always)]

mod attempts;
mod backoff;
mod budget;
mod decision;
mod failure_signal;
mod has_failure;
mod hedging;
mod mode;
mod policy;
mod pushback;
mod rate_sampler;
mod request_template;
mod retry_after;
mod retry_state;
mod settings;
mod token_bucket;
#[cfg(feature = "tower-retry")]
mod tower_budget;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, Request, Response};
use http_body::Body;
use tower_layer::Layer;
use tower_service::Service;

use self::mode::{Recorded, RetryDeadlines, Unwrapped};
pub(crate) use self::mode::{Resend, WrapReplay};
use self::request_template::carry;
pub(crate) use self::settings::Settings;
use crate::body::{BoxError, ReplayBody, WrapBody};
use crate::deadline::DeadlinePropagation;
use crate::exchange::{ActiveCall, Config, SpareCalls, Spec, middleware_body, middleware_future, middleware_service};
use crate::free_list::free_list;
use crate::opaque::Opaque;

pub use self::attempts::Attempts;
pub use self::budget::{BudgetSnapshot, RetryBudget, Withdrawal};
pub use self::has_failure::HasFailure;
pub use self::hedging::Hedging;
pub use self::policy::{RetryOverride, RetryPolicy};
pub use self::retry_after::retry_after;
pub use crate::stats::Quantile;
use crate::stats::Ratio;

/// Sends failed requests again where that is safe, helps, and is paid for; see the [module](self).
///
/// All clones, and all services made of them, share one budget.
#[derive(Clone, Debug, Default)]
#[must_use]
pub struct RetryLayer {
    settings: Settings,
}

impl RetryLayer {
    /// The defaults of the [module's table](self).
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets which failures are retried, how often, and with which backoff.
    pub fn policy(mut self, policy: RetryPolicy) -> Self {
        self.settings.policy = policy;
        self
    }

    /// Draws on this budget (default: one of its own), for layers before the same upstream.
    pub fn budget(mut self, budget: RetryBudget) -> Self {
        self.settings.budget = budget;
        self
    }

    /// Sets how many bytes of a request body are kept (default 64 KiB).
    ///
    /// A longer body is sent as usual; once an attempt has read more of it, it is not sent again.
    pub fn body_cap(mut self, bytes: usize) -> Self {
        self.settings.body_cap = bytes;
        self
    }

    /// Limits the time from the call to the last attempt's response head (default: none).
    ///
    /// It has no timer of its own, so that a call has one timer and not two: backoffs end before it, and later attempts carry
    /// the remaining time as a [`Deadline`](crate::deadline::Deadline), which a [`TimeoutLayer`](crate::timeout::TimeoutLayer)
    /// inside enforces. Give that layer the same total, for the first attempt.
    pub fn total(mut self, limit: Duration) -> Self {
        self.settings.total = Some(limit);
        self
    }

    /// Reads the client's deadline, less the margin a response needs (default: only from the request's extensions).
    ///
    /// Each attempt carries it as an extension, for the [`TimeoutLayer`](crate::timeout::TimeoutLayer) inside.
    pub fn deadlines(mut self, deadlines: DeadlinePropagation) -> Self {
        self.settings.deadlines = Some(deadlines);
        self
    }

    /// Sets the source of the median duration of an attempt (default: unknown), called after a failure.
    ///
    /// If less time remains, no further attempt is made: it would come too late.
    ///
    /// ```
    /// use std::{sync::Arc, time::Duration};
    /// use tower_upstream::retry::{Quantile, RetryLayer};
    /// use tower_upstream::timeout::AdaptiveTimeout;
    ///
    /// let times = Arc::new(AdaptiveTimeout::new(Duration::from_secs(10)).quantile(Quantile::per_mille(500)));
    /// let layer = RetryLayer::new().median(move |now| times.snapshot(now).quantile);
    /// ```
    pub fn median(mut self, median: impl Fn(tokio::time::Instant) -> Option<Duration> + Send + Sync + 'static) -> Self {
        self.settings.median = Some(Opaque(Arc::new(median)));
        self
    }

    /// Hedges calls whose first attempt is late (default: `None`, no hedging).
    ///
    /// For upstreams with tail latencies that are not caused by load: it adds one request in twenty.
    pub fn hedging(mut self, hedging: impl Into<Option<Hedging>>) -> Self {
        self.settings.hedging = hedging.into();
        self
    }

    /// Copies this type of request extension for later attempts (default: [`Deadline`](crate::deadline::Deadline) and
    /// [`RetryOverride`] alone).
    ///
    /// Around a proxy, copy the [`ClientInfo`](crate::forward::ClientInfo) of your requests; the stack does. Do not copy extensions
    /// that belong to a single attempt: hyper's `OnUpgrade`, a captured connection.
    pub fn carry<T: Clone + Send + Sync + 'static>(mut self) -> Self {
        self.settings.extension_copiers.push(carry::<T>);
        self
    }

    pub(crate) fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Sets the field that counts the attempts on retries (default `x-envoy-attempt-count`; `None`: none).
    pub fn count(mut self, name: impl Into<Option<HeaderName>>) -> Self {
        self.settings.attempt_count_header = name.into();
        self
    }
}

impl<S: Clone> Layer<S> for RetryLayer {
    type Service = Retry<S>;

    fn layer(&self, inner: S) -> Retry<S> {
        let deadlines = RetryDeadlines(self.settings.deadlines.clone());
        let requests = Resend { settings: Some(self.settings.clone()), wrap: Unwrapped };
        Retry::new(inner, Arc::new(Config::new((), (), deadlines, requests, Recorded)))
    }
}

/// Retry alone.
#[derive(Debug)]
pub(crate) enum RetrySpec {}

free_list!(SPARE: Pin<Box<ActiveCall<RetrySpec>>>);

impl Spec for RetrySpec {
    type PerCall = ();
    type PerAttempt = ();
    type Timeouts = RetryDeadlines;
    type Requests = Resend<Unwrapped>;
    type Errors = Recorded;

    const WAITS: bool = false;
    const SPANS: bool = true;

    #[inline]
    fn spare_calls() -> &'static SpareCalls<Self> {
        &SPARE
    }
}

middleware_service! {
    /// The service of [`RetryLayer`].
    Retry [] RetrySpec, repeating: Clone
}

middleware_future! {
    /// The future of [`Retry`].
    RetryFuture<S, B> RetrySpec, ReplayBody<B> where { B: Body<Data = Bytes>, }
}

middleware_body! {
    /// The response body of [`Retry`]: that of the last attempt.
    ///
    /// Its error is the inner body's own, boxed.
    RetryBody<X> RetrySpec, X, BoxError, { X: Body<Data = Bytes>, X::Error: Into<BoxError>, }
}

impl<S, B, X, E> Service<Request<B>> for Retry<S>
where
    S: WrapBody<ReplayBody<B>, Body = X, ServiceError = E>,
    E: HasFailure,
    B: Body<Data = Bytes>,
    X: Body<Data = Bytes>,
    X::Error: Into<BoxError>,
{
    type Response = Response<RetryBody<X>>;
    type Error = E;
    type Future = RetryFuture<S, B>;

    #[inline]
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), E>> {
        self.exchange.poll_ready::<B, X, E>(cx)
    }

    #[inline]
    fn call(&mut self, request: Request<B>) -> Self::Future {
        RetryFuture::new(self.exchange.call(request))
    }
}

impl<S, B, X, E> Future for RetryFuture<S, B>
where
    S: WrapBody<ReplayBody<B>, Body = X, ServiceError = E>,
    E: HasFailure,
    B: Body<Data = Bytes>,
    X: Body<Data = Bytes>,
    X::Error: Into<BoxError>,
{
    type Output = Result<Response<RetryBody<X>>, E>;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.project().call.poll_as(cx)
    }
}
