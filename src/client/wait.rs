//! The waits of an exchange, each with one timer that is made only if it is needed.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Poll, ready};
use std::time::Duration;

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

/// The wait for a response head, under its limits.
pub(super) struct Wait {
    pub(super) head: Option<Duration>,
    /// When the request was sent.
    pub(super) now: Instant,
    pub(super) deadline: Option<Instant>,
    pub(super) stamp: Stamp,
    pub(super) progress: Option<Arc<Progress>>,
}

impl Wait {
    /// Polls `sent` first, so that an answer that is there beats the clock.
    pub(super) async fn head<T>(self, sent: impl Future<Output = T>) -> Result<T, (BadGatewayCause, Phase)> {
        let mut sent = pin!(sent);
        let mut watch = self.head.map(|limit| Watch::new(self.now, limit));
        let mut timer = pin!(None::<Sleep>);
        poll_fn(|cx| {
            if let Poll::Ready(sent) = sent.as_mut().poll(cx) {
                return Poll::Ready(Ok(sent));
            }
            if timer.is_none() {
                let Some(first) = earlier(watch.as_ref().map(Watch::first), self.deadline) else {
                    return Poll::Pending;
                };
                timer.set(Some(sleep_until(first)));
            }
            loop {
                let Some(mut armed) = timer.as_mut().as_pin_mut() else { return Poll::Pending };
                ready!(armed.as_mut().poll(cx));
                let now = Instant::now();
                if self.deadline.is_some_and(|deadline| deadline <= now) {
                    return Poll::Ready(Err((BadGatewayCause::DeadlineExceeded, self.phase())));
                }
                let Some(watch) = &mut watch else { return Poll::Pending };
                let uploaded = self.progress.as_ref().and_then(|progress| progress.ended());
                match watch.look(now, self.look(), uploaded) {
                    Finding::Passed(cause, phase) => return Poll::Ready(Err((cause, phase))),
                    Finding::Again(at) => armed.reset(earlier(Some(at), self.deadline).unwrap_or(at)),
                }
            }
        })
        .await
    }

    fn look(&self) -> Look {
        let wire = self.stamp.wire();
        let uploading = self.progress.as_ref().filter(|progress| progress.ended().is_none());
        Look {
            written: wire.written,
            // other streams' bytes say nothing about this one
            read: if wire.multiplexed { 0 } else { wire.read },
            taken: self.progress.as_ref().map_or(0, |progress| progress.taken()),
            uploading: uploading.is_some(),
            client_late: uploading.is_some_and(|progress| progress.client_late()),
            blocked: wire.blocked && !wire.multiplexed,
        }
    }

    fn phase(&self) -> Phase {
        match self.look() {
            Look { uploading: true, .. } | Look { blocked: true, .. } => Phase::Send,
            Look { read: 0, .. } => Phase::Wait,
            _ => Phase::Head,
        }
    }
}

fn earlier(one: Option<Instant>, other: Option<Instant>) -> Option<Instant> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}
