//! The future of a call with its retries.

use std::fmt;
use std::future::Future;
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::{Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::Response;
use http_body::Body;
use pin_project_lite::pin_project;
use tokio::time::{Instant, Sleep, sleep, sleep_until};

use super::call::{Told, Way};
use super::round::{Next, Round};
use super::second::Second;
use super::settings::Settings;
use crate::body::ReplayBody;
use crate::cause::{self, ClientCall, ClientCalls, Failure};
use crate::engine::{Abandon, Held, leave};
use crate::exchange::{AttemptSpan, drain};

/// How long an attempt that has failed may keep the body: a connection stuck in a write gives it back only when it ends.
const GIVEN_BACK: Duration = Duration::from_secs(1);

/// What the calls of one service share.
pub(crate) struct Core<S> {
    pub(crate) settings: Settings,
    /// Cloned when a retry happens, never before.
    pub(super) template: Mutex<S>,
}

impl<S> Core<S> {
    pub(crate) fn new(settings: Settings, template: S) -> Self {
        Self { settings, template: Mutex::new(template) }
    }
}

impl<S: Clone> Core<S> {
    pub(super) fn service(&self) -> S {
        self.template.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

pin_project! {
    /// The future of [`Retry`](super::Retry).
    #[project = Projection]
    #[must_use = "futures do nothing unless polled"]
    pub struct RetryFuture<S, B, W: Way<S, ReplayBody<B>>> {
        #[pin]
        state: State<W::Future, S, B>,
        core: Held<Core<S>>,
        round: Round<B>,
        span: AttemptSpan,
        // beside the first attempt, once that is pending
        second: Option<Pin<Box<Second<W::Future, S, B>>>>,
        // of the attempt that was made first, or alone
        calls: ClientCalls,
        // where that is a later one: how layers further out know this call
        first: Option<ClientCall>,
        way: PhantomData<fn() -> W>,
    }
}

pin_project! {
    // what is not an attempt is boxed: the future is moved with each call, and few calls fail
    #[project = StateProjection]
    enum State<F, S, B> {
        Attempt { #[pin] call: F },
        Pause { timer: Pin<Box<Sleep>> },
        // the attempt before may still have the body
        Body { limit: Option<Pin<Box<Sleep>>> },
        Ready { service: Box<S>, body: Box<Option<ReplayBody<B>>>, limit: Option<Pin<Box<Sleep>>> },
        // the first attempt has failed, the second one is under way
        Second,
        Over,
    }
}

impl<S, B, W: Way<S, ReplayBody<B>>> RetryFuture<S, B, W> {
    #[inline(always)]
    pub(super) fn new(
        call: W::Future,
        core: Held<Core<S>>,
        round: Round<B>,
        span: AttemptSpan,
        calls: ClientCalls,
    ) -> Self {
        let state = State::Attempt { call };
        Self { state, core, round, span, second: None, calls, first: None, way: PhantomData }
    }
}

fn next<F, S, B>(at: Option<Instant>) -> State<F, S, B> {
    match at {
        Some(at) => State::Pause { timer: Box::pin(sleep_until(at)) },
        None => State::Body { limit: None },
    }
}

pub(super) type Answered<S, B, W> =
    Result<Response<<W as Way<S, ReplayBody<B>>>::Body>, <W as Way<S, ReplayBody<B>>>::Error>;

impl<S, B, W> Future for RetryFuture<S, B, W>
where
    S: Clone,
    W: Way<S, ReplayBody<B>>,
    W::Error: Told,
    W::Body: Body<Data = Bytes> + Default,
    B: Body<Data = Bytes>,
{
    type Output = Answered<S, B, W>;

    #[inline(always)]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        if let (StateProjection::Attempt { call }, None) = (this.state.as_mut().project(), &this.second) {
            let entered = this.span.enter();
            let mut polled = call.poll(cx);
            drop(entered);
            // by reference: the answer is moved once
            match &mut polled {
                Poll::Ready(Ok(response)) if this.round.passes(response) => {
                    this.span.on_response(response);
                    this.round.in_time(&this.core.settings);
                    this.round.succeeded(&this.core.settings, response);
                    return polled;
                }
                Poll::Ready(_) => return this.first_ended(polled, cx),
                Poll::Pending if !this.round.hedges() => return Poll::Pending,
                Poll::Pending => *this.second = Some(Box::pin(Second::beside(this.round, this.core))),
            }
        }
        this.go_on(cx)
    }
}

impl<S, B, W> Projection<'_, S, B, W>
where
    S: Clone,
    W: Way<S, ReplayBody<B>>,
    W::Error: Told,
    W::Body: Body<Data = Bytes> + Default,
    B: Body<Data = Bytes>,
{
    /// The first attempt may have failed.
    #[cold]
    #[inline(never)]
    fn first_ended(mut self, polled: Poll<Answered<S, B, W>>, cx: &mut Context<'_>) -> Poll<Answered<S, B, W>> {
        let result = own(ready!(polled), *self.calls, *self.first, self.round.body_was_read());
        match self.judged(result, cx) {
            Some(answer) => Poll::Ready(answer),
            None => self.go_on(cx),
        }
    }

    /// All that is not the plain success of a first attempt.
    fn go_on(mut self, cx: &mut Context<'_>) -> Poll<Answered<S, B, W>> {
        let known = self.first.or(self.calls.claim());
        loop {
            let next = match self.state.as_mut().project() {
                StateProjection::Attempt { call } => {
                    let entered = self.span.enter();
                    let polled = call.poll(cx);
                    drop(entered);
                    if let Poll::Ready(result) = polled {
                        let result = own(result, *self.calls, *self.first, self.round.body_was_read());
                        match self.attempt_ended(result, cx) {
                            Some(answer) => return Poll::Ready(answer),
                            None => continue,
                        }
                    }
                    if self.second.is_none() && self.round.hedges() {
                        *self.second = Some(Box::pin(Second::beside(self.round, self.core)));
                    }
                    let Some(second) = self.second else { return Poll::Pending };
                    let Some(result) = ready!(second.as_mut().poll::<W>(cx, self.core, self.round, known)) else {
                        return Poll::Pending;
                    };
                    match self.second_ended(result, cx) {
                        Some(answer) => return Poll::Ready(answer),
                        None => return Poll::Pending,
                    }
                }
                StateProjection::Second => {
                    let result = match self.second {
                        Some(second) => ready!(second.as_mut().poll::<W>(cx, self.core, self.round, known)),
                        None => None,
                    };
                    *self.second = None;
                    match result.map(|result| self.judged(result, cx)) {
                        Some(Some(answer)) => return Poll::Ready(answer),
                        Some(None) => continue,
                        None => return Poll::Ready(Ok(refused(&self.round.impossible()))),
                    }
                }
                StateProjection::Pause { timer } => {
                    ready!(timer.as_mut().poll(cx));
                    State::Body { limit: None }
                }
                StateProjection::Body { limit } => {
                    let body = match self.round.body().map(|body| body.poll_replay(cx)) {
                        Some(Poll::Ready(body)) => body,
                        Some(Poll::Pending) => {
                            ready!(limit.get_or_insert_with(|| Box::pin(sleep(GIVEN_BACK))).as_mut().poll(cx));
                            None
                        }
                        None => None,
                    };
                    match body {
                        Some(body) => {
                            let (service, body) = (Box::new(self.core.service()), Box::new(Some(body)));
                            State::Ready { service, body, limit: None }
                        }
                        None => return Poll::Ready(Ok(refused(&self.round.impossible()))),
                    }
                }
                StateProjection::Ready { service, body, limit } => {
                    match ready!(ready_by(W::poll_ready(service, cx), self.round.deadline(), limit, cx)) {
                        Some(Ok(())) => {}
                        Some(Err(error)) => return Poll::Ready(Err(error)),
                        None => return Poll::Ready(Ok(refused(&self.round.too_late()))),
                    }
                    let body = body.take().unwrap_or_default();
                    match self.round.again(&self.core.settings, body) {
                        Some((request, resends)) => {
                            *self.span = AttemptSpan::open(&request, resends);
                            let entered = self.span.enter();
                            *self.first = self.first.or(self.calls.claim());
                            let calls = ClientCalls::begin();
                            let call = W::call(service, request);
                            *self.calls = calls.end();
                            drop(entered);
                            State::Attempt { call }
                        }
                        None => return Poll::Ready(Ok(refused(&self.round.impossible()))),
                    }
                }
                StateProjection::Over => panic!("a future is not polled after it was ready"),
            };
            self.state.set(next);
        }
    }

    /// The attempt that was sent first, or alone, has ended.
    fn attempt_ended(&mut self, result: Answered<S, B, W>, cx: &mut Context<'_>) -> Option<Answered<S, B, W>> {
        let second = self.second.as_ref().is_some_and(|second| second.is_under_way());
        if second && self.fails(&result) {
            ended(self.span, result.as_ref());
            self.one_failed(result, cx);
            self.state.set(State::Second);
            return None;
        }
        if !self.fails(&result) {
            self.round.in_time(&self.core.settings);
        }
        leave(Abandon::Outrun, || *self.second = None);
        self.judged(result, cx)
    }

    /// The second attempt has ended, while the first is still under way.
    fn second_ended(&mut self, result: Answered<S, B, W>, cx: &mut Context<'_>) -> Option<Answered<S, B, W>> {
        *self.second = None;
        if self.fails(&result) {
            self.one_failed(result, cx);
            return None;
        }
        leave(Abandon::Outrun, || self.state.set(State::Over));
        *self.span = AttemptSpan::default();
        self.judged(result, cx)
    }

    fn fails(&self, result: &Answered<S, B, W>) -> bool {
        !result.as_ref().is_ok_and(|response| self.round.passes(response))
    }

    fn one_failed(&mut self, result: Answered<S, B, W>, cx: &mut Context<'_>) {
        self.round.one_failed(&result);
        if let Ok(response) = result {
            drain(response, cx);
        }
    }

    /// The answer; `None` where another attempt follows.
    fn judged(&mut self, result: Answered<S, B, W>, cx: &mut Context<'_>) -> Option<Answered<S, B, W>> {
        ended(self.span, result.as_ref());
        let settings = &self.core.settings;
        let next = match result {
            Ok(mut response) => match self.round.response(settings, &mut response) {
                Next::Answer => return Some(Ok(response)),
                Next::Again(at) => {
                    drain(response, cx);
                    at
                }
            },
            Err(error) => match self.round.error(settings, error) {
                Ok(Next::Again(at)) => at,
                Ok(Next::Answer) => None,
                Err(error) => return Some(Err(error)),
            },
        };
        *self.second = None;
        self.state.set(self::next(next));
        None
    }
}

/// What a later attempt's service said, or `None` at the deadline: the call has begun, and its time is not for that alone.
pub(super) fn ready_by<T>(
    said: Poll<T>,
    deadline: Option<Instant>,
    limit: &mut Option<Pin<Box<Sleep>>>,
    cx: &mut Context<'_>,
) -> Poll<Option<T>> {
    match (said, deadline) {
        (Poll::Ready(said), _) => Poll::Ready(Some(said)),
        (Poll::Pending, None) => Poll::Pending,
        (Poll::Pending, Some(deadline)) => {
            let limit = limit.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
            limit.as_mut().poll(cx).map(|()| None)
        }
    }
}

/// Tells a span how its attempt ended.
pub(super) fn ended<R, E: Told>(span: &AttemptSpan, result: Result<&Response<R>, &E>) {
    match result {
        Ok(response) => span.on_response(response),
        Err(error) => span.on_failure(error.record()),
    }
}

/// The result of an attempt, with a record that counts for it, and by which layers further out know the call.
#[cold]
pub(super) fn own<R, E: Told>(
    result: Result<Response<R>, E>,
    calls: ClientCalls,
    first: Option<ClientCall>,
    read: bool,
) -> Result<Response<R>, E> {
    let of_this = |failure: Failure| failure.about(calls).where_body_was_read(read).known_as(first);
    match result {
        Ok(mut response) => {
            if let Some(failure) = Failure::of(&response).cloned() {
                response.extensions_mut().insert(of_this(failure));
            }
            Ok(response)
        }
        Err(error) => Err(error.amend(of_this)),
    }
}

/// The answer to a failure whose own answer was dropped already.
fn refused<R: Default>(failure: &crate::cause::Failure) -> Response<R> {
    let mut answer = cause::local_response(failure, failure.status()).map(|_| R::default());
    answer.headers_mut().remove(http::header::CONTENT_TYPE);
    answer.extensions_mut().insert(cause::LocalResponse);
    answer
}

impl<S, B, W: Way<S, ReplayBody<B>>> fmt::Debug for RetryFuture<S, B, W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RetryFuture").finish_non_exhaustive()
    }
}
