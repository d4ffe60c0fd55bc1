//! The circuit: counts calls, decides when to open, and admits calls.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use std::time::Duration;

use http::StatusCode;
use tokio::time::Instant;

use super::consecutive_failures::ConsecutiveFailures;
use super::open_backoff::OpenBackoff;
use super::packed_state::{Permit, State};
use super::policy::BreakerPolicy;
use super::routes::RouteResults;
use super::silence::Silence;
use super::state_machine::{CircuitMachine, Rejected, Transition};
use super::window::{CELLS, RollingWindow};
use crate::cause::{BadGatewayCause, Blame, Detail, Failure, Phase, RetryStop};
use crate::exchange::{Outcome, Vote};
use crate::stats::{Ratio, stripe};

/// The circuit of one upstream. Each opening creates one record, which all calls that it rejects share.
#[derive(Debug)]
pub(super) struct Circuit {
    /// There are others that can take a rejected call.
    pub(super) is_clustered: bool,
    /// Read where a call has failed; what every call reads is below.
    policy: RwLock<BreakerPolicy>,
    name: Arc<str>,
    origin: Instant,
    machine: CircuitMachine<Failure>,
    /// Calls in a row that failed.
    failures: ConsecutiveFailures,
    /// Calls in a row that were answered with an error.
    errors: ConsecutiveFailures,
    silence: Silence,
    routes: RouteResults,
    /// The circuit was opened by responses: a probe with such a response has failed.
    opened_by_responses: AtomicBool,
    window: RollingWindow,
    /// Created when slow calls begin to count.
    slow: OnceLock<RollingWindow>,
    /// A call that takes longer is slow, in nanoseconds; `u64::MAX` if slow calls do not count.
    slow_limit: AtomicU64,
    /// The length of one window cell, in nanoseconds.
    cell: AtomicU64,
    stripes: usize,
}

/// A circuit's state and counters.
///
/// Each number is exact, but under concurrent calls they may be from slightly different moments.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct CircuitSnapshot {
    /// The state.
    pub state: State,
    /// When the state began.
    pub since: Instant,
    /// The failure that opened the circuit; `None` while closed or held open by an operator.
    pub cause: Option<Failure>,
    /// While open: when the next call may be admitted as a probe.
    pub next_probe: Option<Instant>,
    /// Calls in the window that were a success or a failure.
    pub calls: u64,
    /// Failed calls in the window.
    pub failures: u64,
    /// Slow calls in the window; 0 unless [`BreakerPolicy::slow_calls`](super::BreakerPolicy::slow_calls) is set.
    pub slow: u64,
    /// Consecutive failures.
    pub consecutive_failures: u32,
    /// Number of openings, those after a failed probe included.
    pub opened: u64,
    /// Number of probes: of calls, and of requests that a stack sent on its own.
    pub probes: u64,
    /// Number of probes that timed out; each opened the circuit again.
    pub probes_timed_out: u64,
    /// Number of calls refused.
    pub refused: u64,
}

/// How an admitted call ended.
#[derive(Clone, Copy, Debug)]
pub(super) struct CallEnd {
    pub(super) blame: Blame,
    pub(super) now: Instant,
    /// No connection could be made.
    pub(super) before_request: bool,
    /// The upstream took longer than [`BreakerPolicy::slow_calls`] allows.
    pub(super) slow: bool,
    pub(super) vote: Vote,
}

impl Circuit {
    /// A closed circuit; its ticks count from `now`.
    pub(super) fn new(policy: BreakerPolicy, name: Arc<str>, stripes: usize, now: Instant) -> Self {
        let circuit = Self {
            is_clustered: policy.clustered,
            policy: RwLock::new(policy),
            name,
            origin: now,
            machine: CircuitMachine::new(backoff(&policy), nanos(policy.probe_timeout)),
            failures: ConsecutiveFailures::new(),
            errors: ConsecutiveFailures::new(),
            silence: Silence::default(),
            routes: RouteResults::default(),
            opened_by_responses: AtomicBool::new(false),
            window: RollingWindow::new(stripes),
            slow: OnceLock::new(),
            slow_limit: AtomicU64::new(u64::MAX),
            cell: AtomicU64::new(1),
            stripes,
        };
        circuit.follow(&policy);
        circuit
    }

    /// Replaces the policy. The state is kept; the counts begin again if the window has another length.
    pub(super) fn set_policy(&self, policy: BreakerPolicy, now: Instant) {
        let before = std::mem::replace(&mut *self.policy.write().unwrap_or_else(PoisonError::into_inner), policy);
        self.machine.set_timing(backoff(&policy), nanos(policy.probe_timeout));
        self.follow(&policy);
        if before.window != policy.window {
            self.clear(self.tick_at(now));
        }
    }

    /// Sets what every call reads of the policy.
    fn follow(&self, policy: &BreakerPolicy) {
        if policy.slow.is_some() {
            self.slow.get_or_init(|| RollingWindow::new(self.stripes));
        }
        self.slow_limit.store(policy.slow.map_or(u64::MAX, |(limit, _)| nanos(limit)), Relaxed);
        self.cell.store((nanos(policy.window) / CELLS).max(1), Relaxed);
    }

    /// Admits a call while the circuit is closed: one load.
    #[inline]
    pub(super) fn try_acquire(&self) -> Option<Permit> {
        self.machine.try_acquire()
    }

    /// Slow path of `try_acquire`, for a circuit that is not closed.
    pub(super) fn try_acquire_slow(
        &self,
        now: Instant,
        random: impl FnOnce() -> u64,
    ) -> (Result<Permit, Rejected<Failure>>, Option<Transition<Failure>>) {
        let now = self.tick_at(now);
        self.machine.try_acquire_slow(now, random, || self.clear(now))
    }

    /// The rejection a call would get now; `None` if it would be admitted. Nothing is counted.
    pub(super) fn rejection(&self, now: Instant) -> (Option<Rejected<Failure>>, Option<Transition<Failure>>) {
        self.machine.rejection(self.tick_at(now))
    }

    /// Counts a call that was refused with the result of [`rejection`](Self::rejection).
    pub(super) fn count_refused(&self) {
        self.machine.count_refused();
    }

    /// A probe's response head arrived and is not a failure.
    pub(super) fn on_probe_head(&self, permit: &Permit) {
        self.machine.on_probe_head(permit);
    }

    /// Whether the duration of a call is needed: slow calls count.
    #[inline]
    pub(super) fn needs_duration(&self) -> bool {
        self.slow_limit.load(Relaxed) != u64::MAX
    }

    /// Whether a call that took this long to its response head is slow.
    pub(super) fn is_slow(&self, duration: Duration) -> bool {
        nanos(duration) > self.slow_limit.load(Relaxed)
    }

    /// Whether the route of a call that begins now matters.
    #[inline]
    pub(super) fn records_routes(&self, now: Instant) -> bool {
        self.routes.are_recorded(|| self.tick(now))
    }

    /// The fast path of a success whose duration is not needed: counts it if the circuit is still closed.
    #[inline]
    pub(super) fn count_success(&self, permit: &Permit, now: Instant) {
        if self.machine.is_current(permit) {
            // one difference of instants: it is most of the cost
            let now = self.tick_at(now);
            self.record_success(permit.epoch(), now);
            self.window.record(now / self.cell.load(Relaxed), stripe(), false);
        }
    }

    #[inline]
    fn record_success(&self, epoch: u64, now: u64) {
        self.failures.record_success(epoch);
        self.errors.record_success(epoch);
        self.silence.end(now);
    }

    /// Records any other end. `random` and `record` are evaluated only if the circuit opens.
    pub(super) fn record(
        &self,
        permit: &Permit,
        end: CallEnd,
        random: impl FnOnce() -> u64,
        record: impl FnOnce() -> Failure,
    ) -> Option<Transition<Failure>> {
        let now = self.tick_at(end.now);
        if permit.is_probe() {
            return match self.judge_probe(end.blame, end.slow) {
                None => {
                    self.machine.on_probe_cancelled(permit);
                    None
                }
                Some(Err(why)) => {
                    self.machine.on_probe_failure(permit, now, random(), || self.opening_record(why, record()))
                }
                Some(Ok(())) => self.machine.on_probe_success(permit, now, || self.clear(now)),
            };
        }
        if matches!(end.blame, Blame::Nothing | Blame::Overload) || !self.machine.is_current(permit) {
            return None;
        }
        let (tick, stripe) = (self.tick(end.now), stripe());
        if end.blame == Blame::Success {
            self.record_success(permit.epoch(), now);
        }
        if end.vote.counted {
            // one request is one vote: that of its last attempt
            if end.blame == Blame::Success {
                self.window.retract(tick, stripe);
                end.vote.route.into_iter().for_each(|route| self.routes.retract(route));
            }
            return None;
        }
        let failed = end.blame.is_failure();
        if failed {
            self.routes.start(tick);
        }
        if let Some(route) = end.vote.route {
            self.routes.record(route, tick, failed);
        }
        self.window.record(tick, stripe, failed);
        if let Some(window) = self.slow.get() {
            window.record(tick, stripe, end.slow);
        }
        let why = if failed {
            self.reason_to_open(permit.epoch(), end)?
        } else if end.slow && self.has_too_many_slow_calls(tick) {
            SLOW
        } else {
            return None;
        };
        let opened = self.machine.open(permit, now, random(), || self.opening_record(why, record()));
        if opened.is_some() {
            self.opened_by_responses.store(end.blame == Blame::ErrorResponse, Relaxed);
        }
        opened
    }

    /// Why the circuit opens after a failure, if it does.
    fn reason_to_open(&self, epoch: u64, end: CallEnd) -> Option<&'static str> {
        let (now, tick) = (self.tick_at(end.now), self.tick(end.now));
        let (counts, policy) = (self.window.sum(tick), self.policy());
        let silent = || self.silence.is_long(now, nanos(policy.window), counts.calls.saturating_sub(counts.failures));
        let in_a_row = if end.blame == Blame::ErrorResponse {
            // a response proves that the upstream lives, so it takes as many as for a share
            self.failures.record_success(epoch);
            let enough = self.errors.record_failure(epoch) >= policy.min_calls;
            enough && silent() && self.routes.most_fail(tick, policy.ratio)
        } else {
            let enough = self.failures.record_failure(epoch) >= policy.consecutive_failures;
            // no route explains that no connection can be made
            enough && (end.before_request || silent())
        };
        if in_a_row && policy.consecutive_failures < u32::MAX {
            Some(CONSECUTIVE)
        } else if self.exceeds(&self.window, tick, policy.ratio) && self.routes.most_fail(tick, policy.ratio) {
            Some(RATIO)
        } else {
            None
        }
    }

    /// An active probe that started at `begun` succeeded.
    pub(super) fn record_recovery(&self, begun: Instant, now: Instant) -> Option<Transition<Failure>> {
        let now = self.tick_at(now);
        self.machine.record_recovery(self.tick_at(begun), now, || self.clear(now))
    }

    /// An active probe failed; the next one is due before `until`.
    pub(super) fn record_still_down(&self, until: Instant) {
        self.machine.record_still_down(self.tick_at(until));
    }

    /// A request was sent as a probe: no call is used as one before `until`, but in any case after the maximum open duration.
    pub(super) fn put_off_calls(&self, until: Instant) {
        let latest = self.machine.view().0.since.saturating_add(nanos(self.policy().max_open_duration));
        self.machine.record_still_down(self.tick_at(until).min(latest));
    }

    /// When a call may be admitted as a probe, and how long the circuit is open until then.
    #[cfg(feature = "balance")]
    pub(super) fn next_call(&self, now: Instant) -> (Option<(Instant, Duration)>, Option<Transition<Failure>>) {
        let (rejected, turn) = self.rejection(now);
        let view = self.machine.view().0;
        let is_due = rejected.is_none();
        let next = matches!(view.state, State::Open | State::HalfOpen).then(|| {
            let until = self.at(view.until);
            let open_for = Duration::from_nanos(view.until.saturating_sub(view.since));
            (if is_due { until.min(now) } else { until }, open_for)
        });
        (next, turn)
    }

    /// Whether the upstream has recovered, by the outcome of a probe; `None` without a verdict.
    pub(super) fn recovered(&self, outcome: &Outcome, took: Duration) -> Option<bool> {
        self.judge_probe(outcome.blame(self.statuses()), self.is_slow(took)).map(|verdict| verdict.is_ok())
    }

    /// Judges the end of a probe: `Ok` if the upstream has recovered, else the reason why not; `None` without a verdict.
    fn judge_probe(&self, blame: Blame, slow: bool) -> Option<Result<(), &'static str>> {
        Some(match blame {
            Blame::Nothing => return None,
            Blame::Failure => Err(PROBE),
            Blame::ErrorResponse if self.opened_by_responses.load(Relaxed) => Err(PROBE),
            Blame::Success if slow => Err(SLOW_PROBE),
            // the upstream responds, which is what was in doubt
            Blame::Success | Blame::Overload | Blame::ErrorResponse => Ok(()),
        })
    }

    /// Counts a probe that was no call.
    pub(super) fn count_probe(&self) {
        self.machine.count_probe();
    }

    pub(super) fn hold(&self, now: Instant) -> Option<Transition<Failure>> {
        self.machine.hold(self.tick_at(now), self.failure_builder(HELD).build())
    }

    pub(super) fn release(&self, now: Instant) -> Option<Transition<Failure>> {
        self.machine.release(self.tick_at(now))
    }

    pub(super) fn reset(&self, now: Instant) -> Option<Transition<Failure>> {
        let now = self.tick_at(now);
        self.machine.reset(now, || self.clear(now))
    }

    pub(super) fn snapshot(&self, now: Instant) -> CircuitSnapshot {
        let (look, why) = self.machine.view();
        let tick = self.tick(now);
        let held = self.window.sum(tick);
        CircuitSnapshot {
            state: look.state,
            since: self.at(look.since),
            cause: why.and_then(|opening| opening.opened_by().cloned()),
            next_probe: (look.state == State::Open).then(|| self.at(look.until)),
            calls: held.calls,
            failures: held.failures,
            slow: self.slow.get().map_or(0, |window| window.sum(tick).failures),
            consecutive_failures: self.failures.count(look.epoch),
            opened: look.opened,
            probes: look.probes,
            probes_timed_out: look.probes_timed_out,
            refused: look.refused,
        }
    }

    pub(super) fn name(&self) -> &Arc<str> {
        &self.name
    }

    pub(super) fn policy(&self) -> BreakerPolicy {
        *self.policy.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn state(&self) -> super::State {
        self.machine.view().0.state
    }

    /// Number of calls refused so far.
    pub(super) fn refused(&self) -> u64 {
        self.machine.view().0.refused
    }

    pub(super) fn statuses(&self) -> fn(StatusCode) -> bool {
        self.policy().statuses
    }

    /// Converts a tick of this circuit to an instant.
    pub(super) fn at(&self, moment: u64) -> Instant {
        self.origin.checked_add(Duration::from_nanos(moment)).unwrap_or(self.origin)
    }

    fn exceeds(&self, window: &RollingWindow, tick: u64, share: Ratio) -> bool {
        let held = window.sum(tick);
        held.calls >= self.policy().min_calls.into()
            && held.failures * 1000 >= held.calls * u64::from(share.as_per_mille())
    }

    fn has_too_many_slow_calls(&self, tick: u64) -> bool {
        let slow = self.slow.get().zip(self.policy().slow);
        slow.is_some_and(|(window, (_, share))| self.exceeds(window, tick, share))
    }

    /// Clears the windows: their counts belong to an earlier epoch.
    fn clear(&self, now: u64) {
        self.window.clear();
        self.routes.clear();
        self.silence.restart(now);
        if let Some(window) = self.slow.get() {
            window.clear();
        }
    }

    /// The record of an opening, with the failure that caused it.
    fn opening_record(&self, why: &'static str, failure: Failure) -> Failure {
        self.failure_builder(why).opened_by(failure.named(&self.name)).build()
    }

    fn failure_builder(&self, why: &'static str) -> crate::cause::FailureBuilder {
        Failure::builder(BadGatewayCause::CircuitOpen)
            .phase(Phase::Gateway)
            .refusal()
            .repeat_elsewhere(self.is_clustered)
            // set here so that retry layers need not copy the record to add it
            .retry_stop((!self.is_clustered).then_some(RetryStop::LocalRefusal))
            .upstream(self.name.clone())
            .detail(Detail::Text(why))
    }

    #[inline]
    fn tick(&self, now: Instant) -> u64 {
        self.tick_at(now) / self.cell.load(Relaxed)
    }

    #[inline]
    fn tick_at(&self, now: Instant) -> u64 {
        let since = now.saturating_duration_since(self.origin);
        // 64 bits of nanoseconds wrap around after 584 years
        since.as_secs().wrapping_mul(1_000_000_000).wrapping_add(since.subsec_nanos().into())
    }
}

const CONSECUTIVE: &str = "consecutive failures";
const RATIO: &str = "failure ratio exceeded";
const SLOW: &str = "slow-call ratio exceeded";
const PROBE: &str = "the probe failed";
const SLOW_PROBE: &str = "the probe was slow";
const HELD: &str = "held open by an operator";

fn backoff(policy: &BreakerPolicy) -> OpenBackoff {
    let (first, max) = (nanos(policy.open_duration), nanos(policy.max_open_duration));
    OpenBackoff { first, max, decay_after: nanos(policy.window) }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
