//! The request mode, error mode and deadline handling of a retry layer.

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use tokio::time::Instant;

use super::has_failure::HasFailure;
use super::retry_state::{RetryState, StartedState, begin_at};
use super::settings::Settings;
use crate::body::{BoxError, ReplayBody, UploadCounters};
use crate::cause::{self, BadGatewayCause, ClientCall, ClientCalls, Failure, LocalResponse, RetryStop};
use crate::deadline::{Deadline, DeadlinePropagation};
use crate::exchange::{BodyMode, ErrorMode, NextStep, PassErrors, RequestMode, ResponseMode};
use crate::exchange::{CallContext, ChosenEndpoint, Expired, Outcome, TimeoutPolicy};

/// Makes the request body of an attempt from one that can be sent again.
pub(crate) trait WrapReplay<B>: Send + Sync + 'static {
    type Body;

    fn wrap(&self, body: ReplayBody<B>, now: Instant, upload: &mut Option<Arc<UploadCounters>>) -> Self::Body;
}

/// Keeps requests for another attempt.
#[derive(Clone, Debug)]
pub(crate) struct Resend<W> {
    /// `None`: requests are sent once.
    pub(crate) settings: Option<Settings>,
    pub(crate) wrap: W,
}

/// The inner service gets the [`ReplayBody`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Unwrapped;

impl<B> WrapReplay<B> for Unwrapped {
    type Body = ReplayBody<B>;

    #[inline]
    fn wrap(&self, body: ReplayBody<B>, _: Instant, _: &mut Option<Arc<UploadCounters>>) -> ReplayBody<B> {
        body
    }
}

impl<B: Body<Data = Bytes>, W: WrapReplay<B>> RequestMode<B> for Resend<W> {
    type Body = W::Body;
    type Started = StartedState;
    type RetryState = RetryState<B>;
    type Replay = ReplayBody<B>;

    #[inline]
    fn begin(&self, request: &Request<B>, call: &CallContext, once: bool) -> StartedState {
        match &self.settings {
            Some(settings) if !once => begin_at(settings, request, call),
            _ => StartedState::without_retry(request),
        }
    }

    #[inline]
    fn wrap(
        &self,
        started: StartedState,
        body: B,
        now: Instant,
        upload: &mut Option<Arc<UploadCounters>>,
    ) -> (RetryState<B>, W::Body) {
        let cap = self.settings.as_ref().map_or(0, |settings| settings.body_cap);
        let (retry_state, body) = started.with_body(cap, body);
        (retry_state, self.wrap.wrap(body, now, upload))
    }

    #[inline]
    fn may_repeat(&self, retry_state: &RetryState<B>) -> bool {
        retry_state.may_repeat()
    }

    #[inline]
    fn is_final<R>(&self, retry_state: &RetryState<B>, response: &Response<R>) -> bool {
        self.settings.is_none() || retry_state.is_final(response)
    }

    #[inline]
    fn on_success<R>(&self, retry_state: &mut RetryState<B>, response: &mut Response<R>) {
        if let Some(settings) = &self.settings {
            // an error response may come from a part that does no work
            if response.status().as_u16() < 400 {
                retry_state.within_deadline(settings);
            }
            retry_state.on_success(settings, response);
        }
    }

    fn on_response<R>(&self, retry_state: &mut RetryState<B>, response: &mut Response<R>) -> NextStep {
        let Some(settings) = &self.settings else { return NextStep::Respond };
        retry_state.on_response(settings, response)
    }

    fn on_failure(&self, retry_state: &mut RetryState<B>, failure: Failure) -> Result<Option<Instant>, Failure> {
        let Some(settings) = &self.settings else { return Err(failure) };
        retry_state.on_error(settings, failure)
    }

    fn on_tried(&self, retry_state: &mut RetryState<B>, endpoint: ChosenEndpoint) {
        retry_state.on_tried(endpoint);
    }

    fn body_was_read(&self, retry_state: &RetryState<B>) -> bool {
        retry_state.body_was_read()
    }

    fn poll_replay(&self, retry_state: &RetryState<B>, cx: &mut Context<'_>) -> Poll<Option<ReplayBody<B>>> {
        retry_state.body().map_or(Poll::Ready(None), |body| body.poll_replay(cx))
    }

    fn next_request(
        &self,
        retry_state: &mut RetryState<B>,
        body: ReplayBody<B>,
        upload: &mut Option<Arc<UploadCounters>>,
    ) -> Option<(Request<W::Body>, u32)> {
        retry_state.next_request(self.settings.as_ref()?, self.wrap.wrap(body, Instant::now(), upload))
    }

    fn final_failure(&self, retry_state: &mut RetryState<B>, stop: RetryStop) -> Failure {
        retry_state.final_failure(stop)
    }

    fn deadline(&self, retry_state: &RetryState<B>) -> Option<Instant> {
        retry_state.deadline()
    }

    #[inline]
    fn can_hedge(&self, retry_state: &RetryState<B>) -> bool {
        retry_state.can_hedge()
    }

    fn hedge_at(&self, retry_state: &RetryState<B>) -> Option<Instant> {
        retry_state.hedge_at(self.settings.as_ref()?)
    }

    fn hedge_body(&self, retry_state: &mut RetryState<B>) -> Option<ReplayBody<B>> {
        retry_state.hedge(self.settings.as_ref()?)
    }

    fn hedge_request(
        &self,
        retry_state: &mut RetryState<B>,
        body: ReplayBody<B>,
        upload: &mut Option<Arc<UploadCounters>>,
    ) -> Option<(Request<W::Body>, u32)> {
        retry_state.concurrent_attempt(self.settings.as_ref()?, self.wrap.wrap(body, Instant::now(), upload))
    }

    fn on_concurrent_failure(&self, retry_state: &mut RetryState<B>, failure: Option<Failure>) {
        let Some(settings) = &self.settings else { return };
        retry_state.concurrent_failed(settings, failure);
    }

    fn failure_of<R>(&self, retry_state: &RetryState<B>, response: &Response<R>) -> Option<Failure> {
        retry_state.record_of(response)
    }
}

/// The inner service's errors carry a [`Failure`]; the error of the last attempt is passed on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Recorded;

impl ErrorMode for Recorded {
    type Notes = ();
    type BodyError = BoxError;

    const FLUSHES: bool = false;
    const TRACKS_BODY: bool = false;
    const SWEEPS_SHORT: bool = false;

    fn classify_not_ready(&self, (): &(), error: BoxError, calls: ClientCalls) -> Failure {
        PassErrors.classify_not_ready(&(), error, calls)
    }

    /// Replaces a response that was discarded before: without a body text.
    fn local_response(&self, (): &mut (), failure: &Failure, _: Option<Duration>) -> Response<Bytes> {
        let mut response = cause::local_response(failure, failure.status(), None).map(|_| Bytes::new());
        response.headers_mut().remove(http::header::CONTENT_TYPE);
        response.extensions_mut().insert(LocalResponse);
        response
    }

    fn body_error(error: BoxError) -> (BoxError, BadGatewayCause, Option<Failure>) {
        PassErrors::body_error(error)
    }

    fn report_expired(&self, (): &mut (), _: Expired, failure: Failure) -> Failure {
        failure
    }
}

impl<E, X> ResponseMode<E, X> for Recorded
where
    E: HasFailure,
    X: Body<Data = Bytes>,
    X::Error: Into<BoxError>,
{
    type Error = E;
    type Inner = X;

    fn failure(&self, (): &(), error: E, calls: ClientCalls) -> Result<Failure, E> {
        Ok(error.into_failure().about(calls))
    }

    fn error_outcome(error: &E) -> Outcome {
        Outcome::error(error)
    }

    fn not_ready(error: E) -> Result<BoxError, E> {
        Err(error)
    }

    fn respond(&self, (): &mut (), failure: Failure, after: Option<Duration>) -> Result<Response<Bytes>, E> {
        match E::from_failure(failure) {
            Ok(error) => Err(error),
            Err(failure) => Ok(self.local_response(&mut (), &failure, after)),
        }
    }

    #[inline]
    fn is_ordinary(&self, response: &Response<X>) -> bool {
        response.extensions().is_empty()
    }

    fn check(
        &self,
        (): &(),
        response: &mut Response<X>,
        calls: ClientCalls,
        known_as: Option<ClientCall>,
    ) -> Option<Failure> {
        if let Some(failure) = Failure::of(response).cloned() {
            response.extensions_mut().insert(failure.about(calls).known_as(known_as));
        }
        None
    }

    #[inline]
    fn inner(body: X) -> X {
        body
    }
}

impl<Y> BodyMode<Y> for Recorded {}

/// Reads the client's deadline; the timeouts are those of an inner layer.
#[derive(Clone, Debug)]
pub(crate) struct RetryDeadlines(pub(super) Option<DeadlinePropagation>);

impl TimeoutPolicy for RetryDeadlines {
    type State = ();

    #[inline]
    fn on_request<B>(&self, call: &mut CallContext, request: &mut Request<B>) {
        call.deadline = Deadline::of(request.extensions());
        let Some(deadlines) = &self.0 else { return };
        let read = deadlines.extract(request.headers(), request.extensions(), call.now);
        let read = read.map(|deadline| deadline.minus_response_margin(call.now));
        call.deadline = Deadline::min(call.deadline, read);
        if let Some(deadline) = call.deadline {
            // for the timeouts of an inner layer
            request.extensions_mut().insert(deadline);
        }
    }

    fn on_later_attempt<B>(&self, call: &mut CallContext, request: &mut Request<B>) {
        call.deadline = Deadline::of(request.extensions());
    }
}
