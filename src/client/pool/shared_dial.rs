//! A dial that requests share.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::pin;
use std::sync::atomic::Ordering::Relaxed;

use futures_util::future::{Either, select};
use hyper_util::client::legacy::connect::Connection;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::connections::Connections;
use super::{Connect, H1, Handoff, Pool, SendBody, Slot, State, Waiter, WaitsFor};
use crate::cause::Failure;

/// A dial for all waiters, in a task of its own: a cancelled waiter does not end it for the others.
///
/// Created before its task and moved into it, so that its drop notifies the waiters whatever happens to the task.
pub(super) struct SharedDial<C, B> {
    pool: Pool<C, B>,
    place: Option<Slot<B>>,
    cancelled: Option<oneshot::Receiver<Infallible>>,
    end: DialEnd,
}

enum DialEnd {
    /// The task was dropped, unpolled or not, or panicked.
    Lost,
    Cancelled,
    Opened,
    /// The upstream turned out to speak HTTP/1.1.
    Http1,
    Failed(Failure),
}

impl<C, B> SharedDial<C, B> {
    pub(super) fn new(pool: &Pool<C, B>, state: &mut State<B>, place: Slot<B>, now: Instant) -> Self {
        let (cancel, cancelled) = oneshot::channel();
        state.h2.dialing.push((now, cancel));
        Self { pool: pool.clone(), place: Some(place), cancelled: Some(cancelled), end: DialEnd::Lost }
    }
}

impl<C, B> Drop for SharedDial<C, B> {
    fn drop(&mut self) {
        drop(self.cancelled.take());
        let mut state = self.pool.shared.lock();
        state.h2.dialing.retain(|(_, cancel)| !cancel.is_closed());
        let expected = match self.end {
            DialEnd::Http1 => 0,
            _ => state.h2.expected(Instant::now()),
        };
        let told = state.take_who_wait_for_a_dial(expected);
        drop(state);
        for waiter in told {
            let _ = waiter.sender.send(match &self.end {
                DialEnd::Lost => Handoff::DialLost,
                DialEnd::Failed(failure) => Handoff::DialFailed(failure.clone()),
                DialEnd::Cancelled | DialEnd::Opened | DialEnd::Http1 => Handoff::Retry,
            });
        }
    }
}

impl<C: Connect, B: SendBody> SharedDial<C, B>
where
    C::Future: 'static,
{
    pub(super) fn spawn(self) {
        tokio::spawn(self.run());
    }

    async fn run(mut self) {
        let Some(cancelled) = self.cancelled.as_mut() else { return };
        // keep the slot until the waiters are notified: once released, it would be handed to one of them
        let dial = pin!(self.pool.dial_once(&mut self.place));
        self.end = match select(dial, cancelled).await {
            Either::Left((end, _)) => end.unwrap_or_else(DialEnd::Failed),
            Either::Right(_) => DialEnd::Cancelled,
        };
    }
}

impl<B> State<B> {
    /// Removes the waiters for a dial, except for the first `expected`, which other dials are likely to serve.
    fn take_who_wait_for_a_dial(&mut self, expected: usize) -> Vec<Waiter<B>> {
        let mut before = 0;
        let (left, taken) = std::mem::take(&mut self.waiters)
            .into_iter()
            .filter(|waiter| !waiter.sender.is_closed())
            .partition::<VecDeque<_>, _>(|waiter| {
            before += usize::from(waiter.waits_for != WaitsFor::Http1);
            waiter.waits_for != WaitsFor::Dial || before <= expected
        });
        self.waiters = left;
        taken.into()
    }

    /// Whether this many expected streams suffice for the waiters and one more.
    pub(super) fn is_served_by(&mut self, expected: usize) -> bool {
        if expected > 0 && self.waiters.len() >= expected {
            self.waiters.retain(|waiter| !waiter.sender.is_closed());
        }
        self.waiters.len() < expected
    }
}

impl<C: Connect, B: SendBody> Pool<C, B>
where
    C::Future: 'static,
{
    /// Dials in a place that was waited for.
    pub(super) fn dial_shared(&self, place: Slot<B>) {
        let dial = SharedDial::new(self, &mut self.shared.lock(), place, Instant::now());
        dial.spawn();
    }

    async fn dial_once(&self, place: &mut Option<Slot<B>>) -> Result<DialEnd, Failure> {
        let io = self.connect(false).await?;
        if self.dial.http.is_h2() || io.connected().is_negotiated_h2() {
            let opened = Connections::shake_hands(io, place, &self.shared).await?;
            self.shared.add(opened, false);
            return Ok(DialEnd::Opened);
        }
        self.shared.seems_h2.store(false, Relaxed);
        if let Some(place) = place.take() {
            H1::shake_hands(io, place, &self.shared).await?.put_idle(Instant::now());
        }
        Ok(DialEnd::Http1)
    }
}
