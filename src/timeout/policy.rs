//! The timeouts of one layer, as a policy for the driver.

use std::sync::Arc;
use std::time::Duration;

use http::Request;
use tokio::time::Instant;

use super::Timeouts;
use super::attachments::TimeoutExtensions;
use super::route_learner::{Observation, RouteLearner};
use super::stall::{StallDetector, cause_and_phase, phase};
use crate::cause::{BadGatewayCause, Detail, Failure, Phase, RetryStop};
use crate::deadline::Deadline;
use crate::exchange::{AttemptProgress, BodyTimeouts, CallContext, HeadSeen, Rejection, TimeoutPolicy, TimerDecision};

/// The settings of a [`TimeoutLayer`](super::TimeoutLayer).
#[derive(Clone, Debug)]
pub(crate) struct EnforcedTimeouts {
    pub(crate) timeouts: Timeouts,
    pub(super) extensions: Option<Arc<TimeoutExtensions>>,
}

/// The time until the next check of a call whose timeout was removed while it waited.
const LATER: Duration = Duration::from_secs(3600);

/// The state of one call; most of it is created at the first check.
#[derive(Debug, Default)]
pub(crate) struct TimeoutState {
    stall: Option<Box<StallDetector>>,
    observation: Option<Observation>,
}

impl EnforcedTimeouts {
    /// The client's deadline, the end of the total or of the maximum duration, whichever comes first.
    fn deadline(&self, call: &CallContext) -> Option<Instant> {
        min(self.total_end(call), call.deadline.map(|deadline| deadline.instant()))
    }

    /// The end of the total or of the maximum duration.
    fn total_end(&self, call: &CallContext) -> Option<Instant> {
        self.timeouts.until_head().map(|limit| call.now + limit)
    }

    /// The learner and observation of a call that is a sample.
    fn observation(&self, state: &TimeoutState) -> Option<(&RouteLearner, Observation)> {
        self.extensions.as_ref()?.routes.as_ref().zip(state.observation)
    }

    /// The timeout of the response head.
    fn head(&self, state: &TimeoutState, now: Instant) -> Option<Duration> {
        match self.observation(state) {
            Some((learner, lesson)) => learner.response_head_limit(lesson, self.timeouts.response_head, now),
            None => self.timeouts.response_head,
        }
    }

    fn attempt_end(&self, call: &CallContext) -> Option<Instant> {
        self.timeouts.attempt.map(|attempt| call.now + attempt)
    }
}

/// The rejection of a request whose deadline had elapsed on arrival.
#[cold]
fn expired_on_arrival() -> Rejection {
    let failure = Failure::builder(BadGatewayCause::DeadlineExceeded).phase(Phase::Gateway);
    let failure = failure.refusal().retry_stop(RetryStop::LocalRefusal);
    Rejection::new(failure.detail(Detail::Text("the deadline had passed on arrival")).build())
}

fn min(one: Option<Instant>, other: Option<Instant>) -> Option<Instant> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}

impl TimeoutPolicy for EnforcedTimeouts {
    type State = TimeoutState;

    #[inline]
    fn on_request<B>(&self, call: &mut CallContext, request: &mut Request<B>) -> TimeoutState {
        call.kind = self.timeouts.kind;
        call.deadline = Deadline::of(request.extensions());
        let lesson = match &self.extensions {
            None => None,
            Some(extras) => {
                let ends = min(self.deadline(call), self.attempt_end(call)).map(Deadline::at);
                extras.begin(call, ends, request)
            }
        };
        TimeoutState { stall: None, observation: lesson }
    }

    fn on_later_attempt<B>(&self, call: &mut CallContext, request: &mut Request<B>) -> TimeoutState {
        call.kind = self.timeouts.kind;
        call.deadline = Deadline::of(request.extensions());
        let lesson = self.extensions.as_ref().and_then(|extras| {
            let ends = min(self.deadline(call), self.attempt_end(call)).map(Deadline::at);
            extras.begin_later(call, ends, request)
        });
        TimeoutState { stall: None, observation: lesson }
    }

    #[inline]
    fn reject(&self, call: &CallContext) -> Option<Rejection> {
        call.deadline.filter(|deadline| deadline.has_elapsed(call.now)).map(|_| expired_on_arrival())
    }

    fn first_deadline(&self, state: &TimeoutState, call: &CallContext) -> Option<Instant> {
        let own = [self.head(state, call.now), self.timeouts.attempt, self.timeouts.until_head()];
        // the second of two checks shows whether an upload still moved
        let first = own.into_iter().flatten().min().map(|limit| call.now + limit / 2);
        min(first, call.deadline.map(|deadline| deadline.instant()))
    }

    fn on_timer(
        &self,
        state: &mut TimeoutState,
        call: &CallContext,
        now: Instant,
        progress: &AttemptProgress,
    ) -> TimerDecision {
        let head = if state.stall.is_none() { self.head(state, now) } else { None };
        let learned = self.observation(state);
        let stall = state.stall.get_or_insert_with(|| Box::new(StallDetector::new(call.now, head)));
        let mut check = stall.check(now, progress);
        if let (Some((learner, lesson)), true) = (learned, check.due.is_some_and(|due| due <= now)) {
            // a learned timeout cuts only what hangs, the configured one every call
            if let Some(longer) = learner.more_time(lesson, stall.last_progress(), now) {
                check.due = stall.extend(longer, self.timeouts.response_head);
            }
        }
        let limit = stall.limit();
        let (attempt, total) = (self.attempt_end(call), self.total_end(call));
        let deadline = call.deadline.map(|deadline| deadline.instant());
        let has_passed = |end: Option<Instant>| end.is_some_and(|end| end <= now);
        let stalled = has_passed(check.due);
        let (attempt_passed, total_passed) = (has_passed(attempt), has_passed(total));
        if !(stalled || attempt_passed || total_passed || has_passed(deadline)) {
            let next = [check.due, attempt, total, deadline].into_iter().flatten().min();
            return TimerDecision::RearmAt(next.unwrap_or(now + LATER));
        }
        let (cause, late) = cause_and_phase(progress, check.read_before);
        if stalled {
            // only timeouts of the wait for the upstream are samples of its latency
            let its_own = matches!(cause, BadGatewayCause::FirstByteTimeout | BadGatewayCause::HeadTimeout);
            if let Some(((learner, lesson), limit)) = self.observation(state).filter(|_| its_own).zip(limit) {
                learner.timed_out(lesson, limit, now);
            }
            return TimerDecision::TimedOut(cause, late);
        }
        if check.client_uploads {
            return TimerDecision::TimedOut(BadGatewayCause::UploadStalled, Phase::Send);
        }
        if attempt_passed || (total_passed && self.timeouts.response_head.is_some()) {
            TimerDecision::TimedOut(cause, late)
        } else if total_passed {
            TimerDecision::TimedOut(BadGatewayCause::DeadlineExceeded, phase(progress))
        } else {
            TimerDecision::DeadlineElapsed(phase(progress))
        }
    }

    #[inline]
    fn on_response(&self, state: &TimeoutState, call: &CallContext, head: &HeadSeen<'_>) {
        if let Some(extras) = &self.extensions {
            extras.on_response(state.observation, call, head);
        }
    }

    fn body_timeouts(&self, call: &CallContext) -> BodyTimeouts {
        BodyTimeouts {
            idle: self.timeouts.body_idle,
            end: self.timeouts.max_duration.map(|absolute| call.now + absolute),
            client_idle: self.timeouts.client_idle,
        }
    }
}
