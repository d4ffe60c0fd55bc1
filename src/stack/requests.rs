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
use crate::retry::{self, Begun, Next, RetryLayer, Round};

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
    type Started = Begun;
    type Round = Round<B>;
    type Replay = ReplayBody<B>;

    #[inline]
    fn begin(&self, request: &Request<B>, call: &CallContext, once: bool) -> Begun {
        match &self.retry {
            Some(retry) if !once => retry::begin_at(retry.settings(), request, call.now, call.deadline),
            _ => Begun::once(request),
        }
    }

    #[inline]
    fn wrap(
        &self,
        started: Begun,
        body: B,
        now: Instant,
        upload: &mut Option<Arc<UploadCounters>>,
    ) -> (Round<B>, RequestBody<B>) {
        let cap = self.settings().map_or(0, |settings| settings.body_cap);
        let (round, body) = started.with(cap, body);
        (round, self.track(body, now, upload))
    }

    #[inline]
    fn may_repeat(&self, round: &Round<B>) -> bool {
        round.may_repeat()
    }

    #[inline]
    fn passes<R>(&self, round: &Round<B>, response: &Response<R>) -> bool {
        self.retry.is_none() || round.passes(response)
    }

    #[inline]
    fn on_success<R>(&self, round: &mut Round<B>, response: &mut Response<R>) {
        if let Some(retry) = &self.retry {
            round.in_time(retry.settings());
            round.succeeded(retry.settings(), response);
        }
    }

    fn on_response<R>(&self, round: &mut Round<B>, response: &mut Response<R>) -> NextStep {
        let Some(retry) = &self.retry else { return NextStep::Respond };
        match round.response(retry.settings(), response) {
            Next::Answer => NextStep::Respond,
            Next::Again(at) => NextStep::Retry(at),
        }
    }

    fn on_failure(&self, round: &mut Round<B>, failure: Failure) -> Result<Option<Instant>, Failure> {
        let Some(retry) = &self.retry else { return Err(failure) };
        round.error(retry.settings(), failure)
    }

    fn body_was_read(&self, round: &Round<B>) -> bool {
        round.body_was_read()
    }

    fn poll_replay(&self, round: &Round<B>, cx: &mut Context<'_>) -> Poll<Option<ReplayBody<B>>> {
        round.body().map_or(Poll::Ready(None), |body| body.poll_replay(cx))
    }

    fn next_request(
        &self,
        round: &mut Round<B>,
        body: ReplayBody<B>,
        upload: &mut Option<Arc<UploadCounters>>,
    ) -> Option<(Request<RequestBody<B>>, u32)> {
        let settings = self.settings()?;
        round.again(settings, self.track(body, Instant::now(), upload))
    }

    fn give_up(&self, round: &mut Round<B>, stop: RetryStop) -> Failure {
        round.ended(stop)
    }

    #[inline]
    fn hedges(&self, round: &Round<B>) -> bool {
        round.hedges()
    }

    fn hedge_at(&self, round: &Round<B>) -> Option<Instant> {
        round.due(self.settings()?)
    }

    fn hedge_body(&self, round: &mut Round<B>) -> Option<ReplayBody<B>> {
        round.hedge(self.settings()?)
    }

    fn hedge_request(
        &self,
        round: &mut Round<B>,
        body: ReplayBody<B>,
        upload: &mut Option<Arc<UploadCounters>>,
    ) -> Option<(Request<RequestBody<B>>, u32)> {
        let settings = self.settings()?;
        round.beside(settings, self.track(body, Instant::now(), upload))
    }

    fn on_concurrent_failure(&self, round: &mut Round<B>, failure: Option<Failure>) {
        round.concurrent_failed(failure);
    }

    fn record_of<R>(&self, round: &Round<B>, response: &Response<R>) -> Option<Failure> {
        round.record_of(response)
    }
}
