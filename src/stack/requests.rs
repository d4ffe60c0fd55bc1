//! What a stack does with requests: keeps them for another attempt, and tracks their upload.

use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use tokio::time::Instant;

use crate::body::{ReplayBody, TrackedUpload, UploadCounters};
use crate::cause::{Failure, RetryStop};
use crate::exchange::CallContext;
use crate::exchange::{NextStep, RequestMode};
use crate::retry::{self, RetryLayer, RetryState, StartedState};

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The request body that the service inside an [`Upstream`](super::Upstream) gets.
///
/// It is kept while it is sent, so that it can be sent again, and its progress is tracked, so that a slow client is not
/// taken for a slow upstream. Where the stack is built without either, it passes as it is.
pub type RequestBody<B> = TrackedUpload<ReplayBody<B>>;

/// Whether requests are repeated, and whether their bodies are tracked.
#[derive(Clone, Debug)]
pub(super) struct Requests {
    pub(super) retry: Option<RetryLayer>,
    pub(super) tracks_uploads: bool,
}

impl Requests {
    fn track<B: Body<Data = Bytes, Error: Into<BoxError>>>(
        &self,
        body: ReplayBody<B>,
        now: Instant,
        upload: &mut Option<Arc<UploadCounters>>,
    ) -> RequestBody<B> {
        if !self.tracks_uploads {
            return TrackedUpload::untracked(body);
        }
        let body = TrackedUpload::new(body, now);
        *upload = body.counters();
        body
    }

    fn settings(&self) -> Option<&retry::Settings> {
        self.retry.as_ref().map(RetryLayer::settings)
    }
}

impl<B: Body<Data = Bytes, Error: Into<BoxError>>> RequestMode<B> for Requests {
    type Body = RequestBody<B>;
    type Started = StartedState;
    type RetryState = RetryState<B>;
    type Replay = ReplayBody<B>;

    #[inline]
    fn begin(&self, request: &Request<B>, call: &CallContext, once: bool) -> StartedState {
        match &self.retry {
            Some(retry) if !once => retry::begin_at(retry.settings(), request, call.now, call.deadline),
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
    ) -> (RetryState<B>, RequestBody<B>) {
        let cap = self.settings().map_or(0, |settings| settings.body_cap);
        let (retry_state, body) = started.with_body(cap, body);
        (retry_state, self.track(body, now, upload))
    }

    #[inline]
    fn may_repeat(&self, retry_state: &RetryState<B>) -> bool {
        retry_state.may_repeat()
    }

    #[inline]
    fn is_final<R>(&self, retry_state: &RetryState<B>, response: &Response<R>) -> bool {
        self.retry.is_none() || retry_state.is_final(response)
    }

    #[inline]
    fn on_success<R>(&self, retry_state: &mut RetryState<B>, response: &mut Response<R>) {
        if let Some(retry) = &self.retry {
            retry_state.within_deadline(retry.settings());
            retry_state.on_success(retry.settings(), response);
        }
    }

    fn on_response<R>(&self, retry_state: &mut RetryState<B>, response: &mut Response<R>) -> NextStep {
        let Some(retry) = &self.retry else { return NextStep::Respond };
        retry_state.on_response(retry.settings(), response)
    }

    fn on_failure(&self, retry_state: &mut RetryState<B>, failure: Failure) -> Result<Option<Instant>, Failure> {
        let Some(retry) = &self.retry else { return Err(failure) };
        retry_state.on_error(retry.settings(), failure)
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
    ) -> Option<(Request<RequestBody<B>>, u32)> {
        let settings = self.settings()?;
        retry_state.next_request(settings, self.track(body, Instant::now(), upload))
    }

    fn final_failure(&self, retry_state: &mut RetryState<B>, stop: RetryStop) -> Failure {
        retry_state.final_failure(stop)
    }

    #[inline]
    fn can_hedge(&self, retry_state: &RetryState<B>) -> bool {
        retry_state.can_hedge()
    }

    fn hedge_at(&self, retry_state: &RetryState<B>) -> Option<Instant> {
        retry_state.hedge_at(self.settings()?)
    }

    fn hedge_body(&self, retry_state: &mut RetryState<B>) -> Option<ReplayBody<B>> {
        retry_state.hedge(self.settings()?)
    }

    fn hedge_request(
        &self,
        retry_state: &mut RetryState<B>,
        body: ReplayBody<B>,
        upload: &mut Option<Arc<UploadCounters>>,
    ) -> Option<(Request<RequestBody<B>>, u32)> {
        let settings = self.settings()?;
        retry_state.concurrent_attempt(settings, self.track(body, Instant::now(), upload))
    }

    fn on_concurrent_failure(&self, retry_state: &mut RetryState<B>, failure: Option<Failure>) {
        retry_state.concurrent_failed(failure);
    }

    fn failure_of<R>(&self, retry_state: &RetryState<B>, response: &Response<R>) -> Option<Failure> {
        retry_state.record_of(response)
    }
}
