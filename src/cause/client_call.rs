//! Identifies the client call a failure is about.
//!
//! "Not sent" proves something about the request of one client call and nothing about any other: a handler may have called
//! another upstream, or written to a database, before it returns that failure. So a layer trusts it only for the
//! one client call that its own `call` made before it returned. By tower's convention nothing else happens there; a
//! handler calls its clients when its future is polled.
//!
//! Counting suffices: a client draws the next number of its thread, and a layer compares the thread's counter before
//! and after. The request carries nothing.

use std::cell::Cell;
use std::num::NonZeroU64;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// The low bits count calls; the bits above number the threads.
const CALL_BITS: u32 = 40;

/// The value of `before` that means: no client drew a number, and `after` is the layer's own.
const OWN: u64 = u64::MAX;

thread_local! {
    /// The number of the thread's last client call; 0 before the first.
    static LAST: Cell<u64> = const { Cell::new(0) };
    /// The number drawn for the client call that is being made; 0 for none.
    static PROMISED: Cell<u64> = const { Cell::new(0) };
}

/// One call of a client, by numbers that are unique in the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ClientCall {
    number: NonZeroU64,
    /// The number by which layers further out know this call.
    promised: Option<NonZeroU64>,
}

impl ClientCall {
    /// Draws the next number, for a client in its `call`, or for a layer that rejects the call instead.
    #[inline]
    pub(crate) fn next() -> Self {
        let mut last = LAST.get();
        if last == 0 {
            last = first();
        }
        // 2^40 calls on one thread outlast any process
        let number = NonZeroU64::MIN.saturating_add(last);
        LAST.set(number.get());
        Self { number, promised: NonZeroU64::new(PROMISED.replace(0)) }
    }

    /// Makes a call for which this number was drawn earlier; the first client called in it takes over the number.
    pub(crate) fn make<T>(self, call: impl FnOnce() -> T) -> T {
        /// Restores the number on drop, and so after a panic of the call too.
        struct Restore(u64);
        impl Drop for Restore {
            fn drop(&mut self) {
                PROMISED.set(self.0);
            }
        }
        let _restore = Restore(PROMISED.replace(self.number.get()));
        call()
    }
}

#[cold]
fn first() -> u64 {
    static THREADS: AtomicU64 = AtomicU64::new(0);
    THREADS.fetch_add(1, Relaxed) << CALL_BITS
}

/// The client calls that a layer's `call` made before it returned.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct ClientCalls {
    before: u64,
    after: u64,
}

impl ClientCalls {
    /// Starts counting; to be [ended](Self::end) on the same thread.
    #[inline]
    pub(crate) fn begin() -> Self {
        Self { before: LAST.get(), after: 0 }
    }

    /// Stops counting.
    #[inline]
    pub(crate) fn end(self) -> Self {
        Self { after: LAST.get(), ..self }
    }

    /// Stops counting; draws a number of the layer's own if no client drew one, because clients of other crates do not.
    #[inline]
    pub(crate) fn end_or_claim(self) -> Self {
        let ended = self.end();
        if ended.before == ended.after { Self { before: OWN, after: ClientCall::next().number.get() } } else { ended }
    }

    /// Whether this was the only client call.
    pub(crate) fn is_only(self, call: ClientCall) -> bool {
        self.only().is_some_and(|only| only == call.number || Some(only) == call.promised)
    }

    /// Updates the calls of a layer that drew a number in advance, with those that it has made since.
    pub(crate) fn made(self, made: Self) -> Self {
        match (self.before, made.before == made.after) {
            // the client has taken over that number
            (OWN, false) if made.is_one() => self.promised(),
            (OWN, true) => self,
            _ => Self::default(),
        }
    }

    /// Counts the layer's own number as the only call, as long as no call was made.
    pub(crate) fn promised(self) -> Self {
        if self.before == OWN { Self { before: self.after - 1, ..self } } else { self }
    }

    /// Whether there was exactly one client call.
    pub(super) fn is_one(self) -> bool {
        self.only().is_some()
    }

    /// The number for a record made here, by which layers further out know the call.
    pub(crate) fn claim(self) -> Option<ClientCall> {
        let own = NonZeroU64::new(self.after).filter(|_| self.before == OWN);
        own.or(self.only()).map(|number| ClientCall { number, promised: None })
    }

    fn only(self) -> Option<NonZeroU64> {
        let Self { before, after } = self;
        let is_first = before == 0 && after & ((1 << CALL_BITS) - 1) == 1;
        NonZeroU64::new(after).filter(|_| is_first || Some(after) == before.checked_add(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn during<T>(calls: impl FnOnce() -> T) -> (T, ClientCalls) {
        let counting = ClientCalls::begin();
        (calls(), counting.end())
    }

    #[test]
    fn a_layer_knows_the_one_client_call_that_it_made() {
        std::thread::spawn(|| {
            let (first, calls) = during(ClientCall::next);
            assert!(calls.is_only(first), "also the first of its thread");
            let ((second, inner), outer) = during(|| during(ClientCall::next));
            assert!(inner.is_only(second) && outer.is_only(second), "and so do all layers around it");
            assert!(!calls.is_only(second) && !outer.is_only(first));
        })
        .join()
        .unwrap();
    }

    #[test]
    fn none_or_several_client_calls_prove_nothing() {
        let ((), none) = during(|| {});
        assert!(!none.is_one() && !none.is_only(ClientCall::next()));
        let ((one, other), several) = during(|| (ClientCall::next(), ClientCall::next()));
        assert!(!several.is_one() && !several.is_only(one) && !several.is_only(other));
    }

    #[test]
    fn calls_of_two_threads_have_different_numbers() {
        let (_, here) = during(ClientCall::next);
        let there = std::thread::spawn(ClientCall::next).join().unwrap();
        assert!(!here.is_only(there));
    }

    #[test]
    fn a_call_that_is_made_later_is_known_by_the_number_that_was_drawn_for_it() {
        let (drawn, outer) = during(ClientCall::next);
        let ((made, inner), another) = drawn.make(|| (during(ClientCall::next), ClientCall::next()));
        assert!(outer.is_only(made) && inner.is_only(made));
        assert!(!outer.is_only(another) && !outer.is_only(ClientCall::next()));
    }
}
