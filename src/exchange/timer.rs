//! Waiting under the timeouts of an attempt.

use std::future::Future as _;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::time::{Instant, Sleep, sleep_until};

use super::active::AttemptState;
use super::spec::{Config, Spec};
use super::{AttemptProgress, CallContext, TimeoutPolicy, TimerDecision, query};
use crate::cause::{BadGatewayCause, ClientCalls, Evidence, Failure, Phase};

/// How a wait under timeouts ended.
pub(super) enum TimedPoll<T> {
    /// The future's output.
    Ready(T),
    /// A timeout has passed, at this time.
    TimedOut(Failure, Instant),
}

/// Waits for a pending future until a timeout of the attempt has passed.
pub(super) fn poll_timed<P: Spec, T>(
    config: &Config<P>,
    call: &CallContext,
    attempt: &mut AttemptState<P>,
    mut timer: Pin<&mut Option<Sleep>>,
    calls: ClientCalls,
    cx: &mut Context<'_>,
    mut poll: impl FnMut(&AttemptState<P>, &mut Context<'_>) -> Poll<T>,
) -> Poll<TimedPoll<T>> {
    let timeouts = &config.timeouts;
    let context = *attempt.context(call);
    if timer.is_none() {
        let Some(first) = timeouts.first_deadline(&attempt.timeouts, &context) else {
            // an outer layer may have timeouts
            attempt.publish_upload();
            return Poll::Pending;
        };
        timer.set(Some(sleep_until(first)));
    }
    loop {
        let Some(mut sleep) = timer.as_mut().as_pin_mut() else { return Poll::Pending };
        ready!(sleep.as_mut().poll(cx));
        // an output that came in the meantime takes precedence; otherwise the pending future publishes its progress
        let (polled, mut progress) = query(|| poll(attempt, cx));
        if let Poll::Ready(value) = polled {
            return Poll::Ready(TimedPoll::Ready(value));
        }
        attempt.merge_upload(&mut progress);
        let now = Instant::now();
        match timeouts.on_timer(&mut attempt.timeouts, &context, now, &progress) {
            TimerDecision::RearmAt(at) => sleep.reset(at),
            TimerDecision::DeadlineElapsed(phase) => {
                let cause = BadGatewayCause::DeadlineExceeded;
                let failure = timeout_failure(cause, phase, progress, calls, &context, now).into_builder().neutral();
                return Poll::Ready(TimedPoll::TimedOut(failure.build(), now));
            }
            TimerDecision::TimedOut(cause, phase) => {
                let failure = timeout_failure(cause, phase, progress, calls, &context, now);
                return Poll::Ready(TimedPoll::TimedOut(failure, now));
            }
        }
    }
}

/// The failure of a timeout that has passed.
pub(super) fn timeout_failure(
    cause: BadGatewayCause,
    phase: Phase,
    progress: AttemptProgress,
    calls: ClientCalls,
    call: &CallContext,
    now: Instant,
) -> Failure {
    let failure = Failure::builder(cause).phase(phase).elapsed(now - call.now);
    let own = progress.call.filter(|call| calls.is_only(*call));
    let failure = match (progress.stage, own) {
        // the future that would have sent the request is now dropped
        (Some(_), Some(own)) => failure.unsent(Evidence::NoConnection).call(own),
        (None, _) if progress.reported => failure.replay(cause.replay().inferred(), Evidence::Counted),
        // the progress of another call proves nothing about this one
        _ => failure,
    };
    let failure = failure.peer(progress.peer).connection(progress.connection).attempts(call.attempt.into());
    match progress.upstream {
        Some(upstream) => failure.client_upstream(upstream).build(),
        None => failure.build(),
    }
}
