//! A semaphore of striped counters whose quotas add up to the limit.
//!
//! A call takes a slot in its thread's stripe and releases it there: one compare-exchange each, on a word that other
//! threads seldom touch. If the quota of the stripe is used up, it takes a slot of another stripe. Quota and count share one
//! word, so a stripe never exceeds its quota, and all together never exceed the limit.
//!
//! Lowering the limit removes free slots from the quotas. Slots in use beyond the new limit are the deficit, and stripes
//! are marked: a slot released in a marked stripe is removed together with its quota until the deficit is repaid. No call
//! is interrupted, and none is admitted before enough have ended. A slot that is taken beyond the limit is a deficit as well.
//!
//! Invariants under any interleaving (`tests/loom` checks them):
//!
//! - No more calls are in flight than the limit allows, except those admitted before it was lowered or beyond it.
//! - A call is refused only if all slots were in use at one moment: each word counts the releases, and the second pass has
//!   to find all words unchanged.
//! - No slot is lost or duplicated, also while the limit changes.
use crate::stats::sync::{AtomicU32, AtomicU64, Ordering};

// a word from the highest bits: generation, mark, quota, acquired slots
const ACQUIRED: u64 = 1;
const QUOTA: u64 = 1 << 20;
const OVERCOMMITTED: u64 = 1 << 40;
const GENERATION: u64 = 1 << 41;

/// The largest limit.
pub(crate) const MAX_LIMIT: u32 = (1 << 20) - 1;

/// The maximum of `stats::default_stripes`.
const MAX_STRIPES: usize = 16;

/// One counter on its own cache lines.
#[derive(Debug)]
#[repr(align(128))] // two lines: prefetchers load them in pairs
struct Stripe(AtomicU64);

/// The semaphore for calls in flight.
#[derive(Debug)]
pub(crate) struct StripedSemaphore {
    stripes: Box<[Stripe]>,
    /// One less than the number of stripes, a power of two.
    mask: usize,
    /// Slots in use beyond the limit; they are removed when released.
    deficit: AtomicU32,
    limit: AtomicU32,
}

/// An acquired slot, to be released exactly once.
#[derive(Debug)]
#[must_use]
pub(crate) struct SlotRef {
    stripe: u8,
    generation: u8,
}

impl SlotRef {
    /// Whether the call with this slot is sampled: one in `mask + 1`, evenly over time; `mask` is a power of two less one.
    #[inline]
    pub(crate) fn is_sampled(&self, rarely: u8) -> bool {
        self.generation & rarely == 0
    }
}

impl StripedSemaphore {
    /// A semaphore with `limit` slots; the number of stripes is rounded up to a power of two, at most 16.
    pub(crate) fn new(limit: u32, stripes: usize) -> Self {
        let count = stripes.clamp(1, MAX_STRIPES).next_power_of_two();
        let limit = limit.clamp(1, MAX_LIMIT);
        let stripes = (0..count).map(|at| Stripe(AtomicU64::new(share(limit, at, count) * QUOTA))).collect();
        Self { stripes, mask: count - 1, deficit: AtomicU32::new(0), limit: AtomicU32::new(limit) }
    }

    /// Takes a slot if one is free; `stripe` may be any number that is constant for a thread.
    #[inline]
    pub(crate) fn try_acquire(&self, stripe: usize) -> Option<SlotRef> {
        let own = stripe & self.mask;
        match self.try_acquire_at(own) {
            Ok(slot) => Some(slot),
            Err(_) => self.try_acquire_elsewhere(own),
        }
    }

    /// Takes a slot of this stripe; if none is free, returns its word.
    #[inline]
    fn try_acquire_at(&self, at: usize) -> Result<SlotRef, u64> {
        let Some(Stripe(word)) = self.stripes.get(at) else { return Err(0) };
        let mut seen = word.load(Ordering::Acquire);
        while free(seen) > 0 {
            match word.compare_exchange_weak(seen, with_one_acquired(seen), Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return Ok(slot(at, seen)),
                Err(now) => seen = now,
            }
        }
        Err(seen)
    }

    #[cold]
    fn try_acquire_elsewhere(&self, own: usize) -> Option<SlotRef> {
        let mut full = [0; MAX_STRIPES];
        let order = || (0..self.stripes.len()).map(|step| (own + step) & self.mask);
        loop {
            for at in order() {
                match self.try_acquire_at(at) {
                    Ok(slot) => return Some(slot),
                    Err(seen) => full[at] = seen,
                }
            }
            // a slot of an earlier stripe may have been released while a later one was checked
            if order().all(|at| self.stripes[at].0.load(Ordering::Acquire) == full[at]) {
                return None;
            }
        }
    }

    /// Takes a slot, beyond the limit if none is free; `None` only at [`MAX_LIMIT`].
    pub(crate) fn acquire_beyond(&self, stripe: usize) -> Option<SlotRef> {
        self.try_acquire(stripe).or_else(|| self.overcommit(stripe & self.mask))
    }

    #[cold]
    fn overcommit(&self, at: usize) -> Option<SlotRef> {
        let Stripe(word) = self.stripes.get(at)?;
        // before the word: a release that sees the mark has to see the deficit
        self.deficit.fetch_add(1, Ordering::AcqRel);
        let one_more = |seen: u64| {
            let taken = with_one_acquired(seen) + QUOTA;
            (quota(seen) < u64::from(MAX_LIMIT)).then(|| taken.wrapping_add(GENERATION) | OVERCOMMITTED)
        };
        let taken = word.fetch_update(Ordering::AcqRel, Ordering::Acquire, one_more);
        if taken.is_err() {
            self.repay(1);
        }
        taken.ok().map(|seen| slot(at, seen))
    }

    /// Releases a slot.
    #[inline]
    #[allow(clippy::needless_pass_by_value)] // it is given back once
    pub(crate) fn release(&self, slot: SlotRef) {
        let Some(Stripe(word)) = self.stripes.get(usize::from(slot.stripe)) else { return };
        let mut seen = word.load(Ordering::Acquire);
        while seen & OVERCOMMITTED == 0 {
            match word.compare_exchange_weak(seen, with_one_released(seen), Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return,
                Err(now) => seen = now,
            }
        }
        self.release_or_repay(word);
    }

    #[cold]
    fn release_or_repay(&self, word: &AtomicU64) {
        if self.repay(1) == 1 {
            let paid = |seen: u64| Some(with_one_released(seen) - QUOTA);
            // the closure never declines
            let _ = word.fetch_update(Ordering::AcqRel, Ordering::Acquire, paid);
            return;
        }
        let mut seen = word.load(Ordering::Acquire);
        // load the deficit after the word: creating a deficit also bumps the word's generation, so the exchange fails
        while self.deficit.load(Ordering::Acquire) == 0 {
            match word.compare_exchange(
                seen,
                with_one_released(seen) & !OVERCOMMITTED,
                Ordering::AcqRel,
                Ordering::Acquire,
            ) {
                Ok(_) => return,
                Err(now) => seen = now,
            }
        }
        self.release_or_repay(word);
    }

    /// Repays up to `most` of the deficit and returns how much.
    fn repay(&self, most: u32) -> u32 {
        let less = |debt: u32| (debt > 0).then(|| debt - debt.min(most));
        self.deficit.fetch_update(Ordering::AcqRel, Ordering::Acquire, less).map_or(0, |debt| debt.min(most))
    }

    /// Changes the limit; not to be called concurrently.
    pub(crate) fn resize(&self, limit: u32) {
        let (before, limit) = (self.limit(), limit.clamp(1, MAX_LIMIT));
        if limit > before {
            self.limit.store(limit, Ordering::Relaxed);
            self.raise(limit, limit - before);
        } else if limit < before {
            self.lower(limit, before - limit);
            self.limit.store(limit, Ordering::Relaxed);
        }
    }

    fn raise(&self, limit: u32, by: u32) {
        let mut left = u64::from(by - self.repay(by));
        for (at, Stripe(word)) in self.stripes.iter().enumerate() {
            let wanted = share(limit, at, self.stripes.len()).saturating_sub(quota(word.load(Ordering::Acquire)));
            let more = wanted.min(left);
            left -= more;
            word.fetch_add(more * QUOTA, Ordering::AcqRel);
        }
        // nothing should be left: the shares add up to the limit, and the quotas with the deficit do not exceed it
        if let Some(Stripe(word)) = self.stripes.first() {
            word.fetch_add(left * QUOTA, Ordering::AcqRel);
        }
    }

    fn lower(&self, limit: u32, by: u32) {
        self.deficit.fetch_add(by, Ordering::AcqRel);
        for (at, Stripe(word)) in self.stripes.iter().enumerate() {
            let share = share(limit, at, self.stripes.len());
            self.reclaim(word, 0, |quota| quota.saturating_sub(share));
        }
        for Stripe(word) in &self.stripes {
            if self.deficit.load(Ordering::Acquire) == 0 {
                return;
            }
            self.reclaim(word, OVERCOMMITTED, |quota| quota);
        }
    }

    /// Removes free slots from a quota to repay the deficit.
    fn reclaim(&self, word: &AtomicU64, mark: u64, most: impl Fn(u64) -> u64) {
        let debt = u64::from(self.deficit.load(Ordering::Acquire));
        let reclaimed = |seen: u64| most(quota(seen)).min(free(seen)).min(debt);
        let lowered = |seen: u64| Some((seen - reclaimed(seen) * QUOTA).wrapping_add(GENERATION) | mark);
        let Ok(seen) = word.fetch_update(Ordering::AcqRel, Ordering::Acquire, lowered) else { return };
        let reclaimed = reclaimed(seen);
        let paid = self.repay(u32::try_from(reclaimed).unwrap_or(u32::MAX));
        // other threads may have repaid in the meantime
        word.fetch_add((reclaimed - u64::from(paid)) * QUOTA, Ordering::AcqRel);
    }

    /// The limit of calls in flight.
    pub(crate) fn limit(&self) -> u32 {
        self.limit.load(Ordering::Relaxed)
    }

    /// Calls in flight.
    pub(crate) fn in_flight(&self) -> u32 {
        let taken = self.stripes.iter().map(|stripe| acquired(stripe.0.load(Ordering::Acquire))).sum::<u64>();
        u32::try_from(taken).unwrap_or(u32::MAX)
    }
}

/// A stripe's share of a limit.
fn share(limit: u32, at: usize, stripes: usize) -> u64 {
    let (limit, stripes) = (u64::from(limit), stripes as u64);
    limit / stripes + u64::from((at as u64) < limit % stripes)
}

#[inline]
fn quota(word: u64) -> u64 {
    (word / QUOTA) & u64::from(MAX_LIMIT)
}

#[inline]
fn acquired(word: u64) -> u64 {
    word & u64::from(MAX_LIMIT)
}

#[inline]
fn free(word: u64) -> u64 {
    quota(word) - acquired(word)
}

#[inline]
fn with_one_acquired(word: u64) -> u64 {
    word + ACQUIRED
}

#[inline]
fn with_one_released(word: u64) -> u64 {
    (word - ACQUIRED).wrapping_add(GENERATION)
}

#[inline]
#[allow(clippy::cast_possible_truncation)] // there are 16 stripes at most, and of the turns the low bits do
fn slot(at: usize, word: u64) -> SlotRef {
    // multiply to spread the generations: slots acquired in bulk have few different low bits
    let turn = ((word / GENERATION) as u32).wrapping_mul(0x9E37_79B9) >> 24;
    SlotRef { stripe: at as u8, generation: turn as u8 }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};

    use proptest::prelude::*;

    use super::*;

    /// All that can be had.
    fn drain(slots: &StripedSemaphore) -> Vec<SlotRef> {
        std::iter::from_fn(|| slots.try_acquire(0)).collect()
    }

    #[test]
    fn any_stripe_gets_all_there_is_and_one_given_back_is_taken_again() {
        for own in 0..4 {
            let slots = StripedSemaphore::new(10, 4);
            let mut held: Vec<_> = (0..10).map(|_| slots.try_acquire(own).unwrap()).collect();
            assert!(slots.try_acquire(own).is_none() && slots.try_acquire(own + 1).is_none());
            assert_eq!(slots.in_flight(), 10);
            slots.release(held.swap_remove(3));
            assert!(slots.try_acquire(own + 2).is_some());
            assert!(slots.try_acquire(own).is_none());
        }
    }

    #[test]
    fn a_limit_below_the_calls_in_flight_rejects_until_enough_have_ended() {
        let slots = StripedSemaphore::new(8, 4);
        let mut held = drain(&slots);
        slots.resize(3);
        for left in (3..8).rev() {
            assert!(slots.try_acquire(left).is_none(), "{left} are in flight");
            slots.release(held.pop().unwrap());
            assert_eq!(slots.in_flight() as usize, left);
        }
        assert!(slots.try_acquire(0).is_none(), "three are the limit");
        slots.release(held.pop().unwrap());
        assert!(slots.try_acquire(0).is_some());
        assert!(slots.try_acquire(0).is_none());
    }

    #[test]
    fn a_slot_beyond_the_limit_is_repaid_before_another_is_given() {
        for stripes in [1, 4] {
            let slots = StripedSemaphore::new(3, stripes);
            let mut held = drain(&slots);
            held.extend((0..3).map(|own| slots.acquire_beyond(own).unwrap()));
            assert_eq!(slots.in_flight(), 6);
            held.drain(..).for_each(|slot| slots.release(slot));
            assert_eq!((slots.in_flight(), drain(&slots).len()), (0, 3));
        }
        let full = StripedSemaphore::new(u32::MAX, 1);
        let _held = drain(&full);
        assert!(full.acquire_beyond(0).is_none());
    }

    #[test]
    fn a_limit_that_rises_again_cancels_the_deficit() {
        let slots = StripedSemaphore::new(8, 2);
        let held = drain(&slots);
        slots.resize(2);
        slots.resize(9);
        assert_eq!(drain(&slots).len(), 1);
        for slot in held {
            slots.release(slot);
        }
        assert_eq!(drain(&slots).len(), 8);
    }

    #[test]
    fn a_limit_is_one_at_least_and_a_million_at_most() {
        assert_eq!(drain(&StripedSemaphore::new(0, 16)).len(), 1);
        let slots = StripedSemaphore::new(u32::MAX, 1);
        assert_eq!(slots.limit(), 1_048_575);
        assert_eq!(drain(&slots).len(), 1_048_575);
    }

    #[test]
    fn one_slot_in_so_many_is_that_one() {
        let slots = StripedSemaphore::new(5, 1);
        let ones = (0..64).filter(|_| {
            let slot = slots.try_acquire(0).unwrap();
            let one = slot.is_sampled(7);
            slots.release(slot);
            one
        });
        assert!((6..=10).contains(&ones.count()));
    }

    #[test]
    fn threads_never_hold_more_than_the_limit_and_none_is_lost_while_it_changes() {
        const MOST: u32 = 7;
        let (slots, held, done) = (StripedSemaphore::new(MOST, 4), AtomicU32::new(0), AtomicBool::new(false));
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4)
                .map(|own| {
                    let (slots, held) = (&slots, &held);
                    scope.spawn(move || {
                        let mut given = 0_u32;
                        for _ in 0..20_000 {
                            if let Some(slot) = slots.try_acquire(own) {
                                given += 1;
                                assert!(held.fetch_add(1, SeqCst) < MOST);
                                held.fetch_sub(1, SeqCst);
                                slots.release(slot);
                            }
                        }
                        given
                    })
                })
                .collect();
            let resizer = scope.spawn(|| {
                for limit in (1..=MOST).cycle() {
                    slots.resize(limit);
                    if done.load(SeqCst) {
                        break;
                    }
                }
            });
            let given: u32 = threads.into_iter().map(|thread| thread.join().unwrap()).sum();
            done.store(true, SeqCst);
            resizer.join().unwrap();
            assert!(given > 0);
        });
        assert_eq!(slots.in_flight(), 0);
        assert_eq!(drain(&slots).len(), slots.limit() as usize);
    }

    #[derive(Clone, Copy, Debug)]
    enum Step {
        Take(usize),
        Give(usize),
        Resize(u32),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            5 => (0..16_usize).prop_map(Step::Take),
            3 => any::<usize>().prop_map(Step::Give),
            1 => (1..30_u32).prop_map(Step::Resize),
        ]
    }

    proptest! {
        #[test]
        fn a_slot_is_had_if_and_only_if_fewer_than_the_limit_are_in_flight(
            limit in 1..20_u32,
            stripes in 1..17_usize,
            steps in prop::collection::vec(step(), 0..300),
        ) {
            let slots = StripedSemaphore::new(limit, stripes);
            let (mut limit, mut held) = (limit as usize, Vec::new());
            for step in steps {
                match step {
                    Step::Take(own) => {
                        let taken = slots.try_acquire(own);
                        prop_assert_eq!(taken.is_some(), held.len() < limit);
                        held.extend(taken);
                    }
                    Step::Give(at) if !held.is_empty() => {
                        let slot = held.swap_remove(at % held.len());
                        slots.release(slot);
                    }
                    Step::Give(_) => {}
                    Step::Resize(to) => {
                        slots.resize(to);
                        limit = to as usize;
                    }
                }
                prop_assert_eq!(slots.in_flight() as usize, held.len());
            }
            for slot in held {
                slots.release(slot);
            }
            prop_assert_eq!(drain(&slots).len(), limit);
        }
    }
}
