//! A body that the sweep of a layer around it can drop.
//!
//! A layer may stand around any body, also one that cannot be sent to the sweep's task; it can only give back what it holds
//! itself. A body of this crate's own client offers itself: the question travels with a poll, as that of
//! [`sight`](super::progress) does, so that a body that no layer has registered is not shared and costs nothing.

use std::cell::Cell;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use http_body::{Body, Frame, SizeHint};

use super::progress::ScopeGuard;
use crate::cause::{BadGatewayCause, Failure};

/// What can be dropped from another task.
pub(crate) trait Detach: Send + Sync {
    fn detach(&self);
}

thread_local! {
    static ASKED: Cell<bool> = const { Cell::new(false) };
    static OFFERED: Cell<Option<Arc<dyn Detach>>> = const { Cell::new(None) };
}

/// Polls with the question set; `known` is what was offered before. An entry around this one hears of it as well.
pub(super) fn query<T>(
    known: Option<Arc<dyn Detach>>,
    poll: impl FnOnce() -> Poll<T>,
) -> (Poll<T>, Option<Arc<dyn Detach>>) {
    OFFERED.set(None);
    let polled = {
        let _asked = ScopeGuard::set(&ASKED, known.is_none());
        poll()
    };
    let offered = OFFERED.take().or(known);
    if ASKED.get() {
        OFFERED.set(offered.clone());
    }
    (polled, offered)
}

/// A body, in its own hands until a layer around it asks.
pub(crate) struct Detachable<T> {
    own: Option<T>,
    shared: Option<Arc<Shared<T>>>,
}

struct Shared<T>(Mutex<Option<T>>);

impl<T> Detachable<T> {
    pub(crate) fn new(body: T) -> Self {
        Self { own: Some(body), shared: None }
    }

    pub(crate) fn show<R>(&self, show: impl FnOnce(&T) -> R) -> Option<R> {
        match (&self.own, &self.shared) {
            (Some(own), _) => Some(show(own)),
            (None, Some(shared)) => shared.lock().as_ref().map(show),
            (None, None) => None,
        }
    }
}

impl<T> Shared<T> {
    fn lock(&self) -> MutexGuard<'_, Option<T>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T: Send> Detach for Shared<T> {
    fn detach(&self) {
        let body = self.lock().take();
        // not under the lock: a drop may do anything
        drop(body);
    }
}

impl<T> Drop for Detachable<T> {
    fn drop(&mut self) {
        if let Some(shared) = &self.shared {
            // now, though an entry may hold it a moment longer
            let body = shared.lock().take();
            drop(body);
        }
    }
}

impl<T: Send + 'static> Detachable<T> {
    /// Shares the body with the layer that asks.
    #[cold]
    fn offer(&mut self) {
        OFFERED.set(Some(self.share()));
    }

    /// Shares the body with the sweep of a layer around it.
    pub(crate) fn share(&mut self) -> Arc<dyn Detach> {
        let own = &mut self.own;
        self.shared.get_or_insert_with(|| Arc::new(Shared(Mutex::new(own.take())))).clone()
    }
}

impl<T: Unpin> Detachable<T> {
    /// Polls the body; `None` once it was dropped by the sweep.
    #[inline]
    pub(crate) fn poll_own<R>(&mut self, poll: impl FnOnce(Pin<&mut T>) -> R) -> Option<R> {
        if let Some(own) = &mut self.own {
            return Some(poll(Pin::new(own)));
        }
        let mut shared = self.shared.as_ref()?.lock();
        Some(poll(Pin::new(shared.as_mut()?)))
    }
}

impl<T: Body<Error = Failure> + Send + Unpin + 'static> Body for Detachable<T> {
    type Data = T::Data;
    type Error = Failure;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<T::Data>, Failure>>> {
        let this = &mut *self;
        if ASKED.get() {
            this.offer();
        }
        let polled = this.poll_own(|body| body.poll_frame(cx));
        polled.unwrap_or_else(|| Poll::Ready(Some(Err(Failure::new(BadGatewayCause::ClientClosed)))))
    }

    fn is_end_stream(&self) -> bool {
        self.show(T::is_end_stream).unwrap_or(false)
    }

    fn size_hint(&self) -> SizeHint {
        self.show(T::size_hint).unwrap_or_default()
    }
}
