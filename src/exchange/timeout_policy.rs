//! The timeouts of a call, as the driver asks for them.

use std::time::Duration;

use http::{HeaderMap, Request};
use tokio::time::Instant;

use super::{AttemptProgress, CallContext, Outcome, Rejection};
use crate::cause::{BadGatewayCause, Phase};

/// The time limits of a call: pure, told the time and what was seen.
pub(crate) trait TimeoutPolicy: Send + Sync + 'static {
    /// What one call remembers between looks.
    type State: Default + Send + 'static;

    /// Begins a call: reads the caller's deadline, writes the one that goes out.
    fn on_request<B>(&self, call: &mut CallContext, request: &mut Request<B>) -> Self::State;

    /// The same for an attempt after the first: the client's deadline was read, and is in the request's extensions.
    fn on_later_attempt<B>(&self, call: &mut CallContext, request: &mut Request<B>) -> Self::State {
        self.on_request(call, request)
    }

    /// When the first look is due, asked once the inner future was found pending.
    fn first_deadline(&self, watch: &Self::State, call: &CallContext) -> Option<Instant>;

    /// A look that was due.
    fn on_timer(
        &self,
        watch: &mut Self::State,
        call: &CallContext,
        now: Instant,
        sight: &AttemptProgress,
    ) -> TimerDecision;

    /// Refuses a call whose time is up before it has begun.
    fn reject(&self, call: &CallContext) -> Option<Rejection> {
        let _ = call;
        None
    }

    /// The response head has come, or the inner service's error.
    fn on_response(&self, watch: &Self::State, call: &CallContext, head: &HeadSeen<'_>) {
        let _ = (watch, call, head);
    }

    /// The limits of the response body.
    fn body_timeouts(&self, call: &CallContext) -> BodyTimeouts;
}

/// What is known at the response head.
#[derive(Debug)]
#[non_exhaustive]
pub(crate) struct HeadSeen<'a> {
    /// The answer's status and cause.
    pub outcome: &'a Outcome,
    /// Its fields; `None` where the inner service returned its error.
    pub headers: Option<&'a HeaderMap>,
    /// When the request body had ended, if its upload was tracked.
    pub uploaded: Option<Instant>,
}

/// The limits of a response body.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub(crate) struct BodyTimeouts {
    /// The longest wait in which nothing moves either way.
    pub idle: Option<Duration>,
    /// When the whole exchange has to be over.
    pub end: Option<Instant>,
    /// The longest time in which the client reads nothing of it.
    pub client_idle: Option<Duration>,
}

impl BodyTimeouts {
    /// Whether a limit applies also while nobody polls the body.
    pub(crate) fn need_sweep(&self) -> bool {
        self.client_idle.is_some() || self.end.is_some()
    }
}

/// What a look found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TimerDecision {
    /// Look again at this time.
    RearmAt(Instant),
    /// A limit has passed, for this reason.
    TimedOut(BadGatewayCause, Phase),
}

impl TimeoutPolicy for () {
    type State = ();

    fn on_request<B>(&self, _: &mut CallContext, _: &mut Request<B>) {}

    fn first_deadline(&self, (): &(), _: &CallContext) -> Option<Instant> {
        None
    }

    fn on_timer(&self, (): &mut (), _: &CallContext, _: Instant, _: &AttemptProgress) -> TimerDecision {
        unreachable!("no look was ever due")
    }

    fn body_timeouts(&self, _: &CallContext) -> BodyTimeouts {
        BodyTimeouts::default()
    }
}
