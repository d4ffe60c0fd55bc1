//! What all clones of one layer share: the slots, and who moves their number.

use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::Duration;

use tokio::time::Instant;

use super::gradient::{Gradient, Move};
use super::slots::{MOST, Slot, Slots};
use super::sum::Sample;

/// More samples than this in a tenth of a second bring nothing: then half as many calls are looked at.
const MANY: u32 = 64;
const FEW: u32 = 16;
/// One call in so many is looked at in any case, less one.
const RAREST: u8 = 15;

const RETRY_AFTER: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// A change of the limit is worth a line if it is by more than one in so many, and a second after the last.
const WORTH: u32 = 4;
const QUIET: Duration = Duration::from_secs(1);

/// The slots of one upstream, and their limit.
#[derive(Debug)]
pub(super) struct Limiter {
    slots: Slots,
    bounds: (u32, u32),
    /// One less than how many calls come to one that is looked at, a power of two.
    rarely: AtomicU8,
    /// In milliseconds.
    retry_after: AtomicU32,
    refused: Apart<AtomicU64>,
    /// None where the limit is fixed.
    learned: Option<Apart<Mutex<Learned>>>,
}

/// On cache lines of its own: what is written often, beside what all read.
#[derive(Debug)]
#[repr(align(128))]
struct Apart<T>(T);

#[derive(Debug)]
struct Learned {
    gradient: Gradient,
    /// Samples since it was last decided how many calls to look at.
    samples: u32,
    /// The limit that was told last, and when.
    told: (u32, Option<Instant>),
}

/// A change of the limit that is worth a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Change {
    pub(super) from: u32,
    pub(super) to: u32,
    pub(super) why: Move,
}

/// A limiter at one moment, for a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LimitSnapshot {
    /// How many may be in flight.
    pub limit: u32,
    /// How many are.
    pub in_flight: u32,
    /// How long a head takes when nothing waits in line before it; none before the first window, and for a fixed limit.
    pub baseline: Option<Duration>,
    /// The mean time to the head in the last window; none before the first, and for a fixed limit.
    pub mean: Option<Duration>,
    /// How many calls were refused since the layer was made.
    pub refused: u64,
    /// Why the limit moved last; none if it never did.
    pub moved: Option<Move>,
}

impl Limiter {
    /// A limiter between these bounds, with so many stripes.
    pub(super) fn new(least: u32, most: u32, stripes: usize) -> Self {
        let least = least.clamp(1, MOST);
        let most = most.clamp(least, MOST);
        let gradient = Gradient::new(least, most);
        let limit = gradient.limit();
        let learned = Learned { gradient, samples: 0, told: (limit, None) };
        Self {
            slots: Slots::new(limit, stripes),
            bounds: (least, most),
            rarely: AtomicU8::new(0),
            retry_after: AtomicU32::new(0),
            refused: Apart(AtomicU64::new(0)),
            learned: (least < most).then(|| Apart(Mutex::new(learned))),
        }
    }

    /// The least and the most that the limit may be.
    pub(super) fn bounds(&self) -> (u32, u32) {
        self.bounds
    }

    /// A slot, and whether the call that has it is looked at; else how long to stay away.
    #[inline]
    pub(super) fn take(&self, stripe: usize) -> Result<(Slot, bool), Duration> {
        match self.slots.take(stripe) {
            Some(slot) => {
                let looked_at = self.learned.is_some() && slot.is_one_of(self.rarely.load(Relaxed));
                Ok((slot, looked_at))
            }
            None => Err(self.refuse()),
        }
    }

    #[cold]
    fn refuse(&self) -> Duration {
        self.refused.0.fetch_add(1, Relaxed);
        let after = Duration::from_millis(self.retry_after.load(Relaxed).into());
        after.clamp(RETRY_AFTER.0, RETRY_AFTER.1)
    }

    #[inline]
    pub(super) fn give(&self, slot: Slot) {
        self.slots.give(slot);
    }

    pub(super) fn in_flight(&self) -> u32 {
        self.slots.in_flight()
    }

    /// Learns from a call that was looked at; a change of the limit, where that is worth a line.
    ///
    /// While somebody else is learning the sample is let go: whoever waits here holds up a call.
    pub(super) fn learn(&self, sample: &Sample) -> Option<Change> {
        let mut learned = match self.learned.as_ref()?.0.try_lock() {
            Ok(learned) => learned,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return None,
        };
        let before = learned.gradient.limit();
        learned.samples += 1;
        if learned.samples >= MANY {
            // at once, not at the end of the window: the first calls of a busy time are as dear as others
            learned.samples = 0;
            self.rarely.store((self.rarely.load(Relaxed) * 2 + 1).min(RAREST), Relaxed);
        }
        if let Some((took, samples)) = learned.gradient.sample(sample) {
            learned.samples = 0;
            self.pace(took, samples);
            let mean = learned.gradient.mean().unwrap_or_default();
            self.retry_after.store(u32::try_from(mean.as_millis()).unwrap_or(u32::MAX), Relaxed);
        }
        let limit = learned.gradient.limit();
        if limit == before {
            return None;
        }
        self.slots.resize(limit);
        learned.tell(sample.now)
    }

    /// Looks at more calls where there are few.
    fn pace(&self, took: Duration, samples: u32) {
        let tenths = u32::try_from(took.as_millis() / 100).unwrap_or(u32::MAX).max(1);
        if samples / tenths < FEW {
            self.rarely.store(self.rarely.load(Relaxed) / 2, Relaxed);
        }
    }

    /// How things stand.
    pub(super) fn snapshot(&self) -> LimitSnapshot {
        let learned: Option<MutexGuard<'_, Learned>> =
            self.learned.as_ref().map(|learned| learned.0.lock().unwrap_or_else(PoisonError::into_inner));
        let gradient = learned.as_ref().map(|learned| &learned.gradient);
        LimitSnapshot {
            limit: self.slots.limit(),
            in_flight: self.in_flight(),
            baseline: gradient.and_then(Gradient::baseline),
            mean: gradient.and_then(Gradient::mean),
            refused: self.refused.0.load(Relaxed),
            moved: gradient.and_then(Gradient::moved),
        }
    }
}

impl Learned {
    fn tell(&mut self, now: Instant) -> Option<Change> {
        let (from, told) = self.told;
        let to = self.gradient.limit();
        let early = told.is_some_and(|told| now.saturating_duration_since(told) < QUIET);
        let why = self.gradient.moved()?;
        // a probe ends where it began, as a rule
        if early || why == Move::Probe || from.abs_diff(to) * WORTH <= from {
            return None;
        }
        self.told = (to, Some(now));
        Some(Change { from, to, why })
    }
}

#[cfg(test)]
mod tests {
    use super::super::sum::End;
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// So many calls at once, one batch after the other, each of which takes so long.
    fn works(
        limiter: &Limiter,
        now: &mut Instant,
        at_once: usize,
        took: Duration,
        batches: u32,
    ) -> Vec<(Instant, Change)> {
        let mut changes = Vec::new();
        for _ in 0..batches {
            let began = *now;
            let taken: Vec<_> = (0..at_once).filter_map(|_| limiter.take(0).ok()).collect();
            *now += took;
            for (slot, looked_at) in taken {
                if looked_at {
                    let in_flight = limiter.in_flight();
                    let sample = Sample { began, now: *now, in_flight, end: End::Answered };
                    changes.extend(limiter.learn(&sample).map(|change| (*now, change)));
                }
                limiter.give(slot);
            }
        }
        changes
    }

    #[test]
    fn the_slots_follow_the_gradient_and_lines_are_few() {
        let (limiter, mut now) = (Limiter::new(2, 200, 1), Instant::now());
        assert_eq!(limiter.snapshot().limit, 20);
        let changes = works(&limiter, &mut now, 500, MS * 10, 500);
        assert!(limiter.snapshot().limit > 100, "{:?}", limiter.snapshot());
        assert!(limiter.snapshot().moved.is_some());
        assert!(limiter.snapshot().refused > 0);
        assert!((2..=5).contains(&changes.len()), "{changes:?}");
        for pair in changes.windows(2) {
            assert!(pair[1].0 - pair[0].0 >= QUIET);
            assert_eq!(pair[1].1.from, pair[0].1.to);
        }
    }

    #[test]
    fn of_many_calls_few_are_looked_at_and_of_few_all() {
        let (limiter, mut now) = (Limiter::new(2, 200, 1), Instant::now());
        works(&limiter, &mut now, 20, MS, 3000);
        assert!(limiter.rarely.load(Relaxed) >= 7);
        works(&limiter, &mut now, 1, MS * 50, 16 * 16 * 3);
        assert_eq!(limiter.rarely.load(Relaxed), 0);
    }

    #[test]
    fn a_fixed_limit_looks_at_nobody() {
        let limiter = Limiter::new(3, 3, 4);
        let taken: Vec<_> = (0..5).map(|_| limiter.take(0)).collect();
        assert_eq!(taken.iter().filter(|taken| matches!(taken, Ok((_, false)))).count(), 3);
        assert!(matches!(taken[4], Err(after) if after == MS * 1000));
        let snapshot = limiter.snapshot();
        assert_eq!((snapshot.limit, snapshot.in_flight, snapshot.refused, snapshot.moved), (3, 3, 2, None));
    }

    #[test]
    fn who_is_refused_is_told_to_come_back_when_those_in_flight_are_done() {
        let (limiter, mut now) = (Limiter::new(2, 200, 1), Instant::now());
        works(&limiter, &mut now, 20, MS * 2500, 4);
        let _held: Vec<_> = (0..200).map_while(|_| limiter.take(0).ok()).collect();
        assert_eq!(limiter.take(0).err(), Some(MS * 2500));
    }

    #[test]
    fn bounds_the_wrong_way_round_are_a_fixed_limit() {
        for (least, most, limit) in [(9, 3, 9), (0, 0, 1)] {
            let limiter = Limiter::new(least, most, 1);
            assert_eq!(limiter.snapshot().limit, limit);
            assert!(limiter.learned.is_none());
        }
    }
}
