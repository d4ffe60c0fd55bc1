//! The one future: the call, its timer, and what has to be settled.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::{Extensions, Response, StatusCode};
use http_body::Body;
use pin_project_lite::pin_project;
use tokio::time::{Instant, Sleep, sleep_until};

use super::part::Shown;
use super::sight::ask;
use super::tracked::Following;
use super::{Abandon, BoxError, Call, Finding, Head, Limits, Open, Outcome, Part, Sight, Tracked, Tunnel, leave};
use super::{Refusal, UploadSight};
use crate::cause::{BadGatewayCause, Evidence, Failure, Phase, Replay};

pin_project! {
    #[project = Projection]
    /// The future of an [`Engine`](super::Engine).
    #[must_use = "futures do nothing unless polled"]
    pub struct EngineFuture<F, P: Part, L: Limits> {
        #[pin]
        run: Run<F>,
        // made when the first poll finds no answer, and left where it is
        #[pin]
        timer: Option<Sleep>,
        open: Open<P, L>,
        watch: L::Watch,
        // the answer was not there at the first poll
        waited: bool,
    }
}

pin_project! {
    #[project = RunProjection]
    pub(super) enum Run<F> {
        Call { #[pin] call: F },
        Refused { refusal: Option<Refusal> },
        Over,
    }
}

impl<F, P: Part, L: Limits> EngineFuture<F, P, L> {
    #[inline(always)]
    pub(super) fn new(run: Run<F>, open: Open<P, L>, watch: L::Watch) -> Self {
        Self { run, timer: None, open, watch, waited: false }
    }
}

impl<F, P, L, B, E> Future for EngineFuture<F, P, L>
where
    F: Future<Output = Result<Response<B>, E>>,
    P: Part,
    L: Limits,
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
    E: 'static,
{
    type Output = Answered<B, P, L, E>;

    #[inline(always)]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        if let RunProjection::Call { call } = this.run.as_mut().project() {
            // in place and by reference: the answer is moved once
            match call.poll(cx) {
                Poll::Ready(Ok(answer)) => {
                    let following = this.open.answered(this.watch, &answer, !*this.waited);
                    if this.timer.is_some() {
                        disarm(this.timer);
                    }
                    return Poll::Ready(Ok(Tracked::over(answer, following)));
                }
                Poll::Ready(Err(error)) => {
                    this.open.failed(this.watch, &error);
                    if this.timer.is_some() {
                        disarm(this.timer);
                    }
                    return Poll::Ready(Err(error));
                }
                Poll::Pending => return this.wait(cx),
            }
        }
        this.refused()
    }
}

impl<F, P, L, B, E> Projection<'_, F, P, L>
where
    F: Future<Output = Result<Response<B>, E>>,
    P: Part,
    L: Limits,
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
    E: 'static,
{
    /// It was never called.
    #[cold]
    fn refused(mut self) -> Poll<Answered<B, P, L, E>> {
        let RunProjection::Refused { refusal } = self.run.as_mut().project() else { panic!("{POLLED_AGAIN}") };
        let (failure, retry_after) = refusal.take().expect(POLLED_AGAIN).into_parts();
        Poll::Ready(Ok(Tracked::local(&failure, retry_after)))
    }

    /// The inner future is pending: what follows is under the timer.
    fn wait(mut self, cx: &mut Context<'_>) -> Poll<Answered<B, P, L, E>> {
        let (open, watch) = (self.open, self.watch);
        *self.waited = true;
        if self.timer.is_none() {
            let Some(first) = open.shared.limits.first(watch, &open.call) else { return Poll::Pending };
            self.timer.set(Some(sleep_until(first)));
        }
        loop {
            let Some(mut timer) = self.timer.as_mut().as_pin_mut() else { return Poll::Pending };
            ready!(timer.as_mut().poll(cx));
            let RunProjection::Call { call } = self.run.as_mut().project() else { return Poll::Pending };
            // what came in the meantime beats the clock; else whoever is pending inside tells why
            let (polled, mut sight) = ask(|| call.poll(cx));
            if let Poll::Ready(result) = polled {
                self.timer.set(None);
                return Poll::Ready(match result {
                    Ok(answer) => {
                        let following = open.answered(watch, &answer, false);
                        Ok(Tracked::over(answer, following))
                    }
                    Err(error) => {
                        open.failed(watch, &error);
                        Err(error)
                    }
                });
            }
            open.see(&mut sight);
            let now = Instant::now();
            match open.shared.limits.look(watch, &open.call, now, &sight) {
                Finding::Again(at) => timer.reset(at),
                Finding::Passed(cause, phase) => {
                    let failure = told(cause, phase, sight, &open.call, now);
                    self.timer.set(None);
                    leave(Abandon::TimedOut(cause), || self.run.set(Run::Over));
                    open.settle(&Outcome::failure(&failure).at(now));
                    return Poll::Ready(Ok(Tracked::local(&failure, None)));
                }
            }
        }
    }
}

/// An answered call leaves no timer, though it may still be held.
#[cold]
#[inline(never)]
fn disarm(mut timer: Pin<&mut Option<Sleep>>) {
    timer.set(None);
}

type Answered<B, P, L, E> = Result<Response<Tracked<B, P, L>>, E>;

const POLLED_AGAIN: &str = "a future is not polled after it was ready";

impl<P: Part, L: Limits> Open<P, L> {
    /// The head has come; what is left to settle, if its body is still coming.
    #[inline(always)]
    fn answered<B: Body>(&mut self, watch: &L::Watch, answer: &Response<B>, at_once: bool) -> Option<Following<P, L>> {
        let outcome = Outcome::of(Shown::of(answer), at_once);
        let head = Head { outcome: &outcome, headers: Some(answer.headers()), uploaded: self.uploaded() };
        self.shared.limits.answered(watch, &self.call, &head);
        if answer.status() == StatusCode::SWITCHING_PROTOCOLS {
            self.tunnelled(answer.extensions());
        }
        if let Some(ticket) = &mut self.ticket {
            self.shared.parts.answered(ticket, &self.call, &outcome);
        }
        if answer.body().is_end_stream() {
            self.settle(&outcome);
            return None;
        }
        let upload = std::mem::take(&mut self.upload);
        let open = Self { call: self.call, ticket: self.ticket.take(), shared: self.shared.clone(), upload };
        Some(Following::new(open, outcome.into_shown()))
    }

    #[cold]
    fn tunnelled(&mut self, extensions: &Extensions) {
        if let (Some(ticket), Some(tunnel)) = (&mut self.ticket, extensions.get::<Tunnel>()) {
            self.shared.parts.tunnelled(ticket, tunnel);
        }
    }

    /// The inner service returned its error.
    fn failed<E: 'static>(&mut self, watch: &L::Watch, error: &E) {
        let outcome = Outcome::error(error);
        let head = Head { outcome: &outcome, headers: None, uploaded: self.uploaded() };
        self.shared.limits.answered(watch, &self.call, &head);
        self.settle(&outcome);
    }
}

impl<P: Part, L> Open<P, L> {
    #[inline]
    fn uploaded(&self) -> Option<Instant> {
        self.upload.0.as_ref().and_then(|progress| progress.ended())
    }

    /// Frames of the request body so far, if this engine watches it.
    pub(super) fn taken(&self) -> Option<u32> {
        self.upload.0.as_ref().map(|progress| progress.taken())
    }

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
