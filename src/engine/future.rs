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
use super::{
    Abandon, BoxError, Call, Finding, Head, Held, Keep, Limits, Open, Outcome, Part, Refusal, Shared, Sight, Tracked,
    Tunnel, UploadSight, WatchOf, leave,
};
use crate::cause::{BadGatewayCause, ClientCall, ClientCalls, Evidence, Failure, Phase};

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
        open: Open<Held<Shared<P, L>>>,
        watch: L::Watch,
        calls: ClientCalls,
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
    pub(super) fn new(run: Run<F>, open: Open<Held<Shared<P, L>>>, watch: L::Watch, calls: ClientCalls) -> Self {
        Self { run, timer: None, open, watch, calls, waited: false }
    }

    /// A call that is answered here.
    #[cold]
    pub(super) fn refused(refusal: Refusal, open: Open<Held<Shared<P, L>>>, watch: L::Watch) -> Self {
        // for the layers around: the one call that was to be made is this refusal
        ClientCall::next();
        Self::new(Run::Refused { refusal: Some(refusal) }, open, watch, ClientCalls::default())
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
        let RunProjection::Call { mut call } = self.run.as_mut().project() else { return Poll::Pending };
        let timer = self.timer.as_mut();
        let waited = ready!(open.wait(watch, *self.calls, timer, cx, |cx| call.as_mut().poll(cx)));
        self.timer.set(None);
        Poll::Ready(match waited {
            Waited::Came(Ok(answer)) => {
                let following = open.answered(watch, &answer, false);
                Ok(Tracked::over(answer, following))
            }
            Waited::Came(Err(error)) => {
                open.failed(watch, &error);
                Err(error)
            }
            Waited::Passed(failure, now) => {
                leave(Abandon::TimedOut(failure.cause()), || self.run.set(Run::Over));
                open.settle(&Outcome::failure(&failure).at(now));
                Ok(Tracked::local(&failure, None))
            }
        })
    }
}

/// How a wait under limits ended.
pub(crate) enum Waited<T> {
    /// What was waited for has come.
    Came(T),
    /// A limit has passed, at this time.
    Passed(Failure, Instant),
}

/// An answered call leaves no timer, though it may still be held.
#[cold]
#[inline(never)]
pub(crate) fn disarm(mut timer: Pin<&mut Option<Sleep>>) {
    timer.set(None);
}

type Answered<B, P, L, E> = Result<Response<Tracked<B, P, L>>, E>;

const POLLED_AGAIN: &str = "a future is not polled after it was ready";

impl<K: Keep> Open<K> {
    /// What is called is pending: waits for it, or until a limit has passed.
    pub(crate) fn wait<T>(
        &self,
        watch: &mut WatchOf<K>,
        calls: ClientCalls,
        mut timer: Pin<&mut Option<Sleep>>,
        cx: &mut Context<'_>,
        mut poll: impl FnMut(&mut Context<'_>) -> Poll<T>,
    ) -> Poll<Waited<T>> {
        let limits = &self.shared.shared().limits;
        if timer.is_none() {
            let Some(first) = limits.first(watch, &self.call) else { return Poll::Pending };
            timer.set(Some(sleep_until(first)));
        }
        loop {
            let Some(mut timer) = timer.as_mut().as_pin_mut() else { return Poll::Pending };
            ready!(timer.as_mut().poll(cx));
            // what came in the meantime beats the clock; else whoever is pending inside tells why
            let (polled, mut sight) = ask(|| poll(cx));
            if let Poll::Ready(came) = polled {
                return Poll::Ready(Waited::Came(came));
            }
            self.see(&mut sight);
            let now = Instant::now();
            match limits.look(watch, &self.call, now, &sight) {
                Finding::Again(at) => timer.reset(at),
                Finding::Passed(cause, phase) => {
                    return Poll::Ready(Waited::Passed(told(cause, phase, sight, calls, &self.call, now), now));
                }
            }
        }
    }

    /// The head has come; what is left to settle, if its body is still coming.
    #[inline(always)]
    fn answered<B: Body>(&mut self, watch: &WatchOf<K>, answer: &Response<B>, at_once: bool) -> Option<Following<K>> {
        let outcome = Outcome::of(Shown::of(answer), at_once);
        self.head(watch, answer, &outcome);
        if answer.body().is_end_stream() {
            self.settle(&outcome);
            return None;
        }
        Some(self.follow(outcome))
    }

    /// Tells the limits and the parts of the head.
    #[inline(always)]
    pub(crate) fn head<B>(&mut self, watch: &WatchOf<K>, answer: &Response<B>, outcome: &Outcome) {
        let Shared { parts, limits, .. } = self.shared.shared();
        let head = Head { outcome, headers: Some(answer.headers()), uploaded: self.uploaded() };
        limits.answered(watch, &self.call, &head);
        if let Some(ticket) = &mut self.ticket {
            if answer.status() == StatusCode::SWITCHING_PROTOCOLS {
                tunnelled(parts, ticket, answer.extensions());
            }
            parts.answered(ticket, &self.call, outcome);
        }
    }

    /// What is left to do until the body has ended.
    #[inline(always)]
    pub(crate) fn follow(&mut self, outcome: Outcome) -> Following<K> {
        let upload = std::mem::take(&mut self.upload);
        let open = Self { call: self.call, ticket: self.ticket.take(), shared: self.shared.clone(), upload };
        Following::new(open, outcome.into_shown())
    }

    /// The inner service returned its error.
    fn failed<E: 'static>(&mut self, watch: &WatchOf<K>, error: &E) {
        let outcome = Outcome::error(error);
        self.no_head(watch, &outcome);
        self.settle(&outcome);
    }

    /// Tells the limits that no head will come.
    pub(crate) fn no_head(&self, watch: &WatchOf<K>, outcome: &Outcome) {
        let head = Head { outcome, headers: None, uploaded: self.uploaded() };
        self.shared.shared().limits.answered(watch, &self.call, &head);
    }

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

#[cold]
fn tunnelled<P: Part>(parts: &P, ticket: &mut P::Ticket, extensions: &Extensions) {
    if let Some(tunnel) = extensions.get::<Tunnel>() {
        parts.tunnelled(ticket, tunnel);
    }
}

/// The record of a limit that passed.
pub(super) fn told(
    cause: BadGatewayCause,
    phase: Phase,
    sight: Sight,
    calls: ClientCalls,
    call: &Call,
    now: Instant,
) -> Failure {
    let failure = Failure::builder(cause).phase(phase).elapsed(now - call.now);
    let own = sight.call.filter(|call| calls.is_only(*call));
    let failure = match (sight.stage, own) {
        // the future that would have sent it goes now
        (Some(_), Some(own)) => failure.unsent(Evidence::NoConnection).call(own),
        (None, _) if sight.told => failure.replay(cause.replay().inferred(), Evidence::Counted),
        // what another call is doing proves nothing about this one
        _ => failure,
    };
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
