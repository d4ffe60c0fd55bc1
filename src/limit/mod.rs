//! Concurrency limit: bounds the calls in flight to an upstream by what it can handle.
//!
//! An upstream with more requests than it can handle does not do more work, it only responds later. [`ConcurrencyLimitLayer`]
//! immediately refuses calls that would only lengthen its queue: beyond a fixed number, or one that it learns from response
//! times. It never queues: a call is admitted or refused, and the layer adds no readiness of its own.
//!
//! | refused when | response | cause |
//! |---|---|---|
//! | the calls in flight have reached the limit | 503 with `Retry-After` | `connection_limit` |
//!
//! The replay safety of a rejection is `not_sent` by `local_refusal`. `Retry-After` is 1 s; of an adaptive limit the latency, at
//! most 60 s.
//! An inner service that was ready keeps its place, such as a permit of tower's concurrency limit, until it is called again
//! or dropped: without a clone it cannot give it back. [`UpstreamLayer`](crate::UpstreamLayer) does.
//!
//! A slot is held from the call to the end, failure or drop of the response body. After a 101 it is released at the head,
//! unless it is [held](ConcurrencyLimitLayer::hold_slot_during_upgrade). A panic of the inner service releases it as well.
//! In a stack it is held for an attempt, and released while a tracked upload waits for its client: when the client goes on,
//! the attempt takes a slot again, beyond the limit if none is free.
//!
//! | setting | |
//! |---|---|
//! | [`fixed`](ConcurrencyLimitLayer::fixed) | a fixed number of calls; no clock is read and nothing is learned. The [stack](crate::stack) has 1,024 |
//! | [`adaptive`](ConcurrencyLimitLayer::adaptive) | learned, from 2 to 1,024 calls; other [`bounds`](ConcurrencyLimitLayer::bounds) can be set |
//! | [`unbounded`](ConcurrencyLimitLayer::unbounded) | calls need not end (default: they are expected to) |
//! | [`keyed`](ConcurrencyLimitLayer::keyed) | one limit per upstream (default: one for all) |
//!
//! # The adaptive limit
//!
//! It begins at its upper bound and comes down on evidence that the upstream is overloaded:
//!
//! | evidence | for example |
//! |---|---|
//! | latency: good responses (below 400) take more than twice as long as without a queue, and all slots are in use | a database behind it has become slow |
//! | more than a tenth of the calls end with 429, 503 or a timeout of this crate, those of more than one route | it refuses work |
//!
//! *Latency* is the time to the response head that a quarter of the good responses of a window do not exceed: a queue delays
//! all calls, also those of the fast routes, and slow routes beside them change nothing. It is measured from the end of the
//! request body, where a layer around it tracks that ([`UpstreamLayer`](crate::UpstreamLayer) does); requests with a body of
//! which the end is unknown are no samples of it. The time that a client takes to read the response is not part of it.
//! A route is a path up to its first, second or third segment; one route that refuses or hangs is no evidence.
//! Other 4xx and 5xx are responses, whose time says nothing. Failed connections and clients that disconnect are ignored. A call
//! that a timeout around this layer dropped counts as timed out.
//!
//! While the latency is high and slots are free, nothing is refused: the limit only comes down to twice the calls in flight,
//! or an eighth of the upper bound. If the calls in flight do not reach it in two seconds, that is what responses take now. So
//! neither a slower deployment nor a slow route costs a request.
//!
//! **It recovers** with samples: by its square root in each window in which half of it was used, whatever the statuses. And
//! with time: it doubles every five seconds without evidence, however few calls there are. A healthy upstream that is asked a
//! thousand times a second is refused nothing after two seconds, whatever was before; one that is asked twice a minute, after
//! one minute. If its responses have become more than twice as slow during an overload, the next probe has to find that out.
//!
//! **Algorithm.** A window lasts 100 ms, or one latency if that is longer, and has at least 16 samples. Then
//! `limit = limit * clamp(2 * baseline / latency, 1/2, 1) + sqrt(limit)`, or `limit * 0.7` after refusals and timeouts. Under
//! constant overload it settles where all workers are busy and the queue takes as long as a fast response: at twice
//! the number of workers, and a little, if all calls take equally long; at 1.4 to 1.6 times their number if times are spread
//! (exponential, lognormal). The *baseline* is the latency without queueing. It follows falling latencies directly. While calls
//! are refused, a rise is accepted only from a probe, for which the limit drops to a quarter for a moment: after two seconds, or
//! before the limit falls below a quarter; then again after 2 to 32 s, so that probes take at most a thirtieth of the time.
//!
//! The limiter has to see most of the upstream's traffic. One of many gateways with little traffic each cannot
//! see the load of the others: there the upstream itself has to refuse, with [`AdmissionLayer`](crate::admission::AdmissionLayer).
//! With callers of a limited number, which wait for one response before they send the next request, nothing grows without bound,
//! and nothing is refused below the upper bound.
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
mod limiter;
mod raise_probe;
mod sample_kind;
mod samples;
mod striped_semaphore;

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use http::{Request, StatusCode};
use tokio::time::Instant;
use tower_layer::Layer;

use self::limiter::{LimitChange, Limiter};
use self::sample_kind::{is_overload, sample_kind};
use self::samples::{Sample, SampleKind};
use self::striped_semaphore::SlotRef;
use crate::body::UpgradeGuard;
use crate::body::announces_body;
use crate::cause::{BadGatewayCause, Detail, Failure, Phase, Protocol, RetryStop, TUNNEL_LIMIT};
use crate::exchange::PerUpstream;
use crate::exchange::{
    BodyTimeouts, CLIENT_IDLE, CallContext, CallKind, CancelReason, Component, Outcome, Rejection, RequestLoad,
    TimeoutPolicy,
};
use crate::exchange::{Config, PassErrors, SendOnce, middleware_spec, passing_middleware};
use crate::stats::RouteKey;
use crate::stats::reachable;
use crate::stats::{default_stripes, stripe};

pub use self::limiter::LimitSnapshot;
pub use crate::exchange::KeyedLayer;

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

/// The bounds of an adaptive limit: the upper one is that of Envoy's circuit breakers.
const BOUNDS: (u32, u32) = (2, 1024);

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
    /// A fixed limit; 0 counts as 1, and more than about a million as that.
    pub fn fixed(limit: u32) -> Self {
        Self::between(limit, limit)
    }

    /// An adaptive limit of 2 to 1,024 calls, which begins at 1,024.
    pub fn adaptive() -> Self {
        Self::between(BOUNDS.0, BOUNDS.1)
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

    /// A new limit with the same settings, for one of many endpoints.
    #[cfg(feature = "balance")]
    pub(crate) fn for_endpoint(&self, key: &str) -> Self {
        self.with_name(Some(key))
    }

    /// A new limit with the same settings, for one of many upstreams.
    fn with_name(&self, name: Option<&str>) -> Self {
        let (least, most) = self.config.per_attempt.limiter.bounds();
        // counters per core and per upstream would use much memory for little traffic
        let layer = Self::of(least, most, 1, name, self.config.timeouts);
        if self.config.per_attempt.holds_slot_during_upgrade { layer.hold_slot_during_upgrade() } else { layer }
    }

    /// Makes the limit adaptive between these bounds. If `max < min`, `min` is used for both.
    ///
    /// The upper bound is the limit at the beginning and while nothing is overloaded, the lower one is what every upstream
    /// takes. With a lower bound of one, a single stuck call could block all others. It starts
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
    /// name the upstream they are sent to. The counters are not striped, and each call costs an allocation and a read lock.
    ///
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
    /// assert_eq!(limits.get("a.example").unwrap().handle().snapshot().refused, 1);
    /// # drop(held);
    /// # }
    /// ```
    pub fn keyed(self) -> KeyedLayer<Self> {
        KeyedLayer::new(self)
    }

    pub(crate) fn component(&self) -> LimitComponent {
        self.config.per_attempt.clone()
    }

    /// The bounds as configured, for validation: the layer itself clamps any two numbers to a range.
    pub(crate) fn configured_bounds(&self) -> (u32, u32) {
        self.configured
    }

    /// The bounds after clamping.
    #[cfg(any(test, feature = "serde"))]
    pub(crate) fn effective_bounds(&self) -> (u32, u32) {
        self.config.per_attempt.limiter.bounds()
    }

    /// The handle that shows the limit.
    pub fn handle(&self) -> LimitHandle {
        LimitHandle { limiter: self.config.per_attempt.limiter.clone() }
    }
}

impl<S> Layer<S> for ConcurrencyLimitLayer {
    type Service = ConcurrencyLimit<S>;

    fn layer(&self, inner: S) -> ConcurrencyLimit<S> {
        ConcurrencyLimit::new(inner, self.config.clone())
    }
}

impl PerUpstream for ConcurrencyLimitLayer {
    type Spec = LimitSpec;

    fn for_key(&self, key: Option<&str>) -> Arc<Config<LimitSpec>> {
        self.with_name(key).config
    }

    fn from_config(config: Arc<Config<LimitSpec>>) -> Self {
        let configured = config.per_attempt.limiter.bounds();
        Self { config, configured }
    }
}

impl<S> Layer<S> for KeyedLayer<ConcurrencyLimitLayer> {
    type Service = ConcurrencyLimit<S>;

    fn layer(&self, inner: S) -> ConcurrencyLimit<S> {
        ConcurrencyLimit::new(inner, self.configs())
    }
}

/// Shows the limit of a [`ConcurrencyLimitLayer`] and the measurements it is based on.
#[derive(Clone, Debug)]
pub struct LimitHandle {
    limiter: Arc<Limiter>,
}

impl LimitHandle {
    /// The current numbers; under concurrent calls they may be from slightly different moments.
    pub fn snapshot(&self) -> LimitSnapshot {
        self.limiter.snapshot()
    }

    /// Whether a call would be rejected.
    #[cfg(feature = "balance")]
    pub(crate) fn is_full(&self) -> bool {
        self.limiter.is_full()
    }

    /// Calls in flight.
    pub fn in_flight(&self) -> u32 {
        self.limiter.in_flight()
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
    /// The slot is released until the client has sent more of the request.
    awaits_client: bool,
}

impl LimitComponent {
    #[cfg(feature = "serde")]
    pub(crate) fn bounds(&self) -> (u32, u32) {
        self.limiter.bounds()
    }

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
    fn on_request<B>(&self, call: &mut CallContext, request: &Request<B>) {
        if self.limiter.is_adaptive() {
            call.protocol.get_or_insert_with(|| Protocol::of(request.method(), request.headers()));
            let route = call.vote.route.unwrap_or_else(|| RouteKey::of(request.uri().path()));
            call.load = Some(RequestLoad { route, uploads: announces_body(request) });
        }
    }

    #[inline]
    fn admit(&self, call: &CallContext) -> Result<SlotPermit, Rejection> {
        match self.limiter.try_acquire(stripe(), call.now) {
            Ok((slot, looked_at)) => {
                let sampled = looked_at && call.kind == CallKind::Bounded;
                Ok(SlotPermit { slot: Some(slot), sampled, awaits_client: false })
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

    fn on_upload(&self, permit: &mut SlotPermit, awaits_client: bool) {
        if awaits_client && permit.slot.is_some() {
            permit.awaits_client = true;
            self.release(permit.slot.take());
        } else if !awaits_client && permit.awaits_client {
            permit.awaits_client = false;
            permit.slot = self.limiter.acquire_again(stripe());
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
        // the head was a sample already, and only overload is told of afterwards: a timeout, gRPC's status in the trailers
        if permit.sampled && !outcome.is_success() && sample_kind(outcome) == Some(SampleKind::Overloaded) {
            self.record_outcome(&mut permit, call, outcome);
        }
        self.release(permit.slot);
    }

    fn cancel(&self, permit: SlotPermit, call: &CallContext, why: CancelReason) {
        if let (true, CancelReason::TimedOut(cause)) = (permit.sampled, why) {
            if is_overload(cause) {
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
        let Some(kind) = sample_kind(outcome).filter(|_| !tunnels) else { return };
        // an overloaded call is sampled once
        permit.sampled = kind != SampleKind::Overloaded;
        let kind = if kind == SampleKind::Success && !call.knows_upload() { SampleKind::Responded } else { kind };
        self.learn(call, outcome.now(), kind);
    }

    #[cold]
    #[inline(never)] // of many calls few are looked at
    fn learn(&self, call: &CallContext, now: Instant, kind: SampleKind) {
        let route = call.load.map(|load| load.route).unwrap_or_default();
        let (took, in_flight) = (call.work_time(now), self.limiter.in_flight());
        let sample = Sample { now, in_flight, kind, took, route };
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
