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
pub(super) enum Wish {
    /// The thing back, when the holder is done with it.
    Keep,
    /// The thing back now.
    Return,
    /// Nothing: the owner has gone, the thing is the holder's.
    Nothing,
}

impl Wish {
    fn of(flag: u8) -> Self {
        match flag {
            0 => Self::Keep,
            1 => Self::Return,
            _ => Self::Nothing,
        }
    }
}

/// A place for one thing that comes back.
#[derive(Debug)]
pub(super) struct Slot<T> {
    /// Changed under the lock; read without it by a holder who is not waiting.
    wish: AtomicU8,
    place: Mutex<Place<T>>,
}

#[derive(Debug)]
struct Place<T> {
    back: Option<T>,
    holder: Option<Waker>,
    owner: Option<Waker>,
}

impl<T> Slot<T> {
    /// A place for what is out.
    pub(super) fn new() -> Self {
        Self { wish: AtomicU8::new(0), place: Mutex::new(Place { back: None, holder: None, owner: None }) }
    }

    fn lock(&self) -> MutexGuard<'_, Place<T>> {
        #[cfg(all(test, loom))]
        return self.place.lock().unwrap();
        // nothing that can panic runs under the lock
        #[cfg(not(all(test, loom)))]
        self.place.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the owner wants, as the holder may know it by now.
    #[inline]
    pub(super) fn wish(&self) -> Wish {
        Wish::of(self.wish.load(Ordering::Relaxed))
    }

    /// The holder has to wait for something else: it is woken when the owner wants the thing back.
    ///
    /// What the owner wants already is told for certain.
    pub(super) fn wait(&self, holder: &Waker) -> Wish {
        let mut place = self.lock();
        let known = place.holder.as_ref().is_some_and(|known| known.will_wake(holder));
        let before = if known { None } else { place.holder.replace(holder.clone()) };
        let wish = self.wish();
        // a waker's drop may do anything, so that all of them go after the lock
        drop(place);
        drop(before);
        wish
    }

    /// The holder gives the thing back, or drops it where nobody wants it.
    pub(super) fn give_back(&self, thing: T) {
        let mut place = self.lock();
        let holder = place.holder.take();
        let (owner, unwanted) = if self.wish() == Wish::Nothing {
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
        self.wish.store(0, Ordering::Relaxed);
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
            self.wish.store(0, Ordering::Relaxed);
        } else {
            place.owner = Some(cx.waker().clone());
            self.wish.store(1, Ordering::Relaxed);
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
    pub(super) fn leave(&self) {
        let mut place = self.lock();
        self.wish.store(2, Ordering::Relaxed);
        let left = (place.back.take(), place.owner.take());
        drop(place);
        drop(left);
    }
}
