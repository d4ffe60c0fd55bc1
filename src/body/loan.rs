//! Where what was lent is given back: a place for one thing, between its holder and its owner.
//!
//! Exactly one of the two has the thing, at any time. While the holder makes progress it reads one flag, and touches
//! the place itself only when it has to wait, and once at the end.

use std::task::{Context, Poll, Waker};

#[cfg(all(test, loom))]
use loom::sync::atomic::{AtomicU8, Ordering};
#[cfg(all(test, loom))]
use loom::sync::{Mutex, MutexGuard};
#[cfg(not(all(test, loom)))]
use std::sync::atomic::{AtomicU8, Ordering};
#[cfg(not(all(test, loom)))]
use std::sync::{Mutex, MutexGuard, PoisonError};

/// What the owner wants of the holder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RecallRequest {
    /// The thing back, when the holder is done with it.
    WhenDone,
    /// The thing back now.
    Now,
    /// Nothing: the owner has gone, the thing is the holder's.
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

/// A place for one thing that comes back.
#[derive(Debug)]
pub(super) struct Loan<T> {
    /// Changed under the lock; read without it by a holder who is not waiting.
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
    /// A place for what is out.
    pub(super) fn new() -> Self {
        Self { request: AtomicU8::new(0), state: Mutex::new(LoanState { back: None, holder: None, owner: None }) }
    }

    fn lock(&self) -> MutexGuard<'_, LoanState<T>> {
        #[cfg(all(test, loom))]
        return self.place.lock().unwrap();
        // nothing that can panic runs under the lock
        #[cfg(not(all(test, loom)))]
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the owner wants, as the holder may know it by now.
    #[inline]
    pub(super) fn request(&self) -> RecallRequest {
        RecallRequest::of(self.request.load(Ordering::Relaxed))
    }

    /// The holder has to wait for something else: it is woken when the owner wants the thing back.
    ///
    /// What the owner wants already is told for certain.
    pub(super) fn wait(&self, holder: &Waker) -> RecallRequest {
        let mut place = self.lock();
        let known = place.holder.as_ref().is_some_and(|known| known.will_wake(holder));
        let before = if known { None } else { place.holder.replace(holder.clone()) };
        let wish = self.request();
        // a waker's drop may do anything, so that all of them go after the lock
        drop(place);
        drop(before);
        wish
    }

    /// The holder gives the thing back, or drops it where nobody wants it.
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

    /// The owner takes the thing, if it is there, to lend it again.
    pub(super) fn take(&self) -> Option<T> {
        let mut place = self.lock();
        let back = place.back.take()?;
        self.request.store(0, Ordering::Relaxed);
        let owner = place.owner.take();
        drop(place);
        drop(owner);
        Some(back)
    }

    /// The owner takes the thing, or asks for it and waits.
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

    /// The owner goes: what is there is dropped, and what is out is the holder's.
    pub(super) fn abandon(&self) {
        let mut place = self.lock();
        self.request.store(2, Ordering::Relaxed);
        let left = (place.back.take(), place.owner.take());
        drop(place);
        drop(left);
    }
}
