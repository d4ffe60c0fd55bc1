//! The waits of an exchange, each with one timer that is made only if it is needed.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use pin_project_lite::pin_project;
use tokio::time::{Instant, Sleep, sleep_until};

use super::upload::Progress;
use crate::cause::{BadGatewayCause, Phase};
use crate::classify::Stamp;
use crate::timeout::{Finding, Look, Watch};

/// Runs `future` up to `deadline`.
pub(super) async fn before<F: Future>(deadline: Option<Instant>, future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    let mut timer = None;
    poll_fn(|cx| {
        if let Poll::Ready(output) = future.as_mut().poll(cx) {
            return Poll::Ready(Some(output));
        }
        let Some(deadline) = deadline else { return Poll::Pending };
        let timer = timer.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        timer.as_mut().poll(cx).map(|()| None)
    })
    .await
}

pin_project! {
    /// The wait for a response head, under its limits.
    pub(super) struct Wait<F> {
        #[pin]
        sent: F,
        // made when the first poll finds no answer
        #[pin]
        timer: Option<Sleep>,
        // made at its first look
        watch: Option<Watch>,
        now: Instant,
        head: Option<Duration>,
        deadline: Option<Instant>,
    }
}

impl<F: Future> Wait<F> {
    /// `now` is when the request was sent.
    pub(super) fn new(sent: F, now: Instant, head: Option<Duration>, deadline: Option<Instant>) -> Self {
        Self { sent, timer: None, watch: None, now, head, deadline }
    }

    /// Polls `sent` first, so that an answer that is there beats the clock.
    pub(super) fn poll(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        stamp: &Stamp,
        progress: Option<&Progress>,
    ) -> Poll<Result<F::Output, (BadGatewayCause, Phase)>> {
        let mut this = self.project();
        if let Poll::Ready(sent) = this.sent.poll(cx) {
            return Poll::Ready(Ok(sent));
        }
        let deadline = *this.deadline;
        if this.timer.is_none() {
            let Some(first) = earlier(this.head.map(|limit| Watch::first(*this.now, limit)), deadline) else {
                return Poll::Pending;
            };
            this.timer.set(Some(sleep_until(first)));
        }
        loop {
            let Some(mut armed) = this.timer.as_mut().as_pin_mut() else { return Poll::Pending };
            ready!(armed.as_mut().poll(cx));
            let now = Instant::now();
            let look = look(stamp, progress);
            if deadline.is_some_and(|deadline| deadline <= now) {
                return Poll::Ready(Err((BadGatewayCause::DeadlineExceeded, phase(look))));
            }
            let Some(limit) = *this.head else { return Poll::Pending };
            let watch = this.watch.get_or_insert_with(|| Watch::new(*this.now, limit));
            match watch.look(now, look, progress.and_then(Progress::ended)) {
                Finding::Passed(cause, phase) => return Poll::Ready(Err((cause, phase))),
                Finding::Again(at) => armed.reset(earlier(Some(at), deadline).unwrap_or(at)),
            }
        }
    }
}

fn look(stamp: &Stamp, progress: Option<&Progress>) -> Look {
    let wire = stamp.wire();
    let uploading = progress.filter(|progress| progress.ended().is_none());
    Look {
        written: wire.written,
        // other streams' bytes say nothing about this one
        read: if wire.multiplexed { 0 } else { wire.read },
        taken: progress.map_or(0, Progress::taken),
        uploading: uploading.is_some(),
        client_late: uploading.is_some_and(Progress::client_late),
        blocked: wire.blocked && !wire.multiplexed,
    }
}

fn phase(look: Look) -> Phase {
    match look {
        Look { uploading: true, .. } | Look { blocked: true, .. } => Phase::Send,
        Look { read: 0, .. } => Phase::Wait,
        _ => Phase::Head,
    }
}

fn earlier(one: Option<Instant>, other: Option<Instant>) -> Option<Instant> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}
