//! The decisions of a shift: to go on, to hold, to roll back. Pure: time and counts are arguments.

use std::time::Duration;

use tokio::time::Instant;

use super::test::{Sample, Test, TestResult};
use super::{CallCounts, Evidence, ShiftReason, ShiftState};

/// The increase of the failure rate, beside twice the old odds, that the test has to exclude.
const FAILURES: f64 = 0.02;
/// The same for calls slower than the old group's 99th percentile: 5 % of the calls instead of 1 %.
const SLOW: f64 = 0.03;
/// Available endpoints are assumed to bear this many times their usual load (Envoy's overprovisioning factor, 140 %).
const OVERPROVISIONING: f64 = 1.4;

/// The share of a new group that has no available endpoint. With a share of 0, its endpoints would get no probes, and
/// would never return.
const LEAST: f64 = 0.001;

/// Calls since the last observation, and the present weights.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Observation {
    pub(super) old: CallCounts,
    pub(super) new: CallCounts,
    /// The weight of all members of the old group, and of those of the new group that are available.
    pub(super) old_weight: f64,
    pub(super) available_weight: f64,
}

/// The state of a shift.
#[derive(Debug)]
pub(super) struct Machine {
    steps: Vec<f64>,
    step_time: Duration,
    step: usize,
    began: Instant,
    is_held: bool,
    pub(super) state: ShiftState,
    failures: Test,
    latency: Test,
    /// The calls of this step.
    pub(super) old: CallCounts,
    pub(super) new: CallCounts,
    /// The largest weight that the old group had, with which the new group's is compared.
    old_weight: f64,
    capacity: f64,
}

impl Machine {
    pub(super) fn new(steps: Vec<f64>, step_time: Duration, now: Instant) -> Self {
        Self {
            steps,
            step_time,
            step: 0,
            began: now,
            is_held: false,
            state: ShiftState::Undecided,
            failures: Test::new(FAILURES),
            latency: Test::new(SLOW),
            old: CallCounts::default(),
            new: CallCounts::default(),
            old_weight: 0.0,
            capacity: 0.0,
        }
    }

    /// Returns the part of the calls that the new group takes.
    pub(super) fn share(&self) -> f64 {
        let share = match self.state {
            ShiftState::RolledBack(_) => 0.0,
            ShiftState::Completed => 1.0,
            _ => self.steps.get(self.step).copied().unwrap_or(1.0),
        };
        share.min(self.capacity.max(LEAST))
    }

    pub(super) fn step(&self) -> usize {
        self.step
    }

    pub(super) fn age(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.began)
    }

    pub(super) fn is_over(&self) -> bool {
        matches!(self.state, ShiftState::RolledBack(_) | ShiftState::Completed)
    }

    pub(super) fn failure_evidence(&self) -> Evidence {
        self.failures.evidence()
    }

    pub(super) fn latency_evidence(&self) -> Evidence {
        self.latency.evidence()
    }

    /// Records an observation, and begins the next step if it is due.
    pub(super) fn on_observation(&mut self, observed: Observation, now: Instant) {
        self.old_weight = self.old_weight.max(observed.old_weight);
        self.capacity =
            if self.old_weight > 0.0 { observed.available_weight * OVERPROVISIONING / self.old_weight } else { 1.0 };
        if self.is_over() {
            return;
        }
        (self.old, self.new) = (self.old + observed.old, self.new + observed.new);
        self.failures.add(failures(observed.old), failures(observed.new));
        self.latency.add(slow(observed.old), slow(observed.new));
        self.state = self.judge();
        if self.state == ShiftState::Accepted && self.age(now) >= self.step_time {
            self.next(now);
        }
    }

    fn judge(&self) -> ShiftState {
        let (failures, latency) = (self.failures.result(), self.latency.result());
        let share = self.steps.get(self.step).copied().unwrap_or(1.0);
        if failures == TestResult::Worse {
            ShiftState::RolledBack(ShiftReason::Failures)
        } else if self.is_held {
            ShiftState::Held(ShiftReason::Requested)
        } else if self.capacity < share {
            ShiftState::Held(ShiftReason::Capacity)
        } else if latency == TestResult::Worse {
            ShiftState::Held(ShiftReason::Latency)
        } else if (failures, latency) == (TestResult::Accepted, TestResult::Accepted) {
            ShiftState::Accepted
        } else {
            ShiftState::Undecided
        }
    }

    /// Begins the next step, which only its own calls decide.
    fn next(&mut self, now: Instant) {
        if self.step + 1 >= self.steps.len() {
            self.state = ShiftState::Completed;
            return;
        }
        self.step += 1;
        self.began = now;
        self.state = ShiftState::Undecided;
        (self.failures, self.latency) = (Test::new(FAILURES), Test::new(SLOW));
        (self.old, self.new) = (CallCounts::default(), CallCounts::default());
    }

    pub(super) fn hold(&mut self, is_held: bool) {
        self.is_held = is_held;
        if !self.is_over() {
            self.state = self.judge();
        }
    }

    /// Ends the shift on request.
    pub(super) fn end(&mut self, state: ShiftState) {
        self.state = state;
    }
}

fn failures(counts: CallCounts) -> Sample {
    Sample { calls: counts.calls, failed: counts.failures.min(counts.calls) }
}

/// Slow calls among the successes.
fn slow(counts: CallCounts) -> Sample {
    let calls = counts.calls.saturating_sub(counts.failures);
    // a call is counted as slow at its response head, and as a failure at its end
    Sample { calls, failed: counts.slow.min(calls) }
}

/// Approaches, in steps, the response time that 1 % of the old group's calls exceed.
///
/// The test is valid for any threshold that was set before the calls, so that no histogram of each endpoint is needed.
#[derive(Debug, Default)]
pub(super) struct SlowAfter {
    seconds: Option<f64>,
    counts: CallCounts,
}

impl SlowAfter {
    /// Records calls of the old group; `average` is the present response time of its endpoints in seconds.
    #[allow(clippy::cast_precision_loss)] // numbers of calls
    pub(super) fn on_observation(&mut self, old: CallCounts, average: Option<f64>) {
        let Some(seconds) = &mut self.seconds else {
            self.seconds = average;
            return;
        };
        self.counts = self.counts + old;
        let calls = self.counts.calls.saturating_sub(self.counts.failures);
        if calls >= 200 {
            match self.counts.slow as f64 / calls as f64 {
                share if share > 0.02 => *seconds *= 1.25,
                share if share < 0.005 => *seconds *= 0.8,
                _ => {}
            }
            self.counts = CallCounts::default();
        }
    }

    pub(super) fn get(&self) -> Option<Duration> {
        self.seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
    }
}

/// Returns the parts of their weights by which the new group gets `share` of the calls of both.
pub(super) fn group_shares(share: f64, old_weight: f64, new_weight: f64) -> (f64, f64) {
    let part = |share: f64, weight: f64| if weight > 0.0 { share / weight } else { 0.0 };
    let (old, new) = (part(1.0 - share, old_weight), part(share, new_weight));
    let most = old.max(new);
    // if neither group can take its part, the new one gets 0: members that it gets later would take all calls
    if most > 0.0 { (old / most, new / most) } else { (1.0, 0.0) }
}
