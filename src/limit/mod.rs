//! Concurrency limit: bounds the calls in flight to an upstream by what it can handle.
//!
//! An upstream with more requests than it can handle does not do more work, it only responds later. [`ConcurrencyLimitLayer`]
//! derives from response times how long the upstream's queue is, and immediately refuses calls that would only lengthen it.
//! It never queues: a call is admitted or refused, and the layer adds no readiness of its own.
//!
//! | refused when | response | cause |
//! |---|---|---|
//! | the calls in flight have reached the limit | 503 with `Retry-After` | `connection_limit` |
//!
//! The replay safety of a rejection is `not_sent` by `local_refusal`. `Retry-After` is the mean response time, 1 s to 60 s: the
//! calls in flight should be done by then.
//!
//! A slot is held from the call to the end, failure or drop of the response body. After a 101 it is released at the head,
//! unless it is [held](ConcurrencyLimitLayer::hold_slot_during_upgrade). A panic of the inner service releases it as well.
//!
//! | setting | default |
//! |---|---|
//! | [`bounds`](ConcurrencyLimitLayer::bounds) | 2 to 200 calls, initially 20 |
//! | [`fixed`](ConcurrencyLimitLayer::fixed) | both bounds equal: no clock is read and nothing is learned |
//! | [`unbounded`](ConcurrencyLimitLayer::unbounded) | off: calls are expected to end |
//! | [`keyed`](ConcurrencyLimitLayer::keyed): one limit per upstream | one limit for all |
//!
//! **Samples.** The latency of a call is the time to the response head. The end of the body is delayed by slow clients and by
//! streams, which say nothing about the upstream's queue; an upstream that responds at once and works while it sends is limited
//! by `bounds` alone. A slow upload lengthens the latency; where most requests are uploads, use fixed bounds. Responses below 400
//! are samples of latency. 429, 503, and this crate's timeouts and limits further inside are signs of overload. Everything else is
//! ignored, a client that disconnected included. A call that a timeout around this layer dropped counts as timed out.
//!
//! **Algorithm.** A window lasts 100 ms, or the mean response time if that is longer, and has at least 16 samples. Then
//! `limit = limit * clamp(2 * baseline / mean, 1/2, 1) + sqrt(limit)`, or `limit * 0.7` if more than a tenth of the samples are
//! signs of overload. It grows only if at least half of it was in use. Under constant overload it settles slightly above twice
//! the number of calls that the upstream works on concurrently: all workers busy, one call queued for each. The *baseline* is the
//! latency without queueing. It follows falling latencies directly; a rise is accepted only from a probe, for which the limit
//! drops to a quarter for a moment. A probe happens after two seconds of slow responses or exhausted slots, or before the limit
//! falls below a quarter; then again after 2 to 32 s, so that probes take at most a thirtieth of the time. A lasting change is
//! followed within seconds, and the limit cannot get stuck at its minimum.
//!
//! The limiter has to see most of the upstream's traffic. One of many gateways with little traffic each cannot
//! see the load of the others: there the upstream itself has to refuse, with [`AdmissionLayer`](crate::admission::AdmissionLayer).
//!
//! **Telemetry.** A change of the limit by more than a quarter is one `tracing` event, target `tower_upstream`, at most one per
//! second: `DEBUG` when it rose, `INFO` when it fell, with `limit`, `before`, `reason` and, if keyed, `upstream`. [`LimitHandle`] has the rest.
//!
//! ```
//! use axum::{Router, body::Body, routing::get};
//! use http::Request;
//! use tower::ServiceExt;
//! use tower_upstream::BadGatewayCause;
//! use tower_upstream::limit::ConcurrencyLimitLayer;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() {
//! let limit = ConcurrencyLimitLayer::fixed(1);
//! let app = Router::new().route("/", get(|| async { "answer" })).layer(limit.clone());
//!
//! let request = || Request::get("/").body(Body::empty()).unwrap();
//! let answer = app.clone().oneshot(request()).await.unwrap();
//! // its body has not been read
//! let refused = app.clone().oneshot(request()).await.unwrap();
//! assert_eq!((refused.status().as_u16(), &refused.headers()["retry-after"] == "1"), (503, true));
//! assert_eq!(BadGatewayCause::of(&refused), Some(BadGatewayCause::ConnectionLimit));
//! drop(answer);
//! assert_eq!(app.oneshot(request()).await.unwrap().status(), 200);
//! assert_eq!(limit.handle().snapshot().refused, 1);
//! # }
//! ```

mod baseline;
mod gradient;
mod keyed;
mod limiter;
mod raise_probe;
mod sample_kind;
mod samples;
mod striped_semaphore;

use std::fmt;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use http::{Request, StatusCode};
use tokio::time::Instant;
use tower_layer::Layer;

use self::limiter::{LimitChange, Limiter};
use self::samples::{Sample, SampleKind};
use self::striped_semaphore::SlotRef;
use crate::cause::{BadGatewayCause, Detail, Failure, Phase, RetryStop, TUNNEL_LIMIT};
use crate::exchange::{
    BodyTimeouts, CLIENT_IDLE, CallContext, CallKind, CancelReason, Component, Outcome, Rejection, TimeoutPolicy,
    UpgradeGuard,
};
use crate::exchange::{Config, PassErrors, SendOnce, middleware_spec, passing_middleware};
use crate::stats::reachable;
use crate::stats::{default_stripes, stripe};

pub use self::gradient::LimitChangeReason;
pub use self::keyed::KeyedLimitLayer;
pub use self::limiter::LimitSnapshot;

passing_middleware! {
    /// The service of [`ConcurrencyLimitLayer`].
    ConcurrencyLimit,
    /// The future of [`ConcurrencyLimit`].
    LimitFuture,
    /// The response body of [`ConcurrencyLimit`]: the inner service's, or that of a rejection.
    ///
    /// Its error is the inner body's own, boxed, or a [`Failure`] where a limit has passed.
    LimitBody,
    LimitSpec
}

middleware_spec! {
    /// A limiter alone.
    LimitSpec,
    per_call = (), per_attempt = LimitComponent, timeouts = NoTimeouts, requests = SendOnce, errors = PassErrors
}

const BOUNDS: (u32, u32) = (2, 200);

/// Limits the calls in flight to an upstream; see the [module](self).
///
/// All clones share one limit, and so do the routes and connections that axum applies a layer to: create one per upstream.
#[derive(Clone, Debug)]
#[must_use]
pub struct ConcurrencyLimitLayer {
    config: Arc<Config<LimitSpec>>,
    /// The bounds as configured, before clamping.
    configured: (u32, u32),
}

impl ConcurrencyLimitLayer {
    /// An adaptive limit of 2 to 200 calls.
    pub fn new() -> Self {
        Self::between(BOUNDS.0, BOUNDS.1)
    }

    /// A fixed limit; 0 counts as 1, and more than about a million as that.
    pub fn fixed(limit: u32) -> Self {
        Self::between(limit, limit)
    }

    fn between(least: u32, most: u32) -> Self {
        Self::of(
            least,
            most,
            default_stripes(),
            None,
            NoTimeouts { kind: CallKind::Bounded, client_idle: Some(CLIENT_IDLE) },
        )
    }

    fn of(least: u32, most: u32, stripes: usize, name: Option<&str>, limits: NoTimeouts) -> Self {
        let limiter = Arc::new(Limiter::new(least, most, stripes));
        let name: Option<Arc<str>> = name.map(Arc::from);
        let parts =
            LimitComponent { limiter, rejection: rejection(name.as_ref()), name, holds_slot_during_upgrade: false };
        Self { config: Arc::new(Config::new((), parts, limits, SendOnce, PassErrors)), configured: (least, most) }
    }

    /// A new limit with the same settings, for one of many upstreams.
    fn with_name(&self, name: Option<&str>) -> Self {
        let (least, most) = self.config.per_attempt.limiter.bounds();
        // counters per core and per upstream would use much memory for little traffic
        let layer = Self::of(least, most, 1, name, self.config.timeouts);
        if self.config.per_attempt.holds_slot_during_upgrade { layer.hold_slot_during_upgrade() } else { layer }
    }

    /// Bounds the limit (default: 2 to 200 calls). If `max < min`, `min` is used for both.
    ///
    /// The upper bound is the largest number of concurrent calls; a high one costs nothing but a longer queue if
    /// latencies to the head do not show load. With a lower bound of one, a single stuck call would block all others. It starts
    /// with a new limit: clones made before keep the old one.
    pub fn bounds(self, bounds: RangeInclusive<u32>) -> Self {
        let mut layer = Self::between(*bounds.start(), *bounds.end());
        Arc::make_mut(&mut layer.config).timeouts = self.config.timeouts;
        if self.config.per_attempt.holds_slot_during_upgrade { layer.hold_slot_during_upgrade() } else { layer }
    }

    /// Holds the slot of a 101 until its tunnel ends (default: the slot is released at the head).
    ///
    /// For upstreams to which a WebSocket costs as much as a request. The inner service has to report the end of the tunnel by a
    /// [`UpgradeGuard`] in its response, as `ReverseProxy` does; without one the slot is released at the head.
    pub fn hold_slot_during_upgrade(mut self) -> Self {
        Arc::make_mut(&mut self.config).per_attempt.holds_slot_during_upgrade = true;
        self
    }

    /// Declares that calls need not end: event streams, WebSocket, gRPC streams.
    ///
    /// Such a call holds a slot of the same limit and is not a sample.
    pub fn unbounded(mut self) -> Self {
        Arc::make_mut(&mut self.config).timeouts.kind = CallKind::Unbounded;
        self
    }

    /// Limits how long a client may leave a response body unread (default 60 s; `None`: no limit).
    ///
    /// Then the slot is released and the body ends with an error, as described for
    /// [`Timeouts::client_idle`](crate::timeout::Timeouts::client_idle).
    pub fn client_idle(mut self, limit: impl Into<Option<Duration>>) -> Self {
        Arc::make_mut(&mut self.config).timeouts.client_idle = limit.into().map(reachable);
        self
    }

    /// One limit per upstream, keyed by the request, with these settings.
    ///
    /// The key is the authority of the request's target, else its `Host` field, in lower case: place the layer where requests
    /// name the upstream they are sent to. There are at most 1,024 limits. The least recently used is evicted, one with calls in
    /// flight never; if none can be evicted, further upstreams share one fallback limit. The counters are not striped, and each
    /// call costs an allocation and a read lock.
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// use http::{Request, Response};
    /// use http_body_util::Full;
    /// use tower::{Layer, ServiceExt, service_fn};
    /// use tower_upstream::limit::ConcurrencyLimitLayer;
    ///
    /// let answers = service_fn(|_: Request<()>| async {
    ///     Ok::<_, std::convert::Infallible>(Response::new(Full::new(bytes::Bytes::from("answer"))))
    /// });
    /// let limits = ConcurrencyLimitLayer::fixed(1).keyed();
    /// let service = limits.layer(answers);
    /// let of = |host: &str| Request::get(format!("http://{host}/")).body(()).unwrap();
    ///
    /// let held = service.clone().oneshot(of("a.example")).await.unwrap();
    /// assert_eq!(service.clone().oneshot(of("a.example")).await.unwrap().status(), 503);
    /// assert_eq!(service.oneshot(of("b.example")).await.unwrap().status(), 200);
    /// assert_eq!(limits.snapshot("a.example").unwrap().refused, 1);
    /// # drop(held);
    /// # }
    /// ```
    pub fn keyed(self) -> KeyedLimitLayer {
        KeyedLimitLayer::new(self)
    }

    pub(crate) fn component(&self) -> LimitComponent {
        self.config.per_attempt.clone()
    }

    /// The bounds as configured, for validation: the layer itself clamps any two numbers to a range.
    pub(crate) fn configured_bounds(&self) -> (u32, u32) {
        self.configured
    }

    /// The bounds after clamping.
    #[cfg(test)]
    pub(crate) fn effective_bounds(&self) -> (u32, u32) {
        self.config.per_attempt.limiter.bounds()
    }

    /// The handle that shows the limit.
    pub fn handle(&self) -> LimitHandle {
        LimitHandle { limiter: self.config.per_attempt.limiter.clone() }
    }
}

impl Default for ConcurrencyLimitLayer {
    fn default() -> Self {
        Self::new()
    }
}

impl<S> Layer<S> for ConcurrencyLimitLayer {
    type Service = ConcurrencyLimit<S>;

    fn layer(&self, inner: S) -> ConcurrencyLimit<S> {
        ConcurrencyLimit::new(inner, self.config.clone())
    }
}

/// Shows the limit of a [`ConcurrencyLimitLayer`] and the measurements it is based on.
#[derive(Clone)]
pub struct LimitHandle {
    limiter: Arc<Limiter>,
}

impl LimitHandle {
    /// The current numbers; under concurrent calls they may be from slightly different moments.
    pub fn snapshot(&self) -> LimitSnapshot {
        self.limiter.snapshot()
    }

    /// Calls in flight.
    pub fn in_flight(&self) -> u32 {
        self.limiter.in_flight()
    }
}

impl fmt::Debug for LimitHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.snapshot().fmt(f)
    }
}

/// The component of [`ConcurrencyLimitLayer`].
#[derive(Clone, Debug)]
pub(crate) struct LimitComponent {
    limiter: Arc<Limiter>,
    /// The record that all refusals share: a rejection has to be cheap.
    rejection: Failure,
    /// The upstream's name, if the limit is keyed.
    name: Option<Arc<str>>,
    holds_slot_during_upgrade: bool,
}

/// The permit of an admitted call.
#[derive(Debug)]
pub(crate) struct SlotPermit {
    /// `None` once the slot is released.
    slot: Option<SlotRef>,
    sampled: bool,
}

impl LimitComponent {
    /// The same slots, with refusals that name the upstream.
    pub(crate) fn with_upstream(mut self, name: &Arc<str>) -> Self {
        self.name.get_or_insert_with(|| name.clone());
        self.rejection = rejection(self.name.as_ref());
        self
    }
}

impl Component for LimitComponent {
    type Permit = SlotPermit;

    #[inline]
    fn admit(&self, call: &CallContext) -> Result<SlotPermit, Rejection> {
        match self.limiter.try_acquire(stripe()) {
            Ok((slot, looked_at)) => {
                Ok(SlotPermit { slot: Some(slot), sampled: looked_at && call.kind == CallKind::Bounded })
            }
            Err(after) => Err(Rejection::new(self.rejection.clone()).retry_after(after)),
        }
    }

    fn on_upgrade(&self, permit: &mut SlotPermit, guard: &UpgradeGuard) {
        if self.holds_slot_during_upgrade {
            let slot = permit.slot.take();
            guard.attach(UpgradePermit { slot, limiter: self.limiter.clone() });
        }
    }

    #[inline]
    fn on_response(&self, permit: &mut SlotPermit, call: &CallContext, outcome: &Outcome) {
        if permit.sampled {
            self.record_outcome(permit, call, outcome);
        }
        if outcome.status() == Some(StatusCode::SWITCHING_PROTOCOLS) {
            self.release(permit.slot.take());
        }
    }

    #[inline]
    fn complete(&self, mut permit: SlotPermit, call: &CallContext, outcome: &Outcome) {
        // the head was a sample already; a failure after it has a cause
        if permit.sampled && outcome.cause().is_some_and(sample_kind::is_overload) {
            self.record_outcome(&mut permit, call, outcome);
        }
        self.release(permit.slot);
    }

    fn cancel(&self, permit: SlotPermit, call: &CallContext, why: CancelReason) {
        if let (true, CancelReason::TimedOut(cause)) = (permit.sampled, why) {
            if sample_kind::is_overload(cause) {
                self.learn(call, Instant::now(), SampleKind::Overloaded);
            }
        }
        self.release(permit.slot);
    }
}

/// The slot held by a tunnel.
struct UpgradePermit {
    slot: Option<SlotRef>,
    limiter: Arc<Limiter>,
}

impl Drop for UpgradePermit {
    fn drop(&mut self) {
        if let Some(slot) = self.slot.take() {
            self.limiter.release(slot);
        }
    }
}

impl LimitComponent {
    #[inline]
    fn release(&self, slot: Option<SlotRef>) {
        if let Some(slot) = slot {
            self.limiter.release(slot);
        }
    }

    /// Learns from an outcome, while the slot is still held.
    fn record_outcome(&self, permit: &mut SlotPermit, call: &CallContext, outcome: &Outcome) {
        let tunnels = outcome.known_failure().and_then(Failure::detail) == Some(Detail::Text(TUNNEL_LIMIT));
        let end = sample_kind::sample_kind(outcome.status(), outcome.cause()).filter(|_| !tunnels);
        let Some(end) = end else { return };
        // an overloaded call is sampled once
        permit.sampled = end == SampleKind::Success;
        self.learn(call, outcome.now(), end);
    }

    #[cold]
    #[inline(never)] // of many calls few are looked at
    fn learn(&self, call: &CallContext, now: Instant, end: SampleKind) {
        let sample = Sample { started: call.now, now, in_flight: self.limiter.in_flight(), kind: end };
        if let Some(change) = self.limiter.learn(&sample) {
            self.log(change);
        }
    }

    fn log(&self, LimitChange { from, to, reason: why }: LimitChange) {
        let (reason, upstream) = (why.as_str(), self.name.as_deref());
        if to > from {
            tracing::debug!(target: "tower_upstream", upstream, limit = to, before = from, reason, "limit raised");
        } else {
            tracing::info!(target: "tower_upstream", upstream, limit = to, before = from, reason, "limit lowered");
        }
    }
}

fn rejection(name: Option<&Arc<str>>) -> Failure {
    let failure = Failure::builder(BadGatewayCause::ConnectionLimit).phase(Phase::Gateway);
    let failure = failure.detail(Detail::Text("the requests in flight have reached the limit"));
    // set here so that retry layers need not copy the record to add it
    let failure = failure.refusal().retry_stop(RetryStop::LocalRefusal);
    match name {
        Some(name) => failure.upstream(name.clone()).build(),
        None => failure.build(),
    }
}

/// No timeouts: only whether calls are expected to end.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NoTimeouts {
    kind: CallKind,
    client_idle: Option<Duration>,
}

impl TimeoutPolicy for NoTimeouts {
    type State = ();

    #[inline]
    fn on_request<B>(&self, call: &mut CallContext, _: &mut Request<B>) {
        call.kind = self.kind;
    }

    fn body_timeouts(&self, _: &CallContext) -> BodyTimeouts {
        BodyTimeouts { client_idle: self.client_idle, ..BodyTimeouts::default() }
    }
}
