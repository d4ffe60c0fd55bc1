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
use tokio::time::{Sleep, sleep, sleep_until};

use super::call::Way;
use super::round::{Next, Round};
use super::settings::Settings;
use crate::body::ReplayBody;
use crate::cause;
use crate::engine::Held;

/// A failed answer's body is read up to here, if it is there already: its connection can then be used again.
const DRAINED: usize = 16 * 1024;

/// How long an attempt that has failed may keep the body: a connection stuck in a write gives it back only when it ends.
const GIVEN_BACK: Duration = Duration::from_secs(1);

/// What the calls of one service share.
pub(super) struct Core<S> {
    pub(super) settings: Settings,
    /// Cloned when a retry happens, never before.
    pub(super) template: Mutex<S>,
}

impl<S: Clone> Core<S> {
    fn service(&self) -> S {
        self.template.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

pin_project! {
    /// The future of [`Retry`](super::Retry).
    #[must_use = "futures do nothing unless polled"]
    pub struct RetryFuture<S, B, W: Way<S, ReplayBody<B>>> {
        #[pin]
        state: State<W::Future, S, B>,
        core: Held<Core<S>>,
        round: Round<B>,
        way: PhantomData<fn() -> W>,
    }
}

pin_project! {
    #[project = StateProjection]
    enum State<F, S, B> {
        Attempt { #[pin] call: F },
        Pause { #[pin] timer: Sleep },
        // the attempt before may still have the body
        Body { #[pin] limit: Option<Sleep> },
        Ready { service: Box<S>, body: Option<ReplayBody<B>> },
    }
}

impl<S, B, W: Way<S, ReplayBody<B>>> RetryFuture<S, B, W> {
    #[inline]
    pub(super) fn new(call: W::Future, core: Held<Core<S>>, round: Round<B>) -> Self {
        Self { state: State::Attempt { call }, core, round, way: PhantomData }
    }
}

impl<S, B, W> Future for RetryFuture<S, B, W>
where
    S: Clone,
    W: Way<S, ReplayBody<B>>,
    W::Body: Body<Data = Bytes> + Default,
    B: Body<Data = Bytes>,
{
    type Output = Result<Response<W::Body>, W::Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        let settings = &this.core.settings;
        loop {
            let next = match this.state.as_mut().project() {
                StateProjection::Attempt { call } => {
                    let next = match ready!(call.poll(cx)) {
                        Ok(mut response) => match this.round.response(settings, &mut response) {
                            Next::Answer => return Poll::Ready(Ok(response)),
                            Next::Again(at) => {
                                drain(response, cx);
                                at
                            }
                        },
                        Err(error) => match this.round.error(settings, error)? {
                            Next::Again(at) => at,
                            Next::Answer => None,
                        },
                    };
                    match next {
                        Some(at) => State::Pause { timer: sleep_until(at) },
                        None => State::Body { limit: None },
                    }
                }
                StateProjection::Pause { timer } => {
                    ready!(timer.poll(cx));
                    State::Body { limit: None }
                }
                StateProjection::Body { mut limit } => {
                    let body = match this.round.body().map(|body| body.poll_again(cx)) {
                        Some(Poll::Ready(body)) => body,
                        Some(Poll::Pending) => {
                            if limit.is_none() {
                                limit.set(Some(sleep(GIVEN_BACK)));
                            }
                            if let Some(limit) = limit.as_pin_mut() {
                                ready!(limit.poll(cx));
                            }
                            None
                        }
                        None => None,
                    };
                    match body {
                        Some(body) => State::Ready { service: Box::new(this.core.service()), body: Some(body) },
                        None => return Poll::Ready(Ok(refused(&this.round.impossible()))),
                    }
                }
                StateProjection::Ready { service, body } => {
                    if let Err(error) = ready!(W::poll_ready(service, cx)) {
                        return Poll::Ready(Err(error));
                    }
                    let body = body.take().unwrap_or_default();
                    match this.round.again(settings, body) {
                        Some(request) => State::Attempt { call: W::call(service, request) },
                        None => return Poll::Ready(Ok(refused(&this.round.impossible()))),
                    }
                }
            };
            this.state.set(next);
        }
    }
}

/// The answer to a failure whose own answer was dropped already.
fn refused<R: Default>(failure: &crate::cause::Failure) -> Response<R> {
    let mut answer = cause::local_answer(failure, failure.status()).map(|_| R::default());
    answer.headers_mut().remove(http::header::CONTENT_TYPE);
    answer.extensions_mut().insert(cause::LocalAnswer);
    answer
}

/// Reads what is there of a body that nobody wants.
fn drain<R: Body<Data = Bytes>>(response: Response<R>, cx: &mut Context<'_>) {
    let mut body = std::pin::pin!(response.into_body());
    let mut left = DRAINED;
    while let Poll::Ready(Some(Ok(frame))) = body.as_mut().poll_frame(cx) {
        let bytes = frame.data_ref().map_or(0, Bytes::len);
        if bytes > left {
            return;
        }
        left -= bytes;
    }
}

impl<S, B, W: Way<S, ReplayBody<B>>> fmt::Debug for RetryFuture<S, B, W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RetryFuture").finish_non_exhaustive()
    }
}
