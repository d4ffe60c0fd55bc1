//! The number of calls in flight, under a cap.
//!
//! A call that only waits for its client to read counts as an unbounded one.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::exchange::CallKind;

/// Counts bounded and unbounded calls in one word, so that a cap on both is exact.
///
/// Admission is one compare-and-swap and release one subtraction. No other memory depends on their order, so relaxed
/// ordering suffices.
#[derive(Debug)]
pub(super) struct InFlight {
    cap: u32,
    /// Bounded calls in the lower half, unbounded ones in the upper.
    taken: AtomicU64,
}

/// Why a call is not admitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AtCapacity {
    /// The cap is reached.
    Full,
    /// Too many calls are ahead for the deadline.
    TooLate,
}

const BOUNDED: u64 = 1;
const UNBOUNDED: u64 = 1 << 32;

fn one(kind: CallKind) -> u64 {
    match kind {
        CallKind::Bounded => BOUNDED,
        CallKind::Unbounded => UNBOUNDED,
    }
}

/// Bounded and unbounded calls.
fn split(taken: u64) -> (u32, u32) {
    let bounded = u32::try_from(taken & (UNBOUNDED - 1)).unwrap_or(u32::MAX);
    (bounded, u32::try_from(taken >> 32).unwrap_or(u32::MAX))
}

impl InFlight {
    /// A count with this cap, at least 1.
    pub(super) fn new(cap: usize) -> Self {
        // a cap below the width of a half keeps its count from overflowing into the other
        let cap = u32::try_from(cap).unwrap_or(u32::MAX).clamp(1, u32::MAX / 2);
        Self { cap, taken: AtomicU64::new(0) }
    }

    /// Takes a place if one is free and `suits` accepts its number among the bounded calls.
    pub(super) fn try_acquire(&self, kind: CallKind, suits: impl Fn(u32) -> bool) -> Result<u32, AtCapacity> {
        let mut taken = self.taken.load(Relaxed);
        loop {
            let (bounded, unbounded) = split(taken);
            if bounded + unbounded >= self.cap {
                return Err(AtCapacity::Full);
            }
            if !suits(bounded + 1) {
                return Err(AtCapacity::TooLate);
            }
            match self.taken.compare_exchange_weak(taken, taken + one(kind), Relaxed, Relaxed) {
                Ok(_) => return Ok(bounded + 1),
                Err(now) => taken = now,
            }
        }
    }

    /// A bounded call has its response head: it keeps its place, and delays no other call.
    pub(super) fn responded(&self) {
        self.taken.fetch_add(UNBOUNDED - BOUNDED, Relaxed);
    }

    /// Frees a place that was taken.
    pub(super) fn release(&self, kind: CallKind) {
        self.taken.fetch_sub(one(kind), Relaxed);
    }

    /// Bounded calls in flight.
    pub(super) fn bounded(&self) -> u32 {
        split(self.taken.load(Relaxed)).0
    }

    /// Calls in flight.
    pub(super) fn total(&self) -> u32 {
        let (bounded, unbounded) = split(self.taken.load(Relaxed));
        bounded + unbounded
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;

    use proptest::prelude::*;

    use super::*;

    fn anything(_: u32) -> bool {
        true
    }

    #[test]
    fn a_place_that_was_freed_is_given_to_the_next() {
        let places = InFlight::new(1);
        assert_eq!(places.try_acquire(CallKind::Bounded, anything), Ok(1));
        assert_eq!(places.try_acquire(CallKind::Bounded, anything), Err(AtCapacity::Full));
        places.release(CallKind::Bounded);
        assert_eq!(places.try_acquire(CallKind::Unbounded, anything), Ok(1));
        assert_eq!(places.try_acquire(CallKind::Bounded, anything), Err(AtCapacity::Full));
    }

    #[test]
    fn streams_take_a_place_and_do_not_delay_others() {
        let places = InFlight::new(9);
        for _ in 0..5 {
            assert_eq!(places.try_acquire(CallKind::Unbounded, |number| number == 1), Ok(1));
        }
        assert_eq!(places.try_acquire(CallKind::Bounded, |number| number == 1), Ok(1));
        assert_eq!(places.try_acquire(CallKind::Bounded, |number| number == 1), Err(AtCapacity::TooLate));
        assert_eq!((places.bounded(), places.total()), (1, 6));
    }

    #[test]
    fn no_cap_at_all_is_a_cap_of_one() {
        assert_eq!(InFlight::new(0).try_acquire(CallKind::Bounded, anything), Ok(1));
    }

    #[test]
    fn threads_never_hold_more_than_the_cap_together() {
        const CAP: u32 = 3;
        let (places, held) = (InFlight::new(CAP as usize), AtomicU32::new(0));
        let given: u32 = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4)
                .map(|thread| {
                    let kind = if thread % 2 == 0 { CallKind::Bounded } else { CallKind::Unbounded };
                    let (places, held) = (&places, &held);
                    scope.spawn(move || {
                        let mut given = 0;
                        for _ in 0..5_000 {
                            if places.try_acquire(kind, anything).is_ok() {
                                given += 1;
                                assert!(held.fetch_add(1, Relaxed) < CAP);
                                held.fetch_sub(1, Relaxed);
                                places.release(kind);
                            }
                        }
                        given
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert!(given > 0);
        assert_eq!(places.total(), 0, "none is lost");
    }

    proptest! {
        #[test]
        fn places_are_never_more_than_the_cap_and_never_lost(
            cap in 1_usize..8,
            steps in proptest::collection::vec((any::<bool>(), any::<bool>(), any::<bool>(), 0_u32..6), 0..60),
        ) {
            let places = InFlight::new(cap);
            let mut held: Vec<CallKind> = Vec::new();
            for (take, stream, responded, most) in steps {
                if let Some(kind) = held.iter_mut().find(|kind| responded && **kind == CallKind::Bounded) {
                    places.responded();
                    *kind = CallKind::Unbounded;
                }
                let kind = if stream { CallKind::Unbounded } else { CallKind::Bounded };
                let bounded = held.iter().filter(|kind| **kind == CallKind::Bounded).count();
                if take {
                    let expected = match u32::try_from(bounded + 1).unwrap() {
                        _ if held.len() == cap => Err(AtCapacity::Full),
                        number if number > most => Err(AtCapacity::TooLate),
                        number => Ok(number),
                    };
                    prop_assert_eq!(places.try_acquire(kind, |number| number <= most), expected);
                    held.extend(expected.is_ok().then_some(kind));
                } else if let Some(kind) = held.pop() {
                    places.release(kind);
                }
                prop_assert_eq!(places.total() as usize, held.len());
                prop_assert!(held.len() <= cap);
            }
        }
    }
}
