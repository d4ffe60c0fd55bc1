//! The state that a response body shares with the sweep of its layer.
//!
//! Invariants for every interleaving (`tests/loom` checks them): the value is taken exactly once, by the consumer or by the
//! sweep; a body that was read since the last sample does not expire as unread; an entry that reuses the slot of another
//! does not expire in its place.

use std::sync::{PoisonError, TryLockError};
use std::task::Poll;

use crate::stats::sync::{AtomicU8, Mutex, MutexGuard, Ordering::Relaxed};

/// Not polled since the last sample, and the consumer has the last frame.
const UNREAD: u8 = 0;
/// The consumer has taken a frame since the last sample.
const READ: u8 = 1;
/// The consumer waits for a frame.
const WAITING: u8 = 2;

/// A value that the consumer and the sweep share; the first that locks it takes the value.
#[derive(Debug)]
pub(crate) struct Entry<T, E> {
    activity: AtomicU8,
    state: Mutex<State<T, E>>,
}

#[derive(Debug)]
enum State<T, E> {
    Open(T),
    Expired(E),
    Over,
}

/// The consumer's activity since the last sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Activity {
    Unread,
    Read,
    Waiting,
}

impl<T, E> Entry<T, E> {
    pub(crate) fn new(kept: T) -> Self {
        Self { activity: AtomicU8::new(READ), state: Mutex::new(State::Open(kept)) }
    }

    /// Returns the consumer's activity since the last sample, and resets it.
    pub(crate) fn sample(&self) -> Activity {
        match self.activity.compare_exchange(READ, UNREAD, Relaxed, Relaxed) {
            Ok(_) => Activity::Read,
            Err(WAITING) => Activity::Waiting,
            Err(_) => Activity::Unread,
        }
    }

    /// Whether nothing was read since the last sample.
    pub(crate) fn is_unread(&self) -> bool {
        self.activity.load(Relaxed) == UNREAD
    }

    /// Polls with the value.
    ///
    /// # Errors
    ///
    /// The error of [`try_expire`](Self::try_expire) if the body has expired, once; else `None`.
    pub(crate) fn poll<R>(&self, poll: impl FnOnce(&mut T) -> Poll<R>) -> Result<Poll<R>, Option<E>> {
        let mut state = self.lock();
        let State::Open(kept) = &mut *state else {
            return Err(match std::mem::replace(&mut *state, State::Over) {
                State::Expired(error) => Some(error),
                _ => None,
            });
        };
        let polled = poll(kept);
        self.activity.store(if polled.is_pending() { WAITING } else { READ }, Relaxed);
        Ok(polled)
    }

    /// Maps the value; `None` once the body has ended or expired.
    pub(crate) fn show<R>(&self, show: impl FnOnce(&T) -> R) -> Option<R> {
        match &*self.lock() {
            State::Open(kept) => Some(show(kept)),
            State::Expired(_) | State::Over => None,
        }
    }

    /// Takes the value, as the body has ended; `None` if it has expired.
    pub(crate) fn take(&self) -> Option<T> {
        let mut state = self.lock();
        if matches!(*state, State::Expired(_)) {
            return None;
        }
        match std::mem::replace(&mut *state, State::Over) {
            State::Open(kept) => Some(kept),
            State::Expired(_) | State::Over => None,
        }
    }

    /// Passes the value to `expire`, unless the consumer is just polling the body, or `only_unread` is set and the
    /// consumer has polled it since the last sample. Returns whether the body has ended.
    ///
    /// `expire` runs under the lock, so that a consumer that polls now gets the error.
    pub(crate) fn try_expire(&self, only_unread: bool, expire: impl FnOnce(T) -> E) -> bool {
        let mut state = match self.state.try_lock() {
            Ok(state) => state,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return false,
        };
        if only_unread && !self.is_unread() {
            return false;
        }
        match std::mem::replace(&mut *state, State::Over) {
            State::Open(kept) => *state = State::Expired(expire(kept)),
            over => *state = over,
        }
        true
    }

    fn lock(&self) -> MutexGuard<'_, State<T, E>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The number of entries up to which an empty registry keeps its memory.
const KEPT: usize = 64;

/// The bodies that a sweep walks over.
#[derive(Debug)]
pub(crate) struct Registry<B> {
    slots: Vec<Slot<B>>,
    vacant: Vec<usize>,
    open: usize,
}

#[derive(Debug)]
enum Slot<B> {
    Vacant,
    /// Expired, and its consumer has not noticed.
    Expired,
    Open(B),
}

impl<B> Default for Registry<B> {
    fn default() -> Self {
        Self { slots: Vec::new(), vacant: Vec::new(), open: 0 }
    }
}

impl<B> Registry<B> {
    /// Adds a body; its key.
    pub(crate) fn add(&mut self, body: B) -> usize {
        self.open += 1;
        let Some(key) = self.vacant.pop() else {
            self.slots.push(Slot::Open(body));
            return self.slots.len() - 1;
        };
        self.slots[key] = Slot::Open(body);
        key
    }

    /// Removes the body of this key, as its consumer has dropped it; `None` if it had expired.
    pub(crate) fn remove(&mut self, key: usize) -> Option<B> {
        let slot = std::mem::replace(&mut self.slots[key], Slot::Vacant);
        self.vacant.push(key);
        // the memory of a peak is released once the registry is empty
        if self.slots.len() > KEPT && self.vacant.len() == self.slots.len() {
            (self.slots, self.vacant) = (Vec::new(), Vec::new());
        }
        let Slot::Open(body) = slot else { return None };
        self.open -= 1;
        Some(body)
    }

    /// Marks a body as expired, unless its consumer has removed it and another has its key.
    pub(crate) fn expire(&mut self, key: usize, is_same: impl FnOnce(&B) -> bool) {
        let Some(slot) = self.slots.get_mut(key) else { return };
        if matches!(slot, Slot::Open(body) if is_same(body)) {
            *slot = Slot::Expired;
            self.open -= 1;
        }
    }

    /// The bodies that may still expire, with their keys.
    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = (usize, &mut B)> {
        self.slots.iter_mut().enumerate().filter_map(|(key, slot)| match slot {
            Slot::Open(body) => Some((key, body)),
            Slot::Vacant | Slot::Expired => None,
        })
    }

    /// The number of bodies that may still expire.
    #[cfg(test)]
    pub(crate) fn open(&self) -> usize {
        self.open
    }

    #[cfg(test)]
    pub(crate) fn capacity(&self) -> usize {
        self.slots.capacity()
    }
}
