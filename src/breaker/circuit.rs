//! The circuit: counts calls, decides when to open, and admits calls.

use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use tokio::time::Instant;

use super::call_result::CallResult;
use super::consecutive_failures::ConsecutiveFailures;
use super::open_backoff::OpenBackoff;
use super::packed_state::{Permit, State};
use super::policy::BreakerPolicy;
use super::state_machine::{CircuitMachine, Rejected, Transition};
use super::window::{CELLS, RollingWindow};
use crate::cause::{BadGatewayCause, Detail, Failure, Phase, RetryStop};
use crate::stats::{Ratio, stripe};

/// The circuit of one upstream. Each opening creates one record, which all calls that it rejects share.
#[derive(Debug)]
pub(super) struct Circuit {
    policy: BreakerPolicy,
    name: Arc<str>,
    origin: Instant,
    machine: CircuitMachine<Failure>,
    failures: ConsecutiveFailures,
    window: RollingWindow,
    slow: Option<RollingWindow>,
    /// The length of one window cell, in nanoseconds.
    cell: u64,
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
    /// Number of probes.
    pub probes: u64,
    /// Number of probes that timed out, so that another call became a probe.
    pub probes_timed_out: u64,
    /// Number of calls refused.
    pub refused: u64,
}

/// How an admitted call ended.
#[derive(Clone, Copy, Debug)]
pub(super) struct CallEnd {
    pub(super) result: CallResult,
    pub(super) now: Instant,
    pub(super) duration: Duration,
}

impl Circuit {
    /// A closed circuit; its ticks count from `now`.
    pub(super) fn new(policy: BreakerPolicy, name: Arc<str>, stripes: usize, now: Instant) -> Self {
        let (first, longest) = (nanos(policy.open_duration), nanos(policy.max_open_duration));
        let pauses = OpenBackoff { first, max: longest, decay_after: nanos(policy.window) };
        Self {
            policy,
            name,
            origin: now,
            machine: CircuitMachine::new(pauses, nanos(policy.probe_timeout)),
            failures: ConsecutiveFailures::new(),
            window: RollingWindow::new(stripes),
            slow: policy.slow.map(|_| RollingWindow::new(stripes)),
            cell: nanos(policy.window) / CELLS,
        }
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
    ) -> (Result<Permit, Rejected<Failure>>, Option<Transition<Failure>>) {
        self.machine.try_acquire_slow(self.tick_at(now), || self.clear())
    }

    /// The rejection a call would get now; `None` if it would be admitted. Nothing is counted.
    pub(super) fn rejection(&self, now: Instant) -> Option<Rejected<Failure>> {
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
        self.slow.is_some()
    }

    /// The fast path of a success whose duration is not needed: counts it if the circuit is still closed.
    #[inline]
    pub(super) fn count_success(&self, permit: &Permit, now: Instant) {
        if self.machine.is_current(permit) {
            self.failures.record_success(permit.epoch());
            self.window.record(self.tick(now), stripe(), false);
        }
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
        let slow = self.policy.slow.is_some_and(|(limit, _)| end.duration > limit);
        if permit.is_probe() {
            return match end.result {
                CallResult::Neutral => {
                    self.machine.on_probe_cancelled(permit);
                    None
                }
                CallResult::Failure => {
                    self.machine.on_probe_failure(permit, now, random(), || self.opening_record(PROBE, record()))
                }
                CallResult::Success if slow => {
                    self.machine.on_probe_failure(permit, now, random(), || self.opening_record(SLOW_PROBE, record()))
                }
                CallResult::Success | CallResult::Overload => {
                    self.machine.on_probe_success(permit, now, || self.clear())
                }
            };
        }
        if matches!(end.result, CallResult::Neutral | CallResult::Overload) || !self.machine.is_current(permit) {
            return None;
        }
        let (tick, stripe, failed) = (self.tick(end.now), stripe(), end.result == CallResult::Failure);
        self.window.record(tick, stripe, failed);
        if let Some(window) = &self.slow {
            window.record(tick, stripe, slow);
        }
        let in_a_row = if failed {
            self.failures.record_failure(permit.epoch())
        } else {
            self.failures.record_success(permit.epoch());
            0
        };
        let why = if in_a_row >= self.policy.consecutive_failures {
            CONSECUTIVE
        } else if failed && self.exceeds(&self.window, tick, self.policy.ratio) {
            RATIO
        } else if slow && self.has_too_many_slow_calls(tick) {
            SLOW
        } else {
            return None;
        };
        self.machine.open(permit, now, random(), || self.opening_record(why, record()))
    }

    /// An active probe that started at `begun` succeeded.
    pub(super) fn record_recovery(&self, begun: Instant, now: Instant) -> Option<Transition<Failure>> {
        self.machine.record_recovery(self.tick_at(begun), self.tick_at(now), || self.clear())
    }

    /// An active probe failed; the next one is due before `until`.
    pub(super) fn record_still_down(&self, until: Instant) {
        self.machine.record_still_down(self.tick_at(until));
    }

    pub(super) fn hold(&self, now: Instant) -> Option<Transition<Failure>> {
        self.machine.hold(self.tick_at(now), self.failure_builder(HELD).build())
    }

    pub(super) fn release(&self, now: Instant) -> Option<Transition<Failure>> {
        self.machine.release(self.tick_at(now))
    }

    pub(super) fn reset(&self, now: Instant) -> Option<Transition<Failure>> {
        self.machine.reset(self.tick_at(now), || self.clear())
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
            slow: self.slow.as_ref().map_or(0, |window| window.sum(tick).failures),
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

    pub(super) fn policy(&self) -> &BreakerPolicy {
        &self.policy
    }

    pub(super) fn state(&self) -> super::State {
        self.machine.view().0.state
    }

    /// Number of calls refused so far.
    pub(super) fn refused(&self) -> u64 {
        self.machine.view().0.refused
    }

    pub(super) fn statuses(&self) -> fn(StatusCode) -> bool {
        self.policy.statuses
    }

    /// Converts a tick of this circuit to an instant.
    pub(super) fn at(&self, moment: u64) -> Instant {
        self.origin.checked_add(Duration::from_nanos(moment)).unwrap_or(self.origin)
    }

    fn exceeds(&self, window: &RollingWindow, tick: u64, share: Ratio) -> bool {
        let held = window.sum(tick);
        held.calls >= self.policy.min_calls.into()
            && held.failures * 1000 >= held.calls * u64::from(share.as_per_mille())
    }

    fn has_too_many_slow_calls(&self, tick: u64) -> bool {
        let slow = self.slow.as_ref().zip(self.policy.slow);
        slow.is_some_and(|(window, (_, share))| self.exceeds(window, tick, share))
    }

    /// Clears the windows: their counts belong to an earlier epoch.
    fn clear(&self) {
        self.window.clear();
        if let Some(window) = &self.slow {
            window.clear();
        }
    }

    /// The record of an opening, with the failure that caused it.
    fn opening_record(&self, why: &'static str, failure: Failure) -> Failure {
        self.failure_builder(why).opened_by(failure).build()
    }

    fn failure_builder(&self, why: &'static str) -> crate::cause::FailureBuilder {
        Failure::builder(BadGatewayCause::CircuitOpen)
            .phase(Phase::Gateway)
            .refusal()
            // set here so that retry layers need not copy the record to add it
            .retry_stop(RetryStop::LocalRefusal)
            .upstream(self.name.clone())
            .detail(Detail::Text(why))
    }

    #[inline]
    fn tick(&self, now: Instant) -> u64 {
        self.tick_at(now) / self.cell
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

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
