//! The second attempt beside one that is late.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use http::Response;
use pin_project_lite::pin_project;
use tokio::time::{Sleep, sleep_until};

use super::call::{Told, Way};
use super::future::{Answered, Core, ended, own, ready_by};
use super::round::Round;
use crate::body::ReplayBody;
use crate::cause::{ClientCall, ClientCalls};
use crate::exchange::AttemptSpan;

pin_project! {
    /// A second attempt, from the moment that its first one is pending.
    #[project = Projection]
    pub(super) enum Second<F, S, B> {
        Waiting { #[pin] timer: Sleep },
        Readying { service: S, body: Option<ReplayBody<B>>, limit: Option<Pin<Box<Sleep>>> },
        Running { #[pin] call: F, span: AttemptSpan, calls: ClientCalls },
        // there is none, or none any more
        Over,
    }
}

impl<F, S, B> Second<F, S, B> {
    /// Waits until the first attempt is late; there may be nothing to wait for.
    pub(super) fn beside(round: &Round<B>, core: &Core<S>) -> Self {
        match round.due(&core.settings) {
            Some(due) => Self::Waiting { timer: sleep_until(due) },
            None => Self::Over,
        }
    }

    /// Whether it was decided that there is one.
    pub(super) fn is_under_way(&self) -> bool {
        matches!(self, Self::Readying { .. } | Self::Running { .. })
    }

    /// Its result; `None` if there will be none.
    pub(super) fn poll<W>(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        core: &Core<S>,
        round: &mut Round<B>,
        first: Option<ClientCall>,
    ) -> Poll<Option<Answered<S, B, W>>>
    where
        F: Future<Output = Result<Response<W::Body>, W::Error>>,
        S: Clone,
        W: Way<S, ReplayBody<B>, Future = F>,
        W::Error: Told,
    {
        loop {
            let next = match self.as_mut().project() {
                Projection::Waiting { timer } => {
                    ready!(timer.poll(cx));
                    match round.hedge(&core.settings) {
                        Some(body) => Self::Readying { service: core.service(), body: Some(body), limit: None },
                        None => Self::Over,
                    }
                }
                Projection::Readying { service, body, limit } => {
                    match ready!(ready_by(W::poll_ready(service, cx), round.deadline(), limit, cx)) {
                        Some(Ok(())) => match round.beside(&core.settings, body.take().unwrap_or_default()) {
                            Some((request, resends)) => {
                                let span = AttemptSpan::open(&request, resends);
                                let entered = span.enter();
                                let calls = ClientCalls::begin();
                                let call = W::call(service, request);
                                let calls = calls.end();
                                drop(entered);
                                Self::Running { call, span, calls }
                            }
                            None => Self::Over,
                        },
                        Some(Err(error)) => {
                            self.set(Self::Over);
                            return Poll::Ready(Some(Err(error)));
                        }
                        None => Self::Over,
                    }
                }
                Projection::Running { call, span, calls } => {
                    let entered = span.enter();
                    let result = own(ready!(call.poll(cx)), *calls, first, round.body_was_read());
                    drop(entered);
                    ended(span, result.as_ref());
                    self.set(Self::Over);
                    return Poll::Ready(Some(result));
                }
                Projection::Over => return Poll::Ready(None),
            };
            self.set(next);
        }
    }
}
