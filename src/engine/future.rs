//! The one future: the call, its timer, and what has to be settled.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::Response;
use http_body::Body;
use pin_project_lite::pin_project;
use tokio::time::{Instant, Sleep, sleep_until};

use super::limits::judged;
use super::sight::ask;
use super::{Abandon, BoxError, Call, Finding, Limits, Open, Outcome, Part, Refused, Sight, Tracked, leave, leaving};
use super::{Refusal, UploadSight};
use crate::cause::{BadGatewayCause, Evidence, Failure, Phase, Replay};

pin_project! {
    /// The future of an [`Engine`](super::Engine).
    #[must_use = "futures do nothing unless polled"]
    pub struct EngineFuture<F, P: Part, L: Limits> {
        #[pin]
        run: Run<F>,
        // made when the first poll finds no answer, and left where it is
        #[pin]
        timer: Option<Sleep>,
        open: Option<Open<P, L>>,
        watch: Option<L::Watch>,
    }

    impl<F, P: Part, L: Limits> PinnedDrop for EngineFuture<F, P, L> {
        fn drop(this: Pin<&mut Self>) {
            if let Some(open) = this.project().open.take() {
                open.abandon(leaving());
            }
        }
    }
}

pin_project! {
    #[project = RunProjection]
    enum Run<F> {
        Call { #[pin] call: F },
        Refused { refusal: Option<Refusal> },
        Over,
    }
}

impl<F, P: Part, L: Limits> EngineFuture<F, P, L> {
    #[inline]
    pub(super) fn new(call: F, open: Open<P, L>, watch: L::Watch) -> Self {
        Self { run: Run::Call { call }, timer: None, open: Some(open), watch: Some(watch) }
    }

    pub(super) fn refused(refused: Refused) -> Self {
        Self { run: Run::Refused { refusal: Some(refused.0) }, timer: None, open: None, watch: None }
    }
}

impl<F, P, L, B, E> Future for EngineFuture<F, P, L>
where
    F: Future<Output = Result<Response<B>, E>>,
    P: Part,
    L: Limits,
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    type Output = Result<Response<Tracked<B, P, L>>, E>;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        match this.run.as_mut().project() {
            RunProjection::Call { call } => {
                if let Poll::Ready(result) = call.poll(cx) {
                    let open = this.open.take().expect(POLLED_AGAIN);
                    return Poll::Ready(answered(result, open, this.watch.as_ref()));
                }
            }
            RunProjection::Refused { refusal } => {
                let (failure, retry_after) = refusal.take().expect(POLLED_AGAIN).into_parts();
                return Poll::Ready(Ok(Tracked::local(&failure, retry_after)));
            }
            RunProjection::Over => panic!("{POLLED_AGAIN}"),
        }
        let (Some(open), Some(watch)) = (this.open.as_ref(), this.watch.as_mut()) else { return Poll::Pending };
        let limits = &open.shared.limits;
        if this.timer.is_none() {
            let Some(first) = limits.first(watch, &open.call) else { return Poll::Pending };
            this.timer.set(Some(sleep_until(first)));
        }
        loop {
            let Some(mut timer) = this.timer.as_mut().as_pin_mut() else { return Poll::Pending };
            ready!(timer.as_mut().poll(cx));
            let RunProjection::Call { call } = this.run.as_mut().project() else { return Poll::Pending };
            // what came in the meantime beats the clock; else whoever is pending inside tells why
            let (polled, mut sight) = ask(|| call.poll(cx));
            if let Poll::Ready(result) = polled {
                let open = this.open.take().expect(POLLED_AGAIN);
                return Poll::Ready(answered(result, open, this.watch.as_ref()));
            }
            open.see(&mut sight);
            let now = Instant::now();
            match limits.look(watch, &open.call, now, &sight) {
                Finding::Again(at) => timer.reset(at),
                Finding::Passed(cause, phase) => {
                    let failure = told(cause, phase, sight, &open.call, now);
                    this.timer.set(None);
                    leave(Abandon::TimedOut(cause), || this.run.set(Run::Over));
                    let open = this.open.take().expect(POLLED_AGAIN);
                    open.settle(&Outcome::answer(failure.status(), Some(cause)).at(now));
                    return Poll::Ready(Ok(Tracked::local(&failure, None)));
                }
            }
        }
    }
}

const POLLED_AGAIN: &str = "a future is not polled after it was ready";

#[inline]
fn answered<P, L, B, E>(
    result: Result<Response<B>, E>,
    mut open: Open<P, L>,
    watch: Option<&L::Watch>,
) -> Result<Response<Tracked<B, P, L>>, E>
where
    P: Part,
    L: Limits,
    B: Body<Data = Bytes>,
{
    let outcome = match &result {
        Ok(answer) => {
            let (status, cause) = judged(answer);
            Outcome::answer(status, cause)
        }
        Err(_) => Outcome::error(),
    };
    if let Some(watch) = watch {
        open.shared.limits.answered(watch, &open.call, &outcome);
    }
    match result {
        Ok(answer) => {
            open.shared.parts.answered(&mut open.ticket, &open.call, &outcome);
            Ok(Tracked::over(answer, open, &outcome))
        }
        Err(error) => {
            open.settle(&outcome);
            Err(error)
        }
    }
}

impl<P: Part, L> Open<P, L> {
    /// Adds what this engine saw of the request body itself.
    pub(super) fn see(&self, sight: &mut Sight) {
        if let (None, Some(progress)) = (sight.upload, &self.upload.0) {
            sight.upload = Some(UploadSight {
                taken: progress.taken(),
                client_late: progress.client_late(),
                ended: progress.ended(),
            });
        }
    }
}

/// The record of a limit that passed.
pub(super) fn told(cause: BadGatewayCause, phase: Phase, sight: Sight, call: &Call, now: Instant) -> Failure {
    let (replay, evidence) = match sight.stage {
        // the future that would have sent it goes now
        Some(_) => (Replay::NotSent, Evidence::NoConnection),
        None if sight.told => (cause.replay(), Evidence::Counted),
        None => (cause.replay(), Evidence::Inferred),
    };
    let failure = Failure::builder(cause).phase(phase).replay(replay, evidence).elapsed(now - call.now);
    let failure = failure.peer(sight.peer).connection(sight.connection).attempts(call.attempt.into());
    match sight.upstream {
        Some(upstream) => failure.upstream(upstream).build(),
        None => failure.build(),
    }
}

impl<F, P: Part, L: Limits> fmt::Debug for EngineFuture<F, P, L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EngineFuture").finish_non_exhaustive()
    }
}
