//! How attempts after the first begin.

use std::future::Future as _;
use std::pin::Pin;
use std::sync::{Mutex, PoisonError};
use std::task::{Context, Poll};

use http::Request;
use tokio::time::{Instant, Sleep, sleep_until};

use super::active::AttemptState;
use super::endpoint::with_endpoint;
use super::span::AttemptSpan;
use super::spec::{Config, ErrorMode, Spec};
use super::timer::{TimedPoll, poll_timed};
use super::{AttemptProgress, CallContext, Component as _, Rejection, TimeoutPolicy, publish};
use crate::body::WrapBody;
use crate::cause::{BadGatewayCause, ClientCall, ClientCalls, Failure, Phase};

/// The service for attempts after the first; cloned for each of them.
pub(crate) struct Template<S> {
    service: Mutex<S>,
    /// Stored here, so that only the constructor requires `S: Clone`.
    pub(super) clone: fn(&S) -> S,
}

impl<S: Clone> Template<S> {
    pub(super) fn new(service: S) -> Self {
        Self { service: Mutex::new(service), clone: S::clone }
    }
}

impl<S> Template<S> {
    pub(crate) fn service(&self) -> S {
        (self.clone)(&self.service.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// How an attempt began.
pub(super) enum StartedAttempt<F, S, W, E> {
    /// The inner service was called.
    Called(F),
    /// The inner service is not ready.
    NotReady(Box<(S, Request<W>)>),
    Rejected(Rejection),
    /// The inner service never becomes ready.
    Failed(E),
}

/// Begins an attempt after the first; its timeouts begin now.
pub(super) fn begin_attempt<P, S, W>(
    config: &Config<P>,
    call: &CallContext,
    attempt: &mut AttemptState<P>,
    mut service: S,
    mut request: Request<W>,
    resends: u32,
    cx: &mut Context<'_>,
) -> StartedAttempt<S::Future, S, W, S::ServiceError>
where
    P: Spec,
    S: WrapBody<W>,
{
    attempt.endpoint = None;
    let mut context = CallContext { now: Instant::now(), deadline: None, ..*call };
    if P::SPANS {
        attempt.span = AttemptSpan::open(&request, resends);
    }
    attempt.timeouts = config.timeouts.on_later_attempt(&mut context, &mut request);
    config.per_attempt.on_request(&mut context, &request);
    attempt.context = Some(context);
    if let Some(rejection) = config.timeouts.reject(&context) {
        return StartedAttempt::Rejected(rejection);
    }
    if let Err(rejection) = attempt.admit(config, call) {
        return StartedAttempt::Rejected(rejection);
    }
    let ready = poll_ready(&mut service, None, cx);
    let calls = ClientCalls::begin();
    match ready {
        Poll::Ready(Ok(())) => {
            let entered = attempt.span.enter();
            let (future, endpoint) = with_endpoint(|| service.call(request));
            attempt.endpoint = endpoint;
            drop(entered);
            attempt.calls = P::Errors::count(calls);
            StartedAttempt::Called(future)
        }
        Poll::Ready(Err(error)) => {
            attempt.calls = P::Errors::count(calls);
            StartedAttempt::Failed(error)
        }
        Poll::Pending => {
            attempt.calls = P::Errors::count(calls);
            StartedAttempt::NotReady(Box::new((service, request)))
        }
    }
}

/// Polls a service for readiness; while it is pending, the attempt waits for a connection.
pub(super) fn poll_ready<S: WrapBody<W>, W>(
    service: &mut S,
    call: Option<ClientCall>,
    cx: &mut Context<'_>,
) -> Poll<Result<(), S::ServiceError>> {
    let ready = service.poll_ready(cx);
    if ready.is_pending() {
        publish(|| AttemptProgress { call, ..AttemptProgress::before(Phase::Pool) });
    }
    ready
}

/// Waits for the inner service under the timeouts of the attempt; if backpressure is passed on, until the deadline.
pub(super) fn poll_not_ready<P: Spec, S: WrapBody<W>, W>(
    config: &Config<P>,
    call: &CallContext,
    attempt: &mut AttemptState<P>,
    mut timer: Pin<&mut Option<Sleep>>,
    deadline: Option<Instant>,
    service: &mut S,
    cx: &mut Context<'_>,
) -> Poll<TimedPoll<Result<(), S::ServiceError>>> {
    let calls = attempt.calls;
    let mut poll = |cx: &mut Context<'_>| poll_ready(service, calls.claim(), cx);
    match poll(cx) {
        Poll::Ready(ready) => Poll::Ready(TimedPoll::Ready(ready)),
        Poll::Pending if !P::WAITS => {
            let Some(deadline) = deadline else { return Poll::Pending };
            if timer.is_none() {
                timer.set(Some(sleep_until(deadline)));
            }
            let Some(sleep) = timer.as_pin_mut() else { return Poll::Pending };
            let failure = || Failure::new(BadGatewayCause::DeadlineExceeded);
            sleep.poll(cx).map(|()| TimedPoll::TimedOut(failure(), deadline))
        }
        Poll::Pending => poll_timed(config, call, attempt, timer, calls.promised(), cx, |_, cx| poll(cx)),
    }
}

/// Calls a service that has become ready, with the number of the client call that was claimed for it.
pub(super) fn call_promised<P: Spec, S: WrapBody<W>, W>(
    attempt: &mut AttemptState<P>,
    service: &mut S,
    request: Request<W>,
) -> S::Future {
    let entered = attempt.span.enter();
    let made = ClientCalls::begin();
    let (future, endpoint) = with_endpoint(|| match attempt.calls.claim() {
        Some(number) => number.make(|| service.call(request)),
        None => service.call(request),
    });
    attempt.endpoint = endpoint;
    let made = made.end();
    drop(entered);
    attempt.calls = attempt.calls.made(made);
    future
}
