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
        let (round, body) = started.with_body(cap, body);
        (round, self.track(body, now, upload))
    }

    #[inline]
    fn may_repeat(&self, round: &RetryState<B>) -> bool {
        round.may_repeat()
    }

    #[inline]
    fn is_final<R>(&self, round: &RetryState<B>, response: &Response<R>) -> bool {
        self.retry.is_none() || round.is_final(response)
    }

    #[inline]
    fn on_success<R>(&self, round: &mut RetryState<B>, response: &mut Response<R>) {
        if let Some(retry) = &self.retry {
            round.within_deadline(retry.settings());
            round.on_success(retry.settings(), response);
        }
    }

    fn on_response<R>(&self, round: &mut RetryState<B>, response: &mut Response<R>) -> NextStep {
        let Some(retry) = &self.retry else { return NextStep::Respond };
        round.on_response(retry.settings(), response)
    }

    fn on_failure(&self, round: &mut RetryState<B>, failure: Failure) -> Result<Option<Instant>, Failure> {
        let Some(retry) = &self.retry else { return Err(failure) };
        round.on_error(retry.settings(), failure)
    }

    fn body_was_read(&self, round: &RetryState<B>) -> bool {
        round.body_was_read()
    }

    fn poll_replay(&self, round: &RetryState<B>, cx: &mut Context<'_>) -> Poll<Option<ReplayBody<B>>> {
        round.body().map_or(Poll::Ready(None), |body| body.poll_replay(cx))
    }

    fn next_request(
        &self,
        round: &mut RetryState<B>,
        body: ReplayBody<B>,
        upload: &mut Option<Arc<UploadCounters>>,
    ) -> Option<(Request<RequestBody<B>>, u32)> {
        let settings = self.settings()?;
        round.next_request(settings, self.track(body, Instant::now(), upload))
    }

    fn final_failure(&self, round: &mut RetryState<B>, stop: RetryStop) -> Failure {
        round.final_failure(stop)
    }

    #[inline]
    fn can_hedge(&self, round: &RetryState<B>) -> bool {
        round.can_hedge()
    }

    fn hedge_at(&self, round: &RetryState<B>) -> Option<Instant> {
        round.hedge_at(self.settings()?)
    }

    fn hedge_body(&self, round: &mut RetryState<B>) -> Option<ReplayBody<B>> {
        round.hedge(self.settings()?)
    }

    fn hedge_request(
        &self,
        round: &mut RetryState<B>,
        body: ReplayBody<B>,
        upload: &mut Option<Arc<UploadCounters>>,
    ) -> Option<(Request<RequestBody<B>>, u32)> {
        let settings = self.settings()?;
        round.concurrent_attempt(settings, self.track(body, Instant::now(), upload))
    }

    fn on_concurrent_failure(&self, round: &mut RetryState<B>, failure: Option<Failure>) {
        round.concurrent_failed(failure);
    }

    fn failure_of<R>(&self, round: &RetryState<B>, response: &Response<R>) -> Option<Failure> {
        round.record_of(response)
    }
}
