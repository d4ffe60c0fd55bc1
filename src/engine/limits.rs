//! What an engine's one timer is for.

use std::time::Duration;

use http::{HeaderMap, Request};
use tokio::time::Instant;

use super::{Call, Outcome, Refusal, Sight};
use crate::cause::{BadGatewayCause, Phase};

/// The time limits of a call: pure, told the time and what was seen.
pub(crate) trait Limits: Send + Sync + 'static {
    /// What one call remembers between looks.
    type Watch: Default + Send + 'static;

    /// Begins a call: reads the caller's deadline, writes the one that goes out.
    fn begin<B>(&self, call: &mut Call, request: &mut Request<B>) -> Self::Watch;

    /// The same for an attempt after the first: the client's deadline was read, and is in the request's extensions.
    fn begin_later<B>(&self, call: &mut Call, request: &mut Request<B>) -> Self::Watch {
        self.begin(call, request)
    }

    /// When the first look is due, asked once the inner future was found pending.
    fn first(&self, watch: &Self::Watch, call: &Call) -> Option<Instant>;

    /// A look that was due.
    fn look(&self, watch: &mut Self::Watch, call: &Call, now: Instant, sight: &Sight) -> Finding;

    /// Refuses a call whose time is up before it has begun.
    fn refuse(&self, call: &Call) -> Option<Refusal> {
        let _ = call;
        None
    }

    /// The response head has come, or the inner service's error.
    fn answered(&self, watch: &Self::Watch, call: &Call, head: &Head<'_>) {
        let _ = (watch, call, head);
    }

    /// The limits of the response body.
    fn body(&self, call: &Call) -> BodyLimits;
}

/// What is known at the response head.
#[derive(Debug)]
#[non_exhaustive]
pub(crate) struct Head<'a> {
    /// The answer's status and cause.
    pub outcome: &'a Outcome,
    /// Its fields; `None` where the inner service returned its error.
    pub headers: Option<&'a HeaderMap>,
    /// When the request body had ended, if the engine watched one.
    pub uploaded: Option<Instant>,
}

/// The limits of a response body.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub(crate) struct BodyLimits {
    /// The longest wait in which nothing moves either way.
    pub idle: Option<Duration>,
    /// When the whole exchange has to be over.
    pub end: Option<Instant>,
    /// The longest time in which the client reads nothing of it.
    pub client_idle: Option<Duration>,
}

impl BodyLimits {
    /// Whether a limit applies also while nobody polls the body.
    pub(crate) fn are_swept(&self) -> bool {
        self.client_idle.is_some() || self.end.is_some()
    }
}

/// What a look found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Finding {
    /// Look again at this time.
    Again(Instant),
    /// A limit has passed, for this reason.
    Passed(BadGatewayCause, Phase),
}

impl Limits for () {
    type Watch = ();

    fn begin<B>(&self, _: &mut Call, _: &mut Request<B>) {}

    fn first(&self, (): &(), _: &Call) -> Option<Instant> {
        None
    }

    fn look(&self, (): &mut (), _: &Call, _: Instant, _: &Sight) -> Finding {
        unreachable!("no look was ever due")
    }

    fn body(&self, _: &Call) -> BodyLimits {
        BodyLimits::default()
    }
}
