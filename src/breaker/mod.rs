//! Circuit breaker: stops calling an upstream while it fails, and detects when it has recovered.
//!
//! Each call to an upstream that is down costs a timeout and adds load. [`CircuitBreakerLayer`] counts how calls end;
//! when too many fail, it opens and refuses calls immediately, until one of them, admitted as a probe, succeeds.
//!
//! **What counts** is the crate's [table of failures](crate::guide::failure_table): the cause of a response decides, if it has
//! one, otherwise its status. Failures are recorded at the response head. Any other call ends with its response body: a body
//! that fails is a failure, whatever the status was. After a 101 the call ends at the head.
//! | end of a call | while closed | as a probe |
//! |---|---|---|
//! | a response, also a 404 or a 500 | success: resets the failures in a row | closes |
//! | no connection, or no complete response: a cause that counts against the upstream, an unclassified error, a body that failed, a timeout inside or around this layer | failure | opens again |
//! | 502, 503, 504 of the upstream itself, and gRPC's `UNAVAILABLE` and `DEADLINE_EXCEEDED` | failure, by share only | closes, unless such responses opened the circuit |
//! | 429, 503 with `Retry-After`, gRPC's `RESOURCE_EXHAUSTED` | ignored: overload is the limiter's concern | closes: the upstream responds |
//! | the client disconnected or uploads too slowly, or its deadline elapsed; a rejection of our own; a stale connection | ignored | the next call becomes the probe |
//!
//! One request is one vote, however many attempts it took. Clients choose which routes they call and how often. So failures
//! in a row count, unless no connection could be made, only while the successes are missing that were to be expected among
//! them; and a share counts only if most routes that were called of late have it. A route is as much of a path as its first,
//! second or third segment. One route that fails or hangs does not open the circuit while others succeed.
//!
//! **When it opens**, and how it closes again:
//!
//! | | default |
//! |---|---|
//! | [`consecutive_failures`](BreakerPolicy::consecutive_failures) failures | 5 in a row |
//! | error responses in a row | as many as `ratio` asks for: 20 |
//! | [`ratio`](BreakerPolicy::ratio) of failures in the [`window`](BreakerPolicy::window) | 50 % of at least 20 calls in 10 s |
//! | [`slow_calls`](BreakerPolicy::slow_calls) | off |
//! | [`open_duration`](BreakerPolicy::open_duration) | 1 s, doubled by each consecutive opening, the second half of it random |
//! | [`max_open_duration`](BreakerPolicy::max_open_duration) | 10 s; one minute if [`clustered`](BreakerPolicy::clustered) |
//! | consecutive openings | one less for each window length the circuit was closed |
//! | after the open duration | one call is admitted as a probe; its success closes the circuit |
//! | [`probe_timeout`](BreakerPolicy::probe_timeout) | 1 s, then the probe counts as failed |
//!
//! **Earlier recovery**: an [`UpstreamLayer`](crate::UpstreamLayer) tests the upstream with [requests of its
//! own](crate::stack#probes) while its circuit is open. A layer alone does not: there, a task that probes the upstream in the
//! background ([`CircuitHandle::active_probe`]) closes the circuit as soon as the upstream is back, and no call is used as a
//! probe. With feature `client`, `ReverseProxy::connect_probe` is such a probe, for failures to connect:
//! `tokio::spawn(breaker.handle().active_probe(proxy.connect_probe()))`.
//!
//! **A circuit cannot get stuck.** A probe that is cancelled lets the next call be one, and results from an earlier epoch are
//! ignored. A probe whose response head was good when it timed out closes the circuit: a long download is not a failure. A
//! probe that times out without a head opens the circuit again, so that an upstream that hangs is called as rarely as one
//! that is down. It continues; if it succeeds before a later probe fails it closes the circuit, because it was sent after the
//! open duration.
//!
//! **A rejection** is a 503 with the cause `circuit_open`, `Retry-After` (the rest of the open duration in whole seconds, 1 while
//! a probe is in flight), and the failure that opened the circuit in [`Failure::opened_by`](crate::Failure::opened_by). Its replay
//! safety is `not_sent` by `local_refusal`. The inner service is neither called nor, if the circuit is open by then, polled
//! for readiness. Retry layers do not retry it, unless there are [replicas](#replicas). If the circuit opens between `poll_ready` and `call`, an inner service that was
//! ready keeps its place, such as a permit of tower's concurrency limit, until it is called again or dropped: without a
//! clone it cannot give it back. [`UpstreamLayer`](crate::UpstreamLayer) does.
//!
//! **Placement**: around the client and inside of retry, so that it counts attempts. Around a
//! [`ClassifyLayer`](crate::ClassifyLayer) it sees causes. Its state is created in [`new`](CircuitBreakerLayer::new) and shared by
//! all routes, connections and clones. A gateway with several upstreams needs one layer for each.
//! **Timeouts**: those of this crate count, inside and around the breaker. Another one around it (`tower::timeout`) drops the
//! call as a disconnected client does, and is ignored: put it inside.
//!
//! **Backpressure**: callers that wait for the inner service to become ready are not woken when the circuit opens. Do not put
//! a concurrency limit that waits inside of it; one that sheds load is fine.
//!
//! # Replicas
//!
//! A circuit that rejects calls at once attracts them, if a balancer such as tower's `p2c` chooses by pending requests or
//! response times. With [`BreakerPolicy::clustered`], a layer around each replica is therefore not ready while its circuit is
//! open, so that the balancer chooses others: `poll_ready` is pending until the open duration ends or the circuit closes. A
//! rejection that happens all the same, because the circuit opens after `poll_ready`, is repeated by a retry layer around the
//! balancer: immediately, whatever the method, and the first time without a token of the budget.
//!
//! The balancer may send each attempt of a call to the same replica: each counts, and you should set fewer
//! [`consecutive_failures`](BreakerPolicy::consecutive_failures) than a call has attempts.
//!
//! If all replicas are down, calls wait for the balancer, until a timeout around it. It becomes ready when the first open duration
//! ends, which may be a minute: [`CircuitHandle::active_probe`] closes each circuit as soon as its replica is back. A
//! pool (module `balance`) needs none of this. Without a balancer around, a call to a layer that is not ready waits.
//!
//! | telemetry | |
//! |---|---|
//! | opened | a `tracing` event at level WARN, target `tower_upstream`: `upstream`, `circuit.state`, `error.type`, `phase`, `peer`, `detail`, `pause_ms` |
//! | half-open, closed | an event at level INFO; on closing with `refused`, the total of refused calls |
//! | a rejection | an event at level DEBUG by a [`ClassifyLayer`](crate::ClassifyLayer) around |
//! | [`CircuitHandle::snapshot`] | state, cause, start of the state, next probe, counts |
//! | [`CircuitHandle::transitions`] | transitions as they happen |
//!
//! ```
//! use axum::{Router, body::Body, http::StatusCode, routing::get};
//! use http::Request;
//! use tower::ServiceExt;
//! use tower_upstream::breaker::{CircuitBreakerLayer, State};
//! use tower_upstream::{BadGatewayCause, Failure};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() {
//! let breaker = CircuitBreakerLayer::new("payments");
//! let circuit = breaker.handle();
//! let app = Router::new().route("/", get(|| async { StatusCode::BAD_GATEWAY })).layer(breaker);
//!
//! let ask = || app.clone().oneshot(Request::get("/").body(Body::empty()).unwrap());
//! for _ in 0..20 {
//!     assert_eq!(ask().await.unwrap().status(), 502);
//! }
//! let refused = ask().await.unwrap();
//! assert_eq!((refused.status(), &refused.headers()["retry-after"]), (StatusCode::SERVICE_UNAVAILABLE, &"1".parse().unwrap()));
//! let failure = Failure::of(&refused).unwrap();
//! assert_eq!(failure.cause(), BadGatewayCause::CircuitOpen);
//! assert_eq!(failure.opened_by().unwrap().cause(), BadGatewayCause::UpstreamStatus);
//! assert_eq!(circuit.snapshot(tokio::time::Instant::now()).state, State::Open);
//! # }
//! ```

mod active_probe;
mod circuit;
mod consecutive_failures;
mod handle;
mod open_backoff;
mod packed_state;
mod policy;
mod probe_schedule;
mod request_probe;
mod routes;
mod silence;
mod state_machine;
mod window;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use http::Request;
use tokio::time::Instant;
use tower_layer::Layer;

use self::circuit::{CallEnd, Circuit};
use self::handle::CircuitShared;
use self::state_machine::Rejected;
use crate::cause::{BadGatewayCause, Blame, CountedAttempt, Detail, Failure, Phase, Protocol};
use crate::exchange::{Admission, CallContext, CancelReason, Component, Outcome, Rejection};
use crate::exchange::{Config, PassErrors, PerUpstream, SendOnce, middleware_spec, passing_middleware};
use crate::keyed_map::Eviction;
use crate::stats::RouteKey;
use crate::stats::default_stripes;

pub use self::circuit::CircuitSnapshot;
pub use self::handle::{CircuitHandle, StateChange, Transitions};
use self::packed_state::Permit;
pub use self::packed_state::State;
pub use self::policy::BreakerPolicy;
pub use crate::exchange::KeyedLayer;
pub use crate::stats::Ratio;

passing_middleware! {
    /// The service of [`CircuitBreakerLayer`].
    CircuitBreaker,
    /// The future of [`CircuitBreaker`].
    CircuitBreakerFuture,
    /// The response body of [`CircuitBreaker`]: the inner service's, or that of a rejection.
    ///
    /// Its error is the inner body's own, boxed, or a [`Failure`] where a limit has passed.
    CircuitBreakerBody,
    BreakerSpec
}

middleware_spec! {
    /// A circuit breaker alone.
    BreakerSpec,
    per_call = (), per_attempt = BreakerComponent, timeouts = (), requests = SendOnce, errors = PassErrors
}

/// Circuit breaker of one upstream; see the [module](self).
///
/// All clones, and all services made from them, share one circuit.
#[derive(Clone, Debug)]
#[must_use]
pub struct CircuitBreakerLayer {
    config: Arc<Config<BreakerSpec>>,
}

impl CircuitBreakerLayer {
    /// A closed circuit for the upstream with this name.
    pub fn new(name: impl Into<Arc<str>>) -> Self {
        Self::with_policy(BreakerPolicy::new(), name.into())
    }

    /// Sets when the circuit opens and for how long.
    ///
    /// It starts with a new circuit: clones and handles made before keep the old one.
    pub fn policy(self, policy: BreakerPolicy) -> Self {
        Self::with_policy(policy, self.config.per_attempt.core.circuit.name().clone())
    }

    /// The handle that inspects and controls the circuit.
    pub fn handle(&self) -> CircuitHandle {
        CircuitHandle { core: self.config.per_attempt.core.clone() }
    }

    /// The circuit of a stack, whose attempts all go to the same upstream.
    pub(crate) fn for_stack(policy: BreakerPolicy, name: Arc<str>) -> Self {
        Self::with_policy(policy.with_others(false), name)
    }

    pub(crate) fn component(&self) -> BreakerComponent {
        self.config.per_attempt.clone()
    }

    /// One circuit per upstream, keyed by the request, with this policy.
    ///
    /// The key is the authority of the request's target, else its `Host` field, in lower case: place the layer where requests
    /// name the upstream they are sent to. Open circuits are evicted last, and the fallback circuit has this layer's name. The
    /// counters are not striped, and each call takes a read lock.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// use http::{Request, Response};
    /// use http_body_util::Empty;
    /// use tower::{Layer, ServiceExt, service_fn};
    /// use tower_upstream::breaker::{CircuitBreakerLayer, State};
    /// use tower_upstream::{BadGatewayCause, Failure};
    ///
    /// // a.example is down
    /// let service = service_fn(|request: Request<()>| async move {
    ///     match request.uri().host() {
    ///         Some("a.example") => Err(Failure::new(BadGatewayCause::ConnectionRefused)),
    ///         _ => Ok(Response::new(Empty::<bytes::Bytes>::new())),
    ///     }
    /// });
    /// let circuits = CircuitBreakerLayer::new("the rest").keyed();
    /// let service = circuits.layer(service);
    /// let of = |host: &str| Request::get(format!("http://{host}/")).body(()).unwrap();
    ///
    /// for _ in 0..5 {
    ///     assert!(service.clone().oneshot(of("a.example")).await.is_err());
    /// }
    /// assert_eq!(service.clone().oneshot(of("a.example")).await.unwrap().status(), 503);
    /// assert_eq!(service.oneshot(of("b.example")).await.unwrap().status(), 200);
    /// let now = tokio::time::Instant::now();
    /// assert_eq!(circuits.get("a.example").unwrap().handle().snapshot(now).state, State::Open);
    /// # }
    /// ```
    pub fn keyed(self) -> KeyedLayer<Self> {
        KeyedLayer::new(self)
    }

    fn with_policy(policy: BreakerPolicy, name: Arc<str>) -> Self {
        Self::striped(policy, name, default_stripes(), None)
    }

    /// A circuit for one of many endpoints, which sets `changed` at each transition.
    #[cfg(feature = "balance")]
    pub(crate) fn for_endpoint(policy: BreakerPolicy, name: Arc<str>, changed: Arc<AtomicBool>) -> Self {
        Self::striped(policy.with_others(true), name, 1, Some(changed))
    }

    fn striped(policy: BreakerPolicy, name: Arc<str>, stripes: usize, changed: Option<Arc<AtomicBool>>) -> Self {
        let now = Instant::now();
        let core = Arc::new(CircuitShared::new(Circuit::new(policy, name, stripes, now), changed, now));
        Self { config: Arc::new(Config::new((), BreakerComponent { core }, (), SendOnce, PassErrors)) }
    }
}

impl<S> Layer<S> for CircuitBreakerLayer {
    type Service = CircuitBreaker<S>;

    fn layer(&self, inner: S) -> CircuitBreaker<S> {
        CircuitBreaker::new(inner, self.config.clone())
    }
}

impl PerUpstream for CircuitBreakerLayer {
    type Spec = BreakerSpec;

    fn for_key(&self, key: Option<&str>) -> Arc<Config<BreakerSpec>> {
        let circuit = &self.config.per_attempt.core.circuit;
        let name = key.map_or_else(|| circuit.name().clone(), Arc::from);
        // counters per core and per upstream would use much memory for little traffic
        Self::striped(circuit.policy().with_others(false), name, 1, None).config
    }

    fn from_config(config: Arc<Config<BreakerSpec>>) -> Self {
        Self { config }
    }

    /// The state of an open circuit matters more than the counts of a closed one.
    fn eviction(config: &Config<BreakerSpec>) -> Eviction {
        match config.per_attempt.core.circuit.state() {
            State::Closed => Eviction::Evictable,
            _ => Eviction::Late,
        }
    }
}

impl<S> Layer<S> for KeyedLayer<CircuitBreakerLayer> {
    type Service = CircuitBreaker<S>;

    fn layer(&self, inner: S) -> CircuitBreaker<S> {
        CircuitBreaker::new(inner, self.configs())
    }
}

/// The component of [`CircuitBreakerLayer`].
#[derive(Clone, Debug)]
pub(crate) struct BreakerComponent {
    core: Arc<CircuitShared>,
}

impl Component for BreakerComponent {
    type Permit = BreakerPermit;

    const REJECTS_EARLY: bool = true;

    #[inline]
    fn reject_early(&self) -> Option<(Instant, Rejection)> {
        if self.core.circuit.try_acquire().is_some() { None } else { self.rejection() }
    }

    fn admission(&self) -> Option<Admission> {
        let core = &self.core;
        core.circuit.is_clustered.then(|| -> Admission { Box::pin(core.clone().admits()) })
    }

    #[inline]
    fn on_request<B>(&self, call: &mut CallContext, request: &Request<B>) {
        call.protocol = Some(Protocol::of(request.method(), request.headers()));
        let extensions = request.extensions();
        call.vote.counted = !extensions.is_empty() && extensions.get::<CountedAttempt>().is_some();
        // earlier attempts may have gone to another replica, which a pool knows
        call.vote.counted &= !self.core.is_alone_among_replicas();
        if self.core.circuit.records_routes(call.now) {
            call.vote.route = Some(RouteKey::of(request.uri().path()));
        }
    }

    fn on_rejected(&self, rejection: &Rejection) {
        if rejection.failure().cause() == BadGatewayCause::CircuitOpen {
            self.core.circuit.count_refused();
        }
    }

    #[inline]
    fn admit(&self, call: &CallContext) -> Result<BreakerPermit, Rejection> {
        let permit = self.core.circuit.try_acquire().map_or_else(|| self.try_acquire_slow(call.now), Ok);
        permit.map(|permit| BreakerPermit { permit, slow: false })
    }

    #[inline]
    fn on_response(&self, permit: &mut BreakerPermit, call: &CallContext, outcome: &Outcome) {
        let circuit = &self.core.circuit;
        if circuit.needs_duration() {
            permit.slow = circuit.is_slow(call.work_time(outcome.now()));
        }
        if !outcome.is_success() || permit.permit.is_probe() {
            self.head(permit, call, outcome);
        }
    }

    #[inline]
    fn complete(&self, permit: BreakerPermit, call: &CallContext, outcome: &Outcome) {
        let circuit = &self.core.circuit;
        if outcome.is_success() && call.vote.is_plain() && !circuit.needs_duration() && !permit.permit.is_probe() {
            return circuit.count_success(&permit.permit, outcome.approx_now(call));
        }
        self.record_outcome(&permit, call, outcome);
    }

    fn cancel(&self, permit: BreakerPermit, call: &CallContext, why: CancelReason) {
        let cause = match why {
            CancelReason::TimedOut(cause) => cause,
            // most cancelled calls are not probes and have nothing to release
            _ if !permit.permit.is_probe() => return,
            _ => BadGatewayCause::Unknown,
        };
        let failure = Failure::new(cause);
        self.record_end(&permit, why.blame(), call, Instant::now(), Some(failure.phase()), || failure);
    }
}

/// The permit of an admitted call.
#[derive(Debug)]
pub(crate) struct BreakerPermit {
    permit: Permit,
    /// The time to the response head was longer than [`BreakerPolicy::slow_calls`] allows.
    slow: bool,
}

impl BreakerComponent {
    #[cold]
    fn try_acquire_slow(&self, now: Instant) -> Result<Permit, Rejection> {
        let (passed, turn) = self.core.circuit.try_acquire_slow(now, || fastrand::u64(..));
        if let Some(turn) = turn {
            self.core.publish(&turn);
        } else if passed.is_ok() {
            self.core.note_probe();
        }
        passed.map_err(rejection)
    }

    #[cold]
    fn rejection(&self) -> Option<(Instant, Rejection)> {
        let now = Instant::now();
        let (rejected, turn) = self.core.circuit.rejection(now);
        if let Some(turn) = turn {
            self.core.publish(&turn);
        }
        rejected.map(|shut| (now, rejection(shut)))
    }

    /// Handles a response head that is not a plain success, or belongs to a probe.
    #[cold]
    #[inline(never)]
    fn head(&self, permit: &mut BreakerPermit, call: &CallContext, outcome: &Outcome) {
        let circuit = &self.core.circuit;
        match outcome.blame(circuit.statuses()) {
            // recorded now: callers often do not read the body of a failure
            Blame::Failure | Blame::ErrorResponse => {
                let consumed = BreakerPermit { permit: Permit::consumed(), slow: false };
                let permit = std::mem::replace(permit, consumed);
                self.record_outcome(&permit, call, outcome);
            }
            Blame::Success | Blame::Overload => {
                if permit.permit.is_probe() {
                    circuit.on_probe_head(&permit.permit);
                }
            }
            Blame::Nothing => {}
        }
    }

    #[cold]
    fn record_outcome(&self, permit: &BreakerPermit, call: &CallContext, outcome: &Outcome) {
        let blame = outcome.blame(self.core.circuit.statuses());
        let phase = outcome.known_failure().map(Failure::phase);
        self.record_end(permit, blame, call, outcome.now(), phase, || record(outcome));
    }

    #[cold]
    fn record_end(
        &self,
        permit: &BreakerPermit,
        blame: Blame,
        call: &CallContext,
        now: Instant,
        phase: Option<Phase>,
        record: impl FnOnce() -> Failure,
    ) {
        let end = CallEnd {
            blame,
            now,
            before_request: matches!(phase, Some(Phase::Resolve | Phase::Connect | Phase::Tls)),
            slow: permit.slow,
            vote: call.vote,
        };
        if let Some(turn) = self.core.circuit.record(&permit.permit, end, || fastrand::u64(..), record) {
            self.core.publish(&turn);
        } else if permit.permit.is_probe() {
            self.core.note_probe();
        }
    }
}

/// The record of the failure that opens a circuit; created here if the service attached none.
fn record(outcome: &Outcome) -> Failure {
    let made = || match (outcome.cause(), outcome.status()) {
        (Some(cause), _) => Failure::new(cause),
        (None, None) => Failure::new(BadGatewayCause::Unknown),
        (None, Some(status)) => {
            Failure::builder(BadGatewayCause::UpstreamStatus).detail(Detail::Status(status)).build()
        }
    };
    outcome.known_failure().cloned().unwrap_or_else(made)
}

fn rejection(shut: Rejected<Failure>) -> Rejection {
    let failure = shut.cause.unwrap_or_else(|| Failure::new(BadGatewayCause::CircuitOpen));
    // `Retry-After: 0` would release all clients at the same moment
    Rejection::new(failure).retry_after(Duration::from_nanos(shut.remaining).max(Duration::from_secs(1)))
}
