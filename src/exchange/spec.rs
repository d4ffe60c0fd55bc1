//! The parts of an exchange: its components, its timeouts, and how it treats requests and errors.

use std::fmt;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Extensions, Request, Response, Version};
use http_body::{Body, Frame};
use tokio::time::Instant;

use super::active::SpareCalls;
use super::{
    BoxError, CallContext, CancelReason, ChosenEndpoint, Component, Detach, Expired, Outcome, Rejection, Sweep,
    TimeoutPolicy,
};
use crate::body::UploadCounters;
use crate::cause::{BadGatewayCause, ClientCall, ClientCalls, Failure, RetryStop};

/// The parts of an exchange, as one type parameter.
pub(crate) trait Spec: Sized + Send + Sync + 'static {
    /// Admits and completes the call with all its attempts.
    type PerCall: Component;
    /// Admits and completes each attempt.
    type PerAttempt: Component;
    /// The timeouts of each attempt and of the response body.
    type Timeouts: TimeoutPolicy;
    /// How requests are treated: see [`RequestMode`].
    type Requests: Send + Sync + 'static;
    /// How errors and failures are treated.
    type Errors: ErrorMode;

    /// Whether a call waits for the inner service in its own future; otherwise backpressure is passed on.
    const WAITS: bool;
    /// Whether each attempt has a span.
    const SPANS: bool;

    /// The boxes of earlier calls on this thread.
    fn spare_calls() -> &'static SpareCalls<Self>;
}

/// The settings and components that all calls of a service share.
pub(crate) struct Config<P: Spec> {
    pub(crate) per_call: P::PerCall,
    pub(crate) per_attempt: P::PerAttempt,
    pub(crate) timeouts: P::Timeouts,
    pub(crate) requests: P::Requests,
    pub(crate) errors: P::Errors,
    pub(crate) handling: Handling,
    /// Ends the response bodies that their client does not read.
    pub(crate) sweep: Arc<Sweep>,
}

impl<P: Spec> Config<P> {
    pub(crate) fn new(
        per_call: P::PerCall,
        per_attempt: P::PerAttempt,
        timeouts: P::Timeouts,
        requests: P::Requests,
        errors: P::Errors,
    ) -> Self {
        let (handling, sweep) = (Handling::Normal, Arc::default());
        Self { per_call, per_attempt, timeouts, requests, errors, handling, sweep }
    }
}

impl<P: Spec> fmt::Debug for Config<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config").field("handling", &self.handling).finish_non_exhaustive()
    }
}

impl<P> Clone for Config<P>
where
    P: Spec<PerCall: Clone, PerAttempt: Clone, Timeouts: Clone, Requests: Clone, Errors: Clone>,
{
    fn clone(&self) -> Self {
        Self {
            per_call: self.per_call.clone(),
            per_attempt: self.per_attempt.clone(),
            timeouts: self.timeouts.clone(),
            requests: self.requests.clone(),
            errors: self.errors.clone(),
            handling: self.handling.clone(),
            sweep: self.sweep.clone(),
        }
    }
}

/// How calls are treated at present.
#[derive(Clone, Debug)]
pub(crate) enum Handling {
    /// As configured.
    Normal,
    /// Without retry and components until this time.
    Bypass(Instant),
    /// Every call is rejected.
    Reject(Rejection),
}

impl Handling {
    /// Whether a call that begins now bypasses retry and components.
    ///
    /// # Errors
    ///
    /// The rejection of all calls.
    #[inline]
    pub(super) fn bypasses(&self, now: Instant) -> Result<bool, Rejection> {
        if let Self::Normal = self { Ok(false) } else { self.bypasses_slow(now) }
    }

    #[cold]
    fn bypasses_slow(&self, now: Instant) -> Result<bool, Rejection> {
        match self {
            Self::Normal => Ok(false),
            Self::Bypass(until) => Ok(now < *until),
            Self::Reject(rejection) => Err(rejection.clone()),
        }
    }
}

/// The decision after an attempt.
pub(crate) enum NextStep {
    /// The attempt's response or failure is that of the call.
    Respond,
    /// Another attempt follows, not before this time.
    Retry(Option<Instant>),
}

/// How requests with a body `B` are treated: the body that an attempt sends, and whether another attempt may follow.
///
/// The default methods send a request once.
pub(crate) trait RequestMode<B> {
    /// The request body of the inner service.
    type Body;
    /// The state of a call before its body is wrapped.
    type Started;
    /// The state that a call keeps for further attempts.
    type RetryState;
    /// The request body that a further attempt sends.
    type Replay;

    /// Begins a call; `once`: no further attempt follows in any case.
    fn begin(&self, request: &Request<B>, call: &CallContext, once: bool) -> Self::Started;

    /// Wraps the body of the first attempt.
    ///
    /// The request itself is neither argument nor result: moving it is most of the cost of a layer.
    fn wrap(
        &self,
        started: Self::Started,
        body: B,
        now: Instant,
        upload: &mut Option<Arc<UploadCounters>>,
    ) -> (Self::RetryState, Self::Body);

    /// Whether another attempt is possible, as far as that is known when the call begins.
    #[inline]
    fn may_repeat(&self, retry_state: &Self::RetryState) -> bool {
        let _ = retry_state;
        false
    }

    /// Whether no attempt follows this response: it shows no failure.
    #[inline]
    fn is_final<R>(&self, retry_state: &Self::RetryState, response: &Response<R>) -> bool {
        let _ = (retry_state, response);
        true
    }

    /// A response that is [final](Self::is_final) is returned.
    #[inline]
    fn on_success<R>(&self, retry_state: &mut Self::RetryState, response: &mut Response<R>) {
        let _ = (retry_state, response);
    }

    /// Decides what follows a response that is not [final](Self::is_final).
    fn on_response<R>(&self, retry_state: &mut Self::RetryState, response: &mut Response<R>) -> NextStep {
        let _ = (retry_state, response);
        NextStep::Respond
    }

    /// Decides what follows a failure.
    ///
    /// # Errors
    ///
    /// The call's failure, where no attempt follows.
    fn on_failure(&self, retry_state: &mut Self::RetryState, failure: Failure) -> Result<Option<Instant>, Failure> {
        let _ = retry_state;
        Err(failure)
    }

    /// An attempt that has failed, or is late, was sent to this endpoint of a pool.
    fn on_tried(&self, retry_state: &mut Self::RetryState, endpoint: ChosenEndpoint) {
        let _ = (retry_state, endpoint);
    }

    /// Whether an attempt has read the request body, as far as is known.
    fn body_was_read(&self, retry_state: &Self::RetryState) -> bool {
        let _ = retry_state;
        false
    }

    /// Takes the body back from the previous attempt; ready with `None` if it cannot be sent again.
    fn poll_replay(&self, retry_state: &Self::RetryState, cx: &mut Context<'_>) -> Poll<Option<Self::Replay>> {
        let _ = (retry_state, cx);
        Poll::Ready(None)
    }

    /// The request of a further attempt, and the number of times it was sent before.
    fn next_request(
        &self,
        retry_state: &mut Self::RetryState,
        body: Self::Replay,
        upload: &mut Option<Arc<UploadCounters>>,
    ) -> Option<(Request<Self::Body>, u32)> {
        let _ = (retry_state, body, upload);
        None
    }

    /// The failure of a call whose next attempt cannot be made after all.
    fn final_failure(&self, retry_state: &mut Self::RetryState, stop: RetryStop) -> Failure {
        let _ = retry_state;
        Failure::builder(BadGatewayCause::GatewayInternal).retry_stop(stop).build()
    }

    /// The time by which a further attempt must begin, if no timeout applies while it waits for the inner service.
    fn deadline(&self, retry_state: &Self::RetryState) -> Option<Instant> {
        let _ = retry_state;
        None
    }

    /// Whether a hedged attempt may run concurrently with the first.
    #[inline]
    fn can_hedge(&self, retry_state: &Self::RetryState) -> bool {
        let _ = retry_state;
        false
    }

    /// When the hedged attempt is due.
    fn hedge_at(&self, retry_state: &Self::RetryState) -> Option<Instant> {
        let _ = retry_state;
        None
    }

    /// The body of the hedged attempt, if it is available and may be sent.
    fn hedge_body(&self, retry_state: &mut Self::RetryState) -> Option<Self::Replay> {
        let _ = retry_state;
        None
    }

    /// The request of the hedged attempt, and the number of times it was sent before.
    fn hedge_request(
        &self,
        retry_state: &mut Self::RetryState,
        body: Self::Replay,
        upload: &mut Option<Arc<UploadCounters>>,
    ) -> Option<(Request<Self::Body>, u32)> {
        let _ = (retry_state, body, upload);
        None
    }

    /// One of two concurrent attempts has failed; `None`: without a [`Failure`].
    fn on_concurrent_failure(&self, retry_state: &mut Self::RetryState, failure: Option<Failure>) {
        let _ = (retry_state, failure);
    }

    /// The failure of a response that is not [final](Self::is_final).
    fn failure_of<R>(&self, retry_state: &Self::RetryState, response: &Response<R>) -> Option<Failure> {
        let _ = retry_state;
        Failure::of(response).cloned()
    }
}

/// How errors are treated, and what a call notes of its request for that.
pub(crate) trait ErrorMode: Send + Sync + 'static {
    /// The notes of a request.
    type Notes: Default + Send + 'static;
    /// The error of the response body.
    type BodyError: From<Failure>;

    /// Whether the body returns `Pending` once before its error, so that a server flushes what came before.
    const FLUSHES: bool;
    /// Whether the call ends with its response body; otherwise with its head.
    const TRACKS_BODY: bool = true;
    /// Whether the sweep covers an open body from its head on, also a short one.
    const SWEEPS_SHORT: bool;

    /// Notes what is needed of a request once it is gone.
    #[inline]
    fn note<B>(&self, notes: &mut Self::Notes, request: &Request<B>) {
        let _ = (notes, request);
    }

    /// Drops all references to the request.
    #[inline]
    fn forget(notes: &mut Self::Notes) {
        let _ = notes;
    }

    /// Ends the count of the client calls made by a call of the inner service.
    #[inline]
    fn count(calls: ClientCalls) -> ClientCalls {
        calls.end()
    }

    /// Classifies the error of an inner service that never becomes ready.
    fn classify_not_ready(&self, notes: &Self::Notes, error: BoxError, calls: ClientCalls) -> Failure;

    /// Adds what only this layer knows to a failure.
    fn complete_failure(&self, failure: Failure) -> Failure {
        failure
    }

    /// The call was dropped before its response.
    fn on_cancel(&self, notes: &mut Self::Notes) {
        let _ = notes;
    }

    /// Adds the extensions for outer layers to a head that is returned.
    #[inline]
    fn finish_head(&self, extensions: &mut Extensions) {
        let _ = extensions;
    }

    /// Annotates a response whose status is 400 or above.
    fn annotate<R>(&self, notes: &mut Self::Notes, response: &mut Response<R>) {
        let _ = (notes, response);
    }

    /// The body of the error page for a local response, if there is one.
    fn render_page<R>(&self, notes: &mut Self::Notes, response: &mut Response<R>) -> Option<Bytes> {
        let _ = (notes, response);
        None
    }

    /// The local response to a failure.
    fn local_response(&self, notes: &mut Self::Notes, failure: &Failure, after: Option<Duration>) -> Response<Bytes>;

    /// Classifies an error of the response body.
    fn body_error(error: BoxError) -> (Self::BodyError, BadGatewayCause, Option<Failure>);

    /// Reports the failure of a response body.
    fn report_body(&self, notes: &mut Self::Notes, error: Self::BodyError) -> Self::BodyError {
        let _ = notes;
        error
    }

    /// Reports a response body that was ended because its client does not read it.
    fn report_expired(&self, notes: &mut Self::Notes, expired: Expired, failure: Failure) -> Failure;
}

/// The error of an exchange.
pub(crate) type ErrorOf<P, E, X> = <<P as Spec>::Errors as ResponseMode<E, X>>::Error;

/// The first frame of a response body, polled before the head is returned.
pub(crate) enum FirstFrame {
    Frame(Frame<Bytes>),
    End,
    Failed(Failure),
}

/// How the errors `E` of a service and its responses with a body `X` are treated.
pub(crate) trait ResponseMode<E, X>: ErrorMode + BodyMode<Self::Inner> {
    /// The error of the exchange.
    type Error;
    /// The response body as the driver keeps it.
    type Inner: Body<Data = Bytes>;

    /// The failure that an error stands for.
    ///
    /// # Errors
    ///
    /// The error, if it is passed on.
    fn failure(&self, notes: &Self::Notes, error: E, calls: ClientCalls) -> Result<Failure, Self::Error>;

    /// The outcome of an error that is passed on.
    fn error_outcome(error: &Self::Error) -> Outcome;

    /// The inner service never becomes ready: the error to classify.
    ///
    /// # Errors
    ///
    /// The error, if it is passed on.
    fn not_ready(error: E) -> Result<BoxError, Self::Error>;

    /// The failure of the call, as a response or an error.
    ///
    /// # Errors
    ///
    /// The error of the exchange, if failures are errors.
    fn respond(
        &self,
        notes: &mut Self::Notes,
        failure: Failure,
        after: Option<Duration>,
    ) -> Result<Response<Bytes>, Self::Error> {
        Ok(self.local_response(notes, &failure, after))
    }

    /// Whether a head shows no sign of a failure.
    fn is_ordinary(&self, response: &Response<X>) -> bool;

    /// Checks a head that is not [ordinary](Self::is_ordinary); returns its failure, if any.
    fn check(
        &self,
        notes: &Self::Notes,
        response: &mut Response<X>,
        calls: ClientCalls,
        known_as: Option<ClientCall>,
    ) -> Option<Failure>;

    /// Whether the head waits for the first frame of its body.
    #[inline]
    fn waits_for_first_frame(&self, notes: &Self::Notes, response: &Response<X>) -> bool {
        let _ = (notes, response);
        false
    }

    /// How long a head waits for the first frame of its body.
    fn first_frame_timeout(&self) -> Duration {
        Duration::ZERO
    }

    /// Polls the body of a head that was not returned yet.
    fn poll_first_frame(body: &mut X, version: Version, cx: &mut Context<'_>) -> Poll<FirstFrame> {
        let _ = (body, version, cx);
        Poll::Pending
    }

    /// Wraps the body of a response that is returned.
    fn inner(body: X) -> Self::Inner;
}

/// How a response body is treated while it is read.
pub(crate) trait BodyMode<Y>: ErrorMode {
    /// Shares the body with the sweep, so that it can be dropped from there.
    fn share(body: &mut Y) -> Option<Arc<dyn Detach>> {
        let _ = body;
        None
    }

    /// Whether a body that just ended was cut.
    #[inline]
    fn was_cut(body: &Y, version: Version) -> bool {
        let _ = (body, version);
        false
    }

    /// The failure of a body that was cut.
    fn cut() -> Failure {
        Failure::new(BadGatewayCause::IncompleteBody)
    }
}

/// The permit of a component.
pub(crate) type PermitOf<C> = <C as Component>::Permit;
/// The state of a timeout policy for one attempt.
pub(crate) type TimeoutState<P> = <<P as Spec>::Timeouts as TimeoutPolicy>::State;
/// The notes of a request.
pub(crate) type NotesOf<P> = <<P as Spec>::Errors as ErrorMode>::Notes;
/// The error of a response body.
pub(crate) type BodyErrorOf<P> = <<P as Spec>::Errors as ErrorMode>::BodyError;
/// The request body of the inner service.
pub(crate) type RequestBodyOf<P, B> = <<P as Spec>::Requests as RequestMode<B>>::Body;
/// The state that a call keeps for further attempts.
pub(crate) type RetryStateOf<P, B> = <<P as Spec>::Requests as RequestMode<B>>::RetryState;

impl<C: Component> Component for Option<C> {
    type Permit = Option<C::Permit>;

    const REJECTS_EARLY: bool = C::REJECTS_EARLY;

    fn reject_early(&self) -> Option<(Instant, Rejection)> {
        self.as_ref()?.reject_early()
    }

    fn admission(&self) -> Option<super::Admission> {
        self.as_ref()?.admission()
    }

    #[inline]
    fn on_request<B>(&self, call: &mut CallContext, request: &Request<B>) {
        if let Some(component) = self {
            component.on_request(call, request);
        }
    }

    fn on_rejected(&self, rejection: &Rejection) {
        if let Some(component) = self {
            component.on_rejected(rejection);
        }
    }

    #[inline]
    fn admit(&self, call: &CallContext) -> Result<Self::Permit, Rejection> {
        self.as_ref().map(|component| component.admit(call)).transpose()
    }

    fn on_upload(&self, permit: &mut Self::Permit, awaits_client: bool) {
        if let (Some(component), Some(permit)) = (self, permit) {
            component.on_upload(permit, awaits_client);
        }
    }

    #[inline]
    fn on_response(&self, permit: &mut Self::Permit, call: &CallContext, outcome: &Outcome) {
        if let (Some(component), Some(permit)) = (self, permit) {
            component.on_response(permit, call, outcome);
        }
    }

    fn on_upgrade(&self, permit: &mut Self::Permit, guard: &crate::body::UpgradeGuard) {
        if let (Some(component), Some(permit)) = (self, permit) {
            component.on_upgrade(permit, guard);
        }
    }

    #[inline]
    fn complete(&self, permit: Self::Permit, call: &CallContext, outcome: &Outcome) {
        if let (Some(component), Some(permit)) = (self, permit) {
            component.complete(permit, call, outcome);
        }
    }

    fn cancel(&self, permit: Self::Permit, call: &CallContext, reason: CancelReason) {
        if let (Some(component), Some(permit)) = (self, permit) {
            component.cancel(permit, call, reason);
        }
    }
}
