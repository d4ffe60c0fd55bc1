//! A slot through which a lent value is returned from its holder to its owner.
//!
//! The value is always in exactly one place. While the holder makes progress it reads one flag; it takes the lock only
//! when it has to wait, and once at the end.

use std::task::{Context, Poll, Waker};

#[cfg(all(test, loom))]
use loom::sync::atomic::{AtomicU8, Ordering};
#[cfg(all(test, loom))]
use loom::sync::{Mutex, MutexGuard};
#[cfg(not(all(test, loom)))]
use std::sync::atomic::{AtomicU8, Ordering};
#[cfg(not(all(test, loom)))]
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The request of the owner to the holder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RecallRequest {
    /// Return the value when done with it.
    WhenDone,
    /// Return the value now.
    Now,
    /// The owner is gone; the holder keeps the value.
    Abandoned,
}

impl RecallRequest {
    fn of(flag: u8) -> Self {
        match flag {
            0 => Self::WhenDone,
            1 => Self::Now,
            _ => Self::Abandoned,
        }
    }
}

/// The slot of a lent value.
#[derive(Debug)]
pub(super) struct Loan<T> {
    /// Changed under the lock; read without it by a holder that is not waiting.
    request: AtomicU8,
    state: Mutex<LoanState<T>>,
}

#[derive(Debug)]
struct LoanState<T> {
    back: Option<T>,
    holder: Option<Waker>,
    owner: Option<Waker>,
}

impl<T> Loan<T> {
    /// The slot of a value that has been lent.
    pub(super) fn new() -> Self {
        Self { request: AtomicU8::new(0), state: Mutex::new(LoanState { back: None, holder: None, owner: None }) }
    }

    fn lock(&self) -> MutexGuard<'_, LoanState<T>> {
        #[cfg(all(test, loom))]
        return self.state.lock().unwrap();
        // nothing that can panic runs under the lock
        #[cfg(not(all(test, loom)))]
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The owner's request as last published.
    #[inline]
    pub(super) fn request(&self) -> RecallRequest {
        RecallRequest::of(self.request.load(Ordering::Relaxed))
    }

    /// Registers the holder's waker, to be woken when the owner recalls the value.
    ///
    /// Returns the owner's current request.
    pub(super) fn wait(&self, holder: &Waker) -> RecallRequest {
        let mut place = self.lock();
        let known = place.holder.as_ref().is_some_and(|known| known.will_wake(holder));
        let before = if known { None } else { place.holder.replace(holder.clone()) };
        let wish = self.request();
        // dropping a waker may run arbitrary code: never under the lock
        drop(place);
        drop(before);
        wish
    }

    /// Returns the value to the owner, or drops it if the owner is gone.
    pub(super) fn give_back(&self, thing: T) {
        let mut place = self.lock();
        let holder = place.holder.take();
        let (owner, unwanted) = if self.request() == RecallRequest::Abandoned {
            (None, Some(thing))
        } else {
            place.back = Some(thing);
            (place.owner.take(), None)
        };
        drop(place);
        if let Some(owner) = owner {
            owner.wake();
        }
        drop((holder, unwanted));
    }

    /// Takes the value, if it was returned, to lend it again.
    pub(super) fn take(&self) -> Option<T> {
        let mut place = self.lock();
        let back = place.back.take()?;
        self.request.store(0, Ordering::Relaxed);
        let owner = place.owner.take();
        drop(place);
        drop(owner);
        Some(back)
    }

    /// Takes the value, or recalls it and waits.
    pub(super) fn poll_take(&self, cx: &mut Context<'_>) -> Poll<T> {
        let mut place = self.lock();
        let back = place.back.take();
        let before = place.owner.take();
        let mut holder = None;
        if back.is_some() {
            self.request.store(0, Ordering::Relaxed);
        } else {
            place.owner = Some(cx.waker().clone());
            self.request.store(1, Ordering::Relaxed);
            holder = place.holder.take();
        }
        drop(place);
        drop(before);
        if let Some(holder) = holder {
            holder.wake();
        }
        back.map_or(Poll::Pending, Poll::Ready)
    }

    /// Ends the owner's interest: a returned value is dropped, a lent one stays with its holder.
    pub(super) fn abandon(&self) {
        let mut place = self.lock();
        self.request.store(2, Ordering::Relaxed);
        let left = (place.back.take(), place.owner.take());
        drop(place);
        drop(left);
    }
}
