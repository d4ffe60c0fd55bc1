//! The states of a call with a hedged attempt, which runs concurrently with the first.

use std::future::Future;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::Response;
use http_body::Body;

use super::{POLLED_AGAIN, Projection, State, Step, drain};
use crate::body::WrapBody;
use crate::cause::RetryStop;
use crate::exchange::active::Split;
use crate::exchange::hedge::{HedgeEvent, HedgeFuture};
use crate::exchange::spec::{ErrorMode, RequestBodyOf, RequestMode, ResponseMode, Spec};
use crate::exchange::{CancelReason, Outcome, ResponseSummary, drop_with_reason};

impl<S, B, P, E, X> Projection<'_, S, B, P>
where
    P: Spec,
    P::Requests: RequestMode<B>,
    P::Errors: ResponseMode<E, X>,
    S: WrapBody<RequestBodyOf<P, B>, Body = X, ServiceError = E>,
    S::Future: Future<Output = Result<Response<X>, E>>,
    X: Body<Data = Bytes>,
{
    /// The first attempt responded: drops the hedged one.
    pub(super) fn supersede_hedge(&mut self) {
        if self.hedge.is_some() {
            drop_with_reason(CancelReason::Superseded, || *self.hedge = None);
        }
    }

    /// Polls the hedged attempt; the first is pending, or has failed.
    pub(super) fn poll_hedge(&mut self, cx: &mut Context<'_>) -> Step<P, E, X> {
        let Some(retry_state) = self.retry_state.as_mut() else { return Poll::Pending };
        let only = matches!(*self.state, State::HedgeOnly);
        if self.hedge.is_none() {
            let state = self.active.get();
            let requests = &state.config().requests;
            if only || !requests.can_hedge(retry_state) {
                return Poll::Pending;
            }
            let due = requests.hedge_at(retry_state);
            if let Some(endpoint) = state.attempt.endpoint.filter(|_| due.is_some()) {
                requests.on_tried(retry_state, endpoint);
            }
            *self.hedge = Some(Box::pin(HedgeFuture::new(state.config_ref(), state.context, due)));
        }
        let (Some(hedge), Some(template)) = (self.hedge.as_mut(), self.template.as_ref()) else { return Poll::Pending };
        let event = ready!(hedge.as_mut().poll::<B, X, E>(cx, template, retry_state));
        if only { self.on_last_hedge(event, cx) } else { self.on_hedge(event, cx) }
    }

    /// The hedged attempt has ended while the first is pending.
    fn on_hedge(&mut self, event: HedgeEvent<X, E>, cx: &mut Context<'_>) -> Step<P, E, X> {
        let (Some(hedge), Some(retry_state)) = (self.hedge.as_mut(), self.retry_state.as_mut()) else {
            return Poll::Pending;
        };
        let known_as = self.active.get().attempt.calls.claim();
        let (config, context, attempt) = hedge.as_mut().attempt();
        let (record, outcome) = match event {
            HedgeEvent::NotMade => (None, None),
            HedgeEvent::Response(mut response) => {
                let notes = &self.active.get().notes;
                let checked = if config.errors.is_ordinary(&response) {
                    None
                } else {
                    config.errors.check(notes, &mut response, attempt.calls, known_as)
                };
                if checked.is_none() && config.requests.is_final(retry_state, &response) {
                    return self.on_hedge_won(response, cx);
                }
                if let Some(failure) = checked {
                    let outcome = Outcome::failure(&failure);
                    attempt.on_no_head(config, context, &outcome);
                    (Some(failure), Some(outcome))
                } else {
                    let outcome = Outcome::of(ResponseSummary::of(&response, context), false);
                    attempt.on_head(config, context, &response, &outcome);
                    let record = config.requests.failure_of(retry_state, &response);
                    (record, drain(response, cx).then_some(outcome))
                }
            }
            HedgeEvent::Error(error) => match config.errors.failure(&self.active.get().notes, error, attempt.calls) {
                Ok(failure) => {
                    let outcome = Outcome::failure(&failure);
                    attempt.on_no_head(config, context, &outcome);
                    (Some(failure), Some(outcome))
                }
                // an error that is passed on is not hedged
                Err(_) => (None, None),
            },
            HedgeEvent::TimedOut(failure, now) => {
                let outcome = Outcome::failure(&failure).at(now);
                (Some(failure), Some(outcome))
            }
            HedgeEvent::Rejected(rejection) => (Some(rejection.into_parts().0), None),
        };
        if let Some(outcome) = outcome {
            attempt.complete(config, context, &outcome);
        }
        if let Some(failure) = record {
            let failure = config.errors.complete_failure(failure);
            attempt.span.on_failure(&failure);
            let failure = failure.where_body_was_read(config.requests.body_was_read(retry_state)).known_as(known_as);
            let Split { context, attempt, .. } = self.active.state().split();
            attempt.on_concurrent_failure(context, &failure);
            config.requests.on_concurrent_failure(retry_state, Some(failure));
        }
        // the hedge stays, so that no other one is made
        hedge.as_mut().end();
        Poll::Pending
    }

    /// The hedged attempt responded first.
    fn on_hedge_won(&mut self, mut response: Response<X>, cx: &mut Context<'_>) -> Step<P, E, X> {
        drop_with_reason(CancelReason::Superseded, || self.state.set(State::Done));
        let state = self.active.state();
        state.known_as = state.attempt.calls.claim();
        let Split { config, context, attempt, .. } = state.split();
        attempt.cancel(config, context, CancelReason::Superseded);
        self.take_hedge();
        self.clear_timer();
        let first = self.poll_first(&mut response, cx);
        self.on_first(response, first, cx)
    }

    /// The hedged attempt takes the place of the first, which has ended.
    fn take_hedge(&mut self) {
        if let Some(mut hedge) = self.hedge.take() {
            self.active.state().attempt = hedge.as_mut().take_attempt();
        }
    }

    /// The hedged attempt has ended after the first has failed.
    fn on_last_hedge(&mut self, event: HedgeEvent<X, E>, cx: &mut Context<'_>) -> Step<P, E, X> {
        let state = self.active.state();
        state.known_as = state.known_as.or(state.attempt.calls.claim());
        self.take_hedge();
        match event {
            HedgeEvent::Response(response) => self.on_response(response, cx),
            HedgeEvent::Error(error) => self.on_error(error, cx),
            HedgeEvent::TimedOut(failure, now) => self.on_timeout(failure, now),
            HedgeEvent::Rejected(rejection) => {
                let (failure, after) = rejection.into_parts();
                self.decide(failure, after)
            }
            HedgeEvent::NotMade => {
                let Some(retry_state) = self.retry_state.as_mut() else { panic!("{POLLED_AGAIN}") };
                let failure = self.active.get().config().requests.final_failure(retry_state, RetryStop::NotReplayable);
                Poll::Ready(Some(self.respond_failure(failure, None)))
            }
        }
    }
}
