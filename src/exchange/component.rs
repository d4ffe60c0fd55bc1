//! Components: each admits calls or attempts, and gets their outcomes.

use std::any::Any;
use std::cell::OnceCell;
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use http::{Extensions, HeaderMap, Request, Response, StatusCode, header::RETRY_AFTER};
use tokio::time::Instant;

use super::CallContext;
use crate::body::UpgradeGuard;
use crate::cause::{BadGatewayCause, Blame, CallEnding, Failure, Protocol, blame};

/// Completes when a component admits calls again.
pub(crate) type Admission = Pin<Box<dyn Future<Output = ()> + Send + Sync>>;

/// Admits calls and learns their outcome: a limiter, a circuit.
///
/// An admitted call is completed once, when its response body has ended or failed, or it is cancelled: it then releases its
/// permit and counts neither as a success nor as a failure. A pair of components is a component; `()` admits every call.
pub(crate) trait Component: Send + Sync + 'static {
    /// Held by an admitted call until it ends.
    type Permit: Send + 'static;

    /// Whether [`reject_early`](Self::reject_early) can return a rejection.
    const REJECTS_EARLY: bool = false;

    /// If calls are currently rejected, the rejection and when it was decided.
    ///
    /// Checked before the inner service is polled for readiness: a call that is rejected does not wait for it.
    fn reject_early(&self) -> Option<(Instant, Rejection)> {
        None
    }

    /// Waits until calls are admitted, if callers should choose another service while they are [rejected](Self::reject_early).
    fn admission(&self) -> Option<Admission> {
        None
    }

    /// Notes what is needed of a request once it is gone.
    #[inline]
    fn on_request<B>(&self, call: &mut CallContext, request: &Request<B>) {
        let _ = (call, request);
    }

    /// A call was rejected before this component could admit it, by this component or another.
    fn on_rejected(&self, rejection: &Rejection) {
        let _ = rejection;
    }

    /// Admits a call.
    ///
    /// # Errors
    ///
    /// The [`Rejection`], if the call must not reach the inner service.
    fn admit(&self, call: &CallContext) -> Result<Self::Permit, Rejection>;

    /// The attempt is pending; `awaits_client`: the client has not sent the rest of the request.
    fn on_upload(&self, permit: &mut Self::Permit, awaits_client: bool) {
        let _ = (permit, awaits_client);
    }

    /// The response head was received; its body may follow.
    fn on_response(&self, permit: &mut Self::Permit, call: &CallContext, outcome: &Outcome) {
        let _ = (permit, call, outcome);
    }

    /// The response is a 101 with a guard for its connection; called before [`on_response`](Self::on_response).
    fn on_upgrade(&self, permit: &mut Self::Permit, guard: &UpgradeGuard) {
        let _ = (permit, guard);
    }

    /// The call has ended with this outcome.
    fn complete(&self, permit: Self::Permit, call: &CallContext, outcome: &Outcome);

    /// The call was dropped before its end.
    fn cancel(&self, permit: Self::Permit, call: &CallContext, why: CancelReason);
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

    #[inline]
    fn on_request<T>(&self, call: &mut CallContext, request: &Request<T>) {
        self.0.on_request(call, request);
        self.1.on_request(call, request);
    }

    fn on_rejected(&self, rejection: &Rejection) {
        self.0.on_rejected(rejection);
        self.1.on_rejected(rejection);
    }

    fn admit(&self, call: &CallContext) -> Result<Self::Permit, Rejection> {
        let outer = self.0.admit(call)?;
        match self.1.admit(call) {
            Ok(inner) => Ok((outer, inner)),
            Err(rejection) => {
                self.0.cancel(outer, call, CancelReason::Rejected(rejection.failure.cause()));
                Err(rejection)
            }
        }
    }

    fn on_upload(&self, permit: &mut Self::Permit, awaits_client: bool) {
        self.0.on_upload(&mut permit.0, awaits_client);
        self.1.on_upload(&mut permit.1, awaits_client);
    }

    fn on_response(&self, permit: &mut Self::Permit, call: &CallContext, outcome: &Outcome) {
        self.1.on_response(&mut permit.1, call, outcome);
        self.0.on_response(&mut permit.0, call, outcome);
    }

    fn on_upgrade(&self, permit: &mut Self::Permit, guard: &UpgradeGuard) {
        self.1.on_upgrade(&mut permit.1, guard);
        self.0.on_upgrade(&mut permit.0, guard);
    }

    fn complete(&self, permit: Self::Permit, call: &CallContext, outcome: &Outcome) {
        self.1.complete(permit.1, call, outcome);
        self.0.complete(permit.0, call, outcome);
    }

    fn cancel(&self, permit: Self::Permit, call: &CallContext, why: CancelReason) {
        self.1.cancel(permit.1, call, why);
        self.0.cancel(permit.0, call, why);
    }
}

/// A local response to a call that is not sent.
#[derive(Clone, Debug)]
pub(crate) struct Rejection {
    failure: Failure,
    retry_after: Option<Duration>,
}

impl Rejection {
    /// Responds with this failure; calls that are rejected for one reason may share it.
    pub(crate) fn new(failure: Failure) -> Self {
        Self { failure, retry_after: None }
    }

    /// Sets `Retry-After` (RFC 9110 section 10.2.3): whole seconds, rounded up.
    pub(crate) fn retry_after(mut self, after: Duration) -> Self {
        self.retry_after = Some(after);
        self
    }

    pub(crate) fn into_parts(self) -> (Failure, Option<Duration>) {
        (self.failure, self.retry_after)
    }

    /// The failure of the response.
    pub(crate) fn failure(&self) -> &Failure {
        &self.failure
    }
}

/// Why a call was cancelled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub(crate) enum CancelReason {
    /// The response future was dropped, usually because the client disconnected.
    Dropped,
    /// A timeout of this layer or of an outer one passed, with this cause.
    TimedOut(BadGatewayCause),
    /// A limit passed that says nothing about the upstream, such as the client's deadline.
    Overdue,
    /// Another component rejected the call.
    Rejected(BadGatewayCause),
    /// Another attempt of the same call responded first.
    Superseded,
}

impl CancelReason {
    /// The reason for a drop after this failure.
    pub(crate) fn of(failure: &Failure) -> Self {
        if failure.is_neutral() { Self::Overdue } else { Self::TimedOut(failure.cause()) }
    }

    /// The verdict on the upstream.
    pub(crate) fn blame(self) -> Blame {
        match self {
            Self::TimedOut(cause) if cause.is_upstream_failure() => Blame::Failure,
            _ => Blame::Nothing,
        }
    }
}

/// The success or failure of a response: that of its head, later that of its body.
#[derive(Clone, Debug, Default)]
pub(crate) struct ResponseSummary {
    status: Option<StatusCode>,
    /// The HTTP equivalent of gRPC's status.
    rpc_status: Option<StatusCode>,
    cause: Option<BadGatewayCause>,
    failure: Option<Failure>,
    has_retry_after: bool,
}

impl ResponseSummary {
    /// Summarizes a head; its fields and extensions are read only if the status is 400 or above, or for gRPC.
    #[inline]
    pub(crate) fn of<B>(response: &Response<B>, call: &CallContext) -> Self {
        let status = response.status();
        let mut summary = Self { status: Some(status), ..Self::default() };
        let protocol = call.protocol.unwrap_or_default();
        if status.as_u16() >= 400 || protocol != Protocol::Http {
            summary.inspect(response.headers(), response.extensions(), protocol);
        }
        summary
    }

    #[cold]
    fn inspect(&mut self, headers: &HeaderMap, extensions: &Extensions, protocol: Protocol) {
        if self.status.is_some_and(|status| status.as_u16() >= 400) {
            self.failure = extensions.get::<Failure>().cloned();
            let bare = || extensions.get::<BadGatewayCause>().copied();
            self.cause = self.failure.as_ref().map(Failure::cause).or_else(bare);
            self.has_retry_after = headers.contains_key(RETRY_AFTER);
        }
        self.add_fields(headers, protocol);
    }

    /// Adds the gRPC status in these header or trailer fields.
    #[cold]
    pub(crate) fn add_fields(&mut self, fields: &HeaderMap, protocol: Protocol) {
        let status = protocol.status(fields).and_then(|code| protocol.http_equivalent(code));
        self.rpc_status = status.or(self.rpc_status);
    }

    /// Adds the failure of the body.
    pub(crate) fn with_body_failure(self, cause: BadGatewayCause, failure: Option<Failure>) -> Self {
        Self { cause: Some(cause), failure, ..self }
    }

    fn of_failure(failure: &Failure) -> Self {
        let (status, cause) = (Some(failure.status()), Some(failure.cause()));
        Self { status, cause, failure: Some(failure.clone()), ..Self::default() }
    }
}

/// The outcome of a call: of its head, or of the whole response.
#[derive(Debug)]
pub(crate) struct Outcome {
    summary: ResponseSummary,
    immediate: bool,
    now: OnceCell<Instant>,
}

impl Outcome {
    #[inline]
    pub(crate) fn of(summary: ResponseSummary, immediate: bool) -> Self {
        Self { summary, immediate, now: OnceCell::new() }
    }

    /// A response with this status and cause.
    #[cfg(test)]
    pub(crate) fn response(status: StatusCode, cause: Option<BadGatewayCause>) -> Self {
        Self::of(ResponseSummary { status: Some(status), cause, ..ResponseSummary::default() }, false)
    }

    /// A failure of this layer.
    pub(crate) fn failure(failure: &Failure) -> Self {
        Self::of(ResponseSummary::of_failure(failure), false)
    }

    /// The inner service's error: a [`Failure`], as that of `ReverseProxy`, or one that no layer has classified.
    #[cold]
    pub(crate) fn error<E: 'static>(error: &E) -> Self {
        match (error as &dyn Any).downcast_ref::<Failure>() {
            Some(failure) => Self::failure(failure),
            None => Self::of(ResponseSummary::default(), false),
        }
    }

    pub(crate) fn at(self, now: Instant) -> Self {
        Self { now: OnceCell::from(now), ..self }
    }

    #[inline]
    pub(crate) fn into_summary(self) -> ResponseSummary {
        self.summary
    }

    /// The status; `None` for an error that was not classified.
    pub(crate) fn status(&self) -> Option<StatusCode> {
        self.summary.status
    }

    /// The cause of the failure, if it was classified.
    pub(crate) fn cause(&self) -> Option<BadGatewayCause> {
        self.summary.cause
    }

    /// Whether the status is below 400, gRPC's status is not a failure, and the body has not failed.
    #[inline]
    pub(crate) fn is_success(&self) -> bool {
        let ResponseSummary { status, rpc_status, cause, .. } = &self.summary;
        cause.is_none() && rpc_status.is_none() && status.is_some_and(|status| status.as_u16() < 400)
    }

    /// The verdict on the upstream; `fails` returns whether a status of its own responses stands for a failure.
    pub(crate) fn blame(&self, fails: fn(StatusCode) -> bool) -> Blame {
        let ResponseSummary { status, rpc_status, cause, failure, has_retry_after } = &self.summary;
        if failure.as_ref().is_some_and(Failure::is_neutral) {
            return Blame::Nothing;
        }
        blame(CallEnding { status: rpc_status.or(*status), cause: *cause, has_retry_after: *has_retry_after }, fails)
    }

    /// The failure, if there is one.
    pub(crate) fn known_failure(&self) -> Option<&Failure> {
        self.summary.failure.as_ref()
    }

    /// The time to the nearest second: when the call began, if the response was ready at the first poll.
    ///
    /// Saves a reading of the clock. To measure a duration use [`now`](Self::now): a handler may compute for long without
    /// being pending.
    #[inline]
    pub(crate) fn approx_now(&self, call: &CallContext) -> Instant {
        if self.immediate { call.now } else { self.now() }
    }

    /// Whether the response was pending at the first poll.
    #[inline]
    pub(crate) fn waited(&self) -> bool {
        !self.immediate
    }

    /// The current time; the clock is read at most once.
    pub(crate) fn now(&self) -> Instant {
        *self.now.get_or_init(Instant::now)
    }
}
