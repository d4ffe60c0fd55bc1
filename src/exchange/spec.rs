//! What one kind of exchange is made of: its components, its timeouts, and what it does with requests and errors.

use std::fmt;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, Version};
use http_body::{Body, Frame};
use tokio::time::Instant;

use super::active::SpareCalls;
use super::{
    BoxError, CallContext, CancelReason, Component, Detach, Expired, Outcome, Rejection, Sweep, TimeoutPolicy,
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
    /// What becomes of requests: see [`RequestMode`].
    type Requests: Send + Sync + 'static;
    /// What becomes of errors and failures.
    type Errors: ErrorMode;

    /// Whether a call waits for the inner service in its own future; otherwise backpressure is passed on.
    const WAITS: bool;
    /// Whether each attempt has a span.
    const SPANS: bool;

    /// The boxes of earlier calls on this thread.
    fn spare_calls() -> &'static SpareCalls<Self>;
}

/// What the calls of one service share.
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

/// What is done with calls.
#[derive(Clone, Debug)]
pub(crate) enum Handling {
    /// What the exchange was built for.
    Normal,
    /// Retry and components stand aside until this time.
    Bypass(Instant),
    /// Every call is rejected.
    Reject(Rejection),
}

impl Handling {
    /// Whether components and retry stand aside for a call that begins now.
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

/// What follows an attempt.
pub(crate) enum NextStep {
    /// Its response, or its failure, is the call's.
    Respond,
    /// Another attempt, not before this time.
    Retry(Option<Instant>),
}

/// What becomes of requests with a body `B`: what an attempt sends of them, and whether another attempt may follow.
///
/// The default methods are those of a request that is sent once.
pub(crate) trait RequestMode<B> {
    /// The body that the inner service gets.
    type Body;
    /// A call whose body has not been wrapped yet.
    type Started;
    /// What one call keeps for further attempts.
    type RetryState;
    /// The request body that a further attempt sends.
    type Replay;

    /// Begins a call; `once`: it is not repeated whatever happens.
    fn begin(&self, request: &Request<B>, call: &CallContext, once: bool) -> Self::Started;

    /// Wraps the body of the first attempt.
    ///
    /// The request itself is no argument and no result: moving it is most of what a layer costs.
    fn wrap(
        &self,
        started: Self::Started,
        body: B,
        now: Instant,
        upload: &mut Option<Arc<UploadCounters>>,
    ) -> (Self::RetryState, Self::Body);

    /// Whether another attempt is possible, as far as that is known when the call begins.
    #[inline]
    fn may_repeat(&self, round: &Self::RetryState) -> bool {
        let _ = round;
        false
    }

    /// Whether a response shows nothing that another attempt could mend.
    #[inline]
    fn is_final<R>(&self, round: &Self::RetryState, response: &Response<R>) -> bool {
        let _ = (round, response);
        true
    }

    /// A response that [passes](Self::passes) goes to the client.
    #[inline]
    fn on_success<R>(&self, round: &mut Self::RetryState, response: &mut Response<R>) {
        let _ = (round, response);
    }

    /// Decides what follows a response that does not [pass](Self::passes).
    fn on_response<R>(&self, round: &mut Self::RetryState, response: &mut Response<R>) -> NextStep {
        let _ = (round, response);
        NextStep::Respond
    }

    /// Decides what follows a failure.
    ///
    /// # Errors
    ///
    /// The call's failure, where no attempt follows.
    fn on_failure(&self, round: &mut Self::RetryState, failure: Failure) -> Result<Option<Instant>, Failure> {
        let _ = round;
        Err(failure)
    }

    /// Whether an attempt has asked for the request's body, as far as that is known.
    fn body_was_read(&self, round: &Self::RetryState) -> bool {
        let _ = round;
        false
    }

    /// Takes the body back from the attempt before; ready with `None` if there is nothing to send again.
    fn poll_replay(&self, round: &Self::RetryState, cx: &mut Context<'_>) -> Poll<Option<Self::Replay>> {
        let _ = (round, cx);
        Poll::Ready(None)
    }

    /// The request of a further attempt, and how often it was sent before.
    fn next_request(
        &self,
        round: &mut Self::RetryState,
        body: Self::Replay,
        upload: &mut Option<Arc<UploadCounters>>,
    ) -> Option<(Request<Self::Body>, u32)> {
        let _ = (round, body, upload);
        None
    }

    /// The failure of a call whose next attempt was decided and cannot be made.
    fn final_failure(&self, round: &mut Self::RetryState, stop: RetryStop) -> Failure {
        let _ = round;
        Failure::builder(BadGatewayCause::GatewayInternal).retry_stop(stop).build()
    }

    /// The time by which a further attempt has to begin, where it waits for its service under no timeout.
    fn deadline(&self, round: &Self::RetryState) -> Option<Instant> {
        let _ = round;
        None
    }

    /// Whether a second attempt may be sent beside the first.
    #[inline]
    fn can_hedge(&self, round: &Self::RetryState) -> bool {
        let _ = round;
        false
    }

    /// When the second attempt is due.
    fn hedge_at(&self, round: &Self::RetryState) -> Option<Instant> {
        let _ = round;
        None
    }

    /// The body of the second attempt, if it is at hand and may be sent.
    fn hedge_body(&self, round: &mut Self::RetryState) -> Option<Self::Replay> {
        let _ = round;
        None
    }

    /// The request of the second attempt, and how often it was sent before.
    fn hedge_request(
        &self,
        round: &mut Self::RetryState,
        body: Self::Replay,
        upload: &mut Option<Arc<UploadCounters>>,
    ) -> Option<(Request<Self::Body>, u32)> {
        let _ = (round, body, upload);
        None
    }

    /// One of two concurrent attempts has failed; `None`: it left no record.
    fn on_concurrent_failure(&self, round: &mut Self::RetryState, failure: Option<Failure>) {
        let _ = (round, failure);
    }

    /// The record of a response that does not [pass](Self::passes).
    fn failure_of<R>(&self, round: &Self::RetryState, response: &Response<R>) -> Option<Failure> {
        let _ = round;
        Failure::of(response).cloned()
    }
}

/// What becomes of errors, and what a call notes of its request for that.
pub(crate) trait ErrorMode: Send + Sync + 'static {
    /// What is noted of a request.
    type Notes: Default + Send + 'static;
    /// The error of the response body.
    type BodyError: From<Failure>;

    /// Whether the body returns `Pending` once before its error, so that a server flushes what came before.
    const FLUSHES: bool;
    /// Whether the call ends with its response body; otherwise with its head.
    const TRACKS_BODY: bool = true;
    /// Whether a body that stays open is under the sweep from its head on, also a short one.
    const SWEEPS_SHORT: bool;

    /// Notes what is needed of a request once it is gone.
    #[inline]
    fn note<B>(&self, notes: &mut Self::Notes, request: &Request<B>) {
        let _ = (notes, request);
    }

    /// Lets go of everything that points to the request.
    #[inline]
    fn forget(notes: &mut Self::Notes) {
        let _ = notes;
    }

    /// Ends the count of the client calls that a call of the inner service made.
    #[inline]
    fn count(calls: ClientCalls) -> ClientCalls {
        calls.end()
    }

    /// Judges the error of an inner service that never becomes ready.
    fn classify_not_ready(&self, error: BoxError, calls: ClientCalls) -> Failure;

    /// Adds what the exchange knows to a failure.
    fn complete_failure(&self, failure: Failure) -> Failure {
        failure
    }

    /// The call was dropped before its response.
    fn on_cancel(&self, notes: &mut Self::Notes) {
        let _ = notes;
    }

    /// Adds what belongs on a response whose status is 400 or more.
    fn annotate<R>(&self, notes: &mut Self::Notes, response: &mut Response<R>) {
        let _ = (notes, response);
    }

    /// The body in place of a local response's, where there is an error page.
    fn render_page<R>(&self, notes: &mut Self::Notes, response: &mut Response<R>) -> Option<Bytes> {
        let _ = (notes, response);
        None
    }

    /// The response to a failure.
    fn local_response(&self, notes: &mut Self::Notes, failure: &Failure, after: Option<Duration>) -> Response<Bytes>;

    /// What a response body's own error says.
    fn body_error(error: BoxError) -> (Self::BodyError, BadGatewayCause, Option<Failure>);

    /// Reports a response body's failure.
    fn report_body(&self, notes: &mut Self::Notes, error: Self::BodyError) -> Self::BodyError {
        let _ = notes;
        error
    }

    /// Reports a response body that was ended because its client does not read it.
    fn report_expired(&self, notes: &mut Self::Notes, expired: Expired, failure: Failure) -> Failure;
}

/// The first frame of a response body, polled before the head is handed on.
pub(crate) enum FirstFrame {
    Frame(Frame<Bytes>),
    End,
    Failed(Failure),
}

/// What becomes of the errors `E` of a service, and of its responses with a body `X`.
pub(crate) trait ResponseMode<E, X>: ErrorMode + BodyMode<Self::Inner> {
    /// The error of the exchange.
    type Error;
    /// How the response body is kept.
    type Inner: Body<Data = Bytes>;

    /// The failure that an error is, or the error that is passed on.
    fn failure(&self, error: E, calls: ClientCalls) -> Result<Failure, Self::Error>;

    /// What an error that is passed on says.
    fn error_outcome(error: &Self::Error) -> Outcome;

    /// The inner service never becomes ready: the error to be judged, or the one that is passed on.
    fn not_ready(error: E) -> Result<BoxError, Self::Error>;

    /// The failure of the call, as a response or an error.
    ///
    /// # Errors
    ///
    /// The error of the exchange, where failures are errors.
    fn respond(
        &self,
        notes: &mut Self::Notes,
        failure: Failure,
        after: Option<Duration>,
    ) -> Result<Response<Bytes>, Self::Error> {
        Ok(self.local_response(notes, &failure, after))
    }

    /// Whether nothing about a head could be wrong, as far as that is seen immediately.
    fn is_ordinary(response: &Response<X>) -> bool;

    /// Checks a head that is not [plain](Self::is_plain): what it failed of.
    fn check(
        &self,
        notes: &Self::Notes,
        response: &mut Response<X>,
        calls: ClientCalls,
        known_as: Option<ClientCall>,
    ) -> Option<Failure>;

    /// Whether the head waits for the first frame of its body.
    fn waits_for_first_frame(&self, notes: &Self::Notes, response: &Response<X>) -> bool;

    /// How long a head waits for the first frame of its body.
    fn first_frame_timeout(&self) -> Duration;

    /// Polls the body of a head that was not handed on yet.
    fn poll_first_frame(body: &mut X, version: Version, cx: &mut Context<'_>) -> Poll<FirstFrame>;

    /// Takes the body of a response that is handed on.
    fn inner(body: X) -> Self::Inner;
}

/// What becomes of a response body while it is read.
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

/// What a component holds of an admitted call.
pub(crate) type PermitOf<C> = <C as Component>::Permit;
/// What a timeout policy remembers of an attempt.
pub(crate) type TimeoutState<P> = <<P as Spec>::Timeouts as TimeoutPolicy>::State;
/// What is noted of a request.
pub(crate) type NotesOf<P> = <<P as Spec>::Errors as ErrorMode>::Notes;
/// The error of a response body.
pub(crate) type BodyErrorOf<P> = <<P as Spec>::Errors as ErrorMode>::BodyError;
/// The request body that the inner service gets.
pub(crate) type RequestBodyOf<P, B> = <<P as Spec>::Requests as RequestMode<B>>::Body;
/// What one call keeps for further attempts.
pub(crate) type RetryStateOf<P, B> = <<P as Spec>::Requests as RequestMode<B>>::RetryState;

impl<C: Component> Component for Option<C> {
    type Permit = Option<C::Permit>;

    const REJECTS_EARLY: bool = C::REJECTS_EARLY;

    fn reject_early(&self) -> Option<(Instant, Rejection)> {
        self.as_ref()?.reject_early()
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

    #[inline]
    fn on_response(&self, permit: &mut Self::Permit, call: &CallContext, outcome: &Outcome) {
        if let (Some(component), Some(permit)) = (self, permit) {
            component.on_response(permit, call, outcome);
        }
    }

    fn on_upgrade(&self, permit: &mut Self::Permit, tunnel: &super::UpgradeGuard) {
        if let (Some(component), Some(permit)) = (self, permit) {
            component.on_upgrade(permit, tunnel);
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
