//! The timeouts of a call, as the driver applies them.

use std::time::Duration;

use http::{HeaderMap, Request};
use tokio::time::Instant;

use super::{AttemptProgress, CallContext, Outcome, Rejection};
use crate::cause::{BadGatewayCause, Phase};

/// Decides when an attempt has timed out, from the time and the attempt's progress; pure.
///
/// A policy has no timer and no timeouts of the body unless it overrides the methods for them.
pub(crate) trait TimeoutPolicy: Send + Sync + 'static {
    /// Kept for one attempt between timer events.
    type State: Default + Send + 'static;

    /// Begins the first attempt: reads the client's deadline, and writes the upstream's.
    fn on_request<B>(&self, call: &mut CallContext, request: &mut Request<B>) -> Self::State;

    /// Begins a later attempt: the client's deadline was read before, and is in the request's extensions.
    fn on_later_attempt<B>(&self, call: &mut CallContext, request: &mut Request<B>) -> Self::State {
        self.on_request(call, request)
    }

    /// When the timer first fires; called once the inner future is pending.
    fn first_deadline(&self, state: &Self::State, call: &CallContext) -> Option<Instant> {
        let _ = (state, call);
        None
    }

    /// The timer that [`first_deadline`](Self::first_deadline) set has fired.
    fn on_timer(
        &self,
        state: &mut Self::State,
        call: &CallContext,
        now: Instant,
        progress: &AttemptProgress,
    ) -> TimerDecision {
        let _ = (state, call, now, progress);
        unreachable!("the policy sets no timer")
    }

    /// Rejects a call whose deadline had passed before it began.
    fn reject(&self, call: &CallContext) -> Option<Rejection> {
        let _ = call;
        None
    }

    /// The response head was received, or the inner service's error.
    fn on_response(&self, state: &Self::State, call: &CallContext, head: &HeadSeen<'_>) {
        let _ = (state, call, head);
    }

    /// The timeouts of the response body.
    fn body_timeouts(&self, call: &CallContext) -> BodyTimeouts {
        let _ = call;
        BodyTimeouts::default()
    }
}

/// An attempt at its response head.
#[derive(Debug)]
#[non_exhaustive]
pub(crate) struct HeadSeen<'a> {
    /// The status and cause.
    pub outcome: &'a Outcome,
    /// The header fields; `None` if the inner service returned an error.
    pub headers: Option<&'a HeaderMap>,
    /// When the request body had ended, if its upload is tracked.
    pub uploaded: Option<Instant>,
}

/// The timeouts of a response body.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub(crate) struct BodyTimeouts {
    /// The longest time in which neither the request body nor the response body moves.
    pub idle: Option<Duration>,
    /// When the whole call must have ended.
    pub end: Option<Instant>,
    /// The longest time in which the client does not read the body.
    pub client_idle: Option<Duration>,
}

impl BodyTimeouts {
    /// Whether a timeout applies also while the body is not polled.
    pub(crate) fn need_sweep(&self) -> bool {
        self.client_idle.is_some() || self.end.is_some()
    }
}

/// The decision after a timer event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TimerDecision {
    /// The timer fires again at this time.
    RearmAt(Instant),
    /// A timeout has passed, with this cause and in this phase.
    TimedOut(BadGatewayCause, Phase),
    /// The client's deadline has elapsed in this phase, which says nothing about the upstream.
    DeadlineElapsed(Phase),
}

impl TimeoutPolicy for () {
    type State = ();

    fn on_request<B>(&self, _: &mut CallContext, _: &mut Request<B>) {}
}
