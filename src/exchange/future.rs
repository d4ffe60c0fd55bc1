//! The one future: a call with all its attempts.

mod hedged;

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::header::RETRY_AFTER;
use http::{Request, Response, StatusCode};
use http_body::Body;
use pin_project_lite::pin_project;
use tokio::time::{Instant, sleep, sleep_until};

use super::active::{Active, Split};
use super::body::{BodyStage, ExchangeBody, MakeBody};
use super::hedge::HedgeFuture;
use super::next_attempt::{StartedAttempt, Template, begin_attempt, call_promised, poll_not_ready};
use super::spec::{
    BodyErrorOf, ErrorMode, ErrorOf, FirstFrame, NextStep, RequestBodyOf, RequestMode, ResponseMode, RetryStateOf, Spec,
};
use super::timer::{TimedPoll, poll_timed};
use super::{BoxError, CancelReason, Outcome, Ref, Rejection, ResponseSummary, drop_with_reason, set_retry_after};
use crate::body::WrapBody;
use crate::cause::{BadGatewayCause, Failure, RetryStop, is_local};

/// The body of a failed response is read up to this size, if it is available: its connection can then be reused.
const MAX_DRAIN: usize = 16 * 1024;

/// How long to wait for the request body of a failed attempt: a connection stuck in a write returns it only when it ends.
const RECLAIM_TIMEOUT: Duration = Duration::from_secs(1);

const POLLED_AGAIN: &str = "a future is not polled after it has returned";

type StateOf<S, B, P> = State<
    <S as tower_service::Service<Request<RequestBodyOf<P, B>>>>::Future,
    <S as WrapBody<RequestBodyOf<P, B>>>::Body,
    S,
    RequestBodyOf<P, B>,
>;
type HedgeOf<S, B, P> =
    HedgeFuture<<S as tower_service::Service<Request<RequestBodyOf<P, B>>>>::Future, S, RequestBodyOf<P, B>, P>;

pin_project! {
    /// The future of an exchange.
    #[project = Projection]
    #[must_use = "futures do nothing unless polled"]
    pub(crate) struct ExchangeFuture<S, B, P>
    where
        P: Spec,
        P::Requests: RequestMode<B>,
        S: WrapBody<RequestBodyOf<P, B>>,
    {
        // before the call: the inner future's hold on the upstream goes before the permits
        #[pin]
        state: StateOf<S, B, P>,
        hedge: Option<Pin<Box<HedgeOf<S, B, P>>>>,
        active: Active<P>,
        retry_state: Option<RetryStateOf<P, B>>,
        // if another attempt is possible
        template: Option<Ref<Template<S>>>,
    }
}

pin_project! {
    #[project = StateProjection]
    pub(crate) enum State<F, X, S, W> {
        // every attempt runs in this place
        Attempt { #[pin] call: F },
        // the head waits for the first frame of its body
        HoldHead { body: Option<X> },
        // the pause before another attempt
        Backoff,
        // the previous attempt may still have the request body
        ReclaimBody,
        // the inner service is not ready
        NotReady { waiting: Option<Box<(S, Request<W>)>> },
        // the inner service never becomes ready
        Failed { error: Option<Box<BoxError>> },
        // the call was rejected before an attempt
        Rejected { rejection: Option<Box<Rejection>> },
        // the first attempt has failed, the hedged one continues
        HedgeOnly,
        Done,
    }
}

impl<S, B, P> ExchangeFuture<S, B, P>
where
    P: Spec,
    P::Requests: RequestMode<B>,
    S: WrapBody<RequestBodyOf<P, B>>,
{
    #[inline]
    pub(super) fn new(
        state: StateOf<S, B, P>,
        active: Active<P>,
        retry_state: Option<RetryStateOf<P, B>>,
        template: Option<Ref<Template<S>>>,
    ) -> Self {
        Self { state, hedge: None, active, retry_state, template }
    }

    /// Why the call was rejected before its first attempt, until it is polled.
    pub(crate) fn rejection(&self) -> Option<&Rejection> {
        match &self.state {
            State::Rejected { rejection } => rejection.as_deref(),
            _ => None,
        }
    }
}

type BodyOf<P, E, X> = ExchangeBody<<<P as Spec>::Errors as ResponseMode<E, X>>::Inner, P>;
type OutputAs<T, P, E, X> = Result<Response<T>, ErrorOf<P, E, X>>;
type Output<P, E, X> = OutputAs<BodyOf<P, E, X>, P, E, X>;
/// The call's result, or `None` if the call continues.
type Step<P, E, X> = Poll<Option<Output<P, E, X>>>;

impl<S, B, P, E, X> ExchangeFuture<S, B, P>
where
    P: Spec,
    P::Requests: RequestMode<B>,
    P::Errors: ResponseMode<E, X>,
    S: WrapBody<RequestBodyOf<P, B>, Body = X, ServiceError = E>,
    S::Future: Future<Output = Result<Response<X>, E>>,
    X: Body<Data = Bytes>,
{
    /// Polls for a response with the body `T` of a middleware.
    ///
    /// The step that makes the driver's body also makes this one: moving a response once more costs 40 instructions (callgrind).
    #[inline]
    pub(crate) fn poll_as<T>(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<OutputAs<T, P, E, X>>
    where
        T: MakeBody<BodyOf<P, E, X>>,
    {
        let mut this = self.project();
        if let StateProjection::Attempt { call } = this.state.as_mut().project() {
            let entered = this.active.get().attempt.span.enter();
            let polled = call.poll(cx);
            drop(entered);
            match polled {
                Poll::Ready(Ok(mut response)) => {
                    if !this.is_ordinary(&response) {
                        return this.on_result_slow(Ok(response), cx).map(as_body);
                    }
                    this.clear_timer();
                    return match this.poll_first(&mut response, cx) {
                        Poll::Ready(Ok(stage)) if response.status().as_u16() < 400 => {
                            Poll::Ready(Ok(this.respond(response, stage)))
                        }
                        first => this.on_first_slow(response, first, cx).map(as_body),
                    };
                }
                Poll::Ready(Err(error)) => return this.on_result_slow(Err(error), cx).map(as_body),
                Poll::Pending => this.active.state().context.waited = true,
            }
            return this.poll_slow(true, cx).map(as_body);
        }
        this.poll_slow(false, cx).map(as_body)
    }
}

impl<S, B, P, E, X> Projection<'_, S, B, P>
where
    P: Spec,
    P::Requests: RequestMode<B>,
    P::Errors: ResponseMode<E, X>,
    S: WrapBody<RequestBodyOf<P, B>, Body = X, ServiceError = E>,
    S::Future: Future<Output = Result<Response<X>, E>>,
    X: Body<Data = Bytes>,
{
    /// A head without a sign of a failure, which no attempt follows.
    #[inline]
    fn is_ordinary(&self, response: &Response<X>) -> bool {
        let (Some(retry_state), None) = (&self.retry_state, &self.hedge) else { return false };
        let config = self.active.get().config();
        config.errors.is_ordinary(response) && config.requests.is_final(retry_state, response)
    }

    #[inline]
    fn clear_timer(&mut self) {
        let mut timer = self.active.timer();
        if timer.is_some() {
            timer.set(None);
        }
    }

    /// Polls for the body's first frame, if the head waits for it.
    #[inline]
    fn poll_first(
        &self,
        response: &mut Response<X>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<BodyStage<BodyErrorOf<P>>, Failure>> {
        let state = self.active.get();
        if !state.config().errors.waits_for_first_frame(&state.notes, response) {
            return Poll::Ready(Ok(BodyStage::Reading));
        }
        let version = response.version();
        P::Errors::poll_first_frame(response.body_mut(), version, cx).map(|first| match first {
            FirstFrame::Frame(frame) => Ok(BodyStage::after(frame)),
            FirstFrame::End => Ok(BodyStage::Done),
            FirstFrame::Failed(failure) => Err(failure),
        })
    }

    /// Everything but an ordinary response at the first poll.
    #[inline(never)]
    fn poll_slow(mut self, mut polled: bool, cx: &mut Context<'_>) -> Poll<Output<P, E, X>> {
        loop {
            if let Some(output) = ready!(self.step(polled, cx)) {
                return Poll::Ready(output);
            }
            polled = false;
        }
    }

    #[cold]
    #[inline(never)]
    fn on_result_slow(mut self, result: Result<Response<X>, E>, cx: &mut Context<'_>) -> Poll<Output<P, E, X>> {
        match ready!(self.on_result(result, cx)) {
            Some(output) => Poll::Ready(output),
            None => self.poll_slow(false, cx),
        }
    }

    #[cold]
    #[inline(never)]
    fn on_first_slow(
        mut self,
        response: Response<X>,
        first: Poll<Result<BodyStage<BodyErrorOf<P>>, Failure>>,
        cx: &mut Context<'_>,
    ) -> Poll<Output<P, E, X>> {
        match ready!(self.on_first(response, first, cx)) {
            Some(output) => Poll::Ready(output),
            None => self.poll_slow(false, cx),
        }
    }

    /// One step of the slow path; `polled`: the attempt was just found pending.
    fn step(&mut self, polled: bool, cx: &mut Context<'_>) -> Step<P, E, X> {
        match self.state.as_mut().project() {
            StateProjection::Attempt { mut call } => {
                let (timer, state) = self.active.parts();
                let calls = state.attempt.calls;
                let mut poll = |attempt: &super::active::AttemptState<P>, cx: &mut Context<'_>| {
                    let _entered = attempt.span.enter();
                    call.as_mut().poll(cx)
                };
                let again = if polled { Poll::Pending } else { poll(&state.attempt, cx) };
                let ended = match again {
                    Poll::Ready(result) => Poll::Ready(TimedPoll::Ready(result)),
                    Poll::Pending => {
                        let Split { config, context, attempt, .. } = state.split();
                        attempt.on_pending(config);
                        poll_timed(config, context, attempt, timer, calls, cx, poll)
                    }
                };
                match ended {
                    Poll::Ready(TimedPoll::Ready(result)) => self.on_result(result, cx),
                    Poll::Ready(TimedPoll::TimedOut(failure, now)) => self.on_timeout(failure, now),
                    Poll::Pending => self.poll_hedge(cx),
                }
            }
            StateProjection::HoldHead { body } => {
                let body = body.as_mut().expect(POLLED_AGAIN);
                let (timer, state) = self.active.parts();
                let version = state.head.as_ref().map(|head| head.version).unwrap_or_default();
                let first = P::Errors::poll_first_frame(body, version, cx);
                if first.is_pending() {
                    if let Some(timer) = timer.as_pin_mut() {
                        ready!(timer.poll(cx));
                    }
                }
                let StateProjection::HoldHead { body } = self.state.as_mut().project() else { return Poll::Pending };
                let body = body.take().expect(POLLED_AGAIN);
                let head = state.head.take().expect(POLLED_AGAIN);
                self.clear_timer();
                let read = match first {
                    Poll::Ready(FirstFrame::Frame(frame)) => BodyStage::after(frame),
                    Poll::Ready(FirstFrame::End) => BodyStage::Done,
                    Poll::Pending => BodyStage::Reading,
                    Poll::Ready(FirstFrame::Failed(failure)) => return self.on_failed(failure, None, cx),
                };
                self.retry_or_respond(Response::from_parts(head, body), read, cx)
            }
            StateProjection::Backoff => {
                if let Some(timer) = self.active.timer().as_pin_mut() {
                    ready!(timer.poll(cx));
                }
                self.active.timer().set(None);
                self.state.set(State::ReclaimBody);
                Poll::Ready(None)
            }
            StateProjection::ReclaimBody => self.reclaim_body(cx),
            StateProjection::NotReady { waiting } => {
                let (timer, state) = self.active.parts();
                let Split { config, context, attempt, .. } = state.split();
                let service = &mut waiting.as_mut().expect(POLLED_AGAIN).0;
                let deadline = self.retry_state.as_ref().and_then(|retry_state| config.requests.deadline(retry_state));
                match ready!(poll_not_ready(config, context, attempt, timer, deadline, service, cx)) {
                    TimedPoll::TimedOut(..) if !P::WAITS => {
                        let Some(retry_state) = self.retry_state.as_mut() else { panic!("{POLLED_AGAIN}") };
                        let failure = config.requests.final_failure(retry_state, RetryStop::Deadline);
                        Poll::Ready(Some(self.respond_failure(failure, None)))
                    }
                    TimedPoll::Ready(Ok(())) => {
                        let (mut service, request) = *waiting.take().expect(POLLED_AGAIN);
                        // the timer keeps running: the attempt began before its wait
                        let call = call_promised(attempt, &mut service, request);
                        context.waited = true;
                        self.state.set(State::Attempt { call });
                        Poll::Ready(None)
                    }
                    TimedPoll::Ready(Err(error)) => self.on_error(error, cx),
                    TimedPoll::TimedOut(failure, now) => self.on_timeout(failure, now),
                }
            }
            StateProjection::Failed { error } => {
                let error = *error.take().expect(POLLED_AGAIN);
                let state = self.active.get();
                let failure = state.config().errors.classify_not_ready(&state.notes, error, state.attempt.calls);
                self.on_failed(failure, None, cx)
            }
            StateProjection::Rejected { rejection } => {
                let (failure, after) = rejection.take().expect(POLLED_AGAIN).into_parts();
                Poll::Ready(Some(self.respond_failure(failure, after)))
            }
            StateProjection::HedgeOnly => self.poll_hedge(cx),
            StateProjection::Done => panic!("{POLLED_AGAIN}"),
        }
    }

    /// The attempt has ended.
    fn on_result(&mut self, result: Result<Response<X>, E>, cx: &mut Context<'_>) -> Step<P, E, X> {
        self.clear_timer();
        match result {
            Ok(response) => self.on_response(response, cx),
            Err(error) => self.on_error(error, cx),
        }
    }

    /// A head has come.
    fn on_response(&mut self, mut response: Response<X>, cx: &mut Context<'_>) -> Step<P, E, X> {
        if !self.active.get().config().errors.is_ordinary(&response) {
            if let Some(failure) = self.check(&mut response) {
                return self.on_failed(failure, local_retry_after(&response), cx);
            }
        }
        let first = self.poll_first(&mut response, cx);
        self.on_first(response, first, cx)
    }

    /// Returns the failure that a head shows, if any.
    fn check(&self, response: &mut Response<X>) -> Option<Failure> {
        let state = self.active.get();
        state.config().errors.check(&state.notes, response, state.attempt.calls, state.known_as)
    }

    /// The first frame of the body was polled.
    fn on_first(
        &mut self,
        response: Response<X>,
        first: Poll<Result<BodyStage<BodyErrorOf<P>>, Failure>>,
        cx: &mut Context<'_>,
    ) -> Step<P, E, X> {
        match first {
            Poll::Ready(Ok(stage)) => self.retry_or_respond(response, stage, cx),
            Poll::Ready(Err(failure)) => self.on_failed(failure, None, cx),
            Poll::Pending => {
                if self.is_final(&response) {
                    self.supersede_hedge();
                }
                let (mut timer, state) = self.active.parts();
                timer.set(Some(sleep(state.config().errors.first_frame_timeout())));
                state.context.waited = true;
                let (head, body) = response.into_parts();
                state.head = Some(head);
                self.state.set(State::HoldHead { body: Some(body) });
                Poll::Ready(None)
            }
        }
    }

    fn is_final(&self, response: &Response<X>) -> bool {
        self.retry_state
            .as_ref()
            .is_none_or(|retry_state| self.active.get().config().requests.is_final(retry_state, response))
    }

    /// Returns a head to the client, unless it shows a failure and another attempt follows.
    fn retry_or_respond(
        &mut self,
        mut response: Response<X>,
        stage: BodyStage<BodyErrorOf<P>>,
        cx: &mut Context<'_>,
    ) -> Step<P, E, X> {
        if self.is_final(&response) {
            self.supersede_hedge();
            return Poll::Ready(Some(Ok(self.respond(response, stage))));
        }
        let Split { config, context, attempt, .. } = self.active.state().split();
        if let (Some(retry_state), Some(failure)) = (self.retry_state.as_ref(), Failure::of(&response).cloned()) {
            let failure = failure.where_body_was_read(config.requests.body_was_read(retry_state));
            response.extensions_mut().insert(failure);
        }
        let outcome = Outcome::of(ResponseSummary::of(&response, attempt.context(context)), false);
        attempt.on_head(config, context, &response, &outcome);
        let Some(retry_state) = self.retry_state.as_mut() else {
            return Poll::Ready(Some(Ok(self.finish_annotated(response, stage, outcome))));
        };
        if let Some(endpoint) = attempt.endpoint {
            config.requests.on_tried(retry_state, endpoint);
        }
        if let Some(hedge) = self.hedge.as_mut().filter(|hedge| hedge.is_under_way()) {
            let record = config.requests.failure_of(retry_state, &response);
            if let Some(failure) = &record {
                hedge.as_mut().on_concurrent_failure(failure);
            }
            config.requests.on_concurrent_failure(retry_state, record);
            self.discard(response, &stage, &outcome, cx);
            self.state.set(State::HedgeOnly);
            return Poll::Ready(None);
        }
        if let NextStep::Retry(at) = config.requests.on_response(retry_state, &mut response) {
            self.discard(response, &stage, &outcome, cx);
            self.retry(at);
            return Poll::Ready(None);
        }
        self.supersede_hedge();
        let outcome = Outcome::of(ResponseSummary::of(&response, &self.active.get().context), false);
        Poll::Ready(Some(Ok(self.finish_annotated(response, stage, outcome))))
    }

    /// Returns a head that no attempt follows.
    #[inline]
    fn respond<T: MakeBody<BodyOf<P, E, X>>>(
        &mut self,
        mut response: Response<X>,
        stage: BodyStage<BodyErrorOf<P>>,
    ) -> Response<T> {
        let Split { config, context, attempt, .. } = self.active.state().split();
        let outcome = Outcome::of(ResponseSummary::of(&response, context), !context.waited);
        attempt.on_head(config, context, &response, &outcome);
        if let Some(retry_state) = self.retry_state.as_mut() {
            config.requests.on_success(retry_state, &mut response);
        }
        if response.status().as_u16() >= 400 {
            return self.finish_annotated(response, stage, outcome);
        }
        self.finish(response, stage, outcome)
    }

    /// Returns a response with a failure, of the upstream or of an inner layer.
    #[cold]
    #[inline(never)]
    fn finish_annotated<T: MakeBody<BodyOf<P, E, X>>>(
        &mut self,
        mut response: Response<X>,
        stage: BodyStage<BodyErrorOf<P>>,
        outcome: Outcome,
    ) -> Response<T> {
        let Split { config, context, notes, .. } = self.active.state().split();
        config.errors.annotate(notes, &mut response);
        // `annotate` has just given an error status of the upstream its cause
        let outcome = match outcome.cause() {
            Some(_) => outcome,
            None => Outcome::of(ResponseSummary::of(&response, context), !context.waited),
        };
        let Some(page) = config.errors.render_page(notes, &mut response) else {
            return self.finish(response, stage, outcome);
        };
        config.errors.finish_head(response.extensions_mut());
        self.active.state().on_response(&outcome);
        self.active.take().complete(&outcome);
        response.map(|_| T::make(ExchangeBody::from(page)))
    }

    #[inline]
    fn finish<T: MakeBody<BodyOf<P, E, X>>>(
        &mut self,
        mut response: Response<X>,
        stage: BodyStage<BodyErrorOf<P>>,
        outcome: Outcome,
    ) -> Response<T> {
        let mut active = self.active.take();
        let call = active.state();
        call.config().errors.finish_head(response.extensions_mut());
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            call.on_upgrade(&response);
        }
        call.on_response(&outcome);
        // an ended body holds nothing of the upstream, however slowly the client reads it
        let ended = !P::Errors::TRACKS_BODY || matches!(stage, BodyStage::Done) || response.body().is_end_stream();
        let active = if ended {
            active.complete(&outcome);
            None
        } else {
            call.responded = true;
            let mut summary = outcome.into_summary();
            if let (BodyStage::Trailers(trailers), Some(protocol)) = (&stage, call.context.protocol) {
                summary.add_fields(trailers, protocol);
            }
            call.body.begin(response.version(), summary);
            Some(active)
        };
        response.map(|body| T::make(ExchangeBody::new(P::Errors::inner(body), stage, active)))
    }

    /// The inner service returned its error.
    #[cold]
    fn on_error(&mut self, error: E, cx: &mut Context<'_>) -> Step<P, E, X> {
        self.clear_timer();
        let state = self.active.get();
        match state.config().errors.failure(&state.notes, error, state.attempt.calls) {
            Ok(failure) => self.on_failed(failure, None, cx),
            Err(error) => {
                let seen = P::Errors::error_outcome(&error);
                let Split { config, context, attempt, .. } = self.active.state().split();
                attempt.on_no_head(config, context, &seen);
                self.active.take().complete(&seen);
                Poll::Ready(Some(Err(error)))
            }
        }
    }

    /// The attempt has no head, or none that may be returned.
    #[cold]
    fn on_failed(&mut self, failure: Failure, after: Option<Duration>, cx: &mut Context<'_>) -> Step<P, E, X> {
        let _ = cx;
        let outcome = Outcome::failure(&failure);
        let Split { config, context, attempt, .. } = self.active.state().split();
        attempt.on_no_head(config, context, &outcome);
        attempt.complete(config, context, &outcome);
        self.decide(failure, after)
    }

    /// A timeout of the attempt has passed.
    #[cold]
    fn on_timeout(&mut self, failure: Failure, now: Instant) -> Step<P, E, X> {
        self.clear_timer();
        drop_with_reason(CancelReason::of(&failure), || self.state.set(State::Done));
        let Split { config, context, attempt, .. } = self.active.state().split();
        attempt.complete(config, context, &Outcome::failure(&failure).at(now));
        self.decide(failure, None)
    }

    /// The attempt has failed: another one follows, or the failure goes to the client.
    fn decide(&mut self, failure: Failure, after: Option<Duration>) -> Step<P, E, X> {
        let state = self.active.get();
        let requests = &state.config().requests;
        let mut failure = state.config().errors.complete_failure(failure);
        state.attempt.span.on_failure(&failure);
        let Some(retry_state) = self.retry_state.as_mut() else {
            return Poll::Ready(Some(self.respond_failure(failure, after)));
        };
        if let Some(endpoint) = state.attempt.endpoint {
            requests.on_tried(retry_state, endpoint);
        }
        if requests.may_repeat(retry_state) {
            failure = failure.where_body_was_read(requests.body_was_read(retry_state)).known_as(state.known_as);
        }
        if let Some(hedge) = self.hedge.as_mut().filter(|hedge| hedge.is_under_way()) {
            hedge.as_mut().on_concurrent_failure(&failure);
            requests.on_concurrent_failure(retry_state, Some(failure));
            self.state.set(State::HedgeOnly);
            return Poll::Ready(None);
        }
        match requests.on_failure(retry_state, failure) {
            Ok(at) => {
                self.retry(at);
                Poll::Ready(None)
            }
            Err(failure) => Poll::Ready(Some(self.respond_failure(failure, after))),
        }
    }

    /// Another attempt follows, not before `at`.
    fn retry(&mut self, at: Option<Instant>) {
        *self.hedge = None;
        // drops the previous attempt, which releases its connection and the request body
        self.state.set(if at.is_some() { State::Backoff } else { State::ReclaimBody });
        let (mut timer, state) = self.active.parts();
        timer.set(at.map(sleep_until));
        state.context.waited = true;
        state.known_as = state.known_as.or(state.attempt.calls.claim());
    }

    /// Takes the request body back, and begins the next attempt.
    fn reclaim_body(&mut self, cx: &mut Context<'_>) -> Step<P, E, X> {
        let (mut timer, state) = self.active.parts();
        let requests = &state.config().requests;
        let Some(retry_state) = self.retry_state.as_mut() else { panic!("{POLLED_AGAIN}") };
        let body = match requests.poll_replay(retry_state, cx) {
            Poll::Ready(body) => body,
            Poll::Pending => {
                if timer.is_none() {
                    timer.set(Some(sleep(RECLAIM_TIMEOUT)));
                }
                if let Some(timer) = timer.as_mut().as_pin_mut() {
                    ready!(timer.poll(cx));
                }
                None
            }
        };
        timer.set(None);
        let Some(template) = self.template else {
            let failure = requests.final_failure(retry_state, RetryStop::NotReplayable);
            return Poll::Ready(Some(self.respond_failure(failure, None)));
        };
        let Split { config, context, attempt, .. } = state.split();
        let next = body.and_then(|body| config.requests.next_request(retry_state, body, &mut attempt.upload));
        let Some((request, resends)) = next else {
            let failure = config.requests.final_failure(retry_state, RetryStop::NotReplayable);
            return Poll::Ready(Some(self.respond_failure(failure, None)));
        };
        match begin_attempt(config, context, attempt, template.service(), request, resends, cx) {
            StartedAttempt::Called(call) => self.state.set(State::Attempt { call }),
            StartedAttempt::NotReady(waiting) => self.state.set(State::NotReady { waiting: Some(waiting) }),
            StartedAttempt::Rejected(rejection) => {
                // the failure of the last attempt says more than that no further one was admitted
                let late = rejection.failure().cause() == BadGatewayCause::DeadlineExceeded;
                let stop = if late { RetryStop::Deadline } else { RetryStop::LocalRefusal };
                let failure = config.requests.final_failure(retry_state, stop);
                return Poll::Ready(Some(self.respond_failure(failure, rejection.into_parts().1)));
            }
            StartedAttempt::Failed(error) => return self.on_error(error, cx),
        }
        Poll::Ready(None)
    }

    /// Reads the response of an attempt that another follows, so that its connection can be reused.
    fn discard(
        &mut self,
        response: Response<X>,
        stage: &BodyStage<BodyErrorOf<P>>,
        outcome: &Outcome,
        cx: &mut Context<'_>,
    ) {
        let ended = matches!(stage, BodyStage::Done) || response.body().is_end_stream();
        let ended = ended || drain(response, cx);
        let Split { config, context, attempt, .. } = self.active.state().split();
        if ended {
            attempt.complete(config, context, outcome);
        } else {
            attempt.cancel(config, context, CancelReason::Dropped);
        }
    }

    /// Returns the failure to the client.
    #[cold]
    fn respond_failure(&mut self, failure: Failure, after: Option<Duration>) -> Output<P, E, X> {
        let outcome = Outcome::failure(&failure);
        self.active.state().on_response(&outcome);
        let Split { config, notes, .. } = self.active.state().split();
        let failure = config.errors.complete_failure(failure);
        let response = config.errors.respond(notes, failure, after);
        let response = response.map(|mut response| {
            set_retry_after(response.headers_mut(), after);
            if let Some(page) = config.errors.render_page(notes, &mut response) {
                *response.body_mut() = page;
            }
            config.errors.finish_head(response.extensions_mut());
            response.map(ExchangeBody::from)
        });
        self.active.take().complete(&outcome);
        response
    }
}

/// The result with the body of a middleware.
fn as_body<T: MakeBody<Y>, Y, E>(result: Result<Response<Y>, E>) -> Result<Response<T>, E> {
    result.map(|response| response.map(T::make))
}

/// The `Retry-After` of a local response.
fn local_retry_after<R>(response: &Response<R>) -> Option<Duration> {
    let after = response.headers().get(RETRY_AFTER).filter(|_| is_local(response.extensions()))?;
    Some(Duration::from_secs(after.to_str().ok()?.parse().ok()?))
}

/// Reads the available part of a body; returns whether that was all of it.
fn drain<R: Body<Data = Bytes>>(response: Response<R>, cx: &mut Context<'_>) -> bool {
    let mut body = std::pin::pin!(response.into_body());
    let mut left = MAX_DRAIN;
    loop {
        match body.as_mut().poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                let bytes = frame.data_ref().map_or(0, Bytes::len);
                if bytes > left {
                    return false;
                }
                left -= bytes;
            }
            Poll::Ready(None) => return true,
            Poll::Ready(Some(Err(_))) | Poll::Pending => return false,
        }
    }
}

impl<S, B, P> fmt::Debug for ExchangeFuture<S, B, P>
where
    P: Spec,
    P::Requests: RequestMode<B>,
    S: WrapBody<RequestBodyOf<P, B>>,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ExchangeFuture").finish_non_exhaustive()
    }
}
