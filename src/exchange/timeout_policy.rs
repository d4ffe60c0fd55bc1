//! The timeouts of a call, as the driver asks for them.

use std::time::Duration;

use http::{HeaderMap, Request};
use tokio::time::Instant;

use super::{AttemptProgress, CallContext, Outcome, Rejection};
use crate::cause::{BadGatewayCause, Phase};

/// The time limits of a call: pure, told the time and what was seen.
pub(crate) trait TimeoutPolicy: Send + Sync + 'static {
    /// What one call remembers between looks.
    type Watch: Default + Send + 'static;

    /// Begins a call: reads the caller's deadline, writes the one that goes out.
    fn begin<B>(&self, call: &mut CallContext, request: &mut Request<B>) -> Self::Watch;

    /// The same for an attempt after the first: the client's deadline was read, and is in the request's extensions.
    fn begin_later<B>(&self, call: &mut CallContext, request: &mut Request<B>) -> Self::Watch {
        self.begin(call, request)
    }

    /// When the first look is due, asked once the inner future was found pending.
    fn first(&self, watch: &Self::Watch, call: &CallContext) -> Option<Instant>;

    /// A look that was due.
    fn look(&self, watch: &mut Self::Watch, call: &CallContext, now: Instant, sight: &AttemptProgress)
    -> TimerDecision;

    /// Refuses a call whose time is up before it has begun.
    fn refuse(&self, call: &CallContext) -> Option<Rejection> {
        let _ = call;
        None
    }

    /// The response head has come, or the inner service's error.
    fn answered(&self, watch: &Self::Watch, call: &CallContext, head: &HeadSeen<'_>) {
        let _ = (watch, call, head);
    }

    /// The limits of the response body.
    fn body(&self, call: &CallContext) -> BodyTimeouts;
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
    pub(crate) fn are_swept(&self) -> bool {
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
    type Watch = ();

    fn begin<B>(&self, _: &mut CallContext, _: &mut Request<B>) {}

    fn first(&self, (): &(), _: &CallContext) -> Option<Instant> {
        None
    }

    fn look(&self, (): &mut (), _: &CallContext, _: Instant, _: &AttemptProgress) -> TimerDecision {
        unreachable!("no look was ever due")
    }

    fn body(&self, _: &CallContext) -> BodyTimeouts {
        BodyTimeouts::default()
    }
}
