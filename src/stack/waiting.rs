//! Waiting for a service that is not ready: in the call's own future, under its limits.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use http::{Request, Response};
use pin_project_lite::pin_project;
use tower_service::Service;

use crate::cause::{ClientCall, Phase};
use crate::engine::{Sight, tell};

/// A service that is always ready: its calls wait for the one inside.
///
/// For attempts whose caller has no limit on the time that it takes until they can begin. Calls of hyper's `Service` pass.
#[derive(Clone, Debug)]
pub struct Waiting<S> {
    inner: S,
}

impl<S> Waiting<S> {
    pub(super) fn new(inner: S) -> Self {
        Self { inner }
    }
}

/// Says what a call waits for, if somebody asks: nothing of it was sent.
#[inline]
pub(super) fn ask<T>(asked: Poll<T>, call: Option<ClientCall>) -> Poll<T> {
    if asked.is_pending() {
        tell(|| Sight { call, ..Sight::before(Phase::Pool) });
    }
    asked
}

impl<S, B, R> Service<Request<B>> for Waiting<S>
where
    S: Service<Request<B>, Response = Response<R>> + Clone,
{
    type Response = Response<R>;
    type Error = S::Error;
    type Future = WaitingFuture<S, B, S::Future>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let state = State::Asks { service: self.inner.clone(), request: Some(request) };
        WaitingFuture { state, number: ClientCall::next() }
    }
}

impl<S, B, R> hyper::service::Service<Request<B>> for Waiting<S>
where
    S: hyper::service::Service<Request<B>, Response = Response<R>>,
{
    type Response = Response<R>;
    type Error = S::Error;
    type Future = S::Future;

    fn call(&self, request: Request<B>) -> S::Future {
        self.inner.call(request)
    }
}

pin_project! {
    /// The future of [`Waiting`].
    #[must_use = "futures do nothing unless polled"]
    pub struct WaitingFuture<S, B, F> {
        #[pin]
        state: State<S, B, F>,
        // by which the layers around know the call that is made later
        number: ClientCall,
    }
}

pin_project! {
    #[project = StateProjection]
    enum State<S, B, F> {
        Asks { service: S, request: Option<Request<B>> },
        Calls { #[pin] call: F },
    }
}

impl<S, B, R> Future for WaitingFuture<S, B, S::Future>
where
    S: Service<Request<B>, Response = Response<R>>,
{
    type Output = Result<Response<R>, S::Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        loop {
            match this.state.as_mut().project() {
                StateProjection::Asks { service, request } => {
                    ready!(ask(service.poll_ready(cx), Some(*this.number)))?;
                    let request = request.take().expect("it is called once");
                    let call = this.number.make(|| service.call(request));
                    this.state.set(State::Calls { call });
                }
                StateProjection::Calls { call } => return call.poll(cx),
            }
        }
    }
}

impl<S, B, F> fmt::Debug for WaitingFuture<S, B, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WaitingFuture").finish_non_exhaustive()
    }
}
