//! What one request's attempts share.

use http::{HeaderName, Method, Request, Response};
use tokio::time::Instant;

use super::call::Told;
use super::kept_head::KeptHead;
use super::settings::Settings;
use super::{Attempts, Decision, Protocol, Pushback, RetryOverride, Shown, Situation, Spare, Withdrawal, decide};
use crate::body::{Replay, ReplayBody};
use crate::cause::{self, BadGatewayCause, Detail, Failure, RetryStop};
use crate::deadline::Deadline;

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// A request and what became of it so far.
pub(super) struct Round<B> {
    method: Method,
    protocol: Protocol,
    exception: Option<RetryOverride>,
    deadline: Option<Deadline>,
    /// What another attempt would send; without it this one is the last.
    kept: Option<Kept<B>>,
    /// Made by the first failure.
    past: Option<Box<Past>>,
}

/// A copy of a request.
struct Kept<B> {
    head: Box<KeptHead>,
    body: Replay<B>,
    keyed: bool,
}

#[derive(Default)]
struct Past {
    attempts: Attempts,
    last: Option<Failure>,
    token: Option<Withdrawal>,
}

/// What follows an attempt.
pub(super) enum Next {
    /// Nothing: this is the answer.
    Answer,
    /// Another attempt, not before this time.
    Again(Option<Instant>),
}

impl<B: http_body::Body<Data = bytes::Bytes>> Round<B> {
    /// Begins, and keeps a copy if another attempt is possible as seen from here.
    pub(super) fn begin(settings: &Settings, mut request: Request<B>, now: Instant) -> (Self, Request<ReplayBody<B>>) {
        settings.budget.begin(now);
        let exception = request.extensions().get::<RetryOverride>().copied();
        let mut round = Self {
            method: request.method().clone(),
            protocol: Protocol::of(request.method(), request.headers()),
            exception,
            deadline: settings.deadline(&mut request, now),
            kept: None,
            past: None,
        };
        if !settings.keeps(&request, exception) {
            return (round, request.map(ReplayBody::once));
        }
        let head = KeptHead::of(&request, &settings.carried);
        let keyed = request.headers().contains_key(IDEMPOTENCY_KEY);
        let (parts, body) = request.into_parts();
        let (first, body) = ReplayBody::new(body, settings.body_cap);
        round.kept = Some(Kept { head, body, keyed });
        (round, Request::from_parts(parts, first))
    }
}

impl<B> Round<B> {
    /// Looks at a response; what it shows of a failure decides.
    pub(super) fn response<R>(&mut self, settings: &Settings, response: &mut Response<R>) -> Next {
        let Some(shown) = Shown::of(response, self.protocol) else {
            self.succeeded(settings, response);
            return Next::Answer;
        };
        let pushback = Pushback::of(response.headers(), self.protocol, settings.wall());
        let record = record_of(shown);
        match self.decided(settings, shown, pushback) {
            Ok(next) => {
                self.failed(record);
                next
            }
            Err(stop) => {
                let told = matches!(shown, Shown::Failure(_) | Shown::Cause(_));
                if response.status().is_client_error() && !told {
                    self.succeeded(settings, response);
                } else if told || self.past.is_some() {
                    cause::attach(response, self.give_up(record, stop));
                }
                Next::Answer
            }
        }
    }

    /// Looks at an error that is a record.
    pub(super) fn error<E: Told>(&mut self, settings: &Settings, error: E) -> Result<Next, E> {
        match self.decided(settings, Shown::Failure(error.record()), None) {
            Ok(next) => {
                self.failed(error.record().clone());
                Ok(next)
            }
            Err(stop) => Err(error.amend(|record| self.give_up(record, stop))),
        }
    }

    fn decided(
        &mut self,
        settings: &Settings,
        shown: Shown<'_>,
        pushback: Option<Pushback>,
    ) -> Result<Next, RetryStop> {
        let now = Instant::now();
        let spare = match &self.kept {
            Some(kept) if kept.body.is_possible() => Spare::Kept,
            _ => Spare::Gone,
        };
        let situation = Situation {
            keyed: self.kept.as_ref().is_some_and(|kept| kept.keyed),
            spare,
            attempt: u8::try_from(self.attempt()).unwrap_or(u8::MAX),
            met_stale: self.past.as_ref().is_some_and(|past| past.attempts.met_stale()),
            remaining: self.deadline.map(|deadline| deadline.remaining(now)),
            median: settings.median.as_ref().and_then(|median| median.0(now)),
            pushback,
            exception: self.exception,
            ..Situation::new(shown, &self.method)
        };
        let mut token = None;
        let decision = decide(&settings.policy, &situation, settings.random(), || {
            token = settings.budget.withdraw(now);
            token.is_some()
        });
        match decision {
            Decision::Stop(stop) => Err(stop),
            Decision::Retry { after, .. } => {
                self.past.get_or_insert_default().token = token;
                Ok(Next::Again((!after.is_zero()).then(|| now + after)))
            }
        }
    }

    fn succeeded<R>(&mut self, settings: &Settings, response: &mut Response<R>) {
        settings.budget.succeed();
        if let Some(past) = self.past.take() {
            response.extensions_mut().insert(past.attempts);
        }
    }

    fn failed(&mut self, record: Failure) {
        let past = self.past.get_or_insert_default();
        // the failure has a line of its own, as nobody further out will see it
        tracing::info!(
            target: "tower_upstream",
            method = self.method.as_str(),
            error.type = record.cause().as_str(),
            class = record.cause().proxy_status_error(),
            phase = record.phase().as_str(),
            http.request.resend_count = past.attempts.count(),
            upstream = record.upstream(),
            "the request is sent again"
        );
        past.attempts.failed(record.clone());
        past.last = Some(record);
    }

    /// The last record, with those before it and why there is no further attempt.
    fn give_up(&mut self, record: Failure, stop: RetryStop) -> Failure {
        match self.past.take() {
            // an inner layer has told it all
            None if record.retry_stop().is_some() => record,
            past => past.map(|past| past.attempts).unwrap_or_default().give_up(record, stop),
        }
    }

    /// Which attempt is under way, from 1.
    pub(super) fn attempt(&self) -> u32 {
        self.past.as_ref().map_or(1, |past| past.attempts.count())
    }

    /// The kept body's right to be sent again.
    pub(super) fn body(&self) -> Option<&Replay<B>> {
        self.kept.as_ref().map(|kept| &kept.body)
    }

    /// The request once more; its token is spent.
    pub(super) fn again<T>(&mut self, settings: &Settings, body: T) -> Option<Request<T>> {
        let mut request = self.kept.as_ref()?.head.request(body);
        settings.count(&mut request, self.attempt());
        if let Some(deadline) = self.deadline {
            // what is left for this attempt, for the limits inside
            request.extensions_mut().insert(deadline);
        }
        if let Some(token) = self.past.as_mut().and_then(|past| past.token.take()) {
            token.sent();
        }
        Some(request)
    }

    /// The failure to tell where another attempt was decided and turned out to be impossible.
    pub(super) fn impossible(&mut self) -> Failure {
        let mut past = self.past.take().unwrap_or_default();
        let last = past.last.take().unwrap_or_else(|| Failure::new(BadGatewayCause::GatewayInternal));
        last.into_builder()
            .attempts(past.attempts.count().saturating_sub(1))
            .retry_stop(RetryStop::NotReplayable)
            .build()
    }
}

impl<B> Drop for Round<B> {
    fn drop(&mut self) {
        if let Some(kept) = self.kept.take() {
            kept.head.shelve();
        }
    }
}

/// What is known of a failure that may have no record yet.
fn record_of(shown: Shown<'_>) -> Failure {
    match shown {
        Shown::Failure(failure) => failure.clone(),
        Shown::Cause(cause) => Failure::new(cause),
        Shown::Answer(status) => {
            Failure::builder(BadGatewayCause::UpstreamStatus).detail(Detail::Status(status)).build()
        }
        _ => Failure::builder(BadGatewayCause::UpstreamStatus).detail(Detail::Text("grpc-status")).build(),
    }
}
