//! Leaves an upstream alone while it fails, and finds out when it is back.
//!
//! Calls to an upstream that is down cost a timeout each and keep it down. [`CircuitBreakerLayer`] counts how exchanges
//! end; when too many fail it opens, and calls are answered here at once, until one of them, let through as a probe, has shown
//! that the upstream is back.
//!
//! **What counts.** The [cause](crate::cause), where the answer carries one: its
//! [`breaker_verdict`](crate::BadGatewayCause::breaker_verdict). Where there is none, or the upstream itself answered, the status:
//! 502, 503 and 504 are failures. An error that nobody has named is one. A failure is known at the head. Any other
//! exchange ends with its body: one that breaks off is a failure, whatever its head said; after a 101 it ends at the head.
//!
//! | end of an exchange | closed | as a probe |
//! |---|---|---|
//! | an answer, also a 404 or a 500 | success: ends the row | closes |
//! | a cause that speaks against the upstream; 502, 503, 504; a body that broke; a limit that passed, inside or around | failure | opens again |
//! | 429, or 503 with `Retry-After`, of the upstream itself | nothing: overload is the limiter's business | closes: it answers |
//! | the client left; our own refusal; a stale connection | nothing | frees the place for the next call |
//!
//! **When it opens**, and how it comes back:
//!
//! | | default |
//! |---|---|
//! | [`consecutive_failures`](BreakerPolicy::consecutive_failures) failures | 5 |
//! | [`ratio`](BreakerPolicy::ratio) of failures in the [`window`](BreakerPolicy::window) | 50 % of at least 20 calls in 10 s |
//! | [`slow_calls`](BreakerPolicy::slow_calls) | do not count |
//! | [`open_duration`](BreakerPolicy::open_duration) | 1 s, doubled by each opening in a row, the second half of it at random |
//! | [`max_open_duration`](BreakerPolicy::max_open_duration) | 10 s; a minute for [one of many](BreakerPolicy::clustered) |
//! | openings in a row | one less for each window's length that it was closed |
//! | after the pause | one call passes as a probe; its success closes |
//! | [`probe_timeout`](BreakerPolicy::probe_timeout) | 1 s, then the next call is a probe as well |
//!
//! **Sooner than the pause**: a task that looks at the upstream in the background ([`CircuitHandle::active_probe`]) closes the circuit as
//! soon as the upstream is back, and no call is spent as a probe. With feature `client`, `ReverseProxy::connect_probe` is what
//! it looks by: `tokio::spawn(breaker.handle().active_probe(proxy.connect_probe()))`.
//!
//! A probe that hangs, or whose caller left, gives its place up, and an answer from before a transition changes
//! nothing: a circuit cannot stick. A probe whose head was good when its limit passed closes it: a long download is no bad sign.
//! One that outlives its limit goes on; if it succeeds before the next transition it closes, as it was sent after the
//! pause, and its failure proves nothing any more.
//!
//! **A refusal** is a 503 with the cause `circuit_open`, `Retry-After` (the rest of the pause in whole seconds, 1 while a probe
//! is out) and in [`Failure::previous`](crate::Failure::previous) what opened the circuit. It is `not_sent` by `local_refusal`. The
//! inner service is not called, and not waited for until it is ready either. Retry layers leave it alone.
//!
//! **Where it stands**: around what connects, and inside of retry, which then counts by attempts. Around a
//! [`ClassifyLayer`](crate::ClassifyLayer) it knows causes. Its state is born in [`new`](CircuitBreakerLayer::new): all routes,
//! connections and clones share it. A gateway with several upstreams makes a layer for each.
//!
//! **Limits**: those of this crate count inside and around it. A foreign one around it (`tower::timeout`) drops the call like a
//! client that left, and counts as nothing: put it inside.
//!
//! **Backpressure**: callers that wait for an inner service to be ready are not woken when the circuit opens. Put no
//! limit of concurrency that waits beneath it; one that sheds is fine.
//!
//! | telemetry | |
//! |---|---|
//! | opened | a `tracing` line at level WARN, target `tower_upstream`: `upstream`, `circuit.state`, `error.type`, `phase`, `peer`, `detail`, `pause_ms` |
//! | half-open, closed | the same at level INFO; with the last, `refused`, all that were so far |
//! | a refusal | a line at level DEBUG by a [`ClassifyLayer`](crate::ClassifyLayer) around |
//! | [`CircuitHandle::snapshot`] | state, why and since when, the next probe, counts |
//! | [`CircuitHandle::transitions`] | for a task that waits for them |
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
//! for _ in 0..5 {
//!     assert_eq!(ask().await.unwrap().status(), 502);
//! }
//! let refused = ask().await.unwrap();
//! assert_eq!((refused.status(), &refused.headers()["retry-after"]), (StatusCode::SERVICE_UNAVAILABLE, &"1".parse().unwrap()));
//! let failure = Failure::of(&refused).unwrap();
//! assert_eq!(failure.cause(), BadGatewayCause::CircuitOpen);
//! assert_eq!(failure.previous()[0].cause(), BadGatewayCause::UpstreamStatus);
//! assert_eq!(circuit.snapshot(tokio::time::Instant::now()).state, State::Open);
//! # }
//! ```

mod active_probe;
mod call_result;
mod circuit;
mod consecutive_failures;
mod handle;
mod keyed;
mod open_backoff;
mod packed_state;
mod policy;
mod state_machine;
mod window;

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tower_layer::Layer;

use self::call_result::CallResult;
use self::circuit::{CallEnd, Circuit};
use self::handle::CircuitShared;
use self::state_machine::Rejected;
use crate::cause::{BadGatewayCause, Detail, Failure};
use crate::exchange::{CallContext, CancelReason, Component, Outcome, Rejection};
use crate::exchange::{Config, Once, PassOn, middleware_spec, passing_middleware};
use crate::stats::default_stripes;

pub use self::handle::{CircuitHandle, CircuitSnapshot, StateChange, Transitions};
pub use self::keyed::{KeyedCircuitBreaker, KeyedCircuitBreakerLayer};
pub use self::packed_state::{Permit, State};
pub use self::policy::BreakerPolicy;
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
    per_call = (), per_attempt = Breaker, timeouts = (), requests = Once, errors = PassOn
}

/// Leaves an upstream alone while it fails; see the [module](self).
///
/// All clones, and all services made of them, share one circuit.
#[derive(Clone, Debug)]
#[must_use]
pub struct CircuitBreakerLayer {
    config: Arc<Config<BreakerSpec>>,
}

impl CircuitBreakerLayer {
    /// A closed circuit for the upstream of this name.
    pub fn new(name: impl Into<Arc<str>>) -> Self {
        Self::with_policy(BreakerPolicy::new(), name.into())
    }

    /// When it opens and for how long.
    ///
    /// The circuit is a new one: clones and handles that were made before go on with the old.
    pub fn policy(self, policy: BreakerPolicy) -> Self {
        Self::with_policy(policy, self.config.per_attempt.core.circuit.name().clone())
    }

    /// Sees into the circuit and overrules it.
    pub fn handle(&self) -> CircuitHandle {
        CircuitHandle { core: self.config.per_attempt.core.clone() }
    }

    pub(crate) fn component(&self) -> Breaker {
        self.config.per_attempt.clone()
    }

    /// A circuit of its own for each upstream that requests name, with this policy.
    ///
    /// The key is the authority of the request's target, else its `Host` field; in lower case. It has to stand where requests name
    /// what they are sent to: below the choice of the upstream. There are 1,024 at most: the least recently used makes
    /// room, an open circuit last, and none with calls in flight; where all have some, whoever finds no place shares one circuit
    /// with all others that do not. Their counters are not striped, and each call takes a read lock. This layer's name is that of
    /// the shared one.
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
    /// assert_eq!(circuits.handle("a.example").unwrap().snapshot(now).state, State::Open);
    /// # }
    /// ```
    pub fn keyed(self) -> KeyedCircuitBreakerLayer {
        let circuit = &self.config.per_attempt.core.circuit;
        KeyedCircuitBreakerLayer::new(circuit.name().clone(), *circuit.policy())
    }

    fn with_policy(policy: BreakerPolicy, name: Arc<str>) -> Self {
        Self::striped(policy, name, default_stripes())
    }

    fn striped(policy: BreakerPolicy, name: Arc<str>, stripes: usize) -> Self {
        let now = Instant::now();
        let core = Arc::new(CircuitShared::new(Circuit::new(policy, name, stripes, now), now));
        Self { config: Arc::new(Config::new((), Breaker { core }, (), Once, PassOn)) }
    }
}

impl<S> Layer<S> for CircuitBreakerLayer {
    type Service = CircuitBreaker<S>;

    fn layer(&self, inner: S) -> CircuitBreaker<S> {
        CircuitBreaker::new(inner, self.config.clone())
    }
}

/// What [`CircuitBreakerLayer`] adds to a call.
#[derive(Clone, Debug)]
pub(crate) struct Breaker {
    core: Arc<CircuitShared>,
}

#[allow(clippy::inline_always)] // on the path of every call: measured
impl Component for Breaker {
    type Ticket = Permit;

    const REFUSES: bool = true;

    #[inline]
    fn refuses(&self) -> Option<(Instant, Rejection)> {
        if self.core.circuit.try_acquire().is_some() { None } else { self.rejection() }
    }

    fn refused(&self, refusal: &Rejection) {
        if refusal.failure().cause() == BadGatewayCause::CircuitOpen {
            self.core.circuit.count_refused();
        }
    }

    #[inline(always)]
    fn admit(&self, call: &CallContext) -> Result<Permit, Rejection> {
        self.core.circuit.try_acquire().map_or_else(|| self.try_acquire_slow(call.now), Ok)
    }

    #[inline(always)]
    fn answered(&self, permit: &mut Permit, call: &CallContext, outcome: &Outcome) {
        if !outcome.is_plain() || permit.is_probe() {
            self.head(permit, call, outcome);
        }
    }

    #[inline(always)]
    fn settle(&self, permit: Permit, call: &CallContext, outcome: &Outcome) {
        let circuit = &self.core.circuit;
        let verdict = CallResult::of(outcome, circuit.statuses());
        if verdict == CallResult::Success && !circuit.needs_duration() && !permit.is_probe() {
            return circuit.count_success(&permit, outcome.about(call));
        }
        self.record_end(&permit, verdict, call, outcome.now(), || record(outcome));
    }

    fn abandon(&self, permit: Permit, call: &CallContext, why: CancelReason) {
        let cause = match why {
            CancelReason::TimedOut(cause) => cause,
            // most calls are abandoned by nobody but their client, and then there is nothing to free
            _ if !permit.is_probe() => return,
            _ => BadGatewayCause::Unknown,
        };
        self.record_end(&permit, CallResult::of_cancelled(why), call, Instant::now(), || Failure::new(cause));
    }
}

impl Breaker {
    #[cold]
    fn try_acquire_slow(&self, now: Instant) -> Result<Permit, Rejection> {
        let (passed, turn) = self.core.circuit.try_acquire_slow(now);
        if let Some(turn) = turn {
            self.core.publish(&turn);
        }
        passed.map_err(refusal)
    }

    #[cold]
    fn rejection(&self) -> Option<(Instant, Rejection)> {
        let now = Instant::now();
        self.core.circuit.rejection(now).map(|shut| (now, refusal(shut)))
    }

    /// A head that is more than a plain success of a closed circuit.
    #[cold]
    #[inline(never)]
    fn head(&self, permit: &mut Permit, call: &CallContext, outcome: &Outcome) {
        let circuit = &self.core.circuit;
        match CallResult::of(outcome, circuit.statuses()) {
            // its body adds nothing: whoever has seen the status often leaves it unread
            CallResult::Failure => {
                let permit = std::mem::replace(permit, Permit::consumed());
                self.record_end(&permit, CallResult::Failure, call, outcome.now(), || record(outcome));
            }
            CallResult::Success | CallResult::Overload => {
                if permit.is_probe() {
                    circuit.on_probe_head(permit);
                }
            }
            CallResult::Neutral => {}
        }
    }

    #[cold]
    fn record_end(
        &self,
        permit: &Permit,
        verdict: CallResult,
        call: &CallContext,
        now: Instant,
        record: impl FnOnce() -> Failure,
    ) {
        let end = CallEnd { result: verdict, now, duration: now.saturating_duration_since(call.now) };
        if let Some(turn) = self.core.circuit.record(permit, end, || fastrand::u64(..), record) {
            self.core.publish(&turn);
        }
    }
}

/// The record of what opened a circuit, made where the failing service made none.
fn record(outcome: &Outcome) -> Failure {
    let made = || match (outcome.cause(), outcome.status()) {
        (Some(cause), _) => Failure::new(cause),
        (None, None) => Failure::new(BadGatewayCause::Unknown),
        (None, Some(status)) => {
            Failure::builder(BadGatewayCause::UpstreamStatus).detail(Detail::Status(status)).build()
        }
    };
    outcome.record().cloned().unwrap_or_else(made)
}

fn refusal(shut: Rejected<Failure>) -> Rejection {
    let failure = shut.cause.unwrap_or_else(|| Failure::new(BadGatewayCause::CircuitOpen));
    // "now" would be said to all at once
    Rejection::new(failure).retry_after(Duration::from_nanos(shut.remaining).max(Duration::from_secs(1)))
}
