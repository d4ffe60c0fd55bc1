//! Limits how many calls are in flight to an upstream, by what it can do.
//!
//! An upstream that is asked for more than it can do does not do more, it only answers later. [`ConcurrencyLimitLayer`] knows from the
//! answers themselves how long the line before the upstream is, and refuses at once what would only make it longer, with
//! the upstream not asked. It never queues: a call is let through or refused, and the layer has no readiness of its own.
//!
//! | refused when | answer | cause |
//! |---|---|---|
//! | as many calls are in flight as the limit allows | 503 with `Retry-After` | `connection_limit` |
//!
//! A refusal says `not_sent`, `local_refusal`. `Retry-After` is the mean answer time, in which those in flight
//! should be done, from 1 s to 60 s.
//!
//! A slot is held from the call to the end of the response body, its failure or its drop. After a 101 it is given back at the head,
//! unless it is to be [held](ConcurrencyLimitLayer::hold_slot_during_upgrade). A panic of the inner service gives it back as well.
//!
//! | setting | default |
//! |---|---|
//! | [`bounds`](ConcurrencyLimitLayer::bounds) | 2 to 200 calls; begins at 20 |
//! | [`fixed`](ConcurrencyLimitLayer::fixed) | the same layer with both bounds alike: it looks at no clock and learns nothing |
//! | [`unbounded`](ConcurrencyLimitLayer::unbounded) | no: exchanges end |
//! | [`keyed`](ConcurrencyLimitLayer::keyed): a limit for each upstream | one for all |
//!
//! **The time that counts** is that from the call to the response head. The body's end is held back by slow clients and by streams, which
//! say nothing of the upstream's line; so an upstream that answers at once and works while it sends is bounded by `bounds`
//! alone. A request that is uploaded slowly makes the time longer; where most are, set fixed bounds. Answers below 400 are samples; 429,
//! 503, and our own timeouts and limits further in say that there is too much; all else, and whoever hung up, says nothing. A call that
//! a time limit around this layer has dropped counts as timed out.
//!
//! **How it moves.** A window lasts 100 ms, or the mean answer time where that is longer, and has 16 samples at least. Then
//! `limit = limit * clamp(2 * baseline / mean, 1/2, 1) + sqrt(limit)`, or `limit * 0.7` where more than a tenth said that there is
//! too much. It grows only if at least half of it was in use. Under a load without end it comes to rest at twice as many calls as the
//! upstream works on at once, and a little more: all workers busy, one call in line for each. The *baseline* is the answer time
//! without a line. It follows what becomes quicker; what becomes slower it takes over only from a probe, for which the limit
//! goes down to a quarter for a moment. That happens where answers have been slow or slots used up for two seconds, or
//! before the limit falls further than to a quarter; then after 2 to 32 s again, so that probes cost a part in thirty at most. A lasting change
//! is thus followed in a few seconds, and no history keeps the limit at its minimum.
//!
//! It needs to be in control of most of what the upstream is asked. One gateway of many with little traffic each cannot
//! see the others' load: there the upstream itself has to refuse, with [`AdmissionLayer`](crate::admission::AdmissionLayer).
//!
//! **Telemetry.** A change of the limit by more than a quarter is one `tracing` event, target `tower_upstream`, at most one a
//! second: `DEBUG` when it rose, `INFO` when it fell, with `limit`, `before`, `reason` and, where it is keyed, `upstream`. [`LimitHandle`] shows the rest.
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
    AttemptProgress, BodyTimeouts, CLIENT_IDLE, CallContext, CallKind, CancelReason, Component, Outcome, Rejection,
    TimeoutPolicy, TimerDecision, Tunnel,
};
use crate::exchange::{Config, Once, PassOn, middleware_spec, passing_middleware};
use crate::stats::reachable;
use crate::stats::{default_stripes, stripe};

pub use self::gradient::LimitChangeReason;
pub use self::keyed::{KeyedLimit, KeyedLimitLayer};
pub use self::limiter::LimitSnapshot;

passing_middleware! {
    /// The service of [`ConcurrencyLimitLayer`].
    Limited,
    /// The future of [`Limited`].
    LimitFuture,
    /// The response body of [`Limited`]: the inner service's, or that of a rejection.
    ///
    /// Its error is the inner body's own, boxed, or a [`Failure`] where a limit has passed.
    LimitBody,
    LimitSpec
}

middleware_spec! {
    /// A limiter alone.
    LimitSpec,
    per_call = Limit, per_attempt = (), timeouts = NoTimeouts, requests = Once, errors = PassOn
}

const BOUNDS: (u32, u32) = (2, 200);

/// Limits the calls in flight; see the [module](self).
///
/// All clones share one limit, and so do the routes and connections that axum applies a layer to: make one for each upstream.
#[derive(Clone, Debug)]
#[must_use]
pub struct ConcurrencyLimitLayer {
    config: Arc<Config<LimitSpec>>,
    /// The bounds as they were said, before they were made a range.
    configured: (u32, u32),
}

impl ConcurrencyLimitLayer {
    /// A limit that follows what the upstream can do, from 2 to 200 calls.
    pub fn new() -> Self {
        Self::between(BOUNDS.0, BOUNDS.1)
    }

    /// A limit of so many calls; 0 counts as 1, and more than a million as a million.
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
        let parts = Limit { limiter, refusal: refusal(name.as_ref()), name, holds_slot_during_upgrade: false };
        Self { config: Arc::new(Config::new(parts, (), limits, Once, PassOn)), configured: (least, most) }
    }

    /// A new limit with the same settings, for one upstream of many.
    fn with_name(&self, name: Option<&str>) -> Self {
        let (least, most) = self.config.per_call.limiter.bounds();
        // a set of counters for each core and each upstream would be much memory for little traffic
        let layer = Self::of(least, most, 1, name, self.config.timeouts);
        if self.config.per_call.holds_slot_during_upgrade { layer.hold_slot_during_upgrade() } else { layer }
    }

    /// Bounds the limit (default: 2 to 200 calls); what is not a range counts as its beginning.
    ///
    /// The upper bound is what the upstream may ever be asked for at once; a higher one costs nothing but a longer line, where the
    /// times to the head tell nothing. A lower bound of one lets no second call be seen beside a stuck one. The limit is
    /// a new one: clones that were made before go on with the old.
    pub fn bounds(self, bounds: RangeInclusive<u32>) -> Self {
        let mut layer = Self::between(*bounds.start(), *bounds.end());
        Arc::make_mut(&mut layer.config).timeouts = self.config.timeouts;
        if self.config.per_call.holds_slot_during_upgrade { layer.hold_slot_during_upgrade() } else { layer }
    }

    /// Holds the slot of a 101 as long as its tunnel lives (default: it is given back at the head).
    ///
    /// For upstreams to which a WebSocket is as dear as a request. The service inside has to tell when the tunnel ends, by a
    /// [`Tunnel`] in its answer, as `ReverseProxy` does; without one the slot is given back at
    /// the head.
    pub fn hold_slot_during_upgrade(mut self) -> Self {
        Arc::make_mut(&mut self.config).per_call.holds_slot_during_upgrade = true;
        self
    }

    /// Says that exchanges need not end: event streams, WebSocket, gRPC streams.
    ///
    /// Such an exchange holds a slot of the same limit, and teaches nothing about others.
    pub fn unbounded(mut self) -> Self {
        Arc::make_mut(&mut self.config).timeouts.kind = CallKind::Unbounded;
        self
    }

    /// Limits how long a client may leave a response body unread (default 60 s; `None`: no limit).
    ///
    /// The slot is given back then, and the body ends with an error, as
    /// [`Timeouts::client_idle`](crate::timeout::Timeouts::client_idle) says.
    pub fn client_idle(mut self, limit: impl Into<Option<Duration>>) -> Self {
        Arc::make_mut(&mut self.config).timeouts.client_idle = limit.into().map(reachable);
        self
    }

    /// A limit of its own for each upstream that requests name, with these settings.
    ///
    /// The key is the authority of the request's target, else its `Host` field; in lower case. There are 1,024 at most, and the least
    /// recently used makes room, but none with calls in flight: where all have some, whoever finds no place shares
    /// one limit with all others that do not. It has to stand where requests name what they are sent to: below the choice of
    /// the upstream. Its counters are not striped, and each call costs an allocation and a read lock.
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
    /// assert_eq!(limits.snapshot("a.example").unwrap().refused, 1);
    /// # drop(held);
    /// # }
    /// ```
    pub fn keyed(self) -> KeyedLimitLayer {
        KeyedLimitLayer::new(self)
    }

    pub(crate) fn component(&self) -> Limit {
        self.config.per_call.clone()
    }

    /// The bounds as they were said, for whoever checks a configuration: this layer makes a range of any two numbers.
    pub(crate) fn configured_bounds(&self) -> (u32, u32) {
        self.configured
    }

    /// The least and the most that its limit can be.
    #[cfg(test)]
    pub(crate) fn effective_bounds(&self) -> (u32, u32) {
        self.config.per_call.limiter.bounds()
    }

    /// Shows how things stand, from anywhere.
    pub fn handle(&self) -> LimitHandle {
        LimitHandle { limiter: self.config.per_call.limiter.clone() }
    }
}

impl Default for ConcurrencyLimitLayer {
    fn default() -> Self {
        Self::new()
    }
}

impl<S> Layer<S> for ConcurrencyLimitLayer {
    type Service = Limited<S>;

    fn layer(&self, inner: S) -> Limited<S> {
        Limited::new(inner, self.config.clone())
    }
}

/// Shows the limit of a [`ConcurrencyLimitLayer`] and what it is learned from.
#[derive(Clone)]
pub struct LimitHandle {
    limiter: Arc<Limiter>,
}

impl LimitHandle {
    /// How things stand; beside other threads the numbers may be of different moments.
    pub fn snapshot(&self) -> LimitSnapshot {
        self.limiter.snapshot()
    }

    /// How many calls are in flight.
    pub fn in_flight(&self) -> u32 {
        self.limiter.in_flight()
    }
}

impl fmt::Debug for LimitHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.snapshot().fmt(f)
    }
}

/// What [`ConcurrencyLimitLayer`] adds to a call.
#[derive(Clone, Debug)]
pub(crate) struct Limit {
    limiter: Arc<Limiter>,
    /// The record of all refusals: each has to be cheap.
    refusal: Failure,
    /// The upstream, where there is a limit for each.
    name: Option<Arc<str>>,
    holds_slot_during_upgrade: bool,
}

/// What an admitted call holds.
#[derive(Debug)]
pub(crate) struct SlotPermit {
    /// None once it is given back.
    slot: Option<SlotRef>,
    sampled: bool,
}

impl Limit {
    /// The same slots, with refusals that name the upstream.
    pub(crate) fn with_upstream(mut self, name: &Arc<str>) -> Self {
        self.name.get_or_insert_with(|| name.clone());
        self.refusal = refusal(self.name.as_ref());
        self
    }
}

impl Component for Limit {
    type Ticket = SlotPermit;

    #[inline]
    fn admit(&self, call: &CallContext) -> Result<SlotPermit, Rejection> {
        match self.limiter.try_acquire(stripe()) {
            Ok((slot, looked_at)) => {
                Ok(SlotPermit { slot: Some(slot), sampled: looked_at && call.kind == CallKind::Bounded })
            }
            Err(after) => Err(Rejection::new(self.refusal.clone()).retry_after(after)),
        }
    }

    fn tunnelled(&self, ticket: &mut SlotPermit, tunnel: &Tunnel) {
        if self.holds_slot_during_upgrade {
            let slot = ticket.slot.take();
            tunnel.holds(UpgradePermit { slot, limiter: self.limiter.clone() });
        }
    }

    #[inline]
    fn answered(&self, ticket: &mut SlotPermit, call: &CallContext, outcome: &Outcome) {
        if ticket.sampled {
            self.record_outcome(ticket, call, outcome);
        }
        if outcome.status() == Some(StatusCode::SWITCHING_PROTOCOLS) {
            self.release(ticket.slot.take());
        }
    }

    #[inline]
    fn settle(&self, mut ticket: SlotPermit, call: &CallContext, outcome: &Outcome) {
        // the head has been looked at; what failed after it has a cause
        if ticket.sampled && outcome.cause().is_some_and(sample_kind::is_overload) {
            self.record_outcome(&mut ticket, call, outcome);
        }
        self.release(ticket.slot);
    }

    fn abandon(&self, ticket: SlotPermit, call: &CallContext, why: CancelReason) {
        if let (true, CancelReason::TimedOut(cause)) = (ticket.sampled, why) {
            if sample_kind::is_overload(cause) {
                self.learn(call, Instant::now(), SampleKind::Overloaded);
            }
        }
        self.release(ticket.slot);
    }
}

/// A slot that a tunnel holds.
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

impl Limit {
    #[inline]
    fn release(&self, slot: Option<SlotRef>) {
        if let Some(slot) = slot {
            self.limiter.release(slot);
        }
    }

    /// Learns from an outcome, while the slot is still held.
    fn record_outcome(&self, ticket: &mut SlotPermit, call: &CallContext, outcome: &Outcome) {
        let tunnels = outcome.record().and_then(Failure::detail) == Some(Detail::Text(TUNNEL_LIMIT));
        let end = sample_kind::sample_kind(outcome.status(), outcome.cause()).filter(|_| !tunnels);
        let Some(end) = end else { return };
        // once is enough where it is bad
        ticket.sampled = end == SampleKind::Success;
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
            tracing::debug!(target: "tower_upstream", upstream, limit = to, before = from, reason, "the limit has risen");
        } else {
            tracing::info!(target: "tower_upstream", upstream, limit = to, before = from, reason, "the limit has fallen");
        }
    }
}

fn refusal(name: Option<&Arc<str>>) -> Failure {
    let failure = Failure::builder(BadGatewayCause::ConnectionLimit).phase(Phase::Gateway);
    let failure = failure.detail(Detail::Text("as many requests are in flight as the limit allows"));
    // retry layers need not make a record of their own to say that there is no further attempt
    let failure = failure.refusal().retry_stop(RetryStop::LocalRefusal);
    match name {
        Some(name) => failure.upstream(name.clone()).build(),
        None => failure.build(),
    }
}

/// No time limits: only whether exchanges are expected to end.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NoTimeouts {
    kind: CallKind,
    client_idle: Option<Duration>,
}

impl TimeoutPolicy for NoTimeouts {
    type Watch = ();

    #[inline]
    fn begin<B>(&self, call: &mut CallContext, _: &mut Request<B>) {
        call.kind = self.kind;
    }

    fn first(&self, (): &(), _: &CallContext) -> Option<Instant> {
        None
    }

    fn look(&self, (): &mut (), _: &CallContext, _: Instant, _: &AttemptProgress) -> TimerDecision {
        unreachable!("no look was ever due")
    }

    fn body(&self, _: &CallContext) -> BodyTimeouts {
        BodyTimeouts { client_idle: self.client_idle, ..BodyTimeouts::default() }
    }
}
