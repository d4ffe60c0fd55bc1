//! Samples the call rate, and derives the cap and the floor of the budget from it.
//!
//! The rate is an exponentially weighted average over two seconds, updated every 100 ms by whichever call comes first. Under
//! heavy traffic only a sample of the calls checks the clock, because subtracting two instants costs more than all the
//! rest. Time is in microseconds since an epoch that the owner chooses.

use super::token_bucket::TOKEN;
use crate::stats::sync::{AtomicU32, AtomicU64, Ordering};
use crate::stats::{TickGuard, TickLock};

/// The length of a tick in microseconds.
const TICK: u64 = 100_000;

/// Ticks per second.
const TICKS: u64 = 10;

/// The decay of the rate per tick, in units of 2^-32: exp(-0.1 s / 2 s).
const DECAY: u64 = 4_085_499_269;
const DECAY_BITS: u32 = 32;

/// The longest time for which the floor is credited at once: without calls the rate decays, and later time adds nothing.
const MAX_PAID: u64 = 2_000_000;

/// The unit of the rate: millionths of a call per second.
const CALL: u64 = 1_000_000;

/// The maximum number of calls counted per tick, to exclude overflow.
const MAX_CALLS: u64 = 10_000_000;

/// The number of calls per stripe and tick that check the clock.
const SAMPLES_PER_TICK: u64 = 8;

/// At least one call in this many checks the clock, so that a tick is noticed soon after traffic drops suddenly.
const MAX_SAMPLING_INTERVAL: u64 = 16;

/// The smallest cap and floor of a budget, whatever the rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Minimum {
    /// In thousandths of a token.
    pub(crate) cap: u32,
    /// In thousandths of a token per second.
    pub(crate) floor: u32,
}

impl Minimum {
    /// For a process of a fleet: nothing that does not depend on the traffic, but three tokens to begin with.
    pub(crate) const FLEET: Self = Self { cap: 3 * TOKEN, floor: 0 };
    /// For a process that is alone, or one of few.
    pub(crate) const SINGLE: Self = Self { cap: 10 * TOKEN, floor: TOKEN };
}

/// The largest floor, in thousandths of a token per second.
const MAX_FLOOR: u64 = 10 * TOKEN as u64;

/// The floor as a percentage of the rate.
const FLOOR_PERCENT: u64 = 2;

/// The observed rate, and the cap and floor derived from it.
#[derive(Debug)]
pub(crate) struct RateSampler {
    ratio: u64,
    minimum: Minimum,
    stripes: u64,
    tick_lock: TickLock,
    /// Sampling mask: one call in `mask + 1` is sampled.
    sample_mask: AtomicU64,
    /// Written only while `tick_lock` is held.
    rate: AtomicU64,
    /// Number of calls included in the rate; written only while `tick_lock` is held.
    seen_calls: AtomicU64,
    /// The time up to which the floor has been credited.
    paid_until: AtomicU64,
    /// In thousandths of a token per second.
    floor: AtomicU32,
    /// Thousandths of a token.
    cap: AtomicU32,
}

impl RateSampler {
    pub(crate) fn new(ratio: u16, minimum: Minimum, stripes: usize) -> Self {
        Self {
            ratio: ratio.into(),
            minimum,
            stripes: stripes as u64,
            tick_lock: TickLock::new(),
            sample_mask: AtomicU64::new(0),
            rate: AtomicU64::new(0),
            seen_calls: AtomicU64::new(0),
            paid_until: AtomicU64::new(0),
            floor: AtomicU32::new(minimum.floor),
            cap: AtomicU32::new(minimum.cap),
        }
    }

    /// Whether a call checks the clock, by the number of earlier calls of its stripe.
    #[inline]
    pub(crate) fn is_sample(&self, begun: u64) -> bool {
        begun & self.sample_mask.load(Ordering::Relaxed) == 0
    }

    /// Takes the lock to update the rate in the tick of this time, once per tick.
    #[inline]
    pub(crate) fn try_lock(&self, micros: u64) -> Option<TickGuard<'_>> {
        self.tick_lock.try_lock(u32::try_from(micros / TICK).unwrap_or(u32::MAX))
    }

    /// Updates the rate with the total number of calls started, and cap and floor with it.
    ///
    /// The tokens due at the old floor have to be credited before.
    pub(crate) fn update(&self, taken: &TickGuard<'_>, begun: u64) {
        let new = begun.wrapping_sub(self.seen_calls.load(Ordering::Relaxed)).min(MAX_CALLS);
        // the first call of a tick updates the rate before it is counted: the new calls are those of the previous tick
        let rate = decayed(average(self.rate.load(Ordering::Relaxed), new), taken.since().saturating_sub(1));
        self.seen_calls.store(begun, Ordering::Relaxed);
        self.rate.store(rate, Ordering::Relaxed);
        self.floor.store(floor(rate).max(self.minimum.floor), Ordering::Relaxed);
        self.cap.store(cap(rate, self.ratio).max(self.minimum.cap), Ordering::Relaxed);
        self.sample_mask.store(sampling_interval(rate / CALL / TICKS / self.stripes) - 1, Ordering::Relaxed);
    }

    /// The tokens due since the last credit, in billionths of a token.
    pub(crate) fn take_due(&self, micros: u64) -> u64 {
        let paid = self.paid_until.fetch_max(micros, Ordering::Relaxed);
        micros.saturating_sub(paid).min(MAX_PAID) * u64::from(self.floor())
    }

    pub(crate) fn cap(&self) -> u32 {
        self.cap.load(Ordering::Relaxed)
    }

    /// The floor in thousandths of a token per second.
    pub(crate) fn floor(&self) -> u32 {
        self.floor.load(Ordering::Relaxed)
    }

    /// The rate in millionths of a call per second.
    pub(crate) fn rate(&self) -> u64 {
        self.rate.load(Ordering::Relaxed)
    }
}

/// The rate after one more tick with this many calls.
fn average(rate: u64, calls: u64) -> u64 {
    let now = calls * TICKS * CALL;
    scaled(rate, DECAY) + scaled(now, (1 << DECAY_BITS) - DECAY)
}

/// The rate after this many ticks without a call.
fn decayed(rate: u64, ticks: u32) -> u64 {
    let (mut rate, mut kept, mut ticks) = (rate, DECAY, ticks);
    while ticks > 0 && rate > 0 {
        if ticks & 1 == 1 {
            rate = scaled(rate, kept);
        }
        kept = scaled(kept, kept);
        ticks >>= 1;
    }
    rate
}

#[allow(clippy::cast_possible_truncation)] // a share of what fitted
fn scaled(rate: u64, share: u64) -> u64 {
    ((u128::from(rate) * u128::from(share)) >> DECAY_BITS) as u64
}

/// The sampling interval for this many calls per stripe and tick; a power of two.
fn sampling_interval(calls: u64) -> u64 {
    let most = (calls / SAMPLES_PER_TICK).clamp(1, MAX_SAMPLING_INTERVAL);
    1 << most.ilog2()
}

/// The lesser of 10 per second and 2 % of the rate.
fn floor(rate: u64) -> u32 {
    // converts millionths of a call to thousandths of a token, and percent
    let floor = (rate * FLOOR_PERCENT / (100 * CALL / u64::from(TOKEN))).min(MAX_FLOOR);
    u32::try_from(floor).unwrap_or(u32::MAX)
}

/// The deposits of the successes of one second.
fn cap(rate: u64, ratio: u64) -> u32 {
    u32::try_from(rate * ratio / CALL).unwrap_or(u32::MAX)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn turn(pace: &RateSampler, tick: u32, begun: u64) {
        pace.update(&pace.try_lock(u64::from(tick) * TICK).expect("a tick of its own"), begun);
    }

    /// A sampler after this many calls per tick, for this many ticks.
    fn paced(calls: u64, ticks: u32) -> RateSampler {
        let pace = RateSampler::new(200, Minimum::FLEET, 2);
        for tick in 1..=ticks {
            turn(&pace, tick, calls * u64::from(tick));
        }
        pace
    }

    #[test]
    fn a_steady_rate_is_found() {
        let pace = paced(70, 300);
        assert!((699_999_000..=700_000_000).contains(&pace.rate()), "{}", pace.rate());
        assert!((139_990..=140_000).contains(&pace.cap()), "{}", pace.cap());
        assert_eq!(pace.floor(), 10 * TOKEN);
    }

    #[test]
    fn two_seconds_are_worth_63_percent() {
        let rate = paced(70, 20).rate();
        assert!((442_000_000..443_000_000).contains(&rate), "{rate}");
        assert!((367_000..368_000).contains(&decayed(1_000_000, 20)));
    }

    #[test]
    fn a_small_client_has_a_floor_of_its_own_size() {
        // 10 calls a second: a retry in 5 s, and three tokens at most
        let pace = paced(1, 300);
        assert!((190..=200).contains(&pace.floor()), "{}", pace.floor());
        assert_eq!(pace.cap(), Minimum::FLEET.cap);
    }

    #[test]
    fn a_silence_fades_the_rate_at_one_look_as_at_many() {
        let (one, many) = (paced(70, 100), paced(70, 100));
        turn(&one, 140, 7000);
        for tick in 101..=140 {
            turn(&many, tick, 7000);
        }
        assert!(one.rate().abs_diff(many.rate()) < 100, "{} {}", one.rate(), many.rate());
    }

    #[test]
    fn no_silence_is_paid_for_longer_than_it_fades() {
        let pace = paced(70, 300);
        pace.take_due(30 * 1_000_000);
        assert_eq!(pace.take_due(30 * 1_000_000 + 1), 10_000);
        assert_eq!(pace.take_due(30 * 1_000_000), 0, "a clock that lags is owed nothing");
        assert_eq!(pace.take_due(u64::MAX), MAX_PAID * MAX_FLOOR);
    }

    #[test]
    fn few_calls_all_look_and_of_many_one_in_sixteen() {
        let looks = |calls| {
            let pace = paced(calls, 300);
            (0..1600).filter(|begun| pace.is_sample(*begun)).count()
        };
        assert_eq!([1, 30, 34, 70, 1000, 1_000_000].map(looks), [1600, 1600, 800, 400, 100, 100]);
    }

    #[test]
    fn nothing_overflows() {
        let pace = RateSampler::new(1000, Minimum::FLEET, 2);
        for tick in [1, 2, 3, 1000, u32::MAX >> 1] {
            turn(&pace, tick, (u64::MAX / 7).wrapping_mul(tick.into()));
            pace.take_due(u64::from(tick) * TICK);
        }
        let pace = RateSampler::new(1000, Minimum::FLEET, 2);
        (1..1000).for_each(|tick| turn(&pace, tick, u64::from(tick) * MAX_CALLS));
        assert_eq!(pace.cap(), u32::MAX);
    }
}
