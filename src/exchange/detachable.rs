//! A response body that the sweep of an outer layer can drop.
//!
//! A layer accepts any body, also one that is not `Send`: the sweep then releases only what the layer holds. A body of this
//! crate's client can be dropped by the sweep: a registered layer queries for it with a poll, as [`progress`](super::progress)
//! does, so that a body without a registration is not shared and costs nothing.

use std::cell::Cell;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use http_body::{Body, Frame, SizeHint};

use super::progress::ScopeGuard;
use crate::cause::{BadGatewayCause, Failure};

/// A value that can be dropped from another task.
pub(crate) trait Detach: Send + Sync {
    fn detach(&self);
}

thread_local! {
    static QUERIED: Cell<bool> = const { Cell::new(false) };
    static SHARED: Cell<Option<Arc<dyn Detach>>> = const { Cell::new(None) };
}

/// Polls with the query set, unless a body is `known` from before. An outer layer that queries gets the body as well.
pub(super) fn query<T>(
    known: Option<Arc<dyn Detach>>,
    poll: impl FnOnce() -> Poll<T>,
) -> (Poll<T>, Option<Arc<dyn Detach>>) {
    SHARED.set(None);
    let polled = {
        let _queried = ScopeGuard::set(&QUERIED, known.is_none());
        poll()
    };
    let shared = SHARED.take().or(known);
    if QUERIED.get() {
        SHARED.set(shared.clone());
    }
    (polled, shared)
}

/// A body that is shared once an outer layer queries for it.
pub(crate) struct Detachable<T> {
    own: Option<T>,
    shared: Option<Arc<Shared<T>>>,
}

struct Shared<T>(Mutex<Option<T>>);

impl<T> Detachable<T> {
    pub(crate) fn new(body: T) -> Self {
        Self { own: Some(body), shared: None }
    }

    /// Maps the body; `None` once the sweep has dropped it.
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
        // not under the lock: a drop may run any code
        drop(body);
    }
}

impl<T> Drop for Detachable<T> {
    fn drop(&mut self) {
        if let Some(shared) = &self.shared {
            // drops it now: an entry may keep its reference a moment longer
            let body = shared.lock().take();
            drop(body);
        }
    }
}

impl<T: Send + 'static> Detachable<T> {
    /// Shares the body with the layer that queries.
    #[cold]
    fn offer(&mut self) {
        SHARED.set(Some(self.share()));
    }

    /// Shares the body with the sweep of an outer layer.
    pub(crate) fn share(&mut self) -> Arc<dyn Detach> {
        let own = &mut self.own;
        self.shared.get_or_insert_with(|| Arc::new(Shared(Mutex::new(own.take())))).clone()
    }
}

impl<T: Unpin> Detachable<T> {
    /// Polls the body; `None` once the sweep has dropped it.
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
        if QUERIED.get() {
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
