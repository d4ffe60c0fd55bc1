//! What a layer adds to a call: it admits, and it settles.

use std::any::Any;
use std::cell::OnceCell;
use std::time::Duration;

use http::{Extensions, HeaderMap, Response, StatusCode, header::RETRY_AFTER};
use tokio::time::Instant;

use super::{CallContext, UpgradeGuard};
use crate::cause::{BadGatewayCause, Failure};

/// One layer's say in a call.
///
/// A call that was admitted is either settled, once, when its response body has ended or failed, or it is
/// abandoned: then it frees what it held and proves nothing. A pair of parts is a part, `()` is none.
pub(crate) trait Component: Send + Sync + 'static {
    /// What an admitted call holds until it is over.
    type Permit: Send + 'static;

    /// Whether [`refuses`](Self::refuses) is ever to be asked.
    const REJECTS_EARLY: bool = false;

    /// The refusal of whatever call comes now, and the time it was made at.
    ///
    /// Asked before the inner service is asked whether it is ready: a call that is refused anyway does not wait
    /// for that.
    fn reject_early(&self) -> Option<(Instant, Rejection)> {
        None
    }

    /// A call got this answer of [`refuses`](Self::refuses), its own or another part's, without being admitted.
    fn on_rejected(&self, refusal: &Rejection) {
        let _ = refusal;
    }

    /// Lets a call pass.
    ///
    /// # Errors
    /// A [`Rejection`], if it is to be answered here.
    fn admit(&self, call: &CallContext) -> Result<Self::Permit, Rejection>;

    /// The response head has come, its body may still be coming.
    fn on_response(&self, ticket: &mut Self::Permit, call: &CallContext, outcome: &Outcome) {
        let _ = (ticket, call, outcome);
    }

    /// The answer is a 101, and who carries the bytes that follow says when they end; asked before `answered`.
    fn on_upgrade(&self, ticket: &mut Self::Permit, tunnel: &UpgradeGuard) {
        let _ = (ticket, tunnel);
    }

    /// The exchange is over.
    fn complete(&self, ticket: Self::Permit, call: &CallContext, outcome: &Outcome);

    /// Nobody waits for the exchange any more.
    fn cancel(&self, ticket: Self::Permit, call: &CallContext, why: CancelReason);
}

impl Component for () {
    type Permit = ();

    fn admit(&self, _: &CallContext) -> Result<(), Rejection> {
        Ok(())
    }

    fn complete(&self, (): (), _: &CallContext, _: &Outcome) {}

    fn cancel(&self, (): (), _: &CallContext, _: CancelReason) {}
}

impl<A: Component, B: Component> Component for (A, B) {
    type Permit = (A::Permit, B::Permit);

    const REJECTS_EARLY: bool = A::REJECTS_EARLY || B::REJECTS_EARLY;

    fn reject_early(&self) -> Option<(Instant, Rejection)> {
        self.0.reject_early().or_else(|| self.1.reject_early())
    }

    fn on_rejected(&self, refusal: &Rejection) {
        self.0.on_rejected(refusal);
        self.1.on_rejected(refusal);
    }

    fn admit(&self, call: &CallContext) -> Result<Self::Permit, Rejection> {
        let outer = self.0.admit(call)?;
        match self.1.admit(call) {
            Ok(inner) => Ok((outer, inner)),
            Err(refusal) => {
                self.0.cancel(outer, call, CancelReason::Rejected(refusal.failure.cause()));
                Err(refusal)
            }
        }
    }

    fn on_response(&self, ticket: &mut Self::Permit, call: &CallContext, outcome: &Outcome) {
        self.1.on_response(&mut ticket.1, call, outcome);
        self.0.on_response(&mut ticket.0, call, outcome);
    }

    fn on_upgrade(&self, ticket: &mut Self::Permit, tunnel: &UpgradeGuard) {
        self.1.on_upgrade(&mut ticket.1, tunnel);
        self.0.on_upgrade(&mut ticket.0, tunnel);
    }

    fn complete(&self, ticket: Self::Permit, call: &CallContext, outcome: &Outcome) {
        self.1.complete(ticket.1, call, outcome);
        self.0.complete(ticket.0, call, outcome);
    }

    fn cancel(&self, ticket: Self::Permit, call: &CallContext, why: CancelReason) {
        self.1.cancel(ticket.1, call, why);
        self.0.cancel(ticket.0, call, why);
    }
}

/// A call that is answered here instead of being made.
#[derive(Clone, Debug)]
pub(crate) struct Rejection {
    failure: Failure,
    retry_after: Option<Duration>,
}

impl Rejection {
    /// Answers with this failure; it may be shared by all calls that are refused for one reason.
    pub(crate) fn new(failure: Failure) -> Self {
        Self { failure, retry_after: None }
    }

    /// Says when it is worth asking again (RFC 9110 section 10.2.3); whole seconds, rounded up.
    pub(crate) fn retry_after(mut self, after: Duration) -> Self {
        self.retry_after = Some(after);
        self
    }

    pub(crate) fn into_parts(self) -> (Failure, Option<Duration>) {
        (self.failure, self.retry_after)
    }

    /// What is answered.
    pub(crate) fn failure(&self) -> &Failure {
        &self.failure
    }
}

/// Why nobody waits for a call any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub(crate) enum CancelReason {
    /// Whoever called has left: a client that hung up, as a rule.
    Dropped,
    /// A time limit, this layer's or one around it, passed for this cause.
    TimedOut(BadGatewayCause),
    /// Another part refused the call.
    Rejected(BadGatewayCause),
    /// Another attempt at the same request was answered first.
    Superseded,
}

/// What an answer shows: its head, and later how its body ended.
#[derive(Clone, Debug)]
pub(crate) struct ResponseSummary {
    status: Option<StatusCode>,
    cause: Option<BadGatewayCause>,
    failure: Option<Failure>,
    has_retry_after: bool,
}

impl ResponseSummary {
    /// The head; only one that is no success is looked at closely.
    #[inline]
    pub(crate) fn of<B>(answer: &Response<B>) -> Self {
        let status = answer.status();
        let mut shown = Self { status: Some(status), cause: None, failure: None, has_retry_after: false };
        if status.as_u16() >= 400 {
            shown.inspect_failure(answer.headers(), answer.extensions());
        }
        shown
    }

    #[cold]
    fn inspect_failure(&mut self, headers: &HeaderMap, extensions: &Extensions) {
        self.failure = extensions.get::<Failure>().cloned();
        let bare = || extensions.get::<BadGatewayCause>().copied();
        self.cause = self.failure.as_ref().map(Failure::cause).or_else(bare);
        self.has_retry_after = headers.contains_key(RETRY_AFTER);
    }

    /// The body failed after this head.
    pub(crate) fn with_body_failure(self, cause: BadGatewayCause, failure: Option<Failure>) -> Self {
        Self { cause: Some(cause), failure, ..self }
    }
}

/// How an exchange ended, or what its head says.
#[derive(Debug)]
pub(crate) struct Outcome {
    summary: ResponseSummary,
    immediate: bool,
    now: OnceCell<Instant>,
}

impl Outcome {
    #[inline]
    pub(crate) fn of(shown: ResponseSummary, at_once: bool) -> Self {
        Self { summary: shown, immediate: at_once, now: OnceCell::new() }
    }

    /// An answer, with the cause that stands in its extensions.
    #[cfg(test)]
    pub(crate) fn response(status: StatusCode, cause: Option<BadGatewayCause>) -> Self {
        Self::of(ResponseSummary { status: Some(status), cause, failure: None, has_retry_after: false }, false)
    }

    /// A failure that was found here.
    pub(crate) fn failure(failure: &Failure) -> Self {
        let (status, cause) = (Some(failure.status()), Some(failure.cause()));
        Self::of(ResponseSummary { status, cause, failure: Some(failure.clone()), has_retry_after: false }, false)
    }

    /// The inner service's error: a record, as `ReverseProxy`'s, or its own, which no layer has named yet.
    #[cold]
    pub(crate) fn error<E: 'static>(error: &E) -> Self {
        match (error as &dyn Any).downcast_ref::<Failure>() {
            Some(failure) => Self::failure(failure),
            None => {
                Self::of(ResponseSummary { status: None, cause: None, failure: None, has_retry_after: false }, false)
            }
        }
    }

    pub(crate) fn at(self, now: Instant) -> Self {
        Self { now: OnceCell::from(now), ..self }
    }

    #[inline]
    pub(crate) fn into_summary(self) -> ResponseSummary {
        self.summary
    }

    /// The answer's status; `None` where there is none but an error.
    pub(crate) fn status(&self) -> Option<StatusCode> {
        self.summary.status
    }

    /// What failed, if that has a name.
    pub(crate) fn cause(&self) -> Option<BadGatewayCause> {
        self.summary.cause
    }

    /// A status below 400 and nothing that failed.
    #[inline]
    pub(crate) fn is_success(&self) -> bool {
        self.summary.cause.is_none() && self.summary.status.is_some_and(|status| status.as_u16() < 400)
    }

    /// The record of what failed, if there is one.
    pub(crate) fn known_failure(&self) -> Option<&Failure> {
        self.summary.failure.as_ref()
    }

    /// The answer is no success, and its `Retry-After` says when to ask again.
    pub(crate) fn has_retry_after(&self) -> bool {
        self.summary.has_retry_after
    }

    /// The time, where the nearest second will do: the call's, if the whole answer was there when first asked for.
    ///
    /// That saves a look at the clock. Whoever measures how long an answer took has to ask for [`now`](Self::now):
    /// a handler may compute for long without ever being pending.
    #[inline]
    pub(crate) fn approx_now(&self, call: &CallContext) -> Instant {
        if self.immediate { call.now } else { self.now() }
    }

    /// Whether the answer was not there when it was first asked for.
    #[inline]
    pub(crate) fn waited(&self) -> bool {
        !self.immediate
    }

    /// The time; the clock is read when somebody asks, and once.
    pub(crate) fn now(&self) -> Instant {
        *self.now.get_or_init(Instant::now)
    }
}
