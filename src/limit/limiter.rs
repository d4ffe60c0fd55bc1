//! The state that all clones of a layer share: the semaphore and the adaptive limit.

use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::Duration;

use tokio::time::Instant;

use super::gradient::{Gradient, LimitChangeReason};
use super::samples::{Sample, SampleKind};
use super::striped_semaphore::{MAX_LIMIT, SlotRef, StripedSemaphore};

/// Samples per 100 ms above which the sampling rate is halved: more samples add nothing.
const MANY_SAMPLES: u32 = 64;
const FEW_SAMPLES: u32 = 16;
/// The largest sampling mask: at least one call in 16 is sampled.
const MAX_SAMPLE_MASK: u8 = 15;

const RETRY_AFTER: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// Log a limit change only if it exceeds 1/`LOG_RATIO`, and at most once per `LOG_INTERVAL`.
const LOG_RATIO: u32 = 4;
const LOG_INTERVAL: Duration = Duration::from_secs(1);

/// The slots of one upstream and their limit.
#[derive(Debug)]
pub(super) struct Limiter {
    semaphore: StripedSemaphore,
    bounds: (u32, u32),
    /// Sampling mask: one call in `mask + 1` is sampled; a power of two less one.
    sample_mask: AtomicU8,
    /// `Retry-After` of refusals, in milliseconds.
    retry_after: AtomicU32,
    refused: Padded<AtomicU64>,
    /// `None` if the limit is fixed.
    adaptive: Option<Padded<Mutex<AdaptiveState>>>,
}

/// On its own cache lines: values that are written often, next to values that all threads read.
#[derive(Debug)]
#[repr(align(128))]
struct Padded<T>(T);

#[derive(Debug)]
struct AdaptiveState {
    gradient: Gradient,
    /// Samples since the sampling rate was last adjusted.
    samples: u32,
    /// The limit that was logged last, and when.
    logged: (u32, Option<Instant>),
}

/// A change of the limit that is to be logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LimitChange {
    pub(super) from: u32,
    pub(super) to: u32,
    pub(super) reason: LimitChangeReason,
}

/// Snapshot of a limiter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LimitSnapshot {
    /// The limit of calls in flight.
    pub limit: u32,
    /// Calls in flight.
    pub in_flight: u32,
    /// The latency without queueing; `None` before the first window and for a fixed limit.
    pub baseline: Option<Duration>,
    /// The latency in the last window: the time to the response head that a quarter of the good responses did not exceed.
    /// `None` before the first window and for a fixed limit.
    pub latency: Option<Duration>,
    /// Calls refused since the layer was created.
    pub refused: u64,
    /// Why the limit changed last; `None` if it never did.
    ///
    /// | word | |
    /// |---|---|
    /// | `grew` | responses were fast, and at least half of the limit was in use |
    /// | `slow` | responses took more than twice the baseline |
    /// | `overloaded` | more than a tenth of the calls were refused by the upstream or timed out |
    /// | `probe` | lowered for a moment, to measure the latency without queueing |
    /// | `probed` | a probe ended: the limit is back at its earlier value |
    /// | `recovered` | there was no evidence of overload for five seconds |
    pub moved: Option<&'static str>,
}

impl Limiter {
    /// A limiter between these bounds.
    pub(super) fn new(least: u32, most: u32, stripes: usize) -> Self {
        let least = least.clamp(1, MAX_LIMIT);
        let most = most.clamp(least, MAX_LIMIT);
        let gradient = Gradient::new(least, most);
        let limit = gradient.limit();
        let learned = AdaptiveState { gradient, samples: 0, logged: (limit, None) };
        Self {
            semaphore: StripedSemaphore::new(limit, stripes),
            bounds: (least, most),
            sample_mask: AtomicU8::new(0),
            retry_after: AtomicU32::new(0),
            refused: Padded(AtomicU64::new(0)),
            adaptive: (least < most).then(|| Padded(Mutex::new(learned))),
        }
    }

    /// The lower and upper bound of the limit.
    pub(super) fn bounds(&self) -> (u32, u32) {
        self.bounds
    }

    #[inline]
    pub(super) fn is_adaptive(&self) -> bool {
        self.adaptive.is_some()
    }

    /// Takes a slot and returns whether the call is to be sampled; if none is free, returns `Retry-After`.
    #[inline]
    pub(super) fn try_acquire(&self, stripe: usize, now: Instant) -> Result<(SlotRef, bool), Duration> {
        let slot = self.semaphore.try_acquire(stripe).or_else(|| self.recover(stripe, now));
        match slot {
            Some(slot) => {
                let looked_at = self.adaptive.is_some() && slot.is_sampled(self.sample_mask.load(Relaxed));
                Ok((slot, looked_at))
            }
            None => Err(self.reject()),
        }
    }

    /// Takes a slot after all, if the limit has been too low for long enough.
    #[cold]
    fn recover(&self, stripe: usize, now: Instant) -> Option<SlotRef> {
        let mut learned = self.try_lock()?;
        if learned.gradient.is_starved(now) {
            self.sample_mask.store(0, Relaxed);
        }
        let before = learned.gradient.limit();
        learned.gradient.recover(now);
        let limit = learned.gradient.limit();
        if limit <= before {
            return None;
        }
        self.semaphore.resize(limit);
        self.semaphore.try_acquire(stripe)
    }

    fn try_lock(&self) -> Option<MutexGuard<'_, AdaptiveState>> {
        match self.adaptive.as_ref()?.0.try_lock() {
            Ok(learned) => Some(learned),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    #[cold]
    fn reject(&self) -> Duration {
        self.refused.0.fetch_add(1, Relaxed);
        let after = Duration::from_millis(self.retry_after.load(Relaxed).into());
        after.clamp(RETRY_AFTER.0, RETRY_AFTER.1)
    }

    /// Takes a slot for a call that was admitted before, beyond the limit if none is free.
    pub(super) fn acquire_again(&self, stripe: usize) -> Option<SlotRef> {
        self.semaphore.acquire_beyond(stripe)
    }

    #[inline]
    pub(super) fn release(&self, slot: SlotRef) {
        self.semaphore.release(slot);
    }

    pub(super) fn in_flight(&self) -> u32 {
        self.semaphore.in_flight()
    }

    #[cfg(feature = "balance")]
    pub(super) fn is_full(&self) -> bool {
        self.semaphore.in_flight() >= self.semaphore.limit()
    }

    /// Adds a sample; returns a change of the limit that is to be logged.
    ///
    /// Uses `try_lock`: a busy estimator drops the sample rather than delay the call.
    pub(super) fn learn(&self, sample: &Sample) -> Option<LimitChange> {
        let mut learned = self.try_lock()?;
        let before = learned.gradient.limit();
        // a route that refuses each call at once must not hide the others
        learned.samples += u32::from(sample.kind != SampleKind::Overloaded);
        if learned.samples >= MANY_SAMPLES {
            // adjust immediately, not at the end of the window: sampling costs most at the start of a burst
            learned.samples = 0;
            self.sample_mask.store((self.sample_mask.load(Relaxed) * 2 + 1).min(MAX_SAMPLE_MASK), Relaxed);
        }
        if let Some((took, samples)) = learned.gradient.sample(sample) {
            learned.samples = 0;
            self.adjust_sampling(took, samples);
            let latency = learned.gradient.latency().unwrap_or_default();
            self.retry_after.store(u32::try_from(latency.as_millis()).unwrap_or(u32::MAX), Relaxed);
        }
        let limit = learned.gradient.limit();
        if limit == before {
            return None;
        }
        self.semaphore.resize(limit);
        learned.loggable_change(sample.now)
    }

    /// Samples more calls if there are few.
    fn adjust_sampling(&self, took: Duration, samples: u32) {
        let tenths = u32::try_from(took.as_millis() / 100).unwrap_or(u32::MAX).max(1);
        if samples / tenths < FEW_SAMPLES {
            self.sample_mask.store(self.sample_mask.load(Relaxed) / 2, Relaxed);
        }
    }

    /// The current limit and what it is based on.
    pub(super) fn snapshot(&self) -> LimitSnapshot {
        let learned: Option<MutexGuard<'_, AdaptiveState>> =
            self.adaptive.as_ref().map(|learned| learned.0.lock().unwrap_or_else(PoisonError::into_inner));
        let gradient = learned.as_ref().map(|learned| &learned.gradient);
        LimitSnapshot {
            limit: self.semaphore.limit(),
            in_flight: self.in_flight(),
            baseline: gradient.and_then(Gradient::baseline),
            latency: gradient.and_then(Gradient::latency),
            refused: self.refused.0.load(Relaxed),
            moved: gradient.and_then(Gradient::moved).map(LimitChangeReason::as_str),
        }
    }
}

impl AdaptiveState {
    fn loggable_change(&mut self, now: Instant) -> Option<LimitChange> {
        let (from, told) = self.logged;
        let to = self.gradient.limit();
        let early = told.is_some_and(|told| now.saturating_duration_since(told) < LOG_INTERVAL);
        let why = self.gradient.moved()?;
        // a probe usually ends at the limit it started from
        if early || why == LimitChangeReason::Probe || from.abs_diff(to) * LOG_RATIO <= from {
            return None;
        }
        self.logged = (to, Some(now));
        Some(LimitChange { from, to, reason: why })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;
    use crate::stats::RouteKey;

    const MS: Duration = Duration::from_millis(1);

    /// Runs batches of this many concurrent calls, which each end like this after this time.
    fn works(
        limiter: &Limiter,
        now: &mut Instant,
        at_once: usize,
        took: Duration,
        kind: SampleKind,
        batches: u32,
    ) -> Vec<(Instant, LimitChange)> {
        let mut changes = Vec::new();
        for _ in 0..batches {
            let taken: Vec<_> = (0..at_once).filter_map(|_| limiter.try_acquire(0, *now).ok()).collect();
            *now += took;
            for (slot, looked_at) in taken {
                if looked_at {
                    let in_flight = limiter.in_flight();
                    let sample = Sample { now: *now, in_flight, kind, took, route: RouteKey::default() };
                    changes.extend(limiter.learn(&sample).map(|change| (*now, change)));
                }
                limiter.release(slot);
            }
        }
        changes
    }

    #[test]
    fn the_slots_follow_the_gradient_and_lines_are_few() {
        let (limiter, mut now) = (Limiter::new(2, 200, 1), Instant::now());
        assert_eq!(limiter.snapshot().limit, 200);
        let mut changes = works(&limiter, &mut now, 500, MS * 10, SampleKind::Overloaded, 300);
        assert!(limiter.snapshot().limit < 10, "{:?}", limiter.snapshot());
        assert!(limiter.snapshot().refused > 0);
        changes.extend(works(&limiter, &mut now, 500, MS * 10, SampleKind::Success, 1000));
        assert_eq!(limiter.snapshot().limit, 200);
        assert!(limiter.snapshot().moved.is_some());
        assert!((3..=8).contains(&changes.len()), "{changes:?}");
        for pair in changes.windows(2) {
            assert!(pair[1].0 - pair[0].0 >= LOG_INTERVAL);
            assert_eq!(pair[1].1.from, pair[0].1.to);
        }
    }

    #[test]
    fn few_of_many_calls_are_sampled_and_all_of_few() {
        let (limiter, mut now) = (Limiter::new(2, 200, 1), Instant::now());
        works(&limiter, &mut now, 20, MS, SampleKind::Success, 3000);
        assert!(limiter.sample_mask.load(Relaxed) >= 7);
        works(&limiter, &mut now, 1, MS * 50, SampleKind::Success, 16 * 16 * 3);
        assert_eq!(limiter.sample_mask.load(Relaxed), 0);
    }

    #[test]
    fn a_fixed_limit_samples_no_call() {
        let (limiter, now) = (Limiter::new(3, 3, 4), Instant::now());
        let taken: Vec<_> = (0..5).map(|_| limiter.try_acquire(0, now)).collect();
        assert_eq!(taken.iter().filter(|taken| matches!(taken, Ok((_, false)))).count(), 3);
        assert!(matches!(taken[4], Err(after) if after == MS * 1000));
        let snapshot = limiter.snapshot();
        assert_eq!((snapshot.limit, snapshot.in_flight, snapshot.refused, snapshot.moved), (3, 3, 2, None));
    }

    #[test]
    fn a_rejection_has_the_response_time_as_its_retry_after() {
        let (limiter, mut now) = (Limiter::new(2, 200, 1), Instant::now());
        works(&limiter, &mut now, 20, MS * 2500, SampleKind::Success, 4);
        let _held: Vec<_> = (0..200).map_while(|_| limiter.try_acquire(0, now).ok()).collect();
        assert_eq!(limiter.try_acquire(0, now).err(), Some(MS * 2500));
    }

    #[test]
    fn reversed_bounds_are_a_fixed_limit() {
        for (least, most, limit) in [(9, 3, 9), (0, 0, 1)] {
            let limiter = Limiter::new(least, most, 1);
            assert_eq!(limiter.snapshot().limit, limit);
            assert!(limiter.adaptive.is_none());
        }
    }

    /// The next call in a history: how many at once, how long each takes in microseconds, how it ends, how often, and the
    /// pause after it.
    fn batches() -> impl Strategy<Value = (usize, u64, u8, u32, u64)> {
        let took = prop_oneof![0..100_u64, 0..100_000_u64, 0..10_000_000_u64];
        let pause = prop_oneof![4 => 0..1_000_u64, 1 => 0..100_000_000_u64];
        (1..300_usize, took, 0..4_u8, 1..60_u32, pause)
    }

    fn plays(limiter: &Limiter, now: &mut Instant, history: Vec<(usize, u64, u8, u32, u64)>) {
        for (at_once, took, kind, times, pause) in history {
            let took = Duration::from_micros(took);
            let kind = match kind {
                0 => SampleKind::Overloaded,
                1 => SampleKind::Responded,
                _ => SampleKind::Success,
            };
            works(limiter, now, at_once, took, kind, times);
            *now += Duration::from_micros(pause);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn after_any_history_a_healthy_upstream_is_not_refused_after_two_seconds_of_a_thousand_calls_each(
            most in 100..2000_u32,
            history in prop::collection::vec(batches(), 0..20),
            millis in 1..=20_u64,
        ) {
            let (limiter, mut now) = (Limiter::new(2, most, 1), Instant::now());
            plays(&limiter, &mut now, history);
            let (began, took) = (now, MS * u32::try_from(millis).unwrap());
            // one that has become slower during the overload has to wait for a probe
            prop_assume!(limiter.snapshot().baseline.is_none_or(|baseline| took <= baseline * 2));
            let mut under_way = VecDeque::new();
            for _ in 0..6_000 {
                now += MS;
                while under_way.front().is_some_and(|(begun, _)| *begun + took <= now) {
                    let Some((_, (slot, looked_at))) = under_way.pop_front() else { break };
                    if looked_at {
                        let (in_flight, kind) = (limiter.in_flight(), SampleKind::Success);
                        limiter.learn(&Sample { now, in_flight, kind, took, route: RouteKey::default() });
                    }
                    limiter.release(slot);
                }
                match limiter.try_acquire(0, now) {
                    Ok(taken) => under_way.push_back((now, taken)),
                    Err(_) => prop_assert!(now - began < MS * 2_000, "{:?} after {:?}", limiter, now - began),
                }
            }
        }

        #[test]
        fn after_any_history_a_healthy_upstream_is_not_refused_after_a_minute_of_few_calls(
            history in prop::collection::vec(batches(), 0..20),
            at_once in 1..50_usize,
            pause in 1..=30_u32,
        ) {
            let (limiter, mut now) = (Limiter::new(2, 1024, 1), Instant::now());
            plays(&limiter, &mut now, history);
            let began = now;
            while now - began < MS * 200_000 {
                let before = limiter.snapshot().refused;
                let at = now;
                works(&limiter, &mut now, at_once, MS * 20, SampleKind::Success, 1);
                prop_assert!(limiter.snapshot().refused == before || at - began < MS * 60_000, "{:?}", limiter);
                now += MS * 1000 * pause;
            }
        }
    }
}
