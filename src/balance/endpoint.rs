//! One endpoint of a pool: its service and its state.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::StatusCode;
use tokio::time::Instant;

use super::check_report::CheckRecord;
use super::choice::Candidate;
use super::load::Load;
use super::member::Member;
use super::outlier::Review;
use super::rendezvous::hash_name;
use crate::body::{TrackedUpload, UploadCounters};
use crate::breaker::{BreakerComponent, CircuitHandle};
use crate::cause::Blame;
use crate::classify::Classified;
use crate::exchange::{
    ActiveCall, CallContext, CancelReason, Component, Exchange, Outcome, Rejection, RequestMode, SpareCalls, Spec,
    TriedEndpoints, UpgradeGuard,
};
use crate::limit::{LimitComponent, LimitHandle};

/// Health of an endpoint by its health checks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Health {
    /// The checks have not decided yet: the endpoint takes calls.
    #[default]
    Unknown,
    /// The endpoint takes calls.
    Healthy,
    /// The endpoint takes no calls.
    Unhealthy,
    /// The endpoint asked for no new calls, such as by the agent word `maint` or `drain`.
    Draining,
}

impl Health {
    const ALL: [Self; 4] = [Self::Unknown, Self::Healthy, Self::Unhealthy, Self::Draining];
}

/// The bits of [`EndpointState::standing`] that are its [`Health`].
const HEALTH: u8 = 3;
/// The bit of an endpoint that is being prepared before it takes calls.
const WARMING: u8 = 4;
/// The bit of an endpoint that is ejected as an outlier.
const EJECTED: u8 = 8;

/// Endpoint with its service.
pub(super) struct Endpoint<S> {
    pub(super) exchange: Exchange<S, EndpointSpec>,
    pub(super) state: Arc<EndpointState>,
}

/// State of an endpoint, which does not depend on its service.
#[derive(Debug)]
pub(super) struct EndpointState {
    /// Unique in the process.
    pub(super) id: u64,
    /// The hash of the key.
    pub(super) hash: u64,
    pub(super) load: Load,
    pub(super) circuit: Option<CircuitHandle>,
    pub(super) limit: Option<LimitHandle>,
    /// Health, and other reasons for taking no calls: see [`HEALTH`], [`WARMING`] and [`EJECTED`].
    standing: AtomicU8,
    /// The weight in percent that its agent asks for.
    weight_percent: AtomicU32,
    /// When the slow start began; 0 without one.
    slow_since: AtomicU64,
    slow_start: u64,
    /// Whether the level panics: calls are sent also while the circuit is open.
    pub(super) panics: AtomicBool,
    /// Whether it was available when that was last checked.
    pub(super) was_available: AtomicBool,
    /// The latest health check.
    pub(super) last_check: Mutex<Option<Arc<CheckRecord>>>,
    /// The comparison with the others of its level.
    review: Mutex<Review>,
    member: Mutex<Arc<Member>>,
    /// The origin of the pool's clock.
    origin: Instant,
}

/// The parts of an endpoint that its member does not change.
pub(super) struct EndpointParts {
    pub(super) circuit: Option<CircuitHandle>,
    pub(super) limit: Option<LimitHandle>,
    pub(super) slow_start: Duration,
    pub(super) origin: Instant,
}

impl EndpointState {
    pub(super) fn new(member: Arc<Member>, average: f32, now: u64, parts: EndpointParts) -> Self {
        static IDS: AtomicU64 = AtomicU64::new(1);
        Self {
            id: IDS.fetch_add(1, Relaxed),
            hash: hash_name(&member.key),
            load: Load::new(average, now),
            circuit: parts.circuit,
            limit: parts.limit,
            standing: AtomicU8::new(0),
            weight_percent: AtomicU32::new(100),
            slow_since: AtomicU64::new(0),
            slow_start: nanos(parts.slow_start),
            panics: AtomicBool::new(false),
            was_available: AtomicBool::new(true),
            last_check: Mutex::new(None),
            review: Mutex::default(),
            member: Mutex::new(member),
            origin: parts.origin,
        }
    }

    pub(super) fn member(&self) -> Arc<Member> {
        self.lock().clone()
    }

    pub(super) fn set_member(&self, member: Arc<Member>) {
        *self.lock() = member;
    }

    fn lock(&self) -> MutexGuard<'_, Arc<Member>> {
        self.member.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The comparison with the others of its level.
    pub(super) fn review(&self) -> MutexGuard<'_, Review> {
        self.review.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn health(&self) -> Health {
        Health::ALL[usize::from(self.standing.load(Relaxed) & HEALTH)]
    }

    /// Returns whether this is a change.
    pub(super) fn set_health(&self, health: Health) -> bool {
        self.set_standing(HEALTH, health as u8)
    }

    pub(super) fn is_warming(&self) -> bool {
        self.standing.load(Relaxed) & WARMING != 0
    }

    pub(super) fn set_warming(&self, is_warming: bool) {
        self.set_standing(WARMING, if is_warming { WARMING } else { 0 });
    }

    /// Whether it was ejected as an outlier.
    pub(super) fn is_ejected(&self) -> bool {
        self.standing.load(Relaxed) & EJECTED != 0
    }

    pub(super) fn set_ejected(&self, is_ejected: bool) {
        self.set_standing(EJECTED, if is_ejected { EJECTED } else { 0 });
    }

    /// Replaces these bits. Returns whether this is a change.
    fn set_standing(&self, bits: u8, value: u8) -> bool {
        let change = |standing| (standing & bits != value).then_some(standing & !bits | value);
        self.standing.fetch_update(Relaxed, Relaxed, change).is_ok()
    }

    /// Whether health, warm-up and comparison with others allow calls.
    #[inline]
    fn takes_calls(&self) -> bool {
        self.standing.load(Relaxed) <= Health::Healthy as u8
    }

    pub(super) fn weight_percent(&self) -> u32 {
        self.weight_percent.load(Relaxed)
    }

    /// Returns whether this is a change.
    pub(super) fn set_weight_percent(&self, percent: u32) -> bool {
        self.weight_percent.swap(percent, Relaxed) != percent
    }

    pub(super) fn begin_slow_start(&self, now: u64) {
        self.slow_since.store(now.max(1), Relaxed);
    }

    pub(super) fn is_in_slow_start(&self, now: u64) -> bool {
        self.ramp(now) < 1.0
    }

    /// Whether it is available: [`takes_calls`](Self::takes_calls), with a closed circuit. At its concurrency limit it
    /// counts as available, because that is no failure of it.
    #[inline]
    pub(super) fn is_available(&self) -> bool {
        self.circuit.as_ref().is_none_or(CircuitHandle::is_closed) && self.takes_calls()
    }

    /// Whether its concurrency limit is reached.
    #[inline]
    fn is_full(&self) -> bool {
        self.limit.as_ref().is_some_and(LimitHandle::is_full)
    }

    /// Returns when a call may be sent as a probe, and the open duration until then; `None` if the circuit is closed or
    /// held open.
    pub(super) fn next_probe(&self, now: Instant) -> Option<(Instant, Duration)> {
        self.circuit.as_ref().filter(|circuit| !circuit.is_closed())?.next_call(now)
    }

    /// Whether a call is sent, and not rejected because the circuit is open.
    pub(super) fn sends(&self, now: Instant) -> bool {
        self.panics.load(Relaxed) || self.next_probe(now).is_none_or(|(at, _)| at <= now)
    }

    pub(super) fn at(&self, now: Instant) -> u64 {
        nanos(now.saturating_duration_since(self.origin))
    }
}

impl<S> Candidate for Arc<Endpoint<S>> {
    #[inline]
    fn is_available(&self) -> bool {
        self.state.is_available() && !self.state.is_full()
    }

    #[inline]
    fn id(&self) -> u64 {
        self.state.id
    }

    #[inline]
    fn latency(&self, now: u64) -> f32 {
        self.state.load.latency(now)
    }

    #[inline]
    fn in_flight(&self) -> u32 {
        self.state.load.in_flight()
    }

    #[inline]
    fn used_at(&self) -> u64 {
        self.state.load.used_at()
    }

    #[inline]
    fn ramp(&self, now: u64) -> f32 {
        self.state.ramp(now)
    }
}

/// The part of its share that an endpoint takes when its slow start begins.
const FIRST_SHARE: f32 = 0.1;

impl EndpointState {
    /// Returns the part of its share that it takes, which grows linearly during the slow start.
    #[inline]
    fn ramp(&self, now: u64) -> f32 {
        let since = self.slow_since.load(Relaxed);
        if since == 0 { 1.0 } else { self.ramp_since(since, now) }
    }

    #[cold]
    #[allow(clippy::cast_precision_loss)]
    fn ramp_since(&self, since: u64, now: u64) -> f32 {
        let elapsed = now.saturating_sub(since);
        if elapsed >= self.slow_start {
            // another slow start may have begun meanwhile
            let _ = self.slow_since.compare_exchange(since, 0, Relaxed, Relaxed);
            return 1.0;
        }
        FIRST_SHARE + (1.0 - FIRST_SHARE) * (elapsed as f32 / self.slow_start as f32)
    }
}

/// Returns nanoseconds, at most 584 years.
pub(super) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// An endpoint as an exchange: each call is one attempt.
#[derive(Debug)]
#[allow(unnameable_types)]
pub(crate) enum EndpointSpec {}

crate::free_list::free_list!(SPARE: std::pin::Pin<Box<ActiveCall<EndpointSpec>>>);

impl Spec for EndpointSpec {
    type PerCall = ();
    type PerAttempt = EndpointComponent;
    type Timeouts = ();
    type Requests = TrackUploads;
    type Errors = Classified;

    const WAITS: bool = true;
    const SPANS: bool = false;

    #[inline]
    fn spare_calls() -> &'static SpareCalls<Self> {
        &SPARE
    }
}

/// Tracks the upload of request bodies, so that a slow client is not taken for a slow endpoint.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TrackUploads;

impl<B: http_body::Body> RequestMode<B> for TrackUploads {
    type Body = TrackedUpload<B>;
    type Started = ();
    type RetryState = ();
    type Replay = std::convert::Infallible;

    #[inline]
    fn begin(&self, _: &http::Request<B>, _: &CallContext, _: bool) {}

    #[inline]
    fn wrap(&self, (): (), body: B, now: Instant, upload: &mut Option<Arc<UploadCounters>>) -> ((), TrackedUpload<B>) {
        let body = TrackedUpload::new(body, now);
        *upload = body.counters();
        ((), body)
    }
}

/// The circuit, the limit and the load of an endpoint.
#[derive(Clone, Debug)]
pub(crate) struct EndpointComponent {
    /// `None` for calls that a pool rejects because it has no endpoint.
    pub(super) state: Option<Arc<EndpointState>>,
    pub(super) circuit: Option<BreakerComponent>,
    pub(super) limit: Option<LimitComponent>,
}

/// Record of a call in the load of its endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Recorded {
    Nothing,
    Response,
    Failure,
}

/// The permit of a call to an endpoint.
#[derive(Debug)]
pub(crate) struct EndpointPermit {
    /// `None` also for a call that was sent in a panic, although the circuit was open.
    circuit: Option<<BreakerComponent as Component>::Permit>,
    limit: Option<<LimitComponent as Component>::Permit>,
    /// The state of the call in the load.
    recorded: Recorded,
    /// Whether the load counts the response head as awaited.
    awaited: bool,
}

impl Component for EndpointComponent {
    type Permit = EndpointPermit;

    #[inline]
    fn on_request<B>(&self, call: &mut CallContext, request: &http::Request<B>) {
        self.circuit.on_request(call, request);
        if call.vote.counted {
            // a request has one vote at each endpoint that it was sent to
            call.vote.counted = self.was_tried(request.extensions());
        }
        self.limit.on_request(call, request);
    }

    fn on_rejected(&self, rejection: &Rejection) {
        self.circuit.on_rejected(rejection);
    }

    #[inline]
    fn admit(&self, call: &CallContext) -> Result<EndpointPermit, Rejection> {
        let circuit = match self.circuit.admit(call) {
            Ok(permit) => permit,
            Err(_) if self.state.as_ref().is_some_and(|state| state.panics.load(Relaxed)) => None,
            Err(rejection) => return Err(rejection),
        };
        let limit = match self.limit.admit(call) {
            Ok(permit) => permit,
            Err(rejection) => {
                self.circuit.cancel(circuit, call, CancelReason::Rejected(rejection.failure().cause()));
                return Err(rejection);
            }
        };
        if let Some(state) = &self.state {
            state.load.begin(state.at(call.now));
        }
        Ok(EndpointPermit { circuit, limit, recorded: Recorded::Nothing, awaited: true })
    }

    fn on_upload(&self, permit: &mut EndpointPermit, awaits_client: bool) {
        self.limit.on_upload(&mut permit.limit, awaits_client);
        if awaits_client {
            // the response now waits for the client, not for the endpoint
            self.respond(permit);
        }
    }

    #[inline]
    fn on_response(&self, permit: &mut EndpointPermit, call: &CallContext, outcome: &Outcome) {
        self.respond(permit);
        self.limit.on_response(&mut permit.limit, call, outcome);
        self.circuit.on_response(&mut permit.circuit, call, outcome);
        self.record(permit, call, outcome);
    }

    fn on_upgrade(&self, permit: &mut EndpointPermit, guard: &UpgradeGuard) {
        self.limit.on_upgrade(&mut permit.limit, guard);
    }

    #[inline]
    fn complete(&self, mut permit: EndpointPermit, call: &CallContext, outcome: &Outcome) {
        if !outcome.is_success() && permit.recorded != Recorded::Failure {
            self.take_back(&mut permit);
            self.record(&mut permit, call, outcome);
        }
        if let Some(state) = &self.state {
            state.load.end(permit.awaited);
        }
        self.limit.complete(permit.limit, call, outcome);
        self.circuit.complete(permit.circuit, call, outcome);
    }

    fn cancel(&self, mut permit: EndpointPermit, call: &CallContext, why: CancelReason) {
        if let Some(state) = &self.state {
            let now = Instant::now();
            if why.blame() == Blame::Failure && permit.recorded != Recorded::Failure {
                self.take_back(&mut permit);
                state.load.record_failure(call.work_time(now), state.at(now));
            } else if why == CancelReason::Superseded && permit.recorded == Recorded::Nothing {
                // the response would have taken at least this long
                state.load.record_peak(call.work_time(now), state.at(now));
            }
            state.load.end(permit.awaited);
        }
        self.limit.cancel(permit.limit, call, why);
        self.circuit.cancel(permit.circuit, call, why);
    }
}

impl EndpointComponent {
    /// Whether an earlier attempt of a request was sent to this endpoint.
    #[cold]
    fn was_tried(&self, extensions: &http::Extensions) -> bool {
        let own = self.state.as_ref().map(|state| state.id);
        extensions.get::<TriedEndpoints>().is_none_or(|tried| own.is_some_and(|own| tried.0.contains(&own)))
    }

    /// The load no longer counts the response head of a call as awaited.
    #[inline]
    fn respond(&self, permit: &mut EndpointPermit) {
        if let (true, Some(state)) = (std::mem::take(&mut permit.awaited), &self.state) {
            state.load.respond();
        }
    }

    /// Takes back the record of a response whose body has failed.
    #[cold]
    fn take_back(&self, permit: &mut EndpointPermit) {
        let recorded = std::mem::replace(&mut permit.recorded, Recorded::Nothing);
        if let (Recorded::Response, Some(state)) = (recorded, &self.state) {
            state.load.uncount();
        }
    }

    /// Records the response time, or the penalty of a failure.
    #[inline]
    fn record(&self, permit: &mut EndpointPermit, call: &CallContext, outcome: &Outcome) {
        let Some(state) = &self.state else { return };
        if permit.recorded != Recorded::Nothing {
            return;
        }
        let now = outcome.now();
        let took = call.work_time(now);
        if outcome.is_success() {
            state.load.record(took, state.at(now));
            permit.recorded = Recorded::Response;
        } else {
            permit.recorded = state.record_slow(took, outcome, now);
        }
        if permit.circuit.is_none() && self.circuit.is_some() && outcome.is_success() {
            state.on_success_in_panic(call.now, now);
        }
    }
}

impl EndpointState {
    #[cold]
    fn record_slow(&self, took: Duration, outcome: &Outcome, now: Instant) -> Recorded {
        match outcome.blame(counts_as_failure) {
            Blame::Success => {
                self.load.record(took, self.at(now));
                Recorded::Response
            }
            Blame::Overload | Blame::ErrorResponse | Blame::Failure => {
                self.load.record_failure(took, self.at(now));
                Recorded::Failure
            }
            Blame::Nothing => Recorded::Nothing,
        }
    }

    /// Closes the circuit after the success of a call that was sent although it was open.
    #[cold]
    fn on_success_in_panic(&self, begun: Instant, now: Instant) {
        if let Some(circuit) = &self.circuit {
            circuit.on_recovery(begun, now);
        }
    }
}

/// Counts every 5xx, not only those that a circuit counts: an endpoint that fails fast would attract calls.
fn counts_as_failure(status: StatusCode) -> bool {
    status.is_server_error()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn state() -> EndpointState {
        let parts = EndpointParts { circuit: None, limit: None, slow_start: Duration::ZERO, origin: Instant::now() };
        EndpointState::new(Arc::new(Member::new("a")), 0.0, 0, parts)
    }

    proptest! {
        #[test]
        fn an_endpoint_takes_calls_if_its_health_its_preparation_and_its_comparison_with_others_allow_it(
            changes in proptest::collection::vec((0_usize..6, any::<bool>()), 0..40),
        ) {
            let state = state();
            let (mut health, mut is_warming, mut is_ejected) = (Health::Unknown, false, false);
            for (change, is_on) in changes {
                match change {
                    4 => {
                        is_warming = is_on;
                        state.set_warming(is_on);
                    }
                    5 => {
                        is_ejected = is_on;
                        state.set_ejected(is_on);
                    }
                    other => {
                        prop_assert_eq!(state.set_health(Health::ALL[other]), health != Health::ALL[other]);
                        health = Health::ALL[other];
                    }
                }
                prop_assert_eq!((state.health(), state.is_warming(), state.is_ejected()), (health, is_warming, is_ejected));
                let takes_calls = matches!(health, Health::Unknown | Health::Healthy) && !is_warming && !is_ejected;
                prop_assert_eq!(state.is_available(), takes_calls);
            }
        }
    }
}
