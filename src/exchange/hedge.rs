//! A hedged attempt, which runs concurrently with a first one that is late.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use http::{Request, Response};
use pin_project_lite::pin_project;
use tokio::time::{Instant, Sleep, sleep_until};

use super::active::AttemptState;
use super::next_attempt::{StartedAttempt, Template, begin_attempt};
use super::spec::{Config, RequestMode, RetryStateOf, Spec};
use super::timer::{TimedPoll, poll_timed};
use super::{CallContext, Ref, Rejection, drop_reason};
use crate::body::WrapBody;
use crate::cause::{ClientCalls, Failure};

pin_project! {
    /// A hedged attempt; boxed, as it is rare.
    pub(super) struct HedgeFuture<F, S, W, P: Spec> {
        #[pin]
        state: HedgeState<F, S, W>,
        // when the attempt is due, then its timeouts
        #[pin]
        timer: Option<Sleep>,
        attempt: HedgeAttempt<P>,
    }
}

pin_project! {
    #[project = HedgeStateProjection]
    enum HedgeState<F, S, W> {
        // the first attempt is not late yet
        Waiting,
        NotReady { waiting: Option<Box<(S, Request<W>)>> },
        Attempt { #[pin] call: F },
        // there is no hedged attempt, or it has ended
        Done,
    }
}

/// The attempt's permit: released however the hedge ends.
struct HedgeAttempt<P: Spec> {
    config: Ref<Config<P>>,
    call: CallContext,
    attempt: AttemptState<P>,
}

impl<P: Spec> Drop for HedgeAttempt<P> {
    fn drop(&mut self) {
        self.attempt.cancel(&self.config, &self.call, drop_reason());
    }
}

/// How the hedged attempt ended.
pub(super) enum HedgeEvent<X, E> {
    Response(Response<X>),
    Error(E),
    TimedOut(Failure, Instant),
    Rejected(Rejection),
    /// No hedged attempt is made.
    NotMade,
}

impl<F, S, W, P: Spec> HedgeFuture<F, S, W, P> {
    /// Waits until `due`, when the first attempt is late; `None`: no hedged attempt is made.
    pub(super) fn new(config: Ref<Config<P>>, call: CallContext, due: Option<Instant>) -> Self {
        let (state, timer) = match due {
            Some(due) => (HedgeState::Waiting, Some(sleep_until(due))),
            None => (HedgeState::Done, None),
        };
        Self { state, timer, attempt: HedgeAttempt { config, call, attempt: AttemptState::default() } }
    }

    /// Whether the hedged attempt has begun and not ended.
    pub(super) fn is_under_way(&self) -> bool {
        matches!(self.state, HedgeState::NotReady { .. } | HedgeState::Attempt { .. })
    }

    /// Takes the attempt's state, for the call that responds with its response.
    pub(super) fn take_attempt(self: Pin<&mut Self>) -> AttemptState<P> {
        std::mem::take(&mut self.project().attempt.attempt)
    }

    /// The settings, the call and the attempt.
    pub(super) fn attempt(self: Pin<&mut Self>) -> (&Config<P>, &CallContext, &mut AttemptState<P>) {
        let HedgeAttempt { config, call, attempt } = self.project().attempt;
        (config, call, attempt)
    }

    /// The first attempt has ended with this failure.
    pub(super) fn on_concurrent_failure(self: Pin<&mut Self>, failure: &Failure) {
        let HedgeAttempt { call, attempt, .. } = self.project().attempt;
        attempt.on_concurrent_failure(call, failure);
    }

    /// The hedged attempt has ended.
    pub(super) fn end(self: Pin<&mut Self>) {
        let mut this = self.project();
        this.state.set(HedgeState::Done);
        let HedgeAttempt { config, call, attempt } = this.attempt;
        attempt.cancel(config, call, drop_reason());
    }

    /// Polls the hedged attempt.
    pub(super) fn poll<B, X, E>(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        template: &Template<S>,
        retry_state: &mut RetryStateOf<P, B>,
    ) -> Poll<HedgeEvent<X, E>>
    where
        P::Requests: RequestMode<B, Body = W>,
        S: WrapBody<W, Body = X, ServiceError = E> + tower_service::Service<Request<W>, Future = F>,
        F: Future<Output = Result<Response<X>, E>>,
    {
        let mut this = self.project();
        let HedgeAttempt { config, call, attempt } = this.attempt;
        loop {
            match this.state.as_mut().project() {
                HedgeStateProjection::Waiting => {
                    if let Some(timer) = this.timer.as_mut().as_pin_mut() {
                        ready!(timer.poll(cx));
                    }
                    this.timer.set(None);
                    this.state.set(HedgeState::Done);
                    let Some(body) = config.requests.hedge_body(retry_state) else {
                        return Poll::Ready(HedgeEvent::NotMade);
                    };
                    let next = config.requests.hedge_request(retry_state, body, &mut attempt.upload);
                    let Some((request, resends)) = next else { return Poll::Ready(HedgeEvent::NotMade) };
                    match begin_attempt(config, call, attempt, template.service(), request, resends, cx) {
                        StartedAttempt::Called(call) => this.state.set(HedgeState::Attempt { call }),
                        StartedAttempt::NotReady(waiting) => {
                            this.state.set(HedgeState::NotReady { waiting: Some(waiting) });
                        }
                        StartedAttempt::Rejected(rejection) => return Poll::Ready(HedgeEvent::Rejected(rejection)),
                        StartedAttempt::Failed(error) => return Poll::Ready(HedgeEvent::Error(error)),
                    }
                }
                HedgeStateProjection::NotReady { waiting } => {
                    let Some(both) = waiting else { return Poll::Ready(HedgeEvent::NotMade) };
                    let deadline = config.requests.deadline(retry_state);
                    let ready = ready!(super::next_attempt::poll_not_ready(
                        config,
                        call,
                        attempt,
                        this.timer.as_mut(),
                        deadline,
                        &mut both.0,
                        cx
                    ));
                    match (ready, waiting.take()) {
                        (TimedPoll::Ready(Ok(())), Some(both)) => {
                            let (mut service, request) = *both;
                            let call = super::next_attempt::call_promised(attempt, &mut service, request);
                            this.state.set(HedgeState::Attempt { call });
                        }
                        (TimedPoll::Ready(Err(error)), _) => {
                            this.state.set(HedgeState::Done);
                            return Poll::Ready(HedgeEvent::Error(error));
                        }
                        (TimedPoll::TimedOut(failure, now), _) => {
                            this.state.set(HedgeState::Done);
                            if !P::WAITS {
                                return Poll::Ready(HedgeEvent::NotMade);
                            }
                            return Poll::Ready(HedgeEvent::TimedOut(failure, now));
                        }
                        (TimedPoll::Ready(Ok(())), None) => return Poll::Ready(HedgeEvent::NotMade),
                    }
                }
                HedgeStateProjection::Attempt { call: mut future } => {
                    let mut poll = |attempt: &AttemptState<P>, cx: &mut Context<'_>| {
                        let _entered = attempt.span.enter();
                        future.as_mut().poll(cx)
                    };
                    let polled = match poll(attempt, cx) {
                        Poll::Ready(result) => TimedPoll::Ready(result),
                        Poll::Pending => {
                            let calls: ClientCalls = attempt.calls;
                            ready!(poll_timed(config, call, attempt, this.timer.as_mut(), calls, cx, poll))
                        }
                    };
                    this.timer.set(None);
                    return Poll::Ready(match polled {
                        TimedPoll::Ready(Ok(response)) => HedgeEvent::Response(response),
                        TimedPoll::Ready(Err(error)) => HedgeEvent::Error(error),
                        TimedPoll::TimedOut(failure, now) => {
                            super::drop_with_reason(super::CancelReason::of(&failure), || {
                                this.state.set(HedgeState::Done);
                            });
                            HedgeEvent::TimedOut(failure, now)
                        }
                    });
                }
                HedgeStateProjection::Done => return Poll::Ready(HedgeEvent::NotMade),
            }
        }
    }
}
